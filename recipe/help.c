/* The table of keys, printed: `waltz help recipe`, and docs/recipe.md. */
#include "recipe/recipe.h"
#include "recipe/schema.h"

#include <string.h>

static const char *type_of(const cyaml_schema_field_t *field, const struct wz_recipe_rule *rule)
{
    if (field->value.type == CYAML_INT || field->value.type == CYAML_UINT) return "integer";
    if (field->value.type == CYAML_FLOAT) return "number";
    if (!rule->want) return "text";
    return strchr(rule->want, '|') ? "choice" : !strcmp(rule->want, "name") ? "name" : "text";
}

static void print_key(FILE *out, const cyaml_schema_field_t *field, const struct wz_recipe_rule *rule, bool markdown)
{
    const char *type = type_of(field, rule), *want = rule->want ? rule->want : "any",
               *mark = rule->mark == LAYOUT ? "layout" : "bits",
               *fallback = !rule->fallback   ? "must be given"
                           : *rule->fallback ? rule->fallback
                                             : "empty";

    if (!strcmp(type, want)) want = !strcmp(want, "name") ? "letters, digits, . _ -" : "not empty";
    if (!markdown) {
        fprintf(out, "  %-26s %s, %s; default: %s; %s\n      %s\n", field->key, type, want, fallback, mark,
                rule->about);
        return;
    }
    fprintf(out, "| `%s` | %s | ", field->key, type);
    for (; *want; want++) fprintf(out, *want == '|' ? "\\|" : "%c", *want); /* it would end the cell */
    fprintf(out, " | %s | %s | %s |\n", fallback, mark, rule->about);
}

/* A mapping's own values first, then what lies inside it, each under its path. */
static void print_keys(FILE *out, const struct wz_recipe_keys *keys, const char *path, const char *about, bool markdown)
{
    fprintf(out, markdown ? "\n## %s\n\n%s.\n\n" : "\n%s: %s\n", *path ? path : "Top level", about);
    if (markdown) fprintf(out, "| key | type | range | default | mark | meaning |\n|---|---|---|---|---|---|\n");
    for (int i = 0; i < keys->n; i++)
        if (!keys->rules[i].inside) print_key(out, &keys->fields[i], &keys->rules[i], markdown);
    for (int i = 0; i < keys->n; i++) {
        const cyaml_schema_field_t *field = &keys->fields[i];
        char below[96];
        if (!keys->rules[i].inside) continue;
        snprintf(below, sizeof below, "%s%s%s%s", path, *path ? "." : "", field->key,
                 field->value.type == CYAML_SEQUENCE ? "[]" : "");
        print_keys(out, keys->rules[i].inside, below, keys->rules[i].about, markdown);
    }
}

void wz_recipe_help(FILE *out, bool markdown)
{
    if (markdown) fprintf(out, "# Recipe keys\n\nMade by `waltz help recipe --markdown`; do not edit.\n\n");
    fprintf(
        out,
        "A recipe is a YAML file of these keys. [] stands for an element of a list, which overrides name by its\n"
        "number from 0 or by its first key: `stages.0.steps=10`, `agents.feedback.model=DIR`. When a run is resumed, "
        "keys\nmarked `layout` may change: they say where and how fast the same result is computed. Keys marked "
        "`bits` may not.\n");
    print_keys(out, &wz_recipe_keys, "", "keys outside any mapping", markdown);
    fprintf(out, "\n%sA sweep (`waltz sweep`) is a YAML file of these keys, none of which decides the bits of a run.\n",
            markdown ? "# Sweep keys\n\n" : "");
    print_keys(out, wz_sweep_form.keys, "", "keys outside any mapping", markdown);
}
