/* ref: RoPE, the paged cache, attention and its backward (p and ds of one token at a time). */
#include "kernels/ref/ref.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void rope(struct wz_backend *be, float *x, const int *pos, const float *freq, int n, int heads, int d, int sign)
{
    for (int i = 0; i < n; i++)
        for (int h = 0; h < heads; h++, x += d)
            for (int j = 0; j < d / 2; j++) {
                double angle = (double)sign * pos[i] * (double)freq[j], c = cos(angle), s = sin(angle);
                double a = x[j], b = x[j + d / 2];
                x[j] = (float)(a * c - b * s);
                x[j + d / 2] = (float)(b * c + a * s);
            }
}

/* Position t of sequence s for kv head k: its offset in elements into kv->k and kv->v. */
static size_t slot(const struct wz_kv *kv, const struct wz_rows *r, int s, int t, int k)
{
    size_t page = (size_t)r->table[(size_t)s * (size_t)r->stride + (size_t)(t / kv->page)];

    return ((page * (size_t)kv->heads + (size_t)k) * (size_t)kv->page + (size_t)(t % kv->page)) * (size_t)kv->head_dim;
}

static double cache_at(const struct wz_kv *kv, const float *array, size_t at)
{
    return (double)(kv->half ? wz_bf16_to_f32(((const uint16_t *)(const void *)array)[at]) : array[at]);
}

static void cache_set(const struct wz_kv *kv, float *array, size_t at, const float *x)
{
    for (size_t j = 0; j < (size_t)kv->head_dim; j++)
        if (kv->half) ((uint16_t *)(void *)array)[at + j] = wz_f32_to_bf16(x[j]);
        else array[at + j] = x[j];
}

static void kv_write(struct wz_backend *be, const struct wz_kv *kv, const float *k, const float *v,
                     const struct wz_rows *r)
{
    size_t d = (size_t)kv->head_dim;

    for (int i = 0; i < r->n; i++)
        for (int h = 0; h < kv->heads; h++, k += d, v += d) {
            size_t at = slot(kv, r, r->seq[i], r->pos[i], h);
            cache_set(kv, kv->k, at, k);
            cache_set(kv, kv->v, at, v);
        }
}

static void kv_copy(struct wz_backend *be, const struct wz_kv *kv, int dst, int src, int count)
{
    size_t size = kv->half ? sizeof(uint16_t) : sizeof(float);
    size_t row = (size_t)kv->head_dim * size;
    size_t step = (size_t)kv->page * row;

    for (int h = 0; h < kv->heads; h++) {
        size_t to = ((size_t)dst * (size_t)kv->heads + (size_t)h) * step;
        size_t from = ((size_t)src * (size_t)kv->heads + (size_t)h) * step;
        memcpy((char *)kv->k + to, (char *)kv->k + from, (size_t)count * row);
        memcpy((char *)kv->v + to, (char *)kv->v + from, (size_t)count * row);
    }
}

/* a . the D cached elements from `at` on */
static double dot_cache(const float *a, const struct wz_kv *kv, const float *array, size_t at)
{
    double sum = 0;

    for (int i = 0; i < kv->head_dim; i++) sum += (double)a[i] * cache_at(kv, array, at + (size_t)i);
    return sum;
}

static double dot(const float *a, const float *b, int n)
{
    double sum = 0;

    for (int i = 0; i < n; i++) sum += (double)a[i] * b[i];
    return sum;
}

/* The first position that a token sees. */
static int first_seen(int pos, struct wz_scores s) { return s.window && pos >= s.window ? pos - s.window + 1 : 0; }

