/* Which prompts become samples of a step: a stage's `collect`.
 *
 *   plain     those of one batch
 *   dynamic   DAPO's dynamic sampling (Yu et al. 2025, arXiv 2503.14476, 3.2, eq. 11): a prompt is kept where the
 *             rewards of its samples differ. One whose samples are all rewarded alike would teach nothing; it gives its
 *             places in the batch to the next prompt drawn, until the batch is full or was filled up collect_rounds
 *             times.
 *
 * Every agent that learns has samples of its own, and is taught by them alone: a prompt is kept where those of any
 * agent differ, and the samples of an agent that do not are not trained on (Turn.alike). What was played is delivered,
 * recorded and counted all the same.
 *
 *   round 0   prompts  a b c d   kept a c        places  a c . .
 *   round 1            e f       kept f                  a c f .
 *   round 2            g         kept g                  a c f g
 *
 * Reward ranks know what the samples of their episodes are worth and tell all ranks, of which each then decides the
 * same and draws the same prompts. */
#include "run/stage.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A round: the episodes of `batch` neighbouring places, and each learning agent's samples of them. */
struct round {
    const struct wz_stage *stage;
    struct wz_held *held;
    int from, batch, agents;   /* from: of the episodes held, the round's first */
    struct wz_sample *samples; /* [held->n - from][agents] of a reward rank's own; turn NULL: none */
    double *rewards;           /* [batch][agents] of all ranks; NaN: no sample */
};

/* Every agent's sample of each of this rank's episodes. */
static void pick(struct round *r)
{
    const struct wz_job *job = r->stage->job;
    struct wz_err err;

    for (int a = 0; a < r->agents; a++) {
        const struct wz_recipe_learn *learn = wz_recipe_learn(r->stage->recipe, job->agents[a].recipe->name);
        if (!learn) continue;
        const struct wz_learn how =
            wz_stage_learn(wz_loss_find(r->stage->recipe->loss, &err), r->stage->recipe, learn, job->agents[a].recipe);
        for (int i = r->from; i < r->held->n; i++)
            wz_samples_pick(&r->samples[(i - r->from) * r->agents + a], &how, a, job->agents[a].feedback,
                            job->recipe->seed, &r->held->episodes[i], 1);
    }
}

/* The round's episode i was judged by reward rank i mod W. */
static void gather_rewards(struct round *r)
{
    struct wz_job *job = r->stage->job;
    const int size = job->link.size, own = (r->held->n - r->from) * r->agents;
    const struct wz_ranks *reward = &job->roles.reward;
    int *ranks = wz_alloc(sizeof *ranks * (size_t)size);
    struct wz_buf *found = wz_alloc(sizeof *found * (size_t)size);
    double *mine = wz_alloc(sizeof *mine * (size_t)(own + 1));

    for (int i = 0; i < size; i++) ranks[i] = i;
    for (int i = 0; i < own; i++) mine[i] = r->samples[i].turn ? r->samples[i].reward : NAN;
    wz_all_gather_bytes(&job->link, &(struct wz_group){ size, job->link.rank, ranks }, mine, sizeof *mine * (size_t)own,
                        found);
    const size_t row = sizeof *mine * (size_t)r->agents;
    for (int i = 0; i < r->batch; i++) {
        const struct wz_buf *of = &found[reward->ranks[i % reward->n]];
        const size_t at = (size_t)(i / reward->n) * row;
        if (at + row > of->len)
            wz_die("step %lld: rank %d told rewards of %zu episodes, of the round's %d", (long long)job->link.step,
                   reward->ranks[i % reward->n], of->len / row, r->batch);
        memcpy(r->rewards + i * r->agents, of->data + at, row);
    }
    for (int i = 0; i < size; i++) wz_buf_finish(&found[i]);
    free(found);
    free(ranks);
    free(mine);
}

/* Are the agent's samples of the prompt at places [at, at + n) all rewarded alike? One or none are. */
static bool alike(const struct round *r, int at, int n, int agent)
{
    double first = NAN;

    for (int i = at; i < at + n; i++) {
        const double reward = r->rewards[i * r->agents + agent];
        if (isnan(first)) first = reward;
        else if (!isnan(reward) && reward != first) return false;
    }
    return true;
}

/* Gives the kept prompts the places from `place` on, and marks samples that are not trained on. Returns the next free
 * place. */
static int keep(struct wz_stage *s, struct wz_held *held, int from, int batch, int place)
{
    const int peers = s->recipe->samples_per_prompt, agents = s->job->n_agents;
    const struct wz_ranks *reward = &s->job->roles.reward;
    struct round r = { .stage = s, .held = held, .from = from, .batch = batch, .agents = agents };

    r.samples = wz_alloc(sizeof *r.samples * (size_t)((held->n - from) * agents + 1));
    r.rewards = wz_alloc(sizeof *r.rewards * (size_t)(batch * agents));
    pick(&r);
    gather_rewards(&r);
    for (int at = 0; at < batch; at += peers) {
        bool dull[WZ_MAX_AGENTS], kept = false;
        for (int a = 0; a < agents; a++) kept |= !(dull[a] = alike(&r, at, peers, a));
        for (int i = at; i < at + peers && reward->me >= 0; i++) {
            if (i % reward->n != reward->me) continue;
            const int own = i / reward->n;
            if (kept) held->episodes[from + own]->place = (uint32_t)(place + i - at);
            for (int a = 0; a < agents; a++) {
                Wz__Turn *t = r.samples[own * agents + a].turn;
                if (t && dull[a]) t->alike = true;
            }
        }
        if (kept) place += peers;
    }
    free(r.samples);
    free(r.rewards);
    return place;
}

void wz_collect(struct wz_stage *s, int64_t step, struct wz_step_report *report)
{
    struct wz_job *job = s->job;
    const struct wz_recipe_stage *recipe = s->recipe;
    const bool dynamic = !strcmp(recipe->collect, "dynamic");
    struct wz_batch_plan plan = { .prompts = s->prompts,
                                  .step = step,
                                  .takers = &job->roles.learner,
                                  .leaves = job->recipe->leaves,
                                  .rewards = &s->rewards,
                                  .peers = recipe->samples_per_prompt };
    struct wz_held held = { 0 };
    int full = 0, rounds = 0;

    while (full < recipe->batch && rounds < (dynamic ? recipe->collect_rounds : 1)) {
        const int from = held.n;
        plan.batch = recipe->batch - full;
        wz_draw_next(s->draw, s->prompts, plan.batch);
        wz_stations_play(job, &plan, &held);
        full = dynamic ? keep(s, &held, from, plan.batch, full) : recipe->batch;
        plan.first += plan.batch;
        rounds++;
    }
    report->drawn = plan.first / recipe->samples_per_prompt;
    report->kept = full / recipe->samples_per_prompt;
    if (full < recipe->batch && job->root)
        wz_log("step %lld: dynamic sampling: %.0f of %d prompts after %d rounds (collect_rounds), of %.0f drawn; it "
               "learns from what there is",
               (long long)step, report->kept, recipe->batch / recipe->samples_per_prompt, rounds, report->drawn);
    plan.batch = recipe->batch;
    wz_stations_deliver(job, &plan, &held, &report->episodes, &report->n, &report->batch);
}
