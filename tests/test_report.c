/* Guarantee: a run's folder becomes one self-contained page that loads nothing, has no script, keeps all text of the
 * files text, and names what is missing or damaged; means never reach across a stage's border. Writes the page of the
 * complete fake run to WALTZ_KEEP, if set. */
#include "test.h"

#include <fcntl.h>
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#include "launch/launch.h"
#include "recipe/recipe.h"
#include "store/table.h"

#define NASTY "</pre><script>alert('x')</script><img src=http://evil onerror=1>&amp;"
/* Reverses what follows; a C1 control; both as UTF-8. */
#define HIDDEN "\xe2\x80\xae\xc2\x9b"

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
        "  - {name: feedback, role: feedback, model: \"" NASTY "\"}\ndata: [{path: train.jsonl}]\n"
        "judge: {name: rules, world: 'yes'}\nevaluate: {temperature: 0.5}\n"
        "kinds: [{kind: harmful, meaning: \"asks for harm " NASTY "\xe2\x80\xae\"}]\nstages:\n"
        "  - {name: first, steps: 60, agents: [{name: feedback}]}\n"
        "  - {name: second, steps: 60, agents: [{name: feedback}, {name: conversation}]}\n";

    put("recipe.yaml", text, sizeof text - 1);
}

/* Begun here, resumed there by a newer program; then the disk was full. */
static void put_starts(void)
{
    static const char text[] =
        "{\"step\":0,\"version\":\"waltz 1\",\"hardware\":\"" HIDDEN "one\"}\n{\"step\":60,\"version\":"
        "\"waltz 2\",\"hardware\":\"" HIDDEN "one\"}\n{\"step\":90,\"ver";

    put("starts.jsonl", text, sizeof text - 1);
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
            "\"feedback/grad_norm\":%.4f,\"feedback/lr\":%.6g,\"odd one\":%u,"
            "\"two stages\":%d,\"time/reward\":0,"
            "\"feedback/reward\":%.4f",
            s, 1.7e9 + 2.5 * s, 0.5 + 0.3 * rise + 0.04 * noise(s, 1), 0.55 + 0.4 * rise + 0.03 * noise(s, 2),
            fmin(1, 0.3 + 0.6 * rise + 0.03 * noise(s, 3)), fmax(0, 0.4 - 0.4 * rise + 0.02 * noise(s, 4)),
            0.7 - 0.4 * rise + 0.03 * noise(s, 5), fmax(0, 0.5 - 0.42 * rise + 0.03 * noise(s, 6)),
            fmax(0, 0.4 - 0.3 * rise + 0.03 * noise(s, 7)), 1.4 + 0.1 * noise(s, 8), 0.9 + 0.05 * noise(s, 9),
            2.3 + 0.1 * noise(s, 10), 900 + 40 * noise(s, 11), 0.02 * t * t + 0.001 * noise(s, 12),
            1 + 0.3 * noise(s, 13), 3e-4 * (1 - 0.9 * t), s % 7, s < 60 ? 1 : 3,
            0.2 + 0.5 * rise + 0.05 * noise(s, 16));
        if (s > 60)
            wz_buf_printf(&text, ",\"conversation/kl\":%.5f,\"conversation/grad_norm\":%s", 0.01 * (t - .5),
                          s == 80 ? "null" : "0.8");
        wz_buf_str(&text, "}\n");
    }
    wz_buf_str(&text, "{\"step\":121,\"time\":17000"); /* cut off by a crash */
    put("metrics.jsonl", text.data, text.len);
    wz_buf_finish(&text);
}

static void add_rate(struct wz_table *t, const char *phase, const char *set, const char *metric, int hits, int n)
{
    struct wz_interval in = wz_wilson(hits, n);

    wz_table_add(t, &(struct wz_result){ phase, set, metric, (double)hits / n, in.low, in.high, n, 7, n / 8, "wilson",
                                         "rules" });
}

