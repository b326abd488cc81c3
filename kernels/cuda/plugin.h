/* plugin: the interface between the program and the shared library with the cuda backend, which it opens with dlopen.
 *
 * The library is built where nvcc is found and loaded where a GPU may be, so the program itself does not link CUDA. It
 * exports one symbol, wz_cuda_plugin; the program sets `die` in it. */
#ifndef WZ_CUDA_PLUGIN_H
#define WZ_CUDA_PLUGIN_H

#include "kernels/ops.h"

/* Bytes that pack() allocates: 0, since products read weights as they are, except for bf16 rows that are not 16-byte
 * aligned: these are padded. */
static inline size_t wz_cuda_packed(const struct wz_backend *be, const struct wz_weight *w)
{
    if (w->type != WZ_BF16 || (w->in % 8 == 0 && (size_t)w->data % 16 == 0)) return 0;
    return (size_t)w->out * (((size_t)w->in + 7) / 8 * 8) * 2;
}

struct wz_cuda_plugin {
    size_t ops, weight, backend, device; /* sizes of struct wz_ops, wz_weight, .. it was built with */
    int (*open)(struct wz_backend *be, struct wz_err *err);
    void (*close)(struct wz_backend *be);
    int (*devices)(struct wz_backend *be, size_t *total, size_t *unused);
    void (*die)(const char *fmt, ...); /* the program's wz_die, set before open */
};

#endif
