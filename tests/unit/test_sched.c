/* Threads, wait queues, timers and locks as they are, on a simulated CPU: its clock moves only when the test says so, and an interrupt (the
 * timer, or an outside event that posts and wakes) may come wherever interrupts are enabled. Random threads wait for tokens with and
 * without limits, post, sleep, spin, start and join others. At every step: the most urgent thread runs or is about to, no token and
 * waiter stay apart, timers neither fire early nor late, no slice is overrun, and nothing touches a joined thread's freed memory.
 * TEST-SOURCES: lib/string.c */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "include/hv/types.h"

/* ---- the CPU: in the place of x86/cpu.h, x86/percpu.h, x86/apic.h -------------------------------------------------------------- */

#define HV_X86_CPU_H
#define HV_X86_PERCPU_H
#define HV_X86_APIC_H
#define MAX_PCPUS 1
#define PERCPU_MAX_HELD 16
#define TSC_PER_NS 3u
#define RFLAGS_IF 1u

struct percpu {
    void *current;
    unsigned id, apic_id;
    volatile bool need_resched;
    uint8_t held_count, held_ranks[PERCPU_MAX_HELD];
    const void *held_locks[PERCPU_MAX_HELD];
};

static struct percpu cpu0;
static inline struct percpu *this_cpu(void) { return &cpu0; }
static inline struct percpu *percpu_of(unsigned id) { return id == 0 ? &cpu0 : NULL; }
static inline unsigned cpu_id(void) { return 0; }
static inline unsigned cpu_count(void) { return 1; }

static uint64_t now_ns, timer_ns = UINT64_MAX, next_event_ns = UINT64_MAX;
static bool interrupts_on, in_interrupt;
static void (*timer_handler)(void);

static void interrupt_point(void);
static void idle_halt(void);
static inline void cli(void) { interrupts_on = false; }
static inline void sti(void) { interrupts_on = true, interrupt_point(); }
static inline void sti_hlt(void) { idle_halt(); }
static inline bool irqs_enabled(void) { return interrupts_on; }
static inline uint64_t irq_save(void)
{
    bool was = interrupts_on;
    interrupts_on = false;
    return was;
}
static inline void irq_restore(uint64_t flags)
{
    if (flags)
        sti();
}
static inline void irqs_off_named(const char *name, const void *pc) { (void)name, (void)pc; }
static inline void cpu_pause(void) { abort(); } /* one CPU: nobody else will ever let go */
static inline void lapic_timer_stop(void) { timer_ns = UINT64_MAX; }
static inline void lapic_timer_arm_tsc(uint64_t tsc) { timer_ns = (tsc + TSC_PER_NS - 1) / TSC_PER_NS; }
static inline void lapic_timer_set_handler(void (*fn)(void)) { timer_handler = fn; }
static inline void lapic_send_ipi(unsigned apic_id, unsigned vector) { abort(); } /* to whom? */

char boot_stack_bottom[64], boot_stack_top[1];

#include "core/slow.h"
void slow_note(enum slow_kind kind, const char *name, const void *pc, uint64_t tsc_ticks) { (void)kind, (void)name, (void)pc, (void)tsc_ticks; }
void slow_report(void) {}
uint64_t time_tsc_to_ns(uint64_t tsc) { return tsc; }
#include "core/lock.c"
#include "core/thread.c"
#include "core/runq.c"
#include "core/waitq.c"
#define queues timer_queues
#include "core/timer.c"
#undef queues

bool irq_register(uint8_t vector, irq_handler_fn *handler, void *arg) { return vector == VECTOR_IPI_KICK && handler && !arg; }

/* core/switch.asm in the host's assembler. Host code uses SSE: a stack that is not aligned as the ABI wants it faults. */
asm(".globl thread_switch, thread_entry\n"
    "thread_switch: push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15\n"
    "mov %rsp, (%rdi); mov %rsi, %rsp\n"
    "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; ret\n"
    "thread_entry: xor %ebp, %ebp; call thread_first; ud2\n");

