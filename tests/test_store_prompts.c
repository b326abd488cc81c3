/* Guarantee: prompts come out of JSONL, JSON and CSV files, gzip or not, byte for byte; a bad row is named with its
 * file and columns. */
#include "test.h"

#include <unistd.h>
#include <zlib.h>

#include "store/store.h"

static char *path;

static void put(const char *ending, const char *text, size_t n)
{
    free(path);
    char *stem = test_scratch("prompts");
    path = wz_path("%s%s", stem, ending);
    free(stem);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    fclose(f);
}

static void is(const struct wz_prompt *p, const char *text, const char *id, const char *kind, enum wz_harm harm)
{
    assert_string_equal(p->text, text);
    assert_string_equal(p->id, id);
    assert_string_equal(p->kind, kind);
    assert_int_equal(p->harm, harm);
}

static void loads(struct wz_prompts *set, const char *column, const char *harm, const char *kind, int n)
{
    struct wz_err err = { "" };

    if (wz_prompts_load(set, path, column, harm, kind, "group", "", NULL, &err) < 0) fail_msg("%s", err.text);
    assert_int_equal(set->n, n);
}

static void jsonl(void **state)
{
    static const char text[] = "\xef\xbb\xbf{\"id\": 7, \"prompt\": \"a\\nb\", \"harmful\": true, \"k\": \"x\"}\r\n"
                               "\n  \t\n{\"prompt\": \"gr\xc3\xbc\xc3\x9f\", \"harmful\": 0, \"k\": 2}";
    static const char both[] =
        "{\"prompt\": \"a\\u0000b\", \"weight\": 18446744073709551616}"; /* RFC 8259 allows both */
    struct wz_prompts set;

    put(".jsonl", text, sizeof text - 1);
    loads(&set, "prompt", "harmful", "k", 2);
    is(&set.list[0], "a\nb", "7", "x", WZ_HARMFUL);
    is(&set.list[1], "gr\xc3\xbc\xc3\x9f", "4", "2", WZ_BENIGN);
    uint64_t hash = set.hash;
    wz_prompts_finish(&set);
    loads(&set, "prompt", "=harmful", NULL, 2);
    is(&set.list[1], "gr\xc3\xbc\xc3\x9f", "4", "prompts", WZ_HARMFUL);
    assert_true(set.hash == hash); /* of the texts alone */
    wz_prompts_finish(&set);
    put(".jsonl", "{\"prompt\": \"a\\nb\"}\n{\"prompt\": \"gr\xc3\xbc\xc3\x9f!\"}\n", 40);
    loads(&set, "prompt", "=benign", "=pets", 2);
    is(&set.list[0], "a\nb", "1", "pets", WZ_BENIGN);
    assert_true(set.hash != hash);
    wz_prompts_finish(&set);
    put(".jsonl", both, strlen(both));
    loads(&set, "prompt", "=benign", NULL, 1);
    is(&set.list[0], "a\xef\xbf\xbd\x62", "1", "prompts", WZ_BENIGN);
    wz_prompts_finish(&set);
}

/* Truth in every word and type that a column may have it in. */
static void words_of_truth(void **state)
{
    static const char *const words[2][11] = {
        { "true", "1", "\"true\"", "\"1\"", "\"yes\"", "\"Yes\"", "\"TRUE\"", "\"harmful\"", "\"unsafe\"",
          "\"Unsafe\"" },
        { "false", "0", "\"false\"", "\"0\"", "\"no\"", "\"NO\"", "\"False\"", "\"benign\"", "\"safe\"", "\"Safe\"" },
    };

    for (int benign = 0; benign < 2; benign++)
        for (int i = 0; words[benign][i]; i++) {
            struct wz_prompts set;
            char text[64];
            int n = snprintf(text, sizeof text, "{\"prompt\": \"a\", \"harmful\": %s}", words[benign][i]);
            put(".jsonl", text, (size_t)n);
            loads(&set, "prompt", "harmful", NULL, 1);
            is(set.list, "a", "1", "prompts", benign ? WZ_BENIGN : WZ_HARMFUL);
            wz_prompts_finish(&set);
        }
}

