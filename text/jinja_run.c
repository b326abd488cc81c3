/* Running the tree of a chat template. A loop, a macro and a block have a scope of their own, as in Jinja: what they
 * set is gone behind them, and only a namespace carries it out. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "text/jinja.h"

typedef struct wz_value value;

enum flow { GO_ON, BREAK, CONTINUE };

static value eval(struct wz_jinja *j, const struct wz_node *n, struct wz_scope *scope);
static enum flow run(struct wz_jinja *j, const struct wz_node *list, struct wz_scope *scope, struct wz_writing *out);

static void enter(struct wz_jinja *j, const struct wz_node *n)
{
    j->line = n->line;
    wz_jinja_step(j, 1);
    if (++j->depth > 2 * WZ_JINJA_DEPTH) wz_jinja_fail(j, "nested more than %d deep", 2 * WZ_JINJA_DEPTH);
}

static struct wz_scope *within(struct wz_jinja *j, struct wz_scope *up)
{
    struct wz_scope *scope = wz_jinja_alloc(j, sizeof *scope);

    scope->up = up;
    return scope;
}

/* ---- names and attributes --------------------------------------------------------------------------------- */

static value callable(struct wz_jinja *j, const struct wz_name_row *row, value self)
{
    struct wz_callable *call = wz_jinja_alloc(j, sizeof *call);

    *call = (struct wz_callable){ .row = row, .self = self };
    return (value){ .kind = WZ_IS_CALLABLE, .call = call };
}

static value look_up(struct wz_jinja *j, const char *name, const struct wz_scope *scope)
{
    const value key = wz_text_value(j, name, strlen(name));
    const struct wz_name_row *row;

    for (; scope; scope = scope->up) {
        const value *v = wz_dict_find(j, &scope->vars, key);
        if (v) return *v;
    }
    row = wz_name_find(wz_functions, name, strlen(name));
    return row ? callable(j, row, (value){ 0 }) : wz_undefined(name);
}

static value of_loop(struct wz_jinja *j, const struct wz_loop *l, const struct wz_text *key)
{
    const int i = l->i, n = l->items->n;
    const struct {
        const char *name;
        int value;
    } numbers[] = {
        { "index", i + 1 }, { "index0", i }, { "revindex", n - i }, { "revindex0", n - i - 1 }, { "length", n }
    };

    for (size_t k = 0; k < WZ_COUNT(numbers); k++)
        if (wz_text_is(key, numbers[k].name)) return wz_int(numbers[k].value);
    if (wz_text_is(key, "first")) return wz_bool(i == 0);
    if (wz_text_is(key, "last")) return wz_bool(i + 1 == n);
    if (wz_text_is(key, "previtem")) return i ? l->items->at[i - 1] : wz_undefined("loop.previtem");
    if (wz_text_is(key, "nextitem")) return i + 1 < n ? l->items->at[i + 1] : wz_undefined("loop.nextitem");
    wz_jinja_fail(j, "loop.%.*s is not supported", (int)(key->n < 40 ? key->n : 40), key->s);
}

static char *name_of(struct wz_jinja *j, const struct wz_text *key)
{
    const size_t n = key->n < 60 ? key->n : 60;

    return memcpy(wz_jinja_alloc(j, n + 1), key->s, n);
}

value wz_attribute(struct wz_jinja *j, value v, value key, bool dot)
{
    const bool by_name = key.kind == WZ_IS_STRING, list = v.kind == WZ_IS_LIST || v.kind == WZ_IS_TUPLE;
    const struct wz_name_row *row = by_name ? wz_name_find(wz_methods, key.text->s, key.text->n) : NULL;
    const value *item = NULL;

    if (v.kind == WZ_IS_UNDEFINED) wz_jinja_fail(j, "%s is undefined", v.what);
    if (row && !(row->of & 1u << v.kind)) row = NULL;
    if (v.kind == WZ_IS_LOOP && by_name) return of_loop(j, v.loop, key.text);
    if (v.kind == WZ_IS_DICT || v.kind == WZ_IS_NAMESPACE) item = wz_dict_find(j, v.items, key);
    if (row && (dot || !item)) return callable(j, row, v); /* d.items is the method, d["items"] the element */
    if (item) return *item;
    if (key.kind == WZ_IS_INT && (list || v.kind == WZ_IS_STRING)) {
        const int64_t n = list ? v.items->n : (int64_t)wz_text_length(v.text), at = key.i < 0 ? key.i + n : key.i;
        if (!list) wz_jinja_step(j, v.text->n / 64);
        if (at < 0 || at >= n) return wz_undefined("an element beyond the end");
        if (list) return v.items->at[at];
        const size_t from = wz_text_at(v.text, at);
        return wz_text_part(j, v.text, from, wz_text_at(v.text, at + 1) - from);
    }
    return wz_undefined(by_name ? name_of(j, key.text) : "an element");
}

