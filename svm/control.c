/*
 * A vCPU's VMCB from birth to end: what is intercepted, and the state after INIT.
 *
 * The rule for intercepts: whatever the CPU would do to the machine instead of to the guest (VMLOAD and STGI run on the real
 * registers if they are let through), whatever our platform defines (CPUID, MSRs, ports, HLT), and what could keep a CPU in the
 * guest for ever: #DB and #AC raised by their own delivery (an endless loop in microcode that no interrupt breaks), and
 * shutdown. CR3, INVLPG, CR8, task switches and the time-stamp counter belong to the guest: nested paging, V_TPR and the offset cover
 * them; CR8 exits only while an interrupt waits for it.
 */
#include "svm/svm.h"

#include "lib/string.h"
#include "mm/mm.h"
#include "x86/cpu.h"
#include "x86/idt.h"
#include "x86/percpu.h"

#define MISC1_ALWAYS                                                                                       \
    (SVM_MISC1(SVM_EXIT_INTR) | SVM_MISC1(SVM_EXIT_NMI) | SVM_MISC1(SVM_EXIT_SMI) | SVM_MISC1(SVM_EXIT_INIT) | \
     SVM_MISC1(SVM_EXIT_RDPMC) | SVM_MISC1(SVM_EXIT_CPUID) | SVM_MISC1(SVM_EXIT_RSM) | SVM_MISC1(SVM_EXIT_INVD) | \
     SVM_MISC1(SVM_EXIT_HLT) | SVM_MISC1(SVM_EXIT_INVLPGA) | SVM_MISC1(SVM_EXIT_IOIO) | SVM_MISC1(SVM_EXIT_MSR) | \
     SVM_MISC1(SVM_EXIT_FERR_FREEZE) | SVM_MISC1(SVM_EXIT_SHUTDOWN))

#define MISC2_ALWAYS                                                                                       \
    (SVM_MISC2(SVM_EXIT_VMRUN) | SVM_MISC2(SVM_EXIT_VMMCALL) | SVM_MISC2(SVM_EXIT_VMLOAD) | SVM_MISC2(SVM_EXIT_VMSAVE) | \
     SVM_MISC2(SVM_EXIT_STGI) | SVM_MISC2(SVM_EXIT_CLGI) | SVM_MISC2(SVM_EXIT_SKINIT) | SVM_MISC2(SVM_EXIT_WBINVD) | \
     SVM_MISC2(SVM_EXIT_MONITOR) | SVM_MISC2(SVM_EXIT_MWAIT) | SVM_MISC2(SVM_EXIT_MWAIT_COND) | SVM_MISC2(SVM_EXIT_XSETBV) | \
     SVM_MISC2(SVM_EXIT_RDPRU))

/* INVLPGB reaches other guests' translations and TLBSYNC other CPUs; MCOMMIT has nothing to wait for. */
#define MISC3_ALWAYS                                                                                       \
    (SVM_MISC3(SVM_EXIT_INVLPGB) | SVM_MISC3(SVM_EXIT_INVLPGB_ILLEGAL) | SVM_MISC3(SVM_EXIT_MCOMMIT) | SVM_MISC3(SVM_EXIT_TLBSYNC))

#define PAUSE_COUNT 3000
#define PAUSE_THRESHOLD 128

bool svm_vm_init(struct vm *vm)
{
    (void)vm; /* the permission maps are shared: every guest may as little as the next */
    return true;
}

void svm_vm_fini(struct vm *vm) { (void)vm; }

/* 15.14.4: so many PAUSEs in a row, each soon after the last, are a spin of some 30 us. Where there is no filter PAUSE exits by request. */
static uint32_t misc1_at_reset(void) { return MISC1_ALWAYS | (svm_features()->pause_filter ? SVM_MISC1(SVM_EXIT_PAUSE) : 0); }

static void set_intercepts(struct vmcb_control *c)
{
    c->cr_write = BIT64(0) | BIT64(4);
    c->dr_read = c->dr_write = 0xffff;
    c->exceptions = 1u << X86_DB | 1u << X86_AC | 1u << X86_MC;
    c->misc1 = misc1_at_reset();
    c->misc2 = MISC2_ALWAYS;
    c->misc3 = MISC3_ALWAYS;
    c->iopm_hpa = svm_iopm_hpa();
    c->msrpm_hpa = svm_msrpm_hpa();
    c->v_intr_masking = SVM_V_INTR_MASKING;
    c->np_enable = 1;
    if (svm_features()->pause_filter) {
        c->pause_count = PAUSE_COUNT;
        c->pause_threshold = PAUSE_THRESHOLD;
    }
}

void svm_set_pause_exits(struct vcpu *v, bool on)
{
    struct svm_vcpu *s = svm_of(v);
    uint32_t bit = SVM_MISC1(SVM_EXIT_PAUSE), misc1 = on ? s->vmcb->c.misc1 | bit : s->vmcb->c.misc1 & ~bit;
    if (svm_features()->pause_filter || misc1 == s->vmcb->c.misc1)
        return;
    s->vmcb->c.misc1 = misc1;
    svm_dirty(s, SVM_CLEAN_INTERCEPTS);
}

bool svm_vcpu_init(struct vcpu *v)
{
    struct svm_vcpu *s = kzalloc(sizeof(*s));
    if (!s)
        return false;
    mfn_t mfn = frame_alloc(0, FRAME_ZEROED, FRAME_VM_STATE, v->space);
    if (!mfn_valid(mfn)) {
        kfree(s);
        return false;
    }
    s->vmcb = mfn_to_hva(mfn);
    s->vmcb_hpa = mfn_to_hpa(mfn);
    s->cpu = MAX_PCPUS; /* none */
    v->hvm = s;
    set_intercepts(&s->vmcb->c);
    return true;
}

void svm_vcpu_fini(struct vcpu *v)
{
    struct svm_vcpu *s = v->hvm;
    if (!s)
        return;
    for (unsigned n = 0; n < cpu_count(); n++) { /* an address that a later vCPU may get */
        struct svm_cpu *c = percpu_of(n)->slot[PERCPU_HVM];
        if (c && c->dr_owner == v)
            c->dr_owner = NULL;
    }
    frame_free(hpa_to_mfn(s->vmcb_hpa), 0);
    kfree(s);
    v->hvm = NULL;
}

void svm_vcpu_reset(struct vcpu *v)
{
    struct svm_vcpu *s = svm_of(v);
    struct vcpu_sregs r;
    vcpu_init_registers(v, &r);
    svm_set_sregs(v, &r);
    s->nmi_masked = s->iret_seen = false;
    s->vmcb->c.event_inj = s->vmcb->c.exit_int_info = s->vmcb->c.interrupt_shadow = 0;
    s->vmcb->c.v_tpr = 0;
    svm_request_irq_window(v, false);
    svm_set_tpr_alarm(v, 0);
    s->vmcb->c.misc1 = misc1_at_reset();
    s->clean = 0;
}
