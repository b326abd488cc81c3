/* cpu: the language-model head, by tiles of TILE tokens and blocks of VOCAB vocabulary entries.
 *
 *   block b of a token:  m_b = max z/t,  s_b = sum exp(z/t - m_b)
 *   all blocks:          lse = M + log sum_b s_b exp(m_b - M) with M = max_b m_b, in double, b ascending
 *
 * One function computes these sums for scoring and for sampling, so their log-probabilities have the same bits. Both
 * keep the logits of one block only; sampling recomputes the block that holds the chosen token. top_k, top_p and min_p
 * need all logits of a token: a tile with such filters has FILTERED tokens and keeps their logits, as do vocabularies
 * of at most WIDE. The backward keeps gradients of WIDE columns. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

enum { WIDE = 8 * VOCAB, FILTERED = 32 };

/* One tile of m tokens over the whole vocabulary. */
struct pass {
    const struct hot *hot;
    const struct product *by;
    const struct wz_weight *w;
    const float *x, *factor; /* [m, C], and the same as a left operand (wz_cpu_factor) */
    int m, blocks;
    float scale[TILE], target[TILE]; /* 1/t; the target's z/t */
    int id[TILE];                    /* targets, -1: none */
    struct stat *stats;              /* [m, blocks] */
    float *z;                        /* [m, V], or NULL */
};

struct total {
    double max, sum, mean;
};

static int block_size(const struct wz_weight *w, int v) { return w->out - v < VOCAB ? w->out - v : VOCAB; }

/* z[m, n]: logits of entries [v, v + n) of the vocabulary; v is a multiple of VOCAB. */
static void logits(const struct pass *p, float *z, size_t ldz, const float *x, int v, int m, int n)
{
    struct gemm g = wz_cpu_gemm_packed(p->by, z, ldz, x, p->w, v, m, n, false);

    p->by->gemm(&g, 0, m, 0, n);
}

static void cap(const struct pass *p, float *z, size_t ldz, int m, int n)
{
    for (int i = 0; i < m && p->w->cap > 0; i++) p->hot->cap(z + (size_t)i * ldz, p->w->cap, n);
}

static void pass_block(void *arg, int b)
{
    struct pass *p = arg;
    int v = b * VOCAB, n = block_size(p->w, v);
    float block[TILE * VOCAB] __attribute__((aligned(64)));
    float *z = p->z ? p->z + v : block;
    size_t ldz = p->z ? (size_t)p->w->out : VOCAB;

    logits(p, z, ldz, p->factor, v, p->m, n);
    cap(p, z, ldz, p->m, n);
    for (int i = 0; i < p->m; i++) {
        p->stats[i * p->blocks + b] = p->hot->stat(z + (size_t)i * ldz, p->scale[i], n);
        if (p->id[i] >= v && p->id[i] < v + n) p->target[i] = z[(size_t)i * ldz + (size_t)(p->id[i] - v)] * p->scale[i];
    }
}

static bool small(const struct wz_weight *w, int m) { return (double)m * w->in * w->out < GRAIN; }

static void pass_run(struct wz_backend *be, struct pass *p)
{
    p->hot = wz_hot(be);
    p->by = wz_product(be, p->w->type, p->m);
    p->factor = wz_cpu_factor(be, FACTOR, p->by, p->x, (size_t)p->w->in, p->m, p->w->in);
    p->blocks = (p->w->out + VOCAB - 1) / VOCAB;
    p->stats = wz_cpu_scratch(be, SMALL, TILE * (size_t)p->blocks * sizeof *p->stats);
    wz_pool_run(small(p->w, p->m) ? NULL : be->pool, p->blocks, pass_block, p);
}

static struct total total_of(const struct pass *p, int row)
{
    const struct stat *s = p->stats + (size_t)row * (size_t)p->blocks;
    struct total t = { -INFINITY, 0, 0 };

    for (int b = 0; b < p->blocks; b++) t.max = (double)s[b].max > t.max ? (double)s[b].max : t.max;
    for (int b = 0; b < p->blocks; b++) {
        double down = (double)s[b].max - t.max, share = exp(down);
        t.sum += share * (double)s[b].sum;
        if (share > 0) t.mean += share * ((double)s[b].mean + down * (double)s[b].sum);
    }
    return t;
}

static float logp_of(float z, const struct total *t) { return (float)((double)z - (t->max + log(t->sum))); }

/* Has token i a target (and a gradient d, where d is given)? */
static bool counts(const int *targets, const float *d, int i) { return targets[i] >= 0 && (!d || d[i] != 0); }

/* Copies the next tokens that count, at most TILE of them from *at on, to to[m, C]; row[m]: their indices. Returns m.
 * Of `grain` tokens none or all are copied, and those that do not count as zeros. */
