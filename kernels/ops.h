/* ops: the list of operations. A backend is one filled table; nothing above knows which row it runs on.
 *
 * Letters: N rows (packed tokens of all sequences), C channels, H query heads, K key/value heads, D head size,
 * F feed-forward width, V vocabulary, P tokens in a cache page. Arrays are row-major, float unless said,
 * and lie in the backend's memory unless said to be on the host.
 *
 * Three promises every row of the table keeps (DESIGN laws 1 and 2; tests/opcheck holds them):
 *  - an output row depends on its own inputs only: never on N, on the other rows, or on the number of threads;
 *  - "+=" into a weight's gradient is one chain over rows in ascending order, starting from what is there, so a batch
 *    cut in two calls at a multiple of `grain` rows gives the same bits as one call;
 *  - the same inputs give the same bits.
 * Ops return void: shapes are checked in the wrappers (kernels.h), the machine's failures die.
 */
#ifndef WZ_OPS_H
#define WZ_OPS_H

#include "base/base.h"

/* INT8 is for matmul and matmuls alone, where it lies as bf16 but is multiplied in 8 bits: every row of W, and every
 * row of x, has s = max |x| / 127 and q = round(x / s), to nearest even; y = s_x s_w sum q_x q_w, the sum exact. in
 * is at most 65536. */
enum wz_type { WZ_F32, WZ_BF16, WZ_INT8 };

/* What is summed or shared out in blocks has blocks of this many elements. */
enum { WZ_BLOCK = 65536 };

/* A matrix of weights [out, in]. `data` is of `type`; `packed` is what the backend made of it in pack(), or NULL. */
struct wz_weight {
    void *data;
    enum wz_type type;
    int out, in;
    void *packed;
};

/* One layer's share of a paged key/value cache: k and v are [pages, K, P, D] floats, or bf16 in half the room where
 * `half`: kv_write rounds, and attention reads what was rounded. How P and D lie inside one [P, D] is the row's own
 * affair: only kv_write, kv_copy and the attentions touch it. */
struct wz_kv {
    float *k, *v;
    int pages, page, heads, head_dim; /* page: P, tokens a page; heads: K */
    bool half;
};

/* Where N packed rows stand (host arrays). Row i belongs to sequence seq[i] at position pos[i]; the keys and values of
 * position t of sequence s lie in page table[s * stride + t / P], slot t % P. */
struct wz_rows {
    int n, seqs, stride;
    const int *seq, *pos, *table;
};

/* How one row is sampled (host). temperature 0 is greedy: the first largest logit. Filters in this order: top_k (0:
 * off), top_p (1: off), min_p (0: off). `u` in [0, 1) picks the token by its cumulated probability in order of token
 * id. */
struct wz_pick {
    float temperature, top_p, min_p;
    int top_k;
    double u;
};

struct wz_backend;

struct wz_ops {
    /* memory */
    void *(*alloc)(struct wz_backend *be, size_t size); /* zeroed; dies when there is none */
    void (*free)(struct wz_backend *be, void *p);
    void (*upload)(struct wz_backend *be, void *dst, const void *host, size_t n);
    void (*download)(struct wz_backend *be, void *host, const void *src, size_t n);
    void (*zero)(struct wz_backend *be, void *p, size_t n);
    /* (Re)builds w->packed from w->data: after load and after every update. unpack frees it. What a row of the host
     * packs, products and head read packed alone; w->data is for look-ups and backwards. */
    void (*pack)(struct wz_backend *be, struct wz_weight *w);
    void (*unpack)(struct wz_backend *be, struct wz_weight *w);

    /* out[N,C] = table[ids[n], :]; ids on the host.   back: d_table[ids[n], :] += d_out[n, :], n ascending */
    void (*embed)(struct wz_backend *be, float *out, const struct wz_weight *table, const int *ids, int n);
    void (*embed_back)(struct wz_backend *be, float *d_table, const float *d_out, const int *ids, int n, int c);

    /* RMSNorm (Zhang & Sennrich 2019): rstd = 1/sqrt(mean_c x^2 + eps); out = w * (x * rstd). rstd[N] is kept for back:
     * d_x += rstd * (g - xh * mean_c(g * xh)) with g = d_out * w, xh = x * rstd;   d_w += d_out * xh */
    void (*rmsnorm)(struct wz_backend *be, float *out, float *rstd, const float *x, const float *w, int n, int c,
                    float eps);
    void (*rmsnorm_back)(struct wz_backend *be, float *d_x, float *d_w, const float *d_out, const float *x,
                         const float *w, const float *rstd, int n, int c);

