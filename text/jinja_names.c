/* What a template can call: filters, tests, methods of strings and dictionaries, functions. A row each; those that
 * Python and Jinja know under two names have two rows. The date is the same for every run: ids must not depend on the
 * day (guarantee 2); it is the one that Llama 3's template falls back to. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <utf8proc.h>

#include "text/jinja.h"

typedef struct wz_value value; /* for the many signatures below */

/* ---- calling ---------------------------------------------------------------------------------------------- */

const struct wz_name_row *wz_name_find(const struct wz_name_row *table, const char *name, size_t n)
{
    for (; table->name; table++)
        if (strlen(table->name) == n && !memcmp(table->name, name, n)) return table;
    return NULL;
}

/* Index of the parameter `name` in "one two|three", or how many there are; *needed: how many may not be absent. */
static int parameter(const char *parameters, const struct wz_text *name, int *needed)
{
    int i = 0;

    *needed = -1;
    for (const char *s = parameters; *s; i++) {
        const size_t n = strcspn(s, " |");
        if (n && name && name->n == n && !memcmp(name->s, s, n)) return i;
        if (!n) i--; /* "|" is first */
        s += n;
        if (*s == '|') *needed = i + 1;
        s += *s != 0;
    }
    if (*needed < 0) *needed = i;
    return i;
}

struct wz_value wz_name_call(struct wz_jinja *j, const struct wz_name_row *row, const char *what, struct wz_value self,
                             const struct wz_items *given, const struct wz_items *named)
{
    static const struct wz_items nothing = { 0 };
    struct wz_call c = {
        .row = row, .arg = { self }, .given = given ? *given : nothing, .named = named ? *named : nothing
    };
    int needed, all;

    wz_jinja_step(j, 1);
    if (*row->parameters == '*') return row->run(j, &c);
    all = parameter(row->parameters, NULL, &needed);
    if (c.given.n > all)
        wz_jinja_fail(j, "%s %s: expected at most %d arguments, got %d", what, row->name, all, c.given.n);
    for (int i = 0; i < c.given.n; i++) c.arg[1 + i] = c.given.at[i];
    for (int i = 0; i < c.named.n; i += 2) {
        const struct wz_text *name = c.named.at[i].text;
        int unused, at = parameter(row->parameters, name, &unused);
        if (at == all || c.arg[1 + at].kind != WZ_IS_ABSENT)
            wz_jinja_fail(j, "%s %s: unexpected argument %.*s", what, row->name, (int)name->n, name->s);
        c.arg[1 + at] = c.named.at[i + 1];
    }
    for (int i = 0; i < needed; i++)
        if (c.arg[1 + i].kind == WZ_IS_ABSENT)
            wz_jinja_fail(j, "%s %s: argument %d is missing", what, row->name, i + 1);
    return row->run(j, &c);
}

static bool given(const struct wz_call *c, int i) { return c->arg[i].kind != WZ_IS_ABSENT; }

static int64_t int_or(struct wz_jinja *j, const struct wz_call *c, int i, int64_t otherwise)
{
    return given(c, i) && c->arg[i].kind != WZ_IS_NONE ? wz_as_int(j, c->arg[i], c->row->name) : otherwise;
}

static const struct wz_text *text_or(struct wz_jinja *j, const struct wz_call *c, int i, const char *otherwise)
{
    if (!given(c, i) || c->arg[i].kind == WZ_IS_NONE)
        return otherwise ? wz_text_value(j, otherwise, strlen(otherwise)).text : NULL;
    if (c->arg[i].kind != WZ_IS_STRING)
        wz_jinja_fail(j, "%s: expected a string, got %s", c->row->name, wz_value_kind(c->arg[i]));
    return c->arg[i].text;
}

static const struct wz_text *self(struct wz_jinja *j, const struct wz_call *c) { return wz_as_text(j, c->arg[0]); }

/* v.a.b by "a.b", as the filters with an attribute take it. */
static value by_path(struct wz_jinja *j, value v, value path)
{
    if (path.kind != WZ_IS_STRING) return wz_attribute(j, v, path, false);
    for (size_t at = 0, n; at <= path.text->n; at += n + 1) {
        const char *dot = memchr(path.text->s + at, '.', path.text->n - at);
        n = dot ? (size_t)(dot - path.text->s) - at : path.text->n - at;
        v = wz_attribute(j, v, wz_text_part(j, path.text, at, n), false);
    }
    return v;
}