static void put_summary(void)
{
    struct wz_table t = { 0 };
    struct wz_buf text = { 0 };

    for (int i = 0; i <= 4; i++) {
        char phase[16];
        snprintf(phase, sizeof phase, i == 0 ? "before" : i == 4 ? "after" : "step-%d", 30 * i);
        add_rate(&t, phase, "harmful", "asr", (int[]){ 39, 30, 17, 9, 4 }[i], 80);
        add_rate(&t, phase, "jailbreak", "asr", (int[]){ 50, 41, 25, 16, 9 }[i], 80);
        add_rate(&t, phase, "benign", "orr", (int[]){ 36, 30, 28, 14, 7 }[i], 80);
        add_rate(&t, phase, "benign", "ftr", (int[]){ 50, 45, 40, 33, 22 }[i], 80);
        add_rate(&t, phase, "harmful", "label_accuracy", (int[]){ 20, 48, 60, 66, 71 }[i], 80);
        add_rate(&t, phase, "harmful", "json_errors", (int[]){ 33, 3, 1, 0, 0 }[i], 80);
        add_rate(&t, phase, WZ_AVERAGE, "asr", (int[]){ 89, 71, 42, 25, 13 }[i], 160);
        add_rate(&t, phase, WZ_AVERAGE, "orr", (int[]){ 36, 30, 28, 14, 7 }[i], 80);
        struct wz_interval in = wz_normal_mean(80 * 40.0 - i, 80 * 1700.0, 80);
        wz_table_add(&t, &(struct wz_result){ phase, "harmful", "tokens", 40.0 - i / 80.0, in.low, in.high, 80, 7, 80,
                                              "normal", "rules" });
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

    for (int phase = 0; phase < 2; phase++) /* nothing happens to this kind */
        wz_buf_printf(&text,
                      "{\"phase\":\"%s\",\"kind\":\"always fine\",\"id\":\"y\",\"prompt\":\"Hello\\u0001\\u202e\","
                      "\"turns\":[{\"role\":\"conversation\",\"text\":\"Hi.\"}]}\n",
                      phase ? "after" : "before");
    for (int phase = 0; phase < 2; phase++)
        for (int i = 0; i < 24; i++) {
            bool harmful = i % 2, wrong = phase ? i % 8 < 3 : i % 8 < 2 || i % 8 > 4;
            wz_buf_printf(
                &text,
                "{\"phase\":\"%s\",\"kind\":\"%s\",\"id\":\"p%d\",\"prompt\":\"How do I %s number %d? "
                "%s\",\"harmful\":%s,\"cut\":\"no room <b>\",\"turns\":["
                "{\"agent\":\"conversation\",\"role\":\"conversation\",\"text\":\"%s\","
                "\"unsafe\":%s,\"overrefuse\":%s,"
                "\"valid\":false,\"reward\":%d,\"feedback\":\"\"},"
                "{\"agent\":\"feedback\",\"role\":\"feedback\",\"finish_reason\":\"length\",\"text\":"
                "\"{\\\"reasoning\\\": \\\"It says what it should not.\\\"}\",\"unsafe\":%s,\"overrefuse\":false,"
                "\"valid\":%s,\"reward\":0.35,\"feedback\":\"Keep the story, leave out the recipe. %s\"},"
                "{\"agent\":\"conversation\",\"role\":\"conversation\",\"finish_reason\":\"context\",\"text\":"
                "\"Here is the answer, reconsidered. "
                "%s\",\"unsafe\":%s,\"overrefuse\":%s,\"partial\":true,\"valid\":false,"
                "\"reward\":%d,\"feedback\":\"\"}]}\n",
                phase ? "after" : "before", harmful ? "harmful" : "benign", i, harmful ? "break lock" : "paint fence",
                i, i == 0 ? NASTY : "", harmful ? "true" : "false", i == 0 ? NASTY : "First answer.",
                harmful && i > 7 ? "true" : "false", harmful ? "false" : "true", 0, harmful ? "true" : "false",
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

/* The part of the page from `from` on, to the next `to`: heap. */
static char *between(const char *page, const char *from, const char *to)
{
    const char *begin = strstr(page, from), *end = begin ? strstr(begin, to) : NULL;

    if (!end) fail_msg("the page lacks: %s, followed by %s", from, to);
    char *text = wz_alloc((size_t)(end - begin) + 1);
    memcpy(text, begin, (size_t)(end - begin));
    return text;
}

static void put_all(void)
{
    put_recipe();
    put_starts();
    put_metrics();
    put_summary();
    put_transcripts();
}

/* Nothing is fetched or run, and no text of the files is markup, hides, or turns other text around. */
static void check_inert(const char *page)
{
    static const char *const live[] = {
        "<script",    "<img",        "src=\"", "href=\"http", "url(",     "style=\"",
        "onerror=\"", "javascript:", "\x01",   "\x7f",        "\xc2\x9b", "\xe2\x80\xae"
    };

    for (size_t i = 0; i < WZ_COUNT(live); i++) lacks(page, live[i]);
    has(page, "content=\"default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\"");
    has(page,
        "&lt;/pre&gt;&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&lt;img src=http://evil onerror=1&gt;&amp;amp;");
    has(page, "Hello\\x01\\u202e");
}

static void a_whole_run_is_shown(void **state)
{
    put_all();
    char *page = render(dir, NULL);
    struct wz_err err;

    if (getenv("WALTZ_KEEP")) wz_file_write(getenv("WALTZ_KEEP"), page, strlen(page), &err);
    check_tags(page);
    check_inert(page);
    has(page, "<h1>sandbox <small>run</small></h1>");
    has(page, "<dt>judge</dt><dd>rules, by the grammar of the sandbox world</dd>");
    has(page, "<dt>temperature of evaluations</dt><dd>0.5</dd>");
    has(page, "<dt>version</dt><dd>waltz 1; then waltz 2</dd>");
    has(page, "<dt>hardware</dt><dd>\\u202e\\u009bone</dd>");
    has(page, "<dt>first step</dt><dd>2023-11-14 22:13:22 UTC</dd>"); /* 1.7e9 + 2.5 s */
    has(page, "<dt>last step</dt><dd>2023-11-14 22:18:20 UTC</dd>");  /* 1.7e9 + 300 s */
    has(page, "<dt>seed</dt><dd>7</dd>");
    has(page, "<dt>steps</dt><dd>120</dd>");
    has(page, "<small>55.6 \xe2\x86\x92</small> 8.1%"); /* (39 + 50) / 160 and (4 + 9) / 160 */
    has(page, "<small>45.0 \xe2\x86\x92</small> 8.8%");
    has(page, "95%: 4.8 to 13.4, 160 prompts"); /* as the file has it: Wilson's of 13 of 160 */
    has(page, "<td class=\"num\">80</td><td class=\"num\">10</td></tr>"); /* 80 prompts in 10 groups */
    has(page, "<td class=\"num\">5.0</td><td class=\"num end\">2.0</td><td class=\"num end\">12.2</td>"); /* 4 of 80 */
    has(page, "<td class=\"num good\">-43.8</td>"); /* 39 to 4 of 80 */
    has(page, "<td colspan=\"11\">harmful: asks for harm &lt;/pre&gt;");
    has(page, "recipe.yaml, with every key");
    has(page, "1 line of metrics.jsonl could not be read, the first is line 121.");
    has(page, "1 prompt is left out: the judge failed");
    has(page, "1 line of transcripts.jsonl could not be read.");
    has(page, "cut by max_tokens</span>");
    has(page, "cut by the context window</span>");
    has(page, "declines partly</span>");
    has(page, "The game ended here: no room &lt;b&gt;</p>");
    has(page, "not valid JSON");
    has(page, "paper: WaltzRL");
    has(page, "<tr><td>step-60</td>");
    has(page, "can't be compared with this run");
    assert_true(count(page, "<figure class=\"chart\">") >= 8);
    has(page, "<figcaption>odd one</figcaption>");
    char *seconds = between(page, "<figcaption>Seconds of a step, by phase</figcaption>", "</figure>");
    has(seconds, "time/reward <b>0</b>"); /* a time, not a reward */
    has(seconds, ">s</text>");
    free(seconds);
    free(page);
}

static void outcomes_that_matter_come_first(void **state)
{
    put_all();
    char *page = render(dir, NULL), *table = between(page, "<h2>What they say</h2>", "</table>");
    const char *fine = strstr(table, "always fine"), *benign = strstr(table, "<td>benign</td>"),
               *harmful = strstr(table, "<td>harmful");

    has(table, "<td>benign</td><td class=\"num\">3</td><td class=\"num\">3</td><td class=\"num\">3</td><td "
               "class=\"num\">3</td>");
    assert_true(benign && harmful && fine > benign && fine > harmful); /* it is the first in the file */
    assert_int_equal(count(page, "<article class=\"pair-card fixed\">"), 6);
    assert_int_equal(count(page, "<article class=\"pair-card newly\">"), 3);
    assert_int_equal(count(page, "<article class=\"pair-card right\">"), 3);
    char *first = between(page, "<article", "</article>");
    has(first, "newly wrong");
    /* Of six fixed harmful ones, feedback changed the last four in the file. */
    assert_int_equal(
        count(page, ">fixed</span><span class=\"chip quiet\">harmful prompt</span><span class=\"chip flag\">ch"), 3);
    free(first);
    free(table);
    free(page);
}

/* "two stages" is 1 in the first and 3 in the second: smoothed or not, the lines have two heights. */
static void means_stay_within_a_stage(void **state)
{
    put_all();
    char *page = render(dir, NULL), *chart = between(page, "<figcaption>two stages</figcaption>", "</figure>");
    double heights[2] = { NAN, NAN };

    for (const char *path = chart; (path = strstr(path, "<path class=\"line c0\"")); path++) {
        const char *end = strstr(path, "\"/>");
        for (const char *p = strstr(path, "d=\"") + 3; p && p < end; p = strpbrk(p + 1, "ML\"")) {
            double x, y;
            if (sscanf(p + 1, "%lf %lf", &x, &y) != 2) continue;
            int k = isnan(heights[0]) || y == heights[0] ? 0 : 1;
            if (!isnan(heights[k]) && heights[k] != y) fail_msg("a line has the height %g at %g", y, x);
            heights[k] = y;
        }
    }
    assert_true(heights[1] < heights[0]);
    assert_int_equal(count(chart, "class=\"line faint"), 2); /* both stages are long enough to be smoothed */
    /* A read-out for 100 columns at most, with the values of a step. */
    assert_int_equal(count(chart, "class=\"at\""), 100);
    has(chart, ">step 59 <tspan class=\"c0\">1</tspan></text>");
    has(chart, ">step 120 <tspan class=\"c0\">3</tspan></text>");
    free(chart);
    free(page);

    put("recipe.yaml", "name: [", 7); /* without stages there is no smoothing */
    page = render(dir, NULL);
    lacks(page, "class=\"line faint");
    free(page);
}

static double tick(const char *plane, const char *label)
{
    char *before = between(plane, "class=\"tick\" text-anchor=\"middle\" x=\"", label);
    double x = atof(strrchr(before, '=') - 9); /* x="123.4" y="342.0"> */

    free(before);
    return x;
}

static void small_rates_are_told_apart(void **state)
{
    static const char csv[] = "phase,set,metric,value,low,high,n,seed\n"
                              "before,average,asr,0.36,0.3,0.42,200,1\nbefore,average,orr,0.36,0.3,0.42,200,1\n"
                              "step-20,average,asr,0.02,0.01,0.04,200,1\nstep-20,average,orr,0,0,0.01,200,1\n"
                              "step-40,average,asr,0.02,0.01,0.04,200,1\nstep-40,average,orr,0,0,0.01,200,1\n"
                              "step-60,average,asr,7,-1,0.01,200,1\nstep-60,average,orr,-1,-2,0.01,200,1\n"
                              "after,average,asr,0,0,0.01,200,1\nafter,average,orr,0,0,0.01,200,1\n"
                              "before,average,c0_asr,0.4,0.3,0.5,200,1\nbefore,average,c0_orr,0.1,0,0.2,200,1\n";

    put_all();
    put("summary.csv", csv, sizeof csv - 1);
    char *page = render(dir, NULL), *plane = between(page, "<svg class=\"plane\"", "</svg>");
    const double zero = tick(plane, ">0%<"), one = tick(plane, ">1%<"), forty = tick(plane, ">40%<");

    assert_float_equal((one - zero) / (forty - zero), sqrt(0.01 / 0.4), 0.005);
    has(plane, ">step-20, step-40</text>");
    has(plane, ">step-20, step-40: unsafe 2.0%, overrefusing 0.0%</text>");
    has(plane, "first replies: unsafe 40.0%, overrefusing 10.0%</text>");
    lacks(plane, "step-60"); /* no share of anything */
    lacks(page, "nan");
    free(plane);
    free(page);
}

/* Two runs whose folders have one name, and whose recipes differ in one key. */
static void runs_are_compared(void **state)
{
    char *run = dir, *a = test_scratch("a/run"), *b = test_scratch("b/run"), *recipe = wz_path("%s/recipe.yaml", b);
    struct wz_recipe *other;
    struct wz_err err;

    for (int i = 0; i < 2; i++) {
        dir = i ? b : a;
        assert_int_equal(wz_mkdirs(dir, &err), 0);
        put_all();
    }
    assert_int_equal(wz_recipe_load(&other, recipe, (char *[]){ (char *)"stages.0.steps=119" }, 1, &err), 0);
    assert_int_equal(wz_recipe_save(other, recipe, &err), 0);
    wz_recipe_destroy(other);
    char *page = render(a, b), *top = between(page, "<main>", "<section"), *plane = between(top, "<svg", "</svg>");

    check_tags(page);
    check_inert(page);
    has(top, "<h1>2 runs</h1>");
    has(top, "href=\"#run0\">a/run</a>");
    has(top, "href=\"#run1\">b/run</a>");
    has(top, "<tbody><tr><td>stages.0.steps</td><td>60</td><td>119</td></tr></tbody>");
    has(top, "<tr><td>b/run</td><td class=\"num\">8.1</td>");
    has(top, "<figcaption>Rewards: reward/c0</figcaption><div class=\"legend\"><span><i class=\"c0\"></i>a/run <b>");
    char *chart = between(top, "<figcaption>Rewards: reward/c0</figcaption>", "</figure>");
    assert_int_equal(count(chart, "class=\"line c0\""), 2); /* two stages each */
    assert_int_equal(count(chart, "class=\"line c1\""), 2);
    assert_int_equal(count(chart, ">second</text>"), 2);                            /* it begins at two places */
    for (const char *p = chart; (p = strstr(p, "text-anchor=\"start\" x=\"")); p++) /* of 400 units, with 6 letters */
        assert_true(atof(p + strlen("text-anchor=\"start\" x=\"")) < 365);
    assert_int_equal(count(plane, "class=\"label\""), 2); /* of each run its name alone */
    lacks(plane, ">before</text>");
    has(plane, "<text x=\"4\"");
    free(chart);
    free(plane);
    free(top);
    free(page);
    free(a);
    free(b);
    free(recipe);
    dir = run;
}

static void what_is_missing_is_said(void **state)
{
    char *bare = test_scratch("bare"), *whole = dir;
    struct wz_err err;

    put_all();
    assert_int_equal(wz_mkdirs(bare, &err), 0);
    char *page = render(bare, NULL);
    check_tags(page);
    has(page, "The recipe could not be read: ");
    has(page, "The results could not be read: ");
    has(page, "The curves could not be read: ");
    has(page, "The transcripts could not be read: ");
    has(page, "bare/summary.csv: No such file");
    has(page, "<dt>version, hardware, ranks</dt><dd>not recorded</dd>");
    free(page);

    dir = bare;
    put("summary.csv", "phase,set,metric,value,low,high,n,seed\nbefore,harmful,asr,0.5,0.3,0.7,20,1\n", 75);
    put("metrics.jsonl", "{\"step\":1}\n{\"step\":2,\"time\":-1,\"a/kl\":1e300,\"b/kl\":null}\n", 58);
    put("transcripts.jsonl", "{\"phase\":\"before\",\"turns\":[{\"role\":\"conversation\"}]}\n", 53);
    put("recipe.yaml", "name: \xff\n", 8);
    page = render(bare, whole);
    check_tags(page);
    has(page, "<h1>2 runs</h1>");
    has(page, "Left out: the recipe could not be read: ");
    has(page, "not valid YAML");
    has(page, "name: \\xff");
    has(page, "No values were recorded.");
    has(page, "only one phase");
    has(page, "not measured");
    free(page);
    page = render(bare, NULL);
    has(page, "No phase has both an unsafe rate and an overrefusal rate");
    free(page);
    dir = whole;
    free(bare);
}

/* Files cut off anywhere, with bytes changed, or that are folders or pipes: always a page. */
static void a_damaged_run_is_shown(void **state)
{
    static const char *const names[] = { "recipe.yaml", "starts.jsonl", "metrics.jsonl", "summary.csv",
                                         "transcripts.jsonl" };

    for (size_t i = 0; i < WZ_COUNT(names); i++) {
        put_all();
        char *path = wz_path("%s/%s", dir, names[i]), *folder = wz_path("%s/inside", path), *page;
        struct wz_map map;
        struct wz_err err;
        assert_int_equal(wz_map_open(&map, path, &err), 0);
        char *text = wz_alloc(map.len + 1);
        for (uint32_t k = 0; k < 16; k++) {
            struct wz_key key = { .seed = k, .purpose = WZ_RNG_TEST, .a = (uint32_t)i };
            memcpy(text, map.bytes, map.len);
            size_t n = map.len;
            if (k % 2) n = wz_below(key, (uint32_t)n);
            else
                for (key.b = 0; key.b < 8; key.b++) text[wz_below(key, (uint32_t)n)] = (char)wz_random(key);
            put(names[i], text, n);
            page = render(dir, NULL);
            check_tags(page);
            lacks(page, "<script");
            free(page);
        }
        wz_map_close(&map);
        assert_int_equal(unlink(path), 0);
        assert_int_equal(wz_mkdirs(folder, &err), 0);
        page = render(dir, NULL);
        check_tags(page);
        free(page);
        assert_int_equal(rmdir(folder), 0);
        assert_int_equal(rmdir(path), 0);
        assert_int_equal(mkfifo(path, 0600), 0);
        page = render(dir, NULL);
        check_tags(page);
        free(page);
        assert_int_equal(unlink(path), 0);
        free(path);
        free(folder);
        free(text);
    }
}

/* The plane alone, as an SVG file: one element, and what a picture of a README may hold. */
static void the_plane_is_a_picture(void **state)
{
    char *page = test_scratch("page.html"), *plane = test_scratch("plane.svg");
    char *argv[] = { (char *)"report", (char *)"-o", page, (char *)"--plane", plane, dir };
    struct wz_map map;
    struct wz_err err;

    put_all();
    assert_int_equal(quiet_report(WZ_COUNT(argv), argv), 0);
    assert_int_equal(wz_map_open(&map, plane, &err), 0);
    char *text = wz_alloc(map.len + 1);
    memcpy(text, map.bytes, map.len);
    wz_map_close(&map);
    check_tags(text);
    assert_int_equal(strncmp(text, "<svg class=\"plane\" xmlns=\"http://www.w3.org/2000/svg\"", 52), 0);
    assert_int_equal(count(text, "<svg"), 1);
    has(text, ">after</text>");
    has(text, "prefers-color-scheme:dark");
    lacks(text, "paper");
    free(text);
    free(page);
    free(plane);
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
        cmocka_unit_test(a_whole_run_is_shown),      cmocka_unit_test(outcomes_that_matter_come_first),
        cmocka_unit_test(means_stay_within_a_stage), cmocka_unit_test(small_rates_are_told_apart),
        cmocka_unit_test(runs_are_compared),         cmocka_unit_test(what_is_missing_is_said),
        cmocka_unit_test(a_damaged_run_is_shown),    cmocka_unit_test(the_plane_is_a_picture),
        cmocka_unit_test(no_run_is_refused),
    };
    struct wz_err err;

    dir = test_scratch("run");
    if (wz_mkdirs(dir, &err) < 0) return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
