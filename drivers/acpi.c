/*
 * Finding the tables. A physical address from a table is followed only into memory that the boot map knows to be RAM or
 * reserved by firmware; a table is copied from nowhere and kept nowhere: the decoders take out what we need, and
 * the memory may be reclaimed afterwards.
 */
#include "drivers/acpi.h"
#include "core/log.h"
#include "include/abi/boot_info.h"
#include "lib/string.h"
#include "mm/mm.h"
#include "x86/cpu.h"

#define ROOT_ENTRIES_MAX 256u

static struct acpi_info info;
static const struct boot_info *boot;

const struct acpi_info *acpi(void) { return &info; }

/* Bytes from `hpa` on that lie in ranges which `wanted` (a mask of memory types) allows, following adjacent ranges. */
static uint64_t readable_bytes(uint64_t hpa, uint32_t wanted)
{
    uint64_t end = hpa;
    for (uint32_t i = 0; i < boot->mem_count && i < BOOT_MAX_MEM_RANGES; i++) { /* sorted */
        const struct boot_mem_range *r = &boot->mem[i];
        if (r->type < 32 && (wanted & 1u << r->type) && r->base <= end && end - r->base < r->size)
            end = r->base + r->size;
    }
    return end - hpa;
}

/* `len` bytes there as memory, or NULL. RAM is in the direct map (mm/hostmap.c); what firmware keeps is not. */
static const void *map_bytes(uint64_t hpa, uint64_t len)
{
    const uint32_t ram = 1u << BOOT_MEM_USABLE | 1u << BOOT_MEM_LOADER | 1u << BOOT_MEM_ACPI_RECLAIM | 1u << BOOT_MEM_ACPI_NVS;
    const uint32_t firmware = ram | 1u << BOOT_MEM_RUNTIME | 1u << BOOT_MEM_RESERVED;
    if (readable_bytes(hpa, ram) >= len)
        return (const void *)(HV_DIRECTMAP_BASE + hpa);
    if (readable_bytes(hpa, firmware) >= len)
        return map_mmio(hpa, len);
    return NULL;
}

/* A whole, checked table at `hpa`, or NULL. With sig NULL any will do. `what` names who refers to it. */
static const void *get_table(uint64_t hpa, const char *sig, const char *what, uint32_t *bytes)
{
    struct acpi_fault fault;
    const void *header = map_bytes(hpa, ACPI_HEADER_BYTES);
    if (!header) {
        log_error("acpi: %s at %#lx is not in memory", what, hpa);
        return NULL;
    }
    if (!acpi_decode_length(header, sig, bytes, &fault)) {
        log_error("acpi: %s at %#lx offset %u: %s", what, hpa, fault.offset, fault.what);
        return NULL;
    }
    const void *table = map_bytes(hpa, *bytes);
    if (!table)
        log_error("acpi: %s at %#lx: its %u bytes are not all in memory", what, hpa, *bytes);
    else if (!acpi_check_table(table, *bytes, sig, &fault)) {
        log_error("acpi: %s at %#lx offset %u: %s", what, hpa, fault.offset, fault.what);
        table = NULL;
    }
    return table;
}

