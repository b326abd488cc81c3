/* Rows of the cpu backend that share the name of their bits give the same bits for all inputs: products with bf16
 * weights are the sums that are written out here for each order of numerics.bf16, denormal numbers included (in the
 * order amx all rows give the same bits), and whichever row computes an op changes no bit of it. Which does is the
 * choice in the user's cache where that is whole and of this machine; any other file there is measured anew and
 * replaced, and what can't be read or written is done without. */
#include "tests/test.h"

#include <float.h>
#include <glob.h>
#include <math.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/cpu/cpu.h"
#include "tests/tiles.h"

/* The rows without FMA are last, and then tiles (tests/tiles.h). */
static const char *const isas[] = {
    "avx2", "avx512", "avx512bf16", "avx512amx", "neon", "generic", "plain", "trapped"
};
enum { WITH_FMA = 4, TILED = 6 };

/* Shapes of tiles that no product has, as another op may leave them. */
static void disturb(void)
{
    uint8_t shapes[64] = { 1 };

    for (int t = 0; t < 8; t++) shapes[16 + 2 * t] = 8, shapes[48 + t] = 3;
    wz_tile_config(shapes);
}

static struct wz_backend *open_isa(const char *isa, const char *order)
{
    struct wz_err err;
    const struct hot *hot = !strcmp(isa, "plain")     ? wz_tiles_plain()
                            : !strcmp(isa, "trapped") ? wz_tiles_trapped()
                                                      : NULL;
    struct wz_backend *be =
        wz_backend_open("cpu", 1, &(struct wz_numerics){ .isa = hot ? "generic" : isa, .bf16 = order }, &err);

    if (hot) wz_tiles_compose(be, hot);
    disturb();
    return be;
}

static float flushed(float x) { return fabsf(x) < FLT_MIN ? copysignf(0, x) : x; }

/* a b + c rounded once; denormal inputs are zeros, and so is a result that is below the smallest normal number when
 * rounded to 24 bits whatever its exponent. */
static int flushes; /* results that fma_flushed made zeros */

static float fma_flushed(float a, float b, float c)
{
    const float up = 0x1p60f;
    float r, large;

    a = flushed(a);
    b = flushed(b);
    c = flushed(c);
    r = fmaf(a, b, c);
    if (!(fabsf(r) <= 2 * FLT_MIN)) return r;
    large = fmaf(a * up, b, c * up);
    if (fabsf(large) >= FLT_MIN * up) return r;
    flushes += large != 0;
    return copysignf(0, large);
}

/* Numbers whose products lie about the smallest normal number, denormal ones, zeros of both signs, and common ones. */
static float drawn(uint32_t i, uint32_t array)
{
    uint64_t r = wz_random((struct wz_key){ .a = array, .b = i });
    float x = (float)((double)(r >> 40) / (1 << 24) - 0.5);

    switch (r % 8) {
    case 0: return x * 0x1p-125f;
    case 1: return copysignf(0, x);
    case 2:
    case 3:
    case 4: return x * 0x1p-62f;
    case 5: return x * 0x1p-64f;
    case 6: return x * 0x1p-66f;
    default: return x * 0x1p-58f;
    }
}

enum { N = 45, IN = 2063, OUT = 67 }; /* none is a multiple of 32, nor even; IN is more than a block of k */

struct operands {
    float x[N * IN], dy[N * OUT], y[N * OUT], dx[N * IN], dw[OUT * IN];
    uint16_t w[OUT * IN];
};

static struct operands *operands_make(void)
{
    struct operands *o = wz_alloc(sizeof *o);
    uint32_t i = 0;

    for (int k = 0; k < N * IN; k++) o->x[k] = drawn(i++, 1);
    for (int k = 0; k < N * OUT; k++) o->dy[k] = drawn(i++, 2);
    for (int k = 0; k < N * OUT; k++) o->y[k] = drawn(i++, 3) * 0x1p-30f;
    for (int k = 0; k < N * IN; k++) o->dx[k] = drawn(i++, 4) * 0x1p-90f;
    for (int k = 0; k < OUT * IN; k++) o->dw[k] = drawn(i++, 5) * 0x1p-90f;
    for (int k = 0; k < OUT * IN; k++) o->w[k] = wz_f32_to_bf16(drawn(i++, 6));
    return o;
}

