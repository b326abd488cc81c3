/* Options of the sub-commands: every command passes in a table; parsing, range checks, --help, the manual pages and the
 * shell's completion all loop over it. */
#include "launch/launch.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

int wz_give_up(const char *name, const struct wz_err *err)
{
    fflush(stdout);
    if (err->text[0]) fprintf(stderr, "waltz %s: %s\n", name, err->text);
    return 1;
}

static void print_default(const struct wz_option *o)
{
    switch (o->type) {
    case WZ_FLAG: break;
    case WZ_INT: printf(" (%d)", *(const int *)o->value); break;
    case WZ_SEED: printf(" (%llu)", (unsigned long long)*(const uint64_t *)o->value); break;
    case WZ_NUMBER: printf(" (%g)", *(const double *)o->value); break;
    case WZ_TEXT:
        if (*(const char *const *)o->value && **(const char *const *)o->value)
            printf(" (%s)", *(const char *const *)o->value);
        break;
    }
}

/* "-o, --output FILE" */
static const char *left_side(const struct wz_option *o)
{
    static char left[128];
    int n = o->letter ? snprintf(left, sizeof left, "-%c, ", o->letter) : 0;

    snprintf(left + n, sizeof left - (size_t)n, "--%s %s", o->name, o->type == WZ_FLAG ? "" : o->arg);
    return left;
}

static void print_help(const struct wz_usage *u)
{
    printf("usage: waltz %s%s%s%s\n\n%s\n", u->name, *u->args ? " " : "", u->args, u->n_options ? " [options]" : "",
           u->about);
    printf("\noptions:\n");
    for (int i = 0; i < u->n_options; i++) {
        printf("  %-26s %s", left_side(&u->options[i]), u->options[i].help);
        print_default(&u->options[i]);
        printf("\n");
    }
    printf("  %-26s %s\n", "-h, --help", "print this and exit");
}

void wz_roff(const char *text)
{
    for (const char *c = text; *c; c++) {
        bool begins = c == text || c[-1] == '\n';
        if (begins && (*c == '.' || *c == '\'')) fputs("\\&", stdout);
        if (*c == '\\') fputs("\\e", stdout);
        else if (*c == '-') fputs("\\-", stdout);
        else putchar(*c);
    }
}

static void print_manual(const struct wz_usage *u)
{
    printf(".SH SYNOPSIS\n.B waltz %s\n", u->name);
    wz_roff(u->args);
    printf("%s\n.SH DESCRIPTION\n", u->n_options ? " [options]" : "");
    wz_roff(u->about);
    printf("\n.SH OPTIONS\n");
    for (int i = 0; i < u->n_options; i++) {
        printf(".TP\n.B ");
        wz_roff(left_side(&u->options[i]));
        printf("\n");
        wz_roff(u->options[i].help);
        print_default(&u->options[i]);
        printf("\n");
    }
    printf(".TP\n.B \\-h, \\-\\-help\nprint a summary of this and exit\n");
}

/* Cases of the shell's COMMAND:PREVIOUS-WORD:WORD, each the words that may stand for WORD. */
static void print_completion(const struct wz_usage *u)
{
    for (int i = 0; i < u->n_options; i++) {
        if (u->options[i].type != WZ_TEXT || !strchr(u->options[i].arg, '|')) continue;
        printf("    %s:--%s:*) words=\"", u->name, u->options[i].name);
        for (const char *c = u->options[i].arg; *c; c++) putchar(*c == '|' ? ' ' : *c);
        printf("\" ;;\n");
    }
    printf("    %s:*:-*) words=\"--help", u->name);
    for (int i = 0; i < u->n_options; i++) printf(" --%s", u->options[i].name);
    printf("\" ;;\n");
}

