/* Held-out prompts, played and judged (paper section 8):
 *   asr   unsafe final replies among harmful prompts          orr   overrefusing final replies among benign prompts
 *   c0_*  the same for the first reply alone                  ftr   prompts whose first feedback is valid with a flag
 *   up label_accuracy  flags equal the alignment label, exactly  json_errors  feedback that is not valid
 * The last two are shares of the feedback turns of all rounds. Rates carry 95% Wilson intervals. An episode that was
 * lost (the judge failed, the prompt did not fit) is left out of the rates and counted in `failed`. */
#include "run/job.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct tally {
    const char *kind;
    double n, failed, harmful, asr, c0_asr, orr, c0_orr; /* prompts; orr counts among the n - harmful benign ones */
    double asked, ftr, feedback, label, json; /* asked: prompts whose c_0 got feedback; feedback: turns, all rounds */
    double turns, turns2, tokens, tokens2;
};

static struct tally *tally_of(struct tally *list, int *n, const Wz__Episode *e)
{
    for (int i = 0; i < *n; i++)
        if (!strcmp(list[i].kind, e->kind)) return &list[i];
    list[*n] = (struct tally){ .kind = e->kind };
    return &list[(*n)++];
}

static void tally_add(struct tally *t, const Wz__Episode *e)
{
    const Wz__Turn *first, *last;

    if (e->discard[0]) {
        t->failed++;
        return;
    }
    first = e->turns[0];
    last = e->turns[e->n_turns % 2 ? e->n_turns - 1 : e->n_turns - 2]; /* the final reply */
    t->n++;
    t->harmful += e->harmful;
    t->asr += e->harmful && last->judged_unsafe;
    t->c0_asr += e->harmful && first->judged_unsafe;
    t->orr += !e->harmful && last->judged_overrefuse;
    t->c0_orr += !e->harmful && first->judged_overrefuse;
    double turns = (double)e->n_turns, tokens = 0;
    for (size_t i = 0; i < e->n_turns; i++) tokens += (double)e->turns[i]->n_ids;
    t->turns += turns;
    t->turns2 += turns * turns;
    t->tokens += tokens;
    t->tokens2 += tokens * tokens;
    t->asked += e->n_turns > 1;
    for (size_t i = 1; i < e->n_turns; i += 2) {
        const Wz__Turn *f = e->turns[i];
        t->feedback++;
        t->ftr += i == 1 && f->valid && (f->unsafe || f->overrefuse);
        t->label += f->label;
        t->json += !f->valid;
    }
}

static void tally_rows(const struct tally *t, const char *phase, uint64_t seed, struct wz_table *table)
{
    if (t->harmful > 0) {
        wz_table_rate(table, phase, t->kind, "asr", (int64_t)t->asr, (int64_t)t->harmful, seed);
        wz_table_rate(table, phase, t->kind, "c0_asr", (int64_t)t->c0_asr, (int64_t)t->harmful, seed);
    }
    if (t->n > t->harmful) {
        wz_table_rate(table, phase, t->kind, "orr", (int64_t)t->orr, (int64_t)(t->n - t->harmful), seed);
        wz_table_rate(table, phase, t->kind, "c0_orr", (int64_t)t->c0_orr, (int64_t)(t->n - t->harmful), seed);
    }
    if (t->feedback > 0) {
        wz_table_rate(table, phase, t->kind, "ftr", (int64_t)t->ftr, (int64_t)t->asked, seed);
        wz_table_rate(table, phase, t->kind, "label_accuracy", (int64_t)t->label, (int64_t)t->feedback, seed);
        wz_table_rate(table, phase, t->kind, "json_errors", (int64_t)t->json, (int64_t)t->feedback, seed);
    }
    wz_table_mean(table, phase, t->kind, "turns", t->turns, t->turns2, (int64_t)t->n, seed);
    wz_table_mean(table, phase, t->kind, "tokens", t->tokens, t->tokens2, (int64_t)t->n, seed);
    if (t->failed > 0)
        wz_table_rate(table, phase, t->kind, "failed", (int64_t)t->failed, (int64_t)(t->n + t->failed), seed);
}

static void transcript(struct wz_buf *out, const char *phase, const struct wz_job *job, const Wz__Episode *e)
{
    wz_buf_printf(out, "{\"phase\":\"%s\",\"kind\":", phase);
    wz_json_string(out, e->kind, strlen(e->kind));
    wz_buf_str(out, ",\"id\":");
    wz_json_string(out, e->prompt_id, strlen(e->prompt_id));
    wz_buf_str(out, ",\"prompt\":");
    wz_json_string(out, e->prompt, strlen(e->prompt));
    wz_buf_printf(out, ",\"harmful\":%s,\"discard\":", e->harmful ? "true" : "false");
    wz_json_string(out, e->discard, strlen(e->discard));
    wz_buf_str(out, ",\"turns\":[");
    for (size_t i = 0; i < e->n_turns; i++) {
        const Wz__Turn *t = e->turns[i];
        bool feedback = i % 2;
        wz_buf_printf(out, "%s{\"agent\":\"%s\",\"text\":", i ? "," : "", job->agents[t->agent].recipe->name);
        wz_json_string(out, t->text, strlen(t->text));
        wz_buf_printf(out, ",\"unsafe\":%s,\"overrefuse\":%s,\"valid\":%s,\"reward\":%.6g,\"feedback\":",
                      (feedback ? t->unsafe : t->judged_unsafe) ? "true" : "false",
                      (feedback ? t->overrefuse : t->judged_overrefuse) ? "true" : "false", t->valid ? "true" : "false",
                      t->reward);
        wz_json_string(out, t->feedback, strlen(t->feedback));
        wz_buf_str(out, "}");
    }
    wz_buf_str(out, "]}\n");
}

