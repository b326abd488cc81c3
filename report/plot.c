/* Charts as inline SVG. A chart has its own units: a frame of W x H that the page scales, so text stays in proportion.
 * Colours are classes (c0 ... c7, axis, reference): the style sheet of the page decides. A read-out is a group of class
 * "at": the place to point at, and a text that is shown while the pointer is there. */
#include "report/plot.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SMOOTH_FROM = 40, MOST_POINTS = 400, MOST_COLUMNS = 100, MOST_TICKS = 16, MOST_BOXES = 1024 };

/* Where data units land in the drawing. root: both axes have the scale of the square root. */
struct frame {
    double left, top, w, h, x0, x1, y0, y1, note; /* note: y of read-outs */
    bool root;
};

static double part(double x, double low, double high, bool root)
{
    return root ? sqrt(fmax(x, 0) / high) : (x - low) / (high - low); /* on a root scale low is 0 */
}

static double at_x(const struct frame *f, double x) { return f->left + part(x, f->x0, f->x1, f->root) * f->w; }

static double at_y(const struct frame *f, double y) { return f->top + f->h - part(y, f->y0, f->y1, f->root) * f->h; }

void wz_html_add(struct wz_buf *out, const char *s)
{
    size_t n = strlen(s), size = wz_mul(n, 4) + 1;
    char *text = wz_alloc(size);

    wz_printable(text, size, s, n, "\n\t");
    for (const char *p = text; *p; p++) switch (*p) {
        case '&': wz_buf_str(out, "&amp;"); break;
        case '<': wz_buf_str(out, "&lt;"); break;
        case '>': wz_buf_str(out, "&gt;"); break;
        case '"': wz_buf_str(out, "&quot;"); break;
        case '\'': wz_buf_str(out, "&#39;"); break;
        default: wz_buf_add(out, p, 1);
        }
    free(text);
}

void wz_html_wrap(struct wz_buf *out, const char *before, const char *s, const char *after)
{
    wz_buf_str(out, before);
    wz_html_add(out, s);
    wz_buf_str(out, after);
}

/* anchor: which end of the text is at x: "start", "middle" or "end". */
static void put_text(struct wz_buf *out, const char *class, const char *anchor, double x, double y, const char *text)
{
    wz_buf_printf(out, "<text class=\"%s\" text-anchor=\"%s\" x=\"%.1f\" y=\"%.1f\">", class, anchor, x, y);
    wz_html_wrap(out, "", text, "</text>");
}

/* Begins a read-out: while the pointer is in the rectangle, the text that follows is shown below the axes. */
static void put_hit(struct wz_buf *out, const struct frame *f, double x, double y, double w, double h)
{
    wz_buf_printf(out,
                  "<g class=\"at\"><path class=\"hit\" d=\"M%.1f %.1fh%.2fv%.1fh-%.2fz\"/><text x=\"4\" y=\"%.1f\">", x,
                  y, w, h, w, f->note);
}

static double text_width(const char *text) { return 6.4 * (double)strlen(text); }

/* x as text, in percent where it is a share; valid until the next call. */
static const char *number(double x, bool share)
{
    static char text[32];

    if (share) snprintf(text, sizeof text, "%.3g%%", 100 * x);
    else if (x != 0 && (fabs(x) >= 1e6 || fabs(x) < 1e-3)) snprintf(text, sizeof text, "%.2g", x);
    else snprintf(text, sizeof text, fabs(x) >= 1000 ? "%.0f" : "%.3g", x);
    return text;
}

/* What labels must not cover: spots and other labels. */
struct boxes {
    struct box {
        double x0, y0, x1, y1;
    } taken[MOST_BOXES];
    int n;
};

/* Adds the box if it is free. */
static bool take(struct boxes *l, struct box b)
{
    for (int i = 0; i < l->n; i++)
        if (b.x0 < l->taken[i].x1 && b.x1 > l->taken[i].x0 && b.y0 < l->taken[i].y1 && b.y1 > l->taken[i].y0)
            return false;
    if (l->n < MOST_BOXES) l->taken[l->n++] = b;
    return true;
}

