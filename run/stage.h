/* stage: one stage of training, step by step. train runs it and records everything; replay runs it and compares. */
#ifndef WZ_STAGE_H
#define WZ_STAGE_H

#include "run/job.h"

struct wz_stage {
    struct wz_job *job;
    const struct wz_recipe_stage *recipe;
    struct wz_draw *draw;             /* NULL: supervised */
    const struct wz_prompt **prompts; /* of the step, [batch] */
    struct wz_group group;            /* the learners */
    struct wz_rewards rewards;
};

/* What a step did. The episodes are the learner's own, in order of index: free them with wz_episodes_free. */
struct wz_step_report {
    const struct wz_recipe_stage *stage;
    Wz__Episode **episodes;
    int n;
    double begin, play_end, learn_end, publish_end; /* wz_now() at each part's end */
    double checkpoint;                              /* seconds that a checkpoint took the run since the step before */
    double drawn, kept;                             /* prompts; those that an agent learns from */
    struct wz_batch_stats batch;                    /* of a stage that plays (root) */
    struct wz_step_stats learned[WZ_MAX_AGENTS];    /* by agent */
};

/* How an agent learns by a stage's loss, as its recipe says. */
struct wz_learn wz_stage_learn(const struct wz_loss *loss, const struct wz_recipe_stage *stage,
                               const struct wz_recipe_learn *learn, const struct wz_recipe_agent *agent);
/* Opens stage p->stage at p->stage_step; dir: the checkpoint that p was read from (moments), unused at a stage's
 * beginning. */
int wz_stage_open(struct wz_stage *stage, struct wz_job *job, const struct wz_progress *p, const char *dir,
                  struct wz_err *err);
void wz_stage_close(struct wz_stage *stage); /* accepts zero */
/* collect.c: plays, judges and delivers a step's episodes, by the stage's `collect`: fills in report->episodes, n,
 * drawn, kept and batch. All ranks call it. */
void wz_collect(struct wz_stage *stage, int64_t step, struct wz_step_report *report);
/* One step; p moves on: step, versions, hashes, chain. All ranks call it. */
void wz_stage_step(struct wz_stage *stage, struct wz_progress *p, struct wz_step_report *report);
/* Was that the last step? Then p moves to the beginning of the next stage. */
bool wz_stage_ends(const struct wz_stage *stage, struct wz_progress *p);

#endif
