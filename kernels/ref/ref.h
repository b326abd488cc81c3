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

#endif
