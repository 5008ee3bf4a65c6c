/* TEST-SOURCES: vdev/platform.c vdev/vlapic.c vdev/vpic.c vdev/vioapic.c vdev/vpit.c vdev/vrtc.c vdev/vuart.c vdev/vpmtimer.c vdev/vreset.c vdev/vgenid.c vdev/vdebugexit.c vdev/acpi_tables.c */
/* CMOS clock against the C library's calendar; setting it; interrupts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "tests/unit/fake/vdev_fakes.h"

#include <time.h>

static uint8_t rd(struct vm *vm, uint8_t reg) { outb(vm, 0x70, reg); return inb(vm, 0x71); }
static void wr(struct vm *vm, uint8_t reg, uint8_t val) { outb(vm, 0x70, reg), outb(vm, 0x71, val); }
static int bcd(uint8_t v) { return (v >> 4) * 10 + (v & 15); }

static void calendar(void **state)
{
    (void)state;
    struct vm *vm = fake_vm(1);
    for (unsigned n = 0; n < 20000; n++) {
        fake_wall = rnd() % UINT64_C(7000000000);
        time_t t = (time_t)time_wallclock_s();
        struct tm tm;
        gmtime_r(&t, &tm);
        assert_int_equal(rd(vm, 10) & 0x80, 0);
        assert_int_equal(bcd(rd(vm, 0)), tm.tm_sec);
        assert_int_equal(bcd(rd(vm, 2)), tm.tm_min);
        assert_int_equal(bcd(rd(vm, 4)), tm.tm_hour);
        assert_int_equal(bcd(rd(vm, 6)), tm.tm_wday + 1);
        assert_int_equal(bcd(rd(vm, 7)), tm.tm_mday);
        assert_int_equal(bcd(rd(vm, 8)), tm.tm_mon + 1);
        assert_int_equal(bcd(rd(vm, 9)) + 100 * bcd(rd(vm, 0x32)), tm.tm_year + 1900);
    }
    fake_vm_free(vm);
}

static void setting(void **state)
{
    (void)state;
    struct vm *vm = fake_vm(1);
    fake_wall = 1700000000;
    for (unsigned binary = 0; binary < 2; binary++) {
        uint8_t b = binary ? 0x06 : 0x02;
        wr(vm, 11, b | 0x80);
        const uint8_t dec[] = {58, 59, 23, 28, 2, 24, 20}, reg[] = {0, 2, 4, 7, 8, 9, 0x32};
        for (unsigned n = 0; n < 7; n++)
            wr(vm, reg[n], binary ? dec[n] : (uint8_t)(dec[n] / 10 << 4 | dec[n] % 10));
        wr(vm, 11, b);
        fake_advance(3000000000);
        assert_int_equal(rd(vm, 0), 1), assert_int_equal(rd(vm, 4), 0), assert_int_equal(rd(vm, 8), 2);
        assert_int_equal(rd(vm, 7), binary ? 29 : 0x29); /* leap year */
    }
    wr(vm, 11, 0x00); /* 12 hours: midnight is 12 am */
    assert_int_equal(rd(vm, 4), 0x12);
    fake_vm_free(vm);
}

static void interrupts(void **state)
{
    (void)state;
    struct vm *vm = fake_vm(1);
    assert_int_equal(fake_advance(5000000000), 0);
    wr(vm, 11, 0x42); /* 1024 Hz */
    assert_in_range(fake_advance(1000000000), 1020, 1025);
    assert_int_equal(rd(vm, 12), 0xc0);
    assert_int_equal(rd(vm, 12), 0);
    wr(vm, 11, 0x12);
    fake_advance(2500000000);
    assert_int_equal(rd(vm, 12) & 0x90, 0x90);
    wr(vm, 1, 0xc0), wr(vm, 3, 0xc0), wr(vm, 5, 0xc0), wr(vm, 11, 0x22); /* alarm every second */
    fake_advance(1100000000);
    assert_int_equal(rd(vm, 12) & 0xa0, 0xa0);
    wr(vm, 11, 0x02);
    fake_advance(2000000000);
    assert_int_equal(fake_advance(60000000000), 0);
    assert_int_equal(rd(vm, 0x34) | rd(vm, 0x35) << 8, (128 - 16) * 16);
    fake_vm_free(vm);
}

static void random_accesses(void **state)
{
    (void)state;
    struct vm *vm = fake_vm(1);
    for (unsigned n = 0; n < 200000; n++) {
        if (rnd() % 2)
            outp(vm, 0x70 + rnd() % 2, 1u << rnd() % 3, (uint32_t)rnd() & 0xffff3fff);
        else
            inp(vm, 0x70 + rnd() % 2, 1u << rnd() % 3);
        fake_advance(rnd() % 1000000);
        assert_int_equal(rd(vm, 10) & 0x80, 0);
        assert_int_equal(rd(vm, 13), 0x80);
    }
    fake_vm_free(vm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(calendar), cmocka_unit_test(setting), cmocka_unit_test(interrupts), cmocka_unit_test(random_accesses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
