/* cpu: declarations shared by the files of the cpu backend: one matrix product for all shapes, and the table of
 * functions compiled once per instruction set. */
#ifndef WZ_CPU_H
#define WZ_CPU_H

#include "kernels/kernels.h"

/* c[m, n] = sum_k a(m, k) b(k, n), or += when add: every element is one chain of FMAs over k in ascending order,
 * whatever m and n are and however they are tiled, so a token's bits depend on nothing but its own inputs.
 *   a(m, k) = a[m * sm + k * sk]
 *   b, panels:      [n / panel][k][panel], made by pack() or right()
 *   b, not panels:  [k][n], rows ldb elements apart, f32 or bf16 by `type`
 * by->type BF16: an element of a panel is two bf16 of neighbouring k, the earlier in the upper half (an odd k is padded
 * with a zero), and k counts such pairs. a holds them as pairs too, or as two floats with the values of bf16, sk apart
 * (`left` of struct product). A b that is not packed is converted two rows at a time; it has `rows`, fewer than the
 * pairs of k where those are padded with zeros.
 * VDPBF16PS adds in that order, like two FMAs, the upper half's first, and takes denormal inputs and results as zeros;
 * the rows without it set the processor to do the same, so that all of x86 with FMA has one set of bits.
 * by->type INT8: the product of int8.c, over panels; k counts groups of four bytes.
 * In the order of ref/amx.c k is a multiple of by->unit. Tiles (amx.c) take pairs too; where sm is 1, for a sum over
 * tokens, an a of theirs is [k / unit][m][unit]. */
struct product;
struct gemm {
    const struct product *by;
    float *c;
    const float *a;
    const void *b;
    size_t ldc, sm, sk, ldb;
    int m, n, k, rows;
    bool panels, add;
    enum wz_type type; /* of a b that is not packed */
};

enum {
    KEYS = 32,   /* keys in a block of attention, counted from position 0 */
    VOCAB = 256, /* vocabulary entries in a block of the head's softmax */
    TILE = 512, /* tokens in a tile of the head, whose gradient, as large as its weight, is read and written for each */
};

/* Partial softmax of one token over one block of the vocabulary: max = max z/t, sum = sum exp(z/t - max),
 * mean = sum exp(z/t - max) (z/t - max). */
struct stat {
    float max, sum, mean;
};

/* Arguments of attention and of its backward (d_out and the following), as in ops.h. */
struct attend {
    float *out, *lse;
    const float *q;
    const struct wz_kv *kv;
    const struct wz_rows *rows;
    int heads;
    const float *d_out, *o; /* backward only */
    float *d_q, *d_k, *d_v;
    struct wz_scores scores;
    int past;               /* tokens before the sequence's, of which it sums d_k and d_v apart: */
    float *past_k, *past_v; /* [past, K, D], overwritten */
};

/* Scratch buffers: partial sums and tiles; logits or their gradients; the head's gathered tokens; sampling; left
 * operands converted to pairs or int8 (FACTOR_BACK: the second one of the head's backward), right ones; gradients of
 * what sequences begin with. */
enum { SMALL, LOGITS, ROWS, PICKS, FACTOR, FACTOR_BACK, RIGHT, PAST, SCRATCHES };

/* An op on an array of n elements, or on tokens [n, cols], done in parts of `step`: fn computes [from, end). */
struct walk;
typedef void walk_fn(const struct walk *w, size_t from, size_t end);
struct walk {
    walk_fn *fn;
    size_t n, step;
    int cols, rows;
    float *out, *more, *m, *v;
    const float *a, *b, *c, *d; /* the op's inputs, in their order in ops.h */
    uint16_t *halves;
    double *sums;
    float eps; /* or scale's factor */
    float one; /* of a norm */
    const struct wz_adamw_scalars *by;
};

/* Tokens [first, first + n) of one sequence, for the query heads of one kv head. */
typedef void attend_fn(const struct attend *a, int first, int n, int kv_head);

/* A product's rows [row, row_end) and columns [col, col_end); col is a multiple of the panel. */
typedef void gemm_fn(const struct gemm *g, int row, int row_end, int col, int col_end);

/* Packs one panel. */
typedef void pack_fn(void *dst, const struct wz_weight *w, int panel);

/* Converts x[n][k], rows ldx apart. */
typedef void pair_fn(uint32_t *out, const float *x, size_t ldx, int k, int n);

