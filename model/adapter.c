/* adapter: low-rank changes to a model's weights (LoRA, arXiv:2106.09685), in a folder as peft writes it, added to the
 * weights while these are read:
 *
 *     adapter_config.json          whose base_model_name_or_path names the model, a folder, GGUF file or hub name
 *     adapter_model.safetensors    base_model.model.MODULE.lora_A.weight [r, in], ...lora_B.weight [out, r]
 *                                  base_model.model.TENSOR: takes the place of that tensor (modules_to_save)
 *
 *     W = W + s B A        s = lora_alpha / r, with use_rslora lora_alpha / sqrt(r) (arXiv:2312.03732)
 *
 * A module's r and lora_alpha may be others, by rank_pattern and alpha_pattern, whose keys are names here, or ends of
 * names. Sums are doubles, rounded once with W. What would change the model in another way is refused by name. */
#include "model/inner.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { BLOCK = 512 }; /* columns added up together */

struct change {
    const struct wz_tensor *a, *b, *whole; /* NULL: none */
    int r;
    double scale;
};
struct wz_adapter {
    struct wz_tensors *set;
    const struct wz_param *list; /* [n] the model's tensor index, borrowed */
    struct change *changes;      /* [n] */
    int n;
    int ready;    /* the tensor whose factors are in a and b; -1: none */
    float *a, *b; /* [r, cols], [rows, r] */
    char *path;   /* of its config, for messages */
    json_t *config;
};

/* ---- its config ------------------------------------------------------------------------------------------- */

/* Those whose values are read here, or say nothing of what the merged model computes. */
static const char keys[] =
    "peft_type r lora_alpha use_rslora target_modules rank_pattern alpha_pattern modules_to_save layers_to_transform "
    "exclude_modules init_lora_weights bias base_model_name_or_path revision task_type inference_mode auto_mapping "
    "lora_dropout layers_pattern peft_version megatron_core qalora_group_size runtime_config";
/* Others of its ways to begin change the base, too. */
static const char beginnings[] = "gaussian eva orthogonal";

static bool is_empty(const json_t *value)
{
    const char *s = json_string_value(value);

    return !value || json_is_null(value) || json_is_false(value) || (s && (!*s || !strcmp(s, "none"))) ||
           (json_is_array(value) && !json_array_size(value)) || (json_is_object(value) && !json_object_size(value));
}

static const json_t *key_of(const struct wz_adapter *a, const char *key) { return json_object_get(a->config, key); }

static int check_config(const struct wz_adapter *a, struct wz_err *err)
{
    const char *type = json_string_value(key_of(a, "peft_type")), *key,
               *begun = json_string_value(key_of(a, "init_lora_weights"));
    const json_t *value, *r = key_of(a, "r"), *alpha = key_of(a, "lora_alpha");

    if (!type || strcmp(type, "LORA") != 0)
        return wz_fail(err, "%s: peft_type: expected LORA, got %.40s", a->path, type ? type : "none");
    json_object_foreach(a->config, key, value)
    {
        if (is_empty(value) || (wz_word_in(keys, key) && strcmp(key, "bias") != 0)) continue;
        char *text = json_dumps(value, JSON_ENCODE_ANY);
        wz_fail(err, "%s: %s: %.60s is not known, and might change what the model computes: expected it to be empty",
                a->path, key, text ? text : "?");
        free(text);
        return -1;
    }
    if (begun && !wz_word_in(beginnings, begun))
        return wz_fail(err, "%s: init_lora_weights: %.40s changes the base model, too: save it as a plain LoRA",
                       a->path, begun);
    if (!json_is_integer(r) || json_integer_value(r) < 1 || json_integer_value(r) > 65536)
        return wz_fail(err, "%s: r: expected a whole number from 1 to 65536", a->path);
    if (!json_is_number(alpha) || !(fabs(json_number_value(alpha)) < 1e30))
        return wz_fail(err, "%s: lora_alpha: expected a number", a->path);
    return 0;
}

/* The module that a tensor is of: its name less ".weight" or ".bias". */
static const char *module_of(const struct wz_param *p, char module[64])
{
    snprintf(module, 64, "%.*s", (int)(strrchr(p->name, '.') - p->name), p->name);
    return module;
}

