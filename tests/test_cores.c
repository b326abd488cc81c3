/* cores: a process runs one thread on each physical core of its affinity mask, or its share of those that several
 * ranks hold together; they are bound only where the mask spans memory nodes and no other rank shares its cores; memory
 * that the caller touches first is then interleaved over the nodes. A rank knows which others share its cores. Where
 * the topology can't be read, a process still runs. */
#include "test.h"

#include <sched.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cores.h"
#include "run/job.h"

/* ---- layouts on machines made of words -------------------------------------------------------------------- */

static const struct {
    const char *machine, *mask;
    int ranks, index, wanted;
    int cores, nodes;
    bool bound;
    const char *units;
} layouts[] = {
    { "numa:2 core:4 pu:2", "0-15", 1, 0, 0, 8, 2, true, "0 2 4 6 8 10 12 14" },
    { "numa:2 core:4 pu:2", "0-7", 1, 0, 0, 4, 1, false, "0 2 4 6" },    /* one node: the scheduler knows best */
    { "numa:2 core:4 pu:2", "0-3,6-8", 1, 0, 0, 4, 2, true, "0 2 6 8" }, /* cores left out */
    { "numa:2 core:4 pu:2", "1,3,5,9", 1, 0, 0, 4, 2, true, "1 3 5 9" }, /* second siblings only */
    { "numa:2 core:4 pu:2", "2-3", 1, 0, 0, 1, 1, false, "2" },          /* both siblings of one core */
    { "numa:2 core:4 pu:2", "9", 1, 0, 0, 1, 1, false, "9" },
    { "numa:2 core:4 pu:2", "0-15", 1, 0, 8, 8, 2, true, "0 2 4 6 8 10 12 14" },
    { "numa:2 core:4 pu:2", "0-15", 1, 0, 3, 8, 2, false, "0 2 4" }, /* another process may ask for three as well */
    { "numa:2 core:4 pu:2", "0-15", 1, 0, 10, 8, 2, false, "0 2 4 6 8 10 12 14 0 2" },
    { "numa:2 core:4 pu:2", "0-15", 2, 0, 0, 8, 2, false, "0 2 4 6" },
    { "numa:2 core:4 pu:2", "0-15", 2, 1, 0, 8, 2, false, "8 10 12 14" },
    { "numa:2 core:4 pu:2", "0-15", 2, 0, 8, 8, 2, false, "0 2 4 6 8 10 12 14" }, /* as many as cores, but shared */
    { "numa:2 core:4 pu:2", "0-15", 3, 0, 0, 8, 2, false, "0 2" },
    { "numa:2 core:4 pu:2", "0-15", 3, 2, 0, 8, 2, false, "10 12 14" },
    { "numa:2 core:4 pu:2", "0-15", 16, 15, 0, 8, 2, false, "14" },                   /* more ranks than cores */
    { "numa:2 core:4 pu:2", "64", 1, 0, 0, 1, 1, false, "0" },                        /* outside the machine */
    { "numa:2 core:2 pu:1(indexes=0,2,1,3)", "0-3", 1, 0, 0, 4, 2, true, "0 2 1 3" }, /* numbered across the nodes */
    { "numa:2 pu:3", "0-5", 1, 0, 0, 6, 2, true, "0 1 2 3 4 5" },                     /* nothing said of cores */
    { "pack:2 [numa] [numa] core:2 pu:1", "0-3", 1, 0, 0, 4, 2, true,
      "0 1 2 3" }, /* two kinds of memory: one is the default */
    { "core:4 pu:2", "0-7", 1, 0, 0, 4, 1, false, "0 2 4 6" },
};

static hwloc_topology_t machine_of(const char *words)
{
    hwloc_topology_t t;

    assert_int_equal(hwloc_topology_init(&t), 0);
    assert_int_equal(hwloc_topology_set_synthetic(t, words), 0);
    assert_int_equal(hwloc_topology_load(t), 0);
    return t;
}

static void lay(struct wz_cores *c, const char *words, const char *list, int ranks, int index, int wanted)
{
    hwloc_topology_t t = machine_of(words);
    hwloc_bitmap_t mask = hwloc_bitmap_alloc(), nodes = hwloc_bitmap_alloc();

    hwloc_bitmap_list_sscanf(mask, list);
    wz_cores_lay(c, nodes, t, mask, ranks, index, wanted);
    hwloc_bitmap_free(mask);
    hwloc_bitmap_free(nodes);
    hwloc_topology_destroy(t);
}

