/* Guarantees 5 and 6: no wait is without a deadline, and no wrong weights are used. A failure ends the whole job with a
 * non-zero status and a message that names rank, operation, step and peer. Each case starts a job that must fail. */
#include "test.h"

#include <mpi.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "comm/comm.h"

enum { N = 3 << 20 };

static struct wz_link job;
static const int both[] = { 0, 1 };
static const struct wz_group pair = { 2, 0, both };

static float *weights(void)
{
    float *x = wz_alloc(N * sizeof *x);

    for (int i = 0; i < N; i++) x[i] = (float)i;
    return x;
}

static struct wz_backend *host(void)
{
    struct wz_err err;

    return wz_backend_open("ref", 1, NULL, &err);
}

/* Each scenario: what rank 0 does, and what rank 1 does. Where one returns, it stays until the other ends the job. */
static void never_sends(void) {}

static void receives(void)
{
    struct wz_buf buf = { 0 };

    wz_recv(&job, 0, WZ_TAG_LABELLED, &buf);
}

static void sends_much(void)
{
    void *bytes = wz_alloc(1 << 20);

    wz_send(&job, 1, WZ_TAG_EPISODES, bytes, 1 << 20);
    wz_flush(&job);
}

static void sums(void)
{
    struct wz_backend *be = host();

    wz_tree_scatter(&job, &pair, be, weights(), N);
}

static bool always(struct wz_backend *be) { return true; }
static bool never(struct wz_backend *be) { return false; }

/* Sums in device memory, by the stand-in for NCCL. */
static void sums_on_device(size_t n, bool (*idle)(struct wz_backend *be))
{
    static struct wz_device device;
    struct wz_backend *be = host();
    const struct wz_group group = { 2, job.rank, both };

    snprintf(device.id, sizeof device.id, "gpu %d", job.rank);
    device.idle = idle;
    be->device = &device;
    wz_tree_scatter(&job, &group, be, weights(), n);
}

/* As a driver's handler of exit may that waits for a kernel. */
static void never_exits(void)
{
    for (int spins = 0;;) wz_nap(&spins);
}

static void sums_by_nccl(void) { sums_on_device(N, always); }
static void opens_a_communicator(void) { sums_on_device(0, always); }
static void sums_on_a_stuck_device(void)
{
    atexit(never_exits);
    sums_on_device(N, never);
}

/* NCCL's own finalization does not end. */
static void closes_a_communicator(void)
{
    setenv("WZ_STANDIN_FAIL", "finalize", 1);
    sums_on_device(0, always);
    wz_link_close(&job);
}

/* Is at work for three deadlines, and says so; then it is silent. */
static void works_and_sends(void)
{
    job.deadline = 1.5; /* longer: a busy machine may not let this rank run for a while */
    for (double end = wz_now() + 3 * job.deadline; wz_now() < end;) wz_heartbeat();
    wz_send(&job, 0, WZ_TAG_LABELLED, "x", 1);
    wz_flush(&job);
}

static void receives_two(void)
{
    struct wz_buf buf = { 0 };

    job.deadline = 1.5;
    wz_recv(&job, 1, WZ_TAG_LABELLED, &buf);
    job.step = 8;
    wz_recv(&job, 1, WZ_TAG_EPISODES, &buf);
}

/* Says for whom it waits, and waits longer than the next one. */
static void receives_patiently(void)
{
    job.deadline = 3;
    receives();
}

static void receives_of_the_patient(void)
{
    struct wz_buf buf = { 0 };

    job.deadline = 1.5;
    wz_recv(&job, 1, WZ_TAG_LABELLED, &buf);
}

/* Stops rank 1 for longer than its deadline; what that one waits for comes when it has run again for a while. */
static void stops_the_other(void)
{
    struct wz_buf pid = { 0 };

    wz_recv(&job, 1, WZ_TAG_CONTROL, &pid);
    kill(atoi(pid.data), SIGSTOP);
    for (double end = wz_now() + 2; wz_now() < end;) sched_yield();
    kill(atoi(pid.data), SIGCONT);
    for (double end = wz_now() + 0.3; wz_now() < end;) sched_yield();
    wz_send(&job, 1, WZ_TAG_LABELLED, "x", 1);
    wz_flush(&job);
}

