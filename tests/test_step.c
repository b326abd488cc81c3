/* An update follows the gradient of eq. 4: with AdamW made all but linear, the weights move along -dJ, and J itself is
 * computed here from log-probabilities in double. Ratios differ from 1 and some are clipped, there is a KL penalty to a
 * reference, returns are whitened. */
#include "tests/learner_help.h"

enum { VOCAB = 37, EPISODES = 6, AGENT = 0 };

static struct wz_model *tiny(uint64_t seed, bool tied)
{
    struct wz_config c = { .layers = 2,
                           .dim = 32,
                           .heads = 4,
                           .kv_heads = 2,
                           .head_dim = 8,
                           .ffn = 48,
                           .vocab = VOCAB,
                           .context = 64,
                           .norm_eps = 1e-5f,
                           .rope_theta = 1e4f,
                           .tied = tied,
                           .bos = -1 };
    struct wz_model *m = wz_model_create(&c, WZ_F32, NULL, backend_of("auto", 1));

    wz_model_init(m, seed);
    for (size_t i = 0; i < m->n_params; i++) m->params[i] *= 4;
    wz_model_commit(m, 3);
    return m;
}

/* One episode with one turn of keyed tokens, written by these weights; its old log-probabilities are off by up to
 * 0.4. */
static Wz__Episode *episode(struct wz_model *m, struct wz_pack *pack, uint32_t index)
{
    Wz__Episode *e = wz_episode_new();
    Wz__Turn *t = wz_episode_turn(e);
    int n = 4 + (int)index % 3, ids[32];

    e->index = e->place = index;
    t->agent = AGENT;
    t->version = m->version;
    t->weights = m->hash;
    t->reward = index % 2 ? 1 : 0.35;
    ids_of(ids, 32, VOCAB, 900 + index);
    t->context = wz_alloc(sizeof *t->context * 5);
    t->n_context = 5;
    for (int k = 0; k < 5; k++) t->context[k] = k < 3 ? k + 1 : ids[k]; /* contexts begin alike */
    wz_turn_reserve(t, (size_t)n);
    for (int k = 0; k < n; k++) wz_turn_add(t, ids[5 + k], 0);
    wz_pack_clear(pack);
    assert_true(wz_pack_turn(pack, t));
    wz_pack_forward(pack, 1);
    for (int k = 0; k < n; k++) {
        double off = 0.8 * (wz_uniform((struct wz_key){ 4, WZ_RNG_TEST, index, (uint32_t)k, 0, 0 }) - 0.5);
        t->logp[k] = pack->logp[t->n_context - 1 + (size_t)k] + (float)off;
    }
    wz_pack_clear(pack);
    return e;
}

/* J of eq. 4 at the model's weights, advantages as they stand in the episodes. */
static double objective(struct wz_pack *pack, Wz__Episode **episodes, double epsilon, bool token_mean)
{
    double sum = 0, tokens = 0;

    for (int i = 0; i < EPISODES; i++) {
        const Wz__Turn *t = episodes[i]->turns[0];
        double own = 0;
        wz_pack_clear(pack);
        wz_pack_turn(pack, t);
        wz_pack_forward(pack, 1);
        for (size_t k = 0; k < t->n_ids; k++) {
            double ratio = exp((double)pack->logp[t->n_context - 1 + k] - (double)t->logp[k]),
                   a = (double)t->advantage[k];
            double clipped = ratio < 1 - epsilon ? 1 - epsilon : ratio > 1 + epsilon ? 1 + epsilon : ratio;
            own += ratio * a < clipped * a ? ratio * a : clipped * a;
        }
        sum += token_mean ? own : own / (double)t->n_ids;
        tokens += (double)t->n_ids;
    }
    wz_pack_clear(pack);
    return token_mean ? sum / tokens : sum / EPISODES;
}

/* Whatever the learner shares between samples, the reference's log-probabilities are those of the whole sequence
 * alone. */
static void check_reference(struct wz_model *reference, Wz__Episode **episodes)
{
    struct wz_pack pack;

    wz_pack_init(&pack, reference, 40, false);
    for (int i = 0; i < EPISODES; i++) {
        const Wz__Turn *t = episodes[i]->turns[0];
        wz_pack_clear(&pack);
        assert_true(wz_pack_turn(&pack, t));
        wz_pack_forward(&pack, 1);
        assert_int_equal(t->n_ref_logp, t->n_ids);
        assert_memory_equal(t->ref_logp, pack.logp + t->n_context - 1, sizeof *t->ref_logp * t->n_ids);
    }
    wz_pack_finish(&pack);
}

static void count(void *arg) { ++*(int *)arg; }