static value slice(struct wz_jinja *j, const struct wz_node *n, struct wz_scope *scope)
{
    const value of = eval(j, n->a, scope),
                ends[3] = { n->b ? eval(j, n->b, scope) : wz_none(), n->c ? eval(j, n->c, scope) : wz_none(),
                            n->d ? eval(j, n->d, scope) : wz_none() };
    const bool text = of.kind == WZ_IS_STRING;
    const int64_t step = ends[2].kind == WZ_IS_NONE ? 1 : wz_as_int(j, ends[2], "slice");
    int64_t at[2];

    if (of.kind != WZ_IS_LIST && of.kind != WZ_IS_TUPLE && !text)
        wz_jinja_fail(j, "expected a list or a string to slice, got %s", wz_value_kind(of));
    const int64_t len = text ? (int64_t)wz_text_length(of.text) : of.items->n, low = step < 0 ? -1 : 0,
                  high = step < 0 ? len - 1 : len;
    if (!step || llabs(step) > INT32_MAX) wz_jinja_fail(j, "a slice's step is %lld", (long long)step);
    for (int i = 0; i < 2; i++) {
        at[i] = (i == 0) == (step < 0) ? high : low;
        if (ends[i].kind == WZ_IS_NONE) continue;
        at[i] = wz_as_int(j, ends[i], "slice");
        if (at[i] < 0) at[i] += len;
        at[i] = at[i] < low ? low : at[i] > high ? high : at[i];
    }
    if (text) wz_jinja_step(j, of.text->n / 32);
    if (text && step == 1) {
        const size_t from = wz_text_at(of.text, at[0]), to = wz_text_at(of.text, at[1]);
        return wz_text_part(j, of.text, from, to > from ? to - from : 0);
    }
    const struct wz_items *all = wz_as_list(j, of);
    struct wz_writing w = { 0 };
    value out = wz_items_value(j, of.kind == WZ_IS_TUPLE ? WZ_IS_TUPLE : WZ_IS_LIST);
    for (int64_t i = at[0]; step > 0 ? i < at[1] : i > at[1]; i += step) {
        wz_jinja_step(j, 1);
        if (text) wz_write(j, &w, all->at[i].text);
        else wz_items_add(j, out.items, all->at[i]);
    }
    return text ? wz_written(j, &w) : out;
}

/* ---- calls ------------------------------------------------------------------------------------------------ */

static void arguments(struct wz_jinja *j, const struct wz_node *list, struct wz_scope *scope, struct wz_items *given,
                      struct wz_items *named)
{
    for (; list; list = list->next) {
        if (list->op == WZ_N_KEYWORD) wz_dict_name(j, named, list->name, eval(j, list->a, scope));
        else wz_items_add(j, given, eval(j, list, scope));
    }
}

static value run_macro(struct wz_jinja *j, const struct wz_callable *call, const struct wz_items *given,
                       struct wz_items *named)
{
    struct wz_scope *scope = within(j, call->scope);
    struct wz_writing out = { 0 };
    int i = 0, used = 0;

    for (const struct wz_node *p = call->macro->a; p; p = p->next, i++) {
        const value *v = wz_dict_find(j, named, wz_text_value(j, p->name, strlen(p->name)));
        used += v != NULL;
        if (i < given->n && v) wz_jinja_fail(j, "macro %s: %s is given twice", call->macro->name, p->name);
        wz_dict_name(j, &scope->vars, p->name,
                     i < given->n ? given->at[i]
                     : v          ? *v
                     : p->a       ? eval(j, p->a, scope)
                                  : wz_undefined(p->name));
    }
    if (given->n > i || used < named->n / 2)
        wz_jinja_fail(j, "macro %s: more arguments than its %d parameters", call->macro->name, i);
    run(j, call->macro->list, scope, &out);
    return wz_written(j, &out);
}