/* ---- strings ---------------------------------------------------------------------------------------------- */

static bool is_letter(uint32_t code)
{
    const utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)code);

    return c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_LO;
}

/* All letters upper or lower case (of letters that become two, only the German one is known), or the first of each word
 * upper: words begin behind one of `starts` ("": behind what is no letter). What somebody wrote and was changed is
 * rewritten. */
static value changed(struct wz_jinja *j, const struct wz_text *t, bool words, bool all, const char *starts)
{
    struct wz_writing w = { 0 };
    bool first = true;
    char utf8[4];
    int len;

    wz_jinja_step(j, t->n / 8);
    for (size_t i = 0; i < t->n; i += (size_t)len) {
        const uint32_t code = wz_utf8_get(t->s + i, t->n - i, &len);
        const bool up = words ? first : all, small = words && !(starts && *starts); /* the filter has no title case */
        const uint32_t other = up ? (uint32_t)(small ? utf8proc_totitle : utf8proc_toupper)((utf8proc_int32_t)code)
                                  : (uint32_t)utf8proc_tolower((utf8proc_int32_t)code);
        if (up && code == 0xdf) wz_write_bytes(j, &w, small ? "Ss" : "SS", 2, t->from && t->from[i] ? WZ_REWRITTEN : 0);
        else if (other == code) wz_write(j, &w, wz_text_part(j, t, i, (size_t)len).text);
        else wz_write_bytes(j, &w, utf8, (size_t)wz_utf8_put(utf8, other), t->from && t->from[i] ? WZ_REWRITTEN : 0);
        first = starts && (*starts ? code < 128 && strchr(starts, (int)code) : !is_letter(code));
    }
    return wz_written(j, &w);
}

static value upper(struct wz_jinja *j, struct wz_call *c) { return changed(j, self(j, c), false, true, NULL); }
static value lower(struct wz_jinja *j, struct wz_call *c) { return changed(j, self(j, c), false, false, NULL); }
static value capitalize(struct wz_jinja *j, struct wz_call *c) { return changed(j, self(j, c), true, false, NULL); }
static value title(struct wz_jinja *j, struct wz_call *c) { return changed(j, self(j, c), true, false, ""); }
static value title_filter(struct wz_jinja *j, struct wz_call *c)
{
    return changed(j, self(j, c), true, false, " \t\n\r\v\f-({[<");
}

static value strip(struct wz_jinja *j, struct wz_call *c)
{
    return wz_text_strip(j, self(j, c), text_or(j, c, 1, NULL), c->row->name[0] != 'r', c->row->name[0] != 'l');
}

static const char *find_in(struct wz_jinja *j, const struct wz_text *t, size_t at, const struct wz_text *what)
{
    wz_jinja_step(j, 1 + (t->n - at) / 64);
    return memmem(t->s + at, t->n - at, what->s, what->n);
}

static value replace(struct wz_jinja *j, struct wz_call *c)
{
    const struct wz_text *t = self(j, c), *old = text_or(j, c, 1, ""), *new = text_or(j, c, 2, "");
    int64_t left = int_or(j, c, 3, -1);
    struct wz_writing w = { 0 };
    const char *hit;
    size_t at = 0;

    if (!old->n) wz_jinja_fail(j, "replace: expected a text to look for, got an empty one");
    for (; left-- != 0 && (hit = find_in(j, t, at, old)); at = (size_t)(hit - t->s) + old->n) {
        wz_write(j, &w, wz_text_part(j, t, at, (size_t)(hit - t->s) - at).text);
        wz_write(j, &w, new);
    }
    wz_write(j, &w, wz_text_part(j, t, at, t->n - at).text);
    return wz_written(j, &w);
}

