/* The history of a run: its files that only grow. A checkpoint's manifest has of each how long it was when the
 * checkpoint was saved, and the hash of that:
 *
 *   "history": {"chain.jsonl": {"bytes": 1234, "is": "xxh3 0123456789abcdef"}, ...}
 *
 * What is missing of it shows when the next checkpoint is saved, and when the run resumes. A file that is not there is
 * an empty one. metrics.jsonl and TensorBoard's files are not among them: a run goes on without (guarantee 10). */
#include "run/folder.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

const char *const wz_history[] = { "chain.jsonl", "ledger.jsonl",      "starts.jsonl",
                                   "summary.csv", "transcripts.jsonl", NULL };

static void describe(char is[32], const uint8_t *bytes, size_t n)
{
    snprintf(is, 32, "xxh3 %016" PRIx64, wz_hash(bytes, n, 0));
}

/* Checks the file against what it was, and adds what it is now. */
int wz_history_file(const char *run, const char *name, const json_t *was, size_t most, json_t *now, struct wz_err *err)
{
    const json_t *then = json_object_get(was, name);
    const char *want = json_string_value(json_object_get(then, "is"));
    const json_int_t had = json_integer_value(json_object_get(then, "bytes"));
    char *path = wz_path("%s/%s", run, name), is[32] = "";
    struct wz_map map = { 0 };
    const int unread = wz_file_exists(path) ? wz_map_open(&map, path, err) : 0;
    int rc = unread;

    if (rc == 0 && was && (!want || had < 0)) rc = wz_fail(err, "the checkpoint's manifest does not describe it");
    else if (rc == 0 && was && (size_t)had > map.len)
        rc = wz_fail(err, "expected the %" PRId64 " bytes that it had at the last checkpoint, got %zu", (int64_t)had,
                     map.len);
    else if (rc == 0 && was) {
        describe(is, map.bytes, (size_t)had);
        if (strcmp(is, want) != 0)
            rc = wz_fail(err, "expected %s of the %" PRId64 " bytes that it had at the last checkpoint, got %s", want,
                         (int64_t)had, is);
    }
    if (rc < 0 && !unread) wz_fail_in(err, "%s", path);
    const size_t n = map.len < most ? map.len : most;
    describe(is, map.bytes, n);
    json_object_set_new(now, name, json_pack("{s:I, s:s}", "bytes", (json_int_t)n, "is", is));
    wz_map_close(&map);
    free(path);
    return rc;
}

json_t *wz_history_take(const char *run, const json_t *was, size_t chain, struct wz_err *err)
{
    json_t *now = json_object();
    int rc = 0;

    for (int i = 0; rc == 0 && wz_history[i]; i++)
        rc = wz_history_file(run, wz_history[i], was, i ? SIZE_MAX : chain, now, err);
    if (rc == 0) return now;
    json_decref(now);
    return NULL;
}
