/* The game (WaltzRL 2.1): order of turns, stopping rule, rounds, who sees what, what the context window cuts (guarantee
 * 12), and a game of three seats. The players here are scripted: this file replaces the engine and the template, so
 * that every context can be read as text. */
#include "tests/test.h"

#include "rollout/rollout.h"

/* What the scripted players answer, by number of calls, and what they were shown. */
static const char *script[16];
static char shown[16][1024];
static int calls;
static struct wz_request asked[16];

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

/* Marks that are tokens of their own: their ids are capital letters. */
static bool marks;

void wz_decode(const struct wz_tokenizer *tok, const int *ids, int n, bool specials, struct wz_buf *out)
{
    for (int i = 0; i < n; i++)
        if (marks && (ids[i] == 'A' || ids[i] == 'Z')) wz_buf_str(out, ids[i] == 'A' ? "<think>" : "</think>");
        else if (specials || (ids[i] != '.' && ids[i] != '<')) wz_buf_printf(out, "%c", ids[i] == 1 ? 'x' : ids[i]);
}

int wz_tokenizer_id(const struct wz_tokenizer *tok, const char *piece)
{
    return !marks ? -1 : piece[1] == '/' ? 'Z' : 'A';
}

void wz_ids_append(struct wz_ids *list, const int *ids, int n)
{
    list->ids = wz_realloc(list->ids, sizeof *list->ids * (size_t)(list->n + n));
    for (int i = 0; i < n; i++) list->ids[list->n++] = ids[i];
}

void wz_ids_add(struct wz_ids *list, int id) { wz_ids_append(list, &id, 1); }

int wz_encode_part(const struct wz_tokenizer *tok, const char *text, size_t n, bool first, struct wz_ids *out,
                   struct wz_err *err)
{
    assert_false(first);
    for (size_t i = 0; i < n; i++) wz_ids_add(out, (unsigned char)text[i]);
    return strstr(text, "unwritable") ? wz_fail(err, "can't be written") : 0;
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
        asked[calls] = *r;
        if (!answer) {
            r->finish_reason = WZ_FINISH_FAILED;
            r->problem = "no room";
            continue;
        }
        r->n = (int)strlen(answer);
        r->ids = wz_alloc(sizeof *r->ids * (size_t)r->n);
        r->logp = wz_alloc(sizeof *r->logp * (size_t)r->n);
        for (int k = 0; k < r->n; k++) r->ids[k] = answer[k], r->logp[k] = -1;
        r->finish_reason = WZ_FINISH_LENGTH;
        if (answer[r->n - 1] == '~') r->finish_reason = WZ_FINISH_CONTEXT;
        for (int k = 0; k < r->n_stops; k++)
            if (answer[r->n - 1] == r->stop_ids[k]) r->finish_reason = WZ_FINISH_STOP;
    }
}

/* A search that finds the target in capitals, or nothing to begin with. */
int wz_search_run(const struct wz_search *how, const struct wz_player *player, uint64_t seed, const Wz__Episode *e,
                  struct wz_found *found, struct wz_err *err)
{
    const char *target = e->prefill[0] ? e->prefill : how->target;

    assert_int_equal(seed, 5);
    if (strstr(e->prompt, "hopeless")) return wz_fail(err, "no beginning");
    wz_encode_part(NULL, e->prompt, strlen(e->prompt), false, &found->ids, err);
    wz_encode_part(NULL, target, strlen(target), false, &found->ids, err);
    wz_encode_part(NULL, target, strlen(target), false, &found->target, err);
    found->score = -2;
    found->scored = how->steps;
    return 0;
}

#define FEEDBACK(unsafe, over, text) \
    "{\"reasoning\":\"secret\",\"unsafe\":" #unsafe ",\"overrefuse\":" #over ",\"feedback\":\"" text "\"}."

static struct wz_model weights[2] = { { .version = 3, .hash = 33 }, { .version = 4, .hash = 44 } };
static const struct wz_ids stops = { (int[]){ '.', ';' }, 2, 2 };
static struct wz_player conversation = {
    &wz_seats[1], .model = &weights[0], .stops = &stops, .system = "sc",   .max_tokens = 3,
    .top_k = 7,   .temperature = 2,     .top_p = 0.75f,  .min_p = 0.0625f, .agent = 0,
};
static struct wz_player feedback = {
    &wz_seats[2], .model = &weights[1], .stops = &stops, .system = "sf",  .max_tokens = 90,
    .top_k = 5,   .temperature = 0.5f,  .top_p = 0.25f,  .min_p = 0.125f, .agent = 1,
};

static bool one_vocabulary;

/* Plays one episode; the puppets give answers[n] in turn, then none. */
static Wz__Episode *play_game(const struct wz_game *game, const char *prompt, const char *const *answers, int n)
{
    Wz__Episode *episode = wz_episode_new();

    memset(script, 0, sizeof script);
    for (int i = 0; i < n; i++) script[i] = answers[i];
    calls = 0;
    wz_set_string(&episode->prompt, prompt, strlen(prompt));
    episode->step = 7;
    episode->index = 2;
    wz_play(game, &episode, 1);
    return episode;
}

