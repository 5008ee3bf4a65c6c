/*
 * One round trip into the guest, and the back end's list of operations.
 *
 * Translations. A guest's TLB entries are tagged with an ASID, so forgetting them all costs one step of a counter: take an ASID that
 * nobody has used since the last full flush. That serves each case in which old entries may be wrong: the space's
 * generation moved (mm/dmm took something away), the vCPU comes from another CPU, the CPU ran out of ASIDs (its own
 * generation moves, and the first to enter flushes everything).
 * The two exits that guests cause by the million, CPUID and first touches, are answered between two entries (vm/shortcut.h).
 *
 * The space's generation is read after the vCPU counts as in the guest: whoever moves it later sees the vCPU there and
 * interrupts it, whoever moved it earlier is seen here.
 */
#include "svm/svm.h"

#include "lib/string.h"
#include "vm/shortcut.h"
#include "x86/cpu.h"
#include "x86/percpu.h"

/* And says that nCR3 may have changed as well. */
static inline void take_asid(struct svm_vcpu *s, struct vmcb *b, struct svm_cpu *c)
{
    struct vmcb_control *ctl = &b->c;
    if (c->next_asid >= svm_features()->asids) {
        c->next_asid = 1;
        c->asid_generation++;
        ctl->tlb_control = SVM_TLB_FLUSH_ALL;
    }
    ctl->asid = c->next_asid++;
    s->asid_generation = c->asid_generation;
    svm_dirty(s, SVM_CLEAN_NP | SVM_CLEAN_ASID);
}

static inline void prepare_translation(struct vcpu *v, struct svm_vcpu *s, struct vmcb *b, struct svm_cpu *c)
{
    uint64_t generation = dmm_space_flush_generation(v->space);
    unsigned cpu = v->pcpu;
    b->c.tlb_control = SVM_TLB_KEEP;
    if (unlikely(s->cpu != cpu || s->asid_generation != c->asid_generation || v->flush_gen_seen != generation)) {
        if (unlikely(s->cpu != cpu)) { /* what this very CPU has cached may be of long ago */
            s->clean = 0;
            if (c->dr_owner == v)
                c->dr_owner = NULL;
            s->cpu = cpu;
            s->host_vmcb_hpa = c->host_vmcb_hpa;
        }
        b->c.n_cr3 = dmm_space_root_hpa(v->space);
        take_asid(s, b, c);
        v->flush_gen_seen = generation;
    }
}

/* #VMEXIT leaves DR7 without any breakpoint armed, so the guest's DR0..3 may stay in the registers while we run. */
static inline void load_breakpoints(struct vcpu *v, const struct vmcb *b, struct svm_cpu *c)
{
    if (likely(!(b->s.dr7 & 0xff)) || (c->dr_owner == v && !v->dr_changed))
        return;
    write_dr0(v->dr[0]);
    write_dr1(v->dr[1]);
    write_dr2(v->dr[2]);
    write_dr3(v->dr[3]);
    v->dr_changed = false;
    c->dr_owner = v;
}

static inline void put_registers(const struct vcpu *v, const struct svm_vcpu *s, struct vmcb *b)
{
    b->s.rax = v->gpr[GPR_RAX];
    b->s.rsp = v->gpr[GPR_RSP];
    b->s.rip = v->rip;
    b->s.rflags = v->rflags;
    b->c.clean = s->clean; /* without the feature it means nothing */
}

static inline void get_registers(struct vcpu *v, struct svm_vcpu *s, const struct vmcb *b)
{
    s->clean = SVM_CLEAN_ALL;
    v->gpr[GPR_RAX] = b->s.rax;
    v->gpr[GPR_RSP] = b->s.rsp;
    v->rip = b->s.rip;
    v->rflags = b->s.rflags;
}

/* True: answered, enter again. False: whatever is done twice then, get_registers() and svm_inject_exited(), may be. */
bool svm_exited_cpuid(struct vcpu *v)
{
    struct svm_vcpu *s = svm_of(v);
    struct vmcb *b = s->vmcb;
    v->gpr[GPR_RAX] = b->s.rax;
    v->rip = b->s.rip;
    if (unlikely((b->c.exit_int_info & SVM_EVENT_VALID) || s->nmi_masked) ||
        !vcpu_shortcut_cpuid(v, b->s.rflags, svm_next_rip_len(b)))
        return false;
    b->c.event_inj = 0;
    b->c.interrupt_shadow = 0;
    b->c.tlb_control = SVM_TLB_KEEP;
    b->c.clean = SVM_CLEAN_ALL;
    b->s.rax = v->gpr[GPR_RAX];
    b->s.rip = v->rip;
    return true;
}

