/* hub: reads a Hugging Face folder or a GGUF file, with an adapter or none, into a model, writes a Hugging Face folder.
 *
 * A GGUF's names map one to one, but in some architectures its q and k matrices are in the order of interleaved pairs,
 * and are permuted back when read:
 *     here   head h: first halves of the pairs, then second halves     row h D + s D/2 + i
 *     GGUF   head h: pair by pair                                      row h D + 2 i + s       (s: 0 or 1)
 *
 * All names, shapes and types are checked before weights are allocated, so that a config that claims more than the
 * files hold gives an error message only. In a bf16 or f16 folder norms are f32, as in memory: nothing is rounded
 * twice. */
#include "model/inner.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CHUNK = 1 << 20 }; /* elements converted at a time, if a row is not longer */

/* Tensors that a file may hold in addition: tables that are computed here, and the embedding once more as the head. */
static bool ignored(const char *name, const struct wz_config *c)
{
    const char *inv = "rotary_emb.inv_freq";
    size_t n = strlen(name), k = strlen(inv);

    return (n >= k && !strcmp(name + n - k, inv)) || !strcmp(name, "rope_freqs.weight") ||
           (c->tied && !strcmp(name, "lm_head.weight"));
}

/* Finds every tensor of the index (found[i]) and checks shapes and types; then that the file has no other tensors. */
static int match(const struct wz_tensors *set, const struct wz_config *c, const struct wz_param *list, int n, bool gguf,
                 const char *path, const struct wz_tensor **found, struct wz_err *err)
{
    for (int i = 0; i < n; i++) {
        const struct wz_param *p = &list[i];
        const char *name = gguf ? p->gguf : p->name;
        const struct wz_tensor *t = found[i] = wz_tensors_find(set, name);
        if (!t) return wz_fail(err, "%s: tensor %s is missing", path, name);
        if (t->dtype == WZ_DT_OTHER)
            return wz_fail(err, "%s: %s: expected F32, F16, BF16, Q4_0 to Q8_0 or Q2_K to Q6_K, got type %.40s",
                           t->file, name, t->type);
        bool fits = p->cols > 0 ? t->n_dims == 2 && t->shape[0] == (size_t)p->rows && t->shape[1] == (size_t)p->cols
                                : t->n_dims == 1 && t->shape[0] == (size_t)p->rows;
        if (!fits && p->cols > 0)
            return wz_fail(err, "%s: %s: expected shape [%d, %d], got %d dimensions, the first %zu and the last %zu",
                           t->file, name, p->rows, p->cols, t->n_dims, t->n_dims > 0 ? t->shape[0] : 0,
                           t->n_dims > 0 ? t->shape[t->n_dims - 1] : 0);
        if (!fits)
            return wz_fail(err, "%s: %s: expected shape [%d], got %d dimensions and %zu elements", t->file, name,
                           p->rows, t->n_dims, t->count);
    }
    for (int i = 0; i < wz_tensors_count(set); i++) {
        const struct wz_tensor *t = wz_tensors_at(set, i);
        bool used = ignored(t->name, c);

        for (int k = 0; k < n && !used; k++) used = found[k] == t;
        if (!used)
            return wz_fail(err, "%s: unexpected tensor %s: not part of a %s of this config", t->file, t->name,
                           wz_arch_of(c)->name);
    }
    return 0;
}

/* Does the file hold a head that is not the embedding, whatever its config says? transformers 5 does not tie then. */
static bool other_head(const struct wz_tensors *set)
{
    const struct wz_tensor *head = wz_tensors_find(set, "lm_head.weight");
    const struct wz_tensor *embed = wz_tensors_find(set, "model.embed_tokens.weight");
    float a[256], b[256];

    if (!head || !embed || head->count != embed->count || head->dtype == WZ_DT_OTHER || embed->dtype == WZ_DT_OTHER)
        return head != NULL;
    if (head->dtype == embed->dtype) return memcmp(head->data, embed->data, head->bytes) != 0;
    for (size_t at = 0, n; at < head->count; at += n) {
        n = head->count - at < 256 ? head->count - at : 256;
        wz_tensor_floats(head, at, n, a);
        wz_tensor_floats(embed, at, n, b);
        if (memcmp(a, b, n * sizeof *a)) return true;
    }
    return false;
}

