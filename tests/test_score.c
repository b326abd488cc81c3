/* Guarantees: waltz score answers every line in order, good or bad, with the numbers of an independent forward,
 * however the lines are grouped; waltz convert keeps them. */
#include "command_help.h"
#include "model_help.h"

static const struct wz_config config = { .layers = 2,
                                         .dim = 16,
                                         .heads = 4,
                                         .kv_heads = 2,
                                         .head_dim = 8,
                                         .ffn = 24,
                                         .vocab = 40,
                                         .context = 700,
                                         .norm_eps = 1e-5f,
                                         .rope_theta = 10000,
                                         .rope = WZ_ROPE_PLAIN,
                                         .tied = true,
                                         .bos = 1,
                                         .eos = { 2 },
                                         .n_eos = 1 };

static void add_ids(struct wz_buf *in, int n, uint64_t seed)
{
    int *ids = wz_alloc(sizeof(int) * (size_t)n);

    ids_of(ids, n, config.vocab, seed);
    wz_buf_str(in, "{\"ids\": [");
    for (int i = 0; i < n; i++) wz_buf_printf(in, "%s%d", i ? "," : "", ids[i]);
    wz_buf_str(in, "]}\n");
    free(ids);
}

static char *model_folder(void)
{
    char *dir = test_scratch("tiny");
    struct wz_backend *be = backend_of("ref", 1);
    struct wz_model *m = wz_model_create(&config, WZ_F32, NULL, be);
    struct wz_err err;

    wz_model_init(m, 5);
    if (wz_model_save(m, dir, 0, &err) < 0) fail_msg("%s", err.text);
    wz_model_destroy(m);
    wz_backend_close(be);
    return dir;
}

/* What a line gets among ninety others is what it gets alone; lines longer than a round are done in pieces. */
static void grouping(void **state)
{
    static const int lens[] = { 1, 2, 700, 30, 513, 512, 7, 699, 1, 90 };
    char *dir = model_folder(), words[512];
    struct wz_buf in = { 0 }, all = { 0 }, one = { 0 }, alone = { 0 };

    snprintf(words, sizeof words, "score %s --backend ref", dir);
    for (int i = 0; i < 90; i++) add_ids(&in, i < 13 ? lens[i % (int)WZ_COUNT(lens)] : 9, (uint64_t)i);
    assert_int_equal(command(wz_cmd_score, words, in.data, &all), 0);
    assert_int_equal(lines_in(&all), 90);
    const char *asked = in.data, *told = all.data;
    for (int i = 0; i < 90; i++) {
        const char *end = strchr(asked, '\n'), *stop = strchr(told, '\n');

        if (i < 14 || i == 89) {
            wz_buf_clear(&one);
            wz_buf_add(&one, asked, (size_t)(end - asked)); /* without its end: the last line may lack it */
            assert_int_equal(command(wz_cmd_score, words, one.data, &alone), 0);
            assert_true(alone.len == (size_t)(stop + 1 - told));
            assert_memory_equal(alone.data, told, alone.len);
        }
        asked = end + 1;
        told = stop + 1;
    }
    json_t *j = line_of(&all, 4);
    assert_int_equal(json_array_size(json_object_get(j, "logprobs")), 512);
    assert_int_equal(json_array_size(json_object_get(j, "argmax")), 513);
    json_decref(j);
    wz_buf_finish(&in);
    wz_buf_finish(&all);
    wz_buf_finish(&one);
    wz_buf_finish(&alone);
    free(dir);
}

