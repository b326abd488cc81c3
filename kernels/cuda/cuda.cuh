/* cuda: declarations shared by the files of the cuda backend. All work is queued in one stream, in order. */
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

/* How matrix products are computed, by numerics.fast. EXACT: own kernels, with the three properties of ops.h. FAST:
 * cuBLASLt, with the third only. Both use tensor cores for bf16 weights, and multiply f32 weights in f32. */
enum math { EXACT, FAST };

/* Scratch buffers on the device, each used by one op at a time. */
enum scratch_for { LOGITS, ROWS, SMALL, PARTIAL, WORK, SCRATCHES };

/* Device copies of host arrays; unchanged bytes are not copied again. */
enum mirror_of {
    PLACES,
    TILES,
    SEQUENCES,
    POSITIONS,
    FREQUENCIES,
    FREQUENCIES_LOCAL,
    IDS,
    TARGETS,
    VALUES,
    PICKS,
    MIRRORS
};

/* A cached bf16 copy of the n floats at x, valid until they are overwritten. Matrix rows whose length is not a multiple
 * of 8 are padded with zeros (row: that length, else 8). used: for replacing the least recently used. */
struct rounded {
    __nv_bfloat16 *p;
    size_t size;
    const float *x;
    size_t n;
    int row;
    unsigned used;
};

struct cuda {
    cudaStream_t stream;
    struct wz_device device;
    struct fast *fast;     /* private to fast.cu */
    struct region *region; /* private to graph.cu */
    bool notes, dry;       /* of the region's current pass: see wz_cuda_ask */
    enum math math;
    int processors, shared; /* SMs; most bytes of shared memory of a block */
    bool halves; /* products have asked for bf16 copies: kernels that write their inputs may write these too */
    unsigned uses;
    struct rounded half[2];
    struct {
        void *p;
        size_t size;
    } scratch[SCRATCHES];
    struct {
        void *device, *host;
        size_t size, cap;
        unsigned region;
    } mirror[MIRRORS];
};

extern "C" struct wz_cuda_plugin wz_cuda_plugin;

#define CHECK(call) wz_cuda_check(call, #call)
void wz_cuda_check(cudaError_t error, const char *call);
/* The current or latest op, for error messages. LAUNCH sets it to the calling function; ops whose launches are in other
 * functions set it themselves. */
extern const char *wz_cuda_doing;

static inline struct cuda *cuda_of(struct wz_backend *be) { return (struct cuda *)be->state; }

/* Device memory of at least `size` bytes: p, or a larger allocation that replaces it. */
void *wz_cuda_grow(struct wz_backend *be, void *p, size_t *have, size_t size);
void *wz_cuda_scratch(struct wz_backend *be, enum scratch_for what, size_t size);
const void *wz_cuda_mirror(struct wz_backend *be, enum mirror_of what, const void *host, size_t size);
void wz_cuda_download(struct wz_backend *be, void *host, const void *src, size_t n);

/* Called before any work is queued in the stream. Within a region it records the work (graph.cu) as `values`, which
 * identify it completely: first the function, then its arguments. False: a dry pass, nothing must be queued. Always
 * true outside of a region. */
void wz_cuda_note(struct wz_backend *be, const void *p, size_t n);
template <class... T> static bool wz_cuda_ask(struct wz_backend *be, T... values)
{
    auto note = [&](auto *value) {
#if __has_builtin(__builtin_clear_padding) /* without it a graph may be captured twice */
        __builtin_clear_padding(value);
#endif
        wz_cuda_note(be, value, sizeof *value);
    };

    if (cuda_of(be)->notes) (note(&values), ...);
    return !cuda_of(be)->dry;
}

template <class T> struct wz_cuda_value {
    using type = T;
}; /* argument types are deduced from the kernel alone */
template <class... P>
static bool wz_cuda_ask_kernel(struct wz_backend *be, void (*kernel)(P...), size_t blocks, size_t threads,
                               size_t shared, typename wz_cuda_value<P>::type... args)
{
    return wz_cuda_ask(be, kernel, blocks, threads, shared, args...);
}

/* Regions, as in struct wz_device. later: pinned memory for n downloaded bytes that are copied to `host` when the
 * region ends; `host` itself outside of a region, and where pinned memory is full. mirrored: a mirror is used in the
 * region, and whether its bytes changed. */
