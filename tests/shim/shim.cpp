/* shim: fibres, their schedule, warps' exchanges, device memory. See cuda_runtime.h. */
#include <cuda_runtime.h>
#include <cuda_ptx.h>

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <map>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define __asan_poison_memory_region(p, n)                   ((void)(p), (void)(n))
#define __asan_unpoison_memory_region(p, n)                 ((void)(p), (void)(n))
#define __sanitizer_start_switch_fiber(fake, bottom, size)  ((void)(fake))
#define __sanitizer_finish_switch_fiber(fake, bottom, size) ((void)(fake), (void)(bottom), (void)(size))
#endif

enum { THREADS = 1024, STACK = 128 << 10, GUARD = 4096 };
static const long UP = -1, DOWN = -2;

enum state { READY, AT_BARRIER, AT_EXCHANGE, ENDED };
static const char *const states[] = { "ready", "at __syncthreads", "at", "ended" };

struct copy {
    void *dst;
    const void *src;
    size_t size, n;
};

struct fibre {
    void *sp, *fake;
    const void *stack;
    size_t stack_size;
    enum state state;
    const char *what;   /* the exchange it waits in */
    unsigned exchanges; /* it has been through */
    std::vector<copy> open;
    std::vector<std::vector<copy>> in_flight;
};

/* Two, taken in turn: a lane that reads one can be overtaken by at most one exchange. */
struct exchange {
    const char *what;
    unsigned arrived;
    uint64_t shown[32][5];
    unsigned result[32][4];
};

typedef std::vector<std::function<void()>> work;
struct shim_graph {
    work nodes;
};
struct shim_stream {
    long order;           /* UP, DOWN or a seed */
    bool broken;          /* the capture under way */
    work captured, later; /* later: what graphs have still to do */
};
struct shim_counts shim_counts;

struct shim_index threadIdx, blockIdx, blockDim, gridDim;

static struct fibre fibres[THREADS], home, *running, *left; /* left: who ran before */
static struct exchange exchanges[THREADS / 32][2];
static unsigned count, alive, waiting, noise;
static long order;
static const char *kernel = "none";
static const std::function<void()> *body;
static void *shared_memory;

[[noreturn]] static void die(const char *what)
{
    fprintf(stderr, "shim: %s, in kernel %s, block %u of %u\n", what, kernel, blockIdx.x, gridDim.x);
    for (unsigned i = 0; i < count; i++) {
        const struct fibre *f = &fibres[i], *before = i ? &fibres[i - 1] : NULL;
        if (before && f->state == before->state && (f->state != AT_EXCHANGE || f->what == before->what)) continue;
        fprintf(stderr, "shim:   from thread %u on: %s %s\n", i, states[f->state],
                f->state == AT_EXCHANGE ? f->what : "");
    }
    abort();
}

/* ---- fibres ----------------------------------------------------------------------------------------------- */

/* Saves what a call must keep, notes the stack in *from and goes on with another. */
extern "C" void shim_switch(void **from, void *to);
asm(R"(
    .text
    .hidden shim_switch
    .globl shim_switch
shim_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
)");

static void jump(struct fibre *to)
{
    struct fibre *from = running;

    left = from;
    running = to;
    threadIdx.x = (unsigned)(to - fibres);
    __sanitizer_start_switch_fiber(from->state == ENDED ? NULL : &from->fake, to->stack, to->stack_size);
    shim_switch(&from->sp, to->sp);
    __sanitizer_finish_switch_fiber(from->fake, NULL, NULL);
}

/* Hands over to the next fibre that can run. */
static void yield(void)
{
    unsigned at = (unsigned)(running - fibres), first = at + 1;

    if (order >= 0) first = (noise = noise * 1664525 + 1013904223) >> 8;
    for (unsigned i = 0; i < count; i++) {
        struct fibre *f = &fibres[order == DOWN ? (at + 2 * count - 1 - i) % count : (first + i) % count];
        if (f->state != READY) continue;
        if (f != running) jump(f);
        return;
    }
    if (alive > 0) die("no thread can go on: a barrier or an exchange that some of them never come to");
    jump(&home);
}

