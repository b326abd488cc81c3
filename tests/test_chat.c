/* Guarantee: a conversation becomes the ids that the model's own chat template would give; only the template
 * writes special tokens, and ids that a model wrote go in as they are. */
#include "tokenizer_help.h"

static const struct wz_template *found(const char *name, const struct wz_tokenizer *tok)
{
    struct wz_err err = { "" };
    const struct wz_template *t = wz_template_find(name, tok, &err);

    if (!t) fail_msg("%s", err.text);
    return t;
}

/* Wanted ids: a number is an id, in a string every byte is its own id ('\0' ends the list). */
static void want_text(struct wz_ids *ids, const char *text)
{
    for (; *text; text++) wz_ids_add(ids, (unsigned char)*text);
}

static void applied(const struct wz_tokenizer *tok, const char *name, const struct wz_message *messages, int n,
                    bool generate, struct wz_ids *want)
{
    struct wz_ids got = { 0 };
    struct wz_err err = { "" };

    if (wz_template_apply(found(name, tok), tok, messages, n, generate, &got, &err) < 0)
        fail_msg("%s: %s", name, err.text);
    check_ids(name, &got, want->ids, want->n);
    wz_ids_finish(&got);
    wz_ids_finish(want);
}

static void sandbox_by_hand(void **state)
{
    struct wz_tokenizer *tok = tiny_load(false);
    const int wrote[] = { T_HELLO, 'x' };
    const struct wz_message messages[] = {
        { .role = WZ_SYSTEM, .text = "be" },
        { .role = WZ_USER, .text = " <end>" },
        { .role = WZ_ASSISTANT, .ids = wrote, .n_ids = 2 },
        { .role = WZ_USER, .text = "" },
        { .role = WZ_ASSISTANT, .text = "y" },
    };
    struct wz_ids want = { 0 };

    wz_ids_add(&want, T_SYS);
    want_text(&want, "be");
    wz_ids_add(&want, T_USER);
    want_text(&want, " <end>"); /* text, not the token */
    wz_ids_append(&want, (const int[]){ T_END, T_ASST, T_HELLO, 'x', T_END, T_USER, T_END, T_ASST, 'y', T_END, T_ASST },
                  11);
    applied(tok, "sandbox", messages, 5, true, &want);

    wz_ids_add(&want, T_ASST); /* ids are inserted unchanged, whatever they are */
    wz_ids_append(&want, (const int[]){ T_HELLO, 'x', T_END, T_ASST, T_END, T_END }, 6);
    const struct wz_message two[] = { { .role = WZ_ASSISTANT, .ids = wrote, .n_ids = 2 },
                                      { .role = WZ_ASSISTANT, .ids = (const int[]){ T_END }, .n_ids = 1 } };
    applied(tok, "sandbox", two, 2, false, &want);
    wz_tokenizer_destroy(tok);
}

static void llama3_by_hand(void **state)
{
    struct wz_tokenizer *tok = tiny_load(false);
    const struct wz_message messages[] = { { .role = WZ_USER, .text = "\xc2\xa0\n hello world \t" } };
    struct wz_ids want = { 0 };

    wz_ids_append(&want, (const int[]){ T_BOS, T_HEAD }, 2);
    want_text(&want, "user");
    wz_ids_append(&want, (const int[]){ T_UNHEAD, '\n', '\n', T_HELLO, T_WORLD, T_EOT, T_HEAD }, 7);
    want_text(&want, "assistant");
    wz_ids_append(&want, (const int[]){ T_UNHEAD, T_LF2 }, 2);
    applied(tok, "llama3", messages, 1, true, &want);
    wz_tokenizer_destroy(tok);
}

