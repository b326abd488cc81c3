/* A second implementation, in double and from the papers' formulas, of all that lies between an episode and the next
 * weights: returns and whitening (each row of wz_estimates), the loss (each row of wz_losses), the schedule, the clip
 * of the norm, AdamW (Loshchilov & Hutter 2019). Only log-probabilities and their gradients are taken from the model,
 * which has tests of its own. Several steps with no setting at its default; every number of struct wz_step_stats is
 * compared. Then what no formula need say: rewarded tokens become likelier, and a bandit's reward rises. */
#include "tests/learner_help.h"

#include <float.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BATCH = 6, LEAVES = 2, CONTEXT = 5, STEPS = 6, LONGEST = 16, GIVEN = 1 };

/* ---- AdamW by hand ---------------------------------------------------------------------------------------- */

/* The optimizer of the reference: all in double. */
struct hand {
    size_t n;
    double *w, *m, *v;
    int t; /* updates done */
};

static struct hand hand_zeros(size_t n)
{
    return (struct hand){
        .n = n, .w = wz_alloc(n * sizeof(double)), .m = wz_alloc(n * sizeof(double)), .v = wz_alloc(n * sizeof(double))
    };
}

static struct hand hand_begin(const struct wz_model *model)
{
    struct hand h = hand_zeros(model->n_params);

    for (size_t i = 0; i < h.n; i++) h.w[i] = (double)model->params[i];
    return h;
}

static void hand_end(struct hand *h)
{
    free(h->w);
    free(h->m);
    free(h->v);
}

/* Linear warm-up to the peak at its last step, then half a cosine to `floor` of it at the stage's last step. */
static double hand_rate(const struct wz_adamw *a, int t, int steps)
{
    if (t + 1 <= a->warmup) return a->lr * (t + 1) / a->warmup;
    const double whole = steps - 1 - a->warmup, done = whole > 0 ? (t - a->warmup) / whole : 0;
    return a->lr * (a->floor + (1 - a->floor) * (1 + cos(acos(-1) * done)) / 2);
}

/* One update by g; returns its norm. */
static double hand_update(struct hand *h, const double *g, const struct wz_adamw *a, int steps)
{
    const double lr = hand_rate(a, h->t, steps), t = ++h->t;
    double norm = 0;

    for (size_t i = 0; i < h->n; i++) norm += g[i] * g[i];
    norm = sqrt(norm);
    const double scale = a->clip > 0 && norm > a->clip ? a->clip / norm : 1;
    for (size_t i = 0; i < h->n; i++) {
        const double x = scale * g[i];
        h->m[i] = a->beta1 * h->m[i] + (1 - a->beta1) * x;
        h->v[i] = a->beta2 * h->v[i] + (1 - a->beta2) * x * x;
        const double first = h->m[i] / (1 - pow(a->beta1, t)), second = h->v[i] / (1 - pow(a->beta2, t));
        h->w[i] -= lr * a->decay * h->w[i];
        h->w[i] -= lr * first / (sqrt(second) + a->eps);
    }
    return norm;
}

/* The largest distance of the model's weights from the reference's, in units of what a step of this size may round. */
static void compare_weights(const struct hand *h, const float *w, double lr, const char *what, int step)
{
    for (size_t i = 0; i < h->n; i++) {
        const double off = fabs((double)w[i] - h->w[i]), bound = 2e-3 * lr + 4e-7 * fabs(h->w[i]);
        if (!(off <= bound))
            fail_msg("%s, step %d: weight %zu is %.9g, by hand %.9g", what, step, i, (double)w[i], h->w[i]);
    }
}

/* Gradients that are given: warm-up, both betas, decay, a clip that bites in some steps and not in others, and the end
 * of the cosine. */
static void adamw_is_as_worked_out_by_hand(void **state)
{
    const struct wz_adamw how = { 0.01, 3, 0.2, 0.8, 0.93, 1e-3, 0.07, 1.5 };
    struct wz_model *m = tiny_learner(5, 4);
    struct hand h = hand_begin(m);
    struct wz_optimizer opt;
    double *g = wz_alloc(h.n * sizeof *g);
    int clipped = 0;

    wz_optimizer_init(&opt, m, NULL, 0, LEAVES, &group);
    for (int step = 0; step < 2 * STEPS; step++) {
        memset(g, 0, h.n * sizeof *g);
        for (int leaf = 0; leaf < LEAVES; leaf++) {
            float *to = wz_optimizer_leaf(&opt);
            for (size_t i = 0; i < h.n; i++) {
                to[i] = (float)((keyed((uint32_t)step, (uint32_t)leaf, (uint32_t)i) - 0.4) * (step % 3 ? 0.01 : 0.1));
                g[i] += (double)to[i];
            }
            wz_optimizer_leaf_done(&opt);
        }
        const double norm = wz_optimizer_step(&opt, &job, &group, &how, 2 * STEPS);
        assert_float_equal(norm, hand_update(&h, g, &how, 2 * STEPS), 1e-4 * norm);
        clipped += norm > how.clip;
        compare_weights(&h, m->params, hand_rate(&how, step, 2 * STEPS), "AdamW", step);
    }
    assert_in_range(clipped, 2, 2 * STEPS - 2);
    assert_float_equal(hand_rate(&how, 0, 2 * STEPS), 0.01 / 3, 1e-12); /* the reference, itself by hand */
    assert_float_equal(hand_rate(&how, 3, 2 * STEPS), 0.01, 1e-12);
    assert_float_equal(hand_rate(&how, 2 * STEPS - 1, 2 * STEPS), 0.002, 1e-12);
    wz_optimizer_finish(&opt);
    hand_end(&h);
    model_end(m);
    free(g);
}

/* ---- whole steps ------------------------------------------------------------------------------------------ */

/* An episode with one turn of these weights. The first id was given, every third old log-probability is exact, the
 * others are off by up to 0.4; rewards are those of both sorts of agents. The last one is lost. */
