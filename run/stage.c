/* One stage of training: what it opens on this rank, and one step in the order of the data (wz_stage_step): play,
 * judge, learn, publish. A supervised stage learns only. Every rank runs this code and skips what it has no role in. */
#include "run/stage.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct wz_learn wz_stage_learn(const struct wz_loss *loss, const struct wz_recipe_stage *stage,
                               const struct wz_recipe_learn *r, const struct wz_recipe_agent *agent)
{
    struct wz_err err;

    return (struct wz_learn){
        .adamw = { r->lr, r->warmup, r->min_lr_ratio, r->beta1, r->beta2, r->eps, r->weight_decay, r->max_grad_norm },
        .pick = loss->supervised ? NULL : wz_sample_picks,
        .estimate = loss->supervised ? NULL : wz_estimate_find(r->estimate, &err), /* the job has checked the names */
        .loss = loss,
        .kl = loss->supervised ? 0 : r->kl_coef, /* conversations have no rollout to compare a reference with */
        .kl_form = wz_kl_find(r->kl_form, &err),
        .epsilon = r->clip_eps,
        .epsilon_high = r->clip_eps_high,
        .dual = r->dual_clip,
        .discount = r->gae_gamma,
        .trace = r->gae_lambda,
        .value_lr = r->value_lr,
        .value_coef = r->value_coef,
        .value_clip = r->value_clip,
        .overlong = wz_overlong_find(r->overlong, &err),
        .limit = agent->max_tokens,
        .cache = r->overlong_cache,
        .importance = wz_importance_find(r->importance, &err),
        .cap = r->importance_cap,
        .revision = r->revision_prob,
        .temperature = agent->temperature,
        .length = strcmp(r->loss_mean, "constant") ? 0 : agent->max_tokens,
        .token_mean = !strcmp(r->loss_mean, "token"),
        .sequence_ratio = !strcmp(r->ratio, "sequence"),
        .peers = stage->samples_per_prompt,
        .epochs = stage->epochs,
    };
}

/* The reference is the agent as the stage began: its weights now, or, where the stage is resumed, those of the
 * checkpoint at its start. */
static int open_reference(struct wz_job *job, struct wz_agent *a, const struct wz_progress *p, struct wz_err *err)
{
    const char *name = a->recipe->name;
    struct wz_progress then = { 0 };
    char *dir = NULL;

    if (p->stage_step == 0) {
        size_t size;
        const char *from = wz_model_weights(a->model, &size);
        a->reference = wz_model_create(&a->model->config, a->model->type, NULL, job->be);
        char *to = wz_model_weights(a->reference, &size);
        for (size_t at = 0; at < size; at += WZ_CHUNK_BYTES) {
            size_t n = size - at < WZ_CHUNK_BYTES ? size - at : WZ_CHUNK_BYTES;
            wz_download(job->be, job->chunk, from + at, n);
            wz_upload(job->be, to + at, job->chunk, n);
        }
        wz_model_commit(a->reference, a->model->version);
        return 0;
    }
    if (p->stage_start && wz_checkpoint_at(job->recipe->out, p->stage_start, &then, &dir, job->recipe, err) < 0)
        return wz_fail_in(err, "the reference of agent %s", name);
    const int i = (int)(a - job->agents);
    const bool learnt = dir && then.hash[i];
    char *path = learnt ? wz_path("%s/%s", dir, name) : wz_strdup(a->recipe->model);
    a->reference = wz_model_load(path, a->model->type, NULL, job->be, err);
    int rc = a->reference ? 0 : -1;
    if (rc == 0 && learnt) {
        wz_model_commit(a->reference, then.version[i]);
        if (a->reference->hash != then.hash[i])
            rc = wz_fail(err, "%s: the reference's hash is %016" PRIx64 ", the manifest says %016" PRIx64, path,
                         a->reference->hash, then.hash[i]);
    }
    free(dir);
    free(path);
    return rc;
}

