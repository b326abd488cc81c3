/* tokenizer.json and tokenizer_config.json of a Hugging Face folder. A part that is not supported is refused by name:
 * an almost correct tokenizer would be worse than none.
 *
 *   model.vocab       {"piece": id}            model.merges   ["a b", ...] or [["a", "b"], ...], lowest rank first
 *   added_tokens      [{id, content, special}] normalizer, pre_tokenizer, decoder, post_processor
 */
#include "text/tokenizer_inside.h"

#include <stdlib.h>
#include <string.h>

static bool has_type(const json_t *part, const char *type)
{
    const char *s = json_string_value(json_object_get(part, "type"));

    return s && strcmp(s, type) == 0;
}

/* Gathers the replacements of a decoder. Fuse and ByteFallback are what decoding does anyway, and ByteLevel follows
 * from the pre-tokenizer. deep: nesting of sequences, at most 8. */
static int read_decoder(struct wz_tokenizer *tok, const json_t *decoder, json_t *replaces, int deep, struct wz_err *err)
{
    const char *type = json_string_value(json_object_get(decoder, "type"));
    const json_t *start = json_object_get(decoder, "start"), *stop = json_object_get(decoder, "stop");
    const char *space = json_string_value(json_object_get(decoder, "content"));
    json_t *part;
    size_t i;

    if (!decoder || json_is_null(decoder) || has_type(decoder, "Fuse") || has_type(decoder, "ByteFallback") ||
        has_type(decoder, "ByteLevel"))
        return 0;
    if (has_type(decoder, "Replace")) {
        json_array_append(replaces, (json_t *)decoder);
        return 0;
    }
    if (has_type(decoder, "Strip") && space && strcmp(space, " ") == 0 && json_integer_value(start) <= 1 &&
        json_integer_value(stop) == 0) {
        tok->strip = tok->strip || json_integer_value(start) > 0;
        return 0;
    }
    if (has_type(decoder, "Metaspace")) {
        const char *scheme = json_string_value(json_object_get(decoder, "prepend_scheme"));
        const char *mark = json_string_value(json_object_get(decoder, "replacement"));
        tok->strip =
            scheme ? strcmp(scheme, "never") != 0 : !json_is_false(json_object_get(decoder, "add_prefix_space"));
        json_array_append_new(replaces, json_pack("{s:s, s:{s:s}, s:s}", "type", "Replace", "pattern", "String",
                                                  mark ? mark : "\xe2\x96\x81", "content", " "));
        return 0;
    }
    if (!has_type(decoder, "Sequence") || deep >= 8)
        return wz_fail(err,
                       "%s: decoder: expected Replace, ByteFallback, ByteLevel, Fuse, Metaspace, Sequence, or a Strip "
                       "of at most one leading space, got %.40s",
                       tok->name, type ? type : "no type");
    json_array_foreach(json_object_get(decoder, "decoders"), i, part)
    {
        if (read_decoder(tok, part, replaces, deep + 1, err) < 0) return -1;
    }
    return 0;
}

int wz_load_decoder(struct wz_tokenizer *tok, struct wz_err *err)
{
    json_t *replaces = json_array(), *all = json_pack("{s:s, s:O}", "type", "Sequence", "normalizers", replaces);

    tok->strip = false;
    if (read_decoder(tok, tok->decoder, replaces, 0, err) == 0)
        tok->show = wz_stages_create(all, WZ_NORMALIZER, tok->name, err);
    json_decref(all);
    json_decref(replaces);
    return tok->show ? 0 : -1;
}

static int read_vocab(struct wz_tokenizer *tok, json_t *vocab, struct wz_err *err)
{
    const char *key;
    json_t *value;

    json_object_foreach(vocab, key, value)
    {
        json_int_t id = json_integer_value(value);
        if (!json_is_integer(value) || id < 0 || id >= WZ_VOCAB_MAX)
            return wz_fail(err, "%s: vocab: piece \"%.60s\": expected an id from 0 to %d", tok->name, key,
                           WZ_VOCAB_MAX - 1);
        if (wz_vocab_add(tok, (int)id, key, strlen(key), WZ_PIECE_NORMAL, 0, err) < 0) return -1;
    }
    return 0;
}

static int read_added(struct wz_tokenizer *tok, const json_t *token, json_int_t id, struct wz_err *err)
{
    const json_t *content = json_object_get(token, "content");
    bool special = json_is_true(json_object_get(token, "special"));
    static const struct {
        const char *key;
        int flag;
    } keys[] = { { "lstrip", WZ_LSTRIP },
                 { "rstrip", WZ_RSTRIP },
                 { "single_word", WZ_SINGLE_WORD },
                 { "normalized", WZ_NORMALIZED } };
    int flags = 0;

    if (!json_is_string(content) || id < 0 || id >= WZ_VOCAB_MAX)
        return wz_fail(err, "%s: added token: expected content and an id from 0 to %d", tok->name, WZ_VOCAB_MAX - 1);
    for (size_t i = 0; i < WZ_COUNT(keys); i++)
        if (json_is_true(json_object_get(token, keys[i].key))) flags |= keys[i].flag;
    return wz_vocab_mark(tok, (int)id, json_string_value(content), json_string_length(content), special, flags, err);
}

