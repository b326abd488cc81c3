/* Regions on the cuda row, its kernels on the host (shim/cuda_runtime.h): what the engine generates is, bit for bit,
 * what it generates without graphs, while rows end and start, pages move, lengths cross the steps of attention, and
 * weights change; nearly every round of a decode is one launch; and what a graph can't repeat is not made one. */
#include <dlfcn.h>

#include "tests/model_help.h"

#include "model/inner.h"
#include "model/model.h"

enum { N = 7, VOCAB = 61, MOST = 64, LONGEST = 640 };

static struct counts {
    long launches, captures, graphs;
} * counts; /* the shim's */
static int contexts[N][LONGEST];

static int set_up(void **state)
{
    const char *shim = getenv("WALTZ_SHIM");

    if (!shim) return 0;
    setenv("WZ_CUDA_PLUGIN", shim, 1);
    counts = dlsym(dlopen(shim, RTLD_NOW), "shim_counts");
    for (int i = 0; i < N; i++)
        ids_of(contexts[i], LONGEST, VOCAB, (uint64_t)(70 + i / 2)); /* two and two begin alike */
    return counts ? 0 : -1;
}

static struct wz_backend *cuda(const char *math, bool graphs)
{
    if (!counts) SKIP("the shim was not built");
    setenv("WZ_CUDA_GRAPHS", graphs ? "1" : "0", 1);
    *counts = (struct counts){ 0 };

    struct wz_err err;
    struct wz_backend *be = wz_backend_open("cuda", 1, &(struct wz_numerics){ .fast = !strcmp(math, "fast") }, &err);
    if (!be) fail_msg("%s", err.text);
    return be;
}

struct way {
    enum wz_type type;
    int head_dim, context, rows;
    const char *math;
};

/* Two rollouts of `n` requests, other weights for the second. */
static void two_rollouts(const struct way *way, bool graphs, struct wz_request *r, int n, int n_context, int most)
{
    struct wz_config c = { .layers = 2,
                           .dim = 32,
                           .heads = 4,
                           .kv_heads = 2,
                           .head_dim = way->head_dim,
                           .ffn = 48,
                           .vocab = VOCAB,
                           .context = way->context,
                           .norm_eps = 1e-5f,
                           .rope_theta = 1e4f,
                           .bos = -1 };
    struct wz_model *m = wz_model_create(&c, way->type, NULL, cuda(way->math, graphs));
    struct wz_engine *e = NULL;
    const int stops[1] = { 7 };

    for (int half = 0; half < 2; half++) {
        wz_model_init(m, (uint64_t)(5 + half));
        for (int k = 0; k < m->n_list; k++) { /* larger than a fresh model's, so that heads attend to something */
            size_t size = wz_param_count(&m->list[k]);
            float *p = wz_alloc(size * sizeof *p);
            wz_param_get(m, k, 0, size, p);
            for (size_t i = 0; i < size; i++) p[i] *= p[i] == 1 ? 1 : 10;
            wz_param_put(m, k, 0, size, p);
            free(p);
        }
        wz_model_commit(m, (uint64_t)(1 + half));
        if (!e) e = wz_engine_create(m, way->rows, 4, 0, 0);
        for (int i = 0; i < n; i++)
            r[half * n + i] = (struct wz_request){ .prompt_ids = contexts[i],
                                                   .n_prompt = n_context + 3 * i,
                                                   .stop_ids = stops,
                                                   .n_stops = 1,
                                                   .max_tokens = most - 5 * i,
                                                   .temperature = i % 3 ? 1 : 0,
                                                   .top_p = i % 2 ? 0.9f : 1,
                                                   .top_k = i == 4 ? 5 : 0,
                                                   .key = { 3, WZ_RNG_TOKEN, (uint32_t)half, (uint32_t)i, 0, 0 } };
        wz_engine_run(e, r + half * n, n);
    }
    wz_engine_destroy(e);
    struct wz_backend *be = m->be;
    wz_model_destroy(m);
    wz_backend_close(be);
}

