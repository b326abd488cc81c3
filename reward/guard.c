/* The judge that asks a guard model, a row of guard_rows.c: its weights are in this rank's memory, or an endpoint of
 * chat completions, as OpenAI's and most servers of models have it, has them (`url`).
 *
 * What people and models wrote is filled into a prompt as text and encoded with the text around it: whatever it spells,
 * it never becomes a special token, and no mark in it is looked at.
 *
 * Where the authors read the probabilities of a word, so does this: one token is generated, greedily. It must begin one
 * of the words, or the verdict has failed; the score is sum_w value_w p_w / sum_w p_w over the words, which shows how
 * sure the guard was. A word in a tag is found in the text first, and then the tokens before it are read as a part of
 * the prompt. Other guards write a few lines, which a parser reads exactly or not at all (guarantee 7), and so is a
 * word read that an endpoint wrote. Where policies are asked one a call, the highest score is that of the reply.
 *
 * The engine reads what all prompts begin with once, and judges `concurrent` replies at a time. An endpoint is sent
 *
 *     {"model", "messages": [user, assistant; of a rubric one], "chat_template_kwargs": the variables of the template,
 *      "temperature": 0, "max_tokens"}              ->   choices[0].message.content
 *
 * and of a guard with words also "logprobs": true and "top_logprobs": 20: where the answer has them, and the verdict is
 * a token of its own, the score is over these, else over what the text says, 0 or 1. */
#include "reward/guard.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/model.h"
#include "reward/http.h"

enum { TOKENS = 64, ENDPOINT_TOKENS = 16, TOP_LOGPROBS = 20 }; /* 20: as many as OpenAI gives */
static const char blanks[] = WZ_GUARD_BLANKS;

struct guard {
    const struct wz_guard_row *row;
    const struct wz_measures_of *of; /* of a rubric */
    const char *name;                /* of the model at the endpoint */
    char *rubric, *categories;
    json_t *variables; /* of its template: an object for each policy, [0] where there are none */
    int n_policies, max_tokens;
    double threshold;
    struct wz_http *http; /* NULL: the model is here */

    const struct wz_template *chat; /* of a row without a prompt */
    struct wz_backend *be;
    bool own_be;
    struct wz_model *model;
    struct wz_tokenizer *tok;
    struct wz_engine *engine;
    struct wz_ids stops;
    int scored[TOKENS], word_of[TOKENS], n_scored; /* tokens that begin a word, and which */
};

/* ---- a prompt --------------------------------------------------------------------------------------------- */

static void add_filled(struct wz_buf *out, const char *s, bool trim)
{
    size_t n = strlen(s);

    while (trim && n && strchr(" \t\n\v\f\r", *s)) s++, n--;
    while (trim && n && strchr(" \t\n\v\f\r", s[n - 1])) n--;
    wz_buf_add(out, s, n);
}

/* The rubric with {prompt} and {response} replaced, once: what they stand for is not looked at again. */
static void fill_rubric(const char *rubric, const struct wz_question *q, struct wz_buf *out)
{
    for (const char *s = rubric; *s;) {
        const bool prompt = !strncmp(s, "{prompt}", 8), response = !strncmp(s, "{response}", 10);
        if (prompt || response) wz_buf_str(out, prompt ? q->prompt : q->response);
        else wz_buf_add(out, s, 1);
        s += prompt ? 8 : response ? 10 : 1;
    }
}

/* What a guard is shown as turns of a chat. Returns how many; the texts are the question's, or in *filled. */
static int say(const struct guard *g, const struct wz_question *q, struct wz_message talk[2], struct wz_buf *filled)
{
    if (g->rubric) fill_rubric(g->rubric, q, filled);
    talk[0] = (struct wz_message){ WZ_USER, g->rubric ? filled->data : q->prompt, NULL, 0 };
    talk[1] = (struct wz_message){ WZ_ASSISTANT, q->response, NULL, 0 };
    return g->rubric ? 1 : 2;
}

/* Appends the ids of the prompt, by a policy, and of `more` behind it. -1: what is filled in is not UTF-8, or the
 * template does not show all of it. */
static int render(const struct guard *g, const struct wz_question *q, int policy, const char *more, struct wz_ids *ids,
                  struct wz_err *err)
{
    struct wz_message talk[2];
    struct wz_buf text = { 0 };
    const int start = ids->n;
    int rc = 0;

