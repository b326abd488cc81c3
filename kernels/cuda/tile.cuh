/* tile: one block's tile of a matrix product on tensor cores, c[m,n] = or += sum_k a(m,k) b(k,n), a and b bf16, c f32.
 *
 *   shared memory   STAGES slices of BK, each a[BM][BK] and b[BN][BK] (transposed: [BK][BM], [BK][BN]): while one is
 *                   multiplied the others are loaded (cp.async). Rows are stored in chunks of 16 bytes, permuted by the
 *                   row number (swizzled), so that the eight rows that ldmatrix reads at once are in different banks
 *   warp            WM x WN of the tile, in registers in the layout of mma.sync
 *
 * An element is one chain of mma.sync over k, 16 at a time, ascending, started from c or from 0, whatever the tile, the
 * number of rows and the rest of the batch. Past k operands are zeros, and steps of zeros only are skipped. */
#ifndef WZ_CUDA_TILE_H
#define WZ_CUDA_TILE_H

#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/ptx.cuh"

/* a [m, lda], padded with zeros from k to the next multiple of 8, or transposed: [k, lda], padded after m; b [n, ldb]
 * likewise. Every row is 16-byte aligned. */
struct factors {
    const __nv_bfloat16 *a, *b;
    size_t lda, ldb;
    int m, n, k;
};

template <int BM_, int BN_, int BK_, int WM_, int WN_, int STAGES_, bool TRANSPOSED_ = false,
          bool TRANSPOSED_A_ = false>
struct tile {
    static constexpr int BM = BM_, BN = BN_, BK = BK_, WM = WM_, WN = WN_, STAGES = STAGES_;
    static constexpr bool TRANSPOSED = TRANSPOSED_, TRANSPOSED_A = TRANSPOSED_A_; /* b, a */
    static constexpr int WARPS_N = BN / WN, THREADS = BM / WM * WARPS_N * 32, SLICE = (BM + BN) * BK;
    static constexpr int SHARED_SIZE = STAGES * SLICE * 2;
    typedef float sums[WM / 16][WN / 8][4];
};

/* Element offset of chunk c of a row (swizzled). */
template <int CHUNKS> INLINE int place(int row, int c)
{
    return 8 * (row * CHUNKS + (CHUNKS >= 8 ? c ^ row % 8 : c ^ row / (8 / CHUNKS) % CHUNKS));
}

/* `rows` rows of CHUNKS chunks from `from`, of which `inside` rows and `wide` elements of each exist. */
template <int THREADS, int ROWS, int CHUNKS>
INLINE void load_slice(__nv_bfloat16 *smem, const __nv_bfloat16 *from, size_t ld, int inside, int wide)
{
    constexpr int STEP = THREADS / CHUNKS;
    int row = (int)threadIdx.x / CHUNKS, c = (int)threadIdx.x % CHUNKS;
    const __nv_bfloat16 *at = from + (size_t)row * ld + (size_t)(8 * c);

    static_assert(THREADS % CHUNKS == 0 && ROWS % STEP == 0, "every thread loads the same number of chunks");
#pragma unroll
    for (int i = 0; i < ROWS / STEP; i++, row += STEP, at += STEP * ld) {
        bool there = row < inside && 8 * c < wide;
        copy_async16(&smem[place<CHUNKS>(row, c)], there ? at : from, there);
    }
}

template <class T> INLINE void tile_load(__nv_bfloat16 *smem, const struct factors &f, int m0, int n0, int k0)
{
    int deep = f.k - k0;

    if (T::TRANSPOSED_A)
        load_slice<T::THREADS, T::BK, T::BM / 8>(smem, f.a + (size_t)k0 * f.lda + (size_t)m0, f.lda, deep, f.m - m0);
    else load_slice<T::THREADS, T::BM, T::BK / 8>(smem, f.a + (size_t)m0 * f.lda + (size_t)k0, f.lda, f.m - m0, deep);
    if (T::TRANSPOSED)
        load_slice<T::THREADS, T::BK, T::BN / 8>(smem + T::BM * T::BK, f.b + (size_t)k0 * f.ldb + (size_t)n0, f.ldb,
                                                 deep, f.n - n0);
    else
        load_slice<T::THREADS, T::BN, T::BK / 8>(smem + T::BM * T::BK, f.b + (size_t)n0 * f.ldb + (size_t)k0, f.ldb,
                                                 f.n - n0, deep);
}

