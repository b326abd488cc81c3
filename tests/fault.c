/* Loaded before the C library (LD_PRELOAD), it makes one call that changes files, or a fork, go wrong:
 *
 *   FAULT="ACTION CALL N TEXT"   the N-th CALL (write, fsync, rename, unlink, fork; any: of them all) of this process
 *                                on a path with TEXT in it (TEXT of a fork: -)
 *
 *   kill   the process is killed before it                half    after half of it, where it writes
 *   hang   the thread never comes back from it            ERRNO   it and all such later calls fail with this number */
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char action[16], call[16], text[256];
static int at;
static atomic_int seen;

__attribute__((constructor)) static void begin(void)
{
    const char *fault = getenv("FAULT");

    if (!fault || sscanf(fault, "%15s %15s %d %255s", action, call, &at, text) != 4) at = 0;
}

/* True: the call fails, errno is set. half: what does half of it, or NULL. */
static bool goes_wrong(const char *what, const char *path, void (*half)(void *), void *arg)
{
    if (!at || (strcmp(call, "any") != 0 && strcmp(call, what) != 0) || !strstr(path, text)) return false;
    const int n = atomic_fetch_add(&seen, 1) + 1;
    const int number = atoi(action);
    if (n < at || (n > at && !number)) return false;
    if (number) {
        errno = number;
        return strcmp(what, "rename") != 0 && strcmp(what, "unlink") != 0; /* a full disk does these */
    }
    if (!strcmp(action, "half") && half) half(arg);
    if (strcmp(action, "hang") != 0) raise(SIGKILL);
    for (;;) pause();
}

static const char *path_of(int fd, char path[4096])
{
    char link[64];

    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t n = readlink(link, path, 4095);
    path[n > 0 ? n : 0] = 0;
    return path;
}

#pragma GCC visibility push(default)
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

struct writing {
    int fd;
    const void *bytes;
    size_t n;
    off64_t at; /* -1: where the file is */
};

static void write_half(void *arg)
{
    const struct writing *w = arg;

    if (w->at < 0) REAL(write)(w->fd, w->bytes, w->n / 2);
    else REAL(pwrite64)(w->fd, w->bytes, w->n / 2, w->at);
}

ssize_t write(int fd, const void *bytes, size_t n)
{
    char path[4096];
    struct writing w = { fd, bytes, n, -1 };

    return goes_wrong("write", path_of(fd, path), write_half, &w) ? -1 : REAL(write)(fd, bytes, n);
}

ssize_t pwrite64(int fd, const void *bytes, size_t n, off64_t offset)
{
    char path[4096];
    struct writing w = { fd, bytes, n, offset };

    return goes_wrong("write", path_of(fd, path), write_half, &w) ? -1 : REAL(pwrite64)(fd, bytes, n, offset);
}

int fsync(int fd)
{
    char path[4096];

    return goes_wrong("fsync", path_of(fd, path), NULL, NULL) ? -1 : REAL(fsync)(fd);
}

int rename(const char *from, const char *to)
{
    return goes_wrong("rename", to, NULL, NULL) ? -1 : REAL(rename)(from, to);
}

int unlink(const char *path) { return goes_wrong("unlink", path, NULL, NULL) ? -1 : REAL(unlink)(path); }

pid_t fork(void) { return goes_wrong("fork", "-", NULL, NULL) ? -1 : REAL(fork)(); }
