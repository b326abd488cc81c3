/* Guarantee: base does what its header says: random bits equal the published vectors, files read back as written, and
 * results do not depend on the number of threads. */
#include "test.h"

#include <float.h>
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

/* Known answers for philox4x32-10 from the authors' Random123 distribution (kat_vectors). */
static void philox_known_answers(void **state)
{
    static const uint32_t rows[][10] = {
        { 0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 },
        { ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd },
        { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09, 0x94fdcceb, 0x5001e420,
          0x24126ea1 },
    };

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        uint32_t out[4];
        wz_philox(rows[i], rows[i] + 4, out);
        assert_memory_equal(out, rows[i] + 6, sizeof out);
    }
    /* the first row again, as the draw of a key of zeros; Box and Muller's formula was worked out apart */
    const struct wz_key zeros = { 0 };
    assert_true(wz_random(zeros) == 0xe169c58d6627e8d5u);
    assert_true(fabs(wz_uniform(zeros) - 0.8805201978886142) < 1e-15);
    assert_true(fabs(wz_normal(zeros) + 0.39766753844418223) < 1e-13);
}

static struct wz_key draw(uint32_t a) { return (struct wz_key){ .seed = 7, .purpose = WZ_RNG_TEST, .a = a }; }

static void random_stays_in_bounds(void **state)
{
    enum { N = 60000, SIDES = 6 };
    int count[SIDES] = { 0 };
    double sum = 0, squares = 0, mean = 0;

    for (uint32_t i = 0; i < N; i++) {
        double u = wz_uniform(draw(i)), z = wz_normal(draw(i));
        assert_true(u >= 0 && u < 1);
        mean += u / N;
        sum += z;
        squares += z * z;
        uint32_t side = wz_below(draw(i), SIDES);
        assert_true(side < SIDES);
        count[side]++;
        assert_int_equal(wz_below(draw(i), 1), 0);
    }
    assert_true(mean > 0.49 && mean < 0.51); /* 0.5 +- 8 sigma */
    assert_true(sum / N > -0.03 && sum / N < 0.03);
    assert_true(squares / N > 0.95 && squares / N < 1.05);
    for (int i = 0; i < SIDES; i++) assert_true(count[i] > N / SIDES - 700 && count[i] < N / SIDES + 700);
}

/* Every field of the name of a draw matters. */
static void random_is_keyed_by_all_fields(void **state)
{
    struct wz_key k = { 1, 2, 3, 4, 5, 6 }, other;
    uint64_t r = wz_random(k);

    assert_true(wz_random(k) == r);
    other = k, other.seed++, assert_true(wz_random(other) != r);
    other = k, other.seed += 1ull << 40, assert_true(wz_random(other) != r);
    other = k, other.purpose++, assert_true(wz_random(other) != r);
    other = k, other.a++, assert_true(wz_random(other) != r);
    other = k, other.b++, assert_true(wz_random(other) != r);
    other = k, other.c++, assert_true(wz_random(other) != r);
    other = k, other.d++, assert_true(wz_random(other) != r);
}

static void utf8_valid_and_partial(void **state)
{
    static const struct {
        const char *s;
        size_t n, valid, partial;
    } rows[] = {
        { "", 0, 0, 0 },
        { "abc", 3, 3, 0 },
        { "\xc3\xa9", 2, 2, 0 },
        { "a\xc3", 2, 1, 1 },
        { "\xe2\x82\xac", 3, 3, 0 },
        { "\xe2\x82", 2, 0, 2 },
        { "\xf0\x9f\x98\x80", 4, 4, 0 },
        { "x\xf0\x9f\x98", 4, 1, 3 },
        { "\xc0\xaf", 2, 0, 0 }, /* overlong */
        { "\xe0\x80\x80", 3, 0, 0 },
        { "\xed\xa0\x80", 3, 0, 0 }, /* a surrogate */
        { "\xed\xa0", 2, 0, 0 },
        { "\xf4\x90\x80\x80", 4, 0, 0 }, /* past U+10FFFF */
        { "\xf5", 1, 0, 0 },
        { "\x80", 1, 0, 0 },
        { "ok\xff more", 8, 2, 0 },
        { "a\0b", 3, 3, 0 },
    };

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        char *exact =
            memcpy(wz_realloc(NULL, rows[i].n), rows[i].s, rows[i].n); /* a read past the end is seen by ASan */
        assert_int_equal(wz_utf8_valid(exact, rows[i].n), rows[i].valid);
        assert_int_equal(wz_utf8_partial(exact, rows[i].n), rows[i].partial);
        free(exact);
    }
}

