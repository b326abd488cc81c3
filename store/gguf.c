/* GGUF versions 2 and 3: llama.cpp's file of metadata and tensors, little endian.
 *
 *   "GGUF" │ u32 version │ u64 tensors │ u64 keys │ keys ... │ tensor infos ... │ zeros up to the alignment │ data
 *   string:      u64 length, bytes
 *   key:         string name, u32 type, value
 *   array value: u32 type, u64 count, values
 *   tensor info: string name, u32 dims, u64 size[dims] (fastest first), u32 type, u64 offset from the start of the data
 *
 * A file may be split: NAME-00001-of-000NN.gguf and so on, each a GGUF with keys split.no (from 0), split.count and
 * split.tensors.count (of all parts). The first part has the model's other keys too. Its tensors are read from all.
 *
 * Metadata becomes one JSON object: numbers, booleans, strings, arrays of those. A u64 past 2^63 - 1 and floats become
 * reals, infinities and NaN become null.
 *
 * Strings in GGUF may hold bytes that are not UTF-8 (pieces of byte-level vocabularies); JSON strings may not. Such a
 * byte b (always 0x80..0xff) is escaped as the private-use character U+10FD00 + b; the four bytes of a real character
 * U+10FD80..U+10FDFF are escaped the same way. To get the bytes back, replace each U+10FD80..U+10FDFF by the byte
 * code & 0xff. */
#include "store/tensors.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64, N_TYPES };
static const uint8_t type_size[N_TYPES] = {
    1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8
}; /* of strings and arrays: at least */

/* By ggml's type number: our type or, of types that can't be converted, the block (elements, bytes) for the size check.
 * Without a name: removed. */
static const struct {
    enum wz_dtype dtype;
    const char *name;
    uint16_t elements, bytes;
} ggml[] = {
    [0] = { .dtype = WZ_DT_F32, .name = "F32" },
    [1] = { .dtype = WZ_DT_F16, .name = "F16" },
    [2] = { .dtype = WZ_DT_Q4_0, .name = "Q4_0" },
    [3] = { .dtype = WZ_DT_Q4_1, .name = "Q4_1" },
    [6] = { .dtype = WZ_DT_Q5_0, .name = "Q5_0" },
    [7] = { .dtype = WZ_DT_Q5_1, .name = "Q5_1" },
    [8] = { .dtype = WZ_DT_Q8_0, .name = "Q8_0" },
    [9] = { WZ_DT_OTHER, "Q8_1", 32, 36 },
    [10] = { .dtype = WZ_DT_Q2_K, .name = "Q2_K" },
    [11] = { .dtype = WZ_DT_Q3_K, .name = "Q3_K" },
    [12] = { .dtype = WZ_DT_Q4_K, .name = "Q4_K" },
    [13] = { .dtype = WZ_DT_Q5_K, .name = "Q5_K" },
    [14] = { .dtype = WZ_DT_Q6_K, .name = "Q6_K" },
    [15] = { WZ_DT_OTHER, "Q8_K", 256, 292 },
    [16] = { WZ_DT_OTHER, "IQ2_XXS", 256, 66 },
    [17] = { WZ_DT_OTHER, "IQ2_XS", 256, 74 },
    [18] = { WZ_DT_OTHER, "IQ3_XXS", 256, 98 },
    [19] = { WZ_DT_OTHER, "IQ1_S", 256, 50 },
    [20] = { WZ_DT_OTHER, "IQ4_NL", 32, 18 },
    [21] = { WZ_DT_OTHER, "IQ3_S", 256, 110 },
    [22] = { WZ_DT_OTHER, "IQ2_S", 256, 82 },
    [23] = { WZ_DT_OTHER, "IQ4_XS", 256, 136 },
    [24] = { WZ_DT_OTHER, "I8", 1, 1 },
    [25] = { WZ_DT_OTHER, "I16", 1, 2 },
    [26] = { WZ_DT_OTHER, "I32", 1, 4 },
    [27] = { WZ_DT_OTHER, "I64", 1, 8 },
    [28] = { WZ_DT_OTHER, "F64", 1, 8 },
    [29] = { WZ_DT_OTHER, "IQ1_M", 256, 56 },
    [30] = { .dtype = WZ_DT_BF16, .name = "BF16" },
    [34] = { WZ_DT_OTHER, "TQ1_0", 256, 54 },
    [35] = { WZ_DT_OTHER, "TQ2_0", 256, 66 },
    [39] = { WZ_DT_OTHER, "MXFP4", 32, 17 },
};

