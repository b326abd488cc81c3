/* waltz score: log-probabilities of given tokens. JSON lines in, one JSON line out for each, in order.
 *
 *     stdin ─▶ lines that can be read at once ─▶ forwards of at most BATCH tokens, long lines in pieces ─▶ stdout
 *
 * Lines are grouped only while more of them can be read without waiting, so a program that writes a line and waits for
 * its answer gets it. Grouping never changes a number (guarantee 1). */
#include "launch/launch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "run/run.h"

enum { BATCH = 512, GROUP = 64, PAGE = 16, TOKENS = 8192 }; /* TOKENS: of a group, unless one line alone has more */

/* A line and its answer. */
struct request {
    struct wz_ids ids;
    long number;       /* of the line */
    int n, done;       /* ids.n, 0 where it can't be scored; tokens scored */
    float *logp;       /* [n], the last unused */
    int *argmax;       /* [n] */
    struct wz_err err; /* set when it can't be scored */
    struct wz_seq seq;
};

struct scorer {
    struct wz_backend *be;
    struct wz_model *m;
    struct wz_cache *cache; /* grows to the longest group seen */
    int pages;
    struct wz_work *work;
    float temperature;
    bool failed; /* some line was */
};

static void request_parse(struct request *r, const struct wz_config *c, const char *line, size_t n, long number)
{
    char name[32];

    r->number = number;
    snprintf(name, sizeof name, "line %ld", number);
    json_t *j = wz_json_parse(line, n, name, &r->err), *ids = json_object_get(j, "ids");
    if (!j) return;
    if (json_array_size(ids) > (size_t)c->context)
        wz_fail(&r->err, "%zu ids are more than the model's context of %d", json_array_size(ids), c->context);
    else if (wz_ids_parse(ids, c->vocab, &r->ids, &r->err) == 0 && r->ids.n == 0) wz_fail(&r->err, "ids is empty");
    json_decref(j);
    if (r->err.text[0]) {
        wz_fail_in(&r->err, "%s", name);
        return;
    }
    r->n = r->ids.n;
    r->logp = wz_alloc((size_t)r->n * sizeof *r->logp);
    r->argmax = wz_alloc((size_t)r->n * sizeof *r->argmax);
}

/* One forward over the next pieces of the group. False: nothing is left to do. */
static bool forward(struct scorer *s, struct request *group, int n)
{
    static const struct wz_pick greedy = { 0, 1, 0, 0, 0 };
    struct wz_seq *seqs[GROUP];
    struct wz_pick picks[BATCH];
    struct request *of[GROUP];
    int count[GROUP], ids[BATCH], targets[BATCH], argmax[BATCH], n_seqs = 0, tokens = 0;
    float logp[BATCH], best[BATCH];

    for (int i = 0; i < n && tokens < BATCH; i++) {
        struct request *r = &group[i];
        int k = r->n - r->done < BATCH - tokens ? r->n - r->done : BATCH - tokens;

        if (k == 0) continue;
        for (int t = r->done; t < r->done + k; t++, tokens++) {
            ids[tokens] = r->ids.ids[t];
            targets[tokens] = t + 1 < r->n ? r->ids.ids[t + 1] : -1;
            picks[tokens] = greedy;
        }
        of[n_seqs] = r;
        seqs[n_seqs] = &r->seq;
        count[n_seqs++] = k;
    }
    if (tokens == 0) return false;
    const float *h = wz_forward(s->m, s->cache, s->work, &(struct wz_batch){ n_seqs, seqs, count, ids });
    wz_head_sample(s->be, argmax, best, h, &s->m->head, picks, tokens);
    wz_logprobs(s->m, s->work, targets, s->temperature, logp, NULL);
    for (int i = 0, at = 0; i < n_seqs; at += count[i++]) {
        memcpy(of[i]->logp + of[i]->done, logp + at, (size_t)count[i] * sizeof *logp);
        memcpy(of[i]->argmax + of[i]->done, argmax + at, (size_t)count[i] * sizeof *argmax);
        for (int k = 0; k < count[i] && !of[i]->err.text[0]; k++)
            if (!isfinite(best[at + k]) || !isfinite(logp[at + k]))
                wz_fail(&of[i]->err,
                        "line %ld: after ids[%d] a log-probability is not finite: the model's numbers overflow",
                        of[i]->number, of[i]->done + k);
        of[i]->done += count[i];
    }
    return true;
}

