/* Values of a template: strings that know where their bytes came from, and Python's truth, order, str() and JSON. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "text/jinja.h"
#include "text/tokenizer_inside.h"

/* ---- memory, steps, errors -------------------------------------------------------------------------------- */

void wz_jinja_fail(struct wz_jinja *j, const char *fmt, ...)
{
    char text[512];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    wz_fail(j->err, "%s: chat template line %d: %s", j->name, j->line, text);
    longjmp(j->bail, 1);
}

void wz_jinja_step(struct wz_jinja *j, size_t n)
{
    if (n > WZ_JINJA_STEPS - (size_t)j->steps) wz_jinja_fail(j, "it takes more than %d steps", WZ_JINJA_STEPS);
    j->steps += (int)n;
}

void *wz_jinja_alloc(struct wz_jinja *j, size_t n)
{
    if (n > j->most - j->bytes) wz_jinja_fail(j, "it takes more than %zu bytes of memory", j->most);
    j->bytes += n;
    return wz_arena_alloc(&j->arena, n);
}

/* ---- strings ---------------------------------------------------------------------------------------------- */

static void reserve(struct wz_jinja *j, struct wz_writing *w, size_t more, bool origins)
{
    if (more > w->cap - w->n) {
        const size_t cap = 2 * w->cap > w->n + more ? 2 * w->cap : w->n + more + 32;
        char *s = wz_jinja_alloc(j, cap);
        if (w->n) memcpy(s, w->s, w->n);
        if (w->from) {
            uint32_t *from = wz_jinja_alloc(j, cap * sizeof *from);
            memcpy(from, w->from, w->n * sizeof *from);
            w->from = from;
        }
        w->s = s;
        w->cap = cap;
    }
    if (origins && !w->from) w->from = wz_jinja_alloc(j, w->cap * sizeof *w->from);
}

void wz_write(struct wz_jinja *j, struct wz_writing *w, const struct wz_text *text)
{
    wz_jinja_step(j, text->n / 64);
    reserve(j, w, text->n, text->from != NULL);
    if (!text->n) return;
    memcpy(w->s + w->n, text->s, text->n);
    if (text->from) memcpy(w->from + w->n, text->from, text->n * sizeof *w->from);
    w->n += text->n;
}

void wz_write_bytes(struct wz_jinja *j, struct wz_writing *w, const char *s, size_t n, uint32_t from)
{
    reserve(j, w, n, from != 0);
    if (n) memcpy(w->s + w->n, s, n);
    for (size_t i = 0; from && i < n; i++) w->from[w->n + i] = from;
    w->n += n;
}

static struct wz_value text_of(struct wz_jinja *j, const char *s, const uint32_t *from, size_t n)
{
    struct wz_text *text = wz_jinja_alloc(j, sizeof *text);

    *text = (struct wz_text){ s ? s : "", from, n };
    return (struct wz_value){ .kind = WZ_IS_STRING, .text = text };
}

struct wz_value wz_written(struct wz_jinja *j, const struct wz_writing *w) { return text_of(j, w->s, w->from, w->n); }

struct wz_value wz_text_value(struct wz_jinja *j, const char *s, size_t n) { return text_of(j, s, NULL, n); }

struct wz_value wz_text_part(struct wz_jinja *j, const struct wz_text *text, size_t at, size_t n)
{
    return text_of(j, text->s + at, text->from ? text->from + at : NULL, n);
}

bool wz_text_is(const struct wz_text *text, const char *s)
{
    return strlen(s) == text->n && !memcmp(text->s, s, text->n);
}

bool wz_text_space(uint32_t code) { return wz_char_space(code) || (code >= 28 && code <= 31); }

static bool stripped(const struct wz_text *chars, uint32_t code)
{
    int len;

    if (!chars) return wz_text_space(code);
    for (size_t at = 0; at < chars->n; at += (size_t)len)
        if (wz_utf8_get(chars->s + at, chars->n - at, &len) == code) return true;
    return false;
}

