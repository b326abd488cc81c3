/* Chat templates: one row of a table each. A template writes special tokens by id; texts between two special tokens are
 * joined and encoded together, as transformers does.
 *
 *   llama3    <|begin_of_text|> { <|start_header_id|> ROLE <|end_header_id|> "\n\n" TEXT <|eot_id|> }
 *   llama3.1  the same, always with a system turn, which begins with two lines of dates
 *   chatml    { <|im_start|> "ROLE\n" TEXT <|im_end|> "\n" }
 *   smollm2   the same, with a default system turn when none is given
 *   llama2    { <s> "[INST] " ["<<SYS>>\n" SYSTEM "\n<</SYS>>\n\n"] TEXT " [/INST]" " " TEXT " " </s> }
 *   mistral   <s> { "[INST] " TEXT " [/INST]" TEXT </s> }
 *   sandbox   <sys> SYSTEM { <user> TEXT <end> <asst> TEXT <end> } */
#include "text/text.h"

#include <stdlib.h>
#include <string.h>

#include "text/tokenizer_inside.h"

/* A rendering in progress: the ids so far, and text not encoded yet. */
struct rendering {
    const struct wz_template *t;
    const struct wz_tokenizer *tok;
    struct wz_ids *out;
    struct wz_buf text;
    int start; /* out->n at the beginning */
    struct wz_err *err;
};

struct wz_template {
    const char *name;
    const char *needs[6]; /* required special tokens, NULL-terminated; "": BOS and EOS of the tokenizer */
    const char *stops[4]; /* the first is the one that the template writes; those the tokenizer lacks are left out */
    int (*apply)(struct rendering *r, const struct wz_message *messages, int n, bool generate);
};

/* ---- writing ---------------------------------------------------------------------------------------------- */

static int flush(struct rendering *r)
{
    int rc = wz_encode_part(r->tok, r->text.data, r->text.len, r->out->n == r->start, r->out, r->err);

    wz_buf_clear(&r->text);
    return rc;
}

static int id(struct rendering *r, int token)
{
    if (r->text.len && flush(r) < 0) return -1;
    wz_ids_add(r->out, token);
    return 0;
}

static int special(struct rendering *r, const char *piece) { return id(r, wz_tokenizer_id(r->tok, piece)); }

static int stop(struct rendering *r) { return r->t->stops[0] ? special(r, r->t->stops[0]) : id(r, r->tok->eos); }

static int bos(struct rendering *r) { return id(r, r->tok->bos); }

static void text(struct rendering *r, const char *s) { wz_buf_str(&r->text, s); }

/* White space as Python's str.strip() has it. */
static bool is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || (c >= 28 && c <= 32) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

static void trimmed(struct rendering *r, const char *s, bool left, bool right)
{
    size_t n = strlen(s), end = 0;
    int len;

    while (left && *s && is_space(wz_utf8_get(s, n, &len))) {
        s += len;
        n -= (size_t)len;
    }
    for (size_t at = 0; at < n; at += (size_t)len)
        if (!is_space(wz_utf8_get(s + at, n - at, &len))) end = at + (size_t)len;
    wz_buf_add(&r->text, s, right ? end : n);
}

static int ids(struct rendering *r, const struct wz_message *m)
{
    if (r->text.len && flush(r) < 0) return -1;
    wz_ids_append(r->out, m->ids, m->n_ids);
    return 0;
}

static int content(struct rendering *r, const struct wz_message *m, bool trim)
{
    if (m->text) trimmed(r, m->text, trim, trim && !m->ids);
    return m->ids ? ids(r, m) : 0;
}

/* Checks for user, assistant, user, ... after an optional system message, which must be text since it is written inside
 * the user turn. Returns the index of the first user message, or -1 and a message. */
static int alternate(struct rendering *r, const struct wz_message *messages, int n, bool system)
{
    int first = system && n && messages[0].role == WZ_SYSTEM;

    if (first && !messages[0].text)
        return wz_fail(r->err, "%s: expected a system message of text, got ids", r->t->name);
    if (first && n == 1) return wz_fail(r->err, "%s: expected a user message after the system message", r->t->name);
    for (int i = first; i < n; i++)
        if (messages[i].role != ((i - first) % 2 ? WZ_ASSISTANT : WZ_USER))
            return wz_fail(r->err, "%s: message %d: expected alternating user and assistant%s, got role %s", r->t->name,
                           i + 1, system ? " after one system message" : "", wz_roles[messages[i].role]);
    return first;
}

/* ---- the templates ---------------------------------------------------------------------------------------- */

static int header(struct rendering *r, const char *role)
{
    if (special(r, "<|start_header_id|>") < 0) return -1;
    text(r, role);
    if (special(r, "<|end_header_id|>") < 0) return -1;
    text(r, "\n\n");
    return 0;
}

static int llama3_turns(struct rendering *r, const struct wz_message *messages, int n, bool generate)
{
    for (int i = 0; i < n; i++)
        if (header(r, wz_roles[messages[i].role]) < 0 || content(r, &messages[i], true) < 0 || stop(r) < 0) return -1;
    return generate ? header(r, wz_roles[WZ_ASSISTANT]) : 0;
}

static int llama3(struct rendering *r, const struct wz_message *messages, int n, bool generate)
{
    bos(r);
    return llama3_turns(r, messages, n, generate);
}

