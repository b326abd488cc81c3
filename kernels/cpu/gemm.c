/* The matrix product behind matmul, its backwards and the head: blocks of k, panels of columns, tiles of rows.
 *
 *   for k in blocks of KC:              a panel's block fits the L1 cache
 *     for each panel of 2 W columns:    read once, used by all rows (few rows: two panels side by side)
 *       for each register tile of up to MR rows
 *
 * Between blocks of k the sums are stored in c, as f32, which is exact. A b that is not packed is copied to a buffer
 * (strip) first when several tiles use it, when the last columns are fewer than a panel, or when it is bf16: as pairs
 * where there is an instruction for them, else as rounded floats, two for each pair. */
#include "kernels/cpu/tile.h"

enum { KC = 256, PANEL = 2 * W };

/* Last columns, fewer than a panel: computed in a buffer. */
static void edge_run(const struct gemm *g, float *c, const float *a, int rows, int cols, const void *const *b,
                     size_t ldb, int k, bool from_c, enum tile_kind kind)
{
    float buf[MR2 * PANEL];

    for (int at = 0, most = most_rows(kind, 2); at < rows; at += most) {
        int n = rows - at < most ? rows - at : most;
        for (int i = 0; i < n; i++)
            for (int j = 0; j < PANEL; j++)
                buf[i * PANEL + j] = from_c && j < cols ? c[(size_t)(at + i) * g->ldc + (size_t)j] : 0;
        by_2[kind][n - 1](buf, PANEL, a + (size_t)at * g->sm, g->sm, g->sk, b, ldb, k, true, 0);
        for (int i = 0; i < n; i++) memcpy(c + (size_t)(at + i) * g->ldc, buf + i * PANEL, (size_t)cols * sizeof *c);
    }
}

/* Pairs of neighbouring rows: out[(n + 1) / 2][k] */
static void pair_rows(uint32_t *out, const float *x, size_t ldx, int k, int n)
{
    for (int i = 0; i < n; i += 2, x += 2 * ldx, out += k) {
        int j = 0;
        for (; i + 1 < n && j + W <= k; j += W)
            store((float *)out + j, (vf)(upper_half(load(x + j)) | upper_half(load(x + ldx + j)) >> 16));
        for (; j < k; j++)
            out[j] = (uint32_t)wz_f32_to_bf16(x[j]) << 16 | (i + 1 < n ? wz_f32_to_bf16(x[ldx + (size_t)j]) : 0);
    }
}

/* Rows 2 i and 2 i + 1 of b become one row of pairs. */
static void strip_pairs(uint32_t *strip, const struct gemm *g, int k0, int k, int col, int cols)
{
    for (int i = 0; i < k; i++, strip += PANEL) {
        size_t at = 2 * (size_t)(k0 + i) * g->ldb + (size_t)col;
        bool two = 2 * (k0 + i) + 1 < g->rows;
        if (g->type == WZ_BF16) {
            const uint16_t *first = (const uint16_t *)g->b + at, *second = two ? first + g->ldb : first;
            uint32_t keep = two ? 0xffff : 0;
            if (cols == PANEL)
                for (int j = 0; j < PANEL; j++) strip[j] = (uint32_t)first[j] << 16 | (second[j] & keep);
            else
                for (int j = 0; j < cols; j++) strip[j] = (uint32_t)first[j] << 16 | (second[j] & keep);
        } else {
            pair_rows(strip, (const float *)g->b + at, g->ldb, cols, 1 + two);
        }
        for (int j = cols; j < PANEL; j++) strip[j] = 0;
    }
}

/* Copies b[k0 .., col ..] to strip[k][PANEL], zeros past the last column and row, and rounded floats for pairs where a
 * left operand has them. */
static void strip_fill(float *strip, const struct gemm *g, int k0, int k, int col, int cols)
{
    bool pairs = g->by->type == WZ_BF16;

    if (pairs && g->by->left == 1) {
        strip_pairs((uint32_t *)strip, g, k0, k, col, cols);
        return;
    }
    for (int i = 0; i < k * (pairs ? 2 : 1); i++, strip += PANEL) {
        size_t at = (size_t)((pairs ? 2 : 1) * k0 + i) * g->ldb + (size_t)col;
        if (pairs && 2 * k0 + i >= g->rows) {
            memset(strip, 0, PANEL * sizeof *strip);
            continue;
        }
        if (g->type == WZ_BF16 && cols == PANEL)
            for (int j = 0; j < PANEL; j += W) store(strip + j, load_half((const uint16_t *)g->b + at + j));
        else if (g->type == WZ_BF16)
            for (int j = 0; j < cols; j++) strip[j] = wz_bf16_to_f32(((const uint16_t *)g->b)[at + (size_t)j]);
        else if (pairs && cols == PANEL)
            for (int j = 0; j < PANEL; j += W) store(strip + j, (vf)upper_half(load((const float *)g->b + at + j)));
        else if (pairs)
            for (int j = 0; j < cols; j++)
                strip[j] = wz_bf16_to_f32(wz_f32_to_bf16(((const float *)g->b)[at + (size_t)j]));
        else if (cols == PANEL)
            for (int j = 0; j < PANEL; j += W) store(strip + j, load((const float *)g->b + at + j));
        else memcpy(strip, (const float *)g->b + at, (size_t)cols * sizeof *strip);
        for (int j = cols; j < PANEL; j++) strip[j] = 0;
    }
}

