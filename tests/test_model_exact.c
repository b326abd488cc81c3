/* Guarantees 1, 2 and 6: the bits of a token's hidden state, logits and log-probability are the same whether it was
 * prefilled, decoded one by one, batched with others, read from a forked prefix, or scored in training, on every
 * backend, weight type and number of threads (guarantee 1); a gradient has the same bits however its sequences are cut
 * into batches (guarantee 2); and it is the gradient, held against finite differences. Pages of other weights are
 * refused (guarantee 6). Weights may wait in the host's memory. */
#include "model/inner.h"
#include "model_help.h"

#include <sys/wait.h>
#include <unistd.h>

enum { SEQS = 3, ROWS = 17 + 5 + 33, PADDED = 32 + 16 + 48 };
static const int counts[SEQS] = { 17, 5, 33 };

static const struct wz_config configs[] = {
    { .layers = 2,
      .dim = 24,
      .heads = 2,
      .kv_heads = 2,
      .head_dim = 8,
      .ffn = 40,
      .vocab = 61,
      .context = 64,
      .norm_eps = 1e-5f,
      .rope_theta = 10000,
      .rope = WZ_ROPE_PLAIN,
      .tied = true,
      .bos = 1,
      .eos = { 2 },
      .n_eos = 1 },
    { .layers = 2,
      .dim = 24,
      .heads = 6,
      .kv_heads = 2,
      .head_dim = 10,
      .ffn = 36,
      .vocab = 61,
      .context = 64,
      .norm_eps = 1e-5f,
      .rope_theta = 500,
      .rope = WZ_ROPE_LLAMA3,
      .rope_factor = 4,
      .rope_low = 1,
      .rope_high = 4,
      .rope_original = 16,
      .bos = 1,
      .eos = { 2 },
      .n_eos = 1 },
    { .layers = 1,
      .dim = 40,
      .heads = 8,
      .kv_heads = 2,
      .head_dim = 64,
      .ffn = 72,
      .vocab = 130,
      .context = 64,
      .norm_eps = 1e-6f,
      .rope_theta = 10000,
      .rope = WZ_ROPE_LINEAR,
      .rope_factor = 2,
      .tied = true,
      .bos = 1,
      .eos = { 2 },
      .n_eos = 1 },
    { .layers = 1,
      .dim = 16,
      .heads = 4,
      .kv_heads = 2,
      .head_dim = 8,
      .ffn = 24,
      .vocab = 37,
      .context = 64,
      .norm_eps = 1e-5f,
      .rope_theta = 500,
      .bos = 1,
      .eos = { 2 },
      .n_eos = 1,
      .arch = WZ_OLMO2,
      .embed_scale = 3,
      .residual_scale = 0.6f,
      .score_scale = 0.2f,
      .logit_scale = 0.7f },
    { .layers = 2,
      .dim = 16,
      .heads = 2,
      .kv_heads = 1,
      .head_dim = 12,
      .ffn = 24,
      .vocab = 37,
      .context = 64,
      .norm_eps = 1e-5f,
      .rope_theta = 500,
      .tied = true,
      .bos = 1,
      .eos = { 2 },
      .n_eos = 1,
      .arch = WZ_QWEN3,
      .unrotated = { false, true } },
    { .layers = 1,
      .dim = 16,
      .heads = 4,
      .kv_heads = 2,
      .head_dim = 8,
      .ffn = 24,
      .vocab = 37,
      .context = 64,
      .norm_eps = 1e-5f,
      .rope_theta = 500,
      .bos = 1,
      .eos = { 2 },
      .n_eos = 1,
      .arch = WZ_QWEN2 },
    { .layers = 2,
      .dim = 16,
      .heads = 4,
      .kv_heads = 2,
      .head_dim = 8,
      .ffn = 24,
      .vocab = 37,
      .context = 64,
      .norm_eps = 1e-5f,
      .rope_theta = 500,
      .bos = 1,
      .eos = { 2 },
      .n_eos = 1,
      .tied = true,
      .arch = WZ_GEMMA3,
      .embed_scale = 2,
      .score_cap = 3,
      .logit_cap = 4,
      .window = 9,
      .local = { true },
      .rope_local = 100 },
};
/* The last two are there where WALTZ_SHIM names the cuda row with its kernels on the host: two schedules of threads
 * (where LIGHT, one). */
