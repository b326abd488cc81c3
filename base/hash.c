/* Identities: XXH3 from the xxHash library. */
#include "base/base.h"

#include <xxhash.h>

uint64_t wz_hash(const void *bytes, size_t n, uint64_t seed)
{
    return XXH3_64bits_withSeed(bytes, n, seed);
}
