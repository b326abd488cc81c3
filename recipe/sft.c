/* The section sft: as a recipe of its own: one agent, "model", that learns conversations in one stage, "sft". */
#include "recipe/recipe.h"
#include "recipe/schema.h"

/* What only play needs has its default, or 0: it is not compared when such a run is resumed. */
int wz_recipe_sft(struct wz_recipe **recipe, struct wz_err *err)
{
    struct wz_recipe own = **recipe, *loaded;
    const __typeof__(own.sft) *s = &own.sft;
    struct wz_resolved text = { 0 };

    if (!s->model[0] || !s->data[0] || !s->out[0] || !s->steps)
        return wz_fail(err, "%s: expected sft.model, sft.data, sft.out and sft.steps", own.source->file);
    struct wz_recipe_agent agent = { .name = "model",
                                     .role = "conversation",
                                     .model = s->model,
                                     .system = s->system,
                                     .chat = s->chat,
                                     .type = s->type,
                                     .max_tokens = 512,
                                     .temperature = 1,
                                     .top_p = 1 };
    struct wz_recipe_learn learn = { "model",
                                     s->lr,
                                     s->warmup,
                                     s->min_lr_ratio,
                                     s->beta1,
                                     s->beta2,
                                     s->eps,
                                     s->weight_decay,
                                     s->max_grad_norm,
                                     .clip_eps = 0.2,
                                     .loss_mean = "token",
                                     .feedback_bonus = "dir" };
    struct wz_recipe_stage stage = { "sft", s->steps, s->batch, "cross_entropy", .agents = &learn, .n_agents = 1 };
    struct wz_recipe_data data = { .path = s->data, .column = "messages", .harmful = "=benign", .kind = "" };
    own.out = s->out;
    own.agents = &agent, own.n_agents = 1;
    own.stages = &stage, own.n_stages = 1;
    own.data = &data, own.n_data = 1;
    own.eval = NULL, own.n_eval = 0;
    own.ranks = (__typeof__(own.ranks)){ 0 };
    own.rollout = (__typeof__(own.rollout)){ .kv_page_tokens = 16, .max_num_seqs = 1 };
    own.judge = (__typeof__(own.judge)){ .name = "rules", .phrases = "", .world = "no" };
    own.evaluate = (__typeof__(own.evaluate)){ 0 };
    int rc = wz_recipe_print(&own, own.source->file, &text, err);
    if (rc == 0) rc = wz_recipe_parse(&loaded, own.source->file, text.text.data, text.text.len, NULL, 0, err);
    wz_resolved_finish(&text);
    if (rc < 0) return -1;
    for (int i = 0; i < loaded->source->n_origins; i++) loaded->source->origins[i].line = 0; /* of no file */
    wz_recipe_destroy(*recipe);
    *recipe = loaded;
    return 0;
}
