/* episodes-<rank>.h5: every episode of a run, in columns. Schema 1:
 *
 *   /                attributes: schema = 1, writer = "waltz"
 *   /episodes/       per episode:  step i64, index u32, prompt, prompt_id, kind, discard str, harmful bool,
 *                    first_turn i64 (index into /turns), n_turns i64, cut str, cut_agent u32,
 *                    group, answer, prefill str, hijack bool, resets u32, transition str, hash u64
 *   /turns/          per turn:     agent, round u32, version, weights u64, truncated bool, text str,
 *                    valid, unsafe, overrefuse bool, feedback, reason str, verdict enum, judged_unsafe,
 *                    judged_overrefuse bool, reward, dir f64, label, trained bool, judge_error str,
 *                    context_at, n_context i64 (range of /tokens/context),
 *                    ids_at, n_ids i64 (range of /tokens/ids, logp, ref_logp, advantage), n_ref_logp, n_advantage i64,
 *                    role str, about i32 (index into the episode's turns, -1: none), given u32, score f64,
 *                    finish_reason enum, judged_partial bool, judgements_at, n_judgements i64 (range of /judgements),
 *                    judged_refusal bool, refusal_score f64, thought, thought_ids u32, alike bool
 *   /judgements/     per judgement of a reply by one judge: judge u32 (index in the recipe's list), identity u64,
 *                    verdict enum, harmful, refusal, partial bool, score, refusal_score f64, error str
 *   /tokens/         context i32; ids i32, logp f32, ref_logp f32, advantage f32, these four of one length. Where a
 *                    turn's n_ref_logp or n_advantage is 0, the column holds NaN for its tokens.
 *
 * Every column is a one-dimensional chunked dataset; str is variable-length UTF-8; bool is the enum that h5py reads as
 * bool. `pandas.DataFrame({k: f["episodes"][k][:] for k in f["episodes"]})` is the table. Episodes are appended in
 * order of steps, so the episodes of one step, their turns and their tokens are contiguous in each table. Columns are
 * only ever added: readers ignore those that they do not know, and read zeros for those that an older file lacks; a
 * writer adds them. proto/episode.proto explains the fields.
 *
 * hash is XXH3 of the episode as it is packed for other ranks, less its `place`, which no column has (0: the file was
 * begun before there were hashes). Who reads an episode packs it again and compares, so that a byte that has changed
 * anywhere in the file is either seen or decides nothing: HDF5's own checksums leave out text and the tree of chunks.
 *
 * A step is written atomically (journal.c). A file that is corrupt all the same (another program wrote to it, a disk
 * failed) is refused and left unchanged. Reading and cutting happen in a process apart (apart.c). */
#include "store/record.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- opening ---------------------------------------------------------------------------------------------- */

void wz_record_detach(struct wz_record *r)
{
    if (r->file >= 0) H5Fclose(r->file); /* with every dataset: H5F_CLOSE_STRONG */
    r->file = -1;
}

static int commit(const struct wz_record *r, struct wz_err *err)
{
    if (H5Fflush(r->file, H5F_SCOPE_LOCAL) < 0) return wz_record_fail(r, "flushing", err);
    return wz_journal_commit(r->file, err);
}

uint64_t wz_record_hash(const Wz__Episode *e)
{
    Wz__Episode bare = *e;
    struct wz_buf packed = { 0 };

    bare.place = 0;
    wz_episodes_pack((Wz__Episode *const[]){ &bare }, 1, &packed);
    uint64_t hash = wz_hash(packed.data, packed.len, 0);
    wz_buf_finish(&packed);
    return hash ? hash : 1;
}

