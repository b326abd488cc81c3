/* waltz train: stages, steps (run/stage.c), and what is written after each (run/folder.c). The first learner (root)
 * writes and logs. */
#include "run/run.h"
#include "launch/launch.h"

#include <stdlib.h>
#include <string.h>

/* 0: the stage is done; 1: stopped before its end, with a checkpoint; -1: it failed. */
static int train_stage(struct wz_job *job, struct wz_run *run, struct wz_progress *p, const char *dir,
                       const json_t *inputs, struct wz_err *err)
{
    const int every = job->recipe->checkpoint.every;
    bool stop = false;
    struct wz_stage stage = { 0 };
    struct wz_step_report report;
    int rc = wz_stage_open(&stage, job, p, dir, err);
    bool ends = rc == 0 && wz_stage_ends(&stage, p); /* a stage may have no steps */

    while (rc == 0 && !ends && !stop) {
        wz_stage_step(&stage, p, &report);
        report.checkpoint = run->waited;
        if (job->roles.learner.me >= 0) rc = wz_run_step(run, job, p, &report, err);
        wz_episodes_free(report.episodes, report.n);
        if (rc == 0 && wz_run_due(run, job, p)) rc = wz_run_evaluate(run, job, p, err);
        ends = wz_stage_ends(&stage, p);
        stop = rc > 0 || (rc == 0 && wz_stop_asked(&job->link));
        if (rc > 0) rc = 0;
        const double begin = wz_now();
        if (rc == 0 && job->roles.learner.me >= 0 && (ends || stop || (every > 0 && p->step % every == 0))) {
            rc = wz_run_history(run, job, p, err);
            if (rc == 0) rc = wz_checkpoint_wait(job, true, err); /* one at a time; it may be the best */
            if (rc == 0)
                rc = wz_checkpoint_save(job, p, inputs, run->history, !run->collapsing, wz_run_best(run, job->recipe),
                                        err);
        }
        if (rc == 0) rc = wz_checkpoint_wait(job, false, err);
        run->waited = wz_now() - begin;
    }
    const double begin = wz_now();
    struct wz_err late;
    const int saved = wz_checkpoint_wait(job, true, &late); /* also where the step failed: it is of one before */
    if (rc == 0 && saved < 0) *err = late;
    if (rc == 0) rc = saved;
    run->waited += wz_now() - begin;
    wz_stage_close(&stage);
    return rc < 0 ? rc : stop;
}

/* On root: what decides the bits besides the recipe, compared with the checkpoint that the run resumes from. */
static int find_inputs(const struct wz_job *job, const char *dir, json_t **inputs, struct wz_err *err)
{
    if (!job->root) return 0;
    if (wz_inputs_find(job, inputs, err) < 0) return -1;
    return dir ? wz_checkpoint_inputs(job, dir, *inputs, err) : 0;
}

/* Finds the newest checkpoint and checks, before anything is allocated, that it is of this recipe, that it is of these
 * files (root alone, which reads them all), and that the run fits in memory (guarantee 9). Supervised stages are not
 * planned: the lengths of their sequences are not known yet. */
static int prepare(struct wz_job *job, struct wz_progress *p, char **dir, json_t **inputs, struct wz_err *err)
{
    struct wz_recipe *recipe = job->recipe;
    struct wz_plan *plan = wz_alloc(sizeof *plan);
    struct wz_err unlike;
    int here = job->link.here, rc = wz_checkpoint_find(job, recipe->out, INT64_MAX, p, dir, recipe, err);

    if ((rc < 0 || *dir || wz_run_began(recipe)) &&
        wz_run_resumes(recipe, &unlike) < 0) { /* says more than a manifest that does not fit it */
        rc = -1;
        *err = unlike;
    }
    if (rc == 0 && *dir) rc = find_inputs(job, *dir, inputs, err);
    bool planned = rc == 0 && !wz_job_supervised(recipe);
    if (planned) rc = wz_plan_make(plan, recipe, *dir, job->link.size, (job->link.size + here - 1) / here, err);
    planned = planned && rc == 0;
    if (planned) rc = wz_plan_check(plan, err);
    if (rc == 0 && !*dir) rc = find_inputs(job, NULL, inputs, err); /* takes longer: it reads all files */
    rc = wz_link_agree(&job->link, rc, err);
    if (rc < 0 && planned && err->text[0]) wz_plan_print(plan, stderr);
    free(plan);
    return rc;
}

