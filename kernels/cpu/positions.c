/* cpu: RoPE from a table of cosines and sines, the paged cache, attention divided into tiles.
 *
 * Inside a page keys are stored [D, P] and values [P, D], so that a vector load of keys is one channel of consecutive
 * positions. Heads wider than 256 use ref's layout and functions. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

/* Most tokens of a tile, and most tokens times heads; multiply-adds that amortise a barrier, as for GRAIN; floats of a
 * task that adds sums, and of one that goes over tokens. */
enum { TILE_TOKENS = 12, TILE_STATE = 256, ATTEND_GRAIN = 1 << 20, PAST_STEP = 1 << 12, TOKENS_STEP = 1 << 14 };

static bool fast(const struct wz_kv *kv) { return kv->head_dim <= 256; }

static const struct wz_ops *ref_of(const struct wz_backend *be) { return &((const struct cpu *)be->state)->ref; }

/* cos and sin of all positions up to `last`, [position][2][half]. Tables grow; one per set of frequencies. */
static const float *cos_sin_of(struct cpu *cpu, const float *freq, int half, int last)
{
    struct rope_table *t = NULL;
    size_t size = (size_t)half * sizeof *freq;

    for (int i = 0; i < cpu->n_tables && !t; i++)
        if (cpu->tables[i].half == half && memcmp(cpu->tables[i].freq, freq, size) == 0) t = &cpu->tables[i];
    if (!t) {
        cpu->tables = wz_realloc(cpu->tables, (size_t)(cpu->n_tables + 1) * sizeof *t);
        t = &cpu->tables[cpu->n_tables++];
        *t = (struct rope_table){ .freq = wz_alloc(size), .half = half };
        memcpy(t->freq, freq, size);
    }
    if (last >= t->count) {
        int count = last + 1 + last / 2 < 64 ? 64 : last + 1 + last / 2;
        t->cos_sin = wz_realloc(t->cos_sin, wz_mul((size_t)count, 2 * size));
        for (int p = t->count; p < count; p++)
            for (int j = 0; j < half; j++) {
                double angle = (double)p * (double)freq[j];
                t->cos_sin[((size_t)p * 2) * (size_t)half + (size_t)j] = (float)cos(angle);
                t->cos_sin[((size_t)p * 2 + 1) * (size_t)half + (size_t)j] = (float)sin(angle);
            }
        t->count = count;
    }
    return t->cos_sin;
}

/* An op on tokens [from, end) of n, in parts. */
struct tokens {
    void (*fn)(const struct tokens *t, int from, int end);
    int n, step;
    const struct hot *hot;
    float *x; /* rope */
    const int *pos;
    const float *cos_sin;
    int heads, d, sign;
    const struct wz_kv *kv; /* kv_write */
    const float *k, *v;
    const struct wz_rows *rows;
};

static void tokens_part(void *arg, int i)
{
    const struct tokens *t = arg;
    int from = i * t->step;

    t->fn(t, from, t->n - from < t->step ? t->n : from + t->step);
}

/* width: floats of a token */
static void tokens_run(struct wz_backend *be, struct tokens *t, int width)
{
    t->hot = wz_hot(be);
    t->step = TOKENS_STEP / width + 1;
    wz_pool_run(t->n <= 8 * t->step ? NULL : be->pool, (t->n + t->step - 1) / t->step, tokens_part, t);
}

static void rope_tokens(const struct tokens *t, int from, int end)
{
    for (int i = from; i < end; i++)
        t->hot->rope(t->x + (size_t)i * (size_t)(t->heads * t->d), t->cos_sin + (size_t)t->pos[i] * (size_t)t->d,
                     t->heads, t->d, t->sign);
}

static void rope(struct wz_backend *be, float *x, const int *pos, const float *freq, int n, int heads, int d, int sign)
{
    int last = 0;

    for (int i = 0; i < n; i++) last = pos[i] > last ? pos[i] : last;
    struct tokens t = { .fn = rope_tokens, .n = n, .x = x, .pos = pos, .heads = heads, .d = d, .sign = sign };
    t.cos_sin = cos_sin_of(be->state, freq, d / 2, last);
    tokens_run(be, &t, heads * d);
}