static void check(bool token_mean, bool tied)
{
    enum { FLAT = 100000 }; /* AdamW's eps: m / (sqrt(v) + eps) = g / eps to within |g| / eps */
    struct wz_model *m = tiny(11, tied), *reference = tiny(12, tied);
    const struct wz_learn how = { .adamw = { 300, 0, 1, 0, 0, FLAT, 0, 0 },
                                  .pick = wz_sample_picks,
                                  .estimate = wz_estimates,
                                  .loss = wz_losses,
                                  .kl = 0.05,
                                  .epsilon = 0.2,
                                  .revision = 0.5,
                                  .temperature = 1,
                                  .token_mean = token_mean };
    struct wz_learner l;
    struct wz_pack probe;
    struct wz_step_stats stats;
    Wz__Episode *episodes[EPISODES];
    float *before = wz_alloc(m->n_params * sizeof *before), *after = wz_alloc(m->n_params * sizeof *after);
    double length = 0, slope;

    wz_learner_init(&l, m, reference, AGENT, false, 4, &group, 16, 40);
    wz_pack_init(&probe, m, 40, false);
    for (int i = 0; i < EPISODES; i++) episodes[i] = episode(m, &probe, (uint32_t)i);
    memcpy(before, m->params, m->n_params * sizeof *before);
    int signs = 0; /* of life, guarantee 5: of every layer of every micro-batch, there and back */
    wz_set_heartbeat(count, &signs);
    wz_learner_step(&l, &how, &job, &group, episodes, EPISODES, EPISODES, 10, 1, &stats);
    wz_set_heartbeat(NULL, NULL);
    assert_true(signs >= 2 * 4 * m->config.layers);
    memcpy(after, m->params, m->n_params * sizeof *after);
    assert_int_equal(m->version, 4);
    check_reference(reference, episodes);
    assert_true(stats.clipped > 0.02 && stats.clipped < 0.7);
    assert_float_equal(stats.samples, EPISODES, 0);

    for (size_t i = 0; i < m->n_params; i++) length += pow((double)after[i] - (double)before[i], 2);
    length = sqrt(length);
    assert_true(length > 0);
    /* J changes along the step as its gradient says: dJ . u = |dJ| and the step is 300/FLAT |dJ| long */
    double h = 2e-4, j[2];
    for (int side = 0; side < 2; side++) {
        for (size_t i = 0; i < m->n_params; i++)
            m->params[i] =
                (float)((double)before[i] + (side ? h : -h) * ((double)after[i] - (double)before[i]) / length);
        wz_model_commit(m, 5);
        j[side] = objective(&probe, episodes, how.epsilon, token_mean);
    }
    slope = (j[1] - j[0]) / (2 * h);
    if (fabs(slope / (length * FLAT / 300) - 1) > 0.01)
        fail_msg("J rises by %g along the step, its gradient is %g long", slope, length * FLAT / 300);
    assert_float_equal(stats.grad_norm, length * FLAT / 300, 0.02 * stats.grad_norm);

    for (int i = 0; i < EPISODES; i++) wz_episode_free(episodes[i]);
    wz_pack_finish(&probe);
    wz_learner_finish(&l);
    struct wz_backend *a = m->be, *b = reference->be;
    wz_model_destroy(m), wz_model_destroy(reference);
    wz_backend_close(a), wz_backend_close(b);
    free(before);
    free(after);
}

static void mean_of_sequence_means(void **state) { check(false, false); }

static void mean_over_tokens(void **state) { check(true, false); }

static void tied_head(void **state) { check(false, true); }

/* The first `given` ids of an episode's turn become a part of its context. */
static void give(Wz__Turn *t, size_t given)
{
    t->context = wz_realloc(t->context, sizeof *t->context * (t->n_context + given));
    memcpy(t->context + t->n_context, t->ids, sizeof *t->ids * given);
    t->n_context += given;
    t->n_ids = t->n_logp = t->n_ids - given;
    memmove(t->ids, t->ids + given, sizeof *t->ids * t->n_ids);
    memmove(t->logp, t->logp + given, sizeof *t->logp * t->n_ids);
}

/* Ids that were given, not sampled, have no loss, whatever their log-probabilities: the update is the same as if they
 * ended the context. */
