/* Writing a tokenizer.json that the hub's `tokenizers` and Waltz read back to the same ids. Parts that came from a
 * tokenizer.json go out as they came in; the other kinds of files were put into its terms when they were read. */
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

static void write_part(struct wz_buf *b, const char *key, const json_t *part)
{
    char *s = part ? json_dumps(part, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;

    wz_buf_printf(b, "  \"%s\": %s,\n", key, s ? s : "null");
    free(s);
}

static void write_piece(struct wz_buf *b, const struct wz_piece *p)
{
    struct wz_buf text = { 0 };
    const char *end = p->text + p->n_text, *s = p->text;

    for (const char *nul; (nul = memmem(s, (size_t)(end - s), "\xef\xbf\xbf", 3)); s = nul + 3) {
        wz_buf_add(&text, s, (size_t)(nul - s));
        wz_buf_add(&text, "", 1);
    }
    wz_buf_add(&text, s, (size_t)(end - s));
    wz_json_string(b, text.data, text.len);
    wz_buf_finish(&text);
}

static void write_added(const struct wz_tokenizer *tok, struct wz_buf *b)
{
    const char *comma = "\n";

    wz_buf_str(b, "  \"added_tokens\": [");
    for (int id = 0; id < tok->n; id++) {
        const struct wz_piece *p = &tok->pieces[id];
        if (p->kind != WZ_PIECE_ADDED && p->kind != WZ_PIECE_SPECIAL) continue;
        wz_buf_printf(b, "%s    {\"id\": %d, \"content\": ", comma, id);
        write_piece(b, p);
        wz_buf_printf(
            b,
            ", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, \"normalized\": false, \"special\": %s}",
            p->kind == WZ_PIECE_SPECIAL ? "true" : "false");
        comma = ",\n";
    }
    wz_buf_str(b, "\n  ],\n");
}

/* Whether "left right" could not be told apart again: a blank in the piece, or a NUL (which is kept as U+FFFF). */
static bool needs_pair(const struct wz_piece *p)
{
    return memchr(p->text, ' ', (size_t)p->n_text) || memmem(p->text, (size_t)p->n_text, "\xef\xbf\xbf", 3);
}

/* Merges as "left right", which all versions of the hub's library read; where a piece does not allow it, all as
 * pairs. */
static void write_merges(const struct wz_tokenizer *tok, struct wz_buf *b)
{
    struct wz_merge *list = wz_alloc(wz_mul(tok->n_merges, sizeof *list));
    struct wz_buf text = { 0 };
    bool pairs = false;
    size_t n = 0;

    for (size_t i = 0; i < tok->merge_slots; i++) {
        if (tok->merges[i].left < 0) continue;
        pairs =
            pairs || needs_pair(&tok->pieces[tok->merges[i].left]) || needs_pair(&tok->pieces[tok->merges[i].right]);
        list[n++] = tok->merges[i];
    }
    qsort(list, n, sizeof *list, compare_merges);
    wz_buf_str(b, "    \"merges\": [");
    for (size_t i = 0; i < n; i++) {
        const struct wz_piece *left = &tok->pieces[list[i].left], *right = &tok->pieces[list[i].right];
        wz_buf_str(b, i ? ",\n      " : "\n      ");
        if (pairs) {
            wz_buf_str(b, "[");
            write_piece(b, left);
            wz_buf_str(b, ", ");
            write_piece(b, right);
            wz_buf_str(b, "]");
        } else {
            wz_buf_clear(&text);
            wz_buf_add(&text, left->text, (size_t)left->n_text);
            wz_buf_str(&text, " ");
            wz_buf_add(&text, right->text, (size_t)right->n_text);
            wz_json_string(b, text.data, text.len);
        }
    }
    wz_buf_str(b, "\n    ]\n");
    wz_buf_finish(&text);
    free(list);
}

static int write_config(const struct wz_tokenizer *tok, const char *path, struct wz_err *err)
{
    const struct wz_piece *bos = wz_vocab_at(tok, tok->bos), *eos = wz_vocab_at(tok, tok->eos);
    struct wz_buf b = { 0 };

    wz_buf_str(&b, "{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\",\n  \"clean_up_tokenization_spaces\": false");
    wz_buf_str(&b, ",\n  \"bos_token\": ");
    if (bos) write_piece(&b, bos);
    else wz_buf_str(&b, "null");
    wz_buf_str(&b, ",\n  \"eos_token\": ");
    if (eos) write_piece(&b, eos);
    else wz_buf_str(&b, "null");
    if (tok->jinja) {
        wz_buf_str(&b, ",\n  \"chat_template\": ");
        wz_json_string(&b, tok->jinja, strlen(tok->jinja));
    }
    if (tok->template && strcmp(tok->template, "?") != 0) {
        wz_buf_str(&b, ",\n  \"waltz_template\": ");
        wz_json_string(&b, tok->template, strlen(tok->template));
    }
    wz_buf_str(&b, "\n}\n");
    int rc = wz_file_write(path, b.data, b.len, err);
    wz_buf_finish(&b);
    return rc;
}

int wz_tokenizer_save(const struct wz_tokenizer *tok, const char *dir, struct wz_err *err)
{
    char *path = wz_path("%s/tokenizer.json", dir), *config = wz_path("%s/tokenizer_config.json", dir);
    const struct wz_piece *unk = wz_vocab_at(tok, tok->unk);
    const char *comma = "\n";
    struct wz_buf b = { 0 };
    int rc = -1;

    wz_buf_str(&b, "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n");
    write_added(tok, &b);
    write_part(&b, "normalizer", tok->normalizer);
    write_part(&b, "pre_tokenizer", tok->pre);
    write_part(&b, "post_processor", tok->post);
    write_part(&b, "decoder", tok->decoder);
    wz_buf_str(&b, "  \"model\": {\n    \"type\": \"BPE\",\n    \"dropout\": null,\n    \"unk_token\": ");
    if (unk) write_piece(&b, unk);
    else wz_buf_str(&b, "null");
    wz_buf_printf(
        &b,
        ",\n    \"continuing_subword_prefix\": null,\n    \"end_of_word_suffix\": null,\n    \"fuse_unk\": %s,\n"
        "    \"byte_fallback\": %s,\n    \"ignore_merges\": %s,\n    \"vocab\": {",
        tok->fuse_unk ? "true" : "false", tok->byte_fallback ? "true" : "false", tok->ignore_merges ? "true" : "false");
    for (int id = 0; id < tok->n; id++) {
        if (tok->pieces[id].kind == WZ_PIECE_NONE) continue;
        wz_buf_printf(&b, "%s      ", comma);
        write_piece(&b, &tok->pieces[id]);
        wz_buf_printf(&b, ": %d", id);
        comma = ",\n";
    }
    wz_buf_str(&b, "\n    },\n");
    write_merges(tok, &b);
    wz_buf_str(&b, "  }\n}\n");
    if (wz_mkdirs(dir, err) == 0 && wz_file_write(path, b.data, b.len, err) == 0) rc = write_config(tok, config, err);
    wz_buf_finish(&b);
    free(path);
    free(config);
    return rc;
}