/* Opens the job and checks the mix of prompts of each stage. */
static int open_all(struct wz_job *job, struct wz_progress *p, const char *dir, struct wz_err *err)
{
    struct wz_recipe *recipe = job->recipe;
    int rc = wz_link_agree(&job->link, wz_checkpoint_open(job, dir, p, err), err);

    if (rc < 0) return -1;
    struct wz_buf named = { 0 };
    wz_recipe_datasets(recipe, &named);
    struct wz_lines l = wz_lines_begin(named.data, named.len);
    while (job->root && wz_lines_next(&l)) wz_log("%.*s", (int)l.n, l.line);
    wz_buf_finish(&named);
    wz_job_drop_overlong(job);
    wz_job_drop_overlaps(job);
    /* report a mix that can't be drawn now, not when its stage begins */
    for (int s = 0; rc == 0 && job->data && s < (int)recipe->n_stages; s++) {
        struct wz_draw *draw = wz_draw_create(job->data, (int)recipe->n_data, &recipe->stages[s], s, recipe->seed, err);
        rc = draw ? 0 : -1;
        wz_draw_destroy(draw);
    }
    return wz_link_agree(&job->link, rc, err);
}

static int train(struct wz_job *job, struct wz_run *run, struct wz_progress *p, const char *dir, const json_t *inputs,
                 struct wz_err *err)
{
    const bool done = p->stage == (int)job->recipe->n_stages;
    int rc = wz_stop_asked(&job->link);

    if (rc == 0 && !dir && job->recipe->n_eval) rc = wz_run_before(run, job, err);
    if (rc == 0 && dir && !done && wz_run_due(run, job, p)) rc = wz_run_evaluate(run, job, p, err); /* was abandoned */
    while (rc == 0 && p->stage < (int)job->recipe->n_stages) rc = train_stage(job, run, p, dir, inputs, err);
    if (rc == 0 && done && job->root && !run->collapsing)
        wz_checkpoint_prune(job->recipe, p->step, wz_run_best(run, job->recipe)); /* the last start had no time to */
    if (rc == 0) rc = wz_run_after(run, job, p, err);
    if (rc > 0 && job->root && p->step)
        wz_log("asked to stop: the checkpoint is after step %lld; the same command resumes from it",
               (long long)p->step);
    else if (rc > 0 && job->root) wz_log("asked to stop before the first step; the same command begins again");
    return rc;
}

int wz_train(const char *command, struct wz_job *job, struct wz_recipe *recipe)
{
    struct wz_run run = { .lock = -1 };
    struct wz_progress p;
    struct wz_err err = { 0 };
    json_t *inputs = NULL;
    char *dir = NULL;
    int status = 1, taken = 0;

    job->writes = true;
    if (wz_link_agree(&job->link, wz_job_begin(job, recipe, true, &err), &err) < 0 ||
        wz_link_agree(&job->link, wz_inputs_alike(job, &err), &err) < 0 ||
        (taken = wz_run_lock(&run, job, !strcmp(command, "sft"), &err)) != 0 ||
        prepare(job, &p, &dir, &inputs, &err) < 0 || wz_run_cut(&run, job, &p, dir, &err) < 0 ||
        open_all(job, &p, dir, &err) < 0 || wz_run_open(&run, job, &p, dir, &err) < 0) {
        status = wz_give_up(command, &err);
        if (taken > 0) status = WZ_EXIT_AGAIN;
    } else {
        int rc = train(job, &run, &p, dir, inputs, &err);
        if (rc < 0) wz_die("%s: %s", command, err.text); /* a rank that exits ends the job */
        status = rc ? WZ_EXIT_AGAIN : 0;
    }
    wz_run_close(&run);
    json_decref(inputs);
    free(dir);
    return status;
}

int wz_cmd_train(int argc, char **argv)
{
    static const struct wz_usage usage = {
        .name = "train",
        .args = "RECIPE [key=value ...]",
        .about = "Trains the agents of a recipe by reinforcement learning, alone or under mpirun or srun. A run whose\n"
                 "folder (recipe key `out`) holds a checkpoint resumes from it; more steps in its last stage, or more\n"
                 "stages, extend it. Every key of the recipe can be overridden: seed=2 stages.0.steps=10\n"
                 "agents.feedback.model=DIR. SIGTERM, SIGINT or SIGUSR1 stop it after the current step, with a\n"
                 "checkpoint and exit status 75.",
    };
    struct wz_recipe *recipe = NULL;
    struct wz_job job = { 0 };
    struct wz_err err = { 0 };
    int status, n = wz_options_parse(&usage, argc, argv, &status);

    if (n < 0) return status;
    wz_stop_watch();
    if (wz_job_recipe(&recipe, &job.link, argv[0], argv + 1, n - 1, &err) < 0) status = wz_give_up("train", &err);
    else status = wz_train("train", &job, recipe);
    wz_job_close(&job);
    wz_recipe_destroy(recipe);
    return status;
}
