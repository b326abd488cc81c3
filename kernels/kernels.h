/* kernels: maths on tensors. Opens a backend by name and checks shapes before each op. */
#ifndef WZ_KERNELS_H
#define WZ_KERNELS_H

#include "kernels/ops.h"

/* "ref": plain loops, double sums, one thread: the definition.  "cpu": fast.  "auto": the best that opens here.
 * NULL and a sentence that names the choices on error. threads <= 0: all cores this process may use. */
struct wz_backend *wz_backend_open(const char *name, int threads, struct wz_err *err);
void wz_backend_close(struct wz_backend *be);
const char *wz_backend_names(void);        /* "ref, cpu" */

static inline float wz_bf16_to_f32(uint16_t b)
{
    union { uint32_t u; float f; } x = { (uint32_t)b << 16 };

    return x.f;
}

/* Round to nearest even; NaN stays NaN. */
static inline uint16_t wz_f32_to_bf16(float f)
{
    union { float f; uint32_t u; } x = { f };

    if ((x.u & 0x7fffffff) > 0x7f800000) return (uint16_t)(x.u >> 16 | 0x40);
    return (uint16_t)((x.u + 0x7fff + (x.u >> 16 & 1)) >> 16);
}

#endif
