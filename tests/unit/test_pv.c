/* TEST-SOURCES: vm/pv.c vm/pv_hypercall.c vdev/platform.c vdev/vlapic.c vdev/vpic.c vdev/vioapic.c vdev/vpit.c vdev/vrtc.c vdev/vuart.c vdev/vpmtimer.c vdev/vreset.c vdev/vgenid.c vdev/vdebugexit.c vdev/acpi_tables.c */
/*
 * KVM's paravirtual interface: what the records hold and what a guest's choice of them can do to us (nothing: 16 pages of RAM between
 * guards, pins counted), hypercalls with all kinds of arguments, and the EOI by memory in lockstep with a VM whose guest writes
 * the APIC's register: both must take the same interrupts at the same time.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#define FAKE_GUEST_MEMORY_IS_ELSEWHERE
#include "tests/unit/fake/vdev_fakes.h"
#include "core/log.h"
#include "vm/saved.h"

enum { STEAL = 0x4b564d03, EOI = 0x4b564d04, CLOCK = 0x4b564d01, WALL = 0x4b564d00, PAGES = 16 };

/* ---- guest memory, and all else that vm/pv*.c wants of the world ------------------------------------------------------------------ */

static uint8_t ram[PAGES * PAGE_SIZE] __attribute__((aligned(4096)));
static unsigned pins[PAGES], waited, yields, writes_until_short, insn_len = 3;
static uint64_t wait_ns;
static enum dmm_fault_result short_of_memory = DMM_FAULT_RETRY;
static struct thread *yielded_to;
static bool wide = true;

static unsigned pins_left(void)
{
    unsigned sum = 0;
    for (unsigned n = 0; n < PAGES; n++)
        sum += pins[n];
    return sum;
}
bool dmm_gfn_is_ram(const struct dmm_space *s, gfn_t gfn) { (void)s; return gfn.v < PAGES; }
void *dmm_pin(struct dmm_space *s, gfn_t gfn, bool write, enum dmm_fault_result *why)
{
    (void)s;
    assert_true(write);
    *why = gfn.v >= PAGES ? DMM_FAULT_HOLE : short_of_memory;
    if (*why != DMM_FAULT_RETRY)
        return NULL;
    pins[gfn.v]++;
    return ram + gfn.v * PAGE_SIZE;
}
void dmm_unpin(struct dmm_space *s, gfn_t gfn)
{
    (void)s;
    assert_true(gfn.v < PAGES && pins[gfn.v]);
    pins[gfn.v]--;
}
enum dmm_fault_result dmm_write_guest(struct dmm_space *s, uint64_t gpa, const void *buf, size_t len)
{
    (void)s;
    if (gpa + len < gpa || gpa + len > sizeof ram)
        return DMM_FAULT_HOLE;
    if (writes_until_short && --writes_until_short == 0)
        return short_of_memory;
    memcpy(ram + gpa, buf, len);
    return DMM_FAULT_RETRY;
}
void vcpu_wait_dmm(struct vcpu *v, enum dmm_fault_result r, gfn_t gfn) { (void)v, (void)gfn; assert_int_equal(r, short_of_memory); waited++; }
uint64_t thread_wait_ns(const struct thread *t) { (void)t; return wait_ns; }
void thread_yield_to(struct thread *t) { yielded_to = t; yields++; }
bool vcpu_in_long_mode(struct vcpu *v) { (void)v; return wide; }
bool vcpu_skip(struct vcpu *v) { v->rip += insn_len; return insn_len; }
const struct vm_platform_ops *vm_platform(void) { return &vdev_platform_ops; }
void time_pvclock_scale(uint32_t *mul, int8_t *shift) { *mul = 0x80000000; *shift = 0; }
void log_write(enum log_level level, const char *fmt, ...) { (void)level, (void)fmt; }

static enum pv_msr_result wr(struct vcpu *v, uint32_t msr, uint64_t value) { return pv_wrmsr(v, msr, value); }
static uint64_t rd(struct vcpu *v, uint32_t msr)
{
    uint64_t value = 0x5555;
    assert_true(pv_rdmsr(v, msr, &value));
    return value;
}
static uint64_t u64_at(uint64_t gpa) { uint64_t x; memcpy(&x, ram + gpa, 8); return x; }
static uint32_t u32_at(uint64_t gpa) { uint32_t x; memcpy(&x, ram + gpa, 4); return x; }

