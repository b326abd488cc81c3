/* The manifest of a checkpoint. Private to run. Functions return 0, or -1 and a message in `err`. */
#ifndef WZ_MANIFEST_H
#define WZ_MANIFEST_H

#include "run/job.h"

/* The agent's folder in a checkpoint: heap; NULL where it has none (wz_progress_learns). */
char *wz_manifest_folder(const struct wz_progress *p, const struct wz_recipe *recipe, int agent, const char *dir);
/* The manifest of a checkpoint to be, but for the hashes of its files; copies inputs and history. json_decref it. */
json_t *wz_manifest_make(const struct wz_job *job, const struct wz_progress *p, const json_t *inputs,
                         const json_t *history);
/* Writes it as dir/manifest.json when all else is in dir, with the hash of each of these files. */
int wz_manifest_save(json_t *manifest, const char *dir, struct wz_err *err);
void wz_manifest_seal(json_t *root); /* sets `self`, the hash of all the rest */
/* Checked are only the format and `self`. NULL on error. */
json_t *wz_manifest_open(const char *dir, struct wz_err *err);
/* The files in dir are those that the manifest there lists, and no other. pool: NULL, or what hashes them. */
int wz_manifest_files(const char *dir, struct wz_pool *pool, struct wz_err *err);
/* Reads the manifest of the checkpoint after `step` steps and checks it. p: zeroed. */
int wz_manifest_load(const char *dir, int64_t step, struct wz_progress *p, const struct wz_recipe *recipe,
                     struct wz_err *err);
/* The last length of a stage so far; -1: the run had no such stage. */
int wz_progress_length(const struct wz_progress *p, int stage);
int64_t wz_progress_episodes(const struct wz_progress *p, const struct wz_recipe *recipe); /* recorded up to p->step */
/* Moves p to where a run goes on whose recipe has more stages or steps than it had. One that had ended goes on in its
 * last stage where that has more steps, with its moments and references. -1: it was extended too often. */
int wz_progress_extend(struct wz_progress *p, const struct wz_recipe *recipe, struct wz_err *err);

#endif
