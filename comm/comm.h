/* comm: bytes in flight. A link joins the ranks of a job: `self` is one process, `mpi` is Open MPI, `nccl` is mpi
 * for all but what lies in GPUs' memory. Every wait has a deadline (law 5): what runs out dies naming rank,
 * operation, step and peer. MPI is used from one thread; waiting polls and sleeps, so that ranks that share cores do
 * not starve each other. */
#ifndef WZ_COMM_H
#define WZ_COMM_H

#include "kernels/kernels.h"

/* WEIGHTS, SUMS and TREE are comm's own. */
enum wz_tag {
    WZ_TAG_EPISODES = 1,
    WZ_TAG_LABELLED,
    WZ_TAG_WEIGHTS,
    WZ_TAG_STATS,
    WZ_TAG_CONTROL,
    WZ_TAG_MOMENTS,
    WZ_TAG_SUMS,
    WZ_TAG_TREE
};

struct wz_link {
    const struct wz_link_row *row;
    int rank, size;
    double deadline;       /* seconds a wait may last */
    int64_t step;          /* for messages */
    int here;              /* ranks on this host, this one counted */
    int *beside, n_beside; /* those of them whose affinity masks meet this one's, it too, ascending; the link's */
    void *state;
    struct wz_near {
        struct wz_backend *be;
        void *p;
        size_t size;
    } near; /* comm's own, as is */
    struct wz_lanes *lanes;
};

/* name: "self", "mpi", "nccl", or "auto": when started by mpirun or srun nccl where it can be had, else mpi; alone,
 * self. Sets wz_set_rank. ring: sums over NCCL are in NCCL's own order, faster, and the same only for the same ranks
 * on the same machines; else in that of the fixed tree. -1 and a sentence on error, which names the choices where
 * there is no link of that name. */
int wz_link_open(struct wz_link *link, const char *name, double deadline, bool ring, struct wz_err *err);
/* Names of the table of links; NULL after the last. */
const char *wz_link_name(int i);
void wz_link_close(struct wz_link *link); /* while the backends whose memory it moved are still open */

/* Bytes to a peer (itself allowed; then kept in a queue). Messages between two ranks with one tag arrive in order. The
 * bytes are copied or sent before return as far as the peer takes them; wz_recv and wz_flush drive what is left. */
void wz_send(struct wz_link *link, int to, enum wz_tag tag, const void *bytes, size_t n);
/* Replaces buf by the next message of `from` with `tag`. */
void wz_recv(struct wz_link *link, int from, enum wz_tag tag, struct wz_buf *buf);
void wz_flush(struct wz_link *link); /* until all sends have left */

/* All ranks come with their own rc. 0 when none has failed; else -1 on all, and only the lowest rank that failed
 * keeps its sentence in err: one speaks, all leave. */
int wz_link_agree(struct wz_link *link, int rc, struct wz_err *err);

/* A group: ranks in ascending order that work together; the caller is one of them. */
struct wz_group {
    int n, me;
    const int *ranks;
};

/* x[n], in the memory of `be`, summed over the group in one fixed tree: ((0+1)+(2+3))+..., the same bits whatever
 * the group's size, as long as each member comes with the sum of an aligned, equal, power-of-two share of the
 * leaves. A member gets the sums of its own shard; the rest of its x is lost. group->n must be a power of two. */
void wz_tree_scatter(struct wz_link *link, const struct wz_group *group, struct wz_backend *be, float *x, size_t n);
/* Every member's shard of x[n], elements of `size` bytes, to all of them. */
void wz_shards_gather(struct wz_link *link, const struct wz_group *group, struct wz_backend *be, void *x, size_t n,
                      size_t size);
/* out[group->n][n]: every member's doubles, in order of rank. */
void wz_all_gather(struct wz_link *link, const struct wz_group *group, const double *mine, int n, double *out);
/* out: the bytes of each member, in order of rank, of any length. out[group->n], zeroed or reused buffers. */
void wz_all_gather_bytes(struct wz_link *link, const struct wz_group *group, const void *mine, size_t n,
                         struct wz_buf *out);

/* Weights from the first of a group, whose ranks may be in any order, to all others: agent, version, hash, then n
 * bytes in the memory of `be`. wz_take dies where another agent's or version's were sent, and returns the hash that
 * must have arrived; wz_taken dies, naming both, where another one did (law 6): the taker calls it when it has
 * hashed them, before it plays. */
void wz_publish(struct wz_link *link, const struct wz_group *group, struct wz_backend *be, uint32_t agent,
                uint64_t version, uint64_t hash, const void *x, size_t n);
uint64_t wz_take(struct wz_link *link, const struct wz_group *group, struct wz_backend *be, uint32_t agent,
                 uint64_t version, void *x, size_t n);
void wz_taken(const struct wz_link *link, const struct wz_group *group, uint32_t agent, uint64_t version, uint64_t sent,
              uint64_t came);

#endif
