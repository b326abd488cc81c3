/* Guarantee: safetensors and GGUF files are read exactly, and a truncated or hostile one gives one error message, never
 * a crash. */
#include "test.h"

#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernels/kernels.h"
#include "store/tensors.h"

static char *path; /* of the file under test */

static void put_file(const char *name, const void *bytes, size_t n)
{
    FILE *f = fopen(name, "wb");

    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

/* Opening must fail, with a message that names the file and holds `word`. */
static void refuses(const char *name, const char *word)
{
    struct wz_err err = { "" };
    struct wz_tensors *set = wz_tensors_open(name, &err);

    assert_null(set);
    if (!strstr(err.text, name) || !strstr(err.text, word)) fail_msg("expected '%s' in: %s", word, err.text);
}

/* A safetensors file of this header and n bytes of data 0, 1, 2, ... */
static void put_st(const char *header, size_t n)
{
    struct wz_buf buf = { 0 };
    uint64_t len = strlen(header);

    wz_buf_add(&buf, &len, 8);
    wz_buf_str(&buf, header);
    for (size_t i = 0; i < n; i++) wz_buf_add(&buf, &(uint8_t){ (uint8_t)i }, 1);
    put_file(path, buf.data, buf.len);
    wz_buf_finish(&buf);
}

static void halves_convert(void **state)
{
    struct wz_tensor t = { .dtype = WZ_DT_F16, .count = 1, .bytes = 2 };
    float below = 0;

    for (uint32_t h = 0; h < 0x10000; h++) {
        uint8_t b[2] = { (uint8_t)h, (uint8_t)(h >> 8) };
        int e = h >> 10 & 31, m = h & 1023;
        float x, want = e == 31 ? (m ? NAN : INFINITY) : e ? ldexpf((float)(1024 + m), e - 25) : ldexpf((float)m, -24);
        t.data = b;
        wz_tensor_floats(&t, 0, 1, &x);
        if (h >> 15) want = -want;
        if (isnan(want)) {
            assert_true(isnan(x));
            uint16_t back = wz_f16_from(x);
            assert_true((back & 0x7c00) == 0x7c00 && (back & 0x3ff));
            continue;
        }
        assert_memory_equal(&x, &want, 4);
        assert_int_equal(wz_f16_from(x), h);
        if (h && h < 0x7c00) { /* the middle between two neighbours goes to the even one */
            float mid = (below + x) / 2;
            assert_int_equal(wz_f16_from(mid), h & 1 ? h - 1 : h);
            assert_int_equal(wz_f16_from(nextafterf(mid, INFINITY)), h);
            assert_int_equal(wz_f16_from(nextafterf(mid, 0)), h - 1);
        }
        if (h < 0x7c00) below = x;
    }
    assert_int_equal(wz_f16_from(65519.996f), 0x7bff);
    assert_int_equal(wz_f16_from(65520), 0x7c00);
    assert_int_equal(wz_f32_to_bf16(1), 0x3f80);
    assert_int_equal(wz_f32_to_bf16(1 + 0x1p-8f), 0x3f80); /* ties to even, down and up */
    assert_int_equal(wz_f32_to_bf16(1 + 0x3p-8f), 0x3f82);
    assert_int_equal(wz_f32_to_bf16(1 + 0x1p-8f + 0x1p-20f), 0x3f81);
    assert_int_equal(wz_f32_to_bf16(3.4e38f), 0x7f80);
    assert_true(wz_f32_to_bf16(-NAN) > 0xff80);
}

static void count(void *arg) { ++*(int *)arg; }

static void safetensors_round_trip(void **state)
{
    const struct wz_tensor_spec specs[] = {
        { "a \"quoted\" näme", WZ_DT_F32, 2, { 3, 5 } },
        { "half", WZ_DT_F16, 1, { 7 } },
        { "empty", WZ_DT_F32, 2, { 0, 4 } },
        { "brain", WZ_DT_BF16, 3, { 2, 1, 4500 } },
        { "scalar", WZ_DT_F32, 0, { 0 } },
    };
    enum { N = 15 + 7 + 9000 + 1 };
    static float in[N], out[N];
    struct wz_err err;
    struct wz_safetensors_out *w = wz_safetensors_begin(path, specs, 5, &err);

    assert_non_null(w);
    for (int i = 0; i < N; i++) in[i] = (float)(i % 200 - 100) / 8; /* exact in every type */
    int signs = 0;
    wz_set_heartbeat(count, &signs);
    assert_int_equal(wz_safetensors_put(w, in, 10, &err), 0); /* across the borders of tensors */
    assert_int_equal(signs, 1);                               /* of life, guarantee 5 */
    wz_set_heartbeat(NULL, NULL);
    assert_int_equal(wz_safetensors_put(w, in + 10, N - 10, &err), 0);
    assert_false(wz_file_exists(path));
    assert_int_equal(wz_safetensors_end(w, &err), 0);

    struct wz_tensors *set = wz_tensors_open(path, &err);
    assert_non_null(set);
    assert_int_equal(wz_tensors_count(set), 5);
    assert_null(wz_tensors_meta(set));
    assert_null(json_object_get(wz_tensors_meta(set), "x"));
    assert_null(wz_tensors_find(set, "absent"));
    size_t at = 0;
    for (int i = 0; i < 5; i++) {
        const struct wz_tensor *t = wz_tensors_find(set, specs[i].name);
        assert_non_null(t);
        assert_int_equal(t->dtype, specs[i].dtype);
        assert_int_equal(t->n_dims, specs[i].n_dims);
        assert_memory_equal(t->shape, specs[i].shape, sizeof *t->shape * (size_t)t->n_dims);
        wz_tensor_floats(t, 0, t->count, out + at);
        if (t->count > 5) {
            float part[3];
            wz_tensor_floats(t, 2, 3, part);
            assert_memory_equal(part, in + at + 2, sizeof part);
        }
        at += t->count;
    }
    assert_int_equal(at, N);
    assert_memory_equal(in, out, sizeof in);
    wz_tensors_close(set);
    struct wz_map map;
    uint64_t len;
    assert_int_equal(wz_map_open(&map, path, &err), 0);
    memcpy(&len, map.bytes, 8);
    assert_int_equal(len % 8, 0);
    assert_non_null(memmem(map.bytes, map.len, "{\"__metadata__\":{\"format\":\"pt\"}", 30));
    wz_map_close(&map);
}

/* Whatever the names' length, the data begins at a multiple of 8, so that a reader may map it as numbers. */
static void data_is_aligned(void **state)
{
    static const char *const names[] = { "a", "ab", "abc", "abcd", "abcde", "abcdef", "abcdefg", "abcdefgh" };
    struct wz_map map;
    struct wz_err err;
    uint64_t head;

    for (size_t i = 0; i < WZ_COUNT(names); i++) {
        const struct wz_tensor_spec spec = { names[i], WZ_DT_F32, 1, { 1 } };
        struct wz_safetensors_out *w = wz_safetensors_begin(path, &spec, 1, &err);
        assert_int_equal(wz_safetensors_put(w, (float[]){ 1 }, 1, &err), 0);
        assert_int_equal(wz_safetensors_end(w, &err), 0);
        assert_int_equal(wz_map_open(&map, path, &err), 0);
        memcpy(&head, map.bytes, sizeof head);
        assert_int_equal(head % 8, 0);
        assert_int_equal(map.len, 8 + head + 4);
        wz_map_close(&map);
    }
    remove(path);
}

static void an_abandoned_write_leaves_nothing(void **state)
{
    const struct wz_tensor_spec spec = { "a", WZ_DT_F32, 1, { 4 } };
    struct wz_err err;
    char *tmp = wz_path("%s.tmp", path);
    struct wz_safetensors_out *w = wz_safetensors_begin(path, &spec, 1, &err);

    assert_int_equal(wz_safetensors_put(w, (float[]){ 1, 2, 3 }, 3, &err), 0);
    assert_true(wz_file_exists(tmp));
    assert_int_equal(wz_safetensors_end(w, &err), -1);
    assert_false(wz_file_exists(tmp));
    assert_false(wz_file_exists(path));
    free(tmp);
    assert_null(wz_safetensors_begin("/no/such/folder/x", &spec, 1, &err));
    assert_non_null(strstr(err.text, "/no/such/folder/x"));
}

static void safetensors_hostile(void **state)
{
    static const struct {
        const char *header;
        size_t n;
        const char *word;
    } rows[] = {
        { "{}", 1, "end at byte 0" },
        { "[]", 0, "not a JSON object" },
        { "{", 0, "not valid JSON" },
        { "{\"a\":3}", 0, "dtype" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"a\":{}}", 4, "not valid JSON" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,5]}}", 5, "expected 4 bytes for 1 elements" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,8]}}", 7, "within the 7 bytes" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 8, "[begin, end]" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", 8, "[begin, end]" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8, "begin at byte 0 of the data" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 8, "end at byte 4" },
        { "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
          "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[2,6]}}",
          6, "got 2" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "whole numbers" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1.5],\"data_offsets\":[0,4]}}", 4, "whole numbers" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1],\"data_offsets\":[0,4]}}", 4, "at most 4" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
          "overflows the address space" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0,
          "overflows the address space" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,99999999999999999999]}}", 4, "data_offsets: " },
    };

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        put_st(rows[i].header, rows[i].n);
        refuses(path, rows[i].word);
    }
    put_file(path, "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10);
    refuses(path, "header of");
    unlink(path);
    refuses(path, "no such file");
}

