/* The recipe's keys, for recipe.c alone: what libcyaml needs to fill the struct, and beside each key what we ask of it. */
#ifndef WZ_RECIPE_SCHEMA_H
#define WZ_RECIPE_SCHEMA_H

#include <cyaml/cyaml.h>

struct wz_recipe_rule {
    const char *fallback;      /* what an absent key means, as text; NULL: it must be given */
    const char *want;          /* numbers: the range, "(0,1]"; texts: choices "a|b", "name", "text" (not empty); NULL: any */
    const struct wz_recipe_keys *inside;       /* of a mapping, or of each element of a list */
};

/* The keys of one mapping: fields[i] and rules[i] speak of the same key. An element of a list is known by its first key. */
struct wz_recipe_keys {
    const cyaml_schema_field_t *fields;
    const struct wz_recipe_rule *rules;
    int n;
};

extern const struct wz_recipe_keys wz_recipe_keys;
extern const cyaml_schema_value_t wz_recipe_schema;

#endif
