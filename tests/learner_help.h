/* What the tests of learners share: a job of one process, opened before the first case, and a model's end. */
#ifndef WZ_TESTS_LEARNER_HELP_H
#define WZ_TESTS_LEARNER_HELP_H

#include "tests/model_help.h"
#include "trainer/trainer.h"

static struct wz_link job;
static const struct wz_group group = { 1, 0, (const int[]){ 0 } };

static inline int job_open(void **state)
{
    struct wz_err err;

    return wz_link_open(&job, "self", 60, false, &err);
}

static inline int job_close(void **state)
{
    wz_link_close(&job);
    return 0;
}

enum { TINY_VOCAB = 37 };

/* A model with a backend of its own and keyed weights, `sharper` times as large. */
static inline struct wz_model *tiny_learner(uint64_t seed, float sharper)
{
    const struct wz_config c = { .layers = 1,
                                 .dim = 16,
                                 .heads = 2,
                                 .kv_heads = 1,
                                 .head_dim = 8,
                                 .ffn = 24,
                                 .vocab = TINY_VOCAB,
                                 .context = 32,
                                 .norm_eps = 1e-5f,
                                 .rope_theta = 1e4f,
                                 .bos = -1 };
    struct wz_model *m = wz_model_create(&c, WZ_F32, NULL, backend_of("cpu", 1));

    wz_model_init(m, seed);
    for (size_t i = 0; i < m->n_params; i++) m->params[i] *= sharper;
    wz_model_commit(m, 3);
    return m;
}

static inline double keyed(uint32_t a, uint32_t b, uint32_t c)
{
    return wz_uniform((struct wz_key){ 9, WZ_RNG_TEST, a, b, c, 0 });
}

/* Destroys the model and closes its backend. */
static inline void model_end(struct wz_model *m)
{
    struct wz_backend *be = m->be;

    wz_model_destroy(m);
    wz_backend_close(be);
}

#endif
