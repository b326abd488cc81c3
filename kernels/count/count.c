/* count: allocates nothing and adds up, by label, what would be allocated. It stands for another row of the table and
 * has its grain, its type of cache and its packing, so a plan creates models, engines and learners with the functions
 * that a run calls. Addresses are distinct and aligned as the heap's, and must not be read or written. */
#include "kernels/kernels.h"

#include <stdlib.h>
#include <string.h>

struct count {
    struct wz_counted rows[32];
    int n;
    uintptr_t next; /* the next address */
};

void *wz_count(struct wz_backend *be, size_t size, const char *label, bool host)
{
    struct count *c = be->state;
    struct wz_counted *row = c->rows;
    uintptr_t at = c->next;

    while (row < c->rows + c->n && (strcmp(row->label, label) || row->host != host)) row++;
    if (row == c->rows + WZ_COUNT(c->rows)) wz_die("count: more than %d labels", c->n);
    if (row == c->rows + c->n) c->rows[c->n++] = (struct wz_counted){ .label = label, .host = host };
    row->bytes += host || !be->counted->devices ? wz_alloc_size(size) : size;
    c->next += (size + 255) / 256 * 256;
    return (void *)at;
}

const struct wz_counted *wz_backend_counted(struct wz_backend *be, int *n)
{
    struct count *c = be->state;

    *n = c->n;
    c->n = 0;
    return c->rows;
}

static void *alloc(struct wz_backend *be, size_t size) { return wz_count(be, size, be->label, false); }

static void release(struct wz_backend *be, void *p) {}

static void upload(struct wz_backend *be, void *dst, const void *host, size_t n) {}

static void download(struct wz_backend *be, void *host, const void *src, size_t n) {}

static void zero(struct wz_backend *be, void *p, size_t n) {}

static void pack(struct wz_backend *be, struct wz_weight *w)
{
    size_t size = be->counted->packed(be, w);

    if (size && !w->packed) w->packed = wz_count(be, size, "packed panels", false);
}

static void unpack(struct wz_backend *be, struct wz_weight *w) { w->packed = NULL; }

static int open_count(struct wz_backend *be, struct wz_err *err)
{
    struct count *c = wz_alloc(sizeof *c);

    c->next = 4096;
    be->state = c;
    be->ops = (struct wz_ops){ .alloc = alloc,
                               .free = release,
                               .upload = upload,
                               .download = download,
                               .zero = zero,
                               .pack = pack,
                               .unpack = unpack };
    return 0;
}

static void close_count(struct wz_backend *be) { free(be->state); }

const struct wz_backend_row wz_backend_count = { open_count, close_count, NULL, NULL, false, 1, false };
