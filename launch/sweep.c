/* waltz sweep: rows of a paper's table, each a patch on a recipe, with several seeds (recipe/sweep.c). For each seed
 * the rows are run one after the other, since some begin with what others made; seeds run side by side. A row is this
 * program started again:
 *
 *     sandbox: waltz sandbox    sft: waltz sft    train: waltz train, then waltz eval    eval: waltz eval
 *
 * Files of a row are OUT/SEED/ROW.*: ROW.yaml is its recipe with every key, ROW.log what it said, ROW.done and
 * ROW-TEMPERATURE.csv appear when it has ended well, ROW/ is its run. What is there is not done again, unless ROW.yaml
 * has become another; `waltz train` resumes a run that was stopped. A row that can't be run costs no other row. Sweeps
 * of one folder share the rows that both have. */
#include "run/run.h"
#include "launch/launch.h"
#include "report/report.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAIN = -1 }; /* a task that is no measurement */
struct task {
    unsigned row;
    int at; /* which temperature, or MAIN */
};
struct line { /* of a seed */
    uint64_t seed;
    struct task *tasks;
    int n, next;
    pid_t pid;  /* of tasks[next]; 0: none runs */
    char **why; /* [rows] why a row was not run; NULL */
};
struct sweeper {
    const char *file;
    char *const *overrides;
    int n_overrides;
    struct wz_sweep *sweep;
    struct line *lines;
    int mpirun, srun, threads; /* ranks of a row's job; threads of a row: 0: its own choice */
    bool stopping, failed;
};

/* ---- files ------------------------------------------------------------------------------------------------ */

static char *row_file(const struct wz_sweep *s, unsigned row, uint64_t seed, const char *ending)
{
    char *dir = wz_sweep_folder(s, seed), *path = wz_path("%s/%s%s", dir, s->rows[row].name, ending);

    free(dir);
    return path;
}

/* The file that appears when a task has ended well: what it printed. */
static char *result_file(const struct wz_sweep *s, const struct task *task, uint64_t seed)
{
    struct wz_buf ending = { 0 };

    if (task->at == MAIN) return row_file(s, task->row, seed, ".done");
    wz_buf_str(&ending, "-");
    wz_real_add(&ending, s->temperature_list[task->at]);
    wz_buf_str(&ending, ".csv");
    char *path = row_file(s, task->row, seed, ending.data);
    wz_buf_finish(&ending);
    return path;
}

static void remove_results(const struct wz_sweep *s, unsigned row, uint64_t seed)
{
    for (int at = MAIN; at < s->n_temperatures; at++) {
        char *path = result_file(s, &(struct task){ row, at }, seed);
        unlink(path);
        free(path);
    }
}

/* ---- what a row needs ------------------------------------------------------------------------------------- */

static bool is_below(const char *path, const char *folder)
{
    size_t n = strlen(folder);

    return !strncmp(path, folder, n) && (!path[n] || path[n] == '/');
}

static const struct wz_sweep_source *source_of(const struct wz_sweep *s, const char *path, uint64_t seed)
{
    for (unsigned i = 0; i < s->n_sources; i++) {
        char *at = wz_sweep_expand(s, s->sources[i].path, seed);
        bool found = is_below(path, at);
        free(at);
        if (found) return &s->sources[i];
    }
    return NULL;
}

struct need {
    const char *path;
    bool model; /* a folder, a GGUF file or a hub's name */
};

static bool is_there(const struct need *need)
{
    char *at = need->model ? wz_model_at(need->path, NULL) : NULL;
    bool there = need->model ? at != NULL : wz_file_exists(need->path);

    free(at);
    return there;
}

/* The files that a recipe names, [*n] of them; heap, of strings of the recipe. */
static struct need *needs_of(const struct wz_recipe *recipe, bool trains, int *n)
{
    const struct wz_recipe_judge *judges = recipe->n_judges ? recipe->judges : &recipe->judge;
    const unsigned n_judges = recipe->n_judges ? recipe->n_judges : 1;
    struct need *all =
        wz_alloc(sizeof *all * (2 * (recipe->n_agents + recipe->n_data + recipe->n_eval) + 3 * n_judges + 2));
    int k = 0;

