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
/* Wilson's 95% interval of hits out of n, shares of 1 (formula: table.c); n == 0: both NaN. */
struct wz_interval wz_wilson(int64_t hits, int64_t n);

/* One number: `metric` of the prompts of kind `set` in `phase` (before, after, step-N). low and high are NaN where
 * unknown. */
struct wz_result {
    const char *phase, *set, *metric;
    double value, low, high;
    int64_t n;
    uint64_t seed;
};
/* Results in the order they were added. Zeroed struct is empty. Strings belong to the table. */
struct wz_table {
    struct wz_result *rows;
    int n, cap;
    struct wz_arena arena;
};

void wz_table_add(struct wz_table *table, const struct wz_result *row); /* copies the strings */
void wz_table_rate(struct wz_table *table, const char *phase, const char *set, const char *metric, int64_t hits,
                   int64_t n, uint64_t seed);
/* The mean of n values with the normal 95% interval, from their sum and the sum of their squares. */
void wz_table_mean(struct wz_table *table, const char *phase, const char *set, const char *metric, double sum,
                   double squares, int64_t n, uint64_t seed);
/* The first with that phase, set and metric; NULL: none. */
const struct wz_result *wz_table_find(const struct wz_table *table, const char *phase, const char *set,
                                      const char *metric);
void wz_table_finish(struct wz_table *table);

/* Appends to `out` a line per set and metric with a column per phase: "12.5 [3.5, 36.0]". */
void wz_table_text(const struct wz_table *table, struct wz_buf *out);
void wz_table_markdown(const struct wz_table *table, struct wz_buf *out);
/* Header `phase,set,metric,value,low,high,n,seed`, a line per result, numbers that read back exactly; an unknown value
 * is an empty field. */
json_t *wz_table_json(const struct wz_table *table); /* the rows, an array of objects; what is not known is null */
void wz_table_csv(const struct wz_table *table, struct wz_buf *out);
/* Reads that CSV and adds its results to the table. -1 and a message with file, line and column. */
int wz_table_read(struct wz_table *table, const char *path, struct wz_err *err);

#endif
