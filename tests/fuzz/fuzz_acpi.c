/* FUZZ-SOURCES: drivers/acpi_parse.c drivers/acpi_madt.c drivers/acpi_fadt.c */
/* Every ACPI decoder on arbitrary bytes: no access out of bounds, no result beyond the limits that users index by. */
#include <stdlib.h>
#include "drivers/acpi_parse.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct acpi_madt madt;
    struct acpi_rsdp rsdp;
    struct acpi_fadt fadt;
    struct acpi_hpet hpet;
    struct acpi_mcfg mcfg;
    struct acpi_s5 s5;
    struct acpi_fault fault;

    acpi_decode_rsdp(data, size, &rsdp, &fault);
    acpi_check_table(data, size, NULL, &fault);
    for (uint32_t i = 0; i < acpi_root_count(size, 8); i++)
        acpi_root_entry(data, i, 8);
    if (acpi_decode_madt(data, size, &madt, &fault) &&
        (!madt.cpu_count || madt.cpu_count > ACPI_MAX_CPUS || madt.ioapic_count > ACPI_MAX_IOAPICS ||
         madt.nmi_count > ACPI_MAX_NMIS || madt.nmi_source_count > ARRAY_SIZE(madt.nmi_sources)))
        abort();
    acpi_decode_fadt(data, size, &fadt, &fault);
    acpi_decode_hpet(data, size, &hpet, &fault);
    if (acpi_decode_mcfg(data, size, &mcfg, &fault) && mcfg.count > ACPI_MAX_SEGMENTS)
        abort();
    if (acpi_find_s5(data, size, &s5) && (s5.slp_typ_a > 7 || s5.slp_typ_b > 7))
        abort();
    return 0;
}
