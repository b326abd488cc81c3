/* An optimizer step of one agent: prepare, then update, in the order of the data.
 *
 * Samples are packed into micro-batches of whole sequences; the forward that is trained is the forward that sampled,
 * so the log-probability of every token is compared with the rollout's, bit for bit, on every step (guarantee 1:
 * `mismatch`). */
#include "trainer/trainer.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static int rows_of(int micro, int longest) { return micro < longest ? longest : micro; }

void wz_learner_init(struct wz_learner *l, struct wz_model *model, struct wz_model *reference, int agent, bool feedback,
                     int leaves, const struct wz_group *group, int micro, int longest)
{
    longest = wz_pack_rows(wz_grain(model->be, model->type), longest);
    *l = (struct wz_learner){ .model = model, .agent = agent, .feedback = feedback };
    wz_pack_init(&l->pack, model, rows_of(micro, longest), true);
    if (reference) wz_pack_init(&l->reference, reference, rows_of(micro, longest), false);
    wz_optimizer_init(&l->opt, model, NULL, 0, leaves, group);
}

void wz_learner_share(struct wz_learner *l, int longest)
{
    wz_pack_share(&l->pack, wz_pack_rows(wz_grain(l->model->be, l->model->type), longest));
}

void wz_learner_criticise(struct wz_learner *l)
{
    const size_t rows = (size_t)l->pack.rows;

    wz_critic_init(&l->critic, l->model, l->opt.leaves, l->pack.rows);
    l->values = wz_alloc(2 * rows * sizeof *l->values);
    l->d_values = l->values + rows;
}

void wz_learner_finish(struct wz_learner *l)
{
    wz_critic_finish(&l->critic);
    free(l->values);
    wz_optimizer_finish(&l->opt);
    wz_pack_finish(&l->pack);
    wz_pack_finish(&l->reference);
    wz_arena_finish(&l->lists);
    *l = (struct wz_learner){ 0 };
}

static int leaf_of(int at, int batch, int leaves) { return (int)((int64_t)at * leaves / batch); }

int wz_leaf_owner(int index, int batch, int leaves, int learners)
{
    return leaf_of(index, batch, leaves) / (leaves / learners);
}

/* One of a turn's arrays is allocated once, however often the turn is learnt from. */
static void resize(float **x, size_t *n, size_t want)
{
    if (*n != want) *x = wz_realloc(*x, sizeof **x * want);
    *n = want;
}

static void reference_logps(struct wz_pack *p, float temperature, const struct wz_sample *samples, int n)
{
    struct wz_batches b = wz_batches_of(p, samples, 0, n, NULL);

    while (wz_batches_next(&b)) {
        wz_pack_forward(p, temperature);
        for (int i = b.from; i < b.to; i++) {
            Wz__Turn *t = samples[i].turn;
            const int row = p->first[i - b.from] + (int)t->n_context - 1 - wz_pack_past(p);
            resize(&t->ref_logp, &t->n_ref_logp, t->n_ids);
            memcpy(t->ref_logp, p->logp + row, sizeof *t->ref_logp * t->n_ids);
        }
    }
}

/* What the critic makes of the states that predict the samples' trained tokens, as the weights stand. */
static void sample_values(struct wz_learner *l, float temperature, const struct wz_sample_batch *b)
{
    struct wz_pack *p = &l->pack;
    const bool share = p->share;

    p->share = false; /* a prefix that is dropped goes back through a tape, and here is nothing to go back */
    struct wz_batches at = wz_batches_of(p, b->samples, 0, b->n, NULL);
    while (wz_batches_next(&at)) {
        wz_pack_forward(p, temperature);
        wz_critic_values(&l->critic, p->hidden, p->targets, p->n_rows, l->values);
        for (int i = at.from; i < at.to; i++) {
            struct wz_sample *s = &b->samples[i];
            const int row = p->first[i - at.from];
            s->value = wz_arena_alloc(&l->lists, 2 * sizeof *s->value * (size_t)s->tokens);
            s->target = s->value + s->tokens;
            for (int r = row, k = 0; r < row + p->count[i - at.from]; r++)
                if (p->targets[r] >= 0) s->value[k++] = l->values[r];
        }
    }
    p->share = share;
}

