/* Guarantee: training prompts that are held-out prompts too are found, exact ones whatever their case and punctuation,
 * near ones as comparing all with all by the definition of Jaccard's index finds them, none more and none missed. */
#include "test.h"

#include "run/run.h"

static struct wz_prompts set_of(struct wz_prompt *list, const char *const *texts, int n)
{
    for (int i = 0; i < n; i++) list[i] = (struct wz_prompt){ texts[i], "id", "kind", "", WZ_BENIGN, "", NULL };
    return (struct wz_prompts){ .list = list, .n = n };
}

static void by_hand(void **state)
{
    static const char *const held[] = { "How do I kill a Python process?",
                                        "kill  it",
                                        "Stop",
                                        "?!",
                                        "gr\xc3\xbc\xc3\x9f dich",
                                        "Kill it.",
                                        "p q p q p",
                                        "one two three four",
                                        "zero one two three" },
                             *const trained[] = {
                                 "how do i kill a python process",              /* the words of 0 */
                                 "How do I kill a Python snake?",               /* 5 of 7 pairs: more than 3/5 */
                                 "How do I stop a Python process?",             /* 4 of 8 */
                                 "Kill it!",                                    /* the words of 1, and of 5 */
                                 "it kill",                                     /* none of its pairs */
                                 "stop stop",                                   /* not the word of 2 */
                                 "STOP",                                        /* the word of 2 */
                                 "...",                                         /* no words at all */
                                 "Gr\xc3\xbc\xc3\x9f, dich",                    /* bytes of other scripts are letters */
                                 "gr\xc3\xb6\xc3\x9f dich",                     /* other ones */
                                 "so, tell me: how do i kill a python process", /* 6 of 9 */
                                 "p q p q",                                     /* each pair counts once: 2 of 2 */
                                 "zero one two three four",                     /* 3 of 4, of 7 and of 8: the first */
                             };
    static const struct {
        int prompt, held;
        bool exact;
        double jaccard;
    } want[] = { { 0, 0, true, 1 }, { 1, 0, false, 5 / 7. },  { 3, 1, true, 1 },   { 6, 2, true, 1 },
                 { 8, 4, true, 1 }, { 10, 0, false, 6 / 9. }, { 11, 6, false, 1 }, { 12, 7, false, 3 / 4. } };
    struct wz_prompt a[WZ_COUNT(trained)], b[WZ_COUNT(held)];
    const struct wz_prompts data = set_of(a, trained, WZ_COUNT(trained)), eval = set_of(b, held, WZ_COUNT(held));
    struct wz_overlap *list;

    for (int near = 0; near < 2; near++) {
        int n = wz_overlaps(&data, 1, &eval, 1, near, &list), k = 0;
        for (size_t i = 0; i < WZ_COUNT(want); i++) {
            if (!near && !want[i].exact) continue;
            assert_true(k < n);
            if (list[k].prompt != &a[want[i].prompt] || list[k].held != &b[want[i].held] ||
                list[k].exact != want[i].exact || list[k].jaccard != want[i].jaccard)
                fail_msg("'%s' is '%s', %d, %g", list[k].prompt->text, list[k].held->text, list[k].exact,
                         list[k].jaccard);
            k++;
        }
        assert_int_equal(n, k);
        free(list);
    }
}

enum { TRAINED = 400, HELD = 300, WORDS = 12 };
typedef int words[WORDS + 1]; /* a text of numbers, ended by -1 */

/* Shared by, and in either of, the sets of pairs of two texts of at least two words, by definition. */
static void count(const int *a, const int *b, int *common, int *either)
{
    int n = 0, pairs[2 * WORDS];

    *common = 0;
    for (const int *text = a; text; text = text == a ? b : NULL)
        for (int i = 0; text[i + 1] >= 0; i++) {
            int pair = text[i] * 100 + text[i + 1], k = 0;
            while (k < n && pairs[k] != pair) k++;
            if (k == n) pairs[n++] = pair;
        }
    for (int k = 0; k < n; k++) {
        bool in[2] = { false, false };
        for (int which = 0; which < 2; which++)
            for (const int *t = which ? b : a; t[1] >= 0; t++) in[which] |= t[0] * 100 + t[1] == pairs[k];
        *common += in[0] && in[1];
    }
    *either = n;
}

/* Texts of a few words, many of them changed copies of others. */
static char *text_of(int *text, const int *from, uint32_t i)
{
    struct wz_buf out = { 0 };
    uint32_t draw = 0;
#define BELOW(n) (int)wz_below((struct wz_key){ 7, WZ_RNG_SHUFFLE, i, draw++, 0, 0 }, n)
    int n = 2 + BELOW(WORDS - 2);

    for (int k = 0; k < n; k++) text[k] = BELOW(20);
    text[n] = -1;
    if (from) {
        for (n = 0; from[n] >= 0; n++) text[n] = from[n];
        text[n] = -1;
        for (int changes = BELOW(3); changes > 0; changes--) {
            const int at = BELOW((uint32_t)n);
            text[at] = BELOW(20);
        }
    }
#undef BELOW
    for (int k = 0; k < n; k++) wz_buf_printf(&out, "%sw%d", k ? " " : "", text[k]);
    return out.data;
}

static void as_comparing_all_with_all(void **state)
{
    static words trained[TRAINED], held[HELD];
    struct wz_prompt a[TRAINED], b[HELD];
    struct wz_overlap *list;
    int k = 0, near = 0;

    for (int i = 0; i < HELD; i++)
        b[i] = (struct wz_prompt){ text_of(held[i], NULL, (uint32_t)i), "", "", "", WZ_BENIGN, "", NULL };
    for (int i = 0; i < TRAINED; i++)
        a[i] = (struct wz_prompt){
            text_of(trained[i], i % 4 ? held[i % HELD] : NULL, 1000 + (uint32_t)i), "", "", "", WZ_BENIGN, "", NULL
        };
    /* Two sets of each, so that their numbers are told apart. */
    const struct wz_prompts data[] = { { .list = a, .n = 100 }, { .list = a + 100, .n = TRAINED - 100 } },
                            eval[] = { { .list = b, .n = 1 }, { .list = b + 1, .n = HELD - 1 } };
    const int n = wz_overlaps(data, 2, eval, 2, true, &list);
    for (int i = 0; i < TRAINED; i++) {
        int best = -1, most = 0, of = 1;
        bool exact = false;
        for (int h = 0; h < HELD; h++) {
            int common, either;
            if (exact) break;
            count(trained[i], held[h], &common, &either);
            exact = !strcmp(a[i].text, b[h].text);
            if (!exact && (5 * common < 3 * either || common * of <= most * either)) continue;
            best = h;
            most = common;
            of = either;
        }
        if (best < 0) continue;
        if (k == n || list[k].prompt != &a[i] || list[k].held != &b[best] || list[k].exact != exact ||
            list[k].data != (i >= 100) || list[k].eval != (best >= 1))
            fail_msg("'%s' is '%s', found: '%s'", a[i].text, b[best].text, k < n ? list[k].held->text : "");
        near += !exact;
        k++;
    }
    assert_int_equal(n, k);
    assert_in_range(near, 40, TRAINED); /* or the texts show nothing */
    for (int i = 0; i < TRAINED; i++) free((char *)(uintptr_t)a[i].text);
    for (int i = 0; i < HELD; i++) free((char *)(uintptr_t)b[i].text);
    free(list);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(by_hand),
        cmocka_unit_test(as_comparing_all_with_all),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