static void products(const struct gemm *g, int row, int row_end, int col, int col_end)
{
    const int unit = g->by->unit, left = g->by->left;
    bool widened = g->by->type == WZ_BF16 && left == 2, amx = unit > 1; /* a holds two floats for each pair */
    int most = widened && !g->panels ? KC / 2 : KC, rows = row_end - row, blocks = (g->k + most - 1) / most;
    enum tile_kind kind = g->by->type == WZ_BF16 && (g->panels || left == 1) ? PAIRS : FLOATS;
    float strip[KC * PANEL] __attribute__((aligned(64)));

    if (g->k == 0 && !g->add)
        for (int i = row; i < row_end; i++)
            memset(g->c + (size_t)i * g->ldc + col, 0, (size_t)(col_end - col) * sizeof *g->c);
    for (int block = 0; block < blocks; block++) {
        int k0 = (int)((long)(g->k / unit) * block / blocks) * unit;
        int k = (int)((long)(g->k / unit) * (block + 1) / blocks) * unit - k0;
        const float *a = g->a + (size_t)row * g->sm + (size_t)(widened ? 2 * k0 : k0) * g->sk;
        bool from_c = g->add || block > 0;
        for (int j = col, cols; j < col_end; j += cols) {
            float *c = g->c + (size_t)row * g->ldc + (size_t)j;
            const void *b[4];
            const char *ahead = NULL;
            size_t ldb = PANEL, size = sizeof(float);
            bool pair = rows <= MR4 && j + 2 * PANEL <= col_end && !amx;
            bool direct = !g->panels && g->by->type == WZ_F32 && rows <= MR2;
            cols = pair ? 2 * PANEL : col_end - j < PANEL ? col_end - j : PANEL;
            if (g->panels) {
                const char *p = (const char *)g->b + ((size_t)j * (size_t)g->k + (size_t)k0 * PANEL) * size;
                b[0] = p;
                b[2] = p + (size_t)PANEL * (size_t)g->k * size;
                ahead = p + (size_t)PANEL * (size_t)g->k * size;
            } else if (direct && cols >= PANEL) {
                const float *p = (const float *)g->b + (size_t)k0 * g->ldb + j;
                b[0] = p;
                b[2] = p + PANEL;
                ldb = g->ldb;
            } else {
                pair = false;
                cols = cols > PANEL ? PANEL : cols;
                strip_fill(strip, g, k0, k, j, cols);
                b[0] = strip;
                b[2] = NULL;
            }
            b[1] = (const char *)b[0] + W * size;
            b[3] = pair ? (const char *)b[2] + W * size : NULL;
            int steps = widened && kind == FLOATS && !amx ? 2 * k : k;
            enum tile_kind as = !amx ? kind : kind == PAIRS ? AMX_PAIRS : AMX_FLOATS;
            if (cols < PANEL) edge_run(g, c, a, rows, cols, b, ldb, steps, from_c, as);
            else tiles_run(c, g->ldc, a, g->sm, g->sk, rows, b, ldb, steps, from_c, pair ? 4 : 2, as, ahead);
        }
    }
}

static void gemm(const struct gemm *g, int row, int row_end, int col, int col_end)
{
    if (g->by->type == WZ_BF16 && g->by->left == 2 && (AMX_FLUSHES || g->by->unit == 1)) {
        unsigned long was = flush_begin();
        products(g, row, row_end, col, col_end);
        flush_end(was);
    } else {
        products(g, row, row_end, col, col_end);
    }
}

