/* The files and the log of a run. */
#include "run/folder.h"
#include "run/account.h"
#include "run/manifest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- open and close --------------------------------------------------------------------------------------- */

static bool has_phase(const struct wz_table *table, const char *phase)
{
    for (int i = 0; i < table->n; i++)
        if (!strcmp(table->rows[i].phase, phase)) return true;
    return false;
}

/* What a resumed run keeps: steps before `step`, and evaluations that have rows in the table. Rows are written last:
 * without them an evaluation is made again. */
struct past {
    const struct wz_table *table;
    int64_t step, evaluated; /* no evaluations from this step on */
    int64_t kept;            /* lines that lines_keep has kept */
    const struct wz_recipe *recipe;
    struct wz_beyond *beyond; /* of the file's lines; NULL: they are not of metrics */
};

static bool stays(const json_t *line, const struct past *past)
{
    const char *phase = json_string_value(json_object_get(line, "phase"));
    const int64_t step = json_integer_value(json_object_get(line, "step"));

    if (!phase) return step < past->step;
    if (!strcmp(phase, "before") && past->step > 0) return true; /* it is not made again */
    return has_phase(past->table, phase) && step < past->evaluated;
}

static void count_line(const struct past *past, const json_t *line)
{
    const char **names = wz_alloc(sizeof *names * (past->recipe->n_limits + 1));
    double *values = wz_alloc(sizeof *values * (past->recipe->n_limits + 1));
    int n = 0;

    for (unsigned i = 0; i < past->recipe->n_limits; i++) {
        const json_t *value = json_object_get(line, names[n] = past->recipe->limits[i].metric);
        if (json_is_number(value)) values[n++] = json_number_value(value);
    }
    wz_limits_count(past->recipe, past->beyond, names, values, n);
    free(names);
    free(values);
}

/* Drops the lines of a JSONL file that a killed run wrote after its checkpoint. */
static int lines_keep(const char *dir, const char *name, struct past *past, struct wz_err *err)
{
    char *path = wz_path("%s/%s", dir, name);
    struct wz_buf kept = { 0 };
    struct wz_map map;
    int rc = 0;

    past->kept = 0;
    if (wz_file_exists(path)) {
        rc = wz_map_open(&map, path, err);
        struct wz_lines l = wz_lines_begin(map.bytes, map.len);
        while (rc == 0 && wz_lines_next(&l)) {
            json_t *line = l.ended ? wz_json_parse(l.line, l.n, path, NULL) : NULL; /* half-written: dropped too */
            if (line && stays(line, past)) {
                past->kept++;
                if (past->beyond) count_line(past, line);
                wz_buf_add(&kept, l.line, l.n);
                wz_buf_str(&kept, "\n");
            }
            json_decref(line);
        }
        if (rc == 0) {
            wz_map_close(&map);
            rc = wz_file_write(path, kept.data ? kept.data : "", kept.len, err);
        }
    }
    wz_buf_finish(&kept);
    free(path);
    return rc;
}

/* The rows of summary.csv without those of evaluations that the resumed run will make again. Those after a run that is
 * extended now are of a step on its way. */
static int read_table(struct wz_table *table, const struct wz_recipe *recipe, const struct wz_progress *p,
                      struct wz_err *err)
{
    char *path = wz_path("%s/summary.csv", recipe->out);
    struct wz_table all = { 0 };
    int rc = wz_file_exists(path) ? wz_table_read(&all, path, err) : 0;

    for (int i = 0; rc == 0 && i < all.n; i++) {
        struct wz_result row = all.rows[i];
        int64_t step = 0;
        char here[32];
        bool after = !strcmp(row.phase, "after"), made = !after || p->extended || p->stage == (int)recipe->n_stages;
        if (sscanf(row.phase, "step-%" SCNd64, &step) == 1) made = step <= p->step;
        snprintf(here, sizeof here, "step-%" PRId64, p->step);
        if (after && p->extended) row.phase = here;
        if (made) wz_table_add(table, &row);
    }
    wz_table_finish(&all);
    free(path);
    return rc;
}

static int write_table(const struct wz_recipe *recipe, const struct wz_table *table, struct wz_err *err)
{
    char *path = wz_path("%s/summary.csv", recipe->out);
    struct wz_buf text = { 0 };

    wz_table_csv(table, &text);
    int rc = wz_file_write(path, text.data, text.len, err);
    wz_buf_finish(&text);
    free(path);
    return rc;
}

