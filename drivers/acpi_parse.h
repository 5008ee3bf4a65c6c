/*
 * ACPI tables as bytes: decoders with no side effects, used by drivers/acpi.c, the unit tests and the fuzzer.
 *
 * Firmware's tables are untrusted: each decoder takes what may be read ([p, p + len)), checks before it reads, and either
 * fills *out completely or says what was wrong at which offset. Multi-byte fields are unaligned and little-endian.
 * Sections are those of the ACPI specification 6.4.
 */
#ifndef HV_DRIVERS_ACPI_PARSE_H
#define HV_DRIVERS_ACPI_PARSE_H

#include "include/hv/types.h"

#define ACPI_HEADER_BYTES 36u
#define ACPI_RSDP_BYTES 36u      /* enough for every revision */
#define ACPI_TABLE_MAX MIB(1)    /* larger is believed to be garbage */
#define ACPI_MAX_CPUS 256
#define ACPI_MAX_IOAPICS 16
#define ACPI_MAX_NMIS 64
#define ACPI_MAX_SEGMENTS 16

struct acpi_fault { const char *what; uint32_t offset; };

struct acpi_rsdp { uint8_t revision; uint64_t rsdt_hpa, xsdt_hpa; /* 0: none */ };
/* 5.2.5.3; len >= 20. */
bool acpi_decode_rsdp(const void *p, size_t len, struct acpi_rsdp *out, struct acpi_fault *fault);

/* The length that the header at p claims (p has ACPI_HEADER_BYTES). False: not this signature, or absurd. sig NULL: any. */
bool acpi_decode_length(const void *p, const char *sig, uint32_t *bytes, struct acpi_fault *fault);
/* 5.2.6: signature, length, checksum of a whole table. */
bool acpi_check_table(const void *p, size_t len, const char *sig, struct acpi_fault *fault);
/* Entries of a checked RSDT (entry_bytes 4) or XSDT (8). */
uint32_t acpi_root_count(size_t len, unsigned entry_bytes);
uint64_t acpi_root_entry(const void *p, uint32_t i, unsigned entry_bytes);

/* 5.2.12 */
#define ACPI_POLARITY(flags) ((flags) & 3)       /* 0: as the bus, 1: high, 3: low */
#define ACPI_TRIGGER(flags) ((flags) >> 2 & 3)   /* 0: as the bus, 1: edge, 3: level */
#define ACPI_ALL_CPUS UINT32_MAX
struct acpi_madt {
    uint64_t lapic_hpa;
    bool has_8259;
    uint32_t cpu_count, cpus_ignored, ioapic_count, nmi_count, nmi_source_count;
    struct { uint32_t apic_id, uid; bool enabled, online_capable; } cpus[ACPI_MAX_CPUS];
    struct { uint8_t id; uint64_t hpa; uint32_t gsi_base; } ioapics[ACPI_MAX_IOAPICS];
    struct { bool present; uint32_t gsi; uint16_t flags; } overrides[16];       /* by ISA interrupt */
    struct { uint32_t uid; uint16_t flags; uint8_t lint; } nmis[ACPI_MAX_NMIS]; /* uid ACPI_ALL_CPUS: all */
    struct { uint32_t gsi; uint16_t flags; } nmi_sources[16];
};
bool acpi_decode_madt(const void *p, size_t len, struct acpi_madt *out, struct acpi_fault *fault);

/* 5.2.3.2: a register anywhere. space 0: memory, 1: I/O port. address 0: absent. */
struct acpi_gas { uint8_t space, width, offset, access; uint64_t address; };

/* 5.2.9 */
struct acpi_fadt {
    uint64_t dsdt_hpa;
    uint32_t smi_cmd, flags;
    uint8_t acpi_enable, century, reset_value;
    bool hw_reduced, has_reset, pm_timer_32bit;
    uint16_t sci_irq, boot_arch;
    struct acpi_gas pm1a_cnt, pm1b_cnt, pm_timer, reset, sleep_control;
};
bool acpi_decode_fadt(const void *p, size_t len, struct acpi_fadt *out, struct acpi_fault *fault);

/* 7.4.2: the values that SLP_TYP takes for S5, from `_S5_` in AML. False: no well-formed one. */
struct acpi_s5 { uint8_t slp_typ_a, slp_typ_b; };
bool acpi_find_s5(const void *aml, size_t len, struct acpi_s5 *out);

/* IA-PC HPET specification 3.2.4 */
struct acpi_hpet { uint64_t hpa; uint32_t block_id; uint16_t min_tick; uint8_t number; };
bool acpi_decode_hpet(const void *p, size_t len, struct acpi_hpet *out, struct acpi_fault *fault);

/* PCI firmware specification 4.1.2 */
struct acpi_mcfg {
    uint32_t count;
    struct { uint64_t hpa; uint16_t segment; uint8_t bus_first, bus_last; } segments[ACPI_MAX_SEGMENTS];
};
bool acpi_decode_mcfg(const void *p, size_t len, struct acpi_mcfg *out, struct acpi_fault *fault);

/* ---- for the decoders ------------------------------------------------------------------------------------- */

static inline uint64_t acpi_get(const void *p, size_t offset, unsigned bytes)
{
    const uint8_t *b = (const uint8_t *)p + offset;
    uint64_t v = 0;
    for (unsigned i = 0; i < bytes; i++)
        v |= (uint64_t)b[i] << 8 * i;
    return v;
}
static inline bool acpi_fail(struct acpi_fault *fault, const char *what, size_t offset)
{
    *fault = (struct acpi_fault){what, (uint32_t)offset};
    return false;
}

#endif