static void attention(struct wz_backend *be, float *out, float *lse, const float *q, const struct wz_kv *kv,
                      const struct wz_rows *r, int heads, struct wz_scores scores)
{
    int d = kv->head_dim, group = heads / kv->heads;
    double *p = NULL, scale = 1 / sqrt(d);

    for (int i = 0; i < r->n; i++) {
        int count = r->pos[i] + 1, from = first_seen(r->pos[i], scores);
        p = wz_realloc(p, (size_t)count * sizeof *p);
        for (int h = 0; h < heads; h++, q += d, out += d) {
            double max = -INFINITY, sum = 0;
            for (int t = from; t < count; t++) {
                p[t] = wz_capped(dot_cache(q, kv, kv->k, slot(kv, r, r->seq[i], t, h / group)) * scale, scores.cap);
                if (p[t] > max) max = p[t];
            }
            for (int t = from; t < count; t++) sum += p[t] = exp(p[t] - max);
            for (int j = 0; j < d; j++) {
                double o = 0;
                for (int t = from; t < count; t++)
                    o += p[t] * cache_at(kv, kv->v, slot(kv, r, r->seq[i], t, h / group) + (size_t)j);
                out[j] = (float)(o / sum);
            }
            if (lse) lse[(size_t)i * (size_t)heads + (size_t)h] = (float)(max + log(sum));
        }
    }
    free(p);
}

/* One token and head: d_q, and what it adds to d_k and d_v of a sequence's keys, [position, K, D]. */
static void token_back(double *dq, double *dk, double *dv, const float *q, const float *d_out, double delta, double lse,
                       const struct wz_kv *kv, const struct wz_rows *r, int i, int kv_head, struct wz_scores scores)
{
    const int d = kv->head_dim;
    const double scale = 1 / sqrt(d);

    memset(dq, 0, (size_t)d * sizeof *dq);
    for (int t = first_seen(r->pos[i], scores); t <= r->pos[i]; t++) {
        const size_t at = slot(kv, r, r->seq[i], t, kv_head), to = (size_t)(t * kv->heads + kv_head) * (size_t)d;
        const double s = wz_capped(dot_cache(q, kv, kv->k, at) * scale, scores.cap), p = exp(s - lse);
        const double ds = p * (dot_cache(d_out, kv, kv->v, at) - delta) * scale * wz_cap_slope(s, scores.cap);
        for (int j = 0; j < d; j++) {
            dq[j] += ds * cache_at(kv, kv->k, at + (size_t)j);
            dk[to + (size_t)j] += ds * q[j];
            dv[to + (size_t)j] += p * d_out[j];
        }
    }
}

/* A sequence's sums: those of its own tokens are written, those of what is before them are added. */
static void keys_back(float *past, float *own, const double *sums, size_t n_past, size_t n_own)
{
    for (size_t j = 0; j < n_past; j++) past[j] += (float)sums[j];
    for (size_t j = 0; j < n_own; j++) own[j] = (float)sums[n_past + j];
}

/* With p = softmax:  d_v_t = sum p d_out;  ds_t = p (d_out . v_t - d_out . out) scale
 *                    d_q = sum ds_t k_t;  d_k_t = sum ds_t q */
static void attention_back(struct wz_backend *be, float *d_q, float *d_k, float *d_v, struct wz_past past,
                           const float *d_out, const float *out, const float *lse, const float *q,
                           const struct wz_kv *kv, const struct wz_rows *r, int heads, struct wz_scores scores)
{
    const int d = kv->head_dim, group = heads / kv->heads;
    const size_t width = (size_t)kv->heads * (size_t)d, before = (size_t)past.n * width;

    for (int i = 0, n; i < r->n; i += n) {
        for (n = 1; i + n < r->n && r->seq[i + n] == r->seq[i];) n++;
        const size_t own = (size_t)n * width, size = before + own;
        double *sums = wz_alloc((2 * size + (size_t)d) * sizeof *sums), *dq = sums + 2 * size;
        for (int j = i; j < i + n; j++)
            for (int h = 0; h < heads; h++, q += d, out += d, d_out += d, d_q += d) {
                token_back(dq, sums, sums + size, q, d_out, dot(d_out, out, d),
                           (double)lse[(size_t)j * (size_t)heads + (size_t)h], kv, r, j, h / group, scores);
                for (int c = 0; c < d; c++) d_q[c] = (float)dq[c];
            }
        keys_back(past.d_k, d_k + (size_t)i * width, sums, before, own);
        keys_back(past.d_v, d_v + (size_t)i * width, sums + size, before, own);
        free(sums);
    }
}

void wz_ops_ref_attention(struct wz_ops *ops)
{
    ops->rope = rope;
    ops->kv_write = kv_write;
    ops->kv_copy = kv_copy;
    ops->attention = attention;
    ops->attention_back = attention_back;
}
