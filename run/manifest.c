/* A checkpoint's manifest: what is in the checkpoint, and what decided the bits so far (docs/formats.md has its keys).
 * It has the hash of every other file of the checkpoint, and its own: `self` is the hash of the manifest without it, as
 * compact JSON with sorted keys. It comes from a file all the same, so every value is checked before it is used. */
#include "run/manifest.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { FORMAT = 2 };

static json_t *hex(uint64_t v)
{
    char text[20];

    snprintf(text, sizeof text, "%016" PRIx64, v);
    return json_string(text);
}

char *wz_manifest_folder(const struct wz_progress *p, const struct wz_recipe *recipe, int agent, const char *dir)
{
    return p->hash[agent] ? wz_path("%s/%s", dir, recipe->agents[agent].name) : NULL;
}

static json_t *self_of(const json_t *root)
{
    json_t *rest = json_copy((json_t *)(uintptr_t)root);

    json_object_del(rest, "self");
    char *text = json_dumps(rest, JSON_COMPACT | JSON_SORT_KEYS);
    json_decref(rest);
    if (!text) wz_die("a manifest can't be written as JSON");
    json_t *self = hex(wz_hash(text, strlen(text), 0));
    free(text);
    return self;
}

void wz_manifest_seal(json_t *root) { json_object_set_new(root, "self", self_of(root)); }

json_t *wz_manifest_make(const struct wz_job *job, const struct wz_progress *p, const json_t *inputs,
                         const json_t *history)
{
    json_t *root = json_object(), *agents = json_object(), *drawn = json_object(), *lengths = json_array();

    json_object_set_new(root, "format", json_integer(FORMAT));
    json_object_set_new(root, "step", json_integer(p->step));
    json_object_set_new(root, "stage", json_integer(p->stage));
    json_object_set_new(root, "stage_step", json_integer(p->stage_step));
    json_object_set_new(root, "stage_start", json_integer(p->stage_start));
    for (unsigned s = 0; s < job->recipe->n_stages; s++)
        json_object_set_new(drawn, job->recipe->stages[s].name, json_integer(p->drawn[s]));
    json_object_set_new(root, "drawn", drawn);
    json_object_set_new(root, "chain", hex(p->chain));
    for (int i = 0; i < job->n_agents; i++) {
        const struct wz_agent *a = &job->agents[i];
        json_t *entry = json_object();
        json_object_set_new(entry, "version", json_integer((json_int_t)p->version[i]));
        json_object_set_new(entry, "hash", hex(p->hash[i]));
        json_object_set_new(entry, "updates", json_integer(a->learner.model ? a->learner.opt.steps : 0));
        json_object_set_new(entry, "skipped", json_integer(a->learner.opt.skipped));
        json_object_set_new(entry, "not_finite", json_integer(a->learner.opt.not_finite));
        json_object_set_new(entry, "moments", json_boolean(a->learner.model != NULL));
        json_object_set_new(agents, a->recipe->name, entry);
    }
    json_object_set_new(root, "agents", agents);
    for (int i = 0; i < p->n_lengths; i++)
        json_array_append_new(lengths, json_pack("{s:i, s:i, s:I}", "stage", p->lengths[i].stage, "steps",
                                                 p->lengths[i].steps, "from", (json_int_t)p->lengths[i].from));
    json_object_set_new(root, "lengths", lengths);
    json_object_set_new(root, "inputs", json_deep_copy(inputs));
    json_object_set_new(root, "lost", json_integer(p->lost));
    json_object_set_new(root, "history", json_deep_copy(history));
    return root;
}

int wz_manifest_save(json_t *root, const char *dir, struct wz_err *err)
{
    char *path = wz_path("%s/manifest.json", dir);
    json_t *files;
    int rc = wz_inputs_saved(dir, NULL, &files, err);

    json_object_set_new(root, "files", files);
    wz_manifest_seal(root);
    if (rc == 0) rc = wz_json_save(json_incref(root), path, err);
    free(path);
    return rc;
}

/* ---- reading a manifest ------------------------------------------------------------------------------------ */

