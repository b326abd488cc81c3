/* flash: attention over a bf16 cache on tensor cores (FlashAttention-2 with split keys), heads of 64 or 128 channels.
 * Queries and p are rounded to bf16, sums are f32.
 *
 * Keys of a sequence, from position 0, in splits of SPLIT, and each split in steps of STEP:
 *
 *   step       m' = max(m, max_j s_j);  f = exp(m - m');  p_j = exp(s_j - m');  l = l f + sum p_j;
 *              o = o f + sum_j p_j v_j
 *   split      its steps in order, from m = -inf, l = o = 0
 *   query      its splits in order: m' = max(m, m_i);  l = l exp(m - m') + l_i exp(m_i - m');  o likewise;
 *              out = o / l
 *
 * Keys masked for a query have p = 0, which changes no bit (of finite values), so the other queries of a tile do not
 * matter. Two kernels compute this same sum:
 *
 *   flash_tiles   many queries of a sequence: a block has WIDE queries, a warp 16, over all splits; partial sums are
 *                 kept in `out` between splits
 *   flash_parts   few queries: a block has QUERIES over one split; the scores are divided among warps by keys, the
 *                 sums by channels; flash_join merges the splits
 *
 * Queries of heads that share keys are in one tile, so keys and values are read once for all of them. Prefill is bound
 * by tensor cores and by loading operands from shared memory, decode by reading the cache: while one step is computed
 * the next is loaded. */
#include "kernels/cuda/flash.cuh"

/* FEW: most queries that flash_parts handles; THREADS_WIDE: threads of a block of WIDE queries; PITCH: floats between
 * rows of scores in shared memory, padded against bank conflicts. */
enum { SPLIT = 512, WIDE = 128, FEW = 32, THREADS_WIDE = 2 * WIDE, PITCH = STEP + 4 };

/* Shared memory of both kernels, in bytes: queries bf16 [queries, D] | keys bf16 [2, STEP, D] | values bf16 [2, STEP,
 * D] | scores f32 [QUERIES, PITCH] (flash_parts only) | slots u32 [2, STEP]. Each begins at 16 bytes. */
template <int D, int QUERIES_> struct flash_smem {
    static constexpr int QUERY_BYTES = QUERIES_ * D * 2, KEY_BYTES = 2 * STEP * D * 2, VALUE_BYTES = KEY_BYTES;
    static constexpr int SCORE_BYTES = QUERIES_ == QUERIES ? QUERIES * PITCH * 4 : 0, SLOT_BYTES = 2 * STEP * 4;
    static constexpr int KEYS_AT = QUERY_BYTES, VALUES_AT = KEYS_AT + KEY_BYTES, SCORES_AT = VALUES_AT + VALUE_BYTES;
    static constexpr int SLOTS_AT = SCORES_AT + SCORE_BYTES, SIZE = SLOTS_AT + SLOT_BYTES;
    static_assert(KEYS_AT % 16 == 0 && VALUES_AT % 16 == 0 && SCORES_AT % 16 == 0 && SLOTS_AT % 16 == 0, "alignment");
};

/* Online softmax: maximum of the scores so far, unscaled, and the sum of exp((s - m) scale). */
struct sum {
    float m, l;
};

/* Sum or maximum over the four lanes that share a row of an mma result. */
INLINE float quad_reduce(float x, bool largest)
{
    for (int i = 1; i < 4; i *= 2) {
        float y = __shfl_xor_sync(~0u, x, i);
        x = largest ? fmaxf(x, y) : x + y;
    }
    return x;
}

/* Turns the scores of matrix rows g and g + 8 into p. run: state of each row, with this lane's share of l; rescale: the
 * factor for earlier sums of each row; seen: number of the step's keys that a row attends to; scale: times log2(e). */
INLINE void online_softmax(float (*s)[4], struct sum run[2], float rescale[2], const int seen[2], float scale)
{
    int t = lane_of() % 4 * 2;

    if (seen[0] < STEP || seen[1] < STEP) {
#pragma unroll
        for (int j = 0; j < STEP / 8; j++)
#pragma unroll
            for (int k = 0; k < 4; k++)
                if (8 * j + t + k % 2 >= seen[k / 2]) s[j][k] = -INFINITY;
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float m = -INFINITY, l;
#pragma unroll
        for (int j = 0; j < STEP / 8; j++)
#pragma unroll
            for (int k = 0; k < 2; k++) m = fmaxf(m, s[j][2 * h + k]);
        m = fmaxf(run[h].m, quad_reduce(m, true));
        float top = m == -INFINITY ? 0 : m, down = -top * scale;
        rescale[h] = exp2_approx((run[h].m - top) * scale);
        l = run[h].l * rescale[h];
#pragma unroll
        for (int j = 0; j < STEP / 8; j++)
#pragma unroll
            for (int k = 0; k < 2; k++) {
                float p = exp2_approx(fmaf(s[j][2 * h + k], scale, down));
                s[j][2 * h + k] = p;
                l += p;
            }
        run[h] = { m, l };
    }
}