static void bad_lines(void **state)
{
    static const struct {
        const char *line, *says;
    } lines[] = {
        { "{\"ids\": [1, 2, 3]}", NULL },
        { "", "line 2" },
        { "{\"ids\": [1, 40]}", "ids[1]" },
        { "{\"ids\": []}", "empty" },
        { "{\"ids\": [1, 2", "line 5" },
        { "{\"ids\": 3}", "expected" },
        { "[1, 2]", "expected" },
        { "{\"ids\": [1, -1]}", "ids[1]" },
        { "{\"ids\": [1, 2.5]}", "ids[1]" },
        { "{\"ids\": [1, 99999999999999999999]}", "line 10" },
        { "\xff\xfe", "line 11" },
        { "{\"ids\": [1, 2, 3]}", NULL },
    };
    char *dir = model_folder(), words[512];
    struct wz_buf in = { 0 }, out = { 0 };

    for (size_t i = 0; i < WZ_COUNT(lines); i++) wz_buf_printf(&in, "%s\n", lines[i].line);
    add_ids(&in, 701, 1);
    snprintf(words, sizeof words, "score %s --backend ref", dir);
    assert_int_equal(command(wz_cmd_score, words, in.data, &out), 1);
    assert_int_equal(lines_in(&out), WZ_COUNT(lines) + 1);
    for (size_t i = 0; i <= WZ_COUNT(lines); i++) {
        const char *says = i < WZ_COUNT(lines) ? lines[i].says : "context of 700";
        json_t *j = line_of(&out, (int)i);
        const char *error = json_string_value(json_object_get(j, "error"));

        if (says && (!error || !strstr(error, says)))
            fail_msg("line %zu should say \"%s\" but says: %s", i + 1, says, error ? error : "nothing");
        assert_true(says ? json_object_size(j) == 1 : json_array_size(json_object_get(j, "logprobs")) == 2);
        json_decref(j);
    }
    assert_int_equal(command(wz_cmd_score, words, "", &out), 0);
    assert_int_equal(out.len, 0);
    assert_int_equal(command(wz_cmd_score, "score /nowhere", "", &out), 1);
    assert_int_equal(command(wz_cmd_score, "score", "", &out), 2);
    assert_int_equal(command(wz_cmd_score, "score --help", "", &out), 0);
    assert_non_null(strstr(out.data, "usage: waltz score MODEL"));
    wz_buf_finish(&in);
    wz_buf_finish(&out);
    free(dir);
}

/* Finite weights whose logits overflow: an error by line, no number that is not JSON. */
static void logits_that_overflow(void **state)
{
    char *dir = test_scratch("overflow"), words[512];
    struct wz_backend *be = backend_of("ref", 1);
    struct wz_model *m = wz_model_create(&config, WZ_F32, NULL, be);
    struct wz_buf out = { 0 };
    struct wz_err err;

    wz_model_init(m, 5);
    for (int i = 0; i < config.dim; i++) m->layers[0].norm1[i] = 3e38f;
    assert_int_equal(wz_model_save(m, dir, 0, &err), 0);
    wz_model_destroy(m);
    wz_backend_close(be);
    snprintf(words, sizeof words, "score %s --backend ref", dir);
    assert_int_equal(command(wz_cmd_score, words, "{\"ids\": [1, 2, 3]}\n{\"ids\": [5]}\n{\"ids\": []}\n", &out), 1);
    assert_int_equal(lines_in(&out), 3);
    for (int i = 0; i < 2; i++) {
        json_t *j = line_of(&out, i);
        const char *error = json_string_value(json_object_get(j, "error"));
        assert_true(error && strstr(error, i ? "line 2: after ids[0]" : "line 1: after ids[0]") &&
                    strstr(error, "not finite"));
        json_decref(j);
    }
    snprintf(words, sizeof words, "generate %s --backend ref --max-tokens 3", dir);
    assert_int_equal(command(wz_cmd_generate, words, "{\"ids\": [1, 2, 3]}\n", &out), 1);
    json_t *j = line_of(&out, 0);
    const char *error = json_string_value(json_object_get(j, "error"));
    assert_true(error && strstr(error, "line 1") && strstr(error, "not finite"));
    json_decref(j);
    wz_buf_finish(&out);
    free(dir);
}

