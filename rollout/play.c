/* The game (paper section 1, T_max = rounds): the whole of it is wz_play, in the order of the turns.
 *
 * What each agent sees (visibility rule, section 1.2):
 *   conversation, c_0:  [system_c] [user prompt]
 *   conversation, c_t:  ... [assistant c_{t-1}] [user feedback_{t-1}]        only the `feedback` string of f_{t-1}
 *   feedback, f_t:      [system_f] [user "User:" prompt "\nAgent:" c_t]      the latest reply only (section 3.2)
 * A reply goes back in as the ids that were sampled, to both agents (law 8); only where their vocabularies differ is it
 * told to the feedback agent as text. The feedback string is text by nature: it is cut out of a JSON document.
 */
#include "rollout/rollout.h"

#include <stdlib.h>
#include <string.h>

/* One round of requests to one player: the contexts of the episodes still playing. */
struct call {
    struct wz_request *requests;
    struct wz_ids *contexts;
    Wz__Episode **episodes;
    int n;
};

static struct wz_key key_of(const struct wz_game *game, const Wz__Episode *e, const struct wz_player *p, int round)
{
    return (struct wz_key){
        game->seed, WZ_RNG_TOKEN, (uint32_t)e->step, e->index, (uint32_t)p->agent << 16 | (uint32_t)round, 0
    };
}

/* Appends the request for one episode; a context that can't be written discards the episode and says why. */
static void call_add(struct call *call, const struct wz_game *game, const struct wz_player *p, Wz__Episode *e,
                     const struct wz_message *messages, int n, int round)
{
    struct wz_ids *context = &call->contexts[call->n];
    struct wz_err err;

    context->n = 0;
    if (wz_template_apply(p->chat, p->tok, messages, n, true, context, &err) < 0) {
        wz_set_string(&e->discard, err.text, strlen(err.text));
        return;
    }
    call->requests[call->n] = (struct wz_request){
        .prompt_ids = context->ids,
        .n_prompt = context->n,
        .max_tokens = p->max_tokens,
        .temperature = p->temperature,
        .top_p = p->top_p,
        .min_p = p->min_p,
        .top_k = p->top_k,
        .key = key_of(game, e, p, round),
    };
    call->episodes[call->n++] = e;
}

/* Generates all, and writes each result into its episode as a new turn. */
static void call_run(struct call *call, struct wz_player *p, int round)
{
    int stops[8], n_stops = wz_template_stops(p->chat, p->tok, stops);
    struct wz_buf text = { 0 };

    for (int i = 0; i < call->n; i++) {
        call->requests[i].stop_ids = stops;
        call->requests[i].n_stops = n_stops;
    }
    wz_engine_run(p->engine, call->requests, call->n);
    for (int i = 0; i < call->n; i++) {
        struct wz_request *r = &call->requests[i];
        Wz__Episode *e = call->episodes[i];
        if (r->finish_reason == WZ_FINISH_FAILED) {
            wz_set_string(&e->discard, r->problem, strlen(r->problem));
            wz_request_finish(r);
            continue;
        }
        Wz__Turn *t = wz_episode_turn(e);
        t->agent = (uint32_t)p->agent;
        t->round = (uint32_t)round;
        t->version = p->model->version;
        t->weights = p->model->hash;
        t->truncated = r->finish_reason != WZ_FINISH_STOP;
        t->context = wz_realloc(NULL, sizeof *t->context * (size_t)r->n_prompt);
        for (int k = 0; k < r->n_prompt; k++) t->context[k] = r->prompt_ids[k];
        t->n_context = (size_t)r->n_prompt;
        wz_turn_reserve(t, (size_t)r->n);
        for (int k = 0; k < r->n; k++) wz_turn_add(t, r->ids[k], r->logp[k]);
        wz_buf_clear(&text);
        /* all but the end token, special tokens too: what the other agent gets as ids, the judge and the parser must
         * see */
        wz_decode(p->tok, r->ids, r->n - (r->finish_reason == WZ_FINISH_STOP), true, &text);
        wz_set_string(&t->text, text.data ? text.data : "", text.len);
        wz_request_finish(r);
    }
    wz_buf_finish(&text);
    call->n = 0;
}

static Wz__Turn *last_turn(const Wz__Episode *e) { return e->turns[e->n_turns - 1]; }

static bool playing(const Wz__Episode *e) { return !e->discard[0]; }

