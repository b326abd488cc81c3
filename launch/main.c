/* waltz COMMAND ...: one table of sub-commands. */
#include "launch/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "recipe/recipe.h"

static int run_help(int argc, char **argv);

static const struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} commands[] = {
    { "train", wz_cmd_train, "train the agents of a recipe by reinforcement learning" },
    { "plan", wz_cmd_plan, "what memory a run will take on every rank, and whether it fits, before it starts" },
    { "doctor", wz_cmd_doctor, "check the environment, and what a recipe names" },
    { "sft", wz_cmd_sft, "supervised warm start of a model on conversations" },
    { "eval", wz_cmd_eval, "play held-out prompts; attack success, overrefusal and more, with intervals" },
    { "judge", wz_cmd_judge, "verdicts of a recipe's judges, or of one, and their agreement with people's labels" },
    { "chat", wz_cmd_chat, "talk with the agents of a run: the reply, and what the feedback agent said of it" },
    { "replay", wz_cmd_replay, "recompute a recorded step and compare it bit by bit" },
    { "fsck", wz_cmd_fsck, "what of a run is whole, what is lost, and what can be repaired" },
    { "sandbox", wz_cmd_sandbox, "write a toy world in which a run can be watched to work in minutes" },
    { "score", wz_cmd_score, "log-probabilities of given tokens" },
    { "convert", wz_cmd_convert, "a GGUF or a model folder to a model folder" },
    { "inspect", wz_cmd_inspect, "what a model, a checkpoint, a record or a file of prompts holds" },
    { "tokenize", wz_cmd_tokenize, "turn texts and conversations into token ids, and back" },
    { "generate", wz_cmd_generate, "continue conversations or token ids" },
    { "sweep", wz_cmd_sweep, "the rows of a table, each a patch on a recipe, with several seeds, beside a paper's" },
    { "report", wz_cmd_report, "one HTML page about runs: results, curves, transcripts" },
    { "help", run_help,
      "explain a command, the keys of a recipe or data sets; print manual pages and the shell's completion" },
    { "recipe", NULL, NULL }, /* these two are known to help alone */
    { "datasets", NULL, NULL },
};
enum { N_COMMANDS = WZ_COUNT(commands) - 2 };

static const char about[] =
    "Trains two language-model agents together by reinforcement learning: a conversation agent that answers, and\n"
    "a feedback agent that reads the answer and, when it is unsafe or needlessly refuses, critiques it and proposes a\n"
    "fix. It implements WaltzRL (arXiv 2510.08240).";

static void print_help(FILE *out)
{
    fprintf(out, "usage: waltz COMMAND [arguments]\n\n%s\n\ncommands:\n", about);
    for (int i = 0; i < N_COMMANDS; i++) fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].help);
    fprintf(out, "\n`waltz COMMAND --help` tells more; `waltz --version` prints the version.\n");
}

/* among: the first of the table that may be meant. */
static const struct command *find_command(const char *name, int among)
{
    for (int i = 0; i < N_COMMANDS; i++)
        if (!strcmp(name, commands[i].name)) return &commands[i];

    const char *near = wz_nearest(name, commands, sizeof *commands, among);
    if (near) fprintf(stderr, "waltz: there is no command '%s'; did you mean '%s'?\n", name, near);
    else fprintf(stderr, "waltz: there is no command '%s'; `waltz --help` lists them\n", name);
    return NULL;
}

/* Runs `waltz NAME HOW`, where HOW is --help in one of its forms. */
static int run_command_help(const struct command *c, const char *how)
{
    char *argv[] = { (char *)c->name, (char *)how, NULL };

    return c->run(2, argv);
}

