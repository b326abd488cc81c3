/* flash: what attention on tensor cores and its backward share: bf16 rows in shared memory, read as operands of
 * products.
 *
 * A tile is rows of D channels in chunks of 8 (16 bytes). Chunk c of row r lies where c ^ (r % 8) would, so that eight
 * rows of one column of chunks, which is what a matrix read touches, lie in different banks:
 *
 *   row 0   0 1 2 3 4 5 6 7 | 8 9 ..        row 1   1 0 3 2 5 4 7 6 | 9 8 ..        row 2   2 3 0 1 6 7 4 5 | 10 11
 *   .. */
#ifndef WZ_CUDA_FLASH_H
#define WZ_CUDA_FLASH_H

#include "kernels/cuda/attend.cuh"
#include "kernels/cuda/ptx.cuh"

using bf16 = __nv_bfloat16;

enum { STEP = 64 }; /* keys (in the backward of keys: queries) that lie in shared memory at a time */

static const float LOG2E = 1.44269504f;

template <int D> INLINE int chunk_at(int row, int chunk) { return row * D + ((chunk ^ (row & 7)) << 3); }

INLINE int lane_of(void) { return (int)threadIdx.x % 32; }

/* Where a lane reads in 16 rows of a tile: as rows (or turned), as columns. The k-th 16 channels lie at spot ^ 16 k.
 * Opaque, lest the compiler keep all of these in registers. */
struct spots {
    int rows, columns;
};

template <int D> INLINE struct spots spots_of(void)
{
    int lane = lane_of();

    return { opaque(chunk_at<D>(lane % 16, lane / 16)), opaque(chunk_at<D>(lane / 16 * 8 + lane % 8, lane / 8 % 2)) };
}

/* a: rows [row, row + 16), channels [16 k, 16 k + 16). */
template <int D> INLINE void read_a(unsigned a[4], const bf16 *tile, struct spots at, int row, int k)
{
    read_matrices(a, tile + row * D + (at.rows ^ 16 * k));
}

/* Two b's, of the tile's rows [row, row + 8) and [row + 8, row + 16) as columns, over channels [16 k, 16 k + 16). */
template <int D> INLINE void read_b(unsigned b[4], const bf16 *tile, struct spots at, int row, int k)
{
    read_matrices(b, tile + row * D + (at.columns ^ 16 * k));
}

/* Two b's, of channels [16 k, 16 k + 8) and [16 k + 8, 16 k + 16) as columns, over the tile's rows [row, row + 16). */
template <int D> INLINE void read_b_turned(unsigned b[4], const bf16 *tile, struct spots at, int row, int k)
{
    read_matrices_turned(b, tile + row * D + (at.rows ^ 16 * k));
}

/* Of sums d [16, 16 (k + 1)] columns [16 k, 16 k + 16), rounded, as the a of a product. */
INLINE void round_a(unsigned a[4], const float (*d)[4], int k)
{
    a[0] = pair_bf16(d[2 * k][0], d[2 * k][1]);
    a[1] = pair_bf16(d[2 * k][2], d[2 * k][3]);
    a[2] = pair_bf16(d[2 * k + 1][0], d[2 * k + 1][1]);
    a[3] = pair_bf16(d[2 * k + 1][2], d[2 * k + 1][3]);
}

/* s[STEP / 8][4] += 16 rows of x, from `row` on, times STEP rows of y. */
template <int D> INLINE void score(float (*s)[4], const bf16 *x, struct spots at, int row, const bf16 *y)
{
#pragma unroll 2 /* more, and sums no longer fit into registers */
    for (int k = 0; k < D / 16; k++) {
        unsigned a[4], b[4];
        read_a<D>(a, x, at, row, k);
#pragma unroll
        for (int j = 0; j < STEP / 16; j++) {
            read_b<D>(b, y, at, 16 * j, k);
            multiply_bf16(s[2 * j], a, b);
            multiply_bf16(s[2 * j + 1], a, b + 2);
        }
    }
}

/* o[D / 8][4] += p [16, STEP], rounded, times STEP rows of y. */
template <int D> INLINE void gather(float (*o)[4], const float (*p)[4], struct spots at, const bf16 *y)
{
#pragma unroll
    for (int k = 0; k < STEP / 16; k++) {
        unsigned a[4], b[4];
        round_a(a, p, k);
#pragma unroll
        for (int j = 0; j < D / 16; j++) {
            read_b_turned<D>(b, y, at, 16 * k, j);
            multiply_bf16(o[2 * j], a, b);
            multiply_bf16(o[2 * j + 1], a, b + 2);
        }
    }
}

