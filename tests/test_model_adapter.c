/* Guarantee: an adapter's folder is a model wherever a folder is taken: each weight is W + s B A, rounded once, and
 * nothing else of the base changes; what would change the model in a way that is not that is refused by name. */
#include "test.h"

#include <math.h>
#include <unistd.h>

#include "model/inner.h"
#include "model_help.h"
#include "tokenizer_help.h"

enum { LAYERS = 2, DIM = 16, FFN = 24, HEADS = 2, R = 3 };
static const char q0[] = "model.layers.0.self_attn.q_proj", q1[] = "model.layers.1.self_attn.q_proj",
                  down0[] = "model.layers.0.mlp.down_proj", down1[] = "model.layers.1.mlp.down_proj";

static char *base, *adapter;

static void put(const char *dir, const char *name, const char *text, size_t n)
{
    char *path = wz_path("%s/%s", dir, name);
    struct wz_err err;

    if (wz_file_write(path, text, n, &err) < 0) fail_msg("%s", err.text);
    free(path);
}

/* A number that looks random, of a place in a tensor. */
static float value_at(const char *name, size_t i)
{
    return (float)(int)wz_below((struct wz_key){ wz_hash(name, strlen(name), 0), WZ_RNG_TEST, (uint32_t)i, 7, 0, 0 },
                                2001) /
               1000 -
           1;
}

static int make_base(void **state)
{
    const struct wz_config c = { .layers = LAYERS,
                                 .dim = DIM,
                                 .heads = HEADS,
                                 .kv_heads = HEADS,
                                 .head_dim = DIM / HEADS,
                                 .ffn = FFN,
                                 .vocab = T_VOCAB,
                                 .context = 64,
                                 .norm_eps = 1e-5f,
                                 .rope_theta = 1e4f,
                                 .bos = T_BOS,
                                 .eos = { T_EOT },
                                 .n_eos = 1 };
    struct wz_backend *be = backend_of("cpu", 2);
    struct wz_model *m = wz_model_create(&c, WZ_F32, NULL, be);
    struct wz_buf json = { 0 };
    struct wz_err err;

    base = test_scratch("adapter-base");
    adapter = test_scratch("adapter");
    wz_model_init(m, 3);
    assert_int_equal(wz_mkdirs(base, &err), 0);
    assert_int_equal(wz_mkdirs(adapter, &err), 0);
    if (wz_model_save(m, base, 0, &err) < 0) fail_msg("%s", err.text);
    tiny_json(&json, false, false);
    put(base, "tokenizer.json", json.data, json.len);
    wz_buf_finish(&json);
    wz_model_destroy(m);
    wz_backend_close(be);
    return 0;
}

static int remove_all(void **state)
{
    static const char *const files[] = { "config.json",    "generation_config.json", "model.safetensors",
                                         "tokenizer.json", "adapter_config.json",    "adapter_model.safetensors" };
    char *const folders[] = { base, adapter };

    for (size_t d = 0; d < WZ_COUNT(folders); d++) {
        for (size_t i = 0; i < WZ_COUNT(files); i++) {
            char *path = wz_path("%s/%s", folders[d], files[i]);
            unlink(path);
            free(path);
        }
        rmdir(folders[d]);
        free(folders[d]);
    }
    return 0;
}

/* A tensor of an adapter: of the module, or, rows of 0, named in full. */
struct made {
    const char *name;
    int rows, cols, r;
};

