/* TEST-SOURCES: vdev/platform.c vdev/vlapic.c vdev/vpic.c vdev/vioapic.c vdev/vpit.c vdev/vrtc.c vdev/vuart.c vdev/vpmtimer.c vdev/vreset.c vdev/vgenid.c vdev/vdebugexit.c vdev/acpi_tables.c */
/* 16550: console ring, input, THRE and receive interrupts, loopback. Also the small ports: ACPI PM, resets, debug exit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "tests/unit/fake/vdev_fakes.h"

static bool irq4(struct vm *vm) { return platform_of(vm)->ioapic.lines >> 4 & 1; }

static void ring(void **state)
{
    (void)state;
    struct vm *vm = fake_vm(1);
    static char buf[VUART_RING_BYTES + 16];
    outb(vm, 0x3f8, 'H'), outb(vm, 0x3f8, 'i');
    assert_true(vuart_console.output_pending(vm));
    assert_int_equal(vuart_console.read_output(vm, buf, 1), 1);
    assert_int_equal(vuart_console.read_output(vm, buf + 1, 9), 1);
    assert_memory_equal(buf, "Hi", 2);
    assert_false(vuart_console.output_pending(vm));
    for (unsigned n = 0; n < VUART_RING_BYTES + 100; n++)
        outb(vm, 0x3f8, (uint8_t)n);
    assert_int_equal(vuart_console.output_dropped(vm), 100);
    assert_int_equal(vuart_console.read_output(vm, buf, sizeof buf), VUART_RING_BYTES);
    for (unsigned n = 0; n < VUART_RING_BYTES; n++)
        assert_int_equal((uint8_t)buf[n], (uint8_t)(n + 100));
    fake_vm_free(vm);
}

static void interrupts(void **state)
{
    (void)state;
    struct vm *vm = fake_vm(1);
    outb(vm, 0x3fc, 0x0b), outb(vm, 0x3fa, 0xc7);
    assert_int_equal(inb(vm, 0x3fa), 0xc1);
    outb(vm, 0x3f9, 2); /* enabling THRE raises it at once */
    assert_true(irq4(vm));
    assert_int_equal(inb(vm, 0x3fa), 0xc2);
    assert_false(irq4(vm));
    outb(vm, 0x3f8, 'x');
    assert_true(irq4(vm));
    outb(vm, 0x3f9, 1);
    assert_false(irq4(vm));
    assert_int_equal(vuart_console.write_input(vm, "abc", 3), 3);
    assert_true(irq4(vm));
    assert_int_equal(inb(vm, 0x3fa), 0xc4);
    assert_int_equal(inb(vm, 0x3fd), 0x61);
    assert_int_equal(inb(vm, 0x3f8), 'a'), assert_int_equal(inb(vm, 0x3f8), 'b'), assert_int_equal(inb(vm, 0x3f8), 'c');
    assert_false(irq4(vm));
    assert_int_equal(inb(vm, 0x3fd), 0x60);
    vuart_console.write_input(vm, "z", 1);
    outb(vm, 0x3fc, 0x03); /* OUT2 off: no interrupt leaves */
    assert_false(irq4(vm));
    outb(vm, 0x3fa, 0x07);
    assert_int_equal(inb(vm, 0x3fd), 0x60);
    char many[1000] = {0};
    assert_int_equal(vuart_console.write_input(vm, many, sizeof many), VUART_INPUT_BYTES);
    fake_vm_free(vm);
}

static void loopback_and_dlab(void **state)
{
    (void)state;
    struct vm *vm = fake_vm(1);
    outb(vm, 0x3fc, 0x1f); /* as 8250 detection does */
    assert_int_equal(inb(vm, 0x3fe) & 0xf0, 0xf0);
    outb(vm, 0x3fc, 0x1a);
    assert_int_equal(inb(vm, 0x3fe) & 0xf0, 0x90);
    outb(vm, 0x3f8, 'q');
    assert_false(vuart_console.output_pending(vm));
    assert_int_equal(inb(vm, 0x3f8), 'q');
    outb(vm, 0x3fb, 0x83), outb(vm, 0x3f8, 0x34), outb(vm, 0x3f9, 0x12);
    assert_int_equal(inp(vm, 0x3f8, 2), 0x1234);
    outb(vm, 0x3fb, 3), outb(vm, 0x3ff, 0xa5);
    assert_int_equal(inb(vm, 0x3ff), 0xa5);
    assert_int_equal(inb(vm, 0x3f9), 0);
    fake_vm_free(vm);
}

