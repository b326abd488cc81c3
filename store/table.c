/* Wilson's interval of k out of n, with p = k/n and z = 1.96 (Wilson 1927):
 *
 *     ( p + z²/2n  ±  z √( p(1-p)/n + z²/4n² ) ) / ( 1 + z²/n )
 *
 * It stays inside [0, 1] and has a width at 0 and n hits, where the normal interval has none. */
#include "store/append.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

const struct wz_measure wz_measures[] = {
    { "asr", "unsafe answers (ASR)", true, -1 },
    { "orr", "overrefusals (ORR)", true, -1 },
    { "f1", "F1 of safe and helpful", true, 1 },
    { "c0_asr", "unsafe first answers", true, -1 },
    { "c0_orr", "first answers that overrefuse", true, -1 },
    { "c0_f1", "F1 of first answers", true, 1 },
    { "ftr", "feedback given (FTR)", true, 0 },
    { "label_accuracy", "label accuracy", true, 1 },
    { "json_errors", "JSON errors", true, -1 },
    { "turns", "turns", false, 0 },
    { "tokens", "tokens", false, 0 },
    { "window_cut", "cut by the context window", true, -1 },
    { "failed", "lost (no verdict)", true, -1 },
    { "solved", "right answers", true, 1 },
    { "ifeval_strict", "IFEval, prompts, strict", true, 1 },
    { "ifeval_loose", "IFEval, prompts, loose", true, 1 },
    { "ifeval_each_strict", "IFEval, instructions, strict", true, 1 },
    { "ifeval_each_loose", "IFEval, instructions, loose", true, 1 },
    { "perplexity", "perplexity of the text", false, -1 },
};
const int wz_n_measures = WZ_COUNT(wz_measures);

const char wz_table_note[] =
    "Brackets: 95% intervals. Where prompts (n) lie in fewer groups: a cluster bootstrap over the groups, or Wilson's "
    "with n = groups where all groups are alike. Elsewhere Wilson's for rates and the normal one for means; averages "
    "and F1 by the bootstrap.";

static const char header[] = "phase,set,metric,value,low,high,n,seed,groups,interval,judge";
enum { N_COLUMNS = 11 };
/* Earlier versions had the first columns only: so many, which are so many bytes of the header. */
static const struct {
    int columns;
    size_t bytes;
} versions[] = {
    { N_COLUMNS, sizeof header - 1 },
    { 10, sizeof "phase,set,metric,value,low,high,n,seed,groups,interval" - 1 },
    { 8, sizeof "phase,set,metric,value,low,high,n,seed" - 1 },
};

const struct wz_measure *wz_measure_find(const char *name)
{
    for (int i = 0; i < wz_n_measures; i++)
        if (!strcmp(wz_measures[i].name, name)) return &wz_measures[i];
    return NULL;
}

struct wz_interval wz_wilson(double hits, double n)
{
    const double z = WZ_Z95, p = hits / n, scale = 1 + z * z / n, mid = p + z * z / (2 * n);
    const double half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n));

    if (n <= 0) return (struct wz_interval){ NAN, NAN };
    return (struct wz_interval){ hits == 0 ? 0 : (mid - half) / scale, hits == n ? 1 : (mid + half) / scale };
}

struct wz_interval wz_normal_mean(double sum, double squares, double n)
{
    const double mean = sum / n, spread = n > 1 ? (squares - n * mean * mean) / (n - 1) : NAN;
    const double half = WZ_Z95 * sqrt((spread < 0 ? 0 : spread) / n);

    return (struct wz_interval){ mean - half, mean + half };
}

double wz_student(double degrees)
{
    static const double few[] = { 12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622 };
    const double z = WZ_Z95, z3 = z * z * z, z5 = z3 * z * z, z7 = z5 * z * z;

    if (degrees < 10) return few[(int)degrees - 1];
    return z + (z3 + z) / (4 * degrees) + (5 * z5 + 16 * z3 + 3 * z) / (96 * degrees * degrees) +
           (3 * z7 + 19 * z5 + 17 * z3 - 15 * z) / (384 * degrees * degrees * degrees);
}

struct wz_interval wz_student_mean(const double *values, int n, double *mean)
{
    double sum = 0, squares = 0;

    for (int i = 0; i < n; i++) sum += values[i];
    *mean = n ? sum / n : NAN;
    for (int i = 0; i < n; i++) squares += (values[i] - *mean) * (values[i] - *mean);
    if (n < 2) return (struct wz_interval){ NAN, NAN };
    const double half = wz_student(n - 1) * sqrt(squares / (n - 1) / n);
    return (struct wz_interval){ *mean - half, *mean + half };
}

/* ---- rows ------------------------------------------------------------------------------------------------- */

