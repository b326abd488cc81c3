/* waltz judge: verdicts for (prompt, response) pairs, of JSON lines or the record of a run, and how far they agree with
 * labels.
 *
 * Agreement is counted over the lines that have the label and a verdict. tp, fp, fn, tn: flag raised or not, label true
 * or not. accuracy = (tp + tn) / all, FPR = fp / (fp + tn), with Wilson's intervals where each line is a group of its
 * own; F1 = 2 tp / (2 tp + fp + fn); AUPRC is the average precision of the scores, sum over thresholds of precision
 * times the step in recall. All others by the cluster bootstrap of run/tally.c, over the lines' `group`. */
#include "run/run.h"
#include "launch/launch.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BATCH = 256, LABELS = 2 };
static const char *const labels[LABELS] = { "harmful", "refusal" };
static const unsigned flags[LABELS] = { WZ_JUDGED_HARMFUL, WZ_JUDGED_REFUSAL };

/* A line that has a label and a verdict on it. */
struct counted {
    double score;
    bool raised, label;
    int group;
};
struct agreement {
    struct counted *list;
    int n, cap, failed;
};
struct line {
    json_t *json; /* holds the texts */
    struct wz_question q;
    char *problem;            /* why it is not asked; heap */
    int group, label[LABELS]; /* -1: it has none */
};

/* ---- agreement -------------------------------------------------------------------------------------------- */

static int by_score(const void *a, const void *b)
{
    const struct counted *x = a, *y = b;

    return (x->score < y->score) - (x->score > y->score); /* falling */
}

enum { ACCURACY, F1, AUPRC, FPR, MEASURES };
static const char *const measures[MEASURES] = { "accuracy", "F1", "AUPRC", "FPR" };

/* times[group]: how often each group counts; NULL: once. The list is in falling order of scores. NaN: nothing is
 * counted. */
static void measure(const struct agreement *g, const int *times, double out[MEASURES])
{
    double tp = 0, fp = 0, fn = 0, tn = 0, positives = 0, above = 0, right = 0, area = 0, recall = 0;

    for (int i = 0; i < g->n; i++) {
        const struct counted *c = &g->list[i];
        const double w = times ? times[c->group] : 1;
        *(c->raised ? c->label ? &tp : &fp : c->label ? &fn : &tn) += w;
    }
    positives = tp + fn;
    for (int i = 0; i < g->n; i++) {
        const struct counted *c = &g->list[i];
        const double w = times ? times[c->group] : 1;
        above += w;
        right += c->label ? w : 0;
        if (i + 1 < g->n && g->list[i + 1].score == c->score) continue; /* equal scores have one threshold */
        if (positives > 0 && above > 0) area += right / above * (right / positives - recall);
        if (positives > 0) recall = right / positives;
    }
    out[ACCURACY] = tp + fp + fn + tn > 0 ? (tp + tn) / (tp + fp + fn + tn) : NAN;
    out[F1] = 2 * tp + fp + fn > 0 ? 2 * tp / (2 * tp + fp + fn) : NAN;
    out[AUPRC] = positives > 0 ? area : NAN;
    out[FPR] = fp + tn > 0 ? fp / (fp + tn) : NAN;
}

static void print_agreement(struct agreement *g, int groups, const char *judge, const char *label, FILE *out)
{
    double(*draws)[WZ_REPLICATES] = wz_alloc(sizeof *draws * MEASURES), value[MEASURES], one[MEASURES];
    int *times = wz_alloc(sizeof *times * (size_t)(groups + 1)), negatives = 0;
    bool grouped = false, *met = wz_alloc(sizeof *met * (size_t)(groups + 1));

    if (g->n) qsort(g->list, (size_t)g->n, sizeof *g->list, by_score);
    for (int i = 0; i < g->n; i++) {
        grouped |= met[g->list[i].group];
        met[g->list[i].group] = true;
        negatives += !g->list[i].label;
    }
    measure(g, NULL, value);
    for (int b = 0; b < WZ_REPLICATES; b++) {
        memset(times, 0, sizeof *times * (size_t)groups);
        for (int i = 0; i < groups; i++)
            times[wz_below((struct wz_key){ 1, WZ_RNG_BOOTSTRAP, (uint32_t)b, (uint32_t)i, 0, 0 }, (uint32_t)groups)]++;
        measure(g, times, one);
        for (int m = 0; m < MEASURES; m++) draws[m][b] = one[m];
    }
    for (int m = 0; m < MEASURES; m++) {
        const int n = m == FPR ? negatives : g->n;
        struct wz_interval in = wz_bootstrap_interval(draws[m], groups);
        if (!grouped && (m == ACCURACY || m == FPR)) in = wz_wilson(round(value[m] * n), n);
        if (in.low == in.high) in = (struct wz_interval){ NAN, NAN }; /* groups that are all alike say nothing */
        if (isnan(value[m])) fprintf(out, "%-20s %-8s %-9s -\n", judge, label, measures[m]);
        else if (isnan(in.low))
            fprintf(out, "%-20s %-8s %-9s %5.1f %% of %d\n", judge, label, measures[m], 100 * value[m], n);
        else
            fprintf(out, "%-20s %-8s %-9s %5.1f [%.1f, %.1f] %% of %d\n", judge, label, measures[m], 100 * value[m],
                    100 * in.low, 100 * in.high, n);
    }
    fprintf(out, "%-20s %-8s failed    %5d of %d\n", judge, label, g->failed, g->failed + g->n);
    free(draws);
    free(times);
    free(met);
}

