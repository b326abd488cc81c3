/* base: errors, memory, byte buffers, files, time, threads, keyed randomness, hashes, JSON, UTF-8, bf16.
 * Every other module uses this one; it knows nothing of models or file formats.
 * Functions that can meet malformed input return 0 on success, and -1 with a message in `err`. */
#ifndef WZ_BASE_H
#define WZ_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <jansson.h>

#define WZ_COUNT(array)      (sizeof(array) / sizeof((array)[0]))
#define WZ_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))

/* ---- errors (error.c) ------------------------------------------------------------------------------------- */

/* One line that names the file, line, key or row and what was expected. Printed once, by the code that gives up. */
struct wz_err {
    char text[768];
};

/* Writes the message and returns -1, so that a caller can `return wz_fail(err, ...)`. err may be NULL. */
int wz_fail(struct wz_err *err, const char *fmt, ...) WZ_PRINTF(2, 3);

/* Prepends "place: " to the message in err; returns -1. */
int wz_fail_in(struct wz_err *err, const char *fmt, ...) WZ_PRINTF(2, 3);

/* For failures of the machine (memory, GPU, MPI): prints "waltz: rank R: ..." and ends the whole job with status 1. */
_Noreturn void wz_die(const char *fmt, ...) WZ_PRINTF(1, 2);

/* The same with status WZ_EXIT_AGAIN (EX_TEMPFAIL), where the same command may well succeed: a rank that is silent, a
 * network that is gone. A run that a signal has stopped after a checkpoint ends with it, too. */
enum { WZ_EXIT_AGAIN = 75 };
_Noreturn void wz_die_again(const char *fmt, ...) WZ_PRINTF(1, 2);

/* A line on stderr, prefixed "rank R: " once wz_set_rank was called with size > 1. Lower case, `key value`. */
void wz_log(const char *fmt, ...) WZ_PRINTF(1, 2);

/* Called once by comm: the rank shown in messages, and the function that aborts the whole job (NULL: exit). */
void wz_set_rank(int rank, int size, void (*abort_job)(int status));
int wz_rank(void);
int wz_ranks(void); /* how many this job has */

/* ---- memory (memory.c) ------------------------------------------------------------------------------------ */

/* Out of memory ends the process (wz_die); free() what these return. */
void *wz_alloc(size_t size);            /* zeroed, 64-byte aligned */
enum { WZ_HUGE_PAGE = 1 << 21 };        /* bytes */
size_t wz_alloc_size(size_t size);      /* bytes that wz_alloc(size) takes: whole cache lines, or whole huge pages */
void *wz_realloc(void *p, size_t size); /* not zeroed, alignment of malloc */
char *wz_strdup(const char *s);
void wz_forget(void *p, size_t n); /* returns the whole pages in [p, p + n) to the system: they read as zeros again */
size_t wz_mul(size_t a, size_t b); /* a * b for sizes that input decides; overflow ends the process */

/* Memory of this host and how much is unused, in bytes, within the limits of this process's control group (a
 * container, a Slurm job). */
void wz_host_memory(size_t *total, size_t *unused); /* host.c */
char *wz_host_processor(void);                      /* its name, or its architecture: heap; host.c */

/* Names the running kernel of this machine (its boot id): all containers of a machine have the same, whatever their
 * host names; two machines of one host name have different ones. Where the kernel does not tell, the host's name. */
void wz_host_id(char id[64]); /* host.c */

/* Arena: many small allocations with one lifetime. A zeroed struct is empty and ready; reset keeps the memory. */
struct wz_arena {
    struct wz_block *blocks;
};
void *wz_arena_alloc(struct wz_arena *arena, size_t size); /* zeroed, 16-byte aligned */
char *wz_arena_strdup(struct wz_arena *arena, const char *s);
void wz_arena_reset(struct wz_arena *arena);
void wz_arena_finish(struct wz_arena *arena);

/* Growing byte buffer. A zeroed struct is empty; `data` is NUL-terminated once anything was added. */
struct wz_buf {
    char *data;
    size_t len, cap;
};
void wz_buf_add(struct wz_buf *buf, const void *bytes, size_t n);
void wz_buf_str(struct wz_buf *buf, const char *s);
void wz_buf_printf(struct wz_buf *buf, const char *fmt, ...) WZ_PRINTF(2, 3);
void wz_buf_clear(struct wz_buf *buf); /* len 0, memory kept */
void wz_buf_finish(struct wz_buf *buf);