static void barrier_open(void)
{
    for (unsigned i = 0; i < count; i++)
        if (fibres[i].state == AT_BARRIER) fibres[i].state = READY;
    waiting = 0;
}

void __syncthreads(void)
{
    if (++waiting == alive) {
        barrier_open();
        if (order >= 0) yield();
        return;
    }
    running->state = AT_BARRIER;
    yield();
}

static void fibre_main(void)
{
    const void *stack = NULL;
    size_t size = 0;

    __sanitizer_finish_switch_fiber(NULL, &stack, &size);
    if (left == &home) {
        home.stack = stack;
        home.stack_size = size;
    }
    (*body)();
    running->state = ENDED;
    alive--;
    if (alive && waiting == alive) barrier_open();
    yield();
}

static void fibre_start(struct fibre *f, char *stack)
{
    void **sp = (void **)(stack + STACK) - 8;

    *--sp = NULL; /* where fibre_main would return to */
    *--sp = (void *)fibre_main;
    for (int i = 0; i < 6; i++) *--sp = NULL;
    f->sp = sp;
    f->fake = NULL;
    f->stack = stack;
    f->stack_size = STACK;
    f->state = READY;
    f->exchanges = 0;
    f->open.clear();
    f->in_flight.clear();
}

/* Whether this is the time at which `what` is to fail. */
static bool fails(const char *what, long *times)
{
    static const char *const how = getenv("WZ_SHIM_FAIL") ? getenv("WZ_SHIM_FAIL") : "";
    size_t n = strlen(what);

    if (strncmp(how, what, n)) return false;
    return !times || ++*times == atol(how + n + 1);
}

static cudaError_t broken; /* what a kernel has done wrong, which stays */

