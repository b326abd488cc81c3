/* Guarantees 4 and 10: metrics, TensorBoard events and the ledger consist of whole entries, whatever the disk does;
 * lost entries are counted, and a resumed run appends to the files. */
#include "test.h"

#include <dirent.h>
#include <math.h>
#include <sys/resource.h>
#include <unistd.h>

#include "store/append.h"

static char *dir; /* a new one for each case */

static int setup(void **state)
{
    static int n;
    struct wz_err err;
    char name[32];

    snprintf(name, sizeof name, "run-%d-%d", (int)getpid(), n++);
    dir = test_scratch(name);
    return wz_mkdirs(dir, &err);
}

static int teardown(void **state)
{
    free(dir);
    return 0;
}

/* The lines of a JSONL file in `dir` as an array; every one must be whole. */
static json_t *lines_of(const char *name)
{
    char *path = wz_path("%s/%s", dir, name), *rest;
    struct wz_err err;
    struct wz_map map;
    json_t *lines = json_array();

    assert_int_equal(wz_map_open(&map, path, &err), 0);
    for (size_t at = 0; at < map.len;) {
        const char *from = (const char *)map.bytes + at;
        rest = memchr(from, '\n', map.len - at);
        assert_non_null(rest);
        json_t *line = wz_json_parse(from, (size_t)(rest - from), path, &err);
        assert_non_null(line);
        json_array_append_new(lines, line);
        at += (size_t)(rest - from) + 1;
    }
    wz_map_close(&map);
    free(path);
    return lines;
}

static long long int_at(json_t *lines, size_t i, const char *key)
{
    return json_integer_value(json_object_get(json_array_get(lines, i), key));
}

/* Walks the records of the last event file in `dir`: checks both checksums, returns how many there are. */
static int count_records(void)
{
    DIR *d = opendir(dir);
    char name[300] = "";
    int n = 0;

    for (struct dirent *e; (e = readdir(d));)
        if (strstr(e->d_name, "tfevents") && strcmp(e->d_name, name) > 0) snprintf(name, sizeof name, "%s", e->d_name);
    closedir(d);
    assert_true(*name);
    char *path = wz_path("%s/%s", dir, name);
    struct wz_map map;
    struct wz_err err;
    assert_int_equal(wz_map_open(&map, path, &err), 0);
    for (size_t at = 0; at < map.len; n++) {
        uint64_t len;
        uint32_t crc[2];
        assert_true(map.len - at >= 16);
        memcpy(&len, map.bytes + at, 8);
        memcpy(&crc[0], map.bytes + at + 8, 4);
        assert_true(len <= map.len - at - 16);
        memcpy(&crc[1], map.bytes + at + 12 + len, 4);
        for (int i = 0; i < 2; i++) {
            uint32_t c = crc[i] - 0xa282ead8u;
            c = c << 15 | c >> 17;
            assert_true(c == wz_crc32c(map.bytes + at + (i ? 12 : 0), i ? len : 8));
        }
        at += 16 + len;
    }
    wz_map_close(&map);
    free(path);
    return n;
}

/* Bytes made by a program that shares no code with this one: checksums by table, messages put together by hand. */
static void event_golden_bytes(void **state)
{
    static const char golden[] =
        "\x18\x00\x00\x00\x00\x00\x00\x00\xa3\x7f\x4b\x22\x09\x00\x00\x10\xe0\x4e\xac\xda\x41\x1a\x0d\x62\x72"
        "\x61\x69\x6e\x2e\x45\x76\x65\x6e\x74\x3a\x32\xe9\x38\x36\x59\x10\x00\x00\x00\x00\x00\x00\x00\x95\xfb"
        "\xfe\x18\x09\x00\x00\x10\xe0\x4e\xac\xda\x41\x10\xac\x02\x3a\x02\x08\x01\x99\xd0\xb8\x16\x3e\x00\x00"
        "\x00\x00\x00\x00\x00\xd9\xd2\x40\xe7\x09\x00\x00\x10\xe0\x4e\xac\xda\x41\x10\xac\x02\x2a\x30\x0a\x12"
        "\x0a\x0b\x6c\x6f\x73\x73\x2f\x70\x6f\x6c\x69\x63\x79\x15\x00\x00\x00\x3f\x0a\x0d\x0a\x06\x72\x65\x77"
        "\x61\x72\x64\x15\x00\x00\x00\xc0\x0a\x0b\x0a\x04\x7a\x65\x72\x6f\x15\x00\x00\x00\x00\x02\xa1\xee\x01";
    struct wz_buf out = { 0 };
    const double wall = 1790000000.25;

    assert_int_equal(wz_crc32c("123456789", 9), 0xe3069283);
    wz_events_version(&out, wall);
    wz_events_restart(&out, wall, 300);
    wz_events_scalars(&out, wall, 300, (const char *const[]){ "loss/policy", "reward", "zero" },
                      (const double[]){ 0.5, -2, 0 }, 3);
    assert_int_equal(out.len, sizeof golden - 1);
    assert_memory_equal(out.data, golden, out.len);
    wz_buf_finish(&out);
}

