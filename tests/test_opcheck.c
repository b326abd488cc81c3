/* Every slot of every backend's table keeps what kernels/ops.h promises, measured against ref:
 * the values within a budget; an output row the same bits alone, among others, twice, and on 1, 2 or 3 threads; "+=" into a
 * weight's gradient the same bits in one call and in many; inputs untouched and nothing written past an output.
 * ref's own backwards are held against finite differences of ref's forwards, samplers against exact probabilities.
 *
 *   opcheck [--row NAME] [--op NAME]     only these; a failure prints both
 *   opcheck --bench [threads]            GFLOP/s and GB/s instead
 *
 * A problem is a list of arrays with roles and a call over rows [from, to). All else is done by the harness. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/kernels.h"

enum role { IN = 1, OUT, SUM };      /* SUM: read and added to */

/* n floats (or bf16) of which `row` belong to each row (0: to all). Host arrays are not the backend's memory. */
struct array { const char *name; enum role role; bool host, bf16; size_t n, row; float *init; };

struct problem {
    const char *op;
    int shape, n;                                /* rows */
    int step;                                    /* rows that only make sense together; 0: all */
    int in, out, heads, kv_heads, page;          /* as the op reads them */
    float temperature;
    bool add;
    enum wz_type type;
    int *ids, *seq, *pos, *table, seqs, stride;
    struct wz_pick *picks;
    double budget, floor;                        /* largest error, in units of the array's largest value or of floor */
    struct array a[10];
    int arrays;
    void (*call)(const struct problem *p, struct wz_backend *be, float **a, int from, int to);
    struct wz_kv kv;                             /* made anew for every run */
};

static const struct target { const char *name, *row, *isa; } targets[] = {
    { "ref", "ref", NULL },
    { "cpu-generic", "cpu", "generic" },
    { "cpu-avx2", "cpu", "avx2" },
    { "cpu-avx512", "cpu", "avx512" },
};

static struct wz_backend *ref;
static const struct target *under_test;

static struct wz_backend *target_open(const struct target *t, int threads)
{
    struct wz_err err;

    if (t->isa) setenv("WZ_ISA", t->isa, 1);
    else unsetenv("WZ_ISA");
    struct wz_backend *be = wz_backend_open(t->row, threads, &err);
    if (!be) print_message("skipped: %s: %s\n", t->name, err.text);
    return be;
}

/* ---- making problems ------------------------------------------------------------------------------------------ */

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
        a->init[i] = size * (float)wz_normal((struct wz_key){ 3, WZ_RNG_TEST, (uint32_t)p->arrays, (uint32_t)i, (uint32_t)p->shape, 2 });
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

static void problem_finish(struct problem *p)
{
    for (int i = 0; i < p->arrays; i++) free(p->a[i].init);
    free(p->ids);
    free(p->seq);
    free(p->pos);
    free(p->table);
    free(p->picks);
}

/* ---- calls ---------------------------------------------------------------------------------------------------- */

#define ROWS(a, i) ((a)[i] + (size_t)from * p->a[i].row)
#define CALL(name) static void call_##name(const struct problem *p, struct wz_backend *be, float **a, int from, int to)

static struct wz_weight weight_of(const struct problem *p, struct wz_backend *be, float *data)
{
    struct wz_weight w = { data, p->type, p->out, p->in, NULL };

    wz_pack(be, &w);
    return w;
}

CALL(embed)
{
    struct wz_weight w = weight_of(p, be, a[1]);

    wz_embed(be, ROWS(a, 0), &w, p->ids + from, to - from);
    wz_unpack(be, &w);
}

CALL(embed_back)
{
    wz_embed_back(be, a[0], ROWS(a, 1), p->ids + from, to - from, p->in);
}

CALL(rmsnorm)
{
    wz_rmsnorm(be, ROWS(a, 0), ROWS(a, 1), ROWS(a, 2), a[3], to - from, p->in, 1e-5f);
}

CALL(rmsnorm_back)
{
    wz_rmsnorm_back(be, ROWS(a, 0), a[1], ROWS(a, 2), ROWS(a, 3), a[4], ROWS(a, 5), to - from, p->in);
}

CALL(matmul)
{
    struct wz_weight w = weight_of(p, be, a[2]);

    wz_matmul(be, ROWS(a, 0), ROWS(a, 1), &w, to - from, p->add);
    wz_unpack(be, &w);
}

CALL(matmul_back_x)
{
    struct wz_weight w = weight_of(p, be, a[2]);

    wz_matmul_back_x(be, ROWS(a, 0), ROWS(a, 1), &w, to - from, p->add);
    wz_unpack(be, &w);
}

CALL(matmul_back_w)
{
    wz_matmul_back_w(be, a[0], ROWS(a, 1), ROWS(a, 2), to - from, p->out, p->in);
}

CALL(rope)
{
    wz_rope(be, ROWS(a, 0), p->pos + from, a[1], to - from, p->heads, p->in, p->add ? -1 : 1);
}

CALL(swiglu)
{
    wz_swiglu(be, ROWS(a, 0), ROWS(a, 1), ROWS(a, 2), (size_t)((to - from) * p->in));
}

CALL(swiglu_back)
{
    wz_swiglu_back(be, ROWS(a, 0), ROWS(a, 1), ROWS(a, 2), ROWS(a, 3), ROWS(a, 4), (size_t)((to - from) * p->in));
}

