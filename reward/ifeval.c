/* IFEval's rules (Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models", table 1): whether a
 * reply follows the instructions that its prompt lists. The verdicts are those of the published checkers; their regular
 * expressions are written out beside what does the same. Text is code points, as theirs is.
 *
 *   strict   the rule holds for the reply       loose   for it, or for it without its first line, its last, or both, or
 *                                                       any of these four without asterisks
 *
 * An empty reply follows none. Left out are the kinds of the rows without a rule, which need a language detector or a
 * trained sentence splitter, and an instruction without an argument that they would draw at random. */
#include "reward/reward.h"

#include <stdlib.h>
#include <string.h>

enum { NO, YES, LEFT_OUT };

struct text {
    uint32_t *c; /* [n] */
    int n;
};

static struct text text_of(const char *s, size_t bytes)
{
    struct text t = { wz_alloc(sizeof *t.c * (bytes + 1)), 0 };

    for (size_t at = 0; at < bytes;) {
        int len;
        t.c[t.n++] = wz_utf8_get(s + at, bytes - at, &len);
        at += (size_t)len;
    }
    return t;
}

/* Python's str.isspace() and \s. */
static bool is_space(uint32_t c) { return (c >= 28 && c <= 31) || wz_char_space(c); }

static struct text part(struct text t, int from, int to) { return (struct text){ t.c + from, to - from }; }

static struct text strip_of(struct text t, bool (*drop)(uint32_t c), bool left, bool right)
{
    while (left && t.n && drop(t.c[0])) t = part(t, 1, t.n);
    while (right && t.n && drop(t.c[t.n - 1])) t.n--;
    return t;
}

static struct text strip(struct text t) { return strip_of(t, is_space, true, true); }

static bool is_quote(uint32_t c) { return c == '"'; }
static bool is_apostrophe(uint32_t c) { return c == '\''; }
static bool is_star(uint32_t c) { return c == '*'; }
static bool is_opening(uint32_t c) { return c == '<'; }
static bool is_closing(uint32_t c) { return c == '>'; }

static bool is_at(struct text t, int at, struct text what, bool fold)
{
    if (at < 0 || what.n > t.n - at) return false;
    for (int i = 0; i < what.n; i++)
        if (fold ? wz_char_lower(t.c[at + i]) != wz_char_lower(what.c[i]) : t.c[at + i] != what.c[i]) return false;
    return true;
}

static bool ascii_at(struct text t, int at, const char *what)
{
    for (int i = 0; what[i]; i++)
        if (at + i >= t.n || t.c[at + i] != (unsigned char)what[i]) return false;
    return true;
}

static uint32_t folded(uint32_t c, bool fold) { return fold ? wz_char_lower(c) : c; }

/* The places of `what` in t, those that overlap too, in the time of their lengths (Knuth, Morris & Pratt 1977). */
struct search {
    struct text t, what;
    bool fold;
    int *back;    /* for each beginning of `what`, how much of it is its end as well */
    int at, same; /* what is read of t, and of it how much at the end is a beginning of `what` */
};

static int grow(const struct search *s, int same, uint32_t c)
{
    while (same && folded(s->what.c[same], s->fold) != c) same = s->back[same - 1];
    return same + (folded(s->what.c[same], s->fold) == c);
}

static struct search search_of(struct text t, struct text what, bool fold)
{
    struct search s = { t, what, fold, wz_alloc(sizeof *s.back * ((size_t)what.n + 1)), 0, 0 };

    for (int i = 1; i < what.n; i++) s.back[i] = grow(&s, s.back[i - 1], folded(what.c[i], fold));
    return s;
}

/* The next place; -1: there is none. Nothing is at the beginning. */
static int search_next(struct search *s)
{
    const int n = s->what.n;

    if (!n) return 0;
    while (s->at < s->t.n) {
        s->same = grow(s, s->same, folded(s->t.c[s->at++], s->fold));
        if (s->same < n) continue;
        s->same = s->back[n - 1];
        return s->at - n;
    }
    return -1;
}

static bool word_at(struct text t, int at) { return at >= 0 && at < t.n && wz_char_alnum(t.c[at]); }
static bool boundary(struct text t, int at) { return word_at(t, at - 1) != word_at(t, at); }

/* ---- arguments -------------------------------------------------------------------------------------------- */

/* An argument that is empty or 0 counts as missing. */
static int number(const json_t *args, const char *name) { return (int)json_integer_value(json_object_get(args, name)); }

static const char *string(const json_t *args, const char *name)
{
    const char *s = json_string_value(json_object_get(args, name));

    return s && *s ? s : NULL;
}

