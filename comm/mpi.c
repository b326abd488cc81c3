/* The link of many processes: Open MPI, called from one thread, non-blocking calls only.
 *
 *   send   copy ─▶ parts ─▶ MPI_Isend, kept in a list until done     recv   MPI_Improbe ─▶ MPI_Imrecv ─▶ MPI_Test
 *   move   MPI_Irecv + MPI_Isend in place ─▶ MPI_Test                leave  MPI_Ibarrier ─▶ MPI_Test
 *
 * A message is cut into parts of WZ_PART bytes and ends with the first shorter one; MPI keeps the order of messages
 * between two ranks with one tag, so the receiver needs no header to join the parts. */
#include "comm/row.h"

#include <assert.h>
#include <errno.h>
#include <mpi.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct part {
    MPI_Request request;
    void *bytes;
    int to;
};
struct state {
    struct part *parts; /* pending sends */
    int n, cap;
    MPI_Request coming; /* the part being received, and its size in bytes */
    int coming_n;
    MPI_Request out, in; /* the move */
    int out_to, in_from;
    MPI_Request leaving;
    bool left;
};

static void check(int rc, const char *call)
{
    char text[MPI_MAX_ERROR_STRING];
    int n;

    if (rc == MPI_SUCCESS) return;
    MPI_Error_string(rc, text, &n);
    wz_die_again("%s: %s", call, text);
}
#define CHECK(name, ...) check(name(__VA_ARGS__), #name)

static bool test(MPI_Request *request)
{
    int done;

    CHECK(MPI_Test, request, &done, MPI_STATUS_IGNORE);
    return done;
}

/* ---- MPI_Init and MPI_Finalize ----------------------------------------------------------------------------- */

/* They can't be polled: a thread ends this rank, and so the job, when one takes longer than the deadline, or than what
 * a busy machine may need. */
static struct {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t over;
    const char *call; /* NULL: it has returned */
    double deadline;
} watch = { .lock = PTHREAD_MUTEX_INITIALIZER, .over = PTHREAD_COND_INITIALIZER };
static const double least_deadline = 10;

static void *watch_call(void *arg)
{
    struct timespec until;
    char stopped[256];
    int rc = 0;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += (time_t)(watch.deadline < 1e9 ? watch.deadline : 1e9);
    pthread_mutex_lock(&watch.lock);
    while (watch.call && rc != ETIMEDOUT)
        rc = pthread_cond_clockwait(&watch.over, &watch.lock, CLOCK_MONOTONIC, &until);
    if (watch.call) {
        const char *rank = getenv("PMIX_RANK");
        wz_stopped(stopped, sizeof stopped);
        wz_log("waltz: rank %s: %s waited for the other ranks longer than the deadline of %g s%s", rank ? rank : "?",
               watch.call, watch.deadline, stopped);
        _exit(WZ_EXIT_AGAIN); /* not exit: MPI's handlers would wait, too */
    }
    pthread_mutex_unlock(&watch.lock);
    return NULL;
}

static void watch_begin(const char *call, double deadline)
{
    watch.call = call;
    watch.deadline = deadline > least_deadline ? deadline : least_deadline;
    if (pthread_create(&watch.thread, NULL, watch_call, NULL)) wz_die("%s: no thread can be started", call);
}

static void watch_end(void)
{
    pthread_mutex_lock(&watch.lock);
    watch.call = NULL;
    pthread_cond_signal(&watch.over);
    pthread_mutex_unlock(&watch.lock);
    pthread_join(watch.thread, NULL);
}

/* ---- the row ----------------------------------------------------------------------------------------------- */

void wz_mpi_abort(int status) { MPI_Abort(MPI_COMM_WORLD, status); }

static int mpi_open(struct wz_link *link, struct wz_err *err)
{
    int before, after, level, rc;
    char text[MPI_MAX_ERROR_STRING];

    MPI_Initialized(&before);
    MPI_Finalized(&after);
    if (before || after) return wz_fail(err, "link mpi: a process can join an MPI job once, and this one already has");
    watch_begin("MPI_Init", link->deadline);
    rc = MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level);
    watch_end();
    if (rc != MPI_SUCCESS) {
        MPI_Error_string(rc, text, &level);
        return wz_fail(err, "link mpi: MPI could not start: %s", text);
    }
    if (level < MPI_THREAD_FUNNELED)
        return wz_fail(err, "link mpi: expected thread support of level %d (MPI_THREAD_FUNNELED), got %d",
                       MPI_THREAD_FUNNELED, level);
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &link->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &link->size);
    wz_set_rank(link->rank, link->size, wz_mpi_abort);

    struct state *s = wz_alloc(sizeof *s);
    s->coming = s->out = s->in = s->leaving = MPI_REQUEST_NULL;
    link->state = s;
    return 0;
}