static Wz__Episode *episode(const struct wz_model *m, struct wz_pack *pack, float temperature, uint32_t index,
                            uint32_t step)
{
    Wz__Episode *e = wz_episode_new();
    Wz__Turn *t = wz_episode_turn(e);
    const int n = 3 + (int)index % 4;

    e->index = e->place = index;
    t->version = m->version;
    t->weights = m->hash;
    t->given = GIVEN;
    t->reward = (index + step) % 3 ? 0.35 : 1;
    t->context = wz_alloc(sizeof *t->context * CONTEXT);
    t->n_context = 2 + (index + 2) % 4; /* some, not the first, are what others begin with */
    for (uint32_t k = 0; k < t->n_context; k++)
        t->context[k] = k < 3 ? 7 : (int)(TINY_VOCAB * keyed(step, index, 100 + k));
    wz_turn_reserve(t, (size_t)n);
    for (uint32_t k = 0; k < (uint32_t)n; k++) wz_turn_add(t, (int)(TINY_VOCAB * keyed(step, index, k)), 0);
    wz_pack_clear(pack);
    assert_true(wz_pack_turn(pack, t));
    wz_pack_forward(pack, temperature);
    for (size_t k = 0; k < (size_t)n; k++)
        t->logp[k] = pack->logp[t->n_context - 1 + k] +
                     (k % 3 ? (float)(0.8 * (keyed(step, index, 200 + (uint32_t)k) - 0.5)) : 0);
    wz_pack_clear(pack);
    if (index == BATCH - 1) wz_set_string(&e->discard, "lost", 4);
    return e;
}

/* A sample of n trained tokens, as the reference has it. */
struct token {
    double now, old, ref, advantage, begun; /* begun: now, when the step's first update began */
    double value, was, target;              /* by the critic: now, then, and what it is to be */
};
struct sample {
    struct wz_sample of; /* the trainer's view of it, for wz_pack_sample */
    int n;
    struct token tokens[LONGEST];
    double reward;
};

/* The reward that each estimate puts into the returns, from the samples of the same prompt: `peers` neighbours. */
static double plain_by_hand(double own, const double *peers, int n) { return own; }

static double mean_by_hand(const double *peers, int n)
{
    double sum = 0;

    for (int i = 0; i < n; i++) sum += peers[i] / n;
    return sum;
}

static double less_mean_by_hand(double own, const double *peers, int n) { return own - mean_by_hand(peers, n); }

static double grpo_by_hand(double own, const double *peers, int n)
{
    double squares = 0;

    for (int i = 0; i < n; i++) squares += pow(peers[i] - mean_by_hand(peers, n), 2) / (n - 1);
    return (own - mean_by_hand(peers, n)) / (sqrt(squares) + 1e-4);
}

static double rloo_by_hand(double own, const double *peers, int n)
{
    double others = -own;

    for (int i = 0; i < n; i++) others += peers[i];
    return own - others / (n - 1);
}

static const struct {
    const char *name;
    double (*relative)(double own, const double *peers, int n);
    bool whitens;
} estimates[] = { { "reinforce++", plain_by_hand, true }, { "reinforce++-baseline", less_mean_by_hand, true },
                  { "grpo", grpo_by_hand, false },        { "dr_grpo", less_mean_by_hand, false },
                  { "rloo", rloo_by_hand, false },        { "gae", plain_by_hand, true } };

/* The sum over the tokens from k on of (gamma lambda)^(j - k) times what j brings more than its state was worth. */
static double gae_by_hand(const struct wz_learn *how, const struct sample *s, double kl, int k)
{
    double sum = 0;

    for (int j = k; j < s->n; j++) {
        const bool last = j == s->n - 1;
        const double brings =
            (last ? s->reward : how->discount * s->tokens[j + 1].was) - kl * (s->tokens[j].old - s->tokens[j].ref);
        sum += pow(how->discount * how->trace, j - k) * (brings - s->tokens[j].was);
    }
    return sum;
}

static void advantages_by_hand(const struct wz_learn *how, struct sample *s, int n, size_t e, double kl, double *std)
{
    const int peers = how->peers ? how->peers : 1;
    double sum = 0, squares = 0, tokens = 0;

    for (int i = 0; i < n; i++) {
        double rewards[BATCH];
        int first = i / peers * peers, count = 0;
        for (int j = first; j < first + peers && j < n; j++) rewards[count++] = s[j].reward;
        for (int k = 0; k < s[i].n; k++) {
            double penalty = 0;
            for (int j = k; j < s[i].n; j++) penalty += s[i].tokens[j].old - s[i].tokens[j].ref;
            s[i].tokens[k].advantage = estimates[e].relative(s[i].reward, rewards, count) - kl * penalty;
            if (!strcmp(estimates[e].name, "gae")) s[i].tokens[k].advantage = gae_by_hand(how, &s[i], kl, k);
            s[i].tokens[k].target = s[i].tokens[k].advantage + s[i].tokens[k].was;
            sum += s[i].tokens[k].advantage;
            tokens++;
        }
    }
    const double mean = sum / tokens;
    for (int i = 0; i < n; i++)
        for (int k = 0; k < s[i].n; k++) squares += pow(s[i].tokens[k].advantage - mean, 2);
    *std = sqrt(squares / tokens);
    for (int i = 0; i < n && estimates[e].whitens; i++)
        for (int k = 0; k < s[i].n; k++) s[i].tokens[k].advantage = (s[i].tokens[k].advantage - mean) / *std;
}

/* J of one token, and its derivative, from the definition: all of its terms are evaluated and compared. */
static double clip_by_hand(const struct wz_learn *how, double ratio, double a, double *value)
{
    const double high = how->epsilon_high > 0 ? how->epsilon_high : how->epsilon;
    const double bounded = fmin(fmax(ratio, 1 - how->epsilon), 1 + high);
    double j = fmin(ratio * a, bounded * a);

    if (a < 0 && how->dual > 0) j = fmax(j, how->dual * a);
    *value = j;
    return j == ratio * a ? j : 0;
}

static double cispo_by_hand(const struct wz_learn *how, double ratio, double a, double *value)
{
    const double high = how->epsilon_high > 0 ? how->epsilon_high : how->epsilon,
                 w = ratio < 1 + high ? ratio : 1 + high;

    *value *= w * a;
    return w * a;
}

static double likelihood_by_hand(const struct wz_learn *how, double ratio, double a, double *value) { return 1; }

static const struct {
    const char *name;
    double (*slope)(const struct wz_learn *how, double ratio, double a, double *value);
} losses[] = { { "clip", clip_by_hand }, { "cispo", cispo_by_hand }, { "cross_entropy", likelihood_by_hand } };

/* The importance weight of a token of probability ratio r in a sample of the ratio `whole`. */
static double weight_by_hand(const struct wz_learn *how, double r, double whole)
{
    const char *name = how->importance ? how->importance->name : "none";
    const double ratio = strncmp(name, "sequence_", 9) ? r : whole;

    if (!strcmp(name, "none")) return 1;
    if (ratio <= how->cap) return ratio;
    return strstr(name, "_mask") ? 0 : how->cap;
}

