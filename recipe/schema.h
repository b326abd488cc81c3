/* Shared by the recipe's own files: the table of keys, with what libcyaml needs to fill the struct and what is checked,
 * documented and compared; and a resolved recipe. */
#ifndef WZ_RECIPE_SCHEMA_H
#define WZ_RECIPE_SCHEMA_H

#include "base/base.h"

#include <cyaml/cyaml.h>

/* May a key's value change when a run is resumed? BITS: no, it can change the result. LAYOUT: yes, it says where and
 * how fast the same result is computed. */
enum wz_mark { BITS, LAYOUT };

struct wz_recipe_rule {
    const char *fallback; /* the default, as text; NULL: the key must be given */
    const char *want;     /* numbers: the range, "(0,1]"; texts: choices "a|b", "name", "text" (not empty),
                           "dataset" (of datasets.c, or empty); NULL: any */
    enum wz_mark mark;
    const char *about;                   /* one sentence, or more, without the last full stop */
    const struct wz_recipe_keys *inside; /* of a mapping, or of each element of a list */
};

/* The keys of one mapping: fields[i] and rules[i] describe the same key. An element of a list is named by its first
 * key. */
struct wz_recipe_keys {
    const cyaml_schema_field_t *fields;
    const struct wz_recipe_rule *rules;
    int n;
};

extern const struct wz_recipe_keys wz_recipe_keys;

/* A kind of file: a recipe, or a sweep of them. */
struct wz_recipe_form {
    const char *what; /* "recipe", in messages */
    const struct wz_recipe_keys *keys;
    const cyaml_schema_value_t *schema;
};
extern const struct wz_recipe_form wz_recipe_form, wz_sweep_form;
/* The present name of a key of this mapping that once had another; NULL: there was none of that name. */
const char *wz_recipe_renamed(const struct wz_recipe_keys *keys, const char *name);

/* ---- resolve.c -------------------------------------------------------------------------------------------- */

/* A recipe as YAML with every key; and every value, in the order of the schema, with its origin: a line of the file
 * (0: none), or an override (NULL: none). A default has neither. */
struct wz_resolved {
    const char *file;
    struct wz_buf text;
    struct wz_origin {
        const char *path, *value, *override; /* "stages.0.steps"; the value as `text` has it */
        size_t line;
        enum wz_mark mark;
    } * origins;
    int n_origins, cap_origins;
    struct wz_arena arena; /* owns the strings */
};
/* Initialises *to, also where it fails. */
int wz_recipe_resolve(struct wz_resolved *to, const struct wz_recipe_form *form, const char *file, const void *text,
                      size_t n, char *const *overrides, int n_overrides, struct wz_err *err);
void wz_resolved_finish(struct wz_resolved *to);
/* Fails with `what`, after the override, or else the file and, where it is not 0, the line. Returns -1. */
int wz_origin_fail(const char *file, size_t line, const char *override, const char *what, struct wz_err *err);
/* The same of the value at `path`, with the path before the message. r may be NULL. */
int wz_resolved_fail(const struct wz_resolved *r, struct wz_err *err, const char *path, const char *fmt, va_list args);

/* ---- recipe.c --------------------------------------------------------------------------------------------- */

/* A text of that form as its struct, and where its values came from: heap, both. wz_form_destroy accepts NULL. */
int wz_form_parse(void **data, struct wz_resolved **source, const struct wz_recipe_form *form, const char *path,
                  const void *text, size_t len, char *const *overrides, int n, struct wz_err *err);
void wz_form_destroy(void *data, struct wz_resolved *source, const struct wz_recipe_form *form);

/* wz_recipe_load of a text; `path` is for messages. */
struct wz_recipe;
int wz_recipe_parse(struct wz_recipe **recipe, const char *path, const void *text, size_t len, char *const *overrides,
                    int n, struct wz_err *err);
/* A recipe as YAML with every key, in r->text. Initialises *r if it was zeroed. */
int wz_recipe_print(const struct wz_recipe *recipe, const char *path, struct wz_resolved *r, struct wz_err *err);

#endif
