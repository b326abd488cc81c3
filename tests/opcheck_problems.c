/* opcheck's problems: for each op its arrays, shapes, inputs and budget, and how it is called for a few of its rows. */
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "tests/opcheck.h"

/* ---- making problems -------------------------------------------------------------------------------------- */

static uint32_t draw(const struct problem *p, uint32_t what, uint32_t i, uint32_t n)
{
    return wz_below((struct wz_key){ 7, WZ_RNG_TEST, what, i, (uint32_t)p->shape, 1 }, n);
}

static int add_array(struct problem *p, const char *name, enum role role, size_t row, size_t rows, float size)
{
    struct array *a = &p->a[p->arrays];

    *a = (struct array){ .name = name, .role = role, .n = row * rows, .row = row };
    a->init = wz_alloc(a->n * sizeof *a->init);
    for (size_t i = 0; i < a->n; i++)
        a->init[i] = size * (float)wz_normal((struct wz_key){ 3, WZ_RNG_TEST, (uint32_t)p->arrays, (uint32_t)i,
                                                              (uint32_t)p->shape, 2 });
    return p->arrays++;
}

static void add_common(struct problem *p, const char *name, enum role role, size_t n, float size)
{
    p->a[add_array(p, name, role, n, 1, size)].row = 0;
}

static void add_host(struct problem *p, const char *name, enum role role, size_t row)
{
    p->a[add_array(p, name, role, row, (size_t)p->n, 1)].host = true;
}

static void add_weight(struct problem *p)
{
    add_common(p, "w", IN, (size_t)p->in * (size_t)p->out, 1 / sqrtf((float)p->in));
    if (p->type == WZ_F32) return;
    struct array *a = &p->a[p->arrays - 1];
    uint16_t *half = wz_alloc(a->n * sizeof *half);
    for (size_t i = 0; i < a->n; i++) half[i] = wz_f32_to_bf16(a->init[i]);
    free(a->init);
    a->init = (float *)half;
    a->bf16 = true;
}

static void add_ids(struct problem *p, int end, bool some_absent)
{
    p->ids = wz_alloc((size_t)p->n * sizeof *p->ids);
    for (int i = 0; i < p->n; i++)
        p->ids[i] = some_absent && i % 5 == 3 ? -1 : (int)draw(p, 90, (uint32_t)i, (uint32_t)end);
    if (p->n > 2) p->ids[2] = p->ids[0];
}

void opcheck_finish(struct problem *p)
{
    for (int i = 0; i < p->arrays; i++) free(p->a[i].init);
    free(p->ids);
    free(p->seq);
    free(p->pos);
    free(p->table);
    free(p->picks);
}

/* ---- calls ------------------------------------------------------------------------------------------------ */

#define ROWS(a, i) ((a)[i] + (size_t)from * p->a[i].row)
#define CALL(name) static void call_##name(const struct problem *p, struct wz_backend *be, float **a, int from, int to)

static struct wz_weight weight_of(const struct problem *p, struct wz_backend *be, float *data)
{
    struct wz_weight w = { data, p->type, p->out, p->in, NULL, p->cap };

    wz_pack(be, &w);
    return w;
}

CALL(embed)
{
    struct wz_weight w = weight_of(p, be, a[1]);

    wz_embed(be, ROWS(a, 0), &w, p->ids + from, to - from);
    wz_unpack(be, &w);
}

CALL(embed_back) { wz_embed_back(be, a[0], ROWS(a, 1), p->ids + from, to - from, p->in); }

CALL(rmsnorm)
{
    wz_rmsnorm(be, ROWS(a, 0), ROWS(a, 1), p->add ? ROWS(a, 0) : ROWS(a, 2), a[3], to - from, p->in, 1e-5f, p->one);
}

CALL(rmsnorm_back)
{
    wz_rmsnorm_back(be, ROWS(a, 0), a[1], ROWS(a, 2), ROWS(a, 3), a[4], ROWS(a, 5), to - from, p->in, p->one);
}

CALL(matmul)
{
    struct wz_weight w = weight_of(p, be, a[2]);

    wz_matmul(be, ROWS(a, 0), ROWS(a, 1), &w, to - from, p->add);
    wz_unpack(be, &w);
}

/* The second matrix is the first's upper half. */
CALL(matmuls)
{
    struct wz_weight w = weight_of(p, be, a[3]), half = { w.data, w.type, (p->out + 1) / 2, p->in, NULL, 0 };

    wz_pack(be, &half);
    wz_matmuls(be, (float *[]){ ROWS(a, 0), ROWS(a, 1) }, ROWS(a, 2), (const struct wz_weight *[]){ &w, &half }, 2,
               to - from);
    wz_unpack(be, &w);
    wz_unpack(be, &half);
}

CALL(matmul_back_x)
{
    struct wz_weight w = weight_of(p, be, a[2]);

    wz_matmul_back_x(be, ROWS(a, 0), ROWS(a, 1), &w, to - from, p->add);
    wz_unpack(be, &w);
}

