/* What a step tells of itself, from a handful of made episodes, every cell worked out by hand: each row of the metrics,
 * the ledger's lines, why an agent has no reward signal. docs/formats.md has the same rows. A run that resumes
 * counts on. */
#include "tests/test.h"

#include <math.h>

#include "run/run.h"

enum { C, F, AGENTS }; /* the conversation agent is frozen, the feedback agent learns */

static const char *formats;
static struct wz_recipe_agent recipe_agents[AGENTS] = {
    { .name = (char[]){ "bob" }, .role = (char[]){ WZ_CONVERSATION } },
    { .name = (char[]){ "ann" }, .role = (char[]){ WZ_FEEDBACK } }
};
static struct wz_model some_model;
static struct wz_recipe recipe;
static struct wz_job job = { .recipe = &recipe, .n_agents = AGENTS };

/* A turn of n ids. */
static Wz__Turn *turn(Wz__Episode *e, int agent, int n, bool truncated)
{
    const int round = (int)e->n_turns / 2;
    Wz__Turn *t = wz_episode_turn(e);

    t->agent = (uint32_t)agent;
    t->round = (uint32_t)round;
    t->about = agent == F ? 2 * round : round ? 0 : -1;
    t->truncated = truncated;
    wz_set_string(&t->role, recipe_agents[agent].role, strlen(recipe_agents[agent].role));
    wz_turn_reserve(t, (size_t)n);
    for (int i = 0; i < n; i++) wz_turn_add(t, i, -1);
    return t;
}

static void reply(Wz__Episode *e, int n, bool truncated, bool unsafe, bool overrefuse)
{
    Wz__Turn *t = turn(e, C, n, truncated);

    t->judged_unsafe = unsafe;
    t->judged_overrefuse = overrefuse;
}

static Wz__Turn *feedback(Wz__Episode *e, int n, bool truncated, bool valid, bool unsafe, bool overrefuse)
{
    Wz__Turn *t = turn(e, F, n, truncated);

    t->valid = valid;
    t->unsafe = unsafe;
    t->overrefuse = overrefuse;
    return t;
}

static Wz__Episode *lost(const char *why)
{
    Wz__Episode *e = wz_episode_new();

    wz_set_string(&e->discard, why, strlen(why));
    return e;
}

/* The step: 0 harmful, unsafe then fine; 1 benign, refused, and the feedback is not JSON; 2 benign, refused then fine;
 * 3 harmful, fine then unsafe; 4 as 0, with another round of feedback, which the window cut; the others are lost.
 * Feedback of 0 was picked for an update that was not made, that of 3 for one that was. */
static void account_of(struct wz_account *account, const struct wz_step_report *report,
                       const struct wz_rewards *rewards)
{
    Wz__Episode *e[] = { wz_episode_new(),
                         wz_episode_new(),
                         wz_episode_new(),
                         wz_episode_new(),
                         wz_episode_new(),
                         lost("judge failed: no answer"),
                         lost("the prompt needs more cache pages than there are"),
                         lost("the prompt needs more cache pages than there are"),
                         lost("an assistant's turn can't be rendered") };

    e[0]->harmful = e[3]->harmful = e[4]->harmful = true;
    reply(e[0], 3, false, true, false);
    Wz__Turn *picked = feedback(e[0], 4, false, true, true, false);
    picked->advantage = wz_alloc(4 * sizeof *picked->advantage);
    picked->n_advantage = 4;
    reply(e[0], 2, true, false, false);
    reply(e[1], 2, false, false, true);
    feedback(e[1], 5, true, false, false, false);
    reply(e[2], 1, false, false, true);
    feedback(e[2], 3, false, true, false, true);
    reply(e[2], 1, false, false, false);
    reply(e[3], 4, false, false, false);
    feedback(e[3], 2, false, true, false, true)->trained = true;
    reply(e[3], 2, false, true, false);
    reply(e[4], 2, false, true, false);
    feedback(e[4], 1, false, true, true, false);
    reply(e[4], 1, false, false, false);
    Wz__Turn *cut = feedback(e[4], 2, false, true, false, false);
    cut->about = 2;
    cut->finish_reason = WZ__FINISH_REASON__CONTEXT;
    wz_set_string(&e[1]->cut, "no room", 7);
    e[1]->cut_agent = C;
    reply(e[5], 6, true, false, false);
    feedback(e[5], 1, false, true, false, false);
    for (int i = 0; i < 5; i++) wz_reward_turns(rewards, e[i]);
    *account = (struct wz_account){ 0 };
    for (size_t i = 0; i < WZ_COUNT(e); i++) {
        wz_account_add(account, &job, report, rewards, e[i]);
        wz_episode_free(e[i]);
    }
}

