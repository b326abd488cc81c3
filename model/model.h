/* model: tokens in, tokens out, gradients back. A decoder on any backend, with its cache.
 *
 *   ids ─▶ embed ─▶ [ norm ─▶ q k v ─▶ rope ─▶ cache ─▶ attention ─▶ o + ─▶
 *                     norm ─▶ gate up ─▶ swiglu ─▶ down + ] x L ─▶ norm ─▶ head
 *
 * This is Llama; others are switches of it (struct wz_arch, and the numbers at the end of struct wz_config).
 *
 * One forward serves prefill, decode, scoring and training (guarantee 1): a batch is packed tokens, each with a
 * sequence and a position; keys and values always go through the paged cache. B sequences, N packed tokens, C channels,
 * L layers, V vocabulary. Contracts (shapes, order of calls) are asserted; functions with `err` return -1 or NULL and a
 * message. */
#ifndef WZ_MODEL_H
#define WZ_MODEL_H

#include "kernels/kernels.h"
#include "store/store.h"
#include "text/text.h"

enum wz_rope { WZ_ROPE_PLAIN, WZ_ROPE_LLAMA3, WZ_ROPE_LINEAR, WZ_ROPE_YARN };

/* An architecture: what differs from Llama, where all is zero. The table is in arch.c; docs/models.md shows what each
 * row was held against. */
enum wz_norms { WZ_NORMS_BEFORE, WZ_NORMS_AFTER, WZ_NORMS_BOTH }; /* of attention, and of feed-forward */
enum wz_qk_norm { WZ_QK_NONE, WZ_QK_HEAD, WZ_QK_ALL };            /* RMSNorm of q and k, before RoPE: each head, all */
struct wz_arch {
    const char *type, *name; /* model_type and architectures of config.json */
    const char *gguf;        /* general.architecture of a GGUF; NULL: of an earlier row */
    const char *keys;        /* of config.json, besides Llama's: those whose values are read, separated by spaces */
    enum wz_norms norms;
    enum wz_qk_norm qk_norm;
    bool qkv_bias, gelu;
    bool one;      /* a norm multiplies by 1 + w; a GGUF has the sum */
    bool root;     /* the embedding is multiplied by the root of its width */
    int pattern;   /* of layers with a window, where config.json does not say: every so-many-th has none; 0: all have */
    int window;    /* sliding_window likewise */
    float caps[2]; /* attn_logit_softcapping, final_logit_softcapping likewise; 0: none */
    float local;   /* rope_theta of layers with a window, likewise; 0: as the others' */
    bool permuted; /* a GGUF's q and k are in the order of interleaved pairs */
    bool tied;     /* where config.json does not say */
    int head_dim;  /* likewise; 0: hidden_size / num_attention_heads */
    int kv_heads;  /* num_key_value_heads likewise; 0: num_attention_heads, which it is of all where it is null */
    float theta;   /* rope_theta likewise */
    float eps;     /* rms_norm_eps likewise; 0: 1e-6 */
};
enum { WZ_LLAMA, WZ_MISTRAL, WZ_QWEN2, WZ_QWEN3, WZ_GRANITE, WZ_OLMO2, WZ_SMOLLM3, WZ_GEMMA, WZ_GEMMA2, WZ_GEMMA3 };
extern const struct wz_arch wz_archs[]; /* the last has no type */

enum { WZ_MOST_LAYERS = 512 };

/* config.json of a Hugging Face folder, or a GGUF's metadata. */
struct wz_config {
    int layers, dim, heads, kv_heads, head_dim, ffn, vocab, context; /* context: longest sequence, tokens */
    float norm_eps, rope_theta;
    enum wz_rope rope;
    float rope_factor, rope_low,
        rope_high;            /* llama3: factor, low_freq_factor, high_freq_factor; yarn: beta_slow, _fast */
    int rope_original;        /* original_max_position_embeddings */
    bool tied;                /* the head is the embedding */
    int bos, eos[256], n_eos; /* bos -1: none; eos: of config.json and generation_config.json */
    int arch;                 /* row of wz_archs */
    /* Factors of the embedding, of what a layer adds to the residual stream, of attention's scores, and of the logits;
     * 0: 1, and of scores 1 / sqrt(head_dim) */
    float embed_scale, residual_scale, score_scale, logit_scale;
    float score_cap, logit_cap;     /* soft caps: cap tanh(x / cap); 0: none */
    int window;                     /* of layers that are `local`: a token sees itself and window - 1 before it */
    float rope_attention;           /* yarn's attention_factor, of q and of k */
    float rope_local;               /* rope_theta of these, without scaling; 0: rotated as the others are */
    bool unrotated[WZ_MOST_LAYERS]; /* layers without RoPE */
    bool local[WZ_MOST_LAYERS];
};
static inline const struct wz_arch *wz_arch_of(const struct wz_config *config) { return &wz_archs[config->arch]; }

