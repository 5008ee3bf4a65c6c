/*
 * Events for the guest (SDM 3, 27.6 and 28.2.4): one at a time, through the VM-entry interruption-information field, which
 * is written just before the entry; until then the event waits in struct vmx_vcpu.
 *
 * An event whose delivery ended in an exit is in IDT_VECTORING and must be injected again, else it is lost: the vlapic has marked it as
 * taken. Software interrupts go the same way, with the length of the instruction that RIP still points at.
 *
 * An entry is refused if the interruptibility state contradicts the event (27.3.1.5): no interrupt in the shadow of STI or MOV SS, no
 * NMI there or while NMIs are blocked, single-stepping in a shadow only with its pending trap recorded.
 *
 * The preemption timer runs while a guest was entered with IF = 0. A real CPU leaves the guest for an interrupt whatever its IF is;
 * software CPUs have been seen not to if it was 0 at the entry, and a guest that spins there would keep the CPU for ever.
 */
#include "vmx/vmx.h"

#include "lib/string.h"
#include "x86/idt.h"

#define SHADOW (VMX_BLOCKED_BY_STI | VMX_BLOCKED_BY_MOV_SS)

bool vmx_event_pending(struct vcpu *v) { return vmx_of(v)->event & VMX_EVENT_VALID; }

bool vmx_can_inject_intr(struct vcpu *v)
{
    if (!(v->rflags & RFLAGS_IF) || vmx_event_pending(v))
        return false;
    vmx_current(v);
    return !(vmread(VMCS_INTERRUPTIBILITY) & SHADOW);
}

/* 27.2.1.3: an error code must come with exactly these, and only in protected mode. */
static bool pushes_error(const struct vmx_vcpu *s, unsigned vector)
{
    enum { WITH_ERROR = 1 << X86_DF | 1 << X86_TS | 1 << X86_NP | 1 << X86_SS | 1 << X86_GP | 1 << X86_PF | 1 << X86_AC };
    return (s->cr0 & CR0_PE) && vector < 32 && (WITH_ERROR >> vector & 1);
}

bool vmx_inject(struct vcpu *v, const struct vm_event *ev)
{
    static const uint8_t types[] = {
        [VM_EVENT_INTR] = VMX_EVENT_EXTINT, [VM_EVENT_NMI] = VMX_EVENT_NMI, [VM_EVENT_EXCEPTION] = VMX_EVENT_EXCEPTION,
        [VM_EVENT_SOFT_INT] = VMX_EVENT_SOFT_INT,
    };
    struct vmx_vcpu *s = vmx_of(v);
    if (vmx_event_pending(v))
        return false;
    if (ev->type == VM_EVENT_NONE)
        return true;
    uint8_t vector = ev->type == VM_EVENT_NMI ? X86_NMI : ev->vector, type = types[ev->type];
    s->event = VMX_EVENT_MAKE(type, vector);
    s->event_len = ev->insn_len ? ev->insn_len : 1;
    if (type == VMX_EVENT_EXCEPTION && pushes_error(s, vector)) {
        s->event |= VMX_EVENT_ERROR_VALID;
        s->event_error = ev->error_code & 0xffff;
    }
    if (type == VMX_EVENT_EXCEPTION && vector == X86_PF)
        s->cr2 = ev->cr2;
    return true;
}

static void set_proc_control(struct vcpu *v, uint32_t bit, bool on)
{
    struct vmx_vcpu *s = vmx_of(v);
    uint32_t controls = on ? s->proc_controls | bit : s->proc_controls & ~bit;
    if (likely(controls == s->proc_controls))
        return;
    vmx_current(v);
    vmwrite(VMCS_PROC_CONTROLS, s->proc_controls = controls);
}

void vmx_request_irq_window(struct vcpu *v, bool on) { set_proc_control(v, VMX_PROC_IRQ_WINDOW, on); }
void vmx_request_nmi_window(struct vcpu *v, bool on) { set_proc_control(v, VMX_PROC_NMI_WINDOW, on); }

/* Without a TPR shadow every access to CR8 exits. */
void vmx_set_tpr_alarm(struct vcpu *v, uint8_t tpr_class)
{
    struct vmx_vcpu *s = vmx_of(v);
    if (!s->apic_page || s->tpr_threshold == tpr_class)
        return;
    vmx_current(v);
    vmwrite(VMCS_TPR_THRESHOLD, s->tpr_threshold = tpr_class);
}

void vmx_set_pause_exits(struct vcpu *v, bool on)
{
    if (!(vmx_features()->proc2 & VMX_PROC2_PAUSE_LOOP))
        set_proc_control(v, VMX_PROC_PAUSE, on);
}

bool vmx_nmi_blocked(struct vcpu *v)
{
    vmx_current(v);
    return vmread(VMCS_INTERRUPTIBILITY) & (VMX_BLOCKED_BY_NMI | SHADOW);
}

void vmx_clear_interrupt_shadow(struct vcpu *v)
{
    vmx_current(v);
    vmx_clear_shadow();
}

