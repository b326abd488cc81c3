/* Guarantee: a run's folder becomes one self-contained page that loads nothing, escapes all text of the files, and
 * names what is missing. Writes the page of the complete fake run to WALTZ_KEEP, if set. */
#include "test.h"

#include <fcntl.h>
#include <math.h>
#include <unistd.h>

#include "launch/launch.h"
#include "store/table.h"

#define NASTY "</pre><script>alert('x')</script><img src=http://evil onerror=1>&amp;"

static char *dir; /* of the fake run */

static void put(const char *name, const char *text, size_t n)
{
    char *path = wz_path("%s/%s", dir, name);
    struct wz_err err;

    assert_int_equal(wz_file_write(path, text, n, &err), 0);
    free(path);
}

static void put_recipe(void)
{
    static const char text[] =
        "name: sandbox\nseed: 7\nagents:\n  - {name: conversation, role: conversation, model: models/conversation}\n"
        "  - {name: feedback, role: feedback, model: \"" NASTY "\"}\ndata: [{path: train.jsonl}]\nstages:\n"
        "  - {name: first, steps: 60, agents: [{name: feedback}]}\n"
        "  - {name: second, steps: 60, agents: [{name: feedback}, {name: conversation}]}\n";

    put("recipe.yaml", text, sizeof text - 1);
}

static double noise(uint32_t a, uint32_t b)
{
    return wz_normal((struct wz_key){ .seed = 1, .purpose = WZ_RNG_TEST, .a = a, .b = b });
}

static void put_metrics(void)
{
    struct wz_buf text = { 0 };

    for (uint32_t s = 1; s <= 120; s++) {
        double t = s / 120.0, rise = 1 - exp(-5 * t);
        wz_buf_printf(
            &text,
            "{\"step\":%u,\"time\":%.3f,\"reward/c0\":%.4f,\"reward/final\":%.4f,\"rollout/label_accuracy\":%.4f,"
            "\"rollout/json_errors\":%.4f,\"rollout/ftr\":%.4f,\"rollout/asr\":%.4f,\"rollout/orr\":%.4f,\"time/"
            "play\":%.4f,"
            "\"time/learn\":%.4f,\"time/publish\":0.01,\"time/step\":%.4f,\"rollout/tokens\":%.0f,\"feedback/kl\":%.5f,"
            "\"feedback/grad_norm\":%.4f,\"feedback/lr\":%.6g,\"odd one\":%u,\"feedback/reward\":%.4f",
            s, 1.7e9 + 2.5 * s, 0.5 + 0.3 * rise + 0.04 * noise(s, 1), 0.55 + 0.4 * rise + 0.03 * noise(s, 2),
            fmin(1, 0.3 + 0.6 * rise + 0.03 * noise(s, 3)), fmax(0, 0.4 - 0.4 * rise + 0.02 * noise(s, 4)),
            0.7 - 0.4 * rise + 0.03 * noise(s, 5), fmax(0, 0.5 - 0.42 * rise + 0.03 * noise(s, 6)),
            fmax(0, 0.4 - 0.3 * rise + 0.03 * noise(s, 7)), 1.4 + 0.1 * noise(s, 8), 0.9 + 0.05 * noise(s, 9),
            2.3 + 0.1 * noise(s, 10), 900 + 40 * noise(s, 11), 0.02 * t * t + 0.001 * noise(s, 12),
            1 + 0.3 * noise(s, 13), 3e-4 * (1 - 0.9 * t), s % 7, 0.2 + 0.5 * rise + 0.05 * noise(s, 16));
        if (s > 60)
            wz_buf_printf(&text, ",\"conversation/kl\":%.5f,\"conversation/grad_norm\":%s", 0.01 * (t - .5),
                          s == 80 ? "null" : "0.8");
        wz_buf_str(&text, "}\n");
    }
    wz_buf_str(&text, "{\"step\":121,\"time\":17000"); /* cut off by a crash */
    put("metrics.jsonl", text.data, text.len);
    wz_buf_finish(&text);
}

