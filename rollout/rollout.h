/* rollout: episodes are played. A game is a list of players, each in a seat; a seat says how its role is asked, how its
 * answer is read, and who is next. WaltzRL's game (2.1) is two rows of the table, before which an attacker may rewrite
 * the prompt:
 *
 *     prompt ─▶ c0 ─▶ f0 ─▶ no flag, not valid, or max_rounds reached? ─▶ end
 *                      └──── else ─▶ c1 ─▶ f1 ...
 *
 * Two more seats have a rule in a model's place, for WaltzRL's baselines (section 8): an oracle gives the judges' label
 * as feedback, a guard replaces the last reply where its judge says that it does harm.
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
    const char *name; /* of a recipe's `role` */
    const char *role; /* of its turns */
    /* Fills in what the player sees in this episode, whose turns so far are all complete. */
    void (*ask)(const struct wz_game *game, const struct wz_player *player, const Wz__Episode *e, struct wz_ask *ask);
    /* Reads the new turn's text and fills in what it says. NULL: nothing is to be read. A malformed text is data: a
     * field of the turn. */
    void (*read)(const struct wz_player *player, Wz__Turn *turn);
    /* The name of the seat that speaks after this one's turn, the last of e; NULL, or one that nobody has: the episode
     * ends. */
    const char *(*next)(const struct wz_game *game, const Wz__Episode *e);
    /* Of a seat with a rule in a model's place (else NULL; these have no `ask`): appends what it says of reply c, whose
     * label is filled in. Nothing: there is no such turn, and the episode ends. */
    void (*write)(const struct wz_player *player, const Wz__Turn *c, struct wz_buf *text);
    bool guards; /* such a seat's label is of the judges that guard; else of those that reward */
};
extern const struct wz_seat wz_seats[]; /* up to a row without a name; the first that has a player begins a game */
const struct wz_seat *wz_seat_find(const char *name); /* NULL: no such row */

/* One agent in its seat. All pointers are borrowed. Where the seat writes by a rule there are no engine, no model and
 * no template: its turns have no context, and all of their ids are given. */
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
    bool think;                                /* its replies begin with a thought */
    int agent;                                 /* index in the recipe's list */
    const char *says_unsafe, *says_overrefuse; /* of a seat that writes: what it says of such a reply */
};
enum { WZ_MAX_PLAYERS = 8 };
/* An attacker's attempts at a harmful prompt, until one succeeds: TAP (Mehrotra et al. 2023, arXiv 2312.02119,
 * algorithm 1); with branching and width 1 that is PAIR. An attempt is a turn of the attacker and what came of it. The
 * turn's `about` is the last reply of the attempt that it goes on from; -1: of none, as the first ones. 0: 1. */
struct wz_tree {
    int depth, branching, width; /* levels; attempts that go on from one; of a level, how many are gone on from */
    /* Judges the last turn, an attack, of each episode, and fills in its verdict, judged_refusal (it asks for something
     * else: off topic) and judge_error. NULL: all are on topic, as a single attempt is. arg: `judges`. */
    void (*topic)(void *judges, Wz__Episode **episodes, int n);
};
/* An attack that is searched for by the log-probabilities of the agent that it is made against (search.c). */
struct wz_proposer; /* a way to propose candidates: a row of the table in search.c */
const struct wz_proposer *wz_proposer_find(const char *name); /* NULL: no such row */
struct wz_search {
    const struct wz_proposer *by;
    const char *target, *text; /* what replies are to begin with; what the search begins with behind the prompt */
    int steps, candidates, top_k;
};
struct wz_found {
    struct wz_ids ids, target; /* of the user's message, and what was sought behind it; the caller finishes them, and
                                  may give them zeroed or used before */
    double score;              /* log-probability of the target behind it */
    int scored;                /* candidates whose score was asked for */
};
/* Searches for an attack on the player at the episode's prompt. Where that has a prefill, it is the target. The result
 * depends on these arguments and the weights alone. Meanwhile it takes memory (docs/attacks.md). -1 and a message:
 * there is nothing to begin with, or to be sought. */
int wz_search_run(const struct wz_search *how, const struct wz_player *player, uint64_t seed, const Wz__Episode *e,
                  struct wz_found *found, struct wz_err *err);
struct wz_game {
    struct wz_player *players[WZ_MAX_PLAYERS]; /* one of a seat; the first begins every episode */
    int n_players;
    int rounds;          /* max_rounds: revisions of a reply, at most */
    bool one_vocabulary; /* wz_tokenizer_same for all players: a reply is shown to the others as its ids */
    uint64_t seed;
    struct wz_tree tree;
    /* Harmful prompts are attacked so before the first turn; NULL: they are not. Where there is nothing to begin with,
     * `unattacked` says why, and they are played as they are. */
    const struct wz_search *search;
    /* Where a seat writes, or there are attempts: judges the last reply of each episode, by the judges that guard or by
     * those that reward, and fills in its verdict, label, score and judge_error. arg: `judges`. */
    void (*label)(void *judges, bool guards, Wz__Episode **episodes, int n);
    void *judges;
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