static const char *const names[] = { "loss \"x\"", "reward", "odd" };

static void metrics_are_lines_and_events(void **state)
{
    struct wz_metrics *m = wz_metrics_open(dir, false, 0);

    wz_metrics_add(m, 0, NULL, names, (double[]){ 0.1, NAN, -INFINITY }, 3);
    wz_metrics_add(m, 1, NULL, names, (double[]){ 1e300, 3, 1 }, 3);
    assert_int_equal(wz_metrics_close(m), 0);
    json_t *lines = lines_of("metrics.jsonl");
    assert_int_equal(json_array_size(lines), 2);
    json_t *first = json_array_get(lines, 0);
    assert_true(json_real_value(json_object_get(first, "loss \"x\"")) == 0.1);
    assert_true(json_is_null(json_object_get(first, "reward")) && json_is_null(json_object_get(first, "odd")));
    assert_true(json_real_value(json_object_get(first, "time")) > 1.7e9);
    assert_int_equal(int_at(lines, 1, "step"), 1);
    assert_int_equal(int_at(lines, 1, "reward"), 3);
    json_decref(lines);
    assert_int_equal(count_records(), 4); /* version, restart, two steps */
}

static void a_resumed_run_appends(void **state)
{
    struct wz_metrics *m = wz_metrics_open(dir, false, 0);

    for (int s = 0; s < 3; s++) wz_metrics_add(m, s, NULL, names, (double[]){ s, s, s }, 3);
    wz_metrics_close(m);
    m = wz_metrics_open(dir, true, 3);
    for (int s = 3; s < 7; s++) wz_metrics_add(m, s, NULL, names, (double[]){ s, -1, s }, 3);
    assert_int_equal(wz_metrics_close(m), 0);
    json_t *lines = lines_of("metrics.jsonl");
    assert_int_equal(json_array_size(lines), 7);
    for (size_t i = 0; i < 7; i++) {
        assert_int_equal(int_at(lines, i, "step"), i);
        assert_int_equal(int_at(lines, i, "reward"), i < 3 ? (int)i : -1);
    }
    json_decref(lines);
    assert_int_equal(count_records(), 6); /* version, restart, four steps */

    m = wz_metrics_open(dir, false, 0); /* not resumed: begins anew */
    wz_metrics_add(m, 0, NULL, names, (double[]){ 0, 0, 0 }, 3);
    wz_metrics_close(m);
    lines = lines_of("metrics.jsonl");
    assert_int_equal(json_array_size(lines), 1);
    json_decref(lines);
}

static int by_name(const struct dirent **a, const struct dirent **b) { return strcmp((*a)->d_name, (*b)->d_name); }

static int is_events(const struct dirent *e) { return strstr(e->d_name, "tfevents") != NULL; }

/* Reads all event files of `dir` as TensorBoard does, in the order of their names, forgetting what a restart repeats:
 * the steps that have a value of the tag, in order, as text; heap. */
