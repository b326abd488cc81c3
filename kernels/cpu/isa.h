/* SIMD vectors of W floats: W is 16 (AVX-512), 8 (AVX2 and FMA) or 4 (NEON, or no SIMD instructions). WZ_PLAIN: 16 and
 * no instructions for them, for tests.
 *
 * Files that include this are compiled once per instruction set, with WZ_ISA defined as its name; HOT(f) is f_avx512
 * and so on. Two rules keep the bits of AVX2, AVX-512 and NEON equal: an FMA in one is an FMA in the others, and sums
 * over channels always run in 16 partial sums (the i-th over elements i, i + 16, ...) that a fixed tree adds up. */
#ifndef WZ_ISA_H
#define WZ_ISA_H

#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/ref/ref.h"

#define HOT_PASTE(name, isa) name##_##isa
#define HOT_NAME(name, isa)  HOT_PASTE(name, isa)
#define HOT(name)            HOT_NAME(name, WZ_ISA)

#define INLINE static inline __attribute__((always_inline))

#ifdef __AVX512F__
#include <immintrin.h>
#define W 16
enum { MR4 = 6, MR2 = 12 }; /* most rows of a register tile that is 4 or 2 vectors wide */
#define WIDE                /* 32 registers, enough for tiles of more than 6 rows */
#define FMA(a, b, c) ((vf)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define MAX(a, b)    ((vf)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define MIN(a, b)    ((vf)_mm512_min_ps((__m512)(a), (__m512)(b)))
#define SPLAT(x)     ((vf)_mm512_set1_ps(x))
#elif defined(__AVX2__)
#include <immintrin.h>
#define W            8
enum { MR4 = 2, MR2 = 6 };
#define FMA(a, b, c) ((vf)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define MAX(a, b)    ((vf)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define MIN(a, b)    ((vf)_mm256_min_ps((__m256)(a), (__m256)(b)))
#define SPLAT(x)     ((vf)_mm256_set1_ps(x))
#elif defined(WZ_NEON)
#include <arm_neon.h>
#define W 4
enum { MR4 = 6, MR2 = 12 };
#define WIDE
#define FMA(a, b, c) ((vf)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
#define SPLAT(x)     ((vf)vdupq_n_f32(x))
#else
#ifdef WZ_PLAIN
#define W 16
#else
#define W 4
#endif
enum { MR4 = 2, MR2 = 6 };
#define FMA(a, b, c) ((a) * (b) + (c))
#define SPLAT(x)     ((x) - (vf){ 0 }) /* not +: of -0 */
#endif

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef float vf_any __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(4 * W)));

#define PICK(mask, a, b) ((vf)(((mask) & (vi)(a)) | (~(mask) & (vi)(b))))
#ifndef MAX /* like the x86 instructions: the second operand where one is NaN */
#define MAX(a, b) PICK((vi)((a) > (b)), a, b)
#define MIN(a, b) PICK((vi)((a) < (b)), a, b)
#endif

INLINE vf load(const float *p) { return *(const vf_any *)p; }

INLINE void store(float *p, vf x) { *(vf_any *)p = x; }

/* W bf16 as floats. */
INLINE vf load_half(const uint16_t *p)
{
#ifdef WZ_NEON
    return (vf)((vu)vmovl_u16(vld1_u16(p)) << 16); /* gcc 12 would convert element by element */
#else
    typedef uint16_t vh __attribute__((vector_size(2 * W), aligned(2), may_alias));

    return (vf)(__builtin_convertvector(*(const vh *)p, vu) << 16);
#endif
}

/* c + a b for the two bf16 in each 32-bit element, the upper half's product first. Rows without the instruction keep
 * their left operands as floats, LEFT of them for a pair: no element of a is widened more than once. */
#ifdef __AVX512BF16__
enum { LEFT = 1 };
#define FMA_PAIR(a, b, c) ((vf)_mm512_dpbf16_ps((__m512)(c), (__m512bh)(a), (__m512bh)(b)))
#else
enum { LEFT = 2 };
#define FMA_PAIR(a, b, c) (c) /* not called */
#endif

/* The order of ref/amx.c: pairs that are added together, and FMAs and sums that flush denormal numbers as it says:
 * those of x86 between flush_begin and flush_end. Elsewhere its own functions, one element at a time. */