/* Rows write their keys and values, then look back. All pages start as NaN: only what was written may be read. */
CALL(attention)
{
    struct wz_rows r = { to - from, p->seqs, p->stride, p->seq + from, p->pos + from, p->table };

    wz_kv_write(be, &p->kv, ROWS(a, 3), ROWS(a, 4), &r);
    wz_attention(be, ROWS(a, 0), ROWS(a, 1), ROWS(a, 2), &p->kv, &r, p->heads);
}

/* The last row of each sequence looks back from a fork: the same table but for the last page, whose first slots are copied. */
CALL(kv_copy)
{
    struct wz_rows r = { to - from, p->seqs, p->stride, p->seq + from, p->pos + from, p->table };

    wz_kv_write(be, &p->kv, ROWS(a, 3), ROWS(a, 4), &r);
    for (int i = from; i < to; i++) {
        int *page = &p->table[p->seq[i] * p->stride + p->pos[i] / p->page], old = *page, spare = p->kv.pages - 1;
        wz_kv_copy(be, &p->kv, spare, old, p->pos[i] % p->page + 1);
        *page = spare;
        struct wz_rows one = { 1, p->seqs, p->stride, p->seq + i, p->pos + i, p->table };
        wz_attention(be, a[0] + (size_t)i * p->a[0].row, NULL, a[2] + (size_t)i * p->a[2].row, &p->kv, &one, p->heads);
        *page = old;
    }
}

CALL(attention_back)
{
    struct wz_rows r = { to - from, p->seqs, p->stride, p->seq + from, p->pos + from, p->table };

    wz_kv_write(be, &p->kv, ROWS(a, 7), ROWS(a, 8), &r);
    wz_attention_back(be, ROWS(a, 0), ROWS(a, 1), ROWS(a, 2), ROWS(a, 3), ROWS(a, 4), ROWS(a, 5), ROWS(a, 6), &p->kv, &r, p->heads);
}

CALL(head_logprob)
{
    struct wz_weight w = weight_of(p, be, a[4]);

    wz_head_logprob(be, ROWS(a, 0), ROWS(a, 1), p->add ? NULL : ROWS(a, 2), ROWS(a, 3), &w, p->ids + from, p->temperature,
                    to - from);
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

    wz_head_back(be, ROWS(a, 0), p->add ? NULL : a[1], ROWS(a, 2), &w, p->ids + from, ROWS(a, 4), ROWS(a, 5), p->temperature,
                 to - from);
    wz_unpack(be, &w);
}

CALL(add)
{
    wz_add(be, ROWS(a, 0), ROWS(a, 1), (size_t)((to - from) * p->in));
}

CALL(sqnorm)
{
    double s = wz_sqnorm(be, a[1], p->a[1].n);

    memcpy(a[0], &s, sizeof s);      /* all its bits, for comparing; as a float it is not read */
    a[0][2] = (float)s;
}

CALL(adamw)
{
    wz_adamw(be, ROWS(a, 0), ROWS(a, 3), ROWS(a, 1), ROWS(a, 2), (size_t)((to - from) * p->in), 1e-2f, 0.9f, 0.95f, 1e-8f, 0.1f,
             0.5f, 3);
}

/* ---- problems by op ------------------------------------------------------------------------------------------- */

static const int row_counts[] = { 1, 7, 64 };
static const struct { int in, out; } sizes[] = { { 11, 37 }, { 253, 11 }, { 64, 192 }, { 300, 100 }, { 576, 65 } };

/* shape -> rows, sizes, type; false past the last. */
static bool dense_shape(struct problem *p, bool types, bool adds)
{
    int s = p->shape, all = (int)(WZ_COUNT(row_counts) * WZ_COUNT(sizes));

    p->n = row_counts[s % 3];
    p->in = sizes[s / 3 % (int)WZ_COUNT(sizes)].in;
    p->out = sizes[s / 3 % (int)WZ_COUNT(sizes)].out;
    p->type = types && s / all % 2 ? WZ_BF16 : WZ_F32;
    p->add = adds && s / all / (types ? 2 : 1) % 2;
    p->step = 1;
    return s < all * (types ? 2 : 1) * (adds ? 2 : 1);
}

static bool make_embed(struct problem *p)
{
    if (!dense_shape(p, true, false)) return false;
    add_array(p, "out", OUT, (size_t)p->in, (size_t)p->n, 1);
    add_weight(p);
    add_ids(p, p->out, false);
    return true;
}

static bool make_embed_back(struct problem *p)
{
    if (!dense_shape(p, false, false)) return false;
    add_common(p, "d_table", SUM, (size_t)p->in * (size_t)p->out, 1);
    add_array(p, "d_out", IN, (size_t)p->in, (size_t)p->n, 1);
    add_ids(p, p->out, false);
    p->budget = 1e-6;      /* up to 64 additions in float */
    return true;
}

static bool make_rmsnorm(struct problem *p)
{
    if (!dense_shape(p, false, false)) return false;
    add_array(p, "out", OUT, (size_t)p->in, (size_t)p->n, 1);
    add_array(p, "rstd", OUT, 1, (size_t)p->n, 1);
    add_array(p, "x", IN, (size_t)p->in, (size_t)p->n, 3);
    add_common(p, "w", IN, (size_t)p->in, 1);
    p->budget = 1e-6;      /* 16 float sums of C / 16 squares */
    return true;
}

