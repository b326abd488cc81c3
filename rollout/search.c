/* Attacks that are searched for by the log-probabilities of the agent that they are made against. What is sought is a
 * prompt after which its reply begins with a target text y_1 .. y_m, which says yes (Zou et al. 2023, arXiv 2307.15043,
 * section 2.1): the score, whose negative is the loss of their equations 1 and 2, is
 *
 *     s(x) = sum_j log p(y_j | context of x, y_1 .. y_{j-1})        at temperature 1
 *
 * One loop for all ways to search: propose candidates, score them together, keep. A proposer is a row of `proposers`.
 * A candidate is the ids of a whole prompt, and is scored only if its text gives the same ids again in the chat
 * template, so that whoever has only text can use the attack. Draws are keyed by seed, episode, step and candidate. */
#include "rollout/search.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Tokens of a page; of one forward, at most so many candidates, and tokens. */
enum { PAGE = 16, TOGETHER = 32, ROWS = 16384 };

bool wz_candidate_place(const struct wz_searching *s, struct wz_candidate *c, struct wz_err *err)
{
    struct wz_message messages[2] = { { WZ_SYSTEM, s->p->system, NULL, 0 }, { WZ_USER, NULL, c->ids.ids, c->ids.n } };
    const int skip = !s->p->system[0];
    struct wz_ids again = { 0 };
    struct wz_buf text = { 0 };

    c->context.n = 0;
    wz_decode(s->p->tok, c->ids.ids, c->ids.n, true, &text);
    bool ok = wz_template_apply(s->p->chat, s->p->tok, messages + skip, 2 - skip, true, &c->context, err) == 0;
    messages[1] = (struct wz_message){ WZ_USER, text.data ? text.data : "", NULL, 0 };
    ok = ok && wz_template_apply(s->p->chat, s->p->tok, messages + skip, 2 - skip, true, &again, err) == 0;
    bool same = ok && c->ids.n && again.n == c->context.n &&
                !memcmp(again.ids, c->context.ids, sizeof *again.ids * (size_t)again.n);
    c->at = c->context.n - c->ids.n;
    while (same && c->at >= 0 && memcmp(c->context.ids + c->at, c->ids.ids, sizeof *again.ids * (size_t)c->ids.n))
        c->at--;
    same = same && c->at >= 0;
    const bool fits = c->context.n + s->target.n <= s->longest;
    if (ok && !fits)
        wz_fail(err, "its context has %d tokens and the target %d: more than the context window of %d", c->context.n,
                s->target.n, s->longest);
    else if (ok && !same) wz_fail(err, "the chat template, or reading it again, changes the text of the message");
    wz_ids_finish(&again);
    wz_buf_finish(&text);
    return same && fits;
}

bool wz_candidate_spell(const struct wz_searching *s, struct wz_candidate *c, const char *message, bool first,
                        struct wz_err *err)
{
    c->ids.n = 0;
    const bool ok = wz_encode_part(s->p->tok, message, strlen(message), first, &c->ids, err) == 0;
    if (!ok) c->ids.n = 0; /* what of it there was */
    return ok;
}

const struct wz_candidate *wz_candidate_best(const struct wz_candidate *c, int n)
{
    const struct wz_candidate *best = c;

    for (int i = 1; i < n; i++)
        if (c[i].score > best->score) best = &c[i];
    return best;
}

/* ---- scores ------------------------------------------------------------------------------------------------ */

/* Ids of a context with its target but for the last, whose turn it is to be predicted, from `from` on, and what each is
 * followed by: -1 where that is not of the target. */
static int lay_out(const struct wz_searching *s, const struct wz_candidate *c, int from, int *ids, int *targets)
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
static int shared(const struct wz_candidate *c, int n)
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

/* Scores candidates c[n], n <= together, by one forward; what they begin with in common is read once. */
static void score(const struct wz_searching *s, struct wz_candidate *c, int n)
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
    if (!room) wz_die("search: a cache for %d contexts of %d tokens has no room for them", s->together, s->longest);
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
static void slopes(const struct wz_searching *s, const struct wz_candidate *x, int n, float *slope)
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
static int steepest(const struct wz_searching *s, const float *slope, int vocab, int want, int *top)
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

