/* Guarantee: a learner's loss and its gradient by every parameter are those of TRL's GRPOTrainer for the same weights,
 * token ids, old and reference log-probabilities and rewards; and of OpenRLHF's reinforce and reinforce_baseline,
 * written out from its definition. Needs env WALTZ_PYTHON: a Python that can import trl, transformers and torch, which
 * computes in double. */
#include <sys/wait.h>

#include "tests/learner_help.h"

enum { PEERS = 4, BATCH = 2 * PEERS, CONTEXT = 4, LONGEST = 9 };

/* Their names for it are in the second column. TRL's: loss_type, scale_rewards, importance_sampling_level. */
static const struct {
    const char *estimate, *theirs;
    struct wz_learn how;
    const char *overlong, *importance;
} cases[] = {
    { "grpo", "grpo group token", .how = { .epsilon = 0.1, .kl = 0.2, .temperature = 1 } },
    { "grpo", "bnpo group token",
      .how = { .epsilon = 0.1, .epsilon_high = 0.25, .temperature = 1.3, .token_mean = true } },
    { "grpo", "grpo group sequence", .how = { .epsilon = 0.05, .kl = 0.05, .temperature = 1, .sequence_ratio = true } },
    { "dr_grpo", "dr_grpo none token", .how = { .epsilon = 0.1, .dual = 1.2, .temperature = 0.8, .length = 16 } },
    { "grpo", "cispo group token",
      .how = { .epsilon = 0.1, .temperature = 1, .token_mean = true, .loss = wz_losses + 1 } },
    { "grpo", "dapo group token", .how = { .epsilon = 0.1, .temperature = 1, .token_mean = true }, .overlong = "soft" },
    { "grpo", "grpo group token", .how = { .epsilon = 0.1, .kl = 0.2, .temperature = 1 },
      .importance = "token_truncate" },
    { "grpo", "bnpo group token", .how = { .epsilon = 0.1, .temperature = 1.2, .token_mean = true },
      .importance = "token_mask" },
    { "grpo", "grpo group token", .how = { .epsilon = 0.1, .temperature = 1 }, .importance = "sequence_truncate" },
    { "dr_grpo", "grpo none token", .how = { .epsilon = 0.1, .temperature = 1 }, .importance = "sequence_mask" },
    { "reinforce++", "openrlhf reinforce sequence", .how = { .epsilon = 0.1, .kl = 0.3, .temperature = 1.1 } },
    { "reinforce++", "openrlhf reinforce token",
      .how = { .epsilon = 0.1, .epsilon_high = 0.2, .temperature = 1, .token_mean = true } },
    { "reinforce++-baseline", "openrlhf reinforce_baseline token",
      .how = { .epsilon = 0.1, .kl = 0.1, .temperature = 1, .token_mean = true } },
    { "gae", "openrlhf gae token",
      .how = { .epsilon = 0.1,
               .kl = 0.1,
               .temperature = 1,
               .token_mean = true,
               .discount = 0.9,
               .trace = 0.8,
               .value_coef = 0.3,
               .value_clip = 0.05 } },
    { "gae", "openrlhf gae sequence",
      .how = { .epsilon = 0.1,
               .temperature = 1.2,
               .discount = 1,
               .trace = 0.95,
               .value_coef = 0.7,
               .value_clip = 0.2 } },
};
enum { LIMIT = 8, CACHE = 5 };
static const double cap = 1.1;

/* A turn of the first model's, whose old log-probabilities are off by up to a quarter. */
static Wz__Episode *episode(const struct wz_model *m, struct wz_pack *pack, float temperature, uint32_t index)
{
    Wz__Episode *e = wz_episode_new();
    Wz__Turn *t = wz_episode_turn(e);
    const uint32_t n = 3 + index * 5 % 7;

    e->index = e->place = index;
    t->version = m->version;
    t->weights = m->hash;
    t->reward = floor(4 * keyed(index, 1, 0)) / 4;
    t->context = wz_alloc(sizeof *t->context * CONTEXT);
    t->n_context = CONTEXT;
    for (uint32_t k = 0; k < CONTEXT; k++) t->context[k] = (int)(TINY_VOCAB * keyed(index / PEERS, 2, k));
    wz_turn_reserve(t, n);
    for (uint32_t k = 0; k < n; k++) wz_turn_add(t, (int)(TINY_VOCAB * keyed(index, 3, k)), 0);
    wz_pack_clear(pack);
    assert_true(wz_pack_turn(pack, t));
    wz_pack_forward(pack, temperature);
    for (uint32_t k = 0; k < n; k++)
        t->logp[k] = pack->logp[t->n_context - 1 + k] + (float)(0.5 * (keyed(index, 4, k) - 0.5));
    wz_pack_clear(pack);
    return e;
}

