/* Reading a record: table rows become messages again. Indices into other tables are checked before use. */
#include "store/record.h"

#include <stdlib.h>
#include <string.h>

/* Reads one column into the messages: the inverse of gather in record.c. */
static int scatter(const struct wz_record *r, int t, int c, hsize_t at, struct wz_row *rows, hsize_t n,
                   struct wz_err *err)
{
    const struct wz_column *col = &wz_tables[t].columns[c];
    size_t size = wz_kind_size[col->kind];
    uint8_t *values = wz_alloc(wz_mul(size, n));
    int rc = wz_column_read(r, t, c, at, n, values, err);

    for (hsize_t i = 0; i < n && !rc; i++) {
        void *to = col->at >= PLACE ? (void *)&rows[i].place[col->at - PLACE] : (char *)rows[i].message + col->at;
        const char *s = NULL;
        switch (col->kind) {
        case BOOL: *(protobuf_c_boolean *)to = values[i] != 0; break;
        case VERDICT: *(int *)to = values[i] <= WZ__VERDICT__FAILED ? values[i] : 0; break;
        case FINISH: *(int *)to = values[i] <= WZ__FINISH_REASON__CONTEXT ? values[i] : 0; break;
        case STR:
            memcpy(&s, values + i * size, sizeof s);
            wz_set_string(to, s ? s : "", s ? strlen(s) : 0);
            break;
        default: memcpy(to, values + i * size, size);
        }
    }
    if (!rc) wz_column_reclaim(col->kind, n, values);
    free(values);
    return rc;
}

/* The range [*at, returned end) of table t that n consecutive rows refer to; -1 and a message where it is not
 * contiguous or not inside the table. begin, count: indices into place. */
static int64_t span(const struct wz_record *r, int t, const struct wz_row *rows, hsize_t n, int begin, int count,
                    int64_t *at, struct wz_err *err)
{
    int64_t end = n ? rows[0].place[begin] : 0;

    *at = end;
    for (hsize_t i = 0; i < n; i++) {
        int64_t k = rows[i].place[count];
        if (rows[i].place[begin] != end || end < 0 || k < 0 || (hsize_t)end > r->len[t] ||
            (hsize_t)k > r->len[t] - (hsize_t)end)
            return wz_fail(err, "%s: ranges of /%s are not contiguous or exceed the table", r->path,
                           wz_tables[t].group);
        end += k;
    }
    return end;
}

static void *part(const void *from, size_t size, int64_t n)
{
    return memcpy(wz_realloc(NULL, size * (size_t)n), from, size * (size_t)n);
}

/* Reads the token columns of the turns. */
static int tokens_read(const struct wz_record *r, struct wz_row *turns, hsize_t n, struct wz_err *err)
{
    int64_t context_at, ids_at, context_end = span(r, CONTEXT, turns, n, 0, 1, &context_at, err), ids_end;
    int32_t *context, *values[4] = { 0 };
    int rc = -1;

    if (context_end < 0 || (ids_end = span(r, IDS, turns, n, 2, 3, &ids_at, err)) < 0) return -1;
    context = wz_alloc(wz_mul(4, (size_t)(context_end - context_at)));
    if (wz_column_read(r, CONTEXT, 0, (hsize_t)context_at, (hsize_t)(context_end - context_at), context, err) < 0)
        goto out;
    for (int c = 0; c < 4; c++) {
        values[c] = wz_alloc(wz_mul(4, (size_t)(ids_end - ids_at)));
        if (wz_column_read(r, IDS, c, (hsize_t)ids_at, (hsize_t)(ids_end - ids_at), values[c], err) < 0) goto out;
    }
    for (hsize_t i = 0; i < n; i++) {
        Wz__Turn *t = turns[i].message;
        const int64_t *p = turns[i].place, at = p[2] - ids_at;
        if ((p[4] && p[4] != p[3]) || (p[5] && p[5] != p[3])) {
            wz_fail(err, "%s: a turn has %lld ids, but not as many ref_logp or advantage", r->path, (long long)p[3]);
            goto out;
        }
        if ((t->n_context = (size_t)p[1])) t->context = part(context + (p[0] - context_at), 4, p[1]);
        if (!p[3]) continue;
        t->n_ids = t->n_logp = (size_t)p[3];
        t->ids = part(values[IDS_IDS] + at, 4, p[3]);
        t->logp = part(values[IDS_LOGP] + at, 4, p[3]);
        if ((t->n_ref_logp = (size_t)p[4])) t->ref_logp = part(values[IDS_REF] + at, 4, p[4]);
        if ((t->n_advantage = (size_t)p[5])) t->advantage = part(values[IDS_ADVANTAGE] + at, 4, p[5]);
    }
    rc = 0;
out:
    free(context);
    for (int c = 0; c < 4; c++) free(values[c]);
    return rc;
}

