/* ACPI power-management timer (ACPI 6.4, 4.8.3.3): 3.579545 MHz, at least 24 bits, of which we use no more. */
#include "drivers/acpi.h"
#include "drivers/clocks.h"

static struct acpi_register timer;

static uint64_t pmtimer_read(void) { return acpi_read(&timer, 4) & 0xffffff; }

const struct ref_clock *pmtimer_init(const struct acpi_fadt *fadt)
{
    static const struct ref_clock clock = {.name = "ACPI PM timer", .read = pmtimer_read, .hz = 3579545, .bits = 24};
    return acpi_map_gas(&fadt->pm_timer, &timer) ? &clock : NULL;
}
