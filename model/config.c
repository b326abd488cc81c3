/* config: a model's shape, read from a Hugging Face config.json (old and new spellings) or a GGUF's metadata, and
 * written as config.json.
 *
 *   rope       rope_theta, rope_scaling: null | { type or rope_type: default | linear | llama3, ... } (transformers 4)
 *              rope_parameters: { rope_theta, rope_type, ... }                                        (transformers 5)
 *   eos        eos_token_id of config.json and of generation_config.json together: a number, a list or null
 *   head_dim   may be absent or null: hidden_size / num_attention_heads
 *
 * A GGUF has no keys for llama3 scaling, only the resulting divisors (rope_freqs.weight): the parameters are derived
 * from those, and checked. */
#include "model/inner.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LIMIT = 1 << 24 }; /* of any count: products of three fit in a size_t */

static bool absent(const json_t *j) { return !j || json_is_null(j); }

/* Whole numbers by key, each in [low, LIMIT]. A missing key is `other`, or an error where other < low. */
struct field {
    const char *key;
    int low, other, *out;
};

static int get_int(const json_t *from, const char *path, const char *key, int low, int other, int *out,
                   struct wz_err *err)
{
    const json_t *j = json_object_get(from, key);

    if (absent(j)) {
        *out = other;
        if (other >= low) return 0;
        return wz_fail(err, "%s: %s is missing: expected a whole number", path, key);
    }
    if (!json_is_integer(j) || json_integer_value(j) < low || json_integer_value(j) > LIMIT)
        return wz_fail(err, "%s: %s: expected a whole number from %d to %d", path, key, low, LIMIT);
    *out = (int)json_integer_value(j);
    return 0;
}

static int get_ints(const json_t *from, const char *path, const struct field *f, size_t n, struct wz_err *err)
{
    for (; n > 0; n--, f++)
        if (get_int(from, path, f->key, f->low, f->other, f->out, err) < 0) return -1;
    return 0;
}

/* A number > 0. A missing key is `other`, or an error where other is 0. */
static int get_float(const json_t *from, const char *path, const char *key, float other, float *out, struct wz_err *err)
{
    const json_t *j = json_object_get(from, key);
    double x = absent(j) ? (double)other : json_is_number(j) ? json_number_value(j) : 0;

    if (!(x > 0 && x < 1e30)) return wz_fail(err, "%s: %s: expected a number > 0", path, key);
    *out = (float)x;
    return 0;
}

static int add_eos(struct wz_config *c, int id, const char *path, struct wz_err *err)
{
    for (int i = 0; i < c->n_eos; i++)
        if (c->eos[i] == id) return 0;
    if (c->n_eos == (int)WZ_COUNT(c->eos))
        return wz_fail(err, "%s: eos_token_id: more than %zu ids of end tokens", path, WZ_COUNT(c->eos));
    c->eos[c->n_eos++] = id;
    return 0;
}

/* A token id, a list of them, or null. */
static int get_eos(struct wz_config *c, const json_t *from, const char *path, const char *key, struct wz_err *err)
{
    const json_t *j = json_object_get(from, key);
    size_t n = json_is_array(j) ? json_array_size(j) : absent(j) ? 0 : 1;

    for (size_t i = 0; i < n; i++) {
        const json_t *e = json_is_array(j) ? json_array_get(j, i) : j;

        if (!json_is_integer(e) || json_integer_value(e) < -1 || json_integer_value(e) > LIMIT)
            return wz_fail(err, "%s: %s: expected a token id or a list of token ids", path, key);
        if (json_integer_value(e) >= 0 && add_eos(c, (int)json_integer_value(e), path, err) < 0) return -1;
    }
    return 0;
}

