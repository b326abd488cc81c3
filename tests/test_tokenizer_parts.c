/* Guarantee: normalizers, pre-tokenizers and added tokens of a tokenizer.json do what they say, and what is not known
 * is refused by name; a folder is saved as it was read; user-defined pieces of SentencePiece are found after saving
 * too; each name of patterns in a GGUF file is known or refused. Vectors are the ids of `tokenizers`, where not
 * obvious. */
#include "tokenizer_help.h"

#include "text/jinja.h"
#include "text/tokenizer_inside.h"

/* The 256 bytes as tokens, byte b is id b, and the given parts. */
static struct wz_tokenizer *bytes_with(const char *normalizer, const char *pre, const char *added)
{
    struct wz_buf b = { 0 };
    struct wz_err err = { "" };

    wz_buf_printf(&b, "{\"normalizer\": %s, \"added_tokens\": [%s], \"pre_tokenizer\": ", normalizer, added);
    wz_buf_printf(&b,
                  "{\"type\": \"Sequence\", \"pretokenizers\": [%s{\"type\": \"ByteLevel\", \"use_regex\": false, "
                  "\"add_prefix_space\": false}]}, \"decoder\": {\"type\": \"ByteLevel\"}, ",
                  pre);
    wz_buf_str(&b, "\"model\": {\"type\": \"BPE\", \"merges\": [], \"vocab\": {");
    for (int i = 0; i < 256; i++) {
        wz_buf_str(&b, i ? ", " : "");
        tiny_byte(&b, i);
        wz_buf_printf(&b, ": %d", i);
    }
    wz_buf_str(&b, "}}}");
    struct wz_tokenizer *tok = load_text("parts.json", b.data, b.len, &err);
    if (!tok) fail_msg("%s", err.text);
    wz_buf_finish(&b);
    return tok;
}

static void ids_of(const struct wz_tokenizer *tok, const char *text, struct wz_ids *ids)
{
    struct wz_err err = { "" };

    ids->n = 0;
    if (wz_encode(tok, text, strlen(text), ids, &err) < 0) fail_msg("%s: %s", text, err.text);
}

/* Ids below 256 as bytes, others as [0], [1], ... */
static void spelled(const struct wz_tokenizer *tok, const char *text, const char *want)
{
    struct wz_ids ids = { 0 };
    struct wz_buf got = { 0 };

    ids_of(tok, text, &ids);
    wz_buf_str(&got, "");
    for (int i = 0; i < ids.n; i++)
        wz_buf_printf(&got, ids.ids[i] < 256 ? "%c" : "[%d]", ids.ids[i] - 256 * (ids.ids[i] > 255));
    if (strcmp(got.data, want) != 0) fail_msg("\"%s\" became \"%s\", not \"%s\"", text, got.data, want);
    wz_ids_finish(&ids);
    wz_buf_finish(&got);
}

#define NORMAL(type) "{\"type\": \"" type "\"}"
#define MANY(list)   "{\"type\": \"Sequence\", \"normalizers\": [" list "]}"