/* `steps` times PEAK_CHAINS independent multiply-adds of panel / 2 elements, in registers: the most a core can do. */
typedef float peak_fn(int steps);
enum { PEAK_CHAINS = 12 };

/* Products with weights of one type. Depth: wz_cpu_depth, a multiple of `unit`, which is above 1 in the order of
 * ref/amx.c alone. */
struct product {
    enum wz_type type;
    int panel, left; /* columns of a panel; 4-byte elements of a left operand for each one of a panel's depth */
    int unit;
    int terms; /* products that peak adds to an element in one multiply-add */
    peak_fn *peak;
    gemm_fn *gemm;
    pack_fn *pack;
    pair_fn *factor;      /* left operands from tokens, out[n][left * depth]; NULL: x itself */
    pair_fn *factor_rows; /* the same by neighbouring rows, for sums over tokens: out[left * depth(n)][k] */
    pair_fn *right;       /* right operands of those: panels [k / panel][depth(n)][panel]; NULL: x itself */
};

/* Products by the weight's type; AMX: of bf16, in the order of ref/amx.c. */
enum { AMX = WZ_INT8 + 1, KINDS };

/* Functions compiled once per instruction set. Shapes and formulas are those of ops.h, for one thread's part. */
struct hot {
    const char *isa;
    const char *bits;   /* rows of one name give the same bits for all inputs, NaNs' payloads apart */
    bool (*runs)(void); /* does this machine have the instructions? */
    const struct product *product[KINDS];
    void (*exps)(float *out, const float *z, float scale, float max, int n); /* exp(z * scale - max) */
    struct stat (*stat)(const float *z, float scale, int n);
    /* z[n] becomes g = d * (- exp(z * scale - lse)); the caller adds d to the target's */
    void (*grad)(float *z, float scale, float lse, float d, int n);
    /* the same of capped logits, each times slope = 1 - (z/cap)^2; cap: z[n] becomes cap tanh(z/cap) */
    void (*grad_capped)(float *z, float scale, float lse, float d, float cap, int n);
    void (*cap)(float *z, float cap, int n);
    attend_fn *attend, *attend_back;
    walk_fn *rmsnorm, *rmsnorm_back, *rmsnorm_back_w /* of columns, over `rows` tokens */, *swiglu, *swiglu_back,
        *geglu, *geglu_back, *cast, *zero, *add, *scale, *square, *adamw;
    void (*rope)(float *x, const float *cos_sin, int heads, int d, int sign); /* one token; [d/2] cos, [d/2] sin */
};

extern const struct hot wz_hot_avx512amx, wz_hot_avx512bf16, wz_hot_avx512, wz_hot_avx2, wz_hot_neon, wz_hot_generic;

/* What rows of equal bits share among them: products of at most FEW rows and of more, by kind (2 kind, 2 kind + 1),
 * attention, its backward, and all else. A row computes each (choose.c). */
enum slot { ATTEND = 2 * KINDS, ATTEND_BACK, VECTORS, SLOTS };
enum { FEW = 12, MOST_ROWS = WZ_TUNED_ISAS }; /* MOST_ROWS: of equal bits */

/* RoPE's cos and sin for one set of frequencies freq[half]: cos_sin [count positions][2][half] */
struct rope_table {
    float *freq, *cos_sin;
    int half, count;
};

struct slab {
    struct slab *next;
    char *map, *at; /* as it was mapped; from its first huge page */
    size_t used;
    int live; /* packed weights in it */
};
struct cpu {
    struct slab *slabs;
    struct hot hot; /* of every function, the chosen row's; its products are those of many rows */
    const struct product *few[KINDS];
    struct wz_ops ref; /* ref's functions, for heads too wide for the tiles of attention */
    struct rope_table *tables;
    int n_tables;
    struct scratch {
        void *p;
        size_t size;
    } scratch[SCRATCHES];
};

static inline const struct hot *wz_hot(const struct wz_backend *be) { return &((const struct cpu *)be->state)->hot; }

/* Products of n rows. Those of one type have the same panels, but may differ in their left operands. */
static inline const struct product *wz_product(const struct wz_backend *be, enum wz_type type, int n)
{
    const struct cpu *cpu = be->state;

    return n <= FEW ? cpu->few[type] : cpu->hot.product[type];
}

/* ---- choose.c: which row of equal bits computes what ------------------------------------------------------ */