static float half(float x) { return wz_bf16_to_f32(wz_f32_to_bf16(x)); }

/* An odd sum ends with a pair whose second half is zero. */
static float chain(float c, const float *a, size_t sa, const float *b, size_t sb, int k)
{
    for (int i = 0; i < k; i++) c = fma_flushed(half(a[(size_t)i * sa]), half(b[(size_t)i * sb]), c);
    return k % 2 ? fma_flushed(0, 0, c) : c;
}

/* What a tile instruction adds for each 32 elements, zeros past the last: chains of those with even and of those with
 * odd indices, and their sum. */
static float tiles(float c, const float *a, size_t sa, const float *b, size_t sb, int k)
{
    for (int at = 0; at < k; at += 32) {
        float sums[2] = { 0, 0 };
        for (int i = at; i < at + 32; i++) {
            bool in = i < k;
            sums[i % 2] = fma_flushed(in ? half(a[(size_t)i * sa]) : 0, in ? half(b[(size_t)i * sb]) : 0, sums[i % 2]);
        }
        c = flushed(flushed(c) + flushed(flushed(sums[0]) + flushed(sums[1])));
    }
    return c;
}

typedef float order_fn(float c, const float *a, size_t sa, const float *b, size_t sb, int k);

static void by_definition(struct operands *o, order_fn *sum)
{
    float *w = wz_alloc(sizeof *w * OUT * IN);

    for (int i = 0; i < OUT * IN; i++) w[i] = wz_bf16_to_f32(o->w[i]);
    for (int i = 0; i < N; i++)
        for (int j = 0; j < OUT; j++) o->y[i * OUT + j] = sum(o->y[i * OUT + j], o->x + i * IN, 1, w + j * IN, 1, IN);
    for (int i = 0; i < N; i++)
        for (int j = 0; j < IN; j++) o->dx[i * IN + j] = sum(o->dx[i * IN + j], o->dy + i * OUT, 1, w + j, IN, OUT);
    for (int i = 0; i < OUT; i++)
        for (int j = 0; j < IN; j++) o->dw[i * IN + j] = sum(o->dw[i * IN + j], o->dy + i, OUT, o->x + j, IN, N);
    free(w);
}

static void by_backend(struct operands *o, struct wz_backend *be)
{
    struct wz_weight w = { .data = o->w, .type = WZ_BF16, .out = OUT, .in = IN };
    enum { MORE = N + 32 };
    struct {
        float x[MORE * IN], dy[MORE * OUT], y[MORE * OUT], dw[OUT * IN];
    } *before = wz_alloc(sizeof *before);

    wz_pack(be, &w);
    for (int i = 0; i < MORE * IN; i++) before->x[i] = before->dy[i % (MORE * OUT)] = INFINITY;
    wz_matmul(be, before->y, before->x, &w, MORE, false); /* leaves its operands in scratch */
    wz_matmul_back_w(be, before->dw, before->dy, before->x, &w, MORE);
    free(before);
    wz_matmul(be, o->y, o->x, &w, N, true);
    wz_matmul_back_x(be, o->dx, o->dy, &w, N, true);
    wz_matmul_back_w(be, o->dw, o->dy, o->x, &w, N);
    wz_unpack(be, &w);
}

static void same(const char *isa, const char *what, const float *want, const float *got, int n)
{
    for (int i = 0; i < n; i++)
        if (memcmp(&want[i], &got[i], sizeof *want))
            fail_msg("%s: %s[%d] is %a, by the chain of flushed FMAs %a", isa, what, i, (double)got[i],
                     (double)want[i]);
}

