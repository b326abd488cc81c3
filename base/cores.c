/* Cores: how many threads this process runs, and on which cores.
 *
 *   the machine ─▶ affinity mask ─▶ one hardware thread (PU) per core ─▶ this rank's share ─▶ threads
 *
 * The affinity mask is set by taskset, a control group, mpirun or Slurm. Two hardware threads of a core share its
 * vector units, so only one of them is used. Cores in the mask of several ranks are divided among the ranks that
 * compute at the same time.
 *
 * With one NUMA node nothing is bound: the scheduler places threads at least as well. With several, a migrated thread
 * loses its caches and its local pages, so each thread is bound to its own core, node by node. Not, however, where
 * others may have the same cores (other ranks with the same mask; other processes, where fewer threads than cores were
 * asked for): all of them would be bound to the first cores. The thread that calls the pool is never bound, since
 * threads and processes it starts (NCCL's) would inherit its single core; the first core of the list is left to it.
 *
 * Memory: the pool assigns panels of a weight to threads dynamically, so any thread may read any page. By first touch
 * all pages would be on the caller's node, behind one memory controller; interleaved over the nodes they use all of
 * them. A rank that its launcher bound to one node has all its memory there by first touch. */
#include "base/cores.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static hwloc_topology_t machine;
static bool flat;      /* topology unreadable: as many cores as the kernel counts, on one node, never bound */
static int beside = 1; /* ranks that share the mask's cores */

static bool read_machine(const char *synthetic)
{
    if (hwloc_topology_init(&machine) < 0) return false;
    if ((!synthetic || hwloc_topology_set_synthetic(machine, synthetic) == 0) && hwloc_topology_load(machine) == 0)
        return true;
    hwloc_topology_destroy(machine);
    return false;
}

static void load(void)
{
    char cores[32];

    if (read_machine(NULL)) return;
    wz_log(
        "the topology of this machine can't be read (%s): each hardware thread of the affinity mask counts as a core",
        strerror(errno));
    flat = true;
    snprintf(cores, sizeof cores, "core:%ld pu:1", sysconf(_SC_NPROCESSORS_CONF));
    if (!read_machine(cores)) wz_die("hwloc does not work: %s", strerror(errno));
}

/* Reads the machine's topology on the first call, and this process's affinity mask on each. */
static void read_mask(hwloc_bitmap_t mask)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    cpu_set_t set;

    pthread_once(&once, load);
    if (!flat && hwloc_get_cpubind(machine, mask, HWLOC_CPUBIND_THREAD) == 0) return;
    hwloc_bitmap_only(mask, 0);
    for (unsigned i = 0; sched_getaffinity(0, sizeof set, &set) == 0 && i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &set)) hwloc_bitmap_set(mask, i);
        else hwloc_bitmap_clr(mask, i);
}

/* The NUMA node of a core's default memory: the first. Other local nodes are of another kind (HBM, a GPU's). */
static hwloc_obj_t node_of(hwloc_topology_t t, hwloc_obj_t core)
{
    hwloc_obj_t node = NULL, best = NULL;

    while ((node = hwloc_get_next_obj_by_type(t, HWLOC_OBJ_NUMANODE, node)))
        if (hwloc_bitmap_isincluded(core->cpuset, node->cpuset) && (!best || node->os_index < best->os_index))
            best = node;
    return best;
}

