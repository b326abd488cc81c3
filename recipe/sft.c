/* The section sft: as a recipe of its own: one agent, "model", that learns conversations in one stage, "sft". */
#include "recipe/recipe.h"
#include "recipe/schema.h"

#include <string.h>

/* Its shape. Every key that is not here has its default; what only play needs is not compared when it is resumed. */
static const char shape_text[] =
    "name: sft\n"
    "agents: [{name: model, role: conversation, model: m}]\n"
    "data: [{path: p, column: messages, harmful: =benign}]\n"
    "stages: [{name: sft, steps: 1, loss: cross_entropy, agents: [{name: model, kl_coef: 0, loss_mean: token}]}]\n";

int wz_recipe_sft(struct wz_recipe **recipe, struct wz_err *err)
{
    struct wz_recipe own = **recipe, *shape, *loaded;
    const __typeof__(own.sft) *s = &own.sft;
    struct wz_resolved text = { 0 };

    if (!s->model[0] || !s->data[0] || !s->out[0] || !s->steps)
        return wz_fail(err, "%s: expected sft.model, sft.data, sft.out and sft.steps", own.source->file);
    if (wz_recipe_parse(&shape, "sft", shape_text, strlen(shape_text), NULL, 0, err) < 0) return -1;
    struct wz_recipe_agent agent = *shape->agents; /* strings are borrowed, from the shape or the section */
    struct wz_recipe_data data = *shape->data;
    struct wz_recipe_stage stage = *shape->stages;
    struct wz_recipe_learn learn = *stage.agents;
    agent.model = s->model;
    agent.system = s->system;
    agent.chat = s->chat;
    agent.type = s->type;
    data.path = s->data;
    learn.lr = s->lr;
    learn.warmup = s->warmup;
    learn.min_lr_ratio = s->min_lr_ratio;
    learn.beta1 = s->beta1;
    learn.beta2 = s->beta2;
    learn.eps = s->eps;
    learn.weight_decay = s->weight_decay;
    learn.max_grad_norm = s->max_grad_norm;
    stage.agents = &learn;
    stage.steps = s->steps;
    stage.batch = s->batch;
    own.out = s->out;
    own.agents = &agent;
    own.data = &data;
    own.stages = &stage;
    own.n_agents = own.n_data = own.n_stages = 1;
    own.n_eval = 0;
    own.n_limits = 0; /* of metrics that it doesn't have */
    own.checkpoint.best = shape->checkpoint.best;
    own.ranks = shape->ranks;
    own.rollout = shape->rollout;
    own.judge = shape->judge;
    own.evaluate = shape->evaluate;
    int rc = wz_recipe_print(&own, own.source->file, &text, err);
    if (rc == 0) rc = wz_recipe_parse(&loaded, own.source->file, text.text.data, text.text.len, NULL, 0, err);
    wz_resolved_finish(&text);
    wz_recipe_destroy(shape);
    if (rc < 0) return -1;
    for (int i = 0; i < loaded->source->n_origins; i++) loaded->source->origins[i].line = 0; /* of no file */
    wz_recipe_destroy(*recipe);
    *recipe = loaded;
    return 0;
}
