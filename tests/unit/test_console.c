/* TEST-SOURCES: core/console_edit.c core/console_parse.c lib/json.c lib/string.c lib/printf.c
 * What a person and a program see while commands print and other CPUs log: whole lines, none lost, none out of order. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* In the place of core/lock.h and core/thread.h. */
#define HV_CORE_LOCK_H
#define HV_CORE_THREAD_H
#include "include/hv/types.h"
enum { LOCK_RANK_CONSOLE };
#define WAIT_FOREVER UINT64_MAX
enum wait_result { WAIT_DONE, WAIT_TIMEOUT };
struct spinlock { int unused; };
struct waitq { int unused; };
#define SPINLOCK_INIT(rank, name) {0}
#define WAITQ_INIT(q) {0}
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t spin_lock_irqsave(struct spinlock *l) { pthread_mutex_lock(&lock); return 0; }
static void spin_unlock_irqrestore(struct spinlock *l, uint64_t flags) { pthread_mutex_unlock(&lock); }
static void waitq_wake_all(struct waitq *q) {}
static enum wait_result waitq_wait(struct waitq *q, bool (*cond)(void *), void *arg, uint64_t timeout_ns)
{
    return cond(arg) ? WAIT_DONE : WAIT_TIMEOUT;
}
#include "core/console.c"
uint64_t time_ns(void) { return UINT64_C(12345678901); }

/* ---- the screen ---------------------------------------------------------------------------------------------------------------- */

static char screen[8 << 20];
static size_t screen_bytes;
static pthread_mutex_t screen_lock = PTHREAD_MUTEX_INITIALIZER;

static void to_screen(const char *s, size_t len)
{
    pthread_mutex_lock(&screen_lock);
    assert_true(screen_bytes + len < sizeof(screen));
    memcpy(screen + screen_bytes, s, len);
    screen_bytes += len;
    screen[screen_bytes] = 0;
    pthread_mutex_unlock(&screen_lock);
}

static void clear_screen(void)
{
    console_set_sink(to_screen);
    screen_bytes = 0;
    screen[0] = 0;
}

/* ---- commands ------------------------------------------------------------------------------------------------------------------ */

static unsigned logs_within; /* lines that another CPU logs in the middle of the next command's output */

static void others_log(void)
{
    char line[64];
    for (unsigned n = 0; n < logs_within; n++) {
        snprintf(line, sizeof(line), "[log] line %u", n);
        console_show_line(line);
    }
}

static enum cmd_result talk(struct cmd_ctx *c)
{
    if (c->want_json) {
        json_object_begin(c->json);
        json_kv_string(c->json, "first", "a");
        others_log();
        json_kv_string(c->json, "second", "b");
        json_object_end(c->json);
        return CMD_OK;
    }
    con_printf("one %d ", 1);
    others_log();
    con_puts("");
    con_puts("two\nthree");
    con_puts(" four\n");
    console_show_line("[log] between");
    con_puts("last");
    return CMD_OK;
}

/* The linker's section, by hand. */
const struct console_command console_commands_start[1] = {{.name = "talk", .run = talk, .usage = "talk", .help = "talks"}};
asm(".globl console_commands_end\n.set console_commands_end, console_commands_start + 40");
_Static_assert(sizeof(struct console_command) == 40, "as the assembly says");

static void execute(const char *line)
{
    char copy[64];
    snprintf(copy, sizeof(copy), "%s", line);
    assert_int_equal(console_execute(copy), CMD_OK);
}

static void lines_stay_whole(void **state)
{
    clear_screen();
    logs_within = 2;
    execute("talk -j");
    assert_string_equal(screen, "{\"first\":\"a\",\"second\":\"b\"}\r\n[log] line 0\r\n[log] line 1\r\n");
    clear_screen();
    execute("talk");
    assert_string_equal(screen, "one 1 two\r\nthree four\r\n[log] line 0\r\n[log] line 1\r\n[log] between\r\nlast");
    clear_screen();
    console_show_line("[log] no command");
    assert_string_equal(screen, "[log] no command\r\n");
}