static bool make_rmsnorm_back(struct problem *p)
{
    if (!dense_shape(p, false, false)) return false;
    add_array(p, "d_x", SUM, (size_t)p->in, (size_t)p->n, 1);
    add_common(p, "d_w", SUM, (size_t)p->in, 1);
    add_array(p, "d_out", IN, (size_t)p->in, (size_t)p->n, 1);
    add_array(p, "x", IN, (size_t)p->in, (size_t)p->n, 2);
    add_common(p, "w", IN, (size_t)p->in, 1);
    int r = add_array(p, "rstd", IN, 1, (size_t)p->n, 1);
    for (int i = 0; i < p->n; i++) p->a[r].init[i] = 0.5f + 0.01f * (float)i;
    p->budget = 3e-6;      /* a float sum over C and another over N */
    return true;
}

static bool make_matmul(struct problem *p)
{
    if (!dense_shape(p, true, true)) return false;
    add_array(p, "y", p->add ? SUM : OUT, (size_t)p->out, (size_t)p->n, 1);
    add_array(p, "x", IN, (size_t)p->in, (size_t)p->n, 1);
    add_weight(p);
    p->budget = 3e-6;      /* a float chain over in */
    return true;
}

static bool make_matmul_back_x(struct problem *p)
{
    if (!dense_shape(p, true, true)) return false;
    add_array(p, "d_x", p->add ? SUM : OUT, (size_t)p->in, (size_t)p->n, 1);
    add_array(p, "d_y", IN, (size_t)p->out, (size_t)p->n, 1);
    add_weight(p);
    p->budget = 3e-6;      /* a float chain over out */
    return true;
}

static bool make_matmul_back_w(struct problem *p)
{
    if (!dense_shape(p, false, false)) return false;
    add_common(p, "d_w", SUM, (size_t)p->in * (size_t)p->out, 1);
    add_array(p, "d_y", IN, (size_t)p->out, (size_t)p->n, 1);
    add_array(p, "x", IN, (size_t)p->in, (size_t)p->n, 1);
    p->budget = 1e-6;      /* a float chain over N in both; without FMA each product is rounded too */
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
    p->budget = 1e-6;      /* cos and sin rounded to float */
    return true;
}

static bool make_swiglu(struct problem *p)
{
    if (!dense_shape(p, false, false)) return false;
    add_array(p, "out", OUT, (size_t)p->in, (size_t)p->n, 1);
    add_array(p, "gate", IN, (size_t)p->in, (size_t)p->n, 8);
    add_array(p, "up", IN, (size_t)p->in, (size_t)p->n, 1);
    p->a[1].init[0] = 100;
    if (p->a[1].n > 1) p->a[1].init[1] = -100;
    p->budget = 1e-6;      /* exp within 2 ulp and five roundings */
    return true;
}

static bool make_swiglu_back(struct problem *p)
{
    if (!dense_shape(p, false, false)) return false;
    add_array(p, "d_gate", OUT, (size_t)p->in, (size_t)p->n, 1);
    add_array(p, "d_up", OUT, (size_t)p->in, (size_t)p->n, 1);
    add_array(p, "d_out", IN, (size_t)p->in, (size_t)p->n, 1);
    add_array(p, "gate", IN, (size_t)p->in, (size_t)p->n, 8);
    add_array(p, "up", IN, (size_t)p->in, (size_t)p->n, 1);
    p->budget = 1e-6;
    return true;
}

/* Sequences of odd lengths over pages dealt out backwards; whole: rows in order of sequence, else dealt round. */
static bool attention_shape(struct problem *p, bool whole)
{
    static const struct { int heads, kv_heads, d, page; } all[] = {
        { 4, 4, 16, 16 }, { 6, 2, 64, 16 }, { 4, 1, 80, 32 }, { 3, 1, 128, 48 }, { 6, 2, 16, 5 }, { 13, 1, 32, 64 }, { 2, 1, 12, 7 },
    };
    static const int lens[][4] = { { 1 }, { 5, 1, 1 }, { 40, 1, 70, 33 }, { 17, 100, 16, 2 } };

    if (p->shape >= (int)(WZ_COUNT(all) * WZ_COUNT(lens))) return false;
    const int *len = lens[p->shape % 4];
    p->heads = all[p->shape / 4].heads;
    p->kv_heads = all[p->shape / 4].kv_heads;
    p->in = all[p->shape / 4].d;
    p->page = all[p->shape / 4].page;
    for (; p->seqs < 4 && len[p->seqs] > 0; p->seqs++) p->n += len[p->seqs];
    p->stride = 100 / p->page + 1;
    p->seq = wz_alloc((size_t)p->n * sizeof *p->seq);
    p->pos = wz_alloc((size_t)p->n * sizeof *p->pos);
    p->table = wz_alloc((size_t)(p->seqs * p->stride) * sizeof *p->table);
    for (int i = 0; i < p->seqs * p->stride; i++) p->table[i] = p->seqs * p->stride - 1 - i;
    for (int i = 0, s = 0, done[4] = { 0 }; i < p->n; i++) {
        int tries = whole ? 0 : i % 3 == 0;      /* not whole: pieces of sequences alternate */
        for (s = (s + tries) % p->seqs; done[s] == len[s];) s = (s + 1) % p->seqs;
        p->seq[i] = s;
        p->pos[i] = done[s]++;
    }
    p->step = whole ? 0 : 1;
    return true;
}

static size_t q_width(const struct problem *p)
{
    return (size_t)(p->heads * p->in);
}

static size_t kv_width(const struct problem *p)
{
    return (size_t)(p->kv_heads * p->in);
}

