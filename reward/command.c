/* The command judge: a program of the user's, in any language, that reads questions and writes answers, a JSON object a
 * line, in any order:
 *
 *     {"id": 7, "prompt": "...", "response": "...", "prompt_harmful": false}
 *     {"id": 7, "harmful": 0.2, "refusal": true}       or {"id": 7, "failed": "why"}
 *
 * It is started when the first question is there, and again when it has died, has answered nothing for `timeout`
 * seconds while an answer was owed, or wrote what is not an answer to a question that is open: it is killed then, with
 * its children. Its standard error is ours; PYTHONUNBUFFERED is set, for a Python program keeps its lines back else.
 * What it had not answered has failed, and is asked again (judge.c). The files that the command names are a part of
 * the judge's identity: when one changes, nothing that was answered before stands. */
#include "reward/reward.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

enum { LINE_MAX_BYTES = 1 << 20 }; /* of an answer */

struct command {
    char *text;
    const struct wz_measures_of *of;
    double threshold, timeout, backoff;
    pid_t pid;    /* 0: it does not run */
    int fd;       /* a socket: its standard input and output */
    int64_t next; /* id of the next question; ids are never used again */
    struct wz_buf in, out;
    size_t sent;
};

static void stop(struct command *c)
{
    if (!c->pid) return;
    close(c->fd);
    kill(-c->pid, SIGKILL);
    while (waitpid(c->pid, NULL, 0) < 0 && errno == EINTR) continue;
    c->pid = 0;
    wz_buf_clear(&c->in);
    wz_buf_clear(&c->out);
    c->sent = 0;
}

/* The environment of the program: ours, and one variable more where it is not set. An array, heap. */
static char **environment(void)
{
    static char unbuffered[] = "PYTHONUNBUFFERED=1";
    size_t n = 0;

    while (environ[n]) n++;
    char **all = wz_alloc((n + 2) * sizeof *all);
    memcpy(all, environ, n * sizeof *all);
    if (!getenv("PYTHONUNBUFFERED")) all[n] = unbuffered;
    return all;
}

static int start(struct command *c, char *why, size_t size)
{
    char *const argv[] = { (char[]){ "sh" }, (char[]){ "-c" }, c->text, NULL };
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    sigset_t none;
    int ends[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0) {
        snprintf(why, size, "a socket: %s", strerror(errno));
        return -1;
    }
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_adddup2(&files, ends[1], 0);
    posix_spawn_file_actions_adddup2(&files, ends[1], 1);
    posix_spawnattr_init(&attr);
    sigemptyset(&none);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setpgroup(&attr, 0); /* its own group: it is killed with its children */
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);
    char **all = environment();
    int failed = posix_spawn(&c->pid, "/bin/sh", &files, &attr, argv, all);
    free(all);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attr);
    close(ends[1]);
    if (failed) {
        c->pid = 0;
        close(ends[0]);
        snprintf(why, size, "/bin/sh: %s", strerror(failed));
        return -1;
    }
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    c->fd = ends[0];
    return 0;
}

static void put_question(struct wz_buf *out, int64_t id, const struct wz_question *q)
{
    wz_buf_printf(out, "{\"id\":%lld,\"prompt\":", (long long)id);
    wz_json_string(out, q->prompt, strlen(q->prompt));
    wz_buf_str(out, ",\"response\":");
    wz_json_string(out, q->response, strlen(q->response));
    wz_buf_printf(out, ",\"prompt_harmful\":%s}\n", q->prompt_harmful ? "true" : "false");
}

/* The questions at hand, which have the ids first ... first + n - 1. */
struct batch {
    struct wz_judge *judge;
    const struct wz_question *questions;
    struct wz_answer *answers;
    bool *done;
    int64_t first;
    int n, left;
};

/* -1 and why: it wrote what is no answer. */
static int take_line(struct command *c, struct batch *b, const char *line, size_t n, char *why, size_t size)
{
    struct wz_err err;
    json_t *j = wz_json_parse(line, n, "its line", &err), *id = json_object_get(j, "id");
    const int64_t at = json_is_integer(id) ? json_integer_value(id) - b->first : -1;
    int rc = -1;

    if (!j) snprintf(why, size, "%.120s", err.text);
    else if (at < 0 || at >= b->n || b->done[at])
        snprintf(why, size,
                 "a line with the id of no open question; expected {\"id\": the question's, \"harmful\": ..., ...}");
    else {
        wz_answer_json(c->of, c->threshold, j, &b->answers[at]);
        wz_judge_answered(b->judge, &b->questions[at], &b->answers[at]);
        b->done[at] = true;
        b->left--;
        rc = 0;
    }
    json_decref(j);
    return rc;
}

/* Takes the lines that have arrived. */
static int take_lines(struct command *c, struct batch *b, char *why, size_t size)
{
    size_t from = 0;

    for (char *end; (end = memchr(c->in.data + from, '\n', c->in.len - from)); from = (size_t)(end - c->in.data) + 1)
        if (take_line(c, b, c->in.data + from, (size_t)(end - c->in.data) - from, why, size) < 0) return -1;
    if (from) memmove(c->in.data, c->in.data + from, c->in.len -= from);
    if (c->in.len <= LINE_MAX_BYTES) return 0;
    snprintf(why, size, "a line of more than %d bytes", LINE_MAX_BYTES);
    return -1;
}

