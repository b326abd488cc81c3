/* Losses, each by its derivative for one token. */
#include "trainer/trainer.h"

#include <math.h>

/* J = min(r A, clip(r, 1 - epsilon, 1 + epsilon) A) with r = exp(now - old)   (PPO's, Schulman et al. 2017; WaltzRL
 * eq. 4): dJ / d now = r A, and 0 where min() takes the clipped, constant branch. */
static double clip(const struct wz_learn *how, const struct wz_loss_token *t)
{
    double ratio = exp(t->now - t->old);

    if (t->advantage > 0 && ratio > 1 + how->epsilon) return 0;
    if (t->advantage < 0 && ratio < 1 - how->epsilon) return 0;
    return ratio * t->advantage;
}

/* J = A now, with A = 1 the log-likelihood of the data (maximum likelihood; A weighs a token). */
static double cross_entropy(const struct wz_learn *how, const struct wz_loss_token *t) { return t->advantage; }

const struct wz_loss wz_losses[] = { { "clip", false, clip }, { "cross_entropy", true, cross_entropy }, { 0 } };

const struct wz_loss *wz_loss_find(const char *name, struct wz_err *err)
{
    return wz_row_find(wz_losses, sizeof *wz_losses, "loss", name, err);
}
