/* model: tokens in, tokens out, gradients back. A Llama-family decoder on any backend, with its cache.
 *
 *   ids ─▶ embed ─▶ [ norm ─▶ q k v ─▶ rope ─▶ cache ─▶ attention ─▶ o + ─▶
 *                     norm ─▶ gate up ─▶ swiglu ─▶ down + ] x L ─▶ norm ─▶ head
 *
 * One forward serves prefill, decode, scoring and training (law 1): the rows of a batch are packed tokens, each with a
 * sequence and a position; keys and values always go through the paged cache.
 */
#ifndef WZ_MODEL_H
#define WZ_MODEL_H

#include "kernels/kernels.h"
#include "store/store.h"
#include "text/text.h"

enum wz_rope { WZ_ROPE_PLAIN, WZ_ROPE_LLAMA3, WZ_ROPE_LINEAR };

/* config.json of a Hugging Face Llama folder, or a GGUF's metadata. */
struct wz_config {
    int layers, dim, heads, kv_heads, head_dim, ffn, vocab, context; /* context: longest sequence, tokens */
    float norm_eps, rope_theta;
    enum wz_rope rope;
    float rope_factor, rope_low, rope_high; /* llama3 scaling: factor, low_freq_factor, high_freq_factor */
    int rope_original;                      /* original_max_position_embeddings */
    bool tied;                              /* the head is the embedding */
    int bos, eos[8], n_eos;                 /* -1: none */
};

/* A named tensor inside the block of parameters, in the order of the walk. Names are Hugging Face's. */
struct wz_param {
    char name[64];
    size_t at;      /* first element in params */
    int rows, cols; /* cols 1..: [rows, cols]; norms are [rows] with cols 0 */
};

struct wz_layer {
    float *norm1, *norm2; /* [C], always f32 */
    struct wz_weight q, k, v, o, gate, up, down;
};

/* Weights. What a forward reads lies in one block, which publish and hash take as bytes (wz_model_weights): f32
 * models have all their tensors in params, bf16 models the matrices as bf16 and the norms as f32 in `block`. AdamW
 * changes params; a bf16 model that trains has f32 masters beside its block, each learner those of its own shard of
 * the walk, from which it rounds (wz_model_round). */
struct wz_model {
    struct wz_config config;
    struct wz_backend *be; /* not owned */
    enum wz_type type;
    size_t n_params;
    struct wz_param *list;
    int n_list;
    float *params;  /* f32 models: [n_params], every tensor of `list` */
    void *block;    /* bf16 models: matrices as bf16, norms as f32 */
    float *masters; /* bf16 models that train: f32 [shard.n], elements shard.at and on of what params would be */
    struct wz_shard shard;
    void *offloaded;              /* host: the weights of a model that has no place of its own (wz_model_offload) */
    struct wz_weight embed, head; /* head.data == embed.data when tied */
    float *norm;                  /* final norm [C] */
    struct wz_layer *layers;
    float *chunk;           /* host: what goes between host and backend at a time */
    float *freq;            /* RoPE frequencies [D/2], host, scaling applied */
    bool unpacked_dropped;  /* wz_model_drop_unpacked */
    bool recompute;         /* a tape keeps the layers' inputs only; set before the works are made that are to do so */
    uint64_t version, hash; /* law 6: set by whoever changes the weights; wz_model_commit computes the hash */
};

/* ---- weights (weights.c, hub.c, gguf via store) ----------------------------------------------------------- */

int wz_config_load(struct wz_config *config, const char *path, struct wz_err *err); /* a folder or a .gguf */
/* Allocates all weights, zeroed. int8 models keep the embedding and the head bf16, do not train, and want be->int8.
 * trains: which of how many learners a bf16 model has masters for; NULL: it does not train. */
struct wz_model *wz_model_create(const struct wz_config *config, enum wz_type type, const struct wz_share *trains,
                                 struct wz_backend *be);
void wz_model_destroy(struct wz_model *model);
/* Every matrix normal(0, 0.02) (residual outputs divided by sqrt(2 L)), norms 1; keyed by seed and tensor name. */
void wz_model_init(struct wz_model *model, uint64_t seed);
/* A hub folder (config.json, model*.safetensors) or a GGUF file. NULL and a sentence on error. */
struct wz_model *wz_model_load(const char *path, enum wz_type type, const struct wz_share *trains,
                               struct wz_backend *be, struct wz_err *err);
/* Writes config.json and model.safetensors (sharded by `shard` bytes with an index when shard > 0): what a forward
 * reads, so of an f32 model f32, else the matrices in bf16. */
int wz_model_save(const struct wz_model *model, const char *dir, size_t shard, struct wz_err *err);
/* The same with the matrices stored as `dtype` (WZ_DT_F32, WZ_DT_BF16 or WZ_DT_F16 of store.h); norms are always
 * F32. */
int wz_model_save_as(const struct wz_model *model, const char *dir, size_t shard, enum wz_dtype dtype,
                     struct wz_err *err);
/* Rounds masters that have changed into their part of the block; what other learners' masters make is theirs to
 * send. */
void wz_model_round(struct wz_model *model);
/* After any change to the weights: packs, hashes what a forward reads (wz_hash_pieces of wz_model_weights), notes
 * the version. */
void wz_model_commit(struct wz_model *model, uint64_t version);
/* For a model that from its commit on (done, or still to come once) only runs forwards: where the backend packs
 * matrices, what packing repeats is given back. It can be written, saved, published and trained no more. */
