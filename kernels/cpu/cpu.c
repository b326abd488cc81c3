/* cpu: the fast host backend. Its table is filled with ref's functions first, then with the faster ones.
 *
 * Work is divided among threads by tokens, panels or heads, never inside a sum. Small work stays on the calling thread,
 * since a barrier of the pool costs some microseconds. Of the rows of equal bits that run here, choose.c says which
 * computes what. */
#include "kernels/cpu/cpu.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/ref/ref.h"

enum {
    CHUNK = 1 << 14,        /* elements of a task */
    SCRATCH_STEP = 1 << 16, /* bytes: scratch grows by multiples of this */
    MOST_PANEL = 32,
    SLAB = 1 << 26,        /* bytes */
    SLAB_LEAST = 1 << 18,  /* of what is put there */
    COLUMNS = 64,          /* of a task that sums over tokens */
    STREAMED = 1 << 25,    /* bytes, of which a cache has nothing left when they are used */
    MADDS_PER_WEIGHT = 10, /* multiply-adds in the time in which one weight is read from memory */
};

void *wz_cpu_scratch(struct wz_backend *be, int which, size_t size)
{
    struct scratch *s = &((struct cpu *)be->state)->scratch[which];

    if (s->size < size) {
        size = (size + SCRATCH_STEP - 1) / SCRATCH_STEP * SCRATCH_STEP; /* a few tokens more do not reallocate */
        free(s->p);
        s->p = wz_alloc(size);
        s->size = size;
    }
    return s->p;
}

/* ---- products --------------------------------------------------------------------------------------------- */

/* How one product is divided into tasks, by rows of c and by panels. */
struct cut {
    const struct gemm *g;
    int row_parts, col_parts, panels;
};

/* Cost of a product in multiply-adds; with few tokens it is bound by reading the weight. */
static double gemm_work(const struct gemm *g)
{
    return (double)(g->m > MADDS_PER_WEIGHT ? g->m : MADDS_PER_WEIGHT) * g->n * g->k;
}

static int cut_make(struct cut *c, const struct gemm *g, int want)
{
    int panel = g->by->panel, panels = (g->n + panel - 1) / panel;

    *c = (struct cut){ g, (g->m + 255) / 256, 1, panels };
    while (c->row_parts * panels < want && g->m / (c->row_parts + 1) >= 24) c->row_parts++;
    c->col_parts = (want + c->row_parts - 1) / c->row_parts;
    c->col_parts = c->col_parts > panels ? panels : c->col_parts;
    return c->row_parts * c->col_parts;
}

static void gemm_part(void *arg, int i)
{
    const struct cut *c = arg;
    int r = i / c->col_parts, p = i % c->col_parts, panel = c->g->by->panel;
    int from = (int)((long)c->panels * p / c->col_parts) * panel;
    int to = (int)((long)c->panels * (p + 1) / c->col_parts) * panel;

    c->g->by->gemm(c->g, (int)((long)c->g->m * r / c->row_parts), (int)((long)c->g->m * (r + 1) / c->row_parts), from,
                   to < c->g->n ? to : c->g->n);
}

void wz_cpu_gemm(struct wz_backend *be, const struct gemm *g)
{
    int threads = wz_pool_threads(be->pool);
    struct cut c;

    if (!g->m || gemm_work(g) < GRAIN || threads == 1) g->by->gemm(g, 0, g->m, 0, g->n);
    else wz_pool_run(be->pool, cut_make(&c, g, 4 * threads), gemm_part, &c);
}

/* A left operand converted by `step` rows at a time; size: elements of `out` that a step writes. */
struct pairing {
    pair_fn *fn;
    uint32_t *out;
    const float *x;
    size_t ldx, size;
    int n, width, step;
};

static void pair_part(void *arg, int i)
{
    const struct pairing *p = arg;
    int row = i * p->step, left = p->n - row;

    p->fn(p->out + (size_t)i * p->size, p->x + (size_t)row * p->ldx, p->ldx, p->width, left < p->step ? left : p->step);
}

static const float *pairing_run(struct wz_backend *be, struct pairing *p)
{
    int parts = (p->n + p->step - 1) / p->step;

    wz_pool_run(parts <= 8 ? NULL : be->pool, parts, pair_part, p);
    return (const float *)p->out;
}

const float *wz_cpu_factor(struct wz_backend *be, int which, const struct product *by, const float *x, size_t ldx,
                           int n, int width)
{
    size_t depth = wz_cpu_left(by, width);
    int step = CHUNK / width + 1;

    if (!by->factor) return x;
    uint32_t *out = wz_cpu_scratch(be, which, wz_mul((size_t)n * sizeof *out, depth));
    return pairing_run(be, &(struct pairing){ by->factor, out, x, ldx, (size_t)step * depth, n, width, step });
}