static struct vm *fresh(unsigned vcpus)
{
    struct vm *vm = fake_vm(vcpus);
    memset(ram, 0, sizeof ram);
    for (unsigned n = 0; n < vcpus; n++)
        vm->vcpus[n]->counted = true;
    wide = true, insn_len = 3, fake_kicks = fake_cpl = yields = 0, yielded_to = NULL, wait_ns = 1000;
    return vm;
}
static void end(struct vm *vm)
{
    for (unsigned n = 0; n < vm->vcpu_count; n++)
        pv_vcpu_reset(vm->vcpus[n]);
    assert_int_equal(pins_left(), 0);
    fake_vm_free(vm);
}

/* ---- which values the MSRs take ------------------------------------------------------------------------------------------------------ */

static void msr_values(void **state)
{
    (void)state;
    struct vm *vm = fresh(1);
    struct vcpu *v = vm->vcpus[0];
    static const struct { uint32_t msr; uint64_t value; bool taken; } t[] = {
        {STEAL, 0, true}, {STEAL, 0x1001, true}, {STEAL, 0x1041, true}, {STEAL, 0xffc1, true}, {STEAL, 0x1000, true}, /* off */
        {STEAL, 0x1003, false}, {STEAL, 0x1005, false}, {STEAL, 0x1009, false}, {STEAL, 0x1011, false}, {STEAL, 0x1021, false},
        {STEAL, 2, false}, {STEAL, 0x10001, false}, {STEAL, 0xfffffffffffff001, false}, {STEAL, 0xffffffffffffffc1, false},
        {STEAL, 0x8000000000001001, false}, {STEAL, 0x100000001001, false},
        {EOI, 0, true}, {EOI, 0x2001, true}, {EOI, 0x2005, true}, {EOI, 0xfffd, true}, {EOI, 0x2004, true},
        {EOI, 0x2003, false}, {EOI, 0x2002, false}, {EOI, 0x10001, false}, {EOI, 0xfffffffffffffffd, false}, {EOI, 0xfee000b1, false},
        {CLOCK, 0x3001, true}, {CLOCK, 0x3003, false}, {CLOCK, 0x10001, false}, {CLOCK, 0xfff1, false}, {CLOCK, 0, true},
        {CLOCK, 0xfffffffffffffff1, false}, {WALL, 0x3000, true}, {WALL, 0xfff8, false}, {WALL, 0xfffffffffffffff8, false},
    };
    for (unsigned n = 0; n < ARRAY_SIZE(t); n++) {
        uint64_t before = rd(v, t[n].msr);
        unsigned pinned = pins_left();
        assert_int_equal(wr(v, t[n].msr, t[n].value), t[n].taken ? PV_MSR_DONE : PV_MSR_GP);
        assert_int_equal(rd(v, t[n].msr), t[n].taken ? t[n].value : before);
        if (!t[n].taken)
            assert_int_equal(pins_left(), pinned);
    }
    uint64_t value = 7;
    assert_int_equal(wr(v, 0x4b564d02, 1), PV_MSR_NOT_MINE); /* asynchronous page faults: not offered */
    assert_int_equal(wr(v, 0x4b564d05, 1), PV_MSR_NOT_MINE);
    assert_true(!pv_rdmsr(v, 0x4b564d02, &value) && !pv_rdmsr(v, 0x4b564d05, &value));
    end(vm);
}

/* A WRMSR that has to wait for a frame has done nothing, and comes again. */
static void memory_short(void **state)
{
    (void)state;
    struct vm *vm = fresh(1);
    struct vcpu *v = vm->vcpus[0];
    assert_int_equal(wr(v, STEAL, 0x1001), PV_MSR_DONE);
    assert_int_equal(wr(v, EOI, 0x2001), PV_MSR_DONE);
    for (unsigned n = 0; n < 2; n++) {
        short_of_memory = n ? DMM_FAULT_BLOCKED : DMM_FAULT_STALLED;
        waited = 0;
        assert_int_equal(wr(v, STEAL, 0x3001), PV_MSR_AGAIN);
        assert_int_equal(wr(v, EOI, 0x3001), PV_MSR_AGAIN);
        assert_int_equal(waited, 2);
        assert_int_equal(wr(v, STEAL, 0x3003), PV_MSR_GP); /* does not wait to say so */
        assert_int_equal(waited, 2);
        assert_true(rd(v, STEAL) == 0x1001 && rd(v, EOI) == 0x2001 && pins_left() == 2);
    }
    short_of_memory = DMM_FAULT_DENIED;
    assert_int_equal(wr(v, STEAL, 0x3001), PV_MSR_GP);
    short_of_memory = DMM_FAULT_RETRY;
    assert_int_equal(wr(v, STEAL, 0x3001), PV_MSR_DONE);
    assert_true(pins[1] == 0 && pins[2] == 1 && pins[3] == 1);
    end(vm);
}

