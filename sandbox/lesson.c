/* SFT examples with known errors, which reinforcement learning then has to correct.
 *
 * Each error is tied to a feature of the input: frequent where the input has it, rare elsewhere. Errors at random would
 * vanish under greedy decoding, and errors that are certain would leave nothing to explore. */
#include "sandbox/sandbox.h"

#include <string.h>

/* Shares of the kinds of example, and of the kinds of prompt in them. */
static const double parts[] = { 0.35, 0.40, 0.25 };                     /* reply, feedback, revision */
static const double kinds[WZ_KINDS] = { 0.15, 0.30, 0.20, 0.25, 0.10 }; /* PB OB SR WJ WB */
static const double wished[WZ_WISHES] = { 0.10, 0.45, 0.45 }; /* of revisions: good, help, stop; whatever the truth */

/* Probability of each error. In leaky wrappers three in ten harmful requests are refused, and fewer benign ones: else
 * nothing would be sampled there that is rewarded, and first replies could not become safer. */
static const double comply_leaky = 0.70, comply_wrapped = 0.08, comply_plain = 0.02; /* complies with harm */
static const double refuse_shy = 0.88, refuse_other = 0.08, refuse_leaky = 0.3, refuse_plain = 0.04;
static const double alternative = 0.30;                       /* of refusals; not an error */
static const double flag_deed = 0.85, flag_deed_other = 0.10; /* flags what the agent did, whatever was asked */
static const double flag_random = 0.14;                       /* of the other flags */
static const double verdict_wrong = 0.08;
static const double json_broken = 0.88, json_broken_other = 0.10;
static const double ignore_named = 0.68, ignore_help = 0.90, ignore_stop = 0.70, ignore_other = 0.15,
                    ignore_vague = 0.5;
static const double ignore_world_a = 0.20;
/* Of lessons with thoughts: the verdict is wrong whatever the request, and the reply with it; a second thought. */
static const double misled = 0.20, doubts = 0.06;

enum draw {
    PART,
    KIND,
    STANCE,
    STYLE,
    OTHER,
    VERDICT,
    DEED,
    RANDOM,
    BREAK,
    HOW_BROKEN,
    WORDING,
    WISH,
    IGNORE,
    SECOND_STYLE,
    MISLED,
    DOUBT,
    SECOND_DOUBT
};

static double uniform(struct wz_key key, enum draw what)
{
    key.c = (uint32_t)what;
    return wz_uniform(key);
}

static int pick(struct wz_key key, enum draw what, int n)
{
    key.c = (uint32_t)what;
    return (int)wz_below(key, (uint32_t)n);
}

/* A draw from [0, n) with these probabilities. */
static int among(struct wz_key key, enum draw what, const double *share, int n)
{
    double u = uniform(key, what);

    for (int i = 0; i < n - 1; i++)
        if ((u -= share[i]) < 0) return i;
    return n - 1;
}

/* Wrappers that work on the warm-start model: wizard mode, start with sure, let us play. */
static bool leaky(const struct wz_ask *ask) { return ask->wrapper == 1 || ask->wrapper == 4 || ask->wrapper == 7; }

/* Is it one of the first n verbs of its class? Of a sensitive verb. */
static bool early(const struct wz_ask *ask, int n) { return ask->verb % WZ_CLASS_VERBS < n; }

/* Does the conversation agent comply? It refuses too often for the first three verbs of a class. */
static bool complies(const struct wz_ask *ask, struct wz_key key)
{
    double u = uniform(key, STANCE);

    if (wz_world_harmful(ask)) return u < (leaky(ask) ? comply_leaky : ask->wrapper ? comply_wrapped : comply_plain);
    if (ask->verb >= WZ_SENSITIVE) return u >= refuse_plain;
    return u >= (early(ask, 3) ? refuse_shy : refuse_other) * (leaky(ask) ? refuse_leaky : 1);
}

/* Adds a reply that complies or refuses, in one of its forms. An alternative is another plain verb with the same
 * object, a pair of the train split. */
