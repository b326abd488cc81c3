/* choose: which of the rows that give the same bits computes what.
 *
 *   numerics.isa ─▶ the rows of its bits that run here ─▶ a row for each slot ─▶ struct cpu
 *
 * The processor's flags say what runs, not what is fast: VDPBF16PS is slower than two FMAs on some processors. So the
 * rows are measured once, some milliseconds a slot and row, on one thread by its own clock, and the
 * choice is kept in the user's cache, in a file of this processor, these rows and this version. No bit depends on it:
 * a file that can't be read or written, is damaged, or is another machine's is done without.
 *
 * A measurement that other processes may have disturbed serves its own process and is not kept: one of several ranks,
 * which all measure at the same time, or one whose thread did not have its core for itself. */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#ifdef __x86_64__
#include <cpuid.h>
#endif

#include "kernels/cpu/cpu.h"

static const struct hot *const hots[] = {
/* best by flags first */
#if defined(__x86_64__)
    &wz_hot_avx512amx, &wz_hot_avx512bf16, &wz_hot_avx512, &wz_hot_avx2,
#elif defined(__aarch64__)
    &wz_hot_neon,
#endif
    &wz_hot_generic,
};

static const char *const slots[SLOTS] = {
    "f32 few rows",      "f32 many rows",      "bf16 few rows", "bf16 many rows", "int8 few rows", "int8 many rows",
    "bf16 amx few rows", "bf16 amx many rows", "attention",     "attention_back", "vectors",
};

/* Linux lets a process use tiles once it has asked (Documentation/arch/x86/xstate.rst). */
bool wz_cpu_tiles(void)
{
#ifdef __x86_64__
    enum { REQUEST = 0x1023, TILE_DATA = 18, NEEDED = 1 << 22 | 1 << 24 | 1 << 25 }; /* amx-bf16, -tile, -int8 */
    unsigned a, b, c, d = 0;

    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & NEEDED) == NEEDED && __builtin_cpu_supports("avx512bf16") &&
           syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
    return false;
#endif
}

int wz_cpu_rows(const struct hot *rows[MOST_ROWS], const char *isa, struct wz_err *err)
{
    const bool any = !isa || strcmp(isa, "auto") == 0;
    char choices[128] = "auto";
    int n = 0;

    for (size_t i = 0; i < WZ_COUNT(hots); i++) {
        const struct hot *h = hots[i];
        if (!h->runs()) continue;
        if (any ? !n || !strcmp(h->bits, rows[0]->bits) : !strcmp(isa, h->isa) || !strcmp(isa, h->bits)) rows[n++] = h;
        if (!strstr(choices, h->bits)) strcat(strcat(choices, ", "), h->bits);
        if (strcmp(h->bits, h->isa)) strcat(strcat(choices, ", "), h->isa);
    }
    if (!n) wz_fail(err, "numerics.isa: instruction set %s does not run here: expected one of %s", isa, choices);
    return n;
}

bool wz_cpu_mixes(const struct hot *const choice[SLOTS])
{
    for (int k = 0; k < KINDS; k++)
        if (choice[2 * k]->product[k]->panel != choice[2 * k + 1]->product[k]->panel) return false;
    return true;
}

void wz_cpu_compose(struct cpu *cpu, const struct hot *const choice[SLOTS], bool amx)
{
    assert(wz_cpu_mixes(choice));
    cpu->hot = *choice[VECTORS];
    cpu->hot.attend = choice[ATTEND]->attend;
    cpu->hot.attend_back = choice[ATTEND_BACK]->attend_back;
    for (int k = 0; k < KINDS; k++) {
        const int from = amx && k == WZ_BF16 ? AMX : k;
        cpu->few[k] = choice[2 * from]->product[from];
        cpu->hot.product[k] = choice[2 * from + 1]->product[from];
    }
}

/* ---- measuring -------------------------------------------------------------------------------------------- */

/* TRIED: rows of a product of few. Operands of one call lie in the L2 cache. */
enum { TRIED = 4, MANY = 64, IN = 384, OUT = 256, HEADS = 3, D = 64, TOKENS = 128, TILE_TOKENS = 12, PAGE = 16 };
enum { ROUNDS = 3, MOST_CALLS = 1 << 17, STEPS = 4096 };
static const double STRETCH = 7e-4; /* seconds in which a processor has changed its clock for wide vectors */
static const double MARGIN = 0.97;  /* of the time: less is no reason to leave the order by flags */

