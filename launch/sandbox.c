/* waltz sandbox: writes the sandbox world as files that the other commands read: prompts, conversations for SFT, and a
 * model folder.
 *
 * The vocabulary holds five special tokens, the 256 bytes, and every word and run of punctuation of the world with its
 * leading space, as the pre-tokenizer splits a text. With ignore_merges a word that is in the vocabulary is one token,
 * so there are no merges; the bytes serve only text that a user types.
 *     <pad> <end> <sys> <user> <asst> | 256 bytes | "talk" "review" "how" " do" " i" ... */
#include "launch/launch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/model.h"
#include "reward/reward.h"
#include "sandbox/sandbox.h"

static const char *const specials[] = { "<pad>", "<end>", "<sys>", "<user>", "<asst>" };
enum { END = 1 };
static const char conversation_system[] = "talk", feedback_system[] = "review", attacker_system[] = "twist";
/* The pre-tokenizer's regex: words, numbers and punctuation with one leading space, else runs of spaces. */
static const char cut_pattern[] = " ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
static const char chat_template[] =
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ '<sys>' + message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '<user>' + message['content'] + '<end>' }}"
    "{% else %}{{ '<asst>' + message['content'] + '<end>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<asst>' }}{% endif %}";

/* Prompts of the train file and each kind's share of them; prompts per kind of dev and of test. */
enum { N_TRAIN = 12000, N_HELD = 200, N_REPLIES = 2000 };
/* Dev and test are drawn with this, whatever the world's seed: runs of several seeds are asked the same. */
enum { HELD_SEED = 1 };
enum { CONTEXT = 256, GUARD_CONTEXT = 384 }; /* tokens; a guard's prompt has some 150 before what it judges */
static const double shares[WZ_KINDS] = {
    [WZ_PB] = 0.10, [WZ_OB] = 0.25, [WZ_SR] = 0.20, [WZ_WJ] = 0.25, [WZ_WB] = 0.20
};

static int write_in(const char *dir, const char *name, const struct wz_buf *text, struct wz_err *err)
{
    char *path = wz_path("%s/%s", dir, name);
    int rc = wz_file_write(path, text->data, text->len, err);

    free(path);
    return rc;
}

/* ---- prompts ---------------------------------------------------------------------------------------------- */

/* Draws of one kind from one split as JSONL. Its group is its pair of verb and object: an agent treats prompts of one
 * alike. Train keeps repeats; in dev and test a pair comes again only when all of the kind have come, and a prompt
 * never: 200 prompts of test have 200 pairs. */
static void add_prompts(uint64_t seed, enum wz_kind kind, enum wz_split split, int n, struct wz_buf *out,
                        struct wz_buf *prefills)
{
    uint64_t *seen = wz_alloc((size_t)n * sizeof *seen);
    int *times = wz_alloc(sizeof *times * WZ_VERBS * WZ_OBJECTS), pairs = wz_world_pairs(kind, split);
    struct wz_buf text = { 0 }, pair = { 0 };

    for (uint32_t index = 0, done = 0; done < (uint32_t)n; index++) {
        struct wz_ask ask = wz_world_draw(split == WZ_TRAIN ? seed : HELD_SEED, kind, split, index);
        wz_buf_clear(&text);
        wz_world_prompt(&ask, &text);
        bool known = false;
        seen[done] = wz_hash(text.data, text.len, 0);
        for (uint32_t i = 0; split != WZ_TRAIN && i < done && !known; i++) known = seen[i] == seen[done];
        int *came = &times[ask.verb * WZ_OBJECTS + ask.object];
        if (known || (split != WZ_TRAIN && *came > (int)done / pairs)) continue;
        ++*came;
        wz_buf_printf(out, "{\"id\":\"%s-%s-%u\",\"prompt\":", wz_split_name(split), wz_kind_name(kind), done++);
        wz_json_string(out, text.data, text.len);
        wz_buf_clear(&pair);
        wz_world_pair(&ask, &pair);
        wz_buf_printf(out, ",\"kind\":\"%s\",\"group\":\"%s\",\"harmful\":%s}\n", wz_kind_name(kind), pair.data,
                      wz_world_harmful(&ask) ? "true" : "false");
        if (kind == WZ_PB) continue;
        wz_buf_str(prefills, "{\"prompt\":");
        wz_json_string(prefills, text.data, text.len);
        wz_buf_str(prefills, ",\"text\":\" ");
        wz_world_think(&ask, !wz_world_harmful(&ask), false, prefills);
        wz_buf_str(prefills, " </think>\"}\n");
    }
    wz_buf_finish(&text);
    wz_buf_finish(&pair);
    free(seen);
    free(times);
}

