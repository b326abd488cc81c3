/* weights: the memory blocks of a model's parameters, in the order of the tensor index.
 *
 *   f32   params  [ embedding | norm1 q k v o norm2 gate up down | ... | final norm | head unless tied ]   one block
 *   bf16  block   [ the same index: matrices as bf16, zeros in place of the vectors ][ all vectors as f32 ]
 *         masters the learner's shard of params in f32, where the model trains
 *   int8  as bf16: quantised when packed
 *
 * Every tensor begins on a multiple of 16 elements; the padding is zero and stays zero under AdamW, so the optimizer,
 * publishing and checkpoints treat the block as one vector. */
#include "model/inner.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = WZ_PIECE / sizeof(float) }; /* elements of the staging chunk between host and backend */

/* The tensors of a layer, in the order of the index. */
enum size { NONE, DIM, QUERIES, KEYS, FFN, QUERY_NORM, KEY_NORM };
static const struct {
    const char *hub, *gguf;
    size_t at; /* in struct wz_layer, of a float * where there are no columns, else of a struct wz_weight */
    enum size rows, cols;
} tensors[LAYER_TENSORS] = {
    [NORM1] = { "input_layernorm.weight", "attn_norm.weight", offsetof(struct wz_layer, norm1), DIM, NONE },
    [Q] = { "self_attn.q_proj.weight", "attn_q.weight", offsetof(struct wz_layer, q), QUERIES, DIM },
    [Q_BIAS] = { "self_attn.q_proj.bias", "attn_q.bias", offsetof(struct wz_layer, q_bias), QUERIES, NONE },
    [K] = { "self_attn.k_proj.weight", "attn_k.weight", offsetof(struct wz_layer, k), KEYS, DIM },
    [K_BIAS] = { "self_attn.k_proj.bias", "attn_k.bias", offsetof(struct wz_layer, k_bias), KEYS, NONE },
    [V] = { "self_attn.v_proj.weight", "attn_v.weight", offsetof(struct wz_layer, v), KEYS, DIM },
    [V_BIAS] = { "self_attn.v_proj.bias", "attn_v.bias", offsetof(struct wz_layer, v_bias), KEYS, NONE },
    [Q_NORM] = { "self_attn.q_norm.weight", "attn_q_norm.weight", offsetof(struct wz_layer, q_norm), QUERY_NORM, NONE },
    [K_NORM] = { "self_attn.k_norm.weight", "attn_k_norm.weight", offsetof(struct wz_layer, k_norm), KEY_NORM, NONE },
    [O] = { "self_attn.o_proj.weight", "attn_output.weight", offsetof(struct wz_layer, o), DIM, QUERIES },
    [AFTER1] = { "post_attention_layernorm.weight", "post_attention_norm.weight", offsetof(struct wz_layer, after1),
                 DIM, NONE },
    [NORM2] = { "post_attention_layernorm.weight", "ffn_norm.weight", offsetof(struct wz_layer, norm2), DIM, NONE },
    [GATE] = { "mlp.gate_proj.weight", "ffn_gate.weight", offsetof(struct wz_layer, gate), FFN, DIM },
    [UP] = { "mlp.up_proj.weight", "ffn_up.weight", offsetof(struct wz_layer, up), FFN, DIM },
    [DOWN] = { "mlp.down_proj.weight", "ffn_down.weight", offsetof(struct wz_layer, down), DIM, FFN },
    [AFTER2] = { "post_feedforward_layernorm.weight", "post_ffw_norm.weight", offsetof(struct wz_layer, after2), DIM,
                 NONE },
};

static bool has(const struct wz_arch *a, enum layer_tensor t)
{
    if (t == NORM1 || t == NORM2) return a->norms != WZ_NORMS_AFTER;
    if (t == AFTER1 || t == AFTER2) return a->norms != WZ_NORMS_BEFORE;
    if (t == Q_NORM || t == K_NORM) return a->qk_norm != WZ_QK_NONE;
    return a->qkv_bias || (t != Q_BIAS && t != K_BIAS && t != V_BIAS);
}

