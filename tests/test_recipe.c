/* Guarantee: a recipe means what it says. Every key has a default, a zero given stays a zero, what is wrong is
 * refused with its line and key (an old key with its new name), overrides reach every key, a saved recipe loads as the
 * same recipe, and a run is resumed only by a recipe that gives the same bits. */
#include "test.h"

#include "recipe/recipe.h"

static const char *corpus, *reference; /* the folder of examples; docs/recipe.md */

static char *write_recipe(const char *text)
{
    char *path = test_scratch("recipe.yaml");
    struct wz_err err;

    assert_int_equal(wz_file_write(path, text, strlen(text), &err), 0);
    return path;
}

static struct wz_recipe *load(const char *text, char *const *overrides, int n)
{
    char *path = write_recipe(text);
    struct wz_recipe *recipe;
    struct wz_err err = { "" };

    if (wz_recipe_load(&recipe, path, overrides, n, &err) < 0) fail_msg("%s", err.text);
    free(path);
    return recipe;
}

#define HEAD                                                                                                   \
    "name: t\nagents:\n  - {name: c, role: conversation, model: m}\n  - {name: f, role: feedback, model: m}\n" \
    "data: [{path: d.jsonl}]\n"

/* A stage in which agent f learns with this; its mapping is on line 9 of the file. */
#define LEARNS(how) "stages:\n  - name: s\n    steps: 1\n    agents: [{name: f, " how "}]\n"

static void absent_keys_have_defaults(void **state)
{
    struct wz_recipe *r = load(HEAD "stages:\n  - name: s\n    steps: 4\n"
                                    "    agents: [{name: f}, {name: c, kl_coef: 0, clip_eps: 0.1, max_grad_norm: 0}]\n",
                               NULL, 0);
    const struct wz_recipe_learn *f = wz_recipe_learn(&r->stages[0], "f"), *c = wz_recipe_learn(&r->stages[0], "c");

    assert_string_equal(r->out, "runs/t");
    assert_true(r->seed == 1);
    assert_string_equal(r->backend, "auto");
    assert_string_equal(r->link, "auto");
    assert_true(r->deadline == 300);
    assert_int_equal(r->rollout.max_rounds, 1);
    assert_int_equal(r->rollout.kv_page_tokens, 16);
    assert_int_equal(r->rollout.max_num_seqs, 64);
    assert_string_equal(r->judge.name, "rules");
    assert_int_equal(r->n_agents, 2);
    assert_int_equal(wz_recipe_agent(r, "f"), 1);
    assert_int_equal(wz_recipe_agent(r, "x"), -1);
    assert_string_equal(r->agents[1].type, "f32");
    assert_string_equal(r->agents[1].system, "");
    assert_int_equal(r->agents[1].max_tokens, 512);
    assert_true(r->agents[1].temperature == 1 && r->agents[1].top_p == 1 && r->agents[1].min_p == 0);
    assert_string_equal(r->data[0].column, "prompt");
    assert_int_equal(r->n_eval, 0);
    assert_null(r->eval);
    assert_int_equal(r->stages[0].batch, 32);
    assert_int_equal(r->stages[0].n_mix, 0);
    assert_true(f->beta1 == .9 && f->beta2 == .95 && f->eps == 1e-8 && f->weight_decay == 0 && f->max_grad_norm == 1 &&
                f->lr == 5e-7);
    assert_true(f->kl_coef == .01 && f->clip_eps == .2 && f->alpha == .65 && f->lambda == .25 && f->gamma == .1);
    assert_true(f->revision_prob == .5 && f->warmup == 0 && f->min_lr_ratio == .1);
    assert_string_equal(f->loss_mean, "sequence");
    assert_string_equal(f->feedback_bonus, "dir");
    assert_true(c->kl_coef == 0 && c->clip_eps == .1 && c->max_grad_norm == 0); /* a zero given is not an absent key */
    assert_null(wz_recipe_learn(&r->stages[0], "x"));
    wz_recipe_destroy(r);
}