/* Creates a column of r->len zeros. */
static int create_column(struct wz_record *r, int t, int c, struct wz_err *err)
{
    const hsize_t any = H5S_UNLIMITED;
    hid_t type = wz_column_type(wz_tables[t].columns[c].kind), space = H5Screate_simple(1, &r->len[t], &any);
    hid_t how = H5Pcreate(H5P_DATASET_CREATE), links = H5Pcreate(H5P_LINK_CREATE);
    char *name = wz_path("/%s/%s", wz_tables[t].group, wz_tables[t].columns[c].name);

    H5Pset_chunk(how, 1, &wz_tables[t].chunk);
    H5Pset_create_intermediate_group(links, 1);
    r->set[t][c] = H5Dcreate2(r->file, name, type, space, links, how, H5P_DEFAULT);
    int rc = r->set[t][c] < 0 ? wz_record_fail(r, name, err) : 0;
    free(name);
    H5Pclose(links);
    H5Pclose(how);
    H5Sclose(space);
    H5Tclose(type);
    return rc;
}

static int create(struct wz_record *r, struct wz_err *err)
{
    hid_t access = wz_journal_access(), str = wz_column_type(STR);
    hid_t one = H5Screate(H5S_SCALAR), a, b;
    const int schema = SCHEMA;
    const char *writer = "waltz";
    int rc = 0;

    r->file = H5Fcreate(r->path, H5F_ACC_TRUNC, H5P_DEFAULT, access);
    if (r->file < 0) rc = wz_fail(err, "%s: creating: %s", r->path, strerror(errno));
    a = r->file < 0 ? -1 : H5Acreate2(r->file, "schema", H5T_STD_I32LE, one, H5P_DEFAULT, H5P_DEFAULT);
    b = r->file < 0 ? -1 : H5Acreate2(r->file, "writer", str, one, H5P_DEFAULT, H5P_DEFAULT);
    if (!rc && (a < 0 || b < 0 || H5Awrite(a, H5T_NATIVE_INT, &schema) < 0 || H5Awrite(b, str, &writer) < 0))
        rc = wz_record_fail(r, "creating", err);
    if (a >= 0) H5Aclose(a);
    if (b >= 0) H5Aclose(b);
    for (int t = 0; t < N_TABLES && !rc; t++) {
        r->len[t] = 0;
        for (int c = 0; c < wz_tables[t].n && !rc; c++) rc = create_column(r, t, c, err);
    }
    r->last = INT64_MIN;
    if (!rc) rc = commit(r, err);
    if (rc) wz_record_detach(r);
    H5Sclose(one);
    H5Tclose(str);
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
    return schema ? wz_fail(err, "%s: expected a record of schema %d, got %d", r->path, SCHEMA, schema)
                  : wz_fail(err, "%s: an HDF5 file, but not a record of episodes: it has no attribute schema", r->path);
}

/* Not a link, which could lead to any file. */
static bool is_here(const struct wz_record *r, const char *name)
{
    H5L_info_t info;

    return H5Lget_info(r->file, name, &info, H5P_DEFAULT) >= 0 && info.type == H5L_TYPE_HARD;
}

/* Nor may a column's values lie in other files: those of chunks never do. */
static bool is_chunked(hid_t set)
{
    hid_t how = H5Dget_create_plist(set);
    bool chunked = how >= 0 && H5Pget_layout(how) == H5D_CHUNKED;

    if (how >= 0) H5Pclose(how);
    return chunked;
}

static int attach_column(struct wz_record *r, int t, int c, hsize_t limit, struct wz_err *err)
{
    char *name = wz_path("/%s/%s", wz_tables[t].group, wz_tables[t].columns[c].name);
    bool grouped = is_here(r, wz_tables[t].group); /* else nothing is looked for in it */
    bool lacks = c >= wz_tables[t].in_all && (H5Lexists(r->file, wz_tables[t].group, H5P_DEFAULT) == 0 ||
                                              (grouped && H5Lexists(r->file, name, H5P_DEFAULT) == 0));
    bool here = !lacks && grouped && is_here(r, name);
    hid_t set = here ? H5Dopen2(r->file, name, H5P_DEFAULT) : -1, type, want, space;
    hsize_t len = 0;
    int rc = 0;

    r->set[t][c] = set;
    if (lacks && c == 0) r->len[t] = 0;
    if (lacks) goto out;
    if (set < 0) {
        rc = wz_record_fail(r, name, err);
        goto out;
    }
    type = H5Dget_type(set);
    want = wz_column_type(wz_tables[t].columns[c].kind);
    space = H5Dget_space(set);
    bool fits = H5Tequal(type, want) > 0 && H5Sget_simple_extent_ndims(space) == 1 && is_chunked(set);
    if (fits) H5Sget_simple_extent_dims(space, &len, NULL);
    if (c == 0) r->len[t] = len;
    if (!fits) rc = wz_fail(err, "%s: %s is not of the type of schema %d", r->path, name, SCHEMA);
    else if (len != r->len[t] || len > limit)
        rc = wz_fail(err, "%s: %s: expected %llu values, got %llu", r->path, name,
                     (unsigned long long)(len > limit ? limit : r->len[t]), (unsigned long long)len);
    H5Sclose(space);
    H5Tclose(want);
    H5Tclose(type);
out:
    free(name);
    return rc;
}

