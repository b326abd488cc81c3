/* Private to model. */
#ifndef WZ_MODEL_INNER_H
#define WZ_MODEL_INNER_H

#include <math.h>

#include "model/model.h"
#include "store/store.h"

/* ---- config.c --------------------------------------------------------------------------------------------- */

int wz_config_hub(struct wz_config *config, const char *dir, struct wz_err *err);
int wz_config_gguf(struct wz_config *config, const struct wz_tensors *set, const char *path, struct wz_err *err);
/* config.json and generation_config.json into an existing folder. `dtype`: what the matrices are stored as; `more`:
 * keys of wz_config_kept, which are written as the source had them; NULL: none. */
int wz_config_save(const struct wz_config *config, const char *dir, enum wz_dtype dtype, const json_t *more,
                   struct wz_err *err);

/* ---- arch.c ----------------------------------------------------------------------------------------------- */

/* The row that config.json, or a GGUF's metadata, names; -1 where there is none, or a key is not known to be harmless.
 */
int wz_arch_hub(int *arch, const json_t *config, const char *path, struct wz_err *err);
int wz_arch_gguf(int *arch, const json_t *meta, const char *path, struct wz_err *err);
/* Numbers that follow from the others. */
void wz_arch_defaults(struct wz_config *c);
/* Whether the architecture reads that key of its own, and its value in config.json: NULL where not, or it is null. */
bool wz_arch_takes(const struct wz_config *c, const char *key);
const json_t *wz_arch_key(const struct wz_config *c, const json_t *config, const char *key);
extern const char wz_config_kept[];                  /* keys that are not read, but saved as they were */
bool wz_word_in(const char *list, const char *word); /* a list of words separated by spaces; NULL: of none */

/* ---- rope.c ----------------------------------------------------------------------------------------------- */

/* freq[D/2] of the config, scaling applied; local: of layers with a window. */
void wz_rope_freq(const struct wz_config *config, bool local, float *freq);

/* ---- adapter.c -------------------------------------------------------------------------------------------- */

/* The changes in an adapter's folder to the tensors list[n] of a model, which is borrowed: all is checked but that what
 * comes of it is finite. NULL and a message. */
struct wz_adapter;
struct wz_adapter *wz_adapter_open(const char *dir, const struct wz_config *config, const struct wz_param *list, int n,
                                   struct wz_err *err);
void wz_adapter_close(struct wz_adapter *adapter); /* accepts NULL */
/* The adapter's file if it changes tensor i, else NULL. Borrowed. */
const char *wz_adapter_file(const struct wz_adapter *adapter, int i);
/* Changes `rows` rows of tensor i, a vector being one, from row `row` on. */
void wz_adapter_merge(struct wz_adapter *adapter, struct wz_pool *pool, int i, int row, int rows, float *values);

/* ---- weights.c -------------------------------------------------------------------------------------------- */

/* The tensor index of a model: heap array of *n; *total: elements, padding included (each tensor begins on a multiple
 * of 16 elements). */
struct wz_param *wz_params_list(const struct wz_config *config, int *n, size_t *total);
static inline size_t wz_param_count(const struct wz_param *p)
{
    return (size_t)p->rows * (p->cols > 0 ? (size_t)p->cols : 1);
}
/* A layer's tensors in the order of the index, behind the embedding; an architecture leaves some out. */
enum layer_tensor {
    NORM1,
    Q,
    Q_BIAS,
    K,
    K_BIAS,
    V,
    V_BIAS,
    Q_NORM,
    K_NORM,
    O,
    AFTER1,
    NORM2,
    GATE,
    UP,
    DOWN,
    AFTER2,
    LAYER_TENSORS
};
/* That tensor of layer l; where the architecture has none, the one that comes next. */
const struct wz_param *wz_param_of(const struct wz_model *model, int l, enum layer_tensor tensor);
/* Elements [first, first + n) of tensor i of the index, as f32 on the host. put rounds to the type of the block, and
 * also stores the f32 values in the masters where this rank has them. */
void wz_param_get(const struct wz_model *model, int i, size_t first, size_t n, float *out);
void wz_param_put(struct wz_model *model, int i, size_t first, size_t n, const float *values);

/* ---- cache.c ---------------------------------------------------------------------------------------------- */

struct wz_cache {
    struct wz_backend *be;
    struct wz_kv *kv;                 /* [L] */
    char *block;                      /* every layer's k and v */
    int layers, pages, page, context; /* page: tokens; context: the longest sequence, in tokens, rounded up to pages */
    int *unused, n_unused;            /* stack of freed pages */
    int n_fresh;                      /* pages from here on were never allocated */
    int *uses;                        /* [pages] reference counts */
    uint64_t *version;                /* [pages] version of the weights that computed it (guarantee 6) */
};

/* ---- forward.c -------------------------------------------------------------------------------------------- */

/* Buffers of a forward of N <= max_rows tokens. With a tape the arrays marked L exist once per layer (x once more: the
 * input of layer l is x[l], its output x[l + 1]), else once (x twice: input and output alternate), so that one body
 * serves both. Outputs of norms and swiglu are not stored, nor are q and k before a norm of theirs: backward recomputes
 * them bit-exactly. With activation checkpointing (recompute) the tape is x alone, and backward runs wz_layer_forward
 * again for the rest of a layer: a token's bits depend on its sequence only, so they are the same.
 *
 * Rows are a stack: those of prefixes that are kept (wz_work_keep), `past` of them, lie below those of the last
 * forward, in the arrays that a backward reads and in ids, seq and pos. As many tokens come before each of its
 * sequences. */
