/* flash: code shared by attention on tensor cores and its backward: bf16 tiles in shared memory, read as mma operands.
 *
 * A tile has rows of D channels in chunks of 8 (16 bytes). Chunk c of row r is stored at chunk c ^ (r % 8) (swizzled),
 * so that eight rows of one column of chunks, which is what ldmatrix reads, are in different banks:
 *
 *   row 0   0 1 2 3 4 5 6 7 | 8 9 ..
 *   row 1   1 0 3 2 5 4 7 6 | 9 8 ..
 *   row 2   2 3 0 1 6 7 4 5 | 10 11 .. */
#ifndef WZ_CUDA_FLASH_H
#define WZ_CUDA_FLASH_H

#include "kernels/cuda/attend.cuh"
#include "kernels/cuda/ptx.cuh"

using bf16 = __nv_bfloat16;

enum { STEP = 64 }; /* keys (in the backward of keys: queries) in one step */

static const float LOG2E = 1.44269504f;

template <int D> INLINE int chunk_at(int row, int chunk) { return row * D + ((chunk ^ (row & 7)) << 3); }

INLINE int lane_of(void) { return (int)threadIdx.x % 32; }

/* Element offset that a lane passes to ldmatrix within 16 rows of a tile, for an a or a transposed b (rows) and for a b
 * (columns); channels 16 k to 16 k + 15 are at offset ^ 16 k. Opaque to the compiler, which would otherwise keep all of
 * these in registers. */
struct operand_offsets {
    int rows, columns;
};

template <int D> INLINE struct operand_offsets operand_offsets_of(void)
{
    int lane = lane_of();

    return { opaque(chunk_at<D>(lane % 16, lane / 16)), opaque(chunk_at<D>(lane / 16 * 8 + lane % 8, lane / 8 % 2)) };
}

/* a: rows [row, row + 16), channels [16 k, 16 k + 16). */
template <int D> INLINE void read_a(unsigned a[4], const bf16 *tile, struct operand_offsets at, int row, int k)
{
    ldmatrix(a, tile + row * D + (at.rows ^ 16 * k));
}

/* Two b operands: the tile's rows [row, row + 8) and [row + 8, row + 16) as columns, channels [16 k, 16 k + 16). */
template <int D> INLINE void read_b(unsigned b[4], const bf16 *tile, struct operand_offsets at, int row, int k)
{
    ldmatrix(b, tile + row * D + (at.columns ^ 16 * k));
}

/* Two b operands: channels [16 k, 16 k + 8) and [16 k + 8, 16 k + 16) as columns, over rows [row, row + 16). */
template <int D>
INLINE void read_b_transposed(unsigned b[4], const bf16 *tile, struct operand_offsets at, int row, int k)
{
    ldmatrix_transposed(b, tile + row * D + (at.rows ^ 16 * k));
}

/* Columns [16 k, 16 k + 16) of the results d [16, ..], rounded to bf16, as an a operand. */
INLINE void round_a(unsigned a[4], const float (*d)[4], int k)
{
    a[0] = pair_bf16(d[2 * k][0], d[2 * k][1]);
    a[1] = pair_bf16(d[2 * k][2], d[2 * k][3]);
    a[2] = pair_bf16(d[2 * k + 1][0], d[2 * k + 1][1]);
    a[3] = pair_bf16(d[2 * k + 1][2], d[2 * k + 1][3]);
}

/* s[STEP / 8][4] += 16 rows of x, from `row` on, times STEP rows of y. */
template <int D> INLINE void score(float (*s)[4], const bf16 *x, struct operand_offsets at, int row, const bf16 *y)
{
#pragma unroll 2 /* more would spill registers */
    for (int k = 0; k < D / 16; k++) {
        unsigned a[4], b[4];
        read_a<D>(a, x, at, row, k);
#pragma unroll
        for (int j = 0; j < STEP / 16; j++) {
            read_b<D>(b, y, at, 16 * j, k);
            mma_bf16(s[2 * j], a, b);
            mma_bf16(s[2 * j + 1], a, b + 2);
        }
    }
}

/* o[D / 8][4] += p [16, STEP], rounded, times STEP rows of y. */
template <int D> INLINE void multiply_add(float (*o)[4], const float (*p)[4], struct operand_offsets at, const bf16 *y)
{
#pragma unroll
    for (int k = 0; k < STEP / 16; k++) {
        unsigned a[4], b[4];
        round_a(a, p, k);
#pragma unroll
        for (int j = 0; j < D / 16; j++) {
            read_b_transposed<D>(b, y, at, 16 * k, j);
            mma_bf16(o[2 * j], a, b);
            mma_bf16(o[2 * j + 1], a, b + 2);
        }
    }
}

/* ---- rows to shared memory -------------------------------------------------------------------------------- */

/* Slot of position t of a sequence in the cache, in units of D channels; 0 past `last`. */
INLINE unsigned slot_of(const struct attend *a, int pages, int t, int last, int head)
{
    int p = a->kv.page;

    if (t > last) return 0;
    unsigned page = (unsigned)a->at.table[pages + t / p];
    return (page * (unsigned)a->kv.heads + (unsigned)head) * (unsigned)p + (unsigned)(t % p);
}

/* Starts asynchronous copies of ROWS tile rows by N threads, from cache slots (load_slots) or from consecutive memory
 * (load_rows); zeros from the n-th on. */
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

/* Loads `rows` queries of a tile by N threads, rounded to bf16; zeros from the n-th on. */
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

/* Keys and values of a tile, double-buffered by steps: while one step is computed the next is copied, and the cache
 * slots of the one after are looked up. */
template <int D> struct kv_stream {
    const struct attend *a;
    bf16 *keys, *values;        /* [2, STEP, D] */
    unsigned *slots;            /* [2, STEP] */
    int pages, head, end, from; /* positions [from, end) */
};

template <int D> INLINE void load_slot_numbers(const struct kv_stream<D> *s, int t0)
{
    int i = (int)threadIdx.x;

    if (i < STEP) s->slots[t0 / STEP % 2 * STEP + i] = slot_of(s->a, s->pages, t0 + i, s->end - 1, s->head);
}

template <int D, int N> INLINE void fetch_step(const struct kv_stream<D> *s, int t0)
{
    int b = t0 / STEP % 2;

    if (t0 < s->end) {
        load_slots<D, N, STEP>(s->keys + b * STEP * D, s->a->kv.k, s->slots + b * STEP, s->end - t0);
        load_slots<D, N, STEP>(s->values + b * STEP * D, s->a->kv.v, s->slots + b * STEP, s->end - t0);
    }
    copy_commit();
}

/* Starts the first step. Includes a barrier, which also publishes earlier writes to shared memory. */
template <int D, int N> INLINE void kv_stream_begin(const struct kv_stream<D> *s)
{
    load_slot_numbers(s, s->from);
    load_slot_numbers(s, s->from + STEP);
    __syncthreads();
    fetch_step<D, N>(s, s->from);
}

/* Waits for the step at t0 and for all threads to leave the one before, and starts the next. */
template <int D, int N> INLINE void kv_stream_next(const struct kv_stream<D> *s, int t0)
{
    copy_wait<0>();
    __syncthreads();
    fetch_step<D, N>(s, t0 + STEP);
    load_slot_numbers(s, t0 + 2 * STEP);
}

#endif
