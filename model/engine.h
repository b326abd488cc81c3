/* The engine: continuous batching. It generates tokens for many sequences at once, for rollouts, judges, `generate`. */
#ifndef WZ_ENGINE_H
#define WZ_ENGINE_H

#include "model/model.h"

/* What to generate and how. Filled by the caller, results by the engine. */
struct wz_request {
    const int *context;
    int n_context; /* prompt ids, at least 1 */
    int max_tokens;
    float temperature, top_p, min_p;
    int top_k;
    struct wz_key key; /* d is overwritten by the position of each token in the turn (law 2) */
    /* results */
    int *ids;
    float *logp;
    int n;               /* heap, owned by the request: wz_request_finish */
    bool stopped;        /* a stop token ended it (it is in ids); false: limit or context reached */
    const char *problem; /* static text: why nothing could be generated; NULL: fine */
};
void wz_request_finish(struct wz_request *request);

/* A model that generates. Weights are borrowed; the cache is the engine's. */
struct wz_engine;
/* rows: sequences at once; page: tokens a cache page; longest: tokens of a sequence at most, prompt included (0, or
 * more than the model's context: the context); pages 0: enough for twice `rows` such sequences. */
struct wz_engine *wz_engine_create(struct wz_model *model, int rows, int page, int pages, int longest);
void wz_engine_destroy(struct wz_engine *engine);
/* What such an engine takes in the backend's memory: keys and values (half: kept in bf16), and the buffers of its
 * forwards; and in the host's: the ids of what is cached. */
struct wz_engine_bytes {
    size_t cache, work, ids;
};
struct wz_engine_bytes wz_engine_bytes(const struct wz_config *config, bool half, int rows, int page, int pages,
                                       int longest);
/* Generates all requests; those that share the beginning of a context with an earlier request still cached reuse its
 * pages. Results do not depend on order, on rows, or on what else is in the batch. `stops`: ids that end a turn. */
void wz_engine_run(struct wz_engine *engine, struct wz_request *requests, int n, const int *stops, int n_stops);
/* Forgets every cached key and value: call whenever the weights changed (law 6 checks it on use). */
void wz_engine_flush(struct wz_engine *engine);
struct wz_engine_stats {
    int64_t prefilled, reused, generated;
    double seconds;
};
struct wz_engine_stats wz_engine_stats(const struct wz_engine *engine); /* since create */

#endif