static void chatml_by_hand(void **state)
{
    struct wz_tokenizer *tok = tiny_load(false);
    const struct wz_message messages[] = { { .role = WZ_USER, .text = " hello" } };
    struct wz_ids want = { 0 }, plain = { 0 }, with = { 0 }, system = { 0 };
    struct wz_err err;

    wz_ids_add(&want, T_IM_START);
    want_text(&want, "user\n ");
    wz_ids_append(&want, (const int[]){ T_HELLO, T_IM_END, '\n', T_IM_START }, 4);
    want_text(&want, "assistant\n");
    applied(tok, "chatml", messages, 1, true, &want);

    /* smollm2 is chatml with a system turn in front. */
    const struct wz_message both[] = {
        { .role = WZ_SYSTEM, .text = "You are a helpful AI assistant named SmolLM, trained by Hugging Face" },
        messages[0]
    };
    assert_int_equal(wz_template_apply(found("smollm2", tok), tok, messages, 1, true, &plain, &err), 0);
    assert_int_equal(wz_template_apply(found("smollm2", tok), tok, both, 2, true, &with, &err), 0);
    assert_int_equal(wz_template_apply(found("chatml", tok), tok, both, 2, true, &system, &err), 0);
    check_ids("smollm2 without a system turn", &plain, system.ids, system.n);
    check_ids("smollm2 with a system turn", &with, system.ids, system.n);
    wz_ids_finish(&plain);
    wz_ids_finish(&with);
    wz_ids_finish(&system);
    wz_tokenizer_destroy(tok);
}

/* A rendering as text, special tokens written out. */
static void rendered_as_text(void **state)
{
    const struct wz_message talk[] = { { .role = WZ_SYSTEM, .text = " S " },
                                       { .role = WZ_USER, .text = " u\n" },
                                       { .role = WZ_ASSISTANT, .text = " a " },
                                       { .role = WZ_USER, .text = " v " } };
    const struct wz_message wrote[] = { { .role = WZ_USER, .text = "u" },
                                        { .role = WZ_ASSISTANT, .ids = (const int[]){ ' ', 'a' }, .n_ids = 2 } };
    const struct wz_message blank[] = { { .role = WZ_SYSTEM, .text = "S" }, { .role = WZ_USER, .text = " \n " } };
    const struct wz_message shown[] = { { .role = WZ_SYSTEM, .text = " S" },
                                        { .role = WZ_USER, .text = " u ", .ids = (const int[]){ ' ' }, .n_ids = 1 } };
#define B          "<|begin_of_text|>"
#define E          "<|end_of_text|>"
#define HEAD(role) "<|start_header_id|>" role "<|end_header_id|>\n\n"
    const struct {
        const char *name;
        const struct wz_message *messages;
        int n;
        bool generate;
        const char *want;
    } rows[] = {
        { "llama2", talk, 4, true, B "[INST] <<SYS>>\n S \n<</SYS>>\n\n u [/INST] a " E B "[INST] v [/INST]" },
        { "llama2", talk + 1, 2, false, B "[INST] u [/INST] a " E },
        { "llama2", wrote, 2, false, B "[INST] u [/INST] a " E }, /* one blank before it, the sampled one */
        { "llama2", blank, 2, true, B "[INST] <<SYS>>\nS\n<</SYS>> [/INST]" },
        { "llama2", blank + 1, 1, true, B "[INST]  [/INST]" },
        { "llama2", shown, 2, true, B "[INST] <<SYS>>\n S\n<</SYS>>\n\n u   [/INST]" },
        { "mistral", talk + 1, 3, true, B "[INST]  u\n [/INST] a " E "[INST]  v  [/INST]" },
        { "mistral", wrote, 2, true, B "[INST] u [/INST] a" E },
        { "llama3", talk, 2, true, B HEAD("system") "S<|eot_id|>" HEAD("user") "u<|eot_id|>" HEAD("assistant") },
        { "llama3.1", talk, 2, true,
          B HEAD("system") "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nS<|eot_id|>" HEAD(
              "user") "u<|eot_id|>" HEAD("assistant") },
        { "llama3.1", talk + 1, 1, false,
          B HEAD("system") "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>" HEAD(
              "user") "u<|eot_id|>" },
        { "smollm2", talk, 2, true,
          "<|im_start|>system\n S <|im_end|>\n<|im_start|>user\n u\n<|im_end|>\n<|im_start|>assistant\n" },
        { "sandbox", talk, 3, true, "<sys> S <user> u\n<end><asst> a <end><asst>" },
        { "smollm2", talk, 0, true, "<|im_start|>assistant\n" },
        { "llama3", shown + 1, 1, false, B HEAD("user") "u  <|eot_id|>" }, /* what stands before ids keeps its end */
    };
    struct wz_tokenizer *tok = tiny_load(true);

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        struct wz_ids ids = { 0 };
        struct wz_buf out = { 0 };
        struct wz_err err = { "" };
        if (wz_template_apply(found(rows[i].name, tok), tok, rows[i].messages, rows[i].n, rows[i].generate, &ids,
                              &err) < 0)
            fail_msg("%s", err.text);
        wz_decode(tok, ids.ids, ids.n, true, &out);
        assert_string_equal(out.data, rows[i].want);
        wz_ids_finish(&ids);
        wz_buf_finish(&out);
    }
    wz_tokenizer_destroy(tok);
}