/* ---- rows to shared memory -------------------------------------------------------------------------------- */

/* Where position t of a sequence lies in the cache, in rows of D channels; 0 past `last`. */
INLINE unsigned slot_of(const struct attend *a, int pages, int t, int last, int head)
{
    int p = a->kv.page;

    if (t > last) return 0;
    unsigned page = (unsigned)a->at.table[pages + t / p];
    return (page * (unsigned)a->kv.heads + (unsigned)head) * (unsigned)p + (unsigned)(t % p);
}

/* Starts copies of ROWS rows by N threads: those at `slots`, or side by side; zeros from the n-th on. */
template <int D, int N, int ROWS> INLINE void load_slots(bf16 *tile, const float *from, const unsigned *slots, int n)
{
    constexpr int AT_ONCE = N / (D / 8); /* a multiple of 8 */
    int r = opaque((int)threadIdx.x / (D / 8)), c = (int)threadIdx.x % (D / 8);
    bf16 *to = tile + chunk_at<D>(r, c);

#pragma unroll
    for (int i = 0; i < ROWS; i += AT_ONCE) {
        bool inside = r + i < n;
        copy_async16(to + i * D, (const bf16 *)from + (inside ? (size_t)slots[r + i] * D : 0) + 8 * c, inside);
    }
}

template <int D, int N, int ROWS> INLINE void load_rows(bf16 *tile, const bf16 *from, int n)
{
    constexpr int AT_ONCE = N / (D / 8);
    int r = opaque((int)threadIdx.x / (D / 8)), c = (int)threadIdx.x % (D / 8);
    bf16 *to = tile + chunk_at<D>(r, c);

#pragma unroll
    for (int i = 0; i < ROWS; i += AT_ONCE)
        copy_async16(to + i * D, from + (r + i < n ? (r + i) * D : 0) + 8 * c, r + i < n);
}

/* `rows` rows of a tile of queries by N threads, rounded; zeros from the n-th on. */
template <int D, int N>
INLINE void load_rounded(bf16 *tile, const float *from, const struct attend *a, const struct tile *t, int rows, int n,
                         int head)
{
    for (int e = (int)threadIdx.x; e < rows * D / 8; e += N) {
        int r = e / (D / 8), c = e % (D / 8);
        unsigned *to = (unsigned *)(tile + chunk_at<D>(r, c));
        float4 x = { 0, 0, 0, 0 }, y = x;
        if (r < n) {
            const float4 *row = (const float4 *)(from + query_at(a, t, r, head) * D) + 2 * c;
            x = row[0];
            y = row[1];
        }
        to[0] = pair_bf16(x.x, x.y);
        to[1] = pair_bf16(x.z, x.w);
        to[2] = pair_bf16(y.x, y.y);
        to[3] = pair_bf16(y.z, y.w);
    }
}

/* Keys and values of a tile, a step at a time: while one is at work the next is on its way. Places in the cache are
 * looked up a step before that. */
template <int D> struct stream {
    const struct attend *a;
    bf16 *keys, *values;        /* [2, STEP, D] */
    unsigned *slots;            /* [2, STEP] */
    int pages, head, end, from; /* positions [from, end) */
};

template <int D> INLINE void look_up(const struct stream<D> *s, int t0)
{
    int i = (int)threadIdx.x;

    if (i < STEP) s->slots[t0 / STEP % 2 * STEP + i] = slot_of(s->a, s->pages, t0 + i, s->end - 1, s->head);
}

template <int D, int N> INLINE void fetch(const struct stream<D> *s, int t0)
{
    int b = t0 / STEP % 2;

    if (t0 < s->end) {
        load_slots<D, N, STEP>(s->keys + b * STEP * D, s->a->kv.k, s->slots + b * STEP, s->end - t0);
        load_slots<D, N, STEP>(s->values + b * STEP * D, s->a->kv.v, s->slots + b * STEP, s->end - t0);
    }
    copy_commit();
}

/* Also makes visible what threads have written to shared memory. */
template <int D, int N> INLINE void stream_begin(const struct stream<D> *s)
{
    look_up(s, s->from);
    look_up(s, s->from + STEP);
    __syncthreads();
    fetch<D, N>(s, s->from);
}

/* The step at t0 has come, for all threads, and none is still at the one before. */
template <int D, int N> INLINE void stream_step(const struct stream<D> *s, int t0)
{
    copy_wait<0>();
    __syncthreads();
    fetch<D, N>(s, t0 + STEP);
    look_up(s, t0 + 2 * STEP);
}

#endif