/* Of a count, as the relation in args[name] has it. */
static int compare(const json_t *args, const char *name, int count, int threshold)
{
    const char *relation = string(args, name);

    if (!relation || threshold < 1) return LEFT_OUT;
    return !strcmp(relation, "less than")  ? count < threshold
           : !strcmp(relation, "at least") ? count >= threshold
                                           : LEFT_OUT;
}

static int at_least(int count, int threshold) { return threshold < 1 ? LEFT_OUT : count >= threshold; }
static int equal(int count, int threshold) { return threshold < 1 ? LEFT_OUT : count == threshold; }

/* ---- the rules -------------------------------------------------------------------------------------------- */

/* How often a word or phrase occurs, in any case; whole: between \b. */
static int occurrences(struct text t, const char *phrase, bool whole)
{
    struct text word = text_of(phrase, strlen(phrase)), what = whole ? word : strip(word);
    struct search s = search_of(t, what, true);
    int n = 0;

    for (int at, from = 0; what.n && (at = search_next(&s)) >= 0;) {
        if (at < from || (whole && !(boundary(t, at) && boundary(t, at + what.n)))) continue;
        n++;
        from = at + what.n;
    }
    free(s.back);
    free(word.c);
    return n;
}

static int existence(struct text t, const json_t *args)
{
    const json_t *list = json_object_get(args, "keywords"), *word;
    size_t i;

    if (!json_array_size(list)) return LEFT_OUT;
    json_array_foreach((json_t *)(uintptr_t)list, i, word)
    {
        if (!json_is_string(word)) return LEFT_OUT;
        struct text what = text_of(json_string_value(word), json_string_length(word));
        struct search s = search_of(t, what, true);
        const bool there = search_next(&s) >= 0;
        free(s.back);
        free(what.c);
        if (!there) return NO;
    }
    return YES;
}

static int forbidden(struct text t, const json_t *args)
{
    const json_t *list = json_object_get(args, "forbidden_words"), *word;
    size_t i;

    if (!json_array_size(list)) return LEFT_OUT;
    json_array_foreach((json_t *)(uintptr_t)list, i, word)
    {
        if (!json_is_string(word)) return LEFT_OUT;
        if (occurrences(t, json_string_value(word), true)) return NO;
    }
    return YES;
}

static int frequency(struct text t, const json_t *args)
{
    const char *word = string(args, "keyword");

    return word ? compare(args, "relation", occurrences(t, word, false), number(args, "frequency")) : LEFT_OUT;
}

static int letter_frequency(struct text t, const json_t *args)
{
    const char *letter = string(args, "letter");
    int n = 0;

    if (!letter || letter[1] || ((letter[0] | 32) < 'a' || (letter[0] | 32) > 'z')) return LEFT_OUT;
    for (int i = 0; i < t.n; i++) n += wz_char_lower(t.c[i]) == (uint32_t)(letter[0] | 32);
    return compare(args, "let_relation", n, number(args, "let_frequency"));
}

/* \w+ */
static int number_words(struct text t, const json_t *args)
{
    int n = 0;

    for (int i = 0; i < t.n; i++) n += word_at(t, i) && !word_at(t, i - 1);
    return compare(args, "relation", n, number(args, "num_words"));
}

/* Pieces between \s?\*\*\*\s?; an empty one counts only at an end, where it is none. */
static int number_paragraphs(struct text t, const json_t *args)
{
    int n = 0, from = 0;

    for (int at = 0; at <= t.n;) {
        const int stars = at + (at < t.n && is_space(t.c[at]));
        const bool splits = ascii_at(t, stars, "***"), end = at == t.n;
        if (!splits && !end) {
            at++;
            continue;
        }
        const bool blank = strip(part(t, from, at)).n == 0;
        if (blank && from && !end) return NO;
        n += !blank;
        if (end) break;
        at = stars + 3 + (stars + 3 < t.n && is_space(t.c[stars + 3]));
        from = at;
    }
    return equal(n, number(args, "num_paragraphs"));
}