static void count(struct agreement *g, const struct wz_answer *a, int which, const struct line *l)
{
    if (a->failed) {
        g->failed++;
        return;
    }
    if (g->n == g->cap) {
        g->cap = g->cap ? 2 * g->cap : 256;
        g->list = wz_realloc(g->list, wz_mul((size_t)g->cap, sizeof *g->list));
    }
    g->list[g->n++] = (struct counted){ which ? a->refusal_score : a->score, (a->flags & flags[which]) != 0,
                                        l->label[which] == 1, l->group };
}

/* ---- lines ------------------------------------------------------------------------------------------------ */

/* Reads the label of a line; where it is one of people's, null means that nobody has said. -1: there is none. One that
 * can't be read is a problem of the line. */
static int label_of(struct line *l, const char *name, const char *key, bool of_harm, bool people)
{
    const json_t *cell = json_object_get(l->json, key);
    const int says = wz_label_read(cell, of_harm);

    if (cell && says < 0 && !(people && json_is_null(cell)) && !l->problem) {
        char *text = wz_json_dump(cell, JSON_COMPACT);
        l->problem = wz_path("%s: \"%s\": expected true/false, yes/no%s or 0 to 1, got %.60s", name, key,
                             of_harm ? ", harmful/benign, unsafe/safe" : "", text);
        free(text);
    }
    return says;
}

/* The group's number; names: an object of those met so far. "" and none: a group of its own. */
static int group_of(json_t *names, const char *name, int *n)
{
    json_t *known = name && *name ? json_object_get(names, name) : NULL;

    if (known) return (int)json_integer_value(known);
    if (name && *name) json_object_set_new(names, name, json_integer(*n));
    return (*n)++;
}

/* Where lines come from: standard input, as they come, where there is no path. */
struct source {
    const char *path;
    struct wz_input in;
    struct wz_data_rows rows; /* of a file of JSON */
    int64_t *steps;           /* of a record: its steps, and the episodes of one */
    Wz__Episode **episodes;
    int n_steps, step, n, at, turn;
    long number;
    json_t *names; /* of groups */
    int groups;
};

static bool is_record(const char *path)
{
    const size_t n = path ? strlen(path) : 0;

    return n > 3 && !strcmp(path + n - 3, ".h5");
}

static int source_open(struct source *s, const char *path, struct wz_err *err)
{
    *s = (struct source){ .path = path, .names = json_object() };
    if (is_record(path)) return wz_record_steps(path, &s->steps, &s->n_steps, err);
    return path ? wz_data_rows_open(&s->rows, path, err) : 0;
}

static void source_close(struct source *s)
{
    for (int i = 0; i < s->n; i++) wz_episode_free(s->episodes[i]);
    free(s->episodes);
    free(s->steps);
    wz_data_rows_close(&s->rows);
    wz_input_finish(&s->in);
    json_decref(s->names);
}

