/* Collectives of a group.
 *
 * The tree sum is a reduce-scatter by halves (Rabenseifner 2004), with neighbours first:
 *
 *   member   0      1      2      3        each pair halves the shards it shares: one keeps the lower half, the other
 *            ├─ 1 ──┤      ├─ 1 ──┤        the upper, and adds what is sent. After log2(n) rounds a member holds the
 *            ├──── 2 ──────┤               sums of one shard; the same rounds backwards hand them out.
 *                   ├──── 2 ──────┤
 *   shard    0      2      1      3        member m keeps the shard whose number is m's bits from the other end
 *
 * Every element is summed as ((0+1)+(2+3))+..., whichever member adds it: the bits of the serial tree. A member sends
 * (n-1)/n of the array each way. Device memory goes by an NCCL communicator (nccl.c) or through a staging buffer on the
 * host. */
#include "comm/row.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 1 << 20 }; /* bytes per MPI sendrecv: they stay in cache until they are added */

static size_t chunk(size_t at, size_t end, size_t most) { return at >= end ? 0 : end - at < most ? end - at : most; }

/* How two members exchange bytes; add: what arrives is f32 and added, not stored. */
struct exchange {
    struct wz_link *link;
    struct wz_backend *be;
    struct wz_nccl_comm *comm;
    const char *operation;
    bool add;
};

/* By MPI: device memory is downloaded before and uploaded after. */
static void mpi_sendrecv(const struct exchange *t, int peer, const char *out, size_t n_out, char *in, size_t n_in)
{
    static char sent[CHUNK], came[CHUNK]; /* MPI is called from one thread */
    struct wz_backend *be = t->be;
    struct wz_wait wait = { 0 };

    if (be->device && n_out) be->ops.download(be, sent, out, n_out);
    t->link->row->move(t->link, WZ_TAG_TREE, n_out ? peer : -1, be->device ? sent : out, n_out, n_in ? peer : -1,
                       be->device ? came : in, n_in);
    while (t->link->row->moved(t->link) >= 0) wz_wait(t->link, &wait, t->operation, peer);
    if (be->device && n_in) be->ops.upload(be, in, came, n_in);
}

/* Sends out[n_out] to a member of the group and receives n_in bytes from it into (or added to) `in`. */
static void exchange(const struct exchange *t, const struct wz_group *group, int member, const char *out, size_t n_out,
                     char *in, size_t n_in)
{
    size_t most = t->comm ? WZ_BUCKET : CHUNK;
    char *staging = t->add && n_in ? wz_staging(t->link, t->be, n_in < most ? n_in : most) : NULL;

    for (size_t at = 0; at < n_out || at < n_in; at += most) {
        size_t k_out = chunk(at, n_out, most), k_in = chunk(at, n_in, most);
        char *to = t->add ? staging : in + at;
        if (t->comm) wz_nccl_sendrecv(t->comm, member, out + at, k_out, to, k_in, t->operation);
        else mpi_sendrecv(t, group->ranks[member], out + at, k_out, to, k_in);
        if (t->add && k_in)
            t->be->ops.add(t->be, (float *)(void *)(in + at), (float *)(void *)staging, k_in / sizeof(float));
    }
    if (t->comm) wz_nccl_wait(t->comm, t->operation, group->ranks[member]);
}

static void check(const struct wz_link *link, const struct wz_group *group)
{
    assert(group->n > 0 && (group->n & (group->n - 1)) == 0 && group->ranks[group->me] == link->rank);
}

void wz_tree_scatter(struct wz_link *link, const struct wz_group *group, struct wz_backend *be, float *x, size_t n)
{
    const int size = group->n;
    int first = 0, end = size; /* shards that the members who still work together share */

    check(link, group);
    if (size == 1) return;
    const struct exchange t = { link, be, wz_nccl_comm_of(link, group, be), "tree sum", true };
    if (t.comm && wz_nccl_ring(t.comm)) {
        wz_nccl_ring_sum(t.comm, x, wz_shard_at(1, size, n), n - wz_shard_at(1, size, n) * (size_t)size, "ring sum");
        wz_nccl_wait(t.comm, "ring sum", -1);
        return;
    }
    for (int bit = 1; bit < size; bit *= 2) {
        int mid = (first + end) / 2, member = group->me ^ bit;
        size_t lo = wz_shard_at(first, size, n), half = wz_shard_at(mid, size, n), hi = wz_shard_at(end, size, n);
        size_t n_low = (half - lo) * sizeof *x, n_high = (hi - half) * sizeof *x;
        char *low = (char *)(x + lo), *high = (char *)(x + half);
        bool lower = !(group->me & bit);
        if (lower) exchange(&t, group, member, high, n_high, low, n_low);
        else exchange(&t, group, member, low, n_low, high, n_high);
        if (lower) end = mid;
        else first = mid;
    }
}

