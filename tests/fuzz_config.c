/* Fuzz target: a config.json is a valid model or an error message. */
#include "fuzz.h"

#include <sys/stat.h>

#include "model/model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *dir = fuzz_file("", (const uint8_t *)"", 0), *path;
    struct wz_config c;
    struct wz_err err = { "" };

    unlink(dir);
    fuzz_must(mkdir(dir, 0777) == 0, "the scratch folder can't be made");
    path = fuzz_file("/config.json", data, size);
    if (wz_config_load(&c, dir, &err) == 0)
        fuzz_must(c.layers > 0 && c.dim > 0 && c.heads > 0 && c.kv_heads > 0 && c.heads % c.kv_heads == 0 &&
                      c.head_dim > 0 && c.ffn > 0 && c.vocab > 0 && c.context > 0,
                  "accepted a model that can't exist");
    else fuzz_must(strstr(err.text, "config.json") != NULL, "refused without naming the file");
    unlink(path);
    rmdir(dir);
    free(path);
    free(dir);
    return 0;
}
