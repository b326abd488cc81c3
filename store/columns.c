/* The columns of a record, and how HDF5 reads and writes one. */
#include "store/record.h"

#include <string.h>

const size_t wz_kind_size[] = { 8, 4, 8, 8, 1, 1, 1, sizeof(char *), 4, 4 };

#define E(field) offsetof(Wz__Episode, field)
static const struct wz_column episode_columns[] = {
    { "step", I64, E(step) },
    { "index", U32, E(index) },
    { "prompt", STR, E(prompt) },
    { "prompt_id", STR, E(prompt_id) },
    { "kind", STR, E(kind) },
    { "harmful", BOOL, E(harmful) },
    { "discard", STR, E(discard) },
    { "first_turn", I64, PLACE + 0 },
    { "n_turns", I64, PLACE + 1 },
    { "cut", STR, E(cut) },
    { "cut_agent", U32, E(cut_agent) },
    { "group", STR, E(group) },
    { "answer", STR, E(answer) },
    { "prefill", STR, E(prefill) },
    { "hijack", BOOL, E(hijack) },
    { "resets", U32, E(resets) },
    { "transition", STR, E(transition) },
    { "hash", U64, PLACE + 2 },
};
#define T(field) offsetof(Wz__Turn, field)
static const struct wz_column turn_columns[] = {
    { "agent", U32, T(agent) },
    { "round", U32, T(round) },
    { "version", U64, T(version) },
    { "weights", U64, T(weights) },
    { "truncated", BOOL, T(truncated) },
    { "text", STR, T(text) },
    { "valid", BOOL, T(valid) },
    { "unsafe", BOOL, T(unsafe) },
    { "overrefuse", BOOL, T(overrefuse) },
    { "feedback", STR, T(feedback) },
    { "reason", STR, T(reason) },
    { "verdict", VERDICT, T(verdict) },
    { "judged_unsafe", BOOL, T(judged_unsafe) },
    { "judged_overrefuse", BOOL, T(judged_overrefuse) },
    { "reward", F64, T(reward) },
    { "dir", F64, T(dir) },
    { "label", BOOL, T(label) },
    { "trained", BOOL, T(trained) },
    { "judge_error", STR, T(judge_error) },
    { "context_at", I64, PLACE + 0 },
    { "n_context", I64, PLACE + 1 },
    { "ids_at", I64, PLACE + 2 },
    { "n_ids", I64, PLACE + 3 },
    { "n_ref_logp", I64, PLACE + 4 },
    { "n_advantage", I64, PLACE + 5 },
    { "role", STR, T(role) },
    { "about", I32, T(about) },
    { "given", U32, T(given) },
    { "score", F64, T(score) },
    { "finish_reason", FINISH, T(finish_reason) },
    { "judged_partial", BOOL, T(judged_partial) },
    { "judgements_at", I64, PLACE + 6 },
    { "n_judgements", I64, PLACE + 7 },
    { "judged_refusal", BOOL, T(judged_refusal) },
    { "refusal_score", F64, T(refusal_score) },
    { "thought", U32, T(thought) },
    { "thought_ids", U32, T(thought_ids) },
    { "alike", BOOL, T(alike) },
};
#define J(field) offsetof(Wz__Judgement, field)
static const struct wz_column judgement_columns[] = {
    { "judge", U32, J(judge) },
    { "identity", U64, J(identity) },
    { "verdict", VERDICT, J(verdict) },
    { "harmful", BOOL, J(harmful) },
    { "refusal", BOOL, J(refusal) },
    { "score", F64, J(score) },
    { "refusal_score", F64, J(refusal_score) },
    { "error", STR, J(error) },
    { "partial", BOOL, J(partial) },
};
static const struct wz_column context_columns[] = { { "context", I32, 0 } };
static const struct wz_column ids_columns[] = {
    { "ids", I32, 0 },
    { "logp", F32, 0 },
    { "ref_logp", F32, 0 },
    { "advantage", F32, 0 },
};

