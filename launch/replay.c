/* waltz replay: recomputes a recorded step from the checkpoint before it, in one process, and compares bit by bit
 * (guarantee 2), whatever ranks the run was made on. Prints the first difference with its episode, turn and token. */
#include "launch/launch.h"
#include "run/run.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Always -1: says which steps there are instead. */
static int fail_step(const char *run, int64_t step, struct wz_err *err)
{
    char *path = wz_path("%s/episodes-0.h5", run);
    int64_t *steps = NULL;
    int n = 0;

    if (wz_file_exists(path) && wz_record_steps(path, &steps, &n, err) < 0) goto out;
    if (!n) wz_fail(err, "%s: no episodes are recorded", path);
    else
        wz_fail(err, "%s: has no step %" PRId64 "; it holds %d, from %" PRId64 " to %" PRId64, path, step, n, steps[0],
                steps[n - 1]);
out:
    free(steps);
    free(path);
    return -1;
}

/* The step's episodes from the record of every learner, in order of index. */
static Wz__Episode **recorded(const char *run, int64_t step, int *n, struct wz_err *err)
{
    Wz__Episode **all = NULL, **part;
    int rc = 0, k;

    *n = 0;
    for (int learner = 0; rc == 0; learner++) {
        char *path = wz_path("%s/episodes-%d.h5", run, learner);
        bool there = wz_file_exists(path);
        rc = there ? wz_record_read(path, step, &part, &k, err) : 0;
        free(path);
        if (!there) break;
        if (rc < 0) continue;
        wz_episodes_join(&all, n, part, k);
    }
    if (rc == 0 && !*n) rc = fail_step(run, step, err);
    if (rc < 0) {
        wz_episodes_free(all, *n);
        return NULL;
    }
    wz_episodes_sort(all, *n);
    return all;
}

/* The first place where two runs of n items of `size` bytes differ; n where they don't. */
static size_t differs(const void *a, const void *b, size_t n, size_t size)
{
    for (size_t i = 0; i < n; i++)
        if (memcmp((const char *)a + i * size, (const char *)b + i * size, size)) return i;
    return n;
}

/* Prints the first difference of two turns. */
static bool turns_differ(const Wz__Turn *was, const Wz__Turn *is, unsigned episode, size_t turn)
{
    static const struct {
        const char *name;
        size_t n, at;
        bool floats;
    } rows[] = {
        { "context", offsetof(Wz__Turn, n_context), offsetof(Wz__Turn, context), false },
        { "ids", offsetof(Wz__Turn, n_ids), offsetof(Wz__Turn, ids), false },
        { "logp", offsetof(Wz__Turn, n_logp), offsetof(Wz__Turn, logp), true },
        { "ref_logp", offsetof(Wz__Turn, n_ref_logp), offsetof(Wz__Turn, ref_logp), true },
        { "advantage", offsetof(Wz__Turn, n_advantage), offsetof(Wz__Turn, advantage), true },
    };

    for (size_t r = 0; r < WZ_COUNT(rows); r++) {
        size_t n = *(const size_t *)((const char *)was + rows[r].n),
               m = *(const size_t *)((const char *)is + rows[r].n);
        const void *a = *(const void *const *)((const char *)was + rows[r].at),
                   *b = *(const void *const *)((const char *)is + rows[r].at);
        size_t i = differs(a, b, n < m ? n : m, 4);
        if (i == n && n == m) continue;
        if (i == n || i == m)
            printf("differs: episode %u turn %zu: %s has %zu, recomputed %zu\n", episode, turn, rows[r].name, n, m);
        else if (rows[r].floats)
            printf("differs: episode %u turn %zu: %s[%zu] was %.9g, recomputed %.9g\n", episode, turn, rows[r].name, i,
                   (double)((const float *)a)[i], (double)((const float *)b)[i]);
        else
            printf("differs: episode %u turn %zu: %s[%zu] was %d, recomputed %d\n", episode, turn, rows[r].name, i,
                   ((const int32_t *)a)[i], ((const int32_t *)b)[i]);
        return true;
    }
    if (memcmp(&was->reward, &is->reward, sizeof was->reward)) {
        printf("differs: episode %u turn %zu: reward was %.17g, recomputed %.17g\n", episode, turn, was->reward,
               is->reward);
        return true;
    }
    if (was->weights != is->weights || was->version != is->version) {
        printf("differs: episode %u turn %zu: written by weights version %" PRIu64 " %016" PRIx64
               ", recomputed by version %" PRIu64 " %016" PRIx64 "\n",
               episode, turn, was->version, was->weights, is->version, is->weights);
        return true;
    }
    return false;
}

