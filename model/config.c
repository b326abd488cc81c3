/* config: a model's shape and switches, read from a Hugging Face config.json (old and new spellings) or a GGUF's
 * metadata, and written as config.json. What an architecture's own keys are is in arch.c.
 *
 *   rope       rope_theta, rope_scaling: null | { type or rope_type: default, linear, llama3 or yarn, ... }
 *              (transformers 4)
 *              rope_parameters: { rope_theta, rope_type, ... }     (transformers 5; rope_scaling speaks before it)
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
    if (c->layers > WZ_MOST_LAYERS)
        return wz_fail(err, "%s: expected at most %d layers, got %d", path, WZ_MOST_LAYERS, c->layers);
    for (int i = 0; i < c->n_eos; i++)
        if (c->eos[i] >= c->vocab)
            return wz_fail(err, "%s: eos_token_id %d is outside of the vocabulary of %d", path, c->eos[i], c->vocab);
    if (c->bos >= c->vocab)
        return wz_fail(err, "%s: bos_token_id %d is outside of the vocabulary of %d", path, c->bos, c->vocab);
    if ((c->rope == WZ_ROPE_LLAMA3 || c->rope == WZ_ROPE_YARN) && c->rope_high <= c->rope_low)
        return wz_fail(err, "%s: expected high_freq_factor > low_freq_factor, and beta_fast > beta_slow", path);
    return 0;
}

/* ---- Hugging Face folders --------------------------------------------------------------------------------- */

/* original: original_max_position_embeddings where r does not say, -1: it has to. */
static int hub_yarn(struct wz_config *c, const json_t *r, int original, const char *path, struct wz_err *err)
{
    const json_t *whole = json_object_get(r, "truncate");
    float scale = 0, all = 0;

    c->rope = WZ_ROPE_YARN;
    if (!absent(whole) && !json_is_true(whole)) return wz_fail(err, "%s: truncate: expected true", path);
    if (get_float(r, path, "factor", 0, &c->rope_factor, err) < 0 ||
        get_float(r, path, "beta_slow", 1, &c->rope_low, err) < 0 ||
        get_float(r, path, "beta_fast", 32, &c->rope_high, err) < 0 ||
        get_float(r, path, "mscale", 1, &scale, err) < 0 || get_float(r, path, "mscale_all_dim", 1, &all, err) < 0 ||
        get_int(r, path, "original_max_position_embeddings", 1, original, &c->rope_original, err) < 0)
        return -1;
    const float grown = c->rope_factor > 1 ? 0.1f * logf(c->rope_factor) : 0;
    const bool both = !absent(json_object_get(r, "mscale")) && !absent(json_object_get(r, "mscale_all_dim"));
    return get_float(r, path, "attention_factor", both ? (1 + scale * grown) / (1 + all * grown) : 1 + grown,
                     &c->rope_attention, err);
}

