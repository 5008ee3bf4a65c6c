/* TEST-SOURCES: boot/multiboot2_tags.c boot/memmap.c */
/* GRUB's boot information: what is there is found, and a structure that lies about its own size is refused with a reason. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "boot/multiboot2_tags.h"

static uint8_t info[8192] __attribute__((aligned(8)));
static uint32_t used;
static struct mb2_info mb;
static const char *why;

static void put32(uint32_t at, uint32_t v) { memcpy(info + at, &v, 4); }

static int begin(void **state)
{
    (void)state;
    memset(info, 0, sizeof(info));
    used = 8;
    return 0;
}

/* Where the tag is. */
static uint32_t tag(uint32_t type, const void *payload, uint32_t bytes)
{
    uint32_t at = used;
    put32(at, type);
    put32(at + 4, 8 + bytes);
    memcpy(info + at + 8, payload, bytes);
    used = (used + 8 + bytes + 7) & ~7u;
    return at;
}

static void module(uint32_t start, uint32_t end, const char *args)
{
    uint8_t payload[256];
    memcpy(payload, &start, 4);
    memcpy(payload + 4, &end, 4);
    memcpy(payload + 8, args, strlen(args) + 1);
    tag(3, payload, 8 + (uint32_t)strlen(args) + 1);
}

static uint32_t memory(void)
{
    static const struct { uint32_t size, version; struct { uint64_t base, len; uint32_t type, zero; } e[4]; } map = {
        24, 0, {{0, 0x9fc00, 1, 0}, {0x9fc00, 0x400, 2, 0}, {0x100000, 0xff00000, 1, 0}, {0x10000000, 0x10000, 3, 0}}};
    return tag(6, &map, sizeof(map));
}

static bool decode(void)
{
    uint32_t end = tag(0, "", 0);
    put32(0, used);
    bool ok = mb2_decode(info, sizeof(info), &mb, &why);
    assert_int_equal(ok, !why);
    used = end; /* more can be added */
    return ok;
}

static void all_that_is_of_interest(void **state)
{
    (void)state;
    tag(1, "console=ttyS0", 14);
    tag(2, "GRUB 2.06", 10);
    module(0x1000000, 0x1000800, "vmlinuz");
    module(0, 0x120, "palimpsest.conf and more");
    memory();
    tag(12, "\x00\x00\x11\x7f\x00\x00\x00\x00", 8);
    tag(15, "RSD PTR new.........................", 36);
    tag(14, "RSD PTR old.........", 20);
    tag(8, "\0\0\0\xfd\0\0\0\0\0\x10\0\0\0\x04\0\0\0\x03\0\0\x20\x01\0\0\x10\x08\x08\x08\0\x08", 30);
    tag(0x1234, "?", 1);
    assert_true(decode());
    assert_string_equal(mb.cmdline, "console=ttyS0");
    assert_string_equal(mb.loader, "GRUB 2.06");
    assert_int_equal(mb.module_count, 2);
    assert_int_equal(mb.modules[0].size, 0x800);
    assert_int_equal(mb.modules[1].hpa, 0);
    assert_string_equal(mb.modules[1].args, "palimpsest.conf and more");
    assert_int_equal(mb.efi_system_table, 0x7f110000);
    assert_memory_equal(mb.rsdp, "RSD PTR new", 11);
    assert_int_equal(mb.rsdp_bytes, 36);
    assert_int_equal(mb.fb.hpa, 0xfd000000);
    assert_true(mb.fb.width == 1024 && mb.fb.height == 768 && mb.fb.pitch == 4096 && mb.fb.red_pos == 16 && mb.fb.green_pos == 8 && mb.fb.blue_pos == 0);
    assert_true(mb.fb.red_bits == 8 && mb.fb.green_bits == 8 && mb.fb.blue_bits == 8);
    assert_false(mb.text_screen);
}

static void the_map_becomes_ours(void **state)
{
    static struct boot_mem_range in[16], out[16];
    static uint64_t edges[32];
    struct memmap m;
    (void)state;
    memory();
    assert_true(decode());
    memmap_init(&m, in, edges, 16);
    mb2_add_memory(&mb, &m);
    assert_int_equal(memmap_normalise(&m, out, 16), 4);
    assert_true(out[0].type == BOOT_MEM_USABLE && out[0].size == 0x9f000);
    assert_true(out[1].type == BOOT_MEM_RESERVED && out[1].base == 0x9f000);
    assert_true(out[3].type == BOOT_MEM_ACPI_RECLAIM && out[3].base == 0x10000000);
    /* the UEFI map wins: descriptors of 48 bytes */
    static const struct { uint32_t size, version; struct { uint32_t type, pad; uint64_t base, virt, pages, attr, more; } e[3]; } efi = {
        48, 1, {{7, 0, 0x100000, 0, 16, 8, 0}, {5, 0, 0x200000, 0, 1, 8, 0}, {7, 0, 0x300000, 0, 1, 0, 0}}};
    tag(17, &efi, sizeof(efi));
    assert_true(decode());
    memmap_init(&m, in, edges, 16);
    mb2_add_memory(&mb, &m);
    assert_int_equal(memmap_normalise(&m, out, 16), 3);
    assert_true(out[0].type == BOOT_MEM_USABLE && out[0].size == 0x10000);
    assert_int_equal(out[1].type, BOOT_MEM_RUNTIME);
    assert_int_equal(out[2].type, BOOT_MEM_RESERVED); /* not cacheable */
}

static void a_text_screen(void **state)
{
    (void)state;
    memory();
    tag(8, "\0\x80\x0b\0\0\0\0\0\xa0\0\0\0\x50\0\0\0\x19\0\0\0\x10\x02\0\0", 24);
    assert_true(decode());
    assert_true(mb.text_screen && mb.fb.hpa == 0);
}

static void lies_are_refused(void **state)
{
    (void)state;
    assert_false(decode()); /* no memory map */
    assert_non_null(strstr(why, "memory map"));
    uint32_t at = memory();
    put32(at + 4, 0x7fffffff);
    assert_false(decode());
    put32(at + 4, 7);
    assert_false(decode());
    begin(NULL);
    at = memory();
    put32(at + 8, 8); /* entries shorter than an entry */
    assert_false(decode());
    put32(at + 8, 0);
    assert_false(decode());
    begin(NULL);
    memory();
    tag(1, "no end", 6);
    assert_false(decode());
    begin(NULL);
    memory();
    module(0x1001, 0x2000, "not on a page");
    assert_false(decode());
    begin(NULL);
    memory();
    module(0x2000, 0x1000, "ends before it begins");
    assert_false(decode());
    begin(NULL);
    memory();
    for (unsigned n = 0; n < 66; n++)
        module(0x1000, 0x1000, "m");
    assert_false(decode());
    begin(NULL);
    memory();
    put32(0, used); /* no end tag */
    assert_false(mb2_decode(info, sizeof(info), &mb, &why));
    put32(0, 0xffffffff);
    assert_false(mb2_decode(info, sizeof(info), &mb, &why));
    assert_false(mb2_decode(info, 4, &mb, &why));
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup(f, begin)
    const struct CMUnitTest tests[] = {TEST(all_that_is_of_interest), TEST(the_map_becomes_ours), TEST(a_text_screen), TEST(lies_are_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
