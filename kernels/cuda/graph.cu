/* graph: regions (kernels/ops.h) as CUDA graphs: work that repeats is launched as one graph.
 *
 * A region's body is called in passes. Each pass records the work it queues: kernel, grid and arguments, byte for byte
 * (wz_cuda_ask).
 *
 *   dry pass    nothing is queued, but scratch grows and mirrors (the inputs that change) are uploaded. If the list of
 *               recorded work is
 *     new               a second pass queues the work, and the list is kept: work that never repeats is not captured
 *     known             a second pass queues it under stream capture, which makes the graph, and the graph is launched
 *     that of a graph   the graph is launched
 *
 * So a graph is launched only where exactly the same work would be queued: the list is recorded by the code that queues
 * it. Memory that arguments point to is read when the graph runs.
 *
 * A mirror whose bytes change twice within a region can't be uploaded beforehand: such a region has no graph. Downloads
 * go to pinned memory and are copied to the caller at the end, so there is one synchronisation, and none without
 * downloads. bf16 copies (cuda.cuh) are made anew in every pass: a dry pass makes none, and copies from before must not
 * change the list. */
#include "kernels/cuda/cuda.cuh"

enum { GRAPHS = 16, PINNED = 1 << 16, LATER = 8 };

struct list {
    char *p;
    size_t n, cap;
};

struct graph {
    struct list list;
    cudaGraphExec_t exec;
    unsigned used;
}; /* exec NULL: the list came once */

struct region {
    bool off;         /* WZ_CUDA_GRAPHS=0: always live */
    bool direct;      /* the current region can have no graph */
    unsigned times;   /* regions so far; identifies the current one to mirrors */
    struct list list; /* of the current or the latest pass */
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

    if (list->n + n > list->cap) {
        list->cap = 2 * (list->n + n);
        if (!(list->p = (char *)realloc(list->p, list->cap)))
            wz_cuda_plugin.die("cuda: no memory for %zu bytes", list->cap);
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

/* One pass over the region's body. */
static void run_pass(struct wz_backend *be, bool dry, void (*body)(void *arg), void *arg)
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

/* The graph of the recorded list, or an empty one that replaces the least recently used. */
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
    if (!r->off) run_pass(be, true, body, arg);
    struct graph *g = r->direct ? NULL : graph_of(r);
    bool known = g && g->list.n > 0;
    if (!known || !g->exec) {
        if (known) CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        run_pass(be, false, body, arg);
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