static void stops_are_end_tokens(void **state)
{
    static const struct {
        const char *name;
        int n, stops[2];
    } rows[] = { { "llama3", 2, { T_EOT, T_EOS } },
                 { "chatml", 1, { T_IM_END } },
                 { "sandbox", 1, { T_END } },
                 { "llama2", 1, { T_EOS } },
                 { "mistral", 1, { T_EOS } } };
    struct wz_tokenizer *tok = tiny_load(false);
    int stops[8];

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        assert_int_equal(wz_template_stops(found(rows[i].name, tok), tok, stops), rows[i].n);
        assert_memory_equal(stops, rows[i].stops, (size_t)rows[i].n * sizeof *stops);
        assert_string_equal(wz_template_name(found(rows[i].name, tok)), rows[i].name);
    }
    wz_tokenizer_destroy(tok);
}

static void what_does_not_fit_is_an_error(void **state)
{
    static const char bare[] = "{\"model\": {\"vocab\": {\"a\": 0, \"<sys>\": 1}, \"merges\": []}}";
    struct wz_tokenizer *tok = tiny_load(false);
    const struct wz_message twice[] = { { .role = WZ_USER, .text = "a" }, { .role = WZ_USER, .text = "b" } },
                            bad[] = { { .role = WZ_USER, .text = "a\x80" } },
                            system[] = { { .role = WZ_SYSTEM, .text = "a" }, twice[0] };
    struct wz_ids ids = { 0 };
    struct wz_err err;

    wz_ids_add(&ids, 5);
    assert_null(wz_template_find("lama3", tok, &err));
    assert_non_null(strstr(err.text, "lama3"));
    assert_non_null(strstr(err.text, "jinja, llama3, llama3.1, chatml"));
    assert_int_equal(wz_template_apply(found("llama2", tok), tok, twice, 2, true, &ids, &err), -1);
    assert_non_null(strstr(err.text, "message 2"));
    assert_int_equal(wz_template_apply(found("mistral", tok), tok, system, 2, true, &ids, &err), -1);
    assert_non_null(strstr(err.text, "system"));
    assert_int_equal(wz_template_apply(found("llama2", tok), tok, system, 1, true, &ids, &err), -1);
    assert_int_equal(wz_template_apply(found("sandbox", tok), tok, bad, 1, true, &ids, &err), -1);
    assert_non_null(strstr(err.text, "byte 1"));
    assert_int_equal(ids.n, 1); /* nothing of a failed rendering stays */
    wz_tokenizer_destroy(tok);

    tok = load_text("bare.json", bare, sizeof bare - 1, &err);
    assert_non_null(tok);
    assert_null(wz_template_find("sandbox", tok, &err));
    assert_non_null(strstr(err.text, "<user>"));
    assert_null(wz_template_find("llama2", tok, &err));
    assert_null(wz_template_find(NULL, tok, &err));
    assert_non_null(strstr(err.text, "has no chat template"));
    wz_tokenizer_destroy(tok);
    wz_ids_finish(&ids);
}

/* What the model's own template writes of one user message; "-": it has none. */
static void own_writes(const struct wz_tokenizer *tok, const char *want)
{
    const struct wz_message message = { .role = WZ_USER, .text = "x" };
    struct wz_err err = { "" };
    const struct wz_template *t = wz_template_find("", tok, &err);
    struct wz_ids ids = { 0 };
    struct wz_buf out = { 0 };

    if (t && wz_template_apply(t, tok, &message, 1, true, &ids, &err) < 0) fail_msg("%s", err.text);
    wz_decode(tok, ids.ids, ids.n, true, &out);
    assert_string_equal(t ? out.data : "-", want);
    if (!t) assert_non_null(strstr(err.text, "has no chat template; name one"));
    if (t) assert_string_equal(wz_template_name(t), "jinja");
    wz_ids_finish(&ids);
    wz_buf_finish(&out);
}

