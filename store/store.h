/* store: bytes at rest. The file formats that Waltz reads and writes: safetensors, GGUF, prompts (JSONL, JSON, CSV),
 * the files of a run (HDF5 episodes, metrics, TensorBoard events, ledger), tables of results. What they mean to a model
 * or tokenizer is not known here. Readers check every offset and size before use: a truncated or hostile file gives one
 * error message, never a crash. Unless said otherwise functions return 0, or -1 and a message in `err`. */
#ifndef WZ_STORE_H
#define WZ_STORE_H

#include "base/base.h"
#include "proto/proto.h"

/* ---- tensors.c, quants.c, safetensors.c, gguf.c: named arrays in files ------------------------------------ */

enum wz_dtype {
    WZ_DT_F32,
    WZ_DT_F16,
    WZ_DT_BF16,
    WZ_DT_Q8_0,
    WZ_DT_Q4_0,
    WZ_DT_Q4_1,
    WZ_DT_Q5_0,
    WZ_DT_Q5_1,
    WZ_DT_Q2_K,
    WZ_DT_Q3_K,
    WZ_DT_Q4_K,
    WZ_DT_Q5_K,
    WZ_DT_Q6_K,
    WZ_DT_OTHER /* can't be converted */
};

struct wz_tensor {
    const char *name;
    enum wz_dtype dtype;
    int n_dims;
    size_t shape[4];     /* row-major, outermost first (GGUF's order is reversed on reading) */
    size_t count, bytes; /* elements; size of data */
    const uint8_t *data; /* inside the mapped file, at any alignment */
    const char *file;    /* for messages */
    const char *type;    /* its name in the file, for messages: of a WZ_DT_OTHER too */
};

/* The tensors of one safetensors file, of a folder with model.safetensors or model.safetensors.index.json, or, where it
 * is an adapter's, adapter_model.safetensors, or of a GGUF file, all parts of it where it is the first of a split one.
 * Tensors and their names live until wz_tensors_close. */
struct wz_tensors;
struct wz_tensors *wz_tensors_open(const char *path, struct wz_err *err); /* NULL and a message on error */
/* Where the model is that a user names: the file or folder of that name, else what huggingface_hub's cache has of
 * owner/name or owner/name@revision (a branch, tag or commit; main). Heap. NULL and a message where there is nothing
 * (it gives the command that fetches it), or a run's folder or a checkpoint of several agents. wz_tensors_open,
 * wz_tokenizer_load and the model's loaders call it. */
char *wz_model_at(const char *path, struct wz_err *err);
/* The same, but of an adapter's folder (adapter_config.json, and no config.json) the place of the model that it
 * changes, which its base_model_name_or_path (and revision) names. */
char *wz_base_at(const char *path, struct wz_err *err);
void wz_tensors_close(struct wz_tensors *set); /* accepts NULL */
int wz_tensors_count(const struct wz_tensors *set);
const struct wz_tensor *wz_tensors_at(const struct wz_tensors *set, int i);
const struct wz_tensor *wz_tensors_find(const struct wz_tensors *set, const char *name); /* NULL: absent */
/* out[n] = elements [first, first + n) of t as f32; not of WZ_DT_OTHER. Quantised types (formulas: quants.c): first and
 * n are multiples of the block, 32 or 256; a row of a matrix always is. */
void wz_tensor_floats(const struct wz_tensor *t, size_t first, size_t n, float *out);

/* GGUF metadata, borrowed: an object of scalars, strings and arrays; NULL for safetensors. Strings that are not UTF-8
 * are escaped as the top of gguf.c describes. */
const json_t *wz_tensors_meta(const struct wz_tensors *set);

/* Writing safetensors: begin with all names and shapes (dtypes F32, F16, BF16), then the data in that order, then end,
 * which renames PATH.tmp to PATH. */
struct wz_tensor_spec {
    const char *name;
    enum wz_dtype dtype;
    int n_dims;
    size_t shape[4];
};
struct wz_safetensors_out;
struct wz_safetensors_out *wz_safetensors_begin(const char *path, const struct wz_tensor_spec *specs, int n,
                                                struct wz_err *err); /* NULL and a message on error */
/* The next n values, rounded to the spec's type; may span several tensors. */
int wz_safetensors_put(struct wz_safetensors_out *out, const float *values, size_t n, struct wz_err *err);
/* Frees `out`. -1 and no file where a put failed or values are missing: this is also how to abort. */
int wz_safetensors_end(struct wz_safetensors_out *out, struct wz_err *err);

/* ---- data.c: rows of data files --------------------------------------------------------------------------- */

enum { WZ_UNPACKED_MAX = 1 << 30 };

/* A file's bytes less a byte order mark, unpacked where it is gzip: to at most WZ_UNPACKED_MAX bytes. */
struct wz_data_file {
    const char *bytes;
    size_t len;
    struct wz_map map;
    struct wz_buf unpacked;
};
int wz_data_file_open(struct wz_data_file *text, const char *path, struct wz_err *err);
void wz_data_file_close(struct wz_data_file *text);

/* The rows of a file of JSON lines (blank ones are no rows), or of one that is a JSON array, which begins with "[". */
struct wz_data_rows {
    const char *path; /* borrowed */
    struct wz_data_file text;
    struct wz_lines lines;
    json_t *array, *row; /* row: the current one */
    int number;          /* its own, from 1: the line's, or its place in the array */
};
int wz_data_rows_open(struct wz_data_rows *rows, const char *path, struct wz_err *err);
int wz_data_rows_next(struct wz_data_rows *rows, struct wz_err *err); /* 1 and row, number; 0: the end; -1 */
void wz_data_rows_close(struct wz_data_rows *rows);

/* ---- prompts.c: data sets --------------------------------------------------------------------------------- */

