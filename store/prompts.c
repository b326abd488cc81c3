/* Data sets of prompts: JSON, CSV and TSV files become one list.
 *
 *   .jsonl .ndjson .json   one object per line, or one array of objects or of strings (then columns are not looked up)
 *   .csv                   RFC 4180: the first row names the columns; "" is a quote in a quoted cell, which may hold
 *                          commas and line ends; rows end in LF or CRLF
 *   .tsv                   the same with tabs for commas
 *
 * with .gz behind it where it is packed. All are UTF-8; a byte order mark is skipped. Rows are counted from 1: lines,
 * elements of an array, records of CSV with the row of names as row 1. Every row becomes a JSON object, so that columns
 * mean the same in every format. A prompt's id is its column "id" where there is one, else the row's number. Without
 * `kind` it is the file's name less folder and endings. */
#include "store/append.h"

#include <assert.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* "column=x|y": is the column's value one of these? column NULL: nothing is asked. */
struct test {
    const char *column, *values;
};

/* The file being read, its options, and the set that is filled. */
struct reader {
    struct wz_prompts *set;
    const char *path, *column, *harm, *kind, *group, *answer;
    const char *file_kind;
    struct test harmful, only; /* harmful: of `harm`, where it is one */
    char comma;
    int cap;
    struct wz_err *err;
};

/* What a label's word says, whatever its case: 1, 0; -1: it is none. of_harm: words of harm are labels, too. */
static int says(const char *word, bool of_harm)
{
    static const struct {
        const char *word;
        bool yes, of_harm;
    } rows[] = {
        { "true", true, false },   { "yes", true, false },  { "1", true, false },      { "false", false, false },
        { "no", false, false },    { "0", false, false },   { "harmful", true, true }, { "unsafe", true, true },
        { "benign", false, true }, { "safe", false, true },
    };

    for (size_t i = 0; i < WZ_COUNT(rows); i++)
        if ((of_harm || !rows[i].of_harm) && !strcasecmp(word, rows[i].word)) return rows[i].yes;
    return -1;
}

/* A cell as text: strings as they are, whole numbers and booleans formatted into `buf`; NULL: none of these. */
static const char *cell_text(const json_t *cell, char buf[32])
{
    if (json_is_integer(cell)) snprintf(buf, 32, "%lld", (long long)json_integer_value(cell));
    else if (json_is_boolean(cell)) snprintf(buf, 32, "%s", json_is_true(cell) ? "true" : "false");
    else return json_string_value(cell);
    return buf;
}

int wz_label_read(const json_t *cell, bool of_harm)
{
    const char *word = json_string_value(cell);

    if (json_is_boolean(cell)) return json_is_true(cell);
    if (json_is_number(cell)) {
        const double x = json_number_value(cell);
        return x >= 0 && x <= 1 ? x >= 0.5 : -1;
    }
    return word ? says(word, of_harm) : -1;
}

static int no_column(const struct reader *r, json_t *row, int at, const char *column)
{
    struct wz_buf names = { 0 };
    const char *name;
    json_t *cell;

    json_object_foreach(row, name, cell)
    {
        const bool many = names.len > 160;
        wz_buf_printf(&names, "%s%.60s", names.len ? ", " : "", many ? "..." : name);
        if (many) break;
    }
    wz_fail(r->err, "%s: row %d: no column \"%.100s\"; the columns are: %s", r->path, at, column,
            names.len ? names.data : "none");
    wz_buf_finish(&names);
    return -1;
}

static int not_text(const struct reader *r, int at, const char *column)
{
    return wz_fail(r->err, "%s: row %d: column \"%.100s\" must be a string or a whole number", r->path, at, column);
}

static int add(struct reader *r, const char *text, const char *id, const char *kind, const char *group,
               const char *answer, enum wz_harm harm, int at)
{
    struct wz_prompts *set = r->set;
    char number[16];

    if (!*text) return wz_fail(r->err, "%s: row %d: the prompt is empty", r->path, at);
    if (set->n == r->cap) {
        r->cap = r->cap ? 2 * r->cap : 256;
        set->list = wz_realloc(set->list, wz_mul(sizeof *set->list, (size_t)r->cap));
    }
    snprintf(number, sizeof number, "%d", at);
    set->list[set->n++] = (struct wz_prompt){ wz_arena_strdup(&set->arena, text),
                                              wz_arena_strdup(&set->arena, id ? id : number),
                                              kind == r->file_kind ? kind : wz_arena_strdup(&set->arena, kind),
                                              wz_arena_strdup(&set->arena, group),
                                              harm,
                                              *answer ? wz_arena_strdup(&set->arena, answer) : "",
                                              NULL };
    set->hash = wz_hash(text, strlen(text) + 1, set->hash);
    return 0;
}

