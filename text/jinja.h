/* The inside of the chat templates' interpreter: a subset of Jinja2, with the settings of transformers (trim_blocks,
 * lstrip_blocks, sandboxed, immutable). Private to text.
 *
 *   source ─▶ tree (jinja_parse.c) ─▶ run over variables (jinja_run.c) ─▶ a text, every byte of which knows its origin
 *
 * Values are in jinja_value.c; filters, tests, methods and functions are rows of tables in jinja_names.c.
 *
 * A string's bytes carry where they came from: 0 is the template itself, any other number is the place in what people
 * and models wrote (chat.c numbers it). It is kept through everything that copies bytes: slices, trim, replace, join,
 * split, tojson. Bytes that were changed on the way (case, escapes) are WZ_REWRITTEN: written by somebody, of no place.
 *
 * All memory is in one arena, so an error leaves by longjmp, and a template gets so many steps, so much memory and so
 * much depth: none hangs or eats the machine. */
#ifndef WZ_JINJA_H
#define WZ_JINJA_H

#include <setjmp.h>

#include "text/text.h"

#define WZ_REWRITTEN UINT32_MAX
enum { WZ_JINJA_SOURCE = 1 << 20, WZ_JINJA_STEPS = 1 << 22, WZ_JINJA_DEPTH = 200, WZ_JINJA_MEMORY = 64 << 20 };

/* ---- values ----------------------------------------------------------------------------------------------- */

enum wz_kind {
    WZ_IS_ABSENT, /* an argument that was not given */
    WZ_IS_UNDEFINED,
    WZ_IS_NONE,
    WZ_IS_BOOL,
    WZ_IS_INT,
    WZ_IS_FLOAT,
    WZ_IS_STRING,
    WZ_IS_LIST,
    WZ_IS_TUPLE,
    WZ_IS_DICT,
    WZ_IS_NAMESPACE,
    WZ_IS_LOOP,
    WZ_IS_CALLABLE
};
/* UTF-8; `from` has an origin for every byte, NULL: all the template's own. */
struct wz_text {
    const char *s;
    const uint32_t *from;
    size_t n;
};
struct wz_value {
    enum wz_kind kind;
    union {
        int64_t i; /* BOOL, INT */
        double f;
        const char *what; /* UNDEFINED: its name */
        const struct wz_text *text;
        struct wz_items *items; /* LIST and TUPLE; DICT and NAMESPACE: key, value, key, value, ... */
        struct wz_loop *loop;
        struct wz_callable *call;
    };
};
struct wz_items {
    struct wz_value *at;
    int n, cap;
};
struct wz_loop {
    struct wz_items *items;
    int i; /* of the element that it is at */
};

/* One run of a template, or one parsing. */
struct wz_jinja {
    struct wz_arena arena;
    const char *name;   /* for messages */
    size_t most;        /* bytes that it may take */
    struct wz_err *err; /* where wz_jinja_fail writes... */
    jmp_buf bail;       /* ...and goes on */
    size_t bytes;       /* taken */
    int steps, depth;   /* taken, now */
    int line;           /* of what is being done */
};

/* "NAME: chat template line N: ...", and away. */
_Noreturn void wz_jinja_fail(struct wz_jinja *j, const char *fmt, ...) WZ_PRINTF(2, 3);
void wz_jinja_step(struct wz_jinja *j, size_t n);   /* n steps were taken */
void *wz_jinja_alloc(struct wz_jinja *j, size_t n); /* zeroed */

/* A string that grows. Zeroed struct is empty. */
struct wz_writing {
    char *s;
    uint32_t *from;
    size_t n, cap;
};
void wz_write(struct wz_jinja *j, struct wz_writing *w, const struct wz_text *text);
/* n bytes of one origin: 0 or WZ_REWRITTEN. */
void wz_write_bytes(struct wz_jinja *j, struct wz_writing *w, const char *s, size_t n, uint32_t from);
struct wz_value wz_written(struct wz_jinja *j, const struct wz_writing *w);

