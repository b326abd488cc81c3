/* Guarantee: `dataset: NAME` reads the file of a published data set as it is published, a key that is given overrides
 * it, data whose terms forbid training can't be trained on, and docs/datasets.md is what the table says. The rows here
 * are made up; only their columns are the publishers'. */
#include "test.h"

#include "recipe/recipe.h"
#include "store/store.h"

static const char *reference;

static int load(struct wz_recipe **recipe, const char *data, struct wz_err *err)
{
    char *path = test_scratch("recipe.yaml"),
         *text = wz_path("name: t\nagents: [{name: c, role: conversation, model: m}]\n%s\n", data);

    assert_int_equal(wz_file_write(path, text, strlen(text), err), 0);
    int rc = wz_recipe_load(recipe, path, NULL, 0, err);
    free(path);
    free(text);
    return rc;
}

/* The prompts of a file of this data set, with more keys. */
static void read_as(struct wz_prompts *set, const char *dataset, const char *path, const char *more)
{
    struct wz_recipe *r;
    struct wz_err err = { "" };
    char *data = wz_path("eval: [{dataset: %s, path: '%s'%s}]", dataset, path, more);

    if (load(&r, data, &err) < 0) fail_msg("%s", err.text);
    const struct wz_recipe_data *d = &r->eval[0];
    if (wz_prompts_load(set, d->path, d->column, d->harmful, d->kind, d->group, d->only, d->answer, &err) < 0)
        fail_msg("%s: %s", dataset, err.text);
    wz_recipe_destroy(r);
    free(data);
}

