/* One update of one agent: the page that shows it whole is wz_learner_step, in the order of the data.
 *
 * Samples are packed into micro-batches of whole sequences; the forward that is trained is the forward that sampled,
 * so the log-probability of every token is compared with the rollout's, bit for bit, on every step (law 1:
 * `mismatch`). */
#include "trainer/trainer.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static int rows_of(int micro, int longest) { return micro < longest ? longest : micro; }

struct wz_learner_bytes wz_learner_bytes(const struct wz_config *config, bool half, size_t params, bool reference,
                                         int leaves, int learners, int micro, int longest, bool recompute)
{
    struct wz_learner_bytes b = { wz_optimizer_bytes(params, leaves, learners),
                                  wz_pack_bytes(config, half, rows_of(micro, longest), true, recompute),
                                  { 0 } };

    if (reference) b.reference = wz_pack_bytes(config, half, rows_of(micro, longest), false, false);
    return b;
}

void wz_learner_init(struct wz_learner *l, struct wz_model *model, struct wz_model *reference, int agent, bool feedback,
                     int leaves, const struct wz_group *group, int micro, int longest)
{
    longest = wz_pack_rows(model->be->grain, longest);
    *l = (struct wz_learner){ .model = model, .agent = agent, .feedback = feedback };
    wz_pack_init(&l->pack, model, rows_of(micro, longest), true);
    if (reference) wz_pack_init(&l->reference, reference, rows_of(micro, longest), false);
    wz_optimizer_init(&l->opt, model, leaves, group);
}

void wz_learner_finish(struct wz_learner *l)
{
    wz_optimizer_finish(&l->opt);
    wz_pack_finish(&l->pack);
    wz_pack_finish(&l->reference);
    wz_arena_finish(&l->lists);
    *l = (struct wz_learner){ 0 };
}

int wz_leaf_owner(int index, int batch, int leaves, int learners)
{
    int leaf = (int)((int64_t)index * leaves / batch);

    return leaf / (leaves / learners);
}

/* Packs the next run of samples [from, return): as many as have room. */
static int pack_turns(struct wz_pack *p, Wz__Turn **turns, int from, int to)
{
    wz_pack_clear(p);
    while (from < to && (!turns[from] || wz_pack_turn(p, turns[from]))) from++;
    return from;
}

/* What all contexts begin with, a system prompt most often, is read once: a feedback agent's is most of its context. */
static void share_prefix(struct wz_pack *p, Wz__Turn **turns, int n)
{
    const Wz__Turn *first = NULL;
    size_t shared = 0, k;
    int count = 0;

    for (int i = 0; i < n; i++) {
        const Wz__Turn *t = turns[i];
        if (!t) continue;
        if (!count++) first = t, shared = t->n_context - 1;
        for (k = 0; k < shared && k < t->n_context - 1 && t->context[k] == first->context[k];) k++;
        shared = k;
    }
    if (count > 1) wz_pack_share(p, first->context, (int)shared);
}

/* One of a turn's arrays is made once, however often the turn is learnt from. */
static void room(float **x, size_t *n, size_t want)
{
    if (*n != want) *x = wz_realloc(*x, sizeof **x * want);
    *n = want;
}

static void reference_logps(struct wz_pack *p, float temperature, Wz__Turn **turns, int n)
{
    share_prefix(p, turns, n);
    for (int from = 0; from < n;) {
        int to = pack_turns(p, turns, from, n), s = 0;
        if (p->n_seqs) wz_pack_forward(p, temperature);
        for (; from < to; from++) {
            Wz__Turn *t = turns[from];
            if (!t) continue;
            room(&t->ref_logp, &t->n_ref_logp, t->n_ids);
            memcpy(t->ref_logp, p->logp + p->first[s++] + t->n_context - 1 - p->prefix.len,
                   sizeof *t->ref_logp * t->n_ids);
        }
    }
    wz_pack_share(p, NULL, 0);
}

