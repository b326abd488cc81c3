/* The rewards of WaltzRL 2.2: every reachable value of R_f in stage 1, stage 2 and the ablation; labels; DIR; a judge
 * that failed. */
#include "tests/test.h"

#include <math.h>

#include "reward/reward.h"

static struct wz_rewards rows_of(double alpha, double lambda, double gamma, const char *bonus)
{
    struct wz_rewards r = { 0 };

    wz_rewards_add(&r, WZ_CONVERSATION, "outcome", 1);
    wz_rewards_add(&r, WZ_FEEDBACK, bonus, alpha);
    wz_rewards_add(&r, WZ_FEEDBACK, "label", lambda);
    wz_rewards_add(&r, WZ_FEEDBACK, "format", gamma);
    return r;
}

/* A turn of a role; bad: the judge found a reply unsafe, or the feedback says so. */
static Wz__Turn *add(Wz__Episode *e, const char *role, int about, bool bad)
{
    Wz__Turn *t = wz_episode_turn(e);

    wz_set_string(&t->role, role, strlen(role));
    t->about = about;
    t->unsafe = t->judged_unsafe = bad;
    return t;
}

/* R_f where c0 has the outcome r0, f the label as told, and c1 (r1 < 0: there is none) the outcome r1. */
static double pay(const struct wz_rewards *rows, bool valid, bool label, int r0, int r1, double *dir)
{
    Wz__Episode *e = wz_episode_new();

    add(e, WZ_CONVERSATION, -1, !r0);
    Wz__Turn *f = add(e, WZ_FEEDBACK, 0, label ? !r0 : r0);
    f->valid = valid;
    if (r1 >= 0) add(e, WZ_CONVERSATION, 0, !r1);
    wz_reward_turns(rows, e);
    assert_int_equal(f->label, label && valid);
    double reward = f->reward;
    *dir = f->dir;
    wz_episode_free(e);
    return reward;
}

/* Every reachable row: valid, label, DIR -> R_f. */
static void values_of_the_paper(void **state)
{
    static const struct {
        bool valid, label;
        int dir;
        double a, b;
    } rows[] = {
        { false, false, 0, 0, 0 },        { true, false, -1, 0.10, 0.10 }, { true, false, 0, 0.10, 0.10 },
        { true, false, 1, 0.10, 0.10 },   { true, true, 0, 0.35, 0.10 },   { true, true, 1, 1.00, 0.75 },
        { true, true, -1, -0.30, -0.55 },
    };
    const struct wz_rewards stage1 = rows_of(0.65, 0.25, 0.1, "dir"), stage2 = rows_of(0.65, 0, 0.1, "dir");

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        int r0 = rows[i].dir<0, r1 = rows[i].dir> 0;
        double dir;
        assert_float_equal(pay(&stage1, rows[i].valid, rows[i].label, r0, r1, &dir), rows[i].a, 1e-12);
        assert_float_equal(dir, rows[i].dir, 0);
        assert_float_equal(pay(&stage2, rows[i].valid, rows[i].label, r0, r1, &dir), rows[i].b, 1e-12);
    }
}

/* WaltzRL 2.2 once more, of every episode of up to three replies whose judgements, flags and forms are all possible:
 * rewards worked out from the formulas, of indices, not of what the module keeps. R_f(f_t) = alpha * DIR * label +
 * lambda * label + gamma * format, DIR = R_c(c_{t+1}) - R_c(c_t), 0 without a c_{t+1}. */
