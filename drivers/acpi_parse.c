/* Root structures and the small tables. See acpi_parse.h for the rules. */
#include "drivers/acpi_parse.h"
#include "lib/string.h"

static uint8_t sum(const void *p, size_t len)
{
    const uint8_t *b = p;
    uint8_t s = 0;
    for (size_t i = 0; i < len; i++)
        s = (uint8_t)(s + b[i]);
    return s;
}

bool acpi_decode_rsdp(const void *p, size_t len, struct acpi_rsdp *out, struct acpi_fault *fault)
{
    if (len < 20)
        return acpi_fail(fault, "shorter than 20 bytes", 0);
    if (memcmp(p, "RSD PTR ", 8))
        return acpi_fail(fault, "signature is not \"RSD PTR \"", 0);
    if (sum(p, 20))
        return acpi_fail(fault, "wrong checksum", 8);
    *out = (struct acpi_rsdp){.revision = (uint8_t)acpi_get(p, 15, 1), .rsdt_hpa = acpi_get(p, 16, 4)};
    if (out->revision >= 2) {
        if (len < 36 || acpi_get(p, 20, 4) < 36 || acpi_get(p, 20, 4) > len)
            return acpi_fail(fault, "revision 2 with an impossible length", 20);
        if (sum(p, acpi_get(p, 20, 4)))
            return acpi_fail(fault, "wrong extended checksum", 32);
        out->xsdt_hpa = acpi_get(p, 24, 8);
    }
    if (!out->rsdt_hpa && !out->xsdt_hpa)
        return acpi_fail(fault, "names neither RSDT nor XSDT", 16);
    return true;
}

bool acpi_decode_length(const void *p, const char *sig, uint32_t *bytes, struct acpi_fault *fault)
{
    *bytes = (uint32_t)acpi_get(p, 4, 4);
    if (sig && memcmp(p, sig, 4))
        return acpi_fail(fault, "another signature", 0);
    if (*bytes < ACPI_HEADER_BYTES || *bytes > ACPI_TABLE_MAX)
        return acpi_fail(fault, "impossible length", 4);
    return true;
}

bool acpi_check_table(const void *p, size_t len, const char *sig, struct acpi_fault *fault)
{
    uint32_t bytes;
    if (len < ACPI_HEADER_BYTES)
        return acpi_fail(fault, "shorter than a header", 0);
    if (!acpi_decode_length(p, sig, &bytes, fault))
        return false;
    if (bytes > len)
        return acpi_fail(fault, "extends past readable memory", 4);
    return sum(p, bytes) ? acpi_fail(fault, "wrong checksum", 9) : true;
}

uint32_t acpi_root_count(size_t len, unsigned entry_bytes)
{
    return len < ACPI_HEADER_BYTES ? 0 : (uint32_t)((len - ACPI_HEADER_BYTES) / entry_bytes);
}

uint64_t acpi_root_entry(const void *p, uint32_t i, unsigned entry_bytes)
{
    return acpi_get(p, ACPI_HEADER_BYTES + (size_t)i * entry_bytes, entry_bytes);
}

bool acpi_decode_hpet(const void *p, size_t len, struct acpi_hpet *out, struct acpi_fault *fault)
{
    if (len < 56)
        return acpi_fail(fault, "shorter than 56 bytes", 4);
    if (acpi_get(p, 40, 1) != 0)
        return acpi_fail(fault, "registers are not in memory", 40);
    *out = (struct acpi_hpet){.block_id = (uint32_t)acpi_get(p, 36, 4), .hpa = acpi_get(p, 44, 8),
                              .number = (uint8_t)acpi_get(p, 52, 1), .min_tick = (uint16_t)acpi_get(p, 53, 2)};
    if (!out->hpa || out->hpa % 8 || out->hpa > GENMASK64(51, 0) - PAGE_SIZE)
        return acpi_fail(fault, "impossible register address", 44);
    return true;
}

bool acpi_decode_mcfg(const void *p, size_t len, struct acpi_mcfg *out, struct acpi_fault *fault)
{
    const size_t first = 44, entry = 16;
    if (len < first)
        return acpi_fail(fault, "shorter than 44 bytes", 4);
    *out = (struct acpi_mcfg){0};
    for (size_t at = first; at + entry <= len; at += entry) {
        uint64_t hpa = acpi_get(p, at, 8);
        uint8_t bus_first = (uint8_t)acpi_get(p, at + 10, 1), bus_last = (uint8_t)acpi_get(p, at + 11, 1);
        if (!hpa || hpa % MIB(1) || hpa > GENMASK64(51, 0) - MIB(256))
            return acpi_fail(fault, "impossible base address", at);
        if (bus_first > bus_last)
            return acpi_fail(fault, "first bus above last bus", at + 10);
        if (out->count == ACPI_MAX_SEGMENTS)
            return acpi_fail(fault, "too many segments", at);
        out->segments[out->count].hpa = hpa;
        out->segments[out->count].segment = (uint16_t)acpi_get(p, at + 8, 2);
        out->segments[out->count].bus_first = bus_first;
        out->segments[out->count++].bus_last = bus_last;
    }
    return out->count ? true : acpi_fail(fault, "no entries", first);
}
