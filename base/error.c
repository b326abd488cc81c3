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

int wz_fail(struct wz_err *err, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    if (err) vsnprintf(err->text, sizeof err->text, fmt, args);
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
    vsnprintf(place, sizeof place, fmt, args);
    va_end(args);
    n = strlen(place) + 2;
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
    int n = 0;

    if (world_size > 1) n = snprintf(line, sizeof line, "%srank %d: ", lead, my_rank);
    else n = snprintf(line, sizeof line, "%s", lead);
    n += vsnprintf(line + n, sizeof line - (size_t)n - 1, fmt, args);
    if (n > (int)sizeof line - 2) n = (int)sizeof line - 2;
    line[n++] = '\n';
    fwrite(line, 1, (size_t)n, stderr);
}

void wz_log(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    print_line("", fmt, args);
    va_end(args);
}

void wz_die(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    print_line("waltz: ", fmt, args);
    va_end(args);
    fflush(NULL);
    if (abort_hook) abort_hook(1);
    exit(1);
}
