/* The machine's other CPUs. */
#ifndef HV_DRIVERS_SMP_H
#define HV_DRIVERS_SMP_H
#include "include/hv/types.h"
/* Starts every CPU that ACPI lists, one after the other. Each gets its own tables, stacks, magazines and clock check, then calls
 * ready(&why), which may refuse it, then runs threads. One that does not answer, or is refused, is reported and left out. A thread, once. */
void smp_start_all(bool (*ready)(const char **why));
/* Before the scheduler, on the boot CPU: keeps pages below 1 MiB for them. */
void smp_reserve_low_memory(void);
#endif
