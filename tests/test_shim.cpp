/* The shim sees what it says it sees (shim/cuda_runtime.h): a kernel that is right gives the same under every
 * schedule, and one with a planted fault gives something else, or ends the program with a message. TAP on standard
 * output. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/cuda/compat.cuh"
#include "kernels/cuda/ptx.cuh"

enum { N = 64 };

enum fault { NONE, NO_BARRIER, NO_WAIT, SPLIT_WARP, SPLIT_BARRIER, BEYOND_SHARED, BEYOND_DEVICE };

/* out[i] = the sum of x over a warp + the element opposite, by shared memory that is filled by asynchronous copies. */
static __global__ void turn(float *out, const float *x, enum fault fault)
{
    SHARED(float, near);
    int t = (int)threadIdx.x;
    float sum = 0;

    copy_async4(&near[t], &x[t], true);
    copy_commit();
    if (fault != NO_WAIT) copy_wait<0>();
    if (fault == SPLIT_BARRIER && t == 40) __syncwarp();
    else if (fault != NO_BARRIER) __syncthreads();
    float opposite = near[N - 1 - t];
    sum = x[t];
    for (int i = 16; i > 0; i /= 2)
        if (fault != SPLIT_WARP || t != 7) sum += __shfl_xor_sync(~0u, sum, i);
    if (fault == BEYOND_SHARED) sum += near[N + t / 63];
    if (fault == BEYOND_DEVICE) sum += x[N + t / 63];
    out[t] = sum + opposite;
}

/* 0: right; 1: wrong. Ends the program where the shim does. */
static int run(enum fault fault, const char *schedule)
{
    float x[N], got[N], *d_x, *d_out;
    cudaStream_t stream;
    int wrong = 0;

    setenv("WZ_SHIM", schedule, 1);
    for (int i = 0; i < N; i++) x[i] = (float)(i * i % 17);
    cudaStreamCreateWithFlags(&stream, 0);
    if (cudaMalloc((void **)&d_x, sizeof x) || cudaMalloc((void **)&d_out, sizeof x)) return 1;
    if (cudaMemcpyAsync(d_x, x, sizeof x, cudaMemcpyHostToDevice, stream)) return 1;
    LAUNCH_ON(stream, turn, 1, N, sizeof x, d_out, d_x, fault);
    if (cudaMemcpyAsync(got, d_out, sizeof x, cudaMemcpyDeviceToHost, stream)) return 1;
    for (int i = 0; i < N; i++) {
        float want = x[N - 1 - i];
        for (int j = 0; j < 32; j++) want += x[i / 32 * 32 + j];
        if (!(got[i] == want)) wrong = 1;
    }
    cudaFree(d_x);
    cudaFree(d_out);
    cudaStreamDestroy(stream);
    return wrong;
}

static __global__ void count(int *n, int by)
{
    if (threadIdx.x == 0) *n += by;
}

/* What is captured does what was asked for when it was captured, whenever it is launched, and not before it is
 * waited for. */
static bool graph_keeps_arguments(void)
{
    int *d, *host, by = 3;
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;

    cudaStreamCreateWithFlags(&stream, 0);
    if (cudaMalloc((void **)&d, sizeof *d) || cudaMallocHost((void **)&host, sizeof *host) ||
        cudaMemsetAsync(d, 0, sizeof *d, stream) || cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal))
        return false;
    LAUNCH_ON(stream, count, 1, 32, 0, d, by);
    by = 100;
    if (cudaMemcpyAsync(host, d, sizeof *d, cudaMemcpyDeviceToHost, stream) || cudaStreamEndCapture(stream, &graph) ||
        cudaGraphInstantiate(&exec, graph, 0) || cudaGraphDestroy(graph))
        return false;
    *host = -1;
    if (cudaGraphLaunch(exec, stream) || cudaGraphLaunch(exec, stream) || *host != -1 || cudaStreamSynchronize(stream))
        return false;
    bool right = *host == 6;
    return !cudaGraphExecDestroy(exec) && !cudaFree(d) && !cudaFreeHost(host) && !cudaStreamDestroy(stream) && right;
}