/* The row in the file of row r of a permuted matrix (q or k). */
static size_t gguf_row(int r, int head_dim)
{
    int h = r / head_dim, s = r % head_dim / (head_dim / 2), i = r % (head_dim / 2);

    return (size_t)h * (size_t)head_dim + 2 * (size_t)i + (size_t)s;
}

/* Weights must be finite in the type they are held in: from half a step above bf16's largest number on, it rounds to
 * infinity. merged: the adapter's file that changed them, or NULL. */
static int check_values(const struct wz_tensor *t, const char *merged, const float *values, size_t n, enum wz_type type,
                        struct wz_err *err)
{
    const float limit = type == WZ_F32 ? INFINITY : 0x1.ffp127f;
    const size_t i = wz_first_unfit(values, n, limit);

    if (i == n) return 0;
    return wz_fail(err,
                   "%s: tensor %s%s holds %g: expected finite %s weights; the file is damaged or its training diverged",
                   merged ? merged : t->file, t->name, merged ? ", merged," : "", (double)values[i],
                   type == WZ_F32 ? "f32" : "bf16");
}

/* The tensors of a model's files, by the index. */
struct files {
    char *path; /* where they are; of an adapter: its base's */
    struct wz_config config;
    struct wz_tensors *set;
    struct wz_param *list;          /* [n] */
    const struct wz_tensor **found; /* [n] */
    struct wz_adapter *adapter;     /* NULL: none */
    float *values;                  /* some rows of a tensor */
    int n;
    bool gguf;
};

static void files_close(struct files *f)
{
    wz_adapter_close(f->adapter);
    free(f->list);
    free(f->found);
    free(f->values);
    wz_tensors_close(f->set);
    free(f->path);
}

/* Checks all but the values; files_close whatever it returns. */
static int files_open(struct files *f, const char *named, struct wz_err *err)
{
    char *path = wz_base_at(named, err), *at = path ? wz_model_at(named, err) : NULL;
    size_t total, widest = CHUNK;

    *f = (struct files){ .path = path };
    int rc = path && (f->set = wz_tensors_open(path, err)) ? 0 : -1;
    f->gguf = path && !wz_is_dir(path);
    if (rc == 0) rc = (f->gguf ? wz_config_gguf(&f->config, f->set, path, err) : wz_config_hub(&f->config, path, err));
    if (rc < 0) goto out;
    if (f->config.tied && !f->gguf && other_head(f->set)) f->config.tied = false;
    f->list = wz_params_list(&f->config, &f->n, &total);
    f->found = wz_alloc((size_t)f->n * sizeof(*f->found));
    for (int i = 0; i < f->n; i++) {
        const size_t cols = (size_t)(f->list[i].cols > 0 ? f->list[i].cols : f->list[i].rows);
        if (cols > widest) widest = cols;
    }
    f->values = wz_alloc(widest * sizeof(float));
    rc = match(f->set, &f->config, f->list, f->n, f->gguf, path, f->found, err);
    if (rc == 0 && strcmp(at, path) != 0 && !(f->adapter = wz_adapter_open(at, &f->config, f->list, f->n, err)))
        rc = -1;
out:
    free(at);
    return rc;
}

/* Reads tensor `at` as `type`, and into a model, NULL: checks it only. */
static int fill(struct files *f, int at, enum wz_type type, struct wz_model *m, struct wz_err *err)
{
    const struct wz_param *p = &f->list[at];
    const struct wz_tensor *t = f->found[at];
    const struct wz_arch *arch = wz_arch_of(&f->config);
    const bool permuted =
        f->gguf && p->cols > 0 && arch->permuted && (strstr(p->name, "q_proj") || strstr(p->name, "k_proj"));
    const int rows = p->cols > 0 ? p->rows : 1, cols = p->cols > 0 ? p->cols : p->rows;
    const int step = cols < CHUNK ? CHUNK / cols : 1;
    const char *merged = f->adapter ? wz_adapter_file(f->adapter, at) : NULL;
    float *values = f->values;

    for (int r = 0; r < rows; r += step) {
        const int k = rows - r < step ? rows - r : step;

        for (int j = 0; permuted && j < k; j++)
            wz_tensor_floats(t, gguf_row(r + j, f->config.head_dim) * (size_t)cols, (size_t)cols,
                             values + (size_t)j * (size_t)cols);
        if (!permuted) wz_tensor_floats(t, (size_t)r * (size_t)cols, (size_t)k * (size_t)cols, values);
        for (int j = 0; f->gguf && p->cols == 0 && arch->one && j < cols; j++) values[j] -= 1;
        if (merged && check_values(t, NULL, values, (size_t)k * (size_t)cols, type, err) < 0) return -1;
        if (merged) wz_adapter_merge(f->adapter, m ? m->be->pool : NULL, at, r, k, values);
        if (check_values(t, merged, values, (size_t)k * (size_t)cols, type, err) < 0) return -1;
        if (m) wz_param_put(m, at, (size_t)r * (size_t)cols, (size_t)k * (size_t)cols, values);
    }
    return 0;
}

