/* Reading a record: table rows become messages again. Indices into other tables are checked before use, and what was
 * read of an episode against its hash. All of it happens in a process apart, which frees nothing (apart.c). */
#include "store/record.h"

#include <math.h>
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
    int32_t *context;
    float *values[4] = { 0 }; /* the first are ids */
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
        for (int64_t k = 0; k < p[3]; k++)
            if ((!p[4] && !isnan(values[IDS_REF][at + k])) || (!p[5] && !isnan(values[IDS_ADVANTAGE][at + k]))) {
                wz_fail(err, "%s: a turn has no ref_logp or advantage, but a number in its place: the file is damaged",
                        r->path);
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

/* Reads episodes [from, from + n) into out[n]. */
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
    if (!rc) rc = tokens_read(r, turns, n_turns, err);
    if (!rc) rc = judgements_read(r, turns, n_turns, err);
    for (hsize_t i = 0; i < n && !rc; i++) {
        const uint64_t was = (uint64_t)rows[i].place[2], is = was ? wz_record_hash(out[i]) : 0;
        if (was != is)
            rc = wz_fail(err, "%s: step %lld, episode %u: expected the hash %016llx, got %016llx: the file is damaged",
                         r->path, (long long)out[i]->step, out[i]->index, (unsigned long long)was,
                         (unsigned long long)is);
        for (size_t k = 0; k < out[i]->n_turns; k++) name_role(out[i]->turns[k], (int64_t)k);
    }
out:
    free(rows);
    free(turns);
    return rc;
}

/* What a child is asked. */
struct question {
    const char *path;
    int64_t step, from;
};

/* Opens read-only and reads the step of every episode. 1 and a message: there is no file, or an empty one, as a start
 * leaves it that was killed before it had recorded a step. */
static int attach_steps(struct wz_record *r, const char *path, int64_t **steps, struct wz_err *err)
{
    r->path = wz_strdup(path);
    int rc = wz_record_attach(r, H5F_ACC_RDONLY, err);
    if (rc > 0) wz_fail(err, "%s: no such record, or an empty file", path);
    if (rc) return rc;
    *steps = wz_alloc(wz_mul(sizeof **steps, r->len[EPISODES]));
    rc = wz_column_read(r, EPISODES, 0, 0, r->len[EPISODES], *steps, err);
    for (hsize_t i = 1; !rc && i < r->len[EPISODES]; i++)
        if ((*steps)[i] < (*steps)[i - 1])
            rc = wz_fail(err, "%s: steps go back from %lld to %lld: the file is damaged", path,
                         (long long)(*steps)[i - 1], (long long)(*steps)[i]);
    return rc;
}

/* The first episode of `step` or a later one. */
static hsize_t find(const struct wz_record *r, const int64_t *steps, int64_t step)
{
    hsize_t at = 0;

    while (at < r->len[EPISODES] && steps[at] < step) at++;
    return at;
}

static int read_step(void *arg, struct wz_buf *out, struct wz_err *err)
{
    const struct question *q = arg;
    struct wz_record r = { .file = -1 };
    int64_t *steps;

    if (attach_steps(&r, q->path, &steps, err)) return -1;
    const hsize_t from = find(&r, steps, q->step), to = find(&r, steps, q->step + 1);
    /* those beside them too: an episode whose own step has changed is not among those of its step */
    const hsize_t before = from > 0, n = to + (to < r.len[EPISODES]) - (from - before);
    Wz__Episode **list = wz_alloc(wz_mul(sizeof *list, n));
    if (episodes_read(&r, from - before, n, list, err) < 0) return -1;
    wz_episodes_pack(list + before, (int)(to - from), out);
    return 0;
}

int wz_record_read(const char *path, int64_t step, Wz__Episode ***out, int *n, struct wz_err *err)
{
    struct question q = { path, step, 0 };
    struct wz_buf answer = { 0 };
    int rc = wz_apart(path, read_step, &q, &answer, err);

    *out = NULL;
    *n = 0;
    if (rc == 0) rc = wz_episodes_unpack(answer.data, answer.len, out, n, err);
    wz_buf_finish(&answer);
    return rc;
}

enum { PIECE = 1024 };

/* Reads up to PIECE episodes, the first `from` not; gives how many, and how many there are of steps before the one
 * asked for. */
static int check_piece(void *arg, struct wz_buf *out, struct wz_err *err)
{
    const struct question *q = arg;
    struct wz_record r = { .file = -1 };
    int64_t *steps;

    const int rc = attach_steps(&r, q->path, &steps, err);
    if (rc > 0 && wz_file_exists(q->path)) {
        wz_buf_add(out, (const int64_t[2]){ 0, 0 }, 2 * sizeof(int64_t));
        return 0;
    }
    if (rc) return -1;
    const hsize_t end = r.len[EPISODES], from = (hsize_t)q->from < end ? (hsize_t)q->from : end,
                  n = end - from > PIECE ? PIECE : end - from;
    const int64_t answer[2] = { (int64_t)n, (int64_t)find(&r, steps, q->step) };
    wz_buf_add(out, answer, sizeof answer);
    return episodes_read(&r, from, n, wz_alloc(wz_mul(sizeof(Wz__Episode *), n)), err);
}

int wz_record_check(const char *path, int64_t before, int64_t *n, struct wz_err *err)
{
    struct question q = { path, before, 0 };
    struct wz_buf answer = { 0 };
    int64_t got[2] = { PIECE, 0 };
    int rc = 0;

    for (; rc == 0 && got[0] == PIECE; q.from += got[0]) {
        rc = wz_apart(path, check_piece, &q, &answer, err);
        if (rc == 0) memcpy(got, answer.data, sizeof got);
    }
    *n = rc == 0 ? got[1] : 0;
    wz_buf_finish(&answer);
    return rc;
}

static int read_steps(void *arg, struct wz_buf *out, struct wz_err *err)
{
    const struct question *q = arg;
    struct wz_record r = { .file = -1 };
    int64_t *steps;

    if (attach_steps(&r, q->path, &steps, err)) return -1;
    for (hsize_t i = 0; i < r.len[EPISODES]; i++)
        if (!i || steps[i - 1] != steps[i]) wz_buf_add(out, &steps[i], sizeof steps[i]);
    return 0;
}

int wz_record_steps(const char *path, int64_t **steps, int *n, struct wz_err *err)
{
    struct question q = { path, 0, 0 };
    struct wz_buf answer = { 0 };
    const int rc = wz_apart(path, read_steps, &q, &answer, err);

    *n = rc < 0 ? 0 : (int)(answer.len / sizeof **steps);
    *steps = rc < 0 ? NULL : wz_alloc(answer.len);
    if (*n) memcpy(*steps, answer.data, answer.len);
    wz_buf_finish(&answer);
    return rc;
}
