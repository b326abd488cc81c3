/* Gradient buffers in a fixed tree, and AdamW, sharded over the learners (ZeRO, Rajbhandari et al. 2020).
 *
 * Leaves arrive in order; buffer k holds the sum of 2^k neighbouring leaves, like the bits of a counter:
 *     leaf 0        leaf 1: 0+1        leaf 2      leaf 3: 2+3, (0+1)+(2+3)   ...
 * The sum over the group continues the same tree across ranks, so its shape does not depend on their number:
 *
 *     grad ─▶ wz_tree_scatter ─▶ own shard of the sum ─▶ AdamW with own shard of m and v ─▶
 *             own shard of params ─▶ wz_shards_gather
 *
 * AdamW goes over the spans that are trained; the gradient of all else is cleared first. A bf16 model's params are its
 * masters, of which a learner has its shard only: it rounds them, and what is gathered is bf16.
 *
 * The norm is a sum over blocks, which lie whole in a shard, in order of the array: it does not depend on the number of
 * ranks either. */
#include "trainer/trainer.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static size_t blocks_of(size_t n) { return (n + WZ_BLOCK - 1) / WZ_BLOCK; }

static int levels_of(int leaves)
{
    int levels = 1;

    while (1 << (levels - 1) < leaves) levels++;
    return levels;
}

/* The parts of spans[n] that are in the shard, counted from its beginning: heap, *own of them. */
static struct wz_span *own_spans(struct wz_shard shard, const struct wz_span *spans, int n, int *own)
{
    struct wz_span *out = wz_alloc(sizeof *out * (size_t)n);

    *own = 0;
    for (int i = 0; i < n; i++) {
        const size_t end = shard.at + shard.n, last = spans[i].at + spans[i].n, to = last < end ? last : end;
        const size_t from = spans[i].at > shard.at ? spans[i].at : shard.at;
        if (from < to) out[(*own)++] = (struct wz_span){ from - shard.at, to - from };
    }
    return out;
}

void wz_optimizer_init(struct wz_optimizer *opt, struct wz_model *model, const struct wz_span *spans, int n_spans,
                       int leaves, const struct wz_group *group)
{
    const struct wz_span all = { 0, model->n_params };
    size_t bytes = wz_mul(model->n_params, sizeof(float)), norms;
    struct wz_backend *be = model->be;

    assert((model->params || model->masters) && leaves > 0 && (leaves & (leaves - 1)) == 0);
    *opt = (struct wz_optimizer){ .model = model, .leaves = leaves, .levels = levels_of(leaves) };
    opt->shard = wz_shard_of(group->me, group->n, model->n_params);
    opt->spans = own_spans(opt->shard, spans ? spans : &all, spans ? n_spans : 1, &opt->n_spans);
    assert(opt->levels <= (int)WZ_COUNT(opt->grad));
    opt->m = wz_backend_alloc_for(be, opt->shard.n * sizeof(float), "moments");
    opt->v = wz_backend_alloc_for(be, opt->shard.n * sizeof(float), "moments");
    for (int i = 0; i < opt->levels; i++) opt->grad[i] = wz_backend_alloc_for(be, bytes, "gradient tree");
    opt->sums = wz_alloc(blocks_of(opt->shard.n) * sizeof *opt->sums);
    if (model->masters) {
        assert(model->shard.at == opt->shard.at && model->shard.n == opt->shard.n);
        wz_model_vectors(model, opt->shard, &norms);
        opt->norms = wz_alloc(norms * sizeof *opt->norms);
    }
}

void wz_optimizer_finish(struct wz_optimizer *opt)
{
    if (!opt->model) return;
    struct wz_backend *be = opt->model->be;

    be->ops.free(be, opt->m);
    be->ops.free(be, opt->v);
    for (int i = 0; i < opt->levels; i++) be->ops.free(be, opt->grad[i]);
    free(opt->sums);
    free(opt->norms);
    free(opt->spans);
    *opt = (struct wz_optimizer){ 0 };
}

/* Where the next leaf is written: the lowest empty buffer (leaf_done adds it to the tree). */
static int lowest_empty(const struct wz_optimizer *opt)
{
    int k = 0;

    while (k < opt->levels && opt->filled[k]) k++;
    assert(k < opt->levels);
    return k;
}

float *wz_optimizer_leaf(struct wz_optimizer *opt)
{
    int k = lowest_empty(opt);

    wz_heartbeat();
    opt->model->be->ops.zero(opt->model->be, opt->grad[k], opt->model->n_params * sizeof(float));
    return opt->grad[k];
}

