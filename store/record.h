/* The tables of a record (episodes-<rank>.h5), its columns, and an open record. Private to store; the schema is
 * described in record.c. */
#ifndef WZ_STORE_RECORD_H
#define WZ_STORE_RECORD_H

#include "store/journal.h"
#include "store/store.h"

enum { SCHEMA = 1, MAX_COLUMNS = 40 };
enum wz_kind { I64, U32, U64, F64, BOOL, VERDICT, FINISH, STR, I32, F32 };
extern const size_t wz_kind_size[]; /* bytes of a value in memory; STR: of a pointer */

/* A column's value in a table row is at offset `at` of the message; from PLACE on it is place[at - PLACE], an index
 * into another table or a count. */
enum { PLACE = 1 << 16 };
struct wz_row {
    void *message;
    int64_t place[8];
};
struct wz_column {
    const char *name;
    enum wz_kind kind;
    size_t at;
};

/* CONTEXT and IDS share the group /tokens; they are two tables because their columns differ in length. */
enum { EPISODES, TURNS, CONTEXT, IDS, JUDGEMENTS, N_TABLES };
enum { IDS_IDS, IDS_LOGP, IDS_REF, IDS_ADVANTAGE };
struct wz_h5_table {
    const char *group;
    const struct wz_column *columns;
    int n, in_all; /* the first in_all are in every file, the others not in one that was begun before they were added */
    hsize_t chunk;
};
extern const struct wz_h5_table wz_tables[N_TABLES];

struct wz_record {
    char *path;
    hid_t file; /* negative: closed, reopened by the next append */
    hid_t set[N_TABLES][MAX_COLUMNS];
    hsize_t len[N_TABLES]; /* table rows */
    int64_t last;          /* step of the last episode, INT64_MIN: none */
};

/* ---- apart.c ---------------------------------------------------------------------------------------------- */

/* What a child does with a file: 0 and bytes added to out, or -1 and a message. */
typedef int wz_apart_work(void *arg, struct wz_buf *out, struct wz_err *err);
/* Runs work in a child process that may use 1 GB and 16 times the file's size more memory than the caller, and 30 s and
 * a second for each MB of processor time. `out` becomes what work gave. -1 and a message: work's, or how the child died
 * (the library crashed, or it went over a limit). Only the thread that calls MPI may call it. */
int wz_apart(const char *path, wz_apart_work *work, void *arg, struct wz_buf *out, struct wz_err *err);

/* ---- columns.c -------------------------------------------------------------------------------------------- */

/* A message with HDF5's reason; call it before the next call into HDF5, which clears the reason. Returns -1. */
int wz_record_fail(const struct wz_record *r, const char *what, struct wz_err *err);
/* The HDF5 type of a column, in memory and in the file; H5Tclose it. */
hid_t wz_column_type(enum wz_kind kind);
int wz_column_index(int t, const char *name);
/* Writes n values behind r->len of the table; r->len is unchanged. */
int wz_column_append(struct wz_record *r, int t, int c, hsize_t n, const void *values, struct wz_err *err);
/* Reads values [at, at + n), which must exist; zeros (NULL strings) where the file lacks the column. Strings are
 * allocated by HDF5 and freed by wz_column_reclaim. */
int wz_column_read(const struct wz_record *r, int t, int c, hsize_t at, hsize_t n, void *values, struct wz_err *err);
void wz_column_reclaim(enum wz_kind kind, hsize_t n, void *values);

/* ---- record.c --------------------------------------------------------------------------------------------- */

/* Opens r->path with HDF5's `flags`. 0: open; 1: there is no file, or an empty one; -1 and a message. */
int wz_record_attach(struct wz_record *r, unsigned flags, struct wz_err *err);
void wz_record_detach(struct wz_record *r); /* closes the file; discards what was not committed */
/* The hash of all that a record has of an episode; never 0, which is what an older file has. */
uint64_t wz_record_hash(const Wz__Episode *e);

#endif
