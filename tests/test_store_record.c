/* Guarantee: a record gives back every episode bit for bit, opens in h5py, and whatever instant a writer is killed
 * at, its file holds whole steps only: all that were appended before, and the one being appended entirely or not at
 * all. */
#include "test.h"

#include <math.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "store/record.h"

/* ---- a process that dies at its n-th change to a file (linked with --wrap) -------------------------------- */

static int die_at;    /* counts down; 0: never */
static bool die_torn; /* a write is half done first */

static int *changes; /* shared with the child: how many it made */

static void maybe_die(void)
{
    ++*changes;
    if (die_at && --die_at == 0) raise(SIGKILL);
}

ssize_t __real_pwrite64(int fd, const void *bytes, size_t n, off_t at);
ssize_t __wrap_pwrite64(int fd, const void *bytes, size_t n, off_t at);
int __real_ftruncate64(int fd, off_t len);
int __wrap_ftruncate64(int fd, off_t len);
int __wrap_fsync(int fd);
int __real_unlink(const char *path);
int __wrap_unlink(const char *path);
int __real_posix_fallocate64(int fd, off_t at, off_t n);
int __wrap_posix_fallocate64(int fd, off_t at, off_t n);

ssize_t __wrap_pwrite64(int fd, const void *bytes, size_t n, off_t at)
{
    if (die_torn && die_at == 1) __real_pwrite64(fd, bytes, n / 2 + 1, at);
    maybe_die();
    return __real_pwrite64(fd, bytes, n, at);
}

int __wrap_ftruncate64(int fd, off_t len)
{
    maybe_die();
    return __real_ftruncate64(fd, len);
}

int __wrap_fsync(int fd)
{
    maybe_die();
    return 0; /* a killed process loses nothing that it wrote: the disk need not turn for us */
}

int __wrap_unlink(const char *path)
{
    maybe_die();
    return __real_unlink(path);
}

int __wrap_posix_fallocate64(int fd, off_t at, off_t n)
{
    maybe_die();
    return __real_posix_fallocate64(fd, at, n);
}

/* ---- episodes --------------------------------------------------------------------------------------------- */

static uint32_t draw(int64_t step, uint32_t i, uint32_t what, uint32_t n)
{
    return wz_below((struct wz_key){ 5, WZ_RNG_TEST, (uint32_t)step, i, what, 0 }, n);
}

static void text(char **field, uint32_t a, uint32_t n)
{
    char s[64];
    int len = n ? snprintf(s, sizeof s, "\xc3\xa4 \"%u\"\n\xe2\x82\xac%*u", a, (int)n, n) : 0;

    wz_set_string(field, s, (size_t)len);
}

/* Episode i of a step, always the same one: every field used, lengths that vary, zero among them. */
static Wz__Episode *make(int64_t step, uint32_t i)
{
    Wz__Episode *e = wz_episode_new();
    uint32_t n_turns = draw(step, i, 1, 5);

    e->step = step;
    e->index = i;
    text(&e->prompt, i, 10);
    text(&e->prompt_id, i, draw(step, i, 2, 3));
    text(&e->kind, (uint32_t)step, 3);
    text(&e->group, i, draw(step, i, 3, 2));
    text(&e->answer, i + 1, draw(step, i, 4, 2));
    text(&e->prefill, i + 2, draw(step, i, 5, 2));
    text(&e->transition, i + 3, draw(step, i, 6, 2));
    e->hijack = i & 2;
    e->resets = 3 * i;
    e->harmful = i % 2;
    text(&e->discard, i, i % 3 ? 0 : 2);
    text(&e->cut, i, i % 2 ? 3 : 0);
    e->cut_agent = i;
    for (uint32_t k = 0; k < n_turns; k++) {
        Wz__Turn *t = wz_episode_turn(e);
        uint32_t n = draw(step, i, 100 + k, 40), m = draw(step, i, 200 + k, 60);
        t->agent = k % 2;
        t->round = k / 2;
        wz_set_string(&t->role, k % 2 ? WZ_FEEDBACK : WZ_CONVERSATION, k % 2 ? 8 : 12);
        t->about = (int32_t)k - 1;
        t->given = n / 3;
        t->score = k ? -0.0 : 0.1;
        t->version = (uint64_t)step << 33;
        t->weights = ~0ull - i;
        t->truncated = k & 1;
        t->finish_reason = (Wz__FinishReason)((k + i) % 4);
        text(&t->text, k, 8);
        t->valid = t->label = !(k & 1);
        t->unsafe = t->judged_overrefuse = k & 1;
        t->overrefuse = t->judged_unsafe = t->trained = k > 1;
        t->judged_partial = k == 1;
        t->judged_refusal = !(k & 2);
        t->refusal_score = k ? 0.3 : -0.0;
        t->thought = 5 * k;
        t->thought_ids = 3 * k;
        text(&t->feedback, k, k), text(&t->reason, k, 1), text(&t->judge_error, k, 0);
        t->verdict = (Wz__Verdict)(k % 3);
        t->reward = -0.1 * (double)k;
        t->dir = 1e-300;
        for (uint32_t q = 0; !(k & 1) && q < (i + k) % 3; q++) {
            Wz__Judgement *j = wz_turn_judgement(t);
            j->judge = q;
            j->identity = ~0ull - q;
            j->verdict = q ? WZ__VERDICT__FAILED : WZ__VERDICT__JUDGED;
            j->harmful = k & 2;
            j->refusal = !j->harmful;
            j->score = 1.0 / 3;
            j->refusal_score = -0.0;
            text(&j->error, k, q);
        }
        if (m) t->context = wz_realloc(NULL, 4 * m);
        for (t->n_context = 0; t->n_context < m; t->n_context++)
            t->context[t->n_context] = (int32_t)(t->n_context * 3 + i);
        if (!n) continue;
        wz_turn_reserve(t, n);
        for (uint32_t q = 0; q < n; q++) wz_turn_add(t, (int32_t)(q * 7), q ? -1.0f / (float)q : -0.0f);
        if (k < 2) {
            t->ref_logp = wz_realloc(NULL, 4 * n);
            for (; t->n_ref_logp < n; t->n_ref_logp++) t->ref_logp[t->n_ref_logp] = -(float)t->n_ref_logp;
        }
        if (k == 1) {
            t->advantage = wz_realloc(NULL, 4 * n);
            for (; t->n_advantage < n; t->n_advantage++) t->advantage[t->n_advantage] = NAN;
        }
    }
    return e;
}

