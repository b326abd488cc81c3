/* Files as bytes: memory-mapped for reading, renamed into place for writing. What must outlive a power failure is
 * written by the functions of this file, always in this order: write, fsync, rename, fsync of the folder. */
#include "base/base.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/file.h>
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

static _Thread_local bool later; /* wz_files_later */

void wz_files_later(bool on) { later = on; }

/* Most of a file's bytes reach the disk here, piece by piece: fsync of a whole large file may take longer than a
 * deadline. An error must be told, for fsync does not tell it again. */
static int sync_pieces(int fd)
{
    const off_t piece = (off_t)256 << 20;
    struct stat st = { 0 };
    int rc = fstat(fd, &st);

    for (off_t at = 0; S_ISREG(st.st_mode) && at < st.st_size && rc == 0; at += piece) {
        rc = sync_file_range(fd, at, piece,
                             SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
        if (rc < 0 && (errno == ENOSYS || errno == EINVAL)) return 0;
        wz_heartbeat();
    }
    return rc;
}

int wz_tree_sync(const char *path, struct wz_err *err)
{
    const bool folder = wz_is_dir(path);
    int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    int rc = fd < 0 || sync_pieces(fd) < 0 || (fsync(fd) < 0 && (!folder || errno != EINVAL)) ? -1 : 0;
    DIR *d = rc == 0 && folder ? opendir(path) : NULL;

    if (rc < 0 || (folder && !d)) rc = wz_fail(err, "%s: %s", path, strerror(errno));
    if (fd >= 0) close(fd);
    wz_heartbeat();
    for (struct dirent *e; rc == 0 && d;) {
        errno = 0;
        if (!(e = readdir(d)) && errno) rc = wz_fail(err, "%s: %s", path, strerror(errno));
        if (!e) break;
        char *below = wz_path("%s/%s", path, e->d_name);
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) rc = wz_tree_sync(below, err);
        free(below);
    }
    if (d) closedir(d);
    return rc;
}

/* fsync of the folder that holds `path`: what was created, renamed or deleted in it outlives a power failure. File
 * systems that can't do it say EINVAL. */
int wz_folder_sync(const char *path, struct wz_err *err)
{
    if (later) return 0;
    char *folder = wz_strdup(path), *slash = strrchr(folder, '/');
    if (slash) slash[slash == folder] = 0;
    int fd = open(slash ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = fd >= 0 && (fsync(fd) == 0 || errno == EINVAL) ? 0 : wz_fail(err, "%s: %s", folder, strerror(errno));
    if (fd >= 0) close(fd);
    free(folder);
    return rc;
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
        const bool made = mkdir(copy, 0777) == 0;
        if (!made && errno != EEXIST) rc = wz_fail(err, "%s: %s", copy, strerror(errno));
        else if (made) rc = wz_folder_sync(copy, err);
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
        if (k == 0) errno = ENOSPC;
        if (k <= 0) return -1;
        done += (size_t)k;
    }
    return 0;
}

bool wz_lock(int fd, bool wait)
{
    struct flock all = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
    int rc;

    do rc = fcntl(fd, wait ? F_OFD_SETLKW : F_OFD_SETLK, &all);
    while (rc < 0 && errno == EINTR);
    if (rc < 0 && errno == EINVAL) rc = flock(fd, LOCK_EX | (wait ? 0 : LOCK_NB)); /* a kernel without such locks */
    return rc == 0 || (errno != EAGAIN && errno != EACCES);
}

int wz_rename(const char *from, const char *to, struct wz_err *err)
{
    if (rename(from, to) < 0) return wz_fail(err, "%s: %s", to, strerror(errno));
    return wz_folder_sync(to, err);
}

int wz_file_begin(struct wz_file *file, const char *path, struct wz_err *err)
{
    struct stat st;
    bool there = lstat(path, &st) == 0;

    *file = (struct wz_file){ .fd = -1 };
    if (there && !S_ISREG(st.st_mode)) return wz_fail(err, "%s: expected a regular file, or none yet", path);
    file->path = wz_strdup(path);
    file->tmp = wz_path(later ? "%s" : "%s.tmp", path);
    unlink(file->tmp); /* left by a killed process, or a link that must not be followed */
    file->fd = open(file->tmp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (file->fd >= 0) return 0;
    wz_fail(err, "%s: %s", file->tmp, strerror(errno));
    return wz_file_end(file, false, NULL);
}

int wz_file_put(struct wz_file *file, const void *bytes, size_t n, struct wz_err *err)
{
    if (wz_write_at(file->fd, bytes, n, file->len) < 0) return wz_fail(err, "%s: %s", file->tmp, strerror(errno));
    file->len += n;
    return 0;
}

int wz_file_end(struct wz_file *file, bool whole, struct wz_err *err)
{
    int rc = -1;

    if (!file->path) return -1;
    if (whole && later) rc = 0;
    else if (whole && fsync(file->fd) < 0) wz_fail(err, "%s: %s", file->tmp, strerror(errno));
    else if (whole) rc = wz_rename(file->tmp, file->path, err);
    if (file->fd >= 0 && close(file->fd) < 0 && rc == 0 && later) /* NFS says here, once, that a disk is full */
        rc = wz_fail(err, "%s: %s", file->tmp, strerror(errno));
    if (rc < 0) unlink(file->tmp);
    free(file->path);
    free(file->tmp);
    *file = (struct wz_file){ .fd = -1 };
    return rc;
}

int wz_file_write(const char *path, const void *bytes, size_t n, struct wz_err *err)
{
    struct wz_file file;

    if (wz_file_begin(&file, path, err) < 0) return -1;
    return wz_file_end(&file, wz_file_put(&file, bytes, n, err) == 0, err);
}

int wz_file_append(const char *path, const void *bytes, size_t n, struct wz_err *err)
{
    const bool there = wz_file_exists(path);
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0666);
    int rc = fd >= 0 && wz_write_at(fd, bytes, n, 0) == 0 && fsync(fd) == 0
                 ? (there ? 0 : wz_folder_sync(path, err))
                 : wz_fail(err, "%s: %s", path, strerror(errno));

    if (fd >= 0) close(fd);
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
