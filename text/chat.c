/* Chat templates: a row a template. A template writes special tokens by id and text as text; neighbouring texts are
 * joined and encoded as one, for the hub tokenises what it rendered between two special tokens as one.
 *
 *   llama3    <|begin_of_text|> { <|start_header_id|> ROLE <|end_header_id|> "\n\n" TEXT <|eot_id|> }
 *   llama3.1  the same, the system turn always there and opened by two lines of dates
 *   chatml    { <|im_start|> "ROLE\n" TEXT <|im_end|> "\n" }
 *   smollm2   the same, with a system turn of its own when none is given
 *   llama2    { <s> "[INST] " ["<<SYS>>\n" SYSTEM "\n<</SYS>>\n\n"] TEXT " [/INST]" " " TEXT " " </s> }
 *   mistral   <s> { "[INST] " TEXT " [/INST]" TEXT </s> }
 *   sandbox   <sys> SYSTEM { <user> TEXT <end> <asst> TEXT <end> } */
#include "text/text.h"

#include <stdlib.h>
#include <string.h>

#include "text/tokenizer_inside.h"

enum { N_STOPS = 8 };

/* What is being written: ids so far, and text not encoded yet. */
struct pen {
    const struct wz_template *t;
    const struct wz_tokenizer *tok;
    struct wz_ids *out;
    struct wz_buf text;
    int start; /* where this rendering began in out */
    struct wz_err *err;
};

struct wz_template {
    const char *name;
    const char *needs[6]; /* special pieces, NULL-terminated; "" in the place of BOS and EOS of the tokenizer */
    const char *stops[4]; /* first the one the template itself writes; those the tokenizer lacks are left out */
    int (*apply)(struct pen *pen, const struct wz_message *messages, int n, bool generate);
};

static const char *const roles[] = { [WZ_SYSTEM] = "system", [WZ_USER] = "user", [WZ_ASSISTANT] = "assistant" };

/* ---- the pen ---------------------------------------------------------------------------------------------- */

static int flush(struct pen *pen)
{
    int rc = wz_encode_part(pen->tok, pen->text.data, pen->text.len, pen->out->n == pen->start, pen->out, pen->err);

    wz_buf_clear(&pen->text);
    return rc;
}

static int special(struct pen *pen, const char *piece)
{
    if (pen->text.len && flush(pen) < 0) return -1;
    wz_ids_add(pen->out, wz_tokenizer_id(pen->tok, piece));
    return 0;
}

static int stop(struct pen *pen)
{
    if (pen->text.len && flush(pen) < 0) return -1;
    wz_ids_add(pen->out, pen->t->stops[0] ? wz_tokenizer_id(pen->tok, pen->t->stops[0]) : pen->tok->eos);
    return 0;
}

static int bos(struct pen *pen)
{
    if (pen->text.len && flush(pen) < 0) return -1;
    wz_ids_add(pen->out, pen->tok->bos);
    return 0;
}

static void text(struct pen *pen, const char *s) { wz_buf_str(&pen->text, s); }

/* What Python's str.strip() takes away. */
static bool is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || (c >= 28 && c <= 32) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

static void trimmed(struct pen *pen, const char *s, bool left, bool right)
{
    size_t n = strlen(s), end = 0;
    int len;

    while (left && *s && is_space(wz_utf8_get(s, n, &len))) {
        s += len;
        n -= (size_t)len;
    }
    for (size_t at = 0; at < n; at += (size_t)len)
        if (!is_space(wz_utf8_get(s + at, n - at, &len))) end = at + (size_t)len;
    wz_buf_add(&pen->text, s, right ? end : n);
}

/* Ids that a model wrote, less the token it ended with. */
static int ids(struct pen *pen, const struct wz_message *m)
{
    int stops[N_STOPS], n_stops = wz_template_stops(pen->t, pen->tok, stops), n = m->n_ids;

    if (pen->text.len && flush(pen) < 0) return -1;
    for (int i = 0; i < n_stops; i++)
        if (n == m->n_ids && n > 0 && m->ids[n - 1] == stops[i]) n--;
    wz_ids_append(pen->out, m->ids, n);
    return 0;
}

static int content(struct pen *pen, const struct wz_message *m, bool trim)
{
    if (m->text) trimmed(pen, m->text, trim, trim && !m->ids);
    return m->ids ? ids(pen, m) : 0;
}

