/* The engine's promises: results do not depend on the number of rows, the order of requests, their company, or what
 * is cached; every log-probability is the one that scoring gives, bit for bit (laws 1 and 2); limits, stops and
 * short pages end a request as they say. */
#include "tests/model_help.h"

#include "model/model.h"

enum { N = 9, VOCAB = 61, MOST = 24 };

static struct wz_model *model;
static int contexts[N][40], n_context[N];

static int set_up(void **state)
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
                           .bos = -1 };

    model = wz_model_create(&c, WZ_F32, NULL, backend_of("auto", 1));
    wz_model_init(model, 5);
    /* sharper than a fresh model: a greedy run and a filter have something to choose from */
    float *w = model->params;
    for (size_t i = 0; i < model->n_params; i++) w[i] *= 6;
    wz_model_commit(model, 1);
    for (int i = 0; i < N; i++) {
        n_context[i] = 3 + 4 * i;
        ids_of(contexts[i], n_context[i], VOCAB, 70); /* all begin alike: the longer ones hold the shorter */
        contexts[i][n_context[i] - 1] = i;
    }
    return 0;
}

static struct wz_request request(int i)
{
    return (struct wz_request){ .context = contexts[i],
                                .n_context = n_context[i],
                                .max_tokens = MOST,
                                .temperature = i % 3 ? 1 : 0,
                                .top_p = i % 2 ? 0.9f : 1,
                                .top_k = i == 4 ? 5 : 0,
                                .min_p = i == 5 ? 0.05f : 0,
                                .key = { 3, WZ_RNG_TOKEN, 1, (uint32_t)i, 0, 0 } };
}

static void finish(struct wz_request *r, int n)
{
    for (int i = 0; i < n; i++) wz_request_finish(&r[i]);
}

static void same(const struct wz_request *a, const struct wz_request *b)
{
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->ids, b->ids, sizeof *a->ids * (size_t)a->n);
    assert_memory_equal(a->logp, b->logp, sizeof *a->logp * (size_t)a->n);
    assert_int_equal(a->stopped, b->stopped);
}

static const int stops[2] = { 7, 11 };

static void baseline(struct wz_request *r)
{
    struct wz_engine *e = wz_engine_create(model, N, 4, 0, 0);

    for (int i = 0; i < N; i++) r[i] = request(i);
    wz_engine_run(e, r, N, stops, 2);
    wz_engine_destroy(e);
}

static void rows_order_and_pages_do_not_show(void **state)
{
    struct wz_request all[N], one[N];

    baseline(all);
    for (int rows = 1; rows <= 5; rows += 2) {
        struct wz_engine *e =
            wz_engine_create(model, rows, 3, rows == 3 ? 40 : 0, 0); /* 40 pages: rows must wait for each other */
        for (int i = 0; i < N; i++) one[i] = request(N - 1 - i);
        wz_engine_run(e, one, N, stops, 2);
        for (int i = 0; i < N; i++) same(&all[i], &one[N - 1 - i]);
        finish(one, N);
        for (int i = 0; i < N; i++) { /* again, alone, beginnings now cached */
            one[0] = request(i);
            wz_engine_run(e, one, 1, stops, 2);
            same(&all[i], &one[0]);
            finish(one, 1);
        }
        assert_true(rows == 3 || wz_engine_stats(e).reused > 0);
        wz_engine_destroy(e);
    }
    finish(all, N);
}

static void logps_are_those_of_scoring(void **state)
{
    struct wz_request all[N];
    struct wz_cache *cache = wz_cache_create(model, 40, 4);
    struct wz_work *work = wz_work_create(model, 64, false);

    baseline(all);
    for (int i = 0; i < N; i++) {
        struct wz_request *r = &all[i];
        int ids[64], targets[64], n = r->n_context + r->n;
        float logp[64];
        struct wz_seq seq = { 0 };
        memcpy(ids, r->context, sizeof *ids * (size_t)r->n_context);
        memcpy(ids + r->n_context, r->ids, sizeof *ids * (size_t)r->n);
        for (int k = 0; k + 1 < n; k++) targets[k] = ids[k + 1];
        n--;
        run(model, cache, work, &seq, 1, ids, &n);
        wz_logprobs(model, work, targets, r->temperature > 0 ? r->temperature : 1, logp, NULL);
        assert_memory_equal(logp + r->n_context - 1, r->logp, sizeof *logp * (size_t)r->n);
        wz_seq_finish(cache, &seq);
    }
    finish(all, N);
    wz_work_destroy(work);
    wz_cache_destroy(cache);
}

