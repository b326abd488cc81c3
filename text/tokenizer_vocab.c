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

int wz_vocab_mark(struct wz_tokenizer *tok, int id, const char *text, size_t n, bool special, struct wz_err *err)
{
    enum wz_piece_kind kind = special ? WZ_PIECE_SPECIAL : WZ_PIECE_ADDED;

    if (!wz_vocab_at(tok, id) || wz_vocab_find(tok, text, n) != id) return wz_vocab_add(tok, id, text, n, kind, 0, err);
    tok->pieces[id].kind = kind;
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

/* Ids of the pieces of one kind, by falling score or length, then by rising id: heap, *n of them. */
static struct keyed *sorted(const struct wz_tokenizer *tok, enum wz_piece_kind kind, bool by_length, int *n)
{
    struct keyed *list = wz_alloc(wz_mul((size_t)tok->n + 1, sizeof *list));

    *n = 0;
    for (int id = 0; id < tok->n; id++) {
        const struct wz_piece *p = &tok->pieces[id];
        if (p->kind == kind) list[(*n)++] = (struct keyed){ by_length ? (float)p->n_text : p->score, id };
    }
    qsort(list, (size_t)*n, sizeof *list, falling_key);
    return list;
}

void wz_merges_derive(struct wz_tokenizer *tok)
{
    int n;
    struct keyed *order = sorted(tok, WZ_PIECE_NORMAL, false, &n);
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

int wz_vocab_added(const struct wz_tokenizer *tok, const char *s, size_t n)
{
    if (n == 0 || !tok->added_first[(unsigned char)s[0]]) return -1;
    for (int i = 0; i < tok->n_added; i++) {
        const struct wz_piece *p = &tok->pieces[tok->added[i]];
        if ((size_t)p->n_text <= n && memcmp(p->text, s, (size_t)p->n_text) == 0) return tok->added[i];
    }
    return -1;
}

static void list_added(struct wz_tokenizer *tok)
{
    struct keyed *order = sorted(tok, WZ_PIECE_ADDED, true, &tok->n_added);

    tok->added = wz_alloc((size_t)tok->n_added * sizeof *tok->added);
    for (int i = 0; i < tok->n_added; i++) {
        tok->added[i] = order[i].id;
        tok->added_first[(unsigned char)tok->pieces[order[i].id].text[0]] = true;
    }
    free(order);
}

static int hex(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1; }

/* The bytes that a piece decodes to: the text itself for added and special pieces, and for a byte-level piece with a
 * character outside of the alphabet. */
static void decode_piece(struct wz_tokenizer *tok, struct wz_piece *p, struct wz_buf *b)
{
    bool bytes = tok->byte_level && p->kind == WZ_PIECE_NORMAL;
    int len;

    for (int at = 0; at < p->n_text && bytes; at += len)
        bytes = wz_char_byte(wz_utf8_get(p->text + at, (size_t)(p->n_text - at), &len)) >= 0;
    wz_buf_clear(b);
    for (int at = 0; at < p->n_text; at += len) {
        uint32_t code = wz_utf8_get(p->text + at, (size_t)(p->n_text - at), &len);
        char byte = bytes ? (char)wz_char_byte(code) : ' ';
        if (code == WZ_NUL_CHAR) wz_buf_add(b, "", 1);
        else if (bytes || (code == 0x2581 && !tok->byte_level && p->kind == WZ_PIECE_NORMAL)) wz_buf_add(b, &byte, 1);
        else wz_buf_add(b, p->text + at, (size_t)len);
    }
    if (p->kind == WZ_PIECE_BYTE) {
        char byte = (char)(hex(p->text[3]) << 4 | hex(p->text[4]));
        wz_buf_clear(b);
        wz_buf_add(b, &byte, 1);
    }
    p->bytes = keep(tok, b->data, b->len);
    p->n_bytes = (int)b->len;
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

int wz_vocab_complete(struct wz_tokenizer *tok, struct wz_err *err)
{
    static const char *const bos[] = { "<|begin_of_text|>", "<s>", "<|endoftext|>", NULL };
    static const char *const eos[] = { "<|end_of_text|>", "</s>", "<|endoftext|>", NULL };
    struct wz_buf b = { 0 };

    if (!tok->n) return wz_fail(err, "%s: no tokens in the file", tok->name);
    tok->stages = wz_stages_create(tok->normalizer, tok->pre, tok->name, err);
    if (!tok->stages) return -1;
    tok->byte_level = wz_stages_byte_level(tok->stages);
    for (int i = 0; i < 256; i++) tok->byte_ids[i] = -1;
    for (int id = 0; id < tok->n; id++) {
        struct wz_piece *p = &tok->pieces[id];
        if (tok->byte_fallback && (p->kind == WZ_PIECE_NORMAL || p->kind == WZ_PIECE_BYTE) && p->n_text == 6 &&
            memcmp(p->text, "<0x", 3) == 0 && p->text[5] == '>' && hex(p->text[3]) >= 0 && hex(p->text[4]) >= 0) {
            p->kind = WZ_PIECE_BYTE;
            tok->byte_ids[hex(p->text[3]) << 4 | hex(p->text[4])] = id;
        } else if (p->kind == WZ_PIECE_BYTE) {
            p->kind = WZ_PIECE_NORMAL;
        }
        decode_piece(tok, p, &b);
    }
    wz_buf_finish(&b);
    list_added(tok);
    if (tok->bos == -1) tok->bos = known_id(tok, bos);
    if (tok->eos == -1) tok->eos = known_id(tok, eos);
    if (!wz_vocab_at(tok, tok->bos)) tok->bos = -1;
    if (!wz_vocab_at(tok, tok->eos)) tok->eos = -1;
    if (!wz_vocab_at(tok, tok->unk)) tok->unk = -1;
    if (!tok->template && tok->jinja) tok->template = wz_jinja_name(tok->jinja);
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
