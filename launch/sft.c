/* waltz sft: the supervised warm start. All ranks are learners; each owns its share of a batch's leaves. */
#include "run/run.h"
#include "launch/launch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct warm {
    struct wz_link link;
    struct wz_backend *be;
    struct wz_model *model;
    struct wz_tokenizer *tok;
    const struct wz_template *chat;
    char *system;
    struct wz_sft_set set;
    struct wz_learner learner;
    int ranks[WZ_MAX_RANKS];
    struct wz_group group;
};

static int warm_open(struct warm *w, const struct wz_recipe *recipe, struct wz_err *err)
{
    const char *model = recipe->sft.model, *name = recipe->sft.chat;

    if (!model[0] || !recipe->sft.data[0] || !recipe->sft.out[0] || !recipe->sft.steps)
        return wz_fail(err, "the recipe needs sft.model, sft.data, sft.out and sft.steps");
    if (w->link.size & (w->link.size - 1) || recipe->leaves % w->link.size)
        return wz_fail(err, "%d ranks; a power of two that divides leaves (%d) is needed", w->link.size,
                       recipe->leaves);
    for (int r = 0; r < w->link.size; r++) w->ranks[r] = r;
    w->group = (struct wz_group){ w->link.size, w->link.rank, w->ranks };
    w->be = wz_job_backend(recipe, wz_ranks_threads(&w->link, NULL, recipe->threads), err);
    if (!w->be) return -1;
    w->model = wz_model_load(model, wz_type_named(recipe->sft.type), &(struct wz_share){ w->link.rank, w->link.size },
                             w->be, err);
    if (!w->model) return -1;
    w->model->recompute = !strcmp(recipe->activation_checkpointing, "layers");
    w->tok = wz_tokenizer_load(model, err);
    if (!w->tok) return -1;
    if (!name[0]) name = wz_tokenizer_template(w->tok);
    if (!name) return wz_fail(err, "%s names no chat template; give one by its name as sft.chat", model);
    w->chat = wz_template_find(name, w->tok, err);
    if (!w->chat || !(w->system = wz_system_read(recipe->sft.system, err))) return -1;
    if (wz_sft_load(&w->set, recipe->sft.data, w->system, w->chat, w->tok, w->model->config.context, err) < 0)
        return -1;
    wz_learner_init(&w->learner, w->model, NULL, 0, false, recipe->leaves / w->link.size, &w->group,
                    recipe->micro_batch_tokens, w->set.longest);
    return 0;
}

static void warm_close(struct warm *w)
{
    wz_learner_finish(&w->learner);
    wz_sft_finish(&w->set);
    free(w->system);
    wz_tokenizer_destroy(w->tok);
    wz_model_destroy(w->model);
    wz_link_close(&w->link);
    wz_backend_close(w->be);
}

static int sft(struct warm *w, const struct wz_recipe *recipe, struct wz_err *err)
{
    const struct wz_learn how = { .adamw = { recipe->sft.lr, recipe->sft.warmup, recipe->sft.min_lr_ratio,
                                             recipe->sft.beta1, recipe->sft.beta2, recipe->sft.eps,
                                             recipe->sft.weight_decay, recipe->sft.max_grad_norm },
                                  .loss = wz_loss_find("cross_entropy", err),
                                  .temperature = 1,
                                  .token_mean = true };
    const int steps = recipe->sft.steps;
    bool tty = isatty(STDERR_FILENO);
    double begin = wz_now();

    if (!w->link.rank)
        wz_log("warm start: %d examples of %.1f tokens, %d steps of %d, %zu parameters", w->set.n,
               (double)w->set.tokens / w->set.n, steps, recipe->sft.batch, w->model->n_params);
    for (int s = 0; s < steps; s++) {
        struct wz_step_stats stats;
        w->link.step = s;
        wz_sft_step(&w->learner, &how, &w->link, &w->group, &w->set, recipe->sft.batch, s, steps, recipe->seed, &stats);
        double spent = wz_now() - begin, left = spent / (s + 1) * (steps - s - 1);
        if (w->link.rank) continue;
        char text[128];
        bool last = s + 1 == steps;
        snprintf(text, sizeof text, "step %d/%d  loss %.4f  grad %.2f  %.0f:%02.0f left", s + 1, steps, stats.nll,
                 stats.grad_norm, floor(left / 60), floor(fmod(left, 60)));
        if (tty) fprintf(stderr, "\r\033[K%s%s", text, last ? "\n" : "");
        else if ((s + 1) % 50 == 0 || last) wz_log("%s", text);
    }
    if (w->link.rank) return 0;
    if (wz_model_save(w->model, recipe->sft.out, 0, err) < 0 || wz_tokenizer_save(w->tok, recipe->sft.out, err) < 0)
        return -1;
    wz_log("wrote %s in %.0f s", recipe->sft.out, wz_now() - begin);
    return 0;
}

int wz_cmd_sft(int argc, char **argv)
{
    static const struct wz_usage usage = {
        .name = "sft",
        .args = "RECIPE [key=value ...]",
        .max_args = -1,
        .min_args = 1,
        .about = "Supervised warm start: trains the model sft.model on the conversations of sft.data (JSON lines, loss "
                 "on the\n"
                 "assistant's tokens only) and writes it to sft.out. Alone, or on 2, 4 or 8 ranks under mpirun.",
    };
    struct wz_recipe *recipe = NULL;
    struct warm w = { 0 };
    struct wz_err err = { 0 };
    int status, n = wz_options_parse(&usage, argc, argv, &status);

    if (n < 0) return status;
    status = 1;
    if (wz_job_recipe(&recipe, &w.link, argv[0], argv + 1, n - 1, &err) < 0 ||
        wz_link_agree(&w.link, warm_open(&w, recipe, &err), &err) < 0)
        wz_give_up("sft", &err);
    else if (sft(&w, recipe, &err) < 0) wz_die("sft: %s", err.text);
    else status = 0;
    warm_close(&w);
    wz_recipe_destroy(recipe);
    return status;
}