    if (g->chat) {
        const int n = say(g, q, talk, &text);
        rc = wz_template_apply_with(g->chat, g->tok, talk, n, true, json_array_get(g->variables, (size_t)policy), true,
                                    ids, err);
        wz_buf_clear(&text);
    }
    for (const char *s = g->chat ? "" : g->row->prompt; *s && rc == 0; s++) {
        if (*s == PROMPT[0]) add_filled(&text, q->prompt, g->row->trim);
        else if (*s == RESPONSE[0]) add_filled(&text, q->response, g->row->trim);
        else if (*s == CATEGORIES[0]) wz_buf_str(&text, g->categories);
        else if (*s == '\b') text.len--;
        else if (*s == '\1') {
            char name[48];
            const size_t n = strcspn(++s, "\2");
            snprintf(name, sizeof name, "%.*s", (int)n, s);
            const int id = wz_tokenizer_id(g->tok, name);
            s += n;
            if (id < 0) { /* plain text to this tokenizer */
                wz_buf_str(&text, name);
                continue;
            }
            if (text.len) rc = wz_encode_part(g->tok, text.data, text.len, ids->n == start, ids, err);
            wz_buf_clear(&text);
            wz_ids_add(ids, id);
        } else wz_buf_add(&text, s, 1);
    }
    wz_buf_str(&text, more);
    if (rc == 0 && text.len) rc = wz_encode_part(g->tok, text.data, text.len, ids->n == start, ids, err);
    wz_buf_finish(&text);
    return rc;
}

static const char *lead(const struct guard *g) { return g->row->lead ? g->row->lead : ""; }

int wz_guard_prompt(const struct wz_judge *judge, const struct wz_question *q, struct wz_ids *ids, struct wz_err *err)
{
    return render(judge->state, q, 0, "", ids, err);
}

int wz_guard_lesson(const struct wz_judge *judge, const struct wz_question *q, unsigned flags, struct wz_ids *ids,
                    struct wz_err *err)
{
    const struct guard *g = judge->state;
    const double harmful = flags & WZ_JUDGED_HARMFUL ? 1 : 0;
    struct wz_buf text = { 0 };

    if (g->row->rubric) return wz_fail(err, "a rubric does not say how its answer is written");
    if (g->n_policies > 1) return wz_fail(err, "expected one of its categories: a line answers one (`without`)");
    if (render(g, q, 0, lead(g), ids, err) < 0) return -1;
    const int from = ids->n;
    if (g->row->write) g->row->write(q->prompt_harmful, flags, &text);
    for (int w = 0; !g->row->write && w < WZ_GUARD_WORDS && g->row->words[w]; w++)
        if (g->row->values[w] == harmful) wz_buf_str(&text, g->row->words[w]);
    int rc = wz_encode_part(g->tok, text.data, text.len, false, ids, err);
    wz_buf_finish(&text);
    wz_ids_add(ids, wz_tokenizer_eos(g->tok));
    return rc < 0 ? -1 : from;
}

/* ---- the words of a verdict ------------------------------------------------------------------------------- */

/* Which of the words a text is, blanks around it aside; -1: none. */
static int word_in(const struct wz_guard_row *row, const char *s, size_t n)
{
    while (n && strchr(blanks, *s)) s++, n--;
    while (n && strchr(blanks, s[n - 1])) n--;
    for (int w = 0; w < WZ_GUARD_WORDS && row->words[w]; w++)
        if (strlen(row->words[w]) == n && !(row->folded ? strncasecmp : strncmp)(s, row->words[w], n)) return w;
    return -1;
}

/* What is in <tag> and </tag>, *n bytes: nothing else but blanks may be in the text, and, before it, thoughts in
 * <think> and </think>. NULL: something is. */
static const char *tagged(const char *text, const char *tag, size_t *n)
{
    char open[24], close[24];
    const char *end = NULL;

    snprintf(open, sizeof open, "<%s>", tag);
    snprintf(close, sizeof close, "</%s>", tag);
    text += strspn(text, blanks);
    if (!strncmp(text, "<think>", 7)) {
        for (const char *s = text; (s = strstr(s, "</think>")); s++) end = s + 8;
        if (!end) return NULL;
        text = end + strspn(end, blanks);
    }
    if (strncmp(text, open, strlen(open)) != 0) return NULL;
    text += strlen(open);
    if (!(end = strstr(text, close))) return NULL;
    *n = (size_t)(end - text);
    end += strlen(close);
    return end[strspn(end, blanks)] ? NULL : text;
}

