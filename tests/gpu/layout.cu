/* Conformance: on a real device, what kernels/cuda/ptx.cuh and warps do must be what the host's stand-ins say they do. TAP. */
#include <stdio.h>

#include "kernels/cuda/compat.cuh"
#include "kernels/cuda/ptx.cuh"

enum { N = 128 };

/* out[0..N): copies of the first group, which leave out every third element; [N..2N): of the second; then each lane's sum over its
 * warp, what it sees of the lane beside it, and the smallest and the sum of 64-bit words that all threads put together. */
static __global__ void probe(float *out, const float *x, unsigned long long *words)
{
    SHARED(float, near);
    int t = (int)threadIdx.x;
    unsigned long long *both = (unsigned long long *)(near + 2 * N);
    float sum = x[t];

    copy_async4(&near[t], &x[t], t % 3 != 0);
    copy_commit();
    copy_async4(&near[N + t], &x[N - 1 - t], true);
    copy_commit();
    if (t == 0) both[0] = ~0ull, both[1] = 0;
    copy_wait<1>();
    __syncthreads();
    out[t] = near[N - 1 - t];
    copy_wait<0>();
    __syncthreads();
    out[N + t] = near[N + t];
    for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
    out[2 * N + t] = sum;
    out[3 * N + t] = __shfl_sync(~0u, x[t], (t + 1) % 32);
    atomicMin(&both[0], (unsigned long long)(N - t) << 33);
    atomicAdd(&both[1], 1ull << (t % 60));
    __syncthreads();
    if (t < 2) words[t] = both[t];
}

static int bad;

static void result(bool ok, const char *name)
{
    static int n;

    printf("%sok %d - %s\n", ok ? "" : "not ", ++n, name);
    bad += !ok;
}

int main(void)
{
    float x[N], got[4 * N], *d_x, *d_out;
    unsigned long long words[2] = { 0, 0 }, *d_words, sum = 0;
    bool first = true, second = true, sums = true, beside = true;
    cudaStream_t stream;

    puts("1..5");
    for (int i = 0; i < N; i++) x[i] = (float)(i * 37 % 101);
    for (int t = 0; t < N; t++) sum += 1ull << (t % 60);
    if (cudaStreamCreateWithFlags(&stream, 0) || cudaMalloc((void **)&d_x, sizeof x) || cudaMalloc((void **)&d_out, sizeof got)
        || cudaMalloc((void **)&d_words, sizeof words) || cudaMemcpyAsync(d_x, x, sizeof x, cudaMemcpyHostToDevice, stream)) {
        puts("Bail out! no device");
        return 1;
    }
    LAUNCH_ON(stream, probe, 1, N, (2 * N + 4) * sizeof(float), d_out, d_x, d_words);
    cudaMemcpyAsync(got, d_out, sizeof got, cudaMemcpyDeviceToHost, stream);
    cudaMemcpyAsync(words, d_words, sizeof words, cudaMemcpyDeviceToHost, stream);
    if (cudaStreamSynchronize(stream) || cudaGetLastError()) {
        puts("Bail out! the kernel failed");
        return 1;
    }
    cudaFree(d_x);
    cudaFree(d_out);
    cudaFree(d_words);
    cudaStreamDestroy(stream);
    for (int t = 0; t < N; t++) {
        float warp = 0;
        for (int j = 0; j < 32; j++) warp += x[t / 32 * 32 + j];
        first &= got[t] == ((N - 1 - t) % 3 != 0 ? x[N - 1 - t] : 0);
        second &= got[N + t] == x[N - 1 - t];
        sums &= got[2 * N + t] == warp;
        beside &= got[3 * N + t] == x[t / 32 * 32 + (t + 1) % 32];
    }
    result(first, "a first group of copies, with zeros where it is told to");
    result(second, "a second group of copies");
    result(sums, "sums over a warp");
    result(beside, "the lane beside");
    result(words[0] == 1ull << 33 && words[1] == sum, "64-bit atomics on shared memory");
    return bad > 0;
}