/* An estimate of the divergence at one token, by its name, and its derivative as a quotient of differences. */
static double divergence_by_hand(const char *name, double x)
{
    return strcmp(name, "k2") ? exp(x) - 1 - x : 0.5 * x * x;
}

static double divergence_slope(const char *name, double x)
{
    const double h = 1e-5;

    return -(divergence_by_hand(name, x + h) - divergence_by_hand(name, x - h)) / (2 * h);
}

/* Runs one sample alone; now[k]: log-probability of its k-th trained token. Returns how many. */
static int run_alone(struct wz_pack *pack, const struct wz_sample *s, float temperature, double *now)
{
    int n = 0;

    wz_pack_clear(pack);
    assert_true(wz_pack_sample(pack, s));
    wz_pack_forward(pack, temperature);
    for (int r = 0; r < pack->n_rows; r++)
        if (pack->targets[r] >= 0) now[n++] = (double)pack->logp[r];
    return n;
}

/* The value head by hand, its gradient, and what of its loss reaches the model. */
struct head {
    struct hand by;
    double *g, coef;
};

/* The values of the states that predict the trained tokens of the one sample in the pack. */
static void values_alone(const struct wz_pack *pack, const struct head *head, double *value)
{
    const size_t channels = head->by.n - 1;
    int k = 0;

    for (int r = 0; r < pack->n_rows; r++) {
        if (pack->targets[r] < 0) continue;
        value[k] = head->by.w[channels];
        for (size_t c = 0; c < channels; c++)
            value[k] += head->by.w[c] * (double)pack->hidden[(size_t)r * channels + c];
        k++;
    }
}

/* g += sum over the sample's tokens of d[k] times the gradient of its log-probability, and with a head of d_value[k]
 * times that of its value. */
static void add_gradient(struct wz_pack *pack, const struct wz_sample *s, float temperature, const double *d,
                         const struct head *head, const double *d_value, float *buffer, double *g, size_t n)
{
    const size_t channels = head ? head->by.n - 1 : 0;
    double now[LONGEST];
    int k = 0;

    run_alone(pack, s, temperature, now);
    for (int r = 0; r < pack->n_rows; r++) pack->d_logp[r] = pack->targets[r] < 0 ? 0 : (float)d[k++];
    memset(buffer, 0, n * sizeof *buffer);
    float *back = wz_backward_head(pack->model, pack->work, pack->targets, pack->d_logp, temperature, buffer);
    k = 0;
    for (int r = 0; r < pack->n_rows && head; r++) {
        if (pack->targets[r] < 0) continue;
        for (size_t c = 0; c < channels; c++) {
            head->g[c] += d_value[k] * (double)pack->hidden[(size_t)r * channels + c];
            back[(size_t)r * channels + c] += (float)(head->coef * d_value[k] * head->by.w[c]);
        }
        head->g[channels] += d_value[k++];
    }
    wz_backward_body(pack->model, pack->cache, pack->work, back, buffer);
    wz_pack_backward_end(pack, buffer);
    for (size_t i = 0; i < n; i++) g[i] += (double)buffer[i];
}

/* The step by hand, from samples whose log-probabilities are filled in: fills g with the gradient of the loss and
 * returns what the step is to report. */
static struct wz_step_stats step_by_hand(struct sample *s, int n, const struct wz_learn *how, struct wz_pack *pack,
                                         bool reference, const struct head *head, double *g, size_t n_params)
{
    struct wz_step_stats want = { .samples = n, .kl = reference ? 0 : NAN, .value_loss = head ? 0 : NAN };
    float *buffer = wz_alloc(n_params * sizeof *buffer);
    double least = INFINITY, most = -INFINITY;
    size_t e = 0, l = 0;

    while (how->estimate && strcmp(estimates[e].name, how->estimate->name) != 0) e++;
    while (strcmp(losses[l].name, how->loss->name) != 0) l++;
    const char *form = how->kl > 0 && how->kl_form && how->kl_form->slope ? how->kl_form->name : NULL;
    if (how->estimate) advantages_by_hand(how, s, n, e, form ? 0 : how->kl, &want.return_std);
    for (int i = 0; i < n; i++) want.tokens += s[i].n;
    memset(g, 0, n_params * sizeof *g);
    if (head) memset(head->g, 0, head->by.n * sizeof *head->g);
    for (int i = 0; i < n; i++) {
        const double length = how->length > 0 ? how->length : s[i].n;
        const double share = how->token_mean ? 1 / want.tokens : 1 / (n * length);
        const bool weighed = how->importance && strcmp(how->importance->name, "none") != 0;
        double d[LONGEST], d_value[LONGEST], product = 1, whole = 1;
        for (int k = 0; k < s[i].n; k++) {
            const struct token *t = &s[i].tokens[k];
            product *= exp(t->now - (weighed ? t->begun : t->old));
            whole *= exp(t->begun - t->old);
        }
        for (int k = 0; k < s[i].n; k++) {
            const struct token *t = &s[i].tokens[k];
            const double ratio =
                how->sequence_ratio ? pow(product, 1.0 / s[i].n) : exp(t->now - (weighed ? t->begun : t->old));
            const double weight = weight_by_hand(how, exp(t->begun - t->old), whole);
            double value = t->now;
            const double slope = losses[l].slope(how, ratio, t->advantage, &value);
            value *= weight;
            d[k] = -share * weight * slope;
            if (form) value -= how->kl * divergence_by_hand(form, t->ref - t->now);
            if (form) d[k] += share * how->kl * divergence_slope(form, t->ref - t->now);
            want.loss -= share * value;
            want.nll -= t->now / want.tokens;
            want.clipped += (slope == 0 && t->advantage != 0) / want.tokens;
            want.capped += weight == 0 || weight == how->cap ? 1 / want.tokens : 0;
            want.mismatch += t->now != t->old;
            want.max_gap = fmax(want.max_gap, fabs(t->now - t->old));
            if (reference) want.kl += (t->old - t->ref) / n;
            if (!head) continue;
            const double moved = fmax(-how->value_clip, fmin(how->value_clip, t->value - t->was));
            const double far = pow(t->value - t->target, 2), clipped = pow(t->was + moved - t->target, 2);
            want.value_loss += share * 0.5 * fmax(far, clipped);
            d_value[k] = far >= clipped ? share * (t->value - t->target) : 0;
        }
        want.reward += s[i].reward / n;
        least = fmin(least, s[i].reward);
        most = fmax(most, s[i].reward);
        add_gradient(pack, &s[i].of, (float)how->temperature, d, head, d_value, buffer, g, n_params);
    }
    want.spread = most - least;
    free(buffer);
    return want;
}

