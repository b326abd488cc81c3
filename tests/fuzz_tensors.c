/* Fuzz target: a safetensors or GGUF file is tensors that lie inside it, or a sentence. */
#include "fuzz.h"

#include "store/store.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *path = fuzz_file(size > 4 && memcmp(data, "GGUF", 4) == 0 ? ".gguf" : ".safetensors", data, size);
    struct wz_err err = { "" };
    struct wz_tensors *set = wz_tensors_open(path, &err);
    float some[32];

    fuzz_must(set || strstr(err.text, path), "refused without naming the file");
    for (int i = 0; set && i < wz_tensors_count(set); i++) {
        const struct wz_tensor *t = wz_tensors_at(set, i);
        volatile uint8_t sum = 0;
        for (size_t k = 0; k < t->bytes; k++) sum = (uint8_t)(sum + t->data[k]);
        if (t->dtype != WZ_DT_OTHER && t->count >= 32) wz_tensor_floats(t, t->count / 32 * 32 - 32, 32, some);
        fuzz_must(wz_tensors_find(set, t->name) != NULL, "a tensor that can't be found by its name");
    }
    wz_tensors_close(set);
    free(path);
    return 0;
}