/* Is `end` a module's name, or what it ends in, from a dot on? */
static bool ends_in(const char *module, const char *end)
{
    const size_t n = strlen(module), k = strlen(end);

    return n >= k && !strcmp(module + n - k, end) && (n == k || module[n - k - 1] == '.');
}

/* The number of a module by a pattern, the first that is met; else `other`. */
static int by_pattern(const struct wz_adapter *a, const char *key, const char *module, double other, double *out,
                      struct wz_err *err)
{
    const json_t *value;
    const char *name;

    *out = other;
    json_object_foreach((json_t *)(uintptr_t)key_of(a, key), name, value)
    {
        if (name[strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")])
            return wz_fail(err, "%s: %s: \"%.100s\" is no name, but a pattern: name the modules", a->path, key, name);
        if (!json_is_number(value)) return wz_fail(err, "%s: %s: %.100s: expected a number", a->path, key, name);
        if (!ends_in(module, name)) continue;
        *out = json_number_value(value);
        return 0;
    }
    return 0;
}

/* ---- its tensors ------------------------------------------------------------------------------------------ */

static int shape_fails(const struct wz_tensor *t, size_t rows, size_t cols, struct wz_err *err)
{
    if (t->dtype == WZ_DT_OTHER)
        return wz_fail(err, "%s: %s: expected F32, F16 or BF16, got %.40s", t->file, t->name, t->type);
    if (cols ? t->n_dims == 2 && t->shape[0] == rows && t->shape[1] == cols : t->n_dims == 1 && t->shape[0] == rows)
        return 0;
    return wz_fail(err, "%s: %s: expected shape [%zu, %zu], got %d dimensions, the first %zu and the last %zu", t->file,
                   t->name, rows, cols, t->n_dims, t->n_dims ? t->shape[0] : 0,
                   t->n_dims ? t->shape[t->n_dims - 1] : 0);
}

/* The tensor of the index with that name, n bytes and `more`; -1: none. */
static int find(const struct wz_adapter *a, const char *name, size_t n, const char *more)
{
    for (int i = 0; i < a->n; i++)
        if (!strncmp(a->list[i].name, name, n) && !strcmp(a->list[i].name + n, more)) return i;
    return -1;
}

/* Puts a tensor of the file to the one that it changes. */
static int place(struct wz_adapter *a, const struct wz_tensor *t, bool tied, struct wz_err *err)
{
    static const char prefix[] = "base_model.model.", *const factors[] = { ".lora_A.weight", ".lora_B.weight" };
    const char *name = t->name + strlen(prefix);
    const size_t n = strlen(t->name) > strlen(prefix) ? strlen(name) : 0;

    if (strncmp(t->name, prefix, strlen(prefix)) != 0)
        return wz_fail(err, "%s: unexpected tensor %s: expected it to begin with %s", t->file, t->name, prefix);
    for (int f = 0; f < 2; f++) {
        const size_t k = strlen(factors[f]);
        if (n <= k || strcmp(name + n - k, factors[f]) != 0) continue;
        const int i = find(a, name, n - k, ".weight");
        if (i <= 0 || !a->list[i].cols) /* the first is the embedding */
            return wz_fail(err, "%s: %s: the model has no linear weight %.*s.weight", t->file, t->name, (int)(n - k),
                           name);
        *(f ? &a->changes[i].b : &a->changes[i].a) = t;
        return 0;
    }
    const int i = find(a, name, n, "");
    if (i < 0)
        return wz_fail(err, "%s: unexpected tensor %s: no part of the base model, or not known", t->file, t->name);
    if (tied && i == 0)
        return wz_fail(err, "%s: %s: the base model's head is its embedding, and would change with it", t->file,
                       t->name);
    a->changes[i].whole = t;
    return shape_fails(t, (size_t)a->list[i].rows, (size_t)a->list[i].cols, err);
}

/* Whether a key's list of names (exact: whole ones only), or its regex, has a module: 1, 0; -1 and a message. */
static int names(const struct wz_adapter *a, const char *key, const char *module, bool exact, struct wz_err *err)
{
    const json_t *value = key_of(a, key), *name;
    int has = 0;
    size_t i;

    if (is_empty(value)) return 0;
    if (json_is_string(value)) {
        has = wz_pattern_whole(json_string_value(value), module, err);
        return has < 0 ? wz_fail_in(err, "%s: %s", a->path, key) : has;
    }
    if (!json_is_array(value)) return wz_fail(err, "%s: %s: expected a list of names, or a pattern", a->path, key);
    json_array_foreach(value, i, name)
    {
        const char *s = json_string_value(name);
        if (!s) return wz_fail(err, "%s: %s: expected names", a->path, key);
        has |= exact ? !strcmp(module, s) : ends_in(module, s);
    }
    return has;
}

/* Whether layers_to_transform, an index or a list of them, has a module's layer, counted behind layers_pattern. */
static int in_layers(const struct wz_adapter *a, const char *module, struct wz_err *err)
{
    const json_t *layers = key_of(a, "layers_to_transform"), *of = key_of(a, "layers_pattern"), *item;
    bool has = false;
    int layer, rc = 0;
    size_t i = 0;

    if (is_empty(layers)) return 1;
    if (sscanf(module, "model.layers.%d.", &layer) != 1) return 0;
    if (!json_is_array(layers)) has = json_is_integer(layers) && json_integer_value(layers) == layer;
    json_array_foreach(layers, i, item) has |= json_is_integer(item) && json_integer_value(item) == layer;
    if (!has || is_empty(of)) return has;
    for (i = 0; rc == 0 && i < (json_is_array(of) ? json_array_size(of) : 1); i++) {
        const char *name = json_string_value(json_is_array(of) ? json_array_get(of, i) : of);
        if (!name) return wz_fail(err, "%s: layers_pattern: expected a name, or a list of names", a->path);
        char *pattern = wz_path("(?:^|.*?\\.)%s\\.%d\\..*", name, layer);
        rc = wz_pattern_whole(pattern, module, err);
        free(pattern);
    }
    return rc < 0 ? wz_fail_in(err, "%s: layers_pattern", a->path) : rc;
}

/* Whether the config says that this weight is changed, as peft reads it: what is named in full, by a pattern or as one
 * of all is so in every layer. -1 and a message. */
static int is_target(const struct wz_adapter *a, int i, const char *module, struct wz_err *err)
{
    const char *all = json_string_value(key_of(a, "target_modules"));
    const int excluded = names(a, "exclude_modules", module, false, err),
              saved = names(a, "modules_to_save", module, false, err);

    if (excluded || saved) return excluded < 0 || saved < 0 ? -1 : 0;
    if (all && !strcasecmp(all, "all-linear")) return i > 0 && a->list[i].cols && strcmp(module, "lm_head") != 0;
    const int whole = names(a, "target_modules", module, true, err);
    if (whole || all) return whole;
    const int has = names(a, "target_modules", module, false, err);
    return has > 0 ? in_layers(a, module, err) : has;
}

static int check_change(struct wz_adapter *a, int i, struct wz_err *err)
{
    const struct wz_param *p = &a->list[i];
    struct change *c = &a->changes[i];
    char module[64];
    double r, alpha;

    module_of(p, module);
    const int target = is_target(a, i, module, err);
    if (target < 0) return -1;
    if (!c->a && !c->b) {
        if (c->whole || !target) return 0;
        if (i == 0 || !p->cols) return wz_fail(err, "%s: target_modules: %s is no linear weight", a->path, module);
        return wz_fail(err, "%s: target_modules: its tensors have no change of %s", a->path, module);
    }
    if (!c->a || !c->b) return wz_fail(err, "%s: %s has only one of lora_A and lora_B", a->path, module);
    if (!target)
        return wz_fail(err, "%s: %s: its config changes no %s (target_modules, exclude_modules, layers_to_transform)",
                       c->a->file, c->a->name, module);
    if (by_pattern(a, "rank_pattern", module, (double)json_integer_value(key_of(a, "r")), &r, err) < 0 ||
        by_pattern(a, "alpha_pattern", module, json_number_value(key_of(a, "lora_alpha")), &alpha, err) < 0)
        return -1;
    if (!(r >= 1 && r <= 65536 && r == floor(r)))
        return wz_fail(err, "%s: rank_pattern: expected a whole number for %s", a->path, module);
    c->r = (int)r;
    c->scale = alpha / (json_is_true(key_of(a, "use_rslora")) ? sqrt(r) : r);
    return shape_fails(c->a, (size_t)c->r, (size_t)p->cols, err) < 0 ||
                   shape_fails(c->b, (size_t)p->rows, (size_t)c->r, err) < 0
               ? -1
               : 0;
}

/* Every name in modules_to_save is that of a tensor here. */
static int check_saved(const struct wz_adapter *a, struct wz_err *err)
{
    const json_t *name;
    size_t i;

    json_array_foreach(key_of(a, "modules_to_save"), i, name)
    {
        const char *want = json_string_value(name);
        bool found = false;
        for (int k = 0; k < a->n && want && !found; k++) {
            char module[64];
            found = a->changes[k].whole && ends_in(module_of(&a->list[k], module), want);
        }
        if (!found)
            return wz_fail(err, "%s: modules_to_save: %.60s is not among its tensors, or not a part of the base model",
                           a->path, want ? want : "what is no name");
    }
    return 0;
}

struct wz_adapter *wz_adapter_open(const char *dir, const struct wz_config *config, const struct wz_param *list, int n,
                                   struct wz_err *err)
{
    struct wz_adapter *a = wz_alloc(sizeof *a);
    char *file = wz_path("%s/adapter_model.safetensors", dir);
    int rc = -1;

    a->path = wz_path("%s/adapter_config.json", dir);
    a->list = list;
    a->n = n;
    a->ready = -1;
    a->changes = wz_alloc(wz_mul((size_t)n, sizeof *a->changes));
    if (!(a->config = wz_json_load(a->path, err)) || check_config(a, err) < 0) goto out;
    if (!(a->set = wz_tensors_open(file, err))) goto out;
    for (int i = 0; i < wz_tensors_count(a->set); i++)
        if (place(a, wz_tensors_at(a->set, i), config->tied, err) < 0) goto out;
    for (int i = 0; i < n; i++)
        if (check_change(a, i, err) < 0) goto out;
    rc = check_saved(a, err);
out:
    free(file);
    if (rc == 0) return a;
    wz_adapter_close(a);
    return NULL;
}

void wz_adapter_close(struct wz_adapter *a)
{
    if (!a) return;
    wz_tensors_close(a->set);
    json_decref(a->config);
    free(a->changes);
    free(a->a);
    free(a->b);
    free(a->path);
    free(a);
}

/* ---- merging ---------------------------------------------------------------------------------------------- */

static float *floats_of(const struct wz_tensor *t, float *old)
{
    float *to = wz_realloc(old, wz_mul(t->count ? t->count : 1, sizeof *to));

    if (t->count) wz_tensor_floats(t, 0, t->count, to);
    return to;
}

struct merging {
    const struct wz_adapter *a;
    const struct change *change;
    int cols, row;
    float *values;
};

static void merge_row(void *arg, int j)
{
    const struct merging *m = arg;
    const int r = m->change->r;
    const float *b = m->a->b + (size_t)(m->row + j) * (size_t)r;
    float *values = m->values + (size_t)j * (size_t)m->cols;
    double sum[BLOCK];

    for (int at = 0; at < m->cols; at += BLOCK) {
        const int n = m->cols - at < BLOCK ? m->cols - at : BLOCK;
        memset(sum, 0, sizeof sum);
        for (int q = 0; q < r; q++) {
            const float *a = m->a->a + (size_t)q * (size_t)m->cols + at;
            for (int k = 0; k < n; k++) sum[k] += (double)b[q] * (double)a[k];
        }
        for (int k = 0; k < n; k++) values[at + k] = (float)((double)values[at + k] + m->change->scale * sum[k]);
    }
}

const char *wz_adapter_file(const struct wz_adapter *a, int i)
{
    const struct change *c = &a->changes[i];

    return c->whole ? c->whole->file : c->a ? c->a->file : NULL;
}

void wz_adapter_merge(struct wz_adapter *a, struct wz_pool *pool, int i, int row, int rows, float *values)
{
    const struct wz_param *p = &a->list[i];
    const struct change *c = &a->changes[i];
    const size_t cols = p->cols ? (size_t)p->cols : (size_t)p->rows;

    if (c->whole) wz_tensor_floats(c->whole, (size_t)row * cols, (size_t)rows * cols, values);
    if (!c->a) return;
    if (a->ready != i) {
        a->a = floats_of(c->a, a->a);
        a->b = floats_of(c->b, a->b);
        a->ready = i;
    }
    struct merging m = { a, c, p->cols, row, values };
    wz_pool_run(pool, rows, merge_row, &m);
}
