/* TEST-SOURCES: vdev/platform.c vdev/vlapic.c vdev/vpic.c vdev/vioapic.c vdev/vpit.c vdev/vrtc.c vdev/vuart.c vdev/vpmtimer.c vdev/vreset.c vdev/vgenid.c vdev/vdebugexit.c vdev/acpi_tables.c */
/*
 * A copy behaves exactly as the original. A VM is driven at random, its state is loaded into another one (fresh, or with a past of its own),
 * and from then on both get the same accesses at the same time: every value read, every interrupt, every kick must be the same, and at the
 * end so must be what a save finds. A field that is forgotten in a save or a load shows, as both run on for long.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "tests/unit/fake/vdev_fakes.h"

enum { VCPUS = 2 };

/* ---- a VM, and time as vm/ keeps it --------------------------------------------------------------------------------------------- */

static void stand_still(struct vm *vm)
{
    vdev_platform_ops.pause(vm, true);
    vm->paused_tsc = time_tsc();
}

static void go_on(struct vm *vm)
{
    uint64_t stood_still = time_tsc() - vm->paused_tsc;
    for (unsigned n = 0; n < VCPUS; n++)
        vm->vcpus[n]->tsc_offset -= stood_still;
    vdev_platform_ops.pause(vm, false);
}

struct state { struct platform_saved *platform; struct vlapic_saved *lapic[VCPUS]; };

static struct state save(struct vm *vm)
{
    struct state s = {.platform = calloc(1, vdev_platform_ops.saved_bytes)};
    vdev_platform_ops.save(vm, s.platform);
    for (unsigned n = 0; n < VCPUS; n++) {
        s.lapic[n] = calloc(1, vdev_platform_ops.vcpu_saved_bytes);
        vdev_platform_ops.vcpu_save(vm->vcpus[n], s.lapic[n]);
    }
    return s;
}

static void drop(struct state *s)
{
    free(s->platform);
    for (unsigned n = 0; n < VCPUS; n++)
        free(s->lapic[n]);
}

/* Both stand still. */
static void copy(struct vm *from, struct vm *to)
{
    struct state s = save(from);
    to->paused_tsc = time_tsc();
    for (unsigned n = 0; n < VCPUS; n++) {
        struct vcpu *a = from->vcpus[n], *b = to->vcpus[n];
        b->tsc_offset = a->tsc_offset + from->paused_tsc - to->paused_tsc;
        b->nmi_pending = a->nmi_pending, b->init_pending = a->init_pending;
        b->sipi_pending = a->sipi_pending, b->sipi_vector = a->sipi_vector;
        vdev_platform_ops.vcpu_load(b, s.lapic[n]);
    }
    vdev_platform_ops.load(to, s.platform);
    drop(&s);
}

static void assert_same_state(struct vm *a, struct vm *b)
{
    struct state s = save(a), t = save(b);
    assert_memory_equal(s.platform, t.platform, sizeof(*s.platform));
    for (unsigned n = 0; n < VCPUS; n++)
        assert_memory_equal(s.lapic[n], t.lapic[n], sizeof(*s.lapic[n]));
    drop(&s);
    drop(&t);
}

/* ---- random accesses --------------------------------------------------------------------------------------------------------------- */

struct op { unsigned kind, vcpu, size; uint64_t at, value; char text[8]; };

static const uint16_t ports[] = {0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x60, 0x64, 0x70, 0x71, 0x71, 0x92, 0x3f8, 0x3f8,
                                 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe, 0x3ff, 0x600, 0x602, 0x604, 0x608, 0xcf9};
static const uint16_t lapic_regs[] = {0x80, 0xb0, 0xb0, 0xd0, 0xe0, 0xf0, 0x280, 0x300, 0x310, 0x320, 0x350, 0x360, 0x370, 0x380, 0x390, 0x3e0, 0xa0, 0x200};
enum { OP_IN, OP_OUT, OP_OUT2, OP_LAPIC_READ, OP_LAPIC_WRITE, OP_IOAPIC_READ, OP_IOAPIC_WRITE, OP_TAKE, OP_TAKE2, OP_EOI, OP_INPUT, OP_BASE, OP_DEADLINE,
    OP_RTC, OP_RDMSR, OP_COUNT };

static struct op random_op(void)
{
    struct op o = {.kind = (unsigned)(rnd() % OP_COUNT), .vcpu = (unsigned)(rnd() % VCPUS), .size = 1, .value = rnd()};
    if (o.kind <= OP_OUT2) {
        o.at = ports[rnd() % ARRAY_SIZE(ports)];
        o.size = o.at >= 0x600 ? 2 : 1;
    } else if (o.kind <= OP_LAPIC_WRITE) {
        o.at = lapic_regs[rnd() % ARRAY_SIZE(lapic_regs)];
        if (o.at == 0xf0)
            o.value |= 0x100; /* mostly on */
        if (o.at == 0x320 || o.at == 0x300)
            o.value &= 0xefffff; /* masked now and then is enough */
        if (o.at == 0x380)
            o.value %= 3000000;
    } else if (o.kind <= OP_IOAPIC_WRITE) {
        o.at = 0x10 + rnd() % 48;
        o.value &= rnd() % 8 ? ~(UINT64_C(1) << 16) : ~UINT64_C(0);
    }
    memcpy(o.text, &o.value, sizeof(o.text));
    return o;
}

