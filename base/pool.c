/* A pool of threads. One job at a time: an index counter that the threads draw from, and a meeting at the end.
 *
 *   caller:  job = {fn, arg, n}; epoch++ ──▶ draws indices too ──▶ waits until `busy` is 0
 *   worker:  spins a little on epoch, then parks on a condition variable
 *
 * Which thread runs an index is left to chance; what an index computes is not. */
#include "base/base.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

struct wz_pool {
    int threads;
    pthread_t *ids;
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    void (*fn)(void *, int);
    void *arg;
    int n;
    atomic_int next, busy;
    atomic_uint epoch;
    bool stop;
};

enum { SPIN = 2000 };

static void draw(struct wz_pool *p)
{
    for (int i; (i = atomic_fetch_add(&p->next, 1)) < p->n;) p->fn(p->arg, i);
}

static void *worker(void *arg)
{
    struct wz_pool *p = arg;
    unsigned seen = 0;

    for (;;) {
        for (int i = 0; i < SPIN && atomic_load(&p->epoch) == seen; i++) __builtin_ia32_pause();
        pthread_mutex_lock(&p->lock);
        while (atomic_load(&p->epoch) == seen && !p->stop) pthread_cond_wait(&p->wake, &p->lock);
        seen = atomic_load(&p->epoch);
        bool stop = p->stop;
        pthread_mutex_unlock(&p->lock);
        if (stop) return NULL;
        draw(p);
        if (atomic_fetch_sub(&p->busy, 1) == 1) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->done);
            pthread_mutex_unlock(&p->lock);
        }
    }
}

struct wz_pool *wz_pool_create(int threads)
{
    struct wz_pool *p = wz_alloc(sizeof *p);

    if (threads <= 0) {
        cpu_set_t set;
        threads = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    }
    p->threads = threads;
    p->ids = wz_alloc(sizeof *p->ids * (size_t)threads);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    pthread_cond_init(&p->done, NULL);
    for (int i = 1; i < threads; i++)          /* thread 0 is the caller */
        if (pthread_create(&p->ids[i], NULL, worker, p)) wz_die("cannot start thread %d of %d", i, threads);
    return p;
}

void wz_pool_destroy(struct wz_pool *p)
{
    if (!p) return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (int i = 1; i < p->threads; i++) pthread_join(p->ids[i], NULL);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->wake);
    pthread_cond_destroy(&p->done);
    free(p->ids);
    free(p);
}

int wz_pool_threads(const struct wz_pool *p)
{
    return p ? p->threads : 1;
}

void wz_pool_run(struct wz_pool *p, int n, void (*fn)(void *, int), void *arg)
{
    if (!p || p->threads == 1 || n <= 1) {
        for (int i = 0; i < n; i++) fn(arg, i);
        return;
    }
    pthread_mutex_lock(&p->lock);
    p->fn = fn;
    p->arg = arg;
    p->n = n;
    atomic_store(&p->next, 0);
    atomic_store(&p->busy, p->threads - 1);
    atomic_fetch_add(&p->epoch, 1);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    draw(p);
    for (int i = 0; i < SPIN && atomic_load(&p->busy); i++) __builtin_ia32_pause();
    pthread_mutex_lock(&p->lock);
    while (atomic_load(&p->busy)) pthread_cond_wait(&p->done, &p->lock);
    pthread_mutex_unlock(&p->lock);
}
