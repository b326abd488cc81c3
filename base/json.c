/* JSON in and out: jansson, with messages that name file, line and column. */
#include "base/base.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A number beyond jansson's range: an integer of more than 64 bits, or a real number of more than a double. */
static bool overflows(const char *number)
{
    json_error_t e = { .line = 0 };
    json_t *j = json_loads(number, JSON_DECODE_ANY, &e);

    json_decref(j);
    return !j && json_error_code(&e) == json_error_numeric_overflow;
}

/* The code of the escape \u0000 to \uffff that s[0..n) begins with; -1: of none. */
static long escape_at(const char *s, size_t n)
{
    char hex[5] = "";

    if (n < 6 || memcmp(s, "\\u", 2)) return -1;
    memcpy(hex, s + 2, 4);
    return strspn(hex, "0123456789abcdefABCDEF") == 4 ? strtol(hex, NULL, 16) : -1;
}

/* What RFC 8259 allows and jansson does not: the text with the nearest doubles in the place of such numbers, and U+FFFD
 * in that of half a surrogate pair, which is no character. */
static void relax(const char *text, size_t n, struct wz_buf *out)
{
    static const char part[] = "0123456789+-.eE";
    struct wz_buf number = { 0 };
    bool quoted = false;

    for (size_t i = 0, end; i < n; i = end) {
        end = i + 1;
        if (quoted && text[i] == '\\' && end < n) {
            const long code = escape_at(text + i, n - i), low = code < 0 ? -1 : escape_at(text + i + 6, n - i - 6);
            const bool pair = code >= 0xd800 && code < 0xdc00 && low >= 0xdc00 && low < 0xe000;
            end = i + (pair ? 12 : code < 0 ? 2 : 6);
            if (!pair && code >= 0xd800 && code < 0xe000) {
                wz_buf_str(out, "\\ufffd");
                continue;
            }
        } else if (text[i] == '"') quoted = !quoted;
        for (; !quoted && memchr(part, text[i], sizeof part - 1) && end < n; end++)
            if (!memchr(part, text[end], sizeof part - 1)) break;
        wz_buf_clear(&number);
        wz_buf_add(&number, text + i, end - i);
        char *rest = number.data;
        const double x = end - i > 4 && !quoted && overflows(number.data) ? strtod(number.data, &rest) : 0;
        if (rest > number.data && !*rest) wz_buf_printf(out, "%.17g", isinf(x) ? copysign(DBL_MAX, x) : x);
        else wz_buf_add(out, text + i, end - i);
    }
    wz_buf_finish(&number);
}

json_t *wz_json_parse(const char *text, size_t n, const char *name, struct wz_err *err)
{
    const size_t flags = JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL;
    json_error_t e;
    json_t *j = json_loadb(text, n, flags, &e);

    if (!j && (json_error_code(&e) == json_error_numeric_overflow || strstr(e.text, "invalid Unicode"))) {
        struct wz_buf other = { 0 };
        relax(text, n, &other);
        j = json_loadb(other.data, other.len, flags, &e);
        wz_buf_finish(&other);
    }
    if (!j && err) wz_fail(err, "%s:%d:%d: not valid JSON: %s", name, e.line, e.column, e.text);
    return j;
}

json_t *wz_json_load(const char *path, struct wz_err *err)
{
    struct wz_map map;

    if (wz_map_open(&map, path, err) < 0) return NULL;
    json_t *j = wz_json_parse((const char *)map.bytes, map.len, path, err);
    wz_map_close(&map);
    return j;
}

const char *wz_json_text(json_t *value)
{
    const char *s = json_string_value(value);
    const size_t n = json_string_length(value);

    if (s && strlen(s) < n) {
        struct wz_buf clean = { 0 };
        for (size_t i = 0; i < n; i++) wz_buf_add(&clean, s[i] ? s + i : "\xef\xbf\xbd", s[i] ? 1 : 3);
        json_string_setn_nocheck(value, clean.data, clean.len);
        wz_buf_finish(&clean);
    }
    return json_string_value(value);
}

void wz_json_string(struct wz_buf *out, const char *s, size_t n)
{
    wz_buf_str(out, "\"");
    for (size_t i = 0; i < n;) {
        const size_t end = i + wz_utf8_valid(s + i, n - i);
        for (int len; i < end; i += (size_t)len) {
            const uint32_t c = wz_utf8_get(s + i, end - i, &len);
            if (c == '"' || c == '\\') wz_buf_printf(out, "\\%c", (int)c);
            else if (c == '\n') wz_buf_str(out, "\\n");
            else if (wz_is_control(c)) wz_buf_printf(out, "\\u%04x", (unsigned)c);
            else wz_buf_add(out, s + i, (size_t)len);
        }
        if (i < n) {
            wz_buf_str(out, "\\ufffd");
            i += wz_utf8_bad(s + i, n - i);
        }
    }
    wz_buf_str(out, "\"");
}

char *wz_json_dump(const json_t *value, size_t flags)
{
    char *text = json_dumps(value, JSON_ENCODE_ANY | flags);
    struct wz_buf out = { 0 };
    int len;

    if (!text) wz_die("a value can't be written as JSON");
    for (const char *s = text; *s; s += len) { /* outside of strings the only one is the line break */
        const uint32_t c = wz_utf8_get(s, strnlen(s, 4), &len);
        if (wz_is_control(c) && c != '\n') wz_buf_printf(&out, "\\u%04x", (unsigned)c);
        else wz_buf_add(&out, s, (size_t)len);
    }
    free(text);
    return out.data;
}

int wz_json_save(json_t *root, const char *path, struct wz_err *err)
{
    char *text = json_dumps(root, JSON_INDENT(2));

    if (!text) wz_die("%s: the value can't be written as JSON", path);
    int rc = wz_file_write(path, text, strlen(text), err);
    free(text);
    json_decref(root);
    return rc;
}
