/* episodes-<rank>.h5: every episode of a run, in columns. Schema 1:
 *
 *   /                attributes: schema = 1, writer = "waltz"
 *   /episodes/       one row an episode:  step i64, index u32, prompt, prompt_id, kind, discard str, harmful bool,
 *                    first_turn i64 (row in /turns), n_turns i64
 *   /turns/          one row a turn:      agent, round u32, version, weights u64, truncated bool, text str,
 *                    valid, unsafe, overrefuse bool, feedback, reason str, verdict enum, judged_unsafe, judged_overrefuse bool,
 *                    reward, dir f64, label, trained bool, judge_error str, context_at, n_context i64 (rows in /tokens/context),
 *                    ids_at, n_ids i64 (rows in /tokens/ids, logp, ref_logp, advantage), n_ref_logp, n_advantage i64
 *   /tokens/         context i32;  ids i32, logp f32, ref_logp f32, advantage f32, all four of one length. Where a turn's
 *                    n_ref_logp or n_advantage is 0 there are none, and NaN stands in the column.
 *
 * Every column is a one-dimensional chunked dataset; str is variable-length UTF-8; bool is the enum that h5py reads as bool.
 * `pandas.DataFrame({k: f["episodes"][k][:] for k in f["episodes"]})` is the table. Rows are appended and steps never go
 * back, so the rows of one step, of its turns and of their tokens each lie together.
 *
 * A step is all or nothing: journal.c. A file that is broken all the same (someone wrote into it, a disk failed) is renamed
 * to FILE.broken and a new one is begun, which is said; a file that is not a record is refused and left alone. */
#include "store/journal.h"
#include "store/store.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SCHEMA = 1, MAX_COLUMNS = 25 };
enum kind { I64, U32, U64, F64, BOOL, VERDICT, STR, I32, F32 };
static const size_t kind_size[] = { 8, 4, 8, 8, 1, 1, sizeof(char *), 4, 4 };

/* Where a row's value is: a field of the message, or, from PLACE on, a number of its struct row. */
enum { PLACE = 1 << 16 };
struct row { void *message; int64_t place[6]; };
struct column { const char *name; enum kind kind; size_t at; };

#define E(field) offsetof(Wz__Episode, field)
static const struct column episode_columns[] = {
    { "step", I64, E(step) },           { "index", U32, E(index) },       { "prompt", STR, E(prompt) },
    { "prompt_id", STR, E(prompt_id) }, { "kind", STR, E(kind) },         { "harmful", BOOL, E(harmful) },
    { "discard", STR, E(discard) },     { "first_turn", I64, PLACE + 0 }, { "n_turns", I64, PLACE + 1 },
};
#define T(field) offsetof(Wz__Turn, field)
static const struct column turn_columns[] = {
    { "agent", U32, T(agent) },         { "round", U32, T(round) },       { "version", U64, T(version) },
    { "weights", U64, T(weights) },     { "truncated", BOOL, T(truncated) }, { "text", STR, T(text) },
    { "valid", BOOL, T(valid) },        { "unsafe", BOOL, T(unsafe) },    { "overrefuse", BOOL, T(overrefuse) },
    { "feedback", STR, T(feedback) },   { "reason", STR, T(reason) },     { "verdict", VERDICT, T(verdict) },
    { "judged_unsafe", BOOL, T(judged_unsafe) }, { "judged_overrefuse", BOOL, T(judged_overrefuse) },
    { "reward", F64, T(reward) },       { "dir", F64, T(dir) },           { "label", BOOL, T(label) },
    { "trained", BOOL, T(trained) },    { "judge_error", STR, T(judge_error) },
    { "context_at", I64, PLACE + 0 },   { "n_context", I64, PLACE + 1 },  { "ids_at", I64, PLACE + 2 },
    { "n_ids", I64, PLACE + 3 },        { "n_ref_logp", I64, PLACE + 4 }, { "n_advantage", I64, PLACE + 5 },
};
static const struct column context_columns[] = { { "context", I32, 0 } };
enum { IDS_IDS, IDS_LOGP, IDS_REF, IDS_ADVANTAGE };
static const struct column ids_columns[] = { { "ids", I32, 0 }, { "logp", F32, 0 }, { "ref_logp", F32, 0 }, { "advantage", F32, 0 } };

