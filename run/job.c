/* What one rank holds: opened in the order it is needed, closed in reverse. */
#include "run/job.h"
#include "run/account.h"

#include <stdlib.h>
#include <string.h>

int wz_ranks_threads(const struct wz_link *link, const struct wz_ranks *role, int wanted)
{
    struct wz_cores cores;
    int n = 0, me = 0;

    for (int i = 0; i < link->n_beside; i++) {
        bool of_role = !role;
        for (int k = 0; !of_role && k < role->n; k++) of_role = role->ranks[k] == link->beside[i];
        if (link->beside[i] == link->rank) me = n;
        n += of_role;
    }
    wz_cores_here(&cores, n, me, wanted);
    return cores.threads;
}

/* The phases of a step alternate, so a rank may use the cores of those that wait; but play and judging go hand in
 * hand. */
static int threads_of(const struct wz_job *job)
{
    const struct wz_roles *r = &job->roles;

    return wz_ranks_threads(&job->link,
                            r->rollout.me >= 0   ? &r->rollout
                            : r->learner.me >= 0 ? &r->learner
                                                 : NULL,
                            job->recipe->threads);
}

char *wz_system_read(const char *path, struct wz_err *err)
{
    struct wz_map map;
    char *text;

    if (!path || !path[0]) return wz_strdup("");
    if (wz_map_open(&map, path, err) < 0) return NULL;
    size_t n = map.len, valid = strnlen((const char *)map.bytes, wz_utf8_valid((const char *)map.bytes, n));
    if (valid < n) {
        wz_map_close(&map);
        wz_fail(err, "%s: byte %zu is not text in UTF-8", path, valid);
        return NULL;
    }
    while (n && (map.bytes[n - 1] == '\n' || map.bytes[n - 1] == ' ')) n--;
    text = wz_alloc(n + 1);
    memcpy(text, map.bytes, n);
    wz_map_close(&map);
    return text;
}

static int find_chat(struct wz_agent *a, struct wz_err *err)
{
    a->chat = wz_template_find(a->recipe->chat, a->tok, err);
    return a->chat ? 0 : -1;
}

/* The tokens of the agent's system prompt and a prompt. -1: it can't be rendered. */
static int prompt_tokens(const struct wz_agent *a, const char *prompt, struct wz_ids *ids, struct wz_err *err)
{
    const struct wz_message messages[2] = { { WZ_SYSTEM, a->system, NULL, 0 }, { WZ_USER, prompt, NULL, 0 } };
    const int skip = !a->system[0];

    ids->n = 0;
    return wz_template_apply(a->chat, a->tok, messages + skip, 2 - skip, true, ids, err) < 0 ? -1 : ids->n;
}

/* Tokens that a sequence of the agent has room for. */
static int64_t window_of(const struct wz_agent *a, const struct wz_recipe *recipe)
{
    const int64_t cache = (int64_t)recipe->rollout.kv_pages * recipe->rollout.kv_page_tokens,
                  longest = wz_job_longest(recipe, &a->model->config);

    return cache > 0 && cache < longest ? cache : longest;
}

/* Can the shortest prompt be asked at all? What would lose every episode is told before the first. */
static int try_chat(const struct wz_agent *a, const struct wz_recipe *recipe, struct wz_err *err)
{
    const int64_t window = window_of(a, recipe);
    struct wz_ids ids = { 0 };
    int n = prompt_tokens(a, "?", &ids, err);

    if (n >= window)
        n = wz_fail(err,
                    "the chat template and the system prompt take %d tokens, and a sequence has room for %lld (the "
                    "model's context, rollout.max_seq_len, rollout.kv_pages)",
                    n, (long long)window);
    wz_ids_finish(&ids);
    return n < 0 ? -1 : 0;
}

/* An agent that writes by a rule needs a tokenizer, and what ends a turn. */
static int writer_open(struct wz_agent *a, int index, const char *path, struct wz_err *err)
{
    const struct wz_recipe_agent *r = a->recipe;
    struct wz_config config;

    if (wz_config_load(&config, path, err) < 0 || !(a->tok = wz_tokenizer_load(path, err)) || find_chat(a, err) < 0)
        return -1;
    wz_stops_find(&config, a->chat, a->tok, &a->stops);
    if (!a->stops.n) return wz_fail(err, "%s: no token ends a turn", path);
    a->player = (struct wz_player){
        .seat = wz_seat_find(r->role),
        .tok = a->tok,
        .stops = &a->stops,
        .agent = index,
        .says_unsafe = r->says.unsafe,
        .says_overrefuse = r->says.overrefuse,
    };
    return 0;
}

