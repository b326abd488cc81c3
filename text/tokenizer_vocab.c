/* Pieces by id and by text, merges by their two halves. Both hash tables use open addressing, have a power of two of
 * slots and are at most three fifths full, so a look-up touches one or two cache lines. */
#include "text/tokenizer_inside.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The bytes that GPT-2 leaves as they are print well in Latin-1; the others, in order, move to U+0100 and on:
 *   0..32 -> 0x100..0x120    127..160 -> 0x121..0x142    173 -> 0x143 */
uint32_t wz_byte_char(unsigned char byte)
{
    if (byte <= 32) return 0x100u + byte;
    if (byte >= 127 && byte <= 160) return 0x121u + byte - 127u;
    return byte == 173 ? 0x143u : byte;
}

int wz_char_byte(uint32_t code)
{
    if (code >= 0x100)
        return code <= 0x120 ? (int)code - 0x100 : code <= 0x142 ? (int)code - 0x121 + 127 : code == 0x143 ? 173 : -1;
    return code <= 32 || (code >= 127 && code <= 160) || code == 173 ? -1 : (int)code;
}

static size_t piece_slot(const struct wz_tokenizer *tok, const char *text, size_t n)
{
    size_t at = wz_hash(text, n, 0) & (tok->n_slots - 1);

    for (; tok->slots[at]; at = (at + 1) & (tok->n_slots - 1)) {
        const struct wz_piece *p = &tok->pieces[tok->slots[at] - 1];
        if ((size_t)p->n_text == n && memcmp(p->text, text, n) == 0) break;
    }
    return at;
}

int wz_vocab_find(const struct wz_tokenizer *tok, const char *text, size_t n)
{
    return tok->n_slots ? tok->slots[piece_slot(tok, text, n)] - 1 : -1;
}

const struct wz_piece *wz_vocab_at(const struct wz_tokenizer *tok, int id)
{
    return id < 0 || id >= tok->n || tok->pieces[id].kind == WZ_PIECE_NONE ? NULL : &tok->pieces[id];
}

static void slots_grow(struct wz_tokenizer *tok)
{
    free(tok->slots);
    tok->n_slots = tok->n_slots ? 2 * tok->n_slots : 1024;
    tok->slots = wz_alloc(wz_mul(tok->n_slots, sizeof *tok->slots));
    for (int id = 0; id < tok->n; id++)
        if (tok->pieces[id].kind != WZ_PIECE_NONE)
            tok->slots[piece_slot(tok, tok->pieces[id].text, (size_t)tok->pieces[id].n_text)] = id + 1;
}

static char *keep(struct wz_tokenizer *tok, const char *s, size_t n)
{
    char *copy = wz_arena_alloc(&tok->arena, n + 1);

    return n ? memcpy(copy, s, n) : copy;
}

int wz_vocab_add(struct wz_tokenizer *tok, int id, const char *text, size_t n, enum wz_piece_kind kind, float score,
                 struct wz_err *err)
{
    int shown = n < 60 ? (int)n : 60;

