/* Files as bytes: memory-mapped for reading, renamed into place for writing. */
#include "base/base.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int wz_map_open(struct wz_map *map, const char *path, struct wz_err *err)
{
    struct stat st = { 0 };
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), rc = 0; /* else a pipe without a writer blocks */
    void *p = "";

    *map = (struct wz_map){ 0 };
    if (fd < 0 || fstat(fd, &st) < 0) rc = wz_fail(err, "%s: %s", path, strerror(errno));
    else if (S_ISDIR(st.st_mode) || S_ISFIFO(st.st_mode))
        rc = wz_fail(err, "%s: expected a file, got a %s", path, S_ISDIR(st.st_mode) ? "folder" : "pipe");
    else if (st.st_size && (p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0)) == MAP_FAILED)
        rc = wz_fail(err, "%s: %s", path, strerror(errno));
    else *map = (struct wz_map){ p, (size_t)st.st_size };
    if (fd >= 0) close(fd);
    return rc;
}

void wz_map_close(struct wz_map *map)
{
    if (map->len) munmap((void *)(uintptr_t)map->bytes, map->len);
    *map = (struct wz_map){ 0 };
}

struct wz_lines wz_lines_begin(const void *bytes, size_t n) { return (struct wz_lines){ .rest = bytes, .n_rest = n }; }

bool wz_lines_next(struct wz_lines *l)
{
    const char *end = l->n_rest ? memchr(l->rest, '\n', l->n_rest) : NULL;

    if (!l->n_rest) return false;
    l->line = l->rest;
    l->n = end ? (size_t)(end - l->rest) : l->n_rest;
    l->ended = end != NULL;
    l->number++;
    l->rest += l->n + l->ended;
    l->n_rest -= l->n + l->ended;
    return true;
}

bool wz_file_exists(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0;
}

bool wz_is_dir(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

int wz_mkdirs(const char *path, struct wz_err *err)
{
    char *copy = wz_strdup(path);
    char c = 1;
    int rc = 0;

    for (char *p = copy + 1; c && rc == 0; p++) {
        c = *p;
        if (c != '/' && c != 0) continue;
        *p = 0;
        if (mkdir(copy, 0777) < 0 && errno != EEXIST) rc = wz_fail(err, "%s: %s", copy, strerror(errno));
        *p = c;
    }
    free(copy);
    return rc < 0 || wz_is_dir(path) ? rc : wz_fail(err, "%s: exists and is not a folder", path);
}

int wz_write_at(int fd, const void *bytes, size_t n, uint64_t at)
{
    for (size_t done = 0; done < n;) {
        ssize_t k = pwrite(fd, (const char *)bytes + done, n - done, (off_t)(at + done));
        if (k < 0 && errno == EINTR) continue;
        if (k < 0) return -1;
        done += (size_t)k;
    }
    return 0;
}

int wz_file_write(const char *path, const void *bytes, size_t n, struct wz_err *err)
{
    char *tmp = wz_path("%s.tmp", path);
    int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666), rc = 0;

    if (fd < 0 || wz_write_at(fd, bytes, n, 0) < 0) rc = wz_fail(err, "%s: %s", tmp, strerror(errno));
    else if (fsync(fd) < 0 || rename(tmp, path) < 0) rc = wz_fail(err, "%s: %s", path, strerror(errno));
    if (fd >= 0) close(fd);
    if (rc < 0) unlink(tmp);
    free(tmp);
    return rc;
}

char *wz_path(const char *fmt, ...)
{
    va_list args;
    char *path;

    va_start(args, fmt);
    if (vasprintf(&path, fmt, args) < 0) wz_die("out of memory: a path");
    va_end(args);
    return path;
}