CALL(matmul_back_w)
{
    const struct wz_weight w = { a[0], p->type, p->out, p->in, NULL, 0 }; /* of which only type and shape count */

    wz_matmul_back_w(be, a[0], ROWS(a, 1), ROWS(a, 2), &w, to - from);
}

CALL(rope) { wz_rope(be, ROWS(a, 0), p->pos + from, a[1], to - from, p->heads, p->in, p->add ? -1 : 1); }

CALL(swiglu) { wz_swiglu(be, ROWS(a, 0), ROWS(a, 1), ROWS(a, 2), (size_t)((to - from) * p->in), p->act); }

CALL(swiglu_back)
{
    wz_swiglu_back(be, ROWS(a, 0), ROWS(a, 1), ROWS(a, 2), ROWS(a, 3), ROWS(a, 4), (size_t)((to - from) * p->in),
                   p->act);
}

/* Rows write their keys and values, then look back. All pages start as NaN: only what was written may be read. */
CALL(attention)
{
    struct wz_rows r = { to - from, p->seqs, p->stride, p->seq + from, p->pos + from, p->table };

    wz_kv_write(be, &p->kv, ROWS(a, 3), ROWS(a, 4), &r);
    wz_attention(be, ROWS(a, 0), ROWS(a, 1), ROWS(a, 2), &p->kv, &r, p->heads, p->scores);
}

/* The last row of each sequence looks back from a fork: the same table but for the last page, whose first slots are
 * copied. */
CALL(kv_copy)
{
    struct wz_rows r = { to - from, p->seqs, p->stride, p->seq + from, p->pos + from, p->table };

    wz_kv_write(be, &p->kv, ROWS(a, 3), ROWS(a, 4), &r);
    for (int i = from; i < to; i++) {
        int *page = &p->table[p->seq[i] * p->stride + p->pos[i] / p->page], old = *page, spare = p->kv.pages - 1;
        wz_kv_copy(be, &p->kv, spare, old, p->pos[i] % p->page + 1);
        *page = spare;
        struct wz_rows one = { 1, p->seqs, p->stride, p->seq + i, p->pos + i, p->table };
        wz_attention(be, a[0] + (size_t)i * p->a[0].row, NULL, a[2] + (size_t)i * p->a[2].row, &p->kv, &one, p->heads,
                     p->scores);
        *page = old;
    }
}

/* The rows' keys and values, and those of what every sequence begins with (arrays 11 and 12). */
static void write_keys(const struct problem *p, struct wz_backend *be, const struct wz_kv *kv, float **a,
                       const struct wz_rows *r, const float *k, const float *v)
{
    int *seq = wz_alloc(2 * (size_t)p->past * sizeof *seq), *pos = seq + p->past;

    wz_kv_write(be, kv, k, v, r);
    for (int s = 0; s < p->seqs && p->past; s++) {
        for (int i = 0; i < p->past; i++) seq[i] = s, pos[i] = i;
        wz_kv_write(be, kv, a[11], a[12], &(struct wz_rows){ p->past, p->seqs, p->stride, seq, pos, p->table });
    }
    free(seq);
}

CALL(attention_back)
{
    struct wz_rows r = { to - from, p->seqs, p->stride, p->seq + from, p->pos + from, p->table };
    struct wz_past past = { a[9], a[10], p->past };

    write_keys(p, be, &p->kv, a, &r, ROWS(a, 7), ROWS(a, 8));
    wz_attention_back(be, ROWS(a, 0), ROWS(a, 1), ROWS(a, 2), p->past ? past : (struct wz_past){ 0 }, ROWS(a, 3),
                      ROWS(a, 4), ROWS(a, 5), ROWS(a, 6), &p->kv, &r, p->heads, p->scores);
}

CALL(head_logprob)
{
    struct wz_weight w = weight_of(p, be, a[4]);

    wz_head_logprob(be, ROWS(a, 0), ROWS(a, 1), p->add ? NULL : ROWS(a, 2), ROWS(a, 3), &w, p->ids + from,
                    p->temperature, to - from);
    wz_unpack(be, &w);
}

CALL(head_sample)
{
    struct wz_weight w = weight_of(p, be, a[3]);
    int *token = wz_alloc((size_t)(to - from) * sizeof *token);

    wz_head_sample(be, token, ROWS(a, 1), ROWS(a, 2), &w, p->picks + from, to - from);
    for (int i = from; i < to; i++) a[0][i] = (float)token[i - from];
    wz_unpack(be, &w);
    free(token);
}

CALL(head_logits)
{
    struct wz_weight w = weight_of(p, be, a[2]);

    wz_head_logits(be, ROWS(a, 0), ROWS(a, 1), &w, to - from);
    wz_unpack(be, &w);
}

CALL(head_back)
{
    struct wz_weight w = weight_of(p, be, a[3]);

    wz_head_back(be, ROWS(a, 0), p->add ? NULL : a[1], ROWS(a, 2), &w, p->ids + from, ROWS(a, 4), ROWS(a, 5),
                 p->temperature, to - from);
    wz_unpack(be, &w);
}