static value call_value(struct wz_jinja *j, const struct wz_node *n, struct wz_scope *scope)
{
    const value f = eval(j, n->a, scope);
    struct wz_items given = { 0 }, named = { 0 };

    if (f.kind == WZ_IS_UNDEFINED) wz_jinja_fail(j, "%s is undefined", f.what);
    if (f.kind != WZ_IS_CALLABLE) wz_jinja_fail(j, "%s can't be called", wz_value_kind(f));
    arguments(j, n->list, scope, &given, &named);
    j->line = n->line;
    if (f.call->macro) return run_macro(j, f.call, &given, &named);
    return wz_name_call(j, f.call->row, f.call->self.kind ? "method" : "function", f.call->self, &given, &named);
}

static value named_call(struct wz_jinja *j, const struct wz_node *n, struct wz_scope *scope)
{
    const char *what = n->op == WZ_N_FILTER ? "filter" : "test";
    struct wz_items given = { 0 }, named = { 0 };

    const value v = eval(j, n->a, scope);
    arguments(j, n->list, scope, &given, &named);
    j->line = n->line;
    if (!n->row) wz_jinja_fail(j, "there is no %s \"%s\", or it is not supported", what, n->name);
    return wz_name_call(j, n->row, what, v, &given, &named);
}

/* ---- operators -------------------------------------------------------------------------------------------- */

static bool is_real(value v) { return v.kind == WZ_IS_FLOAT || v.kind == WZ_IS_INT || v.kind == WZ_IS_BOOL; }

static value repeated(struct wz_jinja *j, value of, int64_t times)
{
    struct wz_writing w = { 0 };
    value out = wz_items_value(j, of.kind);

    for (; times > 0; times--) {
        wz_jinja_step(j, 1);
        if (of.kind == WZ_IS_STRING) wz_write(j, &w, of.text);
        else
            for (int i = 0; i < of.items->n; i++) wz_items_add(j, out.items, of.items->at[i]);
    }
    return of.kind == WZ_IS_STRING ? wz_written(j, &w) : out;
}

static value joined(struct wz_jinja *j, value a, value b)
{
    struct wz_writing w = { 0 };

    wz_write(j, &w, wz_as_text(j, a));
    wz_write(j, &w, wz_as_text(j, b));
    return wz_written(j, &w);
}

static value of_integers(struct wz_jinja *j, char sign, int64_t a, int64_t b)
{
    int64_t r = 1;
    bool over = false;

    if (sign == '+') over = __builtin_add_overflow(a, b, &r);
    else if (sign == '-') over = __builtin_sub_overflow(a, b, &r);
    else if (sign == '*') over = __builtin_mul_overflow(a, b, &r);
    else if (sign == '^') {
        const bool small = a >= -1 && a <= 1; /* its powers repeat */
        for (int64_t k = small ? (b > 2 ? 2 - b % 2 : b) : b; !over && k > 0; k--)
            over = __builtin_mul_overflow(r, a, &r);
    } else if (!b) wz_jinja_fail(j, "division by zero");
    else if (b == -1) return sign == '%' ? wz_int(0) : of_integers(j, '-', 0, a);
    else { /* Python rounds down, and the remainder has the sign of the divisor */
        r = a / b - (a % b != 0 && (a < 0) != (b < 0));
        if (sign == '%') r = a - r * b;
    }
    if (over) wz_jinja_fail(j, "the number is too large");
    return wz_int(r);
}

static value arithmetic(struct wz_jinja *j, const struct wz_node *n, value a, value b)
{
    const bool list = a.kind == WZ_IS_LIST || a.kind == WZ_IS_TUPLE, text = a.kind == WZ_IS_STRING;
    const char sign = n->sign;

    j->line = n->line;
    if (sign == '~' || (sign == '+' && text && b.kind == WZ_IS_STRING)) return joined(j, a, b);
    if (sign == '+' && list && a.kind == b.kind) {
        value out = repeated(j, a, 1);
        for (int i = 0; i < b.items->n; i++) wz_items_add(j, out.items, b.items->at[i]);
        return out;
    }
    if (sign == '*' && (list || text) && b.kind == WZ_IS_INT) return repeated(j, a, b.i);
    if (!is_real(a) || !is_real(b)) {
        const char *what = a.kind == WZ_IS_UNDEFINED ? a.what : b.kind == WZ_IS_UNDEFINED ? b.what : NULL;
        if (what) wz_jinja_fail(j, "%s is undefined", what);
        wz_jinja_fail(j, "%s %s %s makes no sense", wz_value_kind(a), n->name ? n->name : "with", wz_value_kind(b));
    }
    const double x = a.kind == WZ_IS_FLOAT ? a.f : (double)a.i, y = b.kind == WZ_IS_FLOAT ? b.f : (double)b.i;
    const bool whole = a.kind != WZ_IS_FLOAT && b.kind != WZ_IS_FLOAT;
    if (whole && sign != '/' && !(sign == '^' && b.i < 0)) return of_integers(j, sign, a.i, b.i);
    if (strchr("/_%", sign) && y == 0) wz_jinja_fail(j, "division by zero");
    return wz_float(sign == '+'   ? x + y
                    : sign == '-' ? x - y
                    : sign == '*' ? x * y
                    : sign == '/' ? x / y
                    : sign == '_' ? floor(x / y)
                    : sign == '%' ? x - y * floor(x / y)
                                  : pow(x, y));
}

