/* Attacks that are searched for by the log-probabilities of the agent that they are made against. What is sought is a
 * prompt after which its reply begins with a target text y_1 .. y_m, which says yes (Zou et al. 2023, arXiv 2307.15043,
 * section 2.1): the score, whose negative is the loss of their equations 1 and 2, is
 *
 *     s(x) = sum_j log p(y_j | context of x, y_1 .. y_{j-1})        at temperature 1
 *
 * One loop for all ways to search: propose candidates, score them together, keep. A proposer is a row of `proposers`.
 * A candidate is the ids of a whole prompt, and is scored only if its text gives the same ids again in the chat
 * template, so that whoever has only text can use the attack. Draws are keyed by seed, episode, step and candidate. */
#include "rollout/rollout.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct candidate {
    struct wz_ids ids, context; /* of the user's message; of all that is before the reply */
    int at;                     /* where in context the message begins */
    double score;
};

struct search {
    const struct wz_search *how;
    const struct wz_player *p;
    const Wz__Episode *e;
    uint64_t seed;
    struct wz_ids target;
    int from;     /* where in a message the ids begin that may change */
    int longest;  /* tokens of a context with its target, at most */
    bool *usable; /* [V] ids that stand for text of their own */
    struct wz_cache *cache;
    struct wz_work *work, *tape;
    float *d_params; /* the gradient of the weights, which a backward adds to, and nobody reads */
};

enum { PAGE = 16, TOGETHER = 32 }; /* tokens of a page; candidates of one forward, at most */

/* Fills in the candidate's context. False: as text it would be another, or it is too long. */
static bool place(const struct search *s, struct candidate *c)
{
    struct wz_message messages[2] = { { WZ_SYSTEM, s->p->system, NULL, 0 }, { WZ_USER, NULL, c->ids.ids, c->ids.n } };
    const int skip = !s->p->system[0];
    struct wz_ids again = { 0 };
    struct wz_buf text = { 0 };
    struct wz_err err;

    c->context.n = 0;
    wz_decode(s->p->tok, c->ids.ids, c->ids.n, true, &text);
    bool ok = wz_template_apply(s->p->chat, s->p->tok, messages + skip, 2 - skip, true, &c->context, &err) == 0;
    messages[1] = (struct wz_message){ WZ_USER, text.data ? text.data : "", NULL, 0 };
    ok = ok && wz_template_apply(s->p->chat, s->p->tok, messages + skip, 2 - skip, true, &again, &err) == 0 &&
         again.n == c->context.n && !memcmp(again.ids, c->context.ids, sizeof *again.ids * (size_t)again.n) &&
         c->context.n + s->target.n <= s->longest;
    c->at = c->context.n - c->ids.n;
    while (ok && c->at >= 0 && memcmp(c->context.ids + c->at, c->ids.ids, sizeof *again.ids * (size_t)c->ids.n))
        c->at--;
    wz_ids_finish(&again);
    wz_buf_finish(&text);
    return ok && c->at >= 0;
}

/* ---- scores ------------------------------------------------------------------------------------------------ */

/* Ids of a context with its target but for the last, whose turn it is to be predicted, from `from` on, and what each is
 * followed by: -1 where that is not of the target. */
static int lay_out(const struct search *s, const struct candidate *c, int from, int *ids, int *targets)
{
    const int n = c->context.n + s->target.n - 1;

    for (int i = from; i < n; i++) {
        const int k = i - c->context.n;
        ids[i - from] = k < 0 ? c->context.ids[i] : s->target.ids[k];
        targets[i - from] = k < -1 ? -1 : s->target.ids[k + 1];
    }
    return n - from;
}

/* Tokens that all contexts begin with, less the last of the shortest, after which the target begins. */
static int shared(const struct candidate *c, int n)
{
    int most = c[0].context.n - 1;

    for (int i = 1; i < n; i++) {
        int k = 0;
        if (c[i].context.n - 1 < most) most = c[i].context.n - 1;
        while (k < most && c[i].context.ids[k] == c[0].context.ids[k]) k++;
        most = k;
    }
    return most;
}

/* Scores candidates c[n], n <= TOGETHER, by one forward; what they begin with in common is read once. */
static void score(const struct search *s, struct candidate *c, int n)
{
    const int prefix = shared(c, n), rows = n * s->longest;
    struct wz_seq base = { 0 }, seqs[TOGETHER] = { 0 }, *list[TOGETHER], *one = &base;
    int count[TOGETHER], *ids = wz_alloc(sizeof *ids * (size_t)rows), *targets = wz_alloc(sizeof *ids * (size_t)rows),
                         at = 0;
    float *logp = wz_alloc(sizeof *logp * (size_t)rows);

    bool room = wz_seq_reserve(s->cache, &base, prefix);
    if (room && prefix)
        wz_forward(s->p->model, s->cache, s->work, &(struct wz_batch){ 1, &one, &prefix, c[0].context.ids });
    for (int i = 0; i < n && room; i++) {
        list[i] = &seqs[i];
        count[i] = lay_out(s, &c[i], prefix, ids + at, targets + at);
        room = wz_seq_fork(s->cache, &seqs[i], &base, prefix) && wz_seq_reserve(s->cache, &seqs[i], count[i]);
        at += count[i];
    }
    if (!room) wz_die("search: a cache for %d contexts of %d tokens has no room for them", TOGETHER, s->longest);
    wz_forward(s->p->model, s->cache, s->work, &(struct wz_batch){ n, list, count, ids });
    wz_logprobs(s->p->model, s->work, targets, 1, logp, NULL);
    for (int i = 0, r = 0; i < n; i++) {
        c[i].score = 0;
        for (int k = 0; k < count[i]; k++, r++)
            if (targets[r] >= 0) c[i].score += logp[r];
        wz_seq_finish(s->cache, &seqs[i]);
    }
    wz_seq_finish(s->cache, &base);
    free(ids);
    free(targets);
    free(logp);
}

