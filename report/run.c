/* A run as read from its folder, and the facts at the head of its section. */
#include "report/inside.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* The lines of starts.jsonl; what can't be read is left out. */
static json_t *read_starts(const char *path)
{
    json_t *list = json_array();
    struct wz_map map = { 0 };

    if (wz_map_open(&map, path, NULL) < 0) return list;
    struct wz_lines l = wz_lines_begin(map.bytes, map.len);
    while (wz_lines_next(&l)) json_array_append_new(list, wz_json_parse(l.line, l.n, path, NULL));
    wz_map_close(&map);
    return list;
}

int wz_run_read(struct wz_shown *run, const char *dir, struct wz_err *err)
{
    char *path;
    struct wz_map map;

    *run = (struct wz_shown){ .dir = wz_strdup(dir) };
    while (strlen(run->dir) > 1 && run->dir[strlen(run->dir) - 1] == '/') run->dir[strlen(run->dir) - 1] = 0;
    if (!wz_is_dir(dir)) return wz_fail(err, "%s: expected the folder of a run, found no folder", dir);

    path = wz_path("%s/recipe.yaml", dir);
    wz_recipe_load(&run->recipe, path, NULL, 0, &run->no_recipe);
    if (wz_map_open(&map, path, &run->no_recipe) == 0) {
        wz_buf_add(&run->recipe_text, map.bytes, map.len);
        wz_map_close(&map);
    }
    free(path);
    path = wz_path("%s/metrics.jsonl", dir);
    wz_curves_read(&run->curves, path, run->recipe, &run->no_curves);
    free(path);
    path = wz_path("%s/summary.csv", dir);
    wz_table_read(&run->table, path, &run->no_table);
    free(path);
    path = wz_path("%s/starts.jsonl", dir);
    run->starts = read_starts(path);
    free(path);
    return 0;
}

void wz_run_finish(struct wz_shown *run)
{
    free(run->dir);
    wz_recipe_destroy(run->recipe);
    wz_buf_finish(&run->recipe_text);
    wz_curves_finish(&run->curves);
    wz_table_finish(&run->table);
    json_decref(run->starts);
    free(run->phases);
    free(run->spots);
}

/* What is left of the runs' paths without the folders in which all of them begin. */
void wz_runs_title(struct wz_shown *runs, int n)
{
    size_t common = strlen(runs->dir);

    for (int i = 1; i < n; i++)
        while (strncmp(runs[i].dir, runs->dir, common)) common--;
    while (common && runs->dir[common - 1] != '/') common--;
    for (int i = 0; i < n; i++) runs[i].title = runs[i].dir + common;
}

/* ---- facts ------------------------------------------------------------------------------------------------ */

void wz_missing_write(struct wz_buf *out, const char *what, const struct wz_err *why)
{
    wz_buf_printf(out, "<p class=\"missing\">%s: ", what);
    wz_html_wrap(out, "", why->text, "</p>");
}

void wz_kind_write(struct wz_buf *out, const struct wz_recipe *recipe, const char *kind)
{
    wz_html_wrap(out, "", kind, "");
    for (unsigned i = 0; recipe && i < recipe->n_kinds; i++)
        if (!strcmp(recipe->kinds[i].kind, kind)) wz_html_wrap(out, ": ", recipe->kinds[i].meaning, "");
}

static void write_fact(struct wz_buf *out, const char *name, const char *fmt, ...) WZ_PRINTF(3, 4);
static void write_fact(struct wz_buf *out, const char *name, const char *fmt, ...)
{
    char text[4096];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    wz_html_wrap(out, "<div><dt>", name, "</dt><dd>");
    wz_html_wrap(out, "", text, "</dd></div>");
}

static void write_time(struct wz_buf *out, const char *name, double seconds)
{
    const time_t t = fabs(seconds) < 1e11 ? (time_t)seconds : 0;
    char text[32] = "not recorded";
    struct tm date;

    if (t > 0 && gmtime_r(&t, &date)) strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S UTC", &date);
    write_fact(out, name, "%s", text);
}

/* What starts.jsonl says of version, machine and ranks: a key's different values in order, for a run may be resumed
 * elsewhere. */
static void write_starts(struct wz_buf *out, const struct wz_shown *run)
{
    const char *key;
    json_t *start, *value;
    size_t i;

    json_object_foreach(json_array_get(run->starts, 0), key, value)
    {
        struct wz_buf all = { 0 };
        const char *was = "";
        json_array_foreach(run->starts, i, start)
        {
            const char *text = json_string_value(json_object_get(start, key));
            if (!text || !strcmp(text, was)) continue;
            wz_buf_printf(&all, "%s%s", all.len ? "; then " : "", text);
            was = text;
        }
        if (all.len) write_fact(out, key, "%s", all.data);
        wz_buf_finish(&all);
    }
    if (!json_array_size(run->starts)) write_fact(out, "version, hardware, ranks", "not recorded");
}

static void write_judge(struct wz_buf *out, const struct wz_recipe_judge *j)
{
    write_fact(out, strcmp(j->role, "watch") ? "judge" : "judge that watches", "%s%s%s%s%s%s", j->name,
               *j->kind ? ", which is of kind " : "", j->kind, *j->phrases ? ", phrases of " : "", j->phrases,
               !strcmp(j->world, "yes") ? ", by the grammar of the sandbox world" : "");
}

void wz_facts_write(struct wz_buf *out, const struct wz_shown *run)
{
    const struct wz_recipe *r = run->recipe;

    wz_buf_str(out, "<dl class=\"facts\">");
    if (r) {
        for (unsigned i = 0; i < r->n_judges; i++) write_judge(out, &r->judges[i]);
        if (!r->n_judges) write_judge(out, &r->judge);
        write_fact(out, "temperature of evaluations", r->evaluate.temperature > 0 ? "%g" : "%g (greedy)",
                   r->evaluate.temperature);
        for (unsigned i = 0; i < r->n_agents; i++)
            write_fact(out,
                       !strcmp(r->agents[i].role, WZ_FEEDBACK)       ? "feedback agent"
                       : !strcmp(r->agents[i].role, WZ_CONVERSATION) ? "conversation agent"
                                                                     : r->agents[i].role,
                       "%s, from %s, trained at temperature %g", r->agents[i].name, r->agents[i].model,
                       r->agents[i].temperature);
        write_fact(out, "recipe", "%s", r->name);
        write_fact(out, "seed", "%llu", (unsigned long long)r->seed);
    }
    write_starts(out, run);
    write_fact(out, "folder", "%s", run->dir);
    if (run->curves.lines) {
        write_fact(out, "steps", "%.0f", run->curves.last_step - run->curves.first_step + 1);
        write_time(out, "first step", run->curves.begun);
        write_time(out, "last step", run->curves.ended);
    }
    wz_buf_str(out, "</dl>");
    if (!r) wz_missing_write(out, "The recipe could not be read", &run->no_recipe);
}
