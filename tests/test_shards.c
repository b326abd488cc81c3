/* Guarantee: an optimizer sharded over learners makes the weights, bit for bit, that one learner makes, and each holds
 * its shard only of the moments and of the masters of a bf16 model. Runs alone and under mpirun, every rank a learner;
 * each also computes the unsharded update. */
#include "tests/model_help.h"

#include "trainer/trainer.h"

enum { LEAVES = 8, STEPS = 6 };

static struct wz_link job;
static struct wz_backend *be;
static int everyone[64];

/* Of 2, 4 and 8 learners two shards meet in the middle of a norm. */
static const struct wz_config shape = { .layers = 1,
                                        .dim = 96,
                                        .heads = 3,
                                        .kv_heads = 1,
                                        .head_dim = 32,
                                        .ffn = 300,
                                        .vocab = 6826,
                                        .context = 64,
                                        .norm_eps = 1e-5f,
                                        .rope_theta = 1e4f,
                                        .bos = -1 };

static struct wz_model *model_create(enum wz_type type, const struct wz_group *group)
{
    struct wz_model *m = wz_model_create(&shape, type, &(struct wz_share){ group->me, group->n }, be);
    bool cut = group->n == 1;

    wz_model_init(m, 5);
    assert_true(m->n_params > 16 * WZ_BLOCK && m->n_params % WZ_BLOCK); /* shards for 8, and something left over */
    for (int s = 1; s < group->n; s++) {
        size_t at = wz_shard_at(s, group->n, m->n_params);
        cut |= at > m->list[1].at && at < m->list[1].at + 96;
    }
    assert_true(cut);
    assert_true(type == WZ_F32 ? m->params && !m->masters : !m->params && m->masters);
    return m;
}

/* Any numbers of many sizes, and blocks of several: their sums show their order. */
static void leaf_fill(float *g, size_t n, int step, int leaf)
{
    uint64_t seed[2] = { (uint64_t)step, (uint64_t)leaf }, x = wz_hash(seed, sizeof seed, 1) | 1;

    for (size_t i = 0; i < n; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        g[i] = ldexpf((float)(int32_t)x, -40 + (int)(x >> 60) - 6 * (int)(i / WZ_BLOCK * 7 % 5));
    }
}

/* What is trained: all, or two spans that begin and end within blocks and shards. */
static const struct wz_span frozen_between[2] = { { 1000, 300001 }, { 600007, 50000 } };

struct made {
    uint64_t hash[STEPS];
    double norm[STEPS];
    float *masters;
};

/* Some steps of a group; in the one before the last the gradient is not finite, in a shard that most members do not
 * have. */
static struct made train(enum wz_type type, const struct wz_span *spans, const struct wz_group *group)
{
    const struct wz_adamw how = { 1e-3, 0, 1, 0.9, 0.95, 1e-8, 0.1, 1 };
    struct wz_model *m = model_create(type, group);
    struct wz_optimizer opt;
    struct made made = { 0 };
    int mine = LEAVES / group->n;

    wz_optimizer_init(&opt, m, spans, 2, mine, group);
    float *before = wz_alloc(m->n_params * sizeof *before);
    if (m->params) wz_download(be, before, m->params, m->n_params * sizeof *before);
    assert_true(opt.shard.n <= m->n_params / (size_t)group->n + (size_t)group->n * WZ_BLOCK);
    for (int step = 0; step < STEPS; step++) {
        for (int leaf = group->me * mine; leaf < (group->me + 1) * mine; leaf++) {
            float *g = wz_optimizer_leaf(&opt);
            leaf_fill(g, m->n_params, step, leaf);
            if (step == STEPS - 2 && leaf == 3) g[620000] = NAN;
            wz_optimizer_leaf_done(&opt);
        }
        made.norm[step] = wz_optimizer_step(&opt, &job, group, &how, 10);
        made.hash[step] = m->hash;
    }
    assert_int_equal(opt.skipped, 1);
    assert_int_equal(opt.steps, STEPS - 1);
    if (m->masters) {
        made.masters = wz_alloc(m->shard.n * sizeof(float));
        wz_download(be, made.masters, m->masters, m->shard.n * sizeof(float));
    }
    size_t moved = 0, outside = 0;
    for (size_t i = 0; m->params && i < m->n_params; i++) {
        bool trained = !spans;
        for (int k = 0; spans && k < 2; k++) trained |= i >= spans[k].at && i < spans[k].at + spans[k].n;
        moved += trained && m->params[i] != before[i];
        outside += !trained && m->params[i] != before[i];
    }
    assert_true(outside == 0 && (!m->params || moved > (spans ? spans[0].n + spans[1].n : m->n_params) / 2));
    free(before);
    wz_optimizer_finish(&opt);
    wz_model_destroy(m);
    return made;
}