static void formulas_hold_of_every_episode(void **state)
{
    const struct wz_rewards rows = rows_of(0.5, 0.25, 0.125, "dir"); /* exact in binary */

    for (int replies = 1; replies <= 3; replies++)
        for (int feedbacks = replies - 1; feedbacks <= replies; feedbacks++)
            for (unsigned bits = 0; bits < 1u << (2 * replies + 3 * feedbacks); bits++) {
                Wz__Episode *e = wz_episode_new();
                bool bad[3][2], said[3][3];
                unsigned left = bits;
                for (int t = 0; t < replies; t++, left >>= 2) bad[t][0] = left & 1, bad[t][1] = left >> 1 & 1;
                for (int t = 0; t < feedbacks; t++, left >>= 3)
                    for (int k = 0; k < 3; k++) said[t][k] = left >> k & 1;
                for (int t = 0; t < replies; t++) {
                    Wz__Turn *c = add(e, WZ_CONVERSATION, t ? 2 * t - 2 : -1, bad[t][0]);
                    c->judged_overrefuse = bad[t][1];
                    if (t >= feedbacks) continue;
                    Wz__Turn *f = add(e, WZ_FEEDBACK, 2 * t, said[t][0]);
                    f->judged_unsafe = !f->unsafe; /* means nothing of a feedback turn */
                    f->overrefuse = said[t][1];
                    f->valid = said[t][2];
                }
                wz_reward_turns(&rows, e);
                for (int t = 0; t < replies; t++) {
                    const double good = !(bad[t][0] || bad[t][1]),
                                 next = t + 1 < replies ? !(bad[t + 1][0] || bad[t + 1][1]) : good;
                    assert_float_equal(e->turns[2 * t]->reward, good, 0);
                    if (t >= feedbacks) continue;
                    const bool label = said[t][2] && said[t][0] == bad[t][0] && said[t][1] == bad[t][1];
                    const Wz__Turn *f = e->turns[2 * t + 1];
                    assert_int_equal(f->label, label);
                    assert_float_equal(f->dir, next - good, 0);
                    assert_float_equal(f->reward, (0.5 * (next - good) + 0.25) * label + 0.125 * said[t][2], 0);
                }
                wz_episode_free(e);
            }
}

static void no_next_reply_means_no_difference(void **state)
{
    const struct wz_rewards stage1 = rows_of(0.65, 0.25, 0.1, "dir");
    double dir;

    for (int r0 = 0; r0 < 2; r0++) {
        assert_float_equal(pay(&stage1, true, true, r0, -1, &dir), 0.35, 1e-12);
        assert_float_equal(dir, 0, 0);
    }
}

/* The ablation pays the next reply's outcome instead of the difference. */
static void outcome_in_place_of_difference(void **state)
{
    const struct wz_rewards k = rows_of(0.65, 0.25, 0.1, "outcome");
    double dir;

    assert_float_equal(pay(&k, true, true, 1, 1, &dir), 1.0, 1e-12);
    assert_float_equal(pay(&k, true, true, 1, -1, &dir), 0.35, 1e-12);
    assert_float_equal(pay(&k, true, false, 1, 1, &dir), 0.75, 1e-12); /* a false alarm that did no harm is paid */
}

static void reply_is_paid_for_neither(void **state)
{
    const struct wz_rewards rows = rows_of(0.65, 0.25, 0.1, "dir");

    for (int unsafe = 0; unsafe < 2; unsafe++)
        for (int overrefuse = 0; overrefuse < 2; overrefuse++) {
            Wz__Episode *e = wz_episode_new();
            Wz__Turn *c = add(e, WZ_CONVERSATION, -1, unsafe);
            c->judged_overrefuse = overrefuse;
            wz_reward_turns(&rows, e);
            assert_float_equal(c->reward, !unsafe && !overrefuse, 0);
            wz_episode_free(e);
        }
}

/* Any role may be paid, by any term. Two critics of one reply are both paid for the revision that came of it, and what
 * speaks before the first reply for that one, here an attacker for its failure. */
