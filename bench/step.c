/* step: how fast training is. One update of wz_learner_step from `batch` episodes of `seq` tokens, alone: forward,
 * loss, backward, clip, AdamW, new panels and hash.
 *
 * Old log-probabilities are those of the weights about to be updated, as rollouts leave them; that forward is not
 * timed. */
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"

static Wz__Episode *episode(const struct wz_bench *b, uint32_t index)
{
    Wz__Episode *e = wz_episode_new();
    Wz__Turn *t = wz_episode_turn(e);
    int *ids = wz_bench_ids(b, b->seq + 1, index);

    e->index = index;
    t->reward = index % 2;
    t->context = wz_alloc(sizeof *t->context * (size_t)b->prompt);
    t->n_context = (size_t)b->prompt;
    for (int i = 0; i < b->prompt; i++) t->context[i] = ids[i];
    wz_turn_reserve(t, (size_t)b->more + 1);
    for (int i = b->prompt; i <= b->seq; i++) wz_turn_add(t, ids[i], 0);
    free(ids);
    return e;
}

/* As if these weights had written the episode. */
static void write_by(Wz__Episode *e, struct wz_pack *pack)
{
    Wz__Turn *t = e->turns[0];

    wz_pack_clear(pack);
    wz_pack_turn(pack, t);
    wz_pack_forward(pack, 1);
    for (size_t k = 0; k < t->n_ids; k++) t->logp[k] = pack->logp[t->n_context - 1 + k];
    wz_pack_clear(pack);
    t->version = pack->model->version;
    t->weights = pack->model->hash;
}

int main(int argc, char **argv)
{
    static const int only[1] = { 0 };
    static const struct wz_group group = { 1, 0, only };
    struct wz_bench b = { .program = "step",
                          .shape = "15m",
                          .type = "f32",
                          .backend = "auto",
                          .batch = 4,
                          .prompt = 1,
                          .more = 255,
                          .runs = 3 };
    struct wz_bench_result r = { 0 };
    struct wz_learner learner;
    struct wz_link link = { 0 };
    struct wz_meter all;
    struct wz_err err;
    int status;

    if (wz_bench_open(&b, "Measures one update of an agent with random weights, as a learner makes it.", argc, argv,
                      &status) < 0)
        return status;
    if (wz_link_open(&link, "self", 60, false, &err) < 0) return wz_give_up(b.program, &err);
    wz_learner_init(&learner, b.model, NULL, 0, false, 1, &group, b.micro ? b.micro : b.batch * b.seq, b.seq);
    Wz__Episode **episodes = wz_alloc(sizeof *episodes * (size_t)b.batch);
    double *seconds = wz_alloc(sizeof *seconds * (size_t)b.runs), *faults = wz_alloc(sizeof *faults * (size_t)b.runs);
    double *allocations = wz_alloc(sizeof *allocations * (size_t)b.runs);

    for (int i = 0; i < b.batch; i++) episodes[i] = episode(&b, (uint32_t)i);
    wz_meter_start(&all);
    for (int s = -1; s < b.runs; s++) { /* the first one is warm-up */
        struct wz_step_stats stats;
        struct wz_meter meter;
        for (int i = 0; i < b.batch; i++) write_by(episodes[i], &learner.pack);
        wz_meter_start(&meter);
        wz_learner_step(&learner, &wz_bench_learn, &link, &group, episodes, b.batch, b.batch, b.runs + 1, 1, &stats);
        struct wz_cost cost = wz_meter_read(&meter);
        wz_bench_mismatch(&b, &stats);
        if (s < 0) continue;
        seconds[s] = cost.seconds;
        faults[s] = (double)cost.faults;
        allocations[s] = (double)cost.allocations;
    }
    r.others = wz_meter_others(&all);
    double step = wz_median(seconds, b.runs);
    r.rate = (double)b.batch * b.seq / step;
    r.faults = wz_median(faults, b.runs);
    r.allocations = wz_median(allocations, b.runs);
    r.flops_rate = 3 * r.rate * wz_bench_flops(&b, b.seq / 2.0);
    r.bytes_rate = wz_bench_update(&b) / step;
    wz_bench_print(&b, &r);

    for (int i = 0; i < b.batch; i++) wz_episode_free(episodes[i]);
    free(episodes);
    free(seconds);
    free(faults);
    free(allocations);
    wz_learner_finish(&learner);
    wz_link_close(&link);
    wz_bench_close(&b);
    return 0;
}