    /* y[N,out] = x[N,in] W^T, or y += when add.   back_x: d_x[N,in] = d_y[N,out] W, or += when add
     * back_w: d_w[out,in] += d_y^T x, one chain over n for every element; of w only type and shape count */
    void (*matmul)(struct wz_backend *be, float *y, const float *x, const struct wz_weight *w, int n, bool add);
    /* count products of one x, each the bits that matmul gives; a row that leaves this NULL gets a loop over matmul */
    void (*matmuls)(struct wz_backend *be, float *const *y, const float *x, const struct wz_weight *const *w, int count,
                    int n);
    void (*matmul_back_x)(struct wz_backend *be, float *d_x, const float *d_y, const struct wz_weight *w, int n,
                          bool add);
    void (*matmul_back_w)(struct wz_backend *be, float *d_w, const float *d_y, const float *x,
                          const struct wz_weight *w, int n);

    /* RoPE (Su et al. 2021), half-split pairs (i, i + D/2) as in Hugging Face: x[N,heads,D] turned in place by
     * sign * pos[n] * freq[i]; freq[D/2] and pos on the host; sign -1 is the backward. Angles in double. */
    void (*rope)(struct wz_backend *be, float *x, const int *pos, const float *freq, int n, int heads, int d, int sign);

    /* Writes k, v [N,K,D] of the rows to their places in the cache. */
    void (*kv_write)(struct wz_backend *be, const struct wz_kv *kv, const float *k, const float *v,
                     const struct wz_rows *rows);
    /* Copies the first `count` slots of page src to page dst (a shared prefix that ends inside a page). */
    void (*kv_copy)(struct wz_backend *be, const struct wz_kv *kv, int dst, int src, int count);

    /* Causal attention over the cache, GQA (head h reads kv head h / (H/K)), scale 1/sqrt(D):
     * out[n,h,:] = sum_{t<=pos[n]} softmax_t(q.k_t * scale) v_t;  lse[n,h] = log sum_t exp(q.k_t * scale) (NULL: not
     * kept) Rows' own keys must have been written. */
    void (*attention)(struct wz_backend *be, float *out, float *lse, const float *q, const struct wz_kv *kv,
                      const struct wz_rows *rows, int heads);
    /* back, for rows that hold whole sequences: rows of a sequence are consecutive, from position 0.
     * d_q[N,H,D], d_k[N,K,D], d_v[N,K,D] are written (not +=). */
    void (*attention_back)(struct wz_backend *be, float *d_q, float *d_k, float *d_v, const float *d_out,
                           const float *out, const float *lse, const float *q, const struct wz_kv *kv,
                           const struct wz_rows *rows, int heads);

    /* out = silu(gate) * up over n elements.   back: d_gate, d_up are written */
    void (*swiglu)(struct wz_backend *be, float *out, const float *gate, const float *up, size_t n);
    void (*swiglu_back)(struct wz_backend *be, float *d_gate, float *d_up, const float *d_out, const float *gate,
                        const float *up, size_t n);

    /* The head, by vocabulary blocks: no [N, V] array is kept. z[n,v] = x[n,:] . W[v,:]; t = temperature > 0.
     * logprob: logp[n] = z[n,target]/t - lse[n], lse[n] = log sum_v exp(z[n,v]/t); entropy[n] (NULL: skip) in nats;
     *          targets on the host (-1: the row is skipped, zeros are written); results on the host.
     * sample:  token by wz_pick and logp of softmax(z/t) before the filters, the same bits as logprob gives for that
     *          token (temperature 0: logp at t = 1); results on the host.
     * logits:  all of them, for tools and references: out[N,V] on the host.
     * back:    d_x[N,C] = sum_v g W[v,:], d_w[v,:] += sum_n g x[n,:] with g = d_logp[n] ([v = target] - p[n,v]) / t;
     *          d_logp, lse and targets (-1: d_x is 0) on the host; d_w NULL: not wanted. */
    void (*head_logprob)(struct wz_backend *be, float *logp, float *lse, float *entropy, const float *x,
                         const struct wz_weight *w, const int *targets, float temperature, int n);
    void (*head_sample)(struct wz_backend *be, int *token, float *logp, const float *x, const struct wz_weight *w,
                        const struct wz_pick *picks, int n);
    void (*head_logits)(struct wz_backend *be, float *out, const float *x, const struct wz_weight *w, int n);
    void (*head_back)(struct wz_backend *be, float *d_x, float *d_w, const float *x, const struct wz_weight *w,
                      const int *targets, const float *d_logp, const float *lse, float temperature, int n);

