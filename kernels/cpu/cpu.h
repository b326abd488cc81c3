/* cpu: what the files of the fast row share: one product for all shapes, and the table of what is compiled for each
 * set of instructions. */
#ifndef WZ_CPU_H
#define WZ_CPU_H

#include "kernels/kernels.h"

/* c[m, n] = sum_k a(m, k) b(k, n), or += when add: every element is one chain of FMAs over k in ascending order,
 * whatever m and n and however they are cut, so a row's bits depend on nothing but itself.
 *   a(m, k) = a[m * sm + k * sk]
 *   b: PANELS  [n / panel][k][panel], made by pack()      ROWS  [k][n], ldb apart, f32 or bf16
 * pairs: an element of a and of a panel is two bf16 of neighbouring k, the earlier in the upper half (an odd end has
 * a zero behind it), and k counts pairs; b as ROWS becomes such pairs on its way, two rows at a time, `odd` where
 * the last is alone. That is the order in which VDPBF16PS adds: like two FMAs, the upper half's first. So where it
 * is missing two FMAs give the same bits, denormals apart, which the instruction takes for zeros. */
struct gemm {
    float *c;
    const float *a;
    const void *b;
    size_t ldc, sm, sk, ldb;
    int m, n, k;
    bool panels, pairs, odd, bytes, add; /* bytes: int8.c's product of panels, k counts lanes of four */
    enum wz_type type;                   /* of b as ROWS */
};

enum {
    KEYS = 32,   /* keys in a step of attention, counted from position 0 */
    VOCAB = 256, /* rows of the head's matrix in a step of the softmax */
    TILE = 128,  /* rows of a head's tile */
};

/* What one block of the vocabulary adds to one row's softmax: z/t has maximum `max`, sum = sum exp(z/t - max),
 * mean = sum exp(z/t - max) (z/t - max). */
struct stat {
    float max, sum, mean;
};

/* Attention of `rows` rows of one sequence that stand one after another, for one kv head. */
struct attend {
    float *out, *lse;
    const float *q;
    const struct wz_kv *kv;
    const struct wz_rows *rows;
    int heads;
    const float *d_out, *o; /* backward only */
    float *d_q, *d_k, *d_v;
};

struct adamw {
    float b1, b2, a1, a2, rate, root, eps, decay, scale;
};

/* Scratch: small things of a tile; logits or their gradients; rows side by side; sampling; left factors as pairs,
 * and the head's second. */
enum { SMALL, LOGITS, ROWS, PICKS, FACTOR, FACTOR_BACK, SCRATCHES };

struct hot {
    const char *isa;
    int panel;
    bool (*runs)(void);
    void (*gemm)(const struct gemm *g, int row, int row_end, int col, int col_end); /* col: a multiple of panel */
    void (*pack)(void *dst, const struct wz_weight *w, int panel);                  /* one panel */
    void (*pair)(uint32_t *out, const float *x, size_t ldx, int k,
                 int n); /* n rows of k floats, ldx apart, to rows of pairs */
    /* k rows of n floats, ldx apart, two by two: out[(k + 1) / 2][n] */
    void (*pair_rows)(uint32_t *out, const float *x, size_t ldx, int k, int n);
    void (*cast)(uint16_t *out, const float *x, size_t n);
    void (*exps)(float *out, const float *z, float scale, float max, int n); /* exp(z * scale - max) */
    struct stat (*stat)(const float *z, float scale, int n);
    /* z[n] becomes g = d * (- exp(z * scale - lse)); the target's + d is the caller's */
    void (*grad)(float *z, float scale, float lse, float d, int n);
    /* int8.c: the product, one panel, and n rows of k floats as left factors */
    void (*gemm_int8)(const struct gemm *g, int row, int row_end, int col, int col_end);
    void (*pack_int8)(void *dst, const struct wz_weight *w, int panel);
    void (*quantise)(uint32_t *out, const float *x, int k, int n);
    void (*attend)(const struct attend *a, int row, int n, int kv_head);
    void (*attend_back)(const struct attend *a, int row, int n, int kv_head);
    void (*rmsnorm)(float *out, float *rstd, const float *x, const float *w, int n, int c, float eps);
    void (*rmsnorm_back)(float *d_x, const float *d_out, const float *x, const float *w, const float *rstd, int n,
                         int c);
    /* d_w[from, to) += d_out * x * rstd over n rows of c */
    void (*rmsnorm_back_w)(float *d_w, const float *d_out, const float *x, const float *rstd, int n, int c, int from,
                           int to);
    void (*swiglu)(float *out, const float *gate, const float *up, size_t n);
    void (*swiglu_back)(float *d_gate, float *d_up, const float *d_out, const float *gate, const float *up, size_t n);
    void (*rope)(float *x, const float *turn, int heads, int d, int sign); /* one row; turn: [d/2] cos, [d/2] sin */
    void (*add)(float *dst, const float *src, size_t n);
    double (*square)(const float *x, size_t n);
    void (*adamw)(float *w, const float *g, float *m, float *v, size_t n, const struct adamw *by);
};

extern const struct hot wz_hot_avx512bf16, wz_hot_avx512, wz_hot_avx2, wz_hot_neon, wz_hot_generic;

struct turns {
    float *freq, *turn;
    int half, count;
}; /* RoPE's cos and sin by position */

struct cpu {
    const struct hot *hot;
    struct turns *turns;
    int n_turns;
    struct scratch {
        void *p;
        size_t size;
    } scratch[SCRATCHES];
};

static inline const struct hot *wz_hot(const struct wz_backend *be) { return ((const struct cpu *)be->state)->hot; }

void *wz_cpu_scratch(struct wz_backend *be, int which, size_t size); /* not zeroed; grows, never shrinks */
void wz_cpu_gemm(struct wz_backend *be, const struct gemm *g);       /* over the pool */
/* n rows of x, ldx apart, as the left factor of a product over `width` with a matrix of `type`: pairs in scratch
 * `which` where it is bf16, wz_cpu_depth apart, else x itself. */
const float *wz_cpu_factor(struct wz_backend *be, int which, const float *x, size_t ldx, enum wz_type type, int n,
                           int width);
/* Elements of a row of panels, or of such a left factor. */
static inline size_t wz_cpu_depth(enum wz_type type, int width)
{
    return type == WZ_INT8 ? ((size_t)width + 3) / 4 + 2 : type == WZ_BF16 ? ((size_t)width + 1) / 2 : (size_t)width;
}
void wz_ops_cpu_attention(struct wz_ops *ops);
void wz_ops_cpu_head(struct wz_ops *ops);

#endif
