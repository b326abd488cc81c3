/* Transcripts side by side: the same prompt before and after, sorted into four outcomes by its final replies.
 *
 *                       after: fine      after: unsafe or overrefusing
 *     before: wrong     fixed            still wrong
 *     before: fine      right both times newly wrong
 *
 * What matters comes first: outcomes in the order of the table below, of each those prompts whose first reply after
 * training was wrong and the final one is not, or the other way round (feedback changed it); and of the kinds those
 * with the most such prompts. A turn's "role" is the role of its agent. A prompt whose episode was discarded, as when
 * the judge failed, has no outcome: such prompts are counted and left out. */
#include "proto/proto.h"
#include "report/inside.h"

#include <stdlib.h>
#include <string.h>

enum fate { NEWLY, STILL, FIXED, RIGHT, N_FATES };
static const struct {
    const char *class, *title;
    int most;
} fates[N_FATES] = {
    [NEWLY] = { "newly", "newly wrong", 3 },
    [STILL] = { "still", "still wrong", 3 },
    [FIXED] = { "fixed", "fixed", 3 },
    [RIGHT] = { "right", "right both times", 1 },
};
enum { LONGEST = 6000 }; /* bytes of a text shown */

struct kind {
    const char *name;
    int seen[N_FATES], shown[N_FATES], changed, matter; /* changed: by feedback; matter: not right both times, or so */
};

static const char *text_of(const json_t *object, const char *key)
{
    const char *s = wz_json_text(json_object_get(object, key));

    return s ? s : "";
}

static bool flag(const json_t *turn, const char *key) { return json_is_true(json_object_get(turn, key)); }

static bool is_reply(const json_t *turn) { return !strcmp(text_of(turn, "role"), WZ_CONVERSATION); }

/* The first or last reply of a transcript; NULL when it has none. */
static const json_t *reply_of(const json_t *line, bool first)
{
    const json_t *turn, *found = NULL;
    size_t i;

    json_array_foreach(json_object_get(line, "turns"), i, turn) if (is_reply(turn) && !(first && found)) found = turn;
    return found;
}

static bool is_wrong(const json_t *reply) { return flag(reply, "unsafe") || flag(reply, "overrefuse"); }

static bool is_changed(const json_t *line) { return is_wrong(reply_of(line, true)) != is_wrong(reply_of(line, false)); }

static bool judged(const json_t *before, const json_t *after)
{
    return !*text_of(before, "discard") && !*text_of(after, "discard");
}

static enum fate fate_of(const json_t *before, const json_t *after)
{
    bool was = is_wrong(reply_of(before, false)), is = is_wrong(reply_of(after, false));

    return was ? is ? STILL : FIXED : is ? NEWLY : RIGHT;
}

static void write_text(struct wz_buf *out, const char *class, const char *s)
{
    size_t n = strlen(s), shown = n > LONGEST ? LONGEST - wz_utf8_partial(s, LONGEST) : n;
    char *part = wz_strdup(s);

    part[shown] = 0;
    wz_buf_printf(out, "<div class=\"%s\">", class);
    if (*part) wz_html_add(out, part);
    else wz_buf_str(out, "<em>(empty)</em>");
    if (shown < n) wz_buf_printf(out, "<em> \xe2\x80\xa6 and %zu bytes more</em>", n - shown);
    wz_buf_str(out, "</div>");
    free(part);
}

static void write_chip(struct wz_buf *out, const char *class, const char *text)
{
    wz_buf_printf(out, "<span class=\"chip %s\">%s</span>", class, text);
}

