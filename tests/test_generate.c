/* Guarantee: waltz generate answers every line in order; its log-probabilities are bit for bit those of waltz score,
 * whatever else is in the batch. */
#include "command_help.h"

/* The sandbox's model and tokenizer, made once; heap. */
static char *sandbox_model(void)
{
    char *dir = test_scratch("sandbox"), *model = wz_path("%s/base", dir), *words = wz_path("sandbox %s -w 100", dir);
    struct wz_buf out = { 0 };

    if (!wz_is_dir(model)) assert_int_equal(command(wz_cmd_sandbox, words, "", &out), 0);
    wz_buf_finish(&out);
    free(dir);
    free(words);
    return model;
}

/* Generates with these options; the output is in *out. */
static int generate(const char *model, const char *options, const char *input, struct wz_buf *out)
{
    char *words = wz_path("generate %s --backend ref %s", model, options);
    int status = command(wz_cmd_generate, words, input, out);

    free(words);
    return status;
}

static const char prompts[] =
    "{\"ids\": [5, 6, 7]}\n{\"ids\": [9]}\n{\"ids\": [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21]}\n"
    "{\"ids\": [5, 6, 7]}\n{\"messages\": [{\"role\": \"user\", \"content\": \"how to paint fence\"}]}\n";

/* Scores prompt + answer and compares: log-probabilities to the bit, and the likeliest tokens where `greedy`. */
static void agrees_with_score(const char *model, const json_t *prompt, const json_t *answer, bool greedy)
{
    const json_t *ids = json_object_get(answer, "ids"), *logp = json_object_get(answer, "logprobs");
    json_t *all = json_copy((json_t *)(uintptr_t)prompt), *line;
    char *words = wz_path("score %s --backend ref", model), *text;
    struct wz_buf in = { 0 }, out = { 0 };
    size_t n = json_array_size(prompt);

    json_array_extend(all, (json_t *)(uintptr_t)ids);
    text = json_dumps(all, JSON_COMPACT);
    wz_buf_printf(&in, "{\"ids\": %s}\n", text);
    assert_int_equal(command(wz_cmd_score, words, in.data, &out), 0);
    line = line_of(&out, 0);
    assert_true(json_array_size(ids) > 0);
    assert_int_equal(json_array_size(ids), json_array_size(logp));
    for (size_t i = 0; i < json_array_size(ids); i++) {
        assert_true(json_number_value(json_array_get(logp, i)) ==
                    json_number_value(json_array_get(json_object_get(line, "logprobs"), n + i - 1)));
        if (greedy)
            assert_int_equal(json_integer_value(json_array_get(ids, i)),
                             json_integer_value(json_array_get(json_object_get(line, "argmax"), n + i - 1)));
    }
    json_decref(line);
    json_decref(all);
    free(text);
    free(words);
    wz_buf_finish(&in);
    wz_buf_finish(&out);
}

static void numbers_are_those_of_score(void **state)
{
    char *model = sandbox_model();
    struct wz_buf out = { 0 };

    for (int sampled = 0; sampled < 2; sampled++) {
        assert_int_equal(generate(model, sampled ? "-n 20 --temperature 1 --seed 3" : "-n 20", prompts, &out), 0);
        assert_int_equal(lines_in(&out), 5);
        json_t *prompt = json_pack("[iii]", 5, 6, 7), *first = line_of(&out, 0), *fourth = line_of(&out, 3);
        agrees_with_score(model, prompt, first, !sampled);
        agrees_with_score(model, prompt, fourth, !sampled);
        /* The same prompt on another line: the same when greedy, other draws when sampled. */
        assert_int_equal(json_equal(json_object_get(first, "ids"), json_object_get(fourth, "ids")), !sampled);
        json_decref(prompt);
        json_decref(first);
        json_decref(fourth);
    }
    wz_buf_finish(&out);
    free(model);
}

static void neighbours_do_not_matter(void **state)
{
    static const char sampled[] =
        "-n 20 --temperature 0.9 --top-p 0.9 --top-k 30 --min-p 0.001 --seed 9 --max-num-seqs 16";
    static const char *const others[] = {
        "-n 20 --temperature 0.9 --top-p 0.9 --top-k 30 --min-p 0.001 --seed 9 --max-num-seqs 1",
        "-n 20 --temperature 0.9 --top-p 0.9 --top-k 30 --min-p 0.001 --seed 9 --max-num-seqs 2 --threads 2",
    };
    char *model = sandbox_model();
    struct wz_buf all = { 0 }, other = { 0 };

    assert_int_equal(generate(model, sampled, prompts, &all), 0);
    for (size_t i = 0; i < WZ_COUNT(others); i++) {
        assert_int_equal(generate(model, others[i], prompts, &other), 0);
        assert_string_equal(all.data, other.data);
    }
    assert_int_equal(
        generate(model, "-n 20 --temperature 0.9 --top-p 0.9 --top-k 30 --min-p 0.001 --seed 10", prompts, &other), 0);
    assert_string_not_equal(all.data, other.data);
    wz_buf_finish(&all);
    wz_buf_finish(&other);
    free(model);
}

