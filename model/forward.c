/* forward: packed tokens through the layers; writes the KV cache. One body for prefill, decode, scoring and training: a
 * tape changes only where the arrays are, never what is computed (guarantee 1). */
#include "model/inner.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* The next n elements of the block, aligned to 64 bytes; block NULL: only adds up the size. */
static void *carve(char *block, size_t *at, size_t n, size_t size)
{
    char *p = block ? block + *at : NULL;

    *at += (wz_mul(n, size) + 63) / 64 * 64;
    return p;
}

/* Lays out the backend's memory. Returns its size. */
static size_t plan(struct wz_work *w, const struct wz_config *c, size_t rows, bool tape, bool recompute, char *block)
{
    size_t n = rows, all = tape && !recompute ? rows * (size_t)c->layers : rows, at = 0;
    size_t dim = (size_t)c->dim, hd = (size_t)(c->heads * c->head_dim), kd = (size_t)(c->kv_heads * c->head_dim);
    size_t ffn = (size_t)c->ffn, f = sizeof(float);
    const bool after = wz_arch_of(c)->norms != WZ_NORMS_BEFORE, qk_norm = wz_arch_of(c)->qk_norm != WZ_QK_NONE;

    w->x = carve(block, &at, wz_mul((tape ? (size_t)c->layers + 1 : 2) * n, dim), f);
    w->mid = carve(block, &at, wz_mul(all, dim), f);
    w->rstd1 = carve(block, &at, all, f);
    w->rstd2 = carve(block, &at, all, f);
    if (after) {
        w->branch1 = carve(block, &at, wz_mul(all, dim), f);
        w->branch2 = carve(block, &at, wz_mul(all, dim), f);
        w->rstd3 = carve(block, &at, all, f);
        w->rstd4 = carve(block, &at, all, f);
    }
    if (qk_norm) {
        w->rstd_q = carve(block, &at, wz_mul(all, (size_t)c->heads), f);
        w->rstd_k = carve(block, &at, wz_mul(all, (size_t)c->kv_heads), f);
    }
    w->q = carve(block, &at, wz_mul(all, hd), f);
    w->att = carve(block, &at, wz_mul(all, hd), f);
    w->lse = carve(block, &at, wz_mul(all, (size_t)c->heads), f);
    w->gate = carve(block, &at, wz_mul(all, ffn), f);
    w->up = carve(block, &at, wz_mul(all, ffn), f);
    w->k = carve(block, &at, wz_mul(n, kd), f);
    w->v = carve(block, &at, wz_mul(n, kd), f);
    w->h = carve(block, &at, wz_mul(n, dim), f);
    w->act = carve(block, &at, wz_mul(n, ffn), f);
    w->hidden = carve(block, &at, wz_mul(n, dim), f);
    w->rstd = carve(block, &at, n, f);
    w->picked = carve(block, &at, wz_mul(n, dim), f);
    w->d_table = NULL;
    if (!tape) return at;
    w->d_x = carve(block, &at, wz_mul(n, dim), f);
    w->d_h = carve(block, &at, wz_mul(n, dim), f);
    w->d_q = carve(block, &at, wz_mul(n, hd), f);
    w->d_att = carve(block, &at, wz_mul(n, hd), f);
    w->d_k = carve(block, &at, wz_mul(n, kd), f);
    w->d_v = carve(block, &at, wz_mul(n, kd), f);
    w->d_gate = carve(block, &at, wz_mul(n, ffn), f);
    w->d_up = carve(block, &at, wz_mul(n, ffn), f);
    w->d_act = carve(block, &at, wz_mul(n, ffn), f);
    if (qk_norm) w->d_raw = carve(block, &at, wz_mul(n, hd), f);
    if (c->tied) w->d_table = carve(block, &at, wz_mul((size_t)c->vocab, dim), f);
    return at;
}

static size_t plan_host(struct wz_work *w, size_t n, char *block)
{
    size_t at = 0;

    w->ids = carve(block, &at, n, sizeof(int));
    w->seq = carve(block, &at, n, sizeof(int));
    w->pos = carve(block, &at, n, sizeof(int));
    w->logp = carve(block, &at, n, sizeof(float));
    w->head_lse = carve(block, &at, n, sizeof(float));
    w->has_lse = carve(block, &at, n, sizeof(bool));
    return at;
}

struct wz_work *wz_work_create(const struct wz_model *model, int max_rows, bool tape)
{
    struct wz_work *w = wz_alloc(sizeof(*w));

