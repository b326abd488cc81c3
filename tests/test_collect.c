/* Guarantee: dynamic sampling keeps the prompts whose samples some learning agent was rewarded differently for, in the
 * order in which they were drawn, draws as many others as are missing, as often as the recipe allows, and says which
 * samples are not trained on. Rewards are given; what is kept, dropped and drawn is worked out here a second time. */
#include "tests/test.h"

#include <math.h>

#include "run/stage.h"

enum { A, B, FROZEN, AGENTS, PROMPTS = 15, PEERS = 3, PLACES = 4, BATCH = PEERS * PLACES, MOST = 8 * BATCH };

static char names[AGENTS][4] = { "ann", "bob", "eve" }, yes[] = "dynamic", no[] = "plain", clip[] = "clip",
            ids[PROMPTS][4];
static struct wz_prompt list[PROMPTS];
static struct wz_prompts set = { .list = list, .n = PROMPTS };

/* What sample k of a prompt is worth to an agent; NaN: it was lost. Of ten prompts in a row: of 0 and 5 both agents'
 * samples differ, of 3 only ann's, of 6 only bob's; of 1 the frozen agent's; of 8 all but one are lost; the others are
 * alike. */
static double worth(int prompt, int k, int agent)
{
    const bool last = k == PEERS - 1;

    switch (prompt % 10) {
    case 0:
    case 5: return last ? 0.25 : 1;
    case 3: return agent == A && last;
    case 6: return agent == B && last;
    case 1: return agent == FROZEN && last;
    case 8: return k ? NAN : 1;
    }
    return 0.5;
}

/* ---- in the place of the ranks ------------------------------------------------------------------------------ */

static Wz__Episode *played[MOST];
static int n_played;

void __wrap_wz_stations_play(struct wz_job *job, const struct wz_batch_plan *plan, struct wz_held *held);
void __wrap_wz_stations_deliver(struct wz_job *job, const struct wz_batch_plan *plan, struct wz_held *held,
                                Wz__Episode ***out, int *n, struct wz_batch_stats *stats);

void __wrap_wz_stations_play(struct wz_job *job, const struct wz_batch_plan *plan, struct wz_held *held)
{
    assert_int_equal(plan->first, held->n);
    held->episodes = wz_realloc(held->episodes, sizeof *held->episodes * (size_t)(held->n + plan->batch));
    for (int i = 0; i < plan->batch; i++) {
        Wz__Episode *e = held->episodes[held->n++] = wz_episode_new();
        const int prompt = (int)(plan->prompts[i] - list);
        e->step = plan->step;
        e->index = (uint32_t)(plan->first + i);
        e->place = (uint32_t)i;
        wz_set_string(&e->prompt_id, ids[prompt], strlen(ids[prompt]));
        for (int a = 0; a < AGENTS; a++) {
            Wz__Turn *t = wz_episode_turn(e);
            t->agent = (uint32_t)a;
            t->reward = worth(prompt, i % PEERS, a);
            if (isnan(t->reward)) wz_set_string(&e->discard, "lost", 4);
        }
    }
}

void __wrap_wz_stations_deliver(struct wz_job *job, const struct wz_batch_plan *plan, struct wz_held *held,
                                Wz__Episode ***out, int *n, struct wz_batch_stats *stats)
{
    assert_int_equal(plan->batch, BATCH);
    assert_true(held->n <= MOST);
    memcpy(played, held->episodes, sizeof *played * (size_t)held->n);
    n_played = held->n;
    free(held->episodes);
}

/* ---- steps -------------------------------------------------------------------------------------------------- */

static bool differ(int prompt, int agent)
{
    double least = INFINITY, most = -INFINITY;

    for (int k = 0; k < PEERS && agent != FROZEN; k++) {
        least = fmin(least, worth(prompt, k, agent)); /* fmin and fmax pass over NaN */
        most = fmax(most, worth(prompt, k, agent));
    }
    return most > least;
}

