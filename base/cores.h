/* cores: functions for the pool and the tests, besides those in base.h. */
#ifndef WZ_CORES_H
#define WZ_CORES_H

#include <pthread.h>

#include <hwloc.h>

#include "base/base.h"

/* wz_cores_here as a pure function of the machine's topology and the process's affinity mask; ranks > 0. nodes: the
 * caller's bitmap, set to the NUMA nodes local to the cores of the mask. */
void wz_cores_lay(struct wz_cores *cores, hwloc_bitmap_t nodes, hwloc_topology_t machine, hwloc_const_bitmap_t mask,
                  int ranks, int index, int wanted);

void wz_cores_bind(pthread_t thread, int unit);
/* After wz_cores_here. on: from now on pages first touched by the calling thread are interleaved over those nodes,
 * unless a memory policy was already set (numactl). Returns whether the policy was changed. */
bool wz_cores_interleave(bool on);

#endif