    assert(max_rows > 0);
    w->model = model;
    w->max_rows = max_rows;
    w->tape = tape;
    w->recompute = tape && model->recompute;
    w->block = wz_backend_alloc_for(model->be, plan(w, &model->config, (size_t)max_rows, tape, w->recompute, NULL),
                                    tape ? "activations" : "forward scratch");
    plan(w, &model->config, (size_t)max_rows, tape, w->recompute, w->block);
    w->host = wz_alloc(plan_host(w, (size_t)max_rows, NULL));
    plan_host(w, (size_t)max_rows, w->host);
    return w;
}

void wz_work_share(struct wz_work *w, int tokens)
{
    const struct wz_config *c = &w->model->config;
    size_t n = wz_mul((size_t)c->layers * (size_t)tokens, (size_t)(c->kv_heads * c->head_dim));

    assert(w->tape && !w->past_k && tokens <= w->max_rows);
    w->past_k = wz_backend_alloc_for(w->model->be, wz_mul(2 * n, sizeof(float)), "gradients of prefixes");
    w->past_v = w->past_k + n;
    w->most_past = tokens;
}

void wz_work_destroy(struct wz_work *w)
{
    if (!w) return;
    wz_backend_free(w->model->be, w->block);
    wz_backend_free(w->model->be, w->past_k);
    free(w->host);
    free(w->table);
    free(w);
}

void wz_work_prealloc(struct wz_work *w, const struct wz_cache *cache, int seqs, int tokens)
{
    int stride = (tokens + cache->page - 1) / cache->page;

    if (stride > cache->pages) stride = cache->pages;
    if (seqs <= w->table_cap / stride) return;
    w->table = wz_realloc(w->table, wz_mul(wz_mul((size_t)seqs, (size_t)stride), sizeof(int)));
    w->table_cap = seqs * stride;
}

/* Does the sequence begin with the very pages of what is kept? */
static bool follows(const struct wz_work *w, const struct wz_cache *cache, const struct wz_seq *seq)
{
    const int *pages = w->n_kept ? w->kept[w->n_kept - 1].table : NULL;

    return !pages || !memcmp(seq->pages, pages, sizeof *pages * (size_t)(w->past / cache->page));
}

/* Sequence, position and page table of the batch's tokens. Pages that are read must be of these weights (guarantee 6),
 * pages that are written must not be shared. */
static void rows_place(const struct wz_model *m, struct wz_cache *cache, struct wz_work *w,
                       const struct wz_batch *batch)
{
    int n = 0, stride = 1, page = cache->page;

    assert((m->params || m->block) && w->model == m && cache->layers == m->config.layers &&
           (!w->open || w->version == m->version));
    for (int s = 0; s < batch->n_seqs; s++)
        if (batch->seqs[s]->n_pages > stride) stride = batch->seqs[s]->n_pages;
    if (batch->n_seqs > w->table_cap / stride) wz_work_prealloc(w, cache, 2 * batch->n_seqs, stride * page);
    w->whole = true;
    for (int s = 0; s < batch->n_seqs; s++) {
        const struct wz_seq *seq = batch->seqs[s];
        int end = seq->len + batch->count[s], first_new = seq->len / page;

        assert(batch->count[s] > 0 && end <= seq->n_pages * page && w->past + n + batch->count[s] <= w->max_rows);
        if (seq->len != w->past || !follows(w, cache, seq)) w->whole = false;
        for (int p = 0; p * page < seq->len; p++)
            if (cache->version[seq->pages[p]] != m->version)
                wz_die("cache page %d: expected keys and values of weights version %llu, got version %llu",
                       seq->pages[p], (unsigned long long)m->version,
                       (unsigned long long)cache->version[seq->pages[p]]);
        for (int p = first_new; p * page < end; p++) {
            assert(cache->uses[seq->pages[p]] == 1);
            cache->version[seq->pages[p]] = m->version;
        }
        for (int p = 0; p < stride; p++) w->table[s * stride + p] = p < seq->n_pages ? seq->pages[p] : -1;
        for (int i = 0; i < batch->count[s]; i++, n++) {
            w->seq[w->past + n] = s;
            w->pos[w->past + n] = seq->len + i;
            w->has_lse[n] = false;
        }
    }
    memcpy(w->ids + w->past, batch->ids, (size_t)n * sizeof(int));
    w->batch = (struct wz_rows){ n, batch->n_seqs, stride, w->seq + w->past, w->pos + w->past, w->table };
    w->version = m->version;
}