static void utf8_put_then_get(void **state)
{
    for (uint32_t c = 0; c <= 0x10ffff; c += c < 0x11000 ? 1 : 97) {
        char s[4];
        int len;
        if (c == 0xd800) c = 0xe000;
        int n = wz_utf8_put(s, c);
        assert_int_equal(wz_utf8_valid(s, (size_t)n), n);
        assert_int_equal(wz_utf8_get(s, (size_t)n, &len), c);
        assert_int_equal(len, n);
    }
}

static void arena_holds_and_resets(void **state)
{
    struct wz_arena arena = { 0 };
    char *all[300];

    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 300; i++) {
            size_t n = (size_t)(i * 37 % 4000);
            all[i] = wz_arena_alloc(&arena, n + 1);
            assert_int_equal((uintptr_t)all[i] % 16, 0);
            for (size_t k = 0; k <= n; k++) assert_int_equal(all[i][k], 0);
            memset(all[i], i + 1, n + 1);
        }
        for (int i = 0; i < 300; i++) {
            size_t n = (size_t)(i * 37 % 4000);
            assert_int_equal(all[i][0], (char)(i + 1));
            assert_int_equal(all[i][n], (char)(i + 1));
        }
        char *big = wz_arena_alloc(&arena, 1 << 20);
        memset(big, 1, 1 << 20);
        assert_string_equal(wz_arena_strdup(&arena, "words"), "words");
        wz_arena_reset(&arena);
    }
    wz_arena_finish(&arena);
    wz_arena_finish(&arena);
}

static void buf_grows_and_ends_in_nul(void **state)
{
    struct wz_buf buf = { 0 };

    wz_buf_add(&buf, "", 0);
    assert_string_equal(buf.data, "");
    for (int i = 0; i < 1000; i++) wz_buf_printf(&buf, "%03d,", i);
    assert_int_equal(buf.len, 4000);
    assert_int_equal(strlen(buf.data), 4000);
    assert_memory_equal(buf.data + 4 * 517, "517,", 4);
    wz_buf_clear(&buf);
    assert_string_equal(buf.data, "");
    wz_buf_add(&buf, "a\0b", 3);
    assert_memory_equal(buf.data, "a\0b", 4);
    wz_buf_finish(&buf);
    wz_buf_finish(&buf);
}

static void json_strings_come_back(void **state)
{
    static const struct {
        const char *in;
        size_t n;
        const char *out;
    } rows[] = {
        { "plain", 5, "\"plain\"" },
        { "\"\\/", 3, "\"\\\"\\\\/\"" },
        { "a\nb\tc\001", 6, "\"a\\nb\\u0009c\\u0001\"" },
        { "nul\0.", 5, "\"nul\\u0000.\"" },
        { "\xe2\x82\xac", 3, "\"\xe2\x82\xac\"" },
        { "\x1b\x7f\xc2\x9b\xe2\x80\xae", 7, "\"\\u001b\\u007f\\u009b\\u202e\"" }, /* what terminals obey */
        { "x\xffy", 3, "\"x\\ufffdy\"" },
        { "cut \xe2\x82", 6, "\"cut \\ufffd\"" }, /* the beginning of a character is one */
        { "\xf0\x9f\x98x\xe0\x80\xc3", 7, "\"\\ufffdx\\ufffd\\ufffd\\ufffd\"" },
    };
    struct wz_err err;

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        struct wz_buf buf = { 0 };
        wz_json_string(&buf, rows[i].in, rows[i].n);
        assert_string_equal(buf.data, rows[i].out);
        struct wz_buf list = { 0 };
        wz_buf_printf(&list, "[%s]", buf.data);
        json_t *j = wz_json_parse(list.data, list.len, "list", &err);
        assert_non_null(j);
        char *again = wz_json_dump(json_array_get(j, 0), 0);
        for (const char *c = again; *c; c++) assert_false((unsigned char)*c < 0x20 || *c == 0x7f || *c == '\x9b');
        free(again);
        if (wz_utf8_valid(rows[i].in, rows[i].n) == rows[i].n)
            assert_memory_equal(json_string_value(json_array_get(j, 0)), rows[i].in, rows[i].n);
        json_decref(j);
        wz_buf_finish(&list);
        wz_buf_finish(&buf);
    }
    assert_null(wz_json_parse("{\"a\": 1, \"a\": 2}", 16, "twice.json", &err));
    assert_non_null(strstr(err.text, "twice.json:1:"));
}