void wz_shards_gather(struct wz_link *link, const struct wz_group *group, struct wz_backend *be, void *x, size_t n,
                      size_t size)
{
    const int all = group->n, mine = wz_shard_owner(group->me, all);
    char *bytes = x;

    check(link, group);
    if (all == 1) return;
    const struct exchange t = { link, be, wz_nccl_comm_of(link, group, be), "gather of shards", false };
    if (t.comm) {
        wz_nccl_gather(t.comm, x, wz_shard_at(1, all, n) * size, (n - wz_shard_at(1, all, n) * (size_t)all) * size,
                       t.operation);
        wz_nccl_wait(t.comm, t.operation, -1);
        return;
    }
    for (int bit = all / 2, width = 1; bit > 0; bit /= 2, width *= 2) {
        int have = mine / width * width, other = have ^ width; /* the first of `width` shards of mine, of the peer's */
        size_t lo = wz_shard_at(have, all, n) * size, hi = wz_shard_at(have + width, all, n) * size;
        size_t from = wz_shard_at(other, all, n) * size, to = wz_shard_at(other + width, all, n) * size;
        exchange(&t, group, group->me ^ bit, bytes + lo, hi - lo, bytes + from, to - from);
    }
}

void wz_all_gather_bytes(struct wz_link *link, const struct wz_group *group, const void *mine, size_t n,
                         struct wz_buf *out)
{
    assert(group->ranks[group->me] == link->rank);
    for (int i = 0; i < group->n; i++)
        if (i != group->me) wz_send(link, group->ranks[i], WZ_TAG_SUMS, mine, n);
    for (int i = 0; i < group->n; i++) {
        wz_buf_clear(&out[i]);
        if (i == group->me) wz_buf_add(&out[i], mine, n);
        else wz_recv_for(link, group->ranks[i], WZ_TAG_SUMS, &out[i], "all-gather");
    }
}

void wz_all_gather(struct wz_link *link, const struct wz_group *group, const double *mine, int n, double *out)
{
    static struct wz_buf other; /* kept, so that a step allocates nothing; MPI is called from one thread */
    size_t size = (size_t)n * sizeof *mine;

    assert(group->ranks[group->me] == link->rank);
    for (int i = 0; i < group->n; i++)
        if (i != group->me) wz_send(link, group->ranks[i], WZ_TAG_SUMS, mine, size);
    for (int i = 0; i < group->n; i++) {
        if (i != group->me) wz_recv_for(link, group->ranks[i], WZ_TAG_SUMS, &other, "all-gather");
        assert(i == group->me || other.len == size);
        if (size) memcpy(out + (size_t)i * (size_t)n, i == group->me ? (const void *)mine : other.data, size);
    }
}

int wz_link_agree(struct wz_link *link, int rc, struct wz_err *err)
{
    int32_t first = rc < 0 ? link->rank : INT32_MAX;
    struct wz_buf bytes = { 0 };

    for (int r = 1; r < link->size && !link->rank; r++) {
        wz_recv_for(link, r, WZ_TAG_CONTROL, &bytes, "agreement");
        int32_t other = INT32_MAX;
        if (bytes.len == sizeof other) memcpy(&other, bytes.data, sizeof other);
        if (other < first) first = other;
    }
    if (link->rank) {
        wz_send(link, 0, WZ_TAG_CONTROL, &first, sizeof first);
        wz_recv_for(link, 0, WZ_TAG_CONTROL, &bytes, "agreement");
        if (bytes.len == sizeof first) memcpy(&first, bytes.data, sizeof first);
    }
    for (int r = 1; r < link->size && !link->rank; r++) wz_send(link, r, WZ_TAG_CONTROL, &first, sizeof first);
    wz_flush(link);
    wz_buf_finish(&bytes);
    if (first != link->rank && first != INT32_MAX) err->text[0] = 0;
    return first == INT32_MAX ? 0 : -1;
}
