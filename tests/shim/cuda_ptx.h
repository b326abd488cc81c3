/* shim: what kernels/cuda/ptx.cuh wraps, on the host. */
#pragma once

/* `size` bytes to shared memory, of which the first n come from src and the others are 0; done when its group was waited for. */
void shim_copy_async(void *dst, const void *src, size_t size, size_t n);
void shim_copy_commit(void);
void shim_copy_wait(size_t groups_in_flight);

inline void copy_async4(void *shared, const void *global, bool inside)
{
    shim_copy_async(shared, global, 4, inside ? 4 : 0);
}

inline void copy_commit(void)
{
    shim_copy_commit();
}

template <int N> inline void copy_wait(void)
{
    shim_copy_wait(N);
}