/* A label of a row: `from` is "=value", or the column whose cell is formatted into `buf`. -1 where there is no such
 * column; *label NULL: the cell is neither text nor a whole number. */
static int label_of(const struct reader *r, json_t *row, int at, const char *from, char buf[32], const char **label)
{
    json_t *cell = json_object_get(row, from);

    *label = *from == '=' ? from + 1 : cell_text(cell, buf);
    return *label || cell ? 0 : no_column(r, row, at, from);
}

/* The cell of the first of the columns "a|b" that is not empty; else of the last that is there. NULL: none is. */
static json_t *first_of(json_t *row, const char *columns)
{
    json_t *found = json_object_get(row, columns);

    while (!found || (json_string_value(found) && !json_string_length(found)) || json_is_null(found)) {
        char name[128];
        const size_t n = strcspn(columns, "|");
        snprintf(name, sizeof name, "%.*s", n < sizeof name ? (int)n : 0, columns);
        json_t *next = json_object_get(row, name);
        if (next) found = next;
        if (!columns[n]) break;
        columns += n + 1;
    }
    return found;
}

/* Of the form "column=x|y"? "=x" is not. */
static struct test test_of(struct wz_arena *arena, const char *s)
{
    const char *eq = s ? strchr(s, '=') : NULL;

    if (!eq || eq == s) return (struct test){ 0 };
    char *column = wz_arena_strdup(arena, s);
    column[eq - s] = 0;
    return (struct test){ column, column + (eq - s) + 1 };
}

/* 1 or 0; -1: there is no such column. */
static int passes(const struct reader *r, const struct test *t, json_t *row, int at)
{
    char buf[32];
    json_t *cell = json_object_get(row, t->column);
    const char *value = cell_text(cell, buf);

    return !cell ? no_column(r, row, at, t->column) : value && wz_is_choice(t->values, value);
}

/* An answer that is a list is IFEval's: its instructions, and beside them their arguments in the column kwargs. Of the
 * arena; NULL: it is none. */
static const char *instructions_of(const struct reader *r, json_t *row)
{
    json_t *ids = json_object_get(row, r->answer), *kwargs = json_object_get(row, "kwargs");

    if (!json_is_array(ids) || !json_is_array(kwargs)) return NULL;
    json_t *both = json_pack("{s:O, s:O}", "ids", ids, "kwargs", kwargs);
    char *text = json_dumps(both, JSON_COMPACT);
    const char *kept = wz_arena_strdup(&r->set->arena, text);
    free(text);
    json_decref(both);
    return kept;
}

/* One row: an object, or in a .json array a string. */
static int add_row(struct reader *r, json_t *row, int at)
{
    char id_text[32], kind_text[32], group_text[32], answer_text[32], harm_text[32];
    const char *text = wz_json_text(row), *id = NULL, *kind = r->file_kind, *group = "", *answer = "", *word;
    int one;

    if (!text && !json_is_object(row)) return wz_fail(r->err, "%s: row %d: expected an object of columns", r->path, at);
    if (r->only.column && (one = passes(r, &r->only, row, at)) <= 0) return one;
    if (!text) {
        json_t *cell = first_of(row, r->column);
        if (!cell) return no_column(r, row, at, r->column);
        text = wz_json_text(cell);
        if (!text) return wz_fail(r->err, "%s: row %d: column \"%.100s\" must be a string", r->path, at, r->column);
        id = cell_text(json_object_get(row, "id"), id_text);
        cell = json_object_get(row, r->group);
        if (!cell && strcmp(r->group, "group")) return no_column(r, row, at, r->group);
        if (cell && !json_is_null(cell) && !(group = cell_text(cell, group_text))) return not_text(r, at, r->group);
    }
    if (r->kind && *r->kind && label_of(r, row, at, r->kind, kind_text, &kind) < 0) return -1;
    if (!kind) return not_text(r, at, r->kind);
    if (r->answer && *r->answer && label_of(r, row, at, r->answer, answer_text, &answer) < 0) return -1;
    if (!answer && !(answer = instructions_of(r, row))) return not_text(r, at, r->answer);
    if (r->harmful.column) {
        if ((one = passes(r, &r->harmful, row, at)) < 0) return -1;
        return add(r, text, id, kind, group, answer, one ? WZ_HARMFUL : WZ_BENIGN, at);
    }
    if (label_of(r, row, at, r->harm, harm_text, &word) < 0) return -1;
    if (!word || (one = says(word, true)) < 0)
        return wz_fail(r->err,
                       "%s: row %d: \"%.100s\": expected harmful/benign, unsafe/safe, true/false, yes/no or 1/0, "
                       "got '%.100s'",
                       r->path, at, r->harm, word ? word : "another type");
    return add(r, text, id, kind, group, answer, one ? WZ_HARMFUL : WZ_BENIGN, at);
}