enum { EPISODES, TURNS, CONTEXT, IDS, N_TABLES };
static const struct table { const char *group; const struct column *columns; int n; hsize_t chunk; } tables[] = {
    [EPISODES] = { "episodes", episode_columns, WZ_COUNT(episode_columns), 512 },
    [TURNS] = { "turns", turn_columns, WZ_COUNT(turn_columns), 1024 },
    [CONTEXT] = { "tokens", context_columns, WZ_COUNT(context_columns), 32768 },
    [IDS] = { "tokens", ids_columns, WZ_COUNT(ids_columns), 16384 },
};
_Static_assert(WZ_COUNT(turn_columns) <= MAX_COLUMNS, "a table has more columns than room");

struct wz_record {
    char *path;
    hid_t file;                                /* negative: closed, to be opened again */
    hid_t set[N_TABLES][MAX_COLUMNS];
    hsize_t len[N_TABLES];                     /* rows */
    int64_t last;                              /* step of the last episode, INT64_MIN: there is none */
    bool broken;                               /* the last opening failed because of what the file holds */
};

/* ---- HDF5 with sentences ------------------------------------------------------------------------------------------ */

static herr_t innermost(unsigned n, const H5E_error2_t *e, void *out)
{
    snprintf(out, 200, "%s", e->desc ? e->desc : "");
    return 1;
}

/* Call it right after what failed: the next call into HDF5 forgets why. */
static int h5_fail(const struct wz_record *r, const char *what, struct wz_err *err)
{
    char why[200] = "";

    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, innermost, why);
    return wz_fail(err, "%s: %s: HDF5 says: %s", r->path, what, *why ? why : "nothing");
}

/* The type of a column, in memory as in the file; H5Tclose it. */
static hid_t type_of(enum kind kind)
{
    static const char *const words[][3] = { { "FALSE", "TRUE" }, { "NONE", "JUDGED", "FAILED" } };
    hid_t t;

    switch (kind) {
    case I64: return H5Tcopy(H5T_STD_I64LE);
    case U32: return H5Tcopy(H5T_STD_U32LE);
    case U64: return H5Tcopy(H5T_STD_U64LE);
    case F64: return H5Tcopy(H5T_IEEE_F64LE);
    case I32: return H5Tcopy(H5T_STD_I32LE);
    case F32: return H5Tcopy(H5T_IEEE_F32LE);
    case STR:
        t = H5Tcopy(H5T_C_S1);
        H5Tset_size(t, H5T_VARIABLE);
        H5Tset_cset(t, H5T_CSET_UTF8);
        return t;
    default:
        t = H5Tenum_create(H5T_STD_I8LE);
        for (int8_t i = 0; i < (kind == BOOL ? 2 : 3); i++) H5Tenum_insert(t, words[kind == VERDICT][i], &i);
        return t;
    }
}

static hid_t rows_of(hid_t set, hsize_t at, hsize_t n)
{
    hid_t space = H5Dget_space(set);

    H5Sselect_hyperslab(space, H5S_SELECT_SET, &at, NULL, &n, NULL);
    return space;
}

static int column_append(struct wz_record *r, int t, int c, hsize_t n, const void *values, struct wz_err *err)
{
    hid_t set = r->set[t][c], type = type_of(tables[t].columns[c].kind), from, to;
    hsize_t len = r->len[t] + n;
    int rc = H5Dset_extent(set, &len) < 0 ? h5_fail(r, "making room for rows", err) : 0;

    if (n && !rc) {
        from = H5Screate_simple(1, &n, NULL);
        to = rows_of(set, r->len[t], n);
        if (H5Dwrite(set, type, from, to, H5P_DEFAULT, values) < 0) rc = h5_fail(r, "appending rows", err);
        H5Sclose(from);
        H5Sclose(to);
    }
    H5Tclose(type);
    return rc;
}

