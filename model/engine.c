/* The engine: many sequences at once, refilled as they end.
 *
 *   pending ─▶ admit (fork a cached beginning, reserve pages for the worst case) ─▶ row
 *   every round, one forward over:  the next token of each decoding row  +  chunks of the contexts still to be read
 *   rows whose context is read sample a token; rows that stop are kept as cached beginnings until pages run short
 *
 * One forward serves both kinds of row, and a row's bits do not depend on its neighbours, so neither order nor `rows`
 * shows in the results (law 1 and 2). Pages are reserved for context + max_tokens at admission: a row once admitted
 * always ends, and nothing is ever preempted.
 */
#include "model/engine.h"

#include <assert.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* Tokens whose keys and values are in the cache, row or no row. */
struct cached {
    struct wz_seq seq;
    int *ids; /* [longest], seq.len of them in the cache */
};

struct row {
    struct wz_request *request; /* NULL: free */
    struct cached *text;
    int n_ids; /* context + sampled so far: what should be in the cache before the next sample, plus 1 */
};

struct wz_engine {
    struct wz_model *model;
    struct wz_cache *cache;
    struct wz_work *work;
    int n_rows, max_batch, n_texts, n_kept, cap_kept, n_spare, longest; /* longest: tokens of a sequence, at most */
    uint64_t version;
    struct row *rows;
    struct cached *texts, **kept,
        **spare;   /* [n_texts] that there are; kept ones, oldest first; those that nobody has */
    int *text_ids; /* what the texts' ids are carved from */
    struct wz_engine_stats stats;
    struct due {
        int tokens, request;
    } * due; /* a run's requests in the order they are admitted */
    int cap_due;
    /* one round's batch */
    struct wz_seq **seqs;
    int *count, *ids, *last, *sampler, *token;
    float *logp;
    struct wz_pick *picks;
};

enum {
    CHUNK = 512, /* rows of one forward beyond the decoding ones: bounds scratch, not results */
    KEPT = 8,    /* cached beginnings for each row */
};

void wz_request_finish(struct wz_request *r)
{
    free(r->ids);
    free(r->logp);
    r->ids = NULL;
    r->logp = NULL;
    r->n = 0;
}

static int longest_of(const struct wz_config *config, int longest)
{
    return longest <= 0 || longest > config->context ? config->context : longest;
}

static int pages_of(int rows, int page, int pages, int longest)
{
    int64_t enough = 2 * (int64_t)rows * ((longest + page - 1) / page); /* as much again for cached beginnings */

    return pages > 0 ? pages : enough < INT_MAX ? (int)enough : INT_MAX;
}

/* One for each row, the cached beginnings, and one that is being made. */
static int texts_of(int rows) { return (1 + KEPT) * rows + 1; }

static size_t text_bytes(int rows, int longest)
{
    return wz_mul((size_t)texts_of(rows) * sizeof(int), (size_t)longest);
}

struct wz_engine_bytes wz_engine_bytes(const struct wz_config *config, bool half, int rows, int page, int pages,
                                       int longest)
{
    longest = longest_of(config, longest);
    return (struct wz_engine_bytes){ wz_cache_bytes(config, pages_of(rows, page, pages, longest), page, half),
                                     wz_work_bytes(config, rows + CHUNK, false, false), text_bytes(rows, longest) };
}

struct wz_engine *wz_engine_create(struct wz_model *model, int rows, int page, int pages, int longest)
{
    struct wz_engine *e = wz_alloc(sizeof *e);

    e->longest = longest_of(&model->config, longest);
    e->model = model;
    e->n_rows = rows;
    e->max_batch = rows + CHUNK;
    e->cache = wz_cache_create(model, pages_of(rows, page, pages, e->longest), page);
    e->work = wz_work_create(model, e->max_batch, false);
    e->cap_kept = KEPT * rows;
    e->n_texts = e->n_spare = texts_of(rows);
    size_t n = (size_t)e->n_texts;
    e->texts = wz_alloc(sizeof *e->texts * n);
    e->kept = wz_alloc(sizeof *e->kept * n);
    e->spare = wz_alloc(sizeof *e->spare * n);
    e->text_ids = wz_alloc(text_bytes(rows, e->longest));
    for (size_t i = 0; i < n; i++) {
        e->texts[i].ids = e->text_ids + i * (size_t)e->longest;
        wz_seq_room(e->cache, &e->texts[i].seq, e->longest);
        e->spare[i] = &e->texts[i];
    }
    wz_work_room(e->work, e->cache, rows + 1, e->longest);
    e->rows = wz_alloc(sizeof *e->rows * (size_t)rows);
    e->seqs = wz_alloc(sizeof *e->seqs * ((size_t)rows + 1));
    e->count = wz_alloc(sizeof *e->count * ((size_t)rows + 1));
    e->ids = wz_alloc(sizeof *e->ids * (size_t)e->max_batch);
    e->last = wz_alloc(sizeof *e->last * (size_t)rows);
    e->sampler = wz_alloc(sizeof *e->sampler * (size_t)rows);
    e->token = wz_alloc(sizeof *e->token * (size_t)rows);
    e->logp = wz_alloc(sizeof *e->logp * (size_t)rows);
    e->picks = wz_alloc(sizeof *e->picks * (size_t)rows);
    e->version = model->version;
    return e;
}

