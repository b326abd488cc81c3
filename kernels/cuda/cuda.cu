/* cuda: the backend for NVIDIA GPUs (sm_80 and later): the device, its memory, the plugin's symbol.
 *
 * numerics.fast selects how products are computed; see enum math. Ranks of a node are assigned to its devices by their
 * local rank. All work is queued in one stream; host arrays are copied before a call returns, so callers may reuse
 * them. */
#include <stdarg.h>

#include <string>

#include "kernels/cuda/cuda.cuh"

const char *wz_cuda_doing = "starting";

void wz_cuda_check(cudaError_t error, const char *call)
{
    if (error != cudaSuccess)
        wz_cuda_plugin.die("cuda: %s, in %s: %s", wz_cuda_doing, std::string(call, strcspn(call, "(")).c_str(),
                           cudaGetErrorString(error));
}

static cudaStream_t stream_of(struct wz_backend *be) { return cuda_of(be)->stream; }

static void *take(size_t size)
{
    void *p = NULL;
    size_t left, all;

    cudaError_t error = cudaMalloc(&p, size ? size : 1);
    if (error == cudaErrorMemoryAllocation && cudaMemGetInfo(&left, &all) == cudaSuccess)
        wz_cuda_plugin.die("cuda: %s: out of memory: %zu bytes on a GPU with %zu of %zu free", wz_cuda_doing, size,
                           left, all);
    wz_cuda_check(error, "cudaMalloc");
    return p;
}

void *wz_cuda_grow(struct wz_backend *be, void *p, size_t *have, size_t size)
{
    if (p && *have >= size) return p;
    CHECK(cudaStreamSynchronize(stream_of(be)));
    CHECK(cudaFree(p));
    *have = size + size / 2;
    return take(*have);
}

void *wz_cuda_scratch(struct wz_backend *be, enum scratch_for what, size_t size)
{
    auto *s = &cuda_of(be)->scratch[what];

    return s->p = wz_cuda_grow(be, s->p, &s->size, size);
}

const void *wz_cuda_mirror(struct wz_backend *be, enum mirror_of what, const void *host, size_t size)
{
    auto *m = &cuda_of(be)->mirror[what];
    bool same = m->device && m->size == size && memcmp(m->host, host, size) == 0;

    wz_cuda_mirrored(be, &m->region, !same);
    if (same) return m->device;
    if (m->cap < size || !m->device) {
        CHECK(cudaStreamSynchronize(stream_of(be)));
        CHECK(cudaFree(m->device));
        free(m->host);
        m->cap = size + size / 2;
        m->device = take(m->cap);
        if (!(m->host = malloc(m->cap ? m->cap : 1))) wz_cuda_plugin.die("cuda: no memory for %zu bytes", m->cap);
    }
    m->size = size;
    memcpy(m->host, host, size);
    if (size) CHECK(cudaMemcpyAsync(m->device, m->host, size, cudaMemcpyHostToDevice, stream_of(be)));
    return m->device;
}

/* ---- memory ----------------------------------------------------------------------------------------------- */

static void zero(struct wz_backend *be, void *p, size_t n)
{
    if (n) CHECK(cudaMemsetAsync(p, 0, n, stream_of(be)));
    wz_cuda_wrote(be, p, n);
}

static void *alloc(struct wz_backend *be, size_t size)
{
    void *p = take(size);

    zero(be, p, size);
    return p;
}

static void release(struct wz_backend *be, void *p)
{
    CHECK(cudaStreamSynchronize(stream_of(be)));
    CHECK(cudaFree(p));
}

static void upload(struct wz_backend *be, void *dst, const void *host, size_t n)
{
    if (!n) return;
    CHECK(cudaMemcpyAsync(dst, host, n, cudaMemcpyHostToDevice, stream_of(be)));
    CHECK(cudaStreamSynchronize(stream_of(be)));
    wz_cuda_wrote(be, dst, n);
}

void wz_cuda_download(struct wz_backend *be, void *host, const void *src, size_t n)
{
    void *to = wz_cuda_later(be, host, n);

    if (!n || !wz_cuda_ask(be, wz_cuda_download, to, src, n)) return;
    CHECK(cudaMemcpyAsync(to, src, n, cudaMemcpyDeviceToHost, stream_of(be)));
    if (to == host) CHECK(cudaStreamSynchronize(stream_of(be)));
}

static bool idle(struct wz_backend *be)
{
    cudaError_t error = cudaStreamQuery(stream_of(be));

    if (error != cudaErrorNotReady) wz_cuda_check(error, "cudaStreamQuery");
    return error == cudaSuccess;
}

