/* Counter-based random numbers: Philox4x32-10. The counter holds the coordinates of a draw, the key its seed and
 * purpose, so every rank draws the same number for the same key, in any order. */
#include "base/base.h"

#include <math.h>

void wz_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    uint32_t c0 = counter[0];
    uint32_t c1 = counter[1];
    uint32_t c2 = counter[2];
    uint32_t c3 = counter[3];
    uint32_t k0 = key[0];
    uint32_t k1 = key[1];

    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c0 = n0;
        c1 = (uint32_t)p1;
        c2 = n2;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u; /* the golden ratio and sqrt(3) - 1: Weyl sequences of the paper */
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* The purpose is mixed into the 64-bit seed by an odd multiplier, so that purposes of one seed have different keys. */
static void bits(struct wz_key k, uint32_t out[4])
{
    uint64_t seed = k.seed ^ (uint64_t)k.purpose * 0x9E3779B97F4A7C15u;
    const uint32_t counter[4] = { k.a, k.b, k.c, k.d };
    const uint32_t key[2] = { (uint32_t)seed, (uint32_t)(seed >> 32) };

    wz_philox(counter, key, out);
}

uint64_t wz_random(struct wz_key key)
{
    uint32_t r[4];

    bits(key, r);
    return (uint64_t)r[1] << 32 | r[0];
}

double wz_uniform(struct wz_key key) { return (double)(wz_random(key) >> 11) * 0x1p-53; }

uint32_t wz_below(struct wz_key key, uint32_t n)
{
    /* 64 bits times n, upper half: the bias is below n / 2^64 */
    return (uint32_t)((unsigned __int128)wz_random(key) * n >> 64);
}

double wz_normal(struct wz_key key)
{
    uint32_t r[4];

    bits(key, r);
    double u = ((double)(((uint64_t)r[1] << 32 | r[0]) >> 11) + 0.5) * 0x1p-53;
    double v = (double)(((uint64_t)r[3] << 32 | r[2]) >> 11) * 0x1p-53;
    return sqrt(-2 * log(u)) * cos(2 * M_PI * v);
}
