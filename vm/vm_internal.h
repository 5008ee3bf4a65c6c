/* Between the files of vm/ only: the vCPU's own subsystems and the exit handlers. On the vCPU's thread unless said otherwise. */
#ifndef HV_VM_VM_INTERNAL_H
#define HV_VM_VM_INTERNAL_H

#include "vm/emulate.h"
#include "vm/vm.h"

struct boot_info;

/* ---- fpu.c: x87, SSE, AVX, XCR0, TSC_AUX ------------------------------------------------------------------------------ */
void fpu_init(void);                       /* once, after cpu_init_this() */
bool fpu_vcpu_init(struct vcpu *v);        /* no state before a reset or fpu_copy_in(); false: out of memory */
void fpu_vcpu_fini(struct vcpu *v);
void fpu_vcpu_reset(struct vcpu *v);       /* power-on state; the vCPU is parked */
void fpu_spill(struct vcpu *v);            /* registers -> fpu_area, if they are live; any interrupt state */
uint64_t fpu_guest_xcr0(struct vcpu *v);
enum xsetbv_result { XSETBV_OK, XSETBV_GP };
enum xsetbv_result fpu_xsetbv(struct vcpu *v, uint32_t index, uint64_t value);
uint32_t fpu_area_bytes(uint64_t xcr0);    /* standard format */
uint64_t fpu_xcr0_supported(void);

/* ---- cpuid.c ----------------------------------------------------------------------------------------------------------- */
struct vm_cpuid;
bool cpuid_vm_init(struct vm *vm);         /* vm->cpuid; false: out of memory */
void cpuid_vm_share(struct vm *vm, const struct vm *with);
void cpuid_vm_fini(struct vm *vm);         /* between commands nobody else makes or ends a VM */
bool cpuid_vm_shows(const struct vm *vm, uint32_t feature /* enum cpuid_feature */);

/* ---- msr.c, pv*.c, cr.c: each handler leaves RIP behind the instruction or has injected an exception ---------------------- */
#define VCPU_MTRR_VARIABLE 8u
struct vcpu_msrs { uint64_t mtrr_var[2 * VCPU_MTRR_VARIABLE], mtrr_fix[11], mtrr_def_type; };
bool msr_vcpu_init(struct vcpu *v);        /* no state before a reset; false: out of memory */
void msr_vcpu_fini(struct vcpu *v);
void msr_vcpu_reset(struct vcpu *v);
void msr_handle_read(struct vcpu *v);
void msr_handle_write(struct vcpu *v);
bool pv_rdmsr(struct vcpu *v, uint32_t msr, uint64_t *value);
enum pv_msr_result { PV_MSR_NOT_MINE, PV_MSR_DONE, PV_MSR_GP, PV_MSR_AGAIN /* has waited for memory; nothing happened */ };
enum pv_msr_result pv_wrmsr(struct vcpu *v, uint32_t msr, uint64_t value);
/* Power-on state, no pin left: before the VM's memory is cleared. The vCPU is parked. */
void pv_vcpu_reset(struct vcpu *v);
void pv_vcpu_init_signal(struct vcpu *v);  /* INIT */
/* If v->pv.steal_due: the record is brought up to date, after pins that are due were taken. False: has waited for memory, look around. */
bool pv_before_entry(struct vcpu *v);
void pv_switched_out(struct vcpu *v);      /* the thread's switch_out hook; interrupts off */
enum pv_msr_result pv_refresh(struct vcpu *v); /* in a WRMSR, after its TSC offset has changed */
void pv_hypercall(struct vcpu *v);
bool pv_take_unhalt(struct vcpu *v);       /* HLT is not to wait, or no longer */
void cr_handle_cr(struct vcpu *v);
void cr_handle_dr(struct vcpu *v);
bool cr_set_efer(struct vcpu *v, uint64_t value); /* false: #GP */
/* Guest time: every vCPU's TSC starts at 0 with the VM; *all* are moved by a pause. */
uint64_t vcpu_guest_tsc(const struct vcpu *v);
void vcpu_set_tsc_offset(struct vcpu *v, uint64_t offset);

/* ---- pio.c, nfault.c ----------------------------------------------------------------------------------------------------- */
void pio_handle(struct vcpu *v);
void nfault_handle(struct vcpu *v);
/* zero_store.c: a write faulted on a page that reads as zero without a frame. True: the instruction stores zeros to whole such pages, and as many
 * iterations as that are done. False: it is another instruction, or stores something else; nothing happened. */
bool zero_store(struct vcpu *v);
/* What an emulation attempt came to: waits, stops the VM with a reason, or does nothing. */
void vcpu_emulate_outcome(struct vcpu *v, enum emulate_result r, const struct emulate_outcome *out, const char *what);
/* Waits for what DMM wants of us, with the state shown as stalled. */
void vcpu_wait_dmm(struct vcpu *v, enum dmm_fault_result r, gfn_t gfn);

/* ---- regs.c --------------------------------------------------------------------------------------------------------------- */
/* All registers and the back end's control block, a line at a time. */
void vcpu_dump(struct vcpu *v, void (*line)(const char *));

/* ---- run.c ----------------------------------------------------------------------------------------------------------------- */
void vcpu_thread(void *arg);
/* The exit's instruction is done: RIP moves behind it. False: its length is unknown, nothing happened (it comes again). */
bool vcpu_skip(struct vcpu *v);
bool vcpu_in_long_mode(struct vcpu *v);    /* 64-bit code segment */
void vm_kick_all(struct vm *vm);           /* any context */
/* dmm_space_ops.log_writes */
bool vm_log_writes(void *owner, enum dmm_log_step step);
/* dmm_space_ops.kick */
void vm_kick_for_flush(void *owner, bool wait);

/* ---- vm.c --------------------------------------------------------------------------------------------------------------------- */
/* The vCPU leaves the guest until the VM runs again. False: the VM is being destroyed and the thread ends. */
bool vm_park(struct vcpu *v);
bool vm_wants_attention(const struct vm *vm); /* (a) not running, or a stop or reset is asked for */
/* A reset, as on a PC; but a guest whose last life was short and ended the same way is stopped. */
void vm_triple_fault(struct vcpu *v);
/* vCPU 0's thread, before it enters the guest with vm->load_due. False: memory was short and it has waited, or the VM is to stop. */
bool vm_load_after_reset(struct vcpu *v);

#endif
