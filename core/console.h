/*
 * The console: line editor, command dispatch, output. The console thread owns it; commands run on that thread and
 * may block. A command is declared where its subject lives:
 *
 *   static enum cmd_result cmd_mem(struct cmd_ctx *c) {...}
 *   CONSOLE_COMMAND(mem, cmd_mem, "mem [audit]", "frames by type, and what each VM has");
 *
 * and collected by the linker (section .console_commands). With -j (removed from argv before the call) a
 * command prints exactly one line of JSON through c->json instead of text.
 */
#ifndef HV_CORE_CONSOLE_H
#define HV_CORE_CONSOLE_H
#include "include/hv/types.h"
#include "lib/json.h"

#define CMD_MAX_ARGS 48

enum cmd_result {
    CMD_OK,
    CMD_USAGE,   /* arguments do not parse; the shell prints the usage line */
    CMD_FAILED,  /* the command said why through cmd_error() */
};

struct cmd_ctx {
    int argc;              /* argv[0] is the command's name */
    char **argv;
    bool want_json;        /* -j given */
    struct json_writer *json; /* valid if want_json; the shell ends the line */
};

/* Completes argument `argn` (1 = first after the name): calls add(candidate) for each possible word. */
typedef void cmd_complete_fn(int argn, char **argv, void (*add)(const char *candidate, void *arg), void *arg);

struct console_command {
    const char *name;
    enum cmd_result (*run)(struct cmd_ctx *c);
    const char *usage;     /* one line per form, separated by \n */
    const char *help;      /* what it does; may be several lines */
    cmd_complete_fn *complete; /* or NULL */
};

#define CONSOLE_COMMAND_C(id, run_, usage_, help_, complete_)                                              \
    static const struct console_command console_command_##id                                               \
        __attribute__((used, section(".console_commands." #id), aligned(8))) = {                                \
            .name = #id, .run = (run_), .usage = (usage_), .help = (help_), .complete = (complete_)}
#define CONSOLE_COMMAND(id, run_, usage_, help_) CONSOLE_COMMAND_C(id, run_, usage_, help_, NULL)

/* Output of the running command; text mode only (with want_json they print nothing). */
void con_printf(const char *fmt, ...) PRINTF_LIKE(1, 2);
void con_puts(const char *s);
/* Says why a command failed: in text "error: ...", in JSON {"error":"..."}; returns CMD_FAILED. */
enum cmd_result cmd_error(struct cmd_ctx *c, const char *fmt, ...) PRINTF_LIKE(2, 3);
/* Raw bytes to the serial console (attached guest output, log lines). Any context. */
void console_write_raw(const char *s, size_t len);
/* Blocks the console thread for the next input byte; returns -1 on timeout. */
int console_getc(uint64_t timeout_ns);
/* Called from the UART interrupt handler with each received byte. */
void console_input_isr(uint8_t byte);
/* Woken whenever there is input; lets `vm console` wait for input and guest output together. */
struct waitq *console_input_waitq(void);
bool console_input_pending(void);
/* Where console output goes (drivers are above core): set once at boot. Any context must be able to call it. */
void console_set_sink(void (*write)(const char *s, size_t len));
/* A line of the log: shown above the line being edited, which is drawn again, or behind the line that a command writes. Any context. */
void console_show_line(const char *line);
/* Body of the console thread. */
void console_thread(void *arg);
/* Runs one line as if typed; used by the thread and by tests. */
enum cmd_result console_execute(char *line);
#endif
