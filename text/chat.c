/* Chat templates: messages to ids. A template is a text in Jinja (jinja.h): the one in the model's own files, or, for
 * those without, one of the rows here. What it writes is cut where its own text spells a special token, which becomes
 * that token's id, and where it is what a model sampled, whose ids go in; texts between are encoded together, as
 * transformers does. What people and models wrote is plain text, whatever it spells.
 *
 *   "<|im_start|>assistant\n" "Yes"                     "<|im_end|>" "\n"
 *    template ─▶ id, text      sampled ─▶ its own ids    template ─▶ id, text
 *
 * A template may strip what was sampled: its ids go in whole. It may leave out a part (the reasoning before the
 * answer): the ids of the rest go in, if it cuts between tokens. A template that changes it or drops it is an error. */
#include "text/text.h"

#include <stdlib.h>
#include <string.h>

#include "text/jinja.h"
#include "text/tokenizer_inside.h"

struct wz_template {
    const char *name;
    const char *needs[6]; /* required special tokens, NULL-terminated; "": BOS and EOS of the tokenizer */
    const char *stops[4]; /* the first is the one that the template writes; those the tokenizer lacks are left out */
    const char *text;     /* NULL: the model's own */
};

/* ---- the templates by name -------------------------------------------------------------------------------- */

#define ASSISTANT_HEAD "<|start_header_id|>assistant<|end_header_id|>\n\n"
#define LLAMA3_TURNS                                                                                           \
    "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim }}" \
    "{{ '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ '" ASSISTANT_HEAD "' }}{% endif %}"
#define CHATML                                                                                             \
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}" \
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
#define ALTERNATE                                                                                            \
    "{% if m.role != ['user', 'assistant'][loop.index0 % 2] %}{{ raise_exception('message ' ~ loop.index ~ " \
    "': expected alternating user and assistant, got role ' ~ m.role) }}{% endif %}"

