/* proto: the shape of what crosses ranks. The episode is the generated message itself (episode.proto explains every
 * field); these helpers make, fill in and search it. Messages made here are on the heap until wz_episode_free. */
#ifndef WZ_PROTO_H
#define WZ_PROTO_H

#include "base/base.h"
#include "episode.pb-c.h"
#include "event.pb-c.h"

/* The two roles of WaltzRL's game, and one that rewrites the prompt before it. */
#define WZ_ATTACKER     "attacker"
#define WZ_CONVERSATION "conversation"
#define WZ_FEEDBACK     "feedback"

Wz__Episode *wz_episode_new(void);
void wz_episode_free(Wz__Episode *e);                      /* accepts NULL */
Wz__Turn *wz_episode_turn(Wz__Episode *e);                 /* appends an empty turn, about none */
Wz__Judgement *wz_turn_judgement(Wz__Turn *t);             /* appends an empty judgement */
void wz_turn_unjudge(Wz__Turn *t);                         /* removes all judgements */
bool wz_turn_is(const Wz__Turn *t, const char *role);      /* is it of this role? */
int wz_turn_last(const Wz__Episode *e, const char *role);  /* index of the role's last turn; -1: it has none */
void wz_set_string(char **field, const char *s, size_t n); /* replaces a string field; bad UTF-8 becomes U+FFFD */
const char *wz_turn_answer(const Wz__Turn *t);             /* a reply's text without its thought; "": it has none */
/* "stop", "length" or "context"; "" where it is not known. */
const char *wz_turn_finish(const Wz__Turn *t);
/* How many of the agent's turns (-1: of all agents') the context window cut: ended too early, or did not let begin. */
int wz_episode_cuts(const Wz__Episode *e, int agent);
void wz_turn_reserve(Wz__Turn *t, size_t n);           /* capacity for n ids and logp */
void wz_turn_add(Wz__Turn *t, int32_t id, float logp); /* within that capacity */

/* Several episodes as one run of bytes: u32 count, then u32 length + message each (little endian). */
void wz_episodes_pack(Wz__Episode *const *episodes, int n, struct wz_buf *out);
/* -1 when the bytes are not that. *out: heap array of heap messages. */
int wz_episodes_unpack(const void *bytes, size_t len, Wz__Episode ***out, int *n, struct wz_err *err);

/* A TensorBoard event (event.proto) as bytes, appended. */
void wz_event_pack(const Wz__Event *event, struct wz_buf *out);

#endif