/* A learner's file of episodes, up to the checkpoint: their number is added to *kept. Of a new run it is deleted. */
static int cut_episodes(const char *path, int64_t last, bool resume, int64_t *kept, struct wz_err *err)
{
    int64_t n = 0;

    if (resume && !wz_file_exists(path)) return 0;
    if (resume) {
        if (wz_record_check(path, last + 1, &n, err) < 0 || wz_record_truncate(path, last, err) < 0) return -1;
        *kept += n;
        return 0;
    }
    char *journal = wz_path("%s.journal", path);
    unlink(journal); /* what a killed run had not finished; first, for a journal without its file is refused */
    unlink(path);
    free(journal);
    return 0;
}

static int cut_record(struct wz_job *job, const struct wz_progress *p, bool resume, int64_t *kept, struct wz_err *err)
{
    const struct wz_ranks *learners = &job->roles.learner;
    char *path = wz_path("%s/episodes-%d.h5", job->recipe->out, learners->me);
    int rc = cut_episodes(path, p->step - 1, resume, kept, err);

    free(path);
    for (int k = learners->n; job->root && rc == 0; k++) { /* the run may have had more learners before */
        path = wz_path("%s/episodes-%d.h5", job->recipe->out, k);
        bool there = wz_file_exists(path);
        if (there) rc = cut_episodes(path, p->step - 1, resume, kept, err);
        free(path);
        if (!there) break;
    }
    return rc;
}

/* Do the records of all learners hold every episode up to the checkpoint? */
static int count_record(struct wz_job *job, const struct wz_progress *p, int64_t kept, struct wz_err *err)
{
    const struct wz_group group = wz_ranks_group(&job->roles.learner);
    const int64_t want = wz_progress_episodes(p, job->recipe) - p->lost;
    const double mine = (double)kept;
    double *all = wz_alloc(sizeof *all * (size_t)group.n);
    int64_t n = 0;

    wz_all_gather(&job->link, &group, &mine, 1, all);
    for (int r = 0; r < group.n; r++) n += (int64_t)all[r];
    free(all);
    if (n == want) return 0;
    return wz_fail(err, "%s/episodes-*.h5: expected %" PRId64 " episodes of %" PRId64 " steps, got %" PRId64,
                   job->recipe->out, want, p->step, n);
}

/* The lines of chain.jsonl, step after step; from the first on that does not follow, the file is cut off. */
static int read_chain(struct wz_run *run, const char *dir, const struct wz_progress *p, struct wz_err *err)
{
    char *path = wz_path("%s/chain.jsonl", dir);
    struct wz_map map = { 0 };
    int64_t last = -1;
    int rc = wz_file_exists(path) ? wz_map_open(&map, path, err) : 0;
    size_t good = 0;

    for (struct wz_lines l = wz_lines_begin(map.bytes, map.len); rc == 0 && wz_lines_next(&l) && l.ended;) {
        json_t *line = wz_json_parse(l.line, l.n, path, NULL);
        const char *hex = json_string_value(json_object_get(line, "chain"));
        const int64_t step = json_integer_value(json_object_get(line, "step"));
        uint64_t chain;
        const bool follows = hex && sscanf(hex, "%" SCNx64, &chain) == 1 && step > last &&
                             (step < p->step || step == p->step + run->n_ahead);
        json_decref(line);
        if (!follows) break;
        if (step >= p->step) {
            run->ahead = wz_realloc(run->ahead, sizeof *run->ahead * (size_t)(run->n_ahead + 1));
            run->ahead[run->n_ahead++] = (struct wz_ahead){ chain, good };
        }
        last = step;
        good += l.n + 1;
    }
    if (rc == 0 && good < map.len) rc = wz_file_write(path, map.bytes, good, err);
    wz_map_close(&map);
    free(path);
    return rc;
}

/* By which program, where and by which ranks the steps from this one on are computed: a line for each start that has
 * any to compute. */
static int write_start(const struct wz_job *job, const struct wz_progress *p, struct wz_err *err)
{
    const struct wz_roles *roles = &job->roles;
    char *path = wz_path("%s/starts.jsonl", job->recipe->out), *processor = wz_host_processor(), host[65] = "";
    struct wz_buf line = { 0 };
    struct wz_cores cores;
    size_t memory, unused, on_device;

    gethostname(host, sizeof host - 1);
    wz_host_memory(&memory, &unused);
    wz_cores_here(&cores, 0, 0, 0);
    const int devices = wz_backend_devices(job->be, &on_device, &unused);
    struct wz_buf judges = { 0 };
    for (int i = 0; i < job->judges.n; i++)
        wz_buf_printf(&judges, "%s%s%s: %s", i ? ". " : "", job->judges.list[i].name,
                      wz_judge_part(&job->judges.list[i]), job->judges.list[i].row->about);
    const struct {
        const char *key;
        char *text;
    } facts[] = {
        { "version", wz_path("waltz %s", WZ_VERSION) },
        { "hardware", wz_path("%s: %d cores, %.0f GB; %s", host, cores.machine, (double)memory * 1e-9, processor) },
        { "backend", wz_path("%s, %d GPUs", job->be->name, devices) },
        { "ranks", wz_path("%d, %d on that host: rollout %d, reward %d, learner %d", job->link.size, job->link.here,
                           roles->rollout.n, roles->reward.n, roles->learner.n) },
        { "judges", judges.len ? judges.data : wz_strdup("none: a supervised run") },
    };
    wz_buf_printf(&line, "{\"step\":%" PRId64 ",\"time\":%.3f", p->step, wz_wall());
    for (size_t i = 0; i < WZ_COUNT(facts); i++) {
        wz_buf_printf(&line, ",\"%s\":", facts[i].key);
        wz_json_string(&line, facts[i].text, strlen(facts[i].text));
        free(facts[i].text);
    }
    wz_buf_str(&line, "}\n");
    int rc = wz_file_append(path, line.data, line.len, err);
    wz_buf_finish(&line);
    free(path);
    free(processor);
    return rc;
}