/* How a capture ends in which something was asked for that no capture bears. */
static bool capture_refuses(int what)
{
    int *d, *p, here = 0;
    cudaStream_t stream;
    cudaGraph_t graph;

    cudaStreamCreateWithFlags(&stream, 0);
    if (cudaMalloc((void **)&d, sizeof *d) || cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal))
        return false;
    cudaError_t error = what == 0   ? cudaStreamSynchronize(stream)
                        : what == 1 ? cudaMalloc((void **)&p, 4)
                        : what == 2 ? cudaFree(d)
                        : what == 3 ? cudaStreamQuery(stream)
                                    : cudaMemcpyAsync(&here, d, sizeof here, cudaMemcpyDeviceToHost, stream);
    return error == cudaErrorStreamCaptureUnsupported &&
           cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated && !cudaFree(d) &&
           !cudaStreamDestroy(stream);
}

/* A launch with more than 48 KiB of shared memory fails unless its kernel asked for as much. */
static bool shared_memory_is_asked_for(void)
{
    enum { MORE = 60 << 10 };
    int *d;
    cudaStream_t stream;

    cudaStreamCreateWithFlags(&stream, 0);
    if (cudaMalloc((void **)&d, sizeof *d)) return false;
    LAUNCH_ON(stream, count, 1, 32, MORE, d, 1);
    bool refused = cudaGetLastError() != cudaSuccess && cudaGetLastError() == cudaSuccess;
    bool too_much = cudaFuncSetAttribute(count, cudaFuncAttributeMaxDynamicSharedMemorySize, 1 << 20) != cudaSuccess;
    if (cudaFuncSetAttribute(count, cudaFuncAttributeMaxDynamicSharedMemorySize, MORE)) return false;
    LAUNCH_ON(stream, count, 1, 32, MORE, d, 1);
    return refused && too_much && !cudaGetLastError() && !cudaFree(d) && !cudaStreamDestroy(stream);
}

/* Touches device memory from the host, as a program that forgets wz_download would. */
static int touch(void)
{
    float *p;

    setenv("WZ_SHIM_LOCK", "1", 1);
    return cudaMalloc((void **)&p, 4) || *(volatile float *)p > 0;
}

/* How a child ended: 0 right, 1 wrong, 2 stopped. */
static int ending(int (*fn)(enum fault, const char *), enum fault fault, const char *schedule)
{
    int status;
    pid_t child = fork();

    if (child == 0) {
        if (!freopen("/dev/null", "w", stderr)) _exit(3);
        _exit(40 + (fn ? fn(fault, schedule) : touch())); /* unlike AddressSanitizer's */
    }
    waitpid(child, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) / 2 == 20 ? WEXITSTATUS(status) - 40 : 2;
}

static void result(bool ok, const char *name)
{
    static int n;

    printf("%sok %d - %s\n", ok ? "" : "not ", ++n, name);
}

/* Whether some of the schedules end in `how`, all of them when `all`. */
static bool seen(enum fault fault, int how, bool all)
{
    static const char *const schedules[] = { "up", "down", "1", "2", "3" };
    int times = 0;

    for (const char *schedule : schedules) times += ending(run, fault, schedule) == how;
    return all ? times == 5 : times > 0;
}

int main(void)
{
#ifdef __SANITIZE_ADDRESS__
    const bool guarded = true;
#else
    const bool guarded = false; /* an access beyond its memory is seen by AddressSanitizer only */
#endif
    printf("1..%d\n", guarded ? 11 : 9);
    result(seen(NONE, 0, true), "a right kernel is right under every schedule");
    result(seen(NO_BARRIER, 1, false), "a missing barrier gives wrong numbers");
    result(seen(NO_WAIT, 1, true), "a missing wait gives NaN");
    result(seen(SPLIT_WARP, 2, true), "lanes that miss an exchange stop the program");
    result(seen(SPLIT_BARRIER, 2, true), "a thread that misses a barrier stops the program");
    if (guarded) {
        result(seen(BEYOND_SHARED, 2, true), "an access beyond shared memory stops the program");
        result(seen(BEYOND_DEVICE, 2, true), "an access beyond device memory stops the program");
    }
    result(ending(NULL, NONE, "up") == 2, "the host can't touch device memory");
    result(shared_memory_is_asked_for(), "a launch with more shared memory than was asked for is refused");
    result(graph_keeps_arguments(), "a graph keeps what was captured, and runs when it is waited for");
    bool refuses = true;
    for (int what = 0; what < 5; what++) refuses = refuses && capture_refuses(what);
    result(refuses, "waiting, allocating, freeing and unpinned copies end a capture");
    return 0;
}