    /* dst[i] = src[i] as bf16, rounded to nearest even: a bf16 matrix from its f32 master */
    void (*cast)(struct wz_backend *be, uint16_t *dst, const float *src, size_t n);
    /* dst[i] += src[i] */
    void (*add)(struct wz_backend *be, float *dst, const float *src, size_t n);
    /* sums[ceil(n / WZ_BLOCK)] on the host: of each block of x the sum of squares, in double */
    void (*squares)(struct wz_backend *be, double *sums, const float *x, size_t n);
    /* AdamW (Loshchilov & Hutter 2019). g is multiplied by `scale` first (clipping). step counts from 1.
     * m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; w -= lr (m/(1-b1^step) / (sqrt(v/(1-b2^step)) + eps) + decay w) */
    void (*adamw)(struct wz_backend *be, float *w, const float *g, float *m, float *v, size_t n, float lr, float b1,
                  float b2, float eps, float decay, float scale, int step);
};

/* Of a backend whose memory is not the host's. */
struct wz_device {
    char id[32];                         /* names it among the devices of this machine */
    void *stream;                        /* all its work is in it, in the order of the calls (a cudaStream_t) */
    bool (*idle)(struct wz_backend *be); /* is all done that was asked of it? */
    /* sums[pieces] on the host: wz_hash, seed 0, of each of the pieces of WZ_PIECE bytes at p, which begins at 16
     * bytes */
    void (*hash)(struct wz_backend *be, uint64_t *sums, const void *p, size_t pieces);
    /* Does what body(arg) asks for: ops of a forward and of sampling, whose arguments and host arrays stay as they
     * are meanwhile. body may be called twice, and what it downloads is there only when region returns. Asked for
     * again, but for what the host arrays and tensors hold, it is handed to the device in one piece. */
    void (*region)(struct wz_backend *be, void (*body)(void *arg), void *arg);
};

/* What decides a backend's bits besides its row. Zeroed: the defaults. */
struct wz_numerics {
    bool fast;       /* cuda: products by cuBLASLt, which keep only the third promise */
    const char *isa; /* cpu: the instruction set; NULL or "auto": the best of this machine. Outlives the backend */
};

struct wz_backend {
    const char *name;
    struct wz_numerics numerics; /* set before the row is opened */
    struct wz_ops ops;
    struct wz_pool *pool; /* NULL: one thread. wz_backend_open makes it, wz_backend_close ends it. */
    bool
        rounds; /* set when opened: where the matrix is bf16, the products of matmul, of the head and of their backwards
                                * round what they multiply (x, d_y, g) to bf16 first; sums are f32 all the same */
    bool int8;  /* it multiplies INT8; set when it is opened */
    int grain;  /* rows that matmul_back_w and head_back add in one step: the row's */
    bool half_kv;      /* it takes caches of bf16, and a bf16 model's shall be one: the row's */
    bool half_scores;  /* over such a cache attention and its backward round to bf16 what they multiply; sums are f32 */
    void *state;       /* the row's own */
    const char *label; /* of the memory that alloc is asked for: see wz_backend_alloc_for */
    const struct wz_backend_row *counted; /* not NULL: it allocates nothing, and counts for this row (count/count.c) */
    const struct wz_device
        *device; /* NULL: its memory is the host's, and what alloc gives may be read and written as it is */
};

/* One row of the table of backends: fill the slots; -1 and a sentence where this machine can't. */
struct wz_backend_row {
    const char *name;
    int (*open)(struct wz_backend *be, struct wz_err *err);
    void (*close)(struct wz_backend *be);
    /* bytes that pack will make of w; reads no data, asked without open */
    size_t (*packed)(const struct wz_numerics *numerics, const struct wz_weight *w);
    int (*devices)(struct wz_backend *be, size_t *total, size_t *unused); /* NULL: it computes in the host's memory */
    bool half_kv;
    int grain;
};
extern const struct wz_backend_row wz_backend_ref, wz_backend_cpu, wz_backend_cuda, wz_backend_count;

#endif
