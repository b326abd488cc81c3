/* Guarantee: what is saved loads back bit for bit, in one file or in shards, as f32 or bf16; a GGUF of the same
 * weights is the same model; every spelling of a config means what it should; and whatever is wrong with a folder is
 * one error message. */
#include "golden_help.h"
#include "model/inner.h"

#include <unistd.h>

static const struct wz_config config = { .layers = 2,
                                         .dim = 32,
                                         .heads = 4,
                                         .kv_heads = 2,
                                         .head_dim = 8,
                                         .ffn = 64,
                                         .vocab = 48,
                                         .context = 128,
                                         .norm_eps = 1e-5f,
                                         .rope_theta = 500000,
                                         .rope = WZ_ROPE_LLAMA3,
                                         .rope_factor = 8,
                                         .rope_low = 1,
                                         .rope_high = 4,
                                         .rope_original = 8192,
                                         .bos = 1,
                                         .eos = { 2, 3 },
                                         .n_eos = 2 };
static struct wz_backend *be;

static int open_ref(void **state)
{
    be = backend_of("ref", 1);
    return 0;
}

static int close_ref(void **state)
{
    wz_backend_close(be);
    return 0;
}

static struct wz_model *model_make(const struct wz_config *c, enum wz_type type)
{
    struct wz_model *m = wz_model_create(c, type, NULL, be);

    wz_model_init(m, 11);
    return m;
}

static void saved(const struct wz_model *m, const char *dir, size_t shard)
{
    struct wz_err err;

    if (wz_model_save(m, dir, shard, &err) < 0) fail_msg("%s", err.text);
}

static void same_config(const struct wz_config *a, const struct wz_config *b)
{
    assert_true(a->layers == b->layers && a->dim == b->dim && a->heads == b->heads && a->kv_heads == b->kv_heads);
    assert_true(a->head_dim == b->head_dim && a->ffn == b->ffn && a->vocab == b->vocab && a->context == b->context);
    assert_true(a->norm_eps == b->norm_eps && a->rope_theta == b->rope_theta && a->rope == b->rope &&
                a->tied == b->tied);
    assert_true(a->rope_factor == b->rope_factor && a->rope_low == b->rope_low && a->rope_high == b->rope_high);
    assert_true(a->rope_original == b->rope_original && a->bos == b->bos && a->n_eos == b->n_eos);
    assert_memory_equal(a->eos, b->eos, sizeof(int) * (size_t)a->n_eos);
}

static void loads_as(const char *path, enum wz_type type, const struct wz_model *m, uint64_t hash)
{
    struct wz_model *back = model_of(path, type, be);

    same_config(&m->config, &back->config);
    assert_true(back->hash == hash);
    wz_model_destroy(back);
}

static void round_trips(void **state)
{
    char *dir = test_scratch("round"), *index = wz_path("%s/model.safetensors.index.json", dir),
         *one = wz_path("%s/model.safetensors", dir);
    struct wz_config tied = config, plain = config;
    struct wz_err err;

    tied.tied = true;
    tied.bos = -1;
    tied.n_eos = 0;
    tied.rope = WZ_ROPE_LINEAR;
    tied.rope_low = tied.rope_high = 0;
    tied.rope_original = 0;
    plain.rope = WZ_ROPE_PLAIN;
    plain.rope_factor = plain.rope_low = plain.rope_high = 0;
    plain.rope_original = 0;
    plain.n_eos = 1;
    const struct wz_config *const all[] = { &config, &tied, &plain };
    for (size_t i = 0; i < WZ_COUNT(all); i++) {
        struct wz_model *m = model_make(all[i], WZ_F32), *half = model_make(all[i], WZ_BF16);

        assert_true(m->hash != half->hash);
        saved(m, dir, 0);
        loads_as(dir, WZ_F32, m, m->hash);
        loads_as(dir, WZ_BF16, m, half->hash);
        saved(m, dir, 9000);
        assert_true(wz_file_exists(index) && !wz_file_exists(one));
        loads_as(dir, WZ_F32, m, m->hash);
        saved(half, dir, 0);
        assert_true(!wz_file_exists(index) && wz_file_exists(one));
        loads_as(dir, WZ_BF16, m, half->hash);
        struct wz_model *wide = model_of(dir, WZ_F32, be); /* the same values, wider, and narrow again */
        if (wz_model_save_as(wide, dir, 0, WZ_DT_BF16, &err) < 0) fail_msg("%s", err.text);
        loads_as(dir, WZ_BF16, m, half->hash);
        wz_model_destroy(wide);

        if (wz_model_save_as(m, dir, 0, WZ_DT_F16, &err) < 0) fail_msg("%s", err.text);
        struct wz_model *f16 = model_of(dir, WZ_F32, be);
        for (size_t j = 0; j < m->n_params; j++)
            assert_true(fabsf(f16->params[j] - m->params[j]) <= fabsf(m->params[j]) / 2048 + 3e-8f);
        assert_true(f16->hash != m->hash);
        wz_model_destroy(f16);
        wz_model_destroy(m);
        wz_model_destroy(half);
    }
    free(dir);
    free(index);
    free(one);
}

static void write_text(const char *path, const char *text)
{
    struct wz_err err;

    if (wz_file_write(path, text, strlen(text), &err) < 0) fail_msg("%s", err.text);
}

