/* head: the language-model head fused with softmax, by blocks of the vocabulary, so that [N, V] never exists.
 *
 *   sweep      logits of up to MOST tokens; a thread block has a tile of tokens and COLS vocabulary entries. bf16
 *              weight: tensor cores (tile.cuh), the epilogue reads the tile from shared memory; f32 weight: a product,
 *              then a kernel that reads its result
 *   epilogue   per token and block: maximum, sum and mean (struct part), and the target's logit; or the logits, for
 *              sampling; or their gradients, in bf16 for a bf16 weight
 *   reduce     one warp per token:  lse = max + log sum,  logp = z_target / t - lse,  entropy = log sum - mean / sum
 *   backward   for WIDE vocabulary entries at a time: gradients g, d_x += g W (one chain over the whole vocabulary),
 *              d_w += g^T x
 *
 * In the epilogue a warp reads one token's logits of a block, four neighbours a lane, and reduces by a fixed tree:
 * neither the tile nor the other tokens change a bit. Bound by the product: the rest adds some 4 % to its 2 N V C
 * operations. Scratch: V / 32 floats per token, against V. */
#include "kernels/cuda/head.cuh"
#include "kernels/cuda/tile.cuh"

enum { BLOCK = 256, WARPS = BLOCK / 32, MOST = 1024, WIDE = 4096, SAMPLED = 256, SMEM_PITCH = COLS + 4 };

/* One sweep over vocabulary entries [first, first + f.n). Outputs that are NULL are not wanted. */
struct sweep {
    struct factors f;
    int first, blocks; /* of the vocabulary */
    const float *scale;
    float *z;           /* [m, ldz], from entry `first` on; so is g */
    struct part *parts; /* [m, blocks] of all of the vocabulary */
    const int *targets;
    float *picked;        /* the target's logit */
    const float *lse, *d; /* d = d_logp / t */
    void *g;
    size_t ldz, ldg;
    bool half; /* g is bf16 */
    float cap;
};

/* The epilogue of one token and block. Called by a warp with four neighbouring logits per lane; col counts from
 * `first`. */
INLINE void epilogue(const struct sweep &s, int row, int col, float z[4])
{
    float scale = s.scale[row], top = -INFINITY, sum = 0, mean = 0;
    int at = col + (int)threadIdx.x % 32 * 4;

#pragma unroll
    for (int j = 0; j < 4; j++) z[j] = at + j >= s.f.n ? -INFINITY : capped(z[j], s.cap);
    if (s.z) *(float4 *)(s.z + (size_t)row * s.ldz + (size_t)at) = { z[0], z[1], z[2], z[3] };
    int target = s.targets ? s.targets[row] - s.first - at : -1;
    if (s.picked && target >= 0 && target < 4)
        s.picked[row] = target == 0 ? z[0] : target == 1 ? z[1] : target == 2 ? z[2] : z[3];
    if (s.g) {
        float g[4];
#pragma unroll
        for (int j = 0; j < 4; j++)
            g[j] = at + j < s.f.n
                       ? s.d[row] * ((j == target) - expf(z[j] * scale - s.lse[row])) * cap_slope(z[j], s.cap)
                       : 0;
        size_t i = (size_t)row * s.ldg + (size_t)at;
        if (s.half) *(uint2 *)((__nv_bfloat16 *)s.g + i) = { pair_bf16(g[0], g[1]), pair_bf16(g[2], g[3]) };
        else *(float4 *)((float *)s.g + i) = { g[0], g[1], g[2], g[3] };
    }
    if (!s.parts) return;
#pragma unroll
    for (int j = 0; j < 4; j++) top = fmaxf(top, z[j] * scale);
    top = warp_max(top);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        float x = z[j] * scale - top, e = expf(x);
        if (!(x >= -150)) continue; /* contributes nothing, or is NaN, or all are -inf */
        sum += e;
        mean = fmaf(e, x, mean);
    }
    sum = warp_sum(sum);
    mean = warp_sum(mean);
    if (threadIdx.x % 32 == 0)
        s.parts[(size_t)row * (size_t)s.blocks + (size_t)((s.first + col) / COLS)] = { top, sum, mean, 0 };
}