/* Every beginning of a good file, and every file with one byte changed: refused or read, never a crash. */
static void mangle(const char *from, bool truncated_may_open)
{
    struct wz_err err;
    struct wz_map map;
    char *bytes, *name = test_scratch("mangled");

    assert_int_equal(wz_map_open(&map, from, &err), 0);
    bytes = wz_alloc(map.len);
    memcpy(bytes, map.bytes, map.len);
    for (size_t n = 0; n < map.len; n++) {
        put_file(name, bytes, n);
        struct wz_tensors *set = wz_tensors_open(name, &err);
        if (set && !truncated_may_open) fail_msg("%s opens with %zu of %zu bytes", from, n, map.len);
        if (!set) assert_non_null(strstr(err.text, name));
        wz_tensors_close(set);
    }
    for (size_t n = 0; n < map.len; n++) {
        for (int bit = 0; bit < 8; bit += 7) {
            bytes[n] ^= (char)(1 << bit);
            put_file(name, bytes, map.len);
            struct wz_tensors *set = wz_tensors_open(name, &err);
            for (int i = 0; set && i < wz_tensors_count(set); i++) {
                const struct wz_tensor *t = wz_tensors_at(set, i);
                float *out = wz_alloc(wz_mul(4, t->count));
                if (t->dtype != WZ_DT_OTHER) wz_tensor_floats(t, 0, t->count, out);
                free(out);
            }
            wz_tensors_close(set);
            bytes[n] ^= (char)(1 << bit);
        }
    }
    free(bytes);
    free(name);
    wz_map_close(&map);
}

