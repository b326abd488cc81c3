/* Graceful shutdown: SIGTERM and SIGINT (a person, a preempted node) and SIGUSR1 (Slurm's warning before the time
 * limit) ask the run to stop after the current step, or before the next prompts of an evaluation. mpirun and srun
 * forward them to every rank; one rank that has received one is enough. SIGHUP and SIGPIPE (a terminal that is gone)
 * do nothing: they are handled, not ignored, for that would be inherited by a judge's command. */
#include "run/folder.h"

#include <signal.h>

static volatile sig_atomic_t seen;
static volatile double first; /* wz_now() of the first */

/* One request may come by several ways (Slurm signals srun, its tasks and the script, which passes it on): what comes
 * within two seconds of the first is the same one. A later one ends the process at once. */
static void note(int number)
{
    if (!seen) first = wz_now();
    seen = number;
    if (wz_now() < first + 2) return;
    signal(number, SIG_DFL);
    raise(number);
}
static void pass(int number) {}

void wz_stop_watch(void)
{
    const int signals[] = { SIGTERM, SIGINT, SIGUSR1 };
    struct sigaction action = { .sa_handler = note, .sa_flags = SA_RESTART };

    for (size_t i = 0; i < WZ_COUNT(signals); i++) sigaction(signals[i], &action, NULL);
    action = (struct sigaction){ .sa_handler = pass, .sa_flags = SA_RESTART };
    sigaction(SIGHUP, &action, NULL);
    sigaction(SIGPIPE, &action, NULL);
}

bool wz_stop_asked(struct wz_link *link)
{
    struct wz_err err;

    return wz_link_agree(link, seen ? -1 : 0, &err) < 0;
}
