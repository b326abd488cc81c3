/* Fuzz target: any bytes are a recipe or an error message. What loads must save, and load again as the same text. */
#include "recipe/recipe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool ok, const char *what, const struct wz_err *err)
{
    if (ok) return;
    fprintf(stderr, "fuzz_recipe: %s: %s\n", what, err->text);
    abort();
}

static void slurp(const char *path, struct wz_buf *out)
{
    struct wz_map map;
    struct wz_err err;

    must(wz_map_open(&map, path, &err) == 0, "reading back", &err);
    wz_buf_add(out, map.bytes, map.len);
    wz_map_close(&map);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *dir = getenv("WALTZ_SCRATCH");
    char *saved = wz_path("%s/fuzz-%d.yaml", dir ? dir : "/tmp", (int)getpid()), in[64];
    int fd = memfd_create("recipe", 0);
    struct wz_recipe *recipe = NULL;
    struct wz_err err = { "" };
    struct wz_buf first = { 0 }, second = { 0 };

    must(fd >= 0 && write(fd, data, size) == (ssize_t)size, "memfd", &err);
    snprintf(in, sizeof in, "/proc/self/fd/%d", fd);
    if (wz_recipe_load(&recipe, in, NULL, 0, &err) == 0) {
        must(wz_recipe_save(recipe, saved, &err) == 0, "a loaded recipe does not save", &err);
        wz_recipe_destroy(recipe);
        slurp(saved, &first);
        must(wz_recipe_load(&recipe, saved, NULL, 0, &err) == 0, "a saved recipe does not load", &err);
        must(wz_recipe_save(recipe, saved, &err) == 0, "a saved recipe does not save", &err);
        wz_recipe_destroy(recipe);
        slurp(saved, &second);
        must(first.len == second.len && !memcmp(first.data, second.data, first.len), "saving changes a saved recipe",
             &err);
        unlink(saved);
    } else {
        must(*err.text && !recipe, "refused without a message", &err);
    }
    wz_buf_finish(&first);
    wz_buf_finish(&second);
    close(fd);
    free(saved);
    return 0;
}
