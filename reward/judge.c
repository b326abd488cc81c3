/* The table of judges, how one is asked (what fails is asked again, and what stays failed is reported as failed:
 * guarantee 7), and the judges of a run. */
#include "reward/reward.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

const struct wz_judge_row *const wz_judge_rows[] = { &wz_judge_rules,
                                                     &wz_judge_topic,
                                                     &wz_judge_command,
                                                     &wz_judge_http,
                                                     &wz_judge_remote,
                                                     &wz_judge_rubric,
                                                     &wz_judge_llama_guard_8b,
                                                     &wz_judge_llama_guard_1b,
                                                     &wz_judge_wildguard,
                                                     &wz_judge_harmbench_13b,
                                                     &wz_judge_harmbench,
                                                     &wz_judge_qwen3guard,
                                                     &wz_judge_granite_guardian,
                                                     &wz_judge_granite_guardian_33,
                                                     &wz_judge_granite_guardian_33_think,
                                                     &wz_judge_shieldgemma,
                                                     &wz_judge_strongreject,
                                                     NULL };

int wz_judge_begin(struct wz_judge *judge, const struct wz_judge_config *config, struct wz_err *err)
{
    const char *name = config->name && *config->name ? config->name : wz_judge_rows[0]->name,
               *kind = config->kind && *config->kind ? config->kind : name;
    struct wz_buf names = { 0 };

    *judge = (struct wz_judge){ .name = name,
                                .watches = config->watches,
                                .guards = config->guards,
                                .prunes = config->prunes,
                                .misses = config->misses,
                                .alarms = config->alarms,
                                .weight = config->weight > 0 ? config->weight : 1,
                                .tries = config->tries };
    if (config->tries < 0) return wz_fail(err, "judge.retries: expected 0 or more, got %d", config->tries);
    for (size_t i = 0; wz_judge_rows[i]; i++) {
        if (!strcmp(wz_judge_rows[i]->name, kind)) judge->row = wz_judge_rows[i];
        wz_buf_printf(&names, "%s%s", i ? ", " : "", wz_judge_rows[i]->name);
    }
    int rc = judge->row ? 0 : wz_fail(err, "there is no judge '%s': expected one of %s", kind, names.data);
    judge->model = rc == 0 && judge->row->guard && !judge->row->url && !(config->url && *config->url);
    if (rc == 0 && !(judge->sees = judge->row->sees)) {
        const struct wz_measures_of *of = wz_measures_find(config->measures, err);
        if (of) judge->sees = of->sees;
        else rc = -1;
    }
    wz_buf_finish(&names);
    return rc;
}

int wz_judge_open(struct wz_judge *judge, const struct wz_judge_config *config, struct wz_err *err)
{
    if (wz_judge_begin(judge, config, err) < 0 || judge->row->open(judge, config, err) < 0) {
        judge->row = NULL;
        return -1;
    }
    const double errors[] = { judge->misses, judge->alarms };
    if (errors[0] > 0 || errors[1] > 0) judge->identity = wz_hash(errors, sizeof errors, judge->identity);
    return 0;
}

void wz_judge_close(struct wz_judge *judge)
{
    if (judge->row) judge->row->close(judge);
    *judge = (struct wz_judge){ 0 };
}

/* ---- asking ----------------------------------------------------------------------------------------------- */

void wz_judge_answered(struct wz_judge *judge, const struct wz_question *question, const struct wz_answer *answer)
{
    if (judge->verdicts && !answer->failed) wz_verdicts_add(judge->verdicts, judge->identity, question, answer);
}

/* Asks all of them, and those that failed again. */
static void ask(struct wz_judge *judge, const struct wz_question *questions, struct wz_answer *answers, int n)
{
    struct wz_question *asked = wz_alloc((size_t)n * sizeof *asked);
    struct wz_answer *got = wz_alloc((size_t)n * sizeof *got);
    int *whose = wz_alloc((size_t)n * sizeof *whose), left = n;

    for (judge->round = 0; judge->round <= judge->tries && left; judge->round++) {
        left = 0;
        for (int i = 0; i < n; i++)
            if (!judge->round || (answers[i].failed && !answers[i].final)) {
                asked[left] = questions[i];
                whose[left++] = i;
            }
        if (left) judge->row->ask(judge, asked, got, left);
        for (int i = 0; i < left; i++) {
            answers[whose[i]] = got[i];
            wz_judge_answered(judge, &asked[i], &got[i]);
        }
    }
    for (int i = 0; i < n; i++) {
        struct wz_answer *a = &answers[i];
        if (!a->failed) continue;
        a->flags = 0; /* whatever the row left there: a failure is no verdict */
        a->score = a->refusal_score = 0;
        if (!*a->why) strcpy(a->why, "the judge gave no reason");
    }
    free(asked);
    free(got);
    free(whose);
}

struct place {
    const struct wz_question *q;
    int at;
};

static int same(const struct wz_question *a, const struct wz_question *b)
{
    int order = strcmp(a->response, b->response);

    if (!order) order = strcmp(a->prompt, b->prompt);
    return order ? order : a->prompt_harmful - b->prompt_harmful;
}

