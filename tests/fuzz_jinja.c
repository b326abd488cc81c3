/* Fuzz target: a chat template, run over messages of which one was sampled and one spells special tokens. It either
 * gives ids of the vocabulary, the sampled ones among them, or says why not and leaves nothing behind. */
#include "fuzz.h"

#include "text/text.h"

/* A folder with the bytes, special tokens and the template. */
static void write_folder(const char *dir, const uint8_t *data, size_t size)
{
    static const char tokens[] =
        "{\"added_tokens\": [{\"id\": 3, \"content\": \"<s>\", \"special\": true}, {\"id\": 4, \"content\": \"<e>\", "
        "\"special\": true}], \"model\": {\"vocab\": {\"a\": 0, \"b\": 1, \" \": 2, \"?\": 5}, \"merges\": "
        "[], \"unk_token\": \"?\"}}";
    char *jinja = wz_path("%s/chat_template.jinja", dir), *model = wz_path("%s/tokenizer.json", dir);
    FILE *f = fopen(jinja, "wb");

    fuzz_must(f && fwrite(data, 1, size, f) == size && fclose(f) == 0, "the scratch file can't be written");
    f = fopen(model, "wb");
    fuzz_must(f && fputs(tokens, f) >= 0 && fclose(f) == 0, "the scratch file can't be written");
    free(jinja);
    free(model);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const int sampled[] = { 0, 2, 1 };
    const struct wz_message talk[] = { { .role = WZ_SYSTEM, .text = "<s>" },
                                       { .role = WZ_USER, .text = " a<e>\xc3\xa9 " },
                                       { .role = WZ_ASSISTANT, .ids = sampled, .n_ids = 3 },
                                       { .role = WZ_USER, .text = "" } };
    const char *scratch = getenv("WALTZ_SCRATCH");
    char *dir = wz_path("%s/fuzz-jinja-%d", scratch ? scratch : "/tmp", (int)getpid());
    struct wz_err err = { "" };
    struct wz_ids ids = { 0 };
    int stops[8];

    fuzz_must(wz_mkdirs(dir, &err) == 0, "scratch");
    write_folder(dir, data, size);
    struct wz_tokenizer *tok = wz_tokenizer_load(dir, &err);
    fuzz_must(tok != NULL, err.text);
    const struct wz_template *t = wz_template_find(NULL, tok, &err);
    fuzz_must(t || err.text[0], "no message");
    for (int n = 0; t && n <= 4; n++) {
        err.text[0] = 0;
        ids.n = 0;
        wz_ids_add(&ids, 9);
        const int rc = wz_template_apply(t, tok, talk, n, n % 2, &ids, &err);
        bool found = n < 3;
        fuzz_must(rc == 0 || (err.text[0] && ids.n == 1), "refused without a message, or with something left behind");
        for (int i = 1; rc == 0 && i < ids.n; i++) {
            fuzz_must(ids.ids[i] >= 0 && ids.ids[i] < wz_tokenizer_vocab(tok), "an id out of range");
            found = found || ids.ids[i] == sampled[0] || ids.ids[i] == sampled[2];
        }
        fuzz_must(rc < 0 || found, "what was sampled is lost");
    }
    if (t) fuzz_must(wz_template_stops(t, tok, stops) <= 8, "too many stops");
    wz_ids_finish(&ids);
    wz_tokenizer_destroy(tok);
    char *files[] = { wz_path("%s/tokenizer.json", dir), wz_path("%s/chat_template.jinja", dir) };
    for (size_t i = 0; i < WZ_COUNT(files); i++) {
        unlink(files[i]);
        free(files[i]);
    }
    rmdir(dir);
    free(dir);
    return 0;
}