    if (id < 0 || id >= WZ_VOCAB_MAX)
        return wz_fail(err, "%s: piece \"%.*s\": expected an id from 0 to %d, got %d", tok->name, shown, text,
                       WZ_VOCAB_MAX - 1, id);
    if (n == 0 || n > 4096) return wz_fail(err, "%s: piece %d: expected 1 to 4096 bytes, got %zu", tok->name, id, n);
    if (wz_utf8_valid(text, n) < n || memchr(text, 0, n))
        return wz_fail(err, "%s: piece %d is not valid UTF-8", tok->name, id);
    if (wz_vocab_at(tok, id))
        return wz_fail(err, "%s: id %d has two pieces, the second is \"%.*s\"", tok->name, id, shown, text);
    int other = wz_vocab_find(tok, text, n);
    if (other >= 0) return wz_fail(err, "%s: piece \"%.*s\" has two ids, %d and %d", tok->name, shown, text, other, id);
    if (!isfinite(score)) return wz_fail(err, "%s: piece %d has no finite score", tok->name, id);
    if (id >= tok->cap) {
        int cap = id + 1 < 2 * tok->cap ? 2 * tok->cap : id + 1024;
        tok->pieces = wz_realloc(tok->pieces, wz_mul((size_t)cap, sizeof *tok->pieces));
        memset(tok->pieces + tok->cap, 0, (size_t)(cap - tok->cap) * sizeof *tok->pieces);
        tok->cap = cap;
    }
    tok->pieces[id] = (struct wz_piece){ .text = keep(tok, text, n), .n_text = (int)n, .score = score, .kind = kind };
    if (id >= tok->n) tok->n = id + 1;
    if (++tok->n_used * 5 > tok->n_slots * 3) slots_grow(tok);
    else tok->slots[piece_slot(tok, text, n)] = id + 1;
    return 0;
}

int wz_vocab_mark(struct wz_tokenizer *tok, int id, const char *text, size_t n, bool special, int flags,
                  struct wz_err *err)
{
    enum wz_piece_kind kind = special ? WZ_PIECE_SPECIAL : WZ_PIECE_ADDED;

    if ((!wz_vocab_at(tok, id) || wz_vocab_find(tok, text, n) != id) &&
        wz_vocab_add(tok, id, text, n, kind, 0, err) < 0)
        return -1;
    tok->pieces[id].kind = kind;
    tok->pieces[id].flags = (uint8_t)flags;
    return 0;
}

static struct wz_merge *merge_slot(const struct wz_tokenizer *tok, int left, int right)
{
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    size_t at = (key * 0x9e3779b97f4a7c15u ^ (key * 0x9e3779b97f4a7c15u) >> 32) & (tok->merge_slots - 1);

    while (tok->merges[at].left >= 0 && (tok->merges[at].left != left || tok->merges[at].right != right))
        at = (at + 1) & (tok->merge_slots - 1);
    return &tok->merges[at];
}

const struct wz_merge *wz_merge_find(const struct wz_tokenizer *tok, int left, int right)
{
    if (left < 0 || right < 0 || !tok->merge_slots) return NULL;
    const struct wz_merge *m = merge_slot(tok, left, right);
    return m->left < 0 ? NULL : m;
}

/* The last entry of a pair counts, as in `tokenizers`. */
static void merge_put(struct wz_tokenizer *tok, int left, int right, int id, uint32_t rank)
{
    if ((tok->n_merges + 1) * 5 > tok->merge_slots * 3) {
        struct wz_merge *old = tok->merges;
        size_t n = tok->merge_slots;
        tok->merge_slots = n ? 2 * n : 1024;
        tok->merges = wz_alloc(wz_mul(tok->merge_slots, sizeof *old));
        for (size_t i = 0; i < tok->merge_slots; i++) tok->merges[i].left = -1;
        for (size_t i = 0; i < n; i++)
            if (old[i].left >= 0) *merge_slot(tok, old[i].left, old[i].right) = old[i];
        free(old);
    }
    struct wz_merge *m = merge_slot(tok, left, right);
    if (m->left < 0) tok->n_merges++;
    *m = (struct wz_merge){ left, right, id, rank };
}

int wz_merge_add(struct wz_tokenizer *tok, const char *left, size_t n_left, const char *right, size_t n_right,
                 uint32_t rank, struct wz_err *err)
{
    int a = wz_vocab_find(tok, left, n_left), b = wz_vocab_find(tok, right, n_right), id = -1;
    size_t n = n_left + n_right;

    if (a >= 0 && b >= 0) {
        char *both = wz_realloc(NULL, n + 1);
        memcpy(both, left, n_left);
        memcpy(both + n_left, right, n_right);
        id = wz_vocab_find(tok, both, n);
        free(both);
    }
    if (id < 0)
        return wz_fail(err, "%s: merge %u, \"%.*s\" and \"%.*s\": %s is not a piece", tok->name, rank,
                       (int)(n_left < 60 ? n_left : 60), left, (int)(n_right < 60 ? n_right : 60), right,
                       a < 0   ? "the first"
                       : b < 0 ? "the second"
                               : "both together");
    if (tok->pieces[id].kind != WZ_PIECE_SPECIAL) merge_put(tok, a, b, id, rank);
    return 0;
}

