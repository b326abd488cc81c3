/* ptx: the instructions that C++ can't say, a function each.
 *
 * Copies to shared memory that go on while threads compute (cp.async, sm_80): a thread starts some, closes them to a group, and
 * waits until at most N of its groups are under way. Others see what arrived after a __syncthreads. */
#ifndef WZ_CUDA_PTX_H
#define WZ_CUDA_PTX_H

#ifdef __CUDACC__

/* Four bytes; zeros where they lie outside (`global` must be an address that may be read even so). */
INLINE void copy_async4(void *shared, const void *global, bool inside)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"((unsigned)__cvta_generic_to_shared(shared)), "l"(global),
                 "r"(inside ? 4 : 0) : "memory");
}

INLINE void copy_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int N> INLINE void copy_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#else
#include <cuda_ptx.h>
#endif

#endif