/* ---- files (file.c) --------------------------------------------------------------------------------------- */

/* A whole file mapped read-only. `bytes` lives until close. An empty file has bytes "" and len 0. */
struct wz_map {
    const uint8_t *bytes;
    size_t len;
};
int wz_map_open(struct wz_map *map, const char *path, struct wz_err *err);
void wz_map_close(struct wz_map *map); /* accepts zero */

/* The lines of bytes in memory, one by one: `while (wz_lines_next(&lines))`. */
struct wz_lines {
    const char *line; /* [n], without its '\n' */
    size_t n;
    int number; /* of the line, from 1 */
    bool ended; /* with '\n'; the last line may lack it */
    const char *rest;
    size_t n_rest;
};
struct wz_lines wz_lines_begin(const void *bytes, size_t n);
bool wz_lines_next(struct wz_lines *lines); /* false: there are no more */

bool wz_file_exists(const char *path);
bool wz_is_dir(const char *path);
int wz_mkdirs(const char *path, struct wz_err *err); /* mkdir -p */
/* pwrite of all n bytes; a file opened with O_APPEND gets them at its end. -1 and errno. */
int wz_write_at(int fd, const void *bytes, size_t n, uint64_t at);
/* A new file, or one that replaces another: written to path.tmp, fsynced and renamed to path, whose folder is fsynced.
 * So a reader sees the old file or the new one, never half, after a power failure too. `path` must be a regular file
 * where it exists, not a device or a link; no link at path.tmp is followed. begin initialises *file; end frees it,
 * whole or (whole false: deletes it and returns -1, err unchanged) not. */
struct wz_file {
    int fd;
    uint64_t len;
    char *path, *tmp;
};
int wz_file_begin(struct wz_file *file, const char *path, struct wz_err *err);
int wz_file_put(struct wz_file *file, const void *bytes, size_t n, struct wz_err *err);
int wz_file_end(struct wz_file *file, bool whole, struct wz_err *err);
int wz_file_write(const char *path, const void *bytes, size_t n, struct wz_err *err); /* all three */
/* Appends and fsyncs; creates a missing file, follows no link. On -1 part of it may have been written. */
int wz_file_append(const char *path, const void *bytes, size_t n, struct wz_err *err);
/* Locks a file that is open to write, until all descriptors of this opening are closed. Who may only read the file
 * can't hold its lock (as one can with flock). False: another opening has it, and `wait` is false. True also on file
 * systems without locks. */
bool wz_lock(int fd, bool wait);
int wz_rename(const char *from, const char *to, struct wz_err *err); /* and fsyncs the folder of `to` */
int wz_folder_sync(const char *path, struct wz_err *err);            /* fsyncs the folder that holds `path` */
/* on: this thread now writes files in place and fsyncs nothing: in a folder that nobody reads before wz_tree_sync has
 * fsynced all that is in it, with a wz_heartbeat at each 256 MB. */
void wz_files_later(bool on);
int wz_tree_sync(const char *path, struct wz_err *err);
char *wz_path(const char *fmt, ...) WZ_PRINTF(1, 2); /* heap; free() it */

/* ---- time (time.c) ---------------------------------------------------------------------------------------- */

double wz_now(void);         /* seconds, monotonic */
double wz_thread_time(void); /* seconds of a processor that this thread has used */
double wz_wall(void);        /* seconds since 1970 */
void wz_nap(int *spins);     /* one turn of a polling loop: yield 20 times, then sleep 50 us doubling to 1 ms */

/* Called again and again by code that may compute for minutes: other ranks that wait meanwhile are told that this one
 * is at work. comm sets, on the thread that calls MPI, what tells them (NULL: nobody listens), and run, on the thread
 * that syncs a checkpoint, what tells the first; other threads tell nobody. */
void wz_heartbeat(void);
void wz_set_heartbeat(void (*tell)(void *arg), void *arg);

