/* What decides the bits of a run besides its recipe: the files that the recipe names, and what `auto` was resolved to
 * (guarantees 3 and 6). One list of rows, a JSON object in the checkpoint's manifest:
 *
 *   "agents.0.model/config.json": {"path": "models/base/config.json", "is": "xxh3 0123456789abcdef"}
 *
 * The name is the recipe's key, for a folder with the file in it; of the recipe's values only these can change while
 * the text of the recipe stays the same. */
#include "run/job.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Names of files may be any bytes, and JSON is UTF-8. */
static char *printable(const char *s)
{
    const size_t n = strlen(s);
    char *to = wz_alloc(4 * n + 1);

    wz_printable(to, 4 * n + 1, s, n, "");
    return to;
}

static void add(json_t *list, const char *name, const char *path, const char *is)
{
    char *key = printable(name), *at = printable(path);

    json_object_set_new(list, key, json_pack("{s:s, s:s}", "path", at, "is", is));
    free(key);
    free(at);
}

static int add_file(json_t *list, struct wz_pool *pool, const char *name, const char *path, struct wz_err *err)
{
    struct wz_map map;
    char is[32];

    if (wz_map_open(&map, path, err) < 0) return -1;
    snprintf(is, sizeof is, "xxh3 %016" PRIx64, wz_hash_pieces(pool, map.bytes, map.len));
    wz_map_close(&map);
    add(list, name, path, is);
    return 0;
}

/* What a model is read from: configurations, tokenizers, chat templates, tensors. */
static int is_read(const struct dirent *e)
{
    static const char *const endings[] = { ".json", ".model", ".jinja", ".safetensors" };
    const char *dot = strrchr(e->d_name, '.');
    int found = 0;

    for (size_t i = 0; dot && i < WZ_COUNT(endings); i++) found |= !strcmp(dot, endings[i]);
    return found;
}

static int add_folder(json_t *list, struct wz_pool *pool, const char *name, const char *path,
                      int (*which)(const struct dirent *), struct wz_err *err)
{
    struct dirent **files;
    int n = scandir(path, &files, which, NULL), rc = n < 0 ? wz_fail(err, "%s: %s", path, strerror(errno)) : 0;

    for (int i = 0; i < n; i++) {
        char *file = wz_path("%s/%s", path, files[i]->d_name), *row = wz_path("%s/%s", name, files[i]->d_name);
        if (rc == 0 && !wz_is_dir(file)) rc = add_file(list, pool, row, file, err);
        free(file);
        free(row);
        free(files[i]);
    }
    if (n >= 0) free(files);
    return rc;
}

/* A file or a folder. One that is gone is left out: who needs it says so, and a model is not needed any more once its
 * agent has learnt and its stage is over. */
static int add_path(json_t *list, struct wz_pool *pool, const char *path, struct wz_err *err, const char *fmt, ...)
    WZ_PRINTF(5, 6);
static int add_path(json_t *list, struct wz_pool *pool, const char *path, struct wz_err *err, const char *fmt, ...)
{
    char name[64];
    va_list args;

    va_start(args, fmt);
    vsnprintf(name, sizeof name, fmt, args);
    va_end(args);
    char *at = path[0] ? wz_model_at(path, NULL) : NULL; /* it returns other files as they are */
    int rc = !at             ? 0
             : wz_is_dir(at) ? add_folder(list, pool, name, at, is_read, err)
                             : add_file(list, pool, name, at, err);
    char *base = at && wz_is_dir(at) ? wz_base_at(at, NULL) : NULL; /* of an adapter */
    if (rc == 0 && base && strcmp(base, at) != 0) rc = add_path(list, pool, base, err, "%s.base", name);
    free(base);
    free(at);
    return rc;
}

static int add_data(json_t *list, struct wz_pool *pool, const struct wz_recipe_data *data, const char *key, unsigned i,
                    struct wz_err *err)
{
    int rc = add_path(list, pool, data->path, err, "%s.%u.path", key, i);

    return rc ? rc : add_path(list, pool, data->prefill.path, err, "%s.%u.prefill.path", key, i);
}

/* Only the cpu backend resolves the key, to the name of its bits. */
static const char *isa_of(const struct wz_backend *be) { return strcmp(be->name, "cpu") ? "none" : be->numerics.isa; }

static const char order_key[] = "numerics.bf16";

static const char *order_of(const struct wz_backend *be) { return be->amx ? "amx" : "chain"; }

static int add_judge(json_t *list, struct wz_backend *be, const struct wz_recipe_judge *judge, const char *key,
                     struct wz_err *err)
{
    const struct wz_judge_config how = wz_job_judge_config(judge, be);
    struct wz_pool *pool = be->pool;
    struct wz_judge kind;
    struct wz_err none; /* opening the judge says it */
    char is[32], name[32];
    int rc = add_path(list, pool, judge->phrases, err, "%s.phrases", key);

    if (rc == 0) rc = add_path(list, pool, judge->rubric, err, "%s.rubric", key);
    if (rc == 0 && wz_judge_begin(&kind, &how, &none) == 0 && kind.model) /* else it is a name at the other end */
        rc = add_path(list, pool, judge->model, err, "%s.model", key);

    snprintf(is, sizeof is, "xxh3 %016" PRIx64, wz_judge_built_in(!strcmp(judge->world, "yes")));
    snprintf(name, sizeof name, "%s.name", key);
    add(list, name, "what is built into the judge", is);
    return rc;
}