static void check(const char *order, order_fn *sum, size_t rows)
{
    struct operands *want = operands_make();
    int tried = 0;

    flushes = 0;
    by_definition(want, sum);
    assert_true(flushes > 1000); /* that the inputs reach */
    for (size_t i = 0; i < rows; i++) {
        struct wz_backend *be = open_isa(isas[i], order);
        if (!be) continue;
        struct operands *got = operands_make();
        by_backend(got, be);
        same(isas[i], "y", want->y, got->y, N * OUT);
        same(isas[i], "d_x", want->dx, got->dx, N * IN);
        same(isas[i], "d_w", want->dw, got->dw, OUT * IN);
        if ((i == TILED || (i > TILED && !wz_cpu_tiles())) && !wz_tiles_released())
            fail_msg("%s leaves tiles behind", isas[i]);
        free(got);
        wz_backend_close(be);
        tried++;
    }
    free(want);
    if (!tried) SKIP("no row with FMA of x86 runs here");
}

static void test_bf16_chain(void **state) { check("chain", chain, WITH_FMA); }

static void test_bf16_amx(void **state) { check("amx", tiles, WZ_COUNT(isas)); }

/* An instruction of zeros is an instruction: a denormal number that is added to becomes a zero. */
static void test_amx_flushes(void **state)
{
    for (size_t i = 0; i < WZ_COUNT(isas); i++) {
        struct wz_backend *be = open_isa(isas[i], "amx");
        uint16_t zeros[2] = { 0 };
        float x[2] = { 1, 1 }, y = 0x1p-130f;
        struct wz_weight w = { .data = zeros, .type = WZ_BF16, .out = 1, .in = 2 };
        if (!be) continue;
        wz_pack(be, &w);
        wz_matmul(be, &y, x, &w, 1, true);
        assert_true(y == 0);
        wz_unpack(be, &w);
        wz_backend_close(be);
    }
}

/* The largest denormal numbers round to the smallest normal one of bf16, whichever operand they are; and a sum that is
 * not added to what is there begins at zero, however many blocks of k it has. */
static void test_amx_rounds(void **state)
{
    enum { K = 64, DEEP = 2080, SIZE = K * DEEP };
    static float lows[SIZE], highs[SIZE], y[SIZE];
    static uint16_t rows[SIZE];
    const float low = nextafterf(FLT_MIN, 0), high = 0x1p100f;
    struct wz_weight w = { .data = rows, .type = WZ_BF16, .out = K, .in = DEEP };

    for (int k = 0; k < SIZE; k++) lows[k] = low, highs[k] = high, rows[k] = wz_f32_to_bf16(high);
    for (size_t i = 0; i < WZ_COUNT(isas); i++) {
        struct wz_backend *be = open_isa(isas[i], "amx");
        if (!be) continue;
        wz_pack(be, &w);
        wz_matmul(be, y, lows, &w, K, false);
        for (int k = 0; k < K * K; k++) assert_true(y[k] == DEEP * FLT_MIN * high);
        for (int turn = 0; turn < 2; turn++) {
            memset(y, 0, sizeof y);
            wz_matmul_back_w(be, y, turn ? lows : highs, turn ? highs : lows, &w, K);
            for (int k = 0; k < SIZE; k++) assert_true(y[k] == K * FLT_MIN * high);
        }
        wz_unpack(be, &w);
        wz_backend_close(be);
    }
}

/* auto is amx where the processor has it, and chain for backends that can't add in that order. */
static void test_auto(void **state)
{
    static const char *const names[] = { "cpu", "ref" };
    const bool amx = wz_cpu_tiles();

    assert_true(!amx || system("grep -qw amx_bf16 /proc/cpuinfo") == 0);
    for (size_t i = 0; i < WZ_COUNT(names); i++) {
        struct wz_backend *be = wz_backend_open(names[i], 1, &(struct wz_numerics){ .bf16 = "auto" }, NULL);
        assert_non_null(be);
        if (be->amx != amx) fail_msg("%s: auto is %s", names[i], be->amx ? "amx" : "chain");
        wz_backend_close(be);
    }
}

/* Rows that cannot add in an order say so, with the key. */
static void test_refused(void **state)
{
    struct wz_err err;

    assert_null(wz_backend_open("cuda", 1, &(struct wz_numerics){ .bf16 = "amx" }, &err));
    assert_non_null(strstr(err.text, "backend \"cuda\": it can't add in the order of numerics.bf16=amx"));
}

/* ---- mixtures --------------------------------------------------------------------------------------------- */

