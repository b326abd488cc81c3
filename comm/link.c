/* The table of links, and the only place that waits.
 *
 * Every wait polls: it makes progress on this rank's own sends, tests again, and sleeps. So no rank blocks inside MPI,
 * ranks that share cores yield them to each other, and each wait ends at its deadline with a message (guarantee 5). */
#include "comm/row.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct named {
    const char *name;
    const struct wz_link_row *row; /* NULL: auto */
    bool nccl;                     /* required; by auto, mpi uses it where it can be had */
} links[] = {
    { "auto", NULL, false },        { "self", &wz_link_self, false },
    { "mpi", &wz_link_mpi, false }, { "nccl", &wz_link_mpi, true },
    { NULL, NULL, false },
};

bool wz_link_known(const char *name, struct wz_err *err)
{
    return wz_row_find(links, sizeof *links, "link", name, err) != NULL;
}

/* "auto": mpirun and srun --mpi=pmix set these variables for their children. */
static int choose(const char **name, struct wz_err *err)
{
    const char *tasks = getenv("SLURM_STEP_NUM_TASKS");

    *name = getenv("OMPI_COMM_WORLD_SIZE") || getenv("PMIX_RANK") ? "mpi" : "self";
    if (strcmp(*name, "self") == 0 && tasks && atoi(tasks) > 1)
        return wz_fail(
            err, "link auto: srun started %s tasks without an MPI environment; start them with srun --mpi=pmix", tasks);
    return 0;
}

/* Every rank learns the others' hosts and affinity masks: fills here, beside and n_beside. */
static void gather_hosts(struct wz_link *link)
{
    int *all = wz_alloc(sizeof *all * (size_t)link->size);
    struct wz_group group = { link->size, link->rank, all };
    struct wz_buf *places = wz_alloc(sizeof *places * (size_t)link->size);
    char host[64], *mask = wz_cores_mask(), *mine;

    wz_host_id(host);
    mine = wz_path("%s %s", host, mask);
    for (int r = 0; r < link->size; r++) all[r] = r;
    wz_all_gather_bytes(link, &group, mine, strlen(mine), places);
    link->beside = all;
    for (int r = 0; r < link->size; r++) {
        const char *other = strrchr(places[r].data, ' ');
        if (strncmp(places[r].data, mine, strlen(host) + 1) == 0) {
            link->here++;
            if (r == link->rank || wz_cores_overlap(other + 1, mask)) link->beside[link->n_beside++] = r;
        }
        wz_buf_finish(&places[r]);
    }
    wz_set_beside(link->n_beside);
    free(mask);
    free(mine);
    free(places);
}

/* A heartbeat to all other ranks, at most eight times per deadline. */
static void send_heartbeat(void *arg)
{
    struct wz_link *link = arg;

    if (wz_now() < link->heartbeat_sent + link->deadline / 8) return;
    link->heartbeat_sent = wz_now();
    for (int r = 0; r < link->size; r++)
        if (r != link->rank) link->row->send(link, r, WZ_TAG_HEARTBEAT, NULL, 0);
    link->row->drive(link);
}

int wz_link_open(struct wz_link *link, const char *name, double deadline, bool ring, struct wz_err *err)
{
    const struct named *at = wz_row_find(links, sizeof *links, "link", name, err);
    bool chosen = at && !at->row;

    *link = (struct wz_link){ .size = 1, .deadline = deadline };
    if (!at || (chosen && choose(&name, err) < 0)) return -1;
    at = wz_row_find(links, sizeof *links, "link", name, err);
    if ((at->nccl || (chosen && at->row == &wz_link_mpi)) && wz_nccl_open(link, at->nccl, ring, err) < 0) return -1;
    if (at->row->open(link, err) < 0) return -1;
    link->row = at->row;
    gather_hosts(link);
    wz_set_heartbeat(send_heartbeat, link);
    return 0;
}

void wz_link_close(struct wz_link *link)
{
    struct wz_wait wait = { 0 };

    if (!link->row) return;
    wz_set_heartbeat(NULL, NULL);
    wz_flush(link);
    while (!link->row->leave(link)) wz_wait(link, &wait, "close", -1);
    if (link->staging.be) link->staging.be->ops.free(link->staging.be, link->staging.p);
    wz_nccl_close(link);
    link->row->close(link);
    free(link->beside);
    *link = (struct wz_link){ 0 };
}

void *wz_staging(struct wz_link *link, struct wz_backend *be, size_t size)
{
    struct wz_staging *staging = &link->staging;

    if (staging->be == be && staging->size >= size) return staging->p;
    if (staging->be) staging->be->ops.free(staging->be, staging->p);
    *staging = (struct wz_staging){ be, be->ops.alloc(be, size), size };
    return staging->p;
}

void wz_wait(struct wz_link *link, struct wz_wait *wait, const char *operation, int peer)
{
    char who[32] = "the other ranks", stopped[256];

    link->row->drive(link);
    if (wait->until == 0) wait->until = wz_now() + link->deadline;
    if (wz_now() > fmax(wait->until, link->heartbeat_received + link->deadline)) {
        if (peer >= 0) snprintf(who, sizeof who, "rank %d", peer);
        wz_stopped(stopped, sizeof stopped);
        wz_die("%s at step %lld waited for %s longer than the deadline of %g s%s", operation, (long long)link->step,
               who, link->deadline, stopped);
    }
    wz_nap(&wait->spins);
}

void wz_send(struct wz_link *link, int to, enum wz_tag tag, const void *bytes, size_t n)
{
    link->row->send(link, to, tag, bytes, n);
    link->row->drive(link);
}

void wz_recv_for(struct wz_link *link, int from, enum wz_tag tag, struct wz_buf *buf, const char *operation)
{
    struct wz_wait wait = { 0 };

    wz_buf_clear(buf);
    while (!link->row->recv(link, from, tag, buf)) wz_wait(link, &wait, operation, from);
}

void wz_recv(struct wz_link *link, int from, enum wz_tag tag, struct wz_buf *buf)
{
    static const char *const operations[] = {
        [WZ_TAG_EPISODES] = "receive of episodes", [WZ_TAG_LABELLED] = "receive of labelled episodes",
        [WZ_TAG_STATS] = "receive of statistics",  [WZ_TAG_CONTROL] = "receive of control",
        [WZ_TAG_MOMENTS] = "receive of moments",
    };

    wz_recv_for(link, from, tag, buf, operations[tag]);
}

void wz_flush(struct wz_link *link)
{
    struct wz_wait wait = { 0 };

    for (int peer; (peer = link->row->drive(link)) >= 0;) wz_wait(link, &wait, "flush of sends", peer);
}
