/* A run's curves: metrics.jsonl, lines {"step": N, "time": seconds, name: value ...}, name being "AGENT/METRIC" or
 * "GROUP/METRIC". The last part of a name picks its chart, so one chart compares all agents. */
#include "report/inside.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A chart holds the series whose first word is `group`, or else whose last word is one of `words`: the first row that
 * fits. The last row's charts have one series each. */
static const struct chart_text {
    const char *title, *words, *group, *unit;
    bool folded;
} stories[] = {
    { "Rewards", "reward|c0|final", "reward", "mean of a turn", false },
    { "Label accuracy and JSON errors", "label_accuracy|json_errors", NULL, "%", false },
    { "Feedback trigger rate", "ftr", NULL, "%", false },
    { "Unsafe and overrefusing answers while training", "asr|orr", NULL, "%", false },
    { "Answers that feedback improved, and worsened", "improved|worsened", NULL, "%", false },
    { "KL to the reference", "kl", NULL, "nats a turn", false },
    { "Entropy", "entropy", NULL, "nats a token", false },
    { "Gradient norm, before clipping", "grad_norm", NULL, "norm", false },
    { "Loss", "loss", NULL, "what is minimised", false },
    { "Seconds of a step, by phase", "seconds", "time", "s", false },
    { "Tokens a second", "tokens_per_second", NULL, "tokens/s", false },
    { "Learning rate", "lr", NULL, "", true },
    { "Share of tokens clipped", "clipped", NULL, "%", true },
    { "Tokens of a turn", "response_length", NULL, "tokens, mean", true },
    { "Turns without an end token", "truncated", NULL, "%", true },
    { "Turns that did not fit the context window", "window_cuts", NULL, "turns of a step", true },
    { "Discarded episodes, by reason", "judge_failed|cache_too_small|broken", NULL, "episodes", true },
    { "Spread of returns", "return_std", NULL, "standard deviation", true },
    { "Tokens", "tokens", NULL, "tokens of a step", true },
    { "Samples", "samples", NULL, "samples of a step", true },
    { "Log-probabilities that differ from the rollout's", "logp_mismatches", NULL, "tokens of a step", true },
    { "The most that a log-probability differs", "logp_max_gap", NULL, "nats", true },
    { "Updates not made", "updates_skipped", NULL, "updates of the stage", true },
    { NULL, "", NULL, "", true },
};

/* ---- reading ---------------------------------------------------------------------------------------------- */

static struct wz_series *series_of(struct wz_curves *c, json_t *places, const char *name)
{
    json_t *at = json_object_get(places, name);

    if (at) return &c->series[json_integer_value(at)];
    json_object_set_new(places, name, json_integer(c->n));
    c->series = wz_realloc(c->series, wz_mul((size_t)c->n + 1, sizeof *c->series));
    c->series[c->n] = (struct wz_series){ .name = wz_strdup(name), .stages = c->stages, .n_stages = c->n_stages };
    return &c->series[c->n++];
}

static void add_point(struct wz_series *s, double x, double y)
{
    if ((s->n & (s->n - 1)) == 0) { /* full at every power of two */
        size_t cap = s->n ? wz_mul((size_t)s->n, 2) : 1;
        s->x = wz_realloc(s->x, wz_mul(cap, sizeof *s->x));
        s->y = wz_realloc(s->y, wz_mul(cap, sizeof *s->y));
    }
    s->x[s->n] = x;
    s->y[s->n++] = y;
}

/* Steps are numbered from 0. */
static void find_stages(struct wz_curves *c, const struct wz_recipe *recipe)
{
    int step = 0;

    c->n_stages = recipe ? (int)recipe->n_stages : 0;
    c->stages = wz_alloc(wz_mul((size_t)c->n_stages + 1, sizeof *c->stages));
    for (int i = 0; i < c->n_stages; i++) {
        c->stages[i] = (struct wz_mark){ step, recipe->stages[i].name };
        step += recipe->stages[i].steps;
    }
}

