/* shim: bfloat16 as the kernels use it. */
#pragma once

#include <stdint.h>
#include <string.h>

struct __nv_bfloat16 {
    uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 b)
{
    uint32_t u = (uint32_t)b.bits << 16;
    float f;

    memcpy(&f, &u, sizeof f);
    return f;
}

inline __nv_bfloat16 __float2bfloat16(float f) /* to nearest even */
{
    uint32_t u;

    memcpy(&u, &f, sizeof u);
    if ((u & 0x7fffffff) > 0x7f800000) return { (uint16_t)(u >> 16 | 0x40) };
    return { (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16) };
}
