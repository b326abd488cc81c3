/* waltz chat: each line of standard input is a prompt, played as in training: the first reply, the feedback on it, and
 * a revision where the feedback asks for one. Prompts share no history. */
#include "run/run.h"
#include "launch/launch.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What a model wrote is no command to the terminal. */
static void print_text(const char *text)
{
    size_t n = strlen(text), size = 4 * n + 1;
    char *safe = wz_alloc(size);

    wz_printable(safe, size, text, n, "\n\t");
    printf("%s", safe);
    free(safe);
}

static void print_turns(const struct wz_job *job, const Wz__Episode *e)
{
    static const char *const verdicts[2][2] = { { "satisfied", "overrefuses" }, { "unsafe", "unsafe, overrefuses" } };

    for (size_t i = 0; i < e->n_turns; i++) {
        const Wz__Turn *t = e->turns[i];
        printf("%-12s  ", job->agents[t->agent].recipe->name);
        print_text(t->text);
        printf("%s\n", t->truncated ? " ..." : "");
        if (!wz_turn_is(t, WZ_FEEDBACK)) continue;
        if (!t->valid) {
            printf("%-12s  (invalid feedback: ", "");
            print_text(t->reason);
            printf(")\n");
        } else printf("%-12s  (%s)\n", "", verdicts[!!t->unsafe][!!t->overrefuse]);
    }
    if (e->cut[0]) printf("(%s)\n", e->cut);
}

/* Was the prompt answered? Where not, the reason is printed. */
static bool answer(struct wz_job *job, const char *text, size_t n, int64_t number, bool all)
{
    Wz__Episode *e = wz_episode_new();
    bool well;

    e->step = number;
    wz_set_string(&e->prompt, text, n);
    wz_play(&job->game, &e, 1);
    well = !e->discard[0];
    if (well && all) print_turns(job, e);
    else {
        print_text(well ? e->turns[wz_turn_last(e, WZ_CONVERSATION)]->text : e->discard);
        printf("\n");
    }
    fflush(stdout);
    wz_episode_free(e);
    return well;
}

int wz_cmd_chat(int argc, char **argv)
{
    const bool person = isatty(STDIN_FILENO);
    bool brief = false, refused = false;
    double temperature = 0;
    int step = -1;
    const struct wz_option options[] = {
        { "brief", 0, WZ_FLAG, &brief, NULL, "print the final reply only", 0, 0 },
        { "temperature", 0, WZ_NUMBER, &temperature, "T", "sampling temperature of both agents; 0 is greedy", 0, 100 },
        { "step", 0, WZ_INT, &step, "N", "of a run: its checkpoint after N steps; -1: the newest", -1, 2e9 },
    };
    const struct wz_usage usage = {
        .name = "chat",
        .args = "RUN|RECIPE [key=value ...]",
        .options = options,
        .n_options = (int)WZ_COUNT(options),
        .about =
            "Talks with the agents of a run's newest checkpoint, or of a recipe. Each line of standard input is a\n"
            "prompt; each stands alone. Where they don't come from a terminal, the exit status is 1 when one could\n"
            "not be answered.",
    };
    struct wz_recipe *recipe = NULL;
    struct wz_job job = { 0 };
    struct wz_input lines = { .fd = STDIN_FILENO };
    struct wz_err err = { 0 };
    char **keys = wz_alloc(sizeof *keys * (size_t)(argc + 1)), *path;
    const char *line;
    size_t len;
    int status, n = wz_options_parse(&usage, argc, argv, &status), more = 0;

    if (n < 0) goto out;
    status = 1;
    path = wz_recipe_path(argv[0]);
    memcpy(keys, argv + 1, sizeof *keys * (size_t)(n - 1));
    keys[n - 1] = (char[]){ "link=self" };
    if (wz_job_recipe(&recipe, &job.link, path, keys, n, &err) < 0 ||
        wz_checkpoint_play(&job, recipe, argv[0], step, &err) < 0)
        wz_give_up("chat", &err);
    else {
        for (int a = 0; a < job.n_agents; a++) job.agents[a].player.temperature = (float)temperature;
        for (int64_t number = 0;; number++) {
            if (person) fprintf(stderr, "> ");
            more = wz_input_next(&lines, &line, &len, &err);
            if (more <= 0) break;
            if (len) refused |= !answer(&job, line, len, number, !brief);
        }
        status = more < 0 ? wz_give_up("chat", &err) : refused && !person;
    }
    wz_input_finish(&lines);
    wz_job_close(&job);
    wz_recipe_destroy(recipe);
    free(path);
out:
    free(keys);
    return status;
}
