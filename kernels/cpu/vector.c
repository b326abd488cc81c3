/* Element-wise ops, norms and softmax sums, and the function table of one instruction set.
 *
 * Loops without sums are plain C that the compiler vectorises: without FMA contraction an element has the same bits
 * in a vector and alone. */
#include "kernels/cpu/hot.h"

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

static void rmsnorm(float *out, float *rstd, const float *x, const float *w, int n, int c, float eps)
{
    for (int i = 0; i < n; i++, x += c, out += c) {
        struct vec16 sum = vec16_of(0);
        for (int j = 0; j < c; j += 16)
            for (int l = 0; l < VECS; l++) {
                vf v = load_in(x, (size_t)(j + l * W), (size_t)c, 0);
                sum.v[l] = FMA(v, v, sum.v[l]);
            }
        float r = 1 / sqrtf(vec16_sum(sum) / (float)c + eps);
        rstd[i] = r;
        for (int j = 0; j < c; j++) out[j] = w[j] * (x[j] * r);
    }
}

static void rmsnorm_back(float *d_x, const float *d_out, const float *x, const float *w, const float *rstd, int n,
                         int c)
{
    for (int i = 0; i < n; i++, x += c, d_x += c, d_out += c) {
        struct vec16 sum = vec16_of(0);
        float r = rstd[i];
        for (int j = 0; j < c; j += 16)
            for (int l = 0; l < VECS; l++) {
                size_t at = (size_t)(j + l * W), n_c = (size_t)c;
                sum.v[l] =
                    FMA(load_in(d_out, at, n_c, 0) * load_in(w, at, n_c, 0), load_in(x, at, n_c, 0) * r, sum.v[l]);
            }
        float mean = vec16_sum(sum) / (float)c;
        for (int j = 0; j < c; j++) d_x[j] += r * (d_out[j] * w[j] - x[j] * r * mean);
    }
}

static void rmsnorm_back_w(float *RESTRICT d_w, const float *d_out, const float *x, const float *rstd, int n, int c,
                           int from, int to)
{
    for (int i = 0; i < n; i++, x += c, d_out += c) {
        size_t end = (size_t)to;
        vf r = SPLAT(rstd[i]);
        for (size_t j = (size_t)from; j < end; j += W)
            store_in(d_w, j, end, FMA(load_in(d_out, j, end, 0), load_in(x, j, end, 0) * r, load_in(d_w, j, end, 0)));
    }
}

INLINE vf sigmoid(vf x) { return SPLAT(1.f) / (SPLAT(1.f) + exp_v(-x)); }

static void swiglu(float *out, const float *gate, const float *up, size_t n)
{
    for (size_t i = 0; i < n; i += W) {
        vf g = load_in(gate, i, n, 0);
        store_in(out, i, n, g * sigmoid(g) * load_in(up, i, n, 0));
    }
}

static void swiglu_back(float *d_gate, float *d_up, const float *d_out, const float *gate, const float *up, size_t n)
{
    for (size_t i = 0; i < n; i += W) {
        vf g = load_in(gate, i, n, 0), u = load_in(up, i, n, 0), d = load_in(d_out, i, n, 0), s = sigmoid(g);
        store_in(d_gate, i, n, d * u * s * FMA(g, SPLAT(1.f) - s, SPLAT(1.f)));
        store_in(d_up, i, n, d * g * s);
    }
}

static void rope(float *RESTRICT x, const float *RESTRICT cos_sin, int heads, int d, int sign)
{
    int half = d / 2;

    for (int h = 0; h < heads; h++, x += d)
        for (int j = 0; j < half; j++) {
            float a = x[j], b = x[j + half], c = cos_sin[j], s = (float)sign * cos_sin[j + half];
            x[j] = a * c - b * s;
            x[j + half] = b * c + a * s;
        }
}

static void add(float *dst, const float *src, size_t n)
{
    for (size_t i = 0; i < n; i++) dst[i] += src[i];
}

static double square(const float *x, size_t n)
{
    double sum[16] = { 0 }, total = 0;
    size_t i = 0;

    for (; i + 16 <= n; i += 16)
        for (size_t j = 0; j < 16; j++) sum[j] += (double)x[i + j] * x[i + j];
    for (size_t j = 0; i < n; i++, j++) sum[j] += (double)x[i] * x[i];
    for (size_t j = 0; j < 16; j++) total += sum[j];
    return total;
}

static void adamw(float *RESTRICT w, const float *RESTRICT g, float *RESTRICT m, float *RESTRICT v, size_t n,
                  const struct wz_adamw_scalars *by)
{
    struct wz_adamw_scalars a = *by;

    for (size_t i = 0; i < n; i++) {
        float d = g[i] * a.scale;
        m[i] = a.b1 * m[i] + a.a1 * d;
        v[i] = a.b2 * v[i] + a.a2 * d * d;
        w[i] -= a.rate * m[i] / (sqrtf(v[i]) * a.root + a.eps) + a.decay * w[i];
    }
}

static bool runs(void)
{
#ifdef __AVX512BF16__
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

#define STRING(x)    STRING_OF(x)
#define STRING_OF(x) #x

const struct hot HOT(wz_hot) = {
    .isa = STRING(WZ_ISA),
    .panel = 2 * W,
    .runs = runs,
    .gemm = HOT(wz_gemm),
    .pack = HOT(wz_pack_panel),
    .pair = HOT(wz_pair),
    .pair_rows = HOT(wz_pair_rows),
    .cast = HOT(wz_cast),
    .gemm_int8 = HOT(wz_gemm_int8),
    .pack_int8 = HOT(wz_pack_int8),
    .quantise = HOT(wz_quantise),
    .exps = exps,
    .stat = stat_of,
    .grad = grad,
    .attend = HOT(wz_attend),
    .attend_back = HOT(wz_attend_back),
    .rmsnorm = rmsnorm,
    .rmsnorm_back = rmsnorm_back,
    .rmsnorm_back_w = rmsnorm_back_w,
    .swiglu = swiglu,
    .swiglu_back = swiglu_back,
    .rope = rope,
    .add = add,
    .square = square,
    .adamw = adamw,
};