/* Merges a split into a query's state; returns the weights of the earlier sums (m) and of the split (l). The first
 * split is copied. */
INLINE struct sum merge_split(struct sum *all, struct sum split, bool first, float scale)
{
    float m = first ? split.m : fmaxf(all->m, split.m);
    struct sum weight = { exp2_approx((all->m - m) * scale), exp2_approx((split.m - m) * scale) };

    if (first) *all = split;
    else *all = { m, fmaf(all->l, weight.m, split.l * weight.l) };
    return weight;
}

INLINE float merge_output(float all, float split, struct sum weight, bool first)
{
    return first ? split : fmaf(all, weight.m, split * weight.l);
}

INLINE float lse_of(struct sum all, float scale) { return (float)((double)all.m * (double)scale + log((double)all.l)); }

/* The last position of a tile's queries [i, n), or -1. */
INLINE int last_of(const struct attend *a, const struct tile *t, int i, int n)
{
    int last = -1;

    for (i += lane_of(); i < n; i += 32) {
        int pos = a->at.pos[row_of(t, i, a->group)];
        last = pos > last ? pos : last;
    }
    for (int i = 16; i > 0; i /= 2) {
        int other = __shfl_xor_sync(~0u, last, i);
        last = other > last ? other : last;
    }
    return last;
}

template <int D> static __global__ void __launch_bounds__(THREADS_WIDE, 1) flash_tiles(struct attend a, int tiles)
{
    using smem_at = flash_smem<D, WIDE>;
    SHARED(unsigned char, smem);
    bf16 *q = (bf16 *)smem;
    int head = (int)blockIdx.x % a.kv.heads, row = (int)threadIdx.x / 32 * 16 + lane_of() / 4, c = lane_of() % 4 * 2;
    struct tile t =
        a.at.tiles[tiles - 1 - (int)blockIdx.x / a.kv.heads]; /* longest first: the last positions have most keys */
    int n = queries_of(&t, a.group, WIDE), last = last_of(&a, &t, 0, n), pos[2];
    int mine = last_of(&a, &t, row / 16 * 16, n < row / 16 * 16 + 16 ? n : row / 16 * 16 + 16); /* of this warp */
    struct kv_stream<D> in = {
        &a, (bf16 *)(smem + smem_at::KEYS_AT), (bf16 *)(smem + smem_at::VALUES_AT),
            (unsigned *)(smem + smem_at::SLOTS_AT), a.at.pages[t.row], head, last + 1, 0
    };
    struct sum run[2], all[2];
    float o[D / 8][4] = {}, scale = a.scale * LOG2E;
    unsigned x[D / 16][4];

    for (int h = 0; h < 2; h++) {
        pos[h] = row + 8 * h < n ? a.at.pos[row_of(&t, row + 8 * h, a.group)] : -1;
        run[h] = all[h] = { -INFINITY, 0 };
    }
    load_rounded<D, THREADS_WIDE>(q, a.q, &a, &t, WIDE, n, head);
    kv_stream_begin<D, THREADS_WIDE>(&in);
#pragma unroll
    for (int k = 0; k < D / 16; k++) read_a<D>(x[k], q, operand_offsets_of<D>(), row - lane_of() / 4, k);
    for (int t0 = 0; t0 <= last; t0 += STEP) {
        const bf16 *keys = in.keys + t0 / STEP % 2 * STEP * D, *values = in.values + t0 / STEP % 2 * STEP * D;
        float s[STEP / 8][4] = {}, rescale[2];
        int seen[2] = { pos[0] + 1 - t0, pos[1] + 1 - t0 };
        unsigned y[4];
        kv_stream_next<D, THREADS_WIDE>(&in, t0);
        if (t0 <= mine) { /* later steps are masked for all queries of this warp */
            struct operand_offsets at = operand_offsets_of<D>();
#pragma unroll
            for (int k = 0; k < D / 16; k++)
#pragma unroll
                for (int j = 0; j < STEP / 16; j++) {
                    read_b<D>(y, keys, at, 16 * j, k);
                    mma_bf16(s[2 * j], x[k], y);
                    mma_bf16(s[2 * j + 1], x[k], y + 2);
                }
            online_softmax(s, run, rescale, seen, scale);
#pragma unroll
            for (int j = 0; j < D / 8; j++)
#pragma unroll
                for (int k = 0; k < 4; k++) o[j][k] *= rescale[k / 2];
            multiply_add<D>(o, s, at, values);
        }
        if ((t0 + STEP) % SPLIT != 0 && t0 + STEP <= last) continue;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            struct sum split = { run[h].m, quad_reduce(run[h].l, false) };
            bool first = t0 < SPLIT, done = pos[h] / SPLIT == t0 / SPLIT;
            if (split.m > -INFINITY) {
                struct sum weight = merge_split(&all[h], split, first, scale);
                size_t i = query_at(&a, &t, row + 8 * h, head);
                float2 *to = (float2 *)(a.out + i * D + (size_t)c);
#pragma unroll
                for (int j = 0; j < D / 8; j++) {
                    float2 sum = { 0, 0 };
                    if (!first) sum = to[4 * j];
                    sum = { merge_output(sum.x, o[j][2 * h], weight, first),
                            merge_output(sum.y, o[j][2 * h + 1], weight, first) };
                    if (done) sum = { sum.x / all[h].l, sum.y / all[h].l };
                    to[4 * j] = sum;
                }
                if (done && a.lse && c == 0) a.lse[i] = lse_of(all[h], a.scale);
            }
            run[h] = { -INFINITY, 0 };
#pragma unroll
            for (int j = 0; j < D / 8; j++) o[j][2 * h] = o[j][2 * h + 1] = 0;
        }
    }
}

