/* The set of tensors that safetensors.c and gguf.c fill and tensors.c hands out. Private to store. */
#ifndef WZ_STORE_TENSORS_H
#define WZ_STORE_TENSORS_H

#include "store/store.h"

struct wz_tensors {
    struct wz_arena arena; /* names and file names */
    struct wz_map *maps;
    int n_maps;
    struct wz_tensor *list; /* in the order of the files */
    int n, cap;
    const struct wz_tensor **by_name; /* sorted, for find */
    json_t *meta;                     /* GGUF metadata, or NULL */
};

enum { WZ_MAX_DIMS = 4, WZ_MAX_NAME = 65535 };

/* Maps a file into the set; its bytes live as long as the set. NULL and a message on error. */
const struct wz_map *wz_tensors_map(struct wz_tensors *set, const char *path, struct wz_err *err);
/* Appends a zeroed tensor; the pointer is valid until the next one. */
struct wz_tensor *wz_tensors_add(struct wz_tensors *set);
/* t->count = shape[0] * shape[1] * ... False where it overflows size_t, or a size exceeds JSON's 2^63 - 1. */
bool wz_tensor_count(struct wz_tensor *t);

/* By enum wz_dtype (quants.c): elements and bytes of a block, 1 element where it is not quantised, 0 for WZ_DT_OTHER;
 * unpack writes the elements of a block of a quantised type. */
struct wz_dtype_row {
    const char *name;
    size_t elements, bytes;
    void (*unpack)(const uint8_t *block, float *out);
};
extern const struct wz_dtype_row wz_dtypes[];

/* Adds the tensors of one file to the set; GGUF also sets meta. -1 and a message on error. */
int wz_safetensors_read(struct wz_tensors *set, const char *path, struct wz_err *err);
int wz_gguf_read(struct wz_tensors *set, const char *path, struct wz_err *err);

uint16_t wz_f16_from(float x); /* nearest, ties to even; from 65520 on it is infinite */

#endif