static const struct {
    const char *name;
    int threads;
    const char *schedule;
} rows[] = {
    { "ref", 1, NULL }, { "cpu", 1, NULL }, { "cpu", 2, NULL }, { "cuda", 1, "up" }, { "cuda", 1, "5" },
};

static size_t rows_here(void) { return WZ_COUNT(rows) - (getenv("WALTZ_SHIM") ? LIGHT : 2); }

static struct wz_backend *row_open(size_t r)
{
    if (rows[r].schedule) {
        setenv("WZ_CUDA_PLUGIN", getenv("WALTZ_SHIM"), 1);
        setenv("WZ_SHIM", rows[r].schedule, 1);
    }
    return backend_of(rows[r].name, rows[r].threads);
}

/* An int8 model does not train: it takes an f32 model's weights. */
static struct wz_model *model_int8(const struct wz_model *from)
{
    struct wz_model *m = wz_model_create(&from->config, WZ_INT8, NULL, from->be);

    for (int i = 0; i < m->n_list; i++) {
        size_t n = wz_param_count(&m->list[i]);
        float *values = wz_alloc(n * sizeof *values);
        wz_param_get(from, i, 0, n, values);
        wz_param_put(m, i, 0, n, values);
        free(values);
    }
    wz_model_commit(m, 3);
    return m;
}

/* Random weights ten times as large as a fresh model's, so that heads attend to something. */
static struct wz_model *model_make(const struct wz_config *c, enum wz_type type, struct wz_backend *be)
{
    struct wz_model *m = wz_model_create(c, type == WZ_INT8 ? WZ_F32 : type, NULL, be);

    wz_model_init(m, 7);
    for (int k = 0; k < m->n_list; k++) {
        size_t n = wz_param_count(&m->list[k]);
        float *p = wz_alloc(n * sizeof *p);
        wz_param_get(m, k, 0, n, p);
        for (size_t i = 0; i < n; i++) p[i] = p[i] == 1 ? 0.7f + 0.1f * (float)((m->list[k].at + i) % 7) : 10 * p[i];
        wz_param_put(m, k, 0, n, p);
        free(p);
    }
    wz_model_commit(m, 3);
    if (type != WZ_INT8) return m;
    struct wz_model *q = model_int8(m);
    wz_model_destroy(m);
    return q;
}

/* What must not depend on how a token was computed. */
struct seen {
    float hidden[ROWS][40], logp[ROWS], entropy[ROWS], logits[ROWS][130];
};

static void look(struct wz_model *m, struct wz_work *work, const float *h, int n, const int *targets, const int *at,
                 struct seen *seen)
{
    float *hidden = wz_alloc(sizeof(float) * (size_t)(n * m->config.dim)),
          *logits = wz_alloc(sizeof(float) * (size_t)(n * m->config.vocab));
    float logp[ROWS], entropy[ROWS];
    int row_targets[ROWS];

    for (int i = 0; i < n; i++) row_targets[i] = targets[at[i]];
    wz_download(m->be, hidden, h, sizeof(float) * (size_t)(n * m->config.dim));
    wz_head_logits(m->be, logits, h, &m->head, n);
    wz_logprobs(m, work, row_targets, 0.7f, logp, entropy);
    for (int i = 0; i < n; i++) {
        memcpy(seen->hidden[at[i]], hidden + i * m->config.dim, sizeof(float) * (size_t)m->config.dim);
        memcpy(seen->logits[at[i]], logits + i * m->config.vocab, sizeof(float) * (size_t)m->config.vocab);
        seen->logp[at[i]] = logp[i];
        seen->entropy[at[i]] = entropy[i];
    }
    free(hidden);
    free(logits);
}

