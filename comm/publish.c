/* Weights on their way from the learners to those who play with them, with their identity (law 6).
 *
 *   root ── header ──▶ every taker           header: agent, version, hash, size
 *   root ═ part 0 1 2 ═▶ taker ═ part 0 1 ═▶ taker ═ part 0 ═▶ taker
 *
 * By MPI in a chain, so that root sends the weights once however many take them, and each taker passes part k on
 * while part k + 1 comes in; what is not the host's is downloaded and uploaded a part at a time. Between GPUs by
 * NCCL's broadcast, a bucket at a time. The taker is told what hash must have arrived: nothing that differs from
 * what root hashed is ever played with. */
#include "comm/row.h"

#include <assert.h>
#include <string.h>

struct header {
    uint32_t agent;
    uint64_t version, hash, n;
};

enum { STRIDE = 1 << 22 }; /* bytes a part */

static size_t part(size_t at, size_t n, size_t most) { return n - at < most ? n - at : most; }

/* Parts from the member before into x while the part before goes on to the one behind. */
static void chain(struct wz_link *link, const struct wz_group *group, struct wz_backend *be, char *x, size_t n,
                  const char *operation)
{
    static char near[2][STRIDE]; /* MPI is used from one thread */
    int before = group->me > 0 ? group->ranks[group->me - 1] : -1;
    int after = group->me + 1 < group->n ? group->ranks[group->me + 1] : -1;
    size_t parts = (n + STRIDE - 1) / STRIDE, lag = before >= 0;

    for (size_t k = 0; k < parts + (lag && after >= 0); k++) {
        size_t in = k * STRIDE, out = (k - lag) * STRIDE;
        bool takes = before >= 0 && k < parts, gives = after >= 0 && k >= lag;
        size_t n_in = takes ? part(in, n, STRIDE) : 0, n_out = gives ? part(out, n, STRIDE) : 0;
        char *to = be->device ? near[k % 2] : x + (takes ? in : 0);
        char *from = be->device ? near[(k - lag) % 2] : x + (gives ? out : 0);
        struct wz_wait wait = { 0 };
        if (be->device && gives && !lag) be->ops.download(be, from, x + out, n_out);
        link->row->move(link, WZ_TAG_WEIGHTS, gives ? after : -1, from, n_out, takes ? before : -1, to, n_in);
        for (int peer; (peer = link->row->moved(link)) >= 0;) wz_wait(link, &wait, operation, peer);
        if (be->device && takes) be->ops.upload(be, x + in, to, n_in);
    }
}

static void spread(struct wz_link *link, const struct wz_group *group, struct wz_backend *be, char *x, size_t n,
                   const char *operation)
{
    struct wz_lane *lane = wz_lane_of(link, group, be);
    int peer = group->me ? group->ranks[0] : -1;

    if (!lane) {
        chain(link, group, be, x, n, operation);
        return;
    }
    for (size_t at = 0; at < n; at += WZ_BUCKET)
        wz_lane_broadcast(lane, 0, x + at, part(at, n, WZ_BUCKET), operation, peer);
    wz_lane_wait(lane, operation, peer);
}

void wz_publish(struct wz_link *link, const struct wz_group *group, struct wz_backend *be, uint32_t agent,
                uint64_t version, uint64_t hash, const void *x, size_t n)
{
    const struct header h = { .agent = agent, .version = version, .hash = hash, .n = n };
    char operation[96];

    assert(group->me == 0 && link->rank == group->ranks[0]);
    snprintf(operation, sizeof operation, "publish of agent %u version %llu", agent, (unsigned long long)version);
    for (int i = 1; i < group->n; i++) wz_send(link, group->ranks[i], WZ_TAG_WEIGHTS, &h, sizeof h);
    spread(link, group, be, (char *)(uintptr_t)x, n, operation);
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
    spread(link, group, be, x, n, operation);
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
