/* Is a reply's final answer the right one? By rule, in the form of GSM8K (Cobbe et al. 2021), whose solutions end with
 *
 *     #### 1,250
 *
 * A reply is right where it has one such mark, with one number behind it and nothing else, which equals the answer's.
 * So several answers, a list with the right one in it, or a text behind it earn nothing. Numbers are compared exactly,
 * as fractions of whole numbers and a power of ten, however they are written:
 *
 *     1250   1,250   1{,}250   1250.0   +1250   $1250   \$1250   1.25e3   1.25 \times 10^3   2500/2   \frac{2500}{2}
 *
 * A percent sign is a unit: 25% is 25. What is no such number, or has more than 18 digits, must be the same text. */
#include "reward/reward.h"

#include <stdlib.h>
#include <string.h>

/* num / den * 10^ten. */
struct number {
    int64_t num, den;
    int ten;
};
#define MOST INT64_C(1000000000000000000) /* num and den are below */
enum { MOST_TEN = 1000 };

static const char mark[] = "####";

static bool take(const char **s, const char *word)
{
    size_t n = strlen(word);

    if (strncmp(*s, word, n) != 0) return false;
    *s += n;
    return true;
}

static void skip_blanks(const char **s) { *s += strspn(*s, " \t\n\v\f\r"); }

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static bool take_sign(const char **s) /* true: minus, which may be U+2212 */
{
    if (take(s, "-") || take(s, "\xe2\x88\x92")) return true;
    take(s, "+");
    return false;
}

static bool take_separator(const char **s)
{
    const char *t = *s;

    if (!take(&t, "{,}") && !take(&t, ",")) return false;
    if (!is_digit(t[0]) || !is_digit(t[1]) || !is_digit(t[2])) return false; /* groups of three */
    *s = t;
    return true;
}

/* One more digit, or false where they are too many. */
static bool put_digit(struct number *n, char c, bool fraction)
{
    if (n->num >= MOST / 10) return false;
    n->num = 10 * n->num + (c - '0');
    n->ten -= fraction;
    return true;
}

/* Digits with or without separators of thousands, and a fraction. */
static bool take_digits(const char **s, struct number *n)
{
    const char *first = *s;

    *n = (struct number){ 0, 1, 0 };
    while (is_digit(**s))
        if (!put_digit(n, *(*s)++, false)) return false;
    const bool whole = *s > first;
    if (whole && *s - first <= 3)
        while (take_separator(s))
            for (int i = 0; i < 3; i++)
                if (!put_digit(n, *(*s)++, false)) return false;
    if (**s != '.' || (!whole && !is_digit((*s)[1]))) return whole;
    for (++*s; is_digit(**s);) {
        const size_t zeros = strspn(*s, "0");
        if (!is_digit((*s)[zeros])) *s += zeros; /* those at the end say nothing */
        else if (!put_digit(n, *(*s)++, true)) return false;
    }
    return true;
}

/* A whole number, in braces or not. */
static bool take_power(const char **s, int *ten)
{
    const bool braces = take(s, "{"), minus = take_sign(s);
    int x = 0;

    if (!is_digit(**s)) return false;
    for (; is_digit(**s); ++*s)
        if ((x = 10 * x + (**s - '0')) > MOST_TEN) return false;
    *ten += minus ? -x : x;
    return !braces || take(s, "}");
}

static bool take_decimal(const char **s, struct number *n)
{
    const bool minus = take_sign(s);

    if (!take_digits(s, n)) return false;
    if (n->num == 10 && !n->ten && take(s, "^")) {
        n->num = minus ? -1 : 1;
        return take_power(s, &n->ten);
    }
    if (minus) n->num = -n->num;
    const char *t = *s;
    if (take(&t, "e") || take(&t, "E")) {
        if (!take_power(&t, &n->ten)) return false;
        *s = t;
        return true;
    }
    skip_blanks(&t);
    if (!take(&t, "\\times") && !take(&t, "\\cdot") && !take(&t, "\xc3\x97") && !take(&t, "x") && !take(&t, "*"))
        return true;
    skip_blanks(&t);
    if (!take(&t, "10^") || !take_power(&t, &n->ten)) return false;
    *s = t;
    return true;
}

/* a / b */
static bool divide(struct number *a, const struct number *b)
{
    if (!b->num) return false;
    a->den = b->num;
    a->ten -= b->ten;
    return true;
}

static bool take_number(const char **s, struct number *n)
{
    struct number below;
    const bool minus = take_sign(s);

    if (!take(s, "\\$")) take(s, "$");
    if (take(s, "\\frac{") || take(s, "\\dfrac{") || take(s, "\\tfrac{")) {
        if (!take_decimal(s, n) || !take(s, "}{") || !take_decimal(s, &below) || !take(s, "}") || !divide(n, &below))
            return false;
    } else {
        if (!take_decimal(s, n)) return false;
        if (take(s, "/") && (!take_decimal(s, &below) || !divide(n, &below))) return false;
    }
    if (minus) n->num = -n->num;
    if (!take(s, "\\%")) take(s, "%");
    return true;
}

/* x 10^by; false: it is larger than any product of two numbers' parts. */
static bool scale(__int128 *x, int by)
{
    const __int128 most = (__int128)MOST * MOST;

    for (; by > 0 && *x && -most < *x && *x < most; by--) *x *= 10;
    return by == 0 || !*x;
}

static bool equal(const struct number *a, const struct number *b)
{
    __int128 x = (__int128)a->num * b->den, y = (__int128)b->num * a->den;
    const int by = a->ten - b->ten;

    return scale(by > 0 ? &x : &y, abs(by)) && x == y;
}

/* A text that is one number, to its end. */
static bool read_number(const char *s, struct number *n)
{
    skip_blanks(&s);
    if (!take_number(&s, n)) return false;
    skip_blanks(&s);
    return !*s;
}

/* The same but for blanks. */
static bool same_text(const char *a, const char *b)
{
    for (;; a++, b++) {
        skip_blanks(&a);
        skip_blanks(&b);
        if (*a != *b || !*a) return *a == *b;
    }
}

bool wz_math_solved(const char *reply, const char *answer)
{
    const char *said = strstr(reply, mark), *right = answer;
    struct number a, b;

    for (const char *at; (at = strstr(right, mark));) right = at + strlen(mark);
    if (!said) return false;
    said += strlen(mark);
    if (!said[strspn(said, " \t\n\v\f\r")]) return false;
    return read_number(right, &b) ? read_number(said, &a) && equal(&a, &b) : same_text(said, right);
}
