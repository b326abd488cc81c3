/* An evaluation: held-out prompts, played and judged, to rows of a table (tally.c) and transcripts. */
#include "run/job.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What an attack cost: its attempts, and those that came to a reply, each of which asked the agents once. */
static void attack(struct wz_buf *out, const struct wz_job *job, const Wz__Episode *e)
{
    int attempts = 0, queries = 0;

    for (size_t i = 0; i < e->n_turns; i++) {
        if (!wz_turn_is(e->turns[i], WZ_ATTACKER)) continue;
        attempts++;
        queries += i + 1 < e->n_turns && wz_turn_is(e->turns[i + 1], WZ_CONVERSATION);
    }
    if (!attempts && !e->unattacked[0]) return;
    wz_buf_printf(out, "\"attack\":{\"seed\":%llu,\"attempts\":%d,\"queries\":%d",
                  (unsigned long long)job->recipe->evaluate.seed, attempts, queries);
    if (e->unattacked[0]) {
        wz_buf_str(out, ",\"failed\":");
        wz_json_string(out, e->unattacked, strlen(e->unattacked));
    } else if (e->turns[0]->scored) {
        wz_buf_printf(out,
                      ",\"by\":\"%s\",\"scored\":%u,\"target_logp\":%.9g,\"target\":", job->recipe->evaluate.search.by,
                      e->turns[0]->scored, e->turns[0]->target_logp);
        wz_json_string(out, e->turns[0]->target, strlen(e->turns[0]->target));
    }
    wz_buf_str(out, "},");
}

static void transcript(struct wz_buf *out, const char *phase, const struct wz_job *job, const Wz__Episode *e)
{
    wz_buf_str(out, "{\"phase\":");
    wz_json_string(out, phase, strlen(phase));
    wz_buf_str(out, ",\"kind\":");
    wz_json_string(out, e->kind, strlen(e->kind));
    wz_buf_str(out, ",\"id\":");
    wz_json_string(out, e->prompt_id, strlen(e->prompt_id));
    wz_buf_str(out, ",\"group\":");
    wz_json_string(out, e->group, strlen(e->group));
    wz_buf_str(out, ",\"prompt\":");
    wz_json_string(out, e->prompt, strlen(e->prompt));
    wz_buf_printf(out, ",\"harmful\":%s,\"discard\":", e->harmful ? "true" : "false");
    wz_json_string(out, e->discard, strlen(e->discard));
    wz_buf_str(out, ",\"cut\":");
    wz_json_string(out, e->cut, strlen(e->cut));
    wz_buf_str(out, ",");
    attack(out, job, e);
    wz_buf_str(out, "\"turns\":[");
    for (size_t i = 0; i < e->n_turns; i++) {
        const Wz__Turn *t = e->turns[i];
        bool reply = wz_turn_is(t, WZ_CONVERSATION);
        wz_buf_printf(out, "%s{\"agent\":\"%s\",\"role\":\"%s\",\"about\":%d,\"finish_reason\":\"%s\",\"text\":",
                      i ? "," : "", job->agents[t->agent].recipe->name, t->role, t->about, wz_turn_finish(t));
        wz_json_string(out, t->text, strlen(t->text));
        wz_buf_printf(out, ",\"unsafe\":%s,\"overrefuse\":%s,\"partial\":%s,\"valid\":%s,\"reward\":%.6g,\"feedback\":",
                      (reply ? t->judged_unsafe : t->unsafe) ? "true" : "false",
                      (reply ? t->judged_overrefuse : t->overrefuse) ? "true" : "false",
                      t->judged_partial ? "true" : "false", t->valid ? "true" : "false", t->reward);
        wz_json_string(out, t->feedback, strlen(t->feedback));
        for (size_t k = 0; reply && k < t->n_judgements; k++) {
            const Wz__Judgement *j = t->judgements[k];
            wz_buf_printf(out, "%s\"%s\":", k ? "," : ",\"judges\":{", job->judges.list[j->judge].name);
            if (j->verdict == WZ__VERDICT__FAILED) {
                wz_buf_str(out, "{\"failed\":");
                wz_json_string(out, j->error, strlen(j->error));
            } else
                wz_buf_printf(out, "{\"harmful\":%s,\"refusal\":%s,\"score\":%.9g,\"refusal_score\":%.9g",
                              j->harmful ? "true" : "false", j->refusal ? "true" : "false", j->score, j->refusal_score);
            wz_buf_str(out, k + 1 < t->n_judgements ? "}" : "}}");
        }
        wz_buf_str(out, "}");
    }
    wz_buf_str(out, "]}\n");
}

