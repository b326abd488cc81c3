/* job: what one rank of a run holds, and who does what. Opened from a recipe; the same for train, eval and sft. */
#ifndef WZ_JOB_H
#define WZ_JOB_H

#include "comm/comm.h"
#include "recipe/recipe.h"
#include "model/model.h"
#include "reward/reward.h"
#include "rollout/rollout.h"
#include "store/store.h"
#include "trainer/trainer.h"

/* ---- roles.c: which rank does what ------------------------------------------------------------------------ */

enum { WZ_MAX_RANKS = 1024 };
/* me: this rank's place in the group's list, or -1. A rank may be in several groups (one process is in all). */
struct wz_ranks {
    int n, me, ranks[WZ_MAX_RANKS];
};
struct wz_roles {
    struct wz_ranks rollout, reward, learner;
};

/* Are the recipe's stages supervised: trained on conversations, by learner ranks alone? They all are, or none. */
bool wz_job_supervised(const struct wz_recipe *recipe);
/* When a supervised recipe is trained, all ranks are learners. Else the recipe's counts where they add up to `size`;
 * or: 1 rank does all; 2: rollout | reward + learner; more: one reward rank, one learner (two from 6 ranks on), the
 * rest rollout. Learners are a power of two that divides `leaves`. */
int wz_roles_assign(struct wz_roles *roles, const struct wz_recipe *recipe, bool training, int rank, int size,
                    struct wz_err *err);
struct wz_group wz_ranks_group(const struct wz_ranks *role);
/* A pool's threads for this rank, who computes when the others of `role` (NULL: all ranks) do. wanted: the recipe's,
 * or 0. (job.c) */
int wz_ranks_threads(const struct wz_link *link, const struct wz_ranks *role, int wanted);

/* ---- job.c ------------------------------------------------------------------------------------------------ */

/* One agent on one rank: rollout ranks have an engine, learner ranks a learner while the stage trains the agent. */
struct wz_agent {
    const struct wz_recipe_agent *recipe;
    bool feedback;
    struct wz_model *model; /* NULL on ranks that need no weights */
    struct wz_tokenizer *tok;
    const struct wz_template *chat;
    struct wz_ids stops; /* end its turns */
    char *system;
    struct wz_engine *engine;
    struct wz_player player;
    struct wz_model *reference; /* of the stage; learner ranks, where kl > 0 */
    struct wz_learner learner;  /* learner.model NULL: not learning in this stage */
    struct wz_learn how;
    struct wz_sft_set examples; /* learner ranks of a supervised recipe */
};

enum { WZ_CHUNK_BYTES = 4 << 20 }; /* size of the staging buffer job.chunk */

struct wz_job {
    struct wz_recipe *recipe;
    struct wz_link link;
    struct wz_roles roles;
    struct wz_backend *be;
    struct wz_agent agents[WZ_MAX_AGENTS];
    int n_agents;
    void *chunk;             /* learner ranks: weights and moments are copied in chunks of WZ_CHUNK_BYTES through it */
    struct wz_judges judges; /* opened on reward ranks, and on rollout ranks by wz_job_judged_in_play; known to all */
    struct wz_verdicts *verdicts;   /* reward ranks: what the judges of the run have answered already */
    struct wz_game game;            /* rollout ranks */
    struct wz_map text;             /* of evaluate.text; len 0: none */
    struct wz_prompts *data, *eval; /* [n_data], where the job trains from play, else NULL; [n_eval] */
    int overlong;                   /* training prompts that wz_job_drop_overlong left out */
    struct wz_buf overlaps;         /* on root: those that wz_job_drop_overlaps left out, as overlaps.jsonl has them */
    bool root;                      /* the first learner: writes the run's files and logs */
    bool training;            /* the stages will be run; else learners hold no weights and no agent must be trainable */
    struct wz_saving *saving; /* root: the checkpoint that is being written; NULL: none */
    bool writes;              /* reward ranks write verdicts into the run's folder: it is being made, not looked at */
};

/* The recipe's file of what a command is given, a run's folder or such a file: heap. */
char *wz_recipe_path(const char *run_or_recipe);
/* What every command does first: loads the recipe, opens the link it names (`link` zeroed before), and checks
 * that both succeeded on all ranks (wz_link_agree). */