/* The left operand of a sum over the rows of x[n][width]. */
static const float *rows_run(struct wz_backend *be, const struct product *by, const float *x, int n, int width)
{
    const size_t row = (size_t)width, depth = (size_t)by->left * wz_cpu_depth(by, n);
    int two = (CHUNK / width / 2 / by->unit + 1) * by->unit;
    uint32_t *to = wz_cpu_scratch(be, FACTOR, wz_mul(depth * sizeof *to, row));

    return pairing_run(
        be, &(struct pairing){ by->factor_rows, to, x, row, (size_t)(two * by->left) * row, n, width, 2 * two });
}

/* Panels of some columns. */
struct panels {
    const struct product *by;
    uint32_t *out;
    const float *x;
    int n, width;
};

static void panels_part(void *arg, int i)
{
    const struct panels *p = arg;
    int col = i * p->by->panel, left = p->width - col;

    p->by->right(p->out + (size_t)col * wz_cpu_depth(p->by, p->n), p->x + col, (size_t)p->width,
                 left < p->by->panel ? left : p->by->panel, p->n);
}

const float *wz_cpu_right(struct wz_backend *be, const struct product *by, const float *x, int n, int width)
{
    if (!by->right) return x;
    int parts = (width + by->panel - 1) / by->panel;
    size_t size = wz_mul(wz_mul((size_t)parts * (size_t)by->panel, wz_cpu_depth(by, n)), sizeof(uint32_t));
    struct panels p = { by, wz_cpu_scratch(be, RIGHT, size), x, n, width };

    wz_pool_run((size_t)n * (size_t)width <= 8 * CHUNK ? NULL : be->pool, parts, panels_part, &p);
    return (const float *)p.out;
}

struct gemm wz_cpu_gemm_packed(const struct product *by, float *c, size_t ldc, const float *a,
                               const struct wz_weight *w, int first, int m, int n, bool add)
{
    size_t depth = wz_cpu_depth(by, w->in);

    assert(w->packed);
    return (struct gemm){ .by = by,
                          .c = c,
                          .a = a,
                          .b = (const float *)w->packed + (size_t)first * depth,
                          .ldc = ldc,
                          .sm = wz_cpu_left(by, w->in),
                          .sk = 1,
                          .m = m,
                          .n = n,
                          .k = (int)(w->type == WZ_INT8 ? depth - 2 : depth),
                          .panels = true,
                          .add = add };
}

struct gemm wz_cpu_gemm_back_x(const struct product *by, float *c, const float *a, size_t sm, const struct wz_weight *w,
                               int first, int depth, int m, bool add)
{
    size_t in = (size_t)w->in;

    return (struct gemm){ .by = by,
                          .c = c,
                          .a = a,
                          .b = (const char *)w->data + (size_t)first * in * wz_type_size(w->type),
                          .ldc = in,
                          .sm = sm,
                          .sk = 1,
                          .ldb = in,
                          .m = m,
                          .n = w->in,
                          .k = (int)wz_cpu_depth(by, depth),
                          .rows = depth,
                          .add = add,
                          .type = w->type };
}

struct gemm wz_cpu_gemm_back_w(const struct product *by, float *c, const float *a, size_t sk, const float *x, int out,
                               int in, int n)
{
    return (struct gemm){ .by = by,
                          .c = c,
                          .a = a,
                          .b = x,
                          .ldc = (size_t)in,
                          .sm = 1,
                          .sk = sk,
                          .ldb = (size_t)in,
                          .m = out,
                          .n = in,
                          .k = (int)wz_cpu_depth(by, n),
                          .rows = n,
                          .panels = by->right != NULL,
                          .add = true };
}

static void matmul(struct wz_backend *be, float *y, const float *x, const struct wz_weight *w, int n, bool add)
{
    const struct product *by = wz_product(be, w->type, n);
    const float *a = wz_cpu_factor(be, FACTOR, by, x, (size_t)w->in, n, w->in);
    struct gemm g = wz_cpu_gemm_packed(by, y, (size_t)w->out, a, w, 0, n, w->out, add);

    wz_cpu_gemm(be, &g);
}

/* Products that run as one job: its tasks are those of the first product, then those of the second, .. */
enum { MOST_PRODUCTS = 4 };
struct products {
    struct cut cut[MOST_PRODUCTS];
    int first[MOST_PRODUCTS + 1]; /* task of each product */
};

