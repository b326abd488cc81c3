/* Guarantee: waltz inspect shows what is in every kind of file that a run reads or writes, and gives one error message
 * for any other. */
#include "test.h"

#include <sys/stat.h>
#include <unistd.h>

#include "launch/launch.h"
#include "store/store.h"

static char *dir;

static char *in_dir(const char *name) { return wz_path("%s/%s", dir, name); }

/* Runs it with these arguments; what it printed is in *out (heap). */
static int run(char **out, const char *a, const char *b, const char *c)
{
    char *name = in_dir("stdout"), *argv[] = { (char[]){ "inspect" }, wz_strdup(a), wz_strdup(b), wz_strdup(c) };
    int argc = *c ? 4 : *b ? 3 : 2, old = dup(1);
    char *mine[] = { argv[1], argv[2], argv[3] };
    struct wz_map map;
    struct wz_err err;

    fflush(stdout);
    assert_non_null(freopen(name, "w", stdout));
    int status = wz_cmd_inspect(argc, argv);
    fflush(stdout);
    assert_true(dup2(old, 1) == 1);
    close(old);
    assert_int_equal(wz_map_open(&map, name, &err), 0);
    *out = wz_realloc(NULL, map.len + 1);
    memcpy(*out, map.bytes, map.len);
    (*out)[map.len] = 0;
    wz_map_close(&map);
    for (int i = 0; i < 3; i++) free(mine[i]);
    free(name);
    return status;
}

/* --json of a path, parsed. */
static json_t *json_of(const char *path, const char *option)
{
    char *out;
    struct wz_err err;

    assert_int_equal(run(&out, "--json", path, option), 0);
    json_t *j = wz_json_parse(out, strlen(out), path, &err);
    if (!j) fail_msg("%s", err.text);
    free(out);
    return j;
}

static long long number(json_t *j, const char *a, const char *b, const char *c)
{
    json_t *at = json_object_get(j, a);

    if (b) at = json_object_get(at, b);
    if (c) at = json_object_get(at, c);
    assert_true(json_is_integer(at));
    return json_integer_value(at);
}

/* In words, and that `word` is among them. */
static void says(const char *path, const char *option, const char *word)
{
    char *out;

    assert_int_equal(run(&out, path, option, ""), 0);
    if (!strstr(out, word)) fail_msg("expected '%s' in: %s", word, out);
    free(out);
}

static void put_model(const char *folder)
{
    const struct wz_tensor_spec specs[] = { { "b\x1b[31m", WZ_DT_BF16, 2, { 2, 3 } }, { "a", WZ_DT_F32, 1, { 4 } } };
    char *path = wz_path("%s/model.safetensors", folder), *config = wz_path("%s/config.json", folder);
    struct wz_err err;

    assert_int_equal(wz_mkdirs(folder, &err), 0);
    struct wz_safetensors_out *out = wz_safetensors_begin(path, specs, 2, &err);
    assert_non_null(out);
    assert_int_equal(wz_safetensors_put(out, (float[10]){ 0 }, 10, &err), 0);
    assert_int_equal(wz_safetensors_end(out, &err), 0);
    assert_int_equal(wz_file_write(config, "{\"layers\": 3, \"list\": [1, 2]}", 29, &err), 0);
    free(path);
    free(config);
}

static void models(void **state)
{
    char *folder = in_dir("hub"), *file = in_dir("hub/model.safetensors"), *config = in_dir("hub/config.json");
    struct wz_err err;

    put_model(folder);
    json_t *j = json_of(folder, "");
    assert_int_equal(number(j, "numbers", NULL, NULL), 10);
    assert_int_equal(number(j, "by type", "BF16", "bytes"), 12);
    assert_int_equal(number(j, "config", "layers", NULL), 3);
    assert_int_equal(json_array_size(json_object_get(j, "tensors")), 2);
    json_decref(j);
    says(folder, "", "[1,2]");
    says(file, "", "[2,3]");
    says(file, "", "b\\x1b[31m"); /* a name can't steer the terminal */
    says(file, "", "tensors 1, numbers 4, bytes 16");
    assert_int_equal(wz_file_write(config, "{", 1, &err), 0);
    char *out;
    assert_int_equal(run(&out, folder, "", ""), 1);
    free(out);
    free(folder);
    free(file);
    free(config);
}