/* STEPS steps against the drawing order, which `order` has prompt by prompt. Returns how many steps were not filled. */
static int follow(char *collect, int rounds, int *drawn)
{
    enum { STEPS = 6 };
    struct wz_recipe_learn learn[] = { { .name = names[A] }, { .name = names[B] } };
    char train[] = "train", back[] = "return", plain[] = "reinforce++", none[] = "none", token[] = "token";
    for (int i = 0; i < 2; i++) {
        learn[i].overlong = train;
        learn[i].kl_form = back;
        learn[i].estimate = plain;
        learn[i].importance = none;
        learn[i].ratio = learn[i].loss_mean = token;
    }
    struct wz_recipe_agent agents[AGENTS] = { { .name = names[A] }, { .name = names[B] }, { .name = names[FROZEN] } };
    struct wz_recipe_stage stage = { .name = names[A],
                                     .batch = BATCH,
                                     .samples_per_prompt = PEERS,
                                     .collect = collect,
                                     .collect_rounds = rounds,
                                     .loss = clip,
                                     .agents = learn,
                                     .n_agents = 2 };
    struct wz_recipe recipe = { .leaves = 4, .seed = 5 };
    struct wz_job job = { .recipe = &recipe, .n_agents = AGENTS };
    const struct wz_prompt *prompts[BATCH], *next[PEERS];
    struct wz_stage s = { .job = &job, .recipe = &stage, .prompts = prompts };
    struct wz_err err;
    int short_of = 0;

    if (wz_link_open(&job.link, "self", 60, false, &err) < 0) fail_msg("%s", err.text);
    job.roles.reward = job.roles.learner = job.roles.rollout = (struct wz_ranks){ .n = 1 };
    for (int a = 0; a < AGENTS; a++) job.agents[a].recipe = &agents[a];
    s.draw = wz_draw_create(&set, 1, &stage, 0, recipe.seed, &err);
    struct wz_draw *order = wz_draw_create(&set, 1, &stage, 0, recipe.seed, &err);
    *drawn = 0;
    for (int step = 0; step < STEPS; step++) {
        struct wz_step_report report = { 0 };
        int place = 0, seen = 0;
        wz_collect(&s, step, &report);
        for (int round = 0; round < rounds && place < BATCH; round++)
            for (int missing = (BATCH - place) / PEERS; missing > 0; missing--) {
                wz_draw_next(order, next, PEERS);
                const int prompt = (int)(next[0] - list);
                const bool kept = collect == no || differ(prompt, A) || differ(prompt, B);
                for (int k = 0; k < PEERS; k++, seen++) {
                    const Wz__Episode *e = played[seen];
                    assert_true(seen < n_played && e->index == (uint32_t)seen);
                    assert_string_equal(e->prompt_id, ids[prompt]);
                    assert_true(!kept || e->place == (uint32_t)(place + k));
                    assert_true(e->place < BATCH);
                    for (int a = 0; a < AGENTS; a++)
                        assert_int_equal(e->turns[a]->alike, collect == yes && a != FROZEN && !differ(prompt, a) &&
                                                                 !isnan(worth(prompt, k, a)));
                }
                place += kept ? PEERS : 0;
            }
        assert_int_equal(seen, n_played);
        assert_true(report.drawn == seen / PEERS && report.kept == place / PEERS);
        short_of += place < BATCH;
        *drawn += seen / PEERS;
        for (int i = 0; i < n_played; i++) wz_episode_free(played[i]);
    }
    wz_draw_destroy(s.draw);
    wz_draw_destroy(order);
    wz_link_close(&job.link);
    return short_of;
}

static void batches_are_filled_by_what_can_be_compared(void **state)
{
    int drawn;

    assert_int_equal(follow(yes, 8, &drawn), 0);
    assert_in_range(drawn, 6 * PLACES + 10, 6 * 8 * PLACES);
    assert_int_equal(follow(yes, 2, &drawn), 6); /* hardly half of the prompts can be */
    assert_in_range(drawn, 6 * PLACES + 6, 6 * 2 * PLACES);
    follow(yes, 1, &drawn);
    assert_int_equal(drawn, 6 * PLACES);
    assert_int_equal(follow(no, 1, &drawn), 0);
    assert_int_equal(drawn, 6 * PLACES);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(batches_are_filled_by_what_can_be_compared) };

    for (int i = 0; i < PROMPTS; i++) {
        snprintf(ids[i], sizeof ids[i], "%d", i);
        list[i] = (struct wz_prompt){ .text = ids[i], .id = ids[i], .kind = "k", .group = "" };
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
