/* Fuzz target: a safetensors or GGUF file is tensors that lie inside it, or an error message. What opens has metadata
 * that is JSON, and what we write of its tensors reads back the same. */
#include "fuzz.h"

#include "store/store.h"

static float *floats(const struct wz_tensor *t)
{
    float *out = wz_alloc(wz_mul(4, t->count));

    wz_tensor_floats(t, 0, t->count, out);
    return out;
}

/* Every tensor that we can read, written as F32 and read again. */
static void write_and_read(const struct wz_tensors *set, const char *from)
{
    char *path = wz_path("%s.out", from);
    struct wz_tensor_spec *specs = wz_alloc(wz_mul(sizeof *specs, (size_t)wz_tensors_count(set)));
    struct wz_err err;
    int n = 0;

    for (int i = 0; i < wz_tensors_count(set); i++) {
        const struct wz_tensor *t = wz_tensors_at(set, i);
        fuzz_must(wz_tensors_find(set, t->name) == t, "a tensor that can't be found by its name");
        if (t->dtype == WZ_DT_OTHER) continue;
        specs[n] = (struct wz_tensor_spec){ .name = t->name, .dtype = WZ_DT_F32, .n_dims = t->n_dims };
        memcpy(specs[n++].shape, t->shape, sizeof t->shape);
    }
    struct wz_safetensors_out *out = wz_safetensors_begin(path, specs, n, &err);
    fuzz_must(out != NULL, "a file that can't be begun");
    for (int i = 0; i < n; i++) {
        const struct wz_tensor *t = wz_tensors_find(set, specs[i].name);
        float *x = floats(t);
        fuzz_must(wz_safetensors_put(out, x, t->count, &err) == 0, "a tensor that can't be written");
        free(x);
    }
    fuzz_must(wz_safetensors_end(out, &err) == 0, "a file that can't be ended");
    struct wz_tensors *again = wz_tensors_open(path, &err);
    fuzz_must(again && wz_tensors_count(again) == n, "what was written does not open");
    for (int i = 0; i < n; i++) {
        const struct wz_tensor *a = wz_tensors_find(set, specs[i].name), *b = wz_tensors_find(again, specs[i].name);
        fuzz_must(b && a->count == b->count, "a tensor was lost");
        float *x = floats(a), *y = floats(b);
        fuzz_must(!memcmp(x, y, 4 * a->count), "a tensor changed");
        free(x);
        free(y);
    }
    wz_tensors_close(again);
    unlink(path);
    free(specs);
    free(path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *path = fuzz_file(size > 4 && memcmp(data, "GGUF", 4) == 0 ? ".gguf" : ".safetensors", data, size);
    struct wz_err err = { "" };
    struct wz_tensors *set = wz_tensors_open(path, &err);

    fuzz_must(set || strstr(err.text, path), "refused without naming the file");
    if (set) {
        char *text = wz_tensors_meta(set) ? json_dumps(wz_tensors_meta(set), 0) : NULL;
        fuzz_must(!wz_tensors_meta(set) || text, "metadata that is not JSON");
        free(text);
        write_and_read(set, path);
    }
    wz_tensors_close(set);
    free(path);
    return 0;
}
