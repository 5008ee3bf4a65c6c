/* Who gets how much CPU time: the real scheduler (threads, run queues, timers, locks) on 1 to 8 simulated CPUs in simulated time. A thread is not
 * code here but a wish: so much CPU time until it sleeps, ends, or gives way. The simulation takes the earliest event of any CPU (its
 * timer, an interrupt from another CPU some microseconds after it was sent, the wish of its thread), becomes that CPU, and calls what would be
 * called there. What each thread got is counted by the simulation's own clock and compared with what an ideal machine would have given it.
 * Where a lock is released, other CPUs may do something in between (`chaos`), for what goes wrong only then.
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

/* ---- the CPUs: in the place of x86/cpu.h, x86/percpu.h, x86/apic.h ------------------------------------------------------------- */

#define HV_X86_CPU_H
#define HV_X86_PERCPU_H
#define HV_X86_APIC_H
#define MAX_PCPUS 8
#define PERCPU_MAX_HELD 16
#define TSC_PER_NS 3u
#define RFLAGS_IF 1u
#define NEVER UINT64_MAX
#define MS UINT64_C(1000000)
#define SECOND (1000 * MS)

struct percpu {
    void *current;
    unsigned id, apic_id;
    volatile bool need_resched;
    uint8_t held_count, held_ranks[PERCPU_MAX_HELD];
    const void *held_locks[PERCPU_MAX_HELD];
};

static struct sim_cpu {
    struct percpu percpu;
    uint64_t timer_ns, ipi_ns, idle_with_work_ns;
    jmp_buf exited;           /* where its current thread, once it has ended, leaves us */
    bool exiting, interrupts_on, busy; /* busy: in the middle of something, further up this program's stack */
    void *seen;               /* the current thread when we last looked */
    void *memory;
} cpus[MAX_PCPUS];
static unsigned cpu_total, here;
static uint64_t now_ns;
static void (*timer_handler)(void), (*kick_handler)(void *);

static inline struct percpu *this_cpu(void) { return &cpus[here].percpu; }
static inline unsigned cpu_id(void) { return here; }
static inline unsigned cpu_count(void) { return cpu_total; }
static inline struct percpu *percpu_of(unsigned id) { return id < cpu_total ? &cpus[id].percpu : NULL; }
static inline void cli(void) { cpus[here].interrupts_on = false; }
static inline void sti(void) { cpus[here].interrupts_on = true; }
static inline void sti_hlt(void) { abort(); } /* the simulation has an idle loop of its own */
static inline bool irqs_enabled(void) { return cpus[here].interrupts_on; }
static inline uint64_t irq_save(void)
{
    bool was = cpus[here].interrupts_on;
    cpus[here].interrupts_on = false;
    return was;
}
static inline void irq_restore(uint64_t flags) { cpus[here].interrupts_on |= flags; }
static inline void irqs_off_named(const char *name, const void *pc) { (void)name, (void)pc; }
static inline void cpu_pause(void) { abort(); } /* no CPU is stopped where it holds a lock, so nobody ever waits for one */
static inline void lapic_timer_stop(void) { cpus[here].timer_ns = NEVER; }
static inline void lapic_timer_arm_tsc(uint64_t tsc) { cpus[here].timer_ns = (tsc + TSC_PER_NS - 1) / TSC_PER_NS; }
static inline void lapic_timer_set_handler(void (*fn)(void)) { timer_handler = fn; }
static void lapic_send_ipi(uint32_t apic_id, uint8_t vector);

char boot_stack_bottom[64], boot_stack_top[1];

/* The locks are the real ones, but before they are taken and after they are released something may happen on other CPUs. */
#define spin_lock lock_c_spin_lock
#define spin_unlock lock_c_spin_unlock
#include "core/slow.h"
void slow_note(enum slow_kind kind, const char *name, const void *pc, uint64_t tsc_ticks) { (void)kind, (void)name, (void)pc, (void)tsc_ticks; }
void slow_report(void) {}
uint64_t time_tsc_to_ns(uint64_t tsc) { return tsc; }
#include "core/lock.c"
#undef spin_lock
#undef spin_unlock
void spin_lock(struct spinlock *l);
void spin_unlock(struct spinlock *l);
#include "core/thread.c"
#include "core/runq.c"
#define queues timer_queues
#include "core/timer.c"
#undef queues

static uint64_t random_state;
static uint64_t rnd(uint64_t below)
{
    random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
    return random_state % below;
}

static void lapic_send_ipi(uint32_t apic_id, uint8_t vector)
{
    struct sim_cpu *c = &cpus[apic_id - 100];
    hv_assert(c < cpus + cpu_total && c != &cpus[here] && vector == VECTOR_IPI_KICK);
    c->ipi_ns = MIN(c->ipi_ns, now_ns + 1000 + rnd(4000));
}

bool irq_register(uint8_t vector, irq_handler_fn *handler, void *arg)
{
    hv_assert(vector == VECTOR_IPI_KICK && !arg);
    kick_handler = handler;
    return true;
}

uint64_t time_ns(void) { return now_ns; }
uint64_t time_tsc(void) { return now_ns * TSC_PER_NS; }
uint64_t time_ns_to_tsc(uint64_t ns) { return ns * TSC_PER_NS; }
void waitq_init(struct waitq *q)
{
    spin_init(&q->lock, LOCK_RANK_WAITQ, "waitq");
    list_init(&q->waiters);
}
void waitq_wake_all_locked(struct waitq *q) { hv_assert(list_empty(&q->waiters)); }
enum wait_result waitq_wait(struct waitq *q, bool (*cond)(void *), void *arg, uint64_t timeout_ns) { abort(); }
void thread_entry(void) { abort(); }

