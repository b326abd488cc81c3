/* Published data sets, as rows: what their files call what data[] and eval[] ask for, who publishes them, under which
 * licence, and what for. A row is the defaults of those keys where `dataset` names it; a key that is given overrides
 * it. Files are read as they are published; Parquet is made JSON lines first (PARQUET). */
#include "recipe/recipe.h"

#include <string.h>

#define HUB "https://huggingface.co/datasets/"
#define GIT "https://github.com/"
#define PARQUET                                                        \
    "python3 -c 'import sys, pandas; pandas.read_parquet(sys.argv[1])" \
    ".to_json(sys.argv[2], orient=\"records\", lines=True)' FILE.parquet FILE.jsonl"

/* kind, group and only are NULL where they are the key's own default. */
static const struct wz_dataset datasets[] = {
    { "wildjailbreak-train", "train/train.tsv", "adversarial|vanilla", "data_type=vanilla_harmful|adversarial_harmful",
      "data_type", "vanilla", NULL, "ODC-BY, gated", HUB "allenai/wildjailbreak", WZ_DATA_TRAIN, NULL },
    { "wildjailbreak-eval", "eval/eval.tsv", "adversarial", "data_type=adversarial_harmful", "data_type", NULL, NULL,
      "ODC-BY, gated", HUB "allenai/wildjailbreak", WZ_DATA_EVAL, NULL },
    { "or-bench-80k", "or-bench-80k.csv", "prompt", "=benign", "=or-bench-80k", NULL, NULL, "CC-BY-4.0",
      HUB "bench-llm/or-bench", WZ_DATA_TRAIN, NULL },
    { "or-bench-hard", "or-bench-hard-1k.csv", "prompt", "=benign", "=or-bench-hard", NULL, NULL, "CC-BY-4.0",
      HUB "bench-llm/or-bench", WZ_DATA_EVAL, NULL },
    { "or-bench-toxic", "or-bench-toxic.csv", "prompt", "=harmful", "=or-bench-toxic", NULL, NULL, "CC-BY-4.0",
      HUB "bench-llm/or-bench", WZ_DATA_EVAL, NULL },
    { "fortress", "Parquet", "adversarial_prompt", "=harmful", "=fortress", "ID", NULL,
      "see its card: for safety evaluation only, no adversarial training", HUB "ScaleAI/fortress_public", WZ_DATA_NEVER,
      NULL },
    { "fortress-benign", "Parquet", "benign_prompt", "=benign", "=fortress-benign", "ID", NULL,
      "see its card: for safety evaluation only, no adversarial training", HUB "ScaleAI/fortress_public", WZ_DATA_NEVER,
      NULL },
    { "strongreject", "strongreject_dataset/strongreject_dataset.csv", "forbidden_prompt", "=harmful", "=strongreject",
      NULL, NULL, "MIT", GIT "alexandrasouly/strongreject", WZ_DATA_EVAL, NULL },
    { "xstest", "xstest_prompts.csv", "prompt", "label", "=xstest", NULL, NULL, "CC-BY-4.0",
      GIT "paul-rottger/exaggerated-safety", WZ_DATA_EVAL, NULL },
    { "advbench", "data/advbench/harmful_behaviors.csv", "goal", "=harmful", "=advbench", NULL, NULL, "MIT",
      GIT "llm-attacks/llm-attacks", WZ_DATA_EVAL, NULL },
    { "harmbench", "data/behavior_datasets/harmbench_behaviors_text_{val,test}.csv", "Behavior", "=harmful",
      "=harmbench", NULL, NULL, "MIT", GIT "centerforaisafety/HarmBench", WZ_DATA_EVAL, NULL },
    { "do-not-answer", "Parquet", "question", "=harmful", "=do-not-answer", NULL, NULL, "CC-BY-NC-SA-4.0",
      HUB "LibrAI/do-not-answer", WZ_DATA_EVAL, NULL },
    { "jailbreakbench", "data/harmful-behaviors.csv", "Goal", "=harmful", "=jailbreakbench", NULL, NULL, "MIT",
      HUB "JailbreakBench/JBB-Behaviors", WZ_DATA_EVAL, NULL },
    { "jailbreakbench-benign", "data/benign-behaviors.csv", "Goal", "=benign", "=jailbreakbench-benign", NULL, NULL,
      "MIT", HUB "JailbreakBench/JBB-Behaviors", WZ_DATA_EVAL, NULL },
    { "simple-safety-tests", "CSV", "prompt", "=harmful", "=simple-safety-tests", NULL, NULL, "CC-BY-2.0",
      HUB "Bertievidgen/SimpleSafetyTests", WZ_DATA_EVAL, NULL },
    { "coconot", "original/{train,test}: Parquet", "prompt", "=harmful", "=coconot", NULL,
      "category=Requests with safety concerns", "ODC-BY", HUB "allenai/coconot", WZ_DATA_TRAIN, NULL },
    { "coconot-contrast", "contrast/test: Parquet", "prompt", "=benign", "=coconot-contrast", NULL, NULL, "ODC-BY",
      HUB "allenai/coconot", WZ_DATA_EVAL, NULL },
    { "beavertails", "round0/30k/{train,test}.jsonl.gz", "prompt", "=harmful", "=beavertails", "prompt",
      "is_safe=false", "CC-BY-NC-4.0", HUB "PKU-Alignment/BeaverTails", WZ_DATA_TRAIN, NULL },
    { "star-1", "data/STAR-1.json", "question", "=harmful", "=star-1", NULL, NULL, "Apache-2.0", GIT "UCSC-VLAA/STAR-1",
      WZ_DATA_TRAIN, NULL },
    { "gsm8k", "grade_school_math/data/{train,test}.jsonl", "question", "=benign", "=gsm8k", NULL, NULL, "MIT",
      GIT "openai/grade-school-math", WZ_DATA_TRAIN, "answer" },
    { "math", "{train,test}/*/*.json, joined to JSON lines; or MATH-500's test.jsonl", "problem", "=benign", "=math",
      NULL, NULL, "MIT", GIT "hendrycks/math", WZ_DATA_TRAIN, NULL },
    { "alpaca-eval", "alpaca_eval.json", "instruction", "=benign", "=alpaca-eval", NULL, NULL, "CC-BY-NC-4.0",
      HUB "tatsu-lab/alpaca_eval", WZ_DATA_EVAL, NULL },
    { "ifeval", "instruction_following_eval/data/input_data.jsonl", "prompt", "=benign", "=ifeval", NULL, NULL,
      "Apache-2.0", GIT "google-research/google-research", WZ_DATA_EVAL, "instruction_id_list" },
    { 0 },
};