static void safetensors_mangled(void **state)
{
    put_st("{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
           "\"b\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[24,28]}}",
           28);
    mangle(path, false);
}

/* ---- folders ---------------------------------------------------------------------------------------------- */

static void folder_of_shards(void **state)
{
    char *dir = test_scratch("shards"), *one = wz_path("%s/s-1.safetensors", dir),
         *two = wz_path("%s/s-2.safetensors", dir);
    char *index = wz_path("%s/model.safetensors.index.json", dir);
    struct wz_err err;
    static const struct {
        const char *index, *word;
    } bad[] = {
        { "{}", "weight_map" },
        { "{\"weight_map\":{\"a\":\"../s-1.safetensors\"}}", "same folder" },
        { "{\"weight_map\":{\"a\":\"..\"}}", "same folder" },
        { "{\"weight_map\":{\"a\":7}}", "same folder" },
        { "{\"weight_map\":{\"a\":\"s-3.safetensors\"}}", "No such file" },
        { "{\"weight_map\":{\"a\":\"s-1.safetensors\",\"b\":\"s-1.safetensors\"}}", "b is not in s-1" },
        { "{\"weight_map\":{\"a\":\"s-2.safetensors\",\"b\":\"s-1.safetensors\"}}", "is not in" },
    };

    assert_int_equal(wz_mkdirs(dir, &err), 0);
    refuses(dir, "no model.safetensors or");
    free(path), path = one;
    put_st("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2);
    path = two;
    put_st("{\"b\":{\"dtype\":\"F16\",\"shape\":[3],\"data_offsets\":[0,6]}}", 6);
    path = NULL;
    for (size_t i = 0; i < WZ_COUNT(bad); i++) {
        put_file(index, bad[i].index, strlen(bad[i].index));
        refuses(dir, bad[i].word);
    }
    const char *good = "{\"metadata\":{},\"weight_map\":{\"b\":\"s-2.safetensors\",\"a\":\"s-1.safetensors\"}}";
    put_file(index, good, strlen(good));
    struct wz_tensors *set = wz_tensors_open(dir, &err);
    assert_non_null(set);
    assert_int_equal(wz_tensors_find(set, "a")->bytes, 2);
    assert_int_equal(wz_tensors_find(set, "a")->dtype, WZ_DT_OTHER);
    assert_string_equal(wz_tensors_find(set, "b")->file, two);
    wz_tensors_close(set);

    path = two;
    put_st("{\"b\":{\"dtype\":\"F16\",\"shape\":[3],\"data_offsets\":[0,6]},"
           "\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}",
           6);
    refuses(dir, "twice");
    path = NULL;
    free(dir);
    free(one);
    free(two);
    free(index);
}

/* ---- GGUF ------------------------------------------------------------------------------------------------- */

static void g32(struct wz_buf *b, uint32_t v) { wz_buf_add(b, &v, 4); }
static void g64(struct wz_buf *b, uint64_t v) { wz_buf_add(b, &v, 8); }
static void gstr(struct wz_buf *b, const char *s) { g64(b, strlen(s)), wz_buf_str(b, s); }
static void gkey(struct wz_buf *b, const char *s, uint32_t type) { gstr(b, s), g32(b, type); }

static void gguf_begin(struct wz_buf *b, uint32_t version, uint64_t tensors, uint64_t keys)
{
    wz_buf_clear(b);
    wz_buf_str(b, "GGUF");
    g32(b, version), g64(b, tensors), g64(b, keys);
}

static void ginfo(struct wz_buf *b, const char *name, uint32_t d0, uint32_t d1, uint32_t type, uint64_t offset)
{
    gstr(b, name), g32(b, 2), g64(b, d0), g64(b, d1), g32(b, type), g64(b, offset);
}

static void gpad(struct wz_buf *b, size_t align)
{
    while (b->len % align) wz_buf_add(b, "", 1);
}

/* One of every value type, and a tensor of every type that we read. */
static void put_gguf(struct wz_buf *b, uint32_t version)
{
    gguf_begin(b, version, 5, 15);
    gkey(b, "general.alignment", 4), g32(b, 64);
    gkey(b, "u8", 0), wz_buf_add(b, "\xff", 1);
    gkey(b, "i8", 1), wz_buf_add(b, "\xff", 1);
    gkey(b, "u16", 2), wz_buf_add(b, "\xff\xff", 2);
    gkey(b, "i16", 3), wz_buf_add(b, "\xfe\xff", 2);
    gkey(b, "i32", 5), g32(b, (uint32_t)-7);
    gkey(b, "f32", 6), wz_buf_add(b, &(float){ 0.5f }, 4);
    gkey(b, "nan", 6), wz_buf_add(b, &(float){ NAN }, 4);
    gkey(b, "yes", 7), wz_buf_add(b, "\1", 1);
    gkey(b, "u64", 10), g64(b, 1ull << 40);
    gkey(b, "big", 10), g64(b, ~0ull);
    gkey(b, "i64", 11), g64(b, (uint64_t)-5);
    gkey(b, "f64", 12), wz_buf_add(b, &(double){ 0.25 }, 8);
    gkey(b, "tokens", 9), g32(b, 8), g64(b, 5);
    gstr(b, "plain"), gstr(b, ""),
        gstr(b, "\xff"
                "a\xc3"),
        gstr(b, "\xf4\x8f\xb6\x80"), gstr(b, "\xe2\x96\x81");
    gkey(b, "scores", 9), g32(b, 6), g64(b, 2), wz_buf_add(b, (float[]){ -1, 2 }, 8);
    ginfo(b, "f32", 3, 2, 0, 0);
    ginfo(b, "f16", 2, 1, 1, 64);
    ginfo(b, "q8", 32, 1, 8, 128);
    ginfo(b, "q40", 32, 1, 2, 192);
    ginfo(b, "q41", 32, 1, 3, 256);
    gpad(b, 64);
    wz_buf_add(b, (float[]){ 1, 2, 3, 4, 5, 6 }, 24), gpad(b, 64);
    wz_buf_add(b, "\x00\x3c\x00\xc0", 4), gpad(b, 64);
    wz_buf_add(b, "\x00\x38", 2); /* d = 0.5 */
    for (int i = 0; i < 32; i++) wz_buf_add(b, &(int8_t){ (int8_t)(i * 8 - 128) }, 1);
    gpad(b, 64);
    wz_buf_add(b, "\x00\x38", 2);
    for (int i = 0; i < 16; i++) wz_buf_add(b, &(uint8_t){ (uint8_t)(i | (15 - i) << 4) }, 1);
    gpad(b, 64);
    wz_buf_add(b, "\x00\x38\x00\x3c", 4); /* d = 0.5, m = 1 */
    for (int i = 0; i < 16; i++) wz_buf_add(b, &(uint8_t){ (uint8_t)(i | (15 - i) << 4) }, 1);
    put_file(path, b->data, b->len);
}

static const char *meta_string(const struct wz_tensors *set, size_t i)
{
    return json_string_value(json_array_get(json_object_get(wz_tensors_meta(set), "tokens"), i));
}

static void gguf_reads_every_type(void **state)
{
    for (uint32_t version = 2; version <= 3; version++) {
        struct wz_buf b = { 0 };
        struct wz_err err = { "" };
        float out[32];
        put_gguf(&b, version);
        struct wz_tensors *set = wz_tensors_open(path, &err);
        assert_string_equal(err.text, "");
        assert_non_null(set);
        static const struct {
            const char *key;
            long long want;
        } ints[] = {
            { "u8", 255 }, { "i8", -1 },         { "u16", 65535 }, { "i16", -2 },
            { "i32", -7 }, { "u64", 1ll << 40 }, { "i64", -5 },
        };
        for (size_t i = 0; i < WZ_COUNT(ints); i++)
            assert_int_equal(json_integer_value(json_object_get(wz_tensors_meta(set), ints[i].key)), ints[i].want);
        assert_true(json_real_value(json_object_get(wz_tensors_meta(set), "f32")) == 0.5);
        assert_true(json_real_value(json_object_get(wz_tensors_meta(set), "f64")) == 0.25);
        assert_true(json_real_value(json_object_get(wz_tensors_meta(set), "big")) == 0x1p64);
        assert_true(json_is_null(json_object_get(wz_tensors_meta(set), "nan")));
        assert_true(json_is_true(json_object_get(wz_tensors_meta(set), "yes")));
        assert_int_equal(json_array_size(json_object_get(wz_tensors_meta(set), "tokens")), 5);
        assert_string_equal(meta_string(set, 0), "plain");
        assert_string_equal(meta_string(set, 1), "");
        /* U+10FDFF a U+10FDC3, and the real U+10FD80 as its four bytes */
        assert_string_equal(meta_string(set, 2), "\xf4\x8f\xb7\xbf"
                                                 "a\xf4\x8f\xb7\x83");
        assert_string_equal(meta_string(set, 3), "\xf4\x8f\xb7\xb4\xf4\x8f\xb6\x8f\xf4\x8f\xb6\xb6\xf4\x8f\xb6\x80");
        assert_string_equal(meta_string(set, 4), "\xe2\x96\x81");

        const struct wz_tensor *t = wz_tensors_find(set, "f32");
        assert_int_equal(t->n_dims, 2);
        assert_int_equal(t->shape[0], 2);
        assert_int_equal(t->shape[1], 3);
        wz_tensor_floats(t, 0, 6, out);
        for (int i = 0; i < 6; i++) assert_true(out[i] == (float)(i + 1));
        wz_tensor_floats(wz_tensors_find(set, "f16"), 0, 2, out);
        assert_true(out[0] == 1 && out[1] == -2);
        wz_tensor_floats(wz_tensors_find(set, "q8"), 0, 32, out);
        for (int i = 0; i < 32; i++) assert_true(out[i] == 0.5f * (float)(i * 8 - 128));
        wz_tensor_floats(wz_tensors_find(set, "q40"), 0, 32, out);
        for (int i = 0; i < 16; i++)
            assert_true(out[i] == 0.5f * (float)(i - 8) && out[i + 16] == 0.5f * (float)(7 - i));
        wz_tensor_floats(wz_tensors_find(set, "q41"), 0, 32, out);
        for (int i = 0; i < 16; i++)
            assert_true(out[i] == 0.5f * (float)i + 1 && out[i + 16] == 0.5f * (float)(15 - i) + 1);
        wz_tensors_close(set);
        wz_buf_finish(&b);
    }
}

/* Blocks of the other quantised types. Bytes from a small generator; x[i] worked out here from the bits of the format,
 * one element at a time: `scale_at` and `bits` follow ggml's quants by position, not the loops of quants.c. d = 0.5 and
 * m = 0.25 stand where the format has them, so that every value is exact. */
static unsigned bit(const uint8_t *p, int i) { return p[i / 8] >> i % 8 & 1u; }

static float expected(enum wz_dtype type, const uint8_t *p, int i)
{
    int row = i / 32, col = i % 32, k = row % 4, chunk = i / 128;
    const uint8_t *s = p + (type == WZ_DT_Q3_K ? 96 : 4);
    unsigned low2 = 0, six, least;

    switch ((int)type) {
    case WZ_DT_Q5_0: /* d high[4] q[16] */
        return 0.5f * (float)((int)((p[6 + i % 16] >> (i / 16 * 4) & 15u) + 16 * bit(p + 2, i)) - 16);
    case WZ_DT_Q5_1: /* d m high[4] q[16] */
        return 0.5f * (float)((p[8 + i % 16] >> (i / 16 * 4) & 15u) + 16 * bit(p + 4, i)) + 0.25f;
    case WZ_DT_Q2_K:
        low2 = 2 * bit(p + 16 + chunk * 32 + col, k * 2 + 1) + bit(p + 16 + chunk * 32 + col, k * 2);
        return 0.5f * (float)(p[i / 16] % 16 * low2) - 0.25f * (float)(p[i / 16] / 16);
    case WZ_DT_Q3_K:
        low2 = 2 * bit(p + 32 + chunk * 32 + col, k * 2 + 1) + bit(p + 32 + chunk * 32 + col, k * 2);
        six = (i / 16 < 8 ? s[i / 16] % 16u : s[i / 16 - 8] / 16u) + 32 * bit(s + 8 + i / 16 % 4, i / 64 * 2 + 1) +
              16 * bit(s + 8 + i / 16 % 4, i / 64 * 2);
        return 0.5f * (float)(((int)six - 32) * ((int)low2 - 4 * !bit(p + col, row)));
    case WZ_DT_Q4_K:
    case WZ_DT_Q5_K:
        six = row < 4 ? s[row] % 64u : s[4 + row] % 16u + s[k] / 64u * 16;
        least = row < 4 ? s[4 + row] % 64u : s[4 + row] / 16u + s[4 + k] / 64u * 16;
        low2 = p[(type == WZ_DT_Q4_K ? 16 : 48) + i / 64 * 32 + col] >> (row & 1) * 4 & 15u;
        if (type == WZ_DT_Q5_K) low2 += 16 * bit(p + 16 + col, row);
        return 0.5f * (float)(six * low2) - 0.25f * (float)least;
    default: /* Q6_K: q[128] high[64] s[16] d */
        low2 = p[chunk * 64 + i % 64] >> (i % 128 / 64 * 4) & 15u;
        low2 += 32 * bit(p + 128 + chunk * 32 + col, k * 2 + 1) + 16 * bit(p + 128 + chunk * 32 + col, k * 2);
        return 0.5f * (float)((int8_t)p[192 + i / 16] * ((int)low2 - 32));
    }
}

static void quantised_blocks(void **state)
{
    static const struct {
        enum wz_dtype type;
        int d, m; /* where they stand, -1: absent */
    } rows[] = {
        { WZ_DT_Q5_0, 0, -1 }, { WZ_DT_Q5_1, 0, 2 }, { WZ_DT_Q2_K, 80, 82 },  { WZ_DT_Q3_K, 108, -1 },
        { WZ_DT_Q4_K, 0, 2 },  { WZ_DT_Q5_K, 0, 2 }, { WZ_DT_Q6_K, 208, -1 },
    };
    uint8_t bytes[4 * 256];
    float out[4 * 256];

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        const struct wz_dtype_row *row = &wz_dtypes[rows[i].type];
        struct wz_tensor t = { .dtype = rows[i].type, .data = bytes, .count = 4 * row->elements };
        for (size_t k = 0; k < 4 * row->bytes; k++) bytes[k] = (uint8_t)(wz_hash(&k, sizeof k, i) >> 11);
        for (size_t k = 0; k < 4; k++) {
            memcpy(bytes + k * row->bytes + rows[i].d, "\x00\x38", 2);
            if (rows[i].m >= 0) memcpy(bytes + k * row->bytes + rows[i].m, "\x00\x34", 2);
        }
        wz_tensor_floats(&t, 0, t.count, out);
        for (size_t k = 0; k < t.count; k++) {
            float want = expected(rows[i].type, bytes + k / row->elements * row->bytes, (int)(k % row->elements));
            if (out[k] != want)
                fail_msg("%s: element %zu: got %g, expected %g", row->name, k, (double)out[k], (double)want);
        }
        wz_tensor_floats(&t, row->elements, 2 * row->elements, out); /* from the second block on */
        assert_true(out[0] == expected(rows[i].type, bytes + row->bytes, 0));
    }
}