void wz_work_keep(struct wz_work *w, const struct wz_cache *cache, const struct wz_seq *seq)
{
    const struct wz_config *c = &w->model->config;
    const int n = w->batch.n;
    const size_t size = (size_t)n * (size_t)(c->kv_heads * c->head_dim) * sizeof(float);

    assert(w->tape && w->whole && w->batch.seqs == 1 && seq->len == w->past + n && seq->len % cache->page == 0);
    assert(w->n_kept < WZ_KEPT && seq->len <= w->most_past);
    for (int l = 0; l < c->layers; l++) {
        wz_zero(w->model->be, wz_work_past(w, w->past_k, l, w->past), size);
        wz_zero(w->model->be, wz_work_past(w, w->past_v, l, w->past), size);
    }
    w->batch.stride = seq->n_pages;
    w->batch.table = seq->pages;
    w->kept[w->n_kept++] = w->batch;
    w->past += n;
}

const float *wz_layer_before(struct wz_model *m, struct wz_work *w, const float *x, const float *norm, float *rstd)
{
    if (!norm) return x;
    wz_rmsnorm(m->be, w->h, rstd, x, norm, w->batch.n, m->config.dim, m->config.norm_eps, wz_one_of(&m->config));
    return w->h;
}

void wz_layer_project(struct wz_model *m, const struct wz_layer *y, float *const to[3], const float *h, int count,
                      int n)
{
    const float *const bias[] = { y->q_bias, y->k_bias, y->v_bias };
    const struct wz_weight *const of[] = { &y->q, &y->k, &y->v };

    wz_matmuls(m->be, to, h, of, count, n);
    for (int i = 0; i < count; i++)
        if (bias[i]) wz_bias(m->be, to[i], bias[i], n, of[i]->out);
}

/* q or k as attention reads it: normed and rotated in place. */
static void place(struct wz_model *m, struct wz_work *w, float *x, const float *norm, float *rstd, int heads, int l)
{
    const struct wz_config *c = &m->config;
    int rows, width;

    wz_qk_shape(c, w->batch.n, heads, &rows, &width);
    if (norm) wz_rmsnorm(m->be, x, rstd, x, norm, rows, width, c->norm_eps, wz_one_of(c));
    if (!c->unrotated[l]) wz_rope(m->be, x, w->batch.pos, wz_layer_freq(m, l), w->batch.n, heads, c->head_dim, 1);
}

/* out = x + the branch, which is out itself where it is not normed. */
static void join(struct wz_model *m, struct wz_work *w, float *out, const float *branch, const float *x,
                 const float *norm, float *rstd)
{
    const struct wz_config *c = &m->config;
    size_t all = (size_t)w->batch.n * (size_t)c->dim;

    if (norm) wz_rmsnorm(m->be, out, rstd, branch, norm, w->batch.n, c->dim, c->norm_eps, wz_one_of(c));
    if (c->residual_scale > 0) wz_scale(m->be, out, out, c->residual_scale, all);
    wz_add(m->be, out, x, all);
}

void wz_layer_forward(struct wz_model *m, struct wz_cache *cache, struct wz_work *w, int l, bool again)
{
    const struct wz_config *c = &m->config;
    struct wz_backend *be = m->be;
    struct wz_layer *y = &m->layers[l];
    size_t dim = (size_t)c->dim, hd = (size_t)c->heads * (size_t)c->head_dim, ffn = (size_t)c->ffn;
    float *x = wz_work_x(w, l), *out = wz_work_x(w, l + 1), *mid = wz_work_at(w, w->mid, dim, l);
    float *q = wz_work_at(w, w->q, hd, l);
    float *att = wz_work_at(w, w->att, hd, l);
    float *lse = wz_work_at(w, w->lse, (size_t)c->heads, l);
    float *gate = wz_work_at(w, w->gate, ffn, l), *up = wz_work_at(w, w->up, ffn, l);
    float *branch1 = y->after1 ? wz_work_at(w, w->branch1, dim, l) : mid;
    float *branch2 = y->after2 ? wz_work_at(w, w->branch2, dim, l) : out;
    const struct wz_rows *rows = &w->batch;
    const float *h;
    int n = rows->n;

    wz_heartbeat();
    h = wz_layer_before(m, w, x, y->norm1, wz_work_at(w, w->rstd1, 1, l));
    wz_layer_project(m, y, (float *const[]){ q, w->k, w->v }, h, !again ? 3 : y->k_norm ? 2 : 1, n);
    place(m, w, q, y->q_norm, wz_work_at(w, w->rstd_q, (size_t)c->heads, l), c->heads, l);
    if (wz_query_scale(c, l) > 0) wz_scale(be, q, q, wz_query_scale(c, l), (size_t)n * hd);
    if (!again || y->k_norm)
        place(m, w, w->k, y->k_norm, wz_work_at(w, w->rstd_k, (size_t)c->kv_heads, l), c->kv_heads, l);
    if (!again) wz_kv_write(be, &cache->kv[l], w->k, w->v, rows);
    wz_attention(be, att, lse, q, &cache->kv[l], rows, c->heads, wz_layer_scores(c, l));
    wz_matmul(be, branch1, att, &y->o, n, false);
    join(m, w, mid, branch1, x, y->after1, wz_work_at(w, w->rstd3, 1, l));

    h = wz_layer_before(m, w, mid, y->norm2, wz_work_at(w, w->rstd2, 1, l));
    wz_matmuls(be, (float *[]){ gate, up }, h, (const struct wz_weight *[]){ &y->gate, &y->up }, 2, n);
    if (again && !y->after2) return;
    wz_swiglu(be, w->act, gate, up, (size_t)n * ffn, wz_act_of(c));
    wz_matmul(be, branch2, w->act, &y->down, n, false);
    join(m, w, out, branch2, mid, y->after2, wz_work_at(w, w->rstd4, 1, l));
}

