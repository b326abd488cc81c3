/* head: declarations shared by head.cu and pick.cu. A block is COLS vocabulary entries; logits, where they are kept,
 * are padded to whole blocks with -INFINITY. */
#ifndef WZ_CUDA_HEAD_H
#define WZ_CUDA_HEAD_H

#include "kernels/cuda/cuda.cuh"

enum { COLS = 128 };

/* Partial softmax of a token over one block (part) or over all (stat): with x = z / t,
 * max = max x, sum = sum exp(x - max), mean = sum exp(x - max) (x - max). */
struct part {
    float max, sum, mean, unused;
};
struct stat {
    float max;
    double sum, mean;
};

/* Sampling of m tokens: z [m, blocks * COLS], scale [m] (1 / t), parts [m, blocks]; out: token [m], logp [m]. */
struct picking {
    const float *z, *scale;
    const struct part *parts;
    int blocks, vocab;
    const struct wz_pick *picks;
    int *token;
    float *logp;
};
void wz_cuda_pick(struct wz_backend *be, const struct picking *p, int m);

/* Called by a warp: a fixed tree over the blocks, so that a token has the same bits in scoring and in sampling. */
INLINE struct stat stat_of(const struct part *parts, int blocks)
{
    struct stat s = { -INFINITY, 0, 0 };

    for (int b = (int)threadIdx.x % 32; b < blocks; b += 32) s.max = fmaxf(s.max, parts[b].max);
    s.max = warp_max(s.max);
    for (int b = (int)threadIdx.x % 32; b < blocks; b += 32) {
        struct part p = parts[b];
        float d = p.max - s.max, e = expf(d);
        if (!(e > 0)) continue; /* not 0 times -inf */
        s.sum += (double)e * (double)p.sum;
        s.mean += (double)e * ((double)p.mean + (double)p.sum * (double)d);
    }
    s.sum = warp_sum(s.sum);
    s.mean = warp_sum(s.mean);
    return s;
}

INLINE double lse_of(const struct stat &s) { return (double)s.max + log(s.sum); }

/* The log-probability, the same in sampling and in scoring. */
INLINE float logp_of(const struct stat &s, float z, float scale) { return (float)((double)(z * scale) - lse_of(s)); }

#endif