/* Consistency of a config from either source. */
static int check(const struct wz_config *c, const char *path, struct wz_err *err)
{
    if (c->heads % c->kv_heads != 0)
        return wz_fail(err, "%s: expected attention heads that are a multiple of the %d key/value heads, got %d", path,
                       c->kv_heads, c->heads);
    if (c->head_dim % 2 != 0)
        return wz_fail(err, "%s: expected an even head size, as RoPE requires, got %d", path, c->head_dim);
    if ((int64_t)c->heads * c->head_dim > LIMIT)
        return wz_fail(err, "%s: %d heads of size %d exceed %d channels", path, c->heads, c->head_dim, LIMIT);
    if (c->layers > 4096) return wz_fail(err, "%s: expected at most 4096 layers, got %d", path, c->layers);
    for (int i = 0; i < c->n_eos; i++)
        if (c->eos[i] >= c->vocab)
            return wz_fail(err, "%s: eos_token_id %d is outside of the vocabulary of %d", path, c->eos[i], c->vocab);
    if (c->bos >= c->vocab)
        return wz_fail(err, "%s: bos_token_id %d is outside of the vocabulary of %d", path, c->bos, c->vocab);
    if (c->rope == WZ_ROPE_LLAMA3 && c->rope_high <= c->rope_low)
        return wz_fail(err, "%s: expected high_freq_factor > low_freq_factor", path);
    return 0;
}

/* ---- Hugging Face folders --------------------------------------------------------------------------------- */

static int hub_rope(struct wz_config *c, const json_t *j, const char *path, struct wz_err *err)
{
    const json_t *r = json_object_get(j, "rope_parameters");
    bool inside = !absent(json_object_get(r, "rope_theta"));

    if (get_float(inside ? r : j, path, "rope_theta", 10000, &c->rope_theta, err) < 0) return -1;
    if (absent(r)) r = json_object_get(j, "rope_scaling");
    if (absent(r)) return 0;
    if (!json_is_object(r)) return wz_fail(err, "%s: rope_scaling: expected an object or null", path);

    const json_t *type = json_object_get(r, "rope_type");
    if (absent(type)) type = json_object_get(r, "type");
    const char *name = absent(type) ? "default" : json_string_value(type);
    if (!name) return wz_fail(err, "%s: rope_type: expected a string", path);
    if (!strcmp(name, "default")) return 0;
    if (strcmp(name, "linear") && strcmp(name, "llama3"))
        return wz_fail(err, "%s: rope_type: expected default, linear or llama3, got \"%s\"", path, name);
    if (get_float(r, path, "factor", 0, &c->rope_factor, err) < 0) return -1;
    c->rope = WZ_ROPE_LINEAR;
    if (!strcmp(name, "linear")) return 0;
    c->rope = WZ_ROPE_LLAMA3;
    if (get_float(r, path, "low_freq_factor", 0, &c->rope_low, err) < 0 ||
        get_float(r, path, "high_freq_factor", 0, &c->rope_high, err) < 0)
        return -1;
    return get_int(r, path, "original_max_position_embeddings", 1, -1, &c->rope_original, err);
}

static int hub_supported(const json_t *j, const char *path, struct wz_err *err)
{
    static const char *const off[] = { "attention_bias", "mlp_bias", "rope_interleaved" };
    static const char *const none[] = { "quantization_config", "sliding_window" };
    const json_t *names = json_object_get(j, "architectures"), *kind = json_object_get(j, "model_type");
    const char *name = json_string_value(json_array_get(names, 0)), *act;

    if (!name) name = absent(kind) ? NULL : json_string_value(kind);
    if (!name) return wz_fail(err, "%s: architectures is missing: expected [\"LlamaForCausalLM\"]", path);
    if (strcmp(name, "LlamaForCausalLM") && strcmp(name, "llama"))
        return wz_fail(err, "%s: architectures: expected LlamaForCausalLM, got %s", path, name);
    act = json_string_value(json_object_get(j, "hidden_act"));
    if (act && strcmp(act, "silu")) return wz_fail(err, "%s: hidden_act: expected silu, got \"%s\"", path, act);
    for (size_t i = 0; i < WZ_COUNT(off); i++)
        if (json_is_true(json_object_get(j, off[i])))
            return wz_fail(err, "%s: %s: expected false, got true", path, off[i]);
    for (size_t i = 0; i < WZ_COUNT(none); i++)
        if (!absent(json_object_get(j, none[i])))
            return wz_fail(err, "%s: %s is not supported: expected f32, bf16 or f16 weights with full attention", path,
                           none[i]);
    return 0;
}

