/* trainer: samples in, weights out. One agent's optimizer step, for reinforcement learning and for supervised training.
 *
 *   episodes ─▶ pick ─┐
 *   conversations ────┴▶ samples ─▶ prepare: reference log-probabilities, estimate of advantages ─▶
 *                                   update: loss and backward, leaf by leaf ─▶ tree sum ─▶ clip, AdamW ─▶ commit
 *
 * What can be chosen is a row of a table: picks (sample.c), estimates (estimate.c), losses (loss.c). The first rows are
 * WaltzRL's (section 2.3).
 *
 * A step's gradient is a sum in a fixed shape (guarantee 2): the batch is cut by position into `leaves` equal runs of
 * samples; the samples of a leaf are added in order, leaves in a binary tree. A learner rank owns an equal, aligned
 * share of the leaves, so 1, 2, 4, ... ranks and any micro-batch give the same bits.
 */
#ifndef WZ_TRAINER_H
#define WZ_TRAINER_H

#include "comm/comm.h"
#include "model/model.h"
#include "proto/proto.h"

/* ---- schedule.c ------------------------------------------------------------------------------------------- */

/* Learning rate of update `step` (from 0) of `steps`: linear warm-up over `warmup` updates, then cosine to floor *
 * peak. */
double wz_learning_rate(double peak, double warmup, double floor, int step, int steps);

struct wz_adamw {
    double lr, warmup, floor, beta1, beta2, eps, decay, clip;
};

/* How an agent learns. The rows are borrowed from their tables. */
struct wz_learn {
    struct wz_adamw adamw;
    const struct wz_sample_pick *pick;  /* NULL: not from episodes */
    const struct wz_estimate *estimate; /* NULL: every trained token has advantage 1 */
    const struct wz_loss *loss;
    const struct wz_kl *kl_form;            /* where the KL penalty is; NULL: in the return */
    const struct wz_overlong *overlong;     /* NULL: long turns are trained on like others */
    const struct wz_importance *importance; /* NULL: none */
    double kl;
    double epsilon, epsilon_high; /* of the clip, below 1 and above; epsilon_high 0: as below */
    double dual;                  /* of the dual clip; 0: none */
    double cap;                   /* of importance weights */
    double discount, trace;       /* gamma and lambda of an estimate from a critic's values */
    double value_lr, value_coef,
        value_clip;               /* the critic's; coef: how much of its loss reaches the weights; clip 0: none */
    double limit, cache;          /* tokens of a turn, at most; the last of them, in which a soft penalty grows */
    double revision, temperature; /* temperature: of the rollouts; log-probabilities are taken at it */
    double length;                /* tokens that a sample's sum is divided by; 0: as many as it has (eq. 4) */
    bool token_mean;              /* mean over all tokens; else over samples, of their sums so divided */
    bool sequence_ratio;          /* one ratio for all tokens of a sample (GSPO) */
    int peers;                    /* neighbours in the batch that have one prompt; 0: 1 */
    int epochs;                   /* updates from a batch, each over all of it; 0: 1 */
};

/* ---- sample.c: from an episode to what an agent is trained on --------------------------------------------- */

/* A conversation as token ids with a mask: loss on the assistant's tokens (their end token included). */
struct wz_sft_example {
    int *ids;
    bool *loss;
    int n;
};
/* One sequence to train on, the trainer's only input. It borrows a turn (its tokens were sampled by a rollout) or an
 * example. */
struct wz_sample {
    Wz__Turn *turn; /* or NULL. Gets ref_logp and advantage, and `trained` where an update is made of it */
    const struct wz_sft_example *example; /* or NULL */
    int at;                               /* place in the step's batch: its leaf, and so the learner that owns it */
    int group;                            /* samples of one prompt have one number, below the batch's size */
    int first;                            /* index of the first trained token in the sequence */
    int tokens;                           /* trained tokens */
    double reward;                        /* the turn's, and the penalty of a long one */
    double *value, *target; /* [tokens] by the critic, before the batch's first update; what it is to be. Or NULL */
    float *begun; /* [tokens] log-probabilities by the weights that the batch's first update begins with. NULL: nobody
                     asks for them */
};
/* A rule by which an agent's sample is picked from an episode that was not discarded. */
struct wz_sample_pick {
    const char *name;
    /* A turn of the agent (feedback: its role), drawn by the key, or NULL where the episode has none. */
    Wz__Turn *(*turn)(const struct wz_learn *how, const Wz__Episode *e, int agent, bool feedback, struct wz_key key);
};
extern const struct wz_sample_pick wz_sample_picks[]; /* ended by a row without a name */
/* What becomes of turns that are too long: they are not picked where max_tokens ended them, or lose reward by their
 * tokens. */
