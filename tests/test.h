/* What every test program begins with: cmocka and its headers, and a way to skip that says why. */
#ifndef WZ_TEST_H
#define WZ_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/base.h"

/* Instrumented code is slow and is run for what it touches: where LIGHT, fewer sizes do that take the same paths. */
#ifdef __SANITIZE_ADDRESS__
enum { LIGHT = 1 };
#else
enum { LIGHT = 0 };
#endif

/* Ends the case as skipped; the message appears in the closing report of launch/test. */
#define SKIP(...)                              \
    do {                                       \
        print_message("# skip: " __VA_ARGS__); \
        print_message("\n");                   \
        skip();                                \
    } while (0)

/* Path of a file or folder in the test data, heap; skips the case where there is none. */
static inline char *test_data(const char *name)
{
    const char *dir = getenv("WALTZ_DATA");
    char *path = wz_path("%s/%s", dir ? dir : "", name);

    if (!dir || !wz_file_exists(path)) {
        free(path);
        SKIP("no %s in the test data (WALTZ_DATA is %s)", name, dir ? dir : "not set");
    }
    return path;
}

/* A path in a folder that is removed after the test; heap. */
static inline char *test_scratch(const char *name)
{
    const char *dir = getenv("WALTZ_SCRATCH");

    return wz_path("%s/%s", dir ? dir : "/tmp", name);
}

#endif