int wz_config_hub(struct wz_config *config, const char *dir, struct wz_err *err)
{
    char *path = wz_path("%s/config.json", dir), *gen_path = wz_path("%s/generation_config.json", dir);
    json_t *j = wz_json_load(path, err), *gen = NULL;
    struct wz_config c = { .bos = -1 };
    int rc = -1;

    if (!j) goto out;
    if (!json_is_object(j)) {
        wz_fail(err, "%s: not an object", path);
        goto out;
    }
    if (hub_supported(j, path, err) < 0) goto out;
    const struct field sizes[] = {
        { "hidden_size", 1, 0, &c.dim },          { "intermediate_size", 1, 0, &c.ffn },
        { "num_hidden_layers", 1, 0, &c.layers }, { "num_attention_heads", 1, 0, &c.heads },
        { "vocab_size", 1, 0, &c.vocab },         { "max_position_embeddings", 1, 2048, &c.context },
        { "bos_token_id", -1, -1, &c.bos },
    };
    if (get_ints(j, path, sizes, WZ_COUNT(sizes), err) < 0) goto out;
    if (absent(json_object_get(j, "head_dim")) && c.dim % c.heads != 0) {
        wz_fail(err, "%s: without head_dim, hidden_size %d must be a multiple of num_attention_heads %d", path, c.dim,
                c.heads);
        goto out;
    }
    if (get_int(j, path, "num_key_value_heads", 1, c.heads, &c.kv_heads, err) < 0 ||
        get_int(j, path, "head_dim", 1, c.dim / c.heads, &c.head_dim, err) < 0 ||
        get_float(j, path, "rms_norm_eps", 1e-6f, &c.norm_eps, err) < 0 || hub_rope(&c, j, path, err) < 0 ||
        get_eos(&c, j, path, "eos_token_id", err) < 0)
        goto out;
    c.tied = json_is_true(json_object_get(j, "tie_word_embeddings"));
    if (wz_file_exists(gen_path) &&
        (!(gen = wz_json_load(gen_path, err)) || get_eos(&c, gen, gen_path, "eos_token_id", err) < 0))
        goto out;
    rc = check(&c, path, err);
out:
    json_decref(j);
    json_decref(gen);
    free(path);
    free(gen_path);
    if (rc == 0) *config = c;
    return rc;
}

static json_t *eos_json(const struct wz_config *c)
{
    if (c->n_eos <= 1) return c->n_eos ? json_integer(c->eos[0]) : json_null();
    json_t *list = json_array();
    for (int i = 0; i < c->n_eos; i++) json_array_append_new(list, json_integer(c->eos[i]));
    return list;
}

/* The shortest decimals that read back as the same float, so that 1e-05 does not become 9.99999975e-06. */
static json_t *real(float x)
{
    char text[32];

    for (int digits = 1; digits < 10; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, (double)x);
        if (strtof(text, NULL) == x) break;
    }
    return json_real(strtod(text, NULL));
}

