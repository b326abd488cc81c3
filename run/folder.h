/* run: the files and the log of a run. Learner ranks open it; the first of them (root) writes for all ranks.
 *
 *   recipe.yaml  metrics.jsonl  events.out.tfevents.*  ledger.jsonl  chain.jsonl  episodes-<learner>.h5
 *   evaluations.jsonl  summary.csv  transcripts.jsonl  starts.jsonl
 *
 * chain.jsonl: one line a step, {"step","chain","agents":{name: hash of its weights}}; chain = XXH3 of the chain
 * before, the step and the hashes. Two runs are the same run exactly when their chains are. So what a killed start has
 * in it after its last checkpoint stays, and the steps that are made again must come out the same; all else that is
 * newer than the checkpoint is deleted. */
#ifndef WZ_FOLDER_H
#define WZ_FOLDER_H

#include "run/stage.h"

struct wz_run {
    int lock;      /* descriptor of RUN/.lock: one process at a time writes a run; -1: not locked */
    int64_t start; /* learners: the number in it, of this start; a later start has a higher one */
    struct wz_record *record;
    struct wz_metrics *metrics;
    struct wz_table table; /* summary.csv; on other ranks than root as it was when the run was opened */
    struct wz_progress_line {
        double begin;
        int64_t first, total;
        bool tty;
    } line;
    /* root: chain.jsonl from the step on with which this start began, and where each line begins */
    struct wz_ahead {
        uint64_t chain;
        size_t at;
    } * ahead;
    int64_t n_ahead;
    json_t *history;          /* root: of the last checkpoint */
    int idle[WZ_MAX_AGENTS];  /* root: steps in a row in which the agent had no reward signal */
    double waited;            /* s: for checkpoints since the last step's report; time/checkpoint */
    int lost;                 /* root: steps in a row whose episodes were all discarded */
    struct wz_beyond *beyond; /* root: of each of the recipe's limits */
    bool collapsing;          /* root: one of them is beyond, so no checkpoint is removed */
};

/* First of all: root takes the run's lock, before anything of the run is read. Refuses a folder with other files than a
 * run's; writes_model: the run writes its model there (`waltz sft`). Initialises *run; all ranks call it, and fail
 * together: -1, or 1 where another process has the lock, perhaps the dying one of a start before. */
int wz_run_lock(struct wz_run *run, struct wz_job *job, bool writes_model, struct wz_err *err);
bool wz_run_began(const struct wz_recipe *recipe); /* has a run in its folder made a step? */
/* Is the recipe that of the run in its folder, or does it extend that? */
int wz_run_resumes(const struct wz_recipe *recipe, struct wz_err *err);
/* dir: the checkpoint that p was read from, NULL: none. What the run wrote up to it must be there, before anything is
 * changed; the episodes after it and checkpoints half written are deleted. Counts the start in the lock: a rank of an
 * earlier start that is still alive writes no more. All ranks call it, and fail together; before the models are
 * loaded, for records are read by another process, and a system may refuse to fork a large one. */
int wz_run_cut(struct wz_run *run, struct wz_job *job, const struct wz_progress *p, const char *dir,
               struct wz_err *err);
/* After it, when the job is open: deletes all else that was written after the checkpoint, and opens the files. */
int wz_run_open(struct wz_run *run, struct wz_job *job, const struct wz_progress *p, const char *dir,
                struct wz_err *err);
/* Before a checkpoint: root takes down run->history, and checks that none of it was lost since the last one. */
int wz_run_history(struct wz_run *run, const struct wz_job *job, const struct wz_progress *p, struct wz_err *err);
void wz_run_close(struct wz_run *run); /* accepts one that was only locked */
/* After a step: record, metrics, ledger (checked: guarantee 4), chain, and the log line. Learner ranks call it. */
int wz_run_step(struct wz_run *run, struct wz_job *job, const struct wz_progress *p,
                const struct wz_step_report *report, struct wz_err *err);
/* Evaluations: all ranks call these; 1: abandoned, for the run was asked to stop. before and after also print the
 * table, and after is not made twice; due: is one to be made after this step, that there is not yet? */
bool wz_run_due(const struct wz_run *run, const struct wz_job *job, const struct wz_progress *p);
/* root: after which step the evaluation was best so far by checkpoint.best, of those
 * whose checkpoint is there; -1: none. */
int64_t wz_run_best(const struct wz_run *run, const struct wz_recipe *recipe);
int wz_run_before(struct wz_run *run, struct wz_job *job, struct wz_err *err);
int wz_run_evaluate(struct wz_run *run, struct wz_job *job, const struct wz_progress *p, struct wz_err *err);
int wz_run_after(struct wz_run *run, struct wz_job *job, const struct wz_progress *p, struct wz_err *err);

/* ---- history.c: the files that only grow ------------------------------------------------------------------- */

extern const char *const wz_history[]; /* their names, chain.jsonl first, ended by NULL */
/* Adds to `now` what the file is, of `most` bytes, and checks that it begins with what it was (NULL: not known). */
int wz_history_file(const char *run, const char *name, const json_t *was, size_t most, json_t *now, struct wz_err *err);
/* What they are, as a manifest has it; of chain.jsonl at most so many bytes. NULL and a message where one no longer
 * begins with what it was (NULL: not known). */
json_t *wz_history_take(const char *run, const json_t *was, size_t chain, struct wz_err *err);

/* ---- signals.c: graceful shutdown -------------------------------------------------------------------------- */

void wz_stop_watch(void); /* from here on SIGTERM, SIGINT and SIGUSR1 ask for a stop; a later one ends at once */

#endif
