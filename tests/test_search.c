/* An attack that is searched for by log-probabilities (GCG, AutoDAN): the slopes are the gradient, held against finite
 * differences; a step finds the best of what it may propose; what its text would not give again is never taken; the
 * score is the target's log-probability, bit for bit, whatever was scored beside it; and all is decided by the seed.
 * The model is real; here an id is a letter, and a template three marks. What can't be begun with says why. */
#include "model_help.h"
#include "rollout/rollout.h"

enum { V = 62, SPECIAL = 60, SYSTEM = 40, USER = 41, REPLY = 42 }; /* ids from SPECIAL on are no text */
static const struct wz_config configs[] = {
    { .layers = 2,
      .dim = 24,
      .heads = 6,
      .kv_heads = 2,
      .head_dim = 10,
      .ffn = 36,
      .vocab = V,
      .context = 64,
      .norm_eps = 1e-5f,
      .rope_theta = 500,
      .bos = 1,
      .eos = { 2 },
      .n_eos = 1 },
    { .layers = 1,
      .dim = 20,
      .heads = 4,
      .kv_heads = 2,
      .head_dim = 8,
      .ffn = 24,
      .vocab = V,
      .context = 64,
      .norm_eps = 1e-5f,
      .rope_theta = 500,
      .bos = 1,
      .eos = { 2 },
      .n_eos = 1,
      .embed_scale = 3 },
};
static const char *const backends[] = { "ref", "cpu" };
static int merged[2] = { -1, -1 }; /* ids that are one other id where they meet in a text */
static const char *unspellable;    /* a text with it can't be encoded; NULL: all can */
static bool trims;                 /* the template takes a last letter away from texts */

enum { THINK = 50, ANSWER = 51 }; /* ids of the two marks */
int __wrap_wz_tokenizer_id(const struct wz_tokenizer *tok, const char *token);

int __wrap_wz_tokenizer_id(const struct wz_tokenizer *tok, const char *token)
{
    return !strcmp(token, "<think>") ? THINK : !strcmp(token, "</think>") ? ANSWER : -1;
}

void __wrap_wz_decode(const struct wz_tokenizer *tok, const int *ids, int n, bool specials, struct wz_buf *out);
int __wrap_wz_encode_part(const struct wz_tokenizer *tok, const char *text, size_t n, bool first, struct wz_ids *out,
                          struct wz_err *err);
int __wrap_wz_template_apply(const struct wz_template *t, const struct wz_tokenizer *tok, const struct wz_message *m,
                             int n, bool generate, struct wz_ids *out, struct wz_err *err);

static char letter(int id) { return (char)(' ' + id); }

void __wrap_wz_decode(const struct wz_tokenizer *tok, const int *ids, int n, bool specials, struct wz_buf *out)
{
    for (int i = 0; i < n; i++)
        if (ids[i] < SPECIAL || specials) wz_buf_printf(out, "%c", letter(ids[i]));
}

int __wrap_wz_encode_part(const struct wz_tokenizer *tok, const char *text, size_t n, bool first, struct wz_ids *out,
                          struct wz_err *err)
{
    for (size_t i = 0; i < n; i++) {
        const bool one = i + 1 < n && text[i] == letter(merged[0]) && text[i + 1] == letter(merged[1]);
        wz_ids_add(out, one ? 59 : text[i] >= ' ' && text[i] - ' ' < SPECIAL ? text[i] - ' ' : 58);
        i += one;
    }
    return unspellable && strstr(text, unspellable) ? wz_fail(err, "unspellable") : 0;
}

int __wrap_wz_template_apply(const struct wz_template *t, const struct wz_tokenizer *tok, const struct wz_message *m,
                             int n, bool generate, struct wz_ids *out, struct wz_err *err)
{
    for (int i = 0; i < n; i++) {
        wz_ids_add(out, m[i].role == WZ_SYSTEM ? SYSTEM : USER);
        if (m[i].text) __wrap_wz_encode_part(tok, m[i].text, strlen(m[i].text) - trims, false, out, err);
        wz_ids_append(out, m[i].ids, m[i].n_ids);
    }
    wz_ids_add(out, REPLY);
    return 0;
}

