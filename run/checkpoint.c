/* One joint checkpoint: every agent's weights and optimizer state and the counters under one manifest (guarantee 3).
 *
 *   RUN/checkpoints/<step>/manifest.json          step, stage, versions, hashes, chain, and what decided the bits:
 *                                                 inputs (inputs.c) and lengths (struct wz_progress)
 *                          <agent>/               a Hugging Face model folder, for agents that learn in some stage
 *                          <agent>.moments.safetensors   AdamW's m and v, for agents that this stage trains, and the
 *                                                 f32 masters of those that train in bf16: whole arrays, however many
 *                                                 ranks hold their shards; and a critic with its moments
 *
 * Everything is written into a folder of another name, renamed last: a checkpoint exists whole or not at all. What
 * became of it since (a disk, a person) shows in the hashes of its manifest, and the one before it is taken. It holds
 * no episodes in flight: a step begins after the previous one has ended on every rank.
 *
 *   the run:     gather, write into the page cache │ the next steps                            │ wait, if it must
 *   a thread:                                      └▶ fsync, hash, manifest, rename, prune ────┘
 *
 * The disk is waited for beside the next steps. What the run writes of these meanwhile (chain, ledger, record) is ahead
 * of the checkpoint as ever. */
#include "run/manifest.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <ftw.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
    wz_heartbeat();
    return remove(path);
}

void wz_remove_tree(const char *path) { nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS); }

enum { CHUNK = WZ_CHUNK_BYTES / sizeof(float) }; /* floats per message */

/* Arrays that are sharded over the learners: the masters of a bf16 agent, the moments of one that learns in this stage;
 * and its critic's three, of which every learner has the whole. Returns how many. */
enum { MOST_PARTS = 6 };
struct part {
    const char *name;
    float *mine;  /* this learner's shard, in the backend's memory; or the whole, in the host's */
    size_t whole; /* numbers of such a whole */
};
static int parts_of(const struct wz_agent *a, struct part parts[MOST_PARTS])
{
    const struct wz_critic *c = &a->learner.critic;
    int n = 0;

    if (a->model && a->model->masters) parts[n++] = (struct part){ "masters", a->model->masters, 0 };
    if (a->learner.model) parts[n++] = (struct part){ "m", a->learner.opt.m, 0 };
    if (a->learner.model) parts[n++] = (struct part){ "v", a->learner.opt.v, 0 };
    if (!c->w) return n;
    parts[n++] = (struct part){ "critic", c->w, (size_t)c->channels + 1 };
    parts[n++] = (struct part){ "critic.m", c->m, (size_t)c->channels + 1 };
    parts[n++] = (struct part){ "critic.v", c->v, (size_t)c->channels + 1 };
    return n;
}

static size_t count_of(const struct wz_agent *a, const struct part *part)
{
    return part->whole ? part->whole : a->model->n_params;
}

/* Gathers one sharded array on the root, in order of the array, into `out`; the other learners send their shard. */
static int gather(struct wz_job *job, const struct wz_agent *a, const struct part *part, struct wz_safetensors_out *out,
                  struct wz_err *err)
{
    const struct wz_ranks *learner = &job->roles.learner;
    const float *mine = part->mine;
    struct wz_buf came = { 0 };
    int rc = 0;

    if (part->whole) return job->root ? wz_safetensors_put(out, mine, part->whole, err) : 0;
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
    struct part parts[MOST_PARTS];
    struct wz_tensor_spec specs[MOST_PARTS];
    int n = parts_of(a, parts);

    if (!n) return 0;
    for (int i = 0; i < n; i++)
        specs[i] = (struct wz_tensor_spec){ parts[i].name, WZ_DT_F32, 1, { count_of(a, &parts[i]) } };
    char *path = parts_path(dir, a);
    struct wz_safetensors_out *out = wz_safetensors_begin(path, specs, n, err);
    int rc = out ? 0 : -1;
    for (int i = 0; i < n && rc == 0; i++) rc = gather(job, a, &parts[i], out, err);
    if (out && wz_safetensors_end(out, err) < 0) rc = -1;
    free(path);
    return rc;
}