struct wz_value wz_text_strip(struct wz_jinja *j, const struct wz_text *text, const struct wz_text *chars, bool left,
                              bool right)
{
    size_t at = 0, end = 0;
    int len;

    wz_jinja_step(j, text->n / 8 * (chars ? chars->n + 1 : 1));
    while (left && at < text->n && stripped(chars, wz_utf8_get(text->s + at, text->n - at, &len))) at += (size_t)len;
    for (size_t i = at; right && i < text->n; i += (size_t)len)
        if (!stripped(chars, wz_utf8_get(text->s + i, text->n - i, &len))) end = i + (size_t)len;
    if (!right) end = text->n;
    return wz_text_part(j, text, at, end > at ? end - at : 0);
}

size_t wz_text_length(const struct wz_text *text)
{
    size_t n = 0;

    for (size_t i = 0; i < text->n; i++) n += ((unsigned char)text->s[i] & 0xc0) != 0x80;
    return n;
}

size_t wz_text_at(const struct wz_text *text, int64_t at)
{
    size_t i = 0;

    for (; i < text->n; i++)
        if (((unsigned char)text->s[i] & 0xc0) != 0x80 && at-- <= 0) break;
    return i;
}

/* ---- lists and dictionaries ------------------------------------------------------------------------------- */

struct wz_value wz_items_value(struct wz_jinja *j, enum wz_kind kind)
{
    return (struct wz_value){ .kind = kind, .items = wz_jinja_alloc(j, sizeof(struct wz_items)) };
}

void wz_items_add(struct wz_jinja *j, struct wz_items *items, struct wz_value v)
{
    if (items->n == items->cap) {
        const int cap = items->cap ? 2 * items->cap : 4;
        struct wz_value *at = wz_jinja_alloc(j, sizeof *at * (size_t)cap);
        if (items->n) memcpy(at, items->at, sizeof *at * (size_t)items->n);
        items->at = at;
        items->cap = cap;
    }
    items->at[items->n++] = v;
}

struct wz_value wz_pair(struct wz_jinja *j, struct wz_value a, struct wz_value b)
{
    struct wz_value pair = wz_items_value(j, WZ_IS_TUPLE);

    wz_items_add(j, pair.items, a);
    wz_items_add(j, pair.items, b);
    return pair;
}

struct wz_value *wz_dict_find(struct wz_jinja *j, const struct wz_items *dict, struct wz_value key)
{
    wz_jinja_step(j, (size_t)dict->n / 2);
    for (int i = 0; i < dict->n; i += 2)
        if (wz_equal(j, dict->at[i], key)) return &dict->at[i + 1];
    return NULL;
}

void wz_dict_set(struct wz_jinja *j, struct wz_items *dict, struct wz_value key, struct wz_value v)
{
    struct wz_value *old = wz_dict_find(j, dict, key);

    if (old) {
        *old = v;
        return;
    }
    wz_items_add(j, dict, key);
    wz_items_add(j, dict, v);
}

void wz_dict_name(struct wz_jinja *j, struct wz_items *dict, const char *key, struct wz_value v)
{
    wz_dict_set(j, dict, wz_text_value(j, key, strlen(key)), v);
}

struct wz_value wz_json_value(struct wz_jinja *j, const json_t *json)
{
    struct wz_value v = wz_none();
    const json_t *item;
    const char *key;
    size_t i;

    if (json_is_boolean(json)) return wz_bool(json_is_true(json));
    if (json_is_integer(json)) return wz_int(json_integer_value(json));
    if (json_is_real(json)) return wz_float(json_real_value(json));
    if (json_is_string(json)) return wz_text_value(j, json_string_value(json), json_string_length(json));
    if (json_is_array(json)) v = wz_items_value(j, WZ_IS_LIST);
    if (json_is_object(json)) v = wz_items_value(j, WZ_IS_DICT);
    json_array_foreach(json, i, item) wz_items_add(j, v.items, wz_json_value(j, item));
    json_object_foreach((json_t *)json, key, item) wz_dict_name(j, v.items, key, wz_json_value(j, item));
    return v;
}

/* ---- what Python thinks of them --------------------------------------------------------------------------- */

