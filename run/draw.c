/* Which prompts a step uses. Shares of the stage's `mix` hold at every prefix: each place of a batch goes to the kind
 * that is furthest behind its share. Within a kind, an epoch is a keyed shuffle: every prompt once, then again. Of a
 * stage with several samples of a prompt, these are neighbours, and share a place. */
#include "run/job.h"

#include <stdlib.h>
#include <string.h>

/* A prompt and what it is sorted by. */
struct place {
    const struct wz_prompt *prompt;
    uint64_t key;
};

static int by_key(const void *a, const void *b)
{
    const struct place *x = a, *y = b;

    if (x->key != y->key) return x->key < y->key ? -1 : 1;
    const int order = strcmp(x->prompt->id, y->prompt->id);
    return order ? order : strcmp(x->prompt->kind, y->prompt->kind); /* one prompt as several kinds */
}

const struct wz_prompt **wz_prompts_keyed(const struct wz_prompts *sets, int n_sets, uint64_t seed, int *n)
{
    int total = 0;

    for (int s = 0; s < n_sets; s++) total += sets[s].n;
    struct place *places = wz_alloc(sizeof *places * (size_t)(total + 1));
    const struct wz_prompt **list = wz_alloc(sizeof *list * (size_t)(total + 1));
    *n = 0;
    for (int s = 0; s < n_sets; s++)
        for (const struct wz_prompt *p = sets[s].list; p < sets[s].list + sets[s].n; p++)
            places[(*n)++] = (struct place){ p, wz_hash(p->text, strlen(p->text), seed) };
    qsort(places, (size_t)total, sizeof *places, by_key);
    for (int i = 0; i < total; i++) list[i] = places[i].prompt;
    free(places);
    return list;
}

/* ---- steps ------------------------------------------------------------------------------------------------ */

struct kind_share {
    const char *name; /* NULL: every prompt */
    double share;
    const struct wz_prompt **list;
    int *order;  /* [n] this epoch's permutation of list */
    int n, used; /* used: drawn so far, over all epochs */
};

struct wz_draw {
    struct kind_share *kinds;
    int n_kinds, stage, peers;
    int64_t drawn;
    uint64_t seed;
};

static void kind_shuffle(const struct wz_draw *d, struct kind_share *k, uint32_t epoch)
{
    for (int i = 0; i < k->n; i++) k->order[i] = i;
    for (int i = k->n - 1; i > 0; i--) {
        const struct wz_key key = { d->seed, WZ_RNG_SHUFFLE, (uint32_t)d->stage, (uint32_t)(k - d->kinds),
                                    epoch,   (uint32_t)i };
        int j = (int)wz_below(key, (uint32_t)i + 1), swap = k->order[i];
        k->order[i] = k->order[j];
        k->order[j] = swap;
    }
}

/* Every kind of prompt once, as long as that can be read. */
static void name_kinds(const struct wz_prompts *sets, int n_sets, struct wz_buf *out)
{
    json_t *seen = json_object();

    for (int s = 0; s < n_sets; s++)
        for (int i = 0; i < sets[s].n && out->len < 400; i++) {
            const char *kind = sets[s].list[i].kind;
            if (!json_object_get(seen, kind)) wz_buf_printf(out, "%s'%s'", out->len ? ", " : "", kind);
            json_object_set_new(seen, kind, json_true());
        }
    if (out->len >= 400) wz_buf_str(out, " ...");
    json_decref(seen);
}

static int kind_fill(struct kind_share *k, const struct wz_prompts *sets, int n_sets, struct wz_err *err)
{
    int total = 0;

    for (int s = 0; s < n_sets; s++) total += sets[s].n;
    k->list = wz_alloc(sizeof *k->list * (size_t)(total + 1));
    for (int s = 0; s < n_sets; s++)
        for (int i = 0; i < sets[s].n; i++)
            if (!k->name || !strcmp(k->name, sets[s].list[i].kind)) k->list[k->n++] = &sets[s].list[i];
    k->order = wz_alloc(sizeof *k->order * (size_t)(k->n + 1));
    if (k->n) return 0;
    if (!total) return wz_fail(err, "data: there are no training prompts, or all are overlong or held-out prompts too");
    struct wz_buf kinds = { 0 };
    name_kinds(sets, n_sets, &kinds);
    wz_fail(err, "mix: no training prompt is of kind '%s', of those that are not left out; their kinds are %s", k->name,
            kinds.data);
    wz_buf_finish(&kinds);
    return -1;
}

struct wz_draw *wz_draw_create(const struct wz_prompts *sets, int n_sets, const struct wz_recipe_stage *stage,
                               int stage_index, uint64_t seed, struct wz_err *err)
{
    struct wz_draw *d = wz_alloc(sizeof *d);
    double sum = 0;

    d->seed = seed;
    d->stage = stage_index;
    d->peers = stage->samples_per_prompt;
    d->n_kinds = stage->n_mix ? (int)stage->n_mix : 1;
    d->kinds = wz_alloc(sizeof *d->kinds * (size_t)d->n_kinds);
    for (unsigned i = 0; i < stage->n_mix; i++) sum += stage->mix[i].share;
    for (int i = 0; i < d->n_kinds; i++) {
        d->kinds[i].name = stage->n_mix ? stage->mix[i].kind : NULL;
        d->kinds[i].share = stage->n_mix ? stage->mix[i].share / sum : 1;
        if (d->kinds[i].share > 0 && kind_fill(&d->kinds[i], sets, n_sets, err) < 0) {
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
    for (int i = 0; i < d->n_kinds; i++) {
        free(d->kinds[i].list);
        free(d->kinds[i].order);
    }
    free(d->kinds);
    free(d);
}

void wz_draw_next(struct wz_draw *d, const struct wz_prompt **list, int n)
{
    for (int i = 0; i < n; i++) {
        struct kind_share *best = NULL;
        double behind = 0;
        if (i % d->peers) {
            list[i] = list[i - 1];
            continue;
        }
        d->drawn++;
        for (struct kind_share *k = d->kinds; k < d->kinds + d->n_kinds; k++) {
            double b = k->share * (double)d->drawn - k->used;
            if (k->share <= 0 || (best && b <= behind)) continue;
            best = k;
            behind = b;
        }
        if (best->used % best->n == 0) kind_shuffle(d, best, (uint32_t)(best->used / best->n));
        list[i] = best->list[best->order[best->used++ % best->n]];
    }
}

bool wz_prompt_prefilled(const struct wz_prompt *prompt, uint64_t seed, int64_t step, int index, int peers)
{
    const struct wz_key key = {
        seed, WZ_RNG_PREFILL, (uint32_t)step, (uint32_t)(index / (peers > 0 ? peers : 1)), 0, 0
    };

    return prompt->prefill && (step < 0 || wz_uniform(key) < prompt->prefill->alpha);
}