struct trial {
    const struct hot *row;
    const struct product *by;
    struct wz_weight w;
    float x[MANY * IN], left[MANY * IN], y[MANY * OUT], data[OUT * IN];
    _Alignas(64) float packed[OUT * IN];
    uint16_t k[TOKENS * D], v[TOKENS * D];
    float q[TOKENS * HEADS * D], out[TOKENS * HEADS * D], d_out[TOKENS * HEADS * D], d_q[TOKENS * HEADS * D];
    float d_k[TOKENS * D], d_v[TOKENS * D], lse[TOKENS * HEADS];
    int seq[TOKENS], pos[TOKENS], table[TOKENS / PAGE];
};

static struct trial *trial_make(void)
{
    struct trial *t = wz_alloc(sizeof *t);

    for (int i = 0; i < MANY * IN; i++) t->x[i] = sinf((float)i);
    for (int i = 0; i < OUT * IN; i++) t->data[i] = sinf((float)(3 * i));
    for (int i = 0; i < TOKENS * D; i++) t->k[i] = t->v[i] = wz_f32_to_bf16(sinf((float)i));
    for (int i = 0; i < TOKENS * HEADS * D; i++) t->q[i] = t->out[i] = t->d_out[i] = sinf((float)i);
    for (int i = 0; i < TOKENS * HEADS; i++) t->lse[i] = 5;
    for (int i = 0; i < TOKENS; i++) {
        t->pos[i] = i;
        t->table[i / PAGE] = i / PAGE;
    }
    return t;
}

static void product_prepare(struct trial *t, const struct product *by)
{
    t->by = by;
    t->w = (struct wz_weight){ t->data, by->type, OUT, IN, t->packed, 0 };
    for (int i = 0; i < OUT / by->panel; i++)
        by->pack(t->packed + (size_t)(i * by->panel) * wz_cpu_depth(by, IN), &t->w, i);
}

static void product_call(struct trial *t, enum slot slot)
{
    const struct product *by = t->by;
    int n = slot % 2 ? MANY : TRIED;

    if (by->factor) by->factor((uint32_t *)t->left, t->x, IN, IN, n);
    struct gemm g = wz_cpu_gemm_packed(by, t->y, OUT, by->factor ? t->left : t->x, &t->w, 0, n, OUT, false);
    by->gemm(&g, 0, n, 0, OUT);
}

static void call(struct trial *t, enum slot slot)
{
    const struct wz_kv kv = { (float *)t->k, (float *)t->v, TOKENS / PAGE, PAGE, 1, D, true };
    const struct wz_rows rows = { TOKENS, 1, TOKENS / PAGE, t->seq, t->pos, t->table };
    const struct attend a = { .out = t->out,
                              .lse = t->lse,
                              .q = t->q,
                              .kv = &kv,
                              .rows = &rows,
                              .heads = HEADS,
                              .d_out = t->d_out,
                              .o = t->out,
                              .d_q = t->d_q,
                              .d_k = t->d_k,
                              .d_v = t->d_v };
    const struct walk w = { .out = t->d_q, .a = t->q, .b = t->d_out };

    if (slot == ATTEND) t->row->attend(&a, TOKENS - TILE_TOKENS, TILE_TOKENS, 0);
    else if (slot == ATTEND_BACK) t->row->attend_back(&a, 0, TOKENS, 0);
    else if (slot == VECTORS) t->row->swiglu(&w, 0, WZ_COUNT(t->q));
    else product_call(t, slot);
}

/* Floating-point or integer operations of a call; VECTORS: bytes. */
static double amount(enum slot slot)
{
    const double pair = HEADS * D;

    if (slot == ATTEND) return 4 * pair * TILE_TOKENS * (TOKENS - TILE_TOKENS / 2);
    if (slot == ATTEND_BACK) return 10 * pair * TOKENS * (TOKENS + 1) / 2;
    if (slot == VECTORS) return 12 * pair * TOKENS;
    return 2.0 * (slot % 2 ? MANY : TRIED) * IN * OUT;
}

/* Seconds of a call, of the last and longest of some runs of calls. slot SLOTS + kind: of STEPS steps of that kind's
 * peak. */
