/* The feedback agent's output, read strictly: the whole text is one JSON object with exactly the paper's four keys in
 * its order. Real booleans, strings where strings belong, nothing before or after but white space. A text that is not
 * valid is data, not an error: it gets no format reward. */
#include "rollout/rollout.h"

#include <stdlib.h>
#include <string.h>

bool wz_feedback_parse(const char *text, size_t n, struct wz_feedback *out)
{
    static const struct {
        const char *name;
        bool flag;
    } keys[] = {
        { "reasoning", false },
        { "unsafe", true },
        { "overrefuse", true },
        { "feedback", false },
    };
    json_t *j = wz_json_parse(text, n, NULL, NULL), *value;
    const char *key;
    size_t i = 0;

    *out = (struct wz_feedback){ 0 };
    if (!j) out->problem = "not one valid JSON value";
    else if (!json_is_object(j)) out->problem = "not a JSON object";
    else if (json_object_size(j) != WZ_COUNT(keys)) out->problem = "not exactly four keys";
    else json_object_foreach(j, key, value)
        { /* jansson keeps the order of the text */
            if (strcmp(key, keys[i].name)) out->problem = "a wrong key, or keys out of order";
            else if (keys[i].flag ? !json_is_boolean(value) : !json_is_string(value))
                out->problem = "a value of the wrong type";
            if (out->problem) break;
            i++;
        }
    if (!out->problem) {
        out->unsafe = json_is_true(json_object_get(j, "unsafe"));
        out->overrefuse = json_is_true(json_object_get(j, "overrefuse"));
        out->text = wz_strdup(wz_json_text(json_object_get(j, "feedback")));
    }
    json_decref(j);
    return !out->problem;
}