struct wz_value wz_text_value(struct wz_jinja *j, const char *s, size_t n); /* the template's own, not copied */
struct wz_value wz_text_part(struct wz_jinja *j, const struct wz_text *text, size_t at, size_t n); /* not copied */
bool wz_text_is(const struct wz_text *text, const char *s);
/* Python's str.isspace of one character. */
bool wz_text_space(uint32_t code);
/* Without white space (chars NULL), or characters of `chars`, at its ends. */
struct wz_value wz_text_strip(struct wz_jinja *j, const struct wz_text *text, const struct wz_text *chars, bool left,
                              bool right);
size_t wz_text_length(const struct wz_text *text);         /* in characters */
size_t wz_text_at(const struct wz_text *text, int64_t at); /* the byte at which character `at` begins, at most n */

static inline struct wz_value wz_bool(bool b) { return (struct wz_value){ .kind = WZ_IS_BOOL, .i = b }; }
static inline struct wz_value wz_int(int64_t i) { return (struct wz_value){ .kind = WZ_IS_INT, .i = i }; }
static inline struct wz_value wz_float(double f) { return (struct wz_value){ .kind = WZ_IS_FLOAT, .f = f }; }
static inline struct wz_value wz_none(void) { return (struct wz_value){ .kind = WZ_IS_NONE }; }
static inline struct wz_value wz_undefined(const char *what)
{
    return (struct wz_value){ .kind = WZ_IS_UNDEFINED, .what = what };
}
struct wz_value wz_items_value(struct wz_jinja *j, enum wz_kind kind); /* empty */
void wz_items_add(struct wz_jinja *j, struct wz_items *items, struct wz_value v);
struct wz_value wz_pair(struct wz_jinja *j, struct wz_value a, struct wz_value b); /* a tuple */
/* Of a dictionary: NULL where there is no such key. */
struct wz_value *wz_dict_find(struct wz_jinja *j, const struct wz_items *dict, struct wz_value key);
void wz_dict_set(struct wz_jinja *j, struct wz_items *dict, struct wz_value key, struct wz_value v);
void wz_dict_name(struct wz_jinja *j, struct wz_items *dict, const char *key, struct wz_value v);
/* JSON as a value; its texts are the template's own, and stay the JSON's. */
struct wz_value wz_json_value(struct wz_jinja *j, const json_t *json);

const char *wz_value_kind(struct wz_value v); /* "a string", for messages */
bool wz_has_elements(struct wz_value v);      /* a string, a list, a tuple, a dictionary */
bool wz_truth(struct wz_value v);
bool wz_equal(struct wz_jinja *j, struct wz_value a, struct wz_value b);
/* < 0, 0, > 0, or an error where they have no order. */
int wz_order(struct wz_jinja *j, struct wz_value a, struct wz_value b);
bool wz_contains(struct wz_jinja *j, struct wz_value list, struct wz_value v);
const struct wz_text *wz_as_text(struct wz_jinja *j, struct wz_value v); /* Python's str() */
int64_t wz_as_int(struct wz_jinja *j, struct wz_value v, const char *what);
/* What a loop goes over: elements, keys, characters. */
const struct wz_items *wz_as_list(struct wz_jinja *j, struct wz_value v);
/* Python's json.dumps: indent < 0 on one line. */
struct wz_json_style {
    int64_t indent;
    const struct wz_text *comma, *colon;
};
void wz_write_json(struct wz_jinja *j, struct wz_writing *w, struct wz_value v, const struct wz_json_style *style,
                   int depth);

/* ---- names (jinja_names.c) -------------------------------------------------------------------------------- */

