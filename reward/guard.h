/* What a guard model is: a row of guard_rows.c, by which guard.c asks it. Private to reward. */
#ifndef WZ_REWARD_GUARD_H
#define WZ_REWARD_GUARD_H

#include "reward/reward.h"

/* The marks of a prompt. SPECIAL("<|eot_id|>") is a special token; PROMPT, RESPONSE and CATEGORIES are filled in; \b
 * takes back the byte before it. */
#define SPECIAL(token) "\1" token "\2"
#define PROMPT         "\3"
#define RESPONSE       "\4"
#define CATEGORIES     "\5"

#define WZ_GUARD_BLANKS " \t\n\r" /* what may stand around a verdict */

enum { WZ_GUARD_WORDS = 5 };

struct wz_guard_row {
    /* How it is asked. */
    const char *prompt;    /* NULL: request and reply are two turns in the chat template of its own files... */
    const char *variables; /* ...to which this JSON object is given; NULL: none */
    const char *policy;    /* ...and as this variable, a.b: b in the object a, a line of `categories`, one a call */
    const char
        *definition;  /* of a line "name: definition" what is behind the colon goes to this one; NULL: to `policy` */
    bool either;      /* such a line goes to `definition` alone */
    bool rubric;      /* it is asked what the user's file says, as one user turn */
    bool served;      /* the template in its files says what `prompt` does: an endpoint may be given two turns */
    bool trim;        /* white space around what is filled in goes, as in its template */
    const char *lead; /* what the model writes before its verdict: read as part of the prompt */
    const char *categories; /* the default, a line each; NULL: it has none */

    /* How it answers: by words, of which the first token is scored, or by a text. */
    const char *words[WZ_GUARD_WORDS]; /* verdicts... */
    double values[WZ_GUARD_WORDS];     /* ...and how harmful each is */
    bool folded;                       /* a token counts whatever its case and the blanks around it */
    const char *tag; /* the word is in <tag> </tag>, behind what is in <think> </think>; NULL: it is the first token */
    int max_tokens;  /* 0: the recipe's */
    void (*parse)(const char *text, struct wz_answer *answer); /* of a text without words; NULL: a rubric's answer */
    void (*write)(bool prompt_harmful, unsigned flags, struct wz_buf *out); /* its inverse, of a sure verdict */
};

/* guard.c: the functions of their rows in the table of judges. */
int wz_guard_open(struct wz_judge *judge, const struct wz_judge_config *config, struct wz_err *err);
void wz_guard_ask(struct wz_judge *judge, const struct wz_question *questions, struct wz_answer *answers, int n);
void wz_guard_close(struct wz_judge *judge);

#endif