enum {
    TOKENS = 40,
    WIDTH = 77,
    WIDER = 83,
    WORDS = 700,
    HEADS = 6,
    KV_HEADS = 2,
    D = 24,
    PAGE = 16,
    PAGES = 3,
    SIZE = 1 << 20
};

/* What all ops give, one after another. */
struct outputs {
    float at[SIZE], more[TOKENS * HEADS * D];
    size_t n;
};

static float *next(struct outputs *o, size_t n)
{
    float *p = o->at + o->n;

    o->n += n;
    assert_true(o->n <= SIZE);
    return p;
}

static float *filled(float *to, size_t n, uint32_t array)
{
    for (size_t i = 0; i < n; i++)
        to[i] = (float)((double)(wz_random((struct wz_key){ .a = array, .b = (uint32_t)i }) >> 40) / (1 << 24) - 0.5);
    return to;
}

static void run_products(struct outputs *o, struct wz_backend *be, struct wz_weight *w, int n)
{
    float *x = filled(wz_alloc(TOKENS * WORDS * sizeof *x), TOKENS * WORDS, 8);

    wz_matmul(be, next(o, (size_t)(n * w->out)), x, w, n, false);
    if (w->type != WZ_INT8) {
        wz_matmul_back_x(be, next(o, (size_t)(n * w->in)), x, w, n, false);
        wz_matmul_back_w(be, next(o, (size_t)(w->out * w->in)), x, x, w, n);
    }
    free(x);
}

static void run_head(struct outputs *o, struct wz_backend *be, struct wz_weight *w, int n)
{
    float *x = filled(wz_alloc(TOKENS * WIDTH * sizeof *x), TOKENS * WIDTH, 9), d[TOKENS];
    float *logp = next(o, TOKENS), *lse = next(o, TOKENS), *entropy = next(o, TOKENS);
    int targets[TOKENS], token[TOKENS];
    struct wz_pick picks[TOKENS];

    for (int i = 0; i < n; i++) {
        targets[i] = i * 17 % WORDS;
        d[i] = 1.f / (float)(i + 1);
        picks[i] = (struct wz_pick){ 1, i % 3 ? 1 : 0.8f, i % 2 ? 20 : 0, 0, (double)i / TOKENS };
    }
    wz_head_logprob(be, logp, lse, entropy, x, w, targets, 0.9f, n);
    wz_head_sample(be, token, next(o, TOKENS), x, w, picks, n);
    for (int i = 0; i < n; i++) *next(o, 1) = (float)token[i];
    wz_head_back(be, next(o, (size_t)(n * WIDTH)), next(o, WORDS * WIDTH), x, w, targets, d, lse, 0.9f, n);
    free(x);
}

static void run_attention(struct outputs *o, struct wz_backend *be, bool half)
{
    const size_t wide = HEADS * D, narrow = KV_HEADS * D;
    int seq[TOKENS] = { 0 }, pos[TOKENS], table[PAGES] = { 2, 0, 1 };
    float *q = filled(wz_alloc(TOKENS * wide * sizeof *q), TOKENS * wide, 10), freq[D / 2];
    float *keys = wz_alloc(PAGES * PAGE * narrow * sizeof *keys),
          *values = wz_alloc(PAGES * PAGE * narrow * sizeof *keys);
    const struct wz_kv kv = { keys, values, PAGES, PAGE, KV_HEADS, D, half };
    const struct wz_rows rows = { TOKENS, 1, PAGES, seq, pos, table };

    for (int i = 0; i < TOKENS; i++) pos[i] = i;
    for (int i = 0; i < D / 2; i++) freq[i] = 1 / (float)(i + 1);
    wz_rope(be, q, pos, freq, TOKENS, HEADS, D, 1);
    wz_kv_write(be, &kv, filled(o->more, TOKENS * narrow, 11), q, &rows);
    float *out = next(o, TOKENS * wide), *lse = next(o, TOKENS * HEADS), *d_q = next(o, TOKENS * wide);
    wz_attention(be, out, lse, q, &kv, &rows, HEADS, (struct wz_scores){ 0 });
    wz_attention_back(be, d_q, next(o, TOKENS * narrow), next(o, TOKENS * narrow), (struct wz_past){ 0 },
                      filled(o->more, TOKENS * wide, 12), out, lse, q, &kv, &rows, HEADS, (struct wz_scores){ 0 });
    free(q);
    free(keys);
    free(values);
}