/* A cache as huggingface_hub keeps it, with a commit, a branch and a tag that has no snapshot. */
static void names_on_a_hub(void **state)
{
    static const struct {
        const char *name, *says;
    } rows[] = {
        { "org/tiny", NULL },
        { "org/tiny@main", NULL },
        { "org/tiny@abc123", NULL },
        { "org/tiny@pr/1", NULL },
        { "org/tiny@v2", "`hf download org/tiny --revision v2`" },
        { "org/other", "`hf download org/other`" },
        { "org/tiny@", "hf download org/tiny" },
        { "org/tiny@../../x", "no such file or folder" },
        { "../org/tiny", "no such file or folder" },
        { "org/tiny/x", "no such file or folder" },
        { "/org/tiny", "no such file or folder" },
    };
    char *cache = test_scratch("cache"), *repo = test_scratch("cache/models--org--tiny");
    char *dir = wz_path("%s/snapshots/abc123", repo), *refs = wz_path("%s/refs/pr", repo);
    char *main_ref = wz_path("%s/refs/main", repo), *branch = wz_path("%s/1", refs), *tag = wz_path("%s/refs/v2", repo);
    struct wz_model *m = model_make(&config, WZ_F32);
    struct wz_err err = { "" };
    struct wz_config c;

    saved(m, dir, 0);
    assert_int_equal(wz_mkdirs(refs, &err), 0);
    write_text(main_ref, "abc123");
    write_text(branch, "abc123\n");
    write_text(tag, "def456");
    setenv("HF_HUB_CACHE", cache, 1);
    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        struct wz_model *back = wz_model_load(rows[i].name, WZ_F32, NULL, be, &err);
        assert_true(!back == !!rows[i].says);
        assert_int_equal(wz_config_load(&c, rows[i].name, &err), back ? 0 : -1);
        if (back) assert_true(back->hash == m->hash && c.dim == config.dim);
        else if (!strstr(err.text, rows[i].says)) fail_msg("%s: \"%s\"", rows[i].name, err.text);
        wz_model_destroy(back);
    }
    /* Without that variable the cache is under HF_HOME, or under the home; a folder of the name goes before. */
    char *hub = wz_path("%s/hub", cache), *under = wz_path("%s/.cache/huggingface/hub", cache), *at;
    unsetenv("HF_HUB_CACHE");
    unsetenv("HUGGINGFACE_HUB_CACHE");
    unsetenv("XDG_CACHE_HOME");
    for (int home = 0; home < 2; home++) {
        unsetenv("HF_HOME");
        setenv(home ? "HOME" : "HF_HOME", cache, 1);
        assert_null(wz_model_at("org/tiny", &err));
        assert_non_null(strstr(err.text, home ? under : hub));
    }
    assert_non_null(at = wz_model_at(dir, &err));
    assert_string_equal(at, dir);
    free(at);
    wz_model_destroy(m);
    char *all[] = { cache, repo, dir, refs, main_ref, branch, tag, hub, under };
    for (size_t i = 0; i < WZ_COUNT(all); i++) free(all[i]);
}

/* config.json of `dir` with one key replaced by a JSON text, or dropped (NULL). */
static void edit(const char *dir, const char *key, const char *value)
{
    char *path = wz_path("%s/config.json", dir);
    struct wz_err err;
    json_t *j = wz_json_load(path, &err);

    assert_non_null(j);
    json_object_del(j, key);
    if (value) {
        json_t *v = json_loads(value, JSON_DECODE_ANY, NULL);
        assert_non_null(v);
        json_object_set_new(j, key, v);
    }
    assert_int_equal(json_dump_file(j, path, 0), 0);
    json_decref(j);
    free(path);
}

static void generation_settings_are_kept(void **state)
{
    static const char text[] = "{\"temperature\":  0.6, \"pad_token_id\": 3, \"eos_token_id\": 2}\n";
    char *dir = test_scratch("settings"), *out = test_scratch("settings-saved");
    char *from = test_scratch("settings/generation_config.json"),
         *to = test_scratch("settings-saved/generation_config.json");
    struct wz_model *m = model_make(&config, WZ_F32);
    struct wz_map map;
    struct wz_err err;

    saved(m, dir, 0);
    wz_model_destroy(m);
    edit(dir, "pad_token_id", "3");
    edit(dir, "attention_dropout", "0.25");
    edit(dir, "torch_dtype", "\"float64\""); /* what is written is of another type */
    assert_int_equal(wz_file_write(from, text, sizeof text - 1, &err), 0);
    m = model_of(dir, WZ_BF16, be);
    saved(m, out, 0);
    char *file = wz_path("%s/config.json", out);
    json_t *j = wz_json_load(file, &err);
    assert_int_equal(json_integer_value(json_object_get(j, "pad_token_id")), 3);
    assert_true(json_real_value(json_object_get(j, "attention_dropout")) == 0.25);
    assert_string_equal(json_string_value(json_object_get(j, "torch_dtype")), "bfloat16");
    json_decref(j);
    free(file);
    assert_int_equal(wz_map_open(&map, to, &err), 0);
    assert_int_equal(map.len, sizeof text - 1);
    assert_memory_equal(map.bytes, text, map.len);
    wz_map_close(&map);
    wz_model_destroy(m);
    unlink(from); /* without it, those that the config has */
    unlink(to);
    m = model_of(dir, WZ_F32, be);
    saved(m, out, 0);
    json_t *settings = wz_json_load(to, &err);
    assert_int_equal(json_integer_value(json_object_get(settings, "pad_token_id")), 3);
    json_decref(settings);
    wz_model_destroy(m);
    free(dir);
    free(out);
    free(from);
    free(to);
}

/* 65520 rounds to infinity in f16, the number below it to 65504; what f32 holds behind bf16's range is refused too. */
static void overflow_is_refused(void **state)
{
    static const struct {
        float value;
        enum wz_dtype dtype;
        bool fits;
    } rows[] = {
        { 65519, WZ_DT_F16, true },       { 65520, WZ_DT_F16, false },       { -65520, WZ_DT_F16, false },
        { 65520, WZ_DT_BF16, true },      { 0x1.fep127f, WZ_DT_BF16, true }, { 0x1.ffp127f, WZ_DT_BF16, false },
        { 0x1.ffp127f, WZ_DT_F32, true },
    };
    char *dir = test_scratch("overflow"), *file = test_scratch("overflow/model.safetensors");
    struct wz_model *m = model_make(&config, WZ_F32);

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        struct wz_err err = { "" };
        remove(file);
        wz_param_put(m, 3, 7, 1, &rows[i].value);
        assert_int_equal(wz_model_save_as(m, dir, 0, rows[i].dtype, &err), rows[i].fits ? 0 : -1);
        assert_true(wz_file_exists(file) == rows[i].fits);
        assert_true(rows[i].fits || strstr(err.text, m->list[3].name));
    }
    wz_model_destroy(m);
    free(dir);
    free(file);
}

