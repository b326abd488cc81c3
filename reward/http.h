/* Requests to an endpoint: many at once, with deadlines, pauses and a circuit that opens. Private to reward. */
#ifndef WZ_REWARD_HTTP_H
#define WZ_REWARD_HTTP_H

#include "reward/reward.h"

/* What is sent and how an answer is read, for questions q[n], the first of which is number `first` of all. plain: the
 * endpoint has refused this request (400, 422, ...), and what it need not know is left out. */
struct wz_http_form {
    int pairs;  /* questions in a request, at most */
    bool plain; /* there is something that can be left out */
    void (*ask)(void *arg, bool plain, int first, const struct wz_question *q, int n, struct wz_buf *body);
    void (*read)(void *arg, json_t *reply, struct wz_answer *answers, int n);
};

struct wz_http;
/* config: url, api_key, timeout, backoff, concurrent. NULL and a message. */
struct wz_http *wz_http_open(const struct wz_judge_config *config, const struct wz_http_form *form, void *arg,
                             struct wz_err *err);
void wz_http_close(struct wz_http *http); /* accepts NULL */
/* As `ask` of a row. final: an answer is that of its question, and remembered as soon as it is there. */
void wz_http_ask(struct wz_http *http, struct wz_judge *judge, const struct wz_question *questions,
                 struct wz_answer *answers, int n, bool final);
/* The whole of a small text file, heap; NULL and a message where it is empty or not UTF-8. */
char *wz_text_read(const char *path, struct wz_err *err);

#endif