/* Each candidate is x, the best of those before, with one id, drawn from the top_k of a position that is drawn from
 * all. */
static void propose_gcg(const struct wz_searching *s, const struct wz_candidate *c, int n_c, int step,
                        struct wz_candidate *out, int n)
{
    const struct wz_candidate *x = wz_candidate_best(c, n_c);
    const int vocab = s->p->model->config.vocab, positions = x->ids.n - s->from,
              want = s->how->top_k < vocab ? s->how->top_k : vocab;
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
        out[b].ids.ids[s->from + at] = top[(size_t)at * (size_t)want + wz_below(key, (uint32_t)found)];
    }
    free(slope);
    free(top);
}

/* The message that the search begins with: the prompt, a blank, and the text of `how`; and where that begins. */
static int begin_gcg(struct wz_searching *s, struct wz_candidate *x, struct wz_err *err)
{
    char *message = wz_path("%s %s", s->e->prompt, s->how->text);
    const size_t fixed = strlen(s->e->prompt);
    struct wz_buf text = { 0 };
    bool ok = false;

    for (int first = 0; first < 2 && !ok; first++)
        ok = wz_candidate_spell(s, x, message, first, err) && wz_candidate_place(s, x, err);
    for (s->from = 0; ok && text.len < fixed && s->from < x->ids.n; s->from++) {
        wz_buf_clear(&text);
        wz_decode(s->p->tok, x->ids.ids, s->from + 1, true, &text);
    }
    wz_buf_finish(&text);
    free(message);
    if (!ok) return wz_fail_in(err, "the prompt with evaluate.search.text behind it");
    if (s->from < x->ids.n) return 1;
    return wz_fail(err, "evaluate.search.text: '%s' adds no token to the prompt", s->how->text);
}

/* ---- the loop ---------------------------------------------------------------------------------------------- */

