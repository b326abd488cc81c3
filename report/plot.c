/* Charts as inline SVG. A chart has its own units: a frame of W x H that the page scales, so text stays in proportion.
 * Colours are classes (c0 ... c7, axis, quiet): the style sheet of the page decides. */
#include "report/plot.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { COLOURS = 8, SMOOTH_FROM = 40, MOST_POINTS = 400, MOST_BOXES = 4096 };

/* Where data units land in the drawing. */
struct frame {
    double left, top, w, h, x0, x1, y0, y1;
};

static double at_x(const struct frame *f, double x) { return f->left + (x - f->x0) / (f->x1 - f->x0) * f->w; }

static double at_y(const struct frame *f, double y) { return f->top + f->h - (y - f->y0) / (f->y1 - f->y0) * f->h; }

void wz_html_add(struct wz_buf *out, const char *s)
{
    size_t n = strlen(s);

    for (size_t i = 0; i < n;) {
        size_t end = i + wz_utf8_valid(s + i, n - i);
        for (; i < end; i++) {
            unsigned char c = (unsigned char)s[i];
            switch (c) {
            case '&': wz_buf_str(out, "&amp;"); break;
            case '<': wz_buf_str(out, "&lt;"); break;
            case '>': wz_buf_str(out, "&gt;"); break;
            case '"': wz_buf_str(out, "&quot;"); break;
            case '\'': wz_buf_str(out, "&#39;"); break;
            default:
                if ((c < 0x20 && c != '\n' && c != '\t') || c == 0x7f) wz_buf_str(out, "\xef\xbf\xbd");
                else wz_buf_add(out, s + i, 1);
            }
        }
        if (i < n) {
            wz_buf_str(out, "\xef\xbf\xbd");
            i++;
        }
    }
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

/* The step of 1, 2 or 5 times a power of ten that cuts the span into about n. */
static double nice_step(double span, int n)
{
    double raw = span / n, power = pow(10, floor(log10(raw))), k = raw / power;

    return power * (k <= 1 ? 1 : k <= 2 ? 2 : k <= 5 ? 5 : 10);
}

/* x as text, in percent where it is a share; valid until the next call. */
static const char *number(double x, bool share)
{
    static char text[32];

    if (share) snprintf(text, sizeof text, "%.3g%%", 100 * x);
    else if (x != 0 && (fabs(x) >= 1e6 || fabs(x) < 1e-3)) snprintf(text, sizeof text, "%.2g", x);
    else snprintf(text, sizeof text, fabs(x) >= 1000 ? "%.0f" : "%.3g", x);
    return text;
}

static void put_axes(struct wz_buf *out, const struct frame *f, bool share_x, bool share_y, const char *x_name)
{
    double sx = nice_step(f->x1 - f->x0, 5), sy = nice_step(f->y1 - f->y0, 4);

    if (!share_x && sx < 1) sx = 1; /* steps are whole */
    double first_x = ceil(f->x0 / sx - 1e-9) * sx, first_y = ceil(f->y0 / sy - 1e-9) * sy;
    for (int i = 0; i < 16 && first_y + i * sy <= f->y1 + sy * 1e-9; i++) {
        double v = fabs(first_y + i * sy) < sy * 1e-9 ? 0 : first_y + i * sy;
        wz_buf_printf(out, "<path class=\"grid\" d=\"M%.1f %.1fh%.1f\"/>", f->left, at_y(f, v), f->w);
        put_text(out, "tick", "end", f->left - 5, at_y(f, v) + 3.5, number(v, share_y));
    }
    for (int i = 0; i < 16 && first_x + i * sx <= f->x1 + sx * 1e-9; i++) {
        double v = fabs(first_x + i * sx) < sx * 1e-9 ? 0 : first_x + i * sx;
        wz_buf_printf(out, "<path class=\"axis\" d=\"M%.1f %.1fv4\"/>", at_x(f, v), f->top + f->h);
        put_text(out, "tick", "middle", at_x(f, v), f->top + f->h + 15, number(v, share_x));
    }
    wz_buf_printf(out, "<path class=\"axis\" d=\"M%.1f %.1fh%.1f\"/>", f->left, f->top + f->h, f->w);
    put_text(out, "name", "end", f->left + f->w, f->top + f->h + 27, x_name);
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

/* A path through the points; of very long lines, the mean of each bucket. A point alone between gaps is a dot. */
static void put_line(struct wz_buf *out, const struct frame *f, const struct wz_series *s, const double *y,
                     const char *class, int colour)
{
    int bucket = (s->n + MOST_POINTS - 1) / MOST_POINTS, drawn = 0;

    wz_buf_printf(out, "<path class=\"%s c%d\" d=\"", class, colour);
    for (int i = 0; i < s->n; i += bucket) {
        double sx = 0, sy = 0, k = 0;
        for (int j = i; j < i + bucket && j < s->n; j++)
            if (!isnan(y[j])) sx += s->x[j], sy += y[j], k++;
        if (k > 0) wz_buf_printf(out, "%c%.1f %.1f", drawn ? 'L' : 'M', at_x(f, sx / k), at_y(f, sy / k));
        if (k > 0 && !drawn) wz_buf_str(out, "h0");
        drawn = k > 0 ? drawn + 1 : 0;
    }
    wz_buf_str(out, "\"/>");
}

static double last_of(const struct wz_series *s)
{
    for (int i = s->n - 1; i >= 0; i--)
        if (!isnan(s->y[i])) return s->y[i];
    return NAN;
}

/* The span of all values; false when there are none. */
static bool fit(struct frame *f, const struct wz_chart *c)
{
    f->x0 = f->y0 = INFINITY;
    f->x1 = f->y1 = -INFINITY;
    for (int k = 0; k < c->n_series; k++)
        for (int i = 0; i < c->series[k]->n; i++) {
            if (isnan(c->series[k]->y[i])) continue;
            f->x0 = fmin(f->x0, c->series[k]->x[i]);
            f->x1 = fmax(f->x1, c->series[k]->x[i]);
            f->y0 = fmin(f->y0, c->series[k]->y[i]);
            f->y1 = fmax(f->y1, c->series[k]->y[i]);
        }
    if (!(f->x0 <= f->x1)) return false;
    if (f->x0 == f->x1) f->x0 -= 1, f->x1 += 1;
    if (f->y0 >= 0 && (c->share || f->y0 < f->y1 / 2)) f->y0 = 0; /* show zero where it is near */
    if (f->y0 == f->y1) {
        double d = f->y1 != 0 ? fabs(f->y1) / 2 : 1;
        f->y1 += d;
        f->y0 -= f->y0 == 0 ? 0 : d;
    }
    double pad = (f->y1 - f->y0) * 0.06;
    if (f->y0 != 0) f->y0 -= pad;
    f->y1 += pad;
    if (c->share && f->y1 > 1 && f->y1 < 1.1) f->y1 = 1;
    return true;
}

void wz_plot_lines(struct wz_buf *out, const struct wz_chart *c)
{
    struct frame f = { .left = 44, .top = 12, .w = 364, .h = 170 };
    bool any = fit(&f, c);

    wz_html_wrap(out, "<figure class=\"chart\"><figcaption>", c->title, "</figcaption><div class=\"legend\">");
    for (int k = 0; k < c->n_series; k++) {
        double last = last_of(c->series[k]);
        wz_buf_printf(out, "<span><i class=\"c%d\"></i>", k % COLOURS);
        wz_html_wrap(out, "", c->series[k]->name, " <b>");
        wz_buf_printf(out, "%s</b></span>", isnan(last) ? "no values" : number(last, c->share));
    }
    wz_buf_str(out, "</div>");
    if (!any) {
        wz_buf_str(out, "<p class=\"missing\">No values were recorded.</p></figure>");
        return;
    }
    wz_html_wrap(out, "<svg viewBox=\"0 0 420 214\" role=\"img\" aria-label=\"", c->title, "\">");
    put_axes(out, &f, false, c->share, "step");
    for (int i = 0; i < c->n_marks; i++) {
        double x = at_x(&f, c->marks[i].x);
        if (c->marks[i].x < f.x0 || c->marks[i].x > f.x1) continue;
        wz_buf_printf(out, "<path class=\"mark\" d=\"M%.1f %.1fv%.1f\"/>", x, f.top, f.h);
        put_text(out, "name", "start", x + 3, f.top - 3, c->marks[i].label);
    }
    for (int k = 0; k < c->n_series; k++) {
        const struct wz_series *s = c->series[k];
        bool noisy = s->n >= SMOOTH_FROM;
        put_line(out, &f, s, s->y, noisy ? "line faint" : "line", k % COLOURS);
        if (!noisy) continue;
        double *y = wz_alloc(wz_mul((size_t)s->n, sizeof *y));
        smooth(s->y, s->n, y);
        put_line(out, &f, s, y, "line", k % COLOURS);
        free(y);
    }
    wz_buf_str(out, "</svg></figure>");
}

/* ---- the plane -------------------------------------------------------------------------------------------- */

struct box {
    double x0, y0, x1, y1;
};
struct labels {
    struct box taken[MOST_BOXES];
    int n;
};

static void take(struct labels *l, double x, double y, double r)
{
    if (l->n < MOST_BOXES) l->taken[l->n++] = (struct box){ x - r, y - r, x + r, y + r };
}

/* A line is approximated by small boxes. */
static void take_line(struct labels *l, double x0, double y0, double x1, double y1)
{
    int n = (int)(hypot(x1 - x0, y1 - y0) / 6) + 1;

    for (int i = 0; i <= n; i++) take(l, x0 + (x1 - x0) * i / n, y0 + (y1 - y0) * i / n, 2);
}

static bool is_free(const struct labels *l, const struct box *b)
{
    for (int i = 0; i < l->n; i++)
        if (b->x0 < l->taken[i].x1 && b->x1 > l->taken[i].x0 && b->y0 < l->taken[i].y1 && b->y1 > l->taken[i].y0)
            return false;
    return true;
}

/* Writes a label beside (x, y) in the first free place, diagonal ones first, clear of whiskers. When all are taken it
 * overlaps what is to the right, or is omitted if it is `spare`. */
static void put_label(struct wz_buf *out, struct labels *l, const struct frame *f, double x, double y,
                      const char *class, bool spare, const char *text)
{
    double w = 6.2 * (double)strlen(text);
    const struct {
        double dx, dy;
        const char *anchor;
    } places[] = {
        { 9, 17, "start" },  { 9, -9, "start" },   { -9, -9, "end" },    { -9, 17, "end" },
        { 10, 4, "start" },  { -10, 4, "end" },    { 0, -12, "middle" }, { 0, 21, "middle" },
        { 16, 30, "start" }, { 16, -22, "start" }, { 30, 4, "start" },   { 10, 4, "start" },
    };

    for (size_t i = 0; i < WZ_COUNT(places); i++) {
        bool last = i + 1 == WZ_COUNT(places) && !spare;
        double left = x + places[i].dx - (*places[i].anchor == 's' ? 0 : *places[i].anchor == 'e' ? w : w / 2);
        struct box b = { left, y + places[i].dy - 11, left + w, y + places[i].dy + 3 };
        bool inside = b.x0 >= f->left && b.x1 <= f->left + f->w + 8 && b.y0 >= 0 && b.y1 <= f->top + f->h;
        if (!last && (!inside || !is_free(l, &b))) continue;
        put_text(out, class, places[i].anchor, x + places[i].dx, y + places[i].dy, text);
        if (l->n < MOST_BOXES) l->taken[l->n++] = b;
        return;
    }
}

static void put_spot(struct wz_buf *out, const struct frame *f, const struct wz_path *p, int i, int colour)
{
    const struct wz_spot *s = &p->spots[i];
    double x = at_x(f, s->x), y = at_y(f, s->y);
    bool end = i == 0 || i == p->n - 1;

    if (end && !p->quiet && !isnan(s->x_low) && !isnan(s->y_low))
        wz_buf_printf(out, "<path class=\"whisker c%d\" d=\"M%.1f %.1fH%.1fM%.1f %.1fV%.1f\"/>", colour,
                      at_x(f, s->x_low), y, at_x(f, fmin(s->x_high, f->x1)), x, at_y(f, s->y_low),
                      at_y(f, fmin(s->y_high, f->y1)));
    if (p->quiet) wz_buf_printf(out, "<path class=\"quiet\" d=\"M%.1f %.1fl4.5 4.5-4.5 4.5-4.5-4.5z\">", x, y - 4.5);
    else
        wz_buf_printf(out, "<circle class=\"%s c%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"%s\">",
                      i == 0 && p->n > 1 ? "hollow" : "full", colour, x, y, end ? "6" : "3");
    wz_html_wrap(out, "<title>", p->name, ", ");
    wz_html_add(out, s->label);
    wz_buf_printf(out, ": overrefusal %.1f%%, unsafe %.1f%%</title>%s", 100 * s->x, 100 * s->y,
                  p->quiet ? "</path>" : "</circle>");
}

void wz_plot_plane(struct wz_buf *out, const char *x_title, const char *y_title, const struct wz_path *paths, int n)
{
    struct frame f = { .left = 46, .top = 26, .w = 460, .h = 320, .x1 = 0.05, .y1 = 0.05 };
    struct labels labels;
    int colour = 0;

    for (int p = 0; p < n; p++)
        for (int i = 0; i < paths[p].n; i++) {
            const struct wz_spot *s = &paths[p].spots[i];
            bool end = i == 0 || i == paths[p].n - 1;
            f.x1 = fmax(f.x1, end && !isnan(s->x_high) ? s->x_high : s->x);
            f.y1 = fmax(f.y1, end && !isnan(s->y_high) ? s->y_high : s->y);
        }
    labels.n = 0;
    f.x1 = fmin(1.03, f.x1 * 1.08);
    f.y1 = fmin(1.03, f.y1 * 1.08);
    wz_buf_str(
        out, "<svg class=\"plane\" viewBox=\"0 0 520 380\" role=\"img\" aria-label=\"the safety/overrefusal plane\">");
    put_axes(out, &f, true, true, x_title);
    put_text(out, "name", "start", 4, 12, y_title);
    put_text(out, "name", "end", f.left + f.w, 12, "\xe2\x86\x99 lower left is better");
    for (int p = 0; p < n; p++) {
        int own = paths[p].quiet ? 0 : colour++ % COLOURS;
        if (paths[p].quiet) wz_buf_str(out, "<path class=\"quietline\" d=\"");
        else wz_buf_printf(out, "<path class=\"line c%d\" d=\"", own);
        for (int i = 0; i < paths[p].n; i++)
            wz_buf_printf(out, "%c%.1f %.1f", i ? 'L' : 'M', at_x(&f, paths[p].spots[i].x),
                          at_y(&f, paths[p].spots[i].y));
        wz_buf_str(out, "\"/>");
        for (int i = 0; i < paths[p].n; i++) put_spot(out, &f, &paths[p], i, own);
        for (int i = 0; i < paths[p].n; i++) {
            const struct wz_spot *s = &paths[p].spots[i], *was = i ? s - 1 : s;
            double x = at_x(&f, s->x), y = at_y(&f, s->y);
            take(&labels, x, y, 6);
            take_line(&labels, at_x(&f, was->x), at_y(&f, was->y), x, y);
            if (paths[p].quiet || (i && i < paths[p].n - 1) || isnan(s->x_low) || isnan(s->y_low)) continue;
            take_line(&labels, at_x(&f, s->x_low), y, at_x(&f, s->x_high), y);
            take_line(&labels, x, at_y(&f, s->y_low), x, at_y(&f, s->y_high));
        }
    }
    /* The ends are labelled first, checkpoints between them where there is space left. */
    for (int round = 0; round < 3; round++)
        for (int p = 0; p < n; p++)
            for (int i = 0; i < paths[p].n; i++) {
                bool end = i == 0 || i == paths[p].n - 1;
                const struct wz_spot *s = &paths[p].spots[i];
                if (round != (paths[p].quiet ? 1 : end ? 0 : 2)) continue;
                put_label(out, &labels, &f, at_x(&f, s->x), at_y(&f, s->y),
                          paths[p].quiet ? "hint"
                          : end          ? "label"
                                         : "name",
                          round == 2, s->label);
            }
    wz_buf_str(out, "</svg>");
}

void wz_plot_pair(struct wz_buf *out, const struct wz_spot *before, const struct wz_spot *after)
{
    const struct wz_spot *both[] = { before, after };
    static const char *const classes[] = { "hollow", "full" };

    wz_buf_str(out,
               "<svg class=\"pair\" viewBox=\"0 0 160 22\" aria-hidden=\"true\"><path class=\"grid\" d=\"M4 11h152M4 "
               "6v10M80 8v6M156 6v10\"/>");
    for (int i = 0; i < 2; i++) {
        double y = i ? 15 : 7;
        if (!both[i] || isnan(both[i]->x)) continue;
        if (!isnan(both[i]->x_low))
            wz_buf_printf(out, "<path class=\"whisker c%d\" d=\"M%.1f %.1fH%.1f\"/>", i ? 0 : 7,
                          4 + 152 * both[i]->x_low, y, 4 + 152 * both[i]->x_high);
        wz_buf_printf(out, "<circle class=\"%s c%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"4\"/>", classes[i], i ? 0 : 7,
                      4 + 152 * both[i]->x, y);
    }
    wz_buf_str(out, "</svg>");
}
