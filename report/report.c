/* waltz report: one self-contained HTML page from the folders of runs: recipe, results, curves and
 * transcripts. Style sheet and SVG are inline; the page loads nothing, runs no script, and its content security policy
 * forbids both. A section whose file is missing or damaged says so. A cell of a table holds one number. */
#include "report/inside.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const headline[] = { "asr", "orr", "f1", "label_accuracy", "ftr" };

/* ---- numbers ---------------------------------------------------------------------------------------------- */

/* The average over the kinds of prompts, as it was measured; NaN where it was not. */
static struct wz_result average(const struct wz_table *t, const char *phase, const char *metric)
{
    const struct wz_result *r = wz_table_find(t, phase, WZ_AVERAGE, metric);

    return r ? *r : (struct wz_result){ .phase = phase, .metric = metric, .value = NAN, .low = NAN, .high = NAN };
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

static bool is_rate(double x) { return x >= 0 && x <= 1; }

/* The point of a phase in the plane; false where one of its rates was not measured. */
static bool find_spot(struct wz_spot *spot, const struct wz_table *t, const char *phase, const char *x_metric,
                      const char *y_metric)
{
    struct wz_result x = average(t, phase, x_metric), y = average(t, phase, y_metric);

    *spot = (struct wz_spot){ phase, x.value, y.value, x.low, x.high, y.low, y.high };
    return is_rate(x.value) && is_rate(y.value);
}

static void find_phases(struct wz_shown *run)
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
    for (int i = 0; i < run->n_phases; i++)
        run->n_spots += find_spot(&run->spots[run->n_spots], &run->table, run->phases[i], "orr", "asr");
    for (int i = 0; i < 2; i++) {
        struct wz_spot *spot = &run->first_replies[run->n_first_replies];
        run->n_first_replies += find_spot(spot, &run->table, i ? run->last : run->first, "c0_orr", "c0_asr");
        spot->label = "first replies";
    }
}

/* ---- the page --------------------------------------------------------------------------------------------- */

/* -1: clearly worse, +1: clearly better (the intervals are apart), 0: neither. */
static int verdict(const struct wz_measure *m, const struct wz_result *before, const struct wz_result *after)
{
    if (!m || isnan(before->low) || isnan(after->low)) return 0;
    if (after->high < before->low) return -m->better;
    return after->low > before->high ? m->better : 0;
}

static const char *const colours[] = { "bad", "", "good" };

/* Three cells: a value and the ends of its interval. r NULL: unknown. */
static void write_value(struct wz_buf *out, const struct wz_measure *m, const struct wz_result *r)
{
    const double k = m && m->rate ? 100 : 1, cells[] = { r ? r->value : NAN, r ? r->low : NAN, r ? r->high : NAN };

    for (int i = 0; i < 3; i++) {
        wz_buf_str(out, i ? "<td class=\"num end\">" : "<td class=\"num\">");
        if (isnan(cells[i])) wz_buf_str(out, "\xe2\x80\x93</td>");
        else wz_buf_printf(out, "%.1f</td>", k * cells[i]);
    }
}

static void write_measure(struct wz_buf *out, const struct wz_measure *m, const char *metric)
{
    wz_html_wrap(out, "", m ? m->title : metric, m && m->rate ? ", %" : "");
}

static void write_tiles(struct wz_buf *out, const struct wz_shown *run)
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

static void write_row(struct wz_buf *out, const struct wz_shown *run, const char *set, const char *metric,
                      const char *judge)
{
    const struct wz_measure *m = wz_measure_find(metric);
    const struct wz_result *b = wz_table_find_by(&run->table, run->first, set, metric, judge),
                           *a = wz_table_find_by(&run->table, run->last, set, metric, judge);
    bool both = a && b && !isnan(a->value) && !isnan(b->value);

    wz_buf_str(out, "<tr><td>");
    write_measure(out, m, metric);
    wz_html_wrap(out, "</td><td>", judge, "</td>");
    write_value(out, m, b);
    write_value(out, m, a);
    wz_buf_printf(out, "<td class=\"num %s\">", both ? colours[verdict(m, b, a) + 1] : "");
    if (both) {
        double change = (m && m->rate ? 100 : 1) * (a->value - b->value);
        wz_buf_printf(out, fabs(change) < 0.05 ? "0.0" : "%+.1f", change);
    }
    const struct wz_result *r = a ? a : b;
    wz_buf_printf(out, "</td><td class=\"num\">%lld</td><td class=\"num\">%lld</td></tr>", (long long)(r ? r->n : 0),
                  (long long)(r ? r->groups : 0));
}

static const char interval_heads[] = "<th class=\"num end\">from</th><th class=\"num end\">to</th>";