static bool make_attention(struct problem *p)
{
    if (!attention_shape(p, false)) return false;
    add_array(p, "out", OUT, q_width(p), (size_t)p->n, 1);
    add_array(p, "lse", OUT, (size_t)p->heads, (size_t)p->n, 1);
    add_array(p, "q", IN, q_width(p), (size_t)p->n, 3);
    add_array(p, "k", IN, kv_width(p), (size_t)p->n, 1);
    add_array(p, "v", IN, kv_width(p), (size_t)p->n, 1);
    p->budget = 3e-6;      /* exp of a float score near 10 */
    return true;
}

static bool make_kv_copy(struct problem *p)
{
    if (!make_attention(p)) return false;
    p->a[1].role = IN;
    return true;
}

/* out and lse are ref's own forward, so that the problem is consistent. */
static bool make_attention_back(struct problem *p)
{
    if (!attention_shape(p, true)) return false;
    add_array(p, "d_q", OUT, q_width(p), (size_t)p->n, 1);
    add_array(p, "d_k", OUT, kv_width(p), (size_t)p->n, 1);
    add_array(p, "d_v", OUT, kv_width(p), (size_t)p->n, 1);
    add_array(p, "d_out", IN, q_width(p), (size_t)p->n, 1);
    add_array(p, "out", IN, q_width(p), (size_t)p->n, 1);
    add_array(p, "lse", IN, (size_t)p->heads, (size_t)p->n, 1);
    add_array(p, "q", IN, q_width(p), (size_t)p->n, 2);
    add_array(p, "k", IN, kv_width(p), (size_t)p->n, 1);
    add_array(p, "v", IN, kv_width(p), (size_t)p->n, 1);
    struct wz_kv kv = { NULL, NULL, p->seqs * p->stride, p->page, p->kv_heads, p->in };
    size_t size = (size_t)(kv.pages * p->page) * kv_width(p) * sizeof(float);
    struct wz_rows r = { p->n, p->seqs, p->stride, p->seq, p->pos, p->table };
    kv.k = wz_alloc(size);
    kv.v = wz_alloc(size);
    wz_kv_write(ref, &kv, p->a[7].init, p->a[8].init, &r);
    wz_attention(ref, p->a[4].init, p->a[5].init, p->a[6].init, &kv, &r, p->heads);
    free(kv.k);
    free(kv.v);
    p->budget = 1e-5;      /* exp of a float score, then float sums over rows and heads */
    p->floor = 1;          /* a softmax over one key has no gradient */
    return true;
}

/* Vocabularies below, at and beyond a block. */
static bool head_shape(struct problem *p)
{
    static const struct { int c, vocab; } all[] = { { 11, 37 }, { 37, 253 }, { 64, 256 }, { 48, 1300 }, { 20, 4500 } };
    int count = (int)WZ_COUNT(all);

    p->n = p->shape % 4 == 3 ? 150 : row_counts[p->shape % 4];
    p->in = all[p->shape / 4 % count].c;
    p->out = all[p->shape / 4 % count].vocab;
    p->type = p->shape / 4 / count % 2 ? WZ_BF16 : WZ_F32;
    p->add = p->shape % 3 == 2;
    p->temperature = p->shape % 2 ? 0.7f : 1;
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
    p->budget = 2e-6;      /* a float logit near 10, exp within 2 ulp */
    p->floor = 1;          /* logp near 0 is the difference of two larger numbers */
    return true;
}

/* Frequencies are another test's; here: that a pick is the same however rows are cut. Values may differ from ref where u
 * falls between two tokens, which 64 rows with fixed keys do not do. */
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
            .temperature = i % 5 == 4 ? 0 : 0.5f + 0.25f * (float)(i % 4), .top_k = i % 3 == 1 ? 1 + i % 40 : 0,
            .top_p = i % 4 == 2 ? 0.8f : 1, .min_p = i % 7 == 3 ? 0.1f : 0,
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
    p->budget = 3e-6;      /* a float chain over C */
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
    struct wz_weight w = { p->a[3].init, p->type, p->out, p->in, NULL };
    wz_head_logprob(ref, logp, p->a[5].init, NULL, p->a[2].init, &w, p->ids, p->temperature, p->n);
    free(logp);
    p->budget = 5e-6;      /* float chains over V and over N */
    return true;
}

static bool make_add(struct problem *p)
{
    if (!dense_shape(p, false, false)) return false;
    add_array(p, "dst", SUM, (size_t)p->in, (size_t)p->n, 1);
    add_array(p, "src", IN, (size_t)p->in, (size_t)p->n, 1);
    return true;
}

static bool make_sqnorm(struct problem *p)
{
    if (p->shape >= 4) return false;
    p->n = 1;
    p->in = (int[]){ 1, 253, 65536, 300001 }[p->shape];
    add_common(p, "sum", OUT, 3, 1);
    p->a[0].host = true;
    add_array(p, "x", IN, (size_t)p->in, 1, 1);
    p->budget = 1e-6;      /* it is compared as a float */
    return true;
}

static bool make_adamw(struct problem *p)
{
    if (!dense_shape(p, false, false)) return false;
    add_array(p, "w", SUM, (size_t)p->in, (size_t)p->n, 1);
    add_array(p, "m", SUM, (size_t)p->in, (size_t)p->n, 1);
    add_array(p, "v", SUM, (size_t)p->in, (size_t)p->n, 1);
    add_array(p, "g", IN, (size_t)p->in, (size_t)p->n, 1);
    for (size_t i = 0; i < p->a[2].n; i++) p->a[2].init[i] = 0.1f + p->a[2].init[i] * p->a[2].init[i];
    p->budget = 1e-6;      /* a dozen roundings */
    return true;
}

