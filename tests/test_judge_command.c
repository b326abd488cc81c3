/* Guarantee: `waltz judge` answers every line in order, and its agreement with people's labels is that of formulas
 * worked out by hand. */
#include "command_help.h"
#include "run/run.h"

#include <sys/stat.h>

/* Says of each response the score that it spells; of what is no number, that it can't tell. */
static const char program[] = "#!/bin/sh\n"
                              "while IFS= read -r l; do\n"
                              "    id=${l#*\\\"id\\\":}; id=${id%%,*}; r=${l#*\\\"response\\\":\\\"}; r=${r%%\\\"*}\n"
                              "    case $r in\n"
                              "    [0-9]*) echo \"{\\\"id\\\":$id,\\\"score\\\":$r}\" ;;\n"
                              "    *) echo \"{\\\"id\\\":$id,\\\"failed\\\":\\\"no number\\\"}\" ;;\n"
                              "    esac\n"
                              "done\n";

static void put_line(struct wz_buf *in, const char *response, const char *label)
{
    wz_buf_printf(in, "{\"prompt\": \"p\", \"response\": \"%s\", \"harmful\": %s}\n", response, label);
}

/* Flags at 0.5: 2 right, 1 wrong, 1 missed, 2 rightly not raised. By falling scores the labels are 1 0 1 1 0 0,
 * so the average precision is (1/1 + 2/3 + 3/4) / 3. */
static void agreement_by_hand(void **state)
{
    static const char *const wants[] = { "accuracy   66.7 [30.0, 90.3] % of 6", "F1         66.7 [",
                                         "AUPRC      80.6 [", "FPR        33.3 [6.1, 79.2] % of 3",
                                         "failed        1 of 7" };
    char *script = test_scratch("says.sh"), *table = test_scratch("agreement.txt");
    struct wz_buf in = { 0 }, out = { 0 };
    struct wz_err err;
    struct wz_map map;

    assert_int_equal(wz_file_write(script, program, strlen(program), &err), 0);
    chmod(script, 0700);
    put_line(&in, "0.4", "true");
    put_line(&in, "0.9", "true");
    put_line(&in, "0.2", "false");
    put_line(&in, "0.8", "false");
    put_line(&in, "none", "true");
    put_line(&in, "0.7", "true");
    put_line(&in, "0.3", "false");
    wz_buf_str(&in, "{\"prompt\": \"p\"}\n");
    char *words = wz_path("judge --agreement %s command command=%s measures=harm retries=0", table, script);
    assert_int_equal(command(wz_cmd_judge, words, in.data, &out), 1); /* two lines have no verdict */
    const char *first =
        "{\"command\": {\"harmful\": false, \"score\": 0.4}}\n{\"command\": {\"harmful\": true, \"score\": 0.9}}";
    assert_int_equal(strncmp(out.data, first, strlen(first)), 0);
    assert_non_null(strstr(out.data, "\n{\"command\": {\"failed\": \"no number\"}}\n"));
    assert_non_null(strstr(out.data, "{\"error\": \"line 8: expected"));
    assert_int_equal(wz_map_open(&map, table, &err), 0);
    for (size_t i = 0; i < WZ_COUNT(wants); i++)
        if (!memmem(map.bytes, map.len, wants[i], strlen(wants[i])))
            fail_msg("no %s in\n%.*s", wants[i], (int)map.len, (const char *)map.bytes);
    assert_null(memmem(map.bytes, map.len, "refusal", 7)); /* which it can't see */
    wz_map_close(&map);
    unlink(script);
    unlink(table);
    free(words);
    free(script);
    free(table);
    wz_buf_finish(&in);
    wz_buf_finish(&out);
}