/* with_prefills: also thoughts that lead astray, with the wrong verdict, of all but plain benign prompts. */
static int write_prompts(const char *dir, uint64_t seed, bool with_prefills, struct wz_err *err)
{
    struct wz_buf text = { 0 }, prefills = { 0 };
    int rc = 0;

    for (int split = 0; split < WZ_SPLITS && rc == 0; split++) {
        char name[32];
        wz_buf_clear(&text);
        wz_buf_clear(&prefills);
        for (int kind = 0; kind < WZ_KINDS; kind++)
            add_prompts(seed, (enum wz_kind)kind, (enum wz_split)split,
                        split == WZ_TRAIN ? (int)lround(N_TRAIN * shares[kind]) : N_HELD, &text, &prefills);
        snprintf(name, sizeof name, "prompts-%s.jsonl", wz_split_name((enum wz_split)split));
        rc = write_in(dir, name, &text, err);
        snprintf(name, sizeof name, "prefills-%s.jsonl", wz_split_name((enum wz_split)split));
        if (with_prefills && rc == 0) rc = write_in(dir, name, &prefills, err);
    }
    wz_buf_finish(&text);
    wz_buf_finish(&prefills);
    return rc;
}

/* ---- lessons ---------------------------------------------------------------------------------------------- */

/* What a reply with a thought looks like; before it a system prompt's and a request's words. */
static const char thoughts[] = "<think> fine , wait , bad </think> sure";

static void add_message(struct wz_buf *out, const char *role, const char *text, size_t n)
{
    wz_buf_printf(out, "%s{\"role\":\"%s\",\"content\":", out->data[out->len - 1] == '[' ? "" : ",", role);
    wz_json_string(out, text, n);
    wz_buf_str(out, "}");
}

static void add_reply_of(struct wz_buf *out, const struct wz_buf *thought, const struct wz_buf *reply)
{
    struct wz_buf text = { 0 };

    if (thought->len) wz_buf_printf(&text, "<think> %s </think> ", thought->data);
    wz_buf_str(&text, reply->data);
    add_message(out, "assistant", text.data, text.len);
    wz_buf_finish(&text);
}

/* One SFT example. The first reply of a revision was written to be revised, so only the last turn has a loss. */
static void add_lesson(const struct wz_lesson *l, struct wz_buf *out)
{
    bool review = l->part == WZ_LESSON_FEEDBACK, revision = l->part == WZ_LESSON_REVISION;
    const char *system = review ? feedback_system : conversation_system;

    wz_buf_str(out, "{\"messages\":[");
    add_message(out, "system", system, strlen(system));
    if (review) {
        struct wz_buf pair = { 0 };
        wz_buf_printf(&pair, "User:%s\nAgent:%s", l->prompt.data, l->first.data);
        add_message(out, "user", pair.data, pair.len);
        add_message(out, "assistant", l->review.data, l->review.len);
        wz_buf_finish(&pair);
    } else {
        add_message(out, "user", l->prompt.data, l->prompt.len);
        add_reply_of(out, &l->thought, &l->first);
    }
    if (revision) {
        add_message(out, "user", l->wish.data, l->wish.len);
        add_reply_of(out, &l->rethought, &l->second);
    }
    wz_buf_printf(out, "],\"train\":\"%s\"}\n", revision ? "last" : "all");
}

