/* Supervised fine-tuning trains on the assistant's tokens only: every turn or only the last, end token included; a
 * broken line is named; a system prompt goes before the conversations that have none; a small model memorises its
 * examples. */
#include "tests/tokenizer_help.h"

#include <math.h>

#include "trainer/trainer.h"

static struct wz_tokenizer *tok;
static const struct wz_template *chat;
static struct wz_ids stops;

static int load_with(struct wz_sft_set *set, const char *text, const char *system, int context, struct wz_err *err)
{
    char *path = test_scratch("sft.jsonl");
    FILE *f = fopen(path, "w");

    assert_true(f && fputs(text, f) >= 0 && fclose(f) == 0);
    int rc = wz_sft_load(set, path, system, chat, tok, &stops, context, err);
    remove(path);
    free(path);
    return rc;
}

static int load(struct wz_sft_set *set, const char *text, int context, struct wz_err *err)
{
    return load_with(set, text, "", context, err);
}

#define TURNS                                                                            \
    "{\"role\":\"user\",\"content\":\"u\"},{\"role\":\"assistant\",\"content\":\"ab\"}," \
    "{\"role\":\"user\",\"content\":\"v\"},{\"role\":\"assistant\",\"content\":\"c\"}]"
#define TALK "{\"messages\":[{\"role\":\"system\",\"content\":\"s\"}," TURNS

/* <sys>s<user>u<end><asst>ab<end><user>v<end><asst>c<end>: '.' no loss, the letter or E where there is one */
static void shape(const struct wz_sft_example *x, const char *want)
{
    char got[64] = "";

    for (int i = 0; i < x->n; i++) {
        char c = x->ids[i] < 256 ? (char)x->ids[i] : x->ids[i] == T_END ? 'E' : '<';
        got[i] = x->loss[i] ? c : '.';
    }
    assert_string_equal(got, want);
}

static void loss_is_on_answers(void **state)
{
    struct wz_sft_set set;
    struct wz_err err;

    if (load(&set, TALK "}\n\n" TALK ",\"train\":\"last\"}\n", 64, &err) < 0) fail_msg("%s", err.text);
    assert_int_equal(set.n, 2);
    shape(&set.list[0], "......abE....cE");
    shape(&set.list[1], ".............cE");
    assert_int_equal(set.longest, 15);
    wz_sft_finish(&set);
}

static void ids_are_taken_as_they_are(void **state)
{
    static const struct {
        const char *line, *says;
    } bad[] = {
        { "{\"ids\": [97, 98], \"from\": 2}", "row 1: expected \"from\"" },
        { "{\"ids\": [97, 98], \"from\": 0}", "from 1 to 1" },
        { "{\"ids\": [97, 98]}", "\"from\"" },
        { "{\"ids\": [97, 99999], \"from\": 1}", "ids[1]" },
        { "{\"ids\": [97, 97, 97, 97, 97, 97, 97], \"from\": 1}", "7 tokens, the model's context is 6" },
    };
    struct wz_sft_set set;
    struct wz_err err;

    if (load(&set, "{\"ids\": [97, 98, 99, 100], \"from\": 2}\n", 64, &err) < 0) fail_msg("%s", err.text);
    shape(&set.list[0], "..cd");
    wz_sft_finish(&set);
    for (size_t i = 0; i < WZ_COUNT(bad); i++) {
        assert_int_equal(load(&set, bad[i].line, 6, &err), -1);
        if (!strstr(err.text, bad[i].says)) fail_msg("%s", err.text);
    }
}

/* A turn is trained on up to the first end token in it, be it the template's or one that only the model's configs name:
 * what would come after it is never generated. */
static void loss_ends_at_any_end_token(void **state)
{
    struct wz_sft_set set;
    struct wz_err err;

    wz_ids_add(&stops, 'b');
    if (load(&set, TALK "}\n", 64, &err) < 0) fail_msg("%s", err.text);
    shape(&set.list[0], "......ab.....cE");
    wz_sft_finish(&set);
    stops.n--;
}

static void the_system_prompt_goes_first(void **state)
{
    struct wz_sft_set set;
    struct wz_err err;

    if (load_with(&set, TALK "}\n{\"messages\":[" TURNS "}\n", "s", 64, &err) < 0) fail_msg("%s", err.text);
    shape(&set.list[1], "......abE....cE");
    assert_int_equal(set.list[1].n, set.list[0].n);
    assert_memory_equal(set.list[1].ids, set.list[0].ids, sizeof(int) * (size_t)set.list[0].n);
    wz_sft_finish(&set);
    if (load_with(&set, TALK "}\n", "other", 64, &err) < 0) fail_msg("%s", err.text);
    assert_int_equal(set.longest, 15); /* it has its own */
    wz_sft_finish(&set);
}

