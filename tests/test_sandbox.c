/* Guarantee: `waltz sandbox` writes the same bytes for the same seed, labels each prompt correctly, shares no pair of
 * verb and object between dev, test and training, and its tokenizer has every word as one token. Dev and test are the
 * same for every seed. */
#include "command_help.h"

#include "model/model.h"
#include "reward/reward.h"
#include "sandbox/sandbox.h"

static const char *const files[] = {
    "prompts-train.jsonl",        "prompts-dev.jsonl",           "prompts-test.jsonl",     "sft.jsonl",
    "base/config.json",           "base/generation_config.json", "base/model.safetensors", "base/tokenizer.json",
    "base/tokenizer_config.json",
};

/* A folder written once with the given options; heap. */
static char *written(const char *name, const char *seed, const char *world, const char *n)
{
    char *dir = test_scratch(name);
    char *argv[] = { "sandbox",         dir,       "--seed", (char *)seed, "--world", (char *)world,
                     "--warm-examples", (char *)n, NULL };

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
    assert_int_equal(rmdir(dir), 0); /* nothing else was written */
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
        bool held = strstr(f, "-dev.") || strstr(f, "-test."),
             drawn = (strstr(f, ".jsonl") && !held) || strstr(f, ".safetensors");
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

struct seen {
    enum wz_split split;
    int kinds[WZ_KINDS], pairs[WZ_KINDS][WZ_VERBS][WZ_OBJECTS];
    json_t *prompts, *ids;
};

static void prompt_line(const json_t *j, void *arg)
{
    struct seen *seen = arg;
    const char *prompt = text(j, "prompt"), *name = text(j, "kind");
    struct wz_ask ask, named;
    struct wz_buf plain = { 0 };
    char verb[32], object[32], rest;
    int kind = 0;

    assert_true(wz_world_parse(prompt, &ask));
    assert_int_equal(wz_world_split(ask.verb, ask.object), seen->split);
    assert_true(json_is_boolean(json_object_get(j, "harmful")));
    assert_int_equal(json_is_true(json_object_get(j, "harmful")), wz_world_harmful(&ask));
    while (kind < WZ_KINDS && strcmp(name, wz_kind_name((enum wz_kind)kind))) kind++;
    assert_true(kind < WZ_KINDS);
    seen->kinds[kind]++;
    seen->pairs[kind][ask.verb][ask.object]++;
    assert_int_equal(wz_world_harmful(&ask), !strcmp(name, "SR") || !strcmp(name, "WJ"));
    assert_true(sscanf(text(j, "group"), "%31s %31s%c", verb, object, &rest) == 2);
    wz_buf_printf(&plain, "how do i %s a %s ?", verb, object);
    assert_true(wz_world_parse(plain.data, &named));
    assert_int_equal(named.verb, ask.verb);
    assert_int_equal(named.object, ask.object);
    wz_buf_finish(&plain);
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
            for (int k = 0; k < WZ_KINDS; k++) {
                int most = 0;
                for (int v = 0; v < WZ_VERBS; v++)
                    for (int o = 0; o < WZ_OBJECTS; o++)
                        if (seen.pairs[k][v][o] > most) most = seen.pairs[k][v][o];
                assert_int_equal(seen.kinds[k], 200);
                assert_int_equal(most, split == WZ_TEST ? 1 : 3); /* 204 pairs, or 68 */
            }
        } else {
            assert_true(json_object_size(seen.prompts) > 6000);
        }
        json_decref(seen.prompts);
        json_decref(seen.ids);
    }
    removed(dir);
}

struct replies {
    enum wz_split split;
    int harmful, refusal;
    struct wz_buf lines; /* of the file */
};

static void reply_line(const json_t *j, void *arg)
{
    struct replies *r = arg;
    bool harmful, refusal;
    struct wz_ask ask;
    char *line = json_dumps(j, 0);

    assert_true(wz_world_parse(text(j, "prompt"), &ask));
    assert_int_equal(wz_world_split(ask.verb, ask.object), r->split);
    assert_int_equal(json_is_true(json_object_get(j, "prompt_harmful")), wz_world_harmful(&ask));
    assert_true(wz_world_judge(text(j, "prompt"), text(j, "response"), &harmful, &refusal));
    assert_int_equal(json_is_true(json_object_get(j, "harmful")), harmful);
    assert_int_equal(json_is_true(json_object_get(j, "refusal")), refusal);
    r->harmful += harmful;
    r->refusal += refusal;
    wz_buf_printf(&r->lines, "%s\n", line);
    free(line);
}

/* What a guard is trained on has the world's labels, some of each, and becomes lessons for that guard; lines that lack
 * what it is to say do not. */
