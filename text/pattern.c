/* Regexes of tokenizer files are Oniguruma's, in its Ruby syntax. PCRE2 with UTF, UCP and MULTILINE reads the same
 * language but for what is rewritten or refused here:
 *
 *   \s \S        White_Space, without U+180E            \w \W \b \B   Unicode's word characters: marks too
 *   \h \H        hexadecimal digits                     (?m)          "." matches line ends: (?s)
 *   [a[b]] [a&&b] [[:alpha:]]  sets within sets:        a{1,2}+       there (a{1,2})+, here possessive:
 *                refused                                              refused */
#include "text/tokenizer_inside.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

/* Word characters in a set. Outside of one Oniguruma also takes six numbers of Latin-1 for them. */
#define IN_SET "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"
#define WORD   IN_SET "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}"

/* What an escape becomes outside of a set, and inside of one (NULL: refused there). */
static const struct escape {
    char c;
    const char *outside, *inside;
} escapes[] = {
    { 's', "\\p{White_Space}", "\\p{White_Space}" },
    { 'S', "\\P{White_Space}", "\\P{White_Space}" },
    { 'w', "[" WORD "]", IN_SET },
    { 'W', "[^" WORD "]", NULL },
    { 'h', "[0-9a-fA-F]", "0-9a-fA-F" },
    { 'H', "[^0-9a-fA-F]", NULL },
    { 'b', "(?:(?<=[" WORD "])(?![" WORD "])|(?<![" WORD "])(?=[" WORD "]))", "\\x08" },
    { 'B', "(?:(?<=[" WORD "])(?=[" WORD "])|(?<![" WORD "])(?![" WORD "]))", NULL },
};

/* Options at p, behind "(?": i and x are the same, m is PCRE2's s; others, as in (?<name>...), are copied. */
static const char *options(const char *p, struct wz_buf *out)
{
    size_t n = strspn(p, "imx-");

    if (p[n] != ':' && p[n] != ')') n = 0;
    for (size_t i = 0; i < n; i++) wz_buf_str(out, p[i] == 'm' ? "s" : (char[]){ p[i], 0 });
    return p + n;
}

const char *wz_pattern_pcre(const char *p, struct wz_buf *out)
{
    bool set = false;

    while (*p) {
        if (*p == '\\' && p[1]) {
            const struct escape *e = NULL;
            for (size_t i = 0; i < WZ_COUNT(escapes) && !e; i++)
                if (escapes[i].c == p[1]) e = &escapes[i];
            if (e && set && !e->inside) return "\\W, \\H or \\B within [...]";
            const char *end = !e && p[2] == '{' ? strchr(p, '}') : NULL; /* of \p{L}, \x{2581} */
            if (e) wz_buf_str(out, set ? e->inside : e->outside);
            else wz_buf_add(out, p, end ? (size_t)(end - p) + 1 : 2);
            p = end ? end + 1 : p + 2;
            continue;
        }
        if (set && p[0] == '&' && p[1] == '&') return "&& within [...]";
        if (set && p[0] == '[') return "[ within [...]";
        if (!set && p[0] == '}' && p[1] == '+') return "{n,m}+";
        if (!set && p[0] == '(' && p[1] == '?') {
            wz_buf_str(out, "(?");
            p = options(p + 2, out);
            continue;
        }
        size_t n = 1;
        if (*p == '[') {
            set = true;
            if (p[n] == '^') n++;
            if (p[n] == ']') n++;
        } else if (*p == ']') {
            set = false;
        }
        wz_buf_add(out, p, n);
        p += n;
    }
    return NULL;
}

int wz_pattern_whole(const char *pattern, const char *text, struct wz_err *err)
{
    const uint32_t options = PCRE2_ANCHORED | PCRE2_ENDANCHORED | PCRE2_NEVER_BACKSLASH_C;
    PCRE2_UCHAR why[256];
    PCRE2_SIZE at;
    int code;

    pcre2_code *re = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, options, &code, &at, NULL);
    if (re) {
        pcre2_match_data *match = pcre2_match_data_create(1, NULL);
        if (!match) wz_die("out of memory for a regex");
        code = pcre2_match(re, (PCRE2_SPTR)text, strlen(text), 0, 0, match, NULL);
        pcre2_match_data_free(match);
        pcre2_code_free(re);
        if (code >= 0 || code == PCRE2_ERROR_NOMATCH) return code >= 0;
    }
    pcre2_get_error_message(code, why, sizeof why);
    return wz_fail(err, "\"%.200s\": %s", pattern, (char *)why);
}