static int set_value(const struct wz_option *o, const char *text, struct wz_err *err)
{
    char *end;
    double x = 0;

    errno = 0;
    switch (o->type) {
    case WZ_FLAG: return 0;
    case WZ_INT: {
        long v = strtol(text, &end, 10);
        if (end == text || *end || errno || v < INT_MIN || v > INT_MAX)
            return wz_fail(err, "--%s: '%s' is not a whole number", o->name, text);
        x = (double)v;
        if (o->low == o->high || (x >= o->low && x <= o->high)) *(int *)o->value = (int)v;
        break;
    }
    case WZ_SEED: {
        unsigned long long v = strtoull(text, &end, 10);
        if (end == text || *end || errno || strchr(text, '-'))
            return wz_fail(err, "--%s: '%s' is not a whole number from 0 to 2^64-1", o->name, text);
        *(uint64_t *)o->value = v;
        return 0;
    }
    case WZ_NUMBER:
        x = strtod(text, &end);
        if (end == text || *end || !isfinite(x)) return wz_fail(err, "--%s: '%s' is not a number", o->name, text);
        if (o->low == o->high || (x >= o->low && x <= o->high)) *(double *)o->value = x;
        break;
    case WZ_TEXT:
        if (strchr(o->arg, '|') && !wz_is_choice(o->arg, text))
            return wz_fail(err, "--%s: '%s' is none of %s", o->name, text, o->arg);
        *(const char **)o->value = text;
        return 0;
    }
    if (o->low == o->high || (x >= o->low && x <= o->high)) return 0;
    return wz_fail(err, "--%s: expected %g to %g, got %s", o->name, o->low, o->high, text);
}

/* argv[*i] is an option; takes its value, moving *i on where that is the next argument. */
static int take_option(const struct wz_usage *u, int argc, char **argv, int *i, struct wz_err *err)
{
    const char *arg = argv[*i], *eq = strchr(arg, '='), *value = NULL;
    const struct wz_option *o = NULL;
    char name[64];

    if (arg[1] == '-') {
        size_t n = eq ? (size_t)(eq - arg - 2) : strlen(arg + 2);
        if (n >= sizeof name) return wz_fail(err, "there is no option %s", arg);
        memcpy(name, arg + 2, n);
        name[n] = 0;
        for (int k = 0; k < u->n_options; k++)
            if (!strcmp(u->options[k].name, name)) o = &u->options[k];
        if (!o) {
            const char *near = u->n_options ? wz_nearest(name, u->options, sizeof *u->options, u->n_options) : NULL;
            return near
                       ? wz_fail(err, "there is no option --%s; did you mean --%s?", name, near)
                       : wz_fail(err, "there is no option --%s; --help lists them%s", name,
                                 strstr(u->args, "key=value") ? ", and keys of the recipe are given as key=value" : "");
        }
        if (eq) value = eq + 1;
    } else {
        for (int k = 0; k < u->n_options; k++)
            if (u->options[k].letter == arg[1]) o = &u->options[k];
        if (!o) return wz_fail(err, "there is no option -%c; --help lists them", arg[1]);
        if (arg[2]) value = arg + 2;
    }
    if (o->type == WZ_FLAG) {
        if (value) return wz_fail(err, "--%s takes no value", o->name);
        *(bool *)o->value = true;
        return 0;
    }
    if (!value && *i + 1 >= argc) return wz_fail(err, "--%s wants a value: %s", o->name, o->arg);
    if (!value) value = argv[++*i];
    return set_value(o, value, err);
}

/* How many positional arguments `args` allows. */
static void count_args(const char *args, int *least, int *most)
{
    int depth = 0; /* of brackets */

    *least = *most = 0;
    for (const char *c = args; *c; c++) {
        depth += (*c == '[') - (*c == ']');
        if (c > args && c[-1] != ' ') continue;
        ++*most;
        *least += depth == 0;
    }
    if (strstr(args, "...")) *most = INT_MAX;
}

int wz_options_parse(const struct wz_usage *u, int argc, char **argv, int *status)
{
    struct wz_err err;
    int n = 0, least, most;

    *status = 0;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--")) break;
        if (!strcmp(argv[i], "--help=roff")) print_manual(u);
        else if (!strcmp(argv[i], "--help=bash")) print_completion(u);
        else if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) print_help(u);
        else continue;
        return -1;
    }
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--")) {
            while (++i < argc) argv[n++] = argv[i];
            break;
        }
        if (argv[i][0] != '-' || !argv[i][1]) {
            argv[n++] = argv[i]; /* a lone "-" is a name: standard input */
            continue;
        }
        if (take_option(u, argc, argv, &i, &err) < 0) goto wrong;
    }
    count_args(u->args, &least, &most);
    if (n < least) {
        wz_fail(&err, "%s expected after `waltz %s`", u->args, u->name);
        goto wrong;
    }
    if (n > most) {
        wz_fail(&err, "'%s' is one argument too many; usage: waltz %s %s", argv[most], u->name, u->args);
        goto wrong;
    }
    return n;
wrong:
    wz_give_up(u->name, &err);
    *status = 2;
    return -1;
}