/* As many rounds as the longest request has tokens can be graphs. */
static void same_with_and_without(const struct way *way, int n, int n_context, int most)
{
    struct wz_request with[2 * N], without[2 * N];
    int rounds = 0;

    two_rollouts(way, false, without, n, n_context, most);
    assert_true(counts->launches > 0 && counts->captures == 0 && counts->graphs == 0);
    long direct = counts->launches;
    two_rollouts(way, true, with, n, n_context, most);
    for (int i = 0; i < 2 * n; i++) {
        rounds += with[i].n;
        assert_int_equal(with[i].n, without[i].n);
        assert_memory_equal(with[i].ids, without[i].ids, sizeof *with[i].ids * (size_t)with[i].n);
        assert_memory_equal(with[i].logp, without[i].logp, sizeof *with[i].logp * (size_t)with[i].n);
        assert_true(i < n || memcmp(with[i].logp, with[i - n].logp, sizeof *with[i].logp));
    }
    for (int i = 0; i < 2 * n; i++) wz_request_finish(&with[i]), wz_request_finish(&without[i]);
    rounds /= way->rows < n ? way->rows : n;
    print_message("# %d rounds at least: %ld graphs captured and launched %ld times, launches %ld for %ld\n", rounds,
                  counts->captures, counts->graphs, counts->launches, direct);
    assert_in_range(counts->captures, 1, rounds / 5);
    assert_in_range(counts->graphs, rounds * 3 / 4, LONG_MAX);
    assert_true(counts->launches < direct / 3);
}

static void graphs_do_not_show(void **state)
{
    static const struct way ways[] = { { WZ_F32, 8, 256, 3, "exact" },
                                       { WZ_BF16, 64, 256, 3, "exact" },
                                       { WZ_BF16, 64, 256, 4, "fast" } };

    for (size_t i = LIGHT; i < WZ_COUNT(ways); i++) same_with_and_without(&ways[i], N, 5, MOST);
}

/* One sequence alone over three ends of f32's steps, and two over the end of a split of bf16's. */
static void lengths_cross_steps(void **state)
{
    same_with_and_without(&(struct way){ WZ_F32, 8, 256, 1, "exact" }, 1, 50, 160);
    same_with_and_without(&(struct way){ WZ_BF16, 64, 600, 2, "exact" }, 2, 470, 90);
}

/* ---- regions by hand -------------------------------------------------------------------------------------- */

enum { ROWS = 40, C = 8 };

struct task {
    struct wz_backend *be;
    struct wz_weight table, half;
    float *x, *y;
    int a[ROWS], b[ROWS], n, row;
    bool twice;
    float back[ROWS * C];
};

/* y = table[row + a], then += table[b] by other ids in the same mirror, where twice. */
static void look_up(void *arg)
{
    struct task *w = arg;
    struct wz_weight table = { (float *)w->table.data + w->row * C, WZ_F32, VOCAB - 1, C, NULL, 0 };
    size_t all = (size_t)w->n * C;

    wz_embed(w->be, w->y, &table, w->a, w->n);
    if (w->twice) {
        wz_embed(w->be, w->x, &w->table, w->b, w->n);
        wz_add(w->be, w->y, w->x, all);
    }
    wz_download(w->be, w->back, w->y, all * sizeof *w->y);
}

/* y = x half^T, of x rounded to bf16. */
static void multiply(void *arg)
{
    struct task *w = arg;

    wz_matmul(w->be, w->y, w->x, &w->half, ROWS, false);
}

static void task_open(struct task *w)
{
    float table[VOCAB * C];
    uint16_t half[C * C];

    *w = (struct task){ .be = cuda("exact", true) };
    for (int i = 0; i < VOCAB * C; i++) table[i] = (float)i;
    w->table = (struct wz_weight){ wz_backend_alloc(w->be, sizeof table), WZ_F32, VOCAB, C, NULL, 0 };
    for (int i = 0; i < C * C; i++) half[i] = wz_f32_to_bf16((float)i);
    w->half = (struct wz_weight){ wz_backend_alloc(w->be, sizeof half), WZ_BF16, C, C, NULL, 0 };
    wz_upload(w->be, w->half.data, half, sizeof half);
    w->x = wz_backend_alloc(w->be, sizeof w->back);
    w->y = wz_backend_alloc(w->be, sizeof w->back);
    wz_upload(w->be, w->table.data, table, sizeof table);
    *counts = (struct counts){ 0 };
}