static void answer(const struct request *r, struct wz_buf *out)
{
    if (r->err.text[0]) {
        wz_answer_error(out, &r->err);
    } else {
        wz_buf_clear(out);
        wz_buf_str(out, "{");
        wz_answer_floats(out, "logprobs", r->logp, r->n - 1);
        wz_buf_str(out, ", ");
        wz_answer_ints(out, "argmax", r->argmax, r->n);
        wz_buf_str(out, "}");
    }
    puts(out->data);
}

static void group_score(struct scorer *s, struct request *group, int n)
{
    struct wz_buf out = { 0 };
    int pages = 0;

    for (int i = 0; i < n; i++) pages += (group[i].n + PAGE - 1) / PAGE;
    if (pages > s->pages) {
        wz_cache_destroy(s->cache);
        s->cache = wz_cache_create(s->m, pages, PAGE);
        s->pages = pages;
    }
    for (int i = 0; i < n; i++)
        if (group[i].n && !wz_seq_reserve(s->cache, &group[i].seq, group[i].n)) wz_die("cache pages were miscounted");
    while (forward(s, group, n)) {
    }
    for (int i = 0; i < n; i++) {
        struct request *r = &group[i];

        answer(r, &out);
        s->failed |= r->err.text[0] != 0;
        if (s->cache) wz_seq_finish(s->cache, &r->seq);
        wz_ids_finish(&r->ids);
        free(r->logp);
        free(r->argmax);
        *r = (struct request){ 0 };
    }
    fflush(stdout);
    wz_buf_finish(&out);
}

static int lines_score(struct scorer *s, struct wz_err *err)
{
    static struct request group[GROUP];
    struct wz_input lines = { .fd = 0 };
    const char *text;
    size_t len;
    long number = 0;
    int n = 0, tokens = 0, rc;

    while ((rc = wz_input_next(&lines, &text, &len, err)) > 0) {
        struct request *r = &group[n];
        request_parse(r, &s->m->config, text, len, ++number);
        if (n > 0 && tokens + r->n > TOKENS) { /* this one begins the next group */
            struct request last = *r;

            *r = (struct request){ 0 };
            group_score(s, group, n);
            group[0] = last;
            n = tokens = 0;
        }
        tokens += group[n++].n;
        if (n < GROUP && wz_input_ready(&lines)) continue;
        group_score(s, group, n);
        n = tokens = 0;
    }
    if (n > 0) group_score(s, group, n);
    wz_input_finish(&lines);
    return rc;
}

int wz_cmd_score(int argc, char **argv)
{
    const char *type = "f32", *backend = "auto";
    double temperature = 1;
    struct wz_model_pick pick = { NULL, -1 };
    char *path = NULL;
    int threads = 0, status;
    const struct wz_option options[] = {
        { "type", 't', WZ_TEXT, &type, "f32|bf16|int8", "weights in memory, and how they are multiplied", 0, 0 },
        { "backend", 'b', WZ_TEXT, &backend, "NAME", "compute backend", 0, 0 },
        { "threads", 0, WZ_INT, &threads, "N", "threads; 0: all cores", 0, 4096 },
        { "temperature", 'T', WZ_NUMBER, &temperature, "T", "logits are divided by it", 1e-6, 1e6 },
        WZ_PICK_OPTIONS(&pick),
    };
    const struct wz_usage usage = {
        .name = "score",
        .args = "MODEL|RUN",
        .options = options,
        .n_options = WZ_COUNT(options),
        .about = "Reads JSON lines {\"ids\": [...]} from standard input and writes, in order, {\"logprobs\": [of\n"
                 "ids[1], ids[2], ...], \"argmax\": [the most probable token after each id]}. A line that can't be\n"
                 "scored is answered with {\"error\": ...}; the exit status is 1 then. MODEL is a Hugging Face folder\n"
                 "or a GGUF file; of a RUN the newest checkpoint is taken.",
    };
    struct scorer s = { 0 };
    struct wz_err err;

    if (wz_options_parse(&usage, argc, argv, &status) < 0) return status;
    s.temperature = (float)temperature;
    status = 1;
    if (!(s.be = wz_backend_open(backend, threads, NULL, &err))) goto out;
    if (!(path = wz_checkpoint_model(argv[0], pick.agent, pick.step, &err))) goto out;
    if (!(s.m = wz_model_load(path, wz_type_named(type), NULL, s.be, &err))) goto out;
    wz_model_drop_unpacked(s.m);
    s.work = wz_work_create(s.m, BATCH, false);
    status = lines_score(&s, &err) < 0;
out:
    if (status) wz_give_up("score", &err);
    wz_work_destroy(s.work);
    wz_cache_destroy(s.cache);
    wz_model_destroy(s.m);
    wz_backend_close(s.be);
    free(path);
    return status || s.failed;
}
