/* Ending it: reset and power-off of the real machine. */
#ifndef HV_DRIVERS_POWER_H
#define HV_DRIVERS_POWER_H

#include "include/hv/types.h"

/* Maps the registers that ACPI names; after acpi_init(). */
void power_init(void);
/* Serial output is flushed first. Any context. */
NORETURN void power_reboot(void);
/* Returns never; if the machine stays on, it says so and halts. */
NORETURN void power_off(void);

#endif