static void rows_are_chosen_by_role(void **state)
{
    struct wz_rewards rows = rows_of(0.5, 0, 0, "dir");
    Wz__Episode *e = wz_episode_new();

    wz_rewards_add(&rows, "critic", "outcome", 2);
    wz_rewards_add(&rows, "critic", "format", 3);
    wz_rewards_add(&rows, "attacker", "outcome", -1);
    add(e, "attacker", -1, false);
    add(e, WZ_CONVERSATION, -1, true);
    add(e, WZ_FEEDBACK, 1, true)->valid = true;
    add(e, "critic", 1, true)->valid = true;
    add(e, WZ_CONVERSATION, 1, false);
    add(e, "stranger", 4, false)->reward = 9;
    wz_reward_turns(&rows, e);
    for (int i = 0; i < 6; i++) assert_float_equal(e->turns[i]->reward, ((double[]){ 0, 0, 0.5, 5, 1, 0 })[i], 0);
    e->turns[1]->judged_unsafe = false;
    wz_reward_turns(&rows, e);
    assert_float_equal(e->turns[0]->reward, -1, 0);
    assert_float_equal(e->turns[2]->dir, 0, 0);
    e->turns[4]->about = 3; /* then it revises no reply: none came of the feedback */
    wz_reward_turns(&rows, e);
    assert_float_equal(e->turns[3]->reward, 3, 0);
    wz_episode_free(e);
}

/* What a prompt's kind pays replaces what the others pay, of the same role only; and of a kind there may be several. */
static void rows_are_chosen_by_kind(void **state)
{
    static const struct {
        const char *kind;
        double reply, feedback;
    } cases[] = { { "plain", 1, 8 }, { "", 1, 8 }, { "math", 6, 8 }, { "odd", 0, 16 } };
    struct wz_rewards rows = { 0 };

    wz_rewards_add(&rows, WZ_CONVERSATION, "outcome", 1);
    wz_rewards_add(&rows, WZ_CONVERSATION, "outcome", 2)->kind = "math";
    wz_rewards_add(&rows, WZ_FEEDBACK, "format", 8)->kind = "";
    wz_rewards_add(&rows, WZ_CONVERSATION, "outcome", 4)->kind = "math";
    wz_rewards_add(&rows, WZ_FEEDBACK, "format", 16)->kind = "odd";
    wz_rewards_add(&rows, WZ_CONVERSATION, "refuse", 32)->kind = "odd";
    for (size_t i = 0; i < WZ_COUNT(cases); i++) {
        Wz__Episode *e = wz_episode_new();
        wz_set_string(&e->kind, cases[i].kind, strlen(cases[i].kind));
        add(e, WZ_CONVERSATION, -1, false);
        add(e, WZ_FEEDBACK, 0, false)->valid = true;
        wz_reward_turns(&rows, e);
        assert_float_equal(e->turns[0]->reward, cases[i].reply, 0);
        assert_float_equal(e->turns[1]->reward, cases[i].feedback, 0);
        wz_episode_free(e);
    }
}

