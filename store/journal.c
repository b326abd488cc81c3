/* An HDF5 file driver with a write-ahead journal, because HDF5 writes its metadata in place in no defined order: a
 * process killed during a flush leaves a file that can't be opened.
 *
 *   H5Dwrite, H5Fflush ─▶ pages in memory ─▶ commit:  FILE.journal written, fsync, fsync of the folder  ◀─ commit point
 *                                                     pages written to FILE, fsync
 *                                                     FILE.journal removed
 *
 *   "WZJOURN1" │ u64 length of FILE after it │ u64 pages │ (u64 page number, 4096 bytes) * pages │ u64 XXH3
 *
 * The XXH3 is of all bytes before it.
 *
 * Killed before the journal is complete, its hash is wrong and FILE is untouched; killed after, who opens FILE to write
 * (the run, once it has its folder's lock) writes the pages again first. Who opens it to read changes no file, and
 * reads the journal's pages instead of FILE's. FILE itself is plain HDF5, which h5py and h5dump read; only where a
 * FILE.journal exists must the run be resumed first.
 *
 * A commit holds an exclusive flock, a reader a shared one, so that a report on a running run never sees a partial
 * commit. The writer waits up to 2 s for readers, then writes anyway (guarantee 10: a viewer can't stop a run); readers
 * fail with a message. */
#include "store/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#if H5_VERSION_GE(1, 13, 0)
#include <H5FDdevelop.h>
#endif

enum { PAGE = 4096, HEAD = 24, ENTRY = 8 + PAGE };
static const double lock_timeout = 2; /* seconds */

struct page {
    uint64_t key;
    uint8_t *bytes;
}; /* key: page number + 1; 0: free */

struct journal {
    H5FD_t base; /* first: HDF5 passes a pointer to it */
    char *path;
    int fd;
    haddr_t eoa, end;   /* end of the address space allocated by HDF5; length of the file after the commit */
    struct page *pages; /* hash table of uncommitted pages, cap a power of two, at most half full */
    size_t n, cap;
    struct wz_arena arena; /* their bytes */
};

static bool lock(int fd, int how)
{
    double until = wz_now() + lock_timeout;
    int spins = 0;

    while (flock(fd, how | LOCK_NB) < 0) {
        if (errno != EWOULDBLOCK && errno != EINTR) return true; /* a file system without locks */
        if (wz_now() > until) return false;
        wz_nap(&spins);
    }
    return true;
}

/* Bytes past the end of the file read as zeros. */
static int pread_all(int fd, uint8_t *bytes, size_t n, uint64_t at)
{
    for (ssize_t k; n && (k = pread(fd, bytes, n, (off_t)at)) != 0;) {
        if (k < 0 && errno == EINTR) continue;
        if (k < 0) return -1;
        bytes += k;
        n -= (size_t)k;
        at += (uint64_t)k;
    }
    memset(bytes, 0, n);
    return 0;
}

/* ---- the journal file ------------------------------------------------------------------------------------- */

static uint64_t get_u64(const uint8_t *p)
{
    uint64_t v;

    memcpy(&v, p, 8);
    return v;
}

static bool is_whole(const uint8_t *b, size_t len)
{
    if (len < HEAD + 8 || memcmp(b, "WZJOURN1", 8)) return false;
    return (len - HEAD - 8) % ENTRY == 0 && get_u64(b + 16) == (len - HEAD - 8) / ENTRY &&
           get_u64(b + len - 8) == wz_hash(b, len - 8, 0);
}

/* Writes the pages of a complete journal to the file. Idempotent. */
static int apply(int fd, const uint8_t *b, size_t len)
{
    for (const uint8_t *p = b + HEAD; p < b + len - 8; p += ENTRY)
        if (wz_write_at(fd, p + 8, PAGE, get_u64(p) * PAGE) < 0) return -1;
    return ftruncate(fd, (off_t)get_u64(b + 8)) < 0 || fsync(fd) < 0 ? -1 : 0;
}