/* Read back by a look-up in the matrix that it makes, which has a row to spare since it must have one. */
CALL(cast)
{
    int n = to - from, *ids = wz_alloc((size_t)n * sizeof *ids);
    struct wz_weight w = {
        wz_backend_alloc(be, (size_t)((n + 1) * p->in) * sizeof(uint16_t)), WZ_BF16, n + 1, p->in, NULL, 0
    };

    for (int i = 0; i < n; i++) ids[i] = i;
    wz_cast(be, w.data, ROWS(a, 1), (size_t)(n * p->in));
    wz_embed(be, ROWS(a, 0), &w, ids, n);
    wz_backend_free(be, w.data);
    free(ids);
}

CALL(add) { wz_add(be, ROWS(a, 0), ROWS(a, 1), (size_t)((to - from) * p->in)); }

CALL(scale) { wz_scale(be, ROWS(a, 0), p->add ? ROWS(a, 0) : ROWS(a, 1), 0.3f, (size_t)((to - from) * p->in)); }

CALL(bias) { wz_bias(be, ROWS(a, 0), a[1], to - from, p->in); }

CALL(bias_back) { wz_bias_back(be, a[0], ROWS(a, 1), to - from, p->in); }

CALL(squares)
{
    size_t blocks = p->a[0].n / 3;
    double *s = wz_alloc(blocks * sizeof *s);

    wz_squares(be, s, a[1], p->a[1].n);
    for (size_t i = 0; i < blocks; i++) a[0][i] = (float)s[i];
    memcpy(a[0] + blocks, s, blocks * sizeof *s); /* all their bits, for comparing; as floats they are not read */
    free(s);
}

CALL(adamw)
{
    wz_adamw(be, ROWS(a, 0), ROWS(a, 3), ROWS(a, 1), ROWS(a, 2), (size_t)((to - from) * p->in), 1e-2f, 0.9f, 0.95f,
             1e-8f, 0.1f, 0.5f, 3);
}

/* ---- problems by op --------------------------------------------------------------------------------------- */

static const int row_counts[] = { 1, 7, 64 };
static const struct {
    int in, out;
} sizes[] = { { 11, 37 }, { 253, 11 }, { 64, 192 }, { 300, 100 }, { 576, 65 } };

/* shape -> rows, sizes, type (the first `types`); false past the last. */
static bool dense_shape(struct problem *p, int types, bool adds)
{
    int s = p->shape, all = (int)(WZ_COUNT(row_counts) * WZ_COUNT(sizes));

    p->n = row_counts[s % 3];
    p->in = sizes[s / 3 % (int)WZ_COUNT(sizes)].in;
    p->out = sizes[s / 3 % (int)WZ_COUNT(sizes)].out;
    p->type = (enum wz_type)(s / all % types);
    p->add = adds && s / all / types % 2;
    p->step = 1;
    return s < all * types * (adds ? 2 : 1);
}

/* The same with adds, and one more of each type, for tiles that are used where there are many. */
static bool product_shape(struct problem *p, int types, bool adds)
{
    if (dense_shape(p, types, adds)) return true;
    int past = p->shape - (int)(WZ_COUNT(row_counts) * WZ_COUNT(sizes)) * types * (adds ? 2 : 1);
    p->n = 200;
    p->in = 344;
    p->out = 520;
    p->type = (enum wz_type)past;
    p->add = false;
    return past < types;
}

static bool make_embed(struct problem *p)
{
    if (!dense_shape(p, 2, false)) return false;
    add_array(p, "out", OUT, (size_t)p->in, (size_t)p->n, 1);
    add_weight(p);
    add_ids(p, p->out, false);
    return true;
}

static bool make_embed_back(struct problem *p)
{
    if (!dense_shape(p, 1, false)) return false;
    add_common(p, "d_table", SUM, (size_t)p->in * (size_t)p->out, 1);
    add_array(p, "d_out", IN, (size_t)p->in, (size_t)p->n, 1);
    add_ids(p, p->out, false);
    p->budget = 1e-6; /* up to 64 additions in float */
    return true;
}

/* add: in place */
static bool make_rmsnorm(struct problem *p)
{
    if (!dense_shape(p, 1, true)) return false;
    p->one = (float)(p->shape % 2);
    add_array(p, "out", p->add ? SUM : OUT, (size_t)p->in, (size_t)p->n, 1);
    add_array(p, "rstd", OUT, 1, (size_t)p->n, 1);
    add_array(p, "x", IN, (size_t)p->in, (size_t)p->n, 3);
    add_common(p, "w", IN, (size_t)p->in, 1);
    p->budget = 1e-6; /* 16 float sums of C / 16 squares */
    return true;
}

