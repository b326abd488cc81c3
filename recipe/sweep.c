/* Sweeps: the file, and the recipe of each of its rows. A row's patch is a line of overrides, as on the command line:
 * the sweep's, then those of the rows it is like, then its own; later ones win. */
#include "recipe/recipe.h"
#include "recipe/schema.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BLANKS " \t\r\n"

int wz_sweep_fail(const struct wz_sweep *sweep, struct wz_err *err, const char *path, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    wz_resolved_fail(sweep->source, err, path, fmt, args);
    va_end(args);
    return -1;
}

void wz_sweep_destroy(struct wz_sweep *sweep)
{
    if (sweep) wz_form_destroy(sweep, sweep->source, &wz_sweep_form);
}

/* The words of a text, an arena's: *n of them. */
static char **words_of(struct wz_arena *arena, const char *text, int *n)
{
    char **words = wz_arena_alloc(arena, sizeof *words * (strlen(text) / 2 + 1));
    char *rest = wz_arena_strdup(arena, text);

    *n = 0;
    for (char *word; (word = strtok_r(rest, BLANKS, &rest));) words[(*n)++] = word;
    return words;
}

/* The numbers of a list, of which there are some. */
static int numbers_of(struct wz_sweep *s, const char *path, const char *text, double **list, uint64_t **seeds, int *n,
                      struct wz_err *err)
{
    char **words = words_of(&s->source->arena, text, n), *end;

    *list = wz_arena_alloc(&s->source->arena, sizeof **list * (size_t)(*n + 1));
    *seeds = wz_arena_alloc(&s->source->arena, sizeof **seeds * (size_t)(*n + 1));
    if (!*n) return wz_sweep_fail(s, err, path, "expected one number or more");
    for (int i = 0; i < *n; i++) {
        const char *w = words[i];
        bool whole = !w[strspn(w, "0123456789")];
        errno = 0;
        (*list)[i] = strtod(w, &end);
        if (*end || !isfinite((*list)[i]) || (*list)[i] < 0 || !strchr("0123456789.", *w))
            return wz_sweep_fail(s, err, path, "'%.40s' is not a number", w);
        (*seeds)[i] = whole ? strtoull(w, NULL, 10) : 0;
        if (list == &s->temperature_list) continue;
        if (!whole || errno) return wz_sweep_fail(s, err, path, "'%.40s' is not a whole number from 0 to 2^64-1", w);
    }
    return 0;
}

static int find_row(const struct wz_sweep *s, const char *name, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        if (!strcmp(s->rows[i].name, name)) return (int)i;
    return -1;
}

static int check_row(struct wz_sweep *s, unsigned r, struct wz_err *err)
{
    struct wz_sweep_row *row = &s->rows[r];
    struct wz_arena *arena = &s->source->arena;
    char path[40], **words, *end;
    int n;

    snprintf(path, sizeof path, "rows.%u.name", r);
    if (find_row(s, row->name, r) >= 0) return wz_sweep_fail(s, err, path, "there is a row '%s' already", row->name);
    snprintf(path, sizeof path, "rows.%u.like", r);
    row->base = *row->like ? find_row(s, row->like, r) : -1;
    if (*row->like && row->base < 0) return wz_sweep_fail(s, err, path, "there is no row '%.80s' above", row->like);

    snprintf(path, sizeof path, "rows.%u.paper", r);
    words = words_of(arena, row->paper, &n);
    if (n && n != (int)s->n_columns)
        return wz_sweep_fail(s, err, path, "expected %u figures, one for each column (- for none), got %d",
                             s->n_columns, n);
    row->figures = wz_arena_alloc(arena, sizeof *row->figures * (s->n_columns + 1));
    for (unsigned c = 0; c < s->n_columns; c++) {
        row->figures[c] = NAN;
        if (!n || !strcmp(words[c], "-")) continue;
        row->figures[c] = strtod(words[c], &end);
        if (*end || !isfinite(row->figures[c]))
            return wz_sweep_fail(s, err, path, "'%.40s' is neither a number nor -", words[c]);
    }
    snprintf(path, sizeof path, "rows.%u.against", r);
    words = words_of(arena, row->against, &row->n_others);
    row->others = wz_arena_alloc(arena, sizeof *row->others * (size_t)(row->n_others + 1));
    for (int i = 0; i < row->n_others; i++)
        if ((row->others[i] = find_row(s, words[i], s->n_rows)) < 0)
            return wz_sweep_fail(s, err, path, "there is no row '%.80s'", words[i]);
    return 0;
}