struct keyed {
    float key;
    int id;
};

static int falling_key(const void *x, const void *y)
{
    const struct keyed *a = x, *b = y;

    if (a->key != b->key) return a->key < b->key ? 1 : -1;
    return (a->id > b->id) - (a->id < b->id);
}

/* Ids of the normal pieces, by falling score, then by rising id: heap, *n of them. */
static struct keyed *sorted(const struct wz_tokenizer *tok, int *n)
{
    struct keyed *list = wz_alloc(wz_mul((size_t)tok->n + 1, sizeof *list));

    *n = 0;
    for (int id = 0; id < tok->n; id++) {
        const struct wz_piece *p = &tok->pieces[id];
        if (p->kind == WZ_PIECE_NORMAL) list[(*n)++] = (struct keyed){ p->score, id };
    }
    qsort(list, (size_t)*n, sizeof *list, falling_key);
    return list;
}

void wz_merges_derive(struct wz_tokenizer *tok)
{
    int n;
    struct keyed *order = sorted(tok, &n);
    uint32_t rank = 0;

    for (int i = 0; i < n; i++) {
        const struct wz_piece *p = &tok->pieces[order[i].id];
        if (i && order[i].key != order[i - 1].key) rank++;
        for (int at = 1; at < p->n_text; at++) {
            if ((p->text[at] & 0xc0) == 0x80) continue;
            int left = wz_vocab_find(tok, p->text, (size_t)at);
            if (left < 0 || tok->pieces[left].kind != WZ_PIECE_NORMAL) continue;
            int right = wz_vocab_find(tok, p->text + at, (size_t)(p->n_text - at));
            if (right >= 0 && tok->pieces[right].kind == WZ_PIECE_NORMAL)
                merge_put(tok, left, right, order[i].id, rank);
        }
    }
    free(order);
}

/* ---- added pieces ----------------------------------------------------------------------------------------- */

/* Byte `at` of a pattern, -1 behind its end. */
static int byte_at(const struct wz_pattern *p, int at) { return at < p->n ? (unsigned char)p->text[at] : -1; }

/* The first pattern in [lo, hi), which all begin with the same `at` bytes, whose next byte is at least c. */
static int lower(const struct wz_added *a, int lo, int hi, int at, int c)
{
    while (lo < hi) {
        int middle = lo + (hi - lo) / 2;
        if (byte_at(&a->list[middle], at) < c) lo = middle + 1;
        else hi = middle;
    }
    return lo;
}

const struct wz_pattern *wz_added_find(const struct wz_added *a, const char *s, size_t n)
{
    const struct wz_pattern *best = NULL;
    int lo = 0, hi = n && a->begins[(unsigned char)*s] ? a->n : 0;

    for (int at = 0; lo < hi && (size_t)at < n; at++) {
        lo = lower(a, lo, hi, at, (unsigned char)s[at]);
        hi = lower(a, lo, hi, at, (unsigned char)s[at] + 1);
        if (lo < hi && a->list[lo].n == at + 1) best = &a->list[lo];
    }
    return best;
}

static int by_text(const void *x, const void *y)
{
    const struct wz_pattern *a = x, *b = y;
    int order = memcmp(a->text, b->text, (size_t)(a->n < b->n ? a->n : b->n));

    return order ? order : a->n != b->n ? (a->n > b->n) - (a->n < b->n) : (a->id > b->id) - (a->id < b->id);
}