static void bad_lines_are_named(void **state)
{
    static const struct {
        const char *line, *says;
    } rows[] = {
        { "{", "row 2" },
        { "{\"text\":1}", "row 2: no \"messages\"" },
        { "{\"messages\":[]}", "row 2: no \"messages\"" },
        { "{\"messages\":[{\"role\":\"bot\",\"content\":\"\"}]}", "row 2: message 1: role \"bot\"" },
        { "{\"messages\":[{\"role\":\"user\",\"content\":\"u\",\"tool_calls\":[]},{\"role\":\"assistant\",\"content\":"
          "\"a\",\"name\":null,\"reasoning_content\":\"r\"}]}",
          "row 2: message 2: \"reasoning_content\" is not read: expected \"role\" and \"content\"" },
        { "{\"messages\":[{\"role\":\"user\",\"content\":\"u\",\"weight\":0}]}", "row 2: message 1: \"weight\"" },
        { "{\"messages\":[{\"role\":\"user\"}]}", "row 2: message 1: no \"content\"" },
        { "{\"messages\":[{\"role\":\"user\",\"content\":\"u\"}]}", "row 2: no assistant" },
        { TALK ",\"train\":\"some\"}", "row 2: \"train\"" },
        { "{\"messages\":[{\"role\":\"user\",\"content\":\"uuuuuuuuuuuuuuuuuuuuuuuuu\"},{\"role\":\"assistant\","
          "\"content\":\"\"}]}",
          "row 2: 29 tokens" },
    };

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        struct wz_sft_set set;
        struct wz_err err;
        struct wz_buf text = { 0 };
        wz_buf_printf(&text, "%s}\n%s\n", TALK, rows[i].line);
        assert_int_equal(load(&set, text.data, 20, &err), -1);
        if (!strstr(err.text, rows[i].says)) fail_msg("row %zu says: %s", i, err.text);
        wz_buf_finish(&text);
    }
    struct wz_sft_set set;
    struct wz_err err;
    assert_int_equal(load(&set, "\n", 20, &err), -1);
    assert_non_null(strstr(err.text, "no examples"));
}

static void a_model_learns_by_heart(void **state)
{
    struct wz_config c = { .layers = 1,
                           .dim = 32,
                           .heads = 2,
                           .kv_heads = 2,
                           .head_dim = 16,
                           .ffn = 48,
                           .vocab = T_VOCAB,
                           .context = 32,
                           .norm_eps = 1e-5f,
                           .rope_theta = 1e4f,
                           .bos = -1 };
    const struct wz_learn how = { .adamw = { 1e-2, 0, 0.1, 0.9, 0.95, 1e-8, 0, 1 },
                                  .loss = wz_loss_find("cross_entropy", NULL),
                                  .temperature = 1,
                                  .token_mean = true };
    const int only[1] = { 0 };
    const struct wz_group group = { 1, 0, only };
    struct wz_err err;
    struct wz_sft_set set;
    struct wz_link job;
    struct wz_learner l;
    struct wz_backend *be = wz_backend_open("auto", 1, NULL, &err);
    struct wz_model *m = wz_model_create(&c, WZ_F32, NULL, be);
    struct wz_step_stats stats;
    double first = 0;

    assert_int_equal(wz_link_open(&job, "self", 60, false, &err), 0);
    assert_int_equal(load(&set, TALK "}\n", 32, &err), 0);
    wz_model_init(m, 1);
    wz_learner_init(&l, m, NULL, 0, false, 2, &group, 20, set.longest);
    for (int s = 0; s < 60; s++) {
        wz_sft_step(&l, &how, &job, &group, &set, 3, s, 60, 1, &stats);
        if (!s) first = stats.nll;
    }
    assert_float_equal(first, log(T_VOCAB), 0.5); /* nothing known yet */
    assert_true(stats.nll < 0.05);
    assert_int_equal(m->version, 60);
    wz_learner_finish(&l);
    wz_sft_finish(&set);
    wz_model_destroy(m);
    wz_backend_close(be);
    wz_link_close(&job);
}

static int set_up(void **state)
{
    struct wz_err err;

    tok = tiny_load(false);
    chat = wz_template_find("sandbox", tok, &err);
    wz_ids_add(&stops, T_END);
    return tok && chat ? 0 : -1;
}

static int tear_down(void **state)
{
    wz_tokenizer_destroy(tok);
    wz_ids_finish(&stops);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loss_is_on_answers),         cmocka_unit_test(ids_are_taken_as_they_are),
        cmocka_unit_test(loss_ends_at_any_end_token), cmocka_unit_test(the_system_prompt_goes_first),
        cmocka_unit_test(bad_lines_are_named),        cmocka_unit_test(a_model_learns_by_heart),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