/* The trained model: scores and likeliest tokens as an independent float64 forward has them. */
static void reference(const char *model, const char *ref_path, double bound)
{
    struct wz_buf in = { 0 }, out = { 0 };
    struct wz_err err;
    json_t *ref = wz_json_load(ref_path, &err), *s;
    char words[512];
    size_t i;

    assert_non_null(ref);
    json_array_foreach(json_object_get(ref, "sequences"), i, s)
    {
        char *ids = json_dumps(json_object_get(s, "tokens"), 0);
        wz_buf_printf(&in, "{\"ids\": %s}\n", ids);
        free(ids);
    }
    snprintf(words, sizeof words, "score %s --threads 2", model);
    assert_int_equal(command(wz_cmd_score, words, in.data, &out), 0);
    json_array_foreach(json_object_get(ref, "sequences"), i, s)
    {
        json_t *got = line_of(&out, (int)i), *want = json_object_get(s, "logprob_of_next_token");

        assert_int_equal(json_array_size(json_object_get(got, "logprobs")), json_array_size(want));
        for (size_t t = 0; t < json_array_size(want); t++)
            assert_true(fabs(json_number_value(json_array_get(json_object_get(got, "logprobs"), t)) -
                             json_number_value(json_array_get(want, t))) < bound);
        assert_true(bound > 1e-4 || json_equal(json_object_get(got, "argmax"), json_object_get(s, "argmax")));
        json_decref(got);
    }
    assert_true(i > 0);
    json_decref(ref);
    wz_buf_finish(&in);
    wz_buf_finish(&out);
}

static void trained(void **state)
{
    char *dir = test_data("stories260k"), *ref = wz_path("%s/reference.json", dir), *dst = test_scratch("converted");
    static const struct {
        const char *options;
        double bound;
    } ways[] = { { "", 2e-5 }, { "--type f16 --shard 100000", 0.05 }, { "--type bf16", 0.2 } };
    struct wz_buf out = { 0 };
    char words[512];

    reference(dir, ref, 2e-5);
    for (size_t i = 0; i < WZ_COUNT(ways); i++) {
        snprintf(words, sizeof words, "convert %s %s %s", dir, dst, ways[i].options);
        assert_int_equal(command(wz_cmd_convert, words, "", &out), 0);
        reference(dst, ref, ways[i].bound);
    }
    snprintf(words, sizeof words, "convert %s %s", dst, dst);
    assert_int_equal(command(wz_cmd_convert, words, "", &out), 1);
    wz_buf_finish(&out);
    free(dir);
    free(ref);
    free(dst);
}

/* A GGUF of another program, its tokenizer included. */
static void from_gguf(void **state)
{
    char *src = test_data("llama2_tiny_random_gguf/llama-2-tiny-random.gguf"), *dst = test_scratch("from-gguf"),
         words[512];
    struct wz_buf a = { 0 }, b = { 0 };
    struct wz_err err;

    snprintf(words, sizeof words, "convert %s %s", src, dst);
    assert_int_equal(command(wz_cmd_convert, words, "", &a), 0);
    snprintf(words, sizeof words, "score %s --backend ref", src);
    assert_int_equal(command(wz_cmd_score, words, "{\"ids\": [1, 15043, 3186, 29991]}", &a), 0);
    snprintf(words, sizeof words, "score %s --backend ref", dst);
    assert_int_equal(command(wz_cmd_score, words, "{\"ids\": [1, 15043, 3186, 29991]}", &b), 0);
    assert_string_equal(a.data, b.data);

    struct wz_tokenizer *old = wz_tokenizer_load(src, &err), *new = wz_tokenizer_load(dst, &err);
    struct wz_ids x = { 0 }, y = { 0 };
    const char *text = "  Hello, world!\n\nTokens \xc3\xa9 \xf0\x9f\x99\x82";
    if (!old || !new) fail_msg("%s", err.text);
    assert_int_equal(wz_encode(old, text, strlen(text), &x, &err), 0);
    assert_int_equal(wz_encode(new, text, strlen(text), &y, &err), 0);
    assert_true(x.n == y.n && x.n > 5);
    assert_memory_equal(x.ids, y.ids, sizeof(int) * (size_t)x.n);
    wz_ids_finish(&x);
    wz_ids_finish(&y);
    wz_tokenizer_destroy(old);
    wz_tokenizer_destroy(new);
    wz_buf_finish(&a);
    wz_buf_finish(&b);
    free(src);
    free(dst);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(grouping), cmocka_unit_test(bad_lines), cmocka_unit_test(logits_that_overflow),
        cmocka_unit_test(trained),  cmocka_unit_test(from_gguf),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