static void wrong_is_named_with_its_line(void **state)
{
    static const struct {
        const char *text, *want;
    } cases[] = {
        { "", "is empty" },
        { "# nothing\n", "is empty" },
        { "- a\n", ":1: the recipe: expected keys with values" },
        { "name: t\nstagess: []\n", ":2: the recipe has no key 'stagess'; did you mean 'stages'?" },
        { "name: t\nqqqqqqqq: 1\n", ":2: the recipe has no key 'qqqqqqqq'" },
        { "name: t\nseed: 1\nname: u\n", ":3: the recipe: key 'name' was given on line 1 already" },
        { "seed: 1\n", ":1: name must be given" },
        { "name:\n", "name must be given" },
        { "name: ''\n", ":1: name: '' is not a name" },
        { "name: a/b\n", ":1: name: 'a/b' is not a name" },
        { "name: t\nseed: -1\n", ":2: seed: '-1' is not a whole number from 0 to 2^64-1" },
        { "name: t\nseed: 18446744073709551616\n", ":2: seed: '18446744073709551616'" },
        { "name: t\nthreads: two\n", ":2: threads: 'two' is not a whole number" },
        { "name: t\nthreads: 1.5\n", ":2: threads: '1.5' is not a whole number" },
        { "name: t\nthreads: 010\n", ":2: threads: '010' is not a whole number" },
        { "name: t\nthreads: 99999999999999999999\n", ":2: threads: " },
        { "name: t\nthreads: 3000000000\n", ":2: threads: expected a number in [0,4096], got 3000000000" },
        { "name: t\nthreads: [1]\n", ":2: threads: expected one value, got a list" },
        { "name: t\nthreads: {a: 1}\n", ":2: threads: expected one value, got a mapping" },
        { "name: t\ndeadline: 0\n", ":2: deadline: expected a number in (0," },
        { "name: t\ndeadline: nan\n", ":2: deadline: 'nan' is not a number" },
        { "name: t\ndeadline: 1e999\n", ":2: deadline: '1e999' is not a number" },
        { "name: t\ndeadline: 5s\n", ":2: deadline: '5s' is not a number" },
        { "name: t\nbackend: a/b\n", ":2: backend: 'a/b' is not a name" },
        { "name: t\nnumerics: {nccl_sum: chain}\n", ":2: numerics.nccl_sum: 'chain' is none of tree|ring" },
        { "name: t\njudge:\n  nme: rules\n", ":3: judge has no key 'nme'; did you mean 'name'?" },
        { "name: t\njudge: rules\n", ":2: judge: expected keys with values" },
        { "name: t\nagents: c\n", ":2: agents: expected a list" },
        { "name: t\nagents:\n  - c\n", ":3: agents.0: expected keys with values" },
        { "name: t\nagents:\n  - name: c\n    role: conversation\n", ":3: agents.0.model must be given" },
        { "name: t\nagents:\n  - name: c\n    role: boss\n    model: m\n",
          ":4: agents.0.role: 'boss' is none of conversation|feedback" },
        { "name: t\nagents: [{},{},{},{},{},{},{},{},{}]\n", ":2: agents: 9 elements, at most 8" },
        { "name: t\n", "nothing to do" },
        { "name: t\nagents: [{name: f, role: feedback, model: m}]\n", "none has the role conversation" },
        { "name: t\nagents: [{name: c, role: conversation, model: m}]\nevaluate: {attempts: 2}\n",
          "evaluate.attempts: expected 1 without an agent with the role attacker" },
        { "name: t\nagents: [{name: c, role: conversation, model: m}, {name: a, role: attacker, model: m}]\n"
          "evaluate: {search: {by: gcg}}\n",
          "evaluate.search.by: expected none with an agent with the role attacker" },
        { "name: t\nagents: [{name: c, role: conversation, model: m}]\nevaluate: {search: {by: gcg}, attempts: 2}\n",
          "evaluate.attempts: expected 1 without an agent with the role attacker" },
        { "name: t\nagents: [{name: c, role: conversation, model: m}]\n"
          "evaluate: {search: {by: autodan, text: \"a {prompt}\\nb {prompt} {prompt}\\n\"}}\n",
          "evaluate.search.text: expected {prompt} once in each line, not so in 2" },
        { "name: t\nagents: [{name: c, role: conversation, model: m}]\n"
          "evaluate: {search: {by: autodan, text: \"a\\nb {prompt}\"}}\n",
          "evaluate.search.text: expected {prompt} once in each line, not so in 1" },
        { "name: t\nagents: [{name: c, role: conversation, model: m}]\nevaluate: {branching: 2}\n",
          "evaluate.attempts: expected 1 without an agent with the role attacker, and branching 1" },
        { "name: t\nagents: [{name: c, role: conversation, model: m}]\njudges: [{name: r}, {name: t, role: topic}]\n",
          "judges: one has the role topic, and no agent the role attacker" },
        { "name: t\nagents: [{name: c, role: conversation, model: m}, {name: a, role: attacker, model: m}]\n"
          "evaluate: {attempts: 4, branching: 60, width: 60}\n",
          "evaluate.attempts: expected at most 10000 attempts in all, got 10860" },
        { "name: t\nagents: [{name: c, role: conversation, model: m}, {name: a, role: attacker, model: m}]\n"
          "eval: [{path: p, prefill: {path: q}}]\nevaluate: {attempts: 2}\n",
          "eval.0.prefill.path: the prompts of several attempts" },
        { HEAD "stages:\n  - name: s\n    steps: -1\n", ":8: stages.0.steps: expected a number in [0,1e9], got -1" },
        { HEAD "stages:\n  - name: s\n    steps: 1\n    batch: 0\n",
          ":9: stages.0.batch: expected a number in [1,1e6], got 0" },
        { HEAD "stages:\n  - name: s\n    steps: 1\n    agents:\n      - name: f\n        lr: -1\n",
          ":11: stages.0.agents.0.lr: expected a number in [0,1], got -1" },
        { HEAD "stages:\n  - {name: s, steps: 1, agents: [{name: f, eps: 1e-300}]}\n", "[1e-30,1)" }, /* 0 as f32 */
        { HEAD "stages:\n  - {name: s, steps: 1, agents: [{name: f, clip_eps: 0}]}\n",
          ":7: stages.0.agents.0.clip_eps: expected a number in (0,1), got 0" },
        { HEAD "stages:\n  - {name: s, steps: 1, agents: [{name: f, clip_eps: 1}]}\n",
          ":7: stages.0.agents.0.clip_eps: expected a number in (0,1), got 1" },
        { HEAD "stages:\n  - {name: s, steps: 1, agents: [{name: f, loss_mean: mean}]}\n", "sequence|token" },
        { HEAD "stages:\n  - {name: s, steps: 1, agents: [{name: f, feedback_bonus: all}]}\n", "dir|outcome" },
        { HEAD "stages:\n  - {name: s, steps: 1, mix: [{kind: a, share: 0}]}\n",
          ":7: stages.0.mix.0.share: expected a number in " },
        { HEAD "stages:\n  - {name: s, steps: 1, mix: [{kind: a, share: 1}, {kind: a, share: 1}]}\n",
          ":7: stages.0.mix.1.kind: kind 'a'" },
        { HEAD "stages:\n  - name: s\n    steps: 1\n    agents: [{name: g}]\n",
          ":9: stages.0.agents.0.name: there is no agent 'g'" },
        { HEAD "stages:\n  - name: s\n    steps: 1\n    agents:\n    - name: f\n    - name: f\n",
          ":11: stages.0.agents.1.name: agent 'f' is in" },
        { HEAD "stages:\n  - {name: s, steps: 1}\n  - {name: s, steps: 1}\n",
          ":8: stages.1.name: there is a stage 's' already" },
        { "name: t\nagents:\n  - {name: c, role: conversation, model: m}\n  - {name: c, role: feedback, model: m}\n",
          ":4: agents.1.name: there is an agent 'c'" },
        { "name: t\nagents:\n  - {name: c, role: conversation, model: m, temperature: 0}\ndata: [{path: d}]\nstages:\n"
          "  - {name: s, steps: 1, agents: [{name: c}]}\n",
          ":6: stages.0.agents.0.name: agent 'c' has temperature 0" },
        { "name: t\nagents:\n  - {name: c, role: conversation, model: m}\n  - {name: d, role: conversation, model: "
          "m}\n",
          ":4: agents.1.role: agent 'c' has the role conversation already" },
        { "name: t\nagents:\n  - {name: c, role: conversation, model: m}\n"
          "  - {name: o, role: oracle, model: m, says: {unsafe: x}}\n",
          "agents.1.says.overrefuse: an agent with the role oracle needs its words here" },
        { "name: t\nagents:\n  - {name: c, role: conversation, model: m}\n  - {name: g, role: guard, model: m}\n",
          "agents.1.says.unsafe: an agent with the role guard needs its words here" },
        { "name: t\nagents:\n  - {name: c, role: conversation, model: m}\n"
          "  - {name: g, role: guard, model: m, says: {unsafe: x}}\n",
          ":4: agents.1.role: no judge has the role guard, and 'g' would never speak" },
        { "name: t\nagents:\n  - {name: c, role: conversation, model: m}\n  - {name: f, role: feedback, model: m}\n"
          "  - {name: o, role: oracle, model: m, says: {unsafe: x, overrefuse: y}}\n",
          ":5: agents.2.role: agent 'f' gives feedback already" },
        { HEAD "leaves: 6\n", ":6: leaves: 6 is not a power of two" },
        { "name: t\nagents: [{name: c, role: conversation, model: m}]\nstages: [{name: s, steps: 1}]\n", "no data" },
        { "name: t\nagents: [\n", "not valid YAML" },
        { "name: t\n\tx: 1\n", ":2: not valid YAML" },
        { "name: t\nseed: *x\n", ":2: not valid YAML: found undefined alias" },
        { "name: t\n---\nname: u\n", ":3: a second document begins here" },
        { "name: \"a\\0b\"\n", ":1: name: holds a NUL byte" },
        { "[a]: 1\n", ":1: the recipe: a key must be a word" },
        { "name: \xff\n", "not valid YAML" },
    };

    for (size_t i = 0; i < WZ_COUNT(cases); i++) {
        char *path = write_recipe(cases[i].text);
        struct wz_recipe *recipe;
        struct wz_err err = { "" };
        if (wz_recipe_load(&recipe, path, NULL, 0, &err) == 0) fail_msg("this was accepted:\n%s", cases[i].text);
        assert_null(recipe);
        if (!strstr(err.text, cases[i].want) || strncmp(err.text, path, strlen(path)))
            fail_msg("expected '%s', got: %s", cases[i].want, err.text);
        free(path);
    }
}