/* waltz.1, or waltz-COMMAND.1 around the sections that the command's own table gives. */
static int print_manual(const struct command *c)
{
    const char *dash = c ? "-" : "", *name = c ? c->name : "";
    int status = 0;

    printf(".TH waltz%s%s 1 \"\" \"waltz %s\" Waltz\n.SH NAME\nwaltz%s%s \\- ", dash, name, WZ_VERSION, dash, name);
    wz_roff(c ? c->help : "train a conversation agent and a feedback agent together");
    printf("\n");
    if (c) {
        status = run_command_help(c, "--help=roff");
    } else {
        printf(".SH SYNOPSIS\n.B waltz\nCOMMAND [arguments]\n.SH DESCRIPTION\n");
        wz_roff(about);
        printf("\n.SH COMMANDS\n");
        for (int i = 0; i < N_COMMANDS; i++) {
            printf(".TP\n.BR waltz\\-%s (1)\n", commands[i].name);
            wz_roff(commands[i].help);
            printf("\n");
        }
    }
    printf(
        ".SH EXIT STATUS\n0: success; 1: failure, with a message on standard error; 2: wrong usage; 75: stopped by a\n"
        "signal after a checkpoint, or by the silence of a rank, or another process writes the run: the same command\n"
        "continues.\n.SH SEE ALSO\n.BR %s (1)\n",
        c ? "waltz" : "mpirun");
    return status;
}

static int print_completion(void)
{
    int status = 0;

    printf("_waltz() {\n    local words= word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}\n"
           "    case $COMP_CWORD:${COMP_WORDS[1]} in 1:* | 2:help) words=\"");
    for (int i = 0; i < N_COMMANDS; i++) printf("%s%s", i ? " " : "", commands[i].name);
    printf("\" ;; esac\n    case ${COMP_WORDS[1]}:$before:$word in\n");
    for (int i = 0; i < N_COMMANDS && !status; i++) status = run_command_help(&commands[i], "--help=bash");
    printf("    esac\n    mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$word\")\n}\n"
           "complete -o default -F _waltz waltz\n");
    return status;
}

static int run_help(int argc, char **argv)
{
    bool man = false, markdown = false;
    const char *shell = NULL;
    const struct wz_option options[] = {
        { "man", 0, WZ_FLAG, &man, NULL, "print the manual page, in roff", 0, 0 },
        { "markdown", 0, WZ_FLAG, &markdown, NULL, "of `recipe`, its keys, and `datasets`: as the file in docs", 0, 0 },
        { "completion", 0, WZ_TEXT, &shell, "SHELL", "print what makes a shell complete waltz's words; SHELL is bash",
          0, 0 },
    };
    const struct wz_usage usage = {
        .name = "help",
        .args = "[COMMAND]",
        .about = "Explains waltz, or one of its commands.",
        .options = options,
        .n_options = WZ_COUNT(options),
    };
    const struct command *c = NULL;
    int status, n = wz_options_parse(&usage, argc, argv, &status);

    if (n < 0) return status;
    if (n && !strcmp(argv[0], "recipe")) return wz_recipe_help(stdout, markdown), 0;
    if (n && !strcmp(argv[0], "datasets")) return wz_datasets_help(stdout, markdown), 0;
    if (n && !(c = find_command(argv[0], WZ_COUNT(commands)))) return 2;
    if (shell && strcmp(shell, "bash")) {
        fprintf(stderr, "waltz help: --completion: expected bash, got %s\n", shell);
        return 2;
    }
    if (shell) return print_completion();
    if (man) return print_manual(c);
    if (c) return run_command_help(c, "--help");
    print_help(stdout);
    return 0;
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

/* A standard descriptor that the caller closed would become that of the next file, and get what is printed. Here
 * reading from it finds the end, and writing fails. */
static void fill_descriptors(void)
{
    int fd;

    do fd = open("/dev/null", O_RDONLY);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0) close(fd);
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : NULL;

    fill_descriptors();
    if (!name) {
        print_help(stderr);
        return 2;
    }
    if (!strcmp(name, "--help") || !strcmp(name, "-h")) name = "help";
    if (!strcmp(name, "--version")) {
        printf("waltz %s\n", WZ_VERSION);
        return finish(0);
    }

    const struct command *c = find_command(name, N_COMMANDS);
    return c ? finish(c->run(argc - 1, argv + 1)) : 2;
}
