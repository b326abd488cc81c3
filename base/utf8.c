/* UTF-8: validity, and characters cut off at the end. RFC 3629: no overlong forms, no surrogates, at most U+10FFFF. */
#include "base/base.h"

#include <string.h>

/* Length of the character at s if it is complete and valid, else 0; *cut: valid so far but cut off at n. */
static int char_len(const unsigned char *s, size_t n, bool *cut)
{
    unsigned char c = s[0], low = 0x80, high = 0xbf;
    int len;

    *cut = false;
    if (c < 0x80) return 1;
    if (c >= 0xc2 && c <= 0xdf) len = 2;
    else if (c >= 0xe0 && c <= 0xef) len = 3;
    else if (c >= 0xf0 && c <= 0xf4) len = 4;
    else return 0;
    if (c == 0xe0) low = 0xa0;
    if (c == 0xed) high = 0x9f;
    if (c == 0xf0) low = 0x90;
    if (c == 0xf4) high = 0x8f;
    for (int i = 1; i < len; i++) {
        if ((size_t)i == n) {
            *cut = true;
            return 0;
        }
        if (s[i] < low || s[i] > high) return 0;
        low = 0x80;
        high = 0xbf;
    }
    return len;
}

size_t wz_utf8_mark(const char *s, size_t n) { return n >= 3 && !memcmp(s, "\xef\xbb\xbf", 3) ? 3 : 0; }

size_t wz_utf8_valid(const char *s, size_t n)
{
    size_t i = 0;
    bool cut;

    while (i < n) {
        int len = char_len((const unsigned char *)s + i, n - i, &cut);
        if (!len) break;
        i += (size_t)len;
    }
    return i;
}

size_t wz_utf8_partial(const char *s, size_t n)
{
    bool cut;

    for (size_t back = 1; back <= 3 && back <= n; back++)
        if (char_len((const unsigned char *)s + n - back, back, &cut) == 0 && cut) return back;
    return 0;
}

size_t wz_utf8_bad(const char *s, size_t n)
{
    size_t bad = 1;

    while (bad < n && wz_utf8_partial(s, bad + 1) == bad + 1) bad++;
    return bad;
}

uint32_t wz_utf8_get(const char *s, size_t n, int *len)
{
    const unsigned char *u = (const unsigned char *)s;
    bool cut;
    int k = char_len(u, n, &cut);

    *len = k ? k : 1;
    switch (k) {
    case 2: return (u[0] & 0x1fu) << 6 | (u[1] & 0x3fu);
    case 3: return (u[0] & 0x0fu) << 12 | (u[1] & 0x3fu) << 6 | (u[2] & 0x3fu);
    case 4: return (u[0] & 0x07u) << 18 | (u[1] & 0x3fu) << 12 | (u[2] & 0x3fu) << 6 | (u[3] & 0x3fu);
    default: return u[0];
    }
}

int wz_utf8_put(char out[4], uint32_t c)
{
    int len = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned char lead[] = { 0, 0, 0xc0, 0xe0, 0xf0 };

    for (int i = len - 1; i > 0; i--, c >>= 6) out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)(lead[len] | c);
    return len;
}

/* What may do more than stand in a line: controls (C0, DEL, C1), line separators, and what turns the direction of
 * text. */
bool wz_is_control(uint32_t c)
{
    return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x61c || c == 0x200e || c == 0x200f ||
           (c >= 0x2028 && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069);
}

size_t wz_printable(char *to, size_t size, const char *s, size_t n, const char *keep)
{
    size_t used = 0;
    int len;

    for (size_t i = 0; i < n; i += (size_t)len) {
        uint32_t c = wz_utf8_get(s + i, n - i, &len);
        bool broken = len == 1 && c >= 0x80, kept = c && c < 0x80 && strchr(keep, (int)c);
        const char *letter = c && c < 0x80 ? strchr("\nn\tt\rr", (int)c) : NULL;
        char text[8];
        int k = len;
        if (kept || !(broken || wz_is_control(c))) memcpy(text, s + i, (size_t)len);
        else if (letter) k = snprintf(text, sizeof text, "\\%c", letter[1]);
        else k = snprintf(text, sizeof text, broken || c < 0x80 ? "\\x%02x" : "\\u%04x", (unsigned)c);
        if (used + (size_t)k >= size) break;
        memcpy(to + used, text, (size_t)k);
        used += (size_t)k;
    }
    to[used] = 0;
    return used;
}
