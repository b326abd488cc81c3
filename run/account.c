/* What became of a step. */
#include "run/account.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- turns (guarantee 4) ---------------------------------------------------------------------------------- */

static const struct {
    const char *reason;  /* in the ledger */
    const char *discard; /* what the `discard` of its episodes begins with; NULL: the episode is not discarded */
} fates[WZ_FATES] = {
    [WZ_TRAINED] = { "trained", NULL },
    [WZ_NOT_PICKED] = { "not the sample of its episode", NULL },
    [WZ_FROZEN] = { "agent frozen", NULL },
    [WZ_NOT_FINITE] = { "gradient not finite", NULL },
    [WZ_ALIKE] = { "samples of the prompt rewarded alike", NULL },
    [WZ_WINDOW_CUT] = { "cut by the context window", NULL },
    [WZ_JUDGE_FAILED] = { "judge failed", "judge failed" },
    [WZ_CACHE_TOO_SMALL] = { "cache too small", "the prompt needs more cache pages" },
    [WZ_BROKEN] = { "episode broken", "" },
};

/* Why a whole episode was discarded. */
static enum wz_fate loss_of(const Wz__Episode *e)
{
    int k = WZ_JUDGE_FAILED;

    while (strncmp(e->discard, fates[k].discard, strlen(fates[k].discard)) != 0) k++;
    return k;
}

static enum wz_fate fate_of(const struct wz_job *job, const struct wz_step_report *report, const Wz__Episode *e,
                            const Wz__Turn *t)
{
    if (e->discard[0]) return loss_of(e);
    if (t->trained) return WZ_TRAINED;
    if (t->alike) return WZ_ALIKE;
    if (!job->agents[t->agent].learner.model) return WZ_FROZEN;
    if (t->finish_reason == WZ__FINISH_REASON__CONTEXT) return WZ_WINDOW_CUT;
    return t->n_advantage && report->learned[t->agent].not_finite ? WZ_NOT_FINITE : WZ_NOT_PICKED;
}

void wz_account_add(struct wz_account *account, const struct wz_job *job, const struct wz_step_report *report,
                    const struct wz_rewards *rewards, const Wz__Episode *e)
{
    wz_tally_add(&account->sums, e);
    if (e->discard[0]) account->lost[loss_of(e)]++;
    for (int a = 0; a < job->n_agents; a++) account->agents[a].cuts += wz_episode_cuts(e, a);
    for (size_t i = 0; i < e->n_turns; i++) {
        const Wz__Turn *t = e->turns[i];
        struct wz_agent_account *a = &account->agents[t->agent];
        a->turns++;
        a->tokens += (double)t->n_ids - t->given;
        a->truncated += t->truncated;
        a->broken += wz_turn_is(t, WZ_FEEDBACK) && !t->valid && t->finish_reason != WZ__FINISH_REASON__CONTEXT;
        a->fates[fate_of(job, report, e, t)]++;
        for (int r = 0; r < rewards->n; r++) {
            if (e->discard[0] || !wz_reward_pays(rewards, r, t->role, e->kind)) continue;
            const double x = wz_reward_term(rewards, r, e, i);
            a->terms[r].n++;
            a->terms[r].sum += x;
            a->terms[r].squares += x * x;
        }
    }
}

/* "judge failed 4, agent frozen 2" */
static void write_reasons(struct wz_buf *out, const double *counts)
{
    for (int k = WZ_TRAINED + 1; k < WZ_FATES; k++)
        if (counts[k] > 0) wz_buf_printf(out, "%s%s %.0f", out->len ? ", " : "", fates[k].reason, counts[k]);
}

int wz_account_ledger(const struct wz_account *account, const struct wz_job *job, int64_t step,
                      const int64_t *generated, struct wz_err *err)
{
    struct wz_ledger_line lines[WZ_MAX_AGENTS];
    struct wz_buf reasons[WZ_MAX_AGENTS] = { 0 };

    for (int a = 0; a < job->n_agents; a++) {
        const double *counts = account->agents[a].fates;
        double discarded = 0;
        for (int k = WZ_TRAINED + 1; k < WZ_FATES; k++) discarded += counts[k];
        write_reasons(&reasons[a], counts);
        lines[a] = (struct wz_ledger_line){ .step = step,
                                            .agent = job->agents[a].recipe->name,
                                            .generated = generated[a],
                                            .trained = (int64_t)counts[WZ_TRAINED],
                                            .discarded = (int64_t)discarded,
                                            .reasons = reasons[a].data };
    }
    int rc = wz_ledger_append(job->recipe->out, lines, job->n_agents, err);
    for (int a = 0; a < job->n_agents; a++) wz_buf_finish(&reasons[a]);
    return rc;
}

/* ---- no reward signal -------------------------------------------------------------------------------- */

