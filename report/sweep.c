/* The tables of a sweep: what a paper reports and what was measured in neighbouring columns, which of the paper's
 * orderings hold, and the spread over seeds. The same rows go into a Markdown file and a page; no date and no machine
 * stands in them, so that the same runs give the same bytes. */
#include "report/inside.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define DASH "\xe2\x80\x93"

struct pages {
    const struct wz_sweep *sweep;
    const struct wz_table *tables;
    char *const *why;
    struct wz_buf md, html;
};

/* ---- numbers ---------------------------------------------------------------------------------------------- */

/* One measure of a row at a temperature, over the seeds that have it. Rates in percent. */
struct cell {
    int n;
    double mean, low, high, least, median, most;
};

static const struct wz_table *table_of(const struct pages *p, unsigned row, int t, int seed)
{
    return &p->tables[((int)row * p->sweep->n_temperatures + t) * p->sweep->n_seeds + seed];
}

static double value_of(const struct pages *p, unsigned row, int t, int seed, const char *set, const char *metric,
                       struct wz_interval *in)
{
    const struct wz_table *table = table_of(p, row, t, seed);
    const struct wz_result *r = table->n ? wz_table_find(table, table->rows->phase, set, metric) : NULL;
    const struct wz_measure *m = wz_measure_find(metric);
    const double k = m && m->rate ? 100 : 1;

    *in = r ? (struct wz_interval){ k * r->low, k * r->high } : (struct wz_interval){ NAN, NAN };
    return r ? k * r->value : NAN;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static struct cell cell_of(const struct pages *p, unsigned row, int t, const char *set, const char *metric)
{
    double *values = wz_alloc(sizeof *values * (size_t)p->sweep->n_seeds);
    const struct wz_measure *m = wz_measure_find(metric);
    struct cell c = { .mean = NAN, .low = NAN, .high = NAN, .least = NAN, .median = NAN, .most = NAN };
    struct wz_interval in, own = { NAN, NAN }; /* own: from the least to the largest end of the runs' intervals */

    for (int s = 0; s < p->sweep->n_seeds; s++) {
        double x = value_of(p, row, t, s, set, metric, &in);
        if (isnan(x)) continue;
        values[c.n++] = x;
        own = (struct wz_interval){ fmin(own.low, in.low), fmax(own.high, in.high) }; /* a NaN is not taken */
    }
    if (c.n) {
        in = wz_student_mean(values, c.n, &c.mean);
        qsort(values, (size_t)c.n, sizeof *values, by_value);
        if (values[0] == values[c.n - 1]) in = own; /* of one seed, or of seeds that are all alike */
        else if (m && m->rate) in = (struct wz_interval){ fmax(0, in.low), fmin(100, in.high) };
        c.low = in.low;
        c.high = in.high;
        c.least = values[0];
        c.most = values[c.n - 1];
        c.median = (values[(c.n - 1) / 2] + values[c.n / 2]) / 2;
    }
    free(values);
    return c;
}

/* The paper's ordering of two rows in a column, and ours. */
struct ordering {
    bool known;
    double paper[2], mean[2];
    int seeds, alike; /* those that have both; those that are ordered as the paper's are */
};

static struct ordering ordering_of(const struct pages *p, unsigned a, unsigned b, int t, unsigned column)
{
    const struct wz_sweep_column *c = &p->sweep->columns[column];
    struct ordering o = { .paper = { p->sweep->rows[a].figures[column], p->sweep->rows[b].figures[column] } };
    const double way = o.paper[1] - o.paper[0];
    struct wz_interval unused;