/* The clocks' records too: whichever of their writes finds no frame, the guest's WRMSR is not over before the record is complete. */
static void memory_short_for_clocks(void **state)
{
    (void)state;
    struct vm *vm = fresh(1);
    struct vcpu *v = vm->vcpus[0];
    for (unsigned kind = 0; kind < 2; kind++) {
        short_of_memory = kind ? DMM_FAULT_BLOCKED : DMM_FAULT_STALLED;
        for (unsigned n = 1; n <= 3; n++) {
            uint64_t at = 0x3001 + (kind * 3 + n) * 0x100;
            waited = 0, writes_until_short = n;
            assert_int_equal(wr(v, CLOCK, at), PV_MSR_AGAIN);
            assert_true(waited == 1 && rd(v, CLOCK) == at - (kind || n > 1 ? 0x100 : at));
            assert_int_equal(wr(v, CLOCK, at), PV_MSR_DONE);
            assert_true(rd(v, CLOCK) == at && waited == 1 && u32_at(at - 1) % 2 == 0 && u32_at(at - 1) && u32_at(at - 1 + 24) == 0x80000000);

            uint32_t version = u32_at(at - 1);
            v->tsc_offset += 500; /* it sets its TSC */
            writes_until_short = n;
            assert_int_equal(pv_refresh(v), PV_MSR_AGAIN);
            assert_true(waited == 2 && (n == 1 ? u32_at(at - 1) == version : u32_at(at - 1) % 2 == 1));
            assert_int_equal(pv_refresh(v), PV_MSR_DONE);
            assert_true(u32_at(at - 1) == version + 2 && u64_at(at - 1 + 8) == v->tsc_offset - vm->tsc_offset);
        }
        waited = 0, writes_until_short = 1;
        assert_int_equal(wr(v, WALL, 0x5000), PV_MSR_AGAIN);
        assert_true(waited == 1 && rd(v, WALL) == (kind ? 0x5000 : 0) && u32_at(0x5000) == (kind ? 2 : 0));
        assert_int_equal(wr(v, WALL, 0x5000), PV_MSR_DONE);
        assert_true(rd(v, WALL) == 0x5000 && u32_at(0x5000) == 2 && u32_at(0x5004));
    }
    short_of_memory = DMM_FAULT_DENIED, writes_until_short = 1; /* a page that cannot be had at all */
    assert_int_equal(wr(v, WALL, 0x6000), PV_MSR_GP);
    short_of_memory = DMM_FAULT_RETRY;
    end(vm);
}

/* Whatever a guest does to these MSRs, INIT and resets included: one pin per record that is on, none afterwards. */
static void pins_are_balanced(void **state)
{
    (void)state;
    struct vm *vm = fresh(3);
    for (unsigned step = 0; step < 100000; step++) {
        struct vcpu *v = vm->vcpus[rnd() % 3];
        short_of_memory = rnd() % 8 ? DMM_FAULT_RETRY : DMM_FAULT_STALLED;
        switch (rnd() % 12) {
        case 0: pv_vcpu_init_signal(v); break;
        case 1: pv_vcpu_reset(v); break;
        case 2: pv_switched_out(v); break;
        case 3: pv_before_entry(v); break;
        case 4: pv_give_up_pins(v); break; /* as a fork does; what is on is pinned again at its next entry, if there is memory */
        default: wr(v, rnd() % 2 ? STEAL : EOI, (rnd() % (PAGES + 2)) << 12 | (rnd() % 64) << 6 | rnd() % 4); break;
        }
        unsigned on = 0;
        for (unsigned n = 0; n < 3; n++)
            on += (rd(vm->vcpus[n], STEAL) & 1) + (rd(vm->vcpus[n], EOI) & 1);
        unsigned due = 0;
        for (unsigned n = 0; n < 3; n++)
            due += vm->vcpus[n]->pv.pins_due;
        assert_true(pins_left() == on || (due && pins_left() < on));
        for (unsigned n = 0; n < 3 && step % 8 == 0; n++) {
            bool had = !vm->vcpus[n]->pv.pins_due;
            assert_true(pv_before_entry(vm->vcpus[n]) || (!had && short_of_memory != DMM_FAULT_RETRY));
        }
        if (step % 8 == 0 && short_of_memory == DMM_FAULT_RETRY)
            assert_int_equal(pins_left(), on);
    }
    short_of_memory = DMM_FAULT_RETRY;
    end(vm);
}