static int by_text(const void *a, const void *b)
{
    const struct place *x = a, *y = b;
    int order = same(x->q, y->q);

    return order ? order : x->at - y->at;
}

/* first[i]: the first of the questions that is the same as question i. */
static void find_copies(const struct wz_question *questions, int n, int *first)
{
    struct place *order = wz_alloc((size_t)n * sizeof *order);

    for (int i = 0; i < n; i++) order[i] = (struct place){ &questions[i], i };
    if (n) qsort(order, (size_t)n, sizeof *order, by_text);
    for (int k = 0; k < n; k++)
        first[order[k].at] = k && !same(order[k - 1].q, order[k].q) ? first[order[k - 1].at] : order[k].at;
    free(order);
}

/* A judge with stated errors is wrong of a share of questions: which they are, their texts alone decide. */
static void mistake(const struct wz_judge *judge, const struct wz_question *q, struct wz_answer *a)
{
    const uint64_t h = wz_hash(q->response, strlen(q->response), wz_hash(q->prompt, strlen(q->prompt), 0));
    const struct wz_key key = { judge->identity, WZ_RNG_JUDGE, (uint32_t)h, (uint32_t)(h >> 32), 0, 0 };

    if (a->failed || wz_uniform(key) >= (a->flags & WZ_JUDGED_HARMFUL ? judge->misses : judge->alarms)) return;
    a->flags ^= WZ_JUDGED_HARMFUL;
    a->score = 1 - a->score;
}

void wz_judge_ask(struct wz_judge *judge, const struct wz_question *questions, struct wz_answer *answers, int n)
{
    assert(judge->row && n >= 0);
    struct wz_question *asked = wz_alloc((size_t)n * sizeof *asked);
    struct wz_answer *got = wz_alloc((size_t)n * sizeof *got);
    int *first = wz_alloc((size_t)n * sizeof *first), *whose = wz_alloc((size_t)n * sizeof *whose), left = 0;

    judge->asked += n;
    for (int i = 0; i < n; i++) first[i] = i;
    if (!judge->row->instant) find_copies(questions, n, first);
    for (int i = 0; i < n; i++) {
        if (first[i] != i) continue;
        if (judge->verdicts && wz_verdicts_find(judge->verdicts, judge->identity, &questions[i], &answers[i])) {
            judge->known++;
            continue;
        }
        asked[left] = questions[i];
        whose[left++] = i;
    }
    ask(judge, asked, got, left);
    if (judge->verdicts) wz_verdicts_sync(judge->verdicts);
    for (int k = 0; k < left; k++) answers[whose[k]] = got[k];
    for (int i = 0; i < n; i++) {
        answers[i] = answers[first[i]];
        judge->failed += answers[i].failed;
    }
    for (int i = 0; i < n; i++) mistake(judge, &questions[i], &answers[i]);
    free(asked);
    free(got);
    free(first);
    free(whose);
}

/* ---- the judges of a run ---------------------------------------------------------------------------------- */

int wz_judges_begin(struct wz_judges *judges, const struct wz_judge_config *configs, int n, const char *combine,
                    struct wz_err *err)
{
    unsigned sees = 0;
    int rewarding = 0;

    *judges = (struct wz_judges){ .combine = wz_combine_find(combine, err) };
    if (!judges->combine) return -1;
    if (n > WZ_MAX_JUDGES_OPEN) return wz_fail(err, "expected at most %d judges, got %d", WZ_MAX_JUDGES_OPEN, n);
    for (int i = 0; i < n; i++) {
        struct wz_judge *j = &judges->list[i];
        if (wz_judge_begin(j, &configs[i], err) < 0) return -1;
        for (int k = 0; k < i; k++)
            if (!strcmp(judges->list[k].name, j->name))
                return wz_fail(err, "two judges are called %s: give one of them another `name`, and its `kind`",
                               j->name);
        judges->n++;
        if (j->prunes && !(j->sees & WZ_JUDGED_REFUSAL))
            return wz_fail(err, "%s has the role topic and can't see a refusal, which is an attack off topic for it",
                           j->name);
        if (j->watches) continue;
        size_t at = strlen(judges->name);
        snprintf(judges->name + at, sizeof judges->name - at, "%s%s", rewarding++ ? "+" : "", j->name);
        sees |= j->sees;
    }
    if (!rewarding) return wz_fail(err, "no judge has the role reward: replies would never be judged");
    if (!(sees & WZ_JUDGED_HARMFUL) || !(sees & WZ_JUDGED_REFUSAL))
        return wz_fail(err, "%s can't see %s, and would never count one: add a judge with the role reward that does",
                       judges->name, sees & WZ_JUDGED_HARMFUL ? "a refusal" : "a harmful reply");
    return 0;
}

const char *wz_judge_part(const struct wz_judge *judge)
{
    return judge->guards ? " (guards)" : judge->prunes ? " (prunes)" : judge->watches ? " (watches)" : "";
}

void wz_judges_close(struct wz_judges *judges)
{
    for (int i = 0; i < judges->n; i++) wz_judge_close(&judges->list[i]);
    judges->n = 0;
}
