/* compat: one source for two compilers: nvcc, and a C++ compiler with an emulation of CUDA on the host (tests/shim).
 * The emulation supports dynamic shared memory, one-dimensional launches, and whole warps with full masks; kernels use
 * nothing else. */
#ifndef WZ_CUDA_COMPAT_H
#define WZ_CUDA_COMPAT_H

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#define INLINE static __device__ __forceinline__

#ifdef __CUDACC__
#define SHARED(type, name)                                     \
    extern __shared__ __align__(16) unsigned char wz_shared[]; \
    type *name = (type *)wz_shared
#define LAUNCH_ON(stream, kernel, blocks, threads, shared, ...) \
    (kernel)<<<(unsigned)(blocks), threads, shared, stream>>>(__VA_ARGS__)
#else
#define SHARED(type, name) type *name = (type *)shim_shared()
#define LAUNCH_ON(stream, kernel, blocks, threads, shared, ...) \
    shim_start(#kernel, kernel, stream, blocks, threads, shared, __VA_ARGS__)
#endif

#endif
