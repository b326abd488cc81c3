/* Judges behind a URL: how an endpoint is asked, and one of the forms, `remote`, a reward server as OpenRLHF asks it,
 * some pairs at a time (that of chat completions is in guard.c):
 *
 *     {"query":[prompt and response, ...],"prompts":[prompt, ...]}   ->   {"rewards":[number, ...]}
 *
 * Up to `concurrent` requests are under way at once. A request that fails in a way that may pass (no connection, a
 * timeout, 408, 425, 429, 5xx, an answer that is cut or no verdict) is asked again by judge.c, after its own pause,
 * or as long as the server says in Retry-After; any other status would be the same again, but for 4xx where the request
 * can be made plainer. After BREAK failures in a row
 * of the endpoint itself the circuit is open: one request at a time tries it, and when that fails too the rest of the
 * round fails without being sent. The key is in memory only, no message quotes a request or a header, and an
 * answer that repeats the key has failed, unread. */
#include "reward/http.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <curl/curl.h>

enum { LEAST_KEY = 8, BREAK = 8, MOST_BYTES = 1 << 22, PAIRS = 16 };

struct wz_http {
    const struct wz_http_form *form;
    void *arg; /* the form's */
    char *url, *host;
    double timeout, backoff, pause; /* pause: Retry-After of the round before */
    int concurrent, broken;         /* broken: failures of the endpoint in a row */
    CURLM *multi;
    struct curl_slist *headers;
    char *key;                  /* in one of the headers; NULL: none, or so short that it is in any text */
    struct transfer *transfers; /* [concurrent] */
};

/* A request under way: questions first ... first + n - 1. */
struct transfer {
    CURL *easy;
    bool busy, plain;
    int first, n;
    struct wz_buf sent, got;
    char why[CURL_ERROR_SIZE];
};

/* ---- a reward server -------------------------------------------------------------------------------------- */

struct remote {
    struct wz_http *http;
    const struct wz_measures_of *of;
    double threshold;
};

static void remote_form_ask(void *arg, bool plain, int first, const struct wz_question *q, int n, struct wz_buf *body)
{
    struct wz_buf both = { 0 };

    wz_buf_str(body, "{\"query\":[");
    for (int i = 0; i < n; i++) {
        wz_buf_clear(&both);
        wz_buf_str(&both, q[i].prompt);
        wz_buf_str(&both, q[i].response);
        wz_buf_str(body, i ? "," : "");
        wz_json_string(body, both.data ? both.data : "", both.len);
    }
    wz_buf_str(body, "],\"prompts\":[");
    for (int i = 0; i < n; i++) {
        wz_buf_str(body, i ? "," : "");
        wz_json_string(body, q[i].prompt, strlen(q[i].prompt));
    }
    wz_buf_str(body, "]}");
    wz_buf_finish(&both);
}

static void remote_form_read(void *arg, json_t *reply, struct wz_answer *a, int n)
{
    const struct remote *r = arg;
    json_t *rewards = json_object_get(reply, "rewards");
    const bool fits = json_array_size(rewards) == (size_t)n;

    for (int i = 0; i < n; i++)
        if (fits) wz_answer_json(r->of, r->threshold, json_array_get(rewards, (size_t)i), &a[i]);
        else wz_answer_fail(&a[i], "expected {\"rewards\": [%d numbers]}, got %zu", n, json_array_size(rewards));
}

static const struct wz_http_form remote_form = { PAIRS, false, remote_form_ask, remote_form_read };

/* ---- transfers -------------------------------------------------------------------------------------------- */

static size_t take(char *bytes, size_t size, size_t n, void *arg)
{
    struct transfer *t = arg;

    if (t->got.len + n > MOST_BYTES) return 0;
    wz_buf_add(&t->got, bytes, n);
    return n;
}

