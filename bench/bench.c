/* A model of a known shape with random weights, and the counters of the kernel and of the heap.
 *
 * The keyed normals of wz_model_init would take too long at start-up, so weights are a cheap hash of the element's
 * index, uniform with the same variance and never zero: zeros could run faster. */
#include "bench/bench.h"
#include "bench/heap.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "model/inner.h"

const struct wz_learn wz_bench_learn = { .adamw = { 1e-6, 0, 1, 0.9, 0.95, 1e-8, 0, 1 },
                                         .pick = wz_sample_picks,
                                         .estimate = wz_estimates,
                                         .loss = wz_losses,
                                         .epsilon = 0.2,
                                         .revision = 0.5,
                                         .temperature = 1 };

static const struct shape {
    const char *name;
    struct wz_config config;
} shapes[] = {
    { "tiny",
      { .layers = 2, .dim = 64, .heads = 4, .kv_heads = 2, .head_dim = 16, .ffn = 192, .vocab = 1024, .tied = true } },
    { "15m",
      { .layers = 6,
        .dim = 288,
        .heads = 6,
        .kv_heads = 6,
        .head_dim = 48,
        .ffn = 768,
        .vocab = 32000,
        .tied = true } },
    { "135m",
      { .layers = 30,
        .dim = 576,
        .heads = 9,
        .kv_heads = 3,
        .head_dim = 64,
        .ffn = 1536,
        .vocab = 49152,
        .tied = true } },
    { "1b",
      { .layers = 16,
        .dim = 2048,
        .heads = 32,
        .kv_heads = 8,
        .head_dim = 64,
        .ffn = 8192,
        .vocab = 128256,
        .tied = true } },
    { "8b", { .layers = 32, .dim = 4096, .heads = 32, .kv_heads = 8, .head_dim = 128, .ffn = 14336, .vocab = 128256 } },
};

/* ---- meters ----------------------------------------------------------------------------------------------- */

static double own_seconds(const struct rusage *u)
{
    return (double)(u->ru_utime.tv_sec + u->ru_stime.tv_sec) +
           1e-6 * (double)(u->ru_utime.tv_usec + u->ru_stime.tv_usec);
}

/* Seconds that all cores together were busy since they started; idle and waiting do not count. */
static double busy_seconds(void)
{
    FILE *f = fopen("/proc/stat", "r");
    double t[8] = { 0 };

    if (!f) return 0;
    int n = fscanf(f, "cpu %lf %lf %lf %lf %lf %lf %lf %lf", t, t + 1, t + 2, t + 3, t + 4, t + 5, t + 6, t + 7);
    fclose(f);
    return n == 8 ? (t[0] + t[1] + t[2] + t[5] + t[6] + t[7]) / (double)sysconf(_SC_CLK_TCK) : 0;
}

void wz_meter_start(struct wz_meter *m)
{
    struct rusage u;

    getrusage(RUSAGE_SELF, &u);
    *m = (struct wz_meter){
        .own = own_seconds(&u), .cores = busy_seconds(), .faults = u.ru_minflt, .allocations = wz_heap_count()
    };
    m->seconds = wz_now();
}

struct wz_cost wz_meter_read(const struct wz_meter *m)
{
    struct rusage u;
    double now = wz_now();

    getrusage(RUSAGE_SELF, &u);
    return (struct wz_cost){ now - m->seconds, own_seconds(&u) - m->own, u.ru_minflt - m->faults,
                             wz_heap_count() - m->allocations };
}