static void param_add(struct wz_param *list, int *n, size_t *at, int rows, int cols, const char *hub, const char *gguf)
{
    struct wz_param *p = &list[(*n)++];

    snprintf(p->name, sizeof p->name, "%s", hub);
    snprintf(p->gguf, sizeof p->gguf, "%s", gguf);
    p->at = *at;
    p->rows = rows;
    p->cols = cols;
    *at += (wz_param_count(p) + 15) / 16 * 16;
}

struct wz_param *wz_params_list(const struct wz_config *c, int *n, size_t *total)
{
    const struct wz_arch *a = wz_arch_of(c);
    const int queries = c->heads * c->head_dim, keys = c->kv_heads * c->head_dim;
    const bool each = a->qk_norm == WZ_QK_HEAD;
    const int size[] = { 0, c->dim, queries, keys, c->ffn, each ? c->head_dim : queries, each ? c->head_dim : keys };
    struct wz_param *list = wz_alloc(wz_mul((size_t)c->layers * LAYER_TENSORS + 3, sizeof(*list)));

    *n = 0;
    *total = 0;
    param_add(list, n, total, c->vocab, c->dim, "model.embed_tokens.weight", "token_embd.weight");
    for (int l = 0; l < c->layers; l++)
        for (int t = 0; t < LAYER_TENSORS; t++) {
            char hub[64], gguf[48];
            if (!has(a, t)) continue;
            bool other = t == NORM2 && a->norms == WZ_NORMS_BOTH; /* there its name is of the one after attention */
            snprintf(hub, sizeof hub, "model.layers.%d.%s", l,
                     other ? "pre_feedforward_layernorm.weight" : tensors[t].hub);
            snprintf(gguf, sizeof gguf, "blk.%d.%s", l, tensors[t].gguf);
            param_add(list, n, total, size[tensors[t].rows], size[tensors[t].cols], hub, gguf);
            list[*n - 1].zero = tensors[t].cols == NONE && (a->one || t == Q_BIAS || t == K_BIAS || t == V_BIAS);
        }
    param_add(list, n, total, c->dim, 0, "model.norm.weight", "output_norm.weight");
    list[*n - 1].zero = a->one;
    if (!c->tied) param_add(list, n, total, c->vocab, c->dim, "lm_head.weight", "output.weight");
    return list;
}

const struct wz_param *wz_param_of(const struct wz_model *m, int l, enum layer_tensor tensor)
{
    const struct wz_param *p = &m->list[1 + l * m->per_layer];

    for (int t = 0; t < (int)tensor; t++) p += has(wz_arch_of(&m->config), t);
    return p;
}

/* The number of floats in a bf16 model's vectors, padding included, that belong to elements before `at` of params. */
static size_t vectors_before(const struct wz_model *m, size_t at)
{
    size_t sum = 0;

    for (const struct wz_param *p = m->list; p < m->list + m->n_list && p->at < at; p++) {
        size_t padded = (wz_param_count(p) + 15) / 16 * 16;
        if (p->cols == 0) sum += at - p->at < padded ? at - p->at : padded;
    }
    return sum;
}

/* Tensor i in the backend's memory; vectors are f32 in every model. */
static void *param_data(const struct wz_model *m, int i)
{
    const struct wz_param *p = &m->list[i];

    if (m->type == WZ_F32) return m->params + p->at;
    if (p->cols > 0) return (uint16_t *)m->block + p->at;
    return (float *)((uint16_t *)m->block + m->n_params) + vectors_before(m, p->at);
}

/* Embedding and head of an int8 model are bf16. */
static enum wz_type param_type(int i, int n, enum wz_type type)
{
    return type == WZ_INT8 && (i == 0 || i == n - 1) ? WZ_BF16 : type;
}

/* Keeps w->packed. */
static void point_weight(const struct wz_model *m, struct wz_weight *w, int i)
{
    *w = (struct wz_weight){ param_data(m, i), param_type(i, m->n_list, m->type),
                             m->list[i].rows,  m->list[i].cols,
                             w->packed,        w->cap };
}

