/* pick: samples one token from the logits of one position, by inverse CDF in order of token id.
 *
 * Candidates are ordered by larger logit, of equals the lower id; as a 64-bit key the best is the smallest. top_k and
 * top_p each keep a prefix of that order, found by partial selection (quickselect), so both together are a bound on
 * the key; they need the logits of the whole vocabulary. Without them the partial sums of the blocks say which block
 * holds the token, and only that block's logits are needed. */
#include "kernels/cpu/cpu.h"

#include <math.h>
#include <string.h>

struct candidate {
    uint64_t key;
    float p;
};

bool wz_cpu_pick_filters(const struct wz_pick *pick)
{
    return pick->temperature > 0 && (pick->top_k > 0 || pick->top_p < 1 || pick->min_p > 0);
}

size_t wz_cpu_pick_scratch(int vocab)
{
    return ((size_t)vocab * (sizeof(struct candidate) + sizeof(float)) + 63) / 64 * 64;
}

static uint64_t key_of(float z, int id)
{
    union {
        float f;
        uint32_t u;
    } x = { z + 0.f }; /* -0 is 0 */

    return (uint64_t)(x.u >> 31 ? x.u : x.u ^ 0x7fffffff) << 32 | (uint32_t)id;
}

static void swap(struct candidate *a, struct candidate *b)
{
    struct candidate t = *a;

    *a = *b;
    *b = t;
}

/* Number of best candidates, at least 1, whose weights (p, or 1 each) add up to `want`; they are moved to the front. */
static int keep_best(struct candidate *c, int n, double want, bool by_p)
{
    int from = 0, to = n;
    double done = 0;

    while (to - from > 1) {
        struct candidate *a = c + from, *m = c + from + (to - from) / 2, *z = c + to - 1;
        int mid = from;
        double left = 0;
        if (m->key < a->key) swap(m, a);
        if (z->key < a->key) swap(z, a);
        if (m->key < z->key) swap(m, z); /* the middle one of three is the last: the pivot */
        for (int i = from; i < to - 1; i++)
            if (c[i].key < z->key) {
                left += by_p ? (double)c[i].p : 1;
                swap(&c[mid++], &c[i]);
            }
        swap(&c[mid], z);
        if (done + left >= want) {
            to = mid;
            continue;
        }
        done += left + (by_p ? (double)c[mid].p : 1);
        from = mid + 1;
        if (done >= want) return from;
    }
    return from < n && (done < want || from == 0) ? from + 1 : from;
}

/* The first of n tokens at which the running sum of the kept probabilities passes `left`; else the last kept one. */
static int inverse_cdf(const float *z, const float *p, int n, double left, uint64_t worst, float least)
{
    int last = 0;
    double sum = 0;

    for (int v = 0; v < n; v++) {
        if (!(p[v] > 0) || p[v] < least || key_of(z[v], v) > worst) continue;
        last = v;
        if ((sum += (double)p[v]) > left) break;
    }
    return last;
}

int wz_cpu_pick_filtered(const struct hot *hot, const float *z, int vocab, double max, double sum,
                         const struct wz_pick *pick, void *scratch)
{
    float least = pick->min_p < 1 ? pick->min_p : 1; /* of the best one's p, which is 1 */
    uint64_t worst = UINT64_MAX;
    double total = 0;
    struct candidate *c = scratch;
    float *p = (float *)(c + vocab);
    int n = 0;

    hot->exps(p, z, 1 / pick->temperature, (float)max, vocab);
    if (pick->top_k > 0 || pick->top_p < 1) {
        /* Tokens below this have less than half of the mass that top_p removes, all together: never kept. */
        double low = pick->top_k > 0 ? 0 : 0.5 * (1 - (double)pick->top_p) * sum / vocab;
        for (int v = 0; v < vocab; v++)
            if ((double)p[v] >= low) c[n++] = (struct candidate){ key_of(z[v], v), p[v] };
        if (pick->top_k > 0 && pick->top_k < n) {
            n = keep_best(c, n, pick->top_k, false);
            sum = 0;
            for (int i = 0; i < n; i++) sum += (double)c[i].p;
        }
        if (pick->top_p < 1) n = keep_best(c, n, (double)pick->top_p * sum, true);
        worst = 0;
        for (int i = 0; i < n; i++) worst = c[i].key > worst ? c[i].key : worst;
    }
    for (int v = 0; v < vocab; v++)
        if (p[v] >= least && key_of(z[v], v) <= worst) total += (double)p[v];
    return inverse_cdf(z, p, vocab, pick->u * total, worst, least);
}

int wz_cpu_pick_block(const struct stat *stats, int blocks, double max, double sum, const struct wz_pick *pick,
                      double *left)
{
    int at = 0;

    *left = pick->u * sum;
    for (int b = 0; b < blocks; b++) {
        double mass = exp((double)stats[b].max - max) * (double)stats[b].sum;
        if (pick->temperature == 0) {
            if ((double)stats[b].max == max) return b;
            continue;
        }
        if (!(mass > 0)) continue;
        at = b;
        if (mass > *left) break;
        *left -= mass;
    }
    *left /= exp((double)stats[at].max - max);
    return at;
}

int wz_cpu_pick_within(const struct hot *hot, const float *z, int n, const struct stat *stat,
                       const struct wz_pick *pick, double left)
{
    float p[VOCAB];

    for (int v = 0; v < n && pick->temperature == 0; v++)
        if (z[v] == stat->max) return v;
    if (pick->temperature == 0) return 0;
    hot->exps(p, z, 1 / pick->temperature, stat->max, n);
    return inverse_cdf(z, p, n, left, UINT64_MAX, 0);
}
