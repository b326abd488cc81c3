/* Losses, each by its term for one token and that term's derivative. */
#include "trainer/trainer.h"

#include <math.h>

/* J = min(r A, clip(r, 1 - epsilon, 1 + epsilon) A) with r = exp(now - old)   (PPO's, Schulman et al. 2017; WaltzRL
 * eq. 4): dJ / d now = r A, and 0 where min() takes the clipped, constant branch. */
static double clip(const struct wz_learn *how, const struct wz_loss_token *t, double *value)
{
    const double a = t->advantage, ratio = exp(t->now - t->old), e = how->epsilon;
    const bool clipped = (a > 0 && ratio > 1 + e) || (a < 0 && ratio < 1 - e);

    *value = clipped ? (a > 0 ? 1 + e : 1 - e) * a : ratio * a;
    return clipped ? 0 : ratio * a;
}

/* J = A now, with A = 1 the log-likelihood of the data (maximum likelihood; A weighs a token). */
static double cross_entropy(const struct wz_learn *how, const struct wz_loss_token *t, double *value)
{
    *value = t->advantage * t->now;
    return t->advantage;
}

const struct wz_loss wz_losses[] = { { "clip", false, clip }, { "cross_entropy", true, cross_entropy }, { 0 } };

const struct wz_loss *wz_loss_find(const char *name, struct wz_err *err)
{
    return wz_row_find(wz_losses, sizeof *wz_losses, "loss", name, err);
}