enum wz_harm { WZ_BENIGN, WZ_HARMFUL };
/* A prompt and its labels. Strings belong to the set. group: prompts of one group say nearly the same, so that their
 * results are not independent; "": the prompt is a group of its own. */
struct wz_prefill {
    const char *text, *transition;
    double alpha; /* probability that it is given, in training */
    bool hijack;  /* it is a whole thought */
    int resets;   /* replies after the first that are given it again, behind `transition` */
};
struct wz_prompt {
    const char *text, *id, *kind, *group;
    enum wz_harm harm;
    const char *answer; /* what a right reply ends with (a column of the file); IFEval's instructions,
                           {"ids": [..], "kwargs": [..]}; "": not known */
    const struct wz_prefill
        *prefill; /* what its first reply is given to begin with (wz_prefills_load); NULL: nothing */
};
struct wz_prompts {
    struct wz_prompt *list; /* [n] */
    int n;
    struct wz_arena arena;
    uint64_t hash; /* of all texts, in order */
};

/* JSON (lines or an array), CSV or TSV by file ending, with .gz behind it or not. `column` holds the text ("a|b": the
 * first of these that is not empty); `harm`/`kind`: a column name, or "=value" for a constant (harm: =harmful, =benign;
 * in a column: true/false, yes/no, 1/0, harmful/benign, unsafe/safe; "column=x|y": it is where the column has x or y).
 * kind NULL or "": the file's name. group: a column name; a column of the default, "group", may be missing. only: NULL
 * or "": all rows; "column=x|y": those. answer: a column name; NULL or "": none. Errors name the file, the row and the
 * available columns. wz_prompts_finish the set. */
int wz_prompts_load(struct wz_prompts *set, const char *path, const char *column, const char *harm, const char *kind,
                    const char *group, const char *only, const char *answer, struct wz_err *err);
/* What a cell says, as true/false, yes/no, "1"/"0" or a number from 0 to 1 (true from 0.5 on), and of harm as
 * harmful/benign or unsafe/safe too, in any case: 1, 0; -1: none of these. */
int wz_label_read(const json_t *cell, bool of_harm);
/* Fills in `prefill` of the prompts that have a row in `path`: {"prompt": text, "text": ...}, JSON (lines or an array).
 * Its text is what the row's text has between <think> and </think>, where they are there, and of it the first `words`
 * words, or all where it is a whole thought; the rest is how's. No prompt with a row is an error. Returns how many have
 * one. */
int wz_prefills_load(struct wz_prompts *set, const char *path, int words, const struct wz_prefill *how,
                     struct wz_err *err);
void wz_prompts_finish(struct wz_prompts *set);

/* ---- record.c, metrics.c, ledger.c: the files of a run ---------------------------------------------------- */

/* Numbers by name: of each step in metrics.jsonl, of each evaluation in evaluations.jsonl, of both in
 * events.out.tfevents.*. Writing never fails a run (guarantee 10): entries that could not be written are counted and
 * reported at close. append: keeps the lines that there are. first: the first step to come, 0 of a new run; what event
 * files in `dir` have of it and of later steps is of a start that died, and TensorBoard shows it no more. */
struct wz_metrics;
struct wz_metrics *wz_metrics_open(const char *dir, bool append, int64_t first);
/* phase: of an evaluation, after `step` steps (a plain name: it is not escaped); NULL: of the step of that number. */
void wz_metrics_add(struct wz_metrics *m, int64_t step, const char *phase, const char *const *names,
                    const double *values, int n);
int wz_metrics_close(struct wz_metrics *m); /* returns how many writes were lost; accepts NULL */

/* episodes-<rank>.h5: the schema is at the top of record.c; opens in h5py and pandas. Append-only; the episodes of a
 * call to wz_record_episodes are committed together. Files are read and cut in a child process with limits
 * (apart.c), so that one that crashes HDF5 is an error; what was read of each episode is compared with its hash. */
struct wz_record;
struct wz_record *wz_record_open(const char *path, struct wz_err *err); /* creates, or checks and opens to append */
/* Appends all n episodes or, on -1, none. Steps must not decrease: truncate first. */
int wz_record_episodes(struct wz_record *r, Wz__Episode *const *episodes, int n, struct wz_err *err);
void wz_record_close(struct wz_record *r); /* accepts NULL */
/* The episodes of one step: *out is a heap array of *n heap messages, 0 if the step has none. */
int wz_record_read(const char *path, int64_t step, Wz__Episode ***out, int *n, struct wz_err *err);
/* The steps in the record, ascending, each once: heap array. */
int wz_record_steps(const char *path, int64_t **steps, int *n, struct wz_err *err);
/* Reads every episode, as a check; *n: how many there are of steps < before. Who calls it knows how many there must be:
 * one whose step has changed may be missing. Later ones count too: cutting off what is damaged damages the rest. An
 * empty file, as a start leaves it that was killed before its first step, has none. */
int wz_record_check(const char *path, int64_t before, int64_t *n, struct wz_err *err);
/* Removes the episodes of steps > last: what a killed run wrote after its checkpoint. */
int wz_record_truncate(const char *path, int64_t last, struct wz_err *err);

/* ledger.jsonl (guarantee 4): appends one line per agent, all of one step. -1 also, after writing, where
 * generated != trained + discarded + in_flight. reasons: why samples were discarded; NULL: "". Lines of
 * steps that a resumed run repeats are removed when it is opened (run/folder.c). */
struct wz_ledger_line {
    int64_t step;
    const char *agent;
    int64_t generated, trained, discarded, in_flight;
    const char *reasons;
};
int wz_ledger_append(const char *dir, const struct wz_ledger_line *lines, int n, struct wz_err *err);

#include "store/table.h"

#endif