static void compare_stats(const struct wz_step_stats *got, const struct wz_step_stats *want, bool whitened)
{
    const struct {
        const char *name;
        double got, want, bound;
    } rows[] = {
        { "samples", got->samples, want->samples, 0 },
        { "tokens", got->tokens, want->tokens, 0 },
        { "reward", got->reward, want->reward, 1e-12 },
        { "spread", got->spread, want->spread, 1e-12 },
        { "kl", got->kl, want->kl, 1e-9 },
        { "return_std", whitened ? got->return_std : want->return_std, want->return_std, 1e-5 },
        { "loss", got->loss, want->loss, 1e-5 },
        { "nll", got->nll, want->nll, 1e-9 },
        { "clipped", got->clipped, want->clipped, 1e-9 },
        { "capped", got->capped, want->capped, 1e-9 },
        { "mismatch", got->mismatch, want->mismatch, 0 },
        { "max_gap", got->max_gap, want->max_gap, 1e-9 },
        { "value_loss", got->value_loss, want->value_loss, 1e-5 },
        { "grad_norm", got->grad_norm, want->grad_norm, 1e-4 * want->grad_norm },
        { "lr", got->lr, want->lr, 1e-12 },
    };

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        if (isnan(rows[i].want) ? isnan(rows[i].got) : fabs(rows[i].got - rows[i].want) <= rows[i].bound) continue;
        fail_msg("%s is %.12g, by hand %.12g", rows[i].name, rows[i].got, rows[i].want);
    }
    assert_true(got->seconds > 0 && !got->not_finite);
}

/* Sums over the steps of what has to be seen at least once. */
struct seen {
    double clipped, capped, mismatch, exact, bites, kl, value;
};

/* The value head's update: its own rate, neither decay nor clip. Returns the rate. */
static double head_update(struct head *head, const struct wz_learn *how, int steps)
{
    struct wz_adamw own = how->adamw;

    own.lr = how->value_lr;
    own.decay = own.clip = 0;
    const double lr = hand_rate(&own, head->by.t, steps);
    hand_update(&head->by, head->g, &own, steps);
    return lr;
}

/* STEPS steps of one learner against the reference. set: of a supervised loss, else NULL. */
static struct seen follow(const struct wz_learn *how, struct wz_model *reference, const struct wz_sft_set *set,
                          const char *what)
{
    struct wz_model *m = tiny_learner(11, 5);
    struct hand h = hand_begin(m);
    struct wz_learner l;
    struct wz_pack probe, ref = { 0 };
    struct sample samples[BATCH];
    struct seen seen = { 0 };
    double *g = wz_alloc(h.n * sizeof *g);
    const float temperature = (float)how->temperature;
    const int epochs = how->epochs > 0 ? how->epochs : 1;
    const bool valued = how->estimate && how->estimate->values;
    struct head own = { .coef = how->value_coef }, *head = valued ? &own : NULL;

    wz_learner_init(&l, m, reference, 0, false, LEAVES, &group, 24, 24);
    if (valued) {
        wz_learner_criticise(&l);
        own.by = hand_zeros((size_t)l.critic.channels + 1);
        own.g = wz_alloc(own.by.n * sizeof *own.g);
        for (size_t i = 0; i < own.by.n; i++) l.critic.w[i] = (float)(keyed(31, 1, (uint32_t)i) - 0.5);
        for (size_t i = 0; i < own.by.n; i++) own.by.w[i] = (double)l.critic.w[i];
    }
    wz_pack_init(&probe, m, 24, true);
    if (reference) wz_pack_init(&ref, reference, 24, false);
    for (uint32_t step = 0; step < STEPS; step++) {
        Wz__Episode *episodes[BATCH];
        struct wz_sample picked[BATCH];
        struct wz_sample_batch b = { .samples = picked, .batch = BATCH };
        struct wz_step_stats got = { .seconds = 1 };
        int n = set ? BATCH : BATCH - 1;
        for (uint32_t i = 0; i < BATCH; i++) {
            struct sample *s = &samples[i];
            double now[LONGEST], then[LONGEST], value[LONGEST] = { 0 };
            *s = (struct sample){ 0 };
            if (set)
                s->of.example =
                    &set->list[wz_below((struct wz_key){ 4, WZ_RNG_DATA, step, i, 0, 0 }, (uint32_t)set->n)];
            else {
                Wz__Turn *t = (episodes[i] = episode(m, &probe, temperature, i, step))->turns[0];
                s->of = (struct wz_sample){ .turn = t, .first = (int)t->n_context + GIVEN };
                s->reward = t->reward;
            }
            s->n = run_alone(&probe, &s->of, temperature, now);
            if (valued) values_alone(&probe, head, value);
            if (reference) assert_int_equal(run_alone(&ref, &s->of, temperature, then), s->n);
            for (int k = 0; k < s->n; k++)
                s->tokens[k] = (struct token){ now[k],
                                               set ? now[k] : (double)s->of.turn->logp[GIVEN + k],
                                               reference ? then[k] : 0,
                                               1,
                                               now[k],
                                               value[k],
                                               value[k],
                                               0 };
            for (int k = 0; k < s->n && !reference; k++) s->tokens[k].ref = s->tokens[k].old;
        }
        for (int epoch = 0; epoch < epochs; epoch++) {
            for (int i = 0; i < n && epoch; i++) {
                double now[LONGEST], value[LONGEST] = { 0 };
                run_alone(&probe, &samples[i].of, temperature, now);
                if (valued) values_alone(&probe, head, value);
                for (int k = 0; k < samples[i].n; k++) samples[i].tokens[k].now = now[k];
                for (int k = 0; k < samples[i].n; k++) samples[i].tokens[k].value = value[k];
            }
            struct wz_step_stats want = step_by_hand(samples, n, how, &probe, reference != NULL, head, g, h.n);
            want.lr = hand_rate(&how->adamw, h.t, STEPS * epochs);
            want.grad_norm = hand_update(&h, g, &how->adamw, STEPS * epochs);
            wz_pack_clear(&probe);
            if (set) wz_sft_step(&l, how, &job, &group, set, BATCH, step, STEPS, 4, &got);
            else if (epochs == 1) wz_learner_step(&l, how, &job, &group, episodes, BATCH, BATCH, STEPS, 4, &got);
            else {
                if (!epoch) b.n = wz_samples_pick(picked, how, 0, false, 4, episodes, BATCH);
                if (!epoch) wz_learner_prepare(&l, how, &job, &group, &b, &got);
                wz_learner_update(&l, how, &job, &group, &b, STEPS * epochs, &got);
            }
            compare_stats(&got, &want, !set);
            compare_weights(&h, m->params, want.lr, what, (int)step);
            if (valued)
                compare_weights(&own.by, l.critic.w, head_update(head, how, STEPS * epochs), "critic", (int)step);
            seen.value += valued ? want.value_loss : 0;
            seen.clipped += want.clipped;
            seen.capped += want.capped;
            seen.mismatch += want.mismatch;
            seen.exact += want.tokens - want.mismatch;
            seen.bites += want.grad_norm > how->adamw.clip;
            seen.kl += reference ? fabs(want.kl) : 0;
        }
        wz_arena_reset(&l.lists);
        for (int i = 0; i < BATCH && !set; i++) {
            assert_int_equal(episodes[i]->turns[0]->trained, i < BATCH - 1);
            wz_episode_free(episodes[i]);
        }
    }
    assert_true(l.opt.steps == STEPS * epochs && l.opt.skipped == 0 && m->version == 3 + (uint64_t)l.opt.steps);
    wz_pack_finish(&probe);
    wz_pack_finish(&ref);
    wz_learner_finish(&l);
    model_end(m);
    hand_end(&h);
    hand_end(&own.by);
    free(own.g);
    free(g);
    return seen;
}