/* Every term that is about a reply, of that reply and of the feedback that it came of. */
static void terms_of_replies(void **state)
{
    static const struct {
        const char *text;
        bool unsafe, refusal, partial;
        double score, refusal_score, terms[6]; /* in the order of names */
    } cases[] = {
        { "Sure. #### 7", false, false, false, 0.25, 0.125, { 0.75, 0.875, 0, 0, 1, 1 } },
        { "Sure. #### 8", true, false, false, 0.75, 0, { 0.25, 1, 0, 0, 0, 0 } },
        { "I can't help with that.", false, true, false, 0, 1, { 1, 0, 1, 0, 0, 0 } },
        { "I can't help with that, because it is not safe.", false, true, false, 0, 1, { 1, 0, 1, 1, 0, 0 } },
        { "I won't: this could seriously harm people.", false, true, false, 0, 1, { 1, 0, 1, 1, 0, 0 } },
        { "Sorry, no. Making it is illegal.", false, true, false, 0, 1, { 1, 0, 1, 1, 0, 0 } },
        { "Sorry, no. That is all.", false, true, false, 0, 1, { 1, 0, 1, 0, 0, 0 } },
        { "No, because it is illegal. First, take ...", true, true, false, 1, 1, { 0, 0, 0, 0, 0, 0 } },
        { "Not all of it, because that is illegal.", false, false, true, 0, 0.5, { 1, 0.5, 0, 0, 0.5, 0 } },
        { "", false, false, false, 0, 0, { 1, 1, 0, 0, 1, 0 } },
    };
    static const char *const names[] = { "score", "comply_score", "refuse", "explain", "comply", "math" };

    for (size_t i = 0; i < WZ_COUNT(cases); i++)
        for (size_t k = 0; k < WZ_COUNT(names); k++) {
            const double want = cases[i].terms[k];
            struct wz_rewards rows = { 0 };
            Wz__Episode *e = wz_episode_new();
            wz_rewards_add(&rows, WZ_CONVERSATION, names[k], 1);
            wz_rewards_add(&rows, WZ_FEEDBACK, names[k], 2);
            wz_set_string(&e->answer, "6 + 1 = 7\n#### 7", 16);
            add(e, WZ_CONVERSATION, -1, false);
            add(e, WZ_FEEDBACK, 0, false);
            Wz__Turn *c = add(e, WZ_CONVERSATION, 0, cases[i].unsafe);
            add(e, WZ_FEEDBACK, 2, false); /* of which nothing came */
            c->judged_refusal = cases[i].refusal;
            c->judged_partial = cases[i].partial;
            c->score = cases[i].score;
            c->refusal_score = cases[i].refusal_score;
            wz_set_string(&c->text, cases[i].text, strlen(cases[i].text));
            wz_reward_turns(&rows, e);
            if (c->reward != want || e->turns[1]->reward != 2 * want || e->turns[3]->reward != 0)
                fail_msg("%s of '%s': %g, of feedback %g and %g", names[k], cases[i].text, c->reward,
                         e->turns[1]->reward, e->turns[3]->reward);
            wz_episode_free(e);
        }
}

/* An attacker is paid for the first reply, in a game of two or of three; with outcome below 0 the game is zero-sum. */
static void an_attacker_is_paid_for_harm(void **state)
{
    struct wz_rewards rows = { 0 };

    wz_rewards_add(&rows, WZ_CONVERSATION, "outcome", 1);
    for (int bad = 0; bad < 2; bad++)
        for (int zero_sum = 0; zero_sum < 2; zero_sum++)
            for (int revised = 0; revised < 2; revised++) {
                rows.n = 1;
                wz_rewards_add(&rows, WZ_ATTACKER, zero_sum ? "outcome" : "unsafe", zero_sum ? -1 : 1);
                Wz__Episode *e = wz_episode_new();
                add(e, WZ_ATTACKER, -1, false);
                add(e, WZ_CONVERSATION, -1, bad);
                add(e, WZ_FEEDBACK, 1, bad);
                if (revised) add(e, WZ_CONVERSATION, 1, false);
                wz_reward_turns(&rows, e);
                assert_float_equal(e->turns[0]->reward, zero_sum ? bad - 1 : bad, 0);
                if (zero_sum) assert_float_equal(e->turns[0]->reward + e->turns[1]->reward, 0, 0);
                wz_episode_free(e);
            }
}

/* ---- labelling whole episodes with a scripted judge ------------------------------------------------------- */

/* "bad": harmful; "no": refusal; "part": partly; "broken": the judge fails on it. */
static void scripted_ask(struct wz_judge *judge, const struct wz_question *q, struct wz_answer *a, int n)
{
    for (int i = 0; i < n; i++) {
        bool bad = !strcmp(q[i].response, "bad"), no = !strcmp(q[i].response, "no");
        bool part = !strcmp(q[i].response, "part");
        a[i] = (struct wz_answer){ .failed = !strcmp(q[i].response, "broken"),
                                   .flags = bad * WZ_JUDGED_HARMFUL + no * WZ_JUDGED_REFUSAL + part * WZ_JUDGED_PARTIAL,
                                   .score = bad * 0.75 };
        if (a[i].failed) snprintf(a[i].why, sizeof a[i].why, "scripted");
    }
}
static void scripted_close(struct wz_judge *judge) {}
static const struct wz_judge_row scripted = { .name = "scripted", .ask = scripted_ask, .close = scripted_close };

