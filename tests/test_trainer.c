/* REINFORCE++'s arithmetic (WaltzRL 2.3), held against numbers worked out by hand: returns with the penalty to
 * go, whitening over action tokens, the clipped slope, sample selection, the learning rate, and who owns which leaf. */
#include "tests/test.h"

#include <math.h>

#include "trainer/trainer.h"

static void penalty_is_summed_to_go(void **state)
{
    const float logp[3] = { -1, -2, -3 }, ref[3] = { -1.5f, -2, -2 };
    float a[3];

    wz_returns(1, 0.1, logp, ref, 3, a); /* log-ratios .5, 0, -1 */
    assert_float_equal(a[2], 1.1, 1e-6);
    assert_float_equal(a[1], 1.1, 1e-6);
    assert_float_equal(a[0], 1.05, 1e-6);
    wz_returns(0.35, 0.1, logp, NULL, 3, a);
    for (int i = 0; i < 3; i++) assert_float_equal(a[i], 0.35, 1e-6);
}

/* Two samples: returns {1, 1, 1} and {0}; mean .75, variance .1875 over the four tokens. A sample without tokens
 * counts for nothing. */
static void whitening_counts_tokens(void **state)
{
    const struct wz_outcome all[3] = { { .tokens = 3, .sum = 3, .squares = 3 }, { .tokens = 1 } };
    struct wz_moments m = wz_moments(all, 3);

    assert_float_equal(m.mean, 0.75, 1e-12);
    assert_float_equal(m.rstd, 1 / sqrt(0.1875), 1e-9);
    assert_float_equal(m.tokens, 4, 0);
    assert_float_equal(m.samples, 2, 0);
}

static void equal_returns_whiten_to_zero(void **state)
{
    const struct wz_outcome all[2] = { { .tokens = 4, .sum = 4, .squares = 4 },
                                       { .tokens = 2, .sum = 2, .squares = 2 } };
    struct wz_moments m = wz_moments(all, 2);

    assert_true(isfinite(m.rstd));
    assert_float_equal((1 - m.mean) * m.rstd, 0, 0);
    m = wz_moments(NULL, 0);
    assert_true(isfinite(m.rstd) && m.mean == 0);
}

static double slope(const char *loss, double now, double old, double advantage)
{
    const struct wz_learn how = { .epsilon = 0.2 };
    const struct wz_loss_token t = { now, old, 0, advantage, now - old };
    double value;

    return wz_loss_find(loss, NULL)->slope(&how, &t, &value);
}

static void slope_stops_where_the_clip_holds(void **state)
{
    assert_float_equal(slope("clip", -1, -1, 2), 2, 0);
    assert_float_equal(slope("clip", log(1.1), 0, 2), 2.2, 1e-12);
    assert_float_equal(slope("clip", log(1.3), 0, 2), 0, 0);         /* clipped: min() takes the constant */
    assert_float_equal(slope("clip", log(1.3), 0, -2), -2.6, 1e-12); /* worse than the clip: min() takes this */
    assert_float_equal(slope("clip", log(0.7), 0, -2), 0, 0);
    assert_float_equal(slope("clip", log(0.7), 0, 2), 1.4, 1e-12);
}

static void cross_entropy_is_the_likelihood_of_the_data(void **state)
{
    struct wz_err err;

    assert_float_equal(slope("cross_entropy", -3, -3, 1), 1, 0);
    assert_float_equal(slope("cross_entropy", -0.1, -9, 0.5), 0.5, 0); /* no ratio, no clip */
    assert_null(wz_loss_find("dpo", &err));
    assert_non_null(strstr(err.text, "expected one of clip, cispo, cross_entropy"));
}

static void rate_warms_up_and_falls(void **state)
{
    assert_float_equal(wz_learning_rate(1, 4, 0.1, 0, 100), 0.25, 1e-12);
    assert_float_equal(wz_learning_rate(1, 4, 0.1, 3, 100), 1, 1e-12);
    assert_float_equal(wz_learning_rate(1, 4, 0.1, 4, 100), 1, 1e-12);
    assert_float_equal(wz_learning_rate(1, 4, 0.1, 99, 100), 0.1, 1e-12);
    assert_float_equal(wz_learning_rate(1, 0, 0.1, 0, 1), 1, 1e-12);
    assert_float_equal(wz_learning_rate(1, 0.03, 0.1, 0, 100), 1, 1e-12);  /* never above the peak */
    assert_float_equal(wz_learning_rate(1, 4, 0.1, 150, 100), 0.1, 1e-12); /* nor up again behind the end */
}

static Wz__Episode *episode(int turns, uint32_t index)
{
    Wz__Episode *e = wz_episode_new();

    e->index = e->place = index;
    for (int i = 0; i < turns; i++) wz_episode_turn(e)->agent = (uint32_t)i % 2;
    return e;
}

static const struct wz_overlong *overlong;

static Wz__Turn *pick(Wz__Episode *e, int agent, bool feedback, double revision, uint64_t seed)
{
    const struct wz_learn how = { .pick = wz_sample_picks, .revision = revision, .overlong = overlong };
    struct wz_sample sample;

    return wz_samples_pick(&sample, &how, agent, feedback, seed, &e, 1) ? sample.turn : NULL;
}

