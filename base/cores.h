/* cores: what the pool and the tests need of it besides base.h. */
#ifndef WZ_CORES_H
#define WZ_CORES_H

#include <pthread.h>

#include <hwloc.h>

#include "base/base.h"

/* wz_cores_here as a pure function of the machine and of the process's mask, ranks > 0. nodes, the caller's bitmap,
 * becomes the set of memory nodes that the cores of the mask have their memory from. */
void wz_cores_lay(struct wz_cores *cores, hwloc_bitmap_t nodes, hwloc_topology_t machine, hwloc_const_bitmap_t mask,
                  int ranks, int index, int wanted);

void wz_cores_bind(pthread_t thread, int unit);
/* After wz_cores_here. on: what the calling thread touches first from now on lies on all those nodes in turn, page
 * by page, unless a policy was chosen for it (numactl). Whether that was changed. */
bool wz_cores_interleave(bool on);

#endif
