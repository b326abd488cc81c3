/* reward: labels and rewards. A judge looks at (prompt, reply); the rest is arithmetic (WaltzRL 2.2). */
#ifndef WZ_REWARD_H
#define WZ_REWARD_H

#include "kernels/kernels.h"
#include "proto/proto.h"
#include "text/text.h"

/* ---- judge.c: the table of judges ------------------------------------------------------------------------- */

struct wz_question { /* all text is borrowed */
    const char *prompt, *response;
    bool prompt_harmful; /* the data set's label of the prompt */
};
/* What a judge can say of a response, and what it can see at all. */
enum {
    WZ_JUDGED_HARMFUL = 1 << 0, /* it would do harm */
    WZ_JUDGED_REFUSAL = 1 << 1, /* it declines */
    WZ_JUDGED_PARTIAL = 1 << 2, /* it declines a part, or declines and helps all the same; never with REFUSAL */
    WZ_JUDGED_ALL = 7,
};
struct wz_answer {
    bool failed;          /* no verdict: flags and scores are 0 */
    bool final;           /* of a failure: asking again would not help */
    unsigned flags;       /* WZ_JUDGED_* */
    double score;         /* how sure the judge is that the response is harmful: 0 to 1 */
    double refusal_score; /* the same of a refusal */
    char why[160];        /* of a failure */
};

struct wz_judge {
    const struct wz_judge_row *row;
    void *state; /* the row's */
    const char *name;
    bool watches; /* rewards nothing: judges evaluations only, or .. */
    bool guards;  /* .. the game's replies for its guard only, or .. */
    bool prunes;  /* .. an attacker's attempts: a refusal is an attack that asks for something else than its prompt */
    bool model;   /* has a model in the rank's memory, and an engine (wz_guard_engine) */
    double weight, misses, alarms;
    unsigned sees;                /* the flags that it can raise */
    uint64_t identity;            /* of all that decides its verdicts; the row's `open` sets it */
    int tries, round;             /* round: how often the questions at hand have been asked already */
    int64_t asked, failed, known; /* questions since it was opened; known: answered from `verdicts` */
    struct wz_verdicts *verdicts; /* borrowed; NULL: nothing is remembered */
};
struct wz_judge_config {          /* text is borrowed until the judge is closed; NULL and "" mean the same */
    const char *name, *phrases;   /* phrases: a file of refusal phrases, one a line; NULL or "": built in */
    bool world;                   /* prompts of the sandbox world are judged by its grammar */
    int tries;                    /* how often a failed question is asked again, at most */
    const char *kind;             /* a row's name; NULL or "": `name` is one */
    bool watches, guards, prunes; /* a judge that guards or prunes watches */
    double misses, alarms; /* of harm that it sees, and of where it sees none: the share that it gets wrong, [0, 1] */
    double weight;         /* 0: 1 */
    const char *measures;  /* what an answer is about: both, harm, safety, refusal, compliance; NULL or "": both */
    double threshold;      /* of a flag; 0: 0.5 */
    const char *command, *url, *model, *api_key, *rubric; /* as in the recipe */
    double timeout, backoff;                              /* seconds; timeout 0: 60 */
    int concurrent, max_tokens;                           /* 0: 8, 64 */
    struct wz_backend *be;                                /* of guard models; NULL: they open their own */
    const char *type, *categories, *without;
    int max_seq_len; /* 0: 8192 */
};
/* What is known without opening it: row, name, role, weight, what it sees. */
int wz_judge_begin(struct wz_judge *judge, const struct wz_judge_config *config, struct wz_err *err);
int wz_judge_open(struct wz_judge *judge, const struct wz_judge_config *config, struct wz_err *err);
/* Identity of what the rules judge has built in: the patterns, and where it judges by it the sandbox world. */
uint64_t wz_judge_built_in(bool world);
void wz_judge_close(struct wz_judge *judge); /* accepts zero, and one that failed to open */
/* Asks questions[n], fills in answers[n]. What fails is asked again up to `tries` times; still failed stays failed
 * (guarantee 7). What is known already, or occurs twice, is asked once. */
