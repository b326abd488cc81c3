/* A chat template's source to its tree. White space as transformers sets Jinja: the line feed behind a block goes
 * (trim_blocks), blanks between the beginning of a line and a block go (lstrip_blocks), "-" takes all, "+" nothing. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "text/jinja.h"

enum token { T_END, T_NAME, T_STRING, T_INT, T_FLOAT, T_OP, T_CLOSE }; /* T_CLOSE: }} or %} */

struct parser {
    struct wz_jinja *j;
    const char *s, *end; /* what is left, behind the current token */
    const char *counted; /* lines were counted up to here */
    enum token type;     /* the current token... */
    const char *word;    /* ...and its text */
    size_t n;
    struct wz_value value; /* of a string or number */
    int open;              /* brackets: }} closes no print within them */
    bool line_start;       /* nothing but what was trimmed stands before s on its line */
    int loops;
};

static _Noreturn void expected(struct parser *p, const char *what)
{
    if (p->type == T_END) wz_jinja_fail(p->j, "expected %s, got the end of the template", what);
    wz_jinja_fail(p->j, "expected %s, got %.*s", what, (int)(p->n < 40 ? p->n : 40), p->word);
}

static void enter(struct parser *p)
{
    if (++p->j->depth > WZ_JINJA_DEPTH) wz_jinja_fail(p->j, "nested more than %d deep", WZ_JINJA_DEPTH);
}

static struct wz_node *node(struct parser *p, enum wz_node_op op)
{
    struct wz_node *n = wz_jinja_alloc(p->j, sizeof *n);

    n->op = op;
    n->line = p->j->line;
    return n;
}

/* ---- tokens ----------------------------------------------------------------------------------------------- */

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static bool is_word(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || is_digit(c) || c == '_'; }

static bool is_blank(char c) { return c == ' ' || (c >= 9 && c <= 13); }

static void count_lines(struct parser *p)
{
    for (; p->counted < p->s; p->counted++) p->j->line += *p->counted == '\n';
}

/* Behind a tag: its sign and whether it was a block decide what goes. */
static void after_tag(struct parser *p, char sign, bool block)
{
    const char *from = p->s;

    if (sign == '-')
        while (p->s < p->end && is_blank(*p->s)) p->s++;
    else if (block && sign != '+' && p->s < p->end && *p->s == '\n') p->s++;
    p->line_start = p->s > from && p->s[-1] == '\n';
}

static int hex_of(const char *s, int n)
{
    int code = 0;

    for (int i = 0; i < n; i++) {
        const char *digits = "0123456789abcdef", *at = s[i] ? strchr(digits, s[i] | 32) : NULL;
        if (!at || s[i] < '0') return -1;
        code = code * 16 + (int)(at - digits);
    }
    return code;
}

/* A string literal with Python's escapes; p->s is at its quote. */
static void read_string(struct parser *p)
{
    static const char from[] = "nrtbfav\\'\"0", to[] = "\n\r\t\b\f\a\v\\'\"";
    struct wz_writing w = { 0 };
    const char quote = *p->s++, *begin = p->s;

    for (; p->s < p->end && *p->s != quote; p->s++) {
        if (*p->s != '\\' || p->s + 1 >= p->end) {
            wz_write_bytes(p->j, &w, p->s, 1, 0);
            continue;
        }
        const char c = *++p->s, *at = c ? strchr(from, c) : NULL;
        const int digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
        const int code = digits && p->end - p->s > digits ? hex_of(p->s + 1, digits) : -1;
        char utf8[4];
        if (code > 0 && code < 0x110000 && (code < 0xd800 || code > 0xdfff)) {
            wz_write_bytes(p->j, &w, utf8, (size_t)wz_utf8_put(utf8, (uint32_t)code), 0);
            p->s += digits;
        } else if (digits || c == '0') wz_jinja_fail(p->j, "a string has the escape \\%c, which names no character", c);
        else if (at) wz_write_bytes(p->j, &w, &to[at - from], 1, 0);
        else if (c != '\n') {
            wz_write_bytes(p->j, &w, p->s - 1, 1, 0);
            wz_write_bytes(p->j, &w, p->s, 1, 0);
        }
    }
    if (p->s >= p->end) wz_jinja_fail(p->j, "a string has no end: %.40s", begin);
    p->s++;
    p->type = T_STRING;
    p->value = wz_written(p->j, &w);
}