/* Law 6: what was written by other weights than these is not trained on, ever. */
static void check_weights(const struct wz_learner *l, const Wz__Episode *e, const Wz__Turn *t)
{
    if (t->version == l->model->version && t->weights == l->model->hash) return;
    wz_die("trainer: step %lld episode %u agent %d was written by weights version %llu hash %016llx, here are version "
           "%llu hash %016llx",
           (long long)e->step, e->index, l->agent, (unsigned long long)t->version, (unsigned long long)t->weights,
           (unsigned long long)l->model->version, (unsigned long long)l->model->hash);
}

/* Every member's numbers for its own episodes, laid out by index: what each episode of the batch contributed. */
static void gather_by_owner(struct wz_arena *lists, struct wz_link *link, const struct wz_group *group, double *rows,
                            int width, int batch, int leaves)
{
    size_t n = (size_t)batch * (size_t)width;
    double *all = wz_arena_alloc(lists, sizeof *all * n * (size_t)group->n);

    wz_all_gather(link, group, rows, (int)n, all);
    for (int i = 0; i < batch; i++)
        memcpy(rows + (size_t)i * width,
               all + n * (size_t)wz_leaf_owner(i, batch, leaves, group->n) + (size_t)i * width,
               sizeof *rows * (size_t)width);
}

/* Whitened advantages of every sample, and the moments they came from. */
static struct wz_moments whiten(struct wz_learner *l, const struct wz_learn *how, struct wz_link *link,
                                const struct wz_group *group, Wz__Episode **episodes, Wz__Turn **turns, int n,
                                int batch)
{
    double *sums = wz_arena_alloc(&l->lists, sizeof *sums * 3 * (size_t)batch);

    for (int i = 0; i < n; i++) {
        Wz__Turn *t = turns[i];
        if (!t) continue;
        room(&t->advantage, &t->n_advantage, t->n_ids);
        wz_returns(t->reward, how->kl, t->logp, l->reference.model ? t->ref_logp : NULL, (int)t->n_ids, t->advantage);
        double *row = sums + 3 * (size_t)episodes[i]->index;
        for (size_t k = 0; k < t->n_ids; k++) {
            row[0] += (double)t->advantage[k];
            row[1] += (double)t->advantage[k] * (double)t->advantage[k];
        }
        row[2] = (double)t->n_ids;
    }
    gather_by_owner(&l->lists, link, group, sums, 3, batch, l->opt.leaves * group->n);
    struct wz_moments m = wz_moments(sums, batch);
    for (int i = 0; i < n; i++)
        for (size_t k = 0; turns[i] && k < turns[i]->n_ids; k++)
            turns[i]->advantage[k] = (float)(((double)turns[i]->advantage[k] - m.mean) * m.rstd);
    return m;
}

/* Forward, loss slope, backward over the samples of one leaf, added to `grad`. */
static void leaf_gradient(struct wz_learner *l, const struct wz_learn *how, const struct wz_moments *m,
                          Wz__Turn **turns, int from, int to, float *grad, struct wz_step_stats *stats)
{
    struct wz_pack *p = &l->pack;

    while (from < to) {
        int end = pack_turns(p, turns, from, to), s = 0;
        if (!p->n_seqs) break;
        wz_pack_forward(p, (float)how->temperature);
        memset(p->d_logp, 0, sizeof *p->d_logp * (size_t)p->n_rows);
        for (; from < end; from++) {
            const Wz__Turn *t = turns[from];
            if (!t) continue;
            int row = p->first[s++] + (int)t->n_context - 1;
            double share = how->token_mean ? 1 / m->tokens : 1 / (m->samples * (double)t->n_ids);
            for (size_t k = 0; k < t->n_ids; k++) {
                double now = (double)p->logp[row + k], old = (double)t->logp[k];
                double slope = wz_surrogate_slope(now, old, (double)t->advantage[k], how->epsilon);
                p->d_logp[row + k] = (float)(-share * slope); /* minimised: the loss is -J */
                stats->clipped += slope == 0 && t->advantage[k] != 0;
                stats->mismatch += p->logp[row + k] != t->logp[k];
                if (fabs(now - old) > stats->max_gap) stats->max_gap = fabs(now - old);
            }
        }
        wz_pack_backward(p, (float)how->temperature, grad);
    }
    wz_pack_backward_end(p, grad);
}

