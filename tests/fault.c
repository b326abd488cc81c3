/* Loaded before the C library (LD_PRELOAD), it makes one call that changes files, or a fork, go wrong:
 *
 *   FAULT="ACTION CALL N TEXT"   the N-th CALL (write, fsync, rename, unlink, fork; any: of them all) of this process
 *                                on a path with TEXT in it (TEXT of a fork: -)
 *   FAULT=@FILE                  these words are in the file, which may come later: calls are counted from then on.
 *                                That the call went wrong is told by a FILE.hit
 *
 *   kill   the process is killed before it                half    after half of it, where it writes
 *   hang   the thread never comes back from it            ERRNO   it and all such later calls fail with this number
 *   cut    the power is cut before it: all processes with this FAULT_DISK are killed
 *
 * FAULT_DISK=DISK, FAULT_RUN=RUN: what of the folder RUN is on the disk is kept in DISK. That is what it held as
 * `unsynced keep` was called, and since then what was synced, and no more: an fsync of a file keeps its content, one of
 * a folder its names. `unsynced drop` makes the folder again from it.
 *
 *   DISK/file/ID     a file's content: ID is the number and the time of birth of its inode, so that names may change
 *   DISK/folder/ID   a line for each name in a folder: "f ID NAME", of a folder "d ID NAME"
 *   DISK/pids        a line for each process                                          DISK/lock   held by who writes */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static char action[16], call[16], text[256];
static const char *fault, *disk, *run; /* the environment's, or NULL */
static atomic_int at, seen;

static bool understood(const char *words)
{
    int n = 0;

    if (sscanf(words, "%15s %15s %d %255s", action, call, &n, text) != 4) return false;
    atomic_store(&at, n);
    return true;
}

/* ---- what is on the disk ----------------------------------------------------------------------------------- */

static void must(bool ok, const char *what)
{
    if (ok) return;
    perror(what);
    abort();
}

/* DISK/lock, held: close it. */
static int hold_disk(void)
{
    char path[4096];

    snprintf(path, sizeof path, "%s/lock", disk);
    const int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    must(fd >= 0 && flock(fd, LOCK_EX) == 0, path);
    return fd;
}

/* DISK/KIND/ID, of the inode of a file below `folder`, or of the descriptor itself where the name is "". */
static void keep_path(char path[4096], const char *kind, int folder, const char *name, char *type)
{
    struct statx st;

    must(statx(folder, name, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, STATX_INO | STATX_TYPE | STATX_BTIME, &st) == 0,
         name);
    *type = S_ISDIR(st.stx_mode) ? 'd' : 'f';
    if (!(st.stx_mask & STATX_BTIME)) memset(&st.stx_btime, 0, sizeof st.stx_btime);
    snprintf(path, 4096, "%s%s%s%llu-%lld.%09u", kind ? disk : "", kind ? kind : "", kind ? "/" : "",
             (unsigned long long)st.stx_ino, (long long)st.stx_btime.tv_sec, st.stx_btime.tv_nsec);
}

static void keep_file(int fd, int to)
{
    static char bytes[1 << 16];
    off_t from = 0;

    for (ssize_t n; (n = pread(fd, bytes, sizeof bytes, from)) != 0; from += n)
        must(n > 0 && REAL(write)(to, bytes, (size_t)n) == n, disk);
}

static void keep_folder(const char *path, int to)
{
    char id[4096], line[5000], type;
    DIR *d = opendir(path);

    must(d != NULL, path);
    for (struct dirent *e; (e = readdir(d));) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        if (faccessat(dirfd(d), e->d_name, F_OK, AT_SYMLINK_NOFOLLOW) < 0) continue; /* renamed meanwhile */
        keep_path(id, NULL, dirfd(d), e->d_name, &type);
        const int n = snprintf(line, sizeof line, "%c %s %s\n", type, id, e->d_name);
        must(REAL(write)(to, line, (size_t)n) == n, disk);
    }
    closedir(d);
}

