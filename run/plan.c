/* Every buffer of every kind of rank, their sums, and whether they fit.
 *
 * Models, engines and learners are created by the functions that a run calls, on a backend that only counts
 * (kernels/count). Ranks lie on hosts in blocks, as mpirun and srun place them: with 8 on a host, rank r is on host
 * r / 8. Those of a host share its GPUs in turn. What lies in a GPU is compared with that GPU's memory, all else with
 * the host's. */
#include "run/plan.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- making it -------------------------------------------------------------------------------------------- */

static void add(struct wz_plan_kind *k, const char *agent, const char *part, const char *what, size_t bytes, bool host)
{
    if (!bytes) return;
    if (k->n_rows == (int)WZ_COUNT(k->rows)) wz_die("plan: more than %d buffers", k->n_rows);
    struct wz_plan_row *r = &k->rows[k->n_rows++];
    *r = (struct wz_plan_row){ .agent = agent, .bytes = bytes, .host = host };
    snprintf(r->what, sizeof r->what, "%s%s", part, what);
    *(host ? &k->host : &k->device) += bytes;
}

/* Adds what was counted since the last call, as this part of the agent's. offloaded: its weights are on the host. */
static void take(struct wz_plan_kind *k, struct wz_backend *be, const char *agent, const char *part, bool offloaded)
{
    int n;
    const struct wz_counted *c = wz_backend_counted(be, &n);

    for (int i = 0; i < n; i++) {
        bool host = c[i].host || (offloaded && !strcmp(c[i].label, "weights"));
        add(k, agent, part, c[i].label, c[i].bytes, host);
    }
}

/* The learners of a stage, each the last of its group, whose shard is the largest. */
static void stage(struct wz_plan_kind *k, const struct wz_plan *plan, const struct wz_recipe_stage *s,
                  struct wz_model *const *models, int learners)
{
    const struct wz_recipe *recipe = plan->recipe;
    const struct wz_group group = { .n = learners, .me = learners - 1 };

    for (int i = 0; i < (int)recipe->n_agents; i++) {
        struct wz_model *m = models[i], *reference = NULL;
        const char *name = recipe->agents[i].name;
        const struct wz_recipe_learn *r = wz_recipe_learn(s, name);
        struct wz_learner l;
        if (!r) continue;
        if (r->kl_coef > 0) {
            reference = wz_model_create(&m->config, m->type, NULL, m->be);
            wz_model_commit(reference, 1);
            take(k, m->be, name, "reference ", !strcmp(recipe->reference_location, "host"));
        }
        const int longest = wz_job_longest(recipe, &m->config);
        wz_learner_init(&l, m, reference, i, false, recipe->leaves / learners, &group, recipe->micro_batch_tokens,
                        longest);
        if (!strcmp(recipe->share_prefix, "yes")) wz_learner_share(&l, longest);
        take(k, m->be, name, "learner ", false);
        wz_learner_finish(&l);
        wz_model_destroy(reference);
    }
}

/* An agent's model and, where it plays, its engine. learners: of a rank that is one of them, how many there are; else
 * 0. */
static struct wz_model *agent(struct wz_plan_kind *k, const struct wz_plan *plan, const struct wz_recipe_agent *a,
                              const struct wz_config *config, bool plays, int learners, struct wz_backend *be)
{
    const struct wz_recipe *recipe = plan->recipe;
    const bool trains = learners && wz_recipe_learns(recipe, a->name);
    const struct wz_share last = { learners - 1, learners };

    if ((!plays && !trains) || wz_seat_find(a->role)->write) return NULL;
    struct wz_model *m = wz_model_create(config, wz_type_named(a->type), trains ? &last : NULL, be);
    m->recompute = !strcmp(recipe->activation_checkpointing, "layers");
    wz_model_commit(m, 1);
    take(k, be, a->name, "", false);
    add(k, a->name, "", "tensor index",
        (size_t)m->n_list * sizeof *m->list + (size_t)config->layers * sizeof *m->layers, true);
    if (plays) {
        wz_engine_destroy(wz_engine_create(m, recipe->rollout.max_num_seqs, recipe->rollout.kv_page_tokens,
                                           recipe->rollout.kv_pages, recipe->rollout.max_seq_len));
        take(k, be, a->name, "", false);
    }
    return m;
}