enum { WZ_ARGS = 8 };
/* A call: what was given, and bound to the parameters of its row. arg[0] is what a filter, test or method is of. */
struct wz_call {
    const struct wz_name_row *row;
    struct wz_value arg[WZ_ARGS];
    struct wz_items given, named; /* as written: by place, and name, value, ... */
};
struct wz_name_row {
    const char *name;
    struct wz_value (*run)(struct wz_jinja *j, struct wz_call *c);
    const char *parameters; /* names; those behind "|" may be absent. "*": it looks at `given` and `named` itself */
    unsigned of;            /* methods: kinds that have it, bits 1 << kind */
};
struct wz_callable {
    const struct wz_name_row *row; /* with `self`, or NULL: a macro with the scope that it was defined in */
    struct wz_value self;
    const struct wz_node *macro;
    struct wz_scope *scope;
};
extern const struct wz_name_row wz_filters[], wz_tests[], wz_methods[], wz_functions[]; /* each ended by a zero row */
const struct wz_name_row *wz_name_find(const struct wz_name_row *table, const char *name, size_t n);
/* Calls `row` of self (ABSENT: a function) with the arguments; `what` is "filter", "test", ... */
struct wz_value wz_name_call(struct wz_jinja *j, const struct wz_name_row *row, const char *what, struct wz_value self,
                             const struct wz_items *given, const struct wz_items *named);
/* v.key (dot) or v[key]: undefined where there is no such thing. */
struct wz_value wz_attribute(struct wz_jinja *j, struct wz_value v, struct wz_value key, bool dot);

/* ---- the tree (jinja_parse.c) ----------------------------------------------------------------------------- */

enum wz_node_op {
    WZ_N_CONST, /* value */
    WZ_N_NAME,  /* name */
    WZ_N_LIST,  /* list */
    WZ_N_TUPLE,
    WZ_N_DICT,    /* list: key, value, ... */
    WZ_N_BODY,    /* list of statements: what they write, as a string */
    WZ_N_ITEM,    /* a[b]; sign '.': a.b */
    WZ_N_SLICE,   /* a[b:c:d], each of them may be NULL */
    WZ_N_CALL,    /* a(list) */
    WZ_N_FILTER,  /* a | name(list), row */
    WZ_N_TEST,    /* a is name(list), row */
    WZ_N_KEYWORD, /* name=a among arguments, a parameter of a macro with its default (NULL: none) */
    WZ_N_IF_ELSE, /* a if b else c (NULL: undefined) */
    WZ_N_LOGIC,   /* sign '!': not a; '&', '|': a and b, a or b */
    WZ_N_SUM,     /* a `sign` b, of + - ~ * / % and '_' for //, '^' for ** */
    WZ_N_COMPARE, /* a, then the list of a chain, each one `sign` and its right side as a: = < > and '#' for !=, '{' for
                     <=, '}' for >=, 'i' for in, 'n' for not in */
    WZ_S_TEXT,    /* value */
    WZ_S_PRINT,   /* a */
    WZ_S_IF,      /* if a: list; d: the same for elif and else, whose a is NULL */
    WZ_S_FOR,     /* for a in b if c: list; else: d */
    WZ_S_SET,     /* a = b */
    WZ_S_MACRO,   /* name, a: its parameters, list */
    WZ_S_BREAK,
    WZ_S_CONTINUE
};
struct wz_node {
    enum wz_node_op op;
    char sign;
    int line;
    const char *name;
    const struct wz_name_row *row; /* NULL: there is no such filter or test, an error once it is used */
    struct wz_value value;
    struct wz_node *a, *b, *c, *d, *list, *next;
};

/* The tree of a template, in an arena of its own; immutable, safe to share between threads. */
struct wz_program {
    struct wz_arena arena;
    char *name;
    const struct wz_node *body;
};
/* name: for messages. NULL and one that names the line. */
struct wz_program *wz_jinja_parse(const char *source, const char *name, struct wz_err *err);
void wz_jinja_destroy(struct wz_program *program);

/* ---- running (jinja_run.c) -------------------------------------------------------------------------------- */

struct wz_scope {
    struct wz_items vars;
    struct wz_scope *up;
};
/* Runs over the variables that fill(j, variables, arg) sets; what it writes is in j's arena, which the caller ends. j
 * is zeroed but for `most` (0: WZ_JINJA_MEMORY). -1 and a message that names the line. */
int wz_jinja_run(struct wz_jinja *j, const struct wz_program *program,
                 void (*fill)(struct wz_jinja *j, struct wz_items *variables, void *arg), void *arg,
                 struct wz_text *out, struct wz_err *err);

#endif
