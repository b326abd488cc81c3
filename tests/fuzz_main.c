/* The promise: no bytes crash, hang or leak in what reads them. A fuzz target (one of tests/fuzz_*.c) run as a plain test: over
 * every file of a corpus folder, then over the same cut short and with bytes changed, the same changes every time. */
#include "test.h"

#include <dirent.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { CHANGES = 150 };
static const char *corpus;

static void change(const uint8_t *bytes, size_t n)
{
    uint8_t *copy = wz_alloc(n + 1);

    for (uint32_t i = 0; i < CHANGES && n; i++) {
        struct wz_key key = {.seed = n, .purpose = WZ_RNG_TEST, .a = i};
        size_t kept = i & 1 ? n : wz_below(key, (uint32_t)n);
        memcpy(copy, bytes, n);
        for (key.b = 1; key.b <= (i & 3); key.b++) {
            uint64_t bits = wz_random(key);
            copy[bits % n] = bits & 1u << 20 ? (uint8_t)(bits >> 40) : (uint8_t)(copy[bits % n] ^ 1u << (bits >> 40 & 7));
        }
        LLVMFuzzerTestOneInput(copy, kept);
    }
    free(copy);
}

static void any_bytes_are_read_or_refused(void **state)
{
    DIR *dir = opendir(corpus);
    int seen = 0;

    assert_non_null(dir);
    for (struct dirent *d; (d = readdir(dir));) {
        if (d->d_name[0] == '.') continue;
        char *path = wz_path("%s/%s", corpus, d->d_name);
        struct wz_map map;
        struct wz_err err;
        assert_int_equal(wz_map_open(&map, path, &err), 0);
        LLVMFuzzerTestOneInput(map.bytes, map.len);
        change(map.bytes, map.len);
        wz_map_close(&map);
        free(path);
        seen++;
    }
    closedir(dir);
    assert_true(seen > 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(any_bytes_are_read_or_refused)};

    if (argc != 2) {
        fprintf(stderr, "usage: %s CORPUS\n", argv[0]);
        return 2;
    }
    corpus = argv[1];
    return cmocka_run_group_tests(tests, NULL, NULL);
}
