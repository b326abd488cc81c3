/* What a kind of link has to do. Everything else (waiting, deadlines, collectives, publishing) is built on these slots,
 * so that a deadline holds everywhere. No slot blocks: each does what can be done now and says whether that was all. */
#ifndef WZ_ROW_H
#define WZ_ROW_H

#include "comm/comm.h"

struct wz_link_row {
    const char *name;
    /* Sets rank, size and state; -1 and a sentence where this process can't be part of such a job. */
    int (*open)(struct wz_link *link, struct wz_err *err);
    /* Begins to leave; true once every rank has. Then close frees. */
    bool (*leave)(struct wz_link *link);
    void (*close)(struct wz_link *link);
    /* A message from a copy of the bytes. */
    void (*send)(struct wz_link *link, int to, enum wz_tag tag, const void *bytes, size_t n);
    /* Drives the messages on their way; -1 when none is left, else a rank that has not taken all of its own. */
    int (*drive)(struct wz_link *link);
    /* Adds to buf what has come of the next message; true when that was its end. */
    bool (*recv)(struct wz_link *link, int from, enum wz_tag tag, struct wz_buf *buf);
    /* In place, sizes known on both sides, at most WZ_PART bytes each: out to `to` while in comes from `from` (-1:
     * none). One at a time. moved: -1 when both are through, else the rank that is waited for. */
    void (*move)(struct wz_link *link, enum wz_tag tag, int to, const void *out, size_t n_out, int from, void *in,
                 size_t n_in);
    int (*moved)(struct wz_link *link);
};
extern const struct wz_link_row wz_link_self, wz_link_mpi;
void wz_mpi_abort(int status); /* ends the whole job */

/* Messages travel in parts of this size, the last one shorter (perhaps empty): MPI counts in int. */
enum { WZ_PART = 16 << 20 };

/* Waits: while (!done) wz_wait(...). Drives the sends, naps, and dies when the deadline has run out. Zeroed struct
 * begins. */
struct wz_wait {
    double until;
    int spins;
};
void wz_wait(struct wz_link *link, struct wz_wait *wait, const char *operation, int peer);
/* wz_recv with another name for the operation. */
void wz_recv_for(struct wz_link *link, int from, enum wz_tag tag, struct wz_buf *buf, const char *operation);

/* At least `size` bytes in the memory of be, the link's own, until the next call. */
void *wz_near(struct wz_link *link, struct wz_backend *be, size_t size);

/* ---- nccl.c: lanes, the GPUs' own way between the members of a group -------------------------------------- */

enum { WZ_BUCKET = 64 << 20 }; /* bytes that go at once */

/* must: nccl was asked for by name, -1 and a sentence where there is none. Else what can be had. ring: sums in NCCL's
 * own order. All ranks of a job call it alike. */
int wz_lanes_open(struct wz_link *link, bool must, bool ring, struct wz_err *err);
void wz_lanes_close(struct wz_link *link); /* accepts a link without */
/* The group's lane for what lies in be's memory; all members ask. NULL: there is none, it passes through the host. */
struct wz_lane *wz_lane_of(struct wz_link *link, const struct wz_group *group, struct wz_backend *be);
bool wz_lane_ring(const struct wz_lane *lane); /* may sums be in NCCL's own order? */
/* These go on in the backend's stream; sizes in bytes, `peer` is named where the wait is too long (-1: the others). */
void wz_lane_trade(struct wz_lane *lane, int member, const void *out, size_t n_out, void *in, size_t n_in,
                   const char *operation);
void wz_lane_broadcast(struct wz_lane *lane, int member, void *x, size_t n, const char *operation, int peer);
/* x is `size` shards of `each` and a rest that is the last one's: summed to their owners, handed out to all. */
void wz_lane_ring_sum(struct wz_lane *lane, float *x, size_t each, size_t rest, const char *operation); /* floats */
void wz_lane_gather(struct wz_lane *lane, void *x, size_t each, size_t rest, const char *operation);
void wz_lane_wait(struct wz_lane *lane, const char *operation, int peer); /* until all that is done */

#endif