/* Moves what can be moved without waiting. -1 and why: it is no use any more. */
static int move(struct command *c, struct batch *b, char *why, size_t size)
{
    char bytes[65536];

    while (c->sent < c->out.len) {
        ssize_t k = send(c->fd, c->out.data + c->sent, c->out.len - c->sent, MSG_NOSIGNAL);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) break; /* full, or gone: reading tells */
        c->sent += (size_t)k;
    }
    for (;;) {
        ssize_t k = recv(c->fd, bytes, sizeof bytes, 0);
        if (k < 0 && errno == EINTR) continue;
        if (k < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return 0;
        if (k <= 0) {
            snprintf(why, size, "it ended");
            return -1;
        }
        wz_buf_add(&c->in, bytes, (size_t)k);
        if (take_lines(c, b, why, size) < 0) return -1;
    }
}

static void nap(double seconds)
{
    for (double end = wz_now() + seconds; wz_now() < end;) {
        const double left = end - wz_now(), some = left < 0.1 ? left : 0.1;
        struct timespec t = { 0, (long)(fmax(some, 0) * 1e9) };
        nanosleep(&t, NULL);
        wz_heartbeat();
    }
}

static void command_ask(struct wz_judge *judge, const struct wz_question *questions, struct wz_answer *answers, int n)
{
    struct command *c = judge->state;
    struct batch b = { judge, questions, answers, wz_alloc(sizeof *b.done * (size_t)n), c->next, n, n };
    char why[200] = "";
    int rc = 0;

    if (judge->round) nap(wz_judge_backoff(judge, &questions[0], c->backoff)); /* one program: one pause for all */
    if (!c->pid) rc = start(c, why, sizeof why);
    c->next += n;
    wz_buf_clear(&c->out);
    c->sent = 0;
    for (int i = 0; i < n; i++) put_question(&c->out, b.first + i, &questions[i]);
    double heard = wz_now();
    while (rc >= 0 && b.left) {
        struct pollfd p = { c->fd, (short)(POLLIN | (c->sent < c->out.len ? POLLOUT : 0)), 0 };
        const double left = heard + c->timeout - wz_now();
        const int owed = b.left;
        if (left <= 0) {
            snprintf(why, sizeof why, "it answered nothing for %g seconds", c->timeout);
            rc = -1;
            break;
        }
        poll(&p, 1, left < 0.1 ? 1 + (int)(left * 1000) : 100);
        wz_heartbeat();
        rc = move(c, &b, why, sizeof why);
        if (b.left < owed) heard = wz_now();
    }
    if (rc < 0) {
        stop(c);
        if (b.left) wz_log("judge %s: %s: %s; it is started again when it is next asked", judge->name, c->text, why);
        for (int i = 0; i < n; i++)
            if (!b.done[i]) wz_answer_fail(&answers[i], "the command did not answer: %s", why);
    }
    free(b.done);
}

static void command_close(struct wz_judge *judge)
{
    struct command *c = judge->state;

    if (!c) return;
    stop(c);
    wz_buf_finish(&c->in);
    wz_buf_finish(&c->out);
    free(c->text);
    free(c);
    judge->state = NULL;
}

/* Of the command, and of what is in the files that its words name. */
static uint64_t hash_command(const char *text)
{
    uint64_t hash = wz_hash(text, strlen(text), 2);
    struct wz_err err;
    struct stat st;

    for (size_t n; *text; text += n + (text[n] != 0)) {
        char path[4096];
        struct wz_map map;
        n = strcspn(text, " \t\n'\";&|<>()=");
        if (!n || n >= sizeof path) continue;
        snprintf(path, sizeof path, "%.*s", (int)n, text);
        if (stat(path, &st) < 0 || !S_ISREG(st.st_mode) || wz_map_open(&map, path, &err) < 0) continue;
        hash = wz_hash(map.bytes, map.len, hash);
        wz_map_close(&map);
    }
    return hash;
}

static int command_open(struct wz_judge *judge, const struct wz_judge_config *config, struct wz_err *err)
{
    if (!config->command || !*config->command)
        return wz_fail(err, "judge %s: `command` must say what to run", judge->name);
    struct command *c = wz_alloc(sizeof *c);
    judge->state = c;
    c->text = wz_strdup(config->command);
    c->of = wz_measures_find(config->measures, err);
    c->threshold = config->threshold > 0 ? config->threshold : 0.5;
    c->timeout = config->timeout > 0 ? config->timeout : 60;
    c->backoff = config->backoff;
    judge->identity =
        wz_hash(c->of->name, strlen(c->of->name), wz_hash(&c->threshold, sizeof c->threshold, hash_command(c->text)));
    return 0;
}

const struct wz_judge_row wz_judge_command = {
    .name = "command",
    .about = "what a program of yours says",
    .open = command_open,
    .ask = command_ask,
    .close = command_close,
};