static struct wz_model *model_of_config(const struct wz_config *c, struct wz_backend *be)
{
    struct wz_model *m = wz_model_create(c, WZ_F32, NULL, be);

    wz_model_init(m, 7);
    for (size_t i = 0; i < m->n_params; i++) m->params[i] *= m->params[i] == 1 ? 1 : 10;
    wz_model_commit(m, 3);
    return m;
}

struct scorer {
    struct wz_backend *be;
    struct wz_model *m;
    struct wz_cache *cache;
    struct wz_work *work;
};

/* tape: slopes can be taken, too. */
static struct scorer begin(const struct wz_config *config, const char *backend, int threads, bool tape)
{
    struct scorer s = { .be = backend_of(backend, threads) };

    s.m = model_of_config(config, s.be);
    s.cache = wz_cache_create(s.m, 20, 4);
    s.work = wz_work_create(s.m, 64, tape);
    return s;
}

static void end(struct scorer *s)
{
    wz_work_destroy(s->work);
    wz_cache_destroy(s->cache);
    wz_model_destroy(s->m);
    wz_backend_close(s->be);
}

/* The log-probability of the target behind the context, of all ids at once. */
static double logp_of(const struct scorer *on, const int *context, int n, const int *target, int k, int *targets)
{
    struct wz_seq seq = { 0 };
    int ids[64], count = n + k - 1;
    float logp[64];
    double sum = 0;

    memcpy(ids, context, sizeof *ids * (size_t)n);
    memcpy(ids + n, target, sizeof *ids * (size_t)(k - 1));
    for (int i = 0; i < count; i++) targets[i] = i < n - 1 ? -1 : target[i - n + 1];
    run(on->m, on->cache, on->work, &seq, 1, ids, &count);
    wz_logprobs(on->m, on->work, targets, 1, logp, NULL);
    for (int i = n - 1; i < count; i++) sum += logp[i];
    wz_seq_finish(on->cache, &seq);
    return sum;
}

static const int target[] = { 33, 34, 35 };

static void count(void *signs) { ++*(int *)signs; }

/* The slope by input v of a token is how the score changes along E[v], there alone: the token's id is of no other. */
static void slopes_are_the_gradient(void **state)
{
    enum { N = 9, ROWS = 3 };
    static const int context[N] = { SYSTEM, 3, 4, USER, 10, 11, 12, 13, REPLY }, rows[ROWS] = { 1, 5, 7 };

    for (size_t c = 0; c < WZ_COUNT(configs); c++)
        for (size_t b = 0; b < WZ_COUNT(backends); b++) {
            struct scorer on[1] = { begin(&configs[c], backends[b], 1, true) };
            struct wz_model *m = on->m;
            struct wz_backend *more = backend_of(backends[b], 3);
            float slope[ROWS * V], again[ROWS * V], d_logp[64], *d = wz_backend_alloc(m->be, m->n_params * sizeof *d),
                                                                *e = m->params;
            const size_t dim = (size_t)m->config.dim;
            int targets[64];

            logp_of(on, context, N, target, 3, targets);
            for (int i = 0; i < N + 2; i++) d_logp[i] = targets[i] >= 0;
            wz_backward(m, on->cache, on->work, targets, d_logp, 1, d);
            int signs = 0;
            wz_set_heartbeat(count, &signs);
            wz_backward_onehot(m, on->work, rows, ROWS, slope);
            wz_set_heartbeat(NULL, NULL);
            assert_int_equal(signs, 1); /* of the few lines that there are */
            m->be = more;
            wz_backward_onehot(m, on->work, rows, ROWS, again);
            m->be = on->be;
            assert_memory_equal(again, slope, sizeof slope);
            for (int r = 0; r < ROWS; r++) {
                float *x = e + (size_t)context[rows[r]] * dim, kept[24];
                double off = 0, norm = 0;
                memcpy(kept, x, dim * sizeof *x);
                for (size_t v = 0; v < V; v++) {
                    double s[2];
                    if ((int)v == context[rows[r]]) continue;
                    for (int side = 0; side < 2; side++) {
                        for (size_t i = 0; i < dim; i++) x[i] = kept[i] + (side ? -0.01f : 0.01f) * e[v * dim + i];
                        wz_model_commit(m, 3);
                        s[side] = logp_of(on, context, N, target, 3, targets);
                    }
                    const double want = (s[0] - s[1]) / 0.02, got = slope[(size_t)r * V + v];
                    off += (got - want) * (got - want);
                    norm += want * want;
                }
                memcpy(x, kept, dim * sizeof *x);
                if (!(norm > 1e-4 && sqrt(off / norm) < 0.01))
                    fail_msg("config %zu, %s, row %d: off by a relative %g of %g", c, backends[b], r, sqrt(off / norm),
                             sqrt(norm));
            }
            wz_backend_free(m->be, d);
            end(on);
            wz_backend_close(more);
        }
}