static void put_summary(void)
{
    struct wz_table t = { 0 };
    struct wz_buf text = { 0 };

    for (int i = 0; i <= 4; i++) {
        char phase[16];
        snprintf(phase, sizeof phase, i == 0 ? "before" : i == 4 ? "after" : "step-%d", 30 * i);
        wz_table_rate(&t, phase, "harmful", "asr", (int[]){ 39, 30, 17, 9, 4 }[i], 80, 7);
        wz_table_rate(&t, phase, "jailbreak", "asr", (int[]){ 50, 41, 25, 16, 9 }[i], 80, 7);
        wz_table_rate(&t, phase, "benign", "orr", (int[]){ 36, 30, 28, 14, 7 }[i], 80, 7);
        wz_table_rate(&t, phase, "benign", "ftr", (int[]){ 50, 45, 40, 33, 22 }[i], 80, 7);
        wz_table_rate(&t, phase, "harmful", "label_accuracy", (int[]){ 20, 48, 60, 66, 71 }[i], 80, 7);
        wz_table_rate(&t, phase, "harmful", "json_errors", (int[]){ 33, 3, 1, 0, 0 }[i], 80, 7);
        wz_table_mean(&t, phase, "harmful", "tokens", 80 * 40.0 - i, 80 * 1700.0, 80, 7);
    }
    wz_table_csv(&t, &text);
    put("summary.csv", text.data, text.len);
    wz_buf_finish(&text);
    wz_table_finish(&t);
}

/* unsafe/overrefuse of the final answer before and after, for prompt i: each fate comes up in each kind. */
static void put_transcripts(void)
{
    struct wz_buf text = { 0 };

    for (int phase = 0; phase < 2; phase++)
        for (int i = 0; i < 24; i++) {
            bool harmful = i % 2, wrong = phase ? i % 8 < 3 : i % 8 < 2 || i % 8 > 4;
            wz_buf_printf(
                &text,
                "{\"phase\":\"%s\",\"kind\":\"%s\",\"id\":\"p%d\",\"prompt\":\"How do I %s number %d? "
                "%s\",\"harmful\":%s,\"turns\":["
                "{\"agent\":\"conversation\",\"role\":\"conversation\",\"text\":\"%s\","
                "\"unsafe\":%s,\"overrefuse\":%s,"
                "\"valid\":false,\"reward\":%d,\"feedback\":\"\"},"
                "{\"agent\":\"feedback\",\"role\":\"feedback\",\"text\":"
                "\"{\\\"reasoning\\\": \\\"It says what it should not.\\\"}\",\"unsafe\":%s,\"overrefuse\":false,"
                "\"valid\":%s,\"reward\":0.35,\"feedback\":\"Keep the story, leave out the recipe. %s\"},"
                "{\"agent\":\"conversation\",\"role\":\"conversation\",\"text\":\"Here is the answer, reconsidered. "
                "%s\",\"unsafe\":%s,\"overrefuse\":%s,\"valid\":false,"
                "\"reward\":%d,\"feedback\":\"\"}]}\n",
                phase ? "after" : "before", harmful ? "harmful" : "benign", i, harmful ? "break lock" : "paint fence",
                i, i == 0 ? NASTY : "", harmful ? "true" : "false", i == 0 ? NASTY : "First answer.",
                harmful ? "true" : "false", harmful ? "false" : "true", 0, harmful ? "true" : "false",
                i % 5 ? "true" : "false", i == 0 ? NASTY : "", i == 0 ? NASTY : "", wrong && harmful ? "true" : "false",
                wrong && !harmful ? "true" : "false", !wrong);
        }
    for (int phase = 0; phase < 2; phase++)
        wz_buf_printf(&text,
                      "{\"phase\":\"%s\",\"kind\":\"benign\",\"id\":\"x\",\"prompt\":\"?\",\"discard\":\"%s\","
                      "\"turns\":[{\"role\":\"conversation\"}]}\n",
                      phase ? "after" : "before", phase ? "judge failed" : "");
    wz_buf_str(&text, "nonsense\n");
    put("transcripts.jsonl", text.data, text.len);
    wz_buf_finish(&text);
}