/* About what an episode takes on the heap: turns of so many context ids and sampled ids, with text, references and
 * advantages. */
static size_t episode_bytes(int turns, int context, int ids)
{
    const Wz__Turn *t = NULL;
    enum { TEXT = 8 }; /* bytes of a token's text, in a language that takes many */
    size_t token = sizeof *t->ids + sizeof *t->logp + sizeof *t->ref_logp + sizeof *t->advantage + TEXT;

    return sizeof(Wz__Episode) +
           (size_t)turns * (sizeof *t + (size_t)context * sizeof *t->context + (size_t)ids * token);
}

/* A rank's share of the largest batch, as messages and as bytes being sent; every turn as long as it may get. */
static void episodes(struct wz_plan_kind *k, const struct wz_plan *plan, const struct wz_config *configs, int sharers)
{
    const struct wz_recipe *recipe = plan->recipe;
    size_t one = 0;
    int batch = 0;

    if (wz_job_supervised(recipe)) return;
    for (unsigned s = 0; s < recipe->n_stages; s++)
        if (recipe->stages[s].batch > batch) batch = recipe->stages[s].batch;
    for (unsigned i = 0; i < recipe->n_agents; i++) {
        const struct wz_recipe_agent *a = &recipe->agents[i];
        int rounds = recipe->rollout.max_rounds, longest = wz_job_longest(recipe, &configs[i]);
        int ids = a->max_tokens < longest ? a->max_tokens : longest;
        one += episode_bytes(strcmp(a->role, "feedback") ? rounds + 1 : rounds, longest - ids, ids);
    }
    add(k, "", "", "episodes, at most", 2 * one * (size_t)((batch + sharers - 1) / sharers), true);
}

/* Which roles the ranks from this one on have, and how many ranks that is. Returns by how many a batch is shared. */
static int kind_name(struct wz_plan_kind *k, const struct wz_roles *roles, int rank, bool *plays, bool *judges,
                     bool *trains)
{
    const struct {
        const char *name;
        const struct wz_ranks *ranks;
        bool *in;
    } all[] = { { "rollout", &roles->rollout, plays },
                { "reward", &roles->reward, judges },
                { "learner", &roles->learner, trains } };
    int sharers = 0;

    *k = (struct wz_plan_kind){ .first = rank };
    for (size_t i = 0; i < WZ_COUNT(all); i++) {
        int first = all[i].ranks->ranks[0], ranks = all[i].ranks->n;
        bool in = rank >= first && rank < first + ranks;
        if (all[i].in) *all[i].in = in;
        if (!in) continue;
        size_t n = strlen(k->name);
        snprintf(k->name + n, sizeof k->name - n, "%s%s", n ? " + " : "", all[i].name);
        k->ranks = ranks;
        sharers = !sharers || ranks < sharers ? ranks : sharers;
    }
    return sharers;
}

/* The guard models of a rank that judges, none of which is larger than its file says. */
static void guards(struct wz_plan_kind *k, const struct wz_recipe *recipe, struct wz_backend *be)
{
    const struct wz_recipe_judge *list = recipe->n_judges ? recipe->judges : &recipe->judge;
    const int n = recipe->n_judges ? (int)recipe->n_judges : 1;

    for (int i = 0; i < n; i++) {
        const struct wz_judge_config how = wz_job_judge_config(&list[i], be);
        struct wz_config config;
        struct wz_judge judge;
        struct wz_err err; /* opening the judge says it */
        if (wz_judge_begin(&judge, &how, &err) < 0 || !judge.model) continue;
        if (wz_config_load(&config, list[i].model, &err) < 0) continue;
        struct wz_model *m = wz_model_create(&config, wz_type_named(list[i].type), NULL, be);
        wz_model_commit(m, 1);
        wz_engine_destroy(wz_guard_engine(m, how.concurrent, how.max_seq_len));
        take(k, be, list[i].name, "judge ", false);
        wz_model_destroy(m);
    }
}