static bool compares(struct wz_jinja *j, char sign, value a, value b)
{
    if (sign == '=' || sign == '#') return wz_equal(j, a, b) == (sign == '=');
    if (sign == 'i' || sign == 'n') return wz_contains(j, b, a) == (sign == 'i');
    const int order = wz_order(j, a, b);
    return sign == '<' ? order < 0 : sign == '{' ? order <= 0 : sign == '>' ? order > 0 : order >= 0;
}

static value compare(struct wz_jinja *j, const struct wz_node *n, struct wz_scope *scope)
{
    value left = eval(j, n->a, scope);

    for (const struct wz_node *c = n->list; c; c = c->next) {
        const value right = eval(j, c->a, scope);
        j->line = c->line;
        if (!compares(j, c->sign, left, right)) return wz_bool(false);
        left = right;
    }
    return wz_bool(true);
}

static value eval_here(struct wz_jinja *j, const struct wz_node *n, struct wz_scope *scope)
{
    struct wz_writing w = { 0 };
    value v, b;

    switch (n->op) {
    case WZ_N_CONST: return n->value;
    case WZ_N_NAME: return look_up(j, n->name, scope);
    case WZ_N_LIST:
    case WZ_N_TUPLE:
        v = wz_items_value(j, n->op == WZ_N_LIST ? WZ_IS_LIST : WZ_IS_TUPLE);
        for (const struct wz_node *c = n->list; c; c = c->next) wz_items_add(j, v.items, eval(j, c, scope));
        return v;
    case WZ_N_DICT:
        v = wz_items_value(j, WZ_IS_DICT);
        for (const struct wz_node *c = n->list; c; c = c->next->next) {
            const value key = eval(j, c, scope);
            wz_dict_set(j, v.items, key, eval(j, c->next, scope));
        }
        return v;
    case WZ_N_BODY: run(j, n->list, within(j, scope), &w); return wz_written(j, &w);
    case WZ_N_ITEM:
        v = eval(j, n->a, scope);
        b = eval(j, n->b, scope);
        j->line = n->line;
        return wz_attribute(j, v, b, n->sign == '.');
    case WZ_N_SLICE: return slice(j, n, scope);
    case WZ_N_CALL: return call_value(j, n, scope);
    case WZ_N_FILTER:
    case WZ_N_TEST: return named_call(j, n, scope);
    case WZ_N_IF_ELSE:
        if (wz_truth(eval(j, n->b, scope))) return eval(j, n->a, scope);
        return n->c ? eval(j, n->c, scope) : wz_undefined("an if without else");
    case WZ_N_LOGIC:
        v = eval(j, n->a, scope);
        if (n->sign == '!') return wz_bool(!wz_truth(v));
        return wz_truth(v) == (n->sign == '|') ? v : eval(j, n->b, scope);
    case WZ_N_COMPARE: return compare(j, n, scope);
    default: v = eval(j, n->a, scope); return arithmetic(j, n, v, eval(j, n->b, scope));
    }
}

static value eval(struct wz_jinja *j, const struct wz_node *n, struct wz_scope *scope)
{
    enter(j, n);
    const value v = eval_here(j, n, scope);
    j->depth--;
    return v;
}

/* ---- statements ------------------------------------------------------------------------------------------- */