struct wz_overlong {
    const char *name;
    bool drop;
    double (*penalty)(double tokens, double limit, double cache); /* NULL: none */
};
extern const struct wz_overlong wz_overlongs[]; /* ended by a row without a name */
const struct wz_overlong *wz_overlong_find(const char *name, struct wz_err *err);
/* The agent's samples of n episodes, in order, at most one of each, by how->pick, less those marked alike: out[n].
 * Draws are keyed by (seed, step, episode, agent). Returns how many. */
int wz_samples_pick(struct wz_sample *out, const struct wz_learn *how, int agent, bool feedback, uint64_t seed,
                    Wz__Episode **episodes, int n);

/* ---- estimate.c: advantages ------------------------------------------------------------------------------- */

/* out[n]: the return of each token, A_i = reward - kl * sum_{t >= i} (logp_t - ref_t)   (WaltzRL 2.3; ref NULL: no
 * penalty) */
void wz_returns(double reward, double kl, const float *logp, const float *ref, int n, float *out);
/* Generalized advantage estimation (Schulman et al. 2016, arXiv 1506.02438, eq. 16) from the values of the n states
 * that predict the tokens, with 0 behind the last: A_i = delta_i + gamma lambda A_{i + 1}, delta_i = r_i + gamma V_{i +
 * 1} - V_i, r_i = -kl (logp_i - ref_i), and the reward besides at the last. target[n]: A_i + V_i. */
void wz_gae(double reward, double kl, const float *logp, const float *ref, const double *value, double gamma,
            double lambda, int n, float *out, double *target);
/* What every learner knows of every sample of the step: its tokens' returns and their squares summed, and its KL
 * penalty, sum of logp - ref. tokens 0: there was no sample. */
struct wz_outcome {
    double group, reward, tokens, sum, squares, kl;
};
/* Mean and 1/std of the returns over all trained tokens, outcomes added in order. The variance is clamped at 1e-8, so
 * equal returns whiten to 0, never NaN. */
struct wz_moments {
    double mean, rstd, tokens, samples;
};
struct wz_moments wz_moments(const struct wz_outcome *all, int batch);
/* Rewards of the n samples of one prompt; std: with n - 1 (0 where n is 1). */
struct wz_peers {
    double n, mean, std;
};
/* An estimate: a sample's reward seen beside its peers', which takes the reward's place in the returns, and whether
 * these are whitened over all trained tokens of the step. */
struct wz_estimate {
    const char *name;
    double (*relative)(double reward, const struct wz_peers *peers); /* NULL: the reward itself */
    bool whiten;
    bool values; /* it needs a critic (wz_gae) */
};
extern const struct wz_estimate wz_estimates[]; /* ended by a row without a name */
/* Turns the returns in own samples' turn->advantage into advantages; where the estimate has `relative`, these returns
 * lack the reward. all[batch] is the same on every learner, and gets sums and squares of the returns before they are
 * whitened, of which the moments are. estimate NULL: none. */
struct wz_moments wz_advantages(const struct wz_estimate *estimate, struct wz_arena *lists, struct wz_outcome *all,
                                int batch, const struct wz_sample *own, int n);
/* NULL and a message that lists the names where there is none of that name. */
const struct wz_estimate *wz_estimate_find(const char *name, struct wz_err *err);

/* ---- loss.c ----------------------------------------------------------------------------------------------- */

/* A trained token: its log-probability by the weights that are trained, by the old ones, by the reference (0 where
 * there is none), its advantage, and the logarithm of its ratio, now - old, or the mean of that over its sample's
 * tokens (wz_learn.sequence_ratio). old: as the rollout recorded it; with importance weights, as the learner computed
 * it in the batch's first update. */
struct wz_loss_token {
    double now, old, ref, advantage, log_ratio;
};
/* A loss is minimised: -J, with J a mean over tokens (wz_learn.token_mean) of a term. slope() returns the term's
 * derivative by t->now, and the term in *value. supervised: trained on conversations, which need no rollout, reward, or
 * estimate. */
struct wz_loss {
    const char *name;
    bool supervised;
    double (*slope)(const struct wz_learn *how, const struct wz_loss_token *t, double *value);
};
extern const struct wz_loss wz_losses[]; /* ended by a row without a name */
/* NULL and a message that lists the names where there is none of that name. */
const struct wz_loss *wz_loss_find(const char *name, struct wz_err *err);