static bool make_rmsnorm_back(struct problem *p)
{
    if (!dense_shape(p, 1, false)) return false;
    p->one = (float)(p->shape % 2);
    add_array(p, "d_x", SUM, (size_t)p->in, (size_t)p->n, 1);
    add_common(p, "d_w", SUM, (size_t)p->in, 1);
    add_array(p, "d_out", IN, (size_t)p->in, (size_t)p->n, 1);
    add_array(p, "x", IN, (size_t)p->in, (size_t)p->n, 2);
    add_common(p, "w", IN, (size_t)p->in, 1);
    int r = add_array(p, "rstd", IN, 1, (size_t)p->n, 1);
    for (int i = 0; i < p->n; i++) p->a[r].init[i] = 0.5f + 0.01f * (float)i;
    p->budget = 3e-6; /* a float sum over C and another over N */
    return true;
}

/* In the order amx ref has the bits, but for a cap. */
static bool exact(const struct problem *p) { return p->type == WZ_BF16 && opcheck_ref->amx && p->cap == 0; }

static bool make_matmul(struct problem *p)
{
    if (!product_shape(p, opcheck_ref->int8 ? 3 : 2, true)) return false;
    add_array(p, "y", p->add ? SUM : OUT, (size_t)p->out, (size_t)p->n, 1);
    add_array(p, "x", IN, (size_t)p->in, (size_t)p->n, 1);
    add_weight(p);
    p->budget = exact(p) ? 0 : 3e-6; /* a float chain over in */
    return true;
}

static bool make_matmuls(struct problem *p)
{
    if (!dense_shape(p, opcheck_ref->int8 ? 3 : 2, false)) return false;
    add_array(p, "y", OUT, (size_t)p->out, (size_t)p->n, 1);
    add_array(p, "y half", OUT, (size_t)(p->out + 1) / 2, (size_t)p->n, 1);
    add_array(p, "x", IN, (size_t)p->in, (size_t)p->n, 1);
    add_weight(p);
    p->budget = exact(p) ? 0 : 3e-6; /* a float chain over in */
    return true;
}

static bool make_matmul_back_x(struct problem *p)
{
    if (!product_shape(p, 2, true)) return false;
    add_array(p, "d_x", p->add ? SUM : OUT, (size_t)p->in, (size_t)p->n, 1);
    add_array(p, "d_y", IN, (size_t)p->out, (size_t)p->n, 1);
    add_weight(p);
    p->budget = exact(p) ? 0 : 3e-6; /* a float chain over out */
    return true;
}

static bool make_matmul_back_w(struct problem *p)
{
    if (!product_shape(p, 2, false)) return false;
    add_common(p, "d_w", SUM, (size_t)p->in * (size_t)p->out, 1);
    add_array(p, "d_y", IN, (size_t)p->out, (size_t)p->n, 1);
    add_array(p, "x", IN, (size_t)p->in, (size_t)p->n, 1);
    p->budget = exact(p) ? 0 : 1e-6; /* a float chain over N in both; without FMA each product is rounded too */
    return true;
}

static bool make_rope(struct problem *p)
{
    static const int d[] = { 2, 16, 64, 80, 128 };

    if (p->shape >= 30) return false;
    p->n = row_counts[p->shape % 3];
    p->in = d[p->shape / 3 % 5];
    p->add = p->shape >= 15;
    p->heads = 1 + p->shape % 4;
    p->step = 1;
    add_array(p, "x", SUM, (size_t)(p->heads * p->in), (size_t)p->n, 1);
    add_common(p, "freq", IN, (size_t)p->in / 2, 1);
    p->a[1].host = true;
    for (int j = 0; j < p->in / 2; j++) p->a[1].init[j] = (float)pow(10000, -2.0 * j / p->in);
    p->pos = wz_alloc((size_t)p->n * sizeof *p->pos);
    for (int i = 0; i < p->n; i++) p->pos[i] = (int)draw(p, 91, (uint32_t)i, 3000);
    p->budget = 1e-6; /* cos and sin rounded to float */
    return true;
}

static bool make_swiglu(struct problem *p)
{
    if (!dense_shape(p, 1, false)) return false;
    p->act = p->shape % 2 ? WZ_GELU : WZ_SILU;
    add_array(p, "out", OUT, (size_t)p->in, (size_t)p->n, 1);
    add_array(p, "gate", IN, (size_t)p->in, (size_t)p->n, 8);
    add_array(p, "up", IN, (size_t)p->in, (size_t)p->n, 1);
    p->a[1].init[0] = 100;
    if (p->a[1].n > 1) p->a[1].init[1] = -100;
    p->budget = 1e-6; /* exp within 2 ulp and five roundings */
    return true;
}

static bool make_swiglu_back(struct problem *p)
{
    if (!dense_shape(p, 1, false)) return false;
    p->act = p->shape % 2 ? WZ_GELU : WZ_SILU;
    add_array(p, "d_gate", OUT, (size_t)p->in, (size_t)p->n, 1);
    add_array(p, "d_up", OUT, (size_t)p->in, (size_t)p->n, 1);
    add_array(p, "d_out", IN, (size_t)p->in, (size_t)p->n, 1);
    add_array(p, "gate", IN, (size_t)p->in, (size_t)p->n, 8);
    add_array(p, "up", IN, (size_t)p->in, (size_t)p->n, 1);
    p->budget = p->act == WZ_GELU ? 3e-6 : 1e-6; /* a cubic in the exponent */
    return true;
}