/* A named tensor inside the block of parameters: an entry of the tensor index. Names are Hugging Face's. */
struct wz_param {
    char name[64];  /* in a Hugging Face folder */
    char gguf[48];  /* in a GGUF file */
    size_t at;      /* first element in params */
    int rows, cols; /* cols 1..: [rows, cols]; vectors, which are norms and biases, are [rows] with cols 0 */
    bool zero;      /* 0 in a new model: a bias, or a norm that multiplies by 1 + w; other norms are 1 */
};

/* A layer's tensors; NULL, or without data, where the architecture has none. Vectors are always f32. */
struct wz_layer {
    float *norm1, *norm2;            /* [C] before attention, before feed-forward */
    float *after1, *after2;          /* [C] after them */
    float *q_norm, *k_norm;          /* [D], or [H D] and [K D] */
    float *q_bias, *k_bias, *v_bias; /* [H D], [K D], [K D] */
    struct wz_weight q, k, v, o, gate, up, down;
};

/* Weights. A forward reads one block of memory, which is published and hashed as bytes (wz_model_weights): f32 models
 * have all their tensors in params, bf16 models the matrices as bf16 and the vectors as f32 in `block`. AdamW updates
 * params; a bf16 model that trains also has f32 masters, each learner those of its own shard of the parameters, from
 * which the block is rounded (wz_model_round). */
struct wz_model {
    struct wz_config config;
    struct wz_backend *be; /* not owned */
    enum wz_type type;
    size_t n_params;
    struct wz_param *list; /* [n_list] the tensor index */
    int n_list, per_layer; /* tensors in all, of a layer */
    float *params;         /* f32 models: [n_params], every tensor of `list` */
    void *block;           /* bf16 models: matrices as bf16, norms as f32 */
    float *masters; /* bf16 models that train: f32 [shard.n], elements [shard.at, shard.at + shard.n) of params */
    struct wz_shard shard;
    void *offloaded;              /* host: the weights of an offloaded model (wz_model_offload), else NULL */
    struct wz_weight embed, head; /* head.data == embed.data when tied */
    float *norm;                  /* final norm [C] */
    struct wz_layer *layers;
    float *chunk;          /* host: staging buffer between host and backend */
    float *freq;           /* RoPE frequencies [2,D/2], host, scaling applied: of most layers, of local ones */
    bool unpacked_dropped; /* wz_model_drop_unpacked */
    bool recompute; /* activation checkpointing: a tape stores the layers' inputs only; set before wz_work_create */
    uint64_t version, hash; /* identity of the weights (guarantee 6), set by wz_model_commit */
    char *generation;       /* generation_config.json of the folder, saved as it was read; NULL: none */
    json_t *kept;           /* and keys of its config.json, likewise */
};

/* ---- weights (weights.c, hub.c, gguf via store) ----------------------------------------------------------- */

int wz_config_load(struct wz_config *config, const char *path, struct wz_err *err); /* as wz_model_load */
/* Appends the ids that end a turn of the model: those of the chat template (NULL: none), those of the model's configs,
 * and the tokenizer's (NULL: none) end of text. Whatever generates, or is trained on turns, stops at these. */
void wz_stops_find(const struct wz_config *config, const struct wz_template *chat, const struct wz_tokenizer *tok,
                   struct wz_ids *stops);
/* Allocates all weights, zeroed. int8 models keep the embedding and the head bf16, do not train, and require be->int8.
 * trains: this learner's place among the learners, for the masters of a bf16 model; NULL: it does not train. */
struct wz_model *wz_model_create(const struct wz_config *config, enum wz_type type, const struct wz_share *trains,
                                 struct wz_backend *be);
void wz_model_destroy(struct wz_model *model);
/* Every matrix normal(0, 0.02) (residual outputs divided by sqrt(2 L)), norms 1; keyed by seed and tensor name. */
void wz_model_init(struct wz_model *model, uint64_t seed);
/* Reads a model's files without keeping them: fills in *config, checks names, shapes, types, and that every weight is
 * finite as `type`. */
