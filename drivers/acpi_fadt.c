/*
 * FADT: fixed hardware (ACPI 6.4, 5.2.9), and the value that switches the machine off, which only AML knows.
 *
 * The FADT grew with its revisions: a field exists if the table is long enough for it, and the 64-bit forms win over the
 * 32-bit ones where they are not zero.
 *
 * `_S5_` is found without an interpreter: by its name, preceded by NameOp and followed by a package whose every byte is
 * checked to be what the grammar (20.2.5.4) allows. A name that firmware computes would be missed: poweroff then says so.
 */
#include "drivers/acpi_parse.h"
#include "lib/string.h"

#define FLAG_TMR_VAL_EXT BIT64(8)
#define FLAG_RESET_REG_SUP BIT64(10)
#define FLAG_HW_REDUCED BIT64(20)

/* A generic address at `at`, if the table reaches that far and it is one we can access. */
static struct acpi_gas get_gas(const void *p, size_t len, size_t at)
{
    struct acpi_gas g = {0};
    if (len >= at + 12)
        g = (struct acpi_gas){(uint8_t)acpi_get(p, at, 1), (uint8_t)acpi_get(p, at + 1, 1), (uint8_t)acpi_get(p, at + 2, 1),
                              (uint8_t)acpi_get(p, at + 3, 1), acpi_get(p, at + 4, 8)};
    bool port = g.space == 1 && g.address <= 0xfffc, memory = g.space == 0 && g.address <= GENMASK64(51, 0) - PAGE_SIZE;
    return port || memory ? g : (struct acpi_gas){0};
}

/* The extended form at `x_at`, else the port at `at`. */
static struct acpi_gas get_block(const void *p, size_t len, size_t at, size_t x_at, uint8_t width)
{
    struct acpi_gas g = get_gas(p, len, x_at);
    uint64_t port = acpi_get(p, at, 4);
    if (!g.address && port && port <= 0xfffc)
        g = (struct acpi_gas){.space = 1, .width = width, .address = port};
    return g;
}

bool acpi_decode_fadt(const void *p, size_t len, struct acpi_fadt *out, struct acpi_fault *fault)
{
    if (len < 116)
        return acpi_fail(fault, "shorter than 116 bytes", 4);
    *out = (struct acpi_fadt){
        .dsdt_hpa = len >= 148 && acpi_get(p, 140, 8) ? acpi_get(p, 140, 8) : acpi_get(p, 40, 4),
        .sci_irq = (uint16_t)acpi_get(p, 46, 2), .smi_cmd = (uint32_t)acpi_get(p, 48, 4),
        .acpi_enable = (uint8_t)acpi_get(p, 52, 1), .century = (uint8_t)acpi_get(p, 108, 1),
        .boot_arch = (uint16_t)acpi_get(p, 109, 2), .flags = (uint32_t)acpi_get(p, 112, 4),
        .pm1a_cnt = get_block(p, len, 64, 172, 16), .pm1b_cnt = get_block(p, len, 68, 184, 16),
        .reset = get_gas(p, len, 116), .reset_value = len > 128 ? (uint8_t)acpi_get(p, 128, 1) : 0,
        .sleep_control = get_gas(p, len, 244),
    };
    out->hw_reduced = out->flags & FLAG_HW_REDUCED;
    out->pm_timer_32bit = out->flags & FLAG_TMR_VAL_EXT;
    out->has_reset = out->flags & FLAG_RESET_REG_SUP && len > 128 && out->reset.address;
    if (acpi_get(p, 91, 1) == 4 && !out->hw_reduced)
        out->pm_timer = get_block(p, len, 76, 208, 32);
    if (out->smi_cmd > 0xffff)
        return acpi_fail(fault, "SMI command port above 0xffff", 48);
    if (!out->dsdt_hpa)
        return acpi_fail(fault, "names no DSDT", 40);
    return true;
}

enum { AML_ZERO = 0x00, AML_ONE = 0x01, AML_NAME = 0x08, AML_BYTE = 0x0a, AML_WORD = 0x0b, AML_DWORD = 0x0c, AML_PACKAGE = 0x12,
       AML_ONES = 0xff };

/* An integer constant at *at (20.2.3); moves *at past it. */
static bool aml_integer(const uint8_t *aml, size_t end, size_t *at, uint64_t *value)
{
    if (*at >= end)
        return false;
    uint8_t op = aml[(*at)++];
    size_t bytes = op == AML_BYTE ? 1 : op == AML_WORD ? 2 : op == AML_DWORD ? 4 : 0;
    if (!bytes) {
        *value = op;
        return op == AML_ZERO || op == AML_ONE || op == AML_ONES;
    }
    if (end - *at < bytes)
        return false;
    *value = acpi_get(aml, *at, (unsigned)bytes);
    *at += bytes;
    return true;
}

/* PackageOp PkgLength NumElements elements, at `at`. PkgLength (20.2.4) counts from its own first byte. */
static bool aml_s5_package(const uint8_t *aml, size_t len, size_t at, struct acpi_s5 *out)
{
    if (len - at < 3 || aml[at] != AML_PACKAGE)
        return false;
    size_t start = ++at, extra = aml[at] >> 6, bytes = aml[at] & (extra ? 0x0f : 0x3f);
    at++;
    for (size_t i = 0; i < extra; i++, at++) {
        if (at >= len)
            return false;
        bytes |= (size_t)aml[at] << (4 + 8 * i);
    }
    if (bytes > len - start || start + bytes < at + 1)
        return false;
    size_t end = start + bytes;
    uint8_t elements = aml[at++];
    uint64_t a, b = 0;
    if (elements < 1 || elements > 4 || !aml_integer(aml, end, &at, &a) || (elements > 1 && !aml_integer(aml, end, &at, &b)))
        return false;
    *out = (struct acpi_s5){a & 7, b & 7};
    return true;
}

bool acpi_find_s5(const void *p, size_t len, struct acpi_s5 *out)
{
    const uint8_t *aml = p;
    for (size_t i = 1; i + 4 < len; i++) {
        bool named = aml[i - 1] == AML_NAME || (i >= 2 && aml[i - 1] == '\\' && aml[i - 2] == AML_NAME);
        if (named && !memcmp(aml + i, "_S5_", 4) && aml_s5_package(aml, len, i + 4, out))
            return true;
    }
    return false;
}
