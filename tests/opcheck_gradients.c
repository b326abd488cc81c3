/* opcheck's gradients: ref's backwards against central differences of ref's forwards.
 *
 * With out = f(x..) and L = sum r out, r fixed and random, the backward given d_out = r must name dL/dx. Each
 * input's gradient is held along random directions u: (L(x + h u) - L(x - h u)) / 2h = d_x . u. The forwards store
 * floats, so h is large (2^-7) and what is left is the third derivative's h^2 and 2^-24 / h: 2e-3 of the gradient's
 * length is more than both. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/opcheck.h"

enum { DIRECTIONS = 6, MOST = 5 };

static const float h = 0x1p-7f;

/* x: the inputs, d: their gradients, r: of the output, which loss() sums up against. */
struct function {
    const char *name;
    int inputs;
    size_t size[MOST];
    float *x[MOST], *d[MOST], *r, *out;
    size_t out_size;
    void (*forward)(const struct function *f);
    void (*backward)(const struct function *f);
};

static float normal(uint32_t a, uint32_t b) { return (float)wz_normal((struct wz_key){ 17, WZ_RNG_TEST, a, b, 0, 6 }); }

static double loss(const struct function *f)
{
    double sum = 0;

    f->forward(f);
    for (size_t i = 0; i < f->out_size; i++) sum += (double)f->r[i] * (double)f->out[i];
    return sum;
}

static void hold(struct function *f)
{
    f->r = wz_alloc(f->out_size * sizeof(float));
    f->out = wz_alloc(f->out_size * sizeof(float));
    for (size_t i = 0; i < f->out_size; i++) f->r[i] = normal(100, (uint32_t)i);
    for (int a = 0; a < f->inputs; a++) {
        f->x[a] = wz_alloc(f->size[a] * sizeof(float));
        f->d[a] = wz_alloc(f->size[a] * sizeof(float));
        for (size_t i = 0; i < f->size[a]; i++) f->x[a][i] = normal((uint32_t)a, (uint32_t)i);
    }
    f->forward(f);
    f->backward(f);
    for (int a = 0; a < f->inputs; a++)
        for (uint32_t k = 0; k < DIRECTIONS; k++) {
            float *was = wz_alloc(f->size[a] * sizeof(float));
            double named = 0, length = 0, up, down;
            memcpy(was, f->x[a], f->size[a] * sizeof(float));
            for (size_t i = 0; i < f->size[a]; i++) {
                double u = (double)normal(200 + k, (uint32_t)i);
                named += u * (double)f->d[a][i];
                length += (double)f->d[a][i] * (double)f->d[a][i];
                f->x[a][i] = was[i] + h * (float)u;
            }
            up = loss(f);
            for (size_t i = 0; i < f->size[a]; i++) f->x[a][i] = was[i] - h * normal(200 + k, (uint32_t)i);
            down = loss(f);
            memcpy(f->x[a], was, f->size[a] * sizeof(float));
            free(was);
            double seen = (up - down) / (2 * (double)h);
            if (!(fabs(seen - named) <= 2e-3 * sqrt(length) + 1e-4))
                fail_msg("%s: along direction %u of input %d the loss changes by %.6g, the backward says %.6g", f->name,
                         k, a, seen, named);
            if (length == 0) fail_msg("%s: the gradient of input %d is all zero", f->name, a);
        }
    for (int a = 0; a < f->inputs; a++) {
        free(f->x[a]);
        free(f->d[a]);
    }
    free(f->r);
    free(f->out);
}

enum { N = 6, C = 10, O = 7, HEADS = 6, KV = 2, D = 4, PAGE = 3, V = 9 };

static float of_one; /* what forwards and backwards of the problem are given */
static enum wz_act of_act;
static struct wz_scores of_scores;
static float of_cap;

static const int ids[N] = { 3, 0, 3, 5, 6, 3 };
static float stats[N * HEADS]; /* rstd or lse of the last forward */

static struct wz_weight weight(const struct function *f, int a, int out, int in)
{
    return (struct wz_weight){ f->x[a], WZ_F32, out, in, NULL, of_cap };
}

static void embed(const struct function *f)
{
    struct wz_weight w = weight(f, 0, O, C);

    wz_embed(opcheck_ref, f->out, &w, ids, N);
}

static void embed_back(const struct function *f) { wz_embed_back(opcheck_ref, f->d[0], f->r, ids, N, C); }

static void rmsnorm(const struct function *f)
{
    wz_rmsnorm(opcheck_ref, f->out, stats, f->x[0], f->x[1], N, C, 1e-5f, of_one);
}

static void rmsnorm_back(const struct function *f)
{
    wz_rmsnorm_back(opcheck_ref, f->d[0], f->d[1], f->r, f->x[0], f->x[1], stats, N, C, of_one);
}

static void matmul(const struct function *f)
{
    struct wz_weight w = weight(f, 1, O, C);

    wz_matmul(opcheck_ref, f->out, f->x[0], &w, N, false);
}

static void matmul_back(const struct function *f)
{
    struct wz_weight w = weight(f, 1, O, C);

    wz_matmul_back_x(opcheck_ref, f->d[0], f->r, &w, N, false);
    wz_matmul_back_w(opcheck_ref, f->d[1], f->r, f->x[0], &w, N);
}

static void bias(const struct function *f)
{
    memcpy(f->out, f->x[0], f->out_size * sizeof(float));
    wz_bias(opcheck_ref, f->out, f->x[1], N, C);
}

static void bias_back(const struct function *f)
{
    memcpy(f->d[0], f->r, f->out_size * sizeof(float));
    wz_bias_back(opcheck_ref, f->d[1], f->r, N, C);
}