static unsigned moving_looks; /* so many looks at the clock find that it has moved */
uint64_t time_ns(void)
{
    now_ns += moving_looks ? 2 : 0; /* one alone would hit a deadline, never pass it */
    moving_looks -= moving_looks ? 1 : 0;
    return now_ns;
}
uint64_t time_tsc(void) { return now_ns * TSC_PER_NS; }
uint64_t time_ns_to_tsc(uint64_t ns) { return ns * TSC_PER_NS; }

/* Not cmocka's failure: that would jump from a thread's stack to the test's. */
NORETURN void panic(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "panic at %llu ns: ", (unsigned long long)now_ns);
    vfprintf(stderr, fmt, ap);
    fprintf(stderr, "\n");
    va_end(ap);
    abort();
}

static unsigned rnd(unsigned below)
{
    static uint64_t x = 88172645463325252u;
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    return (unsigned)(x % below);
}

/* ---- the world: tokens, threads, timers of the test ---------------------------------------------------------------------------------- */

#define THREADS 24u
#define STACK_BYTES 65536u
#define WAITERS_MAX (THREADS + 1)
#define TIMERS 8u
#define STEP_NS 3000u          /* at most this much passes at an interrupt point */

static struct { struct waitq queue; unsigned tokens, waiting; } pool[3];
static struct { struct timer timer; uint64_t armed_for; bool armed; unsigned fired; } alarms[TIMERS];
static struct worker { struct thread thread; void *stack; bool alive, done; unsigned steps; } *workers[THREADS];
static jmp_buf finished;
static bool stop;
static unsigned waits_done, timeouts, sleeps, joins, preemptions;

static void on_alarm(struct timer *t)
{
    unsigned n = (unsigned)(uintptr_t)t->arg;
    hv_assert(in_interrupt && alarms[n].armed && alarms[n].armed_for == t->deadline_ns && now_ns >= t->deadline_ns);
    hv_assert(now_ns <= t->deadline_ns + 2 * STEP_NS);
    alarms[n].armed = false;
    alarms[n].fired++;
}

static void post(unsigned k, unsigned count)
{
    pool[k].tokens += count;
    count == 1 && rnd(2) ? waitq_wake_one(&pool[k].queue) : waitq_wake_all(&pool[k].queue);
}

static void outside_event(void)
{
    unsigned k = rnd(3);
    if (pool[k].tokens < 2 && rnd(3) == 0) /* scarce, so that waits also end by their limits */
        post(k, 1 + rnd(2));
    next_event_ns = stop ? UINT64_MAX : now_ns + 1 + rnd(40000);
}

/* Takes every interrupt that is due. */
static void deliver(void)
{
    interrupts_on = false;
    in_interrupt = true;
    while (now_ns >= timer_ns || now_ns >= next_event_ns) {
        if (now_ns >= timer_ns) {
            timer_ns = UINT64_MAX;
            timer_handler();
        } else {
            outside_event();
        }
        hv_assert(cpu0.held_count == 0);
    }
    in_interrupt = false;
    interrupts_on = true;
}

static void interrupt_point(void)
{
    if (in_interrupt)
        return;
    now_ns += rnd(4) ? 0 : rnd(STEP_NS);
    deliver();
}

/* Nothing to run. A thread that could have a token must not be asleep, and time goes on to what comes next. */
static void idle_halt(void)
{
    interrupts_on = true;
    deliver();
    if (cpu0.need_resched)
        return;
    for (unsigned k = 0; k < ARRAY_SIZE(pool); k++)
        hv_assert(!pool[k].waiting || !pool[k].tokens);
    uint64_t next = MIN(timer_ns, next_event_ns);
    if (next == UINT64_MAX)
        longjmp(finished, 1);
    now_ns = MAX(now_ns, next);
    deliver();
}

/* ---- what threads do ------------------------------------------------------------------------------------------------------------------- */

static bool take_token(void *arg)
{
    unsigned *tokens = arg;
    return *tokens && (*tokens)--;
}

/* At any point of its own choice a thread is the most urgent one, or has been told that it is not. */
static void check_urgency(void)
{
    const struct thread *me = thread_current();
    hv_assert(interrupts_on && !in_interrupt && me->state == THREAD_RUNNING);
    for (unsigned n = 0; n < THREADS; n++)
        if (workers[n] && workers[n]->alive && workers[n]->thread.state == THREAD_RUNNABLE && workers[n]->thread.prio > me->prio)
            hv_assert(thread_need_resched());
}

