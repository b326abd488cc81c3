/* A fuzz target as a plain test: `fuzz_NAME CORPUS`. Every example as it is, cut short, and with bytes changed,
 * always the same ones. A crash names the example and the change, so it can be played again. */
#include "fuzz.h"

#include <dirent.h>
#include <signal.h>

enum { CUTS = 32, CHANGES = 96 };

static char doing[512];

static void say_where(int sig)
{
    (void)!write(STDERR_FILENO, doing, strlen(doing));
    signal(sig, SIG_DFL);
    raise(sig);
}

/* An exact heap copy: a read past the end is seen by the sanitizers. */
static void feed(const uint8_t *bytes, size_t n)
{
    uint8_t *copy = wz_realloc(NULL, n);

    memcpy(copy, bytes, n);
    LLVMFuzzerTestOneInput(copy, n);
    free(copy);
}

static void example(const char *path, const uint8_t *bytes, size_t n)
{
    uint8_t *changed = wz_realloc(NULL, n);

    snprintf(doing, sizeof doing, "%s as it is\n", path);
    feed(bytes, n);
    for (size_t i = 0; i < CUTS && i < n; i++) {
        size_t k = n <= CUTS ? i : n * i / CUTS;
        snprintf(doing, sizeof doing, "%s cut after %zu bytes\n", path, k);
        feed(bytes, k);
    }
    for (uint32_t i = 0; i < CHANGES && n; i++) {
        struct wz_key key = { .purpose = WZ_RNG_TEST, .a = i };
        memcpy(changed, bytes, n);
        for (key.b = 0; key.b <= i % 3; key.b++) { /* one to three bytes */
            static const uint8_t favourites[] = { 0, 0xff, 0x7f, 0x80, '"', '{', '\n', 1 };
            uint64_t r = wz_random(key);
            changed[(r >> 16) % n] = r & 1 ? (uint8_t)(r >> 8) : favourites[r >> 8 & 7];
        }
        snprintf(doing, sizeof doing, "%s with change %u\n", path, i);
        feed(changed, n);
    }
    free(changed);
}

int main(int argc, char **argv)
{
    struct dirent **list;
    struct wz_err err;
    int n = scandir(argc > 1 ? argv[1] : ".", &list, NULL, alphasort), k = 0;

    if (argc != 2 || n <= 2) wz_die("usage: %s CORPUS, a folder with at least one example", argv[0]);
    signal(SIGSEGV, say_where);
    signal(SIGABRT, say_where);
    signal(SIGFPE, say_where);
    printf("1..%d\n", n - 2);
    for (int i = 0; i < n; i++) {
        char *path = wz_path("%s/%s", argv[1], list[i]->d_name);
        struct wz_map map;
        if (list[i]->d_name[0] != '.') {
            if (wz_map_open(&map, path, &err) < 0) wz_die("%s", err.text);
            example(path, map.bytes, map.len);
            wz_map_close(&map);
            printf("ok %d - %s\n", ++k, list[i]->d_name);
            fflush(stdout);
        }
        free(path);
        free(list[i]);
    }
    free(list);
    return k == n - 2 ? 0 : 1;
}
