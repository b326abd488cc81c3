/* Gradient buffers in a fixed tree, and AdamW.
 *
 * Leaves arrive in order; buffer k holds the sum of 2^k neighbouring leaves, like the bits of a counter:
 *     leaf 0        leaf 1: 0+1        leaf 2      leaf 3: 2+3, (0+1)+(2+3)   ...
 * The group's sum goes on with the same tree across ranks (wz_tree_scatter), so the shape never depends on how many there are. */
#include "trainer/trainer.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static size_t blocks_of(size_t n)
{
    return (n + WZ_BLOCK - 1) / WZ_BLOCK;
}

static int levels_of(int leaves)
{
    int levels = 1;

    while (1 << (levels - 1) < leaves) levels++;
    return levels;
}

struct wz_optimizer_bytes wz_optimizer_bytes(size_t params, int leaves)
{
    size_t bytes = wz_mul(params, sizeof(float));

    return (struct wz_optimizer_bytes){ 2 * bytes, (size_t)levels_of(leaves) * bytes };
}

void wz_optimizer_init(struct wz_optimizer *opt, struct wz_model *model, int leaves)
{
    size_t bytes = wz_mul(model->n_params, sizeof(float));
    struct wz_backend *be = model->be;

    assert(model->params && leaves > 0 && (leaves & (leaves - 1)) == 0);
    *opt = (struct wz_optimizer){ .model = model, .leaves = leaves, .levels = levels_of(leaves) };
    assert(opt->levels <= (int)WZ_COUNT(opt->grad));
    opt->m = be->ops.alloc(be, bytes);
    opt->v = be->ops.alloc(be, bytes);
    for (int i = 0; i < opt->levels; i++) opt->grad[i] = be->ops.alloc(be, bytes);
    opt->sums = wz_alloc(blocks_of(model->n_params) * sizeof *opt->sums);
}

void wz_optimizer_finish(struct wz_optimizer *opt)
{
    if (!opt->model) return;
    struct wz_backend *be = opt->model->be;

    be->ops.free(be, opt->m);
    be->ops.free(be, opt->v);
    for (int i = 0; i < opt->levels; i++) be->ops.free(be, opt->grad[i]);
    free(opt->sums);
    *opt = (struct wz_optimizer){0};
}

/* Where the next leaf is written: the lowest empty buffer (its turn in the tree comes in leaf_done). */
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
    wz_model_seal(opt->model, opt->model->version + 1);
}

/* The sum of squares: the blocks' sums, added in order. */
static double square(struct wz_optimizer *opt, const float *x, size_t n)
{
    double total = 0;

    opt->model->be->ops.squares(opt->model->be, opt->sums, x, n);
    for (size_t i = 0; i < blocks_of(n); i++) total += opt->sums[i];
    return total;
}

double wz_optimizer_step(struct wz_optimizer *opt, struct wz_link *link, const struct wz_group *group,
                         const struct wz_adamw *how, int steps)
{
    struct wz_model *model = opt->model;
    struct wz_backend *be = model->be;
    float *g = opt->grad[opt->levels - 1];

    assert(opt->leaf == opt->leaves && opt->filled[opt->levels - 1]);
    opt->leaf = 0;
    memset(opt->filled, 0, sizeof opt->filled);
    wz_tree_scatter(link, group, be, g, model->n_params);
    wz_shards_gather(link, group, be, g, model->n_params, sizeof *g);
    double norm = sqrt(square(opt, g, model->n_params));
    if (!isfinite(norm)) {
        wz_optimizer_skip(opt);
        return norm;
    }
    double scale = how->clip > 0 && norm > how->clip ? how->clip / norm : 1;
    double lr = wz_learning_rate(how->lr, how->warmup, how->floor, opt->steps, steps);
    opt->steps++;
    be->ops.adamw(be, model->params, g, opt->m, opt->v, model->n_params, (float)lr, (float)how->beta1, (float)how->beta2,
                  (float)how->eps, (float)how->decay, (float)scale, opt->steps);
    wz_model_seal(model, model->version + 1);
    return norm;
}