    for (unsigned i = 0; i < recipe->n_agents; i++) {
        all[k++] = (struct need){ recipe->agents[i].model, true };
        all[k++] = (struct need){ recipe->agents[i].system, false };
    }
    for (unsigned i = 0; trains && i < recipe->n_data; i++) {
        all[k++] = (struct need){ recipe->data[i].path, false };
        all[k++] = (struct need){ recipe->data[i].prefill.path, false };
    }
    for (unsigned i = 0; i < recipe->n_eval; i++) {
        all[k++] = (struct need){ recipe->eval[i].path, false };
        all[k++] = (struct need){ recipe->eval[i].prefill.path, false };
    }
    all[k++] = (struct need){ recipe->evaluate.text, false };
    for (unsigned i = 0; i < n_judges && !wz_job_supervised(recipe); i++) {
        const struct wz_judge_config how = wz_job_judge_config(&judges[i], NULL);
        struct wz_judge judge;
        struct wz_err none;
        all[k++] = (struct need){ judges[i].phrases, false };
        all[k++] = (struct need){ judges[i].rubric, false };
        if (wz_judge_begin(&judge, &how, &none) == 0 && judge.model) all[k++] = (struct need){ judges[i].model, true };
    }
    *n = 0;
    for (int i = 0; i < k; i++)
        if (*all[i].path) all[(*n)++] = all[i];
    return all;
}

static void add_source(struct wz_buf *out, const struct wz_sweep_source *from)
{
    if (from && *from->from) wz_buf_printf(out, " from %s", from->from);
    if (from && *from->licence) wz_buf_printf(out, " (licence: %s)", from->licence);
}

/* Why the row can't be run now, as its recipe has it: heap. NULL: it can. */
static char *missing(const struct wz_sweep *s, unsigned row, uint64_t seed, const struct wz_recipe *recipe)
{
    struct wz_buf why = { 0 };
    int n;
    struct need *needs = needs_of(recipe, strcmp(s->rows[row].run, "eval") != 0, &n);

    for (int i = 0; i < n && !why.len; i++) {
        if (is_there(&needs[i])) continue;
        if (is_below(needs[i].path, s->out)) wz_buf_printf(&why, "no row has made %s", needs[i].path);
        else wz_buf_printf(&why, "fetch %s", needs[i].path);
        add_source(&why, source_of(s, needs[i].path, seed));
    }
    free(needs);
    return why.data;
}

/* ---- a row is begun --------------------------------------------------------------------------------------- */

/* Is the row's file the same as what it was run with? Keys that decide no bits may differ. */
static bool same_recipe(const char *path, const struct wz_recipe *now)
{
    struct wz_recipe *was = NULL;
    struct wz_err none;
    bool same = wz_recipe_load(&was, path, NULL, 0, &none) == 0 && wz_recipe_resumes(was, now, &none) == 0 &&
                wz_recipe_resumes(now, was, &none) == 0;

    wz_recipe_destroy(was);
    return same;
}

/* A sandbox has no recipe; its options are in its file. */
static int begin_sandbox(const struct wz_sweep *s, const char *path, const char *set, bool *same, struct wz_err *err)
{
    char *text = wz_path("# waltz sandbox %s\n", set);
    struct wz_map map = { 0 };
    int rc = 0;

    *same = wz_map_open(&map, path, NULL) == 0 && map.len == strlen(text) && !memcmp(map.bytes, text, map.len);
    wz_map_close(&map);
    if (!*same) rc = wz_file_write(path, text, strlen(text), err);
    free(text);
    return rc;
}

/* Makes the row's file, and forgets results of another. Returns why the row can't be run: heap; NULL: it can. */
static char *begin_row(const struct wz_sweep *s, unsigned row, uint64_t seed)
{
    char *path = row_file(s, row, seed, ".yaml"), *dir = wz_sweep_folder(s, seed), *why = NULL;
    struct wz_recipe *recipe = NULL;
    struct wz_err err = { "" };
    bool same = true;
    int rc = wz_mkdirs(dir, &err);

    if (*s->rows[row].absent) why = wz_strdup(s->rows[row].absent);
    else if (rc == 0 && !strcmp(s->rows[row].run, "sandbox")) {
        char *set = wz_sweep_expand(s, s->rows[row].set, seed);
        rc = begin_sandbox(s, path, set, &same, &err);
        free(set);
    } else if (rc == 0 && (rc = wz_sweep_recipe(s, (int)row, seed, &recipe, &err)) == 0) {
        why = missing(s, row, seed, recipe);
        if (!why) same = same_recipe(path, recipe);
        if (!same) rc = wz_recipe_save(recipe, path, &err);
    }
    if (!same) remove_results(s, row, seed);
    if (rc < 0) why = wz_strdup(err.text);
    wz_recipe_destroy(recipe);
    free(path);
    free(dir);
    return why;
}