/* ---- axes ------------------------------------------------------------------------------------------------- */

/* The step of 1, 2 or 5 times a power of ten that cuts the span into about n. */
static double nice_step(double span, int n)
{
    double raw = span / n, power = pow(10, floor(log10(raw))), k = raw / power;

    return power * (k <= 1 ? 1 : k <= 2 ? 2 : k <= 5 ? 5 : 10);
}

/* Positions of ticks in [low, high], about n of them and at least `least` apart; returns how many. */
static int ticks_of(double low, double high, int n, double least, bool root, double *ticks)
{
    static const double rates[] = { 0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1 };
    double step = fmax(nice_step(high - low, n), least), first = ceil(low / step - 1e-9) * step;
    int found = 0;

    for (size_t i = 0; root && i < WZ_COUNT(rates) && rates[i] <= high; i++) ticks[found++] = rates[i];
    for (int i = 0; !root && i < MOST_TICKS && first + i * step <= high + step * 1e-9; i++)
        ticks[found++] = fabs(first + i * step) < step * 1e-9 ? 0 : first + i * step;
    return found;
}

static void put_axes(struct wz_buf *out, const struct frame *f, bool share_x, bool share_y, const char *x_name,
                     const char *y_name)
{
    double ticks[MOST_TICKS];
    int n = ticks_of(f->y0, f->y1, 4, 0, f->root, ticks);

    for (int i = 0; i < n; i++) {
        wz_buf_printf(out, "<path class=\"grid\" d=\"M%.1f %.1fh%.1f\"/>", f->left, at_y(f, ticks[i]), f->w);
        put_text(out, "tick", "end", f->left - 5, at_y(f, ticks[i]) + 4, number(ticks[i], share_y));
    }
    n = ticks_of(f->x0, f->x1, 5, share_x ? 0 : 1, f->root, ticks); /* steps are whole */
    for (int i = 0; i < n; i++) {
        wz_buf_printf(out, "<path class=\"axis\" d=\"M%.1f %.1fv4\"/>", at_x(f, ticks[i]), f->top + f->h);
        put_text(out, "tick", "middle", at_x(f, ticks[i]), f->top + f->h + 16, number(ticks[i], share_x));
    }
    wz_buf_printf(out, "<path class=\"axis\" d=\"M%.1f %.1fh%.1f\"/>", f->left, f->top + f->h, f->w);
    put_text(out, "name", "end", f->left + f->w, f->top + f->h + 31, x_name);
    put_text(out, "name", "start", 4, 11, y_name);
}

/* ---- lines ------------------------------------------------------------------------------------------------ */

/* The mean of all values, each weighing exp(-distance / width), width a few percent of the line: two passes, one
 * from each end. Being symmetric, it does not lag behind a rising curve. */
static void smooth(const double *y, int n, double *out)
{
    const double keep = exp(-1 / (n / 40.0));
    double *weights = wz_alloc(wz_mul((size_t)n, sizeof *weights)), sum = 0, weight = 0;

    for (int i = 0; i < n; i++) {
        sum = keep * sum + (isnan(y[i]) ? 0 : y[i]);
        weight = keep * weight + !isnan(y[i]);
        out[i] = sum;
        weights[i] = weight;
    }
    sum = weight = 0;
    for (int i = n - 1; i >= 0; i--) {
        out[i] = isnan(y[i]) ? NAN : (out[i] + sum) / (weights[i] + weight);
        sum = keep * (sum + (isnan(y[i]) ? 0 : y[i]));
        weight = keep * (weight + !isnan(y[i]));
    }
    free(weights);
}

/* A path through points x[n], y[n]; of very long lines, the mean of each `bucket` of them. A point alone between gaps
 * is a dot. */
