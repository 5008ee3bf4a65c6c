/* TEST-SOURCES: lib/json.c lib/string.c lib/printf.c
 * What debug builds say about locks and interrupts: the reports themselves, by the real code. Each kind of mistake is made once, and what is said must
 * name both sides and the places; and each limit is met from both sides. A CPU whose clock stands still, except when it is told otherwise; a panic
 * ends the test's function and leaves its text. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "include/hv/types.h"

/* ---- the CPU: in the place of x86/cpu.h, x86/percpu.h -------------------------------------------------------------------------- */

#define HV_X86_CPU_H
#define HV_X86_PERCPU_H
#define PERCPU_MAX_HELD 16
#define RFLAGS_IF 0x200u
#define IRQS_OFF_TIMED 1
#define MS UINT64_C(1000000)

struct percpu {
    unsigned id;
    uint8_t held_count, held_ranks[PERCPU_MAX_HELD];
    const void *held_locks[PERCPU_MAX_HELD];
    const char *irqs_off_name;
    const void *irqs_off_pc;
    uint64_t irqs_off_tsc;
};
static struct percpu cpus[2], *cpu = &cpus[0];
static inline struct percpu *this_cpu(void) { return cpu; }

typedef void irqs_off_fn(const char *name, const void *pc, uint64_t tsc_ticks);
void irqs_off_begin(void);
void irqs_off_named(const char *name, const void *pc);
void irqs_off_end(void);
void irqs_off_set_report(irqs_off_fn *fn);

static uint64_t now_ns = 1, pause_ns;
static unsigned release_after; /* pauses until somebody else lets go of the high lock; 0: nobody does */
static bool interrupts_on;
static inline uint64_t rdtsc(void) { return now_ns; }
static inline bool irqs_enabled(void) { return interrupts_on; }
static void paused(void);
static inline void cpu_pause(void) { paused(); }
static inline uint64_t irq_save(void)
{
    uint64_t flags = interrupts_on ? RFLAGS_IF : 0;
    interrupts_on = false;
    if (flags)
        irqs_off_begin();
    return flags;
}
static inline void irq_restore(uint64_t flags)
{
    if (flags & RFLAGS_IF)
        irqs_off_end();
    interrupts_on = flags & RFLAGS_IF;
}

#include "core/lock.c"
#include "core/slow.c"
#include "x86/irqs_off.c"

uint64_t time_tsc(void) { return now_ns; }
uint64_t time_tsc_to_ns(uint64_t ticks) { return ticks; }
const char *ksym_format(char *buf, size_t size, uint64_t addr)
{
    snprintf(buf, size, "@%#lx", addr);
    return buf;
}
enum cmd_result cmd_error(struct cmd_ctx *c, const char *fmt, ...) { return CMD_FAILED; }
void con_printf(const char *fmt, ...) {}

/* ---- what is said -------------------------------------------------------------------------------------------------------------- */

static char said[512];
static unsigned lines;
static jmp_buf panicked;

NORETURN void panic(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(said, sizeof(said), fmt, ap);
    va_end(ap);
    longjmp(panicked, 1);
}

void log_write(enum log_level level, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(said, sizeof(said), fmt, ap);
    va_end(ap);
    lines++;
}

#define assert_said(...)                                            \
    do {                                                            \
        char expected_[512];                                        \
        snprintf(expected_, sizeof(expected_), __VA_ARGS__);        \
        assert_string_equal(said, expected_);                       \
    } while (0)

#define assert_panics(statement)                                    \
    do {                                                            \
        said[0] = 0;                                                \
        if (!setjmp(panicked)) {                                    \
            statement;                                              \
            fail_msg("no panic");                                   \
        }                                                           \
    } while (0)

static void note_irqs_off(const char *name, const void *pc, uint64_t ticks) { slow_note(SLOW_IRQS_OFF, name, pc, ticks); }

/* A CPU that has just started, and nobody was ever slow. */
static int setup(void **state)
{
    memset(cpus, 0, sizeof(cpus));
    memset(places, 0, sizeof(places));
    cpus[1].id = 1;
    cpu = &cpus[0];
    left_out = lines = 0;
    pause_ns = release_after = 0;
    interrupts_on = true;
    said[0] = 0;
    irqs_off_set_report(note_irqs_off);
    return 0;
}

static struct spinlock low, high, other;

static void make_locks(void)
{
    spin_init(&low, LOCK_RANK_VM, "the low one");
    spin_init(&high, LOCK_RANK_FRAME, "the high one");
    spin_init(&other, LOCK_RANK_FRAME, "its equal");
}

static void paused(void)
{
    now_ns += pause_ns;
    if (release_after && !--release_after)
        high.owner++;
}