template <class T> static __global__ void __launch_bounds__(T::THREADS) sweep_half(struct sweep s)
{
    SHARED(__nv_bfloat16, smem);
    float *z = (float *)smem;
    int m0, n0;
    typename T::sums sums;

    tile_place((s.f.m + T::BM - 1) / T::BM, (s.f.n + COLS - 1) / COLS, &m0, &n0);
    m0 *= T::BM;
    n0 *= COLS;
    tile_each<T>(sums, [&](int row, int col, float *pair) { pair[0] = pair[1] = 0; });
    tile_multiply<T>(sums, smem, s.f, m0, n0);
    tile_each<T>(sums, [&](int row, int col, const float *pair) {
        *(float2 *)(z + row * SMEM_PITCH + col) = { pair[0], pair[1] };
    });
    __syncthreads();
    for (int row = (int)threadIdx.x / 32; row < T::BM && m0 + row < s.f.m; row += T::THREADS / 32) {
        float4 v = *(const float4 *)(z + row * SMEM_PITCH + threadIdx.x % 32 * 4);
        float four[4] = { v.x, v.y, v.z, v.w };
        epilogue(s, m0 + row, n0, four);
    }
}

/* The epilogue over logits [m, ld] in memory; one warp per token and block. */
static __global__ void __launch_bounds__(BLOCK) sweep_rows(struct sweep s, const float *z, size_t ld)
{
    int across = (s.f.n + COLS - 1) / COLS;
    size_t i = (size_t)blockIdx.x * WARPS + threadIdx.x / 32, row = i / (size_t)across, col = i % (size_t)across * COLS;

    if (row >= (size_t)s.f.m) return;
    float4 v = *(const float4 *)(z + row * ld + col + threadIdx.x % 32 * 4);
    float four[4] = { v.x, v.y, v.z, v.w };
    epilogue(s, (int)row, (int)col, four);
}

template <class T> static void run_sweep(struct wz_backend *be, const struct sweep *s)
{
    static_assert(T::BM * SMEM_PITCH * 4 <= T::SHARED_SIZE && T::BN == COLS,
                  "the tile's logits reuse the memory of its operands");
    size_t blocks = (size_t)((s->f.m + T::BM - 1) / T::BM) * (size_t)((s->f.n + COLS - 1) / COLS);

    tile_launch<T>(be, sweep_half<T>, blocks, T::SHARED_SIZE, *s);
}

/* x: s->f.m tokens, as products read them (bf16 for a bf16 weight). */
static void sweep(struct wz_backend *be, struct sweep *s, const void *x, const struct wz_weight *w, int first, int cols)
{
    size_t pitch, across = (size_t)((cols + COLS - 1) / COLS);
    const char *b = (const char *)wz_cuda_weight(w, &pitch) + (size_t)first * pitch * wz_type_size(w->type);

    s->first = first;
    s->f.n = cols;
    if (w->type == WZ_BF16) {
        s->f.a = (const __nv_bfloat16 *)x;
        s->f.b = (const __nv_bfloat16 *)b;
        s->f.lda = wz_cuda_pitch(w->in);
        s->f.ldb = pitch;
        s->f.k = w->in;
        if (s->f.m <= 16) run_sweep<tile<16, COLS, 64, 16, 32, 4>>(be, s);
        else if (s->f.m <= 64) run_sweep<tile<64, COLS, 64, 32, 64, 3>>(be, s);
        else run_sweep<tile<128, COLS, 64, 64, 64, 3>>(be, s);
    } else {
        size_t ld = s->z ? s->ldz : across * COLS;
        float *z = s->z ? s->z : (float *)wz_cuda_scratch(be, LOGITS, (size_t)s->f.m * ld * sizeof *z);
        struct product p = { z, x, b, ld, pitch, 1, 1, pitch, s->f.m, cols, w->in, false, WZ_F32 };
        wz_cuda_product(be, &p);
        LAUNCH_KEEPING(be, sweep_rows, ((size_t)s->f.m * across + WARPS - 1) / WARPS, BLOCK, 0, *s, z, ld);
    }
}

