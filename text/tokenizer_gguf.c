/* The tokenizer in a GGUF file: tokenizer.ggml.* of its metadata. model: the family; pre: the patterns of a byte-level
 * one; token_type: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. */
#include "text/tokenizer_inside.h"

#include <stdlib.h>
#include <string.h>

#include "store/store.h"

/* Patterns are applied one after another, each within the spans of the one before. */
static const struct pre {
    const char *name, *patterns[5];
    bool ignore_merges;
} pres[] = {
    { "gpt-2", { wz_gpt2_pattern }, false },
    { "llama-bpe", { wz_llama3_pattern }, true },
    { "llama3", { wz_llama3_pattern }, true },
    { "llama-v3", { wz_llama3_pattern }, true },
    { "smollm", { "\\p{N}", wz_gpt2_pattern }, false },
    { "starcoder", { "\\p{N}", wz_gpt2_pattern }, false },
    { "default", { "[\\p{P}\\$\\+<=>\\^~\\|]+", wz_gpt2_pattern, "\\p{N}+", "[0-9][0-9][0-9]" }, false },
    { 0 },
};

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

static int read_pieces(struct wz_tokenizer *tok, const json_t *all, struct wz_err *err)
{
    static const enum wz_piece_kind kinds[] = { WZ_PIECE_NORMAL, WZ_PIECE_NORMAL,  WZ_PIECE_SPECIAL, WZ_PIECE_SPECIAL,
                                                WZ_PIECE_ADDED,  WZ_PIECE_SPECIAL, WZ_PIECE_BYTE };
    const json_t *tokens = meta(all, "tokens"), *scores = meta(all, "scores"), *types = meta(all, "token_type");

    if (!json_is_array(tokens) || json_array_size(tokens) > WZ_VOCAB_MAX)
        return wz_fail(err, "%s: tokenizer.ggml.tokens: expected a list of at most %d tokens", tok->name, WZ_VOCAB_MAX);
    for (size_t i = 0; i < json_array_size(tokens); i++) {
        const json_t *token = json_array_get(tokens, i);
        json_int_t type = types ? json_integer_value(json_array_get(types, i)) : 1;
        float score = (float)json_number_value(json_array_get(scores, i));
        if (!json_is_string(token) || type < 0 || type >= (json_int_t)WZ_COUNT(kinds))
            return wz_fail(err, "%s: tokenizer.ggml.tokens: item %zu is not a string or of an unknown token_type",
                           tok->name, i);
        if (type == 2) tok->unk = (int)i;
        if (wz_vocab_add(tok, (int)i, json_string_value(token), json_string_length(token), kinds[type], score, err) < 0)
            return -1;
    }
    return 0;
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
    if (read_pieces(tok, all, err) < 0) return -1;
    tok->bos = id_of(all, "bos_token_id", -1);
    tok->eos = id_of(all, "eos_token_id", -1);
    tok->unk = id_of(all, "unknown_token_id", tok->unk);
    if (jinja) tok->jinja = wz_strdup(jinja);
    if (strcmp(model, "llama") == 0) {
        tok->byte_fallback = true;
        wz_merges_derive(tok);
        wz_spm_stages(tok, !json_is_false(meta(all, "add_space_prefix")),
                      json_is_true(meta(all, "remove_extra_whitespaces")));
        return 0;
    }
    const struct pre *row = wz_row_find(pres, sizeof *pres, "value of tokenizer.ggml.pre", pre ? pre : "default", err);
    if (!row) return wz_fail_in(err, "%s", tok->name);
    tok->ignore_merges = row->ignore_merges;
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
