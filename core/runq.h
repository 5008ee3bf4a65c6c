/*
 * The run queue of one CPU, between thread.c (threads and switching) and runq.c (who runs where and when).
 *
 * A queue's lock is held for a few instructions, with interrupts off, and never two at once: a thread that moves between queues is on
 * neither for a moment, which is safe because its state says RUNNABLE and so nobody else queues it.
 */
#ifndef HV_CORE_RUNQ_H
#define HV_CORE_RUNQ_H

#include "core/sched.h"
#include "x86/percpu.h"

#define NOTHING_RUNS (-1)      /* in the place of a priority: the idle loop */

struct run_queue {
    struct spinlock lock;
    unsigned id;
    struct list_head ready[THREAD_PRIO_MAX]; /* vCPUs by virtual time, others in turn */
    volatile uint32_t ready_mask;  /* bit per priority with a ready thread; (a) for readers elsewhere */
    volatile int current_prio;     /* (a) of what runs */
    struct thread *current;        /* under the lock, hence never a freed one */
    struct thread *buddy;          /* a vCPU here that another one has given way to: next, if that is not too unfair */
    volatile uint64_t ready_weight, current_weight; /* (a) of the vCPUs in ready[], of what runs if that is one */
    volatile uint64_t head_vtime;  /* (a) of the first vCPU in ready[] */
    volatile uint64_t vclock;      /* (a) virtual time has come here so far: the least of its vCPUs', never backwards */
    uint64_t charged_ns;           /* until when `current` has paid for its time */
    volatile bool announced_idle;  /* (a) halted, or about to be, and not called yet: an interrupt makes it look around */
    volatile bool called;          /* (a) to look around, by somebody who counts on it, and has not yet */
    volatile bool unwatched;       /* (a) no timer will look at `current`, as it had no rival: a new one must interrupt */
    struct thread *previous, *outcast, *dying; /* for runq_finish(): whom the CPU has just left; it must not stay here; it is dead */
    uint64_t idle_ns, steals;
    struct thread idle;            /* what runs before and when nothing does */
} __attribute__((aligned(64)));

/* NULL: that CPU runs no threads. */
struct run_queue *runq_of(unsigned pcpu);
void runq_init(struct run_queue *q, unsigned pcpu, void *stack_base, size_t stack_bytes);
void runq_publish(struct run_queue *q);
/* RUNNABLE, on no queue, perhaps still on its CPU: puts it where it fits best and has that CPU notice. */
void runq_place(struct thread *t);
/* Interrupts off, this CPU's queue: pays for the time of the current thread, queues it again if `again`, and makes the next one current: from
 * here, or from a CPU where it has waited too long. */
struct thread *runq_next(struct run_queue *q, bool again);
/* The idle loop, interrupts off: something to run, here or elsewhere? If not, everybody knows before this returns that the CPU is idle. */
bool runq_has_work(struct run_queue *q);
/* After a switch, on the new stack: the previous thread may run elsewhere from now on. Also if it was chosen again. */
void runq_finish(struct run_queue *q);

#endif