/* Where a folder has its template, before and after saving. */
static void a_folders_own_template_is_found(void **state)
{
    static const struct {
        const char *config, *want;
    } rows[] = {
        { "{}", "-" },
        { "{\"chat_template\": null}", "-" },
        { "{\"chat_template\": \"one {{ messages[0].content }}\"}", "one x" },
        { "{\"chat_template\": [{\"name\": \"tool_use\", \"template\": \"a\"}, {\"name\": \"default\", \"template\": "
          "\"{{ messages[0].content }}<end>\"}]}",
          "x<end>" },
        { "{\"bos_token\": \"<sys>\", \"eos_token\": {\"content\": \"<end>\"}, \"chat_template\": \"{{ "
          "bos_token + eos_token }}\"}",
          "<sys><end>" },
        { "{\"bos_token\": null, \"chat_template\": \"{{ bos_token }}|\"}", "|" },
        { "{\"chat_template\": {\"tool_use\": \"a\", \"default\": \"b\"}}", "b" },
        { "{\"chat_template\": {\"tool_use\": \"a\"}}", "-" },
        { "{\"pad_token\": {\"content\": \"<sys>\"}, \"image_token\": \"<user>\", \"extra_special_tokens\": {\"boi\": "
          "\"<asst>\"}, \"chat_template\": \"{{ pad_token + image_token + boi }}{{ sep_token }}|\"}",
          "<sys><user><asst>|" },
        { "{\"tokenizer_class\": \"PreTrainedTokenizerFast\", \"chat_template\": \"{{ bos_token }}|\"}", "|" },
        { "{\"tokenizer_class\": \"LlamaTokenizer\", \"chat_template\": \"{{ bos_token }}|\"}", "<|begin_of_text|>|" },
    };
    char *dir = test_scratch("own"), *model = test_scratch("own/tokenizer.json"), *saved = test_scratch("own-saved"),
         *config = test_scratch("own/tokenizer_config.json"), *jinja = test_scratch("own/chat_template.jinja");
    struct wz_buf b = { 0 };
    struct wz_err err = { "" };

    tiny_json(&b, true, false);
    assert_int_equal(wz_mkdirs(dir, &err), 0);
    assert_int_equal(wz_file_write(model, b.data, b.len, &err), 0);
    for (size_t i = 0; i <= WZ_COUNT(rows); i++) {
        const bool beside = i == WZ_COUNT(rows); /* a chat_template.jinja beside it speaks before the config */
        const char *text = beside ? rows[2].config : rows[i].config;
        assert_int_equal(wz_file_write(config, text, strlen(text), &err), 0);
        if (beside) assert_int_equal(wz_file_write(jinja, "two\n\n", 5, &err), 0);
        for (int again = 0; again < 2; again++) {
            struct wz_tokenizer *tok = wz_tokenizer_load(again ? saved : dir, &err);
            if (!tok) fail_msg("%s", err.text);
            own_writes(tok, beside ? "two\n" : rows[i].want);
            if (!again) assert_int_equal(wz_tokenizer_save(tok, saved, &err), 0);
            wz_tokenizer_destroy(tok);
        }
    }
    remove(jinja);
    free(dir);
    free(model);
    free(config);
    free(jinja);
    free(saved);
    wz_buf_finish(&b);
}

/* Files that folders had before their config named all tokens: special_tokens_map.json, which speaks before it, and
 * added_tokens.json. A token that is named but not there is refused. */