/* Reads rows [at, at+n), which the caller knows to be there. Strings in it: HDF5's, given back by column_reclaim. */
static int column_read(const struct wz_record *r, int t, int c, hsize_t at, hsize_t n, void *values, struct wz_err *err)
{
    hid_t set = r->set[t][c], type, from, to;
    int rc;

    if (!n) return 0;
    type = type_of(tables[t].columns[c].kind);
    to = H5Screate_simple(1, &n, NULL);
    from = rows_of(set, at, n);
    rc = H5Dread(set, type, to, from, H5P_DEFAULT, values) < 0 ? h5_fail(r, tables[t].columns[c].name, err) : 0;
    H5Sclose(from);
    H5Sclose(to);
    H5Tclose(type);
    return rc;
}

static void column_reclaim(enum kind kind, hsize_t n, void *values)
{
    hid_t type, space;

    if (kind != STR || !n) return;
    type = type_of(STR);
    space = H5Screate_simple(1, &n, NULL);
    H5Dvlen_reclaim(type, space, H5P_DEFAULT, values);
    H5Sclose(space);
    H5Tclose(type);
}

static int column_index(int t, const char *name)
{
    int c = 0;

    while (strcmp(tables[t].columns[c].name, name)) c++;
    return c;
}

/* ---- opening ------------------------------------------------------------------------------------------------------ */

static void detach(struct wz_record *r)
{
    if (r->file >= 0) H5Fclose(r->file);       /* with every dataset; what was not committed is gone */
    r->file = -1;
}

static int create(struct wz_record *r, struct wz_err *err)
{
    hid_t access = wz_journal_access(), links = H5Pcreate(H5P_LINK_CREATE), str = type_of(STR);
    hid_t one = H5Screate(H5S_SCALAR), a, b;
    const int schema = SCHEMA;
    const char *writer = "waltz";
    int rc = 0;

    H5Pset_create_intermediate_group(links, 1);
    r->file = H5Fcreate(r->path, H5F_ACC_TRUNC, H5P_DEFAULT, access);
    if (r->file < 0) rc = wz_fail(err, "%s: can't be created: %s", r->path, strerror(errno));
    a = r->file < 0 ? -1 : H5Acreate2(r->file, "schema", H5T_STD_I32LE, one, H5P_DEFAULT, H5P_DEFAULT);
    b = r->file < 0 ? -1 : H5Acreate2(r->file, "writer", str, one, H5P_DEFAULT, H5P_DEFAULT);
    if (!rc && (a < 0 || b < 0 || H5Awrite(a, H5T_NATIVE_INT, &schema) < 0 || H5Awrite(b, str, &writer) < 0))
        rc = h5_fail(r, "creating it", err);
    if (a >= 0) H5Aclose(a);
    if (b >= 0) H5Aclose(b);
    for (int t = 0; t < N_TABLES && !rc; t++) {
        for (int c = 0; c < tables[t].n && !rc; c++) {
            const hsize_t none = 0, any = H5S_UNLIMITED;
            hid_t type = type_of(tables[t].columns[c].kind), space = H5Screate_simple(1, &none, &any);
            hid_t how = H5Pcreate(H5P_DATASET_CREATE);
            char *name = wz_path("/%s/%s", tables[t].group, tables[t].columns[c].name);
            H5Pset_chunk(how, 1, &tables[t].chunk);
            r->set[t][c] = H5Dcreate2(r->file, name, type, space, links, how, H5P_DEFAULT);
            if (r->set[t][c] < 0) rc = h5_fail(r, name, err);
            free(name);
            H5Pclose(how);
            H5Sclose(space);
            H5Tclose(type);
        }
        r->len[t] = 0;
    }
    r->last = INT64_MIN;
    if (!rc && H5Fflush(r->file, H5F_SCOPE_LOCAL) < 0) rc = h5_fail(r, "flushing", err);
    if (!rc) rc = wz_journal_commit(r->file, err);
    if (rc) detach(r);
    H5Sclose(one);
    H5Tclose(str);
    H5Pclose(links);
    H5Pclose(access);
    return rc;
}