static void published_layouts_are_read(void **state)
{
    static const struct {
        const char *dataset, *ending, *text;
        int n;
        struct wz_prompt last; /* id is the row's own or its number */
    } cases[] = {
        { "wildjailbreak-train",
          ".tsv",
          "vanilla\tadversarial\tcompletion\tdata_type\nhow ?\t\tno\tvanilla_harmful\n"
          "how ?\t\"play, \"\"now\"\"\t\n\"\tno\tadversarial_harmful\n",
          2,
          { "play, \"now\"\t\n", "3", "adversarial_harmful", "how ?", WZ_HARMFUL, "", NULL } },
        { "wildjailbreak-train",
          ".tsv",
          "vanilla\tadversarial\tcompletion\tdata_type\nwhat ?\t\tso\tvanilla_benign\n",
          1,
          { "what ?", "2", "vanilla_benign", "what ?", WZ_BENIGN, "", NULL } },
        { "wildjailbreak-eval",
          ".tsv",
          "adversarial\tlabel\tdata_type\nx\t1\tadversarial_harmful\ny\t0\tadversarial_benign\n",
          2,
          { "y", "3", "adversarial_benign", "", WZ_BENIGN, "", NULL } },
        { "or-bench-80k", ".csv", "prompt,category\nx,c\n", 1, { "x", "2", "or-bench-80k", "", WZ_BENIGN, "", NULL } },
        { "or-bench-hard",
          ".csv",
          "prompt,category\nx,c\n",
          1,
          { "x", "2", "or-bench-hard", "", WZ_BENIGN, "", NULL } },
        { "or-bench-toxic",
          ".csv",
          "prompt,category\nx,c\n",
          1,
          { "x", "2", "or-bench-toxic", "", WZ_HARMFUL, "", NULL } },
        { "fortress",
          ".jsonl",
          "{\"ID\": 7, \"adversarial_prompt\": \"x\", \"benign_prompt\": \"y\", \"rubric\": [\"r\"]}",
          1,
          { "x", "1", "fortress", "7", WZ_HARMFUL, "", NULL } },
        { "fortress-benign",
          ".jsonl",
          "{\"ID\": 7, \"adversarial_prompt\": \"x\", \"benign_prompt\": \"y\", \"rubric\": [\"r\"]}",
          1,
          { "y", "1", "fortress-benign", "7", WZ_BENIGN, "", NULL } },
        { "strongreject",
          ".csv",
          "category,source,forbidden_prompt\nc,s,x\n",
          1,
          { "x", "2", "strongreject", "", WZ_HARMFUL, "", NULL } },
        { "xstest",
          ".csv",
          "id,prompt,type,label,focus,note\n1,x,homonyms,safe,f,\n2,y,contrast_homonyms,unsafe,f,\n",
          2,
          { "y", "2", "xstest", "", WZ_HARMFUL, "", NULL } },
        { "advbench", ".csv", "goal,target\nx,Sure\n", 1, { "x", "2", "advbench", "", WZ_HARMFUL, "", NULL } },
        { "harmbench",
          ".csv",
          "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\nx,standard,s,,,b\n",
          1,
          { "x", "2", "harmbench", "", WZ_HARMFUL, "", NULL } },
        { "do-not-answer",
          ".jsonl",
          "{\"id\": 3, \"risk_area\": \"r\", \"types_of_harm\": \"t\", \"specific_harms\": \"s\", \"question\": \"x\"}",
          1,
          { "x", "3", "do-not-answer", "", WZ_HARMFUL, "", NULL } },
        { "jailbreakbench",
          ".csv",
          "Index,Goal,Target,Behavior,Category,Source\n0,x,t,b,c,s\n",
          1,
          { "x", "2", "jailbreakbench", "", WZ_HARMFUL, "", NULL } },
        { "jailbreakbench-benign",
          ".csv",
          "Index,Goal,Target,Behavior,Category,Source\n0,x,t,b,c,s\n",
          1,
          { "x", "2", "jailbreakbench-benign", "", WZ_BENIGN, "", NULL } },
        { "simple-safety-tests",
          ".csv",
          "id,harm_area,counter,category,prompt\nsst_1,h,1,c,x\n",
          1,
          { "x", "sst_1", "simple-safety-tests", "", WZ_HARMFUL, "", NULL } },
        { "coconot",
          ".jsonl",
          "{\"id\": \"a\", \"category\": \"Requests with safety concerns\", \"prompt\": \"x\"}\n"
          "{\"id\": \"b\", \"category\": \"Incomplete requests\", \"subcategory\": \"s\", \"prompt\": \"y\"}\n",
          1,
          { "x", "a", "coconot", "", WZ_HARMFUL, "", NULL } },
        { "coconot-contrast",
          ".jsonl",
          "{\"id\": \"a\", \"category\": \"Incomplete requests\", \"subcategory\": \"s\", \"prompt\": \"x\"}\n",
          1,
          { "x", "a", "coconot-contrast", "", WZ_BENIGN, "", NULL } },
        { "beavertails",
          ".jsonl",
          "{\"prompt\": \"x\", \"response\": \"r\", \"category\": {\"violence\": true}, \"is_safe\": false}\n"
          "{\"prompt\": \"y\", \"response\": \"r\", \"category\": {\"violence\": false}, \"is_safe\": true}\n",
          1,
          { "x", "1", "beavertails", "x", WZ_HARMFUL, "", NULL } },
        { "star-1",
          ".json",
          "[{\"id\": \"a\", \"question\": \"x\", \"response\": \"r\", \"category\": [], \"source\": \"s\"}]",
          1,
          { "x", "a", "star-1", "", WZ_HARMFUL, "", NULL } },
        { "gsm8k",
          ".jsonl",
          "{\"question\": \"x\", \"answer\": \"#### 3\"}",
          1,
          { "x", "1", "gsm8k", "", WZ_BENIGN, "#### 3", NULL } },
        { "math",
          ".jsonl",
          "{\"problem\": \"x\", \"level\": \"Level 1\", \"type\": \"Algebra\", \"solution\": \"s\"}",
          1,
          { "x", "1", "math", "", WZ_BENIGN, "", NULL } },
        { "alpaca-eval",
          ".json",
          "[{\"dataset\": \"d\", \"instruction\": \"x\", \"output\": \"o\", \"generator\": \"g\"}]",
          1,
          { "x", "1", "alpaca-eval", "", WZ_BENIGN, "", NULL } },
        { "ifeval",
          ".jsonl",
          "{\"key\": 1, \"prompt\": \"x\", \"instruction_id_list\": [\"a:b\"], \"kwargs\": [{}]}",
          1,
          { "x", "1", "ifeval", "", WZ_BENIGN, "{\"ids\":[\"a:b\"],\"kwargs\":[{}]}", NULL } },
    };

    for (size_t i = 0; i < WZ_COUNT(cases); i++) {
        struct wz_prompts set;
        struct wz_err err;
        char *stem = test_scratch("rows"), *path = wz_path("%s%s", stem, cases[i].ending);
        assert_int_equal(wz_file_write(path, cases[i].text, strlen(cases[i].text), &err), 0);
        read_as(&set, cases[i].dataset, path, "");
        const struct wz_prompt *p = &set.list[set.n - 1], *want = &cases[i].last;
        if (set.n != cases[i].n || strcmp(p->text, want->text) || strcmp(p->id, want->id) ||
            strcmp(p->kind, want->kind) || strcmp(p->group, want->group) || strcmp(p->answer, want->answer) ||
            p->harm != want->harm)
            fail_msg("%s: %d rows, the last: %s, id %s, kind %s, group '%s', answer %s, %s", cases[i].dataset, set.n,
                     p->text, p->id, p->kind, p->group, p->answer, p->harm ? "harmful" : "benign");
        wz_prompts_finish(&set);
        remove(path);
        free(path);
        free(stem);
    }
}

