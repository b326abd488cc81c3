/* Named arrays in files: opening by kind of file, finding by name. quants.c converts them to f32.
 *
 *   a file ending in .gguf, or beginning with "GGUF" ─▶ gguf.c
 *   any other file                                   ─▶ safetensors.c
 *   a folder ─▶ model.safetensors, else every shard that model.safetensors.index.json names
 *
 * The data is never copied: a tensor points into the mapped file, at any alignment. */
#include "store/tensors.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "both formats are little endian and are read in place");

/* ---- the set ---------------------------------------------------------------------------------------------- */

const struct wz_map *wz_tensors_map(struct wz_tensors *set, const char *path, struct wz_err *err)
{
    struct wz_map map;

    if (wz_map_open(&map, path, err) < 0) return NULL;
    set->maps = wz_realloc(set->maps, sizeof *set->maps * (size_t)(set->n_maps + 1));
    set->maps[set->n_maps] = map;
    return &set->maps[set->n_maps++];
}

struct wz_tensor *wz_tensors_add(struct wz_tensors *set)
{
    if (set->n == set->cap) {
        set->cap = set->cap ? 2 * set->cap : 64;
        set->list = wz_realloc(set->list, wz_mul(sizeof *set->list, (size_t)set->cap));
    }
    set->list[set->n] = (struct wz_tensor){ 0 };
    return &set->list[set->n++];
}

bool wz_tensor_count(struct wz_tensor *t)
{
    t->count = 1;
    for (int i = 0; i < t->n_dims; i++)
        if (t->shape[i] > INT64_MAX || __builtin_mul_overflow(t->count, t->shape[i], &t->count)) return false;
    return true;
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(const struct wz_tensor *const *)a)->name, (*(const struct wz_tensor *const *)b)->name);
}

static int index_names(struct wz_tensors *set, struct wz_err *err)
{
    set->by_name = wz_realloc(NULL, sizeof *set->by_name * (size_t)(set->n + 1));
    for (int i = 0; i < set->n; i++) set->by_name[i] = &set->list[i];
    qsort(set->by_name, (size_t)set->n, sizeof *set->by_name, by_name);
    for (int i = 1; i < set->n; i++) {
        const struct wz_tensor *a = set->by_name[i - 1], *b = set->by_name[i];
        if (!strcmp(a->name, b->name))
            return wz_fail(err, "%s: tensor %.200s appears twice (also in %s)", a->file, a->name, b->file);
    }
    return 0;
}

/* {"weight_map": {"tensor": "shard file in the same folder", ...}}. Every name listed must be in the shard it names. */
static int read_shards(struct wz_tensors *set, const char *dir, const char *index_path, struct wz_err *err)
{
    json_t *index = wz_json_load(index_path, err), *map, *shards = json_object(), *value;
    const char *key;
    int rc = -1;

    if (!index) goto out;
    map = json_object_get(index, "weight_map");
    if (!json_is_object(map) || !json_object_size(map)) {
        wz_fail(err, "%s: weight_map: expected an object of tensor names and files", index_path);
        goto out;
    }
    json_object_foreach(map, key, value)
    {
        const char *shard = json_string_value(value);
        if (!shard || !*shard || strchr(shard, '/') || !strcmp(shard, "..")) {
            wz_fail(err, "%s: weight_map: %.200s: expected a file name in the same folder", index_path, key);
            goto out;
        }
        if (json_object_get(shards, shard)) continue;
        char *path = wz_path("%s/%s", dir, shard);
        json_object_set_new(shards, shard, json_true());
        int bad = wz_safetensors_read(set, path, err);
        free(path);
        if (bad) goto out;
    }
    if (index_names(set, err) < 0) goto out;
    json_object_foreach(map, key, value)
    {
        const struct wz_tensor *t = wz_tensors_find(set, key);
        const char *base = t ? strrchr(t->file, '/') + 1 : NULL;
        if (!t || strcmp(base, json_string_value(value))) {
            wz_fail(err, "%s: weight_map: tensor %.200s is not in %.200s", index_path, key, json_string_value(value));
            goto out;
        }
    }
    rc = 0;
out:
    json_decref(index);
    json_decref(shards);
    return rc;
}

