/* Conformance: on a real device, what kernels/cuda/ptx.cuh and warps do must be what the host's stand-ins say they
 * do. TAP. `gpu_layout copy` prints how fast device memory is copied instead, GB/s read and written: the ceiling of
 * opcheck --bench-large. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "kernels/cuda/compat.cuh"
#include "kernels/cuda/ptx.cuh"

enum { N = 128 };

/* out[0..N): copies of the first group, which leave out every third element; [N..2N): of the second; then each
 * lane's sum over its warp; and the sum of 64-bit words that all threads put together. */
static __global__ void probe(float *out, const float *x, unsigned long long *word)
{
    SHARED(float, near);
    int t = (int)threadIdx.x;
    unsigned long long *all = (unsigned long long *)(near + 2 * N);
    float sum = x[t];

    copy_async4(&near[t], &x[t], t % 3 != 0);
    copy_commit();
    copy_async4(&near[N + t], &x[N - 1 - t], true);
    copy_commit();
    if (t == 0) *all = 0;
    copy_wait<1>();
    __syncthreads();
    out[t] = near[N - 1 - t];
    copy_wait<0>();
    __syncthreads();
    out[N + t] = near[N + t];
    for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
    out[2 * N + t] = sum;
    atomicAdd(all, 1ull << (t % 60));
    __syncthreads();
    if (t == 0) *word = *all;
}

/* d[16, 8] = a[16, 16] b[16, 8]: a by rows and b by rows of its transpose; or turned, both the other way. */
static __global__ void multiply_once(float *out, const __nv_bfloat16 *a, const __nv_bfloat16 *b, bool turned)
{
    SHARED(__nv_bfloat16, near);
    int t = (int)threadIdx.x, half = t / 8 % 2 * 8;
    float d[4] = { 0, 0, 0, 0 };
    unsigned ra[4], rb[4];

    copy_async16(&near[t * 8], &a[t * 8], true);
    copy_async16(&near[256 + t * 8], t < 16 ? &b[t * 8] : b, t < 16);
    copy_commit();
    copy_wait<0>();
    __syncthreads();
    if (turned) {
        ldmatrix_transposed(ra, &near[(t % 8 + t / 16 * 8) * 16 + half]);
        ldmatrix_transposed(rb, &near[256 + (t % 8 + half) * 8]);
    } else {
        ldmatrix(ra, &near[(t % 8 + half) * 16 + t / 16 * 8]);
        ldmatrix(rb, &near[256 + t % 8 * 16 + half]);
    }
    mma_bf16(d, ra, rb);
    for (int i = 0; i < 4; i++) out[(t / 4 + i / 2 * 8) * 8 + t % 4 * 2 + i % 2] = d[i];
}

/* Rounded to bf16 in pairs. */
static __global__ void round_pairs(unsigned *out, const float *x)
{
    out[threadIdx.x] = pair_bf16(x[2 * threadIdx.x], x[2 * threadIdx.x + 1]);
}

static int bad;

static void result(bool ok, const char *name)
{
    static int n;

    printf("%sok %d - %s\n", ok ? "" : "not ", ++n, name);
    bad += !ok;
}

/* Small integers, so that sums are exact in any order, with each place its own. */
static bool products_right(cudaStream_t stream, bool turned)
{
    float a[16][16], b[16][8], got[16][8], *d_out;
    __nv_bfloat16 half[256 + 128], *d_half;
    bool right = true;

    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++)
            half[turned ? k * 16 + i : i * 16 + k] = __float2bfloat16(a[i][k] = (float)((i * 16 + k) * 7 % 61 - 30));
    for (int k = 0; k < 16; k++)
        for (int j = 0; j < 8; j++)
            half[256 + (turned ? k * 8 + j : j * 16 + k)] =
                __float2bfloat16(b[k][j] = (float)((k * 8 + j) * 5 % 53 - 26));
    if (cudaMalloc((void **)&d_half, sizeof half) || cudaMalloc((void **)&d_out, sizeof got) ||
        cudaMemcpyAsync(d_half, half, sizeof half, cudaMemcpyHostToDevice, stream))
        return false;
    LAUNCH_ON(stream, multiply_once, 1, 32, 2 * 512 * sizeof *half, d_out, d_half, d_half + 256, turned);
    cudaMemcpyAsync(got, d_out, sizeof got, cudaMemcpyDeviceToHost, stream);
    if (cudaStreamSynchronize(stream) || cudaGetLastError()) return false;
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            float want = 0;
            for (int k = 0; k < 16; k++) want += a[i][k] * b[k][j];
            right &= got[i][j] == want;
        }
    cudaFree(d_half);
    cudaFree(d_out);
    return right;
}