const struct wz_h5_table wz_tables[N_TABLES] = {
    [EPISODES] = { "episodes", episode_columns, WZ_COUNT(episode_columns), 9, 512 },
    [TURNS] = { "turns", turn_columns, WZ_COUNT(turn_columns), 25, 1024 },
    [CONTEXT] = { "tokens", context_columns, WZ_COUNT(context_columns), 1, 32768 },
    [IDS] = { "tokens", ids_columns, WZ_COUNT(ids_columns), 4, 16384 },
    [JUDGEMENTS] = { "judgements", judgement_columns, WZ_COUNT(judgement_columns), 0, 1024 },
};
_Static_assert(WZ_COUNT(turn_columns) <= MAX_COLUMNS, "a table has more than MAX_COLUMNS columns");

/* ---- HDF5 ------------------------------------------------------------------------------------------------- */

static herr_t innermost(unsigned n, const H5E_error2_t *e, void *out)
{
    snprintf(out, 200, "%s", e->desc ? e->desc : "");
    return 1;
}

int wz_record_fail(const struct wz_record *r, const char *what, struct wz_err *err)
{
    char why[200] = "";

    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, innermost, why);
    return wz_fail(err, "%s: %s: HDF5: %s", r->path, what, *why ? why : "no reason given");
}

hid_t wz_column_type(enum wz_kind kind)
{
    static const char *const words[][5] = { [BOOL] = { "FALSE", "TRUE" },
                                            [VERDICT] = { "NONE", "JUDGED", "FAILED" },
                                            [FINISH] = { "UNKNOWN", "STOP", "LENGTH", "CONTEXT" } };
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
        for (int8_t i = 0; words[kind][i]; i++) H5Tenum_insert(t, words[kind][i], &i);
        return t;
    }
}

static hid_t rows_of(hid_t set, hsize_t at, hsize_t n)
{
    hid_t space = H5Dget_space(set);

    H5Sselect_hyperslab(space, H5S_SELECT_SET, &at, NULL, &n, NULL);
    return space;
}

int wz_column_append(struct wz_record *r, int t, int c, hsize_t n, const void *values, struct wz_err *err)
{
    hid_t set = r->set[t][c], type = wz_column_type(wz_tables[t].columns[c].kind), from, to;
    hsize_t len = r->len[t] + n;
    int rc = H5Dset_extent(set, &len) < 0 ? wz_record_fail(r, "extending a table", err) : 0;

    if (n && !rc) {
        from = H5Screate_simple(1, &n, NULL);
        to = rows_of(set, r->len[t], n);
        if (H5Dwrite(set, type, from, to, H5P_DEFAULT, values) < 0) rc = wz_record_fail(r, "appending to a table", err);
        H5Sclose(from);
        H5Sclose(to);
    }
    H5Tclose(type);
    return rc;
}

int wz_column_read(const struct wz_record *r, int t, int c, hsize_t at, hsize_t n, void *values, struct wz_err *err)
{
    hid_t set = r->set[t][c], type, from, to;
    int rc;

    if (!n) return 0;
    if (set < 0) {
        memset(values, 0, wz_kind_size[wz_tables[t].columns[c].kind] * n);
        return 0;
    }
    type = wz_column_type(wz_tables[t].columns[c].kind);
    to = H5Screate_simple(1, &n, NULL);
    from = rows_of(set, at, n);
    rc = H5Dread(set, type, to, from, H5P_DEFAULT, values) < 0 ? wz_record_fail(r, wz_tables[t].columns[c].name, err)
                                                               : 0;
    H5Sclose(from);
    H5Sclose(to);
    H5Tclose(type);
    return rc;
}

void wz_column_reclaim(enum wz_kind kind, hsize_t n, void *values)
{
    hid_t type, space;

    if (kind != STR || !n) return;
    type = wz_column_type(STR);
    space = H5Screate_simple(1, &n, NULL);
    H5Dvlen_reclaim(type, space, H5P_DEFAULT, values);
    H5Sclose(space);
    H5Tclose(type);
}

int wz_column_index(int t, const char *name)
{
    int c = 0;

    while (strcmp(wz_tables[t].columns[c].name, name)) c++;
    return c;
}