/* RFC 8259 sets numbers no limit: what has no integer or no double of its own is the nearest double. */
static void json_numbers_have_any_size(void **state)
{
    static const char text[] =
        "{\"a\":1000000000000000019884624838656,\"b\":[-9223372036854775808,9223372036854775807,9223372036854775808,"
        "-1e999,1E+400,1e-999,0,-0.5],\"9223372036854775808\":\"\\\"1e999\\\\\",\"c\":[12345678901234567890]}";
    static const double want[] = { 0, 0, 9223372036854775808.0, -DBL_MAX, DBL_MAX, 0, 0, -0.5 };
    static const char *const bad[] = { "[1e999, 1e999-]",
                                       "[00000000000000000000000001]",
                                       "[+99999999999999999999999]",
                                       "[1e999",
                                       "[1.e999]",
                                       "[99999999999999999999 1]",
                                       "[1e999,]",
                                       "99999999999999999999" };
    struct wz_err err;
    json_t *j = wz_json_parse(text, strlen(text), "big", &err), *b;

    if (!j) fail_msg("%s", err.text);
    assert_true(json_real_value(json_object_get(j, "a")) == 1e30 && 1000000000000000019884624838656.0 == 1e30);
    b = json_object_get(j, "b");
    assert_true(json_integer_value(json_array_get(b, 0)) == INT64_MIN); /* what fits stays an integer */
    assert_true(json_integer_value(json_array_get(b, 1)) == INT64_MAX);
    for (size_t i = 2; i < WZ_COUNT(want); i++) assert_true(json_number_value(json_array_get(b, i)) == want[i]);
    assert_string_equal(json_string_value(json_object_get(j, "9223372036854775808")), "\"1e999\\");
    assert_true(json_real_value(json_array_get(json_object_get(j, "c"), 0)) == 12345678901234567890.0);
    json_decref(j);
    for (size_t i = 0; i < WZ_COUNT(bad); i++)
        if (wz_json_parse(bad[i], strlen(bad[i]), "bad", &err)) fail_msg("accepted: %s", bad[i]);
    assert_null(wz_json_parse("[", 1, NULL, NULL));
}

/* Half a surrogate pair is no character: what scrapers and models write of it is U+FFFD. */
static void json_has_half_pairs(void **state)
{
    static const char text[] = "[\"a\\ud83d!\", \"\\uDC00\", \"\\ud83d\\ude00\", \"\\ud83d\\ud83d\\ude00\", "
                               "\"\\\\ud83d\", \"\\ud83d\\n\", 1e999]";
    static const char *const want[] = { "a\xef\xbf\xbd!",   "\xef\xbf\xbd",
                                        "\xf0\x9f\x98\x80", "\xef\xbf\xbd\xf0\x9f\x98\x80",
                                        "\\ud83d",          "\xef\xbf\xbd\n" };
    static const char *const bad[] = { "[\"\\ud83\"]", "[\"\\ud83d]", "[\"\\ud83d\\", "[\"\\ud83d\\udc0\"]",
                                       "[\\ud83d]" };
    struct wz_err err;
    json_t *j = wz_json_parse(text, strlen(text), "pairs", &err);

    if (!j) fail_msg("%s", err.text);
    for (size_t i = 0; i < WZ_COUNT(want); i++) assert_string_equal(json_string_value(json_array_get(j, i)), want[i]);
    json_decref(j);
    for (size_t i = 0; i < WZ_COUNT(bad); i++)
        if (wz_json_parse(bad[i], strlen(bad[i]), "bad", &err)) fail_msg("accepted: %s", bad[i]);
}