/* Part `no` (from 0) of `count`, of a model of `all` tensors; it holds one, of one element. */
static void put_part(const char *name, uint16_t no, uint16_t count, uint32_t all, const char *tensor, float value)
{
    struct wz_buf b = { 0 };

    gguf_begin(&b, 3, 1, 3);
    gkey(&b, "split.no", 2), wz_buf_add(&b, &no, 2);
    gkey(&b, "split.count", 2), wz_buf_add(&b, &count, 2);
    gkey(&b, "split.tensors.count", 5), g32(&b, all);
    ginfo(&b, tensor, 1, 1, 0, 0), gpad(&b, 32);
    wz_buf_add(&b, &value, 4), gpad(&b, 32);
    put_file(name, b.data, b.len);
    wz_buf_finish(&b);
}

static void gguf_parts(void **state)
{
    char *one = wz_path("%s-00001-of-00003.gguf", path), *two = wz_path("%s-00002-of-00003.gguf", path),
         *three = wz_path("%s-00003-of-00003.gguf", path);
    struct wz_err err = { "" };
    float x;

    put_part(one, 0, 3, 3, "a", 1), put_part(two, 1, 3, 3, "b", 2), put_part(three, 2, 3, 3, "c", 3);
    struct wz_tensors *set = wz_tensors_open(one, &err);
    assert_string_equal(err.text, "");
    assert_int_equal(wz_tensors_count(set), 3);
    for (int i = 0; i < 3; i++) {
        wz_tensor_floats(wz_tensors_find(set, (const char *[]){ "a", "b", "c" }[i]), 0, 1, &x);
        assert_true(x == (float)(i + 1));
    }
    assert_string_equal(wz_tensors_find(set, "b")->file, two);
    assert_int_equal(json_integer_value(json_object_get(wz_tensors_meta(set), "split.no")), 0);
    wz_tensors_close(set);

    refuses(two, "part 2 of 3 of a split model: give the first, ");
    put_part(two, 2, 3, 3, "b", 2);
    refuses(two, "part 3 of 3"); /* a part under another's name */
    assert_null(wz_tensors_open(one, &err));
    assert_non_null(strstr(err.text, "expected split.no 1 and split.count 3 of part 2"));
    put_part(two, 1, 3, 3, "a", 2);
    assert_null(wz_tensors_open(one, &err));
    assert_non_null(strstr(err.text, "twice"));
    put_part(two, 1, 3, 3, "b", 2), put_part(one, 0, 3, 4, "a", 1);
    refuses(one, "hold 3 tensors, expected split.tensors.count 4");
    put_part(one, 0, 3, 3, "a", 1), unlink(two);
    refuses(one, "part 2 of 3 of ");
    put_part(path, 0, 3, 3, "a", 1);
    refuses(path, "NAME-00001-of-000NN.gguf");
    put_part(one, 3, 3, 3, "a", 1);
    refuses(one, "split.no and split.count");
    unlink(one), unlink(three);
    free(one), free(two), free(three);
}

