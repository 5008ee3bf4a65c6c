/* TEST-SOURCES: vdev/platform.c vdev/vlapic.c vdev/vpic.c vdev/vioapic.c vdev/vpit.c vdev/vrtc.c vdev/vuart.c vdev/vpmtimer.c vdev/vreset.c vdev/vgenid.c vdev/vdebugexit.c vdev/acpi_tables.c */
/* Local APIC: priorities against a model, IPIs, timer modes, APIC base transitions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "tests/unit/fake/vdev_fakes.h"

static void enable(struct vcpu *v) { lapic_write(v, 0xf0, 0x1ff); }

static void random_against_model(void **state)
{
    (void)state;
    struct vm *vm = fake_vm(1);
    struct vcpu *v = vm->vcpus[0];
    bool irr[256] = {0}, isr[256] = {0};
    unsigned tpr = 0;
    enable(v);
    for (unsigned step = 0; step < 200000; step++) {
        unsigned vec = 16 + rnd() % 240;
        switch (rnd() % 5) {
        case 0:
            vlapic_route(vm->platform, 0, false, false, APIC_FIXED, (uint8_t)vec, false);
            irr[vec] = true;
            break;
        case 1:
            tpr = rnd() & 0xff;
            lapic_write(v, 0x80, tpr);
            assert_int_equal(fake_cr8, tpr >> 4);
            break;
        case 2: {
            int top = -1;
            for (int n = 0; n < 256; n++)
                top = isr[n] ? n : top;
            if (top >= 0)
                isr[top] = false;
            lapic_write(v, 0xb0, 0);
            break;
        }
        case 3:
            tpr = (rnd() & 15) << 4;
            vdev_platform_ops.irq.tpr_changed(v, (uint8_t)(tpr >> 4));
            tpr = lapic_read(v, 0x80); /* an equal class leaves the subclass */
            break;
        }
        int request = -1, service = -1;
        for (int n = 0; n < 256; n++) {
            request = irr[n] ? n : request;
            service = isr[n] ? n : service;
        }
        unsigned ppr = service >= 0 && (tpr & 0xf0) < ((unsigned)service & 0xf0) ? (unsigned)service & 0xf0 : tpr;
        int expect = request >= 0 && ((unsigned)request & 0xf0) > (ppr & 0xf0) ? request : -1;
        assert_int_equal(pending(v), expect);
        bool tpr_holds = expect < 0 && request >= 0 && (request >> 4) > (service < 0 ? 0 : service >> 4);
        assert_int_equal(vdev_platform_ops.irq.masked(v), tpr_holds ? request >> 4 : 0);
        assert_int_equal(lapic_read(v, 0xa0), ppr);
        if (expect >= 0 && rnd() % 2) {
            assert_int_equal(take(v), expect);
            irr[expect] = false;
            isr[expect] = true;
        }
    }
    fake_vm_free(vm);
}

static void ipis(void **state)
{
    (void)state;
    struct vm *vm = fake_vm(4);
    for (unsigned n = 0; n < 4; n++) {
        enable(vm->vcpus[n]);
        lapic_write(vm->vcpus[n], 0xd0, 1u << (24 + n));
    }
    struct vcpu *v = vm->vcpus[0];
    lapic_write(v, 0x310, 2u << 24);
    lapic_write(v, 0x300, 0x4051);
    assert_int_equal(take(vm->vcpus[2]), 0x51);
    assert_int_equal(pending(vm->vcpus[1]), -1);
    lapic_write(v, 0x310, 0x0au << 24);
    lapic_write(v, 0x300, 0x4861); /* logical flat: 1 and 3 */
    assert_int_equal(pending(vm->vcpus[0]), -1);
    assert_int_equal(take(vm->vcpus[1]), 0x61);
    assert_int_equal(take(vm->vcpus[3]), 0x61);
    lapic_write(v, 0x300, 0xc4071); /* all but self */
    assert_int_equal(pending(v), -1);
    assert_int_equal(take(vm->vcpus[1]), 0x71);
    assert_int_equal(take(vm->vcpus[2]), 0x71);
    lapic_write(v, 0x300, 0x44081); /* self */
    assert_int_equal(take(v), 0x81);
    lapic_write(v, 0x310, 1u << 24);
    lapic_write(v, 0x300, 0x4500);
    assert_true(vm->vcpus[1]->init_pending && !vm->vcpus[2]->init_pending);
    lapic_write(v, 0x300, 0x4699);
    assert_true(vm->vcpus[1]->sipi_pending && vm->vcpus[1]->sipi_vector == 0x99);
    lapic_write(v, 0x300, 0x4400);
    assert_true(vm->vcpus[1]->nmi_pending);
    lapic_write(v, 0x300, 0x4005); /* illegal vector */
    assert_int_equal(lapic_read(v, 0x280), 0);
    lapic_write(v, 0x280, 0);
    assert_int_equal(lapic_read(v, 0x280), 0x20);
    fake_vm_free(vm);
}