static int agent_open(struct wz_job *job, struct wz_agent *a, const char *path, bool training, struct wz_err *err)
{
    const struct wz_recipe_agent *r = a->recipe;
    bool learner = training && wz_recipe_learns(job->recipe, r->name), plays = job->roles.rollout.me >= 0,
         trains = learner && job->roles.learner.me >= 0, supervised = trains && wz_job_supervised(job->recipe);
    enum wz_type type = wz_type_named(r->type);
    const struct wz_share share = { job->roles.learner.me, job->roles.learner.n };

    a->feedback = !strcmp(r->role, WZ_FEEDBACK);
    if (!plays && !trains) return 0;
    if (wz_seat_find(r->role)->write) return plays ? writer_open(a, (int)(a - job->agents), path, err) : 0;
    a->model = wz_model_load(path, type, trains ? &share : NULL, job->be, err);
    if (!a->model) return -1;
    a->model->recompute = !strcmp(job->recipe->activation_checkpointing, "layers");
    if (trains && !job->chunk) job->chunk = wz_alloc(WZ_CHUNK_BYTES);
    a->tok = wz_tokenizer_load(path, err);
    if (!a->tok) return -1;
    if (!plays && !supervised) return 0;
    if (!(a->system = wz_system_read(r->system, err)) || find_chat(a, err) < 0) return -1;
    if (wz_tokenizer_vocab(a->tok) > a->model->config.vocab)
        return wz_fail(err, "%s: the tokenizer has %d ids, the model %d: they don't belong together", path,
                       wz_tokenizer_vocab(a->tok), a->model->config.vocab);
    wz_stops_find(&a->model->config, a->chat, a->tok, &a->stops);
    if (supervised)
        return wz_sft_load(&a->examples, job->recipe->data[0].path, a->system, a->chat, a->tok, &a->stops,
                           a->model->config.context, err);
    if (try_chat(a, job->recipe, err) < 0) return -1;
    const char *cut = a->feedback || job->roles.rollout.me ? NULL : wz_template_cuts(a->chat, a->tok);
    if (cut)
        wz_log("agent %s: the chat template cuts or rewrites an earlier reply such as \"%s\": a revision is asked for "
               "with the ids that are left of it, or not at all where these are no whole tokens",
               r->name, cut);
    a->engine = wz_engine_create(a->model, job->recipe->rollout.max_num_seqs, job->recipe->rollout.kv_page_tokens,
                                 job->recipe->rollout.kv_pages, job->recipe->rollout.max_seq_len);
    a->player = (struct wz_player){
        .seat = wz_seat_find(r->role),
        .engine = a->engine,
        .model = a->model,
        .tok = a->tok,
        .chat = a->chat,
        .stops = &a->stops,
        .system = a->system,
        .max_tokens = r->max_tokens,
        .top_k = r->top_k,
        .temperature = (float)r->temperature,
        .top_p = (float)r->top_p,
        .min_p = (float)r->min_p,
        .think = !strcmp(r->think, "yes"),
        .agent = (int)(a - job->agents),
    };
    return 0;
}

bool wz_job_judged_in_play(const struct wz_recipe *recipe)
{
    bool judged = recipe->evaluate.attempts > 1 || recipe->evaluate.branching > 1;

    for (unsigned i = 0; i < recipe->n_judges; i++) judged |= !strcmp(recipe->judges[i].role, "topic");
    for (unsigned i = 0; i < recipe->n_agents; i++) judged |= wz_seat_find(recipe->agents[i].role)->write != NULL;
    return judged;
}

static void label_replies(void *judges, bool guards, Wz__Episode **episodes, int n)
{
    wz_reward_look(judges, guards, episodes, n);
}

/* The players in the order of the table of seats, whatever the order of the recipe's agents. */
static void seat_players(struct wz_job *job)
{
    struct wz_game *game = &job->game;

    game->judges = &job->judges;
    if (job->roles.rollout.me >= 0 && wz_job_judged_in_play(job->recipe)) game->label = label_replies;
    game->one_vocabulary = true;
    for (const struct wz_seat *seat = wz_seats; seat->name; seat++)
        for (int i = 0; i < job->n_agents; i++) {
            struct wz_player *p = &job->agents[i].player;
            if (p->seat != seat) continue;
            game->players[game->n_players++] = p;
            game->one_vocabulary &= wz_tokenizer_same(game->players[0]->tok, p->tok);
        }
}

