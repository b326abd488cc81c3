/* Weights on their way from the learners to those who play with them, with their identity (law 6).
 *
 *   root ── header ──▶ every taker           header: agent, version, hash, size, and the taker's neighbours in the chain
 *   root ═ part 0 1 2 ═▶ taker ═ part 0 1 ═▶ taker ═ part 0 ═▶ taker
 *
 * A chain, so that root sends the weights once however many take them, and each taker passes part k on while part k + 1
 * comes in. The taker hashes what arrived: nothing that differs from what root hashed is ever played with. */
#include "comm/row.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct header { uint32_t agent; int32_t before, after; uint64_t version, hash, n; };

enum { STRIDE = 1 << 22 };     /* bytes a part */

/* Parts from `before` into x while the part before goes on to `after`. */
static void chain(struct wz_link *link, int before, int after, char *x, size_t n, const char *operation)
{
    size_t parts = (n + STRIDE - 1) / STRIDE, lag = before >= 0;

    for (size_t k = 0; k < parts + (lag && after >= 0); k++) {
        size_t in = k * STRIDE, out = (k - lag) * STRIDE;
        bool takes = before >= 0 && k < parts, gives = after >= 0 && k >= lag;
        struct wz_wait wait = {0};
        link->row->move(link, WZ_TAG_WEIGHTS, gives ? after : -1, gives ? x + out : x,
                        gives ? (n - out < STRIDE ? n - out : STRIDE) : 0, takes ? before : -1, takes ? x + in : x,
                        takes ? (n - in < STRIDE ? n - in : STRIDE) : 0);
        for (int peer; (peer = link->row->moved(link)) >= 0;) wz_wait(link, &wait, operation, peer);
    }
}

void wz_publish(struct wz_link *link, int root, const int *to, int n_to, uint32_t agent, uint64_t version, uint64_t hash,
                const void *x, size_t n)
{
    char operation[96];
    int *takers = wz_alloc(wz_mul((size_t)n_to, sizeof *takers)), k = 0;
    struct header h = { .agent = agent, .version = version, .hash = hash, .n = n };

    assert(link->rank == root);
    snprintf(operation, sizeof operation, "publish of agent %u version %llu", agent, (unsigned long long)version);
    for (int i = 0; i < n_to; i++) {
        if (to[i] != root) {
            takers[k++] = to[i];
            continue;
        }
        wz_send(link, root, WZ_TAG_WEIGHTS, &h, sizeof h);     /* to itself: a copy in the queue */
        wz_send(link, root, WZ_TAG_WEIGHTS, x, n);
    }
    for (int i = 0; i < k; i++) {
        h.before = i ? takers[i - 1] : root;
        h.after = i + 1 < k ? takers[i + 1] : -1;
        wz_send(link, takers[i], WZ_TAG_WEIGHTS, &h, sizeof h);
    }
    if (k) chain(link, -1, takers[0], (char *)(uintptr_t)x, n, operation);
    free(takers);
}

void wz_take(struct wz_link *link, int root, uint32_t agent, uint64_t version, uint64_t *hash, void *x, size_t n)
{
    char operation[96];
    struct wz_buf buf = {0};
    struct header h;

    snprintf(operation, sizeof operation, "take of agent %u version %llu", agent, (unsigned long long)version);
    wz_recv_for(link, root, WZ_TAG_WEIGHTS, &buf, operation);
    assert(buf.len == sizeof h);
    memcpy(&h, buf.data, sizeof h);
    if (h.agent != agent || h.version != version || h.n != n)
        wz_die("%s of %zu bytes at step %lld: rank %d sent agent %u version %llu of %llu bytes", operation, n,
               (long long)link->step, root, h.agent, (unsigned long long)h.version, (unsigned long long)h.n);
    if (root == link->rank) {
        wz_recv_for(link, root, WZ_TAG_WEIGHTS, &buf, operation);
        assert(buf.len == n);
        memcpy(x, buf.data, buf.len);
    } else {
        chain(link, h.before, h.after, x, n, operation);
    }
    wz_buf_finish(&buf);
    *hash = wz_hash_pieces(NULL, x, n);
    if (*hash != h.hash)
        wz_die("%s at step %lld: rank %d sent weights with hash %016llx, but what arrived has hash %016llx", operation,
               (long long)link->step, root, (unsigned long long)h.hash, (unsigned long long)*hash);
}
