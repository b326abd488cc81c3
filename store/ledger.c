/* ledger.jsonl (guarantee 4): what became of every sample, one line per step and agent.
 *
 *   {"step":3,"agent":"feedback","generated":64,"trained":60,"discarded":4,"in_flight":0,"reasons":"judge failed 4"}
 */
#include "store/store.h"

#include <stdlib.h>
#include <string.h>

int wz_ledger_append(const char *dir, const struct wz_ledger_line *lines, int n, struct wz_err *err)
{
    struct wz_buf out = { 0 };
    char *path = wz_path("%s/ledger.jsonl", dir);
    int rc;

    for (int i = 0; i < n; i++) {
        const struct wz_ledger_line *l = &lines[i];
        wz_buf_printf(&out, "{\"step\":%lld,\"agent\":", (long long)l->step);
        wz_json_string(&out, l->agent, strlen(l->agent));
        wz_buf_printf(&out, ",\"generated\":%lld,\"trained\":%lld,\"discarded\":%lld,\"in_flight\":%lld,\"reasons\":",
                      (long long)l->generated, (long long)l->trained, (long long)l->discarded, (long long)l->in_flight);
        wz_json_string(&out, l->reasons ? l->reasons : "", l->reasons ? strlen(l->reasons) : 0);
        wz_buf_str(&out, "}\n");
    }
    rc = n ? wz_file_append(path, out.data, out.len, err) : 0;
    for (int i = 0; i < n && !rc; i++) {
        const struct wz_ledger_line *l = &lines[i];
        if (l->generated != l->trained + l->discarded + l->in_flight)
            rc = wz_fail(err,
                         "%s: step %lld, agent %s: generated %lld samples, but trained %lld + discarded %lld + in "
                         "flight %lld",
                         path, (long long)l->step, l->agent, (long long)l->generated, (long long)l->trained,
                         (long long)l->discarded, (long long)l->in_flight);
    }
    wz_buf_finish(&out);
    free(path);
    return rc;
}