static void kv_tokens(const struct tokens *t, int from, int end)
{
    const struct wz_kv *kv = t->kv;
    const struct wz_rows *r = t->rows;
    size_t d = (size_t)kv->head_dim, p = (size_t)kv->page, first = (size_t)from * (size_t)kv->heads * d;
    const float *k = t->k + first, *v = t->v + first;

    for (int i = from; i < end; i++) {
        size_t page = (size_t)r->table[(size_t)r->seq[i] * (size_t)r->stride + (size_t)r->pos[i] / p];
        size_t slot = (size_t)r->pos[i] % p;
        for (int h = 0; h < kv->heads; h++, k += d, v += d) {
            size_t at = (page * (size_t)kv->heads + (size_t)h) * p * d;
            if (kv->half) {
                uint16_t *keys = (uint16_t *)(void *)kv->k + at + slot;
                uint16_t *values = (uint16_t *)(void *)kv->v + at + slot * d;
                for (size_t j = 0; j < d; j++) keys[j * p] = wz_f32_to_bf16(k[j]);
                for (size_t j = 0; j < d; j++) values[j] = wz_f32_to_bf16(v[j]);
                continue;
            }
            for (size_t j = 0; j < d; j++) kv->k[at + j * p + slot] = k[j];
            memcpy(kv->v + at + slot * d, v, d * sizeof *v);
        }
    }
}

static void kv_write(struct wz_backend *be, const struct wz_kv *kv, const float *k, const float *v,
                     const struct wz_rows *r)
{
    struct tokens t = { .fn = kv_tokens, .n = r->n, .kv = kv, .k = k, .v = v, .rows = r };

    if (fast(kv)) tokens_run(be, &t, kv->heads * kv->head_dim);
    else ref_of(be)->kv_write(be, kv, k, v, r);
}

static void kv_copy(struct wz_backend *be, const struct wz_kv *kv, int dst, int src, int count)
{
    size_t size = kv->half ? sizeof(uint16_t) : sizeof(float), d = (size_t)kv->head_dim, n = (size_t)count * size;
    size_t row = (size_t)kv->page * size;

    if (!fast(kv)) {
        ref_of(be)->kv_copy(be, kv, dst, src, count);
        return;
    }
    for (size_t h = 0; h < (size_t)kv->heads; h++) {
        size_t to = ((size_t)dst * (size_t)kv->heads + h) * d * row;
        size_t from = ((size_t)src * (size_t)kv->heads + h) * d * row;
        for (size_t j = 0; j < d; j++) memcpy((char *)kv->k + to + j * row, (char *)kv->k + from + j * row, n);
        memcpy((char *)kv->v + to, (char *)kv->v + from, n * d);
    }
}

/* Tiles of at most so many consecutive tokens of one sequence, and the pool if they are worth it. */
struct tiles {
    attend_fn *fn;
    const struct attend *a;
    const int *from, *count;
    int n;
    struct wz_pool *pool;
};

static struct tiles tiles_of(struct wz_backend *be, const struct attend *a, int most, attend_fn *fn)
{
    const struct wz_rows *r = a->rows;
    int *from = wz_cpu_scratch(be, SMALL, 2 * (size_t)r->n * sizeof *from), *count = from + r->n, n = 0;
    double work = 0;

    for (int i = 0; i < r->n; i += count[n++]) {
        from[n] = i;
        count[n] = 1;
        while (i + count[n] < r->n && count[n] < most && r->seq[i + count[n]] == r->seq[i]) count[n]++;
        work += (double)count[n] * (r->pos[i + count[n] - 1] + 1);
    }
    return (struct tiles){ fn, a, from, count, n, work * a->heads * a->kv->head_dim < ATTEND_GRAIN ? NULL : be->pool };
}

/* Part i: a tile and a kv head. */
static void attend_part(void *arg, int i)
{
    const struct tiles *t = arg;
    const int heads = t->a->kv->heads;

    t->fn(t->a, t->from[i / heads], t->count[i / heads], i % heads);
}