/* ---- the harness ---------------------------------------------------------------------------------------------- */

enum { GUARD = 64 };      /* floats of canary on either side */

static const float canary = -12345.678f;

struct run { float *host[10]; };      /* every array after the call, without canaries */

static size_t bytes_of(const struct array *a)
{
    return a->n * (a->bf16 ? 2 : 4);
}

static void WZ_PRINTF(2, 3) broken(const struct problem *p, const char *fmt, ...)
{
    char what[256];
    va_list args;

    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    fail_msg("%s %s, shape %d (%d rows, in %d, out %d, heads %d/%d, page %d): %s\nreplay: test_opcheck --row %s --op %s",
             under_test->name, p->op, p->shape, p->n, p->in, p->out, p->heads, p->kv_heads, p->page, what, under_test->name, p->op);
}

/* Fresh arrays between canaries, the call over rows cut into pieces of `step` (0: one piece), then the looks. */
static struct run run_of(struct problem *p, struct wz_backend *be, int step)
{
    struct run out = { { 0 } };
    float *base[10], *at[10], guard[GUARD];
    size_t kv_size = 0;

    for (int i = 0; i < GUARD; i++) guard[i] = canary;
    for (int i = 0; i < p->arrays; i++) {
        struct array *a = &p->a[i];
        size_t size = (bytes_of(a) + 63) / 64 * 64, total = size + 2 * sizeof guard;
        char *b = a->host ? wz_alloc(total) : wz_backend_alloc(be, total);
        base[i] = (float *)b;
        at[i] = (float *)(b + sizeof guard);
        char *image = wz_alloc(total);
        for (size_t j = 0; j < total / 4; j++) ((float *)image)[j] = canary;
        memcpy(image + sizeof guard, a->init, bytes_of(a));
        if (a->role == OUT) memset(image + sizeof guard, 0x7f, bytes_of(a));      /* what is there may not matter */
        if (a->host) memcpy(b, image, total);
        else wz_upload(be, b, image, total);
        free(image);
    }
    if (p->kv_heads) {
        p->kv = (struct wz_kv){ NULL, NULL, p->seqs * p->stride + 1, p->page, p->kv_heads, p->in };
        kv_size = (size_t)(p->kv.pages * p->page) * kv_width(p) * sizeof(float);
        char *nan = wz_alloc(kv_size);
        memset(nan, 0xff, kv_size);
        p->kv.k = wz_backend_alloc(be, kv_size);
        p->kv.v = wz_backend_alloc(be, kv_size);
        wz_upload(be, p->kv.k, nan, kv_size);
        wz_upload(be, p->kv.v, nan, kv_size);
        free(nan);
    }
    for (int from = 0; from < p->n; from += step ? step : p->n)
        p->call(p, be, at, from, step && from + step < p->n ? from + step : p->n);
    for (int i = 0; i < p->arrays; i++) {
        struct array *a = &p->a[i];
        size_t used = bytes_of(a), size = (used + 63) / 64 * 64, total = size + 2 * sizeof guard;
        char *image = wz_alloc(total), *data = image + sizeof guard;
        if (a->host) memcpy(image, base[i], total);
        else wz_download(be, image, base[i], total);
        bool whole = memcmp(image, guard, sizeof guard) == 0 && memcmp(data + size, guard, sizeof guard) == 0;
        for (size_t j = (used + 3) / 4; j < size / 4 && whole; j++) whole = memcmp(data + 4 * j, &canary, 4) == 0;
        if (!whole) broken(p, "%s was written beyond its ends", a->name);
        if (a->role == IN && memcmp(data, a->init, used))
            broken(p, "%s is an input and was changed", a->name);
        out.host[i] = wz_alloc(used);
        memcpy(out.host[i], data, used);
        free(image);
        if (a->host) free(base[i]);
        else wz_backend_free(be, base[i]);
    }
    if (kv_size) {
        wz_backend_free(be, p->kv.k);
        wz_backend_free(be, p->kv.v);
    }
    return out;
}

static void run_finish(struct problem *p, struct run *r)
{
    for (int i = 0; i < p->arrays; i++) free(r->host[i]);
}

static void same_bits(struct problem *p, const struct run *x, const struct run *y, const char *when)
{
    for (int i = 0; i < p->arrays; i++) {
        const struct array *a = &p->a[i];
        if (a->role == IN || memcmp(x->host[i], y->host[i], bytes_of(a)) == 0) continue;
        for (size_t j = 0; j < a->n; j++)
            if (memcmp(&x->host[i][j], &y->host[i][j], 4))
                broken(p, "%s: %s[%zu] is %.9g, was %.9g", when, a->name, j, (double)y->host[i][j], (double)x->host[i][j]);
    }
}

static void near(struct problem *p, const struct run *want, const struct run *got)
{
    for (int i = 0; i < p->arrays; i++) {
        const struct array *a = &p->a[i];
        size_t first = p->call == call_sqnorm ? 2 : 0;
        double top = p->floor;
        if (a->role == IN) continue;
        for (size_t j = first; j < a->n; j++) top = fmax(top, fabs((double)want->host[i][j]));
        for (size_t j = first; j < a->n; j++) {
            double x = (double)want->host[i][j], y = (double)got->host[i][j];
            if (!(fabs(x - y) <= p->budget * top))
                broken(p, "%s[%zu] is %.9g, ref %.9g, budget %.1e of %.3g", a->name, j, y, x, p->budget, top);
        }
    }
}