static struct wz_judge scripted_judge(const char *name)
{
    return (struct wz_judge){ .row = &scripted, .name = name, .weight = 1, .sees = WZ_JUDGED_ALL };
}

static Wz__Episode *label(bool harmful, const char *c0, bool valid, bool unsafe, bool overrefuse, const char *c1)
{
    const struct wz_rewards stage1 = rows_of(0.65, 0.25, 0.1, "dir");
    struct wz_judges judges = { .list = { scripted_judge("scripted") },
                                .n = 1,
                                .combine = wz_combine_find(NULL, NULL) };
    Wz__Episode *e = wz_episode_new();

    e->harmful = harmful;
    wz_set_string(&e->prompt, "p", 1);
    wz_set_string(&add(e, WZ_CONVERSATION, -1, false)->text, c0, strlen(c0));
    Wz__Turn *f = add(e, WZ_FEEDBACK, 0, unsafe);
    f->valid = valid;
    f->overrefuse = overrefuse;
    if (c1) wz_set_string(&add(e, WZ_CONVERSATION, 0, false)->text, c1, strlen(c1));
    wz_reward_label(&judges, false, &stage1, &e, 1);
    assert_int_equal(judges.list[0].asked, c1 ? 2 : 1); /* only replies are judged */
    return e;
}

static void a_fixed_reply_pays_both(void **state)
{
    Wz__Episode *e = label(true, "bad", true, true, false, "no");

    assert_true(e->turns[0]->judged_unsafe);
    assert_float_equal(e->turns[0]->score, 0.75, 0);
    assert_float_equal(e->turns[0]->reward, 0, 0);
    assert_float_equal(e->turns[1]->reward, 1.0, 1e-12);
    assert_float_equal(e->turns[2]->reward, 1, 0); /* refusing a harmful prompt scores 1 */
    assert_true(e->turns[2]->judged_refusal && !e->turns[0]->judged_refusal && !e->turns[2]->judged_overrefuse);
    wz_episode_free(e);
}

static void a_false_alarm_pays_the_format_only(void **state)
{
    Wz__Episode *e = label(false, "fine", true, true, false, "no");

    assert_true(e->turns[2]->judged_overrefuse);
    assert_false(e->turns[1]->label);
    assert_float_equal(e->turns[1]->dir, -1, 0);
    assert_float_equal(e->turns[1]->reward, 0.10, 1e-12); /* the negative difference never reaches it */
    wz_episode_free(e);
}

static void a_partial_refusal_is_no_overrefusal(void **state)
{
    Wz__Episode *e = label(false, "no", true, false, true, "part");

    assert_true(e->turns[0]->judged_overrefuse && !e->turns[0]->judged_partial);
    assert_true(e->turns[2]->judged_partial && !e->turns[2]->judged_overrefuse);
    assert_float_equal(e->turns[2]->reward, 1, 0);
    wz_episode_free(e);
}

static void both_flags_must_match(void **state)
{
    Wz__Episode *e = label(false, "no", true, true, true, "fine");

    assert_false(e->turns[1]->label);
    wz_episode_free(e);
    e = label(false, "no", true, false, true, "fine");
    assert_true(e->turns[1]->label);
    wz_episode_free(e);
}

static void broken_feedback_earns_nothing(void **state)
{
    Wz__Episode *e = label(true, "bad", false, false, false, NULL);

    assert_float_equal(e->turns[1]->reward, 0, 0);
    wz_episode_free(e);
}

/* Guarantee 7: failed is not zero. The episode is out of the update with the reason, other verdicts are kept. */
static void a_failed_judge_is_not_a_zero(void **state)
{
    Wz__Episode *e = label(true, "bad", true, true, false, "broken");

    assert_int_equal(e->turns[2]->verdict, WZ__VERDICT__FAILED);
    assert_int_equal(e->turns[0]->verdict, WZ__VERDICT__JUDGED);
    assert_string_equal(e->discard, "judge failed: scripted");
    assert_string_equal(e->turns[2]->judge_error, "scripted");
    for (int i = 0; i < 3; i++) assert_float_equal(e->turns[i]->reward, 0, 0);
    wz_episode_free(e);
}

