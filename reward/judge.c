/* The table of judges, and how one is asked: what fails is asked again, and what stays failed is told as that (law
 * 7). */
#include "reward/reward.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static const struct wz_judge_row *const rows[] = { &wz_judge_rules };

int wz_judge_open(struct wz_judge *judge, const struct wz_judge_config *config, struct wz_err *err)
{
    const char *name = config->name && *config->name ? config->name : rows[0]->name;
    struct wz_buf names = { 0 };

    *judge = (struct wz_judge){ .tries = config->tries };
    if (config->tries < 0) return wz_fail(err, "judge.retries: %d, a number from 0 was expected", config->tries);
    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        if (!strcmp(rows[i]->name, name)) judge->row = rows[i];
        wz_buf_printf(&names, "%s%s", i ? ", " : "", rows[i]->name);
    }
    int rc = judge->row ? judge->row->open(judge, config, err)
                        : wz_fail(err, "there is no judge '%s': expected one of %s", name, names.data);
    if (rc < 0) judge->row = NULL;
    wz_buf_finish(&names);
    return rc;
}

void wz_judge_close(struct wz_judge *judge)
{
    if (judge->row) judge->row->close(judge);
    *judge = (struct wz_judge){ 0 };
}

void wz_judge_ask(struct wz_judge *judge, const struct wz_question *questions, struct wz_answer *answers, int n)
{
    assert(judge->row && n >= 0);
    if (!n) return;
    judge->row->ask(judge, questions, answers, n);
    judge->asked += n;

    struct wz_question *again = wz_alloc((size_t)n * sizeof *again);
    struct wz_answer *said = wz_alloc((size_t)n * sizeof *said);
    int *whose = wz_alloc((size_t)n * sizeof *whose), left = 0;
    for (int round = 0; round <= judge->tries; round++) {
        left = 0;
        for (int i = 0; i < n; i++)
            if (answers[i].failed) {
                again[left] = questions[i];
                whose[left++] = i;
            }
        if (!left || round == judge->tries) break;
        judge->row->ask(judge, again, said, left);
        for (int i = 0; i < left; i++) answers[whose[i]] = said[i];
    }
    judge->failed += left;
    for (int i = 0; i < left; i++) { /* whatever a row left there: a failure says neither */
        answers[whose[i]].harmful = answers[whose[i]].refusal = false;
        if (!*answers[whose[i]].why) strcpy(answers[whose[i]].why, "the judge gave no reason");
    }
    free(whose);
    free(said);
    free(again);
}
