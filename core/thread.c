/*
 * Threads: their life, and switching between them.
 *
 * Hypervisor threads run until they block or yield, so the only concurrency inside a CPU is interrupt handlers. Preempting
 * guests needs no more than a flag: whoever makes a thread runnable compares priorities and sets need_resched; a guest that is running
 * is ended by the very interrupt whose handler did that, or that another CPU sent. Who runs where is runq.c's business.
 *
 * The switch itself happens with no lock held but interrupts off. A thread that leaves a CPU may have been woken already; it may then
 * be queued, but runs on no other CPU before its registers are on its stack: that is what on_cpu says, and only the thread that
 * comes after it, on its own stack, clears it.
 *
 * The end. Whoever joins a thread frees its memory, so a dead thread is declared dead by the one that comes after it, under the lock
 * of the queue that the joiner waits on: when the joiner has had that lock, nobody touches the dead one any more.
 */
#include "core/thread.h"
#include "core/fair.h"
#include "core/log.h"
#include "core/runq.h"
#include "core/slow.h"
#include "core/time.h"
#include "lib/string.h"
#include "x86/cpu.h"
#include "x86/idt.h"
#include "x86/percpu.h"

static struct run_queue boot_queue;
static struct spinlock all_lock = SPINLOCK_INIT(LOCK_RANK_THREADS, "threads");
static struct list_head all_threads = LIST_INIT(all_threads);

void thread_switch(uint64_t *save_rsp, uint64_t load_rsp);
void thread_entry(void);
NORETURN void thread_first(void);

struct thread *thread_current(void)
{
    return this_cpu()->current;
}

bool thread_need_resched(void)
{
    return this_cpu()->need_resched;
}