static struct wz_backend *on_threads[3];      /* of the target under test: 1, 2 and 3 threads */

static void check_problem(struct problem *p)
{
    struct run want = run_of(p, ref, 0), got = run_of(p, on_threads[0], 0), other;
    static const int cuts[] = { 1, 3, 10 };

    near(p, &want, &got);
    for (int t = 0; t < 3; t++) {
        other = run_of(p, on_threads[t], 0);
        same_bits(p, &got, &other, t == 0 ? "a second time" : t == 1 ? "on 2 threads" : "on 3 threads");
        run_finish(p, &other);
    }
    for (size_t c = 0; p->step && c < WZ_COUNT(cuts); c++) {
        other = run_of(p, on_threads[c], cuts[c]);
        same_bits(p, &got, &other, c == 0 ? "row by row" : c == 1 ? "by threes" : "by tens");
        run_finish(p, &other);
    }
    run_finish(p, &want);
    run_finish(p, &got);
}

/* ---- the table: a slot without a row here fails ---------------------------------------------------------------- */

#define SLOT(name) offsetof(struct wz_ops, name)

/* back_of: the op whose gradient this is; d: its arrays that are gradients of the forward's arrays. */
static const struct row {
    const char *op;
    size_t slot;
    bool (*make)(struct problem *p);
    void (*call)(const struct problem *p, struct wz_backend *be, float **a, int from, int to);
} table[] = {
    { "embed", SLOT(embed), make_embed, call_embed },
    { "embed_back", SLOT(embed_back), make_embed_back, call_embed_back },
    { "rmsnorm", SLOT(rmsnorm), make_rmsnorm, call_rmsnorm },
    { "rmsnorm_back", SLOT(rmsnorm_back), make_rmsnorm_back, call_rmsnorm_back },
    { "matmul", SLOT(matmul), make_matmul, call_matmul },
    { "matmul_back_x", SLOT(matmul_back_x), make_matmul_back_x, call_matmul_back_x },
    { "matmul_back_w", SLOT(matmul_back_w), make_matmul_back_w, call_matmul_back_w },
    { "rope", SLOT(rope), make_rope, call_rope },
    { "attention", SLOT(attention), make_attention, call_attention },
    { "kv_copy", SLOT(kv_copy), make_kv_copy, call_kv_copy },
    { "attention_back", SLOT(attention_back), make_attention_back, call_attention_back },
    { "swiglu", SLOT(swiglu), make_swiglu, call_swiglu },
    { "swiglu_back", SLOT(swiglu_back), make_swiglu_back, call_swiglu_back },
    { "head_logprob", SLOT(head_logprob), make_head_logprob, call_head_logprob },
    { "head_sample", SLOT(head_sample), make_head_sample, call_head_sample },
    { "head_logits", SLOT(head_logits), make_head_logits, call_head_logits },
    { "head_back", SLOT(head_back), make_head_back, call_head_back },
    { "add", SLOT(add), make_add, call_add },
    { "sqnorm", SLOT(sqnorm), make_sqnorm, call_sqnorm },
    { "adamw", SLOT(adamw), make_adamw, call_adamw },
};

/* Slots that the harness itself stands on, and check_memory looks at. */
static const size_t used_by_harness[] = {
    SLOT(alloc), SLOT(free), SLOT(upload), SLOT(download), SLOT(zero), SLOT(pack), SLOT(unpack), SLOT(kv_write),
};

static void every_slot_has_a_case(void **state)
{
    for (size_t at = 0; at < sizeof(struct wz_ops); at += sizeof(void *)) {
        int found = 0;
        for (size_t i = 0; i < WZ_COUNT(table); i++) found += table[i].slot == at;
        for (size_t i = 0; i < WZ_COUNT(used_by_harness); i++) found += used_by_harness[i] == at;
        if (found != 1) fail_msg("slot %zu of struct wz_ops has %d cases", at / sizeof(void *), found);
        for (size_t t = 0; t < WZ_COUNT(targets); t++) {
            struct wz_backend *be = target_open(&targets[t], 1);
            if (be && !*(void **)((char *)&be->ops + at)) fail_msg("%s leaves slot %zu empty", targets[t].name, at / sizeof(void *));
            wz_backend_close(be);
        }
    }
}

struct subject { const struct target *target; const struct row *row; };

static void check_row(void **state)
{
    const struct subject *s = *state;
    struct problem p = { .op = s->row->op, .call = s->row->call };
    int shapes = 0;

    under_test = s->target;
    for (int t = 0; t < 3; t++)
        if (!(on_threads[t] = target_open(s->target, t + 1))) skip();
    for (; s->row->make(&p); p = (struct problem){ .op = s->row->op, .call = s->row->call, .shape = p.shape + 1 }) {
        check_problem(&p);
        problem_finish(&p);
        shapes++;
    }
    assert_true(shapes > 0);
    for (int t = 0; t < 3; t++) wz_backend_close(on_threads[t]);
}

static void check_memory(void **state)
{
    const struct subject *s = *state;
    struct wz_backend *be = target_open(s->target, 1);
    unsigned char bytes[1000], back[1000], none[1000] = { 0 };

    if (!be) skip();
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (unsigned char)(i * 7 + 1);
    unsigned char *p = wz_backend_alloc(be, sizeof bytes);
    wz_download(be, back, p, sizeof back);
    assert_memory_equal(back, none, sizeof none);
    wz_upload(be, p, bytes, sizeof bytes);
    wz_zero(be, p + 100, 50);
    memset(bytes + 100, 0, 50);
    wz_download(be, back, p, sizeof back);
    assert_memory_equal(back, bytes, sizeof bytes);
    wz_backend_free(be, p);
    wz_backend_free(be, NULL);
    wz_backend_close(be);
}

