/* account: what became of a step: its turns (guarantee 4), its metrics, and whether its agents could learn from it. */
#ifndef WZ_ACCOUNT_H
#define WZ_ACCOUNT_H

#include "run/stage.h"

/* What becomes of a turn: the one that an update was made from, or a reason why it is discarded. From
 * WZ_JUDGE_FAILED on the whole episode is discarded; the text of its `discard` decides which. */
enum wz_fate {
    WZ_TRAINED,
    WZ_NOT_PICKED,
    WZ_FROZEN,
    WZ_NOT_FINITE,
    WZ_ALIKE,
    WZ_WINDOW_CUT,
    WZ_JUDGE_FAILED,
    WZ_CACHE_TOO_SMALL,
    WZ_BROKEN,
    WZ_FATES
};

struct wz_beyond;

/* Sums over a step's episodes. All fields are doubles: learners add theirs up as one vector. */
struct wz_account {
    struct wz_tally sums;
    double lost[WZ_FATES]; /* episodes that were discarded whole, by reason */
    struct wz_agent_account {
        double turns, tokens, truncated, cuts; /* cuts: of wz_episode_cuts */
        double broken;                         /* feedback that is not valid, though the window did not cut it */
        double fates[WZ_FATES];
        struct {
            double n, sum, squares;
        } terms[WZ_MAX_REWARDS]; /* of each row of the rewards, before its coefficient */
    } agents[WZ_MAX_AGENTS];
};
/* Adds an episode, rewarded by `rewards` and learned from: report->learned is filled in. */
void wz_account_add(struct wz_account *account, const struct wz_job *job, const struct wz_step_report *report,
                    const struct wz_rewards *rewards, const Wz__Episode *e);
/* Writes the step's lines of ledger.jsonl, and checks them (guarantee 4). */
int wz_account_ledger(const struct wz_account *account, const struct wz_job *job, int64_t step,
                      const int64_t *generated, struct wz_err *err);
/* Why the step had no reward signal for the agent, which learns: its samples are all rewarded alike, or there are none;
 * heap. NULL: it had one. A KL penalty may change the agent nevertheless. */
char *wz_account_idle(const struct wz_account *account, const struct wz_job *job, const struct wz_step_report *report,
                      const struct wz_rewards *rewards, int agent);

/* A row: a name in metrics.jsonl and TensorBoard, and what it means. AGENT/ stands for each agent's name. */
struct wz_metric {
    const char *name;
    unsigned when;      /* WZ_METRIC_*: reported only where all of these hold */
    size_t part, whole; /* its value: a quotient of two numbers in the table's own struct; null where whole is 0 */
    const char *about;
};
enum {
    WZ_METRIC_PLAYS = 1,     /* the stage plays: it is not supervised */
    WZ_METRIC_LEARNS = 2,    /* the agent learns in this stage */
    WZ_METRIC_REFERENCE = 4, /* it has a reference model */
    WZ_METRIC_CRITIC = 8,    /* it has a critic */
};
extern const struct wz_metric wz_metric_rows[]; /* ended by a row without a name */
/* Writes the step's metrics, and counts those beyond their limits. plays: the stage is not supervised. */
void wz_account_metrics(const struct wz_account *account, const struct wz_job *job, int64_t step,
                        const struct wz_step_report *report, bool plays, struct wz_metrics *metrics,
                        struct wz_beyond *beyond);

/* limits.c: of each row of the recipe's `limits`, in how many steps in a row its metric was beyond, and the last value.
 * A step that does not have the metric, or had nothing to measure it by (NaN), begins the count anew. */
struct wz_beyond {
    int steps;
    double value;
};
int wz_limits_check(const struct wz_recipe *recipe, struct wz_err *err); /* -1 where there is no such metric */
void wz_limits_count(const struct wz_recipe *recipe, struct wz_beyond *beyond, const char *const *names,
                     const double *values, int n);
/* Is any beyond, after `steps` steps of the run? Says so in the log, or, where it has been for too long, -1 and a
 * message with the newest checkpoint from before. */
int wz_limits_watch(const struct wz_recipe *recipe, const struct wz_beyond *beyond, int64_t steps, struct wz_err *err);

#endif
