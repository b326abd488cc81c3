/* The engine: continuous batching with a prefix cache.
 *
 *   waiting ─▶ admit (fork a cached prefix, reserve pages for the worst case) ─▶ running
 *   every step, one forward over:  the next token of each decoding sequence  +  chunks of the prompts still to be read
 *   sequences whose prompt is read sample a token; finished ones stay in the prefix cache until pages run short
 *
 * One forward serves prefill and decode, and the bits of a sequence do not depend on the others of its batch, so
 * neither order nor max_num_seqs shows in the results (guarantees 1 and 2). Pages for n_prompt + max_tokens are
 * reserved at admission: an admitted sequence always finishes, and nothing is ever preempted.
 */
#include "model/engine.h"

#include <assert.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Tokens and their keys and values. */
struct tokens {
    struct wz_seq seq;
    int *ids; /* [max_seq_len], seq.len of them in the cache */
};

struct running {
    struct wz_request *request; /* NULL: free */
    struct tokens *tokens;
    int n_ids; /* prompt + sampled so far: all but the last must be in the cache before the next sample */
};

struct wz_engine {
    struct wz_model *model;
    struct wz_cache *cache;
    struct wz_work *work;
    int max_num_seqs, max_batch, max_seq_len, unfinished;
    bool busy;                  /* some request was unfinished after the last step */
    uint64_t version;           /* of the weights that the cache is of */
    struct running *running;    /* [max_num_seqs] */
    struct wz_request *waiting; /* a list, the next to be admitted first */
    struct tokens *tokens;      /* [n_tokens]: those of running sequences and of the prefix cache, and free ones */
    int n_tokens;
    struct tokens **prefixes; /* [max_prefixes], the prefix cache, oldest first */
    int n_prefixes, max_prefixes;
    struct tokens **free_tokens; /* [n_tokens] */
    int n_free;
    int *all_ids; /* [n_tokens, max_seq_len], the ids of each of tokens */
    struct wz_engine_stats stats;
    /* one step's batch */
    struct wz_seq **seqs;
    int *count, *ids, *last, *sampler, *token;
    float *logp;
    struct wz_pick *picks;
};

enum {
    CHUNK = 512,     /* tokens of one forward beyond the decoding ones: bounds scratch, not results */
    PREFIXES = 8,    /* cached prefixes for each running sequence */
    MIN_SHARED = 16, /* tokens that all requests must begin with for it to be read ahead of them */
};

void wz_request_finish(struct wz_request *r)
{
    free(r->ids);
    free(r->logp);
    r->ids = NULL;
    r->logp = NULL;
    r->n = 0;
}

static int seq_len_of(const struct wz_config *config, int max_seq_len)
{
    return max_seq_len <= 0 || max_seq_len > config->context ? config->context : max_seq_len;
}

static int pages_of(int max_num_seqs, int page_tokens, int pages, int max_seq_len)
{
    /* as much again for cached prefixes */
    int64_t enough = 2 * (int64_t)max_num_seqs * ((max_seq_len + page_tokens - 1) / page_tokens);

    return pages > 0 ? pages : enough < INT_MAX ? (int)enough : INT_MAX;
}

/* One for each running sequence, the cached prefixes, and one that is being made. */
static int tokens_of(int max_num_seqs) { return (1 + PREFIXES) * max_num_seqs + 1; }

struct wz_engine *wz_engine_create(struct wz_model *model, int max_num_seqs, int page_tokens, int pages,
                                   int max_seq_len)
{
    struct wz_engine *e = wz_alloc(sizeof *e);
    size_t n = (size_t)max_num_seqs, n_tokens = (size_t)tokens_of(max_num_seqs);

    e->model = model;
    e->version = model->version;
    e->max_num_seqs = max_num_seqs;
    e->max_batch = max_num_seqs + CHUNK;
    e->max_seq_len = max_seq_len = seq_len_of(&model->config, max_seq_len);
    e->cache = wz_cache_create(model, pages_of(max_num_seqs, page_tokens, pages, max_seq_len), page_tokens);
    e->work = wz_work_create(model, e->max_batch, false);
    e->max_prefixes = PREFIXES * max_num_seqs;
    e->n_tokens = e->n_free = (int)n_tokens;
    e->tokens = wz_alloc(sizeof *e->tokens * n_tokens);
    e->prefixes = wz_alloc(sizeof *e->prefixes * (size_t)e->max_prefixes);
    e->free_tokens = wz_alloc(sizeof *e->free_tokens * n_tokens);
    e->all_ids =
        wz_host_alloc(model->be, wz_mul(n_tokens * sizeof(int), (size_t)max_seq_len), "prefix-cache token ids");
    for (size_t i = 0; i < n_tokens; i++) {
        e->tokens[i].ids = e->all_ids + i * (size_t)max_seq_len;
        wz_seq_prealloc(e->cache, &e->tokens[i].seq, max_seq_len);
        e->free_tokens[i] = &e->tokens[i];
    }
    wz_work_prealloc(e->work, e->cache, max_num_seqs + 1, max_seq_len);
    e->running = wz_alloc(sizeof *e->running * n);
    e->seqs = wz_alloc(sizeof *e->seqs * n);
    e->count = wz_alloc(sizeof *e->count * n);
    e->ids = wz_alloc(sizeof *e->ids * (size_t)e->max_batch);
    e->last = wz_alloc(sizeof *e->last * n);
    e->sampler = wz_alloc(sizeof *e->sampler * n);
    e->token = wz_alloc(sizeof *e->token * n);
    e->logp = wz_alloc(sizeof *e->logp * n);
    e->picks = wz_alloc(sizeof *e->picks * n);
    return e;
}