static void gguf_mangled(void **state)
{
    struct wz_buf b = { 0 };

    put_gguf(&b, 3);
    wz_buf_finish(&b);
    mangle(path, false);
}

static void gguf_hostile(void **state)
{
    struct wz_buf b = { 0 };

    put_file(path, "GGUF\0\0\0\3", 8);
    refuses(path, "version");
    gguf_begin(&b, 3, 1ull << 60, 0);
    put_file(path, b.data, b.len);
    refuses(path, "can't be in a file");
    gguf_begin(&b, 3, 0, 1), g64(&b, ~0ull), g64(&b, 0);
    put_file(path, b.data, b.len);
    refuses(path, "name of a key of");
    gguf_begin(&b, 3, 0, 1), gkey(&b, "k", 9), g32(&b, 8), g64(&b, 1ull << 61);
    put_file(path, b.data, b.len);
    refuses(path, "invalid array of");
    gguf_begin(&b, 3, 0, 1), gkey(&b, "k", 9), g32(&b, 9), g64(&b, 1), g64(&b, 0), g64(&b, 0);
    put_file(path, b.data, b.len);
    refuses(path, "invalid array of");
    gguf_begin(&b, 3, 0, 2), gkey(&b, "k", 4), g32(&b, 1), gkey(&b, "k", 4), g32(&b, 2);
    put_file(path, b.data, b.len);
    refuses(path, "k appears twice");
    gguf_begin(&b, 3, 0, 1), gkey(&b, "k\xff", 4), g32(&b, 1);
    put_file(path, b.data, b.len);
    refuses(path, "expected UTF-8");
    gguf_begin(&b, 3, 0, 1), gkey(&b, "general.alignment", 4), g32(&b, 0);
    put_file(path, b.data, b.len);
    refuses(path, "power of two");
    gguf_begin(&b, 3, 1, 0), ginfo(&b, "t", 1u << 31, 1u << 31, 0, 0), gpad(&b, 32);
    put_file(path, b.data, b.len);
    refuses(path, "overflows the address space");
    gguf_begin(&b, 3, 1, 0), ginfo(&b, "t", 4, 1, 0, ~31ull), gpad(&b, 32), g64(&b, 0), g64(&b, 0);
    put_file(path, b.data, b.len);
    refuses(path, "exceed the");
    gguf_begin(&b, 3, 1, 0), ginfo(&b, "t", 4, 1, 0, 4), gpad(&b, 32), g64(&b, 0), g64(&b, 0), g64(&b, 0);
    put_file(path, b.data, b.len);
    refuses(path, "not aligned");
    gguf_begin(&b, 3, 1, 0), ginfo(&b, "t", 31, 1, 8, 0), gpad(&b, 32);
    put_file(path, b.data, b.len);
    refuses(path, "multiple");
    gguf_begin(&b, 3, 1, 0), ginfo(&b, "t", 128, 2, 12, 0), gpad(&b, 32);
    put_file(path, b.data, b.len);
    refuses(path, "multiple of the block of 256 of Q4_K, got 128");
    gguf_begin(&b, 3, 1, 0), ginfo(&b, "t", 4, 1, 5, 0), gpad(&b, 32);
    put_file(path, b.data, b.len);
    refuses(path, "unknown type");
    gguf_begin(&b, 3, 1, 0), gstr(&b, "t"), g32(&b, ~0u), g64(&b, 0), g64(&b, 0);
    put_file(path, b.data, b.len);
    refuses(path, "dimensions");
    wz_buf_finish(&b);
}

