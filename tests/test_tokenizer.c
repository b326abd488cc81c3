/* Guarantee: a text becomes the ids that the model's own tokenizer would give, from every kind of file that
 * carries it, and ids become that text again; what looks like a special token in a text stays text; a broken file is
 * one error message. */
#include "tokenizer_help.h"

#include <pthread.h>

static void encodes(const struct wz_tokenizer *tok, const char *text, const int *want, int n)
{
    struct wz_ids ids = { 0 };
    struct wz_buf back = { 0 };
    struct wz_err err = { "" };

    if (wz_encode(tok, text, strlen(text), &ids, &err) < 0) fail_msg("%s: %s", text, err.text);
    check_ids(text, &ids, want, n);
    wz_decode(tok, ids.ids, ids.n, false, &back);
    assert_string_equal(back.data, text);
    wz_ids_finish(&ids);
    wz_buf_finish(&back);
}

#define ENCODES(tok, text, ...)                        \
    do {                                               \
        const int want[] = { __VA_ARGS__ };            \
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
        ENCODES(tok, "12", '1', '2'); /* digits stand alone before anything merges */
        ENCODES(tok, "\xc3\xa9", T_E_ACUTE);
        ENCODES(tok, "\xf0\x9f\x98\x80", 0xf0, 0x9f, 0x98, 0x80);
        ENCODES(tok, "hell<end>", T_HELLO - 1, '<', 'e', 'n', 'd', '>');
        ENCODES(tok, "hello\n\n", T_HELLO, T_LF2);
        ENCODES(tok, "\n\nworld", '\n', '\n', 'w', 256 + 5, 256 + 7); /* the last blank before a word stands alone */
        ENCODES(tok, "hhello", 'h', T_HELLO);
        encodes(tok, "", NULL, 0);
        wz_tokenizer_destroy(tok);
    }
}

/* Characters without a token are one unknown token each, or one for all that stand together. */
static void unknown_characters_are_fused_or_not(void **state)
{
    for (int fuse = 0; fuse < 2; fuse++) {
        const int want[] = { 0, 0, 1, 0 };
        char *json =
            wz_path("{\"added_tokens\": [], \"model\": {\"type\": \"BPE\", \"unk_token\": \"?\", \"fuse_unk\": %s, "
                    "\"vocab\": {\"?\": 0, \"a\": 1}, \"merges\": []}}",
                    fuse ? "true" : "false");
        struct wz_ids ids = { 0 };
        struct wz_err err;
        struct wz_tokenizer *tok = load_text("unk.json", json, strlen(json), &err);
        if (!tok || wz_encode(tok, "xyaz", 4, &ids, &err) < 0) fail_msg("%s", err.text);
        check_ids("xyaz", &ids, want + fuse, 4 - fuse);
        wz_ids_finish(&ids);
        wz_tokenizer_destroy(tok);
        free(json);
    }
}

static void invalid_utf8_names_the_byte(void **state)
{
    struct wz_tokenizer *tok = tiny_load(false);
    struct wz_ids ids = { 0 };
    struct wz_err err = { "" };

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
    const int smile[] = { 'a', 0xf0, 0x9f, 0x98, 0x80, T_END, T_E_ACUTE },
              bad[] = { 0xf0, 0x9f, 'x', 0x80, T_HELLO, 0xc3 };
    struct wz_stream stream = { 0 };
    struct wz_buf out = { 0 };

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
    const int ids[] = { T_BOS, T_HELLO, T_END, T_VOCAB + 5, -1 };
    struct wz_buf out = { 0 };

    wz_decode(tok, ids, 5, false, &out);
    assert_string_equal(out.data, "hello");
    wz_buf_clear(&out);
    wz_decode(tok, ids, 5, true, &out);
    assert_string_equal(out.data, "<|begin_of_text|>hello<end>");
    wz_buf_finish(&out);
    wz_tokenizer_destroy(tok);
}

/* ---- SentencePiece, by hand ------------------------------------------------------------------------------- */

struct tiny_piece {
    const char *text;
    float score;
};