static void read_number(struct parser *p)
{
    const char *s = p->s;
    char digits[64] = "", *end;
    size_t n = 0;
    bool real = false;

    for (; n < sizeof digits - 1; s++) { /* 1_000, 1.5e-7, but 1.x is an element */
        const bool exponent = n && (s[-1] | 32) == 'e' && (*s == '-' || *s == '+');
        if (*s == '_') continue;
        if (!is_digit(*s) && !exponent && (*s | 32) != 'e' && !(*s == '.' && !real && is_digit(s[1]))) break;
        real = real || !is_digit(*s);
        digits[n++] = *s;
    }
    p->type = real ? T_FLOAT : T_INT;
    p->value = real ? wz_float(strtod(digits, &end)) : wz_int(strtoll(digits, &end, 10));
    if (*end || n == sizeof digits - 1 || (!real && n > 18)) wz_jinja_fail(p->j, "%s is no number", digits);
    p->s = s;
}

/* Reads the next token of a tag. */
static void advance(struct parser *p)
{
    static const char *const two[] = { "==", "!=", "<=", ">=", "//", "**" };

    while (p->s < p->end && is_blank(*p->s)) p->s++;
    count_lines(p);
    const char *s = p->s;
    const size_t left = (size_t)(p->end - s);
    p->word = s;
    p->type = T_END;
    if (!left) return;
    const bool sign = left > 2 && (*s == '-' || *s == '+');
    if (!p->open && left - sign >= 2 && s[sign + 1] == '}' && (s[sign] == '}' || s[sign] == '%')) {
        p->s += sign + 2;
        p->type = T_CLOSE;
        p->n = (size_t)sign + 2;
        after_tag(p, sign ? *s : 0, s[sign] == '%');
        return;
    }
    if (*s == '\'' || *s == '"') read_string(p);
    else if (is_digit(*s)) read_number(p);
    else if (is_word(*s)) {
        while (p->s < p->end && is_word(*p->s)) p->s++;
        p->type = T_NAME;
    } else {
        p->type = T_OP;
        p->s++;
        for (size_t i = 0; left > 1 && i < WZ_COUNT(two); i++)
            if (!memcmp(s, two[i], 2)) p->s = s + 2;
        if (!strchr("=!<>/*+-~%|.,:()[]{}", *s)) wz_jinja_fail(p->j, "unexpected character '%c'", *s);
        p->open += strchr("([{", *s) ? 1 : strchr(")]}", *s) ? -1 : 0;
        if (p->open < 0) wz_jinja_fail(p->j, "unexpected %c", *s);
    }
    p->n = (size_t)(p->s - s);
}

static bool is(const struct parser *p, enum token type, const char *word)
{
    return p->type == type && strlen(word) == p->n && !memcmp(p->word, word, p->n);
}

/* Takes the token if it is this one. */
static bool take(struct parser *p, enum token type, const char *word)
{
    if (!is(p, type, word)) return false;
    advance(p);
    return true;
}

static void need(struct parser *p, enum token type, const char *word)
{
    if (!take(p, type, word)) expected(p, word);
}

static const char *need_name(struct parser *p, const char *what)
{
    if (p->type != T_NAME) expected(p, what);
    char *name = wz_jinja_alloc(p->j, p->n + 1);
    memcpy(name, p->word, p->n);
    advance(p);
    return name;
}

/* ---- expressions ------------------------------------------------------------------------------------------ */

static struct wz_node *expression(struct parser *p);

/* One or, with commas, a tuple; `until` closes it. whole: with if and else, which a loop's own "if" is not. */
static struct wz_node *tuple(struct parser *p, const char *until, bool whole);

/* Arguments of a call, a list, a dictionary; p is behind the bracket that opens it. */
static struct wz_node *elements(struct parser *p, const char *close, bool keywords, bool pairs)
{
    struct wz_node *first = NULL, **last = &first;

