/* waltz generate: continues conversations or token ids, a JSON line for a JSON line, in order.
 *
 *     {"messages": [{"role", "content"}, ...]}  ─ chat template ─▶  ids ─▶ engine ─▶  {"text", "ids", "logprobs", ...}
 *     {"prompt": text}, as one of a user        ─ the same ──────▶                    {"prompt", "text", ...}
 *     {"ids": [1, 2, 3]}                        ─ as they are ───▶
 *
 * Lines that can be read without waiting are generated together. The answer to a line does not depend on the others:
 * its randomness is keyed by the seed and the line's number (guarantee 2). */
#include "launch/launch.h"

#include <stdlib.h>
#include <string.h>

#include "run/run.h"

enum { GROUP = 256, PAGE = 16 };

/* A line and its answer. */
struct line {
    struct wz_ids prompt;
    struct wz_request request;
    struct wz_err err;
    char *asked; /* the text of a line with a prompt: heap */
};

struct generator {
    struct wz_backend *be;
    struct wz_model *model;
    struct wz_tokenizer *tok; /* NULL: no_tok has the reason; lines of ids are answered without text */
    struct wz_err no_tok;
    struct wz_engine *engine; /* of max_seq_len; replaced where a line needs a longer one */
    const char *template;     /* NULL: the model's own */
    int max_seq_len, max_num_seqs, max_tokens, top_k;
    double temperature, top_p, min_p;
    uint64_t seed;
    struct wz_ids stops;
    bool failed; /* some line was */
};

static int read_line(const struct generator *g, const char *text, size_t n, struct line *line)
{
    json_t *j = wz_json_parse(text, n, "JSON", &line->err);
    json_t *prompt = json_object_get(j, "prompt"), *asked = NULL;
    const json_t *messages = json_object_get(j, "messages"), *ids = json_object_get(j, "ids");
    const struct wz_config *c = &g->model->config;
    int rc = -1;

    if (!j) return -1;
    if (wz_json_text(prompt)) {
        line->asked = wz_strdup(wz_json_text(prompt));
        messages = asked = json_pack("[{s:s, s:O}]", "role", "user", "content", prompt);
    }
    if (!json_is_array(messages) == !json_is_array(ids))
        wz_fail(&line->err, "expected {\"messages\": [...]}, {\"prompt\": text} or {\"ids\": [...]}");
    else if (ids) rc = wz_ids_parse(ids, c->vocab, &line->prompt, &line->err);
    else if (!g->tok) wz_fail(&line->err, "messages need a tokenizer: %.400s", g->no_tok.text);
    else rc = wz_messages_encode(g->tok, g->template, messages, true, &line->prompt, &line->err);
    json_decref(asked);
    json_decref(j);
    if (rc < 0) return -1;
    if (!line->prompt.n) return wz_fail(&line->err, "the prompt is empty");
    if (line->prompt.n >= c->context)
        return wz_fail(&line->err, "the prompt's %d tokens fill the model's context of %d", line->prompt.n, c->context);
    for (int i = 0; i < line->prompt.n; i++)
        if (line->prompt.ids[i] >= c->vocab)
            return wz_fail(&line->err, "ids[%d] is %d, the model's ids are 0 to %d", i, line->prompt.ids[i],
                           c->vocab - 1);
    return 0;
}

static void write_answer(const struct generator *g, const struct line *line, struct wz_buf *out)
{
    const struct wz_request *r = &line->request;
    struct wz_buf text = { 0 };

    if (*line->err.text) {
        wz_answer_error(out, &line->err);
        return;
    }
    wz_buf_clear(out);
    wz_buf_str(out, "{");
    if (line->asked) {
        wz_buf_str(out, "\"prompt\": ");
        wz_json_string(out, line->asked, strlen(line->asked));
        wz_buf_str(out, ", ");
    }
    wz_buf_str(out, "\"text\": ");
    if (g->tok) {
        wz_buf_str(&text, "");
        wz_decode(g->tok, r->ids, r->n - (r->finish_reason == WZ_FINISH_STOP), false, &text);
        wz_json_string(out, text.data, text.len);
        wz_buf_finish(&text);
    } else {
        wz_buf_str(out, "null");
    }
    wz_buf_str(out, ", ");
    wz_answer_ints(out, "ids", r->ids, r->n);
    wz_buf_str(out, ", ");
    wz_answer_floats(out, "logprobs", r->logp, r->n);
    wz_buf_printf(out, ", \"finish_reason\": \"%s\"}", r->finish_reason == WZ_FINISH_STOP ? "stop" : "length");
}

static void fit_engine(struct generator *g, int max_seq_len)
{
    if (max_seq_len > g->model->config.context) max_seq_len = g->model->config.context;
    if (g->engine && max_seq_len <= g->max_seq_len) return;
    wz_engine_destroy(g->engine);
    g->engine = wz_engine_create(g->model, g->max_num_seqs, PAGE, 0, max_seq_len);
    g->max_seq_len = max_seq_len;
}

