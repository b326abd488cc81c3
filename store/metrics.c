/* The metrics of a run, in two formats: metrics.jsonl and events.out.tfevents.* for TensorBoard.
 *
 *   {"step":3,"time":1790000000.25,"loss":0.5,"reward":null}        NaN and infinities are null
 *   {"step":4,"time":1790000000.5,"phase":"step-4","eval/average/asr":0.1}         of an evaluation
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

struct wz_metrics {
    char *lines_path, *events_path;
    int lines, events;  /* descriptors, -1: not open */
    bool append, begun; /* begun: metrics.jsonl was opened once, so it is not truncated again */
    int64_t first;      /* the first step to come */
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
    m->lines_path = wz_path("%s/metrics.jsonl", dir);
    m->events_path = events_path(dir);
    m->lines = m->events = -1;
    m->append = append;
    m->first = first;
    return m;
}

static void open_events(struct wz_metrics *m)
{
    struct wz_buf head = { 0 };

    m->events = wz_append_open(m->events_path, true, &m->why);
    if (m->events < 0) return;
    wz_events_version(&head, wz_wall());
    wz_events_restart(&head, wz_wall(), m->first);
    if (wz_append(m->events, head.data, head.len) < 0) {
        wz_fail(&m->why, "%s: %s", m->events_path, strerror(errno));
        close(m->events);
        m->events = -1;
    }
    wz_buf_finish(&head);
}

static void write_or_count(struct wz_metrics *m, int fd, const char *path, const struct wz_buf *entry)
{
    if (fd >= 0 && wz_append(fd, entry->data, entry->len) == 0) return;
    if (fd >= 0) wz_fail(&m->why, "%s: %s", path, strerror(errno));
    m->lost++;
}

void wz_metrics_add(struct wz_metrics *m, int64_t step, const char *phase, const char *const *names,
                    const double *values, int n)
{
    struct wz_buf line = { 0 }, record = { 0 };
    double wall = wz_wall();

    if (m->lines < 0) {
        m->lines = wz_append_open(m->lines_path, !m->append && !m->begun, &m->why);
        m->begun |= m->lines >= 0;
    }
    if (m->events < 0) open_events(m);
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
    write_or_count(m, m->lines, m->lines_path, &line);
    write_or_count(m, m->events, m->events_path, &record);
    wz_buf_finish(&line);
    wz_buf_finish(&record);
}

int wz_metrics_close(struct wz_metrics *m)
{
    int lost;

    if (!m) return 0;
    lost = m->lost;
    if (lost) wz_log("metrics lost %d writes, the last one: %s", lost, m->why.text);
    if (m->lines >= 0 && close(m->lines) < 0) lost++;
    if (m->events >= 0 && close(m->events) < 0) lost++;
    free(m->lines_path);
    free(m->events_path);
    free(m);
    return lost;
}
