/* A checkpoint's manifest is what was written, and every value of it is one that a run can go on from: one that is
 * sealed anew, but holds what no run writes, is refused by the key, and nothing is read or written beyond it. */
#include "tests/test.h"

#include "recipe/recipe.h"
#include "run/manifest.h"

static const char recipe_text[] = "name: t\n"
                                  "agents:\n"
                                  "  - {name: ann, role: feedback, model: m}\n"
                                  "  - {name: bob, role: conversation, model: m}\n"
                                  "data: [{path: d.jsonl}]\n"
                                  "stages:\n"
                                  "  - {name: s, steps: 10, agents: [{name: ann, lr: 1e-3}]}\n"
                                  "  - {name: t, steps: 14, agents: [{name: ann, lr: 1e-3}]}\n";
/* After step 14: 4 steps of the second stage. */
static const char manifest_text[] =
    "{\"format\": 2, \"step\": 14, \"stage\": 1, \"stage_step\": 4, \"stage_start\": 10,"
    " \"chain\": \"a88251183f69fbb1\", \"agents\": {"
    "  \"ann\": {\"version\": 14, \"hash\": \"92aa1168c7ce7f31\", \"updates\": 4, \"skipped\": 1, \"not_finite\": 0,"
    "            \"moments\": true},"
    "  \"bob\": {\"version\": 0, \"hash\": \"0000000000000000\", \"updates\": 0, \"skipped\": 0, \"not_finite\": 0,"
    "            \"moments\": false}},"
    " \"lengths\": [{\"stage\": 0, \"steps\": 10, \"from\": 0}, {\"stage\": 1, \"steps\": 14, \"from\": 0}],"
    " \"lost\": 0, \"files\": {}, \"inputs\": {}}";

static struct wz_recipe *recipe;

static void put(const char *name, const char *text)
{
    char *path = test_scratch(name);
    struct wz_err err;

    if (wz_file_write(path, text, strlen(text), &err) < 0) fail_msg("%s", err.text);
    free(path);
}

/* Writes the manifest; sealed, unless `root` has a seal. Releases root. */
static void put_manifest(json_t *root)
{
    if (!json_object_get(root, "self")) wz_manifest_seal(root);
    char *text = json_dumps(root, 0);

    put("manifest.json", text);
    free(text);
    json_decref(root);
}

static json_t *good(void) { return json_loads(manifest_text, 0, NULL); }

static int load(struct wz_progress *p, struct wz_err *err)
{
    char *dir = test_scratch("");

    *p = (struct wz_progress){ 0 };
    int rc = wz_manifest_load(dir, 14, p, recipe, err);
    free(dir);
    return rc;
}

static void what_was_written_is_read(void **state)
{
    struct wz_progress p;
    struct wz_err err;

    put_manifest(good());
    if (load(&p, &err) < 0) fail_msg("%s", err.text);
    assert_true(p.step == 14 && p.stage == 1 && p.stage_step == 4 && p.stage_start == 10);
    assert_true(p.chain == 0xa88251183f69fbb1 && p.hash[0] == 0x92aa1168c7ce7f31 && p.hash[1] == 0);
    assert_true(p.drawn[0] == 320 && p.drawn[1] == 128 && p.drawn[2] == 0);
    assert_true(p.version[0] == 14 && p.updates[0] == 4 && p.updates[1] == -1 && p.skipped[0] == 1);
}

