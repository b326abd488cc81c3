/* Element-wise ops, norms and softmax sums, and the function table of one instruction set.
 *
 * Loops without sums are plain C that the compiler vectorises: without FMA contraction an element has the same bits
 * in a vector and alone. */
#include "kernels/cpu/isa.h"

#include <math.h>

#define RESTRICT __restrict__

static void exps(float *out, const float *z, float scale, float max, int n)
{
    for (int j = 0; j < n; j += W)
        store_in(out, (size_t)j, (size_t)n, exp_v(load_in(z, (size_t)j, (size_t)n, 0) * scale - SPLAT(max)));
}

static struct stat stat_of(const float *z, float scale, int n)
{
    struct vec16 top = vec16_of(-INFINITY), sum = vec16_of(0), mean = vec16_of(0);
    struct stat st;

    for (int j = 0; j < n; j += 16)
        for (int l = 0; l < VECS; l++) {
            vf x = load_in(z, (size_t)(j + l * W), (size_t)n, -INFINITY);
            top.v[l] = MAX(x * scale, top.v[l]);
        }
    st.max = vec16_max(top);
    for (int j = 0; j < n; j += 16)
        for (int l = 0; l < VECS; l++) {
            vf x = load_in(z, (size_t)(j + l * W), (size_t)n, -INFINITY) * scale - SPLAT(st.max);
            vf e = exp_v(x);
            sum.v[l] = sum.v[l] + e;
            mean.v[l] = FMA(e, MAX(SPLAT(-1e30f), x), mean.v[l]); /* not -inf: 0 times it would be NaN */
        }
    st.sum = vec16_sum(sum);
    st.mean = vec16_sum(mean);
    return st;
}

static void grad(float *z, float scale, float lse, float d, int n)
{
    for (int j = 0; j < n; j += W)
        store_in(z, (size_t)j, (size_t)n, exp_v(load_in(z, (size_t)j, (size_t)n, 0) * scale - SPLAT(lse)) * -d);
}

static void grad_capped(float *z, float scale, float lse, float d, float cap, int n)
{
    for (int j = 0; j < n; j += W) {
        vf x = load_in(z, (size_t)j, (size_t)n, 0), y = x / cap;
        store_in(z, (size_t)j, (size_t)n, exp_v(x * scale - SPLAT(lse)) * -d * (SPLAT(1.f) - y * y));
    }
}

static void cap(float *z, float by, int n)
{
    for (int j = 0; j < n; j += W) store_in(z, (size_t)j, (size_t)n, cap_v(load_in(z, (size_t)j, (size_t)n, 0), by));
}

static void rmsnorm(const struct walk *k, size_t from, size_t end)
{
    size_t c = (size_t)k->cols;
    const float *w = k->b;
    const float one = k->one;

    for (size_t i = from; i < end; i++) {
        const float *x = k->a + i * c;
        float *out = k->out + i * c;
        struct vec16 sum = vec16_of(0);
        for (size_t j = 0; j < c; j += 16)
            for (size_t l = 0; l < VECS; l++) {
                vf v = load_in(x, j + l * W, c, 0);
                sum.v[l] = FMA(v, v, sum.v[l]);
            }
        float r = 1 / sqrtf(vec16_sum(sum) / (float)c + k->eps);
        k->more[i] = r;
        for (size_t j = 0; j < c; j++) out[j] = (one + w[j]) * (x[j] * r);
    }
}

static void rmsnorm_back(const struct walk *k, size_t from, size_t end)
{
    size_t c = (size_t)k->cols;
    const float *w = k->c;
    const float one = k->one;

    for (size_t i = from; i < end; i++) {
        const float *d_out = k->a + i * c, *x = k->b + i * c;
        float *d_x = k->out + i * c, r = k->d[i];
        struct vec16 sum = vec16_of(0);
        for (size_t j = 0; j < c; j += 16)
            for (size_t l = 0; l < VECS; l++) {
                size_t at = j + l * W;
                sum.v[l] = FMA(load_in(d_out, at, c, 0) * (SPLAT(one) + load_in(w, at, c, 0)), load_in(x, at, c, 0) * r,
                               sum.v[l]);
            }
        float mean = vec16_sum(sum) / (float)c;
        for (size_t j = 0; j < c; j++) d_x[j] += r * (d_out[j] * (one + w[j]) - x[j] * r * mean);
    }
}

static void rmsnorm_back_w(const struct walk *k, size_t from, size_t end)
{
    const struct walk w = *k;
    const size_t c = (size_t)w.cols;
    const float *d_out = w.a, *x = w.b;

    for (int i = 0; i < w.rows; i++, x += c, d_out += c) {
        vf r = SPLAT(w.d[i]);
        for (size_t j = from; j < end; j += W)
            store_in(w.out, j, end,
                     FMA(load_in(d_out, j, end, 0), load_in(x, j, end, 0) * r, load_in(w.out, j, end, 0)));
    }
}

INLINE vf sigmoid(vf x) { return SPLAT(1.f) / (SPLAT(1.f) + exp_v(-x)); }

static void swiglu(const struct walk *k, size_t from, size_t end)
{
    const struct walk w = *k; /* in registers: the compiler must assume that a store changes *k */

    for (size_t i = from; i < end; i += W) {
        vf g = load_in(w.a, i, end, 0);
        store_in(w.out, i, end, g * sigmoid(g) * load_in(w.b, i, end, 0));
    }
}

static void swiglu_back(const struct walk *k, size_t from, size_t end)
{
    const struct walk w = *k;

    for (size_t i = from; i < end; i += W) {
        vf d = load_in(w.a, i, end, 0);
        vf g = load_in(w.b, i, end, 0);
        vf u = load_in(w.c, i, end, 0);
        vf s = sigmoid(g);
        store_in(w.out, i, end, d * u * s * FMA(g, SPLAT(1.f) - s, SPLAT(1.f)));
        store_in(w.more, i, end, d * g * s);
    }
}

