/* Append-only files of a run (metrics, TensorBoard events, ledger), and the CSV cells that prompts and tables share. */
#ifndef WZ_STORE_APPEND_H
#define WZ_STORE_APPEND_H

#include "store/store.h"

/* Opens to append, creating folder and file; `fresh` empties it. A file descriptor, or -1 and a message. */
int wz_append_open(const char *path, bool fresh, struct wz_err *err);
/* Appends all n bytes or none: a partial write is truncated away. -1 and errno. */
int wz_append(int fd, const void *bytes, size_t n);

/* ---- events.c: TensorBoard records ------------------------------------------------------------------------ */

uint32_t wz_crc32c(const void *bytes, size_t n);
/* Each appends one event, as a record of an event file, to `out`. wall: seconds since 1970. */
void wz_events_record(struct wz_buf *out, const Wz__Event *event);
void wz_events_version(struct wz_buf *out, double wall);               /* the first record of a file */
void wz_events_restart(struct wz_buf *out, double wall, int64_t step); /* TensorBoard drops what follows `step` */
void wz_events_scalars(struct wz_buf *out, double wall, int64_t step, const char *const *names, const double *values,
                       int n);

/* ---- csv.c: RFC 4180 -------------------------------------------------------------------------------------- */

/* Reads one cell at *s (before `end`) into `cell`: quoted, then "" is a quote, or up to a comma (`comma`, of TSV a tab)
 * or the end of the line (LF or CRLF). Moves *s behind the delimiter and returns it: `comma`, '\n' or 0 (end of text);
 * -1: a quote is not closed, or something other than a delimiter follows it. */
int wz_csv_cell(const char **s, const char *end, char comma, struct wz_buf *cell);

#endif