/* Loads this rank's shard of the masters, or of the moments. */
static int load_parts(struct wz_job *job, const struct wz_agent *a, const char *dir, bool masters, struct wz_err *err)
{
    const struct wz_shard shard = wz_shard_of(job->roles.learner.me, job->roles.learner.n, a->model->n_params);
    struct part parts[MOST_PARTS];
    char *path = parts_path(dir, a);
    struct wz_tensors *set = wz_tensors_open(path, err);
    int n = parts_of(a, parts), rc = set ? 0 : -1;

    for (int i = 0; i < n && rc == 0; i++) {
        if ((parts[i].mine == a->model->masters) != masters) continue;
        const struct wz_tensor *t = wz_tensors_find(set, parts[i].name);
        const struct wz_shard own = parts[i].whole ? (struct wz_shard){ 0, parts[i].whole } : shard;
        if (!t || t->count != count_of(a, &parts[i]))
            rc = wz_fail(err, "%s: \"%s\": expected %zu numbers, as many as agent %s has %s, got %zu", path,
                         parts[i].name, count_of(a, &parts[i]), a->recipe->name,
                         parts[i].whole ? "channels, and one" : "parameters", t ? t->count : 0);
        for (size_t at = 0; at < own.n && rc == 0; at += CHUNK) {
            size_t k = own.n - at < CHUNK ? own.n - at : CHUNK;
            const float *values = job->chunk;
            wz_tensor_floats(t, own.at + at, k, job->chunk);
            size_t bad = wz_first_unfit(values, k, INFINITY);
            if (bad < k)
                rc = wz_fail(err, "%s: \"%s\" holds %g: expected finite numbers", path, parts[i].name,
                             (double)values[bad]);
            if (parts[i].whole) memcpy(parts[i].mine + at, values, k * sizeof(float));
            else wz_upload(job->be, parts[i].mine + at, job->chunk, k * sizeof(float));
        }
    }
    wz_tensors_close(set);
    free(path);
    return rc;
}

struct wz_saving {
    pthread_t thread;
    const struct wz_recipe *recipe;
    int64_t step;
    char *half, *dir;
    json_t *manifest;
    bool prune;
    int64_t best;
    atomic_int done; /* files synced or removed, pieces hashed */
    int rc;
    struct wz_err err;
};

static void saving_free(struct wz_saving *s)
{
    free(s->half);
    free(s->dir);
    json_decref(s->manifest);
    free(s);
}

static void count_done(void *arg) { atomic_fetch_add((atomic_int *)arg, 1); }

/* Each file's bytes are in the page cache: makes a checkpoint of them. */
static void *finish(void *arg)
{
    struct wz_saving *s = arg;

    wz_set_heartbeat(count_done, &s->done);
    s->rc = wz_tree_sync(s->half, &s->err);
    if (s->rc == 0) s->rc = wz_manifest_save(s->manifest, s->half, &s->err);
    if (s->rc == 0) {
        wz_remove_tree(s->dir);
        s->rc = wz_rename(s->half, s->dir, &s->err);
    }
    if (s->rc == 0 && s->prune) wz_checkpoint_prune(s->recipe, s->step, s->best);
    return NULL;
}

