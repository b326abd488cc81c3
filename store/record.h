/* What the files of the record share: its tables, a column as HDF5 has it, an open record. The schema is in
 * record.c. */
#ifndef WZ_STORE_RECORD_H
#define WZ_STORE_RECORD_H

#include "store/journal.h"
#include "store/store.h"

enum { SCHEMA = 1, MAX_COLUMNS = 25 };
enum wz_kind { I64, U32, U64, F64, BOOL, VERDICT, STR, I32, F32 };
extern const size_t wz_kind_size[]; /* bytes of a value in memory; STR: of a pointer */

/* Where a row's value is: a field of the message, or, from PLACE on, a number of its struct wz_row. */
enum { PLACE = 1 << 16 };
struct wz_row {
    void *message;
    int64_t place[6];
};
struct wz_column {
    const char *name;
    enum wz_kind kind;
    size_t at;
};

/* Two tables are in the group /tokens, because their columns differ in length. */
enum { EPISODES, TURNS, CONTEXT, IDS, N_TABLES };
enum { IDS_IDS, IDS_LOGP, IDS_REF, IDS_ADVANTAGE };
struct wz_h5_table {
    const char *group;
    const struct wz_column *columns;
    int n;
    hsize_t chunk;
};
extern const struct wz_h5_table wz_tables[N_TABLES];

struct wz_record {
    char *path;
    hid_t file; /* negative: closed, to be opened again */
    hid_t set[N_TABLES][MAX_COLUMNS];
    hsize_t len[N_TABLES]; /* rows */
    int64_t last;          /* step of the last episode, INT64_MIN: there is none */
    bool broken;           /* the last opening failed because of what the file holds */
};

/* ---- columns.c -------------------------------------------------------------------------------------------- */

/* Call it right after what failed: the next call into HDF5 forgets why. */
int wz_record_fail(const struct wz_record *r, const char *what, struct wz_err *err);
/* The type of a column, in memory as in the file; H5Tclose it. */
hid_t wz_column_type(enum wz_kind kind);
int wz_column_index(int t, const char *name);
/* n rows after the last one of the table; r->len stays. */
int wz_column_append(struct wz_record *r, int t, int c, hsize_t n, const void *values, struct wz_err *err);
/* Reads rows [at, at+n), which the caller knows to be there. Strings in it: HDF5's, given back by wz_column_reclaim. */
int wz_column_read(const struct wz_record *r, int t, int c, hsize_t at, hsize_t n, void *values, struct wz_err *err);
void wz_column_reclaim(enum wz_kind kind, hsize_t n, void *values);

/* ---- record.c --------------------------------------------------------------------------------------------- */

/* 0 open; 1 there is no file, or an empty one; -1 and a sentence, r->broken when it is what the file holds. flags:
 * HDF5's. */
int wz_record_attach(struct wz_record *r, unsigned flags, struct wz_err *err);
void wz_record_detach(struct wz_record *r); /* what was not committed is gone */

#endif
