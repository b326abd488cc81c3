/* text: text to token ids and back, and chat templates. Tokenizers: byte-level BPE (GPT-2, SmolLM2, Llama 3, Qwen) and
 * SentencePiece BPE with byte fallback (Llama 2, Mistral, Gemma), read from a Hugging Face tokenizer.json, a
 * SentencePiece tokenizer.model, Meta's base64-rank tokenizer.model, a llama2.c tokenizer .bin, or a GGUF file.
 * Immutable after load; safe to share between threads. Unless said otherwise functions return 0, or -1 and a message in
 * `err`. */
#ifndef WZ_TEXT_H
#define WZ_TEXT_H

#include "base/base.h"

/* Characters (normalize.c). alnum: a letter, a numeral or an underscore, Python's \w; digit: decimal, in any script. */
bool wz_char_space(uint32_t code);
bool wz_char_alnum(uint32_t code);
bool wz_char_digit(uint32_t code);
uint32_t wz_char_lower(uint32_t code);

struct wz_tokenizer;

/* A list of token ids that grows. Zeroed struct is empty. */
struct wz_ids {
    int *ids;
    int n, cap;
};
void wz_ids_add(struct wz_ids *list, int id);
void wz_ids_append(struct wz_ids *list, const int *ids, int n);
void wz_ids_finish(struct wz_ids *list);

/* path: a folder (tokenizer.json, else tokenizer.model) or one file of any of the kinds above. NULL and a message. */
struct wz_tokenizer *wz_tokenizer_load(const char *path, struct wz_err *err);
void wz_tokenizer_destroy(struct wz_tokenizer *tok);
/* Writes it into a folder: files of a folder as they were read, tokenizer.json, its settings and all; of other kinds of
 * files a tokenizer.json and tokenizer_config.json, or a tokenizer.model where a tokenizer.json could not say the same.
 */
int wz_tokenizer_save(const struct wz_tokenizer *tok, const char *dir, struct wz_err *err);

/* Whether both give every id the same kind and bytes: then ids of one may be passed to a model of the other. */
bool wz_tokenizer_same(const struct wz_tokenizer *a, const struct wz_tokenizer *b);
int wz_tokenizer_vocab(const struct wz_tokenizer *tok); /* ids are in [0, vocab) */
int wz_tokenizer_bos(const struct wz_tokenizer *tok);   /* -1: none */
int wz_tokenizer_eos(const struct wz_tokenizer *tok);
/* Id of a (special) token by its exact text, -1: none. */
int wz_tokenizer_id(const struct wz_tokenizer *tok, const char *piece);

/* Appends the ids of text[0..n) without BOS. The text of a special token is encoded as plain text. Invalid UTF-8 is an
 * error that names the byte. */
int wz_encode(const struct wz_tokenizer *tok, const char *text, size_t n, struct wz_ids *out, struct wz_err *err);
/* The same for text that may follow other tokens: `first` is false then. */
int wz_encode_part(const struct wz_tokenizer *tok, const char *text, size_t n, bool first, struct wz_ids *out,
                   struct wz_err *err);
/* Appends the bytes of the ids. Special tokens are skipped unless `specials`. Ids out of range are skipped. Byte pieces
 * in a row that are no UTF-8 give U+FFFD each, as in transformers. */
void wz_decode(const struct wz_tokenizer *tok, const int *ids, int n, bool specials, struct wz_buf *out);

/* Streaming decode: appends only complete UTF-8 characters to `out`. Zeroed struct begins. flush: an incomplete rest
 * becomes U+FFFD. */
struct wz_stream {
    char rest[64];
    int n;
    bool begun;
};
void wz_stream_add(const struct wz_tokenizer *tok, struct wz_stream *stream, int id, struct wz_buf *out);
void wz_stream_flush(struct wz_stream *stream, struct wz_buf *out);

/* Whether a regex (of Python, as PCRE2 reads it) matches all of a text: 1, 0; -1 and a message that begins with it. */
int wz_pattern_whole(const char *pattern, const char *text, struct wz_err *err);

/* ---- messages.c, chat.c: messages, and chat templates ----------------------------------------------------- */

/* Messages to token ids, the same as apply_chat_template of transformers gives. The text of a message is encoded as
 * plain text; only the template writes special tokens (guarantee 8). */
enum wz_role { WZ_SYSTEM, WZ_USER, WZ_ASSISTANT };
/* A message: text (or NULL), then n_ids sampled ids less their end token (or NULL), which are inserted unchanged, so
 * that nothing sampled is tokenised again. All borrowed. */
struct wz_message {
    enum wz_role role;
    const char *text;
    const int *ids;
    int n_ids;
};

/* Reads a JSON array of {"role": "system"|"user"|"assistant", "content": text} into *messages (heap; its texts are the
 * JSON's) and returns how many; `system` (NULL or "": none) is put first unless they begin with a system message. -1
 * and an error that names the message, also where one has another key whose value is not null or empty. */
int wz_messages_parse(const json_t *list, const char *system, struct wz_message **messages, struct wz_err *err);
/* Such an array to ids (appended), by the named template (NULL: the model's own). */
int wz_messages_encode(const struct wz_tokenizer *tok, const char *template, const json_t *list, bool generate,
                       struct wz_ids *ids, struct wz_err *err);
/* Appends the ids of a JSON array of integers in [0, vocab). */
int wz_ids_parse(const json_t *list, int vocab, struct wz_ids *ids, struct wz_err *err);

struct wz_template; /* a row of the table in chat.c: jinja, llama3, chatml, llama2, mistral, sandbox, ... */
/* name: NULL, "" or "jinja" is the template in the model's own files. NULL and a message when the name is unknown (it
 * lists the choices), the files have no template or one that can't be read, or the tokenizer lacks a special token of
 * the template. Static storage. */
const struct wz_template *wz_template_find(const char *name, const struct wz_tokenizer *tok, struct wz_err *err);
const char *wz_template_name(const struct wz_template *t);
/* Appends the ids of messages[n], with BOS where the template has one; generate: also the opening of an assistant turn
 * (add_generation_prompt). -1 on invalid UTF-8, an error of the template or one that it raises (an order of roles that
 * it does not allow), or one that changes or drops what was sampled. */
int wz_template_apply(const struct wz_template *t, const struct wz_tokenizer *tok, const struct wz_message *messages,
                      int n, bool generate, struct wz_ids *out, struct wz_err *err);
/* The same with variables that the template takes besides messages: {name: value}. whole: -1 also where it does not
 * write all of each message's text, unchanged, but for blanks. */
int wz_template_apply_with(const struct wz_template *t, const struct wz_tokenizer *tok,
                           const struct wz_message *messages, int n, bool generate, const json_t *more, bool whole,
                           struct wz_ids *out, struct wz_err *err);
/* A reply of which a later turn would not be shown all, or something else: the first kind of those that templates look
 * into (a plain one, then reasoning in the marks of several models). NULL: there is none. Static storage. */
const char *wz_template_cuts(const struct wz_template *t, const struct wz_tokenizer *tok);
/* The tokens that end an assistant turn: writes up to 8 ids, returns how many. */
int wz_template_stops(const struct wz_template *t, const struct wz_tokenizer *tok, int stops[8]);

#endif