static void is_stopped(void)
{
    char pid[16];
    struct wz_buf buf = { 0 };

    job.deadline = 1.5;
    snprintf(pid, sizeof pid, "%d", (int)getpid());
    wz_send(&job, 0, WZ_TAG_CONTROL, pid, sizeof pid);
    wz_recv(&job, 0, WZ_TAG_LABELLED, &buf);
    job.step = 8;
    wz_recv(&job, 0, WZ_TAG_EPISODES, &buf);
}

static void gathers(void)
{
    double mine = 1, out[2];

    wz_all_gather(&job, &pair, &mine, 1, out);
}

static void publishes(void)
{
    float *x = weights();

    wz_publish(&job, &pair, host(), 1, 5, wz_hash_pieces(NULL, x, N * sizeof *x), x, N * sizeof *x);
}

static void publishes_a_flipped_bit(void)
{
    float *x = weights();
    uint64_t hash = wz_hash_pieces(NULL, x, N * sizeof *x);

    ((uint32_t *)x)[N - 3] ^= 1;
    wz_publish(&job, &pair, host(), 1, 5, hash, x, N * sizeof *x);
}

static void take(uint32_t agent, uint64_t version, size_t n)
{
    const struct wz_group group = { 2, 1, both };
    float *x = weights();
    uint64_t sent = wz_take(&job, &group, host(), agent, version, x, n * sizeof(float));

    wz_taken(&job, &group, agent, version, sent, wz_hash_pieces(NULL, x, n * sizeof *x));
}

static void takes(void) { take(1, 5, N); }
static void takes_a_later_version(void) { take(1, 6, N); }
static void takes_another_agent(void) { take(0, 5, N); }
static void takes_another_size(void) { take(1, 5, N - 1); }

static void leaves(void) { wz_link_close(&job); }

static void leaves_and_exits(void)
{
    wz_link_close(&job);
    exit(0);
}

static void stops(void) { raise(SIGSTOP); }

/* Rank 1 of the scenario of this name stops before it enters. */
static const char *playing = "";
static void stop_in(const char *name)
{
    const char *rank = getenv("PMIX_RANK");

    if (!strcmp(playing, name) && rank && !strcmp(rank, "1")) raise(SIGSTOP);
}

int MPI_Init_thread(int *argc, char ***argv, int wanted, int *got)
{
    stop_in("MPI_Init");
    return PMPI_Init_thread(argc, argv, wanted, got);
}

int MPI_Finalize(void)
{
    stop_in("MPI_Finalize");
    const int rc = PMPI_Finalize();
    const char *rank = getenv("PMIX_RANK");
    if (!strcmp(playing, "the way out") && rank && !strcmp(rank, "0")) raise(SIGSTOP);
    return rc;
}