/* Generates and answers lines [0, n); the first has this number in the input. */
static void run_group(struct generator *g, struct line *lines, int n, uint32_t first)
{
    struct wz_request *requests = wz_alloc(wz_mul((size_t)n, sizeof *requests));
    struct wz_buf out = { 0 };
    int count = 0, longest = 0;

    for (int i = 0; i < n; i++) {
        if (*lines[i].err.text) continue;
        if (lines[i].prompt.n + g->max_tokens > longest) longest = lines[i].prompt.n + g->max_tokens;
        requests[count++] = (struct wz_request){
            .prompt_ids = lines[i].prompt.ids,
            .n_prompt = lines[i].prompt.n,
            .stop_ids = g->stops.ids,
            .n_stops = g->stops.n,
            .max_tokens = g->max_tokens,
            .temperature = (float)g->temperature,
            .top_p = (float)g->top_p,
            .min_p = (float)g->min_p,
            .top_k = g->top_k,
            .key = { .seed = g->seed, .purpose = WZ_RNG_TOKEN, .a = first + (uint32_t)i },
        };
    }
    if (count) {
        fit_engine(g, longest);
        wz_engine_run(g->engine, requests, count);
    }
    for (int i = 0, k = 0; i < n; i++) {
        if (!*lines[i].err.text) {
            lines[i].request = requests[k++];
            if (lines[i].request.problem)
                wz_fail(&lines[i].err, "line %u: %s", first + (uint32_t)i, lines[i].request.problem);
        }
        write_answer(g, &lines[i], &out);
        puts(out.data);
        g->failed |= *lines[i].err.text != 0;
        wz_request_finish(&lines[i].request);
        wz_ids_finish(&lines[i].prompt);
        free(lines[i].asked);
        lines[i] = (struct line){ 0 };
    }
    fflush(stdout);
    free(requests);
    wz_buf_finish(&out);
}

static int run_lines(struct generator *g, struct wz_err *err)
{
    struct line *group = wz_alloc(GROUP * sizeof *group);
    struct wz_input lines = { .fd = 0 };
    const char *text;
    size_t len;
    uint32_t number = 0;
    int n = 0, rc;

    while ((rc = wz_input_next(&lines, &text, &len, err)) > 0) {
        number++;
        if (read_line(g, text, len, &group[n]) < 0) wz_fail_in(&group[n].err, "line %u", number);
        if (++n < GROUP && wz_input_ready(&lines)) continue;
        run_group(g, group, n, number - (uint32_t)n + 1);
        n = 0;
    }
    if (n) run_group(g, group, n, number - (uint32_t)n + 1);
    wz_input_finish(&lines);
    free(group);
    return rc;
}

static int find_stops(struct generator *g, struct wz_err *err)
{
    const struct wz_template *t = g->tok ? wz_template_find(g->template, g->tok, err) : NULL;

    if (g->tok && g->template && !t) return -1;
    wz_stops_find(&g->model->config, t, g->tok, &g->stops);
    return 0;
}

int wz_cmd_generate(int argc, char **argv)
{
    struct generator g = { .max_num_seqs = 16, .max_tokens = 256, .top_p = 1, .seed = 1 };
    const char *type = "f32", *backend = "auto";
    struct wz_model_pick pick = { NULL, -1 };
    char *path = NULL;
    int threads = 0, status;
    const struct wz_option options[] = {
        { "max-tokens", 'n', WZ_INT, &g.max_tokens, "N", "tokens to generate, at most", 1, 1e7 },
        { "temperature", 'T', WZ_NUMBER, &g.temperature, "T", "of sampling; 0: greedy", 0, 100 },
        { "top-k", 0, WZ_INT, &g.top_k, "K", "sample from the K most probable tokens; 0: all", 0, 1e9 },
        { "top-p", 0, WZ_NUMBER, &g.top_p, "P", "sample from the most probable tokens that make up P", 1e-6, 1 },
        { "min-p", 0, WZ_NUMBER, &g.min_p, "P", "sample from tokens at least P times as probable as the first", 0, 1 },
        { "seed", 's', WZ_SEED, &g.seed, "N", "of sampling", 0, 0 },
        { "template", 0, WZ_TEXT, &g.template, "NAME", "chat template; overrides the model's own", 0, 0 },
        { "type", 't', WZ_TEXT, &type, "f32|bf16|int8", "weights in memory, and how they are multiplied", 0, 0 },
        { "backend", 'b', WZ_TEXT, &backend, "NAME", "compute backend", 0, 0 },
        { "threads", 0, WZ_INT, &threads, "N", "threads; 0: all cores", 0, 4096 },
        { "max-num-seqs", 0, WZ_INT, &g.max_num_seqs, "N", "lines generated together, at most", 1, 4096 },
        WZ_PICK_OPTIONS(&pick),
    };
    const struct wz_usage usage = {
        .name = "generate",
        .args = "MODEL|RUN",
        .options = options,
        .n_options = WZ_COUNT(options),
        .about =
            "Reads JSON lines {\"messages\": [{\"role\", \"content\"} ...]}, {\"prompt\": text} (one message of a\n"
            "user, which the answer repeats; other columns are left) or {\"ids\": [...]} from standard input\n"
            "and writes, in order, {\"text\", \"ids\": [...], \"logprobs\": [...], \"finish_reason\":\n"
            "\"stop\" or \"length\"}. Ids are continued as they are, without template or BOS. A bad line is\n"
            "answered with {\"error\": ...}; the exit status is 1 then. MODEL is a Hugging Face folder or a GGUF\n"
            "file; of a RUN the newest checkpoint is taken.",
    };
    struct wz_err err;

    if (wz_options_parse(&usage, argc, argv, &status) < 0) return status;
    status = 1;
    if (!(g.be = wz_backend_open(backend, threads, NULL, &err))) goto out;
    if (!(path = wz_checkpoint_model(argv[0], pick.agent, pick.step, &err))) goto out;
    if (!(g.model = wz_model_load(path, wz_type_named(type), NULL, g.be, &err))) goto out;
    wz_model_drop_unpacked(g.model);
    g.tok = wz_tokenizer_load(path, &g.no_tok);
    if (find_stops(&g, &err) < 0) goto out;
    status = run_lines(&g, &err) < 0;
out:
    if (status) wz_give_up("generate", &err);
    wz_engine_destroy(g.engine);
    wz_ids_finish(&g.stops);
    wz_tokenizer_destroy(g.tok);
    wz_model_destroy(g.model);
    wz_backend_close(g.be);
    free(path);
    return status || g.failed;
}