static void drop(struct wz_engine *e, struct cached *text)
{
    wz_seq_release(e->cache, &text->seq);
    e->spare[e->n_spare++] = text;
}

static void keep_drop_oldest(struct wz_engine *e)
{
    drop(e, e->kept[0]);
    memmove(e->kept, e->kept + 1, sizeof *e->kept * (size_t)--e->n_kept);
}

static void keep(struct wz_engine *e, struct cached *text)
{
    if (e->n_kept == e->cap_kept) keep_drop_oldest(e);
    e->kept[e->n_kept++] = text;
}

void wz_engine_flush(struct wz_engine *e)
{
    while (e->n_kept) drop(e, e->kept[--e->n_kept]);
    e->version = e->model->version;
}

void wz_engine_destroy(struct wz_engine *e)
{
    if (!e) return;
    for (int i = 0; i < e->n_texts; i++) wz_seq_finish(e->cache, &e->texts[i].seq);
    wz_work_destroy(e->work);
    wz_cache_destroy(e->cache);
    free(e->texts), free(e->text_ids), free(e->spare);
    free(e->due), free(e->rows), free(e->kept), free(e->seqs), free(e->count), free(e->ids), free(e->last),
        free(e->sampler), free(e->token);
    free(e->logp), free(e->picks);
    free(e);
}

struct wz_engine_stats wz_engine_stats(const struct wz_engine *e) { return e->stats; }

static int common(const int *a, int na, const int *b, int nb)
{
    int n = na < nb ? na : nb, i = 0;

    while (i < n && a[i] == b[i]) i++;
    return i;
}

/* A text with the ids, and pages for n_context + more tokens, its beginning forked from the longest cached one.
 * NULL: too few pages. Rows and cached beginnings never hold all texts. */
static struct cached *start(struct wz_engine *e, const int *context, int n_context, int more)
{
    struct cached *text = e->spare[e->n_spare - 1];
    const struct cached *best = NULL;
    int shared = 0;

    for (int i = 0; i < e->n_kept; i++) {
        int n = common(context, n_context - 1, e->kept[i]->ids, e->kept[i]->seq.len);
        if (n > shared) shared = n, best = e->kept[i];
    }
    if (best && !wz_seq_fork(e->cache, &text->seq, &best->seq, shared)) return NULL;
    if (!wz_seq_reserve(e->cache, &text->seq, n_context - text->seq.len + more)) {
        wz_seq_release(e->cache, &text->seq);
        return NULL;
    }
    if (best) e->stats.reused += shared;
    memcpy(text->ids, context, sizeof *context * (size_t)n_context);
    e->n_spare--;
    return text;
}

/* What all requests begin with (a system prompt, most often) is read once, before any row. */
static void warm_prefix(struct wz_engine *e, const struct wz_request *requests, int n)
{
    const int *first = requests[0].context;
    int shared = requests[0].n_context - 1, page = CHUNK / 32;
    struct cached *text;

    for (int i = 1; i < n; i++) shared = common(first, shared, requests[i].context, requests[i].n_context - 1);
    if (n < 2 || shared < page || shared >= e->longest || !(text = start(e, first, shared, 0))) return;
    while (text->seq.len < shared) {
        int k = shared - text->seq.len < e->max_batch ? shared - text->seq.len : e->max_batch;
        struct wz_seq *seq = &text->seq;
        struct wz_batch batch = { 1, &seq, &k, text->ids + text->seq.len };
        wz_forward(e->model, e->cache, e->work, &batch);
        e->stats.prefilled += k;
    }
    keep(e, text);
}

