/* waltz tokenize: texts or conversations to ids and back, a JSON line for a JSON line.
 *
 *   {"text": "..."}                                            {"ids": [1, 2, 3]}
 *   {"messages": [{"role", "content"}], "generate": true}      {"ids": [1, 2, 3]}
 *   {"ids": [1, 2, 3]}  with --decode                          {"text": "..."} */
#include "launch/launch.h"

#include <stdlib.h>
#include <string.h>

#include "model/model.h"

struct job {
    struct wz_tokenizer *tok;
    const char *template; /* NULL: the model's own */
    bool decode, bos;
};

static int read_role(const json_t *message, enum wz_role *role, struct wz_err *err)
{
    static const char *const names[] = { [WZ_SYSTEM] = "system", [WZ_USER] = "user", [WZ_ASSISTANT] = "assistant" };
    const char *name = json_string_value(json_object_get(message, "role"));

    for (size_t i = 0; i < WZ_COUNT(names); i++) {
        if (!name || strcmp(name, names[i]) != 0) continue;
        *role = (enum wz_role)i;
        return 0;
    }
    return wz_fail(err, "role \"%.40s\", system, user or assistant was expected", name ? name : "");
}

int wz_messages_encode(const struct wz_tokenizer *tok, const char *template, const json_t *list, bool generate,
                       struct wz_ids *ids, struct wz_err *err)
{
    const char *name = template ? template : wz_tokenizer_template(tok);
    int n = (int)json_array_size(list), rc = -1;
    struct wz_message *messages = wz_alloc(wz_mul((size_t)n, sizeof *messages));

    if (!name) {
        wz_fail(err, "the model names no chat template; give one with --template");
        goto out;
    }
    const struct wz_template *t = wz_template_find(name, tok, err);
    if (!t) goto out;
    for (int i = 0; i < n; i++) {
        const json_t *message = json_array_get(list, (size_t)i);
        messages[i].text = json_string_value(json_object_get(message, "content"));
        if (read_role(message, &messages[i].role, err) < 0) {
            wz_fail_in(err, "message %d", i + 1);
            goto out;
        }
        if (!messages[i].text) {
            wz_fail(err, "message %d has no content, a text was expected", i + 1);
            goto out;
        }
    }
    rc = wz_template_apply(t, tok, messages, n, generate, ids, err);
out:
    free(messages);
    return rc;
}

static int encode_line(const struct job *job, const json_t *line, struct wz_buf *out, struct wz_err *err)
{
    const json_t *text = json_object_get(line, "text"), *messages = json_object_get(line, "messages");
    struct wz_ids ids = { 0 };
    int rc = -1;

    if (json_is_array(messages)) {
        rc = wz_messages_encode(job->tok, job->template, messages, json_is_true(json_object_get(line, "generate")),
                                &ids, err);
    } else if (!json_is_string(text)) {
        wz_fail(err, "{\"text\": \"...\"} or {\"messages\": [...]} was expected");
    } else if (job->bos && wz_tokenizer_bos(job->tok) < 0) {
        wz_fail(err, "--bos was given, but the tokenizer has no BOS token");
    } else {
        if (job->bos) wz_ids_add(&ids, wz_tokenizer_bos(job->tok));
        rc = wz_encode(job->tok, json_string_value(text), json_string_length(text), &ids, err);
    }
    wz_buf_str(out, "{\"ids\": [");
    for (int i = 0; i < ids.n; i++) wz_buf_printf(out, "%s%d", i ? ", " : "", ids.ids[i]);
    wz_buf_str(out, "]}");
    wz_ids_finish(&ids);
    return rc;
}

static int decode_line(const struct job *job, const json_t *line, struct wz_buf *out, struct wz_err *err)
{
    const json_t *list = json_object_get(line, "ids"), *item;
    struct wz_buf text = { 0 };
    size_t i;
    int rc = -1;

    int *ids = wz_alloc(wz_mul(json_array_size(list), sizeof *ids));
    if (!json_is_array(list)) {
        wz_fail(err, "{\"ids\": [...]} was expected");
        goto out;
    }
    json_array_foreach(list, i, item)
    {
        json_int_t id = json_integer_value(item);
        if (!json_is_integer(item) || id < 0 || id >= wz_tokenizer_vocab(job->tok)) {
            wz_fail(err, "ids: item %zu is no id from 0 to %d", i + 1, wz_tokenizer_vocab(job->tok) - 1);
            goto out;
        }
        ids[i] = (int)id;
    }
    wz_decode(job->tok, ids, (int)json_array_size(list), true, &text);
    wz_buf_str(out, "{\"text\": ");
    wz_json_string(out, text.data, text.len);
    wz_buf_str(out, "}");
    rc = 0;
out:
    wz_buf_finish(&text);
    free(ids);
    return rc;
}

/* Answers every line; 1 when one was bad. */
static int answer(const struct job *job)
{
    struct wz_buf out = { 0 };
    struct wz_err err;
    char *text = NULL, name[40];
    size_t cap = 0;
    ssize_t n;
    int status = 0;

    for (long number = 1; (n = getline(&text, &cap, stdin)) >= 0; number++) {
        snprintf(name, sizeof name, "line %ld", number);
        json_t *line = wz_json_parse(text, (size_t)n, name, &err);
        int rc = -1;
        wz_buf_clear(&out);
        if (line) {
            rc = job->decode ? decode_line(job, line, &out, &err) : encode_line(job, line, &out, &err);
            if (rc < 0) wz_fail_in(&err, "%s", name);
        }
        json_decref(line);
        if (rc < 0) {
            status = wz_give_up("tokenize", &err);
            wz_buf_clear(&out);
            wz_buf_str(&out, "{\"error\": ");
            wz_json_string(&out, err.text, strlen(err.text));
            wz_buf_str(&out, "}");
        }
        puts(out.data);
    }
    free(text);
    wz_buf_finish(&out);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        wz_fail(&err, "standard output could not be written");
        status = wz_give_up("tokenize", &err);
    }
    return status;
}

int wz_cmd_tokenize(int argc, char **argv)
{
    struct job job = { 0 };
    int status;
    const struct wz_option options[] = {
        { "decode", 'd', WZ_FLAG, &job.decode, NULL, "ids to text, special tokens written out", 0, 0 },
        { "bos", 'b', WZ_FLAG, &job.bos, NULL, "put the BOS token in front of a text", 0, 0 },
        { "template", 't', WZ_TEXT, &job.template, "NAME", "chat template, where the model's own is not meant", 0, 0 },
    };
    const struct wz_usage usage = {
        .name = "tokenize",
        .args = "MODEL",
        .options = options,
        .n_options = WZ_COUNT(options),
        .min_args = 1,
        .max_args = 1,
        .about = "Reads JSON lines and answers each: {\"text\": ...} or {\"messages\": [{\"role\", \"content\"}],\n"
                 "\"generate\": true} with {\"ids\": [...]}; with --decode, {\"ids\": [...]} with {\"text\": ...}.\n"
                 "MODEL is a folder or any tokenizer file. A bad line is answered with {\"error\": ...}, the others\n"
                 "go on, and the exit status is 1.",
    };
    struct wz_err err;

    if (wz_options_parse(&usage, argc, argv, &status) < 0) return status;
    job.tok = wz_tokenizer_load(argv[0], &err);
    if (!job.tok) return wz_give_up("tokenize", &err);
    if (job.template && !wz_template_find(job.template, job.tok, &err)) status = wz_give_up("tokenize", &err);
    else status = answer(&job);
    wz_tokenizer_destroy(job.tok);
    return status;
}