static void normalizers(void **state)
{
    static const struct {
        const char *json, *text, *want;
    } rows[] = {
        { "null", "e\xcc\x81", "e\xcc\x81" },
        { NORMAL("NFC"), "e\xcc\x81 \xe1\x84\x80\xe1\x85\xa1", "\xc3\xa9 \xea\xb0\x80" },
        { NORMAL("NFD"), "\xc3\xa9", "e\xcc\x81" },
        { NORMAL("NFKC"), "\xef\xac\x81 \xe2\x91\xa0 e\xcc\x81", "fi 1 \xc3\xa9" },
        { NORMAL("NFKD"), "\xef\xac\x81 \xc3\xa9", "fi e\xcc\x81" },
        { NORMAL("NFC"), "\xef\xac\x81", "\xef\xac\x81" },
        { NORMAL("Lowercase"), "ABC \xc3\x84\xce\xa3 \xc4\xb0", "abc \xc3\xa4\xcf\x83 i\xcc\x87" },
        { NORMAL("StripAccents"), "e\xcc\x81\xc3\xa9\xe0\xa4\xbe.", "e\xc3\xa9." },
        { NORMAL("Strip"), " \t\xc2\xa0 a b\n\xe3\x80\x80", "a b" },
        { "{\"type\": \"Strip\", \"strip_left\": false, \"strip_right\": true}", " a ", " a" },
        { "{\"type\": \"Strip\", \"strip_left\": true, \"strip_right\": false}", " a ", "a " },
        { "{\"type\": \"Replace\", \"pattern\": {\"Regex\": \"a+\"}, \"content\": \"b\"}", "xaaya", "xbyb" },
        { MANY(NORMAL("NFD") ", " NORMAL("StripAccents") ", " NORMAL("Lowercase")), "\xc3\x89T\xc3\x89", "ete" },
        { MANY("{\"type\": \"Prepend\", \"prepend\": \"x\"}"), "a", "xa" },
        { MANY(""), "a", "a" },
    };

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        struct wz_tokenizer *tok = bytes_with(rows[i].json, "", "");
        spelled(tok, rows[i].text, rows[i].want);
        spelled(tok, "", "");
        wz_tokenizer_destroy(tok);
    }
}

/* Every character is unknown and neighbours are fused, so that there is one id for each span. */
static void pre_tokenizers(void **state)
{
    static const struct {
        const char *json, *text;
        int spans;
    } rows[] = {
        { "null", "a b, c", 1 },
        { NORMAL("WhitespaceSplit"), " a b\t\n c,d ", 3 },
        { NORMAL("Whitespace"), "don't \xe0\xa4\x95\xe0\xa5\x8d\xe0\xa4\xb7, x", 6 },
        { NORMAL("Punctuation"), "a,,b$", 5 },
        { "{\"type\": \"Punctuation\", \"behavior\": \"Contiguous\"}", "a,,b$", 4 },
        { "{\"type\": \"Punctuation\", \"behavior\": \"Removed\"}", "a,,b$", 2 },
        { "{\"type\": \"CharDelimiterSplit\", \"delimiter\": \"|\"}", "a||b|c", 3 },
        { "{\"type\": \"Digits\", \"individual_digits\": true}", "a12\xc2\xb2", 4 },
        { "{\"type\": \"Digits\", \"individual_digits\": false}", "a12\xc2\xb2", 2 },
        /* What the two regex libraries say differently. */
        { "{\"type\": \"Split\", \"behavior\": \"Isolated\", \"pattern\": {\"Regex\": \"\\\\s\"}}", "a\xe1\xa0\x8e b",
          3 },
        { "{\"type\": \"Split\", \"behavior\": \"Isolated\", \"pattern\": {\"Regex\": \"\\\\w+\"}}",
          "\xe0\xa4\x95\xe0\xa5\x8d,\xc2\xb2", 3 },
        { "{\"type\": \"Split\", \"behavior\": \"Isolated\", \"pattern\": {\"Regex\": \"[\\\\w]+\"}}", "a\xc2\xb2", 2 },
        { "{\"type\": \"Split\", \"behavior\": \"Isolated\", \"pattern\": {\"Regex\": \"\\\\h+\"}}", "xaFg", 3 },
        { "{\"type\": \"Split\", \"behavior\": \"Isolated\", \"pattern\": {\"Regex\": \"^.\"}}", "ab\nab", 4 },
        { "{\"type\": \"Split\", \"behavior\": \"Isolated\", \"pattern\": {\"Regex\": \"(?m:a.)\"}}", "ba\na", 3 },
    };

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        struct wz_err err = { "" };
        struct wz_ids ids = { 0 };
        char *json = wz_path("{\"pre_tokenizer\": %s, \"model\": {\"unk_token\": \"\\ue000\", \"fuse_unk\": true, "
                             "\"vocab\": {\"\\ue000\": 0}, \"merges\": []}}",
                             rows[i].json);
        struct wz_tokenizer *tok = load_text("spans.json", json, strlen(json), &err);
        if (!tok) fail_msg("%s", err.text);
        ids_of(tok, rows[i].text, &ids);
        if (ids.n != rows[i].spans) fail_msg("%s: \"%s\" is %d spans", rows[i].json, rows[i].text, ids.n);
        wz_ids_finish(&ids);
        wz_tokenizer_destroy(tok);
        free(json);
    }
}

