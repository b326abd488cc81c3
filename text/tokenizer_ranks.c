/* Meta's tokenizer.model for Llama 3: a line per piece, base64 of its bytes and its rank, which is both its id and its
 * merge priority. 256 special tokens follow the last rank, named as in Meta's reference tokenizer. */
#include "text/tokenizer_inside.h"

#include <stdlib.h>
#include <string.h>

static const char *const specials[] = {
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
};
enum { N_SPECIALS = 256 };

void wz_byte_level_stages(struct wz_tokenizer *tok, const char *const *patterns)
{
    json_t *parts = json_array();

    for (; *patterns; patterns++)
        json_array_append_new(parts, json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split", "pattern", "Regex",
                                               *patterns, "behavior", "Isolated", "invert", 0));
    json_array_append_new(parts, json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0,
                                           "trim_offsets", 1, "use_regex", 0));
    tok->pre = json_pack("{s:s, s:o}", "type", "Sequence", "pretokenizers", parts);
    tok->decoder = json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1,
                             "use_regex", 0);
}

static int base64_value(char c)
{
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Decodes base64 s[0..n) and appends the bytes in the byte alphabet. */
static int base64_text(const char *s, size_t n, struct wz_buf *out)
{
    uint32_t bits = 0;
    int have = 0;
    char utf8[4];

    if (n == 0 || n % 4) return -1;
    for (int pad = 0; pad < 2 && s[n - 1] == '='; pad++) n--;
    for (size_t i = 0; i < n; i++) {
        int v = base64_value(s[i]);
        if (v < 0) return -1;
        bits = bits << 6 | (uint32_t)v;
        have += 6;
        if (have < 8) continue;
        have -= 8;
        wz_buf_add(out, utf8, (size_t)wz_utf8_put(utf8, wz_byte_char((unsigned char)(bits >> have))));
    }
    return 0;
}

int wz_load_ranks(struct wz_tokenizer *tok, const char *bytes, size_t n, struct wz_err *err)
{
    const char *const patterns[] = { wz_llama3_pattern, NULL };
    struct wz_buf text = { 0 };
    struct wz_lines l = wz_lines_begin(bytes, n);
    int rc = -1;

    while (wz_lines_next(&l)) {
        const char *stop = l.line + l.n - (l.n && l.line[l.n - 1] == '\r');
        if (stop == l.line) continue;
        const char *gap = memchr(l.line, ' ', (size_t)(stop - l.line)), *digit = gap ? gap + 1 : stop;
        long rank = 0;
        bool ok = digit < stop && stop - digit < 8;
        for (; ok && digit < stop; digit++) {
            ok = *digit >= '0' && *digit <= '9';
            rank = rank * 10 + (*digit - '0');
        }
        wz_buf_clear(&text);
        if (!ok || base64_text(l.line, (size_t)(gap - l.line), &text) < 0) {
            wz_fail(err, "%s:%d: expected base64, a space and a rank", tok->name, l.number);
            goto out;
        }
        if (wz_vocab_add(tok, (int)rank, text.data, text.len, WZ_PIECE_NORMAL, -(float)rank, err) < 0) goto out;
    }
    for (int i = 0, base = tok->n; i < N_SPECIALS; i++) {
        wz_buf_clear(&text);
        if (i < (int)WZ_COUNT(specials)) wz_buf_str(&text, specials[i]);
        else wz_buf_printf(&text, "<|reserved_special_token_%d|>", i - (int)WZ_COUNT(specials) + 2);
        if (wz_vocab_add(tok, base + i, text.data, text.len, WZ_PIECE_SPECIAL, 0, err) < 0) goto out;
    }
    wz_merges_derive(tok);
    wz_byte_level_stages(tok, patterns);
    tok->ignore_merges = true;
    rc = 0;
out:
    wz_buf_finish(&text);
    return rc;
}
