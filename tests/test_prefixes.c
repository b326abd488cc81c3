/* What neighbouring samples begin with goes forward and back once when learning (trainer/batches.c), and only the order
 * of the gradient's sum shows it: log-probabilities have the same bits (guarantee 1), the gradient is that of the
 * samples one by one, within rounding, and the slope that finite differences find, and its bits depend neither on
 * micro-batches, nor on threads, nor on activation checkpointing (guarantee 2). Keys and values of other weights are
 * refused (guarantee 6). */
#include "model/inner.h"
#include "tests/learner_help.h"

#include <sys/wait.h>
#include <unistd.h>

/* Seven samples begin with the same SYSTEM tokens; the first three and the last three answer the same question.
 * The first three's contexts end with a page, whose last row predicts their replies: it is not shared. */
enum { SAMPLES = 7, SYSTEM = 35, LONGEST = 96, VOCAB = 61, MOST = 12 };
static const int questions[SAMPLES] = { 0, 0, 0, 1, 2, 2, 2 }, asked[] = { 45, 7, 31 };

static const struct wz_config configs[] = {
    { .layers = 2,
      .dim = 24,
      .heads = 6,
      .kv_heads = 2,
      .head_dim = 10,
      .ffn = 36,
      .vocab = VOCAB,
      .context = LONGEST,
      .norm_eps = 1e-5f,
      .rope_theta = 500,
      .rope = WZ_ROPE_PLAIN,
      .tied = true,
      .bos = 1,
      .eos = { 2 },
      .n_eos = 1,
      .arch = WZ_GEMMA3,
      .embed_scale = 2,
      .score_cap = 3,
      .window = 40,
      .local = { true } },
    { .layers = 2,
      .dim = 32,
      .heads = 2,
      .kv_heads = 1,
      .head_dim = 64,
      .ffn = 40,
      .vocab = VOCAB,
      .context = LONGEST,
      .norm_eps = 1e-5f,
      .rope_theta = 500,
      .rope = WZ_ROPE_PLAIN,
      .bos = 1,
      .eos = { 2 },
      .n_eos = 1 },
};

/* The last one is there where WALTZ_SHIM names the cuda row with its kernels on the host. */
static const struct {
    const char *name;
    int threads;
} rows[] = { { "ref", 1 }, { "cpu", 1 }, { "cpu", 3 }, { "cuda", 1 } };

static size_t rows_here(void) { return WZ_COUNT(rows) - !getenv("WALTZ_SHIM"); }

static struct wz_model *model_make(size_t c, enum wz_type type, size_t row)
{
    if (getenv("WALTZ_SHIM")) setenv("WZ_CUDA_PLUGIN", getenv("WALTZ_SHIM"), 1);
    struct wz_backend *be = backend_of(rows[row].name, rows[row].threads);
    struct wz_model *m = wz_model_create(&configs[c], type, NULL, be);

    wz_model_init(m, 7);
    for (int k = 0; k < m->n_list; k++) { /* heads attend to something */
        size_t n = wz_param_count(&m->list[k]);
        float *p = wz_alloc(n * sizeof *p);
        wz_param_get(m, k, 0, n, p);
        for (size_t i = 0; i < n; i++) p[i] = p[i] == 1 ? 0.7f + 0.1f * (float)(i % 7) : 10 * p[i];
        wz_param_put(m, k, 0, n, p);
        free(p);
    }
    wz_model_commit(m, 3);
    return m;
}

/* A sample as a turn and as an example: the same tokens, loss on the same ones. */
struct samples {
    Wz__Episode *episodes[SAMPLES];
    struct wz_sft_example examples[SAMPLES];
    struct wz_sample turns[SAMPLES], of_examples[SAMPLES];
};

static void samples_make(struct samples *s)
{
    *s = (struct samples){ 0 };
    for (int i = 0; i < SAMPLES; i++) {
        const int question = asked[questions[i]], context = SYSTEM + question, reply = 3 + i % 4, n = context + reply;
        int *ids = wz_alloc(sizeof *ids * (size_t)n);
        bool *loss = wz_alloc((size_t)n);
        Wz__Turn *t = wz_episode_turn(s->episodes[i] = wz_episode_new());
        ids_of(ids, SYSTEM, VOCAB, 1);
        ids_of(ids + SYSTEM, question, VOCAB, 20 + (uint64_t)questions[i]);
        ids_of(ids + context, reply, VOCAB, 40 + (uint64_t)i);
        t->context = wz_alloc(sizeof *ids * (size_t)context);
        t->n_context = (size_t)context;
        memcpy(t->context, ids, sizeof *ids * (size_t)context);
        wz_turn_reserve(t, (size_t)reply);
        for (int k = 0; k < reply; k++) {
            wz_turn_add(t, ids[context + k], 0);
            loss[context + k] = true;
        }
        s->examples[i] = (struct wz_sft_example){ ids, loss, n };
        s->turns[i] = (struct wz_sample){ .turn = t, .at = i, .first = context, .tokens = reply };
        s->of_examples[i] = s->turns[i];
        s->of_examples[i].turn = NULL;
        s->of_examples[i].example = &s->examples[i];
    }
}

