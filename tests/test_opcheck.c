/* Every slot of every backend's table is as kernels/ops.h documents, measured against ref:
 * the values within a budget; an output row the same bits alone, among others, twice, and on 1, 2 or 3 threads; "+="
 * into a weight's gradient the same bits in one call and in many; inputs untouched and nothing written past an output.
 * ref's own backwards are held against finite differences of ref's forwards, samplers against exact probabilities.
 *
 *   opcheck [--row NAME] [--op NAME] [--every N]  only these, and every Nth problem; a failure prints row and op
 *   opcheck --share K/N                  every Nth case from the Kth on, so that N processes share them
 *   opcheck --bench [threads] [backend] [numerics] [isa]  GFLOP/s and GB/s instead; numerics: fast (of cuda), amx (of
 *                                                         bf16) or another word
 *   opcheck --bench-large [backend]      the same for an 8B model, beside ceilings
 *
 * A problem is a list of arrays with roles and a call over rows [from, to). All else is done by the harness. */
#include <math.h>

#include "tests/opcheck.h"
#include "tests/test.h"
#include "tests/tiles.h"

/* A backend, and how it is opened. cuda-shim is cuda with its kernels on the host (tests/shim), in the
 * module that WALTZ_SHIM names: slow, so it takes every `every`th of the costly problems, and single-threaded:
 * instead of 1, 2 and 3 threads it has three schedules. cuda needs a GPU and is tried only when named. */
enum { AVX2 = 2 }; /* its row; those of AVX-512 follow */
static const struct target {
    const char *name, *row, *isa, *schedule[3], *shared, *only; /* shared memory of a block, in bytes; the only row */
    bool shim, named, fast;                                     /* fast: how rows are cut may change bits */
    const char *bf16;                                           /* numerics.bf16, and then only ops that multiply */
    int every, draws;
    const struct hot *(*hot)(void); /* computes all, on the backend that is opened; NULL: can't be had */
} targets[] = {
    { "ref", "ref", .every = 1, .draws = 20000 },
    { "cpu-generic", "cpu", .isa = "generic", .every = 1, .draws = 20000 },
    [AVX2] = { "cpu-avx2", "cpu", .isa = "avx2", .every = 1, .draws = 20000 },
    { "cpu-avx512", "cpu", .isa = "avx512", .every = 1, .draws = 20000 },
    { "cpu-avx512bf16", "cpu", .isa = "avx512bf16", .every = 1, .draws = 20000 },
#ifdef __aarch64__
    { "cpu-neon", "cpu", .isa = "neon", .every = 1, .draws = 20000 },
#endif
    { "cpu-generic-amx", "cpu", .isa = "generic", .bf16 = "amx", .every = 5, .draws = 20000 },
    { "cpu-avx2-amx", "cpu", .isa = "avx2", .bf16 = "amx", .every = 1, .draws = 20000 },
    { "cpu-avx512-amx", "cpu", .isa = "avx512", .bf16 = "amx", .every = 1, .draws = 20000 },
    { "cpu-avx512bf16-amx", "cpu", .isa = "avx512bf16", .bf16 = "amx", .every = 3, .draws = 20000 },
    { "cpu-tiles", "cpu", .isa = "generic", .only = "matmul", .every = 1, .hot = wz_tiles_plain },
    { "cpu-tiles-amx", "cpu", .isa = "generic", .bf16 = "amx", .every = 5, .draws = 20000, .hot = wz_tiles_plain },
    { "cpu-avx512amx", "cpu", .isa = "generic", .only = "matmul", .every = 3, .hot = wz_tiles_trapped },
    { "cpu-avx512amx-amx", "cpu", .isa = "generic", .bf16 = "amx", .every = 7, .draws = 20000,
      .hot = wz_tiles_trapped },
    { "cuda-shim", "cuda", .shim = true, .schedule = { "up", "1", "2" }, .every = 3, .draws = 300 },
    { "cuda-shim-fast", "cuda", .shim = true, .fast = true, .schedule = { "up", "1", "2" }, .every = 5, .draws = 300 },
    { "cuda-shim-small", "cuda", .shim = true, .shared = "101376", .only = "attention_back",
      .schedule = { "up", "1", "2" }, .every = 3 },
    { "cuda", "cuda", .named = true, .every = 1, .draws = 20000 },
    { "cuda-fast", "cuda", .named = true, .fast = true, .every = 1, .draws = 20000 },
};

struct wz_backend *opcheck_ref;
static const struct target *under_test;
static const char *only_row; /* asked for by name: then it is a failure if it can't be had, else it is skipped */
static int least_every;      /* takes at most every so many of the problems */

/* NULL and a message where it can't be had here; that is then one skipped case, and no other is made of it. */
static struct wz_backend *target_try(const struct target *t, int threads, struct wz_err *err)
{
    const char *shim = getenv("WALTZ_SHIM");
    struct wz_err unread;