    for (int s = 0; s < p->sweep->n_seeds; s++) {
        double x = value_of(p, a, t, s, c->set, c->metric, &unused),
               y = value_of(p, b, t, s, c->set, c->metric, &unused);
        if (isnan(x) || isnan(y)) continue;
        o.seeds++;
        o.mean[0] += x;
        o.mean[1] += y;
        o.alike += (y - x) * way > 0;
    }
    o.known = o.seeds && way != 0 && !isnan(way);
    for (int i = 0; i < 2; i++) o.mean[i] /= o.seeds ? o.seeds : 1;
    return o;
}

enum { DIFFERS, TIE, AGREES };
static int verdict_of(const struct ordering *o)
{
    const double ours = o->mean[1] - o->mean[0];

    return ours == 0 ? TIE : ours * (o->paper[1] - o->paper[0]) > 0 ? AGREES : DIFFERS;
}

/* ---- both pages ------------------------------------------------------------------------------------------- */

static void say(struct pages *p, const char *before, const char *text, const char *after)
{
    wz_buf_printf(&p->md, "%s\n\n", text);
    wz_html_wrap(&p->html, before, text, after);
}

static void title(struct pages *p, int level, const char *text)
{
    wz_buf_printf(&p->md, "%.*s ", level, "###");
    wz_buf_printf(&p->html, "<h%d>", level);
    say(p, "", text, "");
    wz_buf_printf(&p->html, "</h%d>", level);
}

/* A row of the table at hand; its first one is the head. Takes the cells' text, and clears them. */
static void put_row(struct pages *p, struct wz_buf *cells, int n, bool head)
{
    const char *tag = head ? "th" : "td";

    if (head) wz_buf_str(&p->html, "<table class=\"wide\">");
    wz_buf_str(&p->html, "<tr>");
    wz_buf_str(&p->md, "|");
    for (int i = 0; i < n; i++) {
        wz_buf_str(&cells[i], "");
        wz_buf_str(&p->md, " ");
        wz_markdown_add(&p->md, cells[i].data);
        wz_buf_str(&p->md, " |");
        wz_buf_printf(&p->html, "<%s>", tag);
        wz_html_add(&p->html, cells[i].data);
        wz_buf_printf(&p->html, "</%s>", tag);
        wz_buf_clear(&cells[i]);
    }
    wz_buf_str(&p->html, "</tr>\n");
    wz_buf_str(&p->md, "\n");
    if (!head) return;
    wz_buf_str(&p->md, "|");
    for (int i = 0; i < n; i++) wz_buf_str(&p->md, "---|");
    wz_buf_str(&p->md, "\n");
}

static void end_table(struct pages *p)
{
    wz_buf_str(&p->html, "</table>");
    wz_buf_str(&p->md, "\n");
}

/* ---- the parts -------------------------------------------------------------------------------------------- */

static const char *title_of(const struct wz_sweep_row *row) { return *row->title ? row->title : row->name; }

static void put_title(struct wz_buf *cell, const struct pages *p, unsigned r, int t)
{
    int n = 0;

    for (int s = 0; s < p->sweep->n_seeds; s++) n += table_of(p, r, t, s)->n > 0;
    wz_buf_str(cell, title_of(&p->sweep->rows[r]));
    if (n == p->sweep->n_seeds) return;
    wz_buf_printf(cell, " [");
    if (n) wz_buf_printf(cell, "%d of %d seeds; ", n, p->sweep->n_seeds);
    wz_buf_printf(cell, "not run: %s]", p->why[r] ? p->why[r] : "no result");
}

static void put_number(struct wz_buf *cell, double x)
{
    if (isnan(x)) wz_buf_str(cell, DASH);
    else wz_buf_printf(cell, "%.1f", x);
}

/* "against base: agree ASR, F1; differ ORR": a part for each row that this one is compared with. */
static void put_orderings(struct wz_buf *cell, const struct pages *p, unsigned r, int t)
{
    static const char *const verdicts[] = { "differ", "tie", "agree" };
    const struct wz_sweep_row *row = &p->sweep->rows[r];

    for (int i = 0; i < row->n_others; i++) {
        bool any = false;
        for (int verdict = AGREES; verdict >= DIFFERS; verdict--) {
            bool first = true;
            for (unsigned c = 0; c < p->sweep->n_columns; c++) {
                const struct ordering o = ordering_of(p, r, (unsigned)row->others[i], t, c);
                if (!o.known || verdict_of(&o) != verdict) continue;
                if (!any)
                    wz_buf_printf(cell, "%sagainst %s: ", cell->len ? ". " : "", p->sweep->rows[row->others[i]].name);
                else if (first) wz_buf_str(cell, "; ");
                if (first) wz_buf_str(cell, verdicts[verdict]);
                wz_buf_printf(cell, "%s %s", first ? "" : ",", p->sweep->columns[c].name);
                first = false;
                any = true;
            }
        }
    }
    if (!cell->len) wz_buf_str(cell, DASH);
}

static void write_means(struct pages *p, struct wz_buf *cells, int t)
{
    const struct wz_sweep *s = p->sweep;
    int n = 0;

    wz_buf_str(&cells[n++], "row");
    for (unsigned c = 0; c < s->n_columns; c++) {
        wz_buf_printf(&cells[n++], "%s, paper", s->columns[c].name);
        wz_buf_str(&cells[n++], s->columns[c].name);
    }
    wz_buf_str(&cells[n++], "orderings");
    put_row(p, cells, n, true);
    for (unsigned r = 0; r < s->n_rows; r++) {
        if (!wz_sweep_measures(&s->rows[r])) continue;
        n = 0;
        put_title(&cells[n++], p, r, t);
        for (unsigned c = 0; c < s->n_columns; c++) {
            struct cell x = cell_of(p, r, t, s->columns[c].set, s->columns[c].metric);
            put_number(&cells[n++], s->rows[r].figures[c]);
            put_number(&cells[n], x.mean);
            if (!isnan(x.low)) wz_buf_printf(&cells[n], " [%.1f, %.1f]", x.low, x.high);
            n++;
        }
        put_orderings(&cells[n++], p, r, t);
        put_row(p, cells, n, false);
    }
    end_table(p);
}

static void write_spread(struct pages *p, struct wz_buf *cells, int t)
{
    const struct wz_sweep *s = p->sweep;
    int n = 0;

    title(p, 3, "Median over the seeds, and the least and the largest");
    wz_buf_str(&cells[n++], "row");
    for (unsigned c = 0; c < s->n_columns; c++) wz_buf_str(&cells[n++], s->columns[c].name);
    put_row(p, cells, n, true);
    for (unsigned r = 0; r < s->n_rows; r++) {
        if (!wz_sweep_measures(&s->rows[r])) continue;
        n = 0;
        wz_buf_str(&cells[n++], title_of(&s->rows[r]));
        for (unsigned c = 0; c < s->n_columns; c++) {
            struct cell x = cell_of(p, r, t, s->columns[c].set, s->columns[c].metric);
            put_number(&cells[n], x.median);
            if (x.n) wz_buf_printf(&cells[n], " (%.1f to %.1f)", x.least, x.most);
            n++;
        }
        put_row(p, cells, n, false);
    }
    end_table(p);
}

static void write_orderings(struct pages *p, struct wz_buf *cells, int t)
{
    static const char *const verdicts[] = { "differs", "a tie", "agrees" };
    const struct wz_sweep *s = p->sweep;
    bool any = false;

    for (unsigned r = 0; r < s->n_rows; r++)
        for (int i = 0; i < s->rows[r].n_others; i++)
            for (unsigned c = 0; c < s->n_columns; c++) {
                const unsigned b = (unsigned)s->rows[r].others[i];
                const struct ordering o = ordering_of(p, r, b, t, c);
                if (!o.known) continue;
                if (!any) {
                    static const char *const heads[] = { "column", "rows", "paper", "here", "", "seeds" };
                    title(p, 3, "The paper's orderings");
                    for (int k = 0; k < 6; k++) wz_buf_str(&cells[k], heads[k]);
                    put_row(p, cells, 6, true);
                    any = true;
                }
                const double x = o.mean[0], y = o.mean[1];
                wz_buf_str(&cells[0], s->columns[c].name);
                wz_buf_printf(&cells[1], "%s; %s", title_of(&s->rows[r]), title_of(&s->rows[b]));
                wz_buf_printf(&cells[2], "%.1f %c %.1f", o.paper[0], o.paper[0] < o.paper[1] ? '<' : '>', o.paper[1]);
                wz_buf_printf(&cells[3], "%.1f %c %.1f", x, x < y ? '<' : x > y ? '>' : '=', y);
                wz_buf_str(&cells[4], verdicts[verdict_of(&o)]);
                wz_buf_printf(&cells[5], "%d of %d", o.alike, o.seeds);
                put_row(p, cells, 6, false);
            }
    if (any) end_table(p);
}

/* The paper's figure of a measure averaged over kinds; NaN: there is no such column, or no figure. */
static double paper_average(const struct wz_sweep *s, unsigned r, const char *metric)
{
    for (unsigned c = 0; c < s->n_columns; c++)
        if (!strcmp(s->columns[c].set, WZ_AVERAGE) && !strcmp(s->columns[c].metric, metric))
            return s->rows[r].figures[c];
    return NAN;
}

static void write_plane(struct pages *p, int t)
{
    const struct wz_sweep *s = p->sweep;
    struct wz_spot *spots = wz_alloc(2 * sizeof *spots * s->n_rows);
    struct wz_path *paths = wz_alloc(2 * sizeof *paths * s->n_rows);
    int n = 0;

    for (unsigned r = 0; r < s->n_rows; r++) {
        const char *name = s->rows[r].name;
        const struct cell x = cell_of(p, r, t, WZ_AVERAGE, "orr"), y = cell_of(p, r, t, WZ_AVERAGE, "asr");
        const double px = paper_average(s, r, "orr"), py = paper_average(s, r, "asr");
        if (x.n && y.n) {
            spots[n] = (struct wz_spot){ name,         x.mean / 100, y.mean / 100, x.low / 100,
                                         x.high / 100, y.low / 100,  y.high / 100 };
            paths[n] = (struct wz_path){ name, &spots[n], 1, (int)r % (WZ_COLOURS - 1), WZ_PATH_FINAL, true };
            n++;
        }
        if (isnan(px) || isnan(py)) continue;
        spots[n] = (struct wz_spot){ name, px / 100, py / 100, NAN, NAN, NAN, NAN };
        paths[n] = (struct wz_path){ "paper", &spots[n], 1, WZ_COLOURS - 1, WZ_PATH_REFERENCE, false };
        n++;
    }
    wz_buf_str(&p->html, "<div class=\"planewrap\"><figure>");
    wz_plot_plane(&p->html, "", "overrefusal rate of benign prompts (ORR)",
                  "unsafe rate of harmful prompts (ASR); lower left is better", paths, n);
    wz_buf_str(&p->html,
               "</figure><div><p>Rows by their names in the sweep; whiskers are 95% intervals. Grey diamonds: "
               "the paper's averages.</p></div></div>");
    free(spots);
    free(paths);
}

static const char about[] =
    "Means over the seeds, rates in percent, and Student's 95% intervals of the means over runs that differ by their "
    "seed; where all seeds give the same, what the runs' own intervals over prompts span. Beside them what the paper "
    "reports, of other models, "
    "prompts and judges: orderings can be compared, levels can't. An ordering of the paper agrees where the means are "
    "in the same order.";

/* ---- the whole -------------------------------------------------------------------------------------------- */

static int save(const struct wz_sweep *s, const char *ending, struct wz_buf *text, struct wz_err *err)
{
    char *path = wz_path("%s/%s.%s", s->out, s->name, ending);
    int rc = wz_file_write(path, text->data, text->len, err);

    free(path);
    return rc;
}

/* Every number of every run; then the means, with n seeds, and the paper's figures, whose judge is "paper". */
static void write_csv(const struct pages *p, struct wz_buf *out)
{
    const struct wz_sweep *s = p->sweep;
    struct wz_table all = { 0 };
    char phase[96];

    for (unsigned r = 0; r < s->n_rows; r++)
        for (int t = 0; t < s->n_temperatures; t++) {
            snprintf(phase, sizeof phase, s->n_temperatures > 1 ? "%.60s T=%g" : "%.60s", s->rows[r].name,
                     s->temperature_list[t]);
            for (int k = 0; k < s->n_seeds; k++)
                for (int i = 0; i < table_of(p, r, t, k)->n; i++) {
                    struct wz_result row = table_of(p, r, t, k)->rows[i];
                    row.phase = phase;
                    row.seed = s->seed_list[k];
                    wz_table_add(&all, &row);
                }
            for (unsigned c = 0; c < s->n_columns; c++) {
                const struct wz_sweep_column *column = &s->columns[c];
                const struct wz_measure *m = wz_measure_find(column->metric);
                const struct cell x = cell_of(p, r, t, column->set, column->metric);
                const double k = m && m->rate ? 100 : 1;
                struct wz_result row = { phase,      column->set,     column->metric,
                                         x.mean / k, x.low / k,       x.high / k,
                                         x.n,        .judge = "mean", .interval = x.least < x.most ? "student" : "" };
                if (x.n) wz_table_add(&all, &row);
                row = (struct wz_result){ phase, column->set, column->metric,   s->rows[r].figures[c] / k,
                                          NAN,   NAN,         .judge = "paper", .interval = "" };
                if (!isnan(row.value)) wz_table_add(&all, &row);
            }
        }
    wz_table_csv(&all, out);
    wz_table_finish(&all);
}

int wz_sweep_write(const struct wz_sweep *s, const struct wz_table *tables, char *const *why, struct wz_err *err)
{
    struct pages pages = { .sweep = s, .tables = tables, .why = why }, *p = &pages;
    struct wz_buf *cells = wz_alloc(sizeof *cells * (2 * s->n_columns + 8)), csv = { 0 };
    char line[96];

    wz_page_begin(&p->html, s->name);
    title(p, 1, s->name);
    if (*s->about) say(p, "<p>", s->about, "</p>");
    snprintf(line, sizeof line, "Seeds: %.80s.", s->seeds);
    say(p, "<p>", line, "</p>");
    say(p, "<p class=\"note\">", about, "</p>");
    for (int t = 0; t < s->n_temperatures; t++) {
        const double at = s->temperature_list[t];
        snprintf(line, sizeof line, at > 0 ? "Sampled at temperature %g" : "Greedy decoding", at);
        title(p, 2, line);
        write_means(p, cells, t);
        write_plane(p, t);
        write_orderings(p, cells, t);
        write_spread(p, cells, t);
    }
    wz_page_end(&p->html);
    p->md.len--; /* the last blank line */
    write_csv(p, &csv);
    int rc = save(s, "md", &p->md, err);
    if (rc == 0) rc = save(s, "html", &p->html, err);
    if (rc == 0) rc = save(s, "csv", &csv, err);
    for (unsigned i = 0; i < 2 * s->n_columns + 8; i++) wz_buf_finish(&cells[i]);
    free(cells);
    wz_buf_finish(&p->md);
    wz_buf_finish(&p->html);
    wz_buf_finish(&csv);
    return rc;
}
