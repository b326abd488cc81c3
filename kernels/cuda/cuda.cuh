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

/* How products are made, by numerics.fast. EXACT: own kernels, which keep the promises of ops.h. FAST: cuBLASLt,
 * which keeps only the third. Either multiplies bf16 matrices on tensor cores and f32 ones in f32. */
enum math { EXACT, FAST };

/* Device memory of which an op makes use until it returns: what for. */
enum scratch_for { LOGITS, ROWS, SMALL, PARTIAL, WORK, SCRATCHES };

/* Device copies of host arrays; the same bytes again are not sent again. */
enum mirror_of { PLACES, TILES, POSITIONS, FREQUENCIES, IDS, TARGETS, VALUES, PICKS, MIRRORS };

/* A bf16 copy of `n` floats from x on, until something is written to them. Rows whose size is not a multiple of 8
 * end in zeros up to the next one (row: that size, else 8). */
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
    struct fast *fast;     /* fast.cu's own */
    struct region *region; /* graph.cu's own */
    bool notes, dry;       /* of the region's pass under way: see wz_cuda_ask */
    enum math math;
    int processors, shared; /* shared: bytes that a block may have of it */
    bool halves;            /* products have asked for copies: who writes what they read may leave some */
    unsigned uses;
    struct rounded half[2];
    struct {
        void *p;
        size_t size;
    } scratch[SCRATCHES];
    struct {
        void *device, *host;
        size_t size, room;
        unsigned region;
    } mirror[MIRRORS];
};

extern "C" struct wz_cuda_plugin wz_cuda_plugin;

#define CHECK(call) wz_cuda_check(call, #call)
void wz_cuda_check(cudaError_t error, const char *call);
/* The op under way, or the one before, for the sentence with which it ends. LAUNCH notes the function it stands in;
 * ops that leave their launches to others note themselves. */
extern const char *wz_cuda_doing;

static inline struct cuda *cuda_of(struct wz_backend *be) { return (struct cuda *)be->state; }

/* Memory of at least `size` bytes: p, or more in its place. */
void *wz_cuda_grow(struct wz_backend *be, void *p, size_t *have, size_t size);
void *wz_cuda_scratch(struct wz_backend *be, enum scratch_for what, size_t size);
const void *wz_cuda_mirror(struct wz_backend *be, enum mirror_of what, const void *host, size_t size);
void wz_cuda_download(struct wz_backend *be, void *host, const void *src, size_t n);

/* Within a region notes what is about to be asked of the stream, by values that decide all that it will do, the
 * first of which says what it is. False: it must not be asked. Outside of a region always true. */
void wz_cuda_note(struct wz_backend *be, const void *p, size_t n);
template <class... T> static bool wz_cuda_ask(struct wz_backend *be, T... values)
{
    auto note = [&](auto *value) {
#if __has_builtin(__builtin_clear_padding) /* or else a graph may be made twice */
        __builtin_clear_padding(value);
#endif
        wz_cuda_note(be, value, sizeof *value);
    };

    if (cuda_of(be)->notes) (note(&values), ...);
    return !cuda_of(be)->dry;
}

template <class T> struct wz_cuda_value {
    using type = T;
}; /* so that only the kernel says what its arguments are */
template <class... P>
static bool wz_cuda_ask_kernel(struct wz_backend *be, void (*kernel)(P...), size_t blocks, size_t threads,
                               size_t shared, typename wz_cuda_value<P>::type... args)
{
    return wz_cuda_ask(be, kernel, blocks, threads, shared, args...);
}

/* Regions, as struct wz_device says. later: where in pinned memory n bytes go until the region ends and they are
 * copied to `host`; host itself outside of one, and where there is no room. mirrored: the region's mirror has other
 * bytes than before. */
void wz_cuda_graph_open(struct wz_backend *be);
void wz_cuda_graph_close(struct wz_backend *be);
void wz_cuda_region(struct wz_backend *be, void (*body)(void *arg), void *arg);
void *wz_cuda_later(struct wz_backend *be, void *host, size_t n);
void wz_cuda_mirrored(struct wz_backend *be, unsigned *region, bool changed);

/* The bf16 copy of x[n, c], its rows wz_cuda_pitch(c) apart, made unless it is there; the one asked for before stays.
 * wz_cuda_half_room is where to write one, and wz_cuda_half_made says that it was written. wz_cuda_wrote: copies of
 * what lies in [p, p + size) are good no more (p NULL: all); whoever writes to arrays other than by LAUNCH calls it. */
const __nv_bfloat16 *wz_cuda_half(struct wz_backend *be, const float *x, int n, int c);
struct rounded *wz_cuda_half_room(struct wz_backend *be, size_t n);
void wz_cuda_half_made(struct wz_backend *be, struct rounded *half, const float *x, size_t n, int row);
void wz_cuda_wrote(struct wz_backend *be, const void *p, size_t size);

static inline size_t wz_type_bytes(enum wz_type type) { return type == WZ_BF16 ? 2 : 4; }

static inline size_t wz_cuda_pitch(int c) { return ((size_t)c + 7) / 8 * 8; }

/* Starts `blocks` blocks of a kernel, or nothing when there are none. */
#define LAUNCH(be, kernel, blocks, threads, shared, ...)                  \
    do {                                                                  \
        wz_cuda_doing = __func__;                                         \
        LAUNCH_KEEPING(be, kernel, blocks, threads, shared, __VA_ARGS__); \
        wz_cuda_wrote(be, NULL, 0);                                       \
    } while (0)

/* The same where no array is written, or the caller tells wz_cuda_wrote. */
#define LAUNCH_KEEPING(be, kernel, blocks, threads, shared, ...)                                  \
    do {                                                                                          \
        size_t blocks_ = (size_t)(blocks);                                                        \
        if (blocks_ > 0 && wz_cuda_ask_kernel(be, kernel, blocks_, threads, shared, __VA_ARGS__)) \
            LAUNCH_ON(cuda_of(be)->stream, kernel, blocks_, threads, shared, __VA_ARGS__);        \
        wz_cuda_check(cudaGetLastError(), "launch");                                              \
    } while (0)

/* c[m,n] = or += sum_k a(m,k) b(k,n), a at a[m am + k ak], b likewise; of each pair of steps one is 1. Both of
 * `type`; where it is bf16, the other steps are multiples of 8 and what they jump over is zeros. */
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
/* A weight as products read it; *pitch: the step between its rows. */
const void *wz_cuda_weight(const struct wz_weight *w, size_t *pitch);

void wz_cuda_hash(struct wz_backend *be, uint64_t *sums, const void *p, size_t pieces);
void wz_cuda_ops_vectors(struct wz_ops *ops);
void wz_cuda_ops_products(struct wz_ops *ops);
void wz_cuda_ops_attention(struct wz_ops *ops);
void wz_cuda_ops_attention_back(struct wz_ops *ops);
void wz_cuda_ops_head(struct wz_ops *ops);

/* ---- in kernels ------------------------------------------------------------------------------------------- */

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