struct wz_work {
    const struct wz_model *model;
    int max_rows;
    bool tape, recompute;
    void *block, *host; /* the memory that the pointers below are carved from: the backend's, the host's */

    float *x, *mid;       /* L [N,C] residual stream: at a layer's input, between attention and feed-forward */
    float *rstd1, *rstd2; /* L [N] */
    float *branch1, *branch2, *rstd3, *rstd4; /* L [N,C], [N] with norms after: their inputs; else NULL */
    float *rstd_q, *rstd_k;                   /* L [N,H], [N,K] with norms of q and k; else NULL */
    float *q, *att, *lse; /* L [N,H,D] queries after RoPE, attention's output; [N,H] its log-sum-exp */
    float *gate, *up;     /* L [N,F] */
    float *k, *v;         /* [N,K,D] */
    float *h, *act;       /* [N,C] a norm's output; [N,F] swiglu's */
    float *hidden, *rstd; /* [N,C] final norm's output; [N] */
    float *picked;        /* [N,C] gathered hidden states */
    float *d_x, *d_h, *d_q, *d_att, *d_k, *d_v, *d_gate, *d_up, *d_act; /* with a tape */
    float *d_raw;           /* [N,H,D] with norms of q and k: the gradient of q before its norm */
    float *d_table;         /* [V,C] with a tape, where the embedding is tied: its gradient from look-ups; else NULL */
    bool open;              /* there was a backward since the last wz_backward_end */
    float *past_k, *past_v; /* L [most_past,K,D] wz_work_share: what backwards have added to kept keys and values */
    int most_past;

    /* host */
    int *ids, *seq, *pos;   /* [N] */
    float *logp, *head_lse; /* [N] unused log-probabilities; the head's log-sum-exp at temperature head_t, if has_lse */
    bool *has_lse;
    float head_t;
    int *table, table_cap; /* page table of the last forward: [seqs, stride] */
    struct wz_rows batch;  /* the last forward */
    bool whole;            /* every sequence had `past` tokens before the last forward */
    int past, n_kept;
    struct wz_rows kept[WZ_KEPT]; /* outermost first */
    uint64_t version;             /* of the weights of the last forward */
};

/* The part for layer l of an L array with `width` floats per token. */
static inline float *wz_work_at(const struct wz_work *w, float *array, size_t width, int l)
{
    size_t first = w->tape && !w->recompute ? (size_t)l * (size_t)w->max_rows : 0;

    return array ? array + (first + (size_t)w->past) * width : NULL;
}
static inline float *wz_work_x(const struct wz_work *w, int l)
{
    size_t first = (size_t)(w->tape ? l : l & 1) * (size_t)w->max_rows;

    return w->x + (first + (size_t)w->past) * (size_t)w->model->config.dim;
}
/* Layer l's part of past_k or past_v, from the `from`-th row on. */
static inline float *wz_work_past(const struct wz_work *w, float *array, int l, int from)
{
    size_t width = (size_t)w->model->config.kv_heads * (size_t)w->model->config.head_dim;

    return array + ((size_t)l * (size_t)w->most_past + (size_t)from) * width;
}

/* Layer l of the last batch, from its input x[l]. again: recomputation for a backward, which does not need the output;
 * keys and values are in the cache already. */
void wz_layer_forward(struct wz_model *m, struct wz_cache *cache, struct wz_work *w, int l, bool again);

/* Its parts that a backward repeats. before: x normed into h, or x itself where there is no norm; project: the first
 * `count` of q, k and v, with biases. */
const float *wz_layer_before(struct wz_model *m, struct wz_work *w, const float *x, const float *norm, float *rstd);
void wz_layer_project(struct wz_model *m, const struct wz_layer *y, float *const to[3], const float *h, int count,
                      int n);
/* RMSNorm of q or k [n, heads, D] as the architecture has it; *rows vectors of *width channels. */
static inline void wz_qk_shape(const struct wz_config *c, int n, int heads, int *rows, int *width)
{
    bool each = wz_arch_of(c)->qk_norm == WZ_QK_HEAD;

    *rows = each ? n * heads : n;
    *width = each ? c->head_dim : heads * c->head_dim;
}
/* The last argument of attention, and the frequencies, of layer l. */
static inline struct wz_scores wz_layer_scores(const struct wz_config *c, int l)
{
    return (struct wz_scores){ c->score_cap, c->local[l] ? c->window : 0 };
}
static inline const float *wz_layer_freq(const struct wz_model *m, int l)
{
    return m->freq + (m->config.local[l] ? m->config.head_dim / 2 : 0);
}
static inline enum wz_act wz_act_of(const struct wz_config *c) { return wz_arch_of(c)->gelu ? WZ_GELU : WZ_SILU; }
static inline float wz_one_of(const struct wz_config *c) { return wz_arch_of(c)->one; }

/* The factor of layer l's queries that makes attention's 1 / sqrt(D) the config's, yarn's factors of q and k included;
 * 0: it is that. */
static inline float wz_query_scale(const struct wz_config *c, int l)
{
    float own = c->score_scale > 0 ? c->score_scale * sqrtf((float)c->head_dim) : 0;
    bool yarn = c->rope == WZ_ROPE_YARN && !c->unrotated[l] && !(c->local[l] && c->rope_local > 0);

    return yarn ? (own > 0 ? own : 1) * c->rope_attention * c->rope_attention : own;
}

#endif
