/* plugin: what the module with the cuda row shows to the program that opens it with dlopen.
 *
 * The module is built where nvcc is and opened where a GPU may be, so the program itself needs nothing of CUDA. It finds one
 * symbol, wz_cuda_plugin, and lends the module its way to give up. */
#ifndef WZ_CUDA_PLUGIN_H
#define WZ_CUDA_PLUGIN_H

#include "kernels/ops.h"

struct wz_cuda_plugin {
    size_t ops, weight, backend;                       /* sizes of struct wz_ops, wz_weight and wz_backend it was built with */
    int (*open)(struct wz_backend *be, struct wz_err *err);
    void (*close)(struct wz_backend *be);
    void (*die)(const char *fmt, ...);                 /* the program's wz_die, set before open */
};

#endif
