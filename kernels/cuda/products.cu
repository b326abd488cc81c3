/* products: c[m,n] = or += sum_k a(m,k) b(k,n), which is a layer, its gradients, and the head.
 *
 *   block    one tile BM x BN of c; its slices a[BM, BK] and b[BK, BN] lie in shared memory as [BK][BM + 4] and [BK][BN + 4]
 *   thread   TM x TN elements of the tile, in registers
 *   stages   two: while slice i is multiplied, slice i + 1 comes in by asynchronous copies (bf16: through registers)
 *
 * An element of c is one chain of FMAs over k in ascending order, begun from c or from 0, in every tile: so which tile is used,
 * how many rows there are, and where a batch is cut (k of a weight's gradient) change no bit. Large tiles are bound by FMAs,
 * the one for few rows by reading b.
 *
 * With WZ_CUDA_MATH=blas or bf16 cuBLAS does the same in an order of its own. */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/ptx.cuh"

enum { PAD = 4 };

template <int N> INLINE void read_near(float *to, const float *from)
{
#pragma unroll
    for (int i = 0; i < N / 4 * 4; i += 4) {
        float4 v = *(const float4 *)(from + i);
        to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
    }
#pragma unroll
    for (int i = N / 4 * 4; i < N; i++) to[i] = from[i];
}

/* One slice: near[k][i] = from(i, k) for i < SIZE and k < BK, neighbours in memory by neighbouring threads. */
template <int SIZE, int BK, int THREADS, class T>
INLINE void fetch(float *near, const T *from, size_t step, size_t step_k, int rows, int depth)
{
    bool along_k = step_k == 1;

    for (int e = (int)threadIdx.x; e < SIZE * BK; e += THREADS) {
        int i = along_k ? e / BK : e % SIZE, k = along_k ? e % BK : e / SIZE;
        bool inside = i < rows && k < depth;
        const T *p = inside ? from + (size_t)i * step + (size_t)k * step_k : from;
        float *to = &near[k * (SIZE + PAD) + i];
        if constexpr (sizeof(T) == 4) copy_async4(to, p, inside);
        else *to = inside ? __bfloat162float(*p) : 0.f;
    }
}

template <int BM, int BN, int BK, int TM, int TN, class T>
static __global__ void __launch_bounds__(BM / TM * (BN / TN), 1) product_tile(struct product p)
{
    constexpr int THREADS = BM / TM * (BN / TN), LDA = BM + PAD, LDB = BN + PAD;
    SHARED(float, near);
    float *slice_a = near, *slice_b = near + 2 * BK * LDA;
    int across = (p.n + BN - 1) / BN, m0 = (int)blockIdx.x / across * BM, n0 = (int)blockIdx.x % across * BN;
    int tm = (int)threadIdx.x / (BN / TN) * TM, tn = (int)threadIdx.x % (BN / TN) * TN, slices = (p.k + BK - 1) / BK;
    const float *a = p.a + (size_t)m0 * p.am;
    const T *b = (const T *)p.b + (size_t)n0 * p.bn;
    float acc[TM][TN];

    for (int i = 0; i < TM; i++)
        for (int j = 0; j < TN; j++) {
            bool inside = m0 + tm + i < p.m && n0 + tn + j < p.n;
            acc[i][j] = p.add && inside ? p.c[(size_t)(m0 + tm + i) * p.ldc + (size_t)(n0 + tn + j)] : 0;
        }
    for (int s = -1; s < slices; s++) {
        int next = s + 1, k0 = next * BK;
        if (next < slices) {
            fetch<BM, BK, THREADS>(slice_a + next % 2 * BK * LDA, a + (size_t)k0 * p.ak, p.am, p.ak, p.m - m0, p.k - k0);
            fetch<BN, BK, THREADS>(slice_b + next % 2 * BK * LDB, b + (size_t)k0 * p.bk, p.bn, p.bk, p.n - n0, p.k - k0);
        }
        copy_commit();
        if (s < 0) continue;
        copy_wait<1>();
        __syncthreads();
        const float *x = slice_a + s % 2 * BK * LDA + tm, *y = slice_b + s % 2 * BK * LDB + tn;
        int depth = p.k - s * BK;
        auto multiply = [&](int k) {
            float u[TM], v[TN];
            read_near<TM>(u, x + k * LDA);
            read_near<TN>(v, y + k * LDB);
#pragma unroll
            for (int i = 0; i < TM; i++)
#pragma unroll
                for (int j = 0; j < TN; j++) acc[i][j] = fmaf(u[i], v[j], acc[i][j]);
        };
        if (depth >= BK)
#pragma unroll
            for (int k = 0; k < BK; k++) multiply(k);
        else
            for (int k = 0; k < depth; k++) multiply(k);
        __syncthreads();      /* the next round overwrites this slice */
    }
    for (int i = 0; i < TM; i++)
        for (int j = 0; j < TN; j++)
            if (m0 + tm + i < p.m && n0 + tn + j < p.n) p.c[(size_t)(m0 + tm + i) * p.ldc + (size_t)(n0 + tn + j)] = acc[i][j];
}

template <int BM, int BN, int BK, int TM, int TN, class T> static void run(struct wz_backend *be, const struct product *p)
{
    size_t blocks = (size_t)((p->m + BM - 1) / BM) * (size_t)((p->n + BN - 1) / BN);
    auto kernel = product_tile<BM, BN, BK, TM, TN, T>;

    LAUNCH(be, kernel, blocks, BM / TM * (BN / TN), 2 * BK * (BM + BN + 2 * PAD) * sizeof(float), *p);
}

