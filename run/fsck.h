/* fsck: what of a run is whole, what is lost, and what can be repaired. */
#ifndef WZ_FSCK_H
#define WZ_FSCK_H

#include "run/folder.h"

/* One finding. ok: as it should be; next: the next start of the run puts it right by itself; LOST: it can't be had
 * again, and the run does not resume; FIXED: by repair. */
enum wz_fsck_status { WZ_FSCK_OK, WZ_FSCK_NEXT, WZ_FSCK_LOST, WZ_FSCK_FIXED };

/* Looks at the run in the job's recipe's `out`, whose job has a link and a recipe and no more, and calls tell for each
 * finding. repair: under the run's lock, sets damaged checkpoints aside, deletes what killed starts left, and where
 * history is lost takes it down as lost in RUN/lost.jsonl, so that the run resumes without it. Returns how much is lost
 * and not fixed; -1 and a message where it could not look or repair. */
int wz_fsck(struct wz_job *job, bool repair,
            void (*tell)(void *arg, enum wz_fsck_status status, const char *what, const char *why), void *arg,
            struct wz_err *err);

#endif