/* A KL penalty in the loss: an estimate of KL(pi || pi_ref) at one token, taken from J kl times. Returns its derivative
 * by t->now, and the estimate in *value. slope NULL: the penalty is in the return (wz_returns). */
struct wz_kl {
    const char *name;
    double (*slope)(const struct wz_loss_token *t, double *value);
};
extern const struct wz_kl wz_kls[]; /* ended by a row without a name */
const struct wz_kl *wz_kl_find(const char *name, struct wz_err *err);

/* An importance weight: what a token's term of J is multiplied by for having been sampled by another policy than the
 * one that the batch's first update begins with. ratio: of that one's probability to the one that the rollout recorded,
 * of the token, or of all trained tokens of its sample together (sequence). weight NULL: no weights. */
struct wz_importance {
    const char *name;
    bool sequence;
    double (*weight)(double ratio, double cap);
};
extern const struct wz_importance wz_importances[]; /* ended by a row without a name */
const struct wz_importance *wz_importance_find(const char *name, struct wz_err *err);

/* ---- optimizer.c ------------------------------------------------------------------------------------------ */

/* Elements [at, at + n) of the model's parameters in the order of its list. */
struct wz_span {
    size_t at, n;
};
/* Gradient buffers of a fixed tree, each of the model's n_params floats, and AdamW's moments of this learner's shard
 * of them, all in backend memory. Gradients are not shared out: a leaf is one chain over its micro-batches, and has
 * to be whole before the tree adds it (guarantee 2). */
struct wz_optimizer {
    struct wz_model *model;
    struct wz_shard shard;
    struct wz_span *spans; /* what is trained of the shard, counted from its beginning */
    int n_spans;
    float *m, *v, *grad[8];          /* m, v: [shard.n] */
    double *sums;                    /* host: squares of the shard's gradient, by block */
    float *norms;                    /* host: those of the shard, of a bf16 model */
    int levels, leaves, leaf, steps; /* steps: updates done */
    bool filled[8];
    int skipped;    /* updates not made: the gradient was not finite, or there was no sample */
    int not_finite; /* the former, in a row up to now */
};
/* group: of all learners, the one that a bf16 model was made for; leaves: of this one, a power of two. spans[n_spans]
 * (copied): the parameters to train, ascending; the others keep their bits. NULL: all of them. */
void wz_optimizer_init(struct wz_optimizer *opt, struct wz_model *model, const struct wz_span *spans, int n_spans,
                       int leaves, const struct wz_group *group);
void wz_optimizer_finish(struct wz_optimizer *opt);
float *wz_optimizer_leaf(struct wz_optimizer *opt);    /* a zeroed buffer for the next leaf's gradient */
void wz_optimizer_leaf_done(struct wz_optimizer *opt); /* adds it to the tree */
/* Sums over the group, clips, updates and gathers the shards, commits the model as its next version. Returns the norm
 * of the spans' gradient before clipping. Where that is not finite, or its clipped square (a second moment) not as f32,
 * nothing changes but the version, and skipped and not_finite count it. */
double wz_optimizer_step(struct wz_optimizer *opt, struct wz_link *link, const struct wz_group *group,
                         const struct wz_adamw *how, int steps);
/* The update of a step without samples: the next version of the same weights, the moments as they were. */
void wz_optimizer_skip(struct wz_optimizer *opt);

/* ---- pack.c: whole sequences as the rows of one forward --------------------------------------------------- */

struct wz_pack {
    struct wz_model *model; /* not owned */
    struct wz_cache *cache;
    struct wz_work *work;
    struct wz_seq *seqs, **seq_list;
    struct wz_seq prefixes[WZ_KEPT];      /* what all sequences begin with, each with the one before it */
    bool tape, share;                     /* share: there may be prefixes */
    int rows, n_seqs, n_rows, n_prefixes; /* rows: capacity, of which a tape keeps the prefixes'; n_rows: in use */
    int grain, unit;                      /* rows of a sequence, and of a prefix, are a multiple of this */
    int *count, *first;                   /* of sequence i: its rows, its first row */
    int *ids, *targets;                   /* of row i; target -1: no loss */
    float *logp, *d_logp;                 /* of row i's target; d_logp is the caller's to fill before backward */
    const float *hidden;                  /* [n_rows, C] of the last forward, in backend memory */
};
void wz_pack_init(struct wz_pack *pack, struct wz_model *model, int rows, bool tape);
void wz_pack_finish(struct wz_pack *pack);
void wz_pack_clear(struct wz_pack *pack);
/* Rows of a sequence that a backward will follow: the backend's grain may make them more than its tokens. Those
 * behind have no loss. */
