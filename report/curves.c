/* A run's curves: metrics.jsonl, lines {"step": N, "time": seconds, name: value ...}, name being "AGENT/METRIC" or
 * "GROUP/METRIC". The last part of a name picks its chart, so one chart compares all agents. */
#include "report/inside.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A chart holds the series whose last word is one of `words`, or whose first word is `group`. First row that fits. */
static const struct story {
    const char *title, *words, *group;
    bool share, folded;
} stories[] = {
    { "Rewards", "reward|c0|final", "reward", false, false },
    { "Label accuracy and JSON errors", "label_accuracy|json_errors", NULL, true, false },
    { "Feedback trigger rate", "ftr", NULL, true, false },
    { "Unsafe and overrefusing answers while training", "asr|orr", NULL, true, false },
    { "Answers that feedback improved, and worsened", "improved|worsened", NULL, true, false },
    { "KL to the reference", "kl", NULL, false, false },
    { "Entropy", "entropy", NULL, false, false },
    { "Gradient norm, before clipping", "grad_norm", NULL, false, false },
    { "Loss", "loss|nll", NULL, false, false },
    { "Seconds of a step, by phase", "seconds", "time", false, false },
    { "Tokens a second", "tokens_per_second", NULL, false, false },
    { "Learning rate", "lr", NULL, false, true },
    { "Share of tokens clipped", "clipped", NULL, true, true },
    { "Tokens of a turn", "response_length", NULL, false, true },
    { "Turns without an end token", "truncated", NULL, true, true },
    { "Discarded episodes, by reason", "judge_failed|prompt_too_long|cache_too_small|broken", NULL, false, true },
    { "Spread of returns", "return_std", NULL, false, true },
    { "Tokens", "tokens", NULL, false, true },
    { "Samples", "samples", NULL, false, true },
};

/* ---- reading ---------------------------------------------------------------------------------------------- */

static struct wz_series *series_of(struct wz_curves *c, json_t *places, const char *name)
{
    json_t *at = json_object_get(places, name);

    if (at) return &c->series[json_integer_value(at)];
    json_object_set_new(places, name, json_integer(c->n));
    c->series = wz_realloc(c->series, wz_mul((size_t)c->n + 1, sizeof *c->series));
    c->series[c->n] = (struct wz_series){ .name = wz_strdup(name) };
    return &c->series[c->n++];
}

static void add_point(struct wz_series *s, double x, double y)
{
    if ((s->n & (s->n - 1)) == 0) { /* full at every power of two */
        size_t room = s->n ? wz_mul((size_t)s->n, 2) : 1;
        s->x = wz_realloc(s->x, wz_mul(room, sizeof *s->x));
        s->y = wz_realloc(s->y, wz_mul(room, sizeof *s->y));
    }
    s->x[s->n] = x;
    s->y[s->n++] = y;
}

int wz_curves_read(struct wz_curves *c, const char *path, struct wz_err *err)
{
    json_t *places = json_object();
    double begun = NAN;
    struct wz_map map;

    *c = (struct wz_curves){ 0 };
    if (wz_map_open(&map, path, err) < 0) {
        json_decref(places);
        return -1;
    }
    struct wz_lines l = wz_lines_begin(map.bytes, map.len);
    while (wz_lines_next(&l)) {
        json_t *line = json_loadb(l.line, l.n, 0, NULL), *value, *step = json_object_get(line, "step");
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
                if (isnan(begun)) begun = y;
                c->seconds = y - begun;
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
    *c = (struct wz_curves){ 0 };
}

const struct wz_series *wz_curves_find(const struct wz_curves *c, const char *name)
{
    for (int i = 0; i < c->n; i++)
        if (!strcmp(c->series[i].name, name)) return &c->series[i];
    return NULL;
}

/* ---- charts ----------------------------------------------------------------------------------------------- */

static bool tells(const struct story *story, const char *name)
{
    const char *slash = strrchr(name, '/'), *last = slash ? slash + 1 : name;

    if (story->group && !strncmp(name, story->group, strlen(story->group)) && name[strlen(story->group)] == '/')
        return true;
    return wz_is_choice(story->words, last);
}

static const struct story *story_of(const char *name)
{
    for (size_t i = 0; i < WZ_COUNT(stories); i++)
        if (tells(&stories[i], name)) return &stories[i];
    return NULL;
}

/* Where the stages begin: step 1 is the first of the first stage. */
static int marks_of(const struct wz_recipe *recipe, struct wz_mark *marks)
{
    int step = 0;

    for (unsigned i = 0; recipe && i < recipe->n_stages; i++) {
        marks[i] = (struct wz_mark){ step, recipe->stages[i].name };
        step += recipe->stages[i].steps;
    }
    return recipe && recipe->n_stages > 1 ? (int)recipe->n_stages : 0;
}

static void write_chart(struct wz_buf *out, const char *title, bool share, const struct wz_series *const *series, int n,
                        const struct wz_recipe *recipe)
{
    struct wz_mark marks[64];

    for (int i = 0; i < n; i += 8) { /* eight colours a chart */
        struct wz_chart chart = { title, series + i, n - i < 8 ? n - i : 8, marks, marks_of(recipe, marks), share };
        wz_plot_lines(out, &chart);
    }
}

void wz_curves_write(struct wz_buf *out, const struct wz_curves *c, const struct wz_recipe *recipe)
{
    const struct wz_series **picked = wz_alloc(wz_mul((size_t)c->n + 1, sizeof *picked));

    wz_buf_str(out, "<div class=\"charts\">");
    for (int folded = 0; folded < 2; folded++) {
        if (folded) wz_buf_str(out, "</div><details><summary>More curves</summary><div class=\"charts\">");
        for (size_t k = 0; k < WZ_COUNT(stories); k++) {
            int n = 0;
            for (int i = 0; i < c->n; i++)
                if (story_of(c->series[i].name) == &stories[k]) picked[n++] = &c->series[i];
            if (n && stories[k].folded == folded)
                write_chart(out, stories[k].title, stories[k].share, picked, n, recipe);
        }
    }
    for (int i = 0; i < c->n; i++) { /* series of no listed chart: a chart each */
        picked[0] = &c->series[i];
        if (!story_of(c->series[i].name)) write_chart(out, c->series[i].name, false, picked, 1, recipe);
    }
    wz_buf_str(out, "</div></details>");
    free(picked);
}
