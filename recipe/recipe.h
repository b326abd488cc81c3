/* The recipe: everything a run is made of, as YAML. The struct is the file: one field a key, in the file's order.
 * Unknown keys, wrong types and values out of range are errors with the file's line. Every key can be overridden on the
 * command line by its path: seed=2  stages.0.steps=10  agents.feedback.model=DIR  stages.stage2.agents.feedback.lr=3e-5
 * (an element of a list by index or by its name). Relative paths are taken from the working folder. */
#ifndef WZ_RECIPE_H
#define WZ_RECIPE_H

#include "base/base.h"

/* Where a data set is and which columns mean what; see wz_prompts_load. */
struct wz_recipe_data {
    char *path;
    char *column;  /* text; default "prompt" */
    char *harmful; /* column or =harmful / =benign; default "harmful" */
    char *kind;    /* column or =NAME; default: the file's name */
    int limit;     /* 0: all; else the first `limit` after a keyed shuffle */
};

struct wz_recipe_share {
    char *kind;
    double share;
};

/* An agent: its own weights, its own optimizer. Agents are a list (law 11). */
struct wz_recipe_agent {
    char *name;
    char *role;     /* conversation | feedback */
    char *model;    /* hub folder or GGUF; the reference model is these weights at a stage's start */
    char *system;   /* file with the system prompt; empty: none */
    char *chat;     /* chat template by name; empty: what the model's files ask for */
    char *type;     /* f32 | bf16; what trains in bf16 has f32 masters and moments */
    int max_tokens; /* sampled tokens a turn, at most */
    double temperature, top_p,
        min_p; /* log-probabilities are of softmax(z / temperature) before the filters: training */
    int top_k; /* on filtered samples is off-policy by what the filters cut off */
};

/* How one agent learns in one stage. An agent not listed is frozen. */
struct wz_recipe_learn {
    char *name;                                            /* the agent */
    double lr, warmup, min_lr_ratio;                       /* peak; warm-up steps; cosine ends at min_lr_ratio * lr */
    double beta1, beta2, eps, weight_decay, max_grad_norm; /* AdamW, global-norm clip */
    double kl_coef, clip_eps;                              /* beta and epsilon of eq. 3.3 and 4 */
    char *loss_mean;             /* sequence (eq. 4: mean of each sample's mean) | token (mean over all tokens) */
    double alpha, lambda, gamma; /* eq. 2; conversation agents ignore them */
    char *feedback_bonus; /* feedback: dir (eq. 2) | outcome (R_c of the next reply, whatever the label: ablation) */
    double revision_prob; /* conversation: probability of a type-B sample where there was a revision; 0.5 */
};

struct wz_recipe_stage {
    char *name;
    int steps, batch; /* episodes a step */
    struct wz_recipe_share *mix;
    unsigned n_mix; /* shares by kind of prompt; empty: all prompts, shuffled, in turn */
    struct wz_recipe_learn *agents;
    unsigned n_agents;
};

struct wz_recipe {
    char *name;
    uint64_t seed;
    char *out;       /* the run's folder */
    char *backend;   /* auto | ref | cpu | cuda */
    char *link;      /* auto | self | mpi | nccl */
    int threads;     /* a rank; 0: its share of the cores in its affinity mask */
    double deadline; /* seconds any wait may last */
    struct {
        int rollout, reward, learner;
    } ranks; /* all 0: decided from the number of ranks */
    struct wz_recipe_agent *agents;
    unsigned n_agents;
    struct {
        int max_rounds; /* T_max */
        int kv_pages,
            /* cache pages a rollout rank holds per agent (0: what max_rows sequences need), tokens a page */
            kv_page_tokens;
        int max_num_seqs; /* sequences generated together, at most */
        int max_seq_len;  /* tokens of a sequence at most, prompt included; 0: the model's context */
    } rollout;
    struct {
        char *name;    /* rules */
        char *phrases; /* refusal phrases, one a line; empty: built in */
        char *world;   /* yes: prompts of the sandbox world's language are judged by its grammar; no */
        int retries;   /* a failed judgement is asked again up to this often */
    } judge;
    int leaves; /* runs of episodes that a step's gradient is summed from: a power of two; learner ranks divide it */
    int micro_batch_tokens; /* rows of a forward-backward on a learner, at most; 0: the longest sample's need */
    /* Activations of a forward-backward. none: all are kept | layers: only the layers' inputs, the rest is computed
     * again on the way back (gradient checkpointing): the same bits, a fraction of the memory, an update takes a fifth
     * longer (build/bench/step --recompute). */
    char *activation_checkpointing;
    /* Where the weights of reference models are. device: where all else is that computes | host: in the host's memory,
     * for a backend with memory of its own; they are brought into that of a gradient while they are read: the same
     * bits, and a step takes as long longer as it takes to send them. */
    char *reference_location;
    struct wz_recipe_data *data;
    unsigned n_data; /* training prompts */
    struct wz_recipe_data *eval;
    unsigned n_eval; /* held-out prompts */
    struct {
        int every, eval_limit;
        double temperature;
    } evaluate; /* every N steps (0: only before and after); prompts a kind (0: all) */
    struct {
        int every, keep;
    } checkpoint; /* steps between; how many to keep (0: all) */
    struct wz_recipe_stage *stages;
    unsigned n_stages;
    struct {
        char *model, *data, *out; /* start folder, JSONL conversations, folder to write */
        char *system;             /* file with the system prompt of conversations that have none; empty: none */
        char *chat;
        char *type; /* f32 | bf16: while it trains it has f32 masters, what is written is bf16 */
        int steps, batch;
        double lr, warmup, min_lr_ratio, beta1, beta2, eps, weight_decay, max_grad_norm;
    } sft;
};

/* overrides: n strings key=value. Fills every default. 0, or -1 and a sentence with file, line and key. */
int wz_recipe_load(struct wz_recipe **recipe, const char *path, char *const *overrides, int n, struct wz_err *err);
/* The resolved recipe: every key with its value; loads back to the same struct. */
int wz_recipe_save(const struct wz_recipe *recipe, const char *path, struct wz_err *err);
void wz_recipe_destroy(struct wz_recipe *recipe);

/* Lookups that die never: NULL / -1 when absent. */
int wz_recipe_agent(const struct wz_recipe *recipe, const char *name);
bool wz_recipe_learns(const struct wz_recipe *recipe, const char *agent); /* in any stage */
const struct wz_recipe_learn *wz_recipe_learn(const struct wz_recipe_stage *stage, const char *agent);

#endif