const char *wz_value_kind(struct wz_value v)
{
    static const char *const names[] = { [WZ_IS_ABSENT] = "nothing",
                                         [WZ_IS_UNDEFINED] = "what is undefined",
                                         [WZ_IS_NONE] = "none",
                                         [WZ_IS_BOOL] = "a boolean",
                                         [WZ_IS_INT] = "an integer",
                                         [WZ_IS_FLOAT] = "a number",
                                         [WZ_IS_STRING] = "a string",
                                         [WZ_IS_LIST] = "a list",
                                         [WZ_IS_TUPLE] = "a tuple",
                                         [WZ_IS_DICT] = "a mapping",
                                         [WZ_IS_NAMESPACE] = "a namespace",
                                         [WZ_IS_LOOP] = "loop",
                                         [WZ_IS_CALLABLE] = "a function" };

    return names[v.kind];
}

bool wz_has_elements(struct wz_value v)
{
    return v.kind == WZ_IS_STRING || v.kind == WZ_IS_LIST || v.kind == WZ_IS_TUPLE || v.kind == WZ_IS_DICT;
}

bool wz_truth(struct wz_value v)
{
    if (v.kind == WZ_IS_STRING) return v.text->n > 0;
    if (wz_has_elements(v)) return v.items->n > 0;
    if (v.kind == WZ_IS_FLOAT) return v.f != 0;
    if (v.kind == WZ_IS_BOOL || v.kind == WZ_IS_INT) return v.i != 0;
    return v.kind > WZ_IS_NONE;
}

static bool is_number(struct wz_value v)
{
    return v.kind == WZ_IS_BOOL || v.kind == WZ_IS_INT || v.kind == WZ_IS_FLOAT;
}

static double real(struct wz_value v) { return v.kind == WZ_IS_FLOAT ? v.f : (double)v.i; }

static void deeper(struct wz_jinja *j)
{
    wz_jinja_step(j, 1);
    if (++j->depth > WZ_JINJA_DEPTH) wz_jinja_fail(j, "nested more than %d deep", WZ_JINJA_DEPTH);
}

bool wz_equal(struct wz_jinja *j, struct wz_value a, struct wz_value b)
{
    bool same = true;

    if (is_number(a) && is_number(b))
        return a.kind != WZ_IS_FLOAT && b.kind != WZ_IS_FLOAT ? a.i == b.i : real(a) == real(b);
    if (a.kind != b.kind) return false;
    switch (a.kind) {
    case WZ_IS_STRING:
        if (a.text->n != b.text->n) return false;
        wz_jinja_step(j, a.text->n / 64);
        return !memcmp(a.text->s, b.text->s, a.text->n);
    case WZ_IS_LIST:
    case WZ_IS_TUPLE:
    case WZ_IS_DICT:
        if (a.items->n != b.items->n) return false;
        deeper(j);
        for (int i = 0; same && i < a.items->n; i++) {
            if (a.kind != WZ_IS_DICT) same = wz_equal(j, a.items->at[i], b.items->at[i]);
            else if (i % 2 == 0) {
                const struct wz_value *other = wz_dict_find(j, b.items, a.items->at[i]);
                same = other && wz_equal(j, a.items->at[i + 1], *other);
            }
        }
        j->depth--;
        return same;
    case WZ_IS_NAMESPACE: return a.items == b.items;
    case WZ_IS_LOOP: return a.loop == b.loop;
    case WZ_IS_CALLABLE: return a.call == b.call;
    default: return true;
    }
}

int wz_order(struct wz_jinja *j, struct wz_value a, struct wz_value b)
{
    wz_jinja_step(j, 1);
    if (is_number(a) && is_number(b))
        return a.kind != WZ_IS_FLOAT && b.kind != WZ_IS_FLOAT ? (a.i > b.i) - (a.i < b.i)
                                                              : (real(a) > real(b)) - (real(a) < real(b));
    if (a.kind != WZ_IS_STRING || b.kind != WZ_IS_STRING)
        wz_jinja_fail(j, "%s and %s have no order", wz_value_kind(a), wz_value_kind(b));
    const size_t n = a.text->n < b.text->n ? a.text->n : b.text->n;
    wz_jinja_step(j, n / 64);
    const int order = memcmp(a.text->s, b.text->s, n);
    return order ? order : (a.text->n > n) - (b.text->n > n);
}

