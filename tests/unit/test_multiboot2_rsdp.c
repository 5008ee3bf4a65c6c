/* TEST-SOURCES: boot/multiboot2_rsdp.c */
/*
 * ACPI's root pointer where firmware leaves it. Physical memory is 4 GiB of addresses of which only those that a row fills may be read: a
 * look at any other place ends the test.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>
#include <sys/mman.h>
#include "boot/multiboot2_tags.h"

enum { EFI_1 = 1, EFI_2 = 2, EFI_OTHER = 3 };

static uint8_t *memory;

static void readable(uint64_t hpa, uint64_t bytes)
{
    assert_int_equal(mprotect(memory + (hpa & ~UINT64_C(4095)), (hpa % 4096 + bytes + 4095) & ~UINT64_C(4095), PROT_READ | PROT_WRITE), 0);
}

/* A machine with a BIOS: its data area, low memory up to 1 MiB; what lies above is not ours to look at. */
static int begin(void **state)
{
    memory = mmap(NULL, GIB(4), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_ptr_not_equal(memory, MAP_FAILED);
    readable(0, MIB(1));
    return 0;
}

static int end(void **state) { return munmap(memory, GIB(4)); }

static uint64_t search(uint64_t efi_system_table) { return mb2_search_rsdp((uintptr_t)memory, efi_system_table); }

/* Of ACPI 1.0: signature, checksum, and 11 bytes that are as they come. */
static void put_rsdp(uint64_t hpa)
{
    uint8_t *p = memory + hpa, sum = 0;
    memcpy(p, "RSD PTR ", 8);
    p[8] = 0;
    for (unsigned n = 9; n < 20; n++)
        p[n] = (uint8_t)(n * 37);
    for (unsigned n = 0; n < 20; n++)
        sum = (uint8_t)(sum + p[n]);
    p[8] = (uint8_t)-sum;
}

static void put_ebda(uint16_t segment) { memcpy(memory + 0x40e, &segment, 2); }

static void in_the_rom(void **state)
{
    assert_int_equal(search(0), 0);
    for (uint64_t hpa = 0xe0000; hpa < 0x100000; hpa += 16) {
        if (hpa + 20 > 0x100000)
            continue; /* does not fit */
        put_rsdp(hpa);
        assert_int_equal(search(0), hpa);
        memset(memory + hpa, 0, 20);
    }
    put_rsdp(0xf0000);
    put_rsdp(0xe8000);
    assert_int_equal(search(0), 0xe8000); /* the first */
    memset(memory, 0, MIB(1));
    put_rsdp(0xdfff0); /* below it */
    assert_int_equal(search(0), 0);
}

static void not_every_signature_is_one(void **state)
{
    for (unsigned n = 0; n < 20; n++) {
        put_rsdp(0xf0000);
        put_rsdp(0xf4000);
        memory[0xf0000 + n] ^= 0x10;
        assert_int_equal(search(0), 0xf4000); /* the damaged one is passed over */
    }
    memset(memory + 0xe0000, 0, 0x20000);
    put_rsdp(0xf0008); /* no 16-byte boundary */
    assert_int_equal(search(0), 0);
    memset(memory + 0xe0000, 0, 0x20000); /* a sum of 0 is no signature */
    assert_int_equal(search(0), 0);
}

static void in_the_ebda_before_the_rom(void **state)
{
    put_rsdp(0xf0000);
    put_ebda(0x9fc0);
    assert_int_equal(search(0), 0xf0000);
    for (uint64_t hpa = 0x9fc00; hpa < 0xa0000 - 16; hpa += 16) {
        put_rsdp(hpa);
        assert_int_equal(search(0), hpa);
        memory[hpa + 8]++;
        assert_int_equal(search(0), 0xf0000);
        memset(memory + hpa, 0, 20);
    }
    put_rsdp(0x9fc00 + 1024); /* after its first KiB */
    assert_int_equal(search(0), 0xf0000);
    memset(memory + 0x9fc00, 0, 0x500);
    put_ebda(0x9fc1);
    put_rsdp(0x9fc00); /* before it */
    assert_int_equal(search(0), 0xf0000);
}

/* No EBDA is segment 0; any other number is looked at, and be it nonsense, within the first MiB and its tail. */
static void whatever_the_ebdas_segment_is(void **state)
{
    readable(MIB(1), 4096);
    put_rsdp(0xf0000);
    put_rsdp(0x100);
    assert_int_equal(search(0), 0xf0000); /* not from 0 on */
    memset(memory, 0, 4096);
    for (unsigned segment = 1; segment < 0x10000; segment += 7) {
        put_ebda((uint16_t)segment);
        assert_int_equal(search(0), 0xf0000);
    }
}

/* ---- UEFI ------------------------------------------------------------------------------------------------------------------------ */

/* A system table at `st` with `count` entries at `tables`. */
static void put_system_table(uint64_t st, uint64_t tables, uint64_t count)
{
    readable(st, 120);
    memcpy(memory + st + 104, &count, 8);
    memcpy(memory + st + 112, &tables, 8);
}

/* GUIDs as in memory: the first three fields little-endian (UEFI 2.10, appendix A). */
static void put_entry(uint64_t tables, unsigned index, int what, uint64_t pointer)
{
    static const struct { uint32_t a; uint16_t b, c; uint8_t d[8]; } guids[] = {
        [EFI_1] = {0xeb9d2d30, 0x2d88, 0x11d3, {0x9a, 0x16, 0x00, 0x90, 0x27, 0x3f, 0xc1, 0x4d}},
        [EFI_2] = {0x8868e871, 0xe4f1, 0x11d3, {0xbc, 0x22, 0x00, 0x80, 0xc7, 0x3c, 0x88, 0x81}},
        [EFI_OTHER] = {0x8868e871, 0xe4f1, 0x11d3, {0xbc, 0x22, 0x00, 0x80, 0xc7, 0x3c, 0x88, 0x82}},
    };
    uint64_t at = tables + index * 24;
    readable(at, 24);
    memcpy(memory + at, &guids[what], 16);
    memcpy(memory + at + 16, &pointer, 8);
}

static void acpi_2_before_acpi_1(void **state)
{
    const uint64_t st = 0x7f000018, tables = 0x7f101004; /* UEFI aligns to 8, and we do not count on it */
    static const struct { int what[4]; uint64_t found; } rows[] = {
        {{EFI_OTHER, EFI_1, EFI_OTHER, EFI_OTHER}, 0x1001}, {{EFI_1, EFI_2, EFI_OTHER, EFI_OTHER}, 0x1001},
        {{EFI_2, EFI_1, EFI_OTHER, EFI_OTHER}, 0x1000}, {{EFI_OTHER, EFI_OTHER, EFI_1, EFI_1}, 0x1002},
        {{EFI_OTHER, EFI_2, EFI_2, EFI_OTHER}, 0x1001}, {{EFI_OTHER, EFI_OTHER, EFI_OTHER, EFI_OTHER}, 0},
        {{EFI_1, EFI_OTHER, EFI_OTHER, EFI_2}, 0x1003},
    };
    put_rsdp(0xf0000); /* what lies in a PC's ROM does not count there */
    put_ebda(0x9fc0);
    put_rsdp(0x9fc00);
    for (size_t n = 0; n < sizeof(rows) / sizeof(rows[0]); n++) {
        put_system_table(st, tables, 4);
        for (unsigned k = 0; k < 4; k++)
            put_entry(tables, k, rows[n].what[k], 0x1000 + k);
        assert_int_equal(search(st), rows[n].found);
    }
    put_entry(tables, 3, EFI_2, UINT64_C(0x123456789abcdef0)); /* may be above what we reach: core maps it */
    put_system_table(st, tables, 4);
    assert_int_equal(search(st), UINT64_C(0x123456789abcdef0));
    put_system_table(st, tables, 3);
    assert_int_equal(search(st), 0x1000); /* the fourth is not in the list */
    put_system_table(st, tables, 0);
    assert_int_equal(search(st), 0);
}

/* What cannot be is not followed: an address beyond the identity tables, a list without end. */
static void lists_out_of_reach(void **state)
{
    const uint64_t st = 0x1000000, tables = 0x2000000;
    static const uint64_t far[] = {GIB(4) - 4096, GIB(4), GIB(64), UINT64_MAX - 4095, UINT64_MAX - 103, UINT64_MAX};
    for (size_t n = 0; n < sizeof(far) / sizeof(far[0]); n++) {
        assert_int_equal(search(far[n]), 0);
        put_system_table(st, far[n], 1);
        assert_int_equal(search(st), 0);
    }
    put_system_table(GIB(4) - 8192, GIB(4) - 3 * 4096, 1); /* the last places that may be */
    put_entry(GIB(4) - 3 * 4096, 0, EFI_2, 0x5000);
    assert_int_equal(search(GIB(4) - 8192), 0x5000);

    put_system_table(st, tables, UINT64_MAX);
    readable(tables, 256 * 24);
    assert_int_equal(search(st), 0); /* ends */
    put_entry(tables, 255, EFI_1, 0x6000);
    assert_int_equal(search(st), 0x6000);
    readable(tables + 256 * 24, 24);
    put_entry(tables, 256, EFI_2, 0x7000);
    assert_int_equal(search(st), 0x6000);
    put_system_table(st, GIB(4) - 2 * 4096 - 1, UINT64_MAX); /* the longest list at the last place ends below 4 GiB */
    readable(GIB(4) - 3 * 4096, 3 * 4096);
    assert_int_equal(search(st), 0);
    put_entry(GIB(4) - 4097, 0, EFI_2, 0x8000); /* here it could end above */
    put_system_table(st, GIB(4) - 4097, 1);
    assert_int_equal(search(st), 0);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, begin, end)
    const struct CMUnitTest tests[] = {TEST(in_the_rom), TEST(not_every_signature_is_one), TEST(in_the_ebda_before_the_rom),
                                       TEST(whatever_the_ebdas_segment_is), TEST(acpi_2_before_acpi_1), TEST(lists_out_of_reach)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