static void region_run(struct task *w, int n, uint64_t seed)
{
    w->n = n;
    ids_of(w->a, n, VOCAB - 1, seed);
    ids_of(w->b, n, VOCAB, seed + 1000);
    memset(w->back, 0xff, sizeof w->back);
    wz_region(w->be, look_up, w);
    for (int i = 0; i < n * C; i++)
        assert_true(w->back[i] ==
                    (float)((w->row + w->a[i / C]) * C + i % C + (w->twice ? w->b[i / C] * C + i % C : 0)));
}

static void task_close(struct task *w)
{
    wz_backend_free(w->be, w->table.data);
    wz_backend_free(w->be, w->half.data);
    wz_backend_free(w->be, w->x);
    wz_backend_free(w->be, w->y);
    wz_backend_close(w->be);
}

static void a_mirror_that_changes_within_has_no_graph(void **state)
{
    struct task w;

    task_open(&w);
    w.twice = true;
    for (uint64_t i = 0; i < 5; i++) region_run(&w, 9, i);
    assert_int_equal(counts->captures, 0);
    assert_int_equal(counts->launches, 5 * 3);
    w.twice = false;
    for (uint64_t i = 0; i < 5; i++) region_run(&w, 9, i);
    assert_int_equal(counts->captures, 1);
    assert_int_equal(counts->graphs, 4); /* the first is no repetition, the second is captured and launched */
    assert_int_equal(counts->launches, 5 * 3 + 1);
    task_close(&w);
}

/* The same but for an address, by turns. */
static void each_argument_counts(void **state)
{
    struct task w;

    task_open(&w);
    for (uint64_t i = 0; i < 8; i++) {
        w.row = (int)(i % 2);
        region_run(&w, 9, i);
    }
    assert_int_equal(counts->captures, 2);
    assert_int_equal(counts->graphs, 6);
    task_close(&w);
}

/* What is rounded for a product is rounded again whenever it may have changed, though a dry pass and others came
 * before. */
static void rounded_copies_are_made_anew(void **state)
{
    struct task w;
    float x[ROWS * C], want[ROWS * C], got[ROWS * C];

    task_open(&w);
    for (int run = 0; run < 5; run++) {
        for (int i = 0; i < ROWS * C; i++) x[i] = (float)(i % 9 + run);
        wz_upload(w.be, w.x, x, sizeof x);
        wz_region(w.be, multiply, &w);
        wz_download(w.be, got, w.y, sizeof got);
        wz_upload(w.be, w.x, x, sizeof x);
        wz_zero(w.be, w.y, sizeof x);
        multiply(&w);
        wz_download(w.be, want, w.y, sizeof want);
        assert_memory_equal(got, want, sizeof got);
        assert_true(got[1] > 0);
    }
    assert_int_equal(counts->graphs, 4);
    task_close(&w);
}

/* More lists than there is room for graphs; then few again. */
static void old_graphs_give_way(void **state)
{
    struct task w;

    task_open(&w);
    for (uint64_t i = 0; i < 3 * ROWS; i++) region_run(&w, 1 + (int)(i % ROWS), i);
    assert_int_equal(counts->captures, 0);
    for (uint64_t i = 0; i < 4 * ROWS; i++) region_run(&w, 1 + (int)(i / 4), i);
    assert_int_equal(counts->captures, ROWS);
    assert_in_range(counts->graphs, 3 * ROWS, 4 * ROWS);
    task_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(graphs_do_not_show),
        cmocka_unit_test(lengths_cross_steps),
        cmocka_unit_test(a_mirror_that_changes_within_has_no_graph),
        cmocka_unit_test(each_argument_counts),
        cmocka_unit_test(rounded_copies_are_made_anew),
        cmocka_unit_test(old_graphs_give_way),
    };

    return cmocka_run_group_tests(tests, set_up, NULL);
}