/* A learner with no value at its default; the fourth and fifth are AdamW's betas. */
static struct wz_learn unusual(const struct wz_loss *loss, bool token_mean)
{
    return (struct wz_learn){ .adamw = { 0.02, 2, 0.3, 0.7, 0.9, 1e-3, 0.05, token_mean ? 1.2 : 0.9 },
                              .loss = loss,
                              .kl = 0.3,
                              .epsilon = 0.13,
                              .discount = 0.9,
                              .trace = 0.8,
                              .value_lr = 0.03,
                              .value_coef = 0.4,
                              .value_clip = 0.05,
                              .revision = 0.7,
                              .temperature = 1.4,
                              .token_mean = token_mean };
}

/* What else can be chosen, some of it at once. */
static struct wz_learn varied(struct wz_learn how, int variant)
{
    struct wz_err err;

    if (variant & 2) how.kl = 0;
    if (variant < 4) return how;
    if (variant >= 6) { /* in a second update the ratio to the first is not 1 */
        how.importance = &wz_importances[variant - 5];
        how.cap = 1.1;
        how.epochs = 2;
        how.sequence_ratio = variant == 8;
        how.kl_form = variant == 9 ? wz_kl_find("k3", &err) : NULL;
        return how;
    }
    how.kl_form = wz_kl_find(variant == 5 ? "k2" : "k3", &err);
    how.epsilon_high = variant == 5 ? 0 : 0.2;
    how.dual = variant == 5 ? 0 : 1.15;
    how.sequence_ratio = variant == 5;
    how.length = variant == 4 ? 9 : 0;
    how.kl = 0.3;
    return how;
}

static void steps_are_as_worked_out_by_hand(void **state)
{
    enum { PEERS = 3 }; /* of whom the last prompt has one less: the lost one */
    struct wz_model *reference = tiny_learner(12, 5);

    for (const struct wz_loss *loss = wz_losses; loss->name; loss++)
        for (const struct wz_estimate *e = wz_estimates; e->name && !loss->supervised; e++)
            for (int variant = 0; variant < 10; variant++) {
                struct wz_learn how = varied(unusual(loss, variant & 1), variant);
                how.pick = wz_sample_picks;
                how.estimate = e;
                how.peers = e->relative ? PEERS : 1;
                const struct seen seen = follow(&how, how.kl > 0 ? reference : NULL, NULL, e->name);
                assert_true(seen.mismatch > 0 && seen.exact > 0);
                assert_true((seen.clipped > 0) == (loss == wz_losses) && (seen.capped > 0) == (variant >= 6));
                assert_true((seen.kl > 0) == (how.kl > 0) && (seen.value > 0) == e->values);
                assert_in_range((int)seen.bites, 1, 2 * STEPS); /* the clip of the norm */
            }
    model_end(reference);
}

static void supervised_steps_are_as_worked_out_by_hand(void **state)
{
    int ids[3][LONGEST];
    bool mask[LONGEST];
    struct wz_sft_example list[3] = { { ids[0], mask, 16 }, { ids[1], mask, 7 }, { ids[2], mask, 11 } };
    const struct wz_sft_set set = { list, 3, 16, 34 };

    for (int i = 0; i < 3; i++) ids_of(ids[i], LONGEST, TINY_VOCAB, 60 + (uint64_t)i);
    for (int i = 0; i < LONGEST; i++) mask[i] = i > 3 && i != 8;
    for (const struct wz_loss *loss = wz_losses; loss->name; loss++)
        for (int token_mean = 0; token_mean < 2 && loss->supervised; token_mean++) {
            struct wz_learn how = unusual(loss, token_mean);
            how.kl = 0;
            assert_true(follow(&how, NULL, &set, loss->name).bites > 0);
        }
}

static struct wz_loss_token told[BATCH * LONGEST];
static int n_told;

static double listen(const struct wz_learn *how, const struct wz_loss_token *t, double *value)
{
    told[n_told++] = *t;
    *value = 0;
    return 0;
}

/* A loss of one's own is told each trained token's log-probabilities, the reference's among them, and its advantage. */
static void a_loss_is_told_all_of_a_token(void **state)
{
    const struct wz_loss loss = { "listen", false, listen };
    struct wz_model *m = tiny_learner(11, 5), *reference = tiny_learner(12, 5);
    struct wz_learn how = unusual(&loss, false);
    struct wz_learner l;
    struct wz_pack probe, ref;
    struct wz_step_stats stats;
    Wz__Episode *e;
    double now[LONGEST], then[LONGEST];

    how.pick = wz_sample_picks;
    how.estimate = wz_estimates;
    wz_learner_init(&l, m, reference, 0, false, LEAVES, &group, 24, 24);
    wz_pack_init(&probe, m, 24, true);
    wz_pack_init(&ref, reference, 24, false);
    e = episode(m, &probe, (float)how.temperature, 3, 1);
    const Wz__Turn *t = e->turns[0];
    const struct wz_sample s = { .turn = e->turns[0], .first = (int)t->n_context + GIVEN };
    const int n = run_alone(&probe, &s, (float)how.temperature, now);
    assert_int_equal(run_alone(&ref, &s, (float)how.temperature, then), n);
    wz_pack_clear(&probe);
    n_told = 0;
    wz_learner_step(&l, &how, &job, &group, &e, 1, BATCH, STEPS, 4, &stats);
    assert_true(n_told == n && n > 2);
    for (int k = 0; k < n; k++)
        assert_true(told[k].now == now[k] && told[k].ref == then[k] && told[k].old == (double)t->logp[GIVEN + k] &&
                    told[k].advantage == (double)t->advantage[GIVEN + k]);
    wz_episode_free(e);
    wz_pack_finish(&probe);
    wz_pack_finish(&ref);
    wz_learner_finish(&l);
    model_end(m);
    model_end(reference);
}

