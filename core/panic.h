/* How a fatal error is shown. panic() itself is declared in core/log.h. */
#ifndef HV_CORE_PANIC_H
#define HV_CORE_PANIC_H

#include "include/hv/types.h"

struct trap_frame;

/* Installs the exception and NMI hooks of x86/idt.h. Once per boot, before idt_init(). */
void panic_init(void);
/* Adds a place that shows a panic's text (at most four): must work with any lock held, and never block. */
void panic_add_output(void (*write)(const char *s, size_t len));
/* panic() with an exception's registers. */
NORETURN void panic_trap(const struct trap_frame *f);
bool panic_in_progress(void);

#endif