/* The whole vocabulary; with an f32 weight and logits that are not kept, WIDE entries at a time. */
static void sweep_all(struct wz_backend *be, struct sweep *s, const void *x, const struct wz_weight *w)
{
    int wide = w->type == WZ_BF16 || s->z ? w->out : WIDE;

    for (int first = 0; first < w->out; first += wide)
        sweep(be, s, x, w, first, w->out - first < wide ? w->out - first : wide);
}

/* One warp per token. out [3, m]: logp, lse, entropy. */
static __global__ void __launch_bounds__(BLOCK) row_scores(struct sweep s, float *out)
{
    int i = (int)(blockIdx.x * WARPS + threadIdx.x / 32), m = s.f.m;

    if (i >= m) return;
    struct stat stat = stat_of(s.parts + (size_t)i * (size_t)s.blocks, s.blocks);
    if (threadIdx.x % 32) return;
    out[i] = logp_of(stat, s.picked[i], s.scale[i]);
    out[m + i] = (float)lse_of(stat);
    out[2 * m + i] = (float)(log(stat.sum) - stat.mean / stat.sum);
}

/* ---- gathered tokens -------------------------------------------------------------------------------------- */

/* One block per token: out[i, :] = x[row[i], :], or back: out[row[i], :] = x[i, :]. */
static __global__ void move_rows(float *out, const float *x, const int *row, int c, bool back)
{
    size_t i = blockIdx.x, r = (size_t)row[i], to = (back ? r : i) * (size_t)c, from = (back ? i : r) * (size_t)c;

    for (size_t j = threadIdx.x; j < (size_t)c; j += BLOCK) out[to + j] = x[from + j];
}

/* The next tokens with a target, at most MOST of them from *at on: indices, targets and values [3, m] (1 / t, lse, d /
 * t) on the host and on the device. A backward sums `grain` tokens per step, so the other tokens of such a step are
 * included with gradients of 0. */
struct rows {
    int m, row[MOST], target[MOST];
    float values[3 * MOST];
    const int *d_row, *d_target;
    const float *d_values;
};

static void rows_next(struct rows *r, struct wz_backend *be, const int *targets, const float *d_logp, const float *lse,
                      float temperature, int n, int *at)
{
    int step = d_logp ? be->grain : 1;

    for (r->m = 0; *at < n && r->m < MOST; *at += step) {
        int end = *at + step < n ? *at + step : n;
        bool any = false;
        for (int i = *at; i < end; i++) any |= targets[i] >= 0 && (!d_logp || d_logp[i] != 0);
        for (int i = *at; i < end && any; i++) r->row[r->m++] = i;
    }
    for (int i = 0; i < r->m; i++) {
        int row = r->row[i], target = r->target[i] = targets[row];
        r->values[i] = 1 / temperature;
        r->values[r->m + i] = target < 0 ? INFINITY : lse ? lse[row] : 0;
        r->values[2 * r->m + i] = target >= 0 && d_logp ? d_logp[row] / temperature : 0;
    }
    r->d_row = (const int *)wz_cuda_mirror(be, IDS, r->row, (size_t)r->m * sizeof(int));
    r->d_target = (const int *)wz_cuda_mirror(be, TARGETS, r->target, (size_t)r->m * sizeof(int));
    r->d_values = (const float *)wz_cuda_mirror(be, VALUES, r->values, 3 * (size_t)r->m * sizeof(float));
}