/* ---- a task is a process ---------------------------------------------------------------------------------- */

struct words {
    const char *list[64];
    int n;
    struct wz_arena arena;
};

static void add_word(struct words *w, const char *fmt, ...) WZ_PRINTF(2, 3);
static void add_word(struct words *w, const char *fmt, ...)
{
    char text[4096];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (w->n < (int)WZ_COUNT(w->list) - 1) w->list[w->n++] = wz_arena_strdup(&w->arena, text);
}

static void add_words(struct words *w, const char *text)
{
    char *rest = wz_arena_strdup(&w->arena, text);

    for (char *word; (word = strtok_r(rest, " \t\n", &rest));) add_word(w, "%s", word);
}

static void command_of(const struct sweeper *w, const struct line *l, const struct task *task, struct words *words)
{
    const struct wz_sweep *s = w->sweep;
    const char *run = s->rows[task->row].run;
    const bool sandbox = !strcmp(run, "sandbox"), sft = !strcmp(run, "sft"), eval = !strcmp(run, "eval");
    char program[4096] = "", *file = row_file(s, task->row, l->seed, ".yaml"),
         *dir = row_file(s, task->row, l->seed, "");
    int ranks = w->mpirun ? w->mpirun : w->srun;

    if (readlink("/proc/self/exe", program, sizeof program - 1) < 0)
        wz_die("sweep: /proc/self/exe: %s", strerror(errno));
    while (sft && ranks & (ranks - 1)) ranks &= ranks - 1; /* learners alone: a power of two */
    if (ranks && !sandbox) {
        add_words(words, w->mpirun ? "mpirun --oversubscribe --bind-to none -n" : "srun --mpi=pmix -n");
        add_word(words, "%d", ranks);
    }
    add_word(words, "%s", program);
    if (sandbox) {
        char *set = wz_sweep_expand(s, s->rows[task->row].set, l->seed);
        add_word(words, "sandbox");
        add_word(words, "%s", dir);
        add_word(words, "--seed");
        add_word(words, "%llu", (unsigned long long)l->seed);
        add_words(words, set);
        free(set);
    } else {
        add_word(words, "%s", task->at == MAIN ? run : "eval");
        add_word(words, "%s", task->at == MAIN || eval ? file : dir);
        if (w->threads && !ranks) add_word(words, "threads=%d", w->threads);
        if (task->at != MAIN) {
            add_word(words, "--format=csv");
            add_word(words, "--phase=%s", s->rows[task->row].name);
            add_word(words, "--temperature=%g", s->temperature_list[task->at]);
        }
    }
    free(file);
    free(dir);
}

/* In the child: its output goes to RESULT.part, what it says to ROW.log; it ends with this process. */
static _Noreturn void become(const char *const *command, const char *out, const char *log, pid_t parent,
                             const sigset_t *mask)
{
    int to = open(out, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0666);
    int say = open(log, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0666),
        none = open("/dev/null", O_RDONLY | O_CLOEXEC);

    if (to < 0 || say < 0 || none < 0 || dup2(none, 0) < 0 || dup2(to, 1) < 0 || dup2(say, 2) < 0) _exit(126);
    setpgid(0, 0); /* a terminal's interrupt is for the sweep, which passes it on once */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(126);
    sigprocmask(SIG_SETMASK, mask, NULL);
    execvp(command[0], (char *const *)(uintptr_t)command);
    fprintf(stderr, "%s: %s\n", command[0], strerror(errno));
    _exit(127);
}