bool wz_contains(struct wz_jinja *j, struct wz_value list, struct wz_value v)
{
    if (list.kind == WZ_IS_UNDEFINED) return false;
    if (list.kind == WZ_IS_STRING) {
        if (v.kind != WZ_IS_STRING) wz_jinja_fail(j, "expected a string before \"in\", got %s", wz_value_kind(v));
        wz_jinja_step(j, list.text->n / 64);
        return memmem(list.text->s, list.text->n, v.text->s, v.text->n) != NULL;
    }
    if (list.kind == WZ_IS_DICT) return wz_dict_find(j, list.items, v) != NULL;
    if (list.kind != WZ_IS_LIST && list.kind != WZ_IS_TUPLE) wz_jinja_fail(j, "nothing is in %s", wz_value_kind(list));
    wz_jinja_step(j, (size_t)list.items->n);
    for (int i = 0; i < list.items->n; i++)
        if (wz_equal(j, list.items->at[i], v)) return true;
    return false;
}

/* Python's repr of a float: the fewest digits that parse back. */
static void write_real(struct wz_jinja *j, struct wz_writing *w, double f)
{
    char text[400];
    int digits = 0, exponent;

    if (!isfinite(f)) snprintf(text, sizeof text, "%s", isnan(f) ? "nan" : f < 0 ? "-inf" : "inf");
    else {
        do snprintf(text, sizeof text, "%.*e", digits, f);
        while (digits++ < 17 && strtod(text, NULL) != f);
        exponent = atoi(strchr(text, 'e') + 1);
        digits -= 1 + exponent; /* behind the point */
        if (exponent >= -4 && exponent < 16) snprintf(text, sizeof text, "%.*f", digits > 0 ? digits : 1, f);
    }
    wz_write_bytes(j, w, text, strlen(text), 0);
}

static void put(struct wz_jinja *j, struct wz_writing *w, const char *s) { wz_write_bytes(j, w, s, strlen(s), 0); }

/* A string within quotes: JSON's, or Python's repr. An escape of what somebody wrote was written by somebody too. */
static void write_quoted(struct wz_jinja *j, struct wz_writing *w, const struct wz_text *t, char quote)
{
    int len;

    wz_write_bytes(j, w, &quote, 1, 0);
    for (size_t i = 0; i < t->n; i += (size_t)len) {
        const uint32_t code = wz_utf8_get(t->s + i, t->n - i, &len);
        const char *at = code && code < 128 ? strchr("n\nr\rt\tb\bf\f", (int)code) : NULL;
        char escape[16] = "";
        if (quote == '\'' && (code == '\b' || code == '\f')) at = NULL;
        if (code == (uint32_t)quote || code == '\\') snprintf(escape, sizeof escape, "\\%c", (int)code);
        else if (at && code < 32) snprintf(escape, sizeof escape, "\\%c", at[-1]);
        else if (quote == '\'' && (code < 32 || code == 127)) snprintf(escape, sizeof escape, "\\x%02x", code);
        else if (code < 32) snprintf(escape, sizeof escape, "\\u%04x", code);
        if (*escape) wz_write_bytes(j, w, escape, strlen(escape), t->from && t->from[i] ? WZ_REWRITTEN : 0);
        else wz_write(j, w, wz_text_part(j, t, i, (size_t)len).text);
    }
    wz_write_bytes(j, w, &quote, 1, 0);
}

