/* Supervised training: conversations with loss on the assistant's tokens, through the same update as reinforcement
 * learning. */
#include "trainer/trainer.h"

#include <stdlib.h>
#include <string.h>

/* Tokens that rendering messages[0..n) with an open assistant turn yields: where turn n's own tokens begin. */
static int rendered(const struct wz_template *chat, const struct wz_tokenizer *tok, const struct wz_message *messages,
                    int n, bool open, struct wz_ids *out, struct wz_err *err)
{
    out->n = 0;
    return wz_template_apply(chat, tok, messages, n, open, out, err);
}

/* Loss on turn i: what comes after the opening of its turn, up to the end token that closes it. */
static int mark_turn(struct wz_sft_example *x, const struct wz_template *chat, const struct wz_tokenizer *tok,
                     const struct wz_message *messages, int i, struct wz_ids *scratch, struct wz_err *err)
{
    int stops[8], n_stops = wz_template_stops(chat, tok, stops), from;

    if (rendered(chat, tok, messages, i, true, scratch, err) < 0) return -1;
    from = scratch->n;
    if (from > x->n || memcmp(scratch->ids, x->ids, sizeof *x->ids * (size_t)from))
        return wz_fail(err, "the template renders turn %d differently when it is not the last: it can't be trained on",
                       i + 1);
    for (int k = from; k < x->n; k++) {
        x->loss[k] = true;
        for (int s = 0; s < n_stops; s++)
            if (x->ids[k] == stops[s]) return 0;
    }
    return 0;
}

static int parse_messages(json_t *line, const char *system, struct wz_message *messages, int most, struct wz_err *err)
{
    static const char *const roles[] = { [WZ_SYSTEM] = "system", [WZ_USER] = "user", [WZ_ASSISTANT] = "assistant" };
    json_t *list = json_object_get(line, "messages"), *m;
    int n = 0;
    size_t i;

    if (!json_is_array(list) || !json_array_size(list)) return wz_fail(err, "no \"messages\" list");
    if (json_array_size(list) >= (size_t)most)
        return wz_fail(err, "%zu messages, at most %d", json_array_size(list), most - 1);
    json_array_foreach(list, i, m)
    {
        const char *role = json_string_value(json_object_get(m, "role")),
                   *text = json_string_value(json_object_get(m, "content"));
        size_t r = 0;
        while (role && r < WZ_COUNT(roles) && strcmp(role, roles[r])) r++;
        if (!role || r == WZ_COUNT(roles))
            return wz_fail(err, "message %zu: role \"%s\" is not system, user or assistant", i + 1, role ? role : "");
        if (!text) return wz_fail(err, "message %zu: no \"content\" text", i + 1);
        if (!i && *system && r != WZ_SYSTEM) messages[n++] = (struct wz_message){ WZ_SYSTEM, system, NULL, 0 };
        messages[n++] = (struct wz_message){ (enum wz_role)r, text, NULL, 0 };
    }
    return n;
}

static int parse_line(struct wz_sft_example *x, json_t *line, const char *system, const struct wz_template *chat,
                      const struct wz_tokenizer *tok, int context, struct wz_ids *all, struct wz_ids *scratch,
                      struct wz_err *err)
{
    struct wz_message messages[65]; /* 64 of the line, and a system message */
    const char *train = json_string_value(json_object_get(line, "train"));
    int n = parse_messages(line, system, messages, (int)WZ_COUNT(messages), err), last = -1;
    bool only_last = train && !strcmp(train, "last");