static void run_vectors(struct outputs *o, struct wz_backend *be)
{
    const size_t n = TOKENS * WIDTH;
    float *x = filled(wz_alloc(n * sizeof *x), n, 13), *y = filled(wz_alloc(n * sizeof *y), n, 14);
    float *normed = next(o, n), *rstd = next(o, TOKENS), *w = next(o, n), *m = next(o, n), *v = next(o, n);
    double sum;

    wz_rmsnorm(be, normed, rstd, x, y, TOKENS, WIDTH, 1e-5f, 0);
    wz_rmsnorm_back(be, next(o, n), next(o, WIDTH), y, x, y, rstd, TOKENS, WIDTH, 0);
    wz_swiglu(be, next(o, n), x, y, n, WZ_SILU);
    wz_swiglu_back(be, next(o, n), next(o, n), normed, x, y, n, WZ_SILU);
    wz_cast(be, (uint16_t *)next(o, n), x, n);
    wz_adamw(be, w, x, m, v, n, 1e-2f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.5f, 3);
    wz_add(be, w, y, n);
    wz_squares(be, &sum, x, n);
    memcpy(next(o, 2), &sum, sizeof sum);
    free(x);
    free(y);
}

static struct outputs *outputs_by(const struct hot *const choice[SLOTS], const char *order)
{
    static const int counts[] = { 1, 5, FEW, FEW + 1, TOKENS };
    struct outputs *o = wz_alloc(sizeof *o);
    struct wz_err err;
    struct wz_backend *be = wz_backend_open("cpu", 1, &(struct wz_numerics){ .isa = "fma", .bf16 = order }, &err);
    float *weights = filled(wz_alloc(WORDS * WIDTH * sizeof *weights), WORDS * WIDTH, 7);
    uint16_t *halves = wz_alloc(WORDS * WIDTH * sizeof *halves);

    assert_non_null(be);
    wz_cpu_compose(be->state, choice, be->amx);
    disturb();
    for (int i = 0; i < WORDS * WIDTH; i++) halves[i] = wz_f32_to_bf16(weights[i]);
    for (int type = 0; type <= WZ_INT8; type++) {
        void *data = type == WZ_F32 ? (void *)weights : (void *)halves;
        struct wz_weight w = { data, (enum wz_type)type, WIDER, WIDTH, NULL, 0 }, head = w;
        head.out = WORDS;
        wz_pack(be, &w);
        for (size_t i = 0; i < WZ_COUNT(counts); i++) run_products(o, be, &w, counts[i]);
        if (type != WZ_INT8) {
            wz_pack(be, &head);
            run_head(o, be, &head, FEW);
            run_head(o, be, &head, TOKENS);
        }
        wz_unpack(be, &w);
        wz_unpack(be, &head);
    }
    run_attention(o, be, false);
    run_attention(o, be, true);
    run_vectors(o, be);
    free(weights);
    free(halves);
    wz_backend_close(be);
    return o;
}

static void mixtures(const char *order, uint32_t count)
{
    const struct hot *rows[MOST_ROWS + 1], *choice[SLOTS], *tiles = wz_tiles_trapped();
    int n = wz_cpu_rows(rows, "fma", NULL), mixed = 0;

    if (tiles && tiles != rows[0]) rows[n] = rows[n - 1], rows[n++ - 1] = tiles;
    if (n < 2) SKIP("fewer than two rows of equal bits run here");
    for (int slot = 0; slot < SLOTS; slot++) choice[slot] = rows[n - 1];
    struct outputs *want = outputs_by(choice, order);
    for (uint32_t m = 0; m < count; m++) {
        for (int slot = 0; slot < SLOTS; slot++)
            choice[slot] = rows[wz_random((struct wz_key){ .a = m, .b = (uint32_t)slot }) % (uint64_t)n];
        if (!wz_cpu_mixes(choice)) continue;
        struct outputs *got = outputs_by(choice, order);
        assert_int_equal(got->n, want->n);
        for (size_t i = 0; i < want->n; i++)
            if (memcmp(&want->at[i], &got->at[i], sizeof(float)))
                fail_msg("%s, mixture %d: output %zu is %a, by %s alone %a", order, (int)m, i, (double)got->at[i],
                         rows[n - 1]->isa, (double)want->at[i]);
        free(got);
        mixed++;
    }
    free(want);
    assert_true(mixed > 2);
}