/* Fills the two lists. Special pieces are in them, so that what overlaps with one is no match, as in `tokenizers` when
 * it encodes special tokens as text; SentencePiece never looks for them. Of patterns that are equal once normalized the
 * special one counts, then the one with the lower id. */
static int list_added(struct wz_tokenizer *tok, struct wz_err *err)
{
    struct wz_cut cut = { 0 };
    int rc = 0;

    for (int i = 0; i < 2; i++) {
        struct wz_added *a = i ? &tok->normal : &tok->raw;
        int n = 0;
        a->list = wz_alloc(wz_mul((size_t)tok->n, sizeof *a->list));
        for (int id = 0; id < tok->n && rc == 0; id++) {
            const struct wz_piece *p = &tok->pieces[id];
            if (p->kind != WZ_PIECE_ADDED && (p->kind != WZ_PIECE_SPECIAL || tok->added_inside)) continue;
            if (((p->flags & WZ_NORMALIZED) != 0) != (i == 1)) continue;
            a->list[a->n] = (struct wz_pattern){ p->text, p->n_text, id };
            if (i && (rc = wz_stages_run(tok->normalize, p->text, (size_t)p->n_text, true, &cut, err)) == 0) {
                a->list[a->n].text = keep(tok, cut.text.data, cut.text.len);
                a->list[a->n].n = (int)cut.text.len;
                if (cut.text.len != (size_t)p->n_text || memcmp(cut.text.data, p->text, cut.text.len))
                    tok->pieces[id].flags |= WZ_UNLIKE;
            }
            a->n += a->list[a->n].n > 0;
        }
        qsort(a->list, (size_t)a->n, sizeof *a->list, by_text);
        for (int k = 0; k < a->n; k++) {
            struct wz_pattern *last = &a->list[n - 1], *p = &a->list[k];
            bool same = n && last->n == p->n && memcmp(last->text, p->text, (size_t)p->n) == 0;
            a->begins[(unsigned char)*p->text] = true;
            if (!same) a->list[n++] = *p;
            else if (tok->pieces[last->id].kind == WZ_PIECE_ADDED && tok->pieces[p->id].kind == WZ_PIECE_SPECIAL)
                *last = *p;
        }
        a->n = n;
    }
    wz_cut_finish(&cut);
    return rc;
}

static int hex(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1; }

/* The bytes that a piece decodes to: what the decoder's replacements leave, or the bytes of the alphabet; in a
 * byte-level vocabulary the text itself for added and special pieces, and for one with a character outside of it. */
static int decode_piece(struct wz_tokenizer *tok, struct wz_piece *p, struct wz_cut *cut, struct wz_buf *b,
                        struct wz_err *err)
{
    bool bytes = tok->byte_level && p->kind == WZ_PIECE_NORMAL;
    int len;

    wz_buf_clear(b);
    for (int at = 0; at < p->n_text && bytes; at += len)
        bytes = wz_char_byte(wz_utf8_get(p->text + at, (size_t)(p->n_text - at), &len)) >= 0;
    if (!bytes && wz_stages_run(tok->show, p->text, (size_t)p->n_text, true, cut, err) < 0) return -1;
    const char *text = bytes ? p->text : cut->text.data;
    const int n = bytes ? p->n_text : (int)cut->text.len;
    for (int at = 0; at < n; at += len) {
        uint32_t code = wz_utf8_get(text + at, (size_t)(n - at), &len);
        char byte = bytes ? (char)wz_char_byte(code) : 0;
        if (bytes || code == WZ_NUL_CHAR) wz_buf_add(b, &byte, 1);
        else wz_buf_add(b, text + at, (size_t)len);
    }
    if (p->kind == WZ_PIECE_BYTE) {
        char byte = (char)(hex(p->text[3]) << 4 | hex(p->text[4]));
        wz_buf_clear(b);
        wz_buf_add(b, &byte, 1);
    }
    p->bytes = keep(tok, b->data, b->len);
    p->n_bytes = (int)b->len;
    return 0;
}