/* Of several wakers, one sees BLOCKED and queues the thread. */
void thread_make_runnable(struct thread *t)
{
    enum thread_state blocked = THREAD_BLOCKED;
    if (__atomic_compare_exchange_n(&t->state, &blocked, THREAD_RUNNABLE, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        runq_place(t);
}

static void push(uint64_t **sp, uint64_t v)
{
    *--*sp = v;
}

void thread_init(struct thread *t, const char *name, enum thread_prio prio, thread_fn *fn, void *arg, void *stack_base,
                 size_t stack_bytes)
{
    memset(t, 0, sizeof(*t));
    str_copy(t->name, sizeof(t->name), name);
    t->prio = prio;
    t->fn = fn;
    t->arg = arg;
    t->stack_base = stack_base;
    t->stack_bytes = stack_bytes;
    t->state = THREAD_NEW;
    t->weight = THREAD_WEIGHT_DEFAULT;
    t->pcpu = cpu_id();
    cpu_set_fill(&t->affinity);
    waitq_init(&t->exit_wait);
    list_init(&t->run_node);
    list_init(&t->wait_node);
    list_init(&t->all_node);
    uint64_t *sp = (uint64_t *)((char *)stack_base + stack_bytes);
    push(&sp, 0);
    push(&sp, 0);              /* two: the stack is 16-byte aligned before the call in thread_entry, as the ABI wants it */
    push(&sp, (uintptr_t)thread_entry);
    for (int i = 0; i < 6; i++)
        push(&sp, 0);
    t->rsp = (uintptr_t)sp;
}

void thread_start(struct thread *t)
{
    uint64_t flags = spin_lock_irqsave(&all_lock);
    list_add_tail(&all_threads, &t->all_node);
    spin_unlock_irqrestore(&all_lock, flags);
    t->state = THREAD_RUNNABLE;
    runq_place(t);
}

void thread_for_each(bool (*cb)(struct thread *, void *), void *arg)
{
    uint64_t flags = spin_lock_irqsave(&all_lock);
    list_for_each(t, &all_threads, struct thread, all_node)
        if (!cb(t, arg))
            break;
    spin_unlock_irqrestore(&all_lock, flags);
}

/* ---- switching ---------------------------------------------------------------------------------------------------- */

static void bury(struct thread *dead)
{
    spin_lock(&all_lock);
    list_del(&dead->all_node);
    spin_unlock(&all_lock);
    spin_lock(&dead->exit_wait.lock);
    dead->state = THREAD_DEAD;
    waitq_wake_all_locked(&dead->exit_wait);
    spin_unlock(&dead->exit_wait.lock); /* the last that touches it */
}

/* On the new thread's stack: what could not be done while the old one's was in use. Interrupts off. */
static void finish_switch(void)
{
    struct run_queue *q = runq_of(cpu_id());
    struct thread *dead = q->dying;
    q->dying = NULL;
    runq_finish(q);
    if (dead)
        bury(dead);
}

/* Interrupts off, no lock held. `again`: the current thread can go on; else it is blocked or dying. */
static void switch_away(bool again)
{
    struct percpu *cpu = this_cpu();
    struct run_queue *q = runq_of(cpu->id);
    struct thread *prev = cpu->current, *next = runq_next(q, again);
    if (next == prev) {
        timer_slice_needed(); /* the timer that brought us here may be off, and there may be rivals */
        runq_finish(q);
        return;
    }
    next->switches++;
    if (prev->switch_out)
        prev->switch_out(prev);
    q->previous = prev;
    cpu->current = next;
    timer_slice_needed();
    if (next->switch_in)
        next->switch_in(next);
    thread_switch(&prev->rsp, next->rsp);
    finish_switch();
}

void thread_first(void)
{
    finish_switch();
    sti();
    struct thread *t = thread_current();
    t->fn(t->arg);
    thread_exit();
}

void thread_yield(void)
{
    uint64_t flags = irq_save();
    if (HV_DEBUG)
        assert_no_locks_held("thread_yield");
    switch_away(true);
    irq_restore(flags);
}

void thread_resched_point(void)
{
    if (likely(!thread_need_resched()))
        return;
    if (HV_DEBUG)
        slow_report(); /* the idle loop does, too, but a busy CPU never comes there */
    thread_yield();
}

/* waitq.c has put the current thread on a queue and marked it BLOCKED; a wake-up may have undone that already, and then it is on a run
 * queue, or will be in a moment: so in any case it is not ours to go on without having been chosen. */
void thread_block_current(void)
{
    hv_assert(irqs_enabled());
    if (HV_DEBUG)
        assert_no_locks_held("a thread blocks");
    cli();
    hv_assert(thread_current() != &runq_of(cpu_id())->idle);
    switch_away(false);
    sti();
}

NORETURN void thread_exit(void)
{
    if (HV_DEBUG)
        assert_no_locks_held("thread_exit");
    cli();
    struct run_queue *q = runq_of(cpu_id());
    q->dying = thread_current();
    q->dying->state = THREAD_BLOCKED; /* nothing wakes it: it is on no queue */
    switch_away(false);
    panic("thread %s ran after its end", thread_current()->name);
}

static bool is_dead(void *arg)
{
    return ((struct thread *)arg)->state == THREAD_DEAD;
}

void thread_join(struct thread *t)
{
    hv_assert(t != thread_current());
    waitq_wait(&t->exit_wait, is_dead, t, WAIT_FOREVER); /* is_dead() under the lock under which bury() said so */
}

/* ---- start ------------------------------------------------------------------------------------------------------------ */

static void resched_interrupt(void *arg UNUSED)
{
    timer_slice_needed(); /* need_resched is looked at by whatever was interrupted */
}

/* The timer list follows the queue in the same memory. */
size_t sched_cpu_bytes(void) { return sizeof(struct run_queue) + timer_cpu_bytes(); }

static void init_this_cpu(struct run_queue *q, void *timers, void *stack_base, size_t stack_bytes)
{
    runq_init(q, cpu_id(), stack_base, stack_bytes);
    this_cpu()->current = &q->idle;
    timer_init_this_cpu(timers);
    spin_lock(&all_lock);
    list_add_tail(&all_threads, &q->idle.all_node);
    spin_unlock(&all_lock);
    runq_publish(q);
}

void sched_init(void)
{
    extern char boot_stack_bottom[], boot_stack_top[];
    static char boot_timers[256] __attribute__((aligned(64)));
    hv_assert(sizeof(boot_timers) >= timer_cpu_bytes());
    if (!irq_register(VECTOR_IPI_KICK, resched_interrupt, NULL))
        panic("the vector of rescheduling interrupts is taken");
    init_this_cpu(&boot_queue, boot_timers, boot_stack_bottom, (size_t)(boot_stack_top - boot_stack_bottom));
}

void sched_init_cpu(void *memory, void *stack_base, size_t stack_bytes)
{
    init_this_cpu(memory, (char *)memory + sizeof(struct run_queue), stack_base, stack_bytes);
}

NORETURN void sched_start(void)
{
    struct run_queue *q = runq_of(cpu_id());
    for (;;) {
        if (HV_DEBUG)
            slow_report();
        cli();
        if (runq_has_work(q)) {
            sti();
            thread_yield();
        } else {
            sti_hlt();
        }
    }
}

static bool first_cpu_is_spared;

void sched_spare_first_cpu(void) { first_cpu_is_spared = true; }

void sched_guest_cpus(struct cpu_set *out)
{
    enum { FIRST = 0 };
    bool others = false;
    cpu_set_fill(out);
    for (unsigned n = 0; n < cpu_count(); n++)
        others |= n != FIRST && sched_cpu_online(n);
    if (first_cpu_is_spared && others)
        cpu_set_remove(out, FIRST);
}