/* The word that a text says: where there is a tag in it, else on its first line. -1: none. */
static int word_said(const struct wz_guard_row *row, const char *text)
{
    const char *s = row->tag ? NULL : text + strspn(text, blanks);
    size_t n = s ? strcspn(s, "\n") : 0;

    if (row->tag) s = tagged(text, row->tag, &n);
    return s ? word_in(row, s, n) : -1;
}

static int add_token(struct guard *g, int id, int word, struct wz_err *err)
{
    for (int i = 0; i < g->n_scored; i++)
        if (g->scored[i] == id)
            return g->word_of[i] == word
                       ? 0
                       : wz_fail(err, "its tokenizer begins the verdicts %s and %s with the same token",
                                 g->row->words[g->word_of[i]], g->row->words[word]);
    if (g->n_scored == TOKENS) return wz_fail(err, "its tokenizer has more than %d tokens for verdicts", TOKENS);
    g->word_of[g->n_scored] = word;
    g->scored[g->n_scored++] = id;
    return 0;
}

static int find_words(struct guard *g, struct wz_err *err)
{
    bool found[WZ_GUARD_WORDS] = { false };
    struct wz_buf text = { 0 };
    int rc = 0;

    for (int id = 0; rc == 0 && g->row->folded && id < wz_tokenizer_vocab(g->tok); id++) {
        wz_buf_clear(&text);
        wz_decode(g->tok, &id, 1, false, &text);
        const int w = text.len ? word_in(g->row, text.data, text.len) : -1;
        if (w < 0) continue;
        found[w] = true;
        rc = add_token(g, id, w, err);
    }
    wz_buf_finish(&text);
    for (int w = 0; rc == 0 && w < WZ_GUARD_WORDS && g->row->words[w]; w++) {
        const char *word = g->row->words[w];
        struct wz_ids ids = { 0 };
        int id = found[w] ? -1 : wz_tokenizer_id(g->tok, word);
        if (found[w]) continue;
        if (id < 0 && wz_encode_part(g->tok, word, strlen(word), false, &ids, err) == 0 && ids.n) id = ids.ids[0];
        wz_ids_finish(&ids);
        rc = id < 0 ? wz_fail(err, "its tokenizer can't write the verdict %s", word) : add_token(g, id, w, err);
    }
    return rc;
}

/* ---- reading ---------------------------------------------------------------------------------------------- */

/* Reads the text of an answer. cut: there was more of it. */
static void read_text(const struct guard *g, const char *text, size_t n, bool cut, struct wz_answer *a)
{
    const struct wz_guard_row *row = g->row;
    const int word = row->words[0] && strlen(text) == n ? word_said(row, text) : -1;

    if (cut && (g->of || row->tag)) wz_answer_fail(a, "the answer was cut at %d tokens", g->max_tokens);
    else if (g->of) wz_answer_parse(g->of, g->threshold, text, n, a);
    else if (row->parse && strlen(text) == n) row->parse(text + strspn(text, " \n"), a);
    else if (word >= 0) a->score = row->values[word];
    else wz_answer_fail(a, "expected the guard's verdict, got: %.80s", text);
    if (!a->failed && !g->of && a->score >= g->threshold) a->flags |= WZ_JUDGED_HARMFUL;
}

/* Of the answers by each policy: the worst, and none where one has failed. */
static void combine(const struct wz_answer *got, int n, struct wz_answer *a)
{
    *a = got[0];
    for (int i = 1; i < n && !a->failed; i++) {
        if (got[i].failed) *a = got[i];
        a->flags |= got[i].flags;
        a->score = fmax(a->score, got[i].score);
        a->refusal_score = fmax(a->refusal_score, got[i].refusal_score);
    }
}

/* ---- a model in memory ------------------------------------------------------------------------------------ */

/* A question, and its answers by each policy. */
struct asking {
    struct wz_judge *judge;
    const struct wz_question *q;
    struct wz_answer *answer, *got;
    int left;
};
/* It by one of them. */
struct asked {
    struct asking *of;
    struct wz_answer *got;
    struct wz_ids prompt;
    bool scores; /* its next token is a verdict */
    float logp[TOKENS];
};