static void same(const struct seen *a, const struct seen *b, const char *way, const char *backend)
{
    for (int i = 0; i < ROWS; i++) {
        if (memcmp(a->hidden[i], b->hidden[i], sizeof(a->hidden[i])))
            fail_msg("%s, %s: hidden state of row %d differs", backend, way, i);
        if (memcmp(a->logits[i], b->logits[i], sizeof(a->logits[i])))
            fail_msg("%s, %s: logits of row %d differ", backend, way, i);
        if (memcmp(&a->logp[i], &b->logp[i], sizeof(float)) || memcmp(&a->entropy[i], &b->entropy[i], sizeof(float)))
            fail_msg("%s, %s: log-probability of row %d differs: %a %a", backend, way, i, (double)a->logp[i],
                     (double)b->logp[i]);
    }
}

/* cuda agrees with ref, and gradients with those of the row before, within the rounding of sums; where what meets a
 * bf16 matrix is rounded to bf16, a float's last place may turn into one of bf16's; keys and values are of bf16 on
 * the one alone. */
static void alike(const float *a, const float *b, size_t n, double within, const char *what, const char *backend)
{
    double top = 0;

    for (size_t i = 0; i < n; i++) {
        double size = fabs((double)a[i]);
        top = size > top ? size : top;
    }
    for (size_t i = 0; i < n; i++)
        if (!(fabs((double)a[i] - (double)b[i]) <= within * top))
            fail_msg("%s: %s %zu is %.9g, expected %.9g", backend, what, i, (double)b[i], (double)a[i]);
}

static void one_way_or_another(const struct wz_config *c, enum wz_type type, struct wz_backend *be, struct seen *train)
{
    struct wz_model *m = model_make(c, type, be);
    struct wz_cache *cache = wz_cache_create(m, 60, 4), *other = wz_cache_create(m, 9, 7);
    struct wz_work *tape = wz_work_create(m, ROWS, true), *work = wz_work_create(m, ROWS + 3, false),
                   *small = wz_work_create(m, 4, false);
    struct wz_seq seqs[SEQS] = { 0 }, fork[SEQS] = { 0 }, *list[SEQS];
    struct seen got = { 0 };
    int ids[ROWS], targets[ROWS], at[ROWS], first[SEQS] = { 0, 17, 22 };

    memset(train, 0, sizeof(*train));
    ids_of(ids, ROWS, c->vocab, 1);
    ids_of(targets, ROWS, c->vocab, 2);
    targets[3] = targets[20] = targets[54] = -1;
    for (int i = 0; i < ROWS; i++) at[i] = i;
    look(m, tape, run(m, cache, tape, seqs, SEQS, ids, counts), ROWS, targets, at, train);
    for (int i = 0; i < ROWS; i++) assert_true(targets[i] < 0 ? train->logp[i] == 0 : train->logp[i] < 0);

    for (int s = 0; s < SEQS; s++) { /* each alone, other pages */
        struct wz_seq seq = { 0 };
        look(m, work, run(m, other, work, &seq, 1, ids + first[s], counts + s), counts[s], targets, at + first[s],
             &got);
        wz_seq_finish(other, &seq);
    }
    same(train, &got, "prefilled alone", be->name);

    for (int s = 0; s < SEQS; s++) wz_seq_release(cache, &seqs[s]);
    memset(&got, 0, sizeof(got));
    for (int t = 0; t < 33; t++) { /* token by token, together with whoever is still there */
        int n = 0, count[SEQS] = { 1, 1, 1 }, row_ids[SEQS], row_at[SEQS];

        for (int s = SEQS - 1; s >= 0; s--) {
            if (t >= counts[s]) continue;
            assert_true(wz_seq_reserve(cache, &seqs[s], 1));
            list[n] = &seqs[s];
            row_ids[n] = ids[first[s] + t];
            row_at[n++] = first[s] + t;
        }
        look(m, small, wz_forward(m, cache, small, &(struct wz_batch){ n, list, count, row_ids }), n, targets, row_at,
             &got);
    }
    same(train, &got, "decoded", be->name);

    for (int s = 0; s < SEQS; s++) { /* the rest of each, from a prefix of 3 tokens that begins inside a page */
        int rest = counts[s] - 3, len = seqs[s].len;

        assert_true(wz_seq_fork(cache, &fork[s], &seqs[s], 3));
        assert_true(wz_seq_reserve(cache, &fork[s], rest));
        list[0] = &fork[s];
        look(m, work, wz_forward(m, cache, work, &(struct wz_batch){ 1, list, &rest, ids + first[s] + 3 }), rest,
             targets, at + first[s] + 3, &got);
        assert_int_equal(seqs[s].len, len);
    }
    same(train, &got, "forked", be->name);

    /* what sampling notes down is what scoring computes */
    wz_seq_release(cache, &seqs[0]);
    const float *h = run(m, cache, work, &seqs[0], 1, ids, counts);
    struct wz_pick picks[17];
    int token[17];
    float logp[17], scored[17];
    for (int i = 0; i < 17; i++) picks[i] = (struct wz_pick){ 0.7f, 0.9f, 0, 0, i / 17.0 };
    wz_head_sample(be, token, logp, wz_gather(work, h, at, 17), &m->head, picks, 17);
    wz_logprobs(m, work, token, 0.7f, scored, NULL);
    assert_memory_equal(logp, scored, sizeof(logp));

    for (int s = 0; s < SEQS; s++) {
        wz_seq_finish(cache, &seqs[s]);
        wz_seq_finish(cache, &fork[s]);
    }
    assert_int_equal(wz_cache_free_pages(cache), 60);
    wz_work_destroy(tape);
    wz_work_destroy(work);
    wz_work_destroy(small);
    wz_cache_destroy(cache);
    wz_cache_destroy(other);
    wz_model_destroy(m);
}