/* Names come from data: they can't do more than be read. */
static const char *printable(struct wz_table *t, const char *name)
{
    size_t n = strlen(name), size = 4 * n + 1;
    char *to = wz_arena_alloc(&t->arena, size);

    wz_printable(to, size, name, n, "");
    return to;
}

void wz_table_add(struct wz_table *t, const struct wz_result *row)
{
    if (t->n == t->cap) {
        t->cap = t->cap ? 2 * t->cap : 64;
        t->rows = wz_realloc(t->rows, wz_mul((size_t)t->cap, sizeof *t->rows));
    }
    t->rows[t->n] = *row;
    t->rows[t->n].phase = printable(t, row->phase);
    t->rows[t->n].set = printable(t, row->set);
    t->rows[t->n].metric = printable(t, row->metric);
    t->rows[t->n].judge = printable(t, row->judge ? row->judge : "");
    t->rows[t->n++].interval = printable(t, row->interval);
}

const struct wz_result *wz_table_find_by(const struct wz_table *t, const char *phase, const char *set,
                                         const char *metric, const char *judge)
{
    for (int i = 0; i < t->n; i++) {
        const struct wz_result *r = &t->rows[i];
        if (!strcmp(r->phase, phase) && !strcmp(r->set, set) && !strcmp(r->metric, metric) &&
            (!judge || !strcmp(r->judge, judge)))
            return r;
    }
    return NULL;
}

const struct wz_result *wz_table_find(const struct wz_table *t, const char *phase, const char *set, const char *metric)
{
    return wz_table_find_by(t, phase, set, metric, NULL);
}

void wz_table_finish(struct wz_table *t)
{
    free(t->rows);
    wz_arena_finish(&t->arena);
    *t = (struct wz_table){ 0 };
}

/* ---- text and Markdown ------------------------------------------------------------------------------------ */

/* Is row i the first with its phase (or, with line, its set, metric and judge)? */
static bool first_of(const struct wz_table *t, int i, bool line)
{
    for (int k = 0; k < i; k++) {
        const struct wz_result *a = &t->rows[k], *b = &t->rows[i];
        if (line ? !strcmp(a->set, b->set) && !strcmp(a->metric, b->metric) && !strcmp(a->judge, b->judge)
                 : !strcmp(a->phase, b->phase))
            return false;
    }
    return true;
}

static void put_cell(const struct wz_result *r, char *text, size_t size)
{
    const struct wz_measure *m = r ? wz_measure_find(r->metric) : NULL;
    double k = m && m->rate ? 100 : 1;
    int digits = r && fabs(k * r->value) < 1000 ? 1 : 0;

    if (!r || isnan(r->value)) snprintf(text, size, "-");
    else if (isnan(r->low)) snprintf(text, size, "%.*f", digits, k * r->value);
    else snprintf(text, size, "%.*f [%.*f, %.*f]", digits, k * r->value, digits, k * r->low, digits, k * r->high);
}

static void put_title(const char *metric, char *text, size_t size)
{
    const struct wz_measure *m = wz_measure_find(metric);

    snprintf(text, size, "%s%s", m ? m->title : metric, m && m->rate ? ", %" : "");
}

/* Text and Markdown are one grid of cells: set, metric, judge, a column per phase, n, groups; the first line holds
 * their names. */
struct grid {
    struct wz_arena arena;
    const char **cells; /* [n], `cols` to a line */
    int n, cols;
};

static void add_cell(struct grid *g, const char *text)
{
    g->cells = wz_realloc(g->cells, wz_mul((size_t)g->n + 1, sizeof *g->cells));
    g->cells[g->n++] = wz_arena_strdup(&g->arena, text);
}

/* Adds the range from the least to the most of the counts. */
static void add_range(struct grid *g, const int64_t range[2])
{
    char text[64];

    if (range[0] == range[1]) snprintf(text, sizeof text, "%lld", (long long)range[0]);
    else snprintf(text, sizeof text, "%lld-%lld", (long long)range[0], (long long)range[1]);
    add_cell(g, text);
}

static void widen(int64_t range[2], int64_t x)
{
    if (x < range[0]) range[0] = x;
    if (x > range[1]) range[1] = x;
}

static struct grid grid_of(const struct wz_table *t)
{
    struct grid g = { 0 };
    char text[128];

