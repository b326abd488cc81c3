/* NCCL communicators between the members of a group.
 *
 *   lookup   a group's communicator is created at its first use: members exchange machine, GPU and whether NCCL is
 *            available, member 0 also an ncclUniqueId
 *   result   a communicator where all have NCCL and no two share a GPU; else none, and data is staged through the host
 *
 * Messages and episodes stay on MPI: a communicator moves only what lies in GPU memory, on the backend's stream, so
 * that it is ordered with the kernels. Nothing blocks: communicators are non-blocking, and this rank polls with a
 * deadline (guarantee 5). A job that fails is ended by MPI_Abort alone: ncclCommAbort may wait for a kernel that never
 * ends, and a GPU's work ends with its process. The library is opened with dlopen at run time by declarations of our
 * own (NCCL's ABI from 2.18 on), so Waltz builds and runs without NCCL.
 *
 * A member's NCCL rank is the number of its shard, so that NCCL's collectives and the tree cut arrays alike. */
#include "comm/row.h"

#include <assert.h>
#include <dlfcn.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

struct comm; /* ncclComm_t points to it */
struct unique {
    char bytes[128];
};
enum { SUCCESS = 0, IN_PROGRESS = 7, BYTES = 0, FLOATS = 7, SUM = 0, OLDEST = 21800 };
struct config { /* ncclConfig_t as of 2.18; newer versions read it by its size and version */
    size_t size;
    unsigned magic, version;
    int blocking, cga, least, most;
    const char *net;
    int split;
};

/* The functions of the library that are used: result, name less "nccl", parameters. */
/* clang-format off */
#define FUNCTIONS(each) \
    each(int, GetVersion, int *version) \
    each(const char *, GetErrorString, int rc) \
    each(const char *, GetLastError, struct comm *comm) \
    each(int, GetUniqueId, struct unique *id) \
    each(int, CommInitRankConfig, struct comm **comm, int n, struct unique id, int rank, struct config *config) \
    each(int, CommGetAsyncError, struct comm *comm, int *rc) \
    each(int, CommFinalize, struct comm *comm) \
    each(int, CommDestroy, struct comm *comm) \
    each(int, GroupStart, void) \
    each(int, GroupEnd, void) \
    each(int, Send, const void *out, size_t n, int type, int peer, struct comm *, void *stream) \
    each(int, Recv, void *in, size_t n, int type, int peer, struct comm *, void *stream) \
    each(int, Broadcast, const void *out, void *in, size_t n, int type, int root, struct comm *, void *stream) \
    each(int, Reduce, const void *out, void *in, size_t n, int type, int op, int root, struct comm *, void *stream) \
    each(int, ReduceScatter, const void *out, void *in, size_t n, int type, int op, struct comm *, void *stream) \
    each(int, AllGather, const void *out, void *in, size_t n, int type, struct comm *, void *stream)
#define MEMBER(result, name, ...) result (*name)(__VA_ARGS__);
#define SYMBOL(result, name, ...) { "nccl" #name, offsetof(struct api, name) },
struct api { FUNCTIONS(MEMBER) };
static const struct { const char *name; size_t at; } symbols[] = { FUNCTIONS(SYMBOL) };
/* clang-format on */

struct wz_nccl_comm {
    struct wz_link *link;
    struct wz_backend *be;
    struct wz_group group; /* ranks: a copy, owned */
    int rank;
    struct comm *handle; /* NULL: data goes through the host */
};
struct wz_nccl {
    struct api api;
    bool available, required, ring; /* library open; link nccl asked for by name; sums in NCCL's own order */
    int n;
    struct wz_nccl_comm **list;
};

/* ---- the library ------------------------------------------------------------------------------------------ */

static int open_library(struct wz_nccl *nccl, struct wz_err *err)
{
    const char *named = getenv("WZ_NCCL_LIBRARY"), *name = named && *named ? named : "libnccl.so.2";
    void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    int version = 0;

    if (!library) return wz_fail(err, "link nccl: %s", dlerror());
    for (size_t i = 0; i < WZ_COUNT(symbols); i++) {
        void *symbol = dlsym(library, symbols[i].name);
        if (!symbol) return wz_fail(err, "link nccl: %s has no %s", name, symbols[i].name);
        memcpy((char *)&nccl->api + symbols[i].at, &symbol, sizeof symbol);
    }
    if (nccl->api.GetVersion(&version) != SUCCESS || version < OLDEST)
        return wz_fail(err, "link nccl: %s has version %d; %d or later is needed", name, version, OLDEST);
    nccl->available = true;
    return 0;
}