static void kind_make(struct wz_plan_kind *k, const struct wz_plan *plan, const struct wz_roles *roles, int rank,
                      const struct wz_config *configs, struct wz_backend *be)
{
    const struct wz_recipe *recipe = plan->recipe;
    struct wz_model *models[WZ_MAX_AGENTS];
    bool plays, judges, trains;
    int sharers = kind_name(k, roles, rank, &plays, &judges, &trains), learners = trains ? roles->learner.n : 0;

    for (unsigned i = 0; i < recipe->n_agents; i++)
        models[i] = agent(k, plan, &recipe->agents[i], &configs[i], plays, learners, be);
    judges |= plays && wz_job_judged_in_play(recipe);
    if (judges && !wz_job_supervised(recipe)) guards(k, recipe, be);
    const struct wz_plan_kind base = *k;
    for (unsigned s = 0; learners && s < recipe->n_stages; s++) { /* the stage that takes the most */
        struct wz_plan_kind with = base;
        stage(&with, plan, &recipe->stages[s], models, learners);
        with.stage = recipe->stages[s].name;
        if (!k->stage || with.device + with.host > k->device + k->host) *k = with;
    }
    if (k->stage) add(k, "", "", "staging of weights and moments", WZ_CHUNK_BYTES, true);
    for (unsigned i = 0; i < recipe->n_agents; i++) wz_model_destroy(models[i]);
    episodes(k, plan, configs, sharers);
}

/* What this machine has. A backend that does not open here can still be planned for, if it is named. Returns the
 * backend that counts for it. */
static struct wz_backend *open_backend(struct wz_plan *plan, struct wz_err *err)
{
    const struct wz_recipe *recipe = plan->recipe;
    const struct wz_numerics numerics = wz_job_numerics(recipe);
    struct wz_backend *be = wz_job_backend(recipe, 1, err), *count;
    size_t total;

    if (!be && !strcmp(recipe->backend, "auto")) return NULL;
    count = wz_backend_counting(be ? be->name : recipe->backend, &numerics, err);
    if (be && count) plan->machine.gpus = wz_backend_devices(be, &total, &plan->machine.device);
    else if (count) plan->machine.gpus = count->counted->devices != NULL;
    else wz_recipe_fail(recipe, err, "backend", "%s", err->text);
    wz_backend_close(be);
    if (!count) return NULL;
    plan->backend = count->name;
    wz_host_memory(&total, &plan->machine.host);
    if (strcmp(recipe->reference_location, "host") || plan->machine.gpus) return count;
    wz_recipe_fail(recipe, err, "reference_location",
                   "\"host\" is for a backend with memory of its own; %s computes in the host's, where they are",
                   plan->backend);
    wz_backend_close(count);
    return NULL;
}

static int load_config(struct wz_config *config, const struct wz_recipe *recipe, const struct wz_recipe_agent *agent,
                       const char *dir, struct wz_err *err)
{
    char *saved = dir ? wz_path("%s/%s", dir, agent->name) : NULL;
    int rc = wz_config_load(config, saved && wz_is_dir(saved) ? saved : agent->model, err);

    free(saved);
    return rc < 0 ? wz_job_agent_fail(recipe, agent, err) : 0;
}

int wz_plan_make(struct wz_plan *plan, const struct wz_recipe *recipe, const char *dir, int size, int hosts,
                 struct wz_err *err)
{
    struct wz_config configs[WZ_MAX_AGENTS];
    struct wz_roles *roles = wz_alloc(sizeof *roles);
    struct wz_backend *be = NULL;
    int rc = -1;

