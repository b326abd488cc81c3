/* rollout: episodes are played. A game is a list of players, each in a seat; a seat says how its role is asked, how its
 * answer is read, and who is next. WaltzRL's game (2.1) is two rows of the table, before which an attacker may rewrite
 * the prompt:
 *
 *     prompt ─▶ c0 ─▶ f0 ─▶ no flag, not valid, or max_rounds reached? ─▶ end
 *                      └──── else ─▶ c1 ─▶ f1 ...
 */
#ifndef WZ_ROLLOUT_H
#define WZ_ROLLOUT_H

#include "model/model.h"
#include "proto/proto.h"
#include "store/store.h"

/* ---- feedback.c: the strict parser of a feedback agent's output ------------------------------------------- */

struct wz_feedback {
    bool unsafe, overrefuse;
    char *text;          /* the feedback string: heap, the caller frees it; NULL where not valid */
    const char *problem; /* why it is not valid: static text; NULL where it is */
};
/* Valid is a whole text that is one JSON object with exactly the keys reasoning, unsafe, overrefuse, feedback, in this
 * order, with real booleans. True if so; fills in *out either way. */
bool wz_feedback_parse(const char *text, size_t n, struct wz_feedback *out);

/* ---- play.c: the game ------------------------------------------------------------------------------------- */

struct wz_game;
struct wz_player;

/* What a player is asked: messages after its system prompt, and the turn that its answer will be about. */
struct wz_ask {
    struct wz_message *messages; /* [1 + n_turns of the episode], none filled in */
    int n;                       /* filled in */
    struct wz_buf text;          /* for text that a message points to; freed when the answer is there */
    int about;                   /* index of a turn; -1: none, as it is before the call */
};
/* A seat of a game. Nothing in it may depend on chance, or on another episode. */
struct wz_seat {
    const char *role; /* of its turns */
    /* Fills in what the player sees in this episode, whose turns so far are all complete. */
    void (*ask)(const struct wz_game *game, const struct wz_player *player, const Wz__Episode *e, struct wz_ask *ask);
    /* Reads the new turn's text and fills in what it says. NULL: nothing is to be read. A malformed text is data: a
     * field of the turn. */
    void (*read)(const struct wz_player *player, Wz__Turn *turn);
    /* The role that speaks after this seat's turn, the last of e; NULL, or a role that nobody has: the episode ends. */
    const char *(*next)(const struct wz_game *game, const Wz__Episode *e);
};
extern const struct wz_seat wz_seats[]; /* up to a row without a role; the first that has a player begins a game */
const struct wz_seat *wz_seat_find(const char *role); /* NULL: no such row */

/* One agent in its seat. All pointers are borrowed. */
struct wz_player {
    const struct wz_seat *seat;
    struct wz_engine *engine;
    struct wz_model *model;
    const struct wz_tokenizer *tok;
    const struct wz_template *chat;
    const struct wz_ids *stops; /* end its turns: of wz_stops_find */
    const char *system;         /* "": none */
    int max_tokens, top_k;
    float temperature, top_p, min_p;
    bool think; /* its replies begin with a thought */
    int agent;  /* index in the recipe's list */
};
enum { WZ_MAX_PLAYERS = 8 };
struct wz_game {
    struct wz_player *players[WZ_MAX_PLAYERS]; /* one of a role; the first begins every episode */
    int n_players;
    int rounds;          /* max_rounds: revisions of a reply, at most */
    bool one_vocabulary; /* wz_tokenizer_same for all players: a reply is shown to the others as its ids */
    uint64_t seed;
};
/* Plays the episodes (step, index, prompt, kind, harmful filled in) to their ends, those whose turn it is to speak for
 * one player together. One whose next turn can't be played ends there with the reason in `cut`, or, where there is no
 * reply yet, in `discard`. */
void wz_play(const struct wz_game *game, Wz__Episode **episodes, int n);

/* ---- thought.c: thoughts, and what replies are given to begin with ------------------------------------------ */

/* Appends the ids that the player's next turn in e is given to begin with, and returns how many; -1 and a message. */
int wz_given_add(const struct wz_player *player, const Wz__Episode *e, struct wz_ids *context, struct wz_err *err);
/* Fills in a reply's thought, thought_ids and valid: it ended; and where the agent thinks, once, and it answered. */
void wz_thought_read(const struct wz_player *player, Wz__Turn *turn);

#endif
