/* Labels and rewards (paper section 2), in the order they are worked out:
 *
 *   judge(p, c_t) ─▶ unsafe = harmful, overrefuse = prompt benign and refusal ─▶ R_c(c_t) = neither
 *   f_t's flags == (unsafe, overrefuse) of c_t ─▶ label      R_c(c_{t+1}) - R_c(c_t) ─▶ DIR
 *   R_f(f_t) = alpha * DIR * label + lambda * label + gamma * valid                                    (eq. 2)
 *   without DIR (ablation): alpha * R_c(c_{t+1}) + lambda * label + gamma * valid
 */
#include "reward/reward.h"

#include <stdlib.h>
#include <string.h>

double wz_reward_conversation(bool unsafe, bool overrefuse) { return !unsafe && !overrefuse ? 1 : 0; }

double wz_reward_feedback(const struct wz_coefficients *k, bool valid, bool label, double r0, bool has_next, double r1,
                          double *dir)
{
    double bonus;

    *dir = has_next ? r1 - r0 : 0; /* eq. 3; no next reply: no difference */
    /* a right label and a next reply mean that c_t was bad, R_c(c_t) = 0: behind the label the outcome would be the
     * difference again, so the ablation pays it to every feedback that brought a next reply */
    if (k->outcome) bonus = has_next ? r1 : 0;
    else bonus = *dir * label;
    return k->alpha * bonus + k->lambda * label + k->gamma * valid;
}

static void judge_reply(Wz__Turn *c, const struct wz_answer *a, bool prompt_harmful)
{
    c->verdict = a->failed ? WZ__VERDICT__FAILED : WZ__VERDICT__JUDGED;
    if (a->failed) {
        wz_set_string(&c->judge_error, a->why, strlen(a->why));
        return;
    }
    c->judged_unsafe = a->harmful;
    c->judged_overrefuse = !prompt_harmful && a->refusal;
}

static void reward_turns(const struct wz_coefficients *k, Wz__Episode *e)
{
    for (size_t i = 0; i < e->n_turns; i += 2)
        e->turns[i]->reward = wz_reward_conversation(e->turns[i]->judged_unsafe, e->turns[i]->judged_overrefuse);
    for (size_t i = 1; i < e->n_turns; i += 2) {
        const Wz__Turn *c = e->turns[i - 1];
        Wz__Turn *f = e->turns[i];
        bool has_next = i + 1 < e->n_turns;
        f->label = f->valid && f->unsafe == c->judged_unsafe && f->overrefuse == c->judged_overrefuse;
        f->reward = wz_reward_feedback(k, f->valid, f->label, c->reward, has_next,
                                       has_next ? e->turns[i + 1]->reward : 0, &f->dir);
    }
}

void wz_reward_label(struct wz_judge *judge, const struct wz_coefficients *k, Wz__Episode **episodes, int n)
{
    size_t n_replies = 0, at = 0;

    for (int i = 0; i < n; i++) n_replies += (episodes[i]->n_turns + 1) / 2;
    struct wz_question *questions = wz_alloc(sizeof *questions * n_replies);
    struct wz_answer *answers = wz_alloc(sizeof *answers * n_replies);
    for (int i = 0; i < n; i++)
        for (size_t t = 0; t < episodes[i]->n_turns && !episodes[i]->discard[0]; t += 2)
            questions[at++] =
                (struct wz_question){ episodes[i]->prompt, episodes[i]->turns[t]->text, episodes[i]->harmful };
    wz_judge_ask(judge, questions, answers, (int)at);
    at = 0;
    for (int i = 0; i < n; i++) {
        Wz__Episode *e = episodes[i];
        const char *why = NULL;
        if (e->discard[0]) continue;
        for (size_t t = 0; t < e->n_turns; t += 2, at++) {
            judge_reply(e->turns[t], &answers[at], e->harmful);
            if (answers[at].failed && !why) why = answers[at].why;
        }
        if (why) {
            struct wz_buf b = { 0 };
            wz_buf_printf(&b, "judge failed: %s", why);
            wz_set_string(&e->discard, b.data, b.len);
            wz_buf_finish(&b);
        } else reward_turns(k, e);
    }
    free(questions);
    free(answers);
}
