/* shim: what kernels/cuda/ptx.cuh wraps, on the host. */
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

/* `size` bytes to shared memory, of which the first n come from src and the others are 0; done when its group was
 * waited for. */
void shim_copy_async(void *dst, const void *src, size_t size, size_t n);
void shim_copy_commit(void);
void shim_copy_wait(size_t groups_in_flight);
/* Exchanges of a whole warp: rows of 8x8 matrices by address, registers by value. */
void shim_read_matrices(unsigned r[4], const void *row, bool turned);
void shim_multiply_bf16(float d[4], const unsigned a[4], const unsigned b[2]);

inline void copy_async4(void *shared, const void *global, bool inside)
{
    shim_copy_async(shared, global, 4, inside ? 4 : 0);
}

inline void copy_async16(void *shared, const void *global, bool inside)
{
    shim_copy_async(shared, global, 16, inside ? 16 : 0);
}

inline void copy_commit(void) { shim_copy_commit(); }

template <int N> inline void copy_wait(void) { shim_copy_wait(N); }

inline void ldmatrix(unsigned r[4], const void *shared) { shim_read_matrices(r, shared, false); }

inline void ldmatrix_transposed(unsigned r[4], const void *shared) { shim_read_matrices(r, shared, true); }

inline void mma_bf16(float d[4], const unsigned a[4], const unsigned b[2]) { shim_multiply_bf16(d, a, b); }

inline int opaque(int x) { return x; }

inline float exp2_approx(float x) { return exp2f(x); }

inline unsigned pair_bf16(float low, float high)
{
    return (unsigned)__float2bfloat16(high).bits << 16 | __float2bfloat16(low).bits;
}
