/* How often this program has allocated since it began. It must be linked with --wrap for malloc, calloc, realloc and
 * aligned_alloc. */
#ifndef WZ_HEAP_H
#define WZ_HEAP_H

long wz_heap_count(void);

#endif