static int read_json(struct reader *r)
{
    struct wz_data_rows rows;
    int more;

    if (wz_data_rows_open(&rows, r->path, r->err) < 0) return -1;
    while ((more = wz_data_rows_next(&rows, r->err)) > 0)
        if (add_row(r, rows.row, rows.number) < 0) break;
    wz_data_rows_close(&rows);
    return more ? -1 : 0;
}

/* ---- CSV -------------------------------------------------------------------------------------------------- */

/* wz_csv_cell with errors: returns the delimiter, or -1 and a message. */
static int take_cell(const struct reader *r, const char **s, const char *end, struct wz_buf *cell, int at)
{
    int delimiter = wz_csv_cell(s, end, r->comma, cell);

    if (delimiter < 0)
        return wz_fail(r->err, "%s: row %d: a quote is not closed, or not followed by a %s or the line's end", r->path,
                       at, r->comma == ',' ? "comma" : "tab");
    if (memchr(cell->data, 0, cell->len)) return wz_fail(r->err, "%s: row %d: a cell holds a NUL byte", r->path, at);
    size_t ok = wz_utf8_valid(cell->data, cell->len);
    if (ok < cell->len)
        return wz_fail(r->err, "%s: row %d: byte %zu of a cell is not valid UTF-8", r->path, at, ok + 1);
    return delimiter;
}

/* One CSV record as a JSON array of strings, NULL and a message on error. */
static json_t *take_row(const struct reader *r, const char **s, const char *end, struct wz_buf *cell, int at)
{
    json_t *row = json_array();
    int ended;

    do {
        ended = take_cell(r, s, end, cell, at);
        if (ended < 0) {
            json_decref(row);
            return NULL;
        }
        json_array_append_new(row, json_stringn_nocheck(cell->data, cell->len));
    } while (ended == r->comma);
    return row;
}

/* {names[i]: cells[i]} of one row; columns without a name are left out. */
static int add_cells(struct reader *r, json_t *names, json_t *cells, int at)
{
    json_t *row = json_object();
    int rc;

    for (size_t i = 0; i < json_array_size(names); i++) {
        const char *name = json_string_value(json_array_get(names, i));
        if (*name) json_object_set(row, name, json_array_get(cells, i));
    }
    rc = add_row(r, row, at);
    json_decref(row);
    return rc;
}

static int read_csv(struct reader *r)
{
    struct wz_data_file text;
    struct wz_buf cell = { 0 };
    json_t *names = NULL, *cells = NULL, *seen;
    int at = 0, rc = -1;

    if (wz_data_file_open(&text, r->path, r->err) < 0) return -1;
    seen = json_object();
    const char *s = text.bytes, *end = s + text.len;
    if (!(names = take_row(r, &s, end, &cell, ++at))) goto out;
    for (size_t i = 0; i < json_array_size(names); i++) {
        const char *name = json_string_value(json_array_get(names, i));
        if (*name && json_object_get(seen, name)) {
            wz_fail(r->err, "%s: row 1: column \"%.100s\" appears twice", r->path, name);
            goto out;
        }
        json_object_set_new(seen, name, json_true());
    }
    while (s < end) {
        json_decref(cells);
        if (++at == INT_MAX || !(cells = take_row(r, &s, end, &cell, at))) goto out;
        size_t have = json_array_size(cells), want = json_array_size(names);
        if (have == 1 && want > 1 && !*json_string_value(json_array_get(cells, 0))) continue; /* a blank line */
        if (have != want) {
            wz_fail(r->err, "%s: row %d: expected %zu cells, as many as the first row names columns, got %zu", r->path,
                    at, want, have);
            goto out;
        }
        if (add_cells(r, names, cells, at) < 0) goto out;
    }
    rc = 0;
out:
    wz_data_file_close(&text);
    json_decref(seen);
    json_decref(names);
    json_decref(cells);
    wz_buf_finish(&cell);
    return rc;
}

/* ---- loading ---------------------------------------------------------------------------------------------- */

static const struct {
    const char *ending;
    int (*read)(struct reader *r);
} formats[] = {
    { ".jsonl", read_json }, { ".ndjson", read_json }, { ".json", read_json },
    { ".csv", read_csv },    { ".tsv", read_csv },
};

