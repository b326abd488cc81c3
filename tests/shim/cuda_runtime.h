/* shim: CUDA on the host, so that the kernels of kernels/cuda run, and fail, where there is no GPU.
 *
 * A kernel's threads are fibres of one OS thread: each runs until it must wait for others (__syncthreads, a warp's
 * exchange) and then hands over to the next that can run: ascending, descending, or as a seed says (shim.cpp). What a
 * GPU would not forgive is an error here:
 *   memory    device memory and shared memory begin as NaN; under AddressSanitizer an access beyond either is reported;
 *   with
 *             WZ_SHIM_LOCK set device memory can't be touched outside of kernels and copies
 *   limits    a launch with more shared memory than its kernel is allowed (48 KiB, if it did not ask for more) fails
 *   waiting   a barrier or exchange that some thread never comes to ends the program with every thread's state
 *   copies    what an asynchronous copy has not been waited for is NaN
 *   graphs    what is captured keeps its arguments; while a stream captures, waiting, allocating, freeing, and copies
 *   of host memory
 *             that is not pinned are errors; a graph runs when the stream is waited for or given something else, no
 *             sooner
 * Blocks run one after another, warps are whole (threads a multiple of 32, full masks). Nothing here says how fast a
 * GPU is. */
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <functional>

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct shim_index {
    unsigned x;
};
extern struct shim_index threadIdx, blockIdx, blockDim, gridDim;
struct alignas(8) float2 {
    float x, y;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) ulonglong2 {
    unsigned long long x, y;
};

/* ---- inside a kernel -------------------------------------------------------------------------------------- */

void __syncthreads(void);
void *shim_shared(void);
/* All lanes of a warp show a value and read lane `from`'s. `what` names the exchange, for lanes that are at
 * different ones. */
uint64_t shim_exchange(const char *what, unsigned mask, uint64_t mine, unsigned from);
unsigned shim_lane(void);

template <class T> inline T shim_shuffle(const char *what, unsigned mask, T v, unsigned from)
{
    uint64_t bits = 0;

    static_assert(sizeof v <= sizeof bits, "a lane shows at most 8 bytes");
    memcpy(&bits, &v, sizeof v);
    bits = shim_exchange(what, mask, bits, from & 31);
    memcpy(&v, &bits, sizeof v);
    return v;
}

template <class T> inline T __shfl_xor_sync(unsigned mask, T v, int with)
{
    return shim_shuffle("__shfl_xor_sync", mask, v, shim_lane() ^ (unsigned)with);
}

inline void __syncwarp(unsigned mask = ~0u) { shim_exchange("__syncwarp", mask, 0, 0); }

template <class T> inline T atomicAdd(T *p, T v)
{
    T old = *p;

    *p = old + v;
    return old;
}

inline uint64_t __umul64hi(uint64_t a, uint64_t b) { return (uint64_t)((unsigned __int128)a * b >> 64); }

inline unsigned __float_as_uint(float f)
{
    unsigned u;

    memcpy(&u, &f, sizeof u);
    return u;
}

inline float __uint_as_float(unsigned u)
{
    float f;

    memcpy(&f, &u, sizeof f);
    return f;
}

/* ---- the runtime ------------------------------------------------------------------------------------------ */

typedef int cudaError_t;
typedef struct shim_stream *cudaStream_t;
enum { CUDART_VERSION = 13000 };
enum {
    cudaSuccess,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorNotReady = 600,
    cudaErrorIllegalAddress = 700,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated
};
typedef struct shim_graph *cudaGraph_t, *cudaGraphExec_t;
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum {
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaStreamNonBlocking = 1
};

/* As many devices as WZ_SHIM_DEVICES says, one without it: other processes' are other devices only by name. */
/* WZ_SHIM_SHARED, as it is now: the bytes of shared memory that a block may have, an sm_90's without it. */
/* WZ_SHIM_FAIL, as it is when the first of these is called, says what fails: "driver" (older than the runtime),
 * "none" (no device), "old" (an old device), "malloc=N" (the Nth allocation), "launch=N" (the Nth launch goes where
 * no memory is). */
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetPCIBusId(char *id, int size, int device);
cudaError_t cudaDeviceGetAttribute(int *value, int attribute, int device);
cudaError_t cudaGetLastError(void);
const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaMalloc(void **p, size_t size);
cudaError_t cudaFree(void *p);
cudaError_t cudaMallocHost(void **p, size_t size);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaMemGetInfo(size_t *unused, size_t *total);
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t n, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t stream);
/* The schedule is WZ_SHIM as it is now: "up" (default), "down" or a number, the seed. */
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t shim_allow(void (*kernel)(void), int bytes); /* of dynamic shared memory, instead of 48 KiB */
template <class K> inline cudaError_t cudaFuncSetAttribute(K *kernel, int attribute, int value)
{
    return shim_allow((void (*)(void))kernel, value);
}

/* Done in the order of the stream: now, or in a graph. */
cudaError_t shim_do(cudaStream_t stream, std::function<void()> what);
template <class T> struct shim_value {
    using type = T;
}; /* so that only the kernel says what its arguments are */
void shim_launch(const char *name, void (*kernel)(void), cudaStream_t stream, size_t blocks, unsigned threads,
                 size_t shared, std::function<void()> body);
/* static: files have arguments of different types by one name */
template <class... P>
static void shim_start(const char *name, void (*kernel)(P...), cudaStream_t stream, size_t blocks, unsigned threads,
                       size_t shared, typename shim_value<P>::type... args)
{
    shim_launch(name, (void (*)(void))kernel, stream, blocks, threads, shared, [=] { kernel(args...); });
}
/* Of the process: kernels asked for one by one, captures ended, graphs launched. */
extern "C" __attribute__((visibility("default"))) struct shim_counts {
    long launches, captures, graphs;
} shim_counts;
/* Opens device memory to the host's stand-ins for libraries, and closes it. */
void shim_device_open(bool open);
