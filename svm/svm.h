/*
 * AMD-V: the back end's own state and the interfaces between its files. Nothing outside svm/ includes this.
 *
 * A VMCB is written only while its vCPU is out of the guest and by the vCPU's own thread (or by anybody while the vCPU is
 * parked). `clean` collects what was not touched since the last exit: a setter calls svm_dirty() with the group it changed.
 */
#ifndef HV_SVM_SVM_H
#define HV_SVM_SVM_H

#include "include/hv/hvm_ops.h"
#include "include/hv/p2m.h"
#include "include/hw/vmcb.h"
#include "vm/vm.h"
#include "x86/percpu.h"

struct svm_vcpu {
    struct vmcb *vmcb;
    uint64_t vmcb_hpa, host_vmcb_hpa; /* the latter of the CPU `cpu` */
    uint64_t asid_generation;  /* of the CPU `cpu`; another one or an older one: take a new ASID */
    unsigned cpu;              /* where it ran last */
    uint32_t clean;
    uint64_t cr0;              /* the guest's CR0: the VMCB's has CD and NW off */
    bool nmi_masked;           /* from an injected NMI to the guest's IRET */
    bool iret_seen;            /* the IRET at iret_rip has been let go: masked until RIP is elsewhere */
    bool irq_window;           /* asked for */
    bool fault_told, fault_resolved; /* svm_exited_fault() has asked DMM about this exit: if it is not resolved, v->fault_result says why */
    uint64_t iret_rip;
    unsigned shadow_kept;      /* how many exits in a row svm_keep_shadow() has */
};

static inline struct svm_vcpu *svm_of(const struct vcpu *v) { return v->hvm; }
static inline struct vmcb *vmcb_of(const struct vcpu *v) { return svm_of(v)->vmcb; }
static inline void svm_dirty(struct svm_vcpu *s, uint64_t groups) { s->clean &= ~(uint32_t)groups; }

struct svm_features { uint32_t asids; bool nrips, decode_assists, flush_by_asid, vmcb_clean, honours_shadow, pause_filter, loses_interrupts; };

/* One for each CPU that has been enabled; this_cpu()->slot[PERCPU_HVM]. */
struct svm_cpu {
    uint64_t host_vmcb_hpa;    /* FS GS TR LDTR and the SYSCALL, SYSENTER MSRs of the hypervisor, by VMSAVE */
    uint64_t asid_generation;
    uint32_t next_asid;
    mfn_t host_vmcb, hsave;
    const struct vcpu *dr_owner; /* whose DR0..3 are in the registers */
};

/* svm/enable.c */
extern struct svm_features svm_feature_flags; /* constant once the first CPU is enabled */
static inline const struct svm_features *svm_features(void) { return &svm_feature_flags; }
enum hvm_probe_result svm_probe(const char **why);
bool svm_cpu_enable(const char **why);
void svm_cpu_disable(void);
static inline struct svm_cpu *svm_this_cpu(void) { return this_cpu()->slot[PERCPU_HVM]; }
/* I/O and MSR permission maps, the same for all guests. */
uint64_t svm_iopm_hpa(void), svm_msrpm_hpa(void);

/* svm/control.c: the VMCB's life and what it says at the start */
bool svm_vm_init(struct vm *vm);
void svm_vm_fini(struct vm *vm);
bool svm_vcpu_init(struct vcpu *v);
void svm_vcpu_fini(struct vcpu *v);
void svm_vcpu_reset(struct vcpu *v);
void svm_set_pause_exits(struct vcpu *v, bool on);

/* svm/msr.c: registers as the guest sees them */
void svm_get_sregs(struct vcpu *v, struct vcpu_sregs *out);
void svm_set_sregs(struct vcpu *v, const struct vcpu_sregs *in);
uint64_t svm_get_reg(struct vcpu *v, enum vcpu_reg r);
void svm_set_reg(struct vcpu *v, enum vcpu_reg r, uint64_t value);
void svm_get_seg(struct vcpu *v, enum vcpu_seg_id s, struct vcpu_seg *out);
unsigned svm_cpl(struct vcpu *v);
void svm_set_tsc_offset(struct vcpu *v, uint64_t offset);
void svm_set_cr8(struct vcpu *v, uint8_t tpr_class);
uint8_t svm_get_cr8(struct vcpu *v);
void svm_msrpm_fill(uint8_t *map);

