/* attention's backward on f32 (flash_back.cu has it on tensor cores), without atomics: one kernel for d_q, one for d_k
 * and d_v, which runs once for the tokens' own keys and once for the past's.
 *
 *   delta = d_out . out;  p_j = exp(q . k_j scale - lse);  ds_j = p_j (d_out . v_j - delta) scale
 *   d_q = sum_j ds_j k_j, keys in order
 *   d_k_j = sum ds_j q, d_v_j = sum p_j d_out, over tokens in order and the heads of a token within
 *
 *   block           d_q: a tile of queries, over the keys it attends to; d_k and d_v: KEYS keys of a sequence, over the
 *                   tiles that attend to them, or KEYS keys of the past, over all sequences, one after another. Both
 *                   recompute s, p and ds of a tile and KEYS keys
 *   thread          dot products with one key; then one channel of the sums
 *   shared memory   struct smem: q, d_out [QUERIES, D + 1], k, v [KEYS, D + 1], p, ds [QUERIES, KEYS], the sums
 *
 * Bound by FMAs. */
#include "kernels/cuda/attend.cuh"

enum { KEYS = 16 };

struct back {
    struct attend a;
    float *d_q, *d_k, *d_v, *delta;
    const float *d_out;
    struct wz_past past;
    const struct tile *keys; /* tiles of KEYS keys of a sequence; over the past: sequences, of which there are `seqs` */
    int seqs;
};

/* One warp per query. */
static __global__ void deltas(float *delta, const float *d_out, const float *out, size_t n, int d)
{
    size_t i = (size_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    float sum = 0;

    if (i >= n) return;
    d_out += i * (size_t)d;
    out += i * (size_t)d;
    for (int c = (int)threadIdx.x % 32; c < d; c += 32) sum = fmaf(d_out[c], out[c], sum);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) delta[i] = sum;
}

/* Shared memory of both kernels. */
struct smem {
    float *q, *d_out, *k, *v, *p, *ds, *sums;
};

INLINE struct smem carve(float *at, int d)
{
    int queries = QUERIES * (d + 1), keys = KEYS * (d + 1);

    return (struct smem){ at,
                          at + queries,
                          at + 2 * queries,
                          at + 2 * queries + keys,
                          at + 2 * queries + 2 * keys,
                          at + 2 * queries + 2 * keys + QUERIES * KEYS,
                          at + 2 * queries + 2 * keys + 2 * QUERIES * KEYS };
}

/* p and ds of a tile's queries and the keys from t0 on; 0 where a query does not see a key. Ends with a barrier. */
INLINE void pairs(const struct smem *m, const struct back *b, const struct tile *t, int n, int t0, int keys, int head)
{
    int d = b->a.kv.head_dim;

    dots<KEYS>(m->p, m->q, m->k, n, keys, d);
    dots<KEYS>(m->ds, m->d_out, m->v, n, keys, d);
    __syncthreads();
    for (int e = (int)threadIdx.x; e < n * KEYS; e += THREADS) {
        int i = e / KEYS, j = e % KEYS;
        int pos = b->a.at.pos[row_of(t, i, b->a.group)];
        bool seen = j < keys && t0 + j <= pos && t0 + j >= first_seen(&b->a, pos);
        size_t at = query_at(&b->a, t, i, head);
        float s = capped(m->p[e] * b->a.scale, b->a.scores.cap), p = seen ? expf(s - b->a.lse[at]) : 0;
        m->ds[e] = seen ? p * (m->ds[e] - b->delta[at]) * b->a.scale * cap_slope(s, b->a.scores.cap) : 0;
        m->p[e] = p;
    }
    __syncthreads();
}

INLINE void load_tile(const struct smem *m, const struct back *b, const struct tile *t, int n, int head)
{
    load_queries(m->q, b->a.q, &b->a, t, n, head);
    load_queries(m->d_out, b->d_out, &b->a, t, n, head);
}