    if (!err) err = &unread;
    if (t->shim && !shim) return wz_fail(err, "the shim was not built"), NULL;
    if (t->shared) setenv("WZ_SHIM_SHARED", t->shared, 1);
    else unsetenv("WZ_SHIM_SHARED");
    if (t->schedule[0]) setenv("WZ_SHIM", t->schedule[threads - 1], 1);
    if (t->shim) setenv("WZ_CUDA_PLUGIN", shim, 1);
    const struct hot *hot = t->hot ? t->hot() : NULL;
    if (t->hot && !hot) return wz_fail(err, "no AVX-512 here"), NULL;
    struct wz_backend *be = wz_backend_open(t->row, threads, &(struct wz_numerics){ t->fast, t->isa, t->bf16 }, err);
    if (be && hot) wz_tiles_compose(be, hot);
    return be;
}

static struct wz_backend *target_open(const struct target *t, int threads)
{
    struct wz_err err;
    struct wz_backend *be = target_try(t, threads, &err);

    if (!be) fail_msg("%s: %s", t->name, err.text);
    return be;
}

/* ---- the harness ------------------------------------------------------------------------------------------ */

enum { GUARD = 64, NONE = -1 }; /* floats of canary on either side */

static const float canary = -12345.678f;

struct run {
    float *host[OPCHECK_ARRAYS];
}; /* every array after the call, without canaries */

static size_t bytes_of(const struct array *a) { return a->n * (a->bf16 ? 2 : 4); }

static void WZ_PRINTF(2, 3) broken(const struct problem *p, const char *fmt, ...)
{
    char what[256];
    va_list args;

    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    fail_msg(
        "%s %s, shape %d (%d rows, in %d, out %d, heads %d/%d, page %d): %s\nreplay: test_opcheck --row %s --op %s",
        under_test->name, p->op, p->shape, p->n, p->in, p->out, p->heads, p->kv_heads, p->page, what, under_test->name,
        p->op);
}

/* Fresh arrays between canaries, the call over rows cut into pieces of `step` (0: one piece; NONE: of no rows), then
 * the looks. */
static struct run run_of(struct problem *p, struct wz_backend *be, int step)
{
    struct run out = { { 0 } };
    float *base[OPCHECK_ARRAYS], *at[OPCHECK_ARRAYS], guard[GUARD];
    size_t kv_size = 0;

    for (int i = 0; i < GUARD; i++) guard[i] = canary;
    for (int i = 0; i < p->arrays; i++) {
        struct array *a = &p->a[i];
        size_t size = (bytes_of(a) + 63) / 64 * 64, total = size + 2 * sizeof guard;
        char *b = a->host ? wz_alloc(total) : wz_backend_alloc(be, total);
        base[i] = (float *)b;
        at[i] = (float *)(b + sizeof guard);
        char *image = wz_alloc(total);
        for (size_t j = 0; j < total / 4; j++) ((float *)image)[j] = canary;
        memcpy(image + sizeof guard, a->init, bytes_of(a));
        if (a->role == OUT) memset(image + sizeof guard, 0x7f, bytes_of(a)); /* what is there may not matter */
        if (a->host) memcpy(b, image, total);
        else wz_upload(be, b, image, total);
        free(image);
    }
    if (p->kv_heads) {
        p->kv = (struct wz_kv){ NULL, NULL, p->seqs * p->stride + 1, p->page, p->kv_heads, p->in, p->half };
        kv_size = (size_t)(p->kv.pages * p->page) * (size_t)(p->kv_heads * p->in) * sizeof(float);
        char *nan = wz_alloc(kv_size);
        memset(nan, 0xff, kv_size);
        p->kv.k = wz_backend_alloc(be, kv_size);
        p->kv.v = wz_backend_alloc(be, kv_size);
        wz_upload(be, p->kv.k, nan, kv_size);
        wz_upload(be, p->kv.v, nan, kv_size);
        free(nan);
    }
    if (step == NONE) p->call(p, be, at, 0, 0);
    for (int from = 0; from < p->n && step != NONE; from += step ? step : p->n)
        p->call(p, be, at, from, step && from + step < p->n ? from + step : p->n);
    for (int i = 0; i < p->arrays; i++) {
        struct array *a = &p->a[i];
        size_t used = bytes_of(a), size = (used + 63) / 64 * 64, total = size + 2 * sizeof guard;
        char *image = wz_alloc(total), *data = image + sizeof guard;
        if (a->host) memcpy(image, base[i], total);
        else wz_download(be, image, base[i], total);
        bool whole = memcmp(image, guard, sizeof guard) == 0 && memcmp(data + size, guard, sizeof guard) == 0;
        for (size_t j = (used + 3) / 4; j < size / 4 && whole; j++) whole = memcmp(data + 4 * j, &canary, 4) == 0;
        if (!whole) broken(p, "%s was written beyond its ends", a->name);
        if (a->role == IN && memcmp(data, a->init, used)) broken(p, "%s is an input and was changed", a->name);
        for (size_t j = 0; j < used && step == NONE; j++)
            if (data[j] != (a->role == OUT ? 0x7f : ((char *)a->init)[j]))
                broken(p, "%s was changed by a call of no rows", a->name);
        out.host[i] = wz_alloc(used);
        memcpy(out.host[i], data, used);
        free(image);
        if (a->host) free(base[i]);
        else wz_backend_free(be, base[i]);
    }
    if (kv_size) {
        wz_backend_free(be, p->kv.k);
        wz_backend_free(be, p->kv.v);
    }
    return out;
}

