/* Golden cases of models: a folder with a config.json, and what another implementation computed in float64 from weights
 * that both make from a seed (golden/model/README.md). */
#ifndef WZ_TESTS_GOLDEN_HELP_H
#define WZ_TESTS_GOLDEN_HELP_H

#include "model_help.h"

/* Cases of golden/rows: what tests/reference/rows.py knows. At least one for each row of wz_archs. */
static const char *const golden_rows[] = { "llama2",         "llama3",        "smollm2",    "mistral", "nemo",
                                           "qwen2",          "qwen2-tied",    "qwen3",      "granite", "olmo2",
                                           "mistral-window", "qwen2-window",  "qwen3-yarn", "gemma",   "gemma2",
                                           "gemma3",         "gemma3-scaled", "smollm3" };

/* $WALTZ_GOLDEN/rows/NAME, to be freed. */
static inline char *golden_row(const char *name)
{
    const char *golden = getenv("WALTZ_GOLDEN");

    assert_non_null(golden);
    return wz_path("%s/rows/%s", golden, name);
}

static const struct {
    const char *name;
    int threads;
} golden_backends[] = { { "ref", 1 }, { "cpu", 2 } };

static inline double golden_number(const json_t *j, const char *key)
{
    const json_t *v = json_object_get(j, key);

    if (!json_is_number(v)) fail_msg("case.json has no number %s", key);
    return json_number_value(v);
}

/* |got - want| / |want|, over n values. */
static inline double golden_apart(const float *got, const float *want, size_t n)
{
    double off = 0, norm = 0;

    for (size_t i = 0; i < n; i++) {
        off += ((double)got[i] - (double)want[i]) * ((double)got[i] - (double)want[i]);
        norm += (double)want[i] * (double)want[i];
    }
    return sqrt(off) / sqrt(norm);
}

static inline void golden_hold(const char *name, const char *what, const char *backend, double error)
{
    if (!(error < 1e-5)) fail_msg("%s on %s: %s is off by a relative %g", name, backend, what, error);
}

/* The largest relative errors. */
struct golden_errors {
    double logits, gradient;
};

