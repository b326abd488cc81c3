/* Which turn of a trajectory an agent learns from (paper section 3.2). With no revision, type B is type A: c_0. */
#include "trainer/trainer.h"

Wz__Turn *wz_sample_pick(const Wz__Episode *e, int agent, bool feedback, double revision, uint64_t seed)
{
    const struct wz_key key = { seed, WZ_RNG_SAMPLE, (uint32_t)e->step, e->index, (uint32_t)agent, 0 };
    Wz__Turn *first = NULL, *last = NULL;
    uint32_t n = 0, want;

    if (e->discard[0]) return NULL;
    for (size_t i = 0; i < e->n_turns; i++) {
        if (e->turns[i]->agent != (uint32_t)agent) continue;
        if (!first) first = e->turns[i];
        last = e->turns[i];
        n++;
    }
    if (!feedback) return n > 1 && wz_uniform(key) < revision ? last : first;
    want = n > 1 ? wz_below(key, n) : 0;
    for (size_t i = 0; i < e->n_turns; i++)
        if (e->turns[i]->agent == (uint32_t)agent && want-- == 0) return e->turns[i];
    return NULL;
}