INLINE void load_keys(const struct smem *m, const struct back *b, int pages, int t0, int keys, int head)
{
    load_cache(m->k, b->a.kv.k, &b->a, pages, t0, keys, head);
    load_cache(m->v, b->a.kv.v, &b->a, pages, t0, keys, head);
}

static __global__ void __launch_bounds__(THREADS, 1) back_queries(struct back b)
{
    SHARED(float, shared);
    int d = b.a.kv.head_dim, head = (int)blockIdx.x % b.a.kv.heads;
    struct tile t = b.a.at.tiles[(int)blockIdx.x / b.a.kv.heads];
    struct smem m = carve(shared, d);
    int n = queries_of(&t, b.a.group), pages = b.a.at.pages[t.row], last = b.a.at.pos[row_of(&t, n - 1, b.a.group)];

    load_tile(&m, &b, &t, n, head);
    for (int e = (int)threadIdx.x; e < n * d; e += THREADS) m.sums[e] = 0;
    for (int t0 = 0; t0 <= last; t0 += KEYS) {
        int keys = last + 1 - t0 < KEYS ? last + 1 - t0 : KEYS;
        load_keys(&m, &b, pages, t0, keys, head);
        __syncthreads();
        pairs(&m, &b, &t, n, t0, keys, head);
        for (int e = (int)threadIdx.x; e < n * d; e += THREADS) {
            int i = e / d, c = e % d;
            float sum = m.sums[e];
            for (int j = 0; j < keys; j++) sum = fmaf(m.ds[i * KEYS + j], m.k[j * (d + 1) + c], sum);
            m.sums[e] = sum;
        }
        __syncthreads();
    }
    for (int e = (int)threadIdx.x; e < n * d; e += THREADS)
        b.d_q[query_at(&b.a, &t, e / d, head) * (size_t)d + (size_t)(e % d)] = m.sums[e];
}

/* Sums over the queries of one sequence, from the `first`-th on, for `keys` keys of positions from t0 on. */
INLINE void sum_keys(const struct smem *m, const struct back *b, int row, int rows, int first, int t0, int keys,
                     int head)
{
    int d = b->a.kv.head_dim;
    float *d_k = m->sums, *d_v = d_k + KEYS * d;

    for (int e = (int)threadIdx.x; e < 2 * KEYS * d; e += THREADS) m->sums[e] = 0;
    for (first = first / QUERIES * QUERIES; first < rows * b->a.group; first += QUERIES) {
        struct tile t = { row, rows, first };
        int n = queries_of(&t, b->a.group);
        load_tile(m, b, &t, n, head);
        __syncthreads();
        pairs(m, b, &t, n, t0, keys, head);
        for (int e = (int)threadIdx.x; e < keys * d; e += THREADS) {
            int j = e / d, c = e % d;
            float k = d_k[e], v = d_v[e];
            for (int i = 0; i < n; i++) {
                k = fmaf(m->ds[i * KEYS + j], m->q[i * (d + 1) + c], k);
                v = fmaf(m->p[i * KEYS + j], m->d_out[i * (d + 1) + c], v);
            }
            d_k[e] = k;
            d_v[e] = v;
        }
        __syncthreads();
    }
}

/* Index of element e of KEYS keys' gradients in an array [keys, K, D]. */
INLINE size_t key_at(const struct back *b, int first, int e, int head)
{
    int d = b->a.kv.head_dim;

    return ((size_t)(first + e / d) * (size_t)b->a.kv.heads + (size_t)head) * (size_t)d + (size_t)(e % d);
}

