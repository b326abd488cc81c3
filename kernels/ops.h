/* ops: the list of operations. A backend is a table filled with functions; code above it does not know which one runs.
 *
 * Letters: N tokens (of all sequences, packed one after another), C channels, H query heads, K key/value heads, D head
 * size, F feed-forward width, V vocabulary, P tokens in a page of the cache. Arrays are row-major, f32 unless said
 * otherwise, and lie in the backend's memory unless "host" is said. The caller owns all of them.
 *
 * Three properties every backend keeps (guarantees 1 and 2; tests/opcheck checks them):
 *  - a token's output depends on its own inputs only: not on N, on the other tokens, or on the number of threads;
 *  - "+=" into a weight's gradient is one chain over tokens in ascending order that starts from the stored value, so a
 *    batch cut into two calls at a multiple of wz_grain tokens gives the same bits as one call;
 *  - the same inputs give the same bits.
 * Ops return nothing: shapes are asserted in the wrappers (kernels.h), and failures of the machine end the process.
 */
#ifndef WZ_OPS_H
#define WZ_OPS_H

#include <math.h>

#include "base/base.h"

/* Type of a weight. INT8 is accepted by matmul and matmuls only: the weight is stored as bf16 and multiplied in 8 bits.
 * Every output channel of W and every token of x has a scale s = max |x| / 127 and q = round(x / s), to nearest even;
 * y = s_x s_w sum q_x q_w with an exact integer sum, which bounds `in` by 65536. */
enum wz_type { WZ_F32, WZ_BF16, WZ_INT8 };
static inline size_t wz_type_size(enum wz_type type) { return type == WZ_F32 ? 4 : 2; } /* of an element in memory */

/* Products that one tile instruction adds to an element: ref/amx.c. */
enum { WZ_AMX_DEPTH = 32 };

/* Elements in a block of a sharded or block-wise summed array. */
enum { WZ_BLOCK = 65536 };

/* A weight matrix [out, in]. data: elements of `type`, the caller's. packed: the backend's own copy in the layout its
 * matmul reads, made by pack() and freed by unpack(), or NULL. cap, of a head: see there; 0: none. */
struct wz_weight {
    void *data;
    enum wz_type type;
    int out, in;
    void *packed;
    float cap;
};

/* One layer of a paged key/value cache: k and v are [pages, K, P, D], f32, or bf16 where `half` (kv_write rounds, and
 * attention reads the rounded values). The order of P and D inside a page is the backend's choice: only kv_write,
 * kv_copy, attention and attention_back read or write pages. */
struct wz_kv {
    float *k, *v;
    int pages, page, heads, head_dim; /* page: P, tokens in a page; heads: K */
    bool half;
};

/* Sequence and position of N packed tokens (host arrays). Token i belongs to sequence seq[i], of `seqs`, at position
 * pos[i]; keys and values of position t of sequence s lie in page table[s * stride + t / P], slot t % P. No two tokens
 * have one slot. */
struct wz_rows {
    int n, seqs, stride;
    const int *seq, *pos, *table;
};

/* What all sequences of an attention_back begin with, tokens of earlier batches: positions [0, n). d_k, d_v [n,K,D]:
 * the sums of their gradients. Zeroed: there is nothing before the sequences' tokens. */
struct wz_past {
    float *d_k, *d_v;
    int n;
};

/* What becomes of attention's scores s = q . k_t scale before the softmax: cap tanh(s / cap) (cap 0: s). A token sees
 * itself and the window - 1 tokens before it (window 0: all). Their gradient is multiplied by 1 - (s' / cap)^2 of the
 * capped s'. */
struct wz_scores {
    float cap;
    int window;
};

/* The part of a feed-forward's gate that passes: silu(x) = x sigmoid(x), or the tanh form of GELU, which is
 * x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)). */
enum wz_act { WZ_SILU, WZ_GELU };

/* Sampling parameters of one token (host). temperature 0 is greedy: the largest logit, of equals the lowest id.
 * Filters, in this order: top_k (0: off), top_p (1: off), min_p (0: off). `u` in [0, 1) selects the token by inverse
 * CDF in order of token id. */
struct wz_pick {
    float temperature, top_p, min_p;
    int top_k;
    double u;
};

struct wz_backend;

