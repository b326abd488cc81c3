/* Thread pool. One job at a time. Its indices are cut into a range for each thread (many threads share them), in order,
 * so that of jobs over the same rows a thread gets the same ones, which its cache still holds. Threads claim indices
 * one by one, of their own range first, then of the others', and the job ends when all are done.
 *
 *   ticket   [ job, 32 bits | claimed, 32 bits ]          a range's: whoever increments it has claimed an index
 *   caller:  closes the tickets; writes fn, arg, n; opens them ──▶ claims tasks too ──▶ waits until `left` is 0
 *   worker:  spins briefly on its range's ticket, then sleeps on a condition variable
 *
 * The barrier at the end waits only for threads that claimed a task: where several processes share the cores, a worker
 * that is not scheduled during a job delays nobody. A late worker cannot claim a task of the wrong job, since its
 * compare-and-swap fails once the word has changed. Which thread runs a task varies; what it computes does not. */
#include "base/cores.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

typedef void pool_fn(void *, int);

enum { RANGES = 16, SPIN = 1000 }; /* RANGES: most of them, then several threads share one; SPIN: some 20 us */
static const uint32_t CLOSED = UINT32_MAX;

struct wz_pool {
    int threads;
    bool interleaved; /* this pool set the caller's memory policy, and restores it */
    struct worker {
        struct wz_pool *pool;
        pthread_t id;
        int range; /* its own */
    } * workers;   /* [threads]; the first is the caller */
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    struct {
        _Alignas(64) _Atomic uint64_t ticket;
    } ranges[RANGES];
    _Atomic(pool_fn *) fn;
    _Atomic(void *) arg;
    atomic_int n;
    _Alignas(64) atomic_int left;
    atomic_int parked;
    atomic_bool waiting, stop;
};

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); /* `yield` passes at once */
#endif
}

static int ranges_of(const struct wz_pool *p) { return p->threads < RANGES ? p->threads : RANGES; }

/* Claims and runs tasks of a range until none is left. */
static void work_range(struct wz_pool *p, int range)
{
    _Atomic uint64_t *ticket = &p->ranges[range].ticket;
    uint64_t t = atomic_load(ticket);

    for (;;) {
        pool_fn *fn = atomic_load(&p->fn);
        void *arg = atomic_load(&p->arg);
        const long n = atomic_load(&p->n), from = n * range / ranges_of(p), to = n * (range + 1) / ranges_of(p);
        if ((uint32_t)t >= (uint32_t)(to - from)) return;
        if (!atomic_compare_exchange_weak(ticket, &t, t + 1)) continue;
        fn(arg, (int)(from + (uint32_t)t));
        if (atomic_fetch_sub(&p->left, 1) == 1 && atomic_load(&p->waiting)) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->done);
            pthread_mutex_unlock(&p->lock);
        }
        t = atomic_load(ticket);
    }
}

static void work(struct wz_pool *p, int own)
{
    for (int i = 0, n = ranges_of(p); i < n; i++) work_range(p, (own + i) % n);
}

/* Is there an open job that this worker has not seen, or is the pool being destroyed? */
static bool has_work(struct wz_pool *p, int range, uint32_t seen)
{
    uint64_t t = atomic_load(&p->ranges[range].ticket);

    return (t >> 32 != seen && (uint32_t)t != CLOSED) || atomic_load(&p->stop);
}

static void *worker(void *arg)
{
    const struct worker *me = arg;
    struct wz_pool *p = me->pool;

    for (uint32_t seen = 0; !atomic_load(&p->stop);) {
        for (int i = 0; i < SPIN && !has_work(p, me->range, seen); i++) relax();
        if (!has_work(p, me->range, seen)) {
            pthread_mutex_lock(&p->lock);
            atomic_fetch_add(&p->parked, 1);
            while (!has_work(p, me->range, seen)) pthread_cond_wait(&p->wake, &p->lock);
            atomic_fetch_sub(&p->parked, 1);
            pthread_mutex_unlock(&p->lock);
        }
        uint64_t t = atomic_load(&p->ranges[me->range].ticket);
        if ((uint32_t)t != CLOSED) seen = (uint32_t)(t >> 32);
        work(p, me->range);
    }
    return NULL;
}

/* Called after the tickets or `stop` were written. No wake-up is lost: a worker increments `parked` before it checks a
 * last time. */
static void wake(struct wz_pool *p)
{
    if (!atomic_load(&p->parked)) return;
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

struct wz_pool *wz_pool_create(int threads)
{
    struct wz_pool *p = wz_alloc(sizeof *p);
    struct wz_cores cores;

    wz_cores_here(&cores, 0, 0, threads);
    p->threads = threads = cores.threads;
    p->interleaved = threads > 1 && cores.nodes > 1 && wz_cores_interleave(true);
    p->workers = wz_alloc(sizeof *p->workers * (size_t)threads);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    pthread_cond_init(&p->done, NULL);
    for (int i = 1; i < threads; i++) {
        struct worker *w = &p->workers[i];
        w->pool = p;
        w->range = i % ranges_of(p);
        if (pthread_create(&w->id, NULL, worker, w)) wz_die("cannot start thread %d of %d", i, threads);
        if (cores.bound) wz_cores_bind(w->id, cores.units[i]);
    }
    return p;
}

void wz_pool_destroy(struct wz_pool *p)
{
    if (!p) return;
    atomic_store(&p->stop, true);
    wake(p);
    for (int i = 1; i < p->threads; i++) pthread_join(p->workers[i].id, NULL);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->wake);
    pthread_cond_destroy(&p->done);
    if (p->interleaved) wz_cores_interleave(false);
    free(p->workers);
    free(p);
}

int wz_pool_threads(const struct wz_pool *p) { return p ? p->threads : 1; }

void wz_pool_run(struct wz_pool *p, int n, void (*fn)(void *, int), void *arg)
{
    if (!p || p->threads == 1 || n <= 1) {
        for (int i = 0; i < n; i++) fn(arg, i);
        return;
    }
    const int ranges = ranges_of(p);
    uint64_t job = ((atomic_load(&p->ranges[0].ticket) >> 32) + 1) << 32;
    for (int i = 0; i < ranges; i++) atomic_store(&p->ranges[i].ticket, job | CLOSED);
    atomic_store(&p->fn, fn);
    atomic_store(&p->arg, arg);
    atomic_store(&p->n, n);
    atomic_store(&p->left, n);
    for (int i = 0; i < ranges; i++) atomic_store(&p->ranges[i].ticket, job);
    wake(p);
    work(p, 0);
    for (int i = 0; i < SPIN && atomic_load(&p->left); i++) relax();
    if (!atomic_load(&p->left)) return;
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->waiting, true);
    while (atomic_load(&p->left)) pthread_cond_wait(&p->done, &p->lock);
    atomic_store(&p->waiting, false);
    pthread_mutex_unlock(&p->lock);
}
