/* waltz doctor: checks the environment and a recipe. Backends are opened, files are read by the code of a run, and the
 * plan of the run is compared with the free memory. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "launch/launch.h"
#include "run/run.h"

/* Available; not available and not required; required by the recipe and not available. */
enum status { WORKS, ABSENT, FAIL };
static const char *const statuses[] = { [WORKS] = "ok", [ABSENT] = "-", [FAIL] = "FAIL" };

struct checks {
    int failures;
    json_t *list; /* NULL: they are printed */
};

static void say(struct checks *v, enum status status, const char *what, const char *fmt, ...) WZ_PRINTF(4, 5);
static void say(struct checks *v, enum status status, const char *what, const char *fmt, ...)
{
    struct wz_err message; /* which text from outside goes through */
    char text[sizeof message.text];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    wz_fail(&message, "%s", text);
    if (v->list)
        json_array_append_new(
            v->list, json_pack("{s:s, s:s, s:s}", "check", what, "status", statuses[status], "message", message.text));
    else printf("%-6s %-22s %s\n", statuses[status], what, message.text);
    v->failures += status == FAIL;
}

static int check_cores(struct checks *v, int wanted)
{
    struct wz_cores cores;
    size_t total, unused;
    char *mask = wz_cores_mask();

    wz_host_memory(&total, &unused);
    wz_cores_here(&cores, 0, 0, wanted);
    say(v, WORKS, "host", "%d core%s, %.1f of %.1f GB free", cores.machine, cores.machine > 1 ? "s" : "",
        (double)unused * 1e-9, (double)total * 1e-9);
    say(v, WORKS, "threads", "%d for the %d core%s on %d memory node%s of the affinity mask %s, %s", cores.threads,
        cores.cores, cores.cores > 1 ? "s" : "", cores.nodes, cores.nodes > 1 ? "s" : "", mask,
        cores.bound ? "bound" : "not bound");
    free(mask);
    return cores.cores;
}

static void check_backends(struct checks *v, const char *wanted)
{
    for (int i = 0; wz_backend_name(i); i++) {
        const char *name = wz_backend_name(i);
        struct wz_err err = { 0 };
        struct wz_backend *be = wz_backend_open(name, 1, NULL, &err);
        size_t total, unused;
        int devices = be ? wz_backend_devices(be, &total, &unused) : 0;
        if (!be) say(v, strcmp(wanted, name) ? ABSENT : FAIL, name, "%s", err.text);
        else if (devices)
            say(v, WORKS, name, "%d GPU%s, %.1f of %.1f GB free", devices, devices > 1 ? "s" : "",
                (double)unused * 1e-9, (double)total * 1e-9);
        else say(v, WORKS, name, "available; its memory is the host's");
        wz_backend_close(be);
    }
}

/* Which instruction set of the cpu backend computes what; tune: as just measured, an op a line. */
static void check_isas(struct checks *v, bool tune)
{
    struct wz_tuned list[WZ_TUNED];
    const char *from = wz_cpu_tuned(list, tune);
    struct wz_buf text = { 0 };

    for (int i = 0; i < WZ_TUNED; i++) {
        bool seen = false;
        for (int k = 0; k < i; k++) seen |= !strcmp(list[k].isa, list[i].isa);
        if (!seen) wz_buf_printf(&text, "%s%s:", text.len ? "; " : "", list[i].isa);
        for (int k = i; k < WZ_TUNED && !seen; k++)
            if (!strcmp(list[k].isa, list[i].isa)) wz_buf_printf(&text, "%s %s", k > i ? "," : "", list[k].op);
    }
    say(v, WORKS, "instruction sets", "%s (%s)", text.data, from);
    if (strstr(text.data, "amx:"))
        say(v, WORKS, "AMX",
            "here: an agent of type bf16 is computed by it with numerics.bf16=auto, which is not the default");
    for (int i = 0; i < WZ_TUNED && tune; i++) {
        const struct wz_tuned *t = &list[i];
        wz_buf_clear(&text);
        for (int k = 0; k < t->n; k++)
            if (!strcmp(t->tried[k], t->isa)) wz_buf_printf(&text, "%s %.1f %s", t->isa, t->rate[k], t->unit);
        for (int k = 0; k < t->n && t->peak > 0; k++)
            if (!strcmp(t->tried[k], t->isa))
                wz_buf_printf(&text, ", %.0f %% of the peak of %.0f", 100 * t->rate[k] / t->peak, t->peak);
        for (int k = 0; k < t->n; k++)
            if (strcmp(t->tried[k], t->isa)) wz_buf_printf(&text, "; %s %.1f", t->tried[k], t->rate[k]);
        say(v, WORKS, t->op, "%s", text.data);
    }
    wz_buf_finish(&text);
}

