/* Guarantee: pages are shared by forks, reference-counted and freed exactly once; a fork never changes its
 * source; when pages run out the call fails and nothing has changed. */
#include "model_help.h"

#include <sys/wait.h>

static const struct wz_config config = { .layers = 1,
                                         .dim = 8,
                                         .heads = 1,
                                         .kv_heads = 1,
                                         .head_dim = 4,
                                         .ffn = 8,
                                         .vocab = 20,
                                         .context = 40,
                                         .norm_eps = 1e-5f,
                                         .rope_theta = 10000,
                                         .rope = WZ_ROPE_PLAIN,
                                         .tied = true,
                                         .bos = 1,
                                         .eos = { 2 },
                                         .n_eos = 1 };

struct rig {
    struct wz_backend *be;
    struct wz_model *m;
    struct wz_cache *cache;
    struct wz_work *work;
};

static int set_up(void **state)
{
    struct rig *r = wz_alloc(sizeof(*r));

    r->be = backend_of("ref", 1);
    r->m = wz_model_create(&config, WZ_F32, NULL, r->be);
    wz_model_init(r->m, 1);
    r->cache = wz_cache_create(r->m, 6, 4);
    r->work = wz_work_create(r->m, 40, false);
    *state = r;
    return 0;
}

static int tear_down(void **state)
{
    struct rig *r = *state;

    wz_work_destroy(r->work);
    wz_cache_destroy(r->cache);
    wz_model_destroy(r->m);
    wz_backend_close(r->be);
    free(r);
    return 0;
}

static void feed(struct rig *r, struct wz_seq *seq, int first, int n)
{
    int ids[40];

    for (int i = 0; i < n; i++) ids[i] = (first + i) % config.vocab;
    run(r->m, r->cache, r->work, seq, 1, ids, &n);
}

static void pages_counted(void **state)
{
    struct rig *r = *state;
    struct wz_seq a = { 0 }, b = { 0 }, c = { 0 };

    feed(r, &a, 0, 10); /* 4 + 4 + 2 */
    assert_int_equal(a.len, 10);
    assert_int_equal(wz_cache_free_pages(r->cache), 3);
    assert_true(wz_seq_fork(r->cache, &b, &a, 8)); /* two full pages: nothing is taken */
    assert_int_equal(wz_cache_free_pages(r->cache), 3);
    assert_int_equal(b.pages[0], a.pages[0]);
    assert_int_equal(b.pages[1], a.pages[1]);
    assert_true(wz_seq_fork(r->cache, &c, &a, 9)); /* and one token of the third: a copy */
    assert_int_equal(wz_cache_free_pages(r->cache), 2);
    assert_true(c.pages[2] != a.pages[2] && c.len == 9);
    feed(r, &b, 5, 1);
    assert_true(b.pages[2] != a.pages[2]);
    assert_int_equal(wz_cache_free_pages(r->cache), 1);

    wz_seq_release(r->cache, &a); /* only its own page comes back */
    assert_int_equal(wz_cache_free_pages(r->cache), 2);
    assert_true(a.len == 0 && a.n_pages == 0);
    wz_seq_release(r->cache, &a);
    assert_int_equal(wz_cache_free_pages(r->cache), 2);
    wz_seq_finish(r->cache, &b);
    assert_int_equal(wz_cache_free_pages(r->cache), 3);
    wz_seq_finish(r->cache, &c);
    assert_int_equal(wz_cache_free_pages(r->cache), 6);
    wz_seq_finish(r->cache, &a);
    wz_seq_finish(r->cache, &a);
}

