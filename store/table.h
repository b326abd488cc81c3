/* Tables of results: rates and means with 95% intervals, printed as text, Markdown or CSV. */
#ifndef WZ_TABLE_H
#define WZ_TABLE_H

#include "base/base.h"

/* A metric by its name in recipes and files; title: for people. rate: a share of n, printed in percent; better: -1
 * lower, +1 higher, 0 neither. */
struct wz_measure {
    const char *name, *title;
    bool rate;
    int better;
};
extern const struct wz_measure wz_measures[];
extern const int wz_n_measures;
const struct wz_measure *wz_measure_find(const char *name); /* NULL: unknown */

struct wz_interval {
    double low, high;
};
#define WZ_Z95 1.959963984540054 /* the normal distribution's quantile at 0.975 */
/* Wilson's 95% interval of hits out of n, shares of 1 (formula: table.c); n == 0: both NaN. */
struct wz_interval wz_wilson(double hits, double n);
/* The normal 95% interval of the mean of n values, from their sum and the sum of their squares; n < 2: both NaN. */
struct wz_interval wz_normal_mean(double sum, double squares, double n);
/* Student's t at 0.975 of 1 degree of freedom and more; from 10 on by the expansion of Abramowitz and Stegun 26.7.5. */
double wz_student(double degrees);
/* The mean of n values and Student's 95% interval of it, for a few runs that differ by their seed; n < 2: both NaN. */
struct wz_interval wz_student_mean(const double *values, int n, double *mean);

/* One number: `metric` of the prompts of kind `set`, or of the average over kinds, in `phase` (before, after, step-N),
 * from n counts. low and high are NaN where unknown. interval: how they were found, over so many groups of prompts:
 * "wilson", "normal", "bootstrap" (run/tally.c); "": not known, in files older than this column. */
struct wz_result {
    const char *phase, *set, *metric;
    double value, low, high;
    int64_t n;
    uint64_t seed;
    int64_t groups;
    const char *interval;
    const char *judge; /* whose verdicts it is of; "": not known, in files older than this column */
};
#define WZ_AVERAGE "average" /* the set of averages over kinds; no kind may be called so */
/* Results in the order they were added. Zeroed struct is empty. Strings belong to the table. */
struct wz_table {
    struct wz_result *rows;
    int n, cap;
    struct wz_arena arena;
};

void wz_table_add(struct wz_table *table, const struct wz_result *row); /* copies the strings */
/* The first with that phase, set and metric, which is of the judges that reward; NULL: none. */
const struct wz_result *wz_table_find(const struct wz_table *table, const char *phase, const char *set,
                                      const char *metric);
/* The same of this judge's verdicts. */
const struct wz_result *wz_table_find_by(const struct wz_table *table, const char *phase, const char *set,
                                         const char *metric, const char *judge);
void wz_table_finish(struct wz_table *table);

extern const char wz_table_note[]; /* what the brackets of a table are, in three sentences */
/* Appends to `out` a line per set and metric with a column per phase: "12.5 [3.5, 36.0]", and what the brackets are. */
void wz_table_text(const struct wz_table *table, struct wz_buf *out);
void wz_table_markdown(const struct wz_table *table, struct wz_buf *out);
void wz_markdown_add(struct wz_buf *out, const char *s); /* as the text of a cell: no markup, link or HTML */
json_t *wz_table_json(const struct wz_table *table);     /* the rows, an array of objects; what is not known is null */
/* Header `phase,set,metric,value,low,high,n,seed,groups,interval,judge`, a line per result, numbers that read back
 * exactly; an unknown value is an empty field. */
void wz_table_csv(const struct wz_table *table, struct wz_buf *out);
/* Reads that CSV, or one without the last column or the last three, and adds its results to the table. -1 and a message
 * with file, line and column. */
int wz_table_read(struct wz_table *table, const char *path, struct wz_err *err);

#endif