/* One mma step of 16 in k, from index k of the slice on. */
template <class T> INLINE void tile_step(typename T::sums &sums, const __nv_bfloat16 *smem, int wm, int wn, int k)
{
    constexpr int MS = T::WM / 16, NS = T::WN / 8;
    const __nv_bfloat16 *b_smem = smem + T::BM * T::BK;
    int lane = (int)threadIdx.x % 32, low = lane % 8, second = lane / 8 % 2, half = lane / 16;
    unsigned a[MS][4], b[(NS + 1) / 2][4];

#pragma unroll
    for (int i = 0; i < MS; i++) {
        int m = wm + 16 * i;
        if (T::TRANSPOSED_A) ldmatrix_transposed(a[i], &smem[place<T::BM / 8>(k + 8 * half + low, m / 8 + second)]);
        else ldmatrix(a[i], &smem[place<T::BK / 8>(m + lane % 16, k / 8 + half)]);
    }
#pragma unroll
    for (int j = 0; j < NS; j += 2) {
        int n = wn + 8 * j + (NS > 1 ? 8 * half : 0);
        if (T::TRANSPOSED) ldmatrix_transposed(b[j / 2], &b_smem[place<T::BN / 8>(k + 8 * second + low, n / 8)]);
        else ldmatrix(b[j / 2], &b_smem[place<T::BK / 8>(n + low, k / 8 + second)]);
    }
#pragma unroll
    for (int i = 0; i < MS; i++)
#pragma unroll
        for (int j = 0; j < NS; j++) mma_bf16(sums[i][j], a[i], &b[j / 2][j % 2 * 2]);
}

/* sums += a b over all of k. Ends with a barrier: shared memory may be reused. */
template <class T>
INLINE void tile_multiply(typename T::sums &sums, __nv_bfloat16 *smem, const struct factors &f, int m0, int n0)
{
    int warp = (int)threadIdx.x / 32, wm = warp / T::WARPS_N * T::WM, wn = warp % T::WARPS_N * T::WN;
    int slices = (f.k + T::BK - 1) / T::BK;

    for (int s = 0; s < T::STAGES - 1; s++) {
        if (s < slices) tile_load<T>(smem + s * T::SLICE, f, m0, n0, s * T::BK);
        copy_commit();
    }
    for (int s = 0; s < slices; s++) {
        int next = s + T::STAGES - 1;
        copy_wait<T::STAGES - 2>();
        __syncthreads(); /* slice s has arrived, and no thread still reads the one that `next` replaces */
        if (next < slices) tile_load<T>(smem + next % T::STAGES * T::SLICE, f, m0, n0, next * T::BK);
        copy_commit();
#pragma unroll
        for (int k = 0; k < T::BK; k += 16)
            if (s * T::BK + k < f.k) tile_step<T>(sums, smem + s % T::STAGES * T::SLICE, wm, wn, k);
    }
    copy_wait<0>();
    __syncthreads();
}

/* Calls fn(row, column, pair) for each pair of neighbouring sums of this thread; row and column count from the tile. */
template <class T, class F> INLINE void tile_each(typename T::sums &sums, F fn)
{
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    int row = warp / T::WARPS_N * T::WM + lane / 4, col = warp % T::WARPS_N * T::WN + lane % 4 * 2;

#pragma unroll
    for (int i = 0; i < T::WM / 16; i++)
#pragma unroll
        for (int j = 0; j < T::WN / 8; j++)
#pragma unroll
            for (int h = 0; h < 2; h++) fn(row + 16 * i + 8 * h, col + 8 * j, &sums[i][j][2 * h]);
}

/* Tile of this block in an order that reuses the L2 cache: eight tiles down, then one across. */
INLINE void tile_place(int down, int across, int *m, int *n)
{
    int block = (int)blockIdx.x, band = block / (8 * across), high = down - 8 * band < 8 ? down - 8 * band : 8,
        in = block - band * 8 * across;

    *m = 8 * band + in % high;
    *n = in / high;
}

/* Launches a kernel with a tile's threads and `shared` bytes of shared memory, more than the default limit if need be.
 * The caller calls wz_cuda_wrote for what it writes. */
template <class T, class K, class... A>
static void tile_launch(struct wz_backend *be, K kernel, size_t blocks, size_t shared, const A &...args)
{
    CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    LAUNCH_KEEPING(be, kernel, blocks, T::THREADS, shared, args...);
}

#endif
