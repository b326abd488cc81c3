/* opcheck: what its files share. A problem is a list of arrays with roles and a call over rows [from, to). */
#ifndef WZ_OPCHECK_H
#define WZ_OPCHECK_H

#include "kernels/kernels.h"

enum { OPCHECK_ARRAYS = 13 };
enum role { IN = 1, OUT, SUM }; /* SUM: read and added to */

/* n floats (or bf16) of which `row` belong to each row (0: to all). Host arrays are not the backend's memory. */
struct array {
    const char *name;
    enum role role;
    bool host, bf16;
    size_t n, row;
    float *init;
};

struct problem {
    const char *op;
    int shape, n;                       /* rows */
    int step;                           /* rows that only make sense together; 0: all */
    int past;                           /* tokens that every sequence follows */
    int in, out, heads, kv_heads, page; /* as the op reads them */
    float temperature, one, cap;        /* cap: of a head */
    struct wz_scores scores;
    enum wz_act act;
    bool add, half; /* half: a cache of bf16 */
    enum wz_type type;
    int *ids, *seq, *pos, *table, seqs, stride;
    struct wz_pick *picks;
    double budget, floor; /* largest error, in units of the array's largest value or of floor */
    struct array a[OPCHECK_ARRAYS];
    int arrays;
    void (*call)(const struct problem *p, struct wz_backend *be, float **a, int from, int to);
    struct wz_kv kv; /* made anew for every run */
};

/* One row for each slot: makes the problem of p->shape (0, 1, ..; false past the last) and calls the op. costly:
 * slow targets take fewer problems. */
struct row {
    const char *op;
    size_t slot;
    bool (*make)(struct problem *p);
    void (*call)(const struct problem *p, struct wz_backend *be, float **a, int from, int to);
    bool costly;
};
extern const struct row opcheck_rows[];
extern const size_t opcheck_n_rows;
extern struct wz_backend *opcheck_ref;

void opcheck_finish(struct problem *p);
void opcheck_gradients(void **state); /* ref's backwards against differences of ref's forwards */
int opcheck_bench(int threads, const char *backend, const struct wz_numerics *numerics); /* exit status */
int opcheck_bench_large(const char *backend, int shrink);                                /* likewise */

#endif