/* ---- cores (cores.c) -------------------------------------------------------------------------------------- */

/* The cores this process may use, and which of them its threads run on. Results never depend on any of it. */
enum { WZ_THREADS = 4096 }; /* most threads of one process */
struct wz_cores {
    int machine, cores, nodes; /* physical cores of the machine, of the affinity mask; NUMA nodes of the mask */
    int threads;
    int units[WZ_THREADS]; /* OS number of a hardware thread (PU) for each thread, each on its own core, node by node */
    bool bound;            /* a pool binds its threads to these units, all but the caller's; false: a report only */
};
/* Threads of rank `index` of the `ranks` that share the mask's cores and compute at the same time (0: the number given
 * to wz_set_beside). wanted: number of threads, or <= 0: the rank's share of the cores, one thread each, at least 1. */
void wz_cores_here(struct wz_cores *cores, int ranks, int index, int wanted);
char *wz_cores_mask(void); /* hardware threads of the affinity mask as "0-3,8-11"; free() it */
bool wz_cores_overlap(const char *a, const char *b); /* do two such masks overlap? */
void wz_set_beside(int ranks); /* called once by comm: how many ranks' masks overlap this one's, itself included */

/* ---- threads (pool.c) ------------------------------------------------------------------------------------- */

/* A fixed set of threads that run the tasks of one job, with a barrier at its end. Tasks are defined by their index
 * alone, so results do not depend on the number of threads. Idle threads spin briefly, then sleep. */
struct wz_pool;
struct wz_pool *wz_pool_create(int threads); /* <= 0: the default of wz_cores_here */
void wz_pool_destroy(struct wz_pool *pool);
int wz_pool_threads(const struct wz_pool *pool);
/* Calls fn(arg, i) once for each i in [0, n), over all threads; returns when all are done. NULL pool: serially. */
void wz_pool_run(struct wz_pool *pool, int n, void (*fn)(void *arg, int i), void *arg);

/* ---- randomness (rng.c) ----------------------------------------------------------------------------------- */

/* Philox4x32-10 (Salmon et al. 2011): random bits as a pure function of a key, not a stream (guarantee 2).
 * A key is the run's seed, the purpose of the draw, and up to four coordinates (step, episode, ..). */
enum wz_purpose {
    WZ_RNG_TOKEN = 1,
    WZ_RNG_SHUFFLE,
    WZ_RNG_SAMPLE,
    WZ_RNG_INIT,
    WZ_RNG_WORLD,
    WZ_RNG_DATA,
    WZ_RNG_TEST,
    WZ_RNG_BOOTSTRAP,
    WZ_RNG_PREFILL,
    WZ_RNG_JUDGE,
    WZ_RNG_ATTACK
};
struct wz_key {
    uint64_t seed;
    uint32_t purpose, a, b, c, d;
};
void wz_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);
uint64_t wz_random(struct wz_key key);            /* 64 uniform bits */
double wz_uniform(struct wz_key key);             /* [0, 1), 53 bits */
uint32_t wz_below(struct wz_key key, uint32_t n); /* [0, n) without bias */
double wz_normal(struct wz_key key);              /* mean 0, variance 1 (Box-Muller) */

/* ---- hashes (hash.c) -------------------------------------------------------------------------------------- */

uint64_t wz_hash(const void *bytes, size_t n, uint64_t seed); /* XXH3-64 */
/* Hash of a large array, computed by all threads: from h = 0, h = XXH3(hash of the next WZ_PIECE bytes, seed h).
 * pool may be NULL. Calls wz_heartbeat now and then. */
enum { WZ_PIECE = 1 << 18 };
uint64_t wz_hash_pieces(struct wz_pool *pool, const void *bytes, size_t n);
/* That recurrence alone, for pieces hashed elsewhere (on a GPU): h after n more piece hashes. */
uint64_t wz_hash_join(uint64_t h, const uint64_t *pieces, size_t n);

/* ---- JSON (json.c); jansson is the library ---------------------------------------------------------------- */

/* Parses text or a file as RFC 8259 has it: a number beyond 64 bits is the nearest double; strings may hold \u0000,
 * where json_string_value ends: use json_string_length or wz_json_text. Duplicate keys are an error. On error NULL and
 * a message with line and column (err NULL: none). The caller calls json_decref. */
