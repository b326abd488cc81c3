/* A pool of threads. One job at a time; threads draw its indices, and the job is over when every index is done.
 *
 *   ticket   [ job, 32 bits | next index, 32 bits ]       one word: who moves it on has drawn that index of that job
 *   caller:  close the ticket; write fn, arg, n; open it ──▶ draws too ──▶ waits until `left` is 0
 *   worker:  spins a little on the ticket, then parks on a condition variable
 *
 * Nobody waits for a thread that drew nothing: where several processes share the cores, a worker that sleeps through
 * a job costs its help, not its time slice. A late worker cannot mistake one job for another, since its draw fails
 * when the word has moved on. Which thread runs an index is left to chance; what an index computes is not. */
#include "base/cores.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

typedef void pool_fn(void *, int);

struct wz_pool {
    int threads;
    bool interleaved; /* the caller's memory, by us */
    pthread_t *ids;
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    _Alignas(64) _Atomic uint64_t ticket;
    _Atomic(pool_fn *) fn;
    _Atomic(void *) arg;
    atomic_int n;
    _Alignas(64) atomic_int left;
    atomic_int parked;
    atomic_bool waiting, stop;
};

enum { SPIN = 1000 }; /* some 20 us */
static const uint32_t CLOSED = UINT32_MAX;

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); /* `yield` passes at once */
#endif
}

static void draw(struct wz_pool *p)
{
    uint64_t t = atomic_load(&p->ticket);

    for (;;) {
        pool_fn *fn = atomic_load(&p->fn);
        void *arg = atomic_load(&p->arg);
        if ((uint32_t)t >= (uint32_t)atomic_load(&p->n)) return;
        if (!atomic_compare_exchange_weak(&p->ticket, &t, t + 1)) continue;
        fn(arg, (int)(uint32_t)t);
        if (atomic_fetch_sub(&p->left, 1) == 1 && atomic_load(&p->waiting)) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->done);
            pthread_mutex_unlock(&p->lock);
        }
        t = atomic_load(&p->ticket);
    }
}

/* An open job that this worker has not seen, or the end. */
static bool called(struct wz_pool *p, uint32_t seen)
{
    uint64_t t = atomic_load(&p->ticket);

    return (t >> 32 != seen && (uint32_t)t != CLOSED) || atomic_load(&p->stop);
}

static void *worker(void *arg)
{
    struct wz_pool *p = arg;

    for (uint32_t seen = 0; !atomic_load(&p->stop);) {
        for (int i = 0; i < SPIN && !called(p, seen); i++) relax();
        if (!called(p, seen)) {
            pthread_mutex_lock(&p->lock);
            atomic_fetch_add(&p->parked, 1);
            while (!called(p, seen)) pthread_cond_wait(&p->wake, &p->lock);
            atomic_fetch_sub(&p->parked, 1);
            pthread_mutex_unlock(&p->lock);
        }
        seen = (uint32_t)(atomic_load(&p->ticket) >> 32);
        draw(p);
    }
    return NULL;
}

/* After the ticket or `stop` was written: a worker counts itself parked before it looks a last time. */
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
    p->ids = wz_alloc(sizeof *p->ids * (size_t)threads);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    pthread_cond_init(&p->done, NULL);
    for (int i = 1; i < threads; i++) { /* thread 0 is the caller */
        if (pthread_create(&p->ids[i], NULL, worker, p)) wz_die("cannot start thread %d of %d", i, threads);
        if (cores.bound) wz_cores_bind(p->ids[i], cores.units[i]);
    }
    return p;
}

void wz_pool_destroy(struct wz_pool *p)
{
    if (!p) return;
    atomic_store(&p->stop, true);
    wake(p);
    for (int i = 1; i < p->threads; i++) pthread_join(p->ids[i], NULL);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->wake);
    pthread_cond_destroy(&p->done);
    if (p->interleaved) wz_cores_interleave(false);
    free(p->ids);
    free(p);
}

int wz_pool_threads(const struct wz_pool *p) { return p ? p->threads : 1; }

void wz_pool_run(struct wz_pool *p, int n, void (*fn)(void *, int), void *arg)
{
    if (!p || p->threads == 1 || n <= 1) {
        for (int i = 0; i < n; i++) fn(arg, i);
        return;
    }
    uint64_t job = ((atomic_load(&p->ticket) >> 32) + 1) << 32;
    atomic_store(&p->ticket, job | CLOSED);
    atomic_store(&p->fn, fn);
    atomic_store(&p->arg, arg);
    atomic_store(&p->n, n);
    atomic_store(&p->left, n);
    atomic_store(&p->ticket, job);
    wake(p);
    draw(p);
    for (int i = 0; i < SPIN && atomic_load(&p->left); i++) relax();
    if (!atomic_load(&p->left)) return;
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->waiting, true);
    while (atomic_load(&p->left)) pthread_cond_wait(&p->done, &p->lock);
    atomic_store(&p->waiting, false);
    pthread_mutex_unlock(&p->lock);
}
