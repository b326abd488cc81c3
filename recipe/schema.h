/* The recipe's insides, for its own files: its keys, with what libcyaml needs to fill the struct and what we ask of
 * each value; and the recipe resolved. */
#ifndef WZ_RECIPE_SCHEMA_H
#define WZ_RECIPE_SCHEMA_H

#include "base/base.h"

#include <cyaml/cyaml.h>

struct wz_recipe_rule {
    const char *fallback; /* what an absent key means, as text; NULL: it must be given */
    const char *want;     /* numbers: the range, "(0,1]"; texts: choices "a|b", "name", "text" (not empty); NULL: any */
    const struct wz_recipe_keys *inside; /* of a mapping, or of each element of a list */
};

/* The keys of one mapping: fields[i] and rules[i] speak of the same key. An element of a list is known by its first
 * key. */
struct wz_recipe_keys {
    const cyaml_schema_field_t *fields;
    const struct wz_recipe_rule *rules;
    int n;
};

extern const struct wz_recipe_keys wz_recipe_keys;
extern const cyaml_schema_value_t wz_recipe_schema;

/* ---- recipe_resolve.c ------------------------------------------------------------------------------------- */

/* A recipe as YAML with every key, and where each value came from: a line (0: none), or an override (NULL: none). */
struct wz_resolved {
    const char *file;
    struct wz_buf text;
    struct wz_origin {
        const char *path;
        size_t line;
        const char *override;
    } * origins;
    int n_origins, cap_origins;
    struct wz_arena arena;
};
/* Initialises *to, also where it fails; overrides must outlive it. */
int wz_recipe_resolve(struct wz_resolved *to, const char *file, const void *text, size_t n, char *const *overrides,
                      int n_overrides, struct wz_err *err);
/* A sentence about the value at this path ("stages.0.name"), with its line or override; returns -1. */
int wz_resolved_fail(const struct wz_resolved *from, struct wz_err *err, const char *path, const char *fmt, ...)
    WZ_PRINTF(4, 5);
void wz_resolved_finish(struct wz_resolved *to);

#endif