static int load_prefills(struct wz_prompts *set, const struct wz_recipe_prefill *from, struct wz_err *err)
{
    const struct wz_prefill how = { .transition = from->transition,
                                    .alpha = from->alpha,
                                    .hijack = !strcmp(from->hijack, "yes"),
                                    .resets = from->rounds - 1 };

    return from->path[0] ? wz_prefills_load(set, from->path, from->words, &how, err) : 0;
}

static int load_sets(struct wz_prompts **sets, const struct wz_recipe_data *data, unsigned n, uint64_t seed,
                     struct wz_err *err)
{
    *sets = wz_alloc(sizeof **sets * (n + 1));
    for (unsigned i = 0; i < n; i++) {
        struct wz_prompts *set = &(*sets)[i];
        if (wz_prompts_load(set, data[i].path, data[i].column, data[i].harmful, data[i].kind, data[i].group,
                            data[i].only, data[i].answer, err) < 0 ||
            load_prefills(set, &data[i].prefill, err) < 0)
            return -1;
        for (int k = 0; k < set->n; k++)
            if (!strcmp(set->list[k].kind, WZ_AVERAGE))
                return wz_fail(err, "%s: no kind of prompts may be called %s: results have it for all kinds",
                               data[i].path, WZ_AVERAGE);
        if (data[i].limit <= 0 || data[i].limit >= set->n) continue;
        int all;
        const struct wz_prompt **order = wz_prompts_keyed(set, 1, seed, &all);
        struct wz_prompt *list = wz_alloc(sizeof *list * (size_t)data[i].limit);
        for (int k = 0; k < data[i].limit; k++) list[k] = *order[k];
        free(order);
        free(set->list);
        set->list = list;
        set->n = data[i].limit;
    }
    return 0;
}

struct wz_numerics wz_job_numerics(const struct wz_recipe *recipe)
{
    return (struct wz_numerics){ !strcmp(recipe->numerics.cuda, "fast"), recipe->numerics.isa, recipe->numerics.bf16 };
}

struct wz_backend *wz_job_backend(const struct wz_recipe *recipe, int threads, struct wz_err *err)
{
    const struct wz_numerics numerics = wz_job_numerics(recipe);
    struct wz_backend *be = wz_backend_open(recipe->backend, threads, &numerics, err);

    if (!be) wz_recipe_fail(recipe, err, "backend", "%s", err->text);
    return be;
}

struct wz_judge_config wz_job_judge_config(const struct wz_recipe_judge *j, struct wz_backend *be)
{
    return (struct wz_judge_config){
        .name = j->name,
        .kind = j->kind,
        .watches = strcmp(j->role, "reward") != 0,
        .guards = !strcmp(j->role, "guard"),
        .prunes = !strcmp(j->role, "topic"),
        .misses = j->misses,
        .alarms = j->alarms,
        .weight = j->weight,
        .phrases = j->phrases,
        .world = !strcmp(j->world, "yes"),
        .tries = j->retries,
        .measures = j->measures,
        .threshold = j->threshold,
        .command = j->command,
        .url = j->url,
        .model = j->model,
        .api_key = j->api_key,
        .rubric = j->rubric,
        .timeout = j->timeout,
        .backoff = j->backoff,
        .concurrent = j->concurrent,
        .max_tokens = j->max_tokens,
        .be = be,
        .type = j->type,
        .categories = j->categories,
        .without = j->without,
        .max_seq_len = j->max_seq_len,
    };
}

int wz_job_judges(struct wz_judges *judges, const struct wz_recipe *recipe, struct wz_backend *be, bool open,
                  struct wz_err *err)
{
    const int n = recipe->n_judges ? (int)recipe->n_judges : 1;
    const struct wz_recipe_judge *list = recipe->n_judges ? recipe->judges : &recipe->judge;
    struct wz_judge_config configs[WZ_MAX_JUDGES] = { 0 };