int wz_model_check(struct wz_config *config, const char *path, enum wz_type type, struct wz_err *err);
/* A Hugging Face folder (config.json, model*.safetensors) or a GGUF file, or an adapter's folder (adapter.c), whose
 * changes are merged into the base model that it names. NULL and a message on error: also where a weight is not finite
 * as `type`. */
struct wz_model *wz_model_load(const char *path, enum wz_type type, const struct wz_share *trains,
                               struct wz_backend *be, struct wz_err *err);
/* Writes config.json, generation_config.json and model.safetensors (shard > 0: files of at most that many bytes with an
 * index). Matrices as f32 for an f32 model, else as bf16. */
int wz_model_save(const struct wz_model *model, const char *dir, size_t shard, struct wz_err *err);
/* The same with the matrices stored as `dtype` (WZ_DT_F32, WZ_DT_BF16 or WZ_DT_F16 of store.h); norms are always
 * F32. */
int wz_model_save_as(const struct wz_model *model, const char *dir, size_t shard, enum wz_dtype dtype,
                     struct wz_err *err);
/* Rounds this rank's masters into their part of the block; the other learners gather their parts (wz_shards_gather). */
void wz_model_round(struct wz_model *model);
/* After any change to the weights: packs the matrices, hashes wz_model_weights (wz_hash_pieces), sets the version. */
void wz_model_commit(struct wz_model *model, uint64_t version);
/* For a model that only runs forwards after its commit (already done, or one still to come): where the backend packs
 * matrices, frees their unpacked copies. The weights can't be written, saved, published or trained afterwards. */
void wz_model_drop_unpacked(struct wz_model *model);
/* For a committed model that will not change any more. offload copies its weights to host memory and frees the
 * backend's. onload copies them into `memory` of the backend, of wz_model_weights' size and borrowed, for forwards;
 * NULL: the model stops using the memory. onload leaves a model that was never offloaded unchanged. */
void wz_model_offload(struct wz_model *model);
void wz_model_onload(struct wz_model *model, void *memory);
/* The *n bytes that a forward reads, in backend memory: what is published and hashed. After writing it, commit. */
void *wz_model_weights(const struct wz_model *model, size_t *n);
/* The norms in a bf16 model's block, *n floats, that belong to elements `part` of the parameters. */
float *wz_model_vectors(const struct wz_model *model, struct wz_shard part, size_t *n);

/* ---- cache (cache.c) -------------------------------------------------------------------------------------- */

/* A paged KV cache with reference-counted pages: forked sequences share the pages of their common prefix. */
struct wz_cache;
struct wz_seq {
    int len, n_pages, cap;
    int *pages;
}; /* len: tokens; pages[n_pages], cap allocated. Zeroed struct is an empty sequence */

/* page: tokens per page. */
struct wz_cache *wz_cache_create(const struct wz_model *model, int pages, int page);
void wz_cache_destroy(struct wz_cache *cache);
int wz_cache_free_pages(const struct wz_cache *cache);
/* Allocates pages for `n` more tokens after seq->len (forward advances len). False: too few free pages, no change. */
bool wz_seq_reserve(struct wz_cache *cache, struct wz_seq *seq, int n);
/* dst (empty) becomes the first `len` tokens of src: full pages are shared, a partial page is copied. False: no free
 * page, no change. */
bool wz_seq_fork(struct wz_cache *cache, struct wz_seq *dst, const struct wz_seq *src, int len);
/* Allocates the page list of an empty sequence for up to `tokens`, so that no later call allocates. */
void wz_seq_prealloc(const struct wz_cache *cache, struct wz_seq *seq, int tokens);
void wz_seq_release(struct wz_cache *cache, struct wz_seq *seq); /* frees the pages; accepts empty */
void wz_seq_finish(struct wz_cache *cache, struct wz_seq *seq);  /* release, and free the list */

/* ---- forward and backward (forward.c, backward.c) --------------------------------------------------------- */

/* New tokens of some sequences, packed: count[i] > 0 tokens are appended to sequence i after seqs[i]->len. */
struct wz_batch {
    int n_seqs;
    struct wz_seq **seqs;
    const int *count;
    const int *ids; /* [sum of count], in order of the sequences */
};

/* Buffers of a forward of at most max_rows tokens; tape: also the activations that a backward reads. */
struct wz_work;
struct wz_work *wz_work_create(const struct wz_model *model, int max_rows, bool tape);
void wz_work_destroy(struct wz_work *work);
/* Allocates the page table for batches of up to `seqs` sequences of up to `tokens` tokens in that cache, so that no
 * later forward allocates. */
