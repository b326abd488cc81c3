/* A communicator of one member: everything that Waltz asks of NCCL, on one GPU. Runs on the cuda backend: with its
 * kernels on the host (WALTZ_SHIM) and the stand-in for NCCL (WZ_NCCL_LIBRARY), or, without these, on a real GPU with
 * the real library. A GPU or a library that can't be had is a failure here, not a skip. */
#include "test.h"

#include "comm/row.h"

enum { N = 5 * WZ_BLOCK + 7 }; /* floats: a shard and a rest */

static struct wz_link job;
static struct wz_backend *be;
static const int only[1] = { 0 };

static void nccl_moves_within_one_gpu(void **state)
{
    const struct wz_group group = { 1, 0, only };
    struct wz_nccl_comm *comm = wz_nccl_comm_of(&job, &group, be);
    float *x = wz_backend_alloc(be, 2 * N * sizeof *x), *want = wz_alloc(N * sizeof *want),
          *got = wz_alloc(2 * N * sizeof *got);
    size_t each = 5 * WZ_BLOCK;

    assert_non_null(comm);
    assert_ptr_equal(comm, wz_nccl_comm_of(&job, &group, be));
    for (int i = 0; i < N; i++) want[i] = (float)(i % 1009) / 7;
    wz_upload(be, x, want, N * sizeof *x);
    wz_zero(be, x + N, N * sizeof *x);
    wz_nccl_sendrecv(comm, 0, x, N * sizeof *x, x + N, N * sizeof *x, "send to itself");
    wz_nccl_wait(comm, "send to itself", 0);
    wz_nccl_broadcast(comm, 0, x, N * sizeof *x, "broadcast", 0);
    wz_nccl_ring_sum(comm, x, each, N - each, "ring sum");
    wz_nccl_gather(comm, x, each * sizeof *x, (N - each) * sizeof *x, "gather");
    wz_nccl_wait(comm, "gather", -1);
    wz_add(be, x + N, x, N); /* in order after what NCCL was asked for */
    wz_download(be, got, x, 2 * N * sizeof *got);
    assert_memory_equal(got, want, N * sizeof *got);
    for (int i = 0; i < N; i++) assert_true(got[N + i] == 2 * want[i]);
    wz_backend_free(be, x);
    free(want);
    free(got);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(nccl_moves_within_one_gpu) };
    const char *shim = getenv("WALTZ_SHIM");
    struct wz_err err;

    if (shim) setenv("WZ_CUDA_PLUGIN", shim, 1);
    if (wz_link_open(&job, "nccl", 60, true, &err) < 0) wz_die("%s", err.text);
    if (!(be = wz_backend_open("cuda", 1, NULL, &err))) wz_die("%s", err.text);
    int failed = cmocka_run_group_tests_name("communicator", tests, NULL, NULL);
    wz_link_close(&job);
    wz_backend_close(be);
    return failed;
}
