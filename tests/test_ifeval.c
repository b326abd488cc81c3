/* Guarantee: whether a reply follows IFEval's instructions is what the published checkers say of it, strictly and
 * loosely, for every kind that is checked by rule (tests/reference/ifeval.py made their verdicts); the kinds that are
 * not are left out, and lists that are none are refused. */
#include "test.h"

#include <time.h>

#include "reward/reward.h"
#include "store/store.h"

static const char *golden;

static void as_the_published_checkers(void **state)
{
    struct wz_data_rows rows;
    struct wz_err err = { "" };
    int n = 0, counts[4] = { 0 };

    if (wz_data_rows_open(&rows, golden, &err) < 0) fail_msg("%s", err.text);
    while (wz_data_rows_next(&rows, &err) > 0) {
        json_t *ids = json_object_get(rows.row, "ids");
        const char *reply = json_string_value(json_object_get(rows.row, "reply")),
                   *want = json_string_value(json_object_get(rows.row, "want"));
        enum wz_followed followed[WZ_MAX_INSTRUCTIONS];
        json_t *both = json_pack("{s:O, s:O}", "ids", ids, "kwargs", json_object_get(rows.row, "kwargs"));
        char *answer = json_dumps(both, JSON_COMPACT);
        assert_true(wz_ifeval_is(answer));
        if (wz_ifeval_check(answer, reply, followed, &err) != (int)json_array_size(ids))
            fail_msg("row %d: %s", rows.number, err.text);
        free(answer);
        json_decref(both);
        for (size_t i = 0; i < json_array_size(ids); i++, n++) {
            if ((int)followed[i] != want[i] - '0')
                fail_msg("row %d: %s: %d, and is %c", rows.number, json_string_value(json_array_get(ids, i)),
                         (int)followed[i], want[i]);
            counts[followed[i]]++;
        }
    }
    wz_data_rows_close(&rows);
    assert_int_equal(n, 464);
    assert_true(counts[WZ_NOT_FOLLOWED] > 100 && counts[WZ_FOLLOWED] > 50 && counts[WZ_FOLLOWED_LOOSELY] > 5 &&
                counts[WZ_NOT_CHECKED] > 20);
}

/* A long reply takes its length, not the square of it, whatever it repeats. */
static void a_long_reply_takes_its_length(void **state)
{
    static const char answer[] =
        "{\"ids\":[\"detectable_format:number_bullet_lists\",\"detectable_content:number_placeholders\","
        "\"detectable_format:number_highlighted_sections\",\"detectable_format:title\"],"
        "\"kwargs\":[{\"num_bullets\":3},{\"num_placeholders\":1},{\"num_highlights\":2},{}]}";
    static const char *const repeats[] = { "\n",   "\n ", "[",  "[a",  "a",    "*", "*a",
                                           "*a\n", "**a", "<<", "<<a", "<<>>", ">" };
    static const char *const kwargs[] = { "{\"keywords\":[\"",
                                          "{\"relation\":\"at least\",\"frequency\":1,\"keyword\":\"",
                                          "{\"num_sections\":1,\"section_spliter\":\"" };
    enum { LONG = 300000 };
    struct wz_buf keyword = { 0 }; /* whose beginning is everywhere in the last reply */
    enum wz_followed followed[WZ_MAX_INSTRUCTIONS];
    char *reply = wz_alloc(LONG + 1);
    struct wz_err err;

    wz_buf_str(&keyword, "{\"ids\":[\"keywords:existence\",\"keywords:frequency\","
                         "\"detectable_format:multiple_sections\"],\"kwargs\":[");
    for (int i = 0; i < 3; i++) {
        wz_buf_printf(&keyword, "%s%s", i ? "," : "", kwargs[i]);
        for (int k = 0; k < LONG / 8; k++) wz_buf_str(&keyword, "a");
        wz_buf_str(&keyword, i ? "b\"}" : "b\"]}");
    }
    wz_buf_str(&keyword, "]}");
    for (size_t i = 0; i <= WZ_COUNT(repeats); i++) {
        const bool last = i == WZ_COUNT(repeats);
        const char *repeat = last ? "a" : repeats[i];
        const size_t n = strlen(repeat);
        for (size_t k = 0; k < LONG; k++) reply[k] = repeat[k % n];
        const clock_t begun = clock();
        assert_int_equal(wz_ifeval_check(last ? keyword.data : answer, reply, followed, &err), last ? 3 : 4);
        const double took = (double)(clock() - begun) / CLOCKS_PER_SEC;
        if (took > (LIGHT ? 10 : 2)) fail_msg("row %zu: %.1f s", i, took);
    }
    wz_buf_finish(&keyword);
    free(reply);
}

