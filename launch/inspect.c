/* waltz inspect: what a file or a folder holds, as text or as JSON.
 *
 * Each reader makes one JSON object, {"kind": ..., ...}; --json prints it, else show() prints it as text. */
#include "launch/launch.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "run/run.h"

struct job {
    const char *path, *dataset, *column, *harmful, *prompt_kind; /* the last three NULL: by default */
    struct wz_err *err;
};

/* Adds n to the number `key` of the object `name` in `groups`, which are made as needed. A name that is not UTF-8
 * (of a file) is counted as "?". */
static void count(json_t *groups, const char *name, const char *key, int64_t n)
{
    if (wz_utf8_valid(name, strlen(name)) < strlen(name)) name = "?";
    json_t *group = json_object_get(groups, name);

    if (!group) json_object_set_new(groups, name, group = json_object());
    json_object_set_new(group, key, json_integer(json_integer_value(json_object_get(group, key)) + n));
}

/* ---- tensors ---------------------------------------------------------------------------------------------- */

enum { BRIEF = 60 }; /* bytes */

/* A value for display: a scalar itself, a string cut, a short list or object as JSON, of a longer one its length. */
static json_t *brief(const json_t *value)
{
    const char *s = json_string_value(value);
    char *whole = json_is_array(value) || json_is_object(value) ? wz_json_dump(value, JSON_COMPACT) : NULL;
    char *text;

    if (whole && strlen(whole) <= BRIEF) text = wz_strdup(whole);
    else if (json_is_array(value)) text = wz_path("[%zu values]", json_array_size(value));
    else if (json_is_object(value)) text = wz_path("{%zu keys}", json_object_size(value));
    else if (s && strlen(s) > BRIEF + 4) text = wz_path("%.*s...", (int)wz_utf8_valid(s, BRIEF), s);
    else return json_incref((json_t *)(uintptr_t)value);
    json_t *out = json_string(text);
    free(whole);
    free(text);
    return out;
}

static void add_brief(json_t *out, const char *name, const json_t *from)
{
    json_t *to = json_object(), *value;
    const char *key;

    json_object_foreach((json_t *)(uintptr_t)from, key, value) json_object_set_new(to, key, brief(value));
    json_object_set_new(out, name, to);
}

static json_t *read_tensors(const struct job *job)
{
    struct wz_tensors *set = wz_tensors_open(job->path, job->err);
    size_t numbers = 0, bytes = 0;

    if (!set) return NULL;
    bool folder = wz_is_dir(job->path);
    const json_t *meta = wz_tensors_meta(set);
    const char *kind = folder ? "model folder" : meta ? "gguf" : "safetensors";
    json_t *out = json_pack("{s:s}", "kind", kind), *list = json_array(), *types = json_object();
    for (int i = 0; i < wz_tensors_count(set); i++) {
        const struct wz_tensor *t = wz_tensors_at(set, i);
        json_t *shape = json_array();
        for (int k = 0; k < t->n_dims; k++) json_array_append_new(shape, json_integer((json_int_t)t->shape[k]));
        json_array_append_new(list, json_pack("{s:s, s:s, s:o}", "name", t->name, "type", t->type, "shape", shape));
        count(types, t->type, "tensors", 1);
        count(types, t->type, "numbers", (int64_t)t->count);
        count(types, t->type, "bytes", (int64_t)t->bytes);
        numbers += t->count;
        bytes += t->bytes;
    }
    if (meta) add_brief(out, "metadata", meta);
    if (folder) {
        char *path = wz_path("%s/config.json", job->path);
        json_t *config = wz_file_exists(path) ? wz_json_load(path, job->err) : json_object();
        free(path);
        if (!config) {
            json_decref(out);
            json_decref(list);
            json_decref(types);
            wz_tensors_close(set);
            return NULL;
        }
        add_brief(out, "config", config);
        json_decref(config);
    }
    json_object_set_new(out, "tensors", list);
    json_object_set_new(out, "numbers", json_integer((json_int_t)numbers));
    json_object_set_new(out, "bytes", json_integer((json_int_t)bytes));
    json_object_set_new(out, "by type", types);
    wz_tensors_close(set);
    return out;
}

/* ---- records, prompts, checkpoints ------------------------------------------------------------------------ */