/* ---- real files ------------------------------------------------------------------------------------------- */

static void real_safetensors(void **state)
{
    char *stories = test_data("stories260k"), *legacy = test_data("stories260k/stories260K.bin");
    struct wz_err err;
    struct wz_map map;
    struct wz_tensors *set = wz_tensors_open(stories, &err);
    const struct wz_tensor *t;

    assert_non_null(set);
    t = wz_tensors_find(set, "model.embed_tokens.weight");
    assert_non_null(t);
    assert_int_equal(t->shape[0], 512);
    assert_int_equal(t->shape[1], 64);
    float *values = wz_alloc(4 * t->count);
    wz_tensor_floats(t, 0, t->count, values);
    assert_int_equal(wz_map_open(&map, legacy, &err), 0); /* seven integers, then the embedding */
    assert_memory_equal(values, map.bytes + 28, 4 * t->count);
    wz_map_close(&map);
    free(values);
    free(stories);
    free(legacy);
    wz_tensors_close(set);

    char *verl = test_data("verl_tiny_llama");
    size_t total = 0;
    set = wz_tensors_open(verl, &err);
    assert_non_null(set);
    assert_int_equal(wz_tensors_count(set), 39);
    for (int i = 0; i < 39; i++) {
        assert_int_equal(wz_tensors_at(set, i)->dtype, WZ_DT_BF16);
        total += wz_tensors_at(set, i)->count;
    }
    assert_int_equal(total, 795776);
    wz_tensors_close(set);
    free(verl);
}

