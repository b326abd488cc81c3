/* cpu: the fast row. Every slot is ref's first, and faster ones are laid over them. */
#include "kernels/ref/ref.h"

static int open_cpu(struct wz_backend *be, struct wz_err *err)
{
    wz_ops_ref(&be->ops);
    return 0;
}

static void close_cpu(struct wz_backend *be)
{
    be->state = NULL;
}

const struct wz_backend_row wz_backend_cpu = { "cpu", open_cpu, close_cpu };
