/* Recipes: from YAML to the struct and back.
 *
 *     file ─libyaml─▶ tree ─resolve─▶ YAML with every key ─libcyaml─▶ struct ─libcyaml─▶ tree ─resolve─▶ file
 *
 * libcyaml fills and reads the struct, but it can't tell an absent key from a zero, and its line numbers lag behind. So the
 * tree is walked along the same schema first: unknown keys, wrong types and ranges are refused there, with the line;
 * overrides and defaults are put in; and what comes out is the resolved recipe, in which every key has its value. Saving
 * takes the same way, so a saved recipe is checked and written in the same hand (numbers as short as they are exact). */
#include "launch/recipe.h"
#include "launch/launch.h"
#include "launch/recipe_schema.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <yaml.h>

/* An override on its way down the tree: `rest` is the part of its path below the mapping or list at hand. */
struct override { const char *text, *rest, *value; };

struct resolver {
    const char *file;
    yaml_document_t doc;
    struct wz_buf path;                        /* of the key at hand, "stages.0.steps" */
    struct wz_buf out;                         /* the resolved YAML */
    bool item;                                 /* the next key opens an element of a list */
    struct origin { const char *path; size_t line; const char *override; } *origins;      /* of every value */
    int n_origins, cap_origins;
    struct wz_arena arena;
    struct wz_err *err;
};

/* ---- where things are ------------------------------------------------------------------------------------------ */

static size_t push(struct resolver *r, const char *name)
{
    size_t mark = r->path.len;

    wz_buf_printf(&r->path, "%s%s", mark ? "." : "", name);
    return mark;
}

static void pop(struct resolver *r, size_t mark)
{
    r->path.len = mark;
    if (r->path.data) r->path.data[mark] = 0;
}

static size_t line_of(const yaml_node_t *node)
{
    return node ? node->start_mark.line + 1 : 0;
}

static int fail(struct resolver *r, size_t line, const char *override, const char *fmt, ...) WZ_PRINTF(4, 5);
static int fail(struct resolver *r, size_t line, const char *override, const char *fmt, ...)
{
    char what[512];
    va_list args;

    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    if (override) return wz_fail(r->err, "override %.80s: %s", override, what);
    if (line) return wz_fail(r->err, "%s:%zu: %s", r->file, line, what);
    return wz_fail(r->err, "%s: %s", r->file, what);
}

/* The same about a value already resolved, by its path: for what only the whole recipe tells. */
static int fail_at(struct resolver *r, const char *path, const char *fmt, ...) WZ_PRINTF(3, 4);
static int fail_at(struct resolver *r, const char *path, const char *fmt, ...)
{
    char what[384];
    const struct origin *o = NULL;
    va_list args;

    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    for (int i = 0; i < r->n_origins; i++)
        if (!strcmp(r->origins[i].path, path)) o = &r->origins[i];
    return fail(r, o ? o->line : 0, o ? o->override : NULL, "%s: %s", path, what);
}

static void note_origin(struct resolver *r, size_t line, const char *override)
{
    if (r->n_origins == r->cap_origins) {
        r->cap_origins = r->cap_origins ? 2 * r->cap_origins : 256;
        r->origins = wz_realloc(r->origins, wz_mul((size_t)r->cap_origins, sizeof *r->origins));
    }
    r->origins[r->n_origins++] = (struct origin){ wz_arena_strdup(&r->arena, r->path.data), line, override };
}

/* ---- values ---------------------------------------------------------------------------------------------------- */

static bool in_range(double x, const char *range)
{
    char *end;
    double low = strtod(range + 1, &end), high = strtod(end + 1, &end);

    return (*range == '[' ? x >= low : x > low) && (*end == ']' ? x <= high : x < high);
}