int wz_inputs_find(const struct wz_job *job, json_t **list, struct wz_err *err)
{
    const struct wz_recipe *r = job->recipe;
    struct wz_pool *pool = job->be->pool;
    json_t *all = *list = json_object();
    char key[24];
    int rc = 0;

    add(all, "backend", "the compute backend", job->be->name);
    add(all, "numerics.isa", "the instruction set", isa_of(job->be));
    add(all, order_key, "the order of sums in bf16", order_of(job->be));
    for (unsigned i = 0; rc == 0 && i < r->n_agents; i++) {
        rc = add_path(all, pool, r->agents[i].model, err, "agents.%u.model", i);
        if (rc == 0) rc = add_path(all, pool, r->agents[i].system, err, "agents.%u.system", i);
    }
    for (unsigned i = 0; rc == 0 && i < r->n_data; i++) rc = add_data(all, pool, &r->data[i], "data", i, err);
    for (unsigned i = 0; rc == 0 && i < r->n_eval; i++) rc = add_data(all, pool, &r->eval[i], "eval", i, err);
    if (rc == 0) rc = add_path(all, pool, r->evaluate.text, err, "evaluate.text");
    for (unsigned i = 0; rc == 0 && i < r->n_judges; i++) {
        snprintf(key, sizeof key, "judges.%u", i);
        rc = add_judge(all, job->be, &r->judges[i], key, err);
    }
    return rc == 0 && !r->n_judges ? add_judge(all, job->be, &r->judge, "judge", err) : rc;
}

int wz_inputs_saved(const char *dir, struct wz_pool *pool, json_t **list, struct wz_err *err)
{
    struct dirent **names;
    int n = scandir(dir, &names, NULL, NULL), rc = n < 0 ? wz_fail(err, "%s: %s", dir, strerror(errno)) : 0;
    const char *name;
    json_t *row;

    *list = json_object();
    for (int i = 0; i < n; i++) {
        char *path = wz_path("%s/%s", dir, names[i]->d_name);
        const bool folder = names[i]->d_name[0] != '.' && wz_is_dir(path);
        if (rc == 0 && folder) rc = add_folder(*list, pool, names[i]->d_name, path, is_read, err);
        else if (rc == 0 && is_read(names[i]) && strcmp(names[i]->d_name, "manifest.json") != 0)
            rc = add_file(*list, pool, names[i]->d_name, path, err);
        free(path);
        free(names[i]);
    }
    if (n >= 0) free(names);
    json_object_foreach(*list, name, row) json_object_set(*list, name, json_object_get(row, "is"));
    return rc;
}

static const char *text_of(const json_t *list, const char *name, const char *key)
{
    return json_string_value(json_object_get(json_object_get(list, name), key));
}

/* Is there a row whose name begins with these n bytes? */
static bool begins(const json_t *list, const char *with, size_t n)
{
    const char *name;
    json_t *row;

    json_object_foreach((json_t *)(uintptr_t)list, name, row) if (!strncmp(name, with, n)) return true;
    return false;
}

const char *wz_inputs_differ(const json_t *was, const json_t *now, const char **had, const char **has)
{
    const char *name;
    json_t *row;

    *had = *has = "no such file";
    json_object_foreach((json_t *)(uintptr_t)now, name, row)
    {
        const char *a = text_of(was, name, "is"), *b = text_of(now, name, "is");
        if (!a && !strcmp(name, order_key)) a = "chain"; /* of a manifest from before there was another */
        if (a && b && !strcmp(a, b)) continue;
        if (a) *had = a;
        *has = b;
        return name;
    }
    json_object_foreach((json_t *)(uintptr_t)was, name, row)
    {
        const char *slash = strchr(name, '/'), *a = text_of(was, name, "is");
        if (json_object_get(now, name) || !slash || !begins(now, name, (size_t)(slash - name) + 1)) continue;
        if (a) *had = a;
        return name;
    }
    return NULL;
}

int wz_inputs_check(const struct wz_job *job, const json_t *was, const json_t *now, struct wz_err *err)
{
    const char *had, *has, *name = wz_inputs_differ(was, now, &had, &has);

    if (!name) return 0;
    const char *path = text_of(json_object_get(now, name) ? now : was, name, "path");
    char *key = strndup(name, strcspn(name, "/"));
    wz_recipe_fail(job->recipe, err, key,
                   "%.200s: expected %s, as when the run in %.120s began, got %s; restore it to resume that run, or "
                   "choose another `out` to begin one",
                   path ? path : name, had, job->recipe->out, has);
    free(key);
    return -1;
}

int wz_inputs_alike(struct wz_job *job, struct wz_err *err)
{
    const int n = job->link.size;
    const bool computes = job->roles.rollout.me >= 0 || job->roles.learner.me >= 0;
    struct wz_buf *all = wz_alloc(sizeof *all * (size_t)n);
    int *ranks = wz_alloc(sizeof *ranks * (size_t)n), first = -1, rc = 0;
    char host[65] = "", *mine;

    for (int r = 0; r < n; r++) ranks[r] = r;
    gethostname(host, sizeof host - 1);
    mine = computes ? wz_path("%s, instruction set %s, %s=%s (host %s)", job->be->name, isa_of(job->be), order_key,
                              order_of(job->be), host)
                    : wz_strdup("");
    wz_all_gather_bytes(&job->link, &(struct wz_group){ n, job->link.rank, ranks }, mine, strlen(mine), all);
    for (int r = 0; r < n; r++) {
        if (!all[r].len) continue; /* computes nothing that has bits */
        if (first < 0) first = r;
        else if (strncmp(all[first].data, all[r].data, strcspn(all[first].data, "(")) && rc == 0)
            rc = wz_fail(err,
                         "rank %d computes with the backend %s, rank %d with %s: their results would differ; set "
                         "`backend`, `numerics.isa` and `numerics.bf16` to what all hosts have",
                         r, all[r].data, first, all[first].data);
    }
    for (int r = 0; r < n; r++) wz_buf_finish(&all[r]);
    free(all);
    free(ranks);
    free(mine);
    return rc;
}
