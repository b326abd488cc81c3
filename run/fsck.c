/* The check of a run's folder. The newest whole checkpoint is the measure: what the run had written when it was saved
 * must be there, what is newer is made again by the next start. */
#include "run/fsck.h"
#include "run/manifest.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct fsck {
    const struct wz_recipe *recipe;
    const char *run;
    bool repair;
    int lost;
    struct wz_progress p;
    char *dir; /* of the newest whole checkpoint; NULL: none */
    void (*tell)(void *arg, enum wz_fsck_status status, const char *what, const char *why);
    void *arg;
};

static void say(struct fsck *f, enum wz_fsck_status status, const char *what, const char *fmt, ...) WZ_PRINTF(4, 5);
static void say(struct fsck *f, enum wz_fsck_status status, const char *what, const char *fmt, ...)
{
    struct wz_err why;
    va_list args;

    va_start(args, fmt);
    vsnprintf(why.text, sizeof why.text, fmt, args);
    va_end(args);
    f->lost += status == WZ_FSCK_LOST;
    f->tell(f->arg, status, what, why.text);
}

/* What is lost is told; repair takes it down, and then it counts no more. */
static int lose(struct fsck *f, const char *what, const char *why, struct wz_err *err)
{
    char *path = wz_path("%s/lost.jsonl", f->run);
    struct wz_buf line = { 0 };
    int rc = 0;

    say(f, f->repair ? WZ_FSCK_FIXED : WZ_FSCK_LOST, what, "%s%s", why, f->repair ? "; taken down in lost.jsonl" : "");
    wz_buf_printf(&line, "{\"time\":%.3f,\"step\":%" PRId64 ",\"what\":", wz_wall(), f->p.step);
    wz_json_string(&line, what, strlen(what));
    wz_buf_str(&line, ",\"why\":");
    wz_json_string(&line, why, strlen(why));
    wz_buf_str(&line, "}\n");
    if (f->repair) rc = wz_file_append(path, line.data, line.len, err);
    wz_buf_finish(&line);
    free(path);
    return rc;
}

/* ---- checkpoints ------------------------------------------------------------------------------------------ */

/* Tells what is damaged, `otherwise` or set aside by repair. */
static int set_aside(struct fsck *f, enum wz_fsck_status otherwise, const char *path, const char *what, const char *why,
                     struct wz_err *err)
{
    char *to = wz_path("%s.broken", path);
    int rc = 0;

    for (int i = 2; wz_file_exists(to); i++) {
        free(to);
        to = wz_path("%s.broken.%d", path, i);
    }
    if (f->repair) rc = wz_rename(path, to, err);
    if (rc == 0)
        say(f, f->repair ? WZ_FSCK_FIXED : otherwise, what, "%s%s", why, f->repair ? "; set aside as .broken" : "");
    free(to);
    return rc;
}

static int check_checkpoints(struct fsck *f, struct wz_err *err)
{
    int n, rc = 0;
    int64_t *steps = wz_checkpoint_steps(f->run, &n);

    for (int i = 0; rc == 0 && i < n; i++) {
        struct wz_progress p;
        struct wz_err why;
        char *path = wz_path("%s/checkpoints/%" PRId64, f->run, steps[i]), *dir, what[48];
        snprintf(what, sizeof what, "checkpoint %" PRId64, steps[i]);
        if (wz_checkpoint_whole(f->run, steps[i], true, NULL, &p, &dir, f->recipe, &why) < 0)
            rc = set_aside(f, WZ_FSCK_NEXT, path, what, why.text, err);
        else {
            say(f, WZ_FSCK_OK, what, "whole");
            if (!f->dir) {
                f->dir = wz_strdup(dir);
                f->p = p;
            }
        }
        free(dir);
        free(path);
    }
    if (rc == 0 && !f->dir)
        say(f, WZ_FSCK_NEXT, "checkpoints", "%s is whole: the run is made again from its beginning", n ? "none" : "no");
    free(steps);
    return rc;
}

/* ---- what the run has written ------------------------------------------------------------------------------ */

/* Keeps the lines before the checkpoint that are JSON: what is left of a damaged file, to which the run appends. */
static int keep_lines(const struct fsck *f, const char *name, struct wz_err *err)
{
    char *path = wz_path("%s/%s", f->run, name);
    struct wz_buf kept = { 0 };
    struct wz_map map = { 0 };
    int rc = wz_file_exists(path) ? wz_map_open(&map, path, err) : 0;

    for (struct wz_lines l = wz_lines_begin(map.bytes, map.len); rc == 0 && wz_lines_next(&l) && l.ended;) {
        json_t *line = wz_json_parse(l.line, l.n, path, NULL);
        const json_t *step = json_object_get(line, "step");
        if (line && (!step || json_integer_value(step) < f->p.step)) {
            wz_buf_add(&kept, l.line, l.n);
            wz_buf_str(&kept, "\n");
        }
        json_decref(line);
    }
    wz_map_close(&map);
    if (rc == 0) rc = wz_file_write(path, kept.data ? kept.data : "", kept.len, err);
    wz_buf_finish(&kept);
    free(path);
    return rc;
}

