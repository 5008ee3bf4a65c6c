/* Constants for entry.asm; the Makefile turns each line of the assembly into a %define. */
#include "vmx/vmx.h"

#define OFFSET(name, value) asm volatile("\n#define " #name " %c0" :: "i"(value))

void vmx_asm_offsets(void);
void vmx_asm_offsets(void)
{
    OFFSET(GPR_RAX_AT, GPR_RAX * 8);
    OFFSET(GPR_RBX_AT, GPR_RBX * 8);
    OFFSET(GPR_RCX_AT, GPR_RCX * 8);
    OFFSET(GPR_RDX_AT, GPR_RDX * 8);
    OFFSET(GPR_RSI_AT, GPR_RSI * 8);
    OFFSET(GPR_RDI_AT, GPR_RDI * 8);
    OFFSET(GPR_RBP_AT, GPR_RBP * 8);
    OFFSET(GPR_R8_AT, GPR_R8 * 8);
    OFFSET(HOST_RSP_AT, offsetof(struct vmx_vcpu, host_rsp));
    OFFSET(HOST_RSP_FIELD, VMCS_HOST_RSP);
    OFFSET(ENTRY_EXITED, VMX_ENTRY_EXITED);
    OFFSET(ENTRY_NO_VMCS, VMX_ENTRY_NO_VMCS);
    OFFSET(ENTRY_FAILED, VMX_ENTRY_FAILED);
}
