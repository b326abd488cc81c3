/* Lanes: the GPUs' own way between the members of a group, by NCCL.
 *
 *   cards      every member shows its machine, its GPU and whether it can; member 0 also the name of a new communicator
 *   lane       where all can and no two share a GPU: a communicator; else none, and what they exchange passes through
 *   the host
 *
 * Messages and episodes stay on MPI: a lane moves only what lies in a GPU's memory, in the stream of the backend, so
 * that it is in order with the kernels. Nothing blocks: NCCL is asked not to, and this rank polls with a deadline (law
 * 5). The library is opened when it is asked for, by declarations of our own (NCCL's ABI from 2.18 on): Waltz is built
 * and starts where there is none.
 *
 * A member's seat in the communicator is the number of its shard, so that NCCL's collectives and the tree share
 * arrays out alike. */
#include "comm/row.h"

#include <assert.h>
#include <dlfcn.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct comm; /* ncclComm_t points to it */
struct unique {
    char bytes[128];
};
enum { SUCCESS = 0, IN_PROGRESS = 7, BYTES = 0, FLOATS = 7, SUM = 0, OLDEST = 21800 };
struct config { /* ncclConfig_t as of 2.18; newer ones take it for what it is by size and version */
    size_t size;
    unsigned magic, version;
    int blocking, cga, least, most;
    const char *net;
    int split;
};

struct api {
    int (*GetVersion)(int *version);
    const char *(*GetErrorString)(int rc);
    const char *(*GetLastError)(struct comm *comm);
    int (*GetUniqueId)(struct unique *id);
    int (*CommInitRankConfig)(struct comm **comm, int n, struct unique id, int rank, struct config *config);
    int (*CommGetAsyncError)(struct comm *comm, int *rc);
    int (*CommDestroy)(struct comm *comm);
    int (*CommAbort)(struct comm *comm);
    int (*GroupStart)(void);
    int (*GroupEnd)(void);
    int (*Send)(const void *out, size_t n, int type, int peer, struct comm *comm, void *stream);
    int (*Recv)(void *in, size_t n, int type, int peer, struct comm *comm, void *stream);
    int (*Broadcast)(const void *out, void *in, size_t n, int type, int root, struct comm *comm, void *stream);
    int (*Reduce)(const void *out, void *in, size_t n, int type, int op, int root, struct comm *comm, void *stream);
    int (*ReduceScatter)(const void *out, void *in, size_t n, int type, int op, struct comm *comm, void *stream);
    int (*AllGather)(const void *out, void *in, size_t n, int type, struct comm *comm, void *stream);
};
static const struct {
    const char *name;
    size_t at;
} symbols[] = {
#define SYMBOL(name)                             \
    {                                            \
        "nccl" #name, offsetof(struct api, name) \
    }
    SYMBOL(GetVersion),
    SYMBOL(GetErrorString),
    SYMBOL(GetLastError),
    SYMBOL(GetUniqueId),
    SYMBOL(CommInitRankConfig),
    SYMBOL(CommGetAsyncError),
    SYMBOL(CommDestroy),
    SYMBOL(CommAbort),
    SYMBOL(GroupStart),
    SYMBOL(GroupEnd),
    SYMBOL(Send),
    SYMBOL(Recv),
    SYMBOL(Broadcast),
    SYMBOL(Reduce),
    SYMBOL(ReduceScatter),
    SYMBOL(AllGather),
};

struct wz_lane {
    struct wz_link *link;
    struct wz_backend *be;
    struct wz_group group; /* ranks are a copy */
    int seat;
    struct comm *comm; /* NULL: through the host */
};
struct wz_lanes {
    struct api api;
    bool can, must, ring; /* the library is open; it was asked for by name; sums by NCCL's own order */
    int n;
    struct wz_lane **list;
};

static struct wz_lanes *ours; /* for the job's end */

/* ---- the library ------------------------------------------------------------------------------------------ */

static int open_library(struct wz_lanes *lanes, struct wz_err *err)
{
    const char *named = getenv("WZ_NCCL_LIBRARY"), *name = named && *named ? named : "libnccl.so.2";
    void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    int version = 0;

    if (!library) return wz_fail(err, "link nccl: %s", dlerror());
    for (size_t i = 0; i < WZ_COUNT(symbols); i++) {
        void *symbol = dlsym(library, symbols[i].name);
        if (!symbol) return wz_fail(err, "link nccl: %s has no %s", name, symbols[i].name);
        memcpy((char *)&lanes->api + symbols[i].at, &symbol, sizeof symbol);
    }
    if (lanes->api.GetVersion(&version) != SUCCESS || version < OLDEST)
        return wz_fail(err, "link nccl: %s has version %d; %d or later is needed", name, version, OLDEST);
    lanes->can = true;
    return 0;
}

