/* amx: products by the tile instructions of Intel's AMX: bf16, in the order of ref/amx.c, which is theirs, and int8.
 *
 * A tile is 16 rows of 64 bytes: of a, 16 rows by 16 elements of k (pairs of bf16, groups of four bytes); of b, those
 * 16 elements by 16 columns; of c, 16 by 16 sums. One step of k loads four tiles for four products:
 *
 *              b  6  7        a panel, 32 columns
 *        a  4     0  1        32 rows of c; of fewer, the tiles are made lower, and below 17 there are no 2, 3, 5
 *           5     2  3
 *
 * An instruction adds the sum of two chains, of what is in the lower halves of pairs and in the upper ones. As that sum
 * is the same whichever is first, panels serve as they are, with the earlier of a pair in the upper half.
 *
 * The shapes of tiles are state of the thread, as are their contents: a call sets them, and leaves none behind, since
 * they would be saved at every switch of threads. */
#include "kernels/cpu/isa.h"

_Static_assert(W == 16 && UNIT == 16, "a tile is a vector wide, in the order amx");
enum { PANEL = 2 * W, HIGH = 2 * 16, KC = 1024, LINE = 64 };

#ifndef TILE_LOAD /* tests/tiles.h has them in C. Strides are in bytes. */
#define TILE_CONFIG(shapes)      __asm__ volatile("ldtilecfg %0" ::"m"(*(shapes)))
#define TILE_RELEASE()           __asm__ volatile("tilerelease" ::)
#define TILE_ZERO(t)             __asm__ volatile("tilezero %%tmm" #t ::)
#define TILE_LOAD(t, p, stride)  __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(p), "r"(stride) : "memory")
#define TILE_STORE(t, p, stride) __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(p), "r"(stride) : "memory")
#define TILE_ADD_PAIRS(c, a, b)  __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)
#define TILE_ADD_BYTES(c, a, b)  __asm__ volatile("tdpbusd %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::) /* a unsigned */
#endif
#define TILE_ADD(c, a, b)                   \
    do {                                    \
        if (bytes) TILE_ADD_BYTES(c, a, b); \
        else TILE_ADD_PAIRS(c, a, b);       \
    } while (0)

/* What LDTILECFG reads (Intel SDM 2, LDTILECFG). */
struct shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/* Tiles for m rows of c. */
static void configure(int m)
{
    struct shapes s = { .palette = 1 };

    for (int t = 0; t < 8; t++) {
        const bool low = t == 2 || t == 3 || t == 5;
        int rows = t >= 6 ? 16 : low ? m - 16 : m < 16 ? m : 16;
        if (rows <= 0) continue;
        s.rows[t] = (uint8_t)rows;
        s.row_bytes[t] = 64;
    }
    TILE_CONFIG(&s);
}

/* What is used after a block, brought nearer while it is computed, since tiles wait for memory: some lines of b a step,
 * and some rows of c, which are about to be written. */
struct ahead {
    const char *b;
    size_t b_by, c_by; /* bytes from one to the next */
    char *c;
    int b_lines, c_rows, c_step;
};

INLINE void bring(struct ahead *next)
{
    for (int i = 0; i < next->b_lines; i++, next->b += next->b_by) __builtin_prefetch(next->b, 0, 2);
    for (int i = 0; i < next->c_step && next->c_rows > 0; i++, next->c_rows--, next->c += next->c_by) {
        __builtin_prefetch(next->c, 1, 3);
        __builtin_prefetch(next->c + LINE, 1, 3);
    }
}

/* c in tiles += `steps` steps of a, rows lda bytes and steps `step` bytes apart, and of a panel b. */
INLINE void steps_add(const bool bytes, const bool two, const char *a, size_t lda, size_t step, const char *b,
                      int steps, struct ahead *next)
{
    const size_t row = PANEL * sizeof(float);
    const char *low = a + 16 * lda;

    for (; steps > 0; steps--, a += step, low += step, b += UNIT * row) {
        TILE_LOAD(4, a, lda);
        TILE_LOAD(6, b, row);
        TILE_ADD(0, 4, 6);
        if (two) TILE_LOAD(5, low, lda);
        if (two) TILE_ADD(2, 5, 6);
        bring(next);
        TILE_LOAD(7, b + 64, row);
        TILE_ADD(1, 4, 7);
        if (two) TILE_ADD(3, 5, 7);
    }
}

/* The same for k elements, of which the last, fewer than a step, are copied and filled up with zeros; c, rows ldc bytes
 * apart, is read before where from_c, and written. */
