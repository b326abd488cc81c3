/* Fuzz target: a file of conversations, JSON lines or an array, gzip or not, is examples whose ids are the
 * vocabulary's, none longer than the context, or an error message that names the file. */
#include "fuzz.h"

#include "trainer/trainer.h"

#define MARK(id, text) "{\"id\": " #id ", \"content\": \"" text "\", \"special\": true}"
static const char model[] = "{\"added_tokens\": [" MARK(6, "<sys>") ", " MARK(7, "<user>") ", " MARK(
    8, "<end>") ", " MARK(9, "<asst>") "], \"model\": {\"vocab\": {\"a\": 0, \"b\": 1, \" \": 2, \"?\": 3, \"ab\": 4, "
                                       "\"ba\": 5}, \"merges\": [\"a b\", \"b a\"], \"unk_token\": \"?\"}}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    enum { CONTEXT = 200, END = 8 };
    static struct wz_tokenizer *tok;
    static const struct wz_template *chat;
    const struct wz_ids stops = { (int[]){ END }, 1, 1 };
    struct wz_sft_set set = { 0 };
    struct wz_err err = { "" };

    if (!tok) {
        char *file = fuzz_file(".json", (const uint8_t *)model, sizeof model - 1);
        fuzz_must((tok = wz_tokenizer_load(file, &err)) && (chat = wz_template_find("sandbox", tok, &err)), err.text);
        unlink(file);
        free(file);
    }
    char *path = fuzz_file(".jsonl", data, size);
    const int rc = wz_sft_load(&set, path, size & 1 ? "a" : "", chat, tok, &stops, CONTEXT, &err);
    fuzz_must(rc == 0 || strstr(err.text, path), "refused without naming the file");
    for (int i = 0; rc == 0 && i < set.n; i++) {
        const struct wz_sft_example *x = &set.list[i];
        fuzz_must(x->n > 0 && x->n <= CONTEXT && x->n <= set.longest, "an example of a length that can't be");
        for (int k = 0; k < x->n; k++)
            fuzz_must(x->ids[k] >= 0 && x->ids[k] < wz_tokenizer_vocab(tok), "an id out of range");
    }
    if (rc == 0) wz_sft_finish(&set);
    unlink(path);
    free(path);
    return 0;
}
