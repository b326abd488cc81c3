/* What the files of the model share and nobody else needs. */
#ifndef WZ_MODEL_INNER_H
#define WZ_MODEL_INNER_H

#include "model/model.h"
#include "store/store.h"

/* ---- config.c --------------------------------------------------------------------------------------------- */

int wz_config_hub(struct wz_config *config, const char *dir, struct wz_err *err);
int wz_config_gguf(struct wz_config *config, const struct wz_tensors *set, const char *path, struct wz_err *err);
/* config.json and generation_config.json into an existing folder. `dtype`: what the matrices are stored as. */
int wz_config_save(const struct wz_config *config, const char *dir, enum wz_dtype dtype, struct wz_err *err);

/* ---- rope.c ----------------------------------------------------------------------------------------------- */

/* freq[D/2] of the config, scaling applied. */
void wz_rope_freq(const struct wz_config *config, float *freq);

/* ---- weights.c -------------------------------------------------------------------------------------------- */

/* The walk over a model's tensors: heap array of *n, elements in all in *total (each begins on a multiple of 16). */
struct wz_param *wz_params_list(const struct wz_config *config, int *n, size_t *total);
static inline size_t wz_param_count(const struct wz_param *p)
{
    return (size_t)p->rows * (p->cols > 0 ? (size_t)p->cols : 1);
}
/* Where a layer's tensors stand in the walk: layer l's begin at 1 + l * WALK, behind the embedding. */
enum walk { NORM1, Q, K, V, O, NORM2, GATE, UP, DOWN, WALK };
/* Elements [first, first + n) of a tensor, as floats on the host. put rounds to the type of the block, and keeps
 * what was not rounded where there are masters of it. */
void wz_param_get(const struct wz_model *model, int i, size_t first, size_t n, float *out);
void wz_param_put(struct wz_model *model, int i, size_t first, size_t n, const float *values);

/* ---- cache.c ---------------------------------------------------------------------------------------------- */

struct wz_cache {
    struct wz_backend *be;
    struct wz_kv *kv; /* [L] */
    char *block;      /* every layer's k and v */
    int layers, pages, page, context;
    int *unused, n_unused; /* stack of pages given back */
    int n_fresh;           /* pages from here on were never taken */
    int *uses;             /* [pages] sequences that hold the page */
    uint64_t *version;     /* [pages] weights that filled it (law 6) */
};

/* ---- forward.c -------------------------------------------------------------------------------------------- */

/* Buffers of a forward of N <= max_rows rows. With a tape the arrays marked L exist once a layer (x once more: the
 * input of layer l is x[l], its output x[l + 1]), else once (x twice: in and out change places), so that one body
 * serves both. Norms and swiglu outputs are not kept: backward recomputes them, bit for bit. Where the model is to
 * recompute, the tape is x alone, and backward runs wz_layer_forward again for all the rest of a layer: a row's bits
 * depend on its sequence only, so they are the same. */
struct wz_work {
    const struct wz_model *model;
    int max_rows;
    bool tape, recompute;
    void *block, *host; /* what the pointers below are carved from: backend's memory, host memory */

    float *x, *mid;       /* L [N,C] residual stream: at a layer's input, between attention and feed-forward */
    float *rstd1, *rstd2; /* L [N] */
    float *q, *att, *lse; /* L [N,H,D] turned queries, attention's output; [N,H] */
    float *gate, *up;     /* L [N,F] */
    float *k, *v;         /* [N,K,D] */
    float *h, *act;       /* [N,C] a norm's output; [N,F] swiglu's */
    float *hidden, *rstd; /* [N,C] final norm's output; [N] */
    float *picked;        /* [N,C] gathered rows */
    float *d_x, *d_h, *d_q, *d_att, *d_k, *d_v, *d_gate, *d_up, *d_act; /* with a tape */
    float *d_table; /* [V,C] with a tape, where the embedding is tied: what look-ups add to its gradient, else NULL */
    bool open;      /* there was a backward since the last wz_backward_end */

    /* host */
    int *ids, *seq, *pos;   /* [N] of the last forward */
    float *logp, *head_lse; /* [N] what nobody asked for; the log normaliser at head_t, where has_lse */
    bool *has_lse;
    float head_t;
    int *table, table_cap; /* page table of the last forward: [seqs, stride] */
    struct wz_rows batch;  /* the last forward */
    bool whole;            /* every sequence of it was empty before */
    uint64_t version;      /* weights it ran on */
};

/* Where an L array of `width` floats a row has its part for layer l. */
static inline float *wz_work_at(const struct wz_work *w, float *array, size_t width, int l)
{
    return w->tape && !w->recompute ? array + (size_t)l * (size_t)w->max_rows * width : array;
}
static inline float *wz_work_x(const struct wz_work *w, int l)
{
    return w->x + (size_t)(w->tape ? l : l & 1) * (size_t)w->max_rows * (size_t)w->model->config.dim;
}

/* Layer l of the batch, from its input on. again: for a backward, which has no use for the output; keys and values
 * are in the cache already. */
void wz_layer_forward(struct wz_model *m, struct wz_cache *cache, struct wz_work *w, int l, bool again);

#endif