static int check_schema(const struct wz_record *r, struct wz_err *err)
{
    hid_t a = H5Aopen(r->file, "schema", H5P_DEFAULT), space = a < 0 ? -1 : H5Aget_space(a);
    int schema = 0;

    if (a >= 0 && H5Sget_simple_extent_npoints(space) == 1) H5Aread(a, H5T_NATIVE_INT, &schema);
    if (a >= 0) {
        H5Sclose(space);
        H5Aclose(a);
    }
    if (schema == SCHEMA) return 0;
    return schema ? wz_fail(err, "%s: a record of schema %d, %d is known", r->path, schema, SCHEMA)
                  : wz_fail(err, "%s: an HDF5 file, but not a record of episodes: it has no attribute schema", r->path);
}

static int attach_column(struct wz_record *r, int t, int c, hsize_t limit, struct wz_err *err)
{
    char *name = wz_path("/%s/%s", tables[t].group, tables[t].columns[c].name);
    hid_t set = H5Dopen2(r->file, name, H5P_DEFAULT), type, want, space;
    hsize_t len = 0;
    int rc = 0;

    r->set[t][c] = set;
    if (set < 0) {
        rc = h5_fail(r, name, err);
        goto out;
    }
    type = H5Dget_type(set);
    want = type_of(tables[t].columns[c].kind);
    space = H5Dget_space(set);
    bool fits = H5Tequal(type, want) > 0 && H5Sget_simple_extent_ndims(space) == 1;
    if (fits) H5Sget_simple_extent_dims(space, &len, NULL);
    if (c == 0) r->len[t] = len;
    if (!fits) rc = wz_fail(err, "%s: %s is not of the type that schema %d says", r->path, name, SCHEMA);
    else if (len != r->len[t] || len > limit)
        rc = wz_fail(err, "%s: %s has %llu rows, %llu were expected", r->path, name, (unsigned long long)len,
                     (unsigned long long)(len > limit ? limit : r->len[t]));
    H5Sclose(space);
    H5Tclose(want);
    H5Tclose(type);
out:
    free(name);
    return rc;
}

/* 0 open; 1 there is no file, or an empty one; -1 and a sentence, r->broken when it is what the file holds. */
static int attach(struct wz_record *r, unsigned flags, struct wz_err *err)
{
    struct stat st;

    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);     /* its errors become our sentences */
    r->file = -1;
    r->broken = false;
    if (wz_journal_recover(r->path, err) < 0) return -1;
    if (stat(r->path, &st) < 0 && errno == ENOENT) return 1;
    if (access(r->path, flags == H5F_ACC_RDWR ? R_OK | W_OK : R_OK) < 0 || wz_is_dir(r->path))
        return wz_fail(err, "%s: %s", r->path, wz_is_dir(r->path) ? "is a folder" : strerror(errno));
    if (st.st_size == 0) return 1;

    hid_t access = wz_journal_access();
    r->file = H5Fopen(r->path, flags, access);
    r->broken = true;
    if (r->file < 0) h5_fail(r, "can't be opened", err);
    H5Pclose(access);
    if (r->file < 0) return -1;
    if (check_schema(r, err) < 0) {
        r->broken = false;
        goto fail;
    }
    for (int t = 0; t < N_TABLES; t++)         /* a row takes at least a byte, which keeps absurd lengths out */
        for (int c = 0; c < tables[t].n; c++)
            if (attach_column(r, t, c, (hsize_t)st.st_size, err) < 0) goto fail;
    r->last = INT64_MIN;
    if (r->len[EPISODES] && column_read(r, EPISODES, 0, r->len[EPISODES] - 1, 1, &r->last, err) < 0) goto fail;
    r->broken = false;
    return 0;
