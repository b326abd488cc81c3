/* Unicode, by libutf8proc: the normal forms, lower case and accents of a tokenizer.json's normalizers, and the classes
 * of characters beside an added token. Each rewrite agrees with what `tokenizers` does, which Rust's library defines:
 *
 *   NFC, NFD, NFKC, NFKD   Unicode Standard Annex 15
 *   Lowercase              each character by itself, so no final sigma; U+0130 becomes two characters
 *   StripAccents           drops all marks (categories Mn, Mc, Me), and does not decompose before
 *   Strip                  drops White_Space at the ends */
#include "text/tokenizer_inside.h"

#include <stdlib.h>

#include <utf8proc.h>

bool wz_char_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) ||
           c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

/* \w of Unicode Technical Standard 18: Alphabetic, marks, decimal digits, connectors, the two joiners. Of Alphabetic,
 * what is neither a letter, a mark nor a letter number are circled and squared letters. */
bool wz_char_word(uint32_t c)
{
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC: return true;
    default:
        return c == 0x200c || c == 0x200d || (c >= 0x24b6 && c <= 0x24e9) || (c >= 0x1f130 && c <= 0x1f149) ||
               (c >= 0x1f150 && c <= 0x1f169) || (c >= 0x1f170 && c <= 0x1f189);
    }
}

bool wz_char_alnum(uint32_t c)
{
    const char *name = utf8proc_category_string((utf8proc_int32_t)c);

    return c == '_' || name[0] == 'L' || name[0] == 'N';
}

bool wz_char_digit(uint32_t c) { return utf8proc_category((utf8proc_int32_t)c) == UTF8PROC_CATEGORY_ND; }

uint32_t wz_char_lower(uint32_t c) { return (uint32_t)utf8proc_tolower((utf8proc_int32_t)c); }

uint32_t wz_char_before(const char *s, size_t n, int *len)
{
    *len = 1;
    while ((size_t)*len < n && (s[n - (size_t)*len] & 0xc0) == 0x80) ++*len;
    return wz_utf8_get(s + n - *len, (size_t)*len, len);
}

static void form(const char *s, size_t n, utf8proc_option_t options, struct wz_buf *out)
{
    utf8proc_uint8_t *to = NULL;
    utf8proc_ssize_t len = utf8proc_map((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)n, &to, options);

    if (len < 0) wz_die("Unicode normalization of %zu bytes: %s", n, utf8proc_errmsg(len));
    wz_buf_add(out, (const char *)to, (size_t)len);
    free(to);
}

void wz_normalize(enum wz_form to, const char *s, size_t n, struct wz_buf *out)
{
    static const int options[] = {
        [WZ_NFC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE,
        [WZ_NFD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE,
        [WZ_NFKC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT,
        [WZ_NFKD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT,
    };
    char utf8[4];
    int len;

    if (to <= WZ_NFKD) {
        form(s, n, (utf8proc_option_t)options[to], out);
        return;
    }
    if (to == WZ_STRIP_LEFT || to == WZ_STRIP_RIGHT) {
        size_t from = 0;
        while (to == WZ_STRIP_LEFT && from < n && wz_char_space(wz_utf8_get(s + from, n - from, &len)))
            from += (size_t)len;
        while (to == WZ_STRIP_RIGHT && n && wz_char_space(wz_char_before(s, n, &len))) n -= (size_t)len;
        wz_buf_add(out, s + from, n - from);
        return;
    }
    for (size_t at = 0; at < n; at += (size_t)len) {
        const uint32_t c = wz_utf8_get(s + at, n - at, &len);
        const utf8proc_category_t kind = utf8proc_category((utf8proc_int32_t)c);
        const bool mark = kind == UTF8PROC_CATEGORY_MN || kind == UTF8PROC_CATEGORY_MC || kind == UTF8PROC_CATEGORY_ME;
        if (to == WZ_STRIP_ACCENTS && mark) continue;
        if (to == WZ_STRIP_ACCENTS) wz_buf_add(out, s + at, (size_t)len);
        else if (c == 0x130) wz_buf_str(out, "i\xcc\x87");
        else wz_buf_add(out, utf8, (size_t)wz_utf8_put(utf8, (uint32_t)utf8proc_tolower((utf8proc_int32_t)c)));
    }
}