/* Messages are what waltz tokenize makes of them, and nothing is put in front of ids. */
static void messages_go_through_the_template(void **state)
{
    static const char messages[] = "\"messages\": [{\"role\": \"user\", \"content\": \"how to paint fence\"}]";
    char *model = sandbox_model(), *words = wz_path("tokenize %s", model);
    struct wz_buf in = { 0 }, ids = { 0 }, direct = { 0 }, round = { 0 };

    wz_buf_printf(&in, "{%s, \"generate\": true}\n", messages);
    assert_int_equal(command(wz_cmd_tokenize, words, in.data, &ids), 0);
    assert_int_equal(generate(model, "-n 12", ids.data, &round), 0);
    wz_buf_clear(&in);
    wz_buf_printf(&in, "{%s}", messages); /* and the last line may lack its line break */
    assert_int_equal(generate(model, "-n 12", in.data, &direct), 0);
    assert_string_equal(direct.data, round.data);
    wz_buf_finish(&in);
    wz_buf_finish(&ids);
    wz_buf_finish(&direct);
    wz_buf_finish(&round);
    free(model);
    free(words);
}

static void a_stop_token_ends_it(void **state)
{
    char *model = sandbox_model(), *copy = test_scratch("stopping"), *config, *from, *to;
    struct wz_buf out = { 0 };
    struct wz_err err;

    assert_int_equal(generate(model, "-n 20", "{\"ids\": [5, 6, 7]}\n", &out), 0);
    json_t *line = line_of(&out, 0), *ids = json_object_get(line, "ids"), *end = json_array_get(ids, 4), *j, *cut;
    size_t first = 0;
    while (json_integer_value(json_array_get(ids, first)) != json_integer_value(end)) first++;
    assert_string_equal(json_string_value(json_object_get(line, "finish_reason")), "length");
    assert_int_equal(json_array_size(ids), 20);

    /* The same model, but its fifth token is now the end of a turn. */
    assert_int_equal(wz_mkdirs(copy, &err), 0);
    static const char *const files[] = { "model.safetensors", "tokenizer.json", "tokenizer_config.json" };
    for (size_t i = 0; i < WZ_COUNT(files); i++) {
        from = wz_path("%s/%s", model, files[i]);
        to = wz_path("%s/%s", copy, files[i]);
        unlink(to);
        assert_int_equal(symlink(from, to), 0);
        free(from);
        free(to);
    }
    from = wz_path("%s/config.json", model);
    to = wz_path("%s/config.json", copy);
    j = wz_json_load(from, &err);
    assert_non_null(j);
    json_object_set(j, "eos_token_id", end);
    config = json_dumps(j, 0);
    assert_int_equal(wz_file_write(to, config, strlen(config), &err), 0);
    assert_int_equal(generate(copy, "-n 20", "{\"ids\": [5, 6, 7]}\n", &out), 0);
    cut = line_of(&out, 0);
    assert_string_equal(json_string_value(json_object_get(cut, "finish_reason")), "stop");
    assert_int_equal(json_array_size(json_object_get(cut, "ids")), first + 1); /* the end is in ids, not in the text */
    for (size_t i = 0; i <= first; i++)
        assert_true(json_equal(json_array_get(ids, i), json_array_get(json_object_get(cut, "ids"), i)));
    if (first > 0) {
        char *options = wz_path("-n %zu", first);
        assert_int_equal(generate(model, options, "{\"ids\": [5, 6, 7]}\n", &out), 0);
        json_decref(line);
        line = line_of(&out, 0);
        free(options);
    }
    assert_string_equal(json_string_value(json_object_get(cut, "text")),
                        first ? json_string_value(json_object_get(line, "text")) : "");
    json_decref(line);
    json_decref(j);
    json_decref(cut);
    free(config);
    free(from);
    free(to);
    free(model);
    free(copy);
    wz_buf_finish(&out);
}