/* Guarantee 6: what was written by other weights than these is not trained on, ever. */
static void check_weights(const struct wz_learner *l, const struct wz_link *link, const struct wz_sample *s)
{
    const Wz__Turn *t = s->turn;

    if (t->version == l->model->version && t->weights == l->model->hash) return;
    wz_die("trainer: step %lld episode %d: agent %s: written by weights version %llu hash %016llx, here are version "
           "%llu hash %016llx",
           (long long)link->step, s->group, l->name ? l->name : "?", (unsigned long long)t->version,
           (unsigned long long)t->weights, (unsigned long long)l->model->version, (unsigned long long)l->model->hash);
}

static void check_finite(const struct wz_learner *l, const struct wz_link *link, const struct wz_sample *s,
                         const char *whose, double sum)
{
    if (isfinite(sum)) return;
    wz_die("trainer: step %lld sample %d: agent %s: %s log-probabilities are not all finite; its training "
           "diverged",
           (long long)link->step, s->at, l->name ? l->name : "?", whose);
}

static bool weighs(const struct wz_learn *how) { return how->importance && how->importance->weight; }

static bool kl_in_loss(const struct wz_learn *how) { return how->kl > 0 && how->kl_form && how->kl_form->slope; }

/* Fills turn->advantage with returns, and sums them. */
static struct wz_outcome outcome_of(const struct wz_sample *s, const struct wz_learn *how, bool reference)
{
    const double reward = how->estimate && how->estimate->relative ? 0 : s->reward; /* else it is added later */
    const double kl = kl_in_loss(how) ? 0 : how->kl;
    struct wz_outcome o = { .group = s->group, .reward = s->reward, .tokens = s->tokens };
    Wz__Turn *t = s->turn;

    if (!t) return o;
    resize(&t->advantage, &t->n_advantage, t->n_ids);
    const size_t first = (size_t)s->first - t->n_context;
    const float *ref = reference ? t->ref_logp : NULL;
    memset(t->advantage, 0, sizeof *t->advantage * first);
    if (s->value)
        wz_gae(reward, kl, t->logp + first, ref ? ref + first : NULL, s->value, how->discount, how->trace, s->tokens,
               t->advantage + first, s->target);
    else wz_returns(reward, kl, t->logp, ref, (int)t->n_ids, t->advantage);
    for (size_t k = first; k < t->n_ids; k++) {
        o.sum += (double)t->advantage[k];
        o.squares += (double)t->advantage[k] * (double)t->advantage[k];
        if (reference) o.kl += (double)t->logp[k] - (double)t->ref_logp[k];
    }
    return o;
}

/* own[batch], of which every member filled its own places, becomes everyone's. */
static void gather_outcomes(struct wz_arena *lists, struct wz_link *link, const struct wz_group *group,
                            struct wz_outcome *own, int batch, int leaves)
{
    struct wz_outcome *all = wz_arena_alloc(lists, sizeof *all * (size_t)batch * (size_t)group->n);

    wz_all_gather(link, group, &own->group, batch * (int)(sizeof *own / sizeof(double)), &all->group);
    for (int i = 0; i < batch; i++) own[i] = all[(size_t)wz_leaf_owner(i, batch, leaves, group->n) * (size_t)batch + i];
}

static void tell_outcomes(const struct wz_outcome *all, int batch, double samples, struct wz_step_stats *stats)
{
    double least = INFINITY, most = -INFINITY, reward = 0, kl = 0;

    for (int i = 0; i < batch; i++) {
        if (!(all[i].tokens > 0)) continue;
        reward += all[i].reward;
        kl += all[i].kl; /* nats: the sum over the sample's tokens */
        if (all[i].reward < least) least = all[i].reward;
        if (all[i].reward > most) most = all[i].reward;
    }
    stats->reward = samples > 0 ? reward / samples : NAN;
    stats->kl = samples > 0 ? kl / samples : NAN;
    stats->spread = samples > 0 ? most - least : NAN;
}