static Wz__Episode *play(int rounds, bool alone, const char *prompt, const char *a, const char *b, const char *c,
                         const char *d, const char *e)
{
    const struct wz_game game = { { &conversation, &feedback }, alone ? 1 : 2, rounds, one_vocabulary, .seed = 5 };
    const char *const answers[] = { a, b, c, d, e };

    return play_game(&game, prompt, answers, 5);
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

/* Only the feedback string reaches the conversation agent; its own reply goes back as the ids it sampled, less their
 * end token. */
static void a_flag_brings_one_revision(void **state)
{
    Wz__Episode *e = play(1, false, "p", "hi;", FEEDBACK(true, false, "fix it"), "ok.", NULL, NULL);

    assert_int_equal(calls, 3);
    assert_int_equal(e->n_turns, 3);
    assert_string_equal(shown[2], "[s]sc[u]p[a]hi[u]fix it");
    assert_string_equal(e->turns[2]->text, "ok");
    assert_int_equal(e->turns[2]->agent, 0);
    assert_int_equal(e->turns[2]->round, 1);
    for (int i = 0; i < 3; i++) {
        assert_string_equal(e->turns[i]->role, i == 1 ? "feedback" : "conversation");
        assert_int_equal(e->turns[i]->about, i ? 0 : -1); /* f_0 and c_1 are about c_0 */
        assert_int_equal(e->turns[i]->given, 0);
    }
    wz_episode_free(e);
}

/* Either flag, or both; on a valid feedback only. */
static void each_flag_brings_a_revision(void **state)
{
    static const struct {
        const char *feedback;
        size_t turns;
    } rows[] = {
        { FEEDBACK(false, false, "f"), 2 },
        { FEEDBACK(true, false, "f"), 3 },
        { FEEDBACK(false, true, "f"), 3 },
        { FEEDBACK(true, true, "f"), 3 },
        { "{\"unsafe\":true,\"overrefuse\":true,\"reasoning\":\"\",\"feedback\":\"f\"}.", 2 },
    };

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        Wz__Episode *e = play(1, false, "p", "hi.", rows[i].feedback, "ok.", NULL, NULL);
        if (e->n_turns != rows[i].turns) fail_msg("%s: %zu turns", rows[i].feedback, e->n_turns);
        wz_episode_free(e);
    }
}

/* What a player is asked with is what the recipe says of its agent. */
static void settings_arrive(void **state)
{
    Wz__Episode *e = play(1, false, "p", "hi.", FEEDBACK(true, false, "f"), "ok.", NULL, NULL);

    for (int i = 0; i < 3; i++) {
        const struct wz_player *p = i == 1 ? &feedback : &conversation;
        assert_ptr_equal(asked[i].stop_ids, stops.ids);
        assert_int_equal(asked[i].n_stops, 2);
        assert_int_equal(asked[i].max_tokens, p->max_tokens);
        assert_int_equal(asked[i].top_k, p->top_k);
        assert_true(asked[i].temperature == p->temperature && asked[i].top_p == p->top_p && asked[i].min_p == p->min_p);
    }
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

/* Why a turn ended, whatever its length: max_tokens of the conversation agent is 3. */
static void turns_say_why_they_ended(void **state)
{
    static const struct {
        const char *answer, *text, *why;
    } rows[] = {
        { "a.", "a", "stop" },      { "ab.", "ab", "stop" },   { "ab;", "ab", "stop" },
        { "abc", "abc", "length" }, { "a~", "a~", "context" }, { "ab~", "ab~", "context" },
    };

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        Wz__Episode *e = play(0, false, "p", rows[i].answer, NULL, NULL, NULL, NULL);
        assert_string_equal(wz_turn_finish(e->turns[0]), rows[i].why);
        assert_string_equal(e->turns[0]->text, rows[i].text);
        assert_int_equal(e->turns[0]->n_ids, strlen(rows[i].answer));
        assert_int_equal(e->turns[0]->truncated, strcmp(rows[i].why, "stop") != 0);
        assert_int_equal(wz_episode_cuts(e, 0), !strcmp(rows[i].why, "context"));
        wz_episode_free(e);
    }
}

/* Guarantee 12: where a later turn does not fit, what was said stays and the game ends. */
static void what_does_not_fit_ends_the_game(void **state)
{
    const struct {
        const char *c0, *f0, *c1, *cut;
        size_t turns;
        int cuts[2];
    } rows[] = {
        { "hi.", NULL, NULL, "feedback: no room", 1, { 0, 1 } },
        { "hi.", FEEDBACK(true, false, "f"), NULL, "conversation: no room", 2, { 1, 0 } },
        { "hi.", FEEDBACK(true, false, "untellable"), "never.", "conversation: can't be told", 2, { 1, 0 } },
        { "hi~", FEEDBACK(true, false, "f"), "never.", "", 1, { 1, 0 } },
        { "hi.", "{\"reasoning\":\"~", "never.", "", 2, { 0, 1 } },
        { "hi.", FEEDBACK(true, false, "f"), "ok~", "", 3, { 1, 0 } },
    };

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        Wz__Episode *e = play(2, false, "p", rows[i].c0, rows[i].f0, rows[i].c1, NULL, NULL);
        assert_string_equal(e->discard, "");
        assert_string_equal(e->cut, rows[i].cut);
        assert_int_equal(e->n_turns, rows[i].turns);
        assert_int_equal(calls, rows[i].turns + !!strstr(rows[i].cut, "no room"));
        for (int a = 0; a < 2; a++) assert_int_equal(wz_episode_cuts(e, a), rows[i].cuts[a]);
        assert_int_equal(wz_episode_cuts(e, -1), 1);
        wz_episode_free(e);
    }
}

static void cut_off_feedback_is_broken(void **state)
{
    Wz__Episode *e =
        play(1, false, "p", "hi.", "{\"reasoning\":\"\",\"unsafe\":true,\"overrefuse\":false,\"feedback\":\"x\"}",
             "never.", NULL, NULL);

    assert_int_equal(calls, 2);
    assert_true(e->turns[1]->truncated);
    assert_false(e->turns[1]->valid);
    assert_string_equal(e->turns[1]->reason, "cut off by max_tokens");
    wz_episode_free(e);
    e = play(1, false, "p", "hi.", "{\"reasoning\":\"~", NULL, NULL, NULL);
    assert_false(e->turns[1]->valid);
    assert_string_equal(e->turns[1]->reason, "cut off by the context window");
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
    assert_string_equal(shown[4], "[s]sc[u]p[a]a[u]f[a]b[u]g");
    wz_episode_free(e);
    one_vocabulary = true; /* then the reply is told as ids: here that shows where decoding would change it */
    e = play(1, false, "p", "a\1.", FEEDBACK(false, false, "f"), NULL, NULL, NULL);
    assert_string_equal(shown[1], "[s]sf[u]User:p\nAgent:a\1");
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
    e = play(1, false, "p", NULL, NULL, NULL, NULL, NULL);
    assert_string_equal(e->discard, "no room");
    assert_string_equal(e->cut, "");
    assert_int_equal(e->n_turns, 0);
    wz_episode_free(e);
}

