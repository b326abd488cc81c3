/* safetensors: a JSON header, then the tensors' bytes.
 *
 *   u64 N (little endian) │ N bytes of JSON, padded with spaces │ data
 *   { "__metadata__": {"format": "pt"}, "NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ... }
 *
 * Offsets count from the start of the data. In the order of their offsets tensors must be contiguous, without overlap
 * or gap, and the last one ends where the file ends, so a truncated file is always detected. The writer pads the header
 * so that the data begins at a multiple of 8, and writes tensors in the caller's order. */
#include "store/tensors.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* OTHER: types whose size is checked but which can't be converted. A type not listed is OTHER, its size unchecked. */
static const struct {
    const char *name;
    enum wz_dtype dtype;
    size_t bytes;
} types[] = {
    { "F32", WZ_DT_F32, 4 },    { "F16", WZ_DT_F16, 2 },       { "BF16", WZ_DT_BF16, 2 },     { "F64", WZ_DT_OTHER, 8 },
    { "I64", WZ_DT_OTHER, 8 },  { "U64", WZ_DT_OTHER, 8 },     { "I32", WZ_DT_OTHER, 4 },     { "U32", WZ_DT_OTHER, 4 },
    { "I16", WZ_DT_OTHER, 2 },  { "U16", WZ_DT_OTHER, 2 },     { "I8", WZ_DT_OTHER, 1 },      { "U8", WZ_DT_OTHER, 1 },
    { "BOOL", WZ_DT_OTHER, 1 }, { "F8_E4M3", WZ_DT_OTHER, 1 }, { "F8_E5M2", WZ_DT_OTHER, 1 },
};

/* A whole number >= 0 that a size_t holds. */
static bool get_size(const json_t *j, size_t *out)
{
    if (!json_is_integer(j) || json_integer_value(j) < 0) return false;
    *out = (size_t)json_integer_value(j);
    return true;
}

static int read_one(struct wz_tensors *set, const char *file, const char *name, const json_t *entry,
                    const uint8_t *data, size_t len, struct wz_err *err)
{
    const json_t *shape = json_object_get(entry, "shape"), *offsets = json_object_get(entry, "data_offsets");
    const char *type = json_string_value(json_object_get(entry, "dtype"));
    struct wz_tensor *t = wz_tensors_add(set);
    size_t begin, end, want = 0;
    bool sized = false;

    t->file = file;
    t->name = wz_arena_strdup(&set->arena, name);
    t->type = type ? wz_arena_strdup(&set->arena, type) : "";
    if (!type) return wz_fail(err, "%s: tensor %.200s: dtype: expected a string", file, name);
    if (!json_is_array(shape) || json_array_size(shape) > WZ_MAX_DIMS)
        return wz_fail(err, "%s: tensor %.200s: shape: expected a list of at most %d numbers", file, name, WZ_MAX_DIMS);
    t->n_dims = (int)json_array_size(shape);
    for (int i = 0; i < t->n_dims; i++)
        if (!get_size(json_array_get(shape, (size_t)i), &t->shape[i]))
            return wz_fail(err, "%s: tensor %.200s: shape: expected whole numbers >= 0", file, name);
    if (json_array_size(offsets) != 2 || !get_size(json_array_get(offsets, 0), &begin) ||
        !get_size(json_array_get(offsets, 1), &end) || begin > end || end > len)
        return wz_fail(err, "%s: tensor %.200s: data_offsets: expected [begin, end] within the %zu bytes of data", file,
                       name, len);
    t->dtype = WZ_DT_OTHER;
    for (size_t i = 0; i < WZ_COUNT(types); i++) {
        if (strcmp(type, types[i].name)) continue;
        t->dtype = types[i].dtype;
        want = types[i].bytes;
        sized = true;
    }
    if (!wz_tensor_count(t) || __builtin_mul_overflow(want, t->count, &want))
        return wz_fail(err, "%s: tensor %.200s: its shape overflows the address space", file, name);
    if (sized && want != end - begin)
        return wz_fail(err, "%s: tensor %.200s: data_offsets: expected %zu bytes for %zu elements of %s, got %zu", file,
                       name, want, t->count, type, end - begin);
    t->bytes = end - begin;
    t->data = data + begin;
    return 0;
}

static int by_data(const void *a, const void *b)
{
    const struct wz_tensor *x = a, *y = b;

    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); /* empty ones first */
}