static void attention(struct wz_backend *be, float *out, float *lse, const float *q, const struct wz_kv *kv,
                      const struct wz_rows *rows, int heads, struct wz_scores scores)
{
    int group = heads / kv->heads, most = TILE_STATE / group;

    if (!fast(kv)) {
        ref_of(be)->attention(be, out, lse, q, kv, rows, heads, scores);
        return;
    }
    assert(group <= TILE_STATE);
    const struct attend a = {
        .out = out, .lse = lse, .q = q, .kv = kv, .rows = rows, .heads = heads, .scores = scores
    };
    struct tiles t = tiles_of(be, &a, most < TILE_TOKENS ? most : TILE_TOKENS, wz_hot(be)->attend);
    wz_pool_run(t.pool, t.n * kv->heads, attend_part, &t);
}

/* Backward of some sequences that follow a past, whose gradient they add to: each sums its own into [past, K, D] of
 * `sums`, for keys and for values, and then these are added in order of the sequences. */
struct following {
    struct tiles t; /* a tile is a sequence */
    struct wz_past past;
    float *sums;           /* [2, at_once, size] */
    size_t size, step;     /* of a sequence's sums, and of a part in adding them */
    int at_once, first, n; /* sequences [first, first + n) run now */
    walk_fn *add;
};

static void following_part(void *arg, int i)
{
    const struct following *f = arg;
    const int heads = f->t.a->kv->heads, seq = f->first + i / heads;
    struct attend a = *f->t.a;

    a.past_k = f->sums + (size_t)(i / heads) * f->size;
    a.past_v = a.past_k + (size_t)f->at_once * f->size;
    f->t.fn(&a, f->t.from[seq], f->t.count[seq], i % heads);
}

static void add_part(void *arg, int i)
{
    const struct following *f = arg;
    const size_t from = (size_t)i * f->step, end = from + f->step < f->size ? from + f->step : f->size;

    for (int s = 0; s < f->n; s++) {
        const float *sums = f->sums + (size_t)s * f->size;
        f->add(&(struct walk){ .out = f->past.d_k, .a = sums }, from, end);
        f->add(&(struct walk){ .out = f->past.d_v, .a = sums + (size_t)f->at_once * f->size }, from, end);
    }
}

static void following_back(struct wz_backend *be, const struct tiles *t, struct wz_past past)
{
    const int heads = t->a->kv->heads, parts = 4 * wz_pool_threads(be->pool);
    const size_t size = (size_t)past.n * (size_t)heads * (size_t)t->a->kv->head_dim;
    struct following f = { .t = *t, .past = past, .size = size, .step = PAST_STEP, .add = wz_hot(be)->add };

    f.at_once = (parts + heads - 1) / heads;
    f.sums = wz_cpu_scratch(be, PAST, wz_mul(2 * (size_t)f.at_once, size * sizeof *f.sums));
    for (f.first = 0; f.first < t->n; f.first += f.n) {
        f.n = t->n - f.first < f.at_once ? t->n - f.first : f.at_once;
        wz_pool_run(t->pool, f.n * heads, following_part, &f);
        wz_pool_run(t->pool, (int)((size + f.step - 1) / f.step), add_part, &f);
    }
}

static void attention_back(struct wz_backend *be, float *d_q, float *d_k, float *d_v, struct wz_past past,
                           const float *d_out, const float *out, const float *lse, const float *q,
                           const struct wz_kv *kv, const struct wz_rows *rows, int heads, struct wz_scores scores)
{
    if (!fast(kv)) {
        ref_of(be)->attention_back(be, d_q, d_k, d_v, past, d_out, out, lse, q, kv, rows, heads, scores);
        return;
    }
    const struct attend a = { .q = q,
                              .kv = kv,
                              .rows = rows,
                              .heads = heads,
                              .d_out = d_out,
                              .o = out,
                              .lse = (float *)lse,
                              .d_q = d_q,
                              .d_k = d_k,
                              .d_v = d_v,
                              .past = past.n,
                              .scores = scores };
    struct tiles t = tiles_of(be, &a, INT32_MAX, wz_hot(be)->attend_back);
    if (past.n) following_back(be, &t, past);
    else wz_pool_run(t.pool, t.n * kv->heads, attend_part, &t);
}

void wz_ops_cpu_attention(struct wz_ops *ops)
{
    ops->rope = rope;
    ops->kv_write = kv_write;
    ops->kv_copy = kv_copy;
    ops->attention = attention;
    ops->attention_back = attention_back;
}
