/* Labels and rewards (WaltzRL 2.2), in the order they are worked out:
 *
 *   judge(p, c_t) ─▶ unsafe = harmful, overrefuse = prompt benign and refusal ─▶ R_c(c_t) = neither
 *   f_t's flags == (unsafe, overrefuse) of c_t ─▶ label      R_c(c_{t+1}) - R_c(c_t) ─▶ dir
 *   a turn's reward = the sum over the rows of its role, in their order, of coefficient * term
 */
#include "reward/reward.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* R_c of a reply: 1 where it is neither unsafe nor an overrefusal. */
static double outcome_of(const Wz__Turn *c) { return !c->judged_unsafe && !c->judged_overrefuse ? 1 : 0; }

/* ---- the terms --------------------------------------------------------------------------------------------- */

/* Of a reply its own; of feedback that of the next reply, 0 without one. The paper's ablation puts it in the place of
 * dir, and not times the label: a right label and a next reply mean R_c(c_t) = 0, where it would equal dir. */
static double outcome(const Wz__Turn *turn, const Wz__Turn *reply) { return reply ? outcome_of(reply) : 0; }

static double dir(const Wz__Turn *turn, const Wz__Turn *reply) { return turn->dir * turn->label; }

static double label(const Wz__Turn *turn, const Wz__Turn *reply) { return turn->label; }

static double format(const Wz__Turn *turn, const Wz__Turn *reply) { return turn->valid; }

static const struct wz_term terms[] = {
    { "outcome", outcome },
    { "dir", dir },
    { "label", label },
    { "format", format },
};

void wz_rewards_add(struct wz_rewards *rewards, const char *role, const char *term, double coefficient)
{
    size_t i = 0;

    while (i < WZ_COUNT(terms) && strcmp(terms[i].name, term)) i++;
    assert(i < WZ_COUNT(terms) && rewards->n < WZ_MAX_REWARDS);
    rewards->rows[rewards->n++] = (struct wz_reward){ role, &terms[i], coefficient };
}

/* ---- episodes ---------------------------------------------------------------------------------------------- */

/* The reply that came of turn i: the first after it that revises the reply which i is about. NULL: there is none. */
static const Wz__Turn *next_reply(const Wz__Episode *e, size_t i)
{
    for (size_t k = i + 1; k < e->n_turns; k++)
        if (wz_turn_is(e->turns[k], WZ_CONVERSATION) && e->turns[k]->about == e->turns[i]->about) return e->turns[k];
    return NULL;
}

static const Wz__Turn *reply_of(const Wz__Episode *e, size_t i)
{
    return wz_turn_is(e->turns[i], WZ_CONVERSATION) ? e->turns[i] : next_reply(e, i);
}

double wz_reward_term(const struct wz_rewards *rewards, int r, const Wz__Episode *e, size_t i)
{
    return rewards->rows[r].term->value(e->turns[i], reply_of(e, i));
}

void wz_reward_turns(const struct wz_rewards *rewards, Wz__Episode *e)
{
    for (size_t i = 0; i < e->n_turns; i++) {
        Wz__Turn *t = e->turns[i];
        const Wz__Turn *reply = reply_of(e, i);
        if (wz_turn_is(t, WZ_FEEDBACK)) {
            assert(t->about >= 0);
            const Wz__Turn *c = e->turns[t->about];
            t->label = t->valid && t->unsafe == c->judged_unsafe && t->overrefuse == c->judged_overrefuse;
            t->dir = reply ? outcome_of(reply) - outcome_of(c) : 0; /* eq. 3 */
        }
        t->reward = 0;
        for (int r = 0; r < rewards->n; r++)
            if (wz_turn_is(t, rewards->rows[r].role))
                t->reward += rewards->rows[r].coefficient * wz_reward_term(rewards, r, e, i);
    }
}

static void take_answer(Wz__Episode *e, Wz__Turn *c, const struct wz_answer *a)
{
    c->verdict = a->failed ? WZ__VERDICT__FAILED : WZ__VERDICT__JUDGED;
    c->judged_unsafe = a->flags & WZ_JUDGED_HARMFUL;
    c->judged_overrefuse = !e->harmful && a->flags & WZ_JUDGED_REFUSAL;
    c->judged_partial = a->flags & WZ_JUDGED_PARTIAL;
    c->score = a->score;
    if (!a->failed) return;
    wz_set_string(&c->judge_error, a->why, strlen(a->why));
    if (e->discard[0]) return;
    char *why = wz_path("judge failed: %s", a->why);
    wz_set_string(&e->discard, why, strlen(why));
    free(why);
}

void wz_reward_label(struct wz_judge *judge, const struct wz_rewards *rewards, Wz__Episode **episodes, int n)
{
    size_t most = 0;
    int k = 0;

    for (int i = 0; i < n; i++) most += episodes[i]->n_turns;
    struct wz_question *questions = wz_alloc(sizeof *questions * most);
    struct wz_answer *answers = wz_alloc(sizeof *answers * most);
    struct {
        Wz__Episode *e;
        Wz__Turn *c;
    } *replies = wz_alloc(sizeof *replies * most);
    for (int i = 0; i < n; i++) {
        Wz__Episode *e = episodes[i];
        for (size_t t = 0; t < e->n_turns && !e->discard[0]; t++) {
            if (!wz_turn_is(e->turns[t], WZ_CONVERSATION)) continue;
            questions[k] = (struct wz_question){ e->prompt, e->turns[t]->text, e->harmful };
            replies[k].e = e;
            replies[k++].c = e->turns[t];
        }
    }
    wz_judge_ask(judge, questions, answers, k);
    for (int i = 0; i < k; i++) take_answer(replies[i].e, replies[i].c, &answers[i]);
    for (int i = 0; i < n; i++)
        if (!episodes[i]->discard[0]) wz_reward_turns(rewards, episodes[i]);
    free(questions);
    free(answers);
    free(replies);
}