/* What the guest, or the run loop, gets to see of it. */
static uint64_t run(struct vm *vm, const struct op *o)
{
    struct vcpu *v = vm->vcpus[o->vcpu];
    uint64_t value = 0;
    bool gp = false;
    switch (o->kind) {
    case OP_IN: return inp(vm, (uint16_t)o->at, o->size);
    case OP_OUT: case OP_OUT2: outp(vm, (uint16_t)o->at, o->size, (uint32_t)o->value & 0xffff); return 0;
    case OP_LAPIC_READ: return lapic_read(v, (uint32_t)o->at);
    case OP_LAPIC_WRITE: lapic_write(v, (uint32_t)o->at, (uint32_t)o->value); return 0;
    case OP_IOAPIC_READ: return ioapic_read(vm, (uint8_t)o->at);
    case OP_IOAPIC_WRITE: ioapic_write(vm, (uint8_t)o->at, (uint32_t)o->value); return 0;
    case OP_TAKE: case OP_TAKE2: return (uint64_t)take(v);
    case OP_EOI: lapic_write(v, 0xb0, 0); return 0;
    case OP_INPUT: return vuart_console.write_input(vm, o->text, 1 + o->value % 8);
    case OP_BASE: vdev_platform_ops.wrmsr(v, 0x1b, o->value % 16 ? 0xfee00800 | (o->value & 0x100) : 0xfee00c00, &gp); return gp;
    case OP_DEADLINE: /* its mode, and a moment ahead */
        lapic_write(v, 0x320, 2 << 17 | 0x40 | (o->value & 0x3f));
        vdev_platform_ops.wrmsr(v, 0x6e0, time_tsc() + v->tsc_offset + o->value % 4000000 / 2 * 2, &gp); /* whole ns */
        return gp;
    case OP_RTC: /* its control registers, where random port accesses seldom get to */
        outb(vm, 0x70, (uint8_t)(0x0a + o->value % 3));
        value = inb(vm, 0x71);
        outb(vm, 0x71, (uint8_t)(o->value >> 8 & 0x7f));
        return value;
    default: vdev_platform_ops.rdmsr(v, o->value & 1 ? 0x6e0 : 0x1b, &value, &gp); return value;
    }
}

static void compare(struct vm *a, struct vm *b)
{
    char out_a[64], out_b[64];
    size_t n = vuart_console.read_output(a, out_a, sizeof out_a);
    assert_int_equal(vuart_console.read_output(b, out_b, sizeof out_b), n);
    assert_memory_equal(out_a, out_b, n);
    for (unsigned k = 0; k < VCPUS; k++) {
        struct vcpu *v = a->vcpus[k], *w = b->vcpus[k];
        assert_int_equal(v->kick_pending, w->kick_pending);
        assert_int_equal(v->nmi_pending, w->nmi_pending);
        assert_int_equal(v->init_pending, w->init_pending);
        assert_int_equal(v->sipi_pending, w->sipi_pending);
        assert_int_equal(v->sipi_vector, w->sipi_vector);
        v->kick_pending = w->kick_pending = false;
    }
}

static void alone(struct vm *vm, unsigned steps)
{
    for (unsigned n = 0; n < steps; n++) {
        struct op o = random_op();
        run(vm, &o);
        if (rnd() % 4 == 0)
            fake_advance(rnd() % (n % 100 ? 2000000 : 1500000000));
    }
}

static void together(struct vm *a, struct vm *b, unsigned steps)
{
    compare(a, b);
    for (unsigned n = 0; n < steps; n++) {
        struct op o = random_op();
        assert_int_equal(run(a, &o), run(b, &o));
        if (rnd() % 4 == 0)
            fake_advance(rnd() % (n % 100 ? 2000000 : 1500000000));
        compare(a, b);
    }
}

static void drain(struct vm *vm)
{
    char out[256];
    while (vuart_console.read_output(vm, out, sizeof out))
        ;
    for (unsigned n = 0; n < VCPUS; n++)
        vm->vcpus[n]->kick_pending = false;
}

/* ---- the tests ------------------------------------------------------------------------------------------------------------------------- */

static void copies(void **state)
{
    (void)state;
    for (unsigned round = 0; round < 300; round++) {
        struct vm *a = fake_vm(VCPUS);
        alone(a, (unsigned)(rnd() % 300));
        stand_still(a);
        fake_advance(rnd() % 5000000000);
        struct vm *b = round % 2 ? fake_vm(VCPUS) : fake_vm_made(VCPUS);
        if (round % 2) /* a past of its own, as that of a VM that returns to a snapshot */
            alone(b, (unsigned)(rnd() % 300));
        stand_still(b);
        fake_advance(rnd() % 1000000);
        copy(a, b);
        assert_same_state(a, b);
        drain(a), drain(b);
        fake_advance(rnd() % 1000000);
        go_on(a), go_on(b);
        together(a, b, 400);
        stand_still(a), stand_still(b);
        assert_same_state(a, b);
        fake_vm_free(a), fake_vm_free(b);
    }
}

