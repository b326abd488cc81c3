/* The tiles of Intel's AMX in plain C: what kernels/cpu/amx.c computes with on a machine without them. Shapes and
 * contents are a thread's; what the instructions refuse (Intel SDM 2, their exceptions) ends the process. */
#ifndef WZ_TESTS_TILES_H
#define WZ_TESTS_TILES_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels/kernels.h"

void wz_tile_config(const void *shapes); /* 64 bytes, as LDTILECFG reads them */
void wz_tile_release(void);
void wz_tile_zero(int t);
void wz_tile_load(int t, const void *p, size_t stride);
void wz_tile_store(int t, void *p, size_t stride);
void wz_tile_add(int c, int a, int b, bool bytes); /* TDPBUSD, else TDPBF16PS */
bool wz_tiles_released(void);                      /* has this thread no shapes set? */

#define TILE_CONFIG(shapes)      wz_tile_config(shapes)
#define TILE_RELEASE()           wz_tile_release()
#define TILE_ZERO(t)             wz_tile_zero(t)
#define TILE_LOAD(t, p, stride)  wz_tile_load(t, p, stride)
#define TILE_STORE(t, p, stride) wz_tile_store(t, p, stride)
#define TILE_ADD_PAIRS(c, a, b)  wz_tile_add(c, a, b, false)
#define TILE_ADD_BYTES(c, a, b)  wz_tile_add(c, a, b, true)

/* Rows of the cpu backend whose products in the order amx and in int8 are by tiles: in plain C; and the one that is in
 * the program, whose instructions are trapped and carried out here where the processor has none (NULL where it has no
 * AVX-512 with bf16 either). All else is that of other rows. */
const struct hot *wz_tiles_plain(void);
const struct hot *wz_tiles_trapped(void);
void wz_tiles_compose(struct wz_backend *be, const struct hot *row); /* all ops of a cpu backend are the row's */

#endif
