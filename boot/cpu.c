/*
 * Can this CPU run us? Asked before anything is loaded, because the answer is about the machine and not about the
 * medium, and because under UEFI the screen is gone later. "Present but switched off by firmware" is
 * told apart from "not there": the first is one setting away.
 */
#include "boot/image.h"

#define MSR_IA32_FEATURE_CONTROL 0x3a
#define FEATURE_CONTROL_LOCKED BIT64(0)
#define FEATURE_CONTROL_VMX_OUTSIDE_SMX BIT64(2)
#define MSR_IA32_VMX_PROCBASED_CTLS 0x482
#define MSR_IA32_VMX_PROCBASED_CTLS2 0x48b
#define MAY_ACTIVATE_SECONDARY BIT64(63)
#define MAY_ENABLE_EPT BIT64(33)
#define MAY_BE_UNRESTRICTED BIT64(39)
#define MSR_VM_CR 0xc0010114
#define VM_CR_SVMDIS BIT64(4)
#define CR4_LA57 BIT64(12)

struct cpuid_regs { uint32_t eax, ebx, ecx, edx; };

#if HV_HOST /* the test's CPU */
static struct cpuid_regs cpuid(uint32_t leaf);
static uint64_t rdmsr(uint32_t msr);
static uint64_t read_cr4(void);
#else
static struct cpuid_regs cpuid(uint32_t leaf)
{
    struct cpuid_regs r;
    asm volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "a"(leaf), "c"(0));
    return r;
}

static uint64_t rdmsr(uint32_t msr)
{
    uint32_t lo, hi;
    asm volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(msr));
    return lo | (uint64_t)hi << 32;
}

static uint64_t read_cr4(void)
{
    uint64_t cr4;
    asm volatile("mov %%cr4, %0" : "=r"(cr4));
    return cr4;
}
#endif

/* AMD APM 2, 15.4 (enabling SVM) and 15.25 (nested paging). */
static void check_svm(void)
{
    if (rdmsr(MSR_VM_CR) & VM_CR_SVMDIS)
        loader_halt("AMD SVM is present but firmware has disabled it (VM_CR.SVMDIS): look for \"SVM\" or "
                    "\"virtualization\" in the firmware setup");
    if (cpuid(0x80000000).eax < 0x8000000a || !(cpuid(0x8000000a).edx & BIT64(0)))
        loader_halt("this CPU has AMD SVM but no nested paging (CPUID 8000000A EDX bit 0)");
}

/* Intel SDM 3, 24.7: once locked, the enable bit cannot be set until reset. Unlocked, we set it ourselves later. Of what else we need,
 * what the first generations lack is asked for here (appendix A.3); the hypervisor looks at all of it. */
static void check_vmx(void)
{
    uint64_t control = rdmsr(MSR_IA32_FEATURE_CONTROL);
    if ((control & FEATURE_CONTROL_LOCKED) && !(control & FEATURE_CONTROL_VMX_OUTSIDE_SMX))
        loader_halt("Intel VMX is present but firmware has locked it off (IA32_FEATURE_CONTROL): look for "
                    "\"VT-x\" or \"virtualization\" in the firmware setup");
    uint64_t secondary = rdmsr(MSR_IA32_VMX_PROCBASED_CTLS) & MAY_ACTIVATE_SECONDARY ? rdmsr(MSR_IA32_VMX_PROCBASED_CTLS2) : 0;
    if (!(secondary & MAY_ENABLE_EPT))
        loader_halt("this CPU has Intel VMX but no EPT (IA32_VMX_PROCBASED_CTLS2 bit 33)");
    if (!(secondary & MAY_BE_UNRESTRICTED))
        loader_halt("this CPU has Intel VMX and EPT but no unrestricted guest (IA32_VMX_PROCBASED_CTLS2 bit 39)");
}

void loader_check_cpu(void)
{
    struct cpuid_regs basic = cpuid(1);
    struct cpuid_regs extended = cpuid(0x80000000).eax >= 0x80000001 ? cpuid(0x80000001) : (struct cpuid_regs){0};

    if (!(extended.edx & BIT64(29)))
        loader_halt("this CPU has no long mode (CPUID 80000001 EDX bit 29)");
    if (!(extended.edx & BIT64(20)))
        loader_halt("this CPU has no NX pages, or firmware has switched them off (CPUID 80000001 EDX bit 20)");
    if (!(basic.edx & BIT64(9)))
        loader_halt("this CPU has no local APIC, or firmware has switched it off (CPUID 1 EDX bit 9)");
    if (read_cr4() & CR4_LA57)
        loader_halt("firmware left the CPU in 5-level paging (CR4.LA57), which Palimpsest cannot take over: switch it off "
                    "in the firmware setup");

    if (extended.ecx & BIT64(2))
        check_svm();
    else if (basic.ecx & BIT64(5))
        check_vmx();
    else
        loader_halt("this CPU has neither AMD SVM nor Intel VMX%s", basic.ecx & BIT64(31)
                        ? ": we run under another hypervisor, which hides them (nested virtualization is off)" : "");
}
