/* head: everything that is read off logits, in tiles of at most TILE rows, so that [N, V] never exists.
 *
 *   per row   max = max_v x_v,  sum = sum_v exp(x_v - max),  mean = sum_v exp(x_v - max) (x_v - max),   x = z / t
 *             lse = max + log sum,  logp = x_target - lse,  entropy = log sum - mean / sum
 *
 *   block     one row, BLOCK threads: thread i adds up tokens i, i + BLOCK, .. in double, then fixed trees
 *
 * One kernel reads log-probabilities for scoring and for sampling, so they have the same bits.
 *
 * A token is picked as ref does: rank by logit (larger first, of equals the lower id), keep a prefix for top_k, of that a prefix
 * for top_p, drop what min_p drops, and walk up the ids. Rank is a key whose smallest is best; a prefix is "key <= worst", found
 * by 8 bits at a time from histograms. Probabilities are counted in units of 2^-44 of the best one's: integers, whose sums do not
 * depend on the order of atomic additions. Bound by reading z some ten times where there are filters, three times where not. */
#include "kernels/cuda/cuda.cuh"

enum { BLOCK = 256, WARPS = BLOCK / 32, TILE = 128, BINS = 256, EACH = 4 };

typedef unsigned long long word;

static const float UNIT = 17592186044416.f;            /* 2^44: 2^19 tokens fit into 63 bits */

struct stat { double max, sum, mean; };

/* One row's task, on the device. */
struct pass {
    const float *z;                                    /* [m, V] */
    int vocab;
    const float *scale;                                /* [m] 1 / t */
    struct stat *stats;                                /* [m] */
};

/* ---- sums over a row ------------------------------------------------------------------------------------------- */

static __global__ void __launch_bounds__(BLOCK) row_stats(struct pass p)
{
    SHARED(double, near);
    const float *z = p.z + (size_t)blockIdx.x * (size_t)p.vocab;
    float scale = p.scale[blockIdx.x], top = -INFINITY;
    double sum = 0, mean = 0;
    int t = (int)threadIdx.x;

    for (int v = t; v < p.vocab; v += BLOCK) top = fmaxf(top, z[v] * scale);
    top = warp_max(top);
    if (t % 32 == 0) near[t / 32] = (double)top;
    __syncthreads();
    for (int i = 0; i < WARPS; i++) top = fmaxf(top, (float)near[i]);
    __syncthreads();
    for (int v = t; v < p.vocab; v += BLOCK) {
        float x = z[v] * scale - top, e = expf(x);
        sum += (double)e;
        if (e > 0) mean += (double)e * (double)x;      /* not 0 times -inf */
    }
    sum = warp_sum(sum);
    mean = warp_sum(mean);
    if (t % 32 == 0) {
        near[t / 32] = sum;
        near[WARPS + t / 32] = mean;
    }
    __syncthreads();
    if (t > 0) return;
    for (int i = 1; i < WARPS; i++) {
        sum += near[i];
        mean += near[WARPS + i];
    }
    p.stats[blockIdx.x] = (struct stat){ (double)top, sum, mean };
}

/* A thread a row. out [3, m]: logp, lse, entropy. */
static __global__ void row_scores(struct pass p, const int *targets, float *out, int m)
{
    int i = (int)(blockIdx.x * BLOCK + threadIdx.x);

    if (i >= m) return;
    struct stat s = p.stats[i];
    double log_sum = log(s.sum);
    float x = p.z[(size_t)i * (size_t)p.vocab + (size_t)targets[i]] * p.scale[i];
    out[i] = (float)((double)x - (s.max + log_sum));
    out[m + i] = (float)(s.max + log_sum);
    out[2 * m + i] = (float)(log_sum - s.mean / s.sum);
}

/* ---- picking --------------------------------------------------------------------------------------------------- */

INLINE word key_of(float z, int id)
{
    unsigned u = __float_as_uint(z + 0.f);             /* -0 is 0 */

    return (word)(u >> 31 ? u : u ^ 0x7fffffff) << 32 | (unsigned)id;
}

/* A row being picked from: what is kept is key <= worst and mass >= least. */
struct choice { const float *z; int vocab; float scale, max; word worst, least; };

