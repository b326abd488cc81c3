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

/* Destroys the model and closes its backend. */
static inline void model_end(struct wz_model *m)
{
    struct wz_backend *be = m->be;

    wz_model_destroy(m);
    wz_backend_close(be);
}

#endif
