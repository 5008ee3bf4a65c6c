/*
 * The real machine's devices, brought up in two steps. The order at boot (core/main.c), and why:
 *
 *   percpu_init_boot()        x86/percpu.h  GS base and canary: the first lock taken needs this_cpu()
 *   panic_init()              core/panic.h  exception hooks
 *   idt_init()                x86/idt.h     from here on a fault is a report and not a reset (loads GDT and TSS too)
 *   drivers_init_early(bi)                  serial port, polled; screen through the direct map; the log is visible
 *   cpu_init_boot()           x86/cpu.h     non-NULL: halt with that reason
 *   ... hostmap_init() ...
 *   cpu_init_this()           x86/cpu.h     WP, NX, SMEP, SMAP, XCR0: on our own tables only
 *   drivers_map_screen()                    the screen again: the window of drivers_init_early() went with the loader's tables
 *   ... frames ...
 *   drivers_init(bi)                        ACPI, interrupt controllers, clocks, timer, serial interrupts; panics with
 *                                           a named cause if the machine has no usable local APIC or reference clock
 *   sched_init() ...                        lapic_timer_set_handler(); interrupts on
 */
#ifndef HV_DRIVERS_INIT_H
#define HV_DRIVERS_INIT_H

#include "include/hv/types.h"

struct boot_info;

/* Before memory management; interrupts off. */
void drivers_init_early(const struct boot_info *bi);
/* After hostmap_init(), at once: until then the screen misses what is said. */
void drivers_map_screen(void);
/* When there are frames and stacks; interrupts off. */
void drivers_init(const struct boot_info *bi);
/* What a further CPU's local APIC is told about the machine: on that CPU. */
void drivers_init_cpu(void);
/* Console output: serial port and screen. Any context; nothing is translated. */
void drivers_console_write(const char *s, size_t len);
/* Switches to this baud rate, from the configuration. */
void drivers_set_baud(unsigned baud);

#endif