static void start(struct sweeper *w, struct line *l, const sigset_t *mask)
{
    const struct task *task = &l->tasks[l->next];
    const struct wz_sweep *s = w->sweep;
    struct words words = { 0 };
    char *result = result_file(s, task, l->seed), *part = wz_path("%s.part", result),
         *log = row_file(s, task->row, l->seed, ".log");
    pid_t me = getpid();

    if (task->at == MAIN) remove_results(s, task->row, l->seed);
    command_of(w, l, task, &words);
    if (task->at == MAIN) wz_log("seed %llu: %s", (unsigned long long)l->seed, s->rows[task->row].name);
    else
        wz_log("seed %llu: %s, measured at temperature %g", (unsigned long long)l->seed, s->rows[task->row].name,
               s->temperature_list[task->at]);
    l->pid = fork();
    if (l->pid < 0) wz_die("sweep: fork: %s", strerror(errno));
    if (l->pid == 0) become(words.list, part, log, me, mask);
    wz_arena_finish(&words.arena);
    free(result);
    free(part);
    free(log);
}

/* The last line of a log, fit to be printed, after what the end was: heap. */
static char *last_words(const char *log, int status)
{
    const char *last = "", *how = WIFSIGNALED(status) ? "signal" : "status";
    char line[400];
    struct wz_map map;
    size_t n = 0;

    if (wz_map_open(&map, log, NULL) < 0) map = (struct wz_map){ 0 };
    for (struct wz_lines l = wz_lines_begin(map.bytes, map.len); map.len && wz_lines_next(&l);)
        if (l.n) {
            last = l.line;
            n = l.n;
        }
    wz_printable(line, sizeof line, last, n, "");
    char *text = wz_path("it failed, %s %d (%s): %s", how, WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status),
                         log, line);
    wz_map_close(&map);
    return text;
}

static void finish(struct sweeper *w, struct line *l, int status)
{
    const struct task *task = &l->tasks[l->next];
    char *result = result_file(w->sweep, task, l->seed), *part = wz_path("%s.part", result),
         *log = row_file(w->sweep, task->row, l->seed, ".log"), **why = &l->why[task->row];
    struct wz_err err;

    l->pid = 0;
    if (WIFEXITED(status) && WEXITSTATUS(status) == WZ_EXIT_AGAIN) w->stopping = true;
    else if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        if (wz_rename(part, result, &err) < 0) *why = wz_strdup(err.text);
        l->next++;
    } else if (!w->stopping) *why = last_words(log, status);
    if (*why) {
        w->failed = true;
        wz_log("seed %llu: row %s: %s", (unsigned long long)l->seed, w->sweep->rows[task->row].name, *why);
    }
    free(result);
    free(part);
    free(log);
}

/* Starts the next task that is not done, if there is one. */
static void advance(struct sweeper *w, struct line *l, const sigset_t *mask)
{
    for (; l->next < l->n; l->next++) {
        const struct task *task = &l->tasks[l->next];
        const unsigned row = task->row;
        if (!l->why[row] && (!l->next || l->tasks[l->next - 1].row != row)) {
            l->why[row] = begin_row(w->sweep, row, l->seed);
            if (l->why[row])
                wz_log("seed %llu: row %s not run: %s", (unsigned long long)l->seed, w->sweep->rows[row].name,
                       l->why[row]);
        }
        if (l->why[row]) continue;
        char *result = result_file(w->sweep, task, l->seed);
        const bool done = wz_file_exists(result);
        free(result);
        if (done) continue;
        start(w, l, mask);
        return;
    }
}

/* Runs the lines of one seed, or of all (only: not a seed), so many side by side. A signal is passed on to what runs,
 * and nothing new is started. */
static void run_all(struct sweeper *w, int jobs, int only)
{
    const struct wz_sweep *s = w->sweep;
    sigset_t signals, before;
    int running = 0;

    sigemptyset(&signals);
    for (size_t i = 0; i < 4; i++) sigaddset(&signals, (const int[]){ SIGCHLD, SIGTERM, SIGINT, SIGUSR1 }[i]);
    sigprocmask(SIG_BLOCK, &signals, &before);
    for (;;) {
        for (int k = 0; k < s->n_seeds && running < jobs && !w->stopping; k++) {
            struct line *l = &w->lines[k];
            if (l->pid || (only >= 0 && k != only)) continue;
            advance(w, l, &before);
            running += l->pid > 0;
        }
        if (!running) break;
        int signal = sigwaitinfo(&signals, NULL), status;
        if (signal > 0 && signal != SIGCHLD) {
            w->stopping = true;
            for (int k = 0; k < s->n_seeds; k++)
                if (w->lines[k].pid) kill(w->lines[k].pid, SIGUSR1);
        }
        for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0; running--)
            for (int k = 0; k < s->n_seeds; k++)
                if (w->lines[k].pid == pid) finish(w, &w->lines[k], status);
    }
    sigprocmask(SIG_SETMASK, &before, NULL);
}

