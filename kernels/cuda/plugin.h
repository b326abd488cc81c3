/* plugin: what the module with the cuda row shows to the program that opens it with dlopen.
 *
 * The module is built where nvcc is and opened where a GPU may be, so the program itself needs nothing of CUDA. It finds one
 * symbol, wz_cuda_plugin, and lends the module its way to give up. */
#ifndef WZ_CUDA_PLUGIN_H
#define WZ_CUDA_PLUGIN_H

#include "kernels/ops.h"

/* What pack() makes of a matrix where products are in bf16: a copy of one that is not. */
static inline size_t wz_cuda_packed(const struct wz_weight *w)
{
    return w->type == WZ_BF16 ? 0 : 2 * (size_t)w->out * (size_t)w->in;
}

struct wz_cuda_plugin {
    size_t ops, weight, backend;                       /* sizes of struct wz_ops, wz_weight and wz_backend it was built with */
    int (*open)(struct wz_backend *be, struct wz_err *err);
    void (*close)(struct wz_backend *be);
    int (*devices)(struct wz_backend *be, size_t *total, size_t *unused);
    void (*die)(const char *fmt, ...);                 /* the program's wz_die, set before open */
};

#endif