static bool episodes_differ(Wz__Episode **was, int n_was, const struct wz_step_report *is)
{
    if (n_was != is->n) {
        printf("differs: %d episodes were recorded, recomputed %d\n", n_was, is->n);
        return true;
    }
    for (int i = 0; i < n_was; i++) {
        const Wz__Episode *a = was[i], *b = is->episodes[i];
        if (a->index != b->index || strcmp(a->prompt, b->prompt) || a->n_turns != b->n_turns) {
            printf("differs: episode %u: another prompt, or %zu turns and recomputed %zu\n", a->index, a->n_turns,
                   b->n_turns);
            return true;
        }
        for (size_t t = 0; t < a->n_turns; t++)
            if (turns_differ(a->turns[t], b->turns[t], a->index, t)) return true;
    }
    return false;
}

/* The chain after a step, from the run's chain.jsonl. */
static int recorded_chain(const char *run, int64_t step, uint64_t *chain, struct wz_err *err)
{
    char *path = wz_path("%s/chain.jsonl", run), line[4096];
    FILE *f = fopen(path, "r");
    int rc = -1;

    while (f && rc < 0 && fgets(line, sizeof line, f)) {
        json_t *j = wz_json_parse(line, strlen(line), path, NULL);
        const char *hex = json_string_value(json_object_get(j, "chain"));
        if (hex && json_integer_value(json_object_get(j, "step")) == step && sscanf(hex, "%" SCNx64, chain) == 1)
            rc = 0;
        json_decref(j);
    }
    if (f) fclose(f);
    if (rc < 0) wz_fail(err, "%s: has no step %" PRId64, path, step);
    free(path);
    return rc;
}

/* Runs the steps from the checkpoint to the end of `step`. 0: the same bits; 1: different; -1: error. */
static int replay(struct wz_job *job, struct wz_recipe *recipe, const char *run, int64_t step, struct wz_err *err)
{
    struct wz_progress p;
    struct wz_stage stage = { 0 };
    struct wz_step_report report = { 0 };
    char *dir = NULL;
    uint64_t chain;
    int n = 0, rc = -1;
    Wz__Episode **was = recorded(run, step, &n, err);

    if (!was || recorded_chain(run, step, &chain, err) < 0) goto out;
    if (wz_job_begin(job, recipe, true, err) < 0 || wz_checkpoint_find(job, run, step, &p, &dir, recipe, err) < 0 ||
        wz_checkpoint_open(job, dir, &p, err) < 0)
        goto out;
    wz_job_drop_overlong(job);
    wz_job_drop_overlaps(job);
    wz_log("from step %" PRId64, p.step);
    if (wz_stage_open(&stage, job, &p, dir, err) < 0) goto out;
    for (;;) {
        if (wz_stage_ends(&stage, &p)) {
            wz_stage_close(&stage);
            if (wz_stage_open(&stage, job, &p, dir, err) < 0) goto out;
            continue;
        }
        bool last = p.step == step;
        wz_stage_step(&stage, &p, &report);
        if (last) break;
        wz_episodes_free(report.episodes, report.n);
    }
    rc = episodes_differ(was, n, &report);
    if (!rc && p.chain != chain) {
        printf("differs: the weights after step %" PRId64 ": chain was %016" PRIx64 ", recomputed %016" PRIx64 "\n",
               step, chain, p.chain);
        rc = 1;
    }
    if (!rc) printf("step %" PRId64 ": the same bits: %d episodes, chain %016" PRIx64 "\n", step, n, chain);
    wz_episodes_free(report.episodes, report.n);
out:
    wz_stage_close(&stage);
    if (was) wz_episodes_free(was, n);
    free(dir);
    return rc;
}

int wz_cmd_replay(int argc, char **argv)
{
    int step = -1;
    const struct wz_option options[] = {
        { "step", 0, WZ_INT, &step, "N", "the step to recompute, from 0", 0, 2e9 },
    };
    const struct wz_usage usage = {
        .name = "replay",
        .args = "RUN",
        .options = options,
        .n_options = (int)WZ_COUNT(options),
        .about = "Recomputes a recorded step of a run from the checkpoint before it and compares tokens,\n"
                 "log-probabilities, rewards, advantages and the weights after it, bit by bit. Exit status 1 and the\n"
                 "first difference where there is one.",
    };
    struct wz_recipe *recipe = NULL;
    struct wz_job job = { 0 };
    struct wz_err err = { 0 };
    int status, n = wz_options_parse(&usage, argc, argv, &status);

    if (n < 0) return status;
    if (step < 0) {
        wz_fail(&err, "--step N is needed");
        wz_give_up("replay", &err);
        return 2;
    }
    char *path = wz_path("%s/recipe.yaml", argv[0]),
         *out = wz_path("out=%s", argv[0]); /* the folder may have been moved */
    char *const here[] = { "link=self", "ranks.rollout=0", "ranks.reward=0", "ranks.learner=0", out };
    int rc = wz_job_recipe(&recipe, &job.link, path, here, (int)WZ_COUNT(here), &err);
    free(path);
    free(out);
    if (rc == 0) rc = replay(&job, recipe, argv[0], step, &err);
    if (rc < 0) wz_give_up("replay", &err);
    wz_job_close(&job);
    wz_recipe_destroy(recipe);
    return rc ? 1 : 0;
}
