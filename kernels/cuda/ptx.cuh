/* ptx: instructions that C++ does not express, one function each.
 *
 * cp.async (sm_80): asynchronous copies to shared memory. A thread starts copies, commits them as a group, and waits
 * until at most N of its groups are pending. Other threads see the data after a __syncthreads.
 *
 * mma.sync (sm_80): d += a b of small matrices by a warp, operands loaded from shared memory by ldmatrix. Register
 * layout, with lane = 4 g + t:
 *
 *   a [16, 16]   a[0] (g, 2t)  a[1] (g + 8, 2t)  a[2] (g, 2t + 8)  a[3] (g + 8, 2t + 8); upper half: the next column
 *   b [16, 8]    b[0] (2t, g)  b[1] (2t + 8, g); upper half: the next row
 *   d [16, 8]    d[0] (g, 2t)  d[1] (g, 2t + 1)  d[2] (g + 8, 2t)  d[3] (g + 8, 2t + 1)
 *
 * An element of d depends on its row of a, its column of b and itself alone. */
#ifndef WZ_CUDA_PTX_H
#define WZ_CUDA_PTX_H

#ifdef __CUDACC__

/* Copies 4 bytes, or zeros where not `inside` (`global` must be a readable address even then). */
INLINE void copy_async4(void *shared, const void *global, bool inside)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"((unsigned)__cvta_generic_to_shared(shared)),
                 "l"(global), "r"(inside ? 4 : 0)
                 : "memory");
}

/* Copies 16 aligned bytes, bypassing L1, or zeros. */
INLINE void copy_async16(void *shared, const void *global, bool inside)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((unsigned)__cvta_generic_to_shared(shared)),
                 "l"(global), "r"(inside ? 16 : 0)
                 : "memory");
}

INLINE void copy_commit(void) { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int N> INLINE void copy_wait(void) { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

/* Loads four 8x8 matrices of 16-bit elements: lane l passes the address of row l % 8 of matrix l / 8 (16 bytes,
 * aligned) and receives in r[i] elements (g, 2t) and (g, 2t + 1) of matrix i; transposed: (2t, g) and (2t + 1, g). */
INLINE void ldmatrix(unsigned r[4], const void *shared)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((unsigned)__cvta_generic_to_shared(shared))
                 : "memory");
}

INLINE void ldmatrix_transposed(unsigned r[4], const void *shared)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((unsigned)__cvta_generic_to_shared(shared))
                 : "memory");
}

/* d += a b, bf16 to f32. */
INLINE void mma_bf16(float d[4], const unsigned a[4], const unsigned b[2])
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Both rounded to nearest even, the first in the lower half. */
INLINE unsigned pair_bf16(float low, float high)
{
    unsigned pair;

    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

/* 2^x within 2 units in the last place; 0 of -infinity, 1 of 0. */
INLINE float exp2_approx(float x)
{
    float y;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Returns x; the compiler can derive nothing about its value. */
INLINE int opaque(int x)
{
    asm volatile("" : "+r"(x));
    return x;
}

#else
#include <cuda_ptx.h>
#endif

#endif