static const struct wz_proposer proposers[] = {
    { "gcg", true, begin_gcg, propose_gcg },
    { "autodan", false, wz_autodan_begin, wz_autodan_propose },
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

static void copy(struct wz_candidate *to, const struct wz_candidate *from)
{
    to->ids.n = to->context.n = 0;
    wz_ids_append(&to->ids, from->ids.ids, from->ids.n);
    wz_ids_append(&to->context, from->context.ids, from->context.n);
    to->at = from->at;
    to->score = from->score;
}

static void drop(struct wz_candidate *c)
{
    free(c->text);
    wz_ids_finish(&c->ids);
    wz_ids_finish(&c->context);
}

/* Scores those of c[n] that can be told as text, and moves them before the others. Returns how many. */
static int score_all(const struct wz_searching *s, struct wz_candidate *c, int n)
{
    struct wz_err err;
    int k = 0;

    for (int i = 0; i < n; i++)
        if (wz_candidate_place(s, &c[i], &err)) {
            const struct wz_candidate swap = c[k];
            c[k++] = c[i];
            if (k - 1 != i) c[i] = swap;
        }
    for (int i = 0; i < k; i += s->together) score(s, c + i, k - i < s->together ? k - i : s->together);
    return k;
}

/* From c[n], what there is to begin with; c and out have room for `candidates`, or for n where that is more. */
static void search(struct wz_searching *s, struct wz_candidate *c, int n, struct wz_candidate *out,
                   struct wz_found *found)
{
    struct wz_candidate best = { 0 };

    found->scored = n = score_all(s, c, n);
    copy(&best, wz_candidate_best(c, n));
    for (int step = 0; step < s->how->steps; step++) {
        s->how->by->propose(s, c, n, step, out, s->how->candidates);
        const int k = score_all(s, out, s->how->candidates);
        wz_heartbeat();
        if (!k) continue;
        struct wz_candidate *swap = c;
        c = out;
        out = swap;
        n = k;
        found->scored += n;
        const struct wz_candidate *top = wz_candidate_best(c, n);
        if (top->score > best.score) copy(&best, top);
    }
    found->ids.n = 0;
    wz_ids_append(&found->ids, best.ids.ids, best.ids.n);
    found->score = best.score;
    drop(&best);
}

/* Tokens that are enough for a target behind the contexts to come: GCG's have as many ids as the first, of sentences
 * that are mixed some have more. */
static int longest_of(const struct wz_searching *s, const struct wz_candidate *c, int n)
{
    const int window = s->longest;
    int most = 0;

    for (int i = 0; i < n; i++)
        if (c[i].context.n > most) most = c[i].context.n;
    if (!s->how->by->gradient) most *= 2;
    return most + s->target.n < window ? most + s->target.n : window;
}

/* The ids that replies are to begin with: those that the agent's first reply would be given (wz_given_add), so behind
 * the mark of a thought where it thinks. */
static int aim(struct wz_searching *s, struct wz_err *err)
{
    const bool own = s->e->prefill[0];
    const struct wz_message messages[2] = { { WZ_SYSTEM, s->p->system, NULL, 0 }, { WZ_USER, s->e->prompt, NULL, 0 } };
    const int skip = !s->p->system[0];
    struct wz_ids context = { 0 };
    Wz__Episode e = *s->e; /* its strings are borrowed */
    const char *key = own ? "the prompt's prefill" : "evaluate.search.target";

    if (!own) e.prefill = (char *)s->how->target, e.hijack = false;
    int rc = wz_template_apply(s->p->chat, s->p->tok, messages + skip, 2 - skip, true, &context, err);
    const int n = rc == 0 ? wz_given_add(s->p, &e, &context, err) : 0;
    if (n > 0) wz_ids_append(&s->target, context.ids + context.n - n, n);
    else if (n < 0) rc = wz_fail_in(err, "%s", key);
    else if (rc == 0) rc = wz_fail(err, "%s: '%s' has no token to be sought", key, e.prefill);
    wz_ids_finish(&context);
    return rc;
}

int wz_search_run(const struct wz_search *how, const struct wz_player *p, uint64_t seed, const Wz__Episode *e,
                  struct wz_found *found, struct wz_err *err)
{
    struct wz_model *m = p->model;
    struct wz_searching s = { .how = how, .p = p, .e = e, .seed = seed, .longest = m->config.context };
    int room = 1, n = -1;

    for (const char *line = how->text; *line; line++) room += *line == '\n';
    if (room < how->candidates) room = how->candidates;
    struct wz_candidate *lists = wz_alloc(sizeof *lists * 2 * (size_t)room);
    if (aim(&s, err) == 0) n = how->by->begin(&s, lists, err);
    if (n > 0) {
        s.longest = longest_of(&s, lists, n);
        s.together = s.longest * TOGETHER <= ROWS ? TOGETHER : s.longest < ROWS ? ROWS / s.longest : 1;
        s.usable = usable_ids(p);
        s.cache = wz_cache_create(m, (1 + s.together) * (s.longest / PAGE + 2), PAGE);
        s.work = wz_work_create(m, s.together * s.longest, false);
        if (how->by->gradient) {
            s.tape = wz_work_create(m, s.longest, true);
            s.d_params = wz_backend_alloc_for(m->be, m->n_params * sizeof(float), "gradient of a search");
        }
        search(&s, lists, n, lists + room, found);
        found->target.n = 0;
        wz_ids_append(&found->target, s.target.ids, s.target.n);
        if (how->by->gradient) {
            wz_backend_free(m->be, s.d_params);
            wz_work_destroy(s.tape);
        }
        wz_work_destroy(s.work);
        wz_cache_destroy(s.cache);
    }
    free(s.usable);
    wz_ids_finish(&s.target);
    for (int i = 0; i < 2 * room; i++) drop(&lists[i]);
    free(lists);
    return n > 0 ? 0 : -1;
}