static void wait_for_token(void)
{
    unsigned k = rnd(3);
    uint64_t limit = rnd(3) ? 1 + rnd(60000) : rnd(2) ? 0 : WAIT_FOREVER, begun = now_ns;
    pool[k].waiting++;
    enum wait_result r = waitq_wait(&pool[k].queue, take_token, &pool[k].tokens, limit);
    pool[k].waiting--;
    hv_assert(r == WAIT_DONE || now_ns - begun >= limit);
    waits_done += r == WAIT_DONE;
    timeouts += r == WAIT_TIMEOUT;
}

static void sleep_a_while(void)
{
    uint64_t ns = rnd(50000), begun = now_ns;
    thread_sleep_ns(ns);
    hv_assert(now_ns - begun >= ns);
    sleeps++;
}

/* To a point that is about to pass: one that sleeps to long after it never wakes, and is not done at the end. */
static void sleep_until_soon(void)
{
    uint64_t deadline = now_ns + rnd(4);
    moving_looks = rnd(6);
    thread_sleep_until_ns(deadline);
    moving_looks = 0;
    hv_assert(now_ns >= deadline);
    sleeps++;
}

static void use_alarm(void)
{
    unsigned n = rnd(TIMERS);
    if (rnd(3)) {
        uint64_t at = rnd(10) ? now_ns + rnd(100000) : now_ns; /* at once too */
        uint64_t flags = irq_save();
        alarms[n].armed = true;
        alarms[n].armed_for = at;
        timer_arm(&alarms[n].timer, at);
        irq_restore(flags);
    } else {
        timer_cancel(&alarms[n].timer);
        alarms[n].armed = false;
    }
}

/* A guest: runs until it is told to give way. If another of its kind waits, that is after a round at the latest. */
static void spin(void)
{
    uint64_t begun = now_ns;
    bool contended = false;
    for (unsigned n = rnd(8000); n && !thread_need_resched(); n--) {
        contended = this_cpu()->current && sched_slice_deadline() != UINT64_MAX;
        hv_assert(!contended || now_ns - begun <= ROUND_NS + 2 * STEP_NS);
        now_ns += rnd(STEP_NS);
        sti();
    }
    preemptions += contended && thread_need_resched();
    thread_resched_point();
}

static void worker_main(void *arg);

static void start_worker(unsigned n)
{
    struct worker *w = workers[n] = calloc(1, sizeof(*w));
    char name[40];
    w->stack = aligned_alloc(4096, STACK_BYTES);
    w->alive = true;
    w->steps = 1 + rnd(300);
    snprintf(name, sizeof(name), "worker %u with a name that is cut", n);
    thread_init(&w->thread, name, (enum thread_prio)rnd(THREAD_PRIO_MAX), worker_main, w, w->stack, STACK_BYTES);
    thread_start(&w->thread);
}

static bool not_this(struct thread *t, void *arg)
{
    hv_assert(t != arg);
    return true;
}

/* Replaces a thread that has done its work; only one joins each. */
static void join_one(void)
{
    unsigned n = rnd(THREADS);
    struct worker *w = workers[n];
    if (!w || !w->done)
        return;
    workers[n] = NULL;
    thread_join(&w->thread);
    hv_assert(w->thread.state == THREAD_DEAD);
    thread_for_each(not_this, &w->thread);
    free(w->stack);
    free(w);
    joins++;
    if (!stop)
        start_worker(n);
}

static void worker_main(void *arg)
{
    struct worker *w = arg;
    while (w->steps-- && !stop) {
        check_urgency();
        switch (rnd(8)) {
        case 0: case 1: wait_for_token(); break;
        case 2: post(rnd(3), 1); break;
        case 3: rnd(2) ? sleep_a_while() : sleep_until_soon(); break;
        case 4: use_alarm(); break;
        case 5: spin(); break;
        case 6: thread_yield(); break;
        case 7: join_one(); break;
        }
        thread_resched_point();
    }
    w->alive = false;
    w->done = true;
}