static const struct scenario {
    const char *name;
    void (*does[3])(void); /* of each rank; the last one is NULL where two are enough */
    const char *says;
} scenarios[] = {
    { "receive",
      { never_sends, receives },
      "waltz: rank 1: receive of labelled episodes at step 7 waited for rank 0 longer than the deadline of 0.5 s" },
    { "flush",
      { sends_much, never_sends },
      "waltz: rank 0: flush of sends at step 7 waited for rank 1 longer than the deadline of 0.5 s" },
    { "tree sum",
      { sums, never_sends },
      "waltz: rank 0: tree sum at step 7 waited for rank 1 longer than the deadline of 0.5 s" },
    { "nccl sum",
      { sums_by_nccl, opens_a_communicator },
      "waltz: rank 0: tree sum at step 7 waited for rank 1 longer than the deadline of 0.5 s" },
    { "nccl alone",
      { sums_by_nccl, never_sends },
      "waltz: rank 0: all-gather at step 7 waited for rank 1 longer than the deadline of 0.5 s" },
    { "nccl on a stuck device",
      { sums_on_a_stuck_device, sums_by_nccl },
      "waltz: rank 0: tree sum at step 7 waited for rank 1 longer than the deadline of 0.5 s" },
    { "nccl that never closes",
      { closes_a_communicator, closes_a_communicator },
      ": closing of an NCCL communicator at step 7 waited for the other ranks longer than the deadline of 0.5 s" },
    { "silence after work",
      { receives_two, works_and_sends },
      "waltz: rank 0: receive of episodes at step 8 waited for rank 1 longer than the deadline of 1.5 s" },
    { "another waits",
      { never_sends, receives_patiently, receives_of_the_patient },
      "waltz: rank 2: receive of labelled episodes at step 7 waited for rank 1 (which waited for rank 0) longer than "
      "the deadline of 1.5 s; nothing was heard of rank 0\n" },
    { "stopped and continued",
      { stops_the_other, is_stopped },
      "waltz: rank 1: receive of episodes at step 8 waited for rank 0 longer than the deadline of 1.5 s" },
    { "all-gather",
      { gathers, never_sends },
      "waltz: rank 0: all-gather at step 7 waited for rank 1 longer than the deadline of 0.5 s" },
    { "publish",
      { publishes, never_sends },
      "waltz: rank 0: publish of agent 1 version 5 at step 7 waited for rank 1 longer than the deadline of 0.5 s" },
    { "take",
      { never_sends, takes },
      "waltz: rank 1: take of agent 1 version 5 at step 7 waited for rank 0 longer than the deadline of 0.5 s" },
    { "stopped", { stops, receives }, "waited for rank 0 longer than the deadline of 0.5 s; rank 0 (process " },
    { "MPI_Init",
      { leaves, leaves },
      "waltz: rank 0: MPI_Init waited for the other ranks longer than the deadline of 10 s; rank 1 (process " },
    { "MPI_Finalize",
      { leaves, leaves },
      "MPI_Finalize waited for the other ranks longer than the deadline of 10 s; rank 1 (process " },
    { "the way out",
      { leaves_and_exits, leaves_and_exits },
      "waltz: rank 1: the end of the job waited longer than the deadline of 10 s; rank 0 (process " },
    { "close",
      { leaves, never_sends },
      "waltz: rank 0: close at step 7 waited for the other ranks longer than the deadline of 0.5 s" },
    { "flipped bit",
      { publishes_a_flipped_bit, takes },
      "waltz: rank 1: take of agent 1 version 5 at step 7: rank 0 sent weights with hash " },
    { "version",
      { publishes, takes_a_later_version },
      "waltz: rank 1: take of agent 1 version 6 of 12582912 bytes at step 7: rank 0 sent agent 1 version 5 of 12582912 "
      "bytes" },
    { "agent",
      { publishes, takes_another_agent },
      "waltz: rank 1: take of agent 0 version 5 of 12582912 bytes at step 7: rank 0 sent agent 1 version 5 of" },
    { "size",
      { publishes, takes_another_size },
      "waltz: rank 1: take of agent 1 version 5 of 12582908 bytes at step 7: rank 0 sent agent 1 version 5 of 12582912 "
      "bytes" },
};

/* One rank of a job that must fail: the rank that detects the failure dies; the other would wait for ever. */
static void play(const char *name)
{
    struct wz_err err;

    for (size_t i = 0; i < WZ_COUNT(scenarios); i++) {
        const struct scenario *s = &scenarios[i];
        if (strcmp(s->name, name) != 0) continue;
        playing = name;
        if (wz_link_open(&job, strncmp(name, "nccl", 4) == 0 ? "nccl" : "mpi", 0.5, false, &err) < 0)
            wz_die("%s", err.text);
        job.step = 7;
        if (s->does[job.rank] != never_sends && strstr(s->says, "deadline") == NULL) job.deadline = 60;
        s->does[job.rank]();
        for (int spins = 0;;) wz_nap(&spins);
    }
    wz_die("no scenario %s", name);
}

static void job_ends_with_the_message(void **state)
{
    const struct scenario *s = *state;
    char *command = wz_path("timeout -k 5 60 mpirun --oversubscribe --bind-to none -n %d /proc/%d/exe '%s' 2>&1",
                            s->does[2] ? 3 : 2, (int)getpid(), s->name);
    struct wz_buf said = { 0 };
    char line[4096];
    FILE *pipe = popen(command, "r");

    assert_non_null(pipe);
    while (fgets(line, sizeof line, pipe)) wz_buf_str(&said, line);
    int status = pclose(pipe);
    if (!said.data || !strstr(said.data, s->says))
        fail_msg("the job did not say \"%s\" but:\n%s", s->says, said.data ? said.data : "");
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), strstr(s->says, "deadline") ? WZ_EXIT_AGAIN : 1);
    wz_buf_finish(&said);
    free(command);
}

int main(int argc, char **argv)
{
    struct CMUnitTest tests[WZ_COUNT(scenarios)];

    if (argc == 2) play(argv[1]);
    for (size_t i = 0; i < WZ_COUNT(scenarios); i++)
        tests[i] = (struct CMUnitTest){ scenarios[i].name, job_ends_with_the_message, NULL, NULL,
                                        (void *)(uintptr_t)&scenarios[i] };
    return cmocka_run_group_tests_name("deadline", tests, NULL, NULL);
}
