/* Every setting of learning arrives where it is used. The recipe here has no value at its default, and the tables of
 * keys are walked, so that a key whose place is not looked at fails. */
#include "tests/test.h"

#include "recipe/schema.h"
#include "run/run.h"

#define LEARN(field) offsetof(struct wz_learn, field), -1
#define REWARD(row)  0, row
#define OTHER        0, -1

/* A key of stages[].agents[], a value, and its place: a double of struct wz_learn, or the coefficient of a row of the
 * rewards (WaltzRL 2.2: the outcome of replies; of feedback the bonus, the label, the format). */
static const struct {
    const char *key, *value;
    size_t at;
    int row;
} places[] = {
    { "name", "ann", OTHER },
    { "lr", "0.0003", LEARN(adamw.lr) },
    { "warmup", "7", LEARN(adamw.warmup) },
    { "min_lr_ratio", "0.31", LEARN(adamw.floor) },
    { "beta1", "0.81", LEARN(adamw.beta1) },
    { "beta2", "0.93", LEARN(adamw.beta2) },
    { "eps", "0.000001", LEARN(adamw.eps) },
    { "weight_decay", "0.02", LEARN(adamw.decay) },
    { "max_grad_norm", "2.5", LEARN(adamw.clip) },
    { "kl_coef", "0.04", LEARN(kl) },
    { "kl_form", "k3", OTHER },
    { "clip_eps", "0.17", LEARN(epsilon) },
    { "clip_eps_high", "0.27", LEARN(epsilon_high) },
    { "dual_clip", "3.5", LEARN(dual) },
    { "ratio", "sequence", OTHER },
    { "loss_mean", "token", OTHER },
    { "estimate", "rloo", OTHER },
    { "gae_gamma", "0.98", LEARN(discount) },
    { "gae_lambda", "0.9", LEARN(trace) },
    { "value_lr", "0.002", LEARN(value_lr) },
    { "value_coef", "0.3", LEARN(value_coef) },
    { "value_clip", "0.4", LEARN(value_clip) },
    { "importance", "sequence_mask", OTHER },
    { "importance_cap", "1.8", LEARN(cap) },
    { "overlong", "drop", OTHER },
    { "overlong_cache", "19", LEARN(cache) },
    { "alpha", "0.71", REWARD(1) },
    { "lambda", "0.13", REWARD(2) },
    { "gamma", "0.29", REWARD(3) },
    { "feedback_bonus", "outcome", OTHER },
    { "revision_prob", "0.37", LEARN(revision) },
};

static const char head[] =
    "name: t\n"
    "agents:\n"
    "  - {name: ann, role: feedback, model: m, temperature: 1.7}\n"
    "  - {name: bob, role: conversation, model: m, temperature: 0.6}\n"
    "data: [{path: d.jsonl}]\n"
    "sft: {model: a, data: b, out: c, system: d, chat: e, type: bf16, steps: 11, batch: 12, lr: 0.011, warmup: 13,\n"
    "  min_lr_ratio: 0.41, beta1: 0.42, beta2: 0.43, eps: 0.044, weight_decay: 0.45, max_grad_norm: 46}\n"
    "stages:\n"
    "  - {name: s, steps: 5, samples_per_prompt: 4, epochs: 3, agents: [{name: bob, alpha: 9, lambda: 9, gamma: 9}, {";

static struct wz_recipe *recipe_of(const char *only)
{
    struct wz_buf text = { 0 };
    char *path = test_scratch("settings.yaml");
    struct wz_recipe *recipe;
    struct wz_err err;

    wz_buf_str(&text, head);
    for (size_t i = 0; i < WZ_COUNT(places); i++)
        if (!only || i == 0 || !strcmp(only, places[i].key))
            wz_buf_printf(&text, "%s%s: %s", i ? ", " : "", places[i].key, places[i].value);
    wz_buf_str(&text, "}]}\n");
    assert_int_equal(wz_file_write(path, text.data, text.len, &err), 0);
    if (wz_recipe_load(&recipe, path, NULL, 0, &err) < 0) fail_msg("%s", err.text);
    wz_buf_finish(&text);
    free(path);
    return recipe;
}

