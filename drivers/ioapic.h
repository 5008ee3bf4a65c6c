/* I/O APICs: from interrupt lines (GSI) to vectors. */
#ifndef HV_DRIVERS_IOAPIC_H
#define HV_DRIVERS_IOAPIC_H

#include "include/hv/types.h"

struct acpi_madt;

/* Maps and masks all of them; `madt` NULL: assumes the one at the default address. False: none. */
bool ioapic_init(const struct acpi_madt *madt);
/* Routes `gsi` to `vector` on the CPU with that APIC id (below 256), unmasked. False: no such line. */
bool ioapic_route(uint32_t gsi, uint8_t vector, uint32_t apic_id, bool active_low, bool level);
/* An ISA interrupt with the MADT's override, else edge-triggered and active high. */
bool ioapic_route_isa(unsigned irq, uint8_t vector, uint32_t apic_id);

#endif
