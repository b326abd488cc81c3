/* attention over pages on f32 (flash.cu has it on tensor cores), in steps of KEYS keys counted from position 0:
 *
 *   s_j = q . k_j scale;   step i: m_i = max s_j, p_j = exp(s_j - m_i), l_i = sum p_j, o_i = sum_j p_j v_j
 *   steps in order:  m' = max(m, m_i);  l = l exp(m - m') + l_i exp(m_i - m');  o likewise
 *   out = o / l;  lse = m + log l
 *
 *   block           QUERIES queries of one sequence that share a kv head: tokens of a prefill, or the heads of one
 *                   token in decode
 *   thread          in each step: dot products with one key; then, as a lane, some keys of a query; then one channel of
 *                   the sums
 *   shared memory   queries and sums [QUERIES, D + 1], keys or values [KEYS, D + 1], p [QUERIES, KEYS]
 *
 * With few blocks each step runs in its own block, and a second kernel merges the steps by the same formula in the same
 * order, so a token has the same bits alone and in a batch. Their number is a power of two, some without work, so that
 * the launch stays the same while sequences grow and its CUDA graph can be reused (graph.cu). Prefill is bound by FMAs,
 * decode by reading the cache. */
#include "kernels/cuda/attend.cuh"

enum { KEYS = 64 };

/* ---- tokens and cache ------------------------------------------------------------------------------------- */

struct places wz_cuda_places(struct wz_backend *be, const struct wz_rows *rows)
{
    size_t n = (size_t)rows->n;
    size_t entries = (size_t)rows->seqs * (size_t)rows->stride;
    size_t size = (2 * n + entries) * sizeof(int);
    int *list = (int *)malloc(size ? size : 1);

    if (!list) wz_cuda_plugin.die("cuda: no memory for %zu rows", n);
    for (size_t i = 0; i < n; i++) list[i] = rows->seq[i] * rows->stride;
    memcpy(list + n, rows->pos, n * sizeof *list);
    memcpy(list + 2 * n, rows->table, entries * sizeof *list);
    const int *at = (const int *)wz_cuda_mirror(be, PLACES, list, size);
    free(list);
    return (struct places){ at, at + n, at + 2 * n, NULL };
}

const struct tile *wz_cuda_tiles(struct wz_backend *be, enum mirror_of where, const struct wz_rows *rows, int group,
                                 int wide, int few, int count[2])
{
    size_t most =
        (size_t)rows->n * (size_t)group / QUERIES + (size_t)rows->n + 1; /* each run ends in a tile of its own */
    struct tile *list = (struct tile *)malloc(most * sizeof *list);
    int n = 0;

    if (!list) wz_cuda_plugin.die("cuda: no memory for %d rows", rows->n);
    for (int kind = 0; kind < 2; kind++) {
        int before = n, step = kind ? QUERIES : wide;
        for (int i = 0, run; i < rows->n; i += run) {
            for (run = 1; i + run < rows->n && rows->seq[i + run] == rows->seq[i]; run++) continue;
            for (int first = 0; first < run * group && (run * group <= few) == kind; first += step)
                list[n++] = (struct tile){ i, run, first };
        }
        count[kind] = n - before;
    }
    const void *at = wz_cuda_mirror(be, where, list, (size_t)n * sizeof *list);
    free(list);
    return (const struct tile *)at;
}

static __global__ void write_rows(struct wz_kv kv, const float *k, const float *v, struct places at, int n)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x, d = (size_t)kv.head_dim, width = (size_t)kv.heads * d;

    if (i >= (size_t)n * width) return;
    size_t row = i / width, head = i % width / d;
    int pos = at.pos[row];
    size_t page = (size_t)at.table[at.pages[row] + pos / kv.page];
    size_t to = ((page * (size_t)kv.heads + head) * (size_t)kv.page + (size_t)(pos % kv.page)) * d + i % d;
    if (kv.half) {
        ((__nv_bfloat16 *)kv.k)[to] = __float2bfloat16(k[i]);
        ((__nv_bfloat16 *)kv.v)[to] = __float2bfloat16(v[i]);
    } else {
        kv.k[to] = k[i];
        kv.v[to] = v[i];
    }
}

static void kv_write(struct wz_backend *be, const struct wz_kv *kv, const float *k, const float *v,
                     const struct wz_rows *rows)
{
    struct places at = wz_cuda_places(be, rows);
    size_t n = (size_t)rows->n * (size_t)kv->heads * (size_t)kv->head_dim;
    LAUNCH(be, write_rows, (n + 255) / 256, 256, 0, *kv, k, v, at, rows->n);
}

/* Copies `n` words of every head of page src to page dst; heads are `step` words apart. */
template <class W>
static __global__ void copy_words(W *k, W *v, size_t dst, size_t src, size_t n, size_t step, int heads)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x, head = i / n;

    if (head >= (size_t)heads) return;
    size_t to = (dst * (size_t)heads + head) * step + i % n, from = (src * (size_t)heads + head) * step + i % n;
    k[to] = k[from];
    v[to] = v[from];
}

