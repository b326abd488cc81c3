/* Guarantee 9, second half: after the first step nothing is allocated but the results of a step that others own: ids
 * and logp of each request, and ref_logp and advantage of an episode that is trained on for the first time. Exactly
 * these allocations are counted, by wrapping the allocator. */
#include "bench/heap.h"
#include "rollout/rollout.h"
#include "tests/learner_help.h"

enum { VOCAB = 400, EPISODES = 12, REQUESTS = 24 };

static struct wz_model *tiny(uint64_t seed)
{
    struct wz_config c = { .layers = 2,
                           .dim = 32,
                           .heads = 4,
                           .kv_heads = 2,
                           .head_dim = 8,
                           .ffn = 48,
                           .vocab = VOCAB,
                           .context = 64,
                           .norm_eps = 1e-5f,
                           .rope_theta = 1e4f,
                           .tied = true,
                           .bos = -1 };
    struct wz_model *m = wz_model_create(&c, WZ_F32, NULL, backend_of("auto", 2));

    wz_model_init(m, seed);
    return m;
}

/* Written, as far as anyone can tell, by these weights. */
static Wz__Episode *episode(const struct wz_model *m, uint32_t index, int n)
{
    Wz__Episode *e = wz_episode_new();
    Wz__Turn *t = wz_episode_turn(e);
    int ids[64];

    e->index = e->place = index;
    t->version = m->version;
    t->weights = m->hash;
    t->reward = index % 2;
    ids_of(ids, 64, VOCAB, 7 + index);
    t->context = wz_alloc(sizeof *t->context * 5);
    t->n_context = 5;
    for (int k = 0; k < 5; k++) t->context[k] = k < 3 ? k + 1 : ids[k];
    wz_turn_reserve(t, (size_t)n);
    for (int k = 0; k < n; k++) wz_turn_add(t, ids[5 + k], -6);
    return e;
}

/* Learns from fresh episodes of up to `longest` tokens, and tells what the step allocated. */
static int learn(struct wz_learner *l, int longest)
{
    const struct wz_learn how = { .adamw = { 1e-4, 0, 1, 0.9, 0.95, 1e-8, 0, 1 },
                                  .pick = wz_sample_picks,
                                  .estimate = wz_estimates,
                                  .loss = wz_losses,
                                  .kl = 0.05,
                                  .epsilon = 0.2,
                                  .temperature = 1 };
    Wz__Episode *episodes[EPISODES];
    struct wz_step_stats stats;

    for (int i = 0; i < EPISODES; i++) episodes[i] = episode(l->model, (uint32_t)i, longest - i % 3);
    int before = wz_heap_count();
    wz_learner_step(l, &how, &job, &group, episodes, EPISODES, EPISODES, 10, 1, &stats);
    int made = wz_heap_count() - before;
    for (int i = 0; i < EPISODES; i++) {
        assert_true(episodes[i]->turns[0]->trained);
        wz_episode_free(episodes[i]);
    }
    return made;
}

static void a_steady_step_allocates_only_in_episodes(void **state)
{
    for (int penalty = 0; penalty < 2; penalty++) {
        struct wz_model *m = tiny(11), *reference = tiny(12);
        struct wz_learner l;

        wz_learner_init(&l, m, penalty ? reference : NULL, 0, false, 4, &group, 64, 64);
        assert_true(learn(&l, 20) > EPISODES); /* the backend's scratch, the first lists */
        for (int step = 1; step < 4; step++)   /* more sequences at once, and longer ones, than before */
            assert_int_equal(learn(&l, step == 1 ? 4 : 20), EPISODES * (1 + penalty));
        wz_learner_finish(&l);
        model_end(m), model_end(reference);
    }
}

static void a_steady_warm_start_allocates_nothing(void **state)
{
    const struct wz_learn how = { .adamw = { 1e-4, 0, 1, 0.9, 0.95, 1e-8, 0, 1 },
                                  .loss = wz_loss_find("cross_entropy", NULL),
                                  .temperature = 1,
                                  .token_mean = true };
    struct wz_step_stats stats;
    struct wz_model *m = tiny(11);
    struct wz_learner l;
    int ids[32];
    bool loss[32];
    struct wz_sft_example list[3] = { { ids, loss, 32 }, { ids, loss, 9 }, { ids, loss, 20 } };
    const struct wz_sft_set set = { list, 3, 32, 61 };

    ids_of(ids, 32, VOCAB, 5);
    for (int i = 0; i < 32; i++) loss[i] = i > 3;
    wz_learner_init(&l, m, NULL, 0, false, 4, &group, 64, 32);
    for (int step = 0; step < 4; step++) {
        int before = wz_heap_count();
        wz_sft_step(&l, &how, &job, &group, &set, 12, step, 4, 1, &stats);
        if (step) assert_int_equal(wz_heap_count(), before);
    }
    wz_learner_finish(&l);
    model_end(m);
}