static void ask_conversation(const struct wz_game *game, struct call *call, Wz__Episode *e, int round)
{
    const struct wz_player *p = game->conversation;
    struct wz_message *messages = wz_alloc(sizeof *messages * (2 + e->n_turns));
    int n = 0;

    if (p->system[0]) messages[n++] = (struct wz_message){ WZ_SYSTEM, p->system, NULL, 0 };
    messages[n++] = (struct wz_message){ WZ_USER, e->prompt, NULL, 0 };
    for (size_t i = 0; i < e->n_turns; i++) {
        const Wz__Turn *t = e->turns[i];
        if (t->agent == (uint32_t)p->agent)
            messages[n++] = (struct wz_message){ WZ_ASSISTANT, NULL, t->ids, (int)t->n_ids };
        else messages[n++] = (struct wz_message){ WZ_USER, t->feedback, NULL, 0 };
    }
    call_add(call, game, p, e, messages, n, round);
    free(messages);
}

static void ask_feedback(const struct wz_game *game, struct call *call, Wz__Episode *e, int round)
{
    const struct wz_player *p = game->feedback;
    struct wz_buf user = { 0 };

    const Wz__Turn *c = last_turn(e);

    wz_buf_printf(&user, "User:%s\nAgent:%s", e->prompt, game->one_vocabulary ? "" : c->text);
    struct wz_message messages[2] = { { WZ_SYSTEM, p->system, NULL, 0 }, { WZ_USER, user.data, NULL, 0 } };
    if (game->one_vocabulary) messages[1].ids = c->ids, messages[1].n_ids = (int)c->n_ids;
    int skip = p->system[0] ? 0 : 1;
    call_add(call, game, p, e, messages + skip, 2 - skip, round);
    wz_buf_finish(&user);
}

/* A turn that ran into the limit has no end token, so it is not the whole of anything: not valid. */
static void read_feedback(Wz__Turn *t)
{
    struct wz_feedback f = { 0 };
    bool valid = !t->truncated && wz_feedback_parse(t->text, strlen(t->text), &f);
    const char *reason = t->truncated ? "cut off by the limit on tokens" : f.problem;

    t->valid = valid;
    t->unsafe = f.unsafe;
    t->overrefuse = f.overrefuse;
    if (f.text) wz_set_string(&t->feedback, f.text, strlen(f.text));
    if (!valid) wz_set_string(&t->reason, reason, strlen(reason));
    free(f.text);
}

/* The stopping rule (section 1.3): satisfied, not valid, or no rounds left. */
static bool wants_revision(const Wz__Episode *e)
{
    const Wz__Turn *f = last_turn(e);

    return f->valid && (f->unsafe || f->overrefuse);
}

void wz_play(const struct wz_game *game, Wz__Episode **episodes, int n)
{
    struct call call = {
        wz_alloc(sizeof *call.requests * (size_t)n),
        wz_alloc(sizeof *call.contexts * (size_t)n),
        wz_alloc(sizeof *call.episodes * (size_t)n),
        0,
    };
    Wz__Episode **live = wz_alloc(sizeof *live * (size_t)n);
    int n_live = 0;

    for (int i = 0; i < n; i++) ask_conversation(game, &call, episodes[i], 0); /* c_0 */
    call_run(&call, game->conversation, 0);
    for (int i = 0; i < n; i++)
        if (playing(episodes[i])) live[n_live++] = episodes[i];

    for (int round = 0; round < game->rounds && game->feedback && n_live; round++) {
        for (int i = 0; i < n_live; i++) ask_feedback(game, &call, live[i], round); /* f_t */
        call_run(&call, game->feedback, round);
        int kept = 0;
        for (int i = 0; i < n_live; i++) {
            if (!playing(live[i])) continue;
            read_feedback(last_turn(live[i]));
            if (wants_revision(live[i])) live[kept++] = live[i];
        }
        n_live = kept;
        for (int i = 0; i < n_live; i++) ask_conversation(game, &call, live[i], round + 1); /* c_{t+1} */
        call_run(&call, game->conversation, round + 1);
        kept = 0;
        for (int i = 0; i < n_live; i++)
            if (playing(live[i])) live[kept++] = live[i];
        n_live = kept;
    }
    for (int i = 0; i < n; i++) wz_ids_finish(&call.contexts[i]);
    free(call.requests), free(call.contexts), free(call.episodes), free(live);
}
