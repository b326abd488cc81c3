/* opcheck --bench-large [BACKEND [SHRINK]]: ops on bf16 matrices of an 8B Llama (4096 wide, 14336 in the middle, 128256
 * tokens), each compared with an upper bound measured in the same run:
 *   products, head      the same products with numerics.cuda=fast (cuBLASLt): time as a multiple of its time
 *   what moves bytes    a copy of device memory: WALTZ_COPY, GB/s, as `gpu_layout copy` prints it; shares of it
 * A product finds the bf16 copy of its rows made, as after rmsnorm and swiglu. The head's sampling is also counted
 * alone, as what it takes beyond the product of its logits. SHRINK divides all sizes, to run it without a
 * GPU. */
#include <stdio.h>
#include <stdlib.h>

#include "tests/opcheck.h"

enum { MOST = 8192 };

static struct wz_backend *exact, *fast;
static float *x, *y, *z, *master, *grads, *mean, *square, *weights;
static struct wz_weight w;
static int n, *ids, *tokens;
static struct wz_pick *picks;
static float *lse, *logp;
static double copy;
static uint64_t *sums;

/* Best seconds of one call: repeats fill half a second. */
static double best(struct wz_backend *be, void (*fn)(struct wz_backend *be))
{
    double top = 1e9, start = wz_now();
    float word;

    for (int i = 0; i < 3 || wz_now() - start < 0.5; i++) {
        int times = top < 1e-3 ? 20 : 1;
        wz_download(be, &word, y, sizeof word);
        double t = wz_now();
        for (int j = 0; j < times; j++) fn(be);
        wz_download(be, &word, y, sizeof word);
        t = (wz_now() - t) / times;
        top = t < top ? t : top;
    }
    return top;
}

static void share(double bytes, double s)
{
    printf("  %8.1f GB/s", bytes / s * 1e-9);
    if (copy > 0) printf(" = %3.0f %% of copy", bytes / s * 1e-7 / copy);
}

static void matmul(struct wz_backend *be) { wz_matmul(be, y, x, &w, n, false); }
static void back_x(struct wz_backend *be) { wz_matmul_back_x(be, x, y, &w, n, false); }
static void back_w(struct wz_backend *be) { wz_matmul_back_w(be, grads, y, x, &w, n); }
static void rmsnorm(struct wz_backend *be) { wz_rmsnorm(be, y, lse, x, master, n, w.in, 1e-5f, 0); }
static void norm_back(struct wz_backend *be) { wz_rmsnorm_back(be, y, grads, x, z, master, lse, n, w.in, 0); }
static void swiglu(struct wz_backend *be) { wz_swiglu(be, y, x, z, (size_t)n * (size_t)w.in, WZ_SILU); }
static void add(struct wz_backend *be) { wz_add(be, y, x, (size_t)n * (size_t)w.in); }
static void cast(struct wz_backend *be) { wz_cast(be, (uint16_t *)y, x, (size_t)n * (size_t)w.in); }
static void hash(struct wz_backend *be)
{
    be->device->hash(be, sums, grads, (size_t)n * (size_t)w.in / (WZ_PIECE / sizeof *grads));
}
static void logprob(struct wz_backend *be) { wz_head_logprob(be, logp, lse, NULL, x, &w, ids, 1, n); }
static void sample(struct wz_backend *be) { wz_head_sample(be, tokens, logp, x, &w, picks, n); }
static void head_back(struct wz_backend *be) { wz_head_back(be, z, grads, x, &w, ids, logp, lse, 1, n); }

static void adamw(struct wz_backend *be)
{
    wz_adamw(be, master, grads, mean, square, (size_t)n * (size_t)w.in, 1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, 1, 1);
}

static void product(const char *op, int rows, int in, int out, void (*fn)(struct wz_backend *be))
{
    n = rows;
    w.in = in;
    w.out = out;
    double s = best(exact, fn), f = best(fast, fn);
    printf("%-14s n %4d in %5d out %6d %10.1f us %8.1f TFLOP/s", op, n, in, out, s * 1e6, 2e-12 * n * in * out / s);
    if (n <= 64) share(2.0 * in * out, s);
    printf("  %.2f x fast\n", s / f);
    fflush(stdout);
}

static void mover(const char *op, double bytes, int in, void (*fn)(struct wz_backend *be))
{
    n = MOST;
    w.in = in;
    double s = best(exact, fn);
    printf("%-14s n %4d in %5d %10.1f us", op, n, in, s * 1e6);
    share(bytes * n * in, s);
    puts("");
    fflush(stdout);
}

/* `products` of the size of the logits are made; `alone`: what is left is counted as a pass over the logits. */
static void head(const char *op, int rows, int products, bool alone, void (*fn)(struct wz_backend *be))
{
    size_t total, before, after;
    int block = rows < 1024 ? rows : 1024;

    n = block;
    double f = best(fast, matmul) * products * rows / block, p = alone ? best(exact, matmul) : 0,
           all = 4.0 * rows * w.out;
    wz_backend_devices(exact, &total, &before);
    n = rows;
    double s = best(exact, fn);
    bool told = wz_backend_devices(exact, &total, &after) > 0;
    printf("%-14s n %4d in %5d out %6d %10.1f us %8.1f TFLOP/s  %.2f x fast's %d product(s)", op, n, w.in, w.out,
           s * 1e6, 2e-12 * products * n * w.in * w.out / s, s / f, products);
    if (told) printf(", %.1f %% of the logits' bytes more", 100 * (double)(before - after) / all);
    if (alone && s > p) share(all, s - p);
    puts("");
    fflush(stdout);
}

