/* Constants for entry.asm; the Makefile turns each line of the assembly into a %define. */
#include "svm/svm.h"

#include "x86/cpu.h"

_Static_assert(offsetof(struct vcpu, gpr) == 0, "GPR offsets count from the vCPU");

#define OFFSET(name, value) asm volatile("\n#define " #name " %c0" :: "i"(value))

void svm_asm_offsets(void);
void svm_asm_offsets(void)
{
    OFFSET(GPR_RBX_AT, GPR_RBX * 8);
    OFFSET(GPR_RCX_AT, GPR_RCX * 8);
    OFFSET(GPR_RDX_AT, GPR_RDX * 8);
    OFFSET(GPR_RSI_AT, GPR_RSI * 8);
    OFFSET(GPR_RDI_AT, GPR_RDI * 8);
    OFFSET(GPR_RBP_AT, GPR_RBP * 8);
    OFFSET(GPR_R8_AT, GPR_R8 * 8);
    OFFSET(VCPU_HVM_AT, offsetof(struct vcpu, hvm));
    OFFSET(SVM_VMCB_AT, offsetof(struct svm_vcpu, vmcb));
    OFFSET(VMCB_EXIT_CODE_AT, offsetof(struct vmcb, c.exit_code));
    OFFSET(SVM_EXIT_CPUID_CODE, SVM_EXIT_CPUID);
    OFFSET(SVM_EXIT_NPF_CODE, SVM_EXIT_NPF);
    OFFSET(VMCB_CS_ATTR_HIGH_AT, offsetof(struct vmcb, s.cs.attr) + 1);
    OFFSET(VMCB_EFER_AT, offsetof(struct vmcb, s.efer));
    OFFSET(EFER_LMA_BIT, EFER_LMA);
    OFFSET(CS_64_AND_32_BIT, 0xe); /* descriptor bits G, D, L */
    OFFSET(CS_32_BIT, 0x4);
    OFFSET(SVM_VMCB_HPA_AT, offsetof(struct svm_vcpu, vmcb_hpa));
    OFFSET(SVM_HOST_VMCB_HPA_AT, offsetof(struct svm_vcpu, host_vmcb_hpa));
}