/* Fails with what is at `key` and what was expected there. */
static int unfit(const char *path, const char *key, const json_t *found, struct wz_err *err, const char *fmt, ...)
    WZ_PRINTF(5, 6);
static int unfit(const char *path, const char *key, const json_t *found, struct wz_err *err, const char *fmt, ...)
{
    char *text = found ? json_dumps(found, JSON_ENCODE_ANY | JSON_COMPACT) : NULL, want[128];
    va_list args;

    va_start(args, fmt);
    vsnprintf(want, sizeof want, fmt, args);
    va_end(args);
    wz_fail(err, "%s: %s: expected %s, got %.40s", path, key, want, text ? text : "nothing");
    free(text);
    return -1;
}

static int get_whole(const char *path, const json_t *from, const char *key, int64_t low, int64_t high, int64_t *to,
                     struct wz_err *err)
{
    const json_t *j = json_object_get(from, key);

    *to = json_integer_value(j);
    if (json_is_integer(j) && *to >= low && *to <= high) return 0;
    return unfit(path, key, j, err, "a whole number from %" PRId64 " to %" PRId64, low, high);
}

static int get_hash(const char *path, const json_t *from, const char *key, uint64_t *to, struct wz_err *err)
{
    const json_t *j = json_object_get(from, key);
    const char *s = json_string_value(j);

    if (s && strlen(s) == 16 && strspn(s, "0123456789abcdef") == 16 && sscanf(s, "%" SCNx64, to) == 1) return 0;
    return unfit(path, key, j, err, "16 hexadecimal digits");
}

static int get_agent(const char *path, const json_t *agents, struct wz_progress *p, const struct wz_recipe *recipe,
                     unsigned i, struct wz_err *err)
{
    const char *name = recipe->agents[i].name;
    const json_t *a = json_object_get(agents, name), *moments = json_object_get(a, "moments");
    int64_t version = 0, updates = 0, skipped = 0, not_finite = 0;

    if (!a) return unfit(path, name, a, err, "an agent of this name");
    int rc = get_hash(path, a, "hash", &p->hash[i], err);
    if (rc == 0) rc = get_whole(path, a, "version", 0, INT64_MAX, &version, err);
    if (rc == 0) rc = get_whole(path, a, "updates", 0, INT32_MAX, &updates, err);
    if (rc == 0) rc = get_whole(path, a, "skipped", 0, INT32_MAX, &skipped, err);
    if (rc == 0) rc = get_whole(path, a, "not_finite", 0, INT32_MAX, &not_finite, err);
    if (rc == 0 && !json_is_boolean(moments)) rc = unfit(path, "moments", moments, err, "true or false");
    const bool learns = wz_progress_learns(p, recipe, name);
    if (rc == 0 && learns != (p->hash[i] != 0))
        rc = unfit(path, "hash", json_object_get(a, "hash"), err, "%s", learns ? "a hash, for it has learnt" : "0");
    p->version[i] = (uint64_t)version;
    p->skipped[i] = (int)skipped;
    p->not_finite[i] = (int)not_finite;
    p->updates[i] = json_is_true(moments) ? (int)updates : -1;
    return rc < 0 ? wz_fail_in(err, "agent %s", name) : 0;
}

int wz_progress_length(const struct wz_progress *p, int stage)
{
    int steps = -1;

    for (int i = 0; i < p->n_lengths; i++)
        if (p->lengths[i].stage == stage) steps = p->lengths[i].steps;
    return steps;
}

int64_t wz_progress_episodes(const struct wz_progress *p, const struct wz_recipe *recipe)
{
    int64_t n = 0;

    for (unsigned s = 0; s < recipe->n_stages; s++) n += p->drawn[s] * recipe->stages[s].samples_per_prompt;
    return n;
}

int wz_progress_steps(const struct wz_progress *p, const struct wz_recipe *recipe)
{
    for (int i = 0; i < p->n_lengths; i++)
        if (p->lengths[i].stage == p->stage && p->lengths[i].steps > p->stage_step) return p->lengths[i].steps;
    return recipe->stages[p->stage].steps;
}