static void a_steady_engine_allocates_only_results(void **state)
{
    static const int stops[1] = { 3 };
    struct wz_model *m = tiny(11);
    struct wz_engine *e = wz_engine_create(m, 4, 4, 0, 48);
    struct wz_request requests[REQUESTS];
    int contexts[REQUESTS][40];

    for (int round = 0; round < 6; round++) {
        int n = round ? REQUESTS : REQUESTS / 2;
        for (int i = 0; i < n; i++) {
            ids_of(contexts[i], 40, VOCAB, (uint64_t)(100 * round + i % 20));
            contexts[i][0] = 1;
            requests[i] = (struct wz_request){ .prompt_ids = contexts[i],
                                               .stop_ids = stops,
                                               .n_stops = 1,
                                               .n_prompt = 2 + (i + round) % 30,
                                               .max_tokens = 5 + i % 12,
                                               .temperature = 1,
                                               .top_p = i % 2 ? 1 : 0.9f,
                                               .key = { 1, WZ_RNG_TOKEN, (uint32_t)round, (uint32_t)i, 0, 0 } };
        }
        if (round == 4) wz_model_commit(m, 2); /* new weights: all that was cached is let go */
        int before = wz_heap_count();
        wz_engine_run(e, requests, n);
        if (round) assert_int_equal(wz_heap_count() - before, 2 * n);
        for (int i = 0; i < n; i++) {
            assert_true(requests[i].n > 0);
            wz_request_finish(&requests[i]);
        }
    }
    wz_engine_destroy(e);
    model_end(m);
}

/* ---- packed weights ------------------------------------------------------------------------------------------ */

enum { WEIGHTS = 70, SIDE = 512 }; /* of 1 MB each: more than a slab of the cpu backend holds */

/* Packs every `step`-th weight, of which all elements are its number plus `more`. */
static void pack_all(struct wz_backend *be, struct wz_weight *w, int step, float more)
{
    for (int i = 0; i < WEIGHTS; i += step) {
        float *data = w[i].data;
        for (int k = 0; k < SIDE * SIDE; k++) data[k] = (float)i + more;
        wz_pack(be, &w[i]);
    }
}

/* Pages of the process, of memory that is mapped and of what it has touched. */
static void pages(long *mapped, long *touched)
{
    FILE *f = fopen("/proc/self/statm", "r");

    assert_true(f && fscanf(f, "%ld %ld", mapped, touched) == 2);
    fclose(f);
}

/* Packed weights that share huge pages are apart, outlive each other, and give back what they took. */
static void packed_weights_are_apart(void **state)
{
    struct wz_backend *be = backend_of("auto", 1);
    struct wz_weight w[WEIGHTS];
    float *data = wz_alloc(sizeof *data * SIDE * SIDE), x[SIDE], y[SIDE];
    long mapped[3], touched[3];

    for (int i = 0; i < SIDE; i++) x[i] = 1;
    for (int i = 0; i < WEIGHTS; i++) w[i] = (struct wz_weight){ data, WZ_F32, SIDE, SIDE, NULL, 0 };
    pages(&mapped[0], &touched[0]);
    pack_all(be, w, 1, 0);
    pages(&mapped[1], &touched[1]);
    if (!LIGHT)
        assert_in_range(touched[1] - touched[0], WEIGHTS * 256, WEIGHTS * 256 + 2 * 512); /* and two huge pages begun */
    for (int i = 0; i < WEIGHTS; i += 3) wz_unpack(be, &w[i]);
    pack_all(be, w, 3, 0.5f);
    for (int i = 0; i < WEIGHTS; i++) {
        wz_matmul(be, y, x, &w[i], 1, false);
        for (int k = 0; k < SIDE; k++) assert_true(y[k] == SIDE * ((float)i + (i % 3 ? 0 : 0.5f)));
    }
    for (int i = 0; i < WEIGHTS; i++) wz_unpack(be, &w[i]);
    pages(&mapped[2], &touched[2]);
    if (!LIGHT) assert_in_range(mapped[2], 0, mapped[0] + 1024); /* the slabs are gone */
    free(data);
    wz_backend_close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_steady_step_allocates_only_in_episodes),
        cmocka_unit_test(a_steady_warm_start_allocates_nothing),
        cmocka_unit_test(a_steady_engine_allocates_only_results),
        cmocka_unit_test(packed_weights_are_apart),
    };

    return cmocka_run_group_tests(tests, job_open, job_close);
}