/* Where they are taken: addresses that a report must name. */
static __attribute__((noinline)) void take_low(void) { spin_lock(&low); asm volatile(""); }
static __attribute__((noinline)) void take_high(void) { spin_lock(&high); asm volatile(""); }

static bool lies_in(const void *pc, void (*function)(void)) { return (uintptr_t)pc - (uintptr_t)function < 256; }

/* The place in what was said. */
static const void *place_after(const char *words)
{
    void *pc = NULL;
    const char *at = strstr(said, words);
    assert_non_null(at);
    assert_int_equal(sscanf(at + strlen(words), "%p", &pc), 1);
    return pc;
}

/* ---- order --------------------------------------------------------------------------------------------------------------------- */

static void test_order(void **state)
{
    make_locks();
    take_low();
    take_high();
    spin_unlock(&low); /* in any order */
    assert_panics(take_low());
    const void *at = place_after("wanted at ");
    assert_true(lies_in(at, take_low) && lies_in(high.holder_pc, take_high));
    assert_said("lock order: the low one (rank %u) wanted at %p while the high one (rank %u, taken at %p) is held", LOCK_RANK_VM, at,
                LOCK_RANK_FRAME, high.holder_pc);
}

static void test_equal_ranks(void **state)
{
    make_locks();
    take_high();
    assert_panics(spin_lock(&other));
    assert_non_null(strstr(said, "its equal"));
    assert_panics((void)spin_lock_irqsave(&other));
}

static void test_right_order(void **state)
{
    make_locks();
    take_low();
    take_high();
    spin_unlock(&high);
    take_high();
    spin_unlock(&low);
    spin_unlock(&high);
    take_low();
    cpu = &cpus[1]; /* what one CPU holds does not bind another */
    spin_lock(&other);
    spin_unlock(&other);
    assert_int_equal(cpus[1].held_count, 0);
    cpu = &cpus[0];
    spin_unlock(&low);
    assert_int_equal(cpus[0].held_count, 0);
    assert_string_equal(said, "");
}

static void test_not_held(void **state)
{
    make_locks();
    take_low();
    cpu = &cpus[1];
    assert_panics(spin_unlock(&low));
    assert_non_null(strstr(said, "lock the low one released at "));
    assert_non_null(strstr(said, "by a CPU that does not hold it"));
}

static void test_blocking(void **state)
{
    make_locks();
    assert_no_locks_held("a thread blocks");
    take_low();
    assert_panics(assert_no_locks_held("a thread blocks"));
    assert_said("a thread blocks with lock the low one (taken at %p) held", low.holder_pc);
}

/* ---- for ever ------------------------------------------------------------------------------------------------------------------- */

static void test_stuck(void **state)
{
    make_locks();
    cpu = &cpus[1];
    take_high();
    cpu = &cpus[0];
    pause_ns = MS;
    uint64_t begun = now_ns;
    assert_panics(take_high());
    assert_true(now_ns - begun > STUCK_NS && now_ns - begun <= STUCK_NS + 2 * MS);
    const void *at = place_after("wanted at ");
    assert_true(lies_in(at, take_high));
    assert_said("lock the high one wanted at %p for 30 s: CPU 1 holds it since %p", at, high.holder_pc);
    assert_false(spin_trylock(&high)); /* which does not wait */
}

/* ---- too long ------------------------------------------------------------------------------------------------------------------- */

static const struct place *noted(unsigned n)
{
    assert_true(n < PLACES && places[n].pc);
    return &places[n];
}

static void hold(uint64_t ns)
{
    take_low();
    now_ns += ns;
    spin_unlock(&low);
}

static void test_held(void **state)
{
    make_locks();
    hold(5 * MS - 1);
    assert_null(places[0].pc);
    hold(5 * MS);
    hold(7 * MS);
    hold(6 * MS);
    const struct place *p = noted(0);
    assert_true(lies_in(p->pc, take_low));
    assert_string_equal(p->name, "the low one");
    assert_true(p->kind == SLOW_LOCK && p->count == 3 && p->worst_ns == 7 * MS);
    assert_null(places[1].pc);
}

static __attribute__((noinline)) void interrupts_off_for(uint64_t ns)
{
    uint64_t flags = irq_save();
    now_ns += ns;
    irq_restore(flags);
}

static __attribute__((noinline)) void hold_irqsave(uint64_t ns)
{
    uint64_t flags = spin_lock_irqsave(&high);
    now_ns += ns;
    spin_unlock_irqrestore(&high, flags);
}

