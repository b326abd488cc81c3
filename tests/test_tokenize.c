/* Guarantee: `waltz tokenize` answers every line in order, a bad one with its number and an error message, and then
 * exits with 1. */
#include "tokenizer_help.h"

#include <fcntl.h>
#include <unistd.h>

#include "launch/launch.h"

/* Runs the command on the tiny tokenizer; what it printed is in *out and *err, both heap. */
static int tokenize(const char *option, const char *value, const char *in, char **out, char **err)
{
    char *model = test_scratch("tiny.json"),
         *paths[3] = { test_scratch("in"), test_scratch("out"), test_scratch("err") };
    char *argv[] = { "tokenize", model, (char *)option, (char *)value, NULL }, **texts[] = { NULL, out, err };
    int saved[3], argc = 2 + (option != NULL) + (value != NULL),
                  flags[] = { O_RDONLY, O_RDWR | O_CREAT | O_TRUNC, O_RDWR | O_CREAT | O_TRUNC };
    struct wz_buf b = { 0 };
    struct wz_err e;

    tiny_json(&b, false, false);
    assert_int_equal(wz_file_write(model, b.data, b.len, &e), 0);
    assert_int_equal(wz_file_write(paths[0], in, strlen(in), &e), 0);
    fflush(NULL);
    for (int i = 0; i < 3; i++) {
        int fd = open(paths[i], flags[i], 0600);
        assert_true(fd >= 0);
        saved[i] = dup(i);
        dup2(fd, i);
        close(fd);
    }
    clearerr(stdin);
    int status = wz_cmd_tokenize(argc, argv);
    fflush(NULL);
    for (int i = 0; i < 3; i++) {
        dup2(saved[i], i);
        close(saved[i]);
    }
    for (int i = 0; i < 3; i++) {
        struct wz_map map;
        assert_int_equal(wz_map_open(&map, paths[i], &e), 0);
        if (texts[i]) *texts[i] = strndup((const char *)map.bytes, map.len);
        wz_map_close(&map);
        remove(paths[i]);
        free(paths[i]);
    }
    remove(model);
    free(model);
    wz_buf_finish(&b);
    return status;
}

static void check(const char *option, const char *value, const char *in, int status, const char *want, const char *says)
{
    char *out, *err;
    int got = tokenize(option, value, in, &out, &err);

    assert_string_equal(out, want);
    assert_int_equal(got, status);
    if (says ? !strstr(err, says) : *err != 0) fail_msg("on stderr: %s", err);
    free(out);
    free(err);
}

static void texts_and_conversations(void **state)
{
    check(NULL, NULL, "{\"text\": \"hello world\"}\n{\"text\": \"\"}\n", 0, "{\"ids\": [259, 264]}\n{\"ids\": []}\n",
          NULL);
    check("--bos", NULL, "{\"text\": \"hello\"}", 0, "{\"ids\": [268, 259]}\n", NULL);
    check("--template", "sandbox",
          "{\"messages\": [{\"role\": \"system\", \"content\": \"a\"}, {\"role\": \"user\", \"content\": \"hello\"}], "
          "\"generate\": true}\n{\"messages\": []}\n",
          0, "{\"ids\": [275, 97, 276, 259, 277, 278]}\n{\"ids\": []}\n", NULL);
    check("--decode", NULL, "{\"ids\": [259, 264, 277]}\n", 0, "{\"text\": \"hello world<end>\"}\n", NULL);
}

static void bad_lines_are_answered_in_place(void **state)
{
    check(NULL, NULL, "{\"text\": \"hello\"}\nnonsense\n{\"text\": 7}\n{\"text\": \"1\"}\n", 1,
          "{\"ids\": [259]}\n{\"error\": \"line 2:1:8: not valid JSON: '[' or '{' expected near 'nonsense'\"}\n"
          "{\"error\": \"line 3: expected {\\\"text\\\": \\\"...\\\"} or {\\\"messages\\\": [...]}\"}\n{\"ids\": "
          "[49]}\n",
          "line 2");
    check("--decode", NULL, "{\"ids\": [99999]}\n{\"ids\": 5}\n{\"ids\": [97]}\n", 1,
          "{\"error\": \"line 1: ids[0] is not a token id from 0 to 278\"}\n"
          "{\"error\": \"line 2: expected {\\\"ids\\\": [...]}\"}\n{\"text\": \"a\"}\n",
          "line 1");
    check("--template", "llama2", "{\"messages\": [{\"role\": \"tool\", \"content\": \"a\"}]}\n", 1,
          "{\"error\": \"line 1: message 1: role \\\"tool\\\" is not system, user or assistant\"}\n", "tool");
    check(NULL, NULL, "{\"messages\": []}\n", 1,
          "{\"error\": \"line 1: the model has no chat template; name one (`chat`, --template)\"}\n", "--template");
    check("--template", "none", "{\"text\": \"a\"}\n", 1, "", "llama3");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(texts_and_conversations),
        cmocka_unit_test(bad_lines_are_answered_in_place),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
