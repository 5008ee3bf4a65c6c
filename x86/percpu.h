/*
 * Per-CPU data. GS base points at this CPU's area, whose first field points at itself: one load makes the address.
 *
 * GS base is ours whenever hypervisor code runs: the vendor code puts it back after every exit, before interrupts are
 * possible, so no entry path needs SWAPGS. Nothing here is locked: an area is written by its own CPU only, except what is
 * marked (a), atomic. A thread may move to another CPU when it blocks: do not keep the pointer across that.
 */
#ifndef HV_X86_PERCPU_H
#define HV_X86_PERCPU_H

#include "include/hv/types.h"

#define MAX_PCPUS 256
#define PERCPU_MAX_HELD 16

enum percpu_slot { /* one pointer for each subsystem that has per-CPU state of its own */
    PERCPU_SCHED, PERCPU_TIMER, PERCPU_FRAMES, PERCPU_HVM, PERCPU_FPU, PERCPU_MM, PERCPU_STATS,
    PERCPU_SLOT_COUNT
};

struct percpu {
    struct percpu *self;         /* offset 0: this_cpu() */
    void *current;               /* offset 8: core's struct thread */
    unsigned id, apic_id;        /* index from 0; the local APIC's number */
    volatile bool need_resched;  /* (a) set by interrupt handlers and other CPUs */
    volatile bool online;        /* (a) */
    uint8_t irq_nesting;         /* > 0: in an interrupt handler */
    uint8_t held_count;          /* core/lock.c: ranks of the spinlocks held, in order of acquisition */
    uint8_t held_ranks[PERCPU_MAX_HELD];
    const void *held_locks[PERCPU_MAX_HELD];
    const char *irqs_off_name;   /* irqs_off.c: since when interrupts are off, and by whom; 0: they are on, or nobody watches */
    const void *irqs_off_pc;
    uint64_t irqs_off_tsc;
    void *slot[PERCPU_SLOT_COUNT];
    uint64_t irq_count, spurious_count, nmi_count;
    const struct trap_frame *irq_frame; /* of the interrupt being handled; NULL outside handlers */
    void *ist_stack[3];          /* lowest byte of the stacks for NMI, #DF, #MC (gdt.c) */
    size_t ist_stack_bytes;
    uint64_t gdt[8];             /* gdt.c */
    uint32_t tss[26];
} __attribute__((aligned(64)));
_Static_assert(offsetof(struct percpu, self) == 0 && offsetof(struct percpu, current) == 8, "read with GS by assembly");

/* `volatile`, because a thread that blocked may be on another CPU the next time. */
static inline struct percpu *this_cpu(void)
{
    struct percpu *p;
    asm volatile("mov %%gs:0, %0" : "=r"(p));
    return p;
}

static inline unsigned cpu_id(void) { return this_cpu()->id; }

/* CPUs with an area: ids 0..cpu_count()-1. */
unsigned cpu_count(void);
struct percpu *percpu_of(unsigned id);

/* First thing in core_main: the boot CPU's area (static), GS base, and the stack protector's guard value. The caller must
 * not return (its own canary changes). */
void percpu_init_boot(void);
/* Announces another CPU's zeroed area (the caller allocated it); its id becomes cpu_count()-1. NULL area or too many: false. */
bool percpu_add(struct percpu *area, unsigned apic_id);
/* On that CPU: points GS base at its area. */
void percpu_install(struct percpu *area);

#endif
