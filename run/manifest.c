/* A checkpoint's manifest: what is in the checkpoint, and what decided the bits so far (docs/formats.md has its keys).
 * It comes from a file, so every value is checked before it is used. */
#include "run/manifest.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

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

int wz_manifest_save(struct wz_job *job, const struct wz_progress *p, const uint64_t *moments, const json_t *inputs,
                     const char *dir, struct wz_err *err)
{
    json_t *root = json_object(), *agents = json_object(), *lengths = json_array(), *files;
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
        json_object_set_new(entry, "version", json_integer((json_int_t)p->version[i]));
        json_object_set_new(entry, "hash", hex(p->hash[i]));
        if (moments[i]) json_object_set_new(entry, "moments_hash", hex(moments[i]));
        json_object_set_new(entry, "updates", json_integer(a->learner.model ? a->learner.opt.steps : 0));
        json_object_set_new(entry, "skipped", json_integer(a->learner.opt.skipped));
        json_object_set_new(entry, "not_finite", json_integer(a->learner.opt.not_finite));
        json_object_set_new(entry, "moments", json_boolean(a->learner.model != NULL));
        char *folder = wz_manifest_folder(p, job->recipe, i, dir);
        if (folder) {
            rc = wz_inputs_saved(a->recipe->name, folder, &files, err);
            json_object_set_new(entry, "files", files);
        }
        free(folder);
        json_object_set_new(agents, a->recipe->name, entry);
    }
    json_object_set_new(root, "agents", agents);
    for (int i = 0; i < p->n_lengths; i++)
        json_array_append_new(lengths, json_pack("{s:i, s:i, s:I}", "stage", p->lengths[i].stage, "steps",
                                                 p->lengths[i].steps, "from", (json_int_t)p->lengths[i].from));
    json_object_set_new(root, "lengths", lengths);
    json_object_set(root, "inputs", (json_t *)(uintptr_t)inputs);
    if (rc == 0) rc = wz_json_save(json_incref(root), path, err);
    json_decref(root);
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
    wz_fail(err, "%s: %s: expected %s, got %.40s; delete the checkpoint to use the one before it", path, key, want,
            text ? text : "nothing");
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
    if (rc == 0 && json_object_get(a, "skipped")) /* absent: of an earlier version */
        rc = get_whole(path, a, "skipped", 0, INT32_MAX, &skipped, err) < 0
                 ? -1
                 : get_whole(path, a, "not_finite", 0, INT32_MAX, &not_finite, err);
    if (rc == 0 && !json_is_boolean(moments)) rc = unfit(path, "moments", moments, err, "true or false");
    if (rc == 0 && (json_is_true(moments) || json_object_get(a, "moments_hash")))
        rc = get_hash(path, a, "moments_hash", &p->moments[i], err);
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

    if (!list) /* of an earlier version, in which no run was extended */
        for (unsigned s = 0; s < recipe->n_stages; s++)
            p->lengths[p->n_lengths++] = (struct wz_length){ (int)s, recipe->stages[s].steps, 0 };
    else if (!json_is_array(list) || json_array_size(list) > WZ_MAX_LENGTHS)
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

static int read_manifest(const char *path, const json_t *root, int64_t step, struct wz_progress *p,
                         const struct wz_recipe *recipe, struct wz_err *err)
{
    const json_t *agents = json_object_get(root, "agents");
    int64_t format, stage, stage_step, before = 0;

    if (get_whole(path, root, "format", 1, 1, &format, err) < 0 ||
        get_whole(path, root, "step", step, step, &p->step, err) < 0 || get_lengths(path, root, p, recipe, err) < 0 ||
        get_whole(path, root, "stage", 0, recipe->n_stages, &stage, err) < 0)
        return -1;
    for (int s = 0; s < stage; s++) before += wz_progress_length(p, s) > 0 ? wz_progress_length(p, s) : 0;
    p->stage = (int)stage;
    if (get_whole(path, root, "stage_step", step - before, step - before, &stage_step, err) < 0 ||
        get_whole(path, root, "stage_start", before, before, &p->stage_start, err) < 0 ||
        get_hash(path, root, "chain", &p->chain, err) < 0)
        return -1;
    if (stage_step < 0 || (stage_step > 0 && stage_step >= wz_progress_length(p, p->stage)))
        return unfit(path, "stage_step", json_object_get(root, "stage_step"), err, "less than the %d steps of stage %d",
                     wz_progress_length(p, p->stage), p->stage);
    p->stage_step = (int)stage_step;
    for (unsigned i = 0; i < recipe->n_agents; i++)
        if (get_agent(path, agents, p, recipe, i, err) < 0) return -1;
    return 0;
}

json_t *wz_manifest_open(const char *dir, struct wz_err *err)
{
    char *path = wz_path("%s/manifest.json", dir);
    json_t *root = wz_json_load(path, err);

    free(path);
    return root;
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
