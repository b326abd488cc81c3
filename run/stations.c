/* How an episode moves between ranks: rollout ranks play it, reward ranks label it, takers receive it.
 *
 *   rollout r plays the episodes i with i mod R = r  ──▶  reward rank i mod W  ──▶  taker leaf_owner(place)
 *
 * Its number in the batch decides which ranks handle it, so no scheduling messages are needed; the message is the
 * episode itself. */
#include "run/job.h"

#include <stdlib.h>
#include <string.h>

void wz_episodes_free(Wz__Episode **episodes, int n)
{
    for (int i = 0; i < n; i++) wz_episode_free(episodes[i]);
    free(episodes);
}

static Wz__Episode *episode_begin(const struct wz_job *job, const struct wz_batch_plan *plan, int at)
{
    const struct wz_prompt *prompt = plan->prompts[at];
    Wz__Episode *e = wz_episode_new();

    e->step = plan->step;
    e->index = (uint32_t)(plan->first + at);
    e->place = (uint32_t)at;
    wz_set_string(&e->prompt, prompt->text, strlen(prompt->text));
    wz_set_string(&e->prompt_id, prompt->id, strlen(prompt->id));
    wz_set_string(&e->kind, prompt->kind, strlen(prompt->kind));
    wz_set_string(&e->group, prompt->group, strlen(prompt->group));
    wz_set_string(&e->answer, prompt->answer, strlen(prompt->answer));
    e->harmful = prompt->harm == WZ_HARMFUL;
    if (!wz_prompt_prefilled(prompt, job->recipe->seed, plan->step, plan->first + at, plan->peers)) return e;
    const struct wz_prefill *p = prompt->prefill;
    wz_set_string(&e->prefill, p->text, strlen(p->text));
    wz_set_string(&e->transition, p->transition, strlen(p->transition));
    e->hijack = p->hijack;
    e->resets = (uint32_t)p->resets;
    return e;
}

/* Sends each member of `to` its part of the episodes, and frees them. where[i]: the member that gets episode i. */
static void deliver(struct wz_link *link, const struct wz_ranks *to, enum wz_tag tag, Wz__Episode **episodes, int n,
                    const int *where)
{
    Wz__Episode **share = wz_alloc(sizeof *share * (size_t)(n + 1));
    struct wz_buf bytes = { 0 };

    for (int r = 0; r < to->n; r++) {
        int k = 0;
        for (int i = 0; i < n; i++)
            if (where[i] == r) share[k++] = episodes[i];
        wz_buf_clear(&bytes);
        wz_episodes_pack(share, k, &bytes);
        wz_send(link, to->ranks[r], tag, bytes.data, bytes.len);
    }
    wz_buf_finish(&bytes);
    free(share);
    wz_episodes_free(episodes, n);
}

static int by_index(const void *a, const void *b)
{
    const Wz__Episode *x = *(Wz__Episode *const *)a, *y = *(Wz__Episode *const *)b;

    return x->index < y->index ? -1 : x->index > y->index;
}

void wz_episodes_sort(Wz__Episode **episodes, int n)
{
    if (n) qsort(episodes, (size_t)n, sizeof *episodes, by_index);
}

void wz_episodes_join(Wz__Episode ***all, int *n, Wz__Episode **part, int k)
{
    *all = wz_realloc(*all, sizeof **all * (size_t)(*n + k + 1));
    if (k) memcpy(*all + *n, part, sizeof **all * (size_t)k);
    *n += k;
    free(part);
}

/* Receives this rank's episodes from every member of `from`, in order of index. */
static Wz__Episode **collect(struct wz_link *link, const struct wz_ranks *from, enum wz_tag tag, int *n)
{
    struct wz_buf bytes = { 0 };
    Wz__Episode **all = NULL, **part;
    struct wz_err err;
    int k;

    *n = 0;
    for (int r = 0; r < from->n; r++) {
        wz_recv(link, from->ranks[r], tag, &bytes);
        if (wz_episodes_unpack(bytes.data, bytes.len, &part, &k, &err) < 0)
            wz_die("step %lld: from rank %d: %s", (long long)link->step, from->ranks[r], err.text);
        wz_episodes_join(&all, n, part, k);
    }
    wz_episodes_sort(all, *n);
    wz_buf_finish(&bytes);
    return all;
}