    for (int i = 0; i < n; i++) configs[i] = wz_job_judge_config(&list[i], be);
    if (wz_judges_begin(judges, configs, n, recipe->combine, err) < 0)
        return wz_recipe_fail(recipe, err, recipe->n_judges ? "judges.0.name" : "judge.name", "%s", err->text);
    for (int i = 0; open && i < n; i++) {
        char key[32] = "judge.name";
        if (recipe->n_judges) snprintf(key, sizeof key, "judges.%d.name", i);
        if (wz_judge_open(&judges->list[i], &configs[i], err) < 0)
            return wz_recipe_fail(recipe, err, key, "%s", err->text);
    }
    return 0;
}

/* The judges, on reward ranks with what they have answered in this run before. */
static int open_judges(struct wz_job *job, struct wz_err *err)
{
    const bool reward = job->roles.reward.me >= 0;

    if (wz_job_judges(&job->judges, job->recipe, job->be, reward || job->game.label, err) < 0) return -1;
    bool slow = false;
    for (int i = 0; i < job->judges.n; i++) slow |= !job->judges.list[i].row->instant;
    if (!reward || !slow) return 0;
    job->verdicts = wz_verdicts_open(job->recipe->out, job->writes ? job->roles.reward.me : -1);
    for (int i = 0; i < job->judges.n; i++)
        if (!job->judges.list[i].row->instant) job->judges.list[i].verdicts = job->verdicts;
    return 0;
}

/* The recipe's reward terms: known, and of roles that they can pay. */
static int check_rewards(const struct wz_recipe *recipe, struct wz_err *err)
{
    for (unsigned i = 0; i < recipe->n_rewards; i++) {
        const struct wz_recipe_reward *r = &recipe->rewards[i];
        const struct wz_term *term = wz_term_find(r->term, err);
        char path[48];
        snprintf(path, sizeof path, "rewards.%u.term", i);
        if (!term) return wz_recipe_fail(recipe, err, path, "%s", err->text);
        if (term->role && strcmp(term->role, r->role) != 0)
            return wz_recipe_fail(recipe, err, path, "%s pays turns of the role %s only, and this is of %s", r->term,
                                  term->role, r->role);
    }
    return 0;
}

/* Instructions of IFEval are known ones; what no rule can check is said. */
static int check_instructions(const struct wz_job *job, const struct wz_prompts *sets,
                              const struct wz_recipe_data *data, unsigned n, struct wz_err *err)
{
    json_t *names = json_object(), *value;
    int left = 0, total = 0, rc = 0;
    struct wz_buf text = { 0 };
    const char *name;

    for (unsigned s = 0; s < n; s++)
        for (int i = 0; i < sets[s].n && rc == 0; i++) {
            const struct wz_prompt *p = &sets[s].list[i];
            enum wz_followed followed[WZ_MAX_INSTRUCTIONS];
            int of;
            if (!wz_ifeval_is(p->answer)) continue;
            if (wz_ifeval_check(p->answer, "", followed, err) < 0)
                rc = wz_fail_in(err, "%s: prompt %s", data[s].path, p->id);
            left += wz_ifeval_left_out(p->answer, names, &of);
            total += of;
        }
    json_object_foreach(names, name, value) wz_buf_printf(&text, "%s%s", text.len ? ", " : "", name);
    if (left && rc == 0 && job->root)
        wz_log("IFEval: %d of %d instructions can't be checked by rule and are left out of its score: %s", left, total,
               text.data);
    wz_buf_finish(&text);
    json_decref(names);
    return rc;
}

/* Every kind that a reward names is there, and every prompt that is paid for its answer has one. */
static int check_prompts(const struct wz_job *job, const struct wz_prompts *sets, const struct wz_recipe_data *data,
                         unsigned n, struct wz_err *err)
{
    const struct wz_rewards rewards = wz_job_rewards(job, NULL);
    bool known[WZ_MAX_REWARDS] = { 0 };
    char path[48];

    for (unsigned s = 0; s < n; s++)
        for (int i = 0; i < sets[s].n; i++)
            for (int r = 0; r < rewards.n; r++) {
                const struct wz_prompt *p = &sets[s].list[i];
                const struct wz_reward *row = &rewards.rows[r];
                known[r] |= row->kind && !strcmp(row->kind, p->kind);
                if (!p->answer[0] && !strcmp(row->term->name, "math") &&
                    wz_reward_pays(&rewards, r, row->role, p->kind))
                    return wz_fail(err,
                                   "%s: prompt %s: its kind '%s' is paid by the reward math, and it has no answer; "
                                   "name the column with answers in `answer`",
                                   data[s].path, p->id, p->kind);
            }
    if (check_instructions(job, sets, data, n, err) < 0) return -1;
    for (int r = 0; r < rewards.n && sets == job->data; r++) {
        if (known[r] || !rewards.rows[r].kind || !rewards.rows[r].kind[0]) continue;
        unsigned at = 0;
        while (job->recipe->rewards[at].kind != rewards.rows[r].kind) at++;
        snprintf(path, sizeof path, "rewards.%u.kind", at);
        return wz_recipe_fail(job->recipe, err, path, "no training prompt is of kind '%s'", rewards.rows[r].kind);
    }
    return 0;
}

