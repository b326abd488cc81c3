/* Clocks, back-off for polling loops, heartbeats. */
#include "base/base.h"

#include <sched.h>
#include <time.h>

static double clock_seconds(clockid_t id)
{
    struct timespec t;

    clock_gettime(id, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double wz_now(void) { return clock_seconds(CLOCK_MONOTONIC); }

double wz_thread_time(void) { return clock_seconds(CLOCK_THREAD_CPUTIME_ID); }

static _Thread_local void (*heartbeat_hook)(void *arg);
static _Thread_local void *heartbeat_arg;

void wz_set_heartbeat(void (*tell)(void *arg), void *arg)
{
    heartbeat_hook = tell;
    heartbeat_arg = arg;
}

void wz_heartbeat(void)
{
    if (heartbeat_hook) heartbeat_hook(heartbeat_arg);
}

double wz_wall(void) { return clock_seconds(CLOCK_REALTIME); }

/* Ranks may outnumber the cores: a waiting rank must yield its core (spinning would slow the others by 2x). */
void wz_nap(int *spins)
{
    int n = (*spins)++;

    if (n < 20) {
        sched_yield();
        return;
    }
    long us = n < 24 ? 50L << (n - 20) : 1000;
    struct timespec t = { 0, us * 1000 };
    nanosleep(&t, NULL);
}