#define ADDED(id, text, flags) "{\"id\": " id ", \"content\": \"" text "\", \"special\": false" flags "}"
#define SPECIAL(id, text)      "{\"id\": " id ", \"content\": \"" text "\", \"special\": true}"
#define LEFT                   ", \"lstrip\": true"
#define RIGHT                  ", \"rstrip\": true"
#define WORD                   ", \"single_word\": true"
#define AFTER                  ", \"normalized\": true"

static void added_tokens(void **state)
{
    static const char all[] = ADDED("256", "<l>", LEFT) ", " ADDED("257", "<r>", RIGHT) ", " ADDED(
        "258", "day", WORD) ", " ADDED("259", "<ll>", "") ", " SPECIAL("260", "<s>") ", " ADDED("261", ">x", "");
    static const struct {
        const char *text, *want;
    } rows[] = {
        { "a  <l> b", "a[0] b" },
        { "a <r> \n\xe3\x80\x80 b", "a [1]b" },
        { "<l>", "[0]" },
        { " <r> <l> ", " [1][0] " }, /* blanks are taken once */
        { "day a-day monday day\xcc\x81 \xe2\x91\xa0 day2 day", "[2] a-[2] monday day\xcc\x81 \xe2\x91\xa0 day2 [2]" },
        { "<ll><l>", "[3][0]" },
        { "<l<l>", "<l[0]" },
        { "<s>x>x", "<s>x[5]" }, /* what overlaps with the text of a special token is no match */
        { "<s> x", "<s> x" },
    };
    struct wz_tokenizer *tok = bytes_with("null", "", all);

    for (size_t i = 0; i < WZ_COUNT(rows); i++) spelled(tok, rows[i].text, rows[i].want);
    wz_tokenizer_destroy(tok);

    /* Normalized ones are found in the normalized text, others in the raw one. */
    tok = bytes_with(NORMAL("Lowercase"), "", ADDED("256", "Foo", AFTER) ", " ADDED("257", "Bar", ""));
    spelled(tok, "FOO foo Bar BAR bar", "[0] [0] [1] bar bar");
    wz_tokenizer_destroy(tok);
    tok = bytes_with("{\"type\": \"Prepend\", \"prepend\": \"_\"}", "",
                     ADDED("256", "<x>", "") ", " ADDED("257", "<y>", AFTER));
    spelled(tok, "a<x>b<y>", "_a[0]_b<y>"); /* each part is normalized by itself, and so is what is looked for */
    spelled(tok, "<y>a<y>", "[1]a<y>");
    wz_tokenizer_destroy(tok);
}

#define FLAGGED(id, text, flags) "{\"id\": " id ", \"content\": \"" text "\", \"special\": true" flags "}"