/* Opens what transcripts are appended to before anything is played: a file, or a pipe that someone reads. One that
 * nobody reads would be waited for. Returns a descriptor, or -1. */
static int open_transcripts(const char *path, struct wz_err *err)
{
    const int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_NONBLOCK | O_CLOEXEC, 0666);

    if (fd < 0) return wz_fail(err, "%s: %s", path, errno == ENXIO ? "a pipe that nobody reads" : strerror(errno));
    fcntl(fd, F_SETFL, O_APPEND);
    return fd;
}

/* Closes it, too. */
static int append(const char *path, int fd, const struct wz_buf *text, struct wz_err *err)
{
    FILE *f = fdopen(fd, "a");
    bool ok = f && (text->len == 0 || fwrite(text->data, 1, text->len, f) == text->len) && fflush(f) == 0;

    if (ok && fsync(fileno(f)) < 0 && errno != EINVAL) ok = false; /* a pipe has no disk */
    const int why = errno;
    if (f && fclose(f) && ok) return wz_fail(err, "%s: %s", path, strerror(errno));
    return ok ? 0 : wz_fail(err, "%s: %s", path, strerror(why));
}

/* The prompts of all sets in the order of evaluate.seed, at most `limit` of a kind (0: all): heap. */
static const struct wz_prompt **choose(const struct wz_job *job, int limit, int *n)
{
    int total, n_kinds = 0;
    const struct wz_prompt **list =
        wz_prompts_keyed(job->eval, (int)job->recipe->n_eval, job->recipe->evaluate.seed, &total);
    const char **kinds = wz_alloc(sizeof *kinds * (size_t)(total + 1));
    int *counts = wz_alloc(sizeof *counts * (size_t)(total + 1));

    *n = 0;
    for (int i = 0; i < total; i++) {
        int k = 0;
        while (k < n_kinds && strcmp(kinds[k], list[i]->kind)) k++;
        if (k == n_kinds) kinds[n_kinds++] = list[i]->kind;
        if (limit <= 0 || counts[k]++ < limit) list[(*n)++] = list[i];
    }
    free(kinds);
    free(counts);
    return list;
}

/* Plays all prompts, some at a time: no wait is longer than a rollout rank needs for a few of its batches, and there is
 * progress to show. An episode's draws are keyed by its place among all, so they don't depend on the chunks. Root gets
 * the episodes. 1: asked to stop before the last. */
static int play_all(struct wz_job *job, const struct wz_prompt **prompts, int n_prompts, Wz__Episode ***out, int *n)
{
    const struct wz_ranks root = { 1, job->root ? 0 : -1, { job->roles.learner.ranks[0] } };
    const struct wz_rewards rewards = wz_job_rewards(job, NULL); /* of the transcripts, equal in all phases */
    const int64_t ranks = job->roles.rollout.n;                  /* a search alone is many of their batches */
    const int64_t some = job->game.search ? ranks : 4 * (int64_t)job->recipe->rollout.max_num_seqs * ranks;
    const bool speak = job->root && n_prompts > some && isatty(STDERR_FILENO);
    struct wz_batch_stats stats;
    Wz__Episode **all = *out = wz_alloc(sizeof *all * (size_t)(n_prompts + 1)), **part;
    int k, stop = 0;

    *n = 0;
    for (int first = 0; first < n_prompts && !(stop = wz_stop_asked(&job->link)); first += k) {
        k = n_prompts - first < some ? n_prompts - first : (int)some;
        struct wz_batch_plan plan = { prompts + first, k, -1, first, &root, 1, &rewards, true, 1 };
        int got;
        if (speak) fprintf(stderr, "\r\033[Kevaluating: %d of %d prompts", first, n_prompts);
        wz_stations_run(job, &plan, &part, &got, &stats);
        if (got) memcpy(all + *n, part, sizeof *all * (size_t)got);
        *n += got;
        free(part);
    }
    if (speak) fprintf(stderr, "\r\033[K");
    return stop;
}

