/* This CPU's local APIC: set-up, end of interrupt, inter-processor interrupts and the one hardware timer. */
#ifndef HV_X86_APIC_H
#define HV_X86_APIC_H

#include "include/hv/types.h"

/* Where the xAPIC page is (MSR_APIC_BASE), for the caller to map; 0: we run in x2APIC mode and need no window. */
uint64_t lapic_window_hpa(void);
/* Masks the 8259s, takes over the local APIC of this CPU (x2APIC where there is one). `window`: the mapped xAPIC page,
 * unused in x2APIC mode. Boot CPU. False: no usable local APIC. */
bool lapic_init(volatile void *window);
/* LVT set-up on a further CPU, after lapic_init() on the first. */
void lapic_init_this(void);
/* Which of the two inputs carries NMI, where the MADT says other than LINT1, edge, active high. This CPU. */
void lapic_set_nmi_input(unsigned lint, bool active_low, bool level);
bool lapic_is_x2apic(void);
uint32_t lapic_id(void);
void lapic_eoi(void);
/* Fixed interrupt `vector` to the CPU with that APIC id. Any context. */
void lapic_send_ipi(uint32_t apic_id, uint8_t vector);
/* Full command word without destination (INIT, SIPI, NMI: include/hw/apic.h). */
void lapic_send_command(uint32_t apic_id, uint32_t icr_low);

/* Measures the timer's frequency against the TSC (calibrated before), or finds TSC deadline mode. False: it does not run. */
bool lapic_timer_init(void);
/* Called in interrupt context (interrupts off) at each expiry, on the CPU that armed it. */
/* The same on a further CPU. */
void lapic_timer_init_this(void);
void lapic_timer_set_handler(void (*fn)(void));
/* One shot at or after that TSC value on this CPU; replaces what was armed. A deadline in the past fires at once; a very
 * far one may fire early (32-bit counter): the handler looks at the time and arms again. Interrupts off or pinned. */
void lapic_timer_arm_tsc(uint64_t tsc_deadline);
void lapic_timer_stop(void);
uint64_t lapic_timer_hz(void);   /* after the divider; 0 in TSC deadline mode */

#endif
