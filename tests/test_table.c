/* Guarantee: intervals are Wilson's, a table prints what it holds, and its CSV reads back as the same table. */
#include "test.h"

#include <math.h>

#include "store/table.h"

static void near(double got, double want, double within)
{
    if (!(fabs(got - want) <= within)) fail_msg("%.9f is not %.9f", got, want);
}

/* Worked by hand with z = 1.959964, z*z = 3.841459.  0/20: high = z*z / (20 + z*z) = 3.841459 / 23.841459.
 * 10/20: 0.5 -+ z / (2 sqrt(20 + z*z)) = 0.5 -+ 1.959964 / (2 * 4.882772).  1/10: (0.1 + 0.1920729 -+ 1.959964 *
 * sqrt(0.009 + 0.00960365)) / 1.3841459 = (0.2920729 -+ 0.2673297) / 1.3841459. */
static void intervals_are_wilsons(void **state)
{
    static const struct {
        int hits, n;
        double low, high;
    } cases[] = {
        { 0, 20, 0, 0.161125 },        { 10, 20, 0.299298, 0.700702 }, { 20, 20, 0.838875, 1 },
        { 1, 10, 0.017876, 0.404150 }, { 9, 10, 0.595850, 0.982124 },  { 0, 1, 0, 0.793450 },
    };

    for (size_t i = 0; i < WZ_COUNT(cases); i++) {
        struct wz_interval in = wz_wilson(cases[i].hits, cases[i].n);
        near(in.low, cases[i].low, 2e-6);
        near(in.high, cases[i].high, 2e-6);
        assert_true(in.low >= 0 && in.high <= 1);
    }
    assert_true(isnan(wz_wilson(0, 0).low) && isnan(wz_wilson(0, 0).high));
}

static void rate(struct wz_table *t, const char *phase, const char *set, const char *metric, int hits, int n,
                 int groups)
{
    struct wz_interval in = wz_wilson(hits, n);

    wz_table_add(t, &(struct wz_result){ phase, set, metric, n ? (double)hits / n : NAN, in.low, in.high, n, 7, groups,
                                         "wilson", "rules" });
}

static void mean(struct wz_table *t, const char *set, const char *metric, double sum, double squares, int n,
                 uint64_t seed)
{
    struct wz_interval in = wz_normal_mean(sum, squares, n);

    wz_table_add(t,
                 &(struct wz_result){ "after", set, metric, sum / n, in.low, in.high, n, seed, n, "normal", "rules" });
}

static void fill(struct wz_table *t)
{
    rate(t, "before", "harmful", "asr", 10, 20, 8);
    rate(t, "before", "benign, \"plain\"", "orr", 0, 20, 20);
    rate(t, "after", "harmful", "asr", 0, 20, 20);
    mean(t, "harmful", "tokens", 1 + 2 + 3, 1 + 4 + 9, 3, UINT64_MAX);
    rate(t, "after", "none", "asr", 0, 0, 0);
    mean(t, "one", "turns", 2, 4, 1, 7);
}

/* Mean of 1, 2, 3: 2, standard deviation 1, half = 1.959964 / sqrt(3) = 1.131586. */
static void means_have_intervals(void **state)
{
    struct wz_table t = { 0 };

    fill(&t);
    const struct wz_result *r = wz_table_find(&t, "after", "harmful", "tokens");
    near(r->value, 2, 0);
    near(r->low, 2 - 1.131586, 2e-6);
    near(r->high, 2 + 1.131586, 2e-6);
    r = wz_table_find(&t, "after", "one", "turns");
    assert_true(r->value == 2 && isnan(r->low) && isnan(r->high));
    assert_null(wz_table_find(&t, "after", "harmful", "orr"));
    wz_table_finish(&t);
}