int wz_safetensors_read(struct wz_tensors *set, const char *path, struct wz_err *err)
{
    const struct wz_map *map = wz_tensors_map(set, path, err);
    const char *file = wz_arena_strdup(&set->arena, path), *name;
    json_t *header = NULL, *entry;
    int first = set->n, rc = -1;
    uint64_t n;

    if (!map) return -1;
    if (map->len < 8)
        return wz_fail(err, "%s: not a safetensors file: expected at least 8 bytes, got %zu", path, map->len);
    memcpy(&n, map->bytes, 8);
    if (n > map->len - 8)
        return wz_fail(err,
                       "%s: expected a model folder, a .gguf, or a .safetensors file that is whole; this one's first 8 "
                       "bytes would be those of a header of %llu bytes, in a file of %zu",
                       path, (unsigned long long)n, map->len);
    const uint8_t *data = map->bytes + 8 + n, *at = data;
    size_t len = map->len - 8 - n;

    header = wz_json_parse((const char *)map->bytes + 8, n, path, err);
    if (!header) return -1;
    if (!json_is_object(header)) {
        wz_fail(err, "%s: the safetensors header is not a JSON object", path);
        goto out;
    }
    json_object_foreach(header, name, entry) if (strcmp(name, "__metadata__") &&
                                                 read_one(set, file, name, entry, data, len, err) < 0) goto out;
    if (set->n > first) qsort(set->list + first, (size_t)(set->n - first), sizeof *set->list, by_data);
    for (int i = first; i < set->n; i++) {
        const struct wz_tensor *t = &set->list[i];
        if (t->data != at) {
            wz_fail(err,
                    "%s: tensor %.200s: expected to begin at byte %zu of the data, where the one before it ends, "
                    "got %zu",
                    path, t->name, (size_t)(at - data), (size_t)(t->data - data));
            goto out;
        }
        at += t->bytes;
    }
    if (at != data + len) {
        wz_fail(err, "%s: the tensors end at byte %zu of %zu bytes of data", path, (size_t)(at - data), len);
        goto out;
    }
    rc = 0;
out:
    json_decref(header);
    return rc;
}

/* ---- writing ---------------------------------------------------------------------------------------------- */

struct wz_safetensors_out {
    struct wz_file file;
    struct {
        enum wz_dtype dtype;
        size_t left;
    } * todo;          /* [n] values of each tensor not written yet */
    int n, at;         /* tensors; the one being written */
    struct wz_err why; /* the first failure; empty: none */
};

static void out_free(struct wz_safetensors_out *out)
{
    free(out->todo);
    free(out);
}

struct wz_safetensors_out *wz_safetensors_begin(const char *path, const struct wz_tensor_spec *specs, int n,
                                                struct wz_err *err)
{
    struct wz_safetensors_out *out = wz_alloc(sizeof *out);
    struct wz_buf head = { 0 };
    size_t offset = 0;
    uint64_t len;

    out->todo = wz_alloc(wz_mul(sizeof *out->todo, (size_t)n));
    out->n = n;
    wz_buf_str(&head, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int i = 0; i < n; i++) {
        struct wz_tensor t = { .n_dims = specs[i].n_dims };
        const struct wz_dtype_row *row = &wz_dtypes[specs[i].dtype];
        assert(row->elements == 1 && t.n_dims >= 0 && t.n_dims <= WZ_MAX_DIMS);
        memcpy(t.shape, specs[i].shape, sizeof t.shape);
        if (!wz_tensor_count(&t)) wz_die("tensor %s: its shape overflows the address space", specs[i].name);
        wz_buf_str(&head, ",");
        wz_json_string(&head, specs[i].name, strlen(specs[i].name));
        wz_buf_printf(&head, ":{\"dtype\":\"%s\",\"shape\":[", row->name);
        for (int k = 0; k < t.n_dims; k++) wz_buf_printf(&head, "%s%zu", k ? "," : "", t.shape[k]);
        wz_buf_printf(&head, "],\"data_offsets\":[%zu,%zu]}", offset, offset + wz_mul(t.count, row->bytes));
        offset += t.count * row->bytes;
        out->todo[i].dtype = specs[i].dtype;
        out->todo[i].left = t.count;
    }
    wz_buf_str(&head, "}");
    while (head.len % 8) wz_buf_str(&head, " ");
    len = head.len;
    if (wz_file_begin(&out->file, path, err) < 0 || wz_file_put(&out->file, &len, 8, err) < 0 ||
        wz_file_put(&out->file, head.data, head.len, err) < 0) {
        wz_file_end(&out->file, false, err);
        out_free(out);
        out = NULL;
    }
    wz_buf_finish(&head);
    return out;
}

int wz_safetensors_put(struct wz_safetensors_out *out, const float *values, size_t n, struct wz_err *err)
{
    uint16_t half[4096];

    wz_heartbeat();
    while (n) {
        while (out->at < out->n && !out->todo[out->at].left) out->at++;
        assert(out->at < out->n); /* no more values than the specs announced */
        enum wz_dtype dtype = out->todo[out->at].dtype;
        size_t k = n < out->todo[out->at].left ? n : out->todo[out->at].left;
        if (dtype != WZ_DT_F32 && k > WZ_COUNT(half)) k = WZ_COUNT(half);
        for (size_t i = 0; dtype != WZ_DT_F32 && i < k; i++)
            half[i] = dtype == WZ_DT_F16 ? wz_f16_from(values[i]) : wz_f32_to_bf16(values[i]);
        const void *bytes = dtype == WZ_DT_F32 ? (const void *)values : half;
        if (wz_file_put(&out->file, bytes, k * wz_dtypes[dtype].bytes, &out->why) < 0)
            return wz_fail(err, "%s", out->why.text);
        out->todo[out->at].left -= k;
        values += k;
        n -= k;
    }
    return 0;
}

int wz_safetensors_end(struct wz_safetensors_out *out, struct wz_err *err)
{
    while (out->at < out->n && !out->todo[out->at].left) out->at++;
    if (*out->why.text) wz_fail(err, "%s", out->why.text);
    else if (out->at < out->n) wz_fail(err, "%s: not written: values are missing", out->file.path);
    int rc = wz_file_end(&out->file, !*out->why.text && out->at == out->n, err);
    out_free(out);
    return rc;
}
