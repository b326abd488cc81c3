/* Returns, whitening, the clipped surrogate: the arithmetic of paper section 3.3, free of models and ranks. */
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

struct wz_moments wz_moments(const double *sums, int n_samples)
{
    struct wz_moments m = { 0 };
    double sum = 0, squares = 0;

    for (int i = 0; i < n_samples; i++) {
        if (!(sums[3 * i + 2] > 0)) continue;
        sum += sums[3 * i];
        squares += sums[3 * i + 1];
        m.tokens += sums[3 * i + 2];
        m.samples++;
    }
    if (m.tokens > 0) m.mean = sum / m.tokens;
    double variance = m.tokens > 0 ? squares / m.tokens - m.mean * m.mean : 0;
    m.rstd = 1 / sqrt(variance > 1e-8 ? variance : 1e-8);
    return m;
}

double wz_surrogate_slope(double logp, double logp_old, double advantage, double epsilon)
{
    double ratio = exp(logp - logp_old);

    if (advantage > 0 && ratio > 1 + epsilon) return 0; /* min() picks the clipped, constant branch */
    if (advantage < 0 && ratio < 1 - epsilon) return 0;
    return ratio * advantage;
}
