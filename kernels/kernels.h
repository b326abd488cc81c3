/* kernels: maths on tensors. Opens a backend by name and checks shapes before each op.
 *
 * Callers write wz_matmul(be, y, x, w, n, add): the wrapper asserts what can be checked without reading tensors and
 * calls the backend's op. Arguments are those of ops.h; n == 0 is allowed everywhere and does nothing. */
#ifndef WZ_KERNELS_H
#define WZ_KERNELS_H

#include <assert.h>
#include <stdlib.h>

#include "kernels/ops.h"

/* "ref": plain loops, double sums, one thread: the definition.  "cpu": fast.  "cuda": one NVIDIA GPU.  "auto": the
 * best that opens here. NULL and a message on error, which names the choices where there is no backend of that name.
 * threads <= 0: all cores this process may use. numerics NULL: the defaults. */
struct wz_backend *wz_backend_open(const char *name, int threads, const struct wz_numerics *numerics,
                                   struct wz_err *err);
void wz_backend_close(struct wz_backend *be); /* accepts NULL */
/* Names of the table of backends but auto, whether or not they open on this machine; NULL after the last. */
const char *wz_backend_name(int i);
/* For plans: a backend that stands for the named row (not auto), whether or not that opens here, and allocates nothing:
 * it counts what would be allocated. What is created on it can be destroyed, and nothing else. Errors as
 * wz_backend_open. */
struct wz_backend *wz_backend_counting(const char *name, const struct wz_numerics *numerics, struct wz_err *err);
struct wz_counted {
    const char *label;
    size_t bytes; /* as the allocator takes them */
    bool host;    /* in the host's memory, whatever the backend's is */
};
/* What was counted since the last call: *n rows, in order of their first allocation, until the next allocation. */
const struct wz_counted *wz_backend_counted(struct wz_backend *be, int *n);
/* Number of devices of this machine, and the bytes of memory of the one in use; 0: the backend uses host memory. */
int wz_backend_devices(struct wz_backend *be, size_t *total, size_t *unused);

/* x quantised to INT8; by is 127 / max |x| of its channel or token, or 0 where that is not finite. */
static inline int wz_int8_of(float x, float by)
{
    float q = __builtin_rintf(x * by);

    return q >= -127 && q <= 127 ? (int)q : 0;
}

/* The first of n numbers whose size is not below `limit` (INFINITY: that is not finite), or n. */
static inline size_t wz_first_unfit(const float *x, size_t n, float limit)
{
    bool unfit = false;
    size_t i = 0;

    for (size_t k = 0; k < n; k++) unfit |= !(__builtin_fabsf(x[k]) < limit); /* without a branch: vectorised */
    while (unfit && __builtin_fabsf(x[i]) < limit) i++;
    return unfit ? i : n;
}

/* Whether products with weights of `type` are summed in the order of ref/amx.c. */
static inline bool wz_in_amx(const struct wz_backend *be, enum wz_type type) { return be->amx && type == WZ_BF16; }

/* Tokens that matmul_back_w and head_back add in one step for a weight of `type`. */
static inline int wz_grain(const struct wz_backend *be, enum wz_type type)
{
    return wz_in_amx(be, type) ? WZ_AMX_DEPTH : be->grain;
}

/* The type named "f32", "bf16" or "int8" by an option already checked. */
static inline enum wz_type wz_type_named(const char *name)
{
    return name[0] == 'i' ? WZ_INT8 : name[0] == 'b' ? WZ_BF16 : WZ_F32;
}

/* ---- shards ----------------------------------------------------------------------------------------------- */

/* How an array of n elements is sharded over a group of `size` ranks (a power of two): whole blocks of WZ_BLOCK
 * elements, the same number for each, and the remainder for the last. Shards are assigned to ranks in the order in
 * which the reduce-scatter tree of comm leaves them (bit-reversed). */
struct wz_shard {
    size_t at, n;
};
struct wz_share {
    int me, size; /* rank in the group, and the group's size */
};

/* First element of shard s; that of shard `size` is the end of the array. */
static inline size_t wz_shard_at(int s, int size, size_t n)
{
    return s == size ? n : (size_t)s * (n / WZ_BLOCK / (size_t)size) * WZ_BLOCK;
}

/* The rank that owns shard 0, 1, .. in order of the array. */
static inline int wz_shard_owner(int shard, int size)
{
    int member = 0;

    for (; size > 1; size /= 2, shard /= 2) member = 2 * member + shard % 2;
    return member;
}

