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
        fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | (fresh ? O_TRUNC : 0), 0666);
        if (fd < 0) wz_fail(err, "%s: %s", path, strerror(errno));
    }
    free(dir);
    return fd;
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
