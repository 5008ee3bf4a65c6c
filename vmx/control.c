/*
 * A vCPU's VMCS from birth to end: what causes exits, the state after INIT, and which CPU has it.
 *
 * The rule for exits is svm/control.c's: whatever the CPU would do to the machine instead of to the guest, whatever our platform
 * defines (CPUID, MSRs, ports, HLT), and what could keep a CPU in the guest for ever: #DB and #AC raised by their own delivery. #MC
 * is the machine's. CR3, INVLPG, CR8 and the time-stamp counter belong to the guest: EPT, the TPR shadow and the offset cover them.
 *
 * Active and current. A CPU may hold a VMCS's contents in itself until VMCLEAR, so a vCPU that moves must be cleared on the CPU it
 * leaves, which nobody tells us when it goes. It is fetched when it arrives: the new CPU leaves its name in the old one's
 * mailbox and interrupts it. No guest waits for this while nothing moves, and no scheduler hook is needed.
 */
#include "vmx/vmx.h"

#include "core/log.h"
#include "lib/string.h"
#include "mm/mm.h"
#include "x86/apic.h"
#include "x86/gdt.h"
#include "x86/idt.h"
#include "x86/percpu.h"

#define PLE_GAP 128
#define PLE_WINDOW 16384

static int evict_vector = -1;

bool vmx_vm_init(struct vm *vm)
{
    (void)vm; /* the MSR bitmap is shared: every guest may as little as the next */
    return true;
}

void vmx_vm_fini(struct vm *vm) { (void)vm; }

/* ---- which CPU has it --------------------------------------------------------------------------------------------------- */

/* Interrupts off, on the CPU s->cpu. */
static void evict_here(struct vmx_cpu *c, struct vmx_vcpu *s)
{
    if (c->msr_owner == s)
        vmx_lazy_save(c);
    vmclear(s->vmcs_hpa);
    if (c->current == s)
        c->current = NULL;
    s->launched = false;
    __atomic_store_n(&s->cpu, VMX_NO_CPU, __ATOMIC_RELEASE);
}

static void evict_interrupt(void *arg UNUSED)
{
    struct vmx_cpu *c = vmx_this_cpu();
    struct vmx_vcpu *s = __atomic_exchange_n(&c->evict, NULL, __ATOMIC_ACQ_REL);
    if (s)
        evict_here(c, s);
}

bool vmx_evict_init(void)
{
    if (evict_vector < 0)
        evict_vector = irq_alloc_vector();
    return evict_vector >= 0 && irq_register((uint8_t)evict_vector, evict_interrupt, NULL);
}

