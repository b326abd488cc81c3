/* Training prompts that are held-out prompts too: they would make a result look better than it is.
 *
 *   words     what is left of a text when ASCII letters are lower case and all but letters, digits and the bytes of
 *             other scripts is a blank; a text without words overlaps none
 *   exact     the words of the two are the same
 *   near      of their sets of pairs of neighbouring words, A and B,
 *             |A and B| / |A or B| >= 3/5, Jaccard's index (Broder 1997 calls it resemblance)
 *
 * Near ones are found without comparing all with all, and none is missed: a pair of texts that near shares one of the
 * |A| - ceil(3/5 |A|) + 1 rarest pairs of A, and of those of B, in one order of rarity (prefix filtering: Chaudhuri,
 * Ganti and Kaushik 2006). Sorting apart, the time grows with the number of words, and with the prompts that share a
 * rare pair. Nothing depends on the ranks: each finds the same. */
#include "run/job.h"

#include <stdlib.h>
#include <string.h>

enum { SHINGLE = 2, PART = 3, WHOLE = 5 }; /* words of a pair; the least index is PART / WHOLE */

struct doc {
    const struct wz_prompt *prompt;
    int set;
    uint64_t *hashes; /* [n] of its pairs, ascending, each once */
    int n;
};
struct posting {
    uint64_t hash;
    int doc;
};