static void write_table(struct wz_buf *out, const struct wz_shown *run)
{
    const struct wz_table *t = &run->table;

    wz_buf_str(out, "<table class=\"wide\"><thead><tr><th>by kind of prompt</th><th>judge</th>");
    for (int i = 0; i < 2; i++) {
        wz_html_wrap(out, "<th class=\"num\">", i ? run->last : run->first, "</th>");
        wz_buf_str(out, interval_heads);
    }
    wz_buf_str(out, "<th class=\"num\">change</th><th class=\"num\">n</th><th class=\"num\">groups</th></tr></thead>"
                    "<tbody>");
    for (int i = 0; i < t->n; i++) {
        bool first = true;
        for (int k = 0; k < i; k++) first &= strcmp(t->rows[k].set, t->rows[i].set) != 0;
        if (!first) continue;
        wz_buf_str(out, "<tr class=\"set\"><td colspan=\"11\">");
        wz_kind_write(out, run->recipe, t->rows[i].set);
        wz_buf_str(out, "</td></tr>");
        for (int k = i; k < t->n; k++) {
            bool again = strcmp(t->rows[k].set, t->rows[i].set) != 0;
            for (int j = i; j < k; j++)
                again |= !strcmp(t->rows[j].set, t->rows[k].set) && !strcmp(t->rows[j].metric, t->rows[k].metric) &&
                         !strcmp(t->rows[j].judge, t->rows[k].judge);
            if (!again) write_row(out, run, t->rows[i].set, t->rows[k].metric, t->rows[k].judge);
        }
    }
    wz_html_wrap(out, "</tbody></table><p class=\"note\">", wz_table_note,
                 " From and to are their ends. A change is coloured where the two intervals are apart.</p>");
}

/* The headline's measures averaged over kinds: a row for each phase of a run, or, of several runs, for each run in its
 * last phase. */
static void write_averages(struct wz_buf *out, const struct wz_shown *runs, int n_runs)
{
    const int n = n_runs > 1 ? n_runs : runs->n_phases;

    wz_buf_printf(out,
                  "<table><thead><tr><th>%s</th><th class=\"num\">mean</th>%s<th class=\"num\">n</th></tr></thead>",
                  n_runs > 1 ? "run, at its last evaluation" : "checkpoint", interval_heads);
    wz_buf_str(out, "<tbody>");
    for (size_t i = 0; i < WZ_COUNT(headline); i++) {
        const struct wz_measure *m = wz_measure_find(headline[i]);
        wz_buf_str(out, "<tr class=\"set\"><td colspan=\"5\">");
        write_measure(out, m, headline[i]);
        wz_buf_str(out, "</td></tr>");
        for (int k = 0; k < n; k++) {
            const struct wz_shown *run = n_runs > 1 ? &runs[k] : runs;
            struct wz_result r = average(&run->table, n_runs > 1 ? run->last : run->phases[k], headline[i]);
            wz_html_wrap(out, "<tr><td>", n_runs > 1 ? run->title : run->phases[k], "</td>");
            write_value(out, m, &r);
            wz_buf_printf(out, "<td class=\"num\">%lld</td></tr>", (long long)r.n);
        }
    }
    wz_buf_str(out, "</tbody></table>");
}

/* The results of the WaltzRL paper: averages of its Table 1, rows 1 and 7. */
static const struct wz_spot paper[] = {
    { "paper: base", 0.257, 0.265, NAN, NAN, NAN, NAN },
    { "paper: WaltzRL", 0.076, 0.037, NAN, NAN, NAN, NAN },
};

/* Returns how many lines of runs there are. */
static int draw_plane(struct wz_buf *out, const char *attributes, const struct wz_shown *runs, int n, bool with_paper)
{
    struct wz_path *paths = wz_alloc(wz_mul((size_t)n + 2, sizeof *paths));
    int drawn = 0, of_runs;

    for (int i = 0; i < n; i++)
        if (runs[i].n_spots)
            paths[drawn++] =
                (struct wz_path){ runs[i].title, runs[i].spots, runs[i].n_spots, i % WZ_COLOURS, WZ_PATH_FINAL, n > 1 };
    of_runs = drawn;
    if (n == 1 && runs->n_first_replies)
        paths[drawn++] = (struct wz_path){ "", runs->first_replies, runs->n_first_replies, 2, WZ_PATH_FIRST, false };
    if (with_paper)
        paths[drawn++] = (struct wz_path){ "WaltzRL paper", paper, WZ_COUNT(paper), 7, WZ_PATH_REFERENCE, false };
    wz_plot_plane(out, attributes, "overrefusal rate of benign prompts (ORR)",
                  "unsafe rate of harmful prompts (ASR); lower left is better", paths, drawn);
    free(paths);
    return of_runs;
}