static void older_folders(void **state)
{
#define TEXT  "\"chat_template\": \"{{ bos_token }}{{ eos_token }}{{ messages[0].content }}\""
#define NAMES "\"bos_token\": \"<sys>\", "
    static const struct {
        const char *config, *map, *added, *want;
    } rows[] = {
        { "{" NAMES TEXT "}", "{\"bos_token\": {\"content\": \"<user>\"}, \"eos_token\": \"<end>\"}", "{}",
          "<user><end>x" },
        { "{" NAMES TEXT ", \"added_tokens_decoder\": {}}", "{\"bos_token\": \"<user>\"}", "{\"x\": 300}",
          "<sys><|end_of_text|>x" },
        { "{" TEXT "}", "{\"bos_token\": null, \"eos_token\": \"<new>\"}", "{\"<new>\": 279, \"<end>\": 5}", "<new>x" },
        { "{" TEXT "}", "{\"additional_special_tokens\": [\"x\"]}", "{\"x\": 279}",
          "<|begin_of_text|><|end_of_text|>x" },
        { "{" TEXT "}", "{\"bos_token\": \"<new>\"}", "{}", NULL },
        { "{" TEXT "}", "[]", "{}", NULL },
        { "{" TEXT "}", "{}", "{\"<new>\": \"1\"}", NULL },
    };
    static const char *const names[] = { "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json" };
    char *dir = test_scratch("older"), *model = test_scratch("older/tokenizer.json");
    struct wz_buf b = { 0 };
    struct wz_err err = { "" };

    tiny_json(&b, true, false);
    assert_int_equal(wz_mkdirs(dir, &err), 0);
    assert_int_equal(wz_file_write(model, b.data, b.len, &err), 0);
    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        const char *const texts[] = { rows[i].config, rows[i].map, rows[i].added };
        for (int k = 0; k < 3; k++) {
            char *path = wz_path("%s/%s", dir, names[k]);
            assert_int_equal(wz_file_write(path, texts[k], strlen(texts[k]), &err), 0);
            free(path);
        }
        struct wz_tokenizer *tok = wz_tokenizer_load(dir, &err);
        if (!tok != !rows[i].want) fail_msg("row %zu: %s", i, tok ? "read" : err.text);
        if (tok) own_writes(tok, rows[i].want);
        if (i == 2) assert_int_equal(wz_tokenizer_id(tok, "<new>"), 279);
        if (i == 3) { /* special: what people write is text */
            struct wz_ids ids = { 0 };
            assert_int_equal(wz_encode(tok, "x", 1, &ids, &err), 0);
            assert_int_equal(ids.ids[0], 'x');
            wz_ids_finish(&ids);
        }
        wz_tokenizer_destroy(tok);
    }
    free(dir);
    free(model);
    wz_buf_finish(&b);
}

/* The first kind of reply of which a later turn is not shown all. */
static void what_a_template_cuts_is_told(void **state)
{
#define EVERY(assistant)                                                                                  \
    "{% for m in messages %}{% if m.role == 'assistant' %}{% set c = m.content %}" assistant "{% else %}" \
    "{{ m.content }}{% endif %}{% endfor %}"
    static const struct {
        const char *text, *cut;
    } rows[] = {
        { EVERY("{{ '<asst>' + c | trim + '<end>' }}"), NULL },
        { EVERY("{{ c.split('</think>')[-1].lstrip('\n') }}"), "<think>B</think>A" },
        { EVERY("{{ c if loop.last else c.split('</think>') | last }}"), "<think>B</think>A" },
        { EVERY("{{ c.replace('[THINK]', '').split('[/THINK]') | join(' ') }}"), "[THINK]B[/THINK]A" },
        { EVERY("{% if '<|channel>' in c %}{{ c.split('<channel|>')[1] }}{% else %}{{ c }}{% endif %}"),
          "<|channel>thought B<channel|>A" },
        { EVERY("{{ c | lower }}"), "A" },
        { EVERY(""), "A" },
        { "{{ raise_exception('never') }}", NULL },
    };
    char *dir = test_scratch("cuts"), *model = test_scratch("cuts/tokenizer.json"),
         *jinja = test_scratch("cuts/chat_template.jinja");
    struct wz_buf b = { 0 };
    struct wz_err err = { "" };
    struct wz_tokenizer *tok = NULL;

    tiny_json(&b, true, false);
    assert_int_equal(wz_mkdirs(dir, &err), 0);
    assert_int_equal(wz_file_write(model, b.data, b.len, &err), 0);
    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        assert_int_equal(wz_file_write(jinja, rows[i].text, strlen(rows[i].text), &err), 0);
        wz_tokenizer_destroy(tok);
        if (!(tok = wz_tokenizer_load(dir, &err))) fail_msg("%s", err.text);
        const char *cut = wz_template_cuts(found(NULL, tok), tok);
        if (!cut != !rows[i].cut || (cut && strcmp(cut, rows[i].cut)))
            fail_msg("%s: %s, not %s", rows[i].text, cut ? cut : "nothing", rows[i].cut ? rows[i].cut : "nothing");
    }
    assert_null(wz_template_cuts(found("sandbox", tok), tok));
    assert_null(wz_template_cuts(found("llama3", tok), tok));
    wz_tokenizer_destroy(tok);
    free(dir);
    free(model);
    free(jinja);
    wz_buf_finish(&b);
}