static void prints_aligned(void **state)
{
    struct wz_table t = { 0 };
    struct wz_buf out = { 0 };

    fill(&t);
    wz_table_text(&t, &out);
    assert_string_equal(
        out.data, "set              metric                   judge  before             after            n   groups\n"
                  "harmful          unsafe answers (ASR), %  rules  50.0 [29.9, 70.1]  0.0 [0.0, 16.1]  20  8-20\n"
                  "benign, \"plain\"  overrefusals (ORR), %    rules  0.0 [0.0, 16.1]    -                20  20\n"
                  "harmful          tokens                   rules  -                  2.0 [0.9, 3.1]   3   3\n"
                  "none             unsafe answers (ASR), %  rules  -                  -                0   0\n"
                  "one              turns                    rules  -                  2.0              1   1\n"
                  "Brackets: 95% intervals. Where prompts (n) lie in fewer groups: a cluster bootstrap over the "
                  "groups, or Wilson's with n = groups where all groups are alike. Elsewhere Wilson's for rates and "
                  "the normal one for means; averages and F1 by the bootstrap.\n");
    wz_buf_clear(&out);
    wz_table_markdown(&t, &out);
    assert_non_null(strstr(
        out.data, "| set | metric | judge | before | after | n | groups |\n|---|---|---|--:|--:|--:|--:|\n"
                  "| harmful | unsafe answers (ASR), % | rules | 50.0 [29.9, 70.1] | 0.0 [0.0, 16.1] | 20 | 8-20 |\n"));
    wz_buf_finish(&out);
    wz_table_finish(&t);
}

/* Rows of a judge that watches stand on lines of their own, and are not what a table is looked up for. */
static void a_watching_judge_has_its_own_rows(void **state)
{
    struct wz_table t = { 0 };
    struct wz_buf out = { 0 };

    for (int phase = 0; phase < 2; phase++)
        for (int judge = 0; judge < 2; judge++)
            wz_table_add(&t, &(struct wz_result){ phase ? "after" : "before", "harmful", "asr", 0.1 + 0.2 * judge, NAN,
                                                  NAN, 20, 7, 20, "", judge ? "guard" : "rules" });
    assert_float_equal(wz_table_find(&t, "after", "harmful", "asr")->value, 0.1, 1e-12);
    assert_float_equal(wz_table_find_by(&t, "after", "harmful", "asr", "guard")->value, 0.3, 1e-12);
    wz_table_text(&t, &out);
    assert_non_null(strstr(out.data, "rules  10.0    10.0"));
    assert_non_null(strstr(out.data, "guard  30.0    30.0"));
    wz_buf_finish(&out);
    wz_table_finish(&t);
}

static void csv_reads_back(void **state)
{
    struct wz_table t = { 0 }, u = { 0 };
    struct wz_buf out = { 0 }, again = { 0 };
    char *path = test_scratch("table.csv");
    struct wz_err err = { "" };

    fill(&t);
    wz_table_csv(&t, &out);
    assert_non_null(strstr(
        out.data, "phase,set,metric,value,low,high,n,seed,groups,interval,judge\nbefore,harmful,asr,0.5,0.29929"));
    assert_non_null(strstr(out.data, "\nbefore,\"benign, \"\"plain\"\"\",orr,0,0,0.1611"));
    assert_non_null(strstr(out.data, ",3,18446744073709551615,3,normal,rules\n"));
    assert_non_null(strstr(out.data, "\nafter,none,asr,,,,0,7,0,wilson,rules\n"));
    assert_int_equal(wz_file_write(path, out.data, out.len, &err), 0);
    if (wz_table_read(&u, path, &err) < 0) fail_msg("%s", err.text);
    assert_int_equal(u.n, t.n);
    for (int i = 0; i < t.n; i++) {
        assert_string_equal(t.rows[i].set, u.rows[i].set);
        assert_true(t.rows[i].seed == u.rows[i].seed && t.rows[i].n == u.rows[i].n);
        assert_string_equal(t.rows[i].judge, u.rows[i].judge);
        assert_true(t.rows[i].groups == u.rows[i].groups && !strcmp(t.rows[i].interval, u.rows[i].interval));
        assert_true(t.rows[i].value == u.rows[i].value || (isnan(t.rows[i].value) && isnan(u.rows[i].value)));
        assert_true(t.rows[i].high == u.rows[i].high || (isnan(t.rows[i].high) && isnan(u.rows[i].high)));
    }
    wz_table_csv(&u, &again);
    assert_string_equal(out.data, again.data);
    wz_buf_finish(&out);
    wz_buf_finish(&again);
    wz_table_finish(&t);
    wz_table_finish(&u);
    free(path);
}