static void timer(void **state)
{
    (void)state;
    struct vm *vm = fake_vm(1);
    struct vcpu *v = vm->vcpus[0];
    bool gp;
    enable(v);
    lapic_write(v, 0x3e0, 0xb);
    lapic_write(v, 0x320, 0x30);
    lapic_write(v, 0x380, 1000000);
    fake_advance(400000);
    assert_int_equal(lapic_read(v, 0x390), 600000);
    vdev_platform_ops.pause(vm, true);
    assert_int_equal(fake_advance(5000000000), 0);
    vdev_platform_ops.pause(vm, false);
    assert_int_equal(lapic_read(v, 0x390), 600000);
    fake_advance(599999);
    assert_int_equal(pending(v), -1);
    fake_advance(1);
    assert_int_equal(take(v), 0x30);
    lapic_write(v, 0xb0, 0);
    assert_int_equal(fake_advance(10000000), 0); /* idle: no timers */
    lapic_write(v, 0x320, 0x20031);
    lapic_write(v, 0x380, 250000);
    assert_int_equal(fake_advance(1000000), 4);
    assert_int_equal(take(v), 0x31);
    lapic_write(v, 0xb0, 0);
    lapic_write(v, 0x380, 1); /* a storm is not to be had */
    assert_in_range(fake_advance(1000000), 1, 10);
    lapic_write(v, 0x320, 0x40032);
    assert_int_equal(fake_advance(10000000), 0);
    take(v), lapic_write(v, 0xb0, 0);
    v->tsc_offset = (uint64_t)-1000;
    uint64_t val, deadline = time_tsc() - 1000 + 2000000;
    assert_true(vdev_platform_ops.wrmsr(v, 0x6e0, deadline, &gp) && !gp);
    fake_advance(999999);
    assert_int_equal(pending(v), -1);
    assert_true(vdev_platform_ops.rdmsr(v, 0x6e0, &val, &gp) && val == deadline);
    fake_advance(1);
    assert_int_equal(take(v), 0x32);
    assert_true(vdev_platform_ops.rdmsr(v, 0x6e0, &val, &gp) && val == 0);
    lapic_write(v, 0xb0, 0);
    vdev_platform_ops.wrmsr(v, 0x6e0, UINT64_MAX, &gp); /* never, and no overflow */
    fake_advance(UINT64_C(3600000000000));
    assert_int_equal(pending(v), -1);
    vdev_platform_ops.wrmsr(v, 0x6e0, 1, &gp);          /* long ago */
    fake_advance(0);
    assert_int_equal(take(v), 0x32);
    lapic_write(v, 0xb0, 0);
    fake_vm_free(vm);
}