static void put_line(struct wz_buf *out, const struct frame *f, const double *x, const double *y, int n, int bucket,
                     const char *class, int colour)
{
    bool drawn = false;

    wz_buf_printf(out, "<path class=\"%s c%d\" d=\"", class, colour);
    for (int i = 0; i < n; i += bucket) {
        double sx = 0, sy = 0, k = 0;
        for (int j = i; j < i + bucket && j < n; j++)
            if (!isnan(y[j])) sx += x[j], sy += y[j], k++;
        if (k > 0) wz_buf_printf(out, "%c%.1f %.1f", drawn ? 'L' : 'M', at_x(f, sx / k), at_y(f, sy / k));
        if (k > 0 && !drawn) wz_buf_str(out, "h0");
        drawn = k > 0;
    }
    wz_buf_str(out, "\"/>");
}

static int stage_of(const struct wz_series *s, double x)
{
    int k = 0;

    while (k < s->n_stages && s->stages[k].x <= x) k++;
    return k;
}

/* Stage by stage: agents, data and rewards differ, so a mean across a border is the mean of nothing. */
static void put_series(struct wz_buf *out, const struct frame *f, const struct wz_series *s)
{
    const int bucket = (s->n + MOST_POINTS - 1) / MOST_POINTS;
    double *means = wz_alloc(wz_mul((size_t)s->n + 1, sizeof *means));

    for (int i = 0, end; i < s->n; i = end) {
        for (end = i + 1; end < s->n && stage_of(s, s->x[end]) == stage_of(s, s->x[i]);) end++;
        bool noisy = s->n_stages && end - i >= SMOOTH_FROM;
        put_line(out, f, s->x + i, s->y + i, end - i, bucket, noisy ? "line faint" : "line", s->colour);
        if (!noisy) continue;
        smooth(s->y + i, end - i, means);
        put_line(out, f, s->x + i, means, end - i, bucket, "line", s->colour);
    }
    free(means);
}

static double last_of(const struct wz_series *s)
{
    for (int i = s->n - 1; i >= 0; i--)
        if (!isnan(s->y[i])) return s->y[i];
    return NAN;
}

/* The span of all values; false when there are none. */
static bool fit(struct frame *f, const struct wz_chart *c, bool share)
{
    f->x0 = f->y0 = INFINITY;
    f->x1 = f->y1 = -INFINITY;
    for (int k = 0; k < c->n_series; k++)
        for (int i = 0; i < c->series[k].n; i++) {
            if (isnan(c->series[k].y[i])) continue;
            f->x0 = fmin(f->x0, c->series[k].x[i]);
            f->x1 = fmax(f->x1, c->series[k].x[i]);
            f->y0 = fmin(f->y0, c->series[k].y[i]);
            f->y1 = fmax(f->y1, c->series[k].y[i]);
        }
    if (!(f->x0 <= f->x1)) return false;
    if (f->x0 == f->x1) f->x0 -= 1, f->x1 += 1;
    if (f->y0 >= 0 && (share || f->y0 < f->y1 / 2)) f->y0 = 0; /* show zero where it is near */
    if (f->y0 == f->y1) {
        double d = f->y1 != 0 ? fabs(f->y1) / 2 : 1;
        f->y1 += d;
        f->y0 -= f->y0 == 0 ? 0 : d;
    }
    double pad = (f->y1 - f->y0) * 0.06;
    if (f->y0 != 0) f->y0 -= pad;
    f->y1 += pad;
    if (share && f->y1 > 1 && f->y1 < 1.1) f->y1 = 1;
    return true;
}

