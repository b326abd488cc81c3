/* The table of backends: opened by name. "auto" is the last row that opens, but never the first: it is slow, and its
 * bits are others. */
#include "kernels/kernels.h"

#include <stdlib.h>
#include <string.h>

static const struct wz_backend_row *const rows[] = { &wz_backend_ref, &wz_backend_cpu, &wz_backend_cuda };

struct opened {
    struct wz_backend be;
    const struct wz_backend_row *row;
    struct wz_pool *pool; /* made here, so destroyed here, whatever be.pool became */
};

const char *wz_backend_name(int i) { return i < (int)WZ_COUNT(rows) ? rows[i]->name : NULL; }

/* NULL and a sentence where there is none of that name. */
static const struct wz_backend_row *row_named(const char *name, struct wz_err *err)
{
    struct wz_buf names = { 0 };

    for (size_t i = 0; i < WZ_COUNT(rows); i++)
        if (strcmp(name, rows[i]->name) == 0) return rows[i];
    for (size_t i = 0; i < WZ_COUNT(rows); i++) wz_buf_printf(&names, ", %s", rows[i]->name);
    wz_fail(err, "there is no backend '%s': expected one of auto%s", name, names.data);
    wz_buf_finish(&names);
    return NULL;
}

static void matmuls(struct wz_backend *be, float *const *y, const float *x, const struct wz_weight *const *w, int count,
                    int n)
{
    for (int i = 0; i < count; i++) be->ops.matmul(be, y[i], x, w[i], n, false);
}

static struct wz_backend *open_row(const struct wz_backend_row *row, int threads, const struct wz_numerics *numerics,
                                   struct wz_err *err)
{
    struct opened *o = wz_alloc(sizeof *o);

    o->row = row;
    o->be.name = row->name;
    o->be.half_kv = row->half_kv;
    o->be.grain = row->grain;
    if (numerics) o->be.numerics = *numerics;
    if (row->open(&o->be, err) < 0) {
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
    if (strcmp(name, "auto") == 0) {
        for (size_t i = WZ_COUNT(rows); i-- > 1;) {
            struct wz_backend *be = open_row(rows[i], threads, numerics, err);
            if (be) return be;
        }
        return NULL;
    }
    const struct wz_backend_row *row = row_named(name, err);
    return row ? open_row(row, threads, numerics, err) : NULL;
}

struct wz_backend *wz_backend_counting(const char *name, const struct wz_numerics *numerics, struct wz_err *err)
{
    const struct wz_backend_row *row = row_named(name, err);
    struct wz_backend *be = row ? open_row(&wz_backend_count, 1, numerics, err) : NULL;

    if (!be) return NULL;
    be->name = row->name;
    be->half_kv = row->half_kv;
    be->grain = row->grain;
    be->counted = row;
    return be;
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