INLINE word mass_of(const struct choice *c, int v)
{
    float e = expf(c->z[v] * c->scale - c->max);

    return e > 0 ? (word)(e * UNIT) : 0;               /* also where it is NaN */
}

INLINE word kept(const struct choice *c, int v)
{
    word mass = mass_of(c, v);

    return mass >= c->least && key_of(c->z[v], v) <= c->worst ? mass : 0;
}

/* The sum over the block, in every thread. bins: shared. */
static __device__ word block_total(word *bins, word mine)
{
    if (threadIdx.x == 0) bins[0] = 0;
    __syncthreads();
    mine = warp_sum(mine);
    if (threadIdx.x % 32 == 0) atomicAdd(&bins[0], mine);
    __syncthreads();
    mine = bins[0];
    __syncthreads();
    return mine;
}

static __device__ word total_of(const struct choice *c, word *bins)
{
    word sum = 0;

    for (int v = (int)threadIdx.x; v < c->vocab; v += BLOCK) sum += kept(c, v);
    return block_total(bins, sum);
}

/* The smallest key such that keys up to it (and up to c->worst) weigh at least `want`; by count, each weighs 1. */
static __device__ word prefix_end(const struct choice *c, word *bins, word want, bool by_count)
{
    word found = 0, done = 0;

    for (int shift = 56; shift >= 0; shift -= 8) {
        if (shift == 24 && c->vocab <= 1 << 24) continue;      /* ids have no such bits */
        bins[threadIdx.x] = 0;
        __syncthreads();
        for (int v = (int)threadIdx.x; v < c->vocab; v += BLOCK) {
            word key = key_of(c->z[v], v), above = shift == 56 ? 0 : key >> (shift + 8) ^ found >> (shift + 8);
            if (above == 0 && key <= c->worst) atomicAdd(&bins[key >> shift & 255], by_count ? (word)1 : mass_of(c, v));
        }
        __syncthreads();
        int bin = 0;
        word sum = done;
        while (bin < BINS - 1 && sum + bins[bin] < want) sum += bins[bin++];
        found |= (word)bin << shift;
        done = sum;
        __syncthreads();
    }
    return found;
}

/* The first id at which the running sum of what is kept passes `left`; all threads come, thread 0 knows. */
static __device__ int walk(const struct choice *c, word *bins, word left)
{
    int from = 0, id = 0;

    for (; from < c->vocab; from += BLOCK * EACH) {
        word mine = 0;
        for (int k = 0; k < EACH; k++) {
            int v = from + (int)threadIdx.x * EACH + k;
            if (v < c->vocab) mine += kept(c, v);
        }
        word sum = block_total(bins, mine);
        if (sum > left) {
            bins[threadIdx.x] = mine;
            break;
        }
        left -= sum;
    }
    __syncthreads();
    if (from >= c->vocab || threadIdx.x > 0) return 0;
    for (id = from; bins[(id - from) / EACH] <= left; id += EACH) left -= bins[(id - from) / EACH];
    for (word mass; (mass = kept(c, id)) <= left; id++) left -= mass;
    return id;
}

static __global__ void __launch_bounds__(BLOCK) row_picks(struct pass p, const struct wz_pick *picks, int *token)
{
    SHARED(word, bins);
    struct wz_pick pick = picks[blockIdx.x];
    struct choice c = { p.z + (size_t)blockIdx.x * (size_t)p.vocab, p.vocab, p.scale[blockIdx.x],
                        (float)p.stats[blockIdx.x].max, ~(word)0, 0 };
    word best = ~(word)0, total;

    for (int v = (int)threadIdx.x; v < c.vocab; v += BLOCK) {
        word key = key_of(c.z[v], v);
        best = key < best ? key : best;
    }
    if (threadIdx.x == 0) bins[0] = ~(word)0;
    __syncthreads();
    atomicMin(&bins[0], best);
    __syncthreads();
    best = bins[0];
    __syncthreads();
    if (pick.temperature > 0) {
        if (pick.top_k > 0 && pick.top_k < c.vocab) c.worst = prefix_end(&c, bins, (word)pick.top_k, true);
        if (pick.top_p < 1) {
            word want = (word)ceil((double)pick.top_p * (double)total_of(&c, bins));
            c.worst = prefix_end(&c, bins, want > 0 ? want : 1, false);
        }
        c.least = (word)((double)fminf(pick.min_p, 1.f) * (double)UNIT);
        total = total_of(&c, bins);
        word left = (word)(pick.u * (double)total);
        int id = total > 0 ? walk(&c, bins, left < total ? left : total - 1) : (int)(best & INT32_MAX);
        if (threadIdx.x == 0) token[blockIdx.x] = id;
    } else if (threadIdx.x == 0) {
        token[blockIdx.x] = (int)(best & INT32_MAX);
    }
}

