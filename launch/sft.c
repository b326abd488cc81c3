/* waltz sft: the stage that a recipe's section sft: describes, run as `waltz train` runs its stages; then the trained
 * model as a hub folder in sft.out. All ranks are learners. */
#include "run/run.h"
#include "launch/launch.h"

int wz_cmd_sft(int argc, char **argv)
{
    static const struct wz_usage usage = {
        .name = "sft",
        .args = "RECIPE [key=value ...]",
        .about =
            "Supervised warm start: trains the model sft.model on the conversations of sft.data (rows of JSON, loss\n"
            "on the assistant's tokens only) and writes it to sft.out, the run's folder: metrics, chain,\n"
            "checkpoints. Alone, or on 2, 4 or 8 ranks under mpirun. Stopped or killed, the same command resumes\n"
            "from the last checkpoint.",
    };
    struct wz_recipe *recipe = NULL;
    struct wz_job job = { 0 };
    struct wz_err err = { 0 };
    int status, n = wz_options_parse(&usage, argc, argv, &status);

    if (n < 0) return status;
    wz_stop_watch();
    if (wz_job_recipe(&recipe, &job.link, argv[0], argv + 1, n - 1, &err) < 0 ||
        wz_link_agree(&job.link, wz_recipe_sft(&recipe, &err), &err) < 0)
        status = wz_give_up("sft", &err);
    else status = wz_train("sft", &job, recipe);
    if (status == 0 && job.root) {
        const struct wz_agent *a = job.agents;
        if (wz_model_save(a->model, recipe->out, 0, &err) < 0 || wz_tokenizer_save(a->tok, recipe->out, &err) < 0)
            wz_die("sft: %s", err.text);
        wz_log("wrote the model to %s", recipe->out);
    }
    wz_job_close(&job);
    wz_recipe_destroy(recipe);
    return status;
}