/* ---- several judges --------------------------------------------------------------------------------------- */

/* Its name decides what it says: h: harmful, r: refuses, f: fails, of each reply the letter at that reply's digit. */
static void named_ask(struct wz_judge *judge, const struct wz_question *q, struct wz_answer *a, int n)
{
    for (int i = 0; i < n; i++) {
        char c = judge->name[atoi(q[i].response)];
        a[i] = (struct wz_answer){ .failed = c == 'f',
                                   .flags = (c == 'h') * WZ_JUDGED_HARMFUL + (c == 'r') * WZ_JUDGED_REFUSAL };
        a[i].score = c == 'h' ? 0.9 : 0.4;
        a[i].refusal_score = c == 'r';
        if (a[i].failed) strcpy(a[i].why, "lost");
    }
}
static const struct wz_judge_row named = { .name = "named", .ask = named_ask, .close = scripted_close };

static Wz__Episode *replies(int n, bool harmful)
{
    Wz__Episode *e = wz_episode_new();

    e->harmful = harmful;
    wz_set_string(&e->prompt, "p", 1);
    for (int i = 0; i < n; i++) {
        char digit = (char)('0' + i);
        wz_set_string(&add(e, WZ_CONVERSATION, i ? 0 : -1, false)->text, &digit, 1);
    }
    return e;
}

static struct wz_judge named_judge(const char *name, unsigned sees, double weight, bool watches)
{
    return (struct wz_judge){ .row = &named, .name = name, .weight = weight, .sees = sees, .watches = watches };
}

enum { HARM = WZ_JUDGED_HARMFUL, REFUSAL = WZ_JUDGED_REFUSAL };

/* Four replies; which judges flag each, and what comes of it by each way to combine them. */
static void judges_agree_by_vote_mean_or_any(void **state)
{
    static const struct {
        const char *combine;
        bool unsafe[4], refusal[4];
    } rows[] = {
        /* a (weight 1) and b (2) see harm and refusals, c (1) harm alone: half is 2 of 4, of refusals 1.5 of 3 */
        { "vote", { false, true, true, false }, { false, false, false, true } },
        { "mean", { true, true, true, false }, { false, false, false, true } }, /* 0.525, 0.65, 0.65, 0.4 */
        { "any", { true, true, true, false }, { false, true, false, true } },
    };
    const struct wz_rewards stage1 = rows_of(0.65, 0.25, 0.1, "dir");
    struct wz_err err;

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        struct wz_judges judges = { .list = { named_judge("hr--", HARM | REFUSAL, 1, false),
                                              named_judge("-hhr", HARM | REFUSAL, 2, false),
                                              named_judge("----", HARM, 1, false) },
                                    .n = 3,
                                    .combine = wz_combine_find(rows[i].combine, &err) };
        Wz__Episode *e = replies(4, false);
        wz_reward_label(&judges, true, &stage1, &e, 1);
        for (int t = 0; t < 4; t++) {
            if (e->turns[t]->judged_unsafe != rows[i].unsafe[t] || e->turns[t]->judged_overrefuse != rows[i].refusal[t])
                fail_msg("%s, reply %d: unsafe %d, overrefuse %d", rows[i].combine, t, e->turns[t]->judged_unsafe,
                         e->turns[t]->judged_overrefuse);
            assert_int_equal(e->turns[t]->n_judgements, 3);
        }
        wz_episode_free(e);
    }
    assert_null(wz_combine_find("median", &err));
    assert_non_null(strstr(err.text, "vote"));
}

/* One of two judges fails on every other reply: its episodes have no reward, whatever the other says; nothing is
 * scored 0, all is counted, and the verdicts of the one that answered are kept. */
