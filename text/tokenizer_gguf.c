/* The tokenizer in a GGUF file: tokenizer.ggml.* of its metadata. model: the family; pre: the patterns of a byte-level
 * one; token_type: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. */
#include "text/tokenizer_inside.h"

#include <stdlib.h>
#include <string.h>

#include "store/store.h"

static const char qwen2_pattern[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+"
    "|\\s+(?!\\S)|\\s+";

/* Patterns are applied one after another, each within the spans of the one before. Names of the same patterns stand in
 * one row, with blanks between. */
static const struct pre {
    const char *names, *patterns[5];
    bool ignore_merges, nfc; /* nfc: their tokenizer.json normalizes so; the format can't say it */
} pres[] = {
    { "default", { "[\\p{P}\\$\\+<=>\\^~\\|]+", wz_gpt2_pattern, "\\p{N}+", "[0-9][0-9][0-9]" }, false, false },
    { "gpt-2 phi-2 jais trillion gigachat roberta-bpe jina-es jina-de granite-docling exaone4",
      { wz_gpt2_pattern },
      false,
      false },
    { "mpt olmo", { wz_gpt2_pattern }, false, true },
    { "smollm starcoder refact codeshell exaone minerva-7b", { "\\p{N}", wz_gpt2_pattern }, false, false },
    { "command-r", { "\\p{N}", wz_gpt2_pattern }, false, true },
    { "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2", { wz_llama3_pattern }, true, false },
    { "dbrx smaug-bpe", { wz_llama3_pattern }, false, false },
    { "qwen2 deepseek-r1-qwen", { qwen2_pattern }, false, true },
    { "stablelm2 hunyuan megrez", { qwen2_pattern }, false, false },
    { "tekken",
      { "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+"
        "|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*"
        "|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+" },
      true,
      false },
    { "gpt-4o llama4",
      { "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+"
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        "|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*"
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+" },
      false,
      false },
};

/* NULL and a message with all names where it is none of them. */
static const struct pre *find_pre(const char *name, const char *file, struct wz_err *err)
{
    struct wz_buf all = { 0 };
    const size_t n = strchr(name, ' ') ? 0 : strlen(name);

    for (size_t i = 0; i < WZ_COUNT(pres); i++) {
        for (const char *at = pres[i].names; n && (at = strstr(at, name)); at += n)
            if ((at == pres[i].names || at[-1] == ' ') && (at[n] == ' ' || !at[n])) {
                wz_buf_finish(&all);
                return &pres[i];
            }
        wz_buf_printf(&all, " %s", pres[i].names);
    }
    wz_fail(err, "%s: tokenizer.ggml.pre: expected one of%s, got \"%.40s\"", file, all.data, name);
    wz_buf_finish(&all);
    return NULL;
}

static const json_t *meta(const json_t *all, const char *key)
{
    char name[64];

    snprintf(name, sizeof name, "tokenizer.ggml.%s", key);
    return json_object_get(all, name);
}

static int id_of(const json_t *all, const char *key, int otherwise)
{
    const json_t *value = meta(all, key);
    json_int_t id = json_integer_value(value);

    return json_is_integer(value) && id >= 0 && id < WZ_VOCAB_MAX ? (int)id : otherwise;
}

/* spm: the blanks of user-defined pieces, which the format has as such, are U+2581, as in all others. */
static int read_pieces(struct wz_tokenizer *tok, const json_t *all, bool spm, struct wz_err *err)
{
    static const enum wz_piece_kind kinds[] = { WZ_PIECE_NORMAL, WZ_PIECE_NORMAL,  WZ_PIECE_SPECIAL, WZ_PIECE_SPECIAL,
                                                WZ_PIECE_ADDED,  WZ_PIECE_SPECIAL, WZ_PIECE_BYTE };
    const json_t *tokens = meta(all, "tokens"), *scores = meta(all, "scores"), *types = meta(all, "token_type");
    struct wz_buf text = { 0 };
    int rc = 0;

    if (!json_is_array(tokens) || json_array_size(tokens) > WZ_VOCAB_MAX)
        return wz_fail(err, "%s: tokenizer.ggml.tokens: expected a list of at most %d tokens", tok->name, WZ_VOCAB_MAX);
    for (size_t i = 0; rc == 0 && i < json_array_size(tokens); i++) {
        const json_t *token = json_array_get(tokens, i);
        json_int_t type = types ? json_integer_value(json_array_get(types, i)) : 1;
        float score = (float)json_number_value(json_array_get(scores, i));
        if (!json_is_string(token) || type < 0 || type >= (json_int_t)WZ_COUNT(kinds)) {
            rc = wz_fail(err, "%s: tokenizer.ggml.tokens: item %zu is not a string or of an unknown token_type",
                         tok->name, i);
            break;
        }
        if (type == 2) tok->unk = (int)i;
        wz_buf_clear(&text);
        for (const char *s = json_string_value(token), *end = s + json_string_length(token); s < end; s++) {
            const bool blank = spm && type == 4 && *s == ' ';
            wz_buf_add(&text, blank ? "\xe2\x96\x81" : s, blank ? 3 : 1);
        }
        rc = wz_vocab_add(tok, (int)i, text.len ? text.data : "", text.len, kinds[type], score, err);
    }
    wz_buf_finish(&text);
    return rc;
}

static int read_merges(struct wz_tokenizer *tok, const json_t *merges, struct wz_err *err)
{
    const json_t *merge;
    size_t i;

    if (!json_is_array(merges)) return wz_fail(err, "%s: tokenizer.ggml.merges: not a list", tok->name);
    json_array_foreach(merges, i, merge)
    {
        const char *s = json_string_value(merge), *gap = s && *s ? strchr(s + 1, ' ') : NULL;
        if (!gap) return wz_fail(err, "%s: tokenizer.ggml.merges: item %zu: expected \"left right\"", tok->name, i);
        if (wz_merge_add(tok, s, (size_t)(gap - s), gap + 1, strlen(gap + 1), (uint32_t)i, err) < 0) return -1;
    }
    return 0;
}

static int read_all(struct wz_tokenizer *tok, const json_t *all, struct wz_err *err)
{
    const char *model = json_string_value(meta(all, "model")), *pre = json_string_value(meta(all, "pre"));
    const char *jinja = json_string_value(json_object_get(all, "tokenizer.chat_template"));

    if (!model || (strcmp(model, "gpt2") != 0 && strcmp(model, "llama") != 0))
        return wz_fail(err, "%s: tokenizer.ggml.model: expected gpt2 or llama, got \"%.40s\"", tok->name,
                       model ? model : "");
    if (read_pieces(tok, all, strcmp(model, "llama") == 0, err) < 0) return -1;
    tok->bos = id_of(all, "bos_token_id", -1);
    tok->eos = id_of(all, "eos_token_id", -1);
    tok->unk = id_of(all, "unknown_token_id", tok->unk);
    tok->pad = id_of(all, "padding_token_id", -1);
    if (jinja) tok->jinja = wz_strdup(jinja);
    if (strcmp(model, "llama") == 0) {
        tok->byte_fallback = true;
        wz_merges_derive(tok);
        wz_spm_stages(tok, !json_is_false(meta(all, "add_space_prefix")),
                      json_is_true(meta(all, "remove_extra_whitespaces")));
        return 0;
    }
    if (!pre)
        wz_log(
            "%s: warning: tokenizer.ggml.pre is missing, so texts are split by the patterns \"default\": if the model "
            "was trained with others, its ids are wrong; convert it to GGUF again, or give its Hugging Face folder",
            tok->name);
    const struct pre *row = find_pre(pre ? pre : "default", tok->name, err);
    if (!row) return -1;
    tok->ignore_merges = row->ignore_merges;
    if (row->nfc) tok->normalizer = json_pack("{s:s}", "type", "NFC");
    wz_byte_level_stages(tok, row->patterns);
    return read_merges(tok, meta(all, "merges"), err);
}

int wz_load_gguf(struct wz_tokenizer *tok, const char *path, struct wz_err *err)
{
    struct wz_tensors *set = wz_tensors_open(path, err);

    if (!set) return -1;
    int rc = read_all(tok, wz_tensors_meta(set), err);
    wz_tensors_close(set);
    return rc;
}
