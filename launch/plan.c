/* waltz plan: every buffer of every kind of rank, their sums, and whether they fit (run/plan.c). */
#include "launch/launch.h"

#include <stdlib.h>

#include "run/run.h"

int wz_cmd_plan(int argc, char **argv)
{
    int ranks = 0, hosts = 1, gpus = 0, status;
    double device = 0, host = 0;
    bool as_json = false;
    const struct wz_option options[] = {
        { "ranks", 'n', WZ_INT, &ranks, "N", "ranks of the job (0: those that the recipe asks for, else 1)", 0,
          WZ_MAX_RANKS },
        { "hosts", 0, WZ_INT, &hosts, "N", "hosts that they are spread over, in blocks", 1, WZ_MAX_RANKS },
        { "gpus", 0, WZ_INT, &gpus, "N", "GPUs of a host (0: as many as here)", 0, 64 },
        { "device-memory", 0, WZ_NUMBER, &device, "GB",
          "of the device that computes, GPU or host (0: what is free here)", 0, 1e6 },
        { "json", 'j', WZ_FLAG, &as_json, "", "print one JSON object, sizes in bytes", 0, 0 },
        { "host-memory", 0, WZ_NUMBER, &host, "GB", "of a host (0: what is free here)", 0, 1e6 },
    };
    const struct wz_usage usage = {
        .name = "plan",
        .args = "RECIPE [key=value ...]",
        .options = options,
        .n_options = WZ_COUNT(options),
        .about =
            "Prints every buffer that a run of the recipe will allocate, by kind of rank and by agent, and their\n"
            "sums for each host and GPU; status 1 and the largest of them where they don't fit. Of the models\n"
            "only config.json or a GGUF's header is read, so that a plan for a machine that is elsewhere takes no\n"
            "time: --device-memory 80 backend=cuda.",
    };
    struct wz_recipe *recipe = NULL;
    struct wz_plan *plan = wz_alloc(sizeof *plan);
    struct wz_err err = { 0 };
    int n = wz_options_parse(&usage, argc, argv, &status), rc;

    if (n < 0) {
        free(plan);
        return status;
    }
    rc = wz_recipe_load(&recipe, argv[0], argv + 1, n - 1, &err);
    if (rc == 0 && !ranks) {
        int wanted = recipe->ranks.rollout + recipe->ranks.reward + recipe->ranks.learner;
        ranks = wanted ? wanted : 1;
    }
    if (rc == 0) rc = wz_plan_make(plan, recipe, NULL, ranks, hosts, &err);
    if (rc == 0) {
        struct wz_plan_machine *m = &plan->machine;
        if (gpus && m->gpus) m->gpus = gpus;
        if (device > 0) *(m->gpus ? &m->device : &m->host) = (size_t)(device * 1e9);
        if (host > 0) m->host = (size_t)(host * 1e9);
        rc = wz_plan_check(plan, &err);
        if (as_json) wz_print_json(wz_plan_json(plan, rc < 0 ? err.text : NULL));
        else wz_plan_print(plan, stdout);
    }
    status = rc < 0 ? wz_give_up("plan", &err) : 0;
    wz_recipe_destroy(recipe);
    free(plan);
    return status;
}
