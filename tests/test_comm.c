/* Guarantees: messages arrive whole, once and in order; sums have the bits of the serial tree on any number of ranks
 * (guarantee 2); weights arrive with version and hash (guarantee 6). Runs alone (link self) and under mpirun (link
 * mpi), all ranks together. */
#include "test.h"

#include <dlfcn.h>
#include <math.h>

#include "comm/comm.h"

static struct wz_link job;
static int everyone[64];
static struct wz_backend *host;
static bool by_ring; /* sums over NCCL are in its own order: the argument "ring" */

/* Ranks as if in containers of other host names, or on other machines. */
static const char *machine; /* NULL: the real one */
void __real_wz_host_id(char id[64]);
void __wrap_wz_host_id(char id[64]);
int __wrap_gethostname(char *name, size_t size);

void __wrap_wz_host_id(char id[64])
{
    if (machine) snprintf(id, 64, "%s %d", machine, wz_rank());
    else __real_wz_host_id(id);
}

int __wrap_gethostname(char *name, size_t size)
{
    snprintf(name, size, "container-%d", wz_rank());
    return 0;
}

static struct wz_group all(void) { return (struct wz_group){ job.size, job.rank, everyone }; }

static void auto_finds_the_link(void **state)
{
    struct wz_link other;
    struct wz_err err;

    assert_int_equal(job.size, getenv("OMPI_COMM_WORLD_SIZE") ? atoi(getenv("OMPI_COMM_WORLD_SIZE")) : 1);
    assert_int_equal(wz_rank(), job.rank);
    assert_int_equal(job.here, job.size);
    assert_int_equal(job.n_beside, job.size); /* mpirun binds none of a test's ranks */
    for (int r = 0; r < job.size; r++) assert_int_equal(job.beside[r], r);
    assert_int_equal(wz_link_open(&other, "ether", 1, false, &err), -1);
    assert_non_null(strstr(err.text, "auto, self, mpi, nccl"));
    if (getenv("OMPI_COMM_WORLD_SIZE")) {
        assert_int_equal(wz_link_open(&other, "mpi", 1, false, &err), -1);
        return;
    }
    setenv("SLURM_STEP_NUM_TASKS", "4", 1);
    assert_int_equal(wz_link_open(&other, "auto", 1, false, &err), -1);
    assert_non_null(strstr(err.text, "srun --mpi=pmix"));
    unsetenv("SLURM_STEP_NUM_TASKS");
}

/* Three tags, many sizes, to every rank and oneself; received in another order of tags than sent. */
static void messages_keep_their_order(void **state)
{
    static const size_t sizes[] = { 0, 1, 4095, 0, 70000, 3 };
    static const enum wz_tag tags[] = { WZ_TAG_EPISODES, WZ_TAG_STATS, WZ_TAG_CONTROL };
    uint8_t *bytes = wz_alloc(70000);
    struct wz_buf buf = { 0 };

    for (int to = 0; to < job.size; to++)
        for (size_t i = 0; i < WZ_COUNT(sizes); i++)
            for (size_t t = 0; t < WZ_COUNT(tags); t++) {
                memset(bytes, (int)(job.rank * 40 + (int)(i * 3 + t)), sizes[i]);
                wz_send(&job, to, tags[t], bytes, sizes[i]);
            }
    for (size_t t = WZ_COUNT(tags); t-- > 0;)
        for (size_t i = 0; i < WZ_COUNT(sizes); i++)
            for (int from = 0; from < job.size; from++) {
                wz_recv(&job, from, tags[t], &buf);
                assert_int_equal(buf.len, sizes[i]);
                memset(bytes, (int)(from * 40 + (int)(i * 3 + t)), sizes[i]);
                if (buf.len) assert_memory_equal(buf.data, bytes, buf.len);
            }
    wz_flush(&job);
    wz_buf_finish(&buf);
    free(bytes);
}

/* Receiving between the sends: what was already queued stays in its place. */
static void messages_may_wait_while_others_pass(void **state)
{
    static const char *const words = "abcdefghij";
    struct wz_buf buf = { 0 };

    for (int i = 0; i < 10; i++) {
        wz_send(&job, job.rank, i % 3 ? WZ_TAG_STATS : WZ_TAG_CONTROL, words + i, 1);
        if (i % 2 == 0) continue;
        wz_recv(&job, job.rank, WZ_TAG_STATS, &buf); /* sent as b c e f h i; taken as b c e f h */
        assert_int_equal(buf.data[0], "bcefh"[i / 2]);
    }
    for (const char *want = "adgj"; *want; want++) {
        wz_recv(&job, job.rank, WZ_TAG_CONTROL, &buf);
        assert_int_equal(buf.data[0], *want);
    }
    wz_recv(&job, job.rank, WZ_TAG_STATS, &buf);
    assert_int_equal(buf.data[0], 'i');
    wz_buf_finish(&buf);
}

