/* An HDF5 file driver that makes the writes between two commits atomic; see journal.c. Private to store. */
#ifndef WZ_STORE_JOURNAL_H
#define WZ_STORE_JOURNAL_H

#include <hdf5.h>

#include "base/base.h"

/* A file access property list for H5Fcreate and H5Fopen; H5Pclose it. */
hid_t wz_journal_access(void);
/* After H5Fflush: makes everything written since the last commit durable. On -1, with a message, none of it is kept:
 * close the file. H5Fclose without a commit discards what was written. */
int wz_journal_commit(hid_t file, struct wz_err *err);
/* Before opening, *size becomes the file's length (0: there is none). What a crash left in a journal counts as written:
 * write: it is replayed, or removed where it is incomplete; else nothing is changed, and who opens the file to read
 * reads it from there. -1 and a message, also where the file or its journal is a link: that could lead anywhere. */
int wz_journal_recover(const char *path, bool write, uint64_t *size, struct wz_err *err);

#endif