static void real_gguf(void **state)
{
    static const struct {
        const char *name;
        size_t tokens, merges;
        int tensors;
    } rows[] = {
        { "llama2_tiny_random_gguf/llama-2-tiny-random.gguf", 32000, 0, 12 },
        { "tok_gpt2/ggml-vocab-gpt-2.gguf", 50257, 50000, 0 },
        { "tok_llama2/ggml-vocab-llama-spm.gguf", 32000, 0, 0 },
    };

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        char *name = test_data(rows[i].name);
        struct wz_err err = { "" };
        struct wz_tensors *set = wz_tensors_open(name, &err);
        assert_string_equal(err.text, "");
        assert_int_equal(json_array_size(json_object_get(wz_tensors_meta(set), "tokenizer.ggml.tokens")),
                         rows[i].tokens);
        assert_int_equal(json_array_size(json_object_get(wz_tensors_meta(set), "tokenizer.ggml.merges")),
                         rows[i].merges);
        assert_int_equal(wz_tensors_count(set), rows[i].tensors);
        for (int k = 0; k < rows[i].tensors; k++) {
            const struct wz_tensor *t = wz_tensors_at(set, k);
            float *x = wz_alloc(4 * t->count);
            wz_tensor_floats(t, 0, t->count, x);
            for (size_t j = 0; j < t->count; j++) assert_true(isfinite(x[j]) && fabsf(x[j]) < 100);
            free(x);
        }
        if (rows[i].tensors) {
            const struct wz_tensor *t = wz_tensors_find(set, "token_embd.weight");
            assert_int_equal(t->shape[0], 32000);
            assert_int_equal(t->shape[1],
                             json_integer_value(json_object_get(wz_tensors_meta(set), "llama.embedding_length")));
        }
        wz_tensors_close(set);
        free(name);
    }
}

