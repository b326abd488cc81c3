/* The types of tensors, and what a block of each quantised one stands for: the same f32 bits as ggml's own reader gives
 * (d, m are binary16; every product and difference is rounded to f32, in the order written here).
 *
 * 32 elements; i < 16, the low nibble of byte i is element i, the high one element i + 16:
 *   Q4_0  d, q[16]                      d * (q - 8)
 *   Q4_1  d, m, q[16]                   d * q + m
 *   Q5_0  d, high[4], q[16]             d * (q - 16)          bit i of `high` is the fifth bit of element i
 *   Q5_1  d, m, high[4], q[16]          d * q + m
 *   Q8_0  d, int8 q[32]                 d * q
 *
 * 256 elements; with row = i / 32:
 *   Q2_K  scales[16], q[64], d, m       (d * low nibble) * q - (m * high nibble)      of scales[i / 16]
 *   Q3_K  high[32], q[64], s[12], d     (d * (s - 32)) * q, 6-bit s, q - 4 where bit `row` of high[i % 32] is 0
 *   Q4_K  d, m, s[12], q[128]           (d * scale) * q - (m * minimum)               both 6 bits in s, by row
 *   Q5_K  d, m, s[12], high[32], q[128] the same, bit `row` of high[i % 32] is the fifth
 *   Q6_K  q[128], high[64], int8 s[16], d                                             (d * s[i / 16]) * (q - 32) */
#include "store/tensors.h"

#include <assert.h>
#include <string.h>

static float from_bits(uint32_t bits)
{
    float x;

    memcpy(&x, &bits, 4);
    return x;
}

static uint32_t to_bits(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, 4);
    return bits;
}

/* binary16: sign 1, exponent 5 (bias 15), fraction 10. Exponent 0: fraction * 2^-24; 31: infinite or NaN. */
static float f16_at(const uint8_t *p)
{
    uint32_t h = p[0] | (uint32_t)p[1] << 8;
    uint32_t sign = (h & 0x8000u) << 16;
    uint32_t e = h >> 10 & 31u;
    uint32_t m = h & 0x3ffu;

    if (e == 0) return from_bits(sign | to_bits((float)m * 0x1p-24f));
    if (e == 31) return from_bits(sign | 0x7f800000u | m << 13);
    return from_bits(sign | (e + 112u) << 23 | m << 13);
}