/* Pieces between two line ends; the first word of one of them, to its first punctuation. */
static int first_word(struct text t, const json_t *args)
{
    const char *word = string(args, "first_word");
    const int nth = number(args, "nth_paragraph"), most = number(args, "num_paragraphs");
    struct text piece = { 0 };
    int n = 0, index = 0, from = 0;

    if (!word || nth < 1 || most < 1) return LEFT_OUT;
    for (int at = 0; at <= t.n; at++) {
        if (at < t.n && !ascii_at(t, at, "\n\n")) continue;
        const struct text p = strip(part(t, from, at));
        n += p.n > 0;
        if (++index == nth) piece = p;
        from = at + 2;
        at++;
    }
    if (nth > n || !piece.n) return NO;
    int k = 0;
    while (k < piece.n && !is_space(piece.c[k])) k++;
    piece = strip_of(strip_of(part(piece, 0, k), is_apostrophe, true, false), is_quote, true, false);
    for (k = 0; k < piece.n && (piece.c[k] >= 128 || !strchr(".,?!'\"", (int)piece.c[k]));) k++;
    struct text want = text_of(word, strlen(word));
    const bool same = k == want.n && is_at(piece, 0, want, true);
    free(want.c);
    return same && n == most;
}

/* \[.*?\] */
static int placeholders(struct text t, const json_t *args)
{
    int n = 0;

    for (int i = 0; i < t.n; i++) {
        if (t.c[i] != '[') continue;
        int end = i + 1;
        while (end < t.n && t.c[end] != ']' && t.c[end] != '\n') end++;
        n += end < t.n && t.c[end] == ']';
        i = end; /* where it was not closed, none up to here is */
    }
    return at_least(n, number(args, "num_placeholders"));
}

/* \s*p\.\s?p\.\s?s.*$ and \s*p\.\s?s\..*$, in any case */
static int postscript(struct text t, const json_t *args)
{
    const char *marker = string(args, "postscript_marker");

    if (!marker) return LEFT_OUT;
    for (int i = 0; i < t.n; i++) {
        int at = i;
        const char *m = marker;
        for (; *m && at < t.n && wz_char_lower(t.c[at]) == (uint32_t)(*m | (*m >= 'A' && *m <= 'Z' ? 32 : 0)); m++) {
            at++;
            if (*m == '.' && at < t.n && is_space(t.c[at])) at++;
        }
        if (!*m) return YES;
    }
    return NO;
}

/* ^\s*\*[^\*].*$ and ^\s*-.*$, matches that do not overlap; `after`: one character more that is no asterisk. */
static int bullets_of(struct text t, uint32_t mark, bool after)
{
    int n = 0;

    for (int at = 0; at < t.n;) {
        int i = at;
        const bool begins = at == 0 || t.c[at - 1] == '\n';
        while (begins && i < t.n && is_space(t.c[i])) i++;
        if (!begins || i == t.n || t.c[i] != mark || (after && (i + 1 == t.n || t.c[i + 1] == '*'))) {
            at = begins ? i + 1 : at + 1; /* none of the blank lines begins it either */
            continue;
        }
        n++;
        for (i += 1 + after; i < t.n && t.c[i] != '\n';) i++;
        at = i;
    }
    return n;
}

static int bullets(struct text t, const json_t *args)
{
    return equal(bullets_of(t, '*', true) + bullets_of(t, '-', false), number(args, "num_bullets"));
}

static int constrained(struct text t, const json_t *args)
{
    static const char *const answers[] = { "My answer is yes.", "My answer is no.", "My answer is maybe." };

    for (int i = 0; i < t.n; i++)
        for (size_t k = 0; k < WZ_COUNT(answers); k++)
            if (ascii_at(t, i, answers[k])) return YES;
    return NO;
}

/* \*[^\n\*]*\* and \*\*[^\n\*]*\*\*, of which those count that hold more than blanks. */
static int highlights_of(struct text t, int stars)
{
    const char *mark = stars == 2 ? "**" : "*";
    int n = 0;

    for (int i = 0; i < t.n;) {
        int end = i + stars;
        const bool begins = ascii_at(t, i, mark);
        while (begins && end < t.n && t.c[end] != '*' && t.c[end] != '\n') end++;
        if (!begins || !ascii_at(t, end, mark)) {
            i++;
            continue;
        }
        n += strip(strip_of(part(t, i, end + stars), is_star, true, true)).n > 0;
        i = end + stars;
    }
    return n;
}

static int highlights(struct text t, const json_t *args)
{
    return at_least(highlights_of(t, 1) + highlights_of(t, 2), number(args, "num_highlights"));
}

/* \s?SPLITTER\s?\d+\s? */
static int sections(struct text t, const json_t *args)
{
    const char *given = string(args, "section_spliter");
    int n = 0;

    if (!given) return LEFT_OUT;
    struct text splitter = text_of(given, strlen(given)), what = strip(splitter);
    struct search s = search_of(t, what, false);
    for (int at, from = 0; what.n && (at = search_next(&s)) >= 0;) {
        int digit = at + what.n;
        if (digit < t.n && is_space(t.c[digit])) digit++;
        if (at < from || digit == t.n || !wz_char_digit(t.c[digit])) continue;
        n++;
        from = digit;
    }
    free(s.back);
    free(splitter.c);
    return at_least(n, number(args, "num_sections"));
}

