/* The feedback parser is strict (WaltzRL 2.1): one object, four keys in order, real booleans, nothing around it. */
#include "tests/test.h"

#include "rollout/rollout.h"

#define GOOD "{\"reasoning\":\"r\",\"unsafe\":true,\"overrefuse\":false,\"feedback\":\"fix it\"}"

static void good_is_read(void **state)
{
    struct wz_feedback f;

    assert_true(wz_feedback_parse(GOOD, strlen(GOOD), &f));
    assert_true(f.unsafe);
    assert_false(f.overrefuse);
    assert_string_equal(f.text, "fix it");
    free(f.text);
    assert_true(wz_feedback_parse("\n " GOOD " \n", strlen(GOOD) + 4, &f));
    free(f.text);
}

/* What JSON allows (RFC 8259) is valid, though C strings end at a NUL and C integers at 64 bits. */
static void nul_is_a_character(void **state)
{
    static const char text[] =
        "{\"reasoning\":\"a\\u0000b\",\"unsafe\":true,\"overrefuse\":true,\"feedback\":\"c\\u0000d\"}";
    struct wz_feedback f;

    assert_true(wz_feedback_parse(text, strlen(text), &f));
    assert_true(f.unsafe && f.overrefuse);
    assert_string_equal(f.text, "c\xef\xbf\xbd"
                                "d");
    free(f.text);
    static const char half[] = "{\"reasoning\":\"\",\"unsafe\":true,\"overrefuse\":true,\"feedback\":\"\\ud83d!\"}";
    assert_true(wz_feedback_parse(half, strlen(half), &f));
    assert_string_equal(f.text, "\xef\xbf\xbd!");
    free(f.text);
}

static void everything_else_is_refused(void **state)
{
    static const char *const bad[] = {
        "",
        "null",
        "[]",
        "{}",
        "here it is : " GOOD,
        GOOD " done .",
        "```json\n" GOOD "\n```",
        "{\"reasoning\":\"r\",\"unsafe\":true,\"overrefuse\":false,\"feedback\":\"x\"", /* last brace missing */
        "\"reasoning\":\"r\",\"unsafe\":true,\"overrefuse\":false,\"feedback\":\"x\"",  /* both missing */
        "{\"reasoning\":\"r\",\"unsafe\":True,\"overrefuse\":False,\"feedback\":\"x\"}",
        "{\"reasoning\":\"r\",\"unsafe\":\"true\",\"overrefuse\":false,\"feedback\":\"x\"}",
        "{\"reasoning\":\"r\",\"unsafe\":1,\"overrefuse\":0,\"feedback\":\"x\"}",
        "{\"reasoning\":\"r\",\"unsafe\":true,\"feedback\":\"x\"}",                      /* a key missing */
        "{\"unsafe\":true,\"reasoning\":\"r\",\"overrefuse\":false,\"feedback\":\"x\"}", /* out of order */
        "{\"reasoning\":\"r\",\"unsafe\":true,\"overrefuse\":false,\"feedback\":\"x\",\"more\":1}",
        "{\"reasoning\":\"r\",\"unsafe\":true,\"unsafe\":true,\"overrefuse\":false,\"feedback\":\"x\"}",
        "{\"reasoning\":\"r\",\"unsafe\":true,\"overrefuse\":false,\"feedback\":null}",
        "{\"reasoning\":3,\"unsafe\":true,\"overrefuse\":false,\"feedback\":\"x\"}",
        "{\"reasoning\":\"\xff\",\"unsafe\":true,\"overrefuse\":false,\"feedback\":\"x\"}",
    };

    for (size_t i = 0; i < WZ_COUNT(bad); i++) {
        struct wz_feedback f;
        if (wz_feedback_parse(bad[i], strlen(bad[i]), &f)) fail_msg("accepted: %s", bad[i]);
        assert_non_null(f.problem);
        assert_null(f.text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(good_is_read), cmocka_unit_test(nul_is_a_character),
                                        cmocka_unit_test(everything_else_is_refused) };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
