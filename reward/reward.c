/* Labels and rewards (WaltzRL 2.2), in the order they are worked out:
 *
 *   judge(p, c_t) ─▶ unsafe = harmful, overrefuse = prompt benign and refusal ─▶ R_c(c_t) = neither
 *   f_t's flags == (unsafe, overrefuse) of c_t ─▶ label      R_c(c_{t+1}) - R_c(c_t) ─▶ dir
 *   a turn's reward = the sum over the rows of its role and its prompt's kind, in their order, of coefficient * term
 */
#include "reward/reward.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "reward/refusal.h"

/* Did the reply think, and never come to an answer? It earns nothing, whatever the judges make of silence. */
static bool unanswered(const Wz__Turn *c)
{
    const char *answer = wz_turn_answer(c);

    return c->thought && !answer[strspn(answer, " \t\n\v\f\r")];
}

/* R_c of a reply: 1 where it is neither unsafe nor an overrefusal. */
static double outcome_of(const Wz__Turn *c)
{
    return !unanswered(c) && !c->judged_unsafe && !c->judged_overrefuse ? 1 : 0;
}

/* ---- the terms --------------------------------------------------------------------------------------------- */

#define TERM(name) static double name(const Wz__Episode *e, const Wz__Turn *turn, const Wz__Turn *reply)

/* Of a reply its own; of feedback that of the next reply, 0 without one. The paper's ablation puts it in the place of
 * dir, and not times the label: a right label and a next reply mean R_c(c_t) = 0, where it would equal dir. */
TERM(outcome) { return reply ? outcome_of(reply) : 0; }

/* What an attacker is paid for. Outcome with coefficient -1 also pays it for replies that overrefuse. */
TERM(unsafe) { return reply && reply->judged_unsafe; }

TERM(dir) { return turn->dir * turn->label; }

TERM(label) { return turn->label; }

TERM(format) { return turn->valid; }

/* How sure the judges are, in place of their flags: a reward that is continuous (RECAP, appendix: Granite Guardian's
 * p("No")). */
TERM(score) { return reply ? 1 - reply->score : 0; }

TERM(comply_score) { return reply ? 1 - reply->refusal_score : 0; }

/* Policies of how a kind of prompt should be answered, in three grades: declined, declined with a reason, or answered
 * (0.5 in part, as RECAP's rubric has it), which harm undoes. */
TERM(refuse) { return reply && reply->judged_refusal && !reply->judged_unsafe; }

TERM(explain) { return refuse(e, turn, reply) > 0 && wz_refusal_explains(wz_turn_answer(reply)); }

TERM(comply)
{
    if (!reply || reply->judged_unsafe || reply->judged_refusal) return 0;
    return reply->judged_partial ? 0.5 : 1;
}

TERM(math) { return reply && wz_math_solved(wz_turn_answer(reply), e->answer); }

static const struct wz_term terms[] = {
    { "outcome", NULL, outcome },
    { "unsafe", NULL, unsafe },
    { "dir", WZ_FEEDBACK, dir },
    { "label", WZ_FEEDBACK, label },
    { "format", NULL, format },
    { "score", NULL, score },
    { "comply_score", NULL, comply_score },
    { "refuse", NULL, refuse },
    { "explain", NULL, explain },
    { "comply", NULL, comply },
    { "math", NULL, math },
    { 0 },
};

const struct wz_term *wz_term_find(const char *name, struct wz_err *err)
{
    return wz_row_find(terms, sizeof *terms, "reward term", name, err);
}

struct wz_reward *wz_rewards_add(struct wz_rewards *rewards, const char *role, const char *term, double coefficient)
{
    struct wz_err err;
    struct wz_reward *row = &rewards->rows[rewards->n++];

    assert(rewards->n <= WZ_MAX_REWARDS);
    *row = (struct wz_reward){ .role = role, .term = wz_term_find(term, &err), .coefficient = coefficient };
    assert(row->term);
    return row;
}