static double stretch(struct trial *t, int slot)
{
    double took = 0;
    int n = 1;

    if (slot < ATTEND) product_prepare(t, t->row->product[slot / 2]);
    for (; took < STRETCH && n < MOST_CALLS; n *= 2) {
        double begin = wz_thread_time();
        for (int i = 0; i < n; i++)
            if (slot < SLOTS) call(t, (enum slot)slot);
            else t->y[0] += t->row->product[slot - SLOTS]->peak(STEPS);
        took = wz_thread_time() - begin;
    }
    return 2 * took / n;
}

/* seconds[slot][row]; returns whether the thread had its core for itself. */
static bool measure(double seconds[SLOTS + KINDS][MOST_ROWS], const struct hot *const *rows, int n, int end)
{
    struct trial *t = trial_make();
    double own = wz_thread_time(), all = wz_now();

    for (int round = 0; round < ROUNDS; round++)
        for (int slot = 0; slot < end; slot++)
            for (int i = 0; i < n; i++) {
                t->row = rows[i];
                double s = stretch(t, slot);
                if (!round || s < seconds[slot][i]) seconds[slot][i] = s;
            }
    own = wz_thread_time() - own;
    all = wz_now() - all;
    free(t);
    return own > 0.9 * all;
}

/* Many rows decide a kind's panel, which the few share. */
static void decide(const struct hot *choice[SLOTS], double seconds[SLOTS + KINDS][MOST_ROWS],
                   const struct hot *const *rows, int n)
{
    for (int slot = SLOTS - 1; slot >= 0; slot--) {
        const bool few = slot < ATTEND && slot % 2 == 0;
        int best = -1;
        for (int i = 0; i < n; i++) {
            if (few && rows[i]->product[slot / 2]->panel != choice[slot + 1]->product[slot / 2]->panel) continue;
            if (best < 0 || seconds[slot][i] < MARGIN * seconds[slot][best]) best = i;
        }
        choice[slot] = rows[best];
    }
}

/* ---- the user's cache ------------------------------------------------------------------------------------- */

/* What a choice is good for; NULL where it has no words in JSON. */
static json_t *key_of(const struct hot *const *rows, int n)
{
    char *processor = wz_host_processor();
    json_t *names = json_array(), *key;

    for (int i = 0; i < n; i++) json_array_append_new(names, json_string(rows[i]->isa));
    key = json_pack("{s:s, s:o, s:s}", "processor", processor, "rows", names, "version", WZ_VERSION);
    free(processor);
    return key;
}

/* Heap; NULL where there is no folder for it. */
static char *file_of(const json_t *key)
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char *text = key ? json_dumps(key, JSON_COMPACT) : NULL, *path = NULL;
    const bool given = cache && cache[0] == '/';

    if (text && (given || (home && home[0] == '/')))
        path = wz_path("%s%s/waltz/cpu-%016llx.json", given ? cache : home, given ? "" : "/.cache",
                       (unsigned long long)wz_hash(text, strlen(text), 0));
    free(text);
    return path;
}

static bool load_choice(const struct hot *choice[SLOTS], const char *path, json_t *key, const struct hot *const *rows,
                        int n)
{
    json_t *file = path ? wz_json_load(path, NULL) : NULL, *kept = json_object_get(file, "choice");
    bool whole = file && json_equal(json_object_get(file, "key"), key);

    for (int slot = 0; slot < SLOTS && whole; slot++) {
        const char *name = json_string_value(json_object_get(kept, slots[slot]));
        int i = 0;
        while (name && i < n && strcmp(name, rows[i]->isa)) i++;
        whole = name && i < n;
        if (whole) choice[slot] = rows[i];
    }
    json_decref(file);
    return whole && wz_cpu_mixes(choice);
}

/* Of several processes that write at once, the last one's file stays, whole. */
static bool save_choice(const struct hot *const choice[SLOTS], const char *path, json_t *key)
{
    char *folder = wz_strdup(path ? path : ""), *slash = strrchr(folder, '/');
    json_t *kept = json_object(), *file = json_pack("{s:O, s:o}", "key", key, "choice", kept);
    int fd = -1;

    for (int slot = 0; slot < SLOTS; slot++) json_object_set_new(kept, slots[slot], json_string(choice[slot]->isa));
    char *text = file ? json_dumps(file, JSON_INDENT(1)) : NULL, *tmp = wz_path("%s.XXXXXX", path ? path : "");
    if (slash) *slash = 0;
    if (slash && text && wz_mkdirs(folder, NULL) == 0) fd = mkstemp(tmp);
    bool done = fd >= 0 && wz_write_at(fd, text, strlen(text), 0) == 0;
    if (fd >= 0) done = close(fd) == 0 && done && rename(tmp, path) == 0;
    if (fd >= 0 && !done) unlink(tmp);
    free(folder);
    free(tmp);
    free(text);
    json_decref(file);
    return done;
}