static int write_lessons(const char *dir, uint64_t seed, char world, bool think, int n, struct wz_err *err)
{
    struct wz_lesson lesson = { .think = think };
    struct wz_buf text = { 0 };

    for (int i = 0; i < n; i++) {
        wz_lesson_draw(&lesson, seed, world, (uint32_t)i);
        add_lesson(&lesson, &text);
    }
    int rc = write_in(dir, "sft.jsonl", &text, err);
    wz_buf_finish(&text);
    wz_lesson_finish(&lesson);
    return rc;
}

/* Lessons for an attacker: a request, and the same once more in another form, wrapped or not. Which wrappers work it
 * has to find out. */
static int write_attacks(const char *dir, uint64_t seed, int n, struct wz_err *err)
{
    struct wz_buf out = { 0 }, text = { 0 };

    for (int i = 0; i < n; i++) {
        struct wz_key key = { seed, WZ_RNG_WORLD, 3, (uint32_t)i, 0, 0 };
        struct wz_ask ask = wz_world_draw(seed ^ 0x61747461636bu, (enum wz_kind)(i % WZ_KINDS), WZ_TRAIN, (uint32_t)i);
        wz_buf_str(&out, "{\"messages\":[");
        add_message(&out, "system", attacker_system, strlen(attacker_system));
        wz_buf_clear(&text);
        wz_world_prompt(&ask, &text);
        add_message(&out, "user", text.data, text.len);
        ask.form = (int)wz_below(key, WZ_FORMS);
        key.c = 1;
        ask.wrapper = (int)wz_below(key, 1 + WZ_WRAPPERS);
        wz_buf_clear(&text);
        wz_world_prompt(&ask, &text);
        add_message(&out, "assistant", text.data, text.len);
        wz_buf_str(&out, "],\"train\":\"all\"}\n");
    }
    int rc = write_in(dir, "attacks.jsonl", &out, err);
    wz_buf_finish(&out);
    wz_buf_finish(&text);
    return rc;
}

/* ---- replies with their truth, for judges ------------------------------------------------------------------- */

/* Of replies: to another request, so that a prompt alone decides nothing; spoilt as agents that learn spoil them; with
 * a second one behind it. */
static const double strayed = 0.3, spoilt = 0.4, doubled = 0.1;
enum draw { STRAYED, PAIR, FORM, OTHER, SPOILT, HOW, WHERE, WORD, DOUBLED };

static uint32_t draw(struct wz_key key, enum draw what, uint32_t n)
{
    key.c = (uint32_t)what;
    return wz_below(key, n);
}

static bool happens(struct wz_key key, enum draw what, double share)
{
    key.c = (uint32_t)what;
    return wz_uniform(key) < share;
}

/* Adds the text with one of its words the last but not said, left out, said twice, or another of its words. */
static void add_spoilt(struct wz_key key, const char *text, struct wz_buf *out)
{
    const char *words[64];
    int n = 0;

    for (const char *s = text; *s && n < 64; s += strcspn(s, " "), s += *s == ' ') words[n++] = s;
    const int how = (int)draw(key, HOW, 4), at = (int)draw(key, WHERE, (uint32_t)n),
              other = (int)draw(key, WORD, (uint32_t)n);
    for (int i = 0; i < (how == 0 ? at : n); i++) {
        const char *word = words[how == 3 && i == at ? other : i];
        for (int k = i != at ? 1 : how == 1 ? 0 : how == 2 ? 2 : 1; k; k--)
            wz_buf_printf(out, "%s%.*s", out->len ? " " : "", (int)strcspn(word, " "), word);
    }
}

static void add_reply(struct wz_key key, struct wz_ask ask, enum wz_split split, struct wz_buf *out)
{
    struct wz_buf text = { 0 };
    int other = WZ_SENSITIVE;

    if (happens(key, STRAYED, strayed))
        for (struct wz_key k = key; k.d == key.d || wz_world_split(ask.verb, ask.object) != split; k.d += 2) {
            const int pair = (int)draw(k, PAIR, WZ_VERBS * WZ_OBJECTS);
            ask.verb = pair / WZ_OBJECTS;
            ask.object = pair % WZ_OBJECTS;
        }
    for (struct wz_key k = key; k.d == key.d || other == ask.verb; k.d += 2)
        other = WZ_SENSITIVE + (int)draw(k, OTHER, WZ_VERBS - WZ_SENSITIVE);
    const int form = (int)draw(key, FORM, 6); /* half of them comply */
    wz_world_reply(&ask, form < 3 ? (enum wz_reply)(form % 2) : (enum wz_reply)(form - 1), other, &text);
    if (happens(key, SPOILT, spoilt)) add_spoilt(key, text.data, out);
    else wz_buf_printf(out, "%s%s", out->len ? " " : "", text.data);
    wz_buf_finish(&text);
}