/* The rows that run here and give the bits that numerics.isa asks for, best by the processor's flags first; returns how
 * many, 0 and a message where there are none. */
int wz_cpu_rows(const struct hot *rows[MOST_ROWS], const char *isa, struct wz_err *err);
/* What computes each slot, of these n rows. */
void wz_cpu_choose(const struct hot *choice[SLOTS], const struct hot *const *rows, int n);
/* Is it of rows that may be mixed: have the few and the many of every type the same panels? */
bool wz_cpu_mixes(const struct hot *const choice[SLOTS]);
/* amx: products of bf16 are in that order. */
void wz_cpu_compose(struct cpu *cpu, const struct hot *const choice[SLOTS], bool amx);

/* ---- products --------------------------------------------------------------------------------------------- */

void *wz_cpu_scratch(struct wz_backend *be, int which, size_t size); /* not zeroed; grows, never shrinks */
void wz_cpu_gemm(struct wz_backend *be, const struct gemm *g);       /* on all threads where it is large enough */
/* Multiply-adds that amortise a barrier of the pool: smaller work runs on the calling thread. */
enum { GRAIN = 1 << 21 };
/* x[n][width], rows ldx apart, as a left operand: f32: x itself; bf16: rounded, int8: quantised, both in scratch
 * `which` with rows wz_cpu_left apart. */
const float *wz_cpu_factor(struct wz_backend *be, int which, const struct product *by, const float *x, size_t ldx,
                           int n, int width);
/* x[n][width] as the right operand of a sum over its rows. */
const float *wz_cpu_right(struct wz_backend *be, const struct product *by, const float *x, int n, int width);
/* Length in 4-byte elements of the k dimension of a panel, and of a left operand. */
static inline size_t wz_cpu_depth(const struct product *by, int width)
{
    size_t unit = (size_t)by->unit, each = by->type == WZ_INT8 ? 4 : by->type == WZ_BF16 ? 2 : 1;
    size_t units = ((size_t)width + each * unit - 1) / (each * unit);

    return units * unit + (by->type == WZ_INT8 ? 2 : 0);
}
static inline size_t wz_cpu_left(const struct product *by, int width)
{
    return (size_t)by->left * wz_cpu_depth(by, width);
}
/* Products for wz_cpu_gemm. a: the left operand, made for `by`; sm, sk: its strides, in 4-byte elements.
 * packed:  c[m, ldc] = a W[first .. first + n, :]^T (+= when add), for matmul and the head's logits
 * back_x:  c[m, in] = a W[first .. first + depth, :] (+= when add), summed over output channels
 * back_w:  c[out, in] += a^T x[n, in], summed over n tokens; x: the right operand */
struct gemm wz_cpu_gemm_packed(const struct product *by, float *c, size_t ldc, const float *a,
                               const struct wz_weight *w, int first, int m, int n, bool add);
struct gemm wz_cpu_gemm_back_x(const struct product *by, float *c, const float *a, size_t sm, const struct wz_weight *w,
                               int first, int depth, int m, bool add);
struct gemm wz_cpu_gemm_back_w(const struct product *by, float *c, const float *a, size_t sk, const float *x, int out,
                               int in, int n);
void wz_ops_cpu_attention(struct wz_ops *ops);
void wz_ops_cpu_head(struct wz_ops *ops);

/* ---- pick.c: samples one token from the logits z of one position ------------------------------------------ */

/* Are there filters? Greedy has none. */
bool wz_cpu_pick_filters(const struct wz_pick *pick);
/* Without filters, two steps. First the block of VOCAB entries that holds the token, from the partial sums of the
 * blocks and their total (max, sum); *left: the probability mass, in units of the block's, left to pass inside it.
 * Then the index of the token among the n logits of that block. */
int wz_cpu_pick_block(const struct stat *stats, int blocks, double max, double sum, const struct wz_pick *pick,
                      double *left);
int wz_cpu_pick_within(const struct hot *hot, const float *z, int n, const struct stat *stat,
                       const struct wz_pick *pick, double left);

/* With filters: needs all logits and wz_cpu_pick_scratch(vocab) bytes of scratch. max, sum: of the whole vocabulary. */
size_t wz_cpu_pick_scratch(int vocab);
int wz_cpu_pick_filtered(const struct hot *hot, const float *z, int vocab, double max, double sum,
                         const struct wz_pick *pick, void *scratch);

#endif
