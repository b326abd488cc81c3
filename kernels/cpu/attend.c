/* Attention in blocks of KEYS keys counted from position 0, with an online softmax (Milakov & Gimelshein 2018).
 *
 *   per token and head:  s = q . k * scale;  m' = max(m, s..);  p = exp(s - m')
 *                        out = out exp(m - m') + p v;  sum = sum exp(m - m') + sum p
 *
 * Both products are register tiles over keys stored [D, P] in their page (kv_write transposes them) and values [P, D].
 * A block that every token of a tile sees whole runs as tokens by one head; at the causal edge each token runs alone,
 * with the heads that share its keys as rows of the tile. Either way an element is the same chain, so decode and
 * prefill agree bit for bit. Head sizes that are not a multiple of 16 are padded in copies, and so are pages whose
 * length is not a multiple of HALF. A bf16 cache is converted to f32 as its vectors are loaded. */
#include "kernels/cpu/tile.h"

#include <math.h>

enum { HALF = KEYS / 2, MOST_D = 256, MOST_TOKENS = 12, MOST_STATE = 256 };

/* Keys and values of one block: two halves of 16 keys each. */
struct step {
    const void *k[2], *v[2];
    enum tile_kind kind;
    size_t ldk, size; /* ldk: elements between channels of k; size: bytes of an element of k and v */
    int d, wide;      /* wide: d rounded up to a multiple of 16, the width of values and sums */
    int from, count;  /* keys [from, count) are seen */
    float scale, cap;
};

/* Online softmax of one token and head. */
struct state {
    float max, sum[16];
};

static size_t page_at(const struct attend *a, int seq, int t, int kv_head)
{
    const struct wz_rows *r = a->rows;
    size_t page = (size_t)r->table[(size_t)seq * (size_t)r->stride + (size_t)(t / a->kv->page)];

    return (page * (size_t)a->kv->heads + (size_t)kv_head) * (size_t)a->kv->page * (size_t)a->kv->head_dim;
}

/* The first position that a token sees. */
static int first_seen(const struct attend *a, int pos)
{
    return a->scores.window && pos >= a->scores.window ? pos - a->scores.window + 1 : 0;
}

/* Copies keys of positions [t, t + count) to k[D][KEYS] and values to v[KEYS][wide], as f32. */
static void gather(float *k, float *v, const struct attend *a, int seq, int t, int count, int kv_head, int wide)
{
    int d = a->kv->head_dim, p = a->kv->page;

    for (int i = 0; i < count; i++) {
        size_t at = page_at(a, seq, t + i, kv_head), slot = (size_t)((t + i) % p);
        for (int j = 0; j < d; j++) {
            size_t key = at + (size_t)j * (size_t)p + slot, value = at + slot * (size_t)d + (size_t)j;
            k[j * KEYS + i] =
                a->kv->half ? wz_bf16_to_f32(((const uint16_t *)(const void *)a->kv->k)[key]) : a->kv->k[key];
            v[i * wide + j] =
                a->kv->half ? wz_bf16_to_f32(((const uint16_t *)(const void *)a->kv->v)[value]) : a->kv->v[value];
        }
        for (int j = d; j < wide; j++) v[i * wide + j] = 0;
    }
}

/* c[rows, n] = or += a b, n a multiple of 16, for operands small enough for the L1 cache. */
static void product_of(enum tile_kind kind, float *c, size_t ldc, const float *a, size_t sm, size_t sk, int rows,
                       const char *b, size_t ldb, int n, int k, bool from_c)
{
    size_t step = W * (kind == HALVES ? sizeof(uint16_t) : sizeof(float));

    for (int j = 0, nv; j < n; j += nv * W) {
        nv = rows <= MR4 && n - j >= 4 * W ? 4 : n - j >= 2 * W ? 2 : 1;
        const char *at = b + (size_t)(j / W) * step;
        const void *col[4] = { at, at + step, at + 2 * step, at + 3 * step };
        tiles_run(c + j, ldc, a, sm, sk, rows, col, ldb, k, from_c, nv, kind, 0);
    }
}

static void product(float *c, size_t ldc, const float *a, size_t sm, size_t sk, int rows, const float *b, size_t ldb,
                    int n, int k, bool from_c)
{
    product_of(FLOATS, c, ldc, a, sm, sk, rows, (const char *)b, ldb, n, k, from_c);
}

