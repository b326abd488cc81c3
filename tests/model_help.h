/* What the tests of the model module share: a small config, one sequence's forward, logits. */
#ifndef WZ_TESTS_MODEL_HELP_H
#define WZ_TESTS_MODEL_HELP_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/model.h"
#include "test.h"

static inline struct wz_backend *backend_of(const char *name, int threads)
{
    struct wz_err err;
    struct wz_backend *be = wz_backend_open(name, threads, NULL, &err);

    if (!be) fail_msg("%s", err.text);
    return be;
}

/* A backend that counts for another, and the bytes it has counted under a label since the last call. */
static inline struct wz_backend *counting(const char *name)
{
    struct wz_err err;
    struct wz_backend *be = wz_backend_counting(name, NULL, &err);

    if (!be) fail_msg("%s", err.text);
    return be;
}

static inline size_t counted(struct wz_backend *be, const char *label)
{
    int n;
    const struct wz_counted *c = wz_backend_counted(be, &n);
    size_t bytes = 0;

    for (int i = 0; i < n; i++) bytes += strcmp(c[i].label, label) ? 0 : c[i].bytes;
    return bytes;
}

static inline struct wz_model *model_of(const char *path, enum wz_type type, struct wz_backend *be)
{
    struct wz_err err;
    struct wz_model *m = wz_model_load(path, type, NULL, be, &err);

    if (!m) fail_msg("%s", err.text);
    return m;
}

/* Packs whole sequences and runs them: ids of all, count[n]. The sequences must be empty. */
static inline const float *run(struct wz_model *m, struct wz_cache *cache, struct wz_work *work, struct wz_seq *seqs,
                               int n, const int *ids, const int *count)
{
    struct wz_seq *list[64];

    for (int i = 0; i < n; i++) {
        list[i] = &seqs[i];
        assert_true(wz_seq_reserve(cache, &seqs[i], count[i]));
    }
    return wz_forward(m, cache, work, &(struct wz_batch){ n, list, count, ids });
}

/* Keyed pseudo-random token ids. */
static inline void ids_of(int *ids, int n, int vocab, uint64_t seed)
{
    for (int i = 0; i < n; i++)
        ids[i] = (int)wz_below((struct wz_key){ seed, WZ_RNG_TEST, (uint32_t)i, 1, 0, 0 }, (uint32_t)vocab);
}

#endif