static void exact(void **state)
{
    static struct seen seen[WZ_COUNT(rows)];

    for (size_t c = 0; c < WZ_COUNT(configs); c++)
        for (int type = WZ_F32; type <= WZ_INT8; type++)
            for (size_t r = 0; r < rows_here(); r++) {
                struct wz_backend *be = row_open(r);
                be->rounds = true; /* ref's too */
                if (type == WZ_INT8 && !be->int8) {
                    wz_backend_close(be);
                    continue;
                }
                one_way_or_another(&configs[c], type, be, &seen[r]);
                if (r > 0 && !strcmp(rows[r].name, rows[r - 1].name))
                    same(&seen[r - 1], &seen[r], "other threads", be->name);
                if (rows[r].schedule) {
                    double within = type == WZ_BF16 ? 1e-2 : 2e-5;
                    alike(seen[0].logp, seen[r].logp, ROWS, within, "log-probability", be->name);
                    alike(&seen[0].logits[0][0], &seen[r].logits[0][0], ROWS * 130, within, "logit", be->name);
                }
                wz_backend_close(be);
            }
}

/* What int8 costs: log-probabilities of a model that knows a nat or so, against the same weights in f32. */
static void int8_is_near(void **state)
{
    static const struct wz_config c = { .layers = 4,
                                        .dim = 256,
                                        .heads = 4,
                                        .kv_heads = 2,
                                        .head_dim = 64,
                                        .ffn = 704,
                                        .vocab = 500,
                                        .context = 64,
                                        .norm_eps = 1e-5f,
                                        .rope_theta = 10000,
                                        .rope = WZ_ROPE_PLAIN,
                                        .tied = true,
                                        .bos = 1,
                                        .eos = { 2 },
                                        .n_eos = 1 };
    struct wz_backend *be = backend_of("cpu", 1);
    float logp[2][ROWS];
    double mean = 0, most = 0, spread = 0;
    int ids[ROWS], targets[ROWS];

    ids_of(ids, ROWS, c.vocab, 1);
    ids_of(targets, ROWS, c.vocab, 2);
    struct wz_model *full = wz_model_create(&c, WZ_F32, NULL, be);
    wz_model_init(full, 7);
    for (size_t i = 0; i < full->n_params; i++) full->params[i] *= full->params[i] == 1 ? 1 : 4;
    wz_model_commit(full, 3);
    for (int t = 0; t < 2; t++) {
        struct wz_model *m = t ? model_int8(full) : full;
        struct wz_cache *cache = wz_cache_create(m, 60, 4);
        struct wz_work *work = wz_work_create(m, ROWS, false);
        struct wz_seq seqs[SEQS] = { 0 };
        run(m, cache, work, seqs, SEQS, ids, counts);
        wz_logprobs(m, work, targets, 1, logp[t], NULL);
        for (int s = 0; s < SEQS; s++) wz_seq_finish(cache, &seqs[s]);
        wz_work_destroy(work);
        wz_cache_destroy(cache);
        if (t) wz_model_destroy(m);
    }
    wz_model_destroy(full);
    for (int i = 0; i < ROWS; i++) {
        double gap = fabs((double)logp[1][i] - (double)logp[0][i]);
        mean += gap / ROWS;
        most = fmax(most, gap);
        spread += fabs((double)logp[0][i] + log(c.vocab)) / ROWS;
    }
    print_message(
        "# int8 against f32: log-probabilities differ by %.4f nats on average, %.4f at most; they spread by %.2f\n",
        mean, most, spread);
    assert_true(mean > 0 && mean < 0.1 && most < 0.5);
    wz_backend_close(be);
}