/* The next reply of a record, as a line of JSON. 1, 0 at its end, -1. */
static int next_reply(struct source *s, json_t **json, struct wz_err *err)
{
    for (;;) {
        const Wz__Episode *e = s->at < s->n ? s->episodes[s->at] : NULL;
        const Wz__Turn *t = e && s->turn < (int)e->n_turns ? e->turns[s->turn] : NULL;
        if (t && !strcmp(t->role, WZ_CONVERSATION)) {
            char id[64];
            snprintf(id, sizeof id, "%lld.%u.%d", (long long)e->step, e->index, s->turn++);
            *json = json_pack("{s:s, s:s, s:s, s:b, s:s}", "id", id, "prompt", e->prompt, "response", t->text,
                              "prompt_harmful", (int)e->harmful, "group", e->group);
            return 1;
        }
        if (t) s->turn++;
        else if (e) {
            s->at++;
            s->turn = 0;
        } else {
            for (int i = 0; i < s->n; i++) wz_episode_free(s->episodes[i]);
            free(s->episodes);
            s->episodes = NULL;
            s->n = s->at = 0;
            if (s->step == s->n_steps) return 0;
            if (wz_record_read(s->path, s->steps[s->step++], &s->episodes, &s->n, err) < 0) return -1;
        }
    }
}

/* 1: a line was read, which may have a problem; 0: the end; -1: what there is can't be read. */
static int line_next(struct source *s, struct line *l, struct wz_err *err)
{
    struct wz_err why = { "" };
    const char *text = NULL;
    json_t *json = NULL;
    char name[32];
    size_t n = 0;
    int rc;

    if (is_record(s->path)) rc = next_reply(s, &json, err);
    else if (s->path) {
        rc = wz_data_rows_next(&s->rows, err);
        json = rc > 0 ? json_incref(s->rows.row) : NULL;
    } else rc = wz_input_next(&s->in, &text, &n, err);
    if (rc <= 0) return rc;
    s->number = s->path && json && !is_record(s->path) ? s->rows.number : s->number + 1;
    snprintf(name, sizeof name, "line %ld", s->number);
    if (!s->path) json = wz_json_parse(text, n, name, &why);
    *l = (struct line){ .json = json };
    l->q.prompt = wz_json_text(json_object_get(json, "prompt"));
    l->q.response = wz_json_text(json_object_get(json, "response"));
    if (why.text[0]) l->problem = wz_strdup(why.text);
    else if (!l->q.prompt || !l->q.response) l->problem = wz_path("%s: expected \"prompt\" and \"response\"", name);
    l->q.prompt_harmful = label_of(l, name, "prompt_harmful", true, false) == 1;
    for (int k = 0; k < LABELS; k++) l->label[k] = label_of(l, name, labels[k], flags[k] == WZ_JUDGED_HARMFUL, true);
    if (!l->problem) l->group = group_of(s->names, json_string_value(json_object_get(json, "group")), &s->groups);
    return 1;
}

static void put_answer(struct wz_buf *out, const struct wz_judge *j, const struct wz_answer *a)
{
    wz_json_string(out, j->name, strlen(j->name));
    if (a->failed) {
        wz_buf_str(out, ": {\"failed\": ");
        wz_json_string(out, a->why, strlen(a->why));
        wz_buf_str(out, "}");
        return;
    }
    wz_buf_str(out, ": {");
    for (int k = 0; k < LABELS; k++) {
        if (!(j->sees & flags[k])) continue;
        wz_buf_printf(out, "%s\"%s\": %s, \"%s\": ", out->data[out->len - 1] == '{' ? "" : ", ", labels[k],
                      a->flags & flags[k] ? "true" : "false", k ? "refusal_score" : "score");
        wz_real_add(out, k ? a->refusal_score : a->score);
    }
    wz_buf_str(out, "}");
}

/* Judges a batch of lines and answers them in order. Returns how many have no verdict of some judge. */
static int batch_judge(struct wz_judges *judges, struct line *lines, int n, struct agreement (*agree)[LABELS])
{
    struct wz_question q[BATCH];
    struct wz_answer answers[WZ_MAX_JUDGES][BATCH];
    struct wz_buf out = { 0 };
    int k = 0, lost = 0;

    for (int i = 0; i < n; i++)
        if (!lines[i].problem) q[k++] = lines[i].q;
    for (int j = 0; j < judges->n; j++) wz_judge_ask(&judges->list[j], q, answers[j], k);
    k = 0;
    for (int i = 0; i < n; i++) {
        json_t *id = json_object_get(lines[i].json, "id");
        char *named = id ? wz_json_dump(id, JSON_COMPACT) : NULL;
        bool failed = lines[i].problem != NULL;
        wz_buf_clear(&out);
        wz_buf_str(&out, "{");
        if (named) wz_buf_printf(&out, "\"id\": %s, ", named);
        free(named);
        if (failed) {
            wz_buf_str(&out, "\"error\": ");
            wz_json_string(&out, lines[i].problem, strlen(lines[i].problem));
        }
        for (int j = 0; j < judges->n && !lines[i].problem; j++) {
            wz_buf_str(&out, j ? ", " : "");
            put_answer(&out, &judges->list[j], &answers[j][k]);
            failed |= answers[j][k].failed;
            for (int l = 0; l < LABELS; l++)
                if (lines[i].label[l] >= 0 && judges->list[j].sees & flags[l])
                    count(&agree[j][l], &answers[j][k], l, &lines[i]);
        }
        k += !lines[i].problem;
        lost += failed;
        printf("%s}\n", out.data);
        json_decref(lines[i].json);
        free(lines[i].problem);
    }
    fflush(stdout);
    wz_buf_finish(&out);
    return lost;
}