static int rows_gather(float *to, int *row, const float *x, size_t c, const int *targets, const float *d, int grain,
                       int n, int *at)
{
    int m = 0;

    for (; *at < n && m + grain <= TILE; *at += grain) {
        int end = *at + grain < n ? *at + grain : n, any = 0;
        for (int i = *at; i < end; i++) any += counts(targets, d, i);
        for (int i = *at; i < end && any; i++, m++) {
            float *copy = to + (size_t)m * c;
            row[m] = i;
            if (counts(targets, d, i)) memcpy(copy, x + (size_t)i * c, c * sizeof *to);
            else memset(copy, 0, c * sizeof *to);
        }
    }
    return m;
}

static void head_logprob(struct wz_backend *be, float *logp, float *lse, float *entropy, const float *x,
                         const struct wz_weight *w, const int *targets, float temperature, int n)
{
    float *rows = wz_cpu_scratch(be, ROWS, TILE * (size_t)w->in * sizeof *rows);
    int row[TILE];

    memset(logp, 0, (size_t)n * sizeof *logp);
    memset(lse, 0, (size_t)n * sizeof *lse);
    if (entropy) memset(entropy, 0, (size_t)n * sizeof *entropy);
    for (int at = 0; at < n;) {
        struct pass p = { .w = w, .x = rows };
        p.m = rows_gather(rows, row, x, (size_t)w->in, targets, NULL, 1, n, &at);
        for (int i = 0; i < p.m; i++) {
            p.scale[i] = 1 / temperature;
            p.id[i] = targets[row[i]];
        }
        pass_run(be, &p);
        for (int i = 0; i < p.m; i++) {
            struct total t = total_of(&p, i);
            lse[row[i]] = (float)(t.max + log(t.sum));
            logp[row[i]] = logp_of(p.target[i], &t);
            if (entropy) entropy[row[i]] = (float)(log(t.sum) - t.mean / t.sum);
        }
    }
}

struct picking {
    const struct pass *p;
    const struct wz_pick *picks;
    int *token, parts;
    float *logp;
    char *scratch; /* [parts] of `size` bytes for wz_cpu_pick_filtered */
    size_t size;
};

/* Logits that were not kept are recomputed for the one block that holds the token, which costs less than keeping all;
 * a token's logits have the same bits alone and in a batch. */
static float pick_plain(const struct picking *k, int i, const struct total *t, int *token)
{
    const struct pass *p = k->p;
    const struct stat *stats = p->stats + (size_t)i * (size_t)p->blocks;
    const float *z = p->z;
    float block[VOCAB] __attribute__((aligned(64)));
    double left;
    int b = wz_cpu_pick_block(stats, p->blocks, t->max, t->sum, &k->picks[i], &left), n = block_size(p->w, b * VOCAB);

    if (z) {
        z += (size_t)i * (size_t)p->w->out + (size_t)b * VOCAB;
    } else {
        z = block;
        logits(p, block, VOCAB, p->factor + (size_t)i * wz_cpu_left(p->by, p->w->in), b * VOCAB, 1, n);
        cap(p, block, VOCAB, 1, n);
    }
    int at = wz_cpu_pick_within(p->hot, z, n, &stats[b], &k->picks[i], left);
    *token = b * VOCAB + at;
    return z[at];
}

static void pick_part(void *arg, int part)
{
    const struct picking *k = arg;
    const struct pass *p = k->p;

    for (int i = part; i < p->m; i += k->parts) {
        struct total t = total_of(p, i);
        float z;
        if (wz_cpu_pick_filters(&k->picks[i])) {
            const float *row = p->z + (size_t)i * (size_t)p->w->out;
            k->token[i] = wz_cpu_pick_filtered(p->hot, row, p->w->out, t.max, t.sum, &k->picks[i],
                                               k->scratch + (size_t)part * k->size);
            z = row[k->token[i]];
        } else {
            z = pick_plain(k, i, &t, &k->token[i]);
        }
        k->logp[i] = logp_of(z * p->scale[i], &t);
    }
}

static void head_sample(struct wz_backend *be, int *token, float *logp, const float *x, const struct wz_weight *w,
                        const struct wz_pick *picks, int n)
{
    int threads = wz_pool_threads(be->pool);
    size_t scratch = wz_cpu_pick_scratch(w->out);

    for (int at = 0, m; at < n; at += m) {
        bool filters = false, few = w->out <= WIDE;
        m = n - at < TILE ? n - at : TILE;
        for (int i = 0; i < m; i++) filters |= wz_cpu_pick_filters(&picks[at + i]);
        m = filters && !few && m > FILTERED ? FILTERED : m;
        struct pass p = { .w = w, .x = x + (size_t)at * (size_t)w->in, .m = m };
        struct picking k = { &p, picks + at, token + at, small(w, m) ? 1 : threads, logp + at, NULL, scratch };
        if (filters || few)
            p.z = wz_cpu_scratch(be, LOGITS, wz_mul((few ? TILE : FILTERED) * sizeof *p.z, (size_t)w->out));
        if (filters) k.scratch = wz_cpu_scratch(be, PICKS, (size_t)k.parts * scratch);
        for (int i = 0; i < m; i++) {
            p.scale[i] = picks[at + i].temperature > 0 ? 1 / picks[at + i].temperature : 1;
            p.id[i] = -1;
        }
        pass_run(be, &p);
        wz_pool_run(be->pool, k.parts, pick_part, &k);
    }
}