static void answered(struct asking *of)
{
    const struct guard *g = of->judge->state;

    if (--of->left) return;
    combine(of->got, g->n_policies, of->answer);
    if (of->answer->failed) of->answer->final = true; /* the same question comes to the same end */
    wz_judge_answered(of->judge, of->q, of->answer);
}

static int word_of(const struct guard *g, int id)
{
    for (int i = 0; i < g->n_scored; i++)
        if (g->scored[i] == id) return g->word_of[i];
    return -1;
}

static void read_words(const struct guard *g, const struct wz_request *r, struct asked *one)
{
    double sum = 0, mass = 0;

    for (int i = 0; i < g->n_scored; i++) {
        const double p = exp((double)one->logp[i]);
        mass += p;
        sum += p * g->row->values[g->word_of[i]];
    }
    if (word_of(g, r->ids[0]) < 0 || !(mass > 0)) {
        struct wz_buf text = { 0 };
        wz_decode(g->tok, r->ids, 1, true, &text);
        wz_answer_fail(one->got, "the guard's verdict begins with \"%.40s\"", text.data);
        wz_buf_finish(&text);
        return;
    }
    one->got->score = fmin(1, fmax(0, sum / mass));
    one->got->flags = one->got->score >= g->threshold ? WZ_JUDGED_HARMFUL : 0u;
}

/* Which of the tokens of an answer is its word in the tag; -1: it is not a token of its own. */
static int verdict_at(const struct guard *g, const struct wz_request *r, const struct wz_buf *text)
{
    struct wz_buf before = { 0 };
    size_t n;
    const char *in = tagged(text->data, g->row->tag, &n);
    const size_t begin = (size_t)(in - text->data), word = begin + strspn(in, blanks);
    int k = r->n;

    do { /* the token that begins before the word, or where it does */
        wz_buf_clear(&before);
        wz_decode(g->tok, r->ids, --k, false, &before);
    } while (before.len > word);
    if (before.len < begin || word_of(g, r->ids[k]) < 0) k = -1;
    wz_buf_finish(&before);
    return k;
}

static void finished(struct wz_request *r)
{
    struct asked *one = r->arg;
    const struct guard *g = one->of->judge->state;
    const bool cut = r->finish_reason == WZ_FINISH_LENGTH || r->finish_reason == WZ_FINISH_CONTEXT;
    struct wz_buf text = { 0 };

    *one->got = (struct wz_answer){ 0 };
    if (r->problem || !r->n) wz_answer_fail(one->got, "%s", r->problem ? r->problem : "the guard wrote nothing");
    else if (one->scores) read_words(g, r, one);
    else {
        wz_buf_str(&text, "");
        wz_decode(g->tok, r->ids, r->n, false, &text);
        read_text(g, text.data, text.len, cut, one->got);
        const int k = g->row->tag && !one->got->failed ? verdict_at(g, r, &text) : 0;
        wz_buf_finish(&text);
        if (k < 0) wz_answer_fail(one->got, "the guard's verdict is not a token of its own");
        if (k > 0) {
            wz_ids_append(&one->prompt, r->ids, k);
            one->scores = true;
            r->prompt_ids = one->prompt.ids;
            r->n_prompt = one->prompt.n;
            r->max_tokens = 1;
            r->n_scored = g->n_scored;
            wz_engine_submit(g->engine, r);
            return;
        }
    }
    answered(one->of);
}

static void ask_model(struct wz_judge *judge, const struct wz_question *questions, struct wz_answer *answers,
                      struct wz_answer *got, int n)
{
    struct guard *g = judge->state;
    const int all = n * g->n_policies;
    struct wz_request *requests = wz_alloc(sizeof *requests * (size_t)(all + 1));
    struct asking *asking = wz_alloc(sizeof *asking * (size_t)(n + 1));
    struct asked *asked = wz_alloc(sizeof *asked * (size_t)(all + 1));
    struct wz_err err;
    int k = 0;