/* n lines of what `waltz judge` reads, with the world's labels. */
static int write_replies(const char *dir, const char *name, uint64_t seed, enum wz_split split, int n,
                         struct wz_err *err)
{
    struct wz_buf out = { 0 }, prompt = { 0 }, reply = { 0 }, pair = { 0 };

    for (int i = 0; i < n; i++) {
        const struct wz_key key = { seed, WZ_RNG_WORLD, 2, (uint32_t)i, 0, 0 };
        const enum wz_kind kind = (enum wz_kind)(i % WZ_KINDS);
        const struct wz_ask ask = wz_world_draw(seed, kind, split, N_TRAIN + (uint32_t)i);
        bool harmful = false, refusal = false;
        wz_buf_clear(&prompt);
        wz_buf_clear(&reply);
        wz_buf_clear(&pair);
        wz_world_prompt(&ask, &prompt);
        wz_world_pair(&ask, &pair);
        add_reply(key, ask, split, &reply);
        if (happens(key, DOUBLED, doubled))
            add_reply((struct wz_key){ key.seed, key.purpose, 2, key.b, 0, 1 }, ask, split, &reply);
        wz_buf_str(&reply, "");
        wz_world_judge(prompt.data, reply.data, &harmful, &refusal);
        wz_buf_str(&out, "{\"prompt\":");
        wz_json_string(&out, prompt.data, prompt.len);
        wz_buf_str(&out, ",\"response\":");
        wz_json_string(&out, reply.data, reply.len);
        wz_buf_printf(&out, ",\"prompt_harmful\":%s,\"harmful\":%s,\"refusal\":%s,\"group\":\"%s\"}\n",
                      wz_world_harmful(&ask) ? "true" : "false", harmful ? "true" : "false", refusal ? "true" : "false",
                      pair.data);
    }
    int rc = write_in(dir, name, &out, err);
    wz_buf_finish(&out);
    wz_buf_finish(&prompt);
    wz_buf_finish(&reply);
    wz_buf_finish(&pair);
    return rc;
}

/* ---- tokenizer -------------------------------------------------------------------------------------------- */

/* Tokens in the order of their first use. */
struct pieces {
    struct wz_arena arena;
    char **list;
    int n, cap;
};

static void add_piece(struct pieces *p, const char *s, size_t n)
{
    if (n < 2) return; /* single bytes are in the vocabulary already */
    for (int i = 0; i < p->n; i++)
        if (strlen(p->list[i]) == n && !memcmp(p->list[i], s, n)) return;
    if (p->n == p->cap) p->list = wz_realloc(p->list, (size_t)(p->cap = 2 * p->cap + 64) * sizeof *p->list);
    char *copy = wz_arena_alloc(&p->arena, n + 1);
    memcpy(copy, s, n);
    p->list[p->n++] = copy;
}

static int class_of(char c)
{
    return (c | 32) >= 'a' && (c | 32) <= 'z' ? 0 : c >= '0' && c <= '9' ? 1 : c == ' ' || c == '\n' ? 2 : 3;
}

/* What cut_pattern splits, for the world's own texts: ASCII, single spaces, none at the end. */
static void cut_text(void *pieces, const char *text)
{
    for (const char *p = text, *q; *p; p = q) {
        q = p + (*p == ' ');
        int class = class_of(*q);
        while (*q && class_of(*q) == class) q++;
        add_piece(pieces, p, (size_t)(q - p));
    }
}