/* ---- slopes ------------------------------------------------------------------------------------------------- */

enum { TOKENS = 5 }; /* of a sample; token 0 is the one whose log-probability moves */

/* A sample's part of J as its formula is written, as a function of its first token's log-probability. `fixed`: the
 * ratio is held, which a derivative does not go through (CISPO). */
static double written(const struct wz_learn *how, const double *now, const double *old, double advantage, bool fixed,
                      const double *fixed_now)
{
    double sum = 0, mean = 0, value;

    for (int k = 0; k < TOKENS; k++) mean += ((fixed ? fixed_now : now)[k] - old[k]) / TOKENS;
    for (int k = 0; k < TOKENS; k++) {
        const struct wz_loss_token t = { .now = now[k],
                                         .old = old[k],
                                         .ref = -1.5 + 0.2 * k,
                                         .advantage = advantage,
                                         .log_ratio =
                                             how->sequence_ratio ? mean : (fixed ? fixed_now : now)[k] - old[k] };
        how->loss->slope(how, &t, &value);
        sum += value / TOKENS;
        if (how->kl_form && how->kl_form->slope) how->kl_form->slope(&t, &value), sum -= how->kl * value / TOKENS;
    }
    return sum;
}

/* What a row returns as a derivative is that of what it returns as a value, by finite differences: for every loss,
 * every form of the KL penalty, ratios of tokens and of sequences, and on both sides of every clip. */
static void slopes_are_finite_differences(void **state)
{
    enum { DRAWS = 400 };
    int sides[2] = { 0 }; /* slopes that are 0, and not */

    for (const struct wz_loss *loss = wz_losses; loss->name; loss++)
        for (const struct wz_kl *kl = wz_kls; kl->name; kl++)
            for (int sequence = 0; sequence < 2; sequence++)
                for (uint32_t i = 0; i < DRAWS; i++) {
                    struct wz_learn how = { .loss = loss, .kl_form = kl, .kl = kl->slope ? 0.3 : 0, .epsilon = 0.1 };
                    how.epsilon_high = i % 2 ? 0.3 : 0;
                    how.dual = i % 4 < 2 ? 1.4 : 0;
                    how.sequence_ratio = sequence;
                    const double advantage = 4 * keyed(i, 1, 0) - 2, h = 1e-6;
                    double now[TOKENS], old[TOKENS], held[TOKENS], mean = 0, value, slope;
                    for (uint32_t k = 0; k < TOKENS; k++) {
                        held[k] = now[k] = -3 * keyed(i, 2, k) - 0.01;
                        old[k] = now[k] + 1.6 * keyed(i, 3, sequence ? 0 : k) - 0.8;
                        mean += (now[k] - old[k]) / TOKENS;
                    }
                    const bool fixed = !strcmp(loss->name, "cispo");
                    const struct wz_loss_token t = { now[0], old[0], -1.5, advantage,
                                                     sequence ? mean : now[0] - old[0] };
                    slope = loss->slope(&how, &t, &value);
                    sides[slope != 0]++;
                    if (kl->slope) slope -= how.kl * kl->slope(&t, &value);
                    now[0] = held[0] + h;
                    double numeric = written(&how, now, old, advantage, fixed, held);
                    now[0] = held[0] - h;
                    numeric = (numeric - written(&how, now, old, advantage, fixed, held)) / (2 * h);
                    if (fabs(numeric * TOKENS - slope) > 1e-6 * (1 + fabs(slope)))
                        fail_msg("%s, kl %s, draw %u: slope %.9g, by differences %.9g", loss->name, kl->name, i, slope,
                                 numeric * TOKENS);
                }
    assert_true(sides[0] > 100 && sides[1] > 100);
    for (uint32_t i = 0; i < DRAWS; i++) {
        const double value = keyed(i, 5, 0), old = keyed(i, 5, 1), target = keyed(i, 5, 2), clip = i % 3 ? 0.2 : 0;
        double slope, ignored;
        wz_critic_loss(value, old, target, clip, &slope);
        const double numeric = (wz_critic_loss(value + 1e-6, old, target, clip, &ignored) -
                                wz_critic_loss(value - 1e-6, old, target, clip, &ignored)) /
                               2e-6;
        if (fabs(numeric - slope) > 1e-6)
            fail_msg("critic, draw %u: slope %.9g, by differences %.9g", i, slope, numeric);
    }
}

/* Every row has its reference here. */
static void every_row_has_a_reference(void **state)
{
    size_t n = 0;

    for (const struct wz_loss *l = wz_losses; l->name; l++, n++)
        if (n >= WZ_COUNT(losses) || strcmp(losses[n].name, l->name)) fail_msg("no loss '%s' by hand", l->name);
    n = 0;
    for (const struct wz_estimate *e = wz_estimates; e->name; e++, n++)
        if (n >= WZ_COUNT(estimates) || strcmp(estimates[n].name, e->name))
            fail_msg("no estimate '%s' by hand", e->name);
}