static int open_learners(struct wz_job *job, const struct wz_recipe_stage *stage, const struct wz_group *group,
                         const struct wz_progress *p, const char *dir, struct wz_err *err)
{
    const struct wz_loss *loss = wz_loss_find(stage->loss, err);
    int learners = job->roles.learner.n;

    if (!loss) return -1;
    for (int i = 0; i < job->n_agents; i++) {
        struct wz_agent *a = &job->agents[i];
        const struct wz_recipe_learn *r = wz_recipe_learn(stage, a->recipe->name);
        if (!r || job->roles.learner.me < 0) continue;
        a->how = wz_stage_learn(loss, stage, r, a->recipe);
        if (a->how.kl > 0 && open_reference(job, a, p, err) < 0) return -1;
        if (a->reference && job->be->device && !strcmp(job->recipe->reference_location, "host"))
            wz_model_offload(a->reference);
        int longest = loss->supervised ? a->examples.longest : wz_job_longest(job->recipe, &a->model->config);
        wz_learner_init(&a->learner, a->model, a->reference, i, a->feedback, job->recipe->leaves / learners, group,
                        job->recipe->micro_batch_tokens, longest);
        if (!strcmp(job->recipe->share_prefix, "yes")) wz_learner_share(&a->learner, longest);
        if (a->how.estimate && a->how.estimate->values) wz_learner_criticise(&a->learner);
        a->learner.name = a->recipe->name;
    }
    return p->stage_step && job->roles.learner.me >= 0 ? wz_checkpoint_moments(job, dir, p, err) : 0;
}

int wz_stage_open(struct wz_stage *s, struct wz_job *job, const struct wz_progress *p, const char *dir,
                  struct wz_err *err)
{
    const struct wz_recipe_stage *recipe = &job->recipe->stages[p->stage];

    *s = (struct wz_stage){ .job = job,
                            .recipe = recipe,
                            .group = wz_ranks_group(&job->roles.learner),
                            .rewards = wz_job_rewards(job, recipe) };
    s->prompts = wz_alloc(sizeof *s->prompts * (size_t)recipe->batch);
    if (open_learners(job, recipe, &s->group, p, dir, err) < 0) return -1;
    if (!job->data) return 0; /* supervised: no prompts to draw */
    s->draw = wz_draw_create(job->data, (int)job->recipe->n_data, recipe, p->stage, job->recipe->seed, err);
    for (int64_t i = 0; s->draw && i < p->drawn[p->stage]; i++)
        wz_draw_next(s->draw, s->prompts, recipe->samples_per_prompt);
    return s->draw ? 0 : -1;
}

void wz_stage_close(struct wz_stage *s)
{
    for (int i = 0; s->job && i < s->job->n_agents; i++) {
        wz_learner_finish(&s->job->agents[i].learner);
        wz_model_destroy(s->job->agents[i].reference);
        s->job->agents[i].reference = NULL;
    }
    wz_draw_destroy(s->draw);
    free(s->prompts);
    *s = (struct wz_stage){ 0 };
}

void wz_stage_step(struct wz_stage *s, struct wz_progress *p, struct wz_step_report *report)
{
    struct wz_job *job = s->job;
    const struct wz_recipe_stage *recipe = s->recipe;

    const int steps = wz_progress_steps(p, job->recipe);

    *report = (struct wz_step_report){ .stage = recipe, .begin = wz_now() };
    job->link.step = p->step;
    if (s->draw) wz_collect(s, p->step, report);
    report->play_end = wz_now();
    for (int i = 0; i < job->n_agents; i++) { /* advantages, loss, update */
        struct wz_agent *a = &job->agents[i];
        if (!a->learner.model) continue;
        if (s->draw)
            wz_learner_step(&a->learner, &a->how, &job->link, &s->group, report->episodes, report->n, recipe->batch,
                            steps, job->recipe->seed, &report->learned[i]);
        else
            wz_sft_step(&a->learner, &a->how, &job->link, &s->group, &a->examples, recipe->batch, p->step, steps,
                        job->recipe->seed, &report->learned[i]);
    }
    report->learn_end = wz_now();
    for (int i = 0; i < job->n_agents; i++) /* the new version to the rollout ranks */
        if (wz_recipe_learn(recipe, job->agents[i].recipe->name)) wz_job_publish(job, &job->agents[i], recipe->epochs);
    report->publish_end = wz_now();
    p->drawn[p->stage] += (int64_t)report->drawn;
    p->step++;
    p->stage_step++;
    for (int i = 0; i < job->n_agents; i++) {
        const struct wz_model *m =
            wz_progress_learns(p, job->recipe, job->agents[i].recipe->name) ? job->agents[i].model : NULL;
        p->version[i] = m ? m->version : 0;
        p->hash[i] = m ? m->hash : 0;
    }
    uint64_t link[2 + WZ_COUNT(p->hash)] = { p->chain, (uint64_t)(p->step - 1) };
    memcpy(link + 2, p->hash, sizeof p->hash);
    p->chain = wz_hash(link, sizeof(uint64_t) * (size_t)(2 + job->n_agents), 0);
}

bool wz_stage_ends(const struct wz_stage *s, struct wz_progress *p)
{
    if (p->stage_step < s->recipe->steps) return false;
    p->stage++;
    p->stage_step = 0;
    p->stage_start = p->step;
    return true;
}