enum { BATCH = 7 };

static void make_step(int64_t step, Wz__Episode **out)
{
    for (uint32_t i = 0; i < BATCH; i++) out[i] = make(step, i);
}

static void free_all(Wz__Episode **list, int n)
{
    for (int i = 0; i < n; i++) wz_episode_free(list[i]);
}

static int append(struct wz_record *r, int64_t step, struct wz_err *err)
{
    Wz__Episode *list[BATCH];

    make_step(step, list);
    for (uint32_t i = 0; i < BATCH; i++) list[i]->place = i; /* the record does not keep it */
    int rc = wz_record_episodes(r, list, BATCH, err);
    free_all(list, BATCH);
    return rc;
}

static void write_steps(const char *path, int64_t from, int64_t to)
{
    struct wz_err err = { "" };
    struct wz_record *r = wz_record_open(path, &err);

    if (!r) fail_msg("%s", err.text);
    for (int64_t s = from; s < to; s++)
        if (append(r, s, &err) < 0) fail_msg("%s", err.text);
    wz_record_close(r);
}

/* The file has step s as it was made. */
static void holds_step(const char *path, int64_t s)
{
    struct wz_err err = { "" };
    Wz__Episode *want[BATCH], **got;
    struct wz_buf a = { 0 }, b = { 0 };
    int k;

    if (wz_record_read(path, s, &got, &k, &err) < 0) fail_msg("%s", err.text);
    assert_int_equal(k, BATCH);
    make_step(s, want);
    wz_episodes_pack(want, BATCH, &a);
    wz_episodes_pack(got, k, &b);
    assert_int_equal(a.len, b.len);
    assert_memory_equal(a.data, b.data, a.len);
    free_all(want, BATCH);
    free_all(got, k);
    free(got);
    wz_buf_finish(&a);
    wz_buf_finish(&b);
}

/* The file holds steps [0, n) and nothing else, each as it was made. */
static void holds_steps(const char *path, int64_t n)
{
    struct wz_err err = { "" };
    int64_t *steps;
    int n_steps;

    if (wz_record_steps(path, &steps, &n_steps, &err) < 0) fail_msg("%s", err.text);
    assert_int_equal(n_steps, n);
    for (int64_t s = 0; s < n; s++) {
        assert_int_equal(steps[s], s);
        holds_step(path, s);
    }
    free(steps);
}

static char *path, *journal;

static int setup(void **state)
{
    static int n;
    char name[40];

    snprintf(name, sizeof name, "episodes-%d-%d.h5", (int)getpid(), n++);
    path = test_scratch(name);
    journal = wz_path("%s.journal", path);
    return 0;
}

static int teardown(void **state)
{
    unlink(path);
    unlink(journal);
    free(path);
    free(journal);
    return 0;
}

/* ---- cases ------------------------------------------------------------------------------------------------ */