    *plan = (struct wz_plan){ .recipe = recipe, .size = size, .machine = { .hosts = hosts } };
    if (wz_roles_assign(roles, recipe, true, -1, size, err) < 0 || !(be = open_backend(plan, err))) goto out;
    for (unsigned i = 0; i < recipe->n_agents; i++)
        if (load_config(&configs[i], recipe, &recipe->agents[i], dir, err) < 0) goto out;
    for (int rank = 0; rank < size; rank += plan->kinds[plan->n_kinds - 1].ranks)
        kind_make(&plan->kinds[plan->n_kinds++], plan, roles, rank, configs, be);
    rc = 0;
out:
    wz_backend_close(be);
    free(roles);
    return rc;
}

/* ---- what it computes ------------------------------------------------------------------------------------- */

double wz_plan_parameters(const char *model)
{
    const struct wz_numerics numerics = { 0 };
    struct wz_config config;
    struct wz_err none;
    double n = 0;
    struct wz_backend *be =
        wz_config_load(&config, model, &none) < 0 ? NULL : wz_backend_counting("ref", &numerics, &none);

    if (be) {
        struct wz_model *m = wz_model_create(&config, WZ_F32, NULL, be);
        n = (double)m->n_params;
        wz_model_destroy(m);
        wz_backend_close(be);
    }
    return n;
}

struct wz_plan_work wz_plan_work(const struct wz_recipe *recipe, const double parameters[WZ_MAX_AGENTS])
{
    struct wz_plan_work work = { 0 };
    bool reviewed = false;

    for (unsigned i = 0; i < recipe->n_agents; i++)
        reviewed |= !strcmp(wz_seat_find(recipe->agents[i].role)->role, WZ_FEEDBACK);
    for (unsigned s = 0; s < recipe->n_stages; s++) {
        const struct wz_recipe_stage *stage = &recipe->stages[s];
        const double episodes = (double)stage->steps * stage->batch;
        work.steps += stage->steps;
        work.episodes += episodes;
        for (unsigned i = 0; i < recipe->n_agents; i++) {
            const struct wz_recipe_agent *a = &recipe->agents[i];
            const struct wz_recipe_learn *learn = wz_recipe_learn(stage, a->name);
            const int rounds = recipe->rollout.max_rounds;
            const int turns = wz_seat_find(a->role)->write    ? 0
                              : !strcmp(a->role, WZ_FEEDBACK) ? rounds
                              : reviewed                      ? rounds + 1
                                                              : 1;
            const double turn = episodes * a->max_tokens, p = parameters[i] > 0 ? parameters[i] : NAN;
            work.tokens += turns * turn;
            work.flops += 2 * p * turns * turn;
            if (learn) work.flops += turn * p * (6 * stage->epochs + (learn->kl_coef > 0 ? 2 : 0));
        }
    }
    if (wz_job_supervised(recipe)) work.tokens = work.flops = NAN;
    return work;
}

/* ---- does it fit? ----------------------------------------------------------------------------------------- */

static int ranks_per_host(const struct wz_plan *plan)
{
    return (plan->size + plan->machine.hosts - 1) / plan->machine.hosts;
}

/* Of the kind's ranks, how many are on that host (and, where gpu >= 0, use that GPU of it). */
static int ranks_on(const struct wz_plan *plan, const struct wz_plan_kind *k, int host, int gpu)
{
    int per = ranks_per_host(plan), n = 0;

    for (int r = k->first; r < k->first + k->ranks; r++)
        n += r / per == host && (gpu < 0 || r % per % plan->machine.gpus == gpu);
    return n;
}

/* Bytes of a host's own memory (gpu -1) or of one of its GPUs. */
static size_t sum_on(const struct wz_plan *plan, int host, int gpu)
{
    size_t sum = 0;

    for (int i = 0; i < plan->n_kinds; i++) {
        const struct wz_plan_kind *k = &plan->kinds[i];
        size_t own = gpu >= 0 ? k->device : k->host + (plan->machine.gpus ? 0 : k->device);
        sum += own * (size_t)ranks_on(plan, k, host, gpu);
    }
    return sum;
}

