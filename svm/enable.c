/*
 * Is SVM there, and turning it on. The permission maps that all guests share are made here, once; each must be physically
 * contiguous over several pages, which only the image itself is for certain, so they lie in its .bss.
 */
#include "svm/svm.h"

#include "include/hw/paging.h"
#include "lib/string.h"
#include "mm/mm.h"
#include "x86/cpu.h"
#include "x86/percpu.h"

struct svm_features svm_feature_flags;
static uint8_t iopm[SVM_IOPM_BYTES] __attribute__((aligned(4096)));
static uint8_t msrpm[SVM_MSRPM_BYTES] __attribute__((aligned(4096)));
static uint64_t iopm_hpa, msrpm_hpa;

uint64_t svm_iopm_hpa(void) { return iopm_hpa; }
uint64_t svm_msrpm_hpa(void) { return msrpm_hpa; }

/* APM 2, 15.4. *why is a string constant. */
enum hvm_probe_result svm_probe(const char **why)
{
    uint64_t vm_cr;
    if (cpu_info()->vendor != CPU_VENDOR_AMD || !cpu_has(CPUID_SVM)) {
        *why = "the CPU has no SVM (AMD-V)";
        return HVM_PROBE_ABSENT;
    }
    if (rdmsr_safe(MSR_VM_CR, &vm_cr) && (vm_cr & VM_CR_SVMDIS)) {
        *why = "SVM (AMD-V) is disabled by the firmware (VM_CR.SVMDIS): enable it in the firmware's setup";
        return HVM_PROBE_LOCKED;
    }
    if (!cpu_has(CPUID_SVM_NP) || !cpu_has(CPUID_NX)) {
        *why = "SVM without nested paging (CPUID 8000_000A EDX bit 0) or without NX (8000_0001 EDX bit 20)";
        return HVM_PROBE_LACKS_FEATURE;
    }
    *why = NULL;
    return HVM_PROBE_OK;
}

/* Physical address of something in our image, by our own page tables. */
static uint64_t image_hpa_of(const void *p)
{
    uint64_t va = (uintptr_t)p, e = read_cr3();
    for (unsigned level = PT_LEVELS;; level--) {
        const uint64_t *table = mfn_to_hva(hpa_to_mfn(e & PTE_ADDR_MASK));
        e = table[PT_INDEX(va, level)];
        if (level == 1 || (e & PTE_PS)) {
            uint64_t offset_mask = (UINT64_C(1) << PT_SHIFT(level)) - 1;
            return (e & PTE_ADDR_MASK & ~offset_mask) | (va & offset_mask);
        }
    }
}

static struct svm_features features_of_this_cpu(void)
{
    return (struct svm_features){
        .asids = cpu_leaf(CPUID_LEAF_EXT_SVM, 0).ebx, .nrips = cpu_has(CPUID_SVM_NRIPS),
        .decode_assists = cpu_has(CPUID_SVM_DECODEASSISTS), .flush_by_asid = cpu_has(CPUID_SVM_FLUSHBYASID),
        .vmcb_clean = cpu_has(CPUID_SVM_VMCBCLEAN), .honours_shadow = !cpu_info()->hypervisor, .loses_interrupts = cpu_info()->tcg,
        .pause_filter = cpu_has(CPUID_SVM_PAUSEFILTER),
    };
}

static void init_shared(void)
{
    svm_feature_flags = features_of_this_cpu();
    memset(iopm, 0xff, sizeof(iopm));
    svm_msrpm_fill(msrpm);
    iopm_hpa = image_hpa_of(iopm);
    msrpm_hpa = image_hpa_of(msrpm);
}

/* A guest may come to any CPU, set up for the boot CPU. (Also true of the boot CPU itself.) */
static bool like_the_boot_cpu(const char **why)
{
    if (svm_probe(why) != HVM_PROBE_OK)
        return false;
    struct svm_features here = features_of_this_cpu(), *boot = &svm_feature_flags;
#define SAME(field) (here.field == boot->field)
    bool same = SAME(asids) && SAME(nrips) && SAME(decode_assists) && SAME(flush_by_asid) && SAME(vmcb_clean) && SAME(pause_filter);
#undef SAME
    *why = "its SVM features (CPUID 8000_000A) are not the boot CPU's";
    return same;
}

bool svm_cpu_enable(const char **why)
{
    struct svm_cpu *c = kzalloc(sizeof(*c));
    mfn_t host = frame_alloc(0, FRAME_ZEROED, FRAME_HV_HEAP, NULL), hsave = frame_alloc(0, FRAME_ZEROED, FRAME_HV_HEAP, NULL);
    if (!c || !mfn_valid(host) || !mfn_valid(hsave)) {
        *why = "no frames for the host state-save areas";
        goto fail;
    }
    if (!iopm_hpa)
        init_shared();
    if (!like_the_boot_cpu(why))
        goto fail;
    if (svm_feature_flags.asids < 2) { /* ASID 0 is the host */
        *why = "CPUID 8000_000A EBX reports no usable ASID";
        goto fail;
    }
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_SVME);
    if (!(rdmsr(MSR_EFER) & EFER_SVME) || !wrmsr_safe(MSR_VM_HSAVE_PA, mfn_to_hpa(hsave))) {
        *why = "EFER.SVME or VM_HSAVE_PA can not be written";
        goto fail;
    }
    *c = (struct svm_cpu){.host_vmcb_hpa = mfn_to_hpa(host), .asid_generation = 1, .next_asid = 1, .host_vmcb = host, .hsave = hsave};
    asm volatile("vmsave %0" :: "a"(c->host_vmcb_hpa) : "memory");
    this_cpu()->slot[PERCPU_HVM] = c;
    *why = NULL;
    return true;
fail:
    if (mfn_valid(host))
        frame_free(host, 0);
    if (mfn_valid(hsave))
        frame_free(hsave, 0);
    kfree(c);
    return false;
}

void svm_cpu_disable(void)
{
    struct svm_cpu *c = svm_this_cpu();
    if (!c)
        return;
    this_cpu()->slot[PERCPU_HVM] = NULL;
    wrmsr(MSR_VM_HSAVE_PA, 0);
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~EFER_SVME);
    frame_free(c->host_vmcb, 0);
    frame_free(c->hsave, 0);
    kfree(c);
}