/* ---- steal time ------------------------------------------------------------------------------------------------------------------------ */

static void switched_out(struct vcpu *v, enum thread_state s)
{
    v->thread.state = s;
    pv_switched_out(v);
    v->thread.state = THREAD_RUNNING;
}

static void steal_record(void **state)
{
    (void)state;
    struct vm *vm = fresh(1);
    struct vcpu *v = vm->vcpus[0];
    enum { AT = 0x1040 };
    static uint8_t rest[sizeof ram];
    memset(ram, 0xa5, sizeof ram);
    memset(ram + AT, 0, 64);
    wait_ns = 5000; /* before the guest asked: not its business */
    assert_int_equal(wr(v, STEAL, AT | 1), PV_MSR_DONE);
    assert_true(u64_at(AT) == 0 && u32_at(AT + 8) == 2 && ram[AT + 16] == 0);
    memcpy(rest, ram, sizeof ram);

    wait_ns += 700;
    switched_out(v, THREAD_RUNNABLE);
    assert_true(v->pv.steal_due && ram[AT + 16] == 1 && u64_at(AT) == 0);
    pv_before_entry(v);
    assert_true(!v->pv.steal_due && ram[AT + 16] == 0 && u64_at(AT) == 700 && u32_at(AT + 8) == 4);
    switched_out(v, THREAD_THROTTLED); /* by a cap: it wants to run, too */
    assert_int_equal(ram[AT + 16], 1);
    wait_ns += 50;
    pv_before_entry(v);
    assert_true(ram[AT + 16] == 0 && u64_at(AT) == 750 && u32_at(AT + 8) == 6);
    switched_out(v, THREAD_BLOCKED); /* it sleeps: nobody took anything from it */
    assert_int_equal(ram[AT + 16], 0);
    pv_before_entry(v);
    assert_true(u64_at(AT) == 750 && u32_at(AT + 8) == 8);

    v->counted = false; /* parked: the memory may be someone else's by now */
    switched_out(v, THREAD_RUNNABLE);
    assert_int_equal(ram[AT + 16], 0);
    v->counted = true;

    memset(ram + AT, 0xff, 64); /* the guest writes into it: its own loss, and not for long */
    wait_ns += 1;
    pv_before_entry(v);
    assert_true(u64_at(AT) == 751 && u32_at(AT + 8) == 10 && ram[AT + 16] == 0);
    memcpy(rest + AT, ram + AT, 64);
    assert_memory_equal(ram, rest, sizeof ram); /* and nothing else was written */

    assert_int_equal(wr(v, STEAL, 0x2001), PV_MSR_DONE); /* another record: its sum counts on, a version left odd is finished */
    uint64_t sum = 0xa5a5a5a5a5a5a5a5;
    assert_true(u64_at(0x2000) == sum && u32_at(0x2008) == 0xa5a5a5a8u);
    wait_ns += 9;
    pv_before_entry(v);
    assert_true(u64_at(0x2000) == sum + 9 && u32_at(0x2008) == 0xa5a5a5aau);
    assert_memory_equal(ram + AT, rest + AT, 64);
    assert_int_equal(wr(v, STEAL, 0), PV_MSR_DONE);
    memcpy(rest, ram, sizeof ram);
    switched_out(v, THREAD_RUNNABLE);
    pv_before_entry(v);
    assert_memory_equal(ram, rest, sizeof ram);

    assert_int_equal(wr(v, STEAL, 0x2001), PV_MSR_DONE); /* off and on again, as a CPU that the guest unplugs: no leap, no step back */
    assert_int_equal(u64_at(0x2000), sum + 9);
    assert_int_equal(wr(v, CLOCK, 0x3001), PV_MSR_DONE);
    assert_int_equal(wr(v, WALL, 0x3100), PV_MSR_DONE);
    pv_vcpu_init_signal(v);
    assert_true(!rd(v, STEAL) && !rd(v, EOI) && !rd(v, CLOCK) && rd(v, WALL) == 0x3100 && !pins_left());
    pv_vcpu_reset(v);
    assert_int_equal(rd(v, WALL), 0);
    end(vm);
}