/* ---- gradients -------------------------------------------------------------------------------------------- */

/* Adds the gradient of sequences [from, to) to d_params, each followed by rows without loss up to the backend's
 * grain. For one sequence alone the scores are taken at another temperature first, so that backward can't use their
 * normalisers and has to compute its own. */
static double gradient(struct wz_model *m, struct wz_cache *cache, struct wz_work *work, int from, int to,
                       float *d_params)
{
    struct wz_seq seqs[SEQS] = { 0 };
    int all_ids[ROWS], all_targets[ROWS], ids[PADDED], targets[PADDED], count[SEQS], n = 0,
                                                                                     grain = wz_grain(m->be, m->type);
    float d_logp[PADDED] = { 0 }, logp[PADDED];
    double loss = 0;

    ids_of(all_ids, ROWS, m->config.vocab, 1);
    ids_of(all_targets, ROWS, m->config.vocab, 2);
    all_targets[3] = all_targets[20] = all_targets[54] = -1;
    for (int s = 0, i = 0; s < to; s++) {
        for (int k = 0; k < counts[s]; k++, i++) {
            if (s < from) continue;
            ids[n] = all_ids[i];
            targets[n] = all_targets[i];
            d_logp[n++] = (float)(wz_uniform((struct wz_key){ 5, WZ_RNG_TEST, (uint32_t)i, 0, 0, 0 }) - 0.3);
        }
        if (s >= from) count[s - from] = counts[s];
        for (; n % grain; n++, count[s - from]++) ids[n] = 0, targets[n] = -1;
    }
    run(m, cache, work, seqs, to - from, ids, count);
    wz_logprobs(m, work, targets, d_params && to - from == 1 ? 1.0f : 0.7f, logp, NULL);
    for (int i = 0; i < n; i++) loss += (double)d_logp[i] * (double)logp[i];
    if (d_params) wz_backward(m, cache, work, targets, d_logp, 0.7f, d_params);
    for (int s = 0; s < to - from; s++) wz_seq_finish(cache, &seqs[s]);
    return loss;
}

