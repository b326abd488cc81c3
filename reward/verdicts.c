/* What judges have answered: a table by hash in memory, and a file of JSON lines that is appended to.
 *
 *     key = XXH3(response, XXH3(prompt, judge's identity), its lowest bit turned where the prompt is called harmful)
 *
 * 64 bits: among a million verdicts two share a key with a probability of 3e-8. */
#include "reward/reward.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct entry {
    uint64_t key; /* 0: free */
    unsigned flags;
    double score, refusal_score;
};

struct wz_verdicts {
    struct entry *entries; /* [size], a power of two; open addressing */
    size_t n, size;
    int fd;     /* -1: not written */
    bool dirty; /* something was written that is not on the disk yet */
    int64_t lost;
};

static uint64_t key_of(uint64_t judge, const struct wz_question *q)
{
    const uint64_t prompt = wz_hash(q->prompt, strlen(q->prompt), judge),
                   key = wz_hash(q->response, strlen(q->response), prompt ^ (q->prompt_harmful ? 1 : 0));

    return key ? key : 1;
}

static struct entry *find(const struct wz_verdicts *v, uint64_t key)
{
    size_t i = key & (v->size - 1);

    while (v->entries[i].key && v->entries[i].key != key) i = (i + 1) & (v->size - 1);
    return &v->entries[i];
}

/* False: it is there already. */
static bool put(struct wz_verdicts *v, const struct entry *e)
{
    if (2 * (v->n + 1) > v->size) {
        struct wz_verdicts more = { .size = 2 * v->size, .entries = wz_alloc(wz_mul(2 * v->size, sizeof *e)) };
        for (size_t i = 0; i < v->size; i++)
            if (v->entries[i].key) *find(&more, v->entries[i].key) = v->entries[i];
        free(v->entries);
        v->entries = more.entries;
        v->size = more.size;
    }
    struct entry *to = find(v, e->key);
    if (to->key) return false;
    *to = *e;
    v->n++;
    return true;
}

/* A line that a killed run had not finished, or that is no verdict, is passed over. */
static void read_line(struct wz_verdicts *v, const char *line, size_t n)
{
    json_t *j = wz_json_parse(line, n, "", NULL);
    const char *hex = json_string_value(json_object_get(j, "key"));
    const json_t *flags = json_object_get(j, "flags"), *score = json_object_get(j, "score"),
                 *refusal = json_object_get(j, "refusal_score");
    struct entry e = { 0 };

    if (hex && sscanf(hex, "%" SCNx64, &e.key) == 1 && e.key && json_is_integer(flags) && json_is_number(score) &&
        json_is_number(refusal)) {
        e.flags = (unsigned)json_integer_value(flags) & WZ_JUDGED_ALL;
        e.score = json_number_value(score);
        e.refusal_score = json_number_value(refusal);
        put(v, &e);
    }
    json_decref(j);
}

static void read_file(struct wz_verdicts *v, const char *path)
{
    struct wz_map map;
    struct wz_err err;

    if (wz_map_open(&map, path, &err) < 0) {
        wz_log("%s; its verdicts are asked for again", err.text);
        return;
    }
    struct wz_lines l = wz_lines_begin(map.bytes, map.len);
    while (wz_lines_next(&l)) {
        if (l.ended) read_line(v, l.line, l.n);
        if (l.number % 4096 == 0) wz_heartbeat();
    }
    wz_map_close(&map);
}

/* Begins on a line of its own, whatever a killed run left at the end. */
static void open_file(struct wz_verdicts *v, const char *path)
{
    char last = '\n';
    struct wz_err err;

    v->fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (v->fd < 0) {
        wz_log("%s: %s; verdicts are not remembered", path, strerror(errno));
        return;
    }
    if (wz_folder_sync(path, &err) < 0) wz_log("%s", err.text);
    off_t end = lseek(v->fd, 0, SEEK_END);
    if (end > 0 && pread(v->fd, &last, 1, end - 1) == 1 && last != '\n' && write(v->fd, "\n", 1) != 1) v->lost++;
}

struct wz_verdicts *wz_verdicts_open(const char *folder, int rank)
{
    struct wz_verdicts *v = wz_alloc(sizeof *v);
    glob_t files = { 0 };

    v->fd = -1;
    v->size = 1024;
    v->entries = wz_alloc(v->size * sizeof *v->entries);
    struct wz_buf pattern = { 0 };
    for (const char *s = folder; *s; s++) { /* a name may hold what glob takes for a pattern */
        if (strchr("*?[\\", *s)) wz_buf_str(&pattern, "\\");
        wz_buf_add(&pattern, s, 1);
    }
    wz_buf_str(&pattern, "/verdicts-*.jsonl");
    if (glob(pattern.data, 0, NULL, &files) == 0)
        for (size_t i = 0; i < files.gl_pathc; i++) read_file(v, files.gl_pathv[i]);
    globfree(&files);
    wz_buf_finish(&pattern);
    if (rank >= 0) {
        char *path = wz_path("%s/verdicts-%d.jsonl", folder, rank);
        open_file(v, path);
        free(path);
    }
    return v;
}

void wz_verdicts_close(struct wz_verdicts *v)
{
    if (!v) return;
    if (v->lost) wz_log("verdicts: %" PRId64 " could not be written and will be asked for again", v->lost);
    if (v->fd >= 0) close(v->fd);
    free(v->entries);
    free(v);
}

bool wz_verdicts_find(const struct wz_verdicts *v, uint64_t judge, const struct wz_question *question,
                      struct wz_answer *answer)
{
    const struct entry *e = find(v, key_of(judge, question));

    if (!e->key) return false;
    *answer = (struct wz_answer){ .flags = e->flags, .score = e->score, .refusal_score = e->refusal_score };
    return true;
}

void wz_verdicts_add(struct wz_verdicts *v, uint64_t judge, const struct wz_question *question,
                     const struct wz_answer *a)
{
    const struct entry e = { key_of(judge, question), a->flags, a->score, a->refusal_score };
    struct wz_buf line = { 0 };

    if (!put(v, &e) || v->fd < 0) return;
    wz_buf_printf(&line, "{\"judge\":\"%016" PRIx64 "\",\"key\":\"%016" PRIx64 "\",\"flags\":%u,\"score\":", judge,
                  e.key, e.flags);
    wz_real_add(&line, e.score);
    wz_buf_str(&line, ",\"refusal_score\":");
    wz_real_add(&line, e.refusal_score);
    wz_buf_str(&line, "}\n");
    const off_t end = lseek(v->fd, 0, SEEK_END);
    const ssize_t k = write(v->fd, line.data, line.len);
    if (k != (ssize_t)line.len) v->lost++;
    if (k > 0 && k < (ssize_t)line.len && ftruncate(v->fd, end) < 0) wz_log("verdicts: %s", strerror(errno));
    v->dirty = true;
    wz_buf_finish(&line);
}

void wz_verdicts_sync(struct wz_verdicts *v)
{
    if (!v->dirty) return;
    if (fsync(v->fd) < 0) wz_log("verdicts: %s; they may be lost in a power failure", strerror(errno));
    v->dirty = false;
}