/* Gathers those tokens of x, as products read them; *more: scratch for as many floats. */
static const void *gather(struct wz_backend *be, const struct rows *r, const float *x, const struct wz_weight *w,
                          float **more)
{
    size_t size = (size_t)(r->m < 64 ? 64 : r->m) * (size_t)w->in;
    float *tokens = (float *)wz_cuda_scratch(be, ROWS, 2 * size * sizeof *tokens);

    *more = tokens + size;
    LAUNCH_KEEPING(be, move_rows, r->m, BLOCK, 0, tokens, x, r->d_row, w->in, false);
    wz_cuda_wrote(be, tokens, size * sizeof *tokens);
    return w->type == WZ_BF16 ? (const void *)wz_cuda_half(be, tokens, r->m, w->in) : tokens;
}

static struct sweep sweep_of(struct wz_backend *be, const struct wz_weight *w, int m, const float *scale)
{
    struct sweep s = {};

    s.f.m = m;
    s.blocks = (w->out + COLS - 1) / COLS;
    s.scale = scale;
    s.half = w->type == WZ_BF16;
    s.cap = w->cap;
    return s;
}

static struct part *parts_reserve(struct wz_backend *be, const struct sweep *s)
{
    return (struct part *)wz_cuda_scratch(be, PARTIAL, (size_t)s->f.m * (size_t)s->blocks * sizeof(struct part));
}

/* ---- the ops ---------------------------------------------------------------------------------------------- */

static void head_logprob(struct wz_backend *be, float *logp, float *lse, float *entropy, const float *x,
                         const struct wz_weight *w, const int *targets, float temperature, int n)
{
    float *scores = (float *)wz_cuda_scratch(be, SMALL, 4 * MOST * sizeof *scores), got[3 * MOST], *more;
    struct rows r;

    wz_cuda_doing = __func__;
    for (int i = 0; i < n; i++) {
        logp[i] = lse[i] = 0;
        if (entropy) entropy[i] = 0;
    }
    for (int at = 0; at < n;) {
        rows_next(&r, be, targets, NULL, NULL, temperature, n, &at);
        if (r.m == 0) break;
        struct sweep s = sweep_of(be, w, r.m, r.d_values);
        const void *tokens = gather(be, &r, x, w, &more);
        s.parts = parts_reserve(be, &s);
        s.targets = r.d_target;
        s.picked = scores + 3 * MOST;
        sweep_all(be, &s, tokens, w);
        LAUNCH(be, row_scores, (r.m + WARPS - 1) / WARPS, BLOCK, 0, s, scores);
        wz_cuda_download(be, got, scores, 3 * (size_t)r.m * sizeof *got);
        for (int i = 0; i < r.m; i++) {
            logp[r.row[i]] = got[i];
            lse[r.row[i]] = got[r.m + i];
            if (entropy) entropy[r.row[i]] = got[2 * r.m + i];
        }
    }
}

static void head_sample(struct wz_backend *be, int *token, float *logp, const float *x, const struct wz_weight *w,
                        const struct wz_pick *picks, int n)
{
    if (n == 0) return;
    size_t all = (size_t)n, size = all * (sizeof *picks + sizeof(float));
    struct wz_pick *list = (struct wz_pick *)malloc(size);
    float *scales = (float *)(list + n);

    wz_cuda_doing = __func__;
    if (!list) wz_cuda_plugin.die("cuda: no memory for %d rows", n);
    memcpy(list, picks, all * sizeof *list);
    for (int i = 0; i < n; i++) scales[i] = picks[i].temperature > 0 ? 1 / picks[i].temperature : 1;
    const struct wz_pick *at_picks = (const struct wz_pick *)wz_cuda_mirror(be, PICKS, list, size);
    const float *scale = (const float *)(at_picks + n);
    int *tokens = (int *)wz_cuda_scratch(be, SMALL, all * (sizeof *token + sizeof *logp));
    float *logps = (float *)(tokens + n);
    free(list);
    for (int at = 0; at < n; at += SAMPLED) {
        int m = n - at < SAMPLED ? n - at : SAMPLED;
        const float *rows = x + (size_t)at * (size_t)w->in;
        struct sweep s = sweep_of(be, w, m, scale + at);
        s.ldz = (size_t)s.blocks * COLS;
        s.z = (float *)wz_cuda_scratch(be, LOGITS, (size_t)m * s.ldz * sizeof *s.z);
        s.parts = parts_reserve(be, &s);
        sweep_all(be, &s, w->type == WZ_BF16 ? (const void *)wz_cuda_half(be, rows, m, w->in) : rows, w);
        struct picking p = { s.z, s.scale, s.parts, s.blocks, w->out, at_picks + at, tokens + at, logps + at };
        wz_cuda_pick(be, &p, m);
    }
    wz_cuda_download(be, token, tokens, all * sizeof *token);
    wz_cuda_download(be, logp, logps, all * sizeof *logp);
}