void wz_work_prealloc(struct wz_work *work, const struct wz_cache *cache, int seqs, int tokens);
/* Allocates what wz_work_keep needs, for prefixes of up to `tokens` tokens together. */
void wz_work_share(struct wz_work *work, int tokens);

/* Runs the batch, writes the cache, advances the sequences' len. Returns the hidden states [N, C] after the final norm,
 * in backend memory and batch order, valid until the next forward with this work. Pages must have been reserved. Dies
 * where a page was computed with other weights (guarantee 6). */
const float *wz_forward(struct wz_model *model, struct wz_cache *cache, struct wz_work *work,
                        const struct wz_batch *batch);
/* Where to sample: rows[n], indices of tokens of the batch, ascending; picks[n]: how; results in token[n], logp[n]. */
struct wz_samples {
    int n;
    const int *rows;
    const struct wz_pick *picks;
    int *token;
    float *logp;
};
/* wz_forward, then sampling. Where every token of the batch is sampled, both are one region (struct wz_device). */
void wz_forward_sample(struct wz_model *model, struct wz_cache *cache, struct wz_work *work,
                       const struct wz_batch *batch, const struct wz_samples *samples);
/* Gathers rows[n] of hidden [N, C] into [n, C]: owned by work, valid until the next call. */
const float *wz_gather(struct wz_work *work, const float *hidden, const int *rows, int n);

/* Prefixes that sequences share go forward and back once. wz_work_keep, after a forward with a tape of `seq` alone:
 * forwards to come are of sequences forked from it at its end (it stays as it is), on the rows that are left of
 * max_rows, and their backwards add up the gradient of its keys and values. Its length is a multiple of the cache's
 * pages. A prefix may begin with the one kept before it, up to WZ_KEPT deep. wz_backward_kept runs the backward of the
 * prefix that was kept last, which has no loss of its own, and drops it. */
enum { WZ_KEPT = 8 };
void wz_work_keep(struct wz_work *work, const struct wz_cache *cache, const struct wz_seq *seq);
void wz_backward_kept(struct wz_model *model, struct wz_cache *cache, struct wz_work *work, float *d_params);

/* After a forward with a tape on whole sequences (seqs were empty, or what is kept and no more): d_params[n_params] +=
 * the gradient of sum_n d_logp[n] * logp[n], where logp[n] is of targets[n] (host; -1: no loss) at `temperature`. The
 * look-up gradient of a tied embedding is summed in the work until wz_backward_end. The bits do not depend on how
 * sequences are distributed over batches if every sequence has a multiple of wz_grain tokens, less what is kept. */
void wz_backward(struct wz_model *model, struct wz_cache *cache, struct wz_work *work, const int *targets,
                 const float *d_logp, float temperature, float *d_params);
/* Its two parts, for losses that are not of log-probabilities alone (a value head, distillation). head: from the loss
 * to the gradient of the normed hidden states that wz_forward returned, [N, C] in backend memory, owned by work, to be
 * changed or read before the body; the head's own gradient goes into d_params. body: from such a gradient on. */
float *wz_backward_head(struct wz_model *model, struct wz_work *work, const int *targets, const float *d_logp,
                        float temperature, float *d_params);
void wz_backward_body(struct wz_model *model, struct wz_cache *cache, struct wz_work *work, const float *d_hidden,
                      float *d_params);
/* After the backward of one batch, before any other call with its work: out[n, V] (host), the gradient by the one-hot
 * vectors of tokens rows[n] of it. By input v of token r it is E[v] . g, with E the embedding, and g the gradient by
 * what token r's look-up gave, sum_c of products in double. */
void wz_backward_onehot(struct wz_model *model, struct wz_work *work, const int *rows, int n, float *out);
/* After the last backward into d_params, before it is read; no effect where there was none. */
void wz_backward_end(struct wz_model *model, struct wz_work *work, float *d_params);

/* logp[n]: log-probability, at temperature 1, of targets[n] after the tokens rows[n] of the last forward; n is at most
 * its most rows. */
void wz_score_rows(struct wz_model *model, struct wz_work *work, const int *rows, const int *targets, int n,
                   float *logp);
/* logp[n]: log-probabilities of targets[n] (host; -1: skipped, 0 is written) at the tokens of the last forward.
 * entropy[n] in nats; may be NULL. */
void wz_logprobs(struct wz_model *model, struct wz_work *work, const int *targets, float temperature, float *logp,
                 float *entropy);

#include "model/engine.h"

#endif