/* A special token that a template writes has the flags that it has in a text. */
static void special_tokens_of_a_template(void **state)
{
    static const struct {
        const char *normalizer, *flags, *want;
    } rows[] = {
        { "null", "", "x[0]y [0] z" },
        { "null", WORD, "x<s>y [0] z" },
        { "null", LEFT RIGHT, "x[0]y[0]z" },
        { NORMAL("NFC"), AFTER, "x[0]y [0] z" },
        { "{\"type\": \"Prepend\", \"prepend\": \"_\"}", AFTER, NULL }, /* found as "_<s>" only */
    };
    static const struct wz_message talk[] = { { .role = WZ_USER, .text = "y" } };

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        char *added = wz_path(FLAGGED("256", "<s>", "%s"), rows[i].flags);
        struct wz_tokenizer *tok = bytes_with(rows[i].normalizer, "", added);
        struct wz_err err = { "" };
        struct wz_ids ids = { 0 };
        struct wz_buf got = { 0 };
        tok->jinja = wz_strdup("x<s>{{ messages[0].content }} <s> z");
        tok->chat = wz_jinja_parse(tok->jinja, "t", &err);
        const int rc = wz_template_apply(wz_template_find(NULL, tok, &err), tok, talk, 1, false, &ids, &err);
        for (int k = 0; k < ids.n; k++) wz_buf_printf(&got, ids.ids[k] < 256 ? "%c" : "[%d]", ids.ids[k] % 256);
        if (rows[i].want ? rc < 0 || strcmp(got.data, rows[i].want)
                         : rc == 0 || !strstr(err.text, "\"normalized\": false"))
            fail_msg("row %zu: %s%s", i, rc < 0 ? err.text : "", got.data ? got.data : "");
        free(added);
        wz_ids_finish(&ids);
        wz_buf_finish(&got);
        wz_tokenizer_destroy(tok);
    }
}

static void refused_by_name(void **state)
{
    static const struct {
        const char *part, *says;
    } rows[] = {
        { "\"normalizer\": {\"type\": \"BertNormalizer\"}", "normalizer: expected Prepend, Replace, Strip, NFC," },
        { "\"normalizer\": {\"type\": \"Sequence\"}", "expected a list \"normalizers\"" },
        { "\"normalizer\": {\"type\": \"Digits\"}", "got unsupported type Digits" },
        { "\"pre_tokenizer\": {\"type\": \"UnicodeScripts\"}", "got unsupported type UnicodeScripts" },
        { "\"pre_tokenizer\": {\"type\": \"CharDelimiterSplit\"}", "expected a delimiter" },
        { "\"pre_tokenizer\": {\"type\": \"Punctuation\", \"behavior\": \"x\"}", "Punctuation: behavior: expected" },
        { "\"decoder\": {\"type\": \"WordPiece\"}", "decoder: expected Replace, " },
        { "\"decoder\": {\"type\": \"Strip\", \"content\": \"x\", \"start\": 1, \"stop\": 0}", "got Strip" },
        { "\"pre_tokenizer\": {\"type\": \"Split\", \"behavior\": \"Isolated\", \"pattern\": {\"Regex\": \"a*\"}}",
          "does not match an empty text" },
        { "\"pre_tokenizer\": {\"type\": \"Split\", \"behavior\": \"Isolated\", \"pattern\": {\"Regex\": \"a{1,3}+\"}}",
          "{n,m}+ is not supported" },
        { "\"pre_tokenizer\": {\"type\": \"Split\", \"behavior\": \"Isolated\", \"pattern\": {\"Regex\": \"[a[bc]]\"}}",
          "[ within [...] is not supported" },
        { "\"pre_tokenizer\": {\"type\": \"Split\", \"behavior\": \"Isolated\", \"pattern\": {\"Regex\": \"[a&&b]\"}}",
          "&& within [...] is not supported" },
        { "\"pre_tokenizer\": {\"type\": \"Split\", \"behavior\": \"Isolated\", \"pattern\": {\"Regex\": \"[\\\\W]\"}}",
          "within [...] is not supported" },
    };

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        struct wz_err err = { "" };
        char *json = wz_path("{%s, \"model\": {\"vocab\": {\"a\": 0}, \"merges\": []}}", rows[i].part);
        assert_null(load_text("refused.json", json, strlen(json), &err));
        if (!strstr(err.text, rows[i].says)) fail_msg("%s: \"%s\" says not \"%s\"", json, err.text, rows[i].says);
        assert_non_null(strstr(err.text, "refused.json"));
        free(json);
    }
}

/* ---- saving ----------------------------------------------------------------------------------------------- */

static struct wz_tokenizer *load(const char *path)
{
    struct wz_err err = { "" };
    struct wz_tokenizer *tok = wz_tokenizer_load(path, &err);

    if (!tok) fail_msg("%s", err.text);
    return tok;
}

