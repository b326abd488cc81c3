/* Fuzz target: what a feedback agent wrote is either the four keys or a reason why not. */
#include "fuzz.h"

#include "rollout/rollout.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct wz_feedback f;

    if (wz_feedback_parse((const char *)data, size, &f)) {
        fuzz_must(f.text && !f.problem, "accepted without its text");
        fuzz_must(wz_utf8_valid(f.text, strlen(f.text)) == strlen(f.text), "accepted text that is not UTF-8");
    } else {
        fuzz_must(f.problem != NULL, "refused without a reason");
    }
    free(f.text);
    return 0;
}