/* ---- what came of it -------------------------------------------------------------------------------------- */

/* A training run measures its end at the recipe's own temperature. */
static bool measured_by_run(const struct wz_sweep *s, unsigned row, const struct wz_recipe *recipe, int at)
{
    return !strcmp(s->rows[row].run, "train") && recipe->evaluate.temperature == s->temperature_list[at];
}

static int read_result(const struct wz_sweep *s, unsigned row, uint64_t seed, int at, struct wz_table *table,
                       struct wz_err *err)
{
    struct wz_recipe *recipe;
    struct wz_table all = { 0 };
    if (*s->rows[row].absent) return 0;
    if (wz_sweep_recipe(s, (int)row, seed, &recipe, err) < 0) return -1;
    const bool run = measured_by_run(s, row, recipe, at);
    char *done = result_file(s, &(struct task){ row, run ? MAIN : at }, seed),
         *csv = run ? row_file(s, row, seed, "/summary.csv") : wz_strdup(done);
    int rc = wz_file_exists(done) ? wz_table_read(&all, csv, err) : 0;

    for (int i = 0; rc == 0 && i < all.n; i++)
        if (!run || !strcmp(all.rows[i].phase, "after")) wz_table_add(table, &all.rows[i]);
    wz_table_finish(&all);
    wz_recipe_destroy(recipe);
    free(done);
    free(csv);
    return rc;
}

static int write_tables(const struct sweeper *w, struct wz_err *err)
{
    const struct wz_sweep *s = w->sweep;
    const size_t n = wz_mul((size_t)s->n_rows * (size_t)s->n_temperatures, (size_t)s->n_seeds);
    struct wz_table *tables = wz_alloc(wz_mul(n, sizeof *tables));
    char **why = wz_alloc(sizeof *why * s->n_rows), *lock = wz_path("%s/.lock", s->out);
    int fd = -1, rc = wz_mkdirs(s->out, err);

    for (size_t i = 0; rc == 0 && i < n; i++) {
        const unsigned row = (unsigned)(i / (size_t)(s->n_temperatures * s->n_seeds));
        const int at = (int)(i / (size_t)s->n_seeds) % s->n_temperatures, seed = (int)(i % (size_t)s->n_seeds);
        if (!wz_sweep_measures(&s->rows[row])) continue;
        rc = read_result(s, row, s->seed_list[seed], at, &tables[i], err);
        if (!why[row]) why[row] = w->lines[seed].why[row];
    }
    /* tasks of a Slurm array end at any time */
    if (rc == 0 && (fd = open(lock, O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666)) < 0)
        rc = wz_fail(err, "%s: %s", lock, strerror(errno));
    if (rc == 0) wz_lock(fd, true);
    if (rc == 0) rc = wz_sweep_write(s, tables, why, err);
    if (fd >= 0) close(fd);
    for (size_t i = 0; i < n; i++) wz_table_finish(&tables[i]);
    free(tables);
    free(why);
    free(lock);
    return rc;
}

/* ---- before it -------------------------------------------------------------------------------------------- */

static void print_work(double x)
{
    if (isnan(x)) printf(" %12s", "-");
    else if (x < 1e7) printf(" %12.0f", x);
    else printf(" %12.3g", x);
}

static void dry_line(const struct wz_sweep *s, unsigned row, struct wz_plan_work *sum, struct wz_recipe **recipe,
                     struct wz_err *err)
{
    struct wz_plan_work work = { 0 };
    double parameters[WZ_MAX_AGENTS] = { 0 };
    const char *run = s->rows[row].run;

