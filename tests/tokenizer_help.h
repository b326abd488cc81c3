/* A tokenizer small enough to work out by hand, written to a file as the hub would: the 256 bytes, a few merges, the
 * marks of the chat templates. Ids: byte b is b, then the merged pieces, then the special ones. */
#ifndef WZ_TOKENIZER_HELP_H
#define WZ_TOKENIZER_HELP_H

#include "test.h"

#include "text/text.h"

/* In the alphabet of GPT-2 a blank is U+0120 and a line feed U+010A. Each piece is its left and right half. */
static const char *const tiny_merges[][2] = {
    { "h", "e" },
    { "l", "l" },
    { "he", "ll" },
    { "hell", "o" },
    { "\xc4\xa0", "w" },
    { "o", "r" },
    { "\xc4\xa0w", "or" },
    { "l", "d" },
    { "\xc4\xa0wor", "ld" },
    { "1", "2" },
    { "\xc3\x83", "\xc2\xa9" },
    { "\xc4\x8a", "\xc4\x8a" },
};
enum {
    T_HELLO = 256 + 3,
    T_WORLD = 256 + 8,
    T_12 = 256 + 9,
    T_E_ACUTE = 256 + 10,
    T_LF2 = 256 + 11,
    T_SPECIAL = 256 + 12
};
static const char *const tiny_specials[] = {
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|im_start|>",
    "<|im_end|>",
    "<sys>",
    "<user>",
    "<end>",
    "<asst>",
};
enum { T_BOS = T_SPECIAL, T_EOS, T_HEAD, T_UNHEAD, T_EOT, T_IM_START, T_IM_END, T_SYS, T_USER, T_END, T_ASST, T_VOCAB };

static inline void tiny_byte(struct wz_buf *out, int byte)
{
    int others = 0;
    char utf8[4];

    for (int b = 0; b <= byte; b++) {
        bool prints = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        if (b == byte && prints) wz_json_string(out, utf8, (size_t)wz_utf8_put(utf8, (uint32_t)b));
        if (b == byte && !prints) wz_json_string(out, utf8, (size_t)wz_utf8_put(utf8, 256u + (uint32_t)others));
        others += !prints;
    }
}

/* The text of the file; `pairs` writes merges as lists, as newer hub files do. */
static inline void tiny_json(struct wz_buf *out, bool pairs, bool ignore_merges)
{
    wz_buf_str(out, "{\"version\": \"1.0\", \"added_tokens\": [");
    for (size_t i = 0; i < WZ_COUNT(tiny_specials); i++)
        wz_buf_printf(out, "%s{\"id\": %zu, \"content\": \"%s\", \"special\": true}", i ? ", " : "", T_SPECIAL + i,
                      tiny_specials[i]);
    wz_buf_printf(
        out,
        "], \"normalizer\": null, \"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": "
        "\"Digits\", "
        "\"individual_digits\": true}, {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": true}]}, "
        "\"decoder\": {\"type\": \"ByteLevel\"}, \"model\": {\"type\": \"BPE\", \"ignore_merges\": %s, \"vocab\": {",
        ignore_merges ? "true" : "false");
    for (int b = 0; b < 256; b++) {
        tiny_byte(out, b);
        wz_buf_printf(out, ": %d, ", b);
    }
    for (size_t i = 0; i < WZ_COUNT(tiny_merges); i++)
        wz_buf_printf(out, "%s\"%s%s\": %zu", i ? ", " : "", tiny_merges[i][0], tiny_merges[i][1], 256 + i);
    wz_buf_str(out, "}, \"merges\": [");
    for (size_t i = 0; i < WZ_COUNT(tiny_merges); i++)
        wz_buf_printf(out, pairs ? "%s[\"%s\", \"%s\"]" : "%s\"%s %s\"", i ? ", " : "", tiny_merges[i][0],
                      tiny_merges[i][1]);
    wz_buf_str(out, "]}}");
}

static inline struct wz_tokenizer *load_text(const char *name, const void *bytes, size_t n, struct wz_err *err)
{
    char *path = test_scratch(name);

    FILE *f = fopen(path, "wb");

    assert_true(f && fwrite(bytes, 1, n, f) == n && fclose(f) == 0);
    struct wz_tokenizer *tok = wz_tokenizer_load(path, err);
    remove(path);
    free(path);
    return tok;
}

static inline struct wz_tokenizer *tiny_load(bool pairs)
{
    struct wz_buf b = { 0 };
    struct wz_err err = { "" };

    tiny_json(&b, pairs, false);
    struct wz_tokenizer *tok = load_text("tiny.json", b.data, b.len, &err);
    if (!tok) fail_msg("%s", err.text);
    wz_buf_finish(&b);
    return tok;
}

static inline void check_ids(const char *what, const struct wz_ids *got, const int *want, int n)
{
    struct wz_buf b = { 0 };

    if (got->n == n && (n == 0 || memcmp(got->ids, want, (size_t)n * sizeof *want) == 0)) return;
    wz_buf_printf(&b, "%s: got", what);
    for (int i = 0; i < got->n; i++) wz_buf_printf(&b, " %d", got->ids[i]);
    wz_buf_str(&b, ", wanted");
    for (int i = 0; i < n; i++) wz_buf_printf(&b, " %d", want[i]);
    fail_msg("%s", b.data);
}

#endif