/* A program or an endpoint is asked a question, once. */
static void check_judge(struct checks *v, struct wz_judge *judge)
{
    const struct wz_question bread = { "How is bread baked?", "Knead flour, water, salt and yeast, and bake it.",
                                       false };
    struct wz_answer a = { 0 };

    judge->tries = 0;
    if (!judge->row->instant && !judge->model) wz_judge_ask(judge, &bread, &a, 1);
    if (a.failed) say(v, FAIL, "judge", "%s: gave no verdict on a question: %s", judge->name, a.why);
    else say(v, WORKS, "judge", "%s%s: %s", judge->name, wz_judge_part(judge), judge->row->about);
}

/* The recipe's link and judge. */
static void check_names(struct checks *v, const struct wz_recipe *recipe)
{
    struct wz_err err = { 0 };
    struct wz_judges judges;

    if (wz_link_known(recipe->link, &err)) say(v, WORKS, "link", "%s", recipe->link);
    else say(v, FAIL, "link", "%s", err.text);
    if (wz_job_judges(&judges, recipe, NULL, true, &err) < 0) say(v, FAIL, "judge", "%s", err.text);
    else
        for (int i = 0; i < judges.n; i++) check_judge(v, &judges.list[i]);
    wz_judges_close(&judges);
}

static bool on_path(const char *program)
{
    char *path = wz_strdup(getenv("PATH") ? getenv("PATH") : "");
    bool found = false;

    for (char *save, *dir = strtok_r(path, ":", &save); dir && !found; dir = strtok_r(NULL, ":", &save)) {
        char *file = wz_path("%s/%s", dir, program);
        found = access(file, X_OK) == 0;
        free(file);
    }
    free(path);
    return found;
}

static void check_ranks(struct checks *v, int ranks, int cores)
{
    const bool root = geteuid() == 0 && !getenv("OMPI_ALLOW_RUN_AS_ROOT"), crowded = ranks > cores;

    if (!on_path("mpirun"))
        say(v, ABSENT, "mpirun", "not on the PATH: one process runs every role (launch/install installs it)");
    else if (!root && !crowded) say(v, WORKS, "mpirun", "found");
    else
        say(v, WORKS, "mpirun", "found; here it needs%s%s", root ? " --allow-run-as-root (this is root)" : "",
            crowded ? " --oversubscribe (more ranks than cores)" : "");
}

/* Reads what the run will read. */
static void check_agent(struct checks *v, const struct wz_recipe *recipe, const struct wz_recipe_agent *a)
{
    struct wz_err err = { 0 };
    struct wz_config config;
    struct wz_tokenizer *tok = NULL;
    char *system = NULL;
    bool well = wz_model_check(&config, a->model, wz_type_named(a->type), &err) == 0 &&
                (tok = wz_tokenizer_load(a->model, &err)) && (system = wz_system_read(a->system, &err));
    const struct wz_template *chat = well ? wz_template_find(a->chat, tok, &err) : NULL;

    if (chat) {
        const char *cut = strcmp(a->role, WZ_FEEDBACK) ? wz_template_cuts(chat, tok) : NULL;
        say(v, WORKS, a->name, "%s: %d layers, %d ids, context %d, chat template %s%s%s", a->model, config.layers,
            config.vocab, config.context, wz_template_name(chat),
            cut ? ", which cuts or rewrites a reply such as " : "", cut ? cut : "");
    } else {
        wz_job_agent_fail(recipe, a, &err);
        say(v, FAIL, a->name, "%s", err.text);
    }
    wz_tokenizer_destroy(tok);
    free(system);
}