static int read_merges(struct wz_tokenizer *tok, const json_t *merges, struct wz_err *err)
{
    json_t *merge;
    size_t i;

    json_array_foreach(merges, i, merge)
    {
        const char *s = json_string_value(merge), *gap = s ? strchr(s, ' ') : NULL, *right = gap ? gap + 1 : NULL;
        size_t n_left = gap ? (size_t)(gap - s) : 0, n_right = right ? strlen(right) : 0;
        if (json_array_size(merge) == 2 && json_is_string(json_array_get(merge, 0)) &&
            json_is_string(json_array_get(merge, 1))) {
            s = json_string_value(json_array_get(merge, 0));
            n_left = json_string_length(json_array_get(merge, 0));
            right = json_string_value(json_array_get(merge, 1));
            n_right = json_string_length(json_array_get(merge, 1));
        } else if (!right || strchr(right, ' ')) {
            return wz_fail(err, "%s: merge %zu: expected \"left right\" or [\"left\", \"right\"]", tok->name, i);
        }
        if (wz_merge_add(tok, s, n_left, right, n_right, (uint32_t)i, err) < 0) return -1;
    }
    return 0;
}

static int read_model(struct wz_tokenizer *tok, const json_t *model, struct wz_err *err)
{
    static const char *const absent[] = { "continuing_subword_prefix", "end_of_word_suffix" };
    const json_t *type = json_object_get(model, "type"), *merges = json_object_get(model, "merges");
    const char *unk = json_string_value(json_object_get(model, "unk_token"));
    json_t *vocab = json_object_get(model, "vocab");

    if (type && !has_type(model, "BPE"))
        return wz_fail(err, "%s: model.type: expected BPE, got \"%.40s\"", tok->name,
                       json_is_string(type) ? json_string_value(type) : "?");
    if (!json_is_object(vocab)) return wz_fail(err, "%s: model.vocab: not an object", tok->name);
    if (!json_is_array(merges)) return wz_fail(err, "%s: model.merges: not a list", tok->name);
    for (size_t i = 0; i < WZ_COUNT(absent); i++)
        if (json_string_length(json_object_get(model, absent[i])))
            return wz_fail(err, "%s: model.%s is set, which is not supported", tok->name, absent[i]);
    if (json_number_value(json_object_get(model, "dropout")) != 0)
        return wz_fail(err, "%s: model.dropout is set, which is not supported", tok->name);
    tok->byte_fallback = json_is_true(json_object_get(model, "byte_fallback"));
    tok->fuse_unk = json_is_true(json_object_get(model, "fuse_unk"));
    tok->ignore_merges = json_is_true(json_object_get(model, "ignore_merges"));
    if (read_vocab(tok, vocab, err) < 0) return -1;
    if (unk) tok->unk = wz_tokenizer_id(tok, unk);
    return 0;
}

int wz_load_json(struct wz_tokenizer *tok, const char *bytes, size_t n, struct wz_err *err)
{
    struct wz_buf b = { 0 };
    json_t *root, *token;
    size_t i;
    int rc = -1;

    wz_buf_add(&b, bytes, n);
    for (char *p = b.data, *end = p + n; (p = memchr(p, '\\', (size_t)(end - p))) && end - p >= 6; p += 2)
        if (memcmp(p, "\\u0000", 6) == 0) memcpy(p, "\\uffff", 6); /* WZ_NUL_CHAR */
    root = wz_json_parse(b.data, n, tok->name, err);
    wz_buf_finish(&b);
    if (!root) return -1;
    if (!json_is_object(json_object_get(root, "model"))) {
        wz_fail(err, "%s: not a tokenizer.json: no object \"model\"", tok->name);
        goto out;
    }
    if (read_model(tok, json_object_get(root, "model"), err) < 0) goto out;
    json_array_foreach(json_object_get(root, "added_tokens"), i, token)
    {
        const json_t *id = json_object_get(token, "id");
        if (read_added(tok, token, json_is_integer(id) ? json_integer_value(id) : -1, err) < 0) goto out;
    }
    if (read_merges(tok, json_object_get(json_object_get(root, "model"), "merges"), err) < 0) goto out;
    tok->normalizer = json_incref(json_object_get(root, "normalizer"));
    tok->pre = json_incref(json_object_get(root, "pre_tokenizer"));
    tok->post = json_incref(json_object_get(root, "post_processor"));
    tok->decoder = json_incref(json_object_get(root, "decoder"));
    tok->as_read = true;
    rc = 0;
out:
    json_decref(root);
    return rc;
}

/* ---- the files beside it ---------------------------------------------------------------------------------- */

/* A JSON object of the folder, empty where there is no such file. */
static json_t *object_in(const char *dir, const char *name, struct wz_err *err)
{
    char *path = wz_path("%s/%s", dir, name);
    json_t *j = wz_file_exists(path) ? wz_json_load(path, err) : json_object();

    if (j && !json_is_object(j)) {
        wz_fail(err, "%s: expected an object", path);
        json_decref(j);
        j = NULL;
    }
    free(path);
    return j;
}