enum { PROMPT = 2, LAST = 3, ALL = PROMPT + 1 + LAST }; /* "*+", a blank, and "ABC" */
static struct wz_search gcg_of(int steps, int candidates, int top_k)
{
    return (struct wz_search){ wz_proposer_find("gcg"), "ABC", "123", steps, candidates, top_k };
}

static struct wz_found find(struct wz_model *m, const struct wz_search *how, uint64_t seed, uint32_t index)
{
    const struct wz_player p = { .seat = wz_seat_find(WZ_CONVERSATION), .model = m, .system = "#$" };
    Wz__Episode *e = wz_episode_new();
    struct wz_found found = { 0 };
    struct wz_err err;

    wz_set_string(&e->prompt, "*+", 2);
    e->index = index;
    if (wz_search_run(how, &p, seed, e, &found, &err) < 0) fail_msg("%s", err.text);
    wz_episode_free(e);
    wz_ids_finish(&found.target);
    return found;
}

/* Score of a message in its context. */
static double score_of(const struct scorer *on, const int *message)
{
    int context[5 + ALL] = { SYSTEM, 3, 4, USER }, targets[64];

    memcpy(context + 4, message, sizeof *message * ALL);
    context[4 + ALL] = REPLY;
    return logp_of(on, context, 5 + ALL, target, 3, targets);
}

static const int begins[ALL] = { 10, 11, 0, 17, 18, 19 };

/* Of every message that differs from `begins` in one of the last ids, and can be told: the one with the best score. */
static double best_by_hand(const struct scorer *on, int *best)
{
    double top = -1e9;

    for (int i = PROMPT; i < ALL; i++)
        for (int v = 0; v < SPECIAL; v++) {
            int x[ALL];
            bool told = true;
            memcpy(x, begins, sizeof x);
            x[i] = v;
            for (int k = 0; k + 1 < ALL; k++) told &= x[k] != merged[0] || x[k + 1] != merged[1];
            const double s = told ? score_of(on, x) : -1e9;
            if (s > top) memcpy(best, x, sizeof x), top = s;
        }
    return top;
}