static void sum_stats(struct wz_learner *l, struct wz_link *link, const struct wz_group *group, Wz__Turn **turns, int n,
                      struct wz_step_stats *s)
{
    double mine[5] = { 0, 0, s->clipped, s->mismatch, s->max_gap },
           (*all)[5] = wz_arena_alloc(&l->lists, sizeof *all * (size_t)group->n);

    for (int i = 0; i < n; i++) {
        const Wz__Turn *t = turns[i];
        if (!t) continue;
        mine[0] += t->reward;
        for (size_t k = 0; l->reference.model && k < t->n_ids; k++)
            mine[1] += (double)t->logp[k] - (double)t->ref_logp[k];
    }
    wz_all_gather(link, group, mine, 5, all[0]);
    memset(mine, 0, sizeof mine);
    for (int r = 0; r < group->n; r++) {
        for (int k = 0; k < 4; k++) mine[k] += all[r][k];
        if (all[r][4] > mine[4]) mine[4] = all[r][4];
    }
    s->reward = s->samples > 0 ? mine[0] / s->samples : 0;
    s->kl = s->samples > 0 ? mine[1] / s->samples : 0; /* nats a sample: the sum over its tokens */
    s->clipped = s->tokens > 0 ? mine[2] / s->tokens : 0;
    s->mismatch = mine[3];
    s->max_gap = mine[4];
}

void wz_learner_step(struct wz_learner *l, const struct wz_learn *how, struct wz_link *link,
                     const struct wz_group *group, Wz__Episode **episodes, int n, int batch, int steps, uint64_t seed,
                     struct wz_step_stats *stats)
{
    double begin = wz_now();
    Wz__Turn **turns = wz_arena_alloc(&l->lists, sizeof *turns * (size_t)n);
    int leaves = l->opt.leaves * group->n, from = 0;

    *stats = (struct wz_step_stats){ 0 };
    for (int i = 0; i < n; i++) { /* one sample an episode, at most */
        turns[i] = wz_sample_pick(episodes[i], l->agent, l->feedback, how->revision, seed);
        if (!turns[i]) continue;
        check_weights(l, episodes[i], turns[i]);
        turns[i]->trained = true;
    }
    if (l->reference.model) {
        wz_model_onload(l->reference.model, l->opt.grad[0]); /* no leaf has begun: it is free, and large enough */
        reference_logps(&l->reference, (float)how->temperature, turns, n);
        wz_model_onload(l->reference.model, NULL);
    }
    struct wz_moments m =
        whiten(l, how, link, group, episodes, turns, n, batch); /* returns, then mean 0 and variance 1 */
    for (int leaf = group->me * l->opt.leaves; m.samples > 0 && leaf < (group->me + 1) * l->opt.leaves; leaf++) {
        int to = from;
        while (to < n && (int)((int64_t)episodes[to]->index * leaves / batch) == leaf) to++;
        leaf_gradient(l, how, &m, turns, from, to, wz_optimizer_leaf(&l->opt), stats);
        wz_optimizer_leaf_done(&l->opt);
        from = to;
    }
    assert(from == n || !(m.samples > 0));
    stats->samples = m.samples;
    stats->tokens = m.tokens;
    stats->advantage_std = 1 / m.rstd;
    stats->lr = wz_learning_rate(how->adamw.lr, how->adamw.warmup, how->adamw.floor, l->opt.steps, steps);
    if (m.samples > 0)
        stats->grad_norm =
            wz_optimizer_step(&l->opt, link, group, &how->adamw, steps); /* tree sum, clip, AdamW, commit */
    else wz_optimizer_skip(&l->opt);                                     /* all were lost: nothing was learnt */
    sum_stats(l, link, group, turns, n, stats);
    wz_arena_reset(&l->lists);
    stats->seconds = wz_now() - begin;
}
