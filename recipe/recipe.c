/* Recipes: from YAML to the struct and back.
 *
 *     file ─libyaml─▶ tree ─resolve─▶ YAML with every key ─libcyaml─▶ struct ─libcyaml─▶ tree ─resolve─▶ file
 *
 * libcyaml fills and reads the struct, but it can't tell an absent key from a zero, and its line numbers are not
 * exact. So the tree is walked along the same schema first (resolve.c). Saving goes the same way, so a saved recipe is
 * checked too, and its numbers are as short as they are exact. */
#include "recipe/recipe.h"
#include "recipe/schema.h"

#include <stdlib.h>
#include <string.h>

/* Keeps the first error that libcyaml logs, should it refuse what resolve accepted. */
static void keep_error(cyaml_log_t level, void *ctx, const char *fmt, va_list args)
{
    struct wz_err *said = ctx;

    if (level >= CYAML_LOG_ERROR && !*said->text) vsnprintf(said->text, sizeof said->text, fmt, args);
}

static cyaml_config_t config_of(struct wz_err *said)
{
    return (cyaml_config_t){ .log_fn = keep_error, .log_ctx = said, .mem_fn = cyaml_mem, .log_level = CYAML_LOG_ERROR };
}

static int check(const struct wz_recipe *recipe, struct wz_err *err);

int wz_form_parse(void **data, struct wz_resolved **source, const struct wz_recipe_form *form, const char *path,
                  const void *text, size_t len, char *const *overrides, int n, struct wz_err *err)
{
    struct wz_resolved *r = wz_alloc(sizeof *r);
    struct wz_err said = { "" };
    cyaml_config_t config = config_of(&said);
    cyaml_data_t *loaded = NULL;
    int rc = wz_recipe_resolve(r, form, path, text, len, overrides, n, err);

    *data = NULL;
    if (rc == 0) {
        cyaml_err_t e =
            cyaml_load_data((const uint8_t *)r->text.data, r->text.len, &config, form->schema, &loaded, NULL);
        if (e != CYAML_OK)
            rc = wz_fail(err, "%s: %s (%.*s)", path, cyaml_strerror(e), (int)strcspn(said.text, "\n"), said.text);
    }
    if (rc < 0) {
        wz_resolved_finish(r);
        free(r);
        return -1;
    }
    *data = loaded;
    *source = r;
    return 0;
}

int wz_recipe_parse(struct wz_recipe **recipe, const char *path, const void *text, size_t len, char *const *overrides,
                    int n, struct wz_err *err)
{
    struct wz_resolved *source;
    void *data;
    int rc = wz_form_parse(&data, &source, &wz_recipe_form, path, text, len, overrides, n, err);

    *recipe = data;
    if (rc < 0) return -1;
    (*recipe)->source = source;
    if (!*(*recipe)->out) {
        free((*recipe)->out);
        (*recipe)->out = wz_path("runs/%s", (*recipe)->name);
    }
    rc = check(*recipe, err);
    if (rc < 0) {
        wz_recipe_destroy(*recipe);
        *recipe = NULL;
    }
    return rc;
}

int wz_recipe_load(struct wz_recipe **recipe, const char *path, char *const *overrides, int n, struct wz_err *err)
{
    struct wz_map map;

    *recipe = NULL;
    if (wz_is_dir(path)) {
        char *of_run = wz_path("%s/recipe.yaml", path);
        bool run = wz_file_exists(of_run);
        wz_fail(err, "%s: expected a recipe, got a folder%s%s", path, run ? "; the recipe of that run is " : "",
                run ? of_run : "");
        free(of_run);
        return -1;
    }
    if (wz_map_open(&map, path, err) < 0) return -1;
    int rc = wz_recipe_parse(recipe, path, map.bytes, map.len, overrides, n, err);
    wz_map_close(&map);
    return rc;
}

int wz_recipe_print(const struct wz_recipe *recipe, const char *path, struct wz_resolved *r, struct wz_err *err)
{
    struct wz_err said = { "" };
    cyaml_config_t config = config_of(&said);
    char *text = NULL;
    size_t n = 0;
    cyaml_err_t e = cyaml_save_data(&text, &n, &config, wz_recipe_form.schema, recipe, 0);
    int rc;

    if (e != CYAML_OK)
        return wz_fail(err, "%s: %s (%.*s)", path, cyaml_strerror(e), (int)strcspn(said.text, "\n"), said.text);
    rc = wz_recipe_resolve(r, &wz_recipe_form, path, text, n, NULL, 0, err);
    free(text);
    return rc;
}

