/* Every buffer of every kind of rank, their sums, and whether they fit.
 *
 * Ranks lie on hosts in blocks, as mpirun and srun place them: with 8 on a host, rank r is on host r / 8. Those of a
 * host share its GPUs in turn. What lies in a GPU is held against that GPU, all else against the host. */
#include "run/plan.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- making it -------------------------------------------------------------------------------------------- */

static void add(struct wz_plan_kind *k, const struct wz_plan *plan, const char *agent, const char *what, size_t bytes,
                bool host)
{
    if (!bytes) return;
    if (host || !plan->machine.gpus) bytes = wz_alloc_size(bytes);
    if (k->n_rows == (int)WZ_COUNT(k->rows)) wz_die("plan: more than %d buffers", k->n_rows);
    k->rows[k->n_rows++] = (struct wz_plan_row){ agent, what, bytes, host };
    *(host ? &k->host : &k->device) += bytes;
}

/* What one agent's learner takes in a stage; added to the kind, or, where k is NULL, only summed. */
static size_t learner(struct wz_plan_kind *k, const struct wz_plan *plan, const struct wz_recipe_learn *r,
                      const struct wz_recipe_agent *agent, const struct wz_config *c, int learners)
{
    const struct wz_recipe *recipe = plan->recipe;
    enum wz_type type = wz_type_named(agent->type);
    const struct wz_model_bytes model = wz_model_bytes(c, type, 0, plan->backend);
    bool reference = r->kl_coef > 0;
    struct wz_learner_bytes b = wz_learner_bytes(c, type == WZ_BF16 && plan->row->half_kv, model.params, reference,
                                                 recipe->leaves / learners, learners, recipe->micro_batch_tokens,
                                                 wz_pack_rows(plan->row->grain, wz_job_longest(recipe, c)),
                                                 !strcmp(recipe->activation_checkpointing, "layers"));
    const size_t weights = reference ? model.weights : 0,
                 away = strcmp(recipe->reference_location, "host") ? 0 : weights;
    const struct {
        const char *what;
        size_t bytes;
    } rows[] = {
        { "moments", b.opt.moments },
        { "gradient tree", b.opt.gradients },
        { "activations and scratch", b.pack.work },
        { "training key/value cache", b.pack.cache },
        { "reference weights", weights - away },
        { "reference panels", reference ? model.packed : 0 },
        { "reference scratch", b.reference.work },
        { "reference key/value cache", b.reference.cache },
    };
    size_t sum = 0;

    for (size_t i = 0; i < WZ_COUNT(rows); i++) {
        sum += rows[i].bytes;
        if (k) add(k, plan, agent->name, rows[i].what, rows[i].bytes, false);
    }
    if (k) add(k, plan, agent->name, "reference weights", away, true);
    return sum;
}

/* A stage's learners, as learner() does it. */
static size_t stage(struct wz_plan_kind *k, const struct wz_plan *plan, const struct wz_recipe_stage *s,
                    const struct wz_config *configs, int learners)
{
    size_t sum = 0;

    for (unsigned i = 0; i < plan->recipe->n_agents; i++) {
        const struct wz_recipe_learn *r = wz_recipe_learn(s, plan->recipe->agents[i].name);
        if (r) sum += learner(k, plan, r, &plan->recipe->agents[i], &configs[i], learners);
    }
    return sum;
}

/* learners: of a rank that is one of them, how many there are; else 0. */
static void models(struct wz_plan_kind *k, const struct wz_plan *plan, const struct wz_config *configs, bool plays,
                   int learners)
{
    const struct wz_recipe *recipe = plan->recipe;
    size_t staging = 0;

    for (unsigned i = 0; i < recipe->n_agents; i++) {
        const struct wz_recipe_agent *a = &recipe->agents[i];
        enum wz_type type = wz_type_named(a->type);
        int trainers = wz_recipe_learns(recipe, a->name) ? learners : 0;
        if (!plays && !trainers) continue;
        struct wz_model_bytes b = wz_model_bytes(&configs[i], type, trainers, plan->backend);
        add(k, plan, a->name, "weights", b.weights, false);
        add(k, plan, a->name, "f32 masters", b.masters, false);
        add(k, plan, a->name, "packed panels", b.packed, false);
        add(k, plan, a->name, "lists and a piece in passing", b.host, true);
        if (trainers) staging = WZ_STAGE;
        if (!plays) continue;
        struct wz_engine_bytes e =
            wz_engine_bytes(&configs[i], type == WZ_BF16 && plan->row->half_kv, recipe->rollout.max_num_seqs,
                            recipe->rollout.kv_page_tokens, recipe->rollout.kv_pages, recipe->rollout.max_seq_len);
        add(k, plan, a->name, "key/value cache", e.cache, false);
        add(k, plan, a->name, "scratch", e.work, false);
        add(k, plan, a->name, "ids of what is cached", e.ids, true);
    }
    add(k, plan, "", "weights and moments in passing", staging, true);
}

/* A rank's share of the largest batch, as messages and as bytes on their way; every turn as long as it may get. */
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
        one += wz_episode_bytes(strcmp(a->role, "feedback") ? rounds + 1 : rounds, longest - ids, ids);
    }
    add(k, plan, "", "episodes, at most", 2 * one * (size_t)((batch + sharers - 1) / sharers), true);
}