/* ---- the backend ------------------------------------------------------------------------------------------ */

static int WZ_PRINTF(2, 3) refuse(struct wz_err *err, const char *fmt, ...)
{
    int n = snprintf(err->text, sizeof err->text, "backend \"cuda\": ");
    va_list args;

    va_start(args, fmt);
    vsnprintf(err->text + n, sizeof err->text - (size_t)n, fmt, args);
    va_end(args);
    return -1;
}

/* Why CUDA does not start; with both versions if the driver is too old. */
static int refuse_driver(struct wz_err *err, cudaError_t error)
{
    int have = 0, need = CUDART_VERSION;

    cudaDriverGetVersion(&have);
    if (error == cudaErrorInsufficientDriver && have > 0)
        return refuse(err, "the driver knows CUDA %d.%d, and this row was built with %d.%d", have / 1000,
                      have % 1000 / 10, need / 1000, need % 1000 / 10);
    return refuse(err, "%s", error == cudaErrorNoDevice ? "this machine has no NVIDIA GPU" : cudaGetErrorString(error));
}

static void close_cuda(struct wz_backend *be)
{
    struct cuda *cuda = cuda_of(be);

    for (int i = 0; i < SCRATCHES; i++) cudaFree(cuda->scratch[i].p);
    for (int i = 0; i < MIRRORS; i++) {
        cudaFree(cuda->mirror[i].device);
        free(cuda->mirror[i].host);
    }
    for (struct rounded &h : cuda->half) cudaFree(h.p);
    wz_cuda_graph_close(be);
    wz_cuda_fast_close(be);
    cudaStreamDestroy(cuda->stream);
    free(cuda);
    be->state = NULL;
}

static int open_cuda(struct wz_backend *be, struct wz_err *err)
{
    const char *rank = getenv("OMPI_COMM_WORLD_LOCAL_RANK");
    int devices = 0, device, major = 0;
    cudaError_t error = cudaGetDeviceCount(&devices);

    if (error != cudaSuccess) return refuse_driver(err, error);
    if (devices == 0) return refuse_driver(err, cudaErrorNoDevice);
    if (!rank) rank = getenv("SLURM_LOCALID");
    device = rank ? atoi(rank) % devices : 0;
    if ((error = cudaSetDevice(device)) != cudaSuccess ||
        (error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device)) != cudaSuccess)
        return refuse_driver(err, error);
    if (major < 8) return refuse(err, "GPU %d has compute capability %d, and 8 or more is needed", device, major);

    struct cuda *cuda = (struct cuda *)calloc(1, sizeof *cuda);
    if (!cuda) wz_cuda_plugin.die("cuda: no memory for %zu bytes", sizeof *cuda);
    be->state = cuda;
    cuda->math = be->numerics.fast ? FAST : EXACT;
    CHECK(cudaDeviceGetAttribute(&cuda->processors, cudaDevAttrMultiProcessorCount, device));
    CHECK(cudaDeviceGetAttribute(&cuda->shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    CHECK(cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking));
    wz_cuda_graph_open(be);
    if (cuda->math == FAST && wz_cuda_fast_open(be, err) < 0) {
        close_cuda(be);
        return -1;
    }
    CHECK(cudaDeviceGetPCIBusId(cuda->device.id, sizeof cuda->device.id, device));
    cuda->device.stream = cuda->stream;
    cuda->device.idle = idle;
    cuda->device.hash = wz_cuda_hash;
    cuda->device.region = wz_cuda_region;
    be->device = &cuda->device;
    be->rounds = true;
    be->half_scores = true;
    be->ops.alloc = alloc;
    be->ops.free = release;
    be->ops.upload = upload;
    be->ops.download = wz_cuda_download;
    be->ops.zero = zero;
    wz_cuda_ops_vectors(&be->ops);
    wz_cuda_ops_products(&be->ops);
    wz_cuda_ops_attention(&be->ops);
    wz_cuda_ops_attention_back(&be->ops);
    wz_cuda_ops_head(&be->ops);
    return 0;
}

static int devices(struct wz_backend *be, size_t *total, size_t *unused)
{
    int n;

    CHECK(cudaGetDeviceCount(&n));
    CHECK(cudaMemGetInfo(unused, total));
    return n;
}

extern "C" {
__attribute__((visibility("default"))) struct wz_cuda_plugin wz_cuda_plugin = {
    sizeof(struct wz_ops),
    sizeof(struct wz_weight),
    sizeof(struct wz_backend),
    sizeof(struct wz_device),
    open_cuda,
    close_cuda,
    devices,
    NULL,
};
}
