/* flash: what attention on tensor cores and its backward share: bf16 rows in shared memory, read as operands of products.
 *
 * A tile is rows of D channels in chunks of 8 (16 bytes). Chunk c of row r lies where c ^ (r % 8) would, so that eight rows of one
 * column of chunks, which is what a matrix read touches, lie in different banks:
 *
 *   row 0   0 1 2 3 4 5 6 7 | 8 9 ..        row 1   1 0 3 2 5 4 7 6 | 9 8 ..        row 2   2 3 0 1 6 7 4 5 | 10 11 .. */
#ifndef WZ_CUDA_FLASH_H
#define WZ_CUDA_FLASH_H

#include "kernels/cuda/attend.cuh"
#include "kernels/cuda/ptx.cuh"

using bf16 = __nv_bfloat16;

enum { STEP = 64 };      /* keys (in the backward of keys: queries) that lie in shared memory at a time */

static const float LOG2E = 1.44269504f;

template <int D> INLINE int chunk_at(int row, int chunk)
{
    return row * D + ((chunk ^ (row & 7)) << 3);
}

INLINE int lane_of(void)
{
    return (int)threadIdx.x % 32;
}

/* Where a lane reads in 16 rows of a tile: as rows (or turned), as columns. The k-th 16 channels lie at spot ^ 16 k. Opaque, lest
 * the compiler keep all of these in registers. */
struct spots { int rows, columns; };

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

/* ---- rows to shared memory --------------------------------------------------------------------------------------- */

/* Where position t of a sequence lies in the cache, in rows of D channels; 0 past `last`. */
INLINE unsigned slot_of(const struct attend *a, int seq, int t, int last, int head)
{
    int p = a->kv.page;

    if (t > last) return 0;
    unsigned page = (unsigned)a->at.table[(size_t)seq * (size_t)a->at.stride + (size_t)(t / p)];
    return (page * (unsigned)a->kv.heads + (unsigned)head) * (unsigned)p + (unsigned)(t % p);
}

/* Starts copies of STEP rows by N threads: those at `slots`, zeros from the n-th on. */
template <int D, int N> INLINE void load_slots(bf16 *tile, const float *from, const unsigned *slots, int n)
{
    constexpr int ROWS = N / (D / 8);                  /* at a time; a multiple of 8 */
    int r = opaque((int)threadIdx.x / (D / 8)), c = (int)threadIdx.x % (D / 8);
    bf16 *to = tile + chunk_at<D>(r, c);

#pragma unroll
    for (int i = 0; i < STEP; i += ROWS) {
        bool inside = r + i < n;
        copy_async16(to + i * D, (const bf16 *)from + (inside ? (size_t)slots[r + i] * D : 0) + 8 * c, inside);
    }
}

/* `rows` rows of a tile of queries by N threads, rounded; zeros from the n-th on. */
template <int D, int N> INLINE void load_rounded(bf16 *tile, const float *from, const struct attend *a, const struct tile *t, int rows,
                                                 int n, int head)
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

#endif