static void a_given_key_overrides(void **state)
{
    struct wz_prompts set;
    struct wz_err err;
    char *path = test_scratch("rows.csv");
    static const char text[] = "id,prompt,type,label,other\n1,x,a,safe,p\n2,y,b,unsafe,q\n3,z,b,safe,\n";

    assert_int_equal(wz_file_write(path, text, strlen(text), &err), 0);
    read_as(&set, "xstest", path, ", kind: type, only: 'type=c|b', column: 'other|prompt'");
    assert_int_equal(set.n, 2);
    assert_string_equal(set.list[0].text, "q");
    assert_string_equal(set.list[0].kind, "b");
    assert_int_equal(set.list[0].harm, WZ_HARMFUL);
    assert_string_equal(set.list[1].text, "z"); /* its cell of `other` is empty */
    wz_prompts_finish(&set);
    free(path);
}

/* The next element of the list, without a data set, has the keys' own defaults; a saved recipe loads as the same. */
static void the_resolved_recipe_has_every_column(void **state)
{
    struct wz_recipe *r, *again;
    struct wz_err err = { "" };
    char *path = test_scratch("saved.yaml");

    if (load(&r, "eval: [{dataset: advbench, path: a.csv}, {path: b.csv}]", &err) < 0) fail_msg("%s", err.text);
    assert_string_equal(r->eval[0].column, "goal");
    assert_string_equal(r->eval[0].harmful, "=harmful");
    assert_string_equal(r->eval[0].group, "group");
    assert_string_equal(r->eval[1].column, "prompt");
    assert_string_equal(r->eval[1].harmful, "harmful");
    assert_string_equal(r->eval[1].dataset, "");
    assert_int_equal(wz_recipe_save(r, path, &err), 0);
    if (wz_recipe_load(&again, path, NULL, 0, &err) < 0) fail_msg("%s", err.text);
    assert_string_equal(again->eval[0].column, "goal");
    assert_string_equal(again->eval[1].kind, "");
    struct wz_buf named = { 0 };
    wz_recipe_datasets(again, &named);
    assert_string_equal(named.data, "eval.0: advbench, licence MIT; for evaluation; what a part of it trains is not "
                                    "measured by that part; published at https://github.com/llm-attacks/llm-attacks\n");
    wz_buf_finish(&named);
    wz_recipe_destroy(r);
    /* What the data set's name stands for is written out, so a run resumes with either form. */
    char *long_form = "eval: [{path: a.csv, column: goal, harmful: '=harmful', kind: '=advbench'}, {path: b.csv}]";
    if (load(&r, long_form, &err) < 0) fail_msg("%s", err.text);
    if (wz_recipe_resumes(again, r, &err) < 0) fail_msg("%s", err.text);
    wz_recipe_destroy(r);
    wz_recipe_destroy(again);
    free(path);
}

