/* TEST-SOURCES: svm/msr.c svm/inject.c svm/control.c */
/*
 * A vCPU's copy on AMD: registers, the event that waits, the interrupt shadow, blocked NMIs with their IRET. Two vCPUs, one loaded from the
 * other, must go through the same exits alike. And what a reset leaves: the intercepts of the start, and no translation.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "svm/svm.h"
#include "x86/cpu.h"
#include "x86/idt.h"

struct svm_features svm_feature_flags = {.honours_shadow = true};
_Thread_local struct percpu host_percpu;
static struct vm vm;

/* ---- what svm/control.c wants of the world ---- */

static struct vmcb made __attribute__((aligned(4096)));
void *kzalloc(size_t bytes) { return calloc(1, bytes); }
void kfree(void *p) { free(p); }
mfn_t frame_alloc(unsigned order, unsigned flags, enum frame_type type, struct dmm_space *owner)
{
    (void)order, (void)flags, (void)type, (void)owner;
    memset(&made, 0, sizeof(made));
    return (mfn_t){1};
}
void frame_free(mfn_t mfn, unsigned order) { (void)order; assert_int_equal(mfn.v, 1); }
void *mfn_to_hva(mfn_t mfn) { (void)mfn; return &made; }
unsigned cpu_count(void) { return 1; }
struct percpu *percpu_of(unsigned id) { (void)id; return this_cpu(); }
uint64_t svm_iopm_hpa(void) { return 0x2000; }
uint64_t svm_msrpm_hpa(void) { return 0x3000; }
void vcpu_init_registers(struct vcpu *v, struct vcpu_sregs *r)
{
    *r = (struct vcpu_sregs){.cr0 = CR0_ET | CR0_CD | CR0_NW, .dr6 = 0xffff0ff0, .dr7 = 0x400, .pat = PAT_RESET};
    v->rip = 0xfff0;
}

struct one { struct vcpu v; struct svm_vcpu s; struct vmcb b; };

static void init(struct one *o)
{
    memset(o, 0, sizeof(*o));
    o->s.vmcb = &o->b;
    o->v.hvm = &o->s;
    o->v.vm = &vm;
    o->b.c.misc1 = SVM_MISC1(SVM_EXIT_INTR) | SVM_MISC1(SVM_EXIT_HLT);
}

static uint64_t random64(void) { return (uint64_t)rand() << 42 ^ (uint64_t)rand() << 21 ^ (uint64_t)rand(); }

/* As VMRUN leaves a VMCB: segments present or null. */
static void scramble(struct one *o)
{
    uint64_t *words = (uint64_t *)&o->b.s;
    for (size_t n = 0; n < sizeof(o->b.s) / 8; n++)
        words[n] = random64();
    struct vmcb_seg *segs[] = {&o->b.s.es, &o->b.s.cs, &o->b.s.ss, &o->b.s.ds, &o->b.s.fs, &o->b.s.gs, &o->b.s.ldtr, &o->b.s.tr};
    for (size_t n = 0; n < sizeof(segs) / sizeof(segs[0]); n++)
        segs[n]->attr = rand() % 4 ? (segs[n]->attr & 0xfff) | 0x80 : segs[n]->attr & 0x60;
    o->b.s.efer |= EFER_SVME;
    svm_set_reg(&o->v, VCPU_CR0, o->b.s.cr0);
    o->v.rflags = 2 | (rand() & RFLAGS_IF);
    o->b.c.v_tpr = (uint8_t)(rand() & 15);
    o->b.c.interrupt_shadow = (uint64_t)rand() & 1;
}

static void copy(struct one *from, struct one *to)
{
    struct vcpu_sregs sregs;
    struct hvm_saved saved;
    svm_get_sregs(&from->v, &sregs);
    svm_save(&from->v, &saved);
    to->v.rip = from->v.rip;
    to->v.rflags = from->v.rflags;
    svm_set_sregs(&to->v, &sregs);
    svm_load(&to->v, &saved);
}

static void assert_alike(struct one *a, struct one *b)
{
    struct vcpu_sregs r, q;
    memset(&r, 0, sizeof(r)), memset(&q, 0, sizeof(q));
    svm_get_sregs(&a->v, &r);
    svm_get_sregs(&b->v, &q);
    assert_memory_equal(&r, &q, sizeof(r));
    assert_int_equal(a->b.s.cpl, b->b.s.cpl);
    assert_int_equal(a->b.s.cr0, b->b.s.cr0);
    assert_int_equal(a->b.c.cr_read, b->b.c.cr_read);
    assert_int_equal(a->b.c.cr_write, b->b.c.cr_write);
    assert_int_equal(a->b.c.event_inj, b->b.c.event_inj);
    assert_int_equal(a->b.c.interrupt_shadow, b->b.c.interrupt_shadow);
    assert_int_equal(a->b.c.misc1, b->b.c.misc1);
    assert_int_equal(svm_nmi_blocked(&a->v), svm_nmi_blocked(&b->v));
    assert_int_equal(svm_can_inject_intr(&a->v), svm_can_inject_intr(&b->v));
}

/* An entry, and an exit of a random kind: RIP moves, an event's delivery may have been cut short. */
static void round_trip(struct one *o, unsigned what, uint64_t rip, uint64_t event)
{
    svm_inject_entering(&o->v);
    o->v.rip = o->b.s.rip = rip;
    o->b.c.exit_code = what == 0 && (o->b.c.misc1 & SVM_MISC1(SVM_EXIT_IRET)) ? SVM_EXIT_IRET : SVM_EXIT_INTR;
    o->b.c.exit_int_info = what == 1 ? event : 0;
    svm_inject_exited(&o->v, &o->s, &o->b);
}

