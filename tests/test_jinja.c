/* Guarantee: a model's own chat template is run as Jinja runs it, with the settings of transformers; no template hangs
 * or takes the machine's memory; what people and models wrote keeps its ids, and leaves those around it alone. */
#include "tokenizer_help.h"

#include <sys/resource.h>

/* The tiny tokenizer with a chat template of its own. */
static struct wz_tokenizer *with_template(const char *jinja)
{
    char *dir = test_scratch("jinja"), *model = test_scratch("jinja/tokenizer.json"),
         *config = test_scratch("jinja/tokenizer_config.json");
    struct wz_buf b = { 0 };
    struct wz_err err = { "" };

    tiny_json(&b, true, false);
    assert_int_equal(wz_mkdirs(dir, &err), 0);
    assert_int_equal(wz_file_write(model, b.data, b.len, &err), 0);
    wz_buf_clear(&b);
    wz_buf_str(&b, "{\"bos_token\": \"<|begin_of_text|>\", \"eos_token\": \"<|end_of_text|>\", \"chat_template\": ");
    wz_json_string(&b, jinja, strlen(jinja));
    wz_buf_str(&b, "}");
    assert_int_equal(wz_file_write(config, b.data, b.len, &err), 0);
    struct wz_tokenizer *tok = wz_tokenizer_load(dir, &err);
    if (!tok) fail_msg("%s", err.text);
    wz_buf_finish(&b);
    free(dir);
    free(model);
    free(config);
    return tok;
}

static int apply(const struct wz_tokenizer *tok, const struct wz_message *messages, int n, bool generate,
                 struct wz_ids *ids, struct wz_err *err)
{
    const struct wz_template *t = wz_template_find(NULL, tok, err);

    return t ? wz_template_apply(t, tok, messages, n, generate, ids, err) : -1;
}

/* What the template writes of the messages, special tokens written out, or "! " and the error from its line on. */
static char *rendered(const char *jinja, const struct wz_message *messages, int n, bool generate)
{
    struct wz_tokenizer *tok = with_template(jinja);
    struct wz_ids ids = { 0 };
    struct wz_buf out = { 0 };
    struct wz_err err = { "" };

    if (apply(tok, messages, n, generate, &ids, &err) == 0) wz_decode(tok, ids.ids, ids.n, true, &out);
    else {
        const char *line = strstr(err.text, "line ");
        wz_buf_printf(&out, "! %s", line ? line : err.text);
    }
    wz_ids_finish(&ids);
    wz_tokenizer_destroy(tok);
    return out.data;
}

static const struct wz_message talk[] = { { .role = WZ_SYSTEM, .text = "Be kind." },
                                          { .role = WZ_USER, .text = " Hello World\n" },
                                          { .role = WZ_ASSISTANT,
                                            .text = "\xc3\x9c"
                                                    "ber 'x' \"y\" \\" } };

struct row {
    const char *jinja, *want;
};

static void check(const struct row *rows, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char *got = rendered(rows[i].jinja, talk, 3, true);
        if (strcmp(got, rows[i].want) != 0) fail_msg("%s: got \"%s\", wanted \"%s\"", rows[i].jinja, got, rows[i].want);
        free(got);
    }
}

