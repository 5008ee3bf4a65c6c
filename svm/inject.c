/*
 * Events for the guest (APM 2, 15.20 and 15.21): everything goes in through EVENTINJ. V_IRQ is only the alarm clock that
 * rings (VINTR exit) when the guest can take an interrupt; its vector never reaches the guest. It does not ring for an interrupt that
 * waits for a lower CR8: V_IRQ's priority must be above V_TPR for the CPU, but software CPUs take an equal one and would exit before every
 * instruction. While one waits, writes of CR8 exit.
 *
 * An event whose delivery ended in an exit is in EXITINTINFO and must be injected again, else it is lost: the vlapic has marked it
 * as taken. Not so software interrupts and INT3/INTO: RIP is still on the instruction, which simply runs again.
 */
#include "svm/svm.h"

#include "lib/string.h"
#include "x86/cpu.h"
#include "x86/idt.h"

bool svm_event_pending(struct vcpu *v) { return vmcb_of(v)->c.event_inj & SVM_EVENT_VALID; }

bool svm_can_inject_intr(struct vcpu *v)
{
    const struct vmcb *b = vmcb_of(v);
    return (v->rflags & RFLAGS_IF) && !(b->c.interrupt_shadow & 1) && !(b->c.event_inj & SVM_EVENT_VALID);
}

bool svm_inject(struct vcpu *v, const struct vm_event *ev)
{
    static const uint8_t types[] = {
        [VM_EVENT_INTR] = SVM_EVENT_INTR, [VM_EVENT_NMI] = SVM_EVENT_NMI, [VM_EVENT_EXCEPTION] = SVM_EVENT_EXCEPTION,
        [VM_EVENT_SOFT_INT] = SVM_EVENT_SOFT_INT,
    };
    struct svm_vcpu *s = svm_of(v);
    if (svm_event_pending(v))
        return false;
    if (ev->type == VM_EVENT_NONE)
        return true;
    uint64_t e = SVM_EVENT_MAKE(types[ev->type], ev->type == VM_EVENT_NMI ? X86_NMI : ev->vector);
    if (ev->has_error)
        e |= SVM_EVENT_ERROR_VALID | (uint64_t)ev->error_code << 32;
    if (ev->type == VM_EVENT_EXCEPTION && ev->vector == X86_PF) {
        s->vmcb->s.cr2 = ev->cr2;
        svm_dirty(s, SVM_CLEAN_CR2);
    }
    if (ev->type == VM_EVENT_SOFT_INT)
        v->rip += ev->insn_len; /* type 4 pushes RIP as it stands */
    if (ev->type == VM_EVENT_NMI) {
        s->nmi_masked = true;
        s->iret_seen = false;
        s->vmcb->c.misc1 |= SVM_MISC1(SVM_EXIT_IRET);
        svm_dirty(s, SVM_CLEAN_INTERCEPTS);
    }
    s->vmcb->c.event_inj = e;
    return true;
}

/* Arms the alarm, or not: V_IRQ with the highest priority, TPR ignored, so that only IF and the shadow hold it back. */
static void arm_window(struct svm_vcpu *s, bool on)
{
    struct vmcb_control *c = &s->vmcb->c;
    if ((c->v_irq & SVM_V_IRQ) == (on ? SVM_V_IRQ : 0))
        return;
    c->v_irq = on ? SVM_V_IRQ : 0;
    c->v_prio = on ? SVM_V_PRIO(15) | SVM_V_IGN_TPR : 0;
    c->misc1 = on ? c->misc1 | SVM_MISC1(SVM_EXIT_VINTR) : c->misc1 & ~SVM_MISC1(SVM_EXIT_VINTR);
    svm_dirty(s, SVM_CLEAN_TPR | SVM_CLEAN_INTERCEPTS);
}

void svm_request_irq_window(struct vcpu *v, bool on)
{
    svm_of(v)->irq_window = on;
    arm_window(svm_of(v), on);
}

void svm_set_tpr_alarm(struct vcpu *v, uint8_t tpr_class)
{
    struct vmcb_control *c = &vmcb_of(v)->c;
    c->cr_write = (uint16_t)(tpr_class ? c->cr_write | BIT64(8) : c->cr_write & ~BIT64(8));
    svm_dirty(svm_of(v), SVM_CLEAN_INTERCEPTS);
}

bool svm_nmi_blocked(struct vcpu *v) { return svm_of(v)->nmi_masked; }

/* Nothing to arm: from the injected NMI on, the IRET that ends the mask exits anyway. */
void svm_request_nmi_window(struct vcpu *v, bool on)
{
    (void)v;
    (void)on;
}

void svm_clear_interrupt_shadow(struct vcpu *v)
{
    vmcb_of(v)->c.interrupt_shadow = 0;
    svm_of(v)->shadow_kept = 0;
}

/*
 * Software CPUs forget the shadow at VMRUN: an alarm armed inside the shadow of STI would ring before the HLT behind
 * it, the interrupt would be served, and the guest would then halt without the wake-up it was promised. There the alarm stays
 * off for this one entry: the HLT exits by itself, anything else comes back with the next exit.
 */
