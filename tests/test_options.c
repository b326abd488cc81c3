/* Guarantee: options are parsed as their table says; whatever is wrong is refused with an error message and status
 * 2. */
#include "launch/launch.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static bool loud;
static int rows;
static uint64_t seed;
static double heat;
static const char *type, *out;
static const struct wz_option options[] = {
    { "loud", 'l', WZ_FLAG, &loud, NULL, "say more", 0, 0 }, { "rows", 'n', WZ_INT, &rows, "N", "rows", 1, 64 },
    { "seed", 0, WZ_SEED, &seed, "N", "seed", 0, 0 },        { "temperature", 0, WZ_NUMBER, &heat, "T", "heat", 0, 10 },
    { "type", 0, WZ_TEXT, &type, "f32|bf16", "type", 0, 0 }, { "output", 'o', WZ_TEXT, &out, "FILE", "where", 0, 0 },
};
static const struct wz_usage usage = { "try", "MODEL [FILE]", "Tries.", options, WZ_COUNT(options) };

static char said[4096];

/* Parses a line of words; what went to stderr is in `said`. */
static int parse(const char *line, char **argv, int *status)
{
    static char copy[512];
    int argc = 1, n, pipes[2], old = dup(2);

    loud = false;
    rows = 8;
    seed = 0;
    heat = 0;
    type = "f32";
    out = NULL;
    snprintf(copy, sizeof copy, "%s", line);
    argv[0] = (char *)"try";
    for (char *w = strtok(copy, " "); w; w = strtok(NULL, " ")) argv[argc++] = w;
    assert_int_equal(pipe(pipes), 0);
    dup2(pipes[1], 2);
    n = wz_options_parse(&usage, argc, argv, status);
    dup2(old, 2);
    close(old);
    close(pipes[1]);
    ssize_t k = read(pipes[0], said, sizeof said - 1);
    said[k > 0 ? k : 0] = 0;
    close(pipes[0]);
    return n;
}

static void values_land(void **state)
{
    char *argv[32];
    int status;

    assert_int_equal(
        parse("a --loud --rows 3 --seed=18446744073709551615 -o x b --temperature=0.5 --type bf16", argv, &status), 2);
    assert_string_equal(argv[0], "a");
    assert_string_equal(argv[1], "b");
    assert_true(loud);
    assert_int_equal(rows, 3);
    assert_true(seed == UINT64_MAX);
    assert_true(heat == 0.5);
    assert_string_equal(type, "bf16");
    assert_string_equal(out, "x");
    assert_int_equal(parse("-n5 -ly.html -- --odd", argv, &status), -1); /* a flag takes no value */
    assert_int_equal(parse("-n5 -oy.html -- --odd -", argv, &status), 2);
    assert_int_equal(rows, 5);
    assert_string_equal(out, "y.html");
    assert_string_equal(argv[0], "--odd");
    assert_string_equal(argv[1], "-");
}

static void wrong_is_refused(void **state)
{
    static const struct {
        const char *line, *word;
    } cases[] = {
        { "", "MODEL" },
        { "a b c", "'c'" },
        { "a --row 3", "did you mean --rows" },
        { "a --zzzzzz 3", "--help" },
        { "a -z", "-z" },
        { "a --rows", "wants a value" },
        { "a --rows 0", "1 to 64" },
        { "a --rows 65", "1 to 64" },
        { "a --rows 3x", "whole number" },
        { "a --rows 99999999999999999999", "whole number" },
        { "a --rows=", "whole number" },
        { "a --seed -1", "2^64" },
        { "a --seed 18446744073709551616", "2^64" },
        { "a --temperature nan", "not a number" },
        { "a --temperature 11", "0 to 10" },
        { "a --type f16", "f32|bf16" },
        { "a --type f", "f32|bf16" },
        { "a --loud=1", "no value" },
        { "a --rowsrowsrowsrowsrowsrowsrowsrowsrowsrowsrowsrowsrowsrowsrowsrowsrowsrowsrows 3", "no option" },
    };

    for (size_t i = 0; i < WZ_COUNT(cases); i++) {
        char *argv[32];
        int status = 0, n = parse(cases[i].line, argv, &status);
        if (n != -1 || status != 2 || !strstr(said, cases[i].word))
            fail_msg("`%s` gave %d, status %d, said: %s", cases[i].line, n, status, said);
    }
}

static void nearest_is_near(void **state)
{
    static const struct {
        const char *name;
        int other;
    } names[] = { { "train", 0 }, { "tokenize", 0 }, { "sft", 0 } };

    assert_string_equal(wz_nearest("trian", names, sizeof *names, 3), "train");
    assert_string_equal(wz_nearest("token", names, sizeof *names, 3), "tokenize");
    assert_null(wz_nearest("crawl", names, sizeof *names, 3)); /* 3 letters of 5 are others than train's */
    assert_null(wz_nearest("xylophone", names, sizeof *names, 3));
    assert_null(wz_nearest("", names, sizeof *names, 3));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_land),
        cmocka_unit_test(wrong_is_refused),
        cmocka_unit_test(nearest_is_near),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