/* Names that an agent's keys have to find in the trainer's tables, and what goes with them. */
static int check_rows(const struct wz_recipe *recipe, unsigned s, unsigned a, struct wz_err *err)
{
    const struct wz_recipe_learn *learn = &recipe->stages[s].agents[a];
    const int agent = wz_recipe_agent(recipe, learn->name);
    const struct wz_overlong *overlong = wz_overlong_find(learn->overlong, err);
    const char *key = !overlong                                     ? "overlong"
                      : !wz_kl_find(learn->kl_form, err)            ? "kl_form"
                      : !wz_importance_find(learn->importance, err) ? "importance"
                                                                    : NULL;
    char path[64];

    snprintf(path, sizeof path, "stages.%u.agents.%u.%s", s, a, key ? key : "overlong_cache");
    if (key) return wz_recipe_fail(recipe, err, path, "%s", err->text);
    const int most = agent < 0 ? 0 : recipe->agents[agent].max_tokens;
    if (overlong->penalty && (learn->overlong_cache < 1 || learn->overlong_cache > most))
        return wz_recipe_fail(recipe, err, path, "overlong is '%s': expected 1 to the agent's max_tokens of %d, got %d",
                              overlong->name, most, learn->overlong_cache);
    return 0;
}

/* What the stages' losses and estimates ask of the recipe. */
static int check_learning(const struct wz_recipe *recipe, struct wz_err *err)
{
    const bool supervised = wz_job_supervised(recipe);
    char path[64];

    for (unsigned s = 0; s < recipe->n_stages; s++) {
        const struct wz_recipe_stage *stage = &recipe->stages[s];
        const struct wz_loss *loss = wz_loss_find(stage->loss, err);
        snprintf(path, sizeof path, "stages.%u.loss", s);
        if (!loss) return wz_recipe_fail(recipe, err, path, "%s", err->text);
        if (loss->supervised != supervised)
            return wz_recipe_fail(recipe, err, path, "'%s' can't be in a recipe whose first stage has '%s'", loss->name,
                                  recipe->stages[0].loss);
        snprintf(path, sizeof path, "stages.%u.samples_per_prompt", s);
        if (stage->batch % stage->samples_per_prompt)
            return wz_recipe_fail(recipe, err, path, "expected a divisor of the batch of %d, got %d", stage->batch,
                                  stage->samples_per_prompt);
        snprintf(path, sizeof path, "stages.%u.collect", s);
        if (!strcmp(stage->collect, "dynamic") && (supervised || stage->samples_per_prompt < 2))
            return wz_recipe_fail(
                recipe, err, path,
                "dynamic compares samples of one prompt: expected samples_per_prompt of the stage to be "
                "2 or more, got %d%s",
                stage->samples_per_prompt, supervised ? ", and no supervised loss" : "");
        snprintf(path, sizeof path, "stages.%u.epochs", s);
        if (supervised && stage->epochs > 1)
            return wz_recipe_fail(recipe, err, path, "expected 1 of a stage with loss '%s', got %d", loss->name,
                                  stage->epochs);
        for (unsigned a = 0; a < stage->n_agents; a++) {
            const int agent = wz_recipe_agent(recipe, stage->agents[a].name);
            snprintf(path, sizeof path, "stages.%u.agents.%u.name", s, a);
            if (agent >= 0 && wz_seat_find(recipe->agents[agent].role)->write)
                return wz_recipe_fail(recipe, err, path, "the role %s has a rule in a model's place, and can't learn",
                                      recipe->agents[agent].role);
            const struct wz_estimate *e = wz_estimate_find(stage->agents[a].estimate, err);
            snprintf(path, sizeof path, "stages.%u.agents.%u.estimate", s, a);
            if (!e) return wz_recipe_fail(recipe, err, path, "%s", err->text);
            if (e->relative && !supervised && stage->samples_per_prompt < 2)
                return wz_recipe_fail(recipe, err, path,
                                      "'%s' compares samples of one prompt: expected samples_per_prompt of the stage "
                                      "to be 2 or more",
                                      e->name);
            if (check_rows(recipe, s, a, err) < 0) return -1;
        }
    }
    for (unsigned i = 0; i < recipe->n_data; i++) {
        snprintf(path, sizeof path, "data.%u.prefill.rounds", i);
        if (recipe->data[i].prefill.rounds > 1)
            return wz_recipe_fail(recipe, err, path,
                                  "expected 1 of training prompts, got %d: resets are an attack that "
                                  "evaluations make",
                                  recipe->data[i].prefill.rounds);
    }
    if (supervised && (recipe->n_data != 1 || recipe->n_eval))
        return wz_recipe_fail(recipe, err, "data", "expected one file of conversations, and no eval");
    return 0;
}

