/* Register tile: up to MR rows by NV vectors of c are kept in registers over the loop on k.
 *
 *   for k:  b0 b1 .. = one vector from each of NV columns of b;  for each row: c[row][..] += a(row, k) * b..
 *
 * Each element of c is one chain over k that starts from c or from 0, so blocking k, rows or columns changes no bit.
 * Rows are addressed relative to bases three rows apart (base, base + sm, base + 2 sm), so that twelve rows need four
 * address registers. */
#ifndef WZ_TILE_H
#define WZ_TILE_H

#include "kernels/cpu/isa.h"

/* Elements of b: floats; pairs of bf16 (struct gemm), multiplied by pairs or by two floats of a (LEFT); single bf16,
 * multiplied by floats of a. In the order amx: two floats for a pair, one row after another; pairs. */
enum tile_kind { FLOATS, PAIRS, HALVES, AMX_FLOATS, AMX_PAIRS };

/* b: NV pointers to columns of W elements; consecutive k are ldb elements apart. from_c: start from c instead of 0.
 * next: k cache lines that will be read soon, prefetched meanwhile (NULL: none), so that memory and arithmetic overlap
 * where rows are few. */
enum { LINE = 64 };
typedef void tile_fn(float *c, size_t ldc, const float *a, size_t sm, size_t sk, const void *const *b, size_t ldb,
                     int k, bool from_c, const char *next);

INLINE void tile(const int mr, const int nv, const enum tile_kind kind, float *c, size_t ldc, const float *a, size_t sm,
                 size_t sk, const void *const *b, size_t ldb, int k, bool from_c, const char *next)
{
    vf acc[12][4];
    const float *a0 = a, *a1 = a + 3 * sm, *a2 = a + 6 * sm, *a3 = a + 9 * sm;
    const char *p[4] = { b[0], nv > 1 ? b[1] : NULL, nv > 2 ? b[2] : NULL, nv > 3 ? b[3] : NULL };
    size_t step = (kind == HALVES ? sizeof(uint16_t) : sizeof(float)) * ldb;

#pragma GCC unroll 12
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) acc[i][j] = from_c ? load(c + (size_t)i * ldc + j * W) : SPLAT(0.f);
    for (; k > 0; k--) {
        vf col[4];
        if (kind == PAIRS && LEFT == 2) {
#pragma GCC unroll 4
            for (int j = 0; j < nv; j++) col[j] = (vf)((vu)load((const float *)p[j]) & 0xffff0000u);
#pragma GCC unroll 12
            for (int i = 0; i < mr; i++) {
                const float *row = i < 3 ? a0 : i < 6 ? a1 : i < 9 ? a2 : a3;
                vf x = SPLAT(row[(size_t)(i % 3) * sm]);
#pragma GCC unroll 4
                for (int j = 0; j < nv; j++) acc[i][j] = FMA(x, col[j], acc[i][j]);
            }
            a0 += sk;
            a1 += sk;
            a2 += sk;
            a3 += sk;
        }
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) {
            col[j] = kind == HALVES ? load_half((const uint16_t *)p[j]) : load((const float *)p[j]);
            if (kind == PAIRS && LEFT == 2) col[j] = (vf)((vu)col[j] << 16);
            p[j] += step;
        }
        if (nv == 2 && kind != HALVES && next) {
            __builtin_prefetch(next, 0, 2);
            next += LINE;
        }
#pragma GCC unroll 12
        for (int i = 0; i < mr; i++) {
            const float *row = i < 3 ? a0 : i < 6 ? a1 : i < 9 ? a2 : a3;
            vf x = SPLAT(row[(size_t)(i % 3) * sm]);
#pragma GCC unroll 4
            for (int j = 0; j < nv; j++)
                acc[i][j] = kind == PAIRS && LEFT == 1 ? FMA_PAIR(x, col[j], acc[i][j]) : FMA(x, col[j], acc[i][j]);
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

/* The same in the order amx; k pairs, a multiple of UNIT. a holds two floats for each pair, sk apart; c is two vectors
 * wide. */
INLINE void tile_amx(const int mr, const enum tile_kind kind, float *c, size_t ldc, const float *a, size_t sm,
                     size_t sk, const void *const *b, size_t ldb, int k, bool from_c, const char *next)
{
    const float *a0 = a, *a1 = a + 3 * sm;
    const char *p[2] = { b[0], b[1] };
    size_t step = sizeof(float) * ldb;

    for (; k > 0; k -= UNIT, from_c = true) {
        vf even[MR_AMX][2], odd[MR_AMX][2];
#pragma GCC unroll 6
        for (int i = 0; i < mr; i++)
#pragma GCC unroll 2
            for (int j = 0; j < 2; j++) even[i][j] = odd[i][j] = SPLAT(0.f);
        for (int s = 0; s < UNIT; s++) {
            vf first[2], second[2];
#pragma GCC unroll 2
            for (int j = 0; j < 2; j++) {
                vf at = load((const float *)p[j]);
                first[j] = kind == AMX_PAIRS ? (vf)((vu)at & 0xffff0000u) : at;
                if (kind == AMX_FLOATS) p[j] += step;
                second[j] = kind == AMX_PAIRS ? (vf)((vu)at << 16) : load((const float *)p[j]);
                p[j] += step;
            }
            if (next) {
                __builtin_prefetch(next, 0, 2);
                next += LINE;
            }
#pragma GCC unroll 6
            for (int i = 0; i < mr; i++) {
                const float *row = (i < 3 ? a0 : a1) + (size_t)(i % 3) * sm;
                vf x = SPLAT(row[0]), y = SPLAT(row[sk]);
#pragma GCC unroll 2
                for (int j = 0; j < 2; j++) {
                    even[i][j] = fma_amx(x, first[j], even[i][j]);
                    odd[i][j] = fma_amx(y, second[j], odd[i][j]);
                }
            }
            a0 += 2 * sk;
            a1 += 2 * sk;
        }
#pragma GCC unroll 6
        for (int i = 0; i < mr; i++)
#pragma GCC unroll 2
            for (int j = 0; j < 2; j++) {
                float *at = c + (size_t)i * ldc + j * W;
                store(at, add_amx(from_c ? load(at) : SPLAT(0.f), add_amx(even[i][j], odd[i][j])));
            }
    }
}

#define TILE_ONE(mr, nv, kind)                                                                                    \
    static void tile_##mr##_##nv##_##kind(float *c, size_t ldc, const float *a, size_t sm, size_t sk,             \
                                          const void *const *b, size_t ldb, int k, bool from_c, const char *next) \
    {                                                                                                             \
        tile(mr, nv, kind, c, ldc, a, sm, sk, b, ldb, k, from_c, next);                                           \
    }
