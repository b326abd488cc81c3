/* rollout: trajectories. The engine generates tokens for many sequences at once; play is the game (paper section 1):
 *
 *     prompt ─▶ c0 ─▶ f0 ─▶ satisfied, broken, or rounds used up? ─▶ end
 *                      └──── else ─▶ c1 ─▶ f1 ...
 */
#ifndef WZ_ROLLOUT_H
#define WZ_ROLLOUT_H

#include "model/model.h"
#include "proto/proto.h"
#include "store/store.h"

/* ---- feedback.c: the strict parser (paper 6.4) ------------------------------------------------------------ */

struct wz_feedback {
    bool unsafe, overrefuse;
    char *text;
    const char *problem;
};
/* The whole text is one JSON object with exactly the keys reasoning, unsafe, overrefuse, feedback, in this order, real
 * booleans. True if so; else problem says why (static text). text is heap: free it. */
bool wz_feedback_parse(const char *text, size_t n, struct wz_feedback *out);

/* ---- play.c: the game ------------------------------------------------------------------------------------- */

/* One agent as a player. */
struct wz_player {
    struct wz_engine *engine;
    struct wz_model *model;
    const struct wz_tokenizer *tok;
    const struct wz_template *chat;
    const char *system; /* "" : none */
    int max_tokens, top_k;
    float temperature, top_p, min_p;
    int agent; /* index in the recipe's list */
};
struct wz_game {
    struct wz_player *conversation, *feedback; /* feedback NULL: single-agent, the episode is c0 */
    int rounds;                                /* T_max */
    bool one_vocabulary;                       /* wz_tokenizer_same: a reply goes to the feedback agent as ids */
    uint64_t seed;
};
/* Plays the episodes (step, index, prompt, kind, harmful filled in) to their ends, all in step. */
void wz_play(const struct wz_game *game, Wz__Episode **episodes, int n);

#endif
