/*
 * Intel VT-x: the back end's own state and the interfaces between its files. Nothing outside vmx/ includes this.
 *
 * A VMCS can be read and written only on the CPU where it is current (SDM 3, 25.1), so every operation that touches one begins with
 * vmx_current(). As with a VMCB, that is the vCPU's own thread while it is out of the guest, or anybody while the vCPU is parked.
 * Two things of a vCPU stay behind on a CPU when it leaves: its VMCS's contents in the CPU's cache, and its SYSCALL MSRs in the
 * registers. vmx_evict() brings both back to memory, by interrupt if the CPU is another one.
 */
#ifndef HV_VMX_VMX_H
#define HV_VMX_VMX_H

#include "core/lock.h"
#include "include/hv/hvm_ops.h"
#include "include/hv/p2m.h"
#include "include/hw/vmcs.h"
#include "vm/vm.h"
#include "vmx/capability.h"
#include "vmx/failure.h"
#include "vmx/insn.h"
#include "x86/percpu.h"

#define VMX_NO_CPU UINT32_MAX
#define VMX_IF0_SLICE_NS UINT64_C(1000000) /* see inject.c */

/* MSRs that a guest reads and writes at will and that the hypervisor never uses: exchanged when another vCPU comes. */
enum vmx_lazy_msr { VMX_LAZY_STAR, VMX_LAZY_LSTAR, VMX_LAZY_CSTAR, VMX_LAZY_SFMASK, VMX_LAZY_KERNEL_GS_BASE, VMX_LAZY_COUNT };

struct vmx_vcpu {
    uint64_t host_rsp;         /* as the VMCS has it (entry.asm) */
    uint64_t vmcs_hpa;
    uint8_t *apic_page;        /* the TPR shadow is in it; NULL: CR8 exits */
    volatile uint32_t cpu;     /* (a) where its VMCS is active; VMX_NO_CPU: nowhere, memory is up to date */
    bool launched;
    bool flush_linear;         /* paging mode or CR3 changed under the guest: its translations are stale */
    bool pdptes_stale;
    bool fault_told, fault_resolved; /* vmx_exited_fault() has asked DMM about this exit: if it is not resolved, v->fault_result says why */
    uint8_t event_len;
    uint32_t event, event_error; /* for the next entry: ENTRY_INTERRUPTION, ENTRY_ERROR_CODE */
    uint32_t proc_controls, entry_controls, timer;
    uint32_t reason;           /* of the last exit */
    uint64_t vpid_generation;  /* of the CPU `cpu` */
    uint64_t ept_root;         /* (a) as the VMCS has it, and what it is made of there; 0: something else of the VMCS is due then, too */
    struct vmx_invalidation eptp;
    uint64_t rip, rsp, rflags; /* as the VMCS has them */
    uint64_t cr2, dr6;         /* in no VMCS */
    uint64_t cr0, cr4;         /* the guest's view of the bits that are ours (CR0_SHADOW, CR4_SHADOW) */
    uint64_t lazy[VMX_LAZY_COUNT]; /* current while no CPU has them: see struct vmx_cpu */
    uint64_t apic_hpa;
    struct spinlock log_lock;  /* LOCK_RANK_WRITE_LOG */
    volatile uint64_t *log;    /* (log_lock) of PML_ENTRIES; NULL: none */
    unsigned log_read;         /* (log_lock) so many have been, from the last one down */
    volatile bool log_wanted;  /* (a) */
    bool log_changed;          /* (a) the VMCS does not have that yet */
    uint8_t cr8;               /* without a TPR shadow */
    uint8_t tpr_threshold;     /* as the VMCS has it */
};

/* entry.asm knows it */
_Static_assert(offsetof(struct vmx_vcpu, host_rsp) == 0, "entry.asm");

static inline struct vmx_vcpu *vmx_of(const struct vcpu *v) { return v->hvm; }

/* One for each CPU that has been enabled; this_cpu()->slot[PERCPU_HVM]. */
struct vmx_cpu {
    struct vmx_vcpu *current;  /* whose VMCS is the current one */
    struct vmx_vcpu *msr_owner; /* whose lazy MSRs are in the registers */
    const struct vcpu *dr_owner; /* whose DR0..3 are */
    struct vmx_vcpu *volatile evict; /* (a) asked for by another CPU */
    uint64_t vpid_generation;
    uint32_t next_vpid;
    mfn_t vmxon_region;
};

/* vmx/enable.c; the pure part is in vmx/capability.h */
extern struct vmx_features vmx_feature_flags; /* constant once the first CPU is enabled */
static inline const struct vmx_features *vmx_features(void) { return &vmx_feature_flags; }
enum hvm_probe_result vmx_probe(const char **why);
bool vmx_cpu_enable(const char **why);
void vmx_cpu_disable(void);
static inline struct vmx_cpu *vmx_this_cpu(void) { return this_cpu()->slot[PERCPU_HVM]; }
uint64_t vmx_msr_bitmap_hpa(void);

/* vmx/control.c: the VMCS's life, where it is, and what it says at the start */
bool vmx_vm_init(struct vm *vm);
void vmx_vm_fini(struct vm *vm);
bool vmx_vcpu_init(struct vcpu *v);
void vmx_vcpu_fini(struct vcpu *v);
void vmx_vcpu_reset(struct vcpu *v);
/* Makes v's VMCS the current one of this CPU. Interrupts on, unless it is active here or nowhere. */
void vmx_fetch(struct vcpu *v);
static inline void vmx_current(struct vcpu *v)
{
    if (unlikely(vmx_this_cpu()->current != vmx_of(v)))
        vmx_fetch(v);
}
/* Brings s back to memory from wherever it is. Interrupts on. */
void vmx_evict(struct vmx_vcpu *s);
bool vmx_evict_init(void);                    /* false: no interrupt vector left */

