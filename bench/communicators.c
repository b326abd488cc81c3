/* Bandwidth between ranks that hold a backend's memory each: `mpirun -n N communicators BACKEND MEGABYTES [LINK
 * [ring]]`.
 *
 * Rank 0 publishes that many bytes to all others; all reduce-scatter an array of that size and gather it back (a power
 * of two of ranks only). GB/s: the array's size over the time of the slowest rank, the best of 5 rounds. For
 * comparison, an addition inside the backend's memory, which moves three times the array's size. */
#include "comm/comm.h"

#include <stdlib.h>
#include <string.h>

enum { ROUNDS = 5 };

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "auto", *kind = argc > 3 ? argv[3] : "auto";
    size_t size = (argc > 2 ? strtoul(argv[2], NULL, 10) : 64) << 20, n = size / sizeof(float);
    double best[4] = { 1e9, 1e9, 1e9, 1e9 };
    static const char *const what[] = { "publish", "sum, scattered", "gather of shards", "add, in place" };
    struct wz_link link = { 0 };
    struct wz_err err;
    int ranks[1024];

    if (wz_link_open(&link, kind, 120, argc > 4 && !strcmp(argv[4], "ring"), &err) < 0) wz_die("%s", err.text);
    struct wz_backend *be = wz_backend_open(name, 0, NULL, &err);
    if (!be) wz_die("%s", err.text);
    for (int i = 0; i < link.size; i++) ranks[i] = i;
    const struct wz_group group = { link.size, link.rank, ranks };
    float *x = wz_backend_alloc(be, size), *y = wz_backend_alloc(be, size), word;
    bool sums = link.size > 1 && !(link.size & (link.size - 1));

    for (int round = 0; round < ROUNDS; round++)
        for (int k = 0; k < 4; k++) {
            if ((k == 0 && link.size == 1) || ((k == 1 || k == 2) && !sums)) continue;
            double zero = 0, *all = wz_alloc((size_t)link.size * sizeof *all), begin;
            be->ops.download(be, &word, x, sizeof word);
            wz_all_gather(&link, &group, &zero, 1, all); /* barrier */
            begin = wz_now();
            if (k == 0 && link.rank == 0) wz_publish(&link, &group, be, 0, (uint64_t)round, 0, x, size);
            else if (k == 0) wz_take(&link, &group, be, 0, (uint64_t)round, x, size);
            if (k == 1) wz_tree_scatter(&link, &group, be, x, n);
            if (k == 2) wz_shards_gather(&link, &group, be, x, n, sizeof *x);
            if (k == 3) be->ops.add(be, y, x, n);
            be->ops.download(be, &word, k == 3 ? y : x, sizeof word);
            double mine = wz_now() - begin, most = 0;
            wz_all_gather(&link, &group, &mine, 1, all);
            for (int i = 0; i < link.size; i++) most = all[i] > most ? all[i] : most;
            if (most < best[k]) best[k] = most;
            free(all);
        }
    for (int k = 0; k < 4 && link.rank == 0; k++)
        if (best[k] < 1e9)
            printf("%-20s %8.3f ms %8.2f GB/s\n", what[k], best[k] * 1e3,
                   (double)size * (k == 3 ? 3 : 1) / best[k] / 1e9);
    be->ops.free(be, x), be->ops.free(be, y);
    wz_link_close(&link);
    wz_backend_close(be);
    return 0;
}
