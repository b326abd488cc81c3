/* Rows of data files: JSON lines, or a JSON array in a file that begins with "[", and the bytes of either and of CSV,
 * unpacked where the file begins as gzip does (RFC 1952; several members, as of `cat a.gz b.gz`, are one text). */
#include "store/append.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum { PIECE = 1 << 20 }; /* bytes unpacked at a time, and packed bytes given at a time */

static int unpack(struct wz_data_file *text, const char *path, struct wz_err *err)
{
    z_stream z = { 0 };
    uint8_t *piece = wz_alloc(PIECE);
    size_t given = 0;
    int rc = inflateInit2(&z, 16 + MAX_WBITS);

    if (rc != Z_OK) wz_die("zlib: %s", z.msg ? z.msg : "out of memory");
    for (;;) {
        if (!z.avail_in) {
            z.next_in = (Bytef *)(uintptr_t)text->map.bytes + given;
            z.avail_in = (uInt)(text->map.len - given < PIECE ? text->map.len - given : PIECE);
            given += z.avail_in;
        }
        z.next_out = piece;
        z.avail_out = PIECE;
        rc = inflate(&z, Z_NO_FLUSH);
        wz_buf_add(&text->unpacked, piece, PIECE - z.avail_out);
        if (rc == Z_STREAM_END) {
            if (!z.avail_in && given == text->map.len) break;
            rc = inflateReset(&z);
        }
        if (rc != Z_OK || text->unpacked.len > WZ_UNPACKED_MAX) break;
    }
    inflateEnd(&z);
    free(piece);
    if (text->unpacked.len > WZ_UNPACKED_MAX)
        return wz_fail(err, "%s: expected at most %d MiB when unpacked", path, WZ_UNPACKED_MAX >> 20);
    if (rc == Z_STREAM_END) return 0;
    return wz_fail(err, "%s: not valid gzip after %zu unpacked bytes: %s", path, text->unpacked.len,
                   z.msg ? z.msg : "it is cut off");
}

int wz_data_file_open(struct wz_data_file *text, const char *path, struct wz_err *err)
{
    *text = (struct wz_data_file){ 0 };
    if (wz_map_open(&text->map, path, err) < 0) return -1;
    const bool packed = text->map.len >= 2 && text->map.bytes[0] == 0x1f && text->map.bytes[1] == 0x8b;
    if (packed && unpack(text, path, err) < 0) {
        wz_data_file_close(text);
        return -1;
    }
    text->bytes = packed ? text->unpacked.data : (const char *)text->map.bytes;
    text->len = packed ? text->unpacked.len : text->map.len;
    const size_t mark = wz_utf8_mark(text->bytes, text->len);
    text->bytes += mark;
    text->len -= mark;
    return 0;
}

void wz_data_file_close(struct wz_data_file *text)
{
    wz_map_close(&text->map);
    wz_buf_finish(&text->unpacked);
    *text = (struct wz_data_file){ 0 };
}

int wz_data_rows_open(struct wz_data_rows *rows, const char *path, struct wz_err *err)
{
    size_t at = 0;

    *rows = (struct wz_data_rows){ .path = path };
    if (wz_data_file_open(&rows->text, path, err) < 0) return -1;
    while (at < rows->text.len && strchr(" \t\r\n", rows->text.bytes[at]) && rows->text.bytes[at]) at++;
    rows->lines = wz_lines_begin(rows->text.bytes, rows->text.len);
    if (at == rows->text.len || rows->text.bytes[at] != '[') return 0;
    rows->array = wz_json_parse(rows->text.bytes, rows->text.len, path, err);
    if (rows->array) return 0;
    wz_data_rows_close(rows);
    return -1;
}

static int next_line(struct wz_data_rows *r, struct wz_err *err)
{
    struct wz_lines *l = &r->lines;

    while (wz_lines_next(l)) {
        size_t valid = wz_utf8_valid(l->line, l->n), blank = 0;
        r->number = l->number;
        if (l->number == INT_MAX) return wz_fail(err, "%s: too many rows", r->path);
        if (valid < l->n)
            return wz_fail(err, "%s: row %d: byte %zu of it is not valid UTF-8", r->path, r->number, valid + 1);
        while (blank < l->n && strchr(" \t\r", l->line[blank])) blank++;
        if (blank == l->n) continue;
        char *place = wz_path("%s: row %d", r->path, r->number);
        r->row = wz_json_parse(l->line, l->n, place, err);
        free(place);
        return r->row ? 1 : -1;
    }
    return 0;
}

int wz_data_rows_next(struct wz_data_rows *r, struct wz_err *err)
{
    json_decref(r->row);
    r->row = NULL;
    if (!r->array) return next_line(r, err);
    r->row = json_incref(json_array_get(r->array, (size_t)r->number));
    r->number += r->row != NULL;
    return r->row != NULL;
}

void wz_data_rows_close(struct wz_data_rows *r)
{
    json_decref(r->row);
    json_decref(r->array);
    wz_data_file_close(&r->text);
    *r = (struct wz_data_rows){ 0 };
}