/* Sequences of odd lengths over pages dealt out backwards; whole: rows in order of sequence, else dealt round. For
 * tensor cores more of them: lengths beyond their splits of keys, and groups of heads that fill and overfill their
 * tiles. */
static bool plain_shape(struct problem *p, bool whole)
{
    static const struct {
        int heads, kv_heads, d, page, len[4];
    } more[] = {
        { 3, 1, 64, 7, { 530, 3 } },  { 1, 1, 128, 32, { 515 } },           { 8, 1, 128, 48, { 17, 100, 64, 2 } },
        { 20, 1, 64, 16, { 1, 65 } }, { 8, 2, 128, 16, { 40, 1, 70, 33 } },
    };
    static const struct {
        int heads, kv_heads, d, page;
    } all[] = {
        { 4, 4, 16, 16 },  { 6, 2, 64, 16 }, { 4, 1, 80, 32 }, { 3, 1, 128, 48 }, { 6, 2, 16, 5 },
        { 13, 1, 32, 64 }, { 2, 1, 12, 7 },  { 8, 4, 8, 16 },  { 2, 2, 258, 16 },
    };
    static const int lens[][4] = { { 1 }, { 5, 1, 1 }, { 40, 1, 70, 33 }, { 17, 100, 16, 2 } };

    int kind = p->shape / 4, kinds = (int)WZ_COUNT(all), extra = p->shape - 8 * kinds, longest = 100;
    if (kind >= kinds && (!opcheck_ref->half_kv || extra >= (opcheck_ref->half_scores ? (int)WZ_COUNT(more) : 0)))
        return false;
    const int *len = extra < 0 ? lens[p->shape % 4] : more[extra].len;
    p->heads = extra < 0 ? all[kind % kinds].heads : more[extra].heads;
    p->kv_heads = extra < 0 ? all[kind % kinds].kv_heads : more[extra].kv_heads;
    p->in = extra < 0 ? all[kind % kinds].d : more[extra].d;
    p->page = extra < 0 ? all[kind % kinds].page : more[extra].page;
    p->half = kind >= kinds;
    for (; p->seqs < 4 && len[p->seqs] > 0; p->seqs++) {
        p->n += len[p->seqs];
        if (len[p->seqs] > longest) longest = len[p->seqs];
    }
    p->stride = longest / p->page + 1;
    p->seq = wz_alloc((size_t)p->n * sizeof *p->seq);
    p->pos = wz_alloc((size_t)p->n * sizeof *p->pos);
    p->table = wz_alloc((size_t)(p->seqs * p->stride) * sizeof *p->table);
    for (int i = 0; i < p->seqs * p->stride; i++) p->table[i] = p->seqs * p->stride - 1 - i;
    for (int i = 0, s = 0, done[4] = { 0 }; i < p->n; i++) {
        int tries = whole ? 0 : i % 3 == 0; /* not whole: pieces of sequences alternate */
        for (s = (s + tries) % p->seqs; done[s] == len[s];) s = (s + 1) % p->seqs;
        p->seq[i] = s;
        p->pos[i] = done[s]++;
    }
    p->step = whole ? 0 : 1;
    return true;
}

/* All of them, and those that are not for tensor cores alone once more with caps and windows. */
static bool attention_shape(struct problem *p, bool whole)
{
    static const struct wz_scores scores[] = { { 0, 17 }, { 1.5f, 0 }, { 1.5f, 40 } };
    const int shape = p->shape;

    if (plain_shape(p, whole)) return true;
    for (p->shape = 0;; p->shape++) {
        struct problem other = { .shape = p->shape };
        if (!plain_shape(&other, whole)) break;
        opcheck_finish(&other);
    }
    p->scores = scores[shape % 3];
    p->shape = shape - p->shape;
    const bool there = p->shape < (opcheck_ref->half_kv ? 72 : 36) && plain_shape(p, whole);
    p->shape = shape;
    return there;
}

static size_t q_width(const struct problem *p) { return (size_t)(p->heads * p->in); }

static size_t kv_width(const struct problem *p) { return (size_t)(p->kv_heads * p->in); }

/* Whether products are of bf16; if so an input is rounded beforehand, so that nobody is blamed for it. */
static bool rounds(struct problem *p, int i)
{
    bool yes = p->half && opcheck_ref->half_scores;

    for (size_t j = 0; j < p->a[i].n && yes; j++) p->a[i].init[j] = wz_bf16_to_f32(wz_f32_to_bf16(p->a[i].init[j]));
    return yes;
}