static void run_finish(struct problem *p, struct run *r)
{
    for (int i = 0; i < p->arrays; i++) free(r->host[i]);
}

static void same_bits(struct problem *p, const struct run *x, const struct run *y, const char *when)
{
    for (int i = 0; i < p->arrays; i++) {
        const struct array *a = &p->a[i];
        if (a->role == IN || memcmp(x->host[i], y->host[i], bytes_of(a)) == 0) continue;
        for (size_t j = 0; j < a->n; j++)
            if (memcmp(&x->host[i][j], &y->host[i][j], 4))
                broken(p, "%s: %s[%zu] is %.9g, was %.9g", when, a->name, j, (double)y->host[i][j],
                       (double)x->host[i][j]);
    }
}

static void near(struct problem *p, const struct run *want, const struct run *got)
{
    for (int i = 0; i < p->arrays; i++) {
        const struct array *a = &p->a[i];
        size_t end = strcmp(p->op, "squares") == 0 ? a->n / 3 : a->n;
        double top = p->floor;
        if (a->role == IN) continue;
        for (size_t j = 0; j < end; j++) {
            double size = fabs((double)want->host[i][j]);
            top = size > top ? size : top;
        }
        for (size_t j = 0; j < end; j++) {
            double x = (double)want->host[i][j], y = (double)got->host[i][j];
            if (!(fabs(x - y) <= p->budget * top))
                broken(p, "%s[%zu] is %.9g, ref %.9g, budget %.1e of %.3g", a->name, j, y, x, p->budget, top);
        }
    }
}

/* Where LIGHT: every 7th shape, which meets every number of rows and every size; once on one thread, on three, and in
 * pieces. */
static struct wz_backend *on_threads[3]; /* of the target under test: 1, 2 and 3 threads */

static void check_problem(struct problem *p)
{
    struct run want = run_of(p, opcheck_ref, 0), got = run_of(p, on_threads[0], 0), other;
    static const int cuts[] = { 1, 3, 10 };
    const int grain =
        !strcmp(p->op, "matmul_back_w") || !strcmp(p->op, "head_back") ? wz_grain(on_threads[0], p->type) : 1;

    near(p, &want, &got);
    for (int t = LIGHT ? 2 : 0; t < 3; t++) {
        other = run_of(p, on_threads[t], 0);
        same_bits(p, &got, &other, t == 0 ? "a second time" : t == 1 ? "on 2 threads" : "on 3 threads");
        run_finish(p, &other);
    }
    for (size_t c = LIGHT; p->step && !under_test->fast && c < (LIGHT ? 2 : WZ_COUNT(cuts)); c++) {
        other = run_of(p, on_threads[c], p->step * grain * cuts[c]);
        same_bits(p, &got, &other, c == 0 ? "grain by grain" : c == 1 ? "by threes" : "by tens");
        run_finish(p, &other);
    }
    if (p->step) {
        other = run_of(p, on_threads[0], NONE);
        run_finish(p, &other);
    }
    run_finish(p, &want);
    run_finish(p, &got);
}

/* ---- the table: a slot without a row here fails ----------------------------------------------------------- */

/* Slots that the harness itself stands on, and check_memory looks at. */
#define SLOT(name) offsetof(struct wz_ops, name)

static const size_t used_by_harness[] = {
    SLOT(alloc), SLOT(free), SLOT(upload), SLOT(download), SLOT(zero), SLOT(pack), SLOT(unpack), SLOT(kv_write),
};

static void every_slot_has_a_case(void **state)
{
    for (size_t at = 0; at < sizeof(struct wz_ops); at += sizeof(void *)) {
        int found = 0;
        for (size_t i = 0; i < opcheck_n_rows; i++) found += opcheck_rows[i].slot == at;
        for (size_t i = 0; i < WZ_COUNT(used_by_harness); i++) found += used_by_harness[i] == at;
        if (found != 1) fail_msg("slot %zu of struct wz_ops has %d cases", at / sizeof(void *), found);
        for (size_t t = 0; t < WZ_COUNT(targets); t++) {
            struct wz_backend *be = targets[t].named ? NULL : target_try(&targets[t], 1, NULL);
            if (be && !*(void **)((char *)&be->ops + at))
                fail_msg("%s leaves slot %zu empty", targets[t].name, at / sizeof(void *));
            wz_backend_close(be);
        }
    }
}

struct subject {
    const struct target *target;
    const struct row *row;
};