int wz_job_agent_fail(const struct wz_recipe *recipe, const struct wz_recipe_agent *a, struct wz_err *err)
{
    if (!wz_file_exists(a->model) && !strcmp(a->model, recipe->sft.out))
        wz_fail(err,
                "there is no %s yet: it is the recipe's warm start (sft.out); `waltz sft` with the same arguments "
                "makes it",
                a->model);
    return wz_fail_in(err, "agent %s", a->name);
}

static int check_best(const struct wz_recipe *recipe, struct wz_err *err)
{
    const char *name = recipe->checkpoint.best;
    const int saved = recipe->checkpoint.every, evaluated = recipe->evaluate.every;
    const struct wz_measure *m = wz_measure_find(name);

    if (!*name) return 0;
    if (!m || !m->better || !m->rate)
        return wz_recipe_fail(recipe, err, "checkpoint.best",
                              "'%.80s' is no metric of summary.csv that can be better or worse", name);
    if (!recipe->n_eval) return wz_recipe_fail(recipe, err, "checkpoint.best", "expected held-out prompts (eval)");
    if (saved < 1 || evaluated < 1 || evaluated % saved)
        return wz_recipe_fail(recipe, err, "checkpoint.best",
                              "expected evaluate.every (%d) to be a multiple of checkpoint.every (%d)", evaluated,
                              saved);
    return 0;
}

int wz_job_begin(struct wz_job *job, struct wz_recipe *recipe, bool training, struct wz_err *err)
{
    job->recipe = recipe;
    job->training = training;
    if (training && check_learning(recipe, err) < 0) return -1;
    if (check_rewards(recipe, err) < 0 || wz_limits_check(recipe, err) < 0) return -1;
    if (training && check_best(recipe, err) < 0) return -1;
    if (wz_roles_assign(&job->roles, recipe, training, job->link.rank, job->link.size, err) < 0) return -1;
    job->root = job->roles.learner.me == 0;
    job->be = wz_job_backend(recipe, threads_of(job), err);
    return job->be ? 0 : -1;
}

/* The text of which the perplexity is taken: of two tokens or more, to each agent that is a model. The rank that takes
 * it reads it to the end, for it would fail only after all prompts were played. */
static int open_text(struct wz_job *job, struct wz_err *err)
{
    const char *path = job->recipe->evaluate.text;
    struct wz_ids ids = { 0 };
    int rc = *path ? wz_map_open(&job->text, path, err) : 0;

    for (int a = 0; rc == 0 && *path && job->roles.rollout.me == 0 && a < job->n_agents; a++) {
        wz_ids_finish(&ids);
        if (!job->agents[a].tok) continue;
        rc = wz_encode(job->agents[a].tok, (const char *)job->text.bytes, job->text.len, &ids, err);
        if (rc < 0) wz_fail_in(err, "%s", path);
        else if (ids.n < 2) rc = wz_fail(err, "%s: expected two tokens or more, got %d", path, ids.n);
    }
    wz_ids_finish(&ids);
    return rc;
}