/* More than can be held: the first of them, and how many more there are. */
static void too_much(void **state)
{
    clear_screen();
    logs_within = 1000;
    execute("talk -j");
    const char *at = strchr(screen, '\n') + 1;
    unsigned shown = 0, lost = 0;
    char expected[64];
    for (; !strncmp(at, "[log]", 5); at = strchr(at, '\n') + 1, shown++) {
        snprintf(expected, sizeof(expected), "[log] line %u\r\n", shown);
        assert_memory_equal(at, expected, strlen(expected));
    }
    assert_int_equal(sscanf(at, "[%*u.%*u] and %u more lines", &lost), 1);
    assert_int_equal(shown + lost, 1000);
    assert_in_range(shown, 200, 400);
    assert_string_equal(strchr(at, '\n'), "\n");
    clear_screen();
    logs_within = 1; /* and it is over */
    execute("talk -j");
    assert_non_null(strstr(screen, "}\r\n[log] line 0\r\n"));
    assert_null(strstr(screen, "more lines"));
}

/* A log line takes the place of the prompt, which is drawn again below; of a list of completions it waits for the end. */
static void while_editing(void **state)
{
    clear_screen();
    edit_init(&edit, PROMPT, COLUMNS, put_screen, NULL);
    set_editing(true);
    for (const char *s = "ta"; *s; s++) {
        console_input_isr((uint8_t)*s);
        assert_int_equal(next_event(), EDIT_NONE);
    }
    clear_screen();
    console_show_line("[log] here");
    assert_non_null(strstr(screen, "\r\x1b[K[log] here\r\n"));
    assert_non_null(strstr(screen, PROMPT "ta"));
    set_editing(false);
}

/* ---- all at once --------------------------------------------------------------------------------------------------------------- */

enum { LINES = 5000, TALKS = 100000 };
static unsigned loggers;

static void *logger(void *arg)
{
    char line[64];
    unsigned id = *(unsigned *)arg;
    for (unsigned n = 0; n < LINES; n++) {
        snprintf(line, sizeof(line), "[log %u] number %u ends here", id, n);
        console_show_line(line);
    }
    __atomic_fetch_sub(&loggers, 1, __ATOMIC_SEQ_CST);
    return NULL;
}

static void many_at_once(void **state)
{
    pthread_t thread[2];
    unsigned ids[2] = {0, 1}, talks = 0, said = 0, logged = 0, lost, more = 0, total[2] = {0, 0};
    clear_screen();
    logs_within = 0;
    loggers = 2;
    for (unsigned n = 0; n < 2; n++)
        pthread_create(&thread[n], NULL, logger, &ids[n]);
    for (; __atomic_load_n(&loggers, __ATOMIC_SEQ_CST) && said < TALKS; said++)
        execute("talk -j");
    for (unsigned n = 0; n < 2; n++)
        pthread_join(thread[n], NULL);
    for (char *line = strtok(screen, "\r\n"); line; line = strtok(NULL, "\r\n")) {
        unsigned id, number;
        int end = 0;
        if (!strcmp(line, "{\"first\":\"a\",\"second\":\"b\"}")) {
            talks++;
        } else if (sscanf(line, "[%*u.%*u] and %u more lines", &lost) == 1) {
            more += lost;
        } else {
            assert_int_equal(sscanf(line, "[log %u] number %u ends here%n", &id, &number, &end), 2);
            assert_true(end && !line[end] && id < 2 && number >= total[id]); /* in order */
            total[id] = number + 1;
            logged++;
        }
    }
    assert_int_equal(talks, said);
    assert_int_equal(logged + more, 2 * LINES);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(lines_stay_whole), cmocka_unit_test(too_much), cmocka_unit_test(while_editing),
                                       cmocka_unit_test(many_at_once)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