static inline struct wz_shard wz_shard_of(int member, int size, size_t n)
{
    int s = wz_shard_owner(member, size); /* its own inverse */
    size_t at = wz_shard_at(s, size, n);

    return (struct wz_shard){ at, wz_shard_at(s + 1, size, n) - at };
}

/* ---- the cpu row's own choice ----------------------------------------------------------------------------- */

/* Which instruction set computes what, of those that give the bits of numerics.isa auto (kernels/cpu/choose.c), and
 * what was tried, measured on one thread: n rates, and the most the processor can do in registers (0: not known). */
enum { WZ_TUNED = 11, WZ_TUNED_ISAS = 4 };
struct wz_tuned {
    const char *op, *isa, *unit, *tried[WZ_TUNED_ISAS]; /* "bf16 many rows", "avx512", "GFLOP/s" */
    double rate[WZ_TUNED_ISAS], peak;
    int n; /* 0: not measured now */
};
/* Has this machine Intel's AMX with bf16 and int8, and does its system let this process use it? */
bool wz_cpu_tiles(void);
/* anew: measures again, whatever the user's cache has, and keeps it. Returns where the choice is from. */
const char *wz_cpu_tuned(struct wz_tuned list[WZ_TUNED], bool anew);

/* ---- conditions that the wrappers assert ------------------------------------------------------------------ */

static inline bool wz_weight_fits(const struct wz_weight *w)
{
    return w && w->data && w->out > 0 && w->in > 0 && (w->type == WZ_F32 || w->type == WZ_BF16);
}

static inline bool wz_weight_multiplies(const struct wz_backend *be, const struct wz_weight *w)
{
    return w && w->data && w->out > 0 && w->in > 0 &&
           (w->type == WZ_INT8 ? be->int8 && w->in <= 65536 : wz_weight_fits(w));
}

static inline bool wz_ids_fit(const int *ids, int n, int lowest, int end)
{
    for (int i = 0; i < n; i++)
        if (ids[i] < lowest || ids[i] >= end) return false;
    return true;
}

/* Every token is of a known sequence, and the page of its position lies in the table and in the cache. */
static inline bool wz_rows_fit(const struct wz_rows *r, const struct wz_kv *kv)
{
    if (r->n < 0 || kv->pages <= 0 || kv->page <= 0 || kv->heads <= 0 || kv->head_dim <= 0) return false;
    for (int i = 0; i < r->n; i++) {
        if (r->seq[i] < 0 || r->seq[i] >= r->seqs || r->pos[i] < 0 || r->pos[i] / kv->page >= r->stride) return false;
        int page = r->table[(size_t)r->seq[i] * (size_t)r->stride + (size_t)(r->pos[i] / kv->page)];
        if (page < 0 || page >= kv->pages) return false;
    }
    return true;
}

/* Tokens of each sequence are consecutive, from position `past` (0: sequences are whole). */
static inline bool wz_rows_from(const struct wz_rows *r, int past)
{
    for (int i = 0; i < r->n; i++)
        if (r->pos[i] != (i > 0 && r->seq[i] == r->seq[i - 1] ? r->pos[i - 1] + 1 : past)) return false;
    return true;
}

/* ---- memory ----------------------------------------------------------------------------------------------- */

/* Memory of the backend, zeroed; dies when there is none. label says what for, as plans name it: static text. */
static inline void *wz_backend_alloc_for(struct wz_backend *be, size_t size, const char *label)
{
    be->label = label;
    return be->ops.alloc(be, size);
}

static inline void *wz_backend_alloc(struct wz_backend *be, size_t size)
{
    return wz_backend_alloc_for(be, size, "other");
}

void *wz_count(struct wz_backend *be, size_t size, const char *label, bool host); /* of a counting backend */

/* wz_alloc and free, for what of the host's memory a plan should show. */
static inline void *wz_host_alloc(struct wz_backend *be, size_t size, const char *label)
{
    return be->counted ? wz_count(be, size, label, true) : wz_alloc(size);
}

static inline void wz_host_free(struct wz_backend *be, void *p)
{
    if (!be->counted) free(p);
}

static inline void wz_backend_free(struct wz_backend *be, void *p) { be->ops.free(be, p); }

static inline void wz_upload(struct wz_backend *be, void *dst, const void *host, size_t n)
{
    be->ops.upload(be, dst, host, n);
}

static inline void wz_download(struct wz_backend *be, void *host, const void *src, size_t n)
{
    be->ops.download(be, host, src, n);
}

static inline void wz_zero(struct wz_backend *be, void *p, size_t n) { be->ops.zero(be, p, n); }

static inline void wz_pack(struct wz_backend *be, struct wz_weight *w)
{
    assert(wz_weight_multiplies(be, w));
    be->ops.pack(be, w);
}