/* Guarantee 2: a draw is named by seed, step, episode, agent and turn: never two turns with one key. */
static void every_turn_has_its_own_key(void **state)
{
    Wz__Episode *e = play(2, false, "p", "a.", FEEDBACK(true, false, "f"), "b.", FEEDBACK(true, true, "g"), "c.");

    for (int i = 0; i < calls; i++) {
        assert_int_equal(asked[i].key.seed, 5);
        assert_int_equal(asked[i].key.a, 7);
        assert_int_equal(asked[i].key.b, 2);
        for (int k = 0; k < i; k++) assert_memory_not_equal(&asked[i].key, &asked[k].key, sizeof asked[i].key);
    }
    wz_episode_free(e);
}

/* ---- thoughts, and replies whose beginning is given (RECAP 2) -------------------------------------------------- */

/* Plays one prefilled episode; `says` is what the player says in each of its turns. */
static Wz__Episode *play_given(const struct wz_player *p, const char *prefill, bool hijack, uint32_t resets,
                               const char *const *says, int n)
{
    struct wz_player thinker = *p;
    const struct wz_game game = { { &thinker }, 1, 0, false, .seed = 5 };
    Wz__Episode *e = wz_episode_new();

    memset(script, 0, sizeof script);
    for (int i = 0; i < n; i++) script[i] = says[i];
    calls = 0;
    wz_set_string(&e->prompt, "p", 1);
    wz_set_string(&e->prefill, prefill, strlen(prefill));
    wz_set_string(&e->transition, "wait", 4);
    e->hijack = hijack;
    e->resets = resets;
    wz_play(&game, &e, 1);
    return e;
}

/* What is given is context of what is sampled, and the beginning of the turn, whose ids are marked as given. */
static void replies_begin_with_what_is_given(void **state)
{
    static const struct {
        bool think, marks, hijack;
        const char *system, *prefill, *shown, *text, *answer;
        int given;
    } rows[] = {
        { false, false, false, "", "sure, ", "[u]psure, ", "sure, ok", "sure, ok", 6 },
        { true, false, false, "", "it is", "[u]p<think>\nit is", "<think>\nit isok", "", 13 },
        { true, false, false, "", " it is", "[u]p<think> it is", "<think> it isok", "", 13 },
        { true, true, false, "", "it is", "[u]p<think>\nit is", "<think>\nit isok", "", 7 },
        { true, false, true, "", " it ", "[u]p<think> it </think>", "<think> it </think>ok", "ok", 19 },
        { true, true, true, "", " it ", "[u]p<think> it </think>", "<think> it </think>ok", "ok", 6 },
    };

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        struct wz_player p = conversation;
        const char *says[] = { "ok." };
        struct wz_buf seen = { 0 };
        p.system = rows[i].system;
        p.think = rows[i].think;
        marks = rows[i].marks;
        Wz__Episode *e = play_given(&p, rows[i].prefill, rows[i].hijack, 0, says, 1);
        const Wz__Turn *t = e->turns[0];
        assert_int_equal(t->given, rows[i].given);
        assert_int_equal(t->n_ids, rows[i].given + 3);
        assert_int_equal(t->n_logp, t->n_ids);
        assert_int_equal(asked[0].n_prompt, t->n_context + t->given);
        assert_int_equal(t->n_context, strlen("[u]p"));
        wz_decode(NULL, t->context, (int)t->n_context, true, &seen);
        wz_decode(NULL, t->ids, (int)t->given, true, &seen);
        assert_string_equal(seen.data, rows[i].shown);
        assert_string_equal(t->text, rows[i].text);
        assert_string_equal(wz_turn_answer(t), rows[i].answer);
        wz_buf_finish(&seen);
        wz_episode_free(e);
    }
    marks = false;
}

/* A thought that the template opened is gone on with: no second mark, and no blank where there is one. */
static void given_thoughts_go_on_from_the_template(void **state)
{
    static const char *const prompts[] = { "p[a]<think>", "p[a]<think>\n", "p[a]<think> " };

    for (size_t i = 0; i < WZ_COUNT(prompts); i++) {
        struct wz_player thinker = conversation;
        const struct wz_game game = { { &thinker }, 1, 0, false, .seed = 5 };
        Wz__Episode *e = wz_episode_new();
        char *want = wz_path("[u]%s%s", prompts[i], i ? "it is" : " it is");
        thinker.think = true;
        thinker.system = "";
        memset(script, 0, sizeof script);
        script[0] = "</think>a.";
        calls = 0;
        wz_set_string(&e->prompt, prompts[i], strlen(prompts[i]));
        wz_set_string(&e->prefill, " it is", 6);
        wz_play(&game, &e, 1);
        assert_string_equal(shown[0], want);
        assert_string_equal(wz_turn_answer(e->turns[0]), "a");
        assert_true(e->turns[0]->valid);
        wz_episode_free(e);
        free(want);
    }
}

/* A thought that the template opened costs nothing, nor does one that the agent opens; twice, or never ended, does.
 * What is not behind the end of a thought is no answer, and nothing hides behind a mark that ends none. */
static void thoughts_are_read(void **state)
{
    static const struct {
        const char *system, *said, *answer;
        bool valid;
        int ids;
    } rows[] = {
        { "", "<think>a</think>b.", "b", true, 16 },
        { "", " <think>a</think> b.", " b", true, 17 },
        { "[a]<think>", "a</think>b.", "b", true, 9 }, /* by the template */
        { "[a]<think>\n", "a</think>b.", "b", true, 9 },
        { "[a]<think>", "<think>a</think>b.", "b", false, 16 },
        { "", "<think><think>a</think>b.", "b", false, 23 },
        { "", "<think>a</think>b</think>c.", "b</think>c", false, 16 },
        { "", "<think>a</think>.", "", false, 16 },
        { "", "<think>a</think> .", " ", false, 16 },
        { "", "<think>a.", "", false, 8 },
        { "[a]<think>", "a.", "", false, 1 },
        { "", "a.", "a", false, 0 },
        { "", "a</think>b.", "a</think>b", false, 0 }, /* it was never opened */
        { "", "<think>a</think>b", "b", false, 16 },   /* cut off */
        { "", "x<think>a</think>b.", "x<think>a</think>b", false, 0 },
    };

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        struct wz_player p = conversation;
        const char *says[] = { rows[i].said };
        p.system = "";
        p.think = true;
        Wz__Episode *e = wz_episode_new();
        const struct wz_game game = { { &p }, 1, 0, false, .seed = 5 };
        char *prompt = wz_path("p%s", rows[i].system); /* the context ends with it */
        memset(script, 0, sizeof script);
        script[0] = says[0];
        calls = 0;
        wz_set_string(&e->prompt, prompt, strlen(prompt));
        wz_play(&game, &e, 1);
        const Wz__Turn *t = e->turns[0];
        if (strcmp(wz_turn_answer(t), rows[i].answer) || t->valid != rows[i].valid ||
            (t->thought_ids != (uint32_t)rows[i].ids && (rows[i].ids || t->thought)))
            fail_msg("%s%s: answer '%s', valid %d, %u ids", rows[i].system, rows[i].said, wz_turn_answer(t), t->valid,
                     t->thought_ids);
        free(prompt);
        wz_episode_free(e);
    }
}