/* Python's split, by white space without an argument. */
static value split(struct wz_jinja *j, struct wz_call *c)
{
    const struct wz_text *t = self(j, c), *by = text_or(j, c, 1, NULL);
    int64_t left = int_or(j, c, 2, -1);
    value list = wz_items_value(j, WZ_IS_LIST);
    size_t at = 0, i = 0;
    const char *hit;
    int len;

    wz_jinja_step(j, t->n / 8);
    while (!by) {
        while (i < t->n && wz_text_space(wz_utf8_get(t->s + i, t->n - i, &len))) i += (size_t)len;
        at = i;
        if (i < t->n && left-- == 0) i = t->n;
        while (i < t->n && !wz_text_space(wz_utf8_get(t->s + i, t->n - i, &len))) i += (size_t)len;
        if (i == at) return list;
        wz_items_add(j, list.items, wz_text_part(j, t, at, i - at));
    }
    if (!by->n) wz_jinja_fail(j, "split: expected a separator, got an empty one");
    for (; left-- != 0 && (hit = find_in(j, t, at, by)); at = (size_t)(hit - t->s) + by->n)
        wz_items_add(j, list.items, wz_text_part(j, t, at, (size_t)(hit - t->s) - at));
    wz_items_add(j, list.items, wz_text_part(j, t, at, t->n - at));
    return list;
}

/* startswith and endswith; the affix, or one of a tuple. */
static value has_affix(struct wz_jinja *j, struct wz_call *c)
{
    const struct wz_text *t = self(j, c);
    const bool end = c->row->name[0] == 'e';
    struct wz_items one = { &c->arg[1], 1, 1 };
    const struct wz_items *list = c->arg[1].kind == WZ_IS_TUPLE ? c->arg[1].items : &one;

    for (int i = 0; i < list->n; i++) {
        if (list->at[i].kind != WZ_IS_STRING)
            wz_jinja_fail(j, "%s: expected a string, got %s", c->row->name, wz_value_kind(list->at[i]));
        const struct wz_text *affix = list->at[i].text;
        wz_jinja_step(j, 1 + affix->n / 64);
        if (affix->n <= t->n && !memcmp(t->s + (end ? t->n - affix->n : 0), affix->s, affix->n)) return wz_bool(true);
    }
    return wz_bool(false);
}

static value find(struct wz_jinja *j, struct wz_call *c)
{
    const struct wz_text *t = self(j, c);
    const char *hit = find_in(j, t, 0, text_or(j, c, 1, ""));

    return wz_int(hit ? (int64_t)wz_text_length(&(struct wz_text){ t->s, NULL, (size_t)(hit - t->s) }) : -1);
}

/* The filter: parts | join(by, attribute), and the method: by.join(parts). */
static value join(struct wz_jinja *j, struct wz_call *c)
{
    const bool method = c->row->of != 0;
    const struct wz_items *items = wz_as_list(j, c->arg[method]);
    const struct wz_text *by = method ? c->arg[0].text : text_or(j, c, 1, "");
    struct wz_writing w = { 0 };

    for (int i = 0; i < items->n; i++) {
        wz_jinja_step(j, 1);
        if (i) wz_write(j, &w, by);
        wz_write(j, &w, wz_as_text(j, given(c, 2) ? by_path(j, items->at[i], c->arg[2]) : items->at[i]));
    }
    return wz_written(j, &w);
}

/* "{} {0} {name}".format(...): without what Python takes behind a colon. */
static value format_method(struct wz_jinja *j, struct wz_call *c)
{
    const struct wz_text *t = self(j, c);
    struct wz_writing w = { 0 };
    int next = 0;

    for (size_t i = 0; i < t->n; i++) {
        const bool twice = i + 1 < t->n && t->s[i] == t->s[i + 1];
        if (t->s[i] != '{' && t->s[i] != '}') wz_write(j, &w, wz_text_part(j, t, i, 1).text);
        else if (twice) wz_write_bytes(j, &w, &t->s[i++], 1, 0);
        else {
            const char *close = memchr(t->s + i, '}', t->n - i);
            const size_t n = close ? (size_t)(close - t->s) - i - 1 : 0;
            const value key = close ? wz_text_part(j, t, i + 1, n) : wz_none();
            const bool digit = n == 1 && t->s[i + 1] >= '0' && t->s[i + 1] <= '9';
            const int at = !n ? next++ : digit ? t->s[i + 1] - '0' : -1;
            const value *v = !close    ? NULL
                             : at >= 0 ? (at < c->given.n ? &c->given.at[at] : NULL)
                                       : wz_dict_find(j, &c->named, key);
            if (!v) wz_jinja_fail(j, "format: expected {}, {0} or {name} and a value for it");
            wz_write(j, &w, wz_as_text(j, *v));
            i += n + 1;
        }
    }
    return wz_written(j, &w);
}