    for (int i = 0; i < all; i++) {
        struct asked *one = &asked[i];
        const int q = i / g->n_policies, policy = i % g->n_policies;
        if (policy == 0) asking[q] = (struct asking){ judge, &questions[q], &answers[q], &got[i], g->n_policies };
        *one = (struct asked){ .of = &asking[q], .got = &got[i], .scores = g->row->words[0] && !g->row->tag };
        if (render(g, &questions[q], policy, lead(g), &one->prompt, &err) < 0) {
            got[i] = (struct wz_answer){ 0 };
            wz_answer_fail(&got[i], "%s", err.text);
            answered(one->of);
            continue;
        }
        requests[k++] = (struct wz_request){ .prompt_ids = one->prompt.ids,
                                             .n_prompt = one->prompt.n,
                                             .stop_ids = g->stops.ids,
                                             .n_stops = g->stops.n,
                                             .max_tokens = g->max_tokens,
                                             .top_p = 1,
                                             .scored = g->scored,
                                             .n_scored = one->scores ? g->n_scored : 0,
                                             .scores = one->logp,
                                             .on_finish = finished,
                                             .arg = one };
    }
    wz_engine_run(g->engine, requests, k);
    for (int i = 0; i < k; i++) wz_request_finish(&requests[i]);
    for (int i = 0; i < all; i++) wz_ids_finish(&asked[i].prompt);
    free(requests);
    free(asking);
    free(asked);
}

/* ---- a model behind a URL --------------------------------------------------------------------------------- */

static void chat_ask(void *arg, bool plain, int first, const struct wz_question *q, int n, struct wz_buf *body)
{
    const struct guard *g = arg;
    const json_t *variables = json_array_get(g->variables, (size_t)(first % g->n_policies));
    struct wz_buf filled = { 0 };
    struct wz_message talk[2];
    const int turns = say(g, q, talk, &filled);

    wz_buf_str(body, "{\"model\":");
    wz_json_string(body, g->name, strlen(g->name));
    wz_buf_str(body, ",\"messages\":[");
    for (int i = 0; i < turns; i++) {
        wz_buf_printf(body, "%s{\"role\":\"%s\",\"content\":", i ? "," : "", i ? "assistant" : "user");
        wz_json_string(body, talk[i].text, strlen(talk[i].text));
        wz_buf_str(body, "}");
    }
    wz_buf_str(body, "]");
    if (json_object_size(variables)) {
        char *text = json_dumps(variables, JSON_COMPACT);
        wz_buf_printf(body, ",\"chat_template_kwargs\":%s", text);
        free(text);
    }
    if (g->row->words[0] && !plain) wz_buf_printf(body, ",\"logprobs\":true,\"top_logprobs\":%d", TOP_LOGPROBS);
    wz_buf_printf(body, ",\"temperature\":0,\"max_tokens\":%d}", g->max_tokens);
    wz_buf_finish(&filled);
}

/* The score over the likeliest tokens in the place of the verdict, as the answer has them:
 *
 *     choices[0].logprobs.content: [{"token", "top_logprobs": [{"token", "logprob"}, ...]}, ...]
 *
 * Left as it is where there are none, or where the text's verdict is not one of the tokens, or not in the list; failed
 * where a verdict's is no logarithm of a probability (a rounding above 0 is taken). */
static void read_logprobs(const struct guard *g, const json_t *choice, const char *text, struct wz_answer *a)
{
    const json_t *tokens = json_object_get(json_object_get(choice, "logprobs"), "content"), *token = NULL, *top;
    size_t n, i, at = 0;
    const char *in = g->row->tag ? tagged(text, g->row->tag, &n) : text, *s = NULL;
    const size_t begin = (size_t)(in - text) + strspn(in, blanks);
    double sum = 0, mass = 0;

    json_array_foreach(tokens, i, token)
    {
        s = json_string_value(json_object_get(token, "token"));
        at += json_string_length(json_object_get(token, "token"));
        if (at > begin) break;
    }
    const int written = at > begin && s ? word_in(g->row, s, strlen(s)) : -1;
    bool listed = false;
    if (written < 0) return;
    json_array_foreach(json_object_get(token, "top_logprobs"), i, top)
    {
        const char *other = json_string_value(json_object_get(top, "token"));
        const int word = other ? word_in(g->row, other, strlen(other)) : -1;
        if (word < 0) continue;
        const json_t *logp = json_object_get(top, "logprob");
        const double p = json_is_number(logp) ? exp(json_number_value(logp)) : 0; /* null, or none: of -inf */
        if ((logp && !json_is_number(logp) && !json_is_null(logp)) || p > 1.01) {
            wz_answer_fail(a, "expected a log-probability for each of top_logprobs: a number of 0 or less");
            return;
        }
        listed |= word == written && p > 0;
        mass += p;
        sum += p * g->row->values[word];
    }
    if (!listed) return;
    a->score = fmin(1, fmax(0, sum / mass));
    a->flags = a->score >= g->threshold ? WZ_JUDGED_HARMFUL : 0u;
}