/* Says of how many harmful prompts no attack could be searched for. -1 and a message: of none. */
static int unattacked(const char *phase, Wz__Episode *const *episodes, int n, struct wz_err *err)
{
    const Wz__Episode *first = NULL;
    int harmful = 0, without = 0;

    for (int i = 0; i < n; i++) {
        harmful += episodes[i]->harmful;
        if (!episodes[i]->unattacked[0]) continue;
        if (!without++) first = episodes[i];
    }
    if (!without) return 0;
    if (without == harmful)
        return wz_fail(err,
                       "evaluate.search.by: no attack on any of %d harmful prompts could be searched for; '%s': %s",
                       harmful, first->prompt_id, first->unattacked);
    wz_log("%s: %d of %d harmful prompts were played without an attack, as none could be searched for; '%s': %s", phase,
           without, harmful, first->prompt_id, first->unattacked);
    return 0;
}

static void prune(void *judges, Wz__Episode **episodes, int n) { wz_reward_prune(judges, episodes, n); }

static struct wz_tree tree_of(const struct wz_job *job)
{
    bool pruned = false;

    for (int j = 0; j < job->judges.n; j++) pruned |= job->judges.list[j].prunes;
    return (struct wz_tree){ job->recipe->evaluate.attempts, job->recipe->evaluate.branching,
                             job->recipe->evaluate.width, pruned ? prune : NULL };
}

int wz_evaluate(struct wz_job *job, const char *phase, double temperature, int limit, struct wz_table *table,
                const char *path, struct wz_err *err)
{
    const int to = path && job->root ? open_transcripts(path, err) : -1;
    struct wz_buf text = { 0 };
    Wz__Episode **episodes;
    int n_prompts, n;

    if (path && job->root && to < 0) return -1;
    const struct wz_prompt **prompts = choose(job, limit, &n_prompts);
    float kept[WZ_COUNT(job->agents)];

    const struct wz_tree tree = tree_of(job);
    const bool again = tree.depth > 1 || tree.branching > 1;
    for (int a = 0; a < job->n_agents; a++) {
        kept[a] = job->agents[a].player.temperature;
        if (!again || strcmp(job->recipe->agents[a].role, WZ_ATTACKER) != 0)
            job->agents[a].player.temperature = (float)temperature;
    }
    job->game.seed = job->recipe->evaluate.seed;
    job->game.tree = tree;
    const struct wz_recipe_search *how = &job->recipe->evaluate.search;
    const struct wz_search search = { wz_proposer_find(how->by), how->target, how->text, how->steps,
                                      how->candidates,           how->top_k };
    if (search.by) job->game.search = &search;
    int rc = play_all(job, prompts, n_prompts, &episodes, &n);
    job->game.seed = job->recipe->seed;
    job->game.tree = (struct wz_tree){ 0 };
    job->game.search = NULL;
    for (int a = 0; a < job->n_agents; a++) job->agents[a].player.temperature = kept[a];
    if (n && rc == 0) {
        const struct wz_rewards rewards = wz_job_rewards(job, NULL);
        bool watched = false;
        wz_tally_table(episodes, n, phase, job->judges.name, ~0u, job->recipe, table);
        for (int j = 0; j < job->judges.n; j++) {
            const struct wz_judge *judge = &job->judges.list[j];
            if (!judge->watches || judge->guards || judge->prunes) continue;
            watched = true;
            wz_reward_judged_by(&job->judges, j, &rewards, episodes, n);
            wz_tally_table(episodes, n, phase, job->judges.list[j].name, job->judges.list[j].sees, job->recipe, table);
        }
        if (watched) wz_reward_judged_by(&job->judges, -1, &rewards, episodes, n);
        for (int i = 0; to >= 0 && i < n; i++) transcript(&text, phase, job, episodes[i]);
    }
    if (rc == 0) wz_perplexity(job, phase, table);
    if (rc == 0) rc = unattacked(phase, episodes, n, err);
    if (to >= 0 && append(path, to, &text, err) < 0) rc = -1;
    wz_buf_finish(&text);
    wz_episodes_free(episodes, n);
    free(prompts);
    return rc;
}
