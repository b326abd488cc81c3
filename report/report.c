/* waltz report: one self-contained HTML page from the folders of runs: recipe, results, curves and
 * transcripts. Style sheet and SVG are inline; the page loads nothing, runs no script, and its content security policy
 * forbids both. A section whose file is missing says so. */
#include "report/inside.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct run {
    char *dir, *title;
    struct wz_recipe *recipe; /* NULL: could not be read, no_recipe has the reason */
    struct wz_buf recipe_text;
    struct wz_curves curves;
    struct wz_table table;
    struct wz_err no_recipe, no_curves, no_table;
    const char **phases;
    int n_phases;             /* in order of time */
    const char *first, *last; /* the phases compared; "before" and "after" where the run got that far */
    struct wz_spot *spots;
    int n_spots; /* the points of the plane, one per phase */
};

static const char *const headline[] = { "asr", "orr", "label_accuracy", "ftr" };

/* ---- numbers ---------------------------------------------------------------------------------------------- */

/* The unweighted mean over sets of a rate (WaltzRL 3.1). Half-widths of the sets' intervals add in quadrature. */
static struct wz_result average(const struct wz_table *t, const char *phase, const char *metric)
{
    double sum = 0, low = 0, high = 0;
    struct wz_result mean = { .phase = phase, .metric = metric, .value = NAN, .low = NAN, .high = NAN };
    int n = 0;

    for (int i = 0; i < t->n; i++) {
        const struct wz_result *r = &t->rows[i];
        if (strcmp(r->phase, phase) || strcmp(r->metric, metric) || isnan(r->value)) continue;
        sum += r->value;
        low += (r->value - r->low) * (r->value - r->low);
        high += (r->high - r->value) * (r->high - r->value);
        mean.n += r->n;
        n++;
    }
    if (!n) return mean;
    mean.value = sum / n;
    mean.low = mean.value - sqrt(low) / n;
    mean.high = mean.value + sqrt(high) / n;
    return mean;
}

/* before, then step-N by N, then whatever else, then after. */
static double phase_order(const char *phase)
{
    if (!strcmp(phase, "before")) return -1;
    if (!strcmp(phase, "after")) return INFINITY;
    return strncmp(phase, "step-", 5) ? 1e18 : atof(phase + 5);
}

static int by_phase(const void *a, const void *b)
{
    double x = phase_order(*(const char *const *)a), y = phase_order(*(const char *const *)b);

    return (x > y) - (x < y);
}

static void find_phases(struct run *run)
{
    run->phases = wz_alloc(wz_mul((size_t)run->table.n + 1, sizeof *run->phases));
    for (int i = 0; i < run->table.n; i++) {
        bool seen = false;
        for (int k = 0; k < run->n_phases; k++) seen |= !strcmp(run->phases[k], run->table.rows[i].phase);
        if (!seen) run->phases[run->n_phases++] = run->table.rows[i].phase;
    }
    qsort(run->phases, (size_t)run->n_phases, sizeof *run->phases, by_phase);
    run->first = run->n_phases ? run->phases[0] : "before";
    run->last = run->n_phases > 1 ? run->phases[run->n_phases - 1] : strcmp(run->first, "after") ? "after" : "before";

    run->spots = wz_alloc(wz_mul((size_t)run->n_phases + 1, sizeof *run->spots));
    for (int i = 0; i < run->n_phases; i++) {
        const char *phase = run->phases[i];
        struct wz_result x = average(&run->table, phase, "orr"), y = average(&run->table, phase, "asr");
        if (isnan(x.value) || isnan(y.value)) continue;
        run->spots[run->n_spots++] = (struct wz_spot){ phase, x.value, y.value, x.low, x.high, y.low, y.high };
    }
}

static double sum_of(const struct wz_curves *c, const char *name)
{
    const struct wz_series *s = wz_curves_find(c, name);
    double sum = 0;

    if (!s) return NAN;
    for (int i = 0; i < s->n; i++) sum += isnan(s->y[i]) ? 0 : s->y[i];
    return sum;
}

/* ---- reading ---------------------------------------------------------------------------------------------- */

