/* backward: the chain rule over the tape, last layer first, in two parts: from the loss to the gradient of the last
 * hidden state (head), and from that gradient to the parameters below (body). Every "+=" into d_params is one chain
 * over rows in ascending order, so where sequences begin at multiples of the backend's grain they may be cut into
 * batches anywhere and the bits stay (guarantee 2).
 *
 * A tied embedding has two such chains: the head adds to it at the beginning of a backward, the look-up at the end. In
 * one array they would mix as batches are cut, so the look-up's is summed apart (d_table) and added once, after the
 * last batch.
 *
 * A prefix that is kept goes back after the sequences that follow it. It has no loss of its own: what comes back is the
 * gradient of its keys and values, which the attention of these sequences has added up. */
#include "model/inner.h"

#include <assert.h>
#include <stdlib.h>

/* A matrix with its place in the gradient. */
static void matrix_back(const struct wz_model *m, float *d_w, float *d_x, const float *d_y, const float *x,
                        const struct wz_weight *w, int n, bool add)
{
    wz_matmul_back_w(m->be, d_w, d_y, x, w, n);
    wz_matmul_back_x(m->be, d_x, d_y, w, n, add);
}

/* The gradient of the batch's keys, or values, so far; others' of a prefix, which they have added up, come on top. */
static void keys_back(const struct wz_model *m, const struct wz_work *w, float *d_k, float *past, int l)
{
    const size_t width = (size_t)m->config.kv_heads * (size_t)m->config.head_dim;

    wz_add(m->be, d_k, wz_work_past(w, past, l, w->past), (size_t)w->batch.n * width);
}

/* The gradient of what attention or feed-forward added to the residual stream, d_x itself where it was added as it is;
 * in h or d_h, which are free. */
static const float *branch_back(struct wz_model *m, struct wz_work *w, float *d_norm, const float *branch,
                                const float *norm, const float *rstd)
{
    const struct wz_config *c = &m->config;
    size_t all = (size_t)w->batch.n * (size_t)c->dim;
    const float *d = w->d_x;

    if (c->residual_scale > 0) {
        wz_scale(m->be, w->h, d, c->residual_scale, all);
        d = w->h;
    }
    if (!norm) return d;
    wz_zero(m->be, w->d_h, all * sizeof(float));
    wz_rmsnorm_back(m->be, w->d_h, d_norm, d, branch, norm, rstd, w->batch.n, c->dim, wz_one_of(c));
    return w->d_h;
}

/* Undoes what the forward did to q or k between its matrix and attention. d: the gradient, on entry of the result;
 * raw: its values before the norm. The gradient before the norm is in d, or in d_raw where there is one. */
static const float *place_back(struct wz_model *m, struct wz_work *w, float *d, float *d_raw, const float *raw,
                               const float *norm, float *d_norm, const float *rstd, int heads, int l)
{
    const struct wz_config *c = &m->config;
    int rows, width;

    if (!c->unrotated[l]) wz_rope(m->be, d, w->batch.pos, wz_layer_freq(m, l), w->batch.n, heads, c->head_dim, -1);
    if (!norm) return d;
    wz_qk_shape(c, w->batch.n, heads, &rows, &width);
    wz_zero(m->be, d_raw, (size_t)rows * (size_t)width * sizeof(float));
    wz_rmsnorm_back(m->be, d_raw, d_norm, d, raw, norm, rstd, rows, width, wz_one_of(c));
    return d_raw;
}