static void put_floats(struct wz_buf *out, const char *name, const float *x, size_t n)
{
    wz_buf_printf(out, ",\"%s\":[", name);
    for (size_t i = 0; i < n; i++) wz_buf_printf(out, "%s%.9g", i ? "," : "", (double)x[i]);
    wz_buf_str(out, "]");
}

static void put_ids(struct wz_buf *out, const char *name, const int *x, size_t n)
{
    wz_buf_printf(out, ",\"%s\":[", name);
    for (size_t i = 0; i < n; i++) wz_buf_printf(out, "%s%d", i ? "," : "", x[i]);
    wz_buf_str(out, "]");
}

static void put_turn(struct wz_buf *out, const Wz__Turn *t, bool first)
{
    wz_buf_printf(out, "%s{\"reward\":%.17g", first ? "" : ",", t->reward);
    put_ids(out, "context", t->context, t->n_context);
    put_ids(out, "ids", t->ids, t->n_ids);
    put_floats(out, "old", t->logp, t->n_logp);
    put_floats(out, "ref", t->ref_logp, t->n_ref_logp);
    wz_buf_str(out, "}");
}

/* The critic's weights; moved: by how much they are others in the update than before it, so that the clip of values
 * bites. */
static void keyed_critic(struct wz_critic *c, double moved)
{
    for (int i = 0; c->w && i <= c->channels; i++)
        c->w[i] = (float)(keyed((uint32_t)i, 6, 0) - 0.5 + moved * (keyed((uint32_t)i, 7, 0) - 0.5));
}

static void put_critic(struct wz_buf *out, struct wz_critic *c, const struct wz_learn *how)
{
    const size_t n = (size_t)c->channels + 1;
    float *g = wz_alloc(n * sizeof *g);

    for (size_t i = 0; i < n; i++) g[i] = (float)((double)c->m[i] / (1 - how->adamw.beta1)); /* of the first update */
    wz_buf_printf(out, ",\"gamma\":%g,\"lambda\":%g,\"coef\":%g,\"value_clip\":%g", how->discount, how->trace,
                  how->value_coef, how->value_clip);
    put_floats(out, "critic_gradient", g, n);
    put_floats(out, "critic_now", c->w, n);
    keyed_critic(c, 0);
    put_floats(out, "critic", c->w, n);
    free(g);
}

