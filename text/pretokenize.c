/* Normalizer and pre-tokenizer: stages that rewrite a text and split it into spans, as a tokenizer.json lists them.
 * Each stage turns (text, spans) into (text, spans):
 *
 *   Prepend, Replace, Metaspace, NFC, byte alphabet, ...    rewrite the bytes of every span
 *   Split (regex, digits, punctuation, GPT-2's)             split every span */
#include "text/tokenizer_inside.h"

#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

const char wz_gpt2_pattern[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const char wz_llama3_pattern[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}"
                                 "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

enum verb { PREPEND, REPLACE, PREFIX, SPLIT, ALPHABET, NORMALIZE };
enum when { NEVER, FIRST, ALWAYS }; /* PREFIX: which spans get it */
enum behavior { ISOLATED, REMOVED, MERGED_WITH_PREVIOUS, MERGED_WITH_NEXT, CONTIGUOUS };
static const char *const behaviors[] = { "Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous" };

struct stage {
    enum verb verb;
    enum when when;
    enum behavior behavior;
    enum wz_form form;
    bool invert;
    char *text;     /* PREPEND, PREFIX: the prefix; REPLACE: the replacement */
    pcre2_code *re; /* REPLACE, SPLIT */
};

struct wz_stages {
    struct stage *list;
    int n;
    const char *name;
    bool byte_level;
};

static struct stage *add(struct wz_stages *s, enum verb verb, const char *text)
{
    s->list = wz_realloc(s->list, wz_mul((size_t)s->n + 1, sizeof *s->list));
    s->list[s->n] = (struct stage){ .verb = verb, .text = wz_strdup(text ? text : "") };
    return &s->list[s->n++];
}

static int compile(const struct wz_stages *s, struct stage *st, const char *pattern, bool literal, struct wz_err *err)
{
    const uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
    struct wz_buf b = { 0 };
    const char *cannot = literal ? NULL : wz_pattern_pcre(pattern, &b);
    uint32_t empty = 0;
    int code;
    PCRE2_SIZE at;
    PCRE2_UCHAR why[256];

    for (const char *p = pattern; literal && *p; p++) {
        unsigned char c = (unsigned char)*p;
        bool word = c >= 0x80 || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        wz_buf_printf(&b, "%s%c", word ? "" : "\\", c);
    }
    st->re = cannot ? NULL : pcre2_compile((PCRE2_SPTR)(b.data ? b.data : ""), b.len, options, &code, &at, NULL);
    wz_buf_finish(&b);
    if (cannot) return wz_fail(err, "%s: pattern \"%.200s\": %s is not supported", s->name, pattern, cannot);
    if (!st->re) {
        pcre2_get_error_message(code, why, sizeof why);
        return wz_fail(err, "%s: pattern \"%.200s\": %s", s->name, pattern, (char *)why);
    }
    pcre2_pattern_info(st->re, PCRE2_INFO_MATCHEMPTY, &empty);
    if (empty)
        return wz_fail(err, "%s: pattern \"%.200s\": expected one that does not match an empty text", s->name, pattern);
    pcre2_jit_compile(st->re, PCRE2_JIT_COMPLETE); /* where it fails, pcre2_match interprets */
    return 0;
}

/* {"Regex": "..."} or {"String": "..."}. */
static int pattern_of(const struct wz_stages *s, struct stage *st, const json_t *of, struct wz_err *err)
{
    const json_t *pattern = json_object_get(of, "pattern");
    const char *regex = json_string_value(json_object_get(pattern, "Regex"));
    const char *string = json_string_value(json_object_get(pattern, "String"));

    if (regex) return compile(s, st, regex, false, err);
    if (string && *string) return compile(s, st, string, true, err);
    return wz_fail(err, "%s: %s: pattern: expected {\"Regex\": ...} or {\"String\": ...}", s->name,
                   json_string_value(json_object_get(of, "type")));
}

static int add_split(struct wz_stages *s, const char *regex, enum behavior behavior, struct wz_err *err)
{
    struct stage *st = add(s, SPLIT, NULL);

    st->behavior = behavior;
    return compile(s, st, regex, false, err);
}

/* Sets the behavior of a part; without one it is Isolated where the key is optional. */
static int behavior_of(const struct wz_stages *s, struct stage *st, const json_t *of, bool optional, struct wz_err *err)
{
    const char *behavior = json_string_value(json_object_get(of, "behavior"));

    for (st->behavior = ISOLATED; st->behavior < WZ_COUNT(behaviors); st->behavior++)
        if ((!behavior && optional) || (behavior && strcmp(behavior, behaviors[st->behavior]) == 0)) return 0;
    return wz_fail(err,
                   "%s: %s: behavior: expected Isolated, Removed, MergedWithPrevious, MergedWithNext or Contiguous",
                   s->name, json_string_value(json_object_get(of, "type")));
}

static int add_metaspace(struct wz_stages *s, const json_t *of, struct wz_err *err)
{
    static const char *const schemes[] = { "never", "first", "always" };
    const char *with = json_string_value(json_object_get(of, "replacement"));
    const char *scheme = json_string_value(json_object_get(of, "prepend_scheme"));
    enum when when = json_is_false(json_object_get(of, "add_prefix_space")) ? NEVER : ALWAYS;
    struct stage *st;

    if (!with) with = "\xe2\x96\x81";
    if (scheme) {
        for (when = NEVER; when <= ALWAYS && strcmp(scheme, schemes[when]) != 0; when++) continue;
        if (when > ALWAYS)
            return wz_fail(err, "%s: prepend_scheme: expected never, first or always, got \"%.40s\"", s->name, scheme);
    }
    st = add(s, REPLACE, with);
    if (compile(s, st, " ", true, err) < 0) return -1;
    add(s, PREFIX, with)->when = when;
    if (json_is_false(json_object_get(of, "split"))) return 0;
    st = add(s, SPLIT, NULL);
    st->behavior = MERGED_WITH_NEXT;
    return compile(s, st, with, true, err);
}

static int add_prepend(struct wz_stages *s, const json_t *of, struct wz_err *err)
{
    add(s, PREPEND, json_string_value(json_object_get(of, "prepend")));
    return 0;
}

static int add_replace(struct wz_stages *s, const json_t *of, struct wz_err *err)
{
    return pattern_of(s, add(s, REPLACE, json_string_value(json_object_get(of, "content"))), of, err);
}

static int add_strip(struct wz_stages *s, const json_t *of, struct wz_err *err)
{
    if (!json_is_false(json_object_get(of, "strip_left"))) add(s, NORMALIZE, NULL)->form = WZ_STRIP_LEFT;
    if (!json_is_false(json_object_get(of, "strip_right"))) add(s, NORMALIZE, NULL)->form = WZ_STRIP_RIGHT;
    return 0;
}

static int add_form(struct wz_stages *s, const json_t *of, struct wz_err *err)
{
    static const char *const names[] = { "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents" };
    struct stage *st = add(s, NORMALIZE, NULL);

    while (strcmp(json_string_value(json_object_get(of, "type")), names[st->form]) != 0) st->form++;
    return 0;
}

static int add_splits(struct wz_stages *s, const json_t *of, struct wz_err *err)
{
    struct stage *st = add(s, SPLIT, NULL);

    st->invert = json_is_true(json_object_get(of, "invert"));
    return behavior_of(s, st, of, false, err) < 0 ? -1 : pattern_of(s, st, of, err);
}

static int add_digits(struct wz_stages *s, const json_t *of, struct wz_err *err)
{
    return add_split(s, json_is_true(json_object_get(of, "individual_digits")) ? "\\p{N}" : "\\p{N}+", ISOLATED, err);
}

static int add_punctuation(struct wz_stages *s, const json_t *of, struct wz_err *err)
{
    struct stage *st = add(s, SPLIT, NULL);

    return behavior_of(s, st, of, true, err) < 0 ? -1 : compile(s, st, "[\\p{P}$+<=>^`|~]", false, err);
}

static int add_whitespace(struct wz_stages *s, const json_t *of, struct wz_err *err)
{
#define RUST_WORD "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200c}\\x{200d}" /* what \w is in its regexes */
    const char *regex = "[" RUST_WORD "]+|[^\\s" RUST_WORD "]+";

    if (add_split(s, regex, REMOVED, err) < 0) return -1;
    s->list[s->n - 1].invert = true;
    return 0;
}

static int add_whitespace_split(struct wz_stages *s, const json_t *of, struct wz_err *err)
{
    return add_split(s, "\\s", REMOVED, err);
}

static int add_delimiter(struct wz_stages *s, const json_t *of, struct wz_err *err)
{
    const char *delimiter = json_string_value(json_object_get(of, "delimiter"));

    if (!delimiter || !*delimiter) return wz_fail(err, "%s: CharDelimiterSplit: expected a delimiter", s->name);
    struct stage *st = add(s, SPLIT, NULL);
    st->behavior = REMOVED;
    return compile(s, st, delimiter, true, err);
}

static int add_byte_level(struct wz_stages *s, const json_t *of, struct wz_err *err)
{
    if (!json_is_false(json_object_get(of, "add_prefix_space"))) add(s, PREFIX, " ")->when = ALWAYS;
    if (!json_is_false(json_object_get(of, "use_regex")) && add_split(s, wz_gpt2_pattern, ISOLATED, err) < 0) return -1;
    add(s, ALPHABET, NULL);
    s->byte_level = true;
    return 0;
}

static const struct part {
    enum wz_part_kind kind;
    const char *type;
    int (*add)(struct wz_stages *s, const json_t *of, struct wz_err *err);
} parts[] = {
    { WZ_NORMALIZER, "Prepend", add_prepend },
    { WZ_NORMALIZER, "Replace", add_replace },
    { WZ_NORMALIZER, "Strip", add_strip },
    { WZ_NORMALIZER, "NFC", add_form },
    { WZ_NORMALIZER, "NFD", add_form },
    { WZ_NORMALIZER, "NFKC", add_form },
    { WZ_NORMALIZER, "NFKD", add_form },
    { WZ_NORMALIZER, "Lowercase", add_form },
    { WZ_NORMALIZER, "StripAccents", add_form },
    { WZ_PRE_TOKENIZER, "Split", add_splits },
    { WZ_PRE_TOKENIZER, "ByteLevel", add_byte_level },
    { WZ_PRE_TOKENIZER, "Metaspace", add_metaspace },
    { WZ_PRE_TOKENIZER, "Digits", add_digits },
    { WZ_PRE_TOKENIZER, "Punctuation", add_punctuation },
    { WZ_PRE_TOKENIZER, "Whitespace", add_whitespace },
    { WZ_PRE_TOKENIZER, "WhitespaceSplit", add_whitespace_split },
    { WZ_PRE_TOKENIZER, "CharDelimiterSplit", add_delimiter },
};
static const struct {
    const char *name, *list;
} kinds[] = {
    [WZ_NORMALIZER] = { "normalizer", "normalizers" }, [WZ_PRE_TOKENIZER] = { "pre-tokenizer", "pretokenizers" }
};

/* deep: nesting of sequences, at most 8. */
static int add_part(struct wz_stages *s, const json_t *of, enum wz_part_kind kind, int deep, struct wz_err *err)
{
    const char *type = json_string_value(json_object_get(of, "type"));
    const json_t *list = json_object_get(of, kinds[kind].list), *part;
    struct wz_buf known = { 0 };
    size_t i;

    if (!of || json_is_null(of)) return 0;
    if (!type) return wz_fail(err, "%s: a %s has no type", s->name, kinds[kind].name);
    if (strcmp(type, "Sequence") == 0 && deep < 8) {
        if (!json_is_array(list))
            return wz_fail(err, "%s: %s Sequence: expected a list \"%s\"", s->name, kinds[kind].name, kinds[kind].list);
        json_array_foreach(list, i, part) if (add_part(s, part, kind, deep + 1, err) < 0) return -1;
        return 0;
    }
    for (i = 0; i < WZ_COUNT(parts); i++) {
        if (parts[i].kind != kind) continue;
        if (strcmp(type, parts[i].type) == 0) {
            wz_buf_finish(&known);
            return parts[i].add(s, of, err);
        }
        wz_buf_printf(&known, "%s, ", parts[i].type);
    }
    wz_fail(err, "%s: %s: expected %sSequence, got unsupported type %.40s", s->name, kinds[kind].name, known.data,
            type);
    wz_buf_finish(&known);
    return -1;
}

struct wz_stages *wz_stages_create(const json_t *part, enum wz_part_kind kind, const char *name, struct wz_err *err)
{
    struct wz_stages *s = wz_alloc(sizeof *s);

    s->name = name;
    if (add_part(s, part, kind, 0, err) == 0) return s;
    wz_stages_destroy(s);
    return NULL;
}

void wz_stages_destroy(struct wz_stages *s)
{
    if (!s) return;
    for (int i = 0; i < s->n; i++) {
        pcre2_code_free(s->list[i].re);
        free(s->list[i].text);
    }
    free(s->list);
    free(s);
}

bool wz_stages_byte_level(const struct wz_stages *s) { return s->byte_level; }

/* ---- running ---------------------------------------------------------------------------------------------- */

static void push(struct wz_cut *cut, size_t at, size_t len)
{
    if (len == 0) return;
    if (cut->n_spare == cut->spare_cap) {
        cut->spare_cap = cut->spare_cap ? 2 * cut->spare_cap : 64;
        cut->spare_list = wz_realloc(cut->spare_list, wz_mul((size_t)cut->spare_cap, sizeof *cut->spare_list));
    }
    cut->spare_list[cut->n_spare++] = (struct wz_span){ at, len };
}

/* The next non-empty match at or after `from` in text[0..n): 1 and its range in at[2]; 0: none; -1 and a message. */
static int match(const struct wz_stages *s, const struct stage *st, struct wz_cut *cut, const char *text, size_t n,
                 size_t from, size_t at[2], struct wz_err *err)
{
    PCRE2_UCHAR why[256];

    if (!cut->match && !(cut->match = pcre2_match_data_create(1, NULL))) wz_die("out of memory for a regex");
    uint32_t options = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;
    int rc = pcre2_match(st->re, (PCRE2_SPTR)text, n, from, options, cut->match, NULL);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(st->re, (PCRE2_SPTR)text, n, from, options | PCRE2_NO_JIT, cut->match, NULL);
    if (rc == PCRE2_ERROR_NOMATCH) return 0;
    if (rc < 0) {
        pcre2_get_error_message(rc, why, sizeof why);
        return wz_fail(err, "%s: matching a pre-tokenizer pattern: %s", s->name, (char *)why);
    }
    const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(cut->match);
    at[0] = ends[0];
    at[1] = ends[1];
    /* \K in a lookahead can move the start past the end; such a match is empty. */
    return at[0] < at[1] && at[0] >= from && at[1] <= n;
}

/* A chunk of a span: a match, or the text between two. *before: whether the previous chunk was a match; first: there is
 * none. */
static void chunk(const struct stage *st, struct wz_cut *cut, size_t at, size_t end, bool matched, bool *before,
                  bool first)
{
    bool join = false;

    if (st->invert) matched = !matched;
    switch (st->behavior) {
    case ISOLATED: break;
    case REMOVED:
        if (!matched) push(cut, at, end - at);
        return;
    case MERGED_WITH_PREVIOUS: join = !first && matched && !*before; break;
    case MERGED_WITH_NEXT: join = !first && !matched && *before; break;
    case CONTIGUOUS: join = !first && matched == *before; break;
    }
    if (join) cut->spare_list[cut->n_spare - 1].len += end - at;
    else push(cut, at, end - at);
    *before = matched;
}

static int split(const struct wz_stages *s, const struct stage *st, struct wz_cut *cut, struct wz_span span,
                 struct wz_err *err)
{
    const char *text = cut->text.data + span.at;
    size_t done = 0, at[2] = { 0 };
    bool before = false, first = true;
    int rc;

    while (done < span.len && (rc = match(s, st, cut, text, span.len, done, at, err)) != 0) {
        if (rc < 0) return -1;
        if (at[0] > done) {
            chunk(st, cut, span.at + done, span.at + at[0], false, &before, first);
            first = false;
        }
        chunk(st, cut, span.at + at[0], span.at + at[1], true, &before, first);
        first = false;
        done = at[1];
    }
    if (done < span.len) chunk(st, cut, span.at + done, span.at + span.len, false, &before, first);
    return 0;
}

/* Rewrites one span into cut->spare. */
static int rewrite(const struct wz_stages *s, const struct stage *st, struct wz_cut *cut, struct wz_span span,
                   bool first, struct wz_err *err)
{
    const char *text = cut->text.data + span.at;
    size_t start = cut->spare.len;
    size_t done = 0;
    size_t at[2] = { 0 };
    size_t lead = strlen(st->text);
    char out[4];
    int rc = 0, len;

    if (st->verb == ALPHABET) {
        for (size_t i = 0; i < span.len; i++) {
            len = wz_utf8_put(out, wz_byte_char((unsigned char)text[i]));
            wz_buf_add(&cut->spare, out, (size_t)len);
        }
    } else if (st->verb == NORMALIZE) {
        wz_normalize(st->form, text, span.len, &cut->spare);
    } else if (st->verb == REPLACE) {
        while (done < span.len && (rc = match(s, st, cut, text, span.len, done, at, err)) > 0) {
            wz_buf_add(&cut->spare, text + done, at[0] - done);
            wz_buf_str(&cut->spare, st->text);
            done = at[1];
        }
        wz_buf_add(&cut->spare, text + done, span.len - done);
    } else {
        bool there = span.len >= lead && memcmp(text, st->text, lead) == 0;
        if (st->verb == PREPEND || (!there && (st->when == ALWAYS || (st->when == FIRST && first))))
            wz_buf_str(&cut->spare, st->text);
        wz_buf_add(&cut->spare, text, span.len);
    }
    push(cut, start, cut->spare.len - start);
    return rc < 0 ? -1 : 0;
}

int wz_stages_run(const struct wz_stages *s, const char *text, size_t n, bool first, struct wz_cut *cut,
                  struct wz_err *err)
{
    cut->n_spare = 0;
    push(cut, 0, n);
    wz_buf_clear(&cut->text);
    wz_buf_add(&cut->text, text, n);
    for (int i = 0;; i++) {
        struct wz_span *list = cut->list;
        int cap = cut->cap;
        cut->list = cut->spare_list;
        cut->cap = cut->spare_cap;
        cut->n = cut->n_spare;
        cut->spare_list = list;
        cut->spare_cap = cap;
        cut->n_spare = 0;
        if (i == s->n) return 0;
        const struct stage *st = &s->list[i];
        wz_buf_clear(&cut->spare);
        for (int k = 0; k < cut->n; k++)
            if ((st->verb == SPLIT ? split(s, st, cut, cut->list[k], err)
                                   : rewrite(s, st, cut, cut->list[k], first && k == 0, err)) < 0)
                return -1;
        if (st->verb == SPLIT) continue;
        struct wz_buf swap = cut->text;
        cut->text = cut->spare;
        cut->spare = swap;
    }
}

void wz_cut_finish(struct wz_cut *cut)
{
    pcre2_match_data_free(cut->match);
    wz_buf_finish(&cut->text);
    wz_buf_finish(&cut->spare);
    free(cut->list);
    free(cut->spare_list);
    *cut = (struct wz_cut){ 0 };
}
