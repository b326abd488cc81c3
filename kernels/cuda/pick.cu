/* pick: samples one token from the logits of one position, a thread block per position.
 *
 * As in ref: order by logit (larger first, of equals the lower id), keep a prefix for top_k, of that a prefix for
 * top_p, drop what min_p drops, then inverse CDF in order of id. Nothing is sorted. Probabilities are counted in units
 * of 2^-44 of the largest: integers, whose sums do not depend on the order of atomic additions.
 *
 *   blocks   the weight of every COLS entries: without filters from the head's partial sums (struct part), so that only
 *            the block that u selects is read; with filters by a pass over all logits
 *   prefix   its end is a key (the best is the smallest). One pass sums weights in bins of 1/16 nat below the largest
 *            logit; another lists the keys of the bin where the prefix ends, and the end is found in the list by radix
 *            select, 8 bits at a time. Each pass skips blocks whose largest logit is too low, which is most of them
 *            where the distribution is peaked */
#include "kernels/cuda/head.cuh"

enum { BLOCK = 256, WARPS = BLOCK / 32, BINS = 256, LISTED = 2048 };

typedef unsigned long long word;

static const float UNIT = 17592186044416.f; /* 2^44: 2^19 tokens fit into 63 bits */

/* Shared memory, followed by one word per block of the vocabulary. */
struct table {
    word bins[BINS], list[LISTED], weight;
    unsigned listed;
    struct stat stat;
};

/* The position being sampled: tokens with key <= worst and weight >= least are kept. */
struct choice {
    const float *z;
    const struct part *parts;
    int blocks, vocab;
    float scale, max;
    word worst, least;
};

INLINE word key_of(float z, int id)
{
    unsigned u = __float_as_uint(z + 0.f); /* -0 is 0 */

    return (word)(u >> 31 ? u : u ^ 0x7fffffff) << 32 | (unsigned)id;
}

INLINE float z_of(word key)
{
    unsigned u = (unsigned)(key >> 32);

    return __uint_as_float(u >> 31 ? u : u ^ 0x7fffffff);
}

INLINE word weight_at(const struct choice &c, float x)
{
    float e = expf(x - c.max);

    return e > 0 ? (word)(e * UNIT) : 0; /* also where it is NaN */
}

INLINE word weight_of(const struct choice &c, float z) { return weight_at(c, z * c.scale); }

INLINE word kept(const struct choice &c, float z, int id)
{
    word weight = weight_of(c, z);

    return weight >= c.least && key_of(z, id) <= c.worst ? weight : 0;
}

/* How far below the best, in bins; the same order as by logit. */
INLINE int bin_of(const struct choice &c, float x)
{
    float down = (c.max - x) * 16;

    return down >= BINS - 1 ? BINS - 1 : down > 0 ? (int)down : 0;
}

/* fn(z, id) for all tokens of blocks b that `reachable` accepts, a warp a block; after(b) when a warp is done with
 * one. */
template <class N, class F, class A> INLINE void each_token(const struct choice &c, N reachable, F fn, A after)
{
    for (int b = (int)threadIdx.x / 32; b < c.blocks; b += WARPS) {
        if (reachable(c.parts[b].max)) {
            int id = b * COLS + (int)threadIdx.x % 32 * 4;
            float4 z = *(const float4 *)(c.z + id);
            fn(z.x, id);
            fn(z.y, id + 1);
            fn(z.z, id + 2);
            fn(z.w, id + 3);
        }
        after(b);
    }
}

/* May a block with this largest logit hold kept tokens? */
INLINE bool reaches(const struct choice &c, float max)
{
    return c.worst == ~(word)0 || !(max < z_of(c.worst) * c.scale);
}

static __device__ word total_of(const struct choice &c, struct table *t)
{
    word sum = 0;

    if (threadIdx.x == 0) t->weight = 0;
    __syncthreads();
    each_token(
        c, [&](float max) { return reaches(c, max); }, [&](float z, int id) { sum += kept(c, z, id); }, [](int) {});
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) atomicAdd(&t->weight, sum);
    __syncthreads();
    sum = t->weight;
    __syncthreads();
    return sum;
}

/* The first bin up to which the bins weigh `want`; *done grows by what those before it weigh. All threads read the
 * same. */
INLINE int bin_reached(const word *bins, word want, word *done)
{
    int bin = 0;

    while (bin < BINS - 1 && *done + bins[bin] < want) *done += bins[bin++];
    return bin;
}