static void inject_something(struct one *o, unsigned what)
{
    const struct vm_event events[] = {{.type = VM_EVENT_NMI}, {.type = VM_EVENT_INTR, .vector = 0x31},
                                      {.type = VM_EVENT_EXCEPTION, .vector = X86_GP, .has_error = true, .error_code = 0x18}};
    if (what >= 3 || (what == 0 && svm_nmi_blocked(&o->v)))
        return;
    svm_inject(&o->v, &events[what]);
}

static void copies(void **state)
{
    static struct one a, b;
    (void)state;
    srand(7);
    for (unsigned n = 0; n < 20000; n++) {
        init(&a), init(&b);
        scramble(&a), scramble(&b);
        for (unsigned k = 0; k < (unsigned)rand() % 6; k++) {
            inject_something(&a, (unsigned)rand() % 6);
            round_trip(&a, (unsigned)rand() % 4, random64() & ~UINT64_C(7), SVM_EVENT_MAKE(SVM_EVENT_INTR, 0x55));
        }
        inject_something(&b, 0);
        if (rand() & 1)
            round_trip(&b, 0, 0x1000, 0);
        inject_something(&a, (unsigned)rand() % 6);
        svm_request_irq_window(&b.v, true);
        svm_set_tpr_alarm(&b.v, (uint8_t)(1 + rand() % 15));
        assert_true(b.b.c.cr_write & BIT64(8));
        b.b.c.exit_int_info = SVM_EVENT_MAKE(SVM_EVENT_INTR, 0x99);
        copy(&a, &b);
        assert_int_equal(b.s.clean, 0);
        assert_alike(&a, &b);
        for (unsigned k = 0; k < 8; k++) {
            unsigned event = (unsigned)rand() % 8, what = (unsigned)rand() % 4;
            uint64_t rip = rand() % 3 ? random64() & ~UINT64_C(7) : a.v.rip;
            inject_something(&a, event), inject_something(&b, event);
            assert_alike(&a, &b);
            round_trip(&a, what, rip, SVM_EVENT_MAKE(SVM_EVENT_INTR, 0x66)), round_trip(&b, what, rip, SVM_EVENT_MAKE(SVM_EVENT_INTR, 0x66));
            assert_alike(&a, &b);
        }
    }
}

/* INIT in the middle of a guest's life: it exits for the same things as at the start, and no translation of the life before is left. */
static void reset(void **state)
{
    (void)state;
    for (unsigned filter = 0; filter < 2; filter++) {
        struct vcpu v = {.vm = &vm};
        svm_feature_flags.pause_filter = filter;
        assert_true(svm_vcpu_init(&v));
        svm_vcpu_reset(&v);
        struct svm_vcpu *s = svm_of(&v);
        struct vmcb_control first = made.c;
        assert_int_equal(!!(first.misc1 & SVM_MISC1(SVM_EXIT_PAUSE)), filter);
        assert_int_equal(first.pause_count != 0, filter);
        svm_request_irq_window(&v, true);
        svm_set_pause_exits(&v, !filter);
        s->nmi_masked = true;
        s->asid_generation = 5;
        svm_set_reg(&v, VCPU_CR0, CR0_PE | CR0_PG);
        s->asid_generation = 5;
        svm_vcpu_reset(&v);
        assert_int_equal(s->asid_generation, 0);
        assert_int_equal(s->clean, 0);
        assert_false(s->nmi_masked);
        assert_memory_equal(&made.c, &first, sizeof(first));
        svm_vcpu_fini(&v);
        assert_null(v.hvm);
    }
}

/* A CPU that forgets the shadow at VMRUN: while RIP stands still it is there after each exit, but not for ever, and a new one is a new one. */
static void shadow(void **state)
{
    (void)state;
    struct one o;
    init(&o);
    o.b.s.rip = 0x1000;
    svm_keep_shadow(&o.s, &o.b, 0x1000); /* one that does not forget has said so itself */
    assert_int_equal(o.b.c.interrupt_shadow, 0);
    svm_feature_flags.honours_shadow = false;
    for (unsigned again = 0; again < 100; again++) {
        o.b.c.interrupt_shadow = 0;
        svm_keep_shadow(&o.s, &o.b, 0x1000); /* an interrupt of ours before the HLT */
        assert_int_equal(o.b.c.interrupt_shadow, 1);
        o.v.rflags = RFLAGS_IF;
        assert_false(svm_can_inject_intr(&o.v));
        svm_clear_interrupt_shadow(&o.v); /* the HLT has exited, and is done */
        assert_true(svm_can_inject_intr(&o.v));
    }
    svm_keep_shadow(&o.s, &o.b, 0xfff); /* the instruction has run */
    assert_int_equal(o.b.c.interrupt_shadow, 0);
    unsigned kept = 0;
    for (; kept < 1000; kept++) { /* STI; JMP to itself: interrupts come in the end */
        o.b.c.interrupt_shadow = 0;
        svm_keep_shadow(&o.s, &o.b, 0x1000);
        if (!o.b.c.interrupt_shadow)
            break;
    }
    assert_in_range(kept, 2, 100);
    svm_feature_flags.honours_shadow = true;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(copies), cmocka_unit_test(reset), cmocka_unit_test(shadow)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
