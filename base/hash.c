/* Hashes: XXH3-64 of the xxHash library. */
#include "base/base.h"

#include <xxhash.h>

uint64_t wz_hash(const void *bytes, size_t n, uint64_t seed) { return XXH3_64bits_withSeed(bytes, n, seed); }

uint64_t wz_hash_join(uint64_t hash, const uint64_t *pieces, size_t n)
{
    for (size_t i = 0; i < n; i++) hash = wz_hash(&pieces[i], sizeof pieces[i], hash);
    return hash;
}

struct hashing {
    const char *bytes;
    size_t n, first;
    uint64_t sums[64];
};

static void hash_piece(void *arg, int i)
{
    struct hashing *h = arg;
    size_t at = h->first + (size_t)i * WZ_PIECE;

    h->sums[i] = wz_hash(h->bytes + at, h->n - at < WZ_PIECE ? h->n - at : WZ_PIECE, 0);
}

uint64_t wz_hash_pieces(struct wz_pool *pool, const void *bytes, size_t n)
{
    struct hashing h = { .bytes = bytes, .n = n };
    uint64_t hash = 0;

    for (; h.first < n; h.first += WZ_COUNT(h.sums) * WZ_PIECE) {
        size_t left = (n - h.first + WZ_PIECE - 1) / WZ_PIECE;
        int pieces = left < WZ_COUNT(h.sums) ? (int)left : (int)WZ_COUNT(h.sums);
        wz_heartbeat(); /* a model's files take minutes */
        wz_pool_run(pool, pieces, hash_piece, &h);
        hash = wz_hash_join(hash, h.sums, (size_t)pieces);
    }
    return hash;
}