INLINE void block(const bool bytes, const bool two, char *c, size_t ldc, bool from_c, const uint32_t *a, size_t lda,
                  size_t step, int m, const uint32_t *b, int k, struct ahead next)
{
    const size_t size = sizeof *a, rest = (size_t)k % UNIT;
    char *low = c + 16 * ldc;

    if (from_c) {
        TILE_LOAD(0, c, ldc);
        TILE_LOAD(1, c + 64, ldc);
        if (two) TILE_LOAD(2, low, ldc);
        if (two) TILE_LOAD(3, low + 64, ldc);
    } else {
        TILE_ZERO(0);
        TILE_ZERO(1);
        if (two) TILE_ZERO(2);
        if (two) TILE_ZERO(3);
    }
    steps_add(bytes, two, (const char *)a, lda * size, step * size, (const char *)b, k / UNIT, &next);
    if (rest) {
        uint32_t last_a[HIGH][UNIT] = { { 0 } }, last_b[UNIT][PANEL] = { { 0 } };
        const size_t whole = (size_t)k / UNIT;
        for (int i = 0; i < m; i++) memcpy(last_a[i], a + whole * step + (size_t)i * lda, rest * size);
        memcpy(last_b, b + whole * UNIT * PANEL, rest * PANEL * size);
        steps_add(bytes, two, (const char *)last_a, sizeof last_a[0], 0, (const char *)last_b, 1, &next);
    }
    TILE_STORE(0, c, ldc);
    TILE_STORE(1, c + 64, ldc);
    if (two) TILE_STORE(2, low, ldc);
    if (two) TILE_STORE(3, low + 64, ldc);
}

/* Pairs of the rows of a weight that is not packed: strip[k][PANEL], its elements from k0 on of columns
 * [col, col + cols); zeros past the last column and row. */
static void strip_fill(uint32_t *strip, const struct gemm *g, int k0, int k, int col, int cols)
{
    for (int i = k0; i < k0 + k; i++, strip += PANEL) {
        const uint16_t *first = (const uint16_t *)g->b + 2 * (size_t)i * g->ldb + col, *second = first + g->ldb;
        if (2 * i + 1 < g->rows && cols == PANEL)
            for (int j = 0; j < PANEL; j++) strip[j] = (uint32_t)first[j] << 16 | second[j];
        else
            for (int j = 0; j < cols; j++)
                strip[j] = (2 * i < g->rows ? (uint32_t)first[j] << 16 : 0) | (2 * i + 1 < g->rows ? second[j] : 0);
        memset(strip + cols, 0, (size_t)(PANEL - cols) * sizeof *strip);
    }
}

/* Sums of bytes that are to be scaled as int8.c does: when the next block is under way, since what a tile has just
 * stored can't be read at once. */
struct due {
    float *c;
    const float *a, *panel;
    int m, cols;
};

static void scale(const struct gemm *g, const struct due *due, const float *sums)
{
    if (!due->m) return;
    const float *scales = due->panel + (size_t)g->k * PANEL, *a = due->a;
    const size_t cols = (size_t)due->cols;
    float *c = due->c;

    for (int i = 0; i < due->m; i++, c += g->ldc, a += g->sm, sums += PANEL)
        for (size_t j = 0; j < PANEL; j += W) {
            vi sum = (vi)load(sums + j) - (vi)load(scales + PANEL + j);
            vf y = __builtin_convertvector(sum, vf) * (SPLAT(a[g->k]) * load(scales + j));
            store_in(c, j, cols, g->add ? load_in(c, j, cols, 0) + y : y);
        }
}

/* Elements [k0, k0 + k) of the panel of columns [col, col + cols): packed ones, or a strip of them; next: of the panel
 * after it, of which `blocks` blocks bring 2 k lines nearer. */
INLINE const uint32_t *panel_of(const struct gemm *g, uint32_t *strip, size_t depth, int k0, int k, int col, int cols,
                                int blocks, struct ahead *next)
{
    const uint16_t *weight = (const uint16_t *)g->b + 2 * (size_t)k0 * g->ldb + col;
    const uint32_t *panel = (const uint32_t *)g->b + (size_t)col * depth + (size_t)k0 * PANEL;

    next->b_lines = (PANEL + blocks - 1) / blocks;
    next->b_by = g->panels ? LINE : g->ldb * sizeof *weight;
    next->b = g->panels ? (const char *)(panel + PANEL * depth) : (const char *)(weight + PANEL);
    if (g->panels) return panel;
    strip_fill(strip, g, k0, k, col, cols);
    return strip;
}

