/* flash: attention over a cache of bf16 on tensor cores, heads of 64 or 128 channels. Queries and p are rounded to
 * bf16, sums are f32.
 *
 * Keys of a sequence, from position 0, in splits of SPLIT and those in steps of STEP:
 *
 *   of a step   m' = max(m, max_j s_j);  f = exp(m - m');  p_j = exp(s_j - m');  l = l f + sum p_j;  o = o f + sum_j
 *   p_j v_j of a split  its steps in order, from m = -inf, l = o = 0 of a row    its splits in order: m' = max(m, m_i);
 *   l = l exp(m - m') + l_i exp(m_i - m');  o likewise;   out = o / l
 *
 * What a row does not see is p = 0, which changes no bit (of finite values), so a row's neighbours do not count. Two
 * kernels do this same sum:
 *
 *   flash_tiles   many queries of a sequence: a block takes WIDE, a warp 16, over all splits; sums wait in `out`
 *   between splits flash_parts   few: a block takes QUERIES over one split, warps share the scores by keys and the sums
 *   by channels;
 *                 flash_join adds the splits up
 *
 * Queries of heads that share keys lie in one tile, so keys and values are read once for all of them. Prefill is
 * bound by tensor cores and by operands out of shared memory, decode by reading the cache: two steps are always
 * under way. */
#include "kernels/cuda/flash.cuh"

enum { SPLIT = 512, WIDE = 128, FEW = 32, MANY = 2 * WIDE, PITCH = STEP + 4 }; /* MANY: threads of WIDE queries */

/* Maximum of the scores so far, unscaled, and the sum of exp((s - m) scale). */
struct sum {
    float m, l;
};

INLINE float over_quad(float x, bool largest)
{
    for (int i = 1; i < 4; i *= 2) {
        float y = __shfl_xor_sync(~0u, x, i);
        x = largest ? fmaxf(x, y) : x + y;
    }
    return x;
}

/* Scores of rows g and g + 8 to p; run: of each row so far, with this lane's part of the sum; was: what sums so far
 * are worth now. seen: how many of the step's keys a row sees. scale: times log2(e). */
INLINE void soften(float (*s)[4], struct sum run[2], float was[2], const int seen[2], float scale)
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
        m = fmaxf(run[h].m, over_quad(m, true));
        float top = m == -INFINITY ? 0 : m, down = -top * scale;
        was[h] = exp2_near((run[h].m - top) * scale);
        l = run[h].l * was[h];
#pragma unroll
        for (int j = 0; j < STEP / 8; j++)
#pragma unroll
            for (int k = 0; k < 2; k++) {
                float p = exp2_near(fmaf(s[j][2 * h + k], scale, down));
                s[j][2 * h + k] = p;
                l += p;
            }
        run[h] = { m, l };
    }
}

/* Adds a split to a row's sum: weights of what was and of the split. The first is taken as it is. */
INLINE struct sum sum_add(struct sum *all, struct sum split, bool first, float scale)
{
    float m = first ? split.m : fmaxf(all->m, split.m);
    struct sum weight = { exp2_near((all->m - m) * scale), exp2_near((split.m - m) * scale) };

    if (first) *all = split;
    else *all = { m, fmaf(all->l, weight.m, split.l * weight.l) };
    return weight;
}

INLINE float weigh(float all, float split, struct sum weight, bool first)
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

