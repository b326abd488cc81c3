/* amx: the order in which Intel's tile instruction TDPBF16PS adds, written out: the definition of numerics.bf16=amx.
 *
 * A product with a bf16 weight is for each element a sum over k of a_k b_k, of bf16, in f32. k is padded with zeros to
 * a multiple of 32, and each 32 (one instruction) are added to what is there, from k = 0 on:
 *
 *   e = a_0 b_0 + a_2 b_2 + .. + a_30 b_30        o = a_1 b_1 + a_3 b_3 + .. + a_31 b_31        c = c + (e + o)
 *
 * e and o are chains of FMAs from 0 in ascending order; every FMA and every addition is rounded once, to nearest even.
 * Denormal operands and results are zeros of their sign, so 32 zeros turn a denormal c into a zero. c is 0 at first, or
 * what is stored where it is added to.
 *
 *   matmul, logits      k: the input's channels                back_x, head_back's d_x    k: the output's channels
 *   back_w              k: tokens, from the call's first on, so that calls may be cut at multiples of 32
 *   head_back's d_w     the same, but those 32 of which none has both a target and a gradient are left out */
#include "kernels/ref/ref.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

static float flushed(float x) { return fabsf(x) < FLT_MIN ? copysignf(0, x) : x; }

float wz_amx_add(float a, float b) { return flushed(flushed(a) + flushed(b)); } /* a denormal sum is exact */

/* A result is tiny if it is below the smallest normal number when rounded to 24 bits whatever its exponent, so near
 * there it is computed in a larger range too. */
float wz_amx_fma(float a, float b, float c)
{
    const float up = 0x1p60f;
    float r;

    a = flushed(a);
    b = flushed(b);
    c = flushed(c);
    r = fmaf(a, b, c);
    if (!(fabsf(r) <= 2 * FLT_MIN)) return r;
    float large = fmaf(a * up, b, c * up);
    return fabsf(large) >= FLT_MIN * up ? r : copysignf(0, large);
}

static float half(float x) { return wz_bf16_to_f32(wz_f32_to_bf16(x)); }

float wz_amx_sum(float c, const float *a, size_t sa, const void *b, enum wz_type type, size_t sb, int k)
{
    for (int at = 0; at < k; at += WZ_AMX_DEPTH) {
        float sum[2] = { 0, 0 }; /* even, odd */
        for (int i = at; i < at + WZ_AMX_DEPTH; i++) {
            size_t j = (size_t)i * sb;
            float x = i < k ? half(a[(size_t)i * sa]) : 0, y = 0;
            if (i < k) y = type == WZ_F32 ? half(((const float *)b)[j]) : wz_bf16_to_f32(((const uint16_t *)b)[j]);
            sum[i % 2] = wz_amx_fma(x, y, sum[i % 2]);
        }
        c = wz_amx_add(c, wz_amx_add(sum[0], sum[1]));
    }
    return c;
}

void wz_amx_head_back(struct wz_backend *be, wz_logits_fn *logits, float *d_x, float *d_w, const float *x,
                      const struct wz_weight *w, const int *targets, const float *d_logp, const float *lse,
                      float temperature, int n)
{
    size_t in = (size_t)w->in, out = (size_t)w->out;
    double t = (double)temperature, *z = wz_alloc(out * sizeof *z);
    float *g = wz_alloc(WZ_AMX_DEPTH * out * sizeof *g), *rows = wz_alloc(WZ_AMX_DEPTH * in * sizeof *rows);

    for (int at = 0; at < n; at += WZ_AMX_DEPTH) {
        int m = n - at < WZ_AMX_DEPTH ? n - at : WZ_AMX_DEPTH, any = 0;
        for (int i = 0; i < m; i++) {
            const int target = targets[at + i];
            const float d = target < 0 ? 0 : d_logp[at + i], *from = x + (size_t)(at + i) * in;
            float *to = d_x + (size_t)(at + i) * in;
            any += d != 0;
            logits(be, z, from, w, t);
            for (size_t j = 0; j < in; j++) rows[(size_t)i * in + j] = d != 0 ? from[j] : 0;
            for (size_t v = 0; v < out; v++)
                g[(size_t)i * out + v] =
                    d != 0 ? (float)((double)d * (((int)v == target) - exp(z[v] - (double)lse[at + i])) / t *
                                     wz_cap_slope(z[v] * t, w->cap))
                           : 0;
            for (size_t j = 0; j < in; j++)
                to[j] = wz_amx_sum(0, g + (size_t)i * out, 1, (const uint16_t *)w->data + j, WZ_BF16, in, w->out);
        }
        for (size_t v = 0; v < out && d_w && any; v++)
            for (size_t j = 0; j < in; j++)
                d_w[v * in + j] = wz_amx_sum(d_w[v * in + j], g + v, out, rows + j, WZ_F32, in, m);
    }
    free(z);
    free(g);
    free(rows);
}
