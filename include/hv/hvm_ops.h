/*
 * What vm/ needs of a CPU vendor's virtualization: one list, expanded to the struct here and to the designated initializer
 * in svm/ops.c and vmx/ops.c, so that a back end that lacks an operation does not compile.
 */
#ifndef HV_INCLUDE_HV_HVM_OPS_H
#define HV_INCLUDE_HV_HVM_OPS_H

#include "include/hv/dmm.h"
#include "include/hv/types.h"
#include "include/hv/vm_exit.h"

struct vm;
struct vcpu;
struct p2m_format;

enum hvm_probe_result { HVM_PROBE_OK, HVM_PROBE_ABSENT, HVM_PROBE_LOCKED, HVM_PROBE_LACKS_FEATURE };

/* attr: bits 0-7 = descriptor byte 5 (type S DPL P), bits 8-11 = AVL L D/B G; bit 15 = unusable */
struct vcpu_seg { uint16_t selector, attr; uint32_t limit; uint64_t base; };
enum vcpu_seg_id { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS, SEG_LDTR, SEG_TR, SEG_COUNT };

/* Everything architectural except GPRs, RIP, RFLAGS (struct vcpu) and FPU state. */
struct vcpu_sregs {
    struct vcpu_seg seg[SEG_COUNT];
    struct { uint64_t base; uint32_t limit; } gdtr, idtr;
    uint64_t cr0, cr2, cr3, cr4, cr8, efer, dr6, dr7, pat; /* as the guest sees them */
    uint64_t star, lstar, cstar, sfmask, kernel_gs_base, sysenter_cs, sysenter_esp, sysenter_eip;
};

/* What a back end keeps of a parked vCPU beside its registers: the event for the next entry, and what holds others back. Its own words; only
 * the back end that wrote it reads it. */
#define HVM_SAVED_BYTES 96
struct hvm_saved { _Alignas(8) uint8_t bytes[HVM_SAVED_BYTES]; };

enum vcpu_reg { VCPU_CR0, VCPU_CR2, VCPU_CR3, VCPU_CR4, VCPU_EFER, VCPU_DR6, VCPU_DR7, VCPU_PAT, VCPU_STAR, VCPU_LSTAR, VCPU_CSTAR,
    VCPU_SFMASK, VCPU_KERNEL_GS_BASE, VCPU_FS_BASE, VCPU_GS_BASE, VCPU_SYSENTER_CS, VCPU_SYSENTER_ESP, VCPU_SYSENTER_EIP };

#define HVM_OPS(OP)                                                                                        \
    /* Is the vendor's extension there and usable? *why is filled unless HVM_PROBE_OK. */                   \
    OP(enum hvm_probe_result, probe, (const char **why))                                                   \
    /* Turn it on on this CPU (after probe). False: *why. */                                               \
    OP(bool, cpu_enable, (const char **why))                                                               \
    OP(void, cpu_disable, (void))                                                                          \
    /* Per-VM and per-vCPU state; registers are undefined before vcpu_reset(), or set_sregs() and load(). False: out of frames. */ \
    OP(bool, vm_init, (struct vm *vm))                                                                     \
    OP(void, vm_fini, (struct vm *vm))                                                                     \
    OP(bool, vcpu_init, (struct vcpu *vcpu))                                                               \
    OP(void, vcpu_fini, (struct vcpu *vcpu))                                                               \
    /* Architectural reset state (INIT semantics: CS F000:FFF0, real mode). */                             \
    OP(void, vcpu_reset, (struct vcpu *vcpu))                                                              \
    /* Enter the guest once; returns after the exit, decoded. Interrupts on before and after. Flushes first if the space's   \
     * generation moved. */                                                                                \
    OP(void, run, (struct vcpu *vcpu, struct vm_exit *out))                                                \
    OP(void, get_sregs, (struct vcpu *vcpu, struct vcpu_sregs *out))                                       \
    OP(void, set_sregs, (struct vcpu *vcpu, const struct vcpu_sregs *in))                                  \
    OP(uint64_t, get_reg, (struct vcpu *vcpu, enum vcpu_reg r))                                            \
    OP(void, set_reg, (struct vcpu *vcpu, enum vcpu_reg r, uint64_t v))                                    \
    OP(void, get_seg, (struct vcpu *vcpu, enum vcpu_seg_id s, struct vcpu_seg *out))                       \
    OP(unsigned, cpl, (struct vcpu *vcpu))                                                                 \
    /* Event injection at the next entry. One event at a time; inject() returns false if one is pending. */ \
    OP(bool, can_inject_intr, (struct vcpu *vcpu))  /* IF=1, no shadow, nothing pending */                  \
    OP(bool, inject, (struct vcpu *vcpu, const struct vm_event *ev))                                       \
    OP(bool, event_pending, (struct vcpu *vcpu))                                                           \
    OP(void, request_irq_window, (struct vcpu *vcpu, bool on))                                             \
    /* An interrupt of this class waits for the guest to lower CR8 below it: that should exit. At most CR8 as it is; 0: nothing waits. */   \
    OP(void, set_tpr_alarm, (struct vcpu *vcpu, uint8_t tpr_class))                                        \
    OP(bool, nmi_blocked, (struct vcpu *vcpu))                                                             \
    OP(void, request_nmi_window, (struct vcpu *vcpu, bool on))                                             \
    /* The guest spins with PAUSE: should that exit? Where the CPU can tell a long spin by itself it does, whatever this says. */        \
    OP(void, set_pause_exits, (struct vcpu *vcpu, bool on))                                                \
    OP(void, clear_interrupt_shadow, (struct vcpu *vcpu))  /* after an emulated instruction */              \
    OP(void, set_tsc_offset, (struct vcpu *vcpu, uint64_t offset))                                         \
    OP(void, set_cr8, (struct vcpu *vcpu, uint8_t tpr_class)) /* vlapic TPR changed */                      \
    OP(uint8_t, get_cr8, (struct vcpu *vcpu))                                                              \
    /* Of a parked vCPU. load() comes after set_sregs() and leaves no window asked for. */                  \
    OP(void, save, (struct vcpu *vcpu, struct hvm_saved *out))                                             \
    OP(void, load, (struct vcpu *vcpu, const struct hvm_saved *in))                                        \
    /* The vCPU's part of dmm_space_ops.log_writes. Any thread; nobody makes or unmakes the vCPU meanwhile. */                \
    OP(bool, log_writes, (struct vcpu *vcpu, enum dmm_log_step step))                                      \
    /* The control block beyond the registers, a line at a time, for reports. */                                              \
    OP(void, dump, (struct vcpu *vcpu, void (*line)(const char *)))

struct hvm_ops {
    const char *name;            /* "svm", "vmx" */
    const struct p2m_format *p2m_format;
#define OP(ret, fn, args) ret(*fn) args;
    HVM_OPS(OP)
#undef OP
};

extern const struct hvm_ops hvm_ops_svm, hvm_ops_vmx;

/* In a back end:
 *   #define OP(ret, fn, args) static ret svm_##fn args;      declares them all (or leave out static and use a header)
 *   #define OP(ret, fn, args) .fn = svm_##fn,                in the designated initializer
 */
#endif
