/* Encoding and decoding, and the choice of a reader for a file by its first bytes:
 *
 *   "GGUF"                       GGUF metadata                 tokenizer_gguf.c
 *   "{"                          tokenizer.json                tokenizer_json.c
 *   base64, blank, number        Meta's ranks                  tokenizer_ranks.c
 *   0x0a (field 1, a message)    SentencePiece ModelProto      spm.c
 *   int32 longest piece          llama2.c tokenizer .bin       spm.c
 *
 * A .bin whose longest piece has 10 bytes begins like a ModelProto, so the ending of the name counts there. */
#include "store/store.h"

#include <stdlib.h>
#include <string.h>

#include "text/jinja.h"
#include "text/tokenizer_inside.h"

void wz_ids_append(struct wz_ids *list, const int *ids, int n)
{
    if (n > list->cap - list->n) {
        list->cap = list->n + n < 2 * list->cap ? 2 * list->cap : list->n + n + 16;
        list->ids = wz_realloc(list->ids, wz_mul((size_t)list->cap, sizeof *list->ids));
    }
    if (n > 0) memcpy(list->ids + list->n, ids, (size_t)n * sizeof *ids);
    list->n += n;
}

void wz_ids_add(struct wz_ids *list, int id) { wz_ids_append(list, &id, 1); }

void wz_ids_finish(struct wz_ids *list)
{
    free(list->ids);
    *list = (struct wz_ids){ 0 };
}

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);

    return n >= m && strcmp(s + n - m, end) == 0;
}

static bool is_ranks(const uint8_t *s, size_t n)
{
    size_t i = 0;

    while (i < n && i < 4096 && s[i] > ' ' && s[i] < 0x7f) i++;
    return i > 0 && i + 1 < n && s[i] == ' ' && s[i + 1] >= '0' && s[i + 1] <= '9';
}

static int load_file(struct wz_tokenizer *tok, struct wz_err *err)
{
    struct wz_map map;
    size_t i = 0;
    int rc;

    if (wz_map_open(&map, tok->name, err) < 0) return -1;
    const uint8_t *s = map.bytes;
    while (i < map.len && (s[i] == ' ' || s[i] == '\t' || s[i] == '\r' || s[i] == '\n')) i++;
    if (map.len >= 4 && memcmp(s, "GGUF", 4) == 0) rc = wz_load_gguf(tok, tok->name, err);
    else if (ends_with(tok->name, ".json") || (i < map.len && s[i] == '{'))
        rc = wz_load_json(tok, (const char *)s, map.len, err);
    else if (is_ranks(s, map.len)) rc = wz_load_ranks(tok, (const char *)s, map.len, err);
    else if (!ends_with(tok->name, ".bin") && map.len && s[0] == 0x0a) rc = wz_load_spm(tok, s, map.len, err);
    else rc = wz_load_llama2c(tok, s, map.len, err);
    wz_map_close(&map);
    return rc;
}

struct wz_tokenizer *wz_tokenizer_load(const char *named, struct wz_err *err)
{
    char *path = wz_model_at(named, err), *own = wz_path("%s/tokenizer.json", path ? path : ""),
         *spm = wz_path("%s/tokenizer.model", path ? path : "");

    if (path && wz_is_dir(path) && !wz_file_exists(own) && !wz_file_exists(spm)) { /* an adapter's may be its base's */
        free(path);
        path = wz_base_at(named, err);
    }
    free(own);
    free(spm);
    if (!path) return NULL;
    struct wz_tokenizer *tok = wz_alloc(sizeof *tok);
    const char *slash = strrchr(path, '/');
    char *dir = wz_is_dir(path) ? wz_strdup(path) : slash ? wz_path("%.*s", (int)(slash - path), path) : wz_strdup(".");
    char *jinja = wz_path("%s/chat_template.jinja", dir);
    int rc = -1;

