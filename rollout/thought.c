/* Replies that begin with a thought, and replies whose beginning is given (RECAP, arXiv:2510.00938, section 2).
 *
 *   context ... <think> | words that were given, then words that were sampled </think> answer
 *
 * The opening mark is the last of the context where the chat template leaves it there, else the first of the turn. What
 * is given is a prefix of a thought with the wrong end in view (of any agent that does not think: of the reply); the
 * agent goes on from it. In full hijacking the thought is given whole, with its closing mark. In the iterative prefill
 * reset (RECAP, "adaptive attacks") a turn goes on from all that was thought in the one before it, a sentence that
 * turns back, and the prefix again. */
#include "rollout/rollout.h"

#include <string.h>

static const char opening[] = "<think>", closing[] = "</think>";
static const char blanks[] = " \t\n\v\f\r";

static const char *text_of(const struct wz_player *p, const int *ids, int n, struct wz_buf *buf)
{
    wz_buf_clear(buf);
    wz_decode(p->tok, ids, n, true, buf);
    return buf->data ? buf->data : "";
}

/* How a context ends: with an opened thought; with a blank. */
struct ending {
    bool opened, blank;
};

static struct ending ending_of(const struct wz_player *p, const int *ids, int n)
{
    enum { LAST = 16 }; /* ids that a mark and blanks may take */
    struct wz_buf buf = { 0 };
    const char *text = n > LAST ? text_of(p, ids + n - LAST, LAST, &buf) : text_of(p, ids, n, &buf);
    size_t all = strlen(text), k = all;

    while (k && strchr(blanks, text[k - 1])) k--;
    const size_t mark = sizeof opening - 1;
    const struct ending e = { p->think && k >= mark && !memcmp(text + k - mark, opening, mark), k < all };
    wz_buf_finish(&buf);
    return e;
}

/* How many of the turn's ids make up the first `bytes` bytes of its text, or more of it. */
static int ids_of(const struct wz_player *p, const int *ids, int n, size_t bytes)
{
    struct wz_buf buf = { 0 };
    int low = 0, high = n;

    while (low < high) {
        const int mid = (low + high) / 2;
        if (strlen(text_of(p, ids, mid, &buf)) >= bytes) high = mid;
        else low = mid + 1;
    }
    wz_buf_finish(&buf);
    return low;
}

/* ---- what is given ----------------------------------------------------------------------------------------- */

/* Text on its way to ids: what is between two marks that are tokens is encoded at once. */
struct given {
    const struct wz_player *p;
    struct wz_buf text;
    struct wz_ids *ids;
    struct wz_err *err;
    int rc;
};

static void flush(struct given *g)
{
    if (g->text.len && g->rc == 0) g->rc = wz_encode_part(g->p->tok, g->text.data, g->text.len, false, g->ids, g->err);
    wz_buf_clear(&g->text);
}

static void add_mark(struct given *g, const char *mark)
{
    const int id = wz_tokenizer_id(g->p->tok, mark);

    if (id < 0) {
        wz_buf_str(&g->text, mark);
        return;
    }
    flush(g);
    wz_ids_add(g->ids, id);
}

int wz_given_add(const struct wz_player *p, const Wz__Episode *e, struct wz_ids *context, struct wz_err *err)
{
    struct given g = { .p = p, .ids = context, .err = err };
    const int before = context->n, last = wz_turn_last(e, p->seat->role);
    const char *text = e->prefill;

    if (!*text || strcmp(p->seat->role, WZ_CONVERSATION) != 0 || (last >= 0 && e->turns[last]->round >= e->resets))
        return 0;
    if (last < 0) {
        const struct ending end = ending_of(p, context->ids, context->n);
        if (p->think && !end.opened) {
            add_mark(&g, opening);
            if (!strchr(blanks, *text)) wz_buf_str(&g.text, "\n");
        } else if (end.blank) text += strspn(text, blanks);
    } else {
        const Wz__Turn *t = e->turns[last];
        const char *close = p->think ? strstr(t->text, closing) : NULL;
        const int said = (int)t->n_ids - !t->truncated;
        /* up to the id in which the mark begins */
        wz_ids_append(context, t->ids, close ? ids_of(p, t->ids, said, (size_t)(close - t->text) + 1) - 1 : said);
        wz_buf_printf(&g.text, " %s ", e->transition);
        text += strspn(text, blanks);
    }
    wz_buf_str(&g.text, text);
    if (e->hijack && p->think) add_mark(&g, closing);
    flush(&g);
    wz_buf_finish(&g.text);
    return g.rc < 0 ? -1 : context->n - before;
}

/* ---- what was said ----------------------------------------------------------------------------------------- */

void wz_thought_read(const struct wz_player *p, Wz__Turn *t)
{
    const int said = (int)t->n_ids - !t->truncated;
    const char *text = t->text, *close;

    t->valid = !t->truncated;
    if (!p->think) return;
    const struct ending end = ending_of(p, t->context, (int)t->n_context);
    const char *begin = text + strspn(text, blanks);
    const bool opens = !strncmp(begin, opening, sizeof opening - 1);
    close = end.opened || opens ? strstr(text, closing) : NULL;
    if (close) {
        const char *answer = close + sizeof closing - 1;
        t->thought = (uint32_t)(answer - text);
        t->thought_ids = (uint32_t)ids_of(p, t->ids, said, t->thought);
        t->valid &= !strstr(answer, closing) && answer[strspn(answer, blanks)];
    } else if (end.opened || opens) { /* it never came to an answer */
        t->thought = (uint32_t)strlen(text);
        t->thought_ids = (uint32_t)said;
    }
    t->valid &= close && !strstr(opens ? begin + 1 : begin, opening) && end.opened != opens;
}