static int setup(void **state)
{
    free(path);
    path = test_scratch("tensors");
    unlink(path);
    return 0;
}

/* `test_store_tensors FILE OUT` writes all tensors of FILE to OUT as f32, in the file's order: for tests/oracles. */
static int dump(const char *from, const char *to)
{
    struct wz_err err;
    struct wz_tensors *set = wz_tensors_open(from, &err);
    FILE *f = set ? fopen(to, "wb") : NULL;

    for (int i = 0; f && i < wz_tensors_count(set); i++) {
        const struct wz_tensor *t = wz_tensors_at(set, i);
        float *x = wz_alloc(wz_mul(4, t->count));
        wz_tensor_floats(t, 0, t->count, x);
        fwrite(x, 4, t->count, f);
        free(x);
    }
    wz_tensors_close(set);
    return f && fclose(f) == 0 ? 0 : 1;
}

int main(int argc, char **argv)
{
    if (argc == 3) return dump(argv[1], argv[2]);

    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(halves_convert, setup),
        cmocka_unit_test_setup(safetensors_round_trip, setup),
        cmocka_unit_test_setup(data_is_aligned, setup),
        cmocka_unit_test_setup(an_abandoned_write_leaves_nothing, setup),
        cmocka_unit_test_setup(safetensors_hostile, setup),
        cmocka_unit_test_setup(safetensors_mangled, setup),
        cmocka_unit_test_setup(folder_of_shards, setup),
        cmocka_unit_test_setup(gguf_reads_every_type, setup),
        cmocka_unit_test_setup(quantised_blocks, setup),
        cmocka_unit_test_setup(gguf_parts, setup),
        cmocka_unit_test_setup(gguf_mangled, setup),
        cmocka_unit_test_setup(gguf_hostile, setup),
        cmocka_unit_test_setup(real_safetensors, setup),
        cmocka_unit_test_setup(real_gguf, setup),
    };

    return cmocka_run_group_tests_name("store_tensors", tests, NULL, NULL);
}