/* ---- GCG: greedy coordinate gradient (Zou et al. 2023, section 2.2, algorithm 1) -------------------------------- */

/* slope[n, V]: how the score changes with the one-hot vector of each id of x that may change. */
static void slopes(const struct search *s, const struct candidate *x, int n, float *slope)
{
    const int rows = x->context.n + s->target.n - 1;
    int *ids = wz_alloc(sizeof *ids * (size_t)rows), *targets = wz_alloc(sizeof *ids * (size_t)rows),
        *which = wz_alloc(sizeof *which * (size_t)n);
    float *d_logp = wz_alloc(sizeof *d_logp * (size_t)rows);
    struct wz_seq seq = { 0 }, *list = &seq;

    const int count = lay_out(s, x, 0, ids, targets);
    for (int r = 0; r < count; r++) d_logp[r] = targets[r] >= 0;
    for (int i = 0; i < n; i++) which[i] = x->at + s->from + i;
    if (!wz_seq_reserve(s->cache, &seq, count)) wz_die("search: no room for a context of %d tokens", count);
    wz_forward(s->p->model, s->cache, s->tape, &(struct wz_batch){ 1, &list, &count, ids });
    wz_backward(s->p->model, s->cache, s->tape, targets, d_logp, 1, s->d_params);
    wz_backward_onehot(s->p->model, s->tape, which, n, slope);
    wz_seq_finish(s->cache, &seq);
    free(ids);
    free(targets);
    free(which);
    free(d_logp);
}

/* The `want` usable ids with the largest slopes, largest first, the smaller of two that are equal; fewer where there
 * are not so many. Returns how many. */
static int steepest(const struct search *s, const float *slope, int vocab, int want, int *top)
{
    int n = 0;

    for (int v = 0; v < vocab; v++) {
        if (!s->usable[v] || (n == want && !(slope[v] > slope[top[n - 1]]))) continue;
        int k = n < want ? n++ : n - 1;
        for (; k > 0 && slope[v] > slope[top[k - 1]]; k--) top[k] = top[k - 1];
        top[k] = v;
    }
    return n;
}

/* Each candidate is x with one id, drawn from the top_k of a position that is drawn from all. */
static void propose_gcg(const struct search *s, const struct candidate *x, int step, struct candidate *out, int n)
{
    const int vocab = s->p->model->config.vocab, positions = x->ids.n - s->from, want = s->how->top_k;
    float *slope = wz_alloc(sizeof *slope * (size_t)positions * (size_t)vocab);
    int *top = wz_alloc(sizeof *top * (size_t)positions * (size_t)want), found = 0;

    slopes(s, x, positions, slope);
    for (int i = 0; i < positions; i++)
        found = steepest(s, slope + (size_t)i * (size_t)vocab, vocab, want, top + (size_t)i * (size_t)want);
    for (int b = 0; b < n; b++) {
        struct wz_key key = { s->seed, WZ_RNG_ATTACK, s->e->index, (uint32_t)step, (uint32_t)b, 0 };
        const int at = (int)wz_below(key, (uint32_t)positions);
        key.d = 1;
        out[b].ids.n = 0;
        wz_ids_append(&out[b].ids, x->ids.ids, x->ids.n);
        out[b].ids.ids[s->from + at] = top[at * want + (int)wz_below(key, (uint32_t)found)];
    }
    free(slope);
    free(top);
}

/* ---- the loop ---------------------------------------------------------------------------------------------- */

struct wz_proposer {
    const char *name;
    /* Fills in the ids of out[n], from x and, keyed by the step, by chance. */
    void (*propose)(const struct search *s, const struct candidate *x, int step, struct candidate *out, int n);
};
static const struct wz_proposer proposers[] = {
    { "gcg", propose_gcg },
    { 0 },
};

const struct wz_proposer *wz_proposer_find(const char *name)
{
    const struct wz_proposer *row = proposers;

    while (row->name && !(name && !strcmp(row->name, name))) row++;
    return row->name ? row : NULL;
}