static struct wz_step_report report_of(void)
{
    struct wz_step_report r = {
        .begin = 10, .play_end = 12, .learn_end = 15, .publish_end = 15.5, .checkpoint = 0.75, .drawn = 11, .kept = 4
    };

    r.batch.rollout = 1.5;
    r.batch.reward = 0.25;
    r.learned[F] = (struct wz_step_stats){ .samples = 21,
                                           .tokens = 22,
                                           .reward = 23,
                                           .spread = 24,
                                           .kl = 25,
                                           .return_std = 26,
                                           .loss = 27,
                                           .nll = 28,
                                           .clipped = 29,
                                           .capped = 34,
                                           .value_loss = 35,
                                           .mismatch = 30,
                                           .max_gap = 31,
                                           .grad_norm = 32,
                                           .lr = 33,
                                           .seconds = 4,
                                           .not_finite = true };
    return r;
}

static struct wz_rewards rewards_of(void)
{
    struct wz_rewards rewards = { 0 };

    wz_rewards_add(&rewards, WZ_CONVERSATION, "outcome", 1);
    wz_rewards_add(&rewards, WZ_FEEDBACK, "label", 0.25);
    wz_rewards_add(&rewards, WZ_FEEDBACK, "format", 0.1);
    return rewards;
}

static const struct {
    const char *name;
    double value;
} by_hand[] = {
    { "reward/c0", 0.2 },
    { "reward/final", 0.6 },
    { "rollout/asr", 1 / 3.0 },
    { "rollout/orr", 0.5 },
    { "rollout/ftr", 0.8 },
    { "rollout/label_accuracy", 0.6 },
    { "rollout/json_errors", 0.2 },
    { "rollout/improved", 0.6 },
    { "rollout/worsened", 0.2 },
    { "rollout/judge_failed", 1 },
    { "rollout/overlong_prompts", 6 },
    { "rollout/cache_too_small", 2 },
    { "rollout/broken", 1 },
    { "rollout/prompts_drawn", 11 },
    { "rollout/prompts_alike", 7 },
    { "rollout/tokens", 42 },
    { "rollout/tokens_per_second", 28 },
    { "time/rollout", 1.5 },
    { "time/reward", 0.25 },
    { "time/play", 2 },
    { "time/learn", 3 },
    { "time/publish", 0.5 },
    { "time/checkpoint", 0.75 },
    { "time/step", 5.5 },
    { "speed/tokens_per_second", 42 / 5.5 },
    { "bob/response_length", 2.4 },
    { "bob/truncated", 0.2 },
    { "bob/window_cuts", 1 },
    { "ann/window_cuts", 1 },
    { "ann/response_length", 18 / 7.0 },
    { "ann/truncated", 1 / 7.0 },
    { "ann/loss", 27 },
    { "ann/entropy", 28 },
    { "ann/reward", 23 },
    { "ann/kl", 25 },
    { "ann/value_loss", 35 },
    { "ann/grad_norm", 32 },
    { "ann/lr", 33 },
    { "ann/clipped", 29 },
    { "ann/importance_capped", 34 },
    { "ann/samples", 21 },
    { "ann/tokens", 22 },
    { "ann/return_std", 26 },
    { "ann/logp_mismatches", 30 },
    { "ann/logp_max_gap", 31 },
    { "ann/updates_skipped", 7 },
    { "ann/seconds", 4 },
    { "ann/tokens_per_second", 5.5 },
};

