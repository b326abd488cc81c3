/* The register tile: up to MR rows by NV vectors of c stay in registers while k runs.
 *
 *   for k:  b0 b1 .. = one vector from each of NV columns of b;  for each row: c[row][..] += a(row, k) * b..
 *
 * Each element of c is one chain over k, started from c itself or from 0, so cutting k, rows or columns changes no bit.
 * Rows are addressed from bases three apart (base, base + sm, base + 2 sm), which keeps twelve rows in four registers. */
#ifndef WZ_TILE_H
#define WZ_TILE_H

#include "kernels/cpu/isa.h"

/* b: NV column pointers, each ldb apart from one k to the next. from_c: start from c instead of 0. */
typedef void tile_fn(float *c, size_t ldc, const float *a, size_t sm, size_t sk, const void *const *b, size_t ldb, int k,
                     bool from_c);

INLINE void tile(const int mr, const int nv, const bool pairs, float *c, size_t ldc, const float *a, size_t sm, size_t sk,
                 const void *const *b, size_t ldb, int k, bool from_c)
{
    vf acc[12][4];
    const float *a0 = a, *a1 = a + 3 * sm, *a2 = a + 6 * sm, *a3 = a + 9 * sm;
    const char *p[4] = { b[0], nv > 1 ? b[1] : NULL, nv > 2 ? b[2] : NULL, nv > 3 ? b[3] : NULL };
    size_t step = 4 * ldb;

#pragma GCC unroll 12
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) acc[i][j] = from_c ? load(c + (size_t)i * ldc + j * W) : SPLAT(0.f);
    for (; k > 0; k--) {
        vf col[4];
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) {
            col[j] = load((const float *)p[j]);
            p[j] += step;
        }
#pragma GCC unroll 12
        for (int i = 0; i < mr; i++) {
            const float *row = i < 3 ? a0 : i < 6 ? a1 : i < 9 ? a2 : a3;
            vf x = SPLAT(row[(size_t)(i % 3) * sm]);
#pragma GCC unroll 4
            for (int j = 0; j < nv; j++) acc[i][j] = pairs ? fma_pair(x, col[j], acc[i][j]) : FMA(x, col[j], acc[i][j]);
        }
        a0 += sk;
        a1 += sk;
        a2 += sk;
        a3 += sk;
    }
#pragma GCC unroll 12
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) store(c + (size_t)i * ldc + j * W, acc[i][j]);
}

#define TILE_ONE(mr, nv, pairs)                                                                                                 \
    static void tile_##mr##_##nv##_##pairs(float *c, size_t ldc, const float *a, size_t sm, size_t sk, const void *const *b,    \
                                          size_t ldb, int k, bool from_c)                                                      \
    {                                                                                                                          \
        tile(mr, nv, pairs, c, ldc, a, sm, sk, b, ldb, k, from_c);                                                              \
    }
#define TILE_FEW(nv, pairs)                                                                                                     \
    TILE_ONE(1, nv, pairs) TILE_ONE(2, nv, pairs) TILE_ONE(3, nv, pairs) TILE_ONE(4, nv, pairs) TILE_ONE(5, nv, pairs)              \
    TILE_ONE(6, nv, pairs)
#define TILE_MORE(nv, pairs)                                                                                                    \
    TILE_ONE(7, nv, pairs) TILE_ONE(8, nv, pairs) TILE_ONE(9, nv, pairs) TILE_ONE(10, nv, pairs) TILE_ONE(11, nv, pairs)            \
    TILE_ONE(12, nv, pairs)
#define TILE_FEW_OF(nv, pairs)                                                                                                  \
    tile_1_##nv##_##pairs, tile_2_##nv##_##pairs, tile_3_##nv##_##pairs, tile_4_##nv##_##pairs, tile_5_##nv##_##pairs,              \
    tile_6_##nv##_##pairs
#define TILE_MORE_OF(nv, pairs)                                                                                                 \
    tile_7_##nv##_##pairs, tile_8_##nv##_##pairs, tile_9_##nv##_##pairs, tile_10_##nv##_##pairs, tile_11_##nv##_##pairs,            \
    tile_12_##nv##_##pairs

TILE_FEW(1, 0) TILE_FEW(2, 0) TILE_FEW(2, 1) TILE_FEW(4, 0) TILE_FEW(4, 1)
#ifdef __AVX512F__
TILE_MORE(1, 0) TILE_MORE(2, 0) TILE_MORE(2, 1)
#define TILE_ALL_OF(nv, pairs) { TILE_FEW_OF(nv, pairs), TILE_MORE_OF(nv, pairs) }
#else
#define TILE_ALL_OF(nv, pairs) { TILE_FEW_OF(nv, pairs) }
#endif
static tile_fn *const by_1[MR2] = TILE_ALL_OF(1, 0), *const by_2[2][MR2] = { TILE_ALL_OF(2, 0), TILE_ALL_OF(2, 1) };
static tile_fn *const by_4[2][6] = { { TILE_FEW_OF(4, 0) }, { TILE_FEW_OF(4, 1) } };

/* c[rows, nv W] in tiles as even as can be. nv: 1, 2 or 4; 1 is f32 only. */
static void tiles_run(float *c, size_t ldc, const float *a, size_t sm, size_t sk, int rows, const void *const *b, size_t ldb,
                      int k, bool from_c, int nv, bool pairs)
{
    int most = nv == 4 ? MR4 : MR2, tiles = (rows + most - 1) / most;
    tile_fn *const *fn = nv == 4 ? by_4[pairs] : nv == 2 ? by_2[pairs] : by_1;

    for (int t = 0; t < tiles; t++) {
        int at = (int)((long)rows * t / tiles), n = (int)((long)rows * (t + 1) / tiles) - at;
        fn[n - 1](c + (size_t)at * ldc, ldc, a + (size_t)at * sm, sm, sk, b, ldb, k, from_c);
    }
}

#endif
