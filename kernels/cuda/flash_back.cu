/* flash_back: attention's backward over a bf16 cache on tensor cores, without atomics. Operands (q, d_out, p, ds) are
 * rounded to bf16, sums are f32; the formula is that of attention_back.cu.
 *
 *   arrange    q and d_out to bf16, queries that share keys next to each other: [K, N group, D]; delta = d_out . out
 *              and lse log2(e) in the same order
 *   d_q        a block has WIDE queries, a warp 16, over keys and values in steps of STEP:
 *              s = q k, dp = d_out v, d_q += ds k
 *   d_k, d_v   a block has WIDE keys of a sequence, a warp 16, over the queries that attend to them in steps of STEP:
 *              s = k q, dp = v d_out, d_v += p d_out, d_k += ds q; transposed, so that p and ds are already in the
 *              registers where the next mma needs its a operand
 *   past       the same for WIDE keys of the past, over all sequences, one after another
 *
 * Both kernels recompute p and ds: seven products instead of five, but the order of every sum is fixed within one
 * block. Tiles and steps count from a sequence's first token, so a sequence's bits do not depend on the batch. Bound
 * by tensor cores and by loading operands from shared memory. */
#include "kernels/cuda/flash.cuh"

enum { WIDE = 128, THREADS_WIDE = 2 * WIDE };

struct back {
    struct attend a;
    float *d_q, *d_k, *d_v;
    const float *d_out;
    bf16 *q16, *d_out16; /* [K, N group, D] */
    float *delta, *lse2; /* [K, N group] */
    struct wz_past past;
    const struct tile *keys, *all; /* tiles of keys of a sequence; the sequences */
    int n, seqs;
};

/* Index of a token's first query for a kv head in the arrays written by arrange(). */
INLINE size_t arranged(const struct back *b, int head, int row)
{
    return ((size_t)head * (size_t)b->n + (size_t)row) * (size_t)b->a.group;
}

/* One warp per query. */
template <int D> static __global__ void arrange(struct back b)
{
    int i = (int)blockIdx.x * (THREADS / 32) + (int)threadIdx.x / 32, h = i % b.a.heads, row = i / b.a.heads;
    size_t to = arranged(&b, h / b.a.group, row) + (size_t)(h % b.a.group);
    float sum = 0;

    if (row >= b.n) return;
    for (int c = lane_of(); c < D / 2; c += 32) {
        size_t at = (size_t)i * (D / 2) + (size_t)c;
        float2 q = ((const float2 *)b.a.q)[at], d = ((const float2 *)b.d_out)[at], o = ((const float2 *)b.a.out)[at];
        bf16 x = __float2bfloat16(d.x), y = __float2bfloat16(d.y);
        ((unsigned *)b.q16)[to * (D / 2) + (size_t)c] = pair_bf16(q.x, q.y);
        ((unsigned *)b.d_out16)[to * (D / 2) + (size_t)c] = pair_bf16(d.x, d.y);
        sum = fmaf(__bfloat162float(y), o.y, fmaf(__bfloat162float(x), o.x, sum));
    }
    sum = warp_sum(sum);
    if (lane_of() > 0) return;
    b.delta[to] = sum;
    b.lse2[to] = b.a.lse[i] * LOG2E;
}

/* Calls fn(h, column, element) for this lane's part of a [16, STEP] mma result; matrix row g for h 0, g + 8 for 1. */
template <class F> INLINE void for_each_score(F fn)
{
#pragma unroll
    for (int j = 0; j < STEP / 8; j++)
#pragma unroll
        for (int k = 0; k < 4; k++) fn(k / 2, 8 * j + lane_of() % 4 * 2 + k % 2, 4 * j + k);
}

