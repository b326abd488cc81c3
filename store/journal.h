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
/* Before opening: replays a complete journal that a crash left, or removes an incomplete one. -1 and a message. */
int wz_journal_recover(const char *path, struct wz_err *err);

#endif
