/* Products in int8: one scale per output channel of the weight and per token of x; the integer sums are exact.
 *
 *   s = max |x| / 127      q = round(x / s)      y = s_x s_w sum_k q_x q_w
 *   sum_k (q_x + 128) q_w = sum_k q_x q_w + 128 sum_k q_w
 *
 * VPDPBUSD multiplies unsigned by signed bytes, so x is stored as q_x + 128, and 128 sum_k q_w is subtracted.
 *
 *   panel of w   [k / 4][PANEL] groups of four bytes, then PANEL scales (f32), then PANEL of 128 sum_k q_w (int32)
 *   token of x   [k / 4] groups of four bytes, then its scale (f32), then 4 bytes unused
 *
 * An int32 holds the sum of 65536 products, and integer sums do not depend on their order, so all instruction sets
 * give the same bits. */
#include "kernels/cpu/isa.h"

#include <math.h>

enum { PANEL = 2 * W };

INLINE vi load_ints(const void *p)
{
    typedef int32_t vi_any __attribute__((vector_size(4 * W), aligned(4), may_alias));

    return *(const vi_any *)p;
}

/* acc + the sum of the four byte products of each 32-bit element: unsigned bytes of x, signed bytes of w. */
INLINE vi dot4(vi acc, int32_t x, vi w)
{
#if defined(__AVX512VNNI__)
    return (vi)_mm512_dpbusd_epi32((__m512i)acc, _mm512_set1_epi32(x), (__m512i)w);
#elif defined(__AVX512F__)
    __m512i even = _mm512_srai_epi16(_mm512_slli_epi16((__m512i)w, 8), 8), odd = _mm512_srai_epi16((__m512i)w, 8);
    even = _mm512_madd_epi16(even, _mm512_set1_epi32(x & 0x00ff00ff));
    odd = _mm512_madd_epi16(odd, _mm512_set1_epi32((x >> 8) & 0x00ff00ff));
    return acc + (vi)even + (vi)odd;
#elif defined(__AVX2__)
    __m256i even = _mm256_srai_epi16(_mm256_slli_epi16((__m256i)w, 8), 8), odd = _mm256_srai_epi16((__m256i)w, 8);
    even = _mm256_madd_epi16(even, _mm256_set1_epi32(x & 0x00ff00ff));
    odd = _mm256_madd_epi16(odd, _mm256_set1_epi32((x >> 8) & 0x00ff00ff));
    return acc + (vi)even + (vi)odd;
#else
    for (int b = 0; b < 4; b++) acc += (w << (24 - 8 * b) >> 24) * ((x >> 8 * b) & 0xff);
    return acc;
#endif
}

/* Scales the integer sums of mr tokens by one panel and writes them to c. Not inlined into tile8, which is compiled
 * for every mr. */
static __attribute__((noinline)) void tile8_out(int mr, const struct gemm *g, float *c, const float *a,
                                                const float *scale, const vi (*sums)[2], int cols)
{
    size_t n = (size_t)cols;

    for (int i = 0; i < mr; i++, c += g->ldc, a += g->sm)
        for (size_t j = 0; j < 2; j++) {
            vi sum = sums[i][j] - load_ints(scale + PANEL + j * W);
            vf y = __builtin_convertvector(sum, vf) * (SPLAT(a[g->k]) * load(scale + j * W));
            store_in(c, j * W, n, g->add ? load_in(c, j * W, n, 0) + y : y);
        }
}

