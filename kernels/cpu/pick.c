/* pick: one token from one row of logits, by inverse CDF in order of token id.
 *
 * Candidates have one order: larger logit first, of equals the lower id; as a 64-bit key the smallest is the best. top_k and
 * top_p each keep a prefix of that order, found by partial selection, so together they are one largest key. Without filters
 * the blocks' sums say in which block the token lies, and only that block is walked. */
#include "kernels/cpu/pick.h"

#include <math.h>
#include <string.h>

struct candidate { uint64_t key; float p; };

bool wz_cpu_pick_filters(const struct wz_pick *pick)
{
    return pick->temperature > 0 && (pick->top_k > 0 || pick->top_p < 1 || pick->min_p > 0);
}

size_t wz_cpu_pick_room(int vocab)
{
    return ((size_t)vocab * (sizeof(struct candidate) + sizeof(float)) + 63) / 64 * 64;
}

static uint64_t key_of(float z, int id)
{
    union { float f; uint32_t u; } x = { z + 0.f };      /* -0 is 0 */

    return (uint64_t)(x.u >> 31 ? x.u : x.u ^ 0x7fffffff) << 32 | (uint32_t)id;
}

static void swap(struct candidate *a, struct candidate *b)
{
    struct candidate t = *a;

    *a = *b;
    *b = t;
}

/* How many of the best it takes until their weights (p, or 1 each) reach `want`, at least 1; these end up in front. */
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
        if (m->key < z->key) swap(m, z);      /* the middle one of three is the last: the pivot */
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

/* The first token of z[from, end) at which the running sum of the kept passes `left`; the last kept where none does. */
static int walk(const float *z, const float *p, int from, int end, double left, uint64_t worst, float least)
{
    int last = from;
    double sum = 0;

    for (int v = from; v < end; v++) {
        if (!(p[v - from] > 0) || p[v - from] < least || key_of(z[v], v) > worst) continue;
        last = v;
        if ((sum += (double)p[v - from]) > left) break;
    }
    return last;
}

static int pick_filtered(const struct hot *hot, const float *z, int vocab, double max, double sum, const struct wz_pick *pick,
                         float *p, struct candidate *c)
{
    float least = pick->min_p < 1 ? pick->min_p : 1;      /* of the best one's p, which is 1 */
    uint64_t worst = UINT64_MAX;
    double total = 0;
    int n = 0;

    hot->exps(p, z, 1 / pick->temperature, (float)max, vocab);
    if (pick->top_k > 0 || pick->top_p < 1) {
        /* All below this together are less than what top_p leaves out. */
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
    return walk(z, p, 0, vocab, pick->u * total, worst, least);
}

int wz_cpu_pick(const struct hot *hot, const float *z, int vocab, const struct stat *stats, double max, double sum,
                const struct wz_pick *pick, void *room)
{
    int blocks = (vocab + VOCAB - 1) / VOCAB, at = 0;
    double left = pick->u * sum;
    float p[VOCAB];

    if (pick->temperature == 0) {
        for (int v = 0; v < vocab; v++)
            if ((double)z[v] == max) return v;
        return 0;
    }
    if (wz_cpu_pick_filters(pick))
        return pick_filtered(hot, z, vocab, max, sum, pick, (float *)((struct candidate *)room + vocab), room);
    for (int b = 0; b < blocks; b++) {
        double share = exp((double)stats[b].max - max), mass = share * (double)stats[b].sum;
        if (!(mass > 0)) continue;
        at = b;
        if (mass > left) break;
        left -= mass;
    }
    int first = at * VOCAB, end = vocab - first < VOCAB ? vocab : first + VOCAB;
    hot->exps(p, z + first, 1 / pick->temperature, stats[at].max, end - first);
    return walk(z, p, first, end, left / exp((double)stats[at].max - max), UINT64_MAX, 0);
}