/* Where one rank fails all do, whichever it is. */
static void a_failure_is_everyones(void **state)
{
    struct wz_err err;

    for (int bad = -1; bad < job.size; bad++) {
        int rc = job.rank == bad ? wz_fail(&err, "rank %d", bad) : 0;
        assert_int_equal(wz_link_agree(&job, rc, &err), bad < 0 ? 0 : -1);
    }
}

/* Sizes around the parts that long messages are cut into. */
static void long_messages_arrive_whole(void **state)
{
    static const size_t sizes[] = { 20 * 1000 * 1000, 16 << 20, (16 << 20) - 1, (32 << 20) + 1, (80 << 20) + 3 };
    int to = (job.rank + 1) % job.size, from = (job.rank + job.size - 1) % job.size;
    struct wz_buf buf = { 0 };

    for (size_t i = 0; i < WZ_COUNT(sizes); i++) {
        uint32_t *words = wz_alloc(sizes[i] + 4);
        for (size_t k = 0; k <= sizes[i] / 4; k++) words[k] = (uint32_t)(k * 2654435761u) ^ (uint32_t)job.rank;
        wz_send(&job, to, WZ_TAG_EPISODES, words, sizes[i]);
        memset(words, 0, sizes[i]); /* the bytes were copied */
        wz_send(&job, to, WZ_TAG_EPISODES, "after", 5);
        wz_recv(&job, from, WZ_TAG_EPISODES, &buf);
        for (size_t k = 0; k <= sizes[i] / 4; k++) words[k] = (uint32_t)(k * 2654435761u) ^ (uint32_t)from;
        assert_int_equal(buf.len, sizes[i]);
        assert_memory_equal(buf.data, words, sizes[i]);
        wz_recv(&job, from, WZ_TAG_EPISODES, &buf);
        assert_int_equal(buf.len, 5);
        free(words);
    }
    wz_flush(&job);
    wz_buf_finish(&buf);
}

/* Values that float addition rounds: the order of a sum shows in its bits. */
static float leaf(int i, size_t k)
{
    struct wz_key key = { .seed = 3, .purpose = WZ_RNG_TEST, .a = (uint32_t)i, .b = (uint32_t)k };

    return (float)wz_normal(key) * (float)(1 << wz_below(key, 20));
}

static float tree(int first, int n, size_t k)
{
    return n == 1 ? leaf(first, k) : tree(first, n / 2, k) + tree(first + n / 2, n / 2, k);
}

/* Shards are whole blocks, lie one behind the other and cover the array, whoever owns them. */
static void shards_cover_the_array(void **state)
{
    static const size_t sizes[] = { 0, 1, WZ_BLOCK - 1, WZ_BLOCK, 8 * WZ_BLOCK, 19 * WZ_BLOCK + 77 };

    for (size_t i = 0; i < WZ_COUNT(sizes); i++)
        for (int size = 1; size <= 16; size *= 2) {
            size_t at = 0;
            for (int s = 0; s < size; s++) {
                struct wz_shard shard = wz_shard_of(wz_shard_owner(s, size), size, sizes[i]);
                assert_int_equal(shard.at, at);
                assert_true(s + 1 == size || shard.n == sizes[i] / WZ_BLOCK / (size_t)size * WZ_BLOCK);
                at += shard.n;
            }
            assert_int_equal(at, sizes[i]);
        }
}

