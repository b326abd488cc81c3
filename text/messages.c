/* What JSON says to a model: a list of messages, or of token ids. */
#include "text/text.h"

#include <stdlib.h>
#include <string.h>

#include "text/tokenizer_inside.h"

const char *const wz_roles[3] = { [WZ_SYSTEM] = "system", [WZ_USER] = "user", [WZ_ASSISTANT] = "assistant" };

static bool is_nothing(const json_t *json)
{
    return json_is_null(json) || (json_is_string(json) && !json_string_length(json)) ||
           (json_is_array(json) && !json_array_size(json)) || (json_is_object(json) && !json_object_size(json));
}

static int parse_message(const json_t *json, struct wz_message *message, struct wz_err *err)
{
    const char *role = json_string_value(json_object_get(json, "role"));
    const json_t *value;
    const char *key;
    size_t r = 0;

    json_object_foreach((json_t *)(uintptr_t)json, key, value)
    {
        if (!strcmp(key, "role") || !strcmp(key, "content") || is_nothing(value)) continue;
        return wz_fail(err, "\"%.60s\" is not read: expected \"role\" and \"content\" only, or null", key);
    }
    while (role && r < WZ_COUNT(wz_roles) && strcmp(role, wz_roles[r])) r++;
    if (!role || r == WZ_COUNT(wz_roles))
        return wz_fail(err, "role \"%.40s\" is not system, user or assistant", role ? role : "");
    *message = (struct wz_message){ .role = (enum wz_role)r };
    message->text = wz_json_text(json_object_get(json, "content"));
    return message->text ? 0 : wz_fail(err, "no \"content\" text");
}

int wz_messages_parse(const json_t *list, const char *system, struct wz_message **out, struct wz_err *err)
{
    struct wz_message *messages = wz_alloc(wz_mul(json_array_size(list) + 1, sizeof *messages));
    const json_t *item;
    int n = 0;
    size_t i;

    if (system && *system) messages[n++] = (struct wz_message){ .role = WZ_SYSTEM, .text = system };
    json_array_foreach(list, i, item)
    {
        if (parse_message(item, &messages[n], err) < 0) {
            free(messages);
            return wz_fail_in(err, "message %zu", i + 1);
        }
        if (i == 0 && messages[n].role == WZ_SYSTEM && n) messages[0] = messages[n]; /* it has its own */
        else n++;
    }
    *out = messages;
    return n;
}

int wz_messages_encode(const struct wz_tokenizer *tok, const char *template, const json_t *list, bool generate,
                       struct wz_ids *ids, struct wz_err *err)
{
    const struct wz_template *t = wz_template_find(template, tok, err);
    struct wz_message *messages = NULL;

    int n = t ? wz_messages_parse(list, NULL, &messages, err) : -1;
    if (n >= 0) n = wz_template_apply(t, tok, messages, n, generate, ids, err);
    free(messages);
    return n;
}

int wz_ids_parse(const json_t *list, int vocab, struct wz_ids *ids, struct wz_err *err)
{
    const json_t *item;
    size_t i;

    if (!json_is_array(list)) return wz_fail(err, "expected {\"ids\": [...]}");
    json_array_foreach(list, i, item)
    {
        json_int_t id = json_integer_value(item);
        if (!json_is_integer(item) || id < 0 || id >= vocab)
            return wz_fail(err, "ids[%zu] is not a token id from 0 to %d", i, vocab - 1);
        wz_ids_add(ids, (int)id);
    }
    return 0;
}