    while (!take(p, T_OP, close)) {
        struct wz_node *n = expression(p);
        if (keywords && is(p, T_OP, "=") && n->op == WZ_N_NAME) {
            advance(p);
            n->op = WZ_N_KEYWORD;
            n->a = expression(p);
        }
        *last = n;
        last = &n->next;
        if (pairs) {
            need(p, T_OP, ":");
            *last = expression(p);
            last = &(*last)->next;
        }
        if (!is(p, T_OP, close)) need(p, T_OP, ",");
    }
    return first;
}

static struct wz_node *of_elements(struct parser *p, enum wz_node_op op, const char *close)
{
    struct wz_node *n = node(p, op);

    advance(p);
    n->list = elements(p, close, false, op == WZ_N_DICT);
    return n;
}

static struct wz_node *constant(struct parser *p, struct wz_value v)
{
    struct wz_node *n = node(p, WZ_N_CONST);

    n->value = v;
    return n;
}

static struct wz_node *primary(struct parser *p)
{
    struct wz_node *n;

    if (p->type == T_STRING) {
        struct wz_writing w = { 0 };
        n = node(p, WZ_N_CONST);
        for (; p->type == T_STRING; advance(p)) wz_write(p->j, &w, p->value.text);
        n->value = wz_written(p->j, &w);
    } else if (p->type == T_INT || p->type == T_FLOAT) {
        n = constant(p, p->value);
        advance(p);
    } else if (p->type == T_NAME) {
        if (take(p, T_NAME, "true") || take(p, T_NAME, "True")) return constant(p, wz_bool(true));
        if (take(p, T_NAME, "false") || take(p, T_NAME, "False")) return constant(p, wz_bool(false));
        if (take(p, T_NAME, "none") || take(p, T_NAME, "None")) return constant(p, wz_none());
        n = node(p, WZ_N_NAME);
        n->name = need_name(p, "a name");
    } else if (is(p, T_OP, "(")) {
        advance(p);
        n = is(p, T_OP, ")") ? node(p, WZ_N_TUPLE) : tuple(p, ")", true);
        need(p, T_OP, ")");
    } else if (is(p, T_OP, "[")) n = of_elements(p, WZ_N_LIST, "]");
    else if (is(p, T_OP, "{")) n = of_elements(p, WZ_N_DICT, "}");
    else expected(p, "an expression");
    return n;
}

static struct wz_node *subscript(struct parser *p, struct wz_node *of)
{
    struct wz_node *n = node(p, WZ_N_ITEM), **part[] = { &n->b, &n->c, &n->d };
    int at = 0;

    n->a = of;
    while (!is(p, T_OP, "]")) {
        if (is(p, T_OP, ":") && at < 2) {
            n->op = WZ_N_SLICE;
            at++;
            advance(p);
        } else if (!*part[at]) *part[at] = expression(p);
        else expected(p, "]");
    }
    if (!at && !n->b) expected(p, "an index");
    need(p, T_OP, "]");
    return n;
}

/* What follows a value directly: .name, [index], (arguments). */
static struct wz_node *postfix(struct parser *p, struct wz_node *n)
{
    for (;; enter(p)) { /* a chain of them is as deep as it is long */
        struct wz_node *of = n;
        if (take(p, T_OP, ".")) {
            n = node(p, WZ_N_ITEM);
            n->a = of;
            n->sign = '.';
            if (p->type == T_INT) {
                n->b = constant(p, p->value);
                advance(p);
            } else {
                n->name = need_name(p, "a name behind the dot");
                n->b = constant(p, wz_text_value(p->j, n->name, strlen(n->name)));
            }
        } else if (take(p, T_OP, "[")) n = subscript(p, of);
        else if (take(p, T_OP, "(")) {
            n = node(p, WZ_N_CALL);
            n->a = of;
            n->list = elements(p, ")", true, false);
        } else return n;
    }
}

static struct wz_node *not_this(struct parser *p, struct wz_node *of)
{
    struct wz_node *n = node(p, WZ_N_LOGIC);

    n->sign = '!';
    n->a = of;
    return n;
}

/* A filter or a test by its name, and its arguments in brackets. */
static void named(struct parser *p, struct wz_node *n)
{
    n->name = need_name(p, n->op == WZ_N_TEST ? "the name of a test" : "the name of a filter");
    n->row = wz_name_find(n->op == WZ_N_TEST ? wz_tests : wz_filters, n->name, strlen(n->name));
    if (take(p, T_OP, "(")) n->list = elements(p, ")", true, false);
}