/* Block b: split b % parts, kv head b / parts % K, tile b / parts / K. partial [blocks, QUERIES, D + 2]: o, m and l of
 * each split; NULL: there is only one split, and `out` is written. */
template <int D>
static __global__ void __launch_bounds__(THREADS, 1) flash_parts(struct attend a, int parts, float *partial)
{
    using smem_at = flash_smem<D, QUERIES>;
    SHARED(unsigned char, smem);
    constexpr int MINE = D / 4 / 16; /* groups of 16 channels of a warp */
    bf16 *q = (bf16 *)smem;
    float *scores = (float *)(smem + smem_at::SCORES_AT);
    int part = (int)blockIdx.x % parts, head = (int)blockIdx.x / parts % a.kv.heads, warp = (int)threadIdx.x / 32;
    struct tile t = a.at.tiles[(int)blockIdx.x / parts / a.kv.heads];
    int g = lane_of() / 4, c = lane_of() % 4 * 2, n = queries_of(&t, a.group, QUERIES), last = last_of(&a, &t, 0, n),
        pos[2];
    int from = part * SPLIT, end = last + 1 < from + SPLIT ? last + 1 : from + SPLIT;
    struct kv_stream<D> in = {
        &a, (bf16 *)(smem + smem_at::KEYS_AT), (bf16 *)(smem + smem_at::VALUES_AT),
            (unsigned *)(smem + smem_at::SLOTS_AT), a.at.pages[t.row], head, end, from
    };
    struct sum run[2] = { { -INFINITY, 0 }, { -INFINITY, 0 } };
    float o[2 * MINE][4] = {}, scale = a.scale * LOG2E;

    if (from > last) return;
    for (int h = 0; h < 2; h++) pos[h] = g + 8 * h < n ? a.at.pos[row_of(&t, g + 8 * h, a.group)] : -1;
    load_rounded<D, THREADS>(q, a.q, &a, &t, QUERIES, n, head);
    kv_stream_begin<D, THREADS>(&in);
    for (int t0 = from; t0 < end; t0 += STEP) {
        const bf16 *keys = in.keys + t0 / STEP % 2 * STEP * D, *values = in.values + t0 / STEP % 2 * STEP * D;
        float mine[2][4] = {}, s[STEP / 8][4], rescale[2];
        int seen[2] = { pos[0] + 1 - t0, pos[1] + 1 - t0 };
        kv_stream_next<D, THREADS>(&in, t0);
        struct operand_offsets at = operand_offsets_of<D>();
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            unsigned x[4], y[4];
            read_a<D>(x, q, at, 0, k);
            read_b<D>(y, keys, at, 16 * warp, k);
            mma_bf16(mine[0], x, y);
            mma_bf16(mine[1], x, y + 2);
        }
        for (int j = 0; j < 2; j++)
            for (int k = 0; k < 4; k++) scores[(g + k / 2 * 8) * PITCH + 16 * warp + 8 * j + c + k % 2] = mine[j][k];
        __syncthreads();
#pragma unroll
        for (int j = 0; j < STEP / 8; j++)
#pragma unroll
            for (int k = 0; k < 4; k++) s[j][k] = scores[(g + k / 2 * 8) * PITCH + 8 * j + c + k % 2];
        online_softmax(s, run, rescale, seen, scale);
#pragma unroll
        for (int j = 0; j < 2 * MINE; j++)
#pragma unroll
            for (int k = 0; k < 4; k++) o[j][k] *= rescale[k / 2];
#pragma unroll
        for (int k = 0; k < STEP / 16; k++) {
            unsigned x[4], y[4];
            round_a(x, s, k);
#pragma unroll
            for (int j = 0; j < MINE; j++) {
                read_b_transposed<D>(y, values, at, 16 * k, MINE * warp + j);
                mma_bf16(o[2 * j], x, y);
                mma_bf16(o[2 * j + 1], x, y + 2);
            }
        }
    }
    for (int h = 0; h < 2; h++) {
        int i = g + 8 * h;
        struct sum all = { run[h].m, quad_reduce(run[h].l, false) };
        if (i >= n) continue;
        size_t at = query_at(&a, &t, i, head);
        float *row = partial ? partial + ((size_t)blockIdx.x * QUERIES + (size_t)i) * (D + 2) : a.out + at * D;
        for (int j = 0; j < 2 * MINE; j++) {
            float2 x = { o[j][2 * h], o[j][2 * h + 1] };
            if (!partial) x = { x.x / all.l, x.y / all.l };
            *(float2 *)(row + 16 * MINE * warp + 8 * j + c) = x;
        }
        if (warp > 0 || c > 0) continue;
        if (partial) *(float2 *)(row + D) = { all.m, all.l };
        else if (a.lse) a.lse[at] = lse_of(all, a.scale);
    }
}

