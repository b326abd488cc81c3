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
    int64_t lines, bad, first_bad;         /* lines that are not JSON objects with a step; the first one's number */
    double first_step, last_step, seconds; /* seconds: from the first line to the last, by their times */
};
int wz_curves_read(struct wz_curves *curves, const char *path, struct wz_err *err);
void wz_curves_finish(struct wz_curves *curves);
const struct wz_series *wz_curves_find(const struct wz_curves *curves, const char *name);
/* All series as charts, related ones in one chart; secondary charts are folded away. */
void wz_curves_write(struct wz_buf *out, const struct wz_curves *curves, const struct wz_recipe *recipe);

/* Transcripts of the same prompts before and after, side by side, sorted by outcome. `index`: of the run in the
 * page. */
int wz_transcripts_write(struct wz_buf *out, const char *path, int index, struct wz_err *err);

extern const char wz_report_style[];

#endif