/* The wanted texts are what jinja2 3.1 gives. */
static void expressions(void **state)
{
    static const struct row rows[] = {
        { "{{ 1 + 2 * 3 - 4 // 3 }} {{ 7 / 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 2 ** 10 }} {{ 1e5 }} {{ 1.5e-7 "
          "}} {{ 2 ** -1 }}",
          "6 3.5 -4 2 1024 100000.0 1.5e-07 0.5" },
        { "{{ 0.1 + 0.2 }} {{ 1e16 }} {{ 3.0 }} {{ -5 // -1 }} {{ 10 % -3 }} {{ 1_000 }}",
          "0.30000000000000004 1e+16 3.0 5 -2 1000" },
        { "{{ 'a' ~ 1 ~ none ~ true }} {{ 'ab' * 2 }} {{ [1] + [2, 'x'] }} {{ (1,) }} {{ {'k': 'it\\'s', 2: none} }}",
          "a1NoneTrue abab [1, 2, 'x'] (1,) {'k': \"it's\", 2: None}" },
        { "{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 'a' in 'cat' }} {{ 3 not in [1, 2] }} {{ 'k' in {'k': 1} }} {{ "
          "1 == 1.0 == true }}",
          "True False True True True True" },
        { "{{ not 1 == 2 }} {{ 0 or 'x' }} {{ 0 and 'x' }} {{ 'a' if 0 else 'b' if 0 else 'c' }}[{{ 'a' if 0 }}]",
          "True x 0 c[]" },
        { "{{ 'abc'[1] }} {{ 'abc'[-1] }} {{ 'abcdef'[1:4] }} {{ 'abc'[::-1] }} {{ [1, 2, 3, 4][::2] }} {{ "
          "[1, 2, 3][-2:] }} {{ 'abc'[5:] }}|",
          "b c bcd cba [1, 3] [2, 3] |" },
        { "{{ messages[2].content[0] }}{{ messages[2]['content'][:4] | length }} {{ messages[2].content | "
          "length }} {{ messages | length }}",
          "\xc3\x9c"
          "4 14 3" },
        { "{{ messages[9] }}|{{ messages[0].nothing }}|{{ nothing }}|{{ messages[0]['nothing'] is defined }}",
          "|||False" },
        { "{{ 'a' 'b' }} {{ \"\\x41\\u00e9\\n\\t\\\\\\'\\q\" }}", "ab A\xc3\xa9\n\t\\'\\q" },
        { "{{ true }} {{ True }} {{ none }} {{ None }} {{ false }}", "True True None None False" },
        { "{{ -1 | abs_ if false else -(2) }} {{ +3 }} {{ not not true }}", "-2 3 True" },
        { "{{ messages[0]['role'] ~ messages.0.role }} {{ (1, 2)[1] }} {{ {'a': {'b': 5}}.a.b }} {{ {'items': "
          "1}['items'] }}",
          "systemsystem 2 5 1" },
    };

    check(rows, WZ_COUNT(rows));
}

static void statements(void **state)
{
    static const struct row rows[] = {
        { "{% if 0 %}a{% elif 1 %}b{% else %}c{% endif %}{% if 0 %}a{% elif 0 %}b{% else %}c{% endif %}", "bc" },
        { "{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ "
          "loop.first }}{{ loop.last }}"
          "{{ loop.length }} {% endfor %}",
          "1032TrueFalse3 2121FalseFalse3 3210FalseTrue3 " },
        { "{% for m in messages %}{{ loop.previtem.role if loop.previtem is defined }}>{{ loop.nextitem.role "
          "if not loop.last }};{% endfor %}",
          ">user;system>assistant;user>;" },
        { "{% for a in [] %}x{% else %}none{% endfor %} {% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}{{ v "
          "}}{% endfor %}",
          "none a1b2" },
        { "{% for i in [1, 2] %}{% continue %}{% else %}none{% endfor %}|{% for i in [1, 2] %}{% if i > 1 %}{% break %}"
          "{% endif %}{{ i }}{% else %}none{% endfor %}|{% for i in [1] %}{% break %}{% else %}none{% endfor %}",
          "none|1|none" },
        { "{% for i in range(9) if i % 2 %}{{ i }}{{ loop.last }} {% endfor %}", "1False 3False 5False 7True " },
        { "{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif "
          "%}{{ i }}{% endfor %}",
          "02" },
        { "{% for i in range(1, 8, 3) %}{{ i }}{% endfor %}{% for i in range(3, 0, -1) %}{{ i }}{% endfor %}",
          "147321" },
        { "{% set x = 1 %}{% for i in [1, 2] %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}", "231" },
        { "{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}", "2" },
        { "{% set ns = namespace(n=0, s='') %}{% for i in [1, 2, 3] %}{% set ns.n = ns.n + i %}{% endfor %}{{ "
          "ns.n }}{{ ns.s }}",
          "6" },
        { "{% set a, b = 1, 'z' %}{{ b }}{{ a }}{% set t %}<{{ a }}>{% endset %}{{ t | upper }}", "z1<1>" },
        { "{% macro f(a, b='x', c=a) %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ f(1) }}{{ f(1, c=2) }}{{ f(b=3, a=4) }}",
          "[1x1][1x2][434]" },
        { "{% macro down(n) %}{{ n }}{% if n > 0 %}{{ down(n - 1) }}{% endif %}{% endmacro %}{{ down(3) }}", "3210" },
        { "{% filter upper %}a{{ 'b' }}{% endfilter %}{% generation %}c{% endgeneration %}", "ABc" },
        { "{% raw %}{{ x }} {% if %}{% endraw %}|{# {{ no }} #}|", "{{ x }} {% if %}||" },
        { "{% for i in range(2) %}{% for k in range(2) %}{{ loop.index }} {% endfor %}{{ loop.index }}{% endfor %}",
          "1 2 11 2 2" },
        { "{{ bos_token }}{{ eos_token }}{{ unk_token }}{% if add_generation_prompt %}+{% endif %}{{ tools "
          "}}{{ documents is none }}",
          "<|begin_of_text|><|end_of_text|>+NoneTrue" },
        { "{{ strftime_now('%d %b %Y') }} {{ dict(a=1) }} {{ strftime_now is defined }}", "26 Jul 2024 {'a': 1} True" },
    };

    check(rows, WZ_COUNT(rows));
}

