/* Per-CPU data for host tests: a host thread is a CPU. */
#ifndef HV_X86_PERCPU_H
#define HV_X86_PERCPU_H
#include "include/hv/types.h"
#define MAX_PCPUS 256
enum percpu_slot { PERCPU_SCHED, PERCPU_TIMER, PERCPU_FRAMES, PERCPU_HVM, PERCPU_FPU, PERCPU_MM, PERCPU_STATS, PERCPU_SLOT_COUNT };
struct percpu { unsigned id; volatile bool need_resched; void *slot[PERCPU_SLOT_COUNT]; };
extern _Thread_local struct percpu host_percpu;
/* As on the machine, the compiler is not to reason about the address (with gcc 12, UBSan's check of it against NULL misfires otherwise). */
static inline struct percpu *this_cpu(void)
{
    struct percpu *p = &host_percpu;
    asm volatile("" : "+r"(p));
    return p;
}
static inline unsigned cpu_id(void) { return host_percpu.id; }
/* Of a test that wants them. */
unsigned cpu_count(void);
struct percpu *percpu_of(unsigned id);
#endif
