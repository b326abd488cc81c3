/* The engine's guarantees: results do not depend on max_num_seqs, on the order of requests, on when others are
 * submitted or cancelled, or on what is cached; every log-probability is bit for bit the one that scoring gives
 * (guarantees 1 and 2); every token is the one that its request's settings and its own draw choose, worked out here in
 * double; limits, stop ids and too few pages end a request as they say. */
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

static const int stops[2] = { 7, 11 };

static struct wz_request request(int i)
{
    return (struct wz_request){ .prompt_ids = contexts[i],
                                .n_prompt = n_context[i],
                                .stop_ids = stops,
                                .n_stops = 2,
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
    assert_int_equal(a->finish_reason, b->finish_reason);
}

static void baseline(struct wz_request *r)
{
    struct wz_engine *e = wz_engine_create(model, N, 4, 0, 0);

    for (int i = 0; i < N; i++) r[i] = request(i);
    wz_engine_run(e, r, N);
    wz_engine_destroy(e);
}

static void size_order_and_pages_do_not_show(void **state)
{
    struct wz_request all[N], one[N];

    baseline(all);
    for (int seqs = 1; seqs <= 5; seqs += 2) {
        struct wz_engine *e =
            wz_engine_create(model, seqs, 3, seqs == 3 ? 40 : 0, 0); /* 40 pages: requests must wait for each other */
        for (int i = 0; i < N; i++) one[i] = request(N - 1 - i);
        wz_engine_run(e, one, N);
        for (int i = 0; i < N; i++) same(&all[i], &one[N - 1 - i]);
        finish(one, N);
        for (int i = 0; i < N; i++) { /* again, alone, beginnings now cached */
            one[0] = request(i);
            wz_engine_run(e, one, 1);
            same(&all[i], &one[0]);
            finish(one, 1);
        }
        assert_true(seqs == 3 || wz_engine_stats(e).reused > 0);
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
        int ids[64], targets[64], n = r->n_prompt + r->n;
        float logp[64];
        struct wz_seq seq = { 0 };
        memcpy(ids, r->prompt_ids, sizeof *ids * (size_t)r->n_prompt);
        memcpy(ids + r->n_prompt, r->ids, sizeof *ids * (size_t)r->n);
        for (int k = 0; k + 1 < n; k++) targets[k] = ids[k + 1];
        n--;
        run(model, cache, work, &seq, 1, ids, &n);
        wz_logprobs(model, work, targets, r->temperature > 0 ? r->temperature : 1, logp, NULL);
        assert_memory_equal(logp + r->n_prompt - 1, r->logp, sizeof *logp * (size_t)r->n);
        wz_seq_finish(cache, &seq);
    }
    finish(all, N);
    wz_work_destroy(work);
    wz_cache_destroy(cache);
}

/* The token that struct wz_pick says, of exact probabilities: top_k and top_p keep a prefix of the order by probability
 * (of equals the lower id first), min_p what is left of it; u goes through those by id. */
static int chosen(const double *p, const struct wz_request *r, double u)
{
    int order[VOCAB], n = 0, keep = 0;
    bool kept[VOCAB] = { false };
    double total = 0, sum = 0, mass = 0;

    for (int v = 0; v < VOCAB; v++, n++) {
        int at = n;
        for (; at > 0 && p[order[at - 1]] < p[v]; at--) order[at] = order[at - 1];
        order[at] = v;
    }
    if (r->temperature == 0) return order[0];
    if (r->top_k > 0 && r->top_k < n) n = r->top_k;
    for (int i = 0; i < n; i++) total += p[order[i]];
    for (; keep < n && sum < (double)r->top_p * total; keep++) sum += p[order[keep]];
    for (int i = 0; i < keep; i++) kept[order[i]] = p[order[i]] >= (double)r->min_p * p[order[0]];
    for (int v = 0; v < VOCAB; v++) mass += kept[v] ? p[v] : 0;
    sum = 0;
    for (int v = 0; v < VOCAB; v++)
        if (kept[v] && (sum += p[v]) > u * mass) return v;
    fail_msg("no token is left");
    return -1;
}

/* Settings that each decide some token: with any of them lost, or a draw used twice, other tokens come out. */
static void tokens_are_those_of_settings_and_draws(void **state)
{
    static const struct wz_request settings[] = {
        { .temperature = 1, .top_p = 1 },
        { .temperature = 2.5f, .top_p = 1 },
        { .temperature = 2, .top_p = 1, .top_k = 2 },
        { .temperature = 2, .top_p = 0.3f },
        { .temperature = 2, .top_p = 1, .min_p = 0.4f },
        { .temperature = 2, .top_p = 1, .min_p = 1 },
        { .temperature = 3, .top_p = 0.6f, .top_k = 9, .min_p = 0.1f },
        { .temperature = 0, .top_p = 1 },
    };
    struct wz_request r[WZ_COUNT(settings)];
    struct wz_engine *e = wz_engine_create(model, 3, 4, 0, 0);
    struct wz_cache *cache = wz_cache_create(model, 40, 4);
    struct wz_work *work = wz_work_create(model, 64, false);
    static double p[64][VOCAB];

    for (size_t i = 0; i < WZ_COUNT(settings); i++) {
        r[i] = settings[i];
        r[i].prompt_ids = contexts[2];
        r[i].n_prompt = n_context[2];
        r[i].max_tokens = MOST;
        r[i].key = (struct wz_key){ 8, WZ_RNG_TOKEN, 2, (uint32_t)i, 4, 99 };
    }
    wz_engine_run(e, r, (int)WZ_COUNT(settings));
    for (size_t i = 0; i < WZ_COUNT(settings); i++) {
        int ids[64], targets[64], n = r[i].n_prompt + r[i].n;
        float logp[64], t = r[i].temperature > 0 ? r[i].temperature : 1;
        struct wz_seq seq = { 0 };
        assert_int_equal(r[i].n, MOST);
        memcpy(ids, r[i].prompt_ids, sizeof *ids * (size_t)r[i].n_prompt);
        memcpy(ids + r[i].n_prompt, r[i].ids, sizeof *ids * (size_t)r[i].n);
        run(model, cache, work, &seq, 1, ids, &n);
        for (int v = 0; v < VOCAB; v++) {
            for (int k = 0; k < n; k++) targets[k] = v;
            wz_logprobs(model, work, targets, t, logp, NULL);
            for (int k = 0; k < n; k++) p[k][v] = exp((double)logp[k]);
        }
        for (int k = 0; k < r[i].n; k++) {
            struct wz_key key = r[i].key;
            key.d = (uint32_t)k;
            int want = chosen(p[r[i].n_prompt + k - 1], &r[i], wz_uniform(key));
            if (r[i].ids[k] != want) fail_msg("request %zu: token %d is %d, expected %d", i, k, r[i].ids[k], want);
        }
        wz_seq_finish(cache, &seq);
    }
    finish(r, (int)WZ_COUNT(settings));
    wz_work_destroy(work);
    wz_cache_destroy(cache);
    wz_engine_destroy(e);
}

/* Why a request ends: a stop id counts even where it is the last token allowed, max_tokens where it is also the end of
 * the context. */
static void the_first_reason_counts(void **state)
{
    struct wz_engine *e = wz_engine_create(model, 2, 4, 0, 0);
    struct wz_request r = request(0);
    int stop;

    r.n_stops = 0;
    wz_engine_run(e, &r, 1);
    assert_int_equal(r.n, MOST);
    assert_int_equal(r.finish_reason, WZ_FINISH_LENGTH);
    stop = r.ids[MOST - 1];
    int first = 0;
    while (r.ids[first] != stop) first++;
    wz_request_finish(&r);
    for (int most = first + 1; most <= first + 2; most++) {
        r = request(0);
        r.stop_ids = &stop;
        r.n_stops = 1;
        r.max_tokens = most;
        wz_engine_run(e, &r, 1);
        assert_int_equal(r.n, first + 1);
        assert_int_equal(r.finish_reason, WZ_FINISH_STOP);
        wz_request_finish(&r);
    }
    wz_engine_destroy(e);
    for (int room = MOST - 1; room <= MOST + 1; room++) { /* what the window leaves beside max_tokens */
        e = wz_engine_create(model, 2, 4, 0, n_context[0] + room);
        r = request(0);
        r.n_stops = 0;
        wz_engine_run(e, &r, 1);
        assert_int_equal(r.n, room < MOST ? room : MOST);
        assert_int_equal(r.finish_reason, room < MOST ? WZ_FINISH_CONTEXT : WZ_FINISH_LENGTH);
        wz_request_finish(&r);
        wz_engine_destroy(e);
    }
}

static void turns_end_where_they_should(void **state)
{
    struct wz_request all[N];
    int stopped = 0;

    baseline(all);
    for (int i = 0; i < N; i++) {
        const struct wz_request *r = &all[i];
        int left = 64 - r->n_prompt < MOST ? 64 - r->n_prompt : MOST;
        assert_in_range(r->n, 1, left);
        for (int k = 0; k + 1 < r->n; k++) assert_true(r->ids[k] != 7 && r->ids[k] != 11);
        bool stop = r->ids[r->n - 1] == 7 || r->ids[r->n - 1] == 11;
        assert_int_equal(r->finish_reason, stop ? WZ_FINISH_STOP : left < MOST ? WZ_FINISH_CONTEXT : WZ_FINISH_LENGTH);
        if (!stop) assert_int_equal(r->n, left);
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

    r[0].n_prompt = 0;
    r[1].prompt_ids = ids, r[1].n_prompt = 64;
    r[2].prompt_ids = ids, r[2].n_prompt = 30; /* 30 + 24 tokens need 14 pages, there are 8 */
    r[3].max_tokens = 2;
    wz_engine_run(e, r, 4);
    assert_string_equal(r[0].problem, "the prompt is empty");
    assert_string_equal(r[1].problem, "the prompt fills the context");
    assert_string_equal(r[2].problem, "the prompt needs more cache pages than there are");
    for (int i = 0; i < 3; i++) assert_int_equal(r[i].finish_reason, WZ_FINISH_FAILED);
    assert_null(r[3].problem);
    assert_in_range(r[3].n, 1, 2);
    finish(r, 4);
    wz_engine_destroy(e);
}

/* Weights that are finite and overflow in the forward: the request ends with a reason and gives its pages back. */
static void an_overflow_ends_the_request(void **state)
{
    struct wz_engine *e = wz_engine_create(model, 2, 4, 0, 0);
    float *norm = model->layers[0].norm1, keep[32];
    struct wz_request r[N];

    memcpy(keep, norm, sizeof keep);
    for (int i = 0; i < 32; i++) norm[i] = 3e38f;
    wz_model_commit(model, model->version + 1);
    for (int i = 0; i < N; i++) r[i] = request(i);
    wz_engine_run(e, r, N);
    for (int i = 0; i < N; i++) {
        assert_int_equal(r[i].finish_reason, WZ_FINISH_NOT_FINITE);
        assert_int_equal(r[i].n, 0);
        assert_non_null(strstr(r[i].problem, "not finite"));
    }
    finish(r, N);
    memcpy(norm, keep, sizeof keep);
    wz_model_commit(model, model->version + 1);
    for (int i = 0; i < N; i++) r[i] = request(i);
    wz_engine_run(e, r, N);
    for (int i = 0; i < N; i++) assert_true(r[i].n > 0 && !r[i].problem);
    finish(r, N);
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
    first.n_stops = second.n_stops = 0;
    wz_engine_run(e, &first, 1);
    struct wz_engine_stats before = wz_engine_stats(e), after;
    assert_int_equal(before.prefilled, first.n_prompt - 1);
    memcpy(ids, first.prompt_ids, sizeof *ids * (size_t)first.n_prompt);
    memcpy(ids + first.n_prompt, first.ids, sizeof *ids * (size_t)first.n);
    for (int i = 0; i < MORE; i++) ids[first.n_prompt + first.n + i] = 3 + i;
    second.prompt_ids = ids;
    second.n_prompt = first.n_prompt + first.n + MORE;
    wz_engine_run(e, &second, 1);
    after = wz_engine_stats(e);
    assert_int_equal(after.reused - before.reused, first.n_prompt + first.n - 1);
    assert_int_equal(after.prefilled - before.prefilled, MORE); /* the last of them is of the first decoding step */
    finish(&first, 1), finish(&second, 1);
    wz_engine_destroy(e);
}

/* Guarantee 6: after a change of weights nothing cached is used again. */
static void new_weights_forget_the_cache(void **state)
{
    struct wz_request a[1] = { request(6) }, b[1] = { request(6) }, c[1] = { request(6) };
    struct wz_engine *e = wz_engine_create(model, 2, 4, 0, 0), *fresh;
    float *w = model->params, kept = w[100];

    wz_engine_run(e, a, 1);
    for (size_t i = 0; i < 2000; i++) w[i] = -w[i];
    wz_model_commit(model, 2);
    wz_engine_run(e, b, 1);
    fresh = wz_engine_create(model, 2, 4, 0, 0);
    wz_engine_run(fresh, c, 1);
    same(b, c);
    assert_memory_not_equal(a[0].logp, b[0].logp, sizeof(float));
    for (size_t i = 0; i < 2000; i++) w[i] = -w[i];
    assert_true(w[100] == kept);
    wz_model_commit(model, 1);
    finish(a, 1), finish(b, 1), finish(c, 1);
    wz_engine_destroy(e), wz_engine_destroy(fresh);
}

static void count(void *arg) { ++*(int *)arg; }

/* Guarantee 5: ranks that wait are told in every round that this one is at work. */
static void every_round_is_a_sign_of_life(void **state)
{
    struct wz_engine *e = wz_engine_create(model, 1, 3, 0, 0);
    struct wz_request one = request(0);
    int signs = 0;

    wz_set_heartbeat(count, &signs);
    wz_engine_run(e, &one, 1);
    wz_set_heartbeat(NULL, NULL);
    assert_true(one.n > 0 && signs >= one.n);
    wz_request_finish(&one);
    wz_engine_destroy(e);
}

static void submitting_while_others_run_changes_nothing(void **state)
{
    struct wz_request all[N], r[N];
    struct wz_engine *e = wz_engine_create(model, 3, 4, 0, 0);
    int submitted = 0, left;

    baseline(all);
    for (int i = 0; i < N; i++) r[i] = request(i);
    assert_int_equal(wz_engine_step(e), 0);
    do {
        if (submitted < N) wz_engine_submit(e, &r[submitted++]);
        left = wz_engine_step(e);
        int unfinished = 0;
        for (int i = 0; i < submitted; i++) unfinished += r[i].finish_reason == WZ_UNFINISHED;
        assert_int_equal(left, unfinished);
    } while (left || submitted < N);
    for (int i = 0; i < N; i++) same(&all[i], &r[i]);
    finish(r, N);
    finish(all, N);
    wz_engine_destroy(e);
}

/* Each of the requests in turn is cancelled when it has some tokens, or still waits. */
static void cancelling_disturbs_nobody(void **state)
{
    struct wz_request all[N], r[N];
    struct wz_engine *e = wz_engine_create(model, 4, 4, 0, 0);
    int midway = 0, waiting = 0;

    baseline(all);
    for (int victim = 0; victim < N; victim++) {
        for (int i = 0; i < N; i++) {
            r[i] = request(i);
            wz_engine_submit(e, &r[i]);
        }
        for (int step = 0; step < 3; step++) wz_engine_step(e);
        bool over = r[victim].finish_reason != WZ_UNFINISHED;
        int n = r[victim].n;
        wz_engine_cancel(e, &r[victim]);
        wz_engine_cancel(e, &r[victim]); /* and once more: no effect */
        while (wz_engine_step(e)) {
        }
        assert_int_equal(r[victim].n, n);
        assert_memory_equal(r[victim].ids, all[victim].ids, sizeof *r->ids * (size_t)n);
        assert_int_equal(r[victim].finish_reason, over ? all[victim].finish_reason : WZ_FINISH_CANCELLED);
        midway += !over && n;
        waiting += !n;
        for (int i = 0; i < N; i++)
            if (i != victim) same(&all[i], &r[i]);
        finish(r, N);
    }
    assert_true(midway > 0 && waiting > 0);
    finish(all, N);
    wz_engine_destroy(e);
}

static void note_end(struct wz_request *r)
{
    static int ended;

    *(int *)r->arg = ended++;
}

/* What may take longest is begun first, so that little is left to wait for in the end; else the order is kept. */
static void the_longest_is_begun_first(void **state)
{
    static const int most[] = { 20, 2, 9, 3, 1 }, place[] = { 0, 4, 1, 3, 2 }; /* lengths 23, 9, 20, 18, 20 */
    struct wz_request r[WZ_COUNT(most)];
    struct wz_engine *e = wz_engine_create(model, 1, 4, 0, 0);
    int ended[WZ_COUNT(most)];

    for (int i = 0; i < (int)WZ_COUNT(most); i++) {
        r[i] = request(i);
        r[i].n_stops = 0;
        r[i].max_tokens = most[i];
        r[i].on_finish = note_end;
        r[i].arg = &ended[i];
    }
    wz_engine_run(e, r, WZ_COUNT(most));
    assert_memory_equal(ended, place, sizeof ended);
    finish(r, WZ_COUNT(most));
    wz_engine_destroy(e);
}

/* One request takes all pages, so another can't begin before it is gone. */
static void cancelling_gives_pages_back(void **state)
{
    struct wz_request first = request(2), second = request(3);
    struct wz_engine *e = wz_engine_create(model, 2, 4, 10, 0); /* 15 + 24 tokens are 10 pages */

    first.n_stops = second.n_stops = 0;
    wz_engine_submit(e, &first);
    wz_engine_submit(e, &second);
    second.max_tokens = 9;
    for (int step = 0; step < 4; step++) assert_int_equal(wz_engine_step(e), 2);
    assert_true(first.n > 0 && second.n == 0);
    wz_engine_cancel(e, &first);
    assert_int_equal(wz_engine_step(e), 1);
    assert_int_equal(second.n, 1);
    while (wz_engine_step(e)) {
    }
    assert_int_equal(second.finish_reason, WZ_FINISH_LENGTH);
    finish(&first, 1);
    finish(&second, 1);
    wz_engine_destroy(e);
}

/* The same request without stop ids, and with one that the other samples midway. */
static void stop_ids_are_each_requests_own(void **state)
{
    struct wz_request r[2] = { request(1), request(1) };
    struct wz_engine *e = wz_engine_create(model, 2, 4, 0, 0);
    int stop, first = 0;

    r[0].n_stops = r[1].n_stops = 0;
    wz_engine_run(e, r, 1);
    assert_int_equal(r[0].finish_reason, WZ_FINISH_LENGTH);
    assert_int_equal(r[0].n, MOST);
    stop = r[0].ids[MOST / 2];
    while (r[0].ids[first] != stop) first++;
    r[1].stop_ids = &stop;
    r[1].n_stops = 1;
    wz_engine_run(e, r, 2); /* the first once more */
    assert_int_equal(r[0].n, MOST);
    assert_int_equal(r[1].finish_reason, WZ_FINISH_STOP);
    assert_int_equal(r[1].n, first + 1);
    assert_memory_equal(r[0].ids, r[1].ids, sizeof stop * (size_t)r[1].n);
    finish(r, 2);
    wz_engine_destroy(e);
}

struct heard {
    int ids[MOST], n, ends;
    struct wz_engine *engine;
    struct wz_request *cancel, *submit;
};

static void hear_token(struct wz_request *r)
{
    struct heard *h = r->arg;

    assert_int_equal(h->ends, 0);
    h->ids[h->n++] = r->ids[r->n - 1];
    assert_int_equal(h->n, r->n);
    if (h->cancel && r->n == 2) wz_engine_cancel(h->engine, h->cancel);
}

static void hear_end(struct wz_request *r)
{
    struct heard *h = r->arg;

    h->ends++;
    assert_int_not_equal(r->finish_reason, WZ_UNFINISHED);
    if (h->submit) wz_engine_submit(h->engine, h->submit);
}

static void callbacks_see_every_token(void **state)
{
    struct wz_request all[N], r[N];
    struct heard heard[N] = { 0 };
    struct wz_engine *e = wz_engine_create(model, 3, 4, 0, 0);

    baseline(all);
    for (int i = 0; i < N; i++) {
        r[i] = request(i);
        r[i].on_token = hear_token;
        r[i].on_finish = hear_end;
        r[i].arg = &heard[i];
    }
    r[1].n_prompt = 0; /* failing is an end too */
    wz_engine_run(e, r, N);
    for (int i = 0; i < N; i++) {
        assert_int_equal(heard[i].ends, 1);
        assert_int_equal(heard[i].n, i == 1 ? 0 : all[i].n);
        assert_memory_equal(heard[i].ids, all[i].ids, sizeof(int) * (size_t)heard[i].n);
    }
    finish(r, N);
    finish(all, N);
    wz_engine_destroy(e);
}

/* From within a step: one request ends itself, one the next of the batch, and one that ends submits another. */
static void callbacks_may_cancel_and_submit(void **state)
{
    enum { ITSELF, OTHER, CANCELLED, LATER, M };
    struct wz_request all[N], r[M];
    struct wz_engine *e = wz_engine_create(model, 3, 4, 0, 0);
    struct heard heard[M] = { [ITSELF] = { .engine = e, .cancel = &r[ITSELF] },
                              [OTHER] = { .engine = e, .cancel = &r[CANCELLED] },
                              [CANCELLED] = { .engine = e, .submit = &r[LATER] } };

    baseline(all);
    for (int i = 0; i < M; i++) {
        r[i] = request(i);
        r[i].on_token = hear_token;
        r[i].on_finish = hear_end;
        r[i].arg = &heard[i];
    }
    for (int i = 0; i < M - 1; i++) r[i].n_stops = 0;
    for (int i = 0; i < LATER; i++) wz_engine_submit(e, &r[i]);
    while (wz_engine_step(e)) {
    }
    assert_int_equal(r[ITSELF].finish_reason, WZ_FINISH_CANCELLED);
    assert_int_equal(r[ITSELF].n, 2);
    assert_int_equal(r[OTHER].finish_reason, WZ_FINISH_LENGTH);
    assert_int_equal(r[CANCELLED].finish_reason, WZ_FINISH_CANCELLED);
    assert_int_equal(r[CANCELLED].n, 1); /* it comes after OTHER in the batch of the second step */
    same(&all[LATER], &r[LATER]);
    for (int i = 0; i < M; i++) assert_int_equal(heard[i].ends, 1);
    finish(r, M);
    finish(all, N);
    wz_engine_destroy(e);
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
        cmocka_unit_test(size_order_and_pages_do_not_show),
        cmocka_unit_test(logps_are_those_of_scoring),
        cmocka_unit_test(tokens_are_those_of_settings_and_draws),
        cmocka_unit_test(the_first_reason_counts),
        cmocka_unit_test(turns_end_where_they_should),
        cmocka_unit_test(what_cannot_be_generated_says_why),
        cmocka_unit_test(an_overflow_ends_the_request),
        cmocka_unit_test(new_weights_forget_the_cache),
        cmocka_unit_test(every_round_is_a_sign_of_life),
        cmocka_unit_test(submitting_while_others_run_changes_nothing),
        cmocka_unit_test(cancelling_disturbs_nobody),
        cmocka_unit_test(the_longest_is_begun_first),
        cmocka_unit_test(cancelling_gives_pages_back),
        cmocka_unit_test(stop_ids_are_each_requests_own),
        cmocka_unit_test(callbacks_see_every_token),
        cmocka_unit_test(callbacks_may_cancel_and_submit),
        cmocka_unit_test(a_revision_reads_only_what_is_new),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