static json_t *read_record(const struct job *job)
{
    int64_t *steps;
    int n_steps, n = 0;

    if (wz_record_steps(job->path, &steps, &n_steps, job->err) < 0) return NULL;
    json_t *kinds = json_object();
    int64_t episodes = 0, turns = 0, tokens = 0;
    for (int i = 0; i < n_steps; i++) {
        Wz__Episode **list;
        if (wz_record_read(job->path, steps[i], &list, &n, job->err) < 0) {
            json_decref(kinds);
            free(steps);
            return NULL;
        }
        for (int k = 0; k < n; k++) {
            const Wz__Episode *e = list[k];
            count(kinds, e->kind, "episodes", 1);
            count(kinds, e->kind, "harmful", e->harmful);
            count(kinds, e->kind, "discarded", *e->discard != 0);
            count(kinds, e->kind, "turns cut by the window", wz_episode_cuts(e, -1));
            turns += (int64_t)e->n_turns;
            for (size_t q = 0; q < e->n_turns; q++) tokens += (int64_t)e->turns[q]->n_ids;
            wz_episode_free(list[k]);
        }
        episodes += n;
        free(list);
    }
    json_t *first = n_steps ? json_integer(steps[0]) : json_null(),
           *last = n_steps ? json_integer(steps[n_steps - 1]) : json_null();
    json_t *out = json_pack("{s:s, s:i, s:o, s:o, s:I, s:I, s:I, s:o}", "kind", "record", "steps", n_steps,
                            "first step", first, "last step", last, "episodes", (json_int_t)episodes, "turns",
                            (json_int_t)turns, "sampled tokens", (json_int_t)tokens, "by kind", kinds);
    free(steps);
    return out;
}

static json_t *read_prompts(const struct job *job)
{
    struct wz_prompts set;
    char hash[20];
    const struct wz_dataset *of = *job->dataset ? wz_dataset_find(job->dataset, job->err) : NULL;
    const char *keys[] = { "column", "harmful", "kind", "group", "only" },
               *values[] = { job->column, job->harmful, job->prompt_kind, NULL, NULL },
               *defaults[] = { "prompt", "harmful", "", "group", "" };

    if (*job->dataset && !of) return NULL;
    for (size_t i = 0; i < WZ_COUNT(keys); i++) {
        if (!values[i] && of) values[i] = wz_dataset_default(of, keys[i]);
        if (!values[i]) values[i] = defaults[i];
    }
    if (wz_prompts_load(&set, job->path, values[0], values[1], values[2], values[3], values[4], NULL, job->err) < 0)
        return NULL;
    json_t *kinds = json_object();
    for (int i = 0; i < set.n; i++) {
        count(kinds, set.list[i].kind, "rows", 1);
        count(kinds, set.list[i].kind, "harmful", set.list[i].harm == WZ_HARMFUL);
    }
    snprintf(hash, sizeof hash, "%016" PRIx64, set.hash);
    json_t *out = json_pack("{s:s, s:i, s:s, s:o}", "kind", "prompts", "rows", set.n, "hash of the texts", hash,
                            "by kind", kinds);
    if (of)
        json_object_set_new(out, "data set",
                            json_pack("{s:s, s:s, s:s, s:s}", "name", of->name, "published", of->where, "licence",
                                      of->licence, "for", wz_dataset_use(of)));
    wz_prompts_finish(&set);
    return out;
}

/* The manifest as it is, and what the folder of each agent holds. */
static json_t *read_checkpoint(const struct job *job)
{
    char *path = wz_path("%s/manifest.json", job->path);
    json_t *manifest = wz_json_load(path, job->err), *out = NULL, *models = json_object(), *model;
    const char *name;
    json_t *entry;

    if (!manifest) goto out;
    json_object_foreach(json_object_get(manifest, "agents"), name, entry)
    {
        struct job one = *job;
        char *folder = wz_path("%s/%s", job->path, name);
        one.path = folder;
        model = wz_is_dir(folder) ? read_tensors(&one) : json_null();
        free(folder);
        if (!model) goto out;
        json_object_del(model, "tensors");
        json_object_del(model, "config");
        json_object_set_new(models, name, model);
    }
    out = json_pack("{s:s, s:O, s:O}", "kind", "checkpoint", "manifest", manifest, "by agent", models);
out:
    json_decref(manifest);
    json_decref(models);
    free(path);
    return out;
}

/* By file ending; any other file is read as tensors. */
static const struct {
    const char *ending;
    json_t *(*read)(const struct job *job);
} readers[] = {
    { ".h5", read_record },    { ".hdf5", read_record }, { ".jsonl", read_prompts }, { ".ndjson", read_prompts },
    { ".json", read_prompts }, { ".csv", read_prompts }, { ".tsv", read_prompts },   { ".gz", read_prompts },
};

static json_t *read_any(const struct job *job)
{
    const char *dot = strrchr(job->path, '.');
    char *manifest = wz_path("%s/manifest.json", job->path);
    bool checkpoint = wz_file_exists(manifest);

    free(manifest);
    if (checkpoint) return read_checkpoint(job);
    for (size_t i = 0; dot && !wz_is_dir(job->path) && i < WZ_COUNT(readers); i++)
        if (!strcasecmp(dot, readers[i].ending)) return readers[i].read(job);
    return read_tensors(job);
}

