/* What a run has written outlives a power failure. Every call that changes a file or a folder of a run is watched
 * (linked with --wrap), and the order must be: a file is written, then fsynced, then renamed into place, then its
 * folder is fsynced; pages of a record are written when their journal is on the disk, and the journal is deleted when
 * they are. At the end nothing is left that was not fsynced, but for the logs that guarantee 10 lets go. */
#include "command_help.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "reward/reward.h"

/* ---- what is not on the disk yet --------------------------------------------------------------------------- */

enum { MOST = 512 };
static struct {
    char *path;
    bool bytes, entry; /* its content; its entry in the folder */
} files[MOST];
static int n_files;
static char *root; /* only what lies below it is watched */
static char problem[1024];
static bool full, no_sync, no_folder_sync, no_close, no_list;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* checkpoints are written by a thread of their own */

static void broken(const char *what, const char *path)
{
    if (!problem[0]) snprintf(problem, sizeof problem, "%s: %s", path, what);
}

static int file_at(const char *path)
{
    int i = 0;

    while (i < n_files && strcmp(files[i].path, path)) i++;
    assert_true(i < MOST);
    if (i == n_files) files[n_files++].path = wz_strdup(path);
    return i;
}

/* The path of a descriptor, as the kernel knows it; false: not watched. */
static bool watched(int fd, char path[4096])
{
    char link[64];

    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = root ? readlink(link, path, 4095) : -1;
    if (n < 0) return false;
    path[n] = 0;
    return !strncmp(path, root, strlen(root));
}

static bool is_below(const char *path, const char *folder)
{
    size_t n = strlen(folder);

    return !strncmp(path, folder, n) && path[n] == '/';
}

static bool ends(const char *path, const char *with)
{
    size_t n = strlen(path), k = strlen(with);

    return n >= k && !strcmp(path + n - k, with);
}

static void wrote(int fd)
{
    char path[4096], *journal;
    struct stat st;

    if (!watched(fd, path)) return;
    pthread_mutex_lock(&lock);
    journal = wz_path("%s.journal", path);
    if (ends(path, ".h5") && stat(journal, &st) == 0 &&
        (files[file_at(journal)].bytes || files[file_at(journal)].entry))
        broken("written before its journal was on the disk", path);
    if (ends(path, ".h5") && stat(journal, &st) < 0) broken("written without a journal", path);
    free(journal);
    files[file_at(path)].bytes = true;
    files[file_at(path)].entry |= ends(path, ".journal") || (strstr(path, "/.half-") && !ends(path, ".tmp"));
    pthread_mutex_unlock(&lock);
}

ssize_t __real_write(int fd, const void *bytes, size_t n);
ssize_t __wrap_write(int fd, const void *bytes, size_t n);
ssize_t __real_pwrite64(int fd, const void *bytes, size_t n, off_t at);
ssize_t __wrap_pwrite64(int fd, const void *bytes, size_t n, off_t at);
int __real_fsync(int fd);
int __wrap_fsync(int fd);
int __real_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to);
int __real_mkdir(const char *path, mode_t mode);
int __wrap_mkdir(const char *path, mode_t mode);
int __real_sync_file_range(int fd, off64_t at, off64_t n, unsigned how);
int __wrap_sync_file_range(int fd, off64_t at, off64_t n, unsigned how);
int __real_close(int fd);
int __wrap_close(int fd);
struct dirent *__real_readdir64(DIR *d);
struct dirent *__wrap_readdir64(DIR *d);
int __real_unlink(const char *path);
int __wrap_unlink(const char *path);

ssize_t __wrap_write(int fd, const void *bytes, size_t n)
{
    wrote(fd);
    return __real_write(fd, bytes, n);
}

ssize_t __wrap_pwrite64(int fd, const void *bytes, size_t n, off_t at)
{
    wrote(fd);
    if (full) return 0;
    return __real_pwrite64(fd, bytes, n, at);
}

int __wrap_fsync(int fd)
{
    char path[4096];
    struct stat st;

    if (no_folder_sync && fstat(fd, &st) == 0 && S_ISDIR(st.st_mode)) {
        errno = EINVAL;
        return -1;
    }
    if (watched(fd, path)) {
        pthread_mutex_lock(&lock);
        for (int i = 0; i < n_files; i++) { /* a folder: what is in it, by name */
            const char *slash = strrchr(files[i].path, '/');
            if (is_below(files[i].path, path) && slash == files[i].path + strlen(path)) files[i].entry = false;
        }
        files[file_at(path)].bytes = false;
        pthread_mutex_unlock(&lock);
    }
    return 0; /* the disk need not turn for us */
}

