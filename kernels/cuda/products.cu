/* products: c[m,n] = or += sum_k a(m,k) b(k,n), for matmul, its gradients, and the head.
 *
 *   f32      product_tile: a block has a tile BM x BN of c, a thread TM x TN of it; slices a[BM, BK] and b[BN, BK] in
 *            shared memory as [BK][BM + 4] and [BK][BN + 4], double-buffered with asynchronous copies
 *   bf16     product_half: tensor cores (tile.cuh)
 *
 * In every tile an element of c is one chain over k in ascending order, started from c or from 0: so the choice of
 * tile, the number of rows and the cut of a batch change no bit. Large tiles are bound by arithmetic, those for few
 * rows by reading b, which is read once for every BM rows.
 *
 * A weight's gradient is a chain over tokens, of which tensor cores add 16 in a step: a batch may be cut between steps,
 * so callers start every sequence at a multiple of 16 (grain, ops.h). */
#include "kernels/cuda/tile.cuh"

enum { PAD = 4, BLOCK = 256 };

template <int N> INLINE void read_floats(float *to, const float *from)
{
#pragma unroll
    for (int i = 0; i < N / 4 * 4; i += 4) {
        float4 v = *(const float4 *)(from + i);
        to[i] = v.x;
        to[i + 1] = v.y;
        to[i + 2] = v.z;
        to[i + 3] = v.w;
    }
#pragma unroll
    for (int i = N / 4 * 4; i < N; i++) to[i] = from[i];
}

/* Loads one slice: smem[k][i] = from(i, k) for i < SIZE and k < BK, coalesced. */
template <int SIZE, int BK, int THREADS>
INLINE void fetch(float *smem, const float *from, size_t step, size_t step_k, int rows, int depth)
{
    bool along_k = step_k == 1;

    for (int e = (int)threadIdx.x; e < SIZE * BK; e += THREADS) {
        int i = along_k ? e / BK : e % SIZE, k = along_k ? e % BK : e / SIZE;
        bool inside = i < rows && k < depth;
        copy_async4(&smem[k * (SIZE + PAD) + i], inside ? from + (size_t)i * step + (size_t)k * step_k : from, inside);
    }
}

