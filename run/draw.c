/* Which prompts a step plays. Shares are kept exactly: each place goes to the kind that is furthest behind its
 * share. Within a kind, prompts come in a keyed shuffle of an epoch, each once before any comes again. */
#include "run/job.h"

#include <stdlib.h>
#include <string.h>

struct lane {
    const char *kind; /* NULL: every prompt */
    double share;
    const struct wz_prompt **list;
    int *order, n, used; /* used: drawn so far, over epochs */
};

struct wz_draw {
    struct lane *lanes;
    int n_lanes, stage;
    int64_t drawn;
    uint64_t seed;
};

static void lane_shuffle(const struct wz_draw *d, struct lane *lane, uint32_t epoch)
{
    for (int i = 0; i < lane->n; i++) lane->order[i] = i;
    for (int i = lane->n - 1; i > 0; i--) {
        const struct wz_key key = { d->seed, WZ_RNG_SHUFFLE, (uint32_t)d->stage, (uint32_t)(lane - d->lanes),
                                    epoch,   (uint32_t)i };
        int j = (int)wz_below(key, (uint32_t)i + 1), swap = lane->order[i];
        lane->order[i] = lane->order[j];
        lane->order[j] = swap;
    }
}

static int lane_fill(struct lane *lane, const struct wz_prompts *sets, int n_sets, struct wz_err *err)
{
    int total = 0;

    for (int s = 0; s < n_sets; s++) total += sets[s].n;
    lane->list = wz_alloc(sizeof *lane->list * (size_t)(total + 1));
    for (int s = 0; s < n_sets; s++)
        for (int i = 0; i < sets[s].n; i++)
            if (!lane->kind || !strcmp(lane->kind, sets[s].list[i].kind)) lane->list[lane->n++] = &sets[s].list[i];
    lane->order = wz_alloc(sizeof *lane->order * (size_t)(lane->n + 1));
    if (lane->n) return 0;
    return lane->kind ? wz_fail(err, "mix: no training prompt is of kind %s", lane->kind)
                      : wz_fail(err, "data: there are no training prompts");
}

struct wz_draw *wz_draw_create(const struct wz_prompts *sets, int n_sets, const struct wz_recipe_stage *stage,
                               int stage_index, uint64_t seed, struct wz_err *err)
{
    struct wz_draw *d = wz_alloc(sizeof *d);
    double sum = 0;

    d->seed = seed;
    d->stage = stage_index;
    d->n_lanes = stage->n_mix ? (int)stage->n_mix : 1;
    d->lanes = wz_alloc(sizeof *d->lanes * (size_t)d->n_lanes);
    for (unsigned i = 0; i < stage->n_mix; i++) sum += stage->mix[i].share;
    for (int i = 0; i < d->n_lanes; i++) {
        d->lanes[i].kind = stage->n_mix ? stage->mix[i].kind : NULL;
        d->lanes[i].share = stage->n_mix ? stage->mix[i].share / sum : 1;
        if (d->lanes[i].share > 0 && lane_fill(&d->lanes[i], sets, n_sets, err) < 0) {
            wz_fail_in(err, "stage %s", stage->name);
            wz_draw_destroy(d);
            return NULL;
        }
    }
    return d;
}

void wz_draw_destroy(struct wz_draw *d)
{
    if (!d) return;
    for (int i = 0; i < d->n_lanes; i++) free(d->lanes[i].list), free(d->lanes[i].order);
    free(d->lanes);
    free(d);
}

void wz_draw_step(struct wz_draw *d, const struct wz_prompt **list, int batch)
{
    for (int i = 0; i < batch; i++) {
        struct lane *best = NULL;
        double behind = 0;
        d->drawn++;
        for (struct lane *lane = d->lanes; lane < d->lanes + d->n_lanes; lane++) {
            double b = lane->share * (double)d->drawn - lane->used;
            if (lane->share > 0 && (!best || b > behind)) best = lane, behind = b;
        }
        if (best->used % best->n == 0) lane_shuffle(d, best, (uint32_t)(best->used / best->n));
        list[i] = best->list[best->order[best->used++ % best->n]];
    }
}
