/* A CPU's capability MSRs, and what we make of them (capability.c). Values only: nothing here touches a CPU. */
#ifndef HV_VMX_CAPABILITY_H
#define HV_VMX_CAPABILITY_H

#include "include/hw/msr.h"
#include "include/hw/vmcs.h"
#include "vmx/failure.h"

/* MSR_VMX_BASIC and what follows it, as read; 0: does not exist. */
struct vmx_msrs { uint64_t value[MSR_VMX_LAST - MSR_VMX_BASIC + 1]; };

static inline uint64_t vmx_msr(const struct vmx_msrs *m, uint32_t msr) { return m->value[msr - MSR_VMX_BASIC]; }

/* What this machine's CPUs can do and how we set them. The control words satisfy allowed-0 and allowed-1. */
struct vmx_features {
    uint32_t revision, pin, proc, proc2, exit, entry;
    uint64_t ept_vpid_cap, cr0_fixed0, cr0_fixed1, cr4_fixed0, cr4_fixed1;
    uint32_t invept_type;
    bool tpr_shadow, vpid, preemption_timer, ins_outs_info, pml;
    uint32_t timer_shift;      /* the preemption timer counts TSC >> this */
    uint32_t timer_slice;      /* its count for VMX_IF0_SLICE_NS; set by enable.c */
    uint64_t eptp_bits;        /* besides the root's address */
};

/* As told by the MSRs before it, which have been read: reading another is a #GP. */
bool vmx_msr_exists(const struct vmx_msrs *m, uint32_t msr);
/* False: these MSRs are of a CPU that is none for us; `why` says what it lacks, and f has nothing of use. */
bool vmx_features_of(const struct vmx_msrs *m, struct vmx_features *f, char why[VMX_WHY_BYTES]);
/* A guest may come to any CPU, set up for the boot CPU. False: this one's features are others; `why` has the first difference. */
bool vmx_features_agree(const struct vmx_features *boot, const struct vmx_features *here, char why[VMX_WHY_BYTES]);
/* SDM 3, 24.7: firmware should have locked IA32_FEATURE_CONTROL one way or the other; one that forgot leaves the choice to us, which is
 * then in *value, to be written. False: VMXON outside SMX is forbidden until reset. */
bool vmx_feature_control_allows(uint64_t *value);

#endif