/* The values of an evaluation, as metrics "eval/SET/METRIC"; none where the table has no such phase. */
static void write_evaluation(struct wz_run *run, int64_t step, const char *phase)
{
    const char **names = wz_alloc(sizeof *names * (size_t)(run->table.n + 1));
    double *values = wz_alloc(sizeof *values * (size_t)(run->table.n + 1));
    struct wz_arena arena = { 0 };
    int n = 0;

    for (int i = 0; i < run->table.n; i++) {
        const struct wz_result *r = &run->table.rows[i];
        if (strcmp(r->phase, phase)) continue;
        const bool rewards = wz_table_find(&run->table, phase, r->set, r->metric) == r;
        char *name =
            rewards ? wz_path("eval/%s/%s", r->set, r->metric) : wz_path("eval/%s/%s/%s", r->set, r->metric, r->judge);
        names[n] = wz_arena_strdup(&arena, name);
        values[n++] = r->value;
        free(name);
    }
    if (n) wz_metrics_add(run->metrics, step, phase, names, values, n);
    wz_arena_finish(&arena);
    free(names);
    free(values);
}

static int watch_limits(struct wz_run *run, const struct wz_job *job, const struct wz_progress *p, struct wz_err *err)
{
    const int any = wz_limits_watch(job->recipe, run->beyond, p->step, err);

    run->collapsing = any != 0;
    return any < 0 && p->stage < (int)job->recipe->n_stages ? -1 : 0; /* a run that is done has nothing to stop */
}

static int open_files(struct wz_run *run, struct wz_job *job, const struct wz_progress *p, bool resume,
                      struct wz_err *err)
{
    static const char *const logs[] = { "metrics.jsonl", "evaluations.jsonl", "ledger.jsonl", "starts.jsonl",
                                        "transcripts.jsonl" };
    const char *dir = job->recipe->out;
    const bool done = p->stage == (int)job->recipe->n_stages;
    struct past past = { &run->table, p->step, done ? INT64_MAX : p->step, 0, job->recipe, NULL };
    char here[32], *path = wz_path("%s/recipe.yaml", dir);
    int rc = wz_recipe_save(job->recipe, path, err);

    free(path);
    if (rc == 0 && job->overlaps.len) {
        path = wz_path("%s/overlaps.jsonl", dir);
        rc = wz_file_write(path, job->overlaps.data, job->overlaps.len, err);
        free(path);
    }
    /* "after" has become "step-N": a later start, which can't tell this from the checkpoint, must read it so. Nor may
     * rows stay that this start makes again, or not at all */
    if (rc == 0 && (p->extended || !done) && run->table.n) rc = write_table(job->recipe, &run->table, err);
    run->beyond = wz_alloc(sizeof *run->beyond * (job->recipe->n_limits + 1));
    for (size_t i = WZ_COUNT(logs); rc == 0 && i > 0; i--) {
        past.beyond = i == 1 ? run->beyond : NULL;
        rc = lines_keep(dir, logs[i - 1], &past, err);
    }
    if (rc == 0 && past.kept < p->step)
        wz_log("%s/metrics.jsonl: has %" PRId64 " of %" PRId64 " steps, the others are lost", dir, past.kept, p->step);
    if (rc == 0) rc = watch_limits(run, job, p, err);
    if (rc == 0) rc = read_chain(run, dir, p, err);
    if (rc == 0 && !done) rc = write_start(job, p, err);
    if (rc == 0) run->metrics = wz_metrics_open(dir, resume, p->step);
    snprintf(here, sizeof here, "step-%" PRId64, p->step);
    if (rc == 0 && !done) write_evaluation(run, p->step, here); /* TensorBoard forgets what is of the steps to come */
    if (resume)
        wz_log(p->extended                             ? "extending the run at step %" PRId64 " of %s"
               : p->stage < (int)job->recipe->n_stages ? "resuming at step %" PRId64 " of %s"
                                                       : "all %" PRId64 " steps are done in %s",
               p->step, dir);
    char *lost = wz_path("%s/lost.jsonl", dir);
    if (rc == 0 && wz_file_exists(lost)) wz_log("a part of the run's history is lost, as %s says", lost);
    free(lost);
    if (rc == 0 && run->n_ahead)
        wz_log("chain.jsonl has %" PRId64 " later steps: they are made again, and must come out the same",
               run->n_ahead);
    return rc;
}