static void white_space(void **state)
{
    static const struct row rows[] = {
        { "a\n  {% if true %}  \n  b\n  {% endif %}\nc\n",
          "a\n  \n  b\nc" }, /* trim_blocks, lstrip_blocks, the last line feed */
        { "a\n  {% if true %}\n  b\n  {% endif %}\nc", "a\n  b\nc" },
        { "a \n {%- if true -%} \n b \n {%- endif -%} \n c", "abc" },
        { "a\n  {%+ if true %}b{% endif +%}\nc", "a\n  b\nc" },
        { "a {{- ' x ' -}} b\n{{ 'y' }}\nc", "a x b\ny\nc" },
        { "a\n  {# c #}\nb {#- d -#} e", "a\nbe" },
        { "  {% set x = 1 %}{{ x }}  {% if x %}y{% endif %}", "1  y" },
        { "a\r\n{% if true %}\r\nb\r{% endif %}", "a\nb\n" },
        { "{{ {'a': {'b': 1}} }}{{ '%}}}' }}", "{'a': {'b': 1}}%}}}" },
        { "{%- set x = '\n' -%}\n\n[{{ x }}]", "[\n]" },
        { "a  {%- raw -%}  b {%- endraw -%}  c", "abc" },
        { "{% raw %}\n a {% endraw %}\n b", "\n a  b" }, /* trim_blocks is not for the tag that opens it */
        { "{% raw -%}\n a {% endraw -%}\n b", "a b" },
        { "{% raw %}\n  {% endraw %}b", "\nb" },
        { "a\n  {% raw %}  {% endraw %}b", "a\n  b" },
        { "{% if true %}\n  {% raw %}\n{% endraw %}\n{% endif %}|", "\n|" },
        { "{% raw -%} \n  x\n  {% endraw %}b", "x\nb" },
    };

    check(rows, WZ_COUNT(rows));
}