static void a_guard_has_lessons(void **state)
{
    static const char *const more[] = { "replies-train.jsonl",        "replies-test.jsonl",
                                        "guard/config.json",          "guard/generation_config.json",
                                        "guard/model.safetensors",    "guard/tokenizer.json",
                                        "guard/tokenizer_config.json" };
    char *dir = test_scratch("sandbox-guard");
    char *argv[] = { "sandbox", dir, "--warm-examples", "1", "--replies", "500", NULL };
    struct wz_buf out = { 0 };

    assert_int_equal(wz_cmd_sandbox(6, argv), 0);
    struct replies train = { .split = WZ_TRAIN }, test = { .split = WZ_TEST };
    assert_int_equal(each_line(dir, more[0], reply_line, &train), 500);
    assert_int_equal(each_line(dir, more[1], reply_line, &test), 2000);
    for (const struct replies *r = &train; r; r = r == &train ? &test : NULL) {
        const int n = r == &train ? 500 : 2000;
        assert_true(r->harmful > n / 10 && r->harmful < n / 2 && r->refusal > n / 4 && r->refusal < 3 * n / 4);
    }

    char *words = wz_path("judge --lessons wildguard model=%s/guard", dir);
    assert_int_equal(command(wz_cmd_judge, words, train.lines.data, &out), 0);
    assert_int_equal(lines_in(&out), 500);
    json_t *lesson = line_of(&out, 499);
    const int n = (int)json_array_size(json_object_get(lesson, "ids")),
              from = (int)json_integer_value(json_object_get(lesson, "from"));
    assert_true(from > 80 && from < 160 &&
                n == from + 15); /* words are tokens, in the instructions and the answer too */
    json_decref(lesson);
    assert_int_equal(command(wz_cmd_judge, words, "{\"prompt\":\"p\",\"response\":\"r\",\"harmful\":true}\n", &out), 1);
    assert_int_equal(command(wz_cmd_judge, words, "{\"prompt\":\"p\",\"harmful\":true}\n", &out), 1);
    free(words);
    assert_int_equal(command(wz_cmd_judge, "judge --lessons rules", train.lines.data, &out), 1);
    for (size_t i = 0; i < WZ_COUNT(more); i++) {
        char *path = wz_path("%s/%s", dir, more[i]);
        assert_int_equal(unlink(path), 0);
        free(path);
    }
    char *guard = wz_path("%s/guard", dir);
    assert_int_equal(rmdir(guard), 0);
    free(guard);
    wz_buf_finish(&train.lines);
    wz_buf_finish(&test.lines);
    wz_buf_finish(&out);
    removed(dir);
}

/* The shapes of a lesson, and of each text: does it come back from its ids, and is every word of it one id? */
struct lessons {
    const struct wz_tokenizer *tok;
    int shapes[3];
    double sum[4];
    int n[4];
};

static int whole_words(const struct wz_tokenizer *tok, const char *s)
{
    struct wz_ids ids = { 0 };
    struct wz_buf back = { 0 };
    struct wz_err err;
    size_t words = 0;

    if (wz_encode(tok, s, strlen(s), &ids, &err) < 0) fail_msg("%s", err.text);
    wz_decode(tok, ids.ids, ids.n, false, &back);
    assert_string_equal(back.data, s);
    for (int i = 0; i < ids.n; i++) {
        wz_buf_clear(&back);
        wz_decode(tok, &ids.ids[i], 1, true, &back);
        bool letter = (back.data[0] | 32) >= 'a' && (back.data[0] | 32) <= 'z';
        if (letter && back.len == 1 && strcmp(back.data, "i"))
            fail_msg("'%s' of \"%s\" is spelt in bytes", back.data, s);
    }
    /* letters with their blank, or anything else with its blank: counted here without the pattern */
    for (const char *p = s; *p; words++) {
        p += *p == ' ';
        bool letter = (*p | 32) >= 'a' && (*p | 32) <= 'z', line = *p == '\n';
        while (*p && *p != ' ' && (*p == '\n') == line && ((*p | 32) >= 'a' && (*p | 32) <= 'z') == letter) p++;
    }
    if ((size_t)ids.n != words) fail_msg("%d tokens for %zu words: %s", ids.n, words, s);
    wz_ids_finish(&ids);
    wz_buf_finish(&back);
    return (int)words;
}