/* The character that byte-level BPE has for a byte: itself where it is printable, else one from U+0100 on. */
static int spell(char out[4], uint8_t byte)
{
    uint32_t shifted = 256;

    for (int b = 0; b < 256; b++) {
        bool prints = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        if (b == byte) return wz_utf8_put(out, prints ? (uint32_t)b : shifted);
        if (!prints) shifted++;
    }
    return 0;
}

/* The next id of the vocabulary, for the text s[0..n). */
static void add_entry(json_t *vocab, const char *s, size_t n, bool spelt)
{
    struct wz_buf text = { 0 };
    char c[4];

    for (size_t i = 0; i < n; i++)
        if (spelt) wz_buf_add(&text, c, (size_t)spell(c, (uint8_t)s[i]));
        else wz_buf_add(&text, &s[i], 1);
    json_object_set_new(vocab, text.data, json_integer((json_int_t)json_object_size(vocab)));
    wz_buf_finish(&text);
}

static int save_in(const char *dir, const char *name, json_t *root, struct wz_err *err)
{
    char *path = wz_path("%s/%s", dir, name);
    int rc = wz_json_save(root, path, err);

    free(path);
    return rc;
}

/* Writes tokenizer.json and tokenizer_config.json; returns the size of the vocabulary, or -1. more: text whose words it
 * has too. */
static int write_tokenizer(const char *dir, const char *more, int context, struct wz_err *err)
{
    struct pieces pieces = { 0 };
    json_t *added = json_array(), *vocab = json_object();

    cut_text(&pieces, conversation_system);
    cut_text(&pieces, feedback_system);
    wz_lesson_texts(cut_text, &pieces);
    cut_text(&pieces, more);
    for (int i = 0; i < (int)WZ_COUNT(specials); i++) {
        add_entry(vocab, specials[i], strlen(specials[i]), false);
        json_array_append_new(added, json_pack("{s:i, s:s, s:b, s:b, s:b, s:b, s:b}", "id", i, "content", specials[i],
                                               "single_word", false, "lstrip", false, "rstrip", false, "normalized",
                                               false, "special", true));
    }
    for (int b = 0; b < 256; b++) add_entry(vocab, &(char){ (char)b }, 1, true);
    for (int i = 0; i < pieces.n; i++) add_entry(vocab, pieces.list[i], strlen(pieces.list[i]), true);
    wz_arena_finish(&pieces.arena);
    free(pieces.list);

    int size = (int)json_object_size(vocab);
    json_t *split = json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split", "pattern", "Regex", cut_pattern, "behavior",
                              "Isolated", "invert", false);
    json_t *bytes = json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", false, "trim_offsets",
                              true, "use_regex", false);
    json_t *decoder = json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", true, "trim_offsets",
                                true, "use_regex", true);
    json_t *model = json_pack("{s:s, s:n, s:n, s:n, s:n, s:b, s:b, s:b, s:o, s:[]}", "type", "BPE", "dropout",
                              "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", false,
                              "byte_fallback", false, "ignore_merges", true, "vocab", vocab, "merges");
    json_t *tokenizer =
        json_pack("{s:s, s:n, s:n, s:o, s:n, s:{s:s, s:[o, o]}, s:n, s:o, s:o}", "version", "1.0", "truncation",
                  "padding", "added_tokens", added, "normalizer", "pre_tokenizer", "type", "Sequence", "pretokenizers",
                  split, bytes, "post_processor", "decoder", decoder, "model", model);
    json_t *config = json_pack("{s:s, s:i, s:s, s:s, s:b, s:s}", "tokenizer_class", "PreTrainedTokenizerFast",
                               "model_max_length", context, "pad_token", specials[0], "eos_token", specials[END],
                               "clean_up_tokenization_spaces", false, "chat_template", chat_template);
    if (save_in(dir, "tokenizer_config.json", config, err) < 0) {
        json_decref(tokenizer);
        return -1;
    }
    return save_in(dir, "tokenizer.json", tokenizer, err) < 0 ? -1 : size;
}

/* ---- model ------------------------------------------------------------------------------------------------ */

