/* JSON in and out: jansson, with messages that name file, line and column. */
#include "base/base.h"

#include <stdlib.h>
#include <string.h>

json_t *wz_json_parse(const char *text, size_t n, const char *name, struct wz_err *err)
{
    json_error_t e;
    json_t *j = json_loadb(text, n, JSON_REJECT_DUPLICATES, &e);

    if (!j) wz_fail(err, "%s:%d:%d: not valid JSON: %s", name, e.line, e.column, e.text);
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

void wz_json_string(struct wz_buf *out, const char *s, size_t n)
{
    wz_buf_str(out, "\"");
    for (size_t i = 0; i < n;) {
        size_t ok = wz_utf8_valid(s + i, n - i), end = i + ok;
        for (; i < end; i++) {
            unsigned char c = (unsigned char)s[i];
            if (c == '"' || c == '\\') wz_buf_printf(out, "\\%c", c);
            else if (c == '\n') wz_buf_str(out, "\\n");
            else if (c < 0x20 || c == 0x7f) wz_buf_printf(out, "\\u%04x", c);
            else wz_buf_add(out, s + i, 1);
        }
        if (i < n) {
            wz_buf_str(out, "\\ufffd");
            i++;
        }
    }
    wz_buf_str(out, "\"");
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
