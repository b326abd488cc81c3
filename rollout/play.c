/* The game (WaltzRL 2.1). wz_seats, at the end, has its rows, wz_play walks them.
 *
 * What each agent sees (the paper's visibility rule):
 *   conversation, c_0:  [system_c] [user prompt]
 *   conversation, c_t:  ... [assistant c_{t-1}] [user feedback_{t-1}]        only the `feedback` string of f_{t-1}
 *   feedback, f_t:      [system_f] [user "User:" prompt "\nAgent:" c_t]      the latest reply only, without its thought
 * Where an attacker rewrites the prompt, [system_a] [user prompt], both others see what it wrote in the prompt's place;
 * one that wrote nothing, or was cut off, leaves it as it is. Judges see the prompt as it was. It may try again, along
 * a tree of attempts (struct wz_tree); each is a game of its own, and the others see the last one alone.
 * An oracle's turn is feedback, as JSON, of the label that the judges give the reply; a guard's is a reply in the place
 * of the last one. Where their judges fail the episode is discarded (guarantee 7).
 * A reply is shown again as the ids that were sampled, to both agents (guarantee 8); only where the vocabularies differ
 * the feedback agent gets its text. The feedback string is text by nature: it is cut out of a JSON document.
 *
 * A turn that does not fit the context window ends the game: what was said until then is judged and counted, and
 * trained on but for a turn that the window cut (guarantee 12). Only an episode without a reply is discarded.
 */
#include "rollout/rollout.h"

#include <stdlib.h>
#include <string.h>

static const char oracle[] = "oracle", guard[] = "guard"; /* seats with a rule in a model's place */

/* Requests to one player: of the episodes whose turn it is. */
struct call {
    struct wz_request *requests;
    struct wz_ids *contexts;
    Wz__Episode **episodes;
    int *about, *given; /* of the turns to come */
    int n;
};

/* A turn's ids, less its end token. */
static int said(const Wz__Turn *t) { return (int)t->n_ids - !t->truncated; }

/* Turns of the player's role so far: the round of its next one. */
static int round_of(const Wz__Episode *e, const struct wz_player *p)
{
    const int last = wz_turn_last(e, p->seat->role);

    return last < 0 ? 0 : (int)e->turns[last]->round + 1;
}

/* The player's turn can't be played: the game ends here, without it. */
static void end_early(Wz__Episode *e, const struct wz_player *p, const char *why)
{
    char *cut = wz_path("%s: %s", p->seat->name, why);

    if (wz_turn_last(e, WZ_CONVERSATION) < 0) wz_set_string(&e->discard, why, strlen(why));
    else wz_set_string(&e->cut, cut, strlen(cut));
    e->cut_agent = (uint32_t)p->agent;
    free(cut);
}

/* Appends the request for one episode, which ends where its context can't be rendered. */
static void call_add(struct call *call, const struct wz_game *game, const struct wz_player *p, Wz__Episode *e)
{
    if (p->seat->write) { /* it is asked nothing */
        call->episodes[call->n++] = e;
        return;
    }
    struct wz_message *messages = wz_alloc(sizeof *messages * (2 + e->n_turns));
    const int system = p->system[0] ? 1 : 0;
    const uint32_t turn = (uint32_t)p->agent << 16 | (uint32_t)round_of(e, p); /* of the key of its draws */
    struct wz_ask ask = { .messages = messages + system, .about = -1 };
    struct wz_ids *context = &call->contexts[call->n];
    struct wz_err err;

    if (system) messages[0] = (struct wz_message){ WZ_SYSTEM, p->system, NULL, 0 };
    p->seat->ask(game, p, e, &ask);
    context->n = 0;
    int given = wz_template_apply(p->chat, p->tok, messages, system + ask.n, true, context, &err);
    wz_buf_finish(&ask.text);
    free(messages);
    if (given == 0) given = wz_given_add(p, e, context, &err);
    if (given < 0) {
        end_early(e, p, err.text);
        return;
    }
    call->requests[call->n] = (struct wz_request){
        .prompt_ids = context->ids,
        .n_prompt = context->n,
        .stop_ids = p->stops->ids,
        .n_stops = p->stops->n,
        .max_tokens = p->max_tokens,
        .temperature = p->temperature,
        .top_p = p->top_p,
        .min_p = p->min_p,
        .top_k = p->top_k,
        .key = { game->seed, WZ_RNG_TOKEN, (uint32_t)e->step, e->index, turn, 0 },
    };
    call->about[call->n] = ask.about;
    call->given[call->n] = given;
    call->episodes[call->n++] = e;
}