static const struct wz_template templates[] = {
    { .name = "jinja" },
    { "llama3",
      { "", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>" },
      { "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>" },
      "{{ bos_token }}" LLAMA3_TURNS },
    { "llama3.1", /* always with a system turn, which begins with two lines of dates */
      { "", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>" },
      { "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>" },
      "{{ bos_token + '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n' }}"
      "{{ 'Today Date: 26 Jul 2024\n\n' }}{% if messages and messages[0].role == 'system' %}"
      "{{ messages[0].content | trim }}{% set messages = messages[1:] %}{% endif %}{{ '<|eot_id|>' }}" LLAMA3_TURNS },
    { "chatml", { "<|im_start|>", "<|im_end|>" }, { "<|im_end|>", "<|endoftext|>" }, CHATML },
    { "smollm2", /* the same, with a default system turn when none is given */
      { "<|im_start|>", "<|im_end|>" },
      { "<|im_end|>", "<|endoftext|>" },
      "{% if messages and messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named "
      "SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}" CHATML },
    { "llama2", /* system prompt and text are stripped together: of a blank text nothing is left */
      { "" },
      { NULL },
      "{% set system = messages and messages[0].role == 'system' %}{% if system and messages | length == 1 %}"
      "{{ raise_exception('expected a user message after the system message') }}{% endif %}"
      "{% for m in (messages[1:] if system else messages) %}" ALTERNATE
      "{% if m.role != 'user' %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% continue %}{% endif %}"
      "{% set text = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' if system and loop.first else '' %}"
      "{{ bos_token + '[INST] ' + (text + m.content).strip() + ' [/INST]' }}{% endfor %}" },
    { "mistral",
      { "" },
      { NULL },
      "{{ bos_token }}{% for m in messages %}" ALTERNATE "{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' "
      "else m.content + eos_token }}{% endfor %}" },
    { "sandbox",
      { "<sys>", "<user>", "<end>", "<asst>" },
      { "<end>" },
      "{% for m in messages %}{{ {'system': '<sys>', 'user': '<user>', 'assistant': '<asst>'}[m.role] + m.content }}"
      "{% if m.role != 'system' %}{{ '<end>' }}{% endif %}{% endfor %}"
      "{% if add_generation_prompt %}{{ '<asst>' }}{% endif %}" },
    { 0 },
};

/* ---- what was said ---------------------------------------------------------------------------------------- */

/* A message's text, or the text of its ids. Its byte i is byte `start` + i of all that was said; that and 1 is its
 * origin in what the template writes. */
struct part {
    size_t start, n;
    const struct wz_message *ids; /* NULL: text */
    int message, first, last;     /* of the ids, the first that was placed and the one behind the last; -1: none yet */
};
struct rendering {
    const struct wz_template *t;
    const struct wz_program *program;
    const struct wz_tokenizer *tok;
    const struct wz_message *messages;
    int n;
    bool generate;
    const json_t *more; /* variables, NULL: none */
    struct wz_buf said;
    struct part *parts; /* [2 * n]: text and ids of each message */
    struct wz_ids *out;
    int start; /* out->n at the beginning */
    struct wz_err *err;
};

static bool blank(const char *s, size_t n)
{
    int len;

    for (size_t i = 0; i < n; i += (size_t)len)
        if (!wz_text_space(wz_utf8_get(s + i, n - i, &len))) return false;
    return true;
}

/* The bytes of a sampled id; special tokens have none. */
static const struct wz_piece *piece_of(const struct rendering *r, int id)
{
    static const struct wz_piece none = { 0 };
    const struct wz_piece *p = wz_vocab_at(r->tok, id);

    return p && p->kind != WZ_PIECE_SPECIAL ? p : &none;
}

/* The text of sampled ids, as a template sees it: what is no UTF-8 is "?", byte by byte, so that bytes stay countable,
 * and a blank text is one "?", so that it has a place in what the template writes. */
static void say_ids(struct rendering *r, const struct wz_message *m)
{
    const size_t start = r->said.len;

    for (int i = 0; i < m->n_ids; i++)
        wz_buf_add(&r->said, piece_of(r, m->ids[i])->bytes, (size_t)piece_of(r, m->ids[i])->n_bytes);
    for (size_t at = start; (at += wz_utf8_valid(r->said.data + at, r->said.len - at)) < r->said.len; at++)
        r->said.data[at] = '?';
    if (!m->n_ids || !blank(r->said.data + start, r->said.len - start)) return;
    r->said.len = start;
    wz_buf_str(&r->said, "?");
}

static int say(struct rendering *r)
{
    wz_buf_str(&r->said, "");
    r->parts = wz_alloc(wz_mul((size_t)r->n + 1, 2 * sizeof *r->parts));
    for (int i = 0; i < r->n; i++) {
        const struct wz_message *m = &r->messages[i];
        const size_t size = m->text ? strlen(m->text) : 0, valid = size ? wz_utf8_valid(m->text, size) : 0;
        if (valid < size) return wz_fail(r->err, "message %d: invalid UTF-8 at byte %zu", i + 1, valid);
        r->parts[2 * i] = (struct part){ .start = r->said.len, .n = size };
        wz_buf_add(&r->said, m->text, size);
        r->parts[2 * i + 1] =
            (struct part){ .start = r->said.len, .ids = m->ids ? m : NULL, .message = i + 1, .first = -1 };
        if (m->ids) say_ids(r, m);
        r->parts[2 * i + 1].n = r->said.len - r->parts[2 * i + 1].start;
        if (r->said.len > WZ_TEXT_MAX) return wz_fail(r->err, "expected messages of at most %d bytes", WZ_TEXT_MAX);
    }
    return 0;
}

/* The part that a byte of this origin belongs to; NULL: the template, or what was rewritten. */
static struct part *part_of(const struct rendering *r, uint32_t from)
{
    int low = 0, high = 2 * r->n;

    if (!from || from == WZ_REWRITTEN) return NULL;
    while (high - low > 1) { /* empty parts begin where the next one does: the last that begins here is meant */
        const int mid = (low + high) / 2;
        if (r->parts[mid].start <= from - 1) low = mid;
        else high = mid;
    }
    return &r->parts[low];
}

/* ---- running a template ----------------------------------------------------------------------------------- */

static void add_token(struct wz_jinja *j, struct wz_items *variables, const char *name, const struct wz_piece *p)
{
    if (p) wz_dict_name(j, variables, name, wz_text_value(j, p->text, (size_t)p->n_text));
}

static void fill(struct wz_jinja *j, struct wz_items *variables, void *arg)
{
    const struct rendering *r = arg;
    struct wz_value list = wz_items_value(j, WZ_IS_LIST);
    const json_t *value;
    const char *name;

    for (int i = 0; i < r->n; i++) {
        const struct part *p = &r->parts[2 * i];
        const size_t n = p[0].n + p[1].n;
        uint32_t *from = wz_jinja_alloc(j, n * sizeof *from);
        struct wz_text *text = wz_jinja_alloc(j, sizeof *text);
        struct wz_value m = wz_items_value(j, WZ_IS_DICT);
        for (size_t k = 0; k < n; k++) from[k] = (uint32_t)(p->start + k + 1);
        *text = (struct wz_text){ r->said.data + p->start, from, n };
        wz_dict_name(j, m.items, "role",
                     wz_text_value(j, wz_roles[r->messages[i].role], strlen(wz_roles[r->messages[i].role])));
        wz_dict_name(j, m.items, "content", (struct wz_value){ .kind = WZ_IS_STRING, .text = text });
        wz_items_add(j, list.items, m);
    }
    wz_dict_name(j, variables, "messages", list);
    wz_dict_name(j, variables, "add_generation_prompt", wz_bool(r->generate));
    wz_dict_name(j, variables, "tools", wz_none());
    wz_dict_name(j, variables, "documents", wz_none());
    add_token(j, variables, "bos_token", wz_vocab_at(r->tok, r->tok->bos));
    add_token(j, variables, "eos_token", wz_vocab_at(r->tok, r->tok->eos));
    add_token(j, variables, "unk_token", wz_vocab_at(r->tok, r->tok->unk));
    json_object_foreach(r->tok->named, name, value) wz_dict_name(j, variables, name, wz_json_value(j, value));
    json_object_foreach((json_t *)r->more, name, value) wz_dict_name(j, variables, name, wz_json_value(j, value));
}

/* What the template writes, in j's arena, which the caller ends. */
static int write_text(struct rendering *r, struct wz_jinja *j, struct wz_text *text)
{
    j->most = WZ_JINJA_MEMORY + 256 * r->said.len;
    return wz_jinja_run(j, r->program, fill, r, text, r->err);
}

/* The special token that the template's own text spells at `at`, the longest; -1: none. *n: its bytes. */
static int special_at(const struct rendering *r, const struct wz_text *text, size_t at, size_t *n)
{
    size_t own = 0;
    int id = -1;

    if (!r->tok->special_first[(unsigned char)text->s[at]]) return -1;
    while (own < r->tok->special_longest && at + own < text->n && !(text->from && text->from[at + own])) own++;
    for (*n = own; *n > 0 && id < 0; *n -= id < 0) {
        id = wz_vocab_find(r->tok, text->s + at, *n);
        if (id >= 0 && !wz_vocab_special(r->tok, id)) id = -1;
    }
    if (id >= 0 && wz_vocab_at(r->tok, id)->flags & WZ_SINGLE_WORD && wz_beside_words(text->s, text->n, at, at + *n))
        return -1;
    return id;
}

/* ---- to ids ----------------------------------------------------------------------------------------------- */

static int encode(struct rendering *r, const char *s, size_t n)
{
    return n ? wz_encode_part(r->tok, s, n, r->out->n == r->start, r->out, r->err) : 0;
}

/* Whether the messages before one and the opening of its turn are written without the last n bytes of s[0..at): then
 * those bytes were not in front of the model when it sampled the message. */
static bool added_later(const struct rendering *r, int message, const struct wz_text *text, size_t at, size_t n)
{
    struct rendering before = *r;
    struct wz_jinja j = { 0 };
    struct wz_err err;
    struct wz_text opening;

    before.n = message - 1;
    before.generate = true;
    before.err = &err;
    const bool later =
        write_text(&before, &j, &opening) == 0 && opening.n <= at - n && !memcmp(opening.s, text->s, opening.n);
    wz_arena_finish(&j.arena);
    return later;
}

/* Inserts the ids of text->s[at, at + n), a part's bytes from `from` on; the text since *done comes before them. */
static int place(struct rendering *r, struct part *part, const struct wz_text *text, size_t at, size_t n, size_t from,
                 size_t *done)
{
    const char *said = r->said.data + part->start;
    const bool whole = blank(said, from) && blank(said + from + n, part->n - from - n);
    const struct wz_message *m = part->ids;
    size_t to = 0, begin = part->n, end = part->n; /* bytes of the ids that go in */
    int first = 0, last = m->n_ids;

    for (int i = 0; !whole && i < m->n_ids; i++) {
        const size_t start = to, size = (size_t)piece_of(r, m->ids[i])->n_bytes;
        to += size;
        if (from && to <= from) first = i + 1;
        else if (begin == part->n) begin = start;
        if (size && start < from + n) {
            last = i + 1;
            end = to;
        }
    }
    if (whole) begin = 0;
    if (from + n == part->n) last = m->n_ids;
    if (!whole && begin < from && !blank(said + begin, from - begin)) first = -1;
    if (!whole && end > from + n && !blank(said + from + n, end - from - n)) first = -1;
    if (blank(said + from, n)) first = -1; /* all that was said is gone, or was changed */
    if ((at && text->from[at - 1] == WZ_REWRITTEN) || (at + n < text->n && text->from[at + n] == WZ_REWRITTEN))
        first = -1; /* it goes on changed */
    if (first < 0 || (part->first >= 0 && (part->first != first || part->last != last)))
        return wz_fail(r->err, "message %d: the chat template cuts the sampled text within a token, or changes it",
                       part->message);
    part->first = first;
    part->last = last;
    /* Blanks that the template strips from the text and writes itself were sampled: they go in once. */
    const size_t own = from - begin < at - *done ? from - begin : at - *done;
    size_t until = at;
    if (own && own == from - begin && !memcmp(text->s + at - own, said + begin, own) &&
        added_later(r, part->message, text, at, own))
        until -= own;
    if (encode(r, text->s + *done, until - *done) < 0) return -1;
    wz_ids_append(r->out, m->ids + first, last - first);
    *done = at + n;
    return 0;
}

static bool sampled_at(const struct rendering *r, const struct wz_text *text, size_t at)
{
    const struct part *part = text->from ? part_of(r, text->from[at]) : NULL;

    return part && part->ids;
}

static int to_ids(struct rendering *r, const struct wz_text *text)
{
    size_t done = 0, n;

    for (size_t at = 0; at < text->n; at += n) {
        const uint32_t from = text->from ? text->from[at] : 0;
        struct part *part = part_of(r, from);
        int id;
        if (part && part->ids) {
            const size_t begin = from - 1 - part->start;
            for (n = 1; at + n < text->n && begin + n < part->n && text->from[at + n] == from + n;) n++;
            if (place(r, part, text, at, n, begin, &done) < 0) return -1;
        } else if ((id = special_at(r, text, at, &n)) >= 0) {
            const int flags = wz_vocab_at(r->tok, id)->flags; /* white space that the token takes in */
            size_t end = at;
            int len;
            if (flags & WZ_UNLIKE)
                return wz_fail(r->err,
                               "%s: %s, which the chat template writes, is looked for in normalized text, where it "
                               "reads otherwise: expected \"normalized\": false",
                               r->tok->name, wz_vocab_at(r->tok, id)->text);
            while (flags & WZ_LSTRIP && end > done && wz_char_space(wz_char_before(text->s, end, &len)))
                end -= (size_t)len;
            if (encode(r, text->s + done, end - done) < 0) return -1;
            wz_ids_add(r->out, id);
            for (done = at + n; flags & WZ_RSTRIP && done < text->n && !sampled_at(r, text, done); done += (size_t)len)
                if (!wz_char_space(wz_utf8_get(text->s + done, text->n - done, &len))) break;
            n = done - at;
        } else n = 1;
    }
    if (encode(r, text->s + done, text->n - done) < 0) return -1;
    for (int i = 0; i < 2 * r->n; i++)
        if (r->parts[i].ids && r->parts[i].n && r->parts[i].first < 0)
            return wz_fail(r->err, "message %d: the chat template leaves out or changes what was sampled",
                           r->parts[i].message);
    return 0;
}

/* Does what the template writes have all of what was said in a part, but for blanks, and unchanged? */
static bool written(const struct rendering *r, const struct part *part, const struct wz_text *text)
{
    const char *said = r->said.data + part->start;
    bool *there = wz_alloc(part->n + 1), all = true;
    int len;

    for (size_t at = 0; at < text->n && text->from; at++)
        if (part_of(r, text->from[at]) == part) there[text->from[at] - 1 - part->start] = true;
    for (size_t i = 0; i < part->n && all; i += (size_t)len)
        all = wz_text_space(wz_utf8_get(said + i, part->n - i, &len)) || !memchr(there + i, false, (size_t)len);
    free(there);
    return all;
}

/* ---- the public functions --------------------------------------------------------------------------------- */

const struct wz_template *wz_template_find(const char *name, const struct wz_tokenizer *tok, struct wz_err *err)
{
    const struct wz_template *t = templates;

    if (name && *name && !(t = wz_row_find(templates, sizeof *templates, "chat template", name, err))) return NULL;
    if (!t->text && !tok->chat) {
        if (tok->jinja) wz_fail(err, "%s", tok->chat_problem.text);
        else wz_fail(err, "the model has no chat template; name one (`chat`, --template)");
        return NULL;
    }
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

/* Parses the template and runs it: 0 with what it writes, in *j; end() releases all. */
static int begin(struct rendering *r, struct wz_jinja *j, struct wz_text *text, struct wz_program **own)
{
    *own = r->t->text ? wz_jinja_parse(r->t->text, r->t->name, r->err) : NULL;
    r->program = *own ? *own : r->tok->chat;
    if (r->t->text && !*own) return -1;
    return say(r) < 0 ? -1 : write_text(r, j, text);
}

static void end(struct rendering *r, struct wz_jinja *j, struct wz_program *own)
{
    wz_arena_finish(&j->arena);
    wz_jinja_destroy(own);
    wz_buf_finish(&r->said);
    free(r->parts);
}

int wz_template_apply_with(const struct wz_template *t, const struct wz_tokenizer *tok,
                           const struct wz_message *messages, int n, bool generate, const json_t *more, bool whole,
                           struct wz_ids *out, struct wz_err *err)
{
    struct rendering r = { .t = t,
                           .tok = tok,
                           .messages = messages,
                           .n = n,
                           .generate = generate,
                           .more = more,
                           .out = out,
                           .start = out->n,
                           .err = err };
    struct wz_jinja j = { 0 };
    struct wz_program *own;
    struct wz_text text;
    int rc = begin(&r, &j, &text, &own);

    for (int i = 0; i < n && rc == 0 && whole; i++)
        if (!written(&r, &r.parts[2 * i], &text))
            rc = wz_fail(err, "message %d: the chat template leaves out or changes what it says", i + 1);
    if (rc == 0) rc = to_ids(&r, &text);
    if (rc < 0) out->n = r.start;
    end(&r, &j, own);
    return rc;
}

int wz_template_apply(const struct wz_template *t, const struct wz_tokenizer *tok, const struct wz_message *messages,
                      int n, bool generate, struct wz_ids *out, struct wz_err *err)
{
    return wz_template_apply_with(t, tok, messages, n, generate, NULL, false, out, err);
}

/* The token that the model's own template writes behind a reply: -1: none. */
static int written_stop(const struct wz_template *t, const struct wz_tokenizer *tok)
{
    const struct wz_message talk[] = { { .role = WZ_USER, .text = "?" }, { .role = WZ_ASSISTANT, .text = "." } };
    struct wz_err err;
    struct rendering r = { .t = t, .tok = tok, .messages = talk, .n = 2, .err = &err };
    struct wz_jinja j = { 0 };
    struct wz_program *own;
    struct wz_text text;
    int id = -1;

    if (begin(&r, &j, &text, &own) == 0 && text.from) {
        size_t at = text.n, n;
        while (at > 0 && text.from[at - 1] != 2) at--; /* the reply is the second byte that was said */
        for (; at > 0 && at < text.n && id < 0; at++) id = special_at(&r, &text, at, &n);
    }
    end(&r, &j, own);
    return id;
}

const char *wz_template_cuts(const struct wz_template *t, const struct wz_tokenizer *tok)
{
    static const char *const replies[] = { "A", "<think>B</think>A", "[THINK]B[/THINK]A",
                                           "<|channel>thought B<channel|>A", "<seed:think>B</seed:think>A" };
    struct wz_message talk[] = { { .role = WZ_USER, .text = "?" },
                                 { .role = WZ_ASSISTANT },
                                 { .role = WZ_USER, .text = "?" } };
    const char *cut = NULL;

    for (size_t i = 0; i < WZ_COUNT(replies) && !cut; i++) {
        struct wz_err err;
        struct rendering r = { .t = t, .tok = tok, .messages = talk, .n = 3, .generate = true, .err = &err };
        struct wz_jinja j = { 0 };
        struct wz_program *own;
        struct wz_text text;
        talk[1].text = replies[i];
        if (begin(&r, &j, &text, &own) == 0 && !written(&r, &r.parts[2], &text)) cut = replies[i];
        end(&r, &j, own);
    }
    return cut;
}

int wz_template_stops(const struct wz_template *t, const struct wz_tokenizer *tok, int stops[8])
{
    static const char *const known[] = { "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", NULL };
    const char *const *names = t->text ? t->stops : known;
    int n = 0;

    if (!t->text && (stops[0] = written_stop(t, tok)) >= 0) n++;
    else if (!t->stops[0] && tok->eos >= 0) stops[n++] = tok->eos;
    for (int i = 0; i < 4 && names[i]; i++) {
        int id = wz_tokenizer_id(tok, names[i]);
        if (id >= 0 && (!n || id != stops[0])) stops[n++] = id;
    }
    return n;
}
