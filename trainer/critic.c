/* The critic of PPO: a value head on the agent's last hidden state h[C] after the final norm, V(s_t) = w . h_t + b,
 * where h_t is the state that predicts token t. It has a learning rate of its own; the gradient of its loss also goes
 * through h into the agent's weights, times value_coef (0: it does not).
 *
 *   loss of a token    1/2 max((V - R)^2, (clip(V, V_old - e, V_old + e) - R)^2)     PPO's, as in OpenAI baselines
 *                      and TRL; V_old: before the batch's first update, R: the target, V_old + A (estimate.c)
 *
 * C + 1 numbers are few: every learner keeps all of them in host memory, in f32, and computes in double, one row after
 * the other. A leaf's gradient is a sum over its rows in order; the leaves' are gathered and added in order, so that
 * the bits depend neither on micro-batches nor on the number of learners (guarantee 2). It begins at 0, with every
 * stage. */
#include "trainer/trainer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void wz_critic_init(struct wz_critic *c, const struct wz_model *model, int leaves, int rows)
{
    const size_t channels = (size_t)model->config.dim, n = channels + 1;

    *c = (struct wz_critic){ .be = model->be, .channels = (int)channels };
    c->w = wz_alloc(3 * n * sizeof *c->w);
    c->m = c->w + n;
    c->v = c->m + n;
    c->grad = wz_alloc((size_t)leaves * n * sizeof *c->grad);
    if (model->be->device) c->host = wz_alloc(wz_mul((size_t)rows * channels, sizeof *c->host));
}

void wz_critic_finish(struct wz_critic *c)
{
    free(c->w);
    free(c->grad);
    free(c->host);
    *c = (struct wz_critic){ 0 };
}

/* x[n,C] of the backend, to be read on the host. */
static float *here(struct wz_critic *c, const float *x, int n)
{
    if (!c->host) return (float *)(uintptr_t)x;
    wz_download(c->be, c->host, x, (size_t)n * (size_t)c->channels * sizeof *x);
    return c->host;
}

void wz_critic_values(struct wz_critic *c, const float *hidden, const int *targets, int n, double *values)
{
    const float *h = here(c, hidden, n);

    for (int r = 0; r < n; r++, h += c->channels) {
        double sum = (double)c->w[c->channels];
        for (int i = 0; i < c->channels && targets[r] >= 0; i++) sum += (double)c->w[i] * (double)h[i];
        values[r] = targets[r] < 0 ? 0 : sum;
    }
}

double wz_critic_loss(double value, double old, double target, double clip, double *slope)
{
    const double near = clip > 0 ? fmin(fmax(value, old - clip), old + clip) : value;
    const double loss = (value - target) * (value - target) / 2, bounded = (near - target) * (near - target) / 2;

    *slope = bounded > loss ? 0 : value - target; /* where the clipped one is the larger, it is a constant */
    return fmax(loss, bounded);
}

void wz_critic_back(struct wz_critic *c, int leaf, const float *hidden, const double *slopes, int n)
{
    double *g = c->grad + (size_t)leaf * (size_t)(c->channels + 1);
    const float *h = here(c, hidden, n);

    for (int r = 0; r < n; r++, h += c->channels) {
        for (int i = 0; i < c->channels && slopes[r] != 0; i++) g[i] += slopes[r] * (double)h[i];
        g[c->channels] += slopes[r];
    }
}

void wz_critic_through(struct wz_critic *c, float *d_hidden, const double *slopes, double coef, int n)
{
    float *d = here(c, d_hidden, n), *row = d;

    for (int r = 0; r < n; r++, row += c->channels)
        for (int i = 0; i < c->channels && slopes[r] != 0; i++) row[i] += (float)(coef * slopes[r] * (double)c->w[i]);
    if (c->host) wz_upload(c->be, d_hidden, d, (size_t)n * (size_t)c->channels * sizeof *d);
}

void wz_critic_step(struct wz_critic *c, struct wz_link *link, const struct wz_group *group, struct wz_arena *lists,
                    int leaves, const struct wz_adamw *how, double lr, int step)
{
    const int n = c->channels + 1;
    double *all = wz_arena_alloc(lists, sizeof *all * (size_t)n * (size_t)leaves * (size_t)group->n);

    wz_all_gather(link, group, c->grad, n * leaves, all);
    memset(c->grad, 0, sizeof *c->grad * (size_t)n * (size_t)leaves);
    for (int i = 0; i < n && step > 0; i++) {
        double g = 0;
        for (int leaf = 0; leaf < leaves * group->n; leaf++) g += all[(size_t)leaf * (size_t)n + (size_t)i];
        c->m[i] = (float)(how->beta1 * (double)c->m[i] + (1 - how->beta1) * g);
        c->v[i] = (float)(how->beta2 * (double)c->v[i] + (1 - how->beta2) * g * g);
        const double first = (double)c->m[i] / (1 - pow(how->beta1, step)),
                     second = (double)c->v[i] / (1 - pow(how->beta2, step));
        c->w[i] -= (float)(lr * first / (sqrt(second) + how->eps));
    }
}