    if (n < 0) return -1;
    if (train && !only_last && strcmp(train, "all")) return wz_fail(err, "\"train\" is \"%s\", not all or last", train);
    for (int i = 0; i < n; i++)
        if (messages[i].role == WZ_ASSISTANT) last = i;
    if (last < 0) return wz_fail(err, "no assistant message to learn from");
    if (rendered(chat, tok, messages, n, false, all, err) < 0) return -1;
    if (all->n > context) return wz_fail(err, "%d tokens, the model's context is %d", all->n, context);
    x->n = all->n;
    x->ids = wz_realloc(NULL, sizeof *x->ids * (size_t)x->n);
    memcpy(x->ids, all->ids, sizeof *x->ids * (size_t)x->n);
    x->loss = wz_alloc((size_t)x->n);
    for (int i = only_last ? last : 0; i <= last; i++)
        if (messages[i].role == WZ_ASSISTANT && mark_turn(x, chat, tok, messages, i, scratch, err) < 0) return -1;
    return 0;
}

int wz_sft_load(struct wz_sft_set *set, const char *path, const char *system, const struct wz_template *chat,
                const struct wz_tokenizer *tok, int context, struct wz_err *err)
{
    struct wz_ids all = { 0 }, scratch = { 0 };
    struct wz_map map;
    size_t at = 0;
    int row = 0, cap = 0, rc = -1;

    *set = (struct wz_sft_set){ 0 };
    if (wz_map_open(&map, path, err) < 0) return -1;
    while (at < map.len) {
        const char *text = (const char *)map.bytes + at, *end = memchr(text, '\n', map.len - at);
        size_t len = end ? (size_t)(end - text) : map.len - at;
        char place[512];
        at += len + 1;
        row++;
        if (!len) continue;
        snprintf(place, sizeof place, "%s line %d", path, row);
        json_t *line = wz_json_parse(text, len, place, err);
        if (!line) goto out;
        if (set->n == cap) {
            cap = cap ? 2 * cap : 1024;
            set->list = wz_realloc(set->list, sizeof *set->list * (size_t)cap);
        }
        struct wz_sft_example *x = &set->list[set->n++];
        *x = (struct wz_sft_example){ 0 };
        int bad = parse_line(x, line, system, chat, tok, context, &all, &scratch, err);
        json_decref(line);
        if (bad < 0) {
            wz_fail_in(err, "%s", place);
            goto out;
        }
        if (x->n > set->longest) set->longest = x->n;
        set->tokens += x->n;
    }
    rc = set->n ? 0 : wz_fail(err, "%s: no examples", path);
out:
    wz_map_close(&map);
    wz_ids_finish(&all);
    wz_ids_finish(&scratch);
    if (rc < 0) wz_sft_finish(set);
    return rc;
}

void wz_sft_finish(struct wz_sft_set *set)
{
    for (int i = 0; i < set->n; i++) {
        free(set->list[i].ids);
        free(set->list[i].loss);
    }
    free(set->list);
    *set = (struct wz_sft_set){ 0 };
}

static struct wz_sample sample_of(const struct wz_sft_example *x, int at)
{
    struct wz_sample s = { .example = x, .at = at, .group = at };

    for (int i = x->n - 1; i > 0; i--)
        if (x->loss[i]) s.first = i, s.tokens++;
    return s;
}

void wz_sft_step(struct wz_learner *l, const struct wz_learn *how, struct wz_link *link, const struct wz_group *group,
                 const struct wz_sft_set *set, int batch, int64_t step, int steps, uint64_t seed,
                 struct wz_step_stats *stats)
{
    double begin = wz_now();
    struct wz_sample_batch b = { .samples = wz_arena_alloc(&l->lists, sizeof *b.samples * (size_t)batch),
                                 .batch = batch };

    *stats = (struct wz_step_stats){ 0 };
    for (int k = 0; k < batch; k++) {
        const struct wz_key key = { seed, WZ_RNG_DATA, (uint32_t)step, (uint32_t)k, 0, 0 };
        const struct wz_sft_example *x = &set->list[wz_below(key, (uint32_t)set->n)];
        if (wz_leaf_owner(k, batch, l->opt.leaves * group->n, group->n) == group->me)
            b.samples[b.n++] = sample_of(x, k);
    }
    wz_learner_prepare(l, how, link, group, &b, stats);
    wz_learner_update(l, how, link, group, &b, steps, stats);
    wz_arena_reset(&l->lists);
    stats->seconds = wz_now() - begin;
}