static const struct wz_recipe_keys *inside(const struct wz_recipe_keys *keys, const char *key, int *at)
{
    int i = 0;

    while (i < keys->n && strcmp(keys->fields[i].key, key) != 0) i++;
    if (at) *at = i;
    return i < keys->n ? keys->rules[i].inside : NULL;
}

/* What stage 0 gives the feedback agent. */
static struct wz_learn learn_of(struct wz_recipe *recipe, struct wz_rewards *rewards)
{
    struct wz_job job = { .recipe = recipe, .n_agents = 2 };

    for (int i = 0; i < 2; i++) {
        job.agents[i].recipe = &recipe->agents[i];
        job.agents[i].feedback = i == 0;
    }
    *rewards = wz_job_rewards(&job, recipe->stages);
    return wz_stage_learn(wz_losses, recipe->stages, wz_recipe_learn(recipe->stages, "ann"), &recipe->agents[0]);
}

static double number_at(const struct wz_learn *how, const struct wz_rewards *rewards, size_t i)
{
    if (places[i].row >= 0) return rewards->rows[places[i].row].coefficient;
    return *(const double *)(const void *)((const char *)how + places[i].at);
}

static void every_key_of_learning_arrives(void **state)
{
    const struct wz_recipe_keys *keys = inside(inside(&wz_recipe_keys, "stages", NULL), "agents", NULL);
    struct wz_recipe *recipe = recipe_of(NULL);
    struct wz_rewards rewards;
    const struct wz_learn how = learn_of(recipe, &rewards);

    assert_int_equal(keys->n, WZ_COUNT(places));
    for (int k = 0; k < keys->n; k++) {
        size_t i = 0;
        while (i < WZ_COUNT(places) && strcmp(places[i].key, keys->fields[k].key) != 0) i++;
        if (i == WZ_COUNT(places)) fail_msg("nobody looks where %s arrives", keys->fields[k].key);
        if (keys->rules[k].fallback) assert_string_not_equal(keys->rules[k].fallback, places[i].value);
        if (places[i].at == 0 && places[i].row < 0) continue;
        if (number_at(&how, &rewards, i) != strtod(places[i].value, NULL))
            fail_msg("%s: %s arrives as %g", places[i].key, places[i].value, number_at(&how, &rewards, i));
    }
    assert_true(how.token_mean && how.temperature == 1.7 && how.loss == wz_losses && how.pick == wz_sample_picks);
    assert_string_equal(how.estimate->name, "rloo");
    assert_string_equal(how.kl_form->name, "k3");
    assert_string_equal(how.importance->name, "sequence_mask");
    assert_string_equal(how.overlong->name, "drop");
    assert_true(how.sequence_ratio && how.limit == 512 && how.peers == 4 && how.epochs == 3 && how.length == 0);
    assert_int_equal(rewards.n, 4);
    assert_true(rewards.rows[0].coefficient == 1);
    const char *terms[] = { "outcome", "outcome", "label", "format" };
    for (int r = 0; r < rewards.n; r++) {
        assert_string_equal(rewards.rows[r].role, r ? WZ_FEEDBACK : WZ_CONVERSATION);
        assert_string_equal(rewards.rows[r].term->name, terms[r]);
    }
    wz_recipe_destroy(recipe);
}

/* One key at a time, the others at their defaults: no other number moves. */
static void a_key_moves_nothing_else(void **state)
{
    struct wz_recipe *plain = recipe_of("name");
    struct wz_rewards usual, rewards;
    const struct wz_learn before = learn_of(plain, &usual);

    assert_false(before.token_mean);
    assert_string_equal(usual.rows[1].term->name, "dir");
    for (size_t k = 1; k < WZ_COUNT(places); k++) {
        struct wz_recipe *recipe = recipe_of(places[k].key);
        const struct wz_learn how = learn_of(recipe, &rewards);
        for (size_t i = 1; i < WZ_COUNT(places); i++)
            if (places[i].at || places[i].row >= 0) {
                const bool moved = number_at(&how, &rewards, i) != number_at(&before, &usual, i);
                if (moved != (i == k)) fail_msg("%s moves %s", places[k].key, places[i].key);
            }
        assert_true(how.token_mean == !strcmp(places[k].key, "loss_mean"));
        assert_true(how.sequence_ratio == !strcmp(places[k].key, "ratio"));
        assert_true((how.overlong != before.overlong) == !strcmp(places[k].key, "overlong"));
        assert_true((how.importance != before.importance) == !strcmp(places[k].key, "importance"));
        assert_true((how.kl_form != before.kl_form) == !strcmp(places[k].key, "kl_form"));
        assert_true((how.estimate != before.estimate) == !strcmp(places[k].key, "estimate"));
        assert_string_equal(rewards.rows[1].term->name, strcmp(places[k].key, "feedback_bonus") ? "dir" : "outcome");
        wz_recipe_destroy(recipe);
    }
    wz_recipe_destroy(plain);
}