void wz_engine_destroy(struct wz_engine *e)
{
    if (!e) return;
    for (int i = 0; i < e->n_tokens; i++) wz_seq_finish(e->cache, &e->tokens[i].seq);
    wz_work_destroy(e->work);
    wz_cache_destroy(e->cache);
    wz_host_free(e->model->be, e->all_ids);
    void *const arrays[] = { e->running, e->tokens,  e->prefixes, e->free_tokens, e->seqs,  e->count, e->ids,
                             e->last,    e->sampler, e->token,    e->logp,        e->picks, e };
    for (size_t i = 0; i < WZ_COUNT(arrays); i++) free(arrays[i]);
}

struct wz_engine_stats wz_engine_stats(const struct wz_engine *e) { return e->stats; }

/* ---- the prefix cache ------------------------------------------------------------------------------------- */

static void tokens_free(struct wz_engine *e, struct tokens *tokens)
{
    wz_seq_release(e->cache, &tokens->seq);
    e->free_tokens[e->n_free++] = tokens;
}

static void evict_oldest(struct wz_engine *e)
{
    tokens_free(e, e->prefixes[0]);
    memmove(e->prefixes, e->prefixes + 1, sizeof *e->prefixes * (size_t)--e->n_prefixes);
}

static void cache_prefix(struct wz_engine *e, struct tokens *tokens)
{
    if (e->n_prefixes == e->max_prefixes) evict_oldest(e);
    e->prefixes[e->n_prefixes++] = tokens;
}

void wz_engine_flush(struct wz_engine *e)
{
    while (e->n_prefixes) tokens_free(e, e->prefixes[--e->n_prefixes]);
    e->version = e->model->version;
}

static int common(const int *a, int na, const int *b, int nb)
{
    int n = na < nb ? na : nb, i = 0;

    while (i < n && a[i] == b[i]) i++;
    return i;
}

/* The ids of a prompt with pages for n_prompt + more tokens, forked from the cached prefix that has most of them. NULL:
 * too few pages. Running sequences and cached prefixes never hold all of e->tokens. */
static struct tokens *tokens_start(struct wz_engine *e, const int *prompt, int n_prompt, int more)
{
    struct tokens *tokens = e->free_tokens[e->n_free - 1];
    const struct tokens *best = NULL;
    int shared = 0;

    for (int i = 0; i < e->n_prefixes; i++) {
        int n = common(prompt, n_prompt - 1, e->prefixes[i]->ids, e->prefixes[i]->seq.len);
        if (n <= shared) continue;
        shared = n;
        best = e->prefixes[i];
    }
    if (best && !wz_seq_fork(e->cache, &tokens->seq, &best->seq, shared)) return NULL;
    if (!wz_seq_reserve(e->cache, &tokens->seq, n_prompt - tokens->seq.len + more)) {
        wz_seq_release(e->cache, &tokens->seq);
        return NULL;
    }
    if (best) e->stats.reused += shared;
    memcpy(tokens->ids, prompt, sizeof *prompt * (size_t)n_prompt);
    e->n_free--;
    return tokens;
}