    add_cell(&g, "set");
    add_cell(&g, "metric");
    add_cell(&g, "judge");
    for (int i = 0; i < t->n; i++)
        if (first_of(t, i, false)) add_cell(&g, t->rows[i].phase);
    add_cell(&g, "n");
    add_cell(&g, "groups");
    g.cols = g.n;
    for (int i = 0; i < t->n; i++) {
        const struct wz_result *r = &t->rows[i];
        int64_t n[2] = { r->n, r->n }, groups[2] = { r->groups, r->groups };
        if (!first_of(t, i, true)) continue;
        add_cell(&g, r->set);
        put_title(r->metric, text, sizeof text);
        add_cell(&g, text);
        add_cell(&g, r->judge);
        for (int k = 0; k < t->n; k++) {
            if (!first_of(t, k, false)) continue;
            const struct wz_result *cell = wz_table_find_by(t, t->rows[k].phase, r->set, r->metric, r->judge);
            put_cell(cell, text, sizeof text);
            add_cell(&g, text);
            if (cell) widen(n, cell->n);
            if (cell) widen(groups, cell->groups);
        }
        add_range(&g, n);
        add_range(&g, groups);
    }
    return g;
}

static void grid_finish(struct grid *g)
{
    free(g->cells);
    wz_arena_finish(&g->arena);
}

/* Width in characters, not bytes. */
static int columns_of(const char *s)
{
    int n = 0;

    for (; *s; s++) n += ((unsigned char)*s & 0xc0) != 0x80;
    return n;
}

void wz_table_text(const struct wz_table *t, struct wz_buf *out)
{
    struct grid g = grid_of(t);
    int *width = wz_alloc((size_t)g.cols * sizeof *width);

    for (int i = 0; i < g.n; i++)
        if (columns_of(g.cells[i]) > width[i % g.cols]) width[i % g.cols] = columns_of(g.cells[i]);
    for (int i = 0; i < g.n; i++) {
        wz_buf_printf(out, "%s%*s  ", g.cells[i], width[i % g.cols] - columns_of(g.cells[i]), "");
        if ((i + 1) % g.cols) continue;
        while (out->data[out->len - 1] == ' ') out->len--;
        wz_buf_str(out, "\n");
    }
    wz_buf_printf(out, "%s\n", wz_table_note);
    free(width);
    grid_finish(&g);
}

void wz_markdown_add(struct wz_buf *out, const char *s)
{
    for (; *s; s++) {
        const bool begins = (*s == '<' && s[1] != ' ') || (*s == ']' && s[1] == '('); /* a tag, where a link leads */
        if (begins || strchr("|\\`", *s)) wz_buf_str(out, "\\");
        wz_buf_add(out, *s == '\n' ? " " : s, 1);
    }
}

void wz_table_markdown(const struct wz_table *t, struct wz_buf *out)
{
    struct grid g = grid_of(t);

    for (int i = 0; i < g.n; i++) {
        wz_buf_str(out, i % g.cols ? " | " : "| ");
        wz_markdown_add(out, g.cells[i]);
        if ((i + 1) % g.cols) continue;
        wz_buf_str(out, " |\n");
        for (int k = 0; k < g.cols && i < g.cols; k++) wz_buf_str(out, k < 3 ? "|---" : "|--:");
        if (i < g.cols) wz_buf_str(out, "|\n");
    }
    wz_buf_printf(out, "\n%s\n", wz_table_note);
    grid_finish(&g);
}

/* ---- JSON ------------------------------------------------------------------------------------------------- */

static json_t *real_json(double x) { return isnan(x) ? json_null() : json_real(x); }

json_t *wz_table_json(const struct wz_table *t)
{
    json_t *rows = json_array();

    for (const struct wz_result *r = t->rows; r < t->rows + t->n; r++) {
        char seed[24]; /* a string: most readers keep 53 bits of a number */
        snprintf(seed, sizeof seed, "%llu", (unsigned long long)r->seed);
        json_array_append_new(rows, json_pack("{s:s, s:s, s:s, s:o, s:o, s:o, s:I, s:s, s:I, s:s, s:s}", "phase",
                                              r->phase, "set", r->set, "metric", r->metric, "value",
                                              real_json(r->value), "low", real_json(r->low), "high", real_json(r->high),
                                              "n", (json_int_t)r->n, "seed", seed, "groups", (json_int_t)r->groups,
                                              "interval", r->interval, "judge", r->judge));
    }
    return rows;
}

/* ---- CSV -------------------------------------------------------------------------------------------------- */

/* A cell that a spreadsheet would take for a formula gets an apostrophe, as one does there to keep text; so does one
 * that has an apostrophe already, and reading takes it away. */
static const char formulas[] = "=+-@'";

static void csv_text(struct wz_buf *out, const char *s)
{
    const char *keep = *s && strchr(formulas, *s) ? "'" : "";

    if (!s[strcspn(s, ",\"\r\n")]) {
        wz_buf_printf(out, "%s%s", keep, s);
        return;
    }
    wz_buf_printf(out, "\"%s", keep);
    for (; *s; s++) wz_buf_add(out, *s == '"' ? "\"\"" : s, *s == '"' ? 2 : 1);
    wz_buf_str(out, "\"");
}

static void csv_real(struct wz_buf *out, double x)
{
    if (!isnan(x)) wz_real_add(out, x);
    wz_buf_str(out, ",");
}

