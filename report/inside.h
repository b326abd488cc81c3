/* The report, for its own files: a run as read from its folder, and the sections written from it. */
#ifndef WZ_REPORT_INSIDE_H
#define WZ_REPORT_INSIDE_H

#include "report/plot.h"
#include "recipe/recipe.h"
#include "report/report.h"
#include "store/store.h"

/* metrics.jsonl as columns: series[i] has a value of its name for each line that has one. */
struct wz_curves {
    struct wz_series *series;
    int n;
    struct wz_mark *stages; /* first steps, from the recipe */
    int n_stages;
    int64_t lines, bad, first_bad; /* lines that are not JSON objects with a step; the first one's number */
    double first_step, last_step, begun, ended; /* the last two: times of the first and last line, seconds since 1970 */
};
/* recipe: NULL, or it outlives the curves. */
int wz_curves_read(struct wz_curves *curves, const char *path, const struct wz_recipe *recipe, struct wz_err *err);
void wz_curves_finish(struct wz_curves *curves);
const struct wz_series *wz_curves_find(const struct wz_curves *curves, const char *name);
/* One run: all series as charts, related ones in one chart. Several: a chart for each name, a line for each run, called
 * titles[run]. Secondary charts are folded away. */
void wz_curves_write(struct wz_buf *out, const struct wz_curves *const *runs, const char *const *titles, int n);

/* Transcripts of the same prompts before and after, side by side, those first whose outcome is wrong or was changed.
 * `index`: of the run in the page. recipe may be NULL. */
int wz_transcripts_write(struct wz_buf *out, const char *path, const struct wz_recipe *recipe, int index,
                         struct wz_err *err);
/* A kind of prompts, with its meaning where the recipe has one. */
void wz_kind_write(struct wz_buf *out, const struct wz_recipe *recipe, const char *kind);

extern const char wz_report_style[];

#endif