static void write_in(const char *dir, const char *name, const char *text, size_t n)
{
    struct wz_err err;
    char *path = wz_path("%s/%s", dir, name);

    if (wz_mkdirs(dir, &err) < 0 || wz_file_write(path, text, n, &err) < 0) fail_msg("%s", err.text);
    free(path);
}

static void folders_are_saved_as_read(void **state)
{
    static const struct {
        const char *name, *text;
    } rows[] = {
        { "tokenizer_config.json",
          "{ \"pad_token\": \"<sys>\",  \"padding_side\": \"left\", \"eos_token\": \"<end>\",\n"
          "  \"model_max_length\": 1000000000000000019884624838656 }" },
        { "special_tokens_map.json", "{\"pad_token\":\"<sys>\"}" },
        { "chat_template.jinja", "{{ messages }}\n" },
    };
    char *dir = test_scratch("kept"), *out = test_scratch("kept-saved"),
         *stale = test_scratch("kept-saved/added_tokens.json");
    struct wz_buf b = { 0 };
    struct wz_map map;
    struct wz_err err;

    wz_buf_str(&b, "  "); /* nobody writes it so */
    tiny_json(&b, true, false);
    write_in(dir, "tokenizer.json", b.data, b.len);
    for (size_t i = 0; i < WZ_COUNT(rows); i++) write_in(dir, rows[i].name, rows[i].text, strlen(rows[i].text));
    write_in(out, "added_tokens.json", "{}", 2);
    struct wz_tokenizer *tok = load(dir);
    if (wz_tokenizer_save(tok, out, &err) < 0) fail_msg("%s", err.text);
    for (size_t i = 0; i <= WZ_COUNT(rows); i++) {
        const char *text = i < WZ_COUNT(rows) ? rows[i].text : b.data;
        char *path = wz_path("%s/%s", out, i < WZ_COUNT(rows) ? rows[i].name : "tokenizer.json");
        assert_int_equal(wz_map_open(&map, path, &err), 0);
        assert_int_equal(map.len, strlen(text));
        assert_memory_equal(map.bytes, text, map.len);
        wz_map_close(&map);
        free(path);
    }
    assert_false(wz_file_exists(stale));
    wz_tokenizer_destroy(tok);
    wz_buf_finish(&b);
    free(dir);
    free(out);
    free(stale);
}

/* ---- GGUF ------------------------------------------------------------------------------------------------- */

static void put_n(struct wz_buf *b, uint64_t x, int bytes) { wz_buf_add(b, &x, (size_t)bytes); }

static void put_str(struct wz_buf *b, const char *s)
{
    put_n(b, strlen(s), 8);
    wz_buf_str(b, s);
}

/* A key of a string, a bool, or (list) the head of an array of n. */
static void put_key(struct wz_buf *b, const char *key, const char *text, int flag, uint32_t list, size_t n)
{
    char *name = wz_path("tokenizer.ggml.%s", key);

    put_str(b, name);
    put_n(b, list ? 9 : text ? 8 : 7, 4);
    if (list) put_n(b, list, 4);
    if (list) put_n(b, n, 8);
    else if (text) put_str(b, text);
    else put_n(b, (uint64_t)flag, 1);
    free(name);
}

struct token {
    const char *text;
    float score;
    int type; /* 1 normal, 2 unknown, 3 control, 4 user-defined, 6 byte */
};

