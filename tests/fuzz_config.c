/* Fuzz target: a config.json, or the metadata of a GGUF file, is a valid model or an error message. */
#include "fuzz.h"

#include <sys/stat.h>

#include "model/model.h"

static void load(const char *path, const char *names)
{
    struct wz_config c;
    struct wz_err err = { "" };

    if (wz_config_load(&c, path, &err) == 0)
        fuzz_must(c.layers > 0 && c.dim > 0 && c.heads > 0 && c.kv_heads > 0 && c.heads % c.kv_heads == 0 &&
                      c.head_dim > 0 && c.ffn > 0 && c.vocab > 0 && c.context > 0,
                  "accepted a model that can't exist");
    else fuzz_must(strstr(err.text, names) != NULL, "refused without naming the file");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const bool gguf = size >= 4 && !memcmp(data, "GGUF", 4);
    char *dir = fuzz_file(gguf ? ".gguf" : "", data, gguf ? size : 0), *path = NULL;

    if (gguf) load(dir, ".gguf");
    unlink(dir);
    if (!gguf) {
        fuzz_must(mkdir(dir, 0777) == 0, "the scratch folder can't be made");
        path = fuzz_file("/config.json", data, size);
        load(dir, "config.json");
        unlink(path);
        rmdir(dir);
    }
    free(path);
    free(dir);
    return 0;
}