static void products_part(void *arg, int i)
{
    struct products *p = arg;
    int k = 0;

    while (i >= p->first[k + 1]) k++;
    gemm_part(&p->cut[k], i - p->first[k]);
}

static void matmuls(struct wz_backend *be, float *const *y, const float *x, const struct wz_weight *const *w, int count,
                    int n)
{
    const struct product *by = wz_product(be, w[0]->type, n);
    const float *a = wz_cpu_factor(be, FACTOR, by, x, (size_t)w[0]->in, n, w[0]->in);
    struct gemm g[MOST_PRODUCTS];
    struct products p = { .first = { 0 } };
    int threads = wz_pool_threads(be->pool);
    double work = 0;

    assert(count <= MOST_PRODUCTS);
    for (int i = 0; i < count; i++) {
        assert(w[i]->type == w[0]->type);
        g[i] = wz_cpu_gemm_packed(by, y[i], (size_t)w[i]->out, a, w[i], 0, n, w[i]->out, false);
        work += gemm_work(&g[i]);
    }
    if (!n || threads == 1 || work < GRAIN) {
        for (int i = 0; i < count; i++) by->gemm(&g[i], 0, n, 0, g[i].n);
        return;
    }
    for (int i = 0; i < count; i++) p.first[i + 1] = p.first[i] + cut_make(&p.cut[i], &g[i], 2 * threads);
    wz_pool_run(be->pool, p.first[count], products_part, &p);
}

static void matmul_back_x(struct wz_backend *be, float *d_x, const float *d_y, const struct wz_weight *w, int n,
                          bool add)
{
    const struct product *by = wz_product(be, w->type, n);
    const float *a = wz_cpu_factor(be, FACTOR, by, d_y, (size_t)w->out, n, w->out);
    struct gemm g = wz_cpu_gemm_back_x(by, d_x, a, wz_cpu_left(by, w->out), w, 0, w->out, n, add);

    wz_cpu_gemm(be, &g);
}

static void matmul_back_w(struct wz_backend *be, float *d_w, const float *d_y, const float *x,
                          const struct wz_weight *w, int n)
{
    const struct product *by = wz_product(be, w->type, w->out);
    const float *a = by->factor_rows ? rows_run(be, by, d_y, n, w->out) : d_y;
    struct gemm g = wz_cpu_gemm_back_w(by, d_w, a, (size_t)w->out, wz_cpu_right(be, by, x, n, w->in), w->out, w->in, n);

    wz_cpu_gemm(be, &g);
}

struct packing {
    pack_fn *fn;
    const struct wz_weight *w;
    size_t size;
};

static void pack_part(void *arg, int i)
{
    const struct packing *p = arg;

    p->fn((char *)p->w->packed + (size_t)i * p->size, p->w, i);
}

/* Rows of equal bits may have panels of other widths. A weight takes what the widest need, so that a plan does not
 * depend on the choice among them. */
static size_t packed_size(const struct wz_backend *be, const struct wz_weight *w)
{
    const struct product by = { .type = w->type, .unit = wz_in_amx(be, w->type) ? WZ_AMX_DEPTH / 2 : 1 };
    size_t columns = wz_mul(((size_t)w->out + MOST_PANEL - 1) / MOST_PANEL, MOST_PANEL);

    return wz_mul(columns * sizeof(float), wz_cpu_depth(&by, w->in));
}

/* Packed weights that are too small for huge pages of their own (wz_alloc) lie side by side in slabs of such pages: a
 * decode reads them all for every token, and would miss the TLB at every 4 KB. What of a slab is not in use is not
 * touched, and takes no memory. */