/* The journal beside `path`, mapped: what a killed process left. 1: whole; 0: none, or not whole; -1 and a message. It
 * and the file must be regular files: a link could lead to a file that is not the run's. */
static int leftover(const char *path, struct wz_map *map, struct wz_err *err)
{
    char *name = wz_path("%s.journal", path);
    struct stat file, journal;
    int rc = 0;

    *map = (struct wz_map){ 0 };
    if (lstat(name, &journal) < 0) goto out;
    if (lstat(path, &file) < 0) rc = wz_fail(err, "%s: %s, and there is %s", path, strerror(errno), name);
    else if (!S_ISREG(file.st_mode) || !S_ISREG(journal.st_mode))
        rc = wz_fail(err, "%s: with a journal, expected both to be regular files; remove %s if it is not of this run",
                     path, name);
    else rc = wz_map_open(map, name, err);
    if (rc == 0) rc = is_whole(map->bytes, map->len);
out:
    free(name);
    return rc;
}

int wz_journal_recover(const char *path, bool write, uint64_t *size, struct wz_err *err)
{
    char *name = wz_path("%s.journal", path);
    struct wz_map map;
    struct stat st;
    int fd = -1, whole = leftover(path, &map, err), rc = whole < 0 ? -1 : 0;

    *size = stat(path, &st) < 0 ? 0 : (uint64_t)st.st_size;
    if (whole > 0) *size = get_u64(map.bytes + 8);
    if (!write || !map.bytes) goto out;
    fd = open(path, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (fd >= 0 && !lock(fd, LOCK_EX)) rc = wz_fail(err, "%s: another program is writing to it", path);
    else if (fd < 0 || (whole && apply(fd, map.bytes, map.len) < 0) || unlink(name) < 0)
        rc = wz_fail(err, "%s: %s, replaying %s", path, strerror(errno), name);
out:
    wz_map_close(&map);
    if (fd >= 0) close(fd);
    free(name);
    return rc;
}

static int by_key(const void *a, const void *b)
{
    const struct page *x = a, *y = b;

    return (x->key > y->key) - (x->key < y->key);
}

static void put_journal(struct journal *j, struct wz_buf *out)
{
    uint64_t head[2] = { j->end, j->n }, hash;
    size_t n = 0;

    for (size_t i = 0; i < j->cap; i++)
        if (j->pages[i].key) j->pages[n++] = j->pages[i];
    qsort(j->pages, n, sizeof *j->pages, by_key);
    wz_buf_add(out, "WZJOURN1", 8);
    wz_buf_add(out, head, sizeof head);
    for (size_t i = 0; i < n; i++) {
        uint64_t number = j->pages[i].key - 1;
        wz_buf_add(out, &number, 8);
        wz_buf_add(out, j->pages[i].bytes, PAGE);
    }
    hash = wz_hash(out->data, out->len, 0);
    wz_buf_add(out, &hash, 8);
    memset(j->pages, 0, sizeof *j->pages * j->cap);
    j->n = 0;
    wz_arena_reset(&j->arena);
}

int wz_journal_commit(hid_t file, struct wz_err *err)
{
    void *handle;
    struct wz_buf out = { 0 };
    int rc = -1, fd = -1;

    if (H5Fget_vfd_handle(file, H5P_DEFAULT, &handle) < 0) wz_die("a record was opened without its journal");
    struct journal *j = handle;
    struct stat st, at;
    char *name = wz_path("%s.journal", j->path);
    put_journal(j, &out);
    lock(j->fd, LOCK_EX);
    if (fstat(j->fd, &st) < 0 || stat(j->path, &at) < 0 || st.st_ino != at.st_ino || st.st_dev != at.st_dev) {
        errno = ESTALE; /* someone removed or replaced it while it was open */
        goto fail;
    }
    /* Space is allocated first: after the commit point a full disk must not stop the pages from being written. Not in a
     * new file, which is empty until its first commit. */
    off_t more = (off_t)((j->end + PAGE - 1) / PAGE * PAGE) - st.st_size;
    if (st.st_size && more > 0 && (errno = posix_fallocate(j->fd, st.st_size, more))) goto fail;
    fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666); /* opening the file has removed an old one */
    if (fd < 0) goto fail;
    if (wz_write_at(fd, out.data, out.len, 0) < 0 || fsync(fd) < 0 || wz_folder_sync(name, NULL) < 0) {
        int why = errno;
        unlink(name);
        errno = why;
        goto fail;
    }
    if (apply(j->fd, (const uint8_t *)out.data, out.len) < 0 || unlink(name) < 0) goto fail;
    rc = 0;
fail:
    if (rc < 0) wz_fail(err, "%s: %s", j->path, strerror(errno));
    if (fd >= 0) close(fd);
    flock(j->fd, LOCK_UN);
    wz_buf_finish(&out);
    free(name);
    return rc;
}

