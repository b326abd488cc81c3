/* A stand-in for libnccl.so: the calls that Waltz makes, with NCCL's names and numbers, between processes of one
 * machine and in host memory. Every pair of ranks of a communicator has a Unix socket; a call becomes transfers, bytes
 * to or from one peer, and the transfers of a pair are in order.
 *
 * No call blocks: they return ncclInProgress, and ncclCommGetAsyncError makes progress. Sums are added in the order of
 * a ring, starting behind their owner, so that their bits differ from a tree's. What the library leaves undefined, to
 * destroy a communicator that was not finalized or still is at it, ends the process. WZ_STANDIN_FAIL=finalize: no
 * finalization ever ends. */
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define SHOWN __attribute__((visibility("default")))

enum { SUCCESS, SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE_ERROR = 6, IN_PROGRESS = 7 };
enum { BYTES = 0, FLOATS = 7, MOST = 64 };

typedef struct {
    char name[128];
} ncclUniqueId;
struct transfer {
    struct transfer *next;
    char *bytes;
    size_t n;
    int peer;
    bool out;
};
struct sum {
    struct sum *next;
    float *to, *parts[MOST];
    size_t n;
};

struct ncclComm {
    ncclUniqueId id;
    int n, rank, listener, fd[MOST], loop, joined, result; /* loop: the other end of fd[rank] */
    size_t sent;
    bool finalized;
    char note[MOST]; /* a byte of each member's finalization */
    struct transfer *transfers;
    struct sum *sums;
};
typedef struct ncclComm *ncclComm_t;

/* Read by tests: bytes that this process has sent. */
extern size_t standin_sent;
SHOWN size_t standin_sent;
static int depth; /* of ncclGroupStart */

static struct sockaddr_un address(const ncclUniqueId *id, int rank, socklen_t *size)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };

    *size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 +
                        (size_t)snprintf(a.sun_path + 1, sizeof a.sun_path - 1, "%.64s.%d", id->name, rank));
    return a;
}

/* Connects to the lower ranks, accepts connections of the higher ones. */
static int join(ncclComm_t c)
{
    socklen_t size;
    int fd, from;

    for (int peer = 0; peer < c->rank; peer++) {
        struct sockaddr_un a = address(&c->id, peer, &size);
        if (c->fd[peer] >= 0) continue;
        fd = socket(AF_UNIX, SOCK_STREAM, 0);
        if (connect(fd, (struct sockaddr *)&a, size) == 0 &&
            send(fd, &c->rank, sizeof c->rank, MSG_NOSIGNAL) == sizeof c->rank) {
            c->fd[peer] = fd;
            c->joined++;
        } else {
            close(fd); /* not there yet */
        }
    }
    while ((fd = accept4(c->listener, NULL, NULL, 0)) >= 0) {
        if (recv(fd, &from, sizeof from, MSG_WAITALL) != sizeof from || from <= c->rank || from >= c->n)
            return SYSTEM_ERROR;
        c->fd[from] = fd;
        c->joined++;
    }
    return c->joined == c->n - 1 ? SUCCESS : IN_PROGRESS;
}

static int fd_of(ncclComm_t c, const struct transfer *l)
{
    return l->out && l->peer == c->rank ? c->loop : c->fd[l->peer];
}

/* As much of a transfer as is possible now; true where bytes moved. */
static bool transfer_progress(ncclComm_t c, struct transfer *l)
{
    const int fd = fd_of(c, l);
    ssize_t k = l->out ? send(fd, l->bytes, l->n, MSG_DONTWAIT | MSG_NOSIGNAL) : recv(fd, l->bytes, l->n, MSG_DONTWAIT);

    if (k <= 0 && !(k < 0 && (errno == EAGAIN || errno == EINTR)))
        c->result = k < 0 && errno == EFAULT ? INVALID_ARGUMENT : REMOTE_ERROR;
    if (k <= 0) return false;
    l->bytes += k;
    l->n -= (size_t)k;
    if (l->out && !c->finalized) {
        standin_sent += (size_t)k;
        c->sent += (size_t)k;
    }
    return true;
}

static void sums_make(ncclComm_t c)
{
    for (struct sum *s; (s = c->sums);) {
        for (size_t i = 0; i < s->n; i++) {
            float x = 0;
            for (int k = 1; k < c->n; k++) {
                const float part = s->parts[(c->rank + k) % c->n][i];
                x = k == 1 ? part : x + part;
            }
            s->to[i] = x + s->parts[c->rank][i];
        }
        for (int k = 0; k < c->n; k++) free(s->parts[k]);
        c->sums = s->next;
        free(s);
    }
}