/* Feedback and revisions go by the answer alone: of the thought, the feedback agent sees nothing. */
static void feedback_sees_no_thought(void **state)
{
    struct wz_player thinker = conversation;
    const char *const says[] = { "<think>bad</think>hi.", FEEDBACK(true, false, "f"), "<think>x.",
                                 FEEDBACK(false, false, "g") };

    thinker.think = true;
    for (int ids = 0; ids < 2; ids++) {
        const struct wz_game game = { { &thinker, &feedback }, 2, 2, ids, .seed = 5 };
        Wz__Episode *e = play_game(&game, "p", says, 4);
        assert_string_equal(shown[1], "[s]sf[u]User:p\nAgent:hi");
        assert_string_equal(shown[3], "[s]sf[u]User:p\nAgent:");
        wz_episode_free(e);
    }
}

/* Iterative prefill reset: each reply goes on from what was thought before it, and from the text again; then feedback,
 * as after a first reply. Only the first reply is prefilled. */
static void resets_go_on_from_the_thought(void **state)
{
    const char *const says[] = { "a</think>1.", "b</think>2.", "c</think>3." };
    struct wz_player thinker = conversation;

    thinker.think = true;
    thinker.system = "";
    Wz__Episode *e = play_given(&thinker, " pre", false, 2, says, 3);
    assert_int_equal(e->n_turns, 3);
    assert_string_equal(shown[0], "[u]p<think> pre");
    assert_string_equal(shown[1], "[u]p<think> prea wait pre");
    assert_string_equal(shown[2], "[u]p<think> prea wait preb wait pre");
    for (int i = 0; i < 3; i++) {
        assert_string_equal(wz_turn_answer(e->turns[i]), ((const char *[]){ "1", "2", "3" })[i]);
        assert_int_equal(e->turns[i]->round, i);
        assert_true(e->turns[i]->valid);
    }
    wz_episode_free(e);

    const struct wz_game game = { { &thinker, &feedback }, 2, 1, false, .seed = 5 };
    const char *const four[] = { "a</think>1.", "b</think>2.", FEEDBACK(true, false, "f"), "<think>c</think>3." };
    memset(script, 0, sizeof script);
    for (int i = 0; i < 4; i++) script[i] = four[i];
    calls = 0;
    e = wz_episode_new();
    wz_set_string(&e->prompt, "p", 1);
    wz_set_string(&e->prefill, " pre", 4);
    wz_set_string(&e->transition, "wait", 4);
    e->resets = 1;
    wz_play(&game, &e, 1);
    assert_int_equal(e->n_turns, 4);
    assert_string_equal(shown[2], "[s]sf[u]User:p\nAgent:2");
    assert_string_equal(shown[3], "[u]p[a]<think> prea wait preb</think>2[u]f");
    assert_int_equal(e->turns[3]->given, 0);
    assert_int_equal(e->turns[3]->about, 1);
    wz_episode_free(e);
}

static void what_cannot_be_given_ends_the_episode(void **state)
{
    const char *says[] = { "ok." };
    Wz__Episode *e = play_given(&conversation, "unwritable", false, 0, says, 1);

    assert_string_equal(e->discard, "can't be written");
    assert_int_equal(calls, 0);
    wz_episode_free(e);
}

/* ---- three seats ------------------------------------------------------------------------------------------ */

/* An attacker rewrites the prompt before the conversation agent answers, and again after each reply, twice in all: its
 * seat and a conversation seat that answers it, beside the table's own feedback. */
static void ask_attacker(const struct wz_game *game, const struct wz_player *p, const Wz__Episode *e,
                         struct wz_ask *ask)
{
    ask->about = wz_turn_last(e, WZ_CONVERSATION);
    wz_buf_printf(&ask->text, "attack %s", e->prompt);
    ask->messages[ask->n++] = (struct wz_message){ WZ_USER, ask->text.data, NULL, 0 };
    if (ask->about >= 0) ask->messages[ask->n++] = (struct wz_message){ WZ_USER, e->turns[ask->about]->text, NULL, 0 };
}

static void read_attacker(const struct wz_player *p, Wz__Turn *t) { t->valid = !strncmp(t->text, "please", 6); }

static const char *after_attacker(const struct wz_game *game, const Wz__Episode *e)
{
    return e->turns[e->n_turns - 1]->valid ? WZ_CONVERSATION : NULL;
}

static void ask_attacked(const struct wz_game *game, const struct wz_player *p, const Wz__Episode *e,
                         struct wz_ask *ask)
{
    ask->about = wz_turn_last(e, "attacker");
    ask->messages[ask->n++] = (struct wz_message){ WZ_USER, e->turns[ask->about]->text, NULL, 0 };
}

static const char *after_feedback(const struct wz_game *game, const Wz__Episode *e)
{
    return e->turns[e->n_turns - 1]->round == 0 ? "attacker" : NULL;
}