static void turns_end_where_they_should(void **state)
{
    struct wz_request all[N];
    int stopped = 0;

    baseline(all);
    for (int i = 0; i < N; i++) {
        const struct wz_request *r = &all[i];
        int room = 64 - r->n_context < MOST ? 64 - r->n_context : MOST;
        assert_in_range(r->n, 1, room);
        for (int k = 0; k + 1 < r->n; k++) assert_true(r->ids[k] != 7 && r->ids[k] != 11);
        bool stop = r->ids[r->n - 1] == 7 || r->ids[r->n - 1] == 11;
        assert_int_equal(r->stopped, stop);
        if (!stop) assert_int_equal(r->n, room);
        stopped += stop;
    }
    assert_in_range(stopped, 1, N - 1); /* the case holds both kinds */
    finish(all, N);
}

static void what_cannot_be_generated_says_why(void **state)
{
    int ids[64] = { 0 };
    struct wz_request r[4] = { request(0), request(1), request(2), request(3) };
    struct wz_engine *e = wz_engine_create(model, 2, 4, 8, 0);

    r[0].n_context = 0;
    r[1].context = ids, r[1].n_context = 64;
    r[2].context = ids, r[2].n_context = 30; /* 30 + 24 tokens need 14 pages, there are 8 */
    r[3].max_tokens = 2;
    wz_engine_run(e, r, 4, stops, 2);
    assert_string_equal(r[0].problem, "the prompt is empty");
    assert_string_equal(r[1].problem, "the prompt leaves no room in the context");
    assert_string_equal(r[2].problem, "the prompt needs more cache pages than there are");
    assert_null(r[3].problem);
    assert_in_range(r[3].n, 1, 2);
    finish(r, 4);
    wz_engine_destroy(e);
}

/* A revision's context is its first reply's, that reply, and what was said of it: only the last is read, and the one
 * token whose keys nobody needed before. */
static void a_revision_reads_only_what_is_new(void **state)
{
    enum { MORE = 5 };
    struct wz_request first = request(2), second = first;
    struct wz_engine *e = wz_engine_create(model, 2, 4, 0, 0);
    int ids[64];

    first.max_tokens = second.max_tokens = 8;
    wz_engine_run(e, &first, 1, NULL, 0);
    struct wz_engine_stats before = wz_engine_stats(e), after;
    assert_int_equal(before.prefilled, first.n_context - 1);
    memcpy(ids, first.context, sizeof *ids * (size_t)first.n_context);
    memcpy(ids + first.n_context, first.ids, sizeof *ids * (size_t)first.n);
    for (int i = 0; i < MORE; i++) ids[first.n_context + first.n + i] = 3 + i;
    second.context = ids;
    second.n_context = first.n_context + first.n + MORE;
    wz_engine_run(e, &second, 1, NULL, 0);
    after = wz_engine_stats(e);
    assert_int_equal(after.reused - before.reused, first.n_context + first.n - 1);
    assert_int_equal(after.prefilled - before.prefilled, MORE); /* the last of them is the first decoding row's */
    finish(&first, 1), finish(&second, 1);
    wz_engine_destroy(e);
}

/* Law 6: after a change of weights nothing cached is used again. */
static void new_weights_forget_the_cache(void **state)
{
    struct wz_request a[1] = { request(6) }, b[1] = { request(6) }, c[1] = { request(6) };
    struct wz_engine *e = wz_engine_create(model, 2, 4, 0, 0), *fresh;
    float *w = model->params, kept = w[100];

    wz_engine_run(e, a, 1, stops, 2);
    for (size_t i = 0; i < 2000; i++) w[i] = -w[i];
    wz_model_commit(model, 2);
    wz_engine_run(e, b, 1, stops, 2);
    fresh = wz_engine_create(model, 2, 4, 0, 0);
    wz_engine_run(fresh, c, 1, stops, 2);
    same(b, c);
    assert_memory_not_equal(a[0].logp, b[0].logp, sizeof(float));
    for (size_t i = 0; i < 2000; i++) w[i] = -w[i];
    assert_true(w[100] == kept);
    wz_model_commit(model, 1);
    finish(a, 1), finish(b, 1), finish(c, 1);
    wz_engine_destroy(e), wz_engine_destroy(fresh);
}

static int tear_down(void **state)
{
    struct wz_backend *be = model->be;

    wz_model_destroy(model);
    wz_backend_close(be);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_order_and_pages_do_not_show), cmocka_unit_test(logps_are_those_of_scoring),
        cmocka_unit_test(turns_end_where_they_should),      cmocka_unit_test(what_cannot_be_generated_says_why),
        cmocka_unit_test(new_weights_forget_the_cache),     cmocka_unit_test(a_revision_reads_only_what_is_new),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