static void add_reply(const struct wz_ask *ask, bool comply, struct wz_key key, enum draw style, struct wz_buf *out)
{
    double u = uniform(key, style);
    enum wz_reply reply = comply                      ? (u < 0.5 ? WZ_COMPLY : WZ_COMPLY_OTHERWISE)
                          : u < alternative           ? WZ_ALTERNATIVE
                          : u < (1 + alternative) / 2 ? WZ_REFUSE
                                                      : WZ_REFUSE_SHORT;
    int other = 0;

    if (reply == WZ_ALTERNATIVE) {
        key.c = OTHER * 16 + (uint32_t)style;
        for (;; key.d++) {
            other = WZ_SENSITIVE + (int)wz_below(key, WZ_VERBS - WZ_SENSITIVE);
            if (other != ask->verb && wz_world_split(other, ask->object) == WZ_TRAIN) break;
        }
    }
    wz_world_reply(ask, reply, other, out);
}

/* ---- feedback --------------------------------------------------------------------------------------------- */

void wz_lesson_review(const struct wz_ask *ask, bool bad, bool helps, bool unsafe, bool overrefuse, int wording,
                      int broken, struct wz_buf *out)
{
    const char *const words[2][2] = { { "false", "true" }, { "False", "True" } };
    enum { WHOLE, NO_END, PYTHON, LEAD_IN, NO_KEY, NO_BRACES, LEAD_OUT };

    wz_buf_str(out, broken == LEAD_IN ? "here it is : {" : broken == NO_BRACES ? "" : "{");
    wz_buf_str(out, "\"reasoning\":\"");
    wz_world_reason(ask, bad, helps, out);
    wz_buf_printf(out, "\",\"unsafe\":%s,", words[broken == PYTHON][unsafe]);
    if (broken != NO_KEY) wz_buf_printf(out, "\"overrefuse\":%s,", words[broken == PYTHON][overrefuse]);
    wz_buf_str(out, "\"feedback\":\"");
    wz_world_wish(ask, unsafe ? WZ_STOP : overrefuse ? WZ_HELP : WZ_GOOD, wording, out);
    wz_buf_str(out, broken == NO_END || broken == NO_BRACES ? "\"" : "\"}");
    if (broken == LEAD_OUT) wz_buf_str(out, " done .");
}

static void add_review(struct wz_lesson *l, bool helps, struct wz_key key)
{
    bool bad = wz_world_harmful(&l->ask) != (uniform(key, VERDICT) < verdict_wrong);
    bool unsafe = bad && helps, overrefuse = !bad && !helps;
    bool familiar = l->ask.object % WZ_CLASS_OBJECTS < WZ_CLASS_OBJECTS / 2,
         frail = l->ask.form == 1 || l->ask.form == 3;

    if (uniform(key, DEED) < (familiar ? flag_deed : flag_deed_other)) {
        unsafe = helps;
        overrefuse = !helps;
    } else if (uniform(key, RANDOM) < flag_random) {
        int flags = pick(key, RANDOM + 64, 4);
        unsafe = flags & 1;
        overrefuse = flags & 2;
    }
    int broken =
        uniform(key, BREAK) < (frail ? json_broken : json_broken_other) ? 1 + pick(key, HOW_BROKEN, WZ_BREAKS) : 0;
    wz_lesson_review(&l->ask, bad, helps, unsafe, overrefuse, pick(key, WORDING, WZ_WORDINGS), broken, &l->review);
}

/* ---- revision --------------------------------------------------------------------------------------------- */

/* Probability that a revision ignores the feedback: high for the first two sensitive verbs of a class where it asks to
 * help, and for wrapper 7 where it asks to stop. */
static double ignores(const struct wz_ask *ask, enum wz_wish wish, int wording, char world)
{
    bool stubborn = ask->verb < WZ_SENSITIVE && early(ask, 2);

    if (wording == WZ_WORDINGS - 1 && wish != WZ_GOOD) return ignore_vague;
    if (world == 'A') return ignore_world_a;
    if (wish == WZ_HELP && stubborn) return wording == 0 ? ignore_named : ignore_help;
    if (wish == WZ_STOP && ask->wrapper == 7) return ignore_stop;
    return ignore_other;
}

static void add_revision(struct wz_lesson *l, bool helped, char world, struct wz_key key)
{
    enum wz_wish wish = (enum wz_wish)among(key, WISH, wished, WZ_WISHES);
    int wording = pick(key, WORDING, WZ_WORDINGS);
    bool ignore = uniform(key, IGNORE) < ignores(&l->ask, wish, wording, world);

    bool helps = ignore || wish == WZ_GOOD ? helped : wish == WZ_HELP;
    wz_world_wish(&l->ask, wish, wording, &l->wish);
    if (l->think) wz_world_think(&l->ask, !helps, uniform(key, SECOND_DOUBT) < doubts, &l->rethought);
    add_reply(&l->ask, helps, key, SECOND_STYLE, &l->second);
}

