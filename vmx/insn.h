/*
 * The VMX instructions, each with its two ways to fail (SDM 3, 31.2): CF = there is no current VMCS, ZF = the current VMCS's
 * instruction-error field says why. None of them can fail through anything a guest does: vmx_insn_failed() reports our bug by the
 * manual's words and stops. VMLAUNCH and VMRESUME can, and are in entry.asm.
 */
#ifndef HV_VMX_INSN_H
#define HV_VMX_INSN_H

#include "include/hw/vmcs.h"
#include "x86/cpu.h"

NORETURN void vmx_insn_failed(const char *insn, uint64_t operand, bool error_valid); /* enable.c */

/* Without the failure checks' detour: for reports that must not make things worse. False: it failed. */
static inline bool vmread_safe(enum vmcs_field field, uint64_t *value)
{
    bool ok;
    asm volatile("vmread %2, %1" : "=@cca"(ok), "=r"(*value) : "r"((uint64_t)field));
    return ok;
}

static inline uint64_t vmread(enum vmcs_field field)
{
    uint64_t value;
    asm goto("vmread %1, %0\n jc %l[invalid]\n jz %l[failed]" : "=r"(value) : "r"((uint64_t)field) : "cc" : invalid, failed);
    return value;
invalid:
    vmx_insn_failed("VMREAD", field, false);
failed:
    vmx_insn_failed("VMREAD", field, true);
}

static inline void vmwrite(enum vmcs_field field, uint64_t value)
{
    asm goto("vmwrite %0, %1\n jc %l[invalid]\n jz %l[failed]" :: "r"(value), "r"((uint64_t)field) : "cc", "memory" : invalid, failed);
    return;
invalid:
    vmx_insn_failed("VMWRITE", field, false);
failed:
    vmx_insn_failed("VMWRITE", field, true);
}

#define VMX_POINTER_INSN(name, NAME)                                                                       \
    static inline void name(uint64_t hpa)                                                                  \
    {                                                                                                      \
        asm goto(#name " %0\n jc %l[invalid]\n jz %l[failed]" :: "m"(hpa) : "cc", "memory" : invalid, failed); \
        return;                                                                                            \
    invalid:                                                                                               \
        vmx_insn_failed(NAME, hpa, false);                                                                 \
    failed:                                                                                                \
        vmx_insn_failed(NAME, hpa, true);                                                                  \
    }
VMX_POINTER_INSN(vmptrld, "VMPTRLD")
VMX_POINTER_INSN(vmclear, "VMCLEAR")
#undef VMX_POINTER_INSN

#define VMX_INVALIDATE(name, NAME)                                                                         \
    static inline void name(uint64_t type, uint64_t operand)                                               \
    {                                                                                                      \
        struct { uint64_t operand, zero; } descriptor = {operand, 0};                                      \
        asm goto(#name " %0, %1\n jc %l[invalid]\n jz %l[failed]" :: "m"(descriptor), "r"(type) : "cc", "memory" \
                 : invalid, failed);                                                                       \
        return;                                                                                            \
    invalid:                                                                                               \
        vmx_insn_failed(NAME, operand, false);                                                             \
    failed:                                                                                                \
        vmx_insn_failed(NAME, operand, true);                                                              \
    }
VMX_INVALIDATE(invept, "INVEPT")
VMX_INVALIDATE(invvpid, "INVVPID")
#undef VMX_INVALIDATE

/* False: the region or CR0, CR4, IA32_FEATURE_CONTROL are not as VMXON wants them (#GP or CF). */
static inline bool vmxon(uint64_t hpa)
{
    uint8_t ok = 0;
    asm volatile("1: vmxon %1\n seta %0\n 2:\n" FIXUP("1b", "2b") : "+q"(ok) : "m"(hpa) : "cc", "memory");
    return ok;
}

static inline void vmxoff(void)
{
    asm goto("vmxoff\n jc %l[invalid]\n jz %l[failed]" ::: "cc", "memory" : invalid, failed);
    return;
invalid:
    vmx_insn_failed("VMXOFF", 0, false);
failed:
    vmx_insn_failed("VMXOFF", 0, true);
}

#endif