/* Sets all pointers, for the current address of params or block. */
static void point(struct wz_model *m)
{
    int i = 0;

    point_weight(m, &m->embed, i++);
    for (struct wz_layer *y = m->layers; y < m->layers + m->config.layers; y++)
        for (int t = 0; t < LAYER_TENSORS; t++) {
            void *to = (char *)y + tensors[t].at;
            if (!has(wz_arch_of(&m->config), t)) continue;
            if (tensors[t].cols) point_weight(m, to, i++);
            else *(float **)to = param_data(m, i++);
        }
    m->norm = param_data(m, i++);
    m->head.cap = m->config.logit_cap;
    point_weight(m, &m->head, m->config.tied ? 0 : i++);
    assert(i == m->n_list);
}

static size_t block_bytes(const struct wz_model *m)
{
    if (m->type == WZ_F32) return wz_mul(m->n_params, sizeof(float));
    return wz_mul(m->n_params, sizeof(uint16_t)) + vectors_before(m, m->n_params) * sizeof(float);
}

struct wz_model *wz_model_create(const struct wz_config *config, enum wz_type type, const struct wz_share *trains,
                                 struct wz_backend *be)
{
    struct wz_model *m = wz_alloc(sizeof(*m));

    assert(type != WZ_INT8 || (be->int8 && !trains));
    m->config = *config;
    m->be = be;
    m->type = type;
    m->list = wz_params_list(config, &m->n_list, &m->n_params);
    for (int t = 0; t < LAYER_TENSORS; t++) m->per_layer += has(wz_arch_of(config), t);
    void *block = wz_backend_alloc_for(be, block_bytes(m), "weights");
    if (type == WZ_F32) m->params = block;
    else m->block = block;
    if (type != WZ_F32 && trains) {
        m->shard = wz_shard_of(trains->me, trains->size, m->n_params);
        m->masters = wz_backend_alloc_for(be, m->shard.n * sizeof(float), "f32 masters");
    }
    m->layers = wz_alloc(wz_mul((size_t)config->layers, sizeof(*m->layers)));
    m->chunk = wz_host_alloc(be, CHUNK * sizeof(*m->chunk), "staging chunk");
    m->freq = wz_alloc((size_t)config->head_dim * sizeof(float));
    wz_rope_freq(config, false, m->freq);
    wz_rope_freq(config, true, m->freq + config->head_dim / 2);
    point(m);
    return m;
}

/* The matrices that are packed, i in [0, 7 L]: seven per layer, then the head. The embedding is only looked up; where
 * it is tied, it is packed as the head. */
static struct wz_weight *matrix(struct wz_model *m, int i)
{
    static const enum layer_tensor of[7] = { Q, K, V, O, GATE, UP, DOWN };

    if (i == m->config.layers * 7) return &m->head;
    return (void *)((char *)&m->layers[i / 7] + tensors[of[i % 7]].at);
}

void wz_model_destroy(struct wz_model *m)
{
    if (!m) return;
    for (int i = 0; i <= m->config.layers * 7; i++) wz_unpack(m->be, matrix(m, i));
    if (m->params && !m->offloaded) wz_backend_free(m->be, m->params);
    if (m->block && !m->offloaded) wz_backend_free(m->be, m->block);
    if (m->masters) wz_backend_free(m->be, m->masters);
    free(m->offloaded);
    free(m->list);
    free(m->layers);
    wz_host_free(m->be, m->chunk);
    free(m->freq);
    free(m->generation);
    json_decref(m->kept);
    free(m);
}

static bool is_dropped(const struct wz_model *m) { return m->unpacked_dropped && m->head.packed; }

/* Tensor i where it is f32; NULL where it is bf16. */
static float *param_floats(const struct wz_model *m, int i)
{
    return m->params || m->list[i].cols == 0 ? param_data(m, i) : NULL;
}

/* The elements among [at, at + n) of params that this rank has masters of. */
static struct wz_shard masters_of(const struct wz_model *m, size_t at, size_t n)
{
    size_t lo = at > m->shard.at ? at : m->shard.at, hi = at + n, end = m->shard.at + m->shard.n;