static bool is_gguf(const char *path)
{
    char magic[4] = "";
    FILE *f = fopen(path, "rb");
    bool yes = f && fread(magic, 1, 4, f) == 4 && !memcmp(magic, "GGUF", 4);
    size_t n = strlen(path);

    if (f) fclose(f);
    return yes || (n > 5 && !strcmp(path + n - 5, ".gguf"));
}

static int read_folder(struct wz_tensors *set, const char *dir, struct wz_err *err)
{
    char *one = wz_path("%s/model.safetensors", dir), *index = wz_path("%s/model.safetensors.index.json", dir),
         *adapter = wz_path("%s/adapter_model.safetensors", dir);
    int rc;

    if (wz_file_exists(one)) rc = wz_safetensors_read(set, one, err);
    else if (wz_file_exists(index)) rc = read_shards(set, dir, index, err);
    else if (wz_file_exists(adapter)) rc = wz_safetensors_read(set, adapter, err);
    else rc = wz_fail(err, "%s: no model.safetensors or model.safetensors.index.json in the folder", dir);
    free(adapter);
    free(one);
    free(index);
    return rc;
}

/* ---- where models are ------------------------------------------------------------------------------------- */

/* Could it be a model's name on a hub: owner/name or owner/name@revision? The length of owner/name, 0: no. */
static size_t hub_name(const char *path)
{
    const char *slash = strchr(path, '/');
    const size_t n = strcspn(path, "@");

    if (!slash || slash == path || slash[1] == '/' || !slash[1] || strchr("./~", *path) || strstr(path, "..")) return 0;
    return slash + 1 < path + n && !memchr(slash + 1, '/', (size_t)(path + n - slash - 1)) ? n : 0;
}

/* The folder of huggingface_hub's cache, heap. */
static char *hub_cache(void)
{
    static const struct {
        const char *variable, *under;
    } places[] = { { "HF_HUB_CACHE", "" },
                   { "HUGGINGFACE_HUB_CACHE", "" },
                   { "HF_HOME", "/hub" },
                   { "XDG_CACHE_HOME", "/huggingface/hub" },
                   { "HOME", "/.cache/huggingface/hub" } };

    for (size_t i = 0; i < WZ_COUNT(places); i++) {
        const char *value = getenv(places[i].variable);
        if (value && *value) return wz_path("%s%s", value, places[i].under);
    }
    return wz_strdup(".cache/huggingface/hub");
}

/* The snapshot of owner/name, n bytes of it, in the cache; NULL: it is not there.
 *
 *   CACHE/models--OWNER--NAME/refs/REVISION      a commit's name
 *   CACHE/models--OWNER--NAME/snapshots/COMMIT/  its files */
static char *hub_snapshot(const char *cache, const char *name, size_t n)
{
    const char *slash = strchr(name, '/'), *revision = name[n] ? name + n + 1 : "main";
    char *repo =
        wz_path("%s/models--%.*s--%.*s", cache, (int)(slash - name), name, (int)(name + n - slash - 1), slash + 1);
    char *ref = wz_path("%s/refs/%s", repo, revision), *commit = wz_strdup(revision), *found;
    struct wz_map map = { 0 };

    if (wz_file_exists(ref) && !wz_is_dir(ref) && wz_map_open(&map, ref, NULL) == 0 && map.len < 100) {
        free(commit);
        commit = strndup((const char *)map.bytes, map.len);
        commit[strcspn(commit, " \r\n/")] = 0;
    }
    wz_map_close(&map);
    found = wz_path("%s/snapshots/%s", repo, commit);
    if (!*commit || !wz_is_dir(found)) {
        free(found);
        found = NULL;
    }
    free(repo);
    free(ref);
    free(commit);
    return found;
}