int wz_checkpoint_wait(struct wz_job *job, bool done, struct wz_err *err)
{
    struct wz_saving *s = job->saving;
    int rc = s ? ETIMEDOUT : 0, seen = -1, silent = 0; /* seconds in which this rank ran and nothing was done */

    while (rc == ETIMEDOUT) {
        struct timespec soon;
        const int now = atomic_load(&s->done);
        silent = now == seen ? silent + 1 : 0;
        seen = now;
        if (silent >= s->recipe->deadline)
            wz_die_again("the checkpoint after step %" PRId64 ": no file of %s was synced or hashed for longer than "
                         "the deadline of %g s: look at its disk",
                         s->step, s->half, s->recipe->deadline);
        wz_heartbeat();
        clock_gettime(CLOCK_MONOTONIC, &soon);
        soon.tv_sec++;
        rc = done ? pthread_clockjoin_np(s->thread, NULL, CLOCK_MONOTONIC, &soon) : pthread_tryjoin_np(s->thread, NULL);
    }
    if (!s || rc == EBUSY) return 0;
    if ((rc = s->rc) < 0) {
        *err = s->err;
        wz_fail_in(err, "the checkpoint after step %" PRId64, s->step);
    }
    saving_free(s);
    job->saving = NULL;
    return rc;
}

/* The files of all agents, not synced. */
static int write_agents(struct wz_job *job, const struct wz_progress *p, const char *half, struct wz_err *err)
{
    int rc = 0;

    wz_files_later(true);
    for (int i = 0; i < job->n_agents && rc == 0; i++) {
        struct wz_agent *a = &job->agents[i];
        char *folder = wz_manifest_folder(p, job->recipe, i, half);
        if (folder) rc = wz_model_save(a->model, folder, 0, err);
        if (folder && rc == 0) rc = wz_tokenizer_save(a->tok, folder, err);
        if (folder && rc == 0) rc = save_parts(job, a, half, err);
        free(folder);
    }
    wz_files_later(false);
    return rc;
}

int wz_checkpoint_save(struct wz_job *job, const struct wz_progress *p, const json_t *inputs, const json_t *history,
                       bool prune, int64_t best, struct wz_err *err)
{
    for (int i = 0; !job->root && i < job->n_agents; i++) {
        struct part parts[MOST_PARTS];
        int n = parts_of(&job->agents[i], parts);
        for (int k = 0; k < n; k++) gather(job, &job->agents[i], &parts[k], NULL, err);
    }
    if (!job->root) return 0;
    assert(!job->saving);
    struct wz_saving *s = wz_alloc(sizeof *s);
    s->recipe = job->recipe;
    s->step = p->step;
    s->prune = prune;
    s->best = best;
    s->dir = wz_path("%s/checkpoints/%" PRId64, job->recipe->out, p->step);
    s->half = wz_path("%s/checkpoints/.half-%" PRId64, job->recipe->out, p->step);
    wz_remove_tree(s->half);
    int rc = wz_mkdirs(s->half, err);
    if (rc == 0) rc = write_agents(job, p, s->half, err);
    if (rc < 0) {
        saving_free(s);
        return rc;
    }
    s->manifest = wz_manifest_make(job, p, inputs, history);
    rc = pthread_create(&s->thread, NULL, finish, s);
    if (rc) wz_die_again("%s: a thread to write it: %s", s->half, strerror(rc));
    job->saving = s;
    return 0;
}

int64_t *wz_checkpoint_steps(const char *run, int *n)
{
    char *parent = wz_path("%s/checkpoints", run), name[24];
    DIR *d = opendir(parent);
    int64_t *list = NULL;

    *n = 0;
    for (struct dirent *e; d && (e = readdir(d));) {
        const int64_t step = strtoll(e->d_name, NULL, 10);
        snprintf(name, sizeof name, "%" PRId64, step);
        if (step < 0 || strcmp(name, e->d_name)) continue;
        char *dir = wz_path("%s/%s", parent, name);
        const bool folder = wz_is_dir(dir);
        free(dir);
        if (!folder) continue;
        list = wz_realloc(list, sizeof *list * (size_t)(*n + 1));
        int at = (*n)++;
        for (; at > 0 && list[at - 1] < step; at--) list[at] = list[at - 1];
        list[at] = step;
    }
    if (d) closedir(d);
    free(parent);
    return list;
}

