/* Fuzz targets: any bytes are either accepted whole or refused with a message; never a crash, a leak or a hang.
 * A target is fuzz_NAME.c with examples in corpus/NAME. It runs as a plain test through fuzz_main.c, and under
 * libFuzzer in a build made by clang with -Dfuzz=true. */
#ifndef WZ_FUZZ_H
#define WZ_FUZZ_H

#include <ftw.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Stops the program, in any build. */
static inline void fuzz_must(bool ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "fuzz: %s\n", what);
    abort();
}

static inline void fuzz_write(const char *path, const void *data, size_t size)
{
    FILE *f = fopen(path, "wb");

    fuzz_must(f && fwrite(data, 1, size, f) == size && fclose(f) == 0, "the scratch file can't be written");
}

/* For what reads files: the bytes as a file with this ending. The path, heap; the next call replaces the file. */
static inline char *fuzz_file(const char *ending, const uint8_t *data, size_t size)
{
    const char *dir = getenv("WALTZ_SCRATCH");
    char *path = wz_path("%s/fuzz-%d%s", dir ? dir : "/tmp", (int)getpid(), ending);

    fuzz_write(path, data, size);
    return path;
}

static inline int fuzz_remove(const char *path, const struct stat *st, int type, struct FTW *at)
{
    return remove(path);
}

/* A path in the scratch folder that is this process's own, heap. */
static inline char *fuzz_path(const char *name)
{
    const char *dir = getenv("WALTZ_SCRATCH");

    return wz_path("%s/fuzz-%d-%s", dir ? dir : "/tmp", (int)getpid(), name);
}

/* For what reads a folder: an empty one, and in it the files that the bytes hold, each behind a line "@NAME", where its
 * name is one of `names`, ended by NULL. Of two with one name the later. */
static inline void fuzz_folder(const char *dir, const char *const *names, const uint8_t *data, size_t size)
{
    const char *at = (const char *)data, *end = at + size;
    struct wz_err err;

    nftw(dir, fuzz_remove, 16, FTW_DEPTH | FTW_PHYS);
    fuzz_must(wz_mkdirs(dir, &err) == 0, "the scratch folder can't be made");
    while (at && at < end) {
        const char *line = memchr(at, '\n', (size_t)(end - at)), *next = line ? line + 1 : end;
        size_t n = 0;
        while (next < end && (next[0] != '@' || next[-1] != '\n' || next < line + 2)) next++;
        const size_t bytes = line ? (size_t)(next - line - 1) - (next < end) : 0; /* less the line break before '@' */
        while (line && names[n] &&
               (strlen(names[n]) != (size_t)(line - at - 1) || memcmp(names[n], at + 1, strlen(names[n]))))
            n++;
        if (line && *at == '@' && names[n]) {
            char *path = wz_path("%s/%s", dir, names[n]), *slash = strrchr(path, '/');
            *slash = 0;
            fuzz_must(wz_mkdirs(path, &err) == 0, "the scratch folder can't be made");
            *slash = '/';
            fuzz_write(path, line + 1, bytes);
            free(path);
        }
        at = next;
    }
}

#endif