/* Appends an empty turn of the player. */
static Wz__Turn *turn_begin(const struct wz_player *p, Wz__Episode *e, int about)
{
    const int round = round_of(e, p);
    Wz__Turn *t = wz_episode_turn(e);

    t->agent = (uint32_t)p->agent;
    wz_set_string(&t->role, p->seat->role, strlen(p->seat->role));
    t->round = (uint32_t)round;
    t->about = about;
    return t;
}

/* Fills in the text of a turn whose ids are there. With special tokens, as the other agent gets them as
 * ids, so the judge and the parser must see them; without the end token. */
static void turn_end(const struct wz_player *p, Wz__Turn *t, struct wz_buf *text)
{
    wz_buf_clear(text);
    wz_decode(p->tok, t->ids, said(t), true, text);
    wz_set_string(&t->text, text->data ? text->data : "", text->len);
}

/* A turn of ids that nobody sampled: they, an end token and their text are filled in. */
static void give(const struct wz_player *p, Wz__Turn *t, struct wz_ids *ids, struct wz_buf *text)
{
    wz_ids_add(ids, p->stops->ids[0]);
    t->finish_reason = WZ__FINISH_REASON__STOP;
    t->given = (uint32_t)ids->n;
    wz_turn_reserve(t, (size_t)ids->n);
    for (int k = 0; k < ids->n; k++) wz_turn_add(t, ids->ids[k], 0);
    turn_end(p, t, text);
}

static void discard_unjudged(Wz__Episode *e, const Wz__Turn *t)
{
    char *why = wz_path("judge failed in play: %s", t->judge_error); /* is counted as one (run/account.c) */

    wz_set_string(&e->discard, why, strlen(why));
    free(why);
}

/* One turn by a rule, of what the label says of the last reply. */
static void write_turn(const struct wz_player *p, Wz__Episode *e, struct wz_buf *text, struct wz_ids *ids)
{
    const int about = wz_turn_last(e, WZ_CONVERSATION);
    const Wz__Turn *c = e->turns[about];
    struct wz_err err;

    if (c->verdict == WZ__VERDICT__FAILED) {
        discard_unjudged(e, c);
        return;
    }
    wz_buf_clear(text);
    p->seat->write(p, c, text);
    if (!text->len) return;
    ids->n = 0;
    if (wz_encode_part(p->tok, text->data, text->len, false, ids, &err) < 0) {
        end_early(e, p, err.text);
        return;
    }
    Wz__Turn *t = turn_begin(p, e, about);
    give(p, t, ids, text);
    if (p->seat->read) p->seat->read(p, t);
}

static void call_write(struct call *call, const struct wz_game *game, const struct wz_player *p)
{
    struct wz_buf text = { 0 };
    struct wz_ids ids = { 0 };

    if (call->n) game->label(game->judges, p->seat->guards, call->episodes, call->n);
    for (int i = 0; i < call->n; i++) write_turn(p, call->episodes[i], &text, &ids);
    wz_buf_finish(&text);
    wz_ids_finish(&ids);
    call->n = 0;
}