/* ---- golden/tokenizer/vectors.jsonl: {model, text | template, messages, generate, ids} -------------------- */

static const char *const role_names[] = { [WZ_SYSTEM] = "system", [WZ_USER] = "user", [WZ_ASSISTANT] = "assistant" };

static void golden_line(const struct wz_tokenizer *tok, const json_t *line)
{
    const json_t *list = json_object_get(line, "messages"), *wanted = json_object_get(line, "ids"), *item;
    const char *name = json_string_value(json_object_get(line, "template")),
               *text = json_string_value(json_object_get(line, "text"));
    struct wz_message messages[16] = { 0 };
    struct wz_ids want = { 0 }, got = { 0 };
    struct wz_err err = { "" };
    size_t i;

    json_array_foreach(wanted, i, item) wz_ids_add(&want, (int)json_integer_value(item));
    json_array_foreach(list, i, item)
    {
        assert_true(i < WZ_COUNT(messages));
        messages[i].text = json_string_value(json_object_get(item, "content"));
        for (int r = WZ_SYSTEM; r <= WZ_ASSISTANT; r++)
            if (!strcmp(role_names[r], json_string_value(json_object_get(item, "role"))))
                messages[i].role = (enum wz_role)r;
    }
    int rc = name ? wz_template_apply(found(name, tok), tok, messages, (int)json_array_size(list),
                                      json_is_true(json_object_get(line, "generate")), &got, &err)
                  : wz_encode(tok, text, strlen(text), &got, &err);
    if (rc < 0) fail_msg("%s", err.text);
    check_ids(name ? name : text, &got, want.ids, want.n);
    wz_ids_finish(&want);
    wz_ids_finish(&got);
}

static int golden(const char *model, const char *path)
{
    char *file =
        wz_path("%s/tokenizer/vectors.jsonl", getenv("WALTZ_GOLDEN") ? getenv("WALTZ_GOLDEN") : "tests/golden");
    struct wz_err err = { "" };
    struct wz_tokenizer *tok = wz_tokenizer_load(path, &err);
    FILE *f = fopen(file, "r");
    char *text = NULL;
    size_t cap = 0;
    ssize_t n;
    int seen = 0;

    if (!tok) fail_msg("%s", err.text);
    assert_non_null(f);
    while ((n = getline(&text, &cap, f)) >= 0) {
        json_t *line = wz_json_parse(text, (size_t)n, file, &err);
        assert_non_null(line);
        if (strcmp(json_string_value(json_object_get(line, "model")), model) == 0) {
            golden_line(tok, line);
            seen++;
        }
        json_decref(line);
    }
    fclose(f);
    free(text);
    free(file);
    wz_tokenizer_destroy(tok);
    return seen;
}

static void golden_llama3(void **state)
{
    char *path = test_data("tok_llama3/tokenizer.json");

    assert_true(golden("tok_llama3/tokenizer.json", path) >= 20);
    free(path);
}

static void golden_llama2(void **state)
{
    char *path = test_data("tok_llama2/tokenizer.model");

    assert_true(golden("tok_llama2/tokenizer.model", path) >= 20);
    free(path);
}

static void golden_smollm2(void **state)
{
    const char *path = getenv("WALTZ_SMOLLM2");

    if (!path) SKIP("WALTZ_SMOLLM2 does not name SmolLM2-135M-Instruct as a GGUF file or a folder");
    assert_true(golden("smollm2", path) >= 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sandbox_by_hand),
        cmocka_unit_test(llama3_by_hand),
        cmocka_unit_test(chatml_by_hand),
        cmocka_unit_test(rendered_as_text),
        cmocka_unit_test(stops_are_end_tokens),
        cmocka_unit_test(what_does_not_fit_is_an_error),
        cmocka_unit_test(a_folders_own_template_is_found),
        cmocka_unit_test(older_folders),
        cmocka_unit_test(what_a_template_cuts_is_told),
        cmocka_unit_test(golden_llama3),
        cmocka_unit_test(golden_llama2),
        cmocka_unit_test(golden_smollm2),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