static int run_open(struct run *run, const char *dir, struct wz_err *err)
{
    char *path;
    struct wz_map map;

    *run = (struct run){ .dir = wz_strdup(dir) };
    while (strlen(run->dir) > 1 && run->dir[strlen(run->dir) - 1] == '/') run->dir[strlen(run->dir) - 1] = 0;
    run->title = wz_strdup(strrchr(run->dir, '/') ? strrchr(run->dir, '/') + 1 : run->dir);
    if (!wz_is_dir(dir)) return wz_fail(err, "%s: expected the folder of a run, found no folder", dir);

    path = wz_path("%s/recipe.yaml", dir);
    wz_recipe_load(&run->recipe, path, NULL, 0, &run->no_recipe);
    if (wz_map_open(&map, path, &run->no_recipe) == 0) {
        wz_buf_add(&run->recipe_text, map.bytes, map.len);
        wz_map_close(&map);
    }
    free(path);
    path = wz_path("%s/metrics.jsonl", dir);
    wz_curves_read(&run->curves, path, &run->no_curves);
    free(path);
    path = wz_path("%s/summary.csv", dir);
    wz_table_read(&run->table, path, &run->no_table);
    free(path);
    find_phases(run);
    return 0;
}

static void run_close(struct run *run)
{
    free(run->dir);
    free(run->title);
    wz_recipe_destroy(run->recipe);
    wz_buf_finish(&run->recipe_text);
    wz_curves_finish(&run->curves);
    wz_table_finish(&run->table);
    free(run->phases);
    free(run->spots);
}

/* ---- the page --------------------------------------------------------------------------------------------- */

static void write_missing(struct wz_buf *out, const char *what, const struct wz_err *why)
{
    wz_buf_printf(out, "<p class=\"missing\">%s: ", what);
    wz_html_wrap(out, "", why->text, "</p>");
}

/* path: shown as code behind the text; "": none. */
static void write_fact(struct wz_buf *out, const char *name, const char *text, const char *path)
{
    wz_buf_printf(out, "<div><dt>%s</dt><dd>", name);
    wz_html_add(out, text);
    if (*path) wz_html_wrap(out, *text ? ", from <code>" : "<code>", path, "</code>");
    wz_buf_str(out, "</dd></div>");
}

static void write_number(struct wz_buf *out, const char *name, double x)
{
    char text[400];

    snprintf(text, sizeof text, "%.0f", x);
    write_fact(out, name, isnan(x) ? "not recorded" : text, "");
}

static void write_duration(struct wz_buf *out, const char *name, double s)
{
    char text[400];

    if (s < 120) snprintf(text, sizeof text, "%.1f s", s);
    else if (s < 7200) snprintf(text, sizeof text, "%.0f min %02.0f s", floor(s / 60), floor(fmod(s, 60)));
    else snprintf(text, sizeof text, "%.0f h %02.0f min", floor(s / 3600), floor(fmod(s, 3600) / 60));
    write_fact(out, name, text, "");
}

static void write_facts(struct wz_buf *out, const struct run *run)
{
    double spent = sum_of(&run->curves, "time/step"), tokens = sum_of(&run->curves, "rollout/tokens");
    char seed[24];

    wz_buf_str(out, "<dl class=\"facts\">");
    if (run->recipe) {
        snprintf(seed, sizeof seed, "%llu", (unsigned long long)run->recipe->seed);
        write_fact(out, "recipe", run->recipe->name, "");
        write_fact(out, "seed", seed, "");
        for (unsigned i = 0; i < run->recipe->n_agents; i++) {
            const struct wz_recipe_agent *a = &run->recipe->agents[i];
            write_fact(out, strcmp(a->role, "feedback") ? "conversation agent" : "feedback agent", a->name, a->model);
        }
    }
    write_fact(out, "folder", "", run->dir);
    if (run->curves.lines) {
        write_number(out, "steps", run->curves.last_step - run->curves.first_step + 1);
        write_duration(out, "wall time", run->curves.seconds);
        write_number(out, "tokens a second", spent > 0 ? tokens / spent : NAN);
    }
    wz_buf_str(out, "</dl>");
    if (!run->recipe) write_missing(out, "The recipe could not be read", &run->no_recipe);
}

/* -1: clearly worse, +1: clearly better (the intervals are apart), 0: neither. */
static int verdict(const struct wz_measure *m, const struct wz_result *before, const struct wz_result *after)
{
    if (!m || isnan(before->low) || isnan(after->low)) return 0;
    if (after->high < before->low) return -m->better;
    return after->low > before->high ? m->better : 0;
}

static const char *const colours[] = { "bad", "", "good" };

