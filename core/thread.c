/*
 * Threads and the scheduler.
 *
 * Each CPU has an array of run queues, one per priority, and a bitmap of the non-empty ones: choosing is one bit scan.
 * Hypervisor threads run until they block or yield, so the only concurrency inside a CPU is interrupt handlers, and a run
 * queue's lock is held for a few instructions with interrupts off. Preempting guests needs no more than a flag: whoever
 * makes a thread runnable compares priorities and sets need_resched; a guest that is running is ended by the very interrupt
 * whose handler did that.
 *
 * The switch itself happens with the run queue's lock dropped but interrupts off. That is safe because a thread that leaves
 * the CPU for good (blocked) may be made runnable by another CPU only onto *this* CPU's queue, where it waits until we
 * have switched away: a thread never migrates while its registers are still on their way to its stack.
 *
 * A slice is a deadline, not a tick: it is armed only while another thread of the same priority waits. A machine with one
 * busy vCPU gets no timer interrupts from us at all.
 */
#include "core/thread.h"
#include "core/log.h"
#include "core/sched.h"
#include "core/time.h"
#include "lib/string.h"
#include "x86/cpu.h"
#include "x86/percpu.h"

#define SLICE_NS UINT64_C(10000000)

struct run_queue {
    struct spinlock lock;
    struct list_head ready[THREAD_PRIO_MAX];
    uint32_t ready_mask;       /* bit per priority with a ready thread */
    struct thread idle;        /* what runs before and when nothing does: the boot stack's thread */
    struct thread *dying;      /* left for good; its owner may free it once we are off its stack */
    uint64_t switched_ns;      /* when the current thread began to run */
};

static struct run_queue queues[1]; /* one per CPU that runs; further CPUs' come with them */
static struct spinlock all_lock = SPINLOCK_INIT(LOCK_RANK_SCHED, "threads");
static struct list_head all_threads = LIST_INIT(all_threads);

void thread_switch(uint64_t *save_rsp, uint64_t load_rsp);
void thread_entry(void);
NORETURN void thread_first(void);

static struct run_queue *queue_of(unsigned pcpu)
{
    return &queues[pcpu];
}

struct thread *thread_current(void)
{
    return this_cpu()->current;
}

bool thread_need_resched(void)
{
    return this_cpu()->need_resched;
}

/* ---- queues: lock held ------------------------------------------------------------------------------------------ */

static void enqueue(struct run_queue *q, struct thread *t)
{
    t->state = THREAD_RUNNABLE;
    list_add_tail(&q->ready[t->prio], &t->run_node);
    q->ready_mask |= 1u << t->prio;
}

static struct thread *dequeue_best(struct run_queue *q)
{
    if (!q->ready_mask)
        return &q->idle;
    unsigned prio = 31 - (unsigned)__builtin_clz(q->ready_mask);
    struct thread *t = list_first(&q->ready[prio], struct thread, run_node);
    list_del(&t->run_node);
    if (list_empty(&q->ready[prio]))
        q->ready_mask &= ~(1u << prio);
    return t;
}

/* ---- making threads runnable ------------------------------------------------------------------------------------ */

