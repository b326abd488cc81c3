/* report: one self-contained HTML page about finished or running runs. */
#ifndef WZ_REPORT_H
#define WZ_REPORT_H

#include "base/base.h"

/* Reads the runs' folders[n] and writes the page to `path`: results before and after with intervals, curves, the plane
 * of unsafe against overrefusal, transcripts; with n > 1 the runs compared first. plane: file for that plane alone, as
 * SVG (NULL: none). */
int wz_report_write(char *const *folders, int n, const char *path, const char *plane, struct wz_err *err);

#endif