static void chat_read(void *arg, json_t *reply, struct wz_answer *a, int n)
{
    json_t *choice = json_array_get(json_object_get(reply, "choices"), 0),
           *content = json_object_get(json_object_get(choice, "message"), "content");
    const char *text = json_string_value(content), *end = json_string_value(json_object_get(choice, "finish_reason"));

    if (!text) wz_answer_fail(a, "expected choices[0].message.content in the answer");
    else read_text(arg, text, json_string_length(content), end && !strcmp(end, "length"), a);
    if (!a->failed && ((const struct guard *)arg)->row->words[0]) read_logprobs(arg, choice, text, a);
}

static const struct wz_http_form chat_form = { 1, true, chat_ask, chat_read };

static void ask_endpoint(struct wz_judge *judge, const struct wz_question *questions, struct wz_answer *answers,
                         struct wz_answer *got, int n)
{
    struct guard *g = judge->state;
    const int all = n * g->n_policies;
    struct wz_question *each = wz_alloc(sizeof *each * (size_t)(all + 1));

    for (int i = 0; i < all; i++) each[i] = questions[i / g->n_policies];
    wz_http_ask(g->http, judge, each, got, all, g->n_policies == 1);
    for (int i = 0; i < n; i++) combine(got + i * g->n_policies, g->n_policies, &answers[i]);
    free(each);
}

void wz_guard_ask(struct wz_judge *judge, const struct wz_question *questions, struct wz_answer *answers, int n)
{
    const struct guard *g = judge->state;
    struct wz_answer *got = wz_alloc(sizeof *got * (size_t)(n * g->n_policies + 1));

    (g->http ? ask_endpoint : ask_model)(judge, questions, answers, got, n);
    free(got);
}

/* ---- opening ---------------------------------------------------------------------------------------------- */

void wz_guard_close(struct wz_judge *judge)
{
    struct guard *g = judge->state;

    if (!g) return;
    wz_http_close(g->http);
    wz_engine_destroy(g->engine);
    wz_model_destroy(g->model);
    wz_tokenizer_destroy(g->tok);
    wz_ids_finish(&g->stops);
    if (g->own_be) wz_backend_close(g->be);
    json_decref(g->variables);
    free(g->categories);
    free(g->rubric);
    free(g);
    judge->state = NULL;
}

/* Where a code is in a list, "S6, S14"; NULL: it is not. *whole: bytes up to the next comma. */
static const char *code_in(const char *list, const char *code, size_t n, size_t *whole)
{
    for (; *list; list += *whole + (list[*whole] != 0)) {
        list += strspn(list, blanks);
        *whole = strcspn(list, ",");
        size_t k = *whole;
        while (k && strchr(blanks, list[k - 1])) k--;
        if (k && k == n && !memcmp(list, code, n)) return list;
    }
    return NULL;
}

/* The categories: the row's, or those in a file, less the ones whose code is in `without` ("S6, S14"); blanks at the
 * ends of lines and lines of nothing else are dropped. A code is what is before the colon, less quotes around it. */