/* A fork: no pin is left while the memory is frozen, and a copy counts on from what the record says, without the time that the original waited. */
static void steal_in_a_copy(void **state)
{
    (void)state;
    struct vm *vm = fresh(1), *other = fake_vm(1);
    struct vcpu *v = vm->vcpus[0], *w = other->vcpus[0];
    struct pv_saved saved;
    w->counted = true;
    assert_int_equal(wr(v, STEAL, 0x1001), PV_MSR_DONE);
    assert_int_equal(wr(v, EOI, 0x2001), PV_MSR_DONE);
    assert_int_equal(wr(v, CLOCK, 0x3001), PV_MSR_DONE);
    wait_ns += 500;
    v->pv.steal_due = true;
    assert_true(pv_before_entry(v) && u64_at(0x1000) == 500);
    pv_give_up_pins(v);
    assert_true(pins_left() == 0 && rd(v, STEAL) == 0x1001 && rd(v, EOI) == 0x2001 && !((struct vlapic *)v->vlapic)->pv_eoi);
    pv_save(v, &saved);
    wait_ns += 40;
    switched_out(v, THREAD_RUNNABLE); /* nothing to write to */
    assert_int_equal(u64_at(0x1000), 500);
    short_of_memory = DMM_FAULT_STALLED;
    waited = 0;
    assert_true(!pv_before_entry(v) && waited == 1 && v->pv.pins_due && v->pv.steal_due);
    short_of_memory = DMM_FAULT_RETRY;
    assert_true(pv_before_entry(v) && !v->pv.pins_due && pins_left() == 2 && u64_at(0x1000) == 540);
    pv_give_up_pins(v);

    wait_ns = 7; /* of the copy's own thread */
    pv_load(w, &saved);
    assert_true(rd(w, STEAL) == 0x1001 && rd(w, EOI) == 0x2001 && rd(w, CLOCK) == 0x3001 && pins_left() == 0 && w->pv.steal_due);
    w->pv.waited_ns = 7;
    assert_true(pv_before_entry(w) && pins_left() == 2 && u64_at(0x1000) == 500);
    pv_load((pv_give_up_pins(w), w), &(struct pv_saved){.steal_msr = 0x1000}); /* back to a time when none was on */
    assert_true(pv_before_entry(w) && pins_left() == 0);
    pv_vcpu_reset(w);
    fake_vm_free(other);
    end(vm);
}

/* ---- end of interrupt --------------------------------------------------------------------------------------------------------------------- */

/* A guest on the fake hardware, and the run loop around it. What it took: a stack of vectors in service, and a log. */
struct guest {
    struct vm *vm;
    struct vcpu *v;
    uint32_t *word;      /* NULL: it writes the register */
    bool interrupts_on, window;
    unsigned depth, exits, by_word;
    uint8_t in_service[64];
    unsigned taken;
    uint8_t log[64];
};
enum { LEVEL_VECTOR = 0x61, LEVEL_PIN = 20 };

static void guest_exit(struct guest *g)
{
    int vector;
    g->exits++;
    g->v->kick_pending = false;
    while ((vector = pending(g->v)) >= 0 && g->interrupts_on && g->depth < sizeof g->in_service) {
        vdev_platform_ops.irq.accept(g->v, (uint8_t)vector);
        g->in_service[g->depth++] = (uint8_t)vector;
        g->log[g->taken++ % sizeof g->log] = (uint8_t)vector;
    }
    g->window = vector >= 0;
    if (g->word && (*g->word & 1)) { /* offered: for an edge, and with nothing waiting */
        assert_true(g->depth && g->in_service[g->depth - 1] != LEVEL_VECTOR);
        for (unsigned n = 0; n < 4; n++)
            assert_int_equal(((struct vlapic *)g->v->vlapic)->irr[n], 0);
    }
}

static void guest_eoi(struct guest *g)
{
    g->depth -= g->depth > 0;
    if (g->word && (*g->word & 1)) {
        *g->word &= ~1u;
        g->by_word++;
        return;
    }
    lapic_write(g->v, 0xb0, 0);
    guest_exit(g);
}

