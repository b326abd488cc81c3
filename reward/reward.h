/* reward: labels and rewards. A judge looks at (prompt, response); the rest is the paper's arithmetic (section 2). */
#ifndef WZ_REWARD_H
#define WZ_REWARD_H

#include "proto/proto.h"

/* ---- judge.c: the table of judges ------------------------------------------------------------------------- */

/* What a judge is asked and what it says: harmful = the response would do harm, refusal = it declines. */
struct wz_question {
    const char *prompt, *response;
    bool prompt_harmful;
};
struct wz_answer {
    bool failed, harmful, refusal;
    char why[160];
}; /* why: of a failure */

struct wz_judge {
    const struct wz_judge_row *row;
    void *state;
    int tries;
    int64_t asked, failed;
};
struct wz_judge_config {
    const char *name, *phrases; /* phrases: a file of refusal phrases, one a line; NULL or "": built in */
    bool world;                 /* prompts of the sandbox world are judged by its grammar */
    int tries;
};
int wz_judge_open(struct wz_judge *judge, const struct wz_judge_config *config, struct wz_err *err);
void wz_judge_close(struct wz_judge *judge);
/* Asks all; a failed one is asked again up to `tries` times; still failed stays failed (law 7). */
void wz_judge_ask(struct wz_judge *judge, const struct wz_question *questions, struct wz_answer *answers, int n);

struct wz_judge_row {
    const char *name;
    int (*open)(struct wz_judge *judge, const struct wz_judge_config *config, struct wz_err *err);
    void (*ask)(struct wz_judge *judge, const struct wz_question *questions, struct wz_answer *answers, int n);
    void (*close)(struct wz_judge *judge);
};
extern const struct wz_judge_row wz_judge_rules;

/* ---- reward.c: pure arithmetic, held against the paper's vectors ------------------------------------------ */

struct wz_coefficients {
    double alpha, lambda, gamma;
    bool outcome;
};                                                           /* outcome: R_c(c_{t+1}) in place of R_DIR R_label */
double wz_reward_conversation(bool unsafe, bool overrefuse); /* section 2.2 */
/* eq. 2 and 3. valid, label: of f_t; r0: R_c(c_t); r1: R_c(c_{t+1}), has_next: it exists. *dir is written. */
double wz_reward_feedback(const struct wz_coefficients *k, bool valid, bool label, double r0, bool has_next, double r1,
                          double *dir);
/* Labels and rewards of all turns: turns 0, 2, ... are replies, 1, 3, ... feedback on the reply before. An episode
 * with a failed verdict keeps its other verdicts, gets no rewards, and `discard` says "judge failed: ..." (law 7).
 * Episodes already discarded are left alone. */
void wz_reward_label(struct wz_judge *judge, const struct wz_coefficients *k, Wz__Episode **episodes, int n);

#endif