    if (strcmp(run, "sandbox") && !*s->rows[row].absent &&
        wz_sweep_recipe(s, (int)row, s->seed_list[0], recipe, err) == 0 && strcmp(run, "eval")) {
        for (unsigned i = 0; i < (*recipe)->n_agents; i++) {
            const char *model = (*recipe)->agents[i].model;
            const struct wz_sweep_source *from = source_of(s, model, s->seed_list[0]);
            parameters[i] = wz_plan_parameters(model);
            if (!parameters[i] && from) parameters[i] = from->parameters;
        }
        work = wz_plan_work(*recipe, parameters);
    }
    const double numbers[] = { work.steps, work.episodes, work.tokens, work.flops };
    printf("%-16s %-8s", s->rows[row].name, run);
    for (size_t i = 0; i < WZ_COUNT(numbers); i++) print_work(numbers[i]);
    if (*s->rows[row].absent) printf("  not run: %s", s->rows[row].absent);
    printf("\n");
    sum->steps += work.steps;
    sum->episodes += work.episodes;
    if (!isnan(work.tokens)) sum->tokens += work.tokens;
    if (!isnan(work.flops)) sum->flops += work.flops;
}

/* A line for each file that the row's recipe is the first of the sweep to name. */
static void dry_needs(const struct wz_sweep *s, const struct wz_recipe *recipe, bool trains, json_t *seen)
{
    int n;
    struct need *needs = needs_of(recipe, trains, &n);

    for (int i = 0; i < n; i++) {
        struct wz_buf from = { 0 };
        if (is_below(needs[i].path, s->out) || json_object_get(seen, needs[i].path)) continue;
        json_object_set_new(seen, needs[i].path, json_true());
        add_source(&from, source_of(s, needs[i].path, s->seed_list[0]));
        printf("  %-7s %s%s\n", is_there(&needs[i]) ? "there" : "fetch", needs[i].path, from.len ? from.data : "");
        wz_buf_finish(&from);
    }
    free(needs);
}

/* Rows, what they compute and what they need. Reads no data. */
static int dry_run(const struct wz_sweep *s, struct wz_err *err)
{
    static const char *const heads[] = { "steps", "episodes", "tokens", "FLOPs" };
    struct wz_recipe **recipes = wz_alloc(sizeof *recipes * s->n_rows);
    struct wz_plan_work sum = { 0 };
    json_t *seen = json_object();

    *err = (struct wz_err){ "" };
    printf("%s: %u rows, %d seeds (%s), in %s\n\n%-25s", s->name, s->n_rows, s->n_seeds, s->seeds, s->out, "row");
    for (size_t i = 0; i < WZ_COUNT(heads); i++) printf(" %12s", heads[i]);
    printf("\n");
    for (unsigned r = 0; r < s->n_rows; r++) dry_line(s, r, &sum, &recipes[r], err);
    printf("%-25s", "all seeds");
    const double numbers[] = { sum.steps, sum.episodes, sum.tokens, sum.flops };
    for (size_t i = 0; i < WZ_COUNT(numbers); i++) print_work(s->n_seeds * numbers[i]);
    printf("\nTokens: sampled in training, at most. FLOPs: theirs, and those of the updates; prompts, attention, "
           "evaluations and\nwarm starts are not counted, and models of unknown size (-) are not in the sum.\n\n"
           "files that the rows need:\n");
    for (unsigned r = 0; r < s->n_rows; r++)
        if (recipes[r]) dry_needs(s, recipes[r], strcmp(s->rows[r].run, "eval") != 0, seen);
    for (unsigned r = 0; r < s->n_rows; r++) wz_recipe_destroy(recipes[r]);
    free(recipes);
    json_decref(seen);
    return *err->text ? -1 : 0;
}

/* A blank, and the word as a shell reads it back. */
static void add_quoted(struct wz_buf *out, const char *word)
{
    wz_buf_str(out, " '");
    for (; *word; word++)
        if (*word == '\'') wz_buf_str(out, "'\\''");
        else wz_buf_add(out, word, 1);
    wz_buf_str(out, "'");
}