/* A snapshot survives what the VM does afterwards, and can be loaded many times. */
static void returns(void **state)
{
    (void)state;
    struct vm *vm = fake_vm(VCPUS), *kept = fake_vm(VCPUS);
    alone(vm, 500);
    stand_still(vm), stand_still(kept);
    copy(vm, kept); /* which stands still from now on */
    uint64_t now_ns = platform_now_ns(platform_of(kept));
    for (unsigned round = 0; round < 50; round++) {
        go_on(vm);
        alone(vm, 200);
        stand_still(vm);
        assert_true(platform_now_ns(platform_of(vm)) >= now_ns);
        copy(kept, vm);
        assert_same_state(vm, kept);
        assert_int_equal(platform_now_ns(platform_of(vm)), now_ns);
    }
    fake_vm_free(vm), fake_vm_free(kept);
}

/* The timer that was armed fires in the copy when as much time has passed as was left, the pause not counted. */
static void timers(void **state)
{
    (void)state;
    struct vm *a = fake_vm(VCPUS), *b = fake_vm(VCPUS);
    lapic_write(a->vcpus[0], 0xf0, 0x1ff);
    lapic_write(a->vcpus[0], 0x3e0, 0xb);
    lapic_write(a->vcpus[0], 0x320, 0x77);
    lapic_write(a->vcpus[0], 0x380, 1000000); /* 1 ms */
    fake_advance(400000);
    stand_still(a), stand_still(b);
    fake_advance(3600000000000);
    copy(a, b);
    fake_advance(7000000);
    go_on(b);
    assert_in_range(lapic_read(b->vcpus[0], 0x390), 599990, 600000);
    fake_advance(599000);
    assert_int_equal(pending(b->vcpus[0]), -1);
    fake_advance(2000);
    assert_int_equal(take(b->vcpus[0]), 0x77);
    assert_int_equal(pending(a->vcpus[0]), -1);
    fake_vm_free(a), fake_vm_free(b);
}

/* What stands unread in the UART is the guest's; what it has printed is the user's. */
static void console(void **state)
{
    (void)state;
    struct vm *a = fake_vm(VCPUS), *b = fake_vm(VCPUS);
    char out[16];
    outb(a, 0x3f8, 'x');
    outb(b, 0x3f8, 'y');
    assert_int_equal(vuart_console.write_input(a, "typed", 5), 5);
    assert_int_equal(vuart_console.write_input(b, "else", 4), 4);
    stand_still(a), stand_still(b);
    copy(a, b);
    assert_int_equal(vuart_console.read_output(b, out, sizeof out), 1);
    assert_int_equal(out[0], 'y');
    for (const char *c = "typed"; *c; c++)
        assert_int_equal(inb(b, 0x3f8), *c);
    assert_int_equal(inb(b, 0x3fd) & 1, 0);
    fake_vm_free(a), fake_vm_free(b);
}

static void generation(void **state)
{
    (void)state;
    struct vm *vm = fake_vm(1);
    uint8_t *id = fake_acpi + GUEST_GENID_OFFSET, before[GUEST_GENID_BYTES], ids[64][GUEST_GENID_BYTES];
    assert_int_equal(vdev_platform_ops.write_firmware_tables(vm), GUEST_ACPI_GPA);
    lapic_write(vm->vcpus[0], 0xf0, 0x1ff);
    for (unsigned n = 0; n < 64; n++) {
        memcpy(before, id, sizeof before);
        if (n == 1) { /* masked until now: the first one was not told */
            ioapic_write(vm, 0x10 + 2 * GUEST_GENID_PIN + 1, 0);
            ioapic_write(vm, 0x10 + 2 * GUEST_GENID_PIN, 0x66);
        }
        assert_int_equal(take(vm->vcpus[0]), -1);
        gfn_t gfn;
        assert_int_equal(vdev_platform_ops.change_generation(vm, &gfn), DMM_FAULT_RETRY);
        assert_memory_not_equal(id, before, sizeof before);
        assert_int_equal(take(vm->vcpus[0]), n ? 0x66 : -1);
        lapic_write(vm->vcpus[0], 0xb0, 0);
        memcpy(ids[n], id, GUEST_GENID_BYTES);
        for (unsigned k = 0; k < n; k++)
            assert_memory_not_equal(ids[k], ids[n], GUEST_GENID_BYTES);
    }
    fake_vm_free(vm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(copies), cmocka_unit_test(returns), cmocka_unit_test(timers), cmocka_unit_test(console),
                                       cmocka_unit_test(generation)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