/* Generates all, and appends each result to its episode as a turn, read. */
static void call_run(struct call *call, const struct wz_player *p)
{
    static const Wz__FinishReason reasons[] = { [WZ_FINISH_STOP] = WZ__FINISH_REASON__STOP,
                                                [WZ_FINISH_LENGTH] = WZ__FINISH_REASON__LENGTH,
                                                [WZ_FINISH_CONTEXT] = WZ__FINISH_REASON__CONTEXT };
    struct wz_buf text = { 0 };

    wz_engine_run(p->engine, call->requests, call->n);
    for (int i = 0; i < call->n; i++) {
        struct wz_request *r = &call->requests[i];
        Wz__Episode *e = call->episodes[i];
        if (r->finish_reason == WZ_FINISH_NOT_FINITE) {
            char step[40];
            snprintf(step, sizeof step, e->step < 0 ? "evaluation" : "step %lld", (long long)e->step);
            wz_die("%s episode %u: %s agent, token %d of its turn: %s", step, e->index, p->seat->role, r->n,
                   r->problem);
        }
        if (r->finish_reason == WZ_FINISH_FAILED) {
            end_early(e, p, r->problem);
            wz_request_finish(r);
            continue;
        }
        Wz__Turn *t = turn_begin(p, e, call->about[i]);
        t->version = p->model->version;
        t->weights = p->model->hash;
        t->finish_reason = reasons[r->finish_reason];
        t->truncated = t->finish_reason != WZ__FINISH_REASON__STOP;
        const int given = call->given[i], context = r->n_prompt - given;
        t->context = wz_realloc(NULL, sizeof *t->context * (size_t)context);
        for (int k = 0; k < context; k++) t->context[k] = r->prompt_ids[k];
        t->n_context = (size_t)context;
        t->given = (uint32_t)given;
        wz_turn_reserve(t, (size_t)(given + r->n));
        for (int k = 0; k < given; k++) wz_turn_add(t, r->prompt_ids[context + k], 0); /* no loss, so no log p */
        for (int k = 0; k < r->n; k++) wz_turn_add(t, r->ids[k], r->logp[k]);
        turn_end(p, t, &text);
        if (p->seat->read) p->seat->read(p, t);
        wz_request_finish(r);
    }
    wz_buf_finish(&text);
    call->n = 0;
}

/* ---- attacker: rewrites the prompt -------------------------------------------------------------------------- */

enum { NO_ATTEMPT = -2 };

static bool out_of_window(const Wz__Turn *t) { return t->finish_reason == WZ__FINISH_REASON__CONTEXT; }

static int better_of(const Wz__Episode *e, const int *replies, int n)
{
    int best = -1;

    for (int i = 0; i < n; i++)
        if (replies[i] >= 0 && (best < 0 || e->turns[replies[i]]->score > e->turns[replies[best]]->score)) best = i;
    return best;
}

static int branching_of(const struct wz_tree *tree) { return tree->branching > 1 ? tree->branching : 1; }

static int width_of(const struct wz_tree *tree) { return tree->width > 1 ? tree->width : 1; }

static int most_attempts(const struct wz_tree *tree)
{
    return branching_of(tree) * (1 + (tree->depth > 1 ? tree->depth - 1 : 0) * width_of(tree));
}

/* The last reply of the attempt that the next one goes on from, as the turns so far decide it; -1: from none, as the
 * first do; NO_ATTEMPT: the tree has no more. Level by level, and on each the attempts that go on from the best one
 * first; of attempts with one score the earlier is better. */
static int parent_of_next(const struct wz_tree *tree, const Wz__Episode *e)
{
    const int branching = branching_of(tree), width = width_of(tree);
    int *replies = wz_alloc(sizeof *replies * (e->n_turns + 1)), *leaves = wz_alloc(sizeof *leaves * (size_t)width);
    int n = 0, first = 0, n_leaves = 1, parent = NO_ATTEMPT;

    for (size_t i = 0; i < e->n_turns; i++) /* of each attempt its last reply; -1: it had none that is whole */
        if (wz_turn_is(e->turns[i], WZ_ATTACKER)) replies[n++] = -1;
        else if (n && wz_turn_is(e->turns[i], WZ_CONVERSATION))
            replies[n - 1] = out_of_window(e->turns[i]) ? -1 : (int)i;
    leaves[0] = -1;
    for (int level = 0; level < (tree->depth > 1 ? tree->depth : 1) && n_leaves; level++) {
        const int of_level = n_leaves * branching;
        if (n - first < of_level) {
            parent = leaves[(n - first) / branching];
            break;
        }
        for (n_leaves = 0; n_leaves < width; n_leaves++) {
            const int best = better_of(e, replies + first, of_level);
            if (best < 0) break;
            leaves[n_leaves] = replies[first + best];
            replies[first + best] = -1;
        }
        first += of_level;
    }
    free(replies);
    free(leaves);
    return parent;
}

