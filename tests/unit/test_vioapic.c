/* TEST-SOURCES: vdev/platform.c vdev/vlapic.c vdev/vpic.c vdev/vioapic.c vdev/vpit.c vdev/vrtc.c vdev/vuart.c vdev/vpmtimer.c vdev/vreset.c vdev/vgenid.c vdev/vdebugexit.c vdev/acpi_tables.c */
/* I/O APIC: edge, level with Remote IRR and EOI, masks, the IRQ 0 override. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "tests/unit/fake/vdev_fakes.h"

static struct vm *start(void)
{
    struct vm *vm = fake_vm(2);
    lapic_write(vm->vcpus[0], 0xf0, 0x1ff), lapic_write(vm->vcpus[1], 0xf0, 0x1ff);
    return vm;
}

static void edge(void **state)
{
    (void)state;
    struct vm *vm = start();
    assert_int_equal(ioapic_read(vm, 1), 0x170011);
    ioapic_write(vm, 0x14, 0x40), ioapic_write(vm, 0x15, 1u << 24); /* pin 2 to CPU 1 */
    platform_set_isa_irq(vm->platform, 0, true);
    assert_int_equal(take(vm->vcpus[1]), 0x40);
    assert_int_equal(pending(vm->vcpus[0]), -1);
    lapic_write(vm->vcpus[1], 0xb0, 0);
    assert_int_equal(pending(vm->vcpus[1]), -1);
    platform_set_isa_irq(vm->platform, 0, false), platform_set_isa_irq(vm->platform, 0, true);
    assert_int_equal(take(vm->vcpus[1]), 0x40);
    lapic_write(vm->vcpus[1], 0xb0, 0);
    ioapic_write(vm, 0x14, 0x10040);
    platform_set_isa_irq(vm->platform, 0, false), platform_set_isa_irq(vm->platform, 0, true);
    ioapic_write(vm, 0x14, 0x40);
    assert_int_equal(pending(vm->vcpus[1]), -1); /* lost while masked */
    fake_vm_free(vm);
}

static void level(void **state)
{
    (void)state;
    struct vm *vm = start();
    struct vcpu *v = vm->vcpus[0];
    ioapic_write(vm, 0x22, 0x8050);
    platform_set_isa_irq(vm->platform, 9, true);
    assert_int_equal(ioapic_read(vm, 0x22), 0xc050);
    assert_int_equal(take(v), 0x50);
    assert_int_equal(pending(v), -1);
    lapic_write(v, 0xb0, 0); /* still up: again */
    assert_int_equal(take(v), 0x50);
    platform_set_isa_irq(vm->platform, 9, false);
    lapic_write(v, 0xb0, 0);
    assert_int_equal(pending(v), -1);
    assert_int_equal(ioapic_read(vm, 0x22), 0x8050);
    ioapic_write(vm, 0x22, 0x18050);
    platform_set_isa_irq(vm->platform, 9, true);
    assert_int_equal(pending(v), -1);
    ioapic_write(vm, 0x22, 0x8050); /* a level is not lost */
    assert_int_equal(take(v), 0x50);
    fake_vm_free(vm);
}

static void random_accesses(void **state)
{
    (void)state;
    struct vm *vm = start();
    for (unsigned n = 0; n < 200000; n++) {
        switch (rnd() % 4) {
        case 0: mmio(vm->vcpus[0], GUEST_IOAPIC_GPA + rnd() % 0x24, 1u << rnd() % 4, rnd() % 2, rnd()); break;
        case 1: ioapic_write(vm, (uint8_t)(0x10 + rnd() % 0x30), (uint32_t)rnd()); break;
        case 2: platform_set_isa_irq(vm->platform, rnd() % 16, rnd() % 2); break;
        case 3:
            for (unsigned k = 0; k < 2; k++)
                if (take(vm->vcpus[k]) < 0)
                    lapic_write(vm->vcpus[k], 0xb0, 0);
        }
        for (unsigned k = 0; k < VIOAPIC_PINS; k++) {
            uint64_t r = platform_of(vm)->ioapic.redirect[k];
            assert_true((r >> 15 & 1) || !(r >> 14 & 1)); /* Remote IRR only on level pins */
            assert_int_equal(r & ~(GENMASK64(63, 56) | GENMASK64(16, 13) | GENMASK64(11, 0)), 0);
        }
    }
    fake_vm_free(vm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(edge), cmocka_unit_test(level), cmocka_unit_test(random_accesses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