/* The first `count` slots of a page are contiguous per head. */
template <class W> static void kv_copy(struct wz_backend *be, const struct wz_kv *kv, int dst, int src, int count)
{
    size_t slot = (size_t)kv->head_dim * (kv->half ? 2 : 4), n = (size_t)count * slot / sizeof(W);

    LAUNCH(be, copy_words<W>, ((size_t)kv->heads * n + 255) / 256, 256, 0, (W *)kv->k, (W *)kv->v, (size_t)dst,
           (size_t)src, n, (size_t)kv->page * slot / sizeof(W), kv->heads);
}

static void kv_copy(struct wz_backend *be, const struct wz_kv *kv, int dst, int src, int count)
{
    if (kv->head_dim % 8 == 0) kv_copy<float4>(be, kv, dst, src, count);
    else if (kv->half) kv_copy<__nv_bfloat16>(be, kv, dst, src, count);
    else kv_copy<float>(be, kv, dst, src, count);
}

/* ---- the forward ------------------------------------------------------------------------------------------ */

/* Online softmax of a query over the steps so far. */
struct sum {
    float m, l;
};

INLINE struct sum merge_split(struct sum *sum, struct sum step)
{
    float m = fmaxf(sum->m, step.m);
    struct sum weight = { expf(sum->m - m), expf(step.m - m) }; /* of the earlier steps, of this one */

    sum->l = fmaf(sum->l, weight.m, step.l * weight.l);
    sum->m = m;
    return weight;
}

INLINE float merge_output(float o, float step, struct sum weight) { return fmaf(o, weight.m, step * weight.l); }

/* Turns the scores of one query and step into p; returns (m, l). Called by a warp. It sees keys [from, count). */
INLINE struct sum online_softmax(float *s, int from, int count, float scale, float cap)
{
    int lane = (int)threadIdx.x % 32;
    float x[KEYS / 32], m = -INFINITY, l = 0;

    for (int k = 0; k < KEYS / 32; k++) {
        int j = lane + 32 * k;
        x[k] = j >= from && j < count ? capped(s[j] * scale, cap) : -INFINITY;
        m = fmaxf(m, x[k]);
    }
    m = warp_max(m);
    for (int k = 0; k < KEYS / 32; k++) {
        x[k] = lane + 32 * k >= from && lane + 32 * k < count ? expf(x[k] - m) : 0;
        s[lane + 32 * k] = x[k];
        l += x[k];
    }
    return (struct sum){ m, warp_sum(l) };
}

/* Block b: tile b / K / parts, head b / parts % K, steps [part * each, ..). partial [blocks, QUERIES, D + 2], or
 * NULL: no parts. */
static __global__ void __launch_bounds__(THREADS, 1) attend_tiles(struct attend a, int parts, float *partial)
{
    SHARED(float, smem);
    int d = a.kv.head_dim, part = (int)blockIdx.x % parts, head = (int)blockIdx.x / parts % a.kv.heads;
    struct tile t = a.at.tiles[(int)blockIdx.x / parts / a.kv.heads];
    float *q = smem;
    float *sums = q + QUERIES * (d + 1);
    float *kv = sums + QUERIES * (d + 1);
    float *s = kv + KEYS * (d + 1);
    struct sum *all = (struct sum *)(s + QUERIES * KEYS), *weight = all + QUERIES;
    int *pos = (int *)(weight + QUERIES);
    int n = queries_of(&t, a.group);
    int warp = (int)threadIdx.x / 32;
    int last = 0;
    int pages = a.at.pages[t.row];

    if (threadIdx.x < (unsigned)n) {
        pos[threadIdx.x] = a.at.pos[row_of(&t, (int)threadIdx.x, a.group)];
        all[threadIdx.x] = (struct sum){ -INFINITY, 0 };
    }
    for (int e = (int)threadIdx.x; e < QUERIES * (d + 1); e += THREADS) sums[e] = 0;
    load_queries(q, a.q, &a, &t, n, head);
    __syncthreads();
    for (int i = 0; i < n; i++) last = pos[i] > last ? pos[i] : last;
    if (part * KEYS > last) return;
    for (int t0 = part * KEYS; t0 <= last; t0 += partial ? last + 1 : KEYS) {
        int keys = last + 1 - t0 < KEYS ? last + 1 - t0 : KEYS;
        load_cache(kv, a.kv.k, &a, pages, t0, keys, head);
        __syncthreads();
        dots<KEYS>(s, q, kv, n, keys, d);
        __syncthreads();
        load_cache(kv, a.kv.v, &a, pages, t0, keys, head);
        for (int i = warp; i < n; i += THREADS / 32) {
            int count = pos[i] + 1 - t0, from = first_seen(&a, pos[i]) - t0;
            if (count <= 0 || from >= KEYS) continue;
            struct sum step = online_softmax(s + i * KEYS, from, count, a.scale, a.scores.cap);
            if (threadIdx.x % 32 == 0) weight[i] = merge_split(&all[i], step);
        }
        __syncthreads();
        for (int e = (int)threadIdx.x; e < n * d; e += THREADS) {
            int i = e / d, c = e % d, count = pos[i] + 1 - t0 < KEYS ? pos[i] + 1 - t0 : KEYS;
            int from = first_seen(&a, pos[i]) - t0;
            float o = 0;
            for (int j = from > 0 ? from : 0; j < count; j++) o = fmaf(s[i * KEYS + j], kv[j * (d + 1) + c], o);
            if (count > 0 && from < KEYS)
                sums[i * (d + 1) + c] = partial ? o : merge_output(sums[i * (d + 1) + c], o, weight[i]);
        }
        __syncthreads();
    }
    for (int e = (int)threadIdx.x; e < n * d; e += THREADS) {
        int i = e / d, c = e % d;
        if (partial)
            partial[((size_t)blockIdx.x * QUERIES + (size_t)i) * (size_t)(d + 2) + (size_t)c] = sums[i * (d + 1) + c];
        else a.out[query_at(&a, &t, i, head) * (size_t)d + (size_t)c] = sums[i * (d + 1) + c] / all[i].l;
    }
    if (threadIdx.x >= (unsigned)n) return;
    struct sum mine = all[threadIdx.x];
    if (partial) {
        float *to = partial + ((size_t)blockIdx.x * QUERIES + threadIdx.x) * (size_t)(d + 2) + d;
        to[0] = mine.m;
        to[1] = mine.l;
    } else if (a.lse) {
        a.lse[query_at(&a, &t, (int)threadIdx.x, head)] = (float)((double)mine.m + log((double)mine.l));
    }
}