/* The unread part of the file. Every take checks what is left; `path` is for messages. */
struct cursor {
    const char *path;
    const uint8_t *at;
    size_t left, len;
    struct wz_err *err;
};

static int take(struct cursor *c, void *out, size_t n, const char *what)
{
    if (c->left < n) {
        wz_fail(c->err, "%s: truncated at byte %zu: expected %s", c->path, c->len, what);
        return -1;
    }
    memcpy(out, c->at, n);
    c->at += n;
    c->left -= n;
    return 0;
}

/* Borrows the bytes of a string. */
static int take_string(struct cursor *c, const char **s, size_t *n, const char *what)
{
    uint64_t len;

    if (take(c, &len, 8, what) < 0) return -1;
    if (len > c->left) {
        wz_fail(c->err, "%s: byte %zu: %s of %llu bytes in a file of %zu", c->path, c->len - c->left, what,
                (unsigned long long)len, c->len);
        return -1;
    }
    *s = (const char *)c->at;
    *n = (size_t)len;
    c->at += len;
    c->left -= (size_t)len;
    return 0;
}

/* A string that names something: no NUL, valid UTF-8, of sane length. */
static int take_name(struct cursor *c, const char **s, size_t *n, const char *what)
{
    if (take_string(c, s, n, what) < 0) return -1;
    if (*n > 0 && *n <= WZ_MAX_NAME && !memchr(*s, 0, *n) && wz_utf8_valid(*s, *n) == *n) return 0;
    wz_fail(c->err, "%s: byte %zu: %s: expected UTF-8 of 1 to %d bytes", c->path, c->len - c->left - *n, what,
            WZ_MAX_NAME);
    return -1;
}

static json_t *string_json(const char *s, size_t n)
{
    struct wz_buf out = { 0 };
    json_t *j;
    char code[4];

    wz_buf_add(&out, s, 0);
    for (size_t i = 0; i < n;) {
        size_t ok = wz_utf8_valid(s + i, n - i), end = i + ok, from = i;
        int len = 1;
        for (; i < end; i += (size_t)len) {
            uint32_t c = wz_utf8_get(s + i, end - i, &len);
            if (c >= 0x10fd80 && c <= 0x10fdff) break;
        }
        wz_buf_add(&out, s + from, i - from);
        int bad = i < end ? 4 : i < n ? 1 : 0;
        for (int k = 0; k < bad; k++, i++) wz_buf_add(&out, code, (size_t)wz_utf8_put(code, 0x10fd00 + (uint8_t)s[i]));
    }
    j = json_stringn(out.data, out.len);
    wz_buf_finish(&out);
    return j;
}

static json_t *real_json(double x) { return isfinite(x) ? json_real(x) : json_null(); }

static json_t *take_value(struct cursor *c, uint32_t type, const char *key, size_t n_key);

static json_t *take_array(struct cursor *c, const char *key, size_t n_key)
{
    uint32_t type;
    uint64_t count;
    json_t *list;

    if (take(c, &type, 4, "the type of an array") < 0 || take(c, &count, 8, "the count of an array") < 0) return NULL;
    if (type >= N_TYPES || type == ARRAY || count > c->left / type_size[type]) {
        wz_fail(c->err, "%s: key %.*s: invalid array of %llu values of type %u", c->path,
                (int)(n_key > 200 ? 200 : n_key), key, (unsigned long long)count, type);
        return NULL;
    }
    list = json_array();
    for (uint64_t i = 0; i < count; i++) {
        json_t *v = take_value(c, type, key, n_key);
        if (!v) {
            json_decref(list);
            return NULL;
        }
        json_array_append_new(list, v);
    }
    return list;
}

static json_t *take_value(struct cursor *c, uint32_t type, const char *key, size_t n_key)
{
    union {
        uint8_t u8;
        int8_t i8;
        uint16_t u16;
        int16_t i16;
        uint32_t u32;
        int32_t i32;
        float f32;
        uint64_t u64;
        int64_t i64;
        double f64;
    } v;
    const char *s;
    size_t n;

    if (type >= N_TYPES) {
        wz_fail(c->err, "%s: key %.*s: unknown value type %u", c->path, (int)(n_key > 200 ? 200 : n_key), key, type);
        return NULL;
    }
    if (type == ARRAY) return take_array(c, key, n_key);
    if (type == STRING) return take_string(c, &s, &n, "a string") < 0 ? NULL : string_json(s, n);
    if (take(c, &v, type_size[type], "a value") < 0) return NULL;
    switch (type) {
    case U8: return json_integer(v.u8);
    case I8: return json_integer(v.i8);
    case U16: return json_integer(v.u16);
    case I16: return json_integer(v.i16);
    case U32: return json_integer(v.u32);
    case I32: return json_integer(v.i32);
    case F32: return real_json((double)v.f32);
    case BOOL: return json_boolean(v.u8 != 0);
    case U64: return v.u64 > INT64_MAX ? json_real((double)v.u64) : json_integer((json_int_t)v.u64);
    case I64: return json_integer(v.i64);
    default: return real_json(v.f64);
    }
}