static int check(struct wz_sweep *s, struct wz_err *err)
{
    double *unused;
    uint64_t *none;

    if (numbers_of(s, "seeds", s->seeds, &unused, &s->seed_list, &s->n_seeds, err) < 0) return -1;
    if (numbers_of(s, "temperatures", s->temperatures, &s->temperature_list, &none, &s->n_temperatures, err) < 0)
        return -1;
    if (!s->n_columns) return wz_fail(err, "%s: columns: expected one or more", s->source->file);
    if (!s->n_rows) return wz_fail(err, "%s: rows: expected one or more", s->source->file);
    for (unsigned r = 0; r < s->n_rows; r++)
        if (check_row(s, r, err) < 0) return -1;
    return 0;
}

int wz_sweep_load(struct wz_sweep **sweep, const char *path, char *const *overrides, int n, struct wz_err *err)
{
    struct wz_resolved *source;
    struct wz_map map;
    void *data;

    *sweep = NULL;
    if (wz_map_open(&map, path, err) < 0) return -1;
    int rc = wz_form_parse(&data, &source, &wz_sweep_form, path, map.bytes, map.len, overrides, n, err);
    wz_map_close(&map);
    if (rc < 0) return -1;
    struct wz_sweep *s = data;
    s->source = source;
    if (!*s->out) {
        free(s->out);
        s->out = wz_path("runs/%s", s->name);
    }
    if (check(s, err) < 0) {
        wz_sweep_destroy(s);
        return -1;
    }
    *sweep = s;
    return 0;
}

bool wz_sweep_measures(const struct wz_sweep_row *row) { return wz_is_choice("train|eval", row->run); }

char *wz_sweep_folder(const struct wz_sweep *sweep, uint64_t seed)
{
    return wz_path("%s/%llu", sweep->out, (unsigned long long)seed);
}

char *wz_sweep_expand(const struct wz_sweep *sweep, const char *text, uint64_t seed)
{
    char *dir = wz_sweep_folder(sweep, seed);
    struct wz_buf out = { 0 };

    wz_buf_str(&out, "");
    for (const char *c = text; *c; c++) {
        bool is_seed = !strncmp(c, "{seed}", 6), is_dir = !strncmp(c, "{dir}", 5);
        if (is_seed) wz_buf_printf(&out, "%llu", (unsigned long long)seed);
        else if (is_dir) wz_buf_str(&out, dir);
        else wz_buf_add(&out, c, 1);
        c += is_seed ? 5 : is_dir ? 4 : 0;
    }
    free(dir);
    return out.data;
}

/* The patches of a row and of those it is like, the first first. */
static void add_patch(const struct wz_sweep *s, int row, struct wz_buf *out)
{
    if (s->rows[row].base >= 0) add_patch(s, s->rows[row].base, out);
    wz_buf_printf(out, " %s", s->rows[row].set);
}

int wz_sweep_recipe(const struct wz_sweep *s, int row, uint64_t seed, struct wz_recipe **recipe, struct wz_err *err)
{
    const bool sft = !strcmp(s->rows[row].run, "sft");
    struct wz_arena arena = { 0 };
    struct wz_buf patch = { 0 };
    const char *file = "";
    char path[40];
    int n, rc;

    *recipe = NULL;
    for (int r = row; !*file && r >= 0; r = s->rows[r].base) file = s->rows[r].recipe;
    if (!*file) file = s->recipe;
    snprintf(path, sizeof path, "rows.%d.name", row);
    if (!*file) return wz_sweep_fail(s, err, path, "row '%s' has no recipe, and the sweep has none", s->rows[row].name);
    wz_buf_printf(&patch, "%s", s->set);
    add_patch(s, row, &patch);
    wz_buf_printf(&patch, " seed={seed} %s={dir}/%s", sft ? "sft.out" : "out", s->rows[row].name);
    char *text = wz_sweep_expand(s, patch.data, seed), **words = words_of(&arena, text, &n);
    rc = wz_recipe_load(recipe, file, words, n, err);
    if (rc < 0) {
        struct wz_err why = *err;
        snprintf(path, sizeof path, "rows.%d.%s", row, *s->rows[row].set ? "set" : "name");
        wz_sweep_fail(s, err, path, "row '%s': %s", s->rows[row].name, why.text);
    }
    if (rc == 0 && sft) rc = wz_recipe_sft(recipe, err);
    if (rc < 0) {
        wz_recipe_destroy(*recipe);
        *recipe = NULL;
    }
    wz_buf_finish(&patch);
    wz_arena_finish(&arena);
    free(text);
    return rc;
}
