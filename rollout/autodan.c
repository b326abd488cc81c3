/* AutoDAN: a genetic search over whole sentences (Liu et al. 2023, arXiv 2310.04451, section 3 and algorithm 1).
 *
 * The population are texts with a place for the prompt, at first those of `how`, whose fitness is the score. In a step
 * the best tenth stays; of the others each has two parents, drawn with probabilities softmax(score); with probability
 * 1/2 it takes the sentences of one or the other between at most 5 breakpoints. Where the paper has a model rewrite
 * texts, and counts words (HGA), a sentence is exchanged for one of the first texts here, with probability 1/10. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "rollout/search.h"

static const char mark[] = "{prompt}";

/* Bytes of the text's first sentence, or part of one, with the blanks behind it; 0: there is none. */
static size_t sentence(const char *text)
{
    const char *p = text;

    while (*p && !(strchr(".,!?;:", *p) && strchr(" \t", p[1]))) p++;
    while (*p && strchr(".,!?;: \t", *p)) p++;
    return (size_t)(p - text);
}

/* Its i-th sentence, and how long it is; past the last: "", 0. */
static const char *sentence_at(const char *text, int i, size_t *n)
{
    while (i-- > 0) text += sentence(text);
    *n = sentence(text);
    return text;
}

static int sentences(const char *text)
{
    int n = 0;

    for (size_t k; (k = sentence(text)) > 0; text += k) n++;
    return n;
}

static bool marked_once(const char *text)
{
    const char *at = strstr(text, mark);

    return at && !strstr(at + 1, mark);
}

/* The ids of a text with the prompt in its place. False: it has none. */
static bool express(const struct wz_searching *s, struct wz_candidate *c, bool first, struct wz_err *err)
{
    const char *at = strstr(c->text, mark);
    char *message = wz_path("%.*s%s%s", (int)(at - c->text), c->text, s->e->prompt, at + sizeof mark - 1);
    const bool ok = wz_candidate_spell(s, c, message, first, err);

    free(message);
    return ok;
}

/* Line i of the texts of `how`: heap; NULL: there are not so many. */
static char *line_at(const char *text, int i)
{
    while (i-- > 0 && *text) text += strcspn(text, "\n"), text += *text == '\n';
    return *text ? wz_path("%.*s", (int)strcspn(text, "\n"), text) : NULL;
}

int wz_autodan_begin(struct wz_searching *s, struct wz_candidate *out, struct wz_err *err)
{
    int n = 0;
    char *line;

    for (int i = 0; (line = line_at(s->how->text, i)) != NULL; i++) {
        struct wz_candidate *c = &out[n];
        free(c->text);
        c->text = line;
        if (!marked_once(line)) return wz_fail(err, "evaluate.search.text: '%s' has no %s, or several", line, mark);
        for (int first = s->first; first < (n ? s->first + 1 : 2); first++)
            if (express(s, c, first, err) && wz_candidate_place(s, c, err)) {
                s->first = first;
                n++;
                break;
            }
    }
    return n ? n : wz_fail_in(err, "evaluate.search.text: the last of its texts with the prompt in it, as the others");
}

/* An index by weights[n] that add up to 1. */
static int draw_by(const double *weights, int n, struct wz_key key)
{
    double left = wz_uniform(key);
    int i = 0;

    while (i < n - 1 && (left -= weights[i]) >= 0) i++;
    return i;
}

/* Sentences are put together with one blank between them, wherever they were. */
static void put(struct wz_buf *text, const char *from, size_t n)
{
    while (n && strchr(" \t", from[n - 1])) n--;
    wz_buf_printf(text, "%s%.*s", text->len ? " " : "", (int)n, from);
}

/* Sentences of a, or between breakpoints of b; what a has more of is a's. key.d counts the draws. Heap. */
static char *cross(const char *a, const char *b, struct wz_key *key)
{
    enum { POINTS = 5 };
    const int of_a = sentences(a), of_b = sentences(b), both = of_a < of_b ? of_a : of_b;
    int points = both - 1 < POINTS ? both - 1 : POINTS;
    struct wz_buf child = { 0 };
    bool from_b = false;

    for (int i = 0; i < of_a; i++) {
        bool breaks = i == 0;
        key->d++;
        if (i > 0 && i < both && wz_uniform(*key) * (both - i) < points) breaks = points-- > 0;
        key->d++;
        if (breaks) from_b = wz_uniform(*key) < 0.5;
        size_t n;
        const char *from = sentence_at(from_b && i < both ? b : a, i, &n);
        put(&child, from, n);
    }
    return child.data;
}

/* The text with one sentence of a first text for one of its own: heap. */
static char *exchange(const struct wz_searching *s, const char *text, struct wz_key *key)
{
    const int all = sentences(text);
    struct wz_buf changed = { 0 };
    int lines = 0;
    char *line;

    for (; (line = line_at(s->how->text, lines)) != NULL; lines++) free(line);
    key->d++;
    line = line_at(s->how->text, (int)wz_below(*key, (uint32_t)lines));
    key->d++;
    const int at = (int)wz_below(*key, (uint32_t)all);
    key->d++;
    const int other = (int)wz_below(*key, (uint32_t)sentences(line));
    for (int i = 0; i < all; i++) {
        size_t n;
        const char *from = i == at ? sentence_at(line, other, &n) : sentence_at(text, i, &n);
        put(&changed, from, n);
    }
    free(line);
    return changed.data;
}

void wz_autodan_propose(const struct wz_searching *s, const struct wz_candidate *c, int n_c, int step,
                        struct wz_candidate *out, int n)
{
    double *weights = wz_alloc(sizeof *weights * (size_t)n_c), sum = 0;
    bool *kept = wz_alloc(sizeof *kept * (size_t)n_c);
    const double top = wz_candidate_best(c, n_c)->score;
    struct wz_err err;

    for (int i = 0; i < n_c; i++) sum += weights[i] = exp(c[i].score - top);
    for (int i = 0; i < n_c; i++) weights[i] /= sum;
    for (int b = 0; b < n; b++) {
        struct wz_key key = { s->seed, WZ_RNG_ATTACK, s->e->index, (uint32_t)step, (uint32_t)b, 0 };
        char *text;
        if (b < (n + 9) / 10 && b < n_c) { /* the best, in turn */
            int best = -1;
            for (int i = 0; i < n_c; i++)
                if (!kept[i] && (best < 0 || c[i].score > c[best].score)) best = i;
            kept[best] = true;
            text = wz_strdup(c[best].text);
        } else {
            const char *a = c[draw_by(weights, n_c, key)].text;
            key.d++;
            const char *other = c[draw_by(weights, n_c, key)].text;
            key.d++;
            text = wz_uniform(key) < 0.5 ? cross(a, other, &key) : wz_strdup(a);
            key.d++;
            if (wz_uniform(key) < 0.1) {
                char *changed = exchange(s, text, &key);
                free(text);
                text = changed;
            }
            if (!marked_once(text)) { /* the prompt's sentence went, or came twice */
                free(text);
                text = wz_strdup(a);
            }
        }
        free(out[b].text);
        out[b].text = text;
        express(s, &out[b], s->first, &err); /* false: it has no ids, and is not scored */
    }
    free(weights);
    free(kept);
}
