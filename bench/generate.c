/* generate: how fast rollouts are. The engine reads `batch` prompts, then writes `new` tokens for each.
 *
 * A run is two calls of the engine that `waltz train` makes: the first asks for one token, so that it is all prefill;
 * the second asks for the rest of the same prompts, whose keys the cache still has, so that it is all decode. The op
 * table's head_sample, called once a round (twice where a graph is made), marks the rounds; the time of a middle one is
 * the steady-state decode step. */
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"
#include "rollout/rollout.h"

enum { PAGE = 16 };

static struct rounds {
    void (*sample)(struct wz_backend *, int *, float *, const float *, const struct wz_weight *, const struct wz_pick *,
                   int);
    struct wz_meter meter;
    int n;
    double *faults, *allocations; /* of each round */
    int cap;
} rounds;

static void sample_counted(struct wz_backend *be, int *token, float *logp, const float *x, const struct wz_weight *w,
                           const struct wz_pick *picks, int n)
{
    rounds.sample(be, token, logp, x, w, picks, n);
    struct wz_cost cost = wz_meter_read(&rounds.meter);
    if (rounds.n < rounds.cap) {
        rounds.faults[rounds.n] = (double)cost.faults;
        rounds.allocations[rounds.n++] = (double)cost.allocations;
    }
    wz_meter_start(&rounds.meter);
}

/* The engine's seconds for `most` tokens of every prompt. */
static double run(struct wz_engine *engine, struct wz_request *requests, int *const *ids, const struct wz_bench *b,
                  int most)
{
    for (int i = 0; i < b->batch; i++) {
        free(requests[i].ids);
        free(requests[i].logp);
        requests[i] = (struct wz_request){ .prompt_ids = ids[i],
                                           .n_prompt = b->prompt,
                                           .max_tokens = most,
                                           .temperature = 1,
                                           .top_p = 1,
                                           .key = { 1, WZ_RNG_TOKEN, (uint32_t)i, 0, 0, 0 } };
    }
    rounds.n = 0;
    wz_meter_start(&rounds.meter);
    double begin = wz_now();
    wz_engine_run(engine, requests, b->batch);
    return wz_now() - begin;
}

int main(int argc, char **argv)
{
    struct wz_bench b = { .program = "generate",
                          .shape = "135m",
                          .type = "f32",
                          .backend = "auto",
                          .batch = 32,
                          .prompt = 128,
                          .more = 64,
                          .runs = 1 };
    struct wz_bench_result r = { 0 };
    struct wz_meter meter;
    int status;

    if (wz_bench_open(
            &b, "Measures prefill and decode of random prompts by random weights, on the engine that rollouts use.",
            argc, argv, &status) < 0)
        return status;
    struct wz_engine *engine = wz_engine_create(b.model, b.batch, PAGE, 0, b.prompt + b.more);
    struct wz_request *requests = wz_alloc(sizeof *requests * (size_t)b.batch);
    int **ids = wz_alloc(sizeof *ids * (size_t)b.batch);
    double *prefill = wz_alloc(sizeof *prefill * (size_t)b.runs), *decode = wz_alloc(sizeof *decode * (size_t)b.runs);

    for (int i = 0; i < b.batch; i++) ids[i] = wz_bench_ids(&b, b.prompt, (uint32_t)i);
    rounds.sample = b.be->ops.head_sample;
    rounds.cap = b.more;
    rounds.faults = wz_alloc(sizeof(double) * (size_t)b.more);
    rounds.allocations = wz_alloc(sizeof(double) * (size_t)b.more);
    b.be->ops.head_sample = sample_counted;
    run(engine, requests, ids, &b, b.more < 4 ? b.more : 4); /* warm-up */
    wz_meter_start(&meter);
    for (int i = 0; i < b.runs; i++) {
        wz_engine_flush(engine);
        prefill[i] = run(engine, requests, ids, &b, 1);
        decode[i] = run(engine, requests, ids, &b, b.more);
    }
    r.others = wz_meter_others(&meter);
    r.faults = wz_median(rounds.faults, rounds.n);
    r.allocations = wz_median(rounds.allocations, rounds.n);
    r.prefill = (double)b.batch * b.prompt / wz_median(prefill, b.runs);
    r.rate = (double)b.batch * b.more / wz_median(decode, b.runs);
    const struct wz_config *c = &b.model->config;
    double middle = b.prompt + b.more / 2.0, keys = 8.0 * c->layers * c->kv_heads * c->head_dim * middle;
    r.flops_rate = r.rate * wz_bench_flops(&b, middle);
    r.bytes_rate = r.rate * (wz_bench_bytes(&b) / b.batch + keys);
    wz_bench_print(&b, &r);

    for (int i = 0; i < b.batch; i++) {
        wz_request_finish(&requests[i]);
        free(ids[i]);
    }
    free(requests);
    free(ids);
    free(prefill);
    free(decode);
    free(rounds.faults);
    free(rounds.allocations);
    wz_engine_destroy(engine);
    wz_bench_close(&b);
    return 0;
}