static bool pairs_right(cudaStream_t stream)
{
    float x[64], *d_x;
    unsigned got[32], *d_out;
    bool right = true;

    for (int i = 0; i < 64; i++) x[i] = ldexpf((float)(i - 31) + (float)(i % 5) / 4096, i % 9 * 9 - 36);
    for (int i = 0; i < 8; i++) x[i] = 1 + (float)(i + 1) / 256; /* halves of the last place */
    if (cudaMalloc((void **)&d_x, sizeof x) || cudaMalloc((void **)&d_out, sizeof got) ||
        cudaMemcpyAsync(d_x, x, sizeof x, cudaMemcpyHostToDevice, stream))
        return false;
    LAUNCH_ON(stream, round_pairs, 1, 32, 0, d_out, d_x);
    cudaMemcpyAsync(got, d_out, sizeof got, cudaMemcpyDeviceToHost, stream);
    if (cudaStreamSynchronize(stream) || cudaGetLastError()) return false;
    for (int i = 0; i < 64; i++) {
        unsigned u;
        memcpy(&u, &x[i], sizeof u);
        u = (u + 0x7fff + (u >> 16 & 1)) >> 16;
        right &= (got[i / 2] >> (16 * (i % 2)) & 0xffff) == u;
    }
    cudaFree(d_x);
    cudaFree(d_out);
    return right;
}

static int copy_rate(void)
{
    const size_t size = (size_t)1 << 28;
    double top = 1e9;
    cudaStream_t stream;
    char *from, *to;

    if (cudaStreamCreateWithFlags(&stream, 0) || cudaMalloc((void **)&from, size) || cudaMalloc((void **)&to, size))
        return 1;
    for (int i = 0; i < 20; i++) {
        struct timespec a, b;
        cudaStreamSynchronize(stream);
        clock_gettime(CLOCK_MONOTONIC, &a);
        for (int j = 0; j < 4; j++)
            if (cudaMemcpyAsync(to, from, size, cudaMemcpyDeviceToDevice, stream)) return 1;
        if (cudaStreamSynchronize(stream)) return 1;
        clock_gettime(CLOCK_MONOTONIC, &b);
        double t = (double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec);
        if (t < top) top = t;
    }
    printf("%.1f\n", 8.0 * (double)size / top * 1e-9);
    return 0;
}

int main(int argc, char **argv)
{
    float x[N], got[3 * N], *d_x, *d_out;
    unsigned long long word = 0, *d_word, sum = 0;
    bool first = true, second = true, sums = true;
    cudaStream_t stream;

    if (argc > 1 && strcmp(argv[1], "copy") == 0) return copy_rate();
    puts("1..7");
    for (int i = 0; i < N; i++) x[i] = (float)(i * 37 % 101);
    for (int t = 0; t < N; t++) sum += 1ull << (t % 60);
    if (cudaStreamCreateWithFlags(&stream, 0) || cudaMalloc((void **)&d_x, sizeof x) ||
        cudaMalloc((void **)&d_out, sizeof got) || cudaMalloc((void **)&d_word, sizeof word) ||
        cudaMemcpyAsync(d_x, x, sizeof x, cudaMemcpyHostToDevice, stream)) {
        puts("Bail out! no device");
        return 1;
    }
    LAUNCH_ON(stream, probe, 1, N, (2 * N + 2) * sizeof(float), d_out, d_x, d_word);
    cudaMemcpyAsync(got, d_out, sizeof got, cudaMemcpyDeviceToHost, stream);
    cudaMemcpyAsync(&word, d_word, sizeof word, cudaMemcpyDeviceToHost, stream);
    if (cudaStreamSynchronize(stream) || cudaGetLastError()) {
        puts("Bail out! the kernel failed");
        return 1;
    }
    cudaFree(d_x);
    cudaFree(d_out);
    cudaFree(d_word);
    for (int t = 0; t < N; t++) {
        float warp = 0;
        for (int j = 0; j < 32; j++) warp += x[t / 32 * 32 + j];
        first &= got[t] == ((N - 1 - t) % 3 != 0 ? x[N - 1 - t] : 0);
        second &= got[N + t] == x[N - 1 - t];
        sums &= got[2 * N + t] == warp;
    }
    result(first, "a first group of copies, with zeros where it is told to");
    result(second, "a second group of copies");
    result(sums, "sums over a warp");
    result(word == sum, "64-bit atomics on shared memory");
    result(products_right(stream, false), "a product of matrices, both operands by rows");
    result(products_right(stream, true), "a product of matrices, both operands turned");
    result(pairs_right(stream), "pairs rounded to bf16");
    cudaStreamDestroy(stream);
    return bad > 0;
}
