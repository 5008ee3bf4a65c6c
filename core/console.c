/*
 * The console: input ring, the line being edited, command dispatch.
 *
 * Two parties write to the screen: the console thread, and anyone who logs, in any context. They agree through `editing`: while
 * a line is being edited, a log line is printed in its place and the line is drawn again below. The editor's state and the
 * screen change only under the console lock, so a log line from an interrupt handler cannot see half a redraw.
 *
 * Output of a running command comes in pieces, and other CPUs may log between two of them: a line of JSON with a log line inside is lost
 * on the program that reads it. Locking the console for a whole command would keep interrupts off for as long. Instead the
 * command marks the line it has begun, once per line; what is logged until its end is held back, and follows it. What is too much
 * to hold is in the log all the same, and counted here.
 *
 * Input bytes come from the serial interrupt into a ring; the console thread, of the highest priority, takes them out. It is
 * woken by the same interrupt that ended the guest's run, so a guest that spins cannot keep an operator out.
 */
#include "core/console.h"
#include "core/console_edit.h"
#include "core/console_parse.h"
#include "core/lock.h"
#include "core/log.h"
#include "core/thread.h"
#include "core/time.h"
#include "lib/string.h"

#define INPUT_BYTES 1024u
#define PROMPT "palimpsest> "
#define COLUMNS 100
#define HELD_BYTES 4096u

extern const struct console_command console_commands_start[], console_commands_end[];

static void (*sink)(const char *s, size_t len);
static struct spinlock console_lock = SPINLOCK_INIT(LOCK_RANK_CONSOLE, "console");
static struct waitq input_waitq = WAITQ_INIT(input_waitq);
static char input[INPUT_BYTES];
static volatile uint32_t input_head, input_tail;
static uint64_t input_dropped;
static struct line_edit edit;
static bool editing;            /* console_lock: the prompt is on the screen */
static bool quiet;              /* the running command wants JSON: text output is suppressed */
static bool line_begun;         /* console_lock, but only the console thread changes it: a command has written part of a line */
static char held[HELD_BYTES];   /* console_lock: whole lines of the log, each ending in CR LF, that wait for its end */
static size_t held_bytes;
static uint64_t held_lost;

void console_set_sink(void (*write)(const char *, size_t))
{
    sink = write;
}

void console_write_raw(const char *s, size_t len)
{
    if (sink)
        sink(s, len);
}

static void write_text(const char *s, size_t len)
{
    while (len) {
        const char *nl = memchr(s, '\n', len);
        size_t n = nl ? (size_t)(nl - s) : len;
        console_write_raw(s, n);
        if (nl)
            console_write_raw("\r\n", 2);
        n += nl != NULL;
        s += n;
        len -= n;
    }
}

/* console_lock is held. */
static void hold_line(const char *line)
{
    size_t len = strlen(line);
    if (held_lost || held_bytes + len + 2 > HELD_BYTES) {
        held_lost++;
        return;
    }
    memcpy(held + held_bytes, line, len);
    memcpy(held + held_bytes + len, "\r\n", 2);
    held_bytes += len + 2;
}

static void show_held(void)
{
    char text[96];
    uint64_t us = time_ns() / 1000;
    if (held_bytes)
        console_write_raw(held, held_bytes);
    if (held_lost)
        console_write_raw(text, (size_t)snprintf(text, sizeof(text), "[%5lu.%06lu] and %lu more lines: `log` shows them\r\n", us / 1000000,
                                                 us % 1000000, held_lost));
    held_bytes = 0;
    held_lost = 0;
}

void console_show_line(const char *line)
{
    uint64_t flags = spin_lock_irqsave(&console_lock);
    if (line_begun) {
        hold_line(line);
        spin_unlock_irqrestore(&console_lock, flags);
        return;
    }
    if (editing)
        console_write_raw("\r\x1b[K", 4);
    write_text(line, strlen(line));
    console_write_raw("\r\n", 2);
    if (editing)
        edit_redraw(&edit);
    spin_unlock_irqrestore(&console_lock, flags);
}