static int hub_rope(struct wz_config *c, const json_t *j, const char *path, struct wz_err *err)
{
    static const char known[] = "rope_theta rope_type type factor low_freq_factor high_freq_factor "
                                "original_max_position_embeddings beta_fast beta_slow attention_factor mscale "
                                "mscale_all_dim truncate max_position_embeddings";
    const json_t *both = json_object_get(j, "rope_parameters"), *r = json_object_get(j, "rope_scaling"), *value;
    const json_t *local = json_object_get(both, "sliding_attention"), *full = json_object_get(both, "full_attention");
    if (wz_arch_of(c)->local > 0 && json_object_size(both) && !local && !full)
        return wz_fail(err, "%s: rope_parameters: expected full_attention and sliding_attention in it", path);
    if (wz_arch_of(c)->local > 0 && !absent(both) && !absent(r))
        return wz_fail(err, "%s: rope_scaling: expected it without rope_parameters", path);
    if (absent(r) || (json_is_object(r) && !json_object_size(r))) r = local || full ? full : both;
    if (wz_arch_of(c)->local > 0 && json_is_object(local)) {
        const char *kind = json_string_value(json_object_get(local, "rope_type"));
        if (kind && strcmp(kind, "default"))
            return wz_fail(err, "%s: rope_parameters: sliding_attention: expected rope_type default, got %s", path,
                           kind);
        if (get_float(local, path, "rope_theta", wz_arch_of(c)->local, &c->rope_local, err) < 0) return -1;
    }
    bool inside = !absent(json_object_get(r, "rope_theta"));
    const char *key;

    if (get_float(inside ? r : j, path, "rope_theta", wz_arch_of(c)->theta, &c->rope_theta, err) < 0) return -1;
    if (absent(r)) return 0;
    if (!json_is_object(r)) return wz_fail(err, "%s: rope_scaling: expected an object or null", path);

    const json_t *type = json_object_get(r, "rope_type");
    if (absent(type)) type = json_object_get(r, "type");
    const char *name = absent(type) ? "default" : json_string_value(type);
    if (!name) return wz_fail(err, "%s: rope_type: expected a string", path);
    json_object_foreach((json_t *)(uintptr_t)r, key, value)
    {
        if (!wz_word_in(known, key) && !absent(value))
            return wz_fail(err, "%s: rope_scaling: %s is not known: expected one of %s", path, key, known);
    }
    if (!strcmp(name, "default")) return 0;
    const int original = absent(json_object_get(j, "max_position_embeddings")) ? -1 : c->context;
    if (!strcmp(name, "yarn")) return hub_yarn(c, r, original, path, err);
    if (strcmp(name, "linear") && strcmp(name, "llama3"))
        return wz_fail(err, "%s: rope_type: expected default, linear, llama3 or yarn, got \"%s\"", path, name);
    if (get_float(r, path, "factor", 0, &c->rope_factor, err) < 0) return -1;
    c->rope = WZ_ROPE_LINEAR;
    if (!strcmp(name, "linear")) return 0;
    c->rope = WZ_ROPE_LLAMA3;
    if (get_float(r, path, "low_freq_factor", 0, &c->rope_low, err) < 0 ||
        get_float(r, path, "high_freq_factor", 0, &c->rope_high, err) < 0)
        return -1;
    return get_int(r, path, "original_max_position_embeddings", 1, original, &c->rope_original, err);
}

/* A soft cap: absent, as the architecture has it; null: none. */
static int hub_cap(const json_t *j, const char *path, const char *key, const struct wz_config *c, float other,
                   float *out, struct wz_err *err)
{
    if (!wz_arch_takes(c, key)) return 0;
    *out = other;
    if (!json_object_get(j, key)) return 0;
    return wz_arch_key(c, j, key) ? get_float(j, path, key, 0, out, err) : (*out = 0, 0);
}