static void threads_lie_on_cores(void **state)
{
    struct wz_buf units = { 0 };
    struct wz_cores c;

    for (size_t i = 0; i < WZ_COUNT(layouts); i++) {
        lay(&c, layouts[i].machine, layouts[i].mask, layouts[i].ranks, layouts[i].index, layouts[i].wanted);
        wz_buf_clear(&units);
        for (int k = 0; k < c.threads; k++) wz_buf_printf(&units, k ? " %d" : "%d", c.units[k]);
        if (strcmp(units.data, layouts[i].units) || c.cores != layouts[i].cores || c.nodes != layouts[i].nodes ||
            c.bound != layouts[i].bound)
            fail_msg("layout %zu: %s of %d cores, %d nodes, bound %d", i, units.data, c.cores, c.nodes, c.bound);
    }
    wz_buf_finish(&units);
}

/* Every core falls to one rank, as long as there are as many. */
static void shares_are_whole(void **state)
{
    for (int ranks = 1; ranks <= 12; ranks++) {
        int given[16] = { 0 }, most = 0;
        for (int r = 0; r < ranks; r++) {
            struct wz_cores c;
            lay(&c, "numa:2 core:4 pu:2", "0-15", ranks, r, 0);
            assert_in_range(c.threads, 8 / ranks > 0 ? 8 / ranks : 1, (8 + ranks - 1) / ranks);
            for (int k = 0; k < c.threads; k++) given[c.units[k]]++;
        }
        for (int u = 0; u < 16; u++) most = given[u] > most ? given[u] : most;
        for (int u = 0; u < 16 && ranks <= 8; u++) assert_int_equal(given[u], u % 2 == 0);
        assert_int_equal(most, (ranks + 7) / 8);
    }
}

static void masks_meet(void **state)
{
    assert_true(wz_cores_overlap("0-3,8", "8-9"));
    assert_true(wz_cores_overlap("0-", "4000"));
    assert_false(wz_cores_overlap("0-3,8", "4-7,9"));
}

/* ---- processes of their own: the machine is read once ----------------------------------------------------- */

static void in_child(const char *name, const char *value, void (*fn)(void))
{
    int status;
    pid_t child = fork();

    if (child == 0) {
        setenv(name, value, 1);
        fn();
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    if (status) fail_msg("the child ended with status %d", status);
}

/* cmocka's asserts jump out of a test, which a child must not. */
#define MUST(condition) ((condition) ? (void)0 : wz_die("%s:%d: %s", __FILE__, __LINE__, #condition))

static void share_by_roles(void)
{
    static struct wz_ranks two = { .n = 2, .ranks = { 0, 1 } }, last = { .n = 1, .ranks = { 3 } },
                           far = { .n = 4, .ranks = { 0, 1, 8, 9 } };
    int beside[] = { 0, 1, 2, 3 };
    struct wz_link link = { .rank = 1, .size = 16, .beside = beside, .n_beside = 4 };

    MUST(wz_ranks_threads(&link, &two, 0) == 4);
    MUST(wz_ranks_threads(&link, &far, 0) == 4); /* ranks 8 and 9 have other cores */
    MUST(wz_ranks_threads(&link, NULL, 0) == 2);
    MUST(wz_ranks_threads(&link, &two, 3) == 3);
    link.rank = 3;
    MUST(wz_ranks_threads(&link, &last, 0) == 8);
}

static void roles_share_the_cores(void **state) { in_child("HWLOC_SYNTHETIC", "numa:2 core:4 pu:2", share_by_roles); }

static atomic_int met;
static cpu_set_t sets[2];

/* One of two threads: it waits until the other has drawn as well. */
static void record(void *arg, int i)
{
    sched_getaffinity(0, sizeof sets[i], &sets[i]);
    atomic_fetch_add(&met, 1);
    while (atomic_load(&met) < 2) sched_yield();
}

static int bound_threads(void)
{
    struct wz_pool *pool = wz_pool_create(0);

    MUST(wz_pool_threads(pool) == 2);
    atomic_store(&met, 0);
    wz_pool_run(pool, 2, record, NULL);
    wz_pool_destroy(pool);
    return (CPU_COUNT(&sets[0]) == 1 && CPU_ISSET(1, &sets[0])) + (CPU_COUNT(&sets[1]) == 1 && CPU_ISSET(1, &sets[1]));
}

static hwloc_membind_policy_t policy(void)
{
    hwloc_topology_t t;
    hwloc_membind_policy_t now = HWLOC_MEMBIND_MIXED;
    hwloc_bitmap_t nodes = hwloc_bitmap_alloc();

    MUST(hwloc_topology_init(&t) == 0 && hwloc_topology_load(t) == 0);
    hwloc_get_membind(t, nodes, &now, HWLOC_MEMBIND_THREAD | HWLOC_MEMBIND_BYNODESET);
    hwloc_bitmap_free(nodes);
    hwloc_topology_destroy(t);
    return now;
}

static void pool_on_two_nodes(void)
{
    setenv("HWLOC_THISSYSTEM", "1", 1);
    MUST(policy() == HWLOC_MEMBIND_FIRSTTOUCH);
    MUST(bound_threads() == 1); /* the caller is bound to nothing */
    struct wz_pool *pool = wz_pool_create(2);
    MUST(policy() == HWLOC_MEMBIND_INTERLEAVE);
    wz_pool_destroy(pool);
    MUST(policy() == HWLOC_MEMBIND_FIRSTTOUCH);
    wz_set_beside(2);
    pool = wz_pool_create(0);
    MUST(wz_pool_threads(pool) == 1); /* its share; and where it wants both, others may have them */
    wz_pool_destroy(pool);
    pool = wz_pool_create(2);
    atomic_store(&met, 0);
    wz_pool_run(pool, 2, record, NULL);
    MUST(CPU_COUNT(&sets[0]) == 2 && CPU_COUNT(&sets[1]) == 2);
    wz_pool_destroy(pool);
}

static void threads_are_bound(void **state)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(0, &set);
    CPU_SET(1, &set);
    if (sched_setaffinity(0, sizeof set, &set) < 0 || sched_getaffinity(0, sizeof set, &set) < 0 || CPU_COUNT(&set) < 2)
        SKIP("processors 0 and 1 are not this process's");
    in_child("HWLOC_SYNTHETIC", "numa:2 core:1 pu:1", pool_on_two_nodes);
}