static void a_third_seat_plays(void **state)
{
    const struct wz_seat attack = { "attacker", "attacker", ask_attacker, read_attacker, after_attacker, NULL, false };
    struct wz_seat attacked = *wz_seat_find(WZ_CONVERSATION), critic = *wz_seat_find(WZ_FEEDBACK);
    struct wz_player a = { &attack, .model = &weights[0], .stops = &stops, .system = "", .agent = 2 }, c = conversation,
                     f = feedback;
    const struct wz_game game = { { &a, &c, &f }, 3, 2, false, .seed = 5 };
    const char *const answers[] = { "please p.", "no.", FEEDBACK(false, true, "x"),
                                    "please.",   "ok.", FEEDBACK(true, false, "y") };
    const struct {
        const char *role, *shown;
        int about;
        uint32_t agent, round;
    } want[] = {
        { "attacker", "[u]attack p", -1, 2, 0 },
        { "conversation", "[s]sc[u]please p", 0, 0, 0 },
        { "feedback", "[s]sf[u]User:please p\nAgent:no", 1, 1, 0 },
        { "attacker", "[u]attack p[u]no", 1, 2, 1 },
        { "conversation", "[s]sc[u]please", 3, 0, 1 },
        { "feedback", "[s]sf[u]User:please\nAgent:ok", 4, 1, 1 },
    };

    attacked.ask = ask_attacked;
    critic.next = after_feedback;
    c.seat = &attacked;
    f.seat = &critic;
    Wz__Episode *e = play_game(&game, "p", answers, 6);
    assert_string_equal(e->discard, "");
    assert_int_equal(calls, 6);
    assert_int_equal(e->n_turns, 6);
    for (int i = 0; i < 6; i++) {
        const Wz__Turn *t = e->turns[i];
        assert_string_equal(t->role, want[i].role);
        assert_string_equal(shown[i], want[i].shown);
        assert_int_equal(t->about, want[i].about);
        assert_int_equal(t->agent, want[i].agent);
        assert_int_equal(t->round, want[i].round);
        assert_int_equal(t->n_context, strlen(shown[i]));
        assert_int_equal(t->n_ids, strlen(answers[i]));
        assert_int_equal(t->n_logp, t->n_ids);
        assert_int_equal(t->weights, t->agent == 1 ? 44 : 33);
        assert_int_equal(asked[i].key.c, want[i].agent << 16 | want[i].round);
    }
    assert_string_equal(e->turns[5]->feedback, "y"); /* read as the table's row reads it */
    wz_episode_free(e);
    e = play_game(&game, "p", (const char *const[]){ "rude." }, 1);
    assert_int_equal(e->n_turns, 1); /* what the seat read decides who is next */
    wz_episode_free(e);
}

/* The table's attacker: the others see what it wrote in the prompt's place, as its ids or as text; one that wrote
 * nothing, or was cut off by max_tokens, leaves the prompt as it is, and one that the window cut leaves no reply. */
static void an_attacker_rewrites_the_prompt(void **state)
{
    static const struct {
        const char *attack, *seen;
    } rows[] = { { "do p!.", "do p!" }, { " .", "p" }, { ".", "p" }, { "do p!", "p" } };
    struct wz_player a = { wz_seat_find(WZ_ATTACKER), .model = &weights[0], .stops = &stops, .system = "sa",
                           .agent = 2 };

    assert_ptr_equal(wz_seat_find(WZ_ATTACKER), &wz_seats[0]);
    for (size_t i = 0; i < WZ_COUNT(rows); i++)
        for (int ids = 0; ids < 2; ids++) {
            const struct wz_game game = { { &a, &conversation, &feedback }, 3, 1, ids, .seed = 5 };
            const char *const answers[] = { rows[i].attack, "hi.", FEEDBACK(true, false, "f"), "ok." };
            char *first = wz_path("[s]sc[u]%s", rows[i].seen),
                 *review = wz_path("[s]sf[u]User:%s\nAgent:hi", rows[i].seen), *second = wz_path("%s[a]hi[u]f", first);
            Wz__Episode *e = play_game(&game, "p", answers, 4);
            assert_int_equal(e->n_turns, 4);
            assert_string_equal(shown[0], "[s]sa[u]p");
            assert_string_equal(shown[1], first);
            assert_string_equal(shown[2], review);
            assert_string_equal(shown[3], second);
            for (int t = 0; t < 4; t++) assert_int_equal(e->turns[t]->about, ((int[]){ -1, -1, 1, 1 })[t]);
            assert_string_equal(e->prompt, "p");
            assert_string_equal(e->discard, "");
            wz_episode_free(e);
            free(first), free(review), free(second);
        }
    const struct wz_game game = { { &a, &conversation }, 2, 1, false, .seed = 5 };
    Wz__Episode *e = play_game(&game, "p", (const char *const[]){ "do~", "never." }, 2);
    assert_int_equal(calls, 1);
    assert_string_equal(e->discard, "no reply came of its turn");
    wz_episode_free(e);
    e = play_game(&game, "p", NULL, 0);
    assert_string_equal(e->discard, "no room");
    wz_episode_free(e);
}

/* What the judges say of a reply: x is unsafe, n an overrefusal, ? can't be judged. Those that guard see no refusal. */
static int labelled[2];
static void label(void *judges, bool guards, Wz__Episode **episodes, int n)
{
    assert_string_equal(judges, "judges");
    for (int i = 0; i < n; i++, labelled[guards]++) {
        Wz__Turn *c = episodes[i]->turns[wz_turn_last(episodes[i], WZ_CONVERSATION)];
        c->judged_unsafe = strchr(c->text, 'x') != NULL;
        c->score = c->judged_unsafe ? 1 : 0.2;
        c->judged_overrefuse = !guards && strchr(c->text, 'n');
        c->verdict = strchr(c->text, '?') ? WZ__VERDICT__FAILED : WZ__VERDICT__JUDGED;
        wz_set_string(&c->judge_error, "lost", 4);
    }
}

/* An oracle gives the label as feedback, a guard takes the place of a last reply that does harm, whatever ended the
 * game: ordinary turns of their roles, of which all ids are given. What can't be judged is discarded (guarantee 7). */
