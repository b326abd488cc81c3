/* Writing a tokenizer: the files of a folder as the bytes that were read, so that what Waltz has no use for (padding,
 * lengths, slots of special tokens) is kept too. Of other kinds of files a tokenizer.json is made that Hugging Face's
 * `tokenizers` and Waltz read back to the same ids. */
#include "text/tokenizer_inside.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

const char *const wz_tokenizer_files[WZ_FILES] = {
    [WZ_FILE_JSON] = "tokenizer.json",
    [WZ_FILE_SPM] = "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
};

int wz_tokenizer_keep(struct wz_tokenizer *tok, const char *dir, bool hub, struct wz_err *err)
{
    const int own = tok->added_inside ? WZ_FILE_SPM : WZ_FILE_JSON;
    struct wz_map map;

    if (!tok->as_read) return 0;
    for (int i = 0; i < WZ_FILES; i++) {
        char *path = i == own ? wz_strdup(tok->name) : wz_path("%s/%s", dir, wz_tokenizer_files[i]);
        int rc = i == own || (hub && wz_file_exists(path)) ? wz_map_open(&map, path, err) : 1;
        if (rc == 0) wz_buf_add(&tok->kept[i], map.bytes, map.len);
        if (rc == 0) wz_map_close(&map);
        free(path);
        if (rc < 0) return -1;
    }
    return 0;
}

/* The bytes that were kept; other files of a tokenizer go, since they would be read with the new ones. */
static int save_kept(const struct wz_tokenizer *tok, const char *dir, struct wz_err *err)
{
    int rc = wz_mkdirs(dir, err);

    for (int i = 0; i < WZ_FILES && rc == 0; i++) {
        char *path = wz_path("%s/%s", dir, wz_tokenizer_files[i]);
        if (tok->kept[i].len) rc = wz_file_write(path, tok->kept[i].data, tok->kept[i].len, err);
        else if (unlink(path) < 0 && errno != ENOENT) rc = wz_fail(err, "%s: %s", path, strerror(errno));
        free(path);
    }
    return rc;
}

/* Whether a tokenizer.json can say where SentencePiece finds its user-defined pieces: in the normalized text, as added
 * tokens whose texts normalizing leaves as they are. A blank put in front of every text is put before theirs too. */
static bool json_can_say(const struct wz_tokenizer *tok)
{
    struct wz_cut cut = { 0 };
    struct wz_err err;
    bool can = true;

    for (int i = 0; i < tok->raw.n && can && tok->added_inside; i++) {
        const struct wz_pattern *p = &tok->raw.list[i];
        can = wz_stages_run(tok->normalize, p->text, (size_t)p->n, true, &cut, &err) == 0 &&
              cut.text.len == (size_t)p->n && memcmp(cut.text.data, p->text, (size_t)p->n) == 0;
    }
    wz_cut_finish(&cut);
    return can;
}

static json_t *json_of(const struct wz_tokenizer *tok)
{
    json_t *added = json_array(), *vocab = json_object();

    for (int id = 0; id < tok->n; id++) {
        const struct wz_piece *p = &tok->pieces[id];
        json_t *text;
        if (p->kind == WZ_PIECE_NONE) continue;
        text = piece_json(p);
        json_object_setn_new(vocab, json_string_value(text), json_string_length(text), json_integer(id));
        if (p->kind == WZ_PIECE_ADDED || p->kind == WZ_PIECE_SPECIAL)
            json_array_append_new(added, json_pack("{s:i, s:O, s:b, s:b, s:b, s:b, s:b}", "id", id, "content", text,
                                                   "single_word", 0, "lstrip", 0, "rstrip", 0, "normalized",
                                                   tok->added_inside && p->kind == WZ_PIECE_ADDED, "special",
                                                   p->kind == WZ_PIECE_SPECIAL));
        json_decref(text);
    }
    json_t *model = json_pack("{s:s, s:n, s:o, s:n, s:n, s:b, s:b, s:b, s:o, s:o}", "type", "BPE", "dropout",
                              "unk_token", piece_json(wz_vocab_at(tok, tok->unk)), "continuing_subword_prefix",
                              "end_of_word_suffix", "fuse_unk", tok->fuse_unk, "byte_fallback", tok->byte_fallback,
                              "ignore_merges", tok->ignore_merges, "vocab", vocab, "merges", merges_json(tok));
    return json_pack("{s:s, s:n, s:n, s:o, s:O?, s:O?, s:O?, s:O?, s:o}", "version", "1.0", "truncation", "padding",
                     "added_tokens", added, "normalizer", tok->normalizer, "pre_tokenizer", tok->pre, "post_processor",
                     tok->post, "decoder", tok->decoder, "model", model);
}

int wz_tokenizer_save(const struct wz_tokenizer *tok, const char *dir, struct wz_err *err)
{
    struct wz_buf jinja = { 0 }, spm = { 0 };
    int rc = save_kept(tok, dir, err);

    if (rc < 0 || tok->as_read) return rc;
    const bool json = json_can_say(tok);
    json_t *config =
        json_pack("{s:s, s:b, s:o, s:o, s:o}", "tokenizer_class", json ? "PreTrainedTokenizerFast" : "LlamaTokenizer",
                  "clean_up_tokenization_spaces", 0, "bos_token", piece_json(wz_vocab_at(tok, tok->bos)), "eos_token",
                  piece_json(wz_vocab_at(tok, tok->eos)), "pad_token", piece_json(wz_vocab_at(tok, tok->pad)));
    if (tok->jinja) { /* by wz_json_string: a template may hold bytes that are not UTF-8 */
        wz_json_string(&jinja, tok->jinja, strlen(tok->jinja));
        json_object_set_new(config, "chat_template", json_loads(jinja.data, JSON_DECODE_ANY, NULL));
        wz_buf_finish(&jinja);
    }
    char *path = wz_path("%s/%s", dir, wz_tokenizer_files[json ? WZ_FILE_JSON : WZ_FILE_SPM]);
    char *config_path = wz_path("%s/tokenizer_config.json", dir);
    if (!json) wz_spm_pack(tok, &spm);
    rc = json ? wz_json_save(json_of(tok), path, err) : wz_file_write(path, spm.data, spm.len, err);
    if (rc == 0) rc = wz_json_save(json_incref(config), config_path, err);
    json_decref(config);
    wz_buf_finish(&spm);
    free(path);
    free(config_path);
    return rc;
}