static int read_categories(struct guard *g, const char *path, const char *without, struct wz_err *err)
{
    const char *text = g->row->categories ? g->row->categories : "";
    struct wz_map map = { (const uint8_t *)text, strlen(text) };
    const bool own = path && *path;
    struct wz_buf kept = { 0 };
    size_t whole;
    int rc = 0;

    if (!without) without = "";
    if ((own || *without) && !g->row->categories) return wz_fail(err, "it has no categories");
    if (own && wz_map_open(&map, path, err) < 0) return -1;
    const size_t mark = wz_utf8_mark((const char *)map.bytes, map.len);
    char *unknown = wz_strdup(without); /* codes are wiped out as they are met */
    struct wz_lines l = wz_lines_begin(map.bytes + mark, map.len - mark);
    while (rc == 0 && wz_lines_next(&l)) {
        if (memchr(l.line, 0, l.n)) rc = wz_fail(err, "%s:%d: has a NUL in it", path, l.number);
        while (rc == 0 && l.n && strchr(blanks, l.line[l.n - 1])) l.n--;
        if (!l.n || rc < 0) continue;
        const size_t quoted = *l.line == '"';
        size_t n = quoted;
        while (n < l.n && !strchr(":\"", l.line[n])) n++;
        while (n > quoted && strchr(blanks, l.line[n - 1])) n--;
        bool out = false;
        for (const char *from = without, *at; (at = code_in(from, l.line + quoted, n - quoted, &whole)); out = true) {
            memset(unknown + (at - without), ' ', whole);
            from = at + whole;
        }
        if (!out) {
            wz_buf_add(&kept, l.line, l.n);
            wz_buf_str(&kept, "\n");
        }
    }
    if (own) wz_map_close(&map);
    const char *left = unknown + strspn(unknown, ", \t\r\n");
    if (rc == 0 && *left) rc = wz_fail(err, "without: no category has the code %.*s", (int)strcspn(left, ","), left);
    free(unknown);
    if (rc == 0 && g->row->categories && !kept.len) rc = wz_fail(err, "it has no category left");
    g->categories = kept.data ? kept.data : wz_strdup("");
    if (rc == 0 && wz_utf8_valid(g->categories, strlen(g->categories)) != strlen(g->categories))
        rc = wz_fail(err, "%s: is not text in UTF-8", path);
    return rc;
}

/* Sets the variable a.b to n bytes of text. */
static void set_variable(json_t *variables, const char *name, const char *s, size_t n)
{
    const char *dot = strchr(name, '.');
    char object[48];

    if (dot) {
        snprintf(object, sizeof object, "%.*s", (int)(dot - name), name);
        if (!json_object_get(variables, object)) json_object_set_new(variables, object, json_object());
        variables = json_object_get(variables, object);
        name = dot + 1;
    }
    json_object_set_new(variables, name, json_stringn(s, n));
}

/* The variables of its template: those of the row, and one object for each policy. */
static void make_variables(struct guard *g)
{
    const struct wz_guard_row *row = g->row;

    g->variables = json_array();
    for (const char *s = row->policy ? g->categories : "\n"; *s; s += strcspn(s, "\n") + 1) {
        const size_t n = strcspn(s, "\n");
        const char *colon = row->definition ? memchr(s, ':', n) : NULL, *text = colon ? colon + 1 : s;
        json_t *one = row->variables ? wz_json_parse(row->variables, strlen(row->variables), "", NULL) : json_object();
        size_t name = colon ? (size_t)(colon - s) : n;
        while (colon && *text == ' ') text++;
        while (name && strchr(blanks, s[name - 1])) name--;
        if (row->policy && !(colon && row->either)) set_variable(one, row->policy, s, name);
        if (colon) set_variable(one, row->definition, text, (size_t)(s + n - text));
        json_array_append_new(g->variables, one);
        g->n_policies++;
    }
}

static int read_rubric(struct guard *g, const char *path, struct wz_err *err)
{
    if (!path || !*path) return wz_fail(err, "`rubric` must name a file with the question");
    if (!(g->rubric = wz_text_read(path, err))) return -1;
    if (!strstr(g->rubric, "{response}"))
        return wz_fail(err, "%s: {response} is nowhere in it, and would never be judged", path);
    return 0;
}

struct wz_engine *wz_guard_engine(struct wz_model *model, int concurrent, int max_seq_len)
{
    return wz_engine_create(model, concurrent > 0 ? concurrent : 8, 16, 0, max_seq_len > 0 ? max_seq_len : 8192);
}