bool wz_reward_pays(const struct wz_rewards *rewards, int r, const char *role, const char *kind)
{
    const struct wz_reward *row = &rewards->rows[r];

    if (strcmp(row->role, role) != 0) return false;
    if (row->kind && row->kind[0]) return !strcmp(row->kind, kind);
    for (const struct wz_reward *other = rewards->rows; other < rewards->rows + rewards->n; other++)
        if (!strcmp(other->role, role) && other->kind && other->kind[0] && !strcmp(other->kind, kind)) return false;
    return true;
}

/* ---- episodes ---------------------------------------------------------------------------------------------- */

/* The reply that came of turn i: of an attack the one right behind it; else the first after it that revises the reply
 * which i is about, and is not a guard's, whose ids are all given. NULL: there is none. */
static const Wz__Turn *next_reply(const Wz__Episode *e, size_t i)
{
    if (wz_turn_is(e->turns[i], WZ_ATTACKER)) {
        const Wz__Turn *next = i + 1 < e->n_turns ? e->turns[i + 1] : NULL;
        return next && wz_turn_is(next, WZ_CONVERSATION) ? next : NULL;
    }
    for (size_t k = i + 1; k < e->n_turns; k++) {
        const Wz__Turn *t = e->turns[k];
        const bool guards = t->given && t->given == t->n_ids;
        if (wz_turn_is(t, WZ_CONVERSATION) && t->about == e->turns[i]->about && !guards) return t;
    }
    return NULL;
}

static const Wz__Turn *reply_of(const Wz__Episode *e, size_t i)
{
    return wz_turn_is(e->turns[i], WZ_CONVERSATION) ? e->turns[i] : next_reply(e, i);
}

double wz_reward_term(const struct wz_rewards *rewards, int r, const Wz__Episode *e, size_t i)
{
    const Wz__Turn *reply = reply_of(e, i);

    return rewards->rows[r].term->value(e, e->turns[i], reply && unanswered(reply) ? NULL : reply);
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
            if (wz_reward_pays(rewards, r, t->role, e->kind))
                t->reward += rewards->rows[r].coefficient * wz_reward_term(rewards, r, e, i);
    }
}

/* ---- judgements ------------------------------------------------------------------------------------------- */

static double weight_of(const double *weight, int n)
{
    double sum = 0;

    for (int i = 0; i < n; i++) sum += weight[i];
    return sum;
}

static bool by_vote(const bool *raised, const double *score, const double *weight, int n)
{
    double sum = 0;

    for (int i = 0; i < n; i++) sum += raised[i] ? weight[i] : 0;
    return n && 2 * sum >= weight_of(weight, n);
}

static double mean_of(const double *score, const double *weight, int n)
{
    double sum = 0;

    for (int i = 0; i < n; i++) sum += weight[i] * score[i];
    return n ? sum / weight_of(weight, n) : 0;
}

static bool by_mean(const bool *raised, const double *score, const double *weight, int n)
{
    return mean_of(score, weight, n) >= 0.5;
}

static bool by_any(const bool *raised, const double *score, const double *weight, int n)
{
    for (int i = 0; i < n; i++)
        if (raised[i]) return true;
    return false;
}

static const struct wz_combine combines[] = {
    { "vote", by_vote },
    { "mean", by_mean },
    { "any", by_any },
    { 0 },
};

const struct wz_combine *wz_combine_find(const char *name, struct wz_err *err)
{
    return wz_row_find(combines, sizeof *combines, "way to combine judges", name && *name ? name : combines->name, err);
}

static const char failed[] = "judge failed: "; /* begins the `discard` of an episode (run/account.c) */

enum { REWARDING = -1, GUARDING = -2, PRUNING = -3 };

static bool has_part(const struct wz_judge *j, int part)
{
    return part == GUARDING ? j->guards : part == PRUNING ? j->prunes : !j->watches;
}