int wz_curves_read(struct wz_curves *c, const char *path, const struct wz_recipe *recipe, struct wz_err *err)
{
    json_t *places = json_object();
    struct wz_map map;

    *c = (struct wz_curves){ .begun = NAN };
    find_stages(c, recipe);
    if (wz_map_open(&map, path, err) < 0) {
        json_decref(places);
        return -1;
    }
    struct wz_lines l = wz_lines_begin(map.bytes, map.len);
    while (wz_lines_next(&l)) {
        json_t *line = wz_json_parse(l.line, l.n, path, NULL), *value, *step = json_object_get(line, "step");
        const char *name;
        if (!json_is_number(step) || fabs(json_number_value(step)) > 1e15) {
            if (!c->bad++) c->first_bad = l.number;
            json_decref(line);
            continue;
        }
        c->last_step = json_number_value(step);
        if (!c->lines++) c->first_step = c->last_step;
        json_object_foreach(line, name, value)
        {
            double y = json_number_value(value);
            if (!strcmp(name, "step")) continue;
            if (!strcmp(name, "time")) {
                if (isnan(c->begun)) c->begun = y;
                c->ended = y;
            } else if (json_is_number(value) || json_is_null(value)) {
                add_point(series_of(c, places, name), c->last_step, json_is_number(value) && fabs(y) < 1e100 ? y : NAN);
            }
        }
        json_decref(line);
    }
    json_decref(places);
    wz_map_close(&map);
    return 0;
}

void wz_curves_finish(struct wz_curves *c)
{
    for (int i = 0; i < c->n; i++) {
        free((char *)(uintptr_t)c->series[i].name);
        free(c->series[i].x);
        free(c->series[i].y);
    }
    free(c->series);
    free(c->stages);
    *c = (struct wz_curves){ 0 };
}

/* ---- charts ----------------------------------------------------------------------------------------------- */

static const struct chart_text *text_of(const char *name)
{
    const char *slash = strrchr(name, '/'), *last = slash ? slash + 1 : name;
    const size_t group = strcspn(name, "/");
    const struct chart_text *story = stories;

    for (size_t i = 0; i < WZ_COUNT(stories); i++)
        if (slash && stories[i].group && strlen(stories[i].group) == group && !strncmp(name, stories[i].group, group))
            return &stories[i];
    while (story->title && !wz_is_choice(story->words, last)) story++;
    return story;
}

/* The series of all runs in order of the charts. */
struct entry {
    const struct chart_text *story;
    struct wz_series series;
    int run, at;
};

static int by_chart(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;

    if (x->story != y->story) return x->story < y->story ? -1 : 1;
    return x->at != y->at ? x->at - y->at : x->run - y->run;
}

static struct entry *entries_of(const struct wz_curves *const *runs, int n_runs, int *n)
{
    struct entry *list = NULL;

    *n = 0;
    for (int r = 0; r < n_runs; r++) {
        list = wz_realloc(list, wz_mul((size_t)(*n + runs[r]->n) + 1, sizeof *list));
        for (int i = 0; i < runs[r]->n; i++) {
            const struct wz_series *s = &runs[r]->series[i];
            int at = *n;
            for (int k = 0; k < *n; k++)
                if (!strcmp(list[k].series.name, s->name)) at = list[k].at; /* the same name in an earlier run */
            list[*n] = (struct entry){ text_of(s->name), *s, r, at };
            ++*n;
        }
    }
    if (*n) qsort(list, (size_t)*n, sizeof *list, by_chart);
    return list;
}

void wz_curves_write(struct wz_buf *out, const struct wz_curves *const *runs, const char *const *titles, int n_runs)
{
    int n, n_picked;
    struct entry *list = entries_of(runs, n_runs, &n);
    struct wz_series picked[WZ_COLOURS];
    bool folded = false;

    wz_buf_str(out, "<div class=\"charts\">");
    for (int i = 0; i < n; i += n_picked) {
        const struct chart_text *story = list[i].story;
        const bool alone = n_runs > 1 || !story->title;
        struct wz_buf title = { 0 };
        if (story->folded && !folded)
            wz_buf_str(out, "</div><details><summary>More curves</summary><div class=\"charts\">");
        folded = story->folded;
        for (n_picked = 0; n_picked < WZ_COLOURS && i + n_picked < n; n_picked++) {
            const struct entry *e = &list[i + n_picked];
            if (e->story != story || (alone && e->at != list[i].at)) break;
            picked[n_picked] = e->series;
            picked[n_picked].colour = n_runs > 1 ? e->run % WZ_COLOURS : n_picked;
            if (n_runs > 1) picked[n_picked].name = titles[e->run];
        }
        wz_buf_printf(&title, "%s%s%s", story->title ? story->title : "", alone && story->title ? ": " : "",
                      alone ? list[i].series.name : "");
        wz_plot_lines(out, &(struct wz_chart){ title.data, story->unit, picked, n_picked });
        wz_buf_finish(&title);
    }
    wz_buf_str(out, folded ? "</div></details>" : "</div>");
    free(list);
}