char *wz_model_at(const char *path, struct wz_err *err)
{
    static const struct {
        const char *mark, *what;
    } others[] = {
        { "recipe.yaml", "the folder of a run, not of a model; its models are in checkpoints/STEP/AGENT" },
        { "manifest.json", "a checkpoint, not a model; its models are the folders in it, one for each agent" },
    };
    const size_t n = wz_file_exists(path) ? 0 : hub_name(path);
    char *cache = hub_cache(), *at = n ? hub_snapshot(cache, path, n) : wz_strdup(path);

    if (!at)
        wz_fail(err,
                "%s: there is no such file or folder, and no such model in the hub's cache %s: fetch it by "
                "`hf download %.*s%s%s`",
                path, cache, (int)n, path, path[n] ? " --revision " : "", path[n] ? path + n + 1 : "");
    else if (!wz_file_exists(at)) wz_fail(err, "%s: there is no such file or folder", path);
    char *config = at && wz_file_exists(at) ? wz_path("%s/config.json", at) : NULL;
    bool well = config;
    for (size_t i = 0; i < WZ_COUNT(others) && well && wz_is_dir(at) && !wz_file_exists(config); i++) {
        char *mark = wz_path("%s/%s", at, others[i].mark);
        if (wz_file_exists(mark)) well = wz_fail(err, "%s: this is %s", path, others[i].what) == 0;
        free(mark);
    }
    free(config);
    free(cache);
    if (well) return at;
    free(at);
    return NULL;
}

char *wz_base_at(const char *path, struct wz_err *err)
{
    char *at = wz_model_at(path, err), *config = wz_path("%s/config.json", at ? at : ""),
         *file = wz_path("%s/adapter_config.json", at ? at : ""), *base = NULL;
    json_t *adapter = NULL;

    if (!at || wz_file_exists(config) || !wz_file_exists(file)) goto out;
    if ((adapter = wz_json_load(file, err))) {
        const char *name = json_string_value(json_object_get(adapter, "base_model_name_or_path")),
                   *revision = json_string_value(json_object_get(adapter, "revision"));
        char *named = name && revision && !wz_file_exists(name) ? wz_path("%s@%s", name, revision) : NULL;
        if (!name || !*name) wz_fail(err, "expected the base model's folder, GGUF file or hub name");
        else base = wz_model_at(named ? named : name, err);
        if (!base) wz_fail_in(err, "%s: base_model_name_or_path", file);
        free(named);
    }
    free(at);
    at = base;
out:
    json_decref(adapter);
    free(config);
    free(file);
    return at;
}

struct wz_tensors *wz_tensors_open(const char *path, struct wz_err *err)
{
    char *at = wz_model_at(path, err);

    if (!at) return NULL;
    struct wz_tensors *set = wz_alloc(sizeof *set);
    int rc = wz_is_dir(at) ? read_folder(set, at, err)
             : is_gguf(at) ? wz_gguf_read(set, at, err)
                           : wz_safetensors_read(set, at, err);
    free(at);
    if (rc < 0 || (!set->by_name && index_names(set, err) < 0)) {
        wz_tensors_close(set);
        return NULL;
    }
    return set;
}

void wz_tensors_close(struct wz_tensors *set)
{
    if (!set) return;
    for (int i = 0; i < set->n_maps; i++) wz_map_close(&set->maps[i]);
    free(set->maps);
    free(set->list);
    free(set->by_name);
    json_decref(set->meta);
    wz_arena_finish(&set->arena);
    free(set);
}

int wz_tensors_count(const struct wz_tensors *set) { return set->n; }

const struct wz_tensor *wz_tensors_at(const struct wz_tensors *set, int i)
{
    assert(i >= 0 && i < set->n);
    return &set->list[i];
}

const struct wz_tensor *wz_tensors_find(const struct wz_tensors *set, const char *name)
{
    const struct wz_tensor key = { .name = name }, *want = &key;
    const struct wz_tensor **at =
        set->n ? bsearch(&want, set->by_name, (size_t)set->n, sizeof *set->by_name, by_name) : NULL;

    return at ? *at : NULL;
}

const json_t *wz_tensors_meta(const struct wz_tensors *set) { return set->meta; }