static void what_goes_in_comes_out(void **state)
{
    struct wz_err err;
    Wz__Episode **got;
    int n;

    write_steps(path, 0, 3);
    write_steps(path, 3, 5); /* opened again to append */
    holds_steps(path, 5);
    assert_int_equal(wz_record_read(path, 9, &got, &n, &err), 0);
    assert_int_equal(n, 0);
    free(got);
    assert_false(wz_file_exists(journal));
}

/* A file begun before there were some columns is read, appended to and cut: of its own episodes they are empty. */
static void an_older_file_lacks_columns(void **state)
{
    static const char *const later[] = { "/episodes/cut",         "/episodes/cut_agent",  "/turns/finish_reason",
                                         "/turns/role",           "/turns/about",         "/turns/given",
                                         "/turns/score",          "/turns/judgements_at", "/turns/n_judgements",
                                         "/turns/judged_refusal", "/turns/refusal_score", "/episodes/answer",
                                         "/judgements",           "/episodes/hash" };
    struct wz_err err;
    Wz__Episode **got, *want[BATCH];
    int n;

    write_steps(path, 0, 2);
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
    for (size_t i = 0; i < WZ_COUNT(later); i++) assert_true(H5Ldelete(file, later[i], H5P_DEFAULT) >= 0);
    assert_true(H5Fclose(file) >= 0);
    for (int appended = 0; appended < 2; appended++) {
        if (wz_record_read(path, 1, &got, &n, &err) < 0) fail_msg("%s", err.text);
        make_step(1, want);
        for (int i = 0; i < n; i++) {
            assert_string_equal(got[i]->prompt, want[i]->prompt);
            assert_string_equal(got[i]->cut, "");
            assert_int_equal(got[i]->n_turns, want[i]->n_turns);
            for (size_t t = 0; t < got[i]->n_turns; t++) {
                assert_int_equal(got[i]->turns[t]->finish_reason, WZ__FINISH_REASON__UNKNOWN);
                assert_string_equal(wz_turn_finish(got[i]->turns[t]), "");
                assert_int_equal(got[i]->turns[t]->n_judgements, 0);
                assert_string_equal(got[i]->turns[t]->text, want[i]->turns[t]->text);
                assert_string_equal(got[i]->turns[t]->role, t % 2 ? "feedback" : "conversation");
                assert_int_equal(got[i]->turns[t]->about, ((const int[]){ -1, 0, 0, 2, 2 })[t]);
            }
        }
        free_all(want, BATCH);
        free_all(got, n);
        free(got);
        if (!appended) write_steps(path, 2, 4);
    }
    holds_step(path, 3);
    assert_int_equal(wz_record_truncate(path, -1, &err), 0);
    write_steps(path, 0, 2);
    holds_steps(path, 2);
}

static void steps_do_not_go_back(void **state)
{
    struct wz_err err;
    Wz__Episode *e = make(0, 3);

    write_steps(path, 0, 2);
    struct wz_record *r = wz_record_open(path, &err);
    assert_int_equal(append(r, 0, &err), -1);
    assert_non_null(strstr(err.text, "expected a step >= 1, got 0"));
    e->step = 2;
    e->turns[0]->n_logp--;
    assert_int_equal(wz_record_episodes(r, &e, 1, &err), -1);
    assert_non_null(strstr(err.text, "step 2, episode 3"));
    assert_int_equal(wz_record_episodes(r, NULL, 0, &err), 0);
    assert_int_equal(append(r, 2, &err), 0);
    wz_record_close(r);
    holds_steps(path, 3);
    e->turns[0]->n_logp++;
    wz_episode_free(e);
}

static void truncation_drops_what_came_after(void **state)
{
    struct wz_err err = { "" };

    assert_int_equal(wz_record_truncate(path, 3, &err), 0); /* nothing there, nothing to drop */
    write_steps(path, 0, 6);
    assert_int_equal(wz_record_truncate(path, 9, &err), 0);
    holds_steps(path, 6);
    assert_int_equal(wz_record_truncate(path, 3, &err), 0);
    holds_steps(path, 4);
    write_steps(path, 4, 7);
    holds_steps(path, 7);
    assert_int_equal(wz_record_truncate(path, -1, &err), 0);
    holds_steps(path, 0);
    write_steps(path, 0, 2);
    holds_steps(path, 2);
}

/* Runs fn in a child that is killed at its n-th change to a file; true: it was. */
static bool killed_at(int n, bool torn, void (*fn)(void))
{
    int status;
    pid_t child = fork();

    assert_true(child >= 0);
    if (child == 0) {
        *changes = 0;
        die_at = n;
        die_torn = torn;
        fn();
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFSIGNALED(status)) assert_int_equal(WTERMSIG(status), SIGKILL);
    else assert_int_equal(WEXITSTATUS(status), 0);
    return WIFSIGNALED(status);
}