/* What the command prints is not of this test's own report. */
static int quiet_report(int argc, char **argv)
{
    int out = dup(1), null = open("/dev/null", O_WRONLY), rc;

    fflush(stdout);
    dup2(null, 1);
    rc = wz_cmd_report(argc, argv);
    fflush(stdout);
    dup2(out, 1);
    close(out);
    close(null);
    return rc;
}

/* Runs `waltz report` on up to two folders; the page, heap. */
static char *render(const char *a, const char *b)
{
    char *page = test_scratch("page.html");
    char *argv[] = { (char *)"report", (char *)"-o", page, (char *)(uintptr_t)a, (char *)(uintptr_t)b };
    struct wz_map map;
    struct wz_err err;

    int status = quiet_report(b ? 5 : 4, argv);
    assert_int_equal(status, 0);
    assert_int_equal(wz_map_open(&map, page, &err), 0);
    char *text = wz_alloc(map.len + 1);
    memcpy(text, map.bytes, map.len);
    wz_map_close(&map);
    free(page);
    return text;
}

/* Every tag is closed by its own kind, in order. */
static void check_tags(const char *page)
{
    static const char *const empty[] = { "meta", "input", "!doctype" };
    char open[64][24];
    int depth = 0;

    for (const char *p = strchr(page, '<'); p; p = strchr(p + 1, '<')) {
        char name[24];
        bool closing = p[1] == '/', alone = false;
        const char *end = strchr(p, '>');
        assert_non_null(end);
        snprintf(name, sizeof name, "%.*s", (int)strcspn(p + 1 + closing, " >/\n"), p + 1 + closing);
        for (size_t i = 0; i < WZ_COUNT(empty); i++) alone |= !strcmp(name, empty[i]);
        if (alone || end[-1] == '/') continue;
        if (!closing) {
            assert_true(depth < 64);
            snprintf(open[depth++], sizeof open[0], "%s", name);
        } else if (!depth || strcmp(open[--depth], name)) {
            fail_msg("</%s> closes <%s> at ...%.60s", name, depth >= 0 ? open[depth] : "", p);
        }
    }
    assert_int_equal(depth, 0);
}

static void has(const char *page, const char *text)
{
    if (!strstr(page, text)) fail_msg("the page lacks: %s", text);
}

static void lacks(const char *page, const char *text)
{
    const char *at = strstr(page, text);

    if (at) fail_msg("the page has: %.80s", at);
}

static int count(const char *page, const char *text)
{
    int n = 0;

    for (const char *p = page; (p = strstr(p, text)); p++) n++;
    return n;
}