/* ---- pages in memory -------------------------------------------------------------------------------------- */

static struct page *slot_of(const struct journal *j, uint64_t key)
{
    size_t i = (size_t)(key * 0x9e3779b97f4a7c15u >> 20) & (j->cap - 1);

    while (j->pages[i].key && j->pages[i].key != key) i = (i + 1) & (j->cap - 1);
    return &j->pages[i];
}

static const uint8_t *page_find(const struct journal *j, uint64_t number)
{
    return j->n ? slot_of(j, number + 1)->bytes : NULL;
}

static void pages_grow(struct journal *j)
{
    struct page *old = j->pages;
    size_t cap = j->cap;

    j->cap = cap ? 2 * cap : 256;
    j->pages = wz_alloc(wz_mul(sizeof *j->pages, j->cap));
    for (size_t i = 0; i < cap; i++)
        if (old[i].key) *slot_of(j, old[i].key) = old[i];
    free(old);
}

/* A page to write into; *fresh: it is zero, and not yet what the file has there. */
static uint8_t *page_take(struct journal *j, uint64_t number, bool *fresh)
{
    if (2 * (j->n + 1) > j->cap) pages_grow(j);
    struct page *p = slot_of(j, number + 1);
    *fresh = !p->key;
    if (!p->key) {
        *p = (struct page){ number + 1, wz_arena_alloc(&j->arena, PAGE) };
        j->n++;
    }
    return p->bytes;
}

/* ---- the driver's callbacks ------------------------------------------------------------------------------- */

static H5FD_t *file_open(const char *path, unsigned flags, hid_t access, haddr_t max)
{
    bool writing = flags & H5F_ACC_RDWR;
    int how = (writing ? O_RDWR | O_NOFOLLOW : O_RDONLY | O_NONBLOCK) | (flags & H5F_ACC_CREAT ? O_CREAT : 0) |
              (flags & H5F_ACC_TRUNC ? O_TRUNC : 0);
    int fd = open(path, how | (flags & H5F_ACC_EXCL ? O_EXCL : 0) | O_CLOEXEC, 0666);
    struct stat st;

    if (fd < 0) return NULL;
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || (!writing && !lock(fd, LOCK_SH))) {
        close(fd);
        return NULL;
    }
    struct journal *j = wz_alloc(sizeof *j);
    struct wz_map map = { 0 };
    bool fresh;
    j->path = wz_strdup(path);
    j->fd = fd;
    j->end = (haddr_t)st.st_size;
    if (!writing && leftover(path, &map, NULL) > 0) {
        j->end = get_u64(map.bytes + 8);
        for (const uint8_t *p = map.bytes + HEAD; p < map.bytes + map.len - 8; p += ENTRY)
            memcpy(page_take(j, get_u64(p), &fresh), p + 8, PAGE);
    }
    wz_map_close(&map);
    return &j->base;
}