/* The smallest key such that keys up to it (and up to c.worst) weigh at least `want`; by count, each weighs 1. */
static __device__ word prefix_end(const struct choice &c, struct table *t, word want, bool by_count)
{
    word found = 0, done = 0;

    t->bins[threadIdx.x] = 0;
    if (threadIdx.x == 0) t->listed = 0;
    __syncthreads();
    each_token(
        c, [&](float max) { return reaches(c, max); },
        [&](float z, int id) {
            word weight = by_count ? 1 : weight_of(c, z);
            if (weight > 0 && key_of(z, id) <= c.worst) atomicAdd(&t->bins[bin_of(c, z * c.scale)], weight);
        },
        [](int) {});
    __syncthreads();
    int bin = bin_reached(t->bins, want, &done);
    auto in_bin = [&](auto fn) {
        each_token(
            c, [&](float max) { return reaches(c, max) && bin_of(c, max) <= bin; },
            [&](float z, int id) {
                word key = key_of(z, id);
                if (bin_of(c, z * c.scale) == bin && key <= c.worst) fn(key);
            },
            [](int) {});
    };
    in_bin([&](word key) {
        unsigned i = atomicAdd(&t->listed, 1u);
        if (i < LISTED) t->list[i] = key;
    });
    __syncthreads();
    for (int shift = 56; shift >= 0; shift -= 8) {
        if (shift == 24 && c.vocab <= 1 << 24) continue; /* ids have no such bits */
        t->bins[threadIdx.x] = 0;
        __syncthreads();
        auto count = [&](word key) {
            word above = shift == 56 ? 0 : key >> (shift + 8) ^ found >> (shift + 8);
            if (above == 0) atomicAdd(&t->bins[key >> shift & 255], by_count ? (word)1 : weight_of(c, z_of(key)));
        };
        if (t->listed > LISTED) in_bin(count);
        else
            for (unsigned i = threadIdx.x; i < t->listed; i += BLOCK) count(t->list[i]);
        __syncthreads();
        found |= (word)bin_reached(t->bins, want, &done) << shift;
        __syncthreads();
    }
    return found;
}

/* In block b: the first token at which the running sum of kept weights passes `left`, else the last kept one; `best`:
 * the first with the largest logit. Called by warp 0; the result is valid in thread 0. */
static __device__ int inverse_cdf(const struct choice &c, struct table *t, int b, word left, bool best)
{
    int lane = (int)threadIdx.x, id = b * COLS;

    for (int i = lane; i < COLS; i += 32)
        t->list[i] = best ? c.z[id + i] * c.scale == c.max : id + i < c.vocab ? kept(c, c.z[id + i], id + i) : 0;
    __syncwarp();
    int last = 0;
    for (int i = 0; lane == 0 && i < COLS; i++) {
        if (t->list[i] == 0) continue;
        last = i;
        if (t->list[i] > left) break;
        left -= t->list[i];
    }
    return id + last;
}

static __global__ void __launch_bounds__(BLOCK) row_picks(struct picking p)
{
    SHARED(struct table, t);
    word *weights = (word *)(t + 1);
    size_t row = blockIdx.x;
    struct wz_pick pick = p.picks[row];
    struct choice c = { p.z + row * (size_t)p.blocks * COLS,
                        p.parts + row * (size_t)p.blocks,
                        p.blocks,
                        p.vocab,
                        p.scale[row],
                        0,
                        ~(word)0,
                        0 };
    bool greedy = pick.temperature <= 0;
    bool some = pick.top_k > 0 && pick.top_k < c.vocab;
    bool filtered = some || pick.top_p < 1 || pick.min_p > 0;
    int warp = (int)threadIdx.x / 32;

    if (warp == 0) {
        struct stat s = stat_of(c.parts, c.blocks);
        if (threadIdx.x == 0) t->stat = s;
    }
    __syncthreads();
    c.max = t->stat.max;
    if (!greedy && some) c.worst = prefix_end(c, t, (word)pick.top_k, true);
    if (!greedy && pick.top_p < 1) {
        word want = (word)ceil((double)pick.top_p * (double)total_of(c, t));
        c.worst = prefix_end(c, t, want > 0 ? want : 1, false);
    }
    if (!greedy) c.least = (word)((double)fminf(pick.min_p, 1.f) * (double)UNIT);
    if (!greedy && filtered) {
        word sum = 0;
        each_token(
            c, [&](float max) { return reaches(c, max) && weight_at(c, max) >= c.least; },
            [&](float z, int id) { sum += kept(c, z, id); },
            [&](int b) {
                sum = warp_sum(sum);
                if (threadIdx.x % 32 == 0) weights[b] = sum;
                sum = 0;
            });
    } else {
        for (int b = (int)threadIdx.x; b < c.blocks; b += BLOCK)
            weights[b] =
                greedy ? c.parts[b].max == c.max : (word)fmaxf(expf(c.parts[b].max - c.max) * c.parts[b].sum * UNIT, 0);
    }
    __syncthreads();
    int each = (c.blocks + BLOCK - 1) / BLOCK, from = (int)threadIdx.x * each;
    word sum = 0;
    for (int b = from; b < from + each && b < c.blocks; b++) sum += weights[b];
    t->bins[threadIdx.x] = sum;
    __syncthreads();
    if (warp > 0) return;
    word total = 0, left = 0;
    for (int i = 0; i < BLOCK; i++) total += t->bins[i];
    if (!greedy && total > 0) {
        left = (word)(pick.u * (double)total);
        if (left >= total) left = total - 1;
    }
    int b = 0, i = 0;
    while (i < BLOCK - 1 && t->bins[i] <= left) left -= t->bins[i++];
    for (b = i * each; b < c.blocks - 1 && weights[b] <= left; b++) left -= weights[b];
    int id = total > 0 ? inverse_cdf(c, t, b, left, greedy) : 0;
    if (threadIdx.x > 0) return;
    p.token[row] = id;
    p.logp[row] = logp_of(t->stat, c.z[id], c.scale);
}

void wz_cuda_pick(struct wz_backend *be, const struct picking *p, int m)
{
    size_t shared = sizeof(struct table) + (size_t)p->blocks * sizeof(word);

    CHECK(cudaFuncSetAttribute(row_picks, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    LAUNCH_KEEPING(be, row_picks, m, BLOCK, shared, *p);
}