/* Names the three largest buffers that lie there. */
static void name_largest(const struct wz_plan *plan, int host, int gpu, struct wz_buf *out)
{
    const struct wz_plan_row *named[3] = { 0 };

    for (size_t place = 0; place < WZ_COUNT(named); place++) {
        size_t most = 0;
        int times = 0;
        for (int i = 0; i < plan->n_kinds; i++) {
            const struct wz_plan_kind *k = &plan->kinds[i];
            int n = ranks_on(plan, k, host, gpu);
            for (const struct wz_plan_row *r = k->rows; r < k->rows + k->n_rows; r++) {
                bool there = gpu >= 0 ? !r->host : r->host || !plan->machine.gpus;
                if (!there || r == named[0] || r == named[1] || r->bytes * (size_t)n <= most) continue;
                most = r->bytes * (size_t)n;
                times = n;
                named[place] = r;
            }
        }
        const struct wz_plan_row *r = named[place];
        if (!r) return;
        wz_buf_printf(out, "%s%s%s%s %.2f GB", place ? ", " : "", r->agent, *r->agent ? "'s " : "", r->what,
                      (double)r->bytes * 1e-9);
        if (times > 1) wz_buf_printf(out, " on each of %d ranks", times);
    }
}

static int fits(const struct wz_plan *plan, int host, int gpu, struct wz_err *err)
{
    size_t need = sum_on(plan, host, gpu), there = gpu >= 0 ? plan->machine.device : plan->machine.host;
    struct wz_buf largest = { 0 };
    char where[48] = "the host";

    if (!there || need <= there) return 0;
    if (plan->machine.hosts > 1) snprintf(where, sizeof where, "host %d", host);
    if (gpu >= 0) {
        size_t n = strlen(where);
        if (plan->machine.gpus > 1) snprintf(where + n, sizeof where - n, "'s GPU %d", gpu);
        else snprintf(where + n, sizeof where - n, "'s GPU");
    }
    name_largest(plan, host, gpu, &largest);
    wz_fail(err, "the run needs %.2f GB of %s's memory and there are %.2f GB; the largest are %s", (double)need * 1e-9,
            where, (double)there * 1e-9, largest.data);
    wz_buf_finish(&largest);
    return -1;
}

int wz_plan_check(const struct wz_plan *plan, struct wz_err *err)
{
    int per = ranks_per_host(plan);

    for (int h = 0; h * per < plan->size; h++) {
        for (int g = 0; g < plan->machine.gpus && g < per; g++)
            if (fits(plan, h, g, err) < 0) return -1;
        if (fits(plan, h, -1, err) < 0) return -1;
    }
    return 0;
}

/* ---- as a table ------------------------------------------------------------------------------------------- */

static void print_line(FILE *out, const char *agent, const char *what, size_t bytes)
{
    fprintf(out, "  %-16s %-32s %16zu %11.4f GB\n", agent, what, bytes, (double)bytes * 1e-9);
}

static void print_sum(const struct wz_plan *plan, FILE *out, int host, int gpu)
{
    size_t there = gpu >= 0 ? plan->machine.device : plan->machine.host;
    char name[48] = "";
    int n = plan->machine.hosts > 1 ? snprintf(name, sizeof name, "host %d", host) : 0;

    if (gpu >= 0) snprintf(name + n, sizeof name - (size_t)n, "%sGPU %d", n ? " " : "", gpu);
    else if (!n) snprintf(name, sizeof name, "host");
    fprintf(out, "%-49s %18zu %11.4f GB", name, sum_on(plan, host, gpu), (double)sum_on(plan, host, gpu) * 1e-9);
    if (there) fprintf(out, " of %.2f GB", (double)there * 1e-9);
    fprintf(out, "\n");
}

