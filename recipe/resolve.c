/* Walks a recipe's tree along the schema: refuses unknown keys, wrong types and values out of range, with the line;
 * fills in overrides and defaults; the result is the resolved recipe as YAML, in which every key has its value. */
#include "recipe/recipe.h"
#include "recipe/schema.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <yaml.h>

/* An override on its way down the tree: `rest` is the part of its path below the mapping or list at hand. */
struct override {
    const char *text, *rest, *value;
};

struct resolver {
    struct wz_resolved *to;
    const struct wz_recipe_form *form;
    yaml_document_t doc;
    struct wz_buf path;               /* of the key at hand, "stages.0.steps" */
    bool item;                        /* the next key opens an element of a list */
    const struct wz_dataset *dataset; /* of that element; its keys have defaults of their own */
    struct wz_err *err;
};

/* ---- where things are ------------------------------------------------------------------------------------- */

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

static size_t line_of(const yaml_node_t *node) { return node ? node->start_mark.line + 1 : 0; }

int wz_origin_fail(const char *file, size_t line, const char *override, const char *what, struct wz_err *err)
{
    if (override) return wz_fail(err, "override %.80s: %s", override, what);
    if (line) return wz_fail(err, "%s:%zu: %s", file, line, what);
    return wz_fail(err, "%s: %s", file, what);
}

static int fail(struct resolver *r, size_t line, const char *override, const char *fmt, ...) WZ_PRINTF(4, 5);
static int fail(struct resolver *r, size_t line, const char *override, const char *fmt, ...)
{
    char what[512];
    va_list args;

    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    return wz_origin_fail(r->to->file, line, override, what, r->err);
}

/* Records the value at hand, which is the end of the text, from `start` on. */
static void note_origin(struct resolver *r, const struct wz_recipe_rule *rule, size_t line, const char *override,
                        size_t start)
{
    struct wz_resolved *to = r->to;

    if (to->n_origins == to->cap_origins) {
        to->cap_origins = to->cap_origins ? 2 * to->cap_origins : 256;
        to->origins = wz_realloc(to->origins, wz_mul((size_t)to->cap_origins, sizeof *to->origins));
    }
    to->origins[to->n_origins++] =
        (struct wz_origin){ .path = wz_arena_strdup(&to->arena, r->path.data),
                            .value = wz_arena_strdup(&to->arena, to->text.data + start),
                            .override = override ? wz_arena_strdup(&to->arena, override) : NULL,
                            .line = line,
                            .mark = rule->mark };
}

/* ---- values ----------------------------------------------------------------------------------------------- */

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
            return fail(r, line, override, "%s: expected a number in %s, got %lld", path, rule->want, x);
        wz_buf_printf(&r->to->text, "%lld", x);
        return 0;
    }
    case CYAML_UINT: {
        unsigned long long x = strtoull(text, &end, 10);
        if (!whole || errno || *text == '-')
            return fail(r, line, override, "%s: '%.80s' is not a whole number from 0 to 2^64-1", path, text);
        wz_buf_printf(&r->to->text, "%llu", x);
        return 0;
    }
    case CYAML_FLOAT: {
        double x = strtod(text, &end);
        if (end == text || *end || !isfinite(x))
            return fail(r, line, override, "%s: '%.80s' is not a number", path, text);
        if (!in_range(x, rule->want))
            return fail(r, line, override, "%s: expected a number in %s, got %g", path, rule->want, x);
        wz_real_add(&r->to->text, x);
        return 0;
    }
    default:
        if (wz_utf8_valid(text, strlen(text)) != strlen(text)) return fail(r, line, override, "%s: is not UTF-8", path);
        if (rule->want && !strcmp(rule->want, "dataset")) {
            struct wz_err why = { "" };
            if (*text && !(r->dataset = wz_dataset_find(text, &why)))
                return fail(r, line, override, "%s: %s", path, why.text);
        } else if (rule->want && !strcmp(rule->want, "text")) {
            if (!*text) return fail(r, line, override, "%s: must not be empty", path);
        } else if (rule->want && !strcmp(rule->want, "name")) {
            if (!is_name(text))
                return fail(r, line, override, "%s: '%.80s' is not a name (letters, digits, '.', '_' and '-')", path,
                            text);
        } else if (rule->want && !wz_is_choice(rule->want, text)) {
            return fail(r, line, override, "%s: '%.80s' is none of %s", path, text, rule->want);
        }
        put_text(&r->to->text, text);
        return 0;
    }
}

/* ---- overrides -------------------------------------------------------------------------------------------- */

/* The overrides that go on below `name` (or below `other`, the element's other name); the rest end here. n + 1 rows. */
static struct override *below(struct resolver *r, const struct override *list, const char *name, const char *other)
{
    int n = 0;

