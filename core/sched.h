/* Between thread.c, waitq.c and timer.c only. */
#ifndef HV_CORE_SCHED_H
#define HV_CORE_SCHED_H

#include "core/thread.h"

/* BLOCKED -> RUNNABLE on some CPU's queue; anything else is left alone. Any context, no SCHED lock held. */
void thread_make_runnable(struct thread *t);
/* Gives up the CPU; the thread's state has been BLOCKED since it last ran unhindered. Interrupts on, no lock held. */
void thread_block_current(void);
void waitq_wake_all_locked(struct waitq *q);

/* Slices (runq.c) share the one hardware timer with the timer queue (timer.c). Interrupts off. */
uint64_t sched_slice_deadline(void);
void sched_check_slice(uint64_t now_ns);
void timer_slice_needed(void); /* interrupts off; any lock may be held */
size_t timer_cpu_bytes(void);
void timer_init_this_cpu(void *memory); /* timer_cpu_bytes(), zeroed */

#endif
