/* Byte-pair merging of one span: the neighbours with the lowest rank, the leftmost first, are merged until no merge is
 * left.
 *
 * Symbols are a linked list over the characters; every mergeable pair is in a heap by (rank, position). A pair whose
 * symbols have changed since is dropped when it is popped. O(n log n): a span may be a whole document, since
 * SentencePiece does not split at spaces. */
#include "text/tokenizer_inside.h"

#include <stdlib.h>
#include <string.h>

struct wz_symbol {
    int id, prev, next;
}; /* id -1: merged into its left neighbour; prev, next -1: the end */
struct wz_candidate {
    uint32_t rank;
    int at, left, right, id;
};

static bool before(const struct wz_candidate *a, const struct wz_candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static void offer(const struct wz_tokenizer *tok, struct wz_bpe *w, int at)
{
    int next = at < 0 ? -1 : w->symbols[at].next, i, up;

    if (next < 0) return;
    const struct wz_merge *m = wz_merge_find(tok, w->symbols[at].id, w->symbols[next].id);
    if (!m) return;
    if (w->n_heap == w->heap_cap) {
        w->heap_cap = w->heap_cap ? 2 * w->heap_cap : 64;
        w->heap = wz_realloc(w->heap, wz_mul((size_t)w->heap_cap, sizeof *w->heap));
    }
    struct wz_candidate c = { m->rank, at, m->left, m->right, m->id };
    for (i = w->n_heap++; i > 0 && before(&c, &w->heap[up = (i - 1) / 2]); i = up) w->heap[i] = w->heap[up];
    w->heap[i] = c;
}

static struct wz_candidate take(struct wz_bpe *w)
{
    struct wz_candidate top = w->heap[0], last = w->heap[--w->n_heap];
    int i = 0, down;

    while ((down = 2 * i + 1) < w->n_heap) {
        if (down + 1 < w->n_heap && before(&w->heap[down + 1], &w->heap[down])) down++;
        if (!before(&w->heap[down], &last)) break;
        w->heap[i] = w->heap[down];
        i = down;
    }
    w->heap[i] = last;
    return top;
}

/* A character without a piece: its bytes, unk, or an error. Returns the new number of symbols. */
static int unknown(const struct wz_tokenizer *tok, const char *s, int len, struct wz_symbol *symbols, int n,
                   struct wz_err *err)
{
    bool bytes = tok->byte_fallback;
    int byte_len;

    for (int i = 0; i < len && bytes; i++) bytes = tok->byte_ids[(unsigned char)s[i]] >= 0;
    if (bytes) {
        for (int i = 0; i < len; i++) symbols[n++].id = tok->byte_ids[(unsigned char)s[i]];
        return n;
    }
    if (tok->unk < 0)
        return wz_fail(err, "%s: no token for \"%.*s\" (U+%04X)", tok->name, len, s,
                       wz_utf8_get(s, (size_t)len, &byte_len));
    if (!tok->fuse_unk || n == 0 || symbols[n - 1].id != tok->unk) symbols[n++].id = tok->unk;
    return n;
}

int wz_bpe_run(const struct wz_tokenizer *tok, const char *s, size_t size, struct wz_bpe *w, struct wz_ids *out,
               struct wz_err *err)
{
    int n = 0, len;
    const struct wz_piece *p;

    if (tok->ignore_merges && (p = wz_vocab_at(tok, wz_vocab_find(tok, s, size))) && p->kind == WZ_PIECE_NORMAL) {
        wz_ids_add(out, (int)(p - tok->pieces));
        return 0;
    }
    if ((size_t)w->cap < size) {
        w->cap = (int)size;
        w->symbols = wz_realloc(w->symbols, wz_mul(size, sizeof *w->symbols));
    }
    for (size_t at = 0; at < size; at += (size_t)len) {
        const struct wz_pattern *added = tok->added_inside ? wz_added_find(&tok->raw, s + at, size - at) : NULL;
        if (added) {
            len = added->n;
            w->symbols[n++].id = added->id;
            continue;
        }
        wz_utf8_get(s + at, size - at, &len);
        p = wz_vocab_at(tok, wz_vocab_find(tok, s + at, (size_t)len));
        if (p && p->kind == WZ_PIECE_NORMAL) w->symbols[n++].id = (int)(p - tok->pieces);
        else if ((n = unknown(tok, s + at, len, w->symbols, n, err)) < 0) return -1;
    }
    w->n_heap = 0;
    for (int i = 0; i < n; i++) {
        w->symbols[i].prev = i - 1;
        w->symbols[i].next = i + 1 < n ? i + 1 : -1;
    }
    for (int i = 0; i + 1 < n; i++) offer(tok, w, i);
    while (w->n_heap) {
        struct wz_candidate c = take(w);
        struct wz_symbol *left = &w->symbols[c.at];
        if (left->id != c.left || left->next < 0 || w->symbols[left->next].id != c.right) continue;
        struct wz_symbol *right = &w->symbols[left->next];
        left->id = c.id;
        left->next = right->next;
        right->id = -1;
        if (left->next >= 0) w->symbols[left->next].prev = c.at;
        offer(tok, w, left->prev);
        offer(tok, w, c.at);
    }
    for (int i = n ? 0 : -1; i >= 0; i = w->symbols[i].next) wz_ids_add(out, w->symbols[i].id);
    return 0;
}

void wz_bpe_finish(struct wz_bpe *w)
{
    free(w->symbols);
    free(w->heap);
    *w = (struct wz_bpe){ 0 };
}