/* ---- GGUF, written by hand -------------------------------------------------------------------------------- */

static void u32(struct wz_buf *b, uint32_t x) { wz_buf_add(b, &x, 4); }
static void u64(struct wz_buf *b, uint64_t x) { wz_buf_add(b, &x, 8); }
static void str(struct wz_buf *b, const char *s)
{
    u64(b, strlen(s));
    wz_buf_str(b, s);
}
static void key_u32(struct wz_buf *b, const char *key, uint32_t x)
{
    str(b, key);
    u32(b, 4);
    u32(b, x);
}
static void key_f32(struct wz_buf *b, const char *key, float x)
{
    str(b, key);
    u32(b, 6);
    wz_buf_add(b, &x, 4);
}

/* Q8_0: blocks of 32 with one f16 scale, here always 2^-10. */
static bool q8;
enum { Q8_SCALE = 0x1400 };
/* attention.causal; -1: the file does not say. */
static int causal = -1;

static void tensor_head(struct wz_buf *b, const char *name, int rows, int cols, size_t *at)
{
    size_t n = (size_t)rows * (size_t)(cols > 0 ? cols : 1);
    bool blocks = q8 && cols > 0;

    str(b, name);
    u32(b, cols > 0 ? 2 : 1);
    if (cols > 0) u64(b, (uint64_t)cols);
    u64(b, (uint64_t)rows);
    u32(b, blocks ? 8 : 0);
    u64(b, *at);
    *at += ((blocks ? n / 32 * 34 : n * 4) + 31) / 32 * 32;
}

static const char *gguf_names[][2] = {
    { "model.embed_tokens.weight", "token_embd.weight" },
    { "model.norm.weight", "output_norm.weight" },
    { "lm_head.weight", "output.weight" },
    { ".input_layernorm.", "attn_norm" },
    { ".self_attn.q_proj.", "attn_q" },
    { ".self_attn.k_proj.", "attn_k" },
    { ".self_attn.v_proj.", "attn_v" },
    { ".self_attn.o_proj.", "attn_output" },
    { ".post_attention_layernorm.", "ffn_norm" }, /* but post_attention_norm where there are others */
    { ".pre_feedforward_layernorm.", "ffn_norm" },
    { ".post_feedforward_layernorm.", "post_ffw_norm" },
    { ".self_attn.q_norm.", "attn_q_norm" },
    { ".self_attn.k_norm.", "attn_k_norm" },
    { ".mlp.gate_proj.", "ffn_gate" },
    { ".mlp.up_proj.", "ffn_up" },
    { ".mlp.down_proj.", "ffn_down" },
};

/* llama.cpp's converter: q and k as [heads, 2, D/2, in], the middle two exchanged. */
static void pairs(float *out, const float *in, int heads, int d, int cols)
{
    for (int h = 0; h < heads; h++)
        for (int s = 0; s < 2; s++)
            for (int i = 0; i < d / 2; i++)
                memcpy(out + (h * d + i * 2 + s) * cols, in + (h * d + s * (d / 2) + i) * cols,
                       sizeof(float) * (size_t)cols);
}