void wz_cuda_graph_open(struct wz_backend *be);
void wz_cuda_graph_close(struct wz_backend *be);
void wz_cuda_region(struct wz_backend *be, void (*body)(void *arg), void *arg);
void *wz_cuda_later(struct wz_backend *be, void *host, size_t n);
void wz_cuda_mirrored(struct wz_backend *be, unsigned *region, bool changed);

/* The bf16 copy of x[n, c], rows wz_cuda_pitch(c) apart, from the cache or made now; the copy returned before stays
 * valid. A kernel that writes x may write its copy too: into wz_cuda_half_reserve, announced by wz_cuda_half_made.
 * wz_cuda_wrote invalidates copies of [p, p + size) (p NULL: all); LAUNCH calls it, other writers must. */
const __nv_bfloat16 *wz_cuda_half(struct wz_backend *be, const float *x, int n, int c);
struct rounded *wz_cuda_half_reserve(struct wz_backend *be, size_t n);
void wz_cuda_half_made(struct wz_backend *be, struct rounded *half, const float *x, size_t n, int row);
void wz_cuda_wrote(struct wz_backend *be, const void *p, size_t size);

static inline size_t wz_cuda_pitch(int c) { return ((size_t)c + 7) / 8 * 8; }

/* Starts `blocks` blocks of a kernel, or nothing when there are none. */
#define LAUNCH(be, kernel, blocks, threads, shared, ...)                  \
    do {                                                                  \
        wz_cuda_doing = __func__;                                         \
        LAUNCH_KEEPING(be, kernel, blocks, threads, shared, __VA_ARGS__); \
        wz_cuda_wrote(be, NULL, 0);                                       \
    } while (0)

/* The same without invalidating bf16 copies: no array is written, or the caller calls wz_cuda_wrote. */
#define LAUNCH_KEEPING(be, kernel, blocks, threads, shared, ...)                                  \
    do {                                                                                          \
        size_t blocks_ = (size_t)(blocks);                                                        \
        if (blocks_ > 0 && wz_cuda_ask_kernel(be, kernel, blocks_, threads, shared, __VA_ARGS__)) \
            LAUNCH_ON(cuda_of(be)->stream, kernel, blocks_, threads, shared, __VA_ARGS__);        \
        wz_cuda_check(cudaGetLastError(), "launch");                                              \
    } while (0)

/* c[m,n] = or += sum_k a(m,k) b(k,n), with a(m,k) = a[m am + k ak] and b(k,n) = b[k bk + n bn]. One stride of each pair
 * is 1. Both operands are of `type`; for bf16 the other strides are multiples of 8, and the padding is zeros. */
struct product {
    float *c;
    const void *a, *b;
    size_t ldc, am, ak, bk, bn;
    int m, n, k;
    bool add;
    enum wz_type type;
};
void wz_cuda_product(struct wz_backend *be, const struct product *p);
int wz_cuda_fast_open(struct wz_backend *be, struct wz_err *err);
void wz_cuda_fast_close(struct wz_backend *be);
void wz_cuda_fast_product(struct wz_backend *be, const struct product *p);
/* A weight as products read it (packed or not); *pitch: elements between its rows. */
const void *wz_cuda_weight(const struct wz_weight *w, size_t *pitch);

void wz_cuda_hash(struct wz_backend *be, uint64_t *sums, const void *p, size_t pieces);
void wz_cuda_ops_vectors(struct wz_ops *ops);
void wz_cuda_ops_products(struct wz_ops *ops);
void wz_cuda_ops_attention(struct wz_ops *ops);
void wz_cuda_ops_attention_back(struct wz_ops *ops);
void wz_cuda_ops_head(struct wz_ops *ops);

/* ---- in kernels ------------------------------------------------------------------------------------------- */

/* Sum over a warp by a fixed tree, returned in every lane. */
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

/* Soft caps, as in ops.h; slope: of the capped value. */
INLINE float capped(float x, float cap) { return cap > 0 ? cap * tanhf(x / cap) : x; }

INLINE float cap_slope(float x, float cap) { return cap > 0 ? 1 - x / cap * (x / cap) : 1; }

INLINE float weight_at(const void *w, enum wz_type type, size_t i)
{
    return type == WZ_BF16 ? __bfloat162float(((const __nv_bfloat16 *)w)[i]) : ((const float *)w)[i];
}

#endif