/* What all waiting requests begin with (a system prompt, most often) is read once, before any of them is admitted. */
static void read_common_prefix(struct wz_engine *e)
{
    const struct wz_request *first = e->waiting;
    int shared = first->n_prompt - 1;
    struct tokens *tokens;

    for (const struct wz_request *r = first->next; r; r = r->next)
        shared = common(first->prompt_ids, shared, r->prompt_ids, r->n_prompt - 1);
    if (!first->next || shared < MIN_SHARED || shared >= e->max_seq_len) return;
    if (!(tokens = tokens_start(e, first->prompt_ids, shared, 0))) return;
    while (tokens->seq.len < shared) {
        int k = shared - tokens->seq.len < e->max_batch ? shared - tokens->seq.len : e->max_batch;
        struct wz_seq *seq = &tokens->seq;
        struct wz_batch batch = { 1, &seq, &k, tokens->ids + seq->len };
        wz_forward(e->model, e->cache, e->work, &batch);
        e->stats.prefilled += k;
    }
    cache_prefix(e, tokens);
}

/* ---- requests --------------------------------------------------------------------------------------------- */

/* Nothing here touches the request after its callback. */
static void finish(struct wz_engine *e, struct wz_request *r, enum wz_finish_reason reason, const char *problem)
{
    r->finish_reason = reason;
    r->problem = problem;
    if (--e->unfinished == 0) e->busy = false;
    if (r->on_finish) r->on_finish(r);
}

static int64_t length(const struct wz_request *r) { return (int64_t)r->n_prompt + r->max_tokens; }

/* Puts a request behind those that wait, or only behind those that are as long. */
static void enqueue(struct wz_engine *e, struct wz_request *r, bool longest_first)
{
    struct wz_request **at = &e->waiting;

    while (*at && (!longest_first || length(*at) >= length(r))) at = &(*at)->next;
    r->next = *at;
    *at = r;
    r->n = 0;
    r->finish_reason = WZ_UNFINISHED;
    e->unfinished++;
}

void wz_engine_submit(struct wz_engine *e, struct wz_request *r) { enqueue(e, r, false); }

void wz_engine_cancel(struct wz_engine *e, struct wz_request *r)
{
    struct wz_request **at = &e->waiting;
    int i = 0;

    while (*at && *at != r) at = &(*at)->next;
    while (i < e->max_num_seqs && e->running[i].request != r) i++;
    if (*at) {
        *at = r->next;
    } else if (i < e->max_num_seqs) {
        e->running[i].request = NULL;
        tokens_free(e, e->running[i].tokens);
    } else {
        return;
    }
    finish(e, r, WZ_FINISH_CANCELLED, NULL);
}

/* Takes the first waiting request from the list. False: it has to wait for pages. */
static bool admit(struct wz_engine *e, struct running *to)
{
    struct wz_request *r = e->waiting;
    int left = e->max_seq_len - r->n_prompt, most = r->max_tokens < left ? r->max_tokens : left;
    struct tokens *tokens = NULL;

    if (r->n_prompt > 0 && most > 0)
        while (!(tokens = tokens_start(e, r->prompt_ids, r->n_prompt, most))) {
            if (e->n_prefixes) evict_oldest(e);
            else if (e->n_free < e->n_tokens) return false; /* some sequence is running */
            else break;
        }
    e->waiting = r->next;
    if (r->n_prompt < 1) finish(e, r, WZ_FINISH_FAILED, "the prompt is empty");
    else if (left < 1) finish(e, r, WZ_FINISH_FAILED, "the prompt fills the context");
    else if (most < 1) finish(e, r, WZ_FINISH_LENGTH, NULL);
    else if (!tokens) /* run/account.c knows the reason by this text */
        finish(e, r, WZ_FINISH_FAILED, "the prompt needs more cache pages than there are");
    else {
        *to = (struct running){ r, tokens, r->n_prompt };
        r->ids = wz_realloc(r->ids, sizeof *r->ids * (size_t)most);
        r->logp = wz_realloc(r->logp, sizeof *r->logp * (size_t)most);
    }
    return true;
}

static enum wz_finish_reason reason_of(const struct wz_engine *e, const struct wz_request *r)
{
    for (int k = 0; k < r->n_stops; k++)
        if (r->ids[r->n - 1] == r->stop_ids[k]) return WZ_FINISH_STOP;
    if (r->n == r->max_tokens) return WZ_FINISH_LENGTH;
    return r->n_prompt + r->n == e->max_seq_len ? WZ_FINISH_CONTEXT : WZ_UNFINISHED;
}

