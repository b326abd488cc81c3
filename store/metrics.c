/* The metrics of a run: metrics.jsonl has a line of each step, evaluations.jsonl of each evaluation, and
 * events.out.tfevents.* has both for TensorBoard.
 *
 *   {"step":3,"time":1790000000.25,"loss":0.5,"reward":null}        NaN and infinities are null
 *   {"step":4,"time":1790000000.5,"phase":"step-4","eval/average/asr":0.1}
 *
 * Nothing here can fail a run (guarantee 10). A file that can't be opened is tried again at each step; an entry that
 * can't be written whole is dropped, counted, and reported at close. Every start writes an event file of its own, which
 * begins by telling TensorBoard to forget the steps to come: an earlier start may have made them, and died before it
 * could save them. (Their lines were removed when the run was opened: run/folder.c.) TensorBoard reads the files in the
 * order of their names, so the time in the name is later than that of the files that are there, whatever the clock. */
#include "store/append.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STEPS, EVALUATIONS, EVENTS, N_FILES };

struct wz_metrics {
    char *paths[N_FILES];
    int fds[N_FILES]; /* -1: not open */
    bool append;      /* to the files of lines that there are */
    int64_t first;    /* the first step to come */
    int lost;
    struct wz_err why; /* reason of the last loss */
};

static char *events_path(const char *dir)
{
    long long time = (long long)wz_wall(), there;
    char host[65] = "";
    DIR *d = opendir(dir);

    for (struct dirent *e; d && (e = readdir(d));)
        if (sscanf(e->d_name, "events.out.tfevents.%lld", &there) == 1 && there >= time) time = there + 1;
    if (d) closedir(d);
    gethostname(host, sizeof host - 1);
    return wz_path("%s/events.out.tfevents.%010lld.%s.%d.0", dir, time, host, (int)getpid());
}

struct wz_metrics *wz_metrics_open(const char *dir, bool append, int64_t first)
{
    struct wz_metrics *m = wz_alloc(sizeof *m);
    struct sigaction old;

    /* Exceeding a file size limit shall fail a write, not kill the run by SIGXFSZ. */
    if (sigaction(SIGXFSZ, NULL, &old) == 0 && old.sa_handler == SIG_DFL) signal(SIGXFSZ, SIG_IGN);
    m->paths[STEPS] = wz_path("%s/metrics.jsonl", dir);
    m->paths[EVALUATIONS] = wz_path("%s/evaluations.jsonl", dir);
    m->paths[EVENTS] = events_path(dir);
    for (int f = 0; f < N_FILES; f++) m->fds[f] = -1;
    m->append = append;
    m->first = first;
    return m;
}

static int write_entry(struct wz_metrics *m, int f, const struct wz_buf *entry)
{
    if (m->fds[f] >= 0 && wz_append(m->fds[f], entry->data, entry->len) == 0) return 0;
    if (m->fds[f] >= 0) wz_fail(&m->why, "%s: %s", m->paths[f], strerror(errno));
    return -1;
}

static void open_file(struct wz_metrics *m, int f)
{
    struct wz_buf head = { 0 };

    if (m->fds[f] >= 0) return;
    m->fds[f] = wz_append_open(m->paths[f], f == EVENTS || !m->append, &m->why);
    if (m->fds[f] < 0 || f != EVENTS) return;
    wz_events_version(&head, wz_wall());
    wz_events_restart(&head, wz_wall(), m->first);
    if (write_entry(m, f, &head) < 0) {
        close(m->fds[f]);
        m->fds[f] = -1;
    }
    wz_buf_finish(&head);
}

void wz_metrics_add(struct wz_metrics *m, int64_t step, const char *phase, const char *const *names,
                    const double *values, int n)
{
    struct wz_buf line = { 0 }, record = { 0 };
    const int file = phase ? EVALUATIONS : STEPS;
    const double wall = wz_wall();

    open_file(m, file);
    open_file(m, EVENTS);
    wz_buf_printf(&line, "{\"step\":%lld,\"time\":%.6f", (long long)step, wall);
    if (phase) wz_buf_printf(&line, ",\"phase\":\"%s\"", phase);
    for (int i = 0; i < n; i++) {
        wz_buf_str(&line, ",");
        wz_json_string(&line, names[i], strlen(names[i]));
        wz_buf_str(&line, ":");
        if (isfinite(values[i])) wz_real_add(&line, values[i]);
        else wz_buf_str(&line, "null");
    }
    wz_buf_str(&line, "}\n");
    wz_events_scalars(&record, wall, step, names, values, n);
    m->lost -= write_entry(m, file, &line) + write_entry(m, EVENTS, &record);
    wz_buf_finish(&line);
    wz_buf_finish(&record);
}

int wz_metrics_close(struct wz_metrics *m)
{
    int lost;

    if (!m) return 0;
    lost = m->lost;
    if (lost) wz_log("metrics lost %d writes, the last one: %s", lost, m->why.text);
    for (int f = 0; f < N_FILES; f++) {
        if (m->fds[f] >= 0 && close(m->fds[f]) < 0) lost++;
        free(m->paths[f]);
    }
    free(m);
    return lost;
}
