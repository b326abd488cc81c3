/* vectors: ops that read their arrays once: embedding, RMSNorm, RoPE, SwiGLU, sums, AdamW. All bound by memory.
 *
 *   tokens         a warp each, BLOCK / 32 to a block: lane l sums channels 4 l .. 4 l + 3, 4 l + 128 .., the four
 *                  separately, then fixed trees over the four and over the lanes
 *   arrays         four elements per thread: one 16-byte access where all arrays are aligned, else one by one, with the
 *                  same bits
 *   bf16 copies    outputs that a product reads next are also in bf16 (cuda.cuh) once a product has asked for it
 *   gradients      of a norm's weight: one thread per channel, over tokens in order; of an embedding: one thread per
 *                  channel of one id, over that id's tokens in order (sorted by id on the host)
 *   squares        one block for WZ_BLOCK elements, in double */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/ptx.cuh"

enum { BLOCK = 256, WARPS = BLOCK / 32, CHANNELS = 64, AHEAD = 16 };

static size_t blocks_of(size_t n, size_t each) { return (n + each - 1) / each; }

INLINE size_t my_element(void) { return (size_t)blockIdx.x * blockDim.x + threadIdx.x; }

/* Loads elements [i, i + 4), 0 past n; wide: by one 16-byte access. */
INLINE void take4(float v[4], const float *x, size_t i, size_t n, bool wide)
{
    if (wide && i + 4 <= n) {
        float4 f = *(const float4 *)(x + i);
        v[0] = f.x;
        v[1] = f.y;
        v[2] = f.z;
        v[3] = f.w;
    } else {
        for (int j = 0; j < 4; j++) v[j] = i + (size_t)j < n ? x[i + (size_t)j] : 0;
    }
}

INLINE void give4(float *x, const float v[4], size_t i, size_t n, bool wide)
{
    if (wide && i + 4 <= n) *(float4 *)(x + i) = { v[0], v[1], v[2], v[3] };
    else
        for (int j = 0; j < 4 && i + (size_t)j < n; j++) x[i + (size_t)j] = v[j];
}

INLINE void give4(__nv_bfloat16 *x, const float v[4], size_t i)
{
    *(uint2 *)(x + i) = { pair_bf16(v[0], v[1]), pair_bf16(v[2], v[3]) };
}

template <class... P> static bool wide(const P *...p) { return (((size_t)p % 16 == 0) && ...); }

INLINE int my_row(void) { return (int)(blockIdx.x * WARPS + threadIdx.x / 32); }

/* ---- embedding -------------------------------------------------------------------------------------------- */

static __global__ void embed_rows(float *out, const void *table, enum wz_type type, const int *ids, int n, int c)
{
    size_t i = my_element();

    if (i < (size_t)n * (size_t)c)
        out[i] = weight_at(table, type, (size_t)ids[i / (size_t)c] * (size_t)c + i % (size_t)c);
}

static void embed(struct wz_backend *be, float *out, const struct wz_weight *table, const int *ids, int n)
{
    const int *at = (const int *)wz_cuda_mirror(be, IDS, ids, (size_t)n * sizeof *ids);

    LAUNCH(be, embed_rows, blocks_of((size_t)n * (size_t)table->in, BLOCK), BLOCK, 0, out, table->data, table->type, at,
           n, table->in);
}

/* order[n] lists tokens sorted by id; those of one id are order[first[r], first[r + 1]). */
static __global__ void embed_sums(float *d_table, const float *d_out, const int *ids, const int *order,
                                  const int *first, int c)
{
    int parts = (c + CHANNELS - 1) / CHANNELS, r = (int)blockIdx.x / parts;
    int j = (int)blockIdx.x % parts * CHANNELS + (int)threadIdx.x;

    if (j >= c) return;
    float *d = &d_table[(size_t)ids[order[first[r]]] * (size_t)c + (size_t)j], sum = *d;
    for (int i = first[r]; i < first[r + 1]; i++) sum += d_out[(size_t)order[i] * (size_t)c + (size_t)j];
    *d = sum;
}