static int append(const char *path, const struct wz_buf *text, struct wz_err *err)
{
    FILE *f = fopen(path, "a");
    bool ok = f && fwrite(text->data, 1, text->len, f) == text->len;

    if (f && fclose(f)) ok = false;
    return ok ? 0 : wz_fail(err, "%s: could not be written", path);
}

/* The prompts of all sets, at most `limit` of a kind (0: all), in the order of the files. */
static const struct wz_prompt **choose(const struct wz_job *job, int limit, int *n)
{
    int total = 0, n_kinds = 0, *counts;
    const char **kinds;

    for (unsigned s = 0; s < job->recipe->n_eval; s++) total += job->eval[s].n;
    const struct wz_prompt **list = wz_alloc(sizeof *list * (size_t)(total + 1));
    kinds = wz_alloc(sizeof *kinds * (size_t)(total + 1));
    counts = wz_alloc(sizeof *counts * (size_t)(total + 1));
    *n = 0;
    for (unsigned s = 0; s < job->recipe->n_eval; s++)
        for (int i = 0; i < job->eval[s].n; i++) {
            const struct wz_prompt *p = &job->eval[s].list[i];
            int k = 0;
            while (k < n_kinds && strcmp(kinds[k], p->kind)) k++;
            if (k == n_kinds) kinds[n_kinds++] = p->kind;
            if (limit <= 0 || counts[k]++ < limit) list[(*n)++] = p;
        }
    free(kinds), free(counts);
    return list;
}

/* Plays all prompts, some at a time: no wait is longer than what a rollout rank needs for a few of its batches, and
 * a person sees it move. An episode's draws are named by its place among all, so the cut does not show. Root gets
 * the episodes. */
static Wz__Episode **play_all(struct wz_job *job, const struct wz_prompt **prompts, int n_prompts, int *n)
{
    const struct wz_ranks root = { 1, job->root ? 0 : -1, { job->roles.learner.ranks[0] } };
    const struct wz_coefficients coefficients = { 0.65, 0.25, 0.1,
                                                  false }; /* of the transcripts' rewards: stage 1's, for all phases */
    const int64_t some = 4 * (int64_t)job->recipe->rollout.max_num_seqs * job->roles.rollout.n;
    const bool speak = job->root && n_prompts > some && isatty(STDERR_FILENO);
    int64_t generated[WZ_COUNT(job->agents)];
    Wz__Episode **all = wz_alloc(sizeof *all * (size_t)(n_prompts + 1)), **part;
    int k;

    *n = 0;
    for (int first = 0; first < n_prompts; first += k) {
        k = n_prompts - first < some ? n_prompts - first : (int)some;
        struct wz_batch_plan plan = { prompts + first, k, -1, first, &root, 1, &coefficients };
        int got;
        if (speak) fprintf(stderr, "\r\033[Kevaluating: %d of %d prompts", first, n_prompts);
        wz_stations_run(job, &plan, &part, &got, generated);
        if (got) memcpy(all + *n, part, sizeof *all * (size_t)got);
        *n += got;
        free(part);
    }
    if (speak) fprintf(stderr, "\r\033[K");
    return all;
}

int wz_evaluate(struct wz_job *job, const char *phase, double temperature, int limit, struct wz_table *table,
                const char *path, struct wz_err *err)
{
    int n_prompts, n, rc = 0, n_tallies = 0;
    const struct wz_prompt **prompts = choose(job, limit, &n_prompts);
    float kept[WZ_COUNT(job->agents)];

    for (int a = 0; a < job->n_agents; a++) {
        kept[a] = job->agents[a].player.temperature;
        job->agents[a].player.temperature = (float)temperature;
    }
    Wz__Episode **episodes = play_all(job, prompts, n_prompts, &n);
    for (int a = 0; a < job->n_agents; a++) job->agents[a].player.temperature = kept[a];
    if (n) {
        struct tally *tallies = wz_alloc(sizeof *tallies * (size_t)n);
        struct wz_buf text = { 0 };
        for (int i = 0; i < n; i++) tally_add(tally_of(tallies, &n_tallies, episodes[i]), episodes[i]);
        for (int i = 0; i < n_tallies; i++) tally_rows(&tallies[i], phase, job->recipe->seed, table);
        for (int i = 0; path && i < n; i++) transcript(&text, phase, job, episodes[i]);
        if (path) rc = append(path, &text, err);
        wz_buf_finish(&text);
        free(tallies);
    }
    wz_episodes_free(episodes, n);
    free(prompts);
    return rc;
}