/* In the place of fsync: no disk is waited for, for no power is cut. */
static void keep(int fd, const char *path)
{
    struct stat st;
    char to[4096], type;
    const int lock = hold_disk();

    must(fstat(fd, &st) == 0, path);
    keep_path(to, S_ISDIR(st.st_mode) ? "/folder" : "/file", fd, "", &type);
    const int own = open(path, O_RDONLY | O_CLOEXEC); /* `fd` may be for writing only */
    const int out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    must(own >= 0 && out >= 0, to);
    if (type == 'd') keep_folder(path, out);
    else keep_file(own, out);
    close(own);
    close(out);
    close(lock);
}

static bool is_kept(const char *path)
{
    const size_t n = run ? strlen(run) : 0;

    return n && !strncmp(path, run, n) && (path[n] == '/' || !path[n]);
}

/* The lock is not let go: nothing is kept after the cut. A process that begins later finds DISK/cut. */
static void cut_power(void)
{
    char path[4096];
    int pid;

    hold_disk();
    snprintf(path, sizeof path, "%s/cut", disk);
    must(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666) >= 0, path);
    snprintf(path, sizeof path, "%s/pids", disk);
    FILE *f = fopen(path, "r");
    must(f != NULL, path);
    while (fscanf(f, "%d", &pid) == 1)
        if (pid != getpid()) kill(pid, SIGKILL);
    raise(SIGKILL);
}

__attribute__((constructor)) static void begin(void)
{
    char path[4096];

    fault = getenv("FAULT");
    disk = getenv("FAULT_DISK");
    run = disk ? getenv("FAULT_RUN") : NULL;
    if (fault && fault[0] != '@') understood(fault);
    if (!run) return;
    const int lock = hold_disk();
    snprintf(path, sizeof path, "%s/pids", disk);
    FILE *f = fopen(path, "a");
    must(f && fprintf(f, "%d\n", (int)getpid()) > 0 && fclose(f) == 0, path);
    snprintf(path, sizeof path, "%s/cut", disk);
    if (access(path, F_OK) == 0) raise(SIGKILL);
    close(lock);
}

/* ---- the call that goes wrong ------------------------------------------------------------------------------ */

static bool is_there(void)
{
    char words[400] = "";
    const int fd = fault && fault[0] == '@' && !atomic_load(&at) ? open(fault + 1, O_RDONLY | O_CLOEXEC) : -1;

    if (fd < 0) return atomic_load(&at) > 0;
    const ssize_t n = read(fd, words, sizeof words - 1);
    close(fd);
    return n > 0 && understood(words);
}

static void tell(void)
{
    char path[4096];

    if (fault[0] != '@') return;
    snprintf(path, sizeof path, "%s.hit", fault + 1);
    const int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (fd >= 0) close(fd);
}

/* True: the call fails, errno is set. half: what does half of it, or NULL. */
static bool goes_wrong(const char *what, const char *path, void (*half)(void *), void *arg)
{
    if (!is_there() || (strcmp(call, "any") != 0 && strcmp(call, what) != 0) || !strstr(path, text)) return false;
    const int n = atomic_fetch_add(&seen, 1) + 1;
    const int number = atoi(action);
    if (n < at || (n > at && !number)) return false;
    if (number && (!strcmp(what, "rename") || !strcmp(what, "unlink"))) return false; /* a full disk does these */
    tell();
    errno = number;
    if (number) return true;
    if (!strcmp(action, "half") && half) half(arg);
    if (!strcmp(action, "cut")) cut_power();
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

    if (goes_wrong("fsync", path_of(fd, path), NULL, NULL)) return -1;
    if (!is_kept(path)) return REAL(fsync)(fd);
    keep(fd, path);
    return 0;
}

int posix_fallocate64(int fd, off64_t offset, off64_t n)
{
    char path[4096];

    return goes_wrong("write", path_of(fd, path), NULL, NULL) ? errno : REAL(posix_fallocate64)(fd, offset, n);
}

int rename(const char *from, const char *to)
{
    return goes_wrong("rename", to, NULL, NULL) ? -1 : REAL(rename)(from, to);
}

int unlink(const char *path) { return goes_wrong("unlink", path, NULL, NULL) ? -1 : REAL(unlink)(path); }

pid_t fork(void) { return goes_wrong("fork", "-", NULL, NULL) ? -1 : REAL(fork)(); }