/* Writes a Slurm array of one task a seed, each of so many ranks. */
static int write_slurm(const struct sweeper *w, int ranks, struct wz_err *err)
{
    const struct wz_sweep *s = w->sweep;
    char *path, here[4096] = "", program[4096] = "";
    struct wz_buf text = { 0 };

    for (const char *c = s->out; *c; c++)
        if ((unsigned char)*c <= ' ' || strchr("'\"\\%#\x7f", *c))
            return wz_fail(err,
                           "--slurm: out: %.200s: sbatch reads no path with blanks, quotes, \\, %% or # from a script",
                           s->out);
    if (!getcwd(here, sizeof here) || readlink("/proc/self/exe", program, sizeof program - 1) < 0)
        return wz_fail(err, "where this program is could not be found: %s", strerror(errno));
    path = wz_path("%s/%s.sbatch", s->out, s->name);
    wz_buf_printf(
        &text,
        "#!/bin/bash\n# A task for each seed; stopped before its limit it is requeued, and resumes. Options of "
        "sbatch come first:\n# sbatch --time=4:00:00 %s\n"
        "#SBATCH --job-name=%s\n#SBATCH --array=0-%d\n#SBATCH --ntasks=%d\n#SBATCH --signal=B:USR1@120\n"
        "#SBATCH --requeue\n#SBATCH --open-mode=append\n#SBATCH --output=%s/slurm-%%a.log\n"
        "seeds=(%s)\ncd",
        path, s->name, s->n_seeds - 1, ranks, s->out, s->seeds);
    add_quoted(&text, here);
    wz_buf_str(&text, " || exit 1\nexport OMPI_MCA_mpi_yield_when_idle=1\n"
                      "trap 'warned=1; kill -USR1 $!' USR1 TERM\n");
    add_quoted(&text, program);
    wz_buf_str(&text, " sweep");
    add_quoted(&text, w->file);
    wz_buf_printf(&text, " --seed \"${seeds[$SLURM_ARRAY_TASK_ID]}\" --srun %d", ranks);
    for (int i = 0; i < w->n_overrides; i++) add_quoted(&text, w->overrides[i]);
    wz_buf_str(&text, " &\nrun=$!\n"
                      "while warned=; wait $run; status=$?; [ -n \"$warned\" ]; do :; done\n"
                      "if [ $status -eq 75 ]; then scontrol requeue \"$SLURM_JOB_ID\"; fi\nexit $status\n");
    int rc = wz_mkdirs(s->out, err);
    if (rc == 0) rc = wz_file_write(path, text.data, text.len, err);
    if (rc == 0) printf("sbatch %s\n", path);
    wz_buf_finish(&text);
    free(path);
    return rc;
}

/* ---- the command ------------------------------------------------------------------------------------------ */

/* What only the higher modules know: metrics, and that the rows' recipes load. */
static int check(const struct wz_sweep *s, struct wz_err *err)
{
    char path[40];

    for (unsigned c = 0; c < s->n_columns; c++) {
        const char *metric = s->columns[c].metric;
        if (wz_measure_find(metric)) continue;
        const char *near = wz_nearest(metric, wz_measures, sizeof *wz_measures, wz_n_measures);
        snprintf(path, sizeof path, "columns.%u.metric", c);
        return wz_sweep_fail(s, err, path, "there is no metric '%.80s'%s%s%s", metric, near ? "; did you mean '" : "",
                             near ? near : "", near ? "'?" : "");
    }
    for (unsigned r = 0; r < s->n_rows; r++) {
        struct wz_recipe *recipe;
        if (!strcmp(s->rows[r].run, "sandbox") || *s->rows[r].absent) continue;
        if (wz_sweep_recipe(s, (int)r, s->seed_list[0], &recipe, err) < 0) return -1;
        wz_recipe_destroy(recipe);
    }
    return 0;
}

static void plan_lines(struct sweeper *w)
{
    const struct wz_sweep *s = w->sweep;
    struct wz_err none; /* beginning the row says it */

    w->lines = wz_alloc(sizeof *w->lines * (size_t)s->n_seeds);
    for (int k = 0; k < s->n_seeds; k++) {
        struct line *l = &w->lines[k];
        l->seed = s->seed_list[k];
        l->why = wz_alloc(sizeof *l->why * s->n_rows);
        l->tasks = wz_alloc(sizeof *l->tasks * s->n_rows * (size_t)(s->n_temperatures + 1));
        for (unsigned r = 0; r < s->n_rows; r++) {
            struct wz_recipe *recipe = NULL;
            const bool eval = !strcmp(s->rows[r].run, "eval"), measures = wz_sweep_measures(&s->rows[r]);
            if (!eval) l->tasks[l->n++] = (struct task){ r, MAIN };
            if (measures && !*s->rows[r].absent) wz_sweep_recipe(s, (int)r, l->seed, &recipe, &none);
            for (int t = 0; measures && t < s->n_temperatures; t++)
                if (!recipe || !measured_by_run(s, r, recipe, t)) l->tasks[l->n++] = (struct task){ r, t };
            wz_recipe_destroy(recipe);
        }
    }
}

