/* attend: code shared by attention and its backward: tiles of queries, loads to shared memory, dot products.
 *
 * A query is a token for one of the `group` query heads that share a kv head; queries of a sequence are numbered token
 * by token, the heads of the group within. A tile has QUERIES of them (or more, in flash.cu) from `first` on, out of
 * the tokens [row, row + rows) of one sequence. */
#ifndef WZ_CUDA_ATTEND_H
#define WZ_CUDA_ATTEND_H

#include "kernels/cuda/cuda.cuh"

enum { QUERIES = 16, THREADS = 128 };

struct tile {
    int row, rows, first;
};

/* struct wz_rows on the device. pages: index in `table` of the first page of a token's sequence. */
struct places {
    const int *pages, *pos, *table;
    const struct tile *tiles;
};

struct attend {
    struct wz_kv kv;
    struct places at;
    int heads, group;
    float scale;
    struct wz_scores scores;
    float *out, *lse;
    const float *q;
};

/* Copies tokens' positions to the device. */
struct places wz_cuda_places(struct wz_backend *be, const struct wz_rows *rows);

/* An op's arguments as kernels take them, without tiles. The forward writes out and lse, the backward reads them. */
static inline struct attend attend_of(struct wz_backend *be, const float *out, const float *lse, const float *q,
                                      const struct wz_kv *kv, const struct wz_rows *rows, int heads,
                                      struct wz_scores scores)
{
    float scale = 1 / sqrtf((float)kv->head_dim);

    return { *kv, wz_cuda_places(be, rows), heads, heads / kv->heads, scale, scores, (float *)out, (float *)lse, q };
}

/* Copies tiles to the device: runs of a sequence's tokens with more than `few` queries in tiles of `wide` queries,
 * count[0] tiles; after these the other runs in tiles of QUERIES, count[1]. */
const struct tile *wz_cuda_tiles(struct wz_backend *be, enum mirror_of where, const struct wz_rows *rows, int group,
                                 int wide, int few, int count[2]);

/* A tile for all tokens of each sequence: *n of them. */
static inline const struct tile *wz_cuda_sequences(struct wz_backend *be, const struct wz_rows *rows, int *n)
{
    int count[2];
    const struct tile *t = wz_cuda_tiles(be, SEQUENCES, rows, 1, 1 << 30, 0, count);

    *n = count[0];
    return t;
}

/* Attention by flash.cu, its backward by flash_back.cu; false where they do not apply: they need a bf16 cache, heads of
 * 64 or 128 channels, neither cap nor window, and enough shared memory. They set a->at.tiles themselves. */
bool wz_cuda_flash(struct wz_backend *be, const struct attend *a, const struct wz_rows *rows);
bool wz_cuda_flash_back(struct wz_backend *be, const struct attend *a, float *d_q, float *d_k, float *d_v,
                        struct wz_past past, const float *d_out, const struct wz_rows *rows);

/* ---- in kernels: vectors of d channels are d + 1 apart in shared memory, against bank conflicts ----------- */

/* Number of queries in a tile of at most `wide`. */
INLINE int queries_of(const struct tile *t, int group, int wide = QUERIES)
{
    int n = t->rows * group - t->first;

    return n < wide ? n : wide;
}

/* Token of query i of a tile (row_of), and its index in an array [N, H] (query_at). */
INLINE int row_of(const struct tile *t, int i, int group) { return t->row + (t->first + i) / group; }

INLINE size_t query_at(const struct attend *a, const struct tile *t, int i, int kv_head)
{
    return (size_t)row_of(t, i, a->group) * (size_t)a->heads + (size_t)(kv_head * a->group + (t->first + i) % a->group);
}

/* The first position that a token sees. */
INLINE int first_seen(const struct attend *a, int pos)
{
    return a->scores.window && pos >= a->scores.window ? pos - a->scores.window + 1 : 0;
}

INLINE void load_queries(float *smem, const float *from, const struct attend *a, const struct tile *t, int n,
                         int kv_head)
{
    int d = a->kv.head_dim;

    for (int e = (int)threadIdx.x; e < n * d; e += THREADS)
        smem[e / d * (d + 1) + e % d] = from[query_at(a, t, e / d, kv_head) * (size_t)d + (size_t)(e % d)];
}

/* Keys or values of positions [t0, t0 + n) of a sequence. */
INLINE void load_cache(float *smem, const float *from, const struct attend *a, int pages, int t0, int n, int kv_head)
{
    int d = a->kv.head_dim, p = a->kv.page;

    for (int e = (int)threadIdx.x; e < n * d; e += THREADS) {
        int t = t0 + e / d;
        size_t page = (size_t)a->at.table[pages + t / p];
        smem[e / d * (d + 1) + e % d] =
            weight_at(from, a->kv.half ? WZ_BF16 : WZ_F32,
                      ((page * (size_t)a->kv.heads + (size_t)kv_head) * (size_t)p + (size_t)(t % p)) * (size_t)d +
                          (size_t)(e % d));
    }
}

/* s[QUERIES][KEYS] = a[i] . b[j], each one chain over d. A thread has one key and every THREADS / KEYS-th query. */
template <int KEYS> INLINE void dots(float *s, const float *a, const float *b, int n, int keys, int d)
{
    constexpr int STEP = THREADS / KEYS, MOST = (QUERIES + STEP - 1) / STEP;
    int j = (int)threadIdx.x % KEYS, first = (int)threadIdx.x / KEYS;
    float sum[MOST] = { 0 };

    if (j >= keys) return;
    for (int c = 0; c < d; c++) {
        float y = b[j * (d + 1) + c];
#pragma unroll
        for (int k = 0; k < MOST; k++)
            if (first + k * STEP < n) sum[k] = fmaf(a[(first + k * STEP) * (d + 1) + c], y, sum[k]);
    }
#pragma unroll
    for (int k = 0; k < MOST; k++)
        if (first + k * STEP < n) s[(first + k * STEP) * KEYS + j] = sum[k];
}

#endif