static int get_lengths(const char *path, const json_t *root, struct wz_progress *p, const struct wz_recipe *recipe,
                       struct wz_err *err)
{
    const json_t *list = json_object_get(root, "lengths");
    int64_t stage = 0, steps = 0, from = 0;

    if (!json_is_array(list) || json_array_size(list) > WZ_MAX_LENGTHS)
        return unfit(path, "lengths", list, err, "a list of at most %d rows", WZ_MAX_LENGTHS);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *row = json_array_get(list, i);
        if (get_whole(path, row, "stage", 0, INT32_MAX, &stage, err) < 0 ||
            get_whole(path, row, "steps", 0, INT32_MAX, &steps, err) < 0 ||
            get_whole(path, row, "from", 0, INT64_MAX, &from, err) < 0)
            return wz_fail_in(err, "lengths");
        p->lengths[p->n_lengths++] = (struct wz_length){ (int)stage, (int)steps, from };
    }
    return 0;
}

bool wz_progress_learns(const struct wz_progress *p, const struct wz_recipe *recipe, const char *agent)
{
    bool learns = false;

    for (int i = 0; i < p->n_lengths; i++)
        learns |= p->lengths[i].from < p->step && p->lengths[i].stage < (int)recipe->n_stages &&
                  wz_recipe_learn(&recipe->stages[p->lengths[i].stage], agent);
    return learns;
}

int wz_progress_extend(struct wz_progress *p, const struct wz_recipe *recipe, struct wz_err *err)
{
    int64_t from = 0;

    for (int s = 0; s < (int)recipe->n_stages; s++)
        if (wz_progress_length(p, s) > 0) from += wz_progress_length(p, s);
    for (int s = 0; s < (int)recipe->n_stages; s++) {
        const int had = wz_progress_length(p, s), has = recipe->stages[s].steps;
        if (had >= has) continue;
        if (p->n_lengths == WZ_MAX_LENGTHS) {
            char key[32];
            snprintf(key, sizeof key, "stages.%d.steps", s);
            return wz_recipe_fail(recipe, err, key,
                                  "the stages of the run in %.200s have had %d lengths, and can have no more: expected "
                                  "%d, got %d",
                                  recipe->out, WZ_MAX_LENGTHS, had > 0 ? had : 0, has);
        }
        p->extended |= had < 0 ? p->stage == s && p->step > 0 && !p->stage_step : p->stage == s + 1;
        if (had >= 0 && p->stage == s + 1 && !p->stage_step) {
            p->stage = s;
            p->stage_step = had;
            p->stage_start = p->step - had;
        }
        p->lengths[p->n_lengths++] = (struct wz_length){ s, has, from };
    }
    return 0;
}

/* Prompts drawn by each stage: in a step a batch of them, or, where their samples are compared first, up to a batch in
 * every round. */
static int get_drawn(const char *path, const json_t *root, struct wz_progress *p, const struct wz_recipe *recipe,
                     struct wz_err *err)
{
    const json_t *drawn = json_object_get(root, "drawn");

    for (int s = 0; s < (int)recipe->n_stages && !wz_job_supervised(recipe); s++) {
        const struct wz_recipe_stage *of = &recipe->stages[s];
        const int steps = s < p->stage ? wz_progress_length(p, s) : s == p->stage ? p->stage_step : 0;
        const int64_t least = steps > 0 ? (int64_t)steps * (of->batch / of->samples_per_prompt) : 0;
        const int64_t most = strcmp(of->collect, "dynamic") ? least : least * of->collect_rounds;
        p->drawn[s] = least; /* of a manifest of an earlier version, and of a stage that the run did not have */
        if (drawn && (least || json_object_get(drawn, of->name)) &&
            get_whole(path, drawn, of->name, least, most, &p->drawn[s], err) < 0)
            return wz_fail_in(err, "drawn");
    }
    return 0;
}