/* Columns by panels, for each the blocks of k, for each the rows. Sums of bytes, and the last columns where they are
 * fewer than a panel, are made in a buffer. */
INLINE void products(const bool bytes, const struct gemm *g, int row, int row_end, int col, int col_end)
{
    const bool turned = g->sm == 1;
    const size_t lda = turned ? UNIT : g->sm, step = turned ? UNIT * g->sk : UNIT;
    const int parts = bytes ? 1 : (g->k + KC - 1) / KC, blocks = (row_end - row + HIGH - 1) / HIGH;
    float buffers[2][HIGH * PANEL] __attribute__((aligned(64))) = { { 0 } }, *sums = buffers[0], *other = buffers[1];
    uint32_t strip[KC * PANEL] __attribute__((aligned(64)));
    struct due due = { .m = 0 };

    if (row == row_end) return;
    for (int j = col, cols, high = 0; j < col_end; j += cols) {
        cols = col_end - j < PANEL ? col_end - j : PANEL;
        const bool apart = bytes || cols < PANEL, last = j + cols == col_end;
        const size_t edge = (size_t)cols * sizeof *sums;
        for (int at = 0; at < parts; at++) {
            int k0 = bytes ? 0 : (int)((long)(g->k / UNIT) * at / parts) * UNIT;
            int k = (bytes ? g->k : (int)((long)(g->k / UNIT) * (at + 1) / parts) * UNIT) - k0;
            const uint32_t *a = (const uint32_t *)g->a + (size_t)(k0 / UNIT) * step;
            bool from_c = !bytes && (g->add || at > 0);
            struct ahead next = { .c_by = g->ldc * sizeof *g->c };
            const uint32_t *b = panel_of(g, strip, (size_t)g->k + (bytes ? 2 : 0), k0, k, j, cols, blocks, &next);
            if (last) next.b_lines = 0;
            next.c_step = HIGH * UNIT / k + 1;
            for (int i = row, m; i < row_end; i += m) {
                float *c = g->c + (size_t)i * g->ldc + (size_t)j, *to = apart ? sums : c;
                const size_t ldc = (apart ? PANEL : g->ldc) * sizeof *c;
                const uint32_t *rows = a + (size_t)i * lda;
                m = row_end - i < HIGH ? row_end - i : HIGH;
                const bool lowest = i + m == row_end;
                for (int r = 0; r < m && from_c && apart; r++) memcpy(sums + r * PANEL, c + (size_t)r * g->ldc, edge);
                if (m != high) configure(high = m);
                next.c = (char *)(lowest ? g->c + (size_t)row * g->ldc + j + PANEL : c + HIGH * g->ldc);
                const int then = lowest ? row : i + m;
                next.c_rows = lowest && last ? 0 : row_end - then < HIGH ? row_end - then : HIGH;
                if (m > 16) block(bytes, true, (char *)to, ldc, from_c, rows, lda, step, m, b, k, next);
                else block(bytes, false, (char *)to, ldc, from_c, rows, lda, step, m, b, k, next);
                next.b += next.b_by * (size_t)next.b_lines * (size_t)(k / UNIT);
                for (int r = 0; r < m && apart && !bytes; r++) memcpy(c + (size_t)r * g->ldc, sums + r * PANEL, edge);
                if (!bytes) continue;
                scale(g, &due, other);
                due = (struct due){ c, (const float *)rows, (const float *)b, m, cols };
                float *done = sums;
                sums = other;
                other = done;
            }
        }
    }
    scale(g, &due, other);
    TILE_RELEASE();
}

static void gemm(const struct gemm *g, int row, int row_end, int col, int col_end)
{
    products(false, g, row, row_end, col, col_end);
}

static void gemm_int8(const struct gemm *g, int row, int row_end, int col, int col_end)
{
    products(true, g, row, row_end, col, col_end);
}

/* Six products of tiles a step: enough to hide that each takes longer than the next one waits. */
INLINE float peak(const bool bytes, int steps)
{
    configure(HIGH);
    TILE_ZERO(6);
    TILE_ZERO(7);
    for (; steps > 0; steps--) {
        TILE_ADD(0, 6, 7);
        TILE_ADD(1, 6, 7);
        TILE_ADD(2, 6, 7);
        TILE_ADD(3, 6, 7);
        TILE_ADD(4, 6, 7);
        TILE_ADD(5, 6, 7);
    }
    TILE_RELEASE();
    return 0;
}

static float peak_pairs(int steps) { return peak(false, steps); }