/* `divisors`: rope_freqs.weight, or NULL. */
static void gguf_write(const struct wz_model *m, const char *path, const float *divisors, const char *arch)
{
    const struct wz_config *c = &m->config;
    const bool after = !strcmp(arch, "olmo2") || !strcmp(arch, "gemma2") || !strcmp(arch, "gemma3"),
               permuted = strstr("llama granite smollm3", arch);
    struct wz_buf b = { 0 };
    struct wz_err err;
    size_t at = 0;

    wz_buf_str(&b, "GGUF");
    u32(&b, 3);
    u64(&b, (uint64_t)m->n_list + (divisors ? 1 : 0));
    const struct {
        const char *key;
        uint32_t value;
    } sizes[] = {
        { "embedding_length", (uint32_t)c->dim },
        { "feed_forward_length", (uint32_t)c->ffn },
        { "block_count", (uint32_t)c->layers },
        { "attention.head_count", (uint32_t)c->heads },
        { "attention.head_count_kv", (uint32_t)c->kv_heads },
        { "attention.key_length", (uint32_t)c->head_dim },
        { "context_length", (uint32_t)c->context },
        { "attention.sliding_window", (uint32_t)c->window },
    };
    const struct {
        const char *key;
        float value;
    } numbers[] = {
        { "attention.layer_norm_rms_epsilon", c->norm_eps },
        { "rope.freq_base", c->rope_theta },
        { "embedding_scale", strstr(arch, "gemma") ? 0 : c->embed_scale },
        { "residual_scale", c->residual_scale },
        { "attention.scale", c->score_scale },
        { "logit_scale", c->logit_scale > 0 ? 1 / c->logit_scale : 0 },
        { "attn_logit_softcapping", c->score_cap },
        { "final_logit_softcapping", c->logit_cap },
    };
    size_t n_numbers = 0;
    for (size_t i = 0; i < WZ_COUNT(numbers); i++) n_numbers += numbers[i].value != 0;
    u64(&b, 4 + WZ_COUNT(sizes) + n_numbers + (causal >= 0));
    str(&b, "general.architecture"), u32(&b, 8), str(&b, arch);
    for (size_t i = 0; i < WZ_COUNT(sizes); i++) {
        char *key = wz_path("%s.%s", arch, sizes[i].key);
        key_u32(&b, key, sizes[i].value);
        free(key);
    }
    for (size_t i = 0; i < WZ_COUNT(numbers); i++) {
        char *key = wz_path("%s.%s", arch, numbers[i].key);
        if (numbers[i].value != 0) key_f32(&b, key, numbers[i].value);
        free(key);
    }
    if (causal >= 0) {
        char key[64];
        snprintf(key, sizeof key, "%s.attention.causal", arch);
        str(&b, key);
        u32(&b, 7);
        wz_buf_add(&b, &(char){ (char)causal }, 1);
    }
    key_u32(&b, "tokenizer.ggml.bos_token_id", (uint32_t)c->bos);
    key_u32(&b, "tokenizer.ggml.eos_token_id", (uint32_t)c->eos[0]);
    key_u32(&b, "tokenizer.ggml.eot_token_id", (uint32_t)c->eos[1]);
    if (divisors) tensor_head(&b, "rope_freqs.weight", c->head_dim / 2, 0, &at);
    for (int i = 0; i < m->n_list; i++) {
        const struct wz_param *p = &m->list[i];
        char name[64];
        int layer;

        for (size_t k = 0; k < WZ_COUNT(gguf_names); k++)
            if (strstr(p->name, gguf_names[k][0])) {
                if (sscanf(p->name, "model.layers.%d.", &layer) == 1)
                    snprintf(name, sizeof(name), "blk.%d.%s.%s", layer,
                             after && strstr(p->name, "post_attention") ? "post_attention_norm" : gguf_names[k][1],
                             strrchr(p->name, '.') + 1);
                else snprintf(name, sizeof(name), "%s", gguf_names[k][1]);
            }
        tensor_head(&b, name, p->rows, p->cols, &at);
    }
    while (b.len % 32 != 0) wz_buf_add(&b, "", 1);
    size_t start = b.len;
    if (divisors) wz_buf_add(&b, divisors, sizeof(float) * (size_t)(c->head_dim / 2));
    for (int i = 0; i < m->n_list; i++) {
        const struct wz_param *p = &m->list[i];
        size_t n = (size_t)p->rows * (size_t)(p->cols > 0 ? p->cols : 1);
        float *values = wz_alloc(n * sizeof(float));

        while ((b.len - start) % 32 != 0) wz_buf_add(&b, "", 1);
        if (permuted && strstr(p->name, "q_proj")) pairs(values, m->params + p->at, c->heads, c->head_dim, p->cols);
        else if (permuted && strstr(p->name, "k_proj"))
            pairs(values, m->params + p->at, c->kv_heads, c->head_dim, p->cols);
        else memcpy(values, m->params + p->at, n * sizeof(float));
        for (size_t j = 0; j < n && p->cols == 0 && strstr(arch, "gemma"); j++)
            values[j] += 1; /* as their converter does */
        if (!q8 || p->cols == 0) wz_buf_add(&b, values, n * sizeof(float));
        for (size_t j = 0; q8 && p->cols > 0 && j < n; j++) {
            if (j % 32 == 0) wz_buf_add(&b, &(uint16_t){ Q8_SCALE }, 2);
            wz_buf_add(&b, &(int8_t){ (int8_t)lrintf(values[j] * 1024) }, 1);
        }
        free(values);
    }
    while ((b.len - start) % 32 != 0) wz_buf_add(&b, "", 1);
    if (wz_file_write(path, b.data, b.len, &err) < 0) fail_msg("%s", err.text);
    wz_buf_finish(&b);
}

static void refuses(const char *path, const char *what)
{
    struct wz_err err = { "" };
    struct wz_model *m = wz_model_load(path, WZ_F32, NULL, be, &err);

    if (m) fail_msg("%s loaded, though: %s", path, what);
    if (!strstr(err.text, what)) fail_msg("the message should contain \"%s\" but is: %s", what, err.text);
    if (strchr(err.text, '\n') || !strchr(err.text, '/')) fail_msg("not one line with a file name: %s", err.text);
}

static void gguf(void **state)
{
    char *path = test_scratch("model.gguf");
    struct wz_model *m = model_make(&config, WZ_F32);
    struct wz_config plain = config;
    float divisors[4];

    /* llama3 scaling is only there as divisors; with theta 500000 and 8 channels they are 1, about 1, 8, 8 */
    for (int i = 0; i < 4; i++) divisors[i] = (float)pow(config.rope_theta, -2.0 * i / 8) / m->freq[i];
    gguf_write(m, path, divisors, "llama");
    loads_as(path, WZ_F32, m, m->hash);
    divisors[3] = 7;
    gguf_write(m, path, divisors, "llama");
    refuses(path, "rope_freqs.weight");
    gguf_write(m, path, divisors, "phi3");
    refuses(path, "expected one of llama, qwen2");
    wz_model_destroy(m);

    plain.rope = WZ_ROPE_PLAIN;
    plain.rope_factor = plain.rope_low = plain.rope_high = 0;
    plain.rope_original = 0;
    plain.tied = true;
    m = model_make(&plain, WZ_F32);
    gguf_write(m, path, NULL, "llama");
    loads_as(path, WZ_F32, m, m->hash);
    for (int i = 0; i < m->n_list; i++) /* rounded to what Q8_0 holds, the same again */
        for (size_t j = 0; m->list[i].cols > 0 && j < (size_t)m->list[i].rows * (size_t)m->list[i].cols; j++)
            m->params[m->list[i].at + j] = rintf(m->params[m->list[i].at + j] * 1024) / 1024 + 0.0f;
    wz_model_commit(m, 0);
    q8 = true;
    gguf_write(m, path, NULL, "llama");
    q8 = false;
    loads_as(path, WZ_F32, m, m->hash);
    for (causal = 1; causal >= 0; causal--) {
        gguf_write(m, path, NULL, "llama");
        if (causal) loads_as(path, WZ_F32, m, m->hash);
        else refuses(path, "llama.attention.causal is not known");
    }
    for (long cut = 0; cut < 4000; cut += 37) {
        gguf_write(m, path, NULL, "llama");
        assert_int_equal(truncate(path, cut), 0);
        refuses(path, "");
    }
    wz_model_destroy(m);
    free(path);
}