static void write_plane(struct wz_buf *out, const struct wz_shown *runs, int n)
{
    wz_buf_str(out, "<h2>Safety and overrefusal</h2><div class=\"planewrap\"><figure>");
    int drawn = draw_plane(out, "", runs, n, true);
    wz_buf_str(out, "</figure><div>");
    if (!drawn)
        wz_buf_str(
            out, "<p class=\"missing\">No phase has both an unsafe rate and an overrefusal rate: nothing to draw.</p>");
    if (n == 1 && runs->n_first_replies)
        wz_buf_str(out, "<p>Squares are the first replies, before any feedback; circles the final replies.</p>");
    wz_buf_str(
        out, "<p>Each evaluated checkpoint is a point, joined in order; the hollow circle is the start, the large full "
             "one the end, whiskers are 95% intervals. Points in one place have one label. Point at one to read it.</p>"
             "<p class=\"note\">Both rates are plain averages over the kinds of prompts that measure them. The axes "
             "have the scale of a square root: it spreads what is near 0.</p>"
             "<p class=\"note\">Grey diamonds: the averages that the WaltzRL paper reports for its base model and for "
             "its result. They come from another model (Llama-3.1-8B-Instruct), other prompts and another judge, "
             "so they can't be compared with this run.</p></div></div>");
}

static void write_curves(struct wz_buf *out, const struct wz_shown *run)
{
    const struct wz_curves *curves = &run->curves;

    if (*run->no_curves.text) wz_missing_write(out, "The curves could not be read", &run->no_curves);
    else if (!curves->lines) wz_buf_str(out, "<p class=\"missing\">metrics.jsonl holds no steps.</p>");
    if (curves->bad)
        wz_buf_printf(
            out, "<p class=\"missing\">%lld line%s of metrics.jsonl could not be read, the first is line %lld.</p>",
            (long long)curves->bad, curves->bad > 1 ? "s" : "", (long long)curves->first_bad);
    if (curves->lines) wz_curves_write(out, &curves, NULL, 1);
}

static const char about_curves[] =
    "<p class=\"note\">Long curves are smoothed within each stage; the faint line is every step. Numbers beside a name "
    "are the last step's; point at a chart to read a step. Dotted lines: where a stage begins.</p>";

static void write_run(struct wz_buf *out, const struct wz_shown *run, int index, bool alone)
{
    struct wz_err err = { "" };
    char *path = wz_path("%s/transcripts.jsonl", run->dir);
    bool measured = run->table.n > 0;

    wz_buf_printf(out, "<section class=\"run\" id=\"run%d\"><h1>", index);
    wz_html_add(out, alone && run->recipe ? run->recipe->name : run->title);
    if (alone && run->recipe && strcmp(run->recipe->name, run->title))
        wz_html_wrap(out, " <small>", run->title, "</small>");
    wz_buf_str(out, "</h1>");
    wz_facts_write(out, run);
    wz_buf_str(out, "<h2>Before and after</h2>");
    if (*run->no_table.text) wz_missing_write(out, "The results could not be read", &run->no_table);
    else if (!measured) wz_buf_str(out, "<p class=\"missing\">summary.csv holds no results.</p>");
    if (measured && strcmp(run->last, "after"))
        wz_html_wrap(out,
                     "<p class=\"missing\">The run has no evaluation called after; compared with its last one so far, ",
                     run->last, ".</p>");
    if (measured) {
        write_tiles(out, run);
        write_table(out, run);
        if (alone) write_plane(out, run, 1);
        if (run->n_phases > 2) {
            wz_buf_str(out, "<details><summary>Every evaluated checkpoint</summary>");
            write_averages(out, run, 1);
            wz_buf_str(out, "</details>");
        }
    }
    wz_buf_str(out, alone ? "<h2>Curves</h2>" : "<details><summary>Curves of this run alone</summary>");
    write_curves(out, run);
    wz_buf_str(out, alone ? about_curves : "</details>");
    wz_buf_str(out, "<h2>What they say</h2>");
    if (wz_transcripts_write(out, path, run->recipe, index, &err) < 0)
        wz_missing_write(out, "The transcripts could not be read", &err);
    wz_buf_str(out, "<h2>Recipe</h2>");
    if (!run->recipe_text.len) wz_missing_write(out, "Not shown", &run->no_recipe);
    else
        wz_html_wrap(out, "<details><summary>recipe.yaml, with every key</summary><pre>", run->recipe_text.data,
                     "</pre></details>");
    wz_buf_str(out, "</section>");
    free(path);
}

/* ---- runs compared ---------------------------------------------------------------------------------------- */

static const char *value_at(const struct wz_shown *run, const char *path)
{
    const char *value, *key;

    for (int i = 0; run->recipe && (key = wz_recipe_value(run->recipe, i, &value)); i++)
        if (!strcmp(key, path)) return value;
    return NULL;
}