static void batches(enum wz_type type)
{
    static const int cuts[][SEQS + 1] = { { 0, 3 }, { 0, 1, 3 }, { 0, 2, 3 }, { 0, 1, 2, 3 } };

    for (size_t c = 0; c < WZ_COUNT(configs); c++) {
        float *before = NULL;

        for (size_t r = 0; r < rows_here(); r++) {
            struct wz_backend *be = row_open(r);
            struct wz_model *m = model_make(&configs[c], type, be);
            struct wz_cache *cache = wz_cache_create(m, 24, 4);
            struct wz_work *works[2] = { wz_work_create(m, PADDED,
                                                        true) }; /* a whole tape, and one of the layers' inputs */
            m->recompute = true;
            works[1] = wz_work_create(m, PADDED, true);
            size_t bytes = m->n_params * sizeof(float);
            float *whole = NULL;

            for (size_t k = 0; k < 2 * WZ_COUNT(cuts); k++) {
                const int *cut = cuts[k / 2];
                float *g = wz_alloc(bytes), *d_params = wz_backend_alloc(be, bytes);

                for (int j = 0; cut[j] < SEQS; j++) gradient(m, cache, works[k % 2], cut[j], cut[j + 1], d_params);
                wz_backward_end(m, works[k % 2], d_params);
                wz_download(be, g, d_params, bytes);
                wz_backend_free(be, d_params);
                if (whole && memcmp(whole, g, bytes))
                    fail_msg("config %zu, %s: cut %zu%s gives another gradient", c, be->name, k / 2,
                             k % 2 ? ", recomputed," : "");
                if (whole) free(g);
                else whole = g;
            }
            if (r > 0 && !strcmp(rows[r].name, rows[r - 1].name) && memcmp(before, whole, bytes))
                fail_msg("config %zu, %s: %d threads give another gradient", c, be->name, rows[r].threads);
            if (before) alike(before, whole, m->n_params, type == WZ_BF16 ? 3e-2 : 2e-5, "gradient", be->name);
            free(before);
            before = whole;
            for (int i = 0; i < m->n_list; i++) { /* the padding stays zero */
                size_t end =
                    m->list[i].at + (size_t)m->list[i].rows * (size_t)(m->list[i].cols > 0 ? m->list[i].cols : 1);
                for (; end % 16 != 0; end++) assert_true(whole[end] == 0);
            }
            wz_work_destroy(works[0]), wz_work_destroy(works[1]);
            wz_cache_destroy(cache);
            wz_model_destroy(m);
            wz_backend_close(be);
        }
        free(before);
    }
}

static void batches_are_independent(void **state) { batches(WZ_F32); }

/* Odd sequences: a cut then falls between two rows that the products of bf16 would have taken as a pair. */
static void batches_are_independent_bf16(void **state) { batches(WZ_BF16); }

/* The body's gradients are linear in the gradient of the last hidden states, whoever supplies it: twice that gradient
 * gives, bit for bit, twice theirs. The head's own gradient is not touched. */
static void backward_in_two_parts(void **state)
{
    for (size_t c = 0; c < WZ_COUNT(configs); c++) {
        struct wz_backend *be = backend_of("ref", 1);
        struct wz_model *m = model_make(&configs[c], WZ_F32, be);
        struct wz_cache *cache = wz_cache_create(m, 20, 4);
        struct wz_work *work = wz_work_create(m, ROWS, true);
        struct wz_seq seqs[SEQS] = { 0 };
        float *g = wz_alloc(m->n_params * sizeof *g), *twice = wz_alloc(m->n_params * sizeof *twice), d_logp[ROWS];
        int ids[ROWS], targets[ROWS];

        ids_of(ids, ROWS, m->config.vocab, 1);
        ids_of(targets, ROWS, m->config.vocab, 2);
        for (int i = 0; i < ROWS; i++) d_logp[i] = 0.01f * (float)(i % 7) - 0.02f;
        run(m, cache, work, seqs, SEQS, ids, counts);
        wz_backward(m, cache, work, targets, d_logp, 1, g);
        wz_backward_end(m, work, g);
        float *d_hidden = wz_backward_head(m, work, targets, d_logp, 1, twice);
        for (int i = 0; i < ROWS * m->config.dim; i++) d_hidden[i] *= 2;
        wz_backward_body(m, cache, work, d_hidden, twice);
        wz_backward_end(m, work, twice);
        for (int t = m->config.tied ? 1 : 0; t < m->n_list; t++) {
            const struct wz_param *p = &m->list[t];
            const float scale = t == m->n_list - 1 && !m->config.tied ? 1 : 2;
            size_t n = (size_t)p->rows * (size_t)(p->cols > 0 ? p->cols : 1);
            double sum = 0;
            for (size_t i = p->at; i < p->at + n; i++) {
                sum += fabs((double)g[i]);
                if (twice[i] != scale * g[i]) fail_msg("config %zu, %s: not the head's and the body's", c, p->name);
            }
            assert_true(sum > 0);
        }
        for (int s = 0; s < SEQS; s++) wz_seq_finish(cache, &seqs[s]);
        free(g);
        free(twice);
        wz_work_destroy(work);
        wz_cache_destroy(cache);
        wz_model_destroy(m);
        wz_backend_close(be);
    }
}

