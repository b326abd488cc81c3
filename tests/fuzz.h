/* Fuzz targets: any bytes are either accepted whole or refused with a message; never a crash, a leak or a hang.
 * A target is fuzz_NAME.c with examples in corpus/NAME. It runs as a plain test through fuzz_main.c, and under
 * libFuzzer in a build made by clang with -Dfuzz=true. */
#ifndef WZ_FUZZ_H
#define WZ_FUZZ_H

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

/* For what reads files: the bytes as a file with this ending. The path, heap; the next call replaces the file. */
static inline char *fuzz_file(const char *ending, const uint8_t *data, size_t size)
{
    const char *dir = getenv("WALTZ_SCRATCH");
    char *path = wz_path("%s/fuzz-%d%s", dir ? dir : "/tmp", (int)getpid(), ending);
    FILE *f = fopen(path, "wb");

    fuzz_must(f && fwrite(data, 1, size, f) == size && fclose(f) == 0, "the scratch file can't be written");
    return path;
}

#endif