static void check_row(void **state)
{
    const struct subject *s = *state;
    struct problem p = { .op = s->row->op, .call = s->row->call };
    int shapes = 0, every = s->row->costly || s->target->fast || s->target->bf16
                                ? s->target->every
                                : 1; /* fast: what is exact is tried already */
    if (every < least_every) every = least_every;
    if (LIGHT) every = 7;

    under_test = s->target;
    for (int t = 0; t < 3; t++) on_threads[t] = target_open(s->target, t + 1);
    opcheck_ref->rounds = on_threads[0]->rounds;
    opcheck_ref->half_kv = on_threads[0]->half_kv;
    opcheck_ref->int8 = on_threads[0]->int8;
    opcheck_ref->half_scores = on_threads[0]->half_scores;
    opcheck_ref->amx = on_threads[0]->amx;
    for (; s->row->make(&p); p = (struct problem){ .op = s->row->op, .call = s->row->call, .shape = p.shape + every }) {
        check_problem(&p);
        opcheck_finish(&p);
        shapes++;
    }
    assert_true(shapes > 0);
    for (int t = 0; t < 3; t++) wz_backend_close(on_threads[t]);
}

static void check_memory(void **state)
{
    const struct subject *s = *state;
    struct wz_backend *be = target_open(s->target, 1);
    unsigned char bytes[1000], back[1000], none[1000] = { 0 };

    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (unsigned char)(i * 7 + 1);
    unsigned char *p = wz_backend_alloc(be, sizeof bytes);
    wz_download(be, back, p, sizeof back);
    assert_memory_equal(back, none, sizeof none);
    wz_upload(be, p, bytes, sizeof bytes);
    wz_zero(be, p + 100, 50);
    memset(bytes + 100, 0, 50);
    wz_download(be, back, p, sizeof back);
    assert_memory_equal(back, bytes, sizeof bytes);
    wz_backend_free(be, p);
    wz_backend_free(be, NULL);
    wz_backend_close(be);
}

/* n floats of the host in the backend's memory, new or at `p`. */
static float *sent(struct wz_backend *be, float *p, const float *host, size_t n)
{
    if (!p) p = wz_backend_alloc(be, n * sizeof *p);
    wz_upload(be, p, host, n * sizeof *p);
    return p;
}

/* After the weights change, pack again and the product changes; a row's bits are those of a fresh pack. */
static void check_repack(void **state)
{
    const struct subject *s = *state;
    struct wz_backend *be = target_open(s->target, 1);
    float data[70 * 9], x[9], y[3][70];

    for (int i = 0; i < 70 * 9; i++) data[i] = (float)(i % 13) - 6;
    for (int i = 0; i < 9; i++) x[i] = (float)i + 0.5f;
    float *d_x = sent(be, NULL, x, 9), *d_y = wz_backend_alloc(be, sizeof y[0]);
    struct wz_weight w = { sent(be, NULL, data, 70 * 9), WZ_F32, 70, 9, NULL, 0 }, fresh = w;
    for (int k = 0; k < 3; k++) {
        for (int i = 0; i < 70 * 9 && k == 1; i++) data[i] += (float)(i % 5);
        sent(be, w.data, data, 70 * 9);
        wz_pack(be, k < 2 ? &w : &fresh);
        wz_matmul(be, d_y, d_x, k < 2 ? &w : &fresh, 1, false);
        wz_download(be, y[k], d_y, sizeof y[k]);
    }
    assert_memory_not_equal(y[0], y[1], sizeof y[0]);
    assert_memory_equal(y[1], y[2], sizeof y[0]);
    wz_unpack(be, &w);
    wz_unpack(be, &fresh);
    assert_null(w.packed);
    wz_backend_free(be, w.data);
    wz_backend_free(be, d_x);
    wz_backend_free(be, d_y);
    wz_backend_close(be);
}

/* A product reads what x holds now, whoever wrote it last, and not what it held when it was multiplied before. */
static void check_rewritten(void **state)
{
    const struct subject *s = *state;
    struct wz_backend *be = target_open(s->target, 1);
    enum { C = 16 };
    uint16_t one[C * C] = { 0 };
    float ones[C], fives[C], y[C];
    static const float after[] = { 5, 0, 6, 5 }; /* an upload, zero, add, a product */

    for (int i = 0; i < C; i++) {
        one[i * C + i] = wz_f32_to_bf16(1);
        ones[i] = 1;
        fives[i] = 5;
    }
    struct wz_weight w = { wz_backend_alloc(be, sizeof one), WZ_BF16, C, C, NULL, 0 };
    float *x = wz_backend_alloc(be, sizeof ones), *d_y = wz_backend_alloc(be, sizeof y),
          *src = sent(be, NULL, fives, C);
    wz_upload(be, w.data, one, sizeof one);
    wz_pack(be, &w);
    for (int way = 0; way < 4; way++) {
        sent(be, x, ones, C);
        wz_matmul(be, d_y, x, &w, 1, false);
        if (way == 0) sent(be, x, fives, C);
        if (way == 1) wz_zero(be, x, sizeof ones);
        if (way == 2) wz_add(be, x, src, C);
        if (way == 3) wz_matmul(be, x, src, &w, 1, false);
        wz_matmul(be, d_y, x, &w, 1, false);
        wz_download(be, y, d_y, sizeof y);
        for (int i = 0; i < C; i++)
            if (y[i] != after[way])
                fail_msg("%s: way %d: %g, expected %g", s->target->name, way, (double)y[i], (double)after[way]);
    }
    wz_unpack(be, &w);
    wz_backend_free(be, w.data);
    wz_backend_free(be, x);
    wz_backend_free(be, d_y);
    wz_backend_free(be, src);
    wz_backend_close(be);
}