static void given_ids_have_no_loss(void **state)
{
    const struct wz_learn how = { .adamw = { 0.1, 0, 1, 0.9, 0.95, 1e-8, 0, 1 },
                                  .pick = wz_sample_picks,
                                  .estimate = wz_estimates,
                                  .loss = wz_losses,
                                  .kl = 0.05,
                                  .epsilon = 0.2,
                                  .temperature = 1 };
    struct wz_step_stats stats[2];
    uint64_t hash[2];

    for (int as_context = 0; as_context < 2; as_context++) {
        struct wz_model *m = tiny(11, false), *reference = tiny(12, false);
        struct wz_learner l;
        struct wz_pack probe;
        Wz__Episode *episodes[EPISODES];
        wz_learner_init(&l, m, reference, AGENT, false, 4, &group, 16, 40);
        wz_pack_init(&probe, m, 40, false);
        for (int i = 0; i < EPISODES; i++) {
            Wz__Turn *t = (episodes[i] = episode(m, &probe, (uint32_t)i))->turns[0];
            if (as_context) give(t, 2);
            else {
                t->given = 2;
                t->logp[0] = t->logp[1] = -7;
            }
        }
        wz_learner_step(&l, &how, &job, &group, episodes, EPISODES, EPISODES, 10, 1, &stats[as_context]);
        hash[as_context] = m->hash;
        for (int i = 0; i < EPISODES; i++) wz_episode_free(episodes[i]);
        wz_pack_finish(&probe);
        wz_learner_finish(&l);
        struct wz_backend *a = m->be, *b = reference->be;
        wz_model_destroy(m), wz_model_destroy(reference);
        wz_backend_close(a), wz_backend_close(b);
    }
    assert_true(hash[0] == hash[1]);
    assert_float_equal(stats[0].tokens, stats[1].tokens, 0);
    assert_float_equal(stats[0].kl, stats[1].kl, 0);
    assert_float_equal(stats[0].mismatch, stats[1].mismatch, 0);
}

/* A gradient that is not finite changes nothing but the version, and is counted. */
static void a_broken_gradient_is_skipped(void **state)
{
    struct wz_model *m = tiny(11, false);
    struct wz_optimizer opt;
    const struct wz_adamw how = { 1, 0, 1, 0.9, 0.95, 1e-8, 0, 1 };
    uint64_t hash = m->hash;

    wz_optimizer_init(&opt, m, NULL, 0, 2, &group);
    for (int leaf = 0; leaf < 2; leaf++) {
        wz_optimizer_leaf(&opt)[3] = leaf ? NAN : 1;
        wz_optimizer_leaf_done(&opt);
    }
    assert_false(isfinite(wz_optimizer_step(&opt, &job, &group, &how, 10)));
    assert_int_equal(opt.skipped, 1);
    assert_int_equal(opt.steps, 0);
    assert_true(m->hash == hash && m->version == 4);
    wz_optimizer_finish(&opt);
    model_end(m);
}

/* Of a step whose episodes were all lost the weights learn nothing, not even from what the moments remember. */
static void a_step_without_samples_is_skipped(void **state)
{
    struct wz_model *m = tiny(11, false);
    const struct wz_learn how = { .adamw = { 0.1, 0, 1, 0.9, 0.95, 1e-8, 0.1, 1 },
                                  .pick = wz_sample_picks,
                                  .estimate = wz_estimates,
                                  .loss = wz_losses,
                                  .epsilon = 0.2,
                                  .temperature = 1 };
    struct wz_learner l;
    struct wz_pack probe;
    struct wz_step_stats stats;
    uint64_t hash = m->hash;

    wz_learner_init(&l, m, NULL, AGENT, false, 4, &group, 16, 40);
    wz_pack_init(&probe, m, 40, false);
    for (int step = 0; step < 2; step++) {
        Wz__Episode *episodes[EPISODES];
        for (int i = 0; i < EPISODES; i++) {
            episodes[i] = episode(m, &probe, (uint32_t)i);
            if (step) wz_set_string(&episodes[i]->discard, "lost", 4);
        }
        wz_learner_step(&l, &how, &job, &group, episodes, EPISODES, EPISODES, 10, 1, &stats);
        assert_true((m->hash == hash) == (step == 1));
        hash = m->hash;
        for (int i = 0; i < EPISODES; i++) wz_episode_free(episodes[i]);
    }
    assert_true(stats.samples == 0 && l.opt.skipped == 1 && l.opt.steps == 1 && m->version == 5);
    wz_pack_finish(&probe);
    wz_learner_finish(&l);
    model_end(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mean_of_sequence_means),
        cmocka_unit_test(mean_over_tokens),
        cmocka_unit_test(tied_head),
        cmocka_unit_test(given_ids_have_no_loss),
        cmocka_unit_test(a_broken_gradient_is_skipped),
        cmocka_unit_test(a_step_without_samples_is_skipped),
    };

    return cmocka_run_group_tests(tests, job_open, job_close);
}
