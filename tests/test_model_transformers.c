/* Guarantee: for every architecture, logits and the gradient of every tensor equal those of the transformers library in
 * float64 to a relative 1e-5; it reads what is saved here and computes the same logits, and what it saves is read here.
 * Prints the table of docs/models.md. Needs env WALTZ_PYTHON: a Python that can import transformers (5.0 or later),
 * torch and xxhash. */
#include <sys/wait.h>

#include "golden_help.h"

static const struct wz_config configs[] = {
    { .layers = 2,
      .dim = 32,
      .heads = 4,
      .kv_heads = 2,
      .head_dim = 8,
      .ffn = 64,
      .vocab = 48,
      .context = 128,
      .norm_eps = 1e-5f,
      .rope_theta = 500000,
      .rope = WZ_ROPE_PLAIN,
      .bos = 1,
      .eos = { 2, 3 },
      .n_eos = 2 },
    { .layers = 2,
      .dim = 48,
      .heads = 6,
      .kv_heads = 6,
      .head_dim = 8,
      .ffn = 40,
      .vocab = 51,
      .context = 64,
      .norm_eps = 1e-6f,
      .rope_theta = 10000,
      .rope = WZ_ROPE_LINEAR,
      .rope_factor = 2,
      .tied = true,
      .bos = -1,
      .eos = { 2 } },
    { .layers = 2,
      .dim = 48,
      .heads = 6,
      .kv_heads = 2,
      .head_dim = 8,
      .ffn = 40,
      .vocab = 51,
      .context = 256,
      .norm_eps = 1e-5f,
      .rope_theta = 500000,
      .rope = WZ_ROPE_LLAMA3,
      .rope_factor = 8,
      .rope_low = 1,
      .rope_high = 4,
      .rope_original = 32,
      .tied = true,
      .bos = 1,
      .eos = { 2 },
      .n_eos = 1 },
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
    line = wz_path("'%s' '%s/rows.py' %s >&2", program, scripts, args);
    int status = system(line);
    free(line);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) SKIP("%s has no transformers with torch and xxhash", program);
    if (status != 0) fail_msg("rows.py %s: status %d", args, status);
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
    if (!(sqrt(off / norm) < (m->type == WZ_BF16 && m->be->rounds ? 2e-2 : 1e-5)))
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

static struct golden_errors worst[WZ_COUNT(golden_rows)];

static void as_in_float64(void **state)
{
    need_python();
    char *dir = test_scratch("golden");

    python("'%s' full", dir);
    for (size_t i = 0; i < WZ_COUNT(golden_rows); i++)
        for (size_t b = 0; b < WZ_COUNT(golden_backends); b++) {
            struct golden_errors off =
                golden_check(dir, golden_rows[i], golden_backends[b].name, golden_backends[b].threads);
            worst[i].logits = fmax(worst[i].logits, off.logits);
            worst[i].gradient = fmax(worst[i].gradient, off.gradient);
        }
    for (size_t i = 0; i < WZ_COUNT(golden_rows); i++) {
        char *path = wz_path("%s/%s", dir, golden_rows[i]);
        struct wz_config c;
        struct wz_err err;
        assert_int_equal(wz_config_load(&c, path, &err), 0);
        print_message("# | %s | `%s` | %.1e | %.1e |\n", golden_rows[i], wz_arch_of(&c)->name, worst[i].logits,
                      worst[i].gradient);
        free(path);
    }
    free(dir);
}

static struct wz_config config_at(size_t i)
{
    struct wz_config c;
    struct wz_err err;

    if (i < WZ_COUNT(configs)) return configs[i];
    char *row = golden_row(golden_rows[i - WZ_COUNT(configs)]);
    assert_int_equal(wz_config_load(&c, row, &err), 0);
    free(row);
    return c;
}

static void they_read_ours(void **state)
{
    need_python();
    const size_t all = WZ_COUNT(configs) + WZ_COUNT(golden_rows);
    char *dir = test_scratch("ours");
    struct wz_backend *be = backend_of("ref", 1);
    struct wz_err err;
    int ids[N];

    for (int look = 0; look < 2; look++) {
        for (size_t i = 0; i < all; i++) {
            struct wz_config c = config_at(i);
            struct wz_model *m = wz_model_create(&c, WZ_F32, NULL, be);
            char *to = wz_path("%s/%zu", dir, i), *list = wz_path("%s/ids.json", to),
                 *raw = wz_path("%s/logits.f32", to);
            struct wz_buf text = { 0 };

            wz_model_init(m, 3);
            for (size_t j = 0; j < m->n_params; j++) m->params[j] *= 3;
            wz_model_commit(m, 1);
            ids_of(ids, N, c.vocab, 4);
            for (int t = 0; t < N; t++) wz_buf_printf(&text, "%c%d", t ? ',' : '[', ids[t]);
            wz_buf_str(&text, "]");
            if (look) compare(m, ids, raw);
            else if (wz_model_save(m, to, i % 2 * 10000, &err) < 0 ||
                     wz_file_write(list, text.data, text.len, &err) < 0)
                fail_msg("%s", err.text);
            wz_buf_finish(&text);
            wz_model_destroy(m);
            free(to);
            free(list);
            free(raw);
        }
        if (!look) python("logits '%s'", dir);
    }
    wz_backend_close(be);
    free(dir);
}

static void we_read_theirs(void **state)
{
    need_python();
    char *dir = test_scratch("theirs");
    struct wz_backend *be = backend_of("cpu", 1);
    struct wz_err err;
    int ids[N];

    python("save '%s'", dir);
    for (size_t r = 0; r < WZ_COUNT(golden_rows); r++) {
        char *row = wz_path("%s/%s", dir, golden_rows[r]), *json = wz_path("%s/ids.json", row),
             *raw = wz_path("%s/logits.f32", row);
        json_t *list = wz_json_load(json, &err);
        assert_int_equal(json_array_size(list), N);
        for (size_t i = 0; i < N; i++) ids[i] = (int)json_integer_value(json_array_get(list, i));
        for (int type = WZ_F32; type <= WZ_BF16; type++) { /* the folder is bf16: both hold the same values */
            struct wz_model *m = model_of(row, type, be);
            compare(m, ids, raw);
            wz_model_destroy(m);
        }
        json_decref(list);
        free(row);
        free(json);
        free(raw);
    }
    wz_backend_close(be);
    free(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_in_float64),
        cmocka_unit_test(they_read_ours),
        cmocka_unit_test(we_read_theirs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
