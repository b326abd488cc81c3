/* What the ways to search for an attack share (search.c). */
#ifndef WZ_ROLLOUT_SEARCH_H
#define WZ_ROLLOUT_SEARCH_H

#include "rollout/rollout.h"

struct wz_candidate {
    char *text;                 /* AutoDAN's: with a {prompt} in it; heap */
    struct wz_ids ids, context; /* of the user's message; of all that is before the reply */
    int at;                     /* where in context the message begins */
    double score;
};

struct wz_searching {
    const struct wz_search *how;
    const struct wz_player *p;
    const Wz__Episode *e;
    uint64_t seed;
    struct wz_ids target;
    bool first;   /* of wz_encode_part, for whole messages */
    int from;     /* where in a message the ids begin that may change */
    int longest;  /* tokens of a context with its target, at most */
    int together; /* candidates of one forward, at most */
    bool *usable; /* [V] ids that stand for text of their own */
    struct wz_cache *cache;
    struct wz_work *work, *tape;
    float *d_params; /* the gradient of the weights, which a backward adds to, and nobody reads */
};

struct wz_proposer {
    const char *name;
    bool gradient; /* it asks for slopes */
    /* Fills in those that the search begins with, at most as many as `how` has lines or candidates: how many; -1 and a
     * message: there are none. */
    int (*begin)(struct wz_searching *s, struct wz_candidate *out, struct wz_err *err);
    /* Fills in the ids of out[n], from those of the step before, c[n_c], which are scored, and, keyed by the step, by
     * chance. */
    void (*propose)(const struct wz_searching *s, const struct wz_candidate *c, int n_c, int step,
                    struct wz_candidate *out, int n);
};

/* Fills in the ids of a message's text. False and a message: it has none. */
bool wz_candidate_spell(const struct wz_searching *s, struct wz_candidate *c, const char *message, bool first,
                        struct wz_err *err);
/* Fills in context and at, from the ids. False and a message: as text they would be others, or they are too many. */
bool wz_candidate_place(const struct wz_searching *s, struct wz_candidate *c, struct wz_err *err);
/* The one with the best score, the first of equals. n > 0. */
const struct wz_candidate *wz_candidate_best(const struct wz_candidate *c, int n);

/* autodan.c: functions of its row. */
int wz_autodan_begin(struct wz_searching *s, struct wz_candidate *out, struct wz_err *err);
void wz_autodan_propose(const struct wz_searching *s, const struct wz_candidate *c, int n_c, int step,
                        struct wz_candidate *out, int n);

#endif
