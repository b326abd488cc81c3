/* Names and numbers in messages and settings: misspelt names, choices, shortest decimals. */
#include "base/base.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

static const char *name_at(const void *first, size_t stride, int i)
{
    const char *name;

    memcpy(&name, (const char *)first + (size_t)i * stride, sizeof name);
    return name;
}

const void *wz_row_find(const void *first, size_t stride, const char *what, const char *name, struct wz_err *err)
{
    struct wz_buf names = { 0 };
    const char *other;

    for (int i = 0; (other = name_at(first, stride, i)); i++) {
        if (!strcmp(other, name)) {
            wz_buf_finish(&names);
            return (const char *)first + (size_t)i * stride;
        }
        wz_buf_printf(&names, "%s%s", i ? ", " : "", other);
    }
    wz_fail(err, "there is no %s '%s': expected one of %s", what, name, names.data);
    wz_buf_finish(&names);
    return NULL;
}

/* Edit distance with a swap of neighbours as one edit (optimal string alignment), over at most 64 characters. */
static int distance(const char *a, const char *b)
{
    int n = (int)strlen(a), m = (int)strlen(b), row[3][65];

    if (n > 64 || m > 64) return INT_MAX;
    for (int j = 0; j <= m; j++) row[0][j] = j;
    for (int i = 1; i <= n; i++) {
        int *now = row[i % 3], *up = row[(i + 2) % 3], *up2 = row[(i + 1) % 3];
        now[0] = i;
        for (int j = 1; j <= m; j++) {
            int best = up[j - 1] + (a[i - 1] != b[j - 1]);
            if (up[j] + 1 < best) best = up[j] + 1;
            if (now[j - 1] + 1 < best) best = now[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && up2[j - 2] + 1 < best)
                best = up2[j - 2] + 1;
            now[j] = best;
        }
    }
    return row[n % 3][m];
}

const char *wz_nearest(const char *name, const void *first, size_t stride, int n)
{
    int best = INT_MAX;
    const char *found = NULL;

    for (int i = 0; i < n; i++) {
        const char *other = name_at(first, stride, i);
        int d = distance(name, other), longer = (int)(strlen(name) > strlen(other) ? strlen(name) : strlen(other));
        /* Up to a third of the letters may differ. A part of the name, of 3 letters or more, counts as one edit. */
        bool part = strlen(name) >= 3 && strstr(other, name);
        if (part) d = 1;
        if (d < best && (part || d <= (longer + 2) / 3)) {
            best = d;
            found = other;
        }
    }
    return found;
}

bool wz_is_choice(const char *choices, const char *word)
{
    size_t n = strlen(word);

    for (const char *p = choices;; p++) {
        size_t len = strcspn(p, "|");
        if (len == n && !memcmp(p, word, n)) return true;
        p += len;
        if (!*p) return false;
    }
}

void wz_real_add(struct wz_buf *out, double x)
{
    char text[32], *e;
    int digits = 1;

    do snprintf(text, sizeof text, "%.*e", digits - 1, x);
    while (strtod(text, NULL) != x && digits++ < 17);
    e = strchr(text, 'e');
    int power = e ? atoi(e + 1) : 0;
    if (!e || (power >= -4 && power < 16)) /* 300 and 0.0005, but 1e-8 and 5e+20 */
        wz_buf_printf(out, "%.*g", digits > power + 1 ? digits : power + 1, x);
    else wz_buf_printf(out, "%.*se%d", (int)(e - text), text, power);
}