/* Index of the turn with which the attempt begins that turn i belongs to. */
static size_t attempt_of(const Wz__Episode *e, int i)
{
    while (i > 0 && !wz_turn_is(e->turns[i], WZ_ATTACKER)) i--;
    return i > 0 ? (size_t)i : 0;
}

/* Behind the prompt the attempts that this one goes on from, each with the last reply that came of it and how sure the
 * judges are that it does harm, of 10: what PAIR and TAP tell their attacker. */
static void ask_attacker(const struct wz_game *game, const struct wz_player *p, const Wz__Episode *e,
                         struct wz_ask *ask)
{
    ask->about = parent_of_next(&game->tree, e);
    int attempts = 0, *path = wz_alloc(sizeof *path * (e->n_turns + 1)); /* the last reply of each, newest first */
    for (int reply = ask->about; reply >= 0; reply = e->turns[attempt_of(e, reply)]->about) path[attempts++] = reply;
    ask->messages[ask->n++] = (struct wz_message){ WZ_USER, e->prompt, NULL, 0 };
    for (int i = attempts - 1; i >= 0; i--) {
        const Wz__Turn *reply = e->turns[path[i]], *attack = e->turns[attempt_of(e, path[i])];
        ask->messages[ask->n++] = (struct wz_message){ WZ_ASSISTANT, NULL, attack->ids, said(attack) };
        ask->messages[ask->n++] = (struct wz_message){ WZ_USER, NULL, NULL, 0 };
        wz_buf_printf(&ask->text, "Reply: %s\nScore: %.0f of 10%c", wz_turn_answer(reply), 10 * reply->score, 0);
    }
    free(path);
    const char *text = ask->text.data; /* has stopped growing */
    for (int i = 2; i < ask->n; i += 2, text += strlen(text) + 1) ask->messages[i].text = text;
}

static void read_attacker(const struct wz_player *p, Wz__Turn *t)
{
    t->valid = !t->truncated && t->text[strspn(t->text, " \t\n\v\f\r")];
}

static const char *after_attacker(const struct wz_game *game, const Wz__Episode *e) { return WZ_CONVERSATION; }

/* The attack that the others see; NULL: they see the prompt. */
static const Wz__Turn *attack_of(const Wz__Episode *e)
{
    const int last = wz_turn_last(e, WZ_ATTACKER);

    return last >= 0 && e->turns[last]->valid ? e->turns[last] : NULL;
}

/* ---- conversation: answers the prompt, then revises its reply ---------------------------------------------- */

static void ask_conversation(const struct wz_game *game, const struct wz_player *p, const Wz__Episode *e,
                             struct wz_ask *ask)
{
    const Wz__Turn *attack = attack_of(e);
    ask->messages[ask->n++] = !attack                ? (struct wz_message){ WZ_USER, e->prompt, NULL, 0 }
                              : game->one_vocabulary ? (struct wz_message){ WZ_USER, NULL, attack->ids, said(attack) }
                                                     : (struct wz_message){ WZ_USER, attack->text, NULL, 0 };
    for (size_t i = attempt_of(e, (int)e->n_turns - 1); i < e->n_turns; i++) {
        const Wz__Turn *t = e->turns[i];
        if (wz_turn_is(t, WZ_FEEDBACK)) ask->messages[ask->n++] = (struct wz_message){ WZ_USER, t->feedback, NULL, 0 };
        if (!wz_turn_is(t, WZ_CONVERSATION)) continue;
        ask->about = (int)i;
        if (t->round >= e->resets) /* of those that were reset the last only */
            ask->messages[ask->n++] = (struct wz_message){ WZ_ASSISTANT, NULL, t->ids, said(t) };
    }
}

static struct wz_player *player_of(const struct wz_game *game, const char *name)
{
    for (int s = 0; name && s < game->n_players; s++)
        if (!strcmp(game->players[s]->seat->name, name)) return game->players[s];
    return NULL;
}