void wz_learner_prepare(struct wz_learner *l, const struct wz_learn *how, struct wz_link *link,
                        const struct wz_group *group, struct wz_sample_batch *b, struct wz_step_stats *stats)
{
    struct wz_outcome *all = wz_arena_alloc(&l->lists, sizeof *all * (size_t)b->batch);
    struct wz_model *reference = l->reference.model;

    for (int i = 0; i < b->n; i++)
        if (b->samples[i].turn) check_weights(l, link, &b->samples[i]);
    if (reference) {
        wz_model_onload(reference, l->opt.grad[0]); /* no leaf has begun: it is free, and large enough */
        reference_logps(&l->reference, (float)how->temperature, b->samples, b->n);
        wz_model_onload(reference, NULL);
    }
    if (how->estimate && how->estimate->values) sample_values(l, (float)how->temperature, b);
    for (int i = 0; i < b->n; i++) {
        struct wz_outcome *own = &all[b->samples[i].at];
        *own = outcome_of(&b->samples[i], how, reference != NULL);
        check_finite(l, link, &b->samples[i], "the rollout's and the reference's", own->kl);
        if (weighs(how) && b->samples[i].turn)
            b->samples[i].begun = wz_arena_alloc(&l->lists, sizeof(float) * (size_t)b->samples[i].tokens);
    }
    gather_outcomes(&l->lists, link, group, all, b->batch, l->opt.leaves * group->n);
    b->moments = wz_advantages(how->estimate, &l->lists, all, b->batch, b->samples, b->n);
    stats->return_std = 1 / b->moments.rstd;
    tell_outcomes(all, b->batch, b->moments.samples, stats);
    if (!reference) stats->kl = NAN;
}

/* Of the tokens of a leaf. */
struct leaf_sums {
    double loss, nll, value, clipped, capped, mismatch, max_gap;
};

/* Of a sample's trained tokens, by the rollout. */
static const float *sampled(const struct wz_sample *s) { return s->turn->logp + (s->first - (int)s->turn->n_context); }

/* The sum over a sample's trained tokens of now - old; now[i]: of the i-th row that has a target. */
static double sum_log_ratio(const float *now, const int *targets, const float *old, int count)
{
    double sum = 0;

    for (int r = 0; r < count; r++)
        if (!targets || targets[r] >= 0) sum += (double)now[r] - (double)*old++;
    return sum;
}

/* The loss's slope at the trained rows of one sample, whose rows are [row, row + count). */
static void sample_slopes(struct wz_pack *p, const struct wz_learn *how, const struct wz_sample *s, double share,
                          int row, int count, struct leaf_sums *sums)
{
    const Wz__Turn *t = s->turn;
    const float *by_rollout = t ? sampled(s) : NULL, *old = s->begun ? s->begun : by_rollout;
    const float *ref = t && t->n_ref_logp ? t->ref_logp + (by_rollout - t->logp) : NULL;
    const float *advantage = t ? t->advantage + (by_rollout - t->logp) : NULL;
    const double mean =
        how->sequence_ratio && t ? sum_log_ratio(p->logp + row, p->targets + row, old, count) / s->tokens : 0;
    const double whole =
        s->begun && how->importance->sequence ? sum_log_ratio(s->begun, NULL, by_rollout, s->tokens) : 0;

    for (int r = row, k = 0; r < row + count; r++) {
        p->d_logp[r] = 0;
        if (p->targets[r] < 0) continue;
        const double now = (double)p->logp[r], before = t ? (double)old[k] : now;
        const struct wz_loss_token token = { now, before, ref ? (double)ref[k] : 0, t ? (double)advantage[k] : 1,
                                             how->sequence_ratio && t ? mean : now - before };
        double value, divergence = 0, pull = 0, weight = 1;
        const double policy = how->loss->slope(how, &token, &value);
        if (kl_in_loss(how)) pull = how->kl * how->kl_form->slope(&token, &divergence);
        if (s->begun) {
            const double off = how->importance->sequence ? whole : before - (double)by_rollout[k], ratio = exp(off);
            weight = how->importance->weight(ratio, how->cap);
            sums->capped += weight != ratio;
        }
        const double slope = weight * policy - pull, gap = t ? fabs(now - (double)by_rollout[k]) : 0;
        value = weight * value - how->kl * divergence;
        p->d_logp[r] = (float)(-share * slope); /* minimised: the loss is -J */
        sums->loss -= share * value;
        sums->nll -= now;
        sums->clipped += policy == 0 && token.advantage != 0;
        sums->mismatch += gap != 0;
        if (gap > sums->max_gap) sums->max_gap = gap;
        k++;
    }
}