/* ---- lists and dictionaries ------------------------------------------------------------------------------- */

static value length(struct wz_jinja *j, struct wz_call *c)
{
    const value v = c->arg[0];

    if (v.kind == WZ_IS_STRING) {
        wz_jinja_step(j, v.text->n / 64);
        return wz_int((int64_t)wz_text_length(v.text));
    }
    if (v.kind == WZ_IS_DICT) return wz_int(v.items->n / 2);
    if (v.kind == WZ_IS_NONE) wz_jinja_fail(j, "length: none has none");
    return wz_int(wz_as_list(j, v)->n);
}

/* first and last. */
static value end_of(struct wz_jinja *j, struct wz_call *c)
{
    const struct wz_items *list = wz_as_list(j, c->arg[0]);

    if (!list->n) return wz_undefined("an element of an empty list");
    return list->at[c->row->name[0] == 'f' ? 0 : list->n - 1];
}

/* list of anything, keys of a dictionary. */
static value list(struct wz_jinja *j, struct wz_call *c)
{
    const struct wz_items *items = wz_as_list(j, c->arg[0]);
    value list = wz_items_value(j, WZ_IS_LIST);

    for (int i = 0; i < items->n; i++) wz_items_add(j, list.items, items->at[i]);
    return list;
}

static value items(struct wz_jinja *j, struct wz_call *c)
{
    value v = wz_items_value(j, WZ_IS_LIST);

    if (c->arg[0].kind == WZ_IS_UNDEFINED) return v;
    if (c->arg[0].kind != WZ_IS_DICT)
        wz_jinja_fail(j, "%s: expected a mapping, got %s", c->row->name, wz_value_kind(c->arg[0]));
    for (int i = 0; i < c->arg[0].items->n; i += 2)
        wz_items_add(j, v.items, wz_pair(j, c->arg[0].items->at[i], c->arg[0].items->at[i + 1]));
    return v;
}

/* By their keys, capital letters like small ones. */
static value dictsort(struct wz_jinja *j, struct wz_call *c)
{
    value list = items(j, c);

    for (int i = 1; i < list.items->n; i++) /* by insertion: stable, and dictionaries are small */
        for (int k = i; k > 0; k--) {
            const value b = list.items->at[k], a = list.items->at[k - 1];
            if (wz_order(j, changed(j, wz_as_text(j, a.items->at[0]), false, false, NULL),
                         changed(j, wz_as_text(j, b.items->at[0]), false, false, NULL)) <= 0)
                break;
            list.items->at[k] = a;
            list.items->at[k - 1] = b;
        }
    return list;
}

static value values(struct wz_jinja *j, struct wz_call *c)
{
    value v = wz_items_value(j, WZ_IS_LIST);

    for (int i = 1; i < c->arg[0].items->n; i += 2) wz_items_add(j, v.items, c->arg[0].items->at[i]);
    return v;
}

static value get(struct wz_jinja *j, struct wz_call *c)
{
    const value *v = wz_dict_find(j, c->arg[0].items, c->arg[1]);

    return v ? *v : given(c, 2) ? c->arg[2] : wz_none();
}

/* The row that a template names by a string, "trim" or "equalto". */
static const struct wz_name_row *named_row(struct wz_jinja *j, const struct wz_call *c, int i,
                                           const struct wz_name_row *table)
{
    const bool text = i < c->given.n && c->given.at[i].kind == WZ_IS_STRING;
    const struct wz_name_row *row = text ? wz_name_find(table, c->given.at[i].text->s, c->given.at[i].text->n) : NULL;

    if (!row) wz_jinja_fail(j, "%s: argument %d names no filter or test that there is", c->row->name, i + 1);
    return row;
}

/* map: by an attribute, or by a filter and its arguments. select, reject; selectattr, rejectattr: by the truth of an
 * element or of its attribute, or by a test and its arguments. */