static void overrides_reach_every_key(void **state)
{
    char *const over[] = { "seed=7",
                           "stages.0.steps=3",
                           "stages.second.agents.f.lr=3e-5",
                           "stages.second.agents.1.kl_coef=0",
                           "agents.f.model=a=b",
                           "judge.retries=0",
                           "evaluate.every=5",
                           "seed=8",
                           "stages.first.mix.bad.share=0.75",
                           "agents.c.system=",
                           "sft.steps=2" };
    struct wz_recipe *r = load(HEAD "stages:\n  - {name: first, steps: 9, mix: [{kind: bad, share: 1}]}\n"
                                    "  - {name: second, steps: 9, agents: [{name: f}, {name: c}]}\n",
                               over, WZ_COUNT(over));

    assert_true(r->seed == 8); /* the last one counts */
    assert_int_equal(r->stages[0].steps, 3);
    assert_int_equal(r->stages[1].steps, 9);
    assert_true(r->stages[1].agents[0].lr == 3e-5);
    assert_true(r->stages[1].agents[1].kl_coef == 0 && r->stages[1].agents[0].kl_coef == .01);
    assert_string_equal(r->agents[1].model, "a=b");
    assert_string_equal(r->agents[0].system, "");
    assert_int_equal(r->judge.retries, 0);
    assert_int_equal(r->evaluate.every, 5);
    assert_int_equal(r->sft.steps, 2);
    assert_true(r->stages[0].mix[0].share == .75);
    wz_recipe_destroy(r);
}