static const char *const uses[] = {
    [WZ_DATA_TRAIN] = "training and evaluation",
    [WZ_DATA_EVAL] = "evaluation; what a part of it trains is not measured by that part",
    [WZ_DATA_NEVER] = "evaluation only; a recipe that trains on it is refused",
};

const struct wz_dataset *wz_dataset_find(const char *name, struct wz_err *err)
{
    return wz_row_find(datasets, sizeof *datasets, "data set", name, err);
}

const char *wz_dataset_use(const struct wz_dataset *set) { return uses[set->use]; }

const char *wz_dataset_default(const struct wz_dataset *set, const char *key)
{
    const struct {
        const char *key, *value;
    } values[] = {
        { "column", set->column }, { "harmful", set->harmful }, { "kind", set->kind },
        { "group", set->group },   { "answer", set->answer },   { "only", set->only },
    };

    for (size_t i = 0; i < WZ_COUNT(values); i++)
        if (!strcmp(values[i].key, key)) return values[i].value;
    return NULL;
}

static void describe(struct wz_buf *out, const char *list, const struct wz_recipe_data *data, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        const struct wz_dataset *set = *data[i].dataset ? wz_dataset_find(data[i].dataset, NULL) : NULL;
        if (set)
            wz_buf_printf(out, "%s.%u: %s, licence %s; for %s; published at %s\n", list, i, set->name, set->licence,
                          wz_dataset_use(set), set->where);
    }
}

void wz_recipe_datasets(const struct wz_recipe *recipe, struct wz_buf *out)
{
    describe(out, "data", recipe->data, recipe->n_data);
    describe(out, "eval", recipe->eval, recipe->n_eval);
}

/* A cell of Markdown may hold no bar; an empty value is the key's own default. */
static void print_cell(FILE *out, const char *s)
{
    if (!s) fprintf(out, " |");
    else fprintf(out, " `");
    for (const char *c = s; c && *c; c++) fprintf(out, *c == '|' ? "\\|" : "%c", *c);
    if (s) fprintf(out, "` |");
}

void wz_datasets_help(FILE *out, bool markdown)
{
    if (markdown) fprintf(out, "# Data sets\n\nMade by `waltz help datasets --markdown`; do not edit.\n\n");
    fprintf(out,
            "`dataset: NAME` in an element of data[] or eval[] gives column, harmful, kind, group, only, answer the\n"
            "values below: a file is read as it is published. A key that is given overrides them, and an\n"
            "empty cell is the key's own default. Licences and uses are a reminder: the publisher's own page decides.\n"
            "A Parquet file is made JSON lines first:\n\n    " PARQUET "\n\n");
    if (markdown)
        fprintf(out,
                "| dataset | published | file | column | harmful | kind | group | only | answer | licence | for |\n"
                "|---|---|---|---|---|---|---|---|---|---|---|\n");
    for (const struct wz_dataset *set = datasets; set->name; set++) {
        if (!markdown) {
            fprintf(out, "%-21s  %s of %s\n                       licence %s; for %s\n", set->name, set->file,
                    set->where, set->licence, wz_dataset_use(set));
            continue;
        }
        fprintf(out, "| `%s` | [%s](%s) |", set->name, strchr(strstr(set->where, "//") + 2, '/') + 1, set->where);
        const char *const cells[] = { set->file,  set->column, set->harmful, set->kind,
                                      set->group, set->only,   set->answer };
        for (size_t i = 0; i < WZ_COUNT(cells); i++) print_cell(out, cells[i]);
        fprintf(out, " %s | %s |\n", set->licence, wz_dataset_use(set));
    }
}