/* Adds what every rank has sent. */
static void take_stats(struct wz_job *job, struct wz_batch_stats *sum)
{
    struct wz_batch_stats one;
    struct wz_buf bytes = { 0 };

    for (int r = 0; r < job->link.size; r++) {
        wz_recv(&job->link, r, WZ_TAG_STATS, &bytes);
        if (bytes.len != sizeof one)
            wz_die("step %lld: rank %d sent its turn counts as %zu bytes", (long long)job->link.step, r, bytes.len);
        memcpy(&one, bytes.data, sizeof one);
        for (int a = 0; a < job->n_agents; a++) sum->generated[a] += one.generated[a];
        if (one.rollout > sum->rollout) sum->rollout = one.rollout;
        if (one.reward > sum->reward) sum->reward = one.reward;
    }
    wz_buf_finish(&bytes);
}

void wz_stations_play(struct wz_job *job, const struct wz_batch_plan *plan, struct wz_held *held)
{
    const struct wz_roles *roles = &job->roles;
    int *where = wz_alloc(sizeof *where * (size_t)plan->batch), k;
    Wz__Episode **episodes;

    if (roles->rollout.me >= 0) { /* prompts become trajectories */
        episodes = wz_alloc(sizeof *episodes * (size_t)(plan->batch + 1));
        k = 0;
        for (int i = roles->rollout.me; i < plan->batch; i += roles->rollout.n) {
            where[k] = i % roles->reward.n;
            episodes[k++] = episode_begin(job, plan, i);
        }
        double begin = wz_now();
        wz_play(&job->game, episodes, k);
        held->stats.rollout += wz_now() - begin;
        for (int i = 0; i < k; i++)
            for (size_t t = 0; t < episodes[i]->n_turns; t++) held->stats.generated[episodes[i]->turns[t]->agent]++;
        deliver(&job->link, &roles->reward, WZ_TAG_EPISODES, episodes, k, where);
    }
    if (roles->reward.me >= 0) { /* trajectories get labels and rewards */
        episodes = collect(&job->link, &roles->rollout, WZ_TAG_EPISODES, &k);
        double begin = wz_now();
        wz_reward_label(&job->judges, plan->watched, plan->rewards, episodes, k);
        held->stats.reward += wz_now() - begin;
        wz_episodes_join(&held->episodes, &held->n, episodes, k);
    }
    wz_flush(&job->link);
    free(where);
}

void wz_stations_deliver(struct wz_job *job, const struct wz_batch_plan *plan, struct wz_held *held, Wz__Episode ***out,
                         int *n, struct wz_batch_stats *stats)
{
    const struct wz_roles *roles = &job->roles;
    int *where = wz_alloc(sizeof *where * (size_t)(held->n + 1));

    wz_send(&job->link, plan->takers->ranks[0], WZ_TAG_STATS, &held->stats, sizeof held->stats);
    for (int i = 0; i < held->n; i++)
        where[i] = wz_leaf_owner((int)held->episodes[i]->place, plan->batch, plan->leaves, plan->takers->n);
    if (roles->reward.me >= 0) deliver(&job->link, plan->takers, WZ_TAG_LABELLED, held->episodes, held->n, where);
    *held = (struct wz_held){ 0 };
    *out = NULL;
    *n = 0;
    if (plan->takers->me >= 0) *out = collect(&job->link, &roles->reward, WZ_TAG_LABELLED, n);
    *stats = (struct wz_batch_stats){ 0 };
    if (plan->takers->me == 0) take_stats(job, stats);
    wz_flush(&job->link);
    free(where);
}

void wz_stations_run(struct wz_job *job, const struct wz_batch_plan *plan, Wz__Episode ***out, int *n,
                     struct wz_batch_stats *stats)
{
    struct wz_held held = { 0 };

    wz_stations_play(job, plan, &held);
    wz_stations_deliver(job, plan, &held, out, n, stats);
}