NORETURN void panic(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "panic on CPU %u at %llu ns: ", here, (unsigned long long)now_ns);
    vfprintf(stderr, fmt, ap);
    fprintf(stderr, "\n");
    va_end(ap);
    abort();
}

/* ---- threads ----------------------------------------------------------------------------------------------------------------------- */

#define TASKS_MAX 96u
#define SNAPSHOT_NS (100 * MS)
#define WINDOW 10u             /* snapshots in a second */
#define SNAPSHOTS 61u

static struct task {
    struct thread thread;      /* first */
    uint64_t stack[32];        /* for thread_init(); nothing runs on it */
    struct timer alarm;
    uint64_t run_ns, sleep_ns; /* runs about run_ns at a time, then sleeps about sleep_ns; run_ns NEVER: does not sleep */
    uint64_t left_ns, life_ns; /* CPU time until it sleeps, and until it ends */
    uint64_t deaf_ns, deaf_until_ns; /* for so long it does not give way, once it runs */
    struct task *give_way_to;  /* instead of sleeping */
    uint64_t wanted_ns, wanted, answered_soon, answered_ns; /* given way to since then; how often, and when it ran */
    uint64_t got_ns, since_ns, longest_wait_ns, waits, waited_ns, snapshot[SNAPSHOTS];
    double ideal;              /* of one CPU */
} *tasks[TASKS_MAX];
static unsigned task_count, snapshots;
static bool chaos;
static uint64_t switches, interleavings;

static bool is_idle(const struct thread *t) { return t == &runq_of(t->pcpu)->idle; }
static struct task *task_of(struct thread *t) { return is_idle(t) ? NULL : (struct task *)t; }

static struct task *new_task(enum thread_prio prio, uint32_t weight)
{
    struct task *t = calloc(1, sizeof(*t));
    hv_assert(task_count < TASKS_MAX);
    thread_init(&t->thread, "task", prio, NULL, NULL, t->stack, sizeof(t->stack));
    thread_set_weight(&t->thread, weight);
    t->run_ns = t->left_ns = t->life_ns = NEVER;
    return tasks[task_count++] = t;
}


static void pin(struct task *t, unsigned pcpu)
{
    struct cpu_set set = {0};
    cpu_set_add(&set, pcpu);
    hv_assert(thread_set_affinity(&t->thread, &set));
}

static uint64_t about(uint64_t ns) { return ns / 2 + rnd(ns + 1); }

static void wake(struct task *t)
{
    if (!t->life_ns || t->thread.state != THREAD_BLOCKED) /* the one that is ending waits for nothing */
        return;
    t->since_ns = now_ns;
    thread_make_runnable(&t->thread);
}

static void on_alarm(struct timer *timer) { wake(timer->arg); }

static void start(struct task *t)
{
    timer_init(&t->alarm, on_alarm, t);
    t->since_ns = now_ns;
    thread_start(&t->thread);
}

static void interleave(void);

/* What the current thread does when it has had the time it wanted. */
static void act_as(struct task *t)
{
    if (!t->life_ns) {
        if (!setjmp(cpus[here].exited)) {
            cpus[here].exiting = true;
            thread_exit();
        }
        sti();
    } else if (!t->left_ns && t->give_way_to) {
        struct task *other = t->give_way_to;
        t->left_ns = about(t->run_ns);
        if (other->thread.state == THREAD_RUNNABLE && !other->wanted_ns)
            other->wanted_ns = now_ns;
        thread_yield_to(&other->thread);
    } else if (!t->left_ns) {
        t->left_ns = about(t->run_ns);
        timer_arm(&t->alarm, now_ns + about(t->sleep_ns));
        t->thread.state = THREAD_BLOCKED;
        interleave(); /* an early wake-up */
        thread_block_current();
    }
}

/* ---- events ------------------------------------------------------------------------------------------------------------------------ */

static struct thread *current_of(unsigned c) { return cpus[c].percpu.current; }

void thread_switch(uint64_t *save_rsp, uint64_t load_rsp)
{
    switches++;
    interleave();
    if (cpus[here].exiting) {
        cpus[here].exiting = false;
        finish_switch();
        longjmp(cpus[here].exited, 1);
    }
}

/* What the code around the scheduler does after any interrupt or exit. */
static void settle(void)
{
    for (unsigned n = 0;; n++) {
        hv_assert(n < 100 && irqs_enabled());
        assert_no_locks_held("the simulation");
        if (is_idle(thread_current())) {
            cli();
            bool work = runq_has_work(runq_of(here));
            sti();
            if (!work)
                return;
        } else if (!thread_need_resched() || task_of(thread_current())->deaf_until_ns > now_ns) {
            return;
        }
        thread_yield();
    }
}

static uint64_t next_event(unsigned c)
{
    struct task *t = task_of(current_of(c));
    uint64_t next = MIN(cpus[c].timer_ns, cpus[c].ipi_ns), left = t ? MIN(t->left_ns, t->life_ns) : NEVER;
    if (t && cpus[c].percpu.need_resched)
        next = MIN(next, t->deaf_until_ns);
    return left == NEVER ? next : MIN(next, now_ns + left);
}