/* Several epochs: prepare once, then as many updates, by a schedule that is so much longer. */
static void epochs_are_updates_from_one_batch(void **state)
{
    struct wz_model *m[2] = { tiny_learner(11, 5), tiny_learner(11, 5) };
    struct wz_learn how = unusual(wz_losses, false);
    struct wz_step_stats stats[2];

    how.pick = wz_sample_picks;
    how.estimate = wz_estimates;
    how.epochs = 3;
    for (int by_hand = 0; by_hand < 2; by_hand++) {
        struct wz_sample samples[BATCH];
        struct wz_sample_batch b = { .samples = samples, .batch = BATCH };
        struct wz_learner l;
        struct wz_pack probe;
        Wz__Episode *episodes[BATCH];
        wz_learner_init(&l, m[by_hand], NULL, 0, false, LEAVES, &group, 24, 24);
        wz_pack_init(&probe, m[by_hand], 24, true);
        for (uint32_t i = 0; i < BATCH; i++) episodes[i] = episode(m[by_hand], &probe, (float)how.temperature, i, 2);
        if (by_hand) {
            double mismatch = 0;
            b.n = wz_samples_pick(samples, &how, 0, false, 4, episodes, BATCH);
            wz_learner_prepare(&l, &how, &job, &group, &b, &stats[1]);
            for (int i = 0; i < 3; i++) {
                wz_learner_update(&l, &how, &job, &group, &b, 3 * STEPS, &stats[1]);
                if (!i) mismatch = stats[1].mismatch;
            }
            assert_true(stats[1].mismatch > mismatch); /* the first weights' are not the last ones' */
            stats[1].mismatch = mismatch;
        } else wz_learner_step(&l, &how, &job, &group, episodes, BATCH, BATCH, STEPS, 4, &stats[0]);
        for (int i = 0; i < BATCH; i++) wz_episode_free(episodes[i]);
        wz_pack_finish(&probe);
        wz_learner_finish(&l);
    }
    assert_true(m[0]->hash == m[1]->hash && m[0]->version == 6 && m[1]->version == 6);
    assert_true(stats[0].mismatch == stats[1].mismatch && stats[0].loss == stats[1].loss &&
                stats[0].lr == stats[1].lr && stats[0].grad_norm == stats[1].grad_norm);
    for (int i = 0; i < 2; i++) model_end(m[i]);
}

/* ---- what no formula need say ----------------------------------------------------------------------------- */

static double log_likelihood(struct wz_pack *pack, const Wz__Turn *t)
{
    const struct wz_sample s = { .turn = (Wz__Turn *)(uintptr_t)t, .first = (int)t->n_context };
    double now[LONGEST], sum = 0;
    int n = run_alone(pack, &s, 1, now);

    for (int k = 0; k < n; k++) sum += now[k];
    wz_pack_clear(pack);
    return sum;
}

/* After one small step a rewarded reply is likelier, and one that was not is less likely. */
static void rewarded_tokens_become_likelier(void **state)
{
    struct wz_learn how = unusual(wz_losses, false);
    struct wz_model *m = tiny_learner(11, 5);
    struct wz_learner l;
    struct wz_pack probe;
    struct wz_step_stats stats;
    Wz__Episode *episodes[2];
    double before[2];

    how.pick = wz_sample_picks;
    how.estimate = wz_estimates;
    how.temperature = 1;
    how.adamw = (struct wz_adamw){ 1e-3, 0, 1, 0, 0, 1, 0, 0 };
    wz_learner_init(&l, m, NULL, 0, false, LEAVES, &group, 24, 24);
    wz_pack_init(&probe, m, 24, true);
    for (uint32_t i = 0; i < 2; i++) {
        Wz__Turn *t = (episodes[i] = episode(m, &probe, 1, i, 7))->turns[0];
        t->reward = i ? 1 : 0;
        before[i] = log_likelihood(&probe, t);
    }
    wz_learner_step(&l, &how, &job, &group, episodes, 2, 2, 1, 1, &stats);
    assert_true(log_likelihood(&probe, episodes[0]->turns[0]) < before[0] - 1e-5);
    assert_true(log_likelihood(&probe, episodes[1]->turns[0]) > before[1] + 1e-5);
    for (int i = 0; i < 2; i++) wz_episode_free(episodes[i]);
    wz_pack_finish(&probe);
    wz_learner_finish(&l);
    model_end(m);
}

/* Two arms: the reply is one token, and pays where its id is even. Returns the share of paying replies among those of
 * the first step, and of the last. sign -1: those are paid that did not pay. */
static void two_arms(double sign, double *first, double *last)
{
    enum { ROUNDS = 20, PULLS = 32 };
    static const int prompt[CONTEXT] = { 1, 2, 3, 4, 5 };
    struct wz_learn how = { .adamw = { 3e-3, 0, 1, 0.9, 0.95, 1e-8, 0, 1 },
                            .pick = wz_sample_picks,
                            .estimate = wz_estimates,
                            .loss = wz_losses,
                            .epsilon = 0.2,
                            .temperature = 1 };
    struct wz_model *m = tiny_learner(11, 5);
    struct wz_engine *engine = wz_engine_create(m, PULLS, 16, 0, 0);
    struct wz_learner l;

    wz_learner_init(&l, m, NULL, 0, false, LEAVES, &group, 24, 24);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        struct wz_request pulls[PULLS];
        Wz__Episode *episodes[PULLS];
        struct wz_step_stats stats;
        double even = 0;
        for (uint32_t i = 0; i < PULLS; i++)
            pulls[i] = (struct wz_request){ .prompt_ids = prompt,
                                            .n_prompt = CONTEXT,
                                            .max_tokens = 1,
                                            .temperature = 1,
                                            .top_p = 1,
                                            .key = { 2, WZ_RNG_TOKEN, round, i, 0, 0 } };
        wz_engine_run(engine, pulls, PULLS);
        for (uint32_t i = 0; i < PULLS; i++) {
            Wz__Turn *t = wz_episode_turn(episodes[i] = wz_episode_new());
            episodes[i]->index = episodes[i]->place = i;
            t->version = m->version;
            t->weights = m->hash;
            t->context = wz_alloc(sizeof prompt);
            memcpy(t->context, prompt, sizeof prompt);
            t->n_context = CONTEXT;
            wz_turn_reserve(t, 1);
            wz_turn_add(t, pulls[i].ids[0], pulls[i].logp[0]);
            t->reward = sign * (t->ids[0] % 2 == 0);
            even += t->ids[0] % 2 == 0;
            wz_request_finish(&pulls[i]);
        }
        wz_learner_step(&l, &how, &job, &group, episodes, PULLS, PULLS, ROUNDS, 1, &stats);
        assert_float_equal(stats.mismatch, 0, 0); /* guarantee 1, from the sampler to the learner */
        assert_float_equal(stats.reward, sign * even / PULLS, 1e-12);
        if (!round) *first = even / PULLS;
        *last = even / PULLS;
        for (int i = 0; i < PULLS; i++) wz_episode_free(episodes[i]);
    }
    wz_learner_finish(&l);
    wz_engine_destroy(engine);
    model_end(m);
}

static void two_arms_are_learnt(void **state)
{
    double first, last;

    two_arms(1, &first, &last);
    if (!(first > 0.2 && first < 0.8 && last > 0.9)) fail_msg("of even replies %g, in the end %g", first, last);
    two_arms(-1, &first, &last);
    if (!(first > 0.2 && first < 0.8 && last < 0.1))
        fail_msg("paid not to: of even replies %g, in the end %g", first, last);
}