int wz_config_save(const struct wz_config *c, const char *dir, enum wz_dtype dtype, struct wz_err *err)
{
    json_t *rope = json_null();
    json_t *bos = c->bos < 0 ? json_null() : json_integer(c->bos);
    const char *type = dtype == WZ_DT_BF16 ? "bfloat16" : dtype == WZ_DT_F16 ? "float16" : "float32";
    json_t *gen =
        json_pack("{s:b, s:O, s:o}", "_from_model_config", 1, "bos_token_id", bos, "eos_token_id", eos_json(c));

    if (c->rope == WZ_ROPE_LINEAR) /* "type" and these two keys, which old readers require and new ones accept */
        rope = json_pack("{s:s, s:o}", "type", "linear", "factor", real(c->rope_factor));
    if (c->rope == WZ_ROPE_LLAMA3)
        rope = json_pack("{s:s, s:o, s:o, s:o, s:i}", "rope_type", "llama3", "factor", real(c->rope_factor),
                         "low_freq_factor", real(c->rope_low), "high_freq_factor", real(c->rope_high),
                         "original_max_position_embeddings", c->rope_original);
    json_t *j = json_pack(
        "{s:[s], s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:o, s:o, s:o, s:s, s:b, s:b, s:b, s:o, s:o, s:s}",
        "architectures", "LlamaForCausalLM", "model_type", "llama", "hidden_size", c->dim, "intermediate_size", c->ffn,
        "num_hidden_layers", c->layers, "num_attention_heads", c->heads, "num_key_value_heads", c->kv_heads, "head_dim",
        c->head_dim, "vocab_size", c->vocab, "max_position_embeddings", c->context, "rms_norm_eps", real(c->norm_eps),
        "rope_theta", real(c->rope_theta), "rope_scaling", rope, "hidden_act", "silu", "attention_bias", 0, "mlp_bias",
        0, "tie_word_embeddings", (int)c->tied, "bos_token_id", bos, "eos_token_id", eos_json(c), "torch_dtype", type);

    char *path = wz_path("%s/config.json", dir), *gen_path = wz_path("%s/generation_config.json", dir);
    int rc = wz_json_save(gen, gen_path, err);
    if (rc == 0) rc = wz_json_save(j, path, err);
    else json_decref(j);
    free(path);
    free(gen_path);
    return rc;
}

/* ---- GGUF ------------------------------------------------------------------------------------------------- */

/* Llama 3 scaling from its divisors: the largest is the factor; low 1, high 4 and original 8192, which every model of
 * that family has, are assumed and checked against all divisors. */
static int gguf_rope(struct wz_config *c, const struct wz_tensors *set, const char *path, struct wz_err *err)
{
    const struct wz_tensor *t = wz_tensors_find(set, "rope_freqs.weight");
    const json_t *meta = wz_tensors_meta(set), *type = json_object_get(meta, "llama.rope.scaling.type");
    const char *name = absent(type) ? "none" : json_string_value(type);
    int half = c->head_dim / 2, bad = -1;

    if (name && !strcmp(name, "linear")) {
        c->rope = WZ_ROPE_LINEAR;
        if (get_float(meta, path, "llama.rope.scaling.factor", 0, &c->rope_factor, err) < 0) return -1;
    } else if (!name || strcmp(name, "none")) {
        return wz_fail(err, "%s: llama.rope.scaling.type: expected none or linear, got %s", path, name ? name : "?");
    }
    if (!t) return 0;
    if (c->rope != WZ_ROPE_PLAIN) return wz_fail(err, "%s: rope_freqs.weight together with linear scaling", path);
    if (t->dtype != WZ_DT_F32 || t->count != (size_t)half)
        return wz_fail(err, "%s: rope_freqs.weight: expected %d elements of type F32", path, half);
    float *divisor = wz_alloc((size_t)half * sizeof(float));
    float *plain = wz_alloc((size_t)half * sizeof(float));
    float *scaled = wz_alloc((size_t)half * sizeof(float));
    float largest = 1;
    wz_tensor_floats(t, 0, (size_t)half, divisor);
    for (int i = 0; i < half; i++) largest = fmaxf(largest, divisor[i]);
    wz_rope_freq(c, plain);
    if (largest > 1) {
        c->rope = WZ_ROPE_LLAMA3;
        c->rope_factor = largest;
        c->rope_low = 1;
        c->rope_high = 4;
        c->rope_original = 8192;
    }
    wz_rope_freq(c, scaled);
    for (int i = half - 1; i >= 0; i--)
        if (!(fabsf(plain[i] / scaled[i] - divisor[i]) <= 1e-4f * divisor[i])) bad = i;
    free(divisor);
    free(plain);
    free(scaled);
    if (bad < 0) return 0;
    return wz_fail(err, "%s: rope_freqs.weight element %d is not what llama3 scaling by %g from 8192 gives", path, bad,
                   (double)largest);
}

