/* Estimates of advantages: arithmetic, free of models and ranks. */
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

/* A = (return - mean) / std over all trained tokens of the step   (REINFORCE++, Hu 2025; WaltzRL 2.3) */
static void reinforce_pp(const struct wz_outcome *all, int batch, const struct wz_sample *own, int n)
{
    const struct wz_moments m = wz_moments(all, batch);

    for (int i = 0; i < n; i++) {
        const Wz__Turn *t = own[i].turn;
        for (size_t k = 0; k < t->n_advantage; k++)
            t->advantage[k] = (float)(((double)t->advantage[k] - m.mean) * m.rstd);
    }
}

const struct wz_estimate wz_estimates[] = { { "reinforce++", reinforce_pp }, { 0 } };

const struct wz_estimate *wz_estimate_find(const char *name, struct wz_err *err)
{
    return wz_row_find(wz_estimates, sizeof *wz_estimates, "estimate", name, err);
}
