/* Fuzz target: a folder of a model, in several files or an adapter's (of waltz/base, which is in the hub's cache), is a
 * model that can be loaded, saved, and loaded again, or an error message. */
#include "fuzz.h"

#include "model/model.h"

static struct wz_backend *be;

/* A hub's cache with the base model of adapters. */
static void make_base(void)
{
    const struct wz_config c = { .layers = 1,
                                 .dim = 4,
                                 .heads = 2,
                                 .kv_heads = 1,
                                 .head_dim = 2,
                                 .ffn = 4,
                                 .vocab = 8,
                                 .context = 16,
                                 .norm_eps = 1e-5f,
                                 .rope_theta = 1e4f,
                                 .bos = -1 };
    char *cache = fuzz_path("hub"), *base = wz_path("%s/models--waltz--base/snapshots/main", cache);
    struct wz_err err;

    setenv("HF_HUB_CACHE", cache, 1);
    be = wz_backend_open("ref", 1, NULL, &err);
    fuzz_must(be != NULL, err.text);
    struct wz_model *m = wz_model_create(&c, WZ_F32, NULL, be);
    wz_model_init(m, 3);
    fuzz_must(wz_mkdirs(base, &err) == 0 && wz_model_save(m, base, 0, &err) == 0, err.text);
    wz_model_destroy(m);
    free(base);
    free(cache);
}

static void clean(void)
{
    char *paths[] = { fuzz_path("hub"), fuzz_path("model"), fuzz_path("saved") };

    for (size_t i = 0; i < WZ_COUNT(paths); i++) {
        nftw(paths[i], fuzz_remove, 16, FTW_DEPTH | FTW_PHYS);
        free(paths[i]);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = { "config.json",
                                         "generation_config.json",
                                         "model.safetensors",
                                         "model.safetensors.index.json",
                                         "model-00001-of-00002.safetensors",
                                         "model-00002-of-00002.safetensors",
                                         "adapter_config.json",
                                         "adapter_model.safetensors",
                                         NULL };
    char *dir = fuzz_path("model"), *saved = fuzz_path("saved");
    struct wz_config config;
    struct wz_err err = { "" }, why = { "" };

    if (!be) {
        make_base();
        atexit(clean);
    }
    fuzz_folder(dir, names, data, size);
    const int rc = wz_model_check(&config, dir, WZ_F32, &err);
    fuzz_must(rc == 0 || err.text[0], "refused without a message");
    struct wz_model *m = wz_model_load(dir, WZ_F32, NULL, be, &why);
    fuzz_must(!m == (rc < 0), "checked and loaded, one of them is refused");
    if (m) {
        fuzz_must(wz_mkdirs(saved, &err) == 0 && wz_model_save(m, saved, 0, &err) == 0, "what loaded does not save");
        struct wz_model *again = wz_model_load(saved, WZ_F32, NULL, be, &err);
        fuzz_must(again != NULL, err.text);
        fuzz_must(again->n_params == m->n_params && again->hash == m->hash, "other weights");
        wz_model_destroy(again);
    }
    wz_model_destroy(m);
    free(dir);
    free(saved);
    return 0;
}