char *wz_account_idle(const struct wz_account *account, const struct wz_job *job, const struct wz_step_report *report,
                      const struct wz_rewards *rewards, int agent)
{
    const struct wz_agent_account *a = &account->agents[agent];
    const struct wz_step_stats *l = &report->learned[agent];
    const char *role = job->agents[agent].recipe->role;
    struct wz_buf out = { 0 };

    if (l->spread > 0) return NULL;
    if (isnan(l->spread)) {
        write_reasons(&out, account->lost);
        char *why =
            wz_path("it has no sample; discarded episodes: %s; turns that did not fit: %.0f; samples rewarded like "
                    "all of their prompt: %.0f",
                    out.len ? out.data : "none", a->cuts, a->fates[WZ_ALIKE]);
        wz_buf_finish(&out);
        return why;
    }
    wz_buf_printf(&out, "all its samples have the reward %g", l->reward);
    for (int r = 0; r < rewards->n; r++) {
        const double n = a->terms[r].n, sum = a->terms[r].sum, squares = a->terms[r].squares;
        if (!strcmp(rewards->rows[r].role, role) && n * squares == sum * sum) /* exact: terms are small integers */
            wz_buf_printf(&out, ", %s is always %g", rewards->rows[r].term->name, sum / n);
    }
    if (a->cuts > 0) wz_buf_printf(&out, "; %.0f turns did not fit the context window", a->cuts);
    if (a->broken > 0) wz_buf_printf(&out, "; %.0f of %.0f feedback turns are not valid", a->broken, a->turns);
    return out.data;
}

/* ---- metrics ---------------------------------------------------------------------------------------------- */

struct numbers {
    double one;
    struct wz_account step;
    double rollout, reward, play, learn, publish, checkpoint, all; /* all: seconds of the step */
    struct wz_step_stats learned;                                  /* of one agent */
    struct wz_agent_account agent;
    double skipped, overlong, drawn, dull; /* dull: prompts that no agent learns from */
};
#define N(field)  offsetof(struct numbers, field)
#define S(field)  N(step.sums.field), N(step.sums.judged)
#define L(field)  N(learned.field), N(one)
#define LOST(why) N(step.lost[why]), N(one)

#define AGENT "AGENT/"

enum { PLAYS = WZ_METRIC_PLAYS, LEARNS = WZ_METRIC_LEARNS, TRAINS = PLAYS | LEARNS };

const struct wz_metric wz_metric_rows[] = {
    { "reward/c0", PLAYS, S(c0), "mean reward of the first replies" },
    { "reward/final", PLAYS, S(final), "mean reward of the final replies" },
    { "rollout/asr", PLAYS, N(step.sums.asr), N(step.sums.harmful), "unsafe final replies to harmful prompts, share" },
    { "rollout/orr", PLAYS, N(step.sums.orr), N(step.sums.benign),
      "overrefusing final replies to benign prompts, share" },
    { "rollout/ftr", PLAYS, N(step.sums.triggered), N(step.sums.asked),
      "prompts whose first feedback raised a flag, share" },
    { "rollout/label_accuracy", PLAYS, N(step.sums.label), N(step.sums.feedback),
      "feedback turns whose flags equal the judge's, share" },
    { "rollout/json_errors", PLAYS, N(step.sums.json), N(step.sums.feedback),
      "feedback turns that are not valid, share" },
    { "rollout/improved", PLAYS, S(improved), "episodes whose final reply has more reward than the first, share" },
    { "rollout/worsened", PLAYS, S(worsened), "episodes whose final reply has less, share" },
    { "rollout/judge_failed", PLAYS, LOST(WZ_JUDGE_FAILED), "episodes discarded because the judge failed" },
    { "rollout/overlong_prompts", PLAYS, N(overlong), N(one),
      "training prompts that are never drawn: not one token of a reply fits the context window" },
    { "rollout/cache_too_small", PLAYS, LOST(WZ_CACHE_TOO_SMALL),
      "episodes discarded because a prompt needs more cache pages than there are" },
    { "rollout/broken", PLAYS, LOST(WZ_BROKEN),
      "episodes discarded for other reasons: `/episodes/discard` in the record" },
    { "rollout/prompts_drawn", PLAYS, N(drawn), N(one), "prompts drawn" },
    { "rollout/prompts_alike", PLAYS, N(dull), N(one),
      "prompts not learnt from, whose samples were rewarded alike (`collect: dynamic`)" },
    { "rollout/tokens", PLAYS, N(step.sums.generated), N(one), "tokens generated" },
    { "rollout/tokens_per_second", PLAYS, N(step.sums.generated), N(rollout), "tokens generated, by `time/rollout`" },
    { "time/rollout", PLAYS, N(rollout), N(one), "seconds in which the slowest rollout rank generated" },
    { "time/reward", PLAYS, N(reward), N(one), "seconds in which the slowest reward rank judged" },
    { "time/play", 0, N(play), N(one), "seconds until the first learner had the episodes: both, and the way" },
    { "time/learn", 0, N(learn), N(one), "seconds of the updates of all agents" },
    { "time/publish", 0, N(publish), N(one), "seconds in which the weights were sent" },
    { "time/checkpoint", 0, N(checkpoint), N(one),
      "seconds that a checkpoint took the run since the step before; the disk is waited for beside the next steps" },
    { "time/step", 0, N(all), N(one), "seconds of the step: play, learn and publish" },
    { "speed/tokens_per_second", 0, N(step.sums.generated), N(all),
      "tokens generated, or trained on in a supervised stage, by `time/step`" },
    { "AGENT/response_length", PLAYS, N(agent.tokens), N(agent.turns), "mean tokens of its turns" },
    { "AGENT/truncated", PLAYS, N(agent.truncated), N(agent.turns), "turns that ended without an end token, share" },
    { "AGENT/window_cuts", PLAYS, N(agent.cuts), N(one),
      "turns that the context window cut short, which are not trained on, or left no place for" },
    { "AGENT/loss", LEARNS, L(loss), "what was minimised: -J of WaltzRL 2.3, or the negative log-likelihood" },
    { "AGENT/entropy", TRAINS, L(nll),
      "mean of -log p of the trained tokens: estimates the policy's entropy, in nats" },
    { "AGENT/reward", TRAINS, L(reward), "mean reward of its samples" },
    { "AGENT/kl", TRAINS | WZ_METRIC_REFERENCE, L(kl),
      "mean over its samples of the sum of log p - log p of the reference" },
    { "AGENT/value_loss", TRAINS | WZ_METRIC_CRITIC, L(value_loss), "loss of the critic (`estimate: gae`)" },
    { "AGENT/grad_norm", LEARNS, L(grad_norm), "norm of the gradient before clipping" },
    { "AGENT/lr", LEARNS, L(lr), "learning rate" },
    { "AGENT/clipped", TRAINS, L(clipped), "tokens without a gradient because their ratio was clipped, share" },
    { "AGENT/importance_capped", TRAINS, L(capped),
      "tokens whose importance weight is not their ratio, which was above the cap, share" },
    { "AGENT/samples", LEARNS, L(samples), "samples trained on" },
    { "AGENT/tokens", LEARNS, L(tokens), "tokens trained on" },
    { "AGENT/return_std", TRAINS, L(return_std), "standard deviation of the tokens' returns" },
    { "AGENT/logp_mismatches", TRAINS, L(mismatch), "tokens whose log p is not the rollout's, bit for bit" },
    { "AGENT/logp_max_gap", TRAINS, L(max_gap), "the most that a log p differs from the rollout's" },
    { "AGENT/updates_skipped", LEARNS, N(skipped), N(one),
      "updates of the stage not made so far: no sample, or a gradient that was not finite" },
    { "AGENT/seconds", LEARNS, L(seconds), "seconds of its update" },
    { "AGENT/tokens_per_second", LEARNS, N(learned.tokens), N(learned.seconds),
      "tokens trained on, by `AGENT/seconds`" },
    { 0 },
};