static struct wz_node *test(struct parser *p, struct wz_node *of)
{
    static const char *const others[] = { "else", "or", "and", "if", "is", "in", "not" };
    const bool inverse = take(p, T_NAME, "not");
    struct wz_node *n = node(p, WZ_N_TEST);

    n->a = of;
    named(p, n);
    bool argument = !n->list && (p->type != T_OP || is(p, T_OP, "[") || is(p, T_OP, "{"));
    if (p->type == T_CLOSE || p->type == T_END) argument = false;
    for (size_t i = 0; i < WZ_COUNT(others); i++) argument = argument && !is(p, T_NAME, others[i]);
    if (argument) n->list = postfix(p, primary(p));
    return inverse ? not_this(p, n) : n;
}

static struct wz_node *unary(struct parser *p, bool filters)
{
    const int depth = p->j->depth;
    struct wz_node *n;

    enter(p);
    if (is(p, T_OP, "-") || is(p, T_OP, "+")) {
        n = node(p, WZ_N_SUM); /* 0 - a, 0 + a */
        n->sign = *p->word;
        n->a = constant(p, wz_int(0));
        advance(p);
        n->b = unary(p, false);
    } else n = primary(p);
    n = postfix(p, n);
    for (; filters; enter(p)) {
        struct wz_node *of = n;
        if (take(p, T_OP, "|")) {
            n = node(p, WZ_N_FILTER);
            n->a = of;
            named(p, n);
        } else if (take(p, T_NAME, "is")) n = test(p, of);
        else if (is(p, T_OP, "(")) n = postfix(p, of);
        else break;
    }
    p->j->depth = depth;
    return n;
}

/* Levels of binary operators, the loosest first. Those of one level are taken from the left. */
enum { L_OR, L_AND, L_NOT, L_COMPARE, L_SUM, L_JOIN, L_PRODUCT, L_POWER, L_UNARY };
static const struct binary {
    const char *word;
    int level;
    char sign; /* of the node */
} binaries[] = { { "or", L_OR, '|' },       { "and", L_AND, '&' },    { "in", L_COMPARE, 'i' },
                 { "not", L_COMPARE, 'n' }, { "==", L_COMPARE, '=' }, { "!=", L_COMPARE, '#' },
                 { "<", L_COMPARE, '<' },   { "<=", L_COMPARE, '{' }, { ">", L_COMPARE, '>' },
                 { ">=", L_COMPARE, '}' },  { "+", L_SUM, '+' },      { "-", L_SUM, '-' },
                 { "~", L_JOIN, '~' },      { "*", L_PRODUCT, '*' },  { "/", L_PRODUCT, '/' },
                 { "//", L_PRODUCT, '_' },  { "%", L_PRODUCT, '%' },  { "**", L_POWER, '^' } };

static const struct binary *take_binary(struct parser *p, int level)
{
    for (size_t i = 0; i < WZ_COUNT(binaries); i++) {
        const struct binary *b = &binaries[i];
        const struct parser before = *p;
        const int line = p->j->line;
        if (b->level != level || !take(p, is_word(*b->word) ? T_NAME : T_OP, b->word)) continue;
        if (b->sign != 'n' || take(p, T_NAME, "in")) return b;
        *p = before;
        p->j->line = line;
    }
    return NULL;
}

static struct wz_node *binary(struct parser *p, int level)
{
    const int depth = p->j->depth;
    const struct binary *b;
    struct wz_node *left, **last = NULL;

    if (level == L_UNARY) return unary(p, true);
    if (level == L_NOT && is(p, T_NAME, "not")) {
        advance(p);
        enter(p);
        left = not_this(p, binary(p, L_NOT));
        p->j->depth = depth;
        return left;
    }
    left = binary(p, level + 1);
    for (; (b = take_binary(p, level)); enter(p)) {
        struct wz_node *n = node(p, level < L_NOT ? WZ_N_LOGIC : WZ_N_SUM), *right = binary(p, level + 1);
        n->sign = b->sign;
        n->name = b->word;
        if (level != L_COMPARE) {
            n->a = left;
            n->b = right;
            left = n;
            continue;
        }
        n->a = right;
        if (!last) {
            struct wz_node *chain = node(p, WZ_N_COMPARE);
            chain->a = left;
            last = &chain->list;
            left = chain;
        }
        *last = n;
        last = &n->next;
    }
    p->j->depth = depth;
    return left;
}