static void gguf_of_every_row(void **state)
{
    char *path = test_scratch("row.gguf");
    struct wz_err err;
    struct wz_config c;

    for (size_t i = 0; i < WZ_COUNT(golden_rows); i++) {
        char *dir = golden_row(golden_rows[i]);
        if (wz_config_load(&c, dir, &err) < 0) fail_msg("%s", err.text);
        const char *arch = wz_arch_of(&c)->gguf;
        free(dir);
        if (!arch || c.rope != WZ_ROPE_PLAIN || (c.window && !strstr(arch, "gemma"))) continue;
        c.eos[c.n_eos++] = 3;
        for (int l = 0; l < c.layers && c.window; l++) c.local[l] = (l + 1) % wz_arch_of(&c)->pattern;
        struct wz_model *m = model_make(&c, WZ_F32);
        for (int k = 0; k < m->n_list; k++)
            for (int j = 0; j < m->list[k].rows; j++) m->params[m->list[k].at + (size_t)j] += (float)(j % 61) / 64;
        wz_model_commit(m, 0);
        gguf_write(m, path, NULL, arch);
        struct wz_model *read = model_of(path, WZ_F32, be);
        assert_memory_equal(&read->config, &c, sizeof c);
        assert_true(read->hash == m->hash);
        wz_model_destroy(read);
        wz_model_destroy(m);
    }
    free(path);
}

static void gguf_of_llama_cpp(void **state)
{
    char *path = test_data("llama2_tiny_random_gguf/llama-2-tiny-random.gguf");
    struct wz_model *m = model_of(path, WZ_F32, be);
    struct wz_cache *cache = wz_cache_create(m, 2, 4);
    struct wz_work *work = wz_work_create(m, 4, false);
    struct wz_seq seq = { 0 };
    int ids[4] = { 1, 15043, 3186, 29991 }, four = 4;
    float logp[4];

    assert_int_equal(m->config.vocab, 32000);
    assert_true(m->config.bos == 1 && m->config.n_eos == 1 && m->config.eos[0] == 2);
    run(m, cache, work, &seq, 1, ids, &four);
    wz_logprobs(m, work, ids, 1, logp, NULL);
    for (int i = 0; i < 4; i++) assert_true(logp[i] < 0 && logp[i] > -30);
    wz_seq_finish(cache, &seq);
    wz_work_destroy(work);
    wz_cache_destroy(cache);
    wz_model_destroy(m);
    free(path);
}

/* ---- configs ---------------------------------------------------------------------------------------------- */

static void spellings(void **state)
{
    char *dir = test_scratch("spell");
    struct wz_model *m = model_make(&config, WZ_F32);
    struct wz_config c, want = config;
    struct wz_err err;

    saved(m, dir, 0);
    edit(dir, "rope_scaling",
         "{\"type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1, \"high_freq_factor\": 4, "
         "\"original_max_position_embeddings\": 8192}");
    edit(dir, "head_dim", NULL);
    edit(dir, "eos_token_id", "2");  /* 3 comes from generation_config.json */
    edit(dir, "unheard_of", "null"); /* off */
    edit(dir, "_name_or_path", "\"somewhere\"");
    if (wz_config_load(&c, dir, &err) < 0) fail_msg("%s", err.text);
    same_config(&config, &c);
    edit(dir, "rope_scaling", NULL);
    edit(dir, "rope_theta", NULL);
    edit(dir, "rope_parameters",
         "{\"rope_theta\": 500000.0, \"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1, "
         "\"high_freq_factor\": "
         "4, \"original_max_position_embeddings\": 8192}");
    if (wz_config_load(&c, dir, &err) < 0) fail_msg("%s", err.text);
    same_config(&config, &c);
    edit(dir, "rope_parameters", "{\"rope_theta\": 20000, \"rope_type\": \"default\"}");
    edit(dir, "bos_token_id", "null");
    edit(dir, "num_key_value_heads", NULL);
    edit(dir, "rms_norm_eps", NULL);
    want.rope = WZ_ROPE_PLAIN;
    want.rope_theta = 20000;
    want.rope_factor = want.rope_low = want.rope_high = 0;
    want.rope_original = 0;
    want.bos = -1;
    want.kv_heads = 4;
    want.norm_eps = 1e-6f;
    if (wz_config_load(&c, dir, &err) < 0) fail_msg("%s", err.text);
    same_config(&want, &c);
    edit(dir, "rope_parameters", NULL);
    want.rope_theta = 10000;
    if (wz_config_load(&c, dir, &err) < 0) fail_msg("%s", err.text);
    same_config(&want, &c);
    wz_model_destroy(m);
    free(dir);
}

/* What config.json leaves out is what transformers' class has then, and what the class would read otherwise than it is
 * read here is refused. */