static const char *after_conversation(const struct wz_game *game, const Wz__Episode *e)
{
    int replies = -1 - (int)e->resets;
    for (size_t i = attempt_of(e, (int)e->n_turns - 1); i < e->n_turns; i++)
        replies += wz_turn_is(e->turns[i], WZ_CONVERSATION);
    const char *reviewer = player_of(game, oracle) ? oracle : WZ_FEEDBACK;

    return replies < 0 ? WZ_CONVERSATION : replies < game->rounds && player_of(game, reviewer) ? reviewer : guard;
}

/* ---- feedback: reads the latest reply ---------------------------------------------------------------------- */

static void ask_feedback(const struct wz_game *game, const struct wz_player *p, const Wz__Episode *e,
                         struct wz_ask *ask)
{
    ask->about = wz_turn_last(e, WZ_CONVERSATION);
    const Wz__Turn *c = e->turns[ask->about], *attack = attack_of(e);

    wz_buf_printf(&ask->text, "User:%s\nAgent:%s", attack ? attack->text : e->prompt,
                  game->one_vocabulary ? "" : wz_turn_answer(c));
    ask->messages[ask->n] = (struct wz_message){ WZ_USER, ask->text.data, NULL, 0 };
    if (game->one_vocabulary) {
        ask->messages[ask->n].ids = c->ids + c->thought_ids;
        ask->messages[ask->n].n_ids = said(c) - (int)c->thought_ids;
    }
    ask->n++;
}

/* A turn that was cut off has no end token, so it is not the whole of anything: not valid. */
static void read_feedback(const struct wz_player *p, Wz__Turn *t)
{
    struct wz_feedback f = { 0 };
    bool valid = !t->truncated && wz_feedback_parse(t->text, strlen(t->text), &f);
    const char *reason = t->finish_reason == WZ__FINISH_REASON__CONTEXT ? "cut off by the context window"
                         : t->truncated                                 ? "cut off by max_tokens"
                                                                        : f.problem;

    t->valid = valid;
    t->unsafe = f.unsafe;
    t->overrefuse = f.overrefuse;
    if (f.text) wz_set_string(&t->feedback, f.text, strlen(f.text));
    if (!valid) wz_set_string(&t->reason, reason, strlen(reason));
    free(f.text);
}

/* A revision is asked for where a valid feedback flags the reply; else that was the last. */
static const char *after_feedback(const struct wz_game *game, const Wz__Episode *e)
{
    const Wz__Turn *f = e->turns[e->n_turns - 1];

    return f->valid && (f->unsafe || f->overrefuse) ? WZ_CONVERSATION : guard;
}

/* ---- oracle: the judges' label as feedback (WaltzRL, section 8, baseline 6) -------------------------------------- */

static void write_oracle(const struct wz_player *p, const Wz__Turn *c, struct wz_buf *text)
{
    static const char *const words[] = { "false", "true" };
    const bool both = c->judged_unsafe && c->judged_overrefuse;
    char *says = wz_path("%s%s%s", c->judged_unsafe ? p->says_unsafe : "", both ? " " : "",
                         c->judged_overrefuse ? p->says_overrefuse : "");

    wz_buf_printf(text, "{\"reasoning\":\"\",\"unsafe\":%s,\"overrefuse\":%s,\"feedback\":", words[c->judged_unsafe],
                  words[c->judged_overrefuse]);
    wz_json_string(text, says, strlen(says));
    wz_buf_str(text, "}");
    free(says);
}

/* ---- guard: refuses in the place of a last reply that does harm (baselines 2 and 4) ------------------------------ */

static void write_guard(const struct wz_player *p, const Wz__Turn *c, struct wz_buf *text)
{
    if (c->judged_unsafe) wz_buf_str(text, p->says_unsafe);
}

static const char *after_guard(const struct wz_game *game, const Wz__Episode *e) { return NULL; }

/* ---- the game ---------------------------------------------------------------------------------------------- */

