/* arch: the table of architectures, and the keys of config.json that are theirs.
 *
 * A switch that is read wrongly crashes nothing, the model is just worse. So a key that nobody here knows is refused by
 * name, unless its value is null or false, which turns something off. */
#include "model/inner.h"

#include <stdlib.h>
#include <string.h>

const struct wz_arch wz_archs[] = {
    [WZ_LLAMA] = { .type = "llama", .name = "LlamaForCausalLM", .gguf = "llama", .permuted = true, .theta = 10000 },
    [WZ_MISTRAL] = { .type = "mistral",
                     .name = "MistralForCausalLM",
                     .keys = "sliding_window",
                     .window = 4096,
                     .permuted = true,
                     .kv_heads = 8,
                     .theta = 10000 },
    [WZ_QWEN2] = { .type = "qwen2",
                   .name = "Qwen2ForCausalLM",
                   .gguf = "qwen2",
                   .keys = "use_sliding_window sliding_window max_window_layers layer_types",
                   .qkv_bias = true,
                   .kv_heads = 32,
                   .theta = 10000 },
    [WZ_QWEN3] = { .type = "qwen3",
                   .name = "Qwen3ForCausalLM",
                   .gguf = "qwen3",
                   .keys = "use_sliding_window sliding_window max_window_layers layer_types",
                   .qk_norm = WZ_QK_HEAD,
                   .head_dim = 128,
                   .kv_heads = 32,
                   .theta = 10000 },
    [WZ_GRANITE] = { .type = "granite",
                     .name = "GraniteForCausalLM",
                     .gguf = "granite",
                     .keys = "embedding_multiplier residual_multiplier attention_multiplier logits_scaling",
                     .permuted = true,
                     .theta = 10000 },
    [WZ_OLMO2] = { .type = "olmo2",
                   .name = "Olmo2ForCausalLM",
                   .gguf = "olmo2",
                   .norms = WZ_NORMS_AFTER,
                   .qk_norm = WZ_QK_ALL,
                   .theta = 10000,
                   .eps = 1e-5f },
    [WZ_SMOLLM3] = { .type = "smollm3",
                     .name = "SmolLM3ForCausalLM",
                     .gguf = "smollm3",
                     .keys =
                         "no_rope_layers no_rope_layer_interval use_sliding_window sliding_window max_window_layers "
                         "layer_types",
                     .permuted = true,
                     .tied = true,
                     .kv_heads = 4,
                     .theta = 2000000 },
    [WZ_GEMMA] = { .type = "gemma",
                   .name = "GemmaForCausalLM",
                   .gguf = "gemma",
                   .keys = "hidden_activation",
                   .gelu = true,
                   .one = true,
                   .root = true,
                   .tied = true,
                   .head_dim = 256,
                   .kv_heads = 16,
                   .theta = 10000 },
    [WZ_GEMMA2] = { .type = "gemma2",
                    .name = "Gemma2ForCausalLM",
                    .gguf = "gemma2",
                    .keys = "hidden_activation query_pre_attn_scalar sliding_window layer_types attn_logit_softcapping "
                            "final_logit_softcapping",
                    .norms = WZ_NORMS_BOTH,
                    .gelu = true,
                    .one = true,
                    .root = true,
                    .pattern = 2,
                    .window = 4096,
                    .caps = { 50, 30 },
                    .tied = true,
                    .head_dim = 256,
                    .kv_heads = 4,
                    .theta = 10000 },
    [WZ_GEMMA3] = { .type = "gemma3_text",
                    .name = "Gemma3ForCausalLM",
                    .gguf = "gemma3",
                    .keys = "hidden_activation query_pre_attn_scalar sliding_window layer_types "
                            "final_logit_softcapping rope_local_base_freq sliding_window_pattern "
                            "_sliding_window_pattern",
                    .norms = WZ_NORMS_BOTH,
                    .qk_norm = WZ_QK_HEAD,
                    .gelu = true,
                    .one = true,
                    .root = true,
                    .pattern = 6,
                    .window = 4096,
                    .local = 10000,
                    .tied = true,
                    .head_dim = 256,
                    .kv_heads = 4,
                    .theta = 1000000 },
    { .type = NULL },
};

/* What every row reads, and what changes no mathematics: names, versions, training, how text is generated. */
static const char common[] =
    "architectures model_type hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "head_dim vocab_size max_position_embeddings bos_token_id eos_token_id rms_norm_eps rope_theta rope_scaling "
    "rope_parameters hidden_act tie_word_embeddings";
const char wz_config_kept[] = "pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id use_cache "
                              "initializer_range attention_dropout hidden_dropout embd_pdrop resid_pdrop";
static const char harmless[] =
    "_name_or_path transformers_version torch_dtype dtype classifier_dropout pretraining_tp decoder_start_token_id "
    "cache_implementation return_dict output_attentions output_hidden_states return_dict_in_generate "
    "torchscript is_decoder is_llama_config id2label label2id problem_type prefix "
    "task_specific_params finetuning_task tokenizer_class auto_map attn_implementation _attn_implementation "
    "_attn_implementation_autoset _attn_implementation_internal transformers.js_config unsloth_version unsloth_fixed "
    "model_name gradient_checkpointing max_length min_length do_sample num_beams num_beam_groups temperature top_k "
    "top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size bad_words_ids num_return_sequences "
    "early_stopping diversity_penalty encoder_no_repeat_ngram_size forced_bos_token_id forced_eos_token_id "
    "remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens output_scores "
    "chunk_size_feed_forward pruned_heads bos_token eos_token pad_token";