/* Everything that is due on that CPU, which another one may be in the middle of something to allow. */
static void run_cpu(unsigned c, void (*interrupt)(void))
{
    struct sim_cpu *cpu = &cpus[c];
    unsigned was = here;
    hv_assert(!cpu->busy);
    here = c;
    cpu->busy = true;
    cli();
    if (cpu->timer_ns <= now_ns) {
        cpu->timer_ns = NEVER;
        timer_handler();
    }
    if (cpu->ipi_ns <= now_ns) {
        cpu->ipi_ns = NEVER;
        kick_handler(NULL);
    }
    if (interrupt)
        interrupt();
    sti();
    struct task *t = task_of(thread_current());
    if (t && (!t->left_ns || !t->life_ns))
        act_as(t);
    settle();
    cpu->busy = false;
    here = was;
}

static void wake_somebody(void)
{
    wake(tasks[rnd(task_count)]);
}

static void force_resched(void)
{
    this_cpu()->need_resched = true;
}

static void forbid_somebody(void)
{
    struct cpu_set set = {.bits = {1 + rnd((1u << cpu_total) - 1)}};
    if (rnd(2))
        cpu_set_fill(&set);
    hv_assert(thread_set_affinity(&tasks[rnd(task_count)]->thread, &set));
}

static void pass_time(uint64_t until);
static void (*const meanwhile[])(void) = {wake_somebody, wake_somebody, force_resched, NULL, forbid_somebody};
static unsigned meanwhile_count;

static void interleave(void)
{
    static unsigned depth;
    unsigned c = (unsigned)rnd(MAX_PCPUS);
    if (!chaos || this_cpu()->held_count || rnd(6))
        return;
    pass_time(now_ns + rnd(200));
    if (depth == 2 || c >= cpu_total || cpus[c].busy)
        return;
    depth++;
    interleavings++;
    run_cpu(c, meanwhile[rnd(meanwhile_count)]);
    depth--;
}

void spin_lock(struct spinlock *l)
{
    interleave();
    lock_c_spin_lock(l);
}

void spin_unlock(struct spinlock *l)
{
    lock_c_spin_unlock(l);
    interleave();
}

/* ---- the world's time ----------------------------------------------------------------------------------------------------------------- */

#define IPI_MAX_NS 5000u

static uint64_t begun_ns, world_ns; /* of the scenario; its next event */
static void (*world)(void);         /* which sets the one after */
static uint64_t idle_with_work_max_ns;

/* Queues are consistent with each other and with what the threads say. All CPUs are between two events. */
static void check_queues(void)
{
    unsigned queued = 0, announced = 0;
    for (unsigned c = 0; c < cpu_total; c++) {
        struct run_queue *q = runq_of(c);
        uint64_t weight = 0;
        hv_assert(!spin_is_held(&q->lock) && !q->outcast && !q->previous && !q->dying);
        hv_assert(q->current == current_of(c) && q->current->state == THREAD_RUNNING && q->current->on_cpu && q->current->pcpu == c);
        hv_assert(q->current_prio == (is_idle(q->current) ? NOTHING_RUNS : (int)q->current->prio) &&
                  (may_run_on(q->current, q) || cpus[c].percpu.need_resched));
        for (unsigned p = 0; p < THREAD_PRIO_MAX; p++) {
            const struct thread *before = NULL;
            hv_assert(list_empty(&q->ready[p]) == !(q->ready_mask >> p & 1));
            list_for_each(t, &q->ready[p], struct thread, run_node) {
                queued++;
                hv_assert(t->state == THREAD_RUNNABLE && !t->on_cpu && t->pcpu == c && t->prio == p &&
                          (chaos || may_run_on(t, q))); /* else moved while it was leaving: it goes when its turn comes */
                if (p == THREAD_PRIO_VCPU) {
                    hv_assert(before ? !fair_before(t->vtime, before->vtime) : t->vtime == q->head_vtime);
                    weight += t->queued_weight;
                }
                before = t;
            }
        }
        hv_assert(weight == q->ready_weight);
        announced += q->announced_idle;
        hv_assert(is_idle(q->current) ? q->announced_idle || cpus[c].ipi_ns != NEVER : !q->announced_idle);
    }
    for (unsigned n = 0; n < task_count; n++)
        queued -= tasks[n]->thread.state == THREAD_RUNNABLE;
    hv_assert(!queued && announced == idle_cpus); /* nobody runnable is lost */
}

/* It could run there, and is not about to run where it is, as soon as somebody who does not give way at once does. */
static bool waits_for(const struct thread *t, unsigned c)
{
    return t->state == THREAD_RUNNABLE && cpu_set_has(&t->affinity, c) &&
           !(cpus[t->pcpu].percpu.need_resched && (int)t->prio > runq_of(t->pcpu)->current_prio);
}

static void pass_time(uint64_t until)
{
    uint64_t ns = until - now_ns;
    hv_assert(until >= now_ns);
    for (unsigned c = 0; c < cpu_total; c++) {
        struct task *t = task_of(current_of(c));
        if (t) {
            t->got_ns += ns;
            t->left_ns -= t->left_ns == NEVER ? 0 : MIN(ns, t->left_ns);
            t->life_ns -= t->life_ns == NEVER ? 0 : MIN(ns, t->life_ns);
            cpus[c].idle_with_work_ns = 0;
            continue;
        }
        bool work = false;
        for (unsigned n = 0; n < task_count && !work; n++)
            work = waits_for(&tasks[n]->thread, c);
        cpus[c].idle_with_work_ns = work ? cpus[c].idle_with_work_ns + ns : 0;
        idle_with_work_max_ns = MAX(idle_with_work_max_ns, cpus[c].idle_with_work_ns);
    }
    now_ns = until;
}

