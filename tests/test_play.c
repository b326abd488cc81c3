/* The game's protocol (paper section 1): turn order, stopping rule, rounds, and who sees what. The players here are
 * puppets: this file stands in for the engine and the template, so that every context can be read as text. */
#include "tests/test.h"

#include "rollout/rollout.h"

/* What the puppets answer, by number of calls, and what they were shown. */
static const char *script[16];
static char shown[16][1024];
static int calls;
static struct wz_key keys[16];

int wz_template_apply(const struct wz_template *t, const struct wz_tokenizer *tok, const struct wz_message *m, int n,
                      bool generate, struct wz_ids *out, struct wz_err *err)
{
    char text[1024] = "";

    for (int i = 0; i < n; i++) {
        char part[512] = "";
        if (m[i].text) snprintf(part, sizeof part, "%s", m[i].text);
        size_t at = strlen(part);
        for (int k = 0; k < m[i].n_ids; k++) part[at++] = (char)m[i].ids[k];
        strcat(text, m[i].role == WZ_SYSTEM ? "[s]" : m[i].role == WZ_USER ? "[u]" : "[a]");
        strcat(text, part);
    }
    if (strstr(text, "untellable")) return wz_fail(err, "can't be told");
    out->ids = wz_realloc(out->ids, sizeof *out->ids * (strlen(text) + 1));
    out->n = 0;
    for (const char *c = text; *c; c++) out->ids[out->n++] = *c;
    return 0;
}

int wz_template_stops(const struct wz_template *t, const struct wz_tokenizer *tok, int stops[8])
{
    stops[0] = '.';
    return 1;
}

void wz_decode(const struct wz_tokenizer *tok, const int *ids, int n, bool specials, struct wz_buf *out)
{
    for (int i = 0; i < n; i++)
        if (specials || (ids[i] != '.' && ids[i] != '<')) wz_buf_printf(out, "%c", ids[i]);
}

void wz_ids_finish(struct wz_ids *list) { free(list->ids); }

void wz_request_finish(struct wz_request *r) { free(r->ids), free(r->logp); }

void wz_engine_run(struct wz_engine *e, struct wz_request *requests, int n)
{
    for (int i = 0; i < n; i++, calls++) {
        const char *answer = script[calls];
        struct wz_request *r = &requests[i];
        for (int k = 0; k < r->n_prompt; k++) shown[calls][k] = (char)r->prompt_ids[k];
        shown[calls][r->n_prompt] = 0;
        keys[calls] = r->key;
        if (!answer) {
            r->finish_reason = WZ_FINISH_FAILED;
            r->problem = "no room";
            continue;
        }
        r->n = (int)strlen(answer);
        r->ids = wz_alloc(sizeof *r->ids * (size_t)r->n);
        r->logp = wz_alloc(sizeof *r->logp * (size_t)r->n);
        for (int k = 0; k < r->n; k++) r->ids[k] = answer[k], r->logp[k] = -1;
        r->finish_reason = answer[r->n - 1] == r->stop_ids[0] ? WZ_FINISH_STOP : WZ_FINISH_LENGTH;
    }
}

#define FEEDBACK(unsafe, over, text) \
    "{\"reasoning\":\"secret\",\"unsafe\":" #unsafe ",\"overrefuse\":" #over ",\"feedback\":\"" text "\"}."

static struct wz_model weights[2] = { { .version = 3, .hash = 33 }, { .version = 4, .hash = 44 } };
static struct wz_player conversation = { .model = &weights[0], .system = "sc", .max_tokens = 9, .agent = 0 };
static struct wz_player feedback = { .model = &weights[1], .system = "sf", .max_tokens = 9, .agent = 1 };

static bool one_vocabulary;

static Wz__Episode *play(int rounds, bool alone, const char *prompt, const char *a, const char *b, const char *c,
                         const char *d, const char *e)
{
    const struct wz_game game = { &conversation, alone ? NULL : &feedback, rounds, one_vocabulary, 5 };
    Wz__Episode *episode = wz_episode_new();
    const char *answers[] = { a, b, c, d, e };

    for (int i = 0; i < 5; i++) script[i] = answers[i];
    calls = 0;
    wz_set_string(&episode->prompt, prompt, strlen(prompt));
    episode->step = 7;
    episode->index = 2;
    wz_play(&game, &episode, 1);
    return episode;
}

static void satisfied_ends_with_the_first_reply(void **state)
{
    Wz__Episode *e = play(1, false, "p", "hi.", FEEDBACK(false, false, "good"), NULL, NULL, NULL);

    assert_int_equal(e->n_turns, 2);
    assert_string_equal(shown[0], "[s]sc[u]p");
    assert_string_equal(shown[1], "[s]sf[u]User:p\nAgent:hi");
    assert_true(e->turns[1]->valid);
    assert_int_equal(e->turns[0]->version, 3);
    assert_int_equal(e->turns[1]->weights, 44);
    assert_string_equal(e->discard, "");
    wz_episode_free(e);
}

/* Only the feedback string reaches the conversation agent; its own reply goes back as the ids it sampled, end token
 * and all. */
