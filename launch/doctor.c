/* waltz doctor: does this machine, and a recipe on it, work? Each line is tried, not looked up: backends are opened,
 * files are read by those who will read them, and the plan of the run is held against the memory there is. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "launch/launch.h"
#include "run/run.h"

/* What a line says: it works; it does not, and need not; it does not, and the recipe needs it. */
enum mark { WORKS, ABSENT, FAULT };
static const char *const marks[] = { [WORKS] = "ok", [ABSENT] = "-", [FAULT] = "FAULT" };

struct visit {
    int faults;
};

static void say(struct visit *v, enum mark mark, const char *what, const char *fmt, ...) WZ_PRINTF(4, 5);
static void say(struct visit *v, enum mark mark, const char *what, const char *fmt, ...)
{
    va_list args;

    printf("%-6s %-22s ", marks[mark], what);
    va_start(args, fmt);
    vprintf(fmt, args);
    va_end(args);
    printf("\n");
    v->faults += mark == FAULT;
}

static int see_cores(struct visit *v, int wanted)
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

static void see_backends(struct visit *v, const char *wanted)
{
    static const char *const names[] = { "ref", "cpu", "cuda" };

    for (size_t i = 0; i < WZ_COUNT(names); i++) {
        struct wz_err err = { 0 };
        struct wz_backend *be = wz_backend_open(names[i], 1, &err);
        size_t total, unused;
        int devices = be ? wz_backend_devices(be, &total, &unused) : 0;
        if (!be) say(v, strcmp(wanted, names[i]) ? ABSENT : FAULT, names[i], "%s", err.text);
        else if (devices)
            say(v, WORKS, names[i], "%d GPU%s, %.1f of %.1f GB free", devices, devices > 1 ? "s" : "",
                (double)unused * 1e-9, (double)total * 1e-9);
        else say(v, WORKS, names[i], "opens, and computes in the host's memory");
        wz_backend_close(be);
    }
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

static void see_ranks(struct visit *v, int ranks, int cores)
{
    const bool root = geteuid() == 0 && !getenv("OMPI_ALLOW_RUN_AS_ROOT"), crowded = ranks > cores;

    if (!on_path("mpirun"))
        say(v, ABSENT, "mpirun", "is not on the PATH: one process does every role (launch/install installs it)");
    else if (!root && !crowded) say(v, WORKS, "mpirun", "is there");
    else
        say(v, WORKS, "mpirun", "is there; here it wants%s%s", root ? " --allow-run-as-root (this is root)" : "",
            crowded ? " --oversubscribe (more ranks than cores)" : "");
}

/* Reads what the run will read, of the weights what their files say of themselves. */
static void see_agent(struct visit *v, const struct wz_recipe_agent *a)
{
    struct wz_err err = { 0 };
    struct wz_config config;
    struct wz_tokenizer *tok = NULL;
    struct wz_tensors *tensors = NULL;
    char *system = NULL;
    bool well = wz_config_load(&config, a->model, &err) == 0 && (tensors = wz_tensors_open(a->model, &err)) &&
                (tok = wz_tokenizer_load(a->model, &err)) && (system = wz_system_read(a->system, &err));
    const char *chat = a->chat[0] ? a->chat : tok ? wz_tokenizer_template(tok) : NULL;

    if (well && !chat) well = wz_fail(&err, "%s names no chat template; give one by its name as `chat`", a->model) == 0;
    if (well && !wz_template_find(chat, tok, &err)) well = false;
    if (well)
        say(v, WORKS, a->name, "%s: %d layers, %d ids, context %d, chat template %s", a->model, config.layers,
            config.vocab, config.context, chat);
    else say(v, FAULT, a->name, "%s", err.text);
    wz_tensors_close(tensors);
    wz_tokenizer_destroy(tok);
    free(system);
}

static void see_prompts(struct visit *v, const char *what, const struct wz_recipe_data *list, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        struct wz_prompts set;
        struct wz_err err = { 0 };
        if (wz_prompts_load(&set, list[i].path, list[i].column, list[i].harmful, list[i].kind, &err) < 0) {
            say(v, FAULT, what, "%s", err.text);
            continue;
        }
        say(v, WORKS, what, "%s: %d prompts", list[i].path, set.n);
        wz_prompts_finish(&set);
    }
}

static void see_out(struct visit *v, const char *out)
{
    char *dir = wz_strdup(out);

    for (char *slash; !wz_file_exists(dir) && (slash = strrchr(dir, '/')) && slash > dir;) *slash = 0;
    if (!wz_file_exists(dir)) strcpy(dir, ".");
    if (access(dir, W_OK) == 0) say(v, WORKS, "out", "%s can be written", out);
    else say(v, FAULT, "out", "%s: %s can't be written; choose another `out`", out, dir);
    free(dir);
}

static void see_recipe(struct visit *v, const struct wz_recipe *recipe, int ranks)
{
    struct wz_plan *plan = wz_alloc(sizeof *plan);
    struct wz_err err = { 0 };

    for (unsigned i = 0; i < recipe->n_agents; i++) see_agent(v, &recipe->agents[i]);
    see_prompts(v, "data", recipe->data, recipe->n_data);
    see_prompts(v, "eval", recipe->eval, recipe->n_eval);
    see_out(v, recipe->out);
    if (!v->faults) { /* else it is known why there is no plan */
        if (wz_plan_make(plan, recipe, NULL, ranks, 1, &err) < 0 || wz_plan_check(plan, &err) < 0)
            say(v, FAULT, "memory of the run", "%s; `waltz plan` shows all", err.text);
        else say(v, WORKS, "memory of the run", "fits on this host with %d rank%s", ranks, ranks > 1 ? "s" : "");
    }
    free(plan);
}

int wz_cmd_doctor(int argc, char **argv)
{
    static const struct wz_usage usage = {
        .name = "doctor",
        .args = "[RECIPE [key=value ...]]",
        .min_args = 0,
        .max_args = -1,
        .about = "Tries what Waltz needs of this machine, and, given a recipe, what a run of it reads (of weights the "
                 "headers) and\n"
                 "whether it fits. A line each: ok, - (not there, and not needed), or FAULT with what to do; status 1 "
                 "where there is a fault.",
    };
    struct wz_recipe *recipe = NULL;
    struct visit v = { 0 };
    struct wz_err err = { 0 };
    int status, n = wz_options_parse(&usage, argc, argv, &status), cores, ranks = 1;

    if (n < 0) return status;
    if (n && wz_recipe_load(&recipe, argv[0], argv + 1, n - 1, &err) < 0) return wz_give_up("doctor", &err);
    if (recipe) ranks = recipe->ranks.rollout + recipe->ranks.reward + recipe->ranks.learner;
    if (ranks < 1) ranks = 1;
    cores = see_cores(&v, recipe ? recipe->threads : 0);
    see_backends(&v, recipe ? recipe->backend : "auto");
    see_ranks(&v, ranks, cores);
    if (recipe) see_recipe(&v, recipe, ranks);
    wz_recipe_destroy(recipe);
    return v.faults > 0;
}