/* A device's hashes are the library's, whatever the bytes, wherever the pieces begin and however many there are. */
static void check_hash(void **state)
{
    const struct subject *s = *state;
    enum { MOST = 5, SPARE = 1024 };
    static unsigned char bytes[MOST * WZ_PIECE + SPARE];
    uint64_t sums[MOST + 1], first = 0;

    for (int kind = 0; kind < 4; kind++) { /* noise, noise with one other bit, zeros, ones */
        struct wz_backend *be = target_open(s->target, 1 + kind % 3);
        char *p = wz_backend_alloc(be, sizeof bytes);
        for (size_t i = 0; i < sizeof bytes && kind != 1; i += 8) {
            uint64_t word =
                kind ? 2 - (uint64_t)kind : wz_random((struct wz_key){ 17, WZ_RNG_TEST, (uint32_t)i, 0, 0, 6 });
            memcpy(bytes + i, &word, sizeof word);
        }
        bytes[WZ_PIECE - 1] ^= kind == 1;
        wz_upload(be, p, bytes, sizeof bytes);
        for (size_t n = 0; n <= MOST; n += n < 2 ? 1 : 3) {
            size_t at = n * 144;
            sums[n] = 42;
            be->device->hash(be, sums, p + at, n);
            for (size_t i = 0; i < n; i++)
                if (sums[i] != wz_hash(bytes + at + i * WZ_PIECE, WZ_PIECE, 0))
                    fail_msg("%s: bytes of kind %d: piece %zu of %zu has another hash", s->target->name, kind, i, n);
            assert_true(sums[n] == 42);
        }
        be->device->hash(be, sums, p, 1);
        assert_true(sums[0] != first);
        first = sums[0];
        wz_backend_free(be, p);
        wz_backend_close(be);
    }
}

/* ---- samplers --------------------------------------------------------------------------------------------- */

enum { SMALL = 23 };

/* Which tokens the filters leave, from exact probabilities in the order the header states; renormalised. */
static void filtered(double *q, const double *z, const struct wz_pick *pick)
{
    int order[SMALL], n = SMALL;
    double total = 0, sum = 0, p[SMALL];

    for (int v = 0; v < SMALL; v++) {
        int at = v;
        p[v] = exp(z[v] / (double)pick->temperature);
        for (; at > 0 && p[order[at - 1]] < p[v]; at--) order[at] = order[at - 1];
        order[at] = v;
        q[v] = 0;
    }
    if (pick->top_k > 0 && pick->top_k < n) n = pick->top_k;
    for (int i = 0; i < n; i++) total += p[order[i]];
    for (int i = 0; i < n && sum < (double)pick->top_p * total; i++) {
        sum += p[order[i]];
        if (p[order[i]] >= (double)pick->min_p * p[order[0]]) q[order[i]] = p[order[i]];
    }
    total = 0;
    for (int v = 0; v < SMALL; v++) total += q[v];
    for (int v = 0; v < SMALL; v++) q[v] /= total;
}

static void check_samplers(void **state)
{
    const struct subject *s = *state;
    static const struct wz_pick kinds[] = {
        { 1, 1, 0, 0, 0 },     { 0.6f, 1, 0, 0, 0 }, { 1.5f, 1, 0, 5, 0 },
        { 1, 0.7f, 0, 0, 0 },  { 1, 1, 0.2f, 0, 0 }, { 1.2f, 0.8f, 0.1f, 9, 0 },
        { 1, 1e-6f, 0, 0, 0 }, { 2, 1, 0, 1, 0 },    { 1.3f, 1, 1, 0, 0 },
    };
    struct wz_backend *be = target_open(s->target, 1);
    float data[SMALL], *x, *logp, *want, *lse;
    double z[SMALL], q[SMALL];
    struct wz_pick *picks;
    int *token, draws = s->target->draws / (least_every ? least_every : 1);

    x = wz_alloc((size_t)draws * sizeof *x);
    logp = wz_alloc(3 * (size_t)draws * sizeof *logp);
    want = logp + draws;
    lse = want + draws;
    picks = wz_alloc((size_t)draws * sizeof *picks);
    token = wz_alloc((size_t)draws * sizeof *token);
    for (int v = 0; v < SMALL; v++)
        z[v] = (double)(data[v] = (float)wz_normal((struct wz_key){ 11, WZ_RNG_TEST, 0, (uint32_t)v, 0, 4 }) * 1.5f);
    struct wz_weight w = { sent(be, NULL, data, SMALL), WZ_F32, SMALL, 1, NULL, 0 };
    wz_pack(be, &w);
    for (int i = 0; i < draws; i++) x[i] = 1;
    float *d_x = sent(be, NULL, x, (size_t)draws);
    for (size_t k = 0; k < WZ_COUNT(kinds); k++) {
        int seen[SMALL] = { 0 }, cells = 0;
        double chi = 0;
        for (int i = 0; i < draws; i++) {
            picks[i] = kinds[k];
            picks[i].u = wz_uniform((struct wz_key){ 13, WZ_RNG_TEST, (uint32_t)k, (uint32_t)i, 0, 5 });
        }
        wz_head_sample(be, token, logp, d_x, &w, picks, draws);
        wz_head_logprob(be, want, lse, NULL, d_x, &w, token, kinds[k].temperature, draws);
        if (memcmp(logp, want, (size_t)draws * sizeof *logp))
            fail_msg("%s, filter %zu: logp of sample and logprob differ", s->target->name, k);
        filtered(q, z, &kinds[k]);
        for (int i = 0; i < draws; i++) seen[token[i]]++;
        for (int v = 0; v < SMALL; v++) {
            if (q[v] == 0 && seen[v])
                fail_msg("%s, filter %zu: token %d is filtered out and was drawn", s->target->name, k, v);
            if (q[v] == 0) continue;
            chi += (seen[v] - q[v] * draws) * (seen[v] - q[v] * draws) / (q[v] * draws);
            cells++;
        }
        /* Wilson & Hilferty: (chi/f)^(1/3) is nearly normal; 4 sigma */
        double f = cells - 1, limit = f > 0 ? f * pow(1 - 2 / (9 * f) + 4 * sqrt(2 / (9 * f)), 3) : 1e-9;
        if (chi > limit)
            fail_msg("%s, filter %zu: chi-square %.1f over %d tokens, limit %.1f", s->target->name, k, chi, cells,
                     limit);
    }
    wz_unpack(be, &w);
    wz_backend_free(be, w.data);
    wz_backend_free(be, d_x);
    wz_backend_close(be);
    free(x);
    free(logp);
    free(picks);
    free(token);
}

