/* Limits: a run whose numbers tell that it collapses stops, while a checkpoint from before is there. */
#include "run/account.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Is it the name of that row? AGENT/ stands for each agent's name. */
static bool is_named(const struct wz_recipe *recipe, const struct wz_metric *row, const char *name)
{
    const char *slash = strchr(row->name, '/');

    if (strncmp(row->name, "AGENT/", 6)) return !strcmp(row->name, name);
    for (unsigned a = 0; a < recipe->n_agents; a++) {
        const size_t n = strlen(recipe->agents[a].name);
        if (!strncmp(name, recipe->agents[a].name, n) && !strcmp(name + n, slash)) return true;
    }
    return false;
}

int wz_limits_check(const struct wz_recipe *recipe, struct wz_err *err)
{
    char path[40];

    if (recipe->n_limits && recipe->checkpoint.keep == 1)
        return wz_recipe_fail(recipe, err, "checkpoint.keep",
                              "expected 2 or more, or 0 for all, since `limits` need a checkpoint from before");
    for (unsigned i = 0; i < recipe->n_limits; i++) {
        const struct wz_recipe_limit *l = &recipe->limits[i];
        const struct wz_metric *row = wz_metric_rows;
        while (row->name && !is_named(recipe, row, l->metric)) row++;
        snprintf(path, sizeof path, "limits.%u.metric", i);
        if (!row->name)
            return wz_recipe_fail(recipe, err, path,
                                  "'%.80s' is no name in metrics.jsonl: those are in docs/formats.md, with the name of "
                                  "an agent for AGENT",
                                  l->metric);
        snprintf(path, sizeof path, "limits.%u.max", i);
        if (l->min > l->max)
            return wz_recipe_fail(recipe, err, path, "expected min (%g) or more, got %g", l->min, l->max);
    }
    return 0;
}

void wz_limits_count(const struct wz_recipe *recipe, struct wz_beyond *beyond, const char *const *names,
                     const double *values, int n)
{
    for (unsigned i = 0; i < recipe->n_limits; i++) {
        const struct wz_recipe_limit *l = &recipe->limits[i];
        int k = 0;
        while (k < n && strcmp(names[k], l->metric)) k++;
        const bool within = k == n || isnan(values[k]) || (values[k] >= l->min && values[k] <= l->max);
        beyond[i] = (struct wz_beyond){ within ? 0 : beyond[i].steps + 1, k == n ? NAN : values[k] };
    }
}

/* The newest checkpoint from before the weights that step `first` was played with; -1: none. */
static int64_t checkpoint_before(const struct wz_recipe *recipe, int64_t first)
{
    int n, i = 0;
    int64_t *steps = wz_checkpoint_steps(recipe->out, &n);

    while (i < n && steps[i] >= first) i++;
    const int64_t found = i < n ? steps[i] : -1;
    free(steps);
    return found;
}

int wz_limits_watch(const struct wz_recipe *recipe, const struct wz_beyond *beyond, int64_t steps, struct wz_err *err)
{
    int any = 0;

    for (unsigned i = 0; i < recipe->n_limits; i++) {
        const struct wz_recipe_limit *l = &recipe->limits[i];
        const struct wz_beyond *b = &beyond[i];
        if (!b->steps) continue;
        any = 1;
        if (b->steps < l->steps) {
            wz_log("step %" PRId64 ": %s is %g, beyond its limits (limits.%u), %d in a row, %d stop the run", steps - 1,
                   l->metric, b->value, i, b->steps, l->steps);
            continue;
        }
        const int64_t before = checkpoint_before(recipe, steps - b->steps);
        wz_fail(err, "step %" PRId64 ": %s is %g, beyond its limits (limits.%u), in %d steps in a row: ", steps - 1,
                l->metric, b->value, i, b->steps);
        return before < 0 ? wz_fail(err, "%sbegin another run with a lower lr or a higher kl_coef", err->text)
                          : wz_fail(err,
                                    "%sbegin another run from %s/checkpoints/%" PRId64 ", which is from before, with a "
                                    "lower lr or a higher kl_coef",
                                    err->text, recipe->out, before);
    }
    return any;
}
