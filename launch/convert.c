/* waltz convert: reads a GGUF file or a Hugging Face folder, writes a Hugging Face folder. */
#include "launch/launch.h"

#include <stdlib.h>
#include <string.h>

#include "run/run.h"

/* Does the source hold a tokenizer: the files of a folder, or of its base where it is an adapter's, or the keys of a
 * GGUF file? */
static bool has_tokenizer(const char *src)
{
    struct wz_err err;
    char *base = wz_base_at(src, &err), *at = base && wz_is_dir(src) ? wz_model_at(src, &err) : NULL;
    const bool other = at && strcmp(at, base) != 0 && has_tokenizer(base);

    free(base);
    free(at);
    if (other) return true;
    if (!wz_is_dir(src)) {
        struct wz_tensors *set = wz_tensors_open(src, &err);
        bool has = set && json_object_get(wz_tensors_meta(set), "tokenizer.ggml.tokens");

        wz_tensors_close(set);
        return has;
    }
    char *json = wz_path("%s/tokenizer.json", src), *spm = wz_path("%s/tokenizer.model", src);
    bool has = wz_file_exists(json) || wz_file_exists(spm);
    free(json);
    free(spm);
    return has;
}

/* Do both paths exist and name the same file? */
static bool same_place(const char *a, const char *b)
{
    char *x = realpath(a, NULL), *y = realpath(b, NULL);
    bool same = x && y && !strcmp(x, y);

    free(x);
    free(y);
    return same;
}

static int convert(const char *src, const char *dst, enum wz_dtype dtype, size_t shard, struct wz_backend *be,
                   struct wz_err *err)
{
    struct wz_tokenizer *tok = NULL;
    struct wz_model *m = NULL;
    int rc = -1;

    if (same_place(src, dst)) return wz_fail(err, "%s: source and destination are the same", dst);
    if (wz_file_exists(dst) && !wz_is_dir(dst)) return wz_fail(err, "%s: expected a folder, got a file", dst);
    m = wz_model_load(src, dtype == WZ_DT_BF16 ? WZ_BF16 : WZ_F32, NULL, be, err);
    if (!m) goto out;
    if (has_tokenizer(src)) {
        if (!(tok = wz_tokenizer_load(src, err))) goto out;
        if (wz_tokenizer_vocab(tok) > m->config.vocab) {
            wz_fail(err, "%s: the tokenizer has %d tokens, more than the model's %d", src, wz_tokenizer_vocab(tok),
                    m->config.vocab);
            goto out;
        }
    } else {
        wz_log("convert: %s has no tokenizer; only config and weights are written", src);
    }
    if (wz_model_save_as(m, dst, shard, dtype, err) < 0) goto out;
    rc = tok ? wz_tokenizer_save(tok, dst, err) : 0;
out:
    wz_tokenizer_destroy(tok);
    wz_model_destroy(m);
    return rc;
}

int wz_cmd_convert(int argc, char **argv)
{
    const char *type = "f32";
    uint64_t shard = 0;
    struct wz_model_pick pick = { NULL, -1 };
    int status;
    const struct wz_option options[] = {
        { "type", 't', WZ_TEXT, &type, "f32|bf16|f16", "of the matrices in the file", 0, 0 },
        WZ_PICK_OPTIONS(&pick),
        { "shard", 's', WZ_SEED, &shard, "BYTES", "bytes of tensors in a file, at most; 0: one file", 0, 0 },
    };
    const struct wz_usage usage = {
        .name = "convert",
        .args = "MODEL|RUN DST",
        .options = options,
        .n_options = WZ_COUNT(options),
        .about = "Reads a model, a GGUF file or a Hugging Face folder, or one of a run's newest checkpoint, and\n"
                 "writes the Hugging Face folder DST: config.json, model.safetensors (or shards with their index),\n"
                 "the tokenizer's files as they were read, or a tokenizer.json made of a GGUF file's.",
    };
    struct wz_err err;

    if (wz_options_parse(&usage, argc, argv, &status) < 0) return status;
    enum wz_dtype dtype = !strcmp(type, "bf16") ? WZ_DT_BF16 : !strcmp(type, "f16") ? WZ_DT_F16 : WZ_DT_F32;
    struct wz_backend *be = wz_backend_open("ref", 1, NULL, &err);
    char *src = be ? wz_checkpoint_model(argv[0], pick.agent, pick.step, &err) : NULL;
    status = !src || convert(src, argv[1], dtype, (size_t)shard, be, &err) < 0 ? wz_give_up("convert", &err) : 0;
    free(src);
    wz_backend_close(be);
    return status;
}
