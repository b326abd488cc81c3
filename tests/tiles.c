/* The instructions as Intel's SDM 2 writes them out, and a handler of SIGILL that carries them out. */
#include "tests/tiles.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include "kernels/cpu/cpu.h"
#include "kernels/ref/ref.h"

enum { TILES = 8, HIGH = 16, BYTES = 64 };

static _Thread_local struct {
    bool set;
    struct tile {
        int rows, bytes; /* of a row; 0: not configured */
        uint8_t at[HIGH][BYTES];
    } tile[TILES];
} tiles;

static void refuse(bool when, const char *what)
{
    if (when) wz_die("a tile instruction: %s", what);
}

static struct tile *tile(int t)
{
    refuse(!tiles.set, "no shapes are set");
    refuse(t < 0 || t >= TILES || !tiles.tile[t].rows, "of a tile that has no shape");
    return &tiles.tile[t];
}

void wz_tile_config(const void *shapes)
{
    const uint8_t *s = shapes;

    memset(&tiles, 0, sizeof tiles);
    if (!s[0]) return;
    refuse(s[0] != 1, "no such palette");
    for (int i = 1; i < 16; i++)
        refuse(s[i] != 0, "a reserved byte, or a row to start at"); /* which is not used here */
    for (int t = 0; t < 16; t++) {
        uint16_t bytes;
        memcpy(&bytes, s + 16 + 2 * t, sizeof bytes);
        refuse(bytes > BYTES || s[48 + t] > HIGH || !bytes != !s[48 + t] || (t >= TILES && bytes), "no such shape");
        if (t < TILES) tiles.tile[t] = (struct tile){ .rows = s[48 + t], .bytes = bytes };
    }
    tiles.set = true;
}

void wz_tile_release(void) { memset(&tiles, 0, sizeof tiles); }

bool wz_tiles_released(void) { return !tiles.set; }

void wz_tile_zero(int t) { memset(tile(t)->at, 0, sizeof tile(t)->at); }

void wz_tile_load(int t, const void *p, size_t stride)
{
    struct tile *to = tile(t);

    wz_tile_zero(t);
    for (int i = 0; i < to->rows; i++) memcpy(to->at[i], (const char *)p + (size_t)i * stride, (size_t)to->bytes);
}

void wz_tile_store(int t, void *p, size_t stride)
{
    const struct tile *from = tile(t);

    for (int i = 0; i < from->rows; i++) memcpy((char *)p + (size_t)i * stride, from->at[i], (size_t)from->bytes);
}

static float half(const uint8_t *p)
{
    uint16_t x;

    memcpy(&x, p, sizeof x);
    return wz_bf16_to_f32(x);
}

void wz_tile_add(int c, int a, int b, bool bytes)
{
    struct tile *to = tile(c);
    const struct tile *x = tile(a), *y = tile(b);

    refuse(c == a || c == b || a == b, "of one tile twice");
    refuse(x->bytes % 4 || y->bytes % 4 || to->bytes % 4, "a part of an element");
    refuse(to->rows != x->rows || to->bytes != y->bytes || x->bytes / 4 != y->rows, "of shapes that do not fit");
    for (int i = 0; i < to->rows; i++)
        for (int j = 0; j < to->bytes / 4; j++) {
            uint8_t *at = &to->at[i][4 * j];
            float even = 0, odd = 0, sum;
            uint32_t whole;
            memcpy(&sum, at, sizeof sum);
            memcpy(&whole, at, sizeof whole);
            for (int k = 0; k < y->rows; k++) {
                const uint8_t *l = &x->at[i][4 * k], *r = &y->at[k][4 * j];
                for (int n = 0; n < 4 && bytes; n++) whole += (uint32_t)(l[n] * (int8_t)r[n]);
                if (bytes) continue;
                even = wz_amx_fma(half(l), half(r), even);
                odd = wz_amx_fma(half(l + 2), half(r + 2), odd);
            }
            sum = wz_amx_add(sum, wz_amx_add(even, odd));
            memcpy(at, bytes ? (const void *)&whole : &sum, 4);
        }
}