    tok->bos = tok->eos = tok->unk = tok->pad = -1;
    tok->name = wz_is_dir(path) ? wz_path("%s/tokenizer.json", path) : wz_strdup(path);
    if (wz_is_dir(path) && !wz_file_exists(tok->name)) {
        free(tok->name);
        tok->name = wz_path("%s/tokenizer.model", path);
        if (!wz_file_exists(tok->name)) {
            wz_fail(err, "%s: no tokenizer.json or tokenizer.model in the folder", path);
            goto out;
        }
    }
    if (load_file(tok, err) < 0) goto out;
    /* The folder's config applies to files with Hugging Face's names, not to others in it. */
    const char *base = strrchr(tok->name, '/');
    base = base ? base + 1 : tok->name;
    bool hub = strcmp(base, "tokenizer.json") == 0 || strcmp(base, "tokenizer.model") == 0;
    if (hub && wz_load_config(tok, dir, err) < 0) goto out;
    if (hub && wz_file_exists(jinja) && wz_load_jinja(tok, jinja, err) < 0) goto out;
    rc = wz_vocab_complete(tok, err);
    if (rc == 0) rc = wz_tokenizer_keep(tok, dir, hub, err);
    if (rc == 0 && tok->jinja) tok->chat = wz_jinja_parse(tok->jinja, tok->name, &tok->chat_problem);
out:
    free(path);
    free(dir);
    free(jinja);
    if (rc == 0) return tok;
    wz_tokenizer_destroy(tok);
    return NULL;
}

void wz_tokenizer_destroy(struct wz_tokenizer *tok)
{
    if (!tok) return;
    wz_stages_destroy(tok->normalize);
    wz_stages_destroy(tok->split);
    wz_stages_destroy(tok->show);
    for (int i = 0; i < WZ_FILES; i++) wz_buf_finish(&tok->kept[i]);
    json_decref(tok->normalizer);
    json_decref(tok->pre);
    json_decref(tok->post);
    json_decref(tok->decoder);
    json_decref(tok->named);
    wz_arena_finish(&tok->arena);
    free(tok->pieces);
    free(tok->slots);
    free(tok->merges);
    free(tok->raw.list);
    free(tok->normal.list);
    free(tok->jinja);
    wz_jinja_destroy(tok->chat);
    free(tok->name);
    free(tok);
}

int wz_tokenizer_vocab(const struct wz_tokenizer *tok) { return tok->n; }

int wz_tokenizer_bos(const struct wz_tokenizer *tok) { return tok->bos; }

int wz_tokenizer_eos(const struct wz_tokenizer *tok) { return tok->eos; }

int wz_tokenizer_id(const struct wz_tokenizer *tok, const char *piece)
{
    return wz_vocab_find(tok, piece, strlen(piece));
}

/* ---- encoding --------------------------------------------------------------------------------------------- */

struct work {
    struct wz_cut normal, cut;
    struct wz_bpe bpe;
    struct wz_ids *out;
    struct wz_err *err;
};

/* A text without added pieces: normalized before. */
static int encode_plain(const struct wz_tokenizer *tok, struct work *w, const char *s, size_t n, bool first)
{
    if (wz_stages_run(tok->split, s, n, first, &w->cut, w->err) < 0) return -1;
    for (int i = 0; i < w->cut.n; i++)
        if (wz_bpe_run(tok, w->cut.text.data + w->cut.list[i].at, w->cut.list[i].len, &w->bpe, w->out, w->err) < 0)
            return -1;
    return 0;
}

bool wz_beside_words(const char *s, size_t n, size_t from, size_t to)
{
    int len;

    return (from > 0 && wz_char_word(wz_char_before(s, from, &len))) ||
           (to < n && wz_char_word(wz_utf8_get(s + to, n - to, &len)));
}

static int encode_split(const struct wz_tokenizer *tok, struct work *w, const struct wz_added *added, const char *s,
                        size_t n, bool first);

/* What lies between two added pieces: normalized it may hold others, and is plain text then. */
static int encode_between(const struct wz_tokenizer *tok, struct work *w, const struct wz_added *added, const char *s,
                          size_t n, bool first)
{
    if (n == 0) return 0;
    if (added == &tok->normal) return encode_plain(tok, w, s, n, first);
    if (wz_stages_run(tok->normalize, s, n, first, &w->normal, w->err) < 0) return -1;
    return encode_split(tok, w, &tok->normal, w->normal.text.data, w->normal.text.len, first);
}

/* Takes the added pieces out, the leftmost and longest first. A match ends before the whitespace that it takes in, so
 * the next one may begin within that, as in `tokenizers`. */