fail:
    detach(r);
    return -1;
}

/* Renames a broken file to FILE.broken (.broken.2, ...) and says so. */
static int set_aside(struct wz_record *r, struct wz_err *err)
{
    char *to = wz_path("%s.broken", r->path);

    for (int i = 2; wz_file_exists(to); i++) {
        free(to);
        to = wz_path("%s.broken.%d", r->path, i);
    }
    int rc = rename(r->path, to) < 0 ? wz_fail(err, "%s: can't be renamed to %s: %s", r->path, to, strerror(errno)) : 0;
    if (!rc) wz_log("record broken, kept as %s, a new one is begun: %s", to, err->text);
    free(to);
    return rc;
}

/* To write: what is absent is created, what is broken is set aside first. */
static int attach_or_create(struct wz_record *r, struct wz_err *err)
{
    int rc = attach(r, H5F_ACC_RDWR, err);

    if (rc < 0 && r->broken && set_aside(r, err) == 0) rc = 1;
    return rc > 0 ? create(r, err) : rc;
}

struct wz_record *wz_record_open(const char *path, struct wz_err *err)
{
    struct wz_record *r = wz_alloc(sizeof *r);

    r->path = wz_strdup(path);
    if (attach_or_create(r, err) == 0) return r;
    free(r->path);
    free(r);
    return NULL;
}

int wz_record_close(struct wz_record *r, struct wz_err *err)
{
    if (!r) return 0;
    detach(r);
    free(r->path);
    free(r);
    return 0;
}

/* ---- appending ---------------------------------------------------------------------------------------------------- */

/* One column of the rows, as HDF5 takes it; strings stay the messages'. */
static void *gather(const struct column *c, const struct row *rows, size_t n)
{
    size_t size = kind_size[c->kind];
    uint8_t *out = wz_alloc(wz_mul(size, n));

    for (size_t i = 0; i < n; i++) {
        const void *from = c->at >= PLACE ? (const void *)&rows[i].place[c->at - PLACE] : (const char *)rows[i].message + c->at;
        if (c->kind == BOOL) out[i] = *(const protobuf_c_boolean *)from != 0;
        else if (c->kind == VERDICT) out[i] = (uint8_t)*(const Wz__Verdict *)from;
        else memcpy(out + i * size, from, size);
    }
    return out;
}

static int table_append(struct wz_record *r, int t, const struct row *rows, size_t n, struct wz_err *err)
{
    int rc = 0;

    for (int c = 0; c < tables[t].n && !rc; c++) {
        void *values = gather(&tables[t].columns[c], rows, n);
        rc = column_append(r, t, c, n, values, err);
        free(values);
    }
    return rc;
}

/* n floats, or, where a turn has none of them, as many NaN. */
static void put_floats(struct wz_buf *out, const float *values, size_t have, size_t n)
{
    const float nan_value = NAN;

    if (have) wz_buf_add(out, values, n * sizeof *values);
    else for (size_t i = 0; i < n; i++) wz_buf_add(out, &nan_value, sizeof nan_value);
}

static int tokens_append(struct wz_record *r, const struct row *turns, size_t n, struct wz_err *err)
{
    struct wz_buf context = {0}, ids[4] = {0};
    int rc;

    for (size_t i = 0; i < n; i++) {
        const Wz__Turn *t = turns[i].message;
        if (t->n_context) wz_buf_add(&context, t->context, t->n_context * sizeof *t->context);
        if (!t->n_ids) continue;
        wz_buf_add(&ids[IDS_IDS], t->ids, t->n_ids * sizeof *t->ids);
        put_floats(&ids[IDS_LOGP], t->logp, t->n_logp, t->n_ids);
        put_floats(&ids[IDS_REF], t->ref_logp, t->n_ref_logp, t->n_ids);
        put_floats(&ids[IDS_ADVANTAGE], t->advantage, t->n_advantage, t->n_ids);
    }
    rc = column_append(r, CONTEXT, 0, context.len / sizeof(int32_t), context.data, err);
    for (int c = 0; c < tables[IDS].n; c++) {
        if (!rc) rc = column_append(r, IDS, c, ids[c].len / sizeof(int32_t), ids[c].data, err);
        wz_buf_finish(&ids[c]);
    }
    wz_buf_finish(&context);
    return rc;
}