/* ring: in another order, so only nearly the same. */
static void sums_have_the_bits_of_the_serial_tree(struct wz_backend *be, bool ring)
{
    enum { LEAVES = 8 };
    static const size_t sizes[] = { 0, 1, 7, 1000, 8 * WZ_BLOCK, 19 * WZ_BLOCK + 77, 600 * WZ_BLOCK + 5 };
    struct wz_group group = all();
    const int ends[] = { 0, 2 };
    /* A bucket of NCCL is long: the largest size is for it alone. */
    const bool nccl = be->device && job.size == 2 && getenv("WZ_NCCL_LIBRARY");
    bool differs = false, other = false;

    if (job.size == 3) { /* a group that is not the whole job */
        if (job.rank == 1) return;
        group = (struct wz_group){ 2, job.rank / 2, ends };
    }
    for (size_t s = 0; s < WZ_COUNT(sizes) - !nccl; s++) {
        size_t n = sizes[s], stride = n > 1000 ? n / 1000 : 1; /* of the long ones, some and the last are looked at */
        float *x = wz_alloc((n + 1) * sizeof *x);
        struct wz_shard mine = wz_shard_of(group.me, group.n, n);
        int share = LEAVES / group.n;
        for (size_t k = 0; k < n; k++)
            if (k % stride == 0 || k + 1 == n) x[k] = tree(group.me * share, share, k);
        x[n] = 12345;
        wz_tree_scatter(&job, &group, be, x, n);
        for (size_t k = 0; k < n; k++)
            if (k < mine.at || k >= mine.at + mine.n) x[k] = NAN;
        wz_shards_gather(&job, &group, be, x, n, sizeof *x);
        for (size_t k = 0; k < n; k++) {
            float want = k % stride == 0 || k + 1 == n ? tree(0, LEAVES, k) : 0, chain = 0;
            double most = 0;
            for (int i = 0; want != 0 && i < LEAVES; i++) {
                float v = leaf(i, k);
                chain += v;
                most += fabs((double)v);
            }
            if (ring) assert_true(fabs((double)x[k] - (double)want) <= 1e-6 * most);
            else assert_memory_equal(&x[k], &want, sizeof want);
            other |= x[k] != want;
            differs |= chain != want;
        }
        assert_true(x[n] == 12345);
        free(x);
    }
    assert_true(differs && other == ring); /* else the leaves could not tell one order from another */
}

static void tree_sum_has_the_bits_of_the_serial_tree(void **state)
{
    sums_have_the_bits_of_the_serial_tree(host, false);
}

/* Bytes that the stand-in for NCCL has sent from this process. */
static size_t *nccl_sent(void)
{
    static size_t none;
    const char *name = getenv("WZ_NCCL_LIBRARY");
    void *library = name ? dlopen(name, RTLD_NOW | RTLD_NOLOAD) : NULL;

    return library ? dlsym(library, "standin_sent") : &none;
}

static bool idle(struct wz_backend *be) { return true; }

/* The same in device memory: every byte goes through download and upload, or by an NCCL communicator. */
static void memory_of_a_device_is_summed_alike(void **state)
{
    static struct wz_device own = { .idle = idle };
    static struct wz_backend far;
    size_t before = *nccl_sent();

    snprintf(own.id, sizeof own.id, "gpu %d", job.rank);
    far = *host;
    far.device = &own;
    sums_have_the_bits_of_the_serial_tree(&far, by_ring);
    bool member = job.size > 1 && !(job.size == 3 && job.rank == 1);
    assert_true((*nccl_sent() > before) == (member && getenv("WZ_NCCL_LIBRARY")));
}

/* NCCL refuses ranks that share a GPU: they go through host memory. */
static void ranks_that_share_a_gpu_have_no_communicator(void **state)
{
    static const struct wz_device one = { .id = "gpu 0", .idle = idle };
    static struct wz_backend far;
    size_t before = *nccl_sent();

    far = *host;
    far.device = &one;
    sums_have_the_bits_of_the_serial_tree(&far, false);
    assert_true(*nccl_sent() == before);
}

/* The same PCI address on another machine is another GPU. */
static void gpus_of_other_machines_are_others(void **state)
{
    static const struct wz_device one = { .id = "gpu 0", .idle = idle };
    static struct wz_backend far;
    size_t before = *nccl_sent();

    far = *host;
    far.device = &one;
    machine = "machine";
    sums_have_the_bits_of_the_serial_tree(&far, by_ring);
    machine = NULL;
    bool member = job.size > 1 && !(job.size == 3 && job.rank == 1);
    assert_true((*nccl_sent() > before) == (member && getenv("WZ_NCCL_LIBRARY")));
}

static void shards_of_any_element_are_gathered(void **state)
{
    struct wz_group group = all();
    size_t n = 9 * WZ_BLOCK + 5;
    uint16_t *x = wz_alloc(n * sizeof *x);

    if (group.n & (group.n - 1)) group = (struct wz_group){ 1, 0, &everyone[job.rank] };
    struct wz_shard mine = wz_shard_of(group.me, group.n, n);
    for (size_t k = mine.at; k < mine.at + mine.n; k++) x[k] = (uint16_t)(k * 40503 >> 3);
    wz_shards_gather(&job, &group, host, x, n, sizeof *x);
    for (size_t k = 0; k < n; k++) assert_int_equal(x[k], (uint16_t)(k * 40503 >> 3));
    free(x);
}

