/* Writing a tokenizer.json that Hugging Face's `tokenizers` and Waltz read back to the same ids. Parts read from a
 * tokenizer.json are written unchanged; other kinds of files were converted to its terms when they were read. */
#include "text/tokenizer_inside.h"

#include <stdlib.h>
#include <string.h>

static int compare_merges(const void *x, const void *y)
{
    const struct wz_merge *a = x, *b = y;

    if (a->rank != b->rank) return a->rank < b->rank ? -1 : 1;
    if (a->left != b->left) return a->left < b->left ? -1 : 1;
    return (a->right > b->right) - (a->right < b->right);
}

/* A piece's text; U+FFFF stands for NUL in memory (WZ_NUL_CHAR). NULL: JSON null. */
static json_t *piece_json(const struct wz_piece *p)
{
    struct wz_buf text = { 0 };

    if (!p) return json_null();
    const char *end = p->text + p->n_text, *s = p->text;
    for (const char *nul; (nul = memmem(s, (size_t)(end - s), "\xef\xbf\xbf", 3)); s = nul + 3) {
        wz_buf_add(&text, s, (size_t)(nul - s));
        wz_buf_add(&text, "", 1);
    }
    wz_buf_add(&text, s, (size_t)(end - s));
    json_t *j = json_stringn(text.data, text.len);
    wz_buf_finish(&text);
    return j;
}

/* Whether "left right" can't be split again: a space in the piece, or a NUL (kept as U+FFFF). */
static bool needs_pair(const struct wz_piece *p)
{
    return memchr(p->text, ' ', (size_t)p->n_text) || memmem(p->text, (size_t)p->n_text, "\xef\xbf\xbf", 3);
}

/* Merges as "left right", which all versions of `tokenizers` read; all as pairs where a piece requires it. */
static json_t *merges_json(const struct wz_tokenizer *tok)
{
    struct wz_merge *list = wz_alloc(wz_mul(tok->n_merges, sizeof *list));
    json_t *merges = json_array();
    bool pairs = false;
    size_t n = 0;

    for (size_t i = 0; i < tok->merge_slots; i++) {
        const struct wz_merge *m = &tok->merges[i];
        if (m->left < 0) continue;
        pairs = pairs || needs_pair(&tok->pieces[m->left]) || needs_pair(&tok->pieces[m->right]);
        list[n++] = *m;
    }
    qsort(list, n, sizeof *list, compare_merges);
    for (size_t i = 0; i < n; i++) {
        const struct wz_piece *l = &tok->pieces[list[i].left], *r = &tok->pieces[list[i].right];
        json_array_append_new(merges, pairs ? json_pack("[o, o]", piece_json(l), piece_json(r))
                                            : json_sprintf("%s %s", l->text, r->text));
    }
    free(list);
    return merges;
}

int wz_tokenizer_save(const struct wz_tokenizer *tok, const char *dir, struct wz_err *err)
{
    json_t *added = json_array(), *vocab = json_object();
    struct wz_buf jinja = { 0 };

    for (int id = 0; id < tok->n; id++) {
        const struct wz_piece *p = &tok->pieces[id];
        json_t *text;
        if (p->kind == WZ_PIECE_NONE) continue;
        text = piece_json(p);
        json_object_setn_new(vocab, json_string_value(text), json_string_length(text), json_integer(id));
        if (p->kind == WZ_PIECE_ADDED || p->kind == WZ_PIECE_SPECIAL)
            json_array_append_new(added, json_pack("{s:i, s:O, s:b, s:b, s:b, s:b, s:b}", "id", id, "content", text,
                                                   "single_word", 0, "lstrip", 0, "rstrip", 0, "normalized", 0,
                                                   "special", p->kind == WZ_PIECE_SPECIAL));
        json_decref(text);
    }
    json_t *model = json_pack("{s:s, s:n, s:o, s:n, s:n, s:b, s:b, s:b, s:o, s:o}", "type", "BPE", "dropout",
                              "unk_token", piece_json(wz_vocab_at(tok, tok->unk)), "continuing_subword_prefix",
                              "end_of_word_suffix", "fuse_unk", tok->fuse_unk, "byte_fallback", tok->byte_fallback,
                              "ignore_merges", tok->ignore_merges, "vocab", vocab, "merges", merges_json(tok));
    json_t *root = json_pack("{s:s, s:n, s:n, s:o, s:O?, s:O?, s:O?, s:O?, s:o}", "version", "1.0", "truncation",
                             "padding", "added_tokens", added, "normalizer", tok->normalizer, "pre_tokenizer", tok->pre,
                             "post_processor", tok->post, "decoder", tok->decoder, "model", model);
    json_t *config = json_pack("{s:s, s:b, s:o, s:o}", "tokenizer_class", "PreTrainedTokenizerFast",
                               "clean_up_tokenization_spaces", 0, "bos_token", piece_json(wz_vocab_at(tok, tok->bos)),
                               "eos_token", piece_json(wz_vocab_at(tok, tok->eos)));
    if (tok->jinja) { /* by wz_json_string: a template may hold bytes that are not UTF-8 */
        wz_json_string(&jinja, tok->jinja, strlen(tok->jinja));
        json_object_set_new(config, "chat_template", json_loads(jinja.data, JSON_DECODE_ANY, NULL));
        wz_buf_finish(&jinja);
    }
    if (tok->template && strcmp(tok->template, "?") != 0)
        json_object_set_new(config, "waltz_template", json_string(tok->template));
    char *path = wz_path("%s/tokenizer.json", dir), *config_path = wz_path("%s/tokenizer_config.json", dir);
    int rc = wz_mkdirs(dir, err);
    if (rc == 0) rc = wz_json_save(json_incref(root), path, err);
    if (rc == 0) rc = wz_json_save(json_incref(config), config_path, err);
    json_decref(root);
    json_decref(config);
    free(path);
    free(config_path);
    return rc;
}