template <int D> static __global__ void __launch_bounds__(MANY, 1) flash_tiles(struct attend a, int tiles)
{
    SHARED(bf16, near);
    bf16 *q = near;
    int head = (int)blockIdx.x % a.kv.heads, row = (int)threadIdx.x / 32 * 16 + lane_of() / 4, c = lane_of() % 4 * 2;
    struct tile t = a.at.tiles[tiles - 1 - (int)blockIdx.x / a.kv.heads]; /* those that see most go first */
    int n = queries_of(&t, a.group, WIDE), last = last_of(&a, &t, 0, n), pos[2];
    int mine = last_of(&a, &t, row / 16 * 16, n < row / 16 * 16 + 16 ? n : row / 16 * 16 + 16); /* of this warp */
    struct stream<D> in = {
        &a, q + WIDE *D, q + (WIDE + 2 * STEP) * D,
            (unsigned *)(q + (WIDE + 4 * STEP) * D), a.at.pages[t.row], head, last + 1, 0
    };
    struct sum run[2], all[2];
    float o[D / 8][4] = {}, scale = a.scale * LOG2E;
    unsigned x[D / 16][4];

    for (int h = 0; h < 2; h++) {
        pos[h] = row + 8 * h < n ? a.at.pos[row_of(&t, row + 8 * h, a.group)] : -1;
        run[h] = all[h] = { -INFINITY, 0 };
    }
    load_rounded<D, MANY>(q, a.q, &a, &t, WIDE, n, head);
    stream_begin<D, MANY>(&in);
#pragma unroll
    for (int k = 0; k < D / 16; k++) read_a<D>(x[k], q, spots_of<D>(), row - lane_of() / 4, k);
    for (int t0 = 0; t0 <= last; t0 += STEP) {
        const bf16 *keys = in.keys + t0 / STEP % 2 * STEP * D, *values = in.values + t0 / STEP % 2 * STEP * D;
        float s[STEP / 8][4] = {}, was[2];
        int seen[2] = { pos[0] + 1 - t0, pos[1] + 1 - t0 };
        unsigned y[4];
        stream_step<D, MANY>(&in, t0);
        if (t0 <= mine) { /* or else it would change nothing */
            struct spots at = spots_of<D>();
#pragma unroll
            for (int k = 0; k < D / 16; k++)
#pragma unroll
                for (int j = 0; j < STEP / 16; j++) {
                    read_b<D>(y, keys, at, 16 * j, k);
                    multiply_bf16(s[2 * j], x[k], y);
                    multiply_bf16(s[2 * j + 1], x[k], y + 2);
                }
            soften(s, run, was, seen, scale);
#pragma unroll
            for (int j = 0; j < D / 8; j++)
#pragma unroll
                for (int k = 0; k < 4; k++) o[j][k] *= was[k / 2];
            gather<D>(o, s, at, values);
        }
        if ((t0 + STEP) % SPLIT != 0 && t0 + STEP <= last) continue;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            struct sum split = { run[h].m, over_quad(run[h].l, false) };
            bool first = t0 < SPLIT, done = pos[h] / SPLIT == t0 / SPLIT;
            if (split.m > -INFINITY) {
                struct sum weight = sum_add(&all[h], split, first, scale);
                size_t i = query_at(&a, &t, row + 8 * h, head);
                float2 *to = (float2 *)(a.out + i * D + (size_t)c);
#pragma unroll
                for (int j = 0; j < D / 8; j++) {
                    float2 sum = { 0, 0 };
                    if (!first) sum = to[4 * j];
                    sum = { weigh(sum.x, o[j][2 * h], weight, first), weigh(sum.y, o[j][2 * h + 1], weight, first) };
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

/* Block b: part b % parts, head b / parts % K, tile b / parts / K. partial [blocks, QUERIES, D + 2], or NULL: one is
 * all. */
template <int D>
static __global__ void __launch_bounds__(THREADS, 1) flash_parts(struct attend a, int parts, float *partial)
{
    SHARED(bf16, near);
    constexpr int MINE = D / 4 / 16; /* pairs of b's that are a warp's channels */
    bf16 *q = near;
    float *scores = (float *)(q + (QUERIES + 4 * STEP) * D);
    int part = (int)blockIdx.x % parts, head = (int)blockIdx.x / parts % a.kv.heads, warp = (int)threadIdx.x / 32;
    struct tile t = a.at.tiles[(int)blockIdx.x / parts / a.kv.heads];
    int g = lane_of() / 4, c = lane_of() % 4 * 2, n = queries_of(&t, a.group, QUERIES), last = last_of(&a, &t, 0, n),
        pos[2];
    int from = part * SPLIT, end = last + 1 < from + SPLIT ? last + 1 : from + SPLIT;
    struct stream<D> in = {
        &a, q + QUERIES *D, q + (QUERIES + 2 * STEP) * D,
            (unsigned *)(scores + QUERIES * PITCH), a.at.pages[t.row], head, end, from
    };
    struct sum run[2] = { { -INFINITY, 0 }, { -INFINITY, 0 } };
    float o[2 * MINE][4] = {}, scale = a.scale * LOG2E;

    if (from > last) return;
    for (int h = 0; h < 2; h++) pos[h] = g + 8 * h < n ? a.at.pos[row_of(&t, g + 8 * h, a.group)] : -1;
    load_rounded<D, THREADS>(q, a.q, &a, &t, QUERIES, n, head);
    stream_begin<D, THREADS>(&in);
    for (int t0 = from; t0 < end; t0 += STEP) {
        const bf16 *keys = in.keys + t0 / STEP % 2 * STEP * D, *values = in.values + t0 / STEP % 2 * STEP * D;
        float mine[2][4] = {}, s[STEP / 8][4], was[2];
        int seen[2] = { pos[0] + 1 - t0, pos[1] + 1 - t0 };
        stream_step<D, THREADS>(&in, t0);
        struct spots at = spots_of<D>();
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            unsigned x[4], y[4];
            read_a<D>(x, q, at, 0, k);
            read_b<D>(y, keys, at, 16 * warp, k);
            multiply_bf16(mine[0], x, y);
            multiply_bf16(mine[1], x, y + 2);
        }
        for (int j = 0; j < 2; j++)
            for (int k = 0; k < 4; k++) scores[(g + k / 2 * 8) * PITCH + 16 * warp + 8 * j + c + k % 2] = mine[j][k];
        __syncthreads();
#pragma unroll
        for (int j = 0; j < STEP / 8; j++)
#pragma unroll
            for (int k = 0; k < 4; k++) s[j][k] = scores[(g + k / 2 * 8) * PITCH + 8 * j + c + k % 2];
        soften(s, run, was, seen, scale);
#pragma unroll
        for (int j = 0; j < 2 * MINE; j++)
#pragma unroll
            for (int k = 0; k < 4; k++) o[j][k] *= was[k / 2];
#pragma unroll
        for (int k = 0; k < STEP / 16; k++) {
            unsigned x[4], y[4];
            round_a(x, s, k);
#pragma unroll
            for (int j = 0; j < MINE; j++) {
                read_b_turned<D>(y, values, at, 16 * k, MINE * warp + j);
                multiply_bf16(o[2 * j], x, y);
                multiply_bf16(o[2 * j + 1], x, y + 2);
            }
        }
    }
    for (int h = 0; h < 2; h++) {
        int i = g + 8 * h;
        struct sum all = { run[h].m, over_quad(run[h].l, false) };
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

/* Puts the parts together: a block a tile and head, a thread a channel of a query. */
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
            struct sum weight = sum_add(&all, split, k == 0, scale);
            o = weigh(o, from[c], weight, k == 0);
        }
        size_t at = query_at(&a, &t, i, head);
        a.out[at * D + (size_t)c] = o / all.l;
        if (a.lse && c == 0) a.lse[at] = lse_of(all, a.scale);
    }
}

template <int D> static void attention(struct wz_backend *be, struct attend a, const struct wz_rows *rows)
{
    size_t most = (size_t)(WIDE + 4 * STEP) * D * sizeof(bf16) + 2 * STEP * sizeof(int);
    size_t some =
        (size_t)(QUERIES + 4 * STEP) * D * sizeof(bf16) + QUERIES * PITCH * sizeof(float) + 2 * STEP * sizeof(int);
    int count[2], last = 0;

    a.at.tiles = wz_cuda_tiles(be, TILES, rows, a.group, WIDE, FEW, count);
    for (int i = 0; i < rows->n; i++) last = rows->pos[i] > last ? rows->pos[i] : last;
    CHECK(cudaFuncSetAttribute(flash_tiles<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)most));
    CHECK(cudaFuncSetAttribute(flash_parts<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)some));
    LAUNCH(be, flash_tiles<D>, (size_t)count[0] * (size_t)a.kv.heads, MANY, most, a, count[0]);
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
    if (!a->kv.half || (a->kv.head_dim != 64 && a->kv.head_dim != 128)) return false;
    if (a->kv.head_dim == 64) attention<64>(be, *a, rows);
    else attention<128>(be, *a, rows);
    return true;
}