static int check(const struct wz_record *r, const Wz__Episode *e, int64_t last, struct wz_err *err)
{
    if (e->step < last)
        return wz_fail(err, "%s: step %lld can't follow step %lld", r->path, (long long)e->step, (long long)last);
    for (size_t i = 0; i < e->n_turns; i++) {
        const Wz__Turn *t = e->turns[i];
        if (t->n_logp != t->n_ids || (t->n_ref_logp && t->n_ref_logp != t->n_ids) || (t->n_advantage && t->n_advantage != t->n_ids))
            return wz_fail(err, "%s: step %lld, episode %u, turn %zu: %zu ids have %zu logp, %zu ref_logp and %zu advantages", r->path,
                           (long long)e->step, e->index, i, t->n_ids, t->n_logp, t->n_ref_logp, t->n_advantage);
    }
    return 0;
}

int wz_record_episodes(struct wz_record *r, Wz__Episode *const *episodes, int n, struct wz_err *err)
{
    size_t n_turns = 0, at = 0;
    hsize_t more[N_TABLES] = {0};

    if (r->file < 0 && attach_or_create(r, err) < 0) return -1;
    for (int i = 0; i < n; i++) {
        if (check(r, episodes[i], i ? episodes[i - 1]->step : r->last, err) < 0) return -1;
        n_turns += episodes[i]->n_turns;
    }
    if (!n) return 0;
    struct row *rows = wz_alloc(wz_mul(sizeof *rows, (size_t)n)), *turns = wz_alloc(wz_mul(sizeof *turns, n_turns));
    for (int i = 0; i < n; i++) {
        Wz__Episode *e = episodes[i];
        rows[i] = (struct row){ e, { (int64_t)(r->len[TURNS] + at), (int64_t)e->n_turns } };
        for (size_t k = 0; k < e->n_turns; k++) {
            Wz__Turn *t = e->turns[k];
            turns[at++] = (struct row){ t, { (int64_t)(r->len[CONTEXT] + more[CONTEXT]), (int64_t)t->n_context,
                (int64_t)(r->len[IDS] + more[IDS]), (int64_t)t->n_ids, (int64_t)t->n_ref_logp, (int64_t)t->n_advantage } };
            more[CONTEXT] += t->n_context;
            more[IDS] += t->n_ids;
        }
    }
    more[EPISODES] = (hsize_t)n;
    more[TURNS] = n_turns;
    int rc = tokens_append(r, turns, n_turns, err);
    if (!rc) rc = table_append(r, TURNS, turns, n_turns, err);
    if (!rc) rc = table_append(r, EPISODES, rows, (size_t)n, err);
    if (!rc && H5Fflush(r->file, H5F_SCOPE_LOCAL) < 0) rc = h5_fail(r, "flushing", err);
    if (!rc) rc = wz_journal_commit(r->file, err);
    free(rows);
    free(turns);
    if (rc) {
        detach(r);
        return -1;
    }
    for (int t = 0; t < N_TABLES; t++) r->len[t] += more[t];
    r->last = episodes[n - 1]->step;
    return 0;
}