static void head_logits(struct wz_backend *be, float *out, const float *x, const struct wz_weight *w, int n)
{
    size_t vocab = (size_t)w->out;

    for (int at = 0; at < n; at += SAMPLED) {
        int m = n - at < SAMPLED ? n - at : SAMPLED;
        float *z = (float *)wz_cuda_scratch(be, LOGITS, (size_t)m * vocab * sizeof *z);
        be->ops.matmul(be, z, x + (size_t)at * (size_t)w->in, w, m, false);
        wz_cuda_download(be, out + (size_t)at * vocab, z, (size_t)m * vocab * sizeof *out);
        for (size_t i = 0; i < (size_t)m * vocab && w->cap > 0; i++) {
            float *x = out + (size_t)at * vocab + i;
            *x = w->cap * tanhf(*x / w->cap);
        }
    }
}

static void head_back(struct wz_backend *be, float *d_x, float *d_w, const float *x, const struct wz_weight *w,
                      const int *targets, const float *d_logp, const float *lse, float temperature, int n)
{
    size_t c = (size_t)w->in, bytes = wz_type_size(w->type), pitch,
           pitch_x = w->type == WZ_BF16 ? wz_cuda_pitch(w->in) : c;
    const char *weights = (const char *)wz_cuda_weight(w, &pitch);
    struct rows r;
    float *d_rows;

    wz_cuda_doing = __func__;
    be->ops.zero(be, d_x, (size_t)n * c * sizeof *d_x);
    for (int at = 0; at < n;) {
        rows_next(&r, be, targets, d_logp, lse, temperature, n, &at);
        if (r.m == 0) break;
        struct sweep s = sweep_of(be, w, r.m, r.d_values);
        const void *tokens = gather(be, &r, x, w, &d_rows);
        s.targets = r.d_target;
        s.lse = r.d_values + r.m;
        s.d = r.d_values + 2 * r.m;
        s.ldg = WIDE;
        s.g = wz_cuda_scratch(be, WORK, (size_t)r.m * WIDE * bytes);
        for (int first = 0; first < w->out; first += WIDE) {
            int cols = w->out - first < WIDE ? w->out - first : WIDE;
            sweep(be, &s, tokens, w, first, cols);
            struct product p = {
                d_rows,    s.g,    weights + (size_t)first * pitch * bytes, c, WIDE, 1, pitch, 1, r.m, w->in, cols,
                first > 0, w->type
            };
            wz_cuda_product(be, &p);
            if (!d_w) continue;
            p = { d_w + (size_t)first * c, s.g, tokens, c, 1, WIDE, pitch_x, 1, cols, w->in, r.m, true, w->type };
            wz_cuda_product(be, &p);
        }
        LAUNCH(be, move_rows, r.m, BLOCK, 0, d_x, d_rows, r.d_row, w->in, true);
    }
}

void wz_cuda_ops_head(struct wz_ops *ops)
{
    ops->head_logprob = head_logprob;
    ops->head_sample = head_sample;
    ops->head_logits = head_logits;
    ops->head_back = head_back;
}