/* Writes the factors A and B of each module, or whole tensors (r is 0). */
static void make_tensors(const struct made *list, int n, enum wz_dtype dtype)
{
    struct wz_tensor_spec specs[16];
    char names[16][96], *path = wz_path("%s/adapter_model.safetensors", adapter);
    struct wz_err err;
    int k = 0;

    for (int i = 0; i < n; i++)
        for (int f = 0; f < (list[i].r ? 2 : 1); f++, k++) {
            const struct made *t = &list[i];
            snprintf(names[k], sizeof names[k], "base_model.model.%s%s", t->name,
                     !t->r ? ""
                     : f   ? ".lora_B.weight"
                           : ".lora_A.weight");
            specs[k] = (struct wz_tensor_spec){ names[k], dtype, 2, { 0 } };
            specs[k].shape[0] = (size_t)(t->r && !f ? t->r : t->rows);
            specs[k].shape[1] = (size_t)(t->r && f ? t->r : t->cols);
        }
    struct wz_safetensors_out *out = wz_safetensors_begin(path, specs, k, &err);
    for (int i = 0; i < k; i++)
        for (size_t e = 0; e < specs[i].shape[0] * specs[i].shape[1]; e++) {
            const float x = value_at(names[i], e);
            assert_int_equal(wz_safetensors_put(out, &x, 1, &err), 0);
        }
    assert_int_equal(wz_safetensors_end(out, &err), 0);
    free(path);
}

static void make_config(const char *more)
{
    char *text = wz_path("{\"peft_type\": \"LORA\", \"base_model_name_or_path\": \"%s\", \"fan_in_fan_out\": false, "
                         "\"bias\": \"none\", \"use_dora\": false, \"loftq_config\": {}, \"lora_dropout\": 0.1, "
                         "\"target_modules\": [\"q_proj\", \"down_proj\"], \"modules_to_save\": [\"lm_head\"]%s}",
                         base, more);

    put(adapter, "adapter_config.json", text, strlen(text));
    free(text);
}

static const struct made well[] = { { q0, DIM, DIM, R },
                                    { q1, DIM, DIM, R },
                                    { down0, DIM, FFN, 2 },
                                    { down1, DIM, FFN, 2 },
                                    { "lm_head.weight", T_VOCAB, DIM, 0 } };
static const char plain[] = ", \"r\": 3, \"lora_alpha\": 5, \"rank_pattern\": {\"down_proj\": 2}, \"alpha_pattern\": "
                            "{\"layers.1.self_attn.q_proj\": 8, \"mlp.down_proj\": 1.5}";

static void bf16(float *x) { *x = wz_bf16_to_f32(wz_f32_to_bf16(*x)); }

/* What a weight is to be: scale 0: as in the base; `rounded`: the factors are bf16. */
static float by_hand(const struct made *t, double scale, bool rounded, float w, int row, int col)
{
    char name[2][96];
    double sum = 0;

    for (int f = 0; f < 2; f++)
        snprintf(name[f], sizeof name[f], "base_model.model.%s%s", t->name,
                 !t->r ? ""
                 : f   ? ".lora_B.weight"
                       : ".lora_A.weight");
    for (int q = 0; q < t->r; q++) {
        float a = value_at(name[0], (size_t)(q * t->cols + col)), b = value_at(name[1], (size_t)(row * t->r + q));
        if (rounded) bf16(&a), bf16(&b);
        sum += (double)b * (double)a;
    }
    float x = t->r ? (float)((double)w + scale * sum) : value_at(name[0], (size_t)(row * t->cols + col));
    if (!t->r && rounded) bf16(&x);
    return x;
}