    if (hi > end) hi = end;
    return (struct wz_shard){ lo, lo < hi ? hi - lo : 0 };
}

void wz_param_get(const struct wz_model *m, int i, size_t first, size_t n, float *out)
{
    float *floats = param_floats(m, i);
    uint16_t *bits = (uint16_t *)out;

    assert(!is_dropped(m));
    assert(first + n <= wz_param_count(&m->list[i]));
    if (floats) {
        wz_download(m->be, out, floats + first, n * sizeof(float));
        return;
    }
    wz_download(m->be, bits, (uint16_t *)param_data(m, i) + first, n * sizeof(uint16_t));
    /* widened in place from the end, so that no value is overwritten before it is read */
    for (size_t j = n; j-- > 0;) {
        uint16_t b;
        memcpy(&b, bits + j, sizeof(b));
        float f = wz_bf16_to_f32(b);
        memcpy(out + j, &f, sizeof(f));
    }
}

void wz_param_put(struct wz_model *m, int i, size_t first, size_t n, const float *values)
{
    float *floats = param_floats(m, i);
    const size_t begin = m->list[i].at + first;
    const struct wz_shard mine = masters_of(m, begin, n);

    assert(!is_dropped(m));
    assert(first + n <= wz_param_count(&m->list[i]));
    wz_heartbeat();
    if (mine.n)
        wz_upload(m->be, m->masters + (mine.at - m->shard.at), values + (mine.at - begin), mine.n * sizeof(float));
    if (floats) {
        wz_upload(m->be, floats + first, values, n * sizeof(float));
        return;
    }
    uint16_t *bits = wz_alloc(CHUNK * sizeof(*bits));
    for (size_t at = 0; at < n; at += CHUNK) {
        size_t k = n - at < CHUNK ? n - at : CHUNK;

        for (size_t j = 0; j < k; j++) bits[j] = wz_f32_to_bf16(values[at + j]);
        wz_upload(m->be, (uint16_t *)param_data(m, i) + first + at, bits, k * sizeof(*bits));
    }
    free(bits);
}

/* ---- random weights --------------------------------------------------------------------------------------- */

enum { SLICE = 1 << 12 };

struct filling {
    float *out;
    size_t first, n;
    uint64_t seed, name;
    double std;
};

static void fill_slice(void *arg, int slice)
{
    struct filling *f = arg;
    size_t from = (size_t)slice * SLICE, to = from + SLICE < f->n ? from + SLICE : f->n;

    for (size_t j = from; j < to; j++) {
        uint64_t e = f->first + j;
        struct wz_key key = { f->seed,     WZ_RNG_INIT,        (uint32_t)f->name, (uint32_t)(f->name >> 32),
                              (uint32_t)e, (uint32_t)(e >> 32) };
        f->out[j] = (float)(f->std * wz_normal(key));
    }
}

void wz_model_init(struct wz_model *m, uint64_t seed)
{
    float *values = wz_alloc(CHUNK * sizeof(*values));

    for (int i = 0; i < m->n_list; i++) {
        const struct wz_param *p = &m->list[i];
        /* o and down write into the residual stream, 2 L times in all */
        bool residual = strstr(p->name, "o_proj") || strstr(p->name, "down_proj");
        double std = residual ? 0.02 / sqrt(2.0 * m->config.layers) : 0.02;
        uint64_t name = wz_hash(p->name, strlen(p->name), 0);

        for (size_t at = 0, all = wz_param_count(p); at < all; at += CHUNK) {
            struct filling f = { values, at, all - at < CHUNK ? all - at : CHUNK, seed, name, std };

            if (p->cols > 0) wz_pool_run(m->be->pool, (int)((f.n + SLICE - 1) / SLICE), fill_slice, &f);
            else
                for (size_t j = 0; j < f.n; j++) values[j] = !p->zero;
            wz_param_put(m, i, at, f.n, values);
        }
    }
    free(values);
    wz_model_commit(m, 0);
}

/* ---- commit ----------------------------------------------------------------------------------------------- */

