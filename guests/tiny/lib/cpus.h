/* Several vCPUs in a tiny guest: starting them, and meeting. */
#ifndef HV_GUESTS_TINY_LIB_CPUS_H
#define HV_GUESTS_TINY_LIB_CPUS_H

#include "tiny.h"

enum { CPUS_MAX = 64, APIC_BASE = 0x1b, APIC_ID = 0x802, APIC_EOI = 0x80b, APIC_SVR = 0x80f, APIC_ICR = 0x830 };

uint64_t cpus_present(void);          /* by CPUID's topology leaf */
void apic_enable(void);               /* this vCPU's, in x2APIC mode */
/* Starts vCPUs 1 to total - 1; each calls entry(its number, by the order of arrival) on a stack of its own, with its APIC enabled, interrupts
 * off and the traps of tiny.h, and must not return. Returns when all are there. */
void cpus_start(uint64_t total, void (*entry)(uint64_t index));
void cpus_barrier(void);              /* of all that were started, and the first */

static inline void pause(void) { asm volatile("pause"); }
static inline uint64_t add(volatile uint64_t *p, uint64_t n) { return __atomic_fetch_add(p, n, __ATOMIC_SEQ_CST); }
static inline void send_ipi(uint64_t low, uint64_t dest) { wrmsr(APIC_ICR, dest << 32 | low); }

#endif
