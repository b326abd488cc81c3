/* Fuzz target: bytes from another rank are episodes that pack and unpack to the same, or an error message. */
#include "fuzz.h"

#include "proto/proto.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Wz__Episode **episodes, **again;
    struct wz_buf once = { 0 }, twice = { 0 };
    struct wz_err err = { "" };
    int n, m;

    if (wz_episodes_unpack(data, size, &episodes, &n, &err) < 0) {
        fuzz_must(err.text[0] && !episodes && !n, "refused without a message");
        return 0;
    }
    wz_episodes_pack(episodes, n, &once);
    fuzz_must(wz_episodes_unpack(once.data, once.len, &again, &m, &err) == 0 && m == n,
              "what was packed does not unpack");
    wz_episodes_pack(again, m, &twice);
    fuzz_must(once.len == twice.len && memcmp(once.data, twice.data, once.len) == 0, "packing again gives other bytes");
    for (int i = 0; i < n; i++) {
        wz_episode_free(episodes[i]);
        wz_episode_free(again[i]);
    }
    free(episodes);
    free(again);
    wz_buf_finish(&once), wz_buf_finish(&twice);
    return 0;
}
