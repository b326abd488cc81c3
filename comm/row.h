/* The inside of comm: the operations of a kind of link (struct wz_link_row, an entry of the table in link.c), waiting
 * with a deadline, and NCCL communicators. Waiting, collectives and publishing are built on the slots of a row. No slot
 * blocks: each does what can be done now and returns whether it has completed, so that every wait has a deadline. */
#ifndef WZ_ROW_H
#define WZ_ROW_H

#include "comm/comm.h"

struct wz_link_row {
    /* Sets rank, size and state; -1 and a message where this process can't be part of such a job. */
    int (*open)(struct wz_link *link, struct wz_err *err);
    /* A non-blocking barrier before close: true once every rank has entered it. */
    bool (*leave)(struct wz_link *link);
    void (*close)(struct wz_link *link);
    /* Starts to send a message of n bytes, which are copied. */
    void (*send)(struct wz_link *link, int to, enum wz_tag tag, const void *bytes, size_t n);
    /* Takes in heartbeats (wz_heard) and makes progress on pending sends; -1 when none is left, else a
     * rank that has not received all of its own. */
    int (*drive)(struct wz_link *link);
    /* Appends to buf what has arrived of the next message; true when the message is complete. */
    bool (*recv)(struct wz_link *link, int from, enum wz_tag tag, struct wz_buf *buf);
    /* Starts a sendrecv in place, sizes known to both sides, at most WZ_PART bytes each: n_out bytes to rank `to`, n_in
     * bytes from rank `from` (-1: no such direction). One at a time. */
    void (*move)(struct wz_link *link, enum wz_tag tag, int to, const void *out, size_t n_out, int from, void *in,
                 size_t n_in);
    /* -1 when both directions of the move have completed, else the rank that is waited for. */
    int (*moved)(struct wz_link *link);
};
extern const struct wz_link_row wz_link_self, wz_link_mpi;
/* A heartbeat: rank `from` waits for rank `said` (-1: all others), or, its own number, is at work. */
void wz_heard(struct wz_link *link, int from, int32_t said);
void wz_mpi_abort(int status); /* MPI_Abort of the whole job with this exit status */

/* Messages are sent in parts of this many bytes, the last one shorter (perhaps empty): MPI counts in int. */
enum { WZ_PART = 16 << 20 };

/* One wait, zeroed before its first use: while (!done) wz_wait(...). Each call makes progress on pending sends and
 * sleeps briefly, and tells the others whom it waits for; link->deadline seconds after its first call and after the
 * last sign of work of any rank it dies naming rank, operation, step and peer (-1: all other ranks), and the peer's
 * own one. */
struct wz_wait {
    double until; /* wz_now() at which the deadline is over */
    double seen;  /* wz_now() of the last call */
    int spins;
};
void wz_wait(struct wz_link *link, struct wz_wait *wait, const char *operation, int peer);
/* wz_recv with the name that a timeout reports as the operation. */
void wz_recv_for(struct wz_link *link, int from, enum wz_tag tag, struct wz_buf *buf, const char *operation);

/* "; rank 2 (process 4711) is stopped" for each rank of this host that is, cut to size; "": none. (stopped.c) */
void wz_stopped(char *to, size_t size);
/* At its end a rank waits until those before it on this host have ended, for mpirun would wait for ever where one is
 * stopped on its way out. After `deadline` seconds that is told, and ends the job; a rank that is only slow is left. */
void wz_leave_in_order(int rank, double deadline);

/* A staging buffer of at least `size` bytes in the memory of be, owned by the link, valid until the next call. */
void *wz_staging(struct wz_link *link, struct wz_backend *be, size_t size);

/* ---- nccl.c: NCCL communicators between the members of a group -------------------------------------------- */

enum { WZ_BUCKET = 64 << 20 }; /* bytes per NCCL call */

/* Opens the NCCL library. required: the link `nccl` was asked for by name, so -1 and a message where there is no usable
 * NCCL; else such links use MPI. ring: sums may be in NCCL's own order. Every rank of a job calls it alike. */
int wz_nccl_open(struct wz_link *link, bool required, bool ring, struct wz_err *err);
void wz_nccl_close(struct wz_link *link); /* accepts a link without NCCL */
/* The group's communicator for memory of `be`, created at the first call, which is collective. NULL: there is none, and
 * data is staged through the host. Owned by the link. A group of one has one too, which tests use: collectives of one
 * member move nothing and ask for none. */
struct wz_nccl_comm *wz_nccl_comm_of(struct wz_link *link, const struct wz_group *group, struct wz_backend *be);
/* Whether sums may be in NCCL's own order. */
bool wz_nccl_ring(const struct wz_nccl_comm *comm);
/* These are enqueued on the backend's stream, sizes in bytes; `member` is an index into the group. NCCL errors die; a
 * timeout reports `operation` and `peer`, a rank of the job (-1: all other ranks). */
void wz_nccl_sendrecv(struct wz_nccl_comm *comm, int member, const void *out, size_t n_out, void *in, size_t n_in,
                      const char *operation);
void wz_nccl_broadcast(struct wz_nccl_comm *comm, int member, void *x, size_t n, const char *operation, int peer);
/* x holds one shard of `each` elements per member and `rest` more that belong to the last shard. ring_sum:
 * reduce-scatter of floats in place. gather: all-gather of bytes in place. */
void wz_nccl_ring_sum(struct wz_nccl_comm *comm, float *x, size_t each, size_t rest, const char *operation);
void wz_nccl_gather(struct wz_nccl_comm *comm, void *x, size_t each, size_t rest, const char *operation);
/* Waits until everything enqueued on the stream has completed. */
void wz_nccl_wait(struct wz_nccl_comm *comm, const char *operation, int peer);

#endif