static void write_string(struct wz_jinja *j, struct wz_writing *w, struct wz_value v, bool quoted)
{
    char text[32];

    switch (v.kind) {
    case WZ_IS_STRING:
        if (!quoted) wz_write(j, w, v.text);
        else
            write_quoted(j, w, v.text,
                         memchr(v.text->s, '\'', v.text->n) && !memchr(v.text->s, '"', v.text->n) ? '"' : '\'');
        return;
    case WZ_IS_UNDEFINED: return;
    case WZ_IS_NONE: put(j, w, "None"); return;
    case WZ_IS_BOOL: put(j, w, v.i ? "True" : "False"); return;
    case WZ_IS_INT:
        snprintf(text, sizeof text, "%lld", (long long)v.i);
        put(j, w, text);
        return;
    case WZ_IS_FLOAT: write_real(j, w, v.f); return;
    case WZ_IS_LIST:
    case WZ_IS_TUPLE:
    case WZ_IS_DICT:
        deeper(j);
        put(j, w, v.kind == WZ_IS_LIST ? "[" : v.kind == WZ_IS_TUPLE ? "(" : "{");
        for (int i = 0; i < v.items->n; i++) {
            if (i) put(j, w, v.kind == WZ_IS_DICT && i % 2 ? ": " : ", ");
            write_string(j, w, v.items->at[i], true);
        }
        put(j, w, v.kind == WZ_IS_LIST ? "]" : v.kind == WZ_IS_DICT ? "}" : v.items->n == 1 ? ",)" : ")");
        j->depth--;
        return;
    default: wz_jinja_fail(j, "%s can't be written", wz_value_kind(v));
    }
}

const struct wz_text *wz_as_text(struct wz_jinja *j, struct wz_value v)
{
    struct wz_writing w = { 0 };

    if (v.kind == WZ_IS_STRING) return v.text;
    write_string(j, &w, v, false);
    return wz_written(j, &w).text;
}

int64_t wz_as_int(struct wz_jinja *j, struct wz_value v, const char *what)
{
    if (v.kind != WZ_IS_INT && v.kind != WZ_IS_BOOL)
        wz_jinja_fail(j, "%s: expected an integer, got %s", what, wz_value_kind(v));
    return v.i;
}

const struct wz_items *wz_as_list(struct wz_jinja *j, struct wz_value v)
{
    struct wz_items *list;
    int len;

    if (v.kind == WZ_IS_LIST || v.kind == WZ_IS_TUPLE) return v.items;
    list = wz_items_value(j, WZ_IS_LIST).items;
    if (v.kind == WZ_IS_DICT)
        for (int i = 0; i < v.items->n; i += 2) wz_items_add(j, list, v.items->at[i]);
    else if (v.kind == WZ_IS_STRING)
        for (size_t i = 0; i < v.text->n; i += (size_t)len) {
            wz_utf8_get(v.text->s + i, v.text->n - i, &len);
            wz_items_add(j, list, wz_text_part(j, v.text, i, (size_t)len));
        }
    else if (v.kind != WZ_IS_UNDEFINED) wz_jinja_fail(j, "expected a list, got %s", wz_value_kind(v));
    return list;
}

/* ---- JSON ------------------------------------------------------------------------------------------------- */

static void new_line(struct wz_jinja *j, struct wz_writing *w, const struct wz_json_style *style, int depth)
{
    if (style->indent < 0) return;
    put(j, w, "\n");
    for (int64_t i = 0; i < depth * style->indent; i++) put(j, w, " ");
}

void wz_write_json(struct wz_jinja *j, struct wz_writing *w, struct wz_value v, const struct wz_json_style *style,
                   int depth)
{
    const bool dict = v.kind == WZ_IS_DICT;

    switch (v.kind) {
    case WZ_IS_NONE: put(j, w, "null"); return;
    case WZ_IS_BOOL: put(j, w, v.i ? "true" : "false"); return;
    case WZ_IS_STRING: write_quoted(j, w, v.text, '"'); return;
    case WZ_IS_INT:
    case WZ_IS_FLOAT: write_string(j, w, v, false); return;
    case WZ_IS_LIST:
    case WZ_IS_TUPLE:
    case WZ_IS_DICT: break;
    default: wz_jinja_fail(j, "%s is no JSON", wz_value_kind(v));
    }
    deeper(j);
    put(j, w, dict ? "{" : "[");
    for (int i = 0; i < v.items->n; i += 1 + dict) {
        if (i) wz_write(j, w, style->comma);
        new_line(j, w, style, depth + 1);
        if (dict) {
            write_quoted(j, w, wz_as_text(j, v.items->at[i]), '"');
            wz_write(j, w, style->colon);
        }
        wz_write_json(j, w, v.items->at[i + dict], style, depth + 1);
    }
    if (v.items->n) new_line(j, w, style, depth);
    put(j, w, dict ? "}" : "]");
    j->depth--;
}