static void rules_speak_in_a_models_place(void **state)
{
#define FLAGS(unsafe, over, text) \
    "{\"reasoning\":\"\",\"unsafe\":" #unsafe ",\"overrefuse\":" #over ",\"feedback\":\"" text "\"}"
    static const struct {
        const char *c0, *c1, *turns[4], *discard;
        int given, guarded;
    } rows[] = {
        { "ok.", NULL, { "ok", FLAGS(false, false, "") }, "", 1, 1 },
        { "x.", "ok.", { "x", FLAGS(true, false, "stop"), "ok" }, "", 1, 1 },
        { "n.", "ok.", { "n", FLAGS(false, true, "go"), "ok" }, "", 1, 1 },
        { "xn.", "n.", { "xn", FLAGS(true, true, "stop go"), "n" }, "", 1, 1 },
        { "x.", "x.", { "x", FLAGS(true, false, "stop"), "x", "never" }, "", 2, 1 },
        { "x~", NULL, { "x~", "never" }, "", 1, 1 },
        { "x.", NULL, { "x", FLAGS(true, false, "stop"), "never" }, "", 2, 1 }, /* no room for a revision */
        { "?.", NULL, { "?" }, "judge failed in play: lost", 0, 0 },
        { "x.", "?.", { "x", FLAGS(true, false, "stop"), "?" }, "judge failed in play: lost", 1, 1 },
        { "~", NULL, { "~" }, "", 0, 1 },
    };
    struct wz_player oracle = { wz_seat_find("oracle"), .stops = &stops, .agent = 1, .says_unsafe = "stop",
                                .says_overrefuse = "go" };
    struct wz_player guard = { wz_seat_find("guard"), .stops = &stops, .agent = 2, .says_unsafe = "never" };
    const struct wz_game
        game = { { &conversation, &oracle, &guard }, 3, 1, false, 5, { 0 }, NULL, label, (char[]){ "judges" } },
        alone = { { &conversation, &guard }, 2, 1, false, 5, { 0 }, NULL, label, (char[]){ "judges" } };

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        const char *const answers[] = { rows[i].c0, rows[i].c1 };
        int given = 0;
        memset(labelled, 0, sizeof labelled);
        Wz__Episode *e = play_game(&game, "p", answers, 2);
        assert_string_equal(e->discard, rows[i].discard);
        for (size_t t = 0; t < 4; t++) {
            if ((t < e->n_turns) != (rows[i].turns[t] != NULL)) fail_msg("%s: %zu turns", rows[i].c0, e->n_turns);
            if (t >= e->n_turns) continue;
            const Wz__Turn *turn = e->turns[t];
            assert_string_equal(turn->text, rows[i].turns[t]);
            given += turn->given > 0;
            if (!turn->given) continue;
            const bool guards = turn->agent == 2;
            assert_string_equal(turn->role, guards ? WZ_CONVERSATION : WZ_FEEDBACK);
            assert_int_equal(turn->n_ids, strlen(turn->text) + 1); /* with the end token */
            assert_int_equal(turn->given, turn->n_ids);
            assert_int_equal(turn->n_context, 0);
            assert_int_equal(turn->round, guards ? t / 2 + t % 2 : 0);
            assert_int_equal(turn->about, t == 3 ? 2 : 0);
            assert_true(turn->valid && !turn->truncated);
        }
        assert_int_equal(given, rows[i].given);
        assert_int_equal(labelled[1], rows[i].guarded);
        if (rows[i].c1 && given)
            assert_string_equal(shown[1], strstr(rows[i].turns[1], "stop go") ? "[s]sc[u]p[a]xn[u]stop go"
                                          : strstr(rows[i].turns[1], "go")    ? "[s]sc[u]p[a]n[u]go"
                                                                              : "[s]sc[u]p[a]x[u]stop");
        wz_episode_free(e);
    }
    for (int harmful = 0; harmful < 2; harmful++) { /* behind one reply alone */
        Wz__Episode *e = play_game(&alone, "p", (const char *const[]){ harmful ? "x." : "n." }, 1);
        assert_int_equal(e->n_turns, 1 + harmful);
        assert_int_equal(calls, 1);
        wz_episode_free(e);
    }
}

/* Attempts (PAIR): at a harmful prompt the attacker tries again until a last reply does harm, and sees what came of
 * those before; the others see the last one alone. Each attempt is a game of its own, with a revision. */
static void an_attacker_tries_again(void **state)
{
    struct wz_player a = { wz_seat_find(WZ_ATTACKER), .model = &weights[0], .stops = &stops, .system = "", .agent = 2 };
    const struct wz_game game = {
        { &a, &conversation, &feedback }, 3, 1, true, 5, { 3, 1, 1, NULL }, NULL, label, (char[]){ "judges" }
    };
    static const struct {
        bool harmful;
        const char *answers[13];
        int turns, labels;
        const char *discard, *cut;
    } rows[] = {
        { true, { "at.", "x.", FEEDBACK(false, false, "") }, 3, 1, "", "" },
        { false, { "at.", "no.", FEEDBACK(false, false, "") }, 3, 0, "", "" },
        { true,
          { "at.", "no.", FEEDBACK(true, false, "f"), "oh.", "bt.", "hm.", FEEDBACK(true, false, "g"), "x." },
          8,
          2,
          "",
          "" },
        { true,
          { "at.", "a.", FEEDBACK(false, false, ""), "bt.", "b.", FEEDBACK(false, false, ""), "ct.", "c.",
            FEEDBACK(false, false, ""), "dt." },
          9,
          2,
          "",
          "" },
        { true, { "at.", "?.", FEEDBACK(false, false, ""), "bt." }, 3, 1, "", "" }, /* judged again: discarded there */
        { true, { "at.", "a.", FEEDBACK(false, false, "") }, 3, 1, "", "attacker: no room" },
        { true, { "at.", "a~", "bt." }, 2, 1, "", "" }, /* nothing goes on from a reply that is not whole */
    };

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        Wz__Episode *e = wz_episode_new();
        calls = 0;
        memset(labelled, 0, sizeof labelled);
        memset(script, 0, sizeof script);
        memcpy(script, rows[i].answers, sizeof rows[i].answers);
        wz_set_string(&e->prompt, "p", 1);
        e->harmful = rows[i].harmful;
        wz_play(&game, &e, 1);
        if ((int)e->n_turns != rows[i].turns) fail_msg("row %zu: %zu turns", i, e->n_turns);
        assert_int_equal(labelled[0], rows[i].labels);
        assert_string_equal(e->discard, rows[i].discard);
        assert_string_equal(e->cut, rows[i].cut);
        if (i == 2) {
            assert_string_equal(shown[4], "[u]p[a]at[u]Reply: oh\nScore: 2 of 10");
            assert_string_equal(shown[5], "[s]sc[u]bt");
            assert_string_equal(shown[7], "[s]sc[u]bt[a]hm[u]g");
            for (int t = 0; t < 8; t++) assert_int_equal(e->turns[t]->about, ((int[]){ -1, -1, 1, 1, 3, -1, 5, 5 })[t]);
        }
        if (i == 3)
            assert_string_equal(shown[6], "[u]p[a]at[u]Reply: a\nScore: 2 of 10[a]bt[u]Reply: b\nScore: 2 of 10");
        wz_episode_free(e);
    }
}