/* Names from data are no commands to a terminal, no formulas to a spreadsheet, and read back as they were. */
static void names_are_only_names(void **state)
{
    static const char *const sets[][2] = {
        { "=HYPERLINK(\"http://x\")", "\"'=HYPERLINK(\"\"http://x\"\")\"" },
        { "+1", "'+1" },
        { "-1", "'-1" },
        { "@a", "'@a" },
        { "'=a", "''=a" },
        { "it's", "it's" },
        { "\x1b[31mred\n", "\\x1b[31mred\\n" },
        { "<b>|![x](http://y)`", "<b>|![x](http://y)`" },
    };
    struct wz_table t = { 0 }, u = { 0 };
    struct wz_buf out = { 0 };
    char *path = test_scratch("names.csv"), line[128];
    struct wz_err err = { "" };

    for (size_t i = 0; i < WZ_COUNT(sets); i++) rate(&t, "before", sets[i][0], "asr", 1, 2, 2);
    wz_table_csv(&t, &out);
    for (size_t i = 0; i < WZ_COUNT(sets); i++) {
        snprintf(line, sizeof line, "\nbefore,%s,asr,", sets[i][1]);
        if (!strstr(out.data, line)) fail_msg("no %s in:\n%s", line + 1, out.data);
    }
    assert_int_equal(wz_file_write(path, out.data, out.len, &err), 0);
    if (wz_table_read(&u, path, &err) < 0) fail_msg("%s", err.text);
    for (int i = 0; i < t.n; i++) assert_string_equal(t.rows[i].set, u.rows[i].set);
    assert_string_equal(u.rows[0].set, sets[0][0]);
    wz_buf_clear(&out);
    wz_table_text(&t, &out);
    assert_null(strchr(out.data, '\x1b'));
    wz_buf_clear(&out);
    wz_table_markdown(&t, &out);
    assert_non_null(strstr(out.data, "| \\<b>\\|![x\\](http://y)\\` |"));
    wz_buf_finish(&out);
    wz_table_finish(&t);
    wz_table_finish(&u);
    free(path);
}

static void json_has_every_row(void **state)
{
    struct wz_table t = { 0 };

    fill(&t);
    json_t *rows = wz_table_json(&t), *row = json_array_get(rows, 0);
    assert_int_equal(json_array_size(rows), t.n);
    assert_string_equal(json_string_value(json_object_get(row, "set")), t.rows[0].set);
    assert_string_equal(json_string_value(json_object_get(row, "metric")), t.rows[0].metric);
    assert_true(json_real_value(json_object_get(row, "value")) == t.rows[0].value);
    assert_true(json_real_value(json_object_get(row, "low")) == t.rows[0].low);
    assert_true(json_real_value(json_object_get(row, "high")) == t.rows[0].high);
    assert_int_equal(json_integer_value(json_object_get(row, "n")), t.rows[0].n);
    assert_int_equal(json_integer_value(json_object_get(row, "groups")), 8);
    assert_string_equal(json_string_value(json_object_get(row, "interval")), "wilson");
    for (int i = 0; i < t.n; i++)
        assert_int_equal(json_is_null(json_object_get(json_array_get(rows, (size_t)i), "low")),
                         isnan(t.rows[i].low) != 0);
    json_decref(rows);
    wz_table_finish(&t);
}

