/* The recipe: everything that defines a run, as YAML. The struct mirrors the file: one field a key, in the file's
 * order. What each key means, its default and its range stand in one table (schema.c), which `waltz help recipe`
 * prints. Unknown keys, wrong types and values out of range are errors with the file's line. Every key can be
 * overridden on the command line by its path: seed=2  stages.0.steps=10  agents.feedback.model=DIR
 * stages.stage2.agents.feedback.lr=3e-5 (an element of a list by index or by its name). Relative paths are taken from
 * the working folder. */
#ifndef WZ_RECIPE_H
#define WZ_RECIPE_H

#include "base/base.h"

enum { WZ_MAX_AGENTS = 8, WZ_MAX_JUDGES = 8, WZ_MAX_TERMS = 56 };
#define WZ_DEADLINE 300 /* seconds: the default of `deadline` */

/* Defaults of a feedback agent's alpha, lambda and gamma: WaltzRL 2.2 in stage 1. They also reward its turns where no
 * stage trains it. */
#define WZ_ALPHA  0.65
#define WZ_LAMBDA 0.25
#define WZ_GAMMA  0.1

struct wz_recipe_search {
    char *by, *target, *text;
    int steps, candidates, top_k;
};

struct wz_recipe_prefill {
    char *path;
    double alpha;
    int words;
    char *hijack;
    int rounds;
    char *transition;
};

struct wz_recipe_data {
    char *path, *dataset, *column, *harmful, *kind, *group, *only, *answer;
    int limit;
    struct wz_recipe_prefill prefill;
};

struct wz_recipe_kind {
    char *kind, *meaning;
};

struct wz_recipe_share {
    char *kind;
    double share;
};

/* A judge; what it takes depends on its kind. */
struct wz_recipe_judge {
    char *name, *kind, *role;
    double weight, misses, alarms;
    char *phrases, *world;
    int retries;
    char *measures;
    double threshold;
    char *command, *url, *model, *api_key, *rubric;
    double timeout, backoff;
    int concurrent, max_tokens;
    char *type, *categories, *without;
    int max_seq_len;
};

/* What turns of a role are paid for, to prompts of a kind. */
struct wz_recipe_reward {
    char *term, *role, *kind;
    double coefficient;
};

struct wz_recipe_says {
    char *unsafe, *overrefuse;
};

/* An agent: its own weights, its own optimizer. Agents are a list (guarantee 11). */
struct wz_recipe_agent {
    char *name, *role, *model, *system, *chat, *type, *think;
    int max_tokens;
    double temperature, top_p, min_p;
    int top_k;
    struct wz_recipe_says says;
};

/* How one agent learns in one stage. An agent that a stage does not list is frozen in it. */
struct wz_recipe_learn {
    char *name; /* the agent's */
    double lr, warmup, min_lr_ratio;
    double beta1, beta2, eps, weight_decay, max_grad_norm;
    double kl_coef, clip_eps, clip_eps_high, dual_clip;
    char *kl_form, *estimate, *importance, *overlong; /* rows of the trainer's tables; ignored by a supervised loss */
    double importance_cap, gae_gamma, gae_lambda, value_lr, value_coef, value_clip;
    int overlong_cache;
    char *ratio, *loss_mean;
    double alpha, lambda, gamma;
    char *feedback_bonus;
    double revision_prob;
};

struct wz_recipe_stage {
    char *name;
    int steps, batch, samples_per_prompt;
    char *collect;
    int collect_rounds, epochs;
    char *loss;
    struct wz_recipe_share *mix;
    unsigned n_mix;
    struct wz_recipe_learn *agents;
    unsigned n_agents;
};

struct wz_recipe_limit {
    char *metric;
    double min, max;
    int steps;
};

struct wz_recipe {
    char *name;
    uint64_t seed;
    char *out, *backend, *link;
    int threads;
    double deadline;
    struct {
        char *cuda, *isa, *bf16, *nccl_sum;
    } numerics;
    struct {
        int rollout, reward, learner;
    } ranks;
    struct wz_recipe_agent *agents;
    unsigned n_agents;
    struct {
        int max_rounds, kv_pages, kv_page_tokens, max_num_seqs, max_seq_len;
    } rollout;
    struct wz_recipe_judge judge; /* where there are no `judges`: the only one */
    struct wz_recipe_judge *judges;
    unsigned n_judges;
    char *combine;
    struct wz_recipe_reward *rewards;
    unsigned n_rewards;
    int leaves, micro_batch_tokens;
    char *share_prefix, *activation_checkpointing, *reference_location;
    int max_nonfinite_updates;
    int max_lost_steps;
    struct wz_recipe_limit *limits;
    unsigned n_limits;
    struct wz_recipe_data *data;
    unsigned n_data;
    struct wz_recipe_data *eval;
    unsigned n_eval;
    char *deduplicate;
    struct wz_recipe_kind *kinds;
    unsigned n_kinds;
    struct {
        int every, eval_limit;
        double temperature;
        int attempts, branching, width;
        uint64_t seed;
        char *text;
        struct wz_recipe_search search;
    } evaluate;
    struct {
        int every, keep;
        char *best;
    } checkpoint;
    struct wz_recipe_stage *stages;
    unsigned n_stages;
    struct {
        char *model, *data, *out, *system, *chat, *type;
        int steps, batch;
        double lr, warmup, min_lr_ratio, beta1, beta2, eps, weight_decay, max_grad_norm;
    } sft;
    struct wz_resolved *source; /* the module's own: where each value came from; NULL: not loaded from a file */
};

