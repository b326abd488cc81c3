/* vectors: everything that walks rows or arrays once: embedding, RMSNorm, RoPE, SwiGLU, sums, AdamW. All bound by memory.
 *
 *   rows       a warp each, BLOCK / 32 to a block: lane l adds up channels l, l + 32, .., then a fixed tree over the lanes
 *   arrays     a thread an element
 *   gradients  of a norm's weight: a thread a channel, which walks the rows in order; of an embedding: a thread a channel of one
 *              id, which walks that id's rows in order (the host sorts rows by id)
 *   squares    a block for WZ_BLOCK elements, in double */
#include "kernels/cuda/cuda.cuh"

enum { BLOCK = 256, WARPS = BLOCK / 32, CHANNELS = 64 };

static size_t blocks_of(size_t n, size_t each)
{
    return (n + each - 1) / each;
}

INLINE size_t my_element(void)
{
    return (size_t)blockIdx.x * blockDim.x + threadIdx.x;
}

INLINE int my_row(void)
{
    return (int)(blockIdx.x * WARPS + threadIdx.x / 32);
}

/* ---- embedding ------------------------------------------------------------------------------------------------- */

static __global__ void embed_rows(float *out, const void *table, enum wz_type type, const int *ids, int n, int c)
{
    size_t i = my_element();

    if (i < (size_t)n * (size_t)c) out[i] = weight_at(table, type, (size_t)ids[i / (size_t)c] * (size_t)c + i % (size_t)c);
}

static void embed(struct wz_backend *be, float *out, const struct wz_weight *table, const int *ids, int n)
{
    const int *at = (const int *)wz_cuda_mirror(be, IDS, ids, (size_t)n * sizeof *ids);

    LAUNCH(be, embed_rows, blocks_of((size_t)n * (size_t)table->in, BLOCK), BLOCK, 0, out, table->data, table->type, at, n,
           table->in);
}

/* order[n] lists rows by id; run r is order[first[r], first[r + 1]). */
static __global__ void embed_sums(float *d_table, const float *d_out, const int *ids, const int *order, const int *first, int c)
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
    int *list = (int *)malloc((3 * (size_t)n + 1) * sizeof *list), *order = list + n, *first = order + n, runs = 0;

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
    LAUNCH(be, embed_sums, (size_t)runs * blocks_of((size_t)c, CHANNELS), CHANNELS, 0, d_table, d_out, at, at + n, at + 2 * n, c);
    free(keys);
    free(list);
}

/* ---- RMSNorm --------------------------------------------------------------------------------------------------- */

static __global__ void norm_rows(float *out, float *rstd, const float *x, const float *w, int n, int c, float eps)
{
    int row = my_row(), lane = (int)threadIdx.x % 32;
    float sum = 0;

    if (row >= n) return;
    x += (size_t)row * (size_t)c;
    out += (size_t)row * (size_t)c;
    for (int j = lane; j < c; j += 32) sum = fmaf(x[j], x[j], sum);
    float r = 1 / sqrtf(warp_sum(sum) / (float)c + eps);
    if (lane == 0) rstd[row] = r;
    for (int j = lane; j < c; j += 32) out[j] = w[j] * (x[j] * r);
}

static void rmsnorm(struct wz_backend *be, float *out, float *rstd, const float *x, const float *w, int n, int c, float eps)
{
    LAUNCH(be, norm_rows, blocks_of((size_t)n, WARPS), BLOCK, 0, out, rstd, x, w, n, c, eps);
}

static __global__ void norm_back_rows(float *d_x, const float *d_out, const float *x, const float *w, const float *rstd, int n, int c)
{
    int row = my_row(), lane = (int)threadIdx.x % 32;
    size_t at = (size_t)row * (size_t)c;
    float sum = 0;

    if (row >= n) return;
    float r = rstd[row];
    for (int j = lane; j < c; j += 32) sum = fmaf(d_out[at + (size_t)j] * w[j], x[at + (size_t)j] * r, sum);
    float mean = warp_sum(sum) / (float)c;
    for (int j = lane; j < c; j += 32) {
        size_t i = at + (size_t)j;
        d_x[i] += r * (d_out[i] * w[j] - x[i] * r * mean);
    }
}

static __global__ void norm_back_weight(float *d_w, const float *d_out, const float *x, const float *rstd, int n, int c)
{
    int j = (int)(blockIdx.x * CHANNELS + threadIdx.x);

    if (j >= c) return;
    float sum = d_w[j];
    for (size_t i = 0, at = (size_t)j; i < (size_t)n; i++, at += (size_t)c) sum = fmaf(d_out[at], x[at] * rstd[i], sum);
    d_w[j] = sum;
}

static void rmsnorm_back(struct wz_backend *be, float *d_x, float *d_w, const float *d_out, const float *x, const float *w,
                         const float *rstd, int n, int c)
{
    if (n == 0) return;
    LAUNCH(be, norm_back_weight, blocks_of((size_t)c, CHANNELS), CHANNELS, 0, d_w, d_out, x, rstd, n, c);
    LAUNCH(be, norm_back_rows, blocks_of((size_t)n, WARPS), BLOCK, 0, d_x, d_out, x, w, rstd, n, c);
}

