/* Append-only files: entries are written whole. */
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
        fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC | (fresh ? O_TRUNC : 0), 0666);
        if (fd < 0) wz_fail(err, "%s: %s", path, strerror(errno));
    }
    free(dir);
    return fd;
}

int wz_append(int fd, const void *bytes, size_t n)
{
    off_t before = lseek(fd, 0, SEEK_END);

    if (before < 0) return -1;
    if (wz_write_at(fd, bytes, n, (uint64_t)before) == 0) return 0;
    int why = errno;
    bool undone = lseek(fd, 0, SEEK_END) == before || ftruncate(fd, before) == 0;
    errno = undone ? why : EIO;
    return -1;
}