int wz_config_gguf(struct wz_config *config, const struct wz_tensors *set, const char *path, struct wz_err *err)
{
    static const char *const eos[] = { "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id" };
    const json_t *meta = wz_tensors_meta(set);
    const char *arch = json_string_value(json_object_get(meta, "general.architecture"));
    const struct wz_tensor *embed = wz_tensors_find(set, "token_embd.weight");
    struct wz_config c = { .bos = -1 };
    int rotated = 0, experts = 0;

    if (!arch || strcmp(arch, "llama"))
        return wz_fail(err, "%s: general.architecture: expected llama, got %s", path, arch ? arch : "(absent)");
    const struct field sizes[] = {
        { "llama.embedding_length", 1, 0, &c.dim },
        { "llama.feed_forward_length", 1, 0, &c.ffn },
        { "llama.block_count", 1, 0, &c.layers },
        { "llama.attention.head_count", 1, 0, &c.heads },
        { "llama.context_length", 1, 2048, &c.context },
        { "llama.expert_count", 0, 0, &experts },
        { "tokenizer.ggml.bos_token_id", 0, INT_MAX, &c.bos },
    };
    if (get_ints(meta, path, sizes, WZ_COUNT(sizes), err) < 0) return -1;
    if (experts) return wz_fail(err, "%s: mixture of experts (%d) is not supported", path, experts);
    if (c.bos == INT_MAX) c.bos = -1;
    if (get_int(meta, path, "llama.attention.head_count_kv", 1, c.heads, &c.kv_heads, err) < 0 ||
        get_int(meta, path, "llama.attention.key_length", 1, c.dim / c.heads, &c.head_dim, err) < 0 ||
        get_int(meta, path, "llama.rope.dimension_count", 1, c.head_dim, &rotated, err) < 0)
        return -1;
    if (rotated != c.head_dim)
        return wz_fail(err, "%s: llama.rope.dimension_count: expected the head size %d, got %d", path, c.head_dim,
                       rotated);
    if (get_float(meta, path, "llama.attention.layer_norm_rms_epsilon", 0, &c.norm_eps, err) < 0 ||
        get_float(meta, path, "llama.rope.freq_base", 10000, &c.rope_theta, err) < 0)
        return -1;
    if (!embed || embed->n_dims != 2 || embed->shape[0] == 0 || embed->shape[0] > LIMIT)
        return wz_fail(err, "%s: token_embd.weight [vocabulary, %d] is missing", path, c.dim);
    c.vocab = (int)embed->shape[0];
    c.tied = !wz_tensors_find(set, "output.weight");
    for (size_t i = 0; i < WZ_COUNT(eos); i++)
        if (get_eos(&c, meta, path, eos[i], err) < 0) return -1;
    if (check(&c, path, err) < 0 || gguf_rope(&c, set, path, err) < 0) return -1;
    *config = c;
    return 0;
}

void wz_stops_find(const struct wz_config *config, const struct wz_template *chat, const struct wz_tokenizer *tok,
                   struct wz_ids *stops)
{
    int ids[8], n = chat ? wz_template_stops(chat, tok, ids) : 0;

    wz_ids_append(stops, ids, n);
    wz_ids_append(stops, config->eos, config->n_eos);
    if (tok && wz_tokenizer_eos(tok) >= 0) wz_ids_add(stops, wz_tokenizer_eos(tok));
}

int wz_config_load(struct wz_config *config, const char *path, struct wz_err *err)
{
    if (wz_model_found(path, err) < 0) return -1;
    if (wz_is_dir(path)) return wz_config_hub(config, path, err);
    struct wz_tensors *set = wz_tensors_open(path, err);
    if (!set) return -1;
    int rc = wz_config_gguf(config, set, path, err);
    wz_tensors_close(set);
    return rc;
}
