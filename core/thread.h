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
#include "lib/cpuset.h"
#include "lib/list.h"

enum thread_prio { /* a runnable thread of a higher priority always runs first; round robin inside one, but for vCPUs */
    THREAD_PRIO_IDLE = 0,   /* zeroing frames and the like: only when nothing else runs */
    THREAD_PRIO_VCPU = 1,   /* share the CPUs by their weights */
    THREAD_PRIO_POLICY = 2,
    THREAD_PRIO_CONSOLE = 3,
    THREAD_PRIO_MAX,
};

/* BLOCKED -> RUNNABLE by compare-and-swap, so that of several wakers one queues the thread. */
enum thread_state { THREAD_NEW, THREAD_RUNNABLE, THREAD_RUNNING, THREAD_BLOCKED, THREAD_THROTTLED /* its cap is used up */, THREAD_DEAD };

struct waitq {
    struct spinlock lock;   /* LOCK_RANK_WAITQ, irqsave */
    struct list_head waiters; /* struct thread.wait_node */
};
#define WAITQ_INIT(q) { .lock = SPINLOCK_INIT(LOCK_RANK_WAITQ, "waitq"), .waiters = LIST_INIT((q).waiters) }
void waitq_init(struct waitq *q);

typedef void thread_fn(void *arg);

/* Timers: fn(timer) is called in interrupt context at or after deadline_ns (absolute, time_ns() scale). */
struct timer {
    struct list_head node;
    uint64_t deadline_ns;
    void (*fn)(struct timer *);
    void *arg;
    unsigned pcpu;           /* whose list it is on */
    bool armed;
};
void timer_init(struct timer *t, void (*fn)(struct timer *), void *arg);
/* On this CPU's list; re-arms if armed. Not while another CPU may do the same with the same timer. */
void timer_arm(struct timer *t, uint64_t deadline_ns);
/* After return fn is not running and will not run, unless fn itself armed the timer again. Not in fn, no lock held that fn takes. */
void timer_cancel(struct timer *t);

#define THREAD_WEIGHT_DEFAULT 100u
#define THREAD_WEIGHT_MAX 10000u

/* Who writes what: (c) constant after thread_init()   (q) under the lock of the queue of `pcpu`   (s) the thread itself   (a) atomic */
struct thread {
    uint64_t rsp;            /* saved stack pointer while not running */
    void *stack_base;        /* (c) lowest usable byte */
    size_t stack_bytes;      /* (c) */
    char name[24];           /* (c) */
    thread_fn *fn;           /* (c) */
    void *arg;               /* (c) */
    enum thread_prio prio;   /* (c) */
    volatile enum thread_state state; /* (a) */
    volatile unsigned pcpu;  /* the CPU it runs on, waits for, or ran on last: changes only while it is on no queue and no CPU */
    volatile bool on_cpu;    /* (a) its registers are in a CPU, or on their way to its stack: no other CPU may run it */
    struct list_head run_node, wait_node, all_node;
    struct waitq *waiting_on;
    volatile bool timed_out; /* (a) */
    struct cpu_set affinity; /* (q) where it may run */
    uint32_t weight;         /* of a vCPU against other vCPUs */
    uint32_t queued_weight;  /* (q) what it was when it was queued */
    uint64_t vtime;          /* (q) CPU time divided by weight: core/fair.h */
    uint64_t slice_end_ns;   /* (q) */
    uint64_t ready_since_ns; /* (q) */
    uint64_t cap_ns;         /* (q) CPU time per CAP_PERIOD_NS that it may use at most; 0: no cap */
    int64_t cap_left_ns;     /* (q) */
    uint64_t cap_window_end_ns; /* (q) */
    uint64_t cap_end_ns;     /* (q) when its cap is used up, if it runs on; UINT64_MAX: never */
    struct timer cap_timer;
    uint64_t run_ns, wait_ns; /* (q) accounting: running, and ready to run while others ran */
    uint64_t switches, migrations; /* (q) */
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
/* Gives way to `t`, if it is ready to run and waits for a CPU, wherever that is; else like thread_yield(). For a vCPU that waits for
 * what another one holds. `t` must not end meanwhile. */
void thread_yield_to(struct thread *t);
bool thread_need_resched(void);           /* cheap: one per-CPU flag; set by timer and wake-ups */
void thread_resched_point(void);          /* yields if thread_need_resched() */

bool thread_vcpus_wait(void);             /* is a vCPU ready and waiting for a CPU, anywhere? One load */
/* A vCPU's share against others', 1..THREAD_WEIGHT_MAX, and the most it may use, in percent of a CPU (0: no limit). Any thread. */
void thread_set_weight(struct thread *t, uint32_t weight);
void thread_set_cap(struct thread *t, unsigned percent);
/* Where it may run; it moves at once if it runs elsewhere. False: none of these CPUs runs threads. Any thread. */
bool thread_set_affinity(struct thread *t, const struct cpu_set *set);
/* CPU time so far, and time ready to run while others ran, up to now. Any thread. */
void thread_times(struct thread *t, uint64_t *run_ns, uint64_t *wait_ns);
uint64_t thread_wait_ns(const struct thread *t); /* the thread itself, or its hooks */

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
void thread_sleep_until_ns(uint64_t deadline_ns); /* absolute, time_ns() scale; one that has passed is no sleep */

/* Iterate all threads for listings; cb returns false to stop. */
void thread_for_each(bool (*cb)(struct thread *, void *), void *arg);

/* Starts the scheduler on this CPU with its idle loop; never returns. */
NORETURN void sched_start(void);
void sched_init(void);                    /* boot CPU, once */
/* Another CPU, on itself: `memory` (sched_cpu_bytes(), zeroed, 64-byte aligned) becomes its queues, the stack it runs on its idle thread's. */
size_t sched_cpu_bytes(void);
void sched_init_cpu(void *memory, void *stack_base, size_t stack_bytes);
/* Does CPU `pcpu` run threads? */
bool sched_cpu_online(unsigned pcpu);
/* Where vCPUs run if nobody says otherwise: on all CPUs. Once, at boot: but not on the first where there is another. */
void sched_guest_cpus(struct cpu_set *out);
void sched_spare_first_cpu(void);
/* Time that it spent halted or in its idle loop, and threads that it took from other CPUs. */
void sched_cpu_times(unsigned pcpu, uint64_t *idle_ns, uint64_t *steals);

#endif