/* Along the gradient g of one tensor the loss climbs by |g|; along a random direction u, by g.u. */
static void finite_differences(void **state)
{
    for (size_t c = 0; c < WZ_COUNT(configs); c++) {
        struct wz_backend *be = backend_of("ref", 1);
        struct wz_model *m = model_make(&configs[c], WZ_F32, be);
        struct wz_cache *cache = wz_cache_create(m, 20, 4);
        struct wz_work *work = wz_work_create(m, ROWS, true);
        float *g = wz_alloc(m->n_params * sizeof(float)), *saved = wz_alloc(m->n_params * sizeof(float));

        gradient(m, cache, work, 0, SEQS, g);
        wz_backward_end(m, work, g);
        memcpy(saved, m->params, m->n_params * sizeof(float));
        for (int i = 0; i < m->n_list; i++) {
            const struct wz_param *p = &m->list[i];
            size_t n = (size_t)p->rows * (size_t)(p->cols > 0 ? p->cols : 1);
            double norm = 0, step = 2e-3;

            for (size_t j = 0; j < n; j++) norm += (double)g[p->at + j] * (double)g[p->at + j];
            norm = sqrt(norm);
            assert_true(norm > 0);
            for (int way = 0; way < 2; way++) {
                double want = 0, loss[2];

                for (int side = 0; side < 2; side++) {
                    want = 0;
                    for (size_t j = 0; j < n; j++) {
                        double along = (double)g[p->at + j] / norm;
                        double random = wz_normal((struct wz_key){ 9, WZ_RNG_TEST, (uint32_t)i, (uint32_t)j, 0, 0 }) /
                                        sqrt((double)n);
                        double u = way == 0 ? along : 0.7 * along + 0.7 * random;

                        m->params[p->at + j] = saved[p->at + j] + (float)((side ? -step : step) * u);
                        want += (double)g[p->at + j] * u;
                    }
                    wz_model_commit(m, 3);
                    loss[side] = gradient(m, cache, work, 0, SEQS, NULL);
                }
                memcpy(m->params, saved, m->n_params * sizeof(float));
                double slope = (loss[0] - loss[1]) / (2 * step);
                if (!(fabs(slope - want) < 0.01 * norm + 1e-3))
                    fail_msg("config %zu, %s: slope %g, gradient says %g (norm %g)", c, p->name, slope, want, norm);
            }
        }
        free(g);
        free(saved);
        wz_work_destroy(work);
        wz_cache_destroy(cache);
        wz_model_destroy(m);
        wz_backend_close(be);
    }
}

/* ---- offloaded weights --------------------------------------------------------------- */

/* They give back what they took of the backend's, and compute the same bits in any memory they are given, though
 * others use it. */
static void offloaded_weights(void **state)
{
    for (size_t r = 0; r < rows_here(); r++)
        for (int type = WZ_F32; type <= WZ_BF16; type++) {
            struct wz_backend *be = row_open(r);
            struct wz_model *m = model_make(&configs[1], (enum wz_type)type, be);
            struct wz_cache *cache = wz_cache_create(m, 24, 4);
            struct wz_work *work = wz_work_create(m, PADDED, false);
            double want = gradient(m, cache, work, 0, SEQS, NULL);
            size_t room = m->n_params * sizeof(float), n, all, had = 0, has = 0;

            wz_model_weights(m, &n);
            assert_true(n <= room);
            wz_backend_devices(be, &all, &had);
            wz_model_offload(m);
            wz_backend_devices(be, &all, &has);
            assert_true(has - had == (be->device ? n : 0));
            char *gradients = wz_backend_alloc(be, 2 * room);
            for (int k = 0; k < 3; k++) {
                wz_model_onload(m, gradients + (k == 1 ? room : 0));
                assert_true(gradient(m, cache, work, 0, SEQS, NULL) == want);
                wz_model_onload(m, NULL);
                wz_zero(be, gradients, 2 * room);
            }
            wz_backend_free(be, gradients);
            wz_work_destroy(work);
            wz_cache_destroy(cache);
            wz_model_destroy(m);
            wz_backend_close(be);
        }
}