/* Guarantee 6: what other weights have computed is never read, not even by a caller that forgot to flush. */
static void pages_of_other_weights_are_refused(void **state)
{
    struct rig *r = *state;
    struct wz_seq seq = { 0 };
    char *path = test_scratch("said.txt");
    struct wz_map said;
    struct wz_err err;
    int status;

    feed(r, &seq, 0, 5);
    wz_model_commit(r->m, r->m->version + 1);
    fflush(NULL);
    const pid_t child = fork();
    if (child == 0) {
        if (!freopen(path, "w", stderr)) _exit(9);
        feed(r, &seq, 5, 1);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    assert_int_equal(wz_map_open(&said, path, &err), 0);
    assert_non_null(memmem(said.bytes, said.len, "of weights version", 18));
    wz_map_close(&said);
    wz_seq_finish(r->cache, &seq);
    free(path);
}

static void out_of_pages(void **state)
{
    struct rig *r = *state;
    struct wz_seq a = { 0 }, b = { 0 }, c = { 0 };

    feed(r, &a, 0, 17); /* five pages */
    assert_false(wz_seq_reserve(r->cache, &b, 5));
    assert_true(b.n_pages == 0 && b.len == 0);
    assert_int_equal(wz_cache_free_pages(r->cache), 1);
    assert_true(wz_seq_reserve(r->cache, &b, 4));
    assert_false(wz_seq_reserve(r->cache, &b, 5));
    assert_int_equal(b.n_pages, 1);
    assert_true(wz_seq_reserve(r->cache, &a, 3)); /* room within the last page */
    assert_false(wz_seq_reserve(r->cache, &a, 4));
    assert_false(wz_seq_fork(r->cache, &c, &a, 6));
    assert_true(c.n_pages == 0 && c.len == 0);
    assert_true(wz_seq_fork(r->cache, &c, &a, 16)); /* full pages need none */
    wz_seq_finish(r->cache, &a);
    wz_seq_finish(r->cache, &b);
    wz_seq_finish(r->cache, &c);
    assert_int_equal(wz_cache_free_pages(r->cache), 6);
}

/* b leaves a at token 6, inside a page, and diverges; a continues as if b did not exist. */
static void fork_leaves_source(void **state)
{
    struct rig *r = *state;
    struct wz_seq a = { 0 }, b = { 0 }, alone = { 0 };
    float want[8], got[8];
    int id = 11, one = 1;

    feed(r, &alone, 0, 7);
    wz_download(r->be, want, run(r->m, r->cache, r->work, &alone, 1, &id, &one), sizeof(want));
    wz_seq_finish(r->cache, &alone);
    feed(r, &a, 0, 7);
    assert_true(wz_seq_fork(r->cache, &b, &a, 6));
    feed(r, &b, 15, 5);
    wz_download(r->be, got, run(r->m, r->cache, r->work, &a, 1, &id, &one), sizeof(got));
    assert_memory_equal(want, got, sizeof(want));
    wz_seq_finish(r->cache, &a);
    wz_seq_finish(r->cache, &b);
}

/* A model without its unpacked matrices answers with the same bits; on a row that packs, its matrices are gone but
 * for the one that is looked up in. */
static void unpacked_dropped(void **state)
{
    const struct wz_config wide = { .layers = 2,
                                    .dim = 128,
                                    .heads = 2,
                                    .kv_heads = 2,
                                    .head_dim = 64,
                                    .ffn = 384,
                                    .vocab = 200,
                                    .context = 40,
                                    .norm_eps = 1e-5f,
                                    .rope_theta = 10000,
                                    .rope = WZ_ROPE_PLAIN,
                                    .tied = true,
                                    .bos = 1,
                                    .eos = { 2 },
                                    .n_eos = 1 };
    float seen[3][5 * 128];

    for (int pass = 0; pass < 3; pass++) { /* never, before the commit, after */
        struct rig r = { .be = backend_of("cpu", 1) };
        struct wz_seq a = { 0 };
        r.m = wz_model_create(&wide, WZ_F32, NULL, r.be);
        if (pass == 1) wz_model_drop_unpacked(r.m);
        wz_model_init(r.m, 1);
        if (pass == 2) wz_model_drop_unpacked(r.m);
        r.cache = wz_cache_create(r.m, 6, 4);
        r.work = wz_work_create(r.m, 40, false);
        wz_download(r.be, seen[pass], run(r.m, r.cache, r.work, &a, 1, (int[]){ 5, 9, 12, 3, 150 }, (int[]){ 5 }),
                    sizeof(seen[0]));
        assert_memory_equal(seen[pass], seen[0], sizeof(seen[0]));
        assert_true((((const float *)r.m->layers[1].gate.data)[128 * 192] == 0) == (pass > 0));
        assert_true(((const float *)r.m->embed.data)[128 * 100] != 0);
        wz_seq_finish(r.cache, &a);
        wz_work_destroy(r.work);
        wz_cache_destroy(r.cache);
        wz_model_destroy(r.m);
        wz_backend_close(r.be);
    }
}

static size_t cache_bytes(enum wz_type type, const char *backend, const char *label)
{
    struct wz_backend *be = counting(backend);
    struct wz_model *m = wz_model_create(&config, type, NULL, be);

    wz_cache_destroy(wz_cache_create(m, 6, 4));
    size_t bytes = counted(be, label);
    wz_model_destroy(m);
    wz_backend_close(be);
    return bytes;
}

static size_t work_bytes(const struct wz_config *c, int rows, bool tape, bool recompute)
{
    struct wz_backend *be = counting("cuda"); /* its own memory, so sizes are not rounded */
    struct wz_model *m = wz_model_create(c, WZ_F32, NULL, be);

    m->recompute = recompute;
    wz_work_destroy(wz_work_create(m, rows, tape));
    size_t bytes = counted(be, tape ? "activations" : "forward scratch");
    wz_model_destroy(m);
    wz_backend_close(be);
    return bytes;
}

/* What a counting backend counts, by hand; and bf16 caches are the row's that it counts for. */
static void sizes(void **state)
{
    struct wz_config deep = config;

    deep.layers = 32;
    assert_int_equal(cache_bytes(WZ_F32, "cuda", "key/value cache"), 6 * 4 * 4 * 2 * sizeof(float));
    assert_int_equal(cache_bytes(WZ_BF16, "cuda", "key/value cache"), 6 * 4 * 4 * 2 * sizeof(uint16_t));
    assert_int_equal(cache_bytes(WZ_BF16, "ref", "key/value cache"), 6 * 4 * 4 * 2 * sizeof(float));
    assert_int_equal(cache_bytes(WZ_F32, "ref", "key/value page table"), 3 * 64); /* three arrays of a line each */
    assert_true(work_bytes(&config, 40, true, true) > work_bytes(&config, 40, false, false));
    assert_true(work_bytes(&deep, 40, true, true) < work_bytes(&deep, 40, true, false) / 3);
    assert_true(work_bytes(&config, 80, true, false) > 3 * work_bytes(&config, 20, true, false));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(pages_counted, set_up, tear_down),
        cmocka_unit_test_setup_teardown(pages_of_other_weights_are_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(out_of_pages, set_up, tear_down),
        cmocka_unit_test_setup_teardown(fork_leaves_source, set_up, tear_down),
        cmocka_unit_test(unpacked_dropped),
        cmocka_unit_test(sizes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
