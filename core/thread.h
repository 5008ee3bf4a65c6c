/*
 * Hypervisor threads, wait queues, timers: the execution contract of the whole system.
 *
 * A thread runs on its own guarded stack until it blocks or yields: hypervisor code is not preempted by other
 * hypervisor threads, only by interrupt handlers, which merely post and wake. Guests are preempted: a
 * timer or device interrupt ends a guest's slice (an exit), and the vCPU's thread calls thread_resched_point().
 * Long-running hypervisor work calls thread_resched_point() too.
 *
 * core/ never allocates: the caller brings the control block and the stack (mm/stack.h makes them).
 */
#ifndef HV_CORE_THREAD_H
#define HV_CORE_THREAD_H

#include "core/lock.h"
#include "include/hv/types.h"
#include "lib/list.h"

enum thread_prio { /* a runnable thread of a higher priority always runs first; round robin inside one */
    THREAD_PRIO_IDLE = 0,   /* zeroing frames and the like: only when nothing else runs */
    THREAD_PRIO_VCPU = 1,
    THREAD_PRIO_POLICY = 2,
    THREAD_PRIO_CONSOLE = 3,
    THREAD_PRIO_MAX,
};

enum thread_state { THREAD_NEW, THREAD_RUNNABLE, THREAD_RUNNING, THREAD_BLOCKED, THREAD_DEAD };

struct waitq {
    struct spinlock lock;   /* LOCK_RANK_WAITQ, irqsave */
    struct list_head waiters; /* struct thread.wait_node */
};
#define WAITQ_INIT(q) { .lock = SPINLOCK_INIT(LOCK_RANK_WAITQ, "waitq"), .waiters = LIST_INIT((q).waiters) }
void waitq_init(struct waitq *q);

typedef void thread_fn(void *arg);

struct thread {
    uint64_t rsp;            /* saved stack pointer while not running */
    void *stack_base;        /* lowest usable byte */
    size_t stack_bytes;
    char name[24];
    thread_fn *fn;
    void *arg;
    enum thread_prio prio;
    volatile enum thread_state state;
    unsigned pcpu;           /* the CPU whose run queue it is on */
    unsigned locks_held;     /* debug: must be 0 to block */
    struct list_head run_node, wait_node, all_node;
    struct waitq *waiting_on;
    uint64_t wake_deadline_ns; /* 0: none */
    bool timed_out;
    uint64_t run_ns, switches; /* accounting */
    uint64_t slice_end_ns;
    struct waitq exit_wait;  /* woken when the thread is dead and off its stack */
    void *priv;              /* owner's: a vcpu thread points at its vcpu */
    /* Called with the thread about to run / just descheduled (interrupts off). May be NULL. */
    void (*switch_in)(struct thread *), (*switch_out)(struct thread *);
};

/* Prepares `t` (storage is the caller's) to run fn(arg) on the given stack; it does not run before thread_start(). */
void thread_init(struct thread *t, const char *name, enum thread_prio prio, thread_fn *fn, void *arg, void *stack_base,
                 size_t stack_bytes);
void thread_start(struct thread *t);
NORETURN void thread_exit(void);
/* Waits until `t` is dead; afterwards its storage may be freed. Never on oneself. */
void thread_join(struct thread *t);
struct thread *thread_current(void);

void thread_yield(void);                  /* to a thread of the same or a higher priority */
bool thread_need_resched(void);           /* cheap: one per-CPU flag; set by timer and wake-ups */
void thread_resched_point(void);          /* yields if thread_need_resched() */
/* Asks for the current CPU's flag to be set no later than deadline_ns (used by vCPU slices). */

/*
 * Blocking. Interrupts on, no lock held. The lost-wake-up-free pattern:
 *     waitq_wait(&q, condition_fn, arg, timeout_ns)
 * evaluates the condition under q->lock, sleeps if it is false, and re-evaluates after each wake; the waker
 * changes the condition first and then calls waitq_wake_*(). timeout_ns is relative, WAIT_FOREVER = none.
 * Returns WAIT_DONE once the condition holds, or WAIT_TIMEOUT.
 */
enum wait_result { WAIT_DONE, WAIT_TIMEOUT };
#define WAIT_FOREVER UINT64_MAX
enum wait_result waitq_wait(struct waitq *q, bool (*cond)(void *), void *arg, uint64_t timeout_ns);
void waitq_wake_all(struct waitq *q);     /* any context, interrupt handlers included */
void waitq_wake_one(struct waitq *q);
void thread_sleep_ns(uint64_t ns);

/* Timers: fn(arg) is called in interrupt context at or after deadline_ns (absolute, time_ns() scale). */
struct timer {
    struct list_head node;
    uint64_t deadline_ns;
    void (*fn)(struct timer *);
    void *arg;
    unsigned pcpu;
    bool armed;
};
void timer_init(struct timer *t, void (*fn)(struct timer *), void *arg);
void timer_arm(struct timer *t, uint64_t deadline_ns);  /* re-arms if armed */
void timer_cancel(struct timer *t); /* after return fn is not running and will not run */

/* Iterate all threads for listings; cb returns false to stop. */
void thread_for_each(bool (*cb)(struct thread *, void *), void *arg);

/* Starts the scheduler on this CPU with its idle loop; never returns. */
NORETURN void sched_start(void);
void sched_init(void);                    /* boot CPU, once */

#endif