int wz_nccl_open(struct wz_link *link, bool required, bool ring, struct wz_err *err)
{
    struct wz_nccl *nccl = wz_alloc(sizeof *nccl);
    struct wz_err why;
    int rc = 0;

    if (required) rc = open_library(nccl, err);
    else if (getenv("WZ_NCCL_LIBRARY") || dlopen("libcuda.so.1", RTLD_LAZY)) open_library(nccl, &why);
    if (rc < 0) {
        free(nccl);
        return -1;
    }
    nccl->required = required;
    nccl->ring = ring;
    link->nccl = nccl;
    return 0;
}

/* ---- a communicator --------------------------------------------------------------------------------------- */

static int comm_rank(int member, int n) { return n & (n - 1) ? member : wz_shard_owner(member, n); }

/* Polls until a non-blocking call has been enqueued on the stream. */
static void settle(struct wz_nccl_comm *comm, int rc, const char *operation, int peer)
{
    const struct api *api = &comm->link->nccl->api;
    struct wz_wait wait = { 0 };

    while (rc == IN_PROGRESS) {
        int asked = api->CommGetAsyncError(comm->handle, &rc);
        if (asked != SUCCESS) rc = asked;
        if (rc == IN_PROGRESS) wz_wait(comm->link, &wait, operation, peer);
    }
    if (rc != SUCCESS)
        wz_die("%s at step %lld: nccl: %s (%s)", operation, (long long)comm->link->step, api->GetErrorString(rc),
               api->GetLastError(comm->handle));
}

void wz_nccl_wait(struct wz_nccl_comm *comm, const char *operation, int peer)
{
    struct wz_wait wait = { 0 };

    while (!comm->be->device->idle(comm->be)) {
        settle(comm, IN_PROGRESS, operation, peer); /* network errors are reported only by CommGetAsyncError */
        wz_wait(comm->link, &wait, operation, peer);
    }
}

/* A non-blocking communicator is finalized by all members, polled until that is done, and only then destroyed: before,
 * NCCL's threads may still use it while MPI ends and the backend's stream goes. */
void wz_nccl_close(struct wz_link *link)
{
    struct wz_nccl *nccl = link->nccl;

    if (!nccl) return;
    for (int i = 0; i < nccl->n; i++) {
        struct wz_nccl_comm *comm = nccl->list[i];
        if (comm->handle) {
            settle(comm, nccl->api.CommFinalize(comm->handle), "closing of an NCCL communicator", -1);
            nccl->api.CommDestroy(comm->handle);
        }
        free((int *)(uintptr_t)comm->group.ranks);
        free(comm);
    }
    free(nccl->list);
    free(nccl);
    link->nccl = NULL;
}

struct member {
    char machine[64], gpu[32];
    int32_t available;
    struct unique id;
};

/* Why this group can't have a communicator; "" where it can. */
static void obstacle(const struct wz_group *group, const struct member *members, char *why, size_t size)
{
    why[0] = 0;
    for (int i = 0; i < group->n; i++) {
        if (!members[i].available)
            snprintf(why, size, "rank %d has no %s", group->ranks[i], members[i].gpu[0] ? "NCCL" : "GPU");
        for (int k = 0; k < i && members[i].gpu[0]; k++)
            if (strcmp(members[i].machine, members[k].machine) == 0 && strcmp(members[i].gpu, members[k].gpu) == 0)
                snprintf(why, size, "ranks %d and %d share GPU %s", group->ranks[k], group->ranks[i], members[i].gpu);
    }
}

static void comm_open(struct wz_nccl_comm *comm)
{
    struct wz_link *link = comm->link;
    struct wz_nccl *nccl = link->nccl;
    const struct wz_group *group = &comm->group;
    struct member mine = { .available = nccl->available && comm->be->device };
    struct member *members = wz_alloc((size_t)group->n * sizeof *members);
    struct wz_buf *shown = wz_alloc((size_t)group->n * sizeof *shown);
    struct config config = { sizeof config, 0xcafebeef, OLDEST, 0, INT_MIN, INT_MIN, INT_MIN, NULL, INT_MIN };
    char why[128];

    wz_host_id(mine.machine);
    if (comm->be->device) snprintf(mine.gpu, sizeof mine.gpu, "%s", comm->be->device->id);
    if (mine.available && group->me == 0 && nccl->api.GetUniqueId(&mine.id) != SUCCESS) mine.available = false;
    wz_all_gather_bytes(link, group, &mine, sizeof mine, shown);
    for (int i = 0; i < group->n; i++) {
        assert(shown[i].len == sizeof *members);
        memcpy(&members[i], shown[i].data, sizeof *members);
        wz_buf_finish(&shown[i]);
    }
    obstacle(group, members, why, sizeof why);
    if (!why[0]) {
        comm->rank = comm_rank(group->me, group->n);
        int rc = nccl->api.CommInitRankConfig(&comm->handle, group->n, members[0].id, comm->rank, &config);
        settle(comm, rc, "opening of an NCCL communicator", -1);
    } else if (group->me == 0 && (nccl->required || members[0].gpu[0])) {
        wz_log("nccl: %s: falling back to MPI through host memory for these %d ranks", why, group->n);
    }
    free(members);
    free(shown);
}