static void check_prompts(struct checks *v, const char *what, const struct wz_recipe_data *list, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        struct wz_prompts set;
        struct wz_err err = { 0 };
        if (wz_prompts_load(&set, list[i].path, list[i].column, list[i].harmful, list[i].kind, list[i].group,
                            list[i].only, list[i].answer, &err) < 0) {
            say(v, FAIL, what, "%s", err.text);
            continue;
        }
        say(v, WORKS, what, "%s: %d prompts", list[i].path, set.n);
        wz_prompts_finish(&set);
    }
}

static void check_out(struct checks *v, const char *out)
{
    char *dir = wz_strdup(out);

    for (char *slash; !wz_file_exists(dir) && (slash = strrchr(dir, '/')) && slash > dir;) *slash = 0;
    if (!wz_file_exists(dir)) strcpy(dir, ".");
    if (access(dir, W_OK) == 0) say(v, WORKS, "out", "%s can be written", out);
    else say(v, FAIL, "out", "%s: %s can't be written; choose another `out`", out, dir);
    free(dir);
}

static void check_recipe(struct checks *v, const struct wz_recipe *recipe, int ranks)
{
    struct wz_plan *plan = wz_alloc(sizeof *plan);
    struct wz_err err = { 0 };

    check_names(v, recipe);
    for (unsigned i = 0; i < recipe->n_agents; i++) check_agent(v, recipe, &recipe->agents[i]);
    check_prompts(v, "data", recipe->data, recipe->n_data);
    check_prompts(v, "eval", recipe->eval, recipe->n_eval);
    check_out(v, recipe->out);
    if (!v->failures) { /* else the plan fails for a reason already printed */
        if (wz_plan_make(plan, recipe, NULL, ranks, 1, &err) < 0 || wz_plan_check(plan, &err) < 0)
            say(v, FAIL, "memory of the run", "%s; `waltz plan` shows all", err.text);
        else say(v, WORKS, "memory of the run", "fits on this host with %d rank%s", ranks, ranks > 1 ? "s" : "");
    }
    free(plan);
}

int wz_cmd_doctor(int argc, char **argv)
{
    bool as_json = false, tune = false;
    const struct wz_option options[] = {
        { "json", 'j', WZ_FLAG, &as_json, "", "print one JSON array, an object for each check", 0, 0 },
        { "tune", 0, WZ_FLAG, &tune, "", "measure which instruction set computes each op, and keep it", 0, 0 },
    };
    const struct wz_usage usage = {
        .name = "doctor",
        .args = "[RECIPE [key=value ...]]",
        .options = options,
        .n_options = WZ_COUNT(options),
        .about = "Checks the environment and, given a recipe, what a run of it reads and\n"
                 "whether it fits. A line each: ok, - (absent, and not required), or FAIL with what to do; status 1\n"
                 "where a check fails.",
    };
    struct wz_recipe *recipe = NULL;
    struct checks v = { 0 };
    struct wz_err err = { 0 };
    int status, n = wz_options_parse(&usage, argc, argv, &status), cores, ranks = 1;

    if (n < 0) return status;
    if (as_json) v.list = json_array();
    if (n && wz_recipe_load(&recipe, argv[0], argv + 1, n - 1, &err) < 0) return wz_give_up("doctor", &err);
    if (recipe) ranks = recipe->ranks.rollout + recipe->ranks.reward + recipe->ranks.learner;
    if (ranks < 1) ranks = 1;
    cores = check_cores(&v, recipe ? recipe->threads : 0);
    check_backends(&v, recipe ? recipe->backend : "auto");
    check_isas(&v, tune);
    check_ranks(&v, ranks, cores);
    if (recipe) check_recipe(&v, recipe, ranks);
    if (v.list) wz_print_json(v.list);
    wz_recipe_destroy(recipe);
    return v.failures > 0;
}