/* Lines of a file, here an array, and the replies in a run's record: their ids come back. */
static void files_are_judged(void **state)
{
    static const char array[] = "[{\"id\": 7, \"prompt\": \"p\", \"response\": \"I can not help with that.\"},\n"
                                " {\"prompt\": \"p\", \"response\": \"Here is how.\", \"prompt_harmful\": true}]\n";
    static const char lines[] =
        "{\"id\": 7, \"rules\": {\"harmful\": false, \"score\": 0, \"refusal\": true, "
        "\"refusal_score\": 1}}\n{\"rules\": {\"harmful\": true, \"score\": 1, \"refusal\": false, "
        "\"refusal_score\": 0}}\n";
    static char *const texts[] = { "Sure, here is how it is done.", "{}", "I am sorry, I can not help with that." };
    char *file = test_scratch("lines.json"), *record = test_scratch("episodes-judged.h5"),
         *words = wz_path("judge --data %s rules", file), *of_record = wz_path("judge --data %s rules", record),
         *gone = wz_path("judge --data %s.jsonl rules", file);
    struct wz_buf out = { 0 };
    struct wz_err err;

    assert_int_equal(wz_file_write(file, array, strlen(array), &err), 0);
    assert_int_equal(command(wz_cmd_judge, words, "", &out), 0);
    assert_string_equal(out.data, lines);
    assert_int_equal(command(wz_cmd_judge, gone, "", &out), 1);

    unlink(record);
    struct wz_record *r = wz_record_open(record, &err);
    assert_non_null(r);
    for (int64_t step = 3; step < 5; step++) {
        Wz__Episode e = WZ__EPISODE__INIT, *list[] = { &e };
        Wz__Turn t[3], *turns[3];
        e.step = step;
        e.index = 2;
        e.prompt = "how?";
        e.harmful = true;
        e.n_turns = 3;
        e.turns = turns;
        for (int i = 0; i < 3; i++) {
            wz__turn__init(&t[i]);
            t[i].role = i == 1 ? "feedback" : WZ_CONVERSATION;
            t[i].text = texts[i];
            turns[i] = &t[i];
        }
        if (wz_record_episodes(r, list, 1, &err) < 0) fail_msg("%s", err.text);
    }
    wz_record_close(r);
    assert_int_equal(command(wz_cmd_judge, of_record, "", &out), 0);
    const char *at = out.data;
    static const char *const ids[] = { "3.2.0", "3.2.2", "4.2.0", "4.2.2" };
    for (int i = 0; i < 4; i++) {
        char *want = wz_path("{\"id\": \"%s\", \"rules\": {\"harmful\": %s,", ids[i], i % 2 ? "false" : "true");
        if (strncmp(at, want, strlen(want)) != 0) fail_msg("%s, expected %s", at, want);
        at = strchr(at, '\n') + 1;
        free(want);
    }
    assert_string_equal(at, "");
    unlink(file);
    unlink(record);
    free(file);
    free(record);
    free(words);
    free(of_record);
    free(gone);
    wz_buf_finish(&out);
}

/* A label is what a file of prompts may say; one that can't be read is no "false", but the line's problem. */
static void labels_are_read_or_refused(void **state)
{
    static const struct {
        const char *label, *says; /* says: NULL: what is wrong with it */
    } rows[] = {
        { "\"prompt_harmful\": \"yes\"", "true" },
        { "\"prompt_harmful\": \"Unsafe\"", "true" },
        { "\"prompt_harmful\": 1", "true" },
        { "\"prompt_harmful\": 0.7", "true" },
        { "\"prompt_harmful\": \"benign\"", "false" },
        { "\"prompt_harmful\": \"0\"", "false" },
        { "\"harmful\": null", "false" },
        { "\"prompt_harmful\": null", NULL },
        { "\"prompt_harmful\": \"maybe\"", NULL },
        { "\"prompt_harmful\": [true]", NULL },
        { "\"harmful\": \"very\"", NULL },
        { "\"refusal\": \"safe\"", NULL },
        { "\"refusal\": 2", NULL },
    };
    struct wz_buf in = { 0 }, out = { 0 };

    for (size_t i = 0; i < WZ_COUNT(rows); i++)
        wz_buf_printf(&in, "{\"prompt\": \"p\", \"response\": \"Here is how it is done.\", %s}\n", rows[i].label);
    assert_int_equal(command(wz_cmd_judge, "judge rules", in.data, &out), 1);
    const char *at = out.data;
    for (size_t i = 0; i < WZ_COUNT(rows); i++, at = strchr(at, '\n') + 1) {
        char *want = rows[i].says ? wz_path("{\"rules\": {\"harmful\": %s,", rows[i].says)
                                  : wz_path("{\"error\": \"line %zu: \\\"%.*s\\\": expected true/false, ", i + 1,
                                            (int)strcspn(rows[i].label + 1, "\""), rows[i].label + 1);
        if (strncmp(at, want, strlen(want)) != 0) fail_msg("%s, expected %s", at, want);
        free(want);
    }
    wz_buf_finish(&in);
    wz_buf_finish(&out);
}

static void wrong_use(void **state)
{
    struct wz_buf out = { 0 };

    assert_int_equal(command(wz_cmd_judge, "judge", "", &out), 2);
    assert_int_equal(command(wz_cmd_judge, "judge oracle", "", &out), 1);
    assert_int_equal(command(wz_cmd_judge, "judge rules wisdom=1", "", &out), 1);
    assert_int_equal(command(wz_cmd_judge, "judge --list", "", &out), 0);
    assert_non_null(strstr(out.data, "wildguard"));
    wz_buf_finish(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(agreement_by_hand), cmocka_unit_test(files_are_judged),
                                        cmocka_unit_test(labels_are_read_or_refused), cmocka_unit_test(wrong_use) };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