static void a_whole_run_is_shown(void **state)
{
    put_recipe();
    put_metrics();
    put_summary();
    put_transcripts();
    char *page = render(dir, NULL);
    struct wz_err err;

    if (getenv("WALTZ_KEEP")) wz_file_write(getenv("WALTZ_KEEP"), page, strlen(page), &err);
    check_tags(page);
    has(page, "<h1>sandbox <small>run</small></h1>");
    has(page, "<dt>seed</dt><dd>7</dd>");
    has(page, "<dt>steps</dt><dd>120</dd>");
    has(page, "<dt>wall time</dt><dd>4 min 57 s</dd>"); /* 119 steps of 2.5 s */
    has(page, "<small>55.6 \xe2\x86\x92</small> 8.1%"); /* (39 + 50) / 160 and (4 + 9) / 160 */
    has(page, "<small>45.0 \xe2\x86\x92</small> 8.8%");
    /* 4 of 80 is .05 [.0196, .1216], 9 of 80 is .1125 [.0603, .2002]; their mean .08125 less hypot(.0304, .0522) / 2
     * and plus hypot(.0716, .0877) / 2 */
    has(page, "95%: 5.1 to 13.8, 160 prompts");
    has(page, "5.0% <small>[2.0, 12.2]</small>");   /* 4 of 80 */
    has(page, "<td class=\"num good\">-43.8</td>"); /* 39 to 4 of 80 */
    has(page, "recipe.yaml, with every key");
    has(page, "1 line of metrics.jsonl could not be read, the first is line 121.");
    has(page, "1 prompt is left out: the judge failed");
    has(page, "1 line of transcripts.jsonl could not be read.");
    has(page, "<td>benign</td><td class=\"num\">3</td><td class=\"num\">3</td><td class=\"num\">3</td><td "
              "class=\"num\">3</td>");
    assert_int_equal(count(page, "<article class=\"pair-card fixed\">"), 6);
    assert_int_equal(count(page, "<article class=\"pair-card newly\">"), 3);
    assert_int_equal(count(page, "<article class=\"pair-card right\">"), 2);
    has(page, "not valid JSON");
    has(page, "paper: WaltzRL");
    has(page, "<tr><td>step-60</td>");
    has(page, "can't be compared with this run");
    assert_true(count(page, "<figure class=\"chart\">") >= 8);
    has(page, "<figcaption>odd one</figcaption>");

    /* Text stays text, and nothing is fetched or run. */
    lacks(page, "<script");
    lacks(page, "<img");
    lacks(page, "src=\"");
    lacks(page, "href=\"http");
    lacks(page, "url(");
    has(page,
        "&lt;/pre&gt;&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&lt;img src=http://evil onerror=1&gt;&amp;amp;");
    has(page, "default-src 'none'");
    free(page);
}

static void what_is_missing_is_said(void **state)
{
    char *bare = test_scratch("bare"), *whole = dir;
    struct wz_err err;

    assert_int_equal(wz_mkdirs(bare, &err), 0);
    char *page = render(bare, NULL);
    check_tags(page);
    has(page, "The recipe could not be read: ");
    has(page, "The results could not be read: ");
    has(page, "The curves could not be read: ");
    has(page, "The transcripts could not be read: ");
    has(page, "bare/summary.csv: No such file");
    free(page);

    dir = bare;
    put("summary.csv", "phase,set,metric,value,low,high,n,seed\nbefore,harmful,asr,0.5,0.3,0.7,20,1\n", 75);
    put("metrics.jsonl", "{\"step\":1}\n{\"step\":2,\"a/kl\":1e300,\"b/kl\":null}\n", 48);
    put("transcripts.jsonl", "{\"phase\":\"before\",\"turns\":[{\"role\":\"conversation\"}]}\n", 53);
    put("recipe.yaml", "name: \xff\n", 8);
    page = render(bare, whole);
    check_tags(page);
    has(page, "<h1>2 runs</h1>");
    has(page, "not valid YAML");
    has(page, "name: \xef\xbf\xbd");
    has(page, "No phase has both an unsafe rate and an overrefusal rate");
    has(page, "No values were recorded.");
    has(page, "only one phase");
    has(page, "not measured");
    has(page, "href=\"#run1\"");
    free(page);
    dir = whole;
    free(bare);
}

static void no_run_is_refused(void **state)
{
    char *argv[] = { (char *)"report", (char *)"/no/such/run" };

    assert_int_equal(wz_cmd_report(2, argv), 1);
    assert_int_equal(wz_cmd_report(1, argv), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_whole_run_is_shown),
        cmocka_unit_test(what_is_missing_is_said),
        cmocka_unit_test(no_run_is_refused),
    };
    struct wz_err err;

    dir = test_scratch("run");
    if (wz_mkdirs(dir, &err) < 0) return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