static bool make_attention(struct problem *p)
{
    if (!attention_shape(p, false)) return false;
    add_array(p, "out", OUT, q_width(p), (size_t)p->n, 1);
    add_array(p, "lse", OUT, (size_t)p->heads, (size_t)p->n, 1);
    add_array(p, "q", IN, q_width(p), (size_t)p->n, 3);
    add_array(p, "k", IN, kv_width(p), (size_t)p->n, 1);
    add_array(p, "v", IN, kv_width(p), (size_t)p->n, 1);
    p->budget = rounds(p, 2) ? 4e-3 : 3e-6; /* a p of bf16; exp of a float score near 10 */
    return true;
}

static bool make_kv_copy(struct problem *p)
{
    if (!make_attention(p)) return false;
    p->a[1].role = IN;
    return true;
}

/* Sequences of one length that follow a common past: shorter and longer than blocks of keys and tiles, within pages and
 * at their ends. Calls may be cut between sequences. Those over bf16 are last. */
static const struct past {
    int heads, kv_heads, d, page, past, rows, seqs;
    bool half;
} pasts[] = {
    { 6, 2, 64, 16, 48, 5, 4, false },    { 4, 4, 16, 16, 1, 40, 2, false },   { 2, 1, 12, 7, 33, 9, 3, false },
    { 3, 1, 128, 48, 100, 33, 1, false }, { 2, 2, 258, 16, 16, 3, 2, false },  { 4, 1, 80, 32, 70, 1, 11, false },
    { 6, 2, 64, 16, 48, 5, 4, true },     { 8, 2, 128, 16, 144, 70, 2, true }, { 3, 1, 64, 16, 130, 33, 3, true },
    { 6, 2, 16, 5, 31, 17, 2, true },
};
enum { PASTS = WZ_COUNT(pasts), PASTS_HALF = 4 };

static void past_shape(struct problem *p, const struct past *past)
{
    p->heads = past->heads;
    p->kv_heads = past->kv_heads;
    p->in = past->d;
    p->page = past->page;
    p->half = past->half;
    p->past = past->past;
    p->seqs = past->seqs;
    p->step = past->rows;
    p->n = p->seqs * p->step;
    p->stride = (p->past + p->step) / p->page + 1;
    p->seq = wz_alloc((size_t)p->n * sizeof *p->seq);
    p->pos = wz_alloc((size_t)p->n * sizeof *p->pos);
    p->table = wz_alloc((size_t)(p->seqs * p->stride) * sizeof *p->table);
    for (int t = 0; t < p->seqs * p->stride; t++) p->table[t] = p->seqs * p->stride - 1 - t;
    for (int t = 0; t < p->n; t++) p->seq[t] = t / p->step, p->pos[t] = p->past + t % p->step;
}

/* Those of a past first; then whole sequences. */
static bool attention_back_shape(struct problem *p)
{
    const int n = PASTS - (opcheck_ref->half_kv ? 0 : PASTS_HALF);
    bool there;

    if (p->shape < n) {
        past_shape(p, &pasts[p->shape]);
        if (p->shape % 4 == 3) p->scores = (struct wz_scores){ 2, 37 };
        return true;
    }
    p->shape -= n;
    there = attention_shape(p, true);
    p->shape += n;
    return there;
}

/* out and lse are ref's own forward, so that the problem is consistent. */
static bool make_attention_back(struct problem *p)
{
    if (!attention_back_shape(p)) return false;
    add_array(p, "d_q", OUT, q_width(p), (size_t)p->n, 1);
    add_array(p, "d_k", OUT, kv_width(p), (size_t)p->n, 1);
    add_array(p, "d_v", OUT, kv_width(p), (size_t)p->n, 1);
    add_array(p, "d_out", IN, q_width(p), (size_t)p->n, 1);
    add_array(p, "out", IN, q_width(p), (size_t)p->n, 1);
    add_array(p, "lse", IN, (size_t)p->heads, (size_t)p->n, 1);
    add_array(p, "q", IN, q_width(p), (size_t)p->n, 2);
    add_array(p, "k", IN, kv_width(p), (size_t)p->n, 1);
    add_array(p, "v", IN, kv_width(p), (size_t)p->n, 1);
    add_common(p, "past.d_k", SUM, (size_t)p->past * kv_width(p), 1);
    add_common(p, "past.d_v", SUM, (size_t)p->past * kv_width(p), 1);
    add_common(p, "past k", IN, (size_t)p->past * kv_width(p), 1);
    add_common(p, "past v", IN, (size_t)p->past * kv_width(p), 1);
    struct wz_kv kv = { NULL, NULL, p->seqs * p->stride, p->page, p->kv_heads, p->in, p->half };
    size_t size = (size_t)(kv.pages * p->page) * kv_width(p) * sizeof(float);
    struct wz_rows r = { p->n, p->seqs, p->stride, p->seq, p->pos, p->table };
    float *a[WZ_COUNT(p->a)];
    for (int i = 0; i < p->arrays; i++) a[i] = p->a[i].init;
    kv.k = wz_alloc(size);
    kv.v = wz_alloc(size);
    p->budget =
        rounds(p, 3) && rounds(p, 6) ? 1e-2 : 1e-5; /* p and ds of bf16; exp of a float score, then float sums */
    write_keys(p, opcheck_ref, &kv, a, &r, a[7], a[8]);
    wz_attention(opcheck_ref, a[4], a[5], a[6], &kv, &r, p->heads, p->scores);
    free(kv.k);
    free(kv.v);
    p->floor = 1; /* a softmax over one key has no gradient */
    return true;
}

