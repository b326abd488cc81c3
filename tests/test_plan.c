/* Guarantee 9, first half: what `waltz plan` says a rank takes is what it takes, on one rank and on four;
 * what does not fit is refused with an error message that names the largest buffers; and a plan needs no weights. Every
 * block of the heap is counted by the size it was asked for, by wrapping the allocator. */
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include "command_help.h"
#include "run/plan.h"
#include "run/stage.h"

/* ---- the heap, counted ------------------------------------------------------------------------------------ */

enum { SLOTS = 1 << 22 };
static struct {
    void *p;
    size_t size;
} * blocks;
static size_t held, most;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void __real_free(void *p);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
void __wrap_free(void *p);

static size_t slot_of(const void *p)
{
    size_t i = ((uintptr_t)p >> 4) * 0x9e3779b97f4a7c15u % SLOTS;

    while (blocks[i].p && blocks[i].p != p) i = (i + 1) % SLOTS;
    return i;
}

/* A block whose p is known and size is 0 was freed: its slot stays on the way to others. */
static void *noted(void *p, size_t size)
{
    pthread_mutex_lock(&lock);
    if (!blocks) blocks = __real_calloc(SLOTS, sizeof *blocks);
    size_t i = slot_of(p);
    blocks[i].p = p;
    blocks[i].size = size;
    held += size;
    if (held > most) most = held;
    pthread_mutex_unlock(&lock);
    return p;
}

static void forgotten(void *p)
{
    pthread_mutex_lock(&lock);
    if (p && blocks) {
        size_t i = slot_of(p);
        held -= blocks[i].size;
        blocks[i].size = 0;
    }
    pthread_mutex_unlock(&lock);
}

void *__wrap_malloc(size_t size) { return noted(__real_malloc(size), size); }

void *__wrap_calloc(size_t n, size_t size) { return noted(__real_calloc(n, size), n * size); }

