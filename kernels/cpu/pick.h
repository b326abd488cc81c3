/* pick: samples one token from the logits z of one position. */
#ifndef WZ_PICK_H
#define WZ_PICK_H

#include "kernels/cpu/cpu.h"

/* Are there filters? Greedy has none. */
bool wz_cpu_pick_filters(const struct wz_pick *pick);
/* Without filters, two steps. First the block of VOCAB entries that holds the token, from the partial sums of the
 * blocks and their total (max, sum); *left: the probability mass, in units of the block's, left to pass inside it.
 * Then the index of the token among the n logits of that block. */
int wz_cpu_pick_block(const struct stat *stats, int blocks, double max, double sum, const struct wz_pick *pick,
                      double *left);
int wz_cpu_pick_within(const struct hot *hot, const float *z, int n, const struct stat *stat,
                       const struct wz_pick *pick, double left);

/* With filters: needs all logits and wz_cpu_pick_scratch(vocab) bytes of scratch. max, sum: of the whole vocabulary. */
size_t wz_cpu_pick_scratch(int vocab);
int wz_cpu_pick_filtered(const struct hot *hot, const float *z, int vocab, double max, double sum,
                         const struct wz_pick *pick, void *scratch);

#endif
