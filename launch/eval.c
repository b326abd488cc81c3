/* waltz eval: the held-out prompts of a recipe or of a finished run, as a table. */
#include "run/run.h"
#include "launch/launch.h"

#include <stdlib.h>
#include <string.h>

static int print(const struct wz_table *table, const char *format, struct wz_err *err)
{
    struct wz_buf text = { 0 };
    int rc = 0;

    if (!strcmp(format, "json")) {
        wz_print_json(wz_table_json(table));
        return 0;
    }
    if (!strcmp(format, "csv")) wz_table_csv(table, &text);
    else if (!strcmp(format, "markdown")) wz_table_markdown(table, &text);
    else wz_table_text(table, &text);
    if (text.len && fwrite(text.data, 1, text.len, stdout) != text.len)
        rc = wz_fail(err, "standard output could not be written");
    wz_buf_finish(&text);
    return rc;
}

int wz_cmd_eval(int argc, char **argv)
{
    const char *format = "text", *phase = "eval", *transcripts = NULL;
    double temperature = -1;
    bool as_json = false;
    int limit = -1, step = -1;
    const struct wz_option options[] = {
        { "format", 0, WZ_TEXT, &format, "text|markdown|csv|json", "how the table is printed", 0, 0 },
        { "json", 'j', WZ_FLAG, &as_json, "", "the same as --format json", 0, 0 },
        { "temperature", 0, WZ_NUMBER, &temperature, "T", "sampling temperature; 0 is greedy; -1: what the recipe says",
          -1, 100 },
        { "limit", 0, WZ_INT, &limit, "N", "prompts of a kind at most; 0: all; -1: what the recipe says", -1, 1e9 },
        { "step", 0, WZ_INT, &step, "N", "of a run: its checkpoint after N steps; -1: the newest", -1, 2e9 },
        { "phase", 0, WZ_TEXT, &phase, "NAME", "what the table calls these results", 0, 0 },
        { "transcripts", 0, WZ_TEXT, &transcripts, "FILE", "append every episode to FILE as JSON lines", 0, 0 },
    };
    const struct wz_usage usage = {
        .name = "eval",
        .args = "RECIPE|RUN [key=value ...]",
        .options = options,
        .n_options = (int)WZ_COUNT(options),
        .about = "Plays the held-out prompts (recipe key `eval`) and prints attack success (asr), overrefusal (orr),\n"
                 "F1 of both, feedback trigger rate (ftr), label accuracy and JSON errors, by kind of prompt and on\n"
                 "average, with 95% intervals over groups of prompts where their file has groups. A RUN is a run's\n"
                 "folder: its newest checkpoint is evaluated; a RECIPE: the models it names.",
    };
    struct wz_recipe *recipe = NULL;
    struct wz_job job = { 0 };
    struct wz_table table = { 0 };
    struct wz_err err = { 0 };
    char *path;
    int status, n = wz_options_parse(&usage, argc, argv, &status);

    if (n < 0) return status;
    status = 1;
    path = wz_recipe_path(argv[0]);
    if (wz_job_recipe(&recipe, &job.link, path, argv + 1, n - 1, &err) < 0 ||
        (!recipe->n_eval && wz_fail(&err, "%s: no held-out prompts (key eval)", path) < 0) ||
        wz_checkpoint_play(&job, recipe, argv[0], step, &err) < 0 ||
        wz_link_agree(&job.link, wz_inputs_alike(&job, &err), &err) < 0)
        wz_give_up("eval", &err);
    else if (wz_evaluate(&job, phase, temperature < 0 ? recipe->evaluate.temperature : temperature,
                         limit < 0 ? recipe->evaluate.eval_limit : limit, &table, transcripts, &err) < 0 ||
             (job.root && print(&table, as_json ? "json" : format, &err) < 0))
        wz_die("eval: %s", err.text);
    else status = 0;
    wz_table_finish(&table);
    wz_job_close(&job);
    wz_recipe_destroy(recipe);
    free(path);
    return status;
}
