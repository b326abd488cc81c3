/* Drawings of the report: inline SVG, coloured by the page's style sheet, so that they follow light and dark. */
#ifndef WZ_PLOT_H
#define WZ_PLOT_H

#include "base/base.h"

/* Adds s as HTML text or attribute value: everything that could be markup is escaped, bad UTF-8 becomes U+FFFD. */
void wz_html_add(struct wz_buf *out, const char *s);
/* Adds `before` and `after` as they are, and s as HTML text between them. */
void wz_html_wrap(struct wz_buf *out, const char *before, const char *s, const char *after);

/* A line: y over x, x rising; NaN is a gap. */
struct wz_series {
    const char *name;
    double *x, *y;
    int n;
};
/* A labelled position on the x axis, such as the first step of a stage. */
struct wz_mark {
    double x;
    const char *label;
};
struct wz_chart {
    const char *title;
    const struct wz_series *const *series;
    int n_series;
    const struct wz_mark *marks;
    int n_marks;
    bool share; /* values are shares of 1, shown in percent */
};
/* One <figure>: title, legend with last values, lines; long lines smoothed, with the raw values drawn faintly. */
void wz_plot_lines(struct wz_buf *out, const struct wz_chart *chart);

/* A point of the safety/overrefusal plane; shares of 1, the ends of the 95% intervals (NaN: none). */
struct wz_spot {
    const char *label;
    double x, y, x_low, x_high, y_low, y_high;
};
/* Spots in order of time, joined; quiet: reference results, drawn light. */
struct wz_path {
    const char *name;
    const struct wz_spot *spots;
    int n;
    bool quiet;
};
void wz_plot_plane(struct wz_buf *out, const char *x_title, const char *y_title, const struct wz_path *paths, int n);

/* A small drawing of two rates with their intervals on a line from 0 to 100%; `before` is hollow. Any may be NaN. */
void wz_plot_pair(struct wz_buf *out, const struct wz_spot *before, const struct wz_spot *after);

#endif