/* s[rows][KEYS] = q k; only the first half where no key of the second is seen. */
static void scores(float *s, const float *q, size_t sq, int rows, const struct step *b)
{
    int n = b->count > HALF ? KEYS : HALF;

    for (int j = 0, nv; j < n; j += nv * W) {
        const void *col[4];
        nv = rows <= MR4 && n - j >= 4 * W ? 4 : n - j >= 2 * W ? 2 : 1;
        for (int i = 0; i < nv; i++) {
            int key = j + i * W;
            col[i] = (const char *)b->k[key >= HALF] + (size_t)(key % HALF) * b->size;
        }
        tiles_run(s + j, KEYS, q, sq, 1, rows, col, b->ldk, b->d, false, nv, b->kind, 0);
    }
}

/* One block for up to MR2 rows (tokens or heads): queries are sq floats apart, sums so, states `apart`. */
static void step(float *out, size_t so, const float *q, size_t sq, int rows, const struct step *b, struct state *state,
                 int apart, bool first)
{
    float s[MOST_TOKENS * KEYS] __attribute__((aligned(64)));
    size_t wide = (size_t)b->wide;

    scores(s, q, sq, rows, b);
    for (int i = 0; i < rows; i++) {
        struct state *st = &state[i * apart];
        struct vec16 sum, top = vec16_of(-INFINITY);
        float *p = s + i * KEYS, *o = out + (size_t)i * so;
        vf x[KEYS / W];
#pragma GCC unroll 8
        for (int j = 0; j < KEYS / W; j++) {
            vf x_all = load(p + j * W) * b->scale;
            if (b->cap > 0) x_all = cap_v(x_all, b->cap);
            x[j] = PICK(before(j * W, b->count), x_all, SPLAT(-INFINITY));
            if (b->from > 0) x[j] = PICK(before(j * W, b->from), SPLAT(-INFINITY), x[j]);
            top.v[j % VECS] = MAX(x[j], top.v[j % VECS]);
        }
        float max = vec16_max(top);
        for (int l = 0; l < VECS; l++) sum.v[l] = load(st->sum + l * W);
        if (first || max > st->max) {
            vf rescale = first ? SPLAT(0.f) : exp_v(SPLAT(st->max - max));
            for (int l = 0; l < VECS; l++) sum.v[l] = sum.v[l] * rescale;
            for (int j = 0; j < b->wide && !first; j += W) store(o + j, load(o + j) * rescale);
            st->max = max;
        }
#pragma GCC unroll 8
        for (int j = 0; j < KEYS / W; j++) {
            vf e = exp_v(x[j] - SPLAT(st->max));
            store(p + j * W, e);
            sum.v[j % VECS] = sum.v[j % VECS] + e;
        }
        for (int l = 0; l < VECS; l++) store(st->sum + l * W, sum.v[l]);
    }
    if (b->count <= HALF || b->v[1] == (const char *)b->v[0] + HALF * wide * b->size) {
        product_of(b->kind, out, so, s, KEYS, 1, rows, b->v[0], wide, b->wide, b->count, !first);
    } else {
        product_of(b->kind, out, so, s, KEYS, 1, rows, b->v[0], wide, b->wide, HALF, !first);
        product_of(b->kind, out, so, s + HALF, KEYS, 1, rows, b->v[1], wide, b->wide, b->count - HALF, true);
    }
}