/* svm/inject.c */
bool svm_can_inject_intr(struct vcpu *v);
bool svm_inject(struct vcpu *v, const struct vm_event *ev);
bool svm_event_pending(struct vcpu *v);
void svm_request_irq_window(struct vcpu *v, bool on);
void svm_set_tpr_alarm(struct vcpu *v, uint8_t tpr_class);
bool svm_nmi_blocked(struct vcpu *v);
void svm_request_nmi_window(struct vcpu *v, bool on);
void svm_clear_interrupt_shadow(struct vcpu *v);
void svm_save(struct vcpu *v, struct hvm_saved *out);
void svm_load(struct vcpu *v, const struct hvm_saved *in);
/* Just before an entry and just after an exit; the latter's rare cases. */
void svm_inject_entering(struct vcpu *v);
void svm_inject_exited_slow(struct vcpu *v);
/* Just after an exit from an entry with the alarm asked for. */
void svm_window_left(void);
/* Just after an exit from an entry at `rip` in an interrupt shadow. */
void svm_keep_shadow(struct svm_vcpu *s, struct vmcb *b, uint64_t rip);
static inline void svm_inject_exited(struct vcpu *v, struct svm_vcpu *s, struct vmcb *b)
{
    b->c.event_inj = 0;
    if (unlikely((b->c.exit_int_info & SVM_EVENT_VALID) || s->nmi_masked))
        svm_inject_exited_slow(v);
}

/* GIF: while it is clear nothing interrupts, not even an NMI. */
static inline void stgi(void) { asm volatile("stgi" ::: "memory"); }
static inline void clgi(void) { asm volatile("clgi" ::: "memory"); }

/* Distance from RIP to the next instruction where the CPU gives that and it makes sense; else 0. */
static inline uint8_t svm_len_to(const struct vmcb *b, uint64_t next_rip)
{
    uint64_t len = next_rip - b->s.rip;
    return len >= 1 && len <= 15 ? (uint8_t)len : 0;
}
static inline uint8_t svm_next_rip_len(const struct vmcb *b) { return svm_features()->nrips ? svm_len_to(b, b->c.next_rip) : 0; }

/* enum dmm_access of a nested fault. */
static inline unsigned svm_npf_access(uint64_t exit_info1)
{
    _Static_assert(SVM_NPF_WRITE == DMM_WRITE && SVM_NPF_EXEC == DMM_EXEC && SVM_NPF_WALK >> 30 == DMM_WALK, "bits that are just moved");
    return DMM_READ | (unsigned)(exit_info1 & (SVM_NPF_WRITE | SVM_NPF_EXEC)) | (unsigned)(exit_info1 >> 30 & DMM_WALK);
}

/* svm/exit.c: the VMCB's exit fields in neutral form. */
void svm_decode_exit(struct vcpu *v, struct vm_exit *out);

/* svm/ops.c */
void svm_run(struct vcpu *v, struct vm_exit *out);
void svm_dump(struct vcpu *v, void (*line)(const char *));
bool svm_log_writes(struct vcpu *v, enum dmm_log_step step);

/*
 * svm/entry.asm: enters the guest, again after each CPUID exit that svm_exited_cpuid() answers and each nested fault that svm_exited_fault()
 * resolves. Interrupts off and GIF set before and after; GIF clear with IF set in between, so that an interrupt ends the guest's run (15.21.1: with
 * V_INTR_MASKING the host's IF decides) and is taken when the caller sets IF again, or svm_exited_fault() GIF. Registers are in v->gpr, but RAX and
 * RSP, which are in the VMCB.
 */
void svm_enter(struct vcpu *v);
bool svm_exited_cpuid(struct vcpu *v);
bool svm_exited_fault(struct vcpu *v);

#endif
