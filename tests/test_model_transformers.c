/* Guarantee: the transformers library reads what is saved here and computes the same logits, and what it saves is read
 * here. Needs env WALTZ_PYTHON: a Python that can import transformers (4.43 or later) and torch. */
#include <sys/wait.h>

#include "model_help.h"

static const struct wz_config configs[] = {
    { 2, 32, 4, 2, 8, 64, 48, 128, 1e-5f, 500000, WZ_ROPE_PLAIN, 0, 0, 0, 0, false, 1, { 2, 3 }, 2 },
    { 2, 48, 6, 6, 8, 40, 51, 64, 1e-6f, 10000, WZ_ROPE_LINEAR, 2, 0, 0, 0, true, -1, { 2 }, 0 },
    { 2, 48, 6, 2, 8, 40, 51, 256, 1e-5f, 500000, WZ_ROPE_LLAMA3, 8, 1, 4, 32, true, 1, { 2 }, 1 },
};
enum { N = 40 };

static void python(const char *fmt, ...) WZ_PRINTF(1, 2);
static void python(const char *fmt, ...)
{
    const char *program = getenv("WALTZ_PYTHON"), *scripts = getenv("WALTZ_REFERENCE");
    char args[2048], *line;
    va_list ap;

    assert_non_null(scripts);
    va_start(ap, fmt);
    vsnprintf(args, sizeof args, fmt, ap);
    va_end(ap);
    line = wz_path("'%s' '%s/hub.py' %s >&2", program, scripts, args);
    int status = system(line);
    free(line);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) SKIP("%s has no transformers with torch", program);
    if (status != 0) fail_msg("hub.py %s: status %d", args, status);
}

/* The model's logits for the ids against the file's. A bf16 model rounds what its matrices meet. */
static void compare(struct wz_model *m, const int *ids, const char *path)
{
    struct wz_cache *cache = wz_cache_create(m, 10, 4);
    struct wz_work *work = wz_work_create(m, N, false);
    struct wz_seq seq = { 0 };
    struct wz_map map;
    struct wz_err err;
    size_t count = (size_t)(N * m->config.vocab);
    float *got = wz_alloc(count * sizeof(float)), *want = wz_alloc(count * sizeof(float));
    double off = 0, norm = 0;
    int n = N;

    if (wz_map_open(&map, path, &err) < 0) fail_msg("%s", err.text);
    assert_int_equal(map.len, count * sizeof(float));
    memcpy(want, map.bytes, map.len);
    wz_head_logits(m->be, got, run(m, cache, work, &seq, 1, ids, &n), &m->head, N);
    for (size_t i = 0; i < count; i++) {
        off += pow((double)got[i] - (double)want[i], 2);
        norm += pow((double)want[i], 2);
    }
    if (!(sqrt(off / norm) < (m->type == WZ_BF16 && m->be->rounds ? 1e-2 : 1e-5)))
        fail_msg("%s: logits are off by a relative %g", path, sqrt(off / norm));
    wz_map_close(&map);
    wz_seq_finish(cache, &seq);
    wz_work_destroy(work);
    wz_cache_destroy(cache);
    free(got);
    free(want);
}

static void need_python(void)
{
    if (!getenv("WALTZ_PYTHON")) SKIP("WALTZ_PYTHON is not set");
}

static void they_read_ours(void **state)
{
    need_python();
    char *dir = test_scratch("ours"), *ids_path = test_scratch("ours.json"), *out = test_scratch("ours.f32");
    struct wz_backend *be = backend_of("ref", 1);
    struct wz_err err;

    for (size_t i = 0; i < WZ_COUNT(configs); i++)
        for (size_t shard = 0; shard <= 10000; shard += 10000) {
            struct wz_model *m = wz_model_create(&configs[i], WZ_F32, NULL, be);
            struct wz_buf text = { 0 };
            int ids[N];

            wz_model_init(m, 3);
            for (size_t j = 0; j < m->n_params; j++) m->params[j] *= 3;
            wz_model_commit(m, 1);
            if (wz_model_save(m, dir, shard, &err) < 0) fail_msg("%s", err.text);
            ids_of(ids, N, configs[i].vocab, 4);
            for (int t = 0; t < N; t++) wz_buf_printf(&text, "%c%d", t ? ',' : '[', ids[t]);
            wz_buf_str(&text, "]");
            assert_int_equal(wz_file_write(ids_path, text.data, text.len, &err), 0);
            python("logits '%s' '%s' '%s'", dir, ids_path, out);
            compare(m, ids, out);
            wz_buf_finish(&text);
            wz_model_destroy(m);
        }
    wz_backend_close(be);
    free(dir);
    free(ids_path);
    free(out);
}

static void we_read_theirs(void **state)
{
    need_python();
    char *dir = test_scratch("theirs"), *stem = test_scratch("theirs-out"), *json = wz_path("%s.json", stem),
         *raw = wz_path("%s.f32", stem);
    struct wz_backend *be = backend_of("cpu", 1);
    struct wz_err err;
    int ids[N];

    python("make '%s' '%s'", dir, stem);
    json_t *list = wz_json_load(json, &err);
    assert_int_equal(json_array_size(list), N);
    for (size_t i = 0; i < N; i++) ids[i] = (int)json_integer_value(json_array_get(list, i));
    for (int type = WZ_F32; type <= WZ_BF16; type++) { /* the folder is bf16: both hold the same values */
        struct wz_model *m = model_of(dir, type, be);
        compare(m, ids, raw);
        wz_model_destroy(m);
    }
    json_decref(list);
    wz_backend_close(be);
    free(dir);
    free(stem);
    free(json);
    free(raw);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(they_read_ours),
        cmocka_unit_test(we_read_theirs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