/* Reads the judgements of the turns. */
static int judgements_read(const struct wz_record *r, struct wz_row *turns, hsize_t n, struct wz_err *err)
{
    int64_t at, end = span(r, JUDGEMENTS, turns, n, 6, 7, &at, err);
    int rc = 0;

    if (end < 0) return -1;
    struct wz_row *rows = wz_alloc(wz_mul(sizeof *rows, (size_t)(end - at))), *next = rows;
    for (hsize_t i = 0; i < n; i++)
        for (int64_t k = 0; k < turns[i].place[7]; k++) (next++)->message = wz_turn_judgement(turns[i].message);
    for (int c = 0; c < wz_tables[JUDGEMENTS].n && !rc; c++)
        rc = scatter(r, JUDGEMENTS, c, (hsize_t)at, rows, (hsize_t)(end - at), err);
    free(rows);
    return rc;
}

/* The oldest files have no roles: theirs are games of two, c0 f0 [c1 f1 ...]. */
static void name_role(Wz__Turn *t, int64_t at)
{
    if (t->role[0]) return;
    wz_set_string(&t->role, at % 2 ? WZ_FEEDBACK : WZ_CONVERSATION, strlen(at % 2 ? WZ_FEEDBACK : WZ_CONVERSATION));
    t->about = at ? (int32_t)(at - 1 - (at % 2 == 0)) : -1;
}

/* Reads episodes [from, from + n) into out[n]; the caller frees them also where -1 is returned. */
static int episodes_read(const struct wz_record *r, hsize_t from, hsize_t n, Wz__Episode **out, struct wz_err *err)
{
    struct wz_row *rows = wz_alloc(wz_mul(sizeof *rows, n)), *turns = NULL;
    int64_t turns_at, turns_end;
    int rc = 0;

    for (hsize_t i = 0; i < n; i++) rows[i].message = out[i] = wz_episode_new();
    for (int c = 0; c < wz_tables[EPISODES].n && !rc; c++) rc = scatter(r, EPISODES, c, from, rows, n, err);
    if (!rc && (turns_end = span(r, TURNS, rows, n, 0, 1, &turns_at, err)) < 0) rc = -1;
    if (rc) goto out;
    hsize_t n_turns = (hsize_t)(turns_end - turns_at), at = 0;
    turns = wz_alloc(wz_mul(sizeof *turns, n_turns));
    for (hsize_t i = 0; i < n; i++)
        for (int64_t k = 0; k < rows[i].place[1]; k++) turns[at++].message = wz_episode_turn(out[i]);
    for (int c = 0; c < wz_tables[TURNS].n && !rc; c++)
        rc = scatter(r, TURNS, c, (hsize_t)turns_at, turns, n_turns, err);
    for (hsize_t i = 0; i < n; i++)
        for (size_t k = 0; k < out[i]->n_turns; k++) name_role(out[i]->turns[k], (int64_t)k);
    if (!rc) rc = tokens_read(r, turns, n_turns, err);
    if (!rc) rc = judgements_read(r, turns, n_turns, err);
out:
    free(rows);
    free(turns);
    return rc;
}

/* Opens read-only and reads the step of every episode: heap. */
static int attach_steps(struct wz_record *r, const char *path, int64_t **steps, struct wz_err *err)
{
    int rc;

    *steps = NULL;
    r->path = wz_strdup(path);
    rc = wz_record_attach(r, H5F_ACC_RDONLY, err);
    if (rc > 0) rc = wz_fail(err, "%s: no such record, or an empty file", path);
    if (rc < 0) return -1;
    *steps = wz_alloc(wz_mul(sizeof **steps, r->len[EPISODES]));
    return wz_column_read(r, EPISODES, 0, 0, r->len[EPISODES], *steps, err);
}

int wz_record_read(const char *path, int64_t step, Wz__Episode ***out, int *n, struct wz_err *err)
{
    struct wz_record r = { .file = -1 };
    int64_t *steps;
    hsize_t from = 0, to;
    int rc = attach_steps(&r, path, &steps, err);

    *out = NULL;
    *n = 0;
    if (rc < 0) goto out;
    while (from < r.len[EPISODES] && steps[from] != step) from++;
    for (to = from; to < r.len[EPISODES] && steps[to] == step; to++) continue;
    *out = wz_alloc(wz_mul(sizeof **out, to - from));
    rc = episodes_read(&r, from, to - from, *out, err);
    *n = (int)(to - from);
    if (rc < 0) {
        for (int i = 0; i < *n; i++) wz_episode_free((*out)[i]);
        free(*out);
        *out = NULL;
        *n = 0;
    }
out:
    wz_record_detach(&r);
    free(steps);
    free(r.path);
    return rc;
}

int wz_record_count(const char *path, int64_t *n, struct wz_err *err)
{
    struct wz_record r = { .file = -1 };
    int64_t *steps;
    int rc = attach_steps(&r, path, &steps, err);

    *n = (int64_t)r.len[EPISODES];
    free(steps);
    wz_record_detach(&r);
    free(r.path);
    return rc;
}

int wz_record_steps(const char *path, int64_t **steps, int *n, struct wz_err *err)
{
    struct wz_record r = { .file = -1 };
    int rc = attach_steps(&r, path, steps, err);

    *n = 0;
    for (hsize_t i = 0; !rc && i < r.len[EPISODES]; i++)
        if (!*n || (*steps)[*n - 1] != (*steps)[i]) (*steps)[(*n)++] = (*steps)[i];
    if (rc < 0) {
        free(*steps);
        *steps = NULL;
    }
    wz_record_detach(&r);
    free(r.path);
    return rc;
}