static void test_mixtures(void **state) { mixtures("chain", 24); }

static void test_mixtures_amx(void **state) { mixtures("amx", 24); }

/* Products in int8 have the same bits with all rows. */
static void test_int8(void **state)
{
    static const int counts[] = { 1, FEW, FEW + 1, TOKENS };
    struct outputs *want = NULL;

    for (size_t i = WZ_COUNT(isas); i-- > 0;) {
        struct wz_backend *be = open_isa(isas[i], NULL);
        if (!be) continue;
        struct outputs *got = wz_alloc(sizeof *got);
        uint16_t *halves = wz_alloc(WIDER * WIDTH * sizeof *halves);
        struct wz_weight w = { halves, WZ_INT8, WIDER, WIDTH, NULL, 0 };
        for (int k = 0; k < WIDER * WIDTH; k++) halves[k] = wz_f32_to_bf16(sinf((float)k));
        wz_pack(be, &w);
        for (size_t k = 0; k < WZ_COUNT(counts); k++) run_products(got, be, &w, counts[k]);
        if (want) same(isas[i], "outputs", want->at, got->at, (int)want->n);
        wz_unpack(be, &w);
        wz_backend_close(be);
        free(halves);
        free(want);
        want = got;
    }
    free(want);
}

/* ---- the user's cache ------------------------------------------------------------------------------------- */

/* A process that opens the backend with the folder as its cache, after it measured anew where `anew`. */
static pid_t chooser(const char *folder, bool anew, int to)
{
    pid_t child;

    fflush(NULL);
    if ((child = fork())) return child;
    struct wz_tuned list[WZ_TUNED];
    struct wz_buf out = { 0 };
    setenv("XDG_CACHE_HOME", folder, 1);
    unsetenv("HOME");
    wz_buf_printf(&out, "%s:", wz_cpu_tuned(list, anew));
    for (int i = 0; i < WZ_TUNED; i++) wz_buf_printf(&out, " %s", list[i].isa);
    struct wz_backend *be = wz_backend_open("cpu", 1, NULL, NULL);
    bool well = be && (to < 0 || write(to, out.data, out.len) == (ssize_t)out.len);
    wz_backend_close(be);
    wz_buf_finish(&out);
    _exit(!well);
}

/* Where the choice of such a process is from has to begin with `from`. Returns it and the instruction set of each
 * slot, valid until the next call. */
static const char *choice_of(const char *folder, bool anew, const char *from)
{
    static char text[1024];
    int fds[2], status;
    size_t at = 0;

    assert_int_equal(pipe(fds), 0);
    pid_t child = chooser(folder, anew, fds[1]);
    close(fds[1]);
    for (ssize_t n; (n = read(fds[0], text + at, sizeof text - 1 - at)) > 0;) at += (size_t)n;
    text[at] = 0;
    close(fds[0]);
    waitpid(child, &status, 0);
    assert_int_equal(status, 0);
    if (strncmp(text, from, strlen(from))) fail_msg("the choice is \"%s\", expected \"%s\"", text, from);
    return text;
}

static int files_in(const char *folder, glob_t *g)
{
    char *pattern = wz_path("%s/waltz/*", folder);
    int rc = glob(pattern, 0, NULL, g);

    free(pattern);
    return rc == 0 ? (int)g->gl_pathc : 0;
}

static void put(const char *path, const char *text)
{
    struct wz_err err;

    if (wz_file_write(path, text, strlen(text), &err) < 0) fail_msg("%s", err.text);
}

static void put_json(const char *path, json_t *file)
{
    char *text = json_dumps(file, 0);

    put(path, text);
    free(text);
}

