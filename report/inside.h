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
/* One run: all series as charts, related ones in one chart. Several: a chart for each name, a line for each run, called
 * titles[run]. Secondary charts are folded away. */
void wz_curves_write(struct wz_buf *out, const struct wz_curves *const *runs, const char *const *titles, int n);

/* A run of the page. */
struct wz_shown {
    char *dir;
    const char *title;        /* the end of dir */
    struct wz_recipe *recipe; /* NULL: could not be read, no_recipe has the reason */
    struct wz_buf recipe_text;
    struct wz_curves curves;
    struct wz_table table;
    json_t *starts; /* the lines of starts.jsonl */
    struct wz_err no_recipe, no_curves, no_table;
    const char **phases;
    int n_phases;             /* in order of time */
    const char *first, *last; /* the phases compared; "before" and "after" where the run got that far */
    struct wz_spot *spots;
    int n_spots; /* the points of the plane, one per phase */
    struct wz_spot first_replies[2];
    int n_first_replies; /* the same of the first replies alone, in the phases compared */
};
/* Reads the files of a run; of what can't be read the reason is kept. -1 and a message where there is no folder. */
int wz_run_read(struct wz_shown *run, const char *dir, struct wz_err *err);
void wz_run_finish(struct wz_shown *run);
void wz_runs_title(struct wz_shown *runs, int n); /* sets the titles of all runs of the page */
void wz_facts_write(struct wz_buf *out, const struct wz_shown *run);
void wz_missing_write(struct wz_buf *out, const char *what, const struct wz_err *why); /* "what: why" */

/* Transcripts of the same prompts before and after, side by side, those first whose outcome is wrong or was changed.
 * `index`: of the run in the page. recipe may be NULL. */
int wz_transcripts_write(struct wz_buf *out, const char *path, const struct wz_recipe *recipe, int index,
                         struct wz_err *err);
/* A kind of prompts, with its meaning where the recipe has one. */
void wz_kind_write(struct wz_buf *out, const struct wz_recipe *recipe, const char *kind);

/* What stands before and after the content of a page. */
void wz_page_begin(struct wz_buf *out, const char *title);
void wz_page_end(struct wz_buf *out);

extern const char wz_report_style[];

#endif