static int by_id(const void *a, const void *b)
{
    long x = *(const long *)a, y = *(const long *)b;

    return x < y ? -1 : x > y;
}

static void embed_back(struct wz_backend *be, float *d_table, const float *d_out, const int *ids, int n, int c)
{
    long *keys = (long *)malloc((size_t)n * sizeof *keys + 1);
    int *list = (int *)malloc((3 * (size_t)n + 1) * sizeof *list);
    int *order = list + n;
    int *first = order + n;
    int runs = 0;

    if (!keys || !list) wz_cuda_plugin.die("cuda: no memory to sort %d rows", n);
    for (int i = 0; i < n; i++) keys[i] = (long)ids[i] << 32 | i;
    qsort(keys, (size_t)n, sizeof *keys, by_id);
    for (int i = 0; i < n; i++) {
        list[i] = ids[i];
        order[i] = (int)(keys[i] & INT32_MAX);
        if (i == 0 || keys[i] >> 32 != keys[i - 1] >> 32) first[runs++] = i;
    }
    first[runs] = n;
    const int *at = (const int *)wz_cuda_mirror(be, PLACES, list, (size_t)(2 * n + runs + 1) * sizeof *list);
    LAUNCH(be, embed_sums, (size_t)runs * blocks_of((size_t)c, CHANNELS), CHANNELS, 0, d_table, d_out, at, at + n,
           at + 2 * n, c);
    free(keys);
    free(list);
}

/* ---- RMSNorm ---------------------------------------------------------------------------------------------- */

static __global__ void norm_rows(float *out, __nv_bfloat16 *half, float *rstd, const float *x, const float *w, int n,
                                 int c, float eps, float one, bool wide)
{
    int row = my_row(), lane = (int)threadIdx.x % 32;
    size_t many = (size_t)c;
    float sum[4] = { 0, 0, 0, 0 }, v[4], u[4];

    if (row >= n) return;
    x += (size_t)row * many;
    out += (size_t)row * many;
    if (half) half += (size_t)row * many;
    for (size_t i = (size_t)lane * 4; i < many; i += 128) {
        take4(v, x, i, many, wide);
        for (int j = 0; j < 4; j++) sum[j] = fmaf(v[j], v[j], sum[j]);
    }
    float r = 1 / sqrtf(warp_sum((sum[0] + sum[1]) + (sum[2] + sum[3])) / (float)c + eps);
    if (lane == 0) rstd[row] = r;
    for (size_t i = (size_t)lane * 4; i < many; i += 128) {
        take4(v, x, i, many, wide);
        take4(u, w, i, many, wide);
        for (int j = 0; j < 4; j++) v[j] = (one + u[j]) * (v[j] * r);
        give4(out, v, i, many, wide);
        if (half) give4(half, v, i);
    }
}

/* Where to write a bf16 copy of n contiguous floats, or NULL where no product has asked for copies. */
static struct rounded *copy_reserve(struct wz_backend *be, size_t n, int c)
{
    return cuda_of(be)->halves && n > 0 && c % 8 == 0 ? wz_cuda_half_reserve(be, n) : NULL;
}

static void rmsnorm(struct wz_backend *be, float *out, float *rstd, const float *x, const float *w, int n, int c,
                    float eps, float one)
{
    size_t all = (size_t)n * (size_t)c;
    struct rounded *copy = copy_reserve(be, all, c);

    LAUNCH(be, norm_rows, blocks_of((size_t)n, WARPS), BLOCK, 0, out, copy ? copy->p : NULL, rstd, x, w, n, c, eps, one,
           wide(out, x, w) && c % 4 == 0);
    if (copy) wz_cuda_half_made(be, copy, out, all, 8);
}