static void test_cache(void **state)
{
    const struct hot *rows[MOST_ROWS];
    const int n = wz_cpu_rows(rows, NULL, NULL);
    char *folder = test_scratch("rows_cache"), *flat = test_scratch("rows_flat"), *plain;
    const char *name;
    glob_t found;
    json_t *value, *last;

    if (n < 2) SKIP("fewer than two rows of equal bits run here");
    choice_of(folder, false, "measured");
    choice_of(folder, true, "measured, and kept"); /* whatever others do on this machine */
    assert_int_equal(files_in(folder, &found), 1);
    const char *path = found.gl_pathv[0];
    choice_of(folder, false, "kept");

    /* what the file says is done */
    json_t *whole = wz_json_load(path, NULL), *choice = json_object_get(whole, "choice");
    last = json_deep_copy(whole);
    json_object_foreach(choice, name, value)
        json_object_set_new(json_object_get(last, "choice"), name, json_string(rows[n - 1]->isa));
    put_json(path, last);
    const char *text = strchr(choice_of(folder, false, "kept"), ':') + 1;
    for (int i = 0; i < SLOTS; i++, text += strlen(rows[n - 1]->isa) + 1)
        assert_memory_equal(text + 1, rows[n - 1]->isa, strlen(rows[n - 1]->isa));

    /* another machine's, another version's, of rows that can't be mixed or are not there, damaged */
    static const char *const keys[] = { "processor", "version" };
    for (size_t i = 0; i < WZ_COUNT(keys); i++) {
        json_t *other = json_deep_copy(last);
        json_object_set_new(json_object_get(other, "key"), keys[i], json_string("another"));
        put_json(path, other);
        choice_of(folder, false, "measured");
        json_decref(other);
    }
    if (rows[0]->product[WZ_BF16]->panel != rows[n - 1]->product[WZ_BF16]->panel) {
        json_object_set_new(json_object_get(last, "choice"), "bf16 few rows", json_string(rows[0]->isa));
        put_json(path, last);
        choice_of(folder, false, "measured");
    }
    json_object_set_new(json_object_get(last, "choice"), "bf16 few rows", json_string("mmx"));
    put_json(path, last);
    choice_of(folder, false, "measured");
    plain = json_dumps(whole, 0);
    plain[strlen(plain) / 2] = 0;
    static const char *const damaged[] = { "", "[]", "{}", "{\"key\": 1, \"choice\": 2}", "\xff\xfe" };
    for (size_t i = 0; i <= WZ_COUNT(damaged); i++) {
        put(path, i < WZ_COUNT(damaged) ? damaged[i] : plain);
        choice_of(folder, false, "measured");
    }

    /* what is no file, and no folder for one */
    char *make = wz_path("rm '%s' && mkfifo '%s'", path, path);
    assert_int_equal(system(make), 0);
    choice_of(folder, false, "measured");
    unlink(path);
    assert_int_equal(wz_mkdirs(path, NULL), 0);
    choice_of(folder, true, "measured, and not kept");
    rmdir(path);
    put(flat, "a file");
    choice_of(flat, true, "measured, and not kept");
    choice_of("relative", true, "measured, and not kept");

    /* several at once leave one whole file */
    pid_t all[6];
    for (size_t i = 0; i < WZ_COUNT(all); i++) all[i] = chooser(folder, true, -1);
    for (size_t i = 0; i < WZ_COUNT(all); i++) {
        int status;
        waitpid(all[i], &status, 0);
        assert_int_equal(status, 0);
    }
    choice_of(folder, false, "kept");
    globfree(&found);
    assert_int_equal(files_in(folder, &found), 1);
    globfree(&found);
    free(make);
    free(plain);
    free(folder);
    free(flat);
    json_decref(whole);
    json_decref(last);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cache), /* first: its processes must not inherit a choice */
        cmocka_unit_test(test_bf16_chain), cmocka_unit_test(test_bf16_amx), cmocka_unit_test(test_amx_flushes),
        cmocka_unit_test(test_amx_rounds), cmocka_unit_test(test_int8),     cmocka_unit_test(test_auto),
        cmocka_unit_test(test_refused),    cmocka_unit_test(test_mixtures), cmocka_unit_test(test_mixtures_amx),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