static value map(struct wz_jinja *j, struct wz_call *c)
{
    const bool maps = c->row->name[0] == 'm', attribute = !maps && c->row->name[6] == 'a',
               rejects = c->row->name[0] == 'r';
    const value *path = attribute ? c->given.at : wz_dict_find(j, &c->named, wz_text_value(j, "attribute", 9)),
                *otherwise = wz_dict_find(j, &c->named, wz_text_value(j, "default", 7));
    const struct wz_items nothing = { 0 }, *all = wz_truth(c->arg[0]) ? wz_as_list(j, c->arg[0])
                                                                      : &nothing; /* of none too, as in Jinja */
    const struct wz_name_row *row = NULL;
    struct wz_items rest = { 0 };
    value out = wz_items_value(j, WZ_IS_LIST);

    if (attribute && !c->given.n) wz_jinja_fail(j, "%s: expected the name of an attribute", c->row->name);
    if (maps ? !path : c->given.n > attribute) row = named_row(j, c, attribute, maps ? wz_filters : wz_tests);
    if (row) rest = (struct wz_items){ c->given.at + attribute + 1, c->given.n - attribute - 1, 0 };
    for (int i = 0; i < all->n; i++) {
        value v = path && (maps || attribute) ? by_path(j, all->at[i], *path) : all->at[i];
        if (row) v = wz_name_call(j, row, maps ? "filter" : "test", v, &rest, &c->named);
        if (maps) wz_items_add(j, out.items, v.kind == WZ_IS_UNDEFINED && otherwise ? *otherwise : v);
        else if (wz_truth(v) != rejects) wz_items_add(j, out.items, all->at[i]);
    }
    return out;
}

/* ---- numbers and all others ------------------------------------------------------------------------------- */

static value otherwise(struct wz_jinja *j, struct wz_call *c)
{
    const bool falsy = given(c, 2) && wz_truth(c->arg[2]);

    if (c->arg[0].kind != WZ_IS_UNDEFINED && !(falsy && !wz_truth(c->arg[0]))) return c->arg[0];
    return given(c, 1) ? c->arg[1] : wz_text_value(j, "", 0);
}

static value to_number(struct wz_jinja *j, struct wz_call *c)
{
    const bool real = c->row->name[0] == 'f';
    const value v = c->arg[0], otherwise_ = given(c, 1) ? c->arg[1] : real ? wz_float(0) : wz_int(0);
    char digits[64], *end;

    if (v.kind == WZ_IS_STRING) {
        const struct wz_text *t = wz_text_strip(j, v.text, NULL, true, true).text;
        snprintf(digits, sizeof digits, "%.*s", (int)(t->n < 63 ? t->n : 63), t->s);
        if (strspn(digits, "+-0123456789.eE") != t->n || !t->n) return otherwise_;
        const double f = strtod(digits, &end);
        if (*end) return otherwise_;
        if (real) return wz_float(f);
        return fabs(f) < 9e15 ? wz_int((int64_t)f) : otherwise_;
    }
    if (v.kind == WZ_IS_FLOAT) return real ? v : isfinite(v.f) && fabs(v.f) < 9e18 ? wz_int((int64_t)v.f) : otherwise_;
    if (v.kind == WZ_IS_INT || v.kind == WZ_IS_BOOL) return real ? wz_float((double)v.i) : wz_int(v.i);
    return otherwise_;
}

static value string(struct wz_jinja *j, struct wz_call *c)
{
    return (value){ .kind = WZ_IS_STRING, .text = self(j, c) };
}

static value tojson(struct wz_jinja *j, struct wz_call *c)
{
    struct wz_json_style style = { .indent = int_or(j, c, 2, -1) };
    struct wz_writing w = { 0 };

    if ((given(c, 1) && wz_truth(c->arg[1])) || (given(c, 4) && wz_truth(c->arg[4])))
        wz_jinja_fail(j, "tojson: ensure_ascii and sort_keys are not supported");
    style.comma = wz_text_value(j, ", ", style.indent < 0 ? 2 : 1).text;
    style.colon = wz_text_value(j, ": ", 2).text;
    if (given(c, 3) && c->arg[3].kind != WZ_IS_NONE) {
        const struct wz_items *both = wz_as_list(j, c->arg[3]);
        if (both->n != 2) wz_jinja_fail(j, "tojson: expected two separators");
        style.comma = wz_as_text(j, both->at[0]);
        style.colon = wz_as_text(j, both->at[1]);
    }
    wz_write_json(j, &w, c->arg[0], &style, 0);
    return wz_written(j, &w);
}

/* ---- tests ------------------------------------------------------------------------------------------------ */