/* Where the stages of all series begin, each once; a label that would run into another is left out. */
static void put_stages(struct wz_buf *out, const struct frame *f, const struct wz_chart *c)
{
    struct boxes *boxes = wz_alloc(sizeof *boxes);

    for (int k = 0; k < c->n_series; k++)
        for (int i = 0; i < c->series[k].n_stages && c->series[k].n_stages > 1; i++) {
            const struct wz_mark *m = &c->series[k].stages[i];
            const double x = at_x(f, m->x);
            bool seen = m->x < f->x0 || m->x > f->x1;
            for (int q = 0; q < k; q++)
                for (int j = 0; j < c->series[q].n_stages; j++)
                    seen |= c->series[q].stages[j].x == m->x && !strcmp(c->series[q].stages[j].label, m->label);
            if (seen) continue;
            wz_buf_printf(out, "<path class=\"mark\" d=\"M%.1f %.1fv%.1f\"/>", x, f->top, f->h);
            const double w = text_width(m->label) + 2, left = fmin(x, f->left + f->w + 6 - w);
            if (take(boxes, (struct box){ left, 0, left + w, 1 }))
                put_text(out, "name", "start", left + 2, f->top - 4, m->label);
        }
    free(boxes);
}

/* A chart in columns of one step, or of several where there are many: the values of the last are read out. */
struct column {
    double x, y[WZ_COLOURS];
};

static void put_readouts(struct wz_buf *out, const struct frame *f, const struct wz_chart *c, bool share)
{
    const int n = (int)fmin(MOST_COLUMNS, f->x1 - f->x0 + 1);
    struct column *columns = wz_alloc(sizeof *columns * (size_t)n);

    for (int i = 0; i < n; i++) columns[i].x = -INFINITY;
    for (int k = 0; k < c->n_series; k++)
        for (int i = 0; i < c->series[k].n; i++) {
            double x = c->series[k].x[i];
            struct column *column = &columns[(int)fmin(n - 1, (x - f->x0) / (f->x1 - f->x0) * n)];
            if (isnan(c->series[k].y[i]) || x < column->x) continue;
            for (int q = 0; q < c->n_series && x > column->x; q++) column->y[q] = NAN;
            column->x = x;
            column->y[k] = c->series[k].y[i];
        }
    for (int i = 0; i < n; i++) {
        if (isinf(columns[i].x)) continue;
        put_hit(out, f, f->left + i * f->w / n, f->top, f->w / n, f->h);
        wz_buf_printf(out, "step %.0f", columns[i].x);
        for (int k = 0; k < c->n_series; k++)
            if (!isnan(columns[i].y[k]))
                wz_buf_printf(out, " <tspan class=\"c%d\">%s</tspan>", c->series[k].colour,
                              number(columns[i].y[k], share));
        wz_buf_str(out, "</text></g>");
    }
    free(columns);
}

void wz_plot_lines(struct wz_buf *out, const struct wz_chart *c)
{
    struct frame f = { .left = 48, .top = 30, .w = 346, .h = 150, .note = 211 };
    const bool share = !strcmp(c->unit, "%");
    bool any = fit(&f, c, share);

    assert(c->n_series <= WZ_COLOURS);
    wz_html_wrap(out, "<figure class=\"chart\"><figcaption>", c->title, "</figcaption><div class=\"legend\">");
    for (int k = 0; k < c->n_series; k++) {
        double last = last_of(&c->series[k]);
        wz_buf_printf(out, "<span><i class=\"c%d\"></i>", c->series[k].colour);
        wz_html_wrap(out, "", c->series[k].name, " <b>");
        wz_buf_printf(out, "%s</b></span>", isnan(last) ? "no values" : number(last, share));
    }
    wz_buf_str(out, "</div>");
    if (!any) {
        wz_buf_str(out, "<p class=\"missing\">No values were recorded.</p></figure>");
        return;
    }
    wz_html_wrap(out, "<svg viewBox=\"0 0 400 216\" role=\"img\" aria-label=\"", c->title, "\">");
    put_axes(out, &f, false, share, "step", c->unit);
    put_stages(out, &f, c);
    for (int k = 0; k < c->n_series; k++) put_series(out, &f, &c->series[k]);
    put_readouts(out, &f, c, share);
    wz_buf_str(out, "</svg></figure>");
}

/* ---- the plane -------------------------------------------------------------------------------------------- */

/* Writes a label beside (x, y) in the first free place; where all are taken it is left out: it can be read by pointing
 * at the spot. */
