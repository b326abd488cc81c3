/* Declares, for one instruction set, the functions defined in one file and used in another. */
#ifndef WZ_HOT_H
#define WZ_HOT_H

#include "kernels/cpu/isa.h"

void HOT(wz_gemm)(const struct gemm *g, int row, int row_end, int col, int col_end);
void HOT(wz_pack_panel)(void *dst, const struct wz_weight *w, int panel);
pair_fn HOT(wz_pair), HOT(wz_pair_rows), HOT(wz_quantise);
walk_fn HOT(wz_cast);
void HOT(wz_gemm_int8)(const struct gemm *g, int row, int row_end, int col, int col_end);
void HOT(wz_pack_int8)(void *dst, const struct wz_weight *w, int panel);
void HOT(wz_attend)(const struct attend *a, int row, int n, int kv_head);
void HOT(wz_attend_back)(const struct attend *a, int row, int n, int kv_head);

#endif