/* Who has come and who has gone in the current event, on any CPU? */
static void note_switches(void)
{
    for (unsigned c = 0; c < cpu_total; c++) {
        struct task *old = cpus[c].seen;
        if (old && current_of(c) != &old->thread)
            old->since_ns = now_ns;
    }
    for (unsigned c = 0; c < cpu_total; c++) {
        struct task *new = task_of(current_of(c));
        if (new && new != cpus[c].seen) {
            uint64_t waited = now_ns - new->since_ns;
            new->longest_wait_ns = MAX(new->longest_wait_ns, waited);
            new->waited_ns += waited;
            new->waits++;
            new->deaf_until_ns = now_ns + new->deaf_ns;
            if (new->wanted_ns) {
                uint64_t ns = now_ns - new->wanted_ns;
                new->wanted++;
                new->answered_soon += ns <= 2 * IPI_MAX_NS;
                new->answered_ns = MAX(new->answered_ns, ns);
                new->wanted_ns = 0;
            }
        }
        cpus[c].seen = new;
    }
}

static void snapshot(void)
{
    hv_assert(snapshots < SNAPSHOTS);
    for (unsigned n = 0; n < task_count; n++) {
        struct task *t = tasks[n];
        uint64_t run, wait;
        thread_times(&t->thread, &run, &wait);
        hv_assert(chaos || run == t->got_ns); /* nobody is billed for what another one used */
        t->snapshot[snapshots] = t->got_ns;
    }
    snapshots++;
}

/* Until that much time has gone since the scenario began. */
static void run_until(uint64_t end_ns)
{
    end_ns += begun_ns;
    for (unsigned events = 0;; events++) {
        uint64_t next = MIN(MIN(world_ns, end_ns), begun_ns + snapshots * SNAPSHOT_NS), at;
        unsigned c = cpu_total;
        for (unsigned n = 0; n < cpu_total; n++)
            if ((at = next_event(n)) <= next) {
                next = at;
                c = n;
            }
        pass_time(MAX(next, now_ns));
        if (c < cpu_total) {
            run_cpu(c, NULL);
        } else if (world_ns <= now_ns) {
            world_ns = NEVER;
            run_cpu((unsigned)rnd(cpu_total), world);
        } else if (begun_ns + snapshots * SNAPSHOT_NS <= now_ns) {
            snapshot();
        } else {
            return;
        }
        note_switches();
        if (chaos || events % 16 == 0)
            check_queues();
    }
}

static void begin(unsigned count, uint64_t seed)
{
    for (unsigned n = 0; n < task_count; n++)
        free(tasks[n]);
    memset(queues, 0, sizeof(queues));
    memset(timer_queues, 0, sizeof(timer_queues));
    memset(&boot_queue, 0, sizeof(boot_queue));
    list_init(&all_threads);
    waiting = waiting_vcpus = idle_cpus = task_count = snapshots = 0;
    chaos = false;
    meanwhile_count = ARRAY_SIZE(meanwhile) - 1;
    world_ns = NEVER;
    random_state = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
    begun_ns = now_ns;
    switches = interleavings = idle_with_work_max_ns = 0;
    cpu_total = count;
    for (unsigned c = 0; c < MAX_PCPUS; c++) {
        free(cpus[c].memory);
        cpus[c] = (struct sim_cpu){.percpu = {.id = c, .apic_id = 100 + c}, .timer_ns = NEVER, .ipi_ns = NEVER};
        here = c;
        if (c == 0) {
            sched_init();
        } else if (c < count) {
            size_t bytes = ALIGN_UP(sched_cpu_bytes(), 64);
            cpus[c].memory = memset(aligned_alloc(64, bytes), 0, bytes);
            sched_init_cpu(cpus[c].memory, boot_stack_bottom, sizeof(boot_stack_bottom));
        }
        sti();
    }
    here = 0;
    for (unsigned c = 0; c < count; c++)
        run_cpu(c, NULL);
}

static void start_new(void)
{
    for (unsigned n = 0; n < task_count; n++)
        if (tasks[n]->thread.state == THREAD_NEW)
            start(tasks[n]);
}

static void run_all(uint64_t ns)
{
    run_cpu(0, start_new);
    note_switches();
    run_until(ns);
}

/* ---- what is measured ------------------------------------------------------------------------------------------------------------------ */

/* The ideal: nobody has more than one CPU, and what is left is divided by weight. */
static void pour(unsigned count)
{
    double weights = 0, left = count;
    bool full[TASKS_MAX] = {false}, more = true;
    for (unsigned n = 0; n < task_count; n++)
        weights += tasks[n]->thread.weight;
    while (more) {
        more = false;
        for (unsigned n = 0; n < task_count; n++)
            if (!full[n] && tasks[n]->thread.weight * left >= weights) {
                full[n] = more = true;
                tasks[n]->ideal = 1;
                weights -= tasks[n]->thread.weight;
                left -= 1;
            }
    }
    for (unsigned n = 0; n < task_count; n++)
        if (!full[n])
            tasks[n]->ideal = tasks[n]->thread.weight * left / weights;
}