static void guest_init(struct guest *g, uint64_t word_gpa)
{
    *g = (struct guest){.vm = fake_vm(1), .interrupts_on = true};
    g->v = g->vm->vcpus[0];
    lapic_write(g->v, 0xf0, 0x1ff);
    ioapic_write(g->vm, 0x10 + 2 * LEVEL_PIN + 1, 0);
    ioapic_write(g->vm, 0x10 + 2 * LEVEL_PIN, LEVEL_VECTOR | 1u << 15);
    if (word_gpa) {
        assert_int_equal(wr(g->v, EOI, word_gpa | 1), PV_MSR_DONE);
        g->word = (uint32_t *)(void *)(ram + word_gpa);
    }
    guest_exit(g);
}

static void set_level(struct vm *vm, bool high)
{
    struct platform *p = vm->platform;
    uint64_t flags = spin_lock_irqsave(&p->irq_lock);
    vioapic_set_line(p, LEVEL_PIN, high);
    spin_unlock_irqrestore(&p->irq_lock, flags);
}

static void eoi_in_lockstep(void **state)
{
    (void)state;
    struct guest g[2];
    memset(ram, 0, sizeof ram);
    guest_init(&g[0], 0x5abc);
    guest_init(&g[1], 0);
    unsigned moves = 0;
    for (unsigned step = 0; step < 200000; step++) {
        bool storm = step / 1000 % 4 == 0;
        uint64_t what = rnd() % 16, vector = 32 + rnd() % 64 + (rnd() % 4 ? 0 : 128);
        for (unsigned n = 0; n < 2; n++) {
            struct guest *q = &g[n];
            switch (what) {
            case 0: case 1: case 2: case 3: /* storms, and quiet times with one at a time */
                if ((storm || what == 0) && vector != LEVEL_VECTOR)
                    assert_true(vdev_platform_ops.irq.post(q->v, false, (uint8_t)vector));
                break;
            case 4: set_level(q->vm, vector % 8 == 0); break;
            case 5: case 6:
                q->interrupts_on = what == 6;
                if (q->interrupts_on && q->window)
                    guest_exit(q);
                break;
            case 7: guest_exit(q); break;                                          /* some exit or other */
            case 10: /* a fork, of one of them */
                if (q->word) {
                    pv_give_up_pins(q->v);
                    assert_false(*q->word & 1);
                    if (vector % 2)
                        guest_exit(q);
                    assert_true(pv_before_entry(q->v));
                    guest_exit(q);
                }
                break;
            case 8: assert_int_equal(lapic_read(q->v, 0x100 + 0x10 * (vector & 7)), lapic_read(g[1].v, 0x100 + 0x10 * (vector & 7))); break;
            case 9: /* it moves its word, or turns it off and on */
                if (q->word && rnd() % 16 == 0) {
                    uint64_t at = 0x5000 + rnd() % 1024 * 4;
                    assert_int_equal(wr(q->v, EOI, 0), PV_MSR_DONE);
                    assert_false(*q->word & 1);
                    assert_int_equal(wr(q->v, EOI, at | 1), PV_MSR_DONE);
                    q->word = (uint32_t *)(void *)(ram + at);
                    moves++;
                    guest_exit(q);
                }
                break;
            default: guest_eoi(q); break;
            }
            if (n == 1 || q->v->kick_pending) /* the one without is looked at after every step: nothing can be late there */
                guest_exit(q);
        }
        assert_true(g[0].depth == g[1].depth && g[0].taken == g[1].taken && g[0].window == g[1].window);
        assert_memory_equal(g[0].in_service, g[1].in_service, g[0].depth);
        assert_memory_equal(g[0].log, g[1].log, sizeof g[0].log);
    }
    assert_true(g[0].by_word > 2000 && g[1].by_word == 0 && g[0].taken > 10000 && moves > 100);
    pv_vcpu_reset(g[0].v);
    assert_int_equal(pins_left(), 0);
    fake_vm_free(g[0].vm);
    fake_vm_free(g[1].vm);
}

