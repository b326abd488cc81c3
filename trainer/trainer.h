/* trainer: episodes in, weights out. REINFORCE++ for one agent (paper section 3.3), and the supervised warm start.
 *
 *   episodes ─▶ pick samples ─▶ reference ─▶ returns ─▶ whiten ─▶
 *               loss, backward, leaf by leaf ─▶ tree sum ─▶ clip, AdamW ─▶ commit
 *
 * A step's gradient is a sum over episodes in a fixed shape (law 2): the batch is cut into `leaves` equal runs of
 * episodes; inside a leaf one chain in order of episodes, between leaves a binary tree. A learner rank owns an equal,
 * aligned share of the leaves, so 1, 2, 4, ... ranks and any micro-batch give the same bits.
 */
#ifndef WZ_TRAINER_H
#define WZ_TRAINER_H

#include "comm/comm.h"
#include "model/model.h"
#include "proto/proto.h"

/* ---- advantage.c: pure arithmetic ------------------------------------------------------------------------- */

/* out[n]: A_i = reward - kl * sum_{t >= i} (logp_t - ref_t)   (section 3.3; ref NULL: no penalty) */
void wz_returns(double reward, double kl, const float *logp, const float *ref, int n, float *out);
/* Mean and 1/std over all action tokens from per-sample sums, added in order: sums[n_samples][3] = {sum A, sum A^2,
 * tokens}. The variance is clamped at 1e-8, so equal returns whiten to 0, never NaN. */
struct wz_moments {
    double mean, rstd, tokens, samples;
};
struct wz_moments wz_moments(const double *sums, int n_samples);
/* d J / d logp_i of eq. 4 for one token, before the averages: ratio * advantage where the clip is not active, else
 * 0. */
double wz_surrogate_slope(double logp, double logp_old, double advantage, double epsilon);

/* ---- schedule.c ------------------------------------------------------------------------------------------- */

/* Learning rate of update `step` (from 0) of `steps`: linear warm-up over `warmup` updates, then cosine to floor *
 * peak. */
double wz_learning_rate(double peak, double warmup, double floor, int step, int steps);

/* ---- sample.c: from a trajectory to at most one sample of an agent (section 3.2) -------------------------- */

/* The turn of `e` that agent trains on, or NULL. Feedback agents: one of their rounds, uniformly. Conversation
 * agents: c_0, or, where there was a revision, the last reply with probability `revision`. Drawn by (seed, step,
 * episode, agent). */
Wz__Turn *wz_sample_pick(const Wz__Episode *e, int agent, bool feedback, double revision, uint64_t seed);

/* ---- optimizer.c ------------------------------------------------------------------------------------------ */

struct wz_adamw {
    double lr, warmup, floor, beta1, beta2, eps, decay, clip;
};
/* Gradient buffers of a fixed tree, each of the model's n_params floats, and AdamW's moments of this learner's shard
 * of them, all in backend memory. Gradients are not shared out: a leaf is one chain over its micro-batches, and has
 * to be whole before the tree adds it (law 2). */
struct wz_optimizer {
    struct wz_model *model;
    struct wz_shard shard;
    float *m, *v, *grad[8];          /* m, v: [shard.n] */
    double *sums;                    /* host: squares of the shard's gradient, by block */
    float *norms;                    /* host: those of the shard, of a bf16 model */
    int levels, leaves, leaf, steps; /* steps: updates done */
    bool filled[8];
    int64_t skipped; /* updates not made: the gradient was not finite, or there was no sample */
};
/* group: of all learners, the one that a bf16 model was made for; leaves: of this one, a power of two. */
void wz_optimizer_init(struct wz_optimizer *opt, struct wz_model *model, int leaves, const struct wz_group *group);
void wz_optimizer_finish(struct wz_optimizer *opt);
struct wz_optimizer_bytes {
    size_t moments, gradients;
}; /* in the backend's memory; moments: of who has most */
struct wz_optimizer_bytes wz_optimizer_bytes(size_t params, int leaves, int learners);
float *wz_optimizer_leaf(struct wz_optimizer *opt);    /* a zeroed buffer for the next leaf's gradient */
void wz_optimizer_leaf_done(struct wz_optimizer *opt); /* joins it to the tree */
/* Sums over the group, clips, updates and gathers the shards, commits the model as its next version. Returns the norm
 * before clipping; where it is not finite nothing changes but the version, and `skipped` counts it. */
double wz_optimizer_step(struct wz_optimizer *opt, struct wz_link *link, const struct wz_group *group,
                         const struct wz_adamw *how, int steps);
/* The update of a step without samples: the next version of the same weights, the moments as they were. */
void wz_optimizer_skip(struct wz_optimizer *opt);

/* ---- pack.c: whole sequences as the rows of one forward --------------------------------------------------- */

