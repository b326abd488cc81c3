/* Rows of the cpu backend that share the name of their bits give the same bits for all inputs: products with bf16
 * weights are the chain that is written out here, denormal numbers included. */
#include "tests/test.h"

#include <float.h>
#include <math.h>

#include "kernels/kernels.h"

static const char *const isas[] = { "avx2", "avx512", "avx512bf16" };

static struct wz_backend *open_isa(const char *isa)
{
    struct wz_err err;

    return wz_backend_open("cpu", 1, &(struct wz_numerics){ .isa = isa }, &err);
}

/* ---- bf16 chains ------------------------------------------------------------------------------------------ */

static float flushed(float x) { return fabsf(x) < FLT_MIN ? copysignf(0, x) : x; }

/* a b + c rounded once; denormal inputs are zeros, and so is a result that is below the smallest normal number when
 * rounded to 24 bits whatever its exponent. */
static int flushes; /* results that fma_flushed made zeros */

static float fma_flushed(float a, float b, float c)
{
    const float up = 0x1p60f;
    float r, large;

    a = flushed(a);
    b = flushed(b);
    c = flushed(c);
    r = fmaf(a, b, c);
    if (!(fabsf(r) <= 2 * FLT_MIN)) return r;
    large = fmaf(a * up, b, c * up);
    if (fabsf(large) >= FLT_MIN * up) return r;
    flushes += large != 0;
    return copysignf(0, large);
}

/* Numbers whose products lie about the smallest normal number, denormal ones, zeros of both signs, and common ones. */
static float drawn(uint32_t i, uint32_t array)
{
    uint64_t r = wz_random((struct wz_key){ .a = array, .b = i });
    float x = (float)((double)(r >> 40) / (1 << 24) - 0.5);

    switch (r % 8) {
    case 0: return x * 0x1p-125f;
    case 1: return copysignf(0, x);
    case 2:
    case 3:
    case 4: return x * 0x1p-62f;
    case 5: return x * 0x1p-64f;
    case 6: return x * 0x1p-66f;
    default: return x * 0x1p-58f;
    }
}

enum { N = 13, IN = 77, OUT = 83 };

struct operands {
    float x[N * IN], dy[N * OUT], y[N * OUT], dx[N * IN], dw[OUT * IN];
    uint16_t w[OUT * IN];
};

static struct operands *operands_make(void)
{
    struct operands *o = wz_alloc(sizeof *o);
    uint32_t i = 0;

    for (int k = 0; k < N * IN; k++) o->x[k] = drawn(i++, 1);
    for (int k = 0; k < N * OUT; k++) o->dy[k] = drawn(i++, 2);
    for (int k = 0; k < N * OUT; k++) o->y[k] = drawn(i++, 3) * 0x1p-30f;
    for (int k = 0; k < N * IN; k++) o->dx[k] = drawn(i++, 4) * 0x1p-90f;
    for (int k = 0; k < OUT * IN; k++) o->dw[k] = drawn(i++, 5) * 0x1p-90f;
    for (int k = 0; k < OUT * IN; k++) o->w[k] = wz_f32_to_bf16(drawn(i++, 6));
    return o;
}

static float half(float x) { return wz_bf16_to_f32(wz_f32_to_bf16(x)); }

/* An odd sum ends with a pair whose second half is zero. */
static float chain(float c, const float *a, size_t sa, const float *b, size_t sb, int k)
{
    for (int i = 0; i < k; i++) c = fma_flushed(half(a[(size_t)i * sa]), half(b[(size_t)i * sb]), c);
    return k % 2 ? fma_flushed(0, 0, c) : c;
}

static void by_definition(struct operands *o)
{
    float *w = wz_alloc(sizeof *w * OUT * IN);

    for (int i = 0; i < OUT * IN; i++) w[i] = wz_bf16_to_f32(o->w[i]);
    for (int i = 0; i < N; i++)
        for (int j = 0; j < OUT; j++) o->y[i * OUT + j] = chain(o->y[i * OUT + j], o->x + i * IN, 1, w + j * IN, 1, IN);
    for (int i = 0; i < N; i++)
        for (int j = 0; j < IN; j++) o->dx[i * IN + j] = chain(o->dx[i * IN + j], o->dy + i * OUT, 1, w + j, IN, OUT);
    for (int i = 0; i < OUT; i++)
        for (int j = 0; j < IN; j++) o->dw[i * IN + j] = chain(o->dw[i * IN + j], o->dy + i, OUT, o->x + j, IN, N);
    free(w);
}

static void by_backend(struct operands *o, struct wz_backend *be)
{
    struct wz_weight w = { .data = o->w, .type = WZ_BF16, .out = OUT, .in = IN };

    wz_pack(be, &w);
    wz_matmul(be, o->y, o->x, &w, N, true);
    wz_matmul_back_x(be, o->dx, o->dy, &w, N, true);
    wz_matmul_back_w(be, o->dw, o->dy, o->x, &w, N);
    wz_unpack(be, &w);
}

static void same(const char *isa, const char *what, const float *want, const float *got, int n)
{
    for (int i = 0; i < n; i++)
        if (memcmp(&want[i], &got[i], sizeof *want))
            fail_msg("%s: %s[%d] is %a, by the chain of flushed FMAs %a", isa, what, i, (double)got[i],
                     (double)want[i]);
}

static void test_bf16_chain(void **state)
{
    struct operands *want = operands_make();
    int tried = 0;

    by_definition(want);
    assert_true(flushes > 1000); /* that the inputs reach */
    for (size_t i = 0; i < WZ_COUNT(isas); i++) {
        struct wz_backend *be = open_isa(isas[i]);
        if (!be) continue;
        struct operands *got = operands_make();
        by_backend(got, be);
        same(isas[i], "y", want->y, got->y, N * OUT);
        same(isas[i], "d_x", want->dx, got->dx, N * IN);
        same(isas[i], "d_w", want->dw, got->dw, OUT * IN);
        free(got);
        wz_backend_close(be);
        tried++;
    }
    free(want);
    if (!tried) SKIP("no row with FMA of x86 runs here");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bf16_chain),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