static char *steps_shown(const char *tag)
{
    struct dirent **files;
    int64_t steps[64];
    int n_files = scandir(dir, &files, is_events, by_name), n = 0;
    struct wz_buf text = { 0 };

    for (int f = 0; f < n_files; f++) {
        char *path = wz_path("%s/%s", dir, files[f]->d_name);
        struct wz_map map;
        struct wz_err err;
        uint64_t len;
        assert_int_equal(wz_map_open(&map, path, &err), 0);
        for (size_t at = 0; at < map.len; at += 16 + len) {
            memcpy(&len, map.bytes + at, 8);
            Wz__Event *e = wz__event__unpack(NULL, len, map.bytes + at + 12);
            assert_non_null(e);
            if (e->what_case == WZ__EVENT__WHAT_SESSION_LOG) {
                int kept = 0;
                for (int i = 0; i < n; i++)
                    if (steps[i] < e->step) steps[kept++] = steps[i];
                n = kept;
            }
            for (size_t v = 0; e->what_case == WZ__EVENT__WHAT_SUMMARY && v < e->summary->n_value; v++)
                if (!strcmp(e->summary->value[v]->tag, tag)) steps[n++] = e->step;
            wz__event__free_unpacked(e, NULL);
        }
        wz_map_close(&map);
        free(path);
        free(files[f]);
    }
    free(files);
    for (int i = 0; i < n; i++) wz_buf_printf(&text, "%s%lld", i ? " " : "", (long long)steps[i]);
    return text.data;
}

static void shows(const char *tag, const char *want)
{
    char *got = steps_shown(tag);

    assert_string_equal(got, want);
    free(got);
}

/* A start that died before its first checkpoint, one that began anew and died after one at step 4, and its resumption,
 * on a machine whose clock is behind: TensorBoard shows each step once, though each wrote it. */
static void no_start_leaves_ghosts(void **state)
{
    static const char *const eval[] = { "eval/average/asr" };
    struct wz_err err;

    for (int start = 0; start < 3; start++) {
        const int from = start == 2 ? 4 : 0, to = (int[]){ 4, 6, 8 }[start];
        struct wz_metrics *m = wz_metrics_open(dir, start == 2, from);
        if (start < 2) wz_metrics_add(m, 0, "before", eval, (double[]){ start }, 1);
        for (int s = from; s < to; s++) {
            if (s == 4) wz_metrics_add(m, s, "step-4", eval, (double[]){ start }, 1);
            wz_metrics_add(m, s, NULL, names, (double[]){ start, start, start }, 3);
        }
        assert_int_equal(wz_metrics_close(m), 0);
        if (start) continue;
        char *later = wz_path("%s/events.out.tfevents.%010lld.host.1.0", dir, (long long)wz_wall() + 1000);
        struct wz_buf bytes = { 0 };
        wz_events_version(&bytes, wz_wall());
        for (int s = 4; s < 7; s++) wz_events_scalars(&bytes, wz_wall(), s, names, (double[]){ 9, 9, 9 }, 3);
        assert_int_equal(wz_file_write(later, bytes.data, bytes.len, &err), 0);
        wz_buf_finish(&bytes);
        free(later);
        shows("reward", "0 1 2 3 4 5 6");
    }
    shows("reward", "0 1 2 3 4 5 6 7");
    shows("eval/average/asr", "0 4");
    json_t *lines = lines_of("metrics.jsonl");
    assert_int_equal(json_array_size(lines),
                     10); /* the third start added four; what it keeps is run/folder.c's choice */
    for (size_t i = 0; i < 10; i++) assert_null(json_object_get(json_array_get(lines, i), "phase"));
    json_decref(lines);
    lines = lines_of("evaluations.jsonl");
    assert_int_equal(json_array_size(lines), 3);
    assert_string_equal(json_string_value(json_object_get(json_array_get(lines, 0), "phase")), "before");
    json_decref(lines);
}

/* Files stop growing at an odd place: the line that does not fit is left out whole, and counted. */
static void a_full_disk_is_counted(void **state)
{
    struct rlimit old, small;
    struct wz_metrics *m = wz_metrics_open(dir, false, 0);

    wz_metrics_add(m, 0, NULL, names, (double[]){ 0, 0, 0 }, 3);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = old;
    small.rlim_cur = 250;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    for (int s = 1; s < 20; s++) wz_metrics_add(m, s, NULL, names, (double[]){ s, s, s }, 3);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    wz_metrics_add(m, 20, NULL, names, (double[]){ 0, 0, 0 }, 3);
    int lost = wz_metrics_close(m);
    json_t *lines = lines_of("metrics.jsonl");
    int kept = (int)json_array_size(lines), records = count_records() - 2;
    assert_true(kept > 2 && kept < 10 && records > 1);
    assert_int_equal(int_at(lines, (size_t)kept - 1, "step"), 20);
    assert_int_equal(lost, 2 * 21 - kept - records);
    json_decref(lines);
}