/* Merges the steps: a block per tile and kv head, a thread per channel of a query. */
static __global__ void __launch_bounds__(THREADS, 1) attend_join(struct attend a, int parts, const float *partial)
{
    int d = a.kv.head_dim, head = (int)blockIdx.x % a.kv.heads;
    struct tile t = a.at.tiles[(int)blockIdx.x / a.kv.heads];
    int n = queries_of(&t, a.group);

    for (int e = (int)threadIdx.x; e < n * d; e += THREADS) {
        int i = e / d, c = e % d, steps = a.at.pos[row_of(&t, i, a.group)] / KEYS + 1;
        const int first = first_seen(&a, a.at.pos[row_of(&t, i, a.group)]) / KEYS; /* steps before have no sums */
        const float *from =
            partial + (((size_t)blockIdx.x * (size_t)parts + (size_t)first) * QUERIES + (size_t)i) * (size_t)(d + 2);
        struct sum all = { -INFINITY, 0 };
        float o = 0;
        for (int k = first; k < steps; k++, from += QUERIES * (d + 2))
            o = merge_output(o, from[c], merge_split(&all, (struct sum){ from[d], from[d + 1] }));
        a.out[query_at(&a, &t, i, head) * (size_t)d + (size_t)c] = o / all.l;
        if (a.lse && c == 0) a.lse[query_at(&a, &t, i, head)] = (float)((double)all.m + log((double)all.l));
    }
}

static void attention(struct wz_backend *be, float *out, float *lse, const float *q, const struct wz_kv *kv,
                      const struct wz_rows *rows, int heads, struct wz_scores scores)
{
    wz_cuda_doing = __func__;
    struct attend a = attend_of(be, out, lse, q, kv, rows, heads, scores);
    int d = kv->head_dim, count[2], last = 0, parts = 1;
    size_t shared = ((size_t)(2 * QUERIES + KEYS) * (size_t)(d + 1) + QUERIES * KEYS + 5 * QUERIES) * sizeof(float);
    float *partial = NULL;

    if (wz_cuda_flash(be, &a, rows)) return;
    if (shared > (size_t)cuda_of(be)->shared)
        wz_cuda_plugin.die("cuda: attention: heads of %d channels are too wide", d);
    a.at.tiles = wz_cuda_tiles(be, TILES, rows, a.group, QUERIES, 0, count);
    for (int i = 0; i < rows->n; i++) last = rows->pos[i] > last ? rows->pos[i] : last;
    while (count[0] * kv->heads < 2 * cuda_of(be)->processors && parts * KEYS <= last) parts *= 2;
    size_t blocks = (size_t)count[0] * (size_t)kv->heads;
    if (parts > 1)
        partial =
            (float *)wz_cuda_scratch(be, PARTIAL, blocks * (size_t)parts * QUERIES * (size_t)(d + 2) * sizeof *partial);
    CHECK(cudaFuncSetAttribute(attend_tiles, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    LAUNCH(be, attend_tiles, blocks * (size_t)parts, THREADS, shared, a, parts, partial);
    if (partial) LAUNCH(be, attend_join, blocks, THREADS, 0, a, parts, partial);
}

void wz_cuda_ops_attention(struct wz_ops *ops)
{
    ops->kv_write = kv_write;
    ops->kv_copy = kv_copy;
    ops->attention = attention;
}
