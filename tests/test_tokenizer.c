/* The promise: a text becomes the ids that the model's own tokenizer would give, from every kind of file that carries it, and
 * ids become that text again; what looks like a special token in a text stays text; a broken file is one sentence. */
#include "tokenizer_help.h"

static void encodes(const struct wz_tokenizer *tok, const char *text, const int *want, int n)
{
    struct wz_ids ids = {0};
    struct wz_buf back = {0};
    struct wz_err err = {""};

    if (wz_encode(tok, text, strlen(text), &ids, &err) < 0) fail_msg("%s: %s", text, err.text);
    check_ids(text, &ids, want, n);
    wz_decode(tok, ids.ids, ids.n, false, &back);
    assert_string_equal(back.data, text);
    wz_ids_finish(&ids);
    wz_buf_finish(&back);
}

#define ENCODES(tok, text, ...) \
    do { \
        const int want[] = {__VA_ARGS__}; \
        encodes(tok, text, want, (int)WZ_COUNT(want)); \
    } while (0)

static void tiny_is_worked_out_by_hand(void **state)
{
    for (int pairs = 0; pairs < 2; pairs++) {
        struct wz_tokenizer *tok = tiny_load(pairs);
        assert_int_equal(wz_tokenizer_vocab(tok), T_VOCAB);
        assert_int_equal(wz_tokenizer_bos(tok), T_BOS);
        assert_int_equal(wz_tokenizer_eos(tok), T_EOS);
        assert_int_equal(wz_tokenizer_id(tok, "<end>"), T_END);
        assert_int_equal(wz_tokenizer_id(tok, "no such"), -1);
        ENCODES(tok, "hello world", T_HELLO, T_WORLD);
        ENCODES(tok, "12", '1', '2');                                 /* digits stand alone before anything merges */
        ENCODES(tok, "\xc3\xa9", T_E_ACUTE);
        ENCODES(tok, "\xf0\x9f\x98\x80", 0xf0, 0x9f, 0x98, 0x80);
        ENCODES(tok, "hell<end>", T_HELLO - 1, '<', 'e', 'n', 'd', '>');
        ENCODES(tok, "hello\n\n", T_HELLO, T_LF2);
        ENCODES(tok, "\n\nworld", '\n', '\n', 'w', 256 + 5, 256 + 7);      /* the last blank before a word stands alone */
        ENCODES(tok, "hhello", 'h', T_HELLO);
        encodes(tok, "", NULL, 0);
        wz_tokenizer_destroy(tok);
    }
}

static void invalid_utf8_names_the_byte(void **state)
{
    struct wz_tokenizer *tok = tiny_load(false);
    struct wz_ids ids = {0};
    struct wz_err err = {""};

    wz_ids_add(&ids, 7);
    assert_int_equal(wz_encode(tok, "hello \xff", 7, &ids, &err), -1);
    assert_non_null(strstr(err.text, "byte 6"));
    assert_int_equal(ids.n, 1);
    wz_ids_finish(&ids);
    wz_tokenizer_destroy(tok);
}

static void stream_gives_whole_characters(void **state)
{
    struct wz_tokenizer *tok = tiny_load(false);
    const int smile[] = {'a', 0xf0, 0x9f, 0x98, 0x80, T_END, T_E_ACUTE}, bad[] = {0xf0, 0x9f, 'x', 0x80, T_HELLO, 0xc3};
    struct wz_stream stream = {0};
    struct wz_buf out = {0};

    for (size_t i = 0; i < WZ_COUNT(smile); i++) {
        wz_stream_add(tok, &stream, smile[i], &out);
        assert_int_equal(wz_utf8_valid(out.data, out.len), out.len);
        assert_int_equal(out.len, i < 4 ? 1 : i < 6 ? 5 : 7);
    }
    wz_stream_flush(&stream, &out);
    assert_string_equal(out.data, "a\xf0\x9f\x98\x80\xc3\xa9");
    wz_buf_clear(&out);
    for (size_t i = 0; i < WZ_COUNT(bad); i++) wz_stream_add(tok, &stream, bad[i], &out);
    assert_string_equal(out.data, "\xef\xbf\xbdx\xef\xbf\xbdhello");
    wz_stream_flush(&stream, &out);
    assert_string_equal(out.data, "\xef\xbf\xbdx\xef\xbf\xbdhello\xef\xbf\xbd");
    wz_buf_finish(&out);
    wz_tokenizer_destroy(tok);
}

static void specials_are_decoded_when_asked(void **state)
{
    struct wz_tokenizer *tok = tiny_load(false);
    const int ids[] = {T_BOS, T_HELLO, T_END, T_VOCAB + 5, -1};
    struct wz_buf out = {0};

    wz_decode(tok, ids, 5, false, &out);
    assert_string_equal(out.data, "hello");
    wz_buf_clear(&out);
    wz_decode(tok, ids, 5, true, &out);
    assert_string_equal(out.data, "<|begin_of_text|>hello<end>");
    wz_buf_finish(&out);
    wz_tokenizer_destroy(tok);
}

/* ---- the vectors of the test data ---- */

static const char separator[] = "\n__ggml_vocab_test__\n";