static void write_value(struct wz_buf *out, const struct wz_measure *m, const struct wz_result *r)
{
    double k = m && m->rate ? 100 : 1;

    if (!r || isnan(r->value)) {
        wz_buf_str(out, "\xe2\x80\x93");
        return;
    }
    wz_buf_printf(out, "%.1f%s", k * r->value, m && m->rate ? "%" : "");
    if (!isnan(r->low)) wz_buf_printf(out, " <small>[%.1f, %.1f]</small>", k * r->low, k * r->high);
}

static void write_tiles(struct wz_buf *out, const struct run *run)
{
    wz_buf_str(out, "<div class=\"tiles\">");
    for (size_t i = 0; i < WZ_COUNT(headline); i++) {
        const struct wz_measure *m = wz_measure_find(headline[i]);
        struct wz_result b = average(&run->table, run->first, m->name), a = average(&run->table, run->last, m->name);
        wz_buf_printf(out, "<div class=\"tile\"><div class=\"what\">%s</div><div class=\"big %s\">", m->title,
                      colours[verdict(m, &b, &a) + 1]);
        if (isnan(b.value)) wz_buf_str(out, "<small>\xe2\x80\x93 \xe2\x86\x92</small> ");
        else wz_buf_printf(out, "<small>%.1f \xe2\x86\x92</small> ", 100 * b.value);
        if (isnan(a.value)) wz_buf_str(out, "\xe2\x80\x93");
        else wz_buf_printf(out, "%.1f%%", 100 * a.value);
        wz_buf_str(out, "</div><div class=\"by\">");
        if (isnan(a.low)) wz_buf_str(out, "not measured");
        else wz_buf_printf(out, "95%%: %.1f to %.1f, %lld prompts", 100 * a.low, 100 * a.high, (long long)a.n);
        wz_buf_str(out, "</div></div>");
    }
    wz_buf_str(out, "</div>");
}

static struct wz_spot spot_of(const struct wz_result *r)
{
    return r ? (struct wz_spot){ "", r->value, 0, r->low, r->high, 0, 0 } : (struct wz_spot){ .x = NAN };
}

static void write_row(struct wz_buf *out, const struct run *run, const char *set, const char *metric)
{
    const struct wz_measure *m = wz_measure_find(metric);
    const struct wz_result *b = wz_table_find(&run->table, run->first, set, metric),
                           *a = wz_table_find(&run->table, run->last, set, metric);
    bool both = a && b && !isnan(a->value) && !isnan(b->value);

    wz_html_wrap(out, "<tr><td>", m ? m->title : metric, "</td><td class=\"num\">");
    write_value(out, m, b);
    wz_buf_str(out, "</td><td class=\"num\">");
    write_value(out, m, a);
    wz_buf_printf(out, "</td><td class=\"num %s\">", both ? colours[verdict(m, b, a) + 1] : "");
    if (both) {
        double change = (m && m->rate ? 100 : 1) * (a->value - b->value);
        wz_buf_printf(out, fabs(change) < 0.05 ? "0.0" : "%+.1f", change);
    }
    wz_buf_str(out, "</td><td>");
    if (m && m->rate) {
        struct wz_spot before = spot_of(b), after = spot_of(a);
        wz_plot_pair(out, &before, &after);
    }
    wz_buf_printf(out, "</td><td class=\"num\">%lld</td></tr>", (long long)(a ? a->n : b ? b->n : 0));
}

static void write_table(struct wz_buf *out, const struct run *run)
{
    const struct wz_table *t = &run->table;

    wz_buf_str(out, "<div class=\"scroll\"><table><thead><tr><th>by kind of prompt</th>");
    wz_html_wrap(out, "<th class=\"num\">", run->first, "</th>");
    wz_html_wrap(out, "<th class=\"num\">", run->last, "</th>");
    wz_buf_str(out, "<th class=\"num\">change</th><th>0 to 100%</th><th class=\"num\">n</th></tr></thead><tbody>");
    for (int i = 0; i < t->n; i++) {
        bool first = true;
        for (int k = 0; k < i; k++) first &= strcmp(t->rows[k].set, t->rows[i].set) != 0;
        if (!first) continue;
        wz_html_wrap(out, "<tr class=\"set\"><td colspan=\"6\">", t->rows[i].set, "</td></tr>");
        for (int k = i; k < t->n; k++) {
            bool again = strcmp(t->rows[k].set, t->rows[i].set) != 0;
            for (int j = i; j < k; j++)
                again |= !strcmp(t->rows[j].set, t->rows[k].set) && !strcmp(t->rows[j].metric, t->rows[k].metric);
            if (!again) write_row(out, run, t->rows[i].set, t->rows[k].metric);
        }
    }
    wz_buf_str(out,
               "</tbody></table></div><p class=\"note\">Brackets are 95% intervals (Wilson's for rates). A change is "
               "coloured where the two intervals are apart. Hollow: the first of the two; full: the second.</p>");
}