/* The next place to die after n of `total`: every one at both ends, some of the many pages between; total + 1: no
 * more. */
static int next_death(int n, int total)
{
    do n++;
    while (n > 8 && n < total - 4 && n % 9);
    return n;
}

static int64_t child_step;

static void child_appends(void)
{
    struct wz_err err;
    struct wz_record *r = wz_record_open(path, &err);

    if (!r || append(r, child_step, &err) < 0) _exit(9);
    wz_record_close(r);
}

static _Noreturn void with_it(int status) { raise(SIGKILL), abort(); }

static void child_truncates(void)
{
    struct wz_err err;

    wz_set_rank(0, 1, with_it); /* the process apart is killed, and this one says so and ends */
    if (wz_record_truncate(path, 1, &err) < 0) _exit(9);
}

static void child_recovers(void)
{
    struct wz_err err;
    struct wz_record *r = wz_record_open(path, &err);

    if (!r) _exit(9);
    wz_record_close(r);
}

/* How many whole steps there are; each must be intact. */
static int64_t whole_steps(void)
{
    struct wz_err err = { "" };
    int64_t *steps;
    int n;

    if (wz_record_steps(path, &steps, &n, &err) < 0) fail_msg("%s", err.text);
    free(steps);
    holds_steps(path, n);
    return n;
}

static void killed_anywhere_steps_stay_whole(void **state)
{
    struct wz_err err;
    int kept = 0, lost = 0;

    child_step = 2;
    write_steps(path, 0, 2);
    assert_false(killed_at(0, false, child_appends));
    int total = *changes;
    assert_true(total > 12);
    for (int torn = 0; torn < 2; torn++) {
        for (int n = 1; n <= total; n = next_death(n, total)) {
            assert_int_equal(wz_record_truncate(path, 1, &err), 0);
            if (!killed_at(n, torn, child_appends)) continue;           /* fewer pages than the first time */
            if (n % 3 == 0) killed_at(1 + n % 4, torn, child_recovers); /* killed again while mending */
            int64_t have = whole_steps();
            assert_in_range(have, 2, 3);
            kept += have == 3;
            lost += have == 2;
            write_steps(path, have, 4); /* the run continues */
            holds_steps(path, 4);
        }
    }
    assert_true(kept > 5 && lost > 3); /* both outcomes were seen */
}

/* Its bytes may reach the disk in any order when the machine dies: the length is right, the middle is not. */
static void a_damaged_journal_does_not_count(void **state)
{
    struct wz_err err;
    struct wz_map map;

    child_step = 2;
    write_steps(path, 0, 2);
    for (int damaged = 1; damaged >= 0; damaged--) {
        assert_true(killed_at(3, false, child_appends)); /* the journal is whole, nothing of it applied */
        assert_int_equal(wz_map_open(&map, journal, &err), 0);
        uint8_t *bytes = wz_alloc(map.len);
        size_t n = map.len;
        memcpy(bytes, map.bytes, n);
        wz_map_close(&map);
        for (size_t i = n / 2; damaged && i < n / 2 + 512; i++) bytes[i] ^= 0xff;
        assert_int_equal(wz_file_write(journal, bytes, n, &err), 0);
        free(bytes);
        holds_steps(path, damaged ? 2 : 3);
        __real_unlink(journal);
    }
}

static void file_bytes(const char *name, struct wz_buf *out)
{
    struct wz_map map;
    struct wz_err err;

    wz_buf_clear(out);
    assert_int_equal(wz_map_open(&map, name, &err), 0);
    wz_buf_add(out, map.bytes, map.len);
    wz_map_close(&map);
}

/* Who reads a run that was killed sees what it had committed and changes no file, whoever owns them. */
static void reading_changes_nothing(void **state)
{
    struct wz_buf was[2] = { 0 }, is = { 0 };
    const char *const names[] = { path, journal };

    child_step = 2;
    write_steps(path, 0, 2);
    assert_true(killed_at(3, false, child_appends)); /* the journal is whole, nothing of it applied */
    for (int i = 0; i < 2; i++) file_bytes(names[i], &was[i]);
    holds_steps(path, 3);
    for (int i = 0; i < 2; i++) {
        file_bytes(names[i], &is);
        assert_int_equal(is.len, was[i].len);
        assert_memory_equal(is.data, was[i].data, is.len);
        wz_buf_finish(&was[i]);
    }
    write_steps(path, 3, 4); /* the run itself replays it */
    holds_steps(path, 4);
    wz_buf_finish(&is);
}