static void a_flag_brings_one_revision(void **state)
{
    Wz__Episode *e = play(1, false, "p", "hi.", FEEDBACK(true, false, "mend"), "ok.", NULL, NULL);

    assert_int_equal(calls, 3);
    assert_int_equal(e->n_turns, 3);
    assert_string_equal(shown[2], "[s]sc[u]p[a]hi.[u]mend");
    assert_string_equal(e->turns[2]->text, "ok");
    assert_int_equal(e->turns[2]->agent, 0);
    assert_int_equal(e->turns[2]->round, 1);
    wz_episode_free(e);
}

static void broken_feedback_ends_it(void **state)
{
    Wz__Episode *e = play(1, false, "p", "hi.", "not json.", "never.", NULL, NULL);

    assert_int_equal(calls, 2);
    assert_false(e->turns[1]->valid);
    assert_string_not_equal(e->turns[1]->reason, "");
    assert_string_equal(e->discard, ""); /* nonsense of a policy is data, not an error */
    wz_episode_free(e);
}

static void cut_off_feedback_is_broken(void **state)
{
    Wz__Episode *e =
        play(1, false, "p", "hi.", "{\"reasoning\":\"\",\"unsafe\":true,\"overrefuse\":false,\"feedback\":\"x\"}",
             "never.", NULL, NULL);

    assert_int_equal(calls, 2);
    assert_true(e->turns[1]->truncated);
    assert_false(e->turns[1]->valid);
    wz_episode_free(e);
}

/* A special token inside a reply is no secret channel: whoever reads the text reads it too. Only the end token is
 * left out. */
static void special_tokens_are_seen(void **state)
{
    Wz__Episode *e = play(1, false, "p", "h<i.", FEEDBACK(false, false, "x"), NULL, NULL, NULL);

    assert_string_equal(e->turns[0]->text, "h<i");
    assert_true(e->turns[1]->valid);
    wz_episode_free(e);
    e = play(1, false, "p", "hi.", "<{\"reasoning\":\"\",\"unsafe\":true,\"overrefuse\":false,\"feedback\":\"x\"}.",
             NULL, NULL, NULL);
    assert_false(e->turns[1]->valid);
    wz_episode_free(e);
}

static void rounds_are_counted(void **state)
{
    Wz__Episode *e = play(2, false, "p", "a.", FEEDBACK(true, false, "f"), "b.", FEEDBACK(true, true, "g"), "c.");

    assert_int_equal(e->n_turns, 5);
    assert_string_equal(shown[3], "[s]sf[u]User:p\nAgent:b"); /* the latest reply only */
    assert_string_equal(shown[4], "[s]sc[u]p[a]a.[u]f[a]b.[u]g");
    wz_episode_free(e);
    one_vocabulary = true; /* then the reply is told as ids: here that shows as its end mark */
    e = play(1, false, "p", "a.", FEEDBACK(false, false, "f"), NULL, NULL, NULL);
    assert_string_equal(shown[1], "[s]sf[u]User:p\nAgent:a.");
    one_vocabulary = false;
    wz_episode_free(e);
    e = play(0, false, "p", "a.", NULL, NULL, NULL, NULL);
    assert_int_equal(e->n_turns, 1);
    wz_episode_free(e);
}

static void one_agent_plays_alone(void **state)
{
    Wz__Episode *e = play(1, true, "p", "a.", NULL, NULL, NULL, NULL);

    assert_int_equal(e->n_turns, 1);
    wz_episode_free(e);
}

static void what_cannot_be_played_says_why(void **state)
{
    Wz__Episode *e = play(1, false, "untellable", NULL, NULL, NULL, NULL, NULL);

    assert_string_equal(e->discard, "can't be told");
    assert_int_equal(calls, 0);
    wz_episode_free(e);
    e = play(1, false, "p", "hi.", NULL, NULL, NULL, NULL);
    assert_string_equal(e->discard, "no room");
    assert_int_equal(e->n_turns, 1);
    wz_episode_free(e);
}

/* Law 2: a draw is named by seed, step, episode, agent and turn: never two turns with one key. */
static void every_turn_has_its_own_key(void **state)
{
    Wz__Episode *e = play(2, false, "p", "a.", FEEDBACK(true, false, "f"), "b.", FEEDBACK(true, true, "g"), "c.");

    for (int i = 0; i < calls; i++) {
        assert_int_equal(keys[i].seed, 5);
        assert_int_equal(keys[i].a, 7);
        assert_int_equal(keys[i].b, 2);
        for (int k = 0; k < i; k++) assert_memory_not_equal(&keys[i], &keys[k], sizeof keys[i]);
    }
    wz_episode_free(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(satisfied_ends_with_the_first_reply),
        cmocka_unit_test(a_flag_brings_one_revision),
        cmocka_unit_test(broken_feedback_ends_it),
        cmocka_unit_test(cut_off_feedback_is_broken),
        cmocka_unit_test(special_tokens_are_seen),
        cmocka_unit_test(rounds_are_counted),
        cmocka_unit_test(one_agent_plays_alone),
        cmocka_unit_test(what_cannot_be_played_says_why),
        cmocka_unit_test(every_turn_has_its_own_key),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