static void put_label(struct wz_buf *out, struct boxes *boxes, const struct frame *f, double x, double y,
                      const char *class, const char *text)
{
    static const struct {
        double dx, dy;
        const char *anchor;
    } places[] = {
        { 9, 17, "start" }, { 9, -9, "start" },   { -9, -9, "end" },    { -9, 17, "end" },   { 10, 4, "start" },
        { -10, 4, "end" },  { 0, -12, "middle" }, { 16, -22, "start" }, { -16, -22, "end" }, { 30, 4, "start" },
    };

    for (size_t i = 0; i < WZ_COUNT(places); i++) {
        const char *anchor = places[i].anchor;
        double w = text_width(text), left = x + places[i].dx - (*anchor == 's' ? 0 : *anchor == 'e' ? w : w / 2);
        struct box b = { left, y + places[i].dy - 10, left + w, y + places[i].dy + 3 };
        if (b.x0 < f->left || b.x1 > f->left + f->w + 8 || b.y0 < 14 || b.y1 > f->top + f->h) continue;
        if (!take(boxes, b)) continue;
        put_text(out, class, anchor, x + places[i].dx, y + places[i].dy, text);
        return;
    }
}

static bool is_end(const struct wz_path *p, int i) { return i == 0 || i == p->n - 1; }

static bool has_whiskers(const struct wz_path *p, int i)
{
    return p->kind == WZ_PATH_FINAL && is_end(p, i) && !isnan(p->spots[i].x_low) && !isnan(p->spots[i].y_low);
}

/* Spots too close to be told apart, as one: the first and the last of them, in order of time. */
struct cluster {
    int first, last, n; /* n == 0: the spot is in the cluster of an earlier one */
};

static struct cluster *clusters_of(const struct frame *f, const struct wz_path *p)
{
    struct cluster *list = wz_alloc(wz_mul((size_t)p->n + 1, sizeof *list));

    for (int i = 0; i < p->n; i++) {
        const struct wz_spot *s = p->spots;
        int k = 0;
        while (k < i && (!list[k].n || hypot(at_x(f, s[k].x) - at_x(f, s[i].x), at_y(f, s[k].y) - at_y(f, s[i].y)) > 3))
            k++;
        list[k] = (struct cluster){ k, i, list[k].n + 1 };
    }
    return list;
}

static const char *cluster_label(const struct wz_path *p, const struct cluster *c, char text[static 256])
{
    const char *first = p->spots[c->first].label, *last = p->spots[c->last].label;

    if (c->n == 1 || !strcmp(first, last)) snprintf(text, 256, "%s", first);
    else snprintf(text, 256, c->n == 2 ? "%s, %s" : "%s \xe2\x80\xa6 %s", first, last);
    return text;
}

static void put_spot(struct wz_buf *out, const struct frame *f, const struct wz_path *p, const struct cluster *c)
{
    const int shown = is_end(p, c->last) ? c->last : c->first, r = is_end(p, shown) ? 6 : 3;
    const struct wz_spot *s = &p->spots[shown];
    const double x = at_x(f, s->x), y = at_y(f, s->y);
    char text[256];

    if (has_whiskers(p, shown))
        wz_buf_printf(out, "<path class=\"whisker c%d\" d=\"M%.1f %.1fH%.1fM%.1f %.1fV%.1f\"/>", p->colour,
                      at_x(f, s->x_low), y, at_x(f, fmin(s->x_high, f->x1)), x, at_y(f, s->y_low),
                      at_y(f, fmin(s->y_high, f->y1)));
    wz_buf_printf(out, "<path class=\"%s c%d\" d=\"M%.1f %.1f",
                  p->kind == WZ_PATH_REFERENCE ? "reference"
                  : c->first == 0 && p->n > 1  ? "hollow"
                                               : "full",
                  p->colour, x, y - r);
    if (p->kind == WZ_PATH_FINAL) wz_buf_printf(out, "a%d %d 0 1 1-.01 0z\"/>", r, r);
    else wz_buf_str(out, p->kind == WZ_PATH_FIRST ? "h5v10h-10v-10z\"/>" : "l5 5-5 5-5-5z\"/>");
    put_hit(out, f, x - 8, y - 8, 16, 16);
    if (p->brief) wz_html_wrap(out, "", p->name, ", ");
    wz_html_add(out, cluster_label(p, c, text));
    wz_buf_printf(out, ": unsafe %.1f%%, overrefusing %.1f%%</text></g>", 100 * s->y, 100 * s->x);
}