/* A llama2.c .bin: unknown, BOS, EOS, the 256 bytes, then these from id 259. */
static void bin_of(struct wz_buf *out, const struct tiny_piece *pieces, int n)
{
    static const char *const first[] = { "<unk>", "\n<s>\n", "\n</s>\n" };

    wz_buf_add(out, "\x0a\0\0", 4);
    for (int i = 0; i < 259 + n; i++) {
        char byte[8];
        snprintf(byte, sizeof byte, "<0x%02X>", (unsigned)(i - 3) & 0xff);
        struct tiny_piece p = i < 3     ? (struct tiny_piece){ first[i], 0 }
                              : i < 259 ? (struct tiny_piece){ byte, 0 }
                                        : pieces[i - 259];
        int32_t len = (int32_t)strlen(p.text);
        wz_buf_add(out, &p.score, 4);
        wz_buf_add(out, &len, 4);
        wz_buf_str(out, p.text);
    }
}

static void sentencepiece_merges_by_score(void **state)
{
    /* 259 " a", 260 "ab", 261 " ab", 262 "bb", 263 "abb", 264 " ", 265 "a", 266 "b", 267 "  " */
    static const struct tiny_piece pieces[] = { { " a", -3 }, { "ab", -1 },  { " ab", -4 },
                                                { "bb", -2 }, { "abb", -9 }, { " ", -20 },
                                                { "a", -21 }, { "b", -22 },  { "  ", -1e9f } };
    struct wz_buf b = { 0 };
    struct wz_err err = { "" };

    bin_of(&b, pieces, (int)WZ_COUNT(pieces));
    struct wz_tokenizer *tok = load_text("tiny.bin", b.data, b.len, &err);
    if (!tok) fail_msg("%s", err.text);
    assert_int_equal(wz_tokenizer_bos(tok), 1);
    assert_int_equal(wz_tokenizer_eos(tok), 2);
    assert_int_equal(wz_tokenizer_id(tok, "</s>"), 2);
    ENCODES(tok, "ab", 261);                   /* a blank is put in front, and not given back */
    ENCODES(tok, "abb", 261, 266);             /* "ab" before "bb", then " ab" before "abb" */
    ENCODES(tok, "a bbb", 259, 264, 262, 266); /* the leftmost of two equal ones */
    ENCODES(tok, "  a", 267, 259);             /* repeated blanks stay */
    ENCODES(tok, "a\xc3\xa9\n", 259, 3 + 0xc3, 3 + 0xa9, 3 + '\n');
    ENCODES(tok, "</s>", 264, 3 + '<', 3 + '/', 3 + 's', 3 + '>');
    ENCODES(tok, "<0x41>", 264, 3 + '<', 3 + '0', 3 + 'x', 3 + '4', 3 + '1', 3 + '>');
    encodes(tok, "", NULL, 0);

    struct wz_stream stream = { 0 };
    struct wz_buf out = { 0 };
    const int ids[] = { 1, 261, 3 + 0xc3, 3 + 0xa9, 261, 2 };
    for (size_t i = 0; i < WZ_COUNT(ids); i++) wz_stream_add(tok, &stream, ids[i], &out);
    assert_string_equal(out.data, "ab\xc3\xa9 ab");
    wz_buf_finish(&out);
    wz_buf_finish(&b);
    wz_tokenizer_destroy(tok);
}

/* ---- long texts, several threads -------------------------------------------------------------------------- */

enum { LONG = 200000 };

