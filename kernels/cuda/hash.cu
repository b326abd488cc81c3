/* hash: XXH3-64 of pieces of WZ_PIECE bytes, so that only 8 bytes per piece of the weights are downloaded.
 *
 * By XXH3's specification (0.2.0; seed 0, its default secret of 192 bytes) an input of more than 240 bytes is taken in
 * blocks of 16 stripes of 8 words. It keeps eight sums:
 *
 *   word i of stripe s    key = word ^ secret[8 s + 8 i]; sum[i ^ 1] += word; sum[i] += low half of key * its high half
 *   after each block      sum[i] = (sum[i] ^ sum[i] >> 47 ^ secret[128 + 8 i]) * prime
 *   the last stripe       has secret[121 + 8 i], and no such mixing behind it
 *
 * Within a block there are only additions, so all blocks of a piece are summed in parallel; only the mixing steps, one
 * per KiB, are sequential. A thread block has one piece: each warp sums a block (lane l: words 2 (l % 4) and
 * 2 (l % 4) + 1 of stripes l / 4 and l / 4 + 8); then the first warp mixes. That is a chain of 255 steps of some 30
 * cycles, 4 us. An SM with its share of 4.3 TB/s needs 8 us to read a piece and works on 6 or more at a time, so the
 * chain is hidden and memory should be the bound: 16 GB take 4 ms. */
#include "kernels/cuda/cuda.cuh"

enum { THREADS = 256, WARPS = THREADS / 32, BLOCKS = WZ_PIECE / 1024 };

static __device__ const uint64_t secret[24] = {
    0xbe4ba423396cfeb8, 0x1cad21f72c81017c, 0xdb979083e96dd4de, 0x1f67b3b7a4a44072, 0x78e5c0cc4ee679cb,
    0x2172ffcc7dd05a82, 0x8e2443f7744608b8, 0x4c263a81e69035e0, 0xcb00c391bb52283c, 0xa32e531b8b65d088,
    0x4ef90da297486471, 0xd8acdea946ef1938, 0x3f349ce33f76faa8, 0x1d4f0bc7c7bbdcf9, 0x3159b4cd4be0518a,
    0x647378d9c97e9fc8, 0xc3ebd33483acc5ea, 0xeb6313faffa081c5, 0x49daf0b751dd0d17, 0x9e68d429265516d3,
    0xfca1477d58be162b, 0xce31d07ad1b8f88f, 0x280416958f3acb45, 0x7e404bbbcafbd7af,
};
static __device__ const uint64_t start[8] = {
    0x00000000c2b2ae3d, 0x9e3779b185ebca87, 0xc2b2ae3d27d4eb4f, 0x165667b19e3779f9,
    0x85ebca77c2b2ae63, 0x0000000085ebca77, 0x27d4eb2f165667c5, 0x000000009e3779b1,
};

/* The secret's 8 bytes from byte `at` on. */
INLINE uint64_t secret_at(int at)
{
    int shift = at % 8 * 8;

    return shift ? secret[at / 8] >> shift | secret[at / 8 + 1] << (64 - shift) : secret[at / 8];
}

INLINE uint64_t halves_product(uint64_t key) { return (key & 0xffffffff) * (key >> 32); }

static __global__ void hash_pieces(uint64_t *sums, const ulonglong2 *words)
{
    SHARED(uint64_t, added); /* [BLOCKS][8] */
    int warp = (int)threadIdx.x / 32;
    int lane = (int)threadIdx.x % 32;
    int i = lane % 4 * 2;
    int s = lane / 4;
    uint64_t key[2][2];

    words += (size_t)blockIdx.x * (WZ_PIECE / sizeof *words);
    for (int h = 0; h < 2; h++)
        for (int k = 0; k < 2; k++) key[h][k] = secret_at(8 * (s + 8 * h) + 8 * (i + k));
    for (int b = warp; b < BLOCKS; b += WARPS) {
        uint64_t sum[2] = { 0, 0 };
        if (b == BLOCKS - 1 && s == 7)
            for (int k = 0; k < 2; k++) key[1][k] = secret_at(121 + 8 * (i + k));
        for (int h = 0; h < 2; h++) {
            ulonglong2 v = words[b * 64 + h * 32 + lane];
            sum[0] += v.y + halves_product(v.x ^ key[h][0]);
            sum[1] += v.x + halves_product(v.y ^ key[h][1]);
        }
        for (int k = 0; k < 2; k++) {
            for (int m = 4; m < 32; m *= 2) sum[k] += __shfl_xor_sync(~0u, sum[k], m);
            if (lane < 4) added[b * 8 + i + k] = sum[k];
        }
    }
    __syncthreads();
    if (warp > 0) return;
    i = lane % 8; /* four lanes do the same */
    uint64_t sum = start[i] + added[i], mixed = secret_at(128 + 8 * i);
    for (int b = 1; b < BLOCKS; b++) sum = (sum ^ sum >> 47 ^ mixed) * 0x9e3779b1 + added[b * 8 + i];
    sum ^= secret_at(11 + 8 * i);
    uint64_t other = __shfl_xor_sync(~0u, sum, 1), hash = sum * other ^ __umul64hi(sum, other);
    for (int m = 2; m < 8; m *= 2) hash += __shfl_xor_sync(~0u, hash, m);
    hash += WZ_PIECE * 0x9e3779b185ebca87;
    hash = (hash ^ hash >> 37) * 0x165667919e3779f9;
    if (lane == 0) sums[blockIdx.x] = hash ^ hash >> 32;
}

void wz_cuda_hash(struct wz_backend *be, uint64_t *sums, const void *p, size_t pieces)
{
    uint64_t *on_device = (uint64_t *)wz_cuda_scratch(be, SMALL, pieces * sizeof *on_device);

    LAUNCH(be, hash_pieces, pieces, THREADS, BLOCKS * 8 * sizeof *on_device, on_device, (const ulonglong2 *)p);
    wz_cuda_download(be, sums, on_device, pieces * sizeof *sums);
}
