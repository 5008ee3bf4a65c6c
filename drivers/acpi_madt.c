/*
 * MADT: processors and interrupt controllers (ACPI 6.4, 5.2.12).
 *
 * A list of typed records. A record that is too short for its type, or that leaves the table, makes the whole table malformed:
 * after it nothing can be told apart. Unknown types are skipped by their length.
 */
#include "drivers/acpi_parse.h"
#include "lib/string.h"

enum {
    MADT_LAPIC = 0, MADT_IOAPIC = 1, MADT_OVERRIDE = 2, MADT_NMI_SOURCE = 3, MADT_LAPIC_NMI = 4, MADT_LAPIC_ADDRESS = 5,
    MADT_X2APIC = 9, MADT_X2APIC_NMI = 10,
};

static const uint8_t record_bytes[] = {
    [MADT_LAPIC] = 8, [MADT_IOAPIC] = 12, [MADT_OVERRIDE] = 10, [MADT_NMI_SOURCE] = 8, [MADT_LAPIC_NMI] = 6,
    [MADT_LAPIC_ADDRESS] = 12, [MADT_X2APIC] = 16, [MADT_X2APIC_NMI] = 12,
};

/* A CPU may have both kinds of record; the first one counts. Neither enabled nor able to become so: a hole in the list. */
static void add_cpu(struct acpi_madt *m, uint32_t apic_id, uint32_t uid, uint32_t flags, uint32_t broadcast)
{
    if (!(flags & 3) || apic_id == broadcast)
        return;
    for (uint32_t i = 0; i < m->cpu_count; i++)
        if (m->cpus[i].apic_id == apic_id)
            return;
    if (m->cpu_count == ACPI_MAX_CPUS) {
        m->cpus_ignored++;
        return;
    }
    m->cpus[m->cpu_count].apic_id = apic_id;
    m->cpus[m->cpu_count].uid = uid;
    m->cpus[m->cpu_count].enabled = flags & 1;
    m->cpus[m->cpu_count++].online_capable = flags & 2;
}

static const char *add_ioapic(struct acpi_madt *m, const uint8_t *r)
{
    uint64_t hpa = acpi_get(r, 4, 4);
    uint32_t gsi_base = (uint32_t)acpi_get(r, 8, 4);
    if (!hpa || hpa % 16)
        return "impossible I/O APIC address";
    if (gsi_base > UINT32_MAX - 256)
        return "impossible interrupt base of an I/O APIC";
    if (m->ioapic_count == ACPI_MAX_IOAPICS)
        return "too many I/O APICs";
    m->ioapics[m->ioapic_count].id = r[2];
    m->ioapics[m->ioapic_count].hpa = hpa;
    m->ioapics[m->ioapic_count++].gsi_base = gsi_base;
    return NULL;
}

static const char *bad_flags(uint16_t flags)
{
    return ACPI_POLARITY(flags) == 2 || ACPI_TRIGGER(flags) == 2 ? "reserved polarity or trigger" : NULL;
}

static const char *add_override(struct acpi_madt *m, const uint8_t *r)
{
    uint16_t flags = (uint16_t)acpi_get(r, 8, 2);
    if (r[2] != 0 || r[3] > 15)
        return "override of something that is not an ISA interrupt";
    if (bad_flags(flags))
        return bad_flags(flags);
    m->overrides[r[3]].present = true;
    m->overrides[r[3]].gsi = (uint32_t)acpi_get(r, 4, 4);
    m->overrides[r[3]].flags = flags;
    return NULL;
}

static const char *add_nmi(struct acpi_madt *m, uint32_t uid, uint16_t flags, uint8_t lint)
{
    if (lint > 1)
        return "NMI on an input that local APICs do not have";
    if (bad_flags(flags))
        return bad_flags(flags);
    if (m->nmi_count == ACPI_MAX_NMIS)
        return "too many NMI records";
    m->nmis[m->nmi_count].uid = uid;
    m->nmis[m->nmi_count].flags = flags;
    m->nmis[m->nmi_count++].lint = lint;
    return NULL;
}

static const char *add_nmi_source(struct acpi_madt *m, const uint8_t *r)
{
    if (m->nmi_source_count == ARRAY_SIZE(m->nmi_sources))
        return "too many NMI sources";
    m->nmi_sources[m->nmi_source_count].flags = (uint16_t)acpi_get(r, 2, 2);
    m->nmi_sources[m->nmi_source_count++].gsi = (uint32_t)acpi_get(r, 4, 4);
    return NULL;
}

/* NULL: fine. */
static const char *add_record(struct acpi_madt *m, const uint8_t *r)
{
    switch (r[0]) {
    case MADT_LAPIC:
        add_cpu(m, r[3], r[2], (uint32_t)acpi_get(r, 4, 4), 0xff);
        return NULL;
    case MADT_X2APIC:
        add_cpu(m, (uint32_t)acpi_get(r, 4, 4), (uint32_t)acpi_get(r, 12, 4), (uint32_t)acpi_get(r, 8, 4), UINT32_MAX);
        return NULL;
    case MADT_IOAPIC:
        return add_ioapic(m, r);
    case MADT_OVERRIDE:
        return add_override(m, r);
    case MADT_NMI_SOURCE:
        return add_nmi_source(m, r);
    case MADT_LAPIC_NMI:
        return add_nmi(m, r[2] == 0xff ? ACPI_ALL_CPUS : r[2], (uint16_t)acpi_get(r, 3, 2), r[5]);
    case MADT_X2APIC_NMI:
        return add_nmi(m, (uint32_t)acpi_get(r, 4, 4), (uint16_t)acpi_get(r, 2, 2), r[8]);
    case MADT_LAPIC_ADDRESS:
        m->lapic_hpa = acpi_get(r, 4, 8);
        return NULL;
    default:
        return NULL;
    }
}

bool acpi_decode_madt(const void *p, size_t len, struct acpi_madt *out, struct acpi_fault *fault)
{
    const uint8_t *bytes = p;
    if (len < 44)
        return acpi_fail(fault, "shorter than 44 bytes", 4);
    memset(out, 0, sizeof(*out));
    out->lapic_hpa = acpi_get(p, 36, 4);
    out->has_8259 = acpi_get(p, 40, 4) & 1;
    for (size_t at = 44; at < len; at += bytes[at + 1]) {
        if (len - at < 2 || bytes[at + 1] < 2 || bytes[at + 1] > len - at)
            return acpi_fail(fault, "record leaves the table", at);
        uint8_t type = bytes[at];
        if (type < ARRAY_SIZE(record_bytes) && bytes[at + 1] < record_bytes[type])
            return acpi_fail(fault, "record is too short for its type", at);
        const char *wrong = add_record(out, bytes + at);
        if (wrong)
            return acpi_fail(fault, wrong, at);
    }
    return out->cpu_count ? true : acpi_fail(fault, "names no usable processor", 44);
}