struct wz_pack {
    struct wz_model *model; /* not owned */
    struct wz_cache *cache;
    struct wz_work *work;
    struct wz_seq *seqs, **seq_list,
        prefix;                          /* prefix: what all sequences begin with, in the cache and not in the rows */
    int rows, n_seqs, n_rows, at, grain; /* at: where the next token is written */
    int *count, *first;                  /* of sequence i: its rows, its first row */
    int *ids, *targets;                  /* of row i; target -1: no loss */
    float *logp, *d_logp;                /* of row i's target; d_logp is the caller's to fill before backward */
};
void wz_pack_init(struct wz_pack *pack, struct wz_model *model, int rows, bool tape);
void wz_pack_finish(struct wz_pack *pack);
struct wz_pack_bytes {
    size_t cache, work;
}; /* in the backend's memory; half: keys and values in bf16 */
struct wz_pack_bytes wz_pack_bytes(const struct wz_config *config, bool half, int rows, bool tape, bool recompute);
void wz_pack_clear(struct wz_pack *pack);
/* Rows of a sequence that a backward will follow: the backend's grain may make them more than its tokens. Those
 * behind have no loss. */
int wz_pack_rows(int grain, int tokens);
bool wz_pack_begin(struct wz_pack *pack, int rows); /* the next sequence, of `rows` tokens; false: full, run first */
void wz_pack_token(struct wz_pack *pack, int id, int target);
bool wz_pack_turn(struct wz_pack *pack,
                  const Wz__Turn *turn); /* context and ids less the prefix, loss on ids; false: full */
void wz_pack_share(struct wz_pack *pack, const int *ids,
                   int n); /* reads the prefix (0: none); a pack with a tape has none */
void wz_pack_forward(struct wz_pack *pack, float temperature); /* fills logp */
void wz_pack_backward(struct wz_pack *pack, float temperature, float *d_params);
void wz_pack_backward_end(struct wz_pack *pack,
                          float *d_params); /* after the last backward into d_params; clears the pack */

/* ---- step.c: one agent that learns ------------------------------------------------------------------------ */

struct wz_learn {
    struct wz_adamw adamw;
    double kl, epsilon, revision, temperature; /* temperature: of the rollouts; log-probabilities are taken at it */
    bool token_mean;                           /* else eq. 4: mean over samples of the mean over tokens */
};
struct wz_learner {
    struct wz_model *model;
    struct wz_pack pack, reference; /* reference.model NULL: no KL penalty */
    struct wz_optimizer opt;
    int agent;
    bool feedback;
    struct wz_arena lists; /* of a step */
};
/* micro: rows of one forward-backward; longest: tokens of the longest sample (at least its rows are made). */
void wz_learner_init(struct wz_learner *l, struct wz_model *model, struct wz_model *reference, int agent, bool feedback,
                     int leaves, const struct wz_group *group, int micro, int longest);
void wz_learner_finish(struct wz_learner *l);
/* What a learner takes in the backend's memory besides its model and the reference's weights. */
struct wz_learner_bytes {
    struct wz_optimizer_bytes opt;
    struct wz_pack_bytes pack, reference;
};
struct wz_learner_bytes wz_learner_bytes(const struct wz_config *config, bool half, size_t params, bool reference,
                                         int leaves, int learners, int micro, int longest, bool recompute);

/* What a step says of itself. Sums over the group where they are counts, the group's value else. */
struct wz_step_stats {
    double samples, tokens, reward, kl, clipped, grad_norm, lr, advantage_std, mismatch, max_gap, seconds;
};
/* One update from this rank's episodes (in order of index; its leaves of the step's batch). `batch`: episodes of the
 * whole step; steps: of this stage. Fills trained, ref_logp, advantage of the picked turns. Dies if an episode was
 * written by other weights than the model's (law 6). */
void wz_learner_step(struct wz_learner *l, const struct wz_learn *how, struct wz_link *link,
                     const struct wz_group *group, Wz__Episode **episodes, int n, int batch, int steps, uint64_t seed,
                     struct wz_step_stats *stats);
/* Which member of a group of `learners` owns episode `index` of a batch. */
int wz_leaf_owner(int index, int batch, int leaves, int learners);

/* ---- sft.c: the supervised warm start --------------------------------------------------------------------- */

/* Conversations as token ids with a mask: loss on assistant turns only (their end token included). */
struct wz_sft_example {
    int *ids;
    bool *loss;
    int n;
};
struct wz_sft_set {
    struct wz_sft_example *list;
    int n, longest;
    int64_t tokens;
};
/* JSONL lines {"messages": [{"role","content"}...], "train": "all"|"last"}. `system` is put before conversations
 * that do not begin with a system message; "": nothing is. Errors name file and line; examples longer than `context`
 * are errors too. */
int wz_sft_load(struct wz_sft_set *set, const char *path, const char *system, const struct wz_template *chat,
                const struct wz_tokenizer *tok, int context, struct wz_err *err);
void wz_sft_finish(struct wz_sft_set *set);
/* One update on batch examples drawn by (seed, step); mean over answer tokens. Returns the mean negative
 * log-likelihood. */
double wz_sft_step(struct wz_learner *l, const struct wz_adamw *how, struct wz_link *link, const struct wz_group *group,
                   const struct wz_sft_set *set, int batch, int step, int steps, uint64_t seed, double *grad_norm);

#endif