/* KEY of the manifest, or AGENT.KEY; its value as JSON, NULL: it is not there; and what is said. */
static const struct {
    const char *key, *value, *says;
} wrong[] = {
    { "format", "3", "format: expected 2, got 3" },
    { "format", "\"x\"", "format: expected 2, got \"x\"" },
    { "format", "1", "of an earlier version" },
    { "step", "-1", "from 14 to 14, got -1" },
    { "step", "12", "from 14 to 14, got 12" },
    { "step", NULL, "step: expected a whole number from 14 to 14, got nothing" },
    { "stage", "-1", "stage: expected a whole number from 0 to 2, got -1" },
    { "stage", "3", "from 0 to 2, got 3" },
    { "stage", "4294967296", "stage: expected" },
    { "stage", "\"x\"", "got \"x\"" },
    { "stage", "1e9", "stage: expected" },
    { "stage", "2", "stage_step: expected a whole number from -10 to -10, got 4" },
    { "stage", "0", "stage_step: expected a whole number from 14 to 14, got 4" },
    { "stage_step", "-5", "stage_step: expected" },
    { "stage_step", "8589934592", "stage_step: expected" },
    { "stage_step", "null", "stage_step: expected" },
    { "stage_start", "-3", "stage_start: expected" },
    { "stage_start", "4611686018427387904", "stage_start: expected" },
    { "stage_start", NULL, "stage_start: expected" },
    { "drawn", "{\"s\": 320, \"t\": 127}", "t: expected a whole number from 128 to 128, got 127" },
    { "drawn", "{\"s\": 321, \"t\": 128}", "s: expected a whole number from 320 to 320, got 321" },
    { "drawn", "[]", "s: expected a whole number from 320 to 320, got nothing" },
    { "chain", "\"zz\"", "chain: expected 16 hexadecimal digits, got \"zz\"" },
    { "chain", "\"\"", "chain: expected" },
    { "chain", "5", "chain: expected" },
    { "agents", NULL, "ann: expected an agent of this name" },
    { "agents", "[]", "ann: expected an agent of this name" },
    { "agents", "{}", "ann: expected an agent of this name" },
    { "lengths", NULL, "lengths: expected a list" },
    { "lengths", "[{\"stage\": 0, \"steps\": 1.5, \"from\": 0}]", "lengths: " },
    { "lengths", "[{\"stage\": 0, \"steps\": 10, \"from\": 0}]", "stage_step: expected less than the -1 steps" },
    { "ann.hash", "\"0\"", "agent ann: " },
    { "ann.hash", "null", "agent ann: " },
    { "ann.hash", "\"0000000000000000\"", "hash: expected a hash, for it has learnt" },
    { "bob.hash", "\"92aa1168c7ce7f31\"", "agent bob: " },
    { "ann.version", "-1", "agent ann: " },
    { "ann.version", "\"x\"", "agent ann: " },
    { "ann.updates", "-1", "agent ann: " },
    { "ann.updates", "2147483648", "agent ann: " },
    { "ann.updates", NULL, "agent ann: " },
    { "ann.skipped", NULL, "skipped: expected a whole number from 0 to 2147483647, got nothing" },
    { "ann.not_finite", NULL, "not_finite: expected a whole number from 0 to 2147483647, got nothing" },
    { "ann.not_finite", "-1", "agent ann: " },
    { "ann.moments", "3", "moments: expected true or false, got 3" },
    { "ann.moments", NULL, "moments: expected true or false, got nothing" },
};

static void what_no_run_writes_is_refused(void **state)
{
    struct wz_progress p;
    struct wz_err err;

    for (size_t i = 0; i < WZ_COUNT(wrong); i++) {
        json_t *root = good(), *at = root;
        const char *dot = strchr(wrong[i].key, '.'), *key = dot ? dot + 1 : wrong[i].key;
        char *agent = strndup(wrong[i].key, dot ? (size_t)(dot - wrong[i].key) : 0);
        if (dot) at = json_object_get(json_object_get(root, "agents"), agent);
        if (wrong[i].value) json_object_set_new(at, key, json_loads(wrong[i].value, JSON_DECODE_ANY, NULL));
        else json_object_del(at, key);
        free(agent);
        put_manifest(root);
        if (load(&p, &err) == 0) fail_msg("%s %s is accepted", wrong[i].key, wrong[i].value);
        if (!strstr(err.text, "manifest.json: ") || !strstr(err.text, wrong[i].says))
            fail_msg("%s %s: %s", wrong[i].key, wrong[i].value, err.text);
    }
}

/* Whoever changes a manifest breaks its seal, whatever the key; blanks and the order of keys are not in it. */
static void a_seal_is_of_all_values(void **state)
{
    struct wz_progress p;
    struct wz_err err;
    const char *key;
    json_t *value, *root, *sealed = good();

    wz_manifest_seal(sealed);
    char *text = json_dumps(sealed, JSON_INDENT(7) | JSON_SORT_KEYS);
    put("manifest.json", text);
    free(text);
    assert_int_equal(load(&p, &err), 0);
    json_object_foreach(sealed, key, value)
    {
        root = json_copy(sealed);
        json_object_set_new(root, key, json_integer(strcmp(key, "format") ? 7 : 2));
        json_object_set_new(root, "more", json_true());
        put_manifest(root);
        assert_int_equal(load(&p, &err), -1);
        assert_non_null(strstr(err.text, "manifest.json: self: expected \""));
    }
    root = json_copy(sealed);
    json_object_del(root, "self");
    text = json_dumps(root, 0);
    put("manifest.json", text);
    free(text);
    assert_int_equal(load(&p, &err), -1);
    assert_non_null(strstr(err.text, "the hash of the rest, got nothing"));
    json_decref(root);
    json_decref(sealed);
}

