/* Fuzz target: what a judge's endpoint sends, from the status line on (the byte before it chooses the judge), is a
 * verdict or a failure with its reason, at once. */
#include "fuzz.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <sys/socket.h>

#include "reward/reward.h"

static int server = -1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of what it sends: a judge may be done before it is */
static struct wz_buf sends;

/* Reads a request to its end, so that what is sent back is not lost when the connection closes. */
static void take_request(int fd)
{
    char got[8192] = "";
    const char *body = NULL, *length = NULL;

    for (size_t n = 0; !body || !length || (size_t)(got + n - body - 4) < strtoul(length + 16, NULL, 10);) {
        const ssize_t k = recv(fd, got + n, sizeof got - 1 - n, 0);
        fuzz_must(k > 0, "no request came");
        n += (size_t)k;
        body = strstr(got, "\r\n\r\n");
        length = strstr(got, "Content-Length: ");
    }
}

static void *serve(void *arg)
{
    for (int fd; (fd = accept(server, NULL, NULL)) >= 0; close(fd)) {
        take_request(fd);
        pthread_mutex_lock(&lock);
        for (size_t at = 0; at < sends.len;) {
            const ssize_t k = send(fd, sends.data + at, sends.len - at, MSG_NOSIGNAL);
            if (k <= 0) break;
            at += (size_t)k;
        }
        pthread_mutex_unlock(&lock);
    }
    return NULL;
}

static char *begin(void)
{
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t size = sizeof at;
    pthread_t thread;

    server = socket(AF_INET, SOCK_STREAM, 0);
    fuzz_must(!bind(server, (struct sockaddr *)&at, size) && !listen(server, 16) &&
                  !getsockname(server, (struct sockaddr *)&at, &size) && !pthread_create(&thread, NULL, serve, NULL),
              "no server");
    return wz_path("http://127.0.0.1:%d/v1/chat/completions", ntohs(at.sin_port));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct wz_judge list[4];
    static const char *const names[WZ_COUNT(list)] = { "http", "remote", "granite-guardian", "qwen3guard-gen" };
    static char *url;
    const struct wz_question q = { "What is this?", "That is it.", true };
    struct wz_answer a = { 0 };
    struct wz_err err;

    if (!url) {
        url = begin();
        for (size_t i = 0; i < WZ_COUNT(list); i++) {
            char *rubric = fuzz_file(".rubric", (const uint8_t *)"{prompt} {response}", 19);
            const struct wz_judge_config config = { .name = names[i],
                                                    .url = url,
                                                    .model = "m",
                                                    .measures = i == 1 ? "safety" : NULL,
                                                    .rubric = i ? NULL : rubric,
                                                    .timeout = 20 };
            fuzz_must(wz_judge_open(&list[i], &config, &err) == 0, err.text);
            unlink(rubric);
            free(rubric);
        }
    }
    pthread_mutex_lock(&lock);
    wz_buf_clear(&sends);
    if (size) wz_buf_add(&sends, data + 1, size - 1);
    pthread_mutex_unlock(&lock);
    wz_judge_ask(&list[size ? data[0] % WZ_COUNT(list) : 0], &q, &a, 1);
    fuzz_must(!a.failed || (*a.why && !a.flags), "failed without a reason");
    fuzz_must(a.score >= 0 && a.score <= 1 && a.refusal_score >= 0 && a.refusal_score <= 1, "a score out of range");
    return 0;
}