static bool is_word(unsigned char c)
{
    return c >= 0x80 || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* The words of a text with one blank between them. */
static void words_of(const char *text, struct wz_buf *out)
{
    wz_buf_clear(out);
    for (const char *s = text; *s; s++) {
        char c = *s >= 'A' && *s <= 'Z' ? (char)(*s + 'a' - 'A') : *s;
        if (!is_word((unsigned char)c)) continue;
        if (s > text && !is_word((unsigned char)s[-1]) && out->len) wz_buf_str(out, " ");
        wz_buf_add(out, &c, 1);
    }
    wz_buf_str(out, "");
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static int unique(uint64_t *list, int n)
{
    int k = 0;

    qsort(list, (size_t)n, sizeof *list, by_value);
    for (int i = 0; i < n; i++)
        if (!k || list[i] != list[k - 1]) list[k++] = list[i];
    return k;
}

static void doc_hash(struct doc *d, const struct wz_buf *words)
{
    const char *from[SHINGLE], *s = words->data, *end = s + words->len;
    int n = 0;

    d->hashes = wz_alloc(sizeof *d->hashes * (words->len / 2 + 1));
    while (s < end) {
        const char *stop = memchr(s, ' ', (size_t)(end - s));
        if (!stop) stop = end;
        from[n % SHINGLE] = s;
        if (++n >= SHINGLE) {
            const char *first = from[n % SHINGLE];
            d->hashes[d->n++] = wz_hash(first, (size_t)(stop - first), 0);
        }
        s = stop + 1;
    }
    d->n = unique(d->hashes, d->n);
}

static int by_hash(const void *a, const void *b)
{
    const struct posting *x = a, *y = b;

    return x->hash != y->hash ? (x->hash > y->hash) - (x->hash < y->hash) : (x->doc > y->doc) - (x->doc < y->doc);
}

/* The place of the first posting of this hash or a larger one. */
static int find(const struct posting *list, int n, uint64_t hash)
{
    int low = 0;

    while (low < n) {
        int middle = low + (n - low) / 2;
        if (list[middle].hash < hash) low = middle + 1;
        else n = middle;
    }
    return low;
}

struct rarity { /* how many held-out prompts have it */
    int n;
    uint64_t hash;
};

static int by_rarity(const void *a, const void *b)
{
    const struct rarity *x = a, *y = b;

    return x->n != y->n ? (x->n > y->n) - (x->n < y->n) : (x->hash > y->hash) - (x->hash < y->hash);
}

/* The rarest pairs of d, as many as it has to share one of: heap. */
static struct rarity *prefix_of(const struct doc *d, const struct posting *all, int n_all, int *n)
{
    struct rarity *list = wz_alloc(sizeof *list * (size_t)(d->n + 1));

    for (int i = 0; i < d->n; i++) {
        int at = find(all, n_all, d->hashes[i]), end = at;
        while (end < n_all && all[end].hash == d->hashes[i]) end++;
        list[i] = (struct rarity){ end - at, d->hashes[i] };
    }
    qsort(list, (size_t)d->n, sizeof *list, by_rarity);
    *n = d->n ? d->n - (d->n * PART + WHOLE - 1) / WHOLE + 1 : 0;
    return list;
}

static int shared(const struct doc *a, const struct doc *b)
{
    int n = 0;

    for (int i = 0, k = 0; i < a->n && k < b->n;) {
        n += a->hashes[i] == b->hashes[k];
        const bool next = a->hashes[i] <= b->hashes[k];
        k += b->hashes[k] <= a->hashes[i];
        i += next;
    }
    return n;
}

static int docs_of(const struct wz_prompts *sets, int n_sets, struct doc **docs)
{
    struct wz_buf words = { 0 };
    int n = 0;

    for (int s = 0; s < n_sets; s++) n += sets[s].n;
    *docs = wz_alloc(sizeof **docs * (size_t)(n + 1));
    n = 0;
    for (int s = 0; s < n_sets; s++)
        for (int i = 0; i < sets[s].n; i++) {
            struct doc *d = &(*docs)[n++];
            *d = (struct doc){ .prompt = &sets[s].list[i], .set = s };
            words_of(d->prompt->text, &words);
            doc_hash(d, &words);
            if (n % 1024 == 0) wz_heartbeat();
        }
    wz_buf_finish(&words);
    return n;
}

static void docs_free(struct doc *docs, int n)
{
    for (int i = 0; i < n; i++) free(docs[i].hashes);
    free(docs);
}

/* {words: index of the first held-out prompt of these words} */
static json_t *texts_of(const struct doc *docs, int n)
{
    json_t *texts = json_object();
    struct wz_buf words = { 0 };

    for (int i = n - 1; i >= 0; i--) {
        words_of(docs[i].prompt->text, &words);
        if (words.len) json_object_set_new_nocheck(texts, words.data, json_integer(i));
    }
    wz_buf_finish(&words);
    return texts;
}

/* The postings of all pairs of the held-out prompts, and of those in their prefixes. */
struct index {
    struct posting *all, *rare;
    int n_all, n_rare;
};

static void index_make(struct index *ix, const struct doc *docs, int n)
{
    size_t total = 0;

    for (int i = 0; i < n; i++) total += (size_t)docs[i].n;
    ix->all = wz_alloc(sizeof *ix->all * (total + 1));
    ix->rare = wz_alloc(sizeof *ix->rare * (total + 1));
    for (int i = 0; i < n; i++)
        for (int k = 0; k < docs[i].n; k++) ix->all[ix->n_all++] = (struct posting){ docs[i].hashes[k], i };
    qsort(ix->all, (size_t)ix->n_all, sizeof *ix->all, by_hash);
    for (int i = 0; i < n; i++) {
        int k;
        struct rarity *prefix = prefix_of(&docs[i], ix->all, ix->n_all, &k);
        while (k--) ix->rare[ix->n_rare++] = (struct posting){ prefix[k].hash, i };
        free(prefix);
        if (i % 1024 == 0) wz_heartbeat();
    }
    qsort(ix->rare, (size_t)ix->n_rare, sizeof *ix->rare, by_hash);
}

/* The held-out prompt nearest to d, of equals the first, and their index as common / either; -1: none is near. */
static int nearest(const struct index *ix, const struct doc *held, const struct doc *d, int *seen, int mark,
                   int *common, int *either)
{
    int n, best = -1;
    struct rarity *prefix = prefix_of(d, ix->all, ix->n_all, &n);

    for (int i = 0; i < n; i++)
        for (int at = find(ix->rare, ix->n_rare, prefix[i].hash);
             at < ix->n_rare && ix->rare[at].hash == prefix[i].hash; at++) {
            const int h = ix->rare[at].doc;
            if (seen[h] == mark) continue;
            seen[h] = mark;
            const int c = shared(d, &held[h]), e = d->n + held[h].n - c;
            if ((int64_t)c * WHOLE < (int64_t)e * PART) continue;
            const int64_t more = best < 0 ? 1 : (int64_t)c * *either - (int64_t)*common * e;
            if (more < 0 || (more == 0 && h > best)) continue;
            best = h;
            *common = c;
            *either = e;
        }
    free(prefix);
    return best;
}

int wz_overlaps(const struct wz_prompts *data, int n_data, const struct wz_prompts *eval, int n_eval, bool near,
                struct wz_overlap **list)
{
    struct doc *docs, *held;
    const int n_docs = docs_of(data, n_data, &docs), n_held = docs_of(eval, n_eval, &held);
    json_t *texts = texts_of(held, n_held);
    struct index ix = { 0 };
    struct wz_buf words = { 0 };
    int *seen = wz_alloc(sizeof *seen * (size_t)(n_held + 1)), n = 0;

    *list = wz_alloc(sizeof **list * (size_t)(n_docs + 1));
    if (near) index_make(&ix, held, n_held);
    for (int i = 0; i < n_docs; i++) {
        int common = 1, either = 1;
        words_of(docs[i].prompt->text, &words);
        const json_t *same = json_object_get(texts, words.data);
        const int h = same   ? (int)json_integer_value(same)
                      : near ? nearest(&ix, held, &docs[i], seen, i + 1, &common, &either)
                             : -1;
        if (h >= 0)
            (*list)[n++] = (struct wz_overlap){ docs[i].prompt, held[h].prompt, docs[i].set,
                                                held[h].set,    same != NULL,   (double)common / either };
        if (i % 1024 == 0) wz_heartbeat();
    }
    wz_buf_finish(&words);
    json_decref(texts);
    docs_free(docs, n_docs);
    docs_free(held, n_held);
    free(ix.all);
    free(ix.rare);
    free(seen);
    return n;
}

static void put_line(struct wz_buf *out, const struct wz_overlap *o)
{
    wz_buf_printf(out, "{\"data\":%d,\"id\":", o->data);
    wz_json_string(out, o->prompt->id, strlen(o->prompt->id));
    wz_buf_str(out, ",\"prompt\":");
    wz_json_string(out, o->prompt->text, strlen(o->prompt->text));
    wz_buf_printf(out, ",\"eval\":%d,\"eval_id\":", o->eval);
    wz_json_string(out, o->held->id, strlen(o->held->id));
    wz_buf_str(out, ",\"eval_prompt\":");
    wz_json_string(out, o->held->text, strlen(o->held->text));
    wz_buf_printf(out, ",\"overlap\":\"%s\",\"jaccard\":", o->exact ? "exact" : "near");
    wz_real_add(out, o->jaccard);
    wz_buf_str(out, "}\n");
}

void wz_job_drop_overlaps(struct wz_job *job)
{
    const struct wz_recipe *recipe = job->recipe;
    const bool keep = !strcmp(recipe->deduplicate, "no"), near = !strcmp(recipe->deduplicate, "near");
    struct wz_overlap *list;

    if (!job->data || !recipe->n_eval) return;
    const int n = wz_overlaps(job->data, (int)recipe->n_data, job->eval, (int)recipe->n_eval, near, &list);
    const struct wz_overlap *o = list;
    for (int s = 0; s < (int)recipe->n_data; s++) {
        struct wz_prompts *set = &job->data[s];
        int kept = 0, exact = 0, had = set->n;
        const struct wz_overlap *first = o;
        for (int i = 0; i < had; i++) {
            const bool drop = o < list + n && o->prompt == &set->list[i];
            if (drop) {
                exact += o->exact;
                if (job->root && !keep) put_line(&job->overlaps, o);
                o++;
            }
            if (!drop || keep) set->list[kept++] = set->list[i];
        }
        set->n = kept;
        if (o == first || !job->root) continue;
        if (keep)
            wz_log("warning: %s: %d of %d prompts are held-out prompts too, and are trained on (deduplicate: exact or "
                   "near leaves them out)",
                   recipe->data[s].path, exact, had);
        else
            wz_log("%s: %d of %d prompts are left out: %d are held-out prompts too, %d nearly (%s/overlaps.jsonl)",
                   recipe->data[s].path, had - kept, had, exact, had - kept - exact, recipe->out);
    }
    free(list);
}