/* The token is where the cumulated probability passes u, in order of id; equal logits: greedy takes the first. */
static void check_inverse(void **state)
{
    const struct subject *s = *state;
    struct wz_backend *be = target_open(s->target, 1);
    enum { V = 3000 };
    float *data, one = 1, *x, logp, last;
    int token;

    data = wz_alloc(V * sizeof *data);
    x = sent(be, NULL, &one, 1);
    struct wz_weight w = {
        sent(be, NULL, data, V), WZ_F32, V, 1, NULL, 0
    }; /* all equal: token t for u in [t/V, (t+1)/V) */
    wz_pack(be, &w);
    for (int t = 0; t < V; t += 37)
        for (int kind = 0; kind < 2; kind++) {
            struct wz_pick pick = { 1, kind ? 0.9999f : 1, 0, 0, (t + 0.5) / V };
            wz_head_sample(be, &token, &logp, x, &w, &pick, 1);
            assert_int_equal(token, t);
        }
    wz_head_sample(be, &token, &logp, x, &w, &(struct wz_pick){ 1, 1, 0, 0, 1 - 0x1p-53 }, 1);
    assert_int_equal(token, V - 1);
    wz_head_sample(be, &token, &logp, x, &w, &(struct wz_pick){ 1, 1, 0, 10, 1 - 0x1p-53 }, 1);
    assert_int_equal(token, 9);
    data[700] = data[301] = 2;
    sent(be, w.data, data, V);
    wz_pack(be, &w);
    wz_head_sample(be, &token, &last, x, &w, &(struct wz_pick){ 0, 1, 0, 0, 0.9 }, 1);
    assert_int_equal(token, 301);
    wz_head_sample(be, &token, &logp, x, &w, &(struct wz_pick){ 1, 1, 0, 1, 0.9 }, 1);
    assert_int_equal(token, 301);
    assert_memory_equal(&logp, &last, sizeof logp); /* greedy reports logp at temperature 1 */
    /* u on a boundary belongs to the token behind it, with filters and without; min_p 1 leaves the likeliest, all of
     * them where they are equal */
    enum { FEW = 8 };
    for (int v = 0; v < V; v++) data[v] = v % (V / FEW) ? -1e4f : 3;
    sent(be, w.data, data, V);
    wz_pack(be, &w);
    for (int t = 0; t < FEW; t++) {
        static const struct wz_pick kinds[] = {
            { 1, 1, 0, 0, 0 }, { 1, 1, 0, FEW, 0 }, { 1, 1, 1, 0, 0 }, { 3, 1, 0.5f, 0, 0 }
        };
        for (size_t k = 0; k < WZ_COUNT(kinds); k++)
            for (int before = 0; before < 2; before++) {
                struct wz_pick pick = kinds[k];
                pick.u = nextafter((double)t / FEW, before ? 0 : (double)t / FEW);
                wz_head_sample(be, &token, &logp, x, &w, &pick, 1);
                assert_int_equal(token, (t - (before && t > 0)) * (V / FEW));
            }
    }
    /* logits of any size: log-probabilities need their differences alone */
    for (int sign = -1; sign <= 1; sign += 2) {
        const int target = 1;
        float lse;
        for (int v = 0; v < V; v++) data[v] = -2e4f;
        data[0] = (float)sign * 1000;
        data[1] = data[0] + 1;
        sent(be, w.data, data, V);
        wz_pack(be, &w);
        wz_head_logprob(be, &logp, &lse, NULL, x, &w, &target, 1, 1);
        assert_true(fabs((double)logp + log1p(exp(-1))) < 1e-6); /* not so of an infinity either */
        wz_head_sample(be, &token, &last, x, &w, &(struct wz_pick){ 1, 1, 0, 0, 0.9 }, 1);
        assert_int_equal(token, 1); /* 1 / (1 + e) is 0.27 */
        assert_memory_equal(&logp, &last, sizeof logp);
        wz_head_sample(be, &token, &last, x, &w, &(struct wz_pick){ 1, 1, 0, 0, 0.26 }, 1);
        assert_int_equal(token, 0);
        wz_head_sample(be, &token, &last, x, &w, &(struct wz_pick){ 1, 0.99f, 0, 0, 0.27 }, 1);
        assert_int_equal(token, 1);
    }
    wz_unpack(be, &w);
    wz_backend_free(be, w.data);
    wz_backend_free(be, x);
    wz_backend_close(be);
    free(data);
}