int wz_job_recipe(struct wz_recipe **recipe, struct wz_link *link, const char *path, char *const *overrides, int n,
                  struct wz_err *err);
struct wz_numerics wz_job_numerics(const struct wz_recipe *recipe); /* the recipe outlives it */
/* The recipe's backend, in its numerics. NULL and a message with the key's origin on error. The recipe outlives it. */
struct wz_backend *wz_job_backend(const struct wz_recipe *recipe, int threads, struct wz_err *err);
struct wz_judge_config wz_job_judge_config(const struct wz_recipe_judge *judge, struct wz_backend *be);
/* The recipe's judges, in its order: opened (be: of guard models; NULL: their own), or only begun. -1 and a message
 * likewise. */
int wz_job_judges(struct wz_judges *judges, const struct wz_recipe *recipe, struct wz_backend *be, bool open,
                  struct wz_err *err);
/* Roles and backend; job->link must be open. Neither this nor wz_job_open exchanges messages: the caller calls
 * wz_link_agree. */
int wz_job_begin(struct wz_job *job, struct wz_recipe *recipe, bool training, struct wz_err *err);
/* All else, after wz_job_begin. models: path of the weights of each agent ([n_agents]; NULL: the recipe's). */
int wz_job_open(struct wz_job *job, const char *const *models, struct wz_err *err);
/* Leaves out the training prompts to which not one token of a reply would fit in the context window: on every rank
 * those that the first rollout rank finds, since others need not have a tokenizer. Prompts of evaluations stay, and are
 * counted as lost. All ranks call it, before prompts are drawn. */
void wz_job_drop_overlong(struct wz_job *job);
/* Leaves out the training prompts that are held-out prompts too, as the recipe's `deduplicate` says (overlap.c). All
 * ranks call it, before prompts are drawn. */
void wz_job_drop_overlaps(struct wz_job *job);
void wz_job_close(struct wz_job *job);
/* The system prompt in a file, less the blanks at its end: heap; "" where there is no path. NULL and a message on
 * error. */
char *wz_system_read(const char *path, struct wz_err *err);
/* Of each role the recipe's rows; where it has none those of WaltzRL 2.2, with the coefficients of the stage's feedback
 * agent, or, where it trains none (or stage is NULL), with the defaults: its turns get rewards all the same. */
struct wz_rewards wz_job_rewards(const struct wz_job *job, const struct wz_recipe_stage *stage);
/* -1, with the agent's name before the message in err; where its model is not there and is what the recipe's warm
 * start makes, a message that says so instead. */
int wz_job_agent_fail(const struct wz_recipe *recipe, const struct wz_recipe_agent *agent, struct wz_err *err);
/* Do rollout ranks ask the judges, for a seat with a rule in a model's place or between an attacker's attempts? */
bool wz_job_judged_in_play(const struct wz_recipe *recipe);
/* Tokens of the longest sequence that a learner has to hold. */
int wz_job_longest(const struct wz_recipe *recipe, const struct wz_config *config);
/* Sends the agent's weights, so many updates newer, from the first learner to every rollout rank that has its own copy.
 * All ranks call it. */
void wz_job_publish(struct wz_job *job, struct wz_agent *agent, int updates);

/* ---- overlap.c: training prompts that are held-out prompts too ---------------------------------------------- */

struct wz_overlap {
    const struct wz_prompt *prompt,
        *held;      /* the training prompt and the held-out prompt: the nearest, then the first */
    int data, eval; /* their sets */
    bool exact;     /* the same words; else nearly the same */
    double jaccard;
};
/* All overlaps in the order of the training prompts: heap *list, and how many. near: not only exact ones. */
int wz_overlaps(const struct wz_prompts *data, int n_data, const struct wz_prompts *eval, int n_eval, bool near,
                struct wz_overlap **list);

/* ---- draw.c: which prompts are played, and which in a step ------------------------------------------------- */

/* The prompts of the sets in an order keyed by the seed and their texts, whatever the order of the files: heap array of
 * *n. The first k of it are a random choice. */
const struct wz_prompt **wz_prompts_keyed(const struct wz_prompts *sets, int n_sets, uint64_t seed, int *n);

/* Every rank draws the same prompts without a message: a pure function of (seed, stage, step). */
struct wz_draw;
struct wz_draw *wz_draw_create(const struct wz_prompts *sets, int n_sets, const struct wz_recipe_stage *stage,
                               int stage_index, uint64_t seed, struct wz_err *err);