void HOT(wz_attend)(const struct attend *a, int row, int n, int kv_head)
{
    const struct wz_rows *r = a->rows;
    int d = a->kv->head_dim;
    int p = a->kv->page;
    int group = a->heads / a->kv->heads;
    int seq = r->seq[row];
    int low = INT32_MAX;
    int high = 0;
    int wide = (d + 15) / 16 * 16;
    size_t width = (size_t)a->heads * (size_t)d, at = (size_t)row * width + (size_t)(kv_head * group * d);
    const float *q = a->q + at;
    float copies[2 * KEYS * MOST_D] __attribute__((aligned(64)));
    float sums[MOST_STATE * MOST_D] __attribute__((aligned(64)));
    struct state state[MOST_STATE];
    struct step b = { .d = d, .wide = wide, .scale = 1 / sqrtf((float)d), .cap = a->scores.cap, .ldk = (size_t)p };
    bool ragged = wide > d, copied = ragged || p % HALF;
    float *out = ragged ? sums : a->out + at, *keys = copies, *values = copies + KEYS * d;
    size_t out_head = (size_t)wide, out_row = ragged ? (size_t)(group * wide) : width;

    assert(n <= MOST_TOKENS && n * group <= MOST_STATE && d <= MOST_D);
    for (int i = 0; i < n * group; i++) state[i] = (struct state){ .max = -INFINITY };
    for (int i = row; i < row + n; i++) {
        low = r->pos[i] < low ? r->pos[i] : low;
        high = r->pos[i] > high ? r->pos[i] : high;
    }
    if (copied) b.ldk = KEYS;
    b.kind = !copied && a->kv->half ? HALVES : FLOATS;
    b.size = b.kind == HALVES ? sizeof(uint16_t) : sizeof(float);
    const int begin = first_seen(a, low), whole = first_seen(a, high); /* where windows begin, at least and at most */
    for (int t = begin / KEYS * KEYS; t <= high; t += KEYS) {
        int count = high + 1 - t < KEYS ? high + 1 - t : KEYS;
        for (int h = 0; h < 2; h++) {
            int from = h * HALF < count ? t + h * HALF : t; /* no second half: its page may not exist */
            size_t page = page_at(a, seq, from, kv_head);
            b.k[h] = copied ? (char *)(keys + h * HALF) : (char *)a->kv->k + (page + (size_t)(from % p)) * b.size;
            b.v[h] = copied ? (char *)(values + h * HALF * wide)
                            : (char *)a->kv->v + (page + (size_t)(from % p * d)) * b.size;
        }
        if (copied) gather(keys, values, a, seq, t, count, kv_head, wide);
        if (n > 1 && low >= t + KEYS - 1 && (whole == 0 || whole < t)) {
            b.from = 0;
            b.count = KEYS;
            for (int g = 0; g < group; g++)
                step(out + (size_t)g * out_head, out_row, q + g * d, width, n, &b, state + g, group, t == 0);
            continue;
        }
        for (int i = 0; i < n; i++) {
            const int from = first_seen(a, r->pos[row + i]) - t;
            b.from = from > 0 ? from : 0;
            b.count = r->pos[row + i] + 1 - t < KEYS ? r->pos[row + i] + 1 - t : KEYS;
            for (int g = 0; b.count > b.from && g < group; g += MR2)
                step(out + (size_t)i * out_row + (size_t)g * out_head, out_head,
                     q + (size_t)i * width + (size_t)(g * d), (size_t)d, group - g < MR2 ? group - g : MR2, &b,
                     state + i * group + g, 1, t == 0 || from >= 0);
        }
    }
    for (int i = 0; i < n; i++)
        for (int g = 0; g < group; g++) {
            struct vec16 l;
            float *o = out + (size_t)i * out_row + (size_t)g * out_head;
            for (int j = 0; j < VECS; j++) l.v[j] = load(state[i * group + g].sum + j * W);
            float sum = vec16_sum(l);
            vf inverse = SPLAT(1 / sum);
            for (int j = 0; j < wide; j += W) store(o + j, load(o + j) * inverse);
            if (ragged) memcpy(a->out + at + (size_t)i * width + (size_t)(g * d), o, (size_t)d * sizeof *o);
            if (a->lse)
                a->lse[(size_t)(row + i) * (size_t)a->heads + (size_t)(kv_head * group + g)] =
                    (float)((double)state[i * group + g].max + log((double)sum));
        }
}

static float dot(const float *a, const float *b, int n)
{
    struct vec16 sum = vec16_of(0);

    for (int j = 0; j < n; j += 16)
        for (int l = 0; l < VECS; l++) {
            size_t at = (size_t)(j + l * W), n_d = (size_t)n;
            sum.v[l] = FMA(load_in(a, at, n_d, 0), load_in(b, at, n_d, 0), sum.v[l]);
        }
    return vec16_sum(sum);
}

/* s becomes p = exp(s' - lse), dp becomes ds = p (dp - delta) scale slope, for a token that sees keys [from, count): s'
 * is s scale, capped. */
static void softmax_back(float *s, float *dp, int from, int count, float scale, float cap, float lse, float delta)
{
    for (int j = 0; j < KEYS; j += W) {
        vf x = load(s + j) * scale, slope = SPLAT(1.f);
        if (cap > 0) {
            x = cap_v(x, cap);
            slope -= x / cap * (x / cap);
        }
        vf p = PICK(before(j, count), exp_v(x - SPLAT(lse)), SPLAT(0.f));
        if (from > 0) p = PICK(before(j, from), SPLAT(0.f), p);
        vf ds = p * (load(dp + j) - SPLAT(delta)) * scale;
        store(s + j, p);
        store(dp + j, cap > 0 ? ds * slope : ds);
    }
}