static float peak_bytes(int steps) { return peak(true, steps); }

#ifdef __AVX512BF16__
/* The instruction that rounds takes denormal numbers as zeros, as a tile does; but the largest of them round up to a
 * normal number. */
INLINE bool denormal(vf a, vf b)
{
    const vu x = ((vu)a & 0x7fffffff) - 1, y = ((vu)b & 0x7fffffff) - 1; /* whatever the thread takes them for */
    const __m512i end = _mm512_set1_epi32(0x7fffff);

    return _mm512_cmplt_epu32_mask((__m512i)x, end) | _mm512_cmplt_epu32_mask((__m512i)y, end);
}
#endif

/* Pairs of W elements each of two rows. */
INLINE vu two_rows(vf first, vf second)
{
#ifdef __AVX512BF16__
    const __m512i zip = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    if (__builtin_expect(!denormal(first, second), 1))
        return (vu)_mm512_permutexvar_epi16(zip, (__m512i)_mm512_cvtne2ps_pbh((__m512)first, (__m512)second));
#endif
    return upper_half(first) | upper_half(second) >> 16;
}

/* Pairs of 2 W elements of a row. */
INLINE vu neighbours(vf low, vf high)
{
#ifdef __AVX512BF16__
    if (__builtin_expect(!denormal(low, high), 1))
        return (vu)_mm512_rol_epi32((__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low), 16);
#endif
    vf even = __builtin_shufflevector(low, high, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    vf odd = __builtin_shufflevector(low, high, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return upper_half(even) | upper_half(odd) >> 16;
}

/* Left operands from tokens: out[n][depth] */
static void factor(uint32_t *out, const float *x, size_t ldx, int k, int n)
{
    const size_t depth = (size_t)(k + 2 * UNIT - 1) / (2 * UNIT) * UNIT;

    for (int i = 0; i < n; i++, x += ldx, out += depth) {
        size_t j = 0;
        for (; j + 2 * W <= (size_t)k; j += 2 * W)
            store((float *)out + j / 2, (vf)neighbours(load(x + j), load(x + j + W)));
        if (j / 2 < depth)
            store((float *)out + j / 2, (vf)neighbours(load_in(x, j, (size_t)k, 0), load_in(x, j + W, (size_t)k, 0)));
    }
}

/* Pairs of the first two rows of x, of which `rows` are there: columns [j, j + W) of k, zeros where there is none. */
INLINE vu rows_pair(const float *x, size_t ldx, int rows, int j, int k)
{
    const vf none = { 0 };

    return two_rows(rows > 0 ? load_in(x, (size_t)j, (size_t)k, 0) : none,
                    rows > 1 ? load_in(x + ldx, (size_t)j, (size_t)k, 0) : none);
}

/* Left operand of a sum over rows: out[(n + 31) / 32][k][16] */
static void factor_rows(uint32_t *out, const float *x, size_t ldx, int k, int n)
{
    for (int at = 0; at < n; at += 2 * UNIT, out += (size_t)k * UNIT)
        for (int j = 0; j < k; j += W) {
            vu v[16];
            for (int i = 0; i < 16; i++) v[i] = rows_pair(x + (size_t)(at + 2 * i) * ldx, ldx, n - at - 2 * i, j, k);
            transpose(v);
            for (int i = 0; i < 16 && j + i < k; i++) store((float *)out + (size_t)(j + i) * UNIT, (vf)v[i]);
        }
}

/* Right operand of a sum over rows, as panels: out[(k + PANEL - 1) / PANEL][depth][PANEL] */
static void right(uint32_t *out, const float *x, size_t ldx, int k, int n)
{
    const int depth = (n + 2 * UNIT - 1) / (2 * UNIT) * UNIT;

    for (int j = 0; j < k; j += PANEL)
        for (int i = 0; i < depth; i++, out += PANEL) {
            const float *rows = x + 2 * (size_t)i * ldx;
            for (int v = 0; v < PANEL; v += W) store((float *)out + v, (vf)rows_pair(rows, ldx, n - 2 * i, j + v, k));
        }
}

const struct product HOT(wz_by_tiles) = { WZ_BF16, PANEL,       1,    UNIT, 256, peak_pairs, gemm, HOT(wz_pack_panel),
                                          factor,  factor_rows, right };
const struct product HOT(wz_by_tiles_int8) = {
    WZ_INT8, PANEL, 1, 1, 512, peak_bytes, gemm_int8, HOT(wz_pack_int8), HOT(wz_quantise), NULL, NULL
};