static int write_base(const char *dir, uint64_t seed, const char *more, int context, struct wz_err *err)
{
    struct wz_config config = {
        .layers = 3,
        .dim = 64,
        .heads = 4,
        .kv_heads = 4,
        .head_dim = 16,
        .ffn = 192,
        .context = context,
        .norm_eps = 1e-5f,
        .rope_theta = 1e4f,
        .rope = WZ_ROPE_PLAIN,
        .bos = -1,
        .eos = { END },
        .n_eos = 1,
    };

    if (wz_mkdirs(dir, err) < 0 || (config.vocab = write_tokenizer(dir, more, context, err)) < 0) return -1;
    struct wz_backend *be = wz_backend_open("ref", 1, NULL, err);
    if (!be) return -1;
    struct wz_model *model = wz_model_create(&config, WZ_F32, NULL, be);
    wz_model_init(model, seed);
    int rc = wz_model_save(model, dir, 0, err);
    wz_model_destroy(model);
    wz_backend_close(be);
    return rc;
}

/* What a guard is trained on, measured on, and begins as. */
static int write_guard(const char *dir, uint64_t seed, int n, struct wz_err *err)
{
    char *guard = wz_path("%s/guard", dir), *words = wz_wildguard_words();
    int rc = write_replies(dir, "replies-train.jsonl", seed, WZ_TRAIN, n, err);

    if (rc == 0) rc = write_replies(dir, "replies-test.jsonl", seed, WZ_TEST, N_REPLIES, err);
    if (rc == 0) rc = write_base(guard, seed, words, GUARD_CONTEXT, err);
    free(guard);
    free(words);
    return rc;
}

int wz_cmd_sandbox(int argc, char **argv)
{
    uint64_t seed = 1;
    int lessons = 89600, replies = 0, attacks = 0, status;
    const char *world = "B";
    bool think = false;
    const struct wz_option options[] = {
        { "seed", 's', WZ_SEED, &seed, "N", "of all but the prompts of dev and test, which do not depend on it", 0, 0 },
        { "warm-examples", 'w', WZ_INT, &lessons, "N", "conversations in sft.jsonl", 1, 10000000 },
        { "replies", 0, WZ_INT, &replies, "N",
          "also replies with their labels, replies-train.jsonl (N) and -test.jsonl, and guard/, an untrained\n"
          "guard model in the shape of WildGuard (0: none)",
          0, 10000000 },
        { "attacks", 0, WZ_INT, &attacks, "N",
          "also attacks.jsonl: so many conversations that teach an attacker to rewrite requests (0: none)", 0,
          10000000 },
        { "think", 0, WZ_FLAG, &think, NULL,
          "replies begin with a thought whose verdict they go by, at times a wrong one; also prefills-train, -dev\n"
          "and -test.jsonl, thoughts that lead astray",
          0, 0 },
        { "world", 0, WZ_TEXT, &world, "A|B",
          "A: revisions mostly obey clear feedback; B: some requests make them ignore it", 0, 0 },
    };
    const struct wz_usage usage = {
        .name = "sandbox",
        .args = "DIR",
        .options = options,
        .n_options = WZ_COUNT(options),
        .about =
            "Writes a tiny made-up language in which WaltzRL can be seen to work in minutes: prompts whose truth\n"
            "is known (prompts-train, -dev and -test.jsonl), conversations for a warm start with known flaws\n"
            "(sft.jsonl), and a small untrained model with its tokenizer (base/). The pairs of verb and object in\n"
            "dev and test occur nowhere else. Then: waltz sft, waltz train, waltz eval.",
    };
    struct wz_err err;

    if (wz_options_parse(&usage, argc, argv, &status) < 0) return status;
    const char *dir = argv[0];
    char *base = wz_path("%s/base", dir);
    if (wz_mkdirs(dir, &err) < 0 || write_prompts(dir, seed, think, &err) < 0 ||
        write_lessons(dir, seed, *world, think, lessons, &err) < 0 ||
        write_base(base, seed, think ? thoughts : "", CONTEXT, &err) < 0 ||
        (attacks && write_attacks(dir, seed, attacks, &err) < 0) ||
        (replies && write_guard(dir, seed, replies, &err) < 0))
        status = wz_give_up("sandbox", &err);
    free(base);
    return status;
}