/* The VMCS is current; RFLAGS in it are still those of the last exit. */
void vmx_inject_entering(struct vcpu *v)
{
    struct vmx_vcpu *s = vmx_of(v);
    vmx_arm_timer(s, v->rflags);
    /* Inside a shadow BS must be what TF is (27.3.1.5). An exit leaves it so, but for one by #DB, which clears all pending ones. */
    if (unlikely((v->rflags | s->rflags) & RFLAGS_TF) && (vmread(VMCS_INTERRUPTIBILITY) & SHADOW)) {
        uint64_t pending = vmread(VMCS_PENDING_DEBUG) & ~VMX_PENDING_DEBUG_BS;
        vmwrite(VMCS_PENDING_DEBUG, pending | (v->rflags & RFLAGS_TF ? VMX_PENDING_DEBUG_BS : 0));
    }
    if (likely(!(s->event & VMX_EVENT_VALID)))
        return;
    vmwrite(VMCS_ENTRY_INTERRUPTION, s->event);
    if (s->event & VMX_EVENT_ERROR_VALID)
        vmwrite(VMCS_ENTRY_ERROR_CODE, s->event_error);
    if (VMX_EVENT_TYPE(s->event) >= VMX_EVENT_SOFT_INT)
        vmwrite(VMCS_ENTRY_INSTRUCTION_LENGTH, s->event_len);
}

/* IRET ends the blocking of NMIs before it can fault: if it then caused this exit it has not happened, and they are blocked still. */
static bool iret_undone(const struct vmx_vcpu *s)
{
    if (s->reason == VMX_REASON_EPT_VIOLATION || s->reason == VMX_REASON_PML_FULL)
        return vmread(VMCS_EXIT_QUALIFICATION) & VMX_EPT_NMI_UNBLOCKED;
    if (s->reason != VMX_REASON_EXCEPTION_OR_NMI)
        return false;
    uint32_t event = (uint32_t)vmread(VMCS_EXIT_INTERRUPTION);
    return (event & VMX_EVENT_NMI_UNBLOCKED) && VMX_EVENT_VECTOR(event) != X86_DF;
}

void vmx_inject_exited(struct vcpu *v)
{
    struct vmx_vcpu *s = vmx_of(v);
    if (unlikely(s->reason & VMX_REASON_ENTRY_FAILURE))
        return; /* nothing was delivered, and the field below is of an older exit */
    uint32_t event = (uint32_t)vmread(VMCS_IDT_VECTORING);
    s->event = 0;
    if (likely(!(event & VMX_EVENT_VALID))) {
        if (unlikely(iret_undone(s)))
            vmwrite(VMCS_INTERRUPTIBILITY, vmread(VMCS_INTERRUPTIBILITY) | VMX_BLOCKED_BY_NMI);
        return;
    }
    if (s->reason == VMX_REASON_TRIPLE_FAULT)
        return;
    s->event = event & (VMX_EVENT_VALID | VMX_EVENT_ERROR_VALID | 0x7ff);
    if (event & VMX_EVENT_ERROR_VALID)
        s->event_error = (uint32_t)vmread(VMCS_IDT_VECTORING_ERROR_CODE);
    if (VMX_EVENT_TYPE(event) >= VMX_EVENT_SOFT_INT)
        s->event_len = (uint8_t)vmread(VMCS_EXIT_INSTRUCTION_LENGTH);
    if (VMX_EVENT_TYPE(event) == VMX_EVENT_NMI) /* its delivery blocked NMIs, itself included */
        vmwrite(VMCS_INTERRUPTIBILITY, vmread(VMCS_INTERRUPTIBILITY) & ~(uint64_t)VMX_BLOCKED_BY_NMI);
}

/* ---- a vCPU's copy -------------------------------------------------------------------------------------------------------- */

/* RFLAGS are those that PENDING_DEBUG goes with (vmx_inject_entering). The PDPTEs may differ from what is in memory by now. */
struct vmx_saved {
    uint64_t interruptibility, pending_debug, rflags, pdpte[4];
    uint32_t event, event_error;
    uint8_t event_len;
    bool pdptes_stale;
};
_Static_assert(sizeof(struct vmx_saved) <= HVM_SAVED_BYTES, "struct hvm_saved");

static enum vmcs_field pdpte_field(unsigned n) { return (enum vmcs_field)(VMCS_GUEST_PDPTE0 + 2 * n); }

void vmx_save(struct vcpu *v, struct hvm_saved *out)
{
    const struct vmx_vcpu *s = vmx_of(v);
    vmx_current(v);
    struct vmx_saved saved = {
        .interruptibility = vmread(VMCS_INTERRUPTIBILITY), .pending_debug = vmread(VMCS_PENDING_DEBUG), .rflags = s->rflags, .event = s->event,
        .event_error = s->event_error, .event_len = s->event_len, .pdptes_stale = s->pdptes_stale,
    };
    for (unsigned n = 0; n < ARRAY_SIZE(saved.pdpte); n++)
        saved.pdpte[n] = vmread(pdpte_field(n));
    memcpy(out->bytes, &saved, sizeof(saved));
}

void vmx_load(struct vcpu *v, const struct hvm_saved *in)
{
    struct vmx_vcpu *s = vmx_of(v);
    struct vmx_saved saved;
    memcpy(&saved, in->bytes, sizeof(saved));
    vmx_current(v);
    vmwrite(VMCS_INTERRUPTIBILITY, saved.interruptibility);
    vmwrite(VMCS_PENDING_DEBUG, saved.pending_debug);
    vmwrite(VMCS_ACTIVITY_STATE, 0); /* HLT and the others exit */
    vmwrite(VMCS_GUEST_RFLAGS, s->rflags = saved.rflags);
    for (unsigned n = 0; n < ARRAY_SIZE(saved.pdpte); n++)
        vmwrite(pdpte_field(n), saved.pdpte[n]);
    s->pdptes_stale = saved.pdptes_stale;
    s->event = saved.event;
    s->event_error = saved.event_error;
    s->event_len = saved.event_len;
    vmx_request_irq_window(v, false);
    vmx_request_nmi_window(v, false);
    vmx_set_tpr_alarm(v, 0);
}