static void begin_line(void)
{
    if (line_begun)
        return;
    uint64_t flags = spin_lock_irqsave(&console_lock);
    line_begun = true;
    spin_unlock_irqrestore(&console_lock, flags);
}

static void end_line(void)
{
    if (!line_begun)
        return;
    uint64_t flags = spin_lock_irqsave(&console_lock);
    line_begun = false;
    show_held();
    spin_unlock_irqrestore(&console_lock, flags);
}

void con_puts(const char *s)
{
    size_t len = strlen(s);
    if (quiet || !len)
        return;
    begin_line();
    write_text(s, len);
    if (s[len - 1] == '\n')
        end_line();
}

void con_printf(const char *fmt, ...)
{
    char buf[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(buf, sizeof(buf), fmt, ap);
    va_end(ap);
    con_puts(buf);
}

/* ---- input ------------------------------------------------------------------------------------------------------- */

void console_input_isr(uint8_t byte)
{
    uint32_t head = input_head;
    if (head - input_tail == INPUT_BYTES) {
        input_dropped++;
        return;
    }
    input[head % INPUT_BYTES] = (char)byte;
    __atomic_store_n(&input_head, head + 1, __ATOMIC_RELEASE);
    waitq_wake_all(&input_waitq);
}

bool console_input_pending(void)
{
    return __atomic_load_n(&input_head, __ATOMIC_ACQUIRE) != input_tail;
}

struct waitq *console_input_waitq(void)
{
    return &input_waitq;
}

static bool have_input(void *arg UNUSED)
{
    return console_input_pending();
}

int console_getc(uint64_t timeout_ns)
{
    if (waitq_wait(&input_waitq, have_input, NULL, timeout_ns) == WAIT_TIMEOUT)
        return -1;
    int c = (uint8_t)input[input_tail % INPUT_BYTES];
    __atomic_store_n(&input_tail, input_tail + 1, __ATOMIC_RELEASE);
    return c;
}

/* ---- commands ---------------------------------------------------------------------------------------------------- */

#define for_each_command(c) for (const struct console_command *c = console_commands_start; c < console_commands_end; c++)

static const struct console_command *find_command(const char *name)
{
    for_each_command(c)
        if (!strcmp(c->name, name))
            return c;
    return NULL;
}

static void put_json(const char *s, size_t len, void *arg UNUSED)
{
    begin_line();
    console_write_raw(s, len);
}

static void json_error(const char *text)
{
    struct json_writer w;
    json_init(&w, put_json, NULL);
    json_object_begin(&w);
    json_kv_string(&w, "error", text);
    json_object_end(&w);

}

enum cmd_result cmd_error(struct cmd_ctx *c, const char *fmt, ...)
{
    char text[768];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    if (c->want_json)
        json_error(text);
    else
        con_printf("error: %s\n", text);
    return CMD_FAILED;
}

/* Commands whose first letters are the same as the unknown word's, for the hint. */
static enum cmd_result unknown(struct cmd_ctx *c)
{
    for_each_command(k)
        if (k->name[0] == c->argv[0][0] && (!strncmp(k->name, c->argv[0], 2) || !c->argv[0][1]))
            return cmd_error(c, "no command \"%s\"; did you mean %s? (help lists them all)", c->argv[0], k->name);
    return cmd_error(c, "no command \"%s\"; help lists them", c->argv[0]);
}

/* A line of usage is for this subcommand: "vm start|stop NAME" for both. */
static bool usage_is_for(const char *line, const char *subcommand)
{
    size_t len = strlen(subcommand);
    const char *space = strchr(line, ' '), *end = strchr(line, '\n');
    if (!len || !space || (end && space > end))
        return false;
    for (const char *word = space + 1;; word++) {
        if (!strncmp(word, subcommand, len) && (!word[len] || strchr("| \n", word[len])))
            return true;
        while (*word && *word != '|' && *word != ' ' && *word != '\n')
            word++;
        if (*word != '|')
            return false;
    }
}

/* The lines that are about what was typed; all, if there is no such subcommand. */
static void say_usage(struct cmd_ctx *c, const struct console_command *k)
{
    char text[512] = "";
    const char *subcommand = c->argc > 1 ? c->argv[1] : "";
    for (const char *line = k->usage, *next; line; line = next) {
        const char *nl = strchr(line, '\n');
        size_t used = strlen(text);
        next = nl ? nl + 1 : NULL;
        if (usage_is_for(line, subcommand))
            snprintf(text + used, sizeof(text) - used, "%s%.*s", used ? "\n" : "", nl ? (int)(nl - line) : 200, line);
    }
    if (text[0] || !*subcommand || !strchr(k->usage, '\n'))
        cmd_error(c, "usage: %s", text[0] ? text : k->usage);
    else
        cmd_error(c, "%s does not know \"%.40s\"; usage: %s", k->name, subcommand, k->usage);
}

static enum cmd_result run(struct cmd_ctx *c)
{
    const struct console_command *k = find_command(c->argv[0]);
    if (!k)
        return unknown(c);
    enum cmd_result r = k->run(c);
    if (r == CMD_USAGE)
        say_usage(c, k);
    return r;
}

enum cmd_result console_execute(char *line)
{
    char *argv[CMD_MAX_ARGS];
    struct cmd_ctx c = {.argv = argv};
    struct json_writer w;
    enum cmd_result r = CMD_FAILED;
    enum console_parse_result parsed = console_parse(line, argv, CMD_MAX_ARGS, &c.argc, &c.want_json);
    if (parsed == CONSOLE_PARSE_EMPTY)
        return CMD_OK;
    json_init(&w, put_json, NULL);
    c.json = &w;

    quiet = c.want_json;
    if (parsed == CONSOLE_PARSE_QUOTE)
        cmd_error(&c, "a quote is not closed");
    else if (parsed == CONSOLE_PARSE_TOO_MANY)
        cmd_error(&c, "more than %d words", CMD_MAX_ARGS);
    else
        r = run(&c);
    if (c.want_json)
        console_write_raw("\r\n", 2);
    end_line();
    quiet = false;
    return r;
}

static enum cmd_result cmd_help(struct cmd_ctx *c)
{
    if (c->argc > 2)
        return CMD_USAGE;
    const struct console_command *one = c->argc == 2 ? find_command(c->argv[1]) : NULL;
    if (c->argc == 2 && !one)
        return cmd_error(c, "no command \"%s\"", c->argv[1]);
    if (c->want_json)
        json_array_begin(c->json);
    for_each_command(k) {
        if (one && k != one)
            continue;
        if (c->want_json) {
            json_object_begin(c->json);
            json_kv_string(c->json, "name", k->name);
            json_kv_string(c->json, "usage", k->usage);
            json_kv_string(c->json, "help", k->help);
            json_object_end(c->json);
        } else if (one) {
            con_printf("%s\n", k->usage);
            con_printf("%s\n", k->help);
        } else {
            const char *nl = strchr(k->help, '\n');
            con_printf("  %-10s %.*s\n", k->name, nl ? (int)(nl - k->help) : 100, k->help);
        }
    }
    if (c->want_json)
        json_array_end(c->json);
    else if (!one)
        con_puts("help COMMAND says more; -j after any listing prints it as one line of JSON\n");
    return CMD_OK;
}

static void complete_help(int argn, char **argv UNUSED, void (*add)(const char *, void *), void *arg)
{
    for_each_command(k)
        if (argn == 1)
            add(k->name, arg);
}

CONSOLE_COMMAND_C(help, cmd_help, "help [COMMAND]", "lists the commands, or explains one", complete_help);

/* ---- completion ---------------------------------------------------------------------------------------------------- */

struct candidates {
    const char *prefix;
    size_t prefix_len;
    char common[CMD_MAX_ARGS + 64];
    unsigned count;
    bool show;
};

static void add_candidate(const char *word, void *arg)
{
    struct candidates *c = arg;
    if (strncmp(word, c->prefix, c->prefix_len))
        return;
    if (c->show) {
        write_text(word, strlen(word));
        write_text("  ", 2);
        return;
    }
    if (c->count++ == 0) {
        str_copy(c->common, sizeof(c->common), word);
        return;
    }
    size_t n = 0;
    while (c->common[n] && c->common[n] == word[n])
        n++;
    c->common[n] = 0;
}

static void offer(const char *line, int argn, char **argv, struct candidates *c)
{
    (void)line;
    if (argn == 0) {
        for_each_command(k)
            add_candidate(k->name, c);
        return;
    }
    const struct console_command *k = find_command(argv[0]);
    if (k && k->complete)
        k->complete(argn, argv, add_candidate, c);
}

/* Tab: completes the word before the cursor as far as it is unique; if that adds nothing, lists what it could be. */
static void complete(void)
{
    static char copy[EDIT_LINE_BYTES]; /* one console thread */
    char *argv[CMD_MAX_ARGS];
    int argc;
    bool json;
    struct candidates c = {0};
    if (edit.cursor != edit.len)
        return;
    str_copy(copy, sizeof(copy), edit.line);
    bool new_word = edit.len == 0 || edit.line[edit.len - 1] == ' ';
    enum console_parse_result parsed = console_parse(copy, argv, CMD_MAX_ARGS - 1, &argc, &json);
    if (parsed != CONSOLE_PARSE_OK && parsed != CONSOLE_PARSE_EMPTY)
        return;
    if (parsed == CONSOLE_PARSE_EMPTY)
        argc = 0;
    int argn = new_word ? argc : argc - 1;
    if (argn < 0)
        argn = 0;
    c.prefix = new_word || !argc ? "" : argv[argc - 1];
    c.prefix_len = strlen(c.prefix);
    offer(edit.line, argn, argv, &c);
    uint64_t flags = spin_lock_irqsave(&console_lock);
    size_t more = c.count ? strlen(c.common) - c.prefix_len : 0;
    if (more)
        edit_insert(&edit, c.common + c.prefix_len, more);
    if (c.count == 1)
        edit_insert(&edit, " ", 1);
    spin_unlock_irqrestore(&console_lock, flags);
    if (more || c.count < 2)
        return;
    c.show = true;
    flags = spin_lock_irqsave(&console_lock);
    editing = false;
    line_begun = true;
    console_write_raw("\r\n", 2);
    spin_unlock_irqrestore(&console_lock, flags);
    offer(edit.line, argn, argv, &c);
    flags = spin_lock_irqsave(&console_lock);
    console_write_raw("\r\n", 2);
    line_begun = false;
    show_held();
    editing = true;
    edit_redraw(&edit);
    spin_unlock_irqrestore(&console_lock, flags);
}

/* ---- the thread ------------------------------------------------------------------------------------------------------ */

static void put_screen(const char *s, size_t len, void *arg UNUSED)
{
    console_write_raw(s, len);
}

static void set_editing(bool on)
{
    uint64_t flags = spin_lock_irqsave(&console_lock);
    editing = on;
    if (on)
        edit_begin(&edit);
    spin_unlock_irqrestore(&console_lock, flags);
}

static enum edit_event next_event(void)
{
    int c = console_getc(WAIT_FOREVER);
    uint64_t flags = spin_lock_irqsave(&console_lock);
    enum edit_event event = edit_input(&edit, (uint8_t)c);
    if (event == EDIT_LINE || event == EDIT_CANCEL)
        editing = false;
    spin_unlock_irqrestore(&console_lock, flags);
    return event;
}

void console_thread(void *arg UNUSED)
{
    edit_init(&edit, PROMPT, COLUMNS, put_screen, NULL);
    set_editing(true);
    for (;;) {
        switch (next_event()) {
        case EDIT_COMPLETE: complete(); break;
        case EDIT_LINE: console_execute(edit.line); /* fall through */
        case EDIT_CANCEL: set_editing(true); break;
        case EDIT_NONE: break;
        }
    }
}
