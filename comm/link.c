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

/* A heartbeat to all other ranks, at most eight times per deadline: this rank waits for `peer`, or, its own number, is
 * at work. */
static void tell(struct wz_link *link, int peer)
{
    const int32_t said = peer;

    if (wz_now() < link->heartbeat_sent + link->deadline / 8) return;
    link->heartbeat_sent = wz_now();
    for (int r = 0; r < link->size; r++)
        if (r != link->rank) link->row->send(link, r, WZ_TAG_HEARTBEAT, &said, sizeof said);
    link->row->drive(link);
}

static void send_heartbeat(void *arg)
{
    struct wz_link *link = arg;

    tell(link, link->rank);
}

void wz_heard(struct wz_link *link, int from, int32_t said)
{
    if (said == from) link->heartbeat_received = wz_now();
    link->waits[from] = (struct wz_waits){ said, said == from ? 0 : wz_now() };
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
    link->waits = wz_alloc(sizeof *link->waits * (size_t)link->size);
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
    free(link->waits);
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

/* Did the rank say of late that it waits? Then another one is to blame. */
static bool waits(const struct wz_link *link, int rank)
{
    const double at = link->waits[rank].at;

    return at > 0 && wz_now() < at + link->deadline / 2;
}

static void name(struct wz_buf *text, int rank)
{
    if (rank < 0) wz_buf_str(text, "the other ranks");
    else wz_buf_printf(text, "rank %d", rank);
}

/* Names the peer, and whom each said that it waits for up to one that said nothing; then all that said nothing. */
static _Noreturn void time_out(const struct wz_link *link, const char *operation, int peer)
{
    struct wz_buf text = { 0 };
    char stopped[256];
    int n = 0;

    wz_buf_printf(&text, "%s at step %lld waited for ", operation, (long long)link->step);
    name(&text, peer);
    for (int r = peer; r >= 0 && r != link->rank && waits(link, r) && n < link->size; r = link->waits[r].peer, n++) {
        wz_buf_str(&text, n ? ", which waited for " : " (which waited for ");
        name(&text, link->waits[r].peer);
    }
    wz_stopped(stopped, sizeof stopped);
    wz_buf_printf(&text, "%s longer than the deadline of %g s%s", n ? ")" : "", link->deadline, stopped);
    for (int r = n = 0; r < link->size; r++)
        if (r != link->rank && !waits(link, r))
            wz_buf_printf(&text, "%s%d", n++ ? ", " : "; nothing was heard of rank ", r);
    wz_die_again("%s", text.data);
}

void wz_wait(struct wz_link *link, struct wz_wait *wait, const char *operation, int peer)
{
    const double now = wz_now();

    link->row->drive(link);
    if (wait->until == 0) wait->until = now + link->deadline;
    else if (now > wait->seen + link->deadline / 8) wait->until += now - wait->seen; /* this rank was stopped itself */
    wait->seen = now;
    if (now > wait->until - link->deadline * 7 / 8) tell(link, peer);
    if (now > fmax(wait->until, link->heartbeat_received + link->deadline)) time_out(link, operation, peer);
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
