/* launch: the program. main.c picks a sub-command from its table; a sub-command is one file with one function
 * `int wz_cmd_NAME(int argc, char **argv)` (argv[0] is the sub-command's name) that returns the exit status:
 * 0 success, 1 failure, with a message on standard error, 2 wrong usage. */
#ifndef WZ_LAUNCH_H
#define WZ_LAUNCH_H

#include "base/base.h"

int wz_cmd_train(int argc, char **argv);
int wz_cmd_sft(int argc, char **argv);
int wz_cmd_eval(int argc, char **argv);
int wz_cmd_replay(int argc, char **argv);
int wz_cmd_chat(int argc, char **argv);
int wz_cmd_report(int argc, char **argv);
int wz_cmd_generate(int argc, char **argv);
int wz_cmd_score(int argc, char **argv);
int wz_cmd_tokenize(int argc, char **argv);
int wz_cmd_convert(int argc, char **argv);
int wz_cmd_plan(int argc, char **argv);
int wz_cmd_doctor(int argc, char **argv);
int wz_cmd_inspect(int argc, char **argv);
int wz_cmd_sandbox(int argc, char **argv);
int wz_cmd_judge(int argc, char **argv);
int wz_cmd_fsck(int argc, char **argv);
int wz_cmd_sweep(int argc, char **argv);

/* ---- train.c ---------------------------------------------------------------------------------------------- */

/* Runs the recipe's stages to their end, or resumes them, in the job's folder. `job` has its link open, as
 * wz_job_recipe leaves it, and is open on return: the caller closes it. Returns the command's exit status. */
struct wz_job;
struct wz_recipe;
int wz_train(const char *command, struct wz_job *job, struct wz_recipe *recipe);

/* ---- options.c -------------------------------------------------------------------------------------------- */

/* What an option's value is, and where it goes: bool *, int *, uint64_t *, double *, const char ** (into argv). */
enum wz_option_type { WZ_FLAG, WZ_INT, WZ_SEED, WZ_NUMBER, WZ_TEXT };
struct wz_option {
    const char *name; /* without dashes; "output" */
    char letter;      /* also -o; 0: none */
    enum wz_option_type type;
    void *value;      /* holds the default before, what was given after */
    const char *arg;  /* "FILE" in the help; words with | between are the only choices: "f32|bf16" */
    const char *help; /* one line; the default is shown behind it */
    double low, high; /* numbers: both ends allowed; low == high: any */
};

/* A sub-command's calling convention: what --help and the manual page print and what is accepted. */
struct wz_usage {
    const char *name;  /* "generate" */
    const char *args;  /* positional arguments, optional ones in brackets: "RECIPE [key=value ...]"; ...: any number */
    const char *about; /* sentences, lines broken by the writer, without the last newline */
    const struct wz_option *options;
    int n_options;
};

/* Reads --name value, --name=value, flags, -x value, -- ; moves the positional arguments to argv[0..n) and returns n.
 * -1: nothing more to do, *status is the exit status (0: help was printed; 2: an error message was). Help has three
 * forms: --help, --help=roff (the sections of a manual page from SYNOPSIS on) and --help=bash (cases of the
 * completion). */
int wz_options_parse(const struct wz_usage *usage, int argc, char **argv, int *status);

/* Prints text, escaped so that a manual page shows it as it is. */
void wz_roff(const char *text);

/* Prints "waltz NAME: message" and returns 1, so that a command can `return wz_give_up("eval", &err)`. An empty
 * message prints nothing: another rank prints it (wz_link_agree). */
int wz_give_up(const char *name, const struct wz_err *err);

/* Options of the commands that take a model or a run: which of the run's models (wz_checkpoint_model). */
struct wz_model_pick {
    const char *agent; /* NULL at first */
    int step;          /* -1 at first */
};
#define WZ_PICK_OPTIONS(pick)                                                                                      \
    { "agent", 0, WZ_TEXT, &(pick)->agent, "NAME", "of a run: whose model; else the conversation agent's", 0, 0 }, \
    {                                                                                                              \
        "step", 0, WZ_INT, &(pick)->step, "N", "of a run: its checkpoint after N steps; -1: the newest", -1, 2e9   \
    }

/* ---- lines.c ---------------------------------------------------------------------------------------------- */

/* Lines of a descriptor. Begin with { .fd = 0 }. */
struct wz_input {
    int fd;
    struct wz_buf in;
    size_t from;
    bool end;
};
/* 1: *line (not NUL-terminated, without the line break) lives until the next call; 0: the end; -1: reading failed. */
int wz_input_next(struct wz_input *input, const char **line, size_t *n, struct wz_err *err);
/* Will the next call return without blocking? If not, a caller answers what it has read first. */
bool wz_input_ready(const struct wz_input *input);
void wz_input_finish(struct wz_input *input);

void wz_print_json(json_t *j);                                      /* indented, on standard output; releases it */
void wz_answer_error(struct wz_buf *out, const struct wz_err *err); /* out becomes {"error": "..."} */
/* Adds "name": [values of n]; floats with the 9 digits that read back as the same bits. */
void wz_answer_ints(struct wz_buf *out, const char *name, const int *values, int n);
void wz_answer_floats(struct wz_buf *out, const char *name, const float *values, int n);

#endif