static void json_text_has_no_nul(void **state)
{
    struct wz_err err;
    static const char list[] = "[\"a\\u0000\\u0000b\", \"\", 3]";
    json_t *j = wz_json_parse(list, strlen(list), "nul", &err);

    if (!j) fail_msg("%s", err.text);
    assert_int_equal(json_string_length(json_array_get(j, 0)), 4);
    assert_string_equal(wz_json_text(json_array_get(j, 0)), "a\xef\xbf\xbd\xef\xbf\xbd"
                                                            "b");
    assert_string_equal(wz_json_text(json_array_get(j, 1)), "");
    assert_null(wz_json_text(json_array_get(j, 2)));
    json_decref(j);
}

static void file_write_is_whole(void **state)
{
    char *dir = test_scratch("a/b/c"), *path = test_scratch("a/b/c/file"), *tmp = test_scratch("a/b/c/file.tmp");
    struct wz_err err;
    struct wz_map map;

    assert_int_equal(wz_mkdirs(dir, &err), 0);
    assert_int_equal(wz_mkdirs(dir, &err), 0);
    assert_int_equal(wz_file_write(path, "old", 3, &err), 0);
    assert_int_equal(wz_file_write(path, "newer", 5, &err), 0);
    assert_false(wz_file_exists(tmp));
    assert_int_equal(wz_map_open(&map, path, &err), 0);
    assert_int_equal(map.len, 5);
    assert_memory_equal(map.bytes, "newer", 5);
    wz_map_close(&map);
    assert_int_equal(wz_file_write(path, "", 0, &err), 0);
    assert_int_equal(wz_map_open(&map, path, &err), 0);
    assert_int_equal(map.len, 0);
    wz_map_close(&map);
    wz_map_close(&map);

    assert_int_equal(wz_map_open(&map, dir, &err), -1);
    assert_non_null(strstr(err.text, "a folder"));
    assert_int_equal(wz_mkdirs(path, &err), -1);
    assert_non_null(strstr(err.text, path));
    unlink(path);
    assert_int_equal(wz_map_open(&map, path, &err), -1);
    assert_non_null(strstr(err.text, path));

    /* a rename that can't be done leaves what was there, and nothing half-made */
    assert_int_equal(mkdir(path, 0777), 0);
    assert_int_equal(wz_file_write(path, "x", 1, &err), -1);
    assert_true(wz_is_dir(path));
    assert_false(wz_file_exists(tmp));
    assert_int_equal(rmdir(path), 0);

    /* nothing is written through what lies where the file or its half goes */
    char *victim = test_scratch("a/b/victim");
    assert_int_equal(wz_file_write(victim, "mine", 4, &err), 0);
    assert_int_equal(symlink(victim, tmp), 0);
    assert_int_equal(wz_file_write(path, "x", 1, &err), 0);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(symlink(victim, path), 0);
    assert_int_equal(wz_file_write(path, "x", 1, &err), -1);
    assert_non_null(strstr(err.text, "expected a regular file"));
    assert_int_equal(wz_file_append(path, "x", 1, &err), -1);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkfifo(path, 0666), 0);
    assert_int_equal(wz_file_write(path, "x", 1, &err), -1);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(wz_file_append(victim, "!", 1, &err), 0);
    assert_int_equal(wz_map_open(&map, victim, &err), 0);
    assert_int_equal(map.len, 5);
    assert_memory_equal(map.bytes, "mine!", 5);
    wz_map_close(&map);
    free(victim);
    free(dir);
    free(path);
    free(tmp);
}