void wz_plan_print(const struct wz_plan *plan, FILE *out)
{
    int per = ranks_per_host(plan);

    fprintf(out, "%s: %d rank%s, backend %s\n", plan->recipe->name, plan->size, plan->size > 1 ? "s" : "",
            plan->backend);
    struct wz_buf named = { 0 };
    wz_recipe_datasets(plan->recipe, &named);
    fprintf(out, "%s", named.len ? named.data : "");
    wz_buf_finish(&named);
    for (int i = 0; i < plan->n_kinds; i++) {
        const struct wz_plan_kind *k = &plan->kinds[i];
        fprintf(out, "\n%s, %d rank%s%s%s\n", k->name, k->ranks, k->ranks > 1 ? "s, each" : "",
                k->stage ? ", in stage " : "", k->stage ? k->stage : "");
        for (int r = 0; r < k->n_rows; r++) print_line(out, k->rows[r].agent, k->rows[r].what, k->rows[r].bytes);
        if (plan->machine.gpus) print_line(out, "sum", "on the GPU", k->device);
        print_line(out, "sum", plan->machine.gpus ? "on the host" : "", k->host + (plan->machine.gpus ? 0 : k->device));
    }
    fprintf(out, "\n");
    for (int h = 0; h * per < plan->size; h++) {
        for (int g = 0; g < plan->machine.gpus && g < per; g++) print_sum(plan, out, h, g);
        print_sum(plan, out, h, -1);
    }
    fprintf(
        out,
        "Not counted: the program and its libraries, tokenizers, prompts, lists of a batch's rows, a buffer of 4 MB "
        "for files,\nand scratch of kernels (tiles; for bf16 on the cpu two bytes for each row of a forward and "
        "channel of its widest\nmatrix).\n");
}

/* ---- as JSON ---------------------------------------------------------------------------------------------- */

/* gpu -1: the host's own memory. */
static json_t *memory_json(const struct wz_plan *plan, int host, int gpu)
{
    size_t there = gpu >= 0 ? plan->machine.device : plan->machine.host;

    return json_pack("{s:i, s:o, s:I, s:o}", "host", host, "gpu", gpu >= 0 ? json_integer(gpu) : json_null(), "needed",
                     (json_int_t)sum_on(plan, host, gpu), "there",
                     there ? json_integer((json_int_t)there) : json_null());
}

json_t *wz_plan_json(const struct wz_plan *plan, const char *problem)
{
    json_t *kinds = json_array(), *memory = json_array();
    int per = ranks_per_host(plan);

    for (int i = 0; i < plan->n_kinds; i++) {
        const struct wz_plan_kind *k = &plan->kinds[i];
        json_t *buffers = json_array();
        for (const struct wz_plan_row *r = k->rows; r < k->rows + k->n_rows; r++)
            json_array_append_new(buffers, json_pack("{s:s, s:s, s:I, s:s}", "agent", r->agent, "what", r->what,
                                                     "bytes", (json_int_t)r->bytes, "in",
                                                     r->host || !plan->machine.gpus ? "host" : "gpu"));
        json_array_append_new(kinds, json_pack("{s:s, s:i, s:i, s:s?, s:o}", "roles", k->name, "first", k->first,
                                               "ranks", k->ranks, "stage", k->stage, "buffers", buffers));
    }
    for (int h = 0; h * per < plan->size; h++) {
        for (int g = 0; g < plan->machine.gpus && g < per; g++) json_array_append_new(memory, memory_json(plan, h, g));
        json_array_append_new(memory, memory_json(plan, h, -1));
    }
    struct wz_buf named = { 0 };
    wz_recipe_datasets(plan->recipe, &named);
    json_t *sets = json_array();
    struct wz_lines l = wz_lines_begin(named.data, named.len);
    while (wz_lines_next(&l)) json_array_append_new(sets, json_stringn(l.line, l.n));
    wz_buf_finish(&named);
    return json_pack("{s:s, s:o, s:i, s:s, s:o, s:o, s:b, s:s?}", "recipe", plan->recipe->name, "data sets", sets,
                     "ranks", plan->size, "backend", plan->backend, "kinds", kinds, "memory", memory, "fits",
                     problem == NULL, "problem", problem);
}
