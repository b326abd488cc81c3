/* An HDF5 file driver that makes what is written between two commits all or nothing; see journal.c. */
#ifndef WZ_STORE_JOURNAL_H
#define WZ_STORE_JOURNAL_H

#include <hdf5.h>

#include "base/base.h"

/* A file access property list for H5Fcreate and H5Fopen; H5Pclose it. */
hid_t wz_journal_access(void);
/* After H5Fflush: makes everything written since the last commit durable. On -1 close the file: nothing of it is kept.
 * H5Fclose without a commit drops what was written. */
int wz_journal_commit(hid_t file, struct wz_err *err);
/* Before opening: finishes a commit that a crash cut off, or forgets one that had not begun to count. */
int wz_journal_recover(const char *path, struct wz_err *err);

#endif