/* Which layers have a window, and how long it is. */
static int hub_windows(struct wz_config *c, const json_t *j, const char *path, struct wz_err *err)
{
    const struct wz_arch *a = wz_arch_of(c);
    const json_t *types = wz_arch_key(c, j, "layer_types");
    const bool used = !wz_arch_takes(c, "use_sliding_window") || json_is_true(json_object_get(j, "use_sliding_window"));
    int pattern = a->pattern, from = 28, window = 0;

    if (used && wz_arch_takes(c, "sliding_window") &&
        (wz_arch_key(c, j, "sliding_window") || !json_object_get(j, "sliding_window")) &&
        get_int(j, path, "sliding_window", 1, a->window, &window, err) < 0)
        return -1;
    if (wz_arch_takes(c, "sliding_window_pattern") && /* not _sliding_window_pattern, which layer_types repeat */
        get_int(j, path, "sliding_window_pattern", 1, pattern, &pattern, err) < 0)
        return -1;
    if (wz_arch_takes(c, "max_window_layers") && get_int(j, path, "max_window_layers", 0, from, &from, err) < 0)
        return -1;
    if (types && json_array_size(types) != (size_t)c->layers)
        return wz_fail(err, "%s: layer_types: expected a list of %d", path, c->layers);
    for (int l = 0; l < c->layers; l++) {
        const char *type = json_string_value(json_array_get(types, (size_t)l));
        bool local = type && !strcmp(type, "sliding_attention");
        if (types && (!type || (!local && strcmp(type, "full_attention")) || (local && !window)))
            return wz_fail(err, "%s: layer_types: expected full_attention%s, got %s for layer %d", path,
                           window ? " or sliding_attention" : " without a window", type ? type : "?", l);
        if (!types && wz_arch_takes(c, "no_rope_layers")) local = c->unrotated[l];
        else if (!types && wz_arch_takes(c, "max_window_layers")) local = l >= from;
        else if (!types) local = !pattern || (l + 1) % pattern;
        c->local[l] = window && local;
        if (c->local[l]) c->window = window;
    }
    if (a->local > 0 && c->window && !(c->rope_local > 0))
        return get_float(j, path, "rope_local_base_freq", a->local, &c->rope_local, err);
    if (!c->window) c->rope_local = 0;
    return 0;
}