static void wrong_lists_are_refused(void **state)
{
    static const char *const cases[][2] = {
        { "{\"ids\":[],\"kwargs\":[]}", "expected as many kwargs as instructions" },
        { "{\"ids\":[\"punctuation:no_comma\"],\"kwargs\":[]}", "expected as many kwargs as instructions" },
        { "{\"ids\":[3],\"kwargs\":[{}]}", "there is no instruction of IFEval ''" },
        { "{\"ids\":[\"punctuation:no_colon\"],\"kwargs\":[{}]}",
          "there is no instruction of IFEval 'punctuation:no_colon'" },
        { "{\"ids\":[", "not valid JSON" },
    };
    enum wz_followed followed[WZ_MAX_INSTRUCTIONS];
    struct wz_err err;

    for (size_t i = 0; i < WZ_COUNT(cases); i++) {
        assert_int_equal(wz_ifeval_check(cases[i][0], "a", followed, &err), -1);
        if (!strstr(err.text, cases[i][1])) fail_msg("%s", err.text);
    }
    assert_false(wz_ifeval_is("#### 3"));
    assert_false(wz_ifeval_is(""));
}

/* Arguments of other types, or none, are no crash: what a rule lacks it can't check, and says so. */
static void odd_arguments_are_not_checked(void **state)
{
    static const char odd[] = "[{\"keywords\": [1, null], \"forbidden_words\": [{}], \"keyword\": 1, \"letter\": [], "
                              "\"section_spliter\": 0, \"end_phrase\": null}]";
    static const char *const kwargs[] = { "[{}]", "[null]", "[3]", odd };
    static const char *const ids[] = { "keywords:existence",
                                       "keywords:frequency",
                                       "keywords:forbidden_words",
                                       "keywords:letter_frequency",
                                       "length_constraints:number_words",
                                       "length_constraints:nth_paragraph_first_word",
                                       "detectable_content:postscript",
                                       "detectable_format:multiple_sections",
                                       "combination:repeat_prompt",
                                       "startend:end_checker",
                                       "language:response_language" };
    json_t *names = json_object();
    enum wz_followed followed[WZ_MAX_INSTRUCTIONS];
    struct wz_err err;
    int n;

    for (size_t i = 0; i < WZ_COUNT(ids); i++)
        for (size_t k = 0; k < WZ_COUNT(kwargs); k++) {
            char *answer = wz_path("{\"ids\":[\"%s\"],\"kwargs\":%s}", ids[i], kwargs[k]);
            assert_int_equal(wz_ifeval_check(answer, "a reply", followed, &err), 1);
            assert_int_equal(followed[0], WZ_NOT_CHECKED);
            assert_int_equal(wz_ifeval_left_out(answer, names, &n), 1);
            assert_int_equal(n, 1);
            free(answer);
        }
    assert_int_equal(json_object_size(names), WZ_COUNT(ids));
    json_decref(names);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_the_published_checkers),
        cmocka_unit_test(a_long_reply_takes_its_length),
        cmocka_unit_test(wrong_lists_are_refused),
        cmocka_unit_test(odd_arguments_are_not_checked),
    };

    golden = argc > 1 ? argv[1] : "tests/golden/ifeval.jsonl";
    return cmocka_run_group_tests(tests, NULL, NULL);
}