static void weights_are_merged(void **state)
{
    static const struct {
        bool rslora;
        enum wz_dtype dtype;
        enum wz_type type;
    } rows[] = { { false, WZ_DT_F32, WZ_F32 },
                 { true, WZ_DT_F32, WZ_F32 },
                 { false, WZ_DT_BF16, WZ_F32 },
                 { true, WZ_DT_BF16, WZ_BF16 } };
    const double alphas[] = { 5, 8, 1.5, 1.5, 0 };
    struct wz_backend *be = backend_of("cpu", 2);
    struct wz_model *was = model_of(base, WZ_F32, be);
    float w[DIM * T_VOCAB], got[DIM * T_VOCAB];

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        char *more = wz_path("%s, \"use_rslora\": %s", plain, rows[i].rslora ? "true" : "false");
        make_config(more);
        make_tensors(well, WZ_COUNT(well), rows[i].dtype);
        struct wz_model *m = model_of(adapter, rows[i].type, be);
        int changed = 0;
        for (int p = 0; p < m->n_list; p++) {
            const struct wz_param *param = &m->list[p];
            const struct made *t = NULL;
            double scale = 0;
            for (size_t k = 0; k < WZ_COUNT(well); k++)
                if (!strncmp(param->name, well[k].name, strlen(well[k].name))) {
                    t = &well[k];
                    scale = alphas[k] / (rows[i].rslora ? sqrt(t->r) : t->r);
                }
            const size_t n = wz_param_count(param);
            wz_param_get(was, p, 0, n, w);
            wz_param_get(m, p, 0, n, got);
            for (size_t e = 0; e < n; e++) {
                const int cols = param->cols ? param->cols : 1;
                float want =
                    t ? by_hand(t, scale, rows[i].dtype == WZ_DT_BF16, w[e], (int)e / cols, (int)e % cols) : w[e];
                if (rows[i].type == WZ_BF16 && param->cols) bf16(&want);
                if (got[e] != want)
                    fail_msg("row %zu, %s[%zu]: expected %.9g, got %.9g", i, param->name, e, (double)want,
                             (double)got[e]);
                changed += got[e] != w[e];
            }
        }
        assert_true(changed > 2 * DIM * DIM); /* the case is one */
        wz_model_destroy(m);
        free(more);
    }
    wz_model_destroy(was);
    wz_backend_close(be);
}

/* Its tokenizer, where it has none, and its config are the base's; its tensors are its own. */
static void the_rest_is_the_bases(void **state)
{
    struct wz_config config, of_base;
    struct wz_err err;

    make_config(plain);
    make_tensors(well, WZ_COUNT(well), WZ_DT_F32);
    struct wz_tokenizer *tok = wz_tokenizer_load(adapter, &err);
    assert_non_null(tok);
    assert_int_equal(wz_tokenizer_vocab(tok), T_VOCAB);
    wz_tokenizer_destroy(tok);
    assert_int_equal(wz_config_load(&config, adapter, &err), 0);
    assert_int_equal(wz_config_load(&of_base, base, &err), 0);
    assert_memory_equal(&config, &of_base, sizeof config);
    assert_int_equal(wz_model_check(&config, adapter, WZ_F32, &err), 0);
    struct wz_tensors *set = wz_tensors_open(adapter, &err);
    assert_non_null(set);
    assert_int_equal(wz_tensors_count(set), 9);
    wz_tensors_close(set);
    put(adapter, "tokenizer.json", "{}", 2); /* its own comes first */
    assert_null(wz_tokenizer_load(adapter, &err));
    char *path = wz_path("%s/tokenizer.json", adapter);
    unlink(path);
    free(path);
}