static void write_turn(struct wz_buf *out, const json_t *turn)
{
    const bool feedback = !is_reply(turn), attack = !strcmp(text_of(turn, "role"), WZ_ATTACKER);
    const json_t *reward = json_object_get(turn, "reward");
    bool unsafe = flag(turn, "unsafe"), overrefuse = flag(turn, "overrefuse"), valid = flag(turn, "valid");
    const char *finish = text_of(turn, "finish_reason");

    wz_buf_printf(out, "<div class=\"turn %s\"><div class=\"who\"><b>", feedback ? "feedback" : "answer");
    wz_html_wrap(out, "", text_of(turn, "agent"), "</b>");
    if (attack) write_chip(out, "quiet", valid ? "rewrites the prompt" : "not used");
    else if (feedback && !valid) write_chip(out, "bad", "not valid JSON");
    else if (unsafe || overrefuse) {
        if (unsafe) write_chip(out, feedback ? "flag" : "bad", feedback ? "flags: unsafe" : "unsafe");
        if (overrefuse) write_chip(out, feedback ? "flag" : "bad", feedback ? "flags: overrefusal" : "overrefuses");
    } else {
        write_chip(out, feedback ? "quiet" : "good", feedback ? "no objection" : "fine");
    }
    if (flag(turn, "partial")) write_chip(out, "quiet", "declines partly");
    if (!strcmp(finish, "length")) write_chip(out, "quiet", "cut by max_tokens");
    if (!strcmp(finish, "context")) write_chip(out, "quiet", "cut by the context window");
    if (json_is_number(reward))
        wz_buf_printf(out, "<span class=\"reward\">reward %.3g</span>", json_number_value(reward));
    wz_buf_str(out, "</div>");
    if (feedback && valid && !attack) {
        if (*text_of(turn, "feedback")) write_text(out, "text", text_of(turn, "feedback"));
        wz_buf_str(out, "<details><summary>whole output</summary>");
        write_text(out, "text raw", text_of(turn, "text"));
        wz_buf_str(out, "</details>");
    } else {
        write_text(out, feedback ? "text raw" : "text", text_of(turn, "text"));
    }
    wz_buf_str(out, "</div>");
}

static void write_side(struct wz_buf *out, const char *phase, const json_t *line)
{
    size_t i;
    json_t *turn;

    wz_html_wrap(out, "<div class=\"side\"><h4>", phase, "</h4>");
    json_array_foreach(json_object_get(line, "turns"), i, turn) write_turn(out, turn);
    if (*text_of(line, "cut"))
        wz_html_wrap(out, "<p class=\"missing\">The game ended here: ", text_of(line, "cut"), "</p>");
    wz_buf_str(out, "</div>");
}

static void write_pair(struct wz_buf *out, const struct wz_recipe *recipe, enum fate fate, const char *first,
                       const json_t *before, const char *last, const json_t *after)
{
    wz_buf_printf(out, "<article class=\"pair-card %s\"><header><span class=\"fate\">%s</span>", fates[fate].class,
                  fates[fate].title);
    write_chip(out, "quiet", flag(before, "harmful") ? "harmful prompt" : "benign prompt");
    if (is_changed(after)) write_chip(out, "flag", "changed by feedback");
    wz_buf_str(out, "<span class=\"kind\">");
    wz_kind_write(out, recipe, text_of(before, "kind"));
    wz_buf_str(out, "</span></header>");
    write_text(out, "prompt", text_of(before, "prompt"));
    wz_buf_str(out, "<div class=\"sides\">");
    write_side(out, first, before);
    write_side(out, last, after);
    wz_buf_str(out, "</div></article>");
}

/* ---- reading ---------------------------------------------------------------------------------------------- */

/* Lines by phase, in the order the phases appear: {"before": {"kind\nid": line ...}, ...}. */
static json_t *read_lines(const char *path, int64_t *bad, struct wz_err *err)
{
    struct wz_map map;

    *bad = 0;
    if (wz_map_open(&map, path, err) < 0) return NULL;
    json_t *phases = json_object();
    struct wz_lines l = wz_lines_begin(map.bytes, map.len);
    while (wz_lines_next(&l)) {
        json_t *line = wz_json_parse(l.line, l.n, path, NULL);
        const char *phase = text_of(line, "phase");
        if (!*phase || !reply_of(line, false)) {
            ++*bad;
        } else {
            json_t *set = json_object_get(phases, phase);
            char *key = wz_path("%s\n%s\n%s", text_of(line, "kind"), text_of(line, "id"), text_of(line, "prompt"));
            if (!set) json_object_set_new(phases, phase, set = json_object());
            json_object_set(set, key, line);
            free(key);
        }
        json_decref(line);
    }
    wz_map_close(&map);
    return phases;
}

static struct kind *kind_of(struct kind **kinds, int *n, const char *name)
{
    for (int i = 0; i < *n; i++)
        if (!strcmp((*kinds)[i].name, name)) return &(*kinds)[i];
    *kinds = wz_realloc(*kinds, wz_mul((size_t)*n + 1, sizeof **kinds));
    (*kinds)[*n] = (struct kind){ .name = name };
    return &(*kinds)[(*n)++];
}

static int by_what_matters(const void *a, const void *b)
{
    const struct kind *x = a, *y = b;

    return x->matter != y->matter ? y->matter - x->matter : strcmp(x->name, y->name);
}

