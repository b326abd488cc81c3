/* The supervised warm start: conversations, loss on the assistant's tokens, the same optimizer and tree as the RL
 * step. */
#include "trainer/trainer.h"

#include <math.h>
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

static bool pack_example(struct wz_pack *p, const struct wz_sft_example *x)
{
    if (!wz_pack_begin(p, x->n - 1)) return false;
    for (int i = 0; i + 1 < x->n; i++) wz_pack_token(p, x->ids[i], x->loss[i + 1] ? x->ids[i + 1] : -1);
    return true;
}

double wz_sft_step(struct wz_learner *l, const struct wz_adamw *how, struct wz_link *link, const struct wz_group *group,
                   const struct wz_sft_set *set, int batch, int step, int steps, uint64_t seed, double *grad_norm)
{
    const struct wz_sft_example **examples = wz_arena_alloc(&l->lists, sizeof *examples * (size_t)batch);
    int leaves = l->opt.leaves * group->n, i = 0;
    double mine[1] = { 0 }, *all = wz_arena_alloc(&l->lists, sizeof *all * (size_t)group->n), tokens = 0, nll = 0;

    for (int k = 0; k < batch; k++) {
        const struct wz_key key = { seed, WZ_RNG_DATA, (uint32_t)step, (uint32_t)k, 0, 0 };
        examples[k] = &set->list[wz_below(key, (uint32_t)set->n)];
        for (int t = 1; t < examples[k]->n; t++) tokens += examples[k]->loss[t];
    }
    while (i < batch && wz_leaf_owner(i, batch, leaves, group->n) != group->me) i++;
    for (int leaf = group->me * l->opt.leaves; leaf < (group->me + 1) * l->opt.leaves; leaf++) {
        float *grad = wz_optimizer_leaf(&l->opt);
        int to = i;
        while (to < batch && (int)((int64_t)to * leaves / batch) == leaf) to++;
        while (i < to) {
            wz_pack_clear(&l->pack);
            while (i < to && pack_example(&l->pack, examples[i])) i++;
            wz_pack_forward(&l->pack, 1);
            for (int r = 0; r < l->pack.n_rows; r++) {
                bool loss = l->pack.targets[r] >= 0;
                l->pack.d_logp[r] = loss ? (float)(-1 / tokens) : 0;
                if (loss) mine[0] -= (double)l->pack.logp[r];
            }
            wz_pack_backward(&l->pack, 1, grad);
        }
        wz_pack_backward_end(&l->pack, grad);
        wz_optimizer_leaf_done(&l->opt);
    }
    *grad_norm = wz_optimizer_step(&l->opt, link, group, how, steps);
    wz_all_gather(link, group, mine, 1, all);
    for (int r = 0; r < group->n; r++) nll += all[r];
    wz_arena_reset(&l->lists);
    return nll / tokens;
}