/* user, assistant, user, ... after an optional system message, which must be text when it is written inside a turn. */
static int alternate(struct pen *pen, const struct wz_message *messages, int n, bool system)
{
    int first = system && n && messages[0].role == WZ_SYSTEM;

    if (first && !messages[0].text) return wz_fail(pen->err, "%s: the system message must be text", pen->t->name);
    if (first && n == 1)
        return wz_fail(pen->err, "%s: a system message stands in a user turn, which is missing", pen->t->name);
    for (int i = first; i < n; i++)
        if (messages[i].role != ((i - first) % 2 ? WZ_ASSISTANT : WZ_USER))
            return wz_fail(pen->err, "%s: message %d is of role %s; %suser and assistant must take turns", pen->t->name,
                           i + 1, roles[messages[i].role], system ? "after one system message " : "");
    return first;
}

/* ---- the rows --------------------------------------------------------------------------------------------- */

static int header(struct pen *pen, const char *role)
{
    if (special(pen, "<|start_header_id|>") < 0) return -1;
    text(pen, role);
    if (special(pen, "<|end_header_id|>") < 0) return -1;
    text(pen, "\n\n");
    return 0;
}

static int llama3_turns(struct pen *pen, const struct wz_message *messages, int n, bool generate)
{
    for (int i = 0; i < n; i++)
        if (header(pen, roles[messages[i].role]) < 0 || content(pen, &messages[i], true) < 0 || stop(pen) < 0)
            return -1;
    return generate ? header(pen, roles[WZ_ASSISTANT]) : 0;
}

static int llama3(struct pen *pen, const struct wz_message *messages, int n, bool generate)
{
    bos(pen);
    return llama3_turns(pen, messages, n, generate);
}

static int llama31(struct pen *pen, const struct wz_message *messages, int n, bool generate)
{
    int first = n && messages[0].role == WZ_SYSTEM;

    bos(pen);
    if (header(pen, roles[WZ_SYSTEM]) < 0) return -1;
    text(pen, "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n");
    if (first && content(pen, &messages[0], true) < 0) return -1;
    if (stop(pen) < 0) return -1;
    return llama3_turns(pen, messages + first, n - first, generate);
}

static int im_start(struct pen *pen, const char *role)
{
    if (special(pen, "<|im_start|>") < 0) return -1;
    text(pen, role);
    text(pen, "\n");
    return 0;
}

static int chatml(struct pen *pen, const struct wz_message *messages, int n, bool generate)
{
    for (int i = 0; i < n; i++) {
        if (im_start(pen, roles[messages[i].role]) < 0 || content(pen, &messages[i], false) < 0 || stop(pen) < 0)
            return -1;
        text(pen, "\n");
    }
    return generate ? im_start(pen, roles[WZ_ASSISTANT]) : 0;
}

static int smollm2(struct pen *pen, const struct wz_message *messages, int n, bool generate)
{
    if (n && messages[0].role != WZ_SYSTEM) {
        if (im_start(pen, roles[WZ_SYSTEM]) < 0) return -1;
        text(pen, "You are a helpful AI assistant named SmolLM, trained by Hugging Face");
        if (stop(pen) < 0) return -1;
        text(pen, "\n");
    }
    return chatml(pen, messages, n, generate);
}

static int llama2(struct pen *pen, const struct wz_message *messages, int n, bool generate)
{
    int first = alternate(pen, messages, n, true);

    if (first < 0) return -1;
    for (int i = first; i < n; i++) {
        const struct wz_message *m = &messages[i];
        if (m->role == WZ_USER) {
            bool system = first && i == first;
            if (bos(pen) < 0) return -1;
            text(pen, "[INST] ");
            if (system) {
                text(pen, "<<SYS>>\n");
                text(pen, messages[0].text);
                text(pen, "\n<</SYS>>\n\n");
            }
            if (m->text) trimmed(pen, m->text, !system, !m->ids);
            if (m->ids && ids(pen, m) < 0) return -1;
            text(pen, " [/INST]");
            continue;
        }
        if (m->text) {
            text(pen, " ");
            trimmed(pen, m->text, true, true);
            text(pen, " ");
        } else if (ids(pen, m) < 0) {
            return -1;
        }
        if (stop(pen) < 0) return -1;
    }
    return 0;
}

