/* Guarantee: real weights give the logits, the log-probabilities and the greedy text that an independent float64
 * forward gave. */
#include "model_help.h"

static const char *const backends[] = { "ref", "cpu" };

static void sequences(const char *name, double bound)
{
    char *dir = test_data(name), *json = wz_path("%s/reference.json", dir),
         *raw = wz_path("%s/reference_logits.f32", dir);
    struct wz_err err;
    struct wz_map map;
    json_t *ref = wz_json_load(json, &err);

    assert_non_null(ref);
    assert_int_equal(wz_map_open(&map, raw, &err), 0);
    for (size_t b = 0; b < WZ_COUNT(backends); b++) {
        struct wz_backend *be = backend_of(backends[b], 2);
        struct wz_model *m = model_of(dir, WZ_F32, be);
        int vocab = m->config.vocab;
        struct wz_cache *cache = wz_cache_create(m, 64, 5);
        struct wz_work *work = wz_work_create(m, 128, false);
        const json_t *s;
        size_t i;

        json_array_foreach(json_object_get(ref, "sequences"), i, s)
        {
            const json_t *tokens = json_object_get(s, "tokens"), *next = json_object_get(s, "logprob_of_next_token");
            int n = (int)json_array_size(tokens), ids[128], targets[128];
            size_t at = (size_t)json_integer_value(json_object_get(s, "logits_offset_floats"));
            float *logits = wz_alloc((size_t)(n * vocab) * sizeof(float)),
                  *want = wz_alloc((size_t)(n * vocab) * sizeof(float));
            float logp[128];
            struct wz_seq seq = { 0 };

            assert_in_range(n, 1, 128);
            for (int t = 0; t < n; t++) ids[t] = (int)json_integer_value(json_array_get(tokens, (size_t)t));
            for (int t = 0; t < n; t++) targets[t] = t + 1 < n ? ids[t + 1] : -1;
            assert_true((at + (size_t)(n * vocab)) * sizeof(float) <= map.len);
            memcpy(want, map.bytes + at * sizeof(float), (size_t)(n * vocab) * sizeof(float));
            const float *h = run(m, cache, work, &seq, 1, ids, &n);
            wz_head_logits(be, logits, h, &m->head, n);
            double worst = 0;
            for (int j = 0; j < n * vocab; j++) {
                double off = fabs((double)logits[j] - (double)want[j]);
                worst = off > worst ? off : worst;
            }
            if (!(worst < bound)) fail_msg("%s %s sequence %zu: logits off by %g", name, backends[b], i, worst);
            for (int t = 0; t < n; t++) {
                int best = 0;
                for (int v = 1; v < vocab; v++)
                    if (logits[t * vocab + v] > logits[t * vocab + best]) best = v;
                assert_int_equal(best, json_integer_value(json_array_get(json_object_get(s, "argmax"), (size_t)t)));
            }
            wz_logprobs(m, work, targets, 1, logp, NULL);
            for (int t = 0; t + 1 < n; t++)
                assert_true(fabs((double)logp[t] - json_number_value(json_array_get(next, (size_t)t))) < bound);
            wz_seq_finish(cache, &seq);
            free(logits);
            free(want);
        }
        assert_true(i > 0);
        assert_int_equal(wz_cache_free_pages(cache), 64);
        wz_work_destroy(work);
        wz_cache_destroy(cache);
        wz_model_destroy(m);
        wz_backend_close(be);
    }
    wz_map_close(&map);
    json_decref(ref);
    free(raw);
    free(json);
    free(dir);
}

static void stories_logits(void **state) { sequences("stories260k", 2e-5); }

static void verl_logits(void **state) { sequences("verl_tiny_llama", 1e-5); }

static void stories_greedy(void **state)
{
    char *dir = test_data("stories260k"), *json = wz_path("%s/reference.json", dir);
    struct wz_err err;
    json_t *ref = wz_json_load(json, &err), *want = json_object_get(ref, "greedy_tokens_from_bos");
    int n = (int)json_array_size(want);

    assert_in_range(n, 2, 512);
    for (size_t b = 0; b < WZ_COUNT(backends); b++) {
        struct wz_backend *be = backend_of(backends[b], 1);
        struct wz_model *m = model_of(dir, WZ_F32, be);
        struct wz_cache *cache = wz_cache_create(m, 32, 16);
        struct wz_work *work = wz_work_create(m, 1, false);
        struct wz_seq seq = { 0 };
        int id = m->config.bos, one = 1;
        float logp;

        for (int t = 0; t < n; t++) {
            assert_int_equal(id, json_integer_value(json_array_get(want, (size_t)t)));
            const float *h = run(m, cache, work, &seq, 1, &id, &one);
            wz_head_sample(be, &id, &logp, h, &m->head, &(struct wz_pick){ 0, 1, 0, 0, 0 }, 1);
        }
        wz_seq_finish(cache, &seq);
        wz_work_destroy(work);
        wz_cache_destroy(cache);
        wz_model_destroy(m);
        wz_backend_close(be);
    }
    json_decref(ref);
    free(json);
    free(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stories_logits),
        cmocka_unit_test(verl_logits),
        cmocka_unit_test(stories_greedy),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