static void filters_tests_methods(void **state)
{
    static const struct row rows[] = {
        { "{{ messages[1].content | trim }}|{{ 'xxaxx' | trim('x') }}|{{ '\\u3000 a ' | trim }}|", "Hello World|a|a|" },
        { "{{ messages[2].content | tojson }} {{ [1, 2.5, none, true, {'a': '\\n'}] | tojson }}",
          "\"\xc3\x9c"
          "ber 'x' \\\"y\\\" \\\\\" [1, 2.5, null, true, {\"a\": \"\\n\"}]" },
        { "{{ {'a': [1, {}], 'b': []} | tojson(indent=2) }} {{ [1, 2] | tojson(separators=(',', ':')) }}",
          "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": []\n} [1,2]" },
        { "{{ [1, 2, 3] | join(', ') }} {{ messages | map(attribute='role') | join }} {{ ['a', 'b'] | "
          "map('upper') | list }}",
          "1, 2, 3 systemuserassistant ['A', 'B']" },
        { "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | first | trim }}",
          "Hello World" },
        { "{{ messages | rejectattr('role', 'in', ['user', 'system']) | list | length }} {{ [0, 1, '', 2] | "
          "select | list }} "
          "{{ [1, 2, 3] | reject('odd') | list }} {{ none | selectattr('x') | list }}",
          "1 [1, 2] [2] []" },
        { "{{ nothing | default('d') }} {{ '' | default('d') }}|{{ '' | default('d', true) }} {{ nothing | d(7) }}",
          "d |d 7" },
        { "{{ 'abc' | first }}{{ [1, 2] | last }}{{ [] | first is defined }} {{ 'hello wOrld-a b' | title }} "
          "{{ 'aBC' | capitalize }}",
          "a2False Hello World-A B Abc" },
        { "{{ '\xc3\x9f' | upper }} {{ '\xc3\x9f-' | title }} {{ '\xc3\x9f-'.title() }} {{ '\xc7\x86'.capitalize() }}",
          "SS SS- Ss- \xc7\x85" },
        { "{{ '\xc3\xa9\xd0\xb4' | upper }} {{ '\xc3\x89\xd0\x94' | lower }} {{ \"it's me\".title() }}",
          "\xc3\x89\xd0\x94 \xc3\xa9\xd0\xb4 It'S Me" },
        { "{{ 'aXbXc' | replace('X', '-') }} {{ 'aXbXc'.replace('X', '', 1) }} {{ {'b': 1, 'A': 2} | items | list }}",
          "a-b-c abXc [('b', 1), ('A', 2)]" },
        { "{{ '42' | int + 1 }} {{ 'x' | int }} {{ 'x' | int(5) }} {{ 3.9 | int }} {{ '2.5' | float }} {{ 7 | "
          "string + '!' }} {{ 'a' | safe }}",
          "43 0 5 3 2.5 7! a" },
        { "{{ {'b': 1, 'A': 2} | dictsort }} {{ 'ab' | list }} {{ {'a': 1} | length }}{{ 'ab' | count }}",
          "[('A', 2), ('b', 1)] ['a', 'b'] 12" },
        { "{{ 'a,b,,c'.split(',') }} {{ ' a  b c '.split() }} {{ 'a,b,c'.split(',', 1) }} {{ ' a  b c "
          "'.split(none, 1) }}",
          "['a', 'b', '', 'c'] ['a', 'b', 'c'] ['a', 'b,c'] ['a', 'b c ']" },
        { "{{ 'abc'.startswith('ab') }}{{ 'abc'.endswith(('x', 'c')) }}{{ 'abc'.find('c') }}{{ 'abc'.find('x') }}",
          "TrueTrue2-1" },
        { "[{{ ' a '.strip() }}][{{ ' a '.lstrip() }}][{{ ' a '.rstrip() }}][{{ '#a#'.strip('#') }}]",
          "[a][a ][ a][a]" },
        { "{{ '{} {}{x} {{}}'.format(1, 2, x=3) }} {{ ', '.join(['a', 'b']) }} {{ 'aB'.upper() }}{{ "
          "'aB'.lower() }}{{ 'aB'.capitalize() }}",
          "1 23 {} a, b ABabAb" },
        { "{{ {'a': 1}.get('a') }}{{ {'a': 1}.get('b') }}{{ {'a': 1}.get('b', 2) }}{{ {'a': 1}.keys() | list "
          "}}{{ {'a': 1}.values() | list }}",
          "1None2['a'][1]" },
        { "{{ 1 is number }}{{ 'a' is string }}{{ [] is mapping }}{{ {} is mapping }}{{ none is none }}{{ "
          "nothing is not defined }}{{ nothing is undefined }}",
          "TrueTrueFalseTrueTrueTrueTrue" },
        { "{{ [] is iterable }}{{ 'a' is sequence }}{{ 1 is iterable }}{{ 2 is even }}{{ 3 is odd }}{{ 4 is "
          "divisibleby 2 }}{{ true is boolean }}{{ 1 is true }}",
          "TrueTrueFalseTrueTrueTrueTrueFalse" },
        { "{{ 1 is eq 1 }}{{ 1 is equalto(2) }}{{ 'a' is in ['a'] }}{{ 1 is lt 2 }}{{ 2 is not gt 3 }}{{ "
          "false is false }}{{ 1.5 is float }}{{ 1 is integer }}",
          "TrueFalseTrueTrueTrueTrueTrueTrue" },
    };

    check(rows, WZ_COUNT(rows));
}