/* Quadratic work would take hours here. Powers of two: each merge doubles what one id holds. */
static void long_texts_end(void **state)
{
    struct tiny_piece pieces[] = { { " ", -20 }, { "a", 0 }, { "aa", -1 }, { "aaaa", -2 }, { "aaaaaaaa", -3 } };
    struct wz_buf b = { 0 }, text = { 0 }, back = { 0 };
    struct wz_ids ids = { 0 };
    struct wz_err err = { "" };

    bin_of(&b, pieces, (int)WZ_COUNT(pieces));
    struct wz_tokenizer *spm = load_text("long.bin", b.data, b.len, &err), *bpe = tiny_load(false);
    assert_non_null(spm);
    for (int i = 0; i < LONG; i++) wz_buf_str(&text, "a");
    assert_int_equal(wz_encode(spm, text.data, text.len, &ids, &err), 0);
    assert_int_equal(ids.n, 1 + LONG / 8);
    ids.n = 0;
    assert_int_equal(wz_encode(bpe, text.data, text.len, &ids, &err), 0);
    assert_int_equal(ids.n, LONG);
    for (int i = 0; i < LONG; i++) text.data[i] = "l \n"[i % 977 == 0 ? 0 : i % 3 ? 1 : 2];
    ids.n = 0;
    assert_int_equal(wz_encode(bpe, text.data, text.len, &ids, &err), 0);
    wz_decode(bpe, ids.ids, ids.n, false, &back);
    assert_int_equal(back.len, text.len);
    assert_memory_equal(back.data, text.data, text.len);
    wz_ids_finish(&ids);
    wz_buf_finish(&b);
    wz_buf_finish(&text);
    wz_buf_finish(&back);
    wz_tokenizer_destroy(spm);
    wz_tokenizer_destroy(bpe);
}

static const struct wz_tokenizer *shared;

static void *encode_again(void *arg)
{
    static const int want[] = { T_HELLO, T_WORLD, '1', '2', T_E_ACUTE };

    for (int i = 0; i < 500; i++) {
        struct wz_ids ids = { 0 };
        struct wz_err err;
        if (wz_encode(shared, "hello world12\xc3\xa9", 15, &ids, &err) < 0 || ids.n != 5 ||
            memcmp(ids.ids, want, sizeof want))
            return arg;
        wz_ids_finish(&ids);
    }
    return NULL;
}

static void threads_share_a_tokenizer(void **state)
{
    struct wz_tokenizer *tok = tiny_load(false);
    pthread_t threads[4];
    void *failed;

    shared = tok;
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&threads[i], NULL, encode_again, "differs"), 0);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_join(threads[i], &failed), 0);
        assert_null(failed);
    }
    wz_tokenizer_destroy(tok);
}

static void whole_pieces_can_go_before_merges(void **state)
{
    struct wz_buf b = { 0 };
    struct wz_err err = { "" };

    /* "hih" is a piece that no merge reaches. */
    for (int ignore = 0; ignore < 2; ignore++) {
        wz_buf_clear(&b);
        wz_buf_printf(
            &b,
            "{\"added_tokens\": [{\"id\": 4, \"content\": \"zz\", \"special\": false}], \"pre_tokenizer\": {\"type\": "
            "\"ByteLevel\", \"add_prefix_space\": false}, \"model\": {\"ignore_merges\": %s, \"vocab\": {\"h\": 0, "
            "\"i\": 1, "
            "\"hi\": 2, \"hih\": 3, \"z\": 5}, \"merges\": [\"h i\"]}}",
            ignore ? "true" : "false");
        struct wz_tokenizer *tok = load_text("whole.json", b.data, b.len, &err);
        if (!tok) fail_msg("%s", err.text);
        if (ignore) ENCODES(tok, "hih", 3);
        else ENCODES(tok, "hih", 2, 0);
        ENCODES(tok, "hizzzhi", 2, 4, 5, 2); /* an added piece that is not special is taken out first */
        struct wz_ids ids = { 0 };
        assert_int_equal(wz_encode(tok, "hix", 3, &ids, &err), -1);
        assert_non_null(strstr(err.text, "\"x\" (U+0078)"));
        assert_int_equal(wz_encode(tok, "hi hi", 5, &ids, &err),
                         -1); /* no blank either; what was begun is taken back */
        assert_int_equal(ids.n, 0);
        wz_ids_finish(&ids);
        wz_tokenizer_destroy(tok);
    }
    wz_buf_finish(&b);
}

/* ---- files that are broken -------------------------------------------------------------------------------- */

#define MODEL "{\"model\": {\"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2}, \"merges\": "