/* model "llama" with a blank in front or not, or "gpt2" with these patterns (NULL: no key). */
static struct wz_tokenizer *gguf_of(const char *model, int prefix, const char *pre, const struct token *list, size_t n,
                                    const char *const *merges, struct wz_err *err)
{
    struct wz_buf b = { 0 };
    size_t n_merges = 0;

    while (merges && merges[n_merges]) n_merges++;
    wz_buf_str(&b, "GGUF");
    put_n(&b, 3, 4);
    put_n(&b, 0, 8);
    put_n(&b, pre ? 7 : 6, 8);
    put_key(&b, "model", model, 0, 0, 0);
    put_key(&b, "add_space_prefix", NULL, prefix, 0, 0);
    if (pre) put_key(&b, "pre", pre, 0, 0, 0);
    put_key(&b, "merges", NULL, 0, 8, n_merges);
    for (size_t i = 0; i < n_merges; i++) put_str(&b, merges[i]);
    put_key(&b, "tokens", NULL, 0, 8, n);
    for (size_t i = 0; i < n; i++) put_str(&b, list[i].text);
    put_key(&b, "scores", NULL, 0, 6, n);
    for (size_t i = 0; i < n; i++) wz_buf_add(&b, &list[i].score, 4);
    put_key(&b, "token_type", NULL, 0, 5, n);
    for (size_t i = 0; i < n; i++) put_n(&b, (uint64_t)list[i].type, 4);
    while (b.len % 32) put_n(&b, 0, 1);
    struct wz_tokenizer *tok = load_text("parts.gguf", b.data, b.len, err);
    wz_buf_finish(&b);
    return tok;
}

#define BLANK "\xe2\x96\x81"

/* The format has blanks in user-defined pieces as such. */
static void user_defined_pieces_are_saved(void **state)
{
    static const struct token list[] = {
        { "<unk>", 0, 2 },    { "<s>", 0, 3 },    { "</s>", 0, 3 }, { "\n", 0, 4 },
        { BLANK "\n", 0, 4 }, { "  ", 0, 4 },     { "__", 0, 4 },   { BLANK, -9, 1 },
        { "a", -8, 1 },       { "b", -7, 1 },     { "ab", -1, 1 },  { BLANK "a", -2, 1 },
        { "_", -9, 1 },       { "<0x0A>", 0, 6 }, { "xy", -3, 1 },  { ">", -3, 1 },
    };
    static const char *const texts[] = { "a\n b", "\n", " \n", "  a",     "a  \n\nab", "ab __a_",
                                         "__",    "x",  "",    "a<s>__>", "   " };
    char *dir = test_scratch("user-defined"), *model = test_scratch("user-defined/tokenizer.model");
    struct wz_err err = { "" };
    struct wz_ids want = { 0 }, got = { 0 };

    for (int prefix = 0; prefix < 2; prefix++) {
        struct wz_tokenizer *tok = gguf_of("llama", prefix, NULL, list, WZ_COUNT(list), NULL, &err);
        if (!tok || wz_tokenizer_save(tok, dir, &err) < 0) fail_msg("%s", err.text);
        assert_true(wz_file_exists(model) == prefix); /* a tokenizer.json can't say where they are behind a blank */
        struct wz_tokenizer *again = load(dir);
        assert_true(wz_tokenizer_same(tok, again));
        for (size_t i = 0; i < WZ_COUNT(texts); i++) {
            ids_of(tok, texts[i], &want);
            ids_of(again, texts[i], &got);
            check_ids(texts[i], &got, want.ids, want.n);
        }
        ids_of(tok, "\n a", &want);
        if (prefix) check_ids("\\n a", &want, (const int[]){ 4, 11 }, 2);
        else check_ids("\\n a", &want, (const int[]){ 3, 11 }, 2);
        struct wz_buf text = { 0 };
        wz_decode(again, (const int[]){ 8, 4, 5, 9 }, 4, false, &text);
        assert_string_equal(text.data, "a \n  b");
        wz_buf_finish(&text);
        wz_tokenizer_destroy(tok);
        wz_tokenizer_destroy(again);
    }
    wz_ids_finish(&want);
    wz_ids_finish(&got);
    free(dir);
    free(model);
}