static void a_step_finds_the_best_that_can_be_told(void **state)
{
    for (size_t b = 0; b < WZ_COUNT(backends); b++) {
        struct scorer on[1] = { begin(&configs[0], backends[b], 2, false) };
        struct wz_model *m = on->m;
        const struct wz_search all = gcg_of(1, 4000, V), none = gcg_of(0, 1, 1);
        int best[ALL], other[ALL];

        merged[0] = merged[1] = -1;
        struct wz_found f = find(m, &none, 1, 0);
        assert_int_equal(f.ids.n, ALL);
        assert_memory_equal(f.ids.ids, begins, sizeof begins);
        assert_int_equal(f.scored, 1);
        assert_true(f.score == score_of(on, begins));
        wz_ids_finish(&f.ids);
        for (int told = 0; told < 2; told++) {
            const double top = best_by_hand(on, best);
            f = find(m, &all, 1, 0);
            assert_int_equal(f.ids.n, ALL);
            assert_memory_equal(f.ids.ids, best, sizeof best);
            assert_true(f.score == top && top > score_of(on, begins));
            wz_ids_finish(&f.ids);
            if (told) assert_true(memcmp(best, other, sizeof best) != 0 && f.scored < 4001);
            else assert_int_equal(f.scored, 4001);
            memcpy(other, best, sizeof best); /* now the best can't be told: its id and the one before are another */
            for (int i = PROMPT; i < ALL; i++)
                if (best[i] != begins[i]) merged[0] = best[i - 1], merged[1] = best[i];
        }
        merged[0] = merged[1] = -1;
        end(on);
    }
}

/* An id is changed to one of the top_k with the largest slopes, of those that are text. */
static void ids_are_drawn_from_the_steepest(void **state)
{
    struct scorer on[1] = { begin(&configs[0], "ref", 1, true) };
    struct wz_model *m = on->m;
    float slope[ALL * V], d_logp[64], *d = wz_backend_alloc(m->be, m->n_params * sizeof *d);
    int context[5 + ALL] = { SYSTEM, 3, 4, USER }, targets[64], rows[ALL];

    for (size_t i = 0, dim = (size_t)m->config.dim; i < dim; i++) { /* one or the other is the steepest of all */
        m->params[SPECIAL * dim + i] *= 20;
        m->params[(SPECIAL + 1) * dim + i] = -m->params[SPECIAL * dim + i];
    }
    wz_model_commit(m, 3);
    memcpy(context + 4, begins, sizeof begins);
    context[4 + ALL] = REPLY;
    for (int i = 0; i < ALL; i++) rows[i] = 4 + i;
    logp_of(on, context, 5 + ALL, target, 3, targets);
    for (int i = 0; i < 7 + ALL; i++) d_logp[i] = targets[i] >= 0;
    wz_backward(m, on->cache, on->work, targets, d_logp, 1, d);
    wz_backward_onehot(m, on->work, rows, ALL, slope);
    for (int top_k = 1, seen = 0; top_k < 4; top_k++, seen = 0)
        for (uint64_t seed = 0; seed < 12; seed++) {
            const struct wz_search how = gcg_of(1, 8, top_k);
            struct wz_found f = find(m, &how, seed, 0);
            assert_int_equal(f.scored, 9);
            for (int i = 0; i < ALL; i++) {
                int steeper = 0;
                if (f.ids.ids[i] == begins[i]) continue;
                for (int v = 0; v < SPECIAL; v++) steeper += slope[i * V + v] > slope[i * V + f.ids.ids[i]];
                assert_true(i >= PROMPT && f.ids.ids[i] < SPECIAL && steeper < top_k);
                seen |= 1 << steeper;
            }
            wz_ids_finish(&f.ids);
            if (seed == 11 && top_k < 3) assert_true(seen >> (top_k - 1) & 1);
        }
    wz_backend_free(m->be, d);
    end(on);
}