/* A group is a column as the kind is; only the column called "group" may be missing, or null. */
static void groups(void **state)
{
    static const char lines[] =
        "{\"prompt\": \"a\", \"group\": \"x y\", \"pair\": 3}\n{\"prompt\": \"b\", \"pair\": 4}\n"
        "{\"prompt\": \"c\", \"group\": null, \"pair\": null}\n";
    static const struct {
        const char *ending, *text, *column, *want;
    } cases[] = {
        { ".jsonl", lines, "other", "row 1: no column \"other\"" },
        { ".jsonl", "{\"prompt\": \"a\", \"group\": [1]}", "group", "row 1: column \"group\" must be a string" },
        { ".csv", "prompt,pair\na,1\n", "pairs", "row 2: no column \"pairs\"" },
    };
    struct wz_prompts set;
    struct wz_err err = { "" };

    put(".jsonl", lines, sizeof lines - 1);
    loads(&set, "prompt", "=benign", NULL, 3);
    assert_string_equal(set.list[0].group, "x y");
    assert_string_equal(set.list[1].group, "");
    assert_string_equal(set.list[2].group, "");
    wz_prompts_finish(&set);
    assert_int_equal(wz_prompts_load(&set, path, "prompt", "=benign", NULL, "pair", "", NULL, &err), 0);
    assert_string_equal(set.list[0].group, "3");
    assert_string_equal(set.list[1].group, "4");
    wz_prompts_finish(&set);
    put(".csv", "prompt,group\na,\nb,\"p, q\"\n", 25);
    loads(&set, "prompt", "=benign", NULL, 2);
    assert_string_equal(set.list[0].group, "");
    assert_string_equal(set.list[1].group, "p, q");
    wz_prompts_finish(&set);
    for (size_t i = 0; i < WZ_COUNT(cases); i++) {
        put(cases[i].ending, cases[i].text, strlen(cases[i].text));
        assert_int_equal(wz_prompts_load(&set, path, "prompt", "=benign", NULL, cases[i].column, "", NULL, &err), -1);
        if (!strstr(err.text, cases[i].want)) fail_msg("'%s' was expected, said: %s", cases[i].want, err.text);
    }
}

static void json(void **state)
{
    static const char objects[] = "[{\"q\": \"one\", \"label\": \"safe\"},\n {\"q\": \"two\", \"label\": \"Unsafe\"}]";
    static const char strings[] = "[\"one\", \"two\\u00e9\"]";
    struct wz_prompts set;
    struct wz_err err;

    put(".json", objects, sizeof objects - 1);
    loads(&set, "q", "label", "", 2);
    is(&set.list[0], "one", "1", "prompts", WZ_BENIGN);
    is(&set.list[1], "two", "2", "prompts", WZ_HARMFUL);
    wz_prompts_finish(&set);
    put(".json", strings, sizeof strings - 1);
    loads(&set, "ignored", "=harmful", NULL, 2);
    is(&set.list[1], "two\xc3\xa9", "2", "prompts", WZ_HARMFUL);
    wz_prompts_finish(&set);
    assert_int_equal(wz_prompts_load(&set, path, "q", "label", NULL, "group", "", NULL, &err), -1);
    assert_non_null(strstr(err.text, "no column \"label\""));
}

/* The bytes as one gzip member behind *n bytes of `out`. */
static void pack(uint8_t *out, size_t *n, const char *text)
{
    z_stream z = {
        .next_in = (Bytef *)(uintptr_t)text, .avail_in = (uInt)strlen(text), .next_out = out + *n, .avail_out = 400
    };

    assert_int_equal(deflateInit2(&z, 9, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY), Z_OK);
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    *n += z.total_out;
    deflateEnd(&z);
}

