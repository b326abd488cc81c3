/* Errors and the log: one line each, prefixed with the rank. */
#include "base/base.h"

#include <stdlib.h>
#include <string.h>

static int my_rank, world_size = 1;
static void (*abort_hook)(int);

void wz_set_rank(int rank, int size, void (*abort_job)(int))
{
    my_rank = rank;
    world_size = size;
    abort_hook = abort_job;
}

int wz_rank(void) { return my_rank; }

int wz_ranks(void) { return world_size; }

/* Formats into to[size]; text from outside within it is escaped. Returns the length, less than size. */
static size_t format(char *to, size_t size, const char *fmt, va_list args)
{
    char text[2048];
    size_t len;

    vsnprintf(text, sizeof text, fmt, args);
    len = strlen(text);
    return wz_printable(to, size, text, len - wz_utf8_partial(text, len), "");
}

int wz_fail(struct wz_err *err, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    if (err) format(err->text, sizeof err->text, fmt, args);
    va_end(args);
    return -1;
}

int wz_fail_in(struct wz_err *err, const char *fmt, ...)
{
    char place[384];
    size_t n, rest;
    va_list args;

    if (!err) return -1;
    va_start(args, fmt);
    n = format(place, sizeof place, fmt, args) + 2;
    va_end(args);
    rest = strlen(err->text);
    if (rest > sizeof err->text - n - 1) rest = sizeof err->text - n - 1;
    memmove(err->text + n, err->text, rest);
    err->text[n + rest] = 0;
    memcpy(err->text, place, n - 2);
    memcpy(err->text + n - 2, ": ", 2);
    return -1;
}

/* One write per line, so that lines of several ranks do not interleave. */
static void print_line(const char *lead, const char *fmt, va_list args)
{
    char line[2048];
    size_t n;

    if (world_size > 1) n = (size_t)snprintf(line, sizeof line, "%srank %d: ", lead, my_rank);
    else n = (size_t)snprintf(line, sizeof line, "%s", lead);
    n += format(line + n, sizeof line - n - 1, fmt, args);
    line[n++] = '\n';
    fwrite(line, 1, n, stderr);
}

void wz_log(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    print_line("", fmt, args);
    va_end(args);
}

static _Noreturn void die(int status, const char *fmt, va_list args)
{
    print_line("waltz: ", fmt, args);
    fflush(NULL);
    if (abort_hook) abort_hook(status);
    exit(status);
}

void wz_die(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    die(1, fmt, args);
}

void wz_die_again(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    die(WZ_EXIT_AGAIN, fmt, args);
}