static void run_kernel(const char *name, cudaStream_t stream, size_t blocks, unsigned threads, size_t size,
                       const std::function<void()> &fn)
{
    static char *stacks;
    static long times;

    if (fails("launch", &times)) broken = cudaErrorIllegalAddress;
    if (!stacks) {
        stacks = (char *)mmap(NULL, (size_t)THREADS * STACK, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        for (size_t i = 0; i < THREADS; i++) mprotect(stacks + i * STACK, GUARD, PROT_NONE);
    }
    kernel = name;
    body = &fn;
    order = stream->order;
    count = threads;
    if (threads == 0 || threads > THREADS || threads % 32 || blocks > INT32_MAX) die("a launch that no GPU takes");
    blockDim.x = threads;
    gridDim.x = (unsigned)blocks;
    shared_memory = malloc(size);
    shim_device_open(true);
    for (unsigned b = 0; b < blocks; b++) {
        blockIdx.x = b;
        alive = count;
        waiting = 0;
        noise = (unsigned)order * 2654435761u + b;
        memset(shared_memory, 0xff, size);
        for (unsigned i = 0; i < count; i++) fibre_start(&fibres[i], stacks + (size_t)i * STACK);
        for (unsigned i = 0; i < count / 32; i++) exchanges[i][0].arrived = exchanges[i][1].arrived = 0;
        running = &home;
        home.state = READY;
        jump(&fibres[order == DOWN ? count - 1 : 0]);
    }
    shim_device_open(false);
    free(shared_memory);
    count = 0;
}

/* ---- the stream ------------------------------------------------------------------------------------------- */

static cudaStream_t capturing;

/* What may not be while a stream captures ends the capture. */
static bool may(void)
{
    if (capturing) capturing->broken = true;
    return !capturing;
}

static void catch_up(cudaStream_t stream)
{
    work all = std::move(stream->later);

    stream->later.clear();
    for (const std::function<void()> &each : all) each();
}

cudaError_t shim_do(cudaStream_t stream, std::function<void()> what)
{
    if (stream == capturing) {
        stream->captured.push_back(std::move(what));
        return cudaSuccess;
    }
    catch_up(stream);
    what();
    return broken;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode)
{
    if (capturing) return 1;
    capturing = stream;
    stream->broken = false;
    stream->captured.clear();
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    if (capturing != stream) return 1;
    capturing = NULL;
    if (stream->broken) return cudaErrorStreamCaptureInvalidated;
    *graph = new shim_graph{ std::move(stream->captured) };
    shim_counts.captures++;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags)
{
    if (!may()) return cudaErrorStreamCaptureUnsupported;
    *exec = new shim_graph(*graph);
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    delete exec;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    if (!may()) return cudaErrorStreamCaptureUnsupported;
    stream->later.insert(stream->later.end(), exec->nodes.begin(), exec->nodes.end());
    shim_counts.graphs++;
    return cudaSuccess;
}

static std::map<void (*)(void), size_t> allowed; /* bytes of shared memory, of kernels that asked for more */
static cudaError_t refused;                      /* the latest launch, until it is asked for */

cudaError_t shim_allow(void (*which)(void), int bytes)
{
    int most;

    cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
    if (bytes > most) return 1;
    allowed[which] = (size_t)bytes;
    return cudaSuccess;
}

void shim_launch(const char *name, void (*which)(void), cudaStream_t stream, size_t blocks, unsigned threads,
                 size_t size, std::function<void()> fn)
{
    size_t most = 48 << 10;

    if (size > most && allowed.count(which)) most = allowed[which];
    if (size > most) {
        refused = 1;
        return;
    }
    if (stream != capturing) shim_counts.launches++;
    shim_do(stream, [=] { run_kernel(name, stream, blocks, threads, size, fn); });
}

void *shim_shared(void) { return shared_memory; }

/* ---- warps ------------------------------------------------------------------------------------------------ */

unsigned shim_lane(void) { return threadIdx.x % 32; }

/* The last to arrive works out the results of all, if there are any. */
static struct exchange *meet(const char *what, unsigned mask, const void *mine, size_t size,
                             void (*work)(struct exchange *e) = NULL)
{
    unsigned lane = shim_lane(), first = threadIdx.x - lane;
    struct exchange *e = &exchanges[first / 32][running->exchanges++ % 2];

    running->what = what;
    running->state = AT_EXCHANGE;
    if (mask != ~0u) die("an exchange with less than a full mask");
    if (e->arrived == ~0u) e->arrived = 0; /* the one before the last: all have read it */
    if (e->arrived && e->what != what) die("lanes of a warp at different exchanges");
    e->what = what;
    memcpy(e->shown[lane], mine, size);
    e->arrived |= 1u << lane;
    if (e->arrived == ~0u) {
        if (work) work(e);
        for (unsigned i = 0; i < 32; i++) fibres[first + i].state = READY;
    } else {
        yield();
    }
    return e;
}

uint64_t shim_exchange(const char *what, unsigned mask, uint64_t mine, unsigned from)
{
    return meet(what, mask, &mine, sizeof mine)->shown[from][0];
}

static void read_rows(struct exchange *e)
{
    for (unsigned lane = 0; lane < 32; lane++)
        for (unsigned i = 0; i < 4; i++)
            memcpy(&e->result[lane][i], (const char *)e->shown[8 * i + lane / 4][0] + lane % 4 * 4, 4);
}

static void read_columns(struct exchange *e)
{
    for (unsigned lane = 0; lane < 32; lane++)
        for (unsigned i = 0; i < 4; i++) {
            unsigned g = lane / 4, t = lane % 4;
            const uint16_t *above = (const uint16_t *)e->shown[8 * i + 2 * t][0],
                           *below = (const uint16_t *)e->shown[8 * i + 2 * t + 1][0];
            e->result[lane][i] = (unsigned)below[g] << 16 | above[g];
        }
}

void shim_read_matrices(unsigned r[4], const void *row, bool turned)
{
    if ((uintptr_t)row % 16) die("a row of a matrix that is not aligned");
    memcpy(r, meet("ldmatrix", ~0u, &row, sizeof row, turned ? read_columns : read_rows)->result[shim_lane()],
           4 * sizeof *r);
}

struct operands {
    float d[4];
    unsigned a[4], b[2];
};

/* The sum over k in double, rounded once: a device rounds otherwise, but by the same inputs. */
static void multiply(struct exchange *e)
{
    double a[16][16], b[8][16];
    float d[32][4];
    auto half = [](unsigned pair, unsigned which) { return (double)__uint_as_float(pair >> (16 * which) << 16); };

    for (unsigned lane = 0; lane < 32; lane++) {
        struct operands o;
        memcpy(&o, e->shown[lane], sizeof o);
        memcpy(d[lane], o.d, sizeof o.d);
        unsigned g = lane / 4, t = lane % 4;
        for (unsigned h = 0; h < 2; h++) {
            for (unsigned i = 0; i < 4; i++) a[g + i % 2 * 8][2 * t + h + i / 2 * 8] = half(o.a[i], h);
            for (unsigned i = 0; i < 2; i++) b[g][2 * t + h + i * 8] = half(o.b[i], h);
        }
    }
    for (unsigned lane = 0; lane < 32; lane++)
        for (unsigned i = 0; i < 4; i++) {
            const double *x = a[lane / 4 + i / 2 * 8], *y = b[lane % 4 * 2 + i % 2];
            double sum = 0;
            for (unsigned k = 0; k < 16; k++) sum += x[k] * y[k];
            e->result[lane][i] = __float_as_uint((float)((double)d[lane][i] + sum));
        }
}

void shim_multiply_bf16(float d[4], const unsigned a[4], const unsigned b[2])
{
    struct operands mine = { { d[0], d[1], d[2], d[3] }, { a[0], a[1], a[2], a[3] }, { b[0], b[1] } };

    memcpy(d, meet("mma.sync", ~0u, &mine, sizeof mine, multiply)->result[shim_lane()], 4 * sizeof *d);
}

/* ---- asynchronous copies ---------------------------------------------------------------------------------- */

void shim_copy_async(void *dst, const void *src, size_t size, size_t n)
{
    if ((uintptr_t)dst % size || (uintptr_t)src % size) die("an asynchronous copy that is not aligned");
    memset(dst, 0xff, size);
    running->open.push_back({ dst, src, size, n });
}

void shim_copy_commit(void)
{
    running->in_flight.push_back(std::move(running->open));
    running->open.clear();
}

void shim_copy_wait(size_t groups)
{
    while (running->in_flight.size() > groups) {
        for (const copy &c : running->in_flight.front()) {
            memcpy(c.dst, c.src, c.n);
            memset((char *)c.dst + c.n, 0, c.size - c.n);
        }
        running->in_flight.erase(running->in_flight.begin());
    }
}

/* ---- device memory ---------------------------------------------------------------------------------------- */

/* One stretch of addresses. With WZ_SHIM_LOCK set it is closed but for kernels and copies, which costs some time.
 * Freed pieces are kept by their size. */
static const size_t DEVICE = (size_t)8 << 30, ALIGN = 256;
static char *device;
static size_t used;
static bool lock;
static std::multimap<size_t, char *> unused;
static std::map<char *, size_t> held, pinned;

void shim_device_open(bool open)
{
    if (lock) mprotect(device, (used + 4095) / 4096 * 4096, open ? PROT_READ | PROT_WRITE : PROT_NONE);
}

static bool device_create(void)
{
    device = (char *)mmap(NULL, DEVICE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    lock = getenv("WZ_SHIM_LOCK") != NULL;
    return device != MAP_FAILED;
}

cudaError_t cudaMalloc(void **p, size_t size)
{
    static long times;
    if (!may()) return cudaErrorStreamCaptureUnsupported;
    if (fails("malloc", &times)) return cudaErrorMemoryAllocation;

    size_t room = (size + 2 * ALIGN - 1) / ALIGN * ALIGN; /* at least a byte of no man's land */
    auto old = unused.find(room);

    if (!device && !device_create()) return cudaErrorMemoryAllocation;
    if (old != unused.end()) {
        *p = old->second;
        unused.erase(old);
    } else {
        if (room > DEVICE - used) return cudaErrorMemoryAllocation;
        *p = device + used;
        used += room;
    }
    held[(char *)*p] = size;
    shim_device_open(true);
    __asan_unpoison_memory_region(*p, room);
    memset(*p, 0xff, room);
    __asan_poison_memory_region((char *)*p + size, room - size);
    shim_device_open(false);
    return cudaSuccess;
}

cudaError_t cudaFree(void *p)
{
    auto it = held.find((char *)p);

    if (!may()) return cudaErrorStreamCaptureUnsupported;
    if (!p) return cudaSuccess;
    if (it == held.end()) return 1;
    size_t room = (it->second + 2 * ALIGN - 1) / ALIGN * ALIGN;
    __asan_poison_memory_region(p, room);
    unused.insert({ room, (char *)p });
    held.erase(it);
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **p, size_t size)
{
    if (!may()) return cudaErrorStreamCaptureUnsupported;
    *p = malloc(size);
    pinned[(char *)*p] = size;
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *p)
{
    if (!may()) return cudaErrorStreamCaptureUnsupported;
    pinned.erase((char *)p);
    free(p);
    return cudaSuccess;
}

static bool lies_in(const std::map<char *, size_t> &blocks, const void *p, size_t n)
{
    auto it = blocks.upper_bound((char *)p);

    if (it == blocks.begin()) return false;
    --it;
    return (char *)p + n <= it->first + it->second;
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t n, cudaMemcpyKind kind, cudaStream_t stream)
{
    bool to = kind != cudaMemcpyDeviceToHost, from = kind != cudaMemcpyHostToDevice;

    if (lies_in(held, dst, n) != to || lies_in(held, src, n) != from) return 1;
    if (stream == capturing && ((!to && !lies_in(pinned, dst, n)) || (!from && !lies_in(pinned, src, n)))) {
        may();
        return cudaErrorStreamCaptureUnsupported;
    }
    return shim_do(stream, [=] {
        shim_device_open(true);
        memmove(dst, src, n);
        shim_device_open(false);
    });
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t stream)
{
    if (!lies_in(held, p, n)) return 1;
    return shim_do(stream, [=] {
        shim_device_open(true);
        memset(p, value, n);
        shim_device_open(false);
    });
}

/* ---- the rest of the runtime ------------------------------------------------------------------------------ */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    const char *how = getenv("WZ_SHIM");

    *stream = new shim_stream();
    (*stream)->order = !how || strcmp(how, "up") == 0 ? UP : strcmp(how, "down") == 0 ? DOWN : atol(how);
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    if (!may()) return cudaErrorStreamCaptureUnsupported;
    catch_up(stream);
    return broken;
}

cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaStreamSynchronize(stream); }

