/* Guarantee: logits, log-probabilities and the gradient of every tensor equal those of others in float64 to a relative
 * 1e-5, on every backend. model/: a plain Llama in PyTorch, for 1, 3 and 4 query heads a key/value head, head sizes 64,
 * 80 and 128, tied and untied, with and without RoPE scaling. rows/: the transformers library, for every architecture.
 * Only config.json and the seed of the weights are shared with it (tests/golden/model/README.md). */
#include "golden_help.h"

static void golden(void **state)
{
    const char *golden = getenv("WALTZ_GOLDEN");

    assert_non_null(golden);
    for (size_t b = 0; b < WZ_COUNT(golden_backends); b++)
        golden_check(golden, *state, golden_backends[b].name, golden_backends[b].threads);
}

static void rows(void **state)
{
    const char *golden = getenv("WALTZ_GOLDEN");
    bool seen[32] = { false };
    struct wz_err err;

    assert_non_null(golden);
    for (size_t i = 0; i < WZ_COUNT(golden_rows); i++) {
        char *name = wz_path("rows/%s", golden_rows[i]), *dir = golden_row(golden_rows[i]);
        struct wz_config c;
        for (size_t b = 0; b < WZ_COUNT(golden_backends); b++)
            golden_check(golden, name, golden_backends[b].name, golden_backends[b].threads);
        assert_int_equal(wz_config_load(&c, dir, &err), 0);
        seen[c.arch] = true;
        free(name);
        free(dir);
    }
    for (int a = 0; wz_archs[a].type; a++)
        if (!seen[a]) fail_msg("no case is of %s", wz_archs[a].name);
}

/* What is saved is read back as it was: the same weights and the same mathematics. */
static void saved(void **state)
{
    struct wz_backend *be = backend_of("ref", 1);
    char *to = test_scratch("saved");
    struct wz_config back;
    struct wz_err err;

    for (size_t i = 0; i < WZ_COUNT(golden_rows); i++) {
        char *dir = golden_row(golden_rows[i]);
        struct wz_config c;
        assert_int_equal(wz_config_load(&c, dir, &err), 0);
        struct wz_model *m = wz_model_create(&c, WZ_F32, NULL, be);
        wz_model_init(m, 3);
        if (wz_model_save(m, to, 0, &err) < 0 || wz_config_load(&back, to, &err) < 0) fail_msg("%s", err.text);
        assert_memory_equal(&c, &back, sizeof c);
        struct wz_model *read = model_of(to, WZ_F32, be);
        assert_true(read->hash == m->hash);
        wz_model_destroy(read);
        wz_model_destroy(m);
        free(dir);
    }
    wz_backend_close(be);
    free(to);
}

int main(void)
{
#define CASE(name)                     \
    {                                  \
        name, golden, NULL, NULL, name \
    }
    const struct CMUnitTest tests[] = {
        CASE("model/gqa1-64"),        CASE("model/gqa1-128-llama3"), CASE("model/gqa3-64-llama3"),
        CASE("model/gqa3-80-linear"), CASE("model/gqa4-64"),         CASE("model/gqa4-128-llama3"),
        cmocka_unit_test(rows),       cmocka_unit_test(saved),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
