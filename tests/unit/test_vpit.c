/* TEST-SOURCES: vdev/platform.c vdev/vlapic.c vdev/vpic.c vdev/vioapic.c vdev/vpit.c vdev/vrtc.c vdev/vuart.c vdev/vpmtimer.c vdev/vreset.c vdev/vgenid.c vdev/vdebugexit.c vdev/acpi_tables.c */
/* 8254: rates, modes, latches, BCD, port 61h, and silence when idle. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "tests/unit/fake/vdev_fakes.h"

static void set(struct vm *vm, unsigned ch, uint8_t control, uint16_t count)
{
    outb(vm, 0x43, (uint8_t)(ch << 6 | 0x30 | control));
    outb(vm, (uint16_t)(0x40 + ch), (uint8_t)count), outb(vm, (uint16_t)(0x40 + ch), (uint8_t)(count >> 8));
}
static uint16_t get(struct vm *vm, unsigned ch)
{
    outb(vm, 0x43, (uint8_t)(ch << 6));
    uint16_t low = inb(vm, (uint16_t)(0x40 + ch));
    return (uint16_t)(low | inb(vm, (uint16_t)(0x40 + ch)) << 8);
}

static void periodic(void **state)
{
    (void)state;
    struct vm *vm = fake_vm(1);
    assert_int_equal(fake_advance(10000000000), 0); /* nothing programmed, nothing runs */
    set(vm, 0, 4, 11932); /* 100 Hz */
    assert_in_range(fake_advance(1000000000), 99, 100);
    assert_true(platform_of(vm)->pic.chip[0].irr & 1);
    vdev_platform_ops.pause(vm, true);
    assert_int_equal(fake_advance(60000000000), 0);
    vdev_platform_ops.pause(vm, false);
    assert_in_range(fake_advance(10000000), 0, 1); /* no burst */
    set(vm, 0, 4, 2);
    assert_in_range(fake_advance(10000000), 1, 101); /* no storm */
    set(vm, 0, 0, 0); /* Linux's shutdown: one last event at most */
    assert_in_range(fake_advance(10000000000), 0, 2);
    assert_int_equal(fake_advance(10000000000), 0);
    fake_vm_free(vm);
}

static void counting(void **state)
{
    (void)state;
    struct vm *vm = fake_vm(1);
    set(vm, 0, 4, 1000);
    for (unsigned n = 0; n < 1000; n++) {
        fake_advance(rnd() % 3000000);
        assert_in_range(get(vm, 0), 1, 1000);
    }
    set(vm, 0, 0, 50000);
    uint16_t last = get(vm, 0);
    for (unsigned n = 0; n < 400; n++) {
        fake_advance(100000);
        uint16_t now = get(vm, 0);
        assert_in_range((uint16_t)(last - now), 118, 121); /* 119.3 a step, through zero */
        last = now;
    }
    set(vm, 0, 5, 0x1000); /* BCD */
    for (unsigned n = 0; n < 1000; n++) {
        fake_advance(rnd() % 3000000);
        uint16_t c = get(vm, 0);
        assert_true((c & 15) < 10 && (c >> 4 & 15) < 10 && (c >> 8 & 15) < 10 && c <= 0x1000);
    }
    outb(vm, 0x43, 0xc2); /* read-back: count and status of counter 0 */
    assert_int_equal(inb(vm, 0x40) & 0x3f, 0x35);
    uint16_t a = inb(vm, 0x40);
    a |= (uint16_t)(inb(vm, 0x40) << 8);
    assert_true(a <= 0x1000);
    fake_vm_free(vm);
}

/* What Linux's pit_calibrate_tsc() does. */
static void calibration(void **state)
{
    (void)state;
    struct vm *vm = fake_vm(1);
    outb(vm, 0x61, (inb(vm, 0x61) & ~2) | 1);
    outb(vm, 0x43, 0xb0);
    outb(vm, 0x42, 11932 & 0xff), outb(vm, 0x42, 11932 >> 8);
    unsigned us = 0;
    for (; !(inb(vm, 0x61) & 0x20) && us < 100000; us++)
        fake_advance(1000);
    assert_in_range(us, 9990, 10010);
    uint8_t toggles = 0, was = inb(vm, 0x61);
    for (unsigned n = 0; n < 100; n++) {
        fake_advance(5000);
        toggles += (uint8_t)((inb(vm, 0x61) ^ was) >> 4 & 1);
        was = inb(vm, 0x61);
    }
    assert_in_range(toggles, 30, 36);
    fake_vm_free(vm);
}

static void random_accesses(void **state)
{
    (void)state;
    struct vm *vm = fake_vm(1);
    static const uint16_t ports[] = {0x40, 0x41, 0x42, 0x43, 0x61};
    for (unsigned n = 0; n < 200000; n++) {
        uint64_t before = fake_now;
        if (rnd() % 2)
            outp(vm, ports[rnd() % 5], 1u << rnd() % 3, (uint32_t)rnd());
        else
            inp(vm, ports[rnd() % 5], 1u << rnd() % 3);
        unsigned fired = fake_advance(rnd() % 1000000);
        assert_true(fired <= (fake_now - before) / VTIMER_MIN_PERIOD_NS + 3);
    }
    fake_vm_free(vm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(periodic),
        cmocka_unit_test(counting),
        cmocka_unit_test(calibration),
        cmocka_unit_test(random_accesses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