void wz_model_drop_unpacked(struct wz_model *model);
/* For a model that will change no more, committed: its weights wait in the host's memory, and their place in the
 * backend's is given back. onload brings them into `memory` of the backend, of wz_model_weights' size, for forwards;
 * NULL: `memory` is wanted back. A model that is not offloaded away is left as it is. */
void wz_model_offload(struct wz_model *model);
void wz_model_onload(struct wz_model *model, void *memory);
/* What a forward reads, in backend memory: what is published, and hashed. Whoever writes it commits the model. */
void *wz_model_weights(const struct wz_model *model, size_t *n);
/* Where in a bf16 model's block those norms lie, *n floats, that are among elements `part` of the walk. */
float *wz_model_norms(const struct wz_model *model, struct wz_shard part, size_t *n);

/* ---- cache (cache.c) -------------------------------------------------------------------------------------- */

/* Pages of keys and values for every layer, counted by use: sequences that begin alike share pages. */
struct wz_cache;
struct wz_seq {
    int len, n_pages, cap;
    int *pages;
}; /* zeroed struct is an empty sequence */

struct wz_cache *wz_cache_create(const struct wz_model *model, int pages, int page);
void wz_cache_destroy(struct wz_cache *cache);
int wz_cache_free_pages(const struct wz_cache *cache);
/* Room for `n` more tokens after seq->len (len itself moves in forward). False: too few free pages, nothing changed. */
bool wz_seq_reserve(struct wz_cache *cache, struct wz_seq *seq, int n);
/* dst (empty) begins with the first `len` tokens of src: full pages are shared, a part page is copied. False: no
 * free page. */
bool wz_seq_fork(struct wz_cache *cache, struct wz_seq *dst, const struct wz_seq *src, int len);
/* Makes the list of pages of an empty sequence now, for up to `tokens`: no later call allocates. */
void wz_seq_room(const struct wz_cache *cache, struct wz_seq *seq, int tokens);
void wz_seq_release(struct wz_cache *cache, struct wz_seq *seq); /* gives the pages back; accepts empty */
void wz_seq_finish(struct wz_cache *cache, struct wz_seq *seq);  /* release, and free the list */

/* ---- forward and backward (forward.c, backward.c) --------------------------------------------------------- */

/* New tokens of some sequences, packed: sequence i gets count[i] tokens, ids in order, appended after seqs[i]->len. */
struct wz_batch {
    int n_seqs;
    struct wz_seq **seqs;
    const int *count;
    const int *ids; /* sum of count */
};

/* Scratch of a forward of at most max_rows rows, and the tape of activations when it will be followed by a backward. */
struct wz_work;
struct wz_work *wz_work_create(const struct wz_model *model, int max_rows, bool tape);
void wz_work_destroy(struct wz_work *work);
/* Makes room now for batches of up to `seqs` sequences of up to `tokens` tokens in that cache: no later forward
 * allocates. */
void wz_work_room(struct wz_work *work, const struct wz_cache *cache, int seqs, int tokens);

/* Runs the batch, writes the cache, moves seqs' len. Returns the normed hidden states [N, C] in backend memory, in
 * batch order, valid until the next forward with this work. Room in the cache must have been reserved. */
const float *wz_forward(struct wz_model *model, struct wz_cache *cache, struct wz_work *work,
                        const struct wz_batch *batch);
/* Which rows of a batch are sampled, ascending, how (picks[n]), and where tokens and log-probabilities go (token[n],
 * logp[n]). */
struct wz_samples {
    int n;
    const int *rows;
    const struct wz_pick *picks;
    int *token;
    float *logp;
};
/* wz_forward, and sampling from what it returns. Where all rows are sampled it is one region (struct wz_device). */
void wz_forward_sample(struct wz_model *model, struct wz_cache *cache, struct wz_work *work,
                       const struct wz_batch *batch, const struct wz_samples *samples);
/* Copies the given rows of hidden states together: out[n, C], owned by work, valid until the next call. */
const float *wz_gather(struct wz_work *work, const float *hidden, const int *rows, int n);

/* After a forward with a tape on whole sequences (seqs were empty): d_params[n_params] += the gradient of
 * sum_n d_logp[n] * logp[n] where logp is of targets[n] (host; -1: the row has no loss) at `temperature`. A tied
 * embedding's look-up is summed in the work until wz_backward_end. Batches may be cut anywhere if every sequence has
 * a multiple of be->grain rows. */
void wz_backward(struct wz_model *model, struct wz_cache *cache, struct wz_work *work, const int *targets,
                 const float *d_logp, float temperature, float *d_params);
/* Its two parts, for losses that are not of log-probabilities alone (a value head, distillation). head: from the loss
 * to the gradient of the normed hidden states that wz_forward returned, [N, C] in backend memory, owned by work, to be
 * changed or read before the body; the head's own gradient goes into d_params. body: from such a gradient on. */
float *wz_backward_head(struct wz_model *model, struct wz_work *work, const int *targets, const float *d_logp,
                        float temperature, float *d_params);
void wz_backward_body(struct wz_model *model, struct wz_cache *cache, struct wz_work *work, const float *d_hidden,
                      float *d_params);
/* After the last backward into d_params, before it is read; nothing where there was none. */
void wz_backward_end(struct wz_model *model, struct wz_work *work, float *d_params);

/* Log-probabilities of targets[n] (host; -1: skipped, 0 is written) at the rows of the last forward, as a training
 * step or a scorer wants them. entropy may be NULL. */
void wz_logprobs(struct wz_model *model, struct wz_work *work, const int *targets, float temperature, float *logp,
                 float *entropy);

#include "model/engine.h"

#endif