/* Vocabularies below, at and beyond a block. */
static bool head_shape(struct problem *p)
{
    static const struct {
        int c, vocab;
    } all[] = { { 11, 37 }, { 37, 253 }, { 64, 256 }, { 48, 1300 }, { 110, 4500 } };
    int count = (int)WZ_COUNT(all);

    p->n = p->shape % 4 == 3 ? 150 : row_counts[p->shape % 4];
    p->in = all[p->shape / 4 % count].c;
    p->out = all[p->shape / 4 % count].vocab;
    p->type = p->shape / 4 / count % 2 ? WZ_BF16 : WZ_F32;
    p->add = p->shape % 3 == 2;
    p->temperature = p->shape % 2 ? 0.7f : 1;
    p->cap = p->shape % 5 == 1 ? 4 : 0;
    p->step = 1;
    return p->shape < 8 * count;
}

static bool make_head_logprob(struct problem *p)
{
    if (!head_shape(p)) return false;
    add_host(p, "logp", OUT, 1);
    add_host(p, "lse", OUT, 1);
    add_host(p, "entropy", p->add ? IN : OUT, 1);
    add_array(p, "x", IN, (size_t)p->in, (size_t)p->n, 3);
    add_weight(p);
    add_ids(p, p->out, true);
    p->budget = 2e-6; /* a float logit near 10, exp within 2 ulp */
    p->floor = 1;     /* logp near 0 is the difference of two larger numbers */
    return true;
}

/* Frequencies are another test's; here: that a pick is the same however rows are cut. Values may differ from ref
 * where u falls between two tokens, which 64 rows with fixed keys do not do. */
static bool make_head_sample(struct problem *p)
{
    if (!head_shape(p)) return false;
    add_host(p, "token", OUT, 1);
    add_host(p, "logp", OUT, 1);
    add_array(p, "x", IN, (size_t)p->in, (size_t)p->n, 2);
    add_weight(p);
    p->picks = wz_alloc((size_t)p->n * sizeof *p->picks);
    for (int i = 0; i < p->n; i++)
        p->picks[i] = (struct wz_pick){
            .temperature = i % 5 == 4 ? 0 : 0.5f + 0.25f * (float)(i % 4),
            .top_k = i % 3 == 1 ? 1 + i % 40 : 0,
            .top_p = i % 4 == 2 ? 0.8f : 1,
            .min_p = i % 7 == 3 ? 0.1f : 0,
            .u = wz_uniform((struct wz_key){ 5, WZ_RNG_TEST, (uint32_t)p->shape, (uint32_t)i, 0, 3 }),
        };
    p->budget = 2e-6;
    p->floor = 1;
    return true;
}

static bool make_head_logits(struct problem *p)
{
    if (!head_shape(p)) return false;
    add_host(p, "out", OUT, (size_t)p->out);
    add_array(p, "x", IN, (size_t)p->in, (size_t)p->n, 1);
    add_weight(p);
    p->budget = exact(p) ? 0 : 3e-6; /* a float chain over C */
    return true;
}

static bool make_head_back(struct problem *p)
{
    if (!head_shape(p)) return false;
    add_array(p, "d_x", OUT, (size_t)p->in, (size_t)p->n, 1);
    add_common(p, "d_w", p->add ? IN : SUM, (size_t)p->in * (size_t)p->out, 1);
    add_array(p, "x", IN, (size_t)p->in, (size_t)p->n, 2);
    add_weight(p);
    add_host(p, "d_logp", IN, 1);
    add_host(p, "lse", IN, 1);
    add_ids(p, p->out, true);
    float *logp = wz_alloc((size_t)p->n * sizeof *logp);
    struct wz_weight w = { p->a[3].init, p->type, p->out, p->in, NULL, p->cap };
    wz_head_logprob(opcheck_ref, logp, p->a[5].init, NULL, p->a[2].init, &w, p->ids, p->temperature, p->n);
    free(logp);
    /* float chains over V and over N; where g is rounded to bf16, an ulp of a float may turn into one of bf16 */
    p->budget = p->type == WZ_BF16 && opcheck_ref->rounds ? 2e-4 : 5e-6;
    return true;
}

static bool make_cast(struct problem *p)
{
    static const float hard[] = { 1 + 0x1p-8f, 1 + 0x3p-8f, -0.f, 0x1p-130f, 3.3e38f, 1 + 0x1p-8f + 0x1p-20f };

    if (!dense_shape(p, 1, false)) return false;
    add_array(p, "dst", OUT, (size_t)p->in, (size_t)p->n, 1);
    add_array(p, "src", IN, (size_t)p->in, (size_t)p->n, 1);
    memcpy(p->a[1].init, hard, sizeof hard); /* ties, and what overflows */
    return true;
}