static void errors_name_the_line_and_what_is_wrong(void **state)
{
    static const struct row rows[] = {
        { "a\n{% if true %}\nb", "! line 3: expected elif|else|endif, got the end of the template" },
        { "a\n\n{{ 1 + }}", "! line 3: expected an expression, got }}" },
        { "{{ x.y }}", "! line 1: x is undefined" },
        { "{% set x = none %}\n{{ x.y.z }}", "! line 2: y is undefined" },
        { "\n{{ nothing('x') }}", "! line 2: nothing is undefined" },
        { "{{ raise_exception('no ' ~ 1) }}", "! line 1: no 1" },
        { "{% for m in messages %}\n{{ m.content | frobnicate }}{% endfor %}",
          "! line 2: there is no filter \"frobnicate\", or it is not supported" },
        { "{{ 1 is frobnicated }}", "! line 1: there is no test \"frobnicated\", or it is not supported" },
        { "{% include 'x' %}", "! line 1: the tag \"include\" is unknown or not supported" },
        { "{{ 'a' + 1 }}", "! line 1: a string + an integer makes no sense" },
        { "{{ 1 // 0 }}", "! line 1: division by zero" },
        { "{{ 9223372036854775807 + 1 }}", "! line 1: 9223372036854775807 is no number" },
        { "{{ 999999999999999999 * 100 }}", "! line 1: the number is too large" },
        { "{{ 'a' < 1 }}", "! line 1: a string and an integer have no order" },
        { "{% for a in 5 %}{% endfor %}", "! line 1: expected a list, got an integer" },
        { "{% for a, b in [(1, 2, 3)] %}{% endfor %}", "! line 1: 3 values for 2 names" },
        { "{{ 'a' | replace('a') }}", "! line 1: filter replace: argument 2 is missing" },
        { "{{ 'a' | trim(1, 2) }}", "! line 1: filter trim: expected at most 1 arguments, got 2" },
        { "{{ 'a' | trim(x=1) }}", "! line 1: filter trim: unexpected argument x" },
        { "{{ 'abc }}", "! line 1: a string has no end: abc }}" },
        { "{% break %}", "! line 1: break and continue belong into a loop" },
        { "{% raw %}", "! line 1: {% raw %} has no end" },
        { "{# x", "! line 1: a comment has no end" },
        { "{{ a $ b }}", "! line 1: unexpected character '$'" },
        { "{{ (1 }}", "! line 1: expected ), got }" },
        { "{{ 1 %}", "! line 1: expected }}, got %}" },
        { "{{ messages[0].append(1) }}", "! line 1: append is undefined" },
        { "{% set messages.x = 1 %}", "! line 1: messages.x: only a namespace can be set, got a list" },
        { "{% for x in y recursive %}{% endfor %}", "! line 1: recursive loops are not supported" },
        { "{% macro f(a) %}{% endmacro %}{{ f(1, 2) }}", "! line 1: macro f: more arguments than its 1 parameters" },
        { "{{ loop }}", "" },
    };
    struct wz_tokenizer *tok = with_template("{{ messages[0]['role'] + }}");
    struct wz_ids ids = { 0 };
    struct wz_err err = { "" };

    check(rows, WZ_COUNT(rows));
    assert_null(wz_template_find(NULL, tok, &err));
    assert_null(wz_template_find("jinja", tok, &err));
    assert_non_null(strstr(err.text, "jinja/tokenizer.json: chat template line 1: expected an expression"));
    assert_non_null(wz_template_find("chatml", tok, &err)); /* a row is still to be had */
    assert_int_equal(wz_encode(tok, "a", 1, &ids, &err), 0);
    wz_ids_finish(&ids);
    wz_tokenizer_destroy(tok);
}

/* Text that repeats `s` n times between a and b. */
static char *many(const char *a, const char *s, int n, const char *b)
{
    struct wz_buf out = { 0 };

    wz_buf_str(&out, a);
    for (int i = 0; i < n; i++) wz_buf_str(&out, s);
    wz_buf_str(&out, b);
    return out.data;
}

/* What is done to the bytes of a long string takes steps by its length. */
#define LONG "{% set a = 'x' * 100000 %}{% set b = 'x' * 100000 %}"

static void no_template_hangs_or_eats_memory(void **state)
{
    char *const rows[] = {
        many("{% for a in range(9999) %}{% for b in range(9999) %}", "", 0, "{% endfor %}{% endfor %}"),
        many("{{ range(2000000000) | list | length }}", "", 0, ""),
        many("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "", 0, ""),
        many("{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}", "", 0,
             ""),
        many("{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}", "", 0, ""),
        many("{{ 'x' * 999999999999 }}", "", 0, ""),
        many("{{ [0] * 999999999999 }}", "", 0, ""),
        many("{% set ns = namespace(l=[]) %}{% for i in range(99999) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l }}",
             "", 0, ""),
        many("{% set ns = namespace(l=[1, 2]) %}{% for i in range(99) %}{% set ns.l = ns.l + ns.l %}{% endfor %}", "",
             0, ""),
        many("{{ ", "(", 100000, "1"),
        many("{{ ", "[", 100000, "1"),
        many("{{ ", "not ", 100000, "1 }}"),
        many("{{ ", "-", 100000, "1 }}"),
        many("{{ 1", " + 1", 100000, " }}"),
        many("{{ a", ".b", 100000, " }}"),
        many("{{ 1", "|int", 100000, " }}"),
        many("{{ 1 ", " if 1", 100000, " }}"),
        many("{{ 1 ", "if 1 else 1 ", 100000, " }}"),
        many("", "{% if 1 %}", 100000, ""),
        many("", "{% for a in b %}", 60000, ""),
        many("", "{% set a %}", 60000, ""),
        many("{{ 'a'", ".upper()", 60000, " }}"),
        many("", "x", 1 << 20, ""),
        many("{% for i in range(4000) %}{{ messages | tojson(indent=9999999) }}{% endfor %}", "", 0, ""),
        many("{% for i in range(400000) %}{{ 'a'.replace('a', 'b' * 100000) | length }}{% endfor %}", "", 0, ""),
        many("{% for i in range(4000) %}{% set d = dict() %}{% for k in range(4000) %}{{ {k: 1} == {k: 1} }}{% "
             "endfor %}{% endfor %}",
             "", 0, ""),
        many(LONG "{% for i in range(200000) %}{% if a == b %}{% endif %}{% endfor %}", "", 0, ""),
        many(LONG "{% for i in range(200000) %}{% if a <= b %}{% endif %}{% endfor %}", "", 0, ""),
        many(LONG "{% for i in range(200000) %}{% if a.startswith(b) %}{% endif %}{% endfor %}", "", 0, ""),
        many(LONG "{% for i in range(200000) %}{% if a.endswith(b) %}{% endif %}{% endfor %}", "", 0, ""),
        many(LONG "{% for i in range(200000) %}{% if a | length %}{% endif %}{% endfor %}", "", 0, ""),
        many(LONG "{% for i in range(200000) %}{% if a in [b] %}{% endif %}{% endfor %}", "", 0, ""),
    };
    struct rusage use;

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        char *got = rendered(rows[i], talk, 3, true);
        if (!strstr(got, "more than") && !strstr(got, "longer than") && !strstr(got, "numbers of 31 bits"))
            fail_msg("%.60s...: got \"%.200s\"", rows[i], got);
        free(got);
        free(rows[i]);
    }
    assert_int_equal(getrusage(RUSAGE_SELF, &use), 0);
    if (!LIGHT) assert_true(use.ru_maxrss < 1 << 20); /* KiB */
}