static int sweep_all(struct sweeper *w, int jobs, int only, struct wz_err *err)
{
    struct wz_cores cores;

    wz_cores_here(&cores, 0, 0, 0);
    if (jobs > 1) w->threads = cores.cores / jobs > 1 ? cores.cores / jobs : 1;
    plan_lines(w);
    run_all(w, jobs, only);
    int rc = w->stopping ? 0 : write_tables(w, err);
    if (w->stopping) wz_log("stopped; the same command continues");
    else if (rc == 0) printf("%s/%s.md, .html and .csv\n", w->sweep->out, w->sweep->name);
    for (int k = 0; k < w->sweep->n_seeds; k++) {
        for (unsigned r = 0; r < w->sweep->n_rows; r++) free(w->lines[k].why[r]);
        free(w->lines[k].why);
        free(w->lines[k].tasks);
    }
    free(w->lines);
    return rc;
}

int wz_cmd_sweep(int argc, char **argv)
{
    struct sweeper w = { 0 };
    bool dry = false;
    int jobs = 1, slurm = 0, only = -1;
    const char *seed = NULL;
    const struct wz_option options[] = {
        { "dry-run", 0, WZ_FLAG, &dry, NULL, "print rows, steps, tokens, FLOPs and what must be fetched; run nothing",
          0, 0 },
        { "jobs", 'j', WZ_INT, &jobs, "N", "seeds that run side by side", 1, 1024 },
        { "mpirun", 0, WZ_INT, &w.mpirun, "N", "run each row by mpirun, on N ranks (0: as one process)", 0,
          WZ_MAX_RANKS },
        { "srun", 0, WZ_INT, &w.srun, "N", "run each row by srun, on N ranks", 0, WZ_MAX_RANKS },
        { "slurm", 0, WZ_INT, &slurm, "N", "run nothing; write an array job, a task of N ranks for each seed", 0,
          WZ_MAX_RANKS },
        { "seed", 0, WZ_TEXT, &seed, "N", "run only this one of the sweep's seeds", 0, 0 },
    };
    const struct wz_usage usage = {
        .name = "sweep",
        .args = "FILE [key=value ...]",
        .options = options,
        .n_options = WZ_COUNT(options),
        .about =
            "Runs the rows of a table, each a patch on a recipe, with every seed of a sweep's file, and writes the\n"
            "table beside a paper's: NAME.md, NAME.html (with the safety/overrefusal plane) and NAME.csv in its\n"
            "folder. What has ended is not run again, what was stopped is resumed; a row whose data is absent is\n"
            "not run, and says what to fetch. `waltz help recipe` explains the file's keys; key=value overrides one\n"
            "of them, as in seeds=7 or out=runs/other.",
    };
    struct wz_err err = { "" };
    int status, n = wz_options_parse(&usage, argc, argv, &status), rc;

    if (n < 0) return status;
    w.file = argv[0];
    w.overrides = argv + 1;
    w.n_overrides = n - 1;
    rc = wz_sweep_load(&w.sweep, argv[0], w.overrides, w.n_overrides, &err);
    if (rc == 0) rc = check(w.sweep, &err);
    for (int k = 0; rc == 0 && seed && k < w.sweep->n_seeds; k++)
        if (strtoull(seed, NULL, 10) == w.sweep->seed_list[k]) only = k;
    if (rc == 0 && seed && only < 0)
        rc = wz_fail(&err, "--seed: %s is none of the sweep's seeds: %s", seed, w.sweep->seeds);
    if (rc == 0 && dry) rc = dry_run(w.sweep, &err);
    else if (rc == 0 && slurm) rc = write_slurm(&w, slurm, &err);
    else if (rc == 0) rc = sweep_all(&w, jobs, only, &err);
    status = rc < 0 ? wz_give_up("sweep", &err) : w.stopping ? WZ_EXIT_AGAIN : w.failed;
    wz_sweep_destroy(w.sweep);
    return status;
}
