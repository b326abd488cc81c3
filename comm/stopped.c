/* Who is stopped: a wait that times out names the peer that it waited for, which may itself have waited. Of the ranks
 * on this host, those that a signal or a debugger has stopped are told by the kernel: they have this one's parent. */
#include "comm/row.h"

#include <dirent.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The file below /proc, its NULs made line feeds: heap; "" where it can't be read. */
static char *read_proc(const char *pid, const char *name)
{
    char *path = wz_path("/proc/%s/%s", pid, name), part[4096];
    FILE *f = fopen(path, "r");
    struct wz_buf text = { 0 };

    wz_buf_str(&text, "\n");
    for (size_t n; f && (n = fread(part, 1, sizeof part, f)) > 0;) wz_buf_add(&text, part, n);
    for (size_t i = 0; i < text.len; i++)
        if (!text.data[i]) text.data[i] = '\n';
    if (f) fclose(f);
    free(path);
    return text.data;
}

/* Ranks below `below` that have this one's parent and are in one of these states (NULL: any, but not dead), written to
 * `to` as wz_stopped does. Returns how many. */
static int beside(int below, const char *states, char *to, size_t size)
{
    DIR *d = opendir("/proc");
    size_t n = 0;
    int found = 0;

    to[0] = 0;
    for (struct dirent *e; d && (e = readdir(d));) {
        char state;
        int parent;
        if (e->d_name[0] < '1' || e->d_name[0] > '9') continue;
        char *stat = read_proc(e->d_name, "stat"), *name = strrchr(stat, ')');
        const bool fits = name && sscanf(name + 1, " %c %d", &state, &parent) == 2 && parent == getppid() &&
                          (states ? strchr(states, state) != NULL : state != 'Z' && state != 'X');
        free(stat);
        if (!fits) continue;
        char *all = read_proc(e->d_name, "environ"), *rank = strstr(all, "\nPMIX_RANK=");
        if (rank) rank += strlen("\nPMIX_RANK=");
        found += rank && atoi(rank) < below;
        if (rank && atoi(rank) < below && n < size)
            n += (size_t)snprintf(to + n, size - n, "; rank %d (process %s) is stopped", atoi(rank), e->d_name);
        free(all);
    }
    if (d) closedir(d);
    return found;
}

void wz_stopped(char *to, size_t size) { beside(INT_MAX, "Tt", to, size); }

void wz_leave_in_order(int rank, double deadline)
{
    const double end = wz_now() + deadline;
    char stopped[256];
    int spins = 0;

    while (beside(rank, NULL, stopped, sizeof stopped) && wz_now() < end) wz_nap(&spins);
    if (beside(rank, "Tt", stopped, sizeof stopped))
        wz_die_again("the end of the job waited longer than the deadline of %g s%s", deadline, stopped);
}
