/* graph: regions (kernels/ops.h), which are sent to the device in one piece when they come again.
 *
 * body is called in passes. In each, what it asks of the stream is noted: kernel, grid, arguments, byte for byte
 * (wz_cuda_ask).
 *
 *   dry      nothing is asked, but scratch grows, and mirrors, which are the inputs that change from time to time, are
 *   sent the list is
 *     new              once more, live, and the list is kept: what does not come again would be captured in vain
 *     known            once more, live, under capture, which makes the graph
 *     that of a graph  it is launched
 *
 * So a graph is only launched where the same would be asked again, whatever the reason why it might not be: the list is
 * the one description of the work, and it is made by those who do it. What arguments point to is read when the graph
 * runs.
 *
 * A mirror whose bytes change within the region can't be sent beforehand: such a region has no graph. Downloads end
 * in pinned memory and are copied when all is done, so there is one wait, and none where nothing is downloaded. Bf16
 * copies (cuda.cuh) are made anew in every pass: those of a dry one were not, and which there were before must not
 * change the list. */
#include "kernels/cuda/cuda.cuh"

enum { GRAPHS = 16, PINNED = 1 << 16, LATER = 8 };

struct list {
    char *p;
    size_t n, room;
};

struct graph {
    struct list list;
    cudaGraphExec_t exec;
    unsigned used;
}; /* exec NULL: the list came once */

struct region {
    bool off;         /* WZ_CUDA_GRAPHS=0: always live */
    bool direct;      /* this one can have no graph */
    unsigned times;   /* there was one; names it for mirrors */
    struct list list; /* of the pass under way, or the last */
    struct graph graphs[GRAPHS];
    char *pinned;
    size_t filled;
    int n_later;
    struct {
        void *host;
        const char *from;
        size_t n;
    } later[LATER];
};

void wz_cuda_note(struct wz_backend *be, const void *p, size_t n)
{
    struct list *list = &cuda_of(be)->region->list;

    if (list->n + n > list->room) {
        list->room = 2 * (list->n + n);
        if (!(list->p = (char *)realloc(list->p, list->room)))
            wz_cuda_plugin.die("cuda: no memory for %zu bytes", list->room);
    }
    memcpy(list->p + list->n, p, n);
    list->n += n;
}

void *wz_cuda_later(struct wz_backend *be, void *host, size_t n)
{
    struct region *r = cuda_of(be)->region;
    char *to = r->pinned + r->filled;

    if (!cuda_of(be)->notes) return host;
    if (r->n_later == LATER || n > PINNED - r->filled) {
        r->direct = true;
        return host;
    }
    r->later[r->n_later++] = { host, to, n };
    r->filled += (n + 15) / 16 * 16;
    return to;
}

void wz_cuda_mirrored(struct wz_backend *be, unsigned *region, bool changed)
{
    struct region *r = cuda_of(be)->region;

    if (changed && cuda_of(be)->dry && *region == r->times) r->direct = true;
    *region = r->times;
}

static void go_through(struct wz_backend *be, bool dry, void (*body)(void *arg), void *arg)
{
    struct cuda *cuda = cuda_of(be);
    struct region *r = cuda->region;

    r->list.n = r->filled = 0;
    r->n_later = 0;
    wz_cuda_wrote(be, NULL, 0);
    for (struct rounded &half : cuda->half) half.used = 0;
    cuda->notes = true;
    cuda->dry = dry;
    body(arg);
    cuda->notes = cuda->dry = false;
}

/* That of the list, or one that has none yet, in the place of the one not used for longest. */
static struct graph *graph_of(struct region *r)
{
    struct graph *oldest = r->graphs;

    for (struct graph &g : r->graphs) {
        if (g.list.n == r->list.n && memcmp(g.list.p, r->list.p, r->list.n) == 0) return &g;
        if (g.used < oldest->used) oldest = &g;
    }
    if (oldest->exec) CHECK(cudaGraphExecDestroy(oldest->exec));
    oldest->exec = NULL;
    oldest->list.n = 0;
    return oldest;
}

void wz_cuda_region(struct wz_backend *be, void (*body)(void *arg), void *arg)
{
    struct region *r = cuda_of(be)->region;
    cudaStream_t stream = cuda_of(be)->stream;
    cudaGraph_t made;

    r->times++;
    r->direct = r->off;
    if (!r->off) go_through(be, true, body, arg);
    struct graph *g = r->direct ? NULL : graph_of(r);
    bool known = g && g->list.n > 0;
    if (!known || !g->exec) {
        if (known) CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        go_through(be, false, body, arg);
        if (known) {
            CHECK(cudaStreamEndCapture(stream, &made));
            CHECK(cudaGraphInstantiate(&g->exec, made, 0));
            CHECK(cudaGraphDestroy(made));
        }
        if (g) {
            struct list list = g->list;
            g->list = r->list;
            r->list = list;
        }
    }
    if (known) CHECK(cudaGraphLaunch(g->exec, stream));
    if (g) g->used = r->times;
    if (r->n_later) CHECK(cudaStreamSynchronize(stream));
    for (int i = 0; i < r->n_later; i++) memcpy(r->later[i].host, r->later[i].from, r->later[i].n);
}

void wz_cuda_graph_open(struct wz_backend *be)
{
    const char *graphs = getenv("WZ_CUDA_GRAPHS");
    struct region *r = cuda_of(be)->region = (struct region *)calloc(1, sizeof *r);

    if (!r) wz_cuda_plugin.die("cuda: no memory for %zu bytes", sizeof *r);
    r->off = graphs && strcmp(graphs, "0") == 0;
    CHECK(cudaMallocHost((void **)&r->pinned, PINNED));
}

void wz_cuda_graph_close(struct wz_backend *be)
{
    struct region *r = cuda_of(be)->region;

    for (struct graph &g : r->graphs) {
        if (g.exec) cudaGraphExecDestroy(g.exec);
        free(g.list.p);
    }
    cudaFreeHost(r->pinned);
    free(r->list.p);
    free(r);
}