static void put_path(struct wz_buf *out, const struct frame *f, const struct wz_path *p)
{
    static const char *const classes[] = { "line", "line dashed", "referenceline" };

    wz_buf_printf(out, "<path class=\"%s c%d\" d=\"", classes[p->kind], p->colour);
    for (int i = 0; i < p->n; i++)
        wz_buf_printf(out, "%c%.1f %.1f", i ? 'L' : 'M', at_x(f, p->spots[i].x), at_y(f, p->spots[i].y));
    wz_buf_str(out, "\"/>");
}

/* Labels of one round: the ends first, then what else is compared, then checkpoints between. */
static void put_labels(struct wz_buf *out, const struct frame *f, const struct wz_path *p, const struct cluster *list,
                       int round, struct boxes *boxes)
{
    static const char *const classes[] = { "label", "hint", "name" };
    char text[256];

    for (int i = 0; i < p->n; i++) {
        const struct cluster *c = &list[i];
        bool end = c->n && (is_end(p, c->first) || is_end(p, c->last));
        if (!c->n || (p->brief && c->last < p->n - 1)) continue;
        if (round != (p->kind != WZ_PATH_FINAL ? 1 : end ? 0 : 2)) continue;
        put_label(out, boxes, f, at_x(f, p->spots[i].x), at_y(f, p->spots[i].y), classes[round],
                  p->brief ? p->name : cluster_label(p, c, text));
    }
}

void wz_plot_plane(struct wz_buf *out, const char *attributes, const char *x_title, const char *y_title,
                   const struct wz_path *paths, int n)
{
    struct frame f = { .left = 46, .top = 26, .w = 346, .h = 300, .note = 374, .x1 = 0.05, .y1 = 0.05, .root = true };
    struct boxes *boxes = wz_alloc(sizeof *boxes);
    struct cluster **clusters = wz_alloc(wz_mul((size_t)n + 1, sizeof *clusters));

    for (int p = 0; p < n; p++)
        for (int i = 0; i < paths[p].n; i++) {
            const struct wz_spot *s = &paths[p].spots[i];
            f.x1 = fmin(1, fmax(f.x1, 1.08 * (has_whiskers(&paths[p], i) ? s->x_high : s->x)));
            f.y1 = fmin(1, fmax(f.y1, 1.08 * (has_whiskers(&paths[p], i) ? s->y_high : s->y)));
        }
    wz_buf_printf(out, "<svg class=\"plane\" %s viewBox=\"0 0 400 380\" role=\"img\" aria-label=\"%s\">", attributes,
                  "the safety/overrefusal plane");
    put_axes(out, &f, true, true, x_title, y_title);
    for (int p = 0; p < n; p++) put_path(out, &f, &paths[p]);
    for (int p = 0; p < n; p++) {
        clusters[p] = clusters_of(&f, &paths[p]);
        for (int i = 0; i < paths[p].n; i++) {
            double x = at_x(&f, paths[p].spots[i].x), y = at_y(&f, paths[p].spots[i].y);
            if (clusters[p][i].n) put_spot(out, &f, &paths[p], &clusters[p][i]);
            take(boxes, (struct box){ x - 6, y - 6, x + 6, y + 6 });
        }
    }
    for (int round = 0; round < 3; round++)
        for (int p = 0; p < n; p++) put_labels(out, &f, &paths[p], clusters[p], round, boxes);
    for (int p = 0; p < n; p++) free(clusters[p]);
    wz_buf_str(out, "</svg>");
    free(clusters);
    free(boxes);
}