static __global__ void norm_back_rows(float *d_x, const float *d_out, const float *x, const float *w, const float *rstd,
                                      int n, int c, float one, bool wide)
{
    int row = my_row(), lane = (int)threadIdx.x % 32;
    size_t many = (size_t)c, at = (size_t)row * many;
    float sum[4] = { 0, 0, 0, 0 }, d[4], u[4], v[4], out[4];

    if (row >= n) return;
    float r = rstd[row];
    d_x += at;
    d_out += at;
    x += at;
    for (size_t i = (size_t)lane * 4; i < many; i += 128) {
        take4(d, d_out, i, many, wide);
        take4(u, w, i, many, wide);
        take4(v, x, i, many, wide);
        for (int j = 0; j < 4; j++) sum[j] = fmaf(d[j] * (one + u[j]), v[j] * r, sum[j]);
    }
    float mean = warp_sum((sum[0] + sum[1]) + (sum[2] + sum[3])) / (float)c;
    for (size_t i = (size_t)lane * 4; i < many; i += 128) {
        take4(d, d_out, i, many, wide);
        take4(u, w, i, many, wide);
        take4(v, x, i, many, wide);
        take4(out, d_x, i, many, wide);
        for (int j = 0; j < 4; j++) out[j] += r * (d[j] * (one + u[j]) - v[j] * r * mean);
        give4(d_x, out, i, many, wide);
    }
}

static __global__ void norm_back_weight(float *d_w, const float *d_out, const float *x, const float *rstd, int n, int c)
{
    int j = (int)(blockIdx.x * CHANNELS + threadIdx.x);

    if (j >= c) return;
    float sum = d_w[j];
    size_t at = (size_t)j;
    int i = 0;
    for (; i + AHEAD <= n; i += AHEAD) { /* loads ahead of the chain of FMAs */
        float d[AHEAD], v[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++, at += (size_t)c) {
            d[k] = d_out[at];
            v[k] = x[at];
        }
#pragma unroll
        for (int k = 0; k < AHEAD; k++) sum = fmaf(d[k], v[k] * rstd[i + k], sum);
    }
    for (; i < n; i++, at += (size_t)c) sum = fmaf(d_out[at], x[at] * rstd[i], sum);
    d_w[j] = sum;
}

static void rmsnorm_back(struct wz_backend *be, float *d_x, float *d_w, const float *d_out, const float *x,
                         const float *w, const float *rstd, int n, int c, float one)
{
    if (n == 0) return;
    LAUNCH(be, norm_back_weight, blocks_of((size_t)c, CHANNELS), CHANNELS, 0, d_w, d_out, x, rstd, n, c);
    LAUNCH(be, norm_back_rows, blocks_of((size_t)n, WARPS), BLOCK, 0, d_x, d_out, x, w, rstd, n, c, one,
           wide(d_x, d_out, x, w) && c % 4 == 0);
}

/* ---- biases ----------------------------------------------------------------------------------------------- */

static __global__ void bias_rows(float *y, const float *b, int n, int c)
{
    size_t i = my_element();

    if (i < (size_t)n * (size_t)c) y[i] += b[i % (size_t)c];
}

static void bias(struct wz_backend *be, float *y, const float *b, int n, int c)
{
    LAUNCH(be, bias_rows, blocks_of((size_t)n * (size_t)c, BLOCK), BLOCK, 0, y, b, n, c);
}

static __global__ void bias_back_sums(float *d_b, const float *d_y, int n, int c)
{
    int j = (int)(blockIdx.x * CHANNELS + threadIdx.x);

    if (j >= c) return;
    float sum = d_b[j];
#pragma unroll 8 /* loads ahead of the chain */
    for (int i = 0; i < n; i++) sum += d_y[(size_t)i * (size_t)c + (size_t)j];
    d_b[j] = sum;
}

static void bias_back(struct wz_backend *be, float *d_b, const float *d_y, int n, int c)
{
    if (n > 0) LAUNCH(be, bias_back_sums, blocks_of((size_t)c, CHANNELS), CHANNELS, 0, d_b, d_y, n, c);
}

/* ---- RoPE ------------------------------------------------------------------------------------------------- */