static bool make_add(struct problem *p)
{
    if (!dense_shape(p, 1, false)) return false;
    add_array(p, "dst", SUM, (size_t)p->in, (size_t)p->n, 1);
    add_array(p, "src", IN, (size_t)p->in, (size_t)p->n, 1);
    return true;
}

static bool make_scale(struct problem *p)
{
    if (!dense_shape(p, 1, true)) return false;
    add_array(p, "out", p->add ? SUM : OUT, (size_t)p->in, (size_t)p->n, 1);
    add_array(p, "x", IN, (size_t)p->in, (size_t)p->n, 1);
    return true;
}

static bool make_bias(struct problem *p)
{
    if (!dense_shape(p, 1, false)) return false;
    add_array(p, "y", SUM, (size_t)p->in, (size_t)p->n, 1);
    add_common(p, "b", IN, (size_t)p->in, 1);
    return true;
}

static bool make_bias_back(struct problem *p)
{
    if (!dense_shape(p, 1, false)) return false;
    add_common(p, "d_b", SUM, (size_t)p->in, 1);
    add_array(p, "d_y", IN, (size_t)p->in, (size_t)p->n, 1);
    return true;
}

static bool make_squares(struct problem *p)
{
    if (p->shape >= 4) return false;
    p->n = 1;
    p->in = (int[]){ 1, 253, 65536, 300001 }[p->shape];
    add_common(p, "sums", OUT, 3 * (((size_t)p->in + WZ_BLOCK - 1) / WZ_BLOCK), 1);
    p->a[0].host = true;
    add_array(p, "x", IN, (size_t)p->in, 1, 1);
    p->budget = 1e-6; /* they are compared as floats */
    return true;
}

static bool make_adamw(struct problem *p)
{
    if (!dense_shape(p, 1, false)) return false;
    add_array(p, "w", SUM, (size_t)p->in, (size_t)p->n, 1);
    add_array(p, "m", SUM, (size_t)p->in, (size_t)p->n, 1);
    add_array(p, "v", SUM, (size_t)p->in, (size_t)p->n, 1);
    add_array(p, "g", IN, (size_t)p->in, (size_t)p->n, 1);
    for (size_t i = 0; i < p->a[2].n; i++) p->a[2].init[i] = 0.1f + p->a[2].init[i] * p->a[2].init[i];
    p->budget = 1e-6; /* a dozen roundings */
    return true;
}

/* ---- the table: a slot without a row fails ---------------------------------------------------------------- */

#define SLOT(name) offsetof(struct wz_ops, name)

const struct row opcheck_rows[] = {
    { "embed", SLOT(embed), make_embed, call_embed, false },
    { "embed_back", SLOT(embed_back), make_embed_back, call_embed_back, false },
    { "rmsnorm", SLOT(rmsnorm), make_rmsnorm, call_rmsnorm, false },
    { "rmsnorm_back", SLOT(rmsnorm_back), make_rmsnorm_back, call_rmsnorm_back, false },
    { "matmul", SLOT(matmul), make_matmul, call_matmul, false },
    { "matmuls", SLOT(matmuls), make_matmuls, call_matmuls, false },
    { "matmul_back_x", SLOT(matmul_back_x), make_matmul_back_x, call_matmul_back_x, false },
    { "matmul_back_w", SLOT(matmul_back_w), make_matmul_back_w, call_matmul_back_w, false },
    { "rope", SLOT(rope), make_rope, call_rope, false },
    { "attention", SLOT(attention), make_attention, call_attention, false },
    { "kv_copy", SLOT(kv_copy), make_kv_copy, call_kv_copy, true },
    { "attention_back", SLOT(attention_back), make_attention_back, call_attention_back, false },
    { "swiglu", SLOT(swiglu), make_swiglu, call_swiglu, false },
    { "swiglu_back", SLOT(swiglu_back), make_swiglu_back, call_swiglu_back, false },
    { "head_logprob", SLOT(head_logprob), make_head_logprob, call_head_logprob, true },
    { "head_sample", SLOT(head_sample), make_head_sample, call_head_sample, true },
    { "head_logits", SLOT(head_logits), make_head_logits, call_head_logits, true },
    { "head_back", SLOT(head_back), make_head_back, call_head_back, true },
    { "cast", SLOT(cast), make_cast, call_cast, false },
    { "add", SLOT(add), make_add, call_add, false },
    { "scale", SLOT(scale), make_scale, call_scale, false },
    { "bias", SLOT(bias), make_bias, call_bias, false },
    { "bias_back", SLOT(bias_back), make_bias_back, call_bias_back, false },
    { "squares", SLOT(squares), make_squares, call_squares, false },
    { "adamw", SLOT(adamw), make_adamw, call_adamw, false },
};

const size_t opcheck_n_rows = WZ_COUNT(opcheck_rows);
