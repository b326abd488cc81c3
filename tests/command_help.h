/* What the tests of sub-commands share: running one on given input, and its output by lines. */
#ifndef WZ_TESTS_COMMAND_HELP_H
#define WZ_TESTS_COMMAND_HELP_H

#include <fcntl.h>
#include <unistd.h>

#include "launch/launch.h"
#include "test.h"

/* Runs a command of words with `input` on its standard input; returns its status, what it printed in *out. */
static inline int command(int (*run_command)(int, char **), const char *words, const char *input, struct wz_buf *out)
{
    char *in_path = test_scratch("stdin"), *out_path = test_scratch("stdout"), line[4096], *argv[48];
    struct wz_err err;
    struct wz_map map;
    int argc = 0, status, keep[3] = { dup(0), dup(1), dup(2) };

    assert_int_equal(wz_file_write(in_path, input, strlen(input), &err), 0);
    snprintf(line, sizeof line, "%s", words);
    for (char *w = strtok(line, " "); w; w = strtok(NULL, " ")) {
        assert_true(argc < (int)WZ_COUNT(argv) - 1);
        argv[argc++] = w;
    }
    argv[argc] = NULL;
    fflush(stdout);
    int in = open(in_path, O_RDONLY), to = open(out_path, O_WRONLY | O_CREAT | O_TRUNC, 0600),
        null = open("/dev/null", O_WRONLY);
    dup2(in, 0);
    dup2(to, 1);
    dup2(null, 2);
    status = run_command(argc, argv);
    fflush(stdout);
    for (int i = 0; i < 3; i++) {
        dup2(keep[i], i);
        close(keep[i]);
    }
    close(in);
    close(to);
    close(null);
    assert_int_equal(wz_map_open(&map, out_path, &err), 0);
    wz_buf_clear(out);
    if (map.len) wz_buf_add(out, map.bytes, map.len);
    wz_map_close(&map);
    free(in_path);
    free(out_path);
    return status;
}

/* The n-th line of what was printed, parsed. */
static inline json_t *line_of(const struct wz_buf *out, int n)
{
    const char *at = out->data;
    struct wz_err err;

    for (int i = 0; i < n; i++) {
        at = at ? strchr(at, '\n') : NULL;
        assert_non_null(at);
        at++;
    }
    const char *end = strchr(at, '\n');
    assert_non_null(end);
    json_t *j = wz_json_parse(at, (size_t)(end - at), "output", &err);
    if (!j) fail_msg("%s", err.text);
    return j;
}

static inline int lines_in(const struct wz_buf *out)
{
    int n = 0;

    for (size_t i = 0; i < out->len; i++) n += out->data[i] == '\n';
    return n;
}

#endif