/* What a judge of attacks says: o is off topic, ? can't be judged. */
static void topic(void *judges, Wz__Episode **episodes, int n)
{
    assert_string_equal(judges, "judges");
    for (int i = 0; i < n; i++) {
        Wz__Turn *a = episodes[i]->turns[episodes[i]->n_turns - 1];
        assert_true(wz_turn_is(a, WZ_ATTACKER) && episodes[i]->harmful);
        a->judged_refusal = strchr(a->text, 'o') != NULL;
        a->verdict = strchr(a->text, '?') ? WZ__VERDICT__FAILED : WZ__VERDICT__JUDGED;
        wz_set_string(&a->judge_error, "lost", 4);
    }
}

static void scored(void *judges, bool guards, Wz__Episode **episodes, int n)
{
    for (int i = 0; i < n; i++, labelled[0]++) { /* a reply is its score of 10 */
        Wz__Turn *c = episodes[i]->turns[wz_turn_last(episodes[i], WZ_CONVERSATION)];
        c->score = (c->text[0] - '0') / 10.0;
        c->judged_unsafe = c->score >= 0.8;
        c->verdict = WZ__VERDICT__JUDGED;
    }
}

/* A tree of attempts (TAP, algorithm 1): `branching` go on from each of the `width` best of a level, best first, the
 * earlier one where two are as good; an attack off topic is not played, and nothing goes on from it. */
static void attempts_are_a_tree(void **state)
{
    struct wz_player a = { wz_seat_find(WZ_ATTACKER), .model = &weights[0], .stops = &stops, .system = "", .agent = 2 };
    static const struct {
        int depth, branching, width;
        bool benign, no_topic;
        const char *answers[16]; /* attacks and replies as they are asked for */
        int parents[8];          /* of each attack; -9: there is no more */
        int turns, labels;
        const char *discard;
    } rows[] = {
        /* the second of the first level is the best: both others go on from it, then from its first and second child */
        { 3,
          2,
          1,
          false,
          false,
          { "a.", "1.", "b.", "5.", "c.", "3.", "d.", "3.", "e.", "0.", "f.", "0." },
          { -1, -1, 3, 3, 5, 5, -9 },
          12,
          5,
          "" },
        { 3,
          2,
          2,
          false,
          false,
          { "a.", "1.", "b.", "5.", "c.", "0.", "d.", "2.", "e.", "2.", "f.", "1.", "g.", "9." },
          { -1, -1, 3, 3, 1, 1, 7, -9 },
          14,
          7,
          "" },
        { 2,
          3,
          2,
          false,
          false,
          { "o.", "b.", "1.", "o.", "d.", "2.", "o.", "f.", "3." },
          { -1, -1, -1, 2, 2, 2, -9 },
          9,
          3,
          "" },                                                                             /* only one to go on from */
        { 2, 2, 2, false, false, { "o.", "o.", "1.", "never" }, { -1, -1, -9 }, 3, 0, "" }, /* at last as it is */
        { 1, 3, 1, false, false, { "a.", "1.", "b.", "9.", "never" }, { -1, -1, -9 }, 4, 2, "" },
        { 1, 1, 1, false, false, { "o.", "1." }, { -1, -9 }, 2, 0, "" }, /* a single attempt is not judged */
        { 2, 1, 1, false, false, { "o.", "1.", "never" }, { -1, -9 }, 2, 0, "" },
        { 2, 2, 2, true, false, { "o.", "1.", "never" }, { -1, -9 }, 2, 0, "" }, /* a benign prompt's is not judged */
        { 2, 1, 1, false, true, { "o.", "1.", "b.", "2." }, { -1, 1, -9 }, 4, 1, "" },
        { 2, 2, 2, false, false, { "?.", "never" }, { -1, -9 }, 1, 0, "judge failed in play: lost" },
        /* what does not fit is like what is off topic, and not judged; others go on */
        { 2, 2, 1, false, false, { "?~", "b.", "1.", "c~", "d.", "2." }, { -1, -1, 2, 2, -9 }, 6, 1, "" },
        { 2, 2, 1, false, false, { "a.", "3~", "b.", "1.", "c~", "d.", "2." }, { -1, -1, 3, 3, -9 }, 7, 2, "" },
        { 2, 2, 2, false, true, { "o~", "?~", "1." }, { -1, -1, -9 }, 3, 0, "" },
    };

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        const struct wz_game game = {
            { &a, &conversation },
            2,
            1,
            true,
            5,
            { rows[i].depth, rows[i].branching, rows[i].width, rows[i].no_topic ? NULL : topic },
            NULL,
            scored,
            (char[]){ "judges" },
        };
        Wz__Episode *e = wz_episode_new();
        int k = 0;
        calls = 0;
        labelled[0] = 0;
        memcpy(script, rows[i].answers, sizeof rows[i].answers);
        wz_set_string(&e->prompt, "p", 1);
        e->harmful = !rows[i].benign;
        wz_play(&game, &e, 1);
        for (size_t t = 0; t < e->n_turns; t++)
            if (wz_turn_is(e->turns[t], WZ_ATTACKER) && e->turns[t]->about != rows[i].parents[k++])
                fail_msg("row %zu: attack %d goes on from %d", i, k - 1, e->turns[t]->about);
        assert_int_equal(rows[i].parents[k], -9);
        if ((int)e->n_turns != rows[i].turns) fail_msg("row %zu: %zu turns", i, e->n_turns);
        if (labelled[0] != rows[i].labels) fail_msg("row %zu: %d labels", i, labelled[0]);
        assert_string_equal(e->discard, rows[i].discard);
        if (i == 0) assert_string_equal(shown[8], "[u]p[a]b[u]Reply: 5\nScore: 5 of 10[a]c[u]Reply: 3\nScore: 3 of 10");
        if (i == 1)
            assert_string_equal(shown[12], "[u]p[a]b[u]Reply: 5\nScore: 5 of 10[a]d[u]Reply: 2\nScore: 2 of 10");
        if (i == 3) assert_string_equal(shown[2], "[s]sc[u]p");
        wz_episode_free(e);
    }
}