/* A card of 1 GB. */
cudaError_t cudaMemGetInfo(size_t *left, size_t *total)
{
    *total = *left = 1000000000;
    for (auto &block : held) *left -= block.second < *left ? block.second : *left;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *n)
{
    const char *devices = getenv("WZ_SHIM_DEVICES");

    if (fails("driver", NULL)) return cudaErrorInsufficientDriver;
    if (fails("none", NULL)) return cudaErrorNoDevice;
    *n = devices ? atoi(devices) : 1;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int which)
{
    int n = 0;

    cudaGetDeviceCount(&n);
    return which >= 0 && which < n ? cudaSuccess : 1;
}

cudaError_t cudaDeviceGetPCIBusId(char *id, int size, int which)
{
    snprintf(id, (size_t)size, "shim:%02d", which);
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, int attribute, int which)
{
    const char *shared = getenv("WZ_SHIM_SHARED");

    if (attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin) *value = shared ? atoi(shared) : 227 * 1024;
    else if (attribute == cudaDevAttrComputeCapabilityMajor) *value = fails("old", NULL) ? 7 : 9;
    else *value = 4; /* few processors: small tests see both of the ways in which work is cut */
    return cudaSuccess;
}

cudaError_t cudaGetLastError(void)
{
    cudaError_t error = broken ? broken : refused;

    refused = cudaSuccess;
    return error;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = 12040;
    return cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t error)
{
    return error == cudaErrorMemoryAllocation           ? "out of memory"
           : error == cudaErrorIllegalAddress           ? "an illegal memory access was encountered"
           : error >= cudaErrorStreamCaptureUnsupported ? "operation not permitted when stream is capturing"
                                                        : "invalid argument";
}
