/* Perplexity of a held-out text (evaluate.text): what an agent is left of plain language.
 *
 *   exp( -1/N sum log p(t | the tokens before it in its window) )
 *
 * The text's tokens are cut into windows of WINDOW of them (less where the model's context is shorter), one behind the
 * other; of each the first token is given, without BOS or template. What is left at the end, less than a window, is
 * left out, unless it is all there is. The interval is exp of the normal one of the windows' means. */
#include "run/job.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WINDOW = 512, TOLD = 3 };

/* The sum of the windows' means of -log p, that of their squares, and how many windows: sums[TOLD]. */
static void measure(const struct wz_agent *a, const struct wz_map *text, double *sums)
{
    const int most = a->model->config.context < WINDOW ? a->model->config.context : WINDOW;
    struct wz_ids ids = { 0 };
    struct wz_pack pack;
    struct wz_err err;

    if (wz_encode(a->tok, (const char *)text->bytes, text->len, &ids, &err) < 0) /* was tried when it was opened */
        wz_die("evaluate.text: agent %s: %s", a->recipe->name, err.text);
    const int n = ids.n < most ? ids.n : most;
    bool *loss = wz_alloc((size_t)n + 1);
    for (int i = 0; i < n; i++) loss[i] = i > 0;
    if (n > 1) wz_pack_init(&pack, a->model, n, false);
    for (int at = 0; n > 1 && at + n <= ids.n; at += n) {
        const struct wz_sft_example window = { ids.ids + at, loss, n };
        double nll = 0;
        wz_pack_sample(&pack, &(struct wz_sample){ .example = &window });
        wz_pack_forward(&pack, 1);
        for (int i = 0; i < n - 1; i++) nll -= (double)pack.logp[i] / (n - 1);
        wz_pack_clear(&pack);
        sums[0] += nll;
        sums[1] += nll * nll;
        sums[2]++;
    }
    if (n > 1) wz_pack_finish(&pack);
    free(loss);
    wz_ids_finish(&ids);
}

void wz_perplexity(struct wz_job *job, const char *phase, struct wz_table *table)
{
    const int root = job->roles.learner.ranks[0];
    struct wz_buf bytes = { 0 };

    for (int a = 0; job->text.len && a < job->n_agents; a++) {
        double sums[TOLD] = { 0 };
        if (job->roles.rollout.me == 0) {
            if (job->agents[a].model) measure(&job->agents[a], &job->text, sums);
            wz_send(&job->link, root, WZ_TAG_STATS, sums, sizeof sums);
        }
        wz_flush(&job->link);
        if (!job->root) continue;
        wz_recv(&job->link, job->roles.rollout.ranks[0], WZ_TAG_STATS, &bytes);
        if (bytes.len != sizeof sums)
            wz_die("evaluate.text: rank %d sent %zu bytes", job->roles.rollout.ranks[0], bytes.len);
        memcpy(sums, bytes.data, sizeof sums);
        if (!sums[2]) continue;
        const struct wz_interval in = wz_normal_mean(sums[0], sums[1], sums[2]);
        wz_table_add(table, &(struct wz_result){ .phase = phase,
                                                 .set = job->agents[a].recipe->name,
                                                 .metric = "perplexity",
                                                 .value = exp(sums[0] / sums[2]),
                                                 .low = exp(in.low),
                                                 .high = exp(in.high),
                                                 .n = (int64_t)sums[2],
                                                 .seed = job->recipe->seed,
                                                 .groups = (int64_t)sums[2],
                                                 .interval = "normal",
                                                 .judge = job->judges.name });
    }
    wz_buf_finish(&bytes);
}