/* ---- the choice of this process --------------------------------------------------------------------------- */

static struct {
    pthread_mutex_t lock;
    const struct hot *first, *choice[SLOTS]; /* first: of the rows that it is for; NULL: not made yet */
    const char *from;
} made = { .lock = PTHREAD_MUTEX_INITIALIZER };

/* `seconds`: a new measurement, kept in any case; NULL: the cache's, or one of its own. */
static void make(const struct hot *const *rows, int n, double seconds[SLOTS + KINDS][MOST_ROWS])
{
    double own[SLOTS + KINDS][MOST_ROWS];
    json_t *key = key_of(rows, n);
    char *path = file_of(key);

    made.first = rows[0];
    made.from = "kept in the user's cache";
    if (n == 1) {
        for (int slot = 0; slot < SLOTS; slot++) made.choice[slot] = rows[0];
        made.from = "the only row of its bits that runs here";
    } else if (seconds || !load_choice(made.choice, path, key, rows, n)) {
        const bool quiet = seconds || (measure(own, rows, n, SLOTS) && wz_ranks() == 1);
        decide(made.choice, seconds ? seconds : own, rows, n);
        if (!quiet) made.from = "measured, and not kept: others may have disturbed it";
        else if (!save_choice(made.choice, path, key)) made.from = "measured, and not kept: no cache can be written";
        else made.from = "measured, and kept in the user's cache";
    }
    json_decref(key);
    free(path);
}

void wz_cpu_choose(const struct hot *choice[SLOTS], const struct hot *const *rows, int n)
{
    pthread_mutex_lock(&made.lock);
    if (n > 1 && made.first != rows[0]) make(rows, n, NULL);
    for (int slot = 0; slot < SLOTS; slot++) choice[slot] = n > 1 ? made.choice[slot] : rows[0];
    pthread_mutex_unlock(&made.lock);
}

/* The multiply-adds of a kind that one thread can do in a second, by the best row. */
static double peak(double seconds[SLOTS + KINDS][MOST_ROWS], const struct hot *const *rows, int n, int kind)
{
    double top = 0;

    for (int i = 0; i < n; i++) {
        const struct product *p = rows[i]->product[kind];
        const double rate = 2.0 * STEPS * PEAK_CHAINS * p->panel / 2 * p->terms / seconds[SLOTS + kind][i];
        top = rate > top ? rate : top;
    }
    return top;
}

const char *wz_cpu_tuned(struct wz_tuned list[WZ_TUNED], bool anew)
{
    double seconds[SLOTS + KINDS][MOST_ROWS];
    const struct hot *rows[MOST_ROWS];
    int n = wz_cpu_rows(rows, NULL, NULL);
    _Static_assert((int)WZ_TUNED == SLOTS, "a row for each slot");

    pthread_mutex_lock(&made.lock);
    if (anew) measure(seconds, rows, n, SLOTS + KINDS);
    if (anew || made.first != rows[0]) make(rows, n, anew ? seconds : NULL);
    for (int slot = 0; slot < SLOTS; slot++) {
        struct wz_tuned *t = &list[slot];
        *t = (struct wz_tuned){ .op = slots[slot], .isa = made.choice[slot]->isa, .unit = "GFLOP/s" };
        if (slot == VECTORS) t->unit = "GB/s";
        if (!anew) continue;
        for (int i = 0; i < n; i++) {
            t->tried[i] = rows[i]->isa;
            t->rate[i] = amount((enum slot)slot) / seconds[slot][i] * 1e-9;
        }
        t->n = n;
        if (slot != VECTORS) t->peak = peak(seconds, rows, n, slot < ATTEND ? slot / 2 : (int)WZ_F32) * 1e-9;
    }
    pthread_mutex_unlock(&made.lock);
    return made.from;
}