/* Creates the columns that an older file lacks. */
static int add_columns(struct wz_record *r, struct wz_err *err)
{
    bool added = false;

    for (int t = 0; t < N_TABLES; t++)
        for (int c = 0; c < wz_tables[t].n; c++) {
            if (r->set[t][c] >= 0) continue;
            if (create_column(r, t, c, err) < 0) return -1;
            added = true;
        }
    return added ? commit(r, err) : 0;
}

int wz_record_attach(struct wz_record *r, unsigned flags, struct wz_err *err)
{
    const bool write = flags == H5F_ACC_RDWR;
    struct stat st;
    uint64_t size;

    H5Eset_auto2(H5E_DEFAULT, NULL, NULL); /* errors are reported by wz_record_fail instead */
    H5PLset_loading_state(0);              /* a file must not choose libraries to load */
    r->file = -1;
    if (wz_journal_recover(r->path, write, &size, err) < 0) return -1;
    if (stat(r->path, &st) < 0 && errno == ENOENT) return 1;
    if (access(r->path, write ? R_OK | W_OK : R_OK) < 0) return wz_fail(err, "%s: %s", r->path, strerror(errno));
    if (!S_ISREG(st.st_mode)) return wz_fail(err, "%s: expected a regular file", r->path);
    if (!size) return 1;

    hid_t access = wz_journal_access();
    r->file = H5Fopen(r->path, flags, access);
    if (r->file < 0) wz_record_fail(r, "can't be opened", err);
    H5Pclose(access);
    if (r->file < 0) return -1;
    if (check_schema(r, err) < 0) goto fail;
    for (int t = 0; t < N_TABLES; t++) /* a value takes at least a byte, so the file's size bounds the lengths */
        for (int c = 0; c < wz_tables[t].n; c++)
            if (attach_column(r, t, c, (hsize_t)size, err) < 0) goto fail;
    r->last = INT64_MIN;
    if (r->len[EPISODES] && wz_column_read(r, EPISODES, 0, r->len[EPISODES] - 1, 1, &r->last, err) < 0) goto fail;
    if (flags == H5F_ACC_RDWR && add_columns(r, err) < 0) goto fail;
    return 0;
fail:
    wz_record_detach(r);
    return -1;
}