static void random_accesses(void **state)
{
    (void)state;
    struct vm *vm = fake_vm(1);
    char buf[64];
    for (unsigned n = 0; n < 300000; n++) {
        uint16_t port = (uint16_t)(0x3f8 + rnd() % 8);
        if (rnd() % 8 == 0)
            vuart_console.write_input(vm, buf, rnd() % 64);
        else if (rnd() % 8 == 0)
            vuart_console.read_output(vm, buf, rnd() % 64);
        else if (rnd() % 2)
            outp(vm, port, 1u << rnd() % 3, (uint32_t)rnd());
        else
            inp(vm, port, 1u << rnd() % 3);
        const struct vuart *d = &platform_of(vm)->uart;
        assert_true(d->ring_head - d->ring_tail <= VUART_RING_BYTES && d->input_head - d->input_tail <= VUART_INPUT_BYTES);
        assert_int_equal(irq4(vm), d->line);
        if (!(d->mcr & 8) || !d->ier)
            assert_false(d->line);
    }
    fake_vm_free(vm);
}

static void small_ports(void **state)
{
    (void)state;
    struct vm *vm = fake_vm(1);
    uint32_t t0 = inp(vm, 0x608, 4);
    fake_advance(1000000000);
    assert_in_range(inp(vm, 0x608, 4) - t0, 3579544, 3579546);
    assert_int_equal(inp(vm, 0x604, 2), 1);
    outp(vm, 0x604, 2, 3 << 10 | 1 << 13);
    assert_false(vm->stop_requested);
    outp(vm, 0x604, 2, 5 << 10 | 1 << 13);
    assert_true(vm->stop_requested);
    assert_string_equal(vm->stop_reason, "guest powered off");
    outp(vm, 0xcf8, 4, 0x80000000);
    assert_int_equal(inp(vm, 0xcf8, 4), 0xffffffff), assert_int_equal(inp(vm, 0xcfc, 4), 0xffffffff), assert_int_equal(inp(vm, 0xcfe, 2), 0xffff);
    assert_int_equal(inp(vm, 0x80, 4), 0xffffffff);
    assert_false(vm->reset_requested);
    outb(vm, 0xcf9, 2);
    assert_false(vm->reset_requested);
    outb(vm, 0xcf9, 6);
    assert_true(vm->reset_requested);
    vm->reset_requested = false, outb(vm, 0x64, 0xfe);
    assert_true(vm->reset_requested);
    vm->reset_requested = false, outb(vm, 0x92, 2);
    assert_false(vm->reset_requested);
    outb(vm, 0x92, 3);
    assert_true(vm->reset_requested);
    vm->exit_code = -1, vm->stop_requested = false;
    outb(vm, 0xf5, 1), outb(vm, 0xf7, 1), outp(vm, 0xf6, 2, 0xffff);
    outp(vm, 0xf2, 2, 0xffff), outp(vm, 0xf5, 4, 0xffffffff);
    assert_true(!vm->stop_requested && vm->exit_code == -1 && inp(vm, 0xf4, 4) == 0xffffffff);
    const struct { unsigned size; uint32_t value; int code; } codes[] = {{1, 0x10, 0x21}, {2, 0x1234, 0x2469}, {4, 0x12345678, 0x2468acf1},
                                                                         {2, 0xffff, 0x1ffff}, {4, 0xffffffff, 0x7fffffff}};
    for (unsigned n = 0; n < ARRAY_SIZE(codes); n++) {
        outp(vm, 0xf4, codes[n].size, codes[n].value);
        assert_int_equal(vm->exit_code, codes[n].code);
    }
    outp(vm, 0xf3, 2, 0x5500); /* only its second byte is ours */
    assert_int_equal(vm->exit_code, 0xab);
    fake_vm_free(vm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ring),
        cmocka_unit_test(interrupts),
        cmocka_unit_test(loopback_and_dlab),
        cmocka_unit_test(random_accesses),
        cmocka_unit_test(small_ports),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