/* Scores that rise by 20 from key to key, over pages and blocks of keys: only their differences may reach exp, and the
 * last key has all of the weight, but for exp(-20). */
static void check_rising(void **state)
{
    const struct subject *s = *state;
    struct wz_backend *be = target_open(s->target, 1);
    enum { LEN = 96, D = 16, PAGE = 16 };
    float q[LEN * D] = { 0 }, k[LEN * D] = { 0 }, v[LEN * D] = { 0 }, out[LEN * D], lse[LEN];
    int seq[LEN] = { 0 }, pos[LEN], table[LEN / PAGE];

    for (int i = 0; i < LEN; i++) {
        q[i * D] = 4; /* the root of D */
        k[i * D] = 20 * (float)i;
        v[i * D] = (float)i;
        pos[i] = i;
    }
    for (int i = 0; i < LEN / PAGE; i++) table[i] = LEN / PAGE - 1 - i;
    const struct wz_rows rows = { LEN, 1, LEN / PAGE, seq, pos, table };
    struct wz_kv kv = { sent(be, NULL, k, LEN * D), sent(be, NULL, v, LEN * D), LEN / PAGE, PAGE, 1, D, false };
    float *d_q = sent(be, NULL, q, LEN * D), *d_k = sent(be, NULL, k, LEN * D), *d_v = sent(be, NULL, v, LEN * D),
          *d_out = sent(be, NULL, q, LEN * D), *d_lse = sent(be, NULL, q, LEN);
    wz_kv_write(be, &kv, d_k, d_v, &rows);
    wz_attention(be, d_out, d_lse, d_q, &kv, &rows, 1, (struct wz_scores){ 0 });
    wz_download(be, out, d_out, sizeof out);
    wz_download(be, lse, d_lse, sizeof lse);
    for (int i = 0; i < LEN; i++)
        if (!(fabsf(out[i * D] - (float)i) < 1e-3f && fabsf(lse[i] - 20 * (float)i) < 1e-3f))
            fail_msg("%s: key %d: %g, lse %g", s->target->name, i, (double)out[i * D], (double)lse[i]);
    float *const all[] = { kv.k, kv.v, d_q, d_k, d_v, d_out, d_lse };
    for (size_t i = 0; i < WZ_COUNT(all); i++) wz_backend_free(be, all[i]);
    wz_backend_close(be);
}

/* So large a vocabulary that sampling takes more shared memory than a kernel has without asking. */
static void check_vast(void **state)
{
    const struct subject *s = *state;
    struct wz_backend *be = target_open(s->target, 1);
    enum { V = 1 << 19 };
    float *data = wz_alloc(V * sizeof *data), one = 1, logp;
    int token;

    struct wz_weight w = { sent(be, NULL, data, V), WZ_F32, V, 1, NULL, 0 }; /* all equal */
    float *x = sent(be, NULL, &one, 1);
    wz_pack(be, &w);
    wz_head_sample(be, &token, &logp, x, &w, &(struct wz_pick){ 1, 1, 0, 0, 400000.5 / V }, 1);
    assert_int_equal(token, 400000);
    wz_unpack(be, &w);
    wz_backend_free(be, w.data);
    wz_backend_free(be, x);
    wz_backend_close(be);
    free(data);
}

/* AVX2 and AVX-512 are the same chains of the same FMAs, with the instruction for pairs of bf16 and without, so a
 * job may mix machines. */
static void check_alike(void **state)
{
    const struct row *row = *state;
    struct wz_backend *a = target_open(&targets[AVX2], 1), *b;

    for (int t = AVX2 + 1; t <= AVX2 + 2; t++, wz_backend_close(b)) {
        struct problem p = { .op = row->op, .call = row->call };
        under_test = &targets[t];
        if (!(b = target_try(&targets[t], 1, NULL))) continue;
        opcheck_ref->half_kv = b->half_kv;
        opcheck_ref->int8 = b->int8;
        for (; row->make(&p);
             p = (struct problem){ .op = row->op, .call = row->call, .shape = p.shape + (LIGHT ? 7 : 1) }) {
            struct run x = run_of(&p, a, 0), y = run_of(&p, b, 0);
            same_bits(&p, &x, &y, "after AVX2");
            run_finish(&p, &x);
            run_finish(&p, &y);
            opcheck_finish(&p);
        }
    }
    wz_backend_close(a);
}