/* A guest that spoils the word, or writes the register although it was told that it need not. */
static void eoi_abused(void **state)
{
    (void)state;
    struct guest g;
    memset(ram, 0, sizeof ram);
    guest_init(&g, 0x5000);
    struct vlapic *l = g.v->vlapic;
    *g.word = 0xffffffff; /* nothing was offered: no EOI follows from what it holds */
    assert_true(pending(g.v) == -1 && *g.word == 0xffffffff);
    *g.word = 0;
    vdev_platform_ops.irq.post(g.v, false, 0x41);
    guest_exit(&g);
    assert_true((*g.word & 1) && g.depth == 1);
    lapic_write(g.v, 0xb0, 0); /* the register, with the offer still there: one EOI */
    assert_true(!(*g.word & 1) && lapic_read(g.v, 0x120) == 0);
    vdev_platform_ops.irq.post(g.v, false, 0x41);
    vdev_platform_ops.irq.post(g.v, false, 0x71);
    g.depth = 0;
    guest_exit(&g);
    assert_true(g.depth == 1 && g.in_service[0] == 0x71 && !(*g.word & 1)); /* 0x41 waits */
    lapic_write(g.v, 0xb0, 0);
    guest_exit(&g);
    assert_true(*g.word & 1);
    *g.word = 0xfffffffe; /* taken, and the rest of the word is the guest's */
    assert_int_equal(pending(g.v), -1); /* nothing has asked for a look */
    vdev_platform_ops.irq.post(g.v, false, 0x31);
    assert_int_equal(pending(g.v), 0x31); /* 0x41 is no longer in service */
    assert_int_equal(*g.word, 0xfffffffe);
    vlapic_reset(l, false);
    guest_exit(&g);
    pv_vcpu_reset(g.v);
    assert_true(!l->pv_eoi && !pins_left());
    fake_vm_free(g.vm);
}

/* ---- hypercalls -------------------------------------------------------------------------------------------------------------------------- */

static int64_t call(struct vcpu *v, uint64_t nr, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3)
{
    v->gpr[GPR_RAX] = nr, v->gpr[GPR_RBX] = a0, v->gpr[GPR_RCX] = a1, v->gpr[GPR_RDX] = a2, v->gpr[GPR_RSI] = a3;
    v->rip = 0x1000;
    pv_hypercall(v);
    assert_int_equal(v->rip, 0x1000 + insn_len);
    assert_true(v->gpr[GPR_RBX] == a0 && v->gpr[GPR_RCX] == a1 && v->gpr[GPR_RDX] == a2 && v->gpr[GPR_RSI] == a3);
    return (int64_t)v->gpr[GPR_RAX];
}

static void kicks_and_yields(void **state)
{
    (void)state;
    struct vm *vm = fresh(3);
    struct vcpu *v = vm->vcpus[0], *other = vm->vcpus[2];
    static const uint64_t unknown[] = {0, 1, 2, 3, 4, 6, 7, 8, 9, 12, 13, 1000, UINT64_MAX, 5 | BIT64(32), 10 | BIT64(63)};
    for (unsigned n = 0; n < ARRAY_SIZE(unknown); n++)
        assert_int_equal(call(v, unknown[n], 0, 2, 0, 0x41), -1000);
    for (fake_cpl = 1; fake_cpl < 4; fake_cpl++)
        assert_int_equal(call(v, fake_cpl == 1 ? 5 : fake_cpl == 2 ? 10 : 99, 7, 2, 0, 0x41), -1);
    fake_cpl = 0;
    assert_true(!yields && !other->pv.unhalted && !fake_kicks);
    insn_len = 0; /* its length is not known yet: it comes again, and has done nothing */
    call(v, 5, 0, 2, 0, 0);
    assert_true(v->gpr[GPR_RAX] == 5 && !other->pv.unhalted);
    insn_len = 3;

    static const uint64_t nobody[] = {3, 255, 0x80000000, 0xffffffff, 0x7fffffff00000003};
    for (unsigned n = 0; n < ARRAY_SIZE(nobody); n++)
        assert_true(call(v, 5, 0, nobody[n], 0, 0) == 0 && call(v, 11, nobody[n], 0, 0, 0) == 0);
    assert_true(!yields && !fake_kicks);
    assert_int_equal(call(v, 5, 0, 2, 0, 0), 0);
    assert_true(other->pv.unhalted && other->kick_pending && yields == 1 && yielded_to == &other->thread);
    assert_true(pv_take_unhalt(other) && !pv_take_unhalt(other)); /* it sticks until a HLT takes it, once */
    assert_int_equal(call(v, 5, 0, 0, 0, 0), 0); /* oneself: the next HLT is over at once */
    assert_true(v->pv.unhalted && yields == 1);
    assert_int_equal(call(v, 11, 1, 0, 0, 0), 0);
    assert_true(yields == 2 && yielded_to == &vm->vcpus[1]->thread && !vm->vcpus[1]->pv.unhalted);
    assert_int_equal(call(v, 11, 0, 0, 0, 0), 0);
    assert_int_equal(yields, 2);
    call(v, 5, 0, 2, 0, 0);
    pv_vcpu_init_signal(other);
    assert_false(other->pv.unhalted);
    wide = false; /* half registers in, half a register out */
    assert_int_equal(call(v, 99, 0, 0, 0, 0), (uint32_t)-1000);
    assert_int_equal(call(v, 11 | BIT64(40), 2 | BIT64(50), 0, 0, 0), 0);
    assert_true(yields == 4 && yielded_to == &other->thread);
    end(vm);
}

