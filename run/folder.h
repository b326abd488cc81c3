/* run: the files and the log of a run. Learner ranks open it; the first of them (root) writes for all ranks.
 *
 *   recipe.yaml  metrics.jsonl  events.out.tfevents.*  ledger.jsonl  chain.jsonl  episodes-<learner>.h5  summary.csv
 *   transcripts.jsonl  starts.jsonl
 *
 * chain.jsonl: one line a step, {"step","chain","agents":{name: hash of its weights}}; chain = XXH3 of the chain
 * before, the step and the hashes. Two runs are the same run exactly when their chains are. */
#ifndef WZ_FOLDER_H
#define WZ_FOLDER_H

#include "run/stage.h"

struct wz_run {
    int lock; /* descriptor of RUN/.lock: one process at a time writes a run; -1: not locked */
    struct wz_record *record;
    struct wz_metrics *metrics;
    struct wz_table table; /* summary.csv; on other ranks than root as it was when the run was opened */
    struct wz_progress_line {
        double begin;
        int64_t first, total;
        bool tty;
    } line;
    int idle[WZ_MAX_AGENTS]; /* root: steps in a row in which the agent had no reward signal */
};

/* First of all: root takes the run's lock, before anything of the run is read. Refuses a folder with other files than a
 * run's; writes_model: the run writes its model there (`waltz sft`). Initialises *run; all ranks call it, and fail
 * together. */
int wz_run_lock(struct wz_run *run, struct wz_job *job, bool writes_model, struct wz_err *err);
/* Is the recipe that of the run in its folder, or does it extend that? */
int wz_run_resumes(const struct wz_recipe *recipe, struct wz_err *err);
/* resume: a checkpoint was found; what the run wrote after it is deleted. All ranks call it, and fail together. */
int wz_run_open(struct wz_run *run, struct wz_job *job, const struct wz_progress *p, bool resume, struct wz_err *err);
void wz_run_close(struct wz_run *run); /* accepts one that was only locked */
/* After a step: record, metrics, ledger (checked: guarantee 4), chain, and the log line. Learner ranks call it. */
int wz_run_step(struct wz_run *run, struct wz_job *job, const struct wz_progress *p,
                const struct wz_step_report *report, struct wz_err *err);
/* Evaluations: all ranks call these. before and after also print the table, and after is not made twice; due: is one
 * to be made after this step? */
bool wz_run_due(const struct wz_job *job, const struct wz_progress *p);
int wz_run_before(struct wz_run *run, struct wz_job *job, struct wz_err *err);
int wz_run_evaluate(struct wz_run *run, struct wz_job *job, const struct wz_progress *p, struct wz_err *err);
int wz_run_after(struct wz_run *run, struct wz_job *job, const struct wz_progress *p, struct wz_err *err);

/* ---- signals.c: graceful shutdown -------------------------------------------------------------------------- */

enum { WZ_EXIT_AGAIN = 75 }; /* EX_TEMPFAIL: stopped with a checkpoint, run it again */
void wz_stop_watch(void);    /* from here on SIGTERM, SIGINT and SIGUSR1 ask for a stop; a second one ends at once */
bool wz_stop_asked(struct wz_link *link); /* has any rank been asked? All ranks call it and all get the same answer */

#endif