static void head_logits(struct wz_backend *be, float *out, const float *x, const struct wz_weight *w, int n)
{
    be->ops.matmul(be, out, x, w, n, false);
    cap(&(struct pass){ .hot = wz_hot(be), .w = w }, out, (size_t)w->out, n, w->out);
}

/* The backward of a tile for columns [first, first + WIDE): g [TILE, WIDE] */
struct back {
    const struct pass *p;
    int first;
    float *g, *d_w;
    const float *d, *lse, *right; /* right: p->x as the right operand of d_w */
};

static void back_block(void *arg, int b)
{
    const struct back *k = arg;
    const struct pass *p = k->p;
    int v = k->first + b * VOCAB, n = block_size(p->w, v);
    float *g = k->g + b * VOCAB;

    const float by = p->w->cap;
    logits(p, g, WIDE, p->factor, v, p->m, n);
    cap(p, g, WIDE, p->m, n);
    for (int i = 0; i < p->m; i++) {
        float *row = g + (size_t)i * WIDE;
        float *target = p->id[i] >= v && p->id[i] < v + n ? row + (p->id[i] - v) : NULL;
        float slope = by > 0 && target ? 1 - *target / by * (*target / by) : 1;
        if (by > 0) p->hot->grad_capped(row, p->scale[i], k->lse[i], k->d[i], by, n);
        else p->hot->grad(row, p->scale[i], k->lse[i], k->d[i], n);
        if (target) *target += k->d[i] * slope;
    }
    if (!k->d_w) return;
    size_t in = (size_t)p->w->in;
    uint32_t left[TILE * VOCAB] __attribute__((aligned(64)));
    bool made = p->by->factor_rows;
    if (made) p->by->factor_rows(left, g, WIDE, n, p->m);
    struct gemm w = wz_cpu_gemm_back_w(p->by, k->d_w + (size_t)v * in, made ? (const float *)left : g,
                                       made ? (size_t)n : WIDE, k->right, n, p->w->in, p->m);
    p->by->gemm(&w, 0, n, 0, w.n);
}

static void head_back(struct wz_backend *be, float *d_x, float *d_w, const float *x, const struct wz_weight *w,
                      const int *targets, const float *d_logp, const float *lse, float temperature, int n)
{
    size_t c = (size_t)w->in;
    float *rows = wz_cpu_scratch(be, ROWS, 2 * TILE * c * sizeof *rows), *d_rows = rows + TILE * c;
    float d[TILE], l[TILE];
    int row[TILE];

    assert(w->packed);
    memset(d_x, 0, (size_t)n * c * sizeof *d_x);
    for (int at = 0; at < n;) {
        struct pass p = { .hot = wz_hot(be), .w = w, .x = rows };
        struct back k = { .p = &p, .d_w = d_w, .d = d, .lse = l };
        p.m = rows_gather(rows, row, x, c, targets, d_logp, wz_grain(be, w->type), n, &at);
        if (!p.m) break; /* none of the tokens left has a gradient */
        p.by = wz_product(be, w->type, p.m);
        p.factor = wz_cpu_factor(be, FACTOR, p.by, rows, c, p.m, w->in);
        k.right = d_w ? wz_cpu_right(be, p.by, rows, p.m, w->in) : NULL;
        k.g = wz_cpu_scratch(be, LOGITS, (size_t)TILE * WIDE * sizeof *k.g);
        for (int i = 0; i < p.m; i++) {
            p.scale[i] = 1 / temperature;
            bool count = counts(targets, d_logp, row[i]);
            p.id[i] = count ? targets[row[i]] : -1;
            d[i] = count ? d_logp[row[i]] / temperature : 0;
            l[i] = count ? lse[row[i]] : 0;
        }
        for (k.first = 0; k.first < w->out; k.first += WIDE) {
            int cols = w->out - k.first < WIDE ? w->out - k.first : WIDE;
            wz_pool_run(small(w, p.m) ? NULL : be->pool, (cols + VOCAB - 1) / VOCAB, back_block, &k);
            const float *a = wz_cpu_factor(be, FACTOR_BACK, p.by, k.g, WIDE, p.m, cols);
            size_t sm = a == k.g ? WIDE : wz_cpu_left(p.by, cols);
            struct gemm g = wz_cpu_gemm_back_x(p.by, d_rows, a, sm, w, k.first, cols, p.m, k.first > 0);
            wz_cpu_gemm(be, &g);
        }
        for (int i = 0; i < p.m; i++) memcpy(d_x + (size_t)row[i] * c, d_rows + (size_t)i * c, c * sizeof *d_x);
    }
}

void wz_ops_cpu_head(struct wz_ops *ops)
{
    ops->head_logprob = head_logprob;
    ops->head_sample = head_sample;
    ops->head_logits = head_logits;
    ops->head_back = head_back;
}
