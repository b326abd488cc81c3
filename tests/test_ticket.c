/* pool: whatever a worker has read of a job when the next one is opened, it runs no index of either twice, none
 * after the job's end and none by another job's function. The pool's own code runs here as three fibres of one
 * thread, a caller and two workers, and every order of their atomic steps with up to two preemptions is tried. */
#include "test.h"

#include <stdatomic.h>
#include <ucontext.h>

#include "base/cores.h"

static void step(bool reads);

/* One thread runs all: an operation is whole because no step is taken inside it. */
#undef atomic_load
#undef atomic_store
#undef atomic_fetch_add
#undef atomic_fetch_sub
#undef atomic_compare_exchange_weak
#define atomic_load(p)         (step(true), *(p))
#define atomic_store(p, v)     (step(false), *(p) = (v))
#define atomic_fetch_add(p, v) (step(false), (*(p) += (v)) - (v))
#define atomic_fetch_sub(p, v) (step(false), (*(p) -= (v)) + (v))
#define atomic_compare_exchange_weak(p, old, v) \
    (step(false), *(p) == *(old) ? (*(p) = (v), true) : (*(old) = *(p), false))
#define pthread_cond_wait(c, l) (step(true), 0)
#define pthread_mutex_lock(l)   ((void)(l))
#define pthread_mutex_unlock(l) ((void)(l))
#pragma GCC diagnostic ignored "-Wunused-value"
#include "base/pool.c"

enum { FIBRES = 3, PREEMPTIONS = 2, STACK = 1 << 16, PATIENCE = 8, LONG = 100000 };

static ucontext_t home, fibres[FIBRES];
static char stacks[FIBRES][STACK];
static bool over[FIBRES];
static int at, now, idle, n_switches;
static struct {
    int at, to;
} switches[PREEMPTIONS];
static struct wz_pool pool;
static struct work {
    int n, calls[4];
    bool open;
} works[3] = { { .n = 2 }, { .n = 3 }, { .n = 2 } };
static const char *wrong;

static void go(int to)
{
    int from = now;

    while (over[to]) to = (to + 1) % FIBRES;
    now = to;
    idle = 0;
    if (to != from) swapcontext(&fibres[from], &fibres[to]);
}

/* Before every atomic operation. Who only reads for long is waiting. */
static void step(bool reads)
{
    int s = at++;

    if (s == LONG) {
        wrong = "a job never ends";
        setcontext(&home);
    }
    for (int i = 0; i < n_switches; i++)
        if (switches[i].at == s) {
            go(switches[i].to);
            return;
        }
    idle = reads ? idle + 1 : 0;
    if (idle > PATIENCE) go((now + 1) % FIBRES);
}

static void run_index(struct work *w, int i)
{
    if (!w->open) wrong = "an index was run when its job was over";
    else if (i >= w->n || w->calls[i]++) wrong = "an index was run twice, or is none of the job's";
}

static void first_job(void *arg, int i)
{
    if (arg == &works[1]) wrong = "a job was run by another's function";
    run_index(arg, i);
}

static void second_job(void *arg, int i)
{
    if (arg != &works[1]) wrong = "a job was run by another's function";
    run_index(arg, i);
}

static void caller(void)
{
    for (int j = 0; j < 3; j++) {
        works[j].open = true;
        wz_pool_run(&pool, works[j].n, j == 1 ? second_job : first_job, &works[j]);
        works[j].open = false;
        for (int i = 0; i < works[j].n; i++)
            if (works[j].calls[i] != 1 && !wrong) wrong = "an index was not run";
    }
    over[0] = true;
    setcontext(&home);
}

static void late(void)
{
    while (!over[0]) work(&pool, now);
    setcontext(&home);
}

/* One order of steps; how many there were. */
static int play(void)
{
    at = now = idle = 0;
    pool = (struct wz_pool){ .threads = FIBRES };
    for (int j = 0; j < 3; j++) memset(works[j].calls, 0, sizeof works[j].calls), works[j].open = false;
    for (int f = 0; f < FIBRES; f++) {
        over[f] = false;
        getcontext(&fibres[f]);
        fibres[f].uc_stack.ss_sp = stacks[f];
        fibres[f].uc_stack.ss_size = STACK;
        makecontext(&fibres[f], f ? late : caller, 0);
    }
    swapcontext(&home, &fibres[0]);
    if (wrong)
        fail_msg("%s: switches before step %d to %d, before %d to %d", wrong, switches[0].at, switches[0].to,
                 switches[1].at, switches[1].to);
    return at;
}

static long explore(int from)
{
    int steps = play();
    long orders = 1;

    if (n_switches == PREEMPTIONS) return orders;
    int mine = n_switches++;
    for (int s = from; s < steps; s++)
        for (int to = 0; to < FIBRES; to++) {
            switches[mine].at = s;
            switches[mine].to = to;
            orders += explore(s + 1);
        }
    n_switches--;
    return orders;
}

static void late_workers_do_no_harm(void **state) { print_message("# %ld orders\n", explore(0)); }

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(late_workers_do_no_harm) };

    return cmocka_run_group_tests_name("ticket", tests, NULL, NULL);
}