int wz_pack_rows(int grain, int tokens);
/* Adds a sample's sequence less the prefixes; false: it does not fit, run what is there first. */
bool wz_pack_sample(struct wz_pack *pack, const struct wz_sample *sample);
/* The same of a turn, all of whose ids are trained. */
bool wz_pack_turn(struct wz_pack *pack, const Wz__Turn *turn);
/* Lets a pack with a tape have prefixes, of up to `longest` tokens together; one without always may. */
void wz_pack_share(struct wz_pack *pack, int longest);
int wz_pack_past(const struct wz_pack *pack); /* tokens of the prefixes */
/* In an empty pack: what the sequences to come begin with, n tokens (a multiple of `unit`) behind the prefixes so far,
 * and its forward. pop: drops the last prefix, after its backward into d_params where there is a tape. */
void wz_pack_push(struct wz_pack *pack, const int *ids, int n);
void wz_pack_pop(struct wz_pack *pack, float *d_params);
void wz_pack_forward(struct wz_pack *pack, float temperature); /* fills logp */
void wz_pack_backward(struct wz_pack *pack, float temperature, float *d_params);
/* After the last backward into d_params; clears the pack. */
void wz_pack_backward_end(struct wz_pack *pack, float *d_params);

/* ---- critic.c: a value head, for estimates that need values ------------------------------------------------ */

struct wz_critic {
    struct wz_backend *be;
    int channels;
    float *w, *m,
        *v;       /* [channels + 1] weights and bias, their moments: one block of the host, the same on all learners */
    double *grad; /* [own leaves][channels + 1] */
    float *host;  /* [rows, channels] where the backend has memory of its own */
};
/* rows: of a pack, at most. All zeros. */
void wz_critic_init(struct wz_critic *critic, const struct wz_model *model, int leaves, int rows);
void wz_critic_finish(struct wz_critic *critic); /* accepts zero */
/* values[n] of the rows hidden[n,C] (backend memory) that have a target; 0 of the others. */
void wz_critic_values(struct wz_critic *critic, const float *hidden, const int *targets, int n, double *values);
/* One token's loss; *slope: its derivative by the value. clip 0: none. */
double wz_critic_loss(double value, double old, double target, double clip, double *slope);
/* Adds to the gradient of a leaf (of this learner, from 0) what has the slopes[n] at the rows. */
void wz_critic_back(struct wz_critic *critic, int leaf, const float *hidden, const double *slopes, int n);
/* d_hidden[n,C] (backend memory) += coef * slopes[n] times the weights. */
void wz_critic_through(struct wz_critic *critic, float *d_hidden, const double *slopes, double coef, int n);
/* Sums the leaves of all learners, and updates: step counts from 1 (0: the gradient is dropped). No decay, no clip. */
void wz_critic_step(struct wz_critic *critic, struct wz_link *link, const struct wz_group *group,
                    struct wz_arena *lists, int leaves, const struct wz_adamw *how, double lr, int step);

/* ---- batches.c: samples in micro-batches, what neighbours begin with computed once ------------------------ */

/* Samples [from, to) are in the pack now. */
struct wz_batches {
    struct wz_pack *pack;
    const struct wz_sample *samples;
    float *d_params;
    int from, to, end[WZ_KEPT + 1]; /* end: of all samples; of those that begin with the pack's n-th prefix */
};
/* Samples [from, to), borrowed, through a pack without prefixes; d_params: where their gradient is summed, which with
 * a tape is complete when wz_batches_next has returned false. */
struct wz_batches wz_batches_of(struct wz_pack *pack, const struct wz_sample *samples, int from, int to,
                                float *d_params);
/* Replaces what is in the pack by the next samples: as many as fit, and begin with the same prefixes. False: there are
 * no more, and the pack is empty. */
bool wz_batches_next(struct wz_batches *batches);

/* ---- step.c: one agent that learns ------------------------------------------------------------------------ */

struct wz_learner {
    const char *name; /* the agent's, for messages: borrowed, set after init */
    struct wz_model *model;
    struct wz_pack pack, reference; /* reference.model NULL: no KL penalty */
    struct wz_optimizer opt;
    struct wz_critic critic;   /* w NULL: none */
    double *values, *d_values; /* [rows of the pack] with a critic */
    int agent;
    bool feedback;
    struct wz_arena lists; /* of a step */
};
/* micro: rows of one forward-backward; longest: tokens of the longest sample (at least its rows are made). */
void wz_learner_init(struct wz_learner *l, struct wz_model *model, struct wz_model *reference, int agent, bool feedback,
                     int leaves, const struct wz_group *group, int micro, int longest);