/* Packed files are the same rows, whatever their name says; cut, damaged or with something behind they are refused. */
static void gzip(void **state)
{
    static const struct {
        const char *ending, *first, *second;
    } rows[] = {
        { ".jsonl.gz", "{\"prompt\": \"one\", \"harmful\": 0}\n{\"prompt\":", " \"two\", \"harmful\": 1}\n" },
        { ".jsonl", "[{\"prompt\": \"one\", \"harmful\": 0},\n", "{\"prompt\": \"two\", \"harmful\": 1}]" },
        { ".json.GZ", "\xef\xbb\xbf {\"prompt\": \"one\", \"harmful\": 0}\n\n",
          "{\"prompt\": \"two\", \"harmful\": 1}" },
        { ".csv.gz", "prompt,harmful\none,0\n", "two,1\n" },
    };
    struct wz_prompts set;
    struct wz_err err;

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        uint8_t bytes[1000];
        size_t n = 0, first;
        pack(bytes, &n, rows[i].first);
        first = n;
        pack(bytes, &n, rows[i].second);
        put(rows[i].ending, (const char *)bytes, n);
        loads(&set, "prompt", "harmful", NULL, 2);
        assert_string_equal(set.list[0].text, "one");
        assert_string_equal(set.list[1].text, "two");
        assert_string_equal(set.list[1].kind, "prompts");
        wz_prompts_finish(&set);
        for (size_t cut = 2; cut < n; cut++) {
            if (cut == first) continue; /* the first member alone */
            put(rows[i].ending, (const char *)bytes, cut);
            assert_int_equal(wz_prompts_load(&set, path, "prompt", "harmful", NULL, "group", "", NULL, &err), -1);
            if (!strstr(err.text, "not valid gzip")) fail_msg("cut at %zu: %s", cut, err.text);
        }
        bytes[n] = bytes[n + 1] = 'x';
        put(rows[i].ending, (const char *)bytes, n + 2);
        assert_int_equal(wz_prompts_load(&set, path, "prompt", "harmful", NULL, "group", "", NULL, &err), -1);
        assert_non_null(strstr(err.text, "incorrect header check"));
        bytes[n - 6] ^= 1; /* its checksum */
        put(rows[i].ending, (const char *)bytes, n);
        assert_int_equal(wz_prompts_load(&set, path, "prompt", "harmful", NULL, "group", "", NULL, &err), -1);
        assert_non_null(strstr(err.text, "incorrect data check"));
    }
}

static void csv(void **state)
{
    static const char text[] = "\xef\xbb\xbfid,\"the \"\"prompt\"\"\",harmful,,\r\n"
                               "a-1,\"one, \"\"two\"\"\r\nthree\",1,x,\r\n"
                               "\n"
                               "a-2,pl\"ain ,0,\"\",\"y\"\n"
                               "a-3,\"\xe2\x82\xac\",FALSE,,";
    struct wz_prompts set;

    put(".csv", text, sizeof text - 1);
    loads(&set, "the \"prompt\"", "harmful", "=k", 3);
    is(&set.list[0], "one, \"two\"\r\nthree", "a-1", "k", WZ_HARMFUL);
    is(&set.list[1], "pl\"ain ", "a-2", "k", WZ_BENIGN);
    is(&set.list[2], "\xe2\x82\xac", "a-3", "k", WZ_BENIGN);
    wz_prompts_finish(&set);
}