static void test_irqs_off(void **state)
{
    make_locks();
    interrupts_off_for(MS - 1);
    hold_irqsave(MS - 1);
    assert_null(places[0].pc);
    interrupts_off_for(MS);
    hold_irqsave(2 * MS);
    hold_irqsave(3 * MS);
    assert_true(lies_in(noted(0)->pc, (void (*)(void))interrupts_off_for) && lies_in(noted(1)->pc, (void (*)(void))hold_irqsave));
    assert_true(noted(0)->kind == SLOW_IRQS_OFF && noted(0)->count == 1 && noted(0)->worst_ns == MS);
    assert_true(noted(1)->kind == SLOW_IRQS_OFF && noted(1)->count == 2 && noted(1)->worst_ns == 3 * MS); /* once each, not twice */
    assert_string_equal(noted(1)->name, "the high one");
    assert_null(places[2].pc);
}

/* The whole counts for who turned them off, and the lock in it is measured as one that is held with interrupts off. */
static void test_irqs_off_nested(void **state)
{
    make_locks();
    uint64_t flags = irq_save();
    now_ns += MS / 2;
    hold(MS);
    hold_irqsave(MS / 2);
    irq_restore(flags);
    assert_string_equal(noted(0)->name, "the low one");
    assert_true(noted(0)->kind == SLOW_IRQS_OFF && noted(0)->worst_ns == MS);
    assert_string_equal(noted(1)->name, "irqs");
    assert_true(noted(1)->kind == SLOW_IRQS_OFF && noted(1)->worst_ns == 2 * MS);
    assert_null(places[2].pc);
}

/* The CPU waits for a lock with interrupts off: to whoever interrupts it that is the same. */
static void test_irqs_off_waiting(void **state)
{
    make_locks();
    high.next++; /* somebody has it */
    pause_ns = MS;
    release_after = 4;
    hold_irqsave(0);
    assert_true(lies_in(noted(0)->pc, (void (*)(void))hold_irqsave) && noted(0)->worst_ns == 4 * MS);
    assert_null(places[1].pc);
}

/* One thread turns them off and leaves the CPU, the next comes from such a section of its own, begun long ago on another CPU. */
static void test_irqs_off_switch(void **state)
{
    uint64_t theirs = irq_save();
    cpu = &cpus[1];
    interrupts_on = true;
    now_ns += 500 * MS;
    uint64_t ours = irq_save();
    now_ns += MS;
    irq_restore(theirs); /* switched */
    assert_true(noted(0)->worst_ns == MS);
    irq_restore(ours);
    assert_true(noted(0)->count == 1);
    assert_null(places[1].pc);
}

/* ---- in the log ----------------------------------------------------------------------------------------------------------------- */

static void test_report(void **state)
{
    make_locks();
    hold(200 * MS - 1);
    slow_report();
    assert_int_equal(lines, 0);
    hold(200 * MS);
    slow_report();
    assert_said("slow: lock held for 200000 us: the low one, at @%#lx", (uintptr_t)noted(0)->pc);
    hold(399 * MS);
    slow_report();
    slow_report();
    assert_int_equal(lines, 1); /* not for a little more */
    hold(400 * MS);
    slow_report();
    slow_report();
    assert_int_equal(lines, 2);
    interrupts_off_for(250 * MS);
    slow_note(SLOW_HANDLER, "irq", take_high, 300 * MS);
    slow_report();
    assert_int_equal(lines, 4);
    assert_said("slow: interrupt handler for 300000 us: irq, at @%#lx", (uintptr_t)take_high);
}

static void append(const char *s, size_t len, void *arg) { strncat(arg, s, len); }

static void test_command(void **state)
{
    char text[1024] = "", expected[1024];
    struct json_writer json;
    char *argv[] = {"slow"};
    struct cmd_ctx c = {.argc = 1, .argv = argv, .want_json = true, .json = &json};
    json_init(&json, append, text);
    make_locks();
    hold(5 * MS);
    assert_int_equal(cmd_slow(&c), CMD_OK);
    snprintf(expected, sizeof(expected), "[{\"what\":\"lock held\",\"name\":\"the low one\",\"where\":\"@%#lx\",\"times\":1,\"worst_ns\":5000000}]",
             (uintptr_t)noted(0)->pc);
    assert_string_equal(text, expected);
}

static void test_full(void **state)
{
    static const char code[PLACES + 2];
    for (unsigned n = 0; n < PLACES + 2; n++)
        slow_note(SLOW_HANDLER, "irq", code + n, MS);
    slow_note(SLOW_HANDLER, "irq", code + PLACES - 1, 2 * MS);
    assert_int_equal(left_out, 2);
    assert_true(places[PLACES - 1].count == 2 && places[PLACES - 1].worst_ns == 2 * MS);
}

#define TEST(function) cmocka_unit_test_setup(function, setup)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_order), TEST(test_equal_ranks), TEST(test_right_order), TEST(test_not_held), TEST(test_blocking),
        TEST(test_stuck), TEST(test_held), TEST(test_irqs_off), TEST(test_irqs_off_nested), TEST(test_irqs_off_waiting),
        TEST(test_irqs_off_switch), TEST(test_report), TEST(test_command), TEST(test_full),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
