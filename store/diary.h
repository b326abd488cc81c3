/* What the diaries of a run share (metrics, TensorBoard events, ledger): files that grow by whole entries. */
#ifndef WZ_STORE_DIARY_H
#define WZ_STORE_DIARY_H

#include "store/store.h"

/* Opens to append, creating folder and file; `fresh` empties it. A descriptor, or -1 and a sentence. */
int wz_diary_open(const char *path, bool fresh, struct wz_err *err);
/* JSON lines: cuts off a last line that a killed run did not finish, then, from the end, every line that `drop` says
 * yes to. */
int wz_diary_cut(int fd, const char *path, bool (*drop)(const json_t *line, const void *arg), const void *arg,
                 struct wz_err *err);
/* Appends all n bytes, or none: what a full disk took in part is taken back. -1 and errno. */
int wz_diary_append(int fd, const void *bytes, size_t n);

/* ---- events.c: a TensorBoard record ----------------------------------------------------------------------- */

uint32_t wz_crc32c(const void *bytes, size_t n);
/* Appends an event as a record of an event file. */
void wz_events_record(struct wz_buf *out, const Wz__Event *event);
void wz_events_version(struct wz_buf *out, double wall);
void wz_events_restart(struct wz_buf *out, double wall, int64_t step);
void wz_events_scalars(struct wz_buf *out, double wall, int64_t step, const char *const *names, const double *values,
                       int n);

#endif