enum { UNIT = WZ_AMX_DEPTH / 2 };
#ifdef __AVX512F__
#define MR_AMX 6 /* most rows of a register tile */
#else
#define MR_AMX 3
#endif
#if defined(__AVX2__) || defined(__AVX512F__)
enum { AMX_FLUSHES = 1 };
INLINE vf fma_amx(vf a, vf b, vf c) { return FMA(a, b, c); }
INLINE vf add_amx(vf a, vf b) { return a + b; }
#else
enum { AMX_FLUSHES = 0 };
INLINE vf fma_amx(vf a, vf b, vf c)
{
    for (int i = 0; i < W; i++) c[i] = wz_amx_fma(a[i], b[i], c[i]);
    return c;
}
INLINE vf add_amx(vf a, vf b)
{
    for (int i = 0; i < W; i++) a[i] = wz_amx_add(a[i], b[i]);
    return a;
}
#endif

/* The names of rows of equal bits. On Arm a result is tiny before it is rounded, on x86 after: one that rounds up to
 * the smallest normal number is flushed to zero there and not here. */
#if defined(__AVX2__) || defined(__AVX512F__)
#define BITS "fma"
#elif defined(WZ_NEON)
#define BITS "neon"
#else
#define BITS "generic"
#endif

/* Denormal inputs and results of this thread are zeros between flush_begin and flush_end. */
INLINE unsigned long flush_begin(void)
{
#if defined(__AVX2__) || defined(__AVX512F__)
    unsigned was = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(was | 0x8040); /* FTZ, DAZ */
    return was;
#elif defined(WZ_NEON)
    unsigned long was = __builtin_aarch64_get_fpcr();
    __builtin_aarch64_set_fpcr((unsigned)was | 1u << 24); /* FZ */
    return was;
#else
    return 0;
#endif
}

INLINE void flush_end(unsigned long was)
{
#if defined(__AVX2__) || defined(__AVX512F__)
    __builtin_ia32_ldmxcsr((unsigned)was);
#elif defined(WZ_NEON)
    __builtin_aarch64_set_fpcr((unsigned)was);
#endif
}

/* The first n < W floats at p, the rest `fill`. */
static inline vf load_part(const float *p, int n, float fill)
{
    float buf[W];

    for (int i = 0; i < W; i++) buf[i] = i < n ? p[i] : fill;
    return load(buf);
}

static inline void store_part(float *p, vf x, int n)
{
    float buf[W];

    store(buf, x);
    for (int i = 0; i < n; i++) p[i] = buf[i];
}

/* exp, below 2 ulp in [-87.3, 88.3], 0 below, exp(88.3) above, NaN for NaN.
 * x = n ln 2 + r with |r| <= ln 2 / 2: 2^n is added to the exponent, e^r is the Taylor series up to r^7. */
INLINE vf exp_v(vf x)
{
    const float low = -87.33f;
    vf magic = SPLAT(12582912.f), c = MIN(SPLAT(88.3f), MAX(SPLAT(low), x));
    vf n = FMA(c, SPLAT(1.44269504f), magic) - magic; /* rounds: 1.5 * 2^23 leaves no bits for a fraction */
    vf r = FMA(n, SPLAT(-0.693359375f), c);
    r = FMA(n, SPLAT(2.12194440e-4f), r);
    vf p = SPLAT(1.f / 5040);
    p = FMA(p, r, SPLAT(1.f / 720));
    p = FMA(p, r, SPLAT(1.f / 120));
    p = FMA(p, r, SPLAT(1.f / 24));
    p = FMA(p, r, SPLAT(1.f / 6));
    p = FMA(p, r, SPLAT(.5f));
    p = FMA(p * r, r, r) + SPLAT(1.f);
    vi e = __builtin_convertvector(n, vi) << 23;
    return (vf)(((vi)p + e) & ~(vi)(x < SPLAT(low)));
}

/* cap tanh(x / cap): near 0 the series of tanh, else from exp. */
INLINE vf cap_v(vf x, float cap)
{
    vf y = x / cap, y2 = y * y;
    vf p = FMA(y2, SPLAT(62.f / 2835), SPLAT(-17.f / 315));
    p = FMA(p, y2, SPLAT(2.f / 15));
    p = FMA(p, y2, SPLAT(-1.f / 3));
    vf near = FMA(p * y2, y, y), far = SPLAT(1.f) - SPLAT(2.f) / (exp_v(y + y) + SPLAT(1.f));
    return PICK((vi)(y2 < SPLAT(0.0625f)), near, far) * cap;
}