int wz_recipe_save(const struct wz_recipe *recipe, const char *path, struct wz_err *err)
{
    struct wz_resolved r = { 0 };
    int rc = wz_recipe_print(recipe, path, &r, err);

    if (rc == 0) rc = wz_file_write(path, r.text.data, r.text.len, err);
    wz_resolved_finish(&r);
    return rc;
}

void wz_form_destroy(void *data, struct wz_resolved *source, const struct wz_recipe_form *form)
{
    struct wz_err said = { "" };
    cyaml_config_t config = config_of(&said);

    if (source) wz_resolved_finish(source);
    free(source);
    cyaml_free(&config, form->schema, data, 0);
}

void wz_recipe_destroy(struct wz_recipe *recipe)
{
    if (recipe) wz_form_destroy(recipe, recipe->source, &wz_recipe_form);
}

/* ---- origins ---------------------------------------------------------------------------------------------- */

static const struct wz_origin *origin_of(const struct wz_resolved *r, const char *path)
{
    for (int i = 0; r && i < r->n_origins; i++)
        if (!strcmp(r->origins[i].path, path)) return &r->origins[i];
    return NULL;
}

int wz_resolved_fail(const struct wz_resolved *r, struct wz_err *err, const char *path, const char *fmt, va_list args)
{
    const struct wz_origin *o = origin_of(r, path);
    char what[512];
    int n = snprintf(what, sizeof what, "%.120s: ", path);

    vsnprintf(what + n, sizeof what - (size_t)n, fmt, args);
    return wz_origin_fail(r ? r->file : "recipe", o ? o->line : 0, o ? o->override : NULL, what, err);
}

int wz_recipe_fail(const struct wz_recipe *recipe, struct wz_err *err, const char *path, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    wz_resolved_fail(recipe->source, err, path, fmt, args);
    va_end(args);
    return -1;
}

const char *wz_recipe_value(const struct wz_recipe *recipe, int i, const char **value)
{
    const struct wz_resolved *r = recipe->source;

    if (!r || i >= r->n_origins) return NULL;
    *value = r->origins[i].value;
    return r->origins[i].path;
}

/* Is this a key of a stage that is numbered `first` or later? */
static bool of_stage(const char *path, unsigned first)
{
    unsigned s;

    return sscanf(path, "stages.%u.", &s) == 1 && s >= first;
}

/* The first value from *i on that may not change; NULL: none is left. The section sft decides nothing of a run (`waltz
 * sft` runs a stage of its own), and stages behind those that the run began with are appended to it. */
static const struct wz_origin *next_bits(const struct wz_resolved *r, unsigned n_stages, int *i)
{
    while (*i < r->n_origins) {
        const struct wz_origin *o = &r->origins[(*i)++];
        if (o->mark == BITS && strncmp(o->path, "sft.", 4) && !of_stage(o->path, n_stages)) return o;
    }
    return NULL;
}

/* A value is the same, or is `auto` and is compared as what it is resolved to, or gives the last stage more steps. */
static bool may_become(const struct wz_recipe *was, const struct wz_origin *a, const struct wz_origin *b)
{
    if (!strcmp(a->value, b->value)) return true;
    if (!strcmp(a->path, "backend") || !strcmp(a->path, "numerics.isa") || !strcmp(a->path, "numerics.bf16"))
        return !strcmp(a->value, "auto") || !strcmp(b->value, "auto");
    return of_stage(a->path, was->n_stages - 1) && !strcmp(strrchr(a->path, '.'), ".steps") &&
           atoi(b->value) > atoi(a->value);
}

int wz_recipe_resumes(const struct wz_recipe *was, const struct wz_recipe *now, struct wz_err *err)
{
    for (int i = 0, k = 0;;) { /* both in the order of the schema */
        const struct wz_origin *a = next_bits(was->source, was->n_stages, &i),
                               *b = next_bits(now->source, was->n_stages, &k);
        if (!a && !b) return 0;
        if (a && b && !strcmp(a->path, b->path) && may_become(was, a, b)) continue;
        const char *path = a && (!b || !origin_of(now->source, a->path)) ? a->path : b->path;
        a = origin_of(was->source, path);
        b = origin_of(now->source, path);
        return wz_recipe_fail(now, err, path,
                              "the run in %s began with %s, and this is %s; set it back to resume that run, or choose "
                              "another `out` to begin one",
                              now->out, a ? a->value : "no such key", b ? b->value : "no such key");
    }
}