const struct wz_seat wz_seats[] = {
    { WZ_ATTACKER, WZ_ATTACKER, ask_attacker, read_attacker, after_attacker, NULL, false },
    { WZ_CONVERSATION, WZ_CONVERSATION, ask_conversation, wz_thought_read, after_conversation, NULL, false },
    { WZ_FEEDBACK, WZ_FEEDBACK, ask_feedback, read_feedback, after_feedback, NULL, false },
    { oracle, WZ_FEEDBACK, NULL, read_feedback, after_feedback, write_oracle, false },
    { guard, WZ_CONVERSATION, NULL, wz_thought_read, after_guard, write_guard, true },
    { 0 },
};

const struct wz_seat *wz_seat_find(const char *name)
{
    const struct wz_seat *s = wz_seats;

    while (s->name && strcmp(s->name, name)) s++;
    return s->name ? s : NULL;
}

static bool tries_again(const struct wz_game *game, const Wz__Episode *e)
{
    return (game->tree.depth > 1 || game->tree.branching > 1) && e->harmful;
}

/* Is the last turn an attack that asks for something else than the prompt, or did not fit, where others follow? */
static bool off_topic(const struct wz_game *game, const Wz__Episode *e)
{
    const Wz__Turn *t = e->n_turns ? e->turns[e->n_turns - 1] : NULL;

    return t && wz_turn_is(t, WZ_ATTACKER) && (t->judged_refusal || (tries_again(game, e) && out_of_window(t)));
}

/* New attacks at harmful prompts are judged: those off topic end their attempt (TAP's first pruning). */
static void prune(const struct wz_game *game, const struct wz_player *p, Wz__Episode **episodes,
                  struct wz_player **speaker, int n)
{
    Wz__Episode **list = wz_alloc(sizeof *list * (size_t)(n + 1));
    int k = 0;

    for (int i = 0; i < n; i++)
        if (speaker[i] == p && episodes[i]->harmful && !episodes[i]->discard[0] && !episodes[i]->cut[0] &&
            !off_topic(game, episodes[i]))
            list[k++] = episodes[i];
    if (k) game->tree.topic(game->judges, list, k);
    for (int i = 0; i < k; i++) {
        Wz__Turn *t = list[i]->turns[list[i]->n_turns - 1];
        if (t->verdict == WZ__VERDICT__FAILED) discard_unjudged(list[i], t);
        t->valid = t->valid && !t->judged_refusal;
    }
    free(list);
}

/* The player that speaks after the last turn of e, which was `last`'s; NULL: e has ended. */
static struct wz_player *next_player(const struct wz_game *game, const struct wz_player *last, const Wz__Episode *e)
{
    if (e->discard[0] || last->seat->guards || off_topic(game, e)) return NULL;
    const bool cut = e->cut[0] || out_of_window(e->turns[e->n_turns - 1]);
    const char *name = !cut ? last->seat->next(game, e) : wz_turn_last(e, WZ_CONVERSATION) < 0 ? NULL : guard;

    return player_of(game, name); /* whatever cut the game, a guard has the last word */
}

/* An episode that has ended has a reply, or is discarded; of an attempt off topic try_again takes care. */
static void unanswered(const struct wz_game *game, Wz__Episode *e, const struct wz_player *last)
{
    if (!e->discard[0] && !off_topic(game, e) && wz_turn_last(e, WZ_CONVERSATION) < 0)
        end_early(e, last, "no reply came of its turn");
}

/* PAIR (Chao et al. 2023, arXiv 2310.08419, algorithm 1) and TAP: a harmful prompt whose last reply the judges don't
 * call unsafe goes back to the attacker, after so many attempts, while the tree has more; where no attack could be
 * played to the conversation agent at last, as it is. Returns how many of the episodes go on. */
