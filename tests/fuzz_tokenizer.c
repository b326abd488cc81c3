/* Fuzz target: a kind byte ('j' tokenizer.json, 'm' .model, 'b' .bin, 'g' .gguf, 'c' tokenizer_config.json) and a
 * file's bytes. What loads must encode or give an error message, decode, save, and load again with the same
 * vocabulary. */
#include "fuzz.h"

#include "text/text.h"

static void must(bool ok, const char *what, const struct wz_err *err)
{
    if (ok) return;
    fprintf(stderr, "fuzz_tokenizer: %s: %s\n", what, err->text);
    abort();
}

static void use(const struct wz_tokenizer *tok)
{
    static const char text[] = "Hello  \xc3\xa9\xf0\x9f\x98\x80 12\n\t<s>\xe2\x96\x81 aaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const struct wz_message turns[] = { { .role = WZ_USER, .text = text } };
    struct wz_ids ids = { 0 };
    struct wz_buf out = { 0 };
    struct wz_stream stream = { 0 };
    struct wz_err err = { "" };

    int rc = wz_encode(tok, text, sizeof text - 1, &ids, &err);
    must(rc == 0 || (err.text[0] && ids.n == 0), "no message", &err);
    for (int i = 0; i < ids.n; i++)
        must(ids.ids[i] >= 0 && ids.ids[i] < wz_tokenizer_vocab(tok), "an id out of range", &err);
    for (int i = -1; i <= wz_tokenizer_vocab(tok) && i < 600; i++) wz_ids_add(&ids, i);
    wz_decode(tok, ids.ids, ids.n, true, &out);
    wz_buf_clear(&out);
    for (int i = 0; i < ids.n; i++) wz_stream_add(tok, &stream, ids.ids[i], &out);
    wz_stream_flush(&stream, &out);
    must(wz_utf8_valid(out.data, out.len) == out.len, "a stream that is not UTF-8", &err);
    ids.n = 0;
    const struct wz_template *t = wz_template_find(NULL, tok, &err);
    if (t) wz_template_apply(t, tok, turns, 1, true, &ids, &err);
    wz_ids_finish(&ids);
    wz_buf_finish(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char plain[] = "{\"model\": {\"vocab\": {\"a\": 0, \"<s>\": 1, \"[INST]\": 2}, \"merges\": []}}";
    static const struct {
        char kind;
        const char *name;
    } kinds[] = { { 'j', "tokenizer.json" },
                  { 'm', "tokenizer.model" },
                  { 'b', "fuzz.bin" },
                  { 'g', "fuzz.gguf" },
                  { 'c', "tokenizer_config.json" } };
    const char *scratch = getenv("WALTZ_SCRATCH");
    char *dir = wz_path("%s/fuzz-%d", scratch ? scratch : "/tmp", (int)getpid()), *saved = wz_path("%s/saved", dir),
         *path = NULL;
    char *model = wz_path("%s/tokenizer.json", dir);
    struct wz_err err = { "" };

    for (size_t i = 0; size && i < WZ_COUNT(kinds); i++)
        if (kinds[i].kind == (char)data[0]) path = wz_path("%s/%s", dir, kinds[i].name);
    if (path) {
        must(wz_mkdirs(saved, &err) == 0, "scratch", &err);
        FILE *f = fopen(path, "wb");
        must(f && fwrite(data + 1, 1, size - 1, f) == size - 1 && fclose(f) == 0, "scratch", &err);
        if (data[0] == 'c') {
            f = fopen(model, "wb");
            must(f && fputs(plain, f) >= 0 && fclose(f) == 0, "scratch", &err);
        }
        struct wz_tokenizer *tok = wz_tokenizer_load(data[0] == 'c' ? model : path, &err);
        must(tok || err.text[0], "no message", &err);
        if (tok) use(tok);
        if (tok && wz_hash(data, size, 0) % 4 == 0) { /* writing files to the disk takes its time */
            must(wz_tokenizer_save(tok, saved, &err) == 0, "what loaded does not save", &err);
            struct wz_tokenizer *again = wz_tokenizer_load(saved, &err);
            must(again != NULL, "what was saved does not load", &err);
            must(wz_tokenizer_vocab(again) == wz_tokenizer_vocab(tok), "another vocabulary", &err);
            wz_tokenizer_destroy(again);
        }
        wz_tokenizer_destroy(tok);
        unlink(path);
        unlink(model);
    }
    char *files[] = { wz_path("%s/tokenizer.json", saved), wz_path("%s/tokenizer.model", saved),
                      wz_path("%s/tokenizer_config.json", saved) };
    for (size_t i = 0; i < WZ_COUNT(files); i++) {
        unlink(files[i]);
        free(files[i]);
    }
    rmdir(saved);
    rmdir(dir);
    free(dir);
    free(saved);
    free(path);
    free(model);
    return 0;
}