/* The operands are read anew in every step, so that no step is left out. */
INLINE float peak(const bool pairs, int steps)
{
    volatile float x = 0.5f;
    vf acc[PEAK_CHAINS], sum = SPLAT(0.f);

#pragma GCC unroll 12
    for (int i = 0; i < PEAK_CHAINS; i++) acc[i] = SPLAT((float)i);
    for (; steps > 0; steps--) {
        vf a = SPLAT(x);
#pragma GCC unroll 12
        for (int i = 0; i < PEAK_CHAINS; i++) acc[i] = pairs && LEFT == 1 ? FMA_PAIR(a, a, acc[i]) : FMA(acc[i], a, a);
    }
#pragma GCC unroll 12
    for (int i = 0; i < PEAK_CHAINS; i++) sum += acc[i];
    return sum[0];
}

static float peak_f32(int steps) { return peak(false, steps); }

static float peak_pairs(int steps) { return peak(true, steps); }

/* to[k][PANEL] = from[row][k]: blocks of 4 by 4 transposed in registers, the remainder one by one. */
static void transpose_f32(float *to, const float *from, size_t in, int rows)
{
    typedef float v4f_any __attribute__((vector_size(16), aligned(4), may_alias));
    int whole = rows / 4 * 4;
    size_t k = 0;

    for (; k + 4 <= in; k += 4)
        for (int j = 0; j < whole; j += 4) {
            const float *f = from + (size_t)j * in + k;
            v4f a = *(const v4f_any *)f, b = *(const v4f_any *)(f + in), c = *(const v4f_any *)(f + 2 * in),
                d = *(const v4f_any *)(f + 3 * in);
            v4f ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
            v4f ef = __builtin_shufflevector(a, b, 2, 6, 3, 7), gh = __builtin_shufflevector(c, d, 2, 6, 3, 7);
            float *t = to + k * PANEL + j;
            *(v4f_any *)t = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
            *(v4f_any *)(t + PANEL) = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
            *(v4f_any *)(t + 2 * PANEL) = __builtin_shufflevector(ef, gh, 0, 1, 4, 5);
            *(v4f_any *)(t + 3 * PANEL) = __builtin_shufflevector(ef, gh, 2, 3, 6, 7);
        }
    for (size_t i = 0; i < in; i++)
        for (int j = i < k ? whole : 0; j < PANEL; j++)
            to[i * PANEL + (size_t)j] = j < rows ? from[(size_t)j * in + i] : 0;
}

typedef uint32_t vu_any __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef uint64_t vq __attribute__((vector_size(4 * W)));
typedef uint32_t vu_half __attribute__((vector_size(2 * W)));

/* out[k] = x[k] rounded to bf16. */
INLINE void round_row(float *out, const float *x, int k)
{
    int j = 0;

    for (; j + W <= k; j += W) store(out + j, (vf)upper_half(load(x + j)));
    for (; j < k; j++) out[j] = wz_bf16_to_f32(wz_f32_to_bf16(x[j]));
}

static size_t round_up(int n, int to) { return (size_t)((n + to - 1) / to * to); }

/* Each 64-bit element holds two neighbours, the earlier in its low half: narrowed to 32 bits it keeps the earlier,
 * whose low 16 bits receive the later, shifted down by 48. A zero where there is none. */
static void pair(uint32_t *out, const float *x, size_t ldx, int k, int n)
{
    size_t depth = ((size_t)k + 1) / 2;

    for (int i = 0; i < n; i++, x += ldx, out += depth) {
        int j = 0;
        for (; j + W <= k; j += W) {
            vq two = (vq)upper_half(load(x + j));
            vu_half pairs = __builtin_convertvector(two | two >> 48, vu_half);
            memcpy(out + j / 2, &pairs, sizeof pairs);
        }
        for (; j < k; j += 2)
            out[j / 2] = (uint32_t)wz_f32_to_bf16(x[j]) << 16 | (j + 1 < k ? wz_f32_to_bf16(x[j + 1]) : 0);
    }
}

/* out[n][k], of rounded floats, zeros up to a multiple of `unit`. */
static void widen(float *out, const float *x, size_t ldx, int k, int n, int unit)
{
    size_t width = round_up(k, unit);

    for (int i = 0; i < n; i++, x += ldx, out += width) {
        round_row(out, x, k);
        memset(out + k, 0, (width - (size_t)k) * sizeof *out);
    }
}

/* out[n][k] with n filled up. */
static void widen_rows(float *out, const float *x, size_t ldx, int k, int n, int unit)
{
    for (int i = 0; i < n; i++, x += ldx, out += k) round_row(out, x, k);
    memset(out, 0, (round_up(n, unit) - (size_t)n) * (size_t)k * sizeof *out);
}