/* Type B is type A where there was no revision; with one, about half of the samples each; feedback always f_0. */
static void samples_are_picked_as_the_paper_says(void **state)
{
    int last = 0;

    for (uint32_t i = 0; i < 1000; i++) {
        Wz__Episode *e = episode(3, i), *shorter = episode(2, i);
        Wz__Turn *c = pick(e, 0, false, 0.5, 7);
        assert_true(c == e->turns[0] || c == e->turns[2]);
        assert_ptr_equal(c, pick(e, 0, false, 0.5, 7));
        last += c == e->turns[2];
        assert_ptr_equal(pick(e, 1, true, 0.5, 7), e->turns[1]);
        assert_ptr_equal(pick(shorter, 0, false, 1, 7), shorter->turns[0]);
        assert_ptr_equal(pick(e, 0, false, 0, 7), e->turns[0]);
        assert_ptr_equal(pick(e, 0, false, 1, 7), e->turns[2]);
        wz_set_string(&e->discard, "judge failed", 12);
        assert_null(pick(e, 0, false, 0.5, 7));
        wz_episode_free(e), wz_episode_free(shorter);
    }
    assert_in_range(last, 430, 570);
}

/* What the context window cut is not trained on; the other turns of its agent are, by the same rule. */
static void turns_that_the_window_cut_are_not_picked(void **state)
{
    int seen[2] = { 0 };

    for (uint32_t i = 0; i < 1000; i++) {
        Wz__Episode *e = episode(7, i);
        e->turns[6]->finish_reason = WZ__FINISH_REASON__CONTEXT;
        e->turns[3]->finish_reason = WZ__FINISH_REASON__CONTEXT;
        assert_ptr_equal(pick(e, 0, false, 1, 7), e->turns[4]);
        assert_ptr_equal(pick(e, 0, false, 0, 7), e->turns[0]);
        const Wz__Turn *f = pick(e, 1, true, 0.5, 3);
        for (int k = 0; k < 2; k++) seen[k] += f == e->turns[k ? 5 : 1];
        for (int k = 0; k < 7; k++)
            e->turns[k]->finish_reason = k % 2 ? WZ__FINISH_REASON__CONTEXT : WZ__FINISH_REASON__LENGTH;
        assert_null(pick(e, 1, true, 0.5, 3));
        assert_ptr_equal(pick(e, 0, false, 1, 7), e->turns[6]);
        overlong = wz_overlong_find("drop", NULL);
        assert_null(pick(e, 0, false, 1, 7)); /* max_tokens ended them all */
        overlong = NULL;
        wz_episode_free(e);
    }
    assert_int_equal(seen[0] + seen[1], 1000);
    assert_in_range(seen[0], 430, 570);
}

/* Of at most 10 tokens the last 4 cost a quarter each; an id that was given is no token of the turn's. */
static void a_soft_penalty_grows_over_the_last_tokens(void **state)
{
    static const double costs[] = { 0, 0, 0, 0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1 };
    struct wz_learn how = { .pick = wz_sample_picks, .limit = 10, .cache = 4 };
    struct wz_sample s;

    for (const struct wz_overlong *row = wz_overlongs; row->name; row++)
        for (size_t n = 1; n < WZ_COUNT(costs); n++) {
            Wz__Episode *e = episode(1, 0);
            Wz__Turn *t = e->turns[0];
            t->given = 3;
            t->reward = 0.7;
            wz_turn_reserve(t, n + t->given);
            for (size_t k = 0; k < n + t->given; k++) wz_turn_add(t, 1, -1);
            how.overlong = row;
            assert_int_equal(wz_samples_pick(&s, &how, 0, false, 1, &e, 1), 1);
            assert_true(fabs(s.reward - 0.7 + (strcmp(row->name, "soft") ? 0 : costs[n])) < 1e-15);
            assert_true(s.tokens == (int)n && t->reward == 0.7);
            wz_episode_free(e);
        }
}

static void rounds_are_picked_uniformly(void **state)
{
    int seen[3] = { 0 };

    for (uint32_t i = 0; i < 3000; i++) {
        Wz__Episode *e = episode(7, i);
        const Wz__Turn *f = pick(e, 1, true, 0.5, 3);
        for (int k = 0; k < 3; k++) seen[k] += f == e->turns[2 * k + 1];
        wz_episode_free(e);
    }
    for (int k = 0; k < 3; k++) assert_in_range(seen[k], 880, 1120);
}

/* Owners cover the batch in order and agree with the leaves for every number of learners. */
static void leaves_have_owners_in_order(void **state)
{
    for (int batch = 1; batch < 70; batch += 7)
        for (int learners = 1; learners <= 8; learners *= 2)
            for (int i = 0; i < batch; i++) {
                int leaf = i * 8 / batch;
                assert_int_equal(wz_leaf_owner(i, batch, 8, learners), leaf * learners / 8);
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(penalty_is_summed_to_go),
        cmocka_unit_test(whitening_counts_tokens),
        cmocka_unit_test(equal_returns_whiten_to_zero),
        cmocka_unit_test(slope_stops_where_the_clip_holds),
        cmocka_unit_test(cross_entropy_is_the_likelihood_of_the_data),
        cmocka_unit_test(rate_warms_up_and_falls),
        cmocka_unit_test(samples_are_picked_as_the_paper_says),
        cmocka_unit_test(a_soft_penalty_grows_over_the_last_tokens),
        cmocka_unit_test(rounds_are_picked_uniformly),
        cmocka_unit_test(turns_that_the_window_cut_are_not_picked),
        cmocka_unit_test(leaves_have_owners_in_order),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