static void send_ipi(void **state)
{
    (void)state;
    enum { N = 140 };
    struct vm *vm = fresh(N);
    struct vcpu *v = vm->vcpus[7];
    for (unsigned n = 0; n < N; n++)
        lapic_write(vm->vcpus[n], 0xf0, 0x1ff);
    assert_int_equal(call(v, 10, 0x81, 1, 1, 0xfd), 3);
    for (unsigned n = 0; n < N; n++)
        assert_int_equal(take(vm->vcpus[n]), n == 1 || n == 8 || n == 65 ? 0xfd : -1);
    wide = false; /* maps of 32 bits */
    assert_int_equal(call(v, 10, 0x80 | BIT64(40), 1, 0 | BIT64(32), 0x44 | BIT64(35)), 2);
    for (unsigned n = 0; n < N; n++)
        assert_int_equal(take(vm->vcpus[n]), n == 7 || n == 32 ? 0x44 : -1);
    wide = true;
    assert_int_equal(call(v, 10, BIT64(3), 0, 0, 0x400), 1);
    assert_true(vm->vcpus[3]->nmi_pending && !vm->vcpus[2]->nmi_pending);
    assert_int_equal(call(v, 10, UINT64_MAX, UINT64_MAX, 100, 0x55), 40); /* those beyond the last are nobody */
    assert_int_equal(call(v, 10, UINT64_MAX, UINT64_MAX, N, 0x55), 0);
    assert_int_equal(call(v, 10, UINT64_MAX, UINT64_MAX, 0xffffffff, 0x55), 0); /* no way around the end */
    assert_int_equal(call(v, 10, UINT64_MAX, UINT64_MAX, 0xffffffc0, 0x55), 0);
    assert_int_equal(call(v, 10, 1, 0, BIT64(32), 0x56), 1); /* the lowest id has 32 bits */
    assert_int_equal(take(vm->vcpus[0]), 0x56);
    assert_int_equal(call(v, 10, 0, 0, 0, 0x55), 0);
    static const uint64_t bad[] = {0x0f, 0x00, 0x155, 0x255, 0x355, 0x500, 0x600, 0x755, 0x855, 0x40055, 0x80055, 0xc0055, 0x100055,
        BIT64(32) | 0x55, BIT64(63) | 0x55};
    for (unsigned n = 0; n < ARRAY_SIZE(bad); n++)
        assert_int_equal(call(v, 10, 1, 0, 0, bad[n]), -22);
    assert_int_equal(pending(vm->vcpus[0]), -1);
    bool gp = false;
    assert_true(vdev_platform_ops.wrmsr(vm->vcpus[5], 0x1b, 0xfee00000, &gp) && !gp); /* its APIC is off */
    assert_int_equal(call(v, 10, 0x30, 0, 0, 0x57), 1);
    vm->vcpus[5]->nmi_pending = false;
    assert_int_equal(call(v, 10, 0x20, 0, 0, 0x400), 0);
    assert_false(vm->vcpus[5]->nmi_pending);
    end(vm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(msr_values), cmocka_unit_test(memory_short), cmocka_unit_test(memory_short_for_clocks),
        cmocka_unit_test(pins_are_balanced),
        cmocka_unit_test(steal_in_a_copy), cmocka_unit_test(steal_record),
        cmocka_unit_test(eoi_in_lockstep), cmocka_unit_test(eoi_abused), cmocka_unit_test(kicks_and_yields), cmocka_unit_test(send_ipi),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