static void write_counts(struct wz_buf *out, const struct wz_recipe *recipe, const char *last, const struct kind *kinds,
                         int n)
{
    wz_buf_str(out, "<table class=\"wide five\"><thead><tr><th>kind of prompt</th>");
    for (int f = 0; f < N_FATES; f++) wz_buf_printf(out, "<th class=\"num\">%s</th>", fates[f].title);
    wz_html_wrap(out, "<th class=\"num\">changed by feedback, ", last, "</th></tr></thead><tbody>");
    for (int i = 0; i < n; i++) {
        wz_buf_str(out, "<tr><td>");
        wz_kind_write(out, recipe, kinds[i].name);
        wz_buf_str(out, "</td>");
        for (int f = 0; f < N_FATES; f++) wz_buf_printf(out, "<td class=\"num\">%d</td>", kinds[i].seen[f]);
        wz_buf_printf(out, "<td class=\"num\">%d</td></tr>", kinds[i].changed);
    }
    wz_buf_str(out, "</tbody></table>");
}

int wz_transcripts_write(struct wz_buf *out, const char *path, const struct wz_recipe *recipe, int index,
                         struct wz_err *err)
{
    int64_t bad;
    json_t *phases = read_lines(path, &bad, err), *first = NULL, *last = NULL, *line, *set;
    const char *name, *first_name = NULL, *last_name = NULL, *key;
    struct kind *kinds = NULL;
    int n_kinds = 0, unjudged = 0;

    if (!phases) return -1;
    json_object_foreach(phases, name, set)
    {
        if (!first) first = set, first_name = name;
        else last = set, last_name = name;
    }
    if (json_object_get(phases, "before")) first = json_object_get(phases, first_name = "before");
    if (json_object_get(phases, "after")) last = json_object_get(phases, last_name = "after");
    if (bad)
        wz_buf_printf(out, "<p class=\"missing\">%lld line%s of transcripts.jsonl could not be read.</p>",
                      (long long)bad, bad > 1 ? "s" : "");
    if (!first || !last || first == last) {
        wz_buf_str(out, "<p class=\"missing\">transcripts.jsonl holds only one phase: nothing to compare.</p>");
        goto out;
    }
    json_object_foreach(first, key, line)
    {
        const json_t *after = json_object_get(last, key);
        if (!after) continue;
        if (!judged(line, after)) {
            unjudged++;
            continue;
        }
        struct kind *kind = kind_of(&kinds, &n_kinds, text_of(line, "kind"));
        enum fate fate = fate_of(line, after);
        kind->seen[fate]++;
        kind->changed += is_changed(after);
        kind->matter += fate != RIGHT || is_changed(after);
    }
    if (unjudged)
        wz_buf_printf(out, "<p class=\"missing\">%d prompt%s left out: the judge failed on one of the two replies.</p>",
                      unjudged, unjudged > 1 ? "s are" : " is");
    if (!n_kinds) {
        wz_buf_str(out, "<p class=\"missing\">No prompt was judged in both phases: there is nothing to compare.</p>");
        goto out;
    }
    qsort(kinds, (size_t)n_kinds, sizeof *kinds, by_what_matters);
    write_counts(out, recipe, last_name, kinds, n_kinds);
    wz_buf_str(out, "<div class=\"filter\">");
    for (int f = -1; f < N_FATES; f++) {
        const char *class = f < 0 ? "all" : fates[f].class, *title = f < 0 ? "all examples" : fates[f].title;
        wz_buf_printf(out, "<input type=\"radio\" name=\"fate%d\" id=\"f%d-%s\" class=\"f-%s\"%s>", index, index, class,
                      class, f < 0 ? " checked" : "");
        wz_buf_printf(out, "<label for=\"f%d-%s\">%s</label>", index, class, title);
    }
    for (int k = 0; k < n_kinds; k++)
        for (int f = 0; f < 2 * N_FATES; f++) json_object_foreach(first, key, line)
            {
                const json_t *after = json_object_get(last, key);
                const enum fate fate = (enum fate)(f / 2);
                if (kinds[k].shown[fate] >= fates[fate].most) break;
                if (!after || !judged(line, after) || strcmp(text_of(line, "kind"), kinds[k].name)) continue;
                if (fate_of(line, after) != fate || is_changed(after) != (f % 2 == 0)) continue;
                kinds[k].shown[fate]++;
                write_pair(out, recipe, fate, first_name, line, last_name, after);
            }
    wz_buf_str(out, "</div>");
out:
    free(kinds);
    json_decref(phases);
    return 0;
}