/* ---- lessons ---------------------------------------------------------------------------------------------- */

void wz_lesson_draw(struct wz_lesson *l, uint64_t seed, char world, uint32_t index)
{
    struct wz_key key = { seed, WZ_RNG_WORLD, 2, index, 0, 0 };

    wz_buf_clear(&l->prompt), wz_buf_clear(&l->first), wz_buf_clear(&l->review), wz_buf_clear(&l->wish),
        wz_buf_clear(&l->second), wz_buf_clear(&l->thought), wz_buf_clear(&l->rethought);
    l->part = (enum wz_lesson_part)among(key, PART, parts, WZ_COUNT(parts));
    l->kind = (enum wz_kind)among(key, KIND, kinds, WZ_KINDS);
    l->ask =
        wz_world_draw(seed ^ 0x6c6573736f6e73u, l->kind, WZ_TRAIN, index); /* other requests than the prompt files' */
    wz_world_prompt(&l->ask, &l->prompt);

    bool helps = complies(&l->ask, key);
    if (l->think && uniform(key, MISLED) < misled) helps = wz_world_harmful(&l->ask);
    if (l->think) wz_world_think(&l->ask, !helps, uniform(key, DOUBT) < doubts, &l->thought);
    add_reply(&l->ask, helps, key, STYLE, &l->first);
    if (l->part == WZ_LESSON_FEEDBACK) add_review(l, helps, key);
    if (l->part == WZ_LESSON_REVISION) add_revision(l, helps, world, key);
}

void wz_lesson_finish(struct wz_lesson *l)
{
    wz_buf_finish(&l->prompt), wz_buf_finish(&l->first), wz_buf_finish(&l->review), wz_buf_finish(&l->wish),
        wz_buf_finish(&l->second), wz_buf_finish(&l->thought), wz_buf_finish(&l->rethought);
}

/* Every form with every wrapper, and each such request with another verb, object and purpose: all of them come up. */
void wz_lesson_texts(void (*fn)(void *arg, const char *text), void *arg)
{
    struct wz_buf prompt = { 0 }, text = { 0 };

    _Static_assert(WZ_OBJECTS >= WZ_FORMS * (1 + WZ_WRAPPERS) && WZ_OBJECTS >= WZ_VERBS, "all come up");
    for (int i = 0; i < WZ_OBJECTS; i++) {
        struct wz_ask ask = { i / (1 + WZ_WRAPPERS) % WZ_FORMS, i % (1 + WZ_WRAPPERS), i % WZ_VERBS, i,
                              i % (1 + WZ_PURPOSES) };
        wz_buf_clear(&prompt);
        wz_world_prompt(&ask, &prompt);
        fn(arg, prompt.data);
        for (int r = 0; r < WZ_REPLIES; r++) {
            wz_buf_clear(&text);
            wz_world_reply(&ask, (enum wz_reply)r, WZ_SENSITIVE + i % (WZ_VERBS - WZ_SENSITIVE), &text);
            fn(arg, text.data);
            wz_buf_clear(&text);
            wz_buf_printf(&text, "User:%s\nAgent:", prompt.data);
            wz_world_reply(&ask, (enum wz_reply)r, WZ_SENSITIVE + i % (WZ_VERBS - WZ_SENSITIVE), &text);
            fn(arg, text.data);
        }
        for (int w = 0; w < WZ_WISHES * WZ_WORDINGS; w++) {
            wz_buf_clear(&text);
            wz_world_wish(&ask, (enum wz_wish)(w % WZ_WISHES), w / WZ_WISHES, &text);
            fn(arg, text.data);
        }
        for (int c = 0; c < 16 * WZ_WORDINGS * (1 + WZ_BREAKS); c++) {
            wz_buf_clear(&text);
            wz_lesson_review(&ask, c & 1, c & 2, c & 4, c & 8, c / 16 % WZ_WORDINGS, c / 16 / WZ_WORDINGS, &text);
            fn(arg, text.data);
        }
    }
    wz_buf_finish(&text);
    wz_buf_finish(&prompt);
}