static void bad_lines_are_answered_in_place(void **state)
{
    static const struct {
        const char *line, *says;
    } lines[] = {
        { "{\"ids\": [5]}", NULL },
        { "", "line 2" },
        { "{\"ids\": []}", "empty" },
        { "{\"ids\": [1, -1]}", "ids[1]" },
        { "{\"ids\": [1, 2.5]}", "ids[1]" },
        { "{\"ids\": [99999999]}", "ids[0] is not a token id" },
        { "{\"ids\": [1], \"messages\": []}", "expected" },
        { "{\"ids\": 3}", "expected" },
        { "[1]", "expected" },
        { "{\"messages\": [{\"role\": \"boss\", \"content\": \"x\"}]}", "boss" },
        { "{\"messages\": [{\"role\": \"user\"}]}", "content" },
        { "{\"ids\": [5", "line 12: JSON:1:10: not valid JSON: ']' expected" },
        { "\xff\xfe", "line 13" },
        { "{\"ids\": [5]}", NULL },
    };
    char *model = sandbox_model();
    struct wz_buf in = { 0 }, out = { 0 };

    for (size_t i = 0; i < WZ_COUNT(lines); i++) wz_buf_printf(&in, "%s\n", lines[i].line);
    wz_buf_str(&in, "{\"ids\": [5");
    for (int i = 0; i < 100000; i++) wz_buf_str(&in, ",5");
    wz_buf_str(&in, "]}\n");
    assert_int_equal(generate(model, "-n 4", in.data, &out), 1);
    assert_int_equal(lines_in(&out), WZ_COUNT(lines) + 1);
    for (size_t i = 0; i <= WZ_COUNT(lines); i++) {
        const char *says = i < WZ_COUNT(lines) ? lines[i].says : "the model's context";
        json_t *j = line_of(&out, (int)i);
        const char *error = json_string_value(json_object_get(j, "error"));
        if (says && (!error || !strstr(error, says)))
            fail_msg("line %zu should say '%s', says: %s", i + 1, says, error ? error : "nothing");
        assert_true(says ? json_object_size(j) == 1 : json_array_size(json_object_get(j, "ids")) == 4);
        json_decref(j);
    }
    assert_int_equal(generate(model, "", "", &out), 0);
    assert_int_equal(out.len, 0);
    assert_int_equal(generate("/nowhere", "", "", &out), 1);
    assert_int_equal(generate(model, "--template nonsense", "", &out), 1);
    assert_int_equal(generate(model, "--top-p 2", "", &out), 2);
    wz_buf_finish(&in);
    wz_buf_finish(&out);
    free(model);
}

/* A trained model's own words, computed elsewhere in float64. */
static void stories_are_told(void **state)
{
    static const struct {
        const char *from, *to;
    } files[] = {
        { "config.json", "config.json" },
        { "model.safetensors", "model.safetensors" },
        { "tok512.model", "tokenizer.model" },
    };
    char *data = test_data("stories260k"), *dir = test_scratch("stories"), *path = wz_path("%s/reference.json", data),
         *options;
    struct wz_err err;
    struct wz_buf out = { 0 };
    json_t *reference = wz_json_load(path, &err), *want = json_object_get(reference, "greedy_tokens_from_bos"), *line,
           *ids;

    assert_non_null(want);
    assert_int_equal(wz_mkdirs(dir, &err), 0);
    for (size_t i = 0; i < WZ_COUNT(files); i++) {
        char *from = wz_path("%s/%s", data, files[i].from), *to = wz_path("%s/%s", dir, files[i].to);
        unlink(to);
        assert_int_equal(symlink(from, to), 0);
        free(from);
        free(to);
    }
    options = wz_path("-n %zu", json_array_size(want) - 1);
    assert_int_equal(generate(dir, options, "{\"ids\": [1]}\n", &out), 0);
    line = line_of(&out, 0);
    ids = json_object_get(line, "ids");
    assert_int_equal(json_array_size(ids), json_array_size(want) - 1);
    for (size_t i = 0; i < json_array_size(ids); i++)
        assert_true(json_equal(json_array_get(ids, i), json_array_get(want, i + 1)));
    const char *told = json_string_value(json_object_get(reference, "greedy_text_from_bos"));
    told += *told == ' '; /* the first word's own space */
    assert_string_equal(json_string_value(json_object_get(line, "text")), told);
    json_decref(line);
    json_decref(reference);
    free(options);
    free(path);
    free(dir);
    free(data);
    wz_buf_finish(&out);
}

/* A line with a prompt is one message of a user; the answer says which. */
static void prompts_are_repeated(void **state)
{
    char *model = sandbox_model();
    struct wz_buf a = { 0 }, b = { 0 };

    assert_int_equal(generate(model, "-n 4", "{\"prompt\": \"how to \\\"paint\\\"\", \"kind\": \"PB\"}\n", &a), 0);
    assert_int_equal(
        generate(model, "-n 4", "{\"messages\": [{\"role\": \"user\", \"content\": \"how to \\\"paint\\\"\"}]}\n", &b),
        0);
    json_t *x = line_of(&a, 0), *y = line_of(&b, 0);
    assert_string_equal(json_string_value(json_object_get(x, "prompt")), "how to \"paint\"");
    assert_int_equal(json_object_del(x, "prompt"), 0);
    assert_true(json_equal(x, y));
    json_decref(x), json_decref(y);
    wz_buf_finish(&a), wz_buf_finish(&b);
    free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers_are_those_of_score),
        cmocka_unit_test(neighbours_do_not_matter),
        cmocka_unit_test(messages_go_through_the_template),
        cmocka_unit_test(a_stop_token_ends_it),
        cmocka_unit_test(prompts_are_repeated),
        cmocka_unit_test(bad_lines_are_answered_in_place),
        cmocka_unit_test(stories_are_told),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
