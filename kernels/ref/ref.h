/* ref: the definition. Plain loops, double sums, one thread. Other rows fill their table from it first. */
#ifndef WZ_REF_H
#define WZ_REF_H

#include "kernels/kernels.h"

void wz_ops_ref(struct wz_ops *ops);           /* every slot */
void wz_ops_ref_attention(struct wz_ops *ops); /* rope, cache, attention */
void wz_ops_ref_head(struct wz_ops *ops);

static inline float wz_weight_at(const struct wz_weight *w, size_t i)
{
    return w->type != WZ_F32 ? wz_bf16_to_f32(((const uint16_t *)w->data)[i]) : ((const float *)w->data)[i];
}

/* The other factor of a product with w: where the backend rounds, a bf16 matrix meets bf16. */
static inline double wz_factor(const struct wz_backend *be, const struct wz_weight *w, float x)
{
    return (double)(be->rounds && w->type == WZ_BF16 ? wz_bf16_to_f32(wz_f32_to_bf16(x)) : x);
}

#endif
