/* waltz COMMAND ...: one table of sub-commands. */
#include "launch/launch.h"

#include <errno.h>
#include <string.h>

static const struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} commands[] = {
    { "train", wz_cmd_train, "train the agents of a recipe by reinforcement learning" },
    { "plan", wz_cmd_plan, "what memory a run will take on every rank, and whether it fits, before it starts" },
    { "doctor", wz_cmd_doctor, "try what is needed of this machine, and what a recipe names" },
    { "sft", wz_cmd_sft, "supervised warm start of a model on conversations" },
    { "eval", wz_cmd_eval, "play held-out prompts; attack success, overrefusal and more, with intervals" },
    { "chat", wz_cmd_chat, "talk with the agents of a run: the reply, and what the feedback agent said of it" },
    { "replay", wz_cmd_replay, "recompute a recorded step and compare it bit by bit" },
    { "sandbox", wz_cmd_sandbox, "write a toy world in which a run can be watched to work in minutes" },
    { "score", wz_cmd_score, "log-probabilities of given tokens" },
    { "convert", wz_cmd_convert, "a GGUF or a model folder to a model folder" },
    { "inspect", wz_cmd_inspect, "what a model, a checkpoint, a record or a file of prompts holds" },
    { "tokenize", wz_cmd_tokenize, "turn texts and conversations into token ids, and back" },
    { "generate", wz_cmd_generate, "continue conversations or token ids" },
    { "report", wz_cmd_report, "one HTML page about runs: results, curves, transcripts" },
    { "help", wz_cmd_help, "every key of a recipe" },
    { NULL, NULL, NULL },
};
enum { N_COMMANDS = WZ_COUNT(commands) - 1 };

static void print_help(FILE *out)
{
    fprintf(out, "usage: waltz COMMAND [arguments]\n\n"
                 "Trains two language-model agents together by reinforcement learning: one answers, the other\n"
                 "reads the answer and says how to mend it.\n\ncommands:\n");
    for (int i = 0; i < N_COMMANDS; i++) fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].help);
    fprintf(out, "\n`waltz COMMAND --help` tells more; `waltz --version` prints the version.\n");
}

/* What was printed must have arrived: a full disk behind a pipe is a failure. */
static int finish(int status)
{
    if ((fflush(stdout) || ferror(stdout)) && !status) {
        fprintf(stderr, "waltz: standard output: %s\n", strerror(errno));
        return 1;
    }
    return status;
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : NULL;

    if (!name) {
        print_help(stderr);
        return 2;
    }
    if (!strcmp(name, "--help") || !strcmp(name, "-h") || (!strcmp(name, "help") && argc == 2)) {
        print_help(stdout);
        return finish(0);
    }
    if (!strcmp(name, "--version")) {
        printf("waltz %s\n", WZ_VERSION);
        return finish(0);
    }
    for (int i = 0; i < N_COMMANDS; i++)
        if (!strcmp(name, commands[i].name)) return finish(commands[i].run(argc - 1, argv + 1));

    const char *near = wz_nearest(name, commands, sizeof *commands, N_COMMANDS);
    if (near) fprintf(stderr, "waltz: there is no command '%s'; did you mean '%s'?\n", name, near);
    else fprintf(stderr, "waltz: there is no command '%s'; `waltz --help` lists them\n", name);
    return 2;
}
