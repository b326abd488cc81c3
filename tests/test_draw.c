/* Guarantee: the prompts of a step are a pure function of (seed, stage, step): a kind's share holds at every prefix,
 * and each epoch of a kind has each of its prompts once, in an order of its own. A second implementation agrees. */
#include "test.h"

#include <math.h>

#include "run/job.h"

enum { SIZES = 3, BATCH = 5, STEPS = 40, N = BATCH * STEPS };
static const int sizes[SIZES] = { 7, 5, 3 }, sixteenths[SIZES] = { 8, 5, 3 };
static const char *const names[SIZES] = { "A", "B", "C" };
static struct wz_prompt prompts[15];
static struct wz_prompts sets[2];

/* Prompts 0 to 6 are of kind A, 7 to 11 of B, 12 to 14 of C, in two files. */
static int setup(void **state)
{
    for (int i = 0; i < 15; i++)
        prompts[i] = (struct wz_prompt){ "text", "id", names[i < 7 ? 0 : i < 12 ? 1 : 2], "", WZ_BENIGN, "", NULL };
    sets[0] = (struct wz_prompts){ .list = prompts, .n = 9 };
    sets[1] = (struct wz_prompts){ .list = prompts + 9, .n = 6 };
    return 0;
}

static struct wz_recipe_share mix[SIZES];
static char name[] = "s";
static int samples = 1; /* per prompt */

static struct wz_recipe_stage stage_of(bool mixed)
{
    for (int k = 0; k < SIZES; k++)
        mix[k] = (struct wz_recipe_share){ (char *)(uintptr_t)names[k], 2.0 * sixteenths[k] };
    return (struct wz_recipe_stage){
        .name = name, .batch = BATCH, .samples_per_prompt = samples, .mix = mix, .n_mix = mixed ? SIZES : 0
    };
}

/* The numbers of the prompts of all steps. */
static void draw(int *out, bool mixed, int stage, uint64_t seed)
{
    const struct wz_prompt *list[BATCH];
    struct wz_recipe_stage recipe = stage_of(mixed);
    struct wz_err err;
    struct wz_draw *d = wz_draw_create(sets, 2, &recipe, stage, seed, &err);

    if (!d) fail_msg("%s", err.text);
    for (int s = 0; s < STEPS; s++) {
        wz_draw_next(d, list, BATCH);
        for (int i = 0; i < BATCH; i++) out[s * BATCH + i] = (int)(list[i] - prompts);
    }
    wz_draw_destroy(d);
}

/* The j-th draw of kind k, which has n prompts: Fisher and Yates from the end, in whole numbers. */
static int nth(int j, uint32_t k, int n, uint32_t stage, uint64_t seed)
{
    int order[15], epoch = j / n;

    for (int i = 0; i < n; i++) order[i] = i;
    for (int last = n - 1; last >= 1; last--) {
        struct wz_key key = { seed, WZ_RNG_SHUFFLE, stage, k, (uint32_t)epoch, (uint32_t)last };
        uint32_t other = wz_below(key, (uint32_t)last + 1);
        int at_last = order[last];
        order[last] = order[other];
        order[other] = at_last;
    }
    return order[j % n];
}

static void a_second_implementation_agrees(void **state)
{
    int got[N], used[SIZES] = { 0 };

    draw(got, true, 3, 21);
    for (int i = 0; i < N; i++) {
        int best = 0, first = 0;
        for (int k = 1; k < SIZES; k++) /* furthest behind its share, in sixteenths; of equals the first */
            if (sixteenths[k] * (i + 1) - 16 * used[k] > sixteenths[best] * (i + 1) - 16 * used[best]) best = k;
        for (int k = 0; k < best; k++) first += sizes[k];
        assert_int_equal(got[i], first + nth(used[best]++, (uint32_t)best, sizes[best], 3, 21));
        for (int k = 0; k < SIZES; k++) assert_true(abs(sixteenths[k] * (i + 1) - 16 * used[k]) < 16);
    }
    draw(got, false, 0, 4);
    for (int i = 0; i < N; i++) assert_int_equal(got[i], nth(i, 0, 15, 0, 4));
}

/* BATCH samples of each prompt: the prompts are those of a step of one. */
static void samples_of_a_prompt_are_neighbours(void **state)
{
    int one[N], got[N];

    draw(one, true, 3, 21);
    samples = BATCH;
    draw(got, true, 3, 21);
    samples = 1;
    for (int i = 0; i < N; i++) assert_int_equal(got[i], one[i / BATCH]);
}