    while (list[n].text) n++;
    struct override *kept = wz_arena_alloc(&r->to->arena, wz_mul((size_t)n + 1, sizeof *kept));
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

static const char *where(const struct resolver *r) { return r->path.len ? r->path.data : r->form->what; }

static int refuse_key(struct resolver *r, const struct wz_recipe_keys *keys, const char *name, size_t line,
                      const char *override)
{
    const char *now = wz_recipe_renamed(keys, name);

    if (now) return fail(r, line, override, "%s: '%s' is now called '%s'; rename it here", where(r), name, now);
    now = wz_nearest(name, keys->fields, sizeof *keys->fields, keys->n);
    return now ? fail(r, line, override, "%s has no key '%.80s'; did you mean '%s'?", where(r), name, now)
               : fail(r, line, override, "%s has no key '%.80s'", where(r), name);
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
        if (!known) return refuse_key(r, keys, name, 0, list->text);
    }
    return 0;
}

/* ---- the walk --------------------------------------------------------------------------------------------- */

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
    size_t seen[64] = { 0 }; /* lines; far more than any mapping has keys */

    assert(keys->n <= (int)WZ_COUNT(seen));
    for (yaml_node_pair_t *p = map->data.mapping.pairs.start; p < map->data.mapping.pairs.top; p++) {
        const yaml_node_t *k = yaml_document_get_node(&r->doc, p->key);
        const char *name = k->type == YAML_SCALAR_NODE ? scalar_text(r, k) : NULL;
        int at = -1;
        if (k->type != YAML_SCALAR_NODE) return fail(r, line_of(k), NULL, "%s: a key must be a word", where(r));
        if (!name) return -1;
        for (int i = 0; i < keys->n; i++)
            if (!strcmp(keys->fields[i].key, name)) at = i;
        if (at < 0) return refuse_key(r, keys, name, line_of(k), NULL);
        if (seen[at])
            return fail(r, line_of(k), NULL, "%s: key '%s' was given on line %zu already", where(r), name, seen[at]);
        seen[at] = line_of(k);
    }
    return 0;
}

/* A key at this depth; the first key of a list's element carries the dash. */
static void put_key(struct resolver *r, int depth, const char *key)
{
    wz_buf_printf(&r->to->text, "%*s%s%s:", 2 * depth - (r->item ? 2 : 0), "", r->item ? "- " : "", key);
    r->item = false;
}

static int resolve_map(struct resolver *r, const struct wz_recipe_keys *keys, const yaml_node_t *node, size_t line,
                       const struct override *overrides, int depth);

static int resolve_list(struct resolver *r, const cyaml_schema_field_t *field, const struct wz_recipe_rule *rule,
                        const yaml_node_t *node, const struct override *overrides, int depth)
{
    if (node && node->type != YAML_SEQUENCE_NODE)
        return fail(r, line_of(node), NULL, "%s: expected a list (lines that begin with -)", where(r));

    yaml_node_item_t *items = node ? node->data.sequence.items.start : NULL;
    int n = node ? (int)(node->data.sequence.items.top - items) : 0;
    const char *first = rule->inside->fields[0].key;
    bool *used = NULL;
    int n_overrides = 0;

    while (overrides[n_overrides].text) n_overrides++;
    if (n_overrides) used = wz_arena_alloc(&r->to->arena, wz_mul((size_t)n_overrides, sizeof *used));
    if ((uint32_t)n > field->value.sequence.max)
        return fail(r, line_of(node), NULL, "%s: %d elements, at most %u are allowed", where(r), n,
                    field->value.sequence.max);
    wz_buf_str(&r->to->text, n ? "\n" : " []\n");
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
        r->dataset = NULL;
        if (resolve_map(r, rule->inside, element, line_of(element), mine, depth + 2) < 0) return -1;
        pop(r, mark);
    }
    r->dataset = NULL;
    for (int k = 0; k < n_overrides; k++)
        if (!used[k])
            return fail(r, 0, overrides[k].text,
                        "%s has %d elements and none is '%.*s' (they go by number from 0, or by %s)", where(r), n,
                        (int)strcspn(overrides[k].rest, ".="), overrides[k].rest, first);
    return 0;
}