void *wz_model_weights(const struct wz_model *m, size_t *n)
{
    *n = block_bytes(m);
    return m->type == WZ_F32 ? (void *)m->params : m->block;
}

float *wz_model_vectors(const struct wz_model *m, struct wz_shard part, size_t *n)
{
    size_t at = vectors_before(m, part.at);

    *n = vectors_before(m, part.at + part.n) - at;
    return (float *)((uint16_t *)m->block + m->n_params) + at;
}

/* The zeros in place of the vectors stay zero, as in a model without masters. */
void wz_model_round(struct wz_model *m)
{
    for (int i = 0; i < m->n_list; i++) {
        const struct wz_param *p = &m->list[i];
        const struct wz_shard mine = masters_of(m, p->at, wz_param_count(p));
        const float *from = m->masters + (mine.at - m->shard.at);

        if (p->cols > 0 && mine.n) wz_cast(m->be, (uint16_t *)m->block + mine.at, from, mine.n);
        for (size_t at = 0; p->cols == 0 && at < mine.n; at += CHUNK) {
            size_t k = mine.n - at < CHUNK ? mine.n - at : CHUNK;
            wz_download(m->be, m->chunk, from + at, k * sizeof(float));
            wz_upload(m->be, param_floats(m, i) + (mine.at - p->at) + at, m->chunk, k * sizeof(float));
        }
    }
}

static uint64_t hash_weights(const struct wz_model *m, const char *bytes, size_t n)
{
    uint64_t hash = 0, *sums = (void *)m->chunk;
    size_t pieces = n / WZ_PIECE, left = n % WZ_PIECE, most = WZ_PIECE / sizeof *sums;

    if (m->be->counted) return 0;
    if (!m->be->device) return wz_hash_pieces(m->be->pool, bytes, n);
    for (size_t at = 0, k; at < pieces; at += k) {
        k = pieces - at < most ? pieces - at : most;
        m->be->device->hash(m->be, sums, bytes + at * WZ_PIECE, k);
        hash = wz_hash_join(hash, sums, k);
    }
    if (!left) return hash;
    wz_download(m->be, m->chunk, bytes + n - left, left);
    uint64_t last = wz_hash(m->chunk, left, 0);
    return wz_hash_join(hash, &last, 1);
}

/* Frees the unpacked copy of a packed matrix, unless it is the embedding, which look-ups read. */
static void forget(const struct wz_model *m, struct wz_weight *w)
{
    if (!m->be->device && w->packed && w->data != m->embed.data)
        wz_forget(w->data, (size_t)w->out * (size_t)w->in * wz_type_size(w->type));
}

void wz_model_commit(struct wz_model *m, uint64_t version)
{
    size_t n;
    const char *bytes = wz_model_weights(m, &n);

    assert(!is_dropped(m));
    m->version = version;
    m->hash = hash_weights(m, bytes, n);
    for (int i = 0; i <= m->config.layers * 7; i++) {
        wz_heartbeat();
        wz_pack(m->be, matrix(m, i));
        if (m->unpacked_dropped) forget(m, matrix(m, i));
    }
}

void wz_model_drop_unpacked(struct wz_model *m)
{
    m->unpacked_dropped = true;
    for (int i = 0; i <= m->config.layers * 7; i++) forget(m, matrix(m, i));
}

static void set_memory(struct wz_model *m, void *memory)
{
    if (m->type == WZ_F32) m->params = memory;
    else m->block = memory;
    if (memory) point(m);
}

void wz_model_offload(struct wz_model *m)
{
    size_t n;
    void *own = wz_model_weights(m, &n);

    assert(!m->offloaded && !is_dropped(m));
    m->offloaded = wz_alloc(n);
    wz_download(m->be, m->offloaded, own, n);
    wz_backend_free(m->be, own);
    set_memory(m, NULL);
}

void wz_model_onload(struct wz_model *m, void *memory)
{
    size_t n;

    if (!m->offloaded) return;
    wz_model_weights(m, &n);
    if (memory) wz_upload(m->be, memory, m->offloaded, n);
    set_memory(m, memory);
}