static void wrong_overrides_are_named(void **state)
{
    static const struct {
        const char *over, *want;
    } cases[] = {
        { "seed", "override seed: expected key=value" },
        { "=3", "expected key=value" },
        { "sed=3", "the recipe has no key 'sed'; did you mean 'seed'?" },
        { "seed.x=3", "override seed.x=3: seed is one value" },
        { "seed=x", "override seed=x: seed: 'x' is not a whole number" },
        { "stages=3", "stages has 1 elements" },
        { "stages.1.steps=3", "override stages.1.steps=3: stages has 1 elements and none is '1'" },
        { "stages.s2.steps=3", "none is 's2'" },
        { "stages.s.stpes=3", "stages.0 has no key 'stpes'; did you mean 'steps'?" },
        { "stages.s=3", "stages.0 holds keys; name one of them" },
        { "judge=rules", "judge holds keys" },
        { "eval.0.path=x", "eval has 0 elements" },
        { "stages.0.agents.f.lr=2",
          "override stages.0.agents.f.lr=2: stages.0.agents.0.lr: expected a number in [0,1], got 2" },
        { "stages.0.agents.0.name=g",
          "override stages.0.agents.0.name=g: stages.0.agents.0.name: there is no agent 'g'" },
        { "agents.c.model=", "must not be empty" },
        { "agents.c.model=\xff", "not UTF-8" },
    };

    for (size_t i = 0; i < WZ_COUNT(cases); i++) {
        char *path = write_recipe(HEAD "stages:\n  - {name: s, steps: 9, agents: [{name: f}]}\n");
        char *const over[] = { (char *)(uintptr_t)cases[i].over };
        struct wz_recipe *recipe;
        struct wz_err err = { "" };
        if (wz_recipe_load(&recipe, path, over, 1, &err) == 0) fail_msg("override %s was accepted", cases[i].over);
        if (!strstr(err.text, cases[i].want)) fail_msg("expected '%s', got: %s", cases[i].want, err.text);
        free(path);
    }
}