template <int D> static __global__ void __launch_bounds__(THREADS_WIDE, 1) back_queries(struct back b, int tiles)
{
    SHARED(bf16, smem);
    bf16 *q = smem, *d_out = q + WIDE * D;
    int head = (int)blockIdx.x % b.a.kv.heads, first = (int)threadIdx.x / 32 * 16, c = lane_of() % 4 * 2;
    struct tile t =
        b.a.at.tiles[tiles - 1 - (int)blockIdx.x / b.a.kv.heads]; /* longest first: the last positions have most keys */
    int n = queries_of(&t, b.a.group, WIDE), end = b.past.n + (t.first + n - 1) / b.a.group + 1, sees[2];
    int mine = first < n ? b.past.n + (t.first + (first + 15 < n ? first + 15 : n - 1)) / b.a.group
                         : -1; /* this warp's last key */
    struct kv_stream<D> in = {
        &b.a, d_out + WIDE *D, d_out + (WIDE + 2 * STEP) * D,
            (unsigned *)(d_out + (WIDE + 4 * STEP) * D), b.a.at.pages[t.row], head, end, 0
    };
    float sums[D / 8][4] = {}, scale = b.a.scale * LOG2E;
    float2 of[2]; /* lse log2(e), delta */
    size_t from = arranged(&b, head, t.row) + (size_t)t.first;

    load_rows<D, THREADS_WIDE, WIDE>(q, b.q16 + from * D, n);
    load_rows<D, THREADS_WIDE, WIDE>(d_out, b.d_out16 + from * D, n);
    for (int h = 0; h < 2; h++) {
        int i = first + lane_of() / 4 + 8 * h;
        sees[h] = i < n ? b.past.n + (t.first + i) / b.a.group + 1 : 0;
        of[h] = { i < n ? b.lse2[from + (size_t)i] : 0, i < n ? b.delta[from + (size_t)i] : 0 };
    }
    kv_stream_begin<D, THREADS_WIDE>(&in);
    for (int t0 = 0; t0 < end; t0 += STEP) {
        const bf16 *keys = in.keys + t0 / STEP % 2 * STEP * D, *values = in.values + t0 / STEP % 2 * STEP * D;
        float s[STEP / 8][4] = {}, dp[STEP / 8][4] = {};
        kv_stream_next<D, THREADS_WIDE>(&in, t0);
        if (t0 > mine) continue;
        struct operand_offsets at = operand_offsets_of<D>();
        score<D>(s, q, at, first, keys);
        score<D>(dp, d_out, at, first, values);
        for_each_score([&](int h, int column, int e) {
            float p = t0 + column < sees[h] ? exp2_approx(fmaf(s[e / 4][e % 4], scale, -of[h].x)) : 0;
            dp[e / 4][e % 4] = p * (dp[e / 4][e % 4] - of[h].y);
        });
        multiply_add<D>(sums, dp, at, keys);
    }
    for (int h = 0; h < 2; h++) {
        int i = first + lane_of() / 4 + 8 * h;
        if (i >= n) continue;
        float2 *to = (float2 *)(b.d_q + query_at(&b.a, &t, i, head) * D + (size_t)c);
#pragma unroll
        for (int j = 0; j < D / 8; j++) to[4 * j] = { sums[j][2 * h] * b.a.scale, sums[j][2 * h + 1] * b.a.scale };
    }
}

/* Starts copies of STEP queries from i0 on, of `all`, to buffer i0 / STEP % 2. */
template <int D>
INLINE void fetch_queries(const struct back *b, bf16 *q, bf16 *d_out, float *of, size_t from, int i0, int all)
{
    int buffer = i0 / STEP % 2, e = (int)threadIdx.x, i = i0 + e % STEP;

    if (i0 < all) {
        load_rows<D, THREADS_WIDE, STEP>(q + buffer * STEP * D, b->q16 + (from + (size_t)i0) * D, all - i0);
        load_rows<D, THREADS_WIDE, STEP>(d_out + buffer * STEP * D, b->d_out16 + (from + (size_t)i0) * D, all - i0);
        const float *source = (e < STEP ? b->lse2 : b->delta) + from + (i < all ? i : 0);
        if (e < 2 * STEP) copy_async4(of + buffer * 2 * STEP + e, source, i < all);
    }
    copy_commit();
}

/* Shared memory of the kernels for keys. */
struct key_smem {
    bf16 *keys, *values, *q, *d_out; /* [WIDE, D] and, of two steps of queries, [2, STEP, D] */
    float *of;                       /* [2, lse and delta, STEP] */
    unsigned *slots;                 /* [WIDE] */
};

template <int D> INLINE struct key_smem key_smem_of(bf16 *smem)
{
    bf16 *q = smem + 2 * WIDE * D;
    float *of = (float *)(q + 4 * STEP * D);

    return { smem, smem + WIDE * D, q, q + 2 * STEP * D, of, (unsigned *)(of + 4 * STEP) };
}