static struct wz_node *expression(struct parser *p)
{
    const int depth = p->j->depth;

    enter(p);
    struct wz_node *n = binary(p, L_OR);
    for (; is(p, T_NAME, "if"); enter(p)) {
        struct wz_node *choice = node(p, WZ_N_IF_ELSE);
        advance(p);
        choice->a = n;
        choice->b = binary(p, L_OR);
        if (take(p, T_NAME, "else")) choice->c = expression(p);
        n = choice;
    }
    p->j->depth = depth;
    return n;
}

static struct wz_node *tuple(struct parser *p, const char *until, bool whole)
{
    struct wz_node *first = whole ? expression(p) : binary(p, L_OR), **last = &first->next, *n;

    if (!is(p, T_OP, ",")) return first;
    n = node(p, WZ_N_TUPLE);
    n->list = first;
    while (take(p, T_OP, ",") && !is(p, T_OP, until) && !is(p, T_NAME, until) && p->type != T_CLOSE) {
        *last = whole ? expression(p) : binary(p, L_OR);
        last = &(*last)->next;
    }
    return n;
}

/* ---- statements ------------------------------------------------------------------------------------------- */

static struct wz_node *body(struct parser *p, const char *ends);

/* What is assigned to: a name, names, or one.name of a namespace. */
static struct wz_node *target(struct parser *p, const char *until)
{
    struct wz_node *n = NULL, *first = NULL, **last = &first;

    do {
        if (is(p, T_NAME, until)) break;
        n = node(p, WZ_N_NAME);
        n->name = need_name(p, "a name");
        if (take(p, T_OP, ".")) {
            struct wz_node *of = n;
            n = node(p, WZ_N_ITEM);
            n->a = of;
            n->name = need_name(p, "a name behind the dot");
        }
        *last = n;
        last = &n->next;
    } while (take(p, T_OP, ","));
    if (!first) expected(p, "a name");
    if (first == n) return first;
    n = node(p, WZ_N_TUPLE);
    n->list = first;
    return n;
}

static void close_tag(struct parser *p)
{
    if (p->type != T_CLOSE) expected(p, "the end of the tag");
}

/* The body of a tag that was opened, up to {% end %}, p behind its name. */
static struct wz_node *until(struct parser *p, const char *end)
{
    close_tag(p);
    struct wz_node *list = body(p, end);
    need(p, T_NAME, end);
    return list;
}

static struct wz_node *as_string(struct parser *p, const char *end)
{
    struct wz_node *n = node(p, WZ_N_BODY);

    n->list = until(p, end);
    return n;
}

static struct wz_node *parse_if(struct parser *p)
{
    struct wz_node *first = NULL, **last = &first;
    bool otherwise = false;

    for (;;) {
        struct wz_node *n = *last = node(p, WZ_S_IF);
        last = &n->d;
        if (!otherwise) n->a = tuple(p, "", true);
        close_tag(p);
        n->list = body(p, otherwise ? "endif" : "elif|else|endif");
        if (take(p, T_NAME, "endif")) return first;
        otherwise = is(p, T_NAME, "else");
        advance(p);
    }
}

static struct wz_node *parse_for(struct parser *p)
{
    struct wz_node *n = node(p, WZ_S_FOR);

    n->a = target(p, "in");
    need(p, T_NAME, "in");
    n->b = tuple(p, "if", false);
    if (take(p, T_NAME, "if")) n->c = expression(p);
    if (is(p, T_NAME, "recursive")) wz_jinja_fail(p->j, "recursive loops are not supported");
    close_tag(p);
    p->loops++;
    n->list = body(p, "else|endfor");
    p->loops--;
    if (take(p, T_NAME, "else")) n->d = until(p, "endfor");
    else need(p, T_NAME, "endfor");
    return n;
}

static struct wz_node *parse_set(struct parser *p)
{
    struct wz_node *n = node(p, WZ_S_SET);