static void layers(struct wz_model *m, struct wz_cache *cache, struct wz_work *w)
{
    const struct wz_config *c = &m->config;
    float *x = wz_work_x(w, 0);
    size_t all = (size_t)w->batch.n * (size_t)c->dim;

    wz_embed(m->be, x, &m->embed, w->ids + w->past, w->batch.n);
    if (c->embed_scale > 0) wz_scale(m->be, x, x, c->embed_scale, all);
    for (int l = 0; l < c->layers; l++) wz_layer_forward(m, cache, w, l, false);
    wz_rmsnorm(m->be, w->hidden, w->rstd, wz_work_x(w, c->layers), m->norm, w->batch.n, c->dim, c->norm_eps,
               wz_one_of(c));
    if (c->logit_scale > 0) wz_scale(m->be, w->hidden, w->hidden, c->logit_scale, all);
}

static void batch_end(const struct wz_batch *batch)
{
    for (int s = 0; s < batch->n_seqs; s++) batch->seqs[s]->len += batch->count[s];
}

const float *wz_forward(struct wz_model *m, struct wz_cache *cache, struct wz_work *w, const struct wz_batch *batch)
{
    rows_place(m, cache, w, batch);
    layers(m, cache, w);
    batch_end(batch);
    return w->hidden;
}

struct sampled {
    struct wz_model *m;
    struct wz_cache *cache;
    struct wz_work *w;
    const struct wz_samples *of;
};

static void forward_and_sample(void *arg)
{
    const struct sampled *s = arg;
    const struct wz_samples *of = s->of;

    layers(s->m, s->cache, s->w);
    const float *x = of->n == s->w->batch.n ? s->w->hidden : wz_gather(s->w, s->w->hidden, of->rows, of->n);
    wz_head_sample(s->m->be, of->token, of->logp, x, &s->m->head, of->picks, of->n);
}

void wz_forward_sample(struct wz_model *m, struct wz_cache *cache, struct wz_work *w, const struct wz_batch *batch,
                       const struct wz_samples *samples)
{
    struct sampled s = { m, cache, w, samples };

    rows_place(m, cache, w, batch);
    if (samples->n == w->batch.n)
        wz_region(m->be, forward_and_sample, &s); /* the round of a decode, as many more will be */
    else forward_and_sample(&s);
    batch_end(batch);
}

const float *wz_gather(struct wz_work *w, const float *hidden, const int *rows, int n)
{
    /* looking up rows is what the embedding does; the table is the hidden states */
    const struct wz_weight table = { (void *)(uintptr_t)hidden, WZ_F32, w->batch.n, w->model->config.dim, NULL, 0 };

    assert(n <= w->max_rows);
    if (n > 0) wz_embed(w->model->be, w->picked, &table, rows, n);
    return w->picked;
}

void wz_score_rows(struct wz_model *m, struct wz_work *w, const int *rows, const int *targets, int n, float *logp)
{
    float *lse = wz_alloc(sizeof *lse * (size_t)n);

    wz_head_logprob(m->be, logp, lse, NULL, wz_gather(w, w->hidden, rows, n), &m->head, targets, 1, n);
    free(lse);
}

void wz_logprobs(struct wz_model *m, struct wz_work *w, const int *targets, float temperature, float *logp,
                 float *entropy)
{
    int n = w->batch.n;

    assert(w->model == m && w->version == m->version);
    wz_head_logprob(m->be, logp, w->head_lse, entropy, w->hidden, &m->head, targets, temperature, n);
    for (int i = 0; i < n; i++) w->has_lse[i] = targets[i] >= 0;
    w->head_t = temperature;
}