/* Two guests and nothing else on the machine: only the slice's own timer can part them. At any moment neither has had more than its half of
 * what both ran, by more than a round. */
#define RIVAL_NS (20 * ROUND_NS)
static struct thread rivals[2];
static uint64_t rival_ns[2];
static unsigned rounds[2];

static void rival_main(void *arg)
{
    unsigned me = (unsigned)(uintptr_t)arg;
    const struct thread *other = &rivals[!me];
    if (me == 0)
        thread_start(&rivals[1]);
    while (rival_ns[me] < RIVAL_NS) {
        uint64_t begun = now_ns;
        while (!thread_need_resched() && rival_ns[me] < RIVAL_NS) {
            hv_assert(other->state == THREAD_DEAD || now_ns - begun <= ROUND_NS / 2 + 2 * STEP_NS);
            uint64_t ns = rnd(STEP_NS);
            now_ns += ns;
            rival_ns[me] += ns;
            hv_assert(other->state == THREAD_DEAD || rival_ns[!me] >= RIVAL_NS || rival_ns[me] <= rival_ns[!me] + ROUND_NS);
            sti();
        }
        rounds[me]++;
        thread_resched_point();
    }
}

static void run_rivals(void)
{
    void *stacks[2];
    next_event_ns = UINT64_MAX;
    for (unsigned n = 0; n < 2; n++) {
        stacks[n] = aligned_alloc(4096, STACK_BYTES);
        thread_init(&rivals[n], "rival", THREAD_PRIO_VCPU, rival_main, (void *)(uintptr_t)n, stacks[n], STACK_BYTES);
    }
    thread_start(&rivals[0]);
    for (unsigned n = 0; n < 2; n++) {
        thread_join(&rivals[n]);
        free(stacks[n]);
    }
}

/* Lives through it all, and at the end lets everybody out. */
static void director_main(void *arg)
{
    while (waits_done < 20000 || joins < 200) {
        thread_sleep_ns(100000);
        for (unsigned n = 0; n < 3; n++)
            join_one();
    }
    stop = true;
    for (unsigned n = 0; n < THREADS; n++)
        while (workers[n]) {
            for (unsigned k = 0; k < 3; k++)
                post(k, THREADS);
            thread_sleep_ns(100000);
            if (workers[n]->done) {
                struct worker *w = workers[n];
                workers[n] = NULL;
                thread_join(&w->thread);
                free(w->stack);
                free(w);
            }
        }
    for (unsigned n = 0; n < TIMERS; n++) {
        timer_cancel(&alarms[n].timer);
        alarms[n].armed = false;
    }
    run_rivals();
}

static void test_world(void **state)
{
    static struct thread director;
    void *stack = aligned_alloc(4096, STACK_BYTES);
    for (unsigned k = 0; k < ARRAY_SIZE(pool); k++)
        waitq_init(&pool[k].queue);
    for (unsigned n = 0; n < TIMERS; n++)
        timer_init(&alarms[n].timer, on_alarm, (void *)(uintptr_t)n);
    sched_init();
    for (unsigned n = 0; n < THREADS; n++)
        start_worker(n);
    thread_init(&director, "director", THREAD_PRIO_CONSOLE, director_main, NULL, stack, STACK_BYTES);
    thread_start(&director);
    next_event_ns = 1;
    if (setjmp(finished) == 0)
        sched_start();
    assert_int_equal(director.state, THREAD_DEAD);
    print_message("%u waits, %u timeouts, %u sleeps, %u joins, %u preemptions, %.3f s simulated\n", waits_done, timeouts, sleeps, joins, preemptions,
                  (double)now_ns / 1e9);
    assert_true(rounds[0] >= 20 && rounds[1] >= 20);
    assert_true(waits_done >= 20000 && timeouts > 1000 && sleeps > 1000 && joins >= 200 && preemptions > 20);
    for (unsigned n = 0; n < TIMERS; n++)
        assert_true(alarms[n].fired > 100 && !alarms[n].armed);
    free(stack);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_world) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