/* ---- checks across keys --------------------------------------------------------------------- */

int wz_recipe_agent(const struct wz_recipe *recipe, const char *name)
{
    for (unsigned i = 0; i < recipe->n_agents; i++)
        if (!strcmp(recipe->agents[i].name, name)) return (int)i;
    return -1;
}

const struct wz_recipe_learn *wz_recipe_learn(const struct wz_recipe_stage *stage, const char *agent)
{
    for (unsigned i = 0; i < stage->n_agents; i++)
        if (!strcmp(stage->agents[i].name, agent)) return &stage->agents[i];
    return NULL;
}

bool wz_recipe_learns(const struct wz_recipe *recipe, const char *agent)
{
    for (unsigned s = 0; s < recipe->n_stages; s++)
        if (wz_recipe_learn(&recipe->stages[s], agent)) return true;
    return false;
}

static int check_stage(const struct wz_recipe *recipe, unsigned s, struct wz_err *err)
{
    const struct wz_recipe_stage *stage = &recipe->stages[s];
    char path[96];

    snprintf(path, sizeof path, "stages.%u.name", s);
    for (unsigned i = 0; i < s; i++)
        if (!strcmp(recipe->stages[i].name, stage->name))
            return wz_recipe_fail(recipe, err, path, "there is a stage '%s' already", stage->name);
    for (unsigned i = 0; i < stage->n_mix; i++)
        for (unsigned k = 0; k < i; k++)
            if (!strcmp(stage->mix[k].kind, stage->mix[i].kind)) {
                snprintf(path, sizeof path, "stages.%u.mix.%u.kind", s, i);
                return wz_recipe_fail(recipe, err, path, "kind '%s' has a share already", stage->mix[i].kind);
            }
    for (unsigned i = 0; i < stage->n_agents; i++) {
        const char *name = stage->agents[i].name;
        int a = wz_recipe_agent(recipe, name);
        snprintf(path, sizeof path, "stages.%u.agents.%u.name", s, i);
        if (a < 0) {
            const char *near = wz_nearest(name, recipe->agents, sizeof *recipe->agents, (int)recipe->n_agents);
            return near ? wz_recipe_fail(recipe, err, path, "there is no agent '%s'; did you mean '%s'?", name, near)
                        : wz_recipe_fail(recipe, err, path, "there is no agent '%s'", name);
        }
        if (wz_recipe_learn(stage, name) != &stage->agents[i])
            return wz_recipe_fail(recipe, err, path, "agent '%s' is in this stage already", name);
        if (recipe->agents[a].temperature == 0)
            return wz_recipe_fail(recipe, err, path,
                                  "agent '%s' has temperature 0, which leaves nothing to learn from: more than 0 was "
                                  "expected, or leave it out",
                                  name);
    }
    return 0;
}

/* What roles with a rule in a model's place ask of the recipe. */
static int check_rule(const struct wz_recipe *recipe, unsigned i, struct wz_err *err)
{
    const struct wz_recipe_agent *a = &recipe->agents[i];
    const bool oracle = !strcmp(a->role, "oracle"), guard = !strcmp(a->role, "guard");
    const char *silent = !oracle && !guard                  ? NULL
                         : !a->says.unsafe[0]               ? "unsafe"
                         : oracle && !a->says.overrefuse[0] ? "overrefuse"
                                                            : NULL;
    bool guarded = !strcmp(recipe->judge.role, "guard") && !recipe->n_judges;
    char path[64];

    snprintf(path, sizeof path, "agents.%u.says.%s", i, silent ? silent : "");
    if (silent) return wz_recipe_fail(recipe, err, path, "an agent with the role %s needs its words here", a->role);
    snprintf(path, sizeof path, "agents.%u.role", i);
    for (unsigned k = 0; oracle && k < recipe->n_agents; k++)
        if (!strcmp(recipe->agents[k].role, "feedback"))
            return wz_recipe_fail(recipe, err, path, "agent '%s' gives feedback already: the game has one or the other",
                                  recipe->agents[k].name);
    for (unsigned k = 0; k < recipe->n_judges; k++) guarded |= !strcmp(recipe->judges[k].role, "guard");
    if (guard && !guarded)
        return wz_recipe_fail(recipe, err, path, "no judge has the role guard, and '%s' would never speak", a->name);
    return 0;
}