static void bad_rows_are_named(void **state)
{
    static const struct {
        const char *ending, *text, *word;
    } rows[] = {
        { ".txt", "hello", ".jsonl, .ndjson, .json, .csv or .tsv" },
        { ".jsonl", "", "no rows" },
        { ".jsonl", "{\"prompt\":\"a\",\"harmful\":1}\n{\"text\":\"b\",\"other\":1}",
          "row 2: no column \"prompt\"; the columns are: text, other" },
        { ".jsonl", "{\"prompt\":3,\"harmful\":1}", "row 1: column \"prompt\" must be a string" },
        { ".jsonl", "{\"prompt\":\"\",\"harmful\":1}", "row 1: the prompt is empty" },
        { ".jsonl", "{\"prompt\":\"a\"}", "row 1: no column \"harmful\"" },
        { ".jsonl", "{\"prompt\":\"a\",\"harmful\":\"maybe\"}", "'maybe'" },
        { ".jsonl", "{\"prompt\":\"a\",\"harmful\":2}", "'2'" },
        { ".jsonl", "{\"prompt\":\"a\",\"harmful\":null}", "row 1" },
        { ".jsonl", "{\"prompt\":\"a\",\"harmful\":1}\n{\"prompt\"", "row 2:1:9: not valid JSON" },
        { ".jsonl", "\n\"text\"", "row 2:1:6: not valid JSON" },
        { ".jsonl", "[3]", "row 1: expected an object" },
        { ".jsonl", "{\"prompt\":\"a\xff\",\"harmful\":1}", "row 1: byte 13 of it is not valid UTF-8" },
        { ".json", "{\n\"prompt\":\"a\"}", "row 1:1:1: not valid JSON" },
        { ".jsonl", "[{\"prompt\":\"a\",\"harmful\":1},", "not valid JSON" },
        { ".txt.gz", "a", "expected a file ending in .jsonl, .ndjson, .json, .csv or .tsv, or one of these and .gz" },
        { ".gz", "a", "expected a file ending in" },
        { ".json", "[{\"prompt\":\"a\",\"harmful\":1}, 3]", "row 2: expected an object" },
        { ".json", "[{\"prompt\":\"a\xff\"}]", "not valid JSON" },
        { ".csv", "", "no rows" },
        { ".csv", "prompt,harmful\n", "no rows" },
        { ".csv", "text,harmful\na,1", "the columns are: text, harmful" },
        { ".csv", "prompt,prompt\na,1", "\"prompt\" appears twice" },
        { ".csv", "prompt,harmful\na,1\nb", "row 3: expected 2 cells" },
        { ".csv", "prompt,harmful\na,1,", "row 2: expected 2 cells" },
        { ".csv", "prompt,harmful\n\"a,1\nb,2\n", "row 2: a quote is not closed" },
        { ".csv", "prompt,harmful\n\"a\"b,1", "row 2: a quote is not closed" },
        { ".tsv", "prompt\tharmful\na,1", "row 2: expected 2 cells" },
        { ".tsv", "prompt\tharmful\n\"a\",\t1", "row 2: a quote is not closed, or not followed by a tab" },
        { ".csv", "prompt,harmful\n\"a\xc3\",1", "row 2: byte 2 of a cell is not valid UTF-8" },
    };
    struct wz_prompts set;
    struct wz_err err;

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        put(rows[i].ending, rows[i].text, strlen(rows[i].text));
        err.text[0] = 0;
        assert_int_equal(wz_prompts_load(&set, path, "prompt", "harmful", NULL, "group", "", NULL, &err), -1);
        if (!strstr(err.text, rows[i].word) || !strstr(err.text, path))
            fail_msg("expected '%s' in: %s", rows[i].word, err.text);
        assert_null(set.list);
    }
    put(".csv", "prompt,harmful\na\0b,1", 20);
    assert_int_equal(wz_prompts_load(&set, path, "prompt", "harmful", NULL, "group", "", NULL, &err), -1);
    assert_non_null(strstr(err.text, "NUL"));
    unlink(path);
    assert_int_equal(wz_prompts_load(&set, path, "prompt", "harmful", NULL, "group", "", NULL, &err), -1);
}

