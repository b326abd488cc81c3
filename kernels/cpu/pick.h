/* pick: one token from one row of logits. */
#ifndef WZ_PICK_H
#define WZ_PICK_H

#include "kernels/cpu/cpu.h"

bool wz_cpu_pick_filters(const struct wz_pick *pick);
size_t wz_cpu_pick_room(int vocab);      /* bytes of room that a row with filters needs */
/* stats: of blocks of VOCAB; max and sum: of the whole row. room may be NULL for a row without filters. */
int wz_cpu_pick(const struct hot *hot, const float *z, int vocab, const struct stat *stats, double max, double sum,
                const struct wz_pick *pick, void *room);

#endif