/* Bytes in a row are a text, or U+FFFD each: a whole character in it is not saved, as in transformers. */
static void byte_pieces_are_text_or_marks(void **state)
{
    static const struct token list[] = { { "<unk>", 0, 2 },  { "a", -1, 1 },     { "<0xC3>", 0, 6 },
                                         { "<0xA9>", 0, 6 }, { "<0x41>", 0, 6 }, { "<s>", 0, 3 } };
    static const struct {
        int ids[5], n;
        const char *want;
    } rows[] = { { { 1, 2, 3, 1 },
                   4,
                   "a\xc3\xa9"
                   "a" },
                 { { 2, 1, 2, 3 },
                   4,
                   "\xef\xbf\xbd"
                   "a\xc3\xa9" },
                 { { 2, 4, 3, 1 },
                   4,
                   "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"
                   "a" },
                 { { 4, 1, 3 }, 3, "Aa\xef\xbf\xbd" } };
    struct wz_err err = { "" };
    struct wz_tokenizer *tok = gguf_of("llama", 0, NULL, list, WZ_COUNT(list), NULL, &err);

    if (!tok) fail_msg("%s", err.text);
    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        struct wz_buf text = { 0 };
        wz_decode(tok, rows[i].ids, rows[i].n, false, &text);
        assert_string_equal(text.data, rows[i].want);
        wz_buf_finish(&text);
    }
    wz_tokenizer_destroy(tok);
}

/* How many tokens the patterns of each name leave of "aB123'S": digits stand alone or not, and so do a change of case
 * and an apostrophe. */
static void names_of_patterns(void **state)
{
    static const struct {
        const char *name;
        int tokens;
        bool nfc;
    } rows[] = {
        { "gpt-2", 4, false },     { "olmo", 4, true },
        { "default", 4, false },   { "smollm", 6, false },
        { "refact", 6, false },    { "starcoder", 6, false },
        { "command-r", 6, true },  { "mpt", 4, true },
        { "llama-bpe", 3, false }, { "dbrx", 3, false },
        { "smaug-bpe", 3, false }, { "qwen2", 5, true },
        { "stablelm2", 5, false }, { "deepseek-r1-qwen", 5, true },
        { "tekken", 6, false },    { "gpt-4o", 4, false },
    };
    static const struct token list[] = {
        { "a", 0, 1 },  { "B", 0, 1 },        { "aB", 0, 1 },       { "1", 0, 1 }, { "2", 0, 1 },
        { "12", 0, 1 }, { "3", 0, 1 },        { "123", 0, 1 },      { "'", 0, 1 }, { "S", 0, 1 },
        { "'S", 0, 1 }, { "\xc3\x83", 0, 1 }, { "\xc2\xa9", 0, 1 },
    };
    static const char *const merges[] = { "a B", "1 2", "12 3", "' S", NULL };
    struct wz_err err = { "" };
    struct wz_ids ids = { 0 };

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        struct wz_tokenizer *tok = gguf_of("gpt2", 0, rows[i].name, list, WZ_COUNT(list), merges, &err);
        if (!tok) fail_msg("%s", err.text);
        ids_of(tok, "aB123'S", &ids);
        if (ids.n != rows[i].tokens) fail_msg("%s: %d tokens, not %d", rows[i].name, ids.n, rows[i].tokens);
        assert_int_equal(wz_encode(tok, "e\xcc\x81", 3, &ids, &err), rows[i].nfc ? 0 : -1);
        wz_tokenizer_destroy(tok);
    }
    assert_null(gguf_of("gpt2", 0, "llama", list, WZ_COUNT(list), merges, &err)); /* the beginning of a name is none */
    assert_non_null(strstr(err.text, "tokenizer.ggml.pre: expected one of default gpt-2 "));
    assert_non_null(strstr(err.text, "got \"llama\""));
    assert_null(gguf_of("gpt2", 0, "gpt-2 phi-2", list, WZ_COUNT(list), merges, &err));
    wz_ids_finish(&ids);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(normalizers),
        cmocka_unit_test(pre_tokenizers),
        cmocka_unit_test(added_tokens),
        cmocka_unit_test(refused_by_name),
        cmocka_unit_test(special_tokens_of_a_template),
        cmocka_unit_test(folders_are_saved_as_read),
        cmocka_unit_test(user_defined_pieces_are_saved),
        cmocka_unit_test(byte_pieces_are_text_or_marks),
        cmocka_unit_test(names_of_patterns),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