static void broken_files_are_an_error(void **state)
{
    static const struct {
        const char *name, *bytes, *says;
    } rows[] = {
        { "x.json", "", "not valid JSON" },
        { "x.json", "{\"model\": ", "x.json:1:" },
        { "x.json", "{}", "no object \"model\"" },
        { "x.json", "[1]", "no object \"model\"" },
        { "x.json", "{\"model\": {\"type\": \"Unigram\"}}", "expected BPE, got \"Unigram\"" },
        { "x.json", "{\"model\": {\"vocab\": [], \"merges\": []}}", "vocab" },
        { "x.json", "{\"model\": {\"vocab\": {}, \"merges\": []}}", "no tokens" },
        { "x.json", "{\"model\": {\"vocab\": {\"a\": 0}}}", "merges" },
        { "x.json", "{\"model\": {\"vocab\": {\"a\": -1}, \"merges\": []}}", "\"a\"" },
        { "x.json", "{\"model\": {\"vocab\": {\"a\": 99999999999}, \"merges\": []}}", "\"a\"" },
        { "x.json", "{\"model\": {\"vocab\": {\"a\": \"0\"}, \"merges\": []}}", "\"a\"" },
        { "x.json", "{\"model\": {\"vocab\": {\"a\": 0, \"b\": 0}, \"merges\": []}}", "id 0 has two pieces" },
        { "x.json", "{\"model\": {\"vocab\": {\"a\": 0, \"a\": 1}, \"merges\": []}}", "duplicate" },
        { "x.json", "{\"model\": {\"vocab\": {\"\": 0}, \"merges\": []}}", "piece 0" },
        { "x.json", MODEL "[\"a c\"]}}", "merge 0, \"a\" and \"c\": the second is not a piece" },
        { "x.json", MODEL "[\"a b\", [\"c\", \"a\"]]}}", "merge 1, \"c\" and \"a\": the first" },
        { "x.json", MODEL "[\"b a\"]}}", "both together" },
        { "x.json", MODEL "[\"ab\"]}}", "merge 0" },
        { "x.json", MODEL "[\"a b ab\"]}}", "merge 0" },
        { "x.json", MODEL "[7]}}", "merge 0" },
        { "x.json", MODEL "[]}, \"pre_tokenizer\": {\"type\": \"Mecab\"}}",
          "pre-tokenizer: expected Split, ByteLevel, Metaspace, Digits, Punctuation, Whitespace, WhitespaceSplit, "
          "CharDelimiterSplit, Sequence, got unsupported type Mecab" },
        { "x.json", MODEL "[]}, \"normalizer\": {\"type\": \"Nmt\"}}", "unsupported type Nmt" },
        { "x.json", MODEL "[]}, \"normalizer\": {}}", "has no type" },
        { "x.json",
          MODEL "[]}, \"pre_tokenizer\": {\"type\": \"Split\", \"behavior\": \"Isolated\", \"pattern\": {\"Regex\": "
                "\"(a\"}}}",
          "\"(a\"" },
        { "x.json", MODEL "[]}, \"pre_tokenizer\": {\"type\": \"Split\", \"behavior\": \"Isolated\"}}",
          "Split: pattern: expected" },
        { "x.json", MODEL "[]}, \"pre_tokenizer\": {\"type\": \"Split\", \"behavior\": \"Lost\"}}", "behavior" },
        { "x.json", MODEL "[]}, \"added_tokens\": [{\"id\": 2, \"content\": \"c\"}]}", "id 2 has two pieces" },
        { "x.json", MODEL "[]}, \"added_tokens\": [{\"id\": 3, \"content\": \"a\"}]}", "two ids" },
        { "x.json", MODEL "[]}, \"added_tokens\": [{\"content\": \"c\"}]}", "added token" },
        { "x.model", "QQ== 0\nQg==\n", "x.model:2:" },
        { "x.model", "QQ== 0\nQ!== 1\n", "x.model:2:" },
        { "x.model", "QQ== 0\nQg== x\n", "x.model:2:" },
        { "x.model", "QQ== 0\nQg== 0\n", "id 0 has two pieces" },
        { "x.model", "QQ== 0\nQQ== 1\n", "two ids" },
        { "x.model", "QQ== 9999999\n", "9999999" },
        { "x.model", "\x0a\x05\x0a\x09", "SentencePiece" },
        { "x.model", "\x0a\x03\x0a\x01q\x0a\x03\x0a\x01r", "expected BPE (2), got 1" },
        { "x.bin", "\x07", "tokenizer" },
        { "x.bin", "", "tokenizer" },
        { "x.bin", "\x07\x01\x01\x01short", "truncated" },
        { "x.gguf", "GGUF", "x.gguf" },
    };

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        struct wz_err err = { "" };
        size_t n = strlen(rows[i].bytes);
        struct wz_tokenizer *tok = load_text(rows[i].name, rows[i].bytes, n, &err);
        if (tok) fail_msg("%s loaded: %s", rows[i].name, rows[i].bytes);
        if (!strstr(err.text, rows[i].says))
            fail_msg("%s: \"%s\" says not \"%s\"", rows[i].bytes, err.text, rows[i].says);
    }
}

