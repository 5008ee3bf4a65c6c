/* Segments and the task-state segment of each CPU. */
#ifndef HV_X86_GDT_H
#define HV_X86_GDT_H

#include "include/hv/types.h"

struct percpu;

#define SELECTOR_CODE 0x08
#define SELECTOR_DATA 0x10
#define SELECTOR_TSS 0x18

/* Interrupt stack table slots (1-based in the TSS and the IDT). */
enum ist { IST_NMI = 1, IST_DF = 2, IST_MC = 3, IST_COUNT = 3 };

/* Builds this CPU's tables in its per-CPU area and loads them: the boot CPU gets one static stack for all IST slots. */
void gdt_init_boot(void);
/* A further CPU's (`area` is its own). Its IST stacks must have been set with gdt_set_ist() before. */
void gdt_load(struct percpu *area);
/* The stack [base, base + bytes) for one slot; takes effect at the next such exception. */
void gdt_set_ist(struct percpu *area, enum ist slot, void *base, size_t bytes);
/* The TSS selector is busy again and the limit is whole: after a VM exit on Intel. */
void gdt_reload_tss(struct percpu *area);

#endif
