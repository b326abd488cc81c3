/* The episode on the heap, and as bytes. */
#include "proto/proto.h"

#include <stdlib.h>
#include <string.h>

Wz__Episode *wz_episode_new(void)
{
    Wz__Episode *e = wz_realloc(NULL, sizeof *e);

    wz__episode__init(e);
    return e;
}

void wz_episode_free(Wz__Episode *e)
{
    if (e) wz__episode__free_unpacked(e, NULL);
}

Wz__Turn *wz_episode_turn(Wz__Episode *e)
{
    Wz__Turn *t = wz_realloc(NULL, sizeof *t);

    wz__turn__init(t);
    t->about = -1;
    e->turns = wz_realloc(e->turns, sizeof *e->turns * (e->n_turns + 1));
    e->turns[e->n_turns++] = t;
    return t;
}

Wz__Judgement *wz_turn_judgement(Wz__Turn *t)
{
    Wz__Judgement *j = wz_realloc(NULL, sizeof *j);

    wz__judgement__init(j);
    t->judgements = wz_realloc(t->judgements, sizeof *t->judgements * (t->n_judgements + 1));
    t->judgements[t->n_judgements++] = j;
    return j;
}

void wz_turn_unjudge(Wz__Turn *t)
{
    for (size_t i = 0; i < t->n_judgements; i++) wz__judgement__free_unpacked(t->judgements[i], NULL);
    free(t->judgements);
    t->judgements = NULL;
    t->n_judgements = 0;
}

bool wz_turn_is(const Wz__Turn *t, const char *role) { return !strcmp(t->role, role); }

int wz_turn_last(const Wz__Episode *e, const char *role)
{
    int i = (int)e->n_turns - 1;

    while (i >= 0 && !wz_turn_is(e->turns[i], role)) i--;
    return i;
}

const char *wz_turn_answer(const Wz__Turn *t)
{
    return t->text + (t->thought < strlen(t->text) ? t->thought : strlen(t->text));
}

const char *wz_turn_finish(const Wz__Turn *t)
{
    static const char *const names[] = { [WZ__FINISH_REASON__STOP] = "stop",
                                         [WZ__FINISH_REASON__LENGTH] = "length",
                                         [WZ__FINISH_REASON__CONTEXT] = "context" };

    return (size_t)t->finish_reason < WZ_COUNT(names) && names[t->finish_reason] ? names[t->finish_reason] : "";
}

int wz_episode_cuts(const Wz__Episode *e, int agent)
{
    int n = e->cut[0] && (agent < 0 || e->cut_agent == (uint32_t)agent);

    for (size_t i = 0; i < e->n_turns; i++)
        n += (agent < 0 || e->turns[i]->agent == (uint32_t)agent) &&
             e->turns[i]->finish_reason == WZ__FINISH_REASON__CONTEXT;
    return n;
}

void wz_set_string(char **field, const char *s, size_t n)
{
    struct wz_buf clean = { 0 };

    for (size_t i = 0; i < n;) {
        size_t ok = wz_utf8_valid(s + i, strnlen(s + i, n - i)); /* protobuf strings hold no NUL in C */
        wz_buf_add(&clean, s + i, ok);
        i += ok;
        if (i < n) {
            wz_buf_str(&clean, "\xef\xbf\xbd");
            i++;
        }
    }
    if (*field != protobuf_c_empty_string) free(*field);
    *field = clean.data ? clean.data : wz_strdup("");
}

void wz_turn_reserve(Wz__Turn *t, size_t n)
{
    t->ids = wz_realloc(t->ids, sizeof *t->ids * n);
    t->logp = wz_realloc(t->logp, sizeof *t->logp * n);
}

void wz_turn_add(Wz__Turn *t, int32_t id, float logp)
{
    t->ids[t->n_ids++] = id;
    t->logp[t->n_logp++] = logp;
}

static void put_u32(struct wz_buf *out, uint32_t v)
{
    const uint8_t b[4] = { (uint8_t)v, (uint8_t)(v >> 8), (uint8_t)(v >> 16), (uint8_t)(v >> 24) };

    wz_buf_add(out, b, 4);
}

static uint32_t get_u32(const uint8_t *b)
{
    return b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

void wz_episodes_pack(Wz__Episode *const *episodes, int n, struct wz_buf *out)
{
    uint8_t *scratch = NULL;

    put_u32(out, (uint32_t)n);
    for (int i = 0; i < n; i++) {
        size_t size = wz__episode__get_packed_size(episodes[i]);
        scratch = wz_realloc(scratch, size);
        wz__episode__pack(episodes[i], scratch);
        put_u32(out, (uint32_t)size);
        wz_buf_add(out, scratch, size);
    }
    free(scratch);
}

int wz_episodes_unpack(const void *bytes, size_t len, Wz__Episode ***out, int *n, struct wz_err *err)
{
    const uint8_t *b = bytes;
    size_t at = 4;
    uint32_t count;

    *out = NULL;
    *n = 0;
    if (len < 4) return wz_fail(err, "episodes: %zu bytes, a count needs 4", len);
    count = get_u32(b);
    if (count > (len - 4) / 4) return wz_fail(err, "episodes: a count of %u in %zu bytes", count, len);
    *out = wz_alloc(sizeof **out * (count ? count : 1));
    for (uint32_t i = 0; i < count; i++) {
        uint32_t size = len - at < 4 ? 0 : get_u32(b + at);
        Wz__Episode *e = len - at < 4 || len - at - 4 < size ? NULL : wz__episode__unpack(NULL, size, b + at + 4);
        if (!e) {
            for (int k = 0; k < *n; k++) wz_episode_free((*out)[k]);
            free(*out);
            *out = NULL;
            *n = 0;
            return wz_fail(err, "episodes: message %u of %u at byte %zu is broken", i, count, at);
        }
        (*out)[(*n)++] = e;
        at += 4 + size;
    }
    return 0;
}

void wz_event_pack(const Wz__Event *event, struct wz_buf *out)
{
    size_t n = wz__event__get_packed_size(event);
    uint8_t *bytes = wz_realloc(NULL, n);

    wz__event__pack(event, bytes);
    wz_buf_add(out, bytes, n);
    free(bytes);
}