/* A thread rotates one pair of channels in all heads of a token, with one sine and cosine in double. */
static __global__ void rope_rows(float *x, const int *pos, const float *freq, int n, int heads, int d, int sign)
{
    int half = d / 2;
    size_t i = my_element(), row = i / (size_t)half, j = i % (size_t)half;

    if (row >= (size_t)n) return;
    double angle = (double)pos[row] * (double)freq[j];
    float c = (float)cos(angle), s = (float)(sign * sin(angle));
    x += row * (size_t)(heads * d) + j;
    for (int h = 0; h < heads; h++, x += d) {
        float a = x[0], b = x[half];
        x[0] = a * c - b * s;
        x[half] = b * c + a * s;
    }
}

static void rope(struct wz_backend *be, float *x, const int *pos, const float *freq, int n, int heads, int d, int sign)
{
    const int *p = (const int *)wz_cuda_mirror(be, POSITIONS, pos, (size_t)n * sizeof *pos);
    size_t size = (size_t)d / 2 * sizeof *freq;
    const auto &first = cuda_of(be)->mirror[FREQUENCIES]; /* a model may have two, in turn */
    bool other = first.device && (first.size != size || memcmp(first.host, freq, size) != 0);
    const float *f = (const float *)wz_cuda_mirror(be, other ? FREQUENCIES_LOCAL : FREQUENCIES, freq, size);

    LAUNCH(be, rope_rows, blocks_of((size_t)n * (size_t)(d / 2), BLOCK), BLOCK, 0, x, p, f, n, heads, d, sign);
}

/* ---- arrays ----------------------------------------------------------------------------------------------- */

INLINE float sigmoid(float x) { return 1 / (1 + expf(-x)); }

/* The sigmoid in the activation of g; *slope: the derivative of its argument. */
template <bool GELU> INLINE float gate_of(float g, float *slope)
{
    constexpr float A = 1.5957691216057308f, B = 0.0713548162726009f; /* of GELU in tanh form, as in ops.h */

    *slope = GELU ? fmaf(g * g, 3 * B, A) : 1;
    return sigmoid(GELU ? g * fmaf(g * g, B, A) : g);
}

template <bool GELU>
static __global__ void swiglu_all(float *out, __nv_bfloat16 *half, const float *gate, const float *up, size_t n,
                                  bool wide)
{
    size_t i = my_element() * 4;
    float g[4], u[4], slope;

    if (i >= n) return;
    take4(g, gate, i, n, wide);
    take4(u, up, i, n, wide);
    for (int j = 0; j < 4; j++) g[j] = g[j] * gate_of<GELU>(g[j], &slope) * u[j];
    give4(out, g, i, n, wide);
    if (half) give4(half, g, i);
}

static void swiglu(struct wz_backend *be, float *out, const float *gate, const float *up, size_t n, enum wz_act act)
{
    struct rounded *copy = copy_reserve(be, n, (int)(n % 8));

    auto kernel = act == WZ_GELU ? swiglu_all<true> : swiglu_all<false>;
    LAUNCH(be, kernel, blocks_of(n, 4 * BLOCK), BLOCK, 0, out, copy ? copy->p : NULL, gate, up, n, wide(out, gate, up));
    if (copy) wz_cuda_half_made(be, copy, out, n, 8);
}

template <bool GELU>
static __global__ void swiglu_back_all(float *d_gate, float *d_up, const float *d_out, const float *gate,
                                       const float *up, size_t n, bool wide)
{
    size_t i = my_element() * 4;
    float g[4], u[4], d[4];

    if (i >= n) return;
    take4(g, gate, i, n, wide);
    take4(u, up, i, n, wide);
    take4(d, d_out, i, n, wide);
    for (int j = 0; j < 4; j++) {
        float slope, s = gate_of<GELU>(g[j], &slope), x = GELU ? g[j] * slope : g[j];
        float to_gate = d[j] * u[j] * s * fmaf(x, 1 - s, 1.f);
        u[j] = d[j] * g[j] * s;
        g[j] = to_gate;
    }
    give4(d_gate, g, i, n, wide);
    give4(d_up, u, i, n, wide);
}

static void swiglu_back(struct wz_backend *be, float *d_gate, float *d_up, const float *d_out, const float *gate,
                        const float *up, size_t n, enum wz_act act)
{
    auto kernel = act == WZ_GELU ? swiglu_back_all<true> : swiglu_back_all<false>;

    LAUNCH(be, kernel, blocks_of(n, 4 * BLOCK), BLOCK, 0, d_gate, d_up, d_out, gate, up, n,
           wide(d_gate, d_up, d_out, gate, up));
}