/* A supervised stage has no estimate and no penalty. */
static void a_supervised_stage_needs_no_rollout(void **state)
{
    struct wz_recipe *recipe = recipe_of(NULL);
    const struct wz_learn how = wz_stage_learn(wz_loss_find("cross_entropy", NULL), recipe->stages,
                                               wz_recipe_learn(recipe->stages, "ann"), &recipe->agents[0]);

    assert_true(!how.pick && !how.estimate && how.kl == 0 && how.adamw.lr == 0.0003);
    wz_recipe_destroy(recipe);
}

/* The same value, of the type that the field says, in two mappings. */
static bool same_value(const cyaml_schema_field_t *a, const void *in_a, const cyaml_schema_field_t *b, const void *in_b)
{
    const char *x = (const char *)in_a + a->data_offset, *y = (const char *)in_b + b->data_offset;

    if (a->value.type != b->value.type) return false;
    if (a->value.type == CYAML_STRING) return !strcmp(*(char *const *)(const void *)x, *(char *const *)(const void *)y);
    return !memcmp(x, y, a->value.data_size);
}

static bool is_default(const cyaml_schema_field_t *f, const void *in, const char *fallback)
{
    const void *at = (const char *)in + f->data_offset;

    if (f->value.type == CYAML_STRING) return !strcmp(*(char *const *)at, fallback);
    return (f->value.type == CYAML_INT ? *(const int *)at : *(const double *)at) == strtod(fallback, NULL);
}

/* Every key of the section sft: arrives in the recipe of the one stage that `waltz sft` runs. */
static void every_key_of_sft_arrives(void **state)
{
    const struct wz_recipe_keys *sft = inside(&wz_recipe_keys, "sft", NULL),
                                *stage = inside(&wz_recipe_keys, "stages", NULL),
                                *learn = inside(stage, "agents", NULL),
                                *agent = inside(&wz_recipe_keys, "agents", NULL);
    struct wz_recipe *recipe = recipe_of(NULL), *given = recipe_of(NULL);
    struct wz_err err;

    if (wz_recipe_sft(&recipe, &err) < 0) fail_msg("%s", err.text);
    const struct {
        const struct wz_recipe_keys *keys;
        const void *in;
    } homes[] = { { learn, recipe->stages[0].agents }, { stage, recipe->stages }, { agent, recipe->agents } };
    for (int i = 0; i < sft->n; i++) {
        const char *key = sft->fields[i].key;
        size_t h = 0;
        int at;
        if (!strcmp(key, "data") || !strcmp(key, "out")) continue;
        assert_false(is_default(&sft->fields[i], &given->sft, sft->rules[i].fallback));
        while (h < WZ_COUNT(homes) && (inside(homes[h].keys, key, &at), at == homes[h].keys->n)) h++;
        if (h == WZ_COUNT(homes)) fail_msg("sft.%s has no place in a stage", key);
        if (!same_value(&sft->fields[i], &given->sft, &homes[h].keys->fields[at], homes[h].in))
            fail_msg("sft.%s does not arrive", key);
    }
    assert_string_equal(recipe->data[0].path, "b");
    assert_string_equal(recipe->out, "c");
    assert_int_equal(recipe->n_stages, 1);
    wz_recipe_destroy(recipe);
    wz_recipe_destroy(given);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_key_of_learning_arrives),
        cmocka_unit_test(a_key_moves_nothing_else),
        cmocka_unit_test(a_supervised_stage_needs_no_rollout),
        cmocka_unit_test(every_key_of_sft_arrives),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