static inline void wz_unpack(struct wz_backend *be, struct wz_weight *w) { be->ops.unpack(be, w); }

/* Calls body(arg), which calls ops, as one CUDA graph where the backend can: see struct wz_device. */
static inline void wz_region(struct wz_backend *be, void (*body)(void *arg), void *arg)
{
    if (be->device) be->device->region(be, body, arg);
    else body(arg);
}

/* ---- layers ----------------------------------------------------------------------------------------------- */

static inline void wz_embed(struct wz_backend *be, float *out, const struct wz_weight *table, const int *ids, int n)
{
    assert(n >= 0 && wz_weight_fits(table) && wz_ids_fit(ids, n, 0, table->out));
    be->ops.embed(be, out, table, ids, n);
}

static inline void wz_embed_back(struct wz_backend *be, float *d_table, const float *d_out, const int *ids, int n,
                                 int c)
{
    assert(n >= 0 && c > 0 && wz_ids_fit(ids, n, 0, INT32_MAX));
    be->ops.embed_back(be, d_table, d_out, ids, n, c);
}

static inline void wz_rmsnorm(struct wz_backend *be, float *out, float *rstd, const float *x, const float *w, int n,
                              int c, float eps, float one)
{
    assert(n >= 0 && c > 0 && eps >= 0);
    be->ops.rmsnorm(be, out, rstd, x, w, n, c, eps, one);
}

static inline void wz_rmsnorm_back(struct wz_backend *be, float *d_x, float *d_w, const float *d_out, const float *x,
                                   const float *w, const float *rstd, int n, int c, float one)
{
    assert(n >= 0 && c > 0 && d_x != d_out);
    be->ops.rmsnorm_back(be, d_x, d_w, d_out, x, w, rstd, n, c, one);
}

static inline void wz_matmul(struct wz_backend *be, float *y, const float *x, const struct wz_weight *w, int n,
                             bool add)
{
    assert(n >= 0 && wz_weight_multiplies(be, w) && y != x);
    be->ops.matmul(be, y, x, w, n, add);
}

static inline void wz_matmuls(struct wz_backend *be, float *const *y, const float *x, const struct wz_weight *const *w,
                              int count, int n)
{
    for (int i = 0; i < count; i++)
        assert(n >= 0 && wz_weight_multiplies(be, w[i]) && w[i]->in == w[0]->in && y[i] != x);
    be->ops.matmuls(be, y, x, w, count, n);
}

static inline void wz_matmul_back_x(struct wz_backend *be, float *d_x, const float *d_y, const struct wz_weight *w,
                                    int n, bool add)
{
    assert(n >= 0 && wz_weight_fits(w) && d_x != d_y);
    be->ops.matmul_back_x(be, d_x, d_y, w, n, add);
}

static inline void wz_matmul_back_w(struct wz_backend *be, float *d_w, const float *d_y, const float *x,
                                    const struct wz_weight *w, int n)
{
    assert(n >= 0 && wz_weight_fits(w) && d_w != d_y && d_w != x);
    be->ops.matmul_back_w(be, d_w, d_y, x, w, n);
}

static inline void wz_bias(struct wz_backend *be, float *y, const float *b, int n, int c)
{
    assert(n >= 0 && c > 0 && y != b);
    be->ops.bias(be, y, b, n, c);
}

static inline void wz_bias_back(struct wz_backend *be, float *d_b, const float *d_y, int n, int c)
{
    assert(n >= 0 && c > 0 && d_b != d_y);
    be->ops.bias_back(be, d_b, d_y, n, c);
}

static inline void wz_rope(struct wz_backend *be, float *x, const int *pos, const float *freq, int n, int heads, int d,
                           int sign)
{
    assert(n >= 0 && heads > 0 && d > 0 && d % 2 == 0 && (sign == 1 || sign == -1));
    be->ops.rope(be, x, pos, freq, n, heads, d, sign);
}

static inline void wz_swiglu(struct wz_backend *be, float *out, const float *gate, const float *up, size_t n,
                             enum wz_act act)
{
    be->ops.swiglu(be, out, gate, up, n, act);
}

/* d_gate and d_up may be the same memory as gate and up: each element is read before it is written. */
static inline void wz_swiglu_back(struct wz_backend *be, float *d_gate, float *d_up, const float *d_out,
                                  const float *gate, const float *up, size_t n, enum wz_act act)
{
    assert(d_gate != d_up);
    be->ops.swiglu_back(be, d_gate, d_up, d_out, gate, up, n, act);
}