static void take_token(struct wz_engine *e, struct running *running, int token, float logp)
{
    struct wz_request *r = running->request;

    if (!r) return; /* cancelled by a callback of this step */
    if (!isfinite(logp)) {
        running->request = NULL;
        tokens_free(e, running->tokens);
        finish(e, r, WZ_FINISH_NOT_FINITE, "a log-probability is not finite: the model's numbers overflow");
        return;
    }
    r->ids[r->n] = token;
    r->logp[r->n++] = logp;
    running->tokens->ids[running->n_ids++] = token;
    r->finish_reason = reason_of(e, r);
    if (r->on_token) r->on_token(r);
    if (running->request != r || !r->finish_reason) return;
    running->request = NULL;
    cache_prefix(e, running->tokens);
    finish(e, r, r->finish_reason, NULL);
}

/* Of the batch just computed: the log-probabilities that requests want of their first token, many at a time, since the
 * head is read as a whole each time. */
static void score_tokens(struct wz_engine *e, int n_sampled)
{
    int n = 0, most = 0;

    for (int s = 0; s < n_sampled; s++) {
        const struct wz_request *r = e->running[e->sampler[s]].request;
        most += r->n ? 0 : r->n_scored;
    }
    if (!most) return;
    int *rows = wz_alloc(sizeof *rows * (size_t)most), *targets = wz_alloc(sizeof *targets * (size_t)most);
    float *logp = wz_alloc(sizeof *logp * (size_t)most);
    for (int s = 0; s < n_sampled; s++) {
        const struct wz_request *r = e->running[e->sampler[s]].request;
        for (int i = 0; !r->n && i < r->n_scored; i++) {
            rows[n] = e->last[s];
            targets[n++] = r->scored[i];
        }
    }
    for (int at = 0, k; at < n; at += k) {
        k = n - at < e->max_batch ? n - at : e->max_batch;
        wz_score_rows(e->model, e->work, rows + at, targets + at, k, logp + at);
    }
    n = 0;
    for (int s = 0; s < n_sampled; s++) {
        const struct wz_request *r = e->running[e->sampler[s]].request;
        for (int i = 0; !r->n && i < r->n_scored; i++) r->scores[i] = logp[n++];
    }
    free(rows);
    free(targets);
    free(logp);
}

static void forward_and_sample(struct wz_engine *e)
{
    struct wz_batch batch = { 0, e->seqs, e->count, e->ids };
    int n = 0, n_sampled = 0;

    for (int i = 0; i < e->max_num_seqs; i++) {
        struct running *running = &e->running[i];
        if (!running->request) continue;
        struct tokens *tokens = running->tokens;
        int k = running->n_ids - tokens->seq.len; /* 1 when decoding, more while the prompt is read */
        if (k > e->max_batch - n) k = e->max_batch - n;
        if (!k) continue;
        memcpy(e->ids + n, tokens->ids + tokens->seq.len, sizeof *e->ids * (size_t)k);
        e->seqs[batch.n_seqs] = &tokens->seq;
        e->count[batch.n_seqs++] = k;
        n += k;
        if (tokens->seq.len + k < running->n_ids) continue;
        struct wz_request *r = running->request;
        struct wz_key key = r->key;
        key.d = (uint32_t)r->n;
        e->last[n_sampled] = n - 1;
        e->sampler[n_sampled] = i;
        e->picks[n_sampled++] = (struct wz_pick){ r->temperature, r->top_p, r->min_p, r->top_k, wz_uniform(key) };
    }
    if (!n) return;
    wz_forward_sample(e->model, e->cache, e->work, &batch,
                      &(struct wz_samples){ n_sampled, e->last, e->picks, e->token, e->logp });
    score_tokens(e, n_sampled);
    e->stats.prefilled += n - n_sampled;
    e->stats.generated += n_sampled;
    for (int s = 0; s < n_sampled; s++) take_token(e, &e->running[e->sampler[s]], e->token[s], e->logp[s]);
}

int wz_engine_step(struct wz_engine *e)
{
    double begin = wz_now();
    bool admitted = true;

    if (!e->busy && e->waiting) {
        if (e->version != e->model->version) wz_engine_flush(e);
        read_common_prefix(e);
    }
    assert(!e->busy || e->version == e->model->version); /* guarantee 6: keys and values are of the weights in use */
    for (int i = 0; i < e->max_num_seqs; i++)
        while (admitted && !e->running[i].request && e->waiting) admitted = admit(e, &e->running[i]);
    forward_and_sample(e);
    e->busy = e->unfinished > 0;
    e->stats.seconds += wz_now() - begin;
    return e->unfinished;
}

/* The longest first, so that what is left in the end is short and the batch stays full. */
void wz_engine_run(struct wz_engine *e, struct wz_request *requests, int n)
{
    for (int i = 0; i < n; i++) enqueue(e, &requests[i], true);
    while (wz_engine_step(e)) {
    }
}