/* ---- as text ---------------------------------------------------------------------------------------------- */

/* Returns the width in characters. */
static int show_text(const char *text)
{
    size_t n = strlen(text), size = 4 * n + 1;
    char *safe = wz_alloc(size);
    int width = 0;

    n = wz_printable(safe, size, text, n, "");
    printf("%s", safe);
    for (size_t i = 0; i < n; i++) width += ((unsigned char)safe[i] & 0xc0) != 0x80;
    free(safe);
    return width;
}

/* Strings without quotes. */
static void show_value(const json_t *value)
{
    char *text = json_is_string(value)
                     ? NULL
                     : json_dumps(value, JSON_ENCODE_ANY | JSON_ENSURE_ASCII | JSON_REAL_PRECISION(9) | JSON_COMPACT);

    show_text(text ? text : json_string_value(value));
    free(text);
}

/* An object of integers, on one line. False: it holds something else, nothing was printed. */
static bool show_counts(const json_t *j)
{
    const char *key;
    json_t *value;
    bool first = true;

    json_object_foreach((json_t *)(uintptr_t)j, key, value) if (!json_is_integer(value)) return false;
    json_object_foreach((json_t *)(uintptr_t)j, key, value)
    {
        printf("%s", first ? "" : ", ");
        show_text(key);
        printf(" %lld", (long long)json_integer_value(value));
        first = false;
    }
    printf("\n");
    return true;
}

static void show(const json_t *j, int indent)
{
    const char *key;
    json_t *value, *row;
    size_t i;
    int width = 0;

    json_object_foreach((json_t *)(uintptr_t)j, key, value) if ((int)strlen(key) > width && (int)strlen(key) <= 48)
        width = (int)strlen(key);
    json_object_foreach((json_t *)(uintptr_t)j, key, value)
    {
        printf("%*s", indent, "");
        int shown = show_text(key);
        printf("%*s", width > shown ? width - shown : 0, "");
        if (json_is_object(value)) {
            printf("  ");
            if (show_counts(value)) continue;
            printf("\n");
            show(value, indent + 2);
        } else if (json_is_object(json_array_get(value, 0))) { /* one per line */
            printf("  %zu\n", json_array_size(value));
            json_array_foreach(value, i, row)
            {
                const char *type = json_string_value(json_object_get(row, "type")); /* of a tensor */
                printf("%*s  %-*s", indent, "", type ? 6 : 0, type ? type : "");
                show_value(type ? json_object_get(row, "name") : row);
                if (type) {
                    printf("  ");
                    show_value(json_object_get(row, "shape"));
                }
                printf("\n");
            }
        } else {
            printf("  ");
            show_value(value);
            printf("\n");
        }
    }
}

int wz_cmd_inspect(int argc, char **argv)
{
    struct wz_err err;
    struct job job = { .dataset = "", .err = &err };
    struct wz_model_pick pick = { NULL, -1 };
    bool as_json = false;
    int status;
    const struct wz_option options[] = {
        { "json", 'j', WZ_FLAG, &as_json, "", "print one JSON object", 0, 0 },
        { "dataset", 0, WZ_TEXT, &job.dataset, "NAME",
          "prompts: the published data set they are of (`waltz help datasets`), which names the columns", 0, 0 },
        { "column", 0, WZ_TEXT, &job.column, "NAME", "prompts: the column of texts", 0, 0 },
        { "harmful", 0, WZ_TEXT, &job.harmful, "NAME",
          "prompts: the column of truth; =harmful or =benign: the same for all", 0, 0 },
        WZ_PICK_OPTIONS(&pick),
        { "kind", 0, WZ_TEXT, &job.prompt_kind, "NAME", "prompts: the column of kinds, or =NAME", 0, 0 },
    };
    const struct wz_usage usage = {
        .name = "inspect",
        .args = "FILE|FOLDER|RUN",
        .options = options,
        .n_options = WZ_COUNT(options),
        .about =
            "Prints what is in a safetensors or GGUF file, a model folder, a checkpoint folder, a run's record of\n"
            "episodes (.h5), or a file of prompts (.jsonl, .json, .csv, .tsv); of a run's\n"
            "folder the model of its newest checkpoint.",
    };

    if (wz_options_parse(&usage, argc, argv, &status) < 0) return status;
    char *path = wz_checkpoint_model(argv[0], pick.agent, pick.step, &err);
    job.path = path;
    json_t *out = path ? read_any(&job) : NULL;
    free(path);
    if (!out) return wz_give_up("inspect", &err);
    if (as_json) {
        wz_print_json(out);
        return 0;
    }
    show(out, 0);
    json_decref(out);
    return 0;
}
