/* The inside of a tokenizer. Private to text.
 *
 * Every kind of file is converted to the terms of a tokenizer.json: pieces with ids, merges of two pieces into a third
 * by rank, and the JSON of normalizer, pre-tokenizer and decoder (pretokenize.c):
 *
 *   text ─▶ split at added pieces ─▶ normalizer ─▶ split at normalized added pieces ─▶ pre-tokenizer ─▶ characters
 *        ─▶ merges by rank ─▶ ids
 *
 * Piece texts are in the form of a tokenizer.json: in byte-level vocabularies every byte is a printable character (the
 * alphabet below), in SentencePiece ones a space is U+2581 and a lone byte is <0xNN>. */
#ifndef WZ_TOKENIZER_INSIDE_H
#define WZ_TOKENIZER_INSIDE_H

#include "text/text.h"

/* U+FFFF, a noncharacter, stands in piece texts for U+0000, which a jansson key and a C string can't hold. */
enum { WZ_VOCAB_MAX = 1 << 20, WZ_TEXT_MAX = 1 << 30, WZ_NUL_CHAR = 0xffff };

/* BOS or EOS that a file sets to null; -1: not set. */
enum { WZ_NO_ID = -2 };

enum wz_piece_kind {
    WZ_PIECE_NONE, /* no piece has this id */
    WZ_PIECE_NORMAL,
    WZ_PIECE_BYTE,    /* <0xNN> */
    WZ_PIECE_ADDED,   /* matched in a text as a whole before anything else */
    WZ_PIECE_SPECIAL, /* never encoded from text */
};

/* Of added tokens: it takes in the whitespace at its left or right; it is no match beside a word character; it is
 * looked for in the normalized text, itself normalized, and not in the raw text; normalizing changes it. */
enum { WZ_LSTRIP = 1, WZ_RSTRIP = 2, WZ_SINGLE_WORD = 4, WZ_NORMALIZED = 8, WZ_UNLIKE = 16 };

/* Texts of pieces to look for, sorted by bytes. */
struct wz_added {
    struct wz_pattern {
        const char *text; /* in the arena */
        int n, id;
    } * list;
    int n;
    bool begins[256]; /* their first bytes */
};

struct wz_piece {
    const char *text, *bytes; /* as in a tokenizer.json; what it decodes to. Both in the tokenizer's arena */
    int n_text, n_bytes;
    float score;
    enum wz_piece_kind kind;
    uint8_t flags; /* of an added or special piece: WZ_LSTRIP | ... */
};

struct wz_merge {
    int left, right, id;
    uint32_t rank;
};

struct wz_stages;
struct wz_program;

/* Names of the files of a folder that make its tokenizer; the first two hold a vocabulary. */
enum { WZ_FILE_JSON, WZ_FILE_SPM, WZ_FILES = 8 };
extern const char *const wz_tokenizer_files[WZ_FILES];

struct wz_tokenizer {
    char *name; /* the file, for messages */
    struct wz_arena arena;
    struct wz_piece *pieces; /* [n], cap allocated */
    int n, cap;
    int *slots; /* id + 1 by hash of the text, 0 free; n_slots a power of two */
    size_t n_slots, n_used;
    struct wz_merge *merges; /* by hash of (left, right), left -1 free; merge_slots a power of two */
    size_t merge_slots, n_merges;
    int byte_ids[256]; /* <0xNN>, -1: none */
    int unk, bos, eos, pad;
    bool byte_level;              /* piece texts are in the byte alphabet */
    bool byte_fallback, fuse_unk; /* a character without a piece becomes its bytes, else unk; runs of unk become one */
    bool ignore_merges;           /* a pre-token that is a piece as a whole is not merged */
    bool strip;                   /* decoding drops the first space, which the normalizer added */
    bool added_inside;            /* SentencePiece's: added pieces are found among a span's characters when merging */
    bool squeeze;                 /* SentencePiece's remove_extra_whitespaces */
    bool as_read;                 /* kept holds the files, which are saved as they are */
    struct wz_added raw, normal;  /* added and special pieces in the raw text; in the normalized text */
    json_t *normalizer, *pre, *post, *decoder;  /* as in tokenizer.json; NULL: none */
    struct wz_stages *normalize, *split, *show; /* of normalizer, pre-tokenizer, and decoder: what rewrites a piece */
    struct wz_buf kept[WZ_FILES];               /* the bytes of wz_tokenizer_files; empty: there is no such file */
    bool special_first[256];                    /* first bytes of special pieces, and the length of the longest */
    size_t special_longest;
    json_t *named;              /* special tokens by name, {"bos_token": text, ...}; NULL: the files name none */
    char *jinja;                /* the files' own chat template, NULL: none... */
    struct wz_program *chat;    /* ...parsed, NULL: */
    struct wz_err chat_problem; /* why it can't be */
};