/* Every beginning of a file: rows up to there, or one error message. */
static void truncated(void **state)
{
    static const char *const texts[][2] = {
        { ".jsonl",
          "{\"id\": 7, \"prompt\": \"a\\nb\xc3\xbc\", \"harmful\": true}\n{\"prompt\": \"b\", \"harmful\": false}\n" },
        { ".json", "[{\"prompt\": \"one\", \"harmful\": \"safe\"}, {\"prompt\": \"two\", \"harmful\": 1}]" },
        { ".csv", "prompt,harmful\r\n\"a\"\"\r\nb\xc3\xbc\",1\r\nc,\"safe\"\r\n" },
    };

    for (size_t i = 0; i < WZ_COUNT(texts); i++) {
        for (size_t n = 0; n <= strlen(texts[i][1]); n++) {
            struct wz_prompts set;
            struct wz_err err = { "" };
            put(texts[i][0], texts[i][1], n);
            if (wz_prompts_load(&set, path, "prompt", "harmful", NULL, "group", "", NULL, &err) < 0)
                assert_non_null(strstr(err.text, path));
            else assert_in_range(set.n, 1, 2);
            wz_prompts_finish(&set);
        }
    }
}

/* Rows as counted by the data's own list. */
static void real_data(void **state)
{
    static const struct {
        const char *name, *column, *harm, *kind;
        int rows, harmful;
    } sets[] = {
        { "xstest/xstest_prompts.csv", "prompt", "label", "type", 450, 200 },
        { "hatecheck/test_suite_cases.csv", "test_case", "=harmful", "functionality", 3728, 3728 },
        { "harmbench/harmbench_behaviors_text_all.csv", "Behavior", "=harmful", "SemanticCategory", 399, 399 },
        { "advbench/harmful_behaviors.csv", "goal", "=harmful", NULL, 513, 513 },
        { "ailuminate/airr_official_1.0_demo_en_us_prompt_set_release.csv", "prompt_text", "=harmful", "hazard", 1090,
          1090 },
        { "multijail/MultiJail.csv", "zh", "=harmful", "source", 309, 309 },
        { "ifeval/input_data.jsonl", "prompt", "=benign", NULL, 541, 0 },
        { "cyberseceval/mitre_frr.json", "mutated_prompt", "is_malicious", "attack_type", 750, 0 },
        { "inthewild_jailbreaks/inthewild_jailbreak_llms.json", "", "=harmful", NULL, 660, 660 },
        { "gsm8k/test.jsonl", "question", "=benign", NULL, 1319, 0 },
        { "star1/STAR-1.json", "question", "=harmful", "source", 994, 994 },
    };

    for (size_t i = 0; i < WZ_COUNT(sets); i++) {
        struct wz_prompts set;
        int harmful = 0;
        free(path);
        path = test_data(sets[i].name);
        loads(&set, sets[i].column, sets[i].harm, sets[i].kind, sets[i].rows);
        for (int k = 0; k < set.n; k++) harmful += set.list[k].harm == WZ_HARMFUL;
        assert_int_equal(harmful, sets[i].harmful);
        wz_prompts_finish(&set);
    }
}

/* A row's text is cut to what is between the marks, and to so many words, blanks kept; prompts are found by text. */
static void prefills(void **state)
{
    static const struct {
        const char *text, *three, *whole;
    } rows[] = {
        { "a b c d", "a b c", "a b c d" },
        { "  a\nb  c ", "  a\nb  c", "  a\nb  c " },
        { "<think>\na b\n</think>c d", "\na b", "\na b\n" },
        { " <think> a b c d </think>", " a b c", " a b c d " },
        { "a b</think> c", "a b", "a b" },
        { "a <think> b c", "a <think> b", "a <think> b c" },
    };
    const struct wz_prefill how = { .alpha = 0.25, .resets = 2, .transition = "wait" },
                            whole = { .hijack = true, .transition = "" };
    struct wz_prompts set;
    struct wz_err err;

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        struct wz_buf lines = { 0 };
        put(".jsonl", "{\"prompt\":\"p\"}\n{\"prompt\":\"q\"}\n{\"prompt\":\"p\"}\n", 45);
        loads(&set, "prompt", "=benign", NULL, 3);
        wz_buf_str(&lines, "{\"prompt\":\"other\",\"text\":\"x\"}\n{\"prompt\":\"p\",\"text\":");
        wz_json_string(&lines, rows[i].text, strlen(rows[i].text));
        wz_buf_str(&lines, "}\n");
        put(".jsonl", lines.data, lines.len);
        assert_int_equal(wz_prefills_load(&set, path, 3, &how, &err), 2);
        assert_null(set.list[1].prefill);
        for (int k = 0; k < 3; k += 2) {
            assert_string_equal(set.list[k].prefill->text, rows[i].three);
            assert_string_equal(set.list[k].prefill->transition, "wait");
            assert_true(set.list[k].prefill->alpha == 0.25 && set.list[k].prefill->resets == 2);
        }
        assert_int_equal(wz_prefills_load(&set, path, 3, &whole, &err), 2);
        assert_string_equal(set.list[0].prefill->text, rows[i].whole);
        wz_buf_finish(&lines);
        wz_prompts_finish(&set);
    }
}