/* Merges the splits: a block per tile and kv head, a thread per channel of a query. */
template <int D>
static __global__ void __launch_bounds__(THREADS, 1) flash_join(struct attend a, int parts, const float *partial)
{
    int head = (int)blockIdx.x % a.kv.heads;
    struct tile t = a.at.tiles[(int)blockIdx.x / a.kv.heads];
    int n = queries_of(&t, a.group, QUERIES);
    float scale = a.scale * LOG2E;

    for (int e = (int)threadIdx.x; e < n * D; e += THREADS) {
        int i = e / D, c = e % D, splits = a.at.pos[row_of(&t, i, a.group)] / SPLIT + 1;
        const float *from = partial + ((size_t)blockIdx.x * (size_t)parts * QUERIES + (size_t)i) * (D + 2);
        struct sum all = { -INFINITY, 0 };
        float o = 0;
        for (int k = 0; k < splits; k++, from += QUERIES * (D + 2)) {
            struct sum split = { from[D], from[D + 1] };
            struct sum weight = merge_split(&all, split, k == 0, scale);
            o = merge_output(o, from[c], weight, k == 0);
        }
        size_t at = query_at(&a, &t, i, head);
        a.out[at * D + (size_t)c] = o / all.l;
        if (a.lse && c == 0) a.lse[at] = lse_of(all, a.scale);
    }
}

template <int D> static void attention(struct wz_backend *be, struct attend a, const struct wz_rows *rows)
{
    constexpr int most = flash_smem<D, WIDE>::SIZE, some = flash_smem<D, QUERIES>::SIZE;
    int count[2], last = 0;

    a.at.tiles = wz_cuda_tiles(be, TILES, rows, a.group, WIDE, FEW, count);
    for (int i = 0; i < rows->n; i++) last = rows->pos[i] > last ? rows->pos[i] : last;
    CHECK(cudaFuncSetAttribute(flash_tiles<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
    CHECK(cudaFuncSetAttribute(flash_parts<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, some));
    LAUNCH(be, flash_tiles<D>, (size_t)count[0] * (size_t)a.kv.heads, THREADS_WIDE, most, a, count[0]);
    a.at.tiles += count[0];
    size_t blocks = (size_t)count[1] * (size_t)a.kv.heads, parts = (size_t)(last / SPLIT + 1);
    float *partial = NULL;
    if (parts > 1)
        partial = (float *)wz_cuda_scratch(be, PARTIAL, blocks * parts * QUERIES * (D + 2) * sizeof *partial);
    LAUNCH(be, flash_parts<D>, blocks * parts, THREADS, some, a, (int)parts, partial);
    if (partial) LAUNCH(be, flash_join<D>, blocks, THREADS, 0, a, (int)parts, partial);
}

bool wz_cuda_flash(struct wz_backend *be, const struct attend *a, const struct wz_rows *rows)
{
    if (a->scores.cap > 0 || a->scores.window || !a->kv.half || (a->kv.head_dim != 64 && a->kv.head_dim != 128))
        return false;
    if (a->kv.head_dim == 64) attention<64>(be, *a, rows);
    else attention<128>(be, *a, rows);
    return true;
}