static int resolve_value(struct resolver *r, const cyaml_schema_field_t *field, const struct wz_recipe_rule *rule,
                         const yaml_node_t *node, size_t line, const struct override *overrides)
{
    const char *of_dataset = r->dataset ? wz_dataset_default(r->dataset, field->key) : NULL,
               *text = of_dataset ? of_dataset : rule->fallback, *override = NULL;
    size_t at = 0;

    if (node && node->type != YAML_SCALAR_NODE)
        return fail(r, line_of(node), NULL, "%s: expected one value, got a %s", where(r),
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
    wz_buf_str(&r->to->text, " ");
    size_t start = r->to->text.len;
    if (put_value(r, field, rule, text, at, override) < 0) return -1;
    note_origin(r, rule, at, override, start);
    wz_buf_str(&r->to->text, "\n");
    return 0;
}

static int resolve_map(struct resolver *r, const struct wz_recipe_keys *keys, const yaml_node_t *node, size_t line,
                       const struct override *overrides, int depth)
{
    if (node && node->type != YAML_MAPPING_NODE) return fail(r, line, NULL, "%s: expected keys with values", where(r));
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
            wz_buf_str(&r->to->text, "\n");
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

/* ---- the whole -------------------------------------------------------------------------------------------- */

/* The line of a value that lies deeper in others than any in a recipe; 0: there is none, or an error comes before it.
 * It is looked for before all is read: the scanner's time is that of text times depth. */
static size_t too_deep(const void *text, size_t n)
{
    enum { DEEPEST = 100 };
    yaml_parser_t parser;
    size_t line = 0;
    bool more = true;

    if (!yaml_parser_initialize(&parser)) wz_die("out of memory");
    yaml_parser_set_input_string(&parser, text, n);
    for (int depth = 0; more && !line;) {
        yaml_event_t e;
        if (!yaml_parser_parse(&parser, &e)) break;
        depth += e.type == YAML_SEQUENCE_START_EVENT || e.type == YAML_MAPPING_START_EVENT;
        depth -= e.type == YAML_SEQUENCE_END_EVENT || e.type == YAML_MAPPING_END_EVENT;
        if (depth > DEEPEST) line = e.start_mark.line + 1;
        more = e.type != YAML_STREAM_END_EVENT;
        yaml_event_delete(&e);
    }
    yaml_parser_delete(&parser);
    return line;
}

int wz_recipe_resolve(struct wz_resolved *to, const struct wz_recipe_form *form, const char *file, const void *text,
                      size_t n, char *const *overrides, int n_overrides, struct wz_err *err)
{
    struct resolver whole = { .to = to, .form = form, .err = err }, *r = &whole;
    yaml_parser_t parser;
    yaml_document_t extra;
    int rc = -1;

    *to = (struct wz_resolved){ 0 };
    to->file = wz_arena_strdup(&to->arena, file);
    if (!yaml_parser_initialize(&parser)) wz_die("out of memory");
    yaml_parser_set_input_string(&parser, text, n);
    const size_t deep = too_deep(text, n);
    if (deep) {
        memset(&r->doc, 0, sizeof r->doc);
        fail(r, deep, NULL, "values nest more than 100 deep");
        goto out;
    }
    if (!yaml_parser_load(&parser, &r->doc)) {
        memset(&r->doc, 0, sizeof r->doc);
        fail(r, parser.problem_mark.line + 1, NULL, "not valid YAML: %s%s%s",
             parser.problem ? parser.problem : "unreadable", parser.context ? " " : "",
             parser.context ? parser.context : "");
        goto out;
    }
    yaml_node_t *root = yaml_document_get_root_node(&r->doc);
    if (!root) {
        fail(r, 0, NULL, "expected %s, the file is empty", form->what);
        goto out;
    }
    if (!yaml_parser_load(&parser, &extra)) {
        fail(r, parser.problem_mark.line + 1, NULL, "not valid YAML: %s",
             parser.problem ? parser.problem : "unreadable");
        goto out;
    }
    root = yaml_document_get_root_node(&extra);
    size_t more = line_of(root);
    yaml_document_delete(&extra);
    if (more) {
        fail(r, more, NULL, "a second document begins here, %s is one", form->what);
        goto out;
    }

    struct override *list = wz_arena_alloc(&r->to->arena, wz_mul((size_t)n_overrides + 1, sizeof *list));
    for (int i = 0; i < n_overrides; i++) {
        const char *eq = strchr(overrides[i], '=');
        if (!eq || eq == overrides[i]) {
            fail(r, 0, overrides[i], "expected key=value");
            goto out;
        }
        list[i] = (struct override){ overrides[i], overrides[i], eq + 1 };
    }
    root = yaml_document_get_root_node(&r->doc);
    rc = resolve_map(r, form->keys, root, line_of(root), list, 0);
out:
    yaml_parser_delete(&parser);
    yaml_document_delete(&r->doc);
    wz_buf_finish(&r->path);
    return rc;
}

void wz_resolved_finish(struct wz_resolved *to)
{
    wz_buf_finish(&to->text);
    free(to->origins);
    wz_arena_finish(&to->arena);
}