double wz_meter_others(const struct wz_meter *m)
{
    struct rusage u;
    double all = (wz_now() - m->seconds) * (double)sysconf(_SC_NPROCESSORS_ONLN), busy = busy_seconds() - m->cores;

    getrusage(RUSAGE_SELF, &u);
    double others = busy - (own_seconds(&u) - m->own);
    return others > 0 ? 100 * others / all : 0;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

void wz_bench_mismatch(const struct wz_bench *b, const struct wz_step_stats *s)
{
    if (s->mismatch > 0 && !b->be->numerics.fast)
        wz_die("%s: %.0f log-probabilities differ from those of the same weights, by up to %g", b->program, s->mismatch,
               s->max_gap);
    if (b->be->numerics.fast)
        fprintf(stderr, "%.0f of %.0f log-probabilities differ, by up to %.3g\n", s->mismatch, s->tokens, s->max_gap);
}

double wz_median(double *x, int n)
{
    qsort(x, (size_t)n, sizeof *x, by_size);
    return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

/* ---- the model -------------------------------------------------------------------------------------------- */

static uint64_t mixed(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

enum { PIECE = 1 << 22, SLICE = 1 << 16 };

/* x[n]: elements of a tensor, of which the first is number `at` of all weights. */
struct filling {
    float *x;
    size_t at, n;
    bool matrix;
};

static void fill_slice(void *arg, int s)
{
    const struct filling *f = arg;
    const float width = 0.02f * sqrtf(12); /* of a uniform with deviation 0.02 */

    for (size_t j = (size_t)s * SLICE; j < f->n && j < (size_t)(s + 1) * SLICE; j++)
        f->x[j] = f->matrix ? width * ((float)(mixed(f->at + j + 1) >> 40) * 0x1p-24f - 0.5f) : 1;
}

static void fill(struct wz_model *m)
{
    float *x = wz_alloc(PIECE * sizeof *x);

    for (int i = 0; i < m->n_list; i++) {
        const struct wz_param *p = &m->list[i];
        for (size_t at = 0, all = wz_param_count(p); at < all; at += PIECE) {
            struct filling f = { x, p->at + at, all - at < PIECE ? all - at : PIECE, p->cols > 0 };
            wz_pool_run(m->be->pool, (int)((f.n + SLICE - 1) / SLICE), fill_slice, &f);
            wz_param_put(m, i, at, f.n, x);
        }
    }
    free(x);
    wz_model_commit(m, 1);
}

int *wz_bench_ids(const struct wz_bench *b, int n, uint32_t which)
{
    int *ids = wz_alloc(wz_mul((size_t)n, sizeof *ids));

    for (int i = 0; i < n; i++) {
        const struct wz_key key = { 1, WZ_RNG_TEST, i < b->system ? UINT32_MAX : which, (uint32_t)i, 0, 0 };
        ids[i] = (int)wz_below(key, (uint32_t)b->model->config.vocab);
    }
    return ids;
}

static size_t n_weights(const struct wz_config *c, bool table)
{
    size_t d = (size_t)c->dim, hd = (size_t)(c->heads * c->head_dim), kd = (size_t)(c->kv_heads * c->head_dim),
           v = (size_t)c->vocab;

    return (size_t)c->layers * d * (2 * hd + 2 * kd + 3 * (size_t)c->ffn) + v * d * (table && !c->tied ? 2 : 1);
}

double wz_bench_flops(const struct wz_bench *b, double at)
{
    const struct wz_config *c = &b->model->config;

    return 2 * (double)n_weights(c, false) + 4.0 * c->layers * c->heads * c->head_dim * at;
}

double wz_bench_bytes(const struct wz_bench *b)
{
    const struct wz_config *c = &b->model->config;
    double head = (double)c->vocab * c->dim;
    enum wz_type type = b->model->type;

    return ((double)n_weights(c, false) - head) * (double)(type == WZ_INT8 ? 1 : wz_type_size(type)) +
           head * (double)wz_type_size(type);
}

/* Of f32: forward and backward read a weight, its gradient is zeroed, added to and measured, AdamW reads four floats
 * and writes three, panels are read and written, the hash reads. Of bf16 the masters are apart: what forward,
 * backward, panels and hash move is half. */
double wz_bench_update(const struct wz_bench *b)
{
    return (b->model->type == WZ_BF16 ? 14 : 16) * (double)sizeof(float) * (double)n_weights(&b->model->config, true);
}

/* Fails where the bench would not fit in memory: weights and their panels, and for each trained weight two moments
 * and a tree of gradients. */
static int check_memory(const struct wz_bench *b, const struct wz_config *c, bool half, bool trains, struct wz_err *err)
{
    size_t total, unused;

    if (!wz_backend_devices(b->be, &total, &unused)) wz_host_memory(&total, &unused);
    double copies = (half ? 2 : 4) * (b->be->device ? 1 : 2) + (trains ? half ? 16 : 12 : 0),
           need = (double)n_weights(c, true) * copies;
    if (need < 0.9 * (double)unused) return 0;
    return wz_fail(err, "%d layers of %s as %s need %.1f GB, %.1f GB are free", c->layers, b->shape, b->type,
                   need * 1e-9, (double)unused * 1e-9);
}

int wz_bench_open(struct wz_bench *b, const char *about, int argc, char **argv, int *status)
{
    bool trains = strcmp(b->program, "generate") && strcmp(b->program, "verdicts");
    struct wz_numerics numerics = { 0 };
    const struct wz_option options[] = {
        { "shape", 0, WZ_TEXT, &b->shape, "tiny|15m|135m|1b|8b", "of the model", 0, 0 },
        { "layers", 0, WZ_INT, &b->layers, "L", "of it (0: all of the shape's)", 0, 128 },
        { "type", 0, WZ_TEXT, &b->type, "f32|bf16|int8", "of the weights", 0, 0 },
        { "batch", 0, WZ_INT, &b->batch, "N", "sequences", 1, 65536 },
        { "prompt", 0, WZ_INT, &b->prompt, "P", "tokens of a prompt", 1, 1 << 20 },
        { "new", 0, WZ_INT, &b->more, "G",
          !strcmp(b->program, "step") ? "tokens of an answer: those with a loss" : "tokens generated for each", 1,
          1 << 20 },
        { "seq", 0, WZ_INT, &b->seq, "S", "tokens of a sequence in all, instead of --new", 0, 1 << 20 },
        { "threads", 0, WZ_INT, &b->threads, "T", "threads (0: all cores)", 0, 1024 },
        { "runs", 0, WZ_INT, &b->runs, "R", "measured runs: the median is printed", 1, 1000 },
        { "backend", 0, WZ_TEXT, &b->backend, "NAME", "of the op table", 0, 0 },
        { "fast", 0, WZ_FLAG, &numerics.fast, "", "numerics.cuda=fast", 0, 0 },
        { "isa", 0, WZ_TEXT, &numerics.isa, "NAME", "numerics.isa", 0, 0 },
        { "bf16", 0, WZ_TEXT, &numerics.bf16, "chain|amx|auto", "numerics.bf16", 0, 0 },
        { "recompute", 0, WZ_FLAG, &b->recompute, "",
          "keep the layers' inputs only and compute the rest again on the way back", 0, 0 },
        { "csv", 0, WZ_FLAG, &b->csv, "", "a header and one line", 0, 0 },
        { "system", 0, WZ_INT, &b->system, "S", "tokens that all prompts begin with", 0, 1 << 20 },
        { "micro", 0, WZ_INT, &b->micro, "M", "rows of one forward and backward (0: all)", 0, 1 << 20 },
        { "leaves", 0, WZ_INT, &b->leaves, "L", "parts of the batch, a power of two, as in a recipe", 1, 128 },
        { "share", 0, WZ_FLAG, &b->share, "", "share_prefix: yes", 0, 0 },
    };
    enum { OF_TRAINING = 3 }; /* the last ones */
    const struct wz_usage usage = { .name = b->program,
                                    .args = "",
                                    .about = about,
                                    .options = options,
                                    .n_options = WZ_COUNT(options) - (trains ? 0 : OF_TRAINING) };
    struct wz_config c = { 0 };
    struct wz_err err;

    *status = 1;
    if (wz_options_parse(&usage, argc, argv, status) < 0) return -1;
    for (size_t i = 0; i < WZ_COUNT(shapes); i++)
        if (!strcmp(b->shape, shapes[i].name)) c = shapes[i].config;
    if (b->layers) c.layers = b->layers;
    enum wz_type type = wz_type_named(b->type);
    bool half = type != WZ_F32;
    if (type == WZ_INT8 && trains) {
        wz_fail(&err, "int8 models can't train: --type f32 or bf16");
        return *status = wz_give_up(b->program, &err), -1;
    }
    if (b->seq && b->seq <= b->prompt) b->prompt = b->seq > 1 ? 1 : b->seq;
    if (b->seq) b->more = b->seq - b->prompt;
    b->seq = b->prompt + b->more;
    c.context = b->seq + 1;
    c.norm_eps = 1e-5f;
    c.rope_theta = 1e4f;
    c.bos = -1;
    if (!(b->be = wz_backend_open(b->backend, b->threads, &numerics, &err)) ||
        check_memory(b, &c, half, trains, &err) < 0)
        return *status = wz_give_up(b->program, &err), -1;
    b->threads = wz_pool_threads(b->be->pool);
    if (type == WZ_INT8 && !b->be->int8) {
        wz_fail(&err, "the %s row has no int8 products: --type f32 or bf16", b->be->name);
        return *status = wz_give_up(b->program, &err), -1;
    }
    b->model = wz_model_create(&c, type, trains ? &(struct wz_share){ 0, 1 } : NULL, b->be);
    if (!trains) wz_model_drop_unpacked(b->model);
    b->model->recompute = b->recompute;
    fill(b->model);
    return 0;
}

void wz_bench_close(struct wz_bench *b)
{
    wz_model_destroy(b->model);
    wz_backend_close(b->be);
}

void wz_bench_print(const struct wz_bench *b, const struct wz_bench_result *r)
{
    struct rusage u;

    getrusage(RUSAGE_SELF, &u);
    double peak = (double)u.ru_maxrss / 1024;
    if (b->csv) {
        printf("program,shape,type,batch,prompt,new,threads,prefill_tok_s,tok_s,peak_mb,faults_step,allocations_step,"
               "gb_s,gflop_s,others_percent\n");
        printf("waltz %s,%s,%s,%d,%d,%d,%d,%.1f,%.1f,%.0f,%.1f,%.1f,%.2f,%.1f,%.0f\n", b->program, b->shape, b->type,
               b->batch, b->prompt, b->more, b->threads, r->prefill, r->rate, peak, r->faults, r->allocations,
               r->bytes_rate * 1e-9, r->flops_rate * 1e-9, r->others);
        return;
    }
    printf("%s %s, %d x (%d + %d) tokens, %d threads: ", b->shape, b->type, b->batch, b->prompt, b->more, b->threads);
    if (r->prefill > 0) printf("prefill %.1f tokens/s, decode ", r->prefill);
    printf("%.1f tokens/s (%.2f GB/s, %.1f GFLOP/s), peak %.0f MB, a steady step %.1f page faults and %.1f "
           "allocations; others used %.0f %% of the machine\n",
           r->rate, r->bytes_rate * 1e-9, r->flops_rate * 1e-9, peak, r->faults, r->allocations, r->others);
}