/* PATH.inp holds texts between separator lines, PATH.out a line of ids for each of the first 46. */
static void llamacpp_vectors(const struct wz_tokenizer *tok, const char *path)
{
    char *in_path = wz_path("%s.inp", path), *out_path = wz_path("%s.out", path);
    struct wz_map in, out;
    struct wz_err err = {""};
    int seen = 0;

    assert_int_equal(wz_map_open(&in, in_path, &err), 0);
    assert_int_equal(wz_map_open(&out, out_path, &err), 0);
    const char *s = (const char *)in.bytes, *end = s + in.len, *line = (const char *)out.bytes, *line_end = line + out.len;
    for (; seen < 46; seen++) {
        const char *stop = memmem(s, (size_t)(end - s), separator, sizeof separator - 1);
        const char *eol = memchr(line, '\n', (size_t)(line_end - line));
        struct wz_ids want = {0}, got = {0};
        struct wz_buf back = {0};
        char *text = strndup(s, (size_t)((stop ? stop : end) - s)), *copy, *p;
        assert_true(stop || seen == 45);
        if (!eol) eol = line_end;
        p = copy = strndup(line, (size_t)(eol - line));
        for (char *next; strtol(p, &next, 10), next != p; p = next) wz_ids_add(&want, (int)strtol(p, NULL, 10));
        if (wz_encode(tok, text, strlen(text), &got, &err) < 0) fail_msg("%s", err.text);
        check_ids(text, &got, want.ids, want.n);
        wz_decode(tok, got.ids, got.n, false, &back);
        assert_string_equal(back.data, text);
        free(text);
        free(copy);
        wz_ids_finish(&want);
        wz_ids_finish(&got);
        wz_buf_finish(&back);
        line = eol + 1;
        if (stop) s = stop + sizeof separator - 1;
    }
    wz_map_close(&in);
    wz_map_close(&out);
    free(in_path);
    free(out_path);
}

static struct wz_tokenizer *load(const char *path)
{
    struct wz_err err = {""};
    struct wz_tokenizer *tok = wz_tokenizer_load(path, &err);

    if (!tok) fail_msg("%s", err.text);
    return tok;
}

/* Loads the file, tries the vectors, saves it as a hub folder, tries that too. */
static void vectors(const char *file, const char *vector, int vocab)
{
    char *path = test_data(file), *vector_path = test_data(vector), *dir = test_scratch("saved");
    struct wz_tokenizer *tok = load(path);
    struct wz_err err = {""};

    vector_path[strlen(vector_path) - strlen(".inp")] = 0;
    assert_int_equal(wz_tokenizer_vocab(tok), vocab);
    llamacpp_vectors(tok, vector_path);
    if (wz_tokenizer_save(tok, dir, &err) < 0) fail_msg("%s", err.text);
    struct wz_tokenizer *again = load(dir);
    assert_int_equal(wz_tokenizer_vocab(again), vocab);
    assert_int_equal(wz_tokenizer_bos(again), wz_tokenizer_bos(tok));
    assert_int_equal(wz_tokenizer_eos(again), wz_tokenizer_eos(tok));
    llamacpp_vectors(again, vector_path);
    wz_tokenizer_destroy(again);
    wz_tokenizer_destroy(tok);
    free(path);
    free(vector_path);
    free(dir);
}

static void llama3_from_json(void **state)
{
    vectors("tok_llama3/tokenizer.json", "tok_llama3/ggml-vocab-llama-bpe.gguf.inp", 128256);
}

static void llama3_from_ranks(void **state)
{
    vectors("tok_llama3/tokenizer.model", "tok_llama3/ggml-vocab-llama-bpe.gguf.inp", 128256);
}

static void gpt2_from_gguf(void **state)
{
    vectors("tok_gpt2/ggml-vocab-gpt-2.gguf", "tok_gpt2/ggml-vocab-gpt-2.gguf.inp", 50257);
}

static void llama2_from_model(void **state)
{
    vectors("tok_llama2/tokenizer.model", "tok_llama2/ggml-vocab-llama-spm.gguf.inp", 32000);
}

static void llama2_from_gguf(void **state)
{
    vectors("tok_llama2/ggml-vocab-llama-spm.gguf", "tok_llama2/ggml-vocab-llama-spm.gguf.inp", 32000);
}

static void llama2_from_bin(void **state)
{
    vectors("tok_llama2/tokenizer.bin", "tok_llama2/ggml-vocab-llama-spm.gguf.inp", 32000);
}

/* With two arguments, MODEL and DIR, the program saves the tokenizer there instead: tests/reference/tokenizer.py. */
int main(int argc, char **argv)
{
    if (argc == 3) {
        struct wz_err err;
        struct wz_tokenizer *tok = wz_tokenizer_load(argv[1], &err);
        if (tok && wz_tokenizer_save(tok, argv[2], &err) == 0) return 0;
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }

    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tiny_is_worked_out_by_hand),
        cmocka_unit_test(invalid_utf8_names_the_byte),
        cmocka_unit_test(stream_gives_whole_characters),
        cmocka_unit_test(specials_are_decoded_when_asked),
        cmocka_unit_test(llama3_from_json),
        cmocka_unit_test(llama3_from_ranks),
        cmocka_unit_test(gpt2_from_gguf),
        cmocka_unit_test(llama2_from_model),
        cmocka_unit_test(llama2_from_gguf),
        cmocka_unit_test(llama2_from_bin),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