/* ---- cache and attention ---------------------------------------------------------------------------------- */

static inline void wz_kv_write(struct wz_backend *be, const struct wz_kv *kv, const float *k, const float *v,
                               const struct wz_rows *rows)
{
    assert(wz_rows_fit(rows, kv));
    be->ops.kv_write(be, kv, k, v, rows);
}

static inline void wz_kv_copy(struct wz_backend *be, const struct wz_kv *kv, int dst, int src, int count)
{
    assert(dst != src && dst >= 0 && dst < kv->pages && src >= 0 && src < kv->pages && count >= 0 && count <= kv->page);
    be->ops.kv_copy(be, kv, dst, src, count);
}

static inline void wz_attention(struct wz_backend *be, float *out, float *lse, const float *q, const struct wz_kv *kv,
                                const struct wz_rows *rows, int heads, struct wz_scores scores)
{
    assert(wz_rows_fit(rows, kv) && heads > 0 && heads % kv->heads == 0 && out != q);
    assert(scores.cap >= 0 && scores.window >= 0);
    be->ops.attention(be, out, lse, q, kv, rows, heads, scores);
}

static inline void wz_attention_back(struct wz_backend *be, float *d_q, float *d_k, float *d_v, struct wz_past past,
                                     const float *d_out, const float *out, const float *lse, const float *q,
                                     const struct wz_kv *kv, const struct wz_rows *rows, int heads,
                                     struct wz_scores scores)
{
    assert(wz_rows_fit(rows, kv) && wz_rows_from(rows, past.n) && heads > 0 && heads % kv->heads == 0);
    be->ops.attention_back(be, d_q, d_k, d_v, past, d_out, out, lse, q, kv, rows, heads, scores);
}

/* ---- head ------------------------------------------------------------------------------------------------- */

static inline void wz_head_logprob(struct wz_backend *be, float *logp, float *lse, float *entropy, const float *x,
                                   const struct wz_weight *w, const int *targets, float temperature, int n)
{
    assert(n >= 0 && wz_weight_fits(w) && temperature > 0 && wz_ids_fit(targets, n, -1, w->out));
    be->ops.head_logprob(be, logp, lse, entropy, x, w, targets, temperature, n);
}

static inline void wz_head_sample(struct wz_backend *be, int *token, float *logp, const float *x,
                                  const struct wz_weight *w, const struct wz_pick *picks, int n)
{
    assert(n >= 0 && wz_weight_fits(w));
    for (int i = 0; i < n; i++)
        assert(picks[i].temperature >= 0 && picks[i].top_k >= 0 && picks[i].top_p > 0 && picks[i].min_p >= 0 &&
               picks[i].u >= 0 && picks[i].u < 1);
    be->ops.head_sample(be, token, logp, x, w, picks, n);
}

static inline void wz_head_logits(struct wz_backend *be, float *out, const float *x, const struct wz_weight *w, int n)
{
    assert(n >= 0 && wz_weight_fits(w));
    be->ops.head_logits(be, out, x, w, n);
}

static inline void wz_head_back(struct wz_backend *be, float *d_x, float *d_w, const float *x,
                                const struct wz_weight *w, const int *targets, const float *d_logp, const float *lse,
                                float temperature, int n)
{
    assert(n >= 0 && wz_weight_fits(w) && temperature > 0 && wz_ids_fit(targets, n, -1, w->out) && d_x != x);
    be->ops.head_back(be, d_x, d_w, x, w, targets, d_logp, lse, temperature, n);
}

/* ---- vectors ---------------------------------------------------------------------------------------------- */

static inline void wz_cast(struct wz_backend *be, uint16_t *dst, const float *src, size_t n)
{
    be->ops.cast(be, dst, src, n);
}

static inline void wz_add(struct wz_backend *be, float *dst, const float *src, size_t n)
{
    be->ops.add(be, dst, src, n);
}

static inline void wz_scale(struct wz_backend *be, float *out, const float *x, float by, size_t n)
{
    be->ops.scale(be, out, x, by, n);
}

static inline void wz_squares(struct wz_backend *be, double *sums, const float *x, size_t n)
{
    be->ops.squares(be, sums, x, n);
}

static inline void wz_adamw(struct wz_backend *be, float *w, const float *g, float *m, float *v, size_t n, float lr,
                            float b1, float b2, float eps, float decay, float scale, int step)
{
    assert(step >= 1 && b1 >= 0 && b1 < 1 && b2 >= 0 && b2 < 1);
    be->ops.adamw(be, w, g, m, v, n, lr, b1, b2, eps, decay, scale, step);
}

#endif