/* The checkpoint, its manifest checked. */
static int load(const char *run, int64_t step, struct wz_progress *p, char **dir, const struct wz_recipe *recipe,
                struct wz_err *err)
{
    *p = (struct wz_progress){ 0 };
    *dir = wz_path("%s/checkpoints/%" PRId64, run, step);
    if (wz_manifest_load(*dir, step, p, recipe, err) == 0) return 0;
    free(*dir);
    *dir = NULL;
    return -1;
}

/* Does a learner of the stage look back at the weights that it began with? */
static bool has_references(const struct wz_recipe_stage *stage)
{
    bool has = false;

    for (unsigned i = 0; i < stage->n_agents; i++) has |= stage->agents[i].kl_coef > 0;
    return has;
}

int wz_checkpoint_whole(const char *run, int64_t step, bool trains, struct wz_pool *pool, struct wz_progress *p,
                        char **dir, const struct wz_recipe *recipe, struct wz_err *err)
{
    struct wz_progress then;
    char *reference = NULL;
    int rc = load(run, step, p, dir, recipe, err);

    if (rc == 0) rc = wz_manifest_files(*dir, pool, err);
    if (rc == 0 && trains && p->stage_step && p->stage_start && !wz_job_supervised(recipe) &&
        has_references(&recipe->stages[p->stage])) {
        rc = load(run, p->stage_start, &then, &reference, recipe, err);
        if (rc == 0) rc = wz_manifest_files(reference, pool, err);
        if (rc < 0) wz_fail_in(err, "the references of its stage");
    }
    free(reference);
    return rc;
}

/* The step of the newest whole checkpoint; *step -1: there is none at all. */
static int find_whole(const struct wz_job *job, const char *run, int64_t most, int64_t *step,
                      const struct wz_recipe *recipe, struct wz_err *err)
{
    int n, rc = 0;
    int64_t *steps = wz_checkpoint_steps(run, &n);
    struct wz_err why = { 0 };
    bool damaged = false;

    *step = -1;
    for (int i = 0; i < n && *step < 0; i++) {
        struct wz_progress p;
        char *dir = NULL;
        if (steps[i] > most) continue;
        rc =
            wz_checkpoint_whole(run, steps[i], job && job->training, job ? job->be->pool : NULL, &p, &dir, recipe, err);
        free(dir);
        char *manifest = wz_path("%s/checkpoints/%" PRId64 "/manifest.json", run, steps[i]);
        damaged |= wz_file_exists(manifest); /* a folder without is none that was saved */
        free(manifest);
        if (rc == 0) *step = steps[i];
        else if (why.text[0]) wz_log("checkpoint %" PRId64 " is passed over, too: %s", steps[i], err->text);
        else why = *err;
    }
    if (rc < 0 && !damaged) rc = 0;
    if (rc < 0)
        wz_fail(err,
                "%.400s; no checkpoint before it is whole: restore it, or delete %.200s/checkpoints to make the run "
                "again from its beginning",
                why.text, run);
    else if (why.text[0] && *step < 0) wz_log("%s; there is no other checkpoint", why.text);
    else if (why.text[0]) wz_log("%s; the checkpoint after step %" PRId64 " is taken", why.text, *step);
    free(steps);
    return rc;
}

/* What root has found is told to the other ranks of the job. */
static int share(struct wz_job *job, int rc, int64_t *step, struct wz_err *err)
{
    struct told {
        int64_t step, rc;
        struct wz_err err;
    } mine = { *step, rc, *err };
    const int n = job->link.size;
    struct wz_buf *all = wz_alloc(sizeof *all * (size_t)n);
    int *ranks = wz_alloc(sizeof *ranks * (size_t)n);

    for (int r = 0; r < n; r++) ranks[r] = r;
    wz_all_gather_bytes(&job->link, &(struct wz_group){ n, job->link.rank, ranks }, &mine, job->root ? sizeof mine : 0,
                        all);
    memcpy(&mine, all[job->roles.learner.ranks[0]].data, sizeof mine);
    for (int r = 0; r < n; r++) wz_buf_finish(&all[r]);
    free(all);
    free(ranks);
    *step = mine.step;
    if (mine.rc < 0) *err = mine.err;
    return (int)mine.rc;
}