/* ---- tokenizer_vocab.c: pieces by id and by text, merges -------------------------------------------------- */

/* Adds a piece. -1 and a message when the id is out of range or taken, or the text is empty, known or not UTF-8. */
int wz_vocab_add(struct wz_tokenizer *tok, int id, const char *text, size_t n, enum wz_piece_kind kind, float score,
                 struct wz_err *err);
/* An added token of a tokenizer.json: a new piece, or a new kind for the piece that has this id and text. */
int wz_vocab_mark(struct wz_tokenizer *tok, int id, const char *text, size_t n, bool special, int flags,
                  struct wz_err *err);
int wz_vocab_find(const struct wz_tokenizer *tok, const char *text, size_t n); /* -1: none */
const struct wz_piece *wz_vocab_at(const struct wz_tokenizer *tok, int id);    /* NULL: none */
/* The merge of two neighbours, NULL: none. */
const struct wz_merge *wz_merge_find(const struct wz_tokenizer *tok, int left, int right);
/* A merge by the texts of its halves; their concatenation must be a piece too. */
int wz_merge_add(struct wz_tokenizer *tok, const char *left, size_t n_left, const char *right, size_t n_right,
                 uint32_t rank, struct wz_err *err);
/* Merges of a vocabulary without a merge list: every split of a piece into two pieces, ranked by falling score. */
void wz_merges_derive(struct wz_tokenizer *tok);
/* The longest of the patterns that s begins with, NULL: none. */
const struct wz_pattern *wz_added_find(const struct wz_added *added, const char *s, size_t n);
/* Is there a word's character before or behind s[from..to) in s[0..n)? A WZ_SINGLE_WORD piece is no match there. */
bool wz_beside_words(const char *s, size_t n, size_t from, size_t to);
/* Whether a template that spells this piece means its id: a special piece, BOS or EOS. */
bool wz_vocab_special(const struct wz_tokenizer *tok, int id);
/* The last step of loading: decoded bytes, byte ids, added and special pieces, stages, ids of BOS and EOS. */
int wz_vocab_complete(struct wz_tokenizer *tok, struct wz_err *err);

/* The byte alphabet of GPT-2: each byte as a printable character; -1 for a character outside it. */
uint32_t wz_byte_char(unsigned char byte);
int wz_char_byte(uint32_t code);

/* ---- pretokenize.c: normalizer and pre-tokenizer ---------------------------------------------------------- */

extern const char *const wz_roles[3]; /* messages.c: "system", "user", "assistant" by enum wz_role */
extern const char wz_gpt2_pattern[], wz_llama3_pattern[];

/* A text cut into spans. Zeroed struct begins; reused from segment to segment of one encode. */
struct wz_span {
    size_t at, len;
};
struct wz_cut {
    struct wz_buf text, spare;
    struct wz_span *list, *spare_list;
    int n, cap, n_spare, spare_cap;
    void *match;
};

enum wz_part_kind { WZ_NORMALIZER, WZ_PRE_TOKENIZER };