/* Keeps the log-probabilities of a sample's trained rows, before any weight has changed. */
static void keep_begun(const struct wz_pack *p, const struct wz_sample *s, int row, int count)
{
    for (int r = row, k = 0; r < row + count; r++)
        if (p->targets[r] >= 0) s->begun[k++] = p->logp[r];
}

/* The critic's loss at the same rows, whose values are there. */
static void sample_value_slopes(struct wz_learner *l, const struct wz_learn *how, const struct wz_sample *s,
                                double share, int row, int count, struct leaf_sums *sums)
{
    for (int r = row, k = 0; r < row + count; r++) {
        double slope = 0;
        if (l->pack.targets[r] >= 0) {
            sums->value += share * wz_critic_loss(l->values[r], s->value[k], s->target[k], how->value_clip, &slope);
            k++;
        }
        l->d_values[r] = share * slope;
    }
}

/* The backward of a pack whose slopes are filled in; `leaf`: which of this learner's. */
static void back(struct wz_learner *l, const struct wz_learn *how, int leaf, float *grad)
{
    struct wz_pack *p = &l->pack;

    if (!l->critic.w) {
        wz_pack_backward(p, (float)how->temperature, grad);
        return;
    }
    wz_critic_back(&l->critic, leaf, p->hidden, l->d_values, p->n_rows);
    float *d = wz_backward_head(p->model, p->work, p->targets, p->d_logp, (float)how->temperature, grad);
    if (how->value_coef > 0) wz_critic_through(&l->critic, d, l->d_values, how->value_coef, p->n_rows);
    wz_backward_body(p->model, p->cache, p->work, d, grad);
}

/* Forward, loss slope, backward over the samples [from, to) of one leaf, added to `grad`. */
static void leaf_gradient(struct wz_learner *l, const struct wz_learn *how, const struct wz_link *link,
                          const struct wz_sample_batch *b, int leaf, int from, int to, float *grad,
                          struct leaf_sums *sums)
{
    struct wz_pack *p = &l->pack;
    struct wz_batches at = wz_batches_of(p, b->samples, from, to, grad);

    while (wz_batches_next(&at)) {
        wz_pack_forward(p, (float)how->temperature);
        if (l->critic.w) wz_critic_values(&l->critic, p->hidden, p->targets, p->n_rows, l->values);
        for (int i = at.from; i < at.to; i++) {
            const struct wz_sample *s = &b->samples[i];
            const int row = i - at.from;
            const double length = how->length > 0 ? how->length : (double)s->tokens;
            double share = how->token_mean ? 1 / b->moments.tokens : 1 / (b->moments.samples * length);
            if (s->begun && !b->updates) keep_begun(p, s, p->first[row], p->count[row]);
            sample_slopes(p, how, s, share, p->first[row], p->count[row], sums);
            if (l->critic.w) sample_value_slopes(l, how, s, share, p->first[row], p->count[row], sums);
            check_finite(l, link, s, "its", sums->nll);
        }
        back(l, how, leaf, grad);
    }
    wz_pack_backward_end(p, grad);
}

/* The leaves' sums become the step's, added in order of the leaves, so that it does not depend on the number of
 * learners; there were samples, of so many tokens. */