template <int BM, int BN, int BK, int TM, int TN>
static __global__ void __launch_bounds__(BM / TM * (BN / TN), 1) product_tile(struct product p)
{
    constexpr int THREADS = BM / TM * (BN / TN), LDA = BM + PAD, LDB = BN + PAD;
    SHARED(float, smem);
    float *slice_a = smem, *slice_b = smem + 2 * BK * LDA;
    int across = (p.n + BN - 1) / BN, m0 = (int)blockIdx.x / across * BM, n0 = (int)blockIdx.x % across * BN;
    int tm = (int)threadIdx.x / (BN / TN) * TM, tn = (int)threadIdx.x % (BN / TN) * TN, slices = (p.k + BK - 1) / BK;
    const float *a = (const float *)p.a + (size_t)m0 * p.am, *b = (const float *)p.b + (size_t)n0 * p.bn;
    float acc[TM][TN];

    for (int i = 0; i < TM; i++)
        for (int j = 0; j < TN; j++) {
            bool inside = m0 + tm + i < p.m && n0 + tn + j < p.n;
            acc[i][j] = p.add && inside ? p.c[(size_t)(m0 + tm + i) * p.ldc + (size_t)(n0 + tn + j)] : 0;
        }
    for (int s = -1; s < slices; s++) {
        int next = s + 1, k0 = next * BK;
        if (next < slices) {
            fetch<BM, BK, THREADS>(slice_a + next % 2 * BK * LDA, a + (size_t)k0 * p.ak, p.am, p.ak, p.m - m0,
                                   p.k - k0);
            fetch<BN, BK, THREADS>(slice_b + next % 2 * BK * LDB, b + (size_t)k0 * p.bk, p.bn, p.bk, p.n - n0,
                                   p.k - k0);
        }
        copy_commit();
        if (s < 0) continue;
        copy_wait<1>();
        __syncthreads();
        const float *x = slice_a + s % 2 * BK * LDA + tm, *y = slice_b + s % 2 * BK * LDB + tn;
        int depth = p.k - s * BK;
        auto multiply = [&](int k) {
            float u[TM], v[TN];
            read_floats<TM>(u, x + k * LDA);
            read_floats<TN>(v, y + k * LDB);
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
        __syncthreads(); /* the next round overwrites this slice */
    }
    for (int i = 0; i < TM; i++)
        for (int j = 0; j < TN; j++)
            if (m0 + tm + i < p.m && n0 + tn + j < p.n)
                p.c[(size_t)(m0 + tm + i) * p.ldc + (size_t)(n0 + tn + j)] = acc[i][j];
}

template <int BM, int BN, int BK, int TM, int TN> static void run(struct wz_backend *be, const struct product *p)
{
    size_t blocks = (size_t)((p->m + BM - 1) / BM) * (size_t)((p->n + BN - 1) / BN);
    auto kernel = product_tile<BM, BN, BK, TM, TN>;

    LAUNCH_KEEPING(be, kernel, blocks, BM / TM * (BN / TN), 2 * BK * (BM + BN + 2 * PAD) * sizeof(float), *p);
}

/* The largest tile that gives every SM a block. */
static void run_f32(struct wz_backend *be, const struct product *p)
{
    double tiles = (double)p->m * p->n / cuda_of(be)->processors;

    if (p->m <= 8) run<8, 64, 32, 4, 1>(be, p);
    else if (p->m <= 64 || p->n <= 64 || tiles < 128 * 128) run<64, 64, 16, 8, 4>(be, p);
    else run<128, 128, 16, 8, 8>(be, p);
}

/* ---- bf16 ------------------------------------------------------------------------------------------------- */

INLINE struct factors factors_of(const struct product &p)
{
    return { (const __nv_bfloat16 *)p.a,
             (const __nv_bfloat16 *)p.b,
             p.am == 1 ? p.ak : p.am,
             p.bn == 1 ? p.bk : p.bn,
             p.m,
             p.n,
             p.k };
}

template <class T> static __global__ void __launch_bounds__(T::THREADS) product_half(struct product p)
{
    SHARED(__nv_bfloat16, smem);
    int m0, n0;
    typename T::sums sums;
    bool pairs = p.ldc % 2 == 0 && (size_t)p.c % sizeof(float2) == 0;

    tile_place((p.m + T::BM - 1) / T::BM, (p.n + T::BN - 1) / T::BN, &m0, &n0);
    m0 *= T::BM;
    n0 *= T::BN;
    auto at = [&](int row, int col) { return p.c + (size_t)(m0 + row) * p.ldc + (size_t)(n0 + col); };
    tile_each<T>(sums, [&](int row, int col, float *pair) {
        bool there = p.add && m0 + row < p.m;
        pair[0] = there && n0 + col < p.n ? *at(row, col) : 0;
        pair[1] = there && n0 + col + 1 < p.n ? *at(row, col + 1) : 0;
    });
    tile_multiply<T>(sums, smem, factors_of(p), m0, n0);
    tile_each<T>(sums, [&](int row, int col, const float *pair) {
        if (m0 + row >= p.m || n0 + col >= p.n) return;
        float *c = at(row, col);
        if (n0 + col + 1 >= p.n) *c = pair[0];
        else if (pairs) *(float2 *)c = { pair[0], pair[1] };
        else {
            c[0] = pair[0];
            c[1] = pair[1];
        }
    });
}

template <class T> static void run_tile(struct wz_backend *be, const struct product *p)
{
    size_t blocks = (size_t)((p->m + T::BM - 1) / T::BM) * (size_t)((p->n + T::BN - 1) / T::BN);

    tile_launch<T>(be, product_half<T>, blocks, T::SHARED_SIZE, *p);
}

/* With few rows: more columns per block where every SM still has a block, since each block reads all of a. */
static void run_half(struct wz_backend *be, const struct product *p)
{
    int processors = cuda_of(be)->processors;
    bool large = p->m > 64 && (double)p->m * p->n >= 128. * 128 * processors;

    if (p->am == 1 && large) run_tile<tile<128, 128, 64, 64, 64, 3, true, true>>(be, p);
    else if (p->am == 1) run_tile<tile<64, 64, 64, 32, 32, 4, true, true>>(be, p);
    else if (p->bn == 1 && large) run_tile<tile<128, 128, 64, 64, 64, 3, true>>(be, p);
    else if (p->bn == 1) run_tile<tile<64, 64, 64, 32, 32, 4, true>>(be, p);
    else if (large) run_tile<tile<128, 128, 64, 64, 64, 3>>(be, p);
    else if (p->m > 16 && (p->m > 64 || p->n >= 64 * processors)) run_tile<tile<64, 64, 64, 32, 32, 4>>(be, p);
    else if (p->m > 16) run_tile<tile<64, 32, 64, 32, 16, 6>>(be, p);
    else if (p->n >= 16 * processors) run_tile<tile<16, 32, 128, 16, 8, 6>>(be, p);
    else run_tile<tile<16, 8, 128, 16, 8, 8>>(be, p);
}

void wz_cuda_product(struct wz_backend *be, const struct product *p)
{
    if (p->m == 0 || p->n == 0 || (p->k == 0 && p->add)) return;
    if (cuda_of(be)->math == FAST) wz_cuda_fast_product(be, p);
    else if (p->type == WZ_F32) run_f32(be, p);
    else run_half(be, p);
    wz_cuda_wrote(be, p->c, ((size_t)(p->m - 1) * p->ldc + (size_t)p->n) * sizeof *p->c);
}

/* ---- bf16 copies ------------------------------------------------------------------------------------------ */

INLINE float as_float(float x) { return x; }

INLINE float as_float(__nv_bfloat16 x) { return __bfloat162float(x); }

static __global__ void cast_all(uint16_t *out, const float *x, size_t n, bool aligned)
{
    size_t i = ((size_t)blockIdx.x * BLOCK + threadIdx.x) * 8;
    float v[8];

    if (aligned && i + 8 <= n) {
        read_floats<8>(v, x + i);
        *(uint4 *)(out + i) = { pair_bf16(v[0], v[1]), pair_bf16(v[2], v[3]), pair_bf16(v[4], v[5]),
                                pair_bf16(v[6], v[7]) };
    } else {
        for (size_t j = i; j < n && j < i + 8; j++) out[j] = (uint16_t)pair_bf16(x[j], 0);
    }
}

/* Eight elements per thread; rows of c elements are padded to 8 * eights. */
template <class T>
static __global__ void round_rows(__nv_bfloat16 *out, const T *x, size_t n, int c, int eights, bool aligned)
{
    size_t i = (size_t)blockIdx.x * BLOCK + threadIdx.x, row = i / (size_t)eights;
    int from = (int)(i % (size_t)eights) * 8;
    float v[8];

    if (row >= n) return;
    x += row * (size_t)c + (size_t)from;
    if (aligned && from + 8 <= c) read_floats<8>(v, (const float *)x);
    else
        for (int j = 0; j < 8; j++) v[j] = from + j < c ? as_float(x[j]) : 0;
    *(uint4 *)(out + 8 * i) = { pair_bf16(v[0], v[1]), pair_bf16(v[2], v[3]), pair_bf16(v[4], v[5]),
                                pair_bf16(v[6], v[7]) };
}

template <class T> static void round_to(struct wz_backend *be, void *out, const T *x, size_t n, int c)
{
    size_t eights = wz_cuda_pitch(c) / 8;

    LAUNCH_KEEPING(be, round_rows<T>, (n * eights + BLOCK - 1) / BLOCK, BLOCK, 0, (__nv_bfloat16 *)out, x, n, c,
                   (int)eights, sizeof(T) == 4 && (size_t)x % 16 == 0 && c % 4 == 0);
}

struct rounded *wz_cuda_half_reserve(struct wz_backend *be, size_t n)
{
    struct cuda *cuda = cuda_of(be);
    struct rounded *half = &cuda->half[cuda->half[1].used < cuda->half[0].used];

    half->x = NULL;
    half->p = (__nv_bfloat16 *)wz_cuda_grow(be, half->p, &half->size, n * sizeof *half->p);
    return half;
}

void wz_cuda_half_made(struct wz_backend *be, struct rounded *half, const float *x, size_t n, int row)
{
    half->x = x;
    half->n = n;
    half->row = row;
    half->used = ++cuda_of(be)->uses;
}

const __nv_bfloat16 *wz_cuda_half(struct wz_backend *be, const float *x, int n, int c)
{
    size_t all = (size_t)n * (size_t)c;
    int row = c % 8 ? c : 8;

    cuda_of(be)->halves = true;
    for (struct rounded &h : cuda_of(be)->half)
        if (h.x == x && h.n >= all && h.row == row) {
            h.used = ++cuda_of(be)->uses;
            return h.p;
        }
    struct rounded *half = wz_cuda_half_reserve(be, (size_t)n * wz_cuda_pitch(c));
    round_to(be, half->p, x, (size_t)n, c);
    wz_cuda_half_made(be, half, x, all, row);
    return half->p;
}

void wz_cuda_wrote(struct wz_backend *be, const void *p, size_t size)
{
    for (struct rounded &h : cuda_of(be)->half)
        if (h.x && (!p || ((const char *)h.x < (const char *)p + size && (const char *)p < (const char *)(h.x + h.n))))
            h.x = NULL;
}

/* ---- the ops ---------------------------------------------------------------------------------------------- */

const void *wz_cuda_weight(const struct wz_weight *w, size_t *pitch)
{
    *pitch = w->packed ? wz_cuda_pitch(w->in) : (size_t)w->in;
    return w->packed ? w->packed : w->data;
}

/* x [n, c] as products with a weight of `type` read it; *pitch: elements between its rows. */
static const void *operand(struct wz_backend *be, const float *x, int n, int c, enum wz_type type, size_t *pitch)
{
    *pitch = type == WZ_BF16 ? wz_cuda_pitch(c) : (size_t)c;
    return type == WZ_BF16 ? (const void *)wz_cuda_half(be, x, n, c) : x;
}

static void matmul(struct wz_backend *be, float *y, const float *x, const struct wz_weight *w, int n, bool add)
{
    wz_cuda_doing = __func__;
    size_t lda, ldb;
    const void *a = operand(be, x, n, w->in, w->type, &lda), *b = wz_cuda_weight(w, &ldb);
    struct product p = { y, a, b, (size_t)w->out, lda, 1, 1, ldb, n, w->out, w->in, add, w->type };

    wz_cuda_product(be, &p);
}

static void matmul_back_x(struct wz_backend *be, float *d_x, const float *d_y, const struct wz_weight *w, int n,
                          bool add)
{
    wz_cuda_doing = __func__;
    size_t lda, ldb;
    const void *a = operand(be, d_y, n, w->out, w->type, &lda), *b = wz_cuda_weight(w, &ldb);
    struct product p = { d_x, a, b, (size_t)w->in, lda, 1, ldb, 1, n, w->in, w->out, add, w->type };

    wz_cuda_product(be, &p);
}

static void matmul_back_w(struct wz_backend *be, float *d_w, const float *d_y, const float *x,
                          const struct wz_weight *w, int n)
{
    wz_cuda_doing = __func__;
    size_t lda, ldb;
    const void *a = operand(be, d_y, n, w->out, w->type, &lda), *b = operand(be, x, n, w->in, w->type, &ldb);
    struct product p = { d_w, a, b, (size_t)w->in, 1, lda, ldb, 1, w->out, w->in, n, true, w->type };

    wz_cuda_product(be, &p);
}

static void cast(struct wz_backend *be, uint16_t *dst, const float *src, size_t n)
{
    LAUNCH(be, cast_all, (n + 8 * BLOCK - 1) / (8 * BLOCK), BLOCK, 0, dst, src, n,
           (size_t)src % 16 == 0 && (size_t)dst % 16 == 0);
}

static void pack(struct wz_backend *be, struct wz_weight *w)
{
    size_t bytes = wz_cuda_packed(be, w);

    if (!bytes) return;
    wz_cuda_doing = __func__;
    if (!w->packed) w->packed = be->ops.alloc(be, bytes);
    round_to(be, w->packed, (const __nv_bfloat16 *)w->data, (size_t)w->out, w->in);
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