/* A folder from elsewhere may hold links in the place of a record: they lead to no file that is written to. */
static void a_journal_follows_no_link(void **state)
{
    struct wz_err err;
    struct wz_buf was = { 0 }, is = { 0 };
    char *other = wz_path("%s.other", path), *from[] = { path, journal };
    int64_t *steps;
    int n;

    for (int i = 0; i < 2; i++) { /* the file is a link, or its journal is */
        child_step = 2;
        write_steps(path, 0, 2);
        assert_true(killed_at(3, false, child_appends));
        assert_int_equal(rename(from[i], other), 0);
        assert_int_equal(symlink(other, from[i]), 0);
        file_bytes(other, &was);
        assert_int_equal(wz_record_steps(path, &steps, &n, &err), -1);
        assert_non_null(strstr(err.text, "expected both to be regular files"));
        assert_null(wz_record_open(path, &err));
        assert_non_null(strstr(err.text, "expected both to be regular files"));
        file_bytes(other, &is);
        assert_int_equal(is.len, was.len);
        assert_memory_equal(is.data, was.data, is.len);
        __real_unlink(path), __real_unlink(journal), __real_unlink(other);
    }
    wz_buf_finish(&was), wz_buf_finish(&is);
    free(other);
}

static void killed_in_truncation_steps_stay_whole(void **state)
{
    int kept = 0, dropped = 0;

    write_steps(path, 0, 4);
    assert_false(killed_at(0, false, child_truncates));
    int total = *changes;
    for (int n = 1; n <= total; n = next_death(n, total)) {
        __real_unlink(path), __real_unlink(journal);
        write_steps(path, 0, 4);
        assert_true(killed_at(n, n & 1, child_truncates));
        int64_t have = whole_steps();
        assert_true(have == 4 || have == 2);
        kept += have == 4;
        dropped += have == 2;
    }
    assert_true(kept > 1 && dropped > 1);
}

static void killed_at_birth_begins_anew(void **state)
{
    struct wz_err err;
    char *aside = wz_path("%s.broken", path);

    child_step = 0;
    assert_false(killed_at(0, false, child_appends));
    int total = *changes;
    for (int n = 1; n <= total; n = next_death(n, total)) {
        __real_unlink(path), __real_unlink(journal);
        assert_true(killed_at(n, n & 1, child_appends));
        struct wz_record *r = wz_record_open(path, &err);
        assert_non_null(r);
        assert_false(wz_file_exists(aside));
        wz_record_close(r);
        assert_in_range(whole_steps(), 0, 1);
    }
    free(aside);
}

/* Files stop growing: the step is refused, nothing of it is there, and with free space again the run continues. */
static void a_full_disk_refuses_the_step(void **state)
{
    struct rlimit old, small;
    struct wz_err err = { "" };
    struct stat st;

    write_steps(path, 0, 2);
    assert_int_equal(stat(path, &st), 0);
    signal(SIGXFSZ, SIG_IGN);
    struct wz_record *r = wz_record_open(path, &err);
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    int64_t step = 2;
    for (rlim_t room = 0; room < 3; room++) { /* no space for the journal, or none for the file */
        small.rlim_cur = room == 2 ? (rlim_t)st.st_size + 100 : 10000 * room + 100;
        setrlimit(RLIMIT_FSIZE, &small);
        int rc = 0;
        for (int tries = 0; rc == 0 && tries < 50; tries++) {
            rc = append(r, step, &err);
            if (rc == 0) step++;
        }
        setrlimit(RLIMIT_FSIZE, &old);
        assert_int_equal(rc, -1);
        assert_non_null(strstr(err.text, path));
        holds_steps(path, step);
    }
    assert_int_equal(append(r, step, &err), 0);
    wz_record_close(r);
    holds_steps(path, step + 1);
}

static void put(const char *name, const void *bytes, size_t n)
{
    FILE *f = fopen(name, "wb");

    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    fclose(f);
}

static int64_t file_size(const char *name)
{
    struct stat st;

    assert_int_equal(stat(name, &st), 0);
    return st.st_size;
}

/* Cut off at many places, or another file: one error message, and the file stays as it is. */
static void a_broken_file_is_refused(void **state)
{
    struct wz_err err;
    struct wz_buf whole = { 0 };
    Wz__Episode **got;
    int64_t episodes;
    int n;

    write_steps(path, 0, 2);
    file_bytes(path, &whole);
    for (size_t len = 1; len < whole.len; len += len < 600 ? 11 : 49999) {
        put(path, whole.data, len);
        err.text[0] = 0;
        assert_int_equal(wz_record_read(path, 0, &got, &n, &err), -1);
        assert_non_null(strstr(err.text, path));
        assert_null(got);
    }
    for (int i = 0; i < 2; i++) {
        put(path, i ? "not HDF5" : whole.data, i ? 8 : whole.len - 1);
        const int64_t size = file_size(path);
        assert_int_equal(wz_record_check(path, 9, &episodes, &err), -1);
        assert_int_equal(wz_record_truncate(path, 0, &err), -1);
        assert_null(wz_record_open(path, &err));
        assert_non_null(strstr(err.text, path));
        assert_int_equal(file_size(path), size);
    }
    wz_buf_finish(&whole);
    assert_int_equal(wz_record_read("/no/such/record.h5", 0, &got, &n, &err), -1);
    assert_null(wz_record_open("/no/such/record.h5", &err));
}

