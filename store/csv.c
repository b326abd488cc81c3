/* CSV cells, for prompts and tables of results. */
#include "store/append.h"

#include <string.h>

int wz_csv_cell(const char **s, const char *end, char comma, struct wz_buf *cell)
{
    const char *p = *s;

    wz_buf_clear(cell);
    wz_buf_str(cell, ""); /* so that data is a string */
    if (p < end && *p == '"') {
        for (p++;; p++) {
            const char *quote = memchr(p, '"', (size_t)(end - p));
            if (!quote) return -1;
            wz_buf_add(cell, p, (size_t)(quote - p));
            p = quote + 1;
            if (p == end || *p != '"') break;
            wz_buf_str(cell, "\"");
        }
        if (end - p >= 2 && p[0] == '\r' && p[1] == '\n') p++;
        if (p < end && *p != comma && *p != '\n') return -1;
    } else {
        const char *from = p;
        while (p < end && *p != comma && *p != '\n') p++;
        wz_buf_add(cell, from, (size_t)(p - from) - (p < end && *p == '\n' && p > from && p[-1] == '\r'));
    }
    *s = p < end ? p + 1 : p;
    return p < end ? *p : 0;
}