int wz_job_open(struct wz_job *job, const char *const *models, struct wz_err *err)
{
    struct wz_recipe *recipe = job->recipe;
    const bool training = job->training;

    job->n_agents = (int)recipe->n_agents;
    job->game = (struct wz_game){ .rounds = recipe->rollout.max_rounds, .seed = recipe->seed };
    for (int i = 0; i < job->n_agents; i++) {
        struct wz_agent *a = &job->agents[i];
        a->recipe = &recipe->agents[i];
        if (agent_open(job, a, models && models[i] ? models[i] : a->recipe->model, training, err) < 0)
            return wz_job_agent_fail(recipe, a->recipe, err);
    }
    seat_players(job);
    if (!(training && wz_job_supervised(recipe)) && open_judges(job, err) < 0) return -1;
    if (training && !wz_job_supervised(recipe) &&
        (load_sets(&job->data, recipe->data, recipe->n_data, recipe->seed, err) < 0 ||
         check_prompts(job, job->data, recipe->data, recipe->n_data, err) < 0))
        return -1;
    if (load_sets(&job->eval, recipe->eval, recipe->n_eval, recipe->evaluate.seed, err) < 0) return -1;
    if (open_text(job, err) < 0) return wz_recipe_fail(recipe, err, "evaluate.text", "%s", err->text);
    return check_prompts(job, job->eval, recipe->eval, recipe->n_eval, err);
}

void wz_job_drop_overlong(struct wz_job *job)
{
    const struct wz_ranks *rollout = &job->roles.rollout;
    int *ranks = wz_alloc(sizeof *ranks * (size_t)job->link.size);
    const struct wz_group all = { job->link.size, job->link.rank, ranks };
    struct wz_buf *found = wz_alloc(sizeof *found * (size_t)all.n), mine = { 0 };
    const unsigned n_sets = job->data ? job->recipe->n_data : 0;
    struct wz_ids ids = { 0 };
    struct wz_err err;

    for (int r = 0; r < all.n; r++) ranks[r] = r;
    for (unsigned s = 0; rollout->me == 0 && s < n_sets; s++)
        for (int i = 0; i < job->data[s].n; i++) {
            const struct wz_agent *a = &job->agents[job->game.players[0]->agent];
            const char overlong = prompt_tokens(a, job->data[s].list[i].text, &ids, &err) >= window_of(a, job->recipe);
            wz_buf_add(&mine, &overlong, 1);
        }
    wz_all_gather_bytes(&job->link, &all, mine.data, mine.len, found);
    const char *overlong = found[rollout->ranks[0]].data;
    for (unsigned s = 0; s < n_sets; s++) {
        struct wz_prompts *set = &job->data[s];
        int kept = 0;
        for (int i = 0; i < set->n; i++)
            if (!*overlong++) set->list[kept++] = set->list[i];
        if (kept < set->n && job->root)
            wz_log("%s: %d of %d prompts are overlong and left out: a reply to them has no room in the context window",
                   job->recipe->data[s].path, set->n - kept, set->n);
        job->overlong += set->n - kept;
        set->n = kept;
    }
    for (int r = 0; r < all.n; r++) wz_buf_finish(&found[r]);
    wz_buf_finish(&mine);
    wz_ids_finish(&ids);
    free(found);
    free(ranks);
}

char *wz_recipe_path(const char *run_or_recipe)
{
    return wz_is_dir(run_or_recipe) ? wz_path("%s/recipe.yaml", run_or_recipe) : wz_strdup(run_or_recipe);
}

int wz_job_recipe(struct wz_recipe **recipe, struct wz_link *link, const char *path, char *const *overrides, int n,
                  struct wz_err *err)
{
    struct wz_err other;

    if (wz_recipe_load(recipe, path, overrides, n, err) < 0) /* joins the others all the same, to tell them */
        return wz_link_open(link, "auto", WZ_DEADLINE, false, &other) < 0 ? -1 : wz_link_agree(link, -1, err);
    const struct wz_recipe *r = *recipe;
    if (wz_link_open(link, r->link, r->deadline, !strcmp(r->numerics.nccl_sum, "ring"), err) < 0)
        return wz_recipe_fail(r, err, "link", "%s", err->text);
    return wz_link_agree(link, 0, err);
}

