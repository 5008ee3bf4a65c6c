/* TEST-SOURCES: vdev/platform.c vdev/vlapic.c vdev/vpic.c vdev/vioapic.c vdev/vpit.c vdev/vrtc.c vdev/vuart.c vdev/vpmtimer.c vdev/vreset.c vdev/vgenid.c vdev/vdebugexit.c vdev/acpi_tables.c */
/* 8259 pair through its ports and the boot CPU's LINT0. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "tests/unit/fake/vdev_fakes.h"

static void init_pics(struct vm *vm, uint8_t icw4)
{
    const uint8_t seq[][2] = {{0x20, 0x11}, {0x21, 0x30}, {0x21, 4}, {0x21, icw4}, {0xa0, 0x11}, {0xa1, 0x38}, {0xa1, 2}, {0xa1, icw4}, {0x21, 0}, {0xa1, 0}};
    for (unsigned n = 0; n < ARRAY_SIZE(seq); n++)
        outb(vm, seq[n][0], seq[n][1]);
}

static void edges_and_priorities(void **state)
{
    (void)state;
    struct vm *vm = fake_vm(1);
    struct vcpu *v = vm->vcpus[0];
    struct platform *p = vm->platform;
    init_pics(vm, 1);
    platform_set_isa_irq(p, 4, true);
    assert_int_equal(take(v), 0x34);
    assert_int_equal(pending(v), -1);
    platform_set_isa_irq(p, 5, true);
    assert_int_equal(pending(v), -1); /* lower than what is in service */
    platform_set_isa_irq(p, 8, true);
    assert_int_equal(take(v), 0x38);  /* the slave is higher */
    outb(vm, 0x20, 0x0b), outb(vm, 0xa0, 0x0b);
    assert_int_equal(inb(vm, 0x20), 0x14);
    assert_int_equal(inb(vm, 0xa0), 0x01);
    outb(vm, 0xa0, 0x20), outb(vm, 0x20, 0x20), outb(vm, 0x20, 0x20);
    assert_int_equal(take(v), 0x35);
    outb(vm, 0x20, 0x65);
    assert_int_equal(pending(v), -1); /* an edge counts once */
    outb(vm, 0x21, 0x10);
    platform_set_isa_irq(p, 4, false), platform_set_isa_irq(p, 4, true);
    assert_int_equal(pending(v), -1);
    outb(vm, 0x21, 0);
    assert_int_equal(take(v), 0x34);
    outb(vm, 0x20, 0x64);
    lapic_write(v, 0x350, 0x10700); /* LINT0 masked: nothing comes */
    platform_set_isa_irq(p, 0, true);
    assert_int_equal(pending(v), -1);
    lapic_write(v, 0xf0, 0x1ff), lapic_write(v, 0x350, 0x700);
    assert_int_equal(take(v), 0x30);
    fake_vm_free(vm);
}

static void level_rotate_poll(void **state)
{
    (void)state;
    struct vm *vm = fake_vm(1);
    struct vcpu *v = vm->vcpus[0];
    struct platform *p = vm->platform;
    init_pics(vm, 1);
    outb(vm, 0x4d1, 0xff);
    assert_int_equal(inb(vm, 0x4d1), 0xde);
    platform_set_isa_irq(p, 9, true);
    assert_int_equal(take(v), 0x39);
    outb(vm, 0xa0, 0x20), outb(vm, 0x20, 0x20);
    assert_int_equal(take(v), 0x39); /* the line is still up */
    platform_set_isa_irq(p, 9, false);
    outb(vm, 0xa0, 0x20), outb(vm, 0x20, 0x20);
    assert_int_equal(pending(v), -1);
    platform_set_isa_irq(p, 3, true);
    platform_set_isa_irq(p, 6, true);
    outb(vm, 0x20, 0xc3); /* 3 gets the lowest priority */
    assert_int_equal(take(v), 0x36);
    outb(vm, 0x20, 0x20);
    outb(vm, 0x20, 0x0c); /* poll */
    assert_int_equal(inb(vm, 0x20), 0x83);
    outb(vm, 0x20, 0x20), outb(vm, 0x20, 0x0c);
    assert_int_equal(inb(vm, 0x20), 0x07);
    fake_vm_free(vm);
}

static void random_accesses(void **state)
{
    (void)state;
    struct vm *vm = fake_vm(1);
    static const uint16_t ports[] = {0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1};
    for (unsigned n = 0; n < 300000; n++) {
        uint16_t port = ports[rnd() % 6];
        if (rnd() % 3 == 0)
            platform_set_isa_irq(vm->platform, rnd() % 16, rnd() % 2);
        else if (rnd() % 2)
            outp(vm, port, 1u << rnd() % 3, (uint32_t)rnd());
        else
            inp(vm, port, 1u << rnd() % 3);
        const struct vpic *c = &platform_of(vm)->pic;
        int vector = pending(vm->vcpus[0]);
        assert_int_equal(vector >= 0, vpic_peek(c) >= 0); /* INTR and what INTA would give agree */
        if (vector >= 0) {
            unsigned irq = (unsigned)vector - c->chip[0].base;
            if (irq < 8 && irq != 2 && c->chip[0].base != c->chip[1].base) /* else it may be the slave's */
                assert_true((c->chip[0].irr & ~c->chip[0].imr) >> irq & 1);
            if (rnd() % 2)
                take(vm->vcpus[0]);
        }
    }
    fake_vm_free(vm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(edges_and_priorities), cmocka_unit_test(level_rotate_poll), cmocka_unit_test(random_accesses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
