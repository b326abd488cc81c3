/* comm: bytes in flight. A link joins the ranks of a job: `self` is one process, `mpi` is Open MPI, `nccl` is MPI with
 * NCCL for data in GPU memory. Every wait has a deadline (guarantee 5), which bounds silence, not work: it is put off
 * while some rank computes and says so. Ranks that wait for long say for whom, so a timeout ends the job (status
 * WZ_EXIT_AGAIN) with a message that names rank, operation, step, peer, and whom that one waited for. MPI is called
 * from one thread; waiting polls and sleeps, so that ranks that share cores do not starve each other. */
#ifndef WZ_COMM_H
#define WZ_COMM_H

#include "kernels/kernels.h"

/* WEIGHTS, SUMS, TREE and HEARTBEAT are comm's own: wz_recv does not take them. */
enum wz_tag {
    WZ_TAG_EPISODES = 1,
    WZ_TAG_LABELLED,
    WZ_TAG_WEIGHTS,
    WZ_TAG_STATS,
    WZ_TAG_CONTROL,
    WZ_TAG_MOMENTS,
    WZ_TAG_SUMS,
    WZ_TAG_TREE,
    WZ_TAG_HEARTBEAT
};

struct wz_link {
    const struct wz_link_row *row;
    int rank, size;
    double deadline; /* seconds that a wait may last while no other rank says that it is at work (wz_heartbeat) */
    double heartbeat_sent, heartbeat_received; /* wz_now() of the last heartbeat sent, of work received; private */
    struct wz_waits {
        int peer;          /* whom that rank said it waits for; -1: all others */
        double at;         /* wz_now() when it said so; 0: never */
    } * waits;             /* [size] owned by the link, private to comm */
    int64_t step;          /* reported by a timeout */
    int here;              /* ranks on this host, this one included */
    int *beside, n_beside; /* those of them whose affinity masks overlap with this rank's, itself included, ascending;
                              owned by the link */
    void *state;           /* of the row */
    struct wz_staging {
        struct wz_backend *be;
        void *p;
        size_t size; /* bytes */
    } staging;       /* wz_staging's buffer, and below the NCCL communicators (NULL: none): private to comm */
    struct wz_nccl *nccl;
};

/* name: "self", "mpi", "nccl", or "auto": started by mpirun or srun it is nccl where that is available, else mpi; alone
 * it is self. deadline: seconds. ring: sums over NCCL are NCCL's own reduce-scatter, which is faster and gives the same
 * bits only for the same ranks on the same machines; else those of the fixed tree. Calls wz_set_rank. -1 and a message
 * in err, which names the choices where there is no link of that name. */
int wz_link_open(struct wz_link *link, const char *name, double deadline, bool ring, struct wz_err *err);
/* Is there a link of that name? If not, the same message. */
bool wz_link_known(const char *name, struct wz_err *err);
void wz_link_close(struct wz_link *link); /* collective; before the backends whose memory it moved are closed */

/* n bytes to a peer (may be this rank itself: then they are queued). Messages between two ranks with one tag arrive in
 * order. The bytes are copied before return; what the peer has not taken yet is sent during wz_recv and wz_flush. */
void wz_send(struct wz_link *link, int to, enum wz_tag tag, const void *bytes, size_t n);
/* Replaces the content of buf by the next message of rank `from` with `tag`. */
void wz_recv(struct wz_link *link, int from, enum wz_tag tag, struct wz_buf *buf);
void wz_flush(struct wz_link *link); /* waits until all sends have completed */

/* Collective over all ranks, each with its own rc. 0 if no rank failed; else -1 on all, and only the lowest rank that
 * failed keeps its message in err, so that one rank prints it and all exit. */
int wz_link_agree(struct wz_link *link, int rc, struct wz_err *err);

/* Ranks that take part in a collective, ascending; the caller is ranks[me]. ranks[n] is borrowed. */
struct wz_group {
    int n, me;
    const int *ranks;
};

/* Reduce-scatter of x[n], f32 in the memory of `be`, in one fixed tree: ((0+1)+(2+3))+... The bits do not depend on the
 * size of the group, provided that each member's x is the tree sum of an aligned, equal, power-of-two share of the
 * leaves. A member gets the sums of its own shard (wz_shard_of); the rest of its x is overwritten. group->n must be a
 * power of two. */
void wz_tree_scatter(struct wz_link *link, const struct wz_group *group, struct wz_backend *be, float *x, size_t n);
/* All-gather in place: x[n], elements of `size` bytes in the memory of `be`; each member brings its own shard. group->n
 * must be a power of two. */
void wz_shards_gather(struct wz_link *link, const struct wz_group *group, struct wz_backend *be, void *x, size_t n,
                      size_t size);
/* out[group->n][n]: mine[n] of every member, in order of the group. */
void wz_all_gather(struct wz_link *link, const struct wz_group *group, const double *mine, int n, double *out);
/* The same for bytes of any length per member. out[group->n]: zeroed or reused buffers of the caller. */
void wz_all_gather_bytes(struct wz_link *link, const struct wz_group *group, const void *mine, size_t n,
                         struct wz_buf *out);

/* Weights from ranks[0] of a group, whose ranks may be in any order here, to all others: a header (agent, version,
 * hash), then n bytes in the memory of `be`. Ranks[0] calls wz_publish, the others wz_take, which dies where agent,
 * version or size differ from the header and returns the sender's hash. The receiver hashes what arrived and calls
 * wz_taken before it uses the weights: it dies, naming both hashes, where `came` is not `sent` (guarantee 6). */
void wz_publish(struct wz_link *link, const struct wz_group *group, struct wz_backend *be, uint32_t agent,
                uint64_t version, uint64_t hash, const void *x, size_t n);
uint64_t wz_take(struct wz_link *link, const struct wz_group *group, struct wz_backend *be, uint32_t agent,
                 uint64_t version, void *x, size_t n);
void wz_taken(const struct wz_link *link, const struct wz_group *group, uint32_t agent, uint64_t version, uint64_t sent,
              uint64_t came);

#endif