/* The table of results is one file; what can't be read as such is emptied. */
static int keep_table(const struct fsck *f, struct wz_err *err)
{
    char *path = wz_path("%s/summary.csv", f->run);
    struct wz_table table = { 0 };
    struct wz_err none;
    int rc = 0;

    if (wz_file_exists(path) && wz_table_read(&table, path, &none) < 0) rc = wz_file_write(path, "", 0, err);
    wz_table_finish(&table);
    free(path);
    return rc;
}

static int check_history(struct fsck *f, json_t *manifest, struct wz_err *err)
{
    const json_t *was = json_object_get(manifest, "history");
    json_t *now = json_object();
    int rc = 0;

    for (int i = 0; rc == 0 && wz_history[i]; i++) {
        const char *name = wz_history[i];
        struct wz_err why;
        if (wz_history_file(f->run, name, was, SIZE_MAX, now, &why) == 0) {
            say(f, WZ_FSCK_OK, name, "has all that it had at checkpoint %" PRId64, f->p.step);
            json_object_set(now, name, json_object_get(was, name));
            continue;
        }
        rc = lose(f, name, why.text, err);
        if (rc == 0 && f->repair) rc = strcmp(name, "summary.csv") ? keep_lines(f, name, err) : keep_table(f, err);
        if (rc == 0 && f->repair) rc = wz_history_file(f->run, name, NULL, SIZE_MAX, now, err);
    }
    json_object_set_new(manifest, "history", now);
    return rc;
}

/* Every episode up to the checkpoint can be read, from whichever learner's file. */
static int check_record(struct fsck *f, json_t *manifest, struct wz_err *err)
{
    const int64_t want = wz_progress_episodes(&f->p, f->recipe) - f->p.lost;
    int64_t have = 0;
    int rc = 0;

    for (int k = 0; rc == 0; k++) {
        char *path = wz_path("%s/episodes-%d.h5", f->run, k), what[32];
        const bool there = wz_file_exists(path);
        int64_t kept = 0;
        struct wz_err why;
        snprintf(what, sizeof what, "episodes-%d.h5", k);
        const int bad = there ? wz_record_check(path, f->p.step, &kept, &why) : 0;
        if (bad < 0) {
            kept = 0;
            rc = set_aside(f, WZ_FSCK_LOST, path, what, why.text, err);
        } else if (there) say(f, WZ_FSCK_OK, what, "%" PRId64 " episodes up to the checkpoint can be read", kept);
        have += kept;
        free(path);
        if (!there) break;
    }
    if (have > want) {
        say(f, WZ_FSCK_LOST, "episodes-*.h5", "expected %" PRId64 " episodes of %" PRId64 " steps, got %" PRId64, want,
            f->p.step, have);
        have = want;
    } else if (rc == 0 && have < want) {
        char *why = wz_path("expected %" PRId64 " episodes of %" PRId64 " steps, got %" PRId64, want, f->p.step, have);
        rc = lose(f, "episodes-*.h5", why, err);
        free(why);
    }
    json_object_set_new(manifest, "lost", json_integer(f->p.lost + want - have));
    return rc;
}

/* What killed starts left. */
static int check_leftovers(struct fsck *f, const char *folder, struct wz_err *err)
{
    DIR *d = opendir(folder);

    for (struct dirent *e; d && (e = readdir(d));) {
        const char *dot = strrchr(e->d_name, '.');
        const bool half = !strncmp(e->d_name, ".half-", 6);
        if (!half && (!dot || strcmp(dot, ".tmp") != 0)) continue;
        char *path = wz_path("%s/%s", folder, e->d_name);
        if (f->repair) wz_remove_tree(path);
        say(f, f->repair ? WZ_FSCK_FIXED : WZ_FSCK_NEXT, e->d_name, "left by a start that was killed%s",
            f->repair ? "; deleted" : "");
        free(path);
    }
    if (d) closedir(d);
    return 0;
}

int wz_fsck(struct wz_job *job, bool repair,
            void (*tell)(void *arg, enum wz_fsck_status status, const char *what, const char *why), void *arg,
            struct wz_err *err)
{
    struct fsck f = { .recipe = job->recipe, .run = job->recipe->out, .repair = repair, .tell = tell, .arg = arg };
    char *checkpoints = wz_path("%s/checkpoints", f.run);
    int rc = check_checkpoints(&f, err);
    json_t *manifest = rc == 0 && f.dir ? wz_manifest_open(f.dir, err) : NULL;

    if (rc == 0 && f.dir && !manifest) rc = -1;
    if (rc == 0 && manifest) rc = check_history(&f, manifest, err);
    if (rc == 0 && manifest && !wz_job_supervised(job->recipe)) rc = check_record(&f, manifest, err);
    if (rc == 0 && manifest && repair) {
        char *path = wz_path("%s/manifest.json", f.dir);
        wz_manifest_seal(manifest);
        rc = wz_json_save(json_incref(manifest), path, err);
        free(path);
    }
    if (rc == 0) rc = check_leftovers(&f, f.run, err);
    if (rc == 0) rc = check_leftovers(&f, checkpoints, err);
    json_decref(manifest);
    free(checkpoints);
    free(f.dir);
    return rc < 0 ? rc : f.lost;
}