struct wz_ops {
    /* memory */
    void *(*alloc)(struct wz_backend *be, size_t size); /* zeroed; ends the process when out of memory */
    void (*free)(struct wz_backend *be, void *p);
    void (*upload)(struct wz_backend *be, void *dst, const void *host, size_t n);
    void (*download)(struct wz_backend *be, void *host, const void *src, size_t n);
    void (*zero)(struct wz_backend *be, void *p, size_t n);
    /* (Re)builds w->packed from w->data, after loading and after every update; unpack frees it. On a host backend that
     * packs, matmul and the head's forward read only `packed`; embed and the backward ops read `data`. */
    void (*pack)(struct wz_backend *be, struct wz_weight *w);
    void (*unpack)(struct wz_backend *be, struct wz_weight *w);

    /* out[N,C] = table[ids[n], :]; ids[N] on the host.   back: d_table[ids[n], :] += d_out[n, :], n ascending */
    void (*embed)(struct wz_backend *be, float *out, const struct wz_weight *table, const int *ids, int n);
    void (*embed_back)(struct wz_backend *be, float *d_table, const float *d_out, const int *ids, int n, int c);

    /* RMSNorm (Zhang & Sennrich 2019): rstd = 1/sqrt(mean_c x^2 + eps); out = (one + w) * (x * rstd), `one` 0 or 1.
     * rstd[N] is kept for back: d_x += rstd * (g - xh * mean_c(g * xh)) with g = d_out * (one + w), xh = x * rstd;
     * d_w += d_out * xh. out may be x. */
    void (*rmsnorm)(struct wz_backend *be, float *out, float *rstd, const float *x, const float *w, int n, int c,
                    float eps, float one);
    void (*rmsnorm_back)(struct wz_backend *be, float *d_x, float *d_w, const float *d_out, const float *x,
                         const float *w, const float *rstd, int n, int c, float one);

    /* y[N,out] = x[N,in] W^T, or y += when `add`.   back_x: d_x[N,in] = d_y[N,out] W, or += when `add`
     * back_w: d_w[out,in] += d_y^T x, one chain over n per element; of w only type and shape are read */
    void (*matmul)(struct wz_backend *be, float *y, const float *x, const struct wz_weight *w, int n, bool add);
    /* `count` products y[i][N,out_i] = x W_i^T of one x, each with the bits of matmul; left NULL: a loop over matmul */
    void (*matmuls)(struct wz_backend *be, float *const *y, const float *x, const struct wz_weight *const *w, int count,
                    int n);
    void (*matmul_back_x)(struct wz_backend *be, float *d_x, const float *d_y, const struct wz_weight *w, int n,
                          bool add);
    void (*matmul_back_w)(struct wz_backend *be, float *d_w, const float *d_y, const float *x,
                          const struct wz_weight *w, int n);

    /* y[n,:] += b over y [N,C].   back: d_b += d_y[n,:], one chain over n ascending */
    void (*bias)(struct wz_backend *be, float *y, const float *b, int n, int c);
    void (*bias_back)(struct wz_backend *be, float *d_b, const float *d_y, int n, int c);

    /* RoPE (Su et al. 2021), half-split pairs (i, i + D/2) as in Hugging Face: x[N,heads,D] is rotated in place by
     * sign * pos[n] * freq[i] radians; freq[D/2] and pos[N] on the host; sign -1 is the backward. Angles in double. */
    void (*rope)(struct wz_backend *be, float *x, const int *pos, const float *freq, int n, int heads, int d, int sign);

    /* Writes k, v [N,K,D] of the tokens to their slots in the cache. */
    void (*kv_write)(struct wz_backend *be, const struct wz_kv *kv, const float *k, const float *v,
                     const struct wz_rows *rows);
    /* Copies the first `count` slots of page src to page dst (a shared prefix that ends inside a page). */
    void (*kv_copy)(struct wz_backend *be, const struct wz_kv *kv, int dst, int src, int count);