static void progress(ncclComm_t c)
{
    bool moved = false, busy[2][MOST] = { 0 };
    struct pollfd waits[2 * MOST];
    nfds_t n = 0;

    if (c->joined < c->n - 1) {
        c->result = join(c);
        return;
    }
    for (struct transfer **at = &c->transfers, *l; (l = *at) && c->result == IN_PROGRESS;) {
        if (l->n && !busy[l->out][l->peer]) moved |= transfer_progress(c, l);
        if (l->n && !busy[l->out][l->peer]) waits[n++] = (struct pollfd){ fd_of(c, l), l->out ? POLLOUT : POLLIN, 0 };
        busy[l->out][l->peer] |= l->n > 0;
        if (l->n) {
            at = &l->next;
            continue;
        }
        *at = l->next;
        free(l);
    }
    if (c->result != IN_PROGRESS) return;
    if (!c->transfers) {
        sums_make(c);
        c->result = SUCCESS;
    } else if (!moved) {
        poll(waits, n, 1);
    }
}

static void transfer(ncclComm_t c, bool out, int peer, const void *bytes, size_t n)
{
    struct transfer *l = malloc(sizeof *l), **at = &c->transfers;

    *l = (struct transfer){ NULL, (char *)(uintptr_t)bytes, n, peer, out };
    while (*at) at = &(*at)->next;
    *at = l;
    c->result = IN_PROGRESS;
}

static struct sum *sum(ncclComm_t c, float *to, const float *mine, size_t n)
{
    struct sum *s = calloc(1, sizeof *s);

    s->to = to;
    s->n = n;
    s->next = c->sums;
    c->sums = s;
    c->result = IN_PROGRESS;
    for (int k = 0; k < c->n; k++) s->parts[k] = malloc(n * sizeof(float) + 1);
    memcpy(s->parts[c->rank], mine, n * sizeof(float));
    for (int k = 0; k < c->n; k++)
        if (k != c->rank) transfer(c, false, k, s->parts[k], n * sizeof(float));
    return s;
}

/* Errors of the caller: outside of ncclGroupStart/End, or no such peer. */
static int refuse(ncclComm_t c, int peer)
{
    if (!c || !depth) return INVALID_USAGE;
    return peer < 0 || peer >= c->n ? INVALID_ARGUMENT : SUCCESS;
}

/* ---- the library ------------------------------------------------------------------------------------------ */

SHOWN int ncclGetVersion(int *version);
SHOWN const char *ncclGetErrorString(int rc);
SHOWN const char *ncclGetLastError(ncclComm_t c);
SHOWN int ncclGetUniqueId(ncclUniqueId *id);
SHOWN int ncclCommInitRankConfig(ncclComm_t *comm, int n, ncclUniqueId id, int rank, void *config);
SHOWN int ncclCommGetAsyncError(ncclComm_t c, int *rc);
SHOWN int ncclCommDestroy(ncclComm_t c);
SHOWN int ncclCommFinalize(ncclComm_t c);
SHOWN int ncclGroupStart(void);
SHOWN int ncclGroupEnd(void);
SHOWN int ncclSend(const void *out, size_t n, int type, int peer, ncclComm_t c, void *stream);
SHOWN int ncclRecv(void *in, size_t n, int type, int peer, ncclComm_t c, void *stream);
SHOWN int ncclBroadcast(const void *out, void *in, size_t n, int type, int root, ncclComm_t c, void *stream);
SHOWN int ncclReduce(const void *out, void *in, size_t n, int type, int op, int root, ncclComm_t c, void *stream);
SHOWN int ncclReduceScatter(const void *out, void *in, size_t n, int type, int op, ncclComm_t c, void *stream);
SHOWN int ncclAllGather(const void *out, void *in, size_t n, int type, ncclComm_t c, void *stream);

int ncclGetVersion(int *version)
{
    *version = 22809;
    return SUCCESS;
}

const char *ncclGetErrorString(int rc)
{
    return rc == SYSTEM_ERROR       ? "unhandled system error"
           : rc == REMOTE_ERROR     ? "remote process exited or there was a network error"
           : rc == INVALID_ARGUMENT ? "invalid argument"
           : rc == INVALID_USAGE    ? "invalid usage"
                                    : "no error";
}

const char *ncclGetLastError(ncclComm_t c) { return "this is a stand-in"; }

int ncclGetUniqueId(ncclUniqueId *id)
{
    uint64_t bits[2];

    if (getrandom(bits, sizeof bits, 0) != sizeof bits) return SYSTEM_ERROR;
    snprintf(id->name, sizeof id->name, "nccl-%016llx%016llx", (unsigned long long)bits[0],
             (unsigned long long)bits[1]);
    return SUCCESS;
}

