/* waltz help recipe: the reference of recipe keys, from their table (recipe/schema.c). */
#include "launch/launch.h"

#include <string.h>

#include "recipe/recipe.h"

int wz_cmd_help(int argc, char **argv)
{
    bool markdown = false;
    const struct wz_option options[] = {
        { "markdown", 0, WZ_FLAG, &markdown, "", "as docs/recipe.md", 0, 0 },
    };
    const struct wz_usage usage = {
        .name = "help",
        .args = "recipe",
        .options = options,
        .n_options = WZ_COUNT(options),
        .min_args = 1,
        .max_args = 1,
        .about = "Prints every key of a recipe: its type, range, default, whether it may change when a run is resumed, "
                 "and what it\nmeans. `waltz COMMAND --help` describes a command.",
    };
    struct wz_err err;
    int status;

    if (wz_options_parse(&usage, argc, argv, &status) < 0) return status;
    if (strcmp(argv[0], "recipe")) {
        wz_fail(&err, "'%s' is not a topic: expected recipe", argv[0]);
        return wz_give_up("help", &err), 2;
    }
    wz_recipe_help(stdout, markdown);
    return 0;
}