static int json_format(struct text t, const json_t *args)
{
    static const char *const fences[] = { "```json", "```Json", "```JSON", "```" };
    struct wz_buf bytes = { 0 };

    t = strip(t);
    for (size_t i = 0; i < WZ_COUNT(fences); i++)
        if (ascii_at(t, 0, fences[i])) t = part(t, (int)strlen(fences[i]), t.n);
    if (t.n >= 3 && ascii_at(t, t.n - 3, "```")) t.n -= 3;
    t = strip(t);
    wz_buf_str(&bytes, "["); /* any value, not only an object or an array */
    for (int i = 0; i < t.n; i++) {
        char utf8[4];
        wz_buf_add(&bytes, utf8, (size_t)wz_utf8_put(utf8, t.c[i]));
    }
    wz_buf_str(&bytes, "]");
    json_t *value = wz_json_parse(bytes.data, bytes.len, "", NULL);
    const bool is = json_array_size(value) == 1;
    json_decref(value);
    wz_buf_finish(&bytes);
    return is;
}

/* <<[^\n]+>>, of which one holds more than blanks and brackets. */
static int title(struct text t, const json_t *args)
{
    for (int i = 0; i < t.n; i++) {
        int end = i;
        if (!ascii_at(t, i, "<<")) continue;
        while (end < t.n && t.c[end] != '\n') end++;
        const int line = end;
        for (end -= 2; end >= i + 3 && !ascii_at(t, end, ">>");) end--;
        if (end < i + 3) { /* nor is one that begins later in the line */
            i = line;
            continue;
        }
        struct text of = strip_of(strip_of(part(t, i, end + 2), is_opening, true, false), is_closing, false, true);
        if (strip(of).n) return YES;
        i = end + 1;
    }
    return NO;
}

/* Two that differ, between six asterisks. */
static int two_responses(struct text t, const json_t *args)
{
    struct text found[2] = { { 0 } };
    int n = 0, from = 0;

    for (int at = 0; at <= t.n;) {
        const bool splits = ascii_at(t, at, "******"), end = at == t.n;
        if (!splits && !end) {
            at++;
            continue;
        }
        const struct text piece = strip(part(t, from, at));
        if (!piece.n && from && !end) return NO;
        if (piece.n && n++ < 2) found[n - 1] = piece;
        if (end) break;
        from = at += 6;
    }
    return n == 2 && !(found[0].n == found[1].n && is_at(found[0], 0, found[1], false));
}

static int repeat_prompt(struct text t, const json_t *args)
{
    const char *s = string(args, "prompt_to_repeat");

    if (!s) return LEFT_OUT;
    struct text prompt = text_of(s, strlen(s));
    const bool repeats = is_at(strip(t), 0, strip(prompt), true);
    free(prompt.c);
    return repeats;
}

static int end_checker(struct text t, const json_t *args)
{
    const char *s = string(args, "end_phrase");

    if (!s) return LEFT_OUT;
    struct text phrase = text_of(s, strlen(s)), want = strip(phrase);
    t = strip_of(strip(t), is_quote, true, true);
    const bool ends = is_at(t, t.n - want.n, want, true);
    free(phrase.c);
    return ends;
}

static int no_comma(struct text t, const json_t *args)
{
    for (int i = 0; i < t.n; i++)
        if (t.c[i] == ',') return NO;
    return YES;
}

static int quotation(struct text t, const json_t *args)
{
    t = strip(t);
    return t.n > 1 && t.c[0] == '"' && t.c[t.n - 1] == '"';
}

static const struct rule {
    const char *id;
    int (*check)(struct text reply, const json_t *args);
} rules[] = {
    { "keywords:existence", existence },
    { "keywords:frequency", frequency },
    { "keywords:forbidden_words", forbidden },
    { "keywords:letter_frequency", letter_frequency },
    { "length_constraints:number_words", number_words },
    { "length_constraints:number_paragraphs", number_paragraphs },
    { "length_constraints:nth_paragraph_first_word", first_word },
    { "detectable_content:number_placeholders", placeholders },
    { "detectable_content:postscript", postscript },
    { "detectable_format:number_bullet_lists", bullets },
    { "detectable_format:constrained_response", constrained },
    { "detectable_format:number_highlighted_sections", highlights },
    { "detectable_format:multiple_sections", sections },
    { "detectable_format:json_format", json_format },
    { "detectable_format:title", title },
    { "combination:two_responses", two_responses },
    { "combination:repeat_prompt", repeat_prompt },
    { "startend:end_checker", end_checker },
    { "startend:quotation", quotation },
    { "punctuation:no_comma", no_comma },
    { "language:response_language", NULL },
    { "length_constraints:number_sentences", NULL },
    { "change_case:capital_word_frequency", NULL },
    { "change_case:english_capital", NULL },
    { "change_case:english_lowercase", NULL },
    { 0 },
};

