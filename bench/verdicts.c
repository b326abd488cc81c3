/* verdicts: how fast a guard model judges. Its prompts are --prompt tokens, of which the first --system are the same in
 * all (the guard's instructions); of each, one token is generated, and two are scored. `batch` are judged at once.
 *
 * Each measured run judges QUESTIONS replies that were never judged before: once with prompts that differ from the
 * first token on, so that the engine can share nothing, and once with the instructions in front, which it reads once.
 * The seconds of the processor are printed too: they leave out what others did to the machine. */
#include <stdlib.h>

#include "bench/bench.h"
#include "rollout/rollout.h"

enum { PAGE = 16, QUESTIONS = 64 };

/* What judging QUESTIONS prompts costs, `batch` at a time; which: numbers that no earlier run had. */
static struct wz_cost judge(struct wz_engine *engine, const struct wz_bench *b, bool shared, uint32_t which)
{
    static const int words[2] = { 1, 2 };
    struct wz_request requests[QUESTIONS];
    float scores[QUESTIONS][2];
    int *ids[QUESTIONS];
    struct wz_meter meter;

    for (int i = 0; i < QUESTIONS; i++) {
        ids[i] = wz_bench_ids(b, b->prompt, which + (uint32_t)i);
        if (!shared) ids[i][0] = (int)((which + (uint32_t)i) % (uint32_t)b->model->config.vocab);
        requests[i] = (struct wz_request){ .prompt_ids = ids[i],
                                           .n_prompt = b->prompt,
                                           .max_tokens = 1,
                                           .top_p = 1,
                                           .scored = words,
                                           .n_scored = 2,
                                           .scores = scores[i] };
    }
    wz_meter_start(&meter);
    wz_engine_run(engine, requests, QUESTIONS);
    struct wz_cost cost = wz_meter_read(&meter);
    for (int i = 0; i < QUESTIONS; i++) {
        wz_request_finish(&requests[i]);
        free(ids[i]);
    }
    return cost;
}

int main(int argc, char **argv)
{
    struct wz_bench b = { .program = "verdicts",
                          .shape = "135m",
                          .type = "f32",
                          .backend = "auto",
                          .batch = 64,
                          .prompt = 224,
                          .system = 145,
                          .more = 1,
                          .runs = 3 };
    struct wz_meter all;
    int status;

    if (wz_bench_open(&b, "Measures the verdicts of a guard model with random weights, on the engine that judges use.",
                      argc, argv, &status) < 0)
        return status;
    struct wz_engine *engine = wz_engine_create(b.model, b.batch, PAGE, 0, b.prompt + 1);
    double *seconds[2], *processor[2];
    uint32_t which = 0;

    for (int k = 0; k < 2; k++) {
        seconds[k] = wz_alloc(sizeof(double) * (size_t)b.runs);
        processor[k] = wz_alloc(sizeof(double) * (size_t)b.runs);
    }
    wz_meter_start(&all);
    for (int i = -1; i < b.runs; i++) /* the first one is warm-up, and leaves the instructions in the prefix cache */
        for (int k = 0; k < 2; k++, which += QUESTIONS) {
            const struct wz_cost cost = judge(engine, &b, k, which);
            if (i < 0) continue;
            seconds[k][i] = cost.seconds;
            processor[k][i] = cost.processor;
        }
    const double others = wz_meter_others(&all);
    double rate[2], core[2];
    for (int k = 0; k < 2; k++) {
        rate[k] = QUESTIONS / wz_median(seconds[k], b.runs);
        core[k] = QUESTIONS / wz_median(processor[k], b.runs);
        free(seconds[k]);
        free(processor[k]);
    }
    printf("%s %s, %d at once, prompts of %d tokens of which %d are common, %d threads: %.2f verdicts/s (%.2f a second "
           "of the processor), shared %.2f (%.2f): %.2f x (%.2f x), by tokens %.2f x; others used %.0f %%\n",
           b.shape, b.type, b.batch, b.prompt, b.system, b.threads, rate[0], core[0], rate[1], core[1],
           rate[1] / rate[0], core[1] / core[0], (double)b.prompt / (b.prompt - b.system), others);
    wz_engine_destroy(engine);
    wz_bench_close(&b);
    return 0;
}
