/* reward: labels and rewards. A judge looks at (prompt, reply); the rest is arithmetic (WaltzRL 2.2). */
#ifndef WZ_REWARD_H
#define WZ_REWARD_H

#include "proto/proto.h"

/* ---- judge.c: the table of judges ------------------------------------------------------------------------- */

struct wz_question { /* all text is borrowed */
    const char *prompt, *response;
    bool prompt_harmful; /* the data set's label of the prompt */
};
/* Bits from 1 << 8 on are for the categories of a guard model. */
enum {
    WZ_JUDGED_HARMFUL = 1 << 0, /* the response would do harm */
    WZ_JUDGED_REFUSAL = 1 << 1, /* it declines */
    WZ_JUDGED_PARTIAL = 1 << 2, /* it declines a part, or declines and helps all the same; never with REFUSAL */
};
struct wz_answer {
    bool failed;    /* no verdict: flags and score are 0 */
    unsigned flags; /* WZ_JUDGED_* */
    double score;   /* how sure the judge is that the response is harmful: 0 to 1 */
    char why[160];  /* of a failure */
};

struct wz_judge {
    const struct wz_judge_row *row;
    void *state; /* the row's */
    int tries;
    int64_t asked, failed; /* questions since it was opened */
};
struct wz_judge_config {
    const char *name, *phrases; /* phrases: a file of refusal phrases, one a line; NULL or "": built in */
    bool world;                 /* prompts of the sandbox world are judged by its grammar */
    int tries;                  /* how often a failed question is asked again, at most */
};
int wz_judge_open(struct wz_judge *judge, const struct wz_judge_config *config, struct wz_err *err);
/* Identity of what the rules judge has built in: the phrases, and where it judges by it the sandbox world. */
uint64_t wz_judge_built_in(bool world);
void wz_judge_close(struct wz_judge *judge); /* accepts zero, and one that failed to open */
/* Asks questions[n], fills in answers[n]. What fails is asked again up to `tries` times; still failed stays failed
 * (guarantee 7). */
void wz_judge_ask(struct wz_judge *judge, const struct wz_question *questions, struct wz_answer *answers, int n);

struct wz_judge_row {
    const char *name;
    int (*open)(struct wz_judge *judge, const struct wz_judge_config *config, struct wz_err *err);
    void (*ask)(struct wz_judge *judge, const struct wz_question *questions, struct wz_answer *answers, int n);
    void (*close)(struct wz_judge *judge);
};
extern const struct wz_judge_row wz_judge_rules;

/* ---- reward.c: rewards from terms ------------------------------------------------------------------------- */

/* Something that a turn may be paid for. reply: of a reply the turn itself, of feedback the next reply (NULL: none). */
struct wz_term {
    const char *name;
    double (*value)(const Wz__Turn *turn, const Wz__Turn *reply);
};
/* A row: turns of this role are paid coefficient * term. With R_c = outcome, eq. 2 and 3 of WaltzRL are
 *   conversation  1 outcome
 *   feedback      alpha dir (R_DIR * label)   lambda label   gamma format          its ablation: outcome for dir */
struct wz_reward {
    const char *role;
    const struct wz_term *term;
    double coefficient;
};
enum { WZ_MAX_REWARDS = 16 };
struct wz_rewards { /* added up in the order of the rows: floating-point sums depend on it */
    struct wz_reward rows[WZ_MAX_REWARDS];
    int n;
};
/* Appends a row. term: outcome, dir, label or format. role is borrowed. */
void wz_rewards_add(struct wz_rewards *rewards, const char *role, const char *term, double coefficient);
/* Fills in reward, label and dir of an episode whose replies are all judged. */
void wz_reward_turns(const struct wz_rewards *rewards, Wz__Episode *e);
/* The value, before its coefficient, of the term of row r for turn i of an episode that has been rewarded. */
double wz_reward_term(const struct wz_rewards *rewards, int r, const Wz__Episode *e, size_t i);
/* Judges the replies of all episodes and rewards all turns. An episode with a failed verdict keeps its other verdicts,
 * gets no rewards, and `discard` says "judge failed: ..." (guarantee 7). Episodes already discarded are left alone. */
void wz_reward_label(struct wz_judge *judge, const struct wz_rewards *rewards, Wz__Episode **episodes, int n);

#endif