/* Prefixes that a leaf's samples share go forward and back once (batches.c). After init; longest as there. */
void wz_learner_share(struct wz_learner *l, int longest);
/* Gives it a critic, for estimates that need values. After init. */
void wz_learner_criticise(struct wz_learner *l);
void wz_learner_finish(struct wz_learner *l);
/* What a step reports: sums or means over the group; NAN: a mean of nothing. */
struct wz_step_stats {
    double samples, tokens; /* trained on: 0 where no update was made; and of the samples that there were: */
    double reward, spread;  /* their mean reward; the largest less the smallest */
    double kl;              /* mean over samples of the sum of log pi - log pi_ref; NAN without a reference */
    double return_std;      /* of the returns of all their tokens */
    double loss, nll;       /* what is minimised; mean of -log p over the tokens: of sampled ones the entropy */
    double clipped;         /* share of tokens whose slope the clip makes 0 */
    double capped;          /* share of tokens whose importance weight is not their ratio */
    double mismatch,
        max_gap;       /* tokens whose log p is not the rollout's bit for bit (guarantee 1); the most it is off */
    double value_loss; /* the critic's, a mean as the loss is; NAN without one */
    double grad_norm, lr, seconds;
    bool not_finite; /* the gradient was not, so no update was made */
};
/* This learner's samples of a step, ascending in `at`, out of a batch of so many places over all learners. */
struct wz_sample_batch {
    struct wz_sample *samples;
    int n, batch;
    struct wz_moments moments; /* wz_learner_prepare fills it */
    int updates;               /* made from it so far */
};
/* Before the first update from a batch: reference log-probabilities and advantages, as the weights stand; the old
 * log-probabilities are the rollout's, which equal those of the same weights (guarantee 1). Dies if a turn was written
 * by other weights than the model's (guarantee 6). All learners call it. This and the update die with agent, step and
 * sample where a log-probability is not finite. */
void wz_learner_prepare(struct wz_learner *l, const struct wz_learn *how, struct wz_link *link,
                        const struct wz_group *group, struct wz_sample_batch *b, struct wz_step_stats *stats);
/* One update from a prepared batch; steps: updates of this stage. All learners call it, any number of times. */
void wz_learner_update(struct wz_learner *l, const struct wz_learn *how, struct wz_link *link,
                       const struct wz_group *group, struct wz_sample_batch *b, int steps, struct wz_step_stats *stats);
/* Pick, prepare, and how->epochs updates from this rank's episodes (in order of index; its leaves of the step's batch).
 * `batch`: episodes of the whole step; steps: of this stage. stats: mismatch and max_gap are of the first update, what
 * an update does is the last one's. */
void wz_learner_step(struct wz_learner *l, const struct wz_learn *how, struct wz_link *link,
                     const struct wz_group *group, Wz__Episode **episodes, int n, int batch, int steps, uint64_t seed,
                     struct wz_step_stats *stats);
/* Which member of a group of `learners` owns place `index` of a batch. */
int wz_leaf_owner(int index, int batch, int leaves, int learners);

/* ---- sft.c: supervised training --------------------------------------------------------------------------- */

struct wz_sft_set {
    struct wz_sft_example *list;
    int n, longest;
    int64_t tokens;
};
/* Rows of JSON (lines or an array, gzip or not): {"messages": [{"role","content"}...], "train": "all"|"last"}, or
 * {"ids": [...], "from": n}, which is rendered already and has a loss from id n on. `system` is put before
 * conversations that do not begin with a system message; "": nothing is. A turn is trained on up to the first of
 * `stops` (of wz_stops_find) in it. Errors name file and row; examples longer than `context` are errors too. */
int wz_sft_load(struct wz_sft_set *set, const char *path, const char *system, const struct wz_template *chat,
                const struct wz_tokenizer *tok, const struct wz_ids *stops, int context, struct wz_err *err);
void wz_sft_finish(struct wz_sft_set *set); /* accepts zero */
/* Prepare and one update from `batch` examples drawn by (seed, step), so that no cursor need be kept. */
void wz_sft_step(struct wz_learner *l, const struct wz_learn *how, struct wz_link *link, const struct wz_group *group,
                 const struct wz_sft_set *set, int batch, int64_t step, int steps, uint64_t seed,
                 struct wz_step_stats *stats);

#endif