/* ---- what people and models wrote ------------------------------------------------------------------------- */

static const char chatml_own[] =
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
static const char trimmed_own[] = "{{ bos_token }}{% for m in messages %}<user>{{ m.content | trim }}<end>{% endfor %}";

/* Everything that a template may do with a text and leave it a text. */
static const char *const handled[] = {
    chatml_own,
    trimmed_own,
    "<user>{{ messages[0].content[0:99999] }}<end>",
    "<user>{{ ['<sys>', messages[0].content] | join('<end>') }}<end>",
    "<user>{{ 'X<sys>' | replace('X', messages[0].content) }}<end>",
    "<user>{{ messages[0].content.split('~')[0] }}<end>",
    "<user>{{ messages | map(attribute='content') | first }}<end>",
    "<user>{{ '{}<end>'.format(messages[0].content) }}<asst>",
    "{% set t %}<user>{{ messages[0].content }}<end>{% endset %}{{ t }}<asst>",
    "{% macro f(x) %}<user>{{ x }}<end>{% endmacro %}{{ f(messages[0].content) }}<asst>",
    "{% filter trim %}<user>{{ messages[0].content ~ '<end>' }}{% endfilter %}",
    "{% for c in messages[0].content %}{{ c }}{% endfor %}<end>",
    "{% for c in messages[0].content | list %}{{ c }}{% endfor %}<end>",
    "<user>{{ messages[0].content | replace('~', '<end>') }}<end>",
    "<user>{{ messages[0].content | string | safe }}<end>",
    "<user>{{ messages[0].content | tojson }}<end>",
    "<user>{{ messages[0] | string }}<end>",
    "<user>{{ messages[0].content | lower }}<end>",
    "<|im_{{ messages[0].content }}<user>",
    "<{{ messages[0].content }}>",
};

/* Text i of 500: special tokens, whole, cut, doubled, joined, with text around them. */
static void hostile(int i, struct wz_buf *out)
{
    const char *a = tiny_specials[i % (int)WZ_COUNT(tiny_specials)],
               *b = tiny_specials[(7 * i + 3) % (int)WZ_COUNT(tiny_specials)];
    const int n = (int)strlen(a);

    wz_buf_clear(out);
    switch (i / (int)WZ_COUNT(tiny_specials) % 7) {
    case 0: wz_buf_printf(out, "q%sq", a); break;
    case 1: wz_buf_printf(out, "%s", a); break;
    case 2: wz_buf_printf(out, "%s%s%s", a, b, a); break;
    case 3: wz_buf_printf(out, "%.*s", n - 1, a); break;
    case 4: wz_buf_printf(out, "%s%s", a + 1, b); break;
    case 5: wz_buf_printf(out, "%d%s'\"\\\n{{ %s }}", i, a, b); break;
    default: wz_buf_printf(out, "%.*s%s%s", n / 2, a, b, a + n / 2);
    }
}

static int count_special(const struct wz_ids *ids)
{
    int n = 0;

    for (int i = 0; i < ids->n; i++) n += ids->ids[i] >= T_SPECIAL;
    return n;
}