void thread_make_runnable(struct thread *t)
{
    struct run_queue *q = queue_of(t->pcpu);
    struct percpu *cpu = percpu_of(t->pcpu);
    uint64_t flags = spin_lock_irqsave(&q->lock);
    if (t->state == THREAD_BLOCKED || t->state == THREAD_NEW) {
        const struct thread *current = cpu->current;
        enqueue(q, t);
        if (current == &q->idle || t->prio > current->prio)
            cpu->need_resched = true;
        else
            timer_slice_needed(); /* perhaps it runs alone no longer */
    }
    spin_unlock_irqrestore(&q->lock, flags);
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
    thread_make_runnable(t);
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

/* On the new thread's stack: what could not be done while the old one's was in use. Interrupts off. */
static void finish_switch(void)
{
    struct run_queue *q = queue_of(cpu_id());
    struct thread *dead = q->dying;
    if (!dead)
        return;
    q->dying = NULL;
    spin_lock(&all_lock);
    list_del(&dead->all_node);
    spin_unlock(&all_lock);
    /* The joiner may free `dead` as soon as it sees this, so waitq_wake_all() must be the last to touch it: the joiner
     * cannot run before we enable interrupts or block, because it lives on this CPU's queue or behind the queue's lock. */
    dead->state = THREAD_DEAD;
    waitq_wake_all(&dead->exit_wait);
}

/* Interrupts off, no lock held; the current thread is already queued, blocked or dying. */
static void switch_away(void)
{
    struct percpu *cpu = this_cpu();
    struct run_queue *q = queue_of(cpu->id);
    struct thread *prev = cpu->current;
    uint64_t now = time_ns();

    spin_lock(&q->lock);
    struct thread *next = dequeue_best(q);
    next->state = THREAD_RUNNING;
    cpu->need_resched = false;
    spin_unlock(&q->lock);
    if (next == prev)
        return;
    prev->run_ns += now - q->switched_ns;
    q->switched_ns = now;
    next->switches++;
    next->slice_end_ns = now + SLICE_NS;
    if (prev->switch_out)
        prev->switch_out(prev);
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
    struct run_queue *q = queue_of(cpu_id());
    struct thread *t = thread_current();
    if (HV_DEBUG)
        assert_no_locks_held("thread_yield");
    if (t != &q->idle) {
        spin_lock(&q->lock);
        enqueue(q, t);
        spin_unlock(&q->lock);
    }
    switch_away();
    irq_restore(flags);
}

void thread_resched_point(void)
{
    if (unlikely(thread_need_resched()))
        thread_yield();
}

/* waitq.c has put the current thread on a queue and marked it BLOCKED; a wake-up may have undone that already. */
void thread_block_current(void)
{
    hv_assert(irqs_enabled());
    if (HV_DEBUG)
        assert_no_locks_held("a thread blocks");
    cli();
    struct run_queue *q = queue_of(cpu_id());
    struct thread *t = thread_current();
    hv_assert(t != &q->idle);
    if (t->state != THREAD_RUNNING)
        switch_away();
    sti();
}

NORETURN void thread_exit(void)
{
    if (HV_DEBUG)
        assert_no_locks_held("thread_exit");
    cli();
    struct run_queue *q = queue_of(cpu_id());
    q->dying = thread_current();
    q->dying->state = THREAD_BLOCKED; /* nothing wakes it: it is on no queue */
    switch_away();
    panic("thread %s ran after its end", thread_current()->name);
}

static bool is_dead(void *arg)
{
    return ((struct thread *)arg)->state == THREAD_DEAD;
}

void thread_join(struct thread *t)
{
    hv_assert(t != thread_current());
    waitq_wait(&t->exit_wait, is_dead, t, WAIT_FOREVER);
    /* The waker may still be leaving the queue's lock. */
    uint64_t flags = spin_lock_irqsave(&t->exit_wait.lock);
    spin_unlock_irqrestore(&t->exit_wait.lock, flags);
}

/* ---- slices, start ------------------------------------------------------------------------------------------------ */

/* When the timer interrupt must look at the current thread again; UINT64_MAX: it runs alone. Interrupts off. */
uint64_t sched_slice_deadline(void)
{
    struct percpu *cpu = this_cpu();
    struct run_queue *q = queue_of(cpu->id);
    const struct thread *t = cpu->current;
    return t != &q->idle && (q->ready_mask & (1u << t->prio)) ? t->slice_end_ns : UINT64_MAX;
}

/* From the timer interrupt. */
void sched_check_slice(uint64_t now_ns)
{
    if (sched_slice_deadline() <= now_ns)
        this_cpu()->need_resched = true;
}

void sched_init(void)
{
    struct run_queue *q = queue_of(0);
    spin_init(&q->lock, LOCK_RANK_SCHED, "run queue");
    for (unsigned p = 0; p < THREAD_PRIO_MAX; p++)
        list_init(&q->ready[p]);
    extern char boot_stack_bottom[], boot_stack_top[];
    q->idle.stack_base = boot_stack_bottom;
    q->idle.stack_bytes = (size_t)(boot_stack_top - boot_stack_bottom);
    str_copy(q->idle.name, sizeof(q->idle.name), "idle");
    q->idle.prio = THREAD_PRIO_IDLE;
    q->idle.state = THREAD_RUNNING;
    list_init(&q->idle.run_node);
    list_init(&q->idle.wait_node);
    list_add_tail(&all_threads, &q->idle.all_node);
    q->switched_ns = time_ns();
    this_cpu()->current = &q->idle;
    timer_init_this_cpu();
}

NORETURN void sched_start(void)
{
    struct percpu *cpu = this_cpu();
    for (;;) {
        cli();
        if (cpu->need_resched || queue_of(cpu->id)->ready_mask) {
            sti();
            thread_yield();
            continue;
        }
        sti_hlt();
    }
}