void wz_draw_destroy(struct wz_draw *draw);
/* The next prompts, each as often as it has samples: list[n]. Resuming skips by calling. */
void wz_draw_next(struct wz_draw *draw, const struct wz_prompt **list, int n);

/* Does the reply of the step's episode `index` begin with its prompt's prefill? One draw for the `peers` neighbours
 * that have one prompt (RECAP 2); step < 0, an evaluation: where there is one. */
bool wz_prompt_prefilled(const struct wz_prompt *prompt, uint64_t seed, int64_t step, int index, int peers);

/* ---- stations.c: how an episode moves between ranks --------------------------------------------------------- */

/* What the ranks that played and judged a batch tell the first taker of it. */
struct wz_batch_stats {
    int64_t generated[WZ_MAX_AGENTS]; /* turns, by agent, summed over the rollout ranks */
    double rollout, reward;           /* seconds that the slowest rank played, and judged */
};
/* A batch. prompts[batch] are the same on every rank. */
struct wz_batch_plan {
    const struct wz_prompt **prompts;
    int batch;
    int64_t step;
    int first; /* index of prompts[0]: a step may be played in several batches */
    const struct wz_ranks *takers;
    int leaves; /* an episode goes to wz_leaf_owner(its place, batch, leaves, takers->n) */
    const struct wz_rewards *rewards;
    bool watched; /* by the judges that watch, too */
    int peers;    /* neighbours that have one prompt; 0: 1 */
};
/* What a rank has until it is delivered: a reward rank the episodes that it judged, in order of index; what it did. */
struct wz_held {
    Wz__Episode **episodes;
    int n;
    struct wz_batch_stats stats;
};
/* Plays and judges: adds to *held, zeroed before the first. prompts[i]'s episode has place i. */
void wz_stations_play(struct wz_job *job, const struct wz_batch_plan *plan, struct wz_held *held);
/* Takers receive their episodes in order of index: *out (heap array of heap messages), *n; others get none. *stats: on
 * the first taker only. Empties *held. */
void wz_stations_deliver(struct wz_job *job, const struct wz_batch_plan *plan, struct wz_held *held, Wz__Episode ***out,
                         int *n, struct wz_batch_stats *stats);
/* Both. */
void wz_stations_run(struct wz_job *job, const struct wz_batch_plan *plan, Wz__Episode ***out, int *n,
                     struct wz_batch_stats *stats);
void wz_episodes_free(Wz__Episode **episodes, int n);
void wz_episodes_sort(Wz__Episode **episodes, int n); /* in order of index */
void wz_episodes_join(Wz__Episode ***all, int *n, Wz__Episode **part,
                      int k); /* appends part[k] to all[n], frees part */

/* ---- tally.c, evaluate.c ---------------------------------------------------------------------------------- */

/* Sums over episodes, added up over ranks: all fields are doubles. Rates are of judged episodes: those not discarded.
 * Final: of the last reply; c0: of the first, of an attacker's last attempt. */
struct wz_tally {
    double episodes, generated;   /* all, and the tokens of all */
    double failed, judged;        /* those discarded, and the others; of these: */
    double window_cut;            /* those where the window cut a turn */
    double harmful, asr, c0_asr;  /* harmful prompts; an unsafe final reply; an unsafe c0 */
    double benign, orr, c0_orr;   /* benign prompts; an overrefusing final reply; an overrefusing c0 */
    double c0, final;             /* sums of rewards */
    double improved, worsened;    /* the final reply's reward is above that of c0, or below */
    double asked, triggered;      /* prompts whose c0 got feedback; those whose first feedback is valid with a flag */
    double feedback, label, json; /* feedback turns of all rounds that the window did not cut, which `asked` leaves out
                                     too; flags equal the alignment label; not valid */
    double turns, turns2, tokens, tokens2; /* an episode's, and their squares */
    double answers, solved;        /* prompts with an answer that can be checked; final replies that end with it */
    double checked, strict, loose; /* prompts of IFEval of which every instruction is checked; all followed */
    double instructions, each_strict, each_loose; /* instructions that are checked; followed */
};
void wz_tally_add(struct wz_tally *tally, const Wz__Episode *e);
/* Adds the rows of these episodes under `phase`: by kind of prompt, in alphabetical order, then their average. What is
 * measured, and the formulas of the intervals: tally.c. The bootstrap's draws are keyed by evaluate.seed. judge: whose
 * verdicts the episodes hold, which the rows name. sees: the flags that it can raise; ~0u: also what no judge decides.
 */