/* What a folder says besides: its generation settings, checked to be JSON when the config was read, and keys of its
 * config that are nothing here. */
static int load_settings(struct wz_model *m, const char *path, struct wz_err *err)
{
    char *file = wz_path("%s/generation_config.json", path), *config = wz_path("%s/config.json", path);
    json_t *all = wz_file_exists(config) ? wz_json_load(config, err) : json_object(), *value;
    struct wz_map map = { 0 };
    int rc = !all ? -1 : wz_file_exists(file) ? wz_map_open(&map, file, err) : 1;
    const char *key;

    m->kept = json_object();
    json_object_foreach(all, key, value) if (wz_word_in(wz_config_kept, key)) json_object_set(m->kept, key, value);
    if (rc == 0) m->generation = strndup((const char *)map.bytes, map.len);
    wz_map_close(&map);
    json_decref(all);
    free(file);
    free(config);
    return rc < 0 ? -1 : 0;
}

/* In the place of the one that wz_config_save makes of the config. */
static int save_generation(const struct wz_model *m, const char *dir, struct wz_err *err)
{
    char *file = wz_path("%s/generation_config.json", dir);
    int rc = m->generation ? wz_file_write(file, m->generation, strlen(m->generation), err) : 0;

    free(file);
    return rc;
}

int wz_model_check(struct wz_config *config, const char *path, enum wz_type type, struct wz_err *err)
{
    struct files f;
    int rc = files_open(&f, path, err);

    for (int i = 0; rc == 0 && i < f.n; i++) rc = fill(&f, i, type, NULL, err);
    *config = f.config;
    files_close(&f);
    return rc;
}

struct wz_model *wz_model_load(const char *path, enum wz_type type, const struct wz_share *trains,
                               struct wz_backend *be, struct wz_err *err)
{
    struct wz_model *m = NULL;
    struct files f;
    const struct wz_config *c = &f.config;

    if (files_open(&f, path, err) < 0) goto out;
    if (type == WZ_INT8 && (trains || !be->int8)) {
        if (trains) wz_fail(err, "%s: int8 models can't train: expected type f32 or bf16", path);
        else wz_fail(err, "%s: the %s backend does not multiply int8: expected type f32 or bf16", path, be->name);
        goto out;
    }
    if (type == WZ_INT8 && (c->ffn > 65536 || c->dim > 65536)) {
        wz_fail(err, "%s: int8: expected matrices of at most 65536 columns, got %d", path,
                c->ffn > c->dim ? c->ffn : c->dim);
        goto out;
    }
    int rc = 0;
    m = wz_model_create(c, type, trains, be);
    for (int i = 0; rc == 0 && i < f.n; i++) rc = fill(&f, i, type, m, err);
    if (rc == 0) rc = load_settings(m, f.path, err);
    if (rc == 0) wz_model_commit(m, 0);
    else {
        wz_model_destroy(m);
        m = NULL;
    }
out:
    files_close(&f);
    return m;
}

/* ---- saving ----------------------------------------------------------------------------------------------- */

static enum wz_dtype stored(const struct wz_param *p, enum wz_dtype dtype) { return p->cols > 0 ? dtype : WZ_DT_F32; }

/* Writes tensors [from, to) of the index into one file. Values that would round to infinity are refused: from half a
 * step above the type's largest number on. */
static int shard_write(const struct wz_model *m, int from, int to, enum wz_dtype dtype, const char *path,
                       struct wz_err *err)
{
    struct wz_tensor_spec *specs = wz_alloc((size_t)(to - from) * sizeof(*specs));
    const float limit = dtype == WZ_DT_F16 ? 0x1.ffep15f : 0x1.ffp127f;
    float *values = NULL;
    int rc = 0;