static void samples_end(struct samples *s)
{
    for (int i = 0; i < SAMPLES; i++) {
        wz_episode_free(s->episodes[i]);
        free(s->examples[i].ids);
        free(s->examples[i].loss);
    }
}

/* Log-probabilities of the trained tokens, how many tokens went forward as samples', and the deepest prefix. */
struct seen {
    float logp[SAMPLES][MOST];
    int rows, deepest;
};

static float slope(int sample, int k) { return (float)((sample * 5 + k * 3) % 11 - 4) / 8; }

/* d_params (NULL: the pack has no tape) += the gradient of the sum of slopes times log-probabilities, which it returns.
 */
static double learn(struct wz_pack *p, const struct wz_sample *samples, float *d_params, struct seen *seen)
{
    struct wz_batches b = wz_batches_of(p, samples, 0, SAMPLES, d_params);
    double sum = 0;

    *seen = (struct seen){ 0 };
    while (wz_batches_next(&b)) {
        wz_pack_forward(p, 0.7f);
        for (int i = b.from; i < b.to; i++) {
            const int first = p->first[i - b.from];
            for (int r = first, k = 0; r < first + p->count[i - b.from]; r++) {
                if (p->targets[r] < 0) continue;
                p->d_logp[r] = slope(i, k);
                seen->logp[i][k] = p->logp[r];
                sum += (double)p->d_logp[r] * (double)p->logp[r];
                k++;
            }
        }
        seen->rows += p->n_rows;
        if (p->n_prefixes > seen->deepest) seen->deepest = p->n_prefixes;
        if (d_params) wz_pack_backward(p, 0.7f, d_params);
    }
    if (d_params) wz_pack_backward_end(p, d_params);
    return sum;
}

/* A heap array: the gradient through a pack of so many rows. */
static float *gradient(struct wz_model *m, const struct wz_sample *samples, int size, bool share, struct seen *seen)
{
    const size_t bytes = m->n_params * sizeof(float);
    float *g = wz_alloc(bytes), *d_params = wz_backend_alloc(m->be, bytes);
    struct wz_pack p;

    wz_pack_init(&p, m, size, true);
    if (share) wz_pack_share(&p, LONGEST);
    learn(&p, samples, d_params, seen);
    wz_download(m->be, g, d_params, bytes);
    wz_backend_free(m->be, d_params);
    wz_pack_finish(&p);
    return g;
}

static void near(const struct wz_model *m, const float *want, const float *got, double within)
{
    for (int t = 0; t < m->n_list; t++) {
        const size_t at = m->list[t].at, end = at + wz_param_count(&m->list[t]);
        double top = 0;
        for (size_t i = at; i < end; i++) top = fmax(top, fabs((double)want[i]));
        assert_true(top > 0);
        for (size_t i = at; i < end; i++)
            if (!(fabs((double)want[i] - (double)got[i]) <= within * top))
                fail_msg("%s: %s[%zu] is %.9g, one by one %.9g, of at most %.3g", m->be->name, m->list[t].name, i - at,
                         (double)got[i], (double)want[i], top);
    }
}

/* Two levels of prefixes, and as many tokens less. cuda fills a sequence up to a multiple of its grain. */
static void shared_is_as_one_by_one(enum wz_type type)
{
    const int tokens = 7 * (SYSTEM - 1) + 3 * 45 + 7 + 3 * 31 + (3 + 4 + 5 + 6 + 3 + 4 + 5), saved = 7 * 32 + 6 * 32;
    struct samples s;

    samples_make(&s);
    for (size_t c = 0; c < WZ_COUNT(configs); c++)
        for (size_t r = 0; r < rows_here(); r++) {
            struct wz_model *m = model_make(c, type, r);
            struct seen alone, shared, examples;
            float *want = gradient(m, s.turns, LONGEST, false, &alone);
            float *got = gradient(m, s.turns, 200, true, &shared);
            assert_int_equal(alone.deepest, 0);
            assert_int_equal(shared.deepest, 2);
            if (wz_grain(m->be, m->type) == 1) {
                assert_int_equal(alone.rows, tokens);
                assert_int_equal(shared.rows, tokens - saved);
            }
            assert_memory_equal(alone.logp, shared.logp, sizeof alone.logp);
            near(m, want, got, type == WZ_BF16 ? 3e-2 : 3e-5);
            float *of_examples = gradient(m, s.of_examples, 200, true, &examples);
            assert_memory_equal(got, of_examples, m->n_params * sizeof *got);
            assert_memory_equal(&shared, &examples, sizeof shared);
            free(want), free(got), free(of_examples);
            model_end(m);
        }
    samples_end(&s);
}