static int llama31(struct rendering *r, const struct wz_message *messages, int n, bool generate)
{
    int first = n && messages[0].role == WZ_SYSTEM;

    bos(r);
    if (header(r, wz_roles[WZ_SYSTEM]) < 0) return -1;
    text(r, "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n");
    if (first && content(r, &messages[0], true) < 0) return -1;
    if (stop(r) < 0) return -1;
    return llama3_turns(r, messages + first, n - first, generate);
}

static int im_start(struct rendering *r, const char *role)
{
    if (special(r, "<|im_start|>") < 0) return -1;
    text(r, role);
    text(r, "\n");
    return 0;
}

static int chatml(struct rendering *r, const struct wz_message *messages, int n, bool generate)
{
    for (int i = 0; i < n; i++) {
        if (im_start(r, wz_roles[messages[i].role]) < 0 || content(r, &messages[i], false) < 0 || stop(r) < 0)
            return -1;
        text(r, "\n");
    }
    return generate ? im_start(r, wz_roles[WZ_ASSISTANT]) : 0;
}

static int smollm2(struct rendering *r, const struct wz_message *messages, int n, bool generate)
{
    if (n && messages[0].role != WZ_SYSTEM) {
        if (im_start(r, wz_roles[WZ_SYSTEM]) < 0) return -1;
        text(r, "You are a helpful AI assistant named SmolLM, trained by Hugging Face");
        if (stop(r) < 0) return -1;
        text(r, "\n");
    }
    return chatml(r, messages, n, generate);
}

static int llama2(struct rendering *r, const struct wz_message *messages, int n, bool generate)
{
    int first = alternate(r, messages, n, true);

    if (first < 0) return -1;
    for (int i = first; i < n; i++) {
        const struct wz_message *m = &messages[i];
        if (m->role == WZ_USER) {
            bool system = first && i == first;
            char *both;
            if (bos(r) < 0) return -1;
            text(r, "[INST] ");
            if (system) {
                text(r, "<<SYS>>\n");
                text(r, messages[0].text);
                text(r, "\n<</SYS>>");
                both = wz_path("\n\n%s", m->text ? m->text : "");
                trimmed(r, both, false,
                        !m->ids); /* both parts are stripped together: of a blank text nothing is left */
                free(both);
            } else if (m->text) trimmed(r, m->text, true, !m->ids);
            if (m->ids && ids(r, m) < 0) return -1;
            text(r, " [/INST]");
            continue;
        }
        if (m->text) {
            text(r, " ");
            trimmed(r, m->text, true, true);
            text(r, " ");
        } else if (ids(r, m) < 0) {
            return -1;
        }
        if (stop(r) < 0) return -1;
    }
    return 0;
}

static int mistral(struct rendering *r, const struct wz_message *messages, int n, bool generate)
{
    if (alternate(r, messages, n, false) < 0) return -1;
    bos(r);
    for (int i = 0; i < n; i++) {
        bool user = messages[i].role == WZ_USER;
        if (user) text(r, "[INST] ");
        if (content(r, &messages[i], false) < 0) return -1;
        if (user) text(r, " [/INST]");
        else if (stop(r) < 0) return -1;
    }
    return 0;
}

static int sandbox(struct rendering *r, const struct wz_message *messages, int n, bool generate)
{
    static const char *const open[] = { [WZ_SYSTEM] = "<sys>", [WZ_USER] = "<user>", [WZ_ASSISTANT] = "<asst>" };

    for (int i = 0; i < n; i++) {
        if (special(r, open[messages[i].role]) < 0 || content(r, &messages[i], false) < 0) return -1;
        if (messages[i].role != WZ_SYSTEM && stop(r) < 0) return -1;
    }
    return generate ? special(r, open[WZ_ASSISTANT]) : 0;
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
    { 0 },
};

/* ---- the public functions --------------------------------------------------------------------------------- */

bool wz_template_known(const char *name)
{
    return wz_row_find(templates, sizeof *templates, "chat template", name, NULL) != NULL;
}

const struct wz_template *wz_template_find(const char *name, const struct wz_tokenizer *tok, struct wz_err *err)
{
    const struct wz_template *t = wz_row_find(templates, sizeof *templates, "chat template", name ? name : "", err);

    if (!t) return NULL;
    for (int i = 0; t->needs[i]; i++) {
        if (*t->needs[i] ? wz_tokenizer_id(tok, t->needs[i]) >= 0 : tok->bos >= 0 && (t->stops[0] || tok->eos >= 0))
            continue;
        wz_fail(err, "chat template %s requires %s, which the tokenizer %s lacks", t->name,
                *t->needs[i] ? t->needs[i] : "BOS and EOS tokens", tok->name);
        return NULL;
    }
    return t;
}

const char *wz_template_name(const struct wz_template *t) { return t->name; }

int wz_template_apply(const struct wz_template *t, const struct wz_tokenizer *tok, const struct wz_message *messages,
                      int n, bool generate, struct wz_ids *out, struct wz_err *err)
{
    struct rendering r = { .t = t, .tok = tok, .out = out, .start = out->n, .err = err };
    int rc = 0;

    for (int i = 0; i < n && rc == 0; i++) {
        size_t size = messages[i].text ? strlen(messages[i].text) : 0;
        size_t valid = size ? wz_utf8_valid(messages[i].text, size) : 0;
        if (valid < size) rc = wz_fail(err, "message %d: invalid UTF-8 at byte %zu", i + 1, valid);
    }
    if (rc == 0) rc = t->apply(&r, messages, n, generate);
    if (rc == 0 && r.text.len) rc = flush(&r);
    if (rc < 0) out->n = r.start;
    wz_buf_finish(&r.text);
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
