/* RoPE frequencies: freq[i] = theta^(-2i/D), then the scaling for contexts beyond the original one:
 *   linear   freq / factor
 *   llama3   freq / factor for wavelengths above original/low, unchanged below original/high, in between interpolated
 *            linearly in original/wavelength (Llama 3.1; as transformers' rope_type llama3)
 *   yarn     (Peng et al. 2023) pair i turns more than `high` times in the original context: unchanged; less than `low`
 *            times: freq / factor; in between the two are mixed linearly in i, from the last whole pair before to the
 *            first after
 * Computed in double and rounded once. */
#include "model/inner.h"

#include <math.h>

/* The pair, as a real number, that turns so often in the original context. */
static double pair_of(const struct wz_config *c, float turns)
{
    return c->head_dim * log(c->rope_original / ((double)turns * 2 * M_PI)) / (2 * log((double)c->rope_theta));
}

void wz_rope_freq(const struct wz_config *c, bool local, float *freq)
{
    const bool plain = local && c->rope_local > 0;

    for (int i = 0; i < c->head_dim / 2; i++) {
        double f = pow(plain ? c->rope_local : c->rope_theta, -2.0 * i / c->head_dim);

        if (!plain && c->rope == WZ_ROPE_LINEAR) f /= c->rope_factor;
        if (!plain && c->rope == WZ_ROPE_YARN) {
            double low = fmax(floor(pair_of(c, c->rope_high)), 0);
            double high = fmin(ceil(pair_of(c, c->rope_low)), c->head_dim - 1);
            double mix = fmin(fmax((i - low) / (high == low ? 0.001 : high - low), 0), 1);
            f = mix * f / c->rope_factor + (1 - mix) * f;
        }
        if (!plain && c->rope == WZ_ROPE_LLAMA3) {
            double turns = c->rope_original * f / (2 * M_PI); /* original context / wavelength */

            if (turns < c->rope_low) {
                f /= c->rope_factor;
            } else if (turns <= c->rope_high) {
                double mix = (turns - c->rope_low) / (c->rope_high - c->rope_low);
                f = (1 - mix) * f / c->rope_factor + mix * f;
            }
        }
        freq[i] = (float)f;
    }
}
