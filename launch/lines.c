/* Lines from a pipe, a file or a terminal, one by one and without reading further than is there: a program may write
 * a line and wait for its answer before it writes the next. */
#include "launch/launch.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

static const char *line_end(const struct wz_lines *l)
{
    return l->in.len > l->from ? memchr(l->in.data + l->from, '\n', l->in.len - l->from) : NULL;
}

int wz_lines_next(struct wz_lines *l, const char **line, size_t *n, struct wz_err *err)
{
    const char *end;

    while (!(end = line_end(l)) && !l->end) {
        char bytes[1 << 16];
        ssize_t got = read(l->fd, bytes, sizeof bytes);

        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return wz_fail(err, "standard input: %s", strerror(errno));
        if (l->from) memmove(l->in.data, l->in.data + l->from, l->in.len - l->from);
        l->in.len -= l->from;
        l->from = 0;
        if (got > 0) wz_buf_add(&l->in, bytes, (size_t)got);
        l->end = got == 0;
    }
    if (!end && l->from == l->in.len) return 0;
    *line = l->in.data + l->from;
    *n = end ? (size_t)(end - *line) : l->in.len - l->from; /* the last line may lack its line break */
    l->from += *n + (end != NULL);
    return 1;
}

bool wz_lines_ready(const struct wz_lines *l)
{
    return l->end || line_end(l) || poll(&(struct pollfd){ l->fd, POLLIN, 0 }, 1, 0) > 0;
}

void wz_lines_finish(struct wz_lines *l) { wz_buf_finish(&l->in); }