static int encode_split(const struct wz_tokenizer *tok, struct work *w, const struct wz_added *added, const char *s,
                        size_t n, bool first)
{
    size_t done = 0;
    int len;

    for (size_t at = 0; at < n && added->n && !tok->added_inside;) {
        const struct wz_pattern *found = wz_added_find(added, s + at, n - at);
        size_t from = at, to = at += found ? (size_t)found->n : 1;
        const struct wz_piece *p = found ? &tok->pieces[found->id] : NULL;
        if (!p || p->kind == WZ_PIECE_SPECIAL || (p->flags & WZ_SINGLE_WORD && wz_beside_words(s, n, from, to)))
            continue;
        if (p->flags & WZ_LSTRIP)
            while (from > done && wz_char_space(wz_char_before(s, from, &len))) from -= (size_t)len;
        if (p->flags & WZ_RSTRIP)
            while (to < n && wz_char_space(wz_utf8_get(s + to, n - to, &len))) to += (size_t)len;
        if (from > done && encode_between(tok, w, added, s + done, from - done, first && done == 0) < 0) return -1;
        wz_ids_add(w->out, found->id);
        done = to;
    }
    return encode_between(tok, w, added, s + done, n - done, first && done == 0);
}

int wz_encode_part(const struct wz_tokenizer *tok, const char *text, size_t n, bool first, struct wz_ids *out,
                   struct wz_err *err)
{
    size_t valid = wz_utf8_valid(text, n);
    struct work w = { .out = out, .err = err };
    int before = out->n;

    if (valid < n) return wz_fail(err, "invalid UTF-8 at byte %zu: 0x%02X", valid, (unsigned char)text[valid]);
    if (n > WZ_TEXT_MAX) return wz_fail(err, "expected a text of at most %d bytes, got %zu", WZ_TEXT_MAX, n);
    int rc = encode_split(tok, &w, &tok->raw, text, n, first);
    if (rc < 0) out->n = before;
    wz_cut_finish(&w.normal);
    wz_cut_finish(&w.cut);
    wz_bpe_finish(&w.bpe);
    return rc;
}

int wz_encode(const struct wz_tokenizer *tok, const char *text, size_t n, struct wz_ids *out, struct wz_err *err)
{
    return wz_encode_part(tok, text, n, true, out, err);
}

/* ---- decoding --------------------------------------------------------------------------------------------- */

/* Appends the bytes of one id; *begun: whether an id was decoded before it. */
static void decode_id(const struct wz_tokenizer *tok, int id, bool specials, bool *begun, struct wz_buf *out)
{
    const struct wz_piece *p = wz_vocab_at(tok, id);

    if (!p || (p->kind == WZ_PIECE_SPECIAL && !specials)) return;
    int skip = tok->strip && !*begun && p->n_bytes && p->bytes[0] == ' ';
    wz_buf_add(out, p->bytes + skip, (size_t)(p->n_bytes - skip));
    *begun = true;
}

static bool is_byte(const struct wz_tokenizer *tok, int id)
{
    const struct wz_piece *p = wz_vocab_at(tok, id);

    return p && p->kind == WZ_PIECE_BYTE;
}

void wz_decode(const struct wz_tokenizer *tok, const int *ids, int n, bool specials, struct wz_buf *out)
{
    bool begun = false;

    wz_buf_add(out, "", 0);
    for (int i = 0, run; i < n; i += run ? run : 1) {
        const size_t from = out->len;
        for (run = 0; i + run < n && is_byte(tok, ids[i + run]); run++)
            decode_id(tok, ids[i + run], specials, &begun, out);
        if (!run) decode_id(tok, ids[i], specials, &begun, out);
        else if (from + wz_utf8_valid(out->data + from, out->len - from) == out->len) continue;
        else
            for (out->len = from; out->len < from + 3 * (size_t)run;) wz_buf_str(out, "\xef\xbf\xbd");
    }
}

void wz_stream_add(const struct wz_tokenizer *tok, struct wz_stream *stream, int id, struct wz_buf *out)
{
    struct wz_buf b = { 0 };
    size_t at = 0;

    wz_buf_add(&b, stream->rest, (size_t)stream->n);
    decode_id(tok, id, false, &stream->begun, &b);
    for (;;) {
        size_t ok = wz_utf8_valid(b.data + at, b.len - at);
        wz_buf_add(out, b.data + at, ok);
        at += ok;
        if (wz_utf8_partial(b.data + at, b.len - at) == b.len - at)
            break; /* nothing left, or an incomplete character */
        wz_buf_str(out, "\xef\xbf\xbd");
        at += wz_utf8_bad(b.data + at, b.len - at);
    }
    stream->n = (int)(b.len - at);
    memcpy(stream->rest, b.data + at, b.len - at);
    wz_buf_finish(&b);
}

void wz_stream_flush(struct wz_stream *stream, struct wz_buf *out)
{
    if (stream->n) wz_buf_str(out, "\xef\xbf\xbd");
    *stream = (struct wz_stream){ 0 };
}