static void shared_f32(void **state) { shared_is_as_one_by_one(WZ_F32); }

static void shared_bf16(void **state) { shared_is_as_one_by_one(WZ_BF16); }

static void any_cut_gives_the_same_bits(void **state)
{
    static const int sizes[] = { 96, 112, 400 }; /* a sample or two behind the prefixes, on cuda one, .., all */
    static const enum wz_type types[] = { WZ_F32, WZ_BF16 };
    struct samples s;
    struct seen seen;

    samples_make(&s);
    for (size_t t = 0; t < WZ_COUNT(types); t++)
        for (size_t r = 0; r < rows_here(); r++) {
            struct wz_model *m = model_make(0, types[t], r);
            float *whole = NULL;
            for (size_t k = 0; k < 2 * WZ_COUNT(sizes); k++) {
                m->recompute = k % 2;
                float *g = gradient(m, s.turns, sizes[k / 2], true, &seen);
                if (whole && memcmp(whole, g, m->n_params * sizeof *g))
                    fail_msg("%s: %d rows%s give another gradient", m->be->name, sizes[k / 2],
                             m->recompute ? ", recomputed," : "");
                if (whole) free(g);
                else whole = g;
            }
            if (r > 0 && rows[r].threads > 1) {
                struct wz_model *one = model_make(0, types[t], r - 1);
                float *g = gradient(one, s.turns, LONGEST, true, &seen);
                assert_memory_equal(whole, g, m->n_params * sizeof *g);
                free(g);
                model_end(one);
            }
            free(whole);
            model_end(m);
        }
    samples_end(&s);
}

/* Along each tensor's gradient the loss changes by its length. */
static void finite_differences(void **state)
{
    const double step = 2e-3;
    struct samples s;
    struct seen seen;

    samples_make(&s);
    for (size_t c = 0; c < WZ_COUNT(configs); c++) {
        struct wz_model *m = model_make(c, WZ_F32, 0);
        float *g = gradient(m, s.turns, 200, true, &seen), *saved = wz_alloc(m->n_params * sizeof *saved);
        struct wz_pack p;
        wz_pack_init(&p, m, 200, false);
        p.share = false;
        memcpy(saved, m->params, m->n_params * sizeof *saved);
        for (int t = 0; t < m->n_list; t++) {
            const size_t at = m->list[t].at, n = wz_param_count(&m->list[t]);
            double norm = 0, loss[2];
            for (size_t i = at; i < at + n; i++) norm += (double)g[i] * (double)g[i];
            norm = sqrt(norm);
            for (int side = 0; side < 2; side++) {
                for (size_t i = at; i < at + n; i++)
                    m->params[i] = saved[i] + (float)((side ? -step : step) * (double)g[i] / norm);
                wz_model_commit(m, 3);
                loss[side] = learn(&p, s.turns, NULL, &seen);
            }
            memcpy(m->params, saved, m->n_params * sizeof *saved);
            const double found = (loss[0] - loss[1]) / (2 * step);
            if (!(fabs(found - norm) < 0.01 * norm + 1e-3))
                fail_msg("%s: slope %g, the gradient says %g", m->list[t].name, found, norm);
        }
        wz_pack_finish(&p);
        free(g);
        free(saved);
        model_end(m);
    }
    samples_end(&s);
}

static void prefixes_of_other_weights_are_refused(void **state)
{
    struct wz_model *m = model_make(0, WZ_F32, 1);
    struct samples s;
    struct wz_pack p;
    char line[512] = "";
    int out[2], status;

    samples_make(&s);
    wz_pack_init(&p, m, 200, true);
    wz_pack_share(&p, LONGEST);
    wz_pack_push(&p, s.turns[0].turn->context, 32);
    m->params[m->list[1].at] += 0.5f;
    wz_model_commit(m, 4);
    assert_true(wz_pack_sample(&p, &s.turns[0]));
    assert_int_equal(pipe(out), 0);
    const pid_t child = fork();
    if (child == 0) {
        dup2(out[1], 2);
        wz_pack_forward(&p, 1);
        _exit(0);
    }
    close(out[1]);
    const ssize_t n = read(out[0], line, sizeof line - 1);
    close(out[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(n > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 1);
    assert_non_null(strstr(line, "version 3"));
    assert_non_null(strstr(line, "version 4"));
    wz_pack_finish(&p);
    samples_end(&s);
    model_end(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shared_f32),
        cmocka_unit_test(shared_bf16),
        cmocka_unit_test(any_cut_gives_the_same_bits),
        cmocka_unit_test(finite_differences),
        cmocka_unit_test(prefixes_of_other_weights_are_refused),
    };

    return cmocka_run_group_tests(tests, job_open, job_close);
}