/* What is not here: one case. Asked for by name, it fails. */
static void check_absent(void **state)
{
    const struct subject *s = *state;
    struct wz_err err = { "" };

    assert_null(target_try(s->target, 1, &err));
    if (only_row) fail_msg("%s: %s", s->target->name, err.text);
    SKIP("%s", err.text);
}

int main(int argc, char **argv)
{
    enum { MOST = 768 };
    static struct CMUnitTest tests[MOST];
    static struct subject subjects[MOST];
    static char names[MOST][64];
    static const struct {
        const char *name;
        void (*fn)(void **);
        bool device; /* of a backend with memory of its own */
    } others[] = {
        { "memory", check_memory, false },       { "repack", check_repack, false },
        { "rewritten", check_rewritten, false }, { "hash", check_hash, true },
        { "samplers", check_samplers, false },   { "inverse", check_inverse, false },
        { "vast vocabulary", check_vast, true }, { "rising scores", check_rising, false },
    };
    const char *only_op = NULL;
    size_t n = 0, share = 1, shares = 1, mine = 0;
    bool alike = false;

    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--row") == 0) only_row = argv[i + 1];
        if (strcmp(argv[i], "--op") == 0) only_op = argv[i + 1];
        if (strcmp(argv[i], "--share") == 0) sscanf(argv[i + 1], "%zu/%zu", &share, &shares);
        if (strcmp(argv[i], "--every") == 0) least_every = atoi(argv[i + 1]);
    }
    if (argc > 1 && strcmp(argv[1], "--bench") == 0)
        return opcheck_bench(argc > 2 ? atoi(argv[2]) : 0, argc > 3 ? argv[3] : "cpu",
                             &(struct wz_numerics){ argc > 4 && !strcmp(argv[4], "fast"), argc > 5 ? argv[5] : NULL,
                                                    argc > 4 && !strcmp(argv[4], "amx") ? "amx" : NULL });
    if (argc > 1 && strcmp(argv[1], "--bench-large") == 0)
        return opcheck_bench_large(argc > 2 ? argv[2] : "cuda", argc > 3 ? atoi(argv[3]) : 1);
    assert_true(2 + WZ_COUNT(targets) * (opcheck_n_rows + WZ_COUNT(others)) + opcheck_n_rows <= MOST);
    opcheck_ref = wz_backend_open("ref", 1, NULL, NULL);
    if (!only_row && !only_op) {
        tests[n++] = (struct CMUnitTest)cmocka_unit_test(every_slot_has_a_case);
        tests[n++] = (struct CMUnitTest)cmocka_unit_test(opcheck_gradients);
    }
    for (size_t t = 0; t < WZ_COUNT(targets); t++) {
        if (only_row ? strcmp(only_row, targets[t].name) != 0 : targets[t].named) continue;
        struct wz_backend *be = target_try(&targets[t], 1, NULL);
        const bool here = be, device = be && be->device;
        wz_backend_close(be);
        alike |= here && !only_row && t > AVX2 && t <= AVX2 + 2;
        for (size_t i = 0; i < (here ? opcheck_n_rows + WZ_COUNT(others) : 1); i++) {
            bool row = i < opcheck_n_rows;
            const char *name = row ? opcheck_rows[i].op : others[i - opcheck_n_rows].name;
            const bool multiplies = row && (!strncmp(name, "matmul", 6) || !strncmp(name, "head", 4));
            if (here && ((targets[t].bf16 && !multiplies) || (only_op && strcmp(only_op, name)) ||
                         (targets[t].only && strcmp(targets[t].only, name)) ||
                         (!row && others[i - opcheck_n_rows].device && !device)))
                continue;
            subjects[n] = (struct subject){ &targets[t], row ? &opcheck_rows[i] : NULL };
            snprintf(names[n], sizeof names[n], "%s %s", targets[t].name, here ? name : "is here");
            tests[n] = (struct CMUnitTest){ .name = names[n],
                                            .test_func = !here ? check_absent
                                                         : row ? check_row
                                                               : others[i - opcheck_n_rows].fn,
                                            .initial_state = &subjects[n] };
            n++;
        }
    }
    for (size_t i = 0; i < opcheck_n_rows && alike; i++)
        if (!only_op || strcmp(only_op, opcheck_rows[i].op) == 0) {
            snprintf(names[n], sizeof names[n], "avx2 = avx512 %s", opcheck_rows[i].op);
            tests[n] = (struct CMUnitTest){ .name = names[n],
                                            .test_func = check_alike,
                                            .initial_state = (void *)&opcheck_rows[i] };
            n++;
        }
    if (n == 0) {
        fprintf(stderr, "opcheck: there is no row \"%s\" with an op \"%s\"\n", only_row ? only_row : "any",
                only_op ? only_op : "any");
        return 2;
    }
    for (size_t i = 0; i < n; i++)
        if (i % shares == share - 1) tests[mine++] = tests[i];
    int failed = _cmocka_run_group_tests("opcheck", tests, mine, NULL, NULL);
    wz_backend_close(opcheck_ref);
    return failed;
}
