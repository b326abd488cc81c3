/* ref: memory, embedding, norm, matrix products, SwiGLU, optimizer.
 *
 * Sums over channels are in double and rounded once. Sums over tokens into a weight's gradient are a chain of f32 FMAs,
 * because a batch cut into two calls must give the same bits, and what is stored between the calls is f32. */
#include "kernels/ref/ref.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void *alloc(struct wz_backend *be, size_t size) { return wz_alloc(size); }

static void release(struct wz_backend *be, void *p) { free(p); }

static void upload(struct wz_backend *be, void *dst, const void *host, size_t n)
{
    if (n) memcpy(dst, host, n);
}

static void zero(struct wz_backend *be, void *p, size_t n)
{
    if (n) memset(p, 0, n);
}

static void pack(struct wz_backend *be, struct wz_weight *w) { w->packed = NULL; }

static size_t packed(const struct wz_backend *be, const struct wz_weight *w) { return 0; }

static void embed(struct wz_backend *be, float *out, const struct wz_weight *table, const int *ids, int n)
{
    size_t c = (size_t)table->in;

    for (size_t i = 0; i < (size_t)n; i++)
        for (size_t j = 0; j < c; j++) out[i * c + j] = wz_weight_at(table, (size_t)ids[i] * c + j);
}

static void embed_back(struct wz_backend *be, float *d_table, const float *d_out, const int *ids, int n, int c)
{
    for (int i = 0; i < n; i++)
        for (int j = 0; j < c; j++)
            d_table[(size_t)ids[i] * (size_t)c + (size_t)j] += d_out[(size_t)i * (size_t)c + (size_t)j];
}

static void rmsnorm(struct wz_backend *be, float *out, float *rstd, const float *x, const float *w, int n, int c,
                    float eps, float one)
{
    for (int i = 0; i < n; i++, x += c, out += c) {
        double sum = 0;
        for (int j = 0; j < c; j++) sum += (double)x[j] * x[j];
        rstd[i] = (float)(1 / sqrt(sum / c + (double)eps));
        for (int j = 0; j < c; j++) out[j] = (one + w[j]) * (x[j] * rstd[i]);
    }
}

static void rmsnorm_back(struct wz_backend *be, float *d_x, float *d_w, const float *d_out, const float *x,
                         const float *w, const float *rstd, int n, int c, float one)
{
    for (int i = 0; i < n; i++, x += c, d_x += c, d_out += c) {
        double mean = 0, r = rstd[i];
        for (int j = 0; j < c; j++) mean += (double)d_out[j] * (one + w[j]) * x[j] * r / c;
        for (int j = 0; j < c; j++) {
            d_x[j] = (float)(d_x[j] + r * ((double)d_out[j] * (one + w[j]) - x[j] * r * mean));
            d_w[j] = fmaf(d_out[j], x[j] * rstd[i], d_w[j]);
        }
    }
}

/* Quantises x[n] to q[n]; returns the scale. */
static float quantise(int *q, const float *x, int n)
{
    float max = 0;

    for (int i = 0; i < n; i++) max = fmaxf(max, fabsf(x[i]));
    for (int i = 0; i < n; i++) q[i] = wz_int8_of(x[i], max > 0 && max < INFINITY ? 127 / max : 0);
    return max / 127;
}

static void matmul_int8(float *y, const float *x, const struct wz_weight *w, int n, bool add)
{
    size_t in = (size_t)w->in, out = (size_t)w->out;
    int *q = wz_alloc((out + 1) * in * sizeof *q), *qx = q + out * in;
    float *scale = wz_alloc((out + in) * sizeof *scale), *row = scale + out;

    for (size_t o = 0; o < out; o++) {
        for (size_t j = 0; j < in; j++) row[j] = (float)wz_weight_at(w, o * in + j);
        scale[o] = quantise(q + o * in, row, w->in);
    }
    for (int i = 0; i < n; i++, x += in, y += out) {
        float s = quantise(qx, x, w->in);
        for (size_t o = 0; o < out; o++) {
            int32_t sum = 0;
            for (size_t j = 0; j < in; j++) sum += qx[j] * q[o * in + j];
            y[o] = (add ? y[o] : 0) + (float)sum * (s * scale[o]);
        }
    }
    free(q);
    free(scale);
}

double wz_ref_sum(const struct wz_backend *be, const struct wz_weight *w, float c, const float *x, size_t at,
                  size_t step, int k)
{
    double sum = (double)c;

    if (wz_in_amx(be, w->type)) return (double)wz_amx_sum(c, x, 1, (const uint16_t *)w->data + at, w->type, step, k);
    for (size_t i = 0; i < (size_t)k; i++) sum += wz_factor(be, w, x[i]) * (double)wz_weight_at(w, at + i * step);
    return sum;
}

static void matmul(struct wz_backend *be, float *y, const float *x, const struct wz_weight *w, int n, bool add)
{
    if (w->type == WZ_INT8) {
        matmul_int8(y, x, w, n, add);
        return;
    }
    for (int i = 0; i < n; i++, x += w->in, y += w->out)
        for (int o = 0; o < w->out; o++)
            y[o] = (float)wz_ref_sum(be, w, add ? y[o] : 0, x, (size_t)o * (size_t)w->in, 1, w->in);
}