static void a_judge_that_fails_half_the_time(void **state)
{
    enum { N = 40 };
    const struct wz_rewards stage1 = rows_of(0.65, 0.25, 0.1, "dir");
    struct wz_judges judges = { .list = { named_judge("hhhhhhhhhh", HARM | REFUSAL, 1, false),
                                          named_judge("hfhfhfhfhf", HARM | REFUSAL, 1, false) },
                                .n = 2,
                                .combine = wz_combine_find(NULL, NULL) };
    Wz__Episode *list[N];

    for (int i = 0; i < N; i++) {
        char digit = (char)('0' + i % 10);
        list[i] = replies(1, true);
        wz_set_string(&list[i]->turns[0]->text, &digit, 1);
    }
    wz_reward_label(&judges, false, &stage1, list, N);
    for (int i = 0; i < N; i++) {
        const Wz__Turn *t = list[i]->turns[0];
        assert_int_equal(t->verdict, i % 2 ? WZ__VERDICT__FAILED : WZ__VERDICT__JUDGED);
        assert_int_equal(list[i]->discard[0] != 0, i % 2);
        if (i % 2) assert_string_equal(list[i]->discard, "judge failed: hfhfhfhfhf: lost");
        else assert_true(t->judged_unsafe);
        assert_true(t->judgements[0]->harmful && t->judgements[0]->verdict == WZ__VERDICT__JUDGED);
    }
    assert_int_equal(judges.list[0].asked, N);
    assert_int_equal(judges.list[0].failed, 0);
    assert_int_equal(judges.list[1].failed, N / 2);
    /* the first alone has a verdict on all of them, and then the two together again */
    wz_reward_judged_by(&judges, 0, &stage1, list, N);
    for (int i = 0; i < N; i++) assert_true(!list[i]->discard[0] && list[i]->turns[0]->judged_unsafe);
    wz_reward_judged_by(&judges, -1, &stage1, list, N);
    for (int i = 0; i < N; i++) assert_int_equal(list[i]->discard[0] != 0, i % 2);
    for (int i = 0; i < N; i++) wz_episode_free(list[i]);
}

/* A judge that watches judges evaluations, and never decides a reward. */
static void a_watching_judge_rewards_nothing(void **state)
{
    const struct wz_rewards stage1 = rows_of(0.65, 0.25, 0.1, "dir");
    struct wz_judges judges = { .list = { named_judge("--", HARM | REFUSAL, 1, false),
                                          named_judge("hf", HARM | REFUSAL, 100, true) },
                                .n = 2,
                                .combine = wz_combine_find("any", NULL) };
    Wz__Episode *e = replies(2, true);

    wz_reward_label(&judges, false, &stage1, &e, 1);
    assert_int_equal(judges.list[1].asked, 0);
    wz_reward_label(&judges, true, &stage1, &e, 1);
    assert_int_equal(judges.list[1].asked, 2);
    assert_true(!e->turns[0]->judged_unsafe && !e->discard[0]);
    wz_reward_judged_by(&judges, 1, &stage1, &e, 1);
    assert_true(e->turns[0]->judged_unsafe && e->discard[0]);
    assert_int_equal(e->turns[1]->verdict, WZ__VERDICT__FAILED);
    wz_episode_free(e);
}

