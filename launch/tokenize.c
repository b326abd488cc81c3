/* waltz tokenize: texts or conversations to ids and back, a JSON line for a JSON line.
 *
 *   {"text": "..."}                                            {"ids": [1, 2, 3]}
 *   {"messages": [{"role", "content"}], "generate": true}      {"ids": [1, 2, 3]}
 *   {"ids": [1, 2, 3]}  with --decode                          {"text": "..."} */
#include "launch/launch.h"

#include <stdlib.h>
#include <string.h>

#include "run/run.h"

struct job {
    struct wz_tokenizer *tok;
    const char *template; /* NULL: the model's own */
    bool decode, bos;
};

static int encode_line(const struct job *job, const json_t *line, struct wz_buf *out, struct wz_err *err)
{
    const json_t *text = json_object_get(line, "text"), *messages = json_object_get(line, "messages");
    struct wz_ids ids = { 0 };
    int rc = -1;

    if (json_is_array(messages)) {
        rc = wz_messages_encode(job->tok, job->template, messages, json_is_true(json_object_get(line, "generate")),
                                &ids, err);
    } else if (!json_is_string(text)) {
        wz_fail(err, "expected {\"text\": \"...\"} or {\"messages\": [...]}");
    } else if (job->bos && wz_tokenizer_bos(job->tok) < 0) {
        wz_fail(err, "--bos was given, but the tokenizer has no BOS token");
    } else {
        if (job->bos) wz_ids_add(&ids, wz_tokenizer_bos(job->tok));
        rc = wz_encode(job->tok, json_string_value(text), json_string_length(text), &ids, err);
    }
    wz_buf_str(out, "{");
    wz_answer_ints(out, "ids", ids.ids, ids.n);
    wz_buf_str(out, "}");
    wz_ids_finish(&ids);
    return rc;
}

static int decode_line(const struct job *job, const json_t *line, struct wz_buf *out, struct wz_err *err)
{
    struct wz_ids ids = { 0 };
    struct wz_buf text = { 0 };
    int rc = wz_ids_parse(json_object_get(line, "ids"), wz_tokenizer_vocab(job->tok), &ids, err);

    if (rc == 0) wz_decode(job->tok, ids.ids, ids.n, true, &text);
    wz_buf_str(out, "{\"text\": ");
    wz_json_string(out, text.data, text.len);
    wz_buf_str(out, "}");
    wz_buf_finish(&text);
    wz_ids_finish(&ids);
    return rc;
}

/* Answers every line; 1 when one was bad. */
static int answer(const struct job *job)
{
    struct wz_input input = { .fd = 0 };
    struct wz_buf out = { 0 };
    struct wz_err err;
    const char *text;
    char name[40];
    size_t n;
    int status = 0, more;

    for (long number = 1; (more = wz_input_next(&input, &text, &n, &err)) > 0; number++) {
        snprintf(name, sizeof name, "line %ld", number);
        json_t *line = wz_json_parse(text, n, name, &err);
        int rc = -1;
        wz_buf_clear(&out);
        if (line) {
            rc = job->decode ? decode_line(job, line, &out, &err) : encode_line(job, line, &out, &err);
            if (rc < 0) wz_fail_in(&err, "%s", name);
        }
        json_decref(line);
        if (rc < 0) {
            status = wz_give_up("tokenize", &err);
            wz_answer_error(&out, &err);
        }
        puts(out.data);
        if (!wz_input_ready(&input)) fflush(stdout);
    }
    wz_input_finish(&input);
    wz_buf_finish(&out);
    if (more < 0) status = wz_give_up("tokenize", &err);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        wz_fail(&err, "standard output could not be written");
        status = wz_give_up("tokenize", &err);
    }
    return status;
}

int wz_cmd_tokenize(int argc, char **argv)
{
    struct job job = { 0 };
    struct wz_model_pick pick = { NULL, -1 };
    int status;
    const struct wz_option options[] = {
        { "decode", 'd', WZ_FLAG, &job.decode, NULL, "ids to text, special tokens written out", 0, 0 },
        { "bos", 'b', WZ_FLAG, &job.bos, NULL, "put the BOS token in front of a text", 0, 0 },
        { "template", 't', WZ_TEXT, &job.template, "NAME", "chat template; overrides the model's own", 0, 0 },
        WZ_PICK_OPTIONS(&pick),
    };
    const struct wz_usage usage = {
        .name = "tokenize",
        .args = "MODEL|RUN",
        .options = options,
        .n_options = WZ_COUNT(options),
        .about = "Reads JSON lines and answers each: {\"text\": ...} or {\"messages\": [{\"role\", \"content\"}],\n"
                 "\"generate\": true} with {\"ids\": [...]}; with --decode, {\"ids\": [...]} with {\"text\": ...}.\n"
                 "MODEL is a folder or any tokenizer file; of a RUN the newest checkpoint is taken. A bad line\n"
                 "is answered with {\"error\": ...}; the exit status is 1 then.",
    };
    struct wz_err err;

    if (wz_options_parse(&usage, argc, argv, &status) < 0) return status;
    char *path = wz_checkpoint_model(argv[0], pick.agent, pick.step, &err);
    job.tok = path ? wz_tokenizer_load(path, &err) : NULL;
    free(path);
    if (!job.tok) return wz_give_up("tokenize", &err);
    if (job.template && !wz_template_find(job.template, job.tok, &err)) status = wz_give_up("tokenize", &err);
    else status = answer(&job);
    wz_tokenizer_destroy(job.tok);
    return status;
}