static void no_folder_is_counted(void **state)
{
    char *file = wz_path("%s/file", dir), *full = wz_path("%s/metrics.jsonl", dir);
    struct wz_err err;

    assert_int_equal(wz_file_write(file, "", 0, &err), 0);
    struct wz_metrics *m = wz_metrics_open(file, false, 0); /* a file where the folder should be */
    wz_metrics_add(m, 0, NULL, names, (double[]){ 0, 0, 0 }, 3);
    assert_int_equal(unlink(file), 0);
    wz_metrics_add(m, 1, NULL, names, (double[]){ 0, 0, 0 }, 3); /* the way is free now */
    assert_int_equal(wz_metrics_close(m), 2);

    assert_int_equal(symlink("/dev/full", full), 0);
    m = wz_metrics_open(dir, false, 0);
    wz_metrics_add(m, 0, NULL, names, (double[]){ 0, 0, 0 }, 3);
    assert_int_equal(wz_metrics_close(m), 1);
    free(file);
    free(full);
}

static void ledger_accounts_for_every_sample(void **state)
{
    struct wz_err err = { "" };
    struct wz_ledger_line two[] = {
        { 0, "conversation", 8, 6, 2, 0, "judge failed 2" },
        { 0, "feed\"back", 4, 3, 0, 1, NULL },
    };

    for (int s = 0; s < 4; s++) {
        two[0].step = two[1].step = s;
        assert_int_equal(wz_ledger_append(dir, two, 2, &err), 0);
    }
    json_t *lines = lines_of("ledger.jsonl");
    assert_int_equal(json_array_size(lines), 8);
    for (size_t i = 0; i < 8; i++) {
        assert_int_equal(int_at(lines, i, "step"), i / 2);
        assert_int_equal(int_at(lines, i, "generated"), i % 2 ? 4 : 8);
        assert_int_equal(int_at(lines, i, "trained"), i % 2 ? 3 : 6);
        if (i % 2) assert_int_equal(int_at(lines, i, "in_flight"), 1);
        const char *reasons = json_string_value(json_object_get(json_array_get(lines, i), "reasons"));
        assert_string_equal(reasons, i % 2 ? "" : "judge failed 2");
        assert_string_equal(json_string_value(json_object_get(json_array_get(lines, i), "agent")),
                            i % 2 ? "feed\"back" : "conversation");
    }
    json_decref(lines);
    two[1].step = 4;
    two[1].trained = 4;
    assert_int_equal(wz_ledger_append(dir, two + 1, 1, &err), -1);
    assert_non_null(
        strstr(err.text, "step 4, agent feed\"back: generated 4 samples, but trained 4 + discarded 0 + in flight 1"));
    lines = lines_of("ledger.jsonl");
    assert_int_equal(json_array_size(lines), 9); /* it is written all the same: the proof of the error */
    json_decref(lines);
    assert_int_equal(wz_ledger_append("/dev/null/x", two, 2, &err), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(event_golden_bytes),
        cmocka_unit_test_setup_teardown(metrics_are_lines_and_events, setup, teardown),
        cmocka_unit_test_setup_teardown(a_resumed_run_appends, setup, teardown),
        cmocka_unit_test_setup_teardown(no_start_leaves_ghosts, setup, teardown),
        cmocka_unit_test_setup_teardown(a_full_disk_is_counted, setup, teardown),
        cmocka_unit_test_setup_teardown(no_folder_is_counted, setup, teardown),
        cmocka_unit_test_setup_teardown(ledger_accounts_for_every_sample, setup, teardown),
    };

    return cmocka_run_group_tests_name("store_append", tests, NULL, NULL);
}