/* A nested fault: resolved with interrupts on, which GIF alone holds off here. True: enter again; what the VMCB has of registers has not been touched.
 * False: the long way, which does all this again but for asking DMM. */
bool svm_exited_fault(struct vcpu *v)
{
    struct svm_vcpu *s = svm_of(v);
    struct vmcb *b = s->vmcb;
    if (unlikely((b->c.exit_int_info & SVM_EVENT_VALID) || s->nmi_masked || s->irq_window || (b->c.interrupt_shadow & 1)))
        return false; /* the last: svm_keep_shadow() looks at each exit */
    v->gpr[GPR_RAX] = b->s.rax; /* vcpu_may_clear_page() */
    vcpu_entry_end(v);
    stgi();
    bool resolved = vcpu_shortcut_fault(v, gpa_to_gfn(b->c.exit_info2), svm_npf_access(b->c.exit_info1));
    clgi();
    if (unlikely(!resolved || !vcpu_entry_begin(v))) {
        s->fault_told = true;
        s->fault_resolved = resolved;
        return false;
    }
    s->clean = SVM_CLEAN_ALL;
    prepare_translation(v, s, b, svm_this_cpu());
    b->c.event_inj = 0;
    b->c.clean = s->clean;
    return true;
}

static inline bool fault_resolved(struct vcpu *v, struct svm_vcpu *s, const struct vmcb *b)
{
    if (likely(s->fault_told)) {
        s->fault_told = false;
        return s->fault_resolved;
    }
    return vcpu_shortcut_fault(v, gpa_to_gfn(b->c.exit_info2), svm_npf_access(b->c.exit_info1));
}

static inline bool enter(struct vcpu *v, struct svm_vcpu *s, struct vmcb *b)
{
    cli();
    if (unlikely(!vcpu_entry_begin(v))) {
        sti();
        return false;
    }
    struct svm_cpu *c = svm_this_cpu();
    prepare_translation(v, s, b, c);
    load_breakpoints(v, b, c);
    if (unlikely(s->irq_window))
        svm_inject_entering(v);
    put_registers(v, s, b);
    const bool shadowed = b->c.interrupt_shadow & 1;
    const uint64_t rip = v->rip;
    svm_enter(v);
    if (unlikely(s->irq_window))
        svm_window_left();
    if (unlikely(shadowed))
        svm_keep_shadow(s, b, rip);
    get_registers(v, s, b);
    svm_inject_exited(v, s, b);
    vcpu_entry_end(v);
    sti();
    return true;
}

void svm_run(struct vcpu *v, struct vm_exit *out)
{
    struct svm_vcpu *s = svm_of(v);
    struct vmcb *b = s->vmcb;
    do {
        if (!enter(v, s, b)) {
            out->kind = VM_EXIT_INTR;
            return;
        }
    } while (b->c.exit_code == SVM_EXIT_NPF && fault_resolved(v, s, b));
    svm_decode_exit(v, out);
}

/* These CPUs keep none. */
bool svm_log_writes(struct vcpu *v UNUSED, enum dmm_log_step step UNUSED) { return false; }

void svm_dump(struct vcpu *v, void (*line)(const char *))
{
    const struct vmcb *b = vmcb_of(v);
    char text[160];
    snprintf(text, sizeof(text), "vmcb: exit_code %#lx info1 %#lx info2 %#lx exit_int_info %#lx event_inj %#lx", b->c.exit_code,
             b->c.exit_info1, b->c.exit_info2, b->c.exit_int_info, b->c.event_inj);
    line(text);
    snprintf(text, sizeof(text), "vmcb: shadow %lu v_tpr %u v_irq %u asid %u n_cr3 %#lx", b->c.interrupt_shadow, b->c.v_tpr, b->c.v_irq,
             b->c.asid, b->c.n_cr3);
    line(text);
}

const struct hvm_ops hvm_ops_svm = {
    .name = "svm",
    .p2m_format = &p2m_format_npt,
#define OP(ret, fn, args) .fn = svm_##fn,
    HVM_OPS(OP)
#undef OP
};