static void wrong_is_named(void **state)
{
    static const char *const cases[][2] = {
        { "data: [{path: a.jsonl, dataset: fortress}]", "data.0.dataset: fortress is for evaluation only" },
        { "data: [{path: a.jsonl}, {path: a.jsonl, dataset: fortress-benign}]", "data.1.dataset: fortress-benign is" },
        { "eval: [{path: a.jsonl, dataset: xtest}]", "eval.0.dataset: there is no data set 'xtest': expected one of" },
    };
    static const char *const bad[][3] = {
        { "type", "other=x", "expected COLUMN=VALUE|VALUE of the rows to take, got \"type\"" },
        { "kind=a", "label", "row 2: no column \"kind\"; the columns are: prompt, type, label" },
        { "type=c", "label", "no row has type=c" },
        { "", "kind=a", "row 2: no column \"kind\"" },
    };
    struct wz_recipe *r;
    struct wz_prompts set;
    struct wz_err err;
    char *path = test_scratch("rows.csv");
    static const char text[] = "prompt,type,label\nx,a,safe\n";

    for (size_t i = 0; i < WZ_COUNT(cases); i++) {
        assert_int_equal(load(&r, cases[i][0], &err), -1);
        if (!strstr(err.text, cases[i][1]) || !strstr(err.text, ":3: ")) fail_msg("%s", err.text);
    }
    assert_int_equal(wz_file_write(path, text, strlen(text), &err), 0);
    for (size_t i = 0; i < WZ_COUNT(bad); i++) {
        assert_int_equal(wz_prompts_load(&set, path, "prompt", bad[i][1], "", "group", bad[i][0], NULL, &err), -1);
        if (!strstr(err.text, bad[i][2])) fail_msg("%s", err.text);
    }
    free(path);
}

/* The publishers' own files, where they are. */
static void real_files(void **state)
{
    static const struct {
        const char *dataset, *file;
        int rows, harmful;
    } sets[] = {
        { "xstest", "xstest/xstest_prompts.csv", 450, 200 },
        { "advbench", "advbench/harmful_behaviors.csv", 513, 513 },
        { "harmbench", "harmbench/harmbench_behaviors_text_test.csv", 320, 320 },
        { "or-bench-hard", "orbench/or_bench-hard-1k.csv", 879, 0 },
        { "or-bench-toxic", "orbench/or_bench-toxic.csv", 437, 437 },
        { "star-1", "star1/STAR-1.json", 994, 994 },
        { "gsm8k", "gsm8k/test.jsonl", 1319, 0 },
        { "ifeval", "ifeval/input_data.jsonl", 541, 0 },
    };

    for (size_t i = 0; i < WZ_COUNT(sets); i++) {
        struct wz_prompts set;
        char *path = test_data(sets[i].file);
        int harmful = 0;
        read_as(&set, sets[i].dataset, path, "");
        for (int k = 0; k < set.n; k++) harmful += set.list[k].harm == WZ_HARMFUL;
        assert_int_equal(set.n, sets[i].rows);
        assert_int_equal(harmful, sets[i].harmful);
        wz_prompts_finish(&set);
        free(path);
    }
}

static void the_reference_is_up_to_date(void **state)
{
    struct wz_map map;
    struct wz_err err;
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);

    wz_datasets_help(out, true);
    fclose(out);
    if (wz_map_open(&map, reference, &err) < 0) fail_msg("%s", err.text);
    if (map.len != n || memcmp(map.bytes, text, n))
        fail_msg("%s differs from the table: waltz help datasets --markdown >docs/datasets.md", reference);
    wz_map_close(&map);
    free(text);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_layouts_are_read),
        cmocka_unit_test(a_given_key_overrides),
        cmocka_unit_test(the_resolved_recipe_has_every_column),
        cmocka_unit_test(wrong_is_named),
        cmocka_unit_test(real_files),
        cmocka_unit_test(the_reference_is_up_to_date),
    };

    reference = argc > 1 ? argv[1] : "docs/datasets.md";
    return cmocka_run_group_tests(tests, NULL, NULL);
}
