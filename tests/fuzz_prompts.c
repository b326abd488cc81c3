/* Fuzz target: a file of prompts, JSON lines or CSV (the first byte of the input decides), is rows of valid UTF-8 or a sentence. */
#include "fuzz.h"

#include "store/store.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *path = fuzz_file(size && data[0] == '{' ? ".jsonl" : ".csv", data, size);
    struct wz_prompts set;
    struct wz_err err = { "" };

    if (wz_prompts_load(&set, path, "prompt", "harmful", "kind", &err) == 0) {
        fuzz_must(set.n > 0, "accepted without rows");
        for (int i = 0; i < set.n; i++) {
            size_t n = strlen(set.list[i].text);
            fuzz_must(wz_utf8_valid(set.list[i].text, n) == n && set.list[i].kind, "accepted a row that is not text");
        }
        wz_prompts_finish(&set);
    } else {
        fuzz_must(strstr(err.text, path) != NULL, "refused without naming the file");
    }
    free(path);
    return 0;
}
