/* waltz train: the loop that matters is train_stage, which calls the stations of a step in order.
 *
 * Every rank runs this same code; what a rank is not part of, it passes by. The first learner (root) writes the run's files. */
#include "launch/job.h"
#include "launch/launch.h"
#include "launch/run.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct wz_learn learn_of(const struct wz_recipe_learn *r, const struct wz_recipe_agent *agent)
{
    return (struct wz_learn){
        .adamw = { r->lr, r->warmup, r->floor, r->beta1, r->beta2, r->eps, r->decay, r->clip },
        .kl = r->kl, .epsilon = r->epsilon, .revision = r->revision, .temperature = agent->temperature,
        .token_mean = !strcmp(r->loss, "token"),
    };
}

/* The reference is the agent as the stage began: these weights now, or, resumed in mid-stage, the checkpoint of then. */
static int open_reference(struct wz_job *job, struct wz_agent *a, const struct wz_progress *p, struct wz_err *err)
{
    if (p->stage_step == 0) {
        a->reference = wz_model_create(&a->model->config, WZ_F32, job->be);
        job->be->ops.download(job->be, a->stage, a->model->params, a->model->n_params * sizeof(float));
        job->be->ops.upload(job->be, a->reference->params, a->stage, a->model->n_params * sizeof(float));
        wz_model_seal(a->reference, a->model->version);
        return 0;
    }
    char *dir = wz_path("%s/checkpoints/%" PRId64 "/%s", job->recipe->out, p->stage_start, a->recipe->name);
    a->reference = wz_model_load(wz_is_dir(dir) ? dir : a->recipe->model, WZ_F32, job->be, err);
    free(dir);
    return a->reference ? 0 : -1;
}

static int stage_open(struct wz_job *job, const struct wz_recipe_stage *stage, const struct wz_progress *p, const char *dir, struct wz_err *err)
{
    int longest = job->recipe->rollout.longest, learners = job->roles.learner.n;

    for (int i = 0; i < job->n_agents; i++) {
        struct wz_agent *a = &job->agents[i];
        const struct wz_recipe_learn *r = wz_recipe_learn(stage, a->recipe->name);
        if (!r || job->roles.learner.me < 0) continue;
        a->how = learn_of(r, a->recipe);
        if (a->how.kl > 0 && open_reference(job, a, p, err) < 0) return -1;
        int most = longest > 0 && longest < a->model->config.context ? longest : a->model->config.context;
        wz_learner_init(&a->learner, a->model, a->reference, i, a->feedback, job->recipe->leaves / learners, job->recipe->micro, most);
    }
    return p->stage_step && job->roles.learner.me >= 0 ? wz_checkpoint_moments(job, dir, p, err) : 0;
}

static void stage_close(struct wz_job *job)
{
    for (int i = 0; i < job->n_agents; i++) {
        wz_learner_finish(&job->agents[i].learner);
        wz_model_destroy(job->agents[i].reference);
        job->agents[i].reference = NULL;
    }
}

/* Eq. 2's coefficients are the feedback agent's; a stage that trains none still labels, with the paper's. */
static struct wz_coefficients coefficients_of(const struct wz_job *job, const struct wz_recipe_stage *stage)
{
    for (int i = 0; i < job->n_agents; i++) {
        const struct wz_recipe_learn *r = job->agents[i].feedback ? wz_recipe_learn(stage, job->agents[i].recipe->name) : NULL;
        if (r) return (struct wz_coefficients){ r->alpha, r->lambda, r->gamma, !strcmp(r->bonus, "outcome") };
    }
    return (struct wz_coefficients){ 0.65, 0.25, 0.1, false };
}