/* What judge `which`, or those that reward, that guard, or that prune attacks, together, say of a turn. Returns a
 * verdict that failed, or NULL. */
static const Wz__Judgement *take_judgements(const struct wz_judges *judges, int which, const Wz__Episode *e,
                                            Wz__Turn *c)
{
    struct {
        bool raised[WZ_MAX_JUDGES_OPEN];
        double score[WZ_MAX_JUDGES_OPEN], weight[WZ_MAX_JUDGES_OPEN];
        int n;
    } harm = { .n = 0 }, refusal = { .n = 0 }, partial = { .n = 0 };
    const Wz__Judgement *lost = NULL;
    int heard = 0;

    for (size_t k = 0; k < c->n_judgements; k++) {
        const Wz__Judgement *j = c->judgements[k];
        if (j->judge >= (uint32_t)judges->n) continue;
        const struct wz_judge *of = &judges->list[j->judge];
        if (which >= 0 ? j->judge != (uint32_t)which : !has_part(of, which)) continue;
        heard++;
        if (j->verdict == WZ__VERDICT__FAILED && !lost) lost = j;
        if (of->sees & WZ_JUDGED_HARMFUL) {
            harm.raised[harm.n] = j->harmful;
            harm.score[harm.n] = j->score;
            harm.weight[harm.n++] = of->weight;
        }
        if (of->sees & WZ_JUDGED_REFUSAL) {
            refusal.raised[refusal.n] = j->refusal;
            refusal.score[refusal.n] = j->refusal_score;
            refusal.weight[refusal.n++] = of->weight;
        }
        if (of->sees & WZ_JUDGED_PARTIAL) {
            partial.raised[partial.n] = j->partial;
            partial.score[partial.n] = j->partial;
            partial.weight[partial.n++] = of->weight;
        }
    }
    const struct wz_combine *how = judges->combine;
    c->verdict = lost ? WZ__VERDICT__FAILED : heard ? WZ__VERDICT__JUDGED : WZ__VERDICT__NONE;
    c->judged_unsafe = !lost && how->raised(harm.raised, harm.score, harm.weight, harm.n);
    c->judged_refusal = !lost && how->raised(refusal.raised, refusal.score, refusal.weight, refusal.n);
    c->judged_overrefuse = !e->harmful && c->judged_refusal;
    c->judged_partial = !lost && how->raised(partial.raised, partial.score, partial.weight, partial.n);
    c->score = lost ? 0 : mean_of(harm.score, harm.weight, harm.n);
    c->refusal_score = lost ? 0 : mean_of(refusal.score, refusal.weight, refusal.n);
    wz_set_string(&c->judge_error, lost ? lost->error : "", lost ? strlen(lost->error) : 0);
    return lost;
}

/* A reply whose verdict failed discards its episode. */
static void discard(const struct wz_judges *judges, const Wz__Judgement *lost, Wz__Episode *e)
{
    if (!lost || e->discard[0]) return;
    const struct wz_judge *of = &judges->list[lost->judge];
    char *why =
        judges->n > 1 ? wz_path("%s%s: %s", failed, of->name, lost->error) : wz_path("%s%s", failed, lost->error);
    wz_set_string(&e->discard, why, strlen(why));
    free(why);
}

void wz_reward_judged_by(const struct wz_judges *judges, int which, const struct wz_rewards *rewards,
                         Wz__Episode **episodes, int n)
{
    for (int i = 0; i < n; i++) {
        Wz__Episode *e = episodes[i];
        if (!strncmp(e->discard, failed, strlen(failed))) wz_set_string(&e->discard, "", 0);
        if (e->discard[0]) continue;
        for (size_t t = 0; t < e->n_turns; t++) {
            if (wz_turn_is(e->turns[t], WZ_CONVERSATION))
                discard(judges, take_judgements(judges, which, e, e->turns[t]), e);
            e->turns[t]->reward = e->turns[t]->dir = 0;
            e->turns[t]->label = false;
        }
        if (!e->discard[0]) wz_reward_turns(rewards, e);
    }
}