/* A folder with files that no run made is not taken for a run's: they would be overwritten. Folders may be in it before
 * the run begins (what the run is made from), and logs of a batch system. */
static bool is_foreign(const char *dir, const char *name)
{
    const char *dot = strrchr(name, '.');
    char *path = wz_path("%s/%s", dir, name);
    bool folder = wz_is_dir(path);

    free(path);
    return !folder && name[0] != '.' &&
           !(dot && (!strcmp(dot, ".log") || !strcmp(dot, ".out") || !strcmp(dot, ".err")));
}

static int check_folder(const struct wz_recipe *recipe, bool writes_model, struct wz_err *err)
{
    char *marks[] = { wz_path("%s/recipe.yaml", recipe->out), wz_path("%s/.lock", recipe->out),
                      wz_path("%s/config.json", recipe->out) };
    const bool run = wz_file_exists(marks[0]) || wz_file_exists(marks[1]), model = wz_file_exists(marks[2]);
    struct stat out, at;
    DIR *d = opendir(recipe->out);
    int rc = 0;

    for (struct dirent *e; rc == 0 && d && (e = readdir(d));)
        if (is_foreign(recipe->out, e->d_name) && fstatat(dirfd(d), e->d_name, &at, AT_SYMLINK_NOFOLLOW) == 0 &&
            S_ISLNK(at.st_mode))
            rc = wz_recipe_fail(recipe, err, "out", "%.200s/%.80s is a link, and a run writes through none",
                                recipe->out, e->d_name);
        else if (is_foreign(recipe->out, e->d_name) && (!run || (model && !writes_model)))
            rc = wz_recipe_fail(recipe, err, "out", "%.200s is not a run's folder: it holds %s%.80s; choose another",
                                recipe->out, model ? "a model, " : "", e->d_name);
    for (unsigned i = 0; rc == 0 && d && i < recipe->n_agents; i++)
        if (stat(recipe->out, &out) == 0 && stat(recipe->agents[i].model, &at) == 0 && out.st_dev == at.st_dev &&
            out.st_ino == at.st_ino)
            rc = wz_recipe_fail(recipe, err, "out",
                                "%.200s is the folder of the model that agent %s begins with; choose another",
                                recipe->out, recipe->agents[i].name);
    if (d) closedir(d);
    for (size_t i = 0; i < WZ_COUNT(marks); i++) free(marks[i]);
    return rc;
}

/* Checkpoints that were not whole when a start was killed. */
static void remove_halves(const char *run)
{
    char *parent = wz_path("%s/checkpoints", run);
    DIR *d = opendir(parent);

    for (struct dirent *e; d && (e = readdir(d));) {
        char *path = wz_path("%s/%s", parent, e->d_name);
        if (!strncmp(e->d_name, ".half-", 6)) wz_remove_tree(path);
        free(path);
    }
    if (d) closedir(d);
    free(parent);
}