/* Steps go on from the best candidate, draws are of seed and episode, and the best of all steps is given. */
static void steps_climb_and_are_keyed(void **state)
{
    struct scorer on[1] = { begin(&configs[0], "cpu", 2, false) };
    struct wz_model *m = on->m;
    double last = -1e9, alone = -1e9;
    int differ = 0;

    for (int steps = 0; steps < 9; steps++) {
        const struct wz_search how = gcg_of(steps, 40, 30);
        struct wz_found f = find(m, &how, 4, 2), again = find(m, &how, 4, 2), seed = find(m, &how, 5, 2),
                        other = find(m, &how, 4, 3);
        assert_true(f.score >= last && f.score == score_of(on, f.ids.ids));
        assert_memory_equal(f.ids.ids, begins, sizeof *begins * PROMPT);
        assert_memory_equal(f.ids.ids, again.ids.ids, sizeof begins);
        differ += memcmp(f.ids.ids, seed.ids.ids, sizeof begins) && memcmp(f.ids.ids, other.ids.ids, sizeof begins);
        if (steps == 0 || steps == 8) print_message("# %d steps: %g\n", steps, f.score);
        if (steps == 8) assert_true(f.score > score_of(on, begins) + 1);
        last = f.score;
        const struct wz_search single = gcg_of(steps, 1, 30); /* a step up or down */
        struct wz_found one = find(m, &single, 4, 2);
        assert_true(one.score >= alone && one.score == score_of(on, one.ids.ids));
        alone = one.score;
        wz_ids_finish(&one.ids);
        wz_ids_finish(&f.ids), wz_ids_finish(&again.ids), wz_ids_finish(&seed.ids), wz_ids_finish(&other.ids);
    }
    assert_true(differ > 4);
    assert_null(wz_proposer_find("none"));
    end(on);
}

/* A prompt with a prefill has that for its target, behind the mark of a thought where the agent thinks, and closed
 * where it is the whole of one; what can't be sought, and what it can't be sought behind, are errors that say why. */
static void prompts_have_their_own_targets(void **state)
{
    struct scorer on[1] = { begin(&configs[0], "ref", 1, false) };
    struct wz_model *m = on->m;
    struct wz_player p = { .seat = wz_seat_find(WZ_CONVERSATION), .model = m, .system = "#$" };
    struct wz_search none = gcg_of(0, 1, 1);
    static const int thoughts[3][6] = { { 36, 37 }, { THINK, 58, 36, 37 }, { THINK, 58, 36, 37, ANSWER } };
    int context[5 + ALL] = { SYSTEM, 3, 4, USER }, targets[64];
    Wz__Episode *e = wz_episode_new();
    struct wz_found found = { 0 };
    struct wz_err err;

    memcpy(context + 4, begins, sizeof begins);
    context[4 + ALL] = REPLY;
    wz_set_string(&e->prompt, "*+", 2);
    wz_set_string(&e->prefill, "DE", 2);
    for (int k = 0; k < 3; k++) {
        const int n = ((int[]){ 2, 4, 5 })[k];
        p.think = k > 0;
        e->hijack = k > 1;
        assert_int_equal(wz_search_run(&none, &p, 1, e, &found, &err), 0);
        assert_true(found.score == logp_of(on, context, 5 + ALL, thoughts[k], n, targets));
        assert_int_equal(found.target.n, n);
        assert_memory_equal(found.target.ids, thoughts[k], sizeof(int) * (size_t)n);
    }
    p.think = false;
    trims = true;
    assert_int_equal(wz_search_run(&none, &p, 1, e, &found, &err), -1);
    assert_non_null(strstr(err.text, "behind it: the chat template, or reading it again, changes the text"));
    trims = false;
    wz_set_string(&e->prompt, "******************************************************", 54);
    assert_int_equal(wz_search_run(&none, &p, 1, e, &found, &err), -1);
    assert_non_null(strstr(err.text, "context has 63 tokens and the target 2: more than the context window of 64"));
    wz_set_string(&e->prompt, "*+", 2);
    wz_set_string(&e->prefill, "", 0);
    none.target = "";
    assert_int_equal(wz_search_run(&none, &p, 1, e, &found, &err), -1);
    assert_non_null(strstr(err.text, "evaluate.search.target: '' has no token"));
    none = gcg_of(0, 1, 1);
    none.text = "";
    unspellable = "*+ ";
    assert_int_equal(wz_search_run(&none, &p, 1, e, &found, &err), -1);
    assert_non_null(strstr(err.text, "behind it: unspellable"));
    unspellable = NULL;
    wz_ids_finish(&found.target);
    wz_ids_finish(&found.ids);
    wz_episode_free(e);
    end(on);
}

