/* RoPE frequencies: freq[i] = theta^(-2i/D), then the scaling for contexts beyond the original one:
 *   linear   freq / factor
 *   llama3   freq / factor for wavelengths above original/low, unchanged below original/high, in between interpolated
 *            linearly in original/wavelength (Llama 3.1; as transformers' rope_type llama3)
 * Computed in double and rounded once. */
#include "model/inner.h"

#include <math.h>

void wz_rope_freq(const struct wz_config *c, float *freq)
{
    for (int i = 0; i < c->head_dim / 2; i++) {
        double f = pow(c->rope_theta, -2.0 * i / c->head_dim);

        if (c->rope == WZ_ROPE_LINEAR) f /= c->rope_factor;
        if (c->rope == WZ_ROPE_LLAMA3) {
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
