/* The link of one process: what it sends to itself is queued; a receive takes the first message with its tag. */
#include "comm/row.h"

#include <assert.h>
#include <stdlib.h>

struct note {
    struct note *next;
    enum wz_tag tag;
    struct wz_buf bytes;
};
struct state {
    struct note *first, **last;
};

static int self_open(struct wz_link *link, struct wz_err *err)
{
    struct state *s = wz_alloc(sizeof *s);

    s->last = &s->first;
    link->state = s;
    wz_set_rank(0, 1, NULL);
    return 0;
}

static bool self_leave(struct wz_link *link) { return true; }

static void self_close(struct wz_link *link)
{
    struct state *s = link->state;

    for (struct note *n = s->first, *next; n; n = next) {
        next = n->next;
        wz_buf_finish(&n->bytes);
        free(n);
    }
    free(s);
}

static void self_send(struct wz_link *link, int to, enum wz_tag tag, const void *bytes, size_t n)
{
    struct state *s = link->state;
    struct note *note = wz_alloc(sizeof *note);

    assert(to == 0);
    note->tag = tag;
    wz_buf_add(&note->bytes, bytes, n);
    *s->last = note;
    s->last = &note->next;
}

static int self_drive(struct wz_link *link) { return -1; }

static bool self_recv(struct wz_link *link, int from, enum wz_tag tag, struct wz_buf *buf)
{
    struct state *s = link->state;
    struct note **at = &s->first, *note;

    assert(from == 0);
    while (*at && (*at)->tag != tag) at = &(*at)->next;
    note = *at;
    if (!note) return false;
    *at = note->next;
    if (!note->next) s->last = at;
    wz_buf_finish(buf);
    *buf = note->bytes;
    free(note);
    return true;
}

/* Groups of one exchange nothing: nothing ever moves here. */
static void self_move(struct wz_link *link, enum wz_tag tag, int to, const void *out, size_t n_out, int from, void *in,
                      size_t n_in)
{
    assert(!"a link of one process has no other rank");
}

static int self_moved(struct wz_link *link) { return -1; }

const struct wz_link_row wz_link_self = {
    self_open, self_leave, self_close, self_send, self_drive, self_recv, self_move, self_moved,
};