static void all_gather_is_in_order_of_rank(void **state)
{
    struct wz_group group = all();
    double mine[3] = { job.rank + 0.5, job.rank * 10, -job.rank }, out[64][3];
    struct wz_buf *bytes = wz_alloc((size_t)job.size * sizeof *bytes);

    for (int round = 0; round < 3; round++) {
        memset(out, 0, sizeof out);
        wz_all_gather(&job, &group, mine, 3, out[0]);
        for (int i = 0; i < job.size; i++) {
            assert_true(out[i][0] == i + 0.5 && out[i][1] == i * 10 && out[i][2] == -i);
        }
        char text[64];
        int n = job.rank == 0 ? 0 : snprintf(text, sizeof text, "rank %d round %d%*s", job.rank, round, job.rank, "");
        wz_all_gather_bytes(&job, &group, text, (size_t)n, bytes);
        for (int i = 0; i < job.size; i++) {
            n = i == 0 ? 0 : snprintf(text, sizeof text, "rank %d round %d%*s", i, round, i, "");
            assert_int_equal(bytes[i].len, n);
            if (n) assert_memory_equal(bytes[i].data, text, (size_t)n);
        }
    }
    for (int i = 0; i < job.size; i++) wz_buf_finish(&bytes[i]);
    free(bytes);
}

/* From each root in turn to everyone else, sizes around the chunks of the chain and of NCCL's buckets. */
static void weights_arrive(struct wz_backend *be, bool nccl)
{
    static const size_t sizes[] = { 0, 5, 1 << 20, (2 << 20) + 1, (17 << 20) + 3 };
    uint64_t version = 1000;

    for (int root = 0; root < job.size && job.size > 1; root++)
        for (size_t s = 0; s < WZ_COUNT(sizes) - !(nccl && root == 1); s++) {
            size_t n = sizes[s], size = n * sizeof(float), before = *nccl_sent();
            float *x = wz_alloc(size), *got = wz_alloc(size);
            int ranks[64] = { root };
            struct wz_group group = { 1, 0, ranks };
            for (size_t k = 0; k < n; k++) x[k] = (float)(k % 1000) + (float)root;
            for (int i = job.size; i-- > 0;) {
                if (i == root) continue;
                if (i == job.rank) group.me = group.n;
                ranks[group.n++] = i;
            }
            uint64_t hash = wz_hash_pieces(NULL, x, size);
            version++;
            if (job.rank == root) {
                wz_publish(&job, &group, be, (uint32_t)s, version, hash, x, size);
                assert_int_equal(*nccl_sent() - before, nccl ? size * (size_t)(job.size - 1) : 0);
            } else {
                uint64_t sent = wz_take(&job, &group, be, (uint32_t)s, version, got, size);
                assert_true(sent == hash);
                wz_taken(&job, &group, (uint32_t)s, version, sent, wz_hash_pieces(NULL, got, size));
                if (n) assert_memory_equal(got, x, size);
            }
            free(x);
            free(got);
        }
}

static void weights_arrive_with_their_identity(void **state) { weights_arrive(host, false); }

/* The same from device to device: through host memory, or, where there is NCCL, by a communicator. */
static void weights_of_a_device_arrive(void **state)
{
    static struct wz_device own = { .idle = idle };
    static struct wz_backend far;

    snprintf(own.id, sizeof own.id, "gpu %d", job.rank);
    far = *host;
    far.device = &own;
    weights_arrive(&far, getenv("WZ_NCCL_LIBRARY") != NULL);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(auto_finds_the_link),
        cmocka_unit_test(messages_keep_their_order),
        cmocka_unit_test(messages_may_wait_while_others_pass),
        cmocka_unit_test(a_failure_is_everyones),
        cmocka_unit_test(long_messages_arrive_whole),
        cmocka_unit_test(shards_cover_the_array),
        cmocka_unit_test(tree_sum_has_the_bits_of_the_serial_tree),
        cmocka_unit_test(memory_of_a_device_is_summed_alike),
        cmocka_unit_test(ranks_that_share_a_gpu_have_no_communicator),
        cmocka_unit_test(gpus_of_other_machines_are_others),
        cmocka_unit_test(shards_of_any_element_are_gathered),
        cmocka_unit_test(all_gather_is_in_order_of_rank),
        cmocka_unit_test(weights_arrive_with_their_identity),
        cmocka_unit_test(weights_of_a_device_arrive),
    };
    struct wz_err err;

    by_ring = argc > 1 && strcmp(argv[1], "ring") == 0;
    if (wz_link_open(&job, "auto", 60, by_ring, &err) < 0) wz_die("%s", err.text);
    if (!(host = wz_backend_open("cpu", 1, NULL, &err))) wz_die("%s", err.text);
    for (int i = 0; i < 64; i++) everyone[i] = i;
    if (job.rank > 0 && !freopen("/dev/null", "w", stdout))
        wz_die("/dev/null can't be written"); /* one report is enough */
    int failed = cmocka_run_group_tests_name("comm", tests, NULL, NULL);
    if (failed) wz_die("%d cases failed", failed); /* the others may wait for us */
    wz_link_close(&job);
    wz_backend_close(host);
    return 0;
}
