/* text: text to token ids and back. Tokenizers: byte-level BPE (GPT-2, SmolLM2, Llama 3) and SentencePiece BPE with
 * byte fallback (Llama 2, Mistral).
 * Read from a hub folder's tokenizer.json, a SentencePiece tokenizer.model, Meta's base64-rank tokenizer.model, a
 * llama2.c tokenizer .bin, or a GGUF file. Immutable after load; safe to share between threads. */
#ifndef WZ_TEXT_H
#define WZ_TEXT_H

#include "base/base.h"

struct wz_tokenizer;

/* A list of token ids that grows. Zeroed struct is empty. */
struct wz_ids {
    int *ids;
    int n, cap;
};
void wz_ids_add(struct wz_ids *list, int id);
void wz_ids_append(struct wz_ids *list, const int *ids, int n);
void wz_ids_finish(struct wz_ids *list);

/* path: a folder (tokenizer.json, else tokenizer.model) or one file of any of the kinds above. */
struct wz_tokenizer *wz_tokenizer_load(const char *path, struct wz_err *err);
void wz_tokenizer_destroy(struct wz_tokenizer *tok);
int wz_tokenizer_save(const struct wz_tokenizer *tok, const char *dir,
                      struct wz_err *err); /* tokenizer.json(+_config) */

/* Do both give every id the same bytes? Then ids of one may be handed to a model of the other. */
bool wz_tokenizer_same(const struct wz_tokenizer *a, const struct wz_tokenizer *b);
int wz_tokenizer_vocab(const struct wz_tokenizer *tok); /* ids are in [0, vocab) */
int wz_tokenizer_bos(const struct wz_tokenizer *tok);   /* -1: none */
int wz_tokenizer_eos(const struct wz_tokenizer *tok);
/* Id of a special (or any) piece by its exact text, -1 if there is none. */
int wz_tokenizer_id(const struct wz_tokenizer *tok, const char *piece);
/* Name of the chat template that the model's own files ask for ("llama3", "chatml", ...), NULL if there is none,
 * "?" if there is one that is not known to us. */
const char *wz_tokenizer_template(const struct wz_tokenizer *tok);

/* Appends the ids of text[0..n) without BOS. Text is text: what looks like a special token in it stays plain text.
 * Invalid UTF-8 is an error that names the byte. */
int wz_encode(const struct wz_tokenizer *tok, const char *text, size_t n, struct wz_ids *out, struct wz_err *err);
/* Appends the bytes of the ids. Special tokens are skipped unless `specials`. Ids out of range are skipped. */
void wz_decode(const struct wz_tokenizer *tok, const int *ids, int n, bool specials, struct wz_buf *out);

/* Streaming decode: feed ids, get only whole UTF-8 characters. Zeroed struct begins. `flush` turns a cut-off rest to
 * U+FFFD. */
struct wz_stream {
    char rest[64];
    int n;
    bool begun;
};
void wz_stream_add(const struct wz_tokenizer *tok, struct wz_stream *stream, int id, struct wz_buf *out);
void wz_stream_flush(struct wz_stream *stream, struct wz_buf *out);

/* ---- chat.c: chat templates by name -------------------------------------------------------------------------- */

/* Messages to token ids, equal to the hub's rendering token for token. The text of a message is encoded as plain text;
 * only the template writes special tokens (law 8: no text is ever rendered with its special tokens and then tokenised).
 */
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