json_t *wz_json_parse(const char *text, size_t n, const char *name, struct wz_err *err);
json_t *wz_json_load(const char *path, struct wz_err *err);
/* The text of a JSON string, borrowed from it, with U+FFFD in the place of every NUL; NULL where it is no string. */
const char *wz_json_text(json_t *value);
/* Writes root indented, by wz_file_write, and releases it. */
int wz_json_save(json_t *root, const char *path, struct wz_err *err);
/* Appends s[0..n) as a quoted JSON string; invalid UTF-8 becomes U+FFFD, and what terminals obey is escaped. */
void wz_json_string(struct wz_buf *out, const char *s, size_t n);
/* json_dumps with JSON_ENCODE_ANY and `flags`, whose text a terminal can show: what it obeys is escaped. Heap. */
char *wz_json_dump(const json_t *value, size_t flags);

/* ---- UTF-8 (utf8.c) --------------------------------------------------------------------------------------- */

/* Length in bytes of the longest valid prefix of s[0..n): n if all of it is valid UTF-8. */
size_t wz_utf8_valid(const char *s, size_t n);
/* Bytes of the byte-order mark that s[0..n) begins with: 3, or 0. */
size_t wz_utf8_mark(const char *s, size_t n);
/* Number of bytes (0..3) at the end of s[0..n) that begin an incomplete character: to be held back when streaming. */
size_t wz_utf8_partial(const char *s, size_t n);
/* How many bytes (1..3) at the beginning of s[0..n), which is no valid UTF-8, one U+FFFD stands for: the longest
 * beginning of a character, else one (Unicode Standard 3.9, as Python and Rust do). */
size_t wz_utf8_bad(const char *s, size_t n);
/* Code point at s (valid UTF-8 of n > 0 bytes); *len: its length in bytes. */
uint32_t wz_utf8_get(const char *s, size_t n, int *len);
int wz_utf8_put(char out[4], uint32_t code); /* returns the length in bytes */
/* Is it a control character (C0, C1, DEL), a line separator or a mark of direction, which terminals obey? */
bool wz_is_control(uint32_t code);
/* Text from outside made fit for a terminal: copies s[0..n), with control characters, marks of direction and what is
 * not UTF-8 written as \n, \x1b, \u202e; those of `keep` ("\n\t") stay. Returns the length; what does not fit in `size`
 * is cut at a character: 4 * n + 1 holds all. Errors and log lines have gone through this already. */
size_t wz_printable(char *to, size_t size, const char *s, size_t n, const char *keep);

/* ---- bf16 ------------------------------------------------------------------------------------------------- */

static inline float wz_bf16_to_f32(uint16_t b)
{
    union {
        uint32_t u;
        float f;
    } x = { (uint32_t)b << 16 };

    return x.f;
}

/* Round to nearest even; NaN stays NaN. */
static inline uint16_t wz_f32_to_bf16(float f)
{
    union {
        float f;
        uint32_t u;
    } x = { f };

    if ((x.u & 0x7fffffff) > 0x7f800000) return (uint16_t)(x.u >> 16 | 0x40);
    return (uint16_t)((x.u + 0x7fff + (x.u >> 16 & 1)) >> 16);
}

/* ---- names and numbers (words.c) -------------------------------------------------------------------------- */

/* Is `word` one of the words of "a|b|c"? */
bool wz_is_choice(const char *choices, const char *word);

/* The closest match of a misspelt name, or NULL. first: an array of n structs of `stride` bytes, each of which begins
 * with its name (const char *). */
const char *wz_nearest(const char *name, const void *first, size_t stride, int n);

/* The row of a table by its name: `first` is an array of structs of `stride` bytes, each beginning with its name (const
 * char *), ended by a row whose name is NULL. NULL and a message that lists the names where there is none; `what` says
 * what a row is: "loss". */
const void *wz_row_find(const void *first, size_t stride, const char *what, const char *name, struct wz_err *err);

/* Appends the shortest decimal text that parses back to x, as people write it: 300, 0.1, 1e-6. */
void wz_real_add(struct wz_buf *out, double x);

#endif
