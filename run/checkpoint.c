/* One joint checkpoint: every agent's weights and optimizer state and the counters under one manifest (guarantee 3).
 *
 *   RUN/checkpoints/<step>/manifest.json          step, stage, versions, hashes, chain
 *                          <agent>/               a Hugging Face model folder, for agents that learn in some stage
 *                          <agent>.moments.safetensors   AdamW's m and v, for agents that this stage trains, and the
 *                                                 f32 masters of those that train in bf16: whole arrays, however many
 *                                                 ranks hold their shards
 *
 * Everything is written into a folder of another name, renamed last: a checkpoint exists whole or not at all. It holds
 * no episodes in flight: a step begins after the previous one has ended on every rank. */
#include "run/job.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <ftw.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *ftw) { return remove(path); }

static void remove_tree(const char *path)
{
    if (wz_is_dir(path)) nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

enum { CHUNK = WZ_CHUNK_BYTES / sizeof(float) }; /* floats per message */

/* Arrays that are sharded over the learners: the masters of a bf16 agent, the moments of one that learns in this stage.
 * Returns how many. */
struct part {
    const char *name;
    float *mine; /* this learner's shard, in the backend's memory */
};
static int parts_of(const struct wz_agent *a, struct part parts[3])
{
    int n = 0;

    if (a->model && a->model->masters) parts[n++] = (struct part){ "masters", a->model->masters };
    if (a->learner.model) parts[n++] = (struct part){ "m", a->learner.opt.m };
    if (a->learner.model) parts[n++] = (struct part){ "v", a->learner.opt.v };
    return n;
}

/* Gathers one sharded array on the root, in order of the array, into `out`; the other learners send their shard. */
static int gather(struct wz_job *job, const struct wz_agent *a, const float *mine, struct wz_safetensors_out *out,
                  struct wz_err *err)
{
    const struct wz_ranks *learner = &job->roles.learner;
    struct wz_buf came = { 0 };
    int rc = 0;

    for (int s = 0; s < learner->n; s++) {
        int owner = wz_shard_owner(s, learner->n);
        size_t n = owner == learner->me || job->root ? wz_shard_of(owner, learner->n, a->model->n_params).n : 0;
        for (size_t at = 0; at < n && rc == 0; at += CHUNK) {
            size_t k = n - at < CHUNK ? n - at : CHUNK;
            const float *chunk = job->chunk;
            if (owner == learner->me) wz_download(job->be, job->chunk, mine + at, k * sizeof(float));
            else {
                wz_recv(&job->link, learner->ranks[owner], WZ_TAG_MOMENTS, &came);
                assert(came.len == k * sizeof(float));
                chunk = (const float *)(const void *)came.data;
            }
            if (job->root) rc = wz_safetensors_put(out, chunk, k, err);
            else wz_send(&job->link, learner->ranks[0], WZ_TAG_MOMENTS, chunk, k * sizeof(float));
            wz_flush(&job->link);
        }
    }
    wz_buf_finish(&came);
    return rc;
}

static char *parts_path(const char *dir, const struct wz_agent *a)
{
    return wz_path("%s/%s.moments.safetensors", dir, a->recipe->name);
}

static int save_parts(struct wz_job *job, struct wz_agent *a, const char *dir, struct wz_err *err)
{
    struct part parts[3];
    struct wz_tensor_spec specs[3];
    int n = parts_of(a, parts);

    if (!n) return 0;
    for (int i = 0; i < n; i++)
        specs[i] = (struct wz_tensor_spec){ parts[i].name, WZ_DT_F32, 1, { a->model->n_params } };
    char *path = parts_path(dir, a);
    struct wz_safetensors_out *out = wz_safetensors_begin(path, specs, n, err);
    int rc = out ? 0 : -1;
    for (int i = 0; i < n && rc == 0; i++) rc = gather(job, a, parts[i].mine, out, err);
    if (out && wz_safetensors_end(out, err) < 0) rc = -1;
    free(path);
    return rc;
}

/* Loads this rank's shard of the masters, or of the moments. */
static int load_parts(struct wz_job *job, const struct wz_agent *a, const char *dir, bool masters, struct wz_err *err)
{
    const struct wz_shard shard = wz_shard_of(job->roles.learner.me, job->roles.learner.n, a->model->n_params);
    struct part parts[3];
    char *path = parts_path(dir, a);
    struct wz_tensors *set = wz_tensors_open(path, err);
    int n = parts_of(a, parts), rc = set ? 0 : -1;

    for (int i = 0; i < n && rc == 0; i++) {
        if ((parts[i].mine == a->model->masters) != masters) continue;
        const struct wz_tensor *t = wz_tensors_find(set, parts[i].name);
        if (!t || t->count != a->model->n_params)
            rc = wz_fail(err, "%s: \"%s\": expected %zu numbers, as many as agent %s has parameters, got %zu", path,
                         parts[i].name, a->model->n_params, a->recipe->name, t ? t->count : 0);
        for (size_t at = 0; at < shard.n && rc == 0; at += CHUNK) {
            size_t k = shard.n - at < CHUNK ? shard.n - at : CHUNK;
            const float *values = job->chunk;
            wz_tensor_floats(t, shard.at + at, k, job->chunk);
            size_t bad = wz_first_unfit(values, k, INFINITY);
            if (bad < k)
                rc = wz_fail(err, "%s: \"%s\" holds %g: expected finite numbers", path, parts[i].name,
                             (double)values[bad]);
            wz_upload(job->be, parts[i].mine + at, job->chunk, k * sizeof(float));
        }
    }
    wz_tensors_close(set);
    free(path);
    return rc;
}

/* The file's hash; 0 where there is no file. */
static int parts_hash(const struct wz_job *job, const char *dir, const struct wz_agent *a, uint64_t *hash,
                      struct wz_err *err)
{
    char *path = parts_path(dir, a);
    struct wz_map map = { 0 };
    int rc = wz_file_exists(path) ? wz_map_open(&map, path, err) : 0;

    *hash = map.len ? wz_hash_pieces(job->be->pool, map.bytes, map.len) : 0;
    wz_map_close(&map);
    free(path);
    return rc;
}

static json_t *hex(uint64_t v)
{
    char text[20];

    snprintf(text, sizeof text, "%016" PRIx64, v);
    return json_string(text);
}

static int save_manifest(struct wz_job *job, const struct wz_progress *p, const char *dir, struct wz_err *err)
{
    json_t *root = json_object(), *agents = json_object();
    char *path = wz_path("%s/manifest.json", dir);
    int rc = 0;

    json_object_set_new(root, "format", json_integer(1));
    json_object_set_new(root, "step", json_integer(p->step));
    json_object_set_new(root, "stage", json_integer(p->stage));
    json_object_set_new(root, "stage_step", json_integer(p->stage_step));
    json_object_set_new(root, "stage_start", json_integer(p->stage_start));
    json_object_set_new(root, "chain", hex(p->chain));
    for (int i = 0; i < job->n_agents && rc == 0; i++) {
        const struct wz_agent *a = &job->agents[i];
        json_t *entry = json_object();
        uint64_t moments;
        rc = parts_hash(job, dir, a, &moments, err);
        json_object_set_new(entry, "version", json_integer((json_int_t)p->version[i]));
        json_object_set_new(entry, "hash", hex(p->hash[i]));
        if (moments) json_object_set_new(entry, "moments_hash", hex(moments));
        json_object_set_new(entry, "updates", json_integer(a->learner.model ? a->learner.opt.steps : 0));
        json_object_set_new(entry, "skipped", json_integer(a->learner.opt.skipped));
        json_object_set_new(entry, "not_finite", json_integer(a->learner.opt.not_finite));
        json_object_set_new(entry, "moments", json_boolean(a->learner.model != NULL));
        json_object_set_new(agents, a->recipe->name, entry);
    }
    json_object_set_new(root, "agents", agents);
    if (rc == 0) rc = wz_json_save(json_incref(root), path, err);
    json_decref(root);
    free(path);
    return rc;
}

int wz_checkpoint_save(struct wz_job *job, const struct wz_progress *p, struct wz_err *err)
{
    char *parent = wz_path("%s/checkpoints", job->recipe->out), *dir = wz_path("%s/%" PRId64, parent, p->step);
    char *half = wz_path("%s/.half-%" PRId64, parent, p->step);
    int rc = -1;

    for (int i = 0; !job->root && i < job->n_agents; i++) {
        struct part parts[3];
        int n = parts_of(&job->agents[i], parts);
        for (int k = 0; k < n; k++) gather(job, &job->agents[i], parts[k].mine, NULL, err);
    }
    if (!job->root) {
        rc = 0;
        goto out;
    }
    remove_tree(half);
    if (wz_mkdirs(half, err) < 0) goto out;
    for (int i = 0; i < job->n_agents; i++) {
        struct wz_agent *a = &job->agents[i];
        if (!a->model || !wz_recipe_learns(job->recipe, a->recipe->name)) continue;
        char *folder = wz_path("%s/%s", half, a->recipe->name);
        int bad = wz_model_save(a->model, folder, 0, err) < 0 || wz_tokenizer_save(a->tok, folder, err) < 0 ||
                  save_parts(job, a, half, err) < 0;
        free(folder);
        if (bad) goto out;
    }
    if (save_manifest(job, p, half, err) < 0) goto out;
    remove_tree(dir);
    if (rename(half, dir) < 0) {
        wz_fail(err, "%s: %s", dir, strerror(errno));
        goto out;
    }
    rc = 0;
out:
    free(parent);
    free(dir);
    free(half);
    return rc;
}

static int read_hex(const json_t *j, uint64_t *v)
{
    const char *s = json_string_value(j);

    return s && sscanf(s, "%" SCNx64, v) == 1 ? 0 : -1;
}

static int load_manifest(const char *path, struct wz_progress *p, const struct wz_recipe *recipe, struct wz_err *err)
{
    json_t *root = wz_json_load(path, err), *agents;
    int rc = -1;

    if (!root) return -1;
    *p = (struct wz_progress){
        .step = json_integer_value(json_object_get(root, "step")),
        .stage = (int)json_integer_value(json_object_get(root, "stage")),
        .stage_step = (int)json_integer_value(json_object_get(root, "stage_step")),
        .stage_start = json_integer_value(json_object_get(root, "stage_start")),
    };
    agents = json_object_get(root, "agents");
    if (json_integer_value(json_object_get(root, "format")) != 1 ||
        read_hex(json_object_get(root, "chain"), &p->chain) < 0 || !json_is_object(agents)) {
        wz_fail(err, "%s: not a checkpoint manifest of format 1", path);
        goto out;
    }
    for (unsigned i = 0; i < recipe->n_agents; i++) {
        const json_t *a = json_object_get(agents, recipe->agents[i].name);
        if (!a || read_hex(json_object_get(a, "hash"), &p->hash[i]) < 0) {
            wz_fail(err, "%s: no hash for agent %s", path, recipe->agents[i].name);
            goto out;
        }
        if (read_hex(json_object_get(a, "moments_hash"), &p->moments[i]) < 0) p->moments[i] = 0;
        p->version[i] = (uint64_t)json_integer_value(json_object_get(a, "version"));
        p->skipped[i] = (int)json_integer_value(json_object_get(a, "skipped"));
        p->not_finite[i] = (int)json_integer_value(json_object_get(a, "not_finite"));
        p->updates[i] =
            json_is_true(json_object_get(a, "moments")) ? (int)json_integer_value(json_object_get(a, "updates")) : -1;
    }
    rc = 0;
out:
    json_decref(root);
    return rc;
}

/* Steps of a run's complete checkpoints, newest first; *n of them, heap. */
static int64_t *list_steps(const char *run, int *n)
{
    char *parent = wz_path("%s/checkpoints", run);
    DIR *d = opendir(parent);
    int64_t *list = NULL;

    *n = 0;
    for (struct dirent *e; d && (e = readdir(d));) {
        char *end;
        long long step = strtoll(e->d_name, &end, 10);
        if (*end || end == e->d_name) continue;
        list = wz_realloc(list, sizeof *list * (size_t)(*n + 1));
        int at = (*n)++;
        for (; at > 0 && list[at - 1] < step; at--) list[at] = list[at - 1];
        list[at] = step;
    }
    if (d) closedir(d);
    free(parent);
    return list;
}

int wz_checkpoint_find(const char *run, int64_t most, struct wz_progress *p, char **dir, const struct wz_recipe *recipe,
                       struct wz_err *err)
{
    int n, i = 0, rc = 0;
    int64_t *steps = list_steps(run, &n);

    *p = (struct wz_progress){ 0 };
    *dir = NULL;
    while (i < n && steps[i] > most) i++;
    if (i < n) {
        *dir = wz_path("%s/checkpoints/%" PRId64, run, steps[i]);
        char *manifest = wz_path("%s/manifest.json", *dir);
        rc = load_manifest(manifest, p, recipe, err);
        free(manifest);
        if (rc < 0) {
            free(*dir);
            *dir = NULL;
        }
    }
    free(steps);
    return rc;
}

int wz_checkpoint_open(struct wz_job *job, struct wz_recipe *recipe, const char *dir, const struct wz_progress *p,
                       bool training, struct wz_err *err)
{
    char *models[WZ_COUNT(job->agents)] = { 0 };

    for (unsigned i = 0; dir && i < recipe->n_agents; i++) {
        models[i] = wz_path("%s/%s", dir, recipe->agents[i].name);
        if (wz_is_dir(models[i])) continue;
        free(models[i]); /* an agent that never learns has no weights in a checkpoint */
        models[i] = NULL;
    }
    int rc = wz_job_open(job, recipe, (const char *const *)models, training, err);
    for (int i = 0; rc == 0 && i < job->n_agents; i++) {
        const struct wz_agent *a = &job->agents[i];
        struct wz_model *m = a->model;
        uint64_t moments;
        if (!m || !models[i]) continue;
        wz_model_commit(m, p->version[i]);
        if (m->hash != p->hash[i])
            rc = wz_fail(err, "%s: agent %s: expected weights with hash %016" PRIx64 " (manifest), got %016" PRIx64,
                         dir, recipe->agents[i].name, p->hash[i], m->hash);
        else if (job->chunk && p->moments[i] && (rc = parts_hash(job, dir, a, &moments, err)) == 0 &&
                 moments != p->moments[i])
            rc = wz_fail(err,
                         "%s: agent %s: expected a moments file with hash %016" PRIx64 " (manifest), got %016" PRIx64,
                         dir, recipe->agents[i].name, p->moments[i], moments);
        if (rc == 0 && m->masters) rc = load_parts(job, a, dir, true, err);
    }
    for (size_t i = 0; i < WZ_COUNT(models); i++) free(models[i]);
    return rc;
}

int wz_checkpoint_play(struct wz_job *job, struct wz_recipe *recipe, const char *path, int most, struct wz_err *err)
{
    struct wz_progress p = { 0 };
    char *dir = NULL;
    int rc = 0;

    if (wz_is_dir(path)) rc = wz_checkpoint_find(path, most < 0 ? INT64_MAX : most, &p, &dir, recipe, err);
    if (rc == 0) rc = wz_checkpoint_open(job, recipe, dir, &p, false, err);
    free(dir);
    return rc;
}

char *wz_checkpoint_model(const char *path, const char *agent, int most, struct wz_err *err)
{
    char *file = wz_path("%s/recipe.yaml", path), *config = wz_path("%s/config.json", path), *dir = NULL, *found = NULL;
    struct wz_recipe *recipe = NULL;
    struct wz_progress p;
    int a = -1;

    if (!wz_file_exists(file) || wz_file_exists(config)) { /* not a run; a warm start's folder is a model, too */
        if (agent || most >= 0) wz_fail(err, "%s: --agent and --step are for the folder of a run", path);
        else found = wz_strdup(path);
        goto out;
    }
    if (wz_recipe_load(&recipe, file, NULL, 0, err) < 0 ||
        wz_checkpoint_find(path, most < 0 ? INT64_MAX : most, &p, &dir, recipe, err) < 0)
        goto out;
    for (unsigned i = 0; i < recipe->n_agents && a < 0; i++)
        if (!strcmp(agent ? recipe->agents[i].name : recipe->agents[i].role, agent ? agent : WZ_CONVERSATION))
            a = (int)i;
    if (a < 0 || !dir) {
        if (a < 0) wz_fail(err, "%s: the run has no agent '%s'", path, agent ? agent : WZ_CONVERSATION);
        else wz_fail(err, "%s: the run has no checkpoint%s", path, most >= 0 ? " so early" : " yet");
        goto out;
    }
    found = wz_path("%s/%s", dir, recipe->agents[a].name);
    if (!wz_is_dir(found)) { /* it never learns */
        free(found);
        found = wz_strdup(recipe->agents[a].model);
    }
out:
    wz_recipe_destroy(recipe);
    free(file), free(config), free(dir);
    return found;
}

int wz_checkpoint_moments(struct wz_job *job, const char *dir, const struct wz_progress *p, struct wz_err *err)
{
    for (int i = 0; i < job->n_agents; i++) {
        struct wz_agent *a = &job->agents[i];
        if (!a->learner.model || p->updates[i] < 0) continue;
        if (load_parts(job, a, dir, false, err) < 0) return -1;
        a->learner.opt.steps = p->updates[i];
        a->learner.opt.skipped = p->skipped[i];
        a->learner.opt.not_finite = p->not_finite[i];
    }
    return 0;
}

void wz_checkpoint_prune(const struct wz_recipe *recipe)
{
    const int keep = recipe->checkpoint.keep;
    int n, kept;
    int64_t *steps = list_steps(recipe->out, &n);

    kept = keep > 0 && keep < n ? keep : n;
    /* the step at which the stage of a kept checkpoint began: its weights are that stage's reference */
    int64_t *start = wz_alloc(sizeof *start * (size_t)(kept + 1));
    for (int i = 0; i < kept; i++) {
        char *manifest = wz_path("%s/checkpoints/%" PRId64 "/manifest.json", recipe->out, steps[i]);
        struct wz_progress p;
        struct wz_err err;
        start[i] = load_manifest(manifest, &p, recipe, &err) == 0 && p.stage_step ? p.stage_start : -1;
        free(manifest);
    }
    for (int i = kept; i < n; i++) {
        bool reference = false;
        for (int k = 0; k < kept; k++) reference |= start[k] == steps[i];
        if (reference) continue;
        char *dir = wz_path("%s/checkpoints/%" PRId64, recipe->out, steps[i]);
        remove_tree(dir);
        free(dir);
    }
    free(start);
    free(steps);
}