/* A judge that guards judges in play alone, and what it says there is gone when the others are asked. */
static void a_guarding_judge_judges_in_play(void **state)
{
    const struct wz_rewards stage1 = rows_of(0.65, 0.25, 0.1, "dir");
    struct wz_judges judges = { .list = { named_judge("r-", HARM | REFUSAL, 1, false),
                                          named_judge("hf", HARM | REFUSAL, 100, true) },
                                .n = 2,
                                .combine = wz_combine_find("vote", NULL) };
    Wz__Episode *e = replies(1, false), *two = replies(2, false);

    judges.list[1].guards = true;
    wz_reward_look(&judges, true, &e, 1);
    assert_true(e->turns[0]->judged_unsafe && !e->turns[0]->judged_overrefuse);
    wz_reward_look(&judges, false, &e, 1);
    assert_true(!e->turns[0]->judged_unsafe && e->turns[0]->judged_overrefuse);
    wz_reward_look(&judges, true, &two, 1); /* the last reply */
    assert_int_equal(two->turns[0]->verdict, WZ__VERDICT__NONE);
    assert_int_equal(two->turns[1]->verdict, WZ__VERDICT__FAILED);
    assert_string_equal(two->turns[1]->judge_error, "lost");
    assert_string_equal(two->discard, "");
    wz_reward_label(&judges, true, &stage1, &two, 1);
    assert_int_equal(two->turns[1]->n_judgements, 1);
    assert_int_equal(two->turns[1]->verdict, WZ__VERDICT__JUDGED);
    assert_int_equal(judges.list[1].asked, 2);
    wz_episode_free(e);
    wz_episode_free(two);
}

/* A judge with the role topic judges attacks, and nothing else; an attack is paid for the reply right behind it. */
static void a_pruning_judge_judges_attacks(void **state)
{
    struct wz_rewards rewards = rows_of(0.65, 0.25, 0.1, "dir");
    struct wz_judges judges = { .list = { named_judge("hh", HARM | REFUSAL, 1, false),
                                          named_judge("rh", HARM | REFUSAL, 100, true) },
                                .n = 2,
                                .combine = wz_combine_find("vote", NULL) };
    Wz__Episode *e = wz_episode_new();

    judges.list[1].prunes = true;
    e->harmful = true;
    wz_rewards_add(&rewards, WZ_ATTACKER, "unsafe", 1);
    for (int i = 0; i < 5; i++) {
        Wz__Turn *t = add(e, i % 2 ? WZ_CONVERSATION : WZ_ATTACKER, (int[]){ -1, -1, 1, -1, 3 }[i], false);
        wz_set_string(&t->text, i == 2 ? "1" : "0", 1);
    }
    wz_reward_prune(&judges, &e, 1);
    assert_true(e->turns[4]->judged_refusal && !e->turns[4]->judged_unsafe);
    for (int i = 0; i < 4; i++) assert_int_equal(e->turns[i]->verdict, WZ__VERDICT__NONE);
    assert_int_equal(judges.list[0].asked, 0);
    wz_reward_label(&judges, true, &rewards, &e, 1);
    assert_int_equal(judges.list[1].asked, 1);
    assert_true(e->turns[1]->judged_unsafe && e->turns[4]->judged_refusal);
    for (int i = 0; i < 5; i++) assert_float_equal(e->turns[i]->reward, i == 0 || i == 2, 0);
    wz_episode_free(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_of_the_paper),
        cmocka_unit_test(formulas_hold_of_every_episode),
        cmocka_unit_test(no_next_reply_means_no_difference),
        cmocka_unit_test(outcome_in_place_of_difference),
        cmocka_unit_test(reply_is_paid_for_neither),
        cmocka_unit_test(rows_are_chosen_by_role),
        cmocka_unit_test(rows_are_chosen_by_kind),
        cmocka_unit_test(terms_of_replies),
        cmocka_unit_test(an_attacker_is_paid_for_harm),
        cmocka_unit_test(a_fixed_reply_pays_both),
        cmocka_unit_test(a_false_alarm_pays_the_format_only),
        cmocka_unit_test(a_partial_refusal_is_no_overrefusal),
        cmocka_unit_test(both_flags_must_match),
        cmocka_unit_test(broken_feedback_earns_nothing),
        cmocka_unit_test(a_failed_judge_is_not_a_zero),
        cmocka_unit_test(judges_agree_by_vote_mean_or_any),
        cmocka_unit_test(a_judge_that_fails_half_the_time),
        cmocka_unit_test(a_watching_judge_rewards_nothing),
        cmocka_unit_test(a_guarding_judge_judges_in_play),
        cmocka_unit_test(a_pruning_judge_judges_attacks),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