/* ---- the slots ------------------------------------------------------------------------------------------------- */

/* A block a row: out[i, :] = x[row[i], :], or back: out[row[i], :] = x[i, :]. */
static __global__ void move_rows(float *out, const float *x, const int *row, int c, bool back)
{
    size_t i = blockIdx.x, r = (size_t)row[i], to = (back ? r : i) * (size_t)c, from = (back ? i : r) * (size_t)c;

    for (size_t j = threadIdx.x; j < (size_t)c; j += BLOCK) out[to + j] = x[from + j];
}

/* The next rows that have a target, at most TILE of them from *at on; their data on the device. */
struct rows { int m, row[TILE], target[TILE]; const int *d_row, *d_target; const float *d_values; };

static void rows_next(struct rows *r, struct wz_backend *be, const int *targets, const float *d_logp, const float *lse,
                      float temperature, int n, int *at)
{
    float values[3 * TILE];

    for (r->m = 0; *at < n && r->m < TILE; ++*at) {
        if (targets[*at] < 0 || (d_logp && d_logp[*at] == 0)) continue;
        values[r->m] = 1 / temperature;
        values[TILE + r->m] = lse ? lse[*at] : 0;
        values[2 * TILE + r->m] = d_logp ? d_logp[*at] / temperature : 0;
        r->target[r->m] = targets[*at];
        r->row[r->m++] = *at;
    }
    r->d_row = (const int *)wz_cuda_mirror(be, IDS, r->row, (size_t)r->m * sizeof(int));
    r->d_target = (const int *)wz_cuda_mirror(be, TARGETS, r->target, (size_t)r->m * sizeof(int));
    for (int i = r->m; i < TILE; i++) values[i] = values[TILE + i] = values[2 * TILE + i] = 0;
    r->d_values = (const float *)wz_cuda_mirror(be, VALUES, values, sizeof values);
}

static void logits(struct wz_backend *be, float *z, const float *x, const struct wz_weight *w, int m)
{
    be->ops.matmul(be, z, x, w, m, false);
}

static float *room_for_logits(struct wz_backend *be, const struct wz_weight *w, int n)
{
    return (float *)wz_cuda_scratch(be, LOGITS, (size_t)(n < TILE ? n : TILE) * (size_t)w->out * sizeof(float));
}

/* Room for a tile: statistics, scores and tokens. */
struct small { struct stat stats[TILE]; float scores[3 * TILE]; int token[TILE]; struct wz_pick picks[TILE]; };

static void stats(struct wz_backend *be, const struct pass *p, int m)
{
    LAUNCH(be, row_stats, m, BLOCK, 2 * WARPS * sizeof(double), *p);
}

