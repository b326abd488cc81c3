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

    e->index = e->place = index;
    t->reward = index % 2;
    t->context = wz_alloc(sizeof *t->context * (size_t)b->prompt);
    t->n_context = (size_t)b->prompt;
    for (int i = 0; i < b->prompt; i++) t->context[i] = ids[i];
    wz_turn_reserve(t, (size_t)b->more + 1);
    for (int i = b->prompt; i <= b->seq; i++) wz_turn_add(t, ids[i], 0);
    free(ids);
    return e;
}

/* As if the pack's model had written the episodes. */
static void write_by(Wz__Episode **episodes, int n, struct wz_pack *pack)
{
    struct wz_sample *samples = wz_alloc(sizeof *samples * (size_t)n);

    for (int i = 0; i < n; i++) {
        samples[i].turn = episodes[i]->turns[0];
        samples[i].first = (int)samples[i].turn->n_context;
    }
    struct wz_batches b = wz_batches_of(pack, samples, 0, n, NULL);
    while (wz_batches_next(&b)) {
        wz_pack_forward(pack, 1);
        for (int i = b.from; i < b.to; i++) {
            Wz__Turn *t = samples[i].turn;
            const int row = pack->first[i - b.from] + (int)t->n_context - 1 - wz_pack_past(pack);
            memcpy(t->logp, pack->logp + row, t->n_ids * sizeof *t->logp);
            t->version = pack->model->version;
            t->weights = pack->model->hash;
        }
    }
    free(samples);
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
                          .leaves = 1,
                          .runs = 3 };
    struct wz_bench_result r = { 0 };
    struct wz_learner learner;
    struct wz_pack writer;
    struct wz_link link = { 0 };
    struct wz_meter all;
    struct wz_err err;
    int status;

    if (wz_bench_open(&b, "Measures one update of an agent with random weights, as a learner makes it.", argc, argv,
                      &status) < 0)
        return status;
    if (wz_link_open(&link, "self", 60, false, &err) < 0) return wz_give_up(b.program, &err);
    wz_learner_init(&learner, b.model, NULL, 0, false, b.leaves, &group, b.micro ? b.micro : b.batch * b.seq, b.seq);
    wz_pack_init(&writer, b.model, learner.pack.rows, false);
    if (b.share) wz_learner_share(&learner, b.seq);
    Wz__Episode **episodes = wz_alloc(sizeof *episodes * (size_t)b.batch);
    double *processor = wz_alloc(sizeof *processor * (size_t)b.runs);
    double *seconds = wz_alloc(sizeof *seconds * (size_t)b.runs), *faults = wz_alloc(sizeof *faults * (size_t)b.runs);
    double *allocations = wz_alloc(sizeof *allocations * (size_t)b.runs);

    for (int i = 0; i < b.batch; i++) episodes[i] = episode(&b, (uint32_t)i);
    wz_meter_start(&all);
    for (int s = b.runs > 1 ? -1 : 0; s < b.runs; s++) { /* the first one is warm-up; a single one has none */
        struct wz_step_stats stats;
        struct wz_meter meter;
        write_by(episodes, b.batch, &writer);
        wz_meter_start(&meter);
        wz_learner_step(&learner, &wz_bench_learn, &link, &group, episodes, b.batch, b.batch, b.runs + 1, 1, &stats);
        struct wz_cost cost = wz_meter_read(&meter);
        wz_bench_mismatch(&b, &stats);
        if (s < 0) continue;
        seconds[s] = cost.seconds;
        processor[s] = cost.processor;
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
    fprintf(stderr, "update %.2f s, %.2f s of the processor\n", step, wz_median(processor, b.runs));
    wz_bench_print(&b, &r);

    for (int i = 0; i < b.batch; i++) wz_episode_free(episodes[i]);
    free(episodes);
    free(seconds);
    free(processor);
    free(faults);
    free(allocations);
    wz_pack_finish(&writer);
    wz_learner_finish(&learner);
    wz_link_close(&link);
    wz_bench_close(&b);
    return 0;
}