/* Writes a step's metrics into a file of their own and reads the one line back. */
static json_t *metrics_of(const struct wz_step_report *report, bool plays)
{
    const struct wz_rewards rewards = rewards_of();
    char *path = wz_path("%s/metrics.jsonl", recipe.out);
    struct wz_account account;
    struct wz_map map;
    struct wz_err err;

    account_of(&account, report, &rewards);
    struct wz_metrics *m = wz_metrics_open(recipe.out, false, 0);
    wz_account_metrics(&account, &job, 7, report, plays, m, NULL);
    assert_int_equal(wz_metrics_close(m), 0);
    assert_int_equal(wz_map_open(&map, path, &err), 0);
    json_t *line = wz_json_parse((const char *)map.bytes, map.len - 1, path, &err);
    if (!line) fail_msg("%s", err.text);
    wz_map_close(&map);
    free(path);
    return line;
}

static void every_metric_is_as_counted_by_hand(void **state)
{
    const struct wz_step_report report = report_of();
    json_t *line = metrics_of(&report, true);

    assert_int_equal(json_integer_value(json_object_get(line, "step")), 7);
    for (size_t i = 0; i < WZ_COUNT(by_hand); i++) {
        const json_t *value = json_object_get(line, by_hand[i].name);
        if (!json_is_number(value) || fabs(json_number_value(value) - by_hand[i].value) > 1e-12)
            fail_msg("%s is %g, by hand %g", by_hand[i].name, json_number_value(value), by_hand[i].value);
    }
    assert_int_equal(json_object_size(line), WZ_COUNT(by_hand) + 2); /* step and time: there is no other */
    json_decref(line);
    for (const struct wz_metric *m = wz_metric_rows; m->name; m++) { /* and no row that never shows */
        const char *slash = strchr(m->name, '/');
        size_t i = 0;
        while (i < WZ_COUNT(by_hand) && strcmp(strchr(by_hand[i].name, '/'), slash) != 0) i++;
        if (i == WZ_COUNT(by_hand)) fail_msg("nobody looks at %s", m->name);
    }
}

/* What means nothing is absent: the KL without a reference, play in a supervised stage. A mean of nothing is null. */
static void what_means_nothing_is_absent(void **state)
{
    struct wz_step_report report = report_of();

    job.agents[F].learner.reference.model = NULL;
    report.learned[F].kl = report.learned[F].reward = NAN;
    json_t *line = metrics_of(&report, true);
    assert_null(json_object_get(line, "ann/kl"));
    assert_true(json_is_null(json_object_get(line, "ann/reward")));
    json_decref(line);
    line = metrics_of(&report, false);
    assert_int_equal(json_object_size(line), 2 + 6 + 8);
    assert_null(json_object_get(line, "reward/c0"));
    assert_null(json_object_get(line, "ann/entropy"));
    assert_non_null(json_object_get(line, "ann/loss"));
    json_decref(line);
    job.agents[F].learner.reference.model = &some_model;
}