int wz_record_truncate(const char *path, int64_t last, struct wz_err *err)
{
    struct wz_record r = { .path = wz_strdup(path) };
    int64_t *steps = NULL, from[N_TABLES] = {0};
    int rc = attach(&r, H5F_ACC_RDWR, err);

    if (rc < 0 && r.broken) rc = set_aside(&r, err) < 0 ? -1 : 1;
    if (rc) goto out;                          /* 1: nothing there, nothing to drop */
    steps = wz_alloc(wz_mul(sizeof *steps, r.len[EPISODES]));
    rc = column_read(&r, EPISODES, 0, 0, r.len[EPISODES], steps, err);
    while (!rc && (hsize_t)from[EPISODES] < r.len[EPISODES] && steps[from[EPISODES]] <= last) from[EPISODES]++;
    if (rc || (hsize_t)from[EPISODES] == r.len[EPISODES]) goto out;
    for (int t = 1; t < N_TABLES; t++) from[t] = (int64_t)r.len[t];
    rc = column_read(&r, EPISODES, column_index(EPISODES, "first_turn"), (hsize_t)from[EPISODES], 1, &from[TURNS], err);
    if (!rc && from[TURNS] >= 0 && (hsize_t)from[TURNS] < r.len[TURNS]) {
        rc = column_read(&r, TURNS, column_index(TURNS, "context_at"), (hsize_t)from[TURNS], 1, &from[CONTEXT], err);
        if (!rc) rc = column_read(&r, TURNS, column_index(TURNS, "ids_at"), (hsize_t)from[TURNS], 1, &from[IDS], err);
    }
    for (int t = 0; t < N_TABLES && !rc; t++) {
        hsize_t len = (hsize_t)from[t];
        if (from[t] < 0 || len > r.len[t]) rc = wz_fail(err, "%s: its rows point outside its tables", path);
        for (int c = 0; c < tables[t].n && !rc; c++)
            if (H5Dset_extent(r.set[t][c], &len) < 0) rc = h5_fail(&r, "truncating", err);
    }
    if (!rc && H5Fflush(r.file, H5F_SCOPE_LOCAL) < 0) rc = h5_fail(&r, "flushing", err);
    if (!rc) rc = wz_journal_commit(r.file, err);
out:
    detach(&r);
    free(steps);
    free(r.path);
    return rc < 0 ? -1 : 0;
}

/* ---- reading ------------------------------------------------------------------------------------------------------ */

/* Puts one column into the rows, the other way round than gather. */
static int scatter(const struct wz_record *r, int t, int c, hsize_t at, struct row *rows, hsize_t n, struct wz_err *err)
{
    const struct column *col = &tables[t].columns[c];
    size_t size = kind_size[col->kind];
    uint8_t *values = wz_alloc(wz_mul(size, n));
    int rc = column_read(r, t, c, at, n, values, err);

    for (hsize_t i = 0; i < n && !rc; i++) {
        void *to = col->at >= PLACE ? (void *)&rows[i].place[col->at - PLACE] : (char *)rows[i].message + col->at;
        const char *s = NULL;
        switch (col->kind) {
        case BOOL: *(protobuf_c_boolean *)to = values[i] != 0; break;
        case VERDICT: *(Wz__Verdict *)to = values[i] <= WZ__VERDICT__FAILED ? (Wz__Verdict)values[i] : WZ__VERDICT__NONE; break;
        case STR:
            memcpy(&s, values + i * size, sizeof s);
            wz_set_string(to, s ? s : "", s ? strlen(s) : 0);
            break;
        default: memcpy(to, values + i * size, size);
        }
    }
    if (!rc) column_reclaim(col->kind, n, values);
    free(values);
    return rc;
}

/* Rows of one table that lie together, after `at`: their places must say so. Returns the row after them, or -1. */
static int64_t span(const struct wz_record *r, int t, const struct row *rows, hsize_t n, int begin, int count, int64_t *at,
                    struct wz_err *err)
{
    int64_t end = n ? rows[0].place[begin] : 0;

    *at = end;
    for (hsize_t i = 0; i < n; i++) {
        int64_t k = rows[i].place[count];
        if (rows[i].place[begin] != end || end < 0 || k < 0 || (hsize_t)end > r->len[t] || (hsize_t)k > r->len[t] - (hsize_t)end)
            return wz_fail(err, "%s: its rows point outside /%s, or to each other's", r->path, tables[t].group);
        end += k;
    }
    return end;
}