static void lines_come_with_number_and_end(void **state)
{
    static const struct {
        const char *text, *list; /* each line in brackets, "!" where its line break is missing */
    } cases[] = { { "", "" }, { "\n", "1[]" }, { "a", "1[a]!" }, { "a\n", "1[a]" }, { "a\n\nbc", "1[a]2[]3[bc]!" } };

    for (size_t i = 0; i < WZ_COUNT(cases); i++) {
        struct wz_lines l = wz_lines_begin(cases[i].text, strlen(cases[i].text));
        char list[64] = "";
        for (size_t n = 0; wz_lines_next(&l); n = strlen(list))
            snprintf(list + n, sizeof list - n, "%d[%.*s]%s", l.number, (int)l.n, l.line, l.ended ? "" : "!");
        assert_string_equal(list, cases[i].list);
    }
}

static void fail_in_puts_the_place_in_front(void **state)
{
    struct wz_err err;
    char long_text[2000];

    assert_int_equal(wz_fail(&err, "row %d is short", 3), -1);
    assert_int_equal(wz_fail_in(&err, "%s", "a.csv"), -1);
    assert_string_equal(err.text, "a.csv: row 3 is short");
    memset(long_text, 'x', sizeof long_text);
    long_text[sizeof long_text - 1] = 0;
    wz_fail(&err, "%s", long_text);
    wz_fail_in(&err, "%s", long_text);
    assert_int_equal(err.text[sizeof err.text - 1], 0);
    assert_int_equal(strlen(err.text), sizeof err.text - 1);
    assert_int_equal(wz_fail(NULL, "nobody asks"), -1);
}

enum { JOB = 1000 };
struct job {
    uint64_t out[JOB];
    int calls[JOB];
};

static void slice(void *arg, int i)
{
    struct job *job = arg;

    job->calls[i]++;
    job->out[i] = wz_random(draw((uint32_t)i));
}

static void pool_runs_each_index_once(void **state)
{
    struct job *want = wz_alloc(sizeof *want), *got = wz_alloc(sizeof *got);

    wz_pool_run(NULL, JOB, slice, want);
    for (int threads = 1; threads <= 33; threads += threads < 4 ? 1 : 29) { /* 33: more than the pool has ranges */
        struct wz_pool *pool = wz_pool_create(threads);
        assert_int_equal(wz_pool_threads(pool), threads);
        memset(got, 0, sizeof *got);
        for (int round = 1; round <= 200; round++) {
            wz_pool_run(pool, round % 3 ? JOB : round % JOB, slice, got);
            wz_pool_run(pool, 0, slice, got);
        }
        int full = 0;
        for (int round = 1; round <= 200; round++) full += round % 3 != 0;
        for (int i = 0; i < JOB; i++) {
            int part = 0;
            for (int round = 3; round <= 200; round += 3) part += i < round;
            assert_int_equal(got->calls[i], full + part);
        }
        assert_memory_equal(got->out, want->out, sizeof got->out);
        wz_pool_destroy(pool);
    }
    wz_pool_destroy(NULL);
    free(want);
    free(got);
}

/* What comes from outside can't command a terminal, wherever it is cut. */
static void foreign_text_is_printable(void **state)
{
    static const struct {
        const char *in, *keep, *out;
    } rows[] = {
        { "plain \xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80 \\n", "", "plain \xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80 \\n" },
        { "\x1b]0;title\x07\x1b[2J\x7f", "", "\\x1b]0;title\\x07\\x1b[2J\\x7f" },
        { "a\nb\tc\rd", "", "a\\nb\\tc\\rd" },
        { "a\nb\tc\rd", "\n\t", "a\nb\tc\\rd" },
        { "\xc2\x9b"
          "31m \xe2\x80\xae \xe2\x81\xa6 \xe2\x80\xa8",
          "", "\\u009b31m \\u202e \\u2066 \\u2028" },
        { "\xff\xc3", "", "\\xff\\xc3" },
    };

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        char all[128], cut[8];
        assert_int_equal(wz_printable(all, sizeof all, rows[i].in, strlen(rows[i].in), rows[i].keep),
                         strlen(rows[i].out));
        assert_string_equal(all, rows[i].out);
        size_t n = wz_printable(cut, sizeof cut, rows[i].in, strlen(rows[i].in), rows[i].keep);
        assert_true(n < sizeof cut && !strncmp(cut, rows[i].out, n) && wz_utf8_valid(cut, n) == n);
    }
    struct wz_err err;
    wz_fail(&err, "kind '%s'", "\x1b[31mred\n");
    assert_string_equal(err.text, "kind '\\x1b[31mred\\n'");
    wz_fail_in(&err, "a\x07.jsonl");
    assert_string_equal(err.text, "a\\x07.jsonl: kind '\\x1b[31mred\\n'");
    char euros[3 * 1024 + 1];
    for (int i = 0; i < 1024; i++) memcpy(euros + 3 * i, "\xe2\x82\xac", 4);
    wz_fail(&err, "%s", euros); /* cut between two characters */
    assert_int_equal(strlen(err.text), sizeof err.text - 1 - (sizeof err.text - 1) % 3);
}