void vmx_evict(struct vmx_vcpu *s)
{
    uint32_t cpu = __atomic_load_n(&s->cpu, __ATOMIC_ACQUIRE);
    if (cpu == VMX_NO_CPU)
        return;
    if (cpu == cpu_id()) {
        uint64_t flags = irq_save();
        evict_here(vmx_this_cpu(), s);
        irq_restore(flags);
        return;
    }
    debug_assert(irqs_enabled()); /* two CPUs may fetch from each other at the same time */
    struct vmx_cpu *there = percpu_of(cpu)->slot[PERCPU_HVM];
    struct vmx_vcpu *empty = NULL;
    while (!__atomic_compare_exchange_n(&there->evict, &empty, s, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
        empty = NULL;
        cpu_pause();
    }
    lapic_send_ipi(percpu_of(cpu)->apic_id, (uint8_t)evict_vector);
    while (__atomic_load_n(&s->cpu, __ATOMIC_ACQUIRE) != VMX_NO_CPU)
        cpu_pause();
}

/* Everything that an exit loads and that differs between CPUs (25.5). Limits are not loaded: GDTR's and IDTR's become FFFFh, TR's 67h,
 * the first two beyond tables whose selectors and vectors are all in range, the third exactly our TSS's. */
static void write_host_state(void)
{
    struct descriptor_ptr gdtr, idtr;
    sgdt(&gdtr);
    sidt(&idtr);
    vmwrite(VMCS_HOST_GDTR_BASE, gdtr.base);
    vmwrite(VMCS_HOST_IDTR_BASE, idtr.base);
    vmwrite(VMCS_HOST_TR_BASE, (uintptr_t)this_cpu()->tss);
    vmwrite(VMCS_HOST_FS_BASE, rdmsr(MSR_FS_BASE));
    vmwrite(VMCS_HOST_GS_BASE, (uintptr_t)this_cpu());
    vmwrite(VMCS_HOST_CR0, read_cr0());
    vmwrite(VMCS_HOST_CR3, read_cr3());
    vmwrite(VMCS_HOST_CR4, read_cr4());
    vmwrite(VMCS_HOST_EFER, rdmsr(MSR_EFER));
    vmwrite(VMCS_HOST_PAT, rdmsr(MSR_PAT));
    vmwrite(VMCS_HOST_SYSENTER_CS, rdmsr(MSR_SYSENTER_CS));
    vmwrite(VMCS_HOST_SYSENTER_ESP, rdmsr(MSR_SYSENTER_ESP));
    vmwrite(VMCS_HOST_SYSENTER_EIP, rdmsr(MSR_SYSENTER_EIP));
}

void vmx_fetch(struct vcpu *v)
{
    struct vmx_vcpu *s = vmx_of(v);
    if (s->cpu != cpu_id())
        vmx_evict(s);
    uint64_t flags = irq_save();
    vmptrld(s->vmcs_hpa);
    vmx_this_cpu()->current = s;
    if (s->cpu == VMX_NO_CPU) {
        s->cpu = cpu_id();
        s->vpid_generation = 0; /* what this CPU remembers of an earlier visit is old */
        s->host_rsp = 0;
        write_host_state();
    }
    irq_restore(flags);
}

/* ---- life --------------------------------------------------------------------------------------------------------------- */

static void write_controls(struct vmx_vcpu *s)
{
    const struct vmx_features *f = vmx_features();
    s->proc_controls = f->proc;
    s->entry_controls = f->entry & ~(uint32_t)VMX_ENTRY_GUEST_IA32E;
    vmwrite(VMCS_PIN_CONTROLS, f->pin);
    vmwrite(VMCS_PROC_CONTROLS, s->proc_controls);
    vmwrite(VMCS_PROC2_CONTROLS, f->proc2);
    if (f->proc2 & VMX_PROC2_PAUSE_LOOP) { /* 26.1.3: PAUSEs no further apart than the gap, for as long as the window, in TSC ticks */
        vmwrite(VMCS_PLE_GAP, PLE_GAP);
        vmwrite(VMCS_PLE_WINDOW, PLE_WINDOW);
    }
    vmwrite(VMCS_EXIT_CONTROLS, f->exit);
    vmwrite(VMCS_ENTRY_CONTROLS, s->entry_controls);
    vmwrite(VMCS_EXCEPTION_BITMAP, 1u << X86_DB | 1u << X86_AC | 1u << X86_MC);
    vmwrite(VMCS_PF_ERROR_MASK, 0);
    vmwrite(VMCS_PF_ERROR_MATCH, 0);
    vmwrite(VMCS_CR3_TARGET_COUNT, 0);
    vmwrite(VMCS_EXIT_MSR_STORE_COUNT, 0);
    vmwrite(VMCS_EXIT_MSR_LOAD_COUNT, 0);
    vmwrite(VMCS_ENTRY_MSR_LOAD_COUNT, 0);
    vmwrite(VMCS_MSR_BITMAP, vmx_msr_bitmap_hpa());
    if (f->tpr_shadow) {
        vmwrite(VMCS_VIRTUAL_APIC, s->apic_hpa);
        vmwrite(VMCS_TPR_THRESHOLD, s->tpr_threshold = 0);
    }
    vmwrite(VMCS_CR0_MASK, ~VMX_CR0_GUEST_OWNED);
    vmwrite(VMCS_CR4_MASK, ~VMX_CR4_GUEST_OWNED);
    vmwrite(VMCS_LINK_POINTER, ~UINT64_C(0));
    vmwrite(VMCS_GUEST_DEBUGCTL, 0);
    vmwrite(VMCS_ENTRY_INTERRUPTION, 0);
    vmwrite(VMCS_GUEST_RIP, s->rip); /* from here on written when they differ */
    vmwrite(VMCS_GUEST_RSP, s->rsp);
    vmwrite(VMCS_GUEST_RFLAGS, s->rflags);
    vmwrite(VMCS_HOST_ES_SELECTOR, 0);
    vmwrite(VMCS_HOST_DS_SELECTOR, 0);
    vmwrite(VMCS_HOST_FS_SELECTOR, 0);
    vmwrite(VMCS_HOST_GS_SELECTOR, 0);
    vmwrite(VMCS_HOST_CS_SELECTOR, SELECTOR_CODE);
    vmwrite(VMCS_HOST_SS_SELECTOR, SELECTOR_DATA);
    vmwrite(VMCS_HOST_TR_SELECTOR, SELECTOR_TSS);
    vmwrite(VMCS_HOST_RIP, (uintptr_t)vmx_exit_arrives);
}

bool vmx_vcpu_init(struct vcpu *v)
{
    struct vmx_vcpu *s = kzalloc(sizeof(*s));
    mfn_t vmcs = frame_alloc(0, FRAME_ZEROED, FRAME_VM_STATE, v->space), apic = INVALID_MFN;
    if (vmx_features()->tpr_shadow)
        apic = frame_alloc(0, FRAME_ZEROED, FRAME_VM_STATE, v->space);
    if (!s || !mfn_valid(vmcs) || (vmx_features()->tpr_shadow && !mfn_valid(apic))) {
        if (mfn_valid(vmcs))
            frame_free(vmcs, 0);
        if (mfn_valid(apic))
            frame_free(apic, 0);
        kfree(s);
        return false;
    }
    if (mfn_valid(apic)) {
        s->apic_page = mfn_to_hva(apic);
        s->apic_hpa = mfn_to_hpa(apic);
    }
    spin_init(&s->log_lock, LOCK_RANK_WRITE_LOG, "write log");
    s->vmcs_hpa = mfn_to_hpa(vmcs);
    s->cpu = VMX_NO_CPU;
    *(uint32_t *)mfn_to_hva(vmcs) = vmx_features()->revision;
    vmclear(s->vmcs_hpa); /* makes a VMCS of it (25.11.3) */
    v->hvm = s;
    vmx_current(v);
    write_controls(s);
    return true;
}

void vmx_vcpu_fini(struct vcpu *v)
{
    struct vmx_vcpu *s = v->hvm;
    if (!s)
        return;
    vmx_evict(s);
    for (unsigned n = 0; n < cpu_count(); n++) { /* an address that a later vCPU may get */
        struct vmx_cpu *c = percpu_of(n)->slot[PERCPU_HVM];
        if (c && c->dr_owner == v)
            c->dr_owner = NULL;
    }
    frame_free(hpa_to_mfn(s->vmcs_hpa), 0);
    if (s->apic_page)
        frame_free(hpa_to_mfn(s->apic_hpa), 0);
    vmx_log_free(s);
    kfree(s);
    v->hvm = NULL;
}

void vmx_vcpu_reset(struct vcpu *v)
{
    struct vmx_vcpu *s = vmx_of(v);
    struct vcpu_sregs r;
    vcpu_init_registers(v, &r);
    vmx_set_sregs(v, &r);
    s->event = 0;
    vmwrite(VMCS_INTERRUPTIBILITY, 0);
    vmwrite(VMCS_ACTIVITY_STATE, 0);
    vmwrite(VMCS_PENDING_DEBUG, 0);
    vmx_request_irq_window(v, false);
    vmx_set_tpr_alarm(v, 0);
    vmx_request_nmi_window(v, false);
}
