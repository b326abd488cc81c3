/* Fuzz target: a line of what is known of a prompt (a gold answer, or IFEval's instructions), and a reply: every judge
 * that reads text says something of it, or why not. */
#include "fuzz.h"

#include "reward/refusal.h"
#include "reward/reward.h"

/* The text as judges are given it: UTF-8 that ends where a NUL is. heap */
static char *text_of(const char *s, size_t n)
{
    char *text = NULL;

    wz_set_string(&text, s, strnlen(s, n));
    return text;
}

static void verdict(const struct wz_answer *a)
{
    fuzz_must(!a->failed || (*a->why && !a->flags), "failed without a reason");
    fuzz_must(a->score >= 0 && a->score <= 1 && a->refusal_score >= 0 && a->refusal_score <= 1, "a score out of range");
}

static void parsers(const char *reply)
{
    static const char *const measures[] = { "both", "harm", "safety", "refusal", "compliance" };
    struct wz_answer a = { 0 };
    struct wz_err err;

    for (size_t i = 0; i < WZ_COUNT(measures); i++) {
        wz_answer_parse(wz_measures_find(measures[i], &err), 0.5, reply, strlen(reply), &a);
        verdict(&a);
    }
    a = (struct wz_answer){ 0 };
    wz_wildguard_parse(reply, &a);
    verdict(&a);
    a = (struct wz_answer){ 0 };
    wz_qwen3guard_parse(reply, &a);
    verdict(&a);
}

static void judges(const char *prompt, const char *reply)
{
    static struct wz_judge list[2];
    const struct wz_judge_config configs[] = { { .name = "rules", .world = true }, { .name = "topic" } };
    struct wz_answer a;
    struct wz_err err;

    for (size_t i = 0; i < WZ_COUNT(list); i++) {
        const struct wz_question q = { prompt, reply, true };
        if (!list[i].row) fuzz_must(wz_judge_open(&list[i], &configs[i], &err) == 0, err.text);
        wz_judge_ask(&list[i], &q, &a, 1);
        verdict(&a);
    }
    wz_refusal_explains(reply);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *s = (const char *)data, *line = size ? memchr(s, '\n', size) : NULL;
    const size_t n = line ? (size_t)(line - s) : 0, from = line ? n + 1 : 0;
    char *known = text_of(s, n), *reply = text_of(s + from, size - from);
    enum wz_followed followed[WZ_MAX_INSTRUCTIONS];
    struct wz_err err = { "" };

    if (wz_ifeval_is(known)) {
        const int k = wz_ifeval_check(known, reply, followed, &err);
        fuzz_must(k <= WZ_MAX_INSTRUCTIONS && (k >= 0 || err.text[0]), "refused without a message");
    }
    wz_math_solved(reply, known);
    parsers(reply);
    judges(known, reply);
    free(known);
    free(reply);
    return 0;
}