/* The largest tile that gives every processor something to do. */
template <class T> static void run_exact(struct wz_backend *be, const struct product *p)
{
    double tiles = (double)p->m * p->n / cuda_of(be)->processors;

    if (p->m <= 8) run<8, 64, 32, 4, 1, T>(be, p);
    else if (p->m <= 64 || p->n <= 64 || tiles < 128 * 128) run<64, 64, 16, 8, 4, T>(be, p);
    else run<128, 128, 16, 8, 8, T>(be, p);
}

/* ---- cuBLAS ---------------------------------------------------------------------------------------------------- */

static __global__ void to_half(__nv_bfloat16 *out, const float *x, size_t n)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;

    if (i < n) out[i] = __float2bfloat16(x[i]);
}

static void halve(struct wz_backend *be, void *out, const float *x, size_t n)
{
    LAUNCH(be, to_half, (n + 255) / 256, 256, 0, (__nv_bfloat16 *)out, x, n);
}

/* cuBLAS counts columns first: our row-major c[m,n] is its c[n,m], and it is b times a. */
static void run_blas(struct wz_backend *be, const struct product *p)
{
    bool half = p->type == WZ_BF16;
    cudaDataType_t type = half ? CUDA_R_16BF : CUDA_R_32F;
    const void *a = p->a;
    float one = 1, beta = p->add;

    if (half) {
        void *copy = wz_cuda_scratch(be, HALF, (size_t)p->m * (size_t)p->k * 2);
        halve(be, copy, p->a, (size_t)p->m * (size_t)p->k);
        a = copy;
    }
    int status = cublasGemmEx(cuda_of(be)->blas, p->bn == 1 ? CUBLAS_OP_N : CUBLAS_OP_T, p->ak == 1 ? CUBLAS_OP_N : CUBLAS_OP_T,
                              p->n, p->m, p->k, &one, p->b, type, (int)(p->bn == 1 ? p->bk : p->bn), a, type,
                              (int)(p->ak == 1 ? p->am : p->ak), &beta, p->c, CUDA_R_32F, (int)p->ldc, CUBLAS_COMPUTE_32F,
                              CUBLAS_GEMM_DEFAULT);
    if (status) wz_cuda_plugin.die("cuda: cublasGemmEx: status %d", status);
}

void wz_cuda_product(struct wz_backend *be, const struct product *p)
{
    if (p->m == 0 || p->n == 0) return;
    if (cuda_of(be)->math != EXACT) run_blas(be, p);
    else if (p->type == WZ_BF16) run_exact<__nv_bfloat16>(be, p);
    else run_exact<float>(be, p);
}

/* ---- the slots ------------------------------------------------------------------------------------------------- */

static const void *data_of(const struct wz_weight *w, enum wz_type *type)
{
    *type = w->packed ? WZ_BF16 : w->type;
    return w->packed ? w->packed : w->data;
}

struct product wz_cuda_forward(float *y, size_t ldy, const float *x, const struct wz_weight *w, int n, bool add)
{
    struct product p = { y, x, NULL, ldy, (size_t)w->in, 1, 1, (size_t)w->in, n, w->out, w->in, add, WZ_F32 };

    p.b = data_of(w, &p.type);
    return p;
}

static void matmul(struct wz_backend *be, float *y, const float *x, const struct wz_weight *w, int n, bool add)
{
    struct product p = wz_cuda_forward(y, (size_t)w->out, x, w, n, add);

    wz_cuda_product(be, &p);
}

static void matmul_back_x(struct wz_backend *be, float *d_x, const float *d_y, const struct wz_weight *w, int n, bool add)
{
    struct product p = { d_x, d_y, NULL, (size_t)w->in, (size_t)w->out, 1, (size_t)w->in, 1, n, w->in, w->out, add, WZ_F32 };

    p.b = data_of(w, &p.type);
    wz_cuda_product(be, &p);
}

static void matmul_back_w(struct wz_backend *be, float *d_w, const float *d_y, const float *x, const struct wz_weight *w, int n)
{
    size_t out = (size_t)w->out, in = (size_t)w->in;
    struct product p = { d_w, d_y, x, in, 1, out, in, 1, w->out, w->in, n, true, WZ_F32 };

    wz_cuda_product(be, &p);
}

static void cast(struct wz_backend *be, uint16_t *dst, const float *src, size_t n)
{
    halve(be, dst, src, n);
}

/* Exact products read the weights as they are; those in bf16 want a copy of weights that are not. */
static void pack(struct wz_backend *be, struct wz_weight *w)
{
    size_t n = (size_t)w->out * (size_t)w->in;

    if (cuda_of(be)->math != BF16 || !wz_cuda_packed(w)) return;
    if (!w->packed) w->packed = be->ops.alloc(be, wz_cuda_packed(w));
    halve(be, w->packed, (const float *)w->data, n);
}

static void unpack(struct wz_backend *be, struct wz_weight *w)
{
    if (w->packed) be->ops.free(be, w->packed);
    w->packed = NULL;
}

void wz_cuda_ops_products(struct wz_ops *ops)
{
    ops->pack = pack;
    ops->unpack = unpack;
    ops->matmul = matmul;
    ops->matmul_back_x = matmul_back_x;
    ops->matmul_back_w = matmul_back_w;
    ops->cast = cast;
}