    /* Causal attention over the cache, GQA (head h reads kv head h / (H/K)), scale 1/sqrt(D):
     *   out[n,h,:] = sum_{t<=pos[n]} softmax_t(q.k_t * scale) v_t      lse[n,h] = log sum_t exp(q.k_t * scale)
     * q, out [N,H,D]; lse [N,H], or NULL: not wanted. The tokens' own keys and values must be in the cache already. */
    void (*attention)(struct wz_backend *be, float *out, float *lse, const float *q, const struct wz_kv *kv,
                      const struct wz_rows *rows, int heads, struct wz_scores scores);
    /* Backward. Tokens of a sequence are consecutive, from position past.n. d_q[N,H,D], and d_k[N,K,D], d_v[N,K,D] of
     * the tokens' own keys and values, are overwritten (not +=). past.d_k and past.d_v are added to: what a sequence
     * adds is summed first, then added, sequences in ascending order, so a batch cut between sequences into two calls
     * gives the same bits as one call. */
    void (*attention_back)(struct wz_backend *be, float *d_q, float *d_k, float *d_v, struct wz_past past,
                           const float *d_out, const float *out, const float *lse, const float *q,
                           const struct wz_kv *kv, const struct wz_rows *rows, int heads, struct wz_scores scores);

    /* out = act(gate) * up over n elements.   back: d_gate, d_up are overwritten */
    void (*swiglu)(struct wz_backend *be, float *out, const float *gate, const float *up, size_t n, enum wz_act act);
    void (*swiglu_back)(struct wz_backend *be, float *d_gate, float *d_up, const float *d_out, const float *gate,
                        const float *up, size_t n, enum wz_act act);

    /* The language-model head W[V,C], fused with softmax in blocks of the vocabulary, so that no [N, V] array exists.
     * z[n,v] = x[n,:] . W[v,:], or with a cap of the weight cap tanh(that / cap); t = temperature > 0; x [N,C].
     * logprob: logp[n] = z[n,target]/t - lse[n], lse[n] = log sum_v exp(z[n,v]/t); entropy[n] in nats (NULL: not
     *          wanted); targets on the host (-1: the token is skipped, its results are 0); results on the host.
     * sample:  token[n] by picks[n], and logp[n] of softmax(z/t) before the filters, with the bits that logprob gives
     *          for that token (temperature 0: logp at t = 1); results on the host.
     * logits:  all logits, for tools and references: out[N,V] on the host.
     * back:    d_x[N,C] = sum_v g W[v,:], d_w[v,:] += sum_n g x[n,:] with g = d_logp[n] ([v = target] - p[n,v]) / t
     *          (with a cap times 1 - (z/cap)^2);
     *          d_logp, lse and targets (-1: d_x is 0) on the host; d_w NULL: not wanted. */
    void (*head_logprob)(struct wz_backend *be, float *logp, float *lse, float *entropy, const float *x,
                         const struct wz_weight *w, const int *targets, float temperature, int n);
    void (*head_sample)(struct wz_backend *be, int *token, float *logp, const float *x, const struct wz_weight *w,
                        const struct wz_pick *picks, int n);
    void (*head_logits)(struct wz_backend *be, float *out, const float *x, const struct wz_weight *w, int n);
    void (*head_back)(struct wz_backend *be, float *d_x, float *d_w, const float *x, const struct wz_weight *w,
                      const int *targets, const float *d_logp, const float *lse, float temperature, int n);

    /* dst[i] = src[i] as bf16, rounded to nearest even: bf16 weights from the f32 master copy */
    void (*cast)(struct wz_backend *be, uint16_t *dst, const float *src, size_t n);
    /* dst[i] += src[i] */
    void (*add)(struct wz_backend *be, float *dst, const float *src, size_t n);
    /* out[i] = x[i] * by; out may be x */
    void (*scale)(struct wz_backend *be, float *out, const float *x, float by, size_t n);
    /* sums[ceil(n / WZ_BLOCK)] on the host: the sum of squares of each block of x, in double */
    void (*squares)(struct wz_backend *be, double *sums, const float *x, size_t n);
    /* AdamW (Loshchilov & Hutter 2019). g is multiplied by `scale` first (gradient clipping). step counts from 1.
     * m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; w -= lr (m/(1-b1^step) / (sqrt(v/(1-b2^step)) + eps) + decay w) */
    void (*adamw)(struct wz_backend *be, float *w, const float *g, float *m, float *v, size_t n, float lr, float b1,
                  float b2, float eps, float decay, float scale, int step);
};

/* AdamW's scalars as the fast backends use them: a1 = 1-b1, a2 = 1-b2, rate = lr/(1-b1^step), decay = lr decay, and
 * root = 1/sqrt(1-b2^step):  w -= rate m / (sqrt(v) root + eps) + decay w */
