/* Chat templates by name: messages to token ids, equal to the hub's rendering token for token.
 * The text of a message is encoded as plain text; only the template writes special tokens (law 8: no text is ever
 * rendered with its special tokens and then tokenised). */
#ifndef WZ_CHAT_H
#define WZ_CHAT_H

#include "model/tokenizer.h"

enum wz_role { WZ_SYSTEM, WZ_USER, WZ_ASSISTANT };
/* A turn of a conversation: text (or NULL), then ids that a model wrote (or NULL): those are put in as they are,
 * less their end token, so that nothing sampled is ever tokenised again. */
struct wz_message {
    enum wz_role role;
    const char *text;
    const int *ids;
    int n_ids;
};

struct wz_template; /* rows of a table: llama3, chatml, llama2, mistral, sandbox, ... */
/* NULL and a sentence naming the choices when unknown, or when the tokenizer lacks a special token the template
 * needs. */
const struct wz_template *wz_template_find(const char *name, const struct wz_tokenizer *tok, struct wz_err *err);
const char *wz_template_name(const struct wz_template *t);
/* Appends the ids of the messages, BOS included where the template has one; with `generate`, also the opening of an
 * assistant turn. -1 on invalid UTF-8 or a role the template can't place. */
int wz_template_apply(const struct wz_template *t, const struct wz_tokenizer *tok, const struct wz_message *messages,
                      int n, bool generate, struct wz_ids *out, struct wz_err *err);
/* The tokens that end an assistant turn (stop sampling at any): writes up to 8, returns how many. */
int wz_template_stops(const struct wz_template *t, const struct wz_tokenizer *tok, int stops[8]);

#endif