/* vmx/msr.c: registers as the guest sees them */
void vmx_get_sregs(struct vcpu *v, struct vcpu_sregs *out);
void vmx_set_sregs(struct vcpu *v, const struct vcpu_sregs *in);
uint64_t vmx_get_reg(struct vcpu *v, enum vcpu_reg r);
void vmx_set_reg(struct vcpu *v, enum vcpu_reg r, uint64_t value);
void vmx_get_seg(struct vcpu *v, enum vcpu_seg_id s, struct vcpu_seg *out);
unsigned vmx_cpl(struct vcpu *v);
void vmx_set_tsc_offset(struct vcpu *v, uint64_t offset);
void vmx_set_cr8(struct vcpu *v, uint8_t tpr_class);
uint8_t vmx_get_cr8(struct vcpu *v);
void vmx_msr_bitmap_fill(uint8_t *map);
/* Which bits of CR0 and CR4 the guest changes without an exit: those that mean nothing to us. */
#define VMX_CR0_GUEST_OWNED (CR0_TS | CR0_MP | CR0_EM)
#define VMX_CR4_GUEST_OWNED (CR4_PGE | CR4_TSD | CR4_DE | CR4_OSFXSR | CR4_OSXMMEXCPT)
/* Interrupts off: s's lazy MSRs into the registers; those in the registers to their owner. */
void vmx_lazy_load(struct vmx_vcpu *s);
void vmx_lazy_save(struct vmx_cpu *c);
/* Before an entry, interrupts on: the PDPTEs, if the guest pages with them and they may have changed. False: after a wait, try again. */
bool vmx_load_pdptes(struct vcpu *v);

/* vmx/inject.c */
bool vmx_can_inject_intr(struct vcpu *v);
bool vmx_inject(struct vcpu *v, const struct vm_event *ev);
bool vmx_event_pending(struct vcpu *v);
void vmx_request_irq_window(struct vcpu *v, bool on);
void vmx_set_tpr_alarm(struct vcpu *v, uint8_t tpr_class);
bool vmx_nmi_blocked(struct vcpu *v);
void vmx_request_nmi_window(struct vcpu *v, bool on);
void vmx_set_pause_exits(struct vcpu *v, bool on);
void vmx_clear_interrupt_shadow(struct vcpu *v);
void vmx_save(struct vcpu *v, struct hvm_saved *out);
void vmx_load(struct vcpu *v, const struct hvm_saved *in);
/* The VMCS is current. */
static inline void vmx_clear_shadow(void)
{
    uint64_t state = vmread(VMCS_INTERRUPTIBILITY);
    if (unlikely(state & (VMX_BLOCKED_BY_STI | VMX_BLOCKED_BY_MOV_SS)))
        vmwrite(VMCS_INTERRUPTIBILITY, state & ~(uint64_t)(VMX_BLOCKED_BY_STI | VMX_BLOCKED_BY_MOV_SS));
}
/* For an entry with these RFLAGS; the VMCS is current. */
static inline void vmx_arm_timer(struct vmx_vcpu *s, uint64_t rflags)
{
    uint32_t value = rflags & RFLAGS_IF ? UINT32_MAX : vmx_features()->timer_slice;
    if (unlikely(s->timer != value) && vmx_features()->preemption_timer)
        vmwrite(VMCS_PREEMPTION_TIMER, s->timer = value);
}
/* Just before an entry and just after an exit. */
void vmx_inject_entering(struct vcpu *v);
void vmx_inject_exited(struct vcpu *v);

/* vmx/exit.c: the exit fields in neutral form. */
void vmx_decode_exit(struct vcpu *v, struct vm_exit *out);
const char *vmx_reason_name(uint32_t basic_reason);

/* vmx/ept.c: no accessed and dirty bits on this CPU; from now on everything counts as accessed and dirty. */
void vmx_ept_without_ad(void);

/* vmx/log.c */
bool vmx_log_writes(struct vcpu *v, enum dmm_log_step step);
void vmx_log_free(struct vmx_vcpu *s);
void vmx_log_full(struct vcpu *v);           /* the VMCS is current, interrupts on */
/* The VMCS, which is current, is to be as log_wanted says, if that was changed. Interrupts off, before an entry. */
void vmx_log_update(struct vmx_vcpu *s);

/* vmx/ops.c */
void vmx_run(struct vcpu *v, struct vm_exit *out);
void vmx_dump(struct vcpu *v, void (*line)(const char *));

/*
 * vmx/entry.asm: enters the guest, again after each CPUID exit that vmx_exited_cpuid() answers and each EPT violation that
 * vmx_exited_fault() resolves. Interrupts off before and after.
 * Registers are in v->gpr, but RSP, which is in the VMCS; s->reason is of the last exit.
 */
enum vmx_entry_result { VMX_ENTRY_EXITED, VMX_ENTRY_NO_VMCS /* CF */, VMX_ENTRY_FAILED /* ZF: INSTRUCTION_ERROR says why */ };
enum vmx_entry_result vmx_enter(struct vcpu *v, struct vmx_vcpu *s, bool launched);
bool vmx_exited_cpuid(struct vcpu *v, struct vmx_vcpu *s);
bool vmx_exited_fault(struct vcpu *v, struct vmx_vcpu *s);
/* Where exits arrive: HOST_RIP. */
void vmx_exit_arrives(void);

#endif