/* The last step is cut off and appended again, in a child: true, and the file is as it was; false: it was refused. */
static bool goes_on(void)
{
    struct wz_err err;
    int status;

    if (wz_record_truncate(path, 1, &err) < 0) return false;
    child_step = 2;
    pid_t child = fork();
    if (child == 0) {
        child_appends();
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!WIFEXITED(status)) fail_msg("appending ended by signal %d", WTERMSIG(status));
    return WEXITSTATUS(status) == 0;
}

/* A byte of the file has changed: either reading it says so, or it gives what was written, and it can be written on.
 * FLIPS=N: so many. */
static void a_flipped_byte_is_seen(void **state)
{
    struct wz_err err;
    struct wz_buf whole = { 0 };
    const char *wish = getenv("FLIPS");
    const uint32_t flips = wish ? (uint32_t)atoi(wish) : LIGHT ? 30 : 80;
    int seen = 0, died = 0, refused = 0;

    write_steps(path, 0, 3);
    file_bytes(path, &whole);
    for (uint32_t i = 0; i < flips; i++) {
        uint32_t at = draw(0, i, 0, (uint32_t)whole.len), mask = 1 + draw(0, i, 1, 255);
        for (uint32_t k = 0; i % 8 && k < whole.len && !whole.data[at]; k++) at = (at + 1) % (uint32_t)whole.len;
        whole.data[at] ^= (char)mask; /* most often one that is used: much of the file is room for more */
        put(path, whole.data, whole.len);
        whole.data[at] ^= (char)mask;
        int64_t n = 0;
        const int rc = wz_record_check(path, 9, &n, &err);
        if (rc == 0 && n == 3 * BATCH) {
            holds_steps(path, 3);
            if (goes_on()) holds_steps(path, 3);
            else refused++;
            continue;
        }
        if (rc < 0 && (!strstr(err.text, path) || strstr(err.text, "by status")))
            fail_msg("byte %u ^ %u: %s", at, mask, err.text);
        seen++;
        died += rc < 0 && strstr(err.text, "ended HDF5");
    }
    print_message("# of %u flips %d were seen, of which %d ended HDF5; %d others when it was written on\n", flips, seen,
                  died, refused);
    assert_true(seen > (int)flips / 8);
    wz_buf_finish(&whole);
}

/* Writes one value into a column. */
static void overwrite(const char *column, hsize_t at, hid_t type, const void *value)
{
    const hsize_t one = 1;
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT), set = H5Dopen2(file, column, H5P_DEFAULT);
    hid_t to = H5Dget_space(set), from = H5Screate_simple(1, &one, NULL);

    H5Sselect_hyperslab(to, H5S_SELECT_SET, &at, NULL, &one, NULL);
    assert_true(H5Dwrite(set, type, from, to, H5P_DEFAULT, value) >= 0);
    H5Sclose(from), H5Sclose(to), H5Dclose(set), H5Fclose(file);
}

/* An episode's own step has changed, to that of its neighbour: reading either step says so. */
static void a_changed_step_is_seen(void **state)
{
    struct wz_err err;
    Wz__Episode **got;
    int n;

    for (hsize_t at = BATCH - 1; at <= BATCH; at++) {
        const int64_t now = at == BATCH ? 0 : 1;
        write_steps(path, 0, 3);
        overwrite("/episodes/step", at, H5T_NATIVE_INT64, &now);
        for (int64_t step = 0; step < 2; step++) {
            assert_int_equal(wz_record_read(path, step, &got, &n, &err), -1);
            assert_non_null(strstr(err.text, "expected the hash"));
        }
        __real_unlink(path);
    }
}

/* What will be cut off must be whole, too: cutting off what is damaged may damage what stays. So must a number where
 * there is none: h5py shows it. */
static void a_check_reads_everything(void **state)
{
    struct wz_err err;
    const uint32_t agent = 77;
    const float one = 1;
    int64_t n;

    write_steps(path, 0, 3);
    assert_int_equal(wz_record_check(path, 2, &n, &err), 0);
    assert_int_equal(n, 2 * BATCH);
    overwrite("/episodes/cut_agent", 3 * BATCH - 1, H5T_NATIVE_UINT32, &agent);
    assert_int_equal(wz_record_check(path, 2, &n, &err), -1);
    assert_non_null(strstr(err.text, "step 2, episode 6: expected the hash"));
    __real_unlink(path);
    write_steps(path, 0, 1);
    overwrite("/tokens/advantage", 0, H5T_NATIVE_FLOAT, &one); /* of a first turn, which has none */
    assert_int_equal(wz_record_check(path, 2, &n, &err), -1);
    assert_non_null(strstr(err.text, "no ref_logp or advantage"));
}