int wz_checkpoint_find(struct wz_job *job, const char *run, int64_t most, struct wz_progress *p, char **dir,
                       const struct wz_recipe *recipe, struct wz_err *err)
{
    int64_t step = -1;
    int rc = !job || job->root ? find_whole(job, run, most, &step, recipe, err) : 0;

    if (job) rc = share(job, rc, &step, err);
    *p = (struct wz_progress){ 0 };
    *dir = NULL;
    if (rc == 0 && step >= 0) rc = load(run, step, p, dir, recipe, err);
    return rc < 0 ? rc : wz_progress_extend(p, recipe, err);
}

int wz_checkpoint_at(const char *run, int64_t step, struct wz_progress *p, char **dir, const struct wz_recipe *recipe,
                     struct wz_err *err)
{
    return load(run, step, p, dir, recipe, err);
}

int wz_checkpoint_inputs(const struct wz_job *job, const char *dir, json_t *inputs, struct wz_err *err)
{
    json_t *root = wz_manifest_open(dir, err), *was = json_object_get(root, "inputs");
    int rc = -1;

    if (root && !json_is_object(was))
        wz_fail(err, "%s/manifest.json: inputs: expected the list of what decides the bits, got nothing", dir);
    else if (root) rc = wz_inputs_check(job, was, inputs, err);
    if (rc == 0) json_object_update_missing(inputs, was);
    json_decref(root);
    return rc;
}

int wz_checkpoint_open(struct wz_job *job, const char *dir, const struct wz_progress *p, struct wz_err *err)
{
    char *models[WZ_COUNT(job->agents)] = { 0 }; /* the folder of each agent that has learnt */

    for (unsigned i = 0; dir && i < job->recipe->n_agents; i++)
        models[i] = wz_manifest_folder(p, job->recipe, (int)i, dir);
    int rc = wz_job_open(job, (const char *const *)models, err);
    for (int i = 0; rc == 0 && i < job->n_agents; i++) {
        const struct wz_agent *a = &job->agents[i];
        struct wz_model *m = a->model;
        if (!m || !models[i]) continue;
        wz_model_commit(m, p->version[i]);
        if (m->hash != p->hash[i])
            rc = wz_fail(err, "%s: agent %s: expected weights with hash %016" PRIx64 " (manifest), got %016" PRIx64,
                         dir, a->recipe->name, p->hash[i], m->hash);
        if (rc == 0 && m->masters) rc = load_parts(job, a, dir, true, err);
    }
    for (size_t i = 0; i < WZ_COUNT(models); i++) free(models[i]);
    return rc;
}

/* The checkpoint to play with: after `step` steps, or the newest. */
static int find_to_play(struct wz_job *job, const char *run, int step, struct wz_progress *p, char **dir,
                        const struct wz_recipe *recipe, struct wz_err *err)
{
    int n;

    if (wz_checkpoint_find(job, run, step < 0 ? INT64_MAX : step, p, dir, recipe, err) < 0) return -1;
    if (*dir && (step < 0 || p->step == step)) return 0;
    int64_t *steps = wz_checkpoint_steps(run, &n);
    struct wz_buf there = { 0 };
    for (int i = n - 1; i >= 0; i--) wz_buf_printf(&there, "%s%" PRId64, i < n - 1 ? ", " : "", steps[i]);
    if (n) wz_fail(err, "%s/checkpoints/%d: not there; there are %.300s", run, step, there.data);
    else wz_fail(err, "%s: the run has no checkpoint; %s/recipe.yaml names the models it began with", run, run);
    wz_buf_finish(&there);
    free(steps);
    return -1;
}