int __wrap_rename(const char *from, const char *to)
{
    pthread_mutex_lock(&lock);
    int n = n_files;

    for (int i = 0; root && i < n; i++) {
        const bool self = !strcmp(files[i].path, from);
        if (!self && !is_below(files[i].path, from)) continue;
        if (files[i].bytes || (!self && files[i].entry)) broken("renamed before it was fsynced", files[i].path);
        if (self) files[i].entry = false;
    }
    if (root && !strncmp(to, root, strlen(root))) {
        files[file_at(to)].bytes = false;
        files[file_at(to)].entry = true;
    }
    pthread_mutex_unlock(&lock);
    return __real_rename(from, to);
}

int __wrap_mkdir(const char *path, mode_t mode)
{
    const int rc = __real_mkdir(path, mode);

    pthread_mutex_lock(&lock);
    if (rc == 0 && root && is_below(path, root)) files[file_at(path)].entry = true;
    pthread_mutex_unlock(&lock);
    return rc;
}

int __wrap_unlink(const char *path)
{
    if (root && !strncmp(path, root, strlen(root))) {
        pthread_mutex_lock(&lock);
        char *h5 = wz_strdup(path);
        if (ends(path, ".journal")) {
            h5[strlen(h5) - strlen(".journal")] = 0;
            if (files[file_at(h5)].bytes) broken("deleted before its pages were on the disk", path);
        }
        free(h5);
        files[file_at(path)].bytes = files[file_at(path)].entry = false;
        pthread_mutex_unlock(&lock);
    }
    return __real_unlink(path);
}

int __wrap_sync_file_range(int fd, off64_t at, off64_t n, unsigned how)
{
    if (!no_sync) return __real_sync_file_range(fd, at, n, how);
    errno = EIO;
    return -1;
}

int __wrap_close(int fd)
{
    const int rc = __real_close(fd);

    if (!no_close) return rc;
    errno = EDQUOT;
    return -1;
}

struct dirent *__wrap_readdir64(DIR *d)
{
    if (!no_list) return __real_readdir64(d);
    errno = EIO;
    return NULL;
}

/* ---- a run ------------------------------------------------------------------------------------------------- */

static void of_a_run_all_is_on_the_disk(void **state)
{
    static const char *const lost[] = { "/metrics.jsonl", "/evaluations.jsonl",
                                        "/.lock" }; /* and events.out.tfevents.* (guarantee 10) */
    static const char *const seen[] = { "/checkpoints/2",     "/checkpoints/3",
                                        "/recipe.yaml",       "/feedback/model.safetensors",
                                        "/manifest.json",     "/chain.jsonl",
                                        "/ledger.jsonl",      "/summary.csv",
                                        "/transcripts.jsonl", "/starts.jsonl",
                                        "/verdicts-0.jsonl",  "/episodes-0.h5.journal",
                                        "/episodes-0.h5",     "/feedback.moments.safetensors" };
    static const char judge[] = "#!/bin/sh\n"
                                "while IFS= read -r l; do id=${l#*:}; echo \"{\\\"id\\\":${id%%,*},\\\"harmful\\\":0,"
                                "\\\"refusal\\\":0}\"; done\n";
    char *script = test_scratch("judge.sh"), *world = test_scratch("world"), *run = test_scratch("run");
    struct wz_buf out = { 0 };
    unsigned known = 0;
    struct wz_err err;

    char *words = wz_path("sandbox %s", world);
    assert_int_equal(command(wz_cmd_sandbox, words, "", &out), 0);
    free(words);
    assert_int_equal(wz_file_write(script, judge, strlen(judge), &err), 0);
    chmod(script, 0700);
    words = wz_path("train recipes/sandbox.yaml agents.conversation.model=%s/base agents.feedback.model=%s/base "
                    "data.0.path=%s/prompts-dev.jsonl eval.0.path=%s/prompts-dev.jsonl evaluate.eval_limit=2 out=%s "
                    "stages.0.steps=1 stages.1.steps=2 stages.0.batch=8 stages.1.batch=8 checkpoint.every=1 threads=1 "
                    "judge.name=command judge.command=%s judge.world=no",
                    world, world, world, world, run, script);
    root = realpath(test_scratch(""), NULL);
    assert_int_equal(command(wz_cmd_train, words, "", &out), 0);
    if (problem[0]) fail_msg("%s", problem);
    for (int i = 0; i < n_files; i++) {
        const char *path = files[i].path;
        bool may_be_lost = strstr(path, "/events.out.") || (!is_below(path, run) && strcmp(path, run) != 0);
        for (size_t k = 0; k < WZ_COUNT(lost); k++) may_be_lost |= ends(path, lost[k]);
        if (!may_be_lost && (files[i].bytes || files[i].entry)) fail_msg("%s: not on the disk at the end", path);
        for (size_t k = 0; k < WZ_COUNT(seen); k++) known |= (unsigned)ends(path, seen[k]) << k;
    }
    assert_int_equal(known, (1u << WZ_COUNT(seen)) - 1);
    free(words);
    free(script);
    free(world);
    free(run);
    wz_buf_finish(&out);
}

