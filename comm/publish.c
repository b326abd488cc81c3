/* Publishing weights from a learner to the ranks that generate with them, with version and hash (guarantee 6).
 *
 *   root ── header ──▶ every receiver           header: agent, version, hash, size
 *   root ═ chunk 0 1 2 ═▶ receiver ═ chunk 0 1 ═▶ receiver ═ chunk 0 ═▶ receiver
 *
 * By MPI in a pipelined chain: root sends the weights once, however many receivers there are, and each receiver
 * forwards chunk k while chunk k + 1 arrives; device memory is staged through the host chunk by chunk. Between GPUs by
 * ncclBroadcast, a bucket at a time. The receiver gets the hash that root computed and checks what arrived against it
 * before use (wz_taken). */
#include "comm/row.h"

#include <assert.h>
#include <string.h>

struct header {
    uint32_t agent;
    uint64_t version, hash, n;
};

enum { STRIDE = 1 << 22 }; /* bytes of a chunk */

static size_t chunk(size_t at, size_t n, size_t most) { return n - at < most ? n - at : most; }

/* Receives chunk k from the member before while chunk k - lag goes to the member after. */
static void chain(struct wz_link *link, const struct wz_group *group, struct wz_backend *be, char *x, size_t n,
                  const char *operation)
{
    static char staging[2][STRIDE]; /* MPI is called from one thread */
    int before = group->me > 0 ? group->ranks[group->me - 1] : -1;
    int after = group->me + 1 < group->n ? group->ranks[group->me + 1] : -1;
    size_t chunks = (n + STRIDE - 1) / STRIDE, lag = before >= 0;

    for (size_t k = 0; k < chunks + (lag && after >= 0); k++) {
        size_t in = k * STRIDE, out = (k - lag) * STRIDE;
        bool takes = before >= 0 && k < chunks, gives = after >= 0 && k >= lag;
        size_t n_in = takes ? chunk(in, n, STRIDE) : 0, n_out = gives ? chunk(out, n, STRIDE) : 0;
        char *to = be->device ? staging[k % 2] : x + (takes ? in : 0);
        char *from = be->device ? staging[(k - lag) % 2] : x + (gives ? out : 0);
        struct wz_wait wait = { 0 };
        if (be->device && gives && !lag) be->ops.download(be, from, x + out, n_out);
        link->row->move(link, WZ_TAG_WEIGHTS, gives ? after : -1, from, n_out, takes ? before : -1, to, n_in);
        for (int peer; (peer = link->row->moved(link)) >= 0;) wz_wait(link, &wait, operation, peer);
        if (be->device && takes) be->ops.upload(be, x + in, to, n_in);
    }
}

static void broadcast(struct wz_link *link, const struct wz_group *group, struct wz_backend *be, char *x, size_t n,
                      const char *operation)
{
    int peer = group->me ? group->ranks[0] : -1;

    if (group->n == 1) return;
    struct wz_nccl_comm *comm = wz_nccl_comm_of(link, group, be);
    if (!comm) {
        chain(link, group, be, x, n, operation);
        return;
    }
    for (size_t at = 0; at < n; at += WZ_BUCKET)
        wz_nccl_broadcast(comm, 0, x + at, chunk(at, n, WZ_BUCKET), operation, peer);
    wz_nccl_wait(comm, operation, peer);
}

void wz_publish(struct wz_link *link, const struct wz_group *group, struct wz_backend *be, uint32_t agent,
                uint64_t version, uint64_t hash, const void *x, size_t n)
{
    const struct header h = { .agent = agent, .version = version, .hash = hash, .n = n };
    char operation[96];

    assert(group->me == 0 && link->rank == group->ranks[0]);
    snprintf(operation, sizeof operation, "publish of agent %u version %llu", agent, (unsigned long long)version);
    for (int i = 1; i < group->n; i++) wz_send(link, group->ranks[i], WZ_TAG_WEIGHTS, &h, sizeof h);
    broadcast(link, group, be, (char *)(uintptr_t)x, n, operation);
}

uint64_t wz_take(struct wz_link *link, const struct wz_group *group, struct wz_backend *be, uint32_t agent,
                 uint64_t version, void *x, size_t n)
{
    const int root = group->ranks[0];
    char operation[96];
    struct wz_buf buf = { 0 };
    struct header h;

    assert(group->me > 0 && link->rank == group->ranks[group->me]);
    snprintf(operation, sizeof operation, "take of agent %u version %llu", agent, (unsigned long long)version);
    wz_recv_for(link, root, WZ_TAG_WEIGHTS, &buf, operation);
    assert(buf.len == sizeof h);
    memcpy(&h, buf.data, sizeof h);
    wz_buf_finish(&buf);
    if (h.agent != agent || h.version != version || h.n != n)
        wz_die("%s of %zu bytes at step %lld: rank %d sent agent %u version %llu of %llu bytes", operation, n,
               (long long)link->step, root, h.agent, (unsigned long long)h.version, (unsigned long long)h.n);
    broadcast(link, group, be, x, n, operation);
    return h.hash;
}

void wz_taken(const struct wz_link *link, const struct wz_group *group, uint32_t agent, uint64_t version, uint64_t sent,
              uint64_t came)
{
    if (came != sent)
        wz_die("take of agent %u version %llu at step %lld: rank %d sent weights with hash %016llx, but what arrived "
               "has hash %016llx",
               agent, (unsigned long long)version, (long long)link->step, group->ranks[0], (unsigned long long)sent,
               (unsigned long long)came);
}