/* Guarantee 4: the turns of a skipped update are discarded with its reason, and the sum is what was generated. */
static void the_ledger_has_every_turn(void **state)
{
    static const char *const want[AGENTS] = {
        "{\"step\":7,\"agent\":\"bob\",\"generated\":10,\"trained\":0,\"discarded\":10,\"in_flight\":0,\"reasons\":"
        "\"agent frozen 9, judge failed 1\"}\n",
        "{\"step\":7,\"agent\":\"ann\",\"generated\":7,\"trained\":1,\"discarded\":6,\"in_flight\":0,\"reasons\":"
        "\"not the sample of its episode 3, gradient not finite 1, cut by the context window 1, judge failed 1\"}\n"
    };
    const struct wz_step_report report = report_of();
    const struct wz_rewards rewards = rewards_of();
    char *path = wz_path("%s/ledger.jsonl", recipe.out);
    struct wz_account account;
    struct wz_map map;
    struct wz_err err;

    remove(path);
    account_of(&account, &report, &rewards);
    assert_int_equal(wz_account_ledger(&account, &job, 7, (int64_t[]){ 10, 7 }, &err), 0);
    assert_int_equal(wz_map_open(&map, path, &err), 0);
    assert_int_equal(map.len, strlen(want[C]) + strlen(want[F]));
    assert_memory_equal(map.bytes, want[C], strlen(want[C]));
    assert_memory_equal(map.bytes + strlen(want[C]), want[F], strlen(want[F]));
    wz_map_close(&map);
    assert_int_equal(wz_account_ledger(&account, &job, 8, (int64_t[]){ 10, 8 }, &err), -1);
    assert_non_null(strstr(err.text, "generated 8 samples"));
    free(path);
}

static void an_agent_that_cannot_learn_says_why(void **state)
{
    struct wz_step_report report = report_of();
    const struct wz_rewards rewards = rewards_of();
    struct wz_account account;

    account_of(&account, &report, &rewards);
    assert_null(wz_account_idle(&account, &job, &report, &rewards, F));
    report.learned[F].spread = 0;
    report.learned[F].reward = 0.35;
    char *why = wz_account_idle(&account, &job, &report, &rewards, F); /* label and format vary over its turns */
    assert_string_equal(why, "all its samples have the reward 0.35; 1 turns did not fit the context window; 1 of 7 "
                             "feedback turns are not valid");
    free(why);
    why = wz_account_idle(&account, &job, &report, &rewards, C);
    assert_string_equal(
        why,
        "all its samples have the reward 0; 1 turns did not fit the context window"); /* and no feedback of its own */
    free(why);
    account.agents[F].terms[2].sum = account.agents[F].terms[2].squares = account.agents[F].terms[2].n;
    account.agents[F].broken = 0;
    why = wz_account_idle(&account, &job, &report, &rewards, F);
    assert_string_equal(
        why, "all its samples have the reward 0.35, format is always 1; 1 turns did not fit the context window");
    free(why);
    report.learned[F].spread = NAN;
    why = wz_account_idle(&account, &job, &report, &rewards, F);
    assert_string_equal(why,
                        "it has no sample; discarded episodes: judge failed 1, cache too small 2, episode broken 1; "
                        "turns that did not fit: 1; samples rewarded like all of their prompt: 0");
    free(why);
}

/* Moments as a checkpoint has them, v[9] as given. */
static void put_moments(const char *dir, size_t n, float ninth)
{
    const struct wz_tensor_spec specs[2] = { { "m", WZ_DT_F32, 1, { n } }, { "v", WZ_DT_F32, 1, { n } } };
    char *path = wz_path("%s/ann.moments.safetensors", dir);
    float *values = wz_alloc(2 * n * sizeof *values);
    struct wz_err err;

    for (size_t i = 0; i < 2 * n; i++) values[i] = (float)i;
    values[n + 9] = ninth;
    struct wz_safetensors_out *out = wz_safetensors_begin(path, specs, 2, &err);
    assert_int_equal(wz_safetensors_put(out, values, 2 * n, &err), 0);
    assert_int_equal(wz_safetensors_end(out, &err), 0);
    free(values);
    free(path);
}