static float *filled(size_t floats)
{
    float *p = wz_backend_alloc(exact, floats * sizeof *p);
    size_t piece = (size_t)1 << 20;
    float *some = wz_alloc(piece * sizeof *some);

    for (size_t i = 0; i < piece; i++)
        some[i] = (float)wz_normal((struct wz_key){ 3, WZ_RNG_TEST, 0, (uint32_t)i, 0, 7 }) / 32;
    for (size_t i = 0; i < floats; i += piece)
        wz_upload(exact, p + i, some, (floats - i < piece ? floats - i : piece) * sizeof *some);
    free(some);
    return p;
}

int opcheck_bench_large(const char *backend, int shrink)
{
    int dim = 4096 / shrink, wide = 14336 / shrink, vocab = 128256 / shrink, most = MOST / shrink;
    const struct {
        int in, out;
    } sizes[] = { { dim, dim }, { dim, dim / 4 }, { dim, wide }, { wide, dim } };
    const int counts[] = { 1, 8, 64, 256, most };
    struct wz_err err;

    copy = getenv("WALTZ_COPY") ? atof(getenv("WALTZ_COPY")) : 0;
    if (!(fast = wz_backend_open(backend, 0, &(struct wz_numerics){ .fast = true }, &err)))
        return fprintf(stderr, "%s\n", err.text), 1;
    if (!(exact = wz_backend_open(backend, 0, NULL, &err))) return fprintf(stderr, "%s\n", err.text), 1;
    size_t rows = (size_t)MOST * (size_t)wide, logits = (size_t)(most < 1024 ? most : 1024) * (size_t)vocab,
           head_size = (size_t)vocab * (size_t)dim;
    x = filled(rows);
    y = filled(rows > logits ? rows : logits);
    z = filled(rows);
    master = filled((size_t)MOST * (size_t)dim);
    mean = filled((size_t)MOST * (size_t)dim);
    square = wz_backend_alloc(exact, (size_t)MOST * (size_t)dim * sizeof *square);
    grads = filled(head_size > rows ? head_size : rows);
    weights = filled(head_size);
    w = (struct wz_weight){ wz_backend_alloc(exact, head_size * 2), WZ_BF16, 0, 0, NULL, 0 };
    wz_cast(exact, w.data, weights, head_size);
    ids = wz_alloc(MOST * sizeof *ids);
    tokens = wz_alloc(MOST * sizeof *tokens);
    picks = wz_alloc(MOST * sizeof *picks);
    lse = wz_alloc(MOST * sizeof *lse);
    logp = wz_alloc(MOST * sizeof *logp);
    for (int i = 0; i < MOST; i++) {
        ids[i] = i % vocab;
        picks[i] = (struct wz_pick){ 1, 1, 0, 0, i / (double)MOST };
    }
    for (size_t i = 0; i < WZ_COUNT(sizes); i++)
        for (size_t j = 0; j < WZ_COUNT(counts); j++) product("matmul", counts[j], sizes[i].in, sizes[i].out, matmul);
    for (size_t i = 0; i < WZ_COUNT(sizes); i++) {
        product("matmul_back_x", most, sizes[i].in, sizes[i].out, back_x);
        product("matmul_back_w", most, sizes[i].in, sizes[i].out, back_w);
    }
    float *kept = lse;
    lse = filled(MOST);
    mover("rmsnorm", 8, dim, rmsnorm);
    mover("rmsnorm_back", 24, dim, norm_back);
    mover("swiglu", 12, wide, swiglu);
    mover("add", 12, wide, add);
    mover("cast", 6, wide, cast);
    mover("adamw", 28, dim, adamw);
    sums = wz_alloc(head_size / (WZ_PIECE / sizeof *grads) * sizeof *sums);
    mover("hash", 4, (int)(head_size / MOST), hash); /* many more pieces than are at work at a time */
    free(sums);
    wz_backend_free(exact, lse);
    lse = kept;
    w.in = dim;
    w.out = vocab;
    head("head_logprob", most, 1, false, logprob);
    head("head_back", most, 3, false, head_back);
    head("head_sample", 64, 1, true, sample);
    head("head_sample", 256, 1, true, sample);
    for (int i = 0; i < MOST; i++) picks[i].top_p = 0.9f;
    head(" with top_p", 256, 1, true, sample);
    for (int i = 0; i < MOST; i++) picks[i].top_k = 50;
    head(" and top_k", 256, 1, true, sample);
    float *const arrays[] = { x, y, z, master, mean, square, grads, weights, w.data };
    for (size_t i = 0; i < WZ_COUNT(arrays); i++) wz_backend_free(exact, arrays[i]);
    void *const hosts[] = { ids, tokens, picks, lse, logp };
    for (size_t i = 0; i < WZ_COUNT(hosts); i++) free(hosts[i]);
    wz_backend_close(exact);
    wz_backend_close(fast);
    return 0;
}
