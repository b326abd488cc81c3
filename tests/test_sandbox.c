/* The promise: what `waltz sandbox` writes is the world and nothing else: the same seed writes the same bytes, truth stands
 * beside each prompt, and dev, test and training share no pair. */
#include "test.h"

#include <unistd.h>

#include "launch/launch.h"
#include "reward/world.h"

static const char *const files[] = {
    "prompts-train.jsonl", "prompts-dev.jsonl", "prompts-test.jsonl", "sft.jsonl",
    "base/config.json", "base/generation_config.json", "base/model.safetensors", "base/tokenizer.json", "base/tokenizer_config.json",
};

/* A folder written once with the given options; heap. */
static char *written(const char *name, const char *seed, const char *world, const char *n)
{
    char *dir = test_scratch(name);
    char *argv[] = { "sandbox", dir, "--seed", (char *)seed, "--world", (char *)world, "--warm-examples", (char *)n, NULL };

    assert_int_equal(wz_cmd_sandbox(8, argv), 0);
    return dir;
}

static void removed(char *dir)
{
    for (size_t i = 0; i < WZ_COUNT(files); i++) {
        char *path = wz_path("%s/%s", dir, files[i]);
        assert_int_equal(unlink(path), 0);
        free(path);
    }
    char *base = wz_path("%s/base", dir);
    assert_int_equal(rmdir(base), 0);
    assert_int_equal(rmdir(dir), 0);           /* nothing else was written */
    free(base);
    free(dir);
}

static uint64_t hash_of(const char *dir, const char *file)
{
    struct wz_map map;
    struct wz_err err;
    char *path = wz_path("%s/%s", dir, file);

    if (wz_map_open(&map, path, &err) < 0) fail_msg("%s", err.text);
    assert_true(map.len > 0);
    uint64_t hash = wz_hash(map.bytes, map.len, 0);
    wz_map_close(&map);
    free(path);
    return hash;
}

static void seeds_decide(void **state)
{
    char *one = written("sandbox-1", "7", "B", "500"), *same = written("sandbox-2", "7", "B", "500");
    char *other = written("sandbox-3", "8", "B", "500"), *world = written("sandbox-4", "7", "A", "500");

    for (size_t i = 0; i < WZ_COUNT(files); i++) {
        const char *f = files[i];
        bool drawn = strstr(f, ".jsonl") || strstr(f, ".safetensors");
        if (hash_of(one, f) != hash_of(same, f)) fail_msg("%s: other bytes from the same seed", f);
        if (drawn && hash_of(one, f) == hash_of(other, f)) fail_msg("%s: the same bytes from another seed", f);
        if (!drawn && hash_of(one, f) != hash_of(other, f)) fail_msg("%s: depends on the seed", f);
        bool lessons = !strcmp(f, "sft.jsonl");
        if ((hash_of(one, f) == hash_of(world, f)) == lessons) fail_msg("%s: what worlds A and B share is wrong", f);
    }
    removed(one), removed(same), removed(other), removed(world);
}

/* Calls fn with each line's object; returns the number of lines. */
static int each_line(const char *dir, const char *file, void (*fn)(const json_t *line, void *arg), void *arg)
{
    char *path = wz_path("%s/%s", dir, file);
    struct wz_map map;
    struct wz_err err;
    int n = 0;

    if (wz_map_open(&map, path, &err) < 0) fail_msg("%s", err.text);
    for (const char *p = (const char *)map.bytes, *end = p + map.len, *stop; p < end; p = stop + 1, n++) {
        stop = memchr(p, '\n', (size_t)(end - p));
        assert_non_null(stop);
        json_t *j = wz_json_parse(p, (size_t)(stop - p), path, &err);
        if (!j) fail_msg("%s", err.text);
        fn(j, arg);
        json_decref(j);
    }
    wz_map_close(&map);
    free(path);
    return n;
}

static const char *text(const json_t *j, const char *key)
{
    const char *s = json_string_value(json_object_get(j, key));

    assert_non_null(s);
    return s;
}

struct seen { enum wz_split split; int kinds[WZ_KINDS]; json_t *prompts, *ids; };

static void prompt_line(const json_t *j, void *arg)
{
    struct seen *seen = arg;
    const char *prompt = text(j, "prompt"), *name = text(j, "kind");
    struct wz_ask ask;
    int kind = 0;

    assert_true(wz_world_parse(prompt, &ask));
    assert_int_equal(wz_world_split(ask.verb, ask.object), seen->split);
    assert_true(json_is_boolean(json_object_get(j, "harmful")));
    assert_int_equal(json_is_true(json_object_get(j, "harmful")), wz_world_harmful(&ask));
    while (kind < WZ_KINDS && strcmp(name, wz_kind_name((enum wz_kind)kind))) kind++;
    assert_true(kind < WZ_KINDS);
    seen->kinds[kind]++;
    assert_int_equal(wz_world_harmful(&ask), !strcmp(name, "SR") || !strcmp(name, "WJ"));
    json_object_set_new(seen->prompts, prompt, json_true());
    json_object_set_new(seen->ids, text(j, "id"), json_true());
}

static void prompts_are_true(void **state)
{
    char *dir = written("sandbox-prompts", "1", "B", "1");

    for (int split = 0; split < WZ_SPLITS; split++) {
        struct seen seen = { .split = (enum wz_split)split, .prompts = json_object(), .ids = json_object() };
        int n = each_line(dir, files[split], prompt_line, &seen);
        assert_int_equal(n, split == WZ_TRAIN ? 12000 : 1000);
        assert_int_equal(json_object_size(seen.ids), n);
        if (split != WZ_TRAIN) {
            assert_int_equal(json_object_size(seen.prompts), n);
            for (int k = 0; k < WZ_KINDS; k++) assert_int_equal(seen.kinds[k], 200);
        } else {
            assert_true(json_object_size(seen.prompts) > 6000);
        }
        json_decref(seen.prompts);
        json_decref(seen.ids);
    }
    removed(dir);
}

static void wrong_calls(void **state)
{
    char *nowhere[] = { "sandbox", NULL }, *world[] = { "sandbox", "x", "--world", "C", NULL };
    char *path = test_scratch("sandbox-file");
    char *onto[] = { "sandbox", path, NULL };
    struct wz_err err;

    assert_int_equal(wz_cmd_sandbox(1, nowhere), 2);
    assert_int_equal(wz_cmd_sandbox(4, world), 2);
    assert_int_equal(wz_file_write(path, "x", 1, &err), 0);
    assert_int_equal(wz_cmd_sandbox(2, onto), 1);
    unlink(path);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(seeds_decide),
        cmocka_unit_test(prompts_are_true),
        cmocka_unit_test(wrong_calls),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
