/* Calls on other CPUs. */
#ifndef HV_CORE_IPI_H
#define HV_CORE_IPI_H
#include "include/hv/types.h"
/* Runs fn(arg) in interrupt context on every other CPU that runs threads; returns when all have. Interrupts on,
 * no lock held that is ever taken with interrupts off. fn posts, reads or invalidates: it takes no lock. */
void cpu_call_others(void (*fn)(void *arg), void *arg);
void ipi_init(void); /* boot CPU, once */
#endif