static int attach_or_create(struct wz_record *r, struct wz_err *err)
{
    const int rc = wz_record_attach(r, H5F_ACC_RDWR, err);

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

void wz_record_close(struct wz_record *r)
{
    if (!r) return;
    wz_record_detach(r);
    free(r->path);
    free(r);
}

/* ---- appending -------------------------------------------------------------------------------------------- */

/* The values of one column, as HDF5 writes them: heap; strings are borrowed from the messages. */
static void *gather(const struct wz_column *c, const struct wz_row *rows, size_t n)
{
    size_t size = wz_kind_size[c->kind];
    uint8_t *out = wz_alloc(wz_mul(size, n));

    for (size_t i = 0; i < n; i++) {
        const void *from =
            c->at >= PLACE ? (const void *)&rows[i].place[c->at - PLACE] : (const char *)rows[i].message + c->at;
        if (c->kind == BOOL) out[i] = *(const protobuf_c_boolean *)from != 0;
        else if (c->kind == VERDICT || c->kind == FINISH) out[i] = (uint8_t) * (const int *)from;
        else memcpy(out + i * size, from, size);
    }
    return out;
}

static int table_append(struct wz_record *r, int t, const struct wz_row *rows, size_t n, struct wz_err *err)
{
    int rc = 0;

    for (int c = 0; c < wz_tables[t].n && !rc; c++) {
        void *values = gather(&wz_tables[t].columns[c], rows, n);
        rc = wz_column_append(r, t, c, n, values, err);
        free(values);
    }
    return rc;
}

/* n floats; n NaN where the turn has none. */
static void put_floats(struct wz_buf *out, const float *values, size_t have, size_t n)
{
    const float nan_value = NAN;

    if (have) wz_buf_add(out, values, n * sizeof *values);
    else
        for (size_t i = 0; i < n; i++) wz_buf_add(out, &nan_value, sizeof nan_value);
}

static int tokens_append(struct wz_record *r, const struct wz_row *turns, size_t n, struct wz_err *err)
{
    struct wz_buf context = { 0 }, ids[4] = { 0 };
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
    rc = wz_column_append(r, CONTEXT, 0, context.len / sizeof(int32_t), context.data, err);
    for (int c = 0; c < wz_tables[IDS].n; c++) {
        if (!rc) rc = wz_column_append(r, IDS, c, ids[c].len / sizeof(int32_t), ids[c].data, err);
        wz_buf_finish(&ids[c]);
    }
    wz_buf_finish(&context);
    return rc;
}

static int check(const struct wz_record *r, const Wz__Episode *e, int64_t last, struct wz_err *err)
{
    if (e->step < last)
        return wz_fail(err, "%s: expected a step >= %lld, got %lld", r->path, (long long)last, (long long)e->step);
    for (size_t i = 0; i < e->n_turns; i++) {
        const Wz__Turn *t = e->turns[i];
        if (t->n_logp != t->n_ids || (t->n_ref_logp && t->n_ref_logp != t->n_ids) ||
            (t->n_advantage && t->n_advantage != t->n_ids))
            return wz_fail(
                err, "%s: step %lld, episode %u, turn %zu: %zu ids, but %zu logp, %zu ref_logp and %zu advantages",
                r->path, (long long)e->step, e->index, i, t->n_ids, t->n_logp, t->n_ref_logp, t->n_advantage);
    }
    return 0;
}

int wz_record_episodes(struct wz_record *r, Wz__Episode *const *episodes, int n, struct wz_err *err)
{
    size_t n_turns = 0, at = 0;
    hsize_t more[N_TABLES] = { 0 };

    if (r->file < 0 && attach_or_create(r, err) < 0) return -1;
    for (int i = 0; i < n; i++) {
        if (check(r, episodes[i], i ? episodes[i - 1]->step : r->last, err) < 0) return -1;
        n_turns += episodes[i]->n_turns;
    }
    if (!n) return 0;
    struct wz_row *rows = wz_alloc(wz_mul(sizeof *rows, (size_t)n)), *turns = wz_alloc(wz_mul(sizeof *turns, n_turns));
    for (int i = 0; i < n; i++) {
        Wz__Episode *e = episodes[i];
        rows[i] =
            (struct wz_row){ e, { (int64_t)(r->len[TURNS] + at), (int64_t)e->n_turns, (int64_t)wz_record_hash(e) } };
        for (size_t k = 0; k < e->n_turns; k++) {
            Wz__Turn *t = e->turns[k];
            turns[at++] =
                (struct wz_row){ t,
                                 { (int64_t)(r->len[CONTEXT] + more[CONTEXT]), (int64_t)t->n_context,
                                   (int64_t)(r->len[IDS] + more[IDS]), (int64_t)t->n_ids, (int64_t)t->n_ref_logp,
                                   (int64_t)t->n_advantage, (int64_t)(r->len[JUDGEMENTS] + more[JUDGEMENTS]),
                                   (int64_t)t->n_judgements } };
            more[CONTEXT] += t->n_context;
            more[JUDGEMENTS] += t->n_judgements;
            more[IDS] += t->n_ids;
        }
    }
    more[EPISODES] = (hsize_t)n;
    more[TURNS] = n_turns;
    struct wz_row *judgements = wz_alloc(wz_mul(sizeof *judgements, more[JUDGEMENTS])), *next = judgements;
    for (size_t i = 0; i < n_turns; i++) {
        const Wz__Turn *t = turns[i].message;
        for (size_t k = 0; k < t->n_judgements; k++) *next++ = (struct wz_row){ .message = t->judgements[k] };
    }
    int rc = tokens_append(r, turns, n_turns, err);
    if (!rc) rc = table_append(r, JUDGEMENTS, judgements, more[JUDGEMENTS], err);
    if (!rc) rc = table_append(r, TURNS, turns, n_turns, err);
    if (!rc) rc = table_append(r, EPISODES, rows, (size_t)n, err);
    if (!rc) rc = commit(r, err);
    free(rows);
    free(turns);
    free(judgements);
    if (rc) {
        wz_record_detach(r);
        return -1;
    }
    for (int t = 0; t < N_TABLES; t++) r->len[t] += more[t];
    r->last = episodes[n - 1]->step;
    return 0;
}

struct cut {
    const char *path;
    int64_t last;
};

/* *end: behind what row `row` of table t refers to, by the columns at and count; 0 where there is no such row. */
static int end_of(const struct wz_record *r, int t, int64_t row, const char *at, const char *count, int64_t *end,
                  struct wz_err *err)
{
    const char *const names[] = { at, count };
    int64_t sum = 0;

    for (int i = 0; i < 2 && row >= 0; i++) {
        int64_t value;
        if (wz_column_read(r, t, wz_column_index(t, names[i]), (hsize_t)row, 1, &value, err) < 0) return -1;
        if (__builtin_add_overflow(sum, value, &sum)) sum = -1;
    }
    *end = sum;
    return 0;
}

/* Each table up to the end of what the last episode that stays refers to: what is cut off may be damaged. */
static int cut(void *arg, struct wz_buf *out, struct wz_err *err)
{
    const struct cut *cut = arg;
    struct wz_record r = { .path = wz_strdup(cut->path) };
    int64_t *steps, to[N_TABLES] = { 0 };
    int rc = wz_record_attach(&r, H5F_ACC_RDWR, err);

    if (rc) return rc < 0 ? -1 : 0; /* 1: no file, nothing to remove */
    steps = wz_alloc(wz_mul(sizeof *steps, r.len[EPISODES]));
    rc = wz_column_read(&r, EPISODES, 0, 0, r.len[EPISODES], steps, err);
    while (!rc && (hsize_t)to[EPISODES] < r.len[EPISODES] && steps[to[EPISODES]] <= cut->last) to[EPISODES]++;
    if (rc || (hsize_t)to[EPISODES] == r.len[EPISODES]) return rc;
    rc = end_of(&r, EPISODES, to[EPISODES] - 1, "first_turn", "n_turns", &to[TURNS], err);
    for (int t = 0; t < N_TABLES && !rc; t++) {
        hsize_t len = (hsize_t)to[t];
        if (to[t] < 0 || len > r.len[t])
            rc = wz_fail(err, "%s: an episode or turn points outside of the tables", cut->path);
        if (!rc && t == TURNS) rc = end_of(&r, TURNS, to[TURNS] - 1, "context_at", "n_context", &to[CONTEXT], err);
        if (!rc && t == TURNS) rc = end_of(&r, TURNS, to[TURNS] - 1, "ids_at", "n_ids", &to[IDS], err);
        if (!rc && t == TURNS)
            rc = end_of(&r, TURNS, to[TURNS] - 1, "judgements_at", "n_judgements", &to[JUDGEMENTS], err);
        for (int c = 0; c < wz_tables[t].n && !rc; c++)
            if (H5Dset_extent(r.set[t][c], &len) < 0) rc = wz_record_fail(&r, "truncating", err);
    }
    return rc ? rc : commit(&r, err);
}

int wz_record_truncate(const char *path, int64_t last, struct wz_err *err)
{
    struct cut it = { path, last };
    struct wz_buf none = { 0 };
    const int rc = wz_apart(path, cut, &it, &none, err);

    wz_buf_finish(&none);
    return rc;
}