void wz_optimizer_leaf_done(struct wz_optimizer *opt)
{
    struct wz_backend *be = opt->model->be;
    int k = lowest_empty(opt);

    /* buffers 0..k-1 hold 1, 2, .. 2^(k-1) leaves just before this one: the nearest is the smallest */
    for (int i = 0; i < k; i++) {
        be->ops.add(be, opt->grad[k], opt->grad[i], opt->model->n_params);
        opt->filled[i] = false;
    }
    opt->filled[k] = true;
    opt->leaf++;
}

void wz_optimizer_skip(struct wz_optimizer *opt)
{
    opt->skipped++;
    wz_model_commit(opt->model, opt->model->version + 1);
}

static struct wz_buf came[128]; /* of each member; kept from call to call: MPI is used from one thread */

/* What the shard's gradient g holds of parameters that are not trained counts for nothing. */
static void clear_gaps(const struct wz_optimizer *opt, float *g)
{
    size_t at = 0;

    for (int i = 0; i <= opt->n_spans; i++) {
        const size_t to = i < opt->n_spans ? opt->spans[i].at : opt->shard.n;
        if (to > at) wz_zero(opt->model->be, g + at, (to - at) * sizeof *g);
        if (i < opt->n_spans) at = to + opt->spans[i].n;
    }
}

/* The sum of squares of what the group has summed: the blocks' sums, added in order of the array. */
static double square(struct wz_optimizer *opt, struct wz_link *link, const struct wz_group *group, const float *g)
{
    const size_t mine = blocks_of(opt->shard.n);
    double total = 0;

    assert(group->n <= (int)WZ_COUNT(came));
    wz_heartbeat();
    wz_squares(opt->model->be, opt->sums, g, opt->shard.n);
    wz_all_gather_bytes(link, group, opt->sums, mine * sizeof *opt->sums, came);
    for (int s = 0; s < group->n; s++) {
        const struct wz_buf *theirs = &came[wz_shard_owner(s, group->n)];
        for (size_t at = 0; at < theirs->len; at += sizeof total) {
            double sum;
            memcpy(&sum, theirs->data + at, sizeof sum);
            total += sum;
        }
    }
    return total;
}

/* Every member's updated shard, to all. Norms are few, and not every member has the same number of them: they go
 * through the host. */
static void gather(struct wz_optimizer *opt, struct wz_link *link, const struct wz_group *group)
{
    struct wz_model *m = opt->model;
    size_t n;

    if (m->params) {
        wz_shards_gather(link, group, m->be, m->params, m->n_params, sizeof *m->params);
        return;
    }
    wz_model_round(m);
    if (group->n == 1) return;
    wz_shards_gather(link, group, m->be, m->block, m->n_params, sizeof(uint16_t));
    const float *mine = wz_model_vectors(m, opt->shard, &n);
    if (n) wz_download(m->be, opt->norms, mine, n * sizeof *mine);
    wz_all_gather_bytes(link, group, opt->norms, n * sizeof *mine, came);
    for (int i = 0; i < group->n; i++) {
        float *theirs = wz_model_vectors(m, wz_shard_of(i, group->n, m->n_params), &n);
        assert(came[i].len == n * sizeof *theirs);
        if (n && i != group->me) wz_upload(m->be, theirs, came[i].data, came[i].len);
    }
}

double wz_optimizer_step(struct wz_optimizer *opt, struct wz_link *link, const struct wz_group *group,
                         const struct wz_adamw *how, int steps)
{
    struct wz_model *model = opt->model;
    struct wz_backend *be = model->be;
    const struct wz_shard mine = opt->shard;
    float *g = opt->grad[opt->levels - 1], *params = model->params ? model->params + mine.at : model->masters;

    assert(opt->leaf == opt->leaves && opt->filled[opt->levels - 1]);
    assert(mine.n == wz_shard_of(group->me, group->n, model->n_params).n);
    opt->leaf = 0;
    memset(opt->filled, 0, sizeof opt->filled);
    wz_tree_scatter(link, group, be, g, model->n_params);
    g += mine.at;
    clear_gaps(opt, g);
    double norm = sqrt(square(opt, link, group, g));
    double scale = how->clip > 0 && norm > how->clip ? how->clip / norm : 1, left = scale * norm;
    if (!(left * left < FLT_MAX)) {
        opt->not_finite++;
        wz_optimizer_skip(opt);
        return norm;
    }
    opt->not_finite = 0;
    double lr = wz_learning_rate(how->lr, how->warmup, how->floor, opt->steps, steps);
    opt->steps++;
    for (int i = 0; i < opt->n_spans; i++) {
        const struct wz_span x = opt->spans[i];
        wz_heartbeat();
        wz_adamw(be, params + x.at, g + x.at, opt->m + x.at, opt->v + x.at, x.n, (float)lr, (float)how->beta1,
                 (float)how->beta2, (float)how->eps, (float)how->decay, (float)scale, opt->steps);
    }
    gather(opt, link, group);
    wz_model_commit(model, model->version + 1);
    return norm;
}