/* T(name in a template, in C, parameters, of v and x) */
#define TESTS(T)                                                                                       \
    T("!=", unequal, "other", !wz_equal(j, v, x))                                                      \
    T("<", below, "other", wz_order(j, v, x) < 0)                                                      \
    T("<=", at_most, "other", wz_order(j, v, x) <= 0)                                                  \
    T("==", equal, "other", wz_equal(j, v, x))                                                         \
    T(">", above, "other", wz_order(j, v, x) > 0)                                                      \
    T(">=", at_least, "other", wz_order(j, v, x) >= 0)                                                 \
    T("boolean", boolean, "", v.kind == WZ_IS_BOOL)                                                    \
    T("callable", callable, "", v.kind == WZ_IS_CALLABLE)                                              \
    T("defined", defined, "", v.kind != WZ_IS_UNDEFINED)                                               \
    T("divisibleby", divisible, "num", wz_as_int(j, x, "divisor") && wz_as_int(j, v, "it") % x.i == 0) \
    T("even", even, "", wz_as_int(j, v, "even") % 2 == 0)                                              \
    T("false", false, "", v.kind == WZ_IS_BOOL && !v.i)                                                \
    T("float", float, "", v.kind == WZ_IS_FLOAT)                                                       \
    T("in", in, "seq", wz_contains(j, x, v))                                                           \
    T("integer", integer, "", v.kind == WZ_IS_INT)                                                     \
    T("iterable", iterable, "", v.kind == WZ_IS_UNDEFINED || wz_has_elements(v))                       \
    T("mapping", mapping, "", v.kind == WZ_IS_DICT)                                                    \
    T("none", none, "", v.kind == WZ_IS_NONE)                                                          \
    T("number", number, "", v.kind >= WZ_IS_BOOL && v.kind <= WZ_IS_FLOAT)                             \
    T("odd", odd, "", wz_as_int(j, v, "odd") % 2 != 0)                                                 \
    T("string", string, "", v.kind == WZ_IS_STRING)                                                    \
    T("true", true, "", v.kind == WZ_IS_BOOL && v.i)                                                   \
    T("undefined", undefined, "", v.kind == WZ_IS_UNDEFINED)
#define TEST_FUNCTION(name, id, parameters, is)                 \
    static value is_##id(struct wz_jinja *j, struct wz_call *c) \
    {                                                           \
        const value v = c->arg[0], x = c->arg[1];               \
        return (void)x, wz_bool(is);                            \
    }
#define TEST_ROW(name, id, parameters, is) { name, is_##id, parameters, 0 },
TESTS(TEST_FUNCTION)

/* ---- functions -------------------------------------------------------------------------------------------- */

static value raise_exception(struct wz_jinja *j, struct wz_call *c)
{
    const struct wz_text *t = wz_as_text(j, c->arg[1]);

    wz_jinja_fail(j, "%.*s", (int)(t->n < 400 ? t->n : 400), t->s);
}

static value strftime_now(struct wz_jinja *j, struct wz_call *c)
{
    const struct tm day = { .tm_year = 124, .tm_mon = 6, .tm_mday = 26, .tm_wday = 5, .tm_yday = 207 };
    char text[256], *how = wz_jinja_alloc(j, c->arg[1].kind == WZ_IS_STRING ? c->arg[1].text->n + 1 : 1);

    memcpy(how, text_or(j, c, 1, "")->s, text_or(j, c, 1, "")->n);
    const size_t n = strftime(text, sizeof text, how, &day);
    return wz_text_value(j, memcpy(wz_jinja_alloc(j, n + 1), text, n), n);
}

static value range(struct wz_jinja *j, struct wz_call *c)
{
    const bool two = given(c, 2);
    const int64_t from = two ? wz_as_int(j, c->arg[1], "range") : 0, to = wz_as_int(j, c->arg[two ? 2 : 1], "range"),
                  step = int_or(j, c, 3, 1);
    value v = wz_items_value(j, WZ_IS_LIST);

    if (!step || llabs(from) > INT32_MAX || llabs(to) > INT32_MAX || llabs(step) > INT32_MAX)
        wz_jinja_fail(j, "range: expected numbers of 31 bits and a step that is not 0");
    for (int64_t i = from; step > 0 ? i < to : i > to; i += step) {
        wz_jinja_step(j, 1);
        wz_items_add(j, v.items, wz_int(i));
    }
    return v;
}