static void saved_loads_the_same(void **state)
{
    char *from = wz_path("%s/full.yaml", corpus), *to = test_scratch("saved.yaml");
    char *const over[] = { "name=again",
                           "deadline=0.1",
                           "stages.first.agents.feedback.lr=1e-300",
                           "agents.feedback.system=a \"b\": \t\n# c",
                           "sft.chat=null",
                           "judge.phrases=yes",
                           "agents.feedback.chat= x ",
                           "data.0.kind=\xc3\xa9" };
    struct wz_recipe *a, *b;
    struct wz_err err = { "" };

    if (wz_recipe_load(&a, from, over, WZ_COUNT(over), &err) < 0) fail_msg("%s", err.text);
    assert_true(a->seed == UINT64_MAX);
    assert_string_equal(a->agents[1].model, "models/tiny");
    assert_string_equal(a->data[1].harmful, "=benign");
    if (wz_recipe_save(a, to, &err) < 0) fail_msg("%s", err.text);
    if (wz_recipe_load(&b, to, NULL, 0, &err) < 0) fail_msg("%s", err.text);

    /* The struct less its pointers is plain bytes; the lists are compared by hand. */
    assert_string_equal(a->name, b->name);
    assert_string_equal(a->out, b->out);
    assert_true(a->seed == b->seed && a->deadline == b->deadline && a->threads == b->threads &&
                a->micro_batch_tokens == b->micro_batch_tokens);
    assert_memory_equal(&a->ranks, &b->ranks, sizeof a->ranks);
    assert_memory_equal(&a->rollout, &b->rollout, sizeof a->rollout);
    assert_memory_equal(&a->evaluate, &b->evaluate,
                        offsetof(struct wz_recipe, evaluate.text) - offsetof(struct wz_recipe, evaluate));
    assert_string_equal(a->evaluate.text, b->evaluate.text);
    assert_string_equal(a->evaluate.search.target, b->evaluate.search.target);
    assert_int_equal(a->evaluate.search.top_k, b->evaluate.search.top_k);
    assert_true(a->checkpoint.every == b->checkpoint.every && a->checkpoint.keep == b->checkpoint.keep);
    assert_string_equal(a->checkpoint.best, b->checkpoint.best);
    assert_string_equal(a->judge.world, b->judge.world);
    assert_string_equal(b->judge.phrases, "yes");
    assert_string_equal(b->sft.chat, "null");
    assert_string_equal(b->agents[1].system, "a \"b\": \t\n# c");
    assert_string_equal(b->agents[1].chat, " x ");
    assert_string_equal(b->data[0].kind, "\xc3\xa9");
    assert_int_equal(a->n_agents, b->n_agents);
    for (unsigned i = 0; i < a->n_agents; i++)
        assert_true(a->agents[i].temperature == b->agents[i].temperature && a->agents[i].top_p == b->agents[i].top_p &&
                    a->agents[i].max_tokens == b->agents[i].max_tokens);
    assert_int_equal(a->n_stages, b->n_stages);
    for (unsigned s = 0; s < a->n_stages; s++) {
        const struct wz_recipe_stage *x = &a->stages[s], *y = &b->stages[s];
        assert_string_equal(x->name, y->name);
        assert_int_equal(x->steps, y->steps);
        assert_int_equal(x->batch, y->batch);
        assert_int_equal(x->n_mix, y->n_mix);
        for (unsigned i = 0; i < x->n_mix; i++) assert_true(x->mix[i].share == y->mix[i].share);
        assert_int_equal(x->n_agents, y->n_agents);
        for (unsigned i = 0; i < x->n_agents; i++) {
            /* lr to clip and alpha to gamma are runs of doubles */
            assert_string_equal(x->agents[i].name, y->agents[i].name);
            assert_memory_equal(&x->agents[i].lr, &y->agents[i].lr, 12 * sizeof(double));
            assert_string_equal(x->agents[i].kl_form, y->agents[i].kl_form);
            assert_string_equal(x->agents[i].loss_mean, y->agents[i].loss_mean);
            assert_memory_equal(&x->agents[i].alpha, &y->agents[i].alpha, 3 * sizeof(double));
        }
    }
    assert_int_equal(a->sft.steps, b->sft.steps);
    wz_recipe_destroy(a);
    wz_recipe_destroy(b);
    free(from);
    free(to);
}