int wz_checkpoint_play(struct wz_job *job, struct wz_recipe *recipe, const char *path, int step, struct wz_err *err)
{
    struct wz_progress p = { 0 };
    char *dir = NULL;
    int rc = wz_link_agree(&job->link, wz_job_begin(job, recipe, false, err), err);

    if (rc == 0 && wz_is_dir(path))
        rc = wz_link_agree(&job->link, find_to_play(job, path, step, &p, &dir, recipe, err), err);
    if (rc == 0) rc = wz_link_agree(&job->link, wz_checkpoint_open(job, dir, &p, err), err);
    free(dir);
    return rc;
}

char *wz_checkpoint_model(const char *path, const char *agent, int step, struct wz_err *err)
{
    char *file = wz_path("%s/recipe.yaml", path), *config = wz_path("%s/config.json", path), *dir = NULL, *found = NULL;
    struct wz_recipe *recipe = NULL;
    struct wz_progress p;
    int a = -1;

    if (!wz_file_exists(file) || wz_file_exists(config)) { /* not a run; a warm start's folder is a model, too */
        if (agent || step >= 0) wz_fail(err, "%s: --agent and --step are for the folder of a run", path);
        else found = wz_file_exists(path) ? wz_strdup(path) : wz_model_at(path, err);
        goto out;
    }
    if (wz_recipe_load(&recipe, file, NULL, 0, err) < 0 || find_to_play(NULL, path, step, &p, &dir, recipe, err) < 0)
        goto out;
    for (unsigned i = 0; i < recipe->n_agents && a < 0; i++)
        if (!strcmp(agent ? recipe->agents[i].name : recipe->agents[i].role, agent ? agent : WZ_CONVERSATION))
            a = (int)i;
    if (a < 0) wz_fail(err, "%s: the run has no agent '%s'", path, agent ? agent : WZ_CONVERSATION);
    else if (!p.hash[a]) found = wz_model_at(recipe->agents[a].model, err); /* it has not learnt */
    else found = wz_path("%s/%s", dir, recipe->agents[a].name);
out:
    wz_recipe_destroy(recipe);
    free(file);
    free(config);
    free(dir);
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

void wz_checkpoint_prune(const struct wz_recipe *recipe, int64_t newest, int64_t best)
{
    const int keep = recipe->checkpoint.keep;
    int n, kept, from = 0;
    int64_t *all = wz_checkpoint_steps(recipe->out, &n), *steps;

    while (from < n && all[from] > newest) from++;
    steps = all + from;
    n -= from;
    kept = keep > 0 && keep < n ? keep : n;
    bool *stays = wz_alloc(sizeof *stays * (size_t)(n + 1));
    for (int i = 0; i < n; i++) stays[i] = i < kept || steps[i] == best;
    /* The step at which the stage of a kept checkpoint began: its weights are that stage's reference. The last stage of
     * a run that has ended counts too, for it may be extended. */
    for (int i = 0; i < n; i++) {
        if (i >= kept && steps[i] != best) continue;
        char *dir = wz_path("%s/checkpoints/%" PRId64, recipe->out, steps[i]);
        struct wz_progress p = { 0 };
        struct wz_err err;
        const int64_t start = wz_manifest_load(dir, steps[i], &p, recipe, &err) < 0 ? -1
                              : p.stage_step                                        ? p.stage_start
                              : p.stage == (int)recipe->n_stages ? p.step - wz_progress_length(&p, p.stage - 1)
                                                                 : -1;
        for (int k = i + 1; k < n; k++) stays[k] |= steps[k] == start;
        free(dir);
    }
    for (int i = 0; i < n; i++) {
        if (stays[i]) continue;
        char *dir = wz_path("%s/checkpoints/%" PRId64, recipe->out, steps[i]);
        wz_remove_tree(dir);
        free(dir);
    }
    free(stays);
    free(all);
}
