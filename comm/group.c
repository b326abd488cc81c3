/* What a group does together.
 *
 * The tree sum is a reduce-scatter by halves and an all-gather back (Rabenseifner 2004), with neighbours first:
 *
 *   member   0      1      2      3        each pair halves the range it shares: one keeps the lower half, one the upper,
 *            ├─ 1 ──┤      ├─ 1 ──┤        and adds what the other sends. After log2(n) rounds a member holds 1/n of the
 *            ├──── 2 ──────┤               sums; the same rounds backwards hand them out.
 *                   ├──── 2 ──────┤
 *
 * Who adds an element differs from element to element, but how does not: always lower + upper, ((0+1)+(2+3))+..., the
 * bits of the serial tree. A member sends 2 (n-1)/n of the array where whole exchanges would send log2(n) of it. */
#include "comm/row.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { PIECE = 1 << 18 };      /* floats exchanged at once: 1 MiB stays in cache until it is added */

static size_t piece(size_t at, size_t end)
{
    return end - at < PIECE ? end - at : PIECE;
}

/* out[n_out] to the peer while its n_in floats come: added to x (lower + upper), or put there when `sum` is NULL. */
static void exchange(struct wz_link *link, int peer, bool lower, const float *out, size_t n_out, float *x, size_t n_in, float *sum)
{
    size_t most = n_out > n_in ? n_out : n_in;

    for (size_t at = 0; at < most; at += PIECE) {
        size_t k_out = at < n_out ? piece(at, n_out) : 0, k_in = at < n_in ? piece(at, n_in) : 0;
        float *in = sum ? sum : x + at;
        struct wz_wait wait = {0};
        link->row->move(link, WZ_TAG_TREE, k_out ? peer : -1, out + at, k_out * sizeof *out,
                        k_in ? peer : -1, in, k_in * sizeof *in);
        while (link->row->moved(link) >= 0) wz_wait(link, &wait, "tree sum", peer);
        if (!sum) continue;
        float *mine = x + at;
        if (lower) for (size_t i = 0; i < k_in; i++) mine[i] = mine[i] + sum[i];
        else for (size_t i = 0; i < k_in; i++) mine[i] = sum[i] + mine[i];
    }
}

void wz_tree_sum(struct wz_link *link, const struct wz_group *group, float *x, size_t n)
{
    static float sum[PIECE];   /* MPI is used from one thread */
    size_t lo = 0, hi = n, begin[32], end[32];
    int level = 0;

    assert(group->n > 0 && (group->n & (group->n - 1)) == 0 && group->ranks[group->me] == link->rank);
    for (int bit = 1; bit < group->n; bit *= 2, level++) {
        size_t mid = lo + (hi - lo) / 2;
        bool lower = !(group->me & bit);
        begin[level] = lo;
        end[level] = hi;
        if (lower) exchange(link, group->ranks[group->me ^ bit], lower, x + mid, hi - mid, x + lo, mid - lo, sum);
        else exchange(link, group->ranks[group->me ^ bit], lower, x + lo, mid - lo, x + mid, hi - mid, sum);
        if (lower) hi = mid;
        else lo = mid;
    }
    for (int bit = group->n / 2; bit > 0; bit /= 2) {
        level--;
        /* the peer holds the other half of the range we shared at this level */
        if (lo == begin[level]) exchange(link, group->ranks[group->me ^ bit], true, x + lo, hi - lo, x + hi, end[level] - hi, NULL);
        else exchange(link, group->ranks[group->me ^ bit], false, x + lo, hi - lo, x + begin[level], lo - begin[level], NULL);
        lo = begin[level];
        hi = end[level];
    }
}

void wz_all_gather_bytes(struct wz_link *link, const struct wz_group *group, const void *mine, size_t n, struct wz_buf *out)
{
    assert(group->ranks[group->me] == link->rank);
    for (int i = 0; i < group->n; i++)
        if (i != group->me) wz_send(link, group->ranks[i], WZ_TAG_SUMS, mine, n);
    for (int i = 0; i < group->n; i++) {
        wz_buf_clear(&out[i]);
        if (i == group->me) wz_buf_add(&out[i], mine, n);
        else wz_recv_for(link, group->ranks[i], WZ_TAG_SUMS, &out[i], "all-gather");
    }
}

void wz_all_gather(struct wz_link *link, const struct wz_group *group, const double *mine, int n, double *out)
{
    struct wz_buf *all = wz_alloc((size_t)group->n * sizeof *all);
    size_t size = (size_t)n * sizeof *mine;

    wz_all_gather_bytes(link, group, mine, size, all);
    for (int i = 0; i < group->n; i++) {
        assert(all[i].len == size);
        if (size) memcpy(out + (size_t)i * (size_t)n, all[i].data, size);
        wz_buf_finish(&all[i]);
    }
    free(all);
}

int wz_link_agree(struct wz_link *link, int rc, struct wz_err *err)
{
    int32_t first = rc < 0 ? link->rank : INT32_MAX;
    struct wz_buf bytes = {0};

    for (int r = 1; r < link->size && !link->rank; r++) {
        wz_recv_for(link, r, WZ_TAG_CONTROL, &bytes, "agreement");
        int32_t his = INT32_MAX;
        if (bytes.len == sizeof his) memcpy(&his, bytes.data, sizeof his);
        if (his < first) first = his;
    }
    if (link->rank) {
        wz_send(link, 0, WZ_TAG_CONTROL, &first, sizeof first);
        wz_recv_for(link, 0, WZ_TAG_CONTROL, &bytes, "agreement");
        if (bytes.len == sizeof first) memcpy(&first, bytes.data, sizeof first);
    }
    for (int r = 1; r < link->size && !link->rank; r++) wz_send(link, r, WZ_TAG_CONTROL, &first, sizeof first);
    wz_flush(link);
    wz_buf_finish(&bytes);
    if (first != link->rank && first != INT32_MAX) err->text[0] = 0;
    return first == INT32_MAX ? 0 : -1;
}
