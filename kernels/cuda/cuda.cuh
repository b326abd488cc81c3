/* cuda: what the files of this row share. One stream, in which everything happens in the order of the calls. */
#ifndef WZ_CUDA_H
#define WZ_CUDA_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/compat.cuh"

#define _Noreturn [[noreturn]]
extern "C" {
#include "kernels/cuda/plugin.h"
}
#undef _Noreturn

/* How products are made. EXACT: own kernels, which keep the promises of ops.h. BLAS: cuBLAS in f32; BF16: cuBLAS on bf16 copies
 * that pack() makes. The last two keep only the third promise. */
enum math { EXACT, BLAS, BF16 };

/* Device memory of which an op makes use until it returns: what for. */
enum scratch_for { LOGITS, ROWS, SMALL, PARTIAL, HALF, SCRATCHES };

/* Device copies of host arrays; the same bytes again are not sent again. */
enum mirror_of { PLACES, POSITIONS, FREQUENCIES, IDS, TARGETS, VALUES, MIRRORS };

struct cuda {
    cudaStream_t stream;
    struct wz_device device;
    cublasHandle_t blas;
    enum math math;
    int processors;
    struct { void *p; size_t size; } scratch[SCRATCHES];
    struct { void *device, *host; size_t size, room; } mirror[MIRRORS];
};

extern "C" struct wz_cuda_plugin wz_cuda_plugin;

#define CHECK(call) wz_cuda_check(call, #call)
void wz_cuda_check(cudaError_t error, const char *call);

static inline struct cuda *cuda_of(struct wz_backend *be)
{
    return (struct cuda *)be->state;
}

void *wz_cuda_scratch(struct wz_backend *be, enum scratch_for what, size_t size);
const void *wz_cuda_mirror(struct wz_backend *be, enum mirror_of what, const void *host, size_t size);
void wz_cuda_download(struct wz_backend *be, void *host, const void *src, size_t n);

/* Starts `blocks` blocks of a kernel, or nothing when there are none. */
#define LAUNCH(be, kernel, blocks, threads, shared, ...)                                                                       \
    do {                                                                                                                       \
        size_t blocks_ = (size_t)(blocks);                                                                                     \
        if (blocks_ > 0) LAUNCH_ON(cuda_of(be)->stream, kernel, blocks_, threads, shared, __VA_ARGS__);                        \
        CHECK(cudaGetLastError());                                                                                             \
    } while (0)

/* c[m,n] = or += sum_k a(m,k) b(k,n), a at a[m am + k ak], b likewise; of each pair of steps one is 1. */
struct product {
    float *c;
    const float *a;
    const void *b;
    size_t ldc, am, ak, bk, bn;
    int m, n, k;
    bool add;
    enum wz_type type;                                 /* of b */
};
void wz_cuda_product(struct wz_backend *be, const struct product *p);
/* y[n,out] = x W^T; x rows close together. */
struct product wz_cuda_forward(float *y, size_t ldy, const float *x, const struct wz_weight *w, int n, bool add);

void wz_cuda_ops_vectors(struct wz_ops *ops);
void wz_cuda_ops_products(struct wz_ops *ops);
void wz_cuda_ops_attention(struct wz_ops *ops);
void wz_cuda_ops_attention_back(struct wz_ops *ops);
void wz_cuda_ops_head(struct wz_ops *ops);

/* ---- in kernels ------------------------------------------------------------------------------------------------ */

/* The sum over a warp by a fixed tree, in every lane. */
template <class T> INLINE T warp_sum(T v)
{
    for (int i = 16; i > 0; i /= 2) v += __shfl_xor_sync(~0u, v, i);
    return v;
}

INLINE float warp_max(float v)
{
    for (int i = 16; i > 0; i /= 2) v = fmaxf(v, __shfl_xor_sync(~0u, v, i));
    return v;
}

INLINE float weight_at(const void *w, enum wz_type type, size_t i)
{
    return type == WZ_BF16 ? __bfloat162float(((const __nv_bfloat16 *)w)[i]) : ((const float *)w)[i];
}

#endif