static uint64_t got_in(const struct task *t, unsigned window) { return t->snapshot[window + WINDOW] - t->snapshot[window]; }

/* In any second from that snapshot on, each has its ideal, give or take `percent` of it and the one minimum slice that it may have had just before or
 * after. Returns the worst, 1 being just allowed. */
static double check_shares(unsigned from, double percent)
{
    double worst = 0;
    for (unsigned w = from; w + WINDOW < snapshots; w++)
        for (unsigned n = 0; n < task_count; n++) {
            double ideal = tasks[n]->ideal * 1e9, allowed = ideal * percent / 100 + (double)MIN_SLICE_NS;
            double off = (double)got_in(tasks[n], w) - ideal, bad = (off < 0 ? -off : off) / allowed;
            if (bad > 1 && bad > worst)
                print_message("thread %u of %u, weight %u: %.3f ms instead of %.3f in the second after %u00 ms\n", n, task_count,
                              tasks[n]->thread.weight, (double)got_in(tasks[n], w) / 1e6, ideal / 1e6, w);
            worst = MAX(worst, bad);
        }
    return worst;
}

static double migrations_per_second(void)
{
    uint64_t sum = 0;
    for (unsigned n = 0; n < task_count; n++)
        sum += tasks[n]->thread.migrations;
    return (double)sum * 1e9 / (double)(now_ns - begun_ns);
}

static double switches_per_second(void) { return (double)switches * 1e9 / (double)(now_ns - begun_ns); }

static void check_idle(void)
{
    assert_true(idle_with_work_max_ns <= (chaos ? 8 : 2) * IPI_MAX_NS);
}

static const unsigned counts[] = {1, 2, 3, 4, 8};

static uint32_t any_weight(unsigned kind)
{
    switch (kind) {
    case 0: return 1 + (uint32_t)rnd(THREAD_WEIGHT_MAX);
    case 1: return 1u << rnd(14);
    case 2: return THREAD_WEIGHT_DEFAULT;
    default: return 50 + (uint32_t)rnd(200);
    }
}

/* ---- the properties ---------------------------------------------------------------------------------------------------------------------- */

#define MIXES 100u

static void test_weights(void **state)
{
    for (unsigned k = 0; k < ARRAY_SIZE(counts); k++) {
        unsigned count = counts[k];
        double worst = 0, moves = 0, most_moves = 0, turns = 0;
        for (unsigned mix = 0; mix < MIXES; mix++) {
            begin(count, mix * 8 + count);
            unsigned threads = mix % 16 < 4 ? 1 + (unsigned)rnd(count) : mix % 16 < 12 ? 1 + (unsigned)rnd(4 * count) : 1 + (unsigned)rnd(64);
            for (unsigned n = 0; n < threads; n++)
                new_task(THREAD_PRIO_VCPU, any_weight(mix % 4));
            pour(count);
            run_all(4 * SECOND);
            worst = MAX(worst, check_shares(WINDOW, 5));
            check_idle();
            moves += migrations_per_second() / MIXES;
            most_moves = MAX(most_moves, migrations_per_second());
            turns += switches_per_second() / MIXES;
        }
        print_message("%u CPUs: deviation %.0f %% of what is allowed, migrations/s %.0f (most %.0f), switches/s %.0f\n", count,
                      worst * 100, moves, most_moves, turns);
        assert_true(worst <= 1 && most_moves <= 150 * count);
    }
}

/* Everybody within what is allowed, and nothing idle; for what is the same each time. */
static void expect_shares(const char *what, unsigned from, double percent)
{
    double bad = check_shares(from, percent);
    print_message("%s: deviation %.0f %% of what is allowed, migrations/s %.0f, switches/s %.0f\n", what, bad * 100, migrations_per_second(),
                  switches_per_second());
    assert_true(bad <= 1);
    check_idle();
}

/* The first `count` tasks, which always run, among themselves: each has its part of what they have together. */
static double check_alike(unsigned count)
{
    double worst = 0;
    for (unsigned w = WINDOW; w + WINDOW < snapshots; w++) {
        double got = 0, weights = 0;
        for (unsigned n = 0; n < count; n++) {
            got += (double)got_in(tasks[n], w);
            weights += tasks[n]->thread.weight;
        }
        for (unsigned n = 0; n < count; n++) {
            double fair = got * tasks[n]->thread.weight / weights, off = (double)got_in(tasks[n], w) - fair;
            double bad = (off < 0 ? -off : off) / (fair * 0.05 + MIN_SLICE_NS);
            if (bad > 1 && bad > worst)
                print_message("thread %u of %u, weight %u: %.3f ms instead of %.3f in the second after %u00 ms\n", n, count,
                              tasks[n]->thread.weight, (double)got_in(tasks[n], w) / 1e6, fair / 1e6, w);
            worst = MAX(worst, bad);
        }
    }
    return worst;
}

static uint64_t longest_wait(unsigned from, unsigned to)
{
    uint64_t longest = 0;
    for (unsigned n = from; n < to; n++)
        longest = MAX(longest, tasks[n]->longest_wait_ns);
    return longest;
}

/* Twice as many guests as CPUs that always run, and as many that mostly sleep: whoever is ready runs within three rounds. */
#define WAIT_MAX_NS (3 * ROUND_NS)

