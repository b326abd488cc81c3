/* Estimates of advantages: arithmetic, free of models and ranks.
 *
 *   return of token i       R_i = f(r) - beta sum_{t >= i} (logp_t - ref_t)
 *   advantage               R_i, or (R_i - mean) / std over all trained tokens of the step
 *
 * r is the sample's reward; f sees it beside those of the G samples of the same prompt, with mean m and deviation s:
 *
 *   reinforce++             r, whitened             Hu 2025, arXiv 2501.03262; WaltzRL 2.3
 *   reinforce++-baseline    r - m, whitened         Hu 2025, the variant for several samples of a prompt
 *   grpo                    (r - m) / (s + 1e-4)    Shao et al. 2024, arXiv 2402.03300, 4.1; the small term is TRL's
 *   dr_grpo                 r - m                   Liu et al. 2025, arXiv 2503.20783, 3.2
 *   rloo                    r - (mean of the other G - 1)    Ahmadian et al. 2024, arXiv 2402.14740, 3.2
 *   gae                     wz_gae with a critic's values, whitened    Schulman et al. 2016, arXiv 1506.02438: PPO's
 *
 * Peers are the samples that there are: a lost one is not among them, and one without others has r - m = 0. */
#include "trainer/trainer.h"

#include <math.h>

void wz_returns(double reward, double kl, const float *logp, const float *ref, int n, float *out)
{
    double to_go = 0;

    for (int i = n - 1; i >= 0; i--) {
        if (ref) to_go += (double)logp[i] - (double)ref[i];
        out[i] = (float)(reward - kl * to_go);
    }
}

void wz_gae(double reward, double kl, const float *logp, const float *ref, const double *value, double gamma,
            double lambda, int n, float *out, double *target)
{
    double next = 0, advantage = 0, own = reward;

    for (int i = n - 1; i >= 0; i--) {
        if (ref) own -= kl * ((double)logp[i] - (double)ref[i]);
        advantage = own + gamma * next - value[i] + gamma * lambda * advantage;
        out[i] = (float)advantage;
        target[i] = advantage + value[i];
        next = value[i];
        own = 0;
    }
}

struct wz_moments wz_moments(const struct wz_outcome *all, int batch)
{
    struct wz_moments m = { 0 };
    double sum = 0, squares = 0;

    for (int i = 0; i < batch; i++) {
        if (!(all[i].tokens > 0)) continue;
        sum += all[i].sum;
        squares += all[i].squares;
        m.tokens += all[i].tokens;
        m.samples++;
    }
    if (m.tokens > 0) m.mean = sum / m.tokens;
    double variance = m.tokens > 0 ? squares / m.tokens - m.mean * m.mean : 0;
    m.rstd = 1 / sqrt(variance > 1e-8 ? variance : 1e-8);
    return m;
}

/* peers[group] of all samples. */
static void find_peers(struct wz_peers *peers, const struct wz_outcome *all, int batch)
{
    for (int i = 0; i < batch; i++)
        if (all[i].tokens > 0) {
            peers[(int)all[i].group].mean += all[i].reward;
            peers[(int)all[i].group].n++;
        }
    for (int g = 0; g < batch; g++)
        if (peers[g].n > 0) peers[g].mean /= peers[g].n;
    for (int i = 0; i < batch; i++)
        if (all[i].tokens > 0) {
            struct wz_peers *p = &peers[(int)all[i].group];
            p->std += (all[i].reward - p->mean) * (all[i].reward - p->mean);
        }
    for (int g = 0; g < batch; g++) peers[g].std = peers[g].n > 1 ? sqrt(peers[g].std / (peers[g].n - 1)) : 0;
}

static double less_mean(double reward, const struct wz_peers *p) { return reward - p->mean; }

static double standard(double reward, const struct wz_peers *p) { return (reward - p->mean) / (p->std + 1e-4); }

/* r - (n m - r) / (n - 1) */
static double leave_one_out(double reward, const struct wz_peers *p)
{
    return p->n > 1 ? (reward - p->mean) * p->n / (p->n - 1) : 0;
}

const struct wz_estimate wz_estimates[] = {
    { "reinforce++", NULL, true, false },
    { "reinforce++-baseline", less_mean, true, false },
    { "grpo", standard, false, false },
    { "dr_grpo", less_mean, false, false },
    { "rloo", leave_one_out, false, false },
    { "gae", NULL, true, true },
    { 0 },
};

struct wz_moments wz_advantages(const struct wz_estimate *estimate, struct wz_arena *lists, struct wz_outcome *all,
                                int batch, const struct wz_sample *own, int n)
{
    const bool compares = estimate && estimate->relative;
    struct wz_peers *peers = compares ? wz_arena_alloc(lists, sizeof *peers * (size_t)batch) : NULL;

    if (compares) find_peers(peers, all, batch);
    for (int i = 0; i < batch && compares; i++) {
        struct wz_outcome *o = &all[i];
        if (!(o->tokens > 0)) continue;
        const double r = estimate->relative(o->reward, &peers[(int)o->group]);
        o->squares += r * (2 * o->sum + r * o->tokens);
        o->sum += r * o->tokens;
    }
    const struct wz_moments m = wz_moments(all, batch);
    for (int i = 0; i < n && estimate; i++) {
        const Wz__Turn *t = own[i].turn;
        const double r = compares ? estimate->relative(own[i].reward, &peers[own[i].group]) : 0;
        for (size_t k = 0; k < t->n_advantage; k++) {
            const double a = (double)t->advantage[k] + r;
            t->advantage[k] = (float)(estimate->whiten ? (a - m.mean) * m.rstd : a);
        }
    }
    return m;
}

const struct wz_estimate *wz_estimate_find(const char *name, struct wz_err *err)
{
    return wz_row_find(wz_estimates, sizeof *wz_estimates, "estimate", name, err);
}