void svm_inject_entering(struct vcpu *v)
{
    struct svm_vcpu *s = svm_of(v);
    if (!svm_features()->honours_shadow)
        arm_window(s, !(s->vmcb->c.interrupt_shadow & 1));
}

/*
 * And an entry that ends before the guest has run its instruction, for an interrupt of ours that was waiting, says at its exit that there is no
 * shadow: the next entry would let the guest's interrupt in before the HLT. RIP has not moved: the shadow is still there. A guest that
 * jumps to itself looks the same, so this is so only a few times in a row.
 */
void svm_keep_shadow(struct svm_vcpu *s, struct vmcb *b, uint64_t rip)
{
    enum { IN_A_ROW_MAX = 16 };
    if (svm_features()->honours_shadow)
        return;
    if (b->s.rip == rip && s->shadow_kept < IN_A_ROW_MAX) {
        b->c.interrupt_shadow |= 1;
        s->shadow_kept++;
    } else {
        s->shadow_kept = 0;
    }
}

/*
 * QEMU's VMRUN notes V_IRQ among the CPU's pending interrupts without the lock that its other threads hold when they add theirs: one that comes
 * just then is forgotten, until the local APIC looks through what it has, which a write of the TPR makes it do. Ours is always 0.
 */
void svm_window_left(void)
{
    if (svm_features()->loses_interrupts)
        write_cr8(0);
}

void svm_inject_exited_slow(struct vcpu *v)
{
    struct svm_vcpu *s = svm_of(v);
    struct vmcb_control *c = &s->vmcb->c;
    uint64_t e = c->exit_int_info;
    if (unlikely(e & SVM_EVENT_VALID)) {
        unsigned vector = SVM_EVENT_VECTOR(e), type = (unsigned)SVM_EVENT_TYPE(e);
        if (type == SVM_EVENT_EXCEPTION && vector >= 32) /* software CPUs say so of an interrupt */
            e = SVM_EVENT_MAKE(SVM_EVENT_INTR, vector);
        bool runs_again = type == SVM_EVENT_SOFT_INT || (type == SVM_EVENT_EXCEPTION && (vector == X86_BP || vector == X86_OF));
        if (!runs_again && c->exit_code != SVM_EXIT_SHUTDOWN)
            c->event_inj = e & (SVM_EVENT_VALID | SVM_EVENT_ERROR_VALID | 0x7ff | GENMASK64(63, 32));
    }
    if (likely(!s->nmi_masked))
        return;
    /* 15.20: the mask ends with the IRET. Its intercept comes before it; let it go, and unmask once RIP has moved. */
    if (c->exit_code == SVM_EXIT_IRET) {
        s->iret_seen = true;
        s->iret_rip = s->vmcb->s.rip;
        c->misc1 &= ~SVM_MISC1(SVM_EXIT_IRET);
        svm_dirty(s, SVM_CLEAN_INTERCEPTS);
    } else if (s->iret_seen && s->vmcb->s.rip != s->iret_rip) {
        s->nmi_masked = s->iret_seen = false;
    }
}

/* ---- a vCPU's copy ------------------------------------------------------------------------------------------------------- */

/* EXITINTINFO is no part of it: what there was to take from it is in EVENTINJ since the exit. CPL is SS's DPL, but the VMCB has it apart. */
struct svm_saved { uint64_t event_inj, interrupt_shadow, iret_rip; uint8_t cpl; bool nmi_masked, iret_seen; };
_Static_assert(sizeof(struct svm_saved) <= HVM_SAVED_BYTES, "struct hvm_saved");

void svm_save(struct vcpu *v, struct hvm_saved *out)
{
    const struct svm_vcpu *s = svm_of(v);
    const struct svm_saved saved = {
        .event_inj = s->vmcb->c.event_inj, .interrupt_shadow = s->vmcb->c.interrupt_shadow, .iret_rip = s->iret_rip, .cpl = s->vmcb->s.cpl,
        .nmi_masked = s->nmi_masked, .iret_seen = s->iret_seen,
    };
    memcpy(out->bytes, &saved, sizeof(saved));
}

void svm_load(struct vcpu *v, const struct hvm_saved *in)
{
    struct svm_vcpu *s = svm_of(v);
    struct vmcb_control *c = &s->vmcb->c;
    struct svm_saved saved;
    memcpy(&saved, in->bytes, sizeof(saved));
    c->event_inj = saved.event_inj;
    c->exit_int_info = 0;
    c->interrupt_shadow = saved.interrupt_shadow;
    s->vmcb->s.cpl = saved.cpl;
    s->nmi_masked = saved.nmi_masked;
    s->iret_seen = saved.iret_seen;
    s->iret_rip = saved.iret_rip;
    svm_request_irq_window(v, false);
    svm_set_tpr_alarm(v, 0);
    uint32_t iret = SVM_MISC1(SVM_EXIT_IRET);
    c->misc1 = saved.nmi_masked && !saved.iret_seen ? c->misc1 | iret : c->misc1 & ~iret;
    s->clean = 0;
}