static void test_sleepers(void **state)
{
    for (unsigned k = 0; k < ARRAY_SIZE(counts); k++) {
        unsigned count = counts[k], always;
        double worst = 0, wait = 0, waits = 0, moves = 0;
        uint64_t longest = 0, longest_always = 0;
        for (unsigned mix = 0; mix < 10; mix++) {
            begin(count, mix * 8 + count);
            always = mix % 5 ? 2 * count + 1 : count; /* so few that timers are off where no sleeper wakes */
            for (unsigned n = 0; n < always; n++)
                new_task(THREAD_PRIO_VCPU, 100 + (uint32_t)rnd(101));
            for (unsigned n = 0; n < 2 * count; n++) {
                struct task *t = new_task(THREAD_PRIO_VCPU, 100 + (uint32_t)rnd(101));
                t->left_ns = t->run_ns = 50000 + rnd(5 * MS);
                t->sleep_ns = MS + rnd(30 * MS);
            }
            chaos = mix % 2;
            run_all(4 * SECOND);
            worst = mix % 5 ? MAX(worst, check_alike(always)) : worst;
            longest_always = MAX(longest_always, longest_wait(0, always));
            longest = MAX(longest, longest_wait(always, task_count));
            moves += migrations_per_second() / 10;
            for (unsigned n = always; n < task_count; n++) {
                wait += (double)tasks[n]->waited_ns;
                waits += (double)tasks[n]->waits;
            }
            check_idle();
        }
        print_message("%u CPUs: deviation %.0f %% of what is allowed, longest wait %.1f ms, of sleepers %.1f (mean %.2f), migrations/s %.0f\n", count,
                      worst * 100, (double)longest_always / 1e6, (double)longest / 1e6, wait / waits / 1e6, moves);
        assert_true(worst <= 1);
        assert_true(longest <= WAIT_MAX_NS && longest_always <= WAIT_MAX_NS);
    }
}

/* A light one may find itself on the CPU of one that is owed more than a CPU, which falls behind without end. */
static void test_light_beside_heavy(void **state)
{
    static const uint32_t weights[] = {1, 512, 8192, 64, 1};
    for (unsigned first = 0; first < ARRAY_SIZE(weights); first++) {
        begin(2, first);
        for (unsigned n = 0; n < ARRAY_SIZE(weights); n++)
            new_task(THREAD_PRIO_VCPU, weights[(first + n) % ARRAY_SIZE(weights)]);
        pour(2);
        run_all(6 * SECOND);
        expect_shares("weights 1, 512, 8192, 64, 1", WINDOW, 5);
    }
}

/* `n` guests of that weight and ideal share; `pcpu` < 0: anywhere. */
static void guests(unsigned n, uint32_t weight, int pcpu, double ideal)
{
    while (n--) {
        struct task *t = new_task(THREAD_PRIO_VCPU, weight);
        t->ideal = ideal;
        if (pcpu >= 0)
            pin(t, (unsigned)pcpu);
    }
}

static void swap_pins(void)
{
    pin(tasks[0], 1);
    pin(tasks[2], 0);
}

static void lift_pins(void)
{
    struct cpu_set all;
    cpu_set_fill(&all);
    for (unsigned n = 0; n < task_count; n++)
        hv_assert(thread_set_affinity(&tasks[n]->thread, &all));
}

static void test_affinity(void **state)
{
    begin(2, 1);
    guests(2, 100, 0, 0.5), guests(1, 100, 1, 0.5), guests(1, 100, -1, 0.5);
    run_all(4 * SECOND);
    expect_shares("2 pinned to CPU 0, 1 to CPU 1, 1 free", WINDOW, 5);

    begin(2, 2);
    guests(3, 100, 0, 1. / 3), guests(1, 100, 1, 0.5), guests(1, 100, -1, 0.5);
    run_all(4 * SECOND);
    expect_shares("3 pinned to CPU 0, 1 to CPU 1, 1 free", WINDOW, 5);

    begin(4, 3);
    guests(1, 1000, 0, 1 / 1.01), guests(1, 10, 0, 0.01 / 1.01), guests(6, 100, -1, 0.5);
    run_all(4 * SECOND);
    expect_shares("heavy and light pinned to CPU 0, 6 free on 4 CPUs", WINDOW, 5);

    begin(2, 4);
    guests(2, 100, 0, 0.5), guests(2, 100, 1, 0.5);
    run_all(SECOND);
    world = swap_pins;
    world_ns = now_ns;
    run_until(4 * SECOND);
    assert_true(tasks[0]->thread.pcpu == 1 && tasks[2]->thread.pcpu == 0);
    expect_shares("2 pinned that change places", WINDOW, 5);

    begin(2, 5); /* what could not be made up for then is not made up for now */
    guests(3, 100, 0, 0.4), guests(1, 100, 1, 0.4), guests(1, 100, -1, 0.4);
    world = lift_pins;
    world_ns = now_ns + 2 * SECOND;
    run_all(5 * SECOND);
    expect_shares("pins that are lifted", 21, 5);

    begin(2, 6);
    guests(3, 100, 1, 2. / 3);
    world = lift_pins;
    world_ns = now_ns + 2 * SECOND;
    run_all(5 * SECOND);
    expect_shares("a CPU that nobody might use", 21, 5);
}

/* Who has been alone for long has nothing to pay for, and who comes has no claim on what has been. */
static void test_late_arrival(void **state)
{
    for (unsigned k = 0; k < ARRAY_SIZE(counts); k++) {
        begin(counts[k], k);
        guests(counts[k], 100, -1, 0.5);
        run_all(1500 * MS);
        guests(counts[k], 100, -1, 0.5);
        run_all(5 * SECOND);
        expect_shares("twice as many after 1.5 s", 16, 5);
    }
}