static void matmul_back_x(struct wz_backend *be, float *d_x, const float *d_y, const struct wz_weight *w, int n,
                          bool add)
{
    for (int i = 0; i < n; i++, d_x += w->in, d_y += w->out)
        for (int j = 0; j < w->in; j++)
            d_x[j] = (float)wz_ref_sum(be, w, add ? d_x[j] : 0, d_y, (size_t)j, (size_t)w->in, w->out);
}

static void matmul_back_w(struct wz_backend *be, float *d_w, const float *d_y, const float *x,
                          const struct wz_weight *w, int n)
{
    size_t in = (size_t)w->in, out = (size_t)w->out;

    for (size_t i = 0; i < in * out && wz_in_amx(be, w->type); i++)
        d_w[i] = wz_amx_sum(d_w[i], d_y + i / in, out, x + i % in, WZ_F32, in, n);
    for (int i = 0; i < n && !wz_in_amx(be, w->type); i++, d_y += w->out, x += w->in)
        for (int o = 0; o < w->out; o++)
            for (int j = 0; j < w->in; j++) {
                float *d = &d_w[(size_t)o * (size_t)w->in + (size_t)j];
                *d = fmaf((float)wz_factor(be, w, d_y[o]), (float)wz_factor(be, w, x[j]), *d);
            }
}

static void bias(struct wz_backend *be, float *y, const float *b, int n, int c)
{
    for (int i = 0; i < n; i++, y += c)
        for (int j = 0; j < c; j++) y[j] += b[j];
}

static void bias_back(struct wz_backend *be, float *d_b, const float *d_y, int n, int c)
{
    for (int i = 0; i < n; i++, d_y += c)
        for (int j = 0; j < c; j++) d_b[j] += d_y[j];
}

/* The argument of the sigmoid in act(g), and its derivative. */
static double gate_of(double g, enum wz_act act, double *slope)
{
    const double a = act == WZ_GELU ? 2 * sqrt(2 / M_PI) : 1, b = act == WZ_GELU ? a * 0.044715 : 0;

    *slope = a + 3 * b * g * g;
    return a * g + b * g * g * g;
}

static void swiglu(struct wz_backend *be, float *out, const float *gate, const float *up, size_t n, enum wz_act act)
{
    double slope;

    for (size_t i = 0; i < n; i++)
        out[i] = (float)(gate[i] / (1 + exp(-gate_of((double)gate[i], act, &slope))) * up[i]);
}

static void swiglu_back(struct wz_backend *be, float *d_gate, float *d_up, const float *d_out, const float *gate,
                        const float *up, size_t n, enum wz_act act)
{
    for (size_t i = 0; i < n; i++) {
        double g = gate[i], u = up[i], slope, s = 1 / (1 + exp(-gate_of(g, act, &slope)));
        d_gate[i] = (float)(d_out[i] * u * s * (1 + g * slope * (1 - s)));
        d_up[i] = (float)(d_out[i] * g * s);
    }
}

static void cast(struct wz_backend *be, uint16_t *dst, const float *src, size_t n)
{
    for (size_t i = 0; i < n; i++) dst[i] = wz_f32_to_bf16(src[i]);
}

static void add(struct wz_backend *be, float *dst, const float *src, size_t n)
{
    for (size_t i = 0; i < n; i++) dst[i] += src[i];
}

static void scale(struct wz_backend *be, float *out, const float *x, float by, size_t n)
{
    for (size_t i = 0; i < n; i++) out[i] = x[i] * by;
}

static void squares(struct wz_backend *be, double *sums, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (i % WZ_BLOCK == 0) sums[i / WZ_BLOCK] = 0;
        sums[i / WZ_BLOCK] += (double)x[i] * x[i];
    }
}

static void adamw(struct wz_backend *be, float *w, const float *g, float *m, float *v, size_t n, float lr, float b1,
                  float b2, float eps, float decay, float scale, int step)
{
    double c1 = 1 - pow((double)b1, step), c2 = 1 - pow((double)b2, step);

    for (size_t i = 0; i < n; i++) {
        double d = (double)g[i] * (double)scale;
        m[i] = (float)((double)b1 * m[i] + (1 - (double)b1) * d);
        v[i] = (float)((double)b2 * v[i] + (1 - (double)b2) * d * d);
        w[i] = (float)(w[i] - (double)lr * (m[i] / c1 / (sqrt(v[i] / c2) + (double)eps) + (double)decay * w[i]));
    }
}

void wz_ops_ref(struct wz_ops *ops)
{
    *ops = (struct wz_ops){
        .alloc = alloc,
        .free = release,
        .upload = upload,
        .download = upload,
        .zero = zero,
        .pack = pack,
        .unpack = pack,
        .embed = embed,
        .embed_back = embed_back,
        .rmsnorm = rmsnorm,
        .rmsnorm_back = rmsnorm_back,
        .matmul = matmul,
        .matmul_back_x = matmul_back_x,
        .matmul_back_w = matmul_back_w,
        .bias = bias,
        .bias_back = bias_back,
        .swiglu = swiglu,
        .swiglu_back = swiglu_back,
        .cast = cast,
        .add = add,
        .scale = scale,
        .squares = squares,
        .adamw = adamw,
    };
    wz_ops_ref_attention(ops);
    wz_ops_ref_head(ops);
}

static int open_ref(struct wz_backend *be, struct wz_err *err)
{
    wz_ops_ref(&be->ops);
    be->int8 = true;
    return 0;
}

static void close_ref(struct wz_backend *be) { be->state = NULL; }

const struct wz_backend_row wz_backend_ref = { open_ref, close_ref, packed, NULL, false, 1, true };
