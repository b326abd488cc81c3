/* Whole sequences packed into the rows of one forward, a row a token. */
#include "trainer/trainer.h"

#include <assert.h>
#include <stdlib.h>

enum { PAGE = 16 };

/* One sequence of all the rows fits; many short ones leave up to a page each unused and may fill the pages first. */
static int pages_of(int rows) { return 2 * (rows / PAGE + 1); }

void wz_pack_init(struct wz_pack *p, struct wz_model *model, int rows, bool tape)
{
    size_t n = (size_t)rows, most = (size_t)pages_of(rows) + 1; /* sequences: each has a page of its own */

    *p = (struct wz_pack){ .model = model, .tape = tape, .share = !tape, .rows = rows };
    p->grain = tape ? wz_grain(model->be, model->type) : 1;
    p->unit = p->grain < PAGE ? PAGE : p->grain;
    assert(p->unit % PAGE == 0 && p->unit % p->grain == 0);
    p->cache = wz_cache_create(model, pages_of(rows), PAGE);
    p->work = wz_work_create(model, rows, tape);
    p->seqs = wz_alloc(most * sizeof *p->seqs);
    p->seq_list = wz_alloc(most * sizeof *p->seq_list);
    p->count = wz_alloc(most * sizeof *p->count);
    p->first = wz_alloc(most * sizeof *p->first);
    p->ids = wz_alloc(n * sizeof *p->ids);
    p->targets = wz_alloc(n * sizeof *p->targets);
    p->d_logp = wz_alloc(n * sizeof *p->d_logp);
    p->logp = wz_alloc(n * sizeof *p->logp);
    for (size_t i = 0; i < most; i++) wz_seq_prealloc(p->cache, &p->seqs[i], model->config.context);
    for (int i = 0; i < WZ_KEPT; i++) wz_seq_prealloc(p->cache, &p->prefixes[i], model->config.context);
    wz_work_prealloc(p->work, p->cache, (int)most, model->config.context);
}

void wz_pack_finish(struct wz_pack *p)
{
    if (!p->model) return;
    for (int i = 0; i <= pages_of(p->rows); i++) wz_seq_finish(p->cache, &p->seqs[i]);
    for (int i = 0; i < WZ_KEPT; i++) wz_seq_finish(p->cache, &p->prefixes[i]);
    wz_work_destroy(p->work);
    wz_cache_destroy(p->cache);
    free(p->seqs);
    free(p->seq_list);
    free(p->count);
    free(p->first);
    free(p->ids);
    free(p->targets);
    free(p->d_logp);
    free(p->logp);
    *p = (struct wz_pack){ 0 };
}

void wz_pack_clear(struct wz_pack *p)
{
    for (int i = 0; i < p->n_seqs; i++) wz_seq_release(p->cache, &p->seqs[i]);
    p->n_seqs = p->n_rows = 0;
}

void wz_pack_share(struct wz_pack *p, int longest)
{
    wz_work_share(p->work, longest < p->rows ? longest : p->rows);
    p->share = true;
}

int wz_pack_past(const struct wz_pack *p) { return p->n_prefixes ? p->prefixes[p->n_prefixes - 1].len : 0; }

/* Pages for the prefixes and `rows` more. */
static bool reserve(struct wz_pack *p, struct wz_seq *seq, int rows)
{
    const int past = wz_pack_past(p);

    if (past && !wz_seq_fork(p->cache, seq, &p->prefixes[p->n_prefixes - 1], past)) return false;
    if (wz_seq_reserve(p->cache, seq, rows)) return true;
    wz_seq_release(p->cache, seq);
    return false;
}

int wz_pack_rows(int grain, int tokens) { return (tokens + grain - 1) / grain * grain; }

/* The next sequence, of `rows` rows behind the prefixes; -1: it does not fit. Returns its first row. */
static int begin(struct wz_pack *p, int rows)
{
    struct wz_seq *seq = &p->seqs[p->n_seqs];
    const int all = wz_pack_rows(p->grain, rows), first = p->n_rows, kept = p->tape ? wz_pack_past(p) : 0;

    assert(rows > 0);
    if (kept + first + all > p->rows || !reserve(p, seq, all)) {
        if (!p->n_seqs) wz_die("trainer: a sample of %d tokens is more than the %d of a micro-batch", rows, p->rows);
        return -1;
    }
    p->seq_list[p->n_seqs] = seq;
    p->count[p->n_seqs] = all;
    p->first[p->n_seqs++] = first;
    for (int i = first + rows; i < first + all; i++) p->ids[i] = 0, p->targets[i] = -1;
    p->n_rows += all;
    return first;
}

/* A row reads token i and has token i + 1 as its target, so the last token is only a target. */
static bool add_turn(struct wz_pack *p, const Wz__Turn *t, int first)
{
    const int context = (int)t->n_context, n = context + (int)t->n_ids, from = wz_pack_past(p);
    int row;

    assert(from < context && first >= context);
    if ((row = begin(p, n - 1 - from)) < 0) return false;
    for (int i = from; i + 1 < n; i++, row++) {
        p->ids[row] = i < context ? t->context[i] : t->ids[i - context];
        p->targets[row] = i + 1 < first ? -1 : t->ids[i + 1 - context];
    }
    return true;
}

static bool add_example(struct wz_pack *p, const struct wz_sft_example *x)
{
    const int from = wz_pack_past(p);
    int row = begin(p, x->n - 1 - from);

    if (row < 0) return false;
    for (int i = from; i + 1 < x->n; i++, row++) {
        p->ids[row] = x->ids[i];
        p->targets[row] = x->loss[i + 1] ? x->ids[i + 1] : -1;
    }
    return true;
}

bool wz_pack_turn(struct wz_pack *p, const Wz__Turn *t) { return add_turn(p, t, (int)t->n_context); }

bool wz_pack_sample(struct wz_pack *p, const struct wz_sample *s)
{
    return s->turn ? add_turn(p, s->turn, s->first) : add_example(p, s->example);
}

void wz_pack_forward(struct wz_pack *p, float temperature)
{
    struct wz_batch batch = { p->n_seqs, p->seq_list, p->count, p->ids };

    p->hidden = wz_forward(p->model, p->cache, p->work, &batch);
    wz_logprobs(p->model, p->work, p->targets, temperature, p->logp, NULL);
}

void wz_pack_backward(struct wz_pack *p, float temperature, float *d_params)
{
    wz_backward(p->model, p->cache, p->work, p->targets, p->d_logp, temperature, d_params);
}

void wz_pack_backward_end(struct wz_pack *p, float *d_params)
{
    wz_pack_clear(p);
    wz_backward_end(p->model, p->work, d_params);
}

void wz_pack_push(struct wz_pack *p, const int *ids, int n)
{
    struct wz_seq *prefix = &p->prefixes[p->n_prefixes];
    struct wz_batch batch = { 1, &prefix, &n, ids };

    assert(!p->n_seqs && p->share && p->n_prefixes < WZ_KEPT && n % p->unit == 0);
    if (!reserve(p, prefix, n)) wz_die("trainer: too few cache pages for a prefix of %d tokens", n);
    wz_forward(p->model, p->cache, p->work, &batch);
    if (p->tape) wz_work_keep(p->work, p->cache, prefix);
    p->n_prefixes++;
}

void wz_pack_pop(struct wz_pack *p, float *d_params)
{
    assert(!p->n_seqs && p->n_prefixes > 0);
    if (p->tape) wz_backward_kept(p->model, p->cache, p->work, d_params);
    wz_seq_release(p->cache, &p->prefixes[--p->n_prefixes]);
}
