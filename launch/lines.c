/* JSON lines in and out. Lines come from a pipe, a file or a terminal, one by one and without waiting for more than a
 * line: a program may write a line and wait for its answer before it writes the next. */
#include "launch/launch.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *line_end(const struct wz_input *l)
{
    return l->in.len > l->from ? memchr(l->in.data + l->from, '\n', l->in.len - l->from) : NULL;
}

int wz_input_next(struct wz_input *l, const char **line, size_t *n, struct wz_err *err)
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

bool wz_input_ready(const struct wz_input *l)
{
    return l->end || line_end(l) || poll(&(struct pollfd){ l->fd, POLLIN, 0 }, 1, 0) > 0;
}

void wz_input_finish(struct wz_input *l) { wz_buf_finish(&l->in); }

void wz_print_json(json_t *j)
{
    char *text = wz_json_dump(j, JSON_INDENT(2) | JSON_REAL_PRECISION(17));

    puts(text);
    free(text);
    json_decref(j);
}

void wz_answer_error(struct wz_buf *out, const struct wz_err *err)
{
    wz_buf_clear(out);
    wz_buf_str(out, "{\"error\": ");
    wz_json_string(out, err->text, strlen(err->text));
    wz_buf_str(out, "}");
}

void wz_answer_ints(struct wz_buf *out, const char *name, const int *values, int n)
{
    wz_buf_printf(out, "\"%s\": [", name);
    for (int i = 0; i < n; i++) wz_buf_printf(out, "%s%d", i ? ", " : "", values[i]);
    wz_buf_str(out, "]");
}

void wz_answer_floats(struct wz_buf *out, const char *name, const float *values, int n)
{
    wz_buf_printf(out, "\"%s\": [", name);
    for (int i = 0; i < n; i++) wz_buf_printf(out, "%s%.9g", i ? ", " : "", (double)values[i]);
    wz_buf_str(out, "]");
}