/* The argument of the sigmoid in GELU is g (GELU_1 + GELU_3 g^2). */
#define GELU_1 1.5957691216057308f
#define GELU_3 0.0713548162726009f

static void geglu(const struct walk *k, size_t from, size_t end)
{
    const struct walk w = *k;

    for (size_t i = from; i < end; i += W) {
        vf g = load_in(w.a, i, end, 0);
        store_in(w.out, i, end, g * sigmoid(g * FMA(g * g, SPLAT(GELU_3), SPLAT(GELU_1))) * load_in(w.b, i, end, 0));
    }
}

static void geglu_back(const struct walk *k, size_t from, size_t end)
{
    const struct walk w = *k;

    for (size_t i = from; i < end; i += W) {
        vf d = load_in(w.a, i, end, 0);
        vf g = load_in(w.b, i, end, 0);
        vf u = load_in(w.c, i, end, 0);
        vf s = sigmoid(g * FMA(g * g, SPLAT(GELU_3), SPLAT(GELU_1)));
        vf slope = FMA(g * g, SPLAT(3 * GELU_3), SPLAT(GELU_1));
        store_in(w.out, i, end, d * u * s * FMA(g * slope, SPLAT(1.f) - s, SPLAT(1.f)));
        store_in(w.more, i, end, d * g * s);
    }
}

static void rope(float *RESTRICT x, const float *RESTRICT cos_sin, int heads, int d, int sign)
{
    int half = d / 2;

    for (int h = 0; h < heads; h++, x += d)
        for (int j = 0; j < half; j++) {
            float a = x[j];
            float b = x[j + half];
            float c = cos_sin[j];
            float s = (float)sign * cos_sin[j + half];
            x[j] = a * c - b * s;
            x[j + half] = b * c + a * s;
        }
}

static void zero(const struct walk *w, size_t from, size_t end)
{
#if W == 16
    for (; from < end && (uintptr_t)(w->out + from) % 64; from++) w->out[from] = 0;
    for (; from + W <= end; from += W) stream(w->out + from, (vu){ 0 });
    stream_end();
#endif
    memset(w->out + from, 0, (end - from) * sizeof *w->out);
}

static void add(const struct walk *w, size_t from, size_t end)
{
    float *dst = w->out;
    const float *src = w->a;

    for (size_t i = from; i < end; i++) dst[i] += src[i];
}

static void scale(const struct walk *k, size_t from, size_t end)
{
    const struct walk w = *k;

    for (size_t i = from; i < end; i++) w.out[i] = w.a[i] * w.eps;
}

static void square(const struct walk *w, size_t from, size_t end)
{
    double sum[16] = { 0 }, total = 0;
    const float *x = w->a;
    size_t i = from;

    for (; i + 16 <= end; i += 16)
        for (size_t j = 0; j < 16; j++) sum[j] += (double)x[i + j] * x[i + j];
    for (size_t j = 0; i < end; i++, j++) sum[j] += (double)x[i] * x[i];
    for (size_t j = 0; j < 16; j++) total += sum[j];
    w->sums[from / WZ_BLOCK] = total;
}

static void adamw(const struct walk *k, size_t from, size_t end)
{
    float *RESTRICT w = k->out, *RESTRICT m = k->m, *RESTRICT v = k->v;
    const float *RESTRICT g = k->a;
    struct wz_adamw_scalars a = *k->by;

    for (size_t i = from; i < end; i++) {
        float d = g[i] * a.scale;
        m[i] = a.b1 * m[i] + a.a1 * d;
        v[i] = a.b2 * v[i] + a.a2 * d * d;
        w[i] -= a.rate * m[i] / (sqrtf(v[i]) * a.root + a.eps) + a.decay * w[i];
    }
}

static bool runs(void)
{
#ifdef WZ_TILES
    return wz_cpu_tiles() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("fma");
#elif defined(__AVX512BF16__)
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni") &&
           __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("fma");
#elif defined(__AVX512F__)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("fma");
#elif defined(__AVX2__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return true;
#endif
}

#ifdef WZ_TILES
#define BY_INT8 HOT(wz_by_tiles_int8)
#define BY_AMX  HOT(wz_by_tiles)
#else
#define BY_INT8 HOT(wz_by_int8)
#define BY_AMX  HOT(wz_by_amx)
#endif

#define STRING(x)    STRING_OF(x)
#define STRING_OF(x) #x

const struct hot HOT(wz_hot) = {
    .isa = STRING(WZ_ISA),
    .bits = BITS,
    .runs = runs,
    .product = { [WZ_F32] = &HOT(wz_by_f32), [WZ_BF16] = &HOT(wz_by_bf16), [WZ_INT8] = &BY_INT8, [AMX] = &BY_AMX },
    .cast = HOT(wz_cast),
    .exps = exps,
    .stat = stat_of,
    .grad = grad,
    .grad_capped = grad_capped,
    .cap = cap,
    .attend = HOT(wz_attend),
    .attend_back = HOT(wz_attend_back),
    .rmsnorm = rmsnorm,
    .rmsnorm_back = rmsnorm_back,
    .rmsnorm_back_w = rmsnorm_back_w,
    .swiglu = swiglu,
    .swiglu_back = swiglu_back,
    .geglu = geglu,
    .geglu_back = geglu_back,
    .rope = rope,
    .zero = zero,
    .add = add,
    .scale = scale,
    .square = square,
    .adamw = adamw,
};