static __global__ void add_all(float *dst, const float *src, size_t n, bool wide)
{
    size_t i = my_element() * 4;
    float d[4], s[4];

    if (i >= n) return;
    take4(d, dst, i, n, wide);
    take4(s, src, i, n, wide);
    for (int j = 0; j < 4; j++) d[j] += s[j];
    give4(dst, d, i, n, wide);
}

static void add(struct wz_backend *be, float *dst, const float *src, size_t n)
{
    LAUNCH(be, add_all, blocks_of(n, 4 * BLOCK), BLOCK, 0, dst, src, n, wide(dst, src));
}

static __global__ void scale_all(float *out, const float *x, float by, size_t n)
{
    size_t i = my_element();

    if (i < n) out[i] = x[i] * by;
}

static void scale(struct wz_backend *be, float *out, const float *x, float by, size_t n)
{
    LAUNCH(be, scale_all, blocks_of(n, BLOCK), BLOCK, 0, out, x, by, n);
}

static __global__ void square_blocks(double *sums, const float *x, size_t n)
{
    SHARED(double, smem);
    size_t from = (size_t)blockIdx.x * WZ_BLOCK, end = n - from < WZ_BLOCK ? n : from + WZ_BLOCK;
    double sum = 0;

    for (size_t i = from + threadIdx.x; i < end; i += BLOCK) sum += (double)x[i] * (double)x[i];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) smem[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int i = 1; i < WARPS; i++) sum += smem[i];
    sums[blockIdx.x] = sum;
}

static void squares(struct wz_backend *be, double *sums, const float *x, size_t n)
{
    size_t blocks = blocks_of(n, WZ_BLOCK);
    double *on_device = (double *)wz_cuda_scratch(be, SMALL, blocks * sizeof *on_device);

    LAUNCH(be, square_blocks, blocks, BLOCK, WARPS * sizeof(double), on_device, x, n);
    wz_cuda_download(be, sums, on_device, blocks * sizeof *sums);
}

static __global__ void adamw_all(float *w, const float *g, float *m, float *v, size_t n, struct wz_adamw_scalars a,
                                 bool wide)
{
    size_t i = my_element() * 4;
    float weight[4], d[4], mean[4], square[4];

    if (i >= n) return;
    take4(weight, w, i, n, wide);
    take4(d, g, i, n, wide);
    take4(mean, m, i, n, wide);
    take4(square, v, i, n, wide);
    for (int j = 0; j < 4; j++) {
        float x = d[j] * a.scale;
        mean[j] = a.b1 * mean[j] + a.a1 * x;
        square[j] = a.b2 * square[j] + a.a2 * x * x;
        weight[j] -= a.rate * mean[j] / (sqrtf(square[j]) * a.root + a.eps) + a.decay * weight[j];
    }
    give4(w, weight, i, n, wide);
    give4(m, mean, i, n, wide);
    give4(v, square, i, n, wide);
}

static void adamw(struct wz_backend *be, float *w, const float *g, float *m, float *v, size_t n, float lr, float b1,
                  float b2, float eps, float decay, float scale, int step)
{
    LAUNCH(be, adamw_all, blocks_of(n, 4 * BLOCK), BLOCK, 0, w, g, m, v, n,
           wz_adamw_scalars_of(lr, b1, b2, eps, decay, scale, step), wide(w, g, m, v));
}

void wz_cuda_ops_vectors(struct wz_ops *ops)
{
    ops->embed = embed;
    ops->embed_back = embed_back;
    ops->rmsnorm = rmsnorm;
    ops->rmsnorm_back = rmsnorm_back;
    ops->bias = bias;
    ops->bias_back = bias_back;
    ops->rope = rope;
    ops->swiglu = swiglu;
    ops->swiglu_back = swiglu_back;
    ops->add = add;
    ops->scale = scale;
    ops->squares = squares;
    ops->adamw = adamw;
}