static void limit(struct task *t, unsigned percent, double ideal)
{
    thread_set_cap(&t->thread, percent);
    t->ideal = ideal;
}

static void lift_cap(void)
{
    thread_set_cap(&tasks[0]->thread, 0);
}

static void test_caps(void **state)
{
    static const unsigned percents[] = {1, 5, 30, 70, 99};
    for (unsigned k = 0; k < ARRAY_SIZE(percents); k++) {
        begin(1, k);
        guests(1, 100, -1, 0);
        limit(tasks[0], percents[k], percents[k] / 100.);
        run_all(4 * SECOND);
        expect_shares("capped and alone", WINDOW, 5);
    }
    begin(1, 10);
    guests(2, 100, -1, 0.7);
    limit(tasks[0], 30, 0.3);
    run_all(4 * SECOND);
    expect_shares("capped at 30 % beside one that is not", WINDOW, 5);

    begin(2, 11);
    guests(5, 100, -1, 1.7 / 4);
    limit(tasks[2], 30, 0.3);
    run_all(4 * SECOND);
    expect_shares("one of 5 on 2 CPUs capped at 30 %", WINDOW, 5);

    begin(2, 12);
    guests(4, 100, -1, 0.5);
    limit(tasks[0], 80, 0.5);
    run_all(4 * SECOND);
    expect_shares("a cap above the share", WINDOW, 5);

    begin(4, 13);
    guests(8, 100, -1, (4 - 4 * 0.25) / 4);
    for (unsigned n = 0; n < 4; n++)
        limit(tasks[n], 25, 0.25);
    run_all(4 * SECOND);
    expect_shares("4 of 8 on 4 CPUs capped at 25 %", WINDOW, 5);

    begin(1, 14); /* who cannot be stopped in time pays later: 3 ms each time, 1 ms in 20 allowed */
    guests(2, 100, -1, 0.95);
    limit(tasks[0], 5, 0.05);
    tasks[0]->deaf_ns = 3 * MS;
    run_all(5 * SECOND);
    expect_shares("capped at 5 % and slow to react", WINDOW, 10);

    begin(1, 15);
    guests(1, 100, -1, 0.05);
    limit(tasks[0], 5, 0.05);
    tasks[0]->deaf_ns = 3 * MS;
    run_all(5 * SECOND);
    expect_shares("the same alone", WINDOW, 10);

    begin(1, 16);
    guests(1, 100, -1, 1);
    limit(tasks[0], 1, 1);
    tasks[0]->deaf_ns = 50 * MS; /* five seconds' worth */
    world = lift_cap;
    world_ns = now_ns + SECOND;
    run_all(3 * SECOND);
    assert_int_equal(tasks[0]->snapshot[WINDOW], 50 * MS);
    expect_shares("a cap that is lifted", WINDOW, 0);
}

/* ---- coming and going, giving way, priorities ---------------------------------------------------------------------------------------------- */

static uint64_t every_ns;
static unsigned always_there, births;

/* A new guest, in the place of one that has ended if there is one. */
static void be_born(void)
{
    world = be_born;
    world_ns = now_ns + about(every_ns);
    unsigned n = always_there;
    while (n < task_count && tasks[n]->thread.state != THREAD_DEAD)
        n++;
    if (n == TASKS_MAX)
        return;
    if (n < task_count) {
        struct task *last = tasks[--task_count];
        free(tasks[n]);
        if (n < task_count)
            tasks[n] = last;
    }
    struct task *t = new_task(THREAD_PRIO_VCPU, 20 + (uint32_t)rnd(500));
    t->life_ns = MS + rnd(100 * MS);
    births++;
    start(t);
}

static void test_coming_and_going(void **state)
{
    for (unsigned k = 0; k < ARRAY_SIZE(counts); k++) {
        double worst = 0, moves = 0;
        uint64_t longest = 0;
        births = 0;
        for (unsigned mix = 0; mix < 8; mix++) {
            begin(counts[k], mix * 8 + k);
            always_there = 2 * counts[k] + 1;
            for (unsigned n = 0; n < always_there; n++)
                new_task(THREAD_PRIO_VCPU, 100 + (uint32_t)rnd(101));
            every_ns = 120 * MS / counts[k];
            world = be_born;
            world_ns = now_ns;
            run_all(4 * SECOND);
            worst = MAX(worst, check_alike(always_there));
            longest = MAX(longest, longest_wait(0, always_there));
            moves += migrations_per_second() / 8;
            check_idle();
        }
        print_message("%u CPUs, %u births: deviation %.0f %% of what is allowed, longest wait %.1f ms, migrations/s %.0f\n", counts[k], births,
                      worst * 100, (double)longest / 1e6, moves);
        assert_true(worst <= 1 && births > 100);
    }
}

/* The first task waits now and then for what the second holds, both having rivals. The second may have its time earlier, not more of it: if it is
 * asked for more often than its share allows, it cannot always come at once. */