static void *part(const void *from, size_t size, int64_t n)
{
    return memcpy(wz_realloc(NULL, size * (size_t)n), from, size * (size_t)n);
}

/* Token columns of the turns. */
static int tokens_read(const struct wz_record *r, struct row *turns, hsize_t n, struct wz_err *err)
{
    int64_t context_at, ids_at, context_end = span(r, CONTEXT, turns, n, 0, 1, &context_at, err), ids_end;
    int32_t *context, *values[4] = {0};
    int rc = -1;

    if (context_end < 0 || (ids_end = span(r, IDS, turns, n, 2, 3, &ids_at, err)) < 0) return -1;
    context = wz_alloc(wz_mul(4, (size_t)(context_end - context_at)));
    if (column_read(r, CONTEXT, 0, (hsize_t)context_at, (hsize_t)(context_end - context_at), context, err) < 0) goto out;
    for (int c = 0; c < 4; c++) {
        values[c] = wz_alloc(wz_mul(4, (size_t)(ids_end - ids_at)));
        if (column_read(r, IDS, c, (hsize_t)ids_at, (hsize_t)(ids_end - ids_at), values[c], err) < 0) goto out;
    }
    for (hsize_t i = 0; i < n; i++) {
        Wz__Turn *t = turns[i].message;
        const int64_t *p = turns[i].place, at = p[2] - ids_at;
        if ((p[4] && p[4] != p[3]) || (p[5] && p[5] != p[3])) {
            wz_fail(err, "%s: a turn has %lld ids and another number of values for them", r->path, (long long)p[3]);
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

/* Episodes [from, from+n) into out, which takes what was made also when -1 is returned. */
static int episodes_read(const struct wz_record *r, hsize_t from, hsize_t n, Wz__Episode **out, struct wz_err *err)
{
    struct row *rows = wz_alloc(wz_mul(sizeof *rows, n)), *turns = NULL;
    int64_t turns_at, turns_end;
    int rc = 0;

    for (hsize_t i = 0; i < n; i++) rows[i].message = out[i] = wz_episode_new();
    for (int c = 0; c < tables[EPISODES].n && !rc; c++) rc = scatter(r, EPISODES, c, from, rows, n, err);
    if (!rc && (turns_end = span(r, TURNS, rows, n, 0, 1, &turns_at, err)) < 0) rc = -1;
    if (rc) goto out;
    hsize_t n_turns = (hsize_t)(turns_end - turns_at), at = 0;
    turns = wz_alloc(wz_mul(sizeof *turns, n_turns));
    for (hsize_t i = 0; i < n; i++)
        for (int64_t k = 0; k < rows[i].place[1]; k++) turns[at++].message = wz_episode_turn(out[i]);
    for (int c = 0; c < tables[TURNS].n && !rc; c++) rc = scatter(r, TURNS, c, (hsize_t)turns_at, turns, n_turns, err);
    if (!rc) rc = tokens_read(r, turns, n_turns, err);
out:
    free(rows);
    free(turns);
    return rc;
}

/* Opens to read and reads the step of every episode (heap). */
static int attach_steps(struct wz_record *r, const char *path, int64_t **steps, struct wz_err *err)
{
    int rc;

    *steps = NULL;
    r->path = wz_strdup(path);
    rc = attach(r, H5F_ACC_RDONLY, err);
    if (rc > 0) rc = wz_fail(err, "%s: there is no record, or an empty file", path);
    if (rc < 0) return -1;
    *steps = wz_alloc(wz_mul(sizeof **steps, r->len[EPISODES]));
    return column_read(r, EPISODES, 0, 0, r->len[EPISODES], *steps, err);
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
    detach(&r);
    free(steps);
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
    detach(&r);
    free(r.path);
    return rc;
}