/* Every key that had another name, in the file and on the command line. */
static void an_old_key_is_refused_with_its_new_name(void **state)
{
    static const struct {
        const char *text, *override, *in, *was, *is;
    } cases[] = {
        { "micro: 1\n", "micro=1", "the recipe", "micro", "micro_batch_tokens" },
        { "recompute: x\n", "recompute=x", "the recipe", "recompute", "activation_checkpointing" },
        { "reference: x\n", "reference=x", "the recipe", "reference", "reference_location" },
        { "rollout: {rows: 1}\n", "rollout.rows=1", "rollout", "rows", "max_num_seqs" },
        { "rollout: {longest: 1}\n", "rollout.longest=1", "rollout", "longest", "max_seq_len" },
        { "rollout: {rounds: 1}\n", "rollout.rounds=1", "rollout", "rounds", "max_rounds" },
        { "rollout: {pages: 1}\n", "rollout.pages=1", "rollout", "pages", "kv_pages" },
        { "rollout: {page: 1}\n", "rollout.page=1", "rollout", "page", "kv_page_tokens" },
        { LEARNS("floor: 1"), "stages.s.agents.f.floor=1", "stages.0.agents.0", "floor", "min_lr_ratio" },
        { LEARNS("kl: 1"), "stages.s.agents.f.kl=1", "stages.0.agents.0", "kl", "kl_coef" },
        { LEARNS("epsilon: 1"), "stages.s.agents.f.epsilon=1", "stages.0.agents.0", "epsilon", "clip_eps" },
        { LEARNS("loss: x"), "stages.s.agents.f.loss=x", "stages.0.agents.0", "loss", "loss_mean" },
        { LEARNS("bonus: x"), "stages.s.agents.f.bonus=x", "stages.0.agents.0", "bonus", "feedback_bonus" },
        { LEARNS("revision: 1"), "stages.s.agents.f.revision=1", "stages.0.agents.0", "revision", "revision_prob" },
        { LEARNS("decay: 1"), "stages.s.agents.f.decay=1", "stages.0.agents.0", "decay", "weight_decay" },
        { LEARNS("clip: 1"), "stages.s.agents.f.clip=1", "stages.0.agents.0", "clip", "max_grad_norm" },
        { "sft: {floor: 1}\n", "sft.floor=1", "sft", "floor", "min_lr_ratio" },
        { "sft: {decay: 1}\n", "sft.decay=1", "sft", "decay", "weight_decay" },
        { "sft: {clip: 1}\n", "sft.clip=1", "sft", "clip", "max_grad_norm" },
        { "eval: [{path: e, harm: x}]\n", "data.0.harm=x", NULL, "harm", "harmful" },
        { "evaluate: {limit: 1}\n", "evaluate.limit=1", "evaluate", "limit", "eval_limit" },
        { "judge: {tries: 1}\n", "judge.tries=1", "judge", "tries", "retries" },
    };

    for (size_t i = 0; i < WZ_COUNT(cases); i++)
        for (int over = 0; over < 2; over++) {
            char *text = wz_path("%s%s", HEAD, over ? LEARNS("lr: 0") : cases[i].text);
            char *path = write_recipe(text), *const overrides[] = { (char *)(uintptr_t)cases[i].override };
            char *name = wz_path(": '%s' is now called '%s'", cases[i].was, cases[i].is);
            char *where = over ? wz_path("override %s: ", cases[i].override)
                               : wz_path("%s:%d: ", path, strchr(cases[i].text, '\n')[1] ? 9 : 6);
            struct wz_recipe *recipe;
            struct wz_err err = { "" };
            if (wz_recipe_load(&recipe, path, overrides, over, &err) == 0) fail_msg("accepted: %s", text);
            if (strncmp(err.text, where, strlen(where)) || !strstr(err.text, name) ||
                (cases[i].in && !strstr(err.text, cases[i].in)))
                fail_msg("expected %s ..%s, got: %s", where, name, err.text);
            free(text);
            free(path);
            free(name);
            free(where);
        }
}