/* ---- weights have an identity ----------------------------------------------------------------------------- */

static void identity(void **state)
{
    struct wz_backend *be = backend_of("ref", 1);
    struct wz_model *m = model_make(&configs[0], WZ_F32, be);
    struct wz_cache *cache = wz_cache_create(m, 10, 4);
    struct wz_work *work = wz_work_create(m, 8, false);
    struct wz_seq seq = { 0 }, fresh = { 0 };
    int ids[5] = { 1, 2, 3, 4, 5 }, five = 5, one = 1, out[2], status;
    uint64_t hash = m->hash;
    char line[512] = "";

    run(m, cache, work, &seq, 1, ids, &five);
    m->params[m->list[1].at] += 0.5f;
    wz_model_commit(m, 4);
    assert_true(m->hash != hash && m->version == 4);
    run(m, cache, work, &fresh, 1, ids, &five); /* a new sequence may begin with the new weights */
    assert_int_equal(pipe(out), 0);
    pid_t child = fork();
    if (child == 0) {
        dup2(out[1], 2);
        run(m, cache, work, &seq, 1, ids, &one);
        _exit(0);
    }
    close(out[1]);
    ssize_t n = read(out[0], line, sizeof(line) - 1);
    close(out[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(n > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 1);
    assert_non_null(strstr(line, "version 3"));
    assert_non_null(strstr(line, "version 4"));
    m->params[m->list[1].at] -= 0.5f;
    wz_model_commit(m, 5);
    assert_true(m->hash == hash);

    wz_seq_finish(cache, &seq);
    wz_seq_finish(cache, &fresh);
    wz_work_destroy(work);
    wz_cache_destroy(cache);
    wz_model_destroy(m);
    wz_backend_close(be);
}

/* The hash is that of the bytes, on any backend: of less than a piece, of whole ones, of some and a rest. */
static void same_identity(void **state)
{
    static const struct {
        int vocab;
        enum wz_type type;
        size_t rest;
    } sizes[] = {
        { 60, WZ_F32, 130816 }, { 573, WZ_F32, 0 },      { 574, WZ_F32, 256 },      { 572, WZ_F32, WZ_PIECE - 256 },
        { 1597, WZ_F32, 0 },    { 1600, WZ_BF16, 1152 }, { 3000, WZ_BF16, 180352 },
    };

    for (size_t r = 0; r < rows_here(); r++)
        for (size_t i = 0; i < WZ_COUNT(sizes); i++) {
            struct wz_config c = { .layers = 1,
                                   .dim = 64,
                                   .heads = 4,
                                   .kv_heads = 4,
                                   .head_dim = 16,
                                   .ffn = 64,
                                   .vocab = sizes[i].vocab,
                                   .context = 64,
                                   .norm_eps = 1e-5f,
                                   .rope_theta = 10000,
                                   .rope = WZ_ROPE_PLAIN,
                                   .tied = true,
                                   .bos = 1,
                                   .eos = { 2 },
                                   .n_eos = 1 };
            struct wz_backend *be = row_open(r);
            struct wz_model *m = model_make(&c, sizes[i].type, be);
            size_t n;
            const void *weights = wz_model_weights(m, &n);
            char *bytes = wz_alloc(n);

            wz_download(be, bytes, weights, n);
            assert_int_equal(n % WZ_PIECE, sizes[i].rest);
            if (m->hash != wz_hash_pieces(NULL, bytes, n)) fail_msg("%s: another hash of %zu bytes", be->name, n);
            free(bytes);
            wz_model_destroy(m);
            wz_backend_close(be);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exact),
        cmocka_unit_test(int8_is_near),
        cmocka_unit_test(batches_are_independent),
        cmocka_unit_test(batches_are_independent_bf16),
        cmocka_unit_test(offloaded_weights),
        cmocka_unit_test(backward_in_two_parts),
        cmocka_unit_test(finite_differences),
        cmocka_unit_test(identity),
        cmocka_unit_test(same_identity),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