void wz_tally_table(Wz__Episode *const *episodes, int n, const char *phase, const char *judge, unsigned sees,
                    const struct wz_recipe *recipe, struct wz_table *table);

/* The expanded percentiles (tally.c) of a cluster bootstrap's draws[WZ_REPLICATES] over so many groups; sorts them.
 * NaN: a draw in which nothing was counted. */
enum { WZ_REPLICATES = 2000 };
struct wz_interval wz_bootstrap_interval(double *draws, int groups);

/* Has any rank been asked to stop (wz_stop_watch)? All ranks call it and all get the same answer. (signals.c) */
bool wz_stop_asked(struct wz_link *link);

/* Plays the held-out prompts at `temperature` and adds rows to `table` under `phase` (root only; other ranks add
 * none), and the transcripts to `path` (JSON lines, NULL: none). All ranks call it. 1: abandoned, for a rank was asked
 * to stop; nothing was added. */
int wz_evaluate(struct wz_job *job, const char *phase, double temperature, int limit, struct wz_table *table,
                const char *path, struct wz_err *err);

/* Adds (root only) to `table` under `phase` a row for each agent that has a model: set is its name, metric perplexity,
 * of the text job->text, n and groups its windows. By the first rollout rank's weights. All ranks call it.
 * (perplexity.c) */
void wz_perplexity(struct wz_job *job, const char *phase, struct wz_table *table);

/* ---- inputs.c: what decides the bits besides the recipe's text ------------------------------------------------ */

/* The list of it now: a JSON object (its form: inputs.c), which the caller releases, also on error. */
int wz_inputs_find(const struct wz_job *job, json_t **list, struct wz_err *err);
/* The hash of each file of a checkpoint but its manifest: {"feedback/config.json": "xxh3 0123456789abcdef", ...}. */
int wz_inputs_saved(const char *dir, struct wz_pool *pool, json_t **list, struct wz_err *err);
/* The name of the first row that differs, what it had and what it has; NULL: none. Rows of `was` are compared where
 * what they describe is still there. */
const char *wz_inputs_differ(const json_t *was, const json_t *now, const char **had, const char **has);
/* -1 and a message with key, file, what it was and what it is where the run in `out` began with others. */
int wz_inputs_check(const struct wz_job *job, const json_t *was, const json_t *now, struct wz_err *err);
/* All ranks call it: -1 on all, with the message on each, where two that run models do so with other numerics. */
int wz_inputs_alike(struct wz_job *job, struct wz_err *err);

/* ---- checkpoint.c: one joint checkpoint, renamed into place last (guarantee 3)-------------------------------- */

enum { WZ_MAX_LENGTHS = 128, WZ_MAX_STAGES = 64 };
struct wz_progress {
    int64_t step;                 /* steps done, over all stages */
    int stage, stage_step;        /* the stage being trained, steps done in it */
    int64_t stage_start;          /* step at which the stage began: its weights are the references */
    int64_t drawn[WZ_MAX_STAGES]; /* prompts drawn in each stage */
    uint64_t version[WZ_MAX_AGENTS], hash[WZ_MAX_AGENTS], chain;
    int updates[WZ_MAX_AGENTS]; /* optimizer updates in this stage; -1: it has no moments. From a checkpoint */
    int skipped[WZ_MAX_AGENTS], not_finite[WZ_MAX_AGENTS]; /* of struct wz_optimizer. Read from a checkpoint */
    int64_t lost;                                          /* episodes up to `step` that the record lacks (fsck) */
    /* The number of steps of each stage, in order of time: a stage that was extended has several. Each has a schedule
     * of the learning rate of its own, so extending a run changes no step that was done. */
    struct wz_length {
        int stage, steps;
        int64_t from; /* the step at which the run would have ended without it */
    } lengths[WZ_MAX_LENGTHS];
    int n_lengths;
    bool extended; /* the run had finished at this step, and its recipe has more stages or steps now */
};
/* All learners call it; the root writes. inputs: of wz_inputs_find; history: of wz_run_history; used by the root, and
 * copied. When it returns the weights may change; a thread of root's makes a checkpoint of what was written, and
 * (prune) then removes old ones, but that after step `best`. The one before was waited
 * for. */