static void count_flat(void)
{
    struct wz_cores c;
    cpu_set_t set;

    sched_getaffinity(0, sizeof set, &set);
    wz_cores_here(&c, 0, 0, 0);
    MUST(c.threads == CPU_COUNT(&set) && c.nodes == 1 && !c.bound);
    for (int i = 0; i < c.threads; i++) MUST(CPU_ISSET((unsigned)c.units[i], &set));
}

static void unread_machine_is_counted(void **state) { in_child("HWLOC_COMPONENTS", "stop", count_flat); }

/* ---- ranks: run as 2 or 4, of which every other has the same one of two processors; or alone -------------- */

static void ranks_know_who_is_beside(void **state)
{
    const char *name = getenv("OMPI_COMM_WORLD_RANK");
    const unsigned rank = name ? (unsigned)atoi(name) : 0;
    struct wz_link link;
    struct wz_err err;
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(rank % 2, &set);
    const bool narrow = sched_setaffinity(0, sizeof set, &set) == 0;
    if (wz_link_open(&link, "auto", 60, false, &err) < 0) wz_die("%s", err.text);
    MUST(link.here == link.size);
    for (int i = 0; i < link.n_beside && narrow; i++) MUST(link.beside[i] == (int)rank % 2 + 2 * i);
    MUST(!narrow || link.n_beside == (link.size + 1) / 2);
    wz_link_close(&link);
    if (!narrow) SKIP("processors 0 and 1 are not this process's");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(threads_lie_on_cores),
        cmocka_unit_test(shares_are_whole),
        cmocka_unit_test(masks_meet),
        cmocka_unit_test(roles_share_the_cores),
        cmocka_unit_test(threads_are_bound),
        cmocka_unit_test(unread_machine_is_counted),
        cmocka_unit_test(
            ranks_know_who_is_beside), /* the last: before it the machine must not be read, the children do */
    };
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");

    if (!rank) return cmocka_run_group_tests_name("cores", tests, NULL, NULL);
    if (atoi(rank) > 0 && !freopen("/dev/null", "w", stdout)) wz_die("/dev/null can't be written");
    return _cmocka_run_group_tests("cores", tests + WZ_COUNT(tests) - 1, 1, NULL, NULL);
}