static int mistral(struct pen *pen, const struct wz_message *messages, int n, bool generate)
{
    if (alternate(pen, messages, n, false) < 0) return -1;
    bos(pen);
    for (int i = 0; i < n; i++) {
        bool user = messages[i].role == WZ_USER;
        if (user) text(pen, "[INST] ");
        if (content(pen, &messages[i], false) < 0) return -1;
        if (user) text(pen, " [/INST]");
        else if (stop(pen) < 0) return -1;
    }
    return 0;
}

static int sandbox(struct pen *pen, const struct wz_message *messages, int n, bool generate)
{
    static const char *const open[] = { [WZ_SYSTEM] = "<sys>", [WZ_USER] = "<user>", [WZ_ASSISTANT] = "<asst>" };

    for (int i = 0; i < n; i++) {
        if (special(pen, open[messages[i].role]) < 0 || content(pen, &messages[i], false) < 0) return -1;
        if (messages[i].role != WZ_SYSTEM && stop(pen) < 0) return -1;
    }
    return generate ? special(pen, open[WZ_ASSISTANT]) : 0;
}

static const struct wz_template templates[] = {
    { "llama3",
      { "", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>" },
      { "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>" },
      llama3 },
    { "llama3.1",
      { "", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>" },
      { "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>" },
      llama31 },
    { "chatml", { "<|im_start|>", "<|im_end|>" }, { "<|im_end|>", "<|endoftext|>" }, chatml },
    { "smollm2", { "<|im_start|>", "<|im_end|>" }, { "<|im_end|>", "<|endoftext|>" }, smollm2 },
    { "llama2", { "" }, { NULL }, llama2 },
    { "mistral", { "" }, { NULL }, mistral },
    { "sandbox", { "<sys>", "<user>", "<end>", "<asst>" }, { "<end>" }, sandbox },
};

/* ---- the doors -------------------------------------------------------------------------------------------- */

static const struct wz_template *find(const char *name)
{
    for (size_t i = 0; i < WZ_COUNT(templates); i++)
        if (strcmp(templates[i].name, name) == 0) return &templates[i];
    return NULL;
}

bool wz_template_known(const char *name) { return find(name) != NULL; }

const struct wz_template *wz_template_find(const char *name, const struct wz_tokenizer *tok, struct wz_err *err)
{
    const struct wz_template *t = find(name ? name : "");

    if (!t) {
        char names[128] = "";
        for (size_t i = 0, n = 0; i < WZ_COUNT(templates); i++)
            n += (size_t)snprintf(names + n, sizeof names - n, "%s%s", i ? ", " : "", templates[i].name);
        wz_fail(err, "chat template \"%.60s\" is not known; there are %s", name ? name : "", names);
        return NULL;
    }
    for (int i = 0; t->needs[i]; i++) {
        if (*t->needs[i] ? wz_tokenizer_id(tok, t->needs[i]) >= 0 : tok->bos >= 0 && (t->stops[0] || tok->eos >= 0))
            continue;
        wz_fail(err, "chat template %s needs %s, which the tokenizer %s has not", t->name,
                *t->needs[i] ? t->needs[i] : "BOS and EOS tokens", tok->name);
        return NULL;
    }
    return t;
}

const char *wz_template_name(const struct wz_template *t) { return t->name; }

int wz_template_apply(const struct wz_template *t, const struct wz_tokenizer *tok, const struct wz_message *messages,
                      int n, bool generate, struct wz_ids *out, struct wz_err *err)
{
    struct pen pen = { .t = t, .tok = tok, .out = out, .start = out->n, .err = err };
    int rc = 0;

    for (int i = 0; i < n && rc == 0; i++) {
        size_t size = messages[i].text ? strlen(messages[i].text) : 0;
        size_t valid = size ? wz_utf8_valid(messages[i].text, size) : 0;
        if (valid < size) rc = wz_fail(err, "message %d: invalid UTF-8 at byte %zu", i + 1, valid);
    }
    if (rc == 0) rc = t->apply(&pen, messages, n, generate);
    if (rc == 0 && pen.text.len) rc = flush(&pen);
    if (rc < 0) out->n = pen.start;
    wz_buf_finish(&pen.text);
    return rc;
}

int wz_template_stops(const struct wz_template *t, const struct wz_tokenizer *tok, int stops[8])
{
    int n = 0;

    if (!t->stops[0]) stops[n++] = tok->eos;
    for (int i = 0; i < (int)WZ_COUNT(t->stops) && t->stops[i]; i++) {
        int id = wz_tokenizer_id(tok, t->stops[i]);
        if (id >= 0) stops[n++] = id;
    }
    return n;
}