/* Writes DIR/N, the model before, DIR/N.gradient, its gradient as if that were weights, and what Python needs. */
static void write_case(size_t i, const char *dir, struct wz_buf *out)
{
    struct wz_learn how = cases[i].how;
    struct wz_model *m = tiny_learner(11, 5), *reference = tiny_learner(12, 5);
    struct wz_learner l;
    struct wz_pack probe;
    struct wz_step_stats stats = { 0 };
    struct wz_sample samples[BATCH];
    struct wz_sample_batch b = { .samples = samples, .batch = BATCH };
    Wz__Episode *episodes[BATCH];
    struct wz_err err;
    char *before = wz_path("%s/%zu", dir, i), *gradient = wz_path("%s/%zu.gradient", dir, i);

    how.adamw = (struct wz_adamw){ 0, 0, 1, 0.9, 0.95, 1e-8, 0, 0 };
    how.pick = wz_sample_picks;
    if (!how.loss) how.loss = wz_losses;
    how.estimate = wz_estimate_find(cases[i].estimate, &err);
    how.kl_form = strncmp(cases[i].theirs, "openrlhf", 8) ? wz_kl_find("k3", &err) : NULL;
    how.peers = PEERS;
    if (cases[i].overlong) how.overlong = wz_overlong_find(cases[i].overlong, &err);
    if (cases[i].importance) how.importance = wz_importance_find(cases[i].importance, &err);
    how.limit = LIMIT;
    how.cache = CACHE;
    how.cap = cap;
    wz_learner_init(&l, m, how.kl > 0 ? reference : NULL, 0, false, 1, &group, 64, 24);
    wz_pack_init(&probe, m, 24, false);
    for (uint32_t k = 0; k < BATCH; k++) episodes[k] = episode(m, &probe, (float)how.temperature, k);
    if (wz_model_save(m, before, 0, &err) < 0) fail_msg("%s", err.text);
    if (how.estimate->values) wz_learner_criticise(&l);
    keyed_critic(&l.critic, 0);
    b.n = wz_samples_pick(samples, &how, 0, false, 1, episodes, BATCH);
    wz_learner_prepare(&l, &how, &job, &group, &b, &stats);
    keyed_critic(&l.critic, 0.1);
    wz_learner_update(&l, &how, &job, &group, &b, 1, &stats);
    assert_true((stats.clipped > 0) == (how.loss == wz_losses && !how.importance) && stats.samples == BATCH);
    assert_true((stats.capped > 0) == (how.importance != NULL));
    memcpy(m->params, l.opt.grad[0], m->n_params * sizeof *m->params);
    if (wz_model_save(m, gradient, 0, &err) < 0) fail_msg("%s", err.text);
    wz_buf_printf(
        out,
        "%s{\"theirs\":\"%s\",\"peers\":%d,\"low\":%g,\"high\":%g,\"delta\":%g,\"beta\":%g,"
        "\"temperature\":%g,\"length\":%g,\"overlong\":\"%s\",\"limit\":%d,\"cache\":%d,\"importance\":\"%s\","
        "\"cap\":%g,\"loss\":%.17g,\"value_loss\":%.17g",
        i ? "," : "", cases[i].theirs, PEERS, how.epsilon, how.epsilon_high > 0 ? how.epsilon_high : how.epsilon,
        how.dual, how.kl, how.temperature, how.length, cases[i].overlong ? cases[i].overlong : "", LIMIT, CACHE,
        cases[i].importance ? cases[i].importance : "", cap, stats.loss, l.critic.w ? stats.value_loss : 0);
    if (l.critic.w) put_critic(out, &l.critic, &how);
    wz_buf_str(out, ",\"turns\":[");
    for (int k = 0; k < BATCH; k++) put_turn(out, episodes[k]->turns[0], k == 0);
    wz_buf_str(out, "]}");
    for (int k = 0; k < BATCH; k++) wz_episode_free(episodes[k]);
    wz_pack_finish(&probe);
    wz_learner_finish(&l);
    model_end(m);
    model_end(reference);
    free(before);
    free(gradient);
}

static void losses_and_gradients_are_theirs(void **state)
{
    const char *program = getenv("WALTZ_PYTHON"), *scripts = getenv("WALTZ_REFERENCE");
    struct wz_buf text = { 0 };
    struct wz_err err;

    if (!program) SKIP("WALTZ_PYTHON is not set");
    assert_non_null(scripts);
    char *dir = test_scratch("objectives"), *list = wz_path("%s/cases.json", dir);
    if (wz_mkdirs(dir, &err) < 0) fail_msg("%s", err.text);
    wz_buf_str(&text, "[");
    for (size_t i = 0; i < WZ_COUNT(cases); i++) write_case(i, dir, &text);
    wz_buf_str(&text, "]\n");
    assert_int_equal(wz_file_write(list, text.data, text.len, &err), 0);
    wz_buf_finish(&text);
    char *line = wz_path("'%s' '%s/objectives.py' '%s' >&2", program, scripts, dir);
    const int status = system(line);
    free(line);
    free(list);
    free(dir);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) SKIP("%s has no trl with transformers and torch", program);
    if (status != 0) fail_msg("objectives.py: status %d", status);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(losses_and_gradients_are_theirs) };

    return cmocka_run_group_tests(tests, job_open, job_close);
}