/* The number in the run's lock; 0: none. */
static int64_t read_start(const char *run)
{
    char *lock = wz_path("%s/.lock", run), text[24] = "";
    int fd = open(lock, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

    free(lock);
    if (fd < 0) return 0;
    if (pread(fd, text, sizeof text - 1, 0) < 0) text[0] = 0;
    close(fd);
    return strtoll(text, NULL, 10);
}

/* A start's number is its time in milliseconds, or one more than the last one's. */
static int count_start(struct wz_run *run, const char *dir, struct wz_err *err)
{
    const int64_t last = read_start(dir), now = (int64_t)(wz_wall() * 1000);
    char text[24];
    int n = snprintf(text, sizeof text, "%" PRId64 "\n", now > last ? now : last + 1);

    if (wz_write_at(run->lock, text, (size_t)n, 0) == 0 && ftruncate(run->lock, n) == 0) return 0;
    return wz_fail(err, "%s/.lock: %s", dir, strerror(errno));
}

static int open_lock(struct wz_run *run, const struct wz_recipe *recipe, bool writes_model, struct wz_err *err)
{
    char *lock = wz_path("%s/.lock", recipe->out);
    int rc = check_folder(recipe, writes_model, err);

    if (rc == 0) rc = wz_mkdirs(recipe->out, err);
    if (rc == 0 && (run->lock = open(lock, O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666)) < 0)
        rc = wz_fail(err, "%s: %s", lock, strerror(errno));
    free(lock);
    return rc;
}

int wz_run_lock(struct wz_run *run, struct wz_job *job, bool writes_model, struct wz_err *err)
{
    *run = (struct wz_run){ .lock = -1 };
    int rc = wz_link_agree(&job->link, job->root ? open_lock(run, job->recipe, writes_model, err) : 0, err);
    if (rc < 0) return rc;
    if (job->root && !wz_lock(run->lock, false))
        rc = wz_fail(err, "%s: another process is writing this run; wait for its end or choose another `out`",
                     job->recipe->out);
    return wz_link_agree(&job->link, rc, err) < 0;
}

/* Before anything is written: no later start has begun. */
static int check_start(const struct wz_run *run, const struct wz_job *job, struct wz_err *err)
{
    const int64_t now = read_start(job->recipe->out);

    if (!now || now == run->start) return 0;
    return wz_fail(err,
                   "%s/.lock: expected the number of this start, %" PRId64 ", got %" PRId64
                   ": another start writes the run now, and this one nothing more",
                   job->recipe->out, run->start, now);
}

bool wz_run_began(const struct wz_recipe *recipe)
{
    char *paths[] = { wz_path("%s/recipe.yaml", recipe->out), wz_path("%s/chain.jsonl", recipe->out) };
    struct stat st;
    const bool began = wz_file_exists(paths[0]) && stat(paths[1], &st) == 0 && st.st_size;

    free(paths[0]);
    free(paths[1]);
    return began;
}

int wz_run_resumes(const struct wz_recipe *recipe, struct wz_err *err)
{
    char *path = wz_path("%s/recipe.yaml", recipe->out);
    struct wz_recipe *was = NULL;
    int rc = wz_recipe_load(&was, path, NULL, 0, err);

    if (rc == 0) rc = wz_recipe_resumes(was, recipe, err);
    else wz_fail(err, "%.500s; restore it: it says what run the checkpoints are of", err->text);
    wz_recipe_destroy(was);
    free(path);
    return rc;
}

/* What the run had written when the checkpoint was saved is there. */
static int check_history(struct wz_run *run, const struct wz_job *job, const char *dir, struct wz_err *err)
{
    json_t *root = wz_manifest_open(dir, err), *was = json_object_get(root, "history");

    if (root && !was) wz_fail(err, "%s/manifest.json: history: expected the lengths of the run's files", dir);
    json_t *now = was ? wz_history_take(job->recipe->out, was, SIZE_MAX, err) : NULL;
    if (now) run->history = json_incref(was);
    json_decref(now);
    json_decref(root);
    return run->history ? 0 : -1;
}

int wz_run_history(struct wz_run *run, const struct wz_job *job, const struct wz_progress *p, struct wz_err *err)
{
    const int64_t made = p->step - run->line.first; /* lines of an earlier start may follow in chain.jsonl */
    const size_t chain = made < run->n_ahead ? run->ahead[made].at : SIZE_MAX;

    if (!job->root) return 0;
    json_t *now = check_start(run, job, err) == 0 ? wz_history_take(job->recipe->out, run->history, chain, err) : NULL;
    if (!now) return -1;
    json_decref(run->history);
    run->history = now;
    return 0;
}

int wz_run_cut(struct wz_run *run, struct wz_job *job, const struct wz_progress *p, const char *dir, struct wz_err *err)
{
    const bool records = job->roles.learner.me >= 0 && !wz_job_supervised(job->recipe);
    int64_t kept = 0;

    int rc = dir ? read_table(&run->table, job->recipe, p, err) : 0;
    if (rc == 0 && dir && job->root) rc = check_history(run, job, dir, err);
    if (rc == 0 && job->root && p->stage < (int)job->recipe->n_stages) {
        rc = count_start(run, job->recipe->out, err);
        if (rc == 0) remove_halves(job->recipe->out);
    }
    if (wz_link_agree(&job->link, rc, err) < 0) goto lost;
    run->start = read_start(job->recipe->out);
    if (records) rc = cut_record(job, p, dir, &kept, err);
    if (wz_link_agree(&job->link, rc, err) < 0) goto lost;
    if (records) rc = count_record(job, p, kept, err);
    if (wz_link_agree(&job->link, rc, err) == 0) return 0;
lost:
    if (err->text[0]) wz_fail(err, "%.500s; restore it, or see `waltz fsck`", err->text);
    return -1;
}

int wz_run_open(struct wz_run *run, struct wz_job *job, const struct wz_progress *p, const char *dir,
                struct wz_err *err)
{
    const int me = job->roles.learner.me;

    run->line = (struct wz_progress_line){ .begin = wz_now(), .first = p->step, .tty = isatty(STDERR_FILENO) };
    for (unsigned i = 0; i < job->recipe->n_stages; i++) run->line.total += job->recipe->stages[i].steps;
    char *path = wz_path("%s/episodes-%d.h5", job->recipe->out, me);
    if (me >= 0 && !wz_job_supervised(job->recipe)) run->record = wz_record_open(path, err);
    int rc = me >= 0 && !wz_job_supervised(job->recipe) && !run->record ? -1 : 0;
    free(path);
    if (wz_link_agree(&job->link, rc, err) < 0) return -1;
    if (job->root) rc = open_files(run, job, p, dir, err);
    return wz_link_agree(&job->link, rc, err);
}

void wz_run_close(struct wz_run *run)
{
    wz_record_close(run->record);
    if (run->metrics) {
        int lost = wz_metrics_close(run->metrics);
        if (lost) wz_log("metrics: %d writes failed and were skipped", lost);
    }
    wz_table_finish(&run->table);
    free(run->ahead);
    free(run->beyond);
    json_decref(run->history);
    if (run->lock >= 0) close(run->lock);
    *run = (struct wz_run){ .lock = -1 };
}

/* ---- a step ----------------------------------------------------------------------------------------------- */

/* Does a step that is made again come out the same? Not where the recipe gives that away, or a judge may fail. */
static bool repeats(const struct wz_job *job)
{
    bool repeats = strcmp(job->recipe->numerics.cuda, "fast") && strcmp(job->recipe->numerics.nccl_sum, "ring");

    for (int i = 0; i < job->judges.n; i++) repeats &= job->judges.list[i].row->instant;
    return repeats;
}

/* Where an earlier start has made the step already, its line is compared. */
static int write_chain(struct wz_run *run, const struct wz_job *job, const struct wz_progress *p, int64_t step,
                       struct wz_err *err)
{
    char *path = wz_path("%s/chain.jsonl", job->recipe->out);
    struct wz_buf line = { 0 };

    if (step - run->line.first < run->n_ahead) {
        const struct wz_ahead *was = &run->ahead[step - run->line.first];
        int rc = 0;
        if (was->chain != p->chain && repeats(job))
            rc = wz_fail(err,
                         "%s: step %" PRId64 ": expected the chain %016" PRIx64 ", as an earlier start made it, got "
                         "%016" PRIx64 ": a file, the program or the machine has changed; delete the file's lines from "
                         "this step on to go on all the same",
                         path, step, was->chain, p->chain);
        else if (was->chain != p->chain) {
            wz_log("step %" PRId64 " came out another way than an earlier start made it", step);
            if (truncate(path, (off_t)was->at) < 0) rc = wz_fail(err, "%s: %s", path, strerror(errno));
            run->n_ahead = 0;
        }
        if (rc < 0 || run->n_ahead) {
            free(path);
            return rc;
        }
    }
    wz_buf_printf(&line, "{\"step\":%" PRId64 ",\"chain\":\"%016" PRIx64 "\",\"agents\":{", step, p->chain);
    for (int a = 0; a < job->n_agents; a++)
        wz_buf_printf(&line, "%s\"%s\":\"%016" PRIx64 "\"", a ? "," : "", job->agents[a].recipe->name, p->hash[a]);
    wz_buf_str(&line, "}}\n");
    int rc = wz_file_append(path, line.data, line.len, err);
    wz_buf_finish(&line);
    free(path);
    return rc;
}

static double share(double part, double whole) { return whole > 0 ? part / whole : NAN; }

/* Why samples of the step were discarded: the reason of the first of root's own episodes. */
static const char *first_discard(const struct wz_step_report *r)
{
    for (int i = 0; i < r->n; i++)
        if (r->episodes[i]->discard[0]) return r->episodes[i]->discard;
    return "on another rank";
}

/* Writes over the line of the step before: no more than the terminal is wide, or it would not be one line. */
static void print_over(const char *text, bool last)
{
    struct winsize w;
    size_t columns = ioctl(STDERR_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 1 ? w.ws_col - 1 : 79;
    char line[512];
    size_t n = wz_printable(line, columns < sizeof line ? columns + 1 : sizeof line, text, strlen(text), "");

    fprintf(stderr, "\r\033[K%.*s%s", (int)n, line, last ? "\n" : "");
}

static void log_step(struct wz_run *run, const struct wz_job *job, const struct wz_progress *p,
                     const struct wz_step_report *r, const struct wz_tally *s)
{
    double spent = wz_now() - run->line.begin,
           left = spent / (double)(p->step - run->line.first) * (double)(run->line.total - p->step);
    struct wz_buf text = { 0 };

    wz_buf_printf(&text, "%s %d/%d  %.0f:%02.0f left", r->stage->name, p->stage_step, r->stage->steps, floor(left / 60),
                  floor(fmod(left, 60)));
    if (run->record) wz_buf_printf(&text, "  reward %.3f -> %.3f", share(s->c0, s->judged), share(s->final, s->judged));
    if (s->feedback > 0)
        wz_buf_printf(&text, "  label %.3f json errors %.3f triggered %.3f", s->label / s->feedback,
                      s->json / s->feedback, s->triggered / s->asked);
    for (int a = 0; a < job->n_agents; a++)
        if (job->agents[a].learner.model) {
            const bool kl = run->record && job->agents[a].learner.reference.model;
            const struct wz_step_stats *did = &r->learned[a];
            wz_buf_printf(&text, "  %s", job->agents[a].recipe->name);
            if (did->samples > 0)
                wz_buf_printf(&text, " %s %.3f grad %.2f", kl ? "kl" : "loss", kl ? did->kl : did->loss,
                              did->grad_norm);
            else wz_buf_str(&text, " not updated"); /* no samples, or a gradient that is not finite */
        }
    if (s->judged < s->episodes)
        wz_buf_printf(&text, "  discarded %.0f (%s)", s->episodes - s->judged, first_discard(r));
    wz_buf_printf(&text, "  %.0f tok/s", s->generated / (r->publish_end - r->begin));
    if (run->line.tty) print_over(text.data, p->stage_step == r->stage->steps);
    else if (p->stage_step % 10 == 0 || p->stage_step == 1 || p->stage_step == r->stage->steps) wz_log("%s", text.data);
    wz_buf_finish(&text);
}

/* Says in the log what is wrong with an agent's updates: a gradient that is not finite, and steps in a row in which it
 * had no reward signal. -1 where the run has to stop. */
static int watch_agent(struct wz_run *run, const struct wz_job *job, int64_t step, const struct wz_step_report *report,
                       const struct wz_account *account, const struct wz_rewards *rewards, int a, struct wz_err *err)
{
    enum { WARN_AFTER = 5, WARN_EVERY = 50 }; /* steps in a row before the first warning, and between warnings */
    const char *name = job->agents[a].recipe->name;
    const struct wz_learner *l = &job->agents[a].learner;
    const struct wz_step_stats *did = &report->learned[a];
    const int most = job->recipe->max_nonfinite_updates;

    if (did->not_finite)
        wz_log("step %" PRId64 ": agent %s: the gradient is not finite: the update is skipped and its samples are "
               "discarded, %d in a row, %d stop the run",
               step, name, l->opt.not_finite, most);
    if (l->opt.not_finite >= most)
        return wz_fail(err,
                       "step %" PRId64
                       ": agent %s: %d gradients in a row were not finite (max_nonfinite_updates): begin "
                       "another run with a lower lr or kl_coef, from a checkpoint of this one if need be",
                       step, name, l->opt.not_finite);
    char *why = run->record ? wz_account_idle(account, job, report, rewards, a) : NULL;
    run->idle[a] = why ? run->idle[a] + 1 : 0;
    if (run->idle[a] % WARN_EVERY == WARN_AFTER)
        wz_log("warning: agent %s had no reward signal in %d steps in a row, the last step %" PRId64 ": %s", name,
               run->idle[a], step, why);
    free(why);
    return 0;
}

int wz_run_step(struct wz_run *run, struct wz_job *job, const struct wz_progress *p,
                const struct wz_step_report *report, struct wz_err *err)
{
    const struct wz_group group = wz_ranks_group(&job->roles.learner);
    const struct wz_rewards rewards = wz_job_rewards(job, report->stage);
    const int64_t step = p->step - 1;
    struct wz_account mine = { 0 }, *all;
    enum { WIDTH = sizeof mine / sizeof(double) };
    int rc = 0;

    if (check_start(run, job, err) < 0) return -1;
    all = wz_alloc(sizeof *all * (size_t)group.n);
    for (int i = 0; i < report->n; i++) wz_account_add(&mine, job, report, &rewards, report->episodes[i]);
    wz_all_gather(&job->link, &group, (double *)&mine, WIDTH, (double *)all);
    memset(&mine, 0, sizeof mine);
    for (int r = 0; r < group.n; r++)
        for (int k = 0; k < WIDTH; k++) ((double *)&mine)[k] += ((double *)&all[r])[k];
    free(all);
    for (int a = 0; !run->record && a < job->n_agents; a++) mine.sums.generated += report->learned[a].tokens;
    if (run->record) rc = wz_record_episodes(run->record, report->episodes, report->n, err);
    if (rc < 0 || !job->root) return rc;
    if (run->record && wz_account_ledger(&mine, job, step, report->batch.generated, err) < 0) return -1;
    if (write_chain(run, job, p, step, err) < 0) return -1;
    wz_account_metrics(&mine, job, step, report, run->record, run->metrics, run->beyond);
    log_step(run, job, p, report, &mine.sums);
    run->lost = run->record && mine.sums.judged == 0 ? run->lost + 1 : 0;
    if (run->lost >= job->recipe->max_lost_steps)
        return wz_fail(err,
                       "step %" PRId64 ": all episodes of %d steps in a row were discarded (max_lost_steps), the last "
                       "ones because: %s",
                       step, run->lost, first_discard(report));
    for (int a = 0; rc == 0 && a < job->n_agents; a++)
        if (job->agents[a].learner.model) rc = watch_agent(run, job, step, report, &mine, &rewards, a, err);
    return rc < 0 ? rc : watch_limits(run, job, p, err);
}

/* ---- evaluations ------------------------------------------------------------------------------------------ */

bool wz_run_due(const struct wz_run *run, const struct wz_job *job, const struct wz_progress *p)
{
    int every = job->recipe->evaluate.every;
    char phase[32];

    snprintf(phase, sizeof phase, "step-%" PRId64, p->step);
    bool last = p->stage == (int)job->recipe->n_stages - 1 && p->stage_step == job->recipe->stages[p->stage].steps;

    return job->recipe->n_eval && every > 0 && p->step % every == 0 && !last && !has_phase(&run->table, phase);
}

int64_t wz_run_best(const struct wz_run *run, const struct wz_recipe *recipe)
{
    const struct wz_measure *m = wz_measure_find(recipe->checkpoint.best);
    double most = -INFINITY;
    int64_t best = -1, step;

    for (int i = 0; m && i < run->table.n; i++) {
        const struct wz_result *r = &run->table.rows[i];
        if (strcmp(r->metric, m->name) || sscanf(r->phase, "step-%" SCNd64, &step) != 1 ||
            wz_table_find(&run->table, r->phase, WZ_AVERAGE, m->name) != r || !(m->better * r->value > most))
            continue;
        char *dir = wz_path("%s/checkpoints/%" PRId64, recipe->out, step);
        const bool there = wz_is_dir(dir);
        free(dir);
        if (!there) continue;
        most = m->better * r->value;
        best = step;
    }
    return best;
}

/* The table of before and after; the checkpoints between are for the report. */
static void print_ends(const struct wz_table *table)
{
    struct wz_table ends = { 0 };
    struct wz_buf text = { 0 };

    for (int i = 0; i < table->n; i++)
        if (strncmp(table->rows[i].phase, "step-", 5)) wz_table_add(&ends, &table->rows[i]);
    wz_table_text(&ends, &text);
    fprintf(stderr, "%s\n", text.data ? text.data : "");
    wz_buf_finish(&text);
    wz_table_finish(&ends);
}

static int evaluate(struct wz_run *run, struct wz_job *job, int64_t step, const char *phase, bool print,
                    struct wz_err *err)
{
    const struct wz_recipe *recipe = job->recipe;
    char *transcripts = wz_path("%s/transcripts.jsonl", recipe->out);
    int rc = wz_evaluate(job, phase, recipe->evaluate.temperature, recipe->evaluate.eval_limit, &run->table,
                         print ? transcripts : NULL, err);

    if (rc == 0 && job->root) rc = check_start(run, job, err);
    if (rc == 0 && job->root) {
        if (run->line.tty) fprintf(stderr, "\n");
        if (print) print_ends(&run->table);
        write_evaluation(run, step, phase);
        rc = write_table(recipe, &run->table, err);
    }
    free(transcripts);
    return rc;
}

int wz_run_before(struct wz_run *run, struct wz_job *job, struct wz_err *err)
{
    return evaluate(run, job, 0, "before", true, err);
}

int wz_run_evaluate(struct wz_run *run, struct wz_job *job, const struct wz_progress *p, struct wz_err *err)
{
    char phase[32];

    snprintf(phase, sizeof phase, "step-%" PRId64, p->step);
    return evaluate(run, job, p->step, phase, false, err);
}

int wz_run_after(struct wz_run *run, struct wz_job *job, const struct wz_progress *p, struct wz_err *err)
{
    if (!job->recipe->n_eval) return 0;
    if (!has_phase(&run->table, "after")) return evaluate(run, job, p->step, "after", true, err);
    if (job->root) print_ends(&run->table); /* made by an earlier start */
    return 0;
}