static void give_way(const char *what, uint64_t run_ns, unsigned percent_at_once)
{
    struct task *waiter = tasks[0], *holder = tasks[1];
    waiter->give_way_to = holder;
    waiter->left_ns = waiter->run_ns = run_ns;
    run_all(5 * SECOND);
    print_message("%s: of %llu times at once %llu, at the latest after %.1f ms; the waiter's own longest wait %.1f ms\n", what,
                  (unsigned long long)holder->wanted,
                  (unsigned long long)holder->answered_soon, (double)holder->answered_ns / 1e6, (double)waiter->longest_wait_ns / 1e6);
    assert_true(holder->wanted > 100 && holder->answered_soon * 100 >= holder->wanted * percent_at_once);
    assert_true(holder->answered_ns <= 2 * ROUND_NS && waiter->longest_wait_ns <= 2 * ROUND_NS);
    expect_shares(what, WINDOW, 5);
}

static void test_giving_way(void **state)
{
    for (unsigned often = 0; often < 2; often++) {
        uint64_t run_ns = often ? MS / 2 : 5 * MS;
        begin(1, 1);
        guests(4, 100, -1, 0.25);
        give_way("to one on the same CPU", run_ns, often ? 0 : 95);
        begin(2, 2);
        guests(1, 100, 0, 0.5), guests(1, 100, 1, 0.5), guests(1, 100, 0, 0.5), guests(1, 100, 1, 0.5);
        give_way("to one on another CPU", run_ns, 95);
        begin(2, 3);
        guests(5, 100, -1, 0.4);
        give_way("to one that moves", run_ns, often ? 0 : 95);
    }
}

/* As many urgent threads as CPUs, which mostly sleep, are never kept waiting longer than an interrupt takes; what is for idle CPUs gets nothing while
 * there are guests for all of them, and then gets all. */
static void test_priorities(void **state)
{
    for (unsigned k = 0; k < ARRAY_SIZE(counts); k++) {
        unsigned count = counts[k], guest_count = 2 * count + 1;
        begin(count, k);
        guests(guest_count, 100, -1, 0);
        for (unsigned n = 0; n < count; n++) {
            struct task *t = new_task(n % 2 ? THREAD_PRIO_CONSOLE : THREAD_PRIO_POLICY, 100);
            t->left_ns = t->run_ns = 20000 + rnd(500000);
            t->sleep_ns = MS + rnd(10 * MS);
        }
        struct task *zeroing = new_task(THREAD_PRIO_IDLE, 100);
        run_all(SECOND);
        uint64_t before = zeroing->got_ns;
        for (unsigned n = 0; n < guest_count; n++)
            tasks[n]->life_ns = 3 * SECOND * count / guest_count; /* about the fourth second */
        run_until(3 * SECOND);
        assert_true(zeroing->got_ns == before && before <= 2 * IPI_MAX_NS);
        assert_true(check_alike(guest_count) <= 1);
        run_until(5 * SECOND);
        uint64_t longest = longest_wait(guest_count, guest_count + count);
        print_message("%u CPUs: the longest wait of an urgent thread %.1f us, migrations/s %.0f\n", count, (double)longest / 1e3, migrations_per_second());
        assert_true(longest <= 2 * IPI_MAX_NS);
        assert_true(zeroing->got_ns - before >= SECOND / 2);
        check_idle();
    }
}

/* Everything at once and in between; asked is only that nobody is lost, nobody is counted twice, and no CPU idles: check_queues() after each event. */
static void change_something(void)
{
    struct task *t = tasks[rnd(task_count)];
    world = change_something;
    world_ns = now_ns + about(2 * MS);
    if (t->thread.state == THREAD_DEAD)
        return;
    switch (rnd(6)) {
    case 0: thread_set_weight(&t->thread, any_weight((unsigned)rnd(4))); break;
    case 1: thread_set_cap(&t->thread, (unsigned)rnd(120)); break;
    case 2: case 3: forbid_somebody(); break;
    case 4: t->give_way_to = rnd(2) ? NULL : tasks[rnd(always_there)]; break;
    case 5: be_born(), world = change_something; break;
    }
}

static void test_chaos(void **state)
{
    uint64_t total = 0, between = 0;
    for (unsigned mix = 0; mix < 50; mix++) {
        unsigned count = counts[mix % ARRAY_SIZE(counts)];
        begin(count, mix);
        always_there = mix % 2 ? 4 * count : 2 * count; /* CPUs that are always busy, or now and then idle */
        every_ns = 20 * MS;
        for (unsigned n = 0; n < always_there; n++) {
            struct task *t = new_task(rnd(4) ? THREAD_PRIO_VCPU : (enum thread_prio)rnd(THREAD_PRIO_MAX), any_weight((unsigned)rnd(4)));
            t->left_ns = t->run_ns = 1000 + rnd(4 * MS);
            t->sleep_ns = 1000 + rnd(10 * MS);
            t->deaf_ns = rnd(4) ? 0 : rnd(MS);
        }
        chaos = true;
        meanwhile_count = ARRAY_SIZE(meanwhile);
        world = change_something;
        world_ns = now_ns;
        run_all(SECOND / 2);
        total += switches;
        between += interleavings;
        check_idle();
    }
    print_message("%llu switches, %llu times something happened in between\n", (unsigned long long)total, (unsigned long long)between);
    assert_true(total > 10000 && between > 10000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_weights), cmocka_unit_test(test_light_beside_heavy), cmocka_unit_test(test_late_arrival),
        cmocka_unit_test(test_affinity), cmocka_unit_test(test_caps),
        cmocka_unit_test(test_sleepers), cmocka_unit_test(test_coming_and_going), cmocka_unit_test(test_giving_way),
        cmocka_unit_test(test_priorities), cmocka_unit_test(test_chaos),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