static bool is_name(const char *s)
{
    if (!isalnum((unsigned char)*s)) return false;
    return !s[strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")];
}

/* Plain where any YAML reader takes it for a string, else in JSON's quotes, which are YAML's too. */
static void put_text(struct wz_buf *out, const char *s)
{
    static const char *const taken[] = { "true", "false", "yes", "no", "on", "off", "null", "y", "n" };
    bool plain = isalpha((unsigned char)*s) &&
                 !s[strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/-")];

    for (size_t i = 0; i < WZ_COUNT(taken); i++) plain &= strcasecmp(s, taken[i]) != 0;
    if (plain) wz_buf_str(out, s);
    else wz_json_string(out, s, strlen(s));
}

/* Checks `text` against the key's type and rule and writes it. */
static int put_value(struct resolver *r, const cyaml_schema_field_t *field, const struct wz_recipe_rule *rule,
                     const char *text, size_t line, const char *override)
{
    const char *path = r->path.data, *digits = text + (*text == '-' || *text == '+');
    bool whole = *digits && !digits[strspn(digits, "0123456789")] && (digits[0] != '0' || !digits[1]);
    char *end;

    errno = 0;
    switch (field->value.type) {
    case CYAML_INT: {
        long long x = strtoll(text, &end, 10);
        if (!whole || errno) return fail(r, line, override, "%s: '%.80s' is not a whole number", path, text);
        if (!in_range((double)x, rule->want))
            return fail(r, line, override, "%s: %lld is out of range, %s was expected", path, x, rule->want);
        wz_buf_printf(&r->out, "%lld", x);
        return 0;
    }
    case CYAML_UINT: {
        unsigned long long x = strtoull(text, &end, 10);
        if (!whole || errno || *text == '-')
            return fail(r, line, override, "%s: '%.80s' is not a whole number from 0 to 2^64-1", path, text);
        wz_buf_printf(&r->out, "%llu", x);
        return 0;
    }
    case CYAML_FLOAT: {
        double x = strtod(text, &end);
        if (end == text || *end || !isfinite(x)) return fail(r, line, override, "%s: '%.80s' is not a number", path, text);
        if (!in_range(x, rule->want))
            return fail(r, line, override, "%s: %g is out of range, %s was expected", path, x, rule->want);
        wz_real_add(&r->out, x);
        return 0;
    }
    default:
        if (wz_utf8_valid(text, strlen(text)) != strlen(text)) return fail(r, line, override, "%s: is not UTF-8", path);
        if (rule->want && !strcmp(rule->want, "text")) {
            if (!*text) return fail(r, line, override, "%s: must not be empty", path);
        } else if (rule->want && !strcmp(rule->want, "name")) {
            if (!is_name(text))
                return fail(r, line, override, "%s: '%.80s' is not a name (letters, digits, '.', '_' and '-')", path, text);
        } else if (rule->want && !wz_is_choice(rule->want, text)) {
            return strchr(rule->want, '|') ? fail(r, line, override, "%s: '%.80s' is none of %s", path, text, rule->want)
                                           : fail(r, line, override, "%s: '%.80s' should be %s", path, text, rule->want);
        }
        put_text(&r->out, text);
        return 0;
    }
}

/* ---- overrides ------------------------------------------------------------------------------------------------- */

/* The overrides that go on below `name` (or below `other`, the element's other name); the rest end here. n + 1 rows. */
static struct override *below(struct resolver *r, const struct override *list, const char *name, const char *other)
{
    int n = 0;

    while (list[n].text) n++;
    struct override *kept = wz_arena_alloc(&r->arena, wz_mul((size_t)n + 1, sizeof *kept));
    for (int i = 0, k = 0; i < n; i++) {
        const char *as[] = { name, other };
        for (int j = 0; j < 2; j++) {
            size_t size = as[j] ? strlen(as[j]) : 0;
            /* A name may hold dots itself, so it is compared as a whole. */
            if (!size || strncmp(list[i].rest, as[j], size) || !strchr(".=", list[i].rest[size])) continue;
            kept[k] = list[i];
            kept[k++].rest = list[i].rest + size + (list[i].rest[size] == '.');
            break;
        }
    }
    return kept;
}

static const char *where(const struct resolver *r)
{
    return r->path.len ? r->path.data : "the recipe";
}

/* An override must name a key of the mapping at hand. */
static int check_overrides(struct resolver *r, const struct wz_recipe_keys *keys, const struct override *list)
{
    for (; list->text; list++) {
        char name[96];
        bool known = false;
        snprintf(name, sizeof name, "%.*s", (int)strcspn(list->rest, ".="), list->rest);
        if (*list->rest == '=') return fail(r, 0, list->text, "%s holds keys; name one of them", where(r));
        for (int i = 0; i < keys->n; i++) known |= !strcmp(keys->fields[i].key, name);
        if (known) continue;
        const char *near = wz_nearest(name, keys->fields, sizeof *keys->fields, keys->n);
        return near ? fail(r, 0, list->text, "%s has no key '%s'; did you mean '%s'?", where(r), name, near)
                    : fail(r, 0, list->text, "%s has no key '%s'", where(r), name);
    }
    return 0;
}

/* ---- the walk -------------------------------------------------------------------------------------------------- */

/* An empty value, null or ~ is as good as an absent key. */
static bool is_null(const yaml_node_t *node)
{
    if (node->type != YAML_SCALAR_NODE || node->data.scalar.style != YAML_PLAIN_SCALAR_STYLE) return false;
    const char *s = (const char *)node->data.scalar.value;
    return !*s || !strcmp(s, "~") || !strcmp(s, "null");
}

static const char *scalar_text(struct resolver *r, const yaml_node_t *node)
{
    const char *s = (const char *)node->data.scalar.value;

    if (strlen(s) == node->data.scalar.length) return s;
    fail(r, line_of(node), NULL, "%s: holds a NUL byte", where(r));
    return NULL;
}

static yaml_node_t *find(struct resolver *r, const yaml_node_t *map, const char *key)
{
    if (map)
        for (yaml_node_pair_t *p = map->data.mapping.pairs.start; p < map->data.mapping.pairs.top; p++) {
            yaml_node_t *k = yaml_document_get_node(&r->doc, p->key), *v = yaml_document_get_node(&r->doc, p->value);
            if (!strcmp((const char *)k->data.scalar.value, key)) return is_null(v) ? NULL : v;
        }
    return NULL;
}

/* The mapping's own keys: all known, none twice. */
static int check_keys(struct resolver *r, const struct wz_recipe_keys *keys, const yaml_node_t *map)
{
    size_t seen[64] = {0};     /* lines; far more than any mapping has keys */

    assert(keys->n <= (int)WZ_COUNT(seen));
    for (yaml_node_pair_t *p = map->data.mapping.pairs.start; p < map->data.mapping.pairs.top; p++) {
        const yaml_node_t *k = yaml_document_get_node(&r->doc, p->key);
        const char *name = k->type == YAML_SCALAR_NODE ? scalar_text(r, k) : NULL;
        int at = -1;
        if (k->type != YAML_SCALAR_NODE) return fail(r, line_of(k), NULL, "%s: a key must be a word", where(r));
        if (!name) return -1;
        for (int i = 0; i < keys->n; i++)
            if (!strcmp(keys->fields[i].key, name)) at = i;
        if (at < 0) {
            const char *near = wz_nearest(name, keys->fields, sizeof *keys->fields, keys->n);
            return near ? fail(r, line_of(k), NULL, "%s has no key '%.80s'; did you mean '%s'?", where(r), name, near)
                        : fail(r, line_of(k), NULL, "%s has no key '%.80s'", where(r), name);
        }
        if (seen[at])
            return fail(r, line_of(k), NULL, "%s: key '%s' was given on line %zu already", where(r), name, seen[at]);
        seen[at] = line_of(k);
    }
    return 0;
}

/* A key at this depth; the first key of a list's element carries the dash. */
static void put_key(struct resolver *r, int depth, const char *key)
{
    wz_buf_printf(&r->out, "%*s%s%s:", 2 * depth - (r->item ? 2 : 0), "", r->item ? "- " : "", key);
    r->item = false;
}

static int resolve_map(struct resolver *r, const struct wz_recipe_keys *keys, const yaml_node_t *node, size_t line,
                       const struct override *overrides, int depth);

static int resolve_list(struct resolver *r, const cyaml_schema_field_t *field, const struct wz_recipe_rule *rule,
                        const yaml_node_t *node, const struct override *overrides, int depth)
{
    if (node && node->type != YAML_SEQUENCE_NODE)
        return fail(r, line_of(node), NULL, "%s: a list was expected (lines that begin with -)", where(r));

    yaml_node_item_t *items = node ? node->data.sequence.items.start : NULL;
    int n = node ? (int)(node->data.sequence.items.top - items) : 0;
    const char *first = rule->inside->fields[0].key;
    bool *used = NULL;
    int n_overrides = 0;

    while (overrides[n_overrides].text) n_overrides++;
    if (n_overrides) used = wz_arena_alloc(&r->arena, wz_mul((size_t)n_overrides, sizeof *used));
    if ((uint32_t)n > field->value.sequence.max)
        return fail(r, line_of(node), NULL, "%s: %d elements, at most %u are allowed", where(r), n, field->value.sequence.max);
    wz_buf_str(&r->out, n ? "\n" : " []\n");
    for (int i = 0; i < n; i++) {
        yaml_node_t *element = yaml_document_get_node(&r->doc, items[i]);
        yaml_node_t *name = element->type == YAML_MAPPING_NODE ? find(r, element, first) : NULL;
        const char *title = name && name->type == YAML_SCALAR_NODE ? (const char *)name->data.scalar.value : NULL;
        char index[16];
        snprintf(index, sizeof index, "%d", i);
        const struct override *mine = below(r, overrides, index, title);
        for (const struct override *o = mine; o->text; o++)
            for (int k = 0; k < n_overrides; k++) used[k] |= overrides[k].text == o->text;
        size_t mark = push(r, index);
        r->item = true;
        if (resolve_map(r, rule->inside, element, line_of(element), mine, depth + 2) < 0) return -1;
        pop(r, mark);
    }
    for (int k = 0; k < n_overrides; k++)
        if (!used[k])
            return fail(r, 0, overrides[k].text, "%s has %d elements and none is '%.*s' (they go by number from 0, or by %s)",
                        where(r), n, (int)strcspn(overrides[k].rest, ".="), overrides[k].rest, first);
    return 0;
}

static int resolve_value(struct resolver *r, const cyaml_schema_field_t *field, const struct wz_recipe_rule *rule,
                         const yaml_node_t *node, size_t line, const struct override *overrides)
{
    const char *text = rule->fallback, *override = NULL;
    size_t at = 0;

    if (node && node->type != YAML_SCALAR_NODE)
        return fail(r, line_of(node), NULL, "%s: one value was expected, not a %s", where(r),
                    node->type == YAML_MAPPING_NODE ? "mapping" : "list");
    if (node) {
        text = scalar_text(r, node);
        at = line_of(node);
        if (!text) return -1;
    }
    for (; overrides->text; overrides++) {
        if (*overrides->rest != '=') return fail(r, 0, overrides->text, "%s is one value, it has no keys", where(r));
        text = overrides->value;
        override = overrides->text;
    }
    if (!text) return fail(r, line, NULL, "%s must be given", where(r));
    note_origin(r, at, override);
    wz_buf_str(&r->out, " ");
    if (put_value(r, field, rule, text, at, override) < 0) return -1;
    wz_buf_str(&r->out, "\n");
    return 0;
}

static int resolve_map(struct resolver *r, const struct wz_recipe_keys *keys, const yaml_node_t *node, size_t line,
                       const struct override *overrides, int depth)
{
    if (node && node->type != YAML_MAPPING_NODE)
        return fail(r, line, NULL, "%s: keys with values were expected", where(r));
    if (node && check_keys(r, keys, node) < 0) return -1;
    if (check_overrides(r, keys, overrides) < 0) return -1;
    for (int i = 0; i < keys->n; i++) {
        const cyaml_schema_field_t *field = &keys->fields[i];
        const struct override *mine = below(r, overrides, field->key, NULL);
        yaml_node_t *value = find(r, node, field->key);
        size_t mark = push(r, field->key);
        int rc;
        put_key(r, depth, field->key);
        if (field->value.type == CYAML_MAPPING) {
            wz_buf_str(&r->out, "\n");
            rc = resolve_map(r, keys->rules[i].inside, value, value ? line_of(value) : line, mine, depth + 1);
        } else if (field->value.type == CYAML_SEQUENCE) {
            rc = resolve_list(r, field, &keys->rules[i], value, mine, depth);
        } else {
            rc = resolve_value(r, field, &keys->rules[i], value, line, mine);
        }
        if (rc < 0) return -1;
        pop(r, mark);
    }
    return 0;
}

/* ---- from and to the struct ------------------------------------------------------------------------------------ */

static int resolve(struct resolver *r, const uint8_t *text, size_t n, char *const *overrides, int n_overrides)
{
    yaml_parser_t parser;
    yaml_document_t extra;
    int rc = -1;

    if (!yaml_parser_initialize(&parser)) wz_die("out of memory");
    yaml_parser_set_input_string(&parser, text, n);
    if (!yaml_parser_load(&parser, &r->doc)) {
        memset(&r->doc, 0, sizeof r->doc);
        fail(r, parser.problem_mark.line + 1, NULL, "not valid YAML: %s%s%s", parser.problem ? parser.problem : "unreadable",
             parser.context ? " " : "", parser.context ? parser.context : "");
        goto out;
    }
    yaml_node_t *root = yaml_document_get_root_node(&r->doc);
    if (!root) {
        fail(r, 0, NULL, "is empty, a recipe was expected");
        goto out;
    }
    if (!yaml_parser_load(&parser, &extra)) {
        fail(r, parser.problem_mark.line + 1, NULL, "not valid YAML: %s", parser.problem ? parser.problem : "unreadable");
        goto out;
    }
    root = yaml_document_get_root_node(&extra);
    size_t more = line_of(root);
    yaml_document_delete(&extra);
    if (more) {
        fail(r, more, NULL, "a second document begins here, a recipe is one");
        goto out;
    }

    struct override *list = wz_arena_alloc(&r->arena, wz_mul((size_t)n_overrides + 1, sizeof *list));
    for (int i = 0; i < n_overrides; i++) {
        const char *eq = strchr(overrides[i], '=');
        if (!eq || eq == overrides[i]) {
            fail(r, 0, overrides[i], "key=value was expected");
            goto out;
        }
        list[i] = (struct override){ overrides[i], overrides[i], eq + 1 };
    }
    root = yaml_document_get_root_node(&r->doc);
    rc = resolve_map(r, &wz_recipe_keys, root, line_of(root), list, 0);
out:
    yaml_parser_delete(&parser);
    return rc;
}

static void resolver_finish(struct resolver *r)
{
    yaml_document_delete(&r->doc);
    wz_buf_finish(&r->path);
    wz_buf_finish(&r->out);
    free(r->origins);
    wz_arena_finish(&r->arena);
}

/* libcyaml's own words, should it refuse what resolve let pass: the first line says what. */
static void hear(cyaml_log_t level, void *ctx, const char *fmt, va_list args)
{
    struct wz_err *said = ctx;

    if (level >= CYAML_LOG_ERROR && !*said->text) vsnprintf(said->text, sizeof said->text, fmt, args);
}

static cyaml_config_t config_of(struct wz_err *said)
{
    return (cyaml_config_t){ .log_fn = hear, .log_ctx = said, .mem_fn = cyaml_mem, .log_level = CYAML_LOG_ERROR };
}

static int check(struct resolver *r, const struct wz_recipe *recipe);

int wz_recipe_load(struct wz_recipe **recipe, const char *path, char *const *overrides, int n, struct wz_err *err)
{
    struct resolver r = { .file = path, .err = err };
    struct wz_err said = { "" };
    cyaml_config_t config = config_of(&said);
    struct wz_map map;
    cyaml_data_t *data = NULL;
    cyaml_err_t e;
    int rc = -1;

    *recipe = NULL;
    if (wz_map_open(&map, path, err) < 0) return -1;
    if (resolve(&r, map.bytes, map.len, overrides, n) < 0) goto out;
    e = cyaml_load_data((const uint8_t *)r.out.data, r.out.len, &config, &wz_recipe_schema, &data, NULL);
    if (e != CYAML_OK) {
        wz_fail(err, "%s: %s (%.*s)", path, cyaml_strerror(e), (int)strcspn(said.text, "\n"), said.text);
        goto out;
    }
    *recipe = data;
    if (!*(*recipe)->out) {
        free((*recipe)->out);
        (*recipe)->out = wz_path("runs/%s", (*recipe)->name);
    }
    rc = check(&r, *recipe);
    if (rc < 0) {
        wz_recipe_destroy(*recipe);
        *recipe = NULL;
    }
out:
    resolver_finish(&r);
    wz_map_close(&map);
    return rc;
}

int wz_recipe_save(const struct wz_recipe *recipe, const char *path, struct wz_err *err)
{
    struct resolver r = { .file = path, .err = err };
    struct wz_err said = { "" };
    cyaml_config_t config = config_of(&said);
    char *text = NULL;
    size_t n = 0;
    cyaml_err_t e = cyaml_save_data(&text, &n, &config, &wz_recipe_schema, recipe, 0);
    int rc;

    if (e != CYAML_OK)
        return wz_fail(err, "%s: %s (%.*s)", path, cyaml_strerror(e), (int)strcspn(said.text, "\n"), said.text);
    rc = resolve(&r, (const uint8_t *)text, n, NULL, 0);
    if (rc == 0) rc = wz_file_write(path, r.out.data, r.out.len, err);
    free(text);
    resolver_finish(&r);
    return rc;
}

void wz_recipe_destroy(struct wz_recipe *recipe)
{
    struct wz_err said = { "" };
    cyaml_config_t config = config_of(&said);

    if (recipe) cyaml_free(&config, &wz_recipe_schema, recipe, 0);
}

/* ---- what only the whole recipe tells -------------------------------------------------------------------------- */

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

static int check_stage(struct resolver *r, const struct wz_recipe *recipe, unsigned s)
{
    const struct wz_recipe_stage *stage = &recipe->stages[s];
    char path[96];

    snprintf(path, sizeof path, "stages.%u.name", s);
    for (unsigned i = 0; i < s; i++)
        if (!strcmp(recipe->stages[i].name, stage->name)) return fail_at(r, path, "there is a stage '%s' already", stage->name);
    for (unsigned i = 0; i < stage->n_mix; i++)
        for (unsigned k = 0; k < i; k++)
            if (!strcmp(stage->mix[k].kind, stage->mix[i].kind)) {
                snprintf(path, sizeof path, "stages.%u.mix.%u.kind", s, i);
                return fail_at(r, path, "kind '%s' has a share already", stage->mix[i].kind);
            }
    for (unsigned i = 0; i < stage->n_agents; i++) {
        const char *name = stage->agents[i].name;
        int a = wz_recipe_agent(recipe, name);
        snprintf(path, sizeof path, "stages.%u.agents.%u.name", s, i);
        if (a < 0) {
            const char *near = wz_nearest(name, recipe->agents, sizeof *recipe->agents, (int)recipe->n_agents);
            return near ? fail_at(r, path, "there is no agent '%s'; did you mean '%s'?", name, near)
                        : fail_at(r, path, "there is no agent '%s'", name);
        }
        if (wz_recipe_learn(stage, name) != &stage->agents[i])
            return fail_at(r, path, "agent '%s' is in this stage already", name);
        if (!strcmp(recipe->agents[a].type, "bf16"))
            return fail_at(r, path, "agent '%s' is of type bf16, which can't train: make it f32 or leave it out", name);
    }
    return 0;
}

static int check(struct resolver *r, const struct wz_recipe *recipe)
{
    bool answers = false;
    char path[64];

    for (unsigned i = 0; i < recipe->n_agents; i++) {
        snprintf(path, sizeof path, "agents.%u.name", i);
        if (wz_recipe_agent(recipe, recipe->agents[i].name) != (int)i)
            return fail_at(r, path, "there is an agent '%s' already", recipe->agents[i].name);
        answers |= !strcmp(recipe->agents[i].role, "conversation");
    }
    if (!recipe->n_agents && !*recipe->sft.model)
        return fail(r, 0, NULL, "neither agents nor sft.model is given: nothing to do");
    if (recipe->n_agents && !answers) return fail(r, 0, NULL, "agents: none has the role conversation");
    if (recipe->n_stages && !recipe->n_agents) return fail(r, 0, NULL, "stages are given, but no agents");
    if (recipe->n_stages && !recipe->n_data) return fail(r, 0, NULL, "stages are given, but no data to train on");
    for (unsigned s = 0; s < recipe->n_stages; s++)
        if (check_stage(r, recipe, s) < 0) return -1;
    return 0;
}
