/* Fuzz target: a file of prompts, JSON lines, JSON or CSV (the first byte decides), is rows of valid UTF-8 or an
 * error message. What loads, written as CSV and as JSON lines, loads again as the same prompts. */
#include "fuzz.h"

#include "store/store.h"

static void csv_cell(struct wz_buf *out, const char *s)
{
    wz_buf_str(out, "\"");
    for (; *s; s++) {
        if (*s == '"') wz_buf_str(out, "\"");
        wz_buf_add(out, s, 1);
    }
    wz_buf_str(out, "\",");
}

static void loads_the_same(const struct wz_prompts *a, const char *ending, const struct wz_buf *bytes)
{
    char *path = fuzz_file(ending, (const uint8_t *)bytes->data, bytes->len);
    struct wz_err err;
    struct wz_prompts b;

    fuzz_must(wz_prompts_load(&b, path, "prompt", "harmful", "kind", "group", "", NULL, &err) == 0,
              "what was written does not load");
    fuzz_must(a->n == b.n && a->hash == b.hash, "other texts");
    for (int i = 0; i < a->n; i++) {
        const struct wz_prompt *x = &a->list[i], *y = &b.list[i];
        fuzz_must(!strcmp(x->text, y->text) && !strcmp(x->id, y->id) && !strcmp(x->kind, y->kind) &&
                      !strcmp(x->group, y->group) && x->harm == y->harm,
                  "another prompt");
    }
    wz_prompts_finish(&b);
    free(path);
}

static void write_and_load(const struct wz_prompts *set)
{
    struct wz_buf csv = { 0 }, lines = { 0 };

    wz_buf_str(&csv, "id,prompt,kind,group,harmful\r\n");
    for (int i = 0; i < set->n; i++) {
        const struct wz_prompt *p = &set->list[i];
        const char *const cells[][2] = {
            { "{\"id\":", p->id }, { ",\"prompt\":", p->text }, { ",\"kind\":", p->kind }, { ",\"group\":", p->group }
        };
        for (int c = 0; c < 4; c++) {
            csv_cell(&csv, cells[c][1]);
            wz_buf_str(&lines, cells[c][0]);
            wz_json_string(&lines, cells[c][1], strlen(cells[c][1]));
        }
        wz_buf_str(&csv, p->harm == WZ_HARMFUL ? "unsafe\r\n" : "safe\n");
        wz_buf_printf(&lines, ",\"harmful\":%s}\n", p->harm == WZ_HARMFUL ? "true" : "false");
    }
    loads_the_same(set, ".csv", &csv);
    loads_the_same(set, ".jsonl", &lines);
    wz_buf_finish(&csv);
    wz_buf_finish(&lines);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *path = fuzz_file(size && data[0] == '{' ? ".jsonl" : size && data[0] == '[' ? ".json" : ".csv", data, size);
    struct wz_prompts set;
    struct wz_err err = { "" };

    if (wz_prompts_load(&set, path, "prompt", "harmful", size & 1 ? "kind" : NULL, "group", "", NULL, &err) == 0) {
        fuzz_must(set.n > 0, "accepted without rows");
        for (int i = 0; i < set.n; i++) {
            size_t n = strlen(set.list[i].text);
            fuzz_must(n && wz_utf8_valid(set.list[i].text, n) == n && set.list[i].kind,
                      "accepted a row that is not text");
        }
        write_and_load(&set);
        wz_prompts_finish(&set);
    } else {
        fuzz_must(strstr(err.text, path) && !set.list, "refused without naming the file");
    }
    free(path);
    return 0;
}