void wz_judge_ask(struct wz_judge *judge, const struct wz_question *questions, struct wz_answer *answers, int n);
/* A row that takes long calls this for each answer as soon as it has it: it is remembered from here on, whatever
 * happens next. What is left is remembered when `ask` returns. */
void wz_judge_answered(struct wz_judge *judge, const struct wz_question *question, const struct wz_answer *answer);

/* ---- answer.c: verdicts as people's programs and models write them ----------------------------------------- */

/* What an answer is about, from a recipe's `measures`. */
struct wz_measures_of {
    const char *name;
    unsigned sees; /* the flags of `measures` */
    bool inverted; /* 1 stands for safe, or for compliance */
};
const struct wz_measures_of *wz_measures_find(const char *name, struct wz_err *err); /* NULL and a message */
/* Reads a verdict: a JSON object, bare or in a code fence, or one number, from 0 to 1. What is anything else, or has
 * more, failed. threshold: of the flags. */
void wz_answer_parse(const struct wz_measures_of *of, double threshold, const char *text, size_t n,
                     struct wz_answer *answer);
/* The same from JSON: an object, or a number. */
void wz_answer_json(const struct wz_measures_of *of, double threshold, json_t *value, struct wz_answer *answer);
void wz_answer_fail(struct wz_answer *answer, const char *fmt, ...) WZ_PRINTF(2, 3);
/* Seconds before question q, failed `round` times, is asked again: backoff * 2^(round - 1) * (0.5 to 1.5, keyed by
 * judge, question and round), at most a minute. */
double wz_judge_backoff(const struct wz_judge *judge, const struct wz_question *q, double backoff);

struct wz_guard_row;
struct wz_judge_row {
    const char *name;
    const char *about;                /* one sentence: what it can see, and what it can't */
    unsigned sees;                    /* the flags that it can raise; 0: those of `measures` */
    bool instant;                     /* answers at once, always the same: nothing is remembered */
    bool url;                         /* is behind a URL; others may be, where they are guards */
    const struct wz_guard_row *guard; /* the model that it asks (guard.h); NULL: none */
    int (*open)(struct wz_judge *judge, const struct wz_judge_config *config, struct wz_err *err);
    void (*ask)(struct wz_judge *judge, const struct wz_question *questions, struct wz_answer *answers, int n);
    void (*close)(struct wz_judge *judge); /* accepts a state of NULL */
};
extern const struct wz_judge_row *const wz_judge_rows[]; /* ended by NULL */
extern const struct wz_judge_row wz_judge_rules, wz_judge_topic, wz_judge_command, wz_judge_http, wz_judge_remote,
    wz_judge_rubric, wz_judge_llama_guard_8b, wz_judge_llama_guard_1b, wz_judge_wildguard, wz_judge_harmbench,
    wz_judge_harmbench_13b, wz_judge_strongreject, wz_judge_qwen3guard, wz_judge_granite_guardian,
    wz_judge_granite_guardian_33, wz_judge_granite_guardian_33_think, wz_judge_shieldgemma;
/* guard.c: the engine that a guard model is given; concurrent, max_seq_len as in the recipe, 0: their defaults. */
struct wz_model;
struct wz_engine *wz_guard_engine(struct wz_model *model, int concurrent, int max_seq_len);
/* guard_rows.c: reads WildGuard's three lines, which are exactly that or have failed. */
void wz_wildguard_parse(const char *text, struct wz_answer *answer);
void wz_qwen3guard_parse(const char *text, struct wz_answer *answer); /* so with Qwen3Guard's */
/* guard.c: appends the ids of what an open guard model in memory is shown of a question, by its first policy. */
int wz_guard_prompt(const struct wz_judge *judge, const struct wz_question *q, struct wz_ids *ids, struct wz_err *err);
/* The same, and behind it how that guard writes the verdict `flags` (its own, of the question's prompt_harmful too) and
 * its end token: what a model learns from to be such a guard. Returns the number of ids before the verdict. */