static void what_a_class_leaves_out(void **state)
{
#define FULL "\"full_attention\": {\"rope_theta\": 500}"
    static const struct {
        const char *type, *name, *more;
        int kv_heads;
        float eps, theta, local;
        const char *says; /* of a refusal */
    } rows[] = {
        { "llama", "Llama", "", 32, 1e-6f, 10000, 0, NULL },
        { "mistral", "Mistral", "", 8, 1e-6f, 10000, 0, NULL },
        { "mistral", "Mistral", ", \"num_key_value_heads\": null", 32, 1e-6f, 10000, 0, NULL },
        { "olmo2", "Olmo2", "", 32, 1e-5f, 10000, 0, NULL },
        { "smollm3", "SmolLM3", "", 4, 1e-6f, 2000000, 0, NULL },
        { "gemma", "Gemma", ", \"hidden_act\": \"gelu\"", 16, 1e-6f, 10000, 0, NULL },
        { "gemma2", "Gemma2", "", 4, 1e-6f, 10000, 0, NULL },
        { "gemma3_text", "Gemma3", "", 4, 1e-6f, 1000000, 10000, NULL },
        { "gemma3_text", "Gemma3", ", \"rope_parameters\": {" FULL "}", 4, 1e-6f, 500, 10000, NULL },
        { "gemma3_text", "Gemma3", ", \"rope_parameters\": {\"sliding_attention\": {\"rope_theta\": 70}}", 4, 1e-6f,
          1000000, 70, NULL },
        { "llama", "Llama", ", \"rope_scaling\": {\"rope_theta\": 7}, \"rope_parameters\": {\"rope_theta\": 8}", 32,
          1e-6f, 7, 0, NULL },
        { "llama", "Llama", ", \"rope_scaling\": {}, \"rope_parameters\": {\"rope_theta\": 8}", 32, 1e-6f, 8, 0, NULL },
        { "gemma3_text", "Gemma3", ", \"rope_scaling\": {\"rope_theta\": 7}, \"rope_parameters\": {" FULL "}", 0, 0, 0,
          0, "rope_scaling: expected it without rope_parameters" },
        { "gemma3_text", "Gemma3", ", \"rope_parameters\": {\"rope_theta\": 500}", 0, 0, 0, 0,
          "rope_parameters: expected full_attention" },
        { "gemma3_text", "Gemma3", ", \"attn_logit_softcapping\": 50.0", 0, 0, 0, 0, "attn_logit_softcapping" },
        { "gemma2", "Gemma2", ", \"hidden_activation\": \"gelu\"", 0, 0, 0, 0,
          "expected gelu_pytorch_tanh, got \"gelu\"" },
        { "llama", "Llama", ", \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 2}", 0, 0, 0, 0,
          "original_max_position_embeddings is missing" },
    };
    char *dir = test_scratch("class"), *path = wz_path("%s/config.json", dir);
    struct wz_config c;
    struct wz_err err;

    assert_int_equal(wz_mkdirs(dir, &err), 0);
    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        char *text = wz_path("{\"architectures\": [\"%sForCausalLM\"], \"model_type\": \"%s\", \"hidden_size\": 256, "
                             "\"intermediate_size\": 8, \"num_hidden_layers\": 2, \"num_attention_heads\": 32, "
                             "\"vocab_size\": 8%s}",
                             rows[i].name, rows[i].type, rows[i].more);
        assert_int_equal(wz_file_write(path, text, strlen(text), &err), 0);
        const int rc = wz_config_load(&c, dir, &err);
        if (rows[i].says ? rc == 0 || !strstr(err.text, rows[i].says) : rc < 0)
            fail_msg("%s: %s", text, rc < 0 ? err.text : "read");
        if (rc == 0 && (c.kv_heads != rows[i].kv_heads || c.norm_eps != rows[i].eps || c.rope_theta != rows[i].theta ||
                        c.rope_local != rows[i].local))
            fail_msg("%s: %d key/value heads, epsilon %g, theta %g, of local layers %g", text, c.kv_heads,
                     (double)c.norm_eps, (double)c.rope_theta, (double)c.rope_local);
        free(text);
    }
    static const char yarn[] =
        "{\"model_type\": \"llama\", \"hidden_size\": 256, \"intermediate_size\": 8, \"num_hidden_layers\": 1, "
        "\"num_attention_heads\": 2, \"vocab_size\": 8, \"max_position_embeddings\": 77, \"rope_scaling\": {\"type\": "
        "\"yarn\", \"factor\": 2}}";
    assert_int_equal(wz_file_write(path, yarn, strlen(yarn), &err), 0);
    if (wz_config_load(&c, dir, &err) < 0) fail_msg("%s", err.text);
    assert_int_equal(c.rope_original, 77);
    unlink(path);
    free(path);
    free(dir);
}

static void bad_configs(void **state)
{
    static const struct {
        const char *key, *value, *what;
    } cases[] = {
        { "hidden_size", NULL, "hidden_size is missing" },
        { "hidden_size", "\"32\"", "hidden_size: expected a whole number" },
        { "hidden_size", "0", "hidden_size: expected a whole number" },
        { "hidden_size", "4611686018427387904", "hidden_size: expected a whole number" },
        { "num_hidden_layers", "16000000", "layers" },
        { "num_attention_heads", "3", "expected attention heads" },
        { "head_dim", "7", "even head size" },
        { "head_dim", "16", "q_proj" },
        { "vocab_size", "49", "embed_tokens" },
        { "vocab_size", "3", "outside of the vocabulary" },
        { "num_hidden_layers", "3", "model.layers.2.input_layernorm.weight is missing" },
        { "num_hidden_layers", "1", "model.layers.1" },
        { "architectures", "[\"PhiForCausalLM\"]", "expected one of LlamaForCausalLM, MistralForCausalLM" },
        { "architectures", "[\"Qwen2ForCausalLM\"]",
          "model_type: expected qwen2, which is Qwen2ForCausalLM, got llama" },
        { "model_type", "\"mistral\"", "model_type: expected llama" },
        { "unheard_of", "17", "unheard_of: 17 is not known for LlamaForCausalLM" },
        { "", "17", ": 17 is not known for LlamaForCausalLM" },
        { "num_local_experts", "8", "num_local_experts" },
        { "embedding_multiplier", "12", "embedding_multiplier" }, /* Granite's */
        { "partial_rotary_factor", "0.5", "partial_rotary_factor" },
        { "hidden_act", "\"gelu\"", "gelu" },
        { "attention_bias", "true", "attention_bias" },
        { "mlp_bias", "true", "mlp_bias" },
        { "quantization_config", "{}", "quantization_config" },
        { "rms_norm_eps", "-1", "rms_norm_eps" },
        { "rope_theta", "\"big\"", "rope_theta" },
        { "rope_scaling", "7", "rope_scaling" },
        { "rope_scaling", "{\"rope_type\": \"dynamic\", \"factor\": 2}", "dynamic" },
        { "rope_scaling", "{\"rope_type\": \"linear\"}", "factor" },
        { "rope_scaling", "{\"rope_type\": \"linear\", \"factor\": 2, \"llama_4_scaling_beta\": 2}",
          "llama_4_scaling_beta" },
        { "rope_scaling",
          "{\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4, \"high_freq_factor\": 1, "
          "\"original_max_position_embeddings\": 8192}",
          "high_freq_factor" },
        { "rope_scaling",
          "{\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4, \"high_freq_factor\": 4, "
          "\"original_max_position_embeddings\": 8192}",
          "high_freq_factor" },
        { "eos_token_id", "[1, \"x\"]", "eos_token_id" },
        { "eos_token_id", "48", "outside of the vocabulary" },
    };
    char *dir = test_scratch("badconfig"), *path = wz_path("%s/config.json", dir);
    struct wz_model *m = model_make(&config, WZ_F32);
    struct wz_err err;

    for (size_t i = 0; i < WZ_COUNT(cases); i++) {
        saved(m, dir, 0);
        edit(dir, cases[i].key, cases[i].value);
        refuses(dir, cases[i].what);
    }
    assert_int_equal(wz_file_write(path, "{\"hidden_size\": 32,\n \"hidden_size\" 3}", 37, &err), 0);
    refuses(dir, "config.json:2");
    assert_int_equal(unlink(path), 0);
    refuses(dir, "config.json");
    refuses("/nowhere/at/all", "/nowhere/at/all");
    wz_model_destroy(m);
    free(dir);
    free(path);
}

