/* waltz fsck: what of a run is whole, what is lost, what can be repaired (run/fsck.c). */
#include "launch/launch.h"
#include "run/run.h"

#include <stdlib.h>
#include <string.h>

static void print(void *arg, enum wz_fsck_status status, const char *what, const char *why)
{
    static const char *const statuses[] = {
        [WZ_FSCK_OK] = "ok", [WZ_FSCK_NEXT] = "next", [WZ_FSCK_LOST] = "LOST", [WZ_FSCK_FIXED] = "fixed"
    };
    char name[64];
    struct wz_err message; /* which text from outside goes through */

    wz_printable(name, sizeof name, what, strlen(what), "");
    wz_fail(&message, "%s", why);
    printf("%-6s %-18s %s\n", statuses[status], name, message.text);
}

int wz_cmd_fsck(int argc, char **argv)
{
    bool repair = false;
    const struct wz_option options[] = {
        { "repair", 0, WZ_FLAG, &repair, NULL, "set aside what is damaged, and let the run resume without it", 0, 0 },
    };
    const struct wz_usage usage = {
        .name = "fsck",
        .args = "RUN",
        .options = options,
        .n_options = WZ_COUNT(options),
        .about =
            "Checks a run's folder: every file of its checkpoints, and that its newest whole one finds all that the\n"
            "run had written before it. ok is whole; next is put right by the next start; LOST can't be had again,\n"
            "and the run does not resume: restore the file from a copy, or --repair, which takes down in lost.jsonl\n"
            "what is lost. Status 1 where something is LOST.",
    };
    struct wz_recipe *recipe = NULL;
    struct wz_job job = { .root = true };
    struct wz_run run = { .lock = -1 };
    struct wz_err err = { 0 };
    int status, n = wz_options_parse(&usage, argc, argv, &status), lost = -1;

    if (n < 0) return status;
    char *path = wz_path("%s/recipe.yaml", argv[0]), *out = wz_path("out=%s", argv[0]);
    char *const here[] = { (char[]){ "link=self" }, out }; /* the folder may have been moved */
    if (wz_job_recipe(&recipe, &job.link, path, here, (int)WZ_COUNT(here), &err) == 0) {
        job.recipe = recipe;
        if (!repair || wz_run_lock(&run, &job, true, &err) == 0) lost = wz_fsck(&job, repair, print, NULL, &err);
    }
    status = lost < 0 ? wz_give_up("fsck", &err) : lost > 0;
    wz_run_close(&run);
    wz_link_close(&job.link);
    wz_recipe_destroy(recipe);
    free(path);
    free(out);
    return status;
}