static void check(enum wz_type type, const struct wz_span *spans)
{
    const struct wz_group alone = { 1, 0, &everyone[job.rank] }, group = { job.size, job.rank, everyone };
    const struct made want = train(type, spans, &alone), got = train(type, spans, &group);
    struct wz_model *m = wz_model_create(&shape, type, NULL, be);
    const size_t n = m->n_params;
    const struct wz_shard mine = wz_shard_of(group.me, group.n, n);

    for (int step = 0; step < STEPS; step++) {
        if (step == STEPS - 2) assert_false(isfinite(got.norm[step]));
        else assert_memory_equal(&got.norm[step], &want.norm[step], sizeof want.norm[step]);
        assert_true(got.hash[step] == want.hash[step]);
        if (step) assert_true((got.hash[step] == got.hash[step - 1]) == (step == STEPS - 2));
    }
    if (type == WZ_BF16) assert_memory_equal(got.masters, want.masters + mine.at, mine.n * sizeof(float));
    free(want.masters);
    free(got.masters);
    wz_model_destroy(m);
}

static void a_group_makes_the_weights_of_one(void **state) { check(WZ_F32, NULL); }

static void a_group_makes_the_bf16_weights_of_one(void **state) { check(WZ_BF16, NULL); }

/* Parameters outside of the spans keep their bits, and count neither for the norm nor for the clip. */
static void a_group_trains_spans_as_one_does(void **state)
{
    const struct wz_group alone = { 1, 0, &everyone[job.rank] };
    const struct made whole = train(WZ_F32, NULL, &alone), part = train(WZ_F32, frozen_between, &alone);

    assert_true(part.norm[0] > 0 && part.norm[0] < 0.9 * whole.norm[0]);
    check(WZ_F32, frozen_between);
    check(WZ_BF16, frozen_between);
}

/* What the learners of a group have of moments, or of masters, by a counting backend: their sum, and the most. */
static struct shared {
    size_t sum, most, params;
} shared_out(enum wz_type type, int learners, bool masters)
{
    struct wz_backend *count = counting("cuda");
    struct shared s = { 0 };

    for (int me = 0; me < learners; me++) {
        const struct wz_group group = { learners, me, NULL };
        struct wz_model *m = wz_model_create(&shape, type, &(struct wz_share){ me, learners }, count);
        size_t bytes = counted(count, "f32 masters");
        struct wz_optimizer opt;
        wz_optimizer_init(&opt, m, NULL, 0, LEAVES / learners, &group);
        if (!masters) bytes = counted(count, "moments");
        wz_optimizer_finish(&opt);
        s.sum += bytes;
        s.most = bytes > s.most ? bytes : s.most;
        s.params = m->n_params;
        wz_model_destroy(m);
    }
    wz_backend_close(count);
    return s;
}

/* 8 learners have an eighth of the moments each, to within the blocks left over. */
static void moments_are_shared_out(void **state)
{
    for (int size = 1; size <= 8; size *= 2) {
        const struct shared s = shared_out(WZ_F32, size, false);
        assert_true(s.sum == 2 * s.params * sizeof(float));
        assert_true(s.most / (2 * sizeof(float)) <= s.params / (size_t)size + (size_t)size * WZ_BLOCK);
    }
}

/* And of the masters; an f32 model has none. */
static void masters_are_shared_out(void **state)
{
    assert_true(shared_out(WZ_F32, 8, true).sum == 0);
    for (int size = 1; size <= 8; size *= 2) {
        const struct shared s = shared_out(WZ_BF16, size, true);
        assert_true(s.sum == s.params * sizeof(float));
        assert_true(s.most / sizeof(float) <= s.params / (size_t)size + (size_t)size * WZ_BLOCK);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(moments_are_shared_out),           cmocka_unit_test(masters_are_shared_out),
        cmocka_unit_test(a_group_makes_the_weights_of_one), cmocka_unit_test(a_group_makes_the_bf16_weights_of_one),
        cmocka_unit_test(a_group_trains_spans_as_one_does),
    };
    struct wz_err err;

    if (wz_link_open(&job, "auto", 60, false, &err) < 0) wz_die("%s", err.text);
    for (int i = 0; i < 64; i++) everyone[i] = i;
    be = backend_of("cpu", 1);
    if (job.rank > 0 && !freopen("/dev/null", "w", stdout)) wz_die("/dev/null can't be written");
    int failed = cmocka_run_group_tests_name("shards", tests, NULL, NULL);
    if (failed) wz_die("%d cases failed", failed);
    wz_link_close(&job);
    wz_backend_close(be);
    return 0;
}