static void assign(struct wz_jinja *j, const struct wz_node *target, value v, struct wz_scope *scope)
{
    if (target->op == WZ_N_NAME) wz_dict_name(j, &scope->vars, target->name, v);
    else if (target->op == WZ_N_ITEM) {
        const value of = look_up(j, target->a->name, scope);
        if (of.kind != WZ_IS_NAMESPACE)
            wz_jinja_fail(j, "%s.%s: only a namespace can be set, got %s", target->a->name, target->name,
                          wz_value_kind(of));
        wz_dict_name(j, of.items, target->name, v);
    } else {
        const struct wz_items *list = wz_as_list(j, v);
        int i = 0;
        for (const struct wz_node *t = target->list; t; t = t->next, i++)
            if (i < list->n) assign(j, t, list->at[i], scope);
        if (i != list->n) wz_jinja_fail(j, "%d values for %d names", list->n, i);
    }
}

static void run_for(struct wz_jinja *j, const struct wz_node *n, struct wz_scope *scope, struct wz_writing *out)
{
    const struct wz_items *all = wz_as_list(j, eval(j, n->b, scope));
    struct wz_items *kept = wz_items_value(j, WZ_IS_LIST).items;
    struct wz_loop *loop = wz_jinja_alloc(j, sizeof *loop);
    enum flow flow = GO_ON;
    bool otherwise = true; /* in Jinja, where no round came to its end: also where each was broken off */

    for (int i = 0; i < all->n; i++) {
        struct wz_scope *inner = within(j, scope);
        if (n->c) assign(j, n->a, all->at[i], inner);
        if (!n->c || wz_truth(eval(j, n->c, inner))) wz_items_add(j, kept, all->at[i]);
    }
    loop->items = kept;
    for (; loop->i < kept->n && flow != BREAK; loop->i++) {
        struct wz_scope *inner = within(j, scope);
        wz_dict_name(j, &inner->vars, "loop", (value){ .kind = WZ_IS_LOOP, .loop = loop });
        assign(j, n->a, kept->at[loop->i], inner);
        flow = run(j, n->list, inner, out);
        if (flow == GO_ON) otherwise = false;
    }
    if (otherwise && n->d) run(j, n->d, within(j, scope), out);
}

static enum flow run_one(struct wz_jinja *j, const struct wz_node *n, struct wz_scope *scope, struct wz_writing *out)
{
    const struct wz_node *branch;
    struct wz_callable *macro;

    switch (n->op) {
    case WZ_S_TEXT: wz_write(j, out, n->value.text); return GO_ON;
    case WZ_S_PRINT: wz_write(j, out, wz_as_text(j, eval(j, n->a, scope))); return GO_ON;
    case WZ_S_IF:
        for (branch = n; branch && branch->a && !wz_truth(eval(j, branch->a, scope));) branch = branch->d;
        return branch ? run(j, branch->list, scope, out) : GO_ON;
    case WZ_S_FOR: run_for(j, n, scope, out); return GO_ON;
    case WZ_S_SET: assign(j, n->a, eval(j, n->b, scope), scope); return GO_ON;
    case WZ_S_MACRO:
        macro = wz_jinja_alloc(j, sizeof *macro);
        *macro = (struct wz_callable){ .macro = n, .scope = scope };
        wz_dict_name(j, &scope->vars, n->name, (value){ .kind = WZ_IS_CALLABLE, .call = macro });
        return GO_ON;
    case WZ_S_BREAK: return BREAK;
    default: return CONTINUE;
    }
}

static enum flow run(struct wz_jinja *j, const struct wz_node *list, struct wz_scope *scope, struct wz_writing *out)
{
    enum flow flow = GO_ON;

    for (; list && flow == GO_ON; list = list->next) {
        enter(j, list);
        flow = run_one(j, list, scope, out);
        j->depth--;
    }
    return flow;
}

int wz_jinja_run(struct wz_jinja *j, const struct wz_program *program,
                 void (*fill)(struct wz_jinja *j, struct wz_items *variables, void *arg), void *arg,
                 struct wz_text *out, struct wz_err *err)
{
    struct wz_scope top = { 0 };
    struct wz_writing w = { 0 };

    j->name = program->name;
    j->err = err;
    if (!j->most) j->most = WZ_JINJA_MEMORY;
    if (setjmp(j->bail)) return -1;
    fill(j, &top.vars, arg);
    run(j, program->body, &top, &w);
    *out = (struct wz_text){ w.s ? w.s : "", w.from, w.n };
    return 0;
}