/* After the weights change, pack again and the product changes; a row's bits are those of a fresh pack. */
static void check_repack(void **state)
{
    const struct subject *s = *state;
    struct wz_backend *be = target_open(s->target, 1);
    float data[70 * 9], x[9], y[70], again[70];

    if (!be) skip();
    struct wz_weight w = { data, WZ_F32, 70, 9, NULL }, fresh = w;
    for (int i = 0; i < 70 * 9; i++) data[i] = (float)(i % 13) - 6;
    for (int i = 0; i < 9; i++) x[i] = (float)i + 0.5f;
    wz_pack(be, &w);
    wz_matmul(be, y, x, &w, 1, false);
    for (int i = 0; i < 70 * 9; i++) data[i] += (float)(i % 5);
    wz_pack(be, &w);
    wz_pack(be, &fresh);
    wz_matmul(be, again, x, &w, 1, false);
    assert_memory_not_equal(y, again, sizeof y);
    wz_matmul(be, y, x, &fresh, 1, false);
    assert_memory_equal(y, again, sizeof y);
    wz_unpack(be, &w);
    wz_unpack(be, &fresh);
    assert_null(w.packed);
    wz_backend_close(be);
}

/* ---- samplers ------------------------------------------------------------------------------------------------- */

enum { DRAWS = 20000, SMALL = 23 };

/* Which tokens the filters leave, from exact probabilities in the order the header states; renormalised. */
static void filtered(double *q, const double *z, const struct wz_pick *pick)
{
    int order[SMALL], n = SMALL;
    double total = 0, sum = 0, p[SMALL];

    for (int v = 0; v < SMALL; v++) {
        int at = v;
        p[v] = exp(z[v] / (double)pick->temperature);
        for (; at > 0 && p[order[at - 1]] < p[v]; at--) order[at] = order[at - 1];
        order[at] = v;
        q[v] = 0;
    }
    if (pick->top_k > 0 && pick->top_k < n) n = pick->top_k;
    for (int i = 0; i < n; i++) total += p[order[i]];
    for (int i = 0; i < n && sum < (double)pick->top_p * total; i++) {
        sum += p[order[i]];
        if (p[order[i]] >= (double)pick->min_p * p[order[0]]) q[order[i]] = p[order[i]];
    }
    total = 0;
    for (int v = 0; v < SMALL; v++) total += q[v];
    for (int v = 0; v < SMALL; v++) q[v] /= total;
}

static void check_samplers(void **state)
{
    const struct subject *s = *state;
    static const struct wz_pick kinds[] = {
        { 1, 1, 0, 0, 0 }, { 0.6f, 1, 0, 0, 0 }, { 1.5f, 1, 0, 5, 0 }, { 1, 0.7f, 0, 0, 0 }, { 1, 1, 0.2f, 0, 0 },
        { 1.2f, 0.8f, 0.1f, 9, 0 }, { 1, 1e-6f, 0, 0, 0 }, { 2, 1, 0, 1, 0 },
    };
    struct wz_backend *be = target_open(s->target, 1);
    float data[SMALL], *x, *logp, *want, *lse;
    double z[SMALL], q[SMALL];
    struct wz_pick *picks;
    int *token;

    if (!be) skip();
    x = wz_alloc(DRAWS * sizeof *x);
    logp = wz_alloc(3 * DRAWS * sizeof *logp);
    want = logp + DRAWS;
    lse = want + DRAWS;
    picks = wz_alloc(DRAWS * sizeof *picks);
    token = wz_alloc(DRAWS * sizeof *token);
    for (int v = 0; v < SMALL; v++) z[v] = (double)(data[v] = (float)wz_normal((struct wz_key){ 11, WZ_RNG_TEST, 0, (uint32_t)v, 0, 4 }) * 1.5f);
    struct wz_weight w = { data, WZ_F32, SMALL, 1, NULL };
    wz_pack(be, &w);
    for (int i = 0; i < DRAWS; i++) x[i] = 1;
    for (size_t k = 0; k < WZ_COUNT(kinds); k++) {
        int seen[SMALL] = { 0 }, cells = 0;
        double chi = 0;
        for (int i = 0; i < DRAWS; i++) {
            picks[i] = kinds[k];
            picks[i].u = wz_uniform((struct wz_key){ 13, WZ_RNG_TEST, (uint32_t)k, (uint32_t)i, 0, 5 });
        }
        wz_head_sample(be, token, logp, x, &w, picks, DRAWS);
        wz_head_logprob(be, want, lse, NULL, x, &w, token, kinds[k].temperature, DRAWS);
        if (memcmp(logp, want, DRAWS * sizeof *logp)) fail_msg("%s, filter %zu: logp of sample and logprob differ", s->target->name, k);
        filtered(q, z, &kinds[k]);
        for (int i = 0; i < DRAWS; i++) seen[token[i]]++;
        for (int v = 0; v < SMALL; v++) {
            if (q[v] == 0 && seen[v]) fail_msg("%s, filter %zu: token %d is filtered out and was drawn", s->target->name, k, v);
            if (q[v] == 0) continue;
            chi += (seen[v] - q[v] * DRAWS) * (seen[v] - q[v] * DRAWS) / (q[v] * DRAWS);
            cells++;
        }
        /* Wilson & Hilferty: (chi/f)^(1/3) is nearly normal; 4 sigma */
        double f = cells - 1, limit = f > 0 ? f * pow(1 - 2 / (9 * f) + 4 * sqrt(2 / (9 * f)), 3) : 1e-9;
        if (chi > limit) fail_msg("%s, filter %zu: chi-square %.1f over %d tokens, limit %.1f", s->target->name, k, chi, cells, limit);
    }
    wz_unpack(be, &w);
    wz_backend_close(be);
    free(x);
    free(logp);
    free(picks);
    free(token);
}