/* The text of a special token: a string, or an added token's object. NULL: neither, or empty. */
static const char *text_of(const json_t *token)
{
    const char *text = json_string_value(json_is_object(token) ? json_object_get(token, "content") : token);

    return text && *text ? text : NULL;
}

/* BOS or EOS. Where the key is null, or absent of a class without defaults, there is none. */
static int read_special(const struct wz_tokenizer *tok, const json_t *config, const char *key, int *id,
                        struct wz_err *err)
{
    const json_t *value = json_object_get(config, key);
    const char *text = text_of(value), *class = json_string_value(json_object_get(config, "tokenizer_class"));

    if (!text && (value || (class && wz_is_choice("PreTrainedTokenizerFast|TokenizersBackend", class)))) *id = WZ_NO_ID;
    if (!text) return 0;
    *id = wz_tokenizer_id(tok, text);
    return *id >= 0 ? 0 : wz_fail(err, "%s: %s: \"%.60s\" is no token of it", tok->name, key, text);
}

/* The special tokens that the files name: those a chat template can write by name. */
static void read_named(struct wz_tokenizer *tok, const json_t *config)
{
    const json_t *const from[] = { config, json_object_get(config, "extra_special_tokens") };
    const char *key;
    json_t *value;

    tok->named = json_object();
    for (size_t i = 0; i < WZ_COUNT(from); i++) json_object_foreach((json_t *)(uintptr_t)from[i], key, value)
        {
            const size_t n = strlen(key);
            const bool names = i > 0 || (n > 6 && !strcmp(key + n - 6, "_token"));
            if (names && text_of(value)) json_object_set_new(tok->named, key, json_string(text_of(value)));
        }
}

/* What folders had before added_tokens_decoder: special_tokens_map.json, which speaks before the config, and
 * added_tokens.json, {text: id} of tokens that the vocabulary may lack, special where they are named so. */
static int load_older(struct wz_tokenizer *tok, const char *dir, json_t *config, struct wz_err *err)
{
    json_t *map = object_in(dir, "special_tokens_map.json", err), *value, *token;
    json_t *added = map ? object_in(dir, "added_tokens.json", err) : NULL;
    const char *key, *name;
    int rc = added ? json_object_update(config, map) : -1;

    json_object_foreach(added, key, value)
    {
        bool special = false;
        size_t i;
        json_object_foreach(config, name, token) special |= text_of(token) && !strcmp(text_of(token), key);
        json_array_foreach(json_object_get(config, "additional_special_tokens"), i, token) special |=
            text_of(token) && !strcmp(text_of(token), key);
        if (rc < 0 || wz_tokenizer_id(tok, key) >= 0) continue;
        const int id =
            json_is_integer(value) && json_integer_value(value) < WZ_VOCAB_MAX ? (int)json_integer_value(value) : -1;
        rc = wz_vocab_mark(tok, id, key, strlen(key), special, special || tok->added_inside ? 0 : WZ_NORMALIZED, err);
    }
    json_decref(map);
    json_decref(added);
    return rc;
}

int wz_load_config(struct wz_tokenizer *tok, const char *dir, struct wz_err *err)
{
    json_t *config = object_in(dir, "tokenizer_config.json", err), *token, *jinja;
    const char *key;
    size_t i;
    int rc = -1;

    if (!config) return -1;
    json_object_foreach(json_object_get(config, "added_tokens_decoder"), key, token)
    {
        char *end;
        long id = strtol(key, &end, 10);
        if (read_added(tok, token, *end || !*key ? -1 : id, err) < 0) {
            wz_fail_in(err, "%s/tokenizer_config.json", dir);
            goto out;
        }
    }
    if (!json_object_get(config, "added_tokens_decoder") && load_older(tok, dir, config, err) < 0) goto out;
    if (read_special(tok, config, "bos_token", &tok->bos, err) < 0 ||
        read_special(tok, config, "eos_token", &tok->eos, err) < 0)
        goto out;
    read_named(tok, config);
    jinja = json_object_get(config, "chat_template");
    json_array_foreach(jinja, i, token)
    { /* a list of named templates, or an object of them: the one named "default" */
        const char *name = json_string_value(json_object_get(token, "name"));
        if (name && strcmp(name, "default") == 0) jinja = json_object_get(token, "template");
    }
    if (json_is_object(jinja)) jinja = json_object_get(jinja, "default");
    if (json_is_string(jinja)) {
        free(tok->jinja);
        tok->jinja = wz_strdup(json_string_value(jinja));
    }
    rc = 0;
out:
    json_decref(config);
    return rc;
}

int wz_load_jinja(struct wz_tokenizer *tok, const char *path, struct wz_err *err)
{
    struct wz_map map;

    if (wz_map_open(&map, path, err) < 0) return -1;
    free(tok->jinja);
    tok->jinja = strndup((const char *)map.bytes, map.len);
    wz_map_close(&map);
    return 0;
}