/* The numbers and lists that are an architecture's own. */
static int hub_switches(struct wz_config *c, const json_t *j, const char *path, struct wz_err *err)
{
    float logits = 0;
    const struct {
        const char *key;
        float other, *out;
    } scales[] = {
        { "embedding_multiplier", 1, &c->embed_scale },
        { "residual_multiplier", 1, &c->residual_scale },
        { "attention_multiplier", 1, &c->score_scale },
        { "logits_scaling", 1, &logits },
    };
    const struct wz_arch *a = wz_arch_of(c);
    const json_t *rotated = wz_arch_key(c, j, "no_rope_layers"), *act = wz_arch_key(c, j, "hidden_activation");
    float squared = 0;
    int every = 4;

    /* "gelu" is the exact one but in hidden_act, where it is an old name of the one by tanh */
    const char *known = !a->gelu ? "silu" : absent(act) ? "gelu_pytorch_tanh gelu" : "gelu_pytorch_tanh";
    if (absent(act)) act = json_object_get(j, "hidden_act");
    if (!absent(act) && !wz_word_in(known, json_is_string(act) ? json_string_value(act) : ""))
        return wz_fail(err, "%s: hidden_act: expected %s, got \"%s\"", path, a->gelu ? "gelu_pytorch_tanh" : "silu",
                       json_is_string(act) ? json_string_value(act) : "?");
    for (size_t i = 0; i < WZ_COUNT(scales); i++)
        if (wz_arch_takes(c, scales[i].key) &&
            get_float(j, path, scales[i].key, scales[i].other, scales[i].out, err) < 0)
            return -1;
    if (logits > 0) c->logit_scale = 1 / logits;
    if (wz_arch_takes(c, "query_pre_attn_scalar")) {
        if (get_float(j, path, "query_pre_attn_scalar", 256, &squared, err) < 0) return -1;
        if (squared != (float)c->head_dim) c->score_scale = 1 / sqrtf(squared);
    }
    if (hub_cap(j, path, "attn_logit_softcapping", c, a->caps[0], &c->score_cap, err) < 0 ||
        hub_cap(j, path, "final_logit_softcapping", c, a->caps[1], &c->logit_cap, err) < 0)
        return -1;
    wz_arch_defaults(c);
    if (!wz_arch_takes(c, "no_rope_layers")) return 0;
    if (get_int(j, path, "no_rope_layer_interval", 1, 4, &every, err) < 0) return -1;
    if (rotated && (!json_is_array(rotated) || json_array_size(rotated) < (size_t)c->layers))
        return wz_fail(err, "%s: no_rope_layers: expected a list of 0 or 1 for each of %d layers", path, c->layers);
    for (int l = 0; l < c->layers; l++)
        c->unrotated[l] = rotated ? !json_integer_value(json_array_get(rotated, (size_t)l)) : (l + 1) % every == 0;
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
    if (wz_arch_hub(&c.arch, j, path, err) < 0) goto out;
    const struct wz_arch *a = wz_arch_of(&c);
    const struct field sizes[] = {
        { "hidden_size", 1, 0, &c.dim },          { "intermediate_size", 1, 0, &c.ffn },
        { "num_hidden_layers", 1, 0, &c.layers }, { "num_attention_heads", 1, 0, &c.heads },
        { "vocab_size", 1, 0, &c.vocab },         { "max_position_embeddings", 1, 2048, &c.context },
        { "bos_token_id", -1, -1, &c.bos },
    };
    if (get_ints(j, path, sizes, WZ_COUNT(sizes), err) < 0) goto out;
    if (absent(json_object_get(j, "head_dim")) && !a->head_dim && c.dim % c.heads != 0) {
        wz_fail(err, "%s: without head_dim, hidden_size %d must be a multiple of num_attention_heads %d", path, c.dim,
                c.heads);
        goto out;
    }
    const int kv_heads = a->kv_heads && !json_object_get(j, "num_key_value_heads") ? a->kv_heads : c.heads;
    if (get_int(j, path, "num_key_value_heads", 1, kv_heads, &c.kv_heads, err) < 0 ||
        get_int(j, path, "head_dim", 1, a->head_dim ? a->head_dim : c.dim / c.heads, &c.head_dim, err) < 0 ||
        get_float(j, path, "rms_norm_eps", a->eps > 0 ? a->eps : 1e-6f, &c.norm_eps, err) < 0 ||
        hub_rope(&c, j, path, err) < 0 || get_eos(&c, j, path, "eos_token_id", err) < 0)
        goto out;
    const json_t *tied = json_object_get(j, "tie_word_embeddings");
    c.tied = absent(tied) ? a->tied : json_is_true(tied);
    if (wz_file_exists(gen_path) &&
        (!(gen = wz_json_load(gen_path, err)) || get_eos(&c, gen, gen_path, "eos_token_id", err) < 0))
        goto out;
    rc = check(&c, path, err) < 0 ? -1 : hub_switches(&c, j, path, err);
    if (rc == 0) rc = hub_windows(&c, j, path, err);
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

static void switches_save(const struct wz_config *c, json_t *j)
{
    const struct {
        const char *key;
        float value;
    } scales[] = {
        { "embedding_multiplier", c->embed_scale },
        { "residual_multiplier", c->residual_scale },
        { "attention_multiplier", c->score_scale },
        { "logits_scaling", 1 / c->logit_scale },
    };

    for (size_t i = 0; i < WZ_COUNT(scales); i++)
        if (wz_arch_takes(c, scales[i].key)) json_object_set_new(j, scales[i].key, real(scales[i].value));
    if (c->arch) json_object_set_new(j, "pad_token_id", json_null()); /* some have one where none is said */
    if (wz_arch_takes(c, "query_pre_attn_scalar"))
        json_object_set_new(
            j, "query_pre_attn_scalar",
            json_integer(c->score_scale > 0 ? lrintf(1 / (c->score_scale * c->score_scale)) : c->head_dim));
    if (wz_arch_takes(c, "hidden_activation"))
        json_object_set_new(j, "hidden_activation", json_string("gelu_pytorch_tanh"));
    if (wz_arch_takes(c, "attn_logit_softcapping"))
        json_object_set_new(j, "attn_logit_softcapping", c->score_cap > 0 ? real(c->score_cap) : json_null());
    if (wz_arch_takes(c, "final_logit_softcapping"))
        json_object_set_new(j, "final_logit_softcapping", c->logit_cap > 0 ? real(c->logit_cap) : json_null());
    if (wz_arch_takes(c, "rope_local_base_freq"))
        json_object_set_new(j, "rope_local_base_freq", real(c->rope_local > 0 ? c->rope_local : wz_arch_of(c)->local));
    if (wz_arch_takes(c, "sliding_window"))
        json_object_set_new(j, "sliding_window", c->window ? json_integer(c->window) : json_null());
    if (wz_arch_takes(c, "use_sliding_window"))
        json_object_set_new(j, "use_sliding_window", json_boolean(c->window > 0));
    if (wz_arch_takes(c, "layer_types")) {
        json_t *types = json_array();
        for (int l = 0; l < c->layers; l++)
            json_array_append_new(types, json_string(c->local[l] ? "sliding_attention" : "full_attention"));
        json_object_set_new(j, "layer_types", types);
    }
    if (!wz_arch_takes(c, "no_rope_layers")) return;
    json_t *rotated = json_array();
    for (int l = 0; l < c->layers; l++) json_array_append_new(rotated, json_integer(!c->unrotated[l]));
    json_object_set_new(j, "no_rope_layers", rotated);
}

int wz_config_save(const struct wz_config *c, const char *dir, enum wz_dtype dtype, const json_t *more,
                   struct wz_err *err)
{
    const struct wz_arch *a = wz_arch_of(c);
    json_t *rope = json_null();
    json_t *bos = c->bos < 0 ? json_null() : json_integer(c->bos);
    const char *type = dtype == WZ_DT_BF16 ? "bfloat16" : dtype == WZ_DT_F16 ? "float16" : "float32";
    json_t *gen =
        json_pack("{s:b, s:O, s:o}", "_from_model_config", 1, "bos_token_id", bos, "eos_token_id", eos_json(c));

    if (c->rope == WZ_ROPE_LINEAR) /* "type" and these two keys, which old readers require and new ones accept */
        rope = json_pack("{s:s, s:o}", c->arch ? "rope_type" : "type", "linear", "factor", real(c->rope_factor));
    if (c->rope == WZ_ROPE_YARN)
        rope = json_pack("{s:s, s:o, s:o, s:o, s:o, s:i}", "rope_type", "yarn", "factor", real(c->rope_factor),
                         "beta_slow", real(c->rope_low), "beta_fast", real(c->rope_high), "attention_factor",
                         real(c->rope_attention), "original_max_position_embeddings", c->rope_original);
    if (c->rope == WZ_ROPE_LLAMA3)
        rope = json_pack("{s:s, s:o, s:o, s:o, s:i}", "rope_type", "llama3", "factor", real(c->rope_factor),
                         "low_freq_factor", real(c->rope_low), "high_freq_factor", real(c->rope_high),
                         "original_max_position_embeddings", c->rope_original);
    json_t *j = json_pack(
        "{s:[s], s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:o, s:o, s:o, s:s, s:b, s:b, s:b, s:o, s:o, s:s}",
        "architectures", a->name, "model_type", a->type, "hidden_size", c->dim, "intermediate_size", c->ffn,
        "num_hidden_layers", c->layers, "num_attention_heads", c->heads, "num_key_value_heads", c->kv_heads, "head_dim",
        c->head_dim, "vocab_size", c->vocab, "max_position_embeddings", c->context, "rms_norm_eps", real(c->norm_eps),
        "rope_theta", real(c->rope_theta), "rope_scaling", rope, "hidden_act", a->gelu ? "gelu_pytorch_tanh" : "silu",
        "attention_bias", 0, "mlp_bias", 0, "tie_word_embeddings", (int)c->tied, "bos_token_id", bos, "eos_token_id",
        eos_json(c), "torch_dtype", type);
    switches_save(c, j);
    json_object_update(j, (json_t *)(uintptr_t)more);
    if (json_is_integer(json_object_get(more, "pad_token_id")))
        json_object_set(gen, "pad_token_id", json_object_get(more, "pad_token_id"));

    char *path = wz_path("%s/config.json", dir), *gen_path = wz_path("%s/generation_config.json", dir);
    int rc = wz_json_save(gen, gen_path, err);
    if (rc == 0) rc = wz_json_save(j, path, err);
    else json_decref(j);
    free(path);
    free(gen_path);
    return rc;
}

/* ---- GGUF ------------------------------------------------------------------------------------------------- */

/* A key of the architecture: "llama.rope.freq_base" by its part behind the first dot. */
static const char *gguf_name(const struct wz_config *c, const char *key, char name[static 96])
{
    snprintf(name, 96, "%s.%s", wz_arch_of(c)->gguf, key);
    return name;
}

static const json_t *gguf_key(const struct wz_config *c, const json_t *meta, const char *key)
{
    char name[96];

    return json_object_get(meta, gguf_name(c, key, name));
}

static int gguf_float(const struct wz_config *c, const json_t *meta, const char *path, const char *key, float other,
                      float *out, struct wz_err *err)
{
    char name[96];

    return get_float(meta, path, gguf_name(c, key, name), other, out, err);
}

static int gguf_int(const struct wz_config *c, const json_t *meta, const char *path, const char *key, int low,
                    int other, int *out, struct wz_err *err)
{
    char name[96];

    return get_int(meta, path, gguf_name(c, key, name), low, other, out, err);
}

/* Llama 3 scaling from its divisors: the largest is the factor; low 1, high 4 and original 8192, which every model of
 * that family has, are assumed and checked against all divisors. */
static int gguf_rope(struct wz_config *c, const struct wz_tensors *set, const char *path, struct wz_err *err)
{
    const struct wz_tensor *t = wz_tensors_find(set, "rope_freqs.weight");
    const json_t *meta = wz_tensors_meta(set), *type = gguf_key(c, meta, "rope.scaling.type");
    const char *name = absent(type) ? "none" : json_string_value(type);
    int half = c->head_dim / 2, bad = -1;

    if (name && !strcmp(name, "linear")) {
        c->rope = WZ_ROPE_LINEAR;
        if (gguf_float(c, meta, path, "rope.scaling.factor", 0, &c->rope_factor, err) < 0) return -1;
    } else if (name && !strcmp(name, "yarn")) {
        c->rope = WZ_ROPE_YARN;
        if (gguf_float(c, meta, path, "rope.scaling.factor", 0, &c->rope_factor, err) < 0 ||
            gguf_int(c, meta, path, "rope.scaling.original_context_length", 1, -1, &c->rope_original, err) < 0)
            return -1;
        c->rope_low = 1;
        c->rope_high = 32;
        c->rope_attention = c->rope_factor > 1 ? 1 + 0.1f * logf(c->rope_factor) : 1;
    } else if (!name || strcmp(name, "none")) {
        return wz_fail(err, "%s: rope.scaling.type: expected none, linear or yarn, got %s", path, name ? name : "?");
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
    wz_rope_freq(c, false, plain);
    if (largest > 1) {
        c->rope = WZ_ROPE_LLAMA3;
        c->rope_factor = largest;
        c->rope_low = 1;
        c->rope_high = 4;
        c->rope_original = 8192;
    }
    wz_rope_freq(c, false, scaled);
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
    const struct wz_tensor *embed = wz_tensors_find(set, "token_embd.weight");
    struct wz_config c = { .bos = -1 };
    int rotated = 0, values = 0;
    float logits = 0;

    if (wz_arch_gguf(&c.arch, meta, path, err) < 0) return -1;
    const struct {
        const char *key;
        int low, other, *out;
    } sizes[] = {
        { "embedding_length", 1, 0, &c.dim },      { "feed_forward_length", 1, 0, &c.ffn },
        { "block_count", 1, 0, &c.layers },        { "attention.head_count", 1, 0, &c.heads },
        { "context_length", 1, 2048, &c.context }, { "attention.sliding_window", 0, 0, &c.window },
    };
    const struct {
        const char *key;
        float *out;
    } scales[] = {
        { "embedding_scale", &c.embed_scale },       { "residual_scale", &c.residual_scale },
        { "attention.scale", &c.score_scale },       { "attn_logit_softcapping", &c.score_cap },
        { "final_logit_softcapping", &c.logit_cap }, { "logit_scale", &logits },
    };
    for (size_t i = 0; i < WZ_COUNT(sizes); i++)
        if (gguf_int(&c, meta, path, sizes[i].key, sizes[i].low, sizes[i].other, sizes[i].out, err) < 0) return -1;
    for (size_t i = 0; i < WZ_COUNT(scales); i++)
        if (gguf_key(&c, meta, scales[i].key) && gguf_float(&c, meta, path, scales[i].key, 0, scales[i].out, err) < 0)
            return -1;
    if (logits > 0) c.logit_scale = 1 / logits;
    if (get_int(meta, path, "tokenizer.ggml.bos_token_id", 0, INT_MAX, &c.bos, err) < 0) return -1;
    if (c.bos == INT_MAX) c.bos = -1;
    if (gguf_int(&c, meta, path, "attention.head_count_kv", 1, c.heads, &c.kv_heads, err) < 0 ||
        gguf_int(&c, meta, path, "attention.key_length", 1, c.dim / c.heads, &c.head_dim, err) < 0 ||
        gguf_int(&c, meta, path, "attention.value_length", 1, c.head_dim, &values, err) < 0 ||
        gguf_int(&c, meta, path, "rope.dimension_count", 1, c.head_dim, &rotated, err) < 0)
        return -1;
    if (rotated != c.head_dim || values != c.head_dim)
        return wz_fail(err,
                       "%s: rope.dimension_count and attention.value_length: expected the head size %d, got %d and %d",
                       path, c.head_dim, rotated, values);
    if (gguf_float(&c, meta, path, "attention.layer_norm_rms_epsilon", 0, &c.norm_eps, err) < 0 ||
        gguf_float(&c, meta, path, "rope.freq_base", 10000, &c.rope_theta, err) < 0)
        return -1;
    if (!embed || embed->n_dims != 2 || embed->shape[0] == 0 || embed->shape[0] > LIMIT)
        return wz_fail(err, "%s: token_embd.weight [vocabulary, %d] is missing", path, c.dim);
    c.vocab = (int)embed->shape[0];
    c.tied = !wz_tensors_find(set, "output.weight");
    for (size_t i = 0; i < WZ_COUNT(eos); i++)
        if (get_eos(&c, meta, path, eos[i], err) < 0) return -1;
    if (check(&c, path, err) < 0 || gguf_rope(&c, set, path, err) < 0) return -1;
    /* what SmolLM3 and Gemma are; a GGUF does not say */
    for (int l = 0; l < c.layers && wz_arch_takes(&c, "no_rope_layers"); l++) c.unrotated[l] = (l + 1) % 4 == 0;
    const struct wz_arch *a = wz_arch_of(&c);
    for (int l = 0; l < c.layers && c.window; l++) c.local[l] = !a->pattern || (l + 1) % a->pattern;
    if (c.window && a->local > 0 && gguf_float(&c, meta, path, "rope.freq_base_swa", a->local, &c.rope_local, err) < 0)
        return -1;
    if ((c.arch == WZ_GEMMA2 && c.layers == 46) || (c.arch == WZ_GEMMA3 && c.layers == 62)) /* the 27B */
        c.score_scale = 1 / sqrtf((float)(c.dim / c.heads));
    wz_arch_defaults(&c);
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
    char *at = wz_base_at(path, err);
    int rc = at && wz_is_dir(at) ? wz_config_hub(config, at, err) : -1;
    struct wz_tensors *set = at && !wz_is_dir(at) ? wz_tensors_open(at, err) : NULL;

    if (set) rc = wz_config_gguf(config, set, at, err);
    wz_tensors_close(set);
    free(at);
    return rc;
}