static void others_are_refused(void **state)
{
    static const struct made untold[] = { { q0, DIM, DIM, R },
                                          { q1, DIM, DIM, R },
                                          { down0, DIM, FFN, 2 },
                                          { "lm_head.weight", T_VOCAB, DIM, 0 } },
                             embedding[] = { { "model.embed_tokens", T_VOCAB, DIM, R } },
                             unknown[] = { { "score.weight", 2, DIM, 0 } }, wide[] = { { q0, DIM + 1, DIM, R } },
                             ranks[] = { { q0, DIM, DIM, R + 1 } };
    static const struct {
        const char *config;
        const struct made *list;
        int n;
        const char *says;
    } cases[] = {
        { ", \"r\": 3, \"lora_alpha\": 5, \"use_dora2\": true", well, WZ_COUNT(well), "use_dora2" },
        { ", \"r\": 3, \"lora_alpha\": 5, \"lora_bias\": true", well, WZ_COUNT(well), "lora_bias" },
        { ", \"r\": 3, \"lora_alpha\": 5, \"layer_replication\": [[0, 1]]", well, WZ_COUNT(well), "layer_replication" },
        { ", \"r\": 3, \"lora_alpha\": 5, \"init_lora_weights\": \"pissa\"", well, WZ_COUNT(well),
          "init_lora_weights" },
        { ", \"r\": 0, \"lora_alpha\": 5", well, WZ_COUNT(well), "r: expected" },
        { ", \"r\": 3", well, WZ_COUNT(well), "lora_alpha" },
        { ", \"r\": 3, \"lora_alpha\": 5, \"rank_pattern\": {\"^down_.*\": 2}", well, WZ_COUNT(well), "^down_.*" },
        { ", \"r\": 3, \"lora_alpha\": 5", well, WZ_COUNT(well), "expected shape [3, 24]" },
        { plain, untold, WZ_COUNT(untold), "no change of model.layers.1.mlp.down_proj" },
        { plain, embedding, 1, "no linear weight model.embed_tokens.weight" },
        { ", \"r\": 3, \"lora_alpha\": 5, \"rank_pattern\": {\"down_proj\": 2}, \"layers_to_transform\": [0]", well,
          WZ_COUNT(well), "its config changes no model.layers.1.self_attn.q_proj" },
        { ", \"r\": 3, \"lora_alpha\": 5, \"rank_pattern\": {\"down_proj\": 2}, \"layers_to_transform\": [0, 1], "
          "\"layers_pattern\": [5]",
          well, WZ_COUNT(well), "layers_pattern: expected a name" },
        { ", \"r\": 3, \"lora_alpha\": 5, \"rank_pattern\": {\"down_proj\": 2}, \"exclude_modules\": [\"down_proj\"]",
          well, WZ_COUNT(well), "its config changes no model.layers.0.mlp.down_proj" },
        { plain, unknown, 1, "score.weight" },
        { plain, wide, 1, "expected shape [16, 3]" },
        { plain, ranks, 1, "expected shape [3, 16]" },
        { plain, well, 4, "modules_to_save: lm_head" },
    };
    struct wz_config config;
    struct wz_err err;

    for (size_t i = 0; i < WZ_COUNT(cases); i++) {
        make_config(cases[i].config);
        make_tensors(cases[i].list, cases[i].n, WZ_DT_F32);
        assert_int_equal(wz_model_check(&config, adapter, WZ_F32, &err), -1);
        if (!strstr(err.text, cases[i].says)) fail_msg("case %zu: %s", i, err.text);
    }
    make_tensors(well, WZ_COUNT(well), WZ_DT_F32);
    put(adapter, "adapter_config.json", "{\"peft_type\": \"IA3\"}", 20);
    assert_int_equal(wz_model_check(&config, adapter, WZ_F32, &err), -1);
    assert_non_null(strstr(err.text, "base_model_name_or_path"));
    char *text = wz_path("{\"peft_type\": \"IA3\", \"base_model_name_or_path\": \"%s\"}", base);
    put(adapter, "adapter_config.json", text, strlen(text));
    assert_int_equal(wz_model_check(&config, adapter, WZ_F32, &err), -1);
    assert_non_null(strstr(err.text, "IA3"));
    free(text);
    put(adapter, "adapter_config.json", "{\"base_model_name_or_path\": \"/no/such\"}", 39);
    assert_int_equal(wz_model_check(&config, adapter, WZ_F32, &err), -1);
    assert_non_null(strstr(err.text, "/no/such"));
    assert_null(wz_tokenizer_load(adapter, &err));
    assert_non_null(strstr(err.text, "/no/such"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_are_merged),
        cmocka_unit_test(the_rest_is_the_bases),
        cmocka_unit_test(others_are_refused),
    };

    return cmocka_run_group_tests(tests, make_base, remove_all);
}
