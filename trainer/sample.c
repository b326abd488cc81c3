/* Which turn of an episode an agent is trained on. */
#include "trainer/trainer.h"

/* A turn that the context window cut is not what the agent would have said: it is not trained on. Nor is one that
 * max_tokens cut, where overlong turns are dropped (DAPO's overlong filtering, Yu et al. 2025, 3.4). */
static bool may_pick(const struct wz_learn *how, const Wz__Turn *t, int agent)
{
    return t->agent == (uint32_t)agent && t->finish_reason != WZ__FINISH_REASON__CONTEXT &&
           !(how->drop_overlong && t->finish_reason == WZ__FINISH_REASON__LENGTH);
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
        if (!t) continue;
        out[found++] = (struct wz_sample){ .turn = t,
                                           .at = (int)e->index,
                                           .group = (int)e->index / (how->peers > 0 ? how->peers : 1),
                                           .first = (int)(t->n_context + t->given),
                                           .tokens = (int)(t->n_ids - t->given),
                                           .reward = t->reward };
    }
    return found;
}