    n->a = target(p, "=");
    n->b = take(p, T_OP, "=") ? tuple(p, "", true) : as_string(p, "endset");
    return n;
}

static struct wz_node *parse_macro(struct parser *p)
{
    struct wz_node *n = node(p, WZ_S_MACRO), **last = &n->a;
    const int loops = p->loops;

    n->name = need_name(p, "the macro's name");
    need(p, T_OP, "(");
    while (!take(p, T_OP, ")")) {
        struct wz_node *parameter = *last = node(p, WZ_N_KEYWORD);
        last = &parameter->next;
        parameter->name = need_name(p, "a parameter's name");
        if (take(p, T_OP, "=")) parameter->a = expression(p);
        if (!is(p, T_OP, ")")) need(p, T_OP, ",");
    }
    p->loops = 0;
    n->list = until(p, "endmacro");
    p->loops = loops;
    return n;
}

/* {% filter name %} ... {% endfilter %}: printed. */
static struct wz_node *parse_filter(struct parser *p)
{
    struct wz_node *n = node(p, WZ_S_PRINT), *f = n->a = node(p, WZ_N_FILTER);

    named(p, f);
    f->a = as_string(p, "endfilter");
    return n;
}

/* {% generation %}: what an assistant writes. It is written as it stands. */
static struct wz_node *parse_generation(struct parser *p)
{
    struct wz_node *n = node(p, WZ_S_PRINT);

    n->a = as_string(p, "endgeneration");
    return n;
}

static struct wz_node *in_loop(struct parser *p, enum wz_node_op op)
{
    if (!p->loops) wz_jinja_fail(p->j, "break and continue belong into a loop");
    return node(p, op);
}
static struct wz_node *parse_break(struct parser *p) { return in_loop(p, WZ_S_BREAK); }
static struct wz_node *parse_continue(struct parser *p) { return in_loop(p, WZ_S_CONTINUE); }

static const struct statement {
    const char *name;
    struct wz_node *(*parse)(struct parser *p);
} statements[] = {
    { "if", parse_if },       { "for", parse_for },           { "set", parse_set },
    { "macro", parse_macro }, { "filter", parse_filter },     { "generation", parse_generation },
    { "break", parse_break }, { "continue", parse_continue }, { 0 },
};

/* ---- text and tags ---------------------------------------------------------------------------------------- */

/* The first tag in s[0..n): "{{", "{%" or "{#"; the end where there is none. */
static const char *find_tag(const char *s, const char *end)
{
    for (; end - s >= 2; s++)
        if (*s == '{' && (s[1] == '{' || s[1] == '%' || s[1] == '#')) return s;
    return end;
}

/* Text from `begin` up to a tag at `at`, less what the tag's sign and kind take from its end; p->s is set behind the
 * tag's opening. NULL: nothing is left. */
static struct wz_node *text_before(struct parser *p, const char *begin, const char *at)
{
    const char *end = at, *line, tag = at < p->end ? at[1] : 0, sign = p->end - at > 2 ? at[2] : 0;
    struct wz_node *n = NULL;

    if (tag && sign == '-') {
        while (end > begin && is_blank(end[-1])) end--;
    } else if ((tag == '%' || tag == '#') && sign != '+') {
        for (line = at; line > begin && line[-1] != '\n' && is_blank(line[-1]); line--) continue;
        if (line == begin ? p->line_start : line[-1] == '\n') end = line;
    }
    if (end > begin) {
        n = constant(p, wz_text_value(p->j, begin, (size_t)(end - begin)));
        n->op = WZ_S_TEXT;
    }
    p->s = tag ? at + 2 + (sign == '-' || (sign == '+' && tag != '{')) : p->end;
    count_lines(p);
    return n;
}

static void skip_comment(struct parser *p)
{
    const char *end = memmem(p->s, (size_t)(p->end - p->s), "#}", 2);

    if (!end) wz_jinja_fail(p->j, "a comment has no end");
    const char sign = end > p->s ? end[-1] : 0;
    p->s = end + 2;
    after_tag(p, sign, true);
}

/* {% raw %} ... {% endraw %}: the text between them, which may hold tags. The line feed behind the first stays. */
static struct wz_node *read_raw(struct parser *p)
{
    if (*p->word == '%') p->s = p->word + 2;
    p->line_start = false;
    const char *begin = p->s;