/* Loads n keys and values of a sequence's positions from t0 on; there are none past `last`. */
template <int D>
INLINE void load_wide(const struct key_smem *m, const struct back *b, int row, int t0, int n, int last, int head)
{
    if (threadIdx.x < WIDE)
        m->slots[threadIdx.x] = slot_of(&b->a, b->a.at.pages[row], t0 + (int)threadIdx.x, last, head);
    __syncthreads();
    load_slots<D, THREADS_WIDE, WIDE>(m->keys, b->a.kv.k, m->slots, n);
    load_slots<D, THREADS_WIDE, WIDE>(m->values, b->a.kv.v, m->slots, n);
}

/* d_k and d_v of this warp's 16 keys, from tile row `first` on, over the queries of a sequence: of a tile of keys that
 * begins with the sequence's token `token`, or of the past, all of which all of its tokens see. */
template <int D, bool PAST>
INLINE void sum_queries(float (*d_k)[4], float (*d_v)[4], const struct key_smem *m, const struct back *b, int head,
                        const struct tile *t, int token, int first)
{
    int group = b->a.group, all = t->rows * group, i0 = PAST ? 0 : token * group / STEP * STEP;
    int key = token + first + lane_of() / 4;
    size_t from = arranged(b, head, t->row);
    float scale = b->a.scale * LOG2E;

    fetch_queries<D>(b, m->q, m->d_out, m->of, from, i0, all);
    for (; i0 < all; i0 += STEP) {
        int buffer = i0 / STEP % 2;
        const bf16 *q_now = m->q + buffer * STEP * D, *d_out_now = m->d_out + buffer * STEP * D;
        const float *of_now = m->of + buffer * 2 * STEP;
        float s[STEP / 8][4] = {}, ds[STEP / 8][4] = {};
        copy_wait<0>();
        __syncthreads();
        fetch_queries<D>(b, m->q, m->d_out, m->of, from, i0 + STEP, all);
        if (!PAST && i0 + STEP <= (token + first) * group)
            continue; /* no query of the step attends to this warp's keys */
        struct operand_offsets at = operand_offsets_of<D>();
        score<D>(s, m->keys, at, first, q_now);
        for_each_score([&](int h, int column, int e) {
            bool seen = PAST || i0 + column >= (key + 8 * h) * group;
            s[e / 4][e % 4] = seen ? exp2_approx(fmaf(s[e / 4][e % 4], scale, -of_now[column])) : 0;
        });
        multiply_add<D>(d_v, s, at, d_out_now);
        score<D>(ds, m->values, at, first, d_out_now);
        for_each_score([&](int, int column, int e) {
            ds[e / 4][e % 4] = s[e / 4][e % 4] * (ds[e / 4][e % 4] - of_now[STEP + column]);
        });
        multiply_add<D>(d_k, ds, at, q_now);
    }
}

/* This lane's first channel of the n-th key of an array [keys, K, D]. */
template <int D> INLINE size_t key_at(const struct back *b, int n, int head)
{
    return ((size_t)n * (size_t)b->a.kv.heads + (size_t)head) * D + (size_t)(lane_of() % 4 * 2);
}

template <int D> static __global__ void __launch_bounds__(THREADS_WIDE, 1) back_keys(struct back b)
{
    SHARED(bf16, smem);
    struct key_smem m = key_smem_of<D>(smem);
    int head = (int)blockIdx.x % b.a.kv.heads, first = (int)threadIdx.x / 32 * 16;
    struct tile t = b.keys[(int)blockIdx.x / b.a.kv.heads];
    int key = t.first + first + lane_of() / 4;
    float d_k[D / 8][4] = {}, d_v[D / 8][4] = {};

    load_wide<D>(&m, &b, t.row, b.past.n + t.first, queries_of(&t, 1, WIDE), b.past.n + t.rows - 1, head);
    sum_queries<D, false>(d_k, d_v, &m, &b, head, &t, t.first, first);
    for (int h = 0; h < 2; h++) {
        if (key + 8 * h >= t.rows) continue;
        size_t to = key_at<D>(&b, t.row + key + 8 * h, head);
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            *(float2 *)(b.d_k + to + 8 * j) = { d_k[j][2 * h] * b.a.scale, d_k[j][2 * h + 1] * b.a.scale };
            *(float2 *)(b.d_v + to + 8 * j) = { d_v[j][2 * h], d_v[j][2 * h + 1] };
        }
    }
}