/* A file of verdicts is in its folder, and a verdict in the file, when a batch has been answered. */
static void verdicts_are_on_the_disk(void **state)
{
    const struct wz_question q = { "p", "r", false };
    const struct wz_answer a = { .flags = WZ_JUDGED_REFUSAL };
    struct wz_err err;

    root = realpath(test_scratch(""), NULL);
    char *dir = wz_path("%s/answered", root), *path = wz_path("%s/verdicts-0.jsonl", dir);
    assert_int_equal(wz_mkdirs(dir, &err), 0);
    files[file_at(path)].entry = true; /* which it is about to make */
    struct wz_verdicts *v = wz_verdicts_open(dir, 0);
    wz_verdicts_add(v, 1, &q, &a);
    assert_true(files[file_at(path)].bytes);
    wz_verdicts_sync(v);
    assert_false(files[file_at(path)].bytes || files[file_at(path)].entry);
    wz_verdicts_close(v);
    free(root);
    root = NULL;
    unlink(path);
    rmdir(dir);
    free(dir);
    free(path);
}

/* POSIX lets a write that can put nothing return 0. */
static void a_write_of_nothing_is_a_full_disk(void **state)
{
    char *path = test_scratch("full");
    struct wz_err err;

    full = true;
    assert_int_equal(wz_file_write(path, "x", 1, &err), -1);
    full = false;
    assert_non_null(strstr(err.text, "No space left"));
    free(path);
}

/* NFS tells a file's full disk when it is closed, and never again. */
static void a_close_that_fails_is_a_full_disk(void **state)
{
    char *path = test_scratch("closed");
    struct wz_err err;

    wz_files_later(no_close = true);
    const int rc = wz_file_write(path, "x", 1, &err);
    wz_files_later(no_close = false);
    assert_int_equal(rc, -1);
    assert_non_null(strstr(err.text, path));
    assert_non_null(strstr(err.text, "quota exceeded"));
    free(path);
}

static void count(void *n) { ++*(int *)n; }

/* Each file of a tree is synced, or why not is said. */
static void a_tree_is_synced_or_it_is_said(void **state)
{
    char *dir = test_scratch("tree"), *path = wz_path("%s/file", dir);
    struct rlimit was, one;
    int beats = 0;
    struct wz_err err;

    assert_int_equal(wz_mkdirs(dir, &err), 0);
    assert_int_equal(wz_file_write(path, "x", 1, &err), 0);
    no_folder_sync = true;
    assert_int_equal(wz_tree_sync(dir, &err), 0);
    no_folder_sync = false;
    no_sync = true;
    assert_int_equal(wz_tree_sync(dir, &err), -1);
    no_sync = false;
    assert_non_null(strstr(err.text, "file: Input/output error"));
    assert_int_equal(truncate(path, 1LL << 30), 0); /* four pieces */
    wz_set_heartbeat(count, &beats);
    assert_int_equal(wz_tree_sync(dir, &err), 0);
    wz_set_heartbeat(NULL, NULL);
    assert_true(beats >= 4 + 2);
    no_list = true;
    assert_int_equal(wz_tree_sync(dir, &err), -1);
    no_list = false;
    assert_non_null(strstr(err.text, "tree: Input/output error"));
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &was), 0);
    const int next = open("/dev/null", O_RDONLY); /* the only descriptor that can be had now */
    __real_close(next);
    one = (struct rlimit){ (rlim_t)next + 1, was.rlim_max };
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &one), 0);
    const int rc = wz_tree_sync(dir, &err);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &was), 0);
    assert_int_equal(rc, -1);
    assert_non_null(strstr(err.text, "Too many open files"));
    free(path);
    free(dir);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(a_write_of_nothing_is_a_full_disk),
                                        cmocka_unit_test(a_close_that_fails_is_a_full_disk),
                                        cmocka_unit_test(a_tree_is_synced_or_it_is_said),
                                        cmocka_unit_test(verdicts_are_on_the_disk),
                                        cmocka_unit_test(of_a_run_all_is_on_the_disk) };

    if (argc < 2 || chdir(argv[1]) < 0) return 1; /* the source: the recipe names files in it */
    return cmocka_run_group_tests_name("durable", tests, NULL, NULL);
}
