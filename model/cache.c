/* cache: a paged KV cache, pages of P tokens; a page number is valid in every layer.
 *
 *   seq a  len 9, P 4    [3][0][7]                page 7 holds one token
 *   seq b  fork(a, 6)    [3][5]                   page 3 is shared (2 uses), page 5 is a copy of half of page 0
 *
 * A page is written by one sequence only: a shared page is read-only, since a fork shares full pages only. Each page
 * records the version of the weights that computed it (guarantee 6). */
#include "model/inner.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct wz_cache *wz_cache_create(const struct wz_model *model, int pages, int page)
{
    static const char table[] = "key/value page table";
    const struct wz_config *c = &model->config;
    struct wz_cache *cache = wz_alloc(sizeof(*cache));

    assert(pages > 0 && page > 0);
    cache->be = model->be;
    cache->layers = c->layers;
    cache->pages = pages;
    cache->page = page;
    cache->context = (c->context + page - 1) / page * page;
    bool half = model->type != WZ_F32 && model->be->half_kv;
    size_t slots = wz_mul(wz_mul((size_t)pages, (size_t)page), wz_mul((size_t)c->kv_heads, (size_t)c->head_dim));
    size_t share = wz_mul(slots, half ? sizeof(uint16_t) : sizeof(float));
    cache->block = wz_backend_alloc_for(cache->be, wz_mul(share, 2 * (size_t)c->layers), "key/value cache");
    cache->kv = wz_alloc((size_t)c->layers * sizeof(*cache->kv));
    for (int l = 0; l < c->layers; l++) {
        char *k = cache->block + (size_t)l * 2 * share;
        cache->kv[l] = (struct wz_kv){ (float *)k, (float *)(k + share), pages, page, c->kv_heads, c->head_dim, half };
    }
    cache->unused = wz_host_alloc(cache->be, wz_mul((size_t)pages, sizeof(int)), table);
    cache->uses = wz_host_alloc(cache->be, wz_mul((size_t)pages, sizeof(int)), table);
    cache->version = wz_host_alloc(cache->be, wz_mul((size_t)pages, sizeof(uint64_t)), table);
    return cache;
}

void wz_cache_destroy(struct wz_cache *cache)
{
    if (!cache) return;
    wz_backend_free(cache->be, cache->block);
    free(cache->kv);
    wz_host_free(cache->be, cache->unused);
    wz_host_free(cache->be, cache->uses);
    wz_host_free(cache->be, cache->version);
    free(cache);
}

int wz_cache_free_pages(const struct wz_cache *cache) { return cache->pages - cache->n_fresh + cache->n_unused; }

void wz_seq_prealloc(const struct wz_cache *cache, struct wz_seq *seq, int tokens)
{
    int cap = (tokens + cache->page - 1) / cache->page;

    if (cap > cache->pages) cap = cache->pages;
    if (seq->cap >= cap) return;
    seq->pages = wz_realloc(seq->pages, (size_t)cap * sizeof(int));
    seq->cap = cap;
}

/* A page list that is too short is reallocated once, for the longest sequence. */
static void seq_grow(const struct wz_cache *cache, struct wz_seq *seq, int n_pages)
{
    if (n_pages > seq->cap) wz_seq_prealloc(cache, seq, cache->context);
}

static int page_take(struct wz_cache *cache)
{
    int page = cache->n_unused ? cache->unused[--cache->n_unused] : cache->n_fresh++;

    cache->uses[page] = 1;
    return page;
}

static void page_give(struct wz_cache *cache, int page)
{
    assert(cache->uses[page] > 0);
    if (--cache->uses[page] == 0) cache->unused[cache->n_unused++] = page;
}

bool wz_seq_reserve(struct wz_cache *cache, struct wz_seq *seq, int n)
{
    assert(n >= 0 && n <= cache->context - seq->len);
    int want = (seq->len + n + cache->page - 1) / cache->page;

    if (want - seq->n_pages > wz_cache_free_pages(cache)) return false;
    seq_grow(cache, seq, want);
    while (seq->n_pages < want) seq->pages[seq->n_pages++] = page_take(cache);
    return true;
}

bool wz_seq_fork(struct wz_cache *cache, struct wz_seq *dst, const struct wz_seq *src, int len)
{
    int full = len / cache->page, part = len % cache->page;

    assert(dst->len == 0 && dst->n_pages == 0 && len >= 0 && len <= src->len);
    if (part && wz_cache_free_pages(cache) == 0) return false;
    seq_grow(cache, dst, full + (part > 0));
    for (int i = 0; i < full; i++) {
        dst->pages[i] = src->pages[i];
        cache->uses[src->pages[i]]++;
    }
    dst->n_pages = full;
    if (part) {
        int page = page_take(cache);

        for (int l = 0; l < cache->layers; l++) wz_kv_copy(cache->be, &cache->kv[l], page, src->pages[full], part);
        cache->version[page] = cache->version[src->pages[full]];
        dst->pages[dst->n_pages++] = page;
    }
    dst->len = len;
    return true;
}

void wz_seq_release(struct wz_cache *cache, struct wz_seq *seq)
{
    while (seq->n_pages > 0) page_give(cache, seq->pages[--seq->n_pages]);
    seq->len = 0;
}

void wz_seq_finish(struct wz_cache *cache, struct wz_seq *seq)
{
    wz_seq_release(cache, seq);
    free(seq->pages);
    *seq = (struct wz_seq){ 0 };
}
