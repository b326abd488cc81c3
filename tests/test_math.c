/* Guarantee: a reply is paid for the right answer in the form of GSM8K however its number is written, and for no trick:
 * several answers, the right one among others, a text behind it. */
#include "tests/test.h"

#include "reward/reward.h"
#include "store/store.h"

static void numbers_are_equal_however_they_are_written(void **state)
{
    static const struct {
        const char *answer, *same; /* separated by | */
    } cases[] = {
        { "1250",
          "1250|1,250|1{,}250|1250.0|1250.|1,250.00|+1250|$1250|\\$1,250|1250%|1250\\%|1.25e3|1.25E+3|125e1|12500e-1|"
          "1.25 \\times 10^3|1.25\\times10^{3}|1.25 x 10^3|1.25\\cdot 10^3|125 * 10^1|2500/2|\\frac{2500}{2}|"
          "\\dfrac{1250}{1}|\\tfrac{1.25e3}{1.0}|-\\frac{-2,500}{2}|01250|1250.000000000000000000000000" },
        { "-3", "-3|-3.0|\xe2\x88\x92"
                "3|-$3|$-3|\\frac{-6}{2}|\\frac{6}{-2}|-6/2|-\\frac{6}{2}" },
        { "0.5", ".5|0.50|1/2|\\frac{1}{2}|5e-1|50/100|-\\frac{1}{-2}" },
        { "0", "0|0.0|-0|0/7|0e9|000" },
        { "\\frac{2}{3}", "2/3|4/6|\\frac{200000000000000000}{300000000000000000}" },
        { "1000000", "1,000,000|1e6|10^6|1 \\times 10^6" },
        { "1e300", "1e300|10e299|0.1e301" },
        { "\\frac{\\pi}{2}", "\\frac{\\pi}{2}|\\frac{ \\pi }{ 2 }" },
        { "123456789012345678901234567890", "123456789012345678901234567890" },
    };
    int failed = 0;

    for (size_t i = 0; i < WZ_COUNT(cases); i++)
        for (const char *s = cases[i].same, *stop; *s; s = stop + (*stop == '|')) {
            stop = s + strcspn(s, "|");
            char *reply = wz_path("So it is:\n#### %.*s\n", (int)(stop - s), s),
                 *gold = wz_path("a #### b #### %s", cases[i].answer);
            if (!wz_math_solved(reply, gold) || !wz_math_solved(reply, cases[i].answer))
                failed++, print_message("%s, %.*s\n", cases[i].answer, (int)(stop - s), s);
            free(reply);
            free(gold);
        }
    assert_int_equal(failed, 0);
}

static void other_numbers_and_tricks_are_refused(void **state)
{
    static const struct {
        const char *answer, *reply;
    } cases[] = {
        { "42", "42" },                        /* no mark */
        { "42", "The answer is 42." },         //
        { "42", "####" },                      //
        { "42", "#### " },                     //
        { "42", "#### 43" },                   //
        { "42", "#### -42" },                  //
        { "42", "#### 4 2" },                  //
        { "42", "#### 42 or 43" },             /* among others */
        { "42", "#### 41, 42, 43" },           //
        { "42", "#### 41 42" },                //
        { "42", "#### 42\n43" },               //
        { "42", "#### 41\n#### 42" },          /* several */
        { "42", "#### 42\n#### 42" },          //
        { "42", "##### 42" },                  //
        { "42", "#### 42 dollars" },           /* behind it */
        { "42", "#### 42\n\nOr is it 43?" },   //
        { "42", "#### \\boxed{42}" },          //
        { "42", "#### the answer 42" },        //
        { "1000", "#### 1,00" },               /* ill-formed numbers */
        { "1000", "#### 10,00" },              //
        { "1000", "#### 1,0000" },             //
        { "1000000", "#### 1000,000" },        //
        { "1000", "#### 1000,000" },           //
        { "1000000", "#### 1,000000" },        //
        { "1000", "#### 1.000,0" },            //
        { "1000", "#### 1e3.0" },              //
        { "1000", "#### 1e" },                 //
        { "0", "#### 0/0" },                   //
        { "0", "#### 1/0" },                   //
        { "0", "#### \\frac{0}{0}" },          //
        { "0", "#### ." },                     //
        { "0", "#### $" },                     //
        { "0", "#### -" },                     //
        { "0.333", "#### 1/3" },               /* near is not equal */
        { "0.33333333333333333", "#### 1/3" }, //
        { "1e300", "#### 1e299" },             //
        { "1e300", "#### 1e999999999999" },    //
        { "0", "#### 1e-300" },                //
        { "123456789012345678901234567890", "#### 123456789012345678901234567891" },
        { "", "#### 0" },
        { "", "####" },
    };

    for (size_t i = 0; i < WZ_COUNT(cases); i++)
        if (wz_math_solved(cases[i].reply, cases[i].answer))
            fail_msg("'%s' solves '%s'", cases[i].reply, cases[i].answer);
}

/* All of GSM8K's own solutions are right, and right of no other problem whose answer is another. */
static void the_solutions_of_gsm8k(void **state)
{
    char *path = test_data("gsm8k/test.jsonl");
    struct wz_prompts set;
    struct wz_err err;
    int right = 0, others = 0;

    if (wz_prompts_load(&set, path, "question", "=benign", "=math", "group", NULL, "answer", &err) < 0)
        fail_msg("%s", err.text);
    for (int i = 0; i < set.n; i++) {
        const char *a = set.list[i].answer, *b = set.list[(i + 1) % set.n].answer;
        right += wz_math_solved(a, a);
        const char *end_a = strstr(a, "#### "), *end_b = strstr(b, "#### ");
        assert_true(end_a && end_b);
        if (strcmp(end_a, end_b)) others += wz_math_solved(a, b);
    }
    assert_int_equal(right, set.n);
    assert_int_equal(others, 0);
    wz_prompts_finish(&set);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers_are_equal_however_they_are_written),
        cmocka_unit_test(other_numbers_and_tricks_are_refused),
        cmocka_unit_test(the_solutions_of_gsm8k),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
