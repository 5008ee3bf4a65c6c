/*
 * How long interrupts are off, in debug builds: cli(), sti() and those who build on them (x86/cpu.h) say when it begins and when it ends.
 *
 * It belongs to the CPU, not to the code: a thread that turns them off and gives the CPU away is followed by one that turns them on. So a CPU has
 * one beginning, of the outermost section, and whoever ends it reports it under the name of who began. Interrupts' handlers are not in here:
 * the CPU turned interrupts off for them, and idt.c times them as a whole.
 */
#include "x86/cpu.h"
#include "x86/percpu.h"

#if IRQS_OFF_TIMED
static irqs_off_fn *report;

void irqs_off_set_report(irqs_off_fn *fn) { report = fn; }

void irqs_off_begin(void)
{
    struct percpu *cpu = this_cpu();
    cpu->irqs_off_name = "irqs";
    cpu->irqs_off_pc = __builtin_return_address(0);
    cpu->irqs_off_tsc = rdtsc();
}

void irqs_off_named(const char *name, const void *pc)
{
    this_cpu()->irqs_off_name = name;
    this_cpu()->irqs_off_pc = pc;
}

void irqs_off_end(void)
{
    struct percpu *cpu = this_cpu();
    uint64_t begun = cpu->irqs_off_tsc;
    cpu->irqs_off_tsc = 0; /* first: at the very start of a CPU nobody has begun */
    if (begun && report)
        report(cpu->irqs_off_name, cpu->irqs_off_pc, rdtsc() - begun);
}
#endif