/* A start that was killed before its first step leaves an empty file. */
static void an_empty_file_has_no_episodes(void **state)
{
    struct wz_err err;
    int64_t n = 7;

    put(path, "", 0);
    assert_int_equal(wz_record_check(path, 2, &n, &err), 0);
    assert_int_equal(n, 0);
    assert_int_equal(wz_record_truncate(path, 1, &err), 0);
    __real_unlink(path);
    assert_int_equal(wz_record_check(path, 2, &n, &err), -1);
    assert_non_null(strstr(err.text, "no such record"));
}

/* A column may not lead to another file, which could be a pipe that never ends. */
static void a_record_follows_no_link(void **state)
{
    static const char *const names[] = { "/turns/agent", "/judgements", "/episodes/step" };
    struct wz_err err;
    int64_t n;
    char *pipe = wz_path("%s.pipe", path);

    assert_int_equal(mkfifo(pipe, 0600), 0);
    for (size_t i = 0; i < WZ_COUNT(names); i++) {
        write_steps(path, 0, 1);
        hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
        H5Ldelete(file, names[i], H5P_DEFAULT);
        if (i < 2) assert_true(H5Lcreate_external(pipe, "/", file, names[i], H5P_DEFAULT, H5P_DEFAULT) >= 0);
        else { /* its values are in another file */
            hid_t how = H5Pcreate(H5P_DATASET_CREATE), space = H5Screate_simple(1, (hsize_t[]){ BATCH }, NULL);
            H5Pset_external(how, pipe, 0, 8 * BATCH);
            H5Dclose(H5Dcreate2(file, names[i], H5T_STD_I64LE, space, H5P_DEFAULT, how, H5P_DEFAULT));
            H5Sclose(space), H5Pclose(how);
        }
        H5Fclose(file);
        assert_int_equal(wz_record_check(path, 9, &n, &err), -1);
        assert_non_null(strstr(err.text, names[i]));
        __real_unlink(path);
    }
    __real_unlink(pipe);
    free(pipe);
}

/* ---- the process apart -------------------------------------------------------------------------------------- */

static int gives_limits(void *arg, struct wz_buf *out, struct wz_err *err)
{
    static const int what[] = { RLIMIT_CPU, RLIMIT_AS, RLIMIT_CORE };
    struct rlimit l;

    for (size_t i = 0; i < WZ_COUNT(what); i++) {
        getrlimit(what[i], &l);
        wz_buf_add(out, &l.rlim_cur, sizeof l.rlim_cur);
    }
    return 0;
}

static int crashes(void *arg, struct wz_buf *out, struct wz_err *err) { return raise(SIGABRT); }

static int runs_forever(void *arg, struct wz_buf *out, struct wz_err *err)
{
    setrlimit(RLIMIT_CPU, &(struct rlimit){ 1, 2 }); /* not the 30 s that it has */
    while (wz_now() > 0) continue;
    return 0;
}

static int eats_memory(void *arg, struct wz_buf *out, struct wz_err *err)
{
    for (int i = 0; i < 40; i++) wz_realloc(NULL, (size_t)1 << 26);
    return 0;
}

static int refuses(void *arg, struct wz_buf *out, struct wz_err *err) { return wz_fail(err, "no %s", (char *)arg); }

/* What the library does to itself on a damaged file, it does to a child: the caller has a sentence. */
static void what_dies_apart_is_an_error(void **state)
{
    static const struct {
        wz_apart_work *work;
        const char *says;
    } rows[] = {
        { crashes, "reading it ended HDF5 by signal 6" },
        { runs_forever, "reading it takes HDF5 more than 30 s" },
        { eats_memory, "reading it takes more than 1024 MB" },
        { refuses, "no luck" },
    };
    struct wz_buf out = { 0 };
    struct wz_err err;
    rlim_t limits[3];

    put(path, "1234", 4);
    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        if (LIGHT && rows[i].work == eats_memory) continue; /* the sanitizer's allocator ends the process itself */
        assert_int_equal(wz_apart(path, rows[i].work, (char[]){ "luck" }, &out, &err), -1);
        if (!strstr(err.text, rows[i].says)) fail_msg("%s", err.text);
    }
    assert_int_equal(wz_apart(path, gives_limits, NULL, &out, &err), 0);
    assert_int_equal(out.len, sizeof limits);
    memcpy(limits, out.data, sizeof limits);
    assert_int_equal(limits[0], 30);
    assert_true(limits[1] > (rlim_t)1 << 30 && limits[1] < RLIM_INFINITY);
    assert_int_equal(limits[2], 0);
    wz_buf_finish(&out);
}

