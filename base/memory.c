/* Memory: a heap whose failures end the process, arenas, growing byte buffers. */
#include "base/base.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { LINE = 64 };

size_t wz_mul(size_t a, size_t b)
{
    size_t r;

    if (__builtin_mul_overflow(a, b, &r)) wz_die("a size of %zu x %zu does not fit in memory", a, b);
    return r;
}

/* Allocations of two huge pages and more are aligned to one and ask for huge pages: first touch takes a quarter of the
 * time, and reading weights misses the TLB less. */
static size_t unit_of(size_t size) { return size >= 2 * (size_t)WZ_HUGE_PAGE ? WZ_HUGE_PAGE : LINE; }

size_t wz_alloc_size(size_t size)
{
    size_t unit = unit_of(size);

    return size ? (size + unit - 1) / unit * unit : unit;
}

void *wz_alloc(size_t size)
{
    size_t unit = unit_of(size), rounded = wz_alloc_size(size);
    void *p = rounded < size ? NULL : aligned_alloc(unit, rounded);

    if (!p) wz_die("out of memory: %zu bytes", size);
    if (unit == WZ_HUGE_PAGE) madvise(p, rounded, MADV_HUGEPAGE); /* may be refused: then only slower */
    return memset(p, 0, rounded);
}

void *wz_realloc(void *p, size_t size)
{
    void *q = realloc(p, size ? size : 1);

    if (!q) wz_die("out of memory: %zu bytes", size);
    return q;
}

void wz_forget(void *p, size_t n)
{
    uintptr_t page = 4096, from = ((uintptr_t)p + page - 1) / page * page, to = ((uintptr_t)p + n) / page * page;

    if (to > from) madvise((void *)from, to - from, MADV_DONTNEED);
}

char *wz_strdup(const char *s)
{
    size_t n = strlen(s) + 1;

    return memcpy(wz_realloc(NULL, n), s, n);
}

struct wz_block {
    struct wz_block *next;
    size_t size, used;
};
enum { BLOCK_HEAD = 32 }; /* keeps what follows 16-byte aligned */

static struct wz_block *add_block(struct wz_arena *arena, size_t size)
{
    struct wz_block *b = wz_alloc(BLOCK_HEAD + size);

    b->size = size;
    b->next = arena->blocks;
    return arena->blocks = b;
}

void *wz_arena_alloc(struct wz_arena *arena, size_t size)
{
    struct wz_block *b = arena->blocks;
    size_t need = (size + 15) / 16 * 16;

    if (!b || b->size - b->used < need) b = add_block(arena, need > 65536 ? need : 65536);
    void *p = (char *)b + BLOCK_HEAD + b->used;
    b->used += need;
    return memset(p, 0, size);
}

char *wz_arena_strdup(struct wz_arena *arena, const char *s)
{
    size_t n = strlen(s) + 1;

    return memcpy(wz_arena_alloc(arena, n), s, n);
}

void wz_arena_reset(struct wz_arena *arena)
{
    size_t total = 0;

    for (const struct wz_block *b = arena->blocks; b; b = b->next) total += b->size;
    if (arena->blocks && arena->blocks->next) { /* several blocks become one that holds as much without growing */
        wz_arena_finish(arena);
        add_block(arena, total);
    }
    if (arena->blocks) arena->blocks->used = 0;
}

void wz_arena_finish(struct wz_arena *arena)
{
    struct wz_block *b, *next;

    for (b = arena->blocks; b; b = next) {
        next = b->next;
        free(b);
    }
    arena->blocks = NULL;
}

static void buf_reserve(struct wz_buf *buf, size_t more)
{
    size_t need = buf->len + more + 1;

    if (need <= buf->cap) return;
    buf->cap = need < 2 * buf->cap ? 2 * buf->cap : need < 64 ? 64 : need;
    buf->data = wz_realloc(buf->data, buf->cap);
}

void wz_buf_add(struct wz_buf *buf, const void *bytes, size_t n)
{
    buf_reserve(buf, n);
    if (n) memcpy(buf->data + buf->len, bytes, n);
    buf->len += n;
    buf->data[buf->len] = 0;
}

void wz_buf_str(struct wz_buf *buf, const char *s) { wz_buf_add(buf, s, strlen(s)); }

void wz_buf_printf(struct wz_buf *buf, const char *fmt, ...)
{
    va_list args;
    int n;

    va_start(args, fmt);
    n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    buf_reserve(buf, (size_t)n);
    va_start(args, fmt);
    vsnprintf(buf->data + buf->len, (size_t)n + 1, fmt, args);
    va_end(args);
    buf->len += (size_t)n;
}

void wz_buf_clear(struct wz_buf *buf)
{
    buf->len = 0;
    if (buf->data) buf->data[0] = 0;
}

void wz_buf_finish(struct wz_buf *buf)
{
    free(buf->data);
    *buf = (struct wz_buf){ 0 };
}
