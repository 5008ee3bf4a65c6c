/* What VMX refused and why, in the manual's words (failure.c). */
#ifndef HV_VMX_FAILURE_H
#define HV_VMX_FAILURE_H

#include "include/hv/types.h"

#define VMX_WHY_BYTES 160

/* How a VMX instruction ends (SDM 3, 31.2). */
enum vmx_outcome {
    VMX_SUCCEEDED,
    VMX_FAIL_INVALID, /* CF: no current VMCS, or none that could hold the reason */
    VMX_FAIL_VALID,   /* ZF: the current VMCS's INSTRUCTION_ERROR says why */
    VMX_FAULTED,      /* #GP */
};

/* Of INSTRUCTION_ERROR. */
const char *vmx_error_name(uint32_t number);
/* What VMXON may not have liked; error: INSTRUCTION_ERROR after VMX_FAIL_VALID. */
void vmx_vmxon_failure(enum vmx_outcome how, uint64_t error, char why[VMX_WHY_BYTES]);
/* Of an exit whose reason has VMX_REASON_ENTRY_FAILURE. */
void vmx_entry_failure(uint32_t reason, uint64_t qualification, char why[VMX_WHY_BYTES]);

#endif