/* A run is resumed where nothing but layout changed; else the key, both values and the remedy are named. */
static void resume_walks_the_marks(void **state)
{
    static const struct {
        char *override;
        const char *want; /* NULL: it resumes */
    } cases[] = {
        { "out=elsewhere", NULL },
        { "link=mpi", NULL },
        { "threads=3", NULL },
        { "deadline=7", NULL },
        { "ranks.learner=2", NULL },
        { "micro_batch_tokens=9", NULL },
        { "activation_checkpointing=layers", NULL },
        { "reference_location=host", NULL },
        { "rollout.max_num_seqs=5", NULL },
        { "checkpoint.every=5", NULL },
        { "checkpoint.keep=5", NULL },
        { "checkpoint.best=f1", NULL },
        { "seed=1", NULL }, /* given or default, the value counts */
        { "seed=2", "override seed=2: seed: the run in runs/t began with 1, and this is 2; set it back" },
        { "numerics.cuda=fast", "numerics.cuda: the run in runs/t began with exact, and this is fast" },
        { "numerics.bf16=amx", "numerics.bf16: the run in runs/t began with chain, and this is amx" },
        { "numerics.nccl_sum=ring", "numerics.nccl_sum: " },
        { "numerics.isa=generic", NULL }, /* compared as what auto was resolved to */
        { "numerics.bf16=auto", NULL },   /* likewise */
        { "backend=ref", NULL },
        { "sft.lr=0.5", NULL }, /* of another run */
        { "stages.s.steps=99", NULL },
        { "stages.s.steps=0", "stages.0.steps: the run in runs/t began with " },
        { "leaves=4", "leaves: the run in runs/t began with 8, and this is 4" },
        { "rollout.max_seq_len=5", "rollout.max_seq_len: " },
        { "stages.s.agents.f.lr=0.5", "stages.0.agents.0.lr: the run in runs/t began with 0, and this is 0.5" },
    };
    struct wz_recipe *was = load(HEAD LEARNS("lr: 0"), NULL, 0), *now;
    struct wz_err err;

    for (size_t i = 0; i < WZ_COUNT(cases); i++) {
        now = load(HEAD LEARNS("lr: 0"), (char *const *)&cases[i].override, 1);
        err.text[0] = 0;
        if (wz_recipe_resumes(was, now, &err) < 0 ? !cases[i].want || !strstr(err.text, cases[i].want)
                                                  : !!cases[i].want)
            fail_msg("%s: expected %s, got: %s", cases[i].override, cases[i].want ? cases[i].want : "resume", err.text);
        wz_recipe_destroy(now);
    }
    now = load(HEAD, NULL, 0); /* a stage less, and a stage more */
    assert_int_equal(wz_recipe_resumes(was, now, &err), -1);
    assert_non_null(strstr(err.text, "stages.0.name: the run in runs/t began with s, and this is no such key"));
    assert_int_equal(wz_recipe_resumes(now, was, &err), 0);
    wz_recipe_destroy(now);
    wz_recipe_destroy(was);
    was = load(HEAD, (char *[]){ (char[]){ "numerics.isa=avx2" } }, 1);
    now = load(HEAD, (char *[]){ (char[]){ "numerics.isa=generic" } }, 1);
    assert_int_equal(wz_recipe_resumes(was, now, &err), -1);
    assert_non_null(strstr(err.text, "numerics.isa: the run in runs/t began with avx2, and this is generic"));
    wz_recipe_destroy(now);
    wz_recipe_destroy(was);
}

/* docs/recipe.md is what `waltz help recipe --markdown` prints. */
static void the_reference_is_up_to_date(void **state)
{
    struct wz_map map;
    struct wz_err err;
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);

    wz_recipe_help(out, true);
    fclose(out);
    if (wz_map_open(&map, reference, &err) < 0) fail_msg("%s", err.text);
    if (map.len != n || memcmp(map.bytes, text, n))
        fail_msg("%s differs from the table of keys: waltz help recipe --markdown >docs/recipe.md", reference);
    wz_map_close(&map);
    free(text);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(absent_keys_have_defaults), cmocka_unit_test(wrong_is_named_with_its_line),
        cmocka_unit_test(overrides_reach_every_key), cmocka_unit_test(wrong_overrides_are_named),
        cmocka_unit_test(saved_loads_the_same),      cmocka_unit_test(an_old_key_is_refused_with_its_new_name),
        cmocka_unit_test(resume_walks_the_marks),    cmocka_unit_test(the_reference_is_up_to_date),
    };

    corpus = argc > 1 ? argv[1] : "tests/corpus/recipe";
    reference = argc > 2 ? argv[2] : "docs/recipe.md";
    return cmocka_run_group_tests(tests, NULL, NULL);
}
