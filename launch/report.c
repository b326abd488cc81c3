/* waltz report: one HTML page about runs (report/report.c). */
#include "launch/launch.h"

#include <stdlib.h>

#include "report/report.h"

int wz_cmd_report(int argc, char **argv)
{
    const char *output = NULL, *plane = NULL;
    const struct wz_option options[] = {
        { "output", 'o', WZ_TEXT, &output, "FILE", "where to write; default: report.html in RUN, or here for several",
          0, 0 },
        { "plane", 0, WZ_TEXT, &plane, "FILE", "write the safety/overrefusal plane as an SVG file too", 0, 0 },
    };
    const struct wz_usage usage = {
        .name = "report",
        .args = "RUN...",
        .options = options,
        .n_options = WZ_COUNT(options),
        .about =
            "Writes one HTML page about finished or running runs: results before and after with their intervals,\n"
            "curves, the safety/overrefusal plane and transcripts side by side. Of several runs it begins with their\n"
            "curves in one plot and the keys of their recipes that differ. Everything is inside the page; it needs no\n"
            "network and has no script.",
    };
    struct wz_err err;
    int status, n = wz_options_parse(&usage, argc, argv, &status);

    if (n < 0) return status;
    char *path = output ? wz_strdup(output) : n > 1 ? wz_strdup("report.html") : wz_path("%s/report.html", argv[0]);
    if (wz_report_write(argv, n, path, plane, &err) < 0) status = wz_give_up("report", &err);
    else status = printf("%s\n", path) < 0;
    free(path);
    return status;
}