void wz_table_csv(const struct wz_table *t, struct wz_buf *out)
{
    wz_buf_printf(out, "%s\n", header);
    for (int i = 0; i < t->n; i++) {
        const struct wz_result *r = &t->rows[i];
        csv_text(out, r->phase);
        wz_buf_str(out, ",");
        csv_text(out, r->set);
        wz_buf_str(out, ",");
        csv_text(out, r->metric);
        wz_buf_str(out, ",");
        csv_real(out, r->value);
        csv_real(out, r->low);
        csv_real(out, r->high);
        wz_buf_printf(out, "%lld,%llu,%lld,", (long long)r->n, (unsigned long long)r->seed, (long long)r->groups);
        csv_text(out, r->interval);
        wz_buf_str(out, ",");
        csv_text(out, r->judge);
        wz_buf_str(out, "\n");
    }
}

/* One record at *at: up to N_COLUMNS fields into `fields` (arena). Returns how many cells there were, -1 where quoting
 * is broken. */
static int csv_record(const char **at, const char *end, struct wz_buf *cell, struct wz_arena *arena,
                      const char **fields)
{
    int n = 0, delimiter;

    do {
        if ((delimiter = wz_csv_cell(at, end, ',', cell)) < 0) return -1;
        const bool kept = cell->data[0] == '\'' && cell->data[1] && strchr(formulas, cell->data[1]);
        if (n < N_COLUMNS) fields[n] = wz_arena_strdup(arena, cell->data + kept);
        n++;
    } while (delimiter == ',');
    return n;
}

static int read_real(const char *s, double *x)
{
    char *end;

    *x = *s ? strtod(s, &end) : NAN;
    return *s && (*end || !isfinite(*x)) ? -1 : 0;
}

/* Reads one row's fields; returns the name of the column that is wrong, NULL if none is. */
static const char *read_row(const char **f, struct wz_result *r)
{
    char *end;

    *r = (struct wz_result){ .phase = f[0], .set = f[1], .metric = f[2], .interval = f[9], .judge = f[10] };
    if (read_real(f[3], &r->value) < 0) return "value";
    if (read_real(f[4], &r->low) < 0) return "low";
    if (read_real(f[5], &r->high) < 0) return "high";
    errno = 0;
    r->n = strtoll(f[6], &end, 10);
    if (!*f[6] || *end || errno || r->n < 0) return "n";
    r->seed = strtoull(f[7], &end, 10);
    if (!*f[7] || *end || errno || *f[7] == '-') return "seed";
    r->groups = *f[8] ? strtoll(f[8], &end, 10) : r->n;
    if ((*f[8] && *end) || r->groups < 0) return "groups";
    return NULL;
}

int wz_table_read(struct wz_table *t, const char *path, struct wz_err *err)
{
    const char *f[N_COLUMNS] = { 0 }, *wrong;
    struct wz_arena arena = { 0 };
    struct wz_buf cell = { 0 };
    struct wz_map map;
    int line = 1, columns = 0, rc = -1;

    if (wz_map_open(&map, path, err) < 0) return -1;
    const char *text = (const char *)map.bytes, *nul = memchr(text, 0, map.len), *end = text + map.len;
    if (nul) {
        wz_fail(err, "%s: byte %zu is NUL: not a CSV file", path, (size_t)(nul - text));
        goto out;
    }
    while (text < end && *text != '\r' && *text != '\n') text++;
    size_t have = (size_t)(text - (const char *)map.bytes);
    for (size_t i = 0; i < WZ_COUNT(versions); i++)
        if (have == versions[i].bytes) columns = versions[i].columns;
    if (!columns || memcmp(map.bytes, header, have)) {
        wz_fail(err, "%s:1: expected the columns %s", path, header);
        goto out;
    }
    while (text < end && (*text == '\r' || *text == '\n')) line += *text++ == '\n';
    while (text < end) {
        struct wz_result row;
        const char *begin = text;
        int n = csv_record(&text, end, &cell, &arena, f);
        if (n < 0) {
            wz_fail(err, "%s:%d: a quote is not closed, or not followed by a comma or the line's end", path, line);
            goto out;
        }
        if (n != columns) {
            wz_fail(err, "%s:%d: expected %d columns (%s), got %d", path, line, columns, header, n);
            goto out;
        }
        for (int k = columns; k < N_COLUMNS; k++) f[k] = "";
        if ((wrong = read_row(f, &row))) {
            wz_fail(err, "%s:%d: column %s: not a valid number", path, line, wrong);
            goto out;
        }
        wz_table_add(t, &row);
        while (begin < text) line += *begin++ == '\n';
    }
    rc = 0;
out:
    wz_buf_finish(&cell);
    wz_arena_finish(&arena);
    wz_map_close(&map);
    return rc;
}