/* Its files are those of the manifest: none is missing, changed, or more than it lists. */
static void files_are_those_listed(void **state)
{
    char *dir = test_scratch("checkpoint"), *sub = test_scratch("checkpoint/ann");
    struct wz_err err;
    json_t *files, *root = good();

    assert_int_equal(wz_mkdirs(sub, &err), 0);
    put("checkpoint/ann/config.json", "{}");
    put("checkpoint/ann/model.safetensors", "weights");
    put("checkpoint/ann/README.md", "not read, so not looked at");
    put("checkpoint/ann.moments.safetensors", "moments");
    assert_int_equal(wz_inputs_saved(dir, NULL, &files, &err), 0);
    assert_int_equal(json_object_size(files), 3);
    json_object_set_new(root, "files", files);
    wz_manifest_seal(root);
    char *text = json_dumps(root, 0);
    put("checkpoint/manifest.json", text);
    free(text);
    if (wz_manifest_files(dir, NULL, &err) < 0) fail_msg("%s", err.text);

    static const struct {
        const char *name, *was, *is, *says;
    } changes[] = {
        { "checkpoint/ann/config.json", "{}", "[]", "ann/config.json: expected xxh3 " },
        { "checkpoint/ann.moments.safetensors", "moments", "", "ann.moments.safetensors: expected xxh3 " },
        { "checkpoint/ann/model.safetensors", "weights", NULL, "got no such file" },
        { "checkpoint/ann/chat_template.jinja", NULL, "x", "ann/chat_template.jinja: expected no such file" },
    };
    for (size_t i = 0; i < WZ_COUNT(changes); i++) {
        char *path = test_scratch(changes[i].name);
        if (changes[i].is) put(changes[i].name, changes[i].is);
        else remove(path);
        assert_int_equal(wz_manifest_files(dir, NULL, &err), -1);
        assert_non_null(strstr(err.text, changes[i].says));
        if (changes[i].was) put(changes[i].name, changes[i].was);
        else remove(path);
        free(path);
        assert_int_equal(wz_manifest_files(dir, NULL, &err), 0);
    }
    json_decref(root);
    free(dir);
    free(sub);
}

/* A manifest holds so many lengths of stages, and a run is extended no further: its checkpoints could not be read. */
static void a_run_is_extended_so_often(void **state)
{
    struct wz_progress p;
    struct wz_err err;

    for (int more = 0; more < 2; more++) {
        json_t *root = good(), *lengths = json_object_get(root, "lengths");
        while ((int)json_array_size(lengths) < WZ_MAX_LENGTHS + more)
            json_array_append_new(lengths, json_pack("{s:i, s:i, s:i}", "stage", 60, "steps", 1, "from", 0));
        put_manifest(root);
        assert_int_equal(load(&p, &err), -more);
        if (more) assert_non_null(strstr(err.text, "lengths: expected a list of at most 128 rows"));
        recipe->stages[1].steps = 15;
        if (!more) assert_int_equal(wz_progress_extend(&p, recipe, &err), -1);
        if (!more) assert_non_null(strstr(err.text, "stages.1.steps: the stages of the run in"));
        if (!more) assert_non_null(strstr(err.text, "have had 128 lengths"));
        recipe->stages[1].steps = 14;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_written_is_read),   cmocka_unit_test(what_no_run_writes_is_refused),
        cmocka_unit_test(a_seal_is_of_all_values),    cmocka_unit_test(files_are_those_listed),
        cmocka_unit_test(a_run_is_extended_so_often),
    };
    char *path = test_scratch("manifest.yaml");
    struct wz_err err;

    put("manifest.yaml", recipe_text);
    if (wz_recipe_load(&recipe, path, NULL, 0, &err) < 0) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    free(path);
    const int rc = cmocka_run_group_tests(tests, NULL, NULL);
    wz_recipe_destroy(recipe);
    return rc;
}