static value names(struct wz_jinja *j, struct wz_call *c)
{
    value v = wz_items_value(j, c->row->name[0] == 'n' ? WZ_IS_NAMESPACE : WZ_IS_DICT);

    if (c->given.n > 1 || (c->given.n && c->given.at[0].kind != WZ_IS_DICT))
        wz_jinja_fail(j, "%s: expected name=value", c->row->name);
    for (int i = 0; c->given.n && i < c->given.at[0].items->n; i += 2)
        wz_dict_set(j, v.items, c->given.at[0].items->at[i], c->given.at[0].items->at[i + 1]);
    for (int i = 0; i < c->named.n; i += 2) wz_dict_set(j, v.items, c->named.at[i], c->named.at[i + 1]);
    return v;
}

/* ---- the tables ------------------------------------------------------------------------------------------- */

const struct wz_name_row wz_filters[] = {
    { "capitalize", capitalize, "", 0 },
    { "count", length, "", 0 },
    { "d", otherwise, "|default_value boolean", 0 },
    { "default", otherwise, "|default_value boolean", 0 },
    { "dictsort", dictsort, "", 0 },
    { "first", end_of, "", 0 },
    { "float", to_number, "|default", 0 },
    { "int", to_number, "|default", 0 },
    { "items", items, "", 0 },
    { "join", join, "|d attribute", 0 },
    { "last", end_of, "", 0 },
    { "length", length, "", 0 },
    { "list", list, "", 0 },
    { "lower", lower, "", 0 },
    { "map", map, "*", 0 },
    { "reject", map, "*", 0 },
    { "rejectattr", map, "*", 0 },
    { "replace", replace, "old new|count", 0 },
    { "safe", string, "", 0 },
    { "select", map, "*", 0 },
    { "selectattr", map, "*", 0 },
    { "string", string, "", 0 },
    { "title", title_filter, "", 0 },
    { "tojson", tojson, "|ensure_ascii indent separators sort_keys", 0 },
    { "trim", strip, "|chars", 0 },
    { "upper", upper, "", 0 },
    { 0 },
};
const struct wz_name_row wz_tests[] = {
    TESTS(TEST_ROW) /* and their other names */
    { "eq", is_equal, "other", 0 },
    { "equalto", is_equal, "other", 0 },
    { "ge", is_at_least, "other", 0 },
    { "gt", is_above, "other", 0 },
    { "le", is_at_most, "other", 0 },
    { "lt", is_below, "other", 0 },
    { "ne", is_unequal, "other", 0 },
    { "sequence", is_iterable, "", 0 },
    { 0 },
};
enum { OF_STRING = 1 << WZ_IS_STRING, OF_DICT = 1 << WZ_IS_DICT, OF_LIST = 1 << WZ_IS_LIST | 1 << WZ_IS_TUPLE };
const struct wz_name_row wz_methods[] = {
    { "capitalize", capitalize, "", OF_STRING },
    { "endswith", has_affix, "suffix", OF_STRING },
    { "find", find, "sub", OF_STRING },
    { "format", format_method, "*", OF_STRING },
    { "get", get, "key|default", OF_DICT },
    { "items", items, "", OF_DICT },
    { "join", join, "iterable", OF_STRING },
    { "keys", list, "", OF_DICT },
    { "lower", lower, "", OF_STRING },
    { "lstrip", strip, "|chars", OF_STRING },
    { "replace", replace, "old new|count", OF_STRING },
    { "rstrip", strip, "|chars", OF_STRING },
    { "split", split, "|sep maxsplit", OF_STRING },
    { "startswith", has_affix, "prefix", OF_STRING },
    { "strip", strip, "|chars", OF_STRING },
    { "title", title, "", OF_STRING },
    { "upper", upper, "", OF_STRING },
    { "values", values, "", OF_DICT },
    { 0 },
};
const struct wz_name_row wz_functions[] = {
    { "dict", names, "*", 0 },
    { "namespace", names, "*", 0 },
    { "raise_exception", raise_exception, "message", 0 },
    { "range", range, "start|stop step", 0 },
    { "strftime_now", strftime_now, "format", 0 },
    { 0 },
};
