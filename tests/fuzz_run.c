/* Fuzz target: the text files of somebody's run. They become a page, or there is an error message; the check of the run
 * says what is damaged, and what it has repaired is whole when it looks again. A manifest gets the hash of what it
 * says, and its files and history where it has none: else nothing of it would be read. */
#include "fuzz.h"

#include "report/report.h"
#include "run/run.h"
#include "run/manifest.h"

static const char recipe_text[] = "name: a\nagents:\n- {name: a, role: conversation, model: m}\n- {name: b, role: "
                                  "feedback, model: m}\ndata: [{path: p.jsonl}]\nstages:\n- {name: first, steps: 3, "
                                  "agents: [{name: a}]}\n- {name: second, steps: 2, agents: [{name: b}]}\n";

static char *dir;
static struct wz_job job;

static void begin(void)
{
    struct wz_err err;

    dir = fuzz_path("run");
    char *path = fuzz_file(".recipe.yaml", (const uint8_t *)recipe_text, sizeof recipe_text - 1),
         *out = wz_path("out=%s", dir);
    char *const here[] = { (char[]){ "link=self" }, out };
    fuzz_must(wz_job_recipe(&job.recipe, &job.link, path, here, 2, &err) == 0, err.text);
    unlink(path);
    free(path);
    free(out);
}

static void clean(void) { nftw(dir, fuzz_remove, 16, FTW_DEPTH | FTW_PHYS); }

static void seal(int step)
{
    char *folder = wz_path("%s/checkpoints/%d", dir, step), *path = wz_path("%s/manifest.json", folder);
    json_t *root = wz_file_exists(path) ? wz_json_load(path, NULL) : NULL;
    struct wz_err err;

    if (json_is_object(root)) {
        if (!json_object_get(root, "history"))
            json_object_set_new(root, "history", wz_history_take(dir, NULL, SIZE_MAX, &err));
        if (!json_object_get(root, "files")) fuzz_must(wz_manifest_save(root, folder, &err) == 0, err.text);
        wz_manifest_seal(root);
        fuzz_must(wz_json_save(json_incref(root), path, &err) == 0, err.text);
    }
    json_decref(root);
    free(folder);
    free(path);
}

static void ignore(void *arg, enum wz_fsck_status status, const char *what, const char *why)
{
    fuzz_must(*what && *why, "a finding without words");
}

static void check(void)
{
    struct wz_err err = { "" };
    const int lost = wz_fsck(&job, false, ignore, NULL, &err);

    fuzz_must(lost >= 0 || err.text[0], "refused without a message");
    if (lost < 0) return;
    const int left = wz_fsck(&job, true, ignore, NULL, &err);
    fuzz_must(left >= 0, err.text);
    fuzz_must(left <= lost && wz_fsck(&job, false, ignore, NULL, &err) == left, "what was repaired is lost again");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = { "recipe.yaml",
                                         "metrics.jsonl",
                                         "summary.csv",
                                         "starts.jsonl",
                                         "transcripts.jsonl",
                                         "chain.jsonl",
                                         "ledger.jsonl",
                                         "evaluations.jsonl",
                                         "lost.jsonl",
                                         "verdicts-0.jsonl",
                                         "overlaps.jsonl",
                                         "checkpoints/0/manifest.json",
                                         "checkpoints/1/manifest.json",
                                         NULL };
    struct wz_err err = { "" };

    if (!dir) {
        begin();
        atexit(clean);
    }
    fuzz_folder(dir, names, data, size);
    char *page = wz_path("%s/report.html", dir), *plane = wz_path("%s/plane.svg", dir);
    fuzz_must(wz_report_write(&dir, 1, page, plane, &err) == 0 || err.text[0], "refused without a message");
    wz_verdicts_close(wz_verdicts_open(dir, -1));
    for (int step = 0; step < 2; step++) seal(step);
    check();
    free(page);
    free(plane);
    return 0;
}