static int train_stage(struct wz_job *job, struct wz_run *run, struct wz_progress *p, const char *dir, struct wz_err *err)
{
    const struct wz_recipe_stage *stage = &job->recipe->stages[p->stage];
    const struct wz_ranks *learners = &job->roles.learner;
    const struct wz_group group = wz_ranks_group(learners);
    const struct wz_coefficients coefficients = coefficients_of(job, stage);
    const struct wz_prompt **prompts = wz_alloc(sizeof *prompts * (size_t)stage->batch);
    struct wz_draw *draw = wz_draw_create(job->data, (int)job->recipe->n_data, stage, p->stage, job->recipe->seed, err);
    int rc = -1;

    if (!draw || stage_open(job, stage, p, dir, err) < 0) goto out;
    for (int s = 0; s < p->stage_step; s++) wz_draw_step(draw, prompts, stage->batch);
    for (;;) {
        struct wz_step_report report = { .stage = stage, .begin = wz_now() };
        Wz__Episode **episodes;
        int n;

        job->link.step = p->step;
        wz_draw_step(draw, prompts, stage->batch);
        struct wz_batch_plan plan = { prompts, stage->batch, p->step, learners, job->recipe->leaves, &coefficients };
        wz_stations_run(job, &plan, &episodes, &n, report.generated);                     /* play, judge, deliver */
        report.played = wz_now();
        for (int i = 0; i < job->n_agents; i++)                                             /* advantages, loss, update */
            if (job->agents[i].learner.model)
                wz_learner_step(&job->agents[i].learner, &job->agents[i].how, &job->link, &group, episodes, n, stage->batch, stage->steps,
                                job->recipe->seed, &report.learned[i]);
        report.learnt = wz_now();
        for (int i = 0; i < job->n_agents; i++)                                             /* version v+1 to the rollout ranks */
            if (wz_recipe_learn(stage, job->agents[i].recipe->name)) wz_job_publish(job, &job->agents[i]);
        report.published = wz_now();
        p->step++;
        p->stage_step++;
        if (learners->me >= 0 && wz_run_step(run, job, p, &report, episodes, n, err) < 0) goto out;
        wz_episodes_free(episodes, n);
        if (wz_run_due(job, p) && wz_run_evaluate(run, job, p, err) < 0) goto out;
        bool ends = p->stage_step == stage->steps, due = job->recipe->checkpoint.every > 0 && p->step % job->recipe->checkpoint.every == 0;
        if (ends) p->stage++, p->stage_step = 0, p->stage_start = p->step;
        if (job->root && (ends || due)) {
            if (wz_checkpoint_save(job, p, err) < 0) goto out;
            wz_checkpoint_prune(job->recipe->out, job->recipe->checkpoint.keep, p->stage_start);
        }
        if (ends) break;
    }
    rc = 0;
out:
    stage_close(job);
    wz_draw_destroy(draw);
    free(prompts);
    return rc;
}

static int train(struct wz_job *job, struct wz_recipe *recipe, struct wz_err *err)
{
    struct wz_progress p;
    struct wz_run run = {0};
    char *dir = NULL, *models[WZ_COUNT(job->agents)] = {0};
    int rc = -1;

    if (wz_checkpoint_latest(recipe->out, &p, &dir, recipe, err) < 0) goto out;
    for (unsigned i = 0; dir && i < recipe->n_agents; i++) {
        models[i] = wz_path("%s/%s", dir, recipe->agents[i].name);
        if (!wz_is_dir(models[i])) free(models[i]), models[i] = NULL;
    }
    if (wz_job_open(job, recipe, (const char *const *)models, true, err) < 0) goto out;
    for (int i = 0; i < job->n_agents; i++) {
        struct wz_model *m = job->agents[i].model;
        if (!m) continue;
        wz_model_seal(m, p.version[i]);
        if (dir && m->hash != p.hash[i]) {
            wz_fail(err, "%s: agent %s: the weights' hash is %016" PRIx64 ", the manifest says %016" PRIx64, dir, recipe->agents[i].name, m->hash,
                    p.hash[i]);
            goto out;
        }
    }
    for (int s = 0; s < (int)recipe->n_stages; s++) {              /* a stage that can't be drawn is told now, not after an hour */
        struct wz_draw *draw = wz_draw_create(job->data, (int)recipe->n_data, &recipe->stages[s], s, recipe->seed, err);
        if (!draw) goto out;
        wz_draw_destroy(draw);
    }
    if (wz_run_open(&run, job, &p, dir != NULL, err) < 0) goto out;
    if (!dir && recipe->n_eval && wz_run_before(&run, job, err) < 0) goto out;
    while (p.stage < (int)recipe->n_stages)
        if (train_stage(job, &run, &p, dir, err) < 0) goto out;
    rc = wz_run_after(&run, job, err);
out:
    if (wz_run_close(&run, err) < 0) rc = -1;
    for (unsigned i = 0; i < recipe->n_agents; i++) free(models[i]);
    free(dir);
    return rc;
}

int wz_cmd_train(int argc, char **argv)
{
    static const struct wz_usage usage = {
        .name = "train", .args = "RECIPE [key=value ...]", .max_args = -1, .min_args = 1,
        .about = "Trains the agents of a recipe by reinforcement learning, alone or under mpirun or srun. A run whose\n"
                 "folder (recipe key `out`) holds a checkpoint goes on from there. Every key of the recipe can be\n"
                 "overridden: seed=2 stages.0.steps=10 agents.feedback.model=DIR",
    };
    struct wz_recipe *recipe = NULL;
    struct wz_job job = {0};
    struct wz_err err = {0};
    int status, n = wz_options_parse(&usage, argc, argv, &status);

    if (n < 0) return status;
    if (wz_recipe_load(&recipe, argv[0], argv + 1, n - 1, &err) < 0) return wz_give_up("train", &err);
    if (train(&job, recipe, &err) < 0) wz_die("train: %s", err.text);      /* one rank's end is the job's */
    wz_job_close(&job);
    wz_recipe_destroy(recipe);
    return 0;
}
