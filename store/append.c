/* Append-only files: entries are written whole; entries after the checkpoint that a run resumes from are removed. */
#include "store/append.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int wz_append_open(const char *path, bool fresh, struct wz_err *err)
{
    char *dir = wz_strdup(path), *slash = strrchr(dir, '/');
    int fd = -1;

    if (slash) *slash = 0;
    if (!slash || !*dir || wz_mkdirs(dir, err) == 0) {
        fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | (fresh ? O_TRUNC : 0), 0666);
        if (fd < 0) wz_fail(err, "%s: %s", path, strerror(errno));
    }
    free(dir);
    return fd;
}

int wz_append_cut(int fd, const char *path, bool (*drop)(const json_t *line, const void *arg), const void *arg,
                  struct wz_err *err)
{
    struct wz_map map;
    const uint8_t *nl;
    size_t keep;

    if (wz_map_open(&map, path, err) < 0) return -1;
    nl = memrchr(map.bytes, '\n', map.len);
    keep = nl ? (size_t)(nl - map.bytes) + 1 : 0;
    while (keep) {
        nl = memrchr(map.bytes, '\n', keep - 1);
        size_t from = nl ? (size_t)(nl - map.bytes) + 1 : 0;
        json_t *line = wz_json_parse((const char *)map.bytes + from, keep - from, path, NULL);
        bool gone = line && drop(line, arg);
        json_decref(line);
        if (!gone) break;
        keep = from;
    }
    bool cut = keep < map.len;
    wz_map_close(&map);
    if (cut && ftruncate(fd, (off_t)keep) < 0) return wz_fail(err, "%s: %s", path, strerror(errno));
    return 0;
}

int wz_append(int fd, const void *bytes, size_t n)
{
    off_t before = lseek(fd, 0, SEEK_END);

    if (before < 0) return -1;
    for (size_t done = 0; done < n;) {
        ssize_t k = write(fd, (const char *)bytes + done, n - done);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) {
            int why = k < 0 ? errno : ENOSPC;
            bool undone = !done || ftruncate(fd, before) == 0;
            errno = undone ? why : EIO;
            return -1;
        }
        done += (size_t)k;
    }
    return 0;
}