static void checkpoints(void **state)
{
    char *folder = in_dir("12"), *manifest = in_dir("12/manifest.json"), *agent = in_dir("12/feedback");
    static const char text[] = "{\"step\": 12, \"lengths\": [{\"stage\": 0, \"steps\": 12}], "
                               "\"agents\": {\"feedback\": {\"version\": 3}, \"frozen\": {\"version\": 0}}}";
    struct wz_err err;

    put_model(agent);
    assert_int_equal(wz_file_write(manifest, text, sizeof text - 1, &err), 0);
    json_t *j = json_of(folder, "");
    assert_int_equal(number(j, "manifest", "step", NULL), 12);
    assert_int_equal(number(j, "by agent", "feedback", "numbers"), 10);
    json_decref(j);
    says(folder, "", "frozen");
    says(folder, "", "{\"stage\":0,\"steps\":12}");
    free(folder);
    free(manifest);
    free(agent);
}

static void records(void **state)
{
    char *path = in_dir("episodes-0.h5");
    struct wz_err err;
    struct wz_record *r = wz_record_open(path, &err);
    Wz__Episode *e = wz_episode_new();

    assert_non_null(r);
    wz_set_string(&e->kind, "pets", 4);
    Wz__Turn *t = wz_episode_turn(e);
    wz_turn_reserve(t, 2);
    wz_turn_add(t, 7, -1), wz_turn_add(t, 8, -2);
    for (e->step = 4; e->step < 7; e->step++) {
        e->harmful = e->step == 5;
        assert_int_equal(wz_record_episodes(r, &e, 1, &err), 0);
    }
    wz_record_close(r);
    wz_episode_free(e);
    json_t *j = json_of(path, "");
    assert_int_equal(number(j, "steps", NULL, NULL), 3);
    assert_int_equal(number(j, "first step", NULL, NULL), 4);
    assert_int_equal(number(j, "last step", NULL, NULL), 6);
    assert_int_equal(number(j, "sampled tokens", NULL, NULL), 6);
    assert_int_equal(number(j, "by kind", "pets", "harmful"), 1);
    json_decref(j);
    says(path, "", "episodes 3, harmful 1, discarded 0");
    free(path);
}

static void prompts(void **state)
{
    char *path = in_dir("set.csv"), *out;
    struct wz_err err;

    assert_int_equal(wz_file_write(path, "prompt,k,bad\na,x,1\nb,y,0\nc,x,1\n", 31, &err), 0);
    json_t *j = json_of(path, "--harmful=bad");
    assert_int_equal(number(j, "rows", NULL, NULL), 3);
    assert_int_equal(number(j, "by kind", "set", "harmful"), 2);
    json_decref(j);
    says(path, "--harmful==benign", "rows 3, harmful 0");
    char *odd = in_dir("se\xfft.csv"); /* the kind is the file's name */
    assert_int_equal(rename(path, odd), 0);
    says(odd, "--harmful=bad", "?  rows 3, harmful 2");
    assert_int_equal(rename(odd, path), 0);
    free(odd);
    assert_int_equal(run(&out, path, "", ""), 1); /* no column harmful */
    free(out);
    free(path);
}

static void anything_else(void **state)
{
    char *out, *path = in_dir("junk");
    struct wz_err err;

    assert_int_equal(run(&out, "/no/such/file", "", ""), 1);
    free(out);
    assert_int_equal(run(&out, "/no/such/file.h5", "", ""), 1);
    free(out);
    assert_int_equal(wz_file_write(path, "junk", 4, &err), 0);
    assert_int_equal(run(&out, path, "", ""), 1);
    assert_string_equal(out, "");
    free(out);
    assert_int_equal(run(&out, "--help", "", ""), 0);
    assert_non_null(strstr(out, "usage: waltz inspect FILE|FOLDER"));
    free(out);
    assert_int_equal(run(&out, "--nothing", path, ""), 2);
    free(out);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(models),  cmocka_unit_test(checkpoints),   cmocka_unit_test(records),
        cmocka_unit_test(prompts), cmocka_unit_test(anything_else),
    };
    char name[32];
    struct wz_err err;

    snprintf(name, sizeof name, "inspect-%d", (int)getpid());
    dir = test_scratch(name);
    if (wz_mkdirs(dir, &err) < 0) wz_die("%s", err.text);
    return cmocka_run_group_tests_name("inspect", tests, NULL, NULL);
}