int wz_guard_lesson(const struct wz_judge *judge, const struct wz_question *q, unsigned flags, struct wz_ids *ids,
                    struct wz_err *err);
/* All that WildGuard is shown and writes, as text: what a tokenizer for such a guard should have the words of. heap */
char *wz_wildguard_words(void);

/* The judges of a run, in the order of its recipe. */
enum { WZ_MAX_JUDGES_OPEN = 8 };
/* A row: how those that reward agree on a flag. raised[n] of those that can see it, their scores and weights. */
struct wz_combine {
    const char *name;
    bool (*raised)(const bool *raised, const double *score, const double *weight, int n);
};
const struct wz_combine *wz_combine_find(const char *name, struct wz_err *err); /* reward.c; NULL and a message */
struct wz_judges {
    struct wz_judge list[WZ_MAX_JUDGES_OPEN];
    int n;
    const struct wz_combine *combine;
    char name[160]; /* of those that reward, together: "rules+guard" */
};
/* Begins them all: -1 and a message where two share a name, where none rewards, or where none of those that reward can
 * see harm, or none refusals: such a flag would never be raised. combine: a row's name, NULL or "": the first. */
int wz_judges_begin(struct wz_judges *judges, const struct wz_judge_config *configs, int n, const char *combine,
                    struct wz_err *err);
const char *wz_judge_part(const struct wz_judge *judge); /* behind its name: " (guards)", ..., or "" */
void wz_judges_close(struct wz_judges *judges);          /* accepts zero, and judges that were only begun */

/* ---- ifeval.c: replies checked by rule ------------------------------------------------------------------------ */

enum wz_followed {
    WZ_NOT_FOLLOWED,
    WZ_FOLLOWED,         /* strictly, and so loosely too */
    WZ_FOLLOWED_LOOSELY, /* only where first and last line and asterisks may be left away */
    WZ_NOT_CHECKED,      /* no rule can tell (the top of ifeval.c) */
};
enum { WZ_MAX_INSTRUCTIONS = 64 };
bool wz_ifeval_is(const char *answer); /* is a prompt's answer a list of instructions? */
/* Whether a reply (valid UTF-8) follows each of the instructions {"ids": [..], "kwargs": [..]}, as IFEval's rows have
 * them: how many, and followed[that many]. -1 and a message: they are not of this form, or one is unknown. */
int wz_ifeval_check(const char *answer, const char *reply, enum wz_followed followed[WZ_MAX_INSTRUCTIONS],
                    struct wz_err *err);
/* Adds to `names` the instructions of an answer that no rule can check. Returns how many; *n: of how many. */
int wz_ifeval_left_out(const char *answer, json_t *names, int *n);

/* ---- verdicts.c: what judges have answered already ----------------------------------------------------------- */

/* Verdicts by (judge's identity, prompt, response). In a run's folder each reward rank has a file of them, to which an
 * answer is written as soon as it is there:
 *     verdicts-<rank>.jsonl   {"judge":"<identity>","key":"<hash>","flags":1,"score":0.75,"refusal_score":0}
 * A run that is killed while it judges, and a replay, find there what was answered; failures are not remembered. */
struct wz_verdicts;
/* Reads all verdicts-*.jsonl in `folder` (none, or no such folder: nothing is known yet). rank >= 0: answers are also
 * written, to that rank's file; what can't be written is counted and logged, and the run goes on (guarantee 10). */
struct wz_verdicts *wz_verdicts_open(const char *folder, int rank);
void wz_verdicts_close(struct wz_verdicts *verdicts); /* accepts NULL */
bool wz_verdicts_find(const struct wz_verdicts *verdicts, uint64_t judge, const struct wz_question *question,
                      struct wz_answer *answer);