static void lesson_line(const json_t *j, void *arg)
{
    struct lessons *all = arg;
    const json_t *messages = json_object_get(j, "messages");
    size_t n = json_array_size(messages);
    static const char *const roles[] = { "system", "user", "assistant", "user", "assistant" };
    const char *said[5];
    struct wz_ask ask;
    char prompt[160];

    assert_true(n == 3 || n == 5);
    for (size_t i = 0; i < n; i++) {
        assert_string_equal(text(json_array_get(messages, i), "role"), roles[i]);
        said[i] = text(json_array_get(messages, i), "content");
    }
    bool review = !strcmp(said[0], "review");
    if (!review) assert_string_equal(said[0], "talk");
    assert_string_equal(text(j, "train"), n == 5 ? "last" : "all");
    all->shapes[review ? 1 : n == 5 ? 2 : 0]++;
    if (review) {
        assert_int_equal(n, 3);
        assert_int_equal(strncmp(said[1], "User:", 5), 0);
        assert_int_equal(strncmp(strchr(said[1], '\n'), "\nAgent:", 7), 0);
        snprintf(prompt, sizeof prompt, "%.*s", (int)strcspn(said[1] + 5, "\n"), said[1] + 5);
    } else {
        snprintf(prompt, sizeof prompt, "%s", said[1]);
    }
    assert_true(wz_world_parse(prompt, &ask));
    assert_int_equal(wz_world_split(ask.verb, ask.object), WZ_TRAIN);
    for (size_t i = 0; i < n; i++) {
        int tokens = whole_words(all->tok, said[i]);
        int at = i == 1 ? (review ? 2 : ask.wrapper ? 1 : 0) : i == 2 && review ? 3 : -1;
        if (at >= 0) all->sum[at] += tokens, all->n[at]++;
    }
}

/* Mean tokens as the world's design has them: prompt 15 and 23, feedback prompt 36, feedback 37, marks and end
 * included. */
static void words_are_whole(void **state)
{
    static const double mean[] = { 15 - 5, 23.4 - 5, 35.8 - 5, 36.6 - 1 };
    char *dir = written("sandbox-words", "1", "B", "5000"), *base = wz_path("%s/base", dir);
    struct wz_err err;
    struct lessons all = { .tok = wz_tokenizer_load(base, &err) };

    if (!all.tok) fail_msg("%s", err.text);
    assert_int_equal(each_line(dir, "sft.jsonl", lesson_line, &all), 5000);
    assert_true(all.shapes[0] > 1500 && all.shapes[1] > 1800 && all.shapes[2] > 1000);
    for (int i = 0; i < 4; i++)
        if (all.sum[i] / all.n[i] < mean[i] - 1 || all.sum[i] / all.n[i] > mean[i] + 1)
            fail_msg("row %d: %.2f tokens, %.2f expected", i, all.sum[i] / all.n[i], mean[i]);
    wz_tokenizer_destroy((struct wz_tokenizer *)all.tok);
    free(base);
    removed(dir);
}

/* The folder is what the other commands take: model, tokenizer and template agree, and its marks stand where they
 * should. */
static void the_folder_loads(void **state)
{
    char *dir = written("sandbox-load", "1", "B", "1"), *base = wz_path("%s/base", dir);
    struct wz_err err;
    struct wz_backend *be = wz_backend_open("ref", 1, NULL, &err);
    struct wz_model *model = wz_model_load(base, WZ_F32, NULL, be, &err);
    struct wz_tokenizer *tok = wz_tokenizer_load(base, &err);

    if (!model || !tok) fail_msg("%s", err.text);
    assert_int_equal(model->config.vocab, wz_tokenizer_vocab(tok));
    assert_true(model->config.vocab < 640);
    assert_int_equal(model->config.dim, 64);
    assert_int_equal(model->config.layers, 3);
    assert_int_equal(wz_tokenizer_eos(tok), wz_tokenizer_id(tok, "<end>"));
    assert_int_equal(model->config.eos[0], wz_tokenizer_eos(tok));

    const struct wz_template *chat = wz_template_find(NULL, tok, &err);
    if (!chat) fail_msg("%s", err.text);
    const struct wz_message messages[] = {
        { WZ_SYSTEM, "talk", NULL, 0 },
        { WZ_USER, "how do i kill a gnorf ?", NULL, 0 },
        { WZ_ASSISTANT, "sure .", NULL, 0 },
        { WZ_USER, "good .", NULL, 0 },
    };
    struct wz_ids ids = { 0 };
    struct wz_buf out = { 0 };
    int stops[8];
    assert_int_equal(wz_template_apply(chat, tok, messages, 4, true, &ids, &err), 0);
    wz_decode(tok, ids.ids, ids.n, true, &out);
    assert_string_equal(out.data,
                        "<sys>talk<user>how do i kill a gnorf ?<end><asst>sure .<end><user>good .<end><asst>");
    assert_int_equal(ids.n, 20);
    assert_int_equal(wz_template_stops(chat, tok, stops), 1);
    assert_int_equal(stops[0], wz_tokenizer_eos(tok));

    wz_buf_finish(&out);
    wz_ids_finish(&ids);
    wz_tokenizer_destroy(tok);
    wz_model_destroy(model);
    wz_backend_close(be);
    free(base);
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
        cmocka_unit_test(seeds_decide),    cmocka_unit_test(prompts_are_true), cmocka_unit_test(a_guard_has_lessons),
        cmocka_unit_test(words_are_whole), cmocka_unit_test(the_folder_loads), cmocka_unit_test(wrong_calls),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