static void *slab_take(struct cpu *cpu, size_t size)
{
    struct slab *s = cpu->slabs;

    if (!s || s->used + size > SLAB) {
        s = wz_alloc(sizeof *s);
        s->map =
            mmap(NULL, SLAB + WZ_HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (s->map == MAP_FAILED) wz_die("out of memory: %d bytes for packed weights", SLAB);
        s->at = s->map + (WZ_HUGE_PAGE - (uintptr_t)s->map % WZ_HUGE_PAGE) % WZ_HUGE_PAGE;
        madvise(s->at, SLAB, MADV_HUGEPAGE); /* may be refused: then only slower */
        s->next = cpu->slabs;
        cpu->slabs = s;
    }
    void *p = s->at + s->used;
    s->used += wz_alloc_size(size);
    s->live++;
    return p;
}

static bool slab_give(struct cpu *cpu, const char *p)
{
    for (struct slab **link = &cpu->slabs, *s; (s = *link); link = &s->next) {
        if (p < s->at || p >= s->at + SLAB) continue;
        if (--s->live) return true;
        *link = s->next;
        munmap(s->map, SLAB + WZ_HUGE_PAGE);
        free(s);
        return true;
    }
    return false;
}

static void pack(struct wz_backend *be, struct wz_weight *w)
{
    const struct product *by = wz_product(be, w->type, INT32_MAX);
    struct packing p = { by->pack, w, (size_t)by->panel * sizeof(float) * wz_cpu_depth(by, w->in) };
    int panels = (w->out + by->panel - 1) / by->panel;

    assert(MOST_PANEL % by->panel == 0);
    const size_t size = packed_size(be, w);
    const bool small = size >= SLAB_LEAST && wz_alloc_size(size) % WZ_HUGE_PAGE;
    if (!w->packed) w->packed = small ? slab_take(be->state, size) : wz_alloc(size);
    wz_pool_run((double)w->out * w->in * MADDS_PER_WEIGHT < GRAIN ? NULL : be->pool, panels, pack_part, &p);
}

static void unpack(struct wz_backend *be, struct wz_weight *w)
{
    if (!slab_give(be->state, w->packed)) free(w->packed);
    w->packed = NULL;
}

/* ---- tokens and arrays ------------------------------------------------------------------------------------ */

static void walk_part(void *arg, int i)
{
    const struct walk *w = arg;
    size_t from = (size_t)i * w->step;

    w->fn(w, from, w->n - from < w->step ? w->n : from + w->step);
}

static void walk_run(struct wz_backend *be, struct walk *w)
{
    wz_pool_run(w->n <= 8 * w->step ? NULL : be->pool, (int)((w->n + w->step - 1) / w->step), walk_part, w);
}

static void embed(struct wz_backend *be, float *out, const struct wz_weight *table, const int *ids, int n)
{
    size_t c = (size_t)table->in;

    for (int i = 0; i < n; i++, out += c) {
        size_t at = (size_t)ids[i] * c;
        if (table->type == WZ_F32) memcpy(out, (const float *)table->data + at, c * sizeof *out);
        else
            for (size_t j = 0; j < c; j++) out[j] = wz_bf16_to_f32(((const uint16_t *)table->data)[at + j]);
    }
}

static void embed_back(struct wz_backend *be, float *d_table, const float *d_out, const int *ids, int n, int c)
{
    for (size_t i = 0, k = (size_t)c; i < (size_t)n; i++)
        wz_hot(be)->add(&(struct walk){ .out = d_table + (size_t)ids[i] * k, .a = d_out + i * k }, 0, k);
}

static void rmsnorm(struct wz_backend *be, float *out, float *rstd, const float *x, const float *w, int n, int c,
                    float eps, float one)
{
    walk_run(be, &(struct walk){ wz_hot(be)->rmsnorm, (size_t)n, (size_t)(CHUNK / c + 1), .cols = c, .out = out,
                                 .more = rstd, .a = x, .b = w, .eps = eps, .one = one });
}

static void rmsnorm_back(struct wz_backend *be, float *d_x, float *d_w, const float *d_out, const float *x,
                         const float *w, const float *rstd, int n, int c, float one)
{
    struct walk sums = { wz_hot(be)->rmsnorm_back_w,
                         (size_t)c,
                         (size_t)c,
                         .cols = c,
                         .rows = n,
                         .out = d_w,
                         .a = d_out,
                         .b = x,
                         .d = rstd };

    if ((size_t)n * (size_t)c > 8 * CHUNK) sums.step = COLUMNS;
    walk_run(be, &sums);
    walk_run(be, &(struct walk){ wz_hot(be)->rmsnorm_back, (size_t)n, (size_t)(CHUNK / c + 1), .cols = c, .out = d_x,
                                 .a = d_out, .b = x, .c = w, .d = rstd, .one = one });
}

static void bias(struct wz_backend *be, float *y, const float *b, int n, int c)
{
    for (int i = 0; i < n; i++)
        wz_hot(be)->add(&(struct walk){ .out = y + (size_t)i * (size_t)c, .a = b }, 0, (size_t)c);
}

static void bias_back(struct wz_backend *be, float *d_b, const float *d_y, int n, int c)
{
    for (int i = 0; i < n; i++)
        wz_hot(be)->add(&(struct walk){ .out = d_b, .a = d_y + (size_t)i * (size_t)c }, 0, (size_t)c);
}

static void swiglu(struct wz_backend *be, float *out, const float *gate, const float *up, size_t n, enum wz_act act)
{
    walk_fn *fn = act == WZ_GELU ? wz_hot(be)->geglu : wz_hot(be)->swiglu;

    walk_run(be, &(struct walk){ fn, n, CHUNK, .out = out, .a = gate, .b = up });
}

static void swiglu_back(struct wz_backend *be, float *d_gate, float *d_up, const float *d_out, const float *gate,
                        const float *up, size_t n, enum wz_act act)
{
    walk_fn *fn = act == WZ_GELU ? wz_hot(be)->geglu_back : wz_hot(be)->swiglu_back;

    walk_run(be, &(struct walk){ fn, n, CHUNK, .out = d_gate, .more = d_up, .a = d_out, .b = gate, .c = up });
}

static void cast(struct wz_backend *be, uint16_t *dst, const float *src, size_t n)
{
    walk_run(be, &(struct walk){ wz_hot(be)->cast, n, CHUNK, .halves = dst, .a = src });
}

static void zero(struct wz_backend *be, void *p, size_t n)
{
    if (n < STREAMED || n % sizeof(float)) ((const struct cpu *)be->state)->ref.zero(be, p, n);
    else walk_run(be, &(struct walk){ wz_hot(be)->zero, n / sizeof(float), CHUNK, .out = p });
}

static void add(struct wz_backend *be, float *dst, const float *src, size_t n)
{
    walk_run(be, &(struct walk){ wz_hot(be)->add, n, CHUNK, .out = dst, .a = src });
}

static void scale(struct wz_backend *be, float *out, const float *x, float by, size_t n)
{
    walk_run(be, &(struct walk){ wz_hot(be)->scale, n, CHUNK, .out = out, .a = x, .eps = by });
}

static void squares(struct wz_backend *be, double *sums, const float *x, size_t n)
{
    walk_run(be, &(struct walk){ wz_hot(be)->square, n, WZ_BLOCK, .sums = sums, .a = x });
}

static void adamw(struct wz_backend *be, float *w, const float *g, float *m, float *v, size_t n, float lr, float b1,
                  float b2, float eps, float decay, float scale, int step)
{
    struct wz_adamw_scalars by = wz_adamw_scalars_of(lr, b1, b2, eps, decay, scale, step);

    walk_run(be, &(struct walk){ wz_hot(be)->adamw, n, CHUNK, .out = w, .a = g, .m = m, .v = v, .by = &by });
}

/* ---- the backend ------------------------------------------------------------------------------------------ */

static size_t packed_cpu(const struct wz_backend *be, const struct wz_weight *w) { return packed_size(be, w); }

static int open_cpu(struct wz_backend *be, struct wz_err *err)
{
    const struct hot *rows[MOST_ROWS], *choice[SLOTS];
    int n = wz_cpu_rows(rows, be->numerics.isa, err);

    if (!n) return -1;
    struct cpu *cpu = wz_alloc(sizeof *cpu);
    wz_cpu_choose(choice, rows, n);
    wz_cpu_compose(cpu, choice, be->amx);
    be->numerics.isa = rows[0]->bits;
    be->state = cpu;
    be->rounds = true;
    be->int8 = true;
    wz_ops_ref(&be->ops);
    cpu->ref = be->ops;
    be->ops.pack = pack;
    be->ops.unpack = unpack;
    be->ops.embed = embed;
    be->ops.embed_back = embed_back;
    be->ops.rmsnorm = rmsnorm;
    be->ops.rmsnorm_back = rmsnorm_back;
    be->ops.matmul = matmul;
    be->ops.matmuls = matmuls;
    be->ops.matmul_back_x = matmul_back_x;
    be->ops.matmul_back_w = matmul_back_w;
    be->ops.bias = bias;
    be->ops.bias_back = bias_back;
    be->ops.swiglu = swiglu;
    be->ops.swiglu_back = swiglu_back;
    be->ops.cast = cast;
    be->ops.zero = zero;
    be->ops.add = add;
    be->ops.scale = scale;
    be->ops.squares = squares;
    be->ops.adamw = adamw;
    wz_ops_cpu_attention(&be->ops);
    wz_ops_cpu_head(&be->ops);
    return 0;
}

static void close_cpu(struct wz_backend *be)
{
    struct cpu *cpu = be->state;

    for (int i = 0; i < cpu->n_tables; i++) {
        free(cpu->tables[i].freq);
        free(cpu->tables[i].cos_sin);
    }
    free(cpu->tables);
    for (size_t i = 0; i < WZ_COUNT(cpu->scratch); i++) free(cpu->scratch[i].p);
    free(cpu);
    be->state = NULL;
}

const struct wz_backend_row wz_backend_cpu = { open_cpu, close_cpu, packed_cpu, NULL, true, 1, true };