static void abort_job(int status)
{
    for (int i = 0; i < ours->n; i++)
        if (ours->list[i]->comm) ours->api.CommAbort(ours->list[i]->comm);
    wz_mpi_abort(status);
}

int wz_lanes_open(struct wz_link *link, bool must, bool ring, struct wz_err *err)
{
    struct wz_lanes *lanes = wz_alloc(sizeof *lanes);
    struct wz_err why;
    int rc = 0;

    if (must) rc = open_library(lanes, err);
    else if (getenv("WZ_NCCL_LIBRARY") || dlopen("libcuda.so.1", RTLD_LAZY)) open_library(lanes, &why);
    if (rc < 0) {
        free(lanes);
        return -1;
    }
    lanes->must = must;
    lanes->ring = ring;
    link->lanes = lanes;
    return 0;
}

void wz_lanes_close(struct wz_link *link)
{
    struct wz_lanes *lanes = link->lanes;

    if (!lanes) return;
    for (int i = 0; i < lanes->n; i++) {
        struct wz_lane *lane = lanes->list[i];
        if (lane->comm) lanes->api.CommDestroy(lane->comm);
        free((int *)(uintptr_t)lane->group.ranks);
        free(lane);
    }
    free(lanes->list);
    free(lanes);
    link->lanes = NULL;
    ours = NULL;
}

/* ---- a lane ----------------------------------------------------------------------------------------------- */

static int seat_of(int member, int n) { return n & (n - 1) ? member : wz_shard_owner(member, n); }

/* Drives a call until it has been taken over by the stream. */
static void settle(struct wz_lane *lane, int rc, const char *operation, int peer)
{
    const struct api *api = &lane->link->lanes->api;
    struct wz_wait wait = { 0 };

    while (rc == IN_PROGRESS) {
        int asked = api->CommGetAsyncError(lane->comm, &rc);
        if (asked != SUCCESS) rc = asked;
        if (rc == IN_PROGRESS) wz_wait(lane->link, &wait, operation, peer);
    }
    if (rc != SUCCESS)
        wz_die("%s at step %lld: nccl: %s (%s)", operation, (long long)lane->link->step, api->GetErrorString(rc),
               api->GetLastError(lane->comm));
}

void wz_lane_wait(struct wz_lane *lane, const char *operation, int peer)
{
    struct wz_wait wait = { 0 };

    while (!lane->be->device->idle(lane->be)) {
        settle(lane, IN_PROGRESS, operation, peer); /* a fault of the network shows itself only there */
        wz_wait(lane->link, &wait, operation, peer);
    }
}

struct card {
    char host[64], gpu[32];
    int32_t can;
    struct unique id;
};

/* Why these have no lane; "" where nothing is wrong. */
static void compare(const struct wz_group *group, const struct card *cards, char *why, size_t size)
{
    why[0] = 0;
    for (int i = 0; i < group->n; i++) {
        if (!cards[i].can) snprintf(why, size, "rank %d has no %s", group->ranks[i], cards[i].gpu[0] ? "NCCL" : "GPU");
        for (int k = 0; k < i && cards[i].gpu[0]; k++)
            if (memcmp(cards[i].host, cards[k].host, sizeof cards[i].host) == 0 &&
                strcmp(cards[i].gpu, cards[k].gpu) == 0)
                snprintf(why, size, "ranks %d and %d share GPU %s", group->ranks[k], group->ranks[i], cards[i].gpu);
    }
}