template <int D> static __global__ void __launch_bounds__(THREADS_WIDE, 1) back_past(struct back b)
{
    SHARED(bf16, smem);
    struct key_smem m = key_smem_of<D>(smem);
    int head = (int)blockIdx.x % b.a.kv.heads, first = (int)threadIdx.x / 32 * 16;
    int t0 = (int)blockIdx.x / b.a.kv.heads * WIDE;

    load_wide<D>(&m, &b, 0, t0, b.past.n - t0 < WIDE ? b.past.n - t0 : WIDE, b.past.n - 1, head);
    for (int s = 0; s < b.seqs; s++) {
        struct tile t = b.all[s];
        float d_k[D / 8][4] = {}, d_v[D / 8][4] = {};
        sum_queries<D, true>(d_k, d_v, &m, &b, head, &t, 0, first);
        for (int h = 0; h < 2; h++) {
            int e = opaque((int)threadIdx.x),
                key = t0 + e / 32 * 16 + e % 32 / 4; /* not kept in a register meanwhile */
            if (key + 8 * h >= b.past.n) continue;
            size_t to = key_at<D>(&b, key + 8 * h, head);
#pragma unroll
            for (int j = 0; j < D / 8; j++) {
                float2 *k = (float2 *)(b.past.d_k + to + 8 * j), *v = (float2 *)(b.past.d_v + to + 8 * j);
                *k = { k->x + d_k[j][2 * h] * b.a.scale, k->y + d_k[j][2 * h + 1] * b.a.scale };
                *v = { v->x + d_v[j][2 * h], v->y + d_v[j][2 * h + 1] };
            }
        }
        __syncthreads(); /* the next sequence's queries are copied over these */
    }
}

template <int D> static bool attention_back(struct wz_backend *be, struct back b, const struct wz_rows *rows)
{
    size_t queries = (size_t)rows->n * (size_t)b.a.heads, tiles = (size_t)(2 * WIDE + 4 * STEP) * D * sizeof(bf16);
    size_t shared[2] = { tiles + 2 * STEP * sizeof(int), tiles + (4 * STEP + WIDE) * sizeof(int) };
    int count[2], blocks[2];

    if (shared[1] > (size_t)cuda_of(be)->shared) return false; /* D 128 on sm_86 and sm_89 */
    b.q16 = (bf16 *)wz_cuda_scratch(be, PARTIAL, 2 * queries * D * sizeof *b.q16);
    b.d_out16 = b.q16 + queries * D;
    b.delta = (float *)wz_cuda_scratch(be, SMALL, 2 * queries * sizeof *b.delta);
    b.lse2 = b.delta + queries;
    b.a.at.tiles = wz_cuda_tiles(be, TILES, rows, b.a.group, WIDE, 0, count);
    b.keys = wz_cuda_tiles(be, IDS, rows, 1, WIDE, 0, blocks);
    CHECK(cudaFuncSetAttribute(back_queries<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared[0]));
    CHECK(cudaFuncSetAttribute(back_keys<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared[1]));
    LAUNCH(be, arrange<D>, (queries + THREADS / 32 - 1) / (THREADS / 32), THREADS, 0, b);
    LAUNCH(be, back_queries<D>, (size_t)count[0] * (size_t)b.a.kv.heads, THREADS_WIDE, shared[0], b, count[0]);
    LAUNCH(be, back_keys<D>, (size_t)blocks[0] * (size_t)b.a.kv.heads, THREADS_WIDE, shared[1], b);
    if (!b.past.n || !b.n) return true;
    b.all = wz_cuda_sequences(be, rows, &b.seqs);
    CHECK(cudaFuncSetAttribute(back_past<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared[1]));
    LAUNCH(be, back_past<D>, (size_t)((b.past.n + WIDE - 1) / WIDE) * (size_t)b.a.kv.heads, THREADS_WIDE, shared[1], b);
    return true;
}

bool wz_cuda_flash_back(struct wz_backend *be, const struct attend *a, float *d_q, float *d_k, float *d_v,
                        struct wz_past past, const float *d_out, const struct wz_rows *rows)
{
    struct back b = { *a, d_q, d_k, d_v, d_out, NULL, NULL, NULL, NULL, past, NULL, NULL, rows->n, 0 };

    if (a->scores.cap > 0 || a->scores.window || !a->kv.half || (a->kv.head_dim != 64 && a->kv.head_dim != 128))
        return false;
    return a->kv.head_dim == 64 ? attention_back<64>(be, b, rows) : attention_back<128>(be, b, rows);
}
