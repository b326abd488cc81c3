/* plan: what every rank of a run will allocate, known before it does (guarantee 9). The functions that allocate are
 * called on a backend that counts; of the models only config.json, or a GGUF's header, is read. */
#ifndef WZ_PLAN_H
#define WZ_PLAN_H

#include "run/job.h"

/* One buffer of a rank, or several of one purpose. agent: its name, "" for what is the rank's own. host: in the host's
 * memory whatever the backend. */
struct wz_plan_row {
    const char *agent;
    char what[48];
    size_t bytes;
    bool host;
};

/* Ranks of the same roles. Of a learner the stage that takes the most. */
struct wz_plan_kind {
    char name[48];
    int first, ranks;  /* they are first, first + 1, ... */
    const char *stage; /* NULL: none learns here */
    struct wz_plan_row rows[128];
    int n_rows;
    size_t device, host; /* sums of the rows by where they lie */
};

/* What there is, in bytes; 0: not known, so not compared. `device` is one GPU's, and 0 where the backend has none. */
struct wz_plan_machine {
    int hosts, gpus;
    size_t host, device;
};

struct wz_plan {
    const struct wz_recipe *recipe;
    const char *backend; /* its name */
    int size;
    struct wz_plan_kind kinds[3];
    int n_kinds;
    struct wz_plan_machine machine; /* this one, as it is now */
};

/* For `size` ranks on `hosts` hosts. dir: the checkpoint that the run resumes from, or NULL. */
int wz_plan_make(struct wz_plan *plan, const struct wz_recipe *recipe, const char *dir, int size, int hosts,
                 struct wz_err *err);
/* 0 where it fits; else -1 and a message with what is missing and the largest buffers. */
int wz_plan_check(const struct wz_plan *plan, struct wz_err *err);
void wz_plan_print(const struct wz_plan *plan, FILE *out);
/* The same as JSON; sizes in bytes. "problem": why it does not fit, or null. */
json_t *wz_plan_json(const struct wz_plan *plan, const char *problem);

/* What the stages of a recipe compute, at most: every turn as long as it may get. tokens: those sampled. flops: 2 for
 * each parameter of a model that a token goes through forward and 4 back (Kaplan et al. 2020, 2.1), for the sampled
 * tokens when they are sampled, and for the turn of an episode that each agent learns from (once more forward through
 * its reference). Prompts, attention and evaluations are not counted. NaN: of a supervised recipe, or where the
 * parameters of an agent that plays are 0, for not known. */
struct wz_plan_work {
    double steps, episodes, tokens, flops;
};
struct wz_plan_work wz_plan_work(const struct wz_recipe *recipe, const double parameters[WZ_MAX_AGENTS]);
/* Parameters of the model of that name, by its config alone; 0: it is not there. */
double wz_plan_parameters(const char *model);

#endif