static void lane_open(struct wz_lane *lane)
{
    struct wz_link *link = lane->link;
    struct wz_lanes *lanes = link->lanes;
    const struct wz_group *group = &lane->group;
    struct card mine = { .can = lanes->can && lane->be->device }, *cards = wz_alloc((size_t)group->n * sizeof *cards);
    struct wz_buf *shown = wz_alloc((size_t)group->n * sizeof *shown);
    struct config config = { sizeof config, 0xcafebeef, OLDEST, 0, INT_MIN, INT_MIN, INT_MIN, NULL, INT_MIN };
    char why[128];

    gethostname(mine.host, sizeof mine.host - 1);
    if (lane->be->device) snprintf(mine.gpu, sizeof mine.gpu, "%s", lane->be->device->id);
    if (mine.can && group->me == 0 && lanes->api.GetUniqueId(&mine.id) != SUCCESS) mine.can = false;
    wz_all_gather_bytes(link, group, &mine, sizeof mine, shown);
    for (int i = 0; i < group->n; i++) {
        assert(shown[i].len == sizeof *cards);
        memcpy(&cards[i], shown[i].data, sizeof *cards);
        wz_buf_finish(&shown[i]);
    }
    compare(group, cards, why, sizeof why);
    if (!why[0]) {
        ours = lanes;
        wz_set_rank(link->rank, link->size, abort_job);
        lane->seat = seat_of(group->me, group->n);
        int rc = lanes->api.CommInitRankConfig(&lane->comm, group->n, cards[0].id, lane->seat, &config);
        settle(lane, rc, "opening of an NCCL communicator", -1);
    } else if (group->me == 0 && (lanes->must || cards[0].gpu[0])) {
        wz_log("nccl: %s: what these %d ranks exchange passes through the host, by MPI", why, group->n);
    }
    free(cards), free(shown);
}

struct wz_lane *wz_lane_of(struct wz_link *link, const struct wz_group *group, struct wz_backend *be)
{
    struct wz_lanes *lanes = link->lanes;
    size_t size = (size_t)group->n * sizeof *group->ranks;

    if (!lanes || group->n == 1) return NULL;
    for (int i = 0; i < lanes->n; i++) {
        struct wz_lane *lane = lanes->list[i];
        if (lane->be == be && lane->group.n == group->n && memcmp(lane->group.ranks, group->ranks, size) == 0)
            return lane->comm ? lane : NULL;
    }
    struct wz_lane *lane = wz_alloc(sizeof *lane);
    int *ranks = wz_alloc(size);
    memcpy(ranks, group->ranks, size);
    *lane = (struct wz_lane){ .link = link, .be = be, .group = { group->n, group->me, ranks } };
    lane_open(lane);
    lanes->list = wz_realloc(lanes->list, (size_t)(lanes->n + 1) * sizeof(struct wz_lane *));
    lanes->list[lanes->n++] = lane;
    return lane->comm ? lane : NULL;
}

bool wz_lane_ring(const struct wz_lane *lane) { return lane->link->lanes->ring; }

/* ---- what moves ------------------------------------------------------------------------------------------- */

/* The calls of a group go together: none waits for another. */
#define GROUP(lane, operation, peer, ...)                  \
    do {                                                   \
        const struct api *api = &(lane)->link->lanes->api; \
        int rc = api->GroupStart(), each;                  \
        __VA_ARGS__                                        \
        each = api->GroupEnd();                            \
        settle(lane, rc ? rc : each, operation, peer);     \
    } while (0)
#define CALL(function, ...)                                                          \
    do {                                                                             \
        each = api->function(__VA_ARGS__, (lane)->comm, (lane)->be->device->stream); \
        if (each != IN_PROGRESS && !rc) rc = each;                                   \
    } while (0)

void wz_lane_trade(struct wz_lane *lane, int member, const void *out, size_t n_out, void *in, size_t n_in,
                   const char *operation)
{
    int peer = seat_of(member, lane->group.n);

    GROUP(lane, operation, lane->group.ranks[member], if (n_out) CALL(Send, out, n_out, BYTES, peer);
          if (n_in) CALL(Recv, in, n_in, BYTES, peer););
}

void wz_lane_broadcast(struct wz_lane *lane, int member, void *x, size_t n, const char *operation, int peer)
{
    GROUP(lane, operation, peer, CALL(Broadcast, x, x, n, BYTES, seat_of(member, lane->group.n)););
}

void wz_lane_ring_sum(struct wz_lane *lane, float *x, size_t each_n, size_t rest, const char *operation)
{
    int last = lane->group.n - 1;
    float *tail = x + each_n * (size_t)lane->group.n;

    GROUP(lane, operation, -1, if (each_n) CALL(ReduceScatter, x, x + each_n * (size_t)lane->seat, each_n, FLOATS, SUM);
          if (rest) CALL(Reduce, tail, tail, rest, FLOATS, SUM, last););
}

void wz_lane_gather(struct wz_lane *lane, void *x, size_t each_n, size_t rest, const char *operation)
{
    int last = lane->group.n - 1;
    char *tail = (char *)x + each_n * (size_t)lane->group.n;

    GROUP(lane, operation, -1, if (each_n) CALL(AllGather, (char *)x + each_n * (size_t)lane->seat, x, each_n, BYTES);
          if (rest) CALL(Broadcast, tail, tail, rest, BYTES, last););
}