static void factor(uint32_t *out, const float *x, size_t ldx, int k, int n)
{
    if (LEFT == 1) pair(out, x, ldx, k, n);
    else widen((float *)out, x, ldx, k, n, 2);
}

static void factor_rows(uint32_t *out, const float *x, size_t ldx, int k, int n)
{
    if (LEFT == 1) pair_rows(out, x, ldx, k, n);
    else widen_rows((float *)out, x, ldx, k, n, 2);
}

static void factor_amx(uint32_t *out, const float *x, size_t ldx, int k, int n)
{
    widen((float *)out, x, ldx, k, n, 2 * UNIT);
}

static void factor_rows_amx(uint32_t *out, const float *x, size_t ldx, int k, int n)
{
    widen_rows((float *)out, x, ldx, k, n, 2 * UNIT);
}

void HOT(wz_cast)(const struct walk *w, size_t from, size_t end)
{
    typedef uint16_t vh __attribute__((vector_size(2 * W)));
    const float *x = w->a;
    uint16_t *out = w->halves;
    size_t i = from;

#if W == 16
    typedef uint16_t vhalves __attribute__((vector_size(4 * W)));
    for (; i + 2 * W <= end && (uintptr_t)(out + i) % 64 == 0; i += 2 * W) {
        const vu low = upper_half(load(x + i)), high = upper_half(load(x + i + W));
        const vhalves a = (vhalves)low, b = (vhalves)high;
        stream(out + i, (vu)__builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31, 33,
                                                    35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63));
    }
    stream_end();
#endif
    for (; i + W <= end; i += W) {
        vh half = __builtin_convertvector(upper_half(load(x + i)) >> 16, vh);
        memcpy(out + i, &half, sizeof half);
    }
    for (; i < end; i++) out[i] = wz_f32_to_bf16(x[i]);
}

/* dst[k][PANEL] = w[panel * PANEL + j][k], zeros past the last row. bf16: pairs of k. What the panel has beyond them
 * (the order amx) stays as it was allocated, zeros. */
void HOT(wz_pack_panel)(void *dst, const struct wz_weight *w, int panel)
{
    int first = panel * PANEL, rows = w->out - first < PANEL ? w->out - first : PANEL;
    size_t in = (size_t)w->in;

    if (w->type == WZ_F32) {
        transpose_f32(dst, (const float *)w->data + (size_t)first * in, in, rows);
        return;
    }
    const uint16_t *from = (const uint16_t *)w->data + (size_t)first * in;
    uint32_t *to = dst;
#if W == 16
    if (in % (2 * W) == 0) {
        for (size_t k = 0; k < in / 2; k += W)
            for (int half = 0; half < PANEL; half += W) {
                vu v[W];
                for (int i = 0; i < W; i++) {
                    const uint16_t *row = from + (size_t)(half + i) * in + 2 * k;
                    v[i] = half + i < rows ? (vu)load((const float *)(const void *)row) : (vu){ 0 };
                    __builtin_prefetch(row + PANEL * in, 0, 2); /* of the next panel */
                }
                transpose(v);
                for (size_t i = 0; i < W; i++) stream(to + (k + i) * PANEL + half, v[i] << 16 | v[i] >> 16);
            }
        stream_end();
        return;
    }
#endif
    if (in % 2 == 0) { /* pairs are transposed as floats; then their halves are swapped */
        transpose_f32(dst, (const float *)(const void *)from, in / 2, rows);
        for (size_t i = 0; i < in / 2 * PANEL; i += W) {
            vu pair = *(const vu_any *)(to + i);
            *(vu_any *)(to + i) = pair << 16 | pair >> 16;
        }
        return;
    }
    for (size_t k = 0; k < in; k += 2, to += PANEL)
        for (int j = 0; j < PANEL; j++) {
            const uint16_t *at = from + (size_t)j * in + k;
            to[j] = j < rows ? (uint32_t)at[0] << 16 | (k + 1 < in ? at[1] : 0) : 0;
        }
}

const struct product HOT(wz_by_f32) = { WZ_F32, PANEL, 1, 1, 1, peak_f32, gemm, HOT(wz_pack_panel), NULL, NULL, NULL };
const struct product HOT(wz_by_bf16) = { WZ_BF16, PANEL,       LEFT, 1, 2 / LEFT, peak_pairs, gemm, HOT(wz_pack_panel),
                                         factor,  factor_rows, NULL };
const struct product HOT(wz_by_amx) = { WZ_BF16,    PANEL,           2,   UNIT, 1, peak_f32, gemm, HOT(wz_pack_panel),
                                        factor_amx, factor_rows_amx, NULL };