/* Loads the model. *identity: of all that decides its verdicts. */
static int open_model(struct guard *g, const struct wz_judge_config *config, uint64_t *identity, struct wz_err *err)
{
    const char *type = config->type && *config->type ? config->type : "f32";
    const struct wz_question sample = { "?", "?", false };
    struct wz_ids ids = { 0 };
    int rc = 0;

    g->be = config->be ? config->be : wz_backend_open("auto", 0, NULL, err);
    g->own_be = !config->be;
    if (!g->be) return -1;
    if (!config->model || !*config->model)
        return wz_fail(err, "`model` must name its folder or GGUF file, or its name at a `url`");
    if (!(g->tok = wz_tokenizer_load(config->model, err))) return -1;
    if (!(g->model = wz_model_load(config->model, wz_type_named(type), NULL, g->be, err))) return -1;
    wz_model_drop_unpacked(g->model);
    if (wz_tokenizer_vocab(g->tok) > g->model->config.vocab)
        return wz_fail(err, "%s: the tokenizer has %d ids, the model %d", config->model, wz_tokenizer_vocab(g->tok),
                       g->model->config.vocab);
    if (!g->row->prompt && !(g->chat = wz_template_find(NULL, g->tok, err)))
        return wz_fail_in(err, "%s", config->model);
    for (const char *s = g->row->trim ? g->row->prompt : ""; (s = strchr(s, '\1')); s++) { /* Llama Guard */
        char name[48];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(s + 1, "\2"), s + 1);
        if (wz_tokenizer_id(g->tok, name) < 0)
            return wz_fail(err, "%s: its tokenizer has no %s: it is not a model of this kind", config->model, name);
    }
    for (int i = 0; i < g->n_policies && rc == 0; i++) rc = render(g, &sample, i, "", &ids, err);
    if (rc < 0) wz_fail_in(err, "%s", config->model);
    if (rc == 0) rc = find_words(g, err);
    wz_stops_find(&g->model->config, NULL, g->tok, &g->stops);
    g->engine = wz_guard_engine(g->model, config->concurrent, config->max_seq_len);
    *identity = wz_hash(ids.ids, sizeof *ids.ids * (size_t)ids.n, g->model->hash);
    *identity = wz_hash(type, strlen(type), *identity);
    wz_ids_finish(&ids);
    return rc;
}

static int open_endpoint(struct guard *g, const struct wz_judge_config *config, uint64_t *identity, struct wz_err *err)
{
    const struct wz_question sample = { "?", "?", false };
    const bool chosen = (config->categories && *config->categories) || (config->without && *config->without);
    struct wz_buf body = { 0 };

    g->name = config->model ? config->model : "";
    if (g->row->prompt && !g->row->served)
        return wz_fail(err, "it is asked by a prompt of its own, which an endpoint of chat completions would put into "
                            "another: give its files as `model`, and no `url`");
    if (g->row->prompt && chosen)
        return wz_fail(err, "its categories can't be chosen behind a URL: give its files as `model`, and no `url`");
    if (g->max_tokens < ENDPOINT_TOKENS && !g->row->rubric) g->max_tokens = ENDPOINT_TOKENS;
    for (int i = 0; i < g->n_policies; i++) chat_ask(g, false, i, &sample, 1, &body);
    *identity = wz_hash(config->url, strlen(config->url), wz_hash(body.data, body.len, 1));
    wz_buf_finish(&body);
    return 0;
}

int wz_guard_open(struct wz_judge *judge, const struct wz_judge_config *config, struct wz_err *err)
{
    struct guard *g = wz_alloc(sizeof *g);

    judge->state = g;
    g->row = judge->row->guard;
    g->threshold = config->threshold > 0 ? config->threshold : 0.5;
    g->max_tokens = g->row->max_tokens ? g->row->max_tokens : config->max_tokens > 0 ? config->max_tokens : 64;
    g->of = g->row->rubric ? wz_measures_find(config->measures, err) : NULL;
    int rc = !judge->model && !(g->http = wz_http_open(config, &chat_form, g, err)) ? -1 : 0;
    if (rc == 0) rc = read_categories(g, config->categories, config->without, err);
    if (rc == 0 && g->row->rubric) rc = read_rubric(g, config->rubric, err);
    if (rc == 0) make_variables(g);
    if (rc == 0) rc = (judge->model ? open_model : open_endpoint)(g, config, &judge->identity, err);
    judge->identity = wz_hash(&g->threshold, sizeof g->threshold, judge->identity);
    judge->identity = wz_hash(&g->max_tokens, sizeof g->max_tokens, judge->identity);
    if (g->of) judge->identity = wz_hash(g->of->name, strlen(g->of->name), judge->identity);
    if (rc < 0) {
        wz_fail_in(err, "judge %s", judge->name);
        wz_guard_close(judge);
    }
    return rc;
}