struct wz_adamw_scalars {
    float b1, b2, a1, a2, rate, root, eps, decay, scale;
};

static inline struct wz_adamw_scalars wz_adamw_scalars_of(float lr, float b1, float b2, float eps, float decay,
                                                          float scale, int step)
{
    double c1 = 1 - pow((double)b1, step), c2 = 1 - pow((double)b2, step);
    float a1 = (float)(1 - (double)b1), a2 = (float)(1 - (double)b2), root = (float)(1 / sqrt(c2));

    return (struct wz_adamw_scalars){
        b1, b2, a1, a2, (float)((double)lr / c1), root, eps, (float)((double)lr * (double)decay), scale
    };
}

/* Functions of a backend whose memory is a device's. */
struct wz_device {
    char id[32];                         /* unique among the devices of this machine (the PCI bus id) */
    void *stream;                        /* a cudaStream_t: all work is queued in it, in the order of the calls */
    bool (*idle)(struct wz_backend *be); /* has all queued work finished? */
    /* sums[pieces] on the host: wz_hash with seed 0 of each piece of WZ_PIECE bytes at p, which is 16-byte aligned */
    void (*hash)(struct wz_backend *be, uint64_t *sums, const void *p, size_t pieces);
    /* Runs body(arg), which calls ops of a forward or of sampling, as one CUDA graph where it can. body may be called
     * twice with the same effect: arguments and host arrays must not change meanwhile, and downloaded data is valid
     * only when region returns. A repeated call with the same arguments, whatever the tensors and host arrays hold,
     * is launched as the graph captured before. */
    void (*region)(struct wz_backend *be, void (*body)(void *arg), void *arg);
};

/* What decides a backend's bits besides its row. Zeroed: the defaults. */
struct wz_numerics {
    bool fast; /* cuda: products by cuBLASLt, which keep only the third property above */
    /* cpu: an instruction set, or the name of the bits that several give; NULL or "auto": the best of this machine.
     * open makes it the name of the bits. Outlives the backend */
    const char *isa;
    /* Order of sums in products with bf16 weights: "amx", or "chain" (NULL); "auto": amx where the cpu row or ref is
     * opened on a machine that has AMX. Outlives the backend. */
    const char *bf16;
};

struct wz_backend {
    const char *name;
    struct wz_numerics numerics; /* set before the row is opened */
    struct wz_ops ops;
    struct wz_pool *pool; /* NULL: one thread. Created by wz_backend_open, destroyed by wz_backend_close */
    /* With a bf16 weight, matmul, the head and their backwards round their other operand (x, d_y, g) to bf16 before
     * multiplying; sums stay f32. Set by open */
    bool rounds;
    bool int8;         /* supports INT8 weights; set by open */
    bool amx;          /* sums of products with bf16 weights are in the order of ref/amx.c; from numerics */
    int grain;         /* tokens that matmul_back_w and head_back add in one step; from the row; see wz_grain */
    bool half_kv;      /* supports bf16 caches, and a bf16 model uses one; from the row */
    bool half_scores;  /* over a bf16 cache attention and its backward round operands to bf16; sums stay f32 */
    void *state;       /* private to the backend */
    const char *label; /* of the memory that alloc is asked for: see wz_backend_alloc_for */
    const struct wz_backend_row *counted; /* not NULL: allocates nothing, and counts for this row (count/count.c) */
    const struct wz_device *device; /* NULL: memory is the host's, and what alloc returns may be read and written */
};

/* One row of the table of backends, which is in kernels.c with their names. */
struct wz_backend_row {
    int (*open)(struct wz_backend *be, struct wz_err *err); /* fills the ops; -1 and `err` where it is unavailable */
    void (*close)(struct wz_backend *be);
    /* bytes that pack will allocate for w; reads no data, needs no open */
    size_t (*packed)(const struct wz_backend *be, const struct wz_weight *w);
    int (*devices)(struct wz_backend *be, size_t *total, size_t *unused); /* NULL: it computes in host memory */
    bool half_kv;
    int grain;
    bool amx; /* can it add in the order of ref/amx.c? */
};
extern const struct wz_backend_row wz_backend_ref, wz_backend_cpu, wz_backend_cuda, wz_backend_count;

#endif