static void bad_prefills_are_named(void **state)
{
    static const struct {
        const char *rows, *want;
    } cases[] = {
        { "{\"prompt\":\"p\"}", "row 1: expected {\"prompt\": text, \"text\": text}" },
        { "{\"prompt\":\"p\",\"text\":\"a\"}\n{\"text\":\"a\"}", "row 2: expected {" },
        { "{\"prompt\":\"p\",\"text\":7}", "row 1: expected {" },
        { "[1]", "row 1: expected {" },
        { "{\"prompt\":\"p\",\"text\":\" <think> </think> a\"}", "row 1: its text has nothing to begin with" },
        { "{\"prompt\":\"p\",\"text\":\"a\"}\n{\"prompt\":\"p\",\"text\":\"b\"}",
          "row 2: an earlier row has this prompt" },
        { "{\"prompt\":\"other\",\"text\":\"a\"}", "no row has the text of a prompt" },
        { "{\"prompt\":\"p\",", "row 1" },
    };
    const struct wz_prefill how = { .transition = "" };
    struct wz_prompts set;

    put(".jsonl", "{\"prompt\":\"p\"}\n", 15);
    loads(&set, "prompt", "=benign", NULL, 1);
    for (size_t i = 0; i < WZ_COUNT(cases); i++) {
        struct wz_err err = { "" };
        put(".json", cases[i].rows, strlen(cases[i].rows));
        assert_int_equal(wz_prefills_load(&set, path, 3, &how, &err), -1);
        if (!strstr(err.text, cases[i].want) || !strstr(err.text, path)) fail_msg("case %zu: %s", i, err.text);
    }
    wz_prompts_finish(&set);
}

/* The column of answers is read where it is asked for. */
static void answers(void **state)
{
    struct wz_prompts set;
    struct wz_err err;

    put(".jsonl", "{\"prompt\":\"p\",\"a\":\"#### 4\"}\n{\"prompt\":\"q\",\"a\":5}\n", 49);
    for (int asked = 0; asked < 2; asked++) {
        assert_int_equal(
            wz_prompts_load(&set, path, "prompt", "=benign", NULL, "group", NULL, asked ? "a" : NULL, &err), 0);
        assert_string_equal(set.list[0].answer, asked ? "#### 4" : "");
        assert_string_equal(set.list[1].answer, asked ? "5" : "");
        wz_prompts_finish(&set);
    }
    assert_int_equal(wz_prompts_load(&set, path, "prompt", "=benign", NULL, "group", NULL, "b", &err), -1);
    assert_non_null(strstr(err.text, "no column \"b\""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(groups),
        cmocka_unit_test(jsonl),
        cmocka_unit_test(words_of_truth),
        cmocka_unit_test(json),
        cmocka_unit_test(csv),
        cmocka_unit_test(gzip),
        cmocka_unit_test(bad_rows_are_named),
        cmocka_unit_test(truncated),
        cmocka_unit_test(prefills),
        cmocka_unit_test(bad_prefills_are_named),
        cmocka_unit_test(answers),
        cmocka_unit_test(real_data), /* the last: where it is skipped `path` is not its own */
    };

    return cmocka_run_group_tests_name("store_prompts", tests, NULL, NULL);
}