void wz_job_close(struct wz_job *job)
{
    for (int i = 0; i < job->n_agents; i++) {
        struct wz_agent *a = &job->agents[i];
        wz_learner_finish(&a->learner);
        wz_engine_destroy(a->engine);
        wz_model_destroy(a->reference);
        wz_model_destroy(a->model);
        wz_tokenizer_destroy(a->tok);
        wz_sft_finish(&a->examples);
        wz_ids_finish(&a->stops);
        free(a->system);
    }
    for (unsigned i = 0; job->data && i < job->recipe->n_data; i++) wz_prompts_finish(&job->data[i]);
    for (unsigned i = 0; job->eval && i < job->recipe->n_eval; i++) wz_prompts_finish(&job->eval[i]);
    wz_map_close(&job->text);
    free(job->data);
    free(job->eval);
    free(job->chunk);
    wz_buf_finish(&job->overlaps);
    for (int i = 0; i < job->judges.n; i++) {
        const struct wz_judge *j = &job->judges.list[i];
        if (j->verdicts)
            wz_log("judge %s: asked %lld, answered before %lld, failed %lld", j->name, (long long)j->asked,
                   (long long)j->known, (long long)j->failed);
    }
    wz_judges_close(&job->judges);
    wz_verdicts_close(job->verdicts);
    wz_link_close(&job->link);
    wz_backend_close(job->be);
}

/* The recipe's rows of a role, in its order; false: there are none. */
static bool add_terms(struct wz_rewards *rewards, const struct wz_recipe *recipe, const char *role)
{
    bool found = false;

    for (unsigned i = 0; i < recipe->n_rewards; i++) {
        const struct wz_recipe_reward *from = &recipe->rewards[i];
        if (strcmp(from->role, role) != 0) continue;
        wz_rewards_add(rewards, role, from->term, from->coefficient)->kind = from->kind;
        found = true;
    }
    return found;
}

struct wz_rewards wz_job_rewards(const struct wz_job *job, const struct wz_recipe_stage *stage)
{
    const struct wz_recipe_learn *k = &(struct wz_recipe_learn){
        .alpha = WZ_ALPHA, .lambda = WZ_LAMBDA, .gamma = WZ_GAMMA, .feedback_bonus = (char[]){ "dir" }
    };
    struct wz_rewards rewards = { 0 };

    for (int i = 0; stage && i < job->n_agents; i++) {
        const struct wz_recipe_learn *learn = wz_recipe_learn(stage, job->agents[i].recipe->name);
        if (learn && job->agents[i].feedback) k = learn;
    }
    if (!add_terms(&rewards, job->recipe, WZ_CONVERSATION)) wz_rewards_add(&rewards, WZ_CONVERSATION, "outcome", 1);
    if (!add_terms(&rewards, job->recipe, WZ_FEEDBACK)) {
        wz_rewards_add(&rewards, WZ_FEEDBACK, k->feedback_bonus, k->alpha);
        wz_rewards_add(&rewards, WZ_FEEDBACK, "label", k->lambda);
        wz_rewards_add(&rewards, WZ_FEEDBACK, "format", k->gamma);
    }
    const bool paid = add_terms(&rewards, job->recipe, WZ_ATTACKER);
    for (unsigned i = 0; i < job->recipe->n_agents && !paid; i++)
        if (!strcmp(job->recipe->agents[i].role, WZ_ATTACKER)) wz_rewards_add(&rewards, WZ_ATTACKER, "unsafe", 1);
    return rewards;
}

int wz_job_longest(const struct wz_recipe *recipe, const struct wz_config *config)
{
    const int longest = recipe->rollout.max_seq_len;

    return longest > 0 && longest < config->context ? longest : config->context;
}

void wz_job_publish(struct wz_job *job, struct wz_agent *a, int updates)
{
    const struct wz_roles *roles = &job->roles;
    int ranks[1 + WZ_MAX_RANKS] = { roles->learner.ranks[0] };
    struct wz_group group = { 1, job->root ? 0 : -1, ranks };
    uint32_t agent = (uint32_t)(a - job->agents);
    size_t size;

    for (int i = 0; i < roles->rollout.n; i++) {
        if (roles->rollout.ranks[i] == ranks[0]) continue;
        if (i == roles->rollout.me) group.me = group.n;
        ranks[group.n++] = roles->rollout.ranks[i];
    }
    if (group.n == 1 || group.me < 0) return;
    void *bytes = wz_model_weights(a->model, &size);
    if (job->root) {
        wz_publish(&job->link, &group, job->be, agent, a->model->version, a->model->hash, bytes, size);
    } else {
        uint64_t version = a->model->version + (uint64_t)updates,
                 sent = wz_take(&job->link, &group, job->be, agent, version, bytes, size);
        wz_model_commit(a->model, version); /* its hash goes into every turn written, and the learner compares */
        wz_taken(&job->link, &group, agent, version, sent, a->model->hash);
    }
}