/* A head of its own is kept, whatever the config says of it; one that repeats the embedding is the embedding. */
static void heads_of_their_own(void **state)
{
    char *dir = test_scratch("head");
    struct wz_model *m = model_make(&config, WZ_F32), *read;
    const size_t size = (size_t)(config.vocab * config.dim) * sizeof(float);

    saved(m, dir, 0);
    edit(dir, "tie_word_embeddings", "true");
    read = model_of(dir, WZ_F32, be);
    assert_true(!read->config.tied && read->hash == m->hash);
    wz_model_destroy(read);
    memcpy(m->params + m->list[m->n_list - 1].at, m->params, size);
    saved(m, dir, 0);
    edit(dir, "tie_word_embeddings", "true");
    read = model_of(dir, WZ_F32, be);
    assert_true(read->config.tied && read->n_params < m->n_params);
    wz_model_destroy(read);
    wz_model_destroy(m);
    free(dir);
}

/* A folder whose model.safetensors has the tensors of m, one of them changed. */
static void tensors_write(const struct wz_model *m, const char *dir, int change, const struct wz_tensor_spec *instead,
                          int n_extra)
{
    struct wz_tensor_spec *specs = wz_alloc((size_t)(m->n_list + 1) * sizeof(*specs));
    char *path = wz_path("%s/model.safetensors", dir);
    float *zeros = wz_alloc(1 << 20);
    struct wz_err err;
    int n = 0;

    for (int i = 0; i < m->n_list; i++) {
        const struct wz_param *p = &m->list[i];

        if (i != change)
            specs[n++] = (struct wz_tensor_spec){
                p->name, WZ_DT_F32, p->cols > 0 ? 2 : 1, { (size_t)p->rows, (size_t)p->cols }
            };
        else if (instead) specs[n++] = *instead;
    }
    for (int i = 0; i < n_extra; i++) specs[n++] = instead[i];
    struct wz_safetensors_out *out = wz_safetensors_begin(path, specs, n, &err);
    assert_non_null(out);
    for (int i = 0; i < n; i++) {
        size_t count = 1;
        for (int d = 0; d < specs[i].n_dims; d++) count *= specs[i].shape[d];
        assert_int_equal(wz_safetensors_put(out, zeros, count, &err), 0);
    }
    assert_int_equal(wz_safetensors_end(out, &err), 0);
    free(zeros);
    free(path);
    free(specs);
}

static void bad_tensors(void **state)
{
    char *dir = test_scratch("badtensors"), *path = wz_path("%s/model.safetensors", dir);
    struct wz_model *m = model_make(&config, WZ_F32);
    struct wz_tensor_spec turned = { "model.layers.0.mlp.gate_proj.weight", WZ_DT_F32, 2, { 32, 64 } };
    struct wz_tensor_spec flat = { "model.norm.weight", WZ_DT_F32, 2, { 32, 1 } };
    struct wz_tensor_spec bias = { "model.layers.0.self_attn.q_proj.bias", WZ_DT_F32, 1, { 32 } };
    struct wz_tensor_spec inv = { "model.layers.0.self_attn.rotary_emb.inv_freq", WZ_DT_F32, 1, { 4 } };
    struct wz_map map;
    struct wz_err err;

    saved(m, dir, 0);
    assert_string_equal(m->list[7].name, turned.name);
    tensors_write(m, dir, -1, NULL, 0);
    wz_model_destroy(model_of(dir, WZ_F32, be));
    tensors_write(m, dir, 7, NULL, 0);
    refuses(dir, "model.layers.0.mlp.gate_proj.weight is missing");
    tensors_write(m, dir, 7, &turned, 0);
    refuses(dir, "model.layers.0.mlp.gate_proj.weight: expected shape [64, 32]");
    tensors_write(m, dir, m->n_list - 2, &flat, 0);
    refuses(dir, "model.norm.weight: expected shape [32]");
    tensors_write(m, dir, -1, &bias, 1);
    refuses(dir, "model.layers.0.self_attn.q_proj.bias: not part");
    tensors_write(m, dir, -1, &inv, 1);
    wz_model_destroy(model_of(dir, WZ_F32, be));

    saved(m, dir, 0);
    FILE *f = fopen(path, "r+");
    char head[512];
    assert_non_null(f);
    assert_int_equal(fread(head, 1, sizeof(head) - 1, f), sizeof(head) - 1);
    head[sizeof(head) - 1] = 0;
    char *type = strstr(head + 8, "\"F32\""); /* 8: the header's length, which has zeros */
    assert_non_null(type);
    assert_int_equal(fseek(f, type + 1 - head, SEEK_SET), 0);
    assert_int_equal(fputc('I', f), 'I');
    assert_int_equal(fclose(f), 0);
    refuses(dir, "type");
    assert_int_equal(wz_map_open(&map, path, &err), 0);
    long len = (long)map.len;
    wz_map_close(&map);
    for (long cut = len - 1; cut >= 0; cut -= cut > 4000 ? 997 : 61) {
        assert_int_equal(truncate(path, cut), 0);
        refuses(dir, "");
    }
    wz_model_destroy(m);
    free(dir);
    free(path);
}

