/* The engine: continuous batching. One object generates for the rollout, the judges and the commands. */
#ifndef WZ_ENGINE_H
#define WZ_ENGINE_H

#include "model/model.h"

enum wz_finish_reason {
    WZ_UNFINISHED,     /* waiting or running */
    WZ_FINISH_STOP,    /* a stop id was sampled; it is the last of ids */
    WZ_FINISH_LENGTH,  /* max_tokens */
    WZ_FINISH_CONTEXT, /* prompt and answer fill max_seq_len */
    WZ_FINISH_CANCELLED,
    WZ_FINISH_FAILED,     /* nothing was generated; `problem` says why */
    WZ_FINISH_NOT_FINITE, /* the next token has no log-probability that is finite; `problem` likewise */
};

/* What to generate and how, filled in by the caller, and the results. The request, its prompt_ids and its stop_ids stay
 * where they are until it is finished. */
struct wz_request {
    const int *prompt_ids; /* [n_prompt], at least 1 */
    int n_prompt;
    const int *stop_ids; /* [n_stops] */
    int n_stops;
    int max_tokens;
    float temperature, top_p, min_p; /* as of struct wz_pick */
    int top_k;
    struct wz_key key; /* of each draw; d is overwritten by the position of the token in the answer */
    const int *scored; /* [n_scored] tokens whose log-probability as the first of the answer is wanted; NULL: none */
    int n_scored;
    float *scores; /* [n_scored], the caller's: they are written here, at temperature 1 */
    /* Called from wz_engine_step, NULL: not called. Both may submit and cancel, but not step. */
    void (*on_token)(struct wz_request *request);  /* after each token, the last of ids; finish_reason is set already */
    void (*on_finish)(struct wz_request *request); /* once, last of all: it may free the request or submit it again */
    void *arg;                                     /* the caller's, for the callbacks */
    /* Results. */
    int *ids;    /* [n], heap, until wz_request_finish; a request submitted again uses them again */
    float *logp; /* [n] log-probability of each at `temperature` (at 1 where it is 0), before top-k, top-p and min-p */
    int n;
    enum wz_finish_reason finish_reason;
    const char *problem;     /* static text; NULL: there was none */
    struct wz_request *next; /* the engine's: the request that waits behind this one */
};
void wz_request_finish(struct wz_request *request); /* frees the results */

/* A model that generates. Weights are borrowed; the cache is the engine's. */
struct wz_engine;
/* max_num_seqs: sequences at once; kv_page_tokens: tokens of a cache page; kv_pages: pages, 0: enough for twice
 * max_num_seqs sequences; max_seq_len: tokens of a sequence at most, prompt included (0, or more than the model's
 * context: the context). */
struct wz_engine *wz_engine_create(struct wz_model *model, int max_num_seqs, int kv_page_tokens, int kv_pages,
                                   int max_seq_len);
void wz_engine_destroy(struct wz_engine *engine); /* accepts NULL; unfinished requests are dropped without a call */
/* Queues a request behind those that wait. Its ids and log-probabilities do not depend on what else is queued, running
 * or cached, or on any size of the engine. */
void wz_engine_submit(struct wz_engine *engine, struct wz_request *request);
/* Admits what fits, runs one forward, and samples a token for every sequence whose prompt is read. Returns how many
 * requests are unfinished. */
int wz_engine_step(struct wz_engine *engine);
/* Ends a waiting or running request now: it keeps the tokens it has and gives its cache pages back. No effect on any
 * other. */
void wz_engine_cancel(struct wz_engine *engine, struct wz_request *request);
/* Submits requests[0..n), the longest first, and steps until none is unfinished. */
void wz_engine_run(struct wz_engine *engine, struct wz_request *requests, int n);

/* Empties the prefix cache. The engine does it by itself when the weights' version has changed since it last was idle;
 * they may not change while requests run. */
void wz_engine_flush(struct wz_engine *engine);
struct wz_engine_stats {
    int64_t prefilled, reused, generated; /* tokens: read, found in the prefix cache, sampled */
    double seconds;                       /* in wz_engine_step */
};
struct wz_engine_stats wz_engine_stats(const struct wz_engine *engine); /* since create */

#endif
