/* report: one self-contained HTML page about finished or running runs. */
#ifndef WZ_REPORT_H
#define WZ_REPORT_H

#include "base/base.h"

/* Reads the runs' folders[n] and writes the page to `path`: results before and after with intervals, curves, the plane
 * of unsafe against overrefusal, transcripts; with n > 1 the runs compared first. plane: file for that plane alone, as
 * SVG (NULL: none). */
int wz_report_write(char *const *folders, int n, const char *path, const char *plane, struct wz_err *err);

/* The tables of a sweep, from those of its runs: tables[(row * temperatures + temperature) * seeds + seed], each with
 * the results of one evaluation, or empty. why[row]: why results of it are missing; NULL: they aren't. Writes
 * NAME.md, NAME.html (with the plane) and NAME.csv (every number of every run) to the sweep's folder. */
struct wz_sweep;
struct wz_table;
int wz_sweep_write(const struct wz_sweep *sweep, const struct wz_table *tables, char *const *why, struct wz_err *err);

#endif