/* Sixteen partial sums (or maxima) as an array of vectors, and the tree that reduces them. */
enum { VECS = 16 / W };
struct vec16 {
    vf v[VECS];
};

INLINE struct vec16 vec16_of(float x)
{
    struct vec16 l;

    for (int i = 0; i < VECS; i++) l.v[i] = SPLAT(x);
    return l;
}

typedef float v8f __attribute__((vector_size(32)));
typedef float v4f __attribute__((vector_size(16)));
#define LOW8(x)  __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7)
#define HIGH8(x) __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15)
#define LOW4(x)  __builtin_shufflevector(x, x, 0, 1, 2, 3)
#define HIGH4(x) __builtin_shufflevector(x, x, 4, 5, 6, 7)

/* Adds elements i and i + 8, then i + 4, then i + 2, then the last two: the same tree whatever W is. */
INLINE float vec16_sum(struct vec16 l)
{
#if W == 16
    v8f e = LOW8(l.v[0]) + HIGH8(l.v[0]);
    v4f f = LOW4(e) + HIGH4(e);
#elif W == 8
    v8f e = l.v[0] + l.v[1];
    v4f f = LOW4(e) + HIGH4(e);
#else
    v4f f = (l.v[0] + l.v[2]) + (l.v[1] + l.v[3]);
#endif
    f += __builtin_shufflevector(f, f, 2, 3, 2, 3);
    return f[0] + f[1];
}

INLINE float vec16_max(struct vec16 l)
{
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)l.v[0]);
#else
    vf x = l.v[0];
    for (int i = 1; i < VECS; i++) x = MAX(x, l.v[i]);
    float top = x[0];
    for (int i = 1; i < W; i++) top = top > x[i] ? top : x[i];
    return top;
#endif
}

/* Mask of the elements [at, at + W) that are before `count`. */
INLINE vi before(int at, int count)
{
    vi index;

    for (int i = 0; i < W; i++) index[i] = i;
    return index < (vi)(index - index + (count - at));
}

/* Loads elements [at, at + W) of an array of n, `fill` past its end; store_in stores those within it. */
INLINE vf load_in(const float *x, size_t at, size_t n, float fill)
{
    if (__builtin_expect(at + W <= n, 1)) return load(x + at);
    return at >= n ? SPLAT(fill) : load_part(x + at, (int)(n - at), fill);
}

INLINE void store_in(float *to, size_t at, size_t n, vf x)
{
    if (__builtin_expect(at + W <= n, 1)) store(to + at, x);
    else if (at < n) store_part(to + at, x, (int)(n - at));
}

/* x rounded to bf16 like wz_f32_to_bf16, in the upper half of each element. */
INLINE vu upper_half(vf x)
{
    vu u = (vu)x, rounded = u + 0x7fff + (u >> 16 & 1), nan = (vu)((u & 0x7fffffff) > (vu){ 0 } + 0x7f800000u);

    return ((rounded & ~nan) | ((u | 0x400000) & nan)) & 0xffff0000u;
}

#if W == 16
/* A whole cache line, written past the caches, which would read it first: where much is written and used later. */
INLINE void stream(void *line, vu x)
{
#ifdef __AVX512F__
    _mm512_stream_si512(line, (__m512i)x);
#else
    memcpy(line, &x, sizeof x);
#endif
}

/* After the last: other threads see them all. */
INLINE void stream_end(void)
{
#ifdef __AVX512F__
    _mm_sfence();
#endif
}

/* Rows become columns. Each round halves the rows and interleaves the halves, which rotates the eight bits of an
 * element's place (row, column) by one. */
INLINE void transpose(vu v[16])
{
    for (int round = 0; round < 4; round++) {
        vu to[16];
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            to[2 * i] = __builtin_shufflevector(v[i], v[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            to[2 * i + 1] =
                __builtin_shufflevector(v[i], v[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        }
        memcpy(v, to, sizeof to);
    }
}
#endif

/* ---- defined in one file and used in another -------------------------------------------------------------- */

/* gemm.c, int8.c and, with tiles, amx.c */
extern const struct product HOT(wz_by_f32), HOT(wz_by_bf16), HOT(wz_by_amx), HOT(wz_by_int8), HOT(wz_by_tiles),
    HOT(wz_by_tiles_int8);
pack_fn HOT(wz_pack_panel), HOT(wz_pack_int8);
pair_fn HOT(wz_quantise);
walk_fn HOT(wz_cast);
attend_fn HOT(wz_attend), HOT(wz_attend_back);

#endif