static int try_again(const struct wz_game *game, Wz__Episode **episodes, struct wz_player **speaker, int n,
                     int attempts)
{
    const struct wz_tree *tree = &game->tree;
    Wz__Episode **list = wz_alloc(sizeof *list * (size_t)(n + 1));
    int asked = 0, left = 0;

    for (int i = 0; i < n; i++) {
        const Wz__Episode *e = episodes[i];
        if (!e->harmful || e->discard[0] || e->cut[0]) continue;
        if (round_of(e, game->players[0]) != attempts) continue;
        speaker[i] = game->players[0];
        if (!off_topic(game, e)) list[asked++] = episodes[i];
    }
    if (asked && attempts < most_attempts(tree)) game->label(game->judges, false, list, asked);
    for (int i = 0; i < n; i++) {
        if (!speaker[i]) continue;
        const Wz__Episode *e = episodes[i];
        const int reply = wz_turn_last(e, WZ_CONVERSATION);
        const Wz__Turn *c = off_topic(game, e) ? NULL : e->turns[reply];
        if (c && (c->verdict == WZ__VERDICT__FAILED || c->judged_unsafe)) speaker[i] = NULL;
        else if (parent_of_next(tree, e) == NO_ATTEMPT)
            speaker[i] = reply < 0 ? player_of(game, WZ_CONVERSATION) : NULL;
        left += speaker[i] != NULL;
    }
    free(list);
    return left;
}

/* The attack that is searched for on the agent that answers, as a turn before its first. Where there is none the prompt
 * is played as it is, so that it stays one of those that rates are of. */
static void search_attack(const struct wz_game *game, const struct wz_player *p, Wz__Episode *e)
{
    struct wz_found found = { 0 };
    struct wz_buf text = { 0 };
    struct wz_err err;

    if (wz_search_run(game->search, p, game->seed, e, &found, &err) < 0)
        wz_set_string(&e->unattacked, err.text, strlen(err.text));
    else {
        Wz__Turn *t = wz_episode_turn(e);
        t->agent = (uint32_t)p->agent;
        wz_set_string(&t->role, WZ_ATTACKER, strlen(WZ_ATTACKER));
        t->about = -1;
        t->scored = (uint32_t)found.scored;
        t->target_logp = found.score;
        t->valid = true;
        give(p, t, &found.ids, &text);
        wz_buf_clear(&text);
        wz_decode(p->tok, found.target.ids, found.target.n, true, &text);
        wz_set_string(&t->target, text.data ? text.data : "", text.len);
    }
    wz_set_string(&e->prefill, "", 0); /* was sought, and is not given */
    e->resets = 0;
    wz_ids_finish(&found.ids);
    wz_ids_finish(&found.target);
    wz_buf_finish(&text);
}

void wz_play(const struct wz_game *game, Wz__Episode **episodes, int n)
{
    const bool again = game->tree.depth > 1 || game->tree.branching > 1;
    int attempts = 0, left = n;
    struct call call = {
        wz_alloc(sizeof *call.requests * (size_t)n), wz_alloc(sizeof *call.contexts * (size_t)n),
        wz_alloc(sizeof *call.episodes * (size_t)n), wz_alloc(sizeof *call.about * (size_t)n),
        wz_alloc(sizeof *call.given * (size_t)n),    0,
    };
    struct wz_player **speaker = wz_alloc(sizeof *speaker * (size_t)n); /* of each episode; NULL: it has ended */

    for (int i = 0; i < n; i++) {
        speaker[i] = game->players[0];
        if (game->search && episodes[i]->harmful) search_attack(game, game->players[0], episodes[i]);
    }
    do {
        while (left > 0)
            for (int s = 0; s < game->n_players; s++) { /* one player answers all that wait for it */
                struct wz_player *p = game->players[s];
                for (int i = 0; i < n; i++)
                    if (speaker[i] == p) call_add(&call, game, p, episodes[i]);
                if (p->seat->write) call_write(&call, game, p);
                else call_run(&call, p);
                if (again && game->tree.topic && !strcmp(p->seat->name, WZ_ATTACKER))
                    prune(game, p, episodes, speaker, n);
                for (int i = 0; i < n; i++)
                    if (speaker[i] == p && !(speaker[i] = next_player(game, p, episodes[i]))) {
                        unanswered(game, episodes[i], p);
                        left--;
                    }
            }
    } while (again && (left = try_again(game, episodes, speaker, n, ++attempts)) > 0);
    for (int i = 0; i < n; i++) wz_ids_finish(&call.contexts[i]);
    free(call.requests);
    free(call.contexts);
    free(call.episodes);
    free(call.about);
    free(call.given);
    free(speaker);
}
