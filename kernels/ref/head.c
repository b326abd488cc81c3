/* ref: the language-model head, the logits of one token at a time in double, and what is computed from them. */
#include "kernels/ref/ref.h"

#include <math.h>
#include <stdlib.h>

static void logits(const struct wz_backend *be, double *z, const float *x, const struct wz_weight *w, double t)
{
    for (int v = 0; v < w->out; v++)
        z[v] = wz_capped(wz_ref_sum(be, w, 0, x, (size_t)v * (size_t)w->in, 1, w->in), w->cap) / t;
}

static double log_sum_exp(const double *z, int n)
{
    double max = -INFINITY, sum = 0;

    for (int v = 0; v < n; v++) max = z[v] > max ? z[v] : max;
    for (int v = 0; v < n; v++) sum += exp(z[v] - max);
    return max + log(sum);
}

static void head_logprob(struct wz_backend *be, float *logp, float *lse, float *entropy, const float *x,
                         const struct wz_weight *w, const int *targets, float temperature, int n)
{
    double *z = wz_alloc((size_t)w->out * sizeof *z);

    for (int i = 0; i < n; i++, x += w->in) {
        logp[i] = lse[i] = 0;
        if (entropy) entropy[i] = 0;
        if (targets[i] < 0) continue;
        logits(be, z, x, w, (double)temperature);
        double l = log_sum_exp(z, w->out), mean = 0;
        for (int v = 0; v < w->out; v++) mean += exp(z[v] - l) * z[v];
        lse[i] = (float)l;
        logp[i] = (float)(z[targets[i]] - l);
        if (entropy) entropy[i] = (float)(l - mean);
    }
    free(z);
}

struct candidate {
    double z, p;
    int id;
};

static int by_rank(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;

    if (x->z != y->z) return x->z < y->z ? 1 : -1;
    return x->id - y->id;
}

static int by_id(const void *a, const void *b)
{
    return ((const struct candidate *)a)->id - ((const struct candidate *)b)->id;
}

/* The filters shorten the list of candidates, ordered by logit (of equals the lower id first); top_p counts the
 * probabilities renormalised over what top_k kept. */
static int sample(struct candidate *list, const double *z, int vocab, const struct wz_pick *pick)
{
    int n = vocab;
    double total = 0, sum = 0;

    for (int v = 0; v < vocab; v++) list[v] = (struct candidate){ z[v], 0, v };
    qsort(list, (size_t)n, sizeof *list, by_rank);
    if (pick->top_k > 0 && pick->top_k < n) n = pick->top_k;
    for (int i = 0; i < n; i++) total += list[i].p = exp(list[i].z - list[0].z);
    if (pick->top_p < 1) {
        int keep = 0;
        while (keep < n && sum < (double)pick->top_p * total) sum += list[keep++].p;
        n = keep > 0 ? keep : 1;
    }
    while (n > 1 && list[n - 1].p < (double)pick->min_p) n--;
    qsort(list, (size_t)n, sizeof *list, by_id);
    total = sum = 0;
    for (int i = 0; i < n; i++) total += list[i].p;
    for (int i = 0; i < n; i++)
        if ((sum += list[i].p) > pick->u * total) return list[i].id;
    return list[n - 1].id;
}

static void head_sample(struct wz_backend *be, int *token, float *logp, const float *x, const struct wz_weight *w,
                        const struct wz_pick *picks, int n)
{
    double *z = wz_alloc((size_t)w->out * sizeof *z);
    struct candidate *list = wz_alloc((size_t)w->out * sizeof *list);

    for (int i = 0; i < n; i++, x += w->in) {
        bool greedy = picks[i].temperature == 0;
        logits(be, z, x, w, greedy ? 1 : (double)picks[i].temperature);
        token[i] = 0;
        for (int v = 1; v < w->out && greedy; v++)
            if (z[v] > z[token[i]]) token[i] = v;
        if (!greedy) token[i] = sample(list, z, w->out, &picks[i]);
        logp[i] = (float)(z[token[i]] - log_sum_exp(z, w->out));
    }
    free(list);
    free(z);
}

static void head_logits(struct wz_backend *be, float *out, const float *x, const struct wz_weight *w, int n)
{
    double *z = wz_alloc((size_t)w->out * sizeof *z);

    for (int i = 0; i < n; i++, x += w->in, out += w->out) {
        logits(be, z, x, w, 1);
        for (int v = 0; v < w->out; v++) out[v] = (float)z[v];
    }
    free(z);
}

static void head_back(struct wz_backend *be, float *d_x, float *d_w, const float *x, const struct wz_weight *w,
                      const int *targets, const float *d_logp, const float *lse, float temperature, int n)
{
    double t = (double)temperature, *z = wz_alloc((size_t)(w->out + w->in) * sizeof *z), *sum = z + w->out;

    if (wz_in_amx(be, w->type)) wz_amx_head_back(be, logits, d_x, d_w, x, w, targets, d_logp, lse, temperature, n);
    for (int i = 0; i < n && !wz_in_amx(be, w->type); i++, x += w->in, d_x += w->in) {
        for (int j = 0; j < w->in; j++) sum[j] = d_x[j] = 0;
        if (targets[i] < 0) continue;
        logits(be, z, x, w, t);
        for (int v = 0; v < w->out; v++) {
            double g = wz_factor(
                be, w,
                (float)(d_logp[i] * ((v == targets[i]) - exp(z[v] - lse[i])) / t * wz_cap_slope(z[v] * t, w->cap)));
            for (int j = 0; j < w->in; j++) {
                size_t at = (size_t)v * (size_t)w->in + (size_t)j;
                sum[j] += g * wz_weight_at(w, at);
                if (d_w) d_w[at] = fmaf((float)g, (float)wz_factor(be, w, x[j]), d_w[at]);
            }
        }
        for (int j = 0; j < w->in; j++) d_x[j] = (float)sum[j];
    }
    free(z);
}

void wz_ops_ref_head(struct wz_ops *ops)
{
    ops->head_logprob = head_logprob;
    ops->head_sample = head_sample;
    ops->head_logits = head_logits;
    ops->head_back = head_back;
}