    for (const char *at = begin; (at = memmem(at, (size_t)(p->end - at), "{%", 2)); at += 2) {
        const char *s = at + 2 + (at[2] == '-' || at[2] == '+');
        while (is_blank(*s)) s++;
        if (strncmp(s, "endraw", 6) != 0) continue;
        struct wz_node *n = text_before(p, begin, at);
        p->s = s + 6;
        advance(p);
        return n;
    }
    wz_jinja_fail(p->j, "{%% raw %%} has no end");
}

/* Statements up to a tag that is one of `ends` ("else|endif"; "": the end of the template), which becomes the current
 * token. */
static struct wz_node *body(struct parser *p, const char *ends)
{
    struct wz_node *first = NULL, **last = &first;
    char name[24];

    enter(p);
    for (;;) {
        const struct statement *row = statements;
        const char *at = find_tag(p->s, p->end), tag = at < p->end ? at[1] : 0;
        struct wz_node *n = text_before(p, p->s, at);
        if (n) {
            *last = n;
            last = &n->next;
        }
        if (tag == '#') {
            skip_comment(p);
            continue;
        }
        if (tag) advance(p);
        else p->type = T_END;
        if (tag == '{') {
            n = node(p, WZ_S_PRINT);
            n->a = tuple(p, "", true);
            if (p->type != T_CLOSE || p->word[p->n - 2] != '}') expected(p, "}}");
        } else {
            snprintf(name, sizeof name, "%.*s", (int)(p->type == T_NAME ? p->n : 0), p->type == T_NAME ? p->word : "");
            if (p->type == T_END && !*ends) break;
            if (*name && wz_is_choice(ends, name)) break;
            if (p->type == T_END) expected(p, ends);
            while (row->name && strcmp(row->name, name) != 0) row++;
            if (take(p, T_NAME, "raw")) {
                close_tag(p);
                n = read_raw(p);
            } else if (!row->name) wz_jinja_fail(p->j, "the tag \"%s\" is unknown or not supported", name);
            else {
                advance(p);
                n = row->parse(p);
            }
            if (p->type != T_CLOSE || p->word[p->n - 2] != '%') expected(p, "%}");
        }
        if (!n) continue;
        *last = n;
        last = &n->next;
    }
    p->j->depth--;
    return first;
}

/* The source as Jinja reads it: every end of line a line feed, without the last. */
static void begin(struct parser *p, const char *source)
{
    const size_t n = strlen(source), valid = wz_utf8_valid(source, n);
    char *s = wz_jinja_alloc(p->j, n + 1), *to = s;

    if (valid < n) wz_jinja_fail(p->j, "invalid UTF-8 at byte %zu", valid);
    for (const char *from = source; *from; from++) {
        if (*from == '\r' && from[1] == '\n') continue;
        *to++ = *from == '\r' ? '\n' : *from;
    }
    if (to > s && to[-1] == '\n') to--;
    *to = 0;
    p->s = p->counted = s;
    p->end = to;
    p->line_start = true;
}

/* Alone, so that no variable lives across the jump. */
static int parse(struct wz_jinja *j, const char *source, const struct wz_node **tree)
{
    struct parser p = { .j = j };

    if (setjmp(j->bail)) return -1;
    j->line = 1;
    if (strnlen(source, WZ_JINJA_SOURCE) == WZ_JINJA_SOURCE)
        wz_jinja_fail(j, "it is longer than %d bytes", WZ_JINJA_SOURCE - 1);
    begin(&p, source);
    *tree = body(&p, "");
    return 0;
}

struct wz_program *wz_jinja_parse(const char *source, const char *name, struct wz_err *err)
{
    struct wz_program *program = wz_alloc(sizeof *program);
    struct wz_jinja j = { .name = name, .most = (size_t)WZ_JINJA_MEMORY * 4, .err = err };
    const int rc = parse(&j, source, &program->body);

    program->arena = j.arena;
    program->name = wz_strdup(name);
    if (rc == 0) return program;
    wz_jinja_destroy(program);
    return NULL;
}

void wz_jinja_destroy(struct wz_program *program)
{
    if (!program) return;
    wz_arena_finish(&program->arena);
    free(program->name);
    free(program);
}