static const float freq[D / 2] = { 1, 0.1f };
static const int far[N] = { 0, 1, 5, 9, 100, 1000 };

static void rope(const struct function *f)
{
    memcpy(f->out, f->x[0], f->out_size * sizeof(float));
    wz_rope(opcheck_ref, f->out, far, freq, N, HEADS, D, 1);
}

static void rope_back(const struct function *f)
{
    memcpy(f->d[0], f->r, f->out_size * sizeof(float));
    wz_rope(opcheck_ref, f->d[0], far, freq, N, HEADS, D, -1);
}

/* Two sequences, of 4 rows and of 2, in pages of 3. */
static const int seq[N] = { 0, 0, 0, 0, 1, 1 }, pos[N] = { 0, 1, 2, 3, 0, 1 }, pages[] = { 2, 0, 1, 3 };
static const struct wz_rows rows = { N, 2, 2, seq, pos, pages };
static float keys[4 * KV * PAGE * D], values[4 * KV * PAGE * D];
static const struct wz_kv kv = { keys, values, 4, PAGE, KV, D, false };

static void attention(const struct function *f)
{
    wz_kv_write(opcheck_ref, &kv, f->x[1], f->x[2], &rows);
    wz_attention(opcheck_ref, f->out, stats, f->x[0], &kv, &rows, HEADS, of_scores);
}

static void attention_back(const struct function *f)
{
    const struct wz_past none = { 0 };

    wz_attention_back(opcheck_ref, f->d[0], f->d[1], f->d[2], none, f->r, f->out, stats, f->x[0], &kv, &rows, HEADS,
                      of_scores);
}

/* Two sequences, of 2 rows and of 4, that follow the same page. */
enum { PAST = PAGE };
static const int after_seq[N] = { 0, 0, 1, 1, 1, 1 }, after[N] = { 3, 4, 3, 4, 5, 6 }, shared[] = { 3, 0, 0, 3, 2, 1 };
static const struct wz_rows rows_after = { N, 2, 3, after_seq, after, shared };
static const struct wz_rows rows_before = { PAST, 1, 3, seq, pos, shared };

static void attention_after(const struct function *f)
{
    wz_kv_write(opcheck_ref, &kv, f->x[3], f->x[4], &rows_before);
    wz_kv_write(opcheck_ref, &kv, f->x[1], f->x[2], &rows_after);
    wz_attention(opcheck_ref, f->out, stats, f->x[0], &kv, &rows_after, HEADS, of_scores);
}

static void attention_after_back(const struct function *f)
{
    const struct wz_past past = { f->d[3], f->d[4], PAST };

    wz_attention_back(opcheck_ref, f->d[0], f->d[1], f->d[2], past, f->r, f->out, stats, f->x[0], &kv, &rows_after,
                      HEADS, of_scores);
}

static void swiglu(const struct function *f) { wz_swiglu(opcheck_ref, f->out, f->x[0], f->x[1], f->out_size, of_act); }

static void swiglu_back(const struct function *f)
{
    wz_swiglu_back(opcheck_ref, f->d[0], f->d[1], f->r, f->x[0], f->x[1], f->out_size, of_act);
}

static void logprob(const struct function *f)
{
    struct wz_weight w = weight(f, 1, V, C);

    wz_head_logprob(opcheck_ref, f->out, stats, NULL, f->x[0], &w, ids, 0.7f, N);
}

static void logprob_back(const struct function *f)
{
    struct wz_weight w = weight(f, 1, V, C);

    wz_head_back(opcheck_ref, f->d[0], f->d[1], f->x[0], &w, ids, f->r, stats, 0.7f, N);
}

void opcheck_gradients(void **state)
{
    struct function all[] = {
        { .name = "embed",
          .inputs = 1,
          .size = { O * C },
          .out_size = N * C,
          .forward = embed,
          .backward = embed_back },
        { .name = "rmsnorm",
          .inputs = 2,
          .size = { N * C, C },
          .out_size = N * C,
          .forward = rmsnorm,
          .backward = rmsnorm_back },
        { .name = "matmul",
          .inputs = 2,
          .size = { N * C, O * C },
          .out_size = N * O,
          .forward = matmul,
          .backward = matmul_back },
        { .name = "bias",
          .inputs = 2,
          .size = { N * C, C },
          .out_size = N * C,
          .forward = bias,
          .backward = bias_back },
        { .name = "rope",
          .inputs = 1,
          .size = { N * HEADS * D },
          .out_size = N * HEADS * D,
          .forward = rope,
          .backward = rope_back },
        { .name = "attention",
          .inputs = 3,
          .size = { N * HEADS * D, N * KV * D, N * KV * D },
          .out_size = N * HEADS * D,
          .forward = attention,
          .backward = attention_back },
        { .name = "attention after a past",
          .inputs = 5,
          .size = { N * HEADS * D, N * KV * D, N * KV * D, PAST * KV * D, PAST * KV * D },
          .out_size = N * HEADS * D,
          .forward = attention_after,
          .backward = attention_after_back },
        { .name = "swiglu",
          .inputs = 2,
          .size = { 40, 40 },
          .out_size = 40,
          .forward = swiglu,
          .backward = swiglu_back },
        { .name = "head",
          .inputs = 2,
          .size = { N * C, V * C },
          .out_size = N,
          .forward = logprob,
          .backward = logprob_back },
    };

    for (size_t i = 0; i < WZ_COUNT(all); i++) hold(&all[i]);
    of_one = 1;
    of_act = WZ_GELU;
    of_scores = (struct wz_scores){ 1.5f, 3 };
    of_cap = 2;
    for (size_t i = 0; i < WZ_COUNT(all); i++) hold(&all[i]);
}