static void gather_stats(struct wz_learner *l, struct wz_link *link, const struct wz_group *group,
                         const struct leaf_sums *own, double tokens, struct wz_step_stats *s)
{
    const int leaves = l->opt.leaves * group->n;
    struct leaf_sums *all = wz_arena_alloc(&l->lists, sizeof *all * (size_t)leaves);

    wz_all_gather(link, group, &own->loss, l->opt.leaves * (int)(sizeof *own / sizeof(double)), &all->loss);
    for (int i = 0; i < leaves; i++) {
        s->loss += all[i].loss;
        s->nll += all[i].nll;
        s->value_loss += all[i].value;
        s->clipped += all[i].clipped;
        s->capped += all[i].capped;
        s->mismatch += all[i].mismatch;
        if (all[i].max_gap > s->max_gap) s->max_gap = all[i].max_gap;
    }
    s->nll /= tokens;
    s->clipped /= tokens;
    s->capped /= tokens;
}

void wz_learner_update(struct wz_learner *l, const struct wz_learn *how, struct wz_link *link,
                       const struct wz_group *group, struct wz_sample_batch *b, int steps, struct wz_step_stats *stats)
{
    const int own = l->opt.leaves, leaves = own * group->n;
    struct leaf_sums *sums = wz_arena_alloc(&l->lists, sizeof *sums * (size_t)own);
    int from = 0;

    stats->samples = stats->tokens = 0;
    stats->loss = stats->nll = stats->clipped = stats->capped = stats->mismatch = stats->max_gap = stats->grad_norm = 0;
    stats->value_loss = l->critic.w ? 0 : NAN;
    stats->not_finite = false;
    stats->lr = wz_learning_rate(how->adamw.lr, how->adamw.warmup, how->adamw.floor, l->opt.steps, steps);
    if (!(b->moments.samples > 0)) { /* all samples were lost */
        stats->loss = stats->nll = stats->clipped = stats->capped = stats->grad_norm = stats->value_loss = NAN;
        wz_optimizer_skip(&l->opt);
        return;
    }
    for (int leaf = 0; leaf < own; leaf++) {
        int to = from;
        while (to < b->n && leaf_of(b->samples[to].at, b->batch, leaves) == group->me * own + leaf) to++;
        leaf_gradient(l, how, link, b, leaf, from, to, wz_optimizer_leaf(&l->opt), &sums[leaf]);
        wz_optimizer_leaf_done(&l->opt);
        from = to;
    }
    assert(from == b->n);
    stats->grad_norm = wz_optimizer_step(&l->opt, link, group, &how->adamw, steps); /* tree sum, clip, AdamW, commit */
    if (l->critic.w)
        wz_critic_step(&l->critic, link, group, &l->lists, own, &how->adamw,
                       wz_learning_rate(how->value_lr, how->adamw.warmup, how->adamw.floor, l->opt.steps - 1, steps),
                       l->opt.not_finite ? 0 : l->opt.steps);
    b->updates++;
    gather_stats(l, link, group, sums, b->moments.tokens, stats);
    stats->not_finite = l->opt.not_finite > 0;
    if (stats->not_finite) return;
    stats->samples = b->moments.samples;
    stats->tokens = b->moments.tokens;
    for (int i = 0; i < b->n; i++)
        if (b->samples[i].turn) b->samples[i].turn->trained = true;
}

void wz_learner_step(struct wz_learner *l, const struct wz_learn *how, struct wz_link *link,
                     const struct wz_group *group, Wz__Episode **episodes, int n, int batch, int steps, uint64_t seed,
                     struct wz_step_stats *stats)
{
    double begin = wz_now();
    struct wz_sample_batch b = { .samples = wz_arena_alloc(&l->lists, sizeof *b.samples * (size_t)n), .batch = batch };

    *stats = (struct wz_step_stats){ 0 };
    b.n = wz_samples_pick(b.samples, how, l->agent, l->feedback, seed, episodes, n);
    wz_learner_prepare(l, how, link, group, &b, stats);
    const int epochs = how->epochs > 0 ? how->epochs : 1;
    wz_learner_update(l, how, link, group, &b, steps * epochs, stats);
    const double mismatch = stats->mismatch, max_gap = stats->max_gap; /* afterwards the weights are others */
    for (int i = 1; i < epochs; i++) wz_learner_update(l, how, link, group, &b, steps * epochs, stats);
    stats->mismatch = mismatch;
    stats->max_gap = max_gap;
    wz_arena_reset(&l->lists);
    stats->seconds = wz_now() - begin;
}
