/* The table of backends: opened by name. */
#include "kernels/kernels.h"

#include <stdlib.h>
#include <string.h>

struct named {
    const char *name;
    const struct wz_backend_row *row;
};
/* auto: the last row that opens, but never ref: it is slow, and its bits are others. */
enum { AUTO, REF };
static const struct named rows[] = {
    [AUTO] = { "auto", NULL },
    [REF] = { "ref", &wz_backend_ref },
    { "cpu", &wz_backend_cpu },
    { "cuda", &wz_backend_cuda },
    { NULL, NULL },
};

struct opened {
    struct wz_backend be;
    const struct wz_backend_row *row;
    struct wz_pool *pool; /* made here, so destroyed here, whatever be.pool became */
};

const char *wz_backend_name(int i) { return rows[1 + i].name; }

static void matmuls(struct wz_backend *be, float *const *y, const float *x, const struct wz_weight *const *w, int count,
                    int n)
{
    for (int i = 0; i < count; i++) be->ops.matmul(be, y[i], x, w[i], n, false);
}

/* counts: it stands for the row, and allocates nothing. */
static struct wz_backend *open_row(const struct named *at, bool counts, int threads, const struct wz_numerics *numerics,
                                   struct wz_err *err)
{
    const struct wz_backend_row *row = counts ? &wz_backend_count : at->row;
    struct opened *o = wz_alloc(sizeof *o);
    int rc = 0;

    o->row = row;
    o->be.name = at->name;
    o->be.half_kv = at->row->half_kv;
    o->be.grain = at->row->grain;
    o->be.counted = counts ? at->row : NULL;
    if (numerics) o->be.numerics = *numerics;
    const char *order = o->be.numerics.bf16 ? o->be.numerics.bf16 : "";
    o->be.amx = !strcmp(order, "amx") || (!strcmp(order, "auto") && at->row->amx && wz_cpu_tiles());
    if (o->be.amx && !at->row->amx)
        rc = wz_fail(err, "backend \"%s\": it can't add in the order of numerics.bf16=amx: expected chain", at->name);
    if (rc < 0 || row->open(&o->be, err) < 0) {
        free(o);
        return NULL;
    }
    if (!o->be.ops.matmuls) o->be.ops.matmuls = matmuls;
    o->pool = threads == 1 ? NULL : wz_pool_create(threads);
    o->be.pool = o->pool;
    return &o->be;
}

struct wz_backend *wz_backend_open(const char *name, int threads, const struct wz_numerics *numerics,
                                   struct wz_err *err)
{
    const struct named *at = wz_row_find(rows, sizeof *rows, "backend", name, err);
    struct wz_backend *be = NULL;

    if (at && at->row) return open_row(at, false, threads, numerics, err);
    for (size_t i = WZ_COUNT(rows) - 2; at && !be && i > REF; i--)
        be = open_row(&rows[i], false, threads, numerics, err);
    return be;
}

struct wz_backend *wz_backend_counting(const char *name, const struct wz_numerics *numerics, struct wz_err *err)
{
    const struct named *at = wz_row_find(rows, sizeof *rows, "backend", name, err);

    if (!at) return NULL;
    assert(at->row);
    return open_row(at, true, 1, numerics, err);
}

int wz_backend_devices(struct wz_backend *be, size_t *total, size_t *unused)
{
    const struct wz_backend_row *row = ((struct opened *)be)->row;

    return row->devices ? row->devices(be, total, unused) : 0;
}

void wz_backend_close(struct wz_backend *be)
{
    struct opened *o = (struct opened *)be; /* be is its first member */

    if (!o) return;
    o->row->close(be);
    wz_pool_destroy(o->pool);
    free(o);
}