/* d_x: gradient of the layer's output on entry, of its input on return. kept: the rows are those of a prefix. */
static void layer_back(struct wz_model *m, struct wz_cache *cache, struct wz_work *w, float *d_params, int l, bool kept)
{
    const struct wz_config *c = &m->config;
    struct wz_backend *be = m->be;
    struct wz_layer *y = &m->layers[l];
    size_t dim = (size_t)c->dim, hd = (size_t)c->heads * (size_t)c->head_dim, ffn = (size_t)c->ffn;
    const float *x = wz_work_x(w, l), *mid = wz_work_at(w, w->mid, dim, l), *h;
    const float *q = wz_work_at(w, w->q, hd, l), *att = wz_work_at(w, w->att, hd, l);
    const float *lse = wz_work_at(w, w->lse, (size_t)c->heads, l);
    const float *gate = wz_work_at(w, w->gate, ffn, l), *up = wz_work_at(w, w->up, ffn, l);
    float *rstd1 = wz_work_at(w, w->rstd1, 1, l), *rstd2 = wz_work_at(w, w->rstd2, 1, l);
    float *grad[LAYER_TENSORS] = { NULL };
    const struct wz_rows *rows = &w->batch;
    struct wz_past past = { 0 };
    int n = rows->n;

    for (int t = 0; t < LAYER_TENSORS; t++) grad[t] = d_params + wz_param_of(m, l, t)->at;
    wz_swiglu(be, w->act, gate, up, (size_t)n * ffn, wz_act_of(c));
    const float *d =
        branch_back(m, w, grad[AFTER2], wz_work_at(w, w->branch2, dim, l), y->after2, wz_work_at(w, w->rstd4, 1, l));
    matrix_back(m, grad[DOWN], w->d_act, d, w->act, &y->down, n, false);
    wz_swiglu_back(be, w->d_gate, w->d_up, w->d_act, gate, up, (size_t)n * ffn, wz_act_of(c));
    h = wz_layer_before(m, w, mid, y->norm2, rstd2);
    float *d_h = y->norm2 ? w->d_h : w->d_x; /* without a norm it is part of the residual stream's */
    matrix_back(m, grad[GATE], d_h, w->d_gate, h, &y->gate, n, !y->norm2);
    matrix_back(m, grad[UP], d_h, w->d_up, h, &y->up, n, true);
    if (y->norm2) wz_rmsnorm_back(be, w->d_x, grad[NORM2], w->d_h, mid, y->norm2, rstd2, n, c->dim, wz_one_of(c));

    d = branch_back(m, w, grad[AFTER1], wz_work_at(w, w->branch1, dim, l), y->after1, wz_work_at(w, w->rstd3, 1, l));
    matrix_back(m, grad[O], w->d_att, d, att, &y->o, n, false);
    if (w->past) past = (struct wz_past){ wz_work_past(w, w->past_k, l, 0), wz_work_past(w, w->past_v, l, 0), w->past };
    wz_attention_back(be, w->d_q, w->d_k, w->d_v, past, w->d_att, att, lse, q, &cache->kv[l], rows, c->heads,
                      wz_layer_scores(c, l));
    if (kept) {
        keys_back(m, w, w->d_k, w->past_k, l);
        keys_back(m, w, w->d_v, w->past_v, l);
    }
    h = wz_layer_before(m, w, x, y->norm1, rstd1);
    if (y->q_norm) wz_layer_project(m, y, (float *const[]){ w->d_att, w->k, NULL }, h, 2, n);
    if (wz_query_scale(c, l) > 0) wz_scale(be, w->d_q, w->d_q, wz_query_scale(c, l), (size_t)n * hd);
    const float *d_q = place_back(m, w, w->d_q, w->d_raw, w->d_att, y->q_norm, grad[Q_NORM],
                                  wz_work_at(w, w->rstd_q, (size_t)c->heads, l), c->heads, l);
    const float *d_k = place_back(m, w, w->d_k, w->v, w->k, y->k_norm, grad[K_NORM],
                                  wz_work_at(w, w->rstd_k, (size_t)c->kv_heads, l), c->kv_heads, l);
    if (y->q_bias) {
        wz_bias_back(be, grad[Q_BIAS], d_q, n, y->q.out);
        wz_bias_back(be, grad[K_BIAS], d_k, n, y->k.out);
        wz_bias_back(be, grad[V_BIAS], w->d_v, n, y->v.out);
    }
    d_h = y->norm1 ? w->d_h : w->d_x;
    matrix_back(m, grad[Q], d_h, d_q, h, &y->q, n, !y->norm1);
    matrix_back(m, grad[K], d_h, d_k, h, &y->k, n, true);
    matrix_back(m, grad[V], d_h, w->d_v, h, &y->v, n, true);
    if (y->norm1) wz_rmsnorm_back(be, w->d_x, grad[NORM1], w->d_h, x, y->norm1, rstd1, n, c->dim, wz_one_of(c));
}

float *wz_backward_head(struct wz_model *m, struct wz_work *w, const int *targets, const float *d_logp,
                        float temperature, float *d_params)
{
    const struct wz_param *head = m->config.tied ? m->list : &m->list[m->n_list - 1];
    float *d_hidden = w->h; /* free until the body recomputes a layer's norm into it */
    int n = w->batch.n;
    bool known = w->head_t == temperature;

    for (int i = 0; i < n; i++) known = known && (targets[i] < 0 || w->has_lse[i]);
    if (!known) wz_logprobs(m, w, targets, temperature, w->logp, NULL);
    wz_heartbeat(); /* the head's products are the longest of all */
    wz_head_back(m->be, d_hidden, d_params + head->at, w->hidden, &m->head, targets, d_logp, w->head_lse, temperature,
                 n);
    return d_hidden;
}