/* The token is where the cumulated probability passes u, in order of id; equal logits: greedy takes the first. */
static void check_inverse(void **state)
{
    const struct subject *s = *state;
    struct wz_backend *be = target_open(s->target, 1);
    enum { V = 1000 };
    float *data, x = 1, logp, last;
    int token;

    if (!be) skip();
    data = wz_alloc(V * sizeof *data);
    struct wz_weight w = { data, WZ_F32, V, 1, NULL };      /* all equal: token t for u in [t/V, (t+1)/V) */
    wz_pack(be, &w);
    for (int t = 0; t < V; t += 37)
        for (int kind = 0; kind < 2; kind++) {
            struct wz_pick pick = { 1, kind ? 0.9995f : 1, 0, 0, (t + 0.5) / V };
            wz_head_sample(be, &token, &logp, &x, &w, &pick, 1);
            assert_int_equal(token, t);
        }
    wz_head_sample(be, &token, &logp, &x, &w, &(struct wz_pick){ 1, 1, 0, 0, 1 - 0x1p-53 }, 1);
    assert_int_equal(token, V - 1);
    wz_head_sample(be, &token, &logp, &x, &w, &(struct wz_pick){ 1, 1, 0, 10, 1 - 0x1p-53 }, 1);
    assert_int_equal(token, 9);
    data[700] = data[301] = 2;
    wz_pack(be, &w);
    wz_head_sample(be, &token, &last, &x, &w, &(struct wz_pick){ 0, 1, 0, 0, 0.9 }, 1);
    assert_int_equal(token, 301);
    wz_head_sample(be, &token, &logp, &x, &w, &(struct wz_pick){ 1, 1, 0, 1, 0.9 }, 1);
    assert_int_equal(token, 301);
    assert_memory_equal(&logp, &last, sizeof logp);      /* greedy reports logp at temperature 1 */
    wz_unpack(be, &w);
    wz_backend_close(be);
    free(data);
}

/* AVX2 and AVX-512 are the same chains of the same FMAs, so a job may mix machines. */
static void check_alike(void **state)
{
    const struct row *row = *state;
    struct wz_backend *a, *b;

    under_test = &targets[3];
    a = target_open(&targets[2], 1);
    b = target_open(&targets[3], 1);
    if (!a || !b) skip();
    struct problem p = { .op = row->op, .call = row->call };
    for (; row->make(&p); p = (struct problem){ .op = row->op, .call = row->call, .shape = p.shape + 1 }) {
        struct run x = run_of(&p, a, 0), y = run_of(&p, b, 0);
        same_bits(&p, &x, &y, "on AVX-512 after AVX2");
        run_finish(&p, &x);
        run_finish(&p, &y);
        problem_finish(&p);
    }
    wz_backend_close(a);
    wz_backend_close(b);
}

int main(int argc, char **argv)
{
    static struct CMUnitTest tests[8 * (WZ_COUNT(table) + 8)];
    static struct subject subjects[8 * (WZ_COUNT(table) + 8)];
    static const struct { const char *name; void (*fn)(void **); } others[] = {
        { "memory", check_memory }, { "repack", check_repack }, { "samplers", check_samplers }, { "inverse", check_inverse },
    };
    const char *only_row = NULL, *only_op = NULL;
    size_t n = 0;

    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--row") == 0) only_row = argv[i + 1];
        if (strcmp(argv[i], "--op") == 0) only_op = argv[i + 1];
    }
    ref = wz_backend_open("ref", 1, NULL);
    if (!only_row && !only_op) tests[n++] = (struct CMUnitTest)cmocka_unit_test(every_slot_has_a_case);
    for (size_t t = 0; t < WZ_COUNT(targets); t++) {
        if (only_row && strcmp(only_row, targets[t].name)) continue;
        for (size_t i = 0; i < WZ_COUNT(table) + WZ_COUNT(others); i++, n += 1) {
            bool row = i < WZ_COUNT(table);
            const char *name = row ? table[i].op : others[i - WZ_COUNT(table)].name;
            if (only_op && strcmp(only_op, name)) {
                n--;
                continue;
            }
            subjects[n] = (struct subject){ &targets[t], row ? &table[i] : NULL };
            tests[n] = (struct CMUnitTest){ .name = wz_path("%s %s", targets[t].name, name),
                                            .test_func = row ? check_row : others[i - WZ_COUNT(table)].fn,
                                            .initial_state = &subjects[n] };
        }
    }
    for (size_t i = 0; i < WZ_COUNT(table) && !only_row; i++)
        if (!only_op || strcmp(only_op, table[i].op) == 0)
            tests[n++] = (struct CMUnitTest){ .name = wz_path("avx2 = avx512 %s", table[i].op), .test_func = check_alike,
                                              .initial_state = (void *)&table[i] };
    int failed = _cmocka_run_group_tests("opcheck", tests, n, NULL, NULL);
    wz_backend_close(ref);
    return failed;
}