    for (int i = from; i < to; i++) {
        const struct wz_param *p = &m->list[i];
        specs[i - from] = (struct wz_tensor_spec){
            p->name, stored(p, dtype), p->cols > 0 ? 2 : 1, { (size_t)p->rows, (size_t)p->cols }
        };
    }
    struct wz_safetensors_out *out = wz_safetensors_begin(path, specs, to - from, err);
    if (!out) {
        rc = -1;
        goto done;
    }
    values = wz_alloc(CHUNK * sizeof(float));
    for (int i = from; i < to && rc == 0; i++)
        for (size_t at = 0, all = wz_param_count(&m->list[i]); at < all && rc == 0; at += CHUNK) {
            size_t k = all - at < CHUNK ? all - at : CHUNK;

            wz_param_get(m, i, at, k, values);
            const size_t bad = wz_first_unfit(values, k, limit);
            if (bad < k && stored(&m->list[i], dtype) != WZ_DT_F32)
                rc = wz_fail(err, "%s: tensor %s holds %g, which %s can't hold: choose another type", path,
                             m->list[i].name, (double)values[bad], dtype == WZ_DT_F16 ? "f16" : "bf16");
            else rc = wz_safetensors_put(out, values, k, err);
        }
    if (wz_safetensors_end(out, rc < 0 ? NULL : err) < 0) rc = -1;
done:
    free(values);
    free(specs);
    return rc;
}

/* Removes what an earlier save (sharded or not) left in the folder: it would be read instead of the new files. */
static int drop(const char *dir, const char *name, struct wz_err *err)
{
    char *path = wz_path("%s/%s", dir, name);
    int rc = 0;

    if (unlink(path) < 0 && errno != ENOENT) rc = wz_fail(err, "%s: %s", path, strerror(errno));
    free(path);
    return rc;
}

int wz_model_save_as(const struct wz_model *m, const char *dir, size_t shard, enum wz_dtype dtype, struct wz_err *err)
{
    size_t width = dtype == WZ_DT_F32 ? 4 : 2, total = 0;
    int *ends = wz_alloc((size_t)m->n_list * sizeof(int)), n = 0, rc = -1;
    json_t *map = json_object();
    char *path = NULL;

    assert(dtype == WZ_DT_F32 || dtype == WZ_DT_BF16 || dtype == WZ_DT_F16);
    for (size_t i = 0, held = 0; i < (size_t)m->n_list; i++) {
        size_t bytes = wz_param_count(&m->list[i]) * (m->list[i].cols > 0 ? width : 4);

        if (n == 0 || (shard > 0 && held + bytes > shard)) {
            n++;
            held = 0;
        }
        held += bytes;
        total += bytes;
        ends[n - 1] = (int)i + 1;
    }
    if (wz_mkdirs(dir, err) < 0) goto out;
    for (int s = 0; s < n; s++) {
        char name[64];

        if (shard > 0) snprintf(name, sizeof(name), "model-%05d-of-%05d.safetensors", s + 1, n);
        else snprintf(name, sizeof(name), "model.safetensors");
        free(path);
        path = wz_path("%s/%s", dir, name);
        if (shard_write(m, s > 0 ? ends[s - 1] : 0, ends[s], dtype, path, err) < 0) goto out;
        for (int i = s > 0 ? ends[s - 1] : 0; i < ends[s]; i++)
            json_object_set_new(map, m->list[i].name, json_string(name));
    }
    if (wz_config_save(&m->config, dir, dtype, m->kept, err) < 0 || save_generation(m, dir, err) < 0) goto out;
    if (shard > 0) {
        json_t *index = json_pack("{s:{s:I}, s:O}", "metadata", "total_size", (json_int_t)total, "weight_map", map);
        free(path);
        path = wz_path("%s/model.safetensors.index.json", dir);
        if (wz_json_save(index, path, err) < 0) goto out;
    }
    rc = drop(dir, shard > 0 ? "model.safetensors" : "model.safetensors.index.json", err);
out:
    json_decref(map);
    free(path);
    free(ends);
    return rc;
}

int wz_model_save(const struct wz_model *m, const char *dir, size_t shard, struct wz_err *err)
{
    return wz_model_save_as(m, dir, shard, m->type == WZ_F32 ? WZ_DT_F32 : WZ_DT_BF16, err);
}
