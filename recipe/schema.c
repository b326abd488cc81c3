/* Every key of a recipe, once: its place in the struct, its default and its range. Each list below is expanded twice,
 * to libcyaml's fields and to our rules:
 *
 *     TEXT(struct, key, default, want)   INT / SEED / REAL(struct, key, default, range)
 *     MAP(struct, key, keys)             LIST(struct, key, count, keys, at most)
 *
 * The defaults of learning are the paper's where it gives them (kl_coef, clip_eps, alpha, lambda, gamma, lr, batch,
 * max_tokens). */
#include "recipe/schema.h"

#include "recipe/recipe.h"

/* Quoted when saved: a plain null would come back as no value. */
#define FIELD_TEXT(S, key, fallback_, want_) \
    CYAML_FIELD_STRING_PTR(#key, CYAML_FLAG_POINTER | CYAML_FLAG_SCALAR_QUOTE_DOUBLE, S, key, 0, CYAML_UNLIMITED),
#define FIELD_INT(S, key, fallback_, want_)  CYAML_FIELD_INT(#key, CYAML_FLAG_DEFAULT, S, key),
#define FIELD_SEED(S, key, fallback_, want_) CYAML_FIELD_UINT(#key, CYAML_FLAG_DEFAULT, S, key),
#define FIELD_REAL(S, key, fallback_, want_) CYAML_FIELD_FLOAT(#key, CYAML_FLAG_DEFAULT, S, key),
#define FIELD_MAP(S, key, keys_)             CYAML_FIELD_MAPPING(#key, CYAML_FLAG_DEFAULT, S, key, keys_##_fields),
#define FIELD_LIST(S, key, count, keys_, most) \
    CYAML_FIELD_SEQUENCE_COUNT(#key, CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, S, key, count, &keys_##_value, 0, most),

#define RULE_TEXT(S, key, fallback_, want_)   { .fallback = fallback_, .want = want_ },
#define RULE_INT(S, key, fallback_, want_)    { .fallback = fallback_, .want = want_ },
#define RULE_SEED(S, key, fallback_, want_)   { .fallback = fallback_, .want = want_ },
#define RULE_REAL(S, key, fallback_, want_)   { .fallback = fallback_, .want = want_ },
#define RULE_MAP(S, key, keys_)               { .inside = &keys_##_keys },
#define RULE_LIST(S, key, count, keys_, most) { .inside = &keys_##_keys },

/* The fields and rules of one mapping, and what ties them together. */
#define DEFINE(keys_, LIST_, S)                                                               \
    static const cyaml_schema_field_t keys_##_fields[] = { LIST_(FIELD, S) CYAML_FIELD_END }; \
    static const struct wz_recipe_rule keys_##_rules[] = { LIST_(RULE, S) };                  \
    static const struct wz_recipe_keys keys_##_keys = { keys_##_fields, keys_##_rules, WZ_COUNT(keys_##_rules) }
#define DEFINE_ELEMENT(keys_, LIST_, S) \
    DEFINE(keys_, LIST_, S);            \
    static const cyaml_schema_value_t keys_##_value = { CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, S, keys_##_fields) }

/* clang-format off */
#define INSIDE(key) __typeof__(((struct wz_recipe *)NULL)->key)
#define COUNT "[0,1e9]"

#define DATA(T, S) \
    T##_TEXT(S, path, NULL, "text") \
    T##_TEXT(S, column, "prompt", "text") \
    T##_TEXT(S, harmful, "harmful", "text") \
    T##_TEXT(S, kind, "", NULL) \
    T##_INT(S, limit, "0", COUNT)

#define SHARE(T, S) \
    T##_TEXT(S, kind, NULL, "text") \
    T##_REAL(S, share, NULL, "(0,1e9]")

#define AGENT(T, S) \
    T##_TEXT(S, name, NULL, "name") \
    T##_TEXT(S, role, NULL, "conversation|feedback") \
    T##_TEXT(S, model, NULL, "text") \
    T##_TEXT(S, system, "", NULL) \
    T##_TEXT(S, chat, "", NULL) \
    T##_TEXT(S, type, "f32", "f32|bf16") \
    T##_INT(S, max_tokens, "512", "[1,1e6]") \
    T##_REAL(S, temperature, "1", "[0,100]") \
    T##_REAL(S, top_p, "1", "(0,1]") \
    T##_REAL(S, min_p, "0", "[0,1]") \
    T##_INT(S, top_k, "0", COUNT)

#define ADAMW(T, S) \
    T##_REAL(S, beta1, "0.9", "[0,1)") \
    T##_REAL(S, beta2, "0.95", "[0,1)") \
    T##_REAL(S, eps, "1e-8", "(0,1)") \
    T##_REAL(S, weight_decay, "0", "[0,1]") \
    T##_REAL(S, max_grad_norm, "1", "[0,inf)")

#define LEARN(T, S) \
    T##_TEXT(S, name, NULL, "name") \
    T##_REAL(S, lr, "5e-7", "[0,1]") \
    T##_REAL(S, warmup, "0", COUNT) \
    T##_REAL(S, min_lr_ratio, "0.1", "[0,1]") \
    ADAMW(T, S) \
    T##_REAL(S, kl_coef, "0.01", "[0,inf)") \
    T##_REAL(S, clip_eps, "0.2", "(0,1)") \
    T##_TEXT(S, loss_mean, "sequence", "sequence|token") \
    T##_REAL(S, alpha, "0.65", "[0,100]") \
    T##_REAL(S, lambda, "0.25", "[0,100]") \
    T##_REAL(S, gamma, "0.1", "[0,100]") \
    T##_TEXT(S, feedback_bonus, "dir", "dir|outcome") \
    T##_REAL(S, revision_prob, "0.5", "[0,1]")

#define STAGE(T, S) \
    T##_TEXT(S, name, NULL, "name") \
    T##_INT(S, steps, NULL, COUNT) \
    T##_INT(S, batch, "32", "[1,1e6]") \
    T##_LIST(S, mix, n_mix, share, 64) \
    T##_LIST(S, agents, n_agents, learn, 8)

#define RANKS(T, S) \
    T##_INT(S, rollout, "0", "[0,65536]") \
    T##_INT(S, reward, "0", "[0,65536]") \
    T##_INT(S, learner, "0", "[0,65536]")

#define ROLLOUT(T, S) \
    T##_INT(S, max_rounds, "1", "[0,64]") \
    T##_INT(S, kv_pages, "0", COUNT) \
    T##_INT(S, kv_page_tokens, "16", "[1,65536]") \
    T##_INT(S, max_num_seqs, "64", "[1,65536]") \
    T##_INT(S, max_seq_len, "0", COUNT)

#define JUDGE(T, S) \
    T##_TEXT(S, name, "rules", "rules") \
    T##_TEXT(S, phrases, "", NULL) \
    T##_TEXT(S, world, "no", "yes|no") \
    T##_INT(S, retries, "2", "[0,1000]")

#define EVALUATE(T, S) \
    T##_INT(S, every, "0", COUNT) \
    T##_INT(S, eval_limit, "0", COUNT) \
    T##_REAL(S, temperature, "0", "[0,100]")

#define CHECKPOINT(T, S) \
    T##_INT(S, every, "0", COUNT) \
    T##_INT(S, keep, "0", COUNT)

#define SFT(T, S) \
    T##_TEXT(S, model, "", NULL) \
    T##_TEXT(S, data, "", NULL) \
    T##_TEXT(S, out, "", NULL) \
    T##_TEXT(S, system, "", NULL) \
    T##_TEXT(S, chat, "", NULL) \
    T##_TEXT(S, type, "f32", "f32|bf16") \
    T##_INT(S, steps, "0", COUNT) \
    T##_INT(S, batch, "32", "[1,1e6]") \
    T##_REAL(S, lr, "1e-5", "[0,1]") \
    T##_REAL(S, warmup, "0", COUNT) \
    T##_REAL(S, min_lr_ratio, "0.1", "[0,1]") \
    ADAMW(T, S)

#define RECIPE(T, S) \
    T##_TEXT(S, name, NULL, "name") \
    T##_SEED(S, seed, "1", NULL) \
    T##_TEXT(S, out, "", NULL) \
    T##_TEXT(S, backend, "auto", "auto|ref|cpu|cuda") \
    T##_TEXT(S, link, "auto", "auto|self|mpi|nccl") \
    T##_INT(S, threads, "0", "[0,4096]") \
    T##_REAL(S, deadline, "300", "(0,1e9]") \
    T##_MAP(S, ranks, ranks) \
    T##_LIST(S, agents, n_agents, agent, 8) \
    T##_MAP(S, rollout, rollout) \
    T##_MAP(S, judge, judge) \
    T##_INT(S, leaves, "8", "[1,128]") \
    T##_INT(S, micro_batch_tokens, "0", COUNT) \
    T##_TEXT(S, activation_checkpointing, "none", "none|layers") \
    T##_TEXT(S, reference_location, "device", "device|host") \
    T##_LIST(S, data, n_data, data, 256) \
    T##_LIST(S, eval, n_eval, data, 256) \
    T##_MAP(S, evaluate, evaluate) \
    T##_MAP(S, checkpoint, checkpoint) \
    T##_LIST(S, stages, n_stages, stage, 64) \
    T##_MAP(S, sft, sft)

/* clang-format on */

DEFINE_ELEMENT(data, DATA, struct wz_recipe_data);
DEFINE_ELEMENT(share, SHARE, struct wz_recipe_share);
DEFINE_ELEMENT(agent, AGENT, struct wz_recipe_agent);
DEFINE_ELEMENT(learn, LEARN, struct wz_recipe_learn);
DEFINE_ELEMENT(stage, STAGE, struct wz_recipe_stage);
DEFINE(ranks, RANKS, INSIDE(ranks));
DEFINE(rollout, ROLLOUT, INSIDE(rollout));
DEFINE(judge, JUDGE, INSIDE(judge));
DEFINE(evaluate, EVALUATE, INSIDE(evaluate));
DEFINE(checkpoint, CHECKPOINT, INSIDE(checkpoint));
DEFINE(sft, SFT, INSIDE(sft));

static const cyaml_schema_field_t recipe_fields[] = { RECIPE(FIELD, struct wz_recipe) CYAML_FIELD_END };
static const struct wz_recipe_rule recipe_rules[] = { RECIPE(RULE, struct wz_recipe) };
const struct wz_recipe_keys wz_recipe_keys = { recipe_fields, recipe_rules, WZ_COUNT(recipe_rules) };
const cyaml_schema_value_t wz_recipe_schema = { CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct wz_recipe,
                                                                    recipe_fields) };
