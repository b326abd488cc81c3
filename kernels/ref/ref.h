/* ref: the reference backend, which defines every op: plain loops, double sums, one thread. */
#ifndef WZ_REF_H
#define WZ_REF_H

#include <math.h>

#include "kernels/kernels.h"

void wz_ops_ref(struct wz_ops *ops);           /* every op */
void wz_ops_ref_attention(struct wz_ops *ops); /* rope, cache, attention */
void wz_ops_ref_head(struct wz_ops *ops);

static inline float wz_weight_at(const struct wz_weight *w, size_t i)
{
    return w->type != WZ_F32 ? wz_bf16_to_f32(((const uint16_t *)w->data)[i]) : ((const float *)w->data)[i];
}

static inline double wz_capped(double x, float cap) { return cap > 0 ? (double)cap * tanh(x / (double)cap) : x; }
static inline double wz_cap_slope(double capped, float cap)
{
    return cap > 0 ? 1 - capped / (double)cap * (capped / (double)cap) : 1;
}

/* The operand that is multiplied with w: rounded to bf16 for a bf16 weight, where the backend rounds (be->rounds). */
static inline double wz_factor(const struct wz_backend *be, const struct wz_weight *w, float x)
{
    return (double)(be->rounds && w->type == WZ_BF16 ? wz_bf16_to_f32(wz_f32_to_bf16(x)) : x);
}

/* c + x[0] w[at] + x[1] w[at + step] + .. , k products, in double or in the order amx. */
double wz_ref_sum(const struct wz_backend *be, const struct wz_weight *w, float c, const float *x, size_t at,
                  size_t step, int k);

/* ---- the order amx: amx.c --------------------------------------------------------------------------------- */

float wz_amx_add(float a, float b);          /* a + b, denormal operands and results made zeros */
float wz_amx_fma(float a, float b, float c); /* a b + c, likewise */
/* c + a[0] b[0] + a[sa] b[sb] + .. , k products of values rounded to bf16. b: floats or bf16, by its type. */
float wz_amx_sum(float c, const float *a, size_t sa, const void *b, enum wz_type type, size_t sb, int k);
/* head_back, with logits in doubles from `logits` */
typedef void wz_logits_fn(const struct wz_backend *be, double *z, const float *x, const struct wz_weight *w, double t);
void wz_amx_head_back(struct wz_backend *be, wz_logits_fn *logits, float *d_x, float *d_w, const float *x,
                      const struct wz_weight *w, const int *targets, const float *d_logp, const float *lse,
                      float temperature, int n);

#endif