/* A table of the headline's averages; a row is begun by the caller with its first cell. */
static void begin_averages(struct wz_buf *out, const char *what)
{
    wz_buf_printf(out, "<div class=\"scroll\"><table><thead><tr><th>%s</th>", what);
    for (size_t i = 0; i < WZ_COUNT(headline); i++)
        wz_buf_printf(out, "<th class=\"num\">%s</th>", wz_measure_find(headline[i])->title);
    wz_buf_str(out, "</tr></thead><tbody>");
}

static void end_averages(struct wz_buf *out, const struct wz_table *t, const char *phase)
{
    for (size_t i = 0; i < WZ_COUNT(headline); i++) {
        struct wz_result r = average(t, phase, headline[i]);
        wz_buf_str(out, "</td><td class=\"num\">");
        write_value(out, wz_measure_find(headline[i]), &r);
    }
    wz_buf_str(out, "</td></tr>");
}

/* The results of the WaltzRL paper: averages of its Table 1, rows 1 and 7. */
static const struct wz_spot paper[] = {
    { "paper: base", 0.257, 0.265, NAN, NAN, NAN, NAN },
    { "paper: WaltzRL", 0.076, 0.037, NAN, NAN, NAN, NAN },
};

static void write_plane(struct wz_buf *out, const struct run *runs, int n)
{
    struct wz_path *paths = wz_alloc(wz_mul((size_t)n + 1, sizeof *paths));
    int drawn = 0;

    paths[drawn++] = (struct wz_path){ "WaltzRL paper", paper, WZ_COUNT(paper), true };
    for (int i = 0; i < n; i++)
        if (runs[i].n_spots) paths[drawn++] = (struct wz_path){ runs[i].title, runs[i].spots, runs[i].n_spots, false };
    wz_buf_str(out, "<div class=\"planewrap\"><figure>");
    wz_plot_plane(out, "overrefusal rate of benign prompts (ORR)", "unsafe rate of harmful prompts (ASR)", paths,
                  drawn);
    wz_buf_str(out, "</figure><div>");
    if (drawn == 1)
        wz_buf_str(
            out, "<p class=\"missing\">No phase has both an unsafe rate and an overrefusal rate: nothing to draw.</p>");
    if (n > 1) {
        wz_buf_str(out, "<div class=\"legend\">");
        for (int p = 1; p < drawn; p++) {
            wz_buf_printf(out, "<span><i class=\"c%d\"></i>", (p - 1) % 8);
            wz_html_wrap(out, "", paths[p].name, "</span>");
        }
        wz_buf_str(out, "</div>");
    }
    wz_buf_str(
        out, "<p>Lower left is better on both counts. Each evaluated checkpoint is a point, joined in order; the "
             "hollow circle is the start, the large full one the end, whiskers are 95% intervals.</p>"
             "<p class=\"note\">Both rates are plain averages over the kinds of prompts that measure them.</p>"
             "<p class=\"note\">Grey diamonds: the averages that the WaltzRL paper reports for its base model and for "
             "its result. They come from another model (Llama-3.1-8B-Instruct), other prompts and another judge, "
             "so they can't be compared with this run.</p></div></div>");
    free(paths);
}

/* The points of the plane as numbers. */
static void write_phases(struct wz_buf *out, const struct run *run)
{
    wz_buf_str(out, "<details><summary>Every evaluated checkpoint</summary>");
    begin_averages(out, "checkpoint");
    for (int i = 0; i < run->n_phases; i++) {
        wz_html_wrap(out, "<tr><td>", run->phases[i], "");
        end_averages(out, &run->table, run->phases[i]);
    }
    wz_buf_str(out, "</tbody></table></div></details>");
}