int wz_prompts_load(struct wz_prompts *set, const char *path, const char *column, const char *harm, const char *kind,
                    const char *group, const char *only, const char *answer, struct wz_err *err)
{
    *set = (struct wz_prompts){ 0 };
    assert(column && harm && group);

    char *stem = wz_arena_strdup(&set->arena, strrchr(path, '/') ? strrchr(path, '/') + 1 : path);
    char *dot = strrchr(stem, '.');
    struct reader r = { .set = set,
                        .path = path,
                        .column = column,
                        .harm = harm,
                        .kind = kind,
                        .group = group,
                        .answer = answer,
                        .file_kind = stem,
                        .harmful = test_of(&set->arena, harm),
                        .only = test_of(&set->arena, only),
                        .comma = ',',
                        .err = err };
    size_t f = 0;
    int rc = -1;

    if (dot && !strcasecmp(dot, ".gz")) {
        *dot = 0;
        dot = strrchr(stem, '.');
    }
    while (f < WZ_COUNT(formats) && (!dot || strcasecmp(dot, formats[f].ending))) f++;
    if (f == WZ_COUNT(formats)) {
        wz_fail(err, "%s: expected a file ending in .jsonl, .ndjson, .json, .csv or .tsv, or one of these and .gz",
                path);
    } else if (only && *only && !r.only.column) {
        wz_fail(err, "%s: expected COLUMN=VALUE|VALUE of the rows to take, got \"%.200s\"", path, only);
    } else {
        if (!strcasecmp(formats[f].ending, ".tsv")) r.comma = '\t';
        *dot = 0;
        rc = formats[f].read(&r);
        if (!rc && !set->n)
            rc = wz_fail(err, r.only.column ? "%s: no row has %.200s" : "%s: no rows in the file", path, only);
    }
    if (rc < 0) wz_prompts_finish(set);
    return rc;
}

/* What a row's text gives: heap. */
static char *prefix_of(const char *text, int words, bool whole)
{
    static const char opening[] = "<think>", closing[] = "</think>", blanks[] = " \t\n\v\f\r";
    const char *from = text + strspn(text, blanks), *to;

    if (!strncmp(from, opening, sizeof opening - 1)) text = from + sizeof opening - 1;
    to = strstr(text, closing);
    if (!to) to = text + strlen(text);
    if (!whole) {
        const char *at = text;
        for (int i = 0; i < words && at < to; i++) {
            at += strspn(at, blanks);
            at += strcspn(at, blanks);
        }
        if (at < to) to = at;
        while (to > text && strchr(blanks, to[-1])) to--;
    }
    return strndup(text, (size_t)(to - text));
}

int wz_prefills_load(struct wz_prompts *set, const char *path, int words, const struct wz_prefill *how,
                     struct wz_err *err)
{
    json_t *texts = json_object();
    struct wz_data_rows rows;
    int more, found = 0;

    if (wz_data_rows_open(&rows, path, err) < 0) {
        json_decref(texts);
        return -1;
    }
    while ((more = wz_data_rows_next(&rows, err)) > 0) {
        const char *prompt = wz_json_text(json_object_get(rows.row, "prompt")),
                   *text = wz_json_text(json_object_get(rows.row, "text"));
        char *prefix = text ? prefix_of(text, words, how->hijack) : NULL;
        more = -1;
        if (!prompt || !text)
            wz_fail(err, "%s: row %d: expected {\"prompt\": text, \"text\": text}", path, rows.number);
        else if (!prefix[strspn(prefix, " \t\n\v\f\r")])
            wz_fail(err, "%s: row %d: its text has nothing to begin with", path, rows.number);
        else if (json_object_get(texts, prompt) && strcmp(json_string_value(json_object_get(texts, prompt)), prefix))
            wz_fail(err, "%s: row %d: an earlier row has this prompt and another text", path, rows.number);
        else more = json_object_set_new(texts, prompt, json_string(prefix));
        free(prefix);
        if (more < 0) break;
    }
    wz_data_rows_close(&rows);
    for (int i = 0; more == 0 && i < set->n; i++) {
        const char *text = json_string_value(json_object_get(texts, set->list[i].text));
        if (!text) continue;
        struct wz_prefill *p = wz_arena_alloc(&set->arena, sizeof *p);
        *p = *how;
        p->text = wz_arena_strdup(&set->arena, text);
        p->transition = wz_arena_strdup(&set->arena, how->transition);
        set->list[i].prefill = p;
        found++;
    }
    json_decref(texts);
    if (more < 0) return -1;
    return found ? found : wz_fail(err, "%s: no row has the text of a prompt", path);
}

void wz_prompts_finish(struct wz_prompts *set)
{
    free(set->list);
    wz_arena_finish(&set->arena);
    *set = (struct wz_prompts){ 0 };
}