static bool mpi_leave(struct wz_link *link)
{
    struct state *s = link->state;

    if (!s->left) CHECK(MPI_Ibarrier, MPI_COMM_WORLD, &s->leaving);
    s->left = true;
    return test(&s->leaving);
}

static void mpi_close(struct wz_link *link)
{
    struct state *s = link->state;

    wz_set_rank(link->rank, link->size, NULL);
    watch_begin("MPI_Finalize", link->deadline);
    MPI_Finalize();
    watch_end();
    wz_leave_in_order(link->rank, watch.deadline);
    free(s->parts);
    free(s);
}

static void mpi_send(struct wz_link *link, int to, enum wz_tag tag, const void *bytes, size_t n)
{
    struct state *s = link->state;

    assert(to >= 0 && to < link->size);
    for (size_t at = 0, k = WZ_PART; k == WZ_PART; at += k) {
        k = n - at < WZ_PART ? n - at : WZ_PART;
        if (s->n == s->cap) {
            s->cap = s->cap ? 2 * s->cap : 16;
            s->parts = wz_realloc(s->parts, (size_t)s->cap * sizeof *s->parts);
        }
        struct part *p = &s->parts[s->n++];
        *p = (struct part){ MPI_REQUEST_NULL, wz_realloc(NULL, k), to };
        if (k) memcpy(p->bytes, (const char *)bytes + at, k);
        CHECK(MPI_Isend, p->bytes, (int)k, MPI_BYTE, to, (int)tag, MPI_COMM_WORLD, &p->request);
    }
}

static int mpi_drive(struct wz_link *link)
{
    struct state *s = link->state;
    MPI_Status status;
    int32_t said;
    int found;

    for (;;) {
        CHECK(MPI_Iprobe, MPI_ANY_SOURCE, WZ_TAG_HEARTBEAT, MPI_COMM_WORLD, &found, &status);
        if (!found) break;
        CHECK(MPI_Recv, &said, 1, MPI_INT32_T, status.MPI_SOURCE, WZ_TAG_HEARTBEAT, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        wz_heard(link, status.MPI_SOURCE, said);
    }
    for (int i = 0; i < s->n;) {
        if (!test(&s->parts[i].request)) {
            i++;
            continue;
        }
        free(s->parts[i].bytes);
        s->parts[i] = s->parts[--s->n];
    }
    return s->n ? s->parts[0].to : -1;
}

static bool mpi_recv(struct wz_link *link, int from, enum wz_tag tag, struct wz_buf *buf)
{
    struct state *s = link->state;

    assert(from >= 0 && from < link->size);
    if (s->coming == MPI_REQUEST_NULL) {
        int found;
        MPI_Message message;
        MPI_Status status;
        CHECK(MPI_Improbe, from, (int)tag, MPI_COMM_WORLD, &found, &message, &status);
        if (!found) return false;
        CHECK(MPI_Get_count, &status, MPI_BYTE, &s->coming_n);
        size_t need = buf->len + (size_t)s->coming_n + 1;
        if (need > buf->cap) {
            buf->cap = buf->len && need < 2 * buf->cap ? 2 * buf->cap : need;
            buf->data = wz_realloc(buf->data, buf->cap);
        }
        CHECK(MPI_Imrecv, buf->data + buf->len, s->coming_n, MPI_BYTE, &message, &s->coming);
    }
    if (!test(&s->coming)) return false;
    buf->len += (size_t)s->coming_n;
    buf->data[buf->len] = 0;
    return s->coming_n < WZ_PART;
}

static void mpi_move(struct wz_link *link, enum wz_tag tag, int to, const void *out, size_t n_out, int from, void *in,
                     size_t n_in)
{
    struct state *s = link->state;

    assert(n_out <= WZ_PART && n_in <= WZ_PART);
    s->out_to = to;
    s->in_from = from;
    if (from >= 0) CHECK(MPI_Irecv, in, (int)n_in, MPI_BYTE, from, (int)tag, MPI_COMM_WORLD, &s->in);
    if (to >= 0) CHECK(MPI_Isend, out, (int)n_out, MPI_BYTE, to, (int)tag, MPI_COMM_WORLD, &s->out);
}

static int mpi_moved(struct wz_link *link)
{
    struct state *s = link->state;

    if (!test(&s->in)) return s->in_from;
    return test(&s->out) ? -1 : s->out_to;
}

const struct wz_link_row wz_link_mpi = {
    mpi_open, mpi_leave, mpi_close, mpi_send, mpi_drive, mpi_recv, mpi_move, mpi_moved,
};
