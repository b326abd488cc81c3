/* pick: one token from one row of logits. */
#ifndef WZ_PICK_H
#define WZ_PICK_H

#include "kernels/cpu/cpu.h"

/* A row without filters, temperature 0 among them: first the block of VOCAB tokens where the token lies, from the
 * sums of blocks and of the row, with what is left of u's mass there; then the token within it, from the n logits of
 * that block. */
bool wz_cpu_pick_filters(const struct wz_pick *pick);
int wz_cpu_pick_block(const struct stat *stats, int blocks, double max, double sum, const struct wz_pick *pick,
                      double *left);
int wz_cpu_pick_within(const struct hot *hot, const float *z, int n, const struct stat *stat,
                       const struct wz_pick *pick, double left);

/* A row with filters needs all its logits, and wz_cpu_pick_room(vocab) bytes of room. max and sum: of the row. */
size_t wz_cpu_pick_room(int vocab);
int wz_cpu_pick_filtered(const struct hot *hot, const float *z, int vocab, double max, double sum,
                         const struct wz_pick *pick, void *room);

#endif
