/* The paper's arithmetic (section 2): every reachable value of R_f in stage 1, stage 2 and the ablation; labels;
 * DIR; the third state. */
#include "tests/test.h"

#include <math.h>

#include "reward/reward.h"

static const struct wz_coefficients stage1 = { 0.65, 0.25, 0.1, false }, stage2 = { 0.65, 0, 0.1, false };

/* Section 2.4, the rows of the table: valid, label, DIR -> R_f. */
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

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        double dir, r0 = rows[i].dir<0, r1 = rows[i].dir> 0;
        assert_float_equal(wz_reward_feedback(&stage1, rows[i].valid, rows[i].label, r0, true, r1, &dir), rows[i].a,
                           1e-12);
        assert_float_equal(dir, rows[i].dir, 0);
        assert_float_equal(wz_reward_feedback(&stage2, rows[i].valid, rows[i].label, r0, true, r1, &dir), rows[i].b,
                           1e-12);
    }
}

static void no_next_reply_means_no_difference(void **state)
{
    double dir;

    for (int r0 = 0; r0 < 2; r0++) {
        assert_float_equal(wz_reward_feedback(&stage1, true, true, r0, false, 1, &dir), 0.35, 1e-12);
        assert_float_equal(dir, 0, 0);
    }
}

/* The ablation pays the next reply's outcome instead of the difference. */
static void outcome_in_place_of_difference(void **state)
{
    const struct wz_coefficients k = { 0.65, 0.25, 0.1, true };
    double dir;

    assert_float_equal(wz_reward_feedback(&k, true, true, 1, true, 1, &dir), 1.0, 1e-12);
    assert_float_equal(wz_reward_feedback(&k, true, true, 1, false, 1, &dir), 0.35, 1e-12);
    assert_float_equal(wz_reward_feedback(&k, true, false, 1, true, 1, &dir), 0.75,
                       1e-12); /* a false alarm that did no harm is paid */
}

static void reply_is_paid_for_neither(void **state)
{
    assert_float_equal(wz_reward_conversation(false, false), 1, 0);
    assert_float_equal(wz_reward_conversation(true, false), 0, 0);
    assert_float_equal(wz_reward_conversation(false, true), 0, 0);
    assert_float_equal(wz_reward_conversation(true, true), 0, 0);
}

/* ---- labelling whole episodes with a scripted judge ------------------------------------------------------- */

/* "bad": harmful; "no": refusal; "broken": the judge fails on it. */
static void scripted_ask(struct wz_judge *judge, const struct wz_question *q, struct wz_answer *a, int n)
{
    for (int i = 0; i < n; i++) {
        a[i] = (struct wz_answer){ .failed = !strcmp(q[i].response, "broken"),
                                   .harmful = !strcmp(q[i].response, "bad"),
                                   .refusal = !strcmp(q[i].response, "no") };
        if (a[i].failed) snprintf(a[i].why, sizeof a[i].why, "scripted");
    }
}
static const struct wz_judge_row scripted = { "scripted", NULL, scripted_ask, NULL };

static Wz__Turn *add(Wz__Episode *e, const char *text, bool valid, bool unsafe, bool overrefuse)
{
    Wz__Turn *t = wz_episode_turn(e);

    t->agent = (uint32_t)(e->n_turns - 1) % 2;
    wz_set_string(&t->text, text, strlen(text));
    t->valid = valid;
    t->unsafe = unsafe;
    t->overrefuse = overrefuse;
    return t;
}

static Wz__Episode *label(bool harmful, const char *c0, bool valid, bool unsafe, bool overrefuse, const char *c1)
{
    struct wz_judge judge = { .row = &scripted };
    Wz__Episode *e = wz_episode_new();

    e->harmful = harmful;
    wz_set_string(&e->prompt, "p", 1);
    add(e, c0, false, false, false);
    add(e, "f", valid, unsafe, overrefuse);
    if (c1) add(e, c1, false, false, false);
    wz_reward_label(&judge, &stage1, &e, 1);
    return e;
}

static void a_mended_reply_pays_both(void **state)
{
    Wz__Episode *e = label(true, "bad", true, true, false, "no");

    assert_true(e->turns[0]->judged_unsafe);
    assert_float_equal(e->turns[0]->reward, 0, 0);
    assert_float_equal(e->turns[1]->reward, 1.0, 1e-12);
    assert_float_equal(e->turns[2]->reward, 1, 0); /* refusing a harmful prompt scores 1 */
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

/* Law 7: failed is not zero. The episode is out of the update, says why, and the judge's other answers are kept. */
static void a_failed_judge_is_not_a_zero(void **state)
{
    Wz__Episode *e = label(true, "bad", true, true, false, "broken");

    assert_int_equal(e->turns[2]->verdict, WZ__VERDICT__FAILED);
    assert_int_equal(e->turns[0]->verdict, WZ__VERDICT__JUDGED);
    assert_string_equal(e->discard, "judge failed: scripted");
    assert_string_equal(e->turns[2]->judge_error, "scripted");
    wz_episode_free(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_of_the_paper),
        cmocka_unit_test(no_next_reply_means_no_difference),
        cmocka_unit_test(outcome_in_place_of_difference),
        cmocka_unit_test(reply_is_paid_for_neither),
        cmocka_unit_test(a_mended_reply_pays_both),
        cmocka_unit_test(a_false_alarm_pays_the_format_only),
        cmocka_unit_test(both_flags_must_match),
        cmocka_unit_test(broken_feedback_earns_nothing),
        cmocka_unit_test(a_failed_judge_is_not_a_zero),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