/* Without a wait for the disk: there are many of these. */
/* Weights that are not finite in the type they are held in are refused, by file and tensor; those that are, are not. */
static void values_must_be_finite(void **state)
{
    static const struct {
        float value;
        bool f32, bf16; /* is it fine as that? */
    } rows[] = {
        { NAN, false, false },         { -INFINITY, false, false },     { 0x1.fffffep127f, true, false },
        { -0x1.ffp127f, true, false }, { 0x1.fefffep127f, true, true },
    };
    char *dir = test_scratch("not-finite");
    struct wz_model *m = model_make(&config, WZ_F32);
    struct wz_config read;
    struct wz_err err;

    for (size_t i = 0; i < WZ_COUNT(rows); i++)
        for (int type = WZ_F32; type <= WZ_BF16; type++) {
            const bool fine = type == WZ_F32 ? rows[i].f32 : rows[i].bf16;
            m->params[m->list[3].at + 7] = rows[i].value; /* the last of a row, in neither the first nor last tensor */
            saved(m, dir, 0);
            struct wz_model *other = wz_model_load(dir, type, NULL, be, &err);
            if (!other != !fine) fail_msg("%g as type %d: %s", (double)rows[i].value, type, fine ? err.text : "taken");
            if (!fine)
                assert_non_null(
                    strstr(err.text, "model.safetensors: tensor model.layers.0.self_attn.k_proj.weight holds"));
            assert_int_equal(wz_model_check(&read, dir, type, &err), fine ? 0 : -1);
            if (!fine) assert_non_null(strstr(err.text, "k_proj.weight holds"));
            assert_int_equal(read.dim, config.dim);
            wz_model_destroy(other);
        }
    wz_model_destroy(m);
    free(dir);
}

static void rewrite(const char *path, const void *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");

    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

/* The first `head` bytes of a file with up to four of them changed, many times over: a model or an error message, never
 * a crash. */
static void scramble(const char *load, const char *file, size_t head, uint32_t which)
{
    const char *often = getenv("WALTZ_FUZZ"); /* how many times; a long run is a matter of patience */
    uint32_t times = often ? (uint32_t)strtoul(often, NULL, 10) : 300;
    struct wz_map map;
    struct wz_err err;

    assert_int_equal(wz_map_open(&map, file, &err), 0);
    uint8_t *bytes = wz_alloc(map.len), *kept = wz_alloc(map.len);
    size_t len = map.len;
    memcpy(kept, map.bytes, len);
    wz_map_close(&map);
    if (head > len) head = len;
    for (uint32_t i = 0; i < times; i++) {
        memcpy(bytes, kept, len);
        for (uint32_t k = 0; k <= (i & 3); k++) {
            uint64_t r = wz_random((struct wz_key){ 1, WZ_RNG_TEST, which, i, k, 0 });
            bytes[r % head] = r & 1u << 30 ? (uint8_t)(r >> 40) : (uint8_t) "0123456789-e.,:[]{}\"nu"[(r >> 40) % 22];
        }
        rewrite(file, bytes, len);
        err.text[0] = 0;
        struct wz_model *m = wz_model_load(load, WZ_F32, NULL, be, &err);
        if (!m && !err.text[0]) fail_msg("%s, change %u: refused without a message", file, i);
        wz_model_destroy(m);
    }
    rewrite(file, kept, len);
    free(bytes);
    free(kept);
}

static void any_bytes(void **state)
{
    char *dir = test_scratch("bytes"), *gguf_path = test_scratch("bytes.gguf");
    struct wz_model *m = model_make(&config, WZ_F32);
    float divisors[4];

    saved(m, dir, 20000);
    for (int i = 0; i < 4; i++) divisors[i] = (float)pow(config.rope_theta, -2.0 * i / 8) / m->freq[i];
    gguf_write(m, gguf_path, divisors, "llama");
    static const char *const files[] = { "config.json", "generation_config.json", "model.safetensors.index.json",
                                         "model-00001-of-00006.safetensors" };
    for (uint32_t i = 0; i < WZ_COUNT(files); i++) {
        char *path = wz_path("%s/%s", dir, files[i]);
        scramble(dir, path, 900, i);
        wz_model_destroy(model_of(dir, WZ_F32, be)); /* put back */
        free(path);
    }
    scramble(gguf_path, gguf_path, 2000, 9);
    wz_model_destroy(m);
    free(dir);
    free(gguf_path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trips),         cmocka_unit_test(gguf),
        cmocka_unit_test(gguf_of_llama_cpp),   cmocka_unit_test(spellings),
        cmocka_unit_test(bad_configs),         cmocka_unit_test(bad_tensors),
        cmocka_unit_test(any_bytes),           cmocka_unit_test(values_must_be_finite),
        cmocka_unit_test(names_on_a_hub),      cmocka_unit_test(generation_settings_are_kept),
        cmocka_unit_test(overflow_is_refused), cmocka_unit_test(heads_of_their_own),
        cmocka_unit_test(gguf_of_every_row),   cmocka_unit_test(what_a_class_leaves_out),
    };

    return cmocka_run_group_tests(tests, open_ref, close_ref);
}