static int take_keys(struct cursor *c, json_t *meta, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        const char *key;
        size_t len;
        uint32_t type;
        json_t *v;
        if (take_name(c, &key, &len, "the name of a key") < 0 || take(c, &type, 4, "the type of a value") < 0)
            return -1;
        if (json_object_getn(meta, key, len))
            return wz_fail(c->err, "%s: key %.*s appears twice", c->path, (int)(len > 200 ? 200 : len), key);
        v = take_value(c, type, key, len);
        if (!v) return -1;
        json_object_setn_new(meta, key, len, v);
    }
    return 0;
}

/* Fills all but t->data; *offset is the file's. */
static int take_info(struct cursor *c, struct wz_tensor *t, struct wz_arena *arena, uint64_t *offset)
{
    const char *s;
    size_t n;
    uint32_t dims, type;
    uint64_t size[WZ_MAX_DIMS];
    char *name;

    if (take_name(c, &s, &n, "the name of a tensor") < 0 || take(c, &dims, 4, "a tensor's dimensions") < 0) return -1;
    t->name = name = wz_arena_alloc(arena, n + 1);
    memcpy(name, s, n);
    if (dims > WZ_MAX_DIMS)
        return wz_fail(c->err, "%s: tensor %.200s: expected at most %d dimensions, got %u", c->path, name, WZ_MAX_DIMS,
                       dims);
    if (take(c, size, 8 * dims, "a tensor's shape") < 0 || take(c, &type, 4, "a tensor's type") < 0 ||
        take(c, offset, 8, "a tensor's offset") < 0)
        return -1;
    t->n_dims = (int)dims;
    for (uint32_t i = 0; i < dims; i++) t->shape[dims - 1 - i] = (size_t)size[i];
    if (type >= WZ_COUNT(ggml) || !ggml[type].name)
        return wz_fail(c->err, "%s: tensor %.200s: unknown type %u", c->path, name, type);
    t->dtype = ggml[type].dtype;
    t->type = ggml[type].name;
    bool other = t->dtype == WZ_DT_OTHER;
    size_t elements = other ? ggml[type].elements : wz_dtypes[t->dtype].elements;
    size_t bytes = other ? ggml[type].bytes : wz_dtypes[t->dtype].bytes;
    if (!wz_tensor_count(t) || __builtin_mul_overflow(t->count / elements, bytes, &t->bytes))
        return wz_fail(c->err, "%s: tensor %.200s: its shape overflows the address space", c->path, name);
    if (elements > 1 && (!dims || size[0] % elements))
        return wz_fail(c->err,
                       "%s: tensor %.200s: expected an innermost size that is a multiple of the block of %zu of %s, "
                       "got %llu",
                       c->path, name, elements, t->type, dims ? (unsigned long long)size[0] : 0ull);
    return 0;
}