static int check_attempts(const struct wz_recipe *recipe, struct wz_err *err)
{
    const int64_t branching = recipe->evaluate.branching, width = recipe->evaluate.width,
                  attempts = branching * (1 + (recipe->evaluate.attempts - 1) * width);
    bool attacked = false, pruned = false;
    char path[64];

    for (unsigned i = 0; i < recipe->n_judges; i++) pruned |= !strcmp(recipe->judges[i].role, "topic");
    for (unsigned i = 0; i < recipe->n_agents; i++) attacked |= !strcmp(recipe->agents[i].role, "attacker");
    const bool searched = strcmp(recipe->evaluate.search.by, "none") != 0;
    if (searched && attacked)
        return wz_recipe_fail(recipe, err, "evaluate.search.by", "expected none with an agent with the role attacker");
    const char *line = recipe->evaluate.search.text;
    for (int n = 1; !strcmp(recipe->evaluate.search.by, "autodan") && *line; n++) {
        const char *end = line + strcspn(line, "\n"), *at = strstr(line, "{prompt}");
        const char *again = at ? strstr(at + 1, "{prompt}") : NULL;
        if (!at || at >= end || (again && again < end))
            return wz_recipe_fail(recipe, err, "evaluate.search.text",
                                  "expected {prompt} once in each line, not so in %d", n);
        line = end + (*end == '\n');
    }
    if (attempts == 1 && !pruned) return 0;
    if (attempts > 10000)
        return wz_recipe_fail(recipe, err, "evaluate.attempts",
                              "expected at most 10000 attempts in all, got %lld: branching * (1 + (attempts - 1) * "
                              "width)",
                              (long long)attempts);
    if (!attacked)
        return wz_recipe_fail(recipe, err, attempts > 1 ? "evaluate.attempts" : "judges",
                              attempts > 1 ? "expected 1 without an agent with the role attacker, and branching 1"
                                           : "one has the role topic, and no agent the role attacker");
    for (unsigned i = 0; i < recipe->n_eval; i++) {
        snprintf(path, sizeof path, "eval.%u.prefill.path", i);
        if (*recipe->eval[i].prefill.path)
            return wz_recipe_fail(recipe, err, path, "the prompts of several attempts (evaluate.attempts) have none");
    }
    return 0;
}

static int check(const struct wz_recipe *recipe, struct wz_err *err)
{
    bool answers = false;
    char path[64];

    if (recipe->leaves & (recipe->leaves - 1))
        return wz_recipe_fail(recipe, err, "leaves", "%d is not a power of two", recipe->leaves);
    for (unsigned i = 0; i < recipe->n_agents; i++) {
        snprintf(path, sizeof path, "agents.%u.name", i);
        if (wz_recipe_agent(recipe, recipe->agents[i].name) != (int)i)
            return wz_recipe_fail(recipe, err, path, "there is an agent '%s' already", recipe->agents[i].name);
        answers |= !strcmp(recipe->agents[i].role, "conversation");
        for (unsigned k = 0; k < i; k++)
            if (!strcmp(recipe->agents[k].role, recipe->agents[i].role)) {
                snprintf(path, sizeof path, "agents.%u.role", i);
                return wz_recipe_fail(recipe, err, path,
                                      "agent '%s' has the role %s already, and the game has one of each",
                                      recipe->agents[k].name, recipe->agents[k].role);
            }
        if (check_rule(recipe, i, err) < 0) return -1;
    }
    if (!recipe->n_agents && !*recipe->sft.model)
        return wz_fail(err, "%s: neither agents nor sft.model is given: nothing to do", recipe->source->file);
    if (recipe->n_agents && !answers)
        return wz_fail(err, "%s: agents: none has the role conversation", recipe->source->file);
    if (check_attempts(recipe, err) < 0) return -1;
    if (recipe->n_stages && !recipe->n_agents)
        return wz_fail(err, "%s: stages are given, but no agents", recipe->source->file);
    if (recipe->n_stages && !recipe->n_data)
        return wz_fail(err, "%s: stages are given, but no data to train on", recipe->source->file);
    for (unsigned i = 0; i < recipe->n_data; i++) {
        const struct wz_dataset *set = *recipe->data[i].dataset ? wz_dataset_find(recipe->data[i].dataset, err) : NULL;
        snprintf(path, sizeof path, "data.%u.dataset", i);
        if (set && set->use == WZ_DATA_NEVER)
            return wz_recipe_fail(recipe, err, path, "%s is for evaluation only, by its terms (%s): put it into eval",
                                  set->name, set->where);
    }
    for (unsigned s = 0; s < recipe->n_stages; s++)
        if (check_stage(recipe, s, err) < 0) return -1;
    return 0;
}