static void a_text_never_becomes_a_special_token(void **state)
{
    struct wz_buf text = { 0 };
    int kept = 0;

    for (size_t t = 0; t < WZ_COUNT(handled); t++) {
        struct wz_tokenizer *tok = with_template(handled[t]);
        struct wz_ids plain = { 0 }, ids = { 0 };
        struct wz_err err = { "" };
        struct wz_message m = { .role = WZ_USER, .text = "@" };
        if (apply(tok, &m, 1, true, &plain, &err) < 0) fail_msg("%s: %s", handled[t], err.text);
        for (int i = 0; i < 500; i++) {
            hostile(i, &text);
            m.text = text.data;
            ids.n = 0;
            if (apply(tok, &m, 1, true, &ids, &err) < 0) fail_msg("%s: %s", handled[t], err.text);
            if (count_special(&ids) != count_special(&plain))
                fail_msg("%s: \"%s\" gives %d special tokens, not %d", handled[t], text.data, count_special(&ids),
                         count_special(&plain));
            if (t > 1) continue;
            /* The ids before and behind the text are the same. */
            int front = 0, back = 0, want = 0;
            while (plain.ids[front] != '@') front++;
            back = plain.n - front - 1;
            assert_memory_equal(ids.ids, plain.ids, sizeof(int) * (size_t)front);
            assert_memory_equal(ids.ids + ids.n - back, plain.ids + front + 1, sizeof(int) * (size_t)back);
            struct wz_ids alone = { 0 };
            assert_int_equal(wz_encode(tok, text.data, text.len, &alone, &err), 0);
            want = alone.n;
            if (plain.ids[front - 1] >= T_SPECIAL || t == 1) assert_int_equal(ids.n, front + want + back);
            wz_ids_finish(&alone);
            kept++;
        }
        wz_ids_finish(&plain);
        wz_ids_finish(&ids);
        wz_tokenizer_destroy(tok);
    }
    assert_int_equal(kept, 1000);
    wz_buf_finish(&text);
}