/* h5py as its users write it. */
static void h5py_opens_it(void **state)
{
    static const char script[] =
        "import h5py, numpy as np, sys\n"
        "f = h5py.File(sys.argv[1], 'r')\n"
        "assert f.attrs['schema'] == 1\n"
        "e, t, k = f['episodes'], f['turns'], f['tokens']\n"
        "assert list(e['step'][:]) == [s for s in range(3) for _ in range(7)]\n"
        "assert e['harmful'].dtype == bool and list(e['harmful'][:7]) == [i % 2 == 1 for i in range(7)]\n"
        "assert e['prompt'].asstr()[3].startswith('\\u00e4 \"3\"\\n\\u20ac')\n"
        "assert e['hash'].dtype == np.uint64 and len(set(e['hash'][:])) == 21\n"
        "assert t['weights'].dtype == np.uint64 and t['reward'].dtype == np.float64\n"
        "assert h5py.check_enum_dtype(t['verdict'].dtype) == {'NONE': 0, 'JUDGED': 1, 'FAILED': 2}\n"
        "assert sum(e['n_turns'][:]) == len(t['agent'])\n"
        "for i in range(len(t['agent'])):\n"
        "    a, n = t['ids_at'][i], t['n_ids'][i]\n"
        "    assert list(k['ids'][a:a + n]) == [7 * q for q in range(n)]\n"
        "    assert all(k['logp'][a + 1:a + n] == np.float32(-1) / np.arange(1, n, dtype=np.float32)) if n else True\n"
        "    a, n = t['context_at'][i], t['n_context'][i]\n"
        "    assert all(np.diff(k['context'][a:a + n]) == 3)\n"
        "assert len(k['ids']) == len(k['logp']) == len(k['ref_logp']) == len(k['advantage']) == sum(t['n_ids'][:])\n"
        "assert len(k['context']) == sum(t['n_context'][:]) and len(t['agent']) == sum(e['n_turns'][:])\n";

    const char *python = getenv("WALTZ_PYTHON") ? getenv("WALTZ_PYTHON") : "python3";
    char *probe = wz_path("'%s' -c 'import h5py' 2>/dev/null", python);
    int absent = system(probe);
    struct wz_err err;

    free(probe);
    if (absent) SKIP("%s has no h5py", python);
    write_steps(path, 0, 5);
    assert_int_equal(wz_record_truncate(path, 1, &err), 0); /* nothing is left behind in any column */
    write_steps(path, 2, 3);
    char *name = wz_path("%s.py", path), *command = wz_path("'%s' '%s' '%s'", python, name, path);
    put(name, script, sizeof script - 1);
    assert_int_equal(system(command), 0);
    unlink(name);
    free(name);
    free(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_goes_in_comes_out, setup, teardown),
        cmocka_unit_test_setup_teardown(an_older_file_lacks_columns, setup, teardown),
        cmocka_unit_test_setup_teardown(steps_do_not_go_back, setup, teardown),
        cmocka_unit_test_setup_teardown(truncation_drops_what_came_after, setup, teardown),
        cmocka_unit_test_setup_teardown(killed_anywhere_steps_stay_whole, setup, teardown),
        cmocka_unit_test_setup_teardown(a_damaged_journal_does_not_count, setup, teardown),
        cmocka_unit_test_setup_teardown(reading_changes_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(a_journal_follows_no_link, setup, teardown),
        cmocka_unit_test_setup_teardown(killed_in_truncation_steps_stay_whole, setup, teardown),
        cmocka_unit_test_setup_teardown(killed_at_birth_begins_anew, setup, teardown),
        cmocka_unit_test_setup_teardown(a_full_disk_refuses_the_step, setup, teardown),
        cmocka_unit_test_setup_teardown(a_broken_file_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(a_flipped_byte_is_seen, setup, teardown),
        cmocka_unit_test_setup_teardown(a_changed_step_is_seen, setup, teardown),
        cmocka_unit_test_setup_teardown(a_check_reads_everything, setup, teardown),
        cmocka_unit_test_setup_teardown(an_empty_file_has_no_episodes, setup, teardown),
        cmocka_unit_test_setup_teardown(a_record_follows_no_link, setup, teardown),
        cmocka_unit_test_setup_teardown(what_dies_apart_is_an_error, setup, teardown),
        cmocka_unit_test_setup_teardown(h5py_opens_it, setup, teardown),
    };

    changes = mmap(NULL, sizeof *changes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return cmocka_run_group_tests_name("store_record", tests, NULL, NULL);
}