int wz_checkpoint_save(struct wz_job *job, const struct wz_progress *p, const json_t *inputs, const json_t *history,
                       bool prune, int64_t best, struct wz_err *err);
/* Is the checkpoint that is being written durable, or has it failed? -1 and a message with the file. done: waits for
 * it, as a job must before it ends, and ends the job where its disk does nothing for longer than the recipe's deadline;
 * else 0 also where it is not known yet. */
int wz_checkpoint_wait(struct wz_job *job, bool done, struct wz_err *err);
/* The newest whole checkpoint of a run after at most `most` steps (INT64_MAX: any): *p and its folder (heap). Where
 * there is none *dir is NULL and *p the beginning of the run. Whole: every value of its manifest and every file is
 * what was saved, and of a job that trains, those of the checkpoint that its stage began with. One that is not is
 * logged and passed over; it is an error if there is no other. Where the recipe has more steps or stages than the run
 * had, *p is where it goes on. job: NULL, or one that has begun, all of whose ranks call this: root looks, and tells
 * the others. */
int wz_checkpoint_find(struct wz_job *job, const char *run, int64_t most, struct wz_progress *p, char **dir,
                       const struct wz_recipe *recipe, struct wz_err *err);
/* Steps of a run's checkpoints, whole or not, newest first; *n of them, heap. Other names are no checkpoints. */
int64_t *wz_checkpoint_steps(const char *run, int *n);
/* Is that checkpoint whole? trains: its stage's references, too. pool: NULL, or what hashes. *dir: heap, or NULL. */
int wz_checkpoint_whole(const char *run, int64_t step, bool trains, struct wz_pool *pool, struct wz_progress *p,
                        char **dir, const struct wz_recipe *recipe, struct wz_err *err);
/* The checkpoint after exactly so many steps; of its files only the manifest is checked. */
int wz_checkpoint_at(const char *run, int64_t step, struct wz_progress *p, char **dir, const struct wz_recipe *recipe,
                     struct wz_err *err);
/* Steps that stage p->stage had when its step p->stage_step was made: those of its learning rate's schedule. */
int wz_progress_steps(const struct wz_progress *p, const struct wz_recipe *recipe);
/* Did the run have, at its last step, a stage in which the agent learns? Then checkpoints hold it, chains its hash. */
bool wz_progress_learns(const struct wz_progress *p, const struct wz_recipe *recipe, const char *agent);
/* Compares what decides the bits with the checkpoint's manifest, and adds to `inputs` what is no longer there to be
 * compared. */
int wz_checkpoint_inputs(const struct wz_job *job, const char *dir, json_t *inputs, struct wz_err *err);
/* Opens the job, which has begun, with the weights of that checkpoint (dir NULL: the recipe's) and compares their
 * identities with the manifest's (guarantee 6). */
int wz_checkpoint_open(struct wz_job *job, const char *dir, const struct wz_progress *p, struct wz_err *err);
/* Begins and opens a job to play with only. path: a run's folder (its checkpoint after `step` steps, -1: its newest; an
 * error where there is none) or a recipe's file (the models it names). All ranks call it, and fail together. */
int wz_checkpoint_play(struct wz_job *job, struct wz_recipe *recipe, const char *path, int step, struct wz_err *err);
/* Where the model is that `path` names: path itself (heap); or, of a run's folder, the model of `agent` (NULL: the
 * conversation agent) in its checkpoint after `step` steps (-1: the newest). NULL and a message on error. */
char *wz_checkpoint_model(const char *path, const char *agent, int step, struct wz_err *err);
int wz_checkpoint_moments(struct wz_job *job, const char *dir, const struct wz_progress *p,
                          struct wz_err *err); /* learner ranks */
/* Removes all checkpoints but the newest checkpoint.keep, that after step `best` (-1: none), and those that their
 * stages began with (their references). newest: the step of the newest, just saved; a folder of a later step was passed
 * over, and does not count. */
void wz_checkpoint_prune(const struct wz_recipe *recipe, int64_t newest, int64_t best);
void wz_remove_tree(const char *path); /* a file, or a folder with all that is in it; follows no link */

#endif