extern const struct product wz_by_tiles_plain, wz_by_tiles_int8_plain;

const struct hot *wz_tiles_plain(void)
{
    static struct hot row;

    row = wz_hot_generic;
    row.isa = "plain tiles";
    row.product[WZ_INT8] = &wz_by_tiles_int8_plain;
    row.product[AMX] = &wz_by_tiles_plain;
    return &row;
}

void wz_tiles_compose(struct wz_backend *be, const struct hot *row)
{
    const struct hot *choice[SLOTS];

    for (int i = 0; i < SLOTS; i++) choice[i] = row;
    wz_cpu_compose(be->state, choice, be->amx);
}

#ifdef __x86_64__
static const int registers[] = { REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                 REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15 };

/* Carries out the instruction at `code`, which has a three-byte VEX prefix (Intel SDM 2, 2.3.5); returns its length, 0
 * where it is not one of a tile that is known here. */
static int carry_out(const uint8_t *code, const greg_t *r)
{
    const int reg = code[4] >> 3 & 7, rm = code[4] & 7, mod = code[4] >> 6, op = (code[2] & 3) << 8 | code[3];
    const int third = ~code[2] >> 3 & 15;
    size_t stride = 0;
    int length = 5;
    int32_t far = 0;

    if (code[0] != 0xc4 || (code[1] & 31) != 2 || code[2] & 0x84) return 0; /* map 0F 38, W0, 128 bits */
    const uint8_t sib = rm == 4 && mod != 3 ? code[length++] : 0;
    const int base = (rm == 4 ? sib & 7 : rm) | (~code[1] & 0x20) >> 2, index = (sib >> 3 & 7) | (~code[1] & 0x40) >> 3;
    const bool bare = mod == 0 && (base & 7) == 5; /* no register: from the next instruction, or absolute */
    if (mod == 1) far = (int8_t)code[length++];
    else if (mod == 2 || bare) memcpy(&far, code + length, sizeof far), length += 4;
    if (rm == 4 && mod != 3 && index != 4) stride = (size_t)r[registers[index]] << (sib >> 6);
    char *at = (char *)((bare ? rm == 4 ? 0 : r[REG_RIP] + length : r[registers[base]]) + far);
    enum { NP = 0, P66 = 1 << 8, F3 = 2 << 8, F2 = 3 << 8 };
    switch (op | (mod == 3 ? 1 << 16 : 0)) {
    case NP | 0x49: wz_tile_config(at + stride); break;
    case NP | 0x49 | 1 << 16: wz_tile_release(); break;
    case F2 | 0x49 | 1 << 16: wz_tile_zero(reg); break;
    case F2 | 0x4b: wz_tile_load(reg, at, stride); break;
    case F3 | 0x4b: wz_tile_store(reg, at, stride); break;
    case F3 | 0x5c | 1 << 16: wz_tile_add(reg, rm, third, false); break;
    case P66 | 0x5e | 1 << 16: wz_tile_add(reg, rm, third, true); break;
    default: return 0;
    }
    return length;
}

static void trap(int signal, siginfo_t *info, void *context)
{
    greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
    const int length = carry_out((const uint8_t *)r[REG_RIP], r);

    refuse(!length, "SIGILL, and not of one that is known");
    r[REG_RIP] += length;
}

const struct hot *wz_tiles_trapped(void)
{
    struct sigaction how = { .sa_sigaction = trap, .sa_flags = SA_SIGINFO };

    if (!wz_hot_avx512bf16.runs()) return NULL; /* it rounds to bf16 by an instruction */
    if (!wz_cpu_tiles() && sigaction(SIGILL, &how, NULL) < 0) wz_die("no handler of SIGILL");
    return &wz_hot_avx512amx;
}
#else
const struct hot *wz_tiles_trapped(void) { return NULL; }
#endif
