/*
 * Where ACPI's root pointer is, if GRUB does not say: in UEFI's list of tables, or where a BIOS leaves it. All of this memory is
 * firmware's, and none of it is trusted to be what it should: nothing is read outside the places named here, and beyond our reach nothing.
 */
#include "boot/multiboot2_tags.h"

#include "lib/string.h"

#define EBDA_SEGMENT 0x40e      /* in the BIOS data area */
#define EBDA_BYTES 1024u
#define ROM_FIRST 0xe0000u
#define ROM_END 0x100000u
#define RSDP_BYTES 20u          /* of ACPI 1.0, which the first checksum covers */
#define MAX_TABLES 256u

static const uint8_t *at(uint64_t memory, uint64_t hpa) { return (const uint8_t *)(memory + hpa); }

/* ACPI 6.5, 5.2.5.1: on a 16-byte boundary. */
static uint64_t scan(uint64_t memory, uint64_t base, uint64_t end)
{
    for (uint64_t hpa = ALIGN_UP(base, 16u); hpa + RSDP_BYTES <= end; hpa += 16) {
        const uint8_t *p = at(memory, hpa);
        uint8_t sum = 0;
        for (unsigned n = 0; n < RSDP_BYTES; n++)
            sum = (uint8_t)(sum + p[n]);
        if (sum == 0 && memcmp(p, "RSD PTR ", 8) == 0)
            return hpa;
    }
    return 0;
}

/* ACPI 6.5, 5.2.5.1: in the first KiB of the EBDA or in the BIOS's ROM. */
static uint64_t scan_bios(uint64_t memory)
{
    uint16_t segment;
    memcpy(&segment, at(memory, EBDA_SEGMENT), sizeof(segment));
    uint64_t ebda = (uint64_t)segment << 4, rsdp = ebda ? scan(memory, ebda, ebda + EBDA_BYTES) : 0;
    return rsdp ? rsdp : scan(memory, ROM_FIRST, ROM_END);
}

/* The table's offsets are UEFI 2.10's, 4.3 and 4.6. ACPI 2.0's entry is preferred wherever it stands: its pointer has an XSDT. */
static uint64_t scan_efi(uint64_t memory, uint64_t system_table)
{
    static const uint8_t acpi_2[16] = {0x71, 0xe8, 0x68, 0x88, 0xf1, 0xe4, 0xd3, 0x11, 0xbc, 0x22, 0x00, 0x80, 0xc7, 0x3c, 0x88, 0x81};
    static const uint8_t acpi_1[16] = {0x30, 0x2d, 0x9d, 0xeb, 0x88, 0x2d, 0xd3, 0x11, 0x9a, 0x16, 0x00, 0x90, 0x27, 0x3f, 0xc1, 0x4d};
    struct { uint64_t count, tables; } st;
    uint64_t rsdp = 0;
    if (system_table >= MB2_REACH - PAGE_SIZE)
        return 0;
    memcpy(&st, at(memory, system_table + 104), sizeof(st));
    for (uint64_t i = 0; i < MIN(st.count, MAX_TABLES) && st.tables < MB2_REACH - PAGE_SIZE * 2; i++) {
        const uint8_t *entry = at(memory, st.tables + i * 24);
        if (memcmp(entry, acpi_2, 16) != 0 && (rsdp || memcmp(entry, acpi_1, 16) != 0))
            continue;
        memcpy(&rsdp, entry + 16, sizeof(rsdp));
        if (memcmp(entry, acpi_2, 16) == 0)
            break;
    }
    return rsdp;
}

uint64_t mb2_search_rsdp(uint64_t memory, uint64_t efi_system_table)
{
    return efi_system_table ? scan_efi(memory, efi_system_table) : scan_bios(memory);
}
