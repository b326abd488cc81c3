/* The table of judges, and how one is asked: what fails is asked again, and what stays failed is reported as failed
 * (guarantee 7). */
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
    if (config->tries < 0) return wz_fail(err, "judge.retries: expected 0 or more, got %d", config->tries);
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
    struct wz_question *asked = wz_alloc((size_t)n * sizeof *asked);
    struct wz_answer *got = wz_alloc((size_t)n * sizeof *got);
    int *whose = wz_alloc((size_t)n * sizeof *whose), left = n;

    judge->asked += n;
    for (int round = 0; round <= judge->tries && left; round++) {
        left = 0;
        for (int i = 0; i < n; i++)
            if (!round || answers[i].failed) {
                asked[left] = questions[i];
                whose[left++] = i;
            }
        if (left) judge->row->ask(judge, asked, got, left);
        for (int i = 0; i < left; i++) answers[whose[i]] = got[i];
    }
    for (int i = 0; i < n; i++) {
        struct wz_answer *a = &answers[i];
        if (!a->failed) continue;
        judge->failed++;
        a->flags = 0; /* whatever the row left there: a failure is no verdict */
        a->score = 0;
        if (!*a->why) strcpy(a->why, "the judge gave no reason");
    }
    free(asked);
    free(got);
    free(whose);
}