/* A run that resumes counts its skipped updates on, and moments that are not finite are refused by name. */
static void a_resumed_run_counts_on(void **state)
{
    const struct wz_config config = { .layers = 1,
                                      .dim = 16,
                                      .heads = 2,
                                      .kv_heads = 1,
                                      .head_dim = 8,
                                      .ffn = 24,
                                      .vocab = 37,
                                      .context = 32,
                                      .norm_eps = 1e-5f,
                                      .rope_theta = 1e4f,
                                      .bos = -1 };
    const struct wz_group group = { 1, 0, (const int[]){ 0 } };
    const struct wz_progress p = { .updates = { 5 }, .skipped = { 4 }, .not_finite = { 2 } };
    struct wz_job again = { .n_agents = 1, .root = true };
    struct wz_agent *a = again.agents;
    struct wz_err err;

    again.roles.learner = (struct wz_ranks){ .n = 1 };
    again.be = wz_backend_open("cpu", 1, NULL, &err);
    again.chunk = wz_alloc(WZ_CHUNK_BYTES);
    a->recipe = &recipe_agents[F];
    a->model = wz_model_create(&config, WZ_F32, NULL, again.be);
    wz_model_init(a->model, 1);
    wz_learner_init(&a->learner, a->model, NULL, 0, true, 1, &group, 16, 16);
    put_moments(recipe.out, a->model->n_params, 9);
    assert_int_equal(wz_checkpoint_moments(&again, recipe.out, &p, &err), 0);
    assert_true(a->learner.opt.steps == 5 && a->learner.opt.skipped == 4 && a->learner.opt.not_finite == 2);
    assert_true(a->learner.opt.m[3] == 3 && a->learner.opt.v[9] == 9);
    put_moments(recipe.out, a->model->n_params, INFINITY);
    assert_int_equal(wz_checkpoint_moments(&again, recipe.out, &p, &err), -1);
    assert_non_null(strstr(err.text, "ann.moments.safetensors: \"v\" holds inf"));
    wz_learner_finish(&a->learner);
    wz_model_destroy(a->model);
    wz_backend_close(again.be);
    free(again.chunk);
}

static void the_docs_have_every_metric(void **state)
{
    struct wz_map map;
    struct wz_err err;

    if (wz_map_open(&map, formats, &err) < 0) fail_msg("%s", err.text);
    for (const struct wz_metric *m = wz_metric_rows; m->name; m++) {
        char *row = wz_path("\n| `%s` | %s |\n", m->name, m->about);
        if (!memmem(map.bytes, map.len, row, strlen(row))) fail_msg("%s has no line%s", formats, row);
        free(row);
    }
    wz_map_close(&map);
}

/* Steps are counted over the stages, and their ends are steps like others; the run's end is evaluated anyway. */
static void evaluations_are_due(void **state)
{
    static const struct {
        int every;
        const char *due; /* after each step */
    } rows[] = { { 1, "yyyyy." }, { 2, ".y.y.." }, { 3, "..y..." }, { 0, "......" } };
    struct wz_recipe_stage stages[] = { { .steps = 3 }, { .steps = 3 } };
    struct wz_recipe two = { .stages = stages, .n_stages = 2, .n_eval = 1 };
    const struct wz_job all = { .recipe = &two };
    const struct wz_run none = { .lock = -1 };
    struct wz_run made = none;

    for (size_t i = 0; i < WZ_COUNT(rows); i++)
        for (int step = 0; step < 6; step++) {
            const struct wz_progress p = { .step = step + 1, .stage = step / 3, .stage_step = step % 3 + 1 };
            two.evaluate.every = rows[i].every;
            if (wz_run_due(&none, &all, &p) != (rows[i].due[step] == 'y'))
                fail_msg("every %d, step %d", rows[i].every, step + 1);
        }
    two.evaluate.every = 1;
    wz_table_add(&made.table,
                 &(struct wz_result){ .phase = "step-1", .set = "OB", .metric = "orr", .interval = "", .judge = "" });
    assert_false(wz_run_due(&made, &all, &(struct wz_progress){ .step = 1, .stage_step = 1 }));
    assert_true(wz_run_due(&made, &all, &(struct wz_progress){ .step = 2, .stage_step = 2 }));
    wz_table_finish(&made.table);
    two.n_eval = 0;
    assert_false(wz_run_due(&none, &all, &(struct wz_progress){ .step = 1, .stage_step = 1 }));
}

