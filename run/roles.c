/* The assignment of ranks to roles: rollout, reward, learner. */
#include "run/job.h"

static void fill(struct wz_ranks *role, int first, int n, int rank)
{
    role->n = n;
    role->me = -1;
    for (int i = 0; i < n; i++) {
        role->ranks[i] = first + i;
        if (first + i == rank) role->me = i;
    }
}

bool wz_job_supervised(const struct wz_recipe *recipe)
{
    struct wz_err err;
    const struct wz_loss *loss = recipe->n_stages ? wz_loss_find(recipe->stages[0].loss, &err) : NULL;

    return loss && loss->supervised;
}

int wz_roles_assign(struct wz_roles *roles, const struct wz_recipe *recipe, bool training, int rank, int size,
                    struct wz_err *err)
{
    int rollout = recipe->ranks.rollout, reward = recipe->ranks.reward, learner = recipe->ranks.learner;
    int wanted = rollout + reward + learner;

    if (size > WZ_MAX_RANKS) return wz_fail(err, "expected at most %d ranks, got %d", WZ_MAX_RANKS, size);
    if (training && wz_job_supervised(recipe)) {
        rollout = reward = 0;
        learner = size;
    } else if (size <= 2) {
        fill(&roles->rollout, 0, 1, rank);
        fill(&roles->reward, size - 1, 1, rank);
        fill(&roles->learner, size - 1, 1, rank);
        return 0;
    } else if (wanted != size || !rollout || !reward || !learner) {
        reward = 1;
        learner = size < 6 || recipe->leaves < 2 ? 1 : 2;
        rollout = size - reward - learner;
        if (wanted && rank == 0)
            wz_log("the recipe asks for %d ranks, the job has %d: using rollout %d reward %d learner %d", wanted, size,
                   rollout, reward, learner);
    }
    if (learner & (learner - 1) || recipe->leaves % learner)
        return wz_fail(err, "%s: expected a power of two that divides leaves (%d), got %d",
                       rollout ? "ranks.learner" : "ranks of the job, all learners", recipe->leaves, learner);
    fill(&roles->rollout, 0, rollout, rank);
    fill(&roles->reward, rollout, reward, rank);
    fill(&roles->learner, rollout + reward, learner, rank);
    return 0;
}

struct wz_group wz_ranks_group(const struct wz_ranks *role)
{
    return (struct wz_group){ role->n, role->me, role->ranks };
}
