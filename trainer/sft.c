/* Supervised training: conversations with loss on the assistant's tokens, through the same update as reinforcement
 * learning. */
#include "trainer/trainer.h"

#include <stdlib.h>
#include <string.h>

/* The tokens of messages[0, n); open: and of the beginning of an assistant turn. */
static int rendered(const struct wz_template *chat, const struct wz_tokenizer *tok, const struct wz_message *messages,
                    int n, bool open, struct wz_ids *out, struct wz_err *err)
{
    out->n = 0;
    return wz_template_apply(chat, tok, messages, n, open, out, err);
}

/* Loss on turn i: what comes after the opening of its turn, up to the end token that closes it. */
static int mark_turn(struct wz_sft_example *x, const struct wz_template *chat, const struct wz_tokenizer *tok,
                     const struct wz_ids *stops, const struct wz_message *messages, int i, struct wz_ids *scratch,
                     struct wz_err *err)
{
    int from;

    if (rendered(chat, tok, messages, i, true, scratch, err) < 0) return -1;
    from = scratch->n;
    if (from > x->n || memcmp(scratch->ids, x->ids, sizeof *x->ids * (size_t)from))
        return wz_fail(
            err, "template or tokenizer give other ids before turn %d once it is there: it can't be trained on", i + 1);
    for (int k = from; k < x->n; k++) {
        x->loss[k] = true;
        for (int s = 0; s < stops->n; s++)
            if (x->ids[k] == stops->ids[s]) return 0;
    }
    return 0;
}

/* Takes over the ids of an example, none of which has a loss yet. */
static int take(struct wz_sft_example *x, const struct wz_ids *all, int context, struct wz_err *err)
{
    if (all->n > context) return wz_fail(err, "%d tokens, the model's context is %d", all->n, context);
    x->n = all->n;
    x->ids = wz_realloc(NULL, sizeof *x->ids * (size_t)x->n);
    memcpy(x->ids, all->ids, sizeof *x->ids * (size_t)x->n);
    x->loss = wz_alloc((size_t)x->n);
    return 0;
}

/* The ids of a conversation, and which of them have a loss: those of all assistant messages, or of the last. */
static int fill_example(struct wz_sft_example *x, const struct wz_message *messages, int n, bool only_last,
                        const struct wz_template *chat, const struct wz_tokenizer *tok, const struct wz_ids *stops,
                        int context, struct wz_ids *all, struct wz_ids *scratch, struct wz_err *err)
{
    int last = n - 1;

    while (last >= 0 && messages[last].role != WZ_ASSISTANT) last--;
    if (last < 0) return wz_fail(err, "no assistant message to learn from");
    if (rendered(chat, tok, messages, n, false, all, err) < 0 || take(x, all, context, err) < 0) return -1;
    for (int i = only_last ? last : 0; i <= last; i++)
        if (messages[i].role == WZ_ASSISTANT && mark_turn(x, chat, tok, stops, messages, i, scratch, err) < 0)
            return -1;
    return 0;
}

/* An example that is rendered already: {"ids": [...], "from": the first with a loss}. */
static int parse_ids(struct wz_sft_example *x, const json_t *line, const struct wz_tokenizer *tok, int context,
                     struct wz_ids *all, struct wz_err *err)
{
    const json_t *from = json_object_get(line, "from");

    all->n = 0;
    if (wz_ids_parse(json_object_get(line, "ids"), wz_tokenizer_vocab(tok), all, err) < 0) return -1;
    if (!json_is_integer(from) || json_integer_value(from) < 1 || json_integer_value(from) >= all->n)
        return wz_fail(err, "expected \"from\", the first of \"ids\" with a loss, from 1 to %d", all->n - 1);
    if (take(x, all, context, err) < 0) return -1;
    for (int k = (int)json_integer_value(from); k < x->n; k++) x->loss[k] = true;
    return 0;
}

static int parse_row(struct wz_sft_example *x, const json_t *line, const char *system, const struct wz_template *chat,
                     const struct wz_tokenizer *tok, const struct wz_ids *stops, int context, struct wz_ids *all,
                     struct wz_ids *scratch, struct wz_err *err)
{
    const json_t *list = json_object_get(line, "messages");
    const char *train = json_string_value(json_object_get(line, "train"));
    bool only_last = train && !strcmp(train, "last");
    struct wz_message *messages = NULL;

    if (json_object_get(line, "ids")) return parse_ids(x, line, tok, context, all, err);
    if (!json_array_size(list)) return wz_fail(err, "no \"messages\" list");
    if (train && !only_last && strcmp(train, "all")) return wz_fail(err, "\"train\" is \"%s\", not all or last", train);
    int n = wz_messages_parse(list, system, &messages, err);
    if (n >= 0) n = fill_example(x, messages, n, only_last, chat, tok, stops, context, all, scratch, err);
    free(messages);
    return n;
}

int wz_sft_load(struct wz_sft_set *set, const char *path, const char *system, const struct wz_template *chat,
                const struct wz_tokenizer *tok, const struct wz_ids *stops, int context, struct wz_err *err)
{
    struct wz_ids all = { 0 }, scratch = { 0 };
    struct wz_data_rows rows;
    int cap = 0, rc = -1, more;

    *set = (struct wz_sft_set){ 0 };
    if (wz_data_rows_open(&rows, path, err) < 0) return -1;
    while ((more = wz_data_rows_next(&rows, err)) > 0) {
        if (set->n == cap) {
            cap = cap ? 2 * cap : 1024;
            set->list = wz_realloc(set->list, sizeof *set->list * (size_t)cap);
        }
        struct wz_sft_example *x = &set->list[set->n++];
        *x = (struct wz_sft_example){ 0 };
        if (parse_row(x, rows.row, system, chat, tok, stops, context, &all, &scratch, err) < 0) {
            wz_fail_in(err, "%s: row %d", path, rows.number);
            goto out;
        }
        if (x->n > set->longest) set->longest = x->n;
        set->tokens += x->n;
    }
    rc = more < 0 ? -1 : set->n ? 0 : wz_fail(err, "%s: no examples", path);
out:
    wz_data_rows_close(&rows);
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