uint16_t wz_f16_from(float x)
{
    uint32_t bits = to_bits(x), sign = bits >> 16 & 0x8000u, abs = bits & 0x7fffffffu;

    if (abs > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (abs >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 and up round to 2^16 */
    if (abs < 0x38800000u) /* subnormal: the sum with 1/2 has a last place of 2^-24, so the addition rounds */
        return (uint16_t)(sign | (to_bits(from_bits(abs) + 0.5f) - 0x3f000000u));
    return (uint16_t)(sign | (((abs + 0xfffu + (abs >> 13 & 1u)) >> 13) - (112u << 10)));
}

/* ---- blocks of 32 ----------------------------------------------------------------------------------------- */

/* The 4 low bits of element i. */
static int nibble(const uint8_t *q, int i) { return q[i % 16] >> (i < 16 ? 0 : 4) & 15; }

/* Bit i of a row of bytes, as 16 or 0: the fifth bit. */
static int fifth(const uint8_t *high, int i) { return (high[i / 8] >> i % 8 & 1) << 4; }

static void q4_0(const uint8_t *p, float *out)
{
    float d = f16_at(p);

    for (int i = 0; i < 32; i++) out[i] = d * (float)(nibble(p + 2, i) - 8);
}

static void q4_1(const uint8_t *p, float *out)
{
    float d = f16_at(p), m = f16_at(p + 2);

    for (int i = 0; i < 32; i++) out[i] = d * (float)nibble(p + 4, i) + m;
}

static void q5_0(const uint8_t *p, float *out)
{
    float d = f16_at(p);

    for (int i = 0; i < 32; i++) out[i] = d * (float)((nibble(p + 6, i) | fifth(p + 2, i)) - 16);
}

static void q5_1(const uint8_t *p, float *out)
{
    float d = f16_at(p), m = f16_at(p + 2);

    for (int i = 0; i < 32; i++) out[i] = d * (float)(nibble(p + 8, i) | fifth(p + 4, i)) + m;
}

static void q8_0(const uint8_t *p, float *out)
{
    float d = f16_at(p);

    for (int i = 0; i < 32; i++) out[i] = d * (float)(int8_t)p[2 + i];
}

/* ---- blocks of 256 ---------------------------------------------------------------------------------------- */

/* 2 bits of element i: rows of 32 elements share 32 bytes, four rows a byte. */
static int pair(const uint8_t *q, int i) { return q[i / 128 * 32 + i % 32] >> i / 32 % 4 * 2 & 3; }

static void q2_k(const uint8_t *p, float *out)
{
    float d = f16_at(p + 80), m = f16_at(p + 82);

    for (int i = 0; i < 256; i++) {
        float scale = d * (float)(p[i / 16] & 15), low = m * (float)(p[i / 16] >> 4);
        out[i] = scale * (float)pair(p + 16, i) - low;
    }
}

static void q3_k(const uint8_t *p, float *out)
{
    const uint8_t *s = p + 96;
    float d = f16_at(p + 108);

    for (int i = 0; i < 256; i++) {
        int k = i / 16, scale = (s[k % 8] >> (k < 8 ? 0 : 4) & 15) | (s[8 + k % 4] >> k / 4 * 2 & 3) << 4;
        int q = pair(p + 32, i) - (p[i % 32] >> i / 32 & 1 ? 0 : 4);
        out[i] = d * (float)(scale - 32) * (float)q;
    }
}

/* Q4_K and Q5_K. s[12] holds 8 scales and 8 minima of 6 bits: bytes 0..3 and 4..7 the first four of each, bytes 8..11
 * the low 4 bits of the others, whose high 2 bits are the first ones' bytes' high bits. high: NULL for Q4_K. */
static void q45_k(const uint8_t *p, const uint8_t *high, const uint8_t *q, float *out)
{
    const uint8_t *s = p + 4;
    float d = f16_at(p), m = f16_at(p + 2);

    for (int row = 0; row < 8; row++) {
        int k = row % 4;
        int scale = row < 4 ? s[k] & 63 : (s[8 + k] & 15) | (s[k] >> 2 & 48);
        int least = row < 4 ? s[4 + k] & 63 : s[8 + k] >> 4 | (s[4 + k] >> 2 & 48);
        float by = d * (float)scale, low = m * (float)least;
        for (int i = 0; i < 32; i++) {
            int value = q[row / 2 * 32 + i] >> row % 2 * 4 & 15;
            if (high) value |= (high[i] >> row & 1) << 4;
            out[row * 32 + i] = by * (float)value - low;
        }
    }
}

static void q4_k(const uint8_t *p, float *out) { q45_k(p, NULL, p + 16, out); }

static void q5_k(const uint8_t *p, float *out) { q45_k(p, p + 16, p + 48, out); }

static void q6_k(const uint8_t *p, float *out)
{
    float d = f16_at(p + 208);

    for (int i = 0; i < 256; i++) {
        int q = (p[i / 128 * 64 + i % 64] >> i / 64 % 2 * 4 & 15) | pair(p + 128, i) << 4;
        out[i] = d * (float)(int8_t)p[192 + i / 16] * (float)(q - 32);
    }
}

const struct wz_dtype_row wz_dtypes[] = {
    [WZ_DT_F32] = { "F32", 1, 4, NULL },       [WZ_DT_F16] = { "F16", 1, 2, NULL },
    [WZ_DT_BF16] = { "BF16", 1, 2, NULL },     [WZ_DT_Q8_0] = { "Q8_0", 32, 34, q8_0 },
    [WZ_DT_Q4_0] = { "Q4_0", 32, 18, q4_0 },   [WZ_DT_Q4_1] = { "Q4_1", 32, 20, q4_1 },
    [WZ_DT_Q5_0] = { "Q5_0", 32, 22, q5_0 },   [WZ_DT_Q5_1] = { "Q5_1", 32, 24, q5_1 },
    [WZ_DT_Q2_K] = { "Q2_K", 256, 84, q2_k },  [WZ_DT_Q3_K] = { "Q3_K", 256, 110, q3_k },
    [WZ_DT_Q4_K] = { "Q4_K", 256, 144, q4_k }, [WZ_DT_Q5_K] = { "Q5_K", 256, 176, q5_k },
    [WZ_DT_Q6_K] = { "Q6_K", 256, 210, q6_k }, [WZ_DT_OTHER] = { "other", 0, 0, NULL },
};

void wz_tensor_floats(const struct wz_tensor *t, size_t first, size_t n, float *out)
{
    const struct wz_dtype_row *row = &wz_dtypes[t->dtype];

    assert(t->dtype != WZ_DT_OTHER && first <= t->count && n <= t->count - first);
    assert(first % row->elements == 0 && n % row->elements == 0);
    const uint8_t *p = t->data + first / row->elements * row->bytes;
    switch (t->dtype) {
    case WZ_DT_F32:
        if (n) memcpy(out, p, 4 * n);
        break;
    case WZ_DT_F16:
        for (size_t i = 0; i < n; i++) out[i] = f16_at(p + 2 * i);
        break;
    case WZ_DT_BF16:
        for (size_t i = 0; i < n; i++) out[i] = wz_bf16_to_f32((uint16_t)(p[2 * i] | p[2 * i + 1] << 8));
        break;
    default:
        for (size_t at = 0; at < n; at += row->elements, p += row->bytes) row->unpack(p, out + at);
    }
}
