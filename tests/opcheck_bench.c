/* opcheck --bench [threads] [backend]: the best of several runs of each op, in GFLOP/s where it multiplies and GB/s
 * where it moves; on one thread by the processor's clock, so that other processes do not count. The shapes are
 * those of a 135M Llama (576 wide, 9 heads on 3 of 64, 1536 in the middle, 49152 tokens) and of a small one (64
 * wide); on a device also the attention of an 8B one (32 heads on 8 of 128), whose decoding is given as a share of
 * what a copy moves. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/opcheck.h"

static struct wz_backend *be;
static float *waited; /* reading it back waits for what a device has been asked to do */
static float *x, *y, *z, *weights, *grads, *stats;
static struct wz_weight w;
static int n, in, out, ids[4096];
static struct wz_pick picks[1024];
static float lse[4096], logp[4096];
static double sums[4096 * 4096 / WZ_BLOCK];
static struct wz_kv kv;
static struct wz_rows rows;
static int heads;
static double copied; /* bytes a second that a copy reads and writes */

static const size_t most = 49152 * 576; /* floats of each array */

static double now(void)
{
    struct timespec t;

    clock_gettime(be->pool ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Best seconds of one call: repeats fill about 0.2 s. */
static double best(void (*fn)(void))
{
    double top = 1e9, start = wz_now();

    for (int i = 0; i < 5 || wz_now() - start < 0.2; i++) {
        double t = now();
        int times = top < 1e-4 ? 10 : 1;
        for (int j = 0; j < times; j++) fn();
        float word;
        wz_download(be, &word, waited, sizeof word);
        t = (now() - t) / times;
        top = t < top ? t : top;
    }
    return top;
}

static void rate(const char *op, double amount, const char *unit, void (*fn)(void))
{
    double s = best(fn);

    printf("%-16s n %4d  in %5d  out %6d  %9.1f us  %7.1f %s\n", op, n, in, out, s * 1e6, amount / s * 1e-9, unit);
    fflush(stdout);
}

static void matmul(void) { wz_matmul(be, y, x, &w, n, false); }
static void back_x(void) { wz_matmul_back_x(be, x, y, &w, n, false); }
static void back_w(void) { wz_matmul_back_w(be, grads, y, x, &w, n); }
static void pack(void) { wz_pack(be, &w); }
static void rmsnorm(void) { wz_rmsnorm(be, y, stats, x, weights, n, in, 1e-5f, 0); }
static void swiglu(void) { wz_swiglu(be, y, x, z, (size_t)n * (size_t)in, WZ_SILU); }
static void adamw(void) { wz_adamw(be, x, y, z, grads, (size_t)n * (size_t)in, 1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, 1, 1); }
static void squares(void) { wz_squares(be, sums, x, (size_t)n * (size_t)in); }
static void attention(void) { wz_attention(be, y, stats, x, &kv, &rows, heads, (struct wz_scores){ 0 }); }
static void attention_back(void)
{
    wz_attention_back(be, grads, weights, weights + most / 2, (struct wz_past){ 0 }, z, y, stats, x, &kv, &rows, heads,
                      (struct wz_scores){ 0 });
}

static void copy(void) { wz_kv_copy(be, &kv, 1, 0, kv.page); }
static void logprob(void) { wz_head_logprob(be, logp, lse, NULL, x, &w, ids, 1, n); }
static void sample(void)
{
    int token[1024];
    wz_head_sample(be, token, logp, x, &w, picks, n);
}
static void head_back(void) { wz_head_back(be, y, grads, x, &w, ids, logp, lse, 1, n); }

static void products(int rows_n, int from, int to, enum wz_type type)
{
    double flop;

    n = rows_n;
    in = from;
    out = to;
    flop = 2.0 * n * in * out;
    w = (struct wz_weight){ weights, type, out, in, NULL, 0 };
    wz_pack(be, &w);
    rate(type == WZ_INT8 ? "matmul int8" : type == WZ_BF16 ? "matmul bf16" : "matmul", flop, "GFLOP/s", matmul);
    if (type != WZ_INT8) rate("  back_x", flop, "GFLOP/s", back_x);
    if (type != WZ_INT8) rate("  back_w", flop, "GFLOP/s", back_w);
    wz_unpack(be, &w);
}

/* Large, so that it comes and goes past any cache. */
static void copies(void)
{
    double size = 2.0 * 65536 * 8 * 128 * sizeof(float); /* of keys and values */

    kv = (struct wz_kv){
        wz_backend_alloc(be, (size_t)size), wz_backend_alloc(be, (size_t)size), 2, 65536, 8, 128, false
    };
    copied = 2 * size / best(copy);
    printf("%-16s %61.1f GB/s\n", "copy", copied * 1e-9);
    wz_backend_free(be, kv.k);
    wz_backend_free(be, kv.v);
}

struct shape {
    int heads, kv_heads, d;
};
static const struct shape m135 = { 9, 3, 64 }, m8b = { 32, 8, 128 };

static void attends(const struct shape *of, int seqs, int len, bool whole, bool half)
{
    enum { PAGE = 16 };
    int stride = (len + PAGE - 1) / PAGE, *seq, *pos, *table, d = of->d, width = of->kv_heads * d;

    heads = of->heads;
    n = whole ? seqs * len : seqs;
    in = len;
    out = heads * d;
    seq = wz_alloc((size_t)(seqs * len) * sizeof *seq);
    pos = wz_alloc((size_t)(seqs * len) * sizeof *pos);
    table = wz_alloc((size_t)(seqs * stride) * sizeof *table);
    for (int i = 0; i < seqs * stride; i++) table[i] = i;
    for (int i = 0; i < seqs * len; i++) {
        seq[i] = i / len;
        pos[i] = i % len;
    }
    size_t size = (size_t)(seqs * stride * PAGE) * (size_t)width * (half ? sizeof(uint16_t) : sizeof(float));
    kv = (struct wz_kv){
        wz_backend_alloc(be, size), wz_backend_alloc(be, size), seqs * stride, PAGE, of->kv_heads, d, half
    };
    for (int i = 0; i < seqs; i++) {
        rows = (struct wz_rows){ len, seqs, stride, seq + i * len, pos + i * len, table };
        wz_kv_write(be, &kv, x, z, &rows);
    }
    rows = (struct wz_rows){ n, seqs, stride, seq, pos, table };
    for (int i = 0; i < seqs && !whole; i++) {
        seq[i] = i;
        pos[i] = len - 1;
    }
    double pairs = whole ? seqs * (len * (len + 1.0) / 2) : (double)seqs * len;
    rate(whole  ? half ? "attention half" : "attention"
         : half ? "att. decode half"
                : "attention decode",
         pairs * heads * d * 4, "GFLOP/s", attention);
    if (whole) rate("attention_back", pairs * heads * d * 10, "GFLOP/s", attention_back);
    else if (copied > 0) printf("%-16s %61.1f %% of a copy\n", "", 100 * 2 * (double)size / best(attention) / copied);
    wz_backend_free(be, kv.k);
    wz_backend_free(be, kv.v);
    free(seq);
    free(pos);
    free(table);
}

static void head(int rows_n, int width, int vocab, enum wz_type type)
{
    const bool half = type == WZ_BF16;

    n = rows_n;
    in = width;
    out = vocab;
    w = (struct wz_weight){ weights, type, out, in, NULL, 0 };
    wz_pack(be, &w);
    for (int i = 0; i < n; i++) picks[i] = (struct wz_pick){ 1, 1, 0, 0, i / 1024. };
    rate(half ? "head_sample bf16" : "head_sample", 2.0 * n * in * out, "GFLOP/s", sample);
    for (int i = 0; i < n; i++) picks[i].top_p = 0.9f;
    rate("  with top_p", 2.0 * n * in * out, "GFLOP/s", sample);
    rate(half ? "head_logp. bf16" : "head_logprob", 2.0 * n * in * out, "GFLOP/s", logprob);
    rate(half ? "head_back bf16" : "head_back", 6.0 * n * in * out, "GFLOP/s", head_back);
    wz_unpack(be, &w);
}

static float **const all[] = { &x, &y, &z, &weights, &grads };

static void fill(void)
{
    float *values = wz_alloc(most * sizeof *values);

    for (size_t j = 0; j < most; j++) values[j] = (float)((j * 2654435761u >> 8) % 1024) / 8192 - 0.0625f;
    for (size_t i = 0; i < WZ_COUNT(all); i++) wz_upload(be, *all[i], values, most * sizeof *values);
    free(values);
}

int opcheck_bench(int threads, const char *backend, const struct wz_numerics *numerics)
{
    static const int counts[] = { 1, 8, 64, 512 };
    struct wz_err err;

    be = wz_backend_open(backend, threads, numerics, &err);
    if (!be) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    for (size_t i = 0; i < WZ_COUNT(all); i++) *all[i] = wz_backend_alloc(be, most * sizeof(float));
    waited = wz_backend_alloc(be, sizeof *waited);
    stats = wz_backend_alloc(be, 4096 * 32 * sizeof *stats);
    fill();
    for (int i = 0; i < 4096; i++) ids[i] = i % 64;
    for (size_t i = 0; i < WZ_COUNT(counts); i++) products(counts[i], 576, 1536, WZ_F32);
    for (size_t i = 0; i < WZ_COUNT(counts); i++) products(counts[i], 576, 1536, WZ_BF16);
    for (size_t i = 0; i < WZ_COUNT(counts) && be->int8; i++) products(counts[i], 576, 1536, WZ_INT8);
    products(64, 64, 192, WZ_F32);
    products(64, 1536, 576, WZ_F32);
    products(64, 576, 49152, WZ_F32);
    w = (struct wz_weight){ weights, WZ_F32, 49152, 576, NULL, 0 };
    rate("pack", 8.0 * 49152 * 576, "GB/s", pack);
    wz_unpack(be, &w);
    fill(); /* what products left behind may be huge or denormal */
    n = 64, in = 576, out = 0;
    rate("rmsnorm", 8.0 * n * in, "GB/s", rmsnorm);
    n = 64, in = 1536;
    rate("swiglu", 12.0 * n * in, "GB/s", swiglu);
    n = 4096, in = 4096;
    rate("adamw", 28.0 * n * in, "GB/s", adamw);
    rate("squares", 4.0 * n * in, "GB/s", squares);
    fill();
    attends(&m135, 32, 40, true, false);
    attends(&m135, 1, 512, true, false);
    attends(&m135, 64, 40, false, false);
    attends(&m135, 64, 512, false, false);
    attends(&m135, 64, 512, false, be->half_kv);
    if (be->device) {
        copies();
        attends(&m8b, 64, 1024, false, true);
        attends(&m8b, 64, 4096, false, true);
        attends(&m8b, 1, 4096, false, true);
        attends(&m8b, 1, 4096, true, true);
        attends(&m8b, 8, 512, true, true);
    }
    fill();
    head(1, 576, 49152, WZ_F32);
    head(64, 576, 49152, WZ_F32);
    if (be->amx) head(64, 576, 49152, WZ_BF16);
    head(64, 64, 512, WZ_F32);
    for (size_t i = 0; i < WZ_COUNT(all); i++) wz_backend_free(be, *all[i]);
    wz_backend_free(be, waited);
    wz_backend_free(be, stats);
    wz_backend_close(be);
    return 0;
}
