/* Which turn of an episode an agent is trained on, and what a long one costs. */
#include "trainer/trainer.h"

/* DAPO's soft overlong punishment (Yu et al. 2025, arXiv 2503.14476, eq. 13) of n tokens, with at most L, the last C of
 * them the cache: 0 up to L - C, (L - C - n) / C from there to L, and -1 beyond. */
static double soft(double n, double limit, double cache)
{
    const double over = n - (limit - cache);

    return over <= 0 ? 0 : over > cache ? -1 : -over / cache;
}

/* drop is DAPO's overlong filtering (3.4). */
const struct wz_overlong wz_overlongs[] = {
    { "train", false, NULL }, { "drop", true, NULL }, { "soft", false, soft }, { 0 }
};

const struct wz_overlong *wz_overlong_find(const char *name, struct wz_err *err)
{
    return wz_row_find(wz_overlongs, sizeof *wz_overlongs, "way with overlong turns", name, err);
}

/* A turn that the context window cut is not what the agent would have said: it is not trained on. Nor is one that
 * max_tokens cut, where such turns are dropped. */
static bool may_pick(const struct wz_learn *how, const Wz__Turn *t, int agent)
{
    return t->agent == (uint32_t)agent && t->finish_reason != WZ__FINISH_REASON__CONTEXT &&
           !(how->overlong && how->overlong->drop && t->finish_reason == WZ__FINISH_REASON__LENGTH);
}

/* The paper's (WaltzRL 2.3): a feedback agent learns from one of its rounds, drawn uniformly. A conversation agent
 * learns from c_0 (type A) or, where there was a revision, from the last reply with probability `revision` (type B). */
static Wz__Turn *pick_ab(const struct wz_learn *how, const Wz__Episode *e, int agent, bool feedback, struct wz_key key)
{
    uint32_t n = 0, want = 0;

    for (size_t i = 0; i < e->n_turns; i++) n += may_pick(how, e->turns[i], agent);
    if (n > 1) want = feedback ? wz_below(key, n) : wz_uniform(key) < how->revision ? n - 1 : 0;
    for (size_t i = 0; i < e->n_turns; i++)
        if (may_pick(how, e->turns[i], agent) && want-- == 0) return e->turns[i];
    return NULL;
}

const struct wz_sample_pick wz_sample_picks[] = { { "ab", pick_ab }, { 0 } };

int wz_samples_pick(struct wz_sample *out, const struct wz_learn *how, int agent, bool feedback, uint64_t seed,
                    Wz__Episode **episodes, int n)
{
    int found = 0;

    for (int i = 0; i < n; i++) {
        const Wz__Episode *e = episodes[i];
        const struct wz_key key = { seed, WZ_RNG_SAMPLE, (uint32_t)e->step, e->index, (uint32_t)agent, 0 };
        Wz__Turn *t = e->discard[0] ? NULL : how->pick->turn(how, e, agent, feedback, key);
        if (!t || t->alike) continue;
        const double tokens = (double)(t->n_ids - t->given);
        const bool costs = how->overlong && how->overlong->penalty;
        out[found++] = (struct wz_sample){ .turn = t,
                                           .at = (int)e->place,
                                           .group = (int)e->place / (how->peers > 0 ? how->peers : 1),
                                           .first = (int)(t->n_context + t->given),
                                           .tokens = (int)tokens,
                                           .reward = t->reward };
        if (costs) out[found - 1].reward += how->overlong->penalty(tokens, how->limit, how->cache);
    }
    return found;
}
