/* Guarantee: the tables of a sweep hold means over seeds, intervals, the paper's figures and what agrees, worked out by
 * hand here; what is missing is told, and names are only names. */
#include "test.h"

#include <math.h>

#include "recipe/recipe.h"
#include "report/report.h"
#include "store/store.h"

static const char file_text[] =
    "name: t\n"
    "out: %s\n"
    "seeds: 3 5 8\n"
    "recipe: r.yaml\n"
    "columns: [{name: 'A|B', set: WJ, metric: asr}, {name: O, metric: orr}, {name: F1, metric: f1},\n"
    "  {name: n, metric: tokens}]\n"
    "rows:\n"
    "  - {name: made, run: sandbox}\n"
    "  - {name: one, title: 'one <b>', paper: 5 9 90 -, against: two none}\n"
    "  - {name: two, paper: 9 5 80 3}\n"
    "  - {name: three, paper: '- - - -', against: one}\n"
    "  - {name: none, paper: 1 1 1 1}\n";

static void add(struct wz_table *t, const char *set, const char *metric, double value, double low, double high)
{
    wz_table_add(t, &(struct wz_result){ "p", set, metric, value, low, high, 10, 1, 10, "wilson", "rules" });
}

static char *read_all(const char *dir, const char *name)
{
    char *path = wz_path("%s/%s", dir, name), *text;
    struct wz_map map;
    struct wz_err err;

    assert_int_equal(wz_map_open(&map, path, &err), 0);
    text = strndup((const char *)map.bytes, map.len);
    wz_map_close(&map);
    free(path);
    return text;
}

static void has(const char *text, const char *line)
{
    if (!strstr(text, line)) fail_msg("no '%s' in:\n%s", line, text);
}

/* Student's t is 4.3027 of 2 degrees: 0.1, 0.2, 0.3 is 20 -+ 4.3027 * 10 / sqrt(3) = 20 -+ 24.8, of which a rate has
 * [0, 44.8]; 50, 51, 55 tokens is 52 -+ 4.3027 * sqrt(7 / 3) = 52 -+ 6.57. */
static void tables(void **state)
{
    static const double asr[] = { 0.1, 0.2, 0.3 }, orr[] = { 0.1, 0.3, 0.2 }, tokens[] = { 55, 50, 51 };
    char *dir = test_scratch("sweep_table"), *path = wz_path("%s/t.yaml", dir), *text = wz_path(file_text, dir);
    char *why[5] = { NULL, NULL, NULL, "seed 8: lost", "fetch it" };
    struct wz_table t[5 * 3] = { 0 };
    struct wz_sweep *sweep;
    struct wz_err err;

    assert_int_equal(wz_mkdirs(dir, &err), 0);
    assert_int_equal(wz_file_write(path, text, strlen(text), &err), 0);
    if (wz_sweep_load(&sweep, path, NULL, 0, &err) < 0) fail_msg("%s", err.text);
    for (int s = 0; s < 3; s++) {
        struct wz_table *one = &t[3 + s], *two = &t[6 + s];
        add(one, "WJ", "asr", asr[s], 0, 1);
        add(one, "average", "orr", orr[s], 0, 1);
        add(one, "average", "asr", asr[s], 0, 1);
        add(one, "average", "f1", 0.5, 0.4, 0.6);
        add(one, "average", "tokens", tokens[s], 0, 100);
        add(two, "WJ", "asr", 0.4, 0.3 - 0.01 * s, 0.5 + 0.01 * s);
        add(two, "average", "orr", 0.2, 0.1, 0.3);
        add(two, "average", "f1", 0.6, 0.5, 0.7);
    }
    add(&t[9], "WJ", "asr", 0.15, 0.05, 0.25);
    if (wz_sweep_write(sweep, t, why, &err) < 0) fail_msg("%s", err.text);

    char *md = read_all(dir, "t.md"), *html = read_all(dir, "t.html"), *csv = read_all(dir, "t.csv");
    has(md, "| row | A\\|B, paper | A\\|B | O, paper | O | F1, paper | F1 | n, paper | n | orderings |\n");
    has(md, "| one \\<b> | 5.0 | 20.0 [0.0, 44.8] | 9.0 | 20.0 [0.0, 44.8] | 90.0 | 50.0 [40.0, 60.0] | – | "
            "52.0 [45.4, 58.6] | "
            "against two: agree A\\|B; tie O; differ F1 |\n");
    has(md, "| two | 9.0 | 40.0 [28.0, 52.0] | 5.0 | 20.0 [10.0, 30.0] | 80.0 | 60.0 [50.0, 70.0] | 3.0 | – | – |\n");
    has(md, "| three [1 of 3 seeds; not run: seed 8: lost] | – | 15.0 [5.0, 25.0] | – | – | – | – | – | – | – |\n");
    has(md, "| none [not run: fetch it] | 1.0 | – | 1.0 | – | 1.0 | – | 1.0 | – | – |\n");
    has(md, "| A\\|B | one \\<b>; two | 5.0 < 9.0 | 20.0 < 40.0 | agrees | 3 of 3 |\n");
    has(md, "| O | one \\<b>; two | 9.0 > 5.0 | 20.0 = 20.0 | a tie | 1 of 3 |\n");
    has(md, "| F1 | one \\<b>; two | 90.0 > 80.0 | 50.0 < 60.0 | differs | 0 of 3 |\n");
    has(md, "| one \\<b> | 20.0 (10.0 to 30.0) | 20.0 (10.0 to 30.0) | 50.0 (50.0 to 50.0) | 51.0 (50.0 to 55.0) |\n");
    assert_null(strstr(md, "made"));
    has(html, "<td>one &lt;b&gt;</td><td>5.0</td><td>20.0 [0.0, 44.8]</td>");
    has(html, "one: unsafe 20.0%, overrefusing 20.0%");
    assert_null(strstr(html, "two: unsafe")); /* it has no average */
    has(csv, "\none,WJ,asr,0.1,0,1,10,3,10,wilson,rules\n");
    has(csv, "\none,average,f1,0.9,,,0,0,0,,paper\n");
    has(csv, "\nthree,WJ,asr,0.15,0.05,0.25,1,0,0,,mean\n");
    for (size_t i = 0; i < WZ_COUNT(t); i++) wz_table_finish(&t[i]);
    wz_sweep_destroy(sweep);
    free(md);
    free(html);
    free(csv);
    free(dir);
    free(path);
    free(text);
}

/* Bronstein's table, and the expansion beyond it. */
static void students_t(void **state)
{
    static const double of[][2] = { { 1, 12.706 }, { 2, 4.303 },  { 9, 2.262 },
                                    { 10, 2.228 }, { 30, 2.042 }, { 120, 1.980 } };

    for (size_t i = 0; i < WZ_COUNT(of); i++)
        if (!(fabs(wz_student(of[i][0]) - of[i][1]) < 6e-4)) fail_msg("%g: %g", of[i][0], wz_student(of[i][0]));
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(tables), cmocka_unit_test(students_t) };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