static bool admit(struct wz_engine *e, struct row *row, struct wz_request *r)
{
    int most = r->max_tokens, context = e->longest;

    r->n = 0;
    r->stopped = false;
    r->problem = NULL;
    if (r->n_context < 1) r->problem = "the prompt is empty";
    else if (r->n_context >= context) r->problem = "the prompt leaves no room in the context";
    if (r->problem || most < 1) return true;
    if (most > context - r->n_context) most = context - r->n_context;
    r->max_tokens = most;
    while (!(row->text = start(e, r->context, r->n_context, most))) {
        bool busy = false;
        for (int i = 0; i < e->n_rows; i++) busy |= e->rows[i].request != NULL;
        if (e->n_kept) keep_drop_oldest(e);
        else if (busy) return false; /* wait until a row ends */
        else {
            r->problem = "the prompt needs more cache pages than there are";
            return true;
        }
    }
    row->request = r;
    row->n_ids = r->n_context;
    r->ids = wz_realloc(r->ids, sizeof *r->ids * (size_t)most);
    r->logp = wz_realloc(r->logp, sizeof *r->logp * (size_t)most);
    return true;
}

/* One forward and one sampling: every row gets its share. */
static void round_run(struct wz_engine *e, const int *stops, int n_stops)
{
    struct wz_batch batch = { 0, e->seqs, e->count, e->ids };
    int n = 0, n_sampled = 0;

    for (int i = 0; i < e->n_rows; i++) {
        struct row *row = &e->rows[i];
        if (!row->request) continue;
        int k = row->n_ids - row->text->seq.len; /* 1 when decoding, more while the context is read */
        if (k > e->max_batch - n) k = e->max_batch - n;
        if (!k) continue;
        memcpy(e->ids + n, row->text->ids + row->text->seq.len, sizeof *e->ids * (size_t)k);
        e->seqs[batch.n_seqs] = &row->text->seq;
        e->count[batch.n_seqs++] = k;
        n += k;
        if (row->text->seq.len + k < row->n_ids) continue;
        struct wz_request *r = row->request;
        struct wz_key key = r->key;
        key.d = (uint32_t)r->n;
        e->last[n_sampled] = n - 1;
        e->sampler[n_sampled] = i;
        e->picks[n_sampled++] = (struct wz_pick){ r->temperature, r->top_p, r->min_p, r->top_k, wz_uniform(key) };
    }
    wz_forward_sample(e->model, e->cache, e->work, &batch,
                      &(struct wz_samples){ n_sampled, e->last, e->picks, e->token, e->logp });
    e->stats.prefilled += n - n_sampled;
    e->stats.generated += n_sampled;
    for (int s = 0; s < n_sampled; s++) {
        struct row *row = &e->rows[e->sampler[s]];
        struct wz_request *r = row->request;
        r->ids[r->n] = e->token[s];
        r->logp[r->n++] = e->logp[s];
        row->text->ids[row->n_ids++] = e->token[s];
        for (int k = 0; k < n_stops; k++) r->stopped |= e->token[s] == stops[k];
        if (r->stopped || r->n == r->max_tokens) {
            keep(e, row->text);
            row->request = NULL;
        }
    }
}

/* The longest first, so that what is left in the end is short and rows stay busy together. */
static void due_sort(struct wz_engine *e, const struct wz_request *requests, int n)
{
    if (n > e->cap_due) {
        e->cap_due = n < 512 ? 1024 : 2 * n;
        e->due = wz_realloc(e->due, sizeof *e->due * (size_t)e->cap_due);
    }
    for (int i = 0, j; i < n; i++) {
        struct due d = { requests[i].n_context + requests[i].max_tokens, i };
        for (j = i; j > 0 && e->due[j - 1].tokens < d.tokens; j--) e->due[j] = e->due[j - 1];
        e->due[j] = d;
    }
}

void wz_engine_run(struct wz_engine *e, struct wz_request *requests, int n, const int *stops, int n_stops)
{
    double begin = wz_now();
    int next = 0, busy = 0;

    if (!n) return;
    if (e->version != e->model->version) wz_engine_flush(e);
    warm_prefix(e, requests, n);
    due_sort(e, requests, n);
    do {
        for (int i = 0; i < e->n_rows && next < n; i++)
            while (!e->rows[i].request && next < n) {
                if (!admit(e, &e->rows[i], &requests[e->due[next].request])) goto full;
                next++;
            }
    full:
        busy = 0;
        for (int i = 0; i < e->n_rows; i++) busy += e->rows[i].request != NULL;
        if (busy) round_run(e, stops, n_stops);
    } while (busy || next < n);
    e->stats.seconds += wz_now() - begin;
}