#define AMX_ONE(mr, nv, kind)                                                                                     \
    static void tile_##mr##_##nv##_##kind(float *c, size_t ldc, const float *a, size_t sm, size_t sk,             \
                                          const void *const *b, size_t ldb, int k, bool from_c, const char *next) \
    {                                                                                                             \
        tile_amx(mr, kind, c, ldc, a, sm, sk, b, ldb, k, from_c, next);                                           \
    }
/* Instances of 1 to 6 and of 7 to 12 rows, and the entries of the tables of them. */
/* clang-format off */
#define THREE(each, nv, kind) each(1, nv, kind) each(2, nv, kind) each(3, nv, kind)
#define FEW(each, nv, kind) THREE(each, nv, kind) each(4, nv, kind) each(5, nv, kind) each(6, nv, kind)
#define MORE(each, nv, kind) each(7, nv, kind) each(8, nv, kind) each(9, nv, kind) each(10, nv, kind) \
    each(11, nv, kind) each(12, nv, kind)
#define TILE_ENTRY(mr, nv, kind) tile_##mr##_##nv##_##kind,
FEW(TILE_ONE, 1, FLOATS) FEW(TILE_ONE, 2, FLOATS) FEW(TILE_ONE, 4, FLOATS)
FEW(TILE_ONE, 2, PAIRS) FEW(TILE_ONE, 4, PAIRS)
FEW(TILE_ONE, 1, HALVES) FEW(TILE_ONE, 2, HALVES) FEW(TILE_ONE, 4, HALVES)
#if MR_AMX == 6
#define AMX_ALL FEW
#else
#define AMX_ALL THREE
#endif
AMX_ALL(AMX_ONE, 2, AMX_FLOATS) AMX_ALL(AMX_ONE, 2, AMX_PAIRS)
#ifdef WIDE
MORE(TILE_ONE, 1, FLOATS) MORE(TILE_ONE, 2, FLOATS) MORE(TILE_ONE, 2, PAIRS)
MORE(TILE_ONE, 1, HALVES) MORE(TILE_ONE, 2, HALVES)
#define TILE_ALL_OF(nv, kind) { FEW(TILE_ENTRY, nv, kind) MORE(TILE_ENTRY, nv, kind) }
#else
#define TILE_ALL_OF(nv, kind) { FEW(TILE_ENTRY, nv, kind) }
#endif
static tile_fn *const by_1[3][MR2] = { [FLOATS] = TILE_ALL_OF(1, FLOATS), [HALVES] = TILE_ALL_OF(1, HALVES) };
static tile_fn *const by_2[5][MR2] = { TILE_ALL_OF(2, FLOATS), TILE_ALL_OF(2, PAIRS), TILE_ALL_OF(2, HALVES),
                                       { AMX_ALL(TILE_ENTRY, 2, AMX_FLOATS) }, { AMX_ALL(TILE_ENTRY, 2, AMX_PAIRS) } };
static tile_fn *const by_4[3][6] = { { FEW(TILE_ENTRY, 4, FLOATS) }, { FEW(TILE_ENTRY, 4, PAIRS) },
                                     { FEW(TILE_ENTRY, 4, HALVES) } };
/* clang-format on */

/* Most rows of a register tile that is nv vectors wide. */
static int most_rows(enum tile_kind kind, int nv) { return kind >= AMX_FLOATS ? MR_AMX : nv == 4 ? MR4 : MR2; }

/* c[rows, nv W] in tiles of nearly equal height. nv: 1, 2 or 4; PAIRS have no instance for nv 1. ahead: the k rows of
 * 2 W floats read after this b, which the first tiles prefetch, one cache line per k; or NULL. */
static void tiles_run(float *c, size_t ldc, const float *a, size_t sm, size_t sk, int rows, const void *const *b,
                      size_t ldb, int k, bool from_c, int nv, enum tile_kind kind, const char *ahead)
{
    int most = most_rows(kind, nv), tiles = (rows + most - 1) / most;
    tile_fn *const *fn = nv == 4 ? by_4[kind] : nv == 2 ? by_2[kind] : by_1[kind];

    for (int t = 0; t < tiles; t++) {
        int at = (int)((long)rows * t / tiles), n = (int)((long)rows * (t + 1) / tiles) - at;
        for (int i = at + n; from_c && i < at + 2 * n && i < rows; i++)
            for (int j = 0; j < nv; j++) __builtin_prefetch(c + (size_t)i * ldc + j * W, 1, 3);
        const char *next =
            ahead && tiles > 1 && t * LINE < 2 * W * (int)sizeof(float) ? ahead + (size_t)t * (size_t)k * LINE : NULL;
        fn[n - 1](c + (size_t)at * ldc, ldc, a + (size_t)at * sm, sm, sk, b, ldb, k, from_c, next);
    }
}

#endif