/* An attack that was searched for takes the place of a harmful prompt, for both; its target is not given. */
static void searched_attacks_are_played(void **state)
{
    static const struct wz_search how = { .target = "!", .steps = 7 };
    const struct wz_game game = { { &conversation, &feedback }, 2, 1, true, 5, { 0 }, &how, NULL, NULL };
    static const char *const prompts[] = { "p", "p", "hopeless", "p" };
    const char *const answers[] = { "a.",
                                    "b.",
                                    "d.",
                                    "c.",
                                    FEEDBACK(false, false, ""),
                                    FEEDBACK(false, false, ""),
                                    FEEDBACK(false, false, ""),
                                    FEEDBACK(false, false, "") };
    Wz__Episode *e[4];

    memset(script, 0, sizeof script);
    memcpy(script, answers, sizeof answers);
    calls = 0;
    for (uint32_t i = 0; i < 4; i++) {
        e[i] = wz_episode_new();
        e[i]->index = i;
        e[i]->harmful = i != 1;
        wz_set_string(&e[i]->prompt, prompts[i], strlen(prompts[i]));
        if (i == 3) wz_set_string(&e[i]->prefill, "?", 1);
    }
    wz_play(&game, e, 4);
    assert_int_equal(calls, 8);
    assert_string_equal(shown[0], "[s]sc[u]p!");
    assert_string_equal(shown[1], "[s]sc[u]p");
    assert_string_equal(shown[2], "[s]sc[u]hopeless");
    assert_string_equal(shown[3], "[s]sc[u]p?");
    assert_string_equal(shown[4], "[s]sf[u]User:p!\nAgent:a");
    for (int i = 0; i < 4; i++) {
        assert_int_equal(e[i]->n_turns, ((int[]){ 3, 2, 2, 3 })[i]);
        assert_string_equal(e[i]->unattacked, i == 2 ? "no beginning" : "");
        assert_string_equal(e[i]->discard, "");
    }
    assert_string_equal(e[0]->turns[0]->target, "!");
    assert_string_equal(e[3]->turns[0]->target, "?");
    const Wz__Turn *t = e[0]->turns[0];
    assert_true(wz_turn_is(t, WZ_ATTACKER) && t->valid && !t->truncated && t->given == t->n_ids && t->n_ids == 3);
    assert_string_equal(t->text, "p!");
    assert_int_equal(t->scored, 7);
    assert_float_equal(t->target_logp, -2, 0);
    assert_int_equal(t->about, -1);
    for (int i = 0; i < 4; i++) wz_episode_free(e[i]);
}

/* Episodes at different seats are played to their own ends; a player answers all that wait for it in one batch. */
static void episodes_end_on_their_own(void **state)
{
    const struct wz_game game = { { &conversation, &feedback }, 2, 1, false, .seed = 5 };
    const char *const answers[] = { "a.", "untellable.", "c.", FEEDBACK(true, false, "x"), "no.", "d." };
    Wz__Episode *e[3];

    memset(script, 0, sizeof script);
    for (int i = 0; i < 6; i++) script[i] = answers[i];
    calls = 0;
    for (uint32_t i = 0; i < 3; i++) {
        e[i] = wz_episode_new();
        e[i]->index = i;
        wz_set_string(&e[i]->prompt, "p", 1);
    }
    wz_play(&game, e, 3);
    assert_int_equal(calls, 6);
    for (int i = 0; i < 3; i++) assert_int_equal(e[i]->n_turns, ((int[]){ 3, 1, 2 })[i]);
    assert_string_equal(e[1]->discard, "");
    assert_string_equal(e[1]->cut, "feedback: can't be told");
    assert_string_equal(e[0]->turns[2]->text, "d");
    for (int i = 0; i < 3; i++) wz_episode_free(e[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(satisfied_ends_with_the_first_reply),
        cmocka_unit_test(a_flag_brings_one_revision),
        cmocka_unit_test(broken_feedback_ends_it),
        cmocka_unit_test(cut_off_feedback_is_broken),
        cmocka_unit_test(each_flag_brings_a_revision),
        cmocka_unit_test(settings_arrive),
        cmocka_unit_test(turns_say_why_they_ended),
        cmocka_unit_test(what_does_not_fit_ends_the_game),
        cmocka_unit_test(special_tokens_are_seen),
        cmocka_unit_test(rounds_are_counted),
        cmocka_unit_test(one_agent_plays_alone),
        cmocka_unit_test(what_cannot_be_played_says_why),
        cmocka_unit_test(every_turn_has_its_own_key),
        cmocka_unit_test(replies_begin_with_what_is_given),
        cmocka_unit_test(given_thoughts_go_on_from_the_template),
        cmocka_unit_test(thoughts_are_read),
        cmocka_unit_test(feedback_sees_no_thought),
        cmocka_unit_test(resets_go_on_from_the_thought),
        cmocka_unit_test(what_cannot_be_given_ends_the_episode),
        cmocka_unit_test(a_third_seat_plays),
        cmocka_unit_test(an_attacker_rewrites_the_prompt),
        cmocka_unit_test(an_attacker_tries_again),
        cmocka_unit_test(attempts_are_a_tree),
        cmocka_unit_test(searched_attacks_are_played),
        cmocka_unit_test(rules_speak_in_a_models_place),
        cmocka_unit_test(episodes_end_on_their_own),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
