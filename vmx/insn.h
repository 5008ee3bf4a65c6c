/*
 * The VMX instructions, each with its two ways to fail (SDM 3, 31.2): CF = there is no current VMCS, ZF = the current VMCS's
 * instruction-error field says why. Which of them it was is told by trying to read that field, so one branch here covers both.
 * None of them can fail through anything a guest does: the report, by the manual's words, is of a bug of ours, and stops.
 * VMLAUNCH and VMRESUME can, and are in entry.asm.
 */
#ifndef HV_VMX_INSN_H
#define HV_VMX_INSN_H

#include "include/hw/vmcs.h"
#include "vmx/failure.h"
#include "x86/cpu.h"

/* enable.c */
NORETURN void vmx_insn_failed(const char *insn, uint64_t operand);
NORETURN void vmread_failed(uint64_t field);
NORETURN void vmwrite_failed(uint64_t field);

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
    asm goto("vmread %1, %0\n jbe %l[failed]" : "=r"(value) : "r"((uint64_t)field) : "cc" : failed);
    return value;
failed:
    vmread_failed(field);
}

static inline void vmwrite(enum vmcs_field field, uint64_t value)
{
    asm goto("vmwrite %0, %1\n jbe %l[failed]" :: "r"(value), "r"((uint64_t)field) : "cc", "memory" : failed);
    return;
failed:
    vmwrite_failed(field);
}

#define VMX_POINTER_INSN(name, NAME)                                                                       \
    static inline void name(uint64_t hpa)                                                                  \
    {                                                                                                      \
        asm goto(#name " %0\n jbe %l[failed]" :: "m"(hpa) : "cc", "memory" : failed);                      \
        return;                                                                                            \
    failed:                                                                                                \
        vmx_insn_failed(NAME, hpa);                                                                        \
    }
VMX_POINTER_INSN(vmptrld, "VMPTRLD")
VMX_POINTER_INSN(vmclear, "VMCLEAR")
#undef VMX_POINTER_INSN

#define VMX_INVALIDATE(name, NAME)                                                                         \
    static inline void name(uint64_t type, const struct vmx_invalidation *i)                               \
    {                                                                                                      \
        asm goto(#name " %0, %1\n jbe %l[failed]" :: "m"(*i), "r"(type) : "cc", "memory" : failed);        \
        return;                                                                                            \
    failed:                                                                                                \
        vmx_insn_failed(NAME, i->what);                                                                    \
    }
VMX_INVALIDATE(invept, "INVEPT")
VMX_INVALIDATE(invvpid, "INVVPID")
#undef VMX_INVALIDATE

/* After a #GP both flags are as they were set here, which no instruction leaves them. */
static inline enum vmx_outcome vmxon(uint64_t hpa)
{
    uint8_t cf = 1, zf = 1;
    asm volatile("1: vmxon %2\n setc %0\n setz %1\n 2:\n" FIXUP("1b", "2b") : "+q"(cf), "+q"(zf) : "m"(hpa) : "cc", "memory");
    return cf ? zf ? VMX_FAULTED : VMX_FAIL_INVALID : zf ? VMX_FAIL_VALID : VMX_SUCCEEDED;
}

static inline void vmxoff(void)
{
    asm goto("vmxoff\n jbe %l[failed]" ::: "cc", "memory" : failed);
    return;
failed:
    vmx_insn_failed("VMXOFF", 0);
}

#endif