/* A row for each key whose values differ, in order of the first recipe that has it. */
static void write_differences(struct wz_buf *out, const struct wz_shown *runs, int n)
{
    const char *key, *value;
    int written = 0;

    wz_buf_str(out, "<h2>Recipes: what differs</h2><table class=\"diff\"><thead><tr><th>key</th>");
    for (int k = 0; k < n; k++) wz_html_wrap(out, "<th>", runs[k].title, "</th>");
    wz_buf_str(out, "</tr></thead><tbody>");
    for (int k = 0; k < n; k++)
        for (int i = 0; runs[k].recipe && (key = wz_recipe_value(runs[k].recipe, i, &value)); i++) {
            bool differs = false, earlier = false;
            for (int q = 0; q < n; q++) {
                const char *other = value_at(&runs[q], key);
                differs |= runs[q].recipe && (!other || strcmp(other, value));
                earlier |= q < k && other;
            }
            if (!differs || earlier || !strcmp(key, "out")) continue;
            written++;
            wz_html_wrap(out, "<tr><td>", key, "</td>");
            for (int q = 0; q < n; q++) {
                const char *other = value_at(&runs[q], key);
                wz_html_wrap(out, "<td>", other ? other : "\xe2\x80\x93", "</td>");
            }
            wz_buf_str(out, "</tr>");
        }
    wz_buf_printf(out, "</tbody></table><p class=\"note\">%s</p>",
                  written ? "A dash: the recipe has no such key." : "No key but the folder.");
    for (int k = 0; k < n; k++)
        if (!runs[k].recipe) wz_missing_write(out, "Left out: the recipe could not be read", &runs[k].no_recipe);
}

static void write_comparison(struct wz_buf *out, const struct wz_shown *runs, int n)
{
    const struct wz_curves **curves = wz_alloc(wz_mul((size_t)n, sizeof *curves));
    const char **titles = wz_alloc(wz_mul((size_t)n, sizeof *titles));

    wz_buf_printf(out, "<h1>%d runs</h1><div class=\"legend\">", n);
    for (int k = 0; k < n; k++) {
        curves[k] = &runs[k].curves;
        titles[k] = runs[k].title;
        wz_buf_printf(out, "<span><i class=\"c%d\"></i><a href=\"#run%d\">", k % WZ_COLOURS, k);
        wz_html_wrap(out, "", titles[k], "</a></span>");
    }
    wz_buf_str(out, "</div>");
    write_averages(out, runs, n);
    write_differences(out, runs, n);
    write_plane(out, runs, n);
    wz_buf_str(out, "<h2>Curves</h2>");
    wz_curves_write(out, curves, titles, n);
    wz_buf_str(out, about_curves);
    free(curves);
    free(titles);
}

void wz_page_begin(struct wz_buf *out, const char *title)
{
    wz_buf_str(out, "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
                    "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">"
                    "<meta http-equiv=\"Content-Security-Policy\" "
                    "content=\"default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">"
                    "<title>");
    wz_html_add(out, title);
    wz_buf_printf(out, "</title><style>%s</style></head><body><main>\n", wz_report_style);
}

void wz_page_end(struct wz_buf *out) { wz_buf_str(out, "\n</main></body></html>\n"); }

static void write_page(struct wz_buf *out, const struct wz_shown *runs, int n)
{
    wz_page_begin(out, n > 1 ? "Waltz: runs compared" : runs[0].recipe ? runs[0].recipe->name : runs[0].title);
    if (n > 1) write_comparison(out, runs, n);
    for (int i = 0; i < n; i++) write_run(out, &runs[i], i, n == 1);
    wz_page_end(out);
}

int wz_report_write(char *const *folders, int n, const char *path, const char *plane, struct wz_err *err)
{
    struct wz_shown *runs = wz_alloc(wz_mul((size_t)n, sizeof *runs));
    struct wz_buf page = { 0 }, drawing = { 0 }, style = { 0 };
    int opened = 0, rc = 0;

    for (; rc == 0 && opened < n; opened++) rc = wz_run_read(&runs[opened], folders[opened], err);
    if (rc == 0) {
        wz_runs_title(runs, n);
        for (int i = 0; i < n; i++) find_phases(&runs[i]);
        write_page(&page, runs, n);
        rc = wz_file_write(path, page.data, page.len, err);
    }
    if (rc == 0 && plane) {
        draw_plane(&drawing, "xmlns=\"http://www.w3.org/2000/svg\"", runs, n, false);
        wz_buf_printf(&style, "<style>%s</style></svg>\n", wz_report_style);
        drawing.len -= strlen("</svg>");
        wz_buf_add(&drawing, style.data, style.len);
        rc = wz_file_write(plane, drawing.data, drawing.len, err);
    }
    for (int i = 0; i < opened; i++) wz_run_finish(&runs[i]);
    free(runs);
    wz_buf_finish(&page);
    wz_buf_finish(&drawing);
    wz_buf_finish(&style);
    return rc;
}