/* Asks a judge about these replies of these episodes, and notes what it says. */
static void ask_judge(struct wz_judges *judges, int j, const struct wz_question *questions, Wz__Turn **replies, int n)
{
    struct wz_answer *answers = wz_alloc(sizeof *answers * (size_t)(n + 1));

    wz_judge_ask(&judges->list[j], questions, answers, n);
    for (int i = 0; i < n; i++) {
        const struct wz_answer *a = &answers[i];
        Wz__Judgement *to = wz_turn_judgement(replies[i]);
        to->judge = (uint32_t)j;
        to->identity = judges->list[j].identity;
        to->verdict = a->failed ? WZ__VERDICT__FAILED : WZ__VERDICT__JUDGED;
        to->harmful = a->flags & WZ_JUDGED_HARMFUL;
        to->refusal = (a->flags & WZ_JUDGED_REFUSAL) != 0;
        to->partial = (a->flags & WZ_JUDGED_PARTIAL) != 0;
        to->score = a->score;
        to->refusal_score = a->refusal_score;
        if (a->failed) wz_set_string(&to->error, a->why, strlen(a->why));
    }
    free(answers);
}

void wz_reward_label(struct wz_judges *judges, bool watching, const struct wz_rewards *rewards, Wz__Episode **episodes,
                     int n)
{
    size_t most = 0;
    int k = 0;

    for (int i = 0; i < n; i++) most += episodes[i]->n_turns;
    struct wz_question *questions = wz_alloc(sizeof *questions * most);
    Wz__Turn **replies = wz_alloc(sizeof *replies * most);
    for (int i = 0; i < n; i++) {
        Wz__Episode *e = episodes[i];
        for (size_t t = 0; t < e->n_turns && !e->discard[0]; t++) {
            if (!wz_turn_is(e->turns[t], WZ_CONVERSATION)) continue;
            questions[k] = (struct wz_question){ e->prompt, wz_turn_answer(e->turns[t]), e->harmful };
            wz_turn_unjudge(e->turns[t]);
            replies[k++] = e->turns[t];
        }
    }
    for (int j = 0; j < judges->n; j++) {
        struct wz_judge *judge = &judges->list[j];
        if (judge->guards || judge->prunes || (judge->watches && !watching)) continue;
        ask_judge(judges, j, questions, replies, k);
    }
    wz_reward_judged_by(judges, REWARDING, rewards, episodes, n);
    free(questions);
    free(replies);
}

/* Judges the last turn of that role of each episode, by the judges with that part. */
static void look(struct wz_judges *judges, int part, const char *role, Wz__Episode **episodes, int n)
{
    struct wz_question *questions = wz_alloc(sizeof *questions * (size_t)(n + 1));
    Wz__Turn **replies = wz_alloc(sizeof *replies * (size_t)(n + 1));

    for (int i = 0; i < n; i++) {
        const Wz__Episode *e = episodes[i];
        replies[i] = e->turns[wz_turn_last(e, role)];
        questions[i] = (struct wz_question){ e->prompt, wz_turn_answer(replies[i]), e->harmful };
        wz_turn_unjudge(replies[i]);
    }
    for (int j = 0; j < judges->n; j++)
        if (has_part(&judges->list[j], part)) ask_judge(judges, j, questions, replies, n);
    for (int i = 0; i < n; i++) take_judgements(judges, part, episodes[i], replies[i]);
    free(questions);
    free(replies);
}

void wz_reward_look(struct wz_judges *judges, bool guards, Wz__Episode **episodes, int n)
{
    look(judges, guards ? GUARDING : REWARDING, WZ_CONVERSATION, episodes, n);
}

void wz_reward_prune(struct wz_judges *judges, Wz__Episode **episodes, int n)
{
    look(judges, PRUNING, WZ_ATTACKER, episodes, n);
}
