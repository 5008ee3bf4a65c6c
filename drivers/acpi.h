/* What ACPI says about this machine, read once at boot. */
#ifndef HV_DRIVERS_ACPI_H
#define HV_DRIVERS_ACPI_H

#include "drivers/acpi_parse.h"

struct boot_info;

struct acpi_info {
    bool have_madt, have_fadt, have_s5, have_hpet, have_mcfg; /* false: absent or malformed; the field is then zero */
    struct acpi_madt madt;
    struct acpi_fadt fadt;
    struct acpi_s5 s5;
    struct acpi_hpet hpet;
    struct acpi_mcfg mcfg;
};

/* Logs what it finds and what is malformed. After hostmap_init(). False: no ACPI at all. */
bool acpi_init(const struct boot_info *bi);
const struct acpi_info *acpi(void);

/* One access of `bytes` (1, 2, 4) to a register that acpi_map_gas() accepted. */
struct acpi_register { uint8_t space; uint16_t port; volatile void *window; };
bool acpi_map_gas(const struct acpi_gas *g, struct acpi_register *out);
uint32_t acpi_read(const struct acpi_register *r, unsigned bytes);
void acpi_write(const struct acpi_register *r, unsigned bytes, uint32_t value);

#endif