/* Cut anywhere, a .bin and a rank file are refused or (at the end of a record) are a smaller vocabulary. */
static void cut_off_is_refused(void **state)
{
    static const struct tiny_piece pieces[] = { { " a", -3 }, { "ab", -1 } };
    struct wz_buf b = { 0 };
    int refused = 0;

    bin_of(&b, pieces, 2);
    for (size_t n = 0; n < b.len; n++) {
        struct wz_err err = { "" };
        struct wz_tokenizer *tok = load_text("cut.bin", b.data, n, &err);
        assert_true(tok || err.text[0]);
        if (!tok) refused++;
        wz_tokenizer_destroy(tok);
    }
    assert_in_range(refused, b.len - 300, b.len - 200); /* 261 records end somewhere */
    wz_buf_finish(&b);
}

/* ---- the vectors of the test data ------------------------------------------------------------------------- */

static const char separator[] = "\n__ggml_vocab_test__\n";

/* PATH.inp holds texts between separator lines, PATH.out a line of ids for each of the first 46. */
static void llamacpp_vectors(const struct wz_tokenizer *tok, const char *path)
{
    char *in_path = wz_path("%s.inp", path), *out_path = wz_path("%s.out", path);
    struct wz_map in, out;
    struct wz_err err = { "" };
    int seen = 0;

    assert_int_equal(wz_map_open(&in, in_path, &err), 0);
    assert_int_equal(wz_map_open(&out, out_path, &err), 0);
    const char *s = (const char *)in.bytes, *end = s + in.len, *line = (const char *)out.bytes,
               *line_end = line + out.len;
    for (; seen < 46; seen++) {
        const char *stop = memmem(s, (size_t)(end - s), separator, sizeof separator - 1);
        const char *eol = memchr(line, '\n', (size_t)(line_end - line));
        struct wz_ids want = { 0 }, got = { 0 };
        struct wz_buf back = { 0 };
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
    struct wz_err err = { "" };
    struct wz_tokenizer *tok = wz_tokenizer_load(path, &err);

    if (!tok) fail_msg("%s", err.text);
    return tok;
}

/* Loads the file, tries the vectors, saves it as a hub folder, tries that too. */
static void vectors(const char *file, const char *vector, int vocab)
{
    char *path = test_data(file), *vector_path = test_data(vector), *dir = test_scratch("saved");
    struct wz_tokenizer *tok = load(path);
    struct wz_err err = { "" };

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

/* tok512_vectors.jsonl: no repeated blanks in it, so .model and .bin agree. Saved, they say the same. */
static void tok512_from(const char *file)
{
    char *path = test_data(file), *rows = test_data("stories260k/tok512_vectors.jsonl"), *dir = test_scratch("saved"),
         *text = NULL;
    struct wz_tokenizer *tok = load(path);
    struct wz_err err;
    size_t cap = 0;
    int seen = 0;
    FILE *f = fopen(rows, "r");

    assert_int_equal(wz_tokenizer_save(tok, dir, &err), 0);
    struct wz_tokenizer *again = load(dir);
    for (ssize_t n; (n = getline(&text, &cap, f)) >= 0; seen++) {
        json_t *row = wz_json_parse(text, (size_t)n, rows, &err), *item;
        struct wz_ids want = { 0 };
        size_t i;
        json_array_foreach(json_object_get(row, "ids"), i, item) wz_ids_add(&want, (int)json_integer_value(item));
        encodes(tok, json_string_value(json_object_get(row, "text")), want.ids, want.n);
        encodes(again, json_string_value(json_object_get(row, "text")), want.ids, want.n);
        wz_ids_finish(&want);
        json_decref(row);
    }
    assert_int_equal(seen, 13);
    fclose(f);
    wz_tokenizer_destroy(tok);
    wz_tokenizer_destroy(again);
    free(path);
    free(rows);
    free(dir);
    free(text);
}

static void tok512_from_model(void **state) { tok512_from("stories260k/tok512.model"); }

static void tok512_from_bin(void **state) { tok512_from("stories260k/tok512.bin"); }

/* The .model of this vocabulary drops blanks at the ends and repeated ones, the .bin keeps them. */
static void tok512_blanks(void **state)
{
    char *model_path = test_data("stories260k/tok512.model"), *bin_path = test_data("stories260k/tok512.bin");
    struct wz_tokenizer *model = load(model_path), *bin = load(bin_path);
    struct wz_ids a = { 0 }, b = { 0 }, c = { 0 };
    struct wz_buf back = { 0 };
    struct wz_err err;

    assert_int_equal(wz_encode(model, "  Once  upon ", 13, &a, &err), 0);
    assert_int_equal(wz_encode(model, "Once upon", 9, &b, &err), 0);
    check_ids("blanks in tok512.model", &a, b.ids, b.n);
    assert_int_equal(wz_encode(bin, "  Once  upon ", 13, &c, &err), 0);
    wz_decode(bin, c.ids, c.n, false, &back);
    assert_string_equal(back.data, "  Once  upon ");
    wz_ids_finish(&a);
    wz_ids_finish(&b);
    wz_ids_finish(&c);
    wz_buf_finish(&back);
    wz_tokenizer_destroy(model);
    wz_tokenizer_destroy(bin);
    free(model_path);
    free(bin_path);
}

static void round_trip(const char *file, int vocab, const char *text)
{
    char *path = test_data(file), *dir = test_scratch("saved");
    struct wz_tokenizer *tok = load(path);
    struct wz_err err;
    struct wz_ids ids = { 0 };

    assert_int_equal(wz_tokenizer_vocab(tok), vocab);
    assert_int_equal(wz_tokenizer_save(tok, dir, &err), 0);
    struct wz_tokenizer *again = load(dir);
    if (wz_encode(tok, text, strlen(text), &ids, &err) < 0) fail_msg("%s", err.text);
    encodes(tok, text, ids.ids, ids.n);
    encodes(again, text, ids.ids, ids.n);
    wz_ids_finish(&ids);
    wz_tokenizer_destroy(tok);
    wz_tokenizer_destroy(again);
    free(path);
    free(dir);
}

static void small_ones_round_trip(void **state)
{
    static const char text[] = "  The cat's 12 na\xc3\xafve \xf0\x9f\x98\x80\n\n\tlids <s>  ";

    round_trip("tok_tiny/test_tiktoken.model", 2000 + 256, text);
    round_trip("tok_stories/tok4096.bin", 4096, text);
    /* This vocabulary is written without the byte alphabet: it has no piece for a blank, nor for a byte past 127. */
    round_trip("tok_tiny/tokenizer.json", 2020, "thecat's12");
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
        cmocka_unit_test(unknown_characters_are_fused_or_not),
        cmocka_unit_test(invalid_utf8_names_the_byte),
        cmocka_unit_test(stream_gives_whole_characters),
        cmocka_unit_test(specials_are_decoded_when_asked),
        cmocka_unit_test(sentencepiece_merges_by_score),
        cmocka_unit_test(long_texts_end),
        cmocka_unit_test(threads_share_a_tokenizer),
        cmocka_unit_test(whole_pieces_can_go_before_merges),
        cmocka_unit_test(broken_files_are_an_error),
        cmocka_unit_test(cut_off_is_refused),
        cmocka_unit_test(llama3_from_json),
        cmocka_unit_test(llama3_from_ranks),
        cmocka_unit_test(gpt2_from_gguf),
        cmocka_unit_test(llama2_from_model),
        cmocka_unit_test(llama2_from_gguf),
        cmocka_unit_test(llama2_from_bin),
        cmocka_unit_test(tok512_from_model),
        cmocka_unit_test(tok512_from_bin),
        cmocka_unit_test(tok512_blanks),
        cmocka_unit_test(small_ones_round_trip),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