/* Every prompt once in an epoch; epochs, stages and seeds have orders of their own. */
static void epochs_are_permutations(void **state)
{
    int got[N], other[N], same = 0;

    draw(got, false, 0, 4);
    for (int epoch = 0; epoch < N / 15; epoch++) {
        int times[15] = { 0 };
        for (int i = 0; i < 15; i++) times[got[epoch * 15 + i]]++;
        for (int i = 0; i < 15; i++) assert_int_equal(times[i], 1);
        for (int i = 0; epoch && i < 15; i++) same += got[epoch * 15 + i] == got[i];
    }
    assert_in_range(same, 1, 2 * N / 15); /* one place in fifteen by chance: 12 */
    draw(other, false, 1, 4);
    assert_int_not_equal(memcmp(got, other, sizeof got), 0);
    draw(other, false, 0, 5);
    assert_int_not_equal(memcmp(got, other, sizeof got), 0);
    draw(other, false, 0, 4);
    assert_int_equal(memcmp(got, other, sizeof got), 0);
}

/* Each prompt is the first of an epoch equally often, over 3000 seeds: 200 times, more or less by 4 deviations. */
static void orders_are_uniform(void **state)
{
    int times[15] = { 0 }, got[N];

    for (uint64_t seed = 0; seed < 3000; seed++) {
        draw(got, false, 0, seed);
        times[got[0]]++;
    }
    for (int i = 0; i < 15; i++) assert_true(fabs(times[i] - 200.0) < 4 * sqrt(200 * 14 / 15.0));
}

static void a_kind_that_is_missing(void **state)
{
    struct wz_recipe_stage recipe = stage_of(true);
    struct wz_err err = { "" };

    mix[1].kind = (char[]){ "D" };
    assert_null(wz_draw_create(sets, 2, &recipe, 0, 1, &err));
    assert_non_null(strstr(err.text, "stage s: mix: no training prompt is of kind 'D'"));
}

/* A choice keyed by texts: whatever the order and number of the files, and each prompt as likely as another. */
static void choices_do_not_depend_on_files(void **state)
{
    char texts[15][8];
    int n, first[15] = { 0 };

    for (int i = 0; i < 15; i++) {
        snprintf(texts[i], sizeof texts[i], "text %d", i);
        prompts[i].text = texts[i];
    }
    for (uint64_t seed = 0; seed < 1500; seed++) {
        struct wz_prompt turned[15];
        for (int i = 0; i < 15; i++) turned[i] = prompts[14 - i];
        const struct wz_prompts one = { .list = turned, .n = 15 };
        const struct wz_prompt **a = wz_prompts_keyed(sets, 2, seed, &n), **b = wz_prompts_keyed(&one, 1, seed, &n);
        assert_int_equal(n, 15);
        for (int i = 0; i < n; i++) assert_ptr_equal(a[i]->text, b[i]->text);
        first[a[0] - prompts]++;
        free(a);
        free(b);
    }
    for (int i = 0; i < 15; i++) assert_true(fabs(first[i] - 100.0) < 4 * sqrt(100 * 14 / 15.0));
}

/* RECAP: a prompt of a step is prefilled with probability alpha, in all of its samples or in none, whatever the step
 * before; one of an evaluation always is. */
static void prompts_are_prefilled_alike(void **state)
{
    enum { GROUPS = 4000, PEERS = 4 };
    struct wz_prefill how = { .text = "x", .alpha = 0.3 };
    struct wz_prompt p = prompts[0];
    int given = 0, again = 0, differ = 0;

    assert_false(wz_prompt_prefilled(&p, 1, 0, 0, 1));
    assert_false(wz_prompt_prefilled(&p, 1, -1, 0, 1));
    p.prefill = &how;
    for (int g = 0; g < GROUPS; g++) {
        const bool first = wz_prompt_prefilled(&p, 9, 5, g * PEERS, PEERS);
        for (int i = 1; i < PEERS; i++) assert_int_equal(wz_prompt_prefilled(&p, 9, 5, g * PEERS + i, PEERS), first);
        given += first;
        again += first && wz_prompt_prefilled(&p, 9, 6, g * PEERS, PEERS);
        differ += first != wz_prompt_prefilled(&p, 10, 5, g * PEERS, PEERS);
        assert_true(wz_prompt_prefilled(&p, 9, -1, g, 1));
    }
    assert_float_equal(given / (double)GROUPS, 0.3, 0.03);
    assert_float_equal(again / (double)given, 0.3, 0.05); /* of those of one step so many in the next */
    assert_float_equal(differ / (double)GROUPS, 2 * 0.3 * 0.7, 0.04);
    for (int alpha = 0; alpha < 2; alpha++) {
        how.alpha = alpha;
        for (int i = 0; i < GROUPS; i++) assert_int_equal(wz_prompt_prefilled(&p, 9, 5, i, 1), alpha);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_second_implementation_agrees), cmocka_unit_test(samples_of_a_prompt_are_neighbours),
        cmocka_unit_test(epochs_are_permutations),        cmocka_unit_test(orders_are_uniform),
        cmocka_unit_test(prompts_are_prefilled_alike),    cmocka_unit_test(a_kind_that_is_missing),
        cmocka_unit_test(choices_do_not_depend_on_files),
    };

    return cmocka_run_group_tests(tests, setup, NULL);
}