void *__wrap_realloc(void *p, size_t size)
{
    forgotten(p);
    return noted(__real_realloc(p, size), size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size) { return noted(__real_aligned_alloc(alignment, size), size); }

void __wrap_free(void *p)
{
    forgotten(p);
    __real_free(p);
}

/* The most that was held at once during a step: checkpoints and models being read pass through a buffer of files of
 * their own. */
static size_t in_steps;

void __real_wz_stage_step(struct wz_stage *s, struct wz_progress *p, struct wz_step_report *report);
void __wrap_wz_stage_step(struct wz_stage *s, struct wz_progress *p, struct wz_step_report *report);

void __wrap_wz_stage_step(struct wz_stage *s, struct wz_progress *p, struct wz_step_report *report)
{
    most = held;
    __real_wz_stage_step(s, p, report);
    if (most > in_steps) in_steps = most;
}

/* ---- a run ------------------------------------------------------------------------------------------------ */

static const char *recipe; /* the sandbox's */
static char world[512];
static int rank, size;

static int on_recipe(int (*run)(int, char **), const char *name, const char *more, struct wz_buf *out)
{
    char *words = wz_path(
        "%s %s agents.conversation.model=%s/base agents.feedback.model=%s/base data.0.path=%s/prompts-dev.jsonl "
        "eval.0.path=%s/prompts-dev.jsonl evaluate.eval_limit=4 out=%s-run "
        "stages.0.steps=1 stages.1.steps=2 threads=1 %s",
        name, recipe, world, world, world, world, world, more);
    int status = command(run, words, "", out);

    free(words);
    return status;
}

static struct wz_plan *plan_of(const char *const *overrides, int n, struct wz_recipe **r)
{
    char *paths[16];
    struct wz_plan *plan = wz_alloc(sizeof *plan);
    struct wz_err err;

    paths[0] = wz_path("agents.conversation.model=%s/base", world);
    paths[1] = wz_path("agents.feedback.model=%s/base", world);
    paths[2] = wz_path("judge.model=%s/base", world); /* of a judge that has one */
    for (int i = 0; i < n; i++) paths[3 + i] = wz_strdup(overrides[i]);
    if (wz_recipe_load(r, recipe, paths, 3 + n, &err) < 0) fail_msg("%s", err.text);
    if (wz_plan_make(plan, *r, NULL, size, 1, &err) < 0) fail_msg("%s", err.text);
    for (int i = 0; i < 3 + n; i++) free(paths[i]);
    return plan;
}

static void check_run(const char *const *more, int n)
{
    struct wz_buf out = { 0 }, words = { 0 };
    struct wz_recipe *r;
    struct wz_plan *plan = plan_of(more, n, &r);
    const struct wz_plan_kind *k = plan->kinds;
    size_t before = held;

    while (rank >= k->first + k->ranks) k++;
    in_steps = 0;
    wz_buf_printf(&words, "out=%s/../../rank-0/run%d", world, n); /* one for all ranks */
    for (int i = 0; i < n; i++) wz_buf_printf(&words, " %s", more[i]);
    assert_int_equal(on_recipe(wz_cmd_train, "train", words.data, &out), 0);
    double planned = (double)(k->device + k->host), taken = (double)(in_steps - before);
    /* a few per cent, and what a plan leaves out: tokenizers, prompts, the tiles that kernels work in (the head's are
     * 4 MB), and 64 KB for each column of the record */
    if (taken > 1.01 * planned + 9e6 || taken < 0.97 * planned - 1e6)
        wz_die("test: rank %d (%s) took %.0f bytes, planned are %.0f", rank, k->name, taken, planned);
    print_message("# rank %d (%s): took %.0f bytes, planned %.0f\n", rank, k->name, taken, planned);
    wz_buf_finish(&out), wz_buf_finish(&words);
    free(plan);
    wz_recipe_destroy(r);
}

static void a_run_takes_what_was_planned(void **state) { check_run(NULL, 0); }

static void a_checkpointed_run_takes_what_was_planned(void **state)
{
    static const char *const checkpointed[] = { "agents.conversation.type=bf16",
                                                "agents.feedback.type=bf16",
                                                "activation_checkpointing=layers",
                                                "ranks.rollout=1",
                                                "ranks.reward=1",
                                                "ranks.learner=2" };

    check_run(checkpointed, size > 1 ? WZ_COUNT(checkpointed) : 3); /* two learners have half the masters each */
}

/* ---- one process ------------------------------------------------------------------------------------------ */

static void what_does_not_fit_is_refused(void **state)
{
    struct wz_recipe *r;
    struct wz_plan *plan = plan_of(NULL, 0, &r);
    struct wz_err err = { 0 };
    size_t need = plan->kinds[0].device + plan->kinds[0].host;

    assert_int_equal(plan->n_kinds, 1);
    plan->machine.host = need;
    assert_int_equal(wz_plan_check(plan, &err), 0);
    plan->machine.host = need - 1;
    assert_int_equal(wz_plan_check(plan, &err), -1);
    assert_non_null(strstr(err.text, "the host's memory"));
    assert_non_null(strstr(err.text, "conversation's key/value cache 0.05 GB"));
    free(plan);
    wz_recipe_destroy(r);
}

/* Every buffer of every kind of rank, by name: one that is left out of the sums fits anywhere. */
static void every_buffer_is_named(void **state)
{
    static const char *const overrides[] = { "backend=ref",    "agents.feedback.type=bf16", "ranks.rollout=1",
                                             "ranks.reward=1", "ranks.learner=2",           "judge.name=wildguard" };
    static const char want[] =
        "rollout, 1 ranks\n"
        "conversation: weights, staging chunk, tensor index, key/value cache, key/value page table, forward scratch, "
        "prefix-cache token ids\n"
        "feedback: weights, staging chunk, tensor index, key/value cache, key/value page table, forward scratch, "
        "prefix-cache token ids\n"
        ": episodes, at most\n"
        "reward, 1 ranks\n"
        "wildguard: judge weights, judge staging chunk, judge key/value cache, judge key/value page table, judge "
        "forward scratch, judge prefix-cache token ids\n"
        ": episodes, at most\n"
        "learner, 2 ranks\n"
        "conversation: weights, staging chunk, tensor index\n"
        "feedback: weights, f32 masters, staging chunk, tensor index\n"
        "conversation: reference weights, reference staging chunk, learner key/value cache, learner key/value page "
        "table, learner activations, learner forward scratch, learner moments, learner gradient tree\n"
        "feedback: reference weights, reference staging chunk, learner key/value cache, learner key/value page table, "
        "learner activations, learner forward scratch, learner moments, learner gradient tree\n"
        ": staging of weights and moments, episodes, at most\n";
    struct wz_recipe *r;
    struct wz_buf got = { 0 };

    size = 4;
    struct wz_plan *plan = plan_of(overrides, WZ_COUNT(overrides), &r);
    size = 1;
    for (const struct wz_plan_kind *k = plan->kinds; k < plan->kinds + plan->n_kinds; k++) {
        size_t host = 0, device = 0;
        wz_buf_printf(&got, "%s, %d ranks\n", k->name, k->ranks);
        for (int i = 0; i < k->n_rows; i++) {
            const struct wz_plan_row *row = &k->rows[i];
            bool first = !i || strcmp(row->agent, row[-1].agent), last = i == k->n_rows - 1;
            wz_buf_printf(&got, "%s%s%s%s", first ? row->agent : "", first ? ": " : ", ", row->what,
                          last || strcmp(row->agent, row[1].agent) ? "\n" : "");
            assert_true(row->bytes > 0);
            *(row->host ? &host : &device) += row->bytes;
        }
        assert_true(host == k->host && device == k->device);
    }
    assert_string_equal(got.data, want);
    wz_buf_finish(&got);
    free(plan);
    wz_recipe_destroy(r);
}

/* Three ranks of a host on two GPUs: 0 and 2 share the first. */
static void gpus_are_shared_in_turn(void **state)
{
    struct wz_recipe *r;
    struct wz_plan *plan = plan_of(NULL, 0, &r);
    struct wz_err err = { 0 };

    plan->size = 6;
    plan->machine = (struct wz_plan_machine){ .hosts = 2, .gpus = 2, .device = 25, .host = 1000 };
    plan->n_kinds = 2;
    plan->kinds[0] = (struct wz_plan_kind){ .name = "rollout", .first = 0, .ranks = 5, .device = 10, .host = 300 };
    plan->kinds[1] = (struct wz_plan_kind){ .name = "learner", .first = 5, .ranks = 1, .device = 15, .host = 400 };
    assert_int_equal(wz_plan_check(plan, &err), 0); /* host 0: 20, 10; host 1: 10 + 15, 10 */
    plan->machine.device = 24;
    assert_int_equal(wz_plan_check(plan, &err), -1);
    assert_non_null(strstr(err.text, "host 1's GPU 0"));
    plan->machine.device = 25;
    plan->machine.host = 999; /* host 1: 300 + 300 + 400 */
    assert_int_equal(wz_plan_check(plan, &err), -1);
    assert_non_null(strstr(err.text, "host 1's memory"));
    free(plan);
    wz_recipe_destroy(r);
}

/* The sums of the JSON are those of its buffers, and its verdict that of the command. */
static void as_json(void **state)
{
    struct wz_buf out = { 0 };
    struct wz_err err;

    for (int small = 0; small < 2; small++) {
        assert_int_equal(
            on_recipe(wz_cmd_plan, "plan", small ? "--json --ranks 4 --host-memory 0.2" : "--json --ranks 4", &out),
            small);
        json_t *plan = wz_json_parse(out.data, out.len, "plan", &err), *kind, *buffer;
        if (!plan) fail_msg("%s", err.text);
        const json_t *memory = json_array_get(json_object_get(plan, "memory"), 0);
        json_int_t sum = 0;
        size_t i, k;
        json_array_foreach(json_object_get(plan, "kinds"), i, kind)
            json_array_foreach(json_object_get(kind, "buffers"), k, buffer) sum +=
            json_integer_value(json_object_get(buffer, "bytes")) * json_integer_value(json_object_get(kind, "ranks"));
        /* two rollout ranks, the first kind, share a batch that the one reward rank has whole */
        json_int_t episodes[2] = { 0 };
        for (i = 0; i < 2; i++)
            json_array_foreach(
                json_object_get(json_array_get(json_object_get(plan, "kinds"), i), "buffers"), k,
                buffer) if (!strcmp(json_string_value(json_object_get(buffer, "what")), "episodes, at most"))
                episodes[i] = json_integer_value(json_object_get(buffer, "bytes"));
        assert_true(episodes[0] > 0 && episodes[1] == 2 * episodes[0]);
        assert_true(sum > 0 && sum == json_integer_value(json_object_get(memory, "needed")));
        assert_true(json_is_null(json_object_get(memory, "gpu")));
        assert_true(json_is_boolean(json_object_get(plan, "fits")));
        assert_int_equal(json_is_true(json_object_get(plan, "fits")), !small);
        const char *problem = json_string_value(json_object_get(plan, "problem"));
        assert_int_equal(problem && strstr(problem, "the largest are"), small);
        if (small) assert_int_equal(json_integer_value(json_object_get(memory, "there")), 200000000);
        json_decref(plan);
    }
    wz_buf_finish(&out);
}

static void commands_refuse(void **state)
{
    struct wz_buf out = { 0 };

    assert_int_equal(on_recipe(wz_cmd_plan, "plan", "", &out), 0);
    assert_non_null(strstr(out.data, "key/value cache"));
    assert_int_equal(on_recipe(wz_cmd_plan, "plan", "--device-memory 0.01", &out), 1);
    assert_int_equal(on_recipe(wz_cmd_plan, "plan", "--ranks 4 --host-memory 0.2", &out), 1);
    assert_non_null(strstr(out.data, "rollout, 2 ranks, each"));
    assert_int_equal(on_recipe(wz_cmd_plan, "plan", "--ranks 4 --hosts 4 --host-memory 0.2", &out), 0);
    assert_int_equal(on_recipe(wz_cmd_plan, "plan", "stages.0.stepz=1", &out), 1);
    assert_int_equal(on_recipe(wz_cmd_plan, "plan", "agents.feedback.model=nowhere", &out), 1);
    assert_int_equal(on_recipe(wz_cmd_train, "train", "rollout.kv_pages=900000000", &out),
                     1); /* before anything is allocated */
    wz_buf_finish(&out);
}

/* Of an 8B model there is only the config.json; a GPU that is not here has the memory that is said. */
static void a_plan_needs_no_weights(void **state)
{
    static const char config[] =
        "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":4096,\"intermediate_size\":"
        "14336,"
        "\"num_hidden_layers\":32,\"num_attention_heads\":32,\"num_key_value_heads\":8,\"vocab_size\":128256,\"rms_"
        "norm_eps\":1e-5,"
        "\"rope_theta\":500000.0,\"max_position_embeddings\":8192,\"tie_word_embeddings\":false}";
    char *dir = wz_path("%s-8b", world), *path = wz_path("%s/config.json", dir), *more[2];
    struct wz_buf out = { 0 };
    struct wz_err err;

    assert_int_equal(wz_mkdirs(dir, &err), 0);
    assert_int_equal(wz_file_write(path, config, sizeof config - 1, &err), 0);
    for (int i = 0; i < 2; i++)
        more[i] = wz_path(
            "backend=cuda agents.conversation.model=%s agents.feedback.model=%s --ranks 4 --gpus 4 --host-memory 2000 "
            "rollout.max_seq_len=2048 --device-memory %d",
            dir, dir, i ? 2000 : 80);
    assert_int_equal(on_recipe(wz_cmd_plan, "plan", more[1], &out), 0);
    assert_non_null(
        strstr(out.data, "32121044992")); /* 8,030,261,248 floats: Llama 3.1 8B's published number of parameters */
    assert_int_equal(on_recipe(wz_cmd_plan, "plan", more[0], &out), 1);
    assert_non_null(strstr(out.data, "GPU 3"));
    wz_buf_finish(&out);
    free(dir);
    free(path);
    free(more[0]);
    free(more[1]);
}

int main(int argc, char **argv)
{
    const char *local = getenv("OMPI_COMM_WORLD_RANK"), *ranks = getenv("OMPI_COMM_WORLD_SIZE");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_run_takes_what_was_planned),
        cmocka_unit_test(a_checkpointed_run_takes_what_was_planned),
        cmocka_unit_test(what_does_not_fit_is_refused),
        cmocka_unit_test(every_buffer_is_named),
        cmocka_unit_test(gpus_are_shared_in_turn),
        cmocka_unit_test(commands_refuse),
        cmocka_unit_test(as_json),
        cmocka_unit_test(a_plan_needs_no_weights),
    };
    struct wz_buf out = { 0 };

    if (argc < 2 || chdir(argv[1]) < 0) wz_die("the source folder is expected");
    recipe = "recipes/sandbox.yaml";
    rank = local ? atoi(local) : 0;
    size = ranks ? atoi(ranks) : 1;
    char *name = wz_path("rank-%d", rank), *at = test_scratch(name);
    snprintf(world, sizeof world, "%s/world", at);
    char *words = wz_path("sandbox %s", world);
    if (mkdir(at, 0700) < 0 || setenv("WALTZ_SCRATCH", at, 1) < 0)
        wz_die("%s: no folder", at); /* each rank has its own world */
    if (rank > 0 && !freopen("/dev/null", "w", stdout)) wz_die("/dev/null can't be written"); /* one report is enough */
    if (command(wz_cmd_sandbox, words, "", &out)) wz_die("no world");
    free(name);
    free(at);
    free(words);
    wz_buf_finish(&out);
    /* MPI begins once in a process: ranks run one of the two runs */
    int failed = _cmocka_run_group_tests("plan", tests + (size > 1), size > 1 ? 1 : WZ_COUNT(tests), NULL, NULL);
    if (failed) wz_die("%d cases failed", failed);
    return 0;
}