static void numbers_are_written_as_people_do(void **state)
{
    static const struct {
        double x;
        const char *text;
    } rows[] = {
        { 0, "0" },
        { 300, "300" },
        { 30, "30" },
        { -2500, "-2500" },
        { 0.1, "0.1" },
        { 5e-4, "0.0005" },
        { 3e-5, "3e-5" },
        { 1e-6, "1e-6" },
        { 1e-8, "1e-8" },
        { 1.25e-7, "1.25e-7" },
        { 1e15, "1000000000000000" },
        { 1e22, "1e22" },
        { 6.5e30, "6.5e30" },
        { 0.95, "0.95" },
        { 1.0 / 3, "0.3333333333333333" },
        { 0.1 + 0.2, "0.30000000000000004" },
        { 2251799813685249.5, "2251799813685249.5" },
    };

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        struct wz_buf out = { 0 };
        wz_real_add(&out, rows[i].x);
        assert_string_equal(out.data, rows[i].text);
        wz_buf_finish(&out);
    }
    for (uint32_t i = 0; i < 20000; i++) { /* any bits read back */
        union {
            uint64_t u;
            double x;
        } bits = { wz_random((struct wz_key){ 5, WZ_RNG_TEST, i, 0, 0, 0 }) };
        struct wz_buf out = { 0 };
        if (bits.x - bits.x != 0) continue; /* infinity, NaN */
        wz_real_add(&out, bits.x);
        assert_true(strtod(out.data, NULL) == bits.x);
        wz_buf_finish(&out);
    }
}

static void count(void *arg) { ++*(int *)arg; }

static void hashing_tells_that_it_is_at_work(void **state)
{
    const size_t n = (size_t)200 * WZ_PIECE;
    char *bytes = wz_alloc(n);
    int told = 0;

    wz_set_heartbeat(count, &told);
    wz_hash_pieces(NULL, bytes, n);
    wz_set_heartbeat(NULL, NULL);
    assert_true(told >= 3);
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_known_answers),
        cmocka_unit_test(random_stays_in_bounds),
        cmocka_unit_test(random_is_keyed_by_all_fields),
        cmocka_unit_test(utf8_valid_and_partial),
        cmocka_unit_test(utf8_put_then_get),
        cmocka_unit_test(foreign_text_is_printable),
        cmocka_unit_test(numbers_are_written_as_people_do),
        cmocka_unit_test(arena_holds_and_resets),
        cmocka_unit_test(buf_grows_and_ends_in_nul),
        cmocka_unit_test(json_strings_come_back),
        cmocka_unit_test(json_numbers_have_any_size),
        cmocka_unit_test(json_text_has_no_nul),
        cmocka_unit_test(json_has_half_pairs),
        cmocka_unit_test(file_write_is_whole),
        cmocka_unit_test(lines_come_with_number_and_end),
        cmocka_unit_test(fail_in_puts_the_place_in_front),
        cmocka_unit_test(pool_runs_each_index_once),
        cmocka_unit_test(hashing_tells_that_it_is_at_work),
    };

    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