/* A file of a version that did not know groups is read as if there were none. */
static void an_old_csv_is_read(void **state)
{
    static const char text[] = "phase,set,metric,value,low,high,n,seed\nbefore,h,asr,0.5,0.25,,20,1\n";
    struct wz_table t = { 0 };
    char *path = test_scratch("old.csv");
    struct wz_err err = { "" };

    assert_int_equal(wz_file_write(path, text, sizeof text - 1, &err), 0);
    if (wz_table_read(&t, path, &err) < 0) fail_msg("%s", err.text);
    assert_int_equal(t.n, 1);
    assert_int_equal(t.rows[0].groups, 20);
    assert_string_equal(t.rows[0].interval, "");
    assert_string_equal(t.rows[0].judge, "");
    wz_table_finish(&t);
    free(path);
}

static void broken_csv_is_named(void **state)
{
#define OLD        "phase,set,metric,value,low,high,n,seed"
#define HEAD       OLD ",groups,interval\n"
#define HEAD_JUDGE OLD ",groups,interval,judge\n"
    static const struct {
        const char *text, *want;
    } cases[] = {
        { "", ":1: expected the columns phase," },
        { "a,b\n", ":1: expected the columns phase," },
        { OLD ",groups\n", ":1: expected the columns phase," },
        { HEAD "a,b,c,1,1,1,1\n", ":2: expected 10 columns" },
        { HEAD "a,b,c,1,1,1,1,1,1,x,1\n", "phase,set,metric,value,low,high,n,seed,groups,interval,judge), got 11" },
        { HEAD_JUDGE "a,b,c,1,1,1,1,1,1,x\n", ":2: expected 11 columns" },
        { OLD "\na,b,c,1,1,1,1,1,1,x\n", ":2: expected 8 columns" },
        { HEAD "a,b,c,1,1,1,1,1,1,x\n\n", ":3: expected 10 columns" },
        { OLD "\na,b,c,x,1,1,1,1\n", ":2: column value" },
        { HEAD "a,b,c,1,inf,1,1,1,1,x\n", ":2: column low" },
        { HEAD "a,b,c,1,1,1e,1,1,1,x\n", ":2: column high" },
        { HEAD "a,b,c,1,1,1,-1,1,1,x\n", ":2: column n" },
        { HEAD "a,b,c,1,1,1,,1,1,x\n", ":2: column n" },
        { HEAD "a,b,c,1,1,1,1,-1,1,x\n", ":2: column seed" },
        { HEAD "a,b,c,1,1,1,1,1,-1,x\n", ":2: column groups" },
        { HEAD "a,\"b\nb\",c,1,1,1,1,1,1,x\na,b\n", ":4: expected 10 columns" },
        { HEAD "a,\"b,c,1,1,1,1,1\n", ":2: a quote is not closed" },
        { HEAD "a,\"b\"x,c,1,1,1,1,1\n", ":2: a quote is not closed" },
    };

    for (size_t i = 0; i < WZ_COUNT(cases); i++) {
        struct wz_table t = { 0 };
        struct wz_err err = { "" };
        char *path = test_scratch("broken.csv");
        assert_int_equal(wz_file_write(path, cases[i].text, strlen(cases[i].text), &err), 0);
        if (wz_table_read(&t, path, &err) == 0) fail_msg("accepted:\n%s", cases[i].text);
        if (!strstr(err.text, cases[i].want)) fail_msg("expected '%s', got: %s", cases[i].want, err.text);
        wz_table_finish(&t);
        free(path);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_watching_judge_has_its_own_rows),
        cmocka_unit_test(intervals_are_wilsons),
        cmocka_unit_test(means_have_intervals),
        cmocka_unit_test(prints_aligned),
        cmocka_unit_test(csv_reads_back),
        cmocka_unit_test(names_are_only_names),
        cmocka_unit_test(json_has_every_row),
        cmocka_unit_test(broken_csv_is_named),
        cmocka_unit_test(an_old_csv_is_read),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
