/* Losses, each by its term for one token and that term's derivative. */
#include "trainer/trainer.h"

#include <math.h>

/* J = min(r A, clip(r, 1 - e, 1 + h) A) with r = exp(now - old)   (PPO's, Schulman et al. 2017; WaltzRL eq. 4, with
 * h = e; DAPO's clip-higher, Yu et al. 2025, arXiv 2503.14476, eq. 8, with h > e): dJ / d now = r A, and 0 where min()
 * takes the clipped, constant branch.
 * Dual clip: where A < 0, J = max(that, c A) (Ye et al. 2020, arXiv 1912.09729, eq. 3): also 0 where r > c.
 * GSPO's ratio (Zheng et al. 2025, arXiv 2507.18071, eq. 5 to 7): r = exp(mean of now - old over a sample's T tokens).
 * All of them then have the same r A, whose mean has the derivative r A / T by each now: what the mean over tokens
 * makes of a slope of r A. */
static double clip(const struct wz_learn *how, const struct wz_loss_token *t, double *value)
{
    const double a = t->advantage, ratio = exp(t->log_ratio);
    const double e = how->epsilon, high = how->epsilon_high > 0 ? how->epsilon_high : e;
    const bool clipped = (a > 0 && ratio > 1 + high) || (a < 0 && ratio < 1 - e);
    const bool dual = a < 0 && how->dual > 0 && ratio > how->dual;

    *value = clipped ? (a > 0 ? 1 + high : 1 - e) * a : dual ? how->dual * a : ratio * a;
    return clipped || dual ? 0 : ratio * a;
}

/* J = w A now, with w = min(r, 1 + h) a constant: importance sampling with a truncated weight, in which no token is
 * without a slope (CISPO, MiniMax 2025, arXiv 2506.13585, eq. 4 and 5, with no bound below): dJ / d now = w A. */
static double cispo(const struct wz_learn *how, const struct wz_loss_token *t, double *value)
{
    const double high = how->epsilon_high > 0 ? how->epsilon_high : how->epsilon;
    const double slope = fmin(exp(t->log_ratio), 1 + high) * t->advantage;

    *value = slope * t->now;
    return slope;
}

/* J = A now, with A = 1 the log-likelihood of the data (maximum likelihood; A weighs a token). */
static double cross_entropy(const struct wz_learn *how, const struct wz_loss_token *t, double *value)
{
    *value = t->advantage * t->now;
    return t->advantage;
}

const struct wz_loss wz_losses[] = {
    { "clip", false, clip }, { "cispo", false, cispo }, { "cross_entropy", true, cross_entropy }, { 0 }
};

const struct wz_loss *wz_loss_find(const char *name, struct wz_err *err)
{
    return wz_row_find(wz_losses, sizeof *wz_losses, "loss", name, err);
}

/* k2 and k3 (Schulman, "Approximating KL divergence", 2020), x = ref - now: x^2 / 2, and e^x - x - 1, which is what
 * GRPO takes (Shao et al. 2024, eq. 4). k1, -x, has no derivative on average in the loss: it is in the return. */
static double k2(const struct wz_loss_token *t, double *value)
{
    *value = (t->now - t->ref) * (t->now - t->ref) / 2;
    return t->now - t->ref;
}

static double k3(const struct wz_loss_token *t, double *value)
{
    *value = exp(t->ref - t->now) - (t->ref - t->now) - 1;
    return 1 - exp(t->ref - t->now);
}

const struct wz_kl wz_kls[] = { { "return", NULL }, { "k2", k2 }, { "k3", k3 }, { 0 } };

const struct wz_kl *wz_kl_find(const char *name, struct wz_err *err)
{
    return wz_row_find(wz_kls, sizeof *wz_kls, "kl form", name, err);
}

/* Importance weights. Let b be a token's log-probability by what sampled it, as the rollout recorded it, and p by the
 * learner in the batch's first update, before any weight has changed. Equal weights need not give equal ones: rollout
 * and learner may compute in other orders (numerics.cuda fast). The token was drawn by exp b, so J's term, whose ratio
 * is now exp(now - p), is weighed by exp(p - b), or by exp of the sum of p - b over its sample; a weight has no
 * derivative:
 *
 *   truncate   min(ratio, C)             Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy
 *                                        RL Training": truncated importance sampling
 *   mask       ratio, or 0 above C       Liu et al. 2025, "When Speed Kills Stability: Demystifying RL Collapse from
 *                                        the Training-Inference Mismatch": masked importance sampling
 *
 * Where the bits of both agree (guarantee 1) every weight is 1 and p is b: nothing changes. A KL penalty in the loss is
 * not weighed, as in TRL. */
static double truncated(double ratio, double cap) { return fmin(ratio, cap); }

static double masked(double ratio, double cap) { return ratio <= cap ? ratio : 0; }

const struct wz_importance wz_importances[] = {
    { "none", false, NULL },           { "token_truncate", false, truncated },
    { "token_mask", false, masked },   { "sequence_truncate", true, truncated },
    { "sequence_mask", true, masked }, { 0 }
};

const struct wz_importance *wz_importance_find(const char *name, struct wz_err *err)
{
    return wz_row_find(wz_importances, sizeof *wz_importances, "importance weight", name, err);
}