/* ---- a reply ---------------------------------------------------------------------------------------------- */

/* The reply and its seven looser forms, in form[8], whose characters are in `owned`. */
static void forms_of(struct text t, struct text form[8], struct text owned[4])
{
    int first = 0, last = t.n, lines = 1;

    for (int i = 0; i < t.n; i++) lines += t.c[i] == '\n';
    while (first < t.n && t.c[first] != '\n') first++;
    while (last > 0 && t.c[last - 1] != '\n') last--;
    form[0] = t;
    form[1] = lines > 1 ? strip(part(t, first, t.n)) : part(t, 0, 0);
    form[2] = lines > 1 ? strip(part(t, 0, last)) : part(t, 0, 0);
    form[3] = lines > 2 ? strip(part(t, first, last)) : part(t, 0, 0);
    for (int f = 0; f < 4; f++) {
        owned[f] = (struct text){ wz_alloc(sizeof *owned[f].c * (size_t)(t.n + 1)), 0 };
        for (int i = 0; i < form[f].n; i++)
            if (form[f].c[i] != '*') owned[f].c[owned[f].n++] = form[f].c[i];
        form[4 + f] = owned[f];
    }
}

static const char form_begins[] = "{\"ids\":";

bool wz_ifeval_is(const char *answer) { return !strncmp(answer, form_begins, strlen(form_begins)); }

static int check(const json_t *both, struct text t, enum wz_followed *followed, struct wz_err *err)
{
    const json_t *ids = json_object_get(both, "ids"), *kwargs = json_object_get(both, "kwargs");
    const size_t n = json_array_size(ids);
    struct text form[8], owned[4];
    int rc = (int)n;

    if (!n || n > WZ_MAX_INSTRUCTIONS || json_array_size(kwargs) != n)
        return wz_fail(err, "expected as many kwargs as instructions, and 1 to %d", WZ_MAX_INSTRUCTIONS);
    forms_of(t, form, owned);
    for (size_t i = 0; i < n && rc >= 0; i++) {
        const char *id = json_string_value(json_array_get(ids, i));
        const struct rule *rule = wz_row_find(rules, sizeof *rules, "instruction of IFEval", id ? id : "", err);
        const json_t *args = json_array_get(kwargs, i);
        if (!rule) rc = -1;
        followed[i] = rule && rule->check ? WZ_NOT_FOLLOWED : WZ_NOT_CHECKED;
        for (int f = 0; f < 8 && followed[i] == WZ_NOT_FOLLOWED; f++) {
            const int is = rule->check(form[f], args);
            if (is == LEFT_OUT) followed[i] = WZ_NOT_CHECKED;
            if (is == YES && strip(form[f]).n) followed[i] = f ? WZ_FOLLOWED_LOOSELY : WZ_FOLLOWED;
        }
    }
    for (int f = 0; f < 4; f++) free(owned[f].c);
    return rc;
}

int wz_ifeval_check(const char *answer, const char *reply, enum wz_followed followed[WZ_MAX_INSTRUCTIONS],
                    struct wz_err *err)
{
    json_t *both = wz_json_parse(answer, strlen(answer), "instructions", err);
    struct text t = text_of(reply, strlen(reply));
    const int n = both ? check(both, t, followed, err) : -1;

    free(t.c);
    json_decref(both);
    return n;
}

int wz_ifeval_left_out(const char *answer, json_t *names, int *n)
{
    enum wz_followed followed[WZ_MAX_INSTRUCTIONS];
    json_t *both = wz_json_parse(answer, strlen(answer), "instructions", NULL);
    int left = 0;

    *n = both ? wz_ifeval_check(answer, "a", followed, NULL) : 0;
    for (int i = 0; i < *n; i++) {
        if (followed[i] != WZ_NOT_CHECKED) continue;
        const char *id = json_string_value(json_array_get(json_object_get(both, "ids"), (size_t)i));
        json_object_set_new(names, id, json_true());
        left++;
    }
    json_decref(both);
    return left;
}