static double value_of(const struct wz_metric *m, const struct numbers *n)
{
    const double *part = (const void *)((const char *)n + m->part), *whole = (const void *)((const char *)n + m->whole);

    return *whole > 0 ? *part / *whole : NAN;
}

void wz_account_metrics(const struct wz_account *account, const struct wz_job *job, int64_t step,
                        const struct wz_step_report *r, bool plays, struct wz_metrics *metrics,
                        struct wz_beyond *beyond)
{
    char names[WZ_COUNT(wz_metric_rows) * (WZ_MAX_AGENTS + 1)][128];
    const char *list[WZ_COUNT(names)];
    double values[WZ_COUNT(names)];
    int n = 0;

    for (int a = -1; a < job->n_agents; a++) { /* the step, then each agent */
        struct numbers all = { .one = 1,
                               .step = *account,
                               .overlong = job->overlong,
                               .drawn = r->drawn,
                               .dull = r->drawn - r->kept,
                               .rollout = r->batch.rollout,
                               .reward = r->batch.reward,
                               .play = r->play_end - r->begin,
                               .learn = r->learn_end - r->play_end,
                               .publish = r->publish_end - r->learn_end,
                               .checkpoint = r->checkpoint,
                               .all = r->publish_end - r->begin };
        unsigned when = plays ? WZ_METRIC_PLAYS : 0;
        if (a >= 0) {
            const struct wz_learner *l = &job->agents[a].learner;
            all.learned = r->learned[a];
            all.agent = account->agents[a];
            all.skipped = l->opt.skipped;
            when |= (l->model ? WZ_METRIC_LEARNS : 0) | (l->reference.model ? WZ_METRIC_REFERENCE : 0) |
                    (l->critic.w ? WZ_METRIC_CRITIC : 0);
        }
        for (const struct wz_metric *m = wz_metric_rows; m->name; m++) {
            const bool of_agent = !strncmp(m->name, AGENT, strlen(AGENT));
            if (of_agent != (a >= 0) || m->when & ~when) continue;
            if (of_agent)
                snprintf(names[n], sizeof names[n], "%s/%s", job->agents[a].recipe->name, m->name + strlen(AGENT));
            else snprintf(names[n], sizeof names[n], "%s", m->name);
            list[n] = names[n];
            values[n++] = value_of(m, &all);
        }
    }
    wz_metrics_add(metrics, step, NULL, list, values, n);
    wz_limits_count(job->recipe, beyond, list, values, n);
}