void wz_cores_lay(struct wz_cores *c, hwloc_bitmap_t nodes, hwloc_topology_t t, hwloc_const_bitmap_t mask, int ranks,
                  int index, int wanted)
{
    const int depth = hwloc_get_type_or_below_depth(t, HWLOC_OBJ_CORE), all = hwloc_get_nbobjs_by_depth(t, depth);
    int *units = wz_alloc(sizeof *units * (size_t)all), n = 0;
    hwloc_bitmap_t of_core = hwloc_bitmap_alloc();

    hwloc_bitmap_zero(nodes);
    for (int i = 0; i < all; i++) {
        hwloc_obj_t core = hwloc_get_obj_by_depth(t, depth, (unsigned)i), node = node_of(t, core);
        hwloc_bitmap_and(of_core, core->cpuset, mask);
        if (hwloc_bitmap_iszero(of_core)) continue;
        units[n++] = hwloc_bitmap_first(of_core);
        if (node) hwloc_bitmap_set(nodes, node->os_index);
    }
    if (!n) n = 1; /* no core of the topology is in the mask: PU 0, not bound */
    int from = (int)((long)n * index / ranks), to = (int)((long)n * (index + 1) / ranks);
    *c = (struct wz_cores){ .machine = all,
                            .cores = n,
                            .nodes = hwloc_bitmap_iszero(nodes) ? 1 : hwloc_bitmap_weight(nodes) };
    c->threads = wanted > 0 ? wanted : to > from ? to - from : 1;
    if (c->threads > WZ_THREADS) c->threads = WZ_THREADS;
    for (int i = 0; i < c->threads; i++) c->units[i] = units[(from + i) % n];
    c->bound = ranks == 1 && c->nodes > 1 && c->threads == n;
    hwloc_bitmap_free(of_core);
    free(units);
}

void wz_cores_here(struct wz_cores *c, int ranks, int index, int wanted)
{
    hwloc_bitmap_t mask = hwloc_bitmap_alloc(), nodes = hwloc_bitmap_alloc();

    read_mask(mask);
    wz_cores_lay(c, nodes, machine, mask, ranks > 0 ? ranks : beside, index, wanted);
    hwloc_bitmap_free(mask);
    hwloc_bitmap_free(nodes);
}

char *wz_cores_mask(void)
{
    hwloc_bitmap_t mask = hwloc_bitmap_alloc();
    char *text = NULL, *copy;

    read_mask(mask);
    if (hwloc_bitmap_list_asprintf(&text, mask) < 0) wz_die("out of memory: affinity mask");
    hwloc_bitmap_free(mask);
    copy = wz_strdup(text);
    free(text);
    return copy;
}

bool wz_cores_overlap(const char *a, const char *b)
{
    hwloc_bitmap_t x = hwloc_bitmap_alloc(), y = hwloc_bitmap_alloc();
    bool overlap =
        hwloc_bitmap_list_sscanf(x, a) == 0 && hwloc_bitmap_list_sscanf(y, b) == 0 && hwloc_bitmap_intersects(x, y);

    hwloc_bitmap_free(x);
    hwloc_bitmap_free(y);
    return overlap;
}

void wz_set_beside(int ranks) { beside = ranks; }

void wz_cores_bind(pthread_t thread, int unit)
{
    hwloc_bitmap_t set = hwloc_bitmap_alloc();

    hwloc_bitmap_only(set, (unsigned)unit);
    hwloc_set_thread_cpubind(machine, thread, set, 0); /* on failure the thread stays unbound */
    hwloc_bitmap_free(set);
}

bool wz_cores_interleave(bool on)
{
    hwloc_bitmap_t mask = hwloc_bitmap_alloc(), nodes = hwloc_bitmap_alloc();
    struct wz_cores c;
    hwloc_membind_policy_t now;
    const int flags = HWLOC_MEMBIND_THREAD | HWLOC_MEMBIND_BYNODESET;
    bool done = hwloc_get_membind(machine, nodes, &now, flags) == 0;

    if (on) done = done && (now == HWLOC_MEMBIND_FIRSTTOUCH || now == HWLOC_MEMBIND_DEFAULT);
    read_mask(mask);
    wz_cores_lay(&c, nodes, machine, mask, 1, 0, 1);
    done = done && hwloc_set_membind(machine, nodes, on ? HWLOC_MEMBIND_INTERLEAVE : HWLOC_MEMBIND_DEFAULT, flags) == 0;
    hwloc_bitmap_free(mask);
    hwloc_bitmap_free(nodes);
    return done;
}