/* ---- RoPE ------------------------------------------------------------------------------------------------------ */

/* A thread turns one pair of channels in all heads of a row: one double sine and cosine for all of them. */
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
    const float *f = (const float *)wz_cuda_mirror(be, FREQUENCIES, freq, (size_t)d / 2 * sizeof *freq);

    LAUNCH(be, rope_rows, blocks_of((size_t)n * (size_t)(d / 2), BLOCK), BLOCK, 0, x, p, f, n, heads, d, sign);
}

/* ---- arrays ---------------------------------------------------------------------------------------------------- */

INLINE float sigmoid(float x)
{
    return 1 / (1 + expf(-x));
}

static __global__ void swiglu_all(float *out, const float *gate, const float *up, size_t n)
{
    size_t i = my_element();

    if (i < n) out[i] = gate[i] * sigmoid(gate[i]) * up[i];
}

static void swiglu(struct wz_backend *be, float *out, const float *gate, const float *up, size_t n)
{
    LAUNCH(be, swiglu_all, blocks_of(n, BLOCK), BLOCK, 0, out, gate, up, n);
}

static __global__ void swiglu_back_all(float *d_gate, float *d_up, const float *d_out, const float *gate, const float *up, size_t n)
{
    size_t i = my_element();

    if (i >= n) return;
    float g = gate[i], u = up[i], d = d_out[i], s = sigmoid(g);
    d_gate[i] = d * u * s * fmaf(g, 1 - s, 1.f);
    d_up[i] = d * g * s;
}

static void swiglu_back(struct wz_backend *be, float *d_gate, float *d_up, const float *d_out, const float *gate, const float *up,
                        size_t n)
{
    LAUNCH(be, swiglu_back_all, blocks_of(n, BLOCK), BLOCK, 0, d_gate, d_up, d_out, gate, up, n);
}

static __global__ void add_all(float *dst, const float *src, size_t n)
{
    size_t i = my_element();

    if (i < n) dst[i] += src[i];
}

static void add(struct wz_backend *be, float *dst, const float *src, size_t n)
{
    LAUNCH(be, add_all, blocks_of(n, BLOCK), BLOCK, 0, dst, src, n);
}

static __global__ void square_blocks(double *sums, const float *x, size_t n)
{
    SHARED(double, near);
    size_t from = (size_t)blockIdx.x * WZ_BLOCK, end = n - from < WZ_BLOCK ? n : from + WZ_BLOCK;
    double sum = 0;

    for (size_t i = from + threadIdx.x; i < end; i += BLOCK) sum += (double)x[i] * (double)x[i];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) near[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int i = 1; i < WARPS; i++) sum += near[i];
    sums[blockIdx.x] = sum;
}

static void squares(struct wz_backend *be, double *sums, const float *x, size_t n)
{
    size_t blocks = blocks_of(n, WZ_BLOCK);
    double *near = (double *)wz_cuda_scratch(be, SMALL, blocks * sizeof *near);

    LAUNCH(be, square_blocks, blocks, BLOCK, WARPS * sizeof(double), near, x, n);
    wz_cuda_download(be, sums, near, blocks * sizeof *sums);
}

struct adamw { float b1, b2, a1, a2, rate, root, eps, decay, scale; };

static __global__ void adamw_all(float *w, const float *g, float *m, float *v, size_t n, struct adamw a)
{
    size_t i = my_element();

    if (i >= n) return;
    float d = g[i] * a.scale;
    m[i] = a.b1 * m[i] + a.a1 * d;
    v[i] = a.b2 * v[i] + a.a2 * d * d;
    w[i] -= a.rate * m[i] / (sqrtf(v[i]) * a.root + a.eps) + a.decay * w[i];
}

static void adamw(struct wz_backend *be, float *w, const float *g, float *m, float *v, size_t n, float lr, float b1, float b2,
                  float eps, float decay, float scale, int step)
{
    double c1 = 1 - pow((double)b1, step), c2 = 1 - pow((double)b2, step);
    struct adamw a = { b1, b2, (float)(1 - (double)b1), (float)(1 - (double)b2), (float)((double)lr / c1), (float)(1 / sqrt(c2)),
                       eps, (float)((double)lr * (double)decay), scale };

    LAUNCH(be, adamw_all, blocks_of(n, BLOCK), BLOCK, 0, w, g, m, v, n, a);
}

void wz_cuda_ops_vectors(struct wz_ops *ops)
{
    ops->embed = embed;
    ops->embed_back = embed_back;
    ops->rmsnorm = rmsnorm;
    ops->rmsnorm_back = rmsnorm_back;
    ops->rope = rope;
    ops->swiglu = swiglu;
    ops->swiglu_back = swiglu_back;
    ops->add = add;
    ops->squares = squares;
    ops->adamw = adamw;
}