/* mr tokens by one panel. */
INLINE void tile8(const int mr, const struct gemm *g, float *c, const float *a, const float *panel, int cols)
{
    const float *scale = panel + (size_t)g->k * PANEL;
    vi acc[12][2], sums[12][2], zero = { 0 };

#pragma GCC unroll 12
    for (int i = 0; i < mr; i++) acc[i][0] = acc[i][1] = zero;
    for (int k = 0; k < g->k; k++, panel += PANEL) {
        vi w0 = load_ints(panel), w1 = load_ints(panel + W);
#pragma GCC unroll 12
        for (int i = 0; i < mr; i++) {
            int32_t x;
            memcpy(&x, a + (size_t)i * g->sm + k, sizeof x);
            acc[i][0] = dot4(acc[i][0], x, w0);
            acc[i][1] = dot4(acc[i][1], x, w1);
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < mr; i++) {
        sums[i][0] = acc[i][0];
        sums[i][1] = acc[i][1];
    }
    tile8_out(mr, g, c, a, scale, (const vi(*)[2])sums, cols);
}

#define TILE8(mr) \
    case mr: tile8(mr, g, c, a, panel, cols); break;

static void gemm(const struct gemm *g, int row, int row_end, int col, int col_end)
{
    int tiles = (row_end - row + MR2 - 1) / MR2;

    for (int j = col; j < col_end; j += PANEL) {
        const float *panel = (const float *)g->b + (size_t)j * ((size_t)g->k + 2);
        int cols = col_end - j < PANEL ? col_end - j : PANEL;
        for (int t = 0; t < tiles; t++) {
            int from = row + (int)((long)(row_end - row) * t / tiles);
            int to = row + (int)((long)(row_end - row) * (t + 1) / tiles);
            float *c = g->c + (size_t)from * g->ldc + j;
            const float *a = g->a + (size_t)from * g->sm;
            switch (to - from) {
                /* clang-format off */
            TILE8(1) TILE8(2) TILE8(3) TILE8(4) TILE8(5) TILE8(6)
#ifdef WIDE
            TILE8(7) TILE8(8) TILE8(9) TILE8(10) TILE8(11) TILE8(12)
#endif
                /* clang-format on */
            }
        }
    }
}

/* One operand is read anew in every step, the other is a chain's own, so that no work is shared or left out. */
static float peak(int steps)
{
    volatile int32_t x = 0x01020301;
    vi acc[PEAK_CHAINS], w[PEAK_CHAINS], zero = { 0 };

#pragma GCC unroll 12
    for (int i = 0; i < PEAK_CHAINS; i++) acc[i] = w[i] = zero + x;
    for (; steps > 0; steps--) {
        int32_t a = x;
#pragma GCC unroll 12
        for (int i = 0; i < PEAK_CHAINS; i++) acc[i] = dot4(acc[i], a, w[i]);
    }
#pragma GCC unroll 12
    for (int i = 1; i < PEAK_CHAINS; i++) acc[0] += acc[i];
    return (float)acc[0][0];
}

/* out[n]: (k + 3) / 4 groups of four bytes, the scale, 4 bytes unused. */
void HOT(wz_quantise)(uint32_t *out, const float *x, size_t ldx, int k, int n)
{
    size_t groups = ((size_t)k + 3) / 4;

    for (int i = 0; i < n; i++, x += ldx, out += groups + 2) {
        uint8_t *__restrict__ q = (uint8_t *)out;
        struct vec16 top = vec16_of(0);
        for (size_t j = 0; j < (size_t)k; j += 16)
            for (size_t l = 0; l < VECS; l++) {
                vf v = load_in(x, j + l * W, (size_t)k, 0);
                top.v[l] = MAX(MAX(v, -v), top.v[l]);
            }
        float max = vec16_max(top), by = max > 0 && max < INFINITY ? 127 / max : 0, scale = max / 127;
        for (size_t j = 0; j < (size_t)k; j++) q[j] = (uint8_t)(128 + wz_int8_of(x[j], by));
        for (size_t j = (size_t)k; j < 4 * groups; j++) q[j] = 128;
        memcpy(out + groups, &scale, sizeof scale);
    }
}

void HOT(wz_pack_int8)(void *dst, const struct wz_weight *w, int panel)
{
    size_t in = (size_t)w->in, groups = (in + 3) / 4;
    float *scale = (float *)dst + groups * PANEL;
    int8_t *bytes = dst;

    assert(w->in <= 65536);
    memset(dst, 0, (groups + 2) * PANEL * sizeof(float));
    for (int j = 0; j < PANEL && panel * PANEL + j < w->out; j++) {
        const uint16_t *from = (const uint16_t *)w->data + (size_t)(panel * PANEL + j) * in;
        float max = 0;
        int32_t sum = 0;
        for (size_t k = 0; k < in; k++) { /* not fmaxf: it crashes gcc 12 for Arm */
            float size = fabsf(wz_bf16_to_f32(from[k]));
            max = size > max ? size : max;
        }
        float by = max > 0 && max < INFINITY ? 127 / max : 0;
        for (size_t k = 0; k < in; k++)
            sum += bytes[(k / 4 * PANEL + (size_t)j) * 4 + k % 4] = (int8_t)wz_int8_of(wz_bf16_to_f32(from[k]), by);
        scale[j] = max / 127;
        sum *= 128;
        memcpy(scale + PANEL + j, &sum, sizeof sum);
    }
}

const struct product HOT(wz_by_int8) = { WZ_INT8,          PANEL, 1,   1, 4, peak, gemm, HOT(wz_pack_int8),
                                         HOT(wz_quantise), NULL,  NULL };
