/* Work on a file of others in a process of its own: HDF5 was not made for files that are damaged on purpose, and some
 * end it by a signal, in an endless loop, or out of memory.
 *
 *   caller ── fork ──▶ child: limits of memory and processor time, then work
 *          ◀── pipe ── 'k' and what work gave, or 'e' and its message; nothing where it died
 *
 * The child calls nothing of MPI, CUDA or the job, and ends by _exit: it frees nothing. */
#include "store/record.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { DIED = 3 }; /* status of a child that gave up by wz_die: it had no memory left */

static _Noreturn void end(int status) { _exit(DIED); }

static void limit(int what, rlim_t most)
{
    struct rlimit now;

    if (getrlimit(what, &now) == 0 && most < now.rlim_cur) setrlimit(what, &(struct rlimit){ most, now.rlim_max });
}

/* Bytes of address space that this process has; 0: not known. */
static rlim_t address_space(void)
{
    FILE *f = fopen("/proc/self/statm", "r");
    unsigned long long pages = 0;

    if (f && fscanf(f, "%llu", &pages) != 1) pages = 0;
    if (f) fclose(f);
    return (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE);
}

static void send_all(int fd, const char *bytes, size_t n)
{
    while (n) {
        ssize_t k = write(fd, bytes, n);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) _exit(1);
        bytes += k;
        n -= (size_t)k;
    }
}

static _Noreturn void child(pid_t parent, int fd, rlim_t memory, rlim_t seconds, wz_apart_work *work, void *arg)
{
    struct wz_buf out = { 0 };
    struct wz_err err = { "" };
    int nothing = open("/dev/null", O_WRONLY | O_CLOEXEC);

    prctl(PR_SET_PDEATHSIG, SIGKILL); /* it has the caller's locks: they must not outlive the caller */
    if (getppid() != parent) _exit(1);
    dup2(nothing, STDERR_FILENO); /* the caller says what went wrong */
    wz_set_rank(0, 1, end);
    wz_set_heartbeat(NULL, NULL);
    limit(RLIMIT_CORE, 0);
    limit(RLIMIT_CPU, seconds);
    if (memory) limit(RLIMIT_AS, memory);
    const int rc = work(arg, &out, &err);
    send_all(fd, rc < 0 ? "e" : "k", 1);
    send_all(fd, rc < 0 ? err.text : out.data, rc < 0 ? strlen(err.text) : out.len);
    _exit(0);
}

/* What the child writes, to the end. False: for so many seconds there was nothing. */
static bool receive(int fd, rlim_t seconds, struct wz_buf *out)
{
    char bytes[1 << 16];
    rlim_t silent = 0;

    for (ssize_t n = 1; n != 0 && silent < seconds;) {
        wz_heartbeat();
        const int ready = poll(&(struct pollfd){ fd, POLLIN, 0 }, 1, 1000);
        silent = ready == 0 ? silent + 1 : 0;
        if (ready <= 0) continue;
        n = read(fd, bytes, sizeof bytes);
        if (n > 0) wz_buf_add(out, bytes, (size_t)n);
        else if (n < 0 && errno != EINTR) break;
    }
    return silent < seconds;
}

int wz_apart(const char *path, wz_apart_work *work, void *arg, struct wz_buf *out, struct wz_err *err)
{
    struct wz_map map = { 0 };
    uint64_t size = wz_map_open(&map, path, NULL) < 0 ? 0 : map.len;
    int ends[2], status = 0;

    wz_map_close(&map);
    const rlim_t space = address_space(), more = ((rlim_t)1 << 30) + 16 * (rlim_t)size, seconds = 30 + (size >> 20);
    wz_buf_clear(out);
    fflush(NULL); /* what it has not written yet, the child would write too */
    /* Where it can't be read for want of something else, that says nothing of the file: no error to be repaired. */
    if (pipe2(ends, O_CLOEXEC) < 0) wz_die_again("%s: a pipe to read it: %s", path, strerror(errno));
    const pid_t caller = getpid(), pid = fork();
    if (pid < 0) wz_die_again("%s: a process to read it: %s", path, strerror(errno));
    if (pid == 0) {
        close(ends[0]);
        child(caller, ends[1], space ? space + more : 0, seconds, work, arg);
    }
    close(ends[1]);
    const bool came = receive(ends[0], 10 * seconds, out);
    close(ends[0]);
    if (!came) kill(pid, SIGKILL);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
    if (!came) wz_die_again("%s: nothing came of reading it for %d s", path, (int)(10 * seconds));
    if (WIFSIGNALED(status) && strchr((const char[]){ SIGKILL, SIGTERM, SIGINT, SIGHUP, SIGUSR1, 0 }, WTERMSIG(status)))
        wz_die_again("%s: the process that read it was ended by signal %d", path, WTERMSIG(status));
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGXCPU)
        return wz_fail(err, "%s: reading it takes HDF5 more than %d s: it is damaged", path, (int)seconds);
    if (WIFEXITED(status) && WEXITSTATUS(status) == DIED)
        return wz_fail(err, "%s: reading it takes more than %d MB: it is damaged", path, (int)(more >> 20));
    if (status || !out->len)
        return wz_fail(err, "%s: reading it ended HDF5 by %s %d: it is damaged", path,
                       WIFSIGNALED(status) ? "signal" : "status",
                       WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    const bool failed = out->data[0] == 'e';
    memmove(out->data, out->data + 1, out->len--); /* with the NUL behind it */
    return failed ? wz_fail(err, "%s", out->data) : 0;
}