static void head_logprob(struct wz_backend *be, float *logp, float *lse, float *entropy, const float *x, const struct wz_weight *w,
                         const int *targets, float temperature, int n)
{
    float *z = room_for_logits(be, w, n), *near = (float *)wz_cuda_scratch(be, ROWS, TILE * (size_t)w->in * sizeof *near);
    struct small *room = (struct small *)wz_cuda_scratch(be, SMALL, sizeof *room);
    float got[3 * TILE];
    struct rows r;

    for (int i = 0; i < n; i++) {
        logp[i] = lse[i] = 0;
        if (entropy) entropy[i] = 0;
    }
    for (int at = 0; at < n;) {
        rows_next(&r, be, targets, NULL, NULL, temperature, n, &at);
        struct pass p = { z, w->out, r.d_values, room->stats };
        LAUNCH(be, move_rows, r.m, BLOCK, 0, near, x, r.d_row, w->in, false);
        logits(be, z, near, w, r.m);
        stats(be, &p, r.m);
        LAUNCH(be, row_scores, (r.m + BLOCK - 1) / BLOCK, BLOCK, 0, p, r.d_target, room->scores, r.m);
        wz_cuda_download(be, got, room->scores, 3 * (size_t)r.m * sizeof *got);
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
    float *z = room_for_logits(be, w, n), scale[TILE];
    struct small *room = (struct small *)wz_cuda_scratch(be, SMALL, sizeof *room);

    for (int at = 0; at < n; at += TILE) {
        int m = n - at < TILE ? n - at : TILE;
        for (int i = 0; i < m; i++) scale[i] = picks[at + i].temperature > 0 ? 1 / picks[at + i].temperature : 1;
        struct pass p = { z, w->out, (const float *)wz_cuda_mirror(be, VALUES, scale, (size_t)m * sizeof *scale), room->stats };
        be->ops.upload(be, room->picks, picks + at, (size_t)m * sizeof *picks);
        logits(be, z, x + (size_t)at * (size_t)w->in, w, m);
        stats(be, &p, m);
        LAUNCH(be, row_picks, m, BLOCK, BINS * sizeof(word), p, room->picks, room->token);
        LAUNCH(be, row_scores, (m + BLOCK - 1) / BLOCK, BLOCK, 0, p, room->token, room->scores, m);
        wz_cuda_download(be, token + at, room->token, (size_t)m * sizeof *token);
        wz_cuda_download(be, logp + at, room->scores, (size_t)m * sizeof *logp);
    }
}

static void head_logits(struct wz_backend *be, float *out, const float *x, const struct wz_weight *w, int n)
{
    float *z = room_for_logits(be, w, n);

    for (int at = 0; at < n; at += TILE) {
        int m = n - at < TILE ? n - at : TILE;
        logits(be, z, x + (size_t)at * (size_t)w->in, w, m);
        wz_cuda_download(be, out + (size_t)at * (size_t)w->out, z, (size_t)m * (size_t)w->out * sizeof *out);
    }
}

/* z becomes g; a thread an element. values [3, TILE]: 1 / t, lse, d_logp / t. */
static __global__ void row_grads(float *z, const float *values, const int *targets, int vocab, size_t n)
{
    size_t e = (size_t)blockIdx.x * BLOCK + threadIdx.x, i = e / (size_t)vocab;

    if (e >= n) return;
    float p = expf(z[e] * values[i] - values[TILE + i]), one = e % (size_t)vocab == (size_t)targets[i];
    z[e] = values[2 * TILE + i] * (one - p);
}

static void head_back(struct wz_backend *be, float *d_x, float *d_w, const float *x, const struct wz_weight *w, const int *targets,
                      const float *d_logp, const float *lse, float temperature, int n)
{
    size_t c = (size_t)w->in, vocab = (size_t)w->out;
    float *near = (float *)wz_cuda_scratch(be, ROWS, 2 * TILE * c * sizeof *near), *d_near = near + TILE * c;
    float *z = room_for_logits(be, w, n);
    struct rows r;

    be->ops.zero(be, d_x, (size_t)n * c * sizeof *d_x);
    for (int at = 0; at < n;) {
        rows_next(&r, be, targets, d_logp, lse, temperature, n, &at);
        LAUNCH(be, move_rows, r.m, BLOCK, 0, near, x, r.d_row, w->in, false);
        logits(be, z, near, w, r.m);
        size_t all = (size_t)r.m * vocab;
        LAUNCH(be, row_grads, (all + BLOCK - 1) / BLOCK, BLOCK, 0, z, r.d_values, r.d_target, w->out, all);
        be->ops.matmul_back_x(be, d_near, z, w, r.m, false);
        if (d_w) be->ops.matmul_back_w(be, d_w, z, near, w, r.m);
        LAUNCH(be, move_rows, r.m, BLOCK, 0, d_x, d_near, r.d_row, w->in, true);
    }
}

void wz_cuda_ops_head(struct wz_ops *ops)
{
    ops->head_logprob = head_logprob;
    ops->head_sample = head_sample;
    ops->head_logits = head_logits;
    ops->head_back = head_back;
}