/* AutoDAN: texts are made of the first texts' sentences, with the prompt in them once. */
enum { SENTENCES = 6 };
static const char lines[] = "G, J, {prompt}\nH, K, {prompt}\nI, L, {prompt}";
static const char letters[] = "GHIJKL";

static double score_text(const struct scorer *on, char x, char y)
{
    int context[5 + 8] = { SYSTEM, 3, 4, USER, x - ' ', ',' - ' ', 0, y - ' ', ',' - ' ', 0, 10, 11, REPLY },
                    targets[64];

    return logp_of(on, context, 13, target, 3, targets);
}

static void sentences_are_bred(void **state)
{
    struct scorer on[1] = { begin(&configs[0], "cpu", 2, false) };
    struct wz_model *m = on->m;
    const struct wz_proposer *by = wz_proposer_find("autodan");
    double first = -1e9, crossed = -1e9, all = -1e9;
    int reached = 0, differ = 0;

    for (int x = 0; x < SENTENCES; x++)
        for (int y = 0; y < SENTENCES; y++) {
            const double s = score_text(on, letters[x], letters[y]);
            if (y == x + 3) first = fmax(first, s);
            if (x < 3 && y >= 3) crossed = fmax(crossed, s);
            all = fmax(all, s);
        }
    print_message("# %g of the first, %g of those crossed, %g of all\n", first, crossed, all);
    assert_true(first < crossed && crossed < all);
    for (uint64_t seed = 0; seed < 8; seed++) {
        double last = -1e9;
        for (int steps = 0; steps < 6; steps++) {
            const struct wz_search how = { by, "ABC", lines, steps, 60, 1 }, one = { by, "ABC", lines, steps, 1, 1 };
            struct wz_found f = find(m, &how, seed, 0), again = find(m, &how, seed, 0), other = find(m, &how, seed, 1),
                            same = find(m, &one, seed, 0);
            int prompts = 0;
            assert_int_equal(f.ids.n, again.ids.n);
            assert_memory_equal(f.ids.ids, again.ids.ids, sizeof(int) * (size_t)f.ids.n);
            differ += f.score != other.score;
            for (int i = 0; i + 1 < f.ids.n; i++) {
                prompts += f.ids.ids[i] == 10 && f.ids.ids[i + 1] == 11;
                assert_true(f.ids.ids[i] < 33 || strchr(letters, letter(f.ids.ids[i])));
            }
            assert_int_equal(prompts, 1);
            assert_true(f.score >= last && (steps ? f.score >= crossed : f.score == first));
            assert_true(same.score == first && same.scored == 3 + steps); /* the best stays */
            reached += f.score >= all;
            last = f.score;
            wz_ids_finish(&f.ids), wz_ids_finish(&again.ids), wz_ids_finish(&other.ids), wz_ids_finish(&same.ids);
        }
    }
    assert_true(reached > 0 && differ > 0);
    const struct wz_search how = { by, "ABC", lines, 5, 60, 1 };
    struct wz_found f = find(m, &how, 0, 0), other;
    const char best[] = { letter(f.ids.ids[0]), ',', ' ', letter(f.ids.ids[3]), 0 };
    unspellable = best; /* ids that were left of it are no candidate */
    other = find(m, &how, 0, 0);
    assert_true(other.ids.ids[0] != f.ids.ids[0] || other.ids.ids[3] != f.ids.ids[3]);
    unspellable = NULL;
    wz_ids_finish(&f.ids), wz_ids_finish(&other.ids);
    end(on);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slopes_are_the_gradient),         cmocka_unit_test(a_step_finds_the_best_that_can_be_told),
        cmocka_unit_test(ids_are_drawn_from_the_steepest), cmocka_unit_test(steps_climb_and_are_keyed),
        cmocka_unit_test(prompts_have_their_own_targets),  cmocka_unit_test(sentences_are_bred),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