/* The table has passed its checksum; the decoder's verdict decides whether it exists for us. */
#define DECODE(table, bytes, hpa, field)                                                                   \
    do {                                                                                                   \
        struct acpi_fault fault_;                                                                          \
        if (info.have_##field)                                                                             \
            log_warn("acpi: second " #field " at %#lx ignored", hpa);                                      \
        else if (!(info.have_##field = acpi_decode_##field(table, bytes, &info.field, &fault_))) {         \
            log_error("acpi: " #field " at %#lx offset %u: %s", hpa, fault_.offset, fault_.what);          \
            memset(&info.field, 0, sizeof(info.field));                                                    \
        }                                                                                                  \
    } while (0)

static void decode_table(uint64_t hpa, const void *table, uint32_t bytes)
{
    if (!memcmp(table, "APIC", 4))
        DECODE(table, bytes, hpa, madt);
    else if (!memcmp(table, "FACP", 4))
        DECODE(table, bytes, hpa, fadt);
    else if (!memcmp(table, "HPET", 4))
        DECODE(table, bytes, hpa, hpet);
    else if (!memcmp(table, "MCFG", 4))
        DECODE(table, bytes, hpa, mcfg);
    else if (!memcmp(table, "SSDT", 4) && !info.have_s5)
        info.have_s5 = acpi_find_s5((const uint8_t *)table + ACPI_HEADER_BYTES, bytes - ACPI_HEADER_BYTES, &info.s5);
}

static void walk_root(const void *root, uint32_t bytes, unsigned entry_bytes)
{
    char names[160] = "";
    size_t used = 0;
    uint32_t count = acpi_root_count(bytes, entry_bytes);
    if (count > ROOT_ENTRIES_MAX) {
        log_warn("acpi: root table has %u entries, %u are read", count, ROOT_ENTRIES_MAX);
        count = ROOT_ENTRIES_MAX;
    }
    for (uint32_t i = 0; i < count; i++) {
        uint64_t hpa = acpi_root_entry(root, i, entry_bytes);
        uint32_t table_bytes;
        char what[24];
        snprintf(what, sizeof(what), "table %u", i);
        const void *table = get_table(hpa, NULL, what, &table_bytes);
        if (!table)
            continue;
        if (used + 6 < sizeof(names))
            used += (size_t)snprintf(names + used, sizeof(names) - used, " %.4s", (const char *)table);
        decode_table(hpa, table, table_bytes);
    }
    log_info("acpi: %s%s", entry_bytes == 8 ? "XSDT:" : "RSDT:", names);
}

static bool find_root(const struct acpi_rsdp *rsdp)
{
    uint32_t bytes;
    const void *root = rsdp->xsdt_hpa ? get_table(rsdp->xsdt_hpa, "XSDT", "XSDT", &bytes) : NULL;
    if (root) {
        walk_root(root, bytes, 8);
        return true;
    }
    root = rsdp->rsdt_hpa ? get_table(rsdp->rsdt_hpa, "RSDT", "RSDT", &bytes) : NULL;
    if (root)
        walk_root(root, bytes, 4);
    return root;
}

static void find_s5(void)
{
    uint32_t bytes;
    const void *dsdt = get_table(info.fadt.dsdt_hpa, "DSDT", "DSDT", &bytes);
    if (dsdt && !info.have_s5)
        info.have_s5 = acpi_find_s5((const uint8_t *)dsdt + ACPI_HEADER_BYTES, bytes - ACPI_HEADER_BYTES, &info.s5);
}

bool acpi_init(const struct boot_info *bi)
{
    struct acpi_rsdp rsdp;
    struct acpi_fault fault;
    boot = bi;
    if (!bi->rsdp_hpa) {
        log_warn("acpi: firmware gave no RSDP");
        return false;
    }
    size_t len = ACPI_RSDP_BYTES;
    const void *p = map_bytes(bi->rsdp_hpa, len);
    if (!p)
        p = map_bytes(bi->rsdp_hpa, len = 20);
    if (!p) {
        log_error("acpi: RSDP at %#lx is not in memory", bi->rsdp_hpa);
        return false;
    }
    if (!acpi_decode_rsdp(p, len, &rsdp, &fault)) {
        log_error("acpi: RSDP at %#lx offset %u: %s", bi->rsdp_hpa, fault.offset, fault.what);
        return false;
    }
    if (!find_root(&rsdp))
        return false;
    if (info.have_fadt)
        find_s5();
    if (info.have_madt)
        log_info("acpi: %u CPUs, %u I/O APICs, local APIC at %#lx", info.madt.cpu_count, info.madt.ioapic_count, info.madt.lapic_hpa);
    boot = NULL; /* core releases boot_info's memory */
    return true;
}

/* ---- registers ----------------------------------------------------------------------------------------------- */

bool acpi_map_gas(const struct acpi_gas *g, struct acpi_register *out)
{
    *out = (struct acpi_register){.space = g->space, .port = (uint16_t)g->address};
    if (!g->address || g->space > 1)
        return false;
    if (g->space == 0)
        out->window = map_mmio(g->address, 4);
    return g->space == 1 || out->window;
}

uint32_t acpi_read(const struct acpi_register *r, unsigned bytes)
{
    if (r->space == 1)
        return bytes == 1 ? in8(r->port) : bytes == 2 ? in16(r->port) : in32(r->port);
    return bytes == 1 ? *(volatile uint8_t *)r->window : bytes == 2 ? *(volatile uint16_t *)r->window : *(volatile uint32_t *)r->window;
}

void acpi_write(const struct acpi_register *r, unsigned bytes, uint32_t value)
{
    if (r->space == 1 && bytes == 1)
        out8(r->port, (uint8_t)value);
    else if (r->space == 1 && bytes == 2)
        out16(r->port, (uint16_t)value);
    else if (r->space == 1)
        out32(r->port, value);
    else if (bytes == 1)
        *(volatile uint8_t *)r->window = (uint8_t)value;
    else if (bytes == 2)
        *(volatile uint16_t *)r->window = (uint16_t)value;
    else
        *(volatile uint32_t *)r->window = value;
}