static void transfer_begin(struct wz_http *h, struct transfer *t, const struct wz_question *questions)
{
    wz_buf_clear(&t->sent);
    wz_buf_clear(&t->got);
    *t->why = 0;
    h->form->ask(h->arg, t->plain, t->first, questions + t->first, t->n, &t->sent);
    curl_easy_cleanup(t->easy); /* libcurl 7.88 reads a freed header of the last answer where this begins by a fold */
    if (!(t->easy = curl_easy_init())) wz_die("libcurl: out of memory");
    curl_easy_setopt(t->easy, CURLOPT_URL, h->url);
    curl_easy_setopt(t->easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(t->easy, CURLOPT_HTTPHEADER, h->headers);
    curl_easy_setopt(t->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)t->sent.len);
    curl_easy_setopt(t->easy, CURLOPT_POSTFIELDS, t->sent.data);
    curl_easy_setopt(t->easy, CURLOPT_WRITEFUNCTION, take);
    curl_easy_setopt(t->easy, CURLOPT_WRITEDATA, t);
    curl_easy_setopt(t->easy, CURLOPT_ERRORBUFFER, t->why);
    curl_easy_setopt(t->easy, CURLOPT_TIMEOUT_MS, (long)fmax(1, h->timeout * 1000));
    curl_easy_setopt(t->easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(t->easy, CURLOPT_PRIVATE, t);
    curl_multi_add_handle(h->multi, t->easy);
    t->busy = true;
}

static bool may_pass(long status) { return status == 408 || status == 425 || status == 429 || status >= 500; }

/* Servers refuse what they don't know or allow by 400, 403, 422, ... */
static bool refuses(long status) { return status >= 400 && status < 500 && status != 401 && !may_pass(status); }

/* Reads what a request came to: into answers[first ...]. False: it is to be sent again, plain. */
static bool transfer_end(struct wz_http *h, struct transfer *t, CURLcode code, struct wz_answer *answers)
{
    struct wz_answer *a = answers + t->first;
    curl_off_t after = 0;
    long status = 0;
    struct wz_err err;

    curl_easy_getinfo(t->easy, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_getinfo(t->easy, CURLINFO_RETRY_AFTER, &after);
    curl_multi_remove_handle(h->multi, t->easy);
    t->busy = false;
    if (code == CURLE_OK && refuses(status) && h->form->plain && !t->plain) return false;
    const bool ill = code != CURLE_OK || may_pass(status);
    h->broken = ill ? h->broken + 1 : 0;
    h->pause = fmax(h->pause, fmin(60, (double)after));
    const bool told = h->key && t->got.len && memmem(t->got.data, t->got.len, h->key, strlen(h->key));
    json_t *reply = !ill && status == 200 && !told
                        ? wz_json_parse(t->got.data ? t->got.data : "", t->got.len, "the answer", &err)
                        : NULL;
    for (int i = 0; i < t->n; i++) {
        a[i] = (struct wz_answer){ .final = !ill && status != 200 };
        if (code != CURLE_OK) wz_answer_fail(&a[i], "%s: %s", h->host, *t->why ? t->why : curl_easy_strerror(code));
        else if (status != 200) wz_answer_fail(&a[i], "%s: status %ld", status == 404 ? h->url : h->host, status);
        else if (told) wz_answer_fail(&a[i], "%s: its answer has the key in it, and is not read", h->host);
        else if (!reply) wz_answer_fail(&a[i], "%s: %s", h->host, err.text);
    }
    if (reply) h->form->read(h->arg, reply, a, t->n);
    json_decref(reply);
    return true;
}

/* Groups of questions of this round, in order; when each may be sent. */
struct group {
    int first, n;
    double start;
};

static int by_start(const void *a, const void *b)
{
    const struct group *x = a, *y = b;

    return x->start != y->start ? (x->start > y->start) - (x->start < y->start) : x->first - y->first;
}

void wz_http_ask(struct wz_http *h, struct wz_judge *judge, const struct wz_question *questions,
                 struct wz_answer *answers, int n, bool final)
{
    struct group *groups = wz_alloc(sizeof *groups * (size_t)(n + 1));
    const double now = wz_now(), pause = judge->round ? h->pause : 0;
    int n_groups = 0, next = 0, busy = 0;
    bool trying = false; /* the circuit is open, and the one request under way tries the endpoint */

    h->pause = 0;
    for (int i = 0; i < n; i += h->form->pairs)
        groups[n_groups++] = (struct group){ i, n - i < h->form->pairs ? n - i : h->form->pairs,
                                             now + fmax(pause, wz_judge_backoff(judge, &questions[i], h->backoff)) };
    qsort(groups, (size_t)n_groups, sizeof *groups, by_start);
    while (next < n_groups || busy) {
        for (int s = 0; s < h->concurrent && next < n_groups && groups[next].start <= wz_now(); s++) {
            struct transfer *t = &h->transfers[s];
            if (t->busy || (h->broken >= BREAK && busy)) continue;
            trying = h->broken >= BREAK;
            t->first = groups[next].first;
            t->n = groups[next++].n;
            t->plain = false;
            transfer_begin(h, t, questions);
            busy++;
        }
        int running, left;
        curl_multi_perform(h->multi, &running);
        for (CURLMsg *m; (m = curl_multi_info_read(h->multi, &left));) {
            struct transfer *t;
            if (m->msg != CURLMSG_DONE) continue;
            curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, (char **)&t);
            if (!transfer_end(h, t, m->data.result, answers)) {
                t->plain = true;
                transfer_begin(h, t, questions);
                continue;
            }
            for (int i = t->first; final && i < t->first + t->n; i++)
                wz_judge_answered(judge, &questions[i], &answers[i]);
            busy--;
        }
        if (trying && !busy && h->broken)
            for (; next < n_groups; next++)
                for (int i = 0; i < groups[next].n; i++)
                    wz_answer_fail(&answers[groups[next].first + i], "%s: failed %d times in a row; not asked", h->host,
                                   h->broken);
        if (!busy) trying = false;
        if (next < n_groups || busy) {
            const double wait = next < n_groups && !busy ? groups[next].start - wz_now() : 0.1;
            curl_multi_poll(h->multi, NULL, 0, (int)fmin(100, fmax(0, ceil(wait * 1000))), NULL);
        }
        wz_heartbeat();
    }
    free(groups);
}

/* ---- opening ---------------------------------------------------------------------------------------------- */

char *wz_text_read(const char *path, struct wz_err *err)
{
    struct wz_map map;
    char *text = NULL;

    if (wz_map_open(&map, path, err) < 0) return NULL;
    const size_t ok = strnlen((const char *)map.bytes, wz_utf8_valid((const char *)map.bytes, map.len));
    if (ok < map.len) wz_fail(err, "%s: byte %zu is not text in UTF-8", path, ok);
    else if (!map.len) wz_fail(err, "%s: is empty", path);
    else {
        text = wz_alloc(map.len + 1);
        memcpy(text, map.bytes, map.len);
    }
    wz_map_close(&map);
    return text;
}

static const char bearer[] = "Authorization: Bearer ";

/* Adds the header with the key, which is nowhere else. */
static int read_key(struct wz_http *h, const char *from, struct wz_err *err)
{
    char *key = NULL;

    if (!from || !*from) return 0;
    if (!strncmp(from, "env:", 4)) {
        const char *value = getenv(from + 4);
        if (!value || !*value) return wz_fail(err, "api_key: the environment has no %s", from + 4);
        key = wz_strdup(value);
    } else if (!strncmp(from, "file:", 5)) {
        if (!(key = wz_text_read(from + 5, err))) return -1;
    } else return wz_fail(err, "api_key: expected env:NAME or file:PATH, which say where the key is");
    const size_t n = strcspn(key, "\r\n");
    struct wz_buf line = { 0 };
    wz_buf_str(&line, bearer);
    wz_buf_add(&line, key, n);
    h->headers = curl_slist_append(h->headers, line.data);
    for (struct curl_slist *s = h->headers; s && n >= LEAST_KEY; s = s->next) h->key = s->data + strlen(bearer);
    memset(line.data, 0, line.len);
    memset(key, 0, strlen(key));
    wz_buf_finish(&line);
    free(key);
    return 0;
}

/* Checks the URL; its host is what messages quote. */
static int read_url(struct wz_http *h, const char *url, struct wz_err *err)
{
    CURLU *u = curl_url();
    char *part = NULL, *host = NULL, *port = NULL;
    int rc = 0;

    if (!url || !*url) rc = wz_fail(err, "`url` must say where to ask");
    else if (curl_url_set(u, CURLUPART_URL, url, 0) != CURLUE_OK) rc = wz_fail(err, "url: not a URL");
    else if (curl_url_get(u, CURLUPART_USER, &part, 0) == CURLUE_OK ||
             curl_url_get(u, CURLUPART_QUERY, &part, 0) == CURLUE_OK)
        rc = wz_fail(err,
                     "url: may hold no user, password or query, for it is written in the run; keys go in `api_key`");
    else if (curl_url_get(u, CURLUPART_SCHEME, &part, 0) != CURLUE_OK ||
             (strcmp(part, "http") && strcmp(part, "https")))
        rc = wz_fail(err, "url: expected http:// or https://");
    else if (curl_url_get(u, CURLUPART_HOST, &host, 0) == CURLUE_OK &&
             curl_url_get(u, CURLUPART_PORT, &port, CURLU_DEFAULT_PORT) == CURLUE_OK) {
        h->url = wz_strdup(url);
        h->host = wz_path("%s:%s", host, port);
    } else rc = wz_fail(err, "url: has no host");
    curl_free(part);
    curl_free(host);
    curl_free(port);
    curl_url_cleanup(u);
    return rc;
}

void wz_http_close(struct wz_http *h)
{
    if (!h) return;
    for (int i = 0; h->transfers && i < h->concurrent; i++) {
        if (h->transfers[i].busy) curl_multi_remove_handle(h->multi, h->transfers[i].easy);
        curl_easy_cleanup(h->transfers[i].easy);
        wz_buf_finish(&h->transfers[i].sent);
        wz_buf_finish(&h->transfers[i].got);
    }
    curl_multi_cleanup(h->multi);
    for (struct curl_slist *s = h->headers; s; s = s->next) memset(s->data, 0, strlen(s->data));
    curl_slist_free_all(h->headers);
    free(h->transfers);
    free(h->url);
    free(h->host);
    free(h);
}

struct wz_http *wz_http_open(const struct wz_judge_config *config, const struct wz_http_form *form, void *arg,
                             struct wz_err *err)
{
    static bool begun;
    struct wz_http *h = wz_alloc(sizeof *h);

    if (!begun && curl_global_init(CURL_GLOBAL_DEFAULT)) wz_die("libcurl can't be used");
    begun = true;
    h->form = form;
    h->arg = arg;
    h->timeout = config->timeout > 0 ? config->timeout : 60;
    h->backoff = config->backoff;
    h->concurrent = config->concurrent > 0 ? config->concurrent : 8;
    h->multi = curl_multi_init();
    h->transfers = wz_alloc(sizeof *h->transfers * (size_t)h->concurrent);
    h->headers = curl_slist_append(NULL, "Content-Type: application/json");
    if (read_url(h, config->url, err) == 0 && read_key(h, config->api_key, err) == 0) return h;
    wz_http_close(h);
    return NULL;
}

/* ---- the judge that is a reward server -------------------------------------------------------------------- */

static void remote_close(struct wz_judge *judge)
{
    struct remote *r = judge->state;

    if (r) wz_http_close(r->http);
    free(r);
    judge->state = NULL;
}

static int remote_open(struct wz_judge *judge, const struct wz_judge_config *config, struct wz_err *err)
{
    const struct wz_measures_of *of = wz_measures_find(config->measures, err);

    if (of->sees == (WZ_JUDGED_HARMFUL | WZ_JUDGED_REFUSAL))
        return wz_fail(err,
                       "judge %s: `measures` must say what a reward of 1 stands for: safety, harm, compliance or "
                       "refusal",
                       judge->name);
    struct remote *r = wz_alloc(sizeof *r);
    judge->state = r;
    r->of = of;
    r->threshold = config->threshold > 0 ? config->threshold : 0.5;
    if (!(r->http = wz_http_open(config, &remote_form, r, err))) {
        remote_close(judge);
        return wz_fail_in(err, "judge %s", judge->name);
    }
    judge->identity = wz_hash(&r->threshold, sizeof r->threshold, PAIRS);
    judge->identity = wz_hash(config->url, strlen(config->url), judge->identity);
    judge->identity = wz_hash(of->name, strlen(of->name), judge->identity);
    return 0;
}

static void remote_ask(struct wz_judge *judge, const struct wz_question *questions, struct wz_answer *answers, int n)
{
    struct remote *r = judge->state;

    wz_http_ask(r->http, judge, questions, answers, n, true);
}

const struct wz_judge_row wz_judge_remote = {
    .name = "remote",
    .about = "what a reward server answers, a number from 0 to 1",
    .url = true,
    .open = remote_open,
    .ask = remote_ask,
    .close = remote_close,
};