/* Ids that a message may have: not special, and whole characters, so that a change of one id is a change of text. */
static bool *usable_ids(const struct wz_player *p)
{
    const int vocab = p->model->config.vocab;
    bool *usable = wz_alloc(sizeof *usable * (size_t)vocab);
    struct wz_buf text = { 0 };

    for (int v = 0; v < vocab; v++) {
        wz_buf_clear(&text);
        wz_decode(p->tok, &v, 1, false, &text);
        usable[v] = text.len && !strstr(text.data, "\xef\xbf\xbd");
    }
    wz_buf_finish(&text);
    return usable;
}

/* The message that the search begins with: the prompt, a blank, and the text of `how`; and where that begins. */
static int begin(struct search *s, struct candidate *x, struct wz_err *err)
{
    char *message = wz_path("%s %s", s->e->prompt, s->how->text);
    const size_t fixed = strlen(s->e->prompt);
    struct wz_buf text = { 0 };
    bool ok = false;

    for (int first = 0; first < 2 && !ok; first++) {
        x->ids.n = 0;
        if (wz_encode_part(s->p->tok, message, strlen(message), first, &x->ids, err) < 0) break;
        ok = place(s, x);
    }
    for (s->from = 0; ok && text.len < fixed && s->from < x->ids.n; s->from++) {
        wz_buf_clear(&text);
        wz_decode(s->p->tok, x->ids.ids, s->from + 1, true, &text);
    }
    wz_buf_finish(&text);
    free(message);
    if (ok && s->from < x->ids.n) return 0;
    return wz_fail(err,
                   "evaluate.search: the prompt with the text '%s' behind it is no context that its own text gives "
                   "again, or too long",
                   s->how->text);
}

static void copy(struct candidate *to, const struct candidate *from)
{
    to->ids.n = to->context.n = 0;
    wz_ids_append(&to->ids, from->ids.ids, from->ids.n);
    wz_ids_append(&to->context, from->context.ids, from->context.n);
    to->at = from->at;
    to->score = from->score;
}

static void drop(struct candidate *c)
{
    wz_ids_finish(&c->ids);
    wz_ids_finish(&c->context);
}

/* Scores those of c[n] that can be told as text. Returns the best, the first of equals; NULL: there are none. */
static struct candidate *best_of(const struct search *s, struct candidate *c, int n, int *scored)
{
    struct candidate *best = NULL;
    int k = 0;

    for (int i = 0; i < n; i++)
        if (place(s, &c[i])) { /* those that can be are moved together */
            const struct candidate swap = c[k];
            c[k++] = c[i];
            if (k - 1 != i) c[i] = swap;
        }
    for (int i = 0; i < k; i += TOGETHER) score(s, c + i, k - i < TOGETHER ? k - i : TOGETHER);
    for (int i = 0; i < k; i++)
        if (!best || c[i].score > best->score) best = &c[i];
    *scored += k;
    return best;
}

static void search(struct search *s, struct candidate *x, struct wz_found *found)
{
    struct candidate *list = wz_alloc(sizeof *list * (size_t)s->how->candidates), best = { 0 };

    best_of(s, x, 1, &found->scored);
    copy(&best, x);
    for (int step = 0; step < s->how->steps; step++) {
        s->how->by->propose(s, x, step, list, s->how->candidates);
        const struct candidate *next = best_of(s, list, s->how->candidates, &found->scored);
        if (!next) continue;
        copy(x, next);
        if (x->score > best.score) copy(&best, x);
        wz_heartbeat();
    }
    found->ids.n = 0;
    wz_ids_append(&found->ids, best.ids.ids, best.ids.n);
    found->score = best.score;
    for (int i = 0; i < s->how->candidates; i++) drop(&list[i]);
    free(list);
    drop(&best);
}

int wz_search_run(const struct wz_search *how, const struct wz_player *p, uint64_t seed, const Wz__Episode *e,
                  struct wz_found *found, struct wz_err *err)
{
    struct wz_model *m = p->model;
    struct search s = { .how = how, .p = p, .e = e, .seed = seed, .longest = m->config.context };
    const char *target = e->prefill[0] ? e->prefill : how->target;
    struct candidate x = { 0 };
    int rc = -1;

    found->scored = 0;
    if (wz_encode_part(p->tok, target, strlen(target), false, &s.target, err) < 0) goto out;
    if (begin(&s, &x, err) < 0) goto out;
    s.longest = x.context.n + s.target.n; /* a candidate has as many ids */
    s.usable = usable_ids(p);
    s.cache = wz_cache_create(m, (1 + TOGETHER) * (s.longest / PAGE + 2), PAGE);
    s.work = wz_work_create(m, TOGETHER * s.longest, false);
    s.tape = wz_work_create(m, s.longest, true);
    s.d_params = wz_backend_alloc_for(m->be, m->n_params * sizeof(float), "gradient of a search");
    search(&s, &x, found);
    rc = 0;
    wz_backend_free(m->be, s.d_params);
    wz_work_destroy(s.tape);
    wz_work_destroy(s.work);
    wz_cache_destroy(s.cache);
out:
    free(s.usable);
    wz_ids_finish(&s.target);
    drop(&x);
    return rc;
}