/* overrides: n strings key=value. Fills in every default. 0, or -1 and a message with file, line and key. */
int wz_recipe_load(struct wz_recipe **recipe, const char *path, char *const *overrides, int n, struct wz_err *err);
/* The resolved recipe: every key with its value; loads back to the same struct. */
int wz_recipe_save(const struct wz_recipe *recipe, const char *path, struct wz_err *err);
void wz_recipe_destroy(struct wz_recipe *recipe); /* accepts NULL */

/* Fails with a message about the value at `path` ("stages.0.name", as it was loaded), which names the path and the
 * line or override that set it. Returns -1. fmt may print err->text. */
int wz_recipe_fail(const struct wz_recipe *recipe, struct wz_err *err, const char *path, const char *fmt, ...)
    WZ_PRINTF(4, 5);
/* May a run that began with `was` be resumed with `now`? -1 and a message that names the first key that differs of
 * those that may not (marked `bits` in the table). More steps in the last stage, and more stages, extend a run. `auto`
 * is no difference here: what it is resolved to is compared where that is known (run/inputs.c). Both were loaded. */
int wz_recipe_resumes(const struct wz_recipe *was, const struct wz_recipe *now, struct wz_err *err);
/* The i-th value of a loaded recipe in the order of the keys: its path, and *value as recipe.yaml has it. NULL after
 * the last. */
const char *wz_recipe_value(const struct wz_recipe *recipe, int i, const char **value);
/* Every key with its type, default, range, mark and sentence, from the table: as text, or as docs/recipe.md */
void wz_recipe_help(FILE *out, bool markdown);

/* ---- datasets.c: published data sets ------------------------------------------------------------------------ */

enum wz_data_use { WZ_DATA_TRAIN, WZ_DATA_EVAL, WZ_DATA_NEVER }; /* NEVER: its terms forbid to train on it */
/* A row. column to only: defaults of the keys of data[] and eval[] of those names; NULL: the key's own. */
struct wz_dataset {
    const char *name, *file, *column, *harmful, *kind, *group, *only, *licence, *where;
    enum wz_data_use use;
    const char *answer;
};
const struct wz_dataset *wz_dataset_find(const char *name, struct wz_err *err); /* NULL and a message with the names */
const char *wz_dataset_default(const struct wz_dataset *set, const char *key);  /* NULL: it gives that key none */
const char *wz_dataset_use(const struct wz_dataset *set);                       /* what it is for, in words */
/* Appends a line for each data set that the recipe names: licence, use, where it is published. */
void wz_recipe_datasets(const struct wz_recipe *recipe, struct wz_buf *out);
void wz_datasets_help(FILE *out, bool markdown); /* the table: as text, or as docs/datasets.md */

/* ---- sft.c ------------------------------------------------------------------------------------------------- */

/* Replaces a loaded recipe by that of the one stage that its section sft: describes, out being sft.out: what `waltz
 * sft` runs. It is a loaded recipe too, and becomes itself again. On failure *recipe stays as it was. */
int wz_recipe_sft(struct wz_recipe **recipe, struct wz_err *err);

/* ---- sweep.c ---------------------------------------------------------------------------------------------- */

/* A sweep: rows, each a recipe with a patch, which are run with several seeds and come out as the rows of a table
 * beside a paper's. The texts are as in the file; what is below them in each struct was read from them. */
struct wz_sweep_column {
    char *name, *set, *metric;
};
struct wz_sweep_row {
    char *name, *title, *run, *like, *recipe, *set, *paper, *against, *absent;
    double *figures;       /* the paper's, of each column; NaN: none */
    int base;              /* the row it is like; -1: none */
    int *others, n_others; /* rows it is compared with */
};
struct wz_sweep_source {
    char *path, *from, *licence;
    double parameters;
};
struct wz_sweep {
    char *name, *about, *out, *seeds, *temperatures, *recipe, *set;
    struct wz_sweep_column *columns;
    unsigned n_columns;
    struct wz_sweep_row *rows;
    unsigned n_rows;
    struct wz_sweep_source *sources;
    unsigned n_sources;
    uint64_t *seed_list;
    double *temperature_list;
    int n_seeds, n_temperatures;
    struct wz_resolved *source;
};

/* overrides: n strings key=value, of the sweep's own keys. 0, or -1 and a message with file, line and key. */
int wz_sweep_load(struct wz_sweep **sweep, const char *path, char *const *overrides, int n, struct wz_err *err);
void wz_sweep_destroy(struct wz_sweep *sweep); /* accepts NULL */
/* wz_recipe_fail of a sweep's value. */
int wz_sweep_fail(const struct wz_sweep *sweep, struct wz_err *err, const char *path, const char *fmt, ...)
    WZ_PRINTF(4, 5);
/* OUT/SEED, where the rows of this seed are; heap. */
char *wz_sweep_folder(const struct wz_sweep *sweep, uint64_t seed);
/* `text` with {seed} and {dir} replaced; heap. */
char *wz_sweep_expand(const struct wz_sweep *sweep, const char *text, uint64_t seed);
/* The recipe of a row with that seed, its `out` (or sft.out) the row's folder. Not of a sandbox. */
int wz_sweep_recipe(const struct wz_sweep *sweep, int row, uint64_t seed, struct wz_recipe **recipe,
                    struct wz_err *err);
/* Does the row have figures, or does it only make what others use? */
bool wz_sweep_measures(const struct wz_sweep_row *row);

/* Lookups: NULL or -1 when absent. */
int wz_recipe_agent(const struct wz_recipe *recipe, const char *name);
bool wz_recipe_learns(const struct wz_recipe *recipe, const char *agent); /* in any stage */
const struct wz_recipe_learn *wz_recipe_learn(const struct wz_recipe_stage *stage, const char *agent);

#endif