/* Of a normalizer or pre-tokenizer, NULL: none. NULL and a message naming the part that is not supported. */
struct wz_stages *wz_stages_create(const json_t *part, enum wz_part_kind kind, const char *name, struct wz_err *err);
void wz_stages_destroy(struct wz_stages *stages);
bool wz_stages_byte_level(const struct wz_stages *stages);
/* Fills cut with the spans of valid UTF-8 s[0..n); a normalizer's are the whole of cut->text. first: it is the
 * beginning of the whole input. */
int wz_stages_run(const struct wz_stages *stages, const char *s, size_t n, bool first, struct wz_cut *cut,
                  struct wz_err *err);
void wz_cut_finish(struct wz_cut *cut);
/* A regex of Oniguruma as PCRE2 takes it; NULL, or what of it is not supported (pattern.c). */
const char *wz_pattern_pcre(const char *pattern, struct wz_buf *out);

/* ---- normalize.c: Unicode --------------------------------------------------------------------------------- */

enum wz_form { WZ_NFC, WZ_NFD, WZ_NFKC, WZ_NFKD, WZ_LOWERCASE, WZ_STRIP_ACCENTS, WZ_STRIP_LEFT, WZ_STRIP_RIGHT };

/* Appends valid UTF-8 s[0..n) in that form. */
void wz_normalize(enum wz_form form, const char *s, size_t n, struct wz_buf *out);
bool wz_char_word(uint32_t code);
uint32_t wz_char_before(const char *s, size_t n, int *len); /* the last character of s[0..n), n > 0, and its bytes */

/* ---- bpe.c: merging --------------------------------------------------------------------------------------- */

/* Scratch of wz_bpe_run, which appends the ids of one span s[0..n) to `out`. */
struct wz_bpe {
    struct wz_symbol *symbols;
    struct wz_candidate *heap;
    int cap, n_heap, heap_cap;
}; /* zeroed: empty */
int wz_bpe_run(const struct wz_tokenizer *tok, const char *s, size_t n, struct wz_bpe *work, struct wz_ids *out,
               struct wz_err *err);
void wz_bpe_finish(struct wz_bpe *work);

/* ---- the kinds of files; each fills a fresh tokenizer, wz_vocab_complete follows -------------------------- */

int wz_load_json(struct wz_tokenizer *tok, const char *bytes, size_t n, struct wz_err *err); /* tokenizer_json.c */
/* tokenizer_config.json of the folder, and the files that older folders have beside it. */
int wz_load_config(struct wz_tokenizer *tok, const char *dir, struct wz_err *err);
/* From tok->decoder: tok->show and tok->strip. */
int wz_load_decoder(struct wz_tokenizer *tok, struct wz_err *err);
int wz_load_jinja(struct wz_tokenizer *tok, const char *path, struct wz_err *err);             /* chat_template.jinja */
int wz_load_ranks(struct wz_tokenizer *tok, const char *bytes, size_t n, struct wz_err *err);  /* tokenizer_ranks.c */
int wz_load_spm(struct wz_tokenizer *tok, const uint8_t *bytes, size_t n, struct wz_err *err); /* spm.c */
int wz_load_llama2c(struct wz_tokenizer *tok, const uint8_t *bytes, size_t n, struct wz_err *err);
int wz_load_gguf(struct wz_tokenizer *tok, const char *path, struct wz_err *err); /* tokenizer_gguf.c */
/* Sets normalizer, pre-tokenizer and decoder, as JSON of a tokenizer.json, of SentencePiece (prefix: add_dummy_prefix,
 * squeeze: remove_extra_whitespaces) and of byte-level BPE (patterns: regexes to split by, NULL-terminated). */
void wz_spm_stages(struct wz_tokenizer *tok, bool prefix, bool squeeze);
void wz_spm_pack(const struct wz_tokenizer *tok, struct wz_buf *out); /* the bytes of a .model, of such a tokenizer */
void wz_byte_level_stages(struct wz_tokenizer *tok, const char *const *patterns);

/* ---- tokenizer_save.c ------------------------------------------------------------------------------------- */

/* Keeps the bytes of the loaded file, and of the folder's other files where hub is set. */
int wz_tokenizer_keep(struct wz_tokenizer *tok, const char *dir, bool hub, struct wz_err *err);

#endif
