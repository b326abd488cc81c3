/* bench: what the programs that measure share: a shape by name, random weights, what a step costs, one line of
 * output. */
#ifndef WZ_BENCH_H
#define WZ_BENCH_H

#include "launch/launch.h"
#include "model/model.h"
#include "trainer/trainer.h"

struct wz_bench {
    const char *program, *shape, *type, *backend;
    int layers, batch, prompt, more, seq, threads, runs,
        micro;          /* more: new tokens; micro: rows of a forward and backward */
    int leaves, system; /* system: tokens that all prompts begin with */
    bool csv, recompute, share;
    struct wz_backend *be;
    struct wz_model *model;
};

/* How the agents of the benches learn: the first rows of the tables, at a learning rate that hardly moves them. */
extern const struct wz_learn wz_bench_learn;

/* What one measured stretch cost. */
struct wz_cost {
    double seconds, processor; /* of the clock; of all this process's threads, user and system */
    int64_t faults, allocations;
};
struct wz_meter {
    double seconds, own, cores;
    int64_t faults, allocations;
};

/* Options, then backend and model with random weights. -1: *status is the exit status. */
int wz_bench_open(struct wz_bench *b, const char *about, int argc, char **argv, int *status);
void wz_bench_close(struct wz_bench *b);
int *wz_bench_ids(const struct wz_bench *b, int n, uint32_t which); /* heap: n token ids of the model's vocabulary */

void wz_meter_start(struct wz_meter *m);
struct wz_cost wz_meter_read(const struct wz_meter *m);
/* Percent of the machine that others used since the start. */
double wz_meter_others(const struct wz_meter *m);

/* After a step on the very weights that wrote its samples: dies where log-probabilities differ from theirs, or, with
 * fast products, prints how many differ and by how much. */
void wz_bench_mismatch(const struct wz_bench *b, const struct wz_step_stats *stats);

double wz_median(double *x, int n); /* sorts x */
/* Multiply-adds x 2 of a token at position `at`, all matrices and the head; bytes of all that a forward reads of the
 * weights. */
double wz_bench_flops(const struct wz_bench *b, double at);
double wz_bench_bytes(const struct wz_bench *b);
double wz_bench_update(const struct wz_bench *b); /* bytes that an update moves at least, activations aside */

struct wz_bench_result {
    double prefill, rate, faults, allocations, bytes_rate, flops_rate, others;
};
void wz_bench_print(const struct wz_bench *b, const struct wz_bench_result *r);

#endif