/* One file: adds its tensors to the set. *meta is its metadata, the caller's, where it was read at all. */
static int read_part(struct wz_tensors *set, const char *path, json_t **meta, struct wz_err *err)
{
    const struct wz_map *map = wz_tensors_map(set, path, err);
    char magic[4];
    uint32_t version;
    uint64_t n_tensors, n_keys, align = 32, *offsets = NULL;
    int first = set->n, rc = -1;

    if (!map) return -1;
    struct cursor c = { path, map->bytes, map->len, map->len, err };
    if (take(&c, magic, 4, "\"GGUF\"") < 0) return -1;
    if (memcmp(magic, "GGUF", 4)) return wz_fail(err, "%s: not a GGUF file: expected \"GGUF\" at the beginning", path);
    if (take(&c, &version, 4, "the version") < 0) return -1;
    if (version != 2 && version != 3)
        return wz_fail(err, "%s: expected GGUF version 2 or 3, little endian, got %u", path, version);
    if (take(&c, &n_tensors, 8, "the count of tensors") < 0 || take(&c, &n_keys, 8, "the count of keys") < 0) return -1;
    /* a tensor info takes at least 24 bytes, a key 13 */
    if (n_tensors > c.left / 24 || n_keys > c.left / 13 || n_tensors > 1 << 24)
        return wz_fail(err, "%s: %llu tensors and %llu keys can't be in a file of %zu bytes", path,
                       (unsigned long long)n_tensors, (unsigned long long)n_keys, map->len);
    *meta = json_object();
    if (take_keys(&c, *meta, n_keys) < 0) return -1;
    const json_t *a = json_object_get(*meta, "general.alignment");
    if (a) align = (uint64_t)json_integer_value(a);
    if (align == 0 || align > 1 << 20 || (align & (align - 1)))
        return wz_fail(err, "%s: general.alignment: expected a power of two up to 1048576", path);

    const char *file = wz_arena_strdup(&set->arena, path);
    offsets = wz_realloc(NULL, wz_mul(8, (size_t)n_tensors));
    for (uint64_t i = 0; i < n_tensors; i++) {
        struct wz_tensor *t = wz_tensors_add(set);
        t->file = file;
        if (take_info(&c, t, &set->arena, &offsets[i]) < 0) goto out;
    }
    size_t pad = (size_t)(-(uint64_t)(map->len - c.left) & (align - 1));
    size_t data_len = c.left < pad ? 0 : c.left - pad;
    for (int i = first; i < set->n; i++) {
        struct wz_tensor *t = &set->list[i];
        uint64_t offset = offsets[i - first];
        if (offset % align || offset > data_len || t->bytes > data_len - offset) {
            wz_fail(err, "%s: tensor %.200s: %zu bytes at offset %llu are not aligned or exceed the %zu bytes of data",
                    path, t->name, t->bytes, (unsigned long long)offset, data_len);
            goto out;
        }
        t->data = c.at + (c.left < pad ? c.left : pad) + offset;
    }
    rc = 0;
out:
    free(offsets);
    return rc;
}

/* Part `no` (from 1) of `count`, of which `path` is part `from`. Heap; NULL: its name is not that of a part. */
static char *part_name(const char *path, int from, int no, int count)
{
    char tail[64];
    size_t n = strlen(path), k = (size_t)snprintf(tail, sizeof tail, "-%05d-of-%05d.gguf", from, count);

    if (n < k || strcmp(path + n - k, tail)) return NULL;
    return wz_path("%.*s-%05d-of-%05d.gguf", (int)(n - k), path, no, count);
}

enum { PARTS_MAX = 99999 };

/* The number at key "split.WHAT"; 0: none. -1: out of range. */
static int split(const json_t *meta, const char *what)
{
    char key[32];

    snprintf(key, sizeof key, "split.%s", what);
    json_int_t n = json_integer_value(json_object_get(meta, key));
    return n < 0 || n > 1 << 24 ? -1 : (int)n;
}

int wz_gguf_read(struct wz_tensors *set, const char *path, struct wz_err *err)
{
    if (read_part(set, path, &set->meta, err) < 0) return -1;
    int count = split(set->meta, "count"), no = split(set->meta, "no"), all = split(set->meta, "tensors.count");

    if (count < 0 || count > PARTS_MAX || no < 0 || (count && no >= count))
        return wz_fail(err, "%s: split.no and split.count: expected part numbers below %d", path, PARTS_MAX);
    if (count <= 1) return 0;
    char *name = part_name(path, no + 1, 1, count);
    if (no || !name)
        wz_fail(err, "%s: this is part %d of %d of a split model: give the first, %s", path, no + 1, count,
                name ? name : "by its name NAME-00001-of-000NN.gguf");
    bool ok = no == 0 && name;
    for (int part = 2; part <= count && ok; part++) {
        json_t *meta = NULL;
        free(name);
        name = part_name(path, 1, part, count);
        ok = read_part(set, name, &meta, err) == 0;
        if (!ok) wz_fail_in(err, "part %d of %d of %s", part, count, path);
        else if (split(meta, "no") != part - 1 || split(meta, "count") != count) {
            wz_fail(err, "%s: expected split.no %d and split.count %d of part %d", name, part - 1, count, part);
            ok = false;
        }
        json_decref(meta);
    }
    free(name);
    if (ok && set->n != all)
        return wz_fail(err, "%s: the %d parts hold %d tensors, expected split.tensors.count %d", path, count, set->n,
                       all);
    return ok ? 0 : -1;
}
