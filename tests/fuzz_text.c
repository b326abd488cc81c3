/* Fuzz target: any text, by tokenizers of every kind (those of corpus/tokenizer), is ids of the vocabulary or an error
 * message; with a byte for every byte, the ids are the text again. */
#include "fuzz.h"

#include "text/text.h"

static struct wz_tokenizer *load(const char *name, const char *ending)
{
    char *path = wz_path("%s/tokenizer/%s", WZ_CORPUS, name), *copy;
    struct wz_map map;
    struct wz_err err;

    fuzz_must(wz_map_open(&map, path, &err) == 0, err.text);
    copy = fuzz_file(ending, map.bytes + 1, map.len - 1); /* less the byte that says of which kind it is */
    struct wz_tokenizer *tok = wz_tokenizer_load(copy, &err);
    fuzz_must(tok != NULL, err.text);
    wz_map_close(&map);
    unlink(copy);
    free(copy);
    free(path);
    return tok;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct {
        const char *name, *ending;
        bool bytes;
    } rows[] = { { "hub.json", ".json", false },
                 { "hub_metaspace.json", ".json", false },
                 { "hub_parts.json", ".json", false },
                 { "hub_split.json", ".json", false },
                 { "gpt2.gguf", ".gguf", false },
                 { "llama.gguf", ".gguf", false },
                 { "sentencepiece.model", ".model", false },
                 { "llama2c.bin", ".bin", false },
                 { "ranks.model", ".model", true } };
    static struct wz_tokenizer *toks[WZ_COUNT(rows)];
    const char *text = (const char *)data;
    const size_t valid = wz_utf8_valid(text, size);

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        struct wz_ids ids = { 0 };
        struct wz_buf out = { 0 };
        struct wz_err err = { "" };
        if (!toks[i]) toks[i] = load(rows[i].name, rows[i].ending);
        const int rc = wz_encode(toks[i], text, size, &ids, &err);
        fuzz_must(rc == 0 || (err.text[0] && !ids.n), "refused without a message, or with something left behind");
        fuzz_must(rc < 0 || valid == size, "took what is no UTF-8");
        for (int k = 0; k < ids.n; k++)
            fuzz_must(ids.ids[k] >= 0 && ids.ids[k] < wz_tokenizer_vocab(toks[i]), "an id out of range");
        wz_decode(toks[i], ids.ids, ids.n, true, &out);
        if (rc == 0 && rows[i].bytes)
            fuzz_must(out.len == size && (!size || !memcmp(out.data, text, size)), "other text comes back");
        wz_buf_finish(&out);
        wz_ids_finish(&ids);
    }
    return 0;
}
