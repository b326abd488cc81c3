/* Drawings of the report: inline SVG, coloured by the page's style sheet, so that they follow light and dark. Read-outs
 * appear under the pointer by CSS alone: no script. */
#ifndef WZ_PLOT_H
#define WZ_PLOT_H

#include "base/base.h"

enum { WZ_COLOURS = 8 };

/* Adds s as HTML text or attribute value: what could be markup is escaped, what is hidden is spelled (wz_printable). */
void wz_html_add(struct wz_buf *out, const char *s);
/* Adds `before` and `after` as they are, and s as HTML text between them. */
void wz_html_wrap(struct wz_buf *out, const char *before, const char *s, const char *after);

/* A labelled position on the x axis: the first step of a stage. */
struct wz_mark {
    double x;
    const char *label;
};
/* A line: y over x; NaN is a gap. */
struct wz_series {
    const char *name;
    double *x, *y;
    int n, colour;
    const struct wz_mark *stages; /* of its run, x rising; no line and no mean reaches across one */
    int n_stages;                 /* 0: unknown, and the line is not smoothed */
};
struct wz_chart {
    const char *title, *unit; /* unit: of y; "%": values are shares of 1 */
    const struct wz_series *series;
    int n_series;
};
/* One <figure>: title, legend with last values, lines; long lines smoothed, with the raw values drawn faintly. */
void wz_plot_lines(struct wz_buf *out, const struct wz_chart *chart);

/* A point of the safety/overrefusal plane; shares of 1, the ends of the 95% intervals (NaN: none). */
struct wz_spot {
    const char *label;
    double x, y, x_low, x_high, y_low, y_high;
};
/* Spots in order of time, joined. FIRST: rates of first replies, squares; REFERENCE: results from elsewhere, drawn
 * light. brief: labelled once, by its name. */
struct wz_path {
    const char *name;
    const struct wz_spot *spots;
    int n, colour;
    enum { WZ_PATH_FINAL, WZ_PATH_FIRST, WZ_PATH_REFERENCE } kind;
    bool brief;
};
/* One <svg>; attributes: added to its tag. Both axes have the scale of the square root, which separates small rates and
 * has a place for 0. */
void wz_plot_plane(struct wz_buf *out, const char *attributes, const char *x_title, const char *y_title,
                   const struct wz_path *paths, int n);

#endif