static void write_run(struct wz_buf *out, const struct run *run, int index)
{
    struct wz_err err = { "" };
    char *path = wz_path("%s/transcripts.jsonl", run->dir);
    bool measured = run->table.n > 0;

    wz_buf_printf(out, "<section class=\"run\" id=\"run%d\"><h1>", index);
    wz_html_add(out, run->recipe ? run->recipe->name : run->title);
    if (run->recipe && strcmp(run->recipe->name, run->title)) wz_html_wrap(out, " <small>", run->title, "</small>");
    wz_buf_str(out, "</h1>");
    write_facts(out, run);
    wz_buf_str(out, "<h2>Before and after</h2>");
    if (*run->no_table.text) write_missing(out, "The results could not be read", &run->no_table);
    else if (!measured) wz_buf_str(out, "<p class=\"missing\">summary.csv holds no results.</p>");
    if (measured && strcmp(run->last, "after"))
        wz_html_wrap(out,
                     "<p class=\"missing\">The run has no evaluation called after; compared with its last one so far, ",
                     run->last, ".</p>");
    if (measured) {
        write_tiles(out, run);
        write_table(out, run);
        wz_buf_str(out, "<h2>Safety and overrefusal</h2>");
        write_plane(out, run, 1);
        if (run->n_phases > 2) write_phases(out, run);
    }
    wz_buf_str(out, "<h2>Curves</h2>");
    if (*run->no_curves.text) write_missing(out, "The curves could not be read", &run->no_curves);
    else if (!run->curves.lines) wz_buf_str(out, "<p class=\"missing\">metrics.jsonl holds no steps.</p>");
    if (run->curves.bad)
        wz_buf_printf(
            out, "<p class=\"missing\">%lld line%s of metrics.jsonl could not be read, the first is line %lld.</p>",
            (long long)run->curves.bad, run->curves.bad > 1 ? "s" : "", (long long)run->curves.first_bad);
    if (run->curves.lines) {
        wz_curves_write(out, &run->curves, run->recipe);
        wz_buf_str(out,
                   "<p class=\"note\">Long curves are smoothed; the faint line is every step. Numbers beside a name "
                   "are the last step's. Dotted lines: where a stage begins.</p>");
    }
    wz_buf_str(out, "<h2>What they say</h2>");
    if (wz_transcripts_write(out, path, index, &err) < 0) write_missing(out, "The transcripts could not be read", &err);
    wz_buf_str(out, "<h2>Recipe</h2>");
    if (!run->recipe_text.len) write_missing(out, "Not shown", &run->no_recipe);
    else
        wz_html_wrap(out, "<details><summary>recipe.yaml, with every key</summary><pre>", run->recipe_text.data,
                     "</pre></details>");
    wz_buf_str(out, "</section>");
    free(path);
}

static void write_comparison(struct wz_buf *out, const struct run *runs, int n)
{
    wz_buf_printf(out, "<h1>%d runs</h1>", n);
    begin_averages(out, "run, at its last evaluation");
    for (int k = 0; k < n; k++) {
        wz_buf_printf(out, "<tr><td><a href=\"#run%d\">", k);
        wz_html_wrap(out, "", runs[k].title, "</a>");
        end_averages(out, &runs[k].table, runs[k].last);
    }
    wz_buf_str(out, "</tbody></table></div><h2>Safety and overrefusal</h2>");
    write_plane(out, runs, n);
}

static void write_page(struct wz_buf *out, const struct run *runs, int n)
{
    wz_buf_str(out, "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
                    "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">"
                    "<meta http-equiv=\"Content-Security-Policy\" "
                    "content=\"default-src 'none'; style-src 'unsafe-inline'\"><title>");
    wz_html_add(out, n > 1 ? "Waltz: runs compared" : runs[0].recipe ? runs[0].recipe->name : runs[0].title);
    wz_buf_printf(out, "</title><style>%s</style></head><body><main>\n", wz_report_style);
    if (n > 1) write_comparison(out, runs, n);
    for (int i = 0; i < n; i++) write_run(out, &runs[i], i);
    wz_buf_str(out, "\n</main></body></html>\n");
}

int wz_report_write(char *const *folders, int n, const char *path, struct wz_err *err)
{
    struct run *runs = wz_alloc(wz_mul((size_t)n, sizeof *runs));
    struct wz_buf page = { 0 };
    int opened = 0, rc = 0;

    for (; rc == 0 && opened < n; opened++) rc = run_open(&runs[opened], folders[opened], err);
    if (rc == 0) {
        write_page(&page, runs, n);
        rc = wz_file_write(path, page.data, page.len, err);
    }
    for (int i = 0; i < opened; i++) run_close(&runs[i]);
    free(runs);
    wz_buf_finish(&page);
    return rc;
}