static const char gguf_keys[] =
    "embedding_length feed_forward_length block_count attention.head_count attention.head_count_kv context_length "
    "attention.key_length attention.value_length rope.dimension_count attention.layer_norm_rms_epsilon rope.freq_base "
    "rope.scaling.type rope.scaling.factor rope.scaling.original_context_length rope.scaling.finetuned embedding_scale "
    "residual_scale attention.scale logit_scale vocab_size tensor_data_layout attention.sliding_window "
    "attn_logit_softcapping final_logit_softcapping rope.freq_base_swa";

bool wz_word_in(const char *list, const char *word)
{
    size_t n = strlen(word);

    for (const char *at = n ? list : NULL; at && (at = strstr(at, word)); at += n)
        if ((at == list || at[-1] == ' ') && (at[n] == ' ' || !at[n])) return true;
    return false;
}

int wz_arch_hub(int *arch, const json_t *j, const char *path, struct wz_err *err)
{
    const char *name = json_string_value(json_array_get(json_object_get(j, "architectures"), 0)), *key;
    const char *type = json_string_value(json_object_get(j, "model_type"));
    struct wz_buf known = { 0 };
    const json_t *value;

    for (*arch = 0; wz_archs[*arch].type; ++*arch)
        if (name ? !strcmp(name, wz_archs[*arch].name) : type && !strcmp(type, wz_archs[*arch].type)) break;
    if (!wz_archs[*arch].type) {
        for (int i = 0; wz_archs[i].type; i++) wz_buf_printf(&known, "%s%s", i ? ", " : "", wz_archs[i].name);
        wz_fail(err, "%s: architectures: expected one of %s, got %s", path, known.data,
                name   ? name
                : type ? type
                       : "nothing");
        wz_buf_finish(&known);
        return -1;
    }
    if (name && type && strcmp(type, wz_archs[*arch].type) != 0)
        return wz_fail(err, "%s: model_type: expected %s, which is %s, got %s", path, wz_archs[*arch].type, name, type);
    json_object_foreach((json_t *)(uintptr_t)j, key, value)
    {
        if (json_is_null(value) || json_is_false(value) || wz_word_in(common, key) || wz_word_in(harmless, key) ||
            wz_word_in(wz_config_kept, key) || wz_word_in(wz_archs[*arch].keys, key))
            continue;
        char *text = json_dumps(value, JSON_ENCODE_ANY);
        wz_fail(err,
                "%s: %s: %.60s is not known for %s, and might change what the model computes: expected it to be "
                "absent, null or false",
                path, key, text ? text : "?", wz_archs[*arch].name);
        free(text);
        return -1;
    }
    return 0;
}

/* Refuses keys of the architecture that nobody here reads, unless they are 0 or false. */
static int gguf_known(const json_t *meta, const char *name, const char *path, struct wz_err *err)
{
    const char *key;
    const json_t *value;

    json_object_foreach((json_t *)(uintptr_t)meta, key, value)
    {
        if (strncmp(key, name, strlen(name)) || key[strlen(name)] != '.') continue;
        const bool causal = !strcmp(key + strlen(name) + 1, "attention.causal");
        if (wz_word_in(gguf_keys, key + strlen(name) + 1) || (causal ? json_is_true(value) : json_is_false(value)))
            continue;
        if (json_is_number(value) && json_number_value(value) == 0) continue;
        return wz_fail(err, "%s: %s is not known, and might change what the model computes", path, key);
    }
    return 0;
}

int wz_arch_gguf(int *arch, const json_t *meta, const char *path, struct wz_err *err)
{
    const char *name = json_string_value(json_object_get(meta, "general.architecture"));
    struct wz_buf known = { 0 };

    for (*arch = 0; wz_archs[*arch].type; ++*arch)
        if (name && wz_archs[*arch].gguf && !strcmp(name, wz_archs[*arch].gguf))
            return gguf_known(meta, name, path, err);
    for (int i = 0; wz_archs[i].type; i++)
        if (wz_archs[i].gguf) wz_buf_printf(&known, "%s%s", i ? ", " : "", wz_archs[i].gguf);
    wz_fail(err, "%s: general.architecture: expected one of %s, got %s", path, known.data, name ? name : "(absent)");
    wz_buf_finish(&known);
    return -1;
}

void wz_arch_defaults(struct wz_config *c)
{
    if (wz_arch_of(c)->root) c->embed_scale = sqrtf((float)c->dim);
}

bool wz_arch_takes(const struct wz_config *c, const char *key) { return wz_word_in(wz_arch_of(c)->keys, key); }

const json_t *wz_arch_key(const struct wz_config *c, const json_t *j, const char *key)
{
    const json_t *value = wz_arch_takes(c, key) ? json_object_get(j, key) : NULL;

    return json_is_null(value) ? NULL : value;
}