static void kind_make(struct wz_plan *plan, const struct wz_roles *roles, int rank, const struct wz_config *configs)
{
    const struct {
        const char *name;
        const struct wz_ranks *ranks;
    } all[] = { { "rollout", &roles->rollout }, { "reward", &roles->reward }, { "learner", &roles->learner } };
    bool in[WZ_COUNT(all)];
    struct wz_plan_kind *k = &plan->kinds[plan->n_kinds++];
    int sharers = 0;

    *k = (struct wz_plan_kind){ .first = rank };
    for (size_t i = 0; i < WZ_COUNT(all); i++) {
        int first = all[i].ranks->ranks[0];
        in[i] = rank >= first && rank < first + all[i].ranks->n;
        if (!in[i]) continue;
        size_t n = strlen(k->name);
        snprintf(k->name + n, sizeof k->name - n, "%s%s", n ? " + " : "", all[i].name);
        k->ranks = all[i].ranks->n;
        sharers = !sharers || all[i].ranks->n < sharers ? all[i].ranks->n : sharers;
    }
    models(k, plan, configs, in[0], in[2] ? roles->learner.n : 0);
    if (in[2]) {
        const struct wz_recipe_stage *largest = NULL;
        size_t most = 0;
        for (unsigned s = 0; s < plan->recipe->n_stages; s++) {
            size_t sum = stage(NULL, plan, &plan->recipe->stages[s], configs, roles->learner.n);
            if (!largest || sum > most) largest = &plan->recipe->stages[s], most = sum;
        }
        if (largest) {
            stage(k, plan, largest, configs, roles->learner.n);
            k->stage = largest->name;
        }
    }
    episodes(k, plan, configs, sharers);
}

/* A backend that does not open here can still be planned for, if it is named. */
static int look_around(struct wz_plan *plan, struct wz_err *err)
{
    struct wz_backend *be = wz_job_backend(plan->recipe, 1, err);
    size_t total;

    if (!be && !strcmp(plan->recipe->backend, "auto")) return -1;
    snprintf(plan->backend, sizeof plan->backend, "%s", be ? be->name : plan->recipe->backend);
    if (!(plan->row = wz_backend_row(plan->backend))) return -1;
    if (be) plan->machine.gpus = wz_backend_devices(be, &total, &plan->machine.device);
    else plan->machine.gpus = !strcmp(plan->backend, "cuda");
    wz_backend_close(be);
    wz_host_memory(&total, &plan->machine.host);
    if (strcmp(plan->recipe->reference_location, "host") || plan->machine.gpus) return 0;
    return wz_fail(
        err, "reference: \"host\" is for a backend with memory of its own; %s computes in the host's, where they are",
        plan->backend);
}

static int load_config(struct wz_config *config, const struct wz_recipe_agent *agent, const char *dir,
                       struct wz_err *err)
{
    char *saved = dir ? wz_path("%s/%s", dir, agent->name) : NULL;
    int rc = wz_config_load(config, saved && wz_is_dir(saved) ? saved : agent->model, err);

    free(saved);
    return rc < 0 ? wz_fail_in(err, "agent %s", agent->name) : 0;
}

int wz_plan_make(struct wz_plan *plan, const struct wz_recipe *recipe, const char *dir, int size, int hosts,
                 struct wz_err *err)
{
    struct wz_config configs[WZ_MAX_AGENTS];
    struct wz_roles *roles = wz_alloc(sizeof *roles);
    int rc = -1, rank = 0;

    *plan = (struct wz_plan){ .recipe = recipe, .size = size, .machine = { .hosts = hosts } };
    if (look_around(plan, err) < 0 || wz_roles_assign(roles, recipe, true, -1, size, err) < 0) goto out;
    for (unsigned i = 0; i < recipe->n_agents; i++)
        if (load_config(&configs[i], &recipe->agents[i], dir, err) < 0) goto out;
    while (rank < size) {
        kind_make(plan, roles, rank, configs);
        rank += plan->kinds[plan->n_kinds - 1].ranks;
    }
    rc = 0;
out:
    free(roles);
    return rc;
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
    fprintf(out, "  %-16s %-28s %16zu %11.1f MB\n", agent, what, bytes, (double)bytes * 1e-6);
}

static void print_sum(const struct wz_plan *plan, FILE *out, int host, int gpu)
{
    size_t there = gpu >= 0 ? plan->machine.device : plan->machine.host;
    char name[48] = "";
    int n = plan->machine.hosts > 1 ? snprintf(name, sizeof name, "host %d", host) : 0;

    if (gpu >= 0) snprintf(name + n, sizeof name - (size_t)n, "%sGPU %d", n ? " " : "", gpu);
    else if (!n) snprintf(name, sizeof name, "host");
    fprintf(out, "%-45s %18zu %11.1f MB", name, sum_on(plan, host, gpu), (double)sum_on(plan, host, gpu) * 1e-6);
    if (there) fprintf(out, " of %.1f MB", (double)there * 1e-6);
    fprintf(out, "\n");
}

void wz_plan_print(const struct wz_plan *plan, FILE *out)
{
    int per = ranks_per_host(plan);

    fprintf(out, "%s: %d rank%s, backend %s\n", plan->recipe->name, plan->size, plan->size > 1 ? "s" : "",
            plan->backend);
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
    fprintf(out,
            "Not counted: the program and its libraries, tokenizers, prompts, a buffer of 4 MB for files, and what "
            "kernels work "
            "in (tiles;\nfor bf16 on the cpu two bytes for each row of a forward and channel of its widest matrix).\n");
}
