/* store: bytes at rest. Every file format that Waltz reads or writes, apart from what the model room makes of it:
 * safetensors, GGUF, prompts (JSONL, CSV), the record of a run (HDF5 episodes, metrics, TensorBoard, ledger),
 * checkpoints. Whatever reads checks every offset and size before use: a truncated or hostile file is one sentence,
 * never a crash. */
#ifndef WZ_STORE_H
#define WZ_STORE_H

#include "base/base.h"
#include "proto/proto.h"

/* ---- tensors.c, safetensors.c, gguf.c: named arrays in files ---------------------------------------------- */

enum wz_dtype { WZ_DT_F32, WZ_DT_F16, WZ_DT_BF16, WZ_DT_Q8_0, WZ_DT_Q4_0, WZ_DT_Q4_1, WZ_DT_OTHER };

struct wz_tensor {
    const char *name;
    enum wz_dtype dtype;
    int n_dims;
    size_t shape[4]; /* row-major, outermost first (GGUF's order is turned round) */
    size_t count, bytes;
    const uint8_t *data; /* inside the mapped file */
    const char *file;    /* which file, for messages */
};

/* A set of tensors from one safetensors file, a folder with model.safetensors or model.safetensors.index.json, or a
 * GGUF. */
struct wz_tensors;
struct wz_tensors *wz_tensors_open(const char *path, struct wz_err *err);
void wz_tensors_close(struct wz_tensors *set);
int wz_tensors_count(const struct wz_tensors *set);
const struct wz_tensor *wz_tensors_at(const struct wz_tensors *set, int i);
const struct wz_tensor *wz_tensors_find(const struct wz_tensors *set, const char *name); /* NULL: absent */
/* Converts elements [first, first+n) to float. Quantised types: first and n multiples of 32. Formulas at the
 * definition. */
void wz_tensor_floats(const struct wz_tensor *t, size_t first, size_t n, float *out);
const char *wz_dtype_name(enum wz_dtype dtype);

/* GGUF metadata (NULL/absent for safetensors): values by key as JSON scalars or arrays; borrowed. How bytes that are
 * not UTF-8 stand in its strings, and come back, is said at the top of gguf.c. */
const json_t *wz_tensors_meta(const struct wz_tensors *set, const char *key);
const json_t *wz_tensors_metadata(const struct wz_tensors *set); /* the whole object; NULL when the file has none */

/* Writing safetensors: begin with all names and shapes, then the data in that order, then end (renamed into place). */
struct wz_tensor_spec {
    const char *name;
    enum wz_dtype dtype;
    int n_dims;
    size_t shape[4];
};
struct wz_safetensors_out;
struct wz_safetensors_out *wz_safetensors_begin(const char *path, const struct wz_tensor_spec *specs, int n,
                                                struct wz_err *err);
/* The next n values, cast to the spec's type. */
int wz_safetensors_put(struct wz_safetensors_out *out, const float *values, size_t n, struct wz_err *err);
/* Always frees `out`. -1 and no file when a put failed or values are missing: also the way to give up. */
int wz_safetensors_end(struct wz_safetensors_out *out, struct wz_err *err);

/* ---- prompts.c: data sets --------------------------------------------------------------------------------- */

enum wz_harm { WZ_BENIGN, WZ_HARMFUL };
/* A prompt and what the data set knows of it. Strings belong to the set. */
struct wz_prompt {
    const char *text, *id, *kind;
    enum wz_harm harm;
};
struct wz_prompts {
    struct wz_prompt *list;
    int n;
    struct wz_arena arena;
    uint64_t hash;
};

/* JSONL or CSV by file ending. `column` holds the text; `harm`/`kind`: column name, or "=value" for a constant
 * (harm: =harmful, =benign; in a column: true/false, 1/0, harmful/benign, unsafe/safe). NULL kind: the file's name.
 * Errors name the file, the row and the columns there are. */
int wz_prompts_load(struct wz_prompts *set, const char *path, const char *column, const char *harm, const char *kind,
                    struct wz_err *err);
void wz_prompts_finish(struct wz_prompts *set);

/* ---- record.c, metrics.c, ledger.c: a run's diary --------------------------------------------------------- */

/* metrics.jsonl and events.out.tfevents.*: numbers by name, one line a step. Never fails a run (law 10): what could not
 * be written is counted and said at close. */
struct wz_metrics;
struct wz_metrics *wz_metrics_open(const char *dir, bool append);
void wz_metrics_step(struct wz_metrics *m, int64_t step, const char *const *names, const double *values, int n);
int wz_metrics_close(struct wz_metrics *m); /* how many writes were lost */

/* episodes-<rank>.h5: schema in the header of record.c; opens in h5py and pandas. Append-only; a step is flushed
 * whole. */
struct wz_record;
struct wz_record *wz_record_open(const char *path, struct wz_err *err); /* creates, or opens to append after a check */
/* All of them or, on -1, none. Steps must not go back: truncate first. */
int wz_record_episodes(struct wz_record *r, Wz__Episode *const *episodes, int n, struct wz_err *err);
int wz_record_close(struct wz_record *r, struct wz_err *err);
/* Reads back the episodes of one step; unpacked into *out (heap array of heap messages), *n of them: 0 if it has
 * none. */
int wz_record_read(const char *path, int64_t step, Wz__Episode ***out, int *n, struct wz_err *err);
/* The steps that it holds, ascending, each once: heap array. */
int wz_record_steps(const char *path, int64_t **steps, int *n, struct wz_err *err);
/* Drops every episode of steps > last: what a killed run wrote after its checkpoint. */
int wz_record_truncate(const char *path, int64_t last, struct wz_err *err);

/* ledger.jsonl (law 4): one line a step and agent. -1 also, after writing, when a line's numbers do not add up. */
struct wz_ledger_line {
    int64_t step;
    const char *agent;
    int64_t generated, trained, discarded, in_flight;
    const char *reasons;
};
int wz_ledger_append(const char *dir, const struct wz_ledger_line *lines, int n, struct wz_err *err);

#include "store/table.h"

#endif