/* The guest sets its TSC while a deadline is ahead of it. */
static void timer_and_tsc(void **state)
{
    (void)state;
    struct vm *vm = fake_vm(1);
    struct vcpu *v = vm->vcpus[0];
    bool gp;
    enable(v);
    lapic_write(v, 0x320, 0x40032);
    vdev_platform_ops.tsc_changed(v);
    assert_int_equal(fake_advance(1000000), 0);
    for (int leap = -2; leap <= 4; leap++) { /* 1 ms of TSC is 2000000; by 4 ms it is behind */
        uint64_t deadline = time_tsc() + v->tsc_offset + 3 * 2000000;
        assert_true(vdev_platform_ops.wrmsr(v, 0x6e0, deadline, &gp) && !gp);
        v->tsc_offset += (uint64_t)(leap * 2000000);
        vdev_platform_ops.tsc_changed(v);
        if (leap < 3) {
            fake_advance((uint64_t)(3 - leap) * 1000000 - 1);
            assert_int_equal(pending(v), -1);
            fake_advance(1);
        } else {
            fake_advance(0);
        }
        assert_int_equal(take(v), 0x32);
        lapic_write(v, 0xb0, 0);
        vdev_platform_ops.tsc_changed(v); /* it has fired: no second time */
        assert_int_equal(fake_advance(10000000), 0);
        assert_int_equal(pending(v), -1);
    }
    lapic_write(v, 0x320, 0x30); /* a count does not depend on the TSC */
    lapic_write(v, 0x3e0, 0xb);
    lapic_write(v, 0x380, 1000000);
    v->tsc_offset += UINT64_C(1) << 40;
    vdev_platform_ops.tsc_changed(v);
    fake_advance(999999);
    assert_int_equal(pending(v), -1);
    fake_advance(1);
    assert_int_equal(take(v), 0x30);
    fake_vm_free(vm);
}

static void modes(void **state)
{
    (void)state;
    struct vm *vm = fake_vm(2);
    struct vcpu *v = vm->vcpus[1];
    uint64_t val;
    bool gp;
    const struct { uint64_t to; bool bad; } walk[] = {
        {0xfee00400, true}, {0xfee00c00, false}, {0xfee00800, true}, {0xfee00400, true}, {0xfee00000, false}, {0xfee00c00, true},
        {0xfee00800, false}, {0xfee01800, true}, {0xfee00801, true}, {0x1000fee00800, true}, {0xfee00c00, false}};
    for (unsigned n = 0; n < ARRAY_SIZE(walk); n++) {
        assert_true(vdev_platform_ops.wrmsr(v, 0x1b, walk[n].to, &gp));
        assert_int_equal(gp, walk[n].bad);
        assert_true(vdev_platform_ops.rdmsr(v, 0x1b, &val, &gp));
        if (!walk[n].bad)
            assert_int_equal(val, walk[n].to);
    }
    assert_int_equal(lapic_read(v, 0x20), 0xffffffff); /* the page is gone */
    assert_true(vdev_platform_ops.rdmsr(v, 0x802, &val, &gp) && !gp && val == 1);
    assert_true(vdev_platform_ops.rdmsr(v, 0x80d, &val, &gp) && !gp && val == 2);
    assert_true(vdev_platform_ops.wrmsr(v, 0x80f, 0x1ff, &gp) && !gp);
    assert_true(vdev_platform_ops.wrmsr(v, 0x83f, 0x55, &gp) && !gp);
    assert_int_equal(take(v), 0x55);
    assert_true(vdev_platform_ops.wrmsr(v, 0x80b, 1, &gp) && gp);
    assert_true(vdev_platform_ops.wrmsr(v, 0x80b, 0, &gp) && !gp);
    assert_true(vdev_platform_ops.rdmsr(v, 0x80b, &val, &gp) && gp);
    assert_true(vdev_platform_ops.rdmsr(v, 0x80e, &val, &gp) && gp);
    assert_true(vdev_platform_ops.rdmsr(v, 0x831, &val, &gp) && gp);
    assert_true(vdev_platform_ops.wrmsr(v, 0x830, UINT64_C(0x100000000) | 0x4066, &gp) && !gp);
    assert_int_equal(take(v), 0x66);
    assert_true(vdev_platform_ops.rdmsr(vm->vcpus[0], 0x802, &val, &gp) && gp); /* still xAPIC */
    assert_false(vdev_platform_ops.rdmsr(v, 0x10, &val, &gp));
    fake_vm_free(vm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(random_against_model), cmocka_unit_test(ipis), cmocka_unit_test(timer), cmocka_unit_test(timer_and_tsc),
        cmocka_unit_test(modes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