/* Runs one step in a child after `spoil`; returns its exit status and what it said in its last words. */
static int step_in_a_child(void (*spoil)(struct wz_model *, Wz__Episode *), char *words, size_t size)
{
    int ends[2], status;

    fflush(NULL);
    assert_int_equal(pipe(ends), 0);
    const pid_t child = fork();
    if (child == 0) {
        struct wz_model *m = tiny_learner(11, 5), *reference = tiny_learner(12, 5);
        struct wz_learn how = unusual(wz_losses, false);
        struct wz_learner l;
        struct wz_pack probe;
        struct wz_step_stats stats;
        dup2(ends[1], 2);
        how.pick = wz_sample_picks;
        how.estimate = wz_estimates;
        job.step = 17;
        wz_learner_init(&l, m, reference, 0, false, LEAVES, &group, 24, 24);
        l.name = "ann";
        wz_pack_init(&probe, m, 24, true);
        Wz__Episode *e = episode(m, &probe, 1, 3, 0);
        spoil(m, e);
        wz_learner_step(&l, &how, &job, &group, &e, 1, BATCH, STEPS, 1, &stats);
        _exit(0);
    }
    close(ends[1]);
    ssize_t n = read(ends[0], words, size - 1);
    words[n < 0 ? 0 : n] = 0;
    close(ends[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void leave(struct wz_model *m, Wz__Episode *e) {}
static void other_hash(struct wz_model *m, Wz__Episode *e) { e->turns[0]->weights ^= 1; }
static void other_version(struct wz_model *m, Wz__Episode *e) { e->turns[0]->version--; }
static void nan_of_the_rollout(struct wz_model *m, Wz__Episode *e) { e->turns[0]->logp[GIVEN] = NAN; }
static void nan_of_the_learner(struct wz_model *m, Wz__Episode *e)
{
    m->norm[0] = NAN;
    wz_model_commit(m, m->version);
    e->turns[0]->weights = m->hash;
}

/* Guarantee 6, and numbers that are not finite: the step ends, and says where. */
static void what_must_not_be_trained_on_ends_the_step(void **state)
{
    static const struct {
        void (*spoil)(struct wz_model *, Wz__Episode *);
        int status;
        const char *says;
    } rows[] = {
        { leave, 0, "" },
        { other_hash, 1, "step 17 episode 3: agent ann: written by weights version 3" },
        { other_version, 1, "step 17 episode 3: agent ann: written by weights version 2" },
        { nan_of_the_rollout, 1, "step 17 sample 3: agent ann: the rollout's and the reference's log-probabilities" },
        { nan_of_the_learner, 1, "step 17 sample 3: agent ann: its log-probabilities" },
    };
    char words[1024];

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        assert_int_equal(step_in_a_child(rows[i].spoil, words, sizeof words), rows[i].status);
        if (!strstr(words, rows[i].says)) fail_msg("row %zu says: %s", i, words);
    }
}

/* An update is skipped where the gradient, or the square that a second moment is made of, is not finite; the samples
 * are not trained on, and the row of them is counted until one is made. */
static void skipped_updates_train_on_nothing(void **state)
{
    struct wz_model *m = tiny_learner(11, 5);
    struct wz_learn how = unusual(wz_losses, false);
    struct wz_learner l;
    struct wz_pack probe;
    int row = 0, skipped = 0;

    how.pick = wz_sample_picks;
    how.estimate = wz_estimates;
    wz_learner_init(&l, m, NULL, 0, false, LEAVES, &group, 24, 24);
    wz_pack_init(&probe, m, 24, true);
    for (uint32_t step = 0; step < 6; step++) {
        const bool bad = step % 3 != 2; /* ratios of exp(800), then an update, and again */
        const uint64_t hash = m->hash;
        Wz__Episode *episodes[2];
        struct wz_step_stats stats;
        for (uint32_t i = 0; i < 2; i++) {
            Wz__Turn *t = (episodes[i] = episode(m, &probe, (float)how.temperature, i, step))->turns[0];
            t->reward = i;
            for (size_t k = 0; k < t->n_ids && bad; k++) t->logp[k] = -800;
        }
        wz_learner_step(&l, &how, &job, &group, episodes, 2, 2, 6, 1, &stats);
        row = bad ? row + 1 : 0;
        skipped += bad;
        assert_true(stats.not_finite == bad && isfinite(stats.grad_norm) == !bad);
        assert_true((m->hash == hash) == bad && m->version == 4 + step);
        assert_true(l.opt.not_finite == row && l.opt.skipped == skipped && l.opt.steps == (int)step + 1 - skipped);
        assert_float_equal(stats.samples, bad ? 0 : 2, 0);
        assert_true((stats.tokens > 0) == !bad);
        for (int i = 0; i < 2; i++) {
            assert_int_equal(episodes[i]->turns[0]->trained, !bad);
            wz_episode_free(episodes[i]);
        }
    }
    how.adamw.clip = 0;
    float *g = wz_optimizer_leaf(&l.opt); /* finite, and its square overflows */
    g[3] = 1e20f;
    wz_optimizer_leaf_done(&l.opt);
    wz_optimizer_leaf(&l.opt);
    wz_optimizer_leaf_done(&l.opt);
    const uint64_t hash = m->hash;
    assert_float_equal(wz_optimizer_step(&l.opt, &job, &group, &how.adamw, 6), 1e20, 1e14);
    assert_true(m->hash == hash && l.opt.not_finite == 1);
    wz_pack_finish(&probe);
    wz_learner_finish(&l);
    model_end(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(adamw_is_as_worked_out_by_hand),
        cmocka_unit_test(every_row_has_a_reference),
        cmocka_unit_test(slopes_are_finite_differences),
        cmocka_unit_test(a_loss_is_told_all_of_a_token),
        cmocka_unit_test(steps_are_as_worked_out_by_hand),
        cmocka_unit_test(supervised_steps_are_as_worked_out_by_hand),
        cmocka_unit_test(rewarded_tokens_become_likelier),
        cmocka_unit_test(two_arms_are_learnt),
        cmocka_unit_test(epochs_are_updates_from_one_batch),
        cmocka_unit_test(what_must_not_be_trained_on_ends_the_step),
        cmocka_unit_test(skipped_updates_train_on_nothing),
    };

    return cmocka_run_group_tests(tests, job_open, job_close);
}
