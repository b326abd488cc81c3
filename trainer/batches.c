/* A leaf's samples in micro-batches, what neighbours begin with computed once.
 *
 * Neighbouring samples that begin alike share a prefix (a system prompt); within it, those that go on alike share a
 * longer one (a prompt that was answered several times):
 *
 *   sample 0   s s s s s s p p p a a b              prefixes     s s s s s s [0, 5)
 *   sample 1   s s s s s s p p p c c d d d                       └ p p p [0, 2)      └ q q [2, 5)
 *   sample 2   s s s s s s q q e                    forwards     s, p, samples 0 and 1, q, samples 2 to 4
 *   sample 3   s s s s s s q q f f f                backwards    samples 0 and 1, p, samples 2 to 4, q, s
 *   sample 4   s s s s s s q q g g
 *
 * Which prefixes there are depends on the samples alone, not on micro-batches, so gradients are summed in the same
 * order however these are cut (guarantee 2). A prefix holds whole pages of the cache and whole steps of the backend's
 * grain, and no token that is trained on or predicts one. */
#include "trainer/trainer.h"

#include <assert.h>

/* Tokens that a prefix must save to be worth a forward and a backward of its own. */
enum { WORTH = 64 };

/* A sample's tokens, of which the first shareable() may be shared: the next one's row has the first trained token, or
 * the reply's first, as its target. */
static const int *tokens_of(const struct wz_sample *s) { return s->turn ? s->turn->context : s->example->ids; }

static int shareable(const struct wz_sample *s) { return (s->turn ? (int)s->turn->n_context : s->first) - 1; }

/* How many tokens both begin with, at most `most`; they agree on the first `from`. */
static int common(const struct wz_sample *a, const struct wz_sample *b, int from, int most)
{
    const int *x = tokens_of(a), *y = tokens_of(b);

    if (shareable(b) < most) most = shareable(b);
    while (from < most && x[from] == y[from]) from++;
    return from;
}

/* The end of the run of samples from `from` on that share more than the tokens of the pack's prefixes, *n in all;
 * `from` where that is not worth it. */
static int run_end(const struct wz_pack *p, const struct wz_sample *s, int from, int to, int *n)
{
    const int at = wz_pack_past(p);
    int end = from + 1, most = shareable(&s[from]);

    if (!p->share || p->n_prefixes == WZ_KEPT) return from;
    for (int k; end < to && (k = common(&s[from], &s[end], at, most)) >= at + p->unit; end++) most = k;
    *n = at + (most - at) / p->unit * p->unit;
    return (end - from - 1) * (*n - at) >= WORTH ? end : from;
}

struct wz_batches wz_batches_of(struct wz_pack *pack, const struct wz_sample *samples, int from, int to,
                                float *d_params)
{
    assert(!pack->n_prefixes);
    return (struct wz_batches){ .pack = pack, .samples = samples, .d_params = d_params, .to = from, .end = { to } };
}

bool wz_batches_next(struct wz_batches *b)
{
    struct wz_pack *p = b->pack;
    int n, run;

    wz_pack_clear(p);
    b->from = b->to;
    while (p->n_prefixes && b->to == b->end[p->n_prefixes]) wz_pack_pop(p, b->d_params);
    if (b->to == b->end[0]) return false;
    while ((run = run_end(p, b->samples, b->to, b->end[p->n_prefixes], &n)) > b->to) {
        wz_pack_push(p, tokens_of(&b->samples[b->to]) + wz_pack_past(p), n - wz_pack_past(p));
        b->end[p->n_prefixes] = run;
    }
    const int end = b->end[p->n_prefixes];
    do
        if (!wz_pack_sample(p, &b->samples[b->to])) break;
    while (++b->to < end && run_end(p, b->samples, b->to, end, &n) == b->to);
    return true;
}