/* The folder of a case (golden/model/README.md) on one backend. `name` is for messages. */
static inline struct golden_errors golden_check(const char *folder, const char *name, const char *backend, int threads)
{
    char *dir = wz_path("%s/%s", folder, name), *json = wz_path("%s/case.json", dir),
         *raw = wz_path("%s/values.f32", dir);
    struct wz_err err = { "" };
    struct wz_config c;
    struct wz_map map;
    json_t *k = wz_json_load(json, &err);

    if (!k || wz_config_load(&c, dir, &err) < 0 || wz_map_open(&map, raw, &err) < 0) fail_msg("%s", err.text);
    struct wz_backend *be = backend_of(backend, threads);
    struct wz_model *m = wz_model_create(&c, WZ_F32, NULL, be);
    int n = (int)json_array_size(json_object_get(k, "ids")), n_seqs = (int)json_array_size(json_object_get(k, "lens"));
    int ids[64], targets[64], lens[8];
    float d_logp[64], logp[64], scale = (float)golden_number(k, "scale"),
                                temperature = (float)golden_number(k, "temperature");
    size_t full = (size_t)golden_number(k, "full"), sample = (size_t)golden_number(k, "sample"), at = 0,
           n_values = map.len / sizeof(float);
    float *want = wz_alloc(map.len), *logits = wz_alloc((size_t)(n * c.vocab) * sizeof(float));
    float *g = wz_alloc(m->n_params * sizeof(float)), *picked = wz_alloc(m->n_params * sizeof(float));

    memcpy(want, map.bytes, map.len);
    assert_in_range(n, 1, 64);
    assert_in_range(n_seqs, 1, 8);
    for (int i = 0; i < n; i++) {
        ids[i] = (int)json_integer_value(json_array_get(json_object_get(k, "ids"), (size_t)i));
        targets[i] = (int)json_integer_value(json_array_get(json_object_get(k, "targets"), (size_t)i));
        d_logp[i] = (float)json_number_value(json_array_get(json_object_get(k, "d_logp"), (size_t)i));
    }
    for (int s = 0; s < n_seqs; s++)
        lens[s] = (int)json_integer_value(json_array_get(json_object_get(k, "lens"), (size_t)s));
    uint64_t seed = (uint64_t)golden_number(k, "seed");
    wz_model_init(m, seed);
    for (int i = 0; i < m->n_list; i++) {
        const struct wz_param *p = &m->list[i];
        size_t count = (size_t)p->rows * (size_t)(p->cols > 0 ? p->cols : 1);

        for (size_t j = 0; j < count; j++) /* norms that differ, so that one can't pass for another */
            if (p->cols > 0) m->params[p->at + j] *= scale;
            else
                m->params[p->at + j] =
                    (float)((p->zero ? -0.5 : 0.5) +
                            wz_uniform((struct wz_key){ seed, WZ_RNG_TEST, (uint32_t)j, 4, (uint32_t)i, 0 }));
    }
    wz_model_commit(m, 1);

    struct wz_cache *cache = wz_cache_create(m, 24, 4);
    struct wz_work *work = wz_work_create(m, n, true);
    struct wz_seq seqs[8] = { 0 };
    const float *h = run(m, cache, work, seqs, n_seqs, ids, lens);
    wz_head_logits(be, logits, h, &m->head, n);
    struct golden_errors off = { golden_apart(logits, want + at, (size_t)(n * c.vocab)), 0 };
    golden_hold(name, "the logits", backend, off.logits);
    at += (size_t)(n * c.vocab);
    wz_logprobs(m, work, targets, temperature, logp, NULL);
    golden_hold(name, "the log-probability", backend, golden_apart(logp, want + at, (size_t)n));
    at += (size_t)n;
    wz_backward(m, cache, work, targets, d_logp, temperature, g);
    int all[64];
    float *slope = wz_alloc((size_t)(n * c.vocab) * sizeof(float));
    for (int i = 0; i < n; i++) all[i] = i;
    wz_backward_onehot(m, work, all, n, slope);
    wz_backward_end(m, work, g);
    /* By one-hot vectors: those of an id add up to what the embedding's gradient, which is held to theirs below, has of
     * it, times the embedding. A tied one has the head's besides. */
    for (int i = 0; i < n && !c.tied; i++)
        for (int v = 0; v < c.vocab; v++) {
            double sum = 0, by = 0, size = 1e-6;
            for (int k2 = 0; k2 < n; k2++) sum += ids[k2] == ids[i] ? (double)slope[k2 * c.vocab + v] : 0;
            for (int j = 0; j < c.dim; j++) {
                const double term = (double)m->params[v * c.dim + j] * (double)g[ids[i] * c.dim + j];
                by += term;
                size += fabs(term);
            }
            if (!(fabs(sum - by) < 1e-5 * size))
                fail_msg("%s: slope of token %d by id %d: %g, not %g", name, i, v, sum, by);
        }
    free(slope);
    for (int i = 0; i < m->n_list; i++) {
        const struct wz_param *p = &m->list[i];
        size_t count = (size_t)p->rows * (size_t)(p->cols > 0 ? p->cols : 1), kept = count > full ? sample : count;
        double square = 0;

        for (size_t j = 0; j < count; j++) square += (double)g[p->at + j] * (double)g[p->at + j];
        float norm = (float)sqrt(square);
        assert_true(at + 1 + kept <= n_values);
        golden_hold(name, p->name, backend, golden_apart(&norm, want + at++, 1));
        for (size_t j = 0; j < kept; j++) picked[j] = g[p->at + (count > full ? (j * 2654435761u) % count : j)];
        double apart = golden_apart(picked, want + at, kept);
        golden_hold(name, p->name, backend, apart);
        if (apart > off.gradient) off.gradient = apart;
        at += kept;
    }
    assert_int_equal(at, n_values);

    for (int s = 0; s < n_seqs; s++) wz_seq_finish(cache, &seqs[s]);
    wz_work_destroy(work);
    wz_cache_destroy(cache);
    wz_model_destroy(m);
    wz_backend_close(be);
    wz_map_close(&map);
    json_decref(k);
    free(want);
    free(logits);
    free(g);
    free(picked);
    free(dir);
    free(json);
    free(raw);
    return off;
}

#endif