/* BOS or EOS where the files do not name them: the names that models of these families use. */
static int known_id(const struct wz_tokenizer *tok, const char *const *names)
{
    for (; *names; names++) {
        int id = wz_tokenizer_id(tok, *names);
        if (id >= 0 && tok->pieces[id].kind == WZ_PIECE_SPECIAL) return id;
    }
    return -1;
}

bool wz_vocab_special(const struct wz_tokenizer *tok, int id)
{
    return tok->pieces[id].kind == WZ_PIECE_SPECIAL || id == tok->bos || id == tok->eos;
}

int wz_vocab_complete(struct wz_tokenizer *tok, struct wz_err *err)
{
    static const char *const bos[] = { "<|begin_of_text|>", "<s>", "<|endoftext|>", NULL };
    static const char *const eos[] = { "<|end_of_text|>", "</s>", "<|endoftext|>", NULL };
    struct wz_buf b = { 0 };
    struct wz_cut cut = { 0 };
    int rc = 0;

    if (!tok->n) return wz_fail(err, "%s: no tokens in the file", tok->name);
    if (!(tok->normalize = wz_stages_create(tok->normalizer, WZ_NORMALIZER, tok->name, err)) ||
        !(tok->split = wz_stages_create(tok->pre, WZ_PRE_TOKENIZER, tok->name, err)) || wz_load_decoder(tok, err) < 0 ||
        list_added(tok, err) < 0)
        return -1;
    tok->byte_level = wz_stages_byte_level(tok->split);
    for (int i = 0; i < 256; i++) tok->byte_ids[i] = -1;
    for (int id = 0; id < tok->n && rc == 0; id++) {
        struct wz_piece *p = &tok->pieces[id];
        if (tok->byte_fallback && (p->kind == WZ_PIECE_NORMAL || p->kind == WZ_PIECE_BYTE) && p->n_text == 6 &&
            memcmp(p->text, "<0x", 3) == 0 && p->text[5] == '>' && hex(p->text[3]) >= 0 && hex(p->text[4]) >= 0) {
            p->kind = WZ_PIECE_BYTE;
            tok->byte_ids[hex(p->text[3]) << 4 | hex(p->text[4])] = id;
        } else if (p->kind == WZ_PIECE_BYTE) {
            p->kind = WZ_PIECE_NORMAL;
        }
        if (p->kind != WZ_PIECE_NONE) rc = decode_piece(tok, p, &cut, &b, err);
    }
    wz_cut_finish(&cut);
    wz_buf_finish(&b);
    if (rc < 0) return -1;
    if (tok->bos == -1) tok->bos = known_id(tok, bos);
    if (tok->eos == -1) tok->eos = known_id(tok, eos);
    if (!wz_vocab_at(tok, tok->bos)) tok->bos = -1;
    if (!wz_vocab_at(tok, tok->eos)) tok->eos = -1;
    if (!wz_vocab_at(tok, tok->unk)) tok->unk = -1;
    for (int id = 0; id < tok->n; id++) {
        const struct wz_piece *p = &tok->pieces[id];
        if (!wz_vocab_special(tok, id)) continue;
        tok->special_first[(unsigned char)p->text[0]] = true;
        if ((size_t)p->n_text > tok->special_longest) tok->special_longest = (size_t)p->n_text;
    }
    return 0;
}

bool wz_tokenizer_same(const struct wz_tokenizer *a, const struct wz_tokenizer *b)
{
    if (a == b) return true;
    if (a->n != b->n) return false;
    for (int i = 0; i < a->n; i++) {
        const struct wz_piece *x = &a->pieces[i], *y = &b->pieces[i];
        if (x->kind != y->kind || x->n_bytes != y->n_bytes ||
            (x->n_bytes && memcmp(x->bytes, y->bytes, (size_t)x->n_bytes)))
            return false;
    }
    return true;
}