/* No effect where the verdict is known already. */
void wz_verdicts_add(struct wz_verdicts *verdicts, uint64_t judge, const struct wz_question *question,
                     const struct wz_answer *answer);
/* What was added outlives a power failure from here on; before, it outlives the process. wz_judge_ask does this at its
 * end. */
void wz_verdicts_sync(struct wz_verdicts *verdicts);

/* ---- reward.c: rewards from terms ------------------------------------------------------------------------- */

/* Something that a turn may be paid for. */
struct wz_term {
    const char *name;
    const char *role; /* the only one that may be paid so; NULL: any */
    /* reply: of a reply the turn itself, of feedback the next reply; NULL: none, or it never came to an answer. */
    double (*value)(const Wz__Episode *e, const Wz__Turn *turn, const Wz__Turn *reply);
};
const struct wz_term *wz_term_find(const char *name, struct wz_err *err); /* NULL and a message */
/* A row: turns of this role are paid coefficient * term, to prompts of this kind. With R_c = outcome, eq. 2 and 3 of
 * WaltzRL are
 *   conversation  1 outcome
 *   feedback      alpha dir (R_DIR * label)   lambda label   gamma format          its ablation: outcome for dir */
struct wz_reward {
    const char *role;
    const struct wz_term *term;
    double coefficient;
    const char *kind; /* NULL or "": each that no other row of the role names */
};
enum { WZ_MAX_REWARDS = 64 };
struct wz_rewards { /* added up in the order of the rows: floating-point sums depend on it */
    struct wz_reward rows[WZ_MAX_REWARDS];
    int n;
};
/* Appends a row and returns it, for what else it has. term: the name of one. role is borrowed. */
struct wz_reward *wz_rewards_add(struct wz_rewards *rewards, const char *role, const char *term, double coefficient);
/* Does row r pay turns of this role to prompts of this kind? */
bool wz_reward_pays(const struct wz_rewards *rewards, int r, const char *role, const char *kind);
/* Fills in reward, label and dir of an episode whose replies are all judged. */
void wz_reward_turns(const struct wz_rewards *rewards, Wz__Episode *e);
/* The value, before its coefficient, of the term of row r for turn i of an episode that has been rewarded. */
double wz_reward_term(const struct wz_rewards *rewards, int r, const Wz__Episode *e, size_t i);
/* Judges the replies of all episodes, by the judges that reward (and, watching, by those that watch), and rewards all
 * turns by the verdicts of those that reward. An episode with a failed verdict keeps its other verdicts, gets no
 * rewards, and `discard` says "judge failed: ..." (guarantee 7). Episodes already discarded are left alone. */
void wz_reward_label(struct wz_judges *judges, bool watching, const struct wz_rewards *rewards, Wz__Episode **episodes,
                     int n);
/* In play: judges the last reply of each episode, by the judges that guard or by those that reward, and fills in its
 * verdict, labels and judge_error. */
void wz_reward_look(struct wz_judges *judges, bool guards, Wz__Episode **episodes, int n);
/* Likewise the last attack of each episode, in the place of a reply to its prompt, by the judges that prune: where it
 * is off topic judged_refusal is set. */
void wz_reward_prune(struct wz_judges *judges, Wz__Episode **episodes, int n);
/* math.c: does the reply end with the answer, in the form of GSM8K? answer: what is behind its last ####, or all. */
bool wz_math_solved(const char *reply, const char *answer);
/* Replaces verdicts, rewards and discards for a failed judge by what judge `which` alone says (-1: those that reward,
 * together), from the judgements that the turns hold. The judges need not be open. */
void wz_reward_judged_by(const struct wz_judges *judges, int which, const struct wz_rewards *rewards,
                         Wz__Episode **episodes, int n);

#endif