static herr_t file_close(H5FD_t *file)
{
    struct journal *j = (struct journal *)file;

    close(j->fd);
    free(j->path);
    free(j->pages);
    wz_arena_finish(&j->arena);
    free(j);
    return 0;
}

static herr_t file_query(const H5FD_t *file, unsigned long *flags)
{
    *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE |
             H5FD_FEAT_AGGREGATE_SMALLDATA | H5FD_FEAT_DEFAULT_VFD_COMPATIBLE;
    return 0;
}

static haddr_t get_eoa(const H5FD_t *file, H5FD_mem_t type) { return ((const struct journal *)file)->eoa; }

static herr_t set_eoa(H5FD_t *file, H5FD_mem_t type, haddr_t at)
{
    ((struct journal *)file)->eoa = at;
    return 0;
}

static haddr_t get_eof(const H5FD_t *file, H5FD_mem_t type) { return ((const struct journal *)file)->end; }

static herr_t get_handle(H5FD_t *file, hid_t access, void **handle)
{
    *handle = file;
    return 0;
}

static herr_t file_read(H5FD_t *file, H5FD_mem_t type, hid_t transfer, haddr_t at, size_t size, void *out)
{
    const struct journal *j = (const struct journal *)file;
    uint8_t *to = out;

    if (at > j->eoa || size > j->eoa - at) return -1;
    while (size) {
        const uint8_t *page = page_find(j, at / PAGE);
        size_t n = PAGE - at % PAGE < size ? PAGE - at % PAGE : size;
        if (page) {
            memcpy(to, page + at % PAGE, n);
        } else {
            while (n < size && !page_find(j, (at + n) / PAGE)) n += size - n < PAGE ? size - n : PAGE;
            if (pread_all(j->fd, to, n, at) < 0) return -1;
        }
        to += n;
        at += n;
        size -= n;
    }
    return 0;
}

static herr_t file_write(H5FD_t *file, H5FD_mem_t type, hid_t transfer, haddr_t at, size_t size, const void *bytes)
{
    struct journal *j = (struct journal *)file;
    const uint8_t *from = bytes;

    if (at > j->eoa || size > j->eoa - at) return -1;
    while (size) {
        size_t n = PAGE - at % PAGE < size ? PAGE - at % PAGE : size;
        bool fresh;
        uint8_t *page = page_take(j, at / PAGE, &fresh);
        if (fresh && pread_all(j->fd, page, PAGE, at / PAGE * PAGE) < 0) return -1;
        memcpy(page + at % PAGE, from, n);
        from += n;
        at += n;
        size -= n;
    }
    if (at > j->end) j->end = at;
    return 0;
}

static herr_t file_truncate(H5FD_t *file, hid_t transfer, hbool_t closing)
{
    struct journal *j = (struct journal *)file;

    j->end = j->eoa;
    return 0;
}

hid_t wz_journal_access(void)
{
    static const H5FD_class_t driver = {
#if H5_VERSION_GE(1, 13, 0)
        .version = H5FD_CLASS_VERSION,
        .value = (H5FD_class_value_t)600,
#endif
        .name = "waltz-journal",
        .maxaddr = (haddr_t)1 << 62,
        .fc_degree = H5F_CLOSE_STRONG,
        .open = file_open,
        .close = file_close,
        .query = file_query,
        .get_eoa = get_eoa,
        .set_eoa = set_eoa,
        .get_eof = get_eof,
        .get_handle = get_handle,
        .read = file_read,
        .write = file_write,
        .truncate = file_truncate,
        .fl_map = H5FD_FLMAP_DICHOTOMY,
    };
    static hid_t id;
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);

    if (!id) id = H5FDregister(&driver);
    if (id < 0 || H5Pset_driver(access, id, NULL) < 0) wz_die("HDF5 refuses the journal file driver");
    return access;
}