/* From the gradient of the last layer's output, in d_x. */
static void layers_back(struct wz_model *m, struct wz_cache *cache, struct wz_work *w, float *d_params, bool kept)
{
    const struct wz_config *c = &m->config;
    const int n = w->batch.n;

    for (int l = c->layers - 1; l >= 0; l--) {
        if (w->recompute && l < c->layers - 1) wz_layer_forward(m, cache, w, l, true); /* the last's is there */
        layer_back(m, cache, w, d_params, l, kept);
        wz_heartbeat();
    }
    if (c->embed_scale > 0) wz_scale(m->be, w->d_x, w->d_x, c->embed_scale, (size_t)n * (size_t)c->dim);
    wz_embed_back(m->be, w->d_table ? w->d_table : d_params + m->list[0].at, w->d_x, w->ids + w->past, n, c->dim);
    w->open = true;
}

void wz_backward_body(struct wz_model *m, struct wz_cache *cache, struct wz_work *w, const float *d_hidden,
                      float *d_params)
{
    const struct wz_config *c = &m->config;
    const struct wz_param *norm = &m->list[1 + c->layers * m->per_layer];
    int n = w->batch.n;

    assert(w->model == m && w->tape && w->whole && w->version == m->version);
    wz_zero(m->be, w->d_x, (size_t)n * (size_t)c->dim * sizeof(float));
    if (c->logit_scale > 0) {
        wz_scale(m->be, w->h, d_hidden, c->logit_scale, (size_t)n * (size_t)c->dim);
        d_hidden = w->h;
    }
    wz_rmsnorm_back(m->be, w->d_x, d_params + norm->at, d_hidden, wz_work_x(w, c->layers), m->norm, w->rstd, n, c->dim,
                    wz_one_of(c));
    layers_back(m, cache, w, d_params, false);
}

void wz_backward_kept(struct wz_model *m, struct wz_cache *cache, struct wz_work *w, float *d_params)
{
    assert(w->model == m && w->n_kept > 0 && w->version == m->version);
    w->batch = w->kept[--w->n_kept];
    w->past -= w->batch.n;
    wz_zero(m->be, w->d_x, (size_t)w->batch.n * (size_t)m->config.dim * sizeof(float));
    layers_back(m, cache, w, d_params, true);
}

void wz_backward(struct wz_model *m, struct wz_cache *cache, struct wz_work *w, const int *targets, const float *d_logp,
                 float temperature, float *d_params)
{
    wz_backward_body(m, cache, w, wz_backward_head(m, w, targets, d_logp, temperature, d_params), d_params);
}

void wz_backward_end(struct wz_model *m, struct wz_work *w, float *d_params)
{
    size_t n = wz_param_count(&m->list[0]);

    if (w->open && w->d_table) {
        wz_add(m->be, d_params + m->list[0].at, w->d_table, n);
        wz_zero(m->be, w->d_table, n * sizeof(float));
    }
    w->open = false;
}

/* Slopes by some ids, whose lines of the embedding are there. */
struct slopes {
    const float *d, *lines; /* [n, dim]; [n_lines, dim] */
    float *out;             /* [n, vocab], from the first of these ids on */
    size_t n, n_lines, dim, vocab;
};

enum { LINES = 1024, OF_TASK = 16, LANES = 8 }; /* lines that are read at a time; of a task; sums of a product */

static void slope_part(void *arg, int task)
{
    const struct slopes *s = arg;
    const size_t from = (size_t)task * OF_TASK, to = from + OF_TASK < s->n_lines ? from + OF_TASK : s->n_lines;

    for (size_t j = from; j < to; j++)
        for (size_t i = 0; i < s->n; i++) {
            const float *x = s->d + i * s->dim, *y = s->lines + j * s->dim;
            double sum[LANES] = { 0 };
            size_t c = 0;
            for (; c + LANES <= s->dim; c += LANES)
                for (size_t k = 0; k < LANES; k++) sum[k] += (double)x[c + k] * (double)y[c + k];
            for (; c < s->dim; c++) sum[0] += (double)x[c] * (double)y[c];
            for (size_t k = 1; k < LANES; k++) sum[0] += sum[k];
            s->out[i * s->vocab + j] = (float)sum[0];
        }
}

void wz_backward_onehot(struct wz_model *m, struct wz_work *w, const int *rows, int n, float *out)
{
    const size_t dim = (size_t)m->config.dim, vocab = (size_t)m->config.vocab;
    float *d = wz_alloc(sizeof *d * (size_t)n * dim), *lines = wz_alloc(sizeof *lines * LINES * dim);

    wz_download(m->be, d, wz_gather(w, w->d_x, rows, n), sizeof *d * (size_t)n * dim);
    for (size_t v = 0; v < vocab; v += LINES) {
        const size_t k = vocab - v < LINES ? vocab - v : LINES;
        struct slopes s = { d, lines, out + v, (size_t)n, k, dim, vocab };
        wz_heartbeat();
        wz_param_get(m, 0, v * dim, k * dim, lines);
        wz_pool_run(m->be->pool, (int)((k + OF_TASK - 1) / OF_TASK), slope_part, &s);
    }
    free(d);
    free(lines);
}