/* to[rows][wide] = from[rows][d], rows ld apart, padded with zeros. */
static const float *pad_rows(float *to, const float *from, size_t ld, int rows, int d, int wide)
{
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < wide; j++) to[i * wide + j] = j < d ? from[(size_t)i * ld + (size_t)j] : 0;
    return to;
}

/* All tokens of a sequence, one kv head. The outer loop is over blocks of keys, so that their d_k and d_v stay in the
 * cache; d_q is summed in the order of keys. No block has both keys before the tokens and keys of the tokens. */
void HOT(wz_attend_back)(const struct attend *a, int row, int n, int kv_head)
{
    int d = a->kv->head_dim, wide = (d + 15) / 16 * 16, group = a->heads / a->kv->heads;
    const int past = a->past;
    size_t width = (size_t)a->heads * (size_t)d;
    size_t kv_width = (size_t)a->kv->heads * (size_t)d;
    size_t size = (size_t)(KEYS * wide);
    float buffers[9 * KEYS * MOST_D] __attribute__((aligned(64)));
    float s[KEYS * KEYS] __attribute__((aligned(64))), dp[KEYS * KEYS] __attribute__((aligned(64)));
    float *kt = buffers;
    float *k = kt + size;
    float *vt = k + size;
    float *v = vt + size;
    float *d_k = v + size;
    float *d_v = d_k + size;
    float *copies = d_v + size;
    float scale = 1 / sqrtf((float)d);

    assert(d <= MOST_D);
    memset(buffers, 0, 4 * size * sizeof *buffers);
    for (int t = 0, keys; t < past + n; t += keys) {
        const int end = t < past ? past : past + n, first = t < past ? 0 : t - past; /* first: token that sees them */
        keys = end - t < KEYS ? end - t : KEYS;
        gather(kt, v, a, a->rows->seq[row], t, keys, kv_head, wide);
        for (int i = 0; i < keys; i++)
            for (int j = 0; j < d; j++) {
                k[i * wide + j] = kt[j * KEYS + i];
                vt[j * KEYS + i] = v[i * wide + j];
            }
        memset(d_k, 0, 2 * size * sizeof *d_k);
        for (int h = kv_head * group; h < (kv_head + 1) * group; h++)
            for (int i = first; i < n; i += KEYS) {
                int rows = n - i < KEYS ? n - i : KEYS;
                size_t at = (size_t)(row + i) * width + (size_t)(h * d), ld = width;
                const float *q = a->q + at, *d_out = a->d_out + at;
                float *d_q = a->d_q + at;
                if (wide > d) {
                    q = pad_rows(copies, q, width, rows, d, wide);
                    d_out = pad_rows(copies + size, d_out, width, rows, d, wide);
                    d_q = copies + 2 * size;
                    if (t > 0) pad_rows(d_q, a->d_q + at, width, rows, d, wide);
                    ld = (size_t)wide;
                }
                product(s, KEYS, q, ld, 1, rows, kt, KEYS, KEYS, d, false);
                product(dp, KEYS, d_out, ld, 1, rows, vt, KEYS, KEYS, d, false);
                for (int j = 0; j < rows; j++) {
                    size_t to = at + (size_t)j * width;
                    int seen = past + i + j + 1 - t < keys ? past + i + j + 1 - t : keys;
                    softmax_back(s + j * KEYS, dp + j * KEYS, first_seen(a, past + i + j) - t, seen, scale,
                                 a->scores.cap, a->lse[(size_t)(row + i + j) * (size_t)a->heads + (size_t)h],
                                 dot(a->d_out + to, a->o + to, d));
                }
                product(d_v, (size_t)wide, s, 1, KEYS, keys, d_out, ld, wide, rows, true);
                product(d_k, (size_t)wide, dp, 1, KEYS, keys, q, ld, wide, rows, true);
                product(d_q, ld, dp, KEYS, 1, rows, k, (size_t)wide, wide, keys, t > 0);
                for (int j = 0; j < rows && wide > d; j++)
                    memcpy(a->d_q + at + (size_t)j * width, d_q + j * wide, (size_t)d * sizeof *d_q);
            }
        float *to_k = t < past ? a->past_k : a->d_k, *to_v = t < past ? a->past_v : a->d_v;
        for (int i = 0; i < keys; i++) {
            size_t to = (size_t)((t < past ? t : row + t - past) + i) * kv_width + (size_t)(kv_head * d);
            memcpy(to_k + to, d_k + i * wide, (size_t)d * sizeof *d_k);
            memcpy(to_v + to, d_v + i * wide, (size_t)d * sizeof *d_v);
        }
    }
}
