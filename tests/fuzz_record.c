/* Fuzz target: a record of episodes that is damaged, or has a journal of somebody's beside it. Reading, cutting and
 * appending give what was recorded or an error message, and end in time. The first byte says what is damaged: 'r' the
 * record, 'j' pages of it in a journal, 'w' nothing: the rest is the whole record. Then, five bytes each: where (a u32;
 * 0xfffffff0 and the next: the two numbers of the journal's head) and the byte that is put there. */
#include "fuzz.h"

#include "store/store.h"

enum { PAGE = 4096, STEPS = 2, BATCH = 3 };

static char *path, *journal;
static struct wz_buf whole; /* the record as it is when nothing is damaged */

static void put(const char *to, const char *bytes, size_t n)
{
    FILE *f = fopen(to, "wb");

    fuzz_must(f && fwrite(bytes, 1, n, f) == n && fclose(f) == 0, "the scratch file can't be written");
}

static int append(int64_t step, struct wz_err *err)
{
    struct wz_record *r = wz_record_open(path, err);
    Wz__Episode *list[BATCH];
    int rc = r ? 0 : -1;

    for (uint32_t i = 0; i < BATCH; i++) {
        list[i] = wz_episode_new();
        list[i]->step = step;
        list[i]->index = i;
        wz_set_string(&list[i]->prompt, "prompt", i + 1);
        Wz__Turn *t = wz_episode_turn(list[i]);
        wz_set_string(&t->text, "what was said", 4 * i);
        wz_turn_reserve(t, 8);
        for (int k = 0; k < 8; k++) wz_turn_add(t, k, -0.5f);
    }
    if (rc == 0) rc = wz_record_episodes(r, list, BATCH, err);
    for (int i = 0; i < BATCH; i++) wz_episode_free(list[i]);
    wz_record_close(r);
    return rc;
}

static void clean(void)
{
    unlink(path);
    unlink(journal);
}

static void begin(void)
{
    struct wz_map map;
    struct wz_err err;

    path = fuzz_path("episodes-0.h5");
    journal = wz_path("%s.journal", path);
    for (int64_t step = 0; step < STEPS; step++) fuzz_must(append(step, &err) == 0, err.text);
    fuzz_must(wz_map_open(&map, path, &err) == 0, err.text);
    wz_buf_add(&whole, map.bytes, map.len);
    wz_map_close(&map);
    atexit(clean);
}

/* The pages of `bytes` that differ from the record, as a journal; head: what it claims, exclusive or. */
static void put_journal(const char *bytes, const uint64_t head[2])
{
    struct wz_buf pages = { 0 }, out = { 0 };
    uint64_t n = 0, length = whole.len ^ head[0];

    for (uint64_t at = 0; at < whole.len; at += PAGE) {
        const size_t size = whole.len - at < PAGE ? whole.len - at : PAGE;
        const uint64_t number = at / PAGE ^ head[1];
        char page[PAGE] = "";
        if (!memcmp(bytes + at, whole.data + at, size)) continue;
        memcpy(page, bytes + at, size);
        wz_buf_add(&pages, &number, sizeof number);
        wz_buf_add(&pages, page, PAGE);
        n++;
    }
    wz_buf_add(&out, "WZJOURN1", 8);
    wz_buf_add(&out, &length, sizeof length);
    wz_buf_add(&out, &n, sizeof n);
    wz_buf_add(&out, pages.data, pages.len);
    const uint64_t hash = wz_hash(out.data, out.len, 0);
    wz_buf_add(&out, &hash, sizeof hash);
    put(journal, out.data, out.len);
    wz_buf_finish(&pages);
    wz_buf_finish(&out);
}

/* A whole record gives its episodes; every reader is a process. */
static void read_all(void)
{
    struct wz_err err = { "" };
    int64_t have = 0;
    Wz__Episode **list = NULL;
    int n = 0;
    const int rc = wz_record_check(path, STEPS, &have, &err);

    fuzz_must(rc == 0 || strstr(err.text, path), "refused without naming the file");
    if (rc < 0 || have < STEPS * BATCH) return;
    fuzz_must(wz_record_read(path, STEPS - 1, &list, &n, &err) == 0 && n == BATCH, "it is whole, and can't be read");
    for (int i = 0; i < n; i++) {
        fuzz_must(list[i]->step == STEPS - 1, "an episode of another step");
        wz_episode_free(list[i]);
    }
    free(list);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char kind = size ? (char)data[0] : 'r';
    uint64_t head[2] = { 0, 0 };
    struct wz_err err = { "" };

    if (!path) begin();
    char *bytes = wz_alloc(whole.len);
    memcpy(bytes, whole.data, whole.len);
    for (size_t i = 1; i + 5 <= size; i += 5) {
        uint32_t at;
        memcpy(&at, data + i, 4);
        if (at >= 0xfffffff0u) ((uint8_t *)head)[at & 15] = data[i + 4];
        else bytes[at % whole.len] = (char)data[i + 4];
    }
    if (kind == 'w') put(path, (const char *)data + 1, size - 1);
    else put(path, kind == 'j' ? whole.data : bytes, whole.len);
    if (kind == 'j') put_journal(bytes, head);
    read_all();
    if (wz_hash(data, size, 0) % 4 == 0 && wz_record_truncate(path, STEPS - 2, &err) == 0 &&
        append(STEPS - 1, &err) == 0)
        read_all();
    clean();
    free(bytes);
    return 0;
}