static int read_manifest(const char *path, const json_t *root, int64_t step, struct wz_progress *p,
                         const struct wz_recipe *recipe, struct wz_err *err)
{
    const json_t *agents = json_object_get(root, "agents");
    int64_t stage, stage_step, before = 0;

    if (get_whole(path, root, "step", step, step, &p->step, err) < 0 || get_lengths(path, root, p, recipe, err) < 0 ||
        get_whole(path, root, "stage", 0, recipe->n_stages, &stage, err) < 0)
        return -1;
    for (int s = 0; s < stage; s++) before += wz_progress_length(p, s) > 0 ? wz_progress_length(p, s) : 0;
    p->stage = (int)stage;
    if (get_whole(path, root, "stage_step", step - before, step - before, &stage_step, err) < 0 ||
        get_whole(path, root, "stage_start", before, before, &p->stage_start, err) < 0 ||
        get_hash(path, root, "chain", &p->chain, err) < 0 ||
        get_whole(path, root, "lost", 0, INT64_MAX, &p->lost, err) < 0)
        return -1;
    if (stage_step < 0 || (stage_step > 0 && stage_step >= wz_progress_length(p, p->stage)))
        return unfit(path, "stage_step", json_object_get(root, "stage_step"), err, "less than the %d steps of stage %d",
                     wz_progress_length(p, p->stage), p->stage);
    p->stage_step = (int)stage_step;
    if (get_drawn(path, root, p, recipe, err) < 0) return -1;
    for (unsigned i = 0; i < recipe->n_agents; i++)
        if (get_agent(path, agents, p, recipe, i, err) < 0) return -1;
    return 0;
}

static int check_self(const char *path, json_t *root, struct wz_err *err)
{
    const json_t *format = json_object_get(root, "format"), *self = json_object_get(root, "self");

    if (json_is_integer(format) && json_integer_value(format) == 1)
        return wz_fail(err,
                       "%s: of an earlier version, which did not hash it: its folders of agents can be used as "
                       "models, but the run can't be resumed",
                       path);
    if (!json_is_integer(format) || json_integer_value(format) != FORMAT)
        return unfit(path, "format", format, err, "%d", FORMAT);
    json_t *want = self_of(root);
    int rc = self && json_equal(self, want)
                 ? 0
                 : unfit(path, "self", self, err, "\"%s\", the hash of the rest", json_string_value(want));
    json_decref(want);
    return rc;
}

json_t *wz_manifest_open(const char *dir, struct wz_err *err)
{
    char *path = wz_path("%s/manifest.json", dir);
    json_t *root = wz_json_load(path, err);

    if (root && check_self(path, root, err) < 0) {
        json_decref(root);
        root = NULL;
    }
    free(path);
    return root;
}

int wz_manifest_files(const char *dir, struct wz_pool *pool, struct wz_err *err)
{
    json_t *root = wz_manifest_open(dir, err), *was = json_object_get(root, "files"), *now = NULL, *both, *hash;
    int rc = root ? wz_inputs_saved(dir, pool, &now, err) : -1;
    const char *name;

    if (rc == 0 && !json_is_object(was)) rc = wz_fail(err, "%s/manifest.json: files: expected the list of them", dir);
    both = json_copy(was);
    json_object_update(both, now);
    json_object_foreach(both, name, hash)
    {
        const char *had = json_string_value(json_object_get(was, name)),
                   *has = json_string_value(json_object_get(now, name));
        if (rc == 0 && (!had || !has || strcmp(had, has) != 0))
            rc = wz_fail(err, "%s/%s: expected %s (manifest), got %s", dir, name, had ? had : "no such file",
                         has ? has : "no such file");
    }
    json_decref(both);
    json_decref(now);
    json_decref(root);
    return rc;
}

int wz_manifest_load(const char *dir, int64_t step, struct wz_progress *p, const struct wz_recipe *recipe,
                     struct wz_err *err)
{
    char *path = wz_path("%s/manifest.json", dir);
    json_t *root = wz_manifest_open(dir, err);
    int rc = root ? read_manifest(path, root, step, p, recipe, err) : -1;

    json_decref(root);
    free(path);
    return rc;
}