static __global__ void __launch_bounds__(THREADS, 1) back_keys(struct back b)
{
    SHARED(float, shared);
    int d = b.a.kv.head_dim, head = (int)blockIdx.x % b.a.kv.heads;
    struct tile of = b.keys[(int)blockIdx.x / b.a.kv.heads];
    struct smem m = carve(shared, d);
    int t0 = b.past.n + of.first, keys = queries_of(&of, 1, KEYS);

    load_keys(&m, &b, b.a.at.pages[of.row], t0, keys, head);
    sum_keys(&m, &b, of.row, of.rows, of.first * b.a.group, t0, keys, head);
    for (int e = (int)threadIdx.x; e < keys * d; e += THREADS) {
        size_t to = key_at(&b, of.row + of.first, e, head);
        b.d_k[to] = m.sums[e];
        b.d_v[to] = m.sums[KEYS * d + e];
    }
}

/* An element is added to by the same thread for every sequence, in their order. */
static __global__ void __launch_bounds__(THREADS, 1) back_past(struct back b)
{
    SHARED(float, shared);
    int d = b.a.kv.head_dim, head = (int)blockIdx.x % b.a.kv.heads, t0 = (int)blockIdx.x / b.a.kv.heads * KEYS;
    int keys = b.past.n - t0 < KEYS ? b.past.n - t0 : KEYS;
    struct smem m = carve(shared, d);

    load_keys(&m, &b, b.a.at.pages[0], t0, keys, head);
    for (int s = 0; s < b.seqs; s++) {
        sum_keys(&m, &b, b.keys[s].row, b.keys[s].rows, 0, t0, keys, head);
        for (int e = (int)threadIdx.x; e < keys * d; e += THREADS) {
            size_t to = key_at(&b, t0, e, head);
            b.past.d_k[to] += m.sums[e];
            b.past.d_v[to] += m.sums[KEYS * d + e];
        }
        __syncthreads();
    }
}

static void attention_back(struct wz_backend *be, float *d_q, float *d_k, float *d_v, struct wz_past past,
                           const float *d_out, const float *out, const float *lse, const float *q,
                           const struct wz_kv *kv, const struct wz_rows *rows, int heads, struct wz_scores scores)
{
    wz_cuda_doing = __func__;
    struct back b = { attend_of(be, out, lse, q, kv, rows, heads, scores), d_q, d_k, d_v, NULL, d_out, past, NULL, 0 };
    int d = kv->head_dim, count[2], blocks[2];
    size_t queries = (size_t)rows->n * (size_t)heads;
    size_t shared = ((size_t)(2 * QUERIES + 2 * KEYS) * (size_t)(d + 1) + 2 * KEYS * (size_t)d + 2 * QUERIES * KEYS) *
                    sizeof(float);

    if (wz_cuda_flash_back(be, &b.a, d_q, d_k, d_v, past, d_out, rows)) return;
    if (shared > (size_t)cuda_of(be)->shared)
        wz_cuda_plugin.die("cuda: attention_back: heads of %d channels are too wide", d);
    b.a.at.tiles = wz_cuda_tiles(be, TILES, rows, b.a.group, QUERIES, 0, count);
    b.keys = wz_cuda_tiles(be, IDS, rows, 1, KEYS, 0, blocks);
    b.delta = (float *)wz_cuda_scratch(be, SMALL, queries * sizeof *b.delta);
    LAUNCH(be, deltas, (queries + THREADS / 32 - 1) / (THREADS / 32), THREADS, 0, b.delta, d_out, out, queries, d);
    CHECK(cudaFuncSetAttribute(back_queries, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    CHECK(cudaFuncSetAttribute(back_keys, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    LAUNCH(be, back_queries, (size_t)count[0] * (size_t)kv->heads, THREADS, shared, b);
    LAUNCH(be, back_keys, (size_t)blocks[0] * (size_t)kv->heads, THREADS, shared, b);
    if (!past.n || !rows->n) return;
    b.keys = wz_cuda_sequences(be, rows, &b.seqs);
    CHECK(cudaFuncSetAttribute(back_past, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    LAUNCH(be, back_past, (size_t)((past.n + KEYS - 1) / KEYS) * (size_t)kv->heads, THREADS, shared, b);
}

void wz_cuda_ops_attention_back(struct wz_ops *ops) { ops->attention_back = attention_back; }
