/* Constants for entry.asm; the Makefile turns each line of the assembly into a %define. */
#include "vmx/vmx.h"

#define OFFSET(name, value) asm volatile("\n#define " #name " %c0" :: "i"(value))

void vmx_asm_offsets(void);
void vmx_asm_offsets(void)
{
    OFFSET(GPR_RAX_AT, offsetof(struct vcpu, gpr[GPR_RAX]));
    OFFSET(GPR_RBX_AT, offsetof(struct vcpu, gpr[GPR_RBX]));
    OFFSET(GPR_RCX_AT, offsetof(struct vcpu, gpr[GPR_RCX]));
    OFFSET(GPR_RDX_AT, offsetof(struct vcpu, gpr[GPR_RDX]));
    OFFSET(GPR_RSI_AT, offsetof(struct vcpu, gpr[GPR_RSI]));
    OFFSET(GPR_RDI_AT, offsetof(struct vcpu, gpr[GPR_RDI]));
    OFFSET(GPR_RBP_AT, offsetof(struct vcpu, gpr[GPR_RBP]));
    OFFSET(GPR_R8_AT, offsetof(struct vcpu, gpr[GPR_R8]));
    OFFSET(HOST_RSP_AT, offsetof(struct vmx_vcpu, host_rsp));
    OFFSET(HOST_RSP_FIELD, VMCS_HOST_RSP);
    OFFSET(VCPU_HVM_AT, offsetof(struct vcpu, hvm));
    OFFSET(REASON_AT, offsetof(struct vmx_vcpu, reason));
    OFFSET(REASON_FIELD, VMCS_EXIT_REASON);
    OFFSET(REASON_CPUID, VMX_REASON_CPUID);
    OFFSET(REASON_EPT_VIOLATION, VMX_REASON_EPT_VIOLATION);
    OFFSET(ENTRY_EXITED, VMX_ENTRY_EXITED);
    OFFSET(ENTRY_NO_VMCS, VMX_ENTRY_NO_VMCS);
    OFFSET(ENTRY_FAILED, VMX_ENTRY_FAILED);
}