int ncclCommInitRankConfig(ncclComm_t *comm, int n, ncclUniqueId id, int rank, void *config)
{
    ncclComm_t c = calloc(1, sizeof *c);
    socklen_t size;
    struct sockaddr_un a = address(&id, rank, &size);
    int loop[2];

    *comm = c;
    if (n < 1 || n > MOST || rank < 0 || rank >= n) return INVALID_ARGUMENT;
    c->id = id;
    c->n = n;
    c->rank = rank;
    for (int i = 0; i < MOST; i++) c->fd[i] = -1;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, loop) < 0) return SYSTEM_ERROR;
    c->fd[rank] = loop[0];
    c->loop = loop[1];
    c->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (bind(c->listener, (struct sockaddr *)&a, size) < 0 || listen(c->listener, MOST) < 0) return SYSTEM_ERROR;
    return c->result = IN_PROGRESS;
}

int ncclCommGetAsyncError(ncclComm_t c, int *rc)
{
    const char *fault = getenv("WZ_STANDIN_FAIL");

    if (c->result == IN_PROGRESS && !(c->finalized && fault && strcmp(fault, "finalize") == 0)) progress(c);
    *rc = c->result;
    return SUCCESS;
}

/* Ends when every member has called it. */
int ncclCommFinalize(ncclComm_t c)
{
    if (c->finalized || c->result != SUCCESS) return INVALID_USAGE;
    for (int k = 0; k < c->n; k++) {
        if (k == c->rank) continue;
        transfer(c, true, k, "", 1);
        transfer(c, false, k, &c->note[k], 1);
    }
    c->finalized = true;
    return c->result = IN_PROGRESS;
}

int ncclCommDestroy(ncclComm_t c)
{
    if (!c->finalized || c->result != SUCCESS) {
        fprintf(stderr, "nccl stand-in: member %d of %d destroys a communicator that is not finalized\n", c->rank,
                c->n);
        abort();
    }
    if (getenv("WZ_STANDIN_SAYS"))
        fprintf(stderr, "nccl stand-in: member %d of %d sent %zu bytes\n", c->rank, c->n, c->sent);
    for (int i = 0; i < c->n; i++)
        if (c->fd[i] >= 0) close(c->fd[i]);
    close(c->listener);
    close(c->loop);
    free(c);
    return SUCCESS;
}

int ncclGroupStart(void)
{
    depth++;
    return SUCCESS;
}

int ncclGroupEnd(void) { return depth-- > 0 ? IN_PROGRESS : INVALID_USAGE; }

int ncclSend(const void *out, size_t n, int type, int peer, ncclComm_t c, void *stream)
{
    int rc = refuse(c, peer);

    if (rc == SUCCESS) transfer(c, true, peer, out, n * (type == FLOATS ? 4 : 1));
    return rc;
}

int ncclRecv(void *in, size_t n, int type, int peer, ncclComm_t c, void *stream)
{
    int rc = refuse(c, peer);

    if (rc == SUCCESS) transfer(c, false, peer, in, n * (type == FLOATS ? 4 : 1));
    return rc;
}

int ncclBroadcast(const void *out, void *in, size_t n, int type, int root, ncclComm_t c, void *stream)
{
    int rc = refuse(c, root);

    if (rc != SUCCESS) return rc;
    n *= type == FLOATS ? 4 : 1;
    if (root != c->rank) transfer(c, false, root, in, n);
    for (int k = 0; k < c->n && root == c->rank; k++)
        if (k != root) transfer(c, true, k, out, n);
    if (root == c->rank && in != out) memcpy(in, out, n);
    return SUCCESS;
}

int ncclReduce(const void *out, void *in, size_t n, int type, int op, int root, ncclComm_t c, void *stream)
{
    int rc = type == FLOATS && op == 0 ? refuse(c, root) : INVALID_ARGUMENT;

    if (rc != SUCCESS) return rc;
    if (root == c->rank) sum(c, in, out, n);
    else transfer(c, true, root, out, n * sizeof(float));
    return SUCCESS;
}

int ncclReduceScatter(const void *out, void *in, size_t n, int type, int op, ncclComm_t c, void *stream)
{
    const float *x = out;
    int rc = type == FLOATS && op == 0 ? refuse(c, 0) : INVALID_ARGUMENT;

    if (rc != SUCCESS) return rc;
    sum(c, in, x + n * (size_t)c->rank, n);
    for (int k = 0; k < c->n; k++)
        if (k != c->rank) transfer(c, true, k, x + n * (size_t)k, n * sizeof(float));
    return SUCCESS;
}

int ncclAllGather(const void *out, void *in, size_t n, int type, ncclComm_t c, void *stream)
{
    char *to = in;
    int rc = refuse(c, 0);

    if (rc != SUCCESS) return rc;
    n *= type == FLOATS ? 4 : 1;
    for (int k = 0; k < c->n; k++) {
        if (k == c->rank) continue;
        transfer(c, true, k, out, n);
        transfer(c, false, k, to + n * (size_t)k, n);
    }
    if (to + n * (size_t)c->rank != out) memcpy(to + n * (size_t)c->rank, out, n);
    return SUCCESS;
}
