/* cycle: how fast a whole step is. Rollout, reward, update and commit of one agent, in one process, as `waltz train`
 * makes them.
 *
 *   prompts ─▶ wz_engine_run ─▶ share of ids below half the vocabulary ─▶ wz_learner_step ─▶ the next version
 *
 * Prompts are random and new in every step; answers are exactly `new` tokens, so every step is as long as every
 * other. There is no reference. The learner compares its log-probabilities with the rollout's (wz_bench_mismatch). */
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"
#include "rollout/rollout.h"

enum { PAGE = 16 };

/* What `request` wrote becomes the episode's only turn; the request is emptied. */
static Wz__Episode *episode(const struct wz_bench *b, uint32_t index, struct wz_request *request)
{
    Wz__Episode *e = wz_episode_new();
    Wz__Turn *t = wz_episode_turn(e);
    int below = 0;

    if (request->n != b->more) wz_die("cycle: asked for %d tokens, got %d", b->more, request->n);
    e->index = e->place = index;
    t->context = wz_alloc(sizeof *t->context * (size_t)b->prompt);
    t->n_context = (size_t)b->prompt;
    memcpy(t->context, request->prompt_ids, sizeof *t->context * (size_t)b->prompt);
    wz_turn_reserve(t, (size_t)b->more);
    for (int i = 0; i < b->more; i++) {
        wz_turn_add(t, request->ids[i], request->logp[i]);
        below += request->ids[i] < b->model->config.vocab / 2;
    }
    t->reward = (double)below / b->more;
    t->version = b->model->version;
    t->weights = b->model->hash;
    wz_request_finish(request);
    return e;
}

int main(int argc, char **argv)
{
    static const int only[1] = { 0 };
    static const struct wz_group group = { 1, 0, only };
    struct wz_bench b = { .program = "cycle",
                          .shape = "135m",
                          .type = "f32",
                          .backend = "auto",
                          .batch = 32,
                          .prompt = 64,
                          .more = 128,
                          .micro = 384,
                          .leaves = 1,
                          .runs = 1 };
    struct wz_bench_result r = { 0 };
    struct wz_learner learner;
    struct wz_link link = { 0 };
    struct wz_meter all;
    struct wz_err err;
    int status;

    if (wz_bench_open(&b, "Measures a whole step of one agent with random weights: rollout, reward, update.", argc,
                      argv, &status) < 0)
        return status;
    if (wz_link_open(&link, "self", 60, false, &err) < 0) return wz_give_up(b.program, &err);
    struct wz_engine *engine = wz_engine_create(b.model, b.batch, PAGE, b.batch * ((b.seq + PAGE - 1) / PAGE), b.seq);
    wz_learner_init(&learner, b.model, NULL, 0, false, b.leaves, &group, b.micro ? b.micro : b.batch * b.seq, b.seq);
    if (b.share) wz_learner_share(&learner, b.seq);
    struct wz_request *requests = wz_alloc(sizeof *requests * (size_t)b.batch);
    Wz__Episode **episodes = wz_alloc(sizeof *episodes * (size_t)b.batch);
    double *columns = wz_alloc(sizeof *columns * 4 * (size_t)b.runs), *rollout = columns, *update = rollout + b.runs,
           *faults = update + b.runs, *allocations = faults + b.runs;
    int **ids = wz_alloc(sizeof *ids * (size_t)b.batch);

    wz_meter_start(&all);
    for (int s = -1; s < b.runs; s++) { /* the first one is warm-up */
        struct wz_step_stats stats;
        struct wz_meter meter;
        for (int i = 0; i < b.batch; i++) {
            ids[i] = wz_bench_ids(&b, b.prompt, (uint32_t)((s + 1) * b.batch + i));
            requests[i] = (struct wz_request){ .prompt_ids = ids[i],
                                               .n_prompt = b.prompt,
                                               .max_tokens = b.more,
                                               .temperature = 1,
                                               .top_p = 1,
                                               .key = { 1, WZ_RNG_TOKEN, (uint32_t)(s + 1), (uint32_t)i, 0, 0 } };
        }
        wz_meter_start(&meter);
        wz_engine_run(engine, requests, b.batch);
        for (int i = 0; i < b.batch; i++) episodes[i] = episode(&b, (uint32_t)i, &requests[i]);
        double played = wz_meter_read(&meter).seconds;
        wz_learner_step(&learner, &wz_bench_learn, &link, &group, episodes, b.batch, b.batch, b.runs + 1, 1, &stats);
        for (int i = 0; i < b.batch; i++) wz_episode_free(episodes[i]), free(ids[i]);
        struct wz_cost cost = wz_meter_read(&meter);
        wz_bench_mismatch(&b, &stats);
        if (s < 0) continue;
        rollout[s] = played;
        update[s] = cost.seconds - played;
        faults[s] = (double)cost.faults;
        allocations[s] = (double)cost.allocations;
    }
    r.others = wz_meter_others(&all);
    double played = wz_median(rollout, b.runs), learnt = wz_median(update, b.runs), step = played + learnt;
    r.rate = (double)b.batch * b.more / step;
    r.faults = wz_median(faults, b.runs);
    r.allocations = wz_median(allocations, b.runs);
    r.flops_rate =
        4 * (double)b.batch * b.seq / step * wz_bench_flops(&b, b.seq / 2.0); /* once to play, thrice to learn */
    r.bytes_rate =
        (b.more * wz_bench_bytes(&b) + wz_bench_update(&b)) / step; /* every round of decode reads the weights */
    fprintf(stderr, "rollout %.2f s, update %.2f s\n", played, learnt);
    wz_bench_print(&b, &r);

    free(requests);
    free(episodes);
    free(columns);
    free(ids);
    wz_engine_destroy(engine);
    wz_learner_finish(&learner);
    wz_link_close(&link);
    wz_bench_close(&b);
    return 0;
}