struct wz_nccl_comm *wz_nccl_comm_of(struct wz_link *link, const struct wz_group *group, struct wz_backend *be)
{
    struct wz_nccl *nccl = link->nccl;
    size_t size = (size_t)group->n * sizeof *group->ranks;

    if (!nccl) return NULL;
    for (int i = 0; i < nccl->n; i++) {
        struct wz_nccl_comm *comm = nccl->list[i];
        if (comm->be == be && comm->group.n == group->n && memcmp(comm->group.ranks, group->ranks, size) == 0)
            return comm->handle ? comm : NULL;
    }
    struct wz_nccl_comm *comm = wz_alloc(sizeof *comm);
    int *ranks = wz_alloc(size);
    memcpy(ranks, group->ranks, size);
    *comm = (struct wz_nccl_comm){ .link = link, .be = be, .group = { group->n, group->me, ranks } };
    comm_open(comm);
    nccl->list = wz_realloc(nccl->list, (size_t)(nccl->n + 1) * sizeof(struct wz_nccl_comm *));
    nccl->list[nccl->n++] = comm;
    return comm->handle ? comm : NULL;
}

bool wz_nccl_ring(const struct wz_nccl_comm *comm) { return comm->link->nccl->ring; }

/* ---- transfers -------------------------------------------------------------------------------------------- */

/* The NCCL calls of one ncclGroup; `each` is the result of one of them, `rc` the first error. */
#define GROUP(comm, operation, peer, ...)                 \
    do {                                                  \
        const struct api *api = &(comm)->link->nccl->api; \
        int rc = api->GroupStart(), each;                 \
        __VA_ARGS__                                       \
        each = api->GroupEnd();                           \
        settle(comm, rc ? rc : each, operation, peer);    \
    } while (0)
#define CALL(function, ...)                                                            \
    do {                                                                               \
        each = api->function(__VA_ARGS__, (comm)->handle, (comm)->be->device->stream); \
        if (each != IN_PROGRESS && !rc) rc = each;                                     \
    } while (0)

void wz_nccl_sendrecv(struct wz_nccl_comm *comm, int member, const void *out, size_t n_out, void *in, size_t n_in,
                      const char *operation)
{
    int peer = comm_rank(member, comm->group.n);

    GROUP(comm, operation, comm->group.ranks[member], if (n_out) CALL(Send, out, n_out, BYTES, peer);
          if (n_in) CALL(Recv, in, n_in, BYTES, peer););
}

void wz_nccl_broadcast(struct wz_nccl_comm *comm, int member, void *x, size_t n, const char *operation, int peer)
{
    GROUP(comm, operation, peer, CALL(Broadcast, x, x, n, BYTES, comm_rank(member, comm->group.n)););
}

void wz_nccl_ring_sum(struct wz_nccl_comm *comm, float *x, size_t each_n, size_t rest, const char *operation)
{
    int last = comm->group.n - 1;
    float *tail = x + each_n * (size_t)comm->group.n;

    GROUP(comm, operation, -1, if (each_n) CALL(ReduceScatter, x, x + each_n * (size_t)comm->rank, each_n, FLOATS, SUM);
          if (rest) CALL(Reduce, tail, tail, rest, FLOATS, SUM, last););
}

void wz_nccl_gather(struct wz_nccl_comm *comm, void *x, size_t each_n, size_t rest, const char *operation)
{
    int last = comm->group.n - 1;
    char *tail = (char *)x + each_n * (size_t)comm->group.n;

    GROUP(comm, operation, -1, if (each_n) CALL(AllGather, (char *)x + each_n * (size_t)comm->rank, x, each_n, BYTES);
          if (rest) CALL(Broadcast, tail, tail, rest, BYTES, last););
}