/* -1, or how many lines have no verdict. */
static int judge_lines(struct wz_judges *judges, struct source *from, FILE *agreement, struct wz_err *err)
{
    static struct line lines[BATCH];
    struct agreement agree[WZ_MAX_JUDGES][LABELS] = { 0 };
    int n = 0, lost = 0, rc;

    while ((rc = line_next(from, &lines[n], err)) > 0) {
        if (++n < BATCH && (from->path || wz_input_ready(&from->in))) continue;
        lost += batch_judge(judges, lines, n, agree);
        n = 0;
    }
    if (n) lost += batch_judge(judges, lines, n, agree);
    for (int j = 0; j < judges->n; j++)
        for (int l = 0; l < LABELS; l++) {
            struct agreement *g = &agree[j][l];
            if (agreement && rc == 0 && g->n + g->failed)
                print_agreement(g, from->groups, judges->list[j].name, labels[l], agreement);
            free(g->list);
        }
    return rc < 0 ? -1 : lost;
}

/* ---- lessons ---------------------------------------------------------------------------------------------- */

/* Adds how the guard reads and answers a line that has labels for all that it says. Returns where its answer begins. */
static int add_lesson(const struct wz_judge *guard, const struct line *l, long number, struct wz_buf *out,
                      struct wz_err *err)
{
    const char *missing = !json_object_get(l->json, "prompt_harmful") ? "prompt_harmful" : NULL;
    struct wz_ids ids = { 0 };
    unsigned says = 0;

    if (l->problem) return wz_fail(err, "%s", l->problem);
    for (int k = 0; k < LABELS; k++) {
        if (guard->sees & flags[k] && l->label[k] < 0) missing = labels[k];
        says |= l->label[k] == 1 ? flags[k] : 0;
    }
    if (missing) return wz_fail(err, "line %ld: expected the label \"%s\"", number, missing);
    const int from = wz_guard_lesson(guard, &l->q, says, &ids, err);
    if (from < 0) wz_fail_in(err, "line %ld", number);
    wz_answer_ints(out, "ids", ids.ids, ids.n);
    wz_ids_finish(&ids);
    return from;
}

static int write_lessons(const struct wz_judge *guard, struct source *from, struct wz_err *err)
{
    struct wz_buf out = { 0 };
    struct line l;
    int rc;

    while ((rc = line_next(from, &l, err)) > 0) {
        wz_buf_clear(&out);
        const int begins = add_lesson(guard, &l, from->number, &out, err);
        json_decref(l.json);
        free(l.problem);
        if ((rc = begins < 0 ? -1 : 0) < 0) break;
        printf("{%s, \"from\": %d}\n", out.data, begins);
    }
    wz_buf_finish(&out);
    return rc;
}

/* ---- the command ------------------------------------------------------------------------------------------ */

/* A recipe of that one judge, whose keys are the overrides. */
static int load_one(struct wz_recipe **recipe, const char *kind, char *const *keys, int n, struct wz_err *err)
{
    static const char text[] =
        "name: judge\nsft: { model: none, data: none, out: none, steps: 1 }\n"; /* a recipe needs something to do */
    char path[] = "/tmp/waltz-judge-XXXXXX", **overrides = wz_alloc(sizeof *overrides * (size_t)(n + 1));
    const int fd = mkstemp(path);
    int rc = -1;

    overrides[0] = wz_path("judge.name=%s", kind);
    for (int i = 0; i < n; i++) overrides[i + 1] = wz_path("judge.%s", keys[i]);
    if (fd < 0 || write(fd, text, sizeof text - 1) < 0) wz_fail(err, "%s: %s", path, strerror(errno));
    else rc = wz_recipe_load(recipe, path, overrides, n + 1, err);
    if (fd >= 0) {
        close(fd);
        unlink(path);
    }
    for (int i = 0; i <= n; i++) free(overrides[i]);
    free(overrides);
    return rc;
}