/* Sampled ids: { the template, the ids, what comes out or the error's beginning } */
static void what_was_sampled_goes_in_as_its_ids(void **state)
{
    static const int odd[] = { 'h', 'e', 'l', 'l', 'o' }, blanks[] = { ' ', '\n' }, line[] = { '\n', T_HELLO },
                     led[] = { '\n', ' ', T_HELLO, '\n' }, broken[] = { 0xe2, 'x', 0x80 },
                     special[] = { T_HELLO, T_END, T_HEAD }, only[] = { T_END },
                     thought[] = { '<', 't', '>', 'w', '<', '/', 't', '>', '\n', '\n', T_HELLO, '!' },
                     within[] = { 'w', T_HELLO, 'v' }, spread[] = { 'a', ' ', 'b' }, half[] = { '1', ' ', 'b' };
    static const char after_thought[] =
        "{% for m in messages %}{{ '<user>' + m.content.split('</t>')[-1].lstrip('\n') + '<end>' }}{% endfor %}";
    static const char dropping[] =
        "{% for m in messages if m.role == 'user' %}{{ '<user>' + m.content + '<end>' }}{% endfor %}";
    static const char spaced[] =
        "{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}<end>{% else %} {{ m.content "
        "| trim }} <end>{% endif %}{% endfor %}";
    static const char opened[] =
        "{% for m in messages %}<user>\n{{ m.content | trim }}<end>{% endfor %}{% if add_generation_prompt "
        "%}<user>\n{% endif %}";
#define IDS(list) list, (int)WZ_COUNT(list)
    static const struct {
        const char *jinja;
        const int *ids;
        int n;
        const char *error; /* NULL: the ids must be in it, from the first-th to the last-th */
        int first, last;
    } rows[] = {
        { chatml_own, IDS(odd), NULL, 0, 5 },
        { chatml_own, IDS(blanks), NULL, 0, 2 },
        { trimmed_own, IDS(led), NULL, 0, 4 },
        { trimmed_own, IDS(blanks), NULL, 0, 2 },
        { chatml_own, IDS(broken), NULL, 0, 3 },
        { trimmed_own, IDS(special), NULL, 0, 3 },
        { chatml_own, IDS(only), NULL, 0, 1 },
        { after_thought, IDS(thought), NULL, 10, 12 },
        { after_thought, IDS(odd), NULL, 0, 5 },
        { spaced, IDS(led), NULL, 0, 4 },
        { opened, IDS(led), NULL, 0, 4 },
        { opened, IDS(line), NULL, 0, 2 },
        { dropping, IDS(odd), "message 2: the chat template leaves out", 0, 0 },
        { "{% for m in messages %}{{ m.content | upper }}{% endfor %}", IDS(odd),
          "message 2: the chat template leaves out", 0, 0 },
        { "{% for m in messages %}{{ m.content | upper }}{% endfor %}", IDS(spread),
          "message 2: the chat template cuts", 0, 0 }, /* the blank is as it was, and no more */
        { "{% for m in messages %}{{ m.content | upper }}{% endfor %}", IDS(half), "message 2: the chat template cuts",
          0, 0 },
        { "{% for m in messages %}{{ m.content | replace('ll', 'LL') }}{% endfor %}", IDS(odd),
          "message 2: the chat template cuts", 0, 0 },
        { "{% for m in messages %}{{ m.content[2:] }}{% endfor %}", IDS(within), "message 2: the chat template cuts", 0,
          0 },
        { "{% for m in messages %}{{ m.content[1:] }}{% endfor %}", IDS(within), NULL, 1, 3 },
        { "{% for m in messages %}{{ m.content[:-1] }}{% endfor %}", IDS(within), NULL, 0, 2 },
        { "{% for m in messages %}{{ m.content | tojson }}{% endfor %}", IDS(thought),
          "message 2: the chat template cuts", 0, 0 },
        { "{% for m in messages %}{{ m.content }}|{{ m.content }}{% endfor %}", IDS(odd), NULL, 0, 5 },
    };

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        struct wz_tokenizer *tok = with_template(rows[i].jinja);
        const struct wz_message messages[] = { { .role = WZ_USER, .text = "q" },
                                               { .role = WZ_ASSISTANT, .ids = rows[i].ids, .n_ids = rows[i].n } };
        struct wz_ids ids = { 0 };
        struct wz_err err = { "" };
        int rc = apply(tok, messages, 2, false, &ids, &err), hits = 0;
        if (rows[i].error) {
            if (rc == 0 || strncmp(err.text, rows[i].error, strlen(rows[i].error)) != 0)
                fail_msg("row %zu: %d \"%s\"", i, rc, err.text);
            assert_int_equal(ids.n, 0);
        } else {
            const int n = rows[i].last - rows[i].first;
            if (rc < 0) fail_msg("row %zu: %s", i, err.text);
            for (int k = 0; k + n <= ids.n; k++)
                hits += !memcmp(ids.ids + k, rows[i].ids + rows[i].first, sizeof(int) * (size_t)n);
            if (hits != (strchr(rows[i].jinja, '|') && strstr(rows[i].jinja, "}}|{{") ? 2 : 1))
                fail_msg("row %zu: %d times", i, hits);
            /* Behind its context, where the template continues the one that the model saw. */
            struct wz_ids seen = { 0 };
            if (rows[i].jinja == spaced || rows[i].jinja == opened) {
                assert_int_equal(apply(tok, messages, 1, true, &seen, &err), 0);
                assert_memory_equal(ids.ids, seen.ids, sizeof(int) * (size_t)seen.n);
                if (rows[i].jinja == opened)
                    assert_memory_equal(ids.ids + seen.n, rows[i].ids, sizeof(int) * (size_t)rows[i].n);
            }
            wz_ids_finish(&seen);
        }
        wz_ids_finish(&ids);
        wz_tokenizer_destroy(tok);
    }
}

static void stops_are_read_off_the_template(void **state)
{
    static const struct {
        const char *jinja;
        int n, stops[2];
    } rows[] = { { chatml_own, 2, { T_IM_END, T_EOS } },
                 { trimmed_own, 2, { T_END, T_EOS } },
                 { "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}", 1, { T_EOS } },
                 { "{{ raise_exception('never') }}", 1, { T_EOS } },
                 { "plain", 1, { T_EOS } } };

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        struct wz_tokenizer *tok = with_template(rows[i].jinja);
        struct wz_err err = { "" };
        int stops[8];
        assert_int_equal(wz_template_stops(wz_template_find(NULL, tok, &err), tok, stops), rows[i].n);
        assert_memory_equal(stops, rows[i].stops, sizeof(int) * (size_t)rows[i].n);
        wz_tokenizer_destroy(tok);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(expressions),
        cmocka_unit_test(statements),
        cmocka_unit_test(white_space),
        cmocka_unit_test(filters_tests_methods),
        cmocka_unit_test(errors_name_the_line_and_what_is_wrong),
        cmocka_unit_test(no_template_hangs_or_eats_memory),
        cmocka_unit_test(a_text_never_becomes_a_special_token),
        cmocka_unit_test(what_was_sampled_goes_in_as_its_ids),
        cmocka_unit_test(stops_are_read_off_the_template),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