/* The first of the best averages, of the judges that reward, with a checkpoint; the least where less is better. */
static void the_best_evaluation_is_found(void **state)
{
    static const struct {
        const char *phase, *set, *metric, *judge;
        double value;
    } rows[] = { { "before", WZ_AVERAGE, "f1", "rules", 0.9 },  { "step-2", WZ_AVERAGE, "f1", "rules", 0.5 },
                 { "step-2", WZ_AVERAGE, "asr", "rules", 0.1 }, { "step-4", WZ_AVERAGE, "f1", "rules", 0.7 },
                 { "step-4", WZ_AVERAGE, "f1", "other", 0.2 },  { "step-4", WZ_AVERAGE, "asr", "rules", NAN },
                 { "step-6", "WJ", "f1", "rules", 0.95 },       { "step-6", WZ_AVERAGE, "f1", "rules", 0.6 },
                 { "step-6", WZ_AVERAGE, "f1", "other", 0.99 }, { "step-6", WZ_AVERAGE, "asr", "rules", 0.05 },
                 { "step-8", WZ_AVERAGE, "f1", "rules", 0.7 },  { "step-8", WZ_AVERAGE, "asr", "rules", 0.05 },
                 { "step-9", WZ_AVERAGE, "f1", "rules", 0.97 }, { "after", WZ_AVERAGE, "f1", "rules", 0.98 } };
    static const struct {
        const char *by;
        int64_t step;
    } want[] = { { "f1", 4 }, { "asr", 6 }, { "c0_f1", -1 }, { "", -1 } };
    struct wz_run run = { .lock = -1 };
    struct wz_err err;

    for (int step = 2; step < 9; step += 2) { /* there is none after step 9 */
        char *path = wz_path("%s/checkpoints/%d", recipe.out, step);
        assert_int_equal(wz_mkdirs(path, &err), 0);
        free(path);
    }
    for (size_t i = 0; i < WZ_COUNT(rows); i++)
        wz_table_add(&run.table, &(struct wz_result){ .phase = rows[i].phase,
                                                      .set = rows[i].set,
                                                      .metric = rows[i].metric,
                                                      .value = rows[i].value,
                                                      .interval = "",
                                                      .judge = rows[i].judge });
    for (size_t i = 0; i < WZ_COUNT(want); i++) {
        struct wz_recipe asks = { .checkpoint.best = (char *)want[i].by, .out = recipe.out };
        assert_int_equal(wz_run_best(&run, &asks), want[i].step);
    }
    wz_table_finish(&run.table);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_metric_is_as_counted_by_hand),
        cmocka_unit_test(what_means_nothing_is_absent),
        cmocka_unit_test(the_ledger_has_every_turn),
        cmocka_unit_test(an_agent_that_cannot_learn_says_why),
        cmocka_unit_test(a_resumed_run_counts_on),
        cmocka_unit_test(evaluations_are_due),
        cmocka_unit_test(the_docs_have_every_metric),
        cmocka_unit_test(the_best_evaluation_is_found),
    };
    struct wz_err err;

    formats = argv[argc - 1];
    recipe.out = test_scratch("account");
    if (wz_mkdirs(recipe.out, &err) < 0) wz_die("%s", err.text);
    for (int a = 0; a < AGENTS; a++) job.agents[a].recipe = &recipe_agents[a];
    job.agents[F].learner.model = job.agents[F].learner.reference.model = &some_model;
    job.agents[F].learner.critic.w = &(float){ 0 };
    job.agents[F].learner.opt.skipped = 7;
    job.overlong = 6;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