/* One judge alone need not see everything, as those of a run together must. */
static int open_judges(struct wz_judges *judges, const struct wz_recipe *recipe, struct wz_backend *be,
                       struct wz_err *err)
{
    if (recipe->n_judges) return wz_job_judges(judges, recipe, be, true, err);
    const struct wz_judge_config config = wz_job_judge_config(&recipe->judge, be);
    *judges = (struct wz_judges){ .n = 1 };
    return wz_judge_open(&judges->list[0], &config, err);
}

int wz_cmd_judge(int argc, char **argv)
{
    const char *agreement = NULL, *data = NULL;
    bool list = false, lessons = false;
    const struct wz_option options[] = {
        { "data", 0, WZ_TEXT, &data, "FILE",
          "judge what is in FILE: JSON lines or an array, packed by gzip or not, or the replies in a run's record\n"
          "(episodes-0.h5)",
          0, 0 },
        { "lessons", 0, WZ_FLAG, &lessons, "",
          "write instead, for `waltz sft`, what a guard model learns from: each line, which has all its labels,\n"
          "as that guard reads and answers it",
          0, 0 },
        { "agreement", 0, WZ_TEXT, &agreement, "FILE",
          "write the agreement with the lines' labels to FILE; -: to standard error", 0, 0 },
        { "list", 0, WZ_FLAG, &list, "",
          "print the kinds of judges, and what each can see and can't, and "
          "end",
          0, 0 },
    };
    const struct wz_usage usage = {
        .name = "judge",
        .args = "[RECIPE|RUN|KIND] [key=value ...]",
        .options = options,
        .n_options = WZ_COUNT(options),
        .about =
            "Reads JSON lines {\"prompt\", \"response\"} from standard input, or --data, and writes, in order, what\n"
            "each judge says: {\"JUDGE\": {\"harmful\", \"score\", \"refusal\", \"refusal_score\"}}, or {\"JUDGE\": "
            "{\"failed\": why}}.\n"
            "The judges are those of a RECIPE or RUN, or one of a KIND, with keys of a recipe's `judge`: "
            "threshold=0.7\n"
            "model=DIR. A line may have an \"id\", which is written too, \"prompt_harmful\" (for rules), people's "
            "labels\n"
            "\"harmful\" and \"refusal\", and a \"group\" (lines of one group are not independent). The exit status is "
            "1\n"
            "where a line has no verdict of some judge.",
    };
    struct wz_recipe *recipe = NULL;
    struct wz_judges judges = { 0 };
    struct wz_backend *be = NULL;
    struct wz_err err = { "" };
    FILE *out = NULL;
    int status, n = wz_options_parse(&usage, argc, argv, &status), lost = -1;

    if (n < 0) return status;
    for (int i = 0; list && wz_judge_rows[i]; i++)
        printf("%-27s %s\n", wz_judge_rows[i]->name, wz_judge_rows[i]->about);
    if (list) return 0;
    if (!n) {
        wz_fail(&err, "RECIPE, RUN or KIND expected (--list lists the kinds)");
        wz_give_up("judge", &err);
        return 2;
    }
    char *path = wz_recipe_path(argv[0]);
    int rc = wz_file_exists(path) ? wz_recipe_load(&recipe, path, argv + 1, n - 1, &err)
                                  : load_one(&recipe, argv[0], argv + 1, n - 1, &err);
    free(path);
    if (rc == 0 && !(be = wz_job_backend(recipe, recipe->threads, &err))) rc = -1;
    if (rc == 0) rc = open_judges(&judges, recipe, be, &err);
    if (rc == 0 && agreement && !(out = strcmp(agreement, "-") ? fopen(agreement, "w") : stderr))
        rc = wz_fail(&err, "%s: %s", agreement, strerror(errno));
    if (rc == 0 && lessons && !(judges.n == 1 && judges.list[0].model))
        rc = wz_fail(&err, "--lessons: expected one judge, a guard model");
    struct source from = { 0 };
    if (rc == 0) rc = source_open(&from, data, &err);
    if (rc == 0) lost = lessons ? write_lessons(&judges.list[0], &from, &err) : judge_lines(&judges, &from, out, &err);
    source_close(&from);
    if (out && out != stderr && fclose(out) && lost >= 0) lost = wz_fail(&err, "%s: %s", agreement, strerror(errno));
    if (lost < 0) wz_give_up("judge", &err);
    wz_judges_close(&judges);
    wz_backend_close(be);
    wz_recipe_destroy(recipe);
    return lost != 0;
}
