/* Cores: how many threads this process runs, and where.
 *
 *   the machine ─▶ the mask ─▶ one PU a core ─▶ this rank's share ─▶ threads
 *
 * The mask is what taskset, a control group, mpirun or Slurm left to this process. Two threads on one core's units
 * share its multipliers, so a core counts once however many units it has. What several ranks hold together is shared
 * out among those that compute at the same time.
 *
 * On one memory node that is all: cores reach memory alike, and the scheduler knows best. Where the mask spans several,
 * a thread that wanders loses its caches and the pages near it, so each gets a core of its own, node after node. But
 * never where others may have been given the same cores (other ranks by the same mask, other processes where a few
 * threads of many cores were asked for): they would pile up on the first, which the scheduler would have kept apart.
 * The caller of a pool is bound to nothing, since what it starts (NCCL's threads, programs) would inherit its one core;
 * the list's first is left to it.
 *
 * And memory: the pool hands out a product's panels by who comes first, so any thread may read any part of the
 * weights, and no place is right for a page. By first touch, all would lie on the caller's node and come through one
 * memory controller; in turn over the nodes, they come through all. A rank that was bound to a node by its launcher
 * has all its memory there by first touch. */
#include "base/cores.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static hwloc_topology_t machine;
static bool flat; /* it could not be read: as many cores as the kernel counts, on one node, never bound */
static int beside = 1;

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
    wz_log("the topology of this machine can't be read (%s): each unit of the affinity mask counts as a core",
           strerror(errno));
    flat = true;
    snprintf(cores, sizeof cores, "core:%ld pu:1", sysconf(_SC_NPROCESSORS_CONF));
    if (!read_machine(cores)) wz_die("hwloc does not work: %s", strerror(errno));
}

/* Sees to it that the machine is known; the mask of this process. */
static void look(hwloc_bitmap_t mask)
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

/* The node that a core's memory comes from by default. Others as near are of another kind (high bandwidth, a GPU's). */
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
    if (!n) n = 1; /* a mask outside the machine as it is told: unit 0, bound to nothing */
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

    look(mask);
    wz_cores_lay(c, nodes, machine, mask, ranks > 0 ? ranks : beside, index, wanted);
    hwloc_bitmap_free(mask);
    hwloc_bitmap_free(nodes);
}

char *wz_cores_mask(void)
{
    hwloc_bitmap_t mask = hwloc_bitmap_alloc();
    char *text = NULL, *copy;

    look(mask);
    if (hwloc_bitmap_list_asprintf(&text, mask) < 0) wz_die("out of memory: an affinity mask wanted some");
    hwloc_bitmap_free(mask);
    copy = wz_strdup(text);
    free(text);
    return copy;
}

bool wz_cores_meet(const char *a, const char *b)
{
    hwloc_bitmap_t x = hwloc_bitmap_alloc(), y = hwloc_bitmap_alloc();
    bool meet =
        hwloc_bitmap_list_sscanf(x, a) == 0 && hwloc_bitmap_list_sscanf(y, b) == 0 && hwloc_bitmap_intersects(x, y);

    hwloc_bitmap_free(x);
    hwloc_bitmap_free(y);
    return meet;
}

void wz_set_beside(int ranks) { beside = ranks; }

void wz_cores_bind(pthread_t thread, int unit)
{
    hwloc_bitmap_t set = hwloc_bitmap_alloc();

    hwloc_bitmap_only(set, (unsigned)unit);
    hwloc_set_thread_cpubind(machine, thread, set, 0); /* where it is refused, the thread wanders */
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
    look(mask);
    wz_cores_lay(&c, nodes, machine, mask, 1, 0, 1);
    done = done && hwloc_set_membind(machine, nodes, on ? HWLOC_MEMBIND_INTERLEAVE : HWLOC_MEMBIND_DEFAULT, flags) == 0;
    hwloc_bitmap_free(mask);
    hwloc_bitmap_free(nodes);
    return done;
}
